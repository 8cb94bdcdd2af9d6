"""Plain autoregressive sampling: every unknown step of a causal generator, one after the other, from the model's own law.

Exact: the ids are drawn from prod_s p(step s | the steps before), filtered and guided as asked, for any layout and number of
levels, with known cells, and with items of different lengths in one batch. Drawing the slots of a step together is exact only where
the model says so (`exact_slots`).

In call r every row draws its own r-th unknown step. What lies between a row's draws (its known prefix, cells beyond its length,
levels that it does not have) is fed in that same call, so that rows with prefixes of any length start together, and a batch needs
as many calls as its row with the most draws. A row's ids depend on its own noise alone: its r-th call consumes the next numbers of
its own stream, whatever the other rows do.

Where the model ends items by itself, a row that draws the end loses the cells from that position on, and the rest is planned anew.
`lengths` is then the maximum, and the output's lengths are those that were drawn. A row does not end before a cell that is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.generators.base import Causal
from gentok.layouts import Layout
from gentok.samplers.base import Choice, NetworkCalls, SampleOutput, Sampler, check_known, draw, initial
from gentok.types import ABSENT, UNKNOWN, Condition, RowRNG, Tokens

__all__ = ["AutoregressiveSampler"]


@dataclass(frozen=True)
class AutoregressiveSampler(Sampler, id="sampler/autoregressive"):
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
        rng: RowRNG,
        known: Tokens | None = None,
        lengths: Tensor | None = None,
        draft: Tokens | None = None,
        choose: Choice | None = None,
        on_step: Callable[[Tokens, int, int], None] | None = None,
    ) -> SampleOutput:
        self.check_model(model)
        self.no_draft(draft)
        layout, choose = model.layout, choose or draw
        tokens = initial(model.spec, rng, known, lengths)
        ids = layout.flatten(tokens.codes)  # [B, S, G]
        masked_cells = ids == UNKNOWN
        forced = check_known(tokens, layout, self.forced) | self._check_slots(model, masked_cells)

        fed = torch.cat([model.begin.to(ids).expand(len(ids), 1, layout.slots), ids[:, :-1]], 1)
        fed = fed.masked_fill(fed == UNKNOWN, ABSENT)
        rows = torch.arange(len(ids), device=ids.device)
        done, used, lengths = torch.zeros_like(rows), torch.zeros_like(rows), tokens.lengths
        ending = _Ending(tokens, layout) if model.ends else None
        plan = _Plan(masked_cells, done)
        cache = model.init_cache(condition, len(ids), layout.steps if model.ends else plan.capacity) if plan.rounds else None
        calls, steps, r = NetworkCalls(), plan.rounds, 0
        while r < plan.rounds:
            at, last, width = plan.at[:, r], plan.last[:, r], plan.width[r]
            window = (at[:, None] + torch.arange(width, device=ids.device)).clamp(max=layout.steps - 1)
            logits = model.logits(fed[rows[:, None], window], cache, at)[rows, last - at]  # [B, G, V]
            model.commit(cache, at)
            calls.add(model, len(ids) * width)

            busy = plan.counts > r
            here = masked_cells[rows, last] & busy[:, None]  # [B, G]
            if ending is not None:
                logits = ending.allow(logits, last)
            drawn = self._draw(logits, here, plan.active[r], rng, choose)
            ids[rows, last] = torch.where(here, drawn, ids[rows, last])
            after = (last + 1).clamp(max=layout.steps - 1)
            fed[rows, after] = torch.where(here & (last + 1 < layout.steps)[:, None], drawn, fed[rows, after])
            done, used, r = torch.where(busy, last + 1, done), used + busy, r + 1
            if ending is not None:
                stopped, beyond = ending.find(here, drawn, last)
                if bool(stopped.any()):
                    ids, fed[:, 1:] = ids.masked_fill(beyond, ABSENT), fed[:, 1:].masked_fill(beyond[:, :-1], ABSENT)
                    number = torch.arange(layout.steps, device=ids.device)
                    masked_cells = masked_cells & ~beyond & (number >= done[:, None])[..., None]
                    plan, r = _Plan(masked_cells, done), 0
            if on_step is not None:
                on_step(Tokens(layout.unflatten(ids), tokens.spec, tokens.lengths), int(used.max()), steps)

        if ending is not None:
            lengths = ending.lengths
        out = Tokens(layout.unflatten(ids), tokens.spec, lengths).validate()
        return SampleOutput(out, used, dict(calls), stats={"forced": True} if forced else {})

    def _draw(self, logits: Tensor, here: Tensor, active: Tensor | None, rng: RowRNG, choose: Choice) -> Tensor:
        """ids int64 [B, G] where `here`; rows that are not active consume no noise. active: None for all rows."""
        logits = logits.masked_fill(~here[..., None], 0.0)  # a slot without a hole may hold anything, -inf everywhere too
        if active is None:
            return choose(self.filter(logits), rng)
        ids = torch.full_like(here, ABSENT, dtype=torch.int64)
        ids[active] = choose(self.filter(logits[active]), rng.rows(active))
        return ids

    def _check_slots(self, model: Causal, masked_cells: Tensor) -> bool:
        """Whether slots are drawn together that the model does not hold independent. Raises ValueError then, unless forced."""
        if model.exact_slots or not bool((masked_cells.sum(2) > 1).any()):
            return False
        if not self.forced:
            raise ValueError(
                f"the {model.layout.name} order emits up to {model.layout.slots} cells in a step, and this {type(model).__name__} holds "
                "them for dependent: train it in an order of one cell per step (position_major, level_major), or set forced=true to "
                "draw them as if independent"
            )
        return True


class _Ending:
    """The ends of a batch's items: id spec.vocab, drawn at a cell of level 0. lengths int64 [B]: the maximum, until an end is drawn."""

    def __init__(self, tokens: Tokens, layout: Layout):
        device = tokens.codes.device
        self.level, self.position, self.end = layout.level.to(device), layout.position.to(device), tokens.spec.vocab
        place = torch.arange(1, tokens.codes.shape[2] + 1, device=device)
        self.known = (place * tokens.present.any(1)).amax(1)  # [B]: one behind the last known position
        self.guarded = bool((tokens.masked[:, 0] & (place <= self.known[:, None])).any())
        self.lengths = torch.full_like(self.known, len(place)) if tokens.lengths is None else tokens.lengths.clone()

    def allow(self, logits: Tensor, last: Tensor) -> Tensor:
        """logits [B, G, V + 1] of steps int64 [B], without an end where a known cell lies behind it."""
        if not self.guarded:
            return logits
        forbidden = self.position[last] < self.known[:, None]
        return torch.cat((logits[..., :-1], logits[..., -1:].masked_fill(forbidden[..., None], float("-inf"))), -1)

    def find(self, here: Tensor, drawn: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """(rows that drew an end at step last[b], bool [B]; the cells that they have no more, bool [B, S, G])."""
        ended = here & (self.level[last] == 0) & (drawn == self.end)
        stopped = ended.any(1)
        position = torch.where(ended, self.position[last], -1).amax(1)
        self.lengths = torch.where(stopped, position, self.lengths)
        return stopped, stopped[:, None, None] & (self.position >= position[:, None, None])


class _Plan:
    """Which steps each row feeds and draws in each call, worked out before the first from holes bool [B, S, G] and done int64 [B], the
    steps that each row has fed.

    rounds: R, the number of calls. counts int64 [B]: calls that a row needs. at, last int64 [B, R]: the first fed step of a row in a
    call, and the step that it draws there (once a row is done: any, its outputs are not used). width: R numbers, the fed steps of a call.
    active: R tensors of row indices, None where all rows draw. capacity: fed steps that the cache must hold, never more than the layout's.
    """

    def __init__(self, masked_cells: Tensor, done: Tensor):
        draws = masked_cells.any(2)
        batch, steps = draws.shape
        self.counts = draws.sum(1)
        self.rounds = int(self.counts.max()) if batch else 0
        number = torch.arange(steps, device=masked_cells.device).expand(batch, steps)
        last = torch.where(draws, number, torch.full_like(number, steps)).sort(1).values[:, : self.rounds]
        at = torch.cat([done[:, None], last[:, :-1] + 1], 1)[:, : self.rounds]
        busy = torch.arange(self.rounds, device=masked_cells.device) < self.counts[:, None]
        at, self.last = at * busy, last * busy
        width = (self.last - at + 1).amax(0) if self.rounds else self.counts[:0]
        self.at = torch.minimum(at, steps - width)  # a row with less to feed than others near the end feeds some steps once more
        self.width = width.tolist()
        self.capacity = int((self.at + width).max()) if self.rounds else 0
        everyone = busy.all(0).tolist()
        self.active = [None if everyone[r] else busy[:, r].nonzero()[:, 0] for r in range(self.rounds)]
