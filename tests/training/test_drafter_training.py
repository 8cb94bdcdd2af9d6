"""A drafter is trained towards a bundle, and what it leaves needs that bundle no more; a model with exits drafts for itself."""

from pathlib import Path

import pytest
import torch

from gentok import load
from gentok.cli import compose
from gentok.errors import ConfigError
from gentok.samplers.speculative import Speculative
from gentok.training.run import train

ZOO = Path(__file__).resolve().parents[2] / "docs" / "zoo"
SHORT = ["steps=3", "budget=null", "batch_size=4", "limit_items=8", "task.views=1", "task.pictures=0", "print_config=false",
         "trainer.progress_bar=false", "trainer.validate_batches=1",
         "task.encode_batch=8", f"tokenizer.ckpt={ZOO / 'mnist5k_vq'}"]  # fmt: skip


def run(folder, *words):
    return train(compose("config", [*SHORT, *words, f"paths.run={folder / 'run'}", f"paths.cache={folder / 'cache'}"])) / "bundle"


@pytest.mark.slow
def test_a_drafter_is_trained_towards_a_bundle_and_drafts_for_it(tmp_path):
    target = ZOO / "mnist5k_ar"
    bundle = run(tmp_path, "experiment=mnist5k/drafter", f"generator.target={target}")
    small = load(bundle)
    assert small.generator.target is None and str(target) not in (bundle / "bundle.json").read_text()
    assert load(tmp_path / "run" / "checkpoints" / "last.ckpt").generator.target is None
    metrics = (tmp_path / "run" / "metrics.csv").read_text()
    assert "train/acceptance" in metrics and "train/kl" in metrics
    assert load(target).sample(n=2, condition=7, sampler=Speculative(ckpt=str(bundle), window=4)).shape == (2, 1, 32, 32)


@pytest.mark.slow
def test_a_trained_model_gets_exits_and_drafts_for_itself(tmp_path):
    bundle = run(tmp_path, "experiment=mnist5k/early_exits", f"init_from={ZOO / 'mnist5k_ar'}", "generator.exits=[2]")
    drawn = load(bundle).sample(n=2, condition=7, sampler=Speculative(exit=2, window=4))
    assert torch.isfinite(drawn).all() and load(bundle).generator.exits == (2,)


def test_a_drafter_that_draws_no_items_is_refused_in_a_line(tmp_path):
    with pytest.raises(ConfigError, match="set task.views, their number per item of the data, to 1 or more") as error:
        run(tmp_path, "experiment=mnist5k/drafter", f"generator.target={ZOO / 'mnist5k_ar'}", "task.views=0")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words, error, message",
    [
        (["experiment=mnist5k/drafter"], ConfigError, "set generator.target to its bundle"),
        (["experiment=mnist5k/drafter", f"generator.target={ZOO / 'mnist5k_vq'}"], ValueError, "mnist5k_vq holds a tokenizer alone"),
        (["experiment=mnist5k/drafter", f"generator.target={ZOO / 'mnist5k_masked'}"], ValueError, "must be a Causal generator"),
        (["experiment=mnist5k/distilled", f"generator.teacher.ckpt={ZOO / 'mnist5k_vq'}"], ConfigError, "holds a tokenizer alone"),
    ],
)
def test_a_missing_or_wrong_model_is_refused_before_anything_is_encoded(tmp_path, words, error, message):
    with pytest.raises(error, match=message) as found:
        run(tmp_path, *words)
    assert "\n" not in str(found.value) and not (tmp_path / "cache").exists()
