"""Bundles and checkpoints that were damaged, or that ask for more than they hold: one line, before memory is taken."""

import hashlib
import json
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import gentok
from gentok.bundle.files import FORMAT, NewerFormatError, sealed
from gentok.errors import ConfigError, FormatError
from gentok.types.documents import parse, seal

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return gentok.load("mnist5k_masked").save(tmp_path_factory.mktemp("good") / "bundle")


@pytest.fixture
def bundle(good, tmp_path):
    return shutil.copytree(good, tmp_path / "bundle")


def edited(bundle, change, attack=True):
    """bundle.json after `change`; attack: with a checksum that is right."""
    document = json.loads((bundle / "bundle.json").read_text())
    change(document)
    if attack and isinstance(document.get("meta"), dict):
        document["checksum"] = seal(sealed(document))["checksum"]
    (bundle / "bundle.json").write_text(json.dumps(document))
    return bundle


def refused(path, *words, error=(FormatError, ConfigError)):
    with pytest.raises(error) as found:
        gentok.load(path)
    message = str(found.value)
    assert "\n" not in message and len(message) < 1500 and all(word in message for word in words), message


def flip(path, at=-1000, bit=3):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(bytes(data))


def test_a_bundle_that_is_read_again_is_the_same_and_has_checksums_of_everything(bundle):
    document = json.loads((bundle / "bundle.json").read_text())
    assert document["format"] == FORMAT and set(document["checksums"]) == {"tokenizer/model.safetensors", "generator/model.safetensors"}
    assert document["checksum"] == seal(sealed(document))["checksum"]
    one, two = gentok.load(bundle), gentok.load("mnist5k_masked")
    assert torch.equal(one.sample(n=1, sampler="maskgit", steps=2, seed=1), two.sample(n=1, sampler="maskgit", steps=2, seed=1))


@pytest.mark.parametrize("part", ["tokenizer", "generator"])
def test_a_flipped_bit_in_weights_is_refused(bundle, part):
    flip(bundle / part / "model.safetensors")
    refused(bundle, "model.safetensors", "checksum differs")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["generator"]["config"].update(condition_dropout=0.7),  # which fits the same weights
        lambda d: d.update(guidance=9.0),
        lambda d: d["condition_spec"]["class"]["names"].reverse(),
        lambda d: d.pop("checksum"),
        lambda d: d.pop("checksums"),
    ],
    ids=["setting", "guidance", "names", "no checksum", "no checksums"],
)
def test_a_changed_bundle_json_is_refused(bundle, change):
    refused(edited(bundle, change, attack=False), "bundle.json")


def test_notes_may_be_edited_and_change_no_sample(bundle):
    guidance = gentok.load(bundle).meta["guidance"]
    edited(bundle, lambda d: d["meta"].update(author="me", guidance=9.0), attack=False)
    assert gentok.load(bundle).meta["author"] == "me" and gentok.load(bundle).meta["guidance"] == guidance
    edited(bundle, lambda d: d.update(meta={}), attack=False)
    assert gentok.load(bundle).meta == {"guidance": guidance}


@pytest.mark.parametrize("path", sorted((GOLDEN.parents[1] / "docs" / "zoo").glob("*/bundle.json")), ids=lambda path: path.parent.name)
def test_models_of_the_repository_have_checksums_of_everything(path):
    document = json.loads(path.read_text())
    assert document["checksum"] == seal(sealed(document))["checksum"]
    assert document["checksums"] == {
        str(file.relative_to(path.parent)): hashlib.sha256(file.read_bytes()).hexdigest() for file in path.parent.rglob("*.safetensors")
    }


@pytest.mark.parametrize("name", ["mnist5k_ar", "mnist5k_ar.ckpt", "mnist5k_vq.ckpt"])
def test_files_without_checksums_load_as_before(name):
    assert gentok.load(GOLDEN / name).spec.levels == 1


