"""What is measured of generated items, each figure beside the same figure of real ones: a number alone says
little.

Features are rows [n, D] of one network; `samples` are compared with held-out items, and so are as many
training items, which is what a perfect model of the training set's distribution would reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gentok.metrics.image import kid, nearest_distances, precision, recall

__all__ = ["MINIMUM", "accuracy", "alike", "check_variety", "variety", "copying"]

MINIMUM = 500
"""Fewer items than this say nothing about a distribution: KID's error and the bias of recall are as large as
their values."""


def accuracy(predicted: Tensor, labels: Tensor, names: Sequence[str]) -> tuple[float, dict[str, float]]:
    """How many predictions are right.

    Args:
        predicted, labels: int64 [n].
        names: of the classes.

    Returns:
        The share of all rows, and that of every class that occurs.
    """
    right = (predicted == labels).double()
    per_class = {name: right[labels == c].mean().item() for c, name in enumerate(names) if bool((labels == c).any())}
    return right.mean().item(), per_class


def alike(labels: Tensor, classes: int, n: int) -> Tensor:
    """Training items whose classes are distributed as those of n samples that take the classes in turn.

    Args:
        labels: int64 [t].
        classes: how many there are.
        n: number of samples.

    Returns:
        int64, up to n rows, sorted: the first ones of each class.
    """
    rows = [(labels == c).nonzero()[: len(range(c, n, classes)), 0] for c in range(classes)]
    return torch.cat(rows).sort().values


def check_variety(samples: int, held_out: int, training: int, few: bool) -> None:
    """Raises ValueError where one of the numbers is below MINIMUM, unless `few`."""
    if min(samples, held_out, training) < MINIMUM and not few:
        raise ValueError(
            f"recall, precision and KID need {MINIMUM} samples, held-out and training items; there are {samples}, {held_out} and "
            f"{training} (few=true computes them all the same)"
        )


def variety(samples: Tensor, held_out: Tensor, training: Tensor, k: int = 3, few: bool = False) -> dict[str, float]:
    """Precision, recall and KID of samples against held-out items, and of as many training items against the
    same.

    Args:
        samples, held_out, training: features float [n, D], [m, D] and [t, D].
        k: neighbours of the manifolds.
        few: whether to compute it of fewer than MINIMUM rows too.

    Returns:
        precision, recall, kid, the same with training_ before them, and recall_share, the ratio of both
        recalls.

    Raises:
        ValueError: n, m or t is below MINIMUM, and not `few`.
    """
    training = training[: len(samples)]
    check_variety(len(samples), len(held_out), len(training), few)
    out: dict[str, float] = {}
    for name, features in (("", samples), ("training_", training)):
        out[f"{name}precision"] = float(precision(features, held_out, k))
        out[f"{name}recall"] = float(recall(features, held_out, k))
        out[f"{name}kid"] = float(kid(features, held_out, size=max(len(features), len(held_out)))[0])
    out["recall_share"] = out["recall"] / out["training_recall"] if out["training_recall"] else float("nan")
    return out


def copying(samples: Tensor, held_out: Tensor, training: Tensor) -> dict[str, Any]:
    """Mean Euclidean distance of pixels to the nearest training item, of samples and of held-out items.

    Args:
        samples, held_out, training: media float [n, ...], [m, ...] and [t, ...].

    Returns:
        nearest_training, held_out_nearest_training, and their ratio: well below 1, the model repeats its
        training set (or its samples are blurred).
    """
    distance, real = (nearest_distances(media, training).double().mean() for media in (samples, held_out))
    ratio = distance / real if real > 0 else torch.tensor(float("nan"))
    return {"nearest_training": distance.item(), "held_out_nearest_training": real.item(), "nearest_training_ratio": ratio.item()}
