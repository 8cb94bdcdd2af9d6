"""Constraints of `constrained`: what an item may be, as functions of its codes so far."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gentok.grammar import Grammar
from gentok.types import UNKNOWN

__all__ = ["follows", "whole"]


def follows(grammar: Grammar) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Ids of one level follow each other as a grammar says. It may be another one than the model's own, over the same ids."""

    def accept(codes: Tensor, level: Tensor, position: Tensor) -> Tensor:
        rows = torch.arange(len(codes), device=codes.device)
        state = grammar.states(codes[:, 0])[rows, position]
        return grammar.allowed(state)[rows, codes[rows, 0, position]]

    return accept


def whole(judge: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A finished item is what a judge accepts, such as a classifier: codes int64 [b, K, N] -> bool [b]. It is asked when the last cell is
    drawn, so several particles of an item find out together."""

    def accept(codes: Tensor, level: Tensor, position: Tensor) -> Tensor:
        good = torch.ones_like(position, dtype=torch.bool)
        done = (~(codes == UNKNOWN).flatten(1).any(1)).nonzero()[:, 0]
        if len(done):
            good[done] = judge(codes[done])
        return good

    return accept