SIZES = {
    "width": lambda d: d["generator"]["config"].update(width=1_000_000),
    "depth": lambda d: d["generator"]["config"].update(depth=10**9),
    "heads": lambda d: d["generator"]["config"].update(heads=10**12),
    "codebook": lambda d: d["tokenizer"]["config"]["codebook"].update(vocab_size=10**15),
    "tokenizer width": lambda d: d["tokenizer"]["config"].update(width=10**8),
    "blocks": lambda d: d["tokenizer"]["config"].update(blocks=10**9),
    "multipliers": lambda d: d["tokenizer"]["config"].update(multipliers=[1] * 100_000),
    "grid": lambda d: d["tokenizer"]["spec"]["grid"].update(h=2**31 - 1),
    "media": lambda d: d["tokenizer"]["config"].update(media_shape=[1, 2**30, 2**30]),
    "names": lambda d: d["condition_spec"].update(text={"kind": "vectors", "width": 2**30, "max_length": 2**30}),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_configuration_that_asks_for_more_than_the_weights_takes_no_memory(bundle, name, monkeypatch):
    largest, real = [0], torch.empty

    def watched(*size, **options):
        out = real(*size, **options)
        largest[0] = max(largest[0], 0 if out.is_meta else out.nbytes)
        return out

    monkeypatch.setattr(torch, "empty", watched)
    began = time.process_time()
    refused(edited(bundle, SIZES[name]))
    assert time.process_time() - began < 30 and largest[0] < 1 << 26


WRONG = {
    "text for a number": (lambda d: d["tokenizer"]["config"].update(width="8"), ()),
    "a list for a number": (lambda d: d["generator"]["config"].update(depth=[1]), ()),
    "nan": (lambda d: d["generator"]["config"].update(width=float("nan")), ()),
    "text for a group": (lambda d: d["condition_spec"].update({"class": "names"}), ("condition_spec",)),
    "a grid of text": (lambda d: d["tokenizer"]["spec"].update(grid="raster"), ("grid",)),
    "a grid of no size": (lambda d: d["tokenizer"]["spec"]["grid"].update(h=0), ("h",)),
    "vocabularies of text": (lambda d: d["tokenizer"]["spec"].update(vocab_sizes=["512"]), ("vocab_sizes",)),
    "another kind": (lambda d: d.update(kind="sampler"), ("kind",)),
    "no generator": (lambda d: d.pop("generator"), ("generator",)),
    "meta of text": (lambda d: d.update(meta="notes"), ("meta",)),
    "a format of text": (lambda d: d.update(format="2"), ("format",)),
    "guidance of text": (lambda d: d["meta"].update(guidance="strong"), ("guidance",)),
    "an unknown key of the spec": (lambda d: d["tokenizer"]["spec"].update(colour=1), ("colour", "upgrade")),
    "another spec": (lambda d: d["tokenizer"]["spec"].update(media_shape=[3, 32, 32]), ()),
}


@pytest.mark.parametrize("name", WRONG)
def test_values_of_another_type_are_one_line(bundle, name):
    change, words = WRONG[name]
    refused(edited(bundle, change), *words)


@pytest.mark.parametrize(
    "text", ["[1, 2]", "[" * 100_000 + "]" * 100_000, '{"a": ' * 200 + "1" + "}" * 200, "\udcff", '{"format": ' + "9" * 5000]
)
def test_text_that_is_no_document_is_one_line(bundle, text):
    (bundle / "bundle.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(bundle, "bundle.json")


def test_what_grows_while_it_is_walked_through_has_a_limit(checkpoint):
    """Sixty lists of which each holds the next one twice."""

    def doubled(content, place):
        inner = []
        for _ in range(60):
            inner = [inner, inner]
        place(content, inner)

    refused(resaved(checkpoint, lambda c: doubled(c, lambda c, v: c["hyper_parameters"].update(x=v))), "values")


def test_a_document_has_a_limit(monkeypatch):
    monkeypatch.setattr("gentok.types.documents.LIMIT", 100)
    with pytest.raises(FormatError, match="more than 100 bytes"):
        parse(b" " * 101, "x")


def test_only_the_weights_are_read_whatever_the_checksums_name(bundle, monkeypatch):
    read = []
    real = gentok.bundle.files.checksum
    monkeypatch.setattr("gentok.bundle.files.checksum", lambda path: (read.append(path), real(path))[1])
    gentok.load(edited(bundle, lambda d: d["checksums"].update({"../../etc/passwd": "0"})))
    assert {path.parent.parent for path in read} == {bundle}


def test_weights_of_other_shapes_are_named(bundle):
    from safetensors.torch import load_file, save_file

    file = bundle / "generator" / "model.safetensors"
    state = load_file(file)
    name = next(iter(state))
    save_file({**state, name: state[name][:1].contiguous()}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    refused(edited(bundle, lambda d: d["checksums"].update({"generator/model.safetensors": digest})), name, "does not fit")


@pytest.mark.parametrize("stored", [{"items": 10**12}, {"size": 30_000}, {"channels": [1, 10**9]}, {"size": 10**5, "held_out": 1}])
def test_data_that_a_model_brings_along_may_not_be_huge(bundle, tmp_path, stored):
    from gentok.cli import compose
    from gentok.evaluate import evaluate

    data = {"_target_": "data/noise", "items": 40, "held_out": 10, "size": 32, "channels": 1}
    edited(bundle, lambda d: d["meta"].update(data={**data, **stored}))
    with pytest.raises(ValueError, match="items|size|channels") as error:
        evaluate(compose("evaluate", [f"ckpt={bundle}", f"out={tmp_path / 'out'}", "progress=false"]))
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture
def checkpoint(tmp_path):
    return Path(shutil.copy(GOLDEN / "mnist5k_ar.ckpt", tmp_path / "last.ckpt"))


def resaved(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def test_a_flipped_bit_anywhere_in_the_data_of_a_checkpoint_is_refused(checkpoint):
    good = checkpoint.read_bytes()
    with zipfile.ZipFile(checkpoint) as archive:
        entries = [entry for entry in archive.infolist() if entry.file_size]
    for entry in entries[:: max(1, len(entries) // 20)]:
        name = len(entry.filename.encode())
        start = entry.header_offset + 30 + name + int.from_bytes(good[entry.header_offset + 28 : entry.header_offset + 30], "little")
        checkpoint.write_bytes(good)
        flip(checkpoint, start + entry.file_size // 2)
        refused(checkpoint, "damaged")


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(gentok=[1]),
        lambda c: c["gentok"].update(format="1"),
        lambda c: c["gentok"]["tokenizer"].pop("config"),
        lambda c: c.update(state_dict=3),
        lambda c: c["state_dict"].update(x="text"),
        lambda c: c["state_dict"].update({next(iter(c["state_dict"])): torch.zeros(1).expand(10**12)}),
        lambda c: c["tokenizer_state"].popitem(),
        lambda c: c["gentok"]["generator"]["config"].update(width=10**6),
        lambda c: c["gentok"]["meta"].update(inner=torch.zeros(3)),
    ],
)
def test_a_checkpoint_of_other_content_is_one_line(checkpoint, change):
    refused(resaved(checkpoint, change))


def test_a_newer_checkpoint_says_so(checkpoint):
    refused(resaved(checkpoint, lambda c: c["gentok"].update(format=FORMAT + 1)), "upgrade", error=NewerFormatError)


# ---------------------------------------------------------------------------------------------------------- use


def test_media_and_codes_of_another_kind_are_one_line():
    model = gentok.load("mnist5k_vq")
    media = torch.rand(1, 1, 32, 32) * 2 - 1
    codes = model.encode(media).codes
    assert torch.equal(model.encode(media.numpy()).codes, codes)
    assert torch.equal(model.decode(codes.numpy()), model.decode(codes))
    for wrong in ("picture.png", None, [0.0], np.array(["a"]), media * 255, media * float("nan")):
        with pytest.raises(ValueError, match="media"):
            model.encode(wrong)
    for wrong, words in ((codes + 512, "ids 0..511"), ("codes", "codes"), (codes.float(), "int64"), (codes[0], "int64")):
        with pytest.raises(ValueError, match=words):
            model.decode(wrong)
    with pytest.raises(ValueError, match="ids 0..511"):
        model.decode(gentok.types.Tokens(codes + 512, model.spec))


def test_a_path_may_begin_at_home(good, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(good.parent))
    assert gentok.load("~/bundle").kind == "generator"
