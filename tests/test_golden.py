"""Models that were stored once compute for ever, on every machine, what they computed then: bundles of format 1, checkpoints of runs."""

import json
import sys

import pytest
import torch
from golden_kit import FILE, GOLDEN, encoded, models, sampled
from recording import command
from safetensors.torch import load_file

import gentok

EXPECTED = json.loads(FILE.read_text())
MODELS = models()
GENERATORS = [name for name, fields in EXPECTED.items() if "sampled" in fields]
RUN = (
    "batch_size=4 limit_items=8 tokenizer.width=4 codebook.vocab_size=32 budget=null trainer=cpu trainer.precision=32-true logger=none "
    "trainer.progress_bar=false print_config=false task.pictures=2 paths.run=run"
)


def check(found: torch.Tensor, expected: list) -> None:
    """At least 99 of 100 are equal: the rest may be ties, which machines round differently."""
    expected = torch.tensor(expected)
    assert found.shape == expected.shape
    share = (found == expected).double().mean().item()
    assert share >= 0.99, f"{share:.1%} of the codes are those that were stored"


def test_nothing_that_was_stored_is_missing():
    assert set(EXPECTED) == set(MODELS)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_stored_model_encodes_and_decodes_as_it_did(name):
    bundle = gentok.load(MODELS[name])
    found, expected = encoded(bundle), EXPECTED[name]
    if bundle.spec.levels:
        check(found["codes"], expected["codes"])
    else:
        assert (found["codes"] - torch.tensor(expected["codes"])).abs().max() <= 1
    assert (found["decoded"] - torch.tensor(expected["decoded"])).abs().double().mean() <= 0.1


@pytest.mark.parametrize("name", GENERATORS)
def test_a_stored_model_samples_as_it_did(name):
    check(sampled(gentok.load(MODELS[name])), EXPECTED[name]["sampled"])


@pytest.mark.parametrize("name", ["mnist5k_ar", "mnist5k_ar.ckpt"])
def test_the_command_samples_from_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])  # which `command` sets
    command("sample.py", f"ckpt={GOLDEN / name} n=2 seed=0 condition=7 out=samples")
    assert load_file("samples/codes.safetensors")["codes"].shape == (2, 1, 64)


@pytest.mark.slow
def test_a_run_goes_on_from_a_stored_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])  # which `command` sets
    command("train.py", f"experiment=mnist5k/vq {RUN} steps=12 resume={GOLDEN / 'mnist5k_vq.ckpt'}")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["step"] == 12
