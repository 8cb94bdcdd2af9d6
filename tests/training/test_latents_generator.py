"""A generator of latents through the commands: trained from the cache and from media, sampled, completed, evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from resume_kit import CASES, last, run
from safetensors.torch import load_file

from gentok.bundle import load
from gentok.cli import compose
from gentok.data.image_files import save_image
from gentok.sample_files import sample_to_folder

pytest.importorskip("mlxtend")
WORDS = CASES["xar from latents"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("latents")
    run(root, "cached", WORDS, "task.views=1", "trainer.precision=32-true", "task.augment.shift=0")
    return root


def test_training_from_the_cache_is_training_from_media(root):
    run(root, "encoded", WORDS, "task.views=0", "trainer.precision=32-true", "task.augment.shift=0")
    ours, theirs = (last(root / name)["state_dict"] for name in ("cached", "encoded"))
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(value, theirs[name], atol=2e-4, rtol=1e-3) for name, value in ours.items())
    metrics = json.loads((root / "cached" / "metrics.json").read_text())
    assert metrics["main_metric"] == "held_out_loss" and 0.5 < metrics["metrics"]["held_out_loss"] < 5
    assert list((root / "cached" / "pictures").glob("samples_*.png"))


def test_samples_are_written_with_their_latents_and_complete_a_picture(root, tmp_path):
    ckpt = root / "cached" / "bundle"
    words = [f"ckpt={ckpt}", "n=2", "condition=3", "sampler=entities", "sampler.steps=2", f"out={tmp_path / 'out'}"]
    sample_to_folder(compose("sample", words))
    stored = load_file(tmp_path / "out" / "latents.safetensors")["latents"]
    assert stored.shape == (2, *(load(ckpt).spec.width, load(ckpt).spec.positions)) and stored.isfinite().all()
    report = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert report["calls_per_sample"] == 8 and report["sampler"]["name"] == "entities" and "latents.safetensors" in report["files"]
    known = tmp_path / "known.png"
    save_image(torch.rand(1, 32, 32) * 2 - 1, known)
    sample_to_folder(compose("sample", [*words, f"known={known}", "keep=top-half"]))
    assert json.loads((tmp_path / "out" / "samples.json").read_text())["calls_per_sample"] == 4
    half = stored.shape[2] // 2
    again = load_file(tmp_path / "out" / "latents.safetensors")["latents"]
    assert torch.equal(again[0, :, :half], again[1, :, :half]) and not torch.equal(again[0, :, half:], again[1, :, half:])
    with pytest.raises(ValueError, match="keep=top-half") as error:
        sample_to_folder(compose("sample", [*words, f"known={known}", "keep=left-half"]))
    assert "\n" not in str(error.value)
