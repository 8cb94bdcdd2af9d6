"""Training from Python: a run of the command line, on data that the program may already have."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gentok.cli import compose
from gentok.interfaces import MediaData
from gentok.value_checks import check_values

__all__ = ["train"]


def train(*overrides: str, data: MediaData | Iterable[Any] | tuple[Iterable[Any], Iterable[Any]] | None = None) -> Path:
    """Trains a tokenizer or a generator, as `python train.py OVERRIDES` does.

    Args:
        overrides: words of the command line, such as "experiment=mnist5k/vq", "steps=500".
        data: instead of what the overrides choose: a torch data set of (image, label), or a pair of them (to train on, held out);
            or an `OwnData`, which also takes names of classes and sounds (gentok/data/own_dataset.py).

    Returns:
        The run's folder; its `bundle` is what `gentok.load` takes.

    Raises:
        ValueError, OSError: with one line.
    """
    from gentok.data.own_dataset import OwnData
    from gentok.training.run import train as run

    config = compose("config", list(overrides))
    check_values(config)
    if data is not None and not isinstance(data, MediaData):
        pair = isinstance(data, tuple) and len(data) == 2
        data = OwnData(*data) if pair else OwnData(data)  # type: ignore[misc, arg-type]
    return run(config, data)
