"""What the codebook tests share: every configured codebook, inputs, training steps, and mutants made by editing a class's source."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from mutants import mutant  # noqa: F401  (the tests of codebooks take it from here)
from torch import Tensor, nn

from gentok.build import build
from gentok.rng import RowRNG
from gentok.types import Raster

OUTSIDE = Path(os.environ.get("GENTOK_TEST_CONF", os.devnull))
"""A conf folder of components outside gentok, tested like its own; GENTOK_TEST_TRUST names their packages, comma-separated."""
TRUST = tuple(filter(None, os.environ.get("GENTOK_TEST_TRUST", "").split(",")))
FILES = {p.stem: p for conf in (Path(__file__).parents[2] / "conf", OUTSIDE) for p in sorted((conf / "codebook").glob("*.yaml"))}
CONFIGS = sorted(FILES)


def make(name: str, **changes: Any) -> Any:
    """The codebook of conf/codebook/NAME.yaml, with parameters from a fixed seed. A pyramid ends in the 4 x 4 of `inputs`."""
    torch.manual_seed(0)
    config = yaml.safe_load(FILES[name].read_text())
    if "sides" in config:
        config["sides"] = [1, 2, 3, 4]
    return build({**config, **changes}, trust=TRUST)


def positions(book: Any) -> int:
    """N for the 4 x 4 = 16 positions of `inputs`."""
    return 16 if in_time(book) else book.grid(4, 4).positions


def in_time(book: Any) -> bool:
    """Whether its levels have several frame rates: then it has no grid of cells."""
    return book.strides is not None


def cell_by_cell(book: Any) -> bool:
    """Whether a code at a position says something of this position alone."""
    return not in_time(book) and isinstance(book.grid(4, 4), Raster)


def exists(book: Any) -> Tensor:
    """bool [K, N]: the cells that have a code."""
    n = torch.arange(positions(book))
    return torch.stack([n % stride == 0 for stride in book.strides or (1,) * book.levels])


def has_nearest(book: Any) -> bool:
    """Whether the codebook says that a nearest code exists; one that says nothing has it."""
    return getattr(book, "has_nearest", True)


def inputs(book: Any, batch: int = 16, positions: int = 16, seed: int = 0) -> Tensor:
    """float [B, in_width, M], a few clusters and noise around them."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, book.in_width, generator=torch.Generator().manual_seed(99))
    which = torch.randint(40, (batch, positions), generator=generator)
    return (centres[which] + 0.5 * torch.randn(batch, positions, book.in_width, generator=generator)).transpose(1, 2)


def rng(batch: int = 16, step: int = 0) -> RowRNG:
    return RowRNG.of(0, torch.arange(batch), step)


def trained(name: str, steps: int = 6) -> Any:
    """The configured codebook after a few training steps (statistics and gradients), in eval."""
    book = make(name).train()
    optimizer = torch.optim.Adam(book.parameters(), 1e-2) if list(book.parameters()) else None
    for step in range(steps):
        z = inputs(book, seed=step)
        q = book(z, rng=rng(step=step))
        if optimizer:
            optimizer.zero_grad()
            ((q.vectors - z).square().mean() + sum(q.losses.values())).backward()
            optimizer.step()
    return book.eval()


def state(book: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, those that are not saved included."""
    return {name: tensor.detach().clone() for name, tensor in [*book.named_parameters(), *book.named_buffers()]}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def with_state(cls: type, book: Any) -> Any:
    """An instance of a mutant class with the state of `book`."""
    other = copy.deepcopy(book)
    other.__class__ = cls
    return other
