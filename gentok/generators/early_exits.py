"""Early exits: the first blocks of a causal model are smaller models of the same tokens, which can draft for it (sorted,
nested drafts: Kavehzadeh et al., S2D, arXiv 2407.01955; sorted fine-tuning: Kavehzadeh et al., arXiv 2309.08968; a model
that drafts for itself by an early exit: Elhoushi et al., LayerSkip, arXiv 2404.16710).

    q_n(code) = softmax(head(norm(state after n blocks)))[code]         n: an exit; with all blocks it is the model, p
    L         = (L_p + w sum over exits of L_q_n) / (1 + w E)           L_q: nats per cell; E exits; w = 1: sorted fine-tuning

All exits share the last norm and the head: an exit adds no weights, and one pass gives the states of all of them. Sampling
and likelihood are those of the autoregressive model; `sampler=speculative draft=exit exit=n` drafts with the first n blocks.
A trained autoregressive model has the same weights: `init_from=BUNDLE` gives it exits in a short training.

Deviations: S2D nests its drafts in a model of their own, for targets of several sizes, and chooses the exit by its
confidence, token by token; here the whole is the target, as in LayerSkip, and one exit is chosen for all tokens. LayerSkip
weighs later exits more, adds them in turn, and drops blocks in training. A draft's keys and values are computed again when the whole
model verifies.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor

from gentok.generators.autoregressive import Autoregressive
from gentok.generators.causal import CausalTransformer
from gentok.rng import RowRNG
from gentok.settings import NonNegativeFloat, PositiveInts
from gentok.types import Condition, ConditionSpec, TokenSpec

__all__ = ["EarlyExits", "first_blocks"]

_Model = TypeVar("_Model", bound=CausalTransformer)


class EarlyExits(Autoregressive, id="generator/early_exits"):
    """The autoregressive model, trained to predict after some of its blocks too.

    Args:
        spec: the tokens.
        condition_spec: what they are conditioned on; None: nothing.
        exits: after how many blocks, each fewer than there are.
        exit_weight: w, of an exit's loss beside that of the whole model.
        options: those of Autoregressive, and of TransformerSettings.

    Raises:
        ValueError: an exit is named twice, or is not inside the model.
    """

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        *,
        exits: PositiveInts = (2,),
        exit_weight: NonNegativeFloat = 1.0,
        **options: Annotated[Any, Autoregressive],
    ):
        super().__init__(spec, condition_spec, **options)
        self.exits, self.exit_weight = tuple(exits), exit_weight
        if len(set(self.exits)) < len(self.exits) or max(self.exits) >= self.trunk.depth:
            raise ValueError(
                f"exits={list(exits)}: numbers of blocks, each once and below depth={self.trunk.depth}, after which the whole predicts"
            )

    def _level_nats(self, codes: Tensor, condition: Condition, rng: RowRNG | None) -> list[tuple[Tensor, Tensor, Tensor]]:
        if not self.training or not self.exit_weight:
            return super()._level_nats(codes, condition, rng)
        taps: dict[int, list[Tensor]] = {depth - 1: [] for depth in self.exits}
        states = [self._hidden(codes, condition, rng, taps)]
        states += [self.trunk.norm(x).to(states[0].dtype) for (x,) in taps.values()]
        whole, *early = (self._nats(codes, self._by_level(state), rng) for state in states)
        share = self.exit_weight / (1 + self.exit_weight * len(self.exits))
        out = []
        for k, (nll, loss, there) in enumerate(whole):
            of_exits = torch.stack([nats[k][1] for nats in early]).sum(0)
            out.append((nll, (1 - share * len(self.exits)) * loss + share * of_exits, there))
        return out

    def at_exit(self, depth: int) -> Autoregressive:
        """As Capability.at_exit."""
        if depth not in self.exits:
            super().at_exit(depth)
        return first_blocks(self, depth)


def first_blocks(model: _Model, depth: int) -> _Model:
    """The first blocks of a causal transformer as a model, with the same norm, head and weights; also of one that was trained without
    exits, where it predicts badly.

    Args:
        model: a CausalTransformer.
        depth: how many blocks, fewer than it has.

    Raises:
        ValueError: it has not as many.
    """
    trunk: Any = model.trunk
    if not 0 < depth < trunk.depth:
        raise ValueError(f"depth={depth}: an exit of this model lies after 1 .. {trunk.depth - 1} of its {trunk.depth} blocks")
    early, first = (copy.copy(module) for module in (model, trunk))
    first._modules = {**trunk._modules, "blocks": trunk.blocks[:depth]}
    first.depth = depth
    early._modules = {**model._modules, type(model).TRUNK: first}
    return early
