"""The residual codebook as codecs train it (EMA, k-means start, revival, dropout of levels), against the defects of the released ones.

The defects (EnCodec, audiocraft): sums that start as means instead of means * counts shrink all rows within steps; rows that are restarted
behind the search are overwritten by the same step's S / N; later commitments never reach the encoder (test_codebook_residual.py).
"""

from __future__ import annotations

import pytest
import torch
from mutants import mutant

from gentok.codebooks.residual import ResidualCodebook
from gentok.codebooks.vq import VQ
from gentok.rng import RowRNG

LEVELS, ROWS, WIDTH, BATCH, FRAMES = 6, 64, 12, 16, 25
AUDIO = {"vocab_size": ROWS, "dim": WIDTH, "normalize": False, "update": "ema", "commitment": 1.0, "decay": 0.99}


def book(cls: type = VQ, residual: type = ResidualCodebook, kmeans_start: int = 10, revive_below: float = 0.1, **options) -> ResidualCodebook:
    return residual(cls(**AUDIO, kmeans_start=kmeans_start, revive_below=revive_below), LEVELS, **options).train()


def latents(step: int = 0) -> torch.Tensor:
    """float [B, D, N]: what an encoder makes, channels of unequal size around a common offset."""
    generator = torch.Generator().manual_seed(step)
    scale = torch.logspace(-1, 0.5, WIDTH)[:, None]
    return 3.0 + scale * torch.randn(BATCH, WIDTH, FRAMES, generator=generator)


def rng(step: int = 0) -> RowRNG:
    return RowRNG.of(0, torch.arange(BATCH), step)


# ------------------------------------------------------------------------------------------------------------- k-means start


def start_keeps_the_norms(cls: type) -> None:
    """The law: ten steps behind the start, the rows in use at every level are about as long as what they stand for."""
    b = book(cls, revive_below=0.0)
    for step in range(10):
        b(latents(step), rng=rng(step))
    residual = latents(0).transpose(1, 2).reshape(-1, WIDTH)
    with torch.no_grad():
        for level in range(LEVELS):
            rows = b.book(level).weight
            chosen = rows[torch.cdist(residual, rows).argmin(1)]
            ratio = float(chosen.norm(dim=1).mean() / residual.norm(dim=1).mean())
            # a quantizer's rows are shorter than its inputs by what it loses, at these sizes by less than a third
            assert 0.6 < ratio < 1.1, f"the rows of level {level} have {ratio:.2f} of the length of their vectors"
            residual = residual - chosen


def test_the_start_keeps_the_norms_at_every_level():
    start_keeps_the_norms(VQ)


def test_the_law_of_the_start_catches_sums_of_bare_means():
    wrong = mutant(VQ, ("self.sums[index] = self.weight[index] * self.usage[index][:, None]", "self.sums[index] = self.weight[index]"))
    with pytest.raises(AssertionError, match="of the length"):
        start_keeps_the_norms(wrong)


# ------------------------------------------------------------------------------------------------------------------ averages


def averages_are_the_papers(cls: type) -> None:
    """The law: N <- d N + (1 - d) n, S <- d S + (1 - d) sum x, e = S / N, in float64, at every level of what the level before left."""
    b = book(cls, kmeans_start=0, revive_below=0.0)
    b(latents(0))
    usage, sums, rows = ([getattr(b.book(k), name).double().clone() for k in range(LEVELS)] for name in ("usage", "sums", "weight"))
    for step in range(1, 6):
        residual = latents(step).transpose(1, 2).reshape(-1, WIDTH).double()
        codes = b(latents(step)).codes.transpose(1, 2).reshape(-1, LEVELS)
        for k in range(LEVELS):
            hit = torch.nn.functional.one_hot(codes[:, k], ROWS).double()
            usage[k] = 0.99 * usage[k] + 0.01 * hit.sum(0)
            sums[k] = 0.99 * sums[k] + 0.01 * hit.T @ residual
            residual = residual - rows[k][codes[:, k]]
            rows[k] = sums[k] / usage[k][:, None]
            torch.testing.assert_close(b.book(k).usage.double(), usage[k], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(b.book(k).weight.double(), rows[k], atol=1e-4, rtol=1e-4)


def test_averages_are_those_of_the_paper_at_every_level():
    averages_are_the_papers(VQ)


@pytest.mark.parametrize(
    "edit",
    [
        ("self.sums.lerp_(sums, 1 - self.decay)", "self.sums.lerp_(sums, self.decay)"),
        ("self.usage.lerp_(count, 1 - self.decay)\n        self.sums", "self.usage.add_(count)\n        self.sums"),
        ("self.sums / self.usage[:, None].clamp(min=TINY)", "self.sums / (self.usage[:, None] + 1)"),
    ],
    ids=["decay", "counts", "smoothing"],
)
def test_the_law_of_averages_catches(edit):
    with pytest.raises(AssertionError):
        averages_are_the_papers(mutant(VQ, edit))


# ------------------------------------------------------------------------------------------------------------------- revival


def revival_changes_the_next_lookup(cls: type) -> None:
    """The law: rows that no vector reaches, at every level, are chosen again in the step behind the one that revived them."""
    b = book(cls)
    for step in range(3):
        b(latents(step), rng=rng(step))
    for part in b.books:
        part._set(slice(ROWS // 2, None), 1e3 * torch.ones(ROWS // 2, WIDTH), 1e-3)
    b(latents(3), rng=rng(3))
    codes = b(latents(4), rng=rng(4)).codes
    for level, used in enumerate(codes.unbind(1)):
        again = int((used.unique() >= ROWS // 2).sum())
        assert again > ROWS // 8, f"level {level} chooses {again} of its {ROWS // 2} revived rows"


def test_revival_changes_the_next_lookup_at_every_level():
    revival_changes_the_next_lookup(VQ)


PUBLISHED = (
    ("            self._revive(x, present, rng)\n", ""),
    ("            self._track(", "            self._revive(x.detach(), present, rng)\n            self._track("),
    ("self._set(dead[: len(fresh)], fresh, uniform)", "self.weight[dead[: len(fresh)]] = fresh"),
)


@pytest.mark.parametrize(
    "edits", [PUBLISHED, (("self.sums[index] = self.weight[index] * self.usage[index][:, None]", "pass"),)], ids=["published", "sums"]
)
def test_the_law_of_revival_catches(edits):
    with pytest.raises(AssertionError, match="revived rows"):
        revival_changes_the_next_lookup(mutant(VQ, *edits))


# ------------------------------------------------------------------------------------------------------------------- dropout


def dropped_levels_learn_nothing(residual: type) -> None:
    """The law: a batch that keeps k levels moves the rows of these and of no other."""
    b = book(residual=residual)
    b(latents(0), rng=rng(0))
    before = [part.weight.clone() for part in b.books]
    n_levels = torch.full((BATCH,), 2)
    q = b(latents(1), n_levels=n_levels, rng=rng(1))
    moved = [not torch.allclose(part.weight, rows, atol=1e-5, rtol=1e-5) for part, rows in zip(b.books, before)]
    assert moved == [True] * 2 + [False] * (LEVELS - 2), moved
    assert int((q.codes >= 0).sum()) == 2 * BATCH * FRAMES


def test_dropped_levels_learn_nothing():
    dropped_levels_learn_nothing(ResidualCodebook)


def test_the_law_of_dropped_levels_catches_levels_that_learn_all_the_same():
    wrong = mutant(ResidualCodebook, ("n_levels=here, rng", "n_levels=None, rng"))
    with pytest.raises(AssertionError):
        dropped_levels_learn_nothing(wrong)
