"""Models on the Hugging Face Hub, against a stand-in of its HTTP API: what is pushed is what is loaded, of a repository nothing is
downloaded but a bundle's own files, and whatever goes wrong is one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_stand_in import TOKEN, Hub, Repository

import gentok
from gentok.bundle import hub as ours
from gentok.bundle.hub import HubAddress
from gentok.bundle.publishing import _without_places

pytest.importorskip("huggingface_hub")
ROOT = Path(__file__).resolve().parents[2]
FILES = {"README.md", "bundle.json", "tokenizer/model.safetensors"}


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """Sets what the client reads from the environment when it is imported."""
    from huggingface_hub import constants

    def change(**values):
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value)

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("HF_HUB_CACHE", "HF_TOKEN_PATH"):
        change(**{name: str(tmp_path / name)})
    change(HF_HUB_OFFLINE=False, HF_HUB_DISABLE_XET=True)
    return change


@pytest.fixture
def hub(settings):
    with Hub().running() as running:
        settings(ENDPOINT=running.url, HUGGINGFACE_CO_URL_TEMPLATE=running.url + "/{repo_id}/resolve/{revision}/{filename}")
        yield running


@pytest.fixture(scope="module")
def model():
    return gentok.load("mnist5k_vq")


def same(a, b):
    ours, theirs = a.tokenizer.state_dict(), b.tokenizer.state_dict()
    return a.spec == b.spec and ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def refused(kind, *words, load="hf://me/model"):
    with pytest.raises(kind) as error:
        gentok.load(load) if isinstance(load, str) else load()
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_what_is_pushed_is_what_is_loaded(hub, model):
    where = model.push_to_hub("me/model", license="apache-2.0")
    assert where.startswith(f"{hub.url}/me/model/commit/") and set(hub.repositories["me/model"].files("main")) == FILES
    assert len(hub.repositories["me/model"].commits) == 2, "a push is one commit"
    for again in (gentok.load("hf://me/model"), gentok.from_pretrained("me/model"), gentok.Bundle.from_pretrained("hf://me/model")):
        assert same(model, again) and again.meta["metrics"] == model.meta["metrics"]


def test_a_generator_brings_its_tokenizer(hub):
    model = gentok.load("mnist5k_ar")
    model.push_to_hub("me/model")
    again = gentok.load("hf://me/model")
    assert set(hub.repositories["me/model"].files("main")) == {*FILES, "generator/model.safetensors"}
    assert torch.equal(again.sample(n=1, condition=7, seed=3), model.sample(n=1, condition=7, seed=3))


def test_a_model_is_loaded_again_without_a_connection(hub, settings, model):
    model.push_to_hub("me/model", revision="v1")
    gentok.load("hf://me/model@v1")
    before = len(hub.asked)
    settings(HF_HUB_OFFLINE=True)
    assert same(model, gentok.load("hf://me/model@v1")) and len(hub.asked) == before
    settings(HF_HUB_OFFLINE=False, ENDPOINT="http://127.0.0.1:9")
    assert same(model, gentok.load("hf://me/model@v1"))


def test_revisions_folders_and_commits(hub, model):
    other = gentok.load("cifar10_vq")
    model.push_to_hub("me/model", private=True)
    branch = other.push_to_hub("me/model", revision="v2/b")
    other.push_to_hub("hf://me/model/sub/folder")
    commit = branch.rpartition("/")[2]
    assert hub.repositories["me/model"].private
    assert same(gentok.load("hf://me/model"), model) and same(gentok.load("hf://me/model@main"), model)
    for address in ("hf://me/model@v2%2Fb", f"hf://me/model@{commit}", "hf://me/model/sub/folder", "hf://me/model@main/sub/folder/"):
        assert same(gentok.load(address), other), address
    assert same(gentok.from_pretrained("me/model", revision="v2/b"), other)
    assert same(gentok.from_pretrained("me/model", subfolder="sub/folder"), other)


STRANGERS = {"modeling.py": b"raise SystemExit(9)", "pytorch_model.bin": b"\x80", "tokenizer/extra.json": b"{}", "x/bundle.json": b"[]"}


def test_nothing_is_downloaded_but_the_files_of_a_bundle(hub, model, monkeypatch):
    model.push_to_hub("me/model")
    hub.repositories["me/model"].commit("main", STRANGERS)
    folder = Path(gentok.load("hf://me/model").path)
    assert hub.downloaded() == FILES - {"README.md"}
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == FILES - {"README.md"}
    monkeypatch.setattr(ours, "_FILES", ("*",))  # a client that takes whatever there is is noticed
    gentok.load("hf://me/model")
    assert hub.downloaded() == FILES | set(STRANGERS)


def test_a_downloaded_bundle_is_checked_as_a_local_one(hub, model):
    model.push_to_hub("me/model")
    weights = hub.repositories["me/model"].files("main")["tokenizer/model.safetensors"]
    hub.repositories["me/model"].commit("main", {"tokenizer/model.safetensors": weights[:-1] + bytes([weights[-1] ^ 1])})
    refused(ValueError, "checksum differs")
    hub.repositories["me/model"].commit("main", {"tokenizer/model.safetensors": weights})
    document = json.loads(hub.repositories["me/model"].files("main")["bundle.json"])
    document["tokenizer"]["config"]["_target_"] = "os.system"
    hub.repositories["me/model"].commit("main", {"bundle.json": json.dumps(document).encode()})
    refused(ValueError, "os.system")


def test_what_is_missing_or_refused_is_one_line(hub, settings, model, monkeypatch):
    refused(FileNotFoundError, "no repository me/model", hub.url, "hf auth login")
    model.push_to_hub("hf://me/model/tok", private=True)
    refused(FileNotFoundError, "no bundle.json", "bundles inside it: hf://me/model/tok")
    refused(FileNotFoundError, "no revision v9", load="hf://me/model@v9")
    hub.repositories["me/empty"] = Repository()
    refused(FileNotFoundError, "holds no model of gentok", load="hf://me/empty")
    hub.repositories["me/gated"] = Repository(gated=True)
    monkeypatch.delenv("HF_TOKEN")
    refused(FileNotFoundError, "it is private", load="hf://me/model/tok")
    refused(PermissionError, "terms", f"{hub.url}/me/gated", load="hf://me/gated")
    refused(OSError, "me/other", "hf auth login", load=lambda: model.push_to_hub("me/other"))
    settings(HF_HUB_OFFLINE=True)
    refused(FileNotFoundError, "hf://me/model/tok is not in the cache", "HF_HUB_OFFLINE", load="hf://me/model/tok")
    refused(FileNotFoundError, "cannot be written", "HF_HUB_OFFLINE", load=lambda: model.push_to_hub("me/other"))
    settings(HF_HUB_OFFLINE=False, ENDPOINT="http://127.0.0.1:9")
    refused(ConnectionError, "http://127.0.0.1:9 cannot be reached", "not in the cache")
    refused(ConnectionError, "cannot be reached", load=lambda: model.push_to_hub("me/other"))


def test_a_missing_package_is_one_line(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(ImportError, "pip install 'gentok[hub]'")
    refused(ImportError, "pip install 'gentok[hub]'", load=lambda: model.push_to_hub("me/model"))
    assert gentok.from_pretrained("mnist5k_vq").spec == gentok.load("mnist5k_vq").spec, "models that are here need no client"


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("hf://a/b", HubAddress("a/b")),
        ("hf:/a/b", HubAddress("a/b")),
        ("models/a/b", HubAddress("a/b")),
        ("hf://a.b/c-d_1@main/", HubAddress("a.b/c-d_1", "main")),
        ("hf://a/b@refs/pr/3/x", HubAddress("a/b", "refs/pr/3", "x")),
        ("hf://a/b@v1%2Fx/c/d", HubAddress("a/b", "v1/x", "c/d")),
    ],
)
def test_addresses(text, right):
    assert HubAddress.parse(text) == right and HubAddress.parse(str(right)) == right


@pytest.mark.parametrize(
    "text", ["hf://a", "hf://", "hf://a/b@", "hf://a/b@x@y", "hf://a/b/../c", "hf://a/b/x//y", "hf://../b", "hf://a/b/*", "hf://a/b c", "hf://a/b/~"]
)
def test_what_is_no_address_is_one_line(text):
    refused(ValueError, text, "expected hf://OWNER/NAME", load=text)


def test_another_revision_than_the_address_says_is_refused():
    refused(ValueError, "revision=w", load=lambda: gentok.from_pretrained("hf://a/b@v", revision="w"))
    refused(ValueError, "no repository of the hub", load=lambda: gentok.from_pretrained("mnist5k_vq", revision="w"))


def test_a_name_that_may_be_one_of_the_hub_is_said_to_be():
    refused(FileNotFoundError, "hf://somebody/model", load="somebody/model")


def test_notes_that_are_handed_on_name_no_place_of_this_machine():
    notes = {"a": ["/home/me/data/x.tar", "~/x", "C:\\me\\x.tar"], "c": "train.py path=/home/me/cats 'o=/tmp/a,/tmp/b' n=3/4"}
    right = {"a": ["PATH/x.tar", "PATH/x", "PATH/x.tar"], "c": "train.py path=PATH/cats 'o=PATH/a,PATH/b' n=3/4"}
    assert _without_places(notes) == right
    for kept in ("docs/zoo/mnist5k_vq", "https://a.b/c", "hf://a/b", "1 / 2", "a/b", "../x/y", 0.5, None):
        assert _without_places(kept) == kept


@pytest.mark.slow
def test_a_generator_is_trained_over_a_tokenizer_of_the_hub_and_goes_on_from_one(hub, model, tmp_path):
    from gentok.cli import compose
    from gentok.training.run import train

    model.push_to_hub("me/tokenizer")
    small = ["generator.width=32", "generator.depth=1", "generator.heads=2", "limit_items=40", "steps=2", "budget=null", "batch_size=8"]
    words = ["experiment=mnist5k/ar", "tokenizer.ckpt=hf://me/tokenizer", *small, f"paths.root={tmp_path}", "trainer.progress_bar=false"]
    bundle = gentok.load(train(compose("config", [*words, f"paths.run={tmp_path / 'a'}"])) / "bundle")
    assert same(bundle, model)
    bundle.push_to_hub("me/generator")
    again = train(compose("config", [*words, f"paths.run={tmp_path / 'b'}", "init_from=hf://me/generator", "optimizer.lr=1e-12"]))
    ours, theirs = bundle.generator.state_dict(), gentok.load(again / "bundle").generator.state_dict()
    assert all(torch.allclose(value, theirs[name], atol=1e-6) for name, value in ours.items())


SCRIPT = """
import sys, gentok
from gentok.cli import main
main(["push", "ckpt=mnist5k_vq", "repo=me/model", "private=true", "license=mit"])
main(["push", "ckpt=hf://me/model", "folder={out}"])
main(["push", "ckpt=hf://me/missing", "folder={out}"])
"""


@pytest.mark.slow
def test_the_command_line_pushes_and_loads_by_the_environments_settings(tmp_path):
    own = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    with Hub().running() as hub:
        words = [sys.executable, "-c", SCRIPT.format(out=tmp_path / "out")]
        done = subprocess.run(words, env={**os.environ, **own, "HF_ENDPOINT": hub.url}, capture_output=True, text=True, cwd=tmp_path)
    assert "next:   gentok.load('hf://me/model')" in done.stdout and f"written to {tmp_path / 'out'}" in done.stdout, done.stderr
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("gentok: there is no repository me/missing")
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text() and hub.repositories["me/model"].private
    assert same(gentok.load(tmp_path / "out"), gentok.load("mnist5k_vq"))
