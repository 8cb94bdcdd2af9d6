"""`watermark=KIND key=FILE` of sample.py, and `gentok watermark detect`: found in codes and in images that are encoded again."""

import json
import shutil
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gentok.cli import compose
from gentok.sample_files import _request, sample_to_folder
from gentok.watermark import main, run
from gentok.watermarks.key import VARIABLE, Key

SECRET = "fedcba9876543210 of the command's test"


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A folder of samples of digits, the file of their key and that of another."""
    root = tmp_path_factory.mktemp("watermark")
    (root / "key").write_text(SECRET)
    (root / "other").write_text("0" * 32)
    words = ["ckpt=mnist5k_ar", "n=4", "condition=7", "watermark=exp", f"key={root / 'key'}", f"out={root / 'out'}", "device=cpu"]
    sample_to_folder(compose("sample", words))
    return root


def asked(root, *words, key="key", **more):
    config = compose("watermark_detect", ["command=detect", "ckpt=mnist5k_ar", "keys=99", "device=cpu", *words])
    return run({**config, "key": str(root / key), "out": str(root / "found.json"), **more})


def test_codes_and_images_that_are_encoded_again_are_found_by_their_key_alone(samples, capsys):
    out, file = str(samples / "out"), str(samples / "out" / "codes.safetensors")
    found = asked(samples, inputs=[file, out])
    lines = capsys.readouterr().out.splitlines()
    assert len(found) == 8 and [line.partition(": p = ")[0] for line in lines] == [answer["file"] for answer in found]
    assert found[0]["file"] == f"{file}[0]" and found[4]["file"].endswith("0000.png") and {answer["tokens"] for answer in found} == {64}
    assert all(answer["p"] <= 0.01 for answer in found[:4]) and min(answer["p"] for answer in found[4:]) <= 0.05
    stored = json.loads((samples / "found.json").read_text())
    assert stored["found"] == found and stored["watermark"] == {"name": "exp", "distortion_free": True, "length": None}
    assert min(answer["p"] for answer in asked(samples, inputs=[file], key="other")) > 0.01
    assert min(answer["p"] for answer in asked(samples, "watermark=its", inputs=[file])) > 0.01, "another kind"


def test_codes_of_which_a_row_was_lost_are_found_by_edit_distance(samples, tmp_path):
    with safe_open(samples / "out" / "codes.safetensors", "pt") as file:
        codes, metadata = file.get_tensor("codes"), file.metadata()
    holes = torch.tensor([p for p in range(64) if p not in (9, 20, 31, 42, 53)])
    shorter = torch.nn.functional.pad(codes[..., holes], (0, 5), value=-1)
    save_file({"codes": shorter}, tmp_path / "codes.safetensors", metadata=metadata)
    found = {a: asked(samples, f"alignment={a}", inputs=[str(tmp_path / "codes.safetensors")]) for a in ("shift", "edit")}
    assert json.loads((samples / "found.json").read_text())["gap"] == 3.0
    assert sum(answer["p"] <= 0.01 for answer in found["edit"]) >= 3 > sum(answer["p"] <= 0.01 for answer in found["shift"])


def test_the_key_is_in_no_file_that_is_written(samples):
    report = json.loads((samples / "out" / "samples.json").read_text())
    assert report["watermark"] == {"name": "exp", "distortion_free": True, "length": None} and "key" not in report
    for path in (samples / "out").iterdir():
        assert SECRET.encode() not in path.read_bytes() and str(samples / "key").encode() not in path.read_bytes()


def test_what_another_key_has_left_unfinished_is_not_gone_on_with(samples, monkeypatch):
    config = compose("sample", ["ckpt=mnist5k_ar", "watermark=exp"])
    requests = []
    for secret in (SECRET, SECRET, "another secret of enough bytes"):
        monkeypatch.setenv(VARIABLE, secret)
        requests.append(_request(config))
        assert secret not in str(requests[-1]) and str(Key.read(None).seed) not in str(requests[-1])
    assert requests[0] == requests[1] != requests[2]


def test_the_command_takes_files_behind_its_name(samples, monkeypatch, capsys):
    target = samples / "it's a=b.png"
    shutil.copy(samples / "out" / "0000.png", target)
    monkeypatch.setenv(VARIABLE, SECRET)
    monkeypatch.setattr(sys, "argv", ["gentok watermark"])
    main(["detect", "ckpt=mnist5k_ar", str(target), "keys=19", "watermark.length=256", "device=cpu", f"out={samples / 'x.json'}"])
    assert capsys.readouterr().out.startswith(f"{target}: p = ")


@pytest.mark.parametrize(
    ("words", "more", "line"),
    [
        ([], {"inputs": []}, "name images, sounds"),
        ([], {"inputs": ["nowhere.png"]}, "no file nowhere.png"),
        ([], {"inputs": ["key"]}, "key"),
        (["watermark=none"], {"inputs": ["out"]}, "name the kind"),
        (["levels=2"], {"inputs": ["out"]}, "levels=2: this tokenizer has 1 to 1"),
        (["command=embed"], {"inputs": ["out"]}, "got embed"),
        (["gap=2"], {"inputs": ["out"]}, "gap=2 is a setting of alignment=edit"),
        (["alignment=edit", "watermark=kgw"], {"inputs": ["out"]}, "numbers belong to places.*alignment=shift"),
        ([], {"inputs": ["out/samples.safetensors"]}, "no codes.safetensors"),
    ],
)
def test_mistakes_are_one_line(samples, words, more, line, monkeypatch):
    monkeypatch.chdir(samples)
    (samples / "out" / "samples.safetensors").write_text("{}")
    with pytest.raises((ValueError, OSError), match=line) as error:
        asked(samples, *words, **more)
    (samples / "out" / "samples.safetensors").unlink()
    assert "\n" not in str(error.value)
