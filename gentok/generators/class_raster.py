"""What the causal generators of a release share that model one code per cell of a raster given a class: checks, likelihood and cache."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from gentok.generators.causal import CausalTransformer
from gentok.nn.kv_cache import KVCache
from gentok.nn.token_transformer import full_precision, token_nll
from gentok.rng import RowRNG
from gentok.types import ClassSpec, Condition, ConditionSpec, Raster, Tokens, TokenSpec

__all__ = ["ClassRaster", "check_class", "check_raster"]


def check_class(name: str, condition_spec: ConditionSpec | None, instead: str) -> str:
    """The name of the one class that a generator takes. Raises ValueError on other conditions. instead: the generator that takes them."""
    parts = condition_spec.parts if condition_spec else ()
    if len(parts) != 1 or not isinstance(parts[0][1], ClassSpec):
        found = ", ".join(f"{part} ({spec.kind})" for part, spec in parts) or "none"
        raise ValueError(f"{name} takes one class as its condition; here it is {found}: use {instead}")
    return parts[0][0]


def check_raster(name: str, spec: TokenSpec) -> None:
    """Raises ValueError unless there is one code per cell of a raster."""
    if spec.levels != 1 or not isinstance(spec.grid, Raster):
        raise ValueError(f"{name} models one code per cell of a raster; these tokens are {spec.describe()}: use autoregressive")


class ClassRaster(CausalTransformer):
    """Base class; a subclass predicts, and feeds its cache."""

    moves_rows = True

    @abstractmethod
    def _predict(self, codes: Tensor, condition: Condition, rng: RowRNG | None) -> Tensor:
        """codes int64 [B, 1, N] -> logits [B, N, V] of every cell given those before it. rng: for dropout; None: none."""

    def forward(self, tokens: Tokens, condition: Condition | None = None) -> Tensor:
        """Teacher-forced logits, without a cache.

        Args:
            tokens: codes int64 [B, 1, N].
            condition: B rows; None: null.

        Returns:
            float [B, N, 1, V]: of every cell given the cells before, as `logits` gives them.
        """
        return self._predict(tokens.codes, condition or Condition(), None).unsqueeze(2)

    def _level_nats(self, codes: Tensor, condition: Condition, rng: RowRNG | None) -> list[tuple[Tensor, Tensor, Tensor]]:
        target, there = self._targets(codes, 0)
        nll = token_nll(full_precision(self._predict(codes, condition, rng)), target, there)
        return [(nll, nll, there)]

    def commit(self, cache: KVCache, at: Tensor, path: Tensor | None = None) -> None:
        """As Causal.commit."""
        if path is not None:
            cache.commit(at, path)

    def take(self, cache: KVCache, rows: Tensor) -> KVCache:
        """As Causal.take."""
        return cache.take(rows)

    def put(self, cache: KVCache, rows: Tensor, other: KVCache) -> None:
        """As Causal.put."""
        cache.put(rows, other)
