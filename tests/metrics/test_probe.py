"""Linear probes: exact where the answer is known, blind where there is nothing to see, and the optimum of the
objective that they state."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gentok.codebooks.dual import DualCodebook
from gentok.codebooks.fsq import FSQ
from gentok.metrics import probe
from gentok.metrics.probe import linear_probe, parts_of, pooled, quantized


def separable(n: int, seed: int = 0, rng: float = 0.5):
    """float [n, 6], labels int64 [n] of three classes: the class moves two channels of very different
    scales."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n,), generator=generator)
    x = rng * torch.randn(n, 6, generator=generator)
    x[:, 0] += labels
    x[:, 1] -= (labels == 1).float()
    return x * torch.tensor([1e3, 1e-2, 1.0, 1.0, 50.0, 1.0]) + 7, labels


def test_classes_that_a_linear_map_tells_apart_are_told_apart_whatever_the_scales():
    x, y = separable(400, rng=0.05)
    found = linear_probe(x[:300], y[:300], x[300:], y[300:], 3)
    assert found["accuracy"] == 1.0 and found["features"] == 6
    moved = x * torch.tensor([1e-6, 3.0, 9.0, 1.0, 1.0, 1e4]) - 3
    assert linear_probe(moved[:300], y[:300], moved[300:], y[300:], 3)["accuracy"] == 1.0


def test_labels_that_the_features_do_not_know_are_guessed_at_chance():
    x, _ = separable(1000)
    y = torch.randint(3, (1000,), generator=torch.Generator().manual_seed(5))
    found = linear_probe(x[:500], y[:500], x[500:], y[500:], 3)
    assert abs(found["accuracy"] - 1 / 3) < 0.09  # four standard deviations of 500 guesses


def test_the_probe_is_the_optimum_of_its_objective():
    x, y = separable(300)
    w, b, mean, deviation = probe._fit(x, y, 3, 1e-2)
    w.requires_grad_(), b.requires_grad_()
    z = (x - mean) / deviation
    (F.cross_entropy(z @ w + b, y) + 1e-2 / 2 * w.square().sum()).backward()
    assert w.grad.abs().max() < 1e-4 and b.grad.abs().max() < 1e-4


def test_the_weight_is_chosen_without_the_test_items():
    x, y = separable(300)
    a = linear_probe(x[:200], y[:200], x[200:], y[200:], 3)
    b = linear_probe(x[:200], y[:200], x[200:], (y[200:] + 1) % 3, 3)
    assert a["weight"] == b["weight"] and a["accuracy_by_weight"] == b["accuracy_by_weight"]


def test_many_features_and_few_items_choose_a_strong_regularisation():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(100, 400, generator=generator), torch.arange(100) % 2
    x[:, :40] += 0.4 * (2 * y[:, None] - 1)
    assert linear_probe(x[:80], y[:80], x[80:], y[80:], 2)["weight"] >= 1e-2


def test_a_constant_feature_is_no_division_by_zero():
    x, y = separable(100, rng=0.05)
    x = torch.cat([x, torch.full((100, 1), 3.0)], 1)
    assert linear_probe(x[:80], y[:80], x[80:], y[80:], 3)["accuracy"] == 1.0


class Cells(nn.Module):
    """Each pixel is a cell; its channels are quantized as they are."""

    def __init__(self, codebook):
        super().__init__()
        self.codebook = codebook

    def encode(self, media):
        from types import SimpleNamespace

        return SimpleNamespace(codes=self.codebook(media.flatten(2)).codes)


def test_what_is_probed_are_the_rows_that_the_codes_name():
    book = DualCodebook(16, semantic=2, pixel=1).eval()
    media = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    vectors = quantized(Cells(book), media, batch_size=4)
    assert torch.equal(vectors, book.lookup(book(media.flatten(2)).codes))
    assert parts_of(book) == {"semantic": slice(0, 2), "pixel": slice(2, 3), "all": slice(0, 3)}
    assert list(parts_of(FSQ([3, 3]))) == ["all"]
    assert torch.equal(pooled(vectors, "mean"), vectors.mean(2)) and pooled(vectors, "flat").shape == (6, 12)
    with pytest.raises(ValueError, match="choose one of mean, flat"):
        pooled(vectors, "max")


def test_too_few_items_are_refused():
    x, y = separable(4)
    with pytest.raises(ValueError, match="five training items"):
        linear_probe(x, y, x, y, 3)
