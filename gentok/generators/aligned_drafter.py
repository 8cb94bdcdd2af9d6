"""A drafter that is trained towards the model that it drafts for, on what that model says itself (DistillSpec: Zhou et al., arXiv
2310.08461).

Speculative decoding accepts a draft x of q with the chance min(1, p(x) / q(x)), so a step of one draft is accepted with

    beta = sum over ids of min(p, q) = 1 - TV(p, q)                       (Leviathan et al., arXiv 2211.17192)

p being the target's distribution and q the drafter's, both given the ids before. What is trained is the mean over cells of

    kl    KL(p || q) = sum over ids of p (log p - log q)      pulls hardest where q misses what p finds probable
    tv    TV(p, q)   = 1/2 sum over ids of |p - q|            what is lost of the acceptance; its gradient vanishes where q is far from p

where the ids before are the target's own: exact draws from it at temperature 1, given the conditions of the training items and as long as
these are (context=target); or those of the data (context=data). The target's items are drawn once, before training, into the cache of
tokens (gentok/training/token_source.py); a row whose condition is dropped reads an item of that condition, which is what an item without
condition is. The drafter is never sampled in training.

The network, sampling and likelihood are those of the autoregressive model; a bundle holds the drafter alone. For
`sampler=speculative sampler.ckpt=BUNDLE`, which draws the target's distribution whatever the drafter is.

Deviations: DistillSpec compares contexts of the data, of the target and of the drafter, and more divergences; contexts of the drafter
(on-policy) are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gentok.errors import ConfigError
from gentok.generators.autoregressive import Autoregressive
from gentok.generators.base import Causal, capabilities
from gentok.interfaces import LocalPath
from gentok.nn.frozen import Frozen
from gentok.nn.token_transformer import full_precision
from gentok.rng import RowRNG
from gentok.types import Condition, ConditionSpec, LossOutput, Tokens, TokenSpec, fingerprint

__all__ = ["AlignedDrafter", "divergences", "draw_items", "probabilities"]


class AlignedDrafter(Autoregressive, id="generator/aligned_drafter"):
    """The autoregressive model, trained towards another one's probabilities.

    Args:
        spec: the tokens.
        condition_spec: what they are conditioned on; None: nothing.
        target: the model that it drafts for: a bundle folder or a training checkpoint of a causal generator of the same tokens, order and
            condition. None: it is not to be trained.
        divergence: kl or tv.
        context: what the ids before are: the target's own, or the data's.
        options: those of Autoregressive, and of TransformerSettings.

    Raises:
        ValueError: the tokens have a grammar.
    """

    follows_grammar = False

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        *,
        target: LocalPath | None = None,
        divergence: Literal["kl", "tv"] = "kl",
        context: Literal["target", "data"] = "target",
        **options: Annotated[Any, Autoregressive],
    ):
        if spec.grammar:
            raise ValueError("these tokens have a grammar, which a draw of the target would have to follow: use generator=autoregressive")
        super().__init__(spec, condition_spec, **options)
        self.target, self.divergence, self.context = target, divergence, context
        self._frozen: Frozen | None = None

    def portable(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """As Generator.portable: without the target, which sampling does not need."""
        return {**super().portable(config), "target": None}

    def with_models(self, load: Callable[[str], Any]) -> None:
        """As Generator.with_models. Raises ConfigError or ValueError where the target is missing or does not fit."""
        if self.target is None:
            raise ConfigError("this drafter is trained towards the model that it drafts for: set generator.target to its bundle")
        model = load(self.target)
        if not isinstance(model, Causal):
            able = ", ".join(capabilities(model)) or "without capability"
            raise ValueError(f"generator.target={self.target} must be a Causal generator; this {type(model).__name__} is {able}")
        same = torch.equal(model.layout.step, self.layout.step) if model.layout.step.shape == self.layout.step.shape else False
        if not model.spec.same_codes(self.spec) or not same or model.ends != self.ends or model.condition_spec != self.condition_spec:
            raise ValueError(
                f"generator.target={self.target} has other tokens, another order ({model.layout.name}), other ends of items or another "
                f"condition than this drafter of {self.spec.describe()} in the {self.layout.name} order: they must be the same"
            )
        self._frozen = Frozen(model)  # type: ignore[arg-type]

    def loss(self, tokens: Tokens, condition: Condition, rng: RowRNG | None = None) -> LossOutput:
        """Mean divergence per present cell and end; outside of training, and where no target was loaded, the autoregressive model's loss.

        Args:
            tokens: codes int64 [B, K, N], the target's own or the data's.
            condition: B rows.
            rng: for condition dropout and dropout.

        Returns:
            LossOutput with the terms kl, tv, and acceptance: that of one draft, 1 - tv.
        """
        if not self.training or self._frozen is None or rng is None:
            return super().loss(tokens, condition, rng)
        target: Any = self._frozen.on(tokens.codes.device)
        condition = self.drop_condition(condition, rng)
        p = probabilities(target, tokens, condition)
        logits = full_precision(self._logits(self._hidden(tokens.codes, condition, rng), self._tables.on(p.device).level))
        there = torch.stack([self._targets(tokens.codes, k)[1] for k in range(self.spec.levels)], 1)
        there = self.layout.flatten(there.to(torch.int64)) > 0  # [B, S, G]
        found = {name: value[there].sum() / there.sum().clamp(min=1) for name, value in divergences(p, logits).items()}
        terms = {name: value.detach() for name, value in found.items()}
        return LossOutput(found[self.divergence], there.sum(), None, {**terms, "acceptance": 1 - terms["tv"]})

    @property
    def own_items(self) -> dict[str, Any] | None:
        """As Generator.own_items: the target, where the ids before are to be its own."""
        if self._frozen is None or self.context == "data":
            return None
        return {"drawn by": fingerprint(self._frozen.on(torch.device("cpu")).state_dict())}

    def draw_items(self, tokens: Tokens, condition: Condition, rng: RowRNG) -> Tokens:
        """As Generator.draw_items: the target's, as long as `tokens`."""
        assert self._frozen is not None
        return draw_items(self._frozen.on(tokens.codes.device), tokens, condition, rng)


