"""Nats of cells: of tokens with a grammar over what is possible; of rows of unequal length without what is absent."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gentok.grammar import Grammar
from gentok.nn.token_transformer import full_precision, token_nll, uniform_nll
from gentok.precision import values_known

__all__ = ["cell_nats"]


def cell_nats(
    scores: Callable[[Tensor], Tensor],
    hidden: Tensor,
    target: Tensor,
    there: Tensor,
    *,
    ragged: bool,
    smoothing: float = 0.0,
    grammar: Grammar | None = None,
    states: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of cells.

    Args:
        scores: the head, float [..., D] -> logits [..., V].
        hidden: float [B, N, D], from which cells are predicted.
        target: int64 [B, N]; anything where nothing is.
        there: bool [B, N], where something is to be predicted.
        ragged: whether rows are of unequal length: then the head is applied to what is there alone.
        smoothing: of labels.
        grammar: what may follow, with the state of each cell.
        states: int64 [B, N]; None: anything may follow.

    Returns:
        float [B, N], 0 where nothing is: nats, and the same with label smoothing.
    """
    cells = there if ragged and values_known(there) else None
    if cells is not None:
        hidden, target, there = hidden[cells][None], target[cells][None], there[cells][None]
        states = None if states is None else states[cells][None]
    logits, allowed = full_precision(scores(hidden)), None
    if grammar is not None and states is not None:
        allowed = grammar.allowed(states)
        logits = logits.masked_fill(~allowed, float("-inf"))
    nll = smoothed = token_nll(logits, target, there)
    if smoothing:
        smoothed = torch.lerp(nll, uniform_nll(logits, nll, target, there, allowed), smoothing)
    if cells is None:
        return nll, smoothed
    empty = nll.new_zeros(cells.shape)
    return empty.masked_scatter(cells, nll), empty.masked_scatter(cells, smoothed)
