"""A run that breaks says where and keeps its last good state; codebooks that collapse are noticed; weights and frozen parts."""

from __future__ import annotations

import csv
import functools
import logging
from pathlib import Path

import pytest
import torch
from resume_kit import CASES, SMALL, TOKENIZER, configured, last, run
from torch import nn

from gentok.bundle import load
from gentok.generators.masked import MaskedTransformer
from gentok.metrics.codebook import CodebookHealth
from gentok.tokenizers.vqgan import VQGAN
from gentok.training.nan_check import Collapse, find_first
from gentok.training.run import train

pytest.importorskip("mlxtend")


def message(config: dict) -> str:
    with pytest.raises((ValueError, OSError)) as error:
        train(config)
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------------------------ numbers that are none


class Breaks:
    """A forward hook that spoils one number of the output, or of its gradient, from the module's training call number `at` on."""

    def __init__(self, at: int, backward: bool = False):
        self.at, self.backward, self.calls = at, backward, 0

    def __call__(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        self.calls += module.training
        if self.calls < self.at or not module.training:
            return output
        spoilt = torch.zeros_like(output)
        spoilt.view(-1)[0] = torch.nan
        if not self.backward:
            return output + spoilt
        if output.requires_grad:
            output.register_hook(lambda g: g + spoilt)
        return output


def broken(monkeypatch, cls: type, place: str, **how) -> None:
    """Every model of this class that is built for training from now on breaks at `place`."""
    build = cls.__init__

    def init(self, *args, **kwargs):
        build(self, *args, **kwargs)
        if kwargs.get("losses") is not None or cls is MaskedTransformer:
            self.get_submodule(place).register_forward_hook(Breaks(**how))

    monkeypatch.setattr(cls, "__init__", functools.wraps(build)(init))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_first_bad_module_is_named_and_the_last_good_state_kept(root, monkeypatch, accumulate):
    broken(monkeypatch, VQGAN, "decoder.stem", at=4 * accumulate)
    folder = f"nan{accumulate}"
    said = message(configured(root, folder, SMALL, f"trainer.accumulate={accumulate}", "trainer.log_every=100"))
    assert "step 3" in said and "the output of tokenizer.decoder.stem (Conv2d)" in said, said
    assert "last.ckpt" in said and "of step 3" in said
    state = last(root / folder)
    assert state["global_step"] == 3
    assert all(v.isfinite().all() for v in state["current_model_state"].values() if v.is_floating_point())


def test_a_gradient_that_breaks_is_named(root, monkeypatch):
    broken(monkeypatch, VQGAN, "encoder.stem", at=2, backward=True)
    said = message(configured(root, "gradient", SMALL))
    assert "step 1" in said and "the gradient of tokenizer.encoder.stem" in said and "no checkpoint yet" in said, said


def test_a_loss_that_is_none_by_itself_is_said_so(root, monkeypatch):
    monkeypatch.setattr("gentok.losses.reconstruction.F.mse_loss", lambda a, b: (a - b).square().mean() * torch.nan)
    said = message(configured(root, "loss", SMALL))
    assert "step 0" in said and "the output of tokenizer (VQGAN)" in said


def test_a_generator_that_breaks_is_found_too(root, monkeypatch):
    broken(monkeypatch, MaskedTransformer, "transformer.blocks.0", at=3)
    said = message(configured(root, "masked", CASES["masked from media"]))
    assert "step 2" in said and "the output of generator.transformer.blocks.0 (" in said, said


def test_weights_that_are_none_are_told_from_outputs_that_are():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    x = torch.ones(1, 2)
    assert find_first(net, lambda: net(x)) is None
    assert find_first(net, lambda: net(x * torch.nan)) == "the input of 0 (Linear)"
    nn.init.constant_(net[1].bias, torch.inf)
    assert find_first(net, lambda: net(x)) == "1 (Linear), whose bias is not finite itself"
    assert not net[0]._forward_hooks


def test_weights_that_are_none_are_not_saved(root, monkeypatch):
    """Should one ever pass the watch."""
    import gentok.training.module as module

    monkeypatch.setattr(module.GentokModule, "configure_gradient_clipping", lambda self, *a, **k: None)
    broken(monkeypatch, VQGAN, "encoder.stem", at=2, backward=True)
    said = message(configured(root, "unwatched", SMALL, "trainer.checkpoint_every=1"))
    assert "encoder.stem" in said and "step 2" in said and "of step 1" in said
    assert last(root / "unwatched")["global_step"] == 1


# --------------------------------------------------------------------------------------------------------- collapse


def health(codes: torch.Tensor, vocab: int = 1000):
    counter = CodebookHealth([vocab, vocab])
    counter.update(codes)
    return counter.compute()


def test_a_collapsed_level_is_reported_once_and_a_lively_one_never(caplog):
    torch.manual_seed(0)
    lively, dead = torch.randint(0, 1000, (50, 1, 100)), torch.randint(0, 20, (50, 1, 100))
    watch = Collapse(below=0.05, steps=100, settings=["vocab_size", "revive_below"])
    reported = []
    with caplog.at_level(logging.WARNING, "gentok.training"):
        for step in range(0, 400, 20):
            reported += [(step, level) for level in watch.update(health(torch.cat([lively, dead], 1)), step)]
    assert reported == [(100, 1)] and "level 1" in caplog.text
    assert "revive_below" in caplog.text and "kmeans_start" not in caplog.text  # which this codebook does not have
    watch.update(health(torch.cat([lively, lively], 1)), 400)
    assert watch.update(health(torch.cat([lively, dead], 1)), 420) == []
    copy = Collapse(below=0.05, steps=100)
    copy.load_state_dict(watch.state_dict())
    assert copy.update(health(torch.cat([lively, dead], 1)), 520) == [1]


def test_few_codes_of_a_large_vocabulary_are_no_collapse():
    watch = Collapse(below=0.05, steps=0)
    assert watch.update(health(torch.randint(0, 16384, (4, 2, 16)), 16384), 0) == []


def test_a_collapsing_run_warns_and_logs_what_waits(root, caplog):
    words = [*TOKENIZER, "codebook=vq", "codebook.vocab_size=512", "optimizer.lr=0", "schedule.warmup=1", "callbacks.collapse_steps=2"]
    with caplog.at_level(logging.WARNING, "gentok.training"):
        folder = run(root, "collapse", words, "callbacks.collapse_below=2")
    assert "the codebook collapses: level 0" in caplog.text and "codebook.kmeans_start" in caplog.text
    with open(folder / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("data_wait")]
    assert rows and all(0 <= float(row["data_wait"]) <= 1 for row in rows)


# ----------------------------------------------------------------------------------------------- weights to begin with


def moved(folder: Path, start: Path, part: str = "tokenizer") -> set[str]:
    """The top-level parts whose raw weights or buffers differ from those of the bundle `start`."""
    before = getattr(load(start), part).state_dict()
    after = getattr(load(folder / "checkpoints" / "last.ckpt", ema=False), part).state_dict()
    return {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}


def test_frozen_parts_do_not_move_not_even_their_statistics(root):
    start = root / "tokenizer" / "bundle"
    words = [*SMALL, f"init_from={start}"]
    assert moved(run(root, "thawed", words), start) == {"encoder", "codebook", "decoder"}
    assert moved(run(root, "frozen", words, "freeze=[encoder,codebook]"), start) == {"decoder"}
    assert moved(run(root, "deep", words, "freeze=[encoder,codebook,decoder.stem]"), start) == {"decoder"}
    ours, theirs = load(root / "frozen" / "bundle"), load(start)
    assert ours.spec.encode_fingerprint == theirs.spec.encode_fingerprint, "frozen codes are the same codes"


def test_a_run_begins_at_the_weights_that_it_is_given(root):
    start = root / "tokenizer"
    for path in (start / "bundle", start / "checkpoints" / "last.ckpt"):
        folder = run(root, "begun", SMALL, f"init_from={path}", "optimizer.lr=0", "codebook.decay=0.999999", "steps=1", "overwrite=true")
        assert moved(folder, start / "bundle") <= {"codebook"}
    words = [*CASES["masked from media"], "steps=1"]
    first = run(root, "generator", words)
    second = run(root, "generator_again", words, f"init_from={first / 'bundle'}", "optimizer.lr=0")
    assert moved(second, first / "bundle", "generator") == set()


@pytest.mark.parametrize(
    "words, answer",
    [
        (["freeze=[encoderr]"], "did you mean 'encoder'"),
        (["freeze=encoder"], "freeze=[encoder]"),
        (["freeze=[encoder,codebook,decoder]"], "nothing of the tokenizer to train"),
        (
            ["init_from={tokenizer}", "tokenizer.width=16"],
            "does not fit this tokenizer: encoder.stem.weight is (8, 4, 3, 3) there and (16,",
        ),
        (["init_from={tokenizer}s"], "no bundle or checkpoint"),
        (["codebook=library", "freeze=[codebook]"], "freeze it too"),
    ],
)
def test_what_cannot_be_frozen_or_taken_is_answered_in_a_line(root, words, answer):
    base = TOKENIZER if "codebook=library" in words else SMALL
    said = message(configured(root, "refused", base, *[w.format(tokenizer=root / "tokenizer" / "bundle") for w in words]))
    assert answer in said, said


def test_a_tokenizer_has_no_generator_to_start_from(root):
    said = message(configured(root, "refused", CASES["masked from media"], f"init_from={root / 'tokenizer' / 'bundle'}"))
    assert "no generator" in said