def probabilities(model: Any, tokens: Tokens, condition: Condition) -> Tensor:
    """What a causal model says of items: float32 [B, S, G, ids] of every step of its layout given the steps before it."""
    with torch.no_grad():
        cache = model.init_cache(condition, tokens.batch, model.layout.steps)
        logits = model.logits(model.feed(tokens.codes), cache, torch.zeros(tokens.batch, dtype=torch.int64))
        return full_precision(logits).softmax(-1)


@torch.no_grad()
def draw_items(model: Any, like: Tokens, condition: Condition, rng: RowRNG) -> Tokens:
    """Items of a causal model, exact draws at temperature 1, with cells where those of other items are.

    Args:
        model: Causal.
        like: codes int64 [B, K, N]; of these, which cells are there is looked at, and nothing else.
        condition: B rows.
        rng: B rows.

    Returns:
        Tokens: the items, as long as `like`, whether or not the model can end them by itself.
    """
    layout, batch = model.layout, like.batch
    ids = layout.flatten(like.codes)
    cache = model.init_cache(condition, batch, layout.steps)
    fed = model.begin.to(ids).expand(batch, 1, -1)
    for step in range(layout.steps):
        at = torch.full((batch,), step, dtype=torch.int64)
        logits = full_precision(model.logits(fed, cache, at)[:, 0])  # [B, G, ids]
        model.commit(cache, at)
        there = (ids[:, step] >= 0)[..., None]
        choice = logits[..., : model.spec.vocab].double().masked_fill(~there, 0.0)
        new = (choice + rng.gumbel(layout.slots, model.spec.vocab)).argmax(-1)
        ids[:, step] = torch.where(there[..., 0], new, ids[:, step])
        fed = ids[:, step : step + 1]
    return Tokens(layout.unflatten(ids), like.spec, like.lengths)


def divergences(p: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """kl and tv of distributions p float [..., V] and those of logits [..., V]: float [...]."""
    log_q = logits.log_softmax(-1)
    possible = p > 0
    ratio = p.clamp(min=torch.finfo(p.dtype).tiny).log() - torch.where(possible, log_q, 0.0)
    return {"kl": torch.where(possible, p * ratio, 0.0).sum(-1), "tv": (p - log_q.exp()).abs().sum(-1) / 2}
