"""Plain autoregressive sampling: every unknown step of a causal generator, one after the other, from the
model's own distribution.

Exact: the ids are drawn from prod_s p(step s | the steps before), filtered and guided as asked, for any
layout and number of levels, with known cells, and with items of different lengths in one batch. Drawing the
slots of a step together is exact only where the model says so (`exact_slots`).

In call r every row draws its own r-th unknown step. What lies between a row's draws (its known prefix, cells
beyond its length, levels that it does not have) is fed in that same call, so that rows with prefixes of any
length start together, and a batch needs as many calls as its row with the most draws. A row's ids depend on
its own random numbers alone: its r-th call consumes the next numbers of its own stream, whatever the other
rows do.

Where the model ends items by itself, a row that draws the end loses the cells from that position on, and the
rest is planned anew. `lengths` is then the maximum, and the output's lengths are those that were drawn. A row
does not end before a cell that is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.generators.base import Causal
from gentok.layouts import Layout
from gentok.samplers.base import Sampler, check_known
from gentok.samplers.draws import Choice
from gentok.samplers.request import SampleOutput, SampleRequest
from gentok.types import ABSENT, UNKNOWN, RowRNG, Tokens

__all__ = ["AutoregressiveSampler", "Ending", "check_slots"]


@dataclass(frozen=True)
class AutoregressiveSampler(Sampler, id="sampler/autoregressive"):
    """Step by step in the generator's own order.

    Args:
        forced: run where the result is not the model's distribution, instead of stopping; the output's stats
            then hold forced = True. That is where known cells lie behind a masked cell in the layout (they
            are ignored when that cell is drawn), or slots of a step are dependent (they are drawn together, and
            without regard to known ones).
    """

    requires = Causal
    exact = True

    forced: bool = False

    def run(self, request: SampleRequest) -> SampleOutput:
        model, tokens, layout = request.model, request.tokens, request.model.layout
        ids = layout.flatten(tokens.codes)  # [B, S, G]
        masked = ids == UNKNOWN
        forced = check_known(tokens, layout, self.forced) | check_slots(model, ids, self.forced)

        fed = torch.cat([model.begin.to(ids).expand(len(ids), 1, layout.slots), ids[:, :-1]], 1)
        fed = fed.masked_fill(fed == UNKNOWN, ABSENT)
        rows = torch.arange(len(ids), device=ids.device)
        done, calls, lengths = torch.zeros_like(rows), torch.zeros_like(rows), tokens.lengths
        ending = Ending(tokens, layout) if model.ends else None
        plan = _Plan(masked, done)
        cache = model.init_cache(request.condition, len(ids), layout.steps if model.ends else plan.capacity) if plan.rounds else None
        steps, r = plan.rounds, 0
        while r < plan.rounds:
            at, last, width = plan.at[:, r], plan.last[:, r], plan.width[r]
            window = (at[:, None] + torch.arange(width, device=ids.device)).clamp(max=layout.steps - 1)
            logits = model.logits(fed[rows[:, None], window], cache, at)[rows, last - at]  # [B, G, V]
            model.commit(cache, at)
            request.network_calls.add(model, len(ids) * width)

            busy = plan.counts > r
            here = masked[rows, last] & busy[:, None]  # [B, G]
            if ending is not None:
                logits = ending.allow(logits, last)
            drawn = self._draw(logits, here, plan.active[r], request.rng, request.choose)
            ids[rows, last] = torch.where(here, drawn, ids[rows, last])
            after = (last + 1).clamp(max=layout.steps - 1)
            fed[rows, after] = torch.where(here & (last + 1 < layout.steps)[:, None], drawn, fed[rows, after])
            done, calls, r = torch.where(busy, last + 1, done), calls + busy, r + 1
            if ending is not None:
                stopped, beyond = ending.find(here, drawn, last)
                if bool(stopped.any()):
                    ids, fed[:, 1:] = ids.masked_fill(beyond, ABSENT), fed[:, 1:].masked_fill(beyond[:, :-1], ABSENT)
                    number = torch.arange(layout.steps, device=ids.device)
                    masked = masked & ~beyond & (number >= done[:, None])[..., None]
                    plan, r = _Plan(masked, done), 0
            if request.on_step is not None:
                request.report(layout.unflatten(ids), int(calls.max()), steps)

        output = Tokens(layout.unflatten(ids), tokens.spec, lengths if ending is None else ending.lengths)
        return request.output(output, calls, **({"forced": True} if forced else {}))

    def _draw(self, logits: Tensor, here: Tensor, active: Tensor | None, rng: RowRNG, choose: Choice) -> Tensor:
        """ids int64 [B, G] where `here`; rows that are not active draw no random numbers. active: None for
        all rows."""
        logits = logits.masked_fill(~here[..., None], 0.0)  # a slot without a masked cell may hold anything, -inf everywhere too
        if active is None:
            return choose(self.filter(logits), rng)
        ids = torch.full_like(here, ABSENT, dtype=torch.int64)
        ids[active] = choose(self.filter(logits[active]), rng.rows(active))
        return ids


def check_slots(model: Causal, ids: Tensor, forced: bool = False) -> bool:
    """Whether a slot of ids int64 [B, S, G] is drawn beside another one, drawn or known, on which it depends in the model. Raises ValueError
    then, unless it is `forced`."""
    masked = ids == UNKNOWN
    if model.exact_slots or not bool((masked.any(2) & ((ids != ABSENT).sum(2) > 1)).any()):
        return False
    if not forced:
        raise ValueError(
            f"the {model.layout.name} order emits up to {model.layout.slots} cells in a step, and in this {type(model).__name__} "
            "they are dependent: train it in an order of one cell per step (position_major, level_major), or set forced=true to "
            "draw them as if independent of each other and of known ones"
        )
    return True


class Ending:
    """The ends of a batch's items: id spec.vocab, drawn at a cell of level 0.

    lengths int64 [B]: the maximum, until an end is drawn.
    """

    def __init__(self, tokens: Tokens, layout: Layout):
        device = tokens.codes.device
        self.level, self.position, self.end = layout.level.to(device), layout.position.to(device), tokens.spec.vocab
        place = torch.arange(1, tokens.codes.shape[2] + 1, device=device)
        self.known = (place * tokens.present.any(1)).amax(1)  # [B]: one behind the last known position
        self.guarded = bool((tokens.masked[:, 0] & (place <= self.known[:, None])).any())
        self.lengths = torch.full_like(self.known, len(place)) if tokens.lengths is None else tokens.lengths.clone()

    def allow(self, logits: Tensor, last: Tensor) -> Tensor:
        """Logits [B, G, V + 1] of steps int64 [B], without an end where a known cell lies behind it."""
        if not self.guarded:
            return logits
        forbidden = self.position[last] < self.known[:, None]
        return torch.cat((logits[..., :-1], logits[..., -1:].masked_fill(forbidden[..., None], float("-inf"))), -1)

    def find(self, here: Tensor, drawn: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """(rows that drew an end at step last[b], bool [B]; the cells that they have no more, bool [B, S,
        G])."""
        ended = here & (self.level[last] == 0) & (drawn == self.end)
        stopped = ended.any(1)
        position = torch.where(ended, self.position[last], -1).amax(1)
        self.lengths = torch.where(stopped, position, self.lengths)
        return stopped, stopped[:, None, None] & (self.position >= position[:, None, None])


class _Plan:
    """Which steps each row feeds and draws in each call, worked out before the first one.

    Args:
        masked: bool [B, S, G], the cells that are to be drawn.
        done: int64 [B], the steps that each row has fed.

    Attributes:
        rounds: R, the number of calls.
        counts: int64 [B], calls that a row needs.
        at: int64 [B, R], the first step that a row feeds in a call (once a row is done: any, its outputs are
            not used).
        last: int64 [B, R], the step that it draws there.
        width: R numbers, the steps fed in a call.
        active: R tensors of row indices, None where all rows draw.
        capacity: fed steps that the cache must hold, never more than the layout's.
    """

    def __init__(self, masked: Tensor, done: Tensor):
        draws = masked.any(2)
        batch, steps = draws.shape
        self.counts = draws.sum(1)
        self.rounds = int(self.counts.max()) if batch else 0
        number = torch.arange(steps, device=masked.device).expand(batch, steps)
        last = torch.where(draws, number, torch.full_like(number, steps)).sort(1).values[:, : self.rounds]
        at = torch.cat([done[:, None], last[:, :-1] + 1], 1)[:, : self.rounds]
        busy = torch.arange(self.rounds, device=masked.device) < self.counts[:, None]
        at, self.last = at * busy, last * busy
        width = (self.last - at + 1).amax(0) if self.rounds else self.counts[:0]
        self.at = torch.minimum(at, steps - width)  # a row with less to feed than others near the end feeds some steps once more
        self.width = width.tolist()
        self.capacity = int((self.at + width).max()) if self.rounds else 0
        everyone = busy.all(0).tolist()
        self.active = [None if everyone[r] else busy[:, r].nonzero()[:, 0] for r in range(self.rounds)]
