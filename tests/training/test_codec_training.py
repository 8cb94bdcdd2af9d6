"""A small codec through the tokenizer task: it learns tones, resumes bit for bit, trains alike on two processes, and generators take it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("soundfile")

from codec_kit import HALF, RATE, STEPS, configured, run, tones
from resume_kit import curves, different, killed_at, last, state

from gentok.bundle import load
from gentok.cli import compose
from gentok.describe import describe
from gentok.training.run import train

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("codec")
    tones(root / "tones")
    run(root, "whole")
    return root


@pytest.mark.slow
def test_a_codec_learns_tones_and_its_bundle_codes_sounds(root):
    """A hundred steps halve the error; the bundle says what its tokens are and gives every length back."""
    folder = run(root, "longer", "steps=120", "trainer.validate_every=120", "trainer.checkpoint_every=120")
    errors = [float(row["train/l1"]) for row in curves(folder) if "train/l1" in row]
    assert sum(errors[-5:]) < 0.6 * sum(errors[:5]), errors[::5]
    bundle = load(folder / "bundle")
    spec = bundle.spec
    assert spec.sample_rate == RATE and spec.grid.rate_hz == RATE / 40 and spec.vocab_sizes == (32,) * 3 and spec.nested_levels
    x = torch.sin(torch.arange(1003) / 10)[None, None] / 2
    tokens = bundle.tokenizer.encode(x)
    assert tokens.codes.shape == (1, 3, 26) and bundle.tokenizer.decode(tokens, samples=1003).shape == x.shape
    assert len(tokens.codes.unique()) > 4 and bundle.tokenizer.latency_samples == 40


def test_a_killed_and_resumed_codec_is_the_codec(root):
    with killed_at(HALF + 2):
        run(root, "killed")
    assert last(root / "killed")["global_step"] == HALF
    resumed = run(root, "killed", "resume=auto")
    assert last(root / "whole")["global_step"] == STEPS
    assert different(state(root / "whole"), state(resumed)) == []
    assert different(state(root / "whole"), state(run(root, "other", "seed=1"))), "the comparison would see nothing"


@pytest.mark.slow
def test_two_processes_train_the_codec_that_one_does(root):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    words = [sys.executable, str(HERE / "codec_kit.py"), str(root)]
    done = subprocess.run(words, env=environment, text=True, capture_output=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = last(run(root, "one", "trainer.precision=32-true")), last(root / "two")
    for key in ("state_dict", "current_model_state"):
        for name, value in one[key].items():
            assert torch.allclose(two[key][name].double(), value.double(), atol=2e-4, rtol=1e-3), (key, name)


@pytest.mark.parametrize("generator", ["autoregressive", "masked"])
def test_generators_model_the_codec_s_tokens(root, generator):
    """From cached tokens of unequal lengths, by class; samples decode to sound."""
    words = [f"tokenizer.ckpt={root / 'whole' / 'bundle'}", "generator.width=32", "generator.depth=1", "generator.heads=2"]
    folder = train(configured(root, generator, "task=generator", "tokenizer=from_bundle", f"generator={generator}", *words))
    assert json.loads((folder / "metrics.json").read_text())["metrics"]["held_out_bits_per_token"] < 5.1
    bundle = load(folder / "bundle")
    made = bundle.sample(n=2, condition=["low", "high"], seed=0)
    assert made.shape[:2] == (2, 1) and made.shape[2] >= 0.2 * RATE and made.isfinite().all()


def test_the_small_codec_of_the_configuration_has_the_size_that_it_names():
    report = describe(compose("config", ["tokenizer=codec", "codebook=residual", "codebook.levels=8", "codebook.width=64", "describe=true",
                                         "+tokenizer.media_shape=[1,16000]"]))  # fmt: skip
    assert abs(report["tokenizer"] / 1.5e6 - 1) < 0.06 and report["tokens"] == 8 * 50 and report["bits"] == 8 * 50 * 8
