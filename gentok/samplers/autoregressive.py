"""Plain autoregressive sampling: every unknown step of a causal generator, one after the other, from the model's own law.

Exact: the ids are drawn from prod_s p(step s | the steps before), filtered and guided as asked, for any layout and number of
levels, with known cells, and with items of different lengths in one batch. Drawing the slots of a step together is exact only where
the model says so (`exact_slots`).

In call r every row draws its own r-th unknown step. What lies between a row's draws (its known prefix, cells beyond its length,
levels that it does not have) is fed in that same call, so that rows with prefixes of any length start together, and a batch needs
as many calls as its row with the most draws. A row's ids depend on its own noise alone: its r-th call consumes the next numbers of
its own stream, whatever the other rows do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.generators.base import Causal
from gentok.samplers.base import Calls, Choice, SampleOutput, Sampler, check_known, draw, initial
from gentok.tokens import ABSENT, UNKNOWN, Condition, Noise, Tokens

__all__ = ["AutoregressiveSampler"]


@dataclass(frozen=True)
class AutoregressiveSampler(Sampler):
    """forced: run where the result is not the model's law, instead of stopping; the output's stats then hold forced = True. That is
    where known cells lie behind a hole of the layout (they are ignored when that hole is drawn), or slots of a step are not
    independent (they are drawn together)."""

    requires = Causal
    exact = True

    forced: bool = False

    @torch.no_grad()
    def __call__(
        self,
        model: Causal,
        condition: Condition,
        *,
        noise: Noise,
        known: Tokens | None = None,
        lengths: Tensor | None = None,
        draft: Tokens | None = None,
        choose: Choice | None = None,
        on_step: Callable[[Tokens, int, int], None] | None = None,
    ) -> SampleOutput:
        self.check_model(model)
        self.no_draft(draft)
        layout, choose = model.layout, choose or draw
        tokens = initial(model.spec, noise, known, lengths)
        ids = layout.flatten(tokens.codes)  # [B, S, G]
        holes = ids == UNKNOWN
        forced = check_known(tokens, layout, self.forced) | self._check_slots(model, holes)

        plan = _Plan(holes)
        fed = torch.cat([model.begin.to(ids).expand(len(ids), 1, layout.slots), ids[:, :-1]], 1)
        fed = fed.masked_fill(fed == UNKNOWN, ABSENT)
        rows = torch.arange(len(ids), device=ids.device)
        cache = model.start(condition, len(ids), plan.capacity) if plan.rounds else None
        calls = Calls()
        for r in range(plan.rounds):
            at, last, width = plan.at[:, r], plan.last[:, r], plan.width[r]
            window = (at[:, None] + torch.arange(width, device=ids.device)).clamp(max=layout.steps - 1)
            logits = model.logits(fed[rows[:, None], window], cache, at)[rows, last - at]  # [B, G, V]
            model.commit(cache, at)
            calls.add(model, len(ids) * width)

            here = holes[rows, last]  # [B, G]
            drawn = self._draw(logits, here, plan.active[r], noise, choose)
            here = here & (plan.counts > r)[:, None]
            ids[rows, last] = torch.where(here, drawn, ids[rows, last])
            after = (last + 1).clamp(max=layout.steps - 1)
            fed[rows, after] = torch.where(here & (last + 1 < layout.steps)[:, None], drawn, fed[rows, after])
            if on_step is not None:
                on_step(Tokens(layout.unflatten(ids), tokens.spec, tokens.lengths), r + 1, plan.rounds)

        out = Tokens(layout.unflatten(ids), tokens.spec, tokens.lengths).validate()
        return SampleOutput(out, plan.counts, dict(calls), stats={"forced": True} if forced else {})

    def _draw(self, logits: Tensor, here: Tensor, active: Tensor | None, noise: Noise, choose: Choice) -> Tensor:
        """ids int64 [B, G] where `here`; rows that are not active consume no noise. active: None for all rows."""
        logits = logits.masked_fill(~here[..., None], 0.0)  # a slot without a hole may hold anything, -inf everywhere too
        if active is None:
            return choose(self.filter(logits), noise)
        ids = torch.full_like(here, ABSENT, dtype=torch.int64)
        ids[active] = choose(self.filter(logits[active]), noise.rows(active))
        return ids

    def _check_slots(self, model: Causal, holes: Tensor) -> bool:
        """Whether slots are drawn together that the model does not hold independent. Raises ValueError then, unless forced."""
        if model.exact_slots or not bool((holes.sum(2) > 1).any()):
            return False
        if not self.forced:
            raise ValueError(
                f"the {model.layout.name} order emits up to {model.layout.slots} cells in a step, and this {type(model).__name__} holds "
                "them for dependent: train it in an order of one cell per step (position_major, level_major), or set forced=true to "
                "draw them as if independent"
            )
        return True


class _Plan:
    """Which steps each row feeds and draws in each call, worked out before the first from holes bool [B, S, G].

    rounds: R, the number of calls. counts int64 [B]: calls that a row needs. at, last int64 [B, R]: the first fed step of a row in a
    call, and the step that it draws there (once a row is done: any, its outputs are not used). width: R numbers, the fed steps of a call.
    active: R tensors of row indices, None where all rows draw. capacity: fed steps that the cache must hold, never more than the layout's.
    """

    def __init__(self, holes: Tensor):
        draws = holes.any(2)
        batch, steps = draws.shape
        self.counts = draws.sum(1)
        self.rounds = int(self.counts.max()) if batch else 0
        number = torch.arange(steps, device=holes.device).expand(batch, steps)
        last = torch.where(draws, number, torch.full_like(number, steps)).sort(1).values[:, : self.rounds]
        at = torch.cat([torch.zeros_like(last[:, :1]), last[:, :-1] + 1], 1)
        busy = torch.arange(self.rounds, device=holes.device) < self.counts[:, None]
        at, self.last = at * busy, last * busy
        width = (self.last - at + 1).amax(0) if self.rounds else self.counts[:0]
        self.at = torch.minimum(at, steps - width)  # a row with less to feed than others near the end feeds some steps once more
        self.width = width.tolist()
        self.capacity = int((self.at + width).max()) if self.rounds else 0
        everyone = busy.all(0).tolist()
        self.active = [None if everyone[r] else busy[:, r].nonzero()[:, 0] for r in range(self.rounds)]
