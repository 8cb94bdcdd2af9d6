"""Linear probes: how much of an item's class can be read from its tokens by a linear map (Alain and Bengio,
arXiv 1610.01644).

    minimise over W, b:  mean_i  -log softmax(W x_i + b)[y_i]  +  weight / 2 * |W|^2

x are the vectors that the codebook looks up for an item's codes, not what the encoder gave before they were
quantized: what a model that reads the tokens has. They are standardised with the training items' mean and
deviation, so that neither unit spheres nor scales count. The weight is chosen on a fifth of the training
items; then the probe is fitted to all of them, by full-batch L-BFGS, which draws nothing.

Tokenizers of equal N and V are comparable by the same pooling: `mean` over positions asks for the image's
content wherever it lies, `flat` also knows where. A codebook with named parts is probed part by part, and as
a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["POOLINGS", "WEIGHTS", "linear_probe", "parts_of", "pooled", "quantized"]

POOLINGS = ("mean", "flat")
WEIGHTS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Regularisations that are tried."""
STEPS = 200
"""Of L-BFGS, at most."""


def parts_of(codebook: Any) -> dict[str, slice]:
    """Name -> channels of the vectors that `codebook` looks up: its parts, and "all"."""
    return {**codebook.parts, "all": slice(0, codebook.width)}


@torch.inference_mode()
def quantized(
    tokenizer: Any, media: Tensor, *, batch_size: int = 125, device: str = "cpu", advance: Callable[[int], None] | None = None
) -> Tensor:
    """The vectors of media after the codebook.

    Args:
        tokenizer: with a codebook, on `device`.
        media: float [n, C, ...].
        batch_size: items per forward pass.
        device: of the tokenizer.
        advance: called with the number of items after every batch.

    Returns:
        float32 [n, D, M] on the CPU.
    """
    made = []
    for part in media.split(batch_size):
        made.append(tokenizer.codebook.lookup(tokenizer.encode(part.to(device)).codes).float().cpu())
        if advance is not None:
            advance(len(part))
    return torch.cat(made)


def pooled(vectors: Tensor, pooling: str) -> Tensor:
    """Features [n, D] ("mean") or [n, D * M] ("flat") of vectors [n, D, M]. Raises ValueError on another
    pooling."""
    if pooling not in POOLINGS:
        raise ValueError(f"pooling={pooling!r}: choose one of {', '.join(POOLINGS)}")
    return vectors.mean(2) if pooling == "mean" else vectors.flatten(1)


def linear_probe(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, classes: int, weights: Sequence[float] = WEIGHTS
) -> dict[str, Any]:
    """Fits a probe and tests it.

    Args:
        train, test: features float [n, F] and [m, F].
        train_labels, test_labels: int64 [n] and [m].
        classes: how many there are.
        weights: regularisations that are tried on the last fifth of the training items.

    Returns:
        accuracy on the test items, train_accuracy, features (F), the chosen weight, and accuracy_by_weight on
        the training items held back.

    Raises:
        ValueError: there are fewer than five training items, or none to test on.
    """
    if len(train) < 5 or len(test) < 1:
        raise ValueError(f"a probe needs five training items and one to test on; there are {len(train)} and {len(test)}")
    with torch.inference_mode(False), torch.enable_grad():
        cut = len(train) - len(train) // 5
        tried, start = {}, None
        for weight in sorted(weights, reverse=True):  # from the smoothest on, each from the solution before
            start = _fit(train[:cut], train_labels[:cut], classes, weight, start)
            tried[weight] = _accuracy(start, train[cut:], train_labels[cut:])
        best = max(tried, key=lambda weight: (tried[weight], weight))
        model = _fit(train, train_labels, classes, best)
    return {
        "accuracy": _accuracy(model, test, test_labels),
        "train_accuracy": _accuracy(model, train, train_labels),
        "features": train.shape[1],
        "weight": best,
        "accuracy_by_weight": {f"{weight:g}": accuracy for weight, accuracy in tried.items()},
    }


Model = tuple[Tensor, Tensor, Tensor, Tensor]
"""W [F, classes] and b [classes] on standardised features; their mean and deviation [F]."""


def _standardised(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    return (x - mean) / deviation


def _fit(x: Tensor, labels: Tensor, classes: int, weight: float, start: Model | None = None) -> Model:
    mean, deviation = x.mean(0), x.std(0)
    deviation = torch.where(deviation > 1e-6, deviation, 1.0)  # channels that never move say nothing, and nothing is divided by their noise
    x = _standardised(x, mean, deviation)
    w = x.new_zeros(x.shape[1], classes) if start is None else start[0].clone()
    b = x.new_zeros(classes) if start is None else start[1].clone()
    w.requires_grad_(), b.requires_grad_()
    search = torch.optim.LBFGS(
        [w, b], max_iter=STEPS, tolerance_grad=1e-5, tolerance_change=1e-7, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        loss = F.cross_entropy(x @ w + b, labels) + weight / 2 * w.square().sum()
        loss.backward()
        return loss

    search.step(closure)
    return w.detach(), b.detach(), mean, deviation


def _accuracy(model: Model, x: Tensor, labels: Tensor) -> float:
    w, b, mean, deviation = model
    hits = [(_standardised(part, mean, deviation) @ w + b).argmax(1) == own for part, own in zip(x.split(5000), labels.split(5000))]
    return torch.cat(hits).double().mean().item()
