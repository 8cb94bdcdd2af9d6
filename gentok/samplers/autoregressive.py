"""Plain autoregressive sampling: every unknown step of a causal generator, one after the other, from the
model's own distribution.

Exact: the ids are drawn from prod_s p(step s | the steps before), filtered and guided as asked, for any
layout and number of levels, with known cells, and with items of different lengths in one batch. Drawing the
slots of a step together is exact only where the model says so (`exact_slots`).

In its call r every row draws its own r-th unknown step. What lies between a row's draws (its known prefix,
cells beyond its length, levels that it does not have) is fed in that same call, so that rows with prefixes of
any length start together. Rows that are done leave, and with `at_once` others join in their place
(samplers/row_queue.py). A row's ids depend on its own random numbers alone: its r-th call consumes the next
numbers of its own stream, whatever the other rows do.

Where the model ends items by itself, a row that draws the end loses the cells from that position on, and the
rest is planned anew. `lengths` is then the maximum, and the output's lengths are those that were drawn. A row
does not end before a cell that is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gentok.generators.base import Causal
from gentok.layouts import Layout
from gentok.samplers.base import Sampler, check_known
from gentok.samplers.request import SampleOutput, SampleRequest, initial_tokens
from gentok.samplers.row_queue import Draws, RowQueue
from gentok.types import ABSENT, UNKNOWN, Condition, RowRNG, Tokens

__all__ = ["AutoregressiveSampler", "Ending", "check_slots", "hand_out", "joining_rows"]


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
    joins = True
    marks = True

    forced: bool = False

    def run(self, request: SampleRequest) -> SampleOutput:
        model, tokens, layout = request.model, request.tokens, request.model.layout
        ids = layout.flatten(tokens.codes)  # [B, S, G]
        masked = ids == UNKNOWN
        forced = check_known(tokens, layout, self.forced) | check_slots(model, ids, self.forced)

        fed = torch.cat([model.begin.to(ids).expand(len(ids), 1, layout.slots), ids[:, :-1]], 1)
        fed = fed.masked_fill(fed == UNKNOWN, ABSENT)
        ending = Ending(tokens, layout) if model.ends else None
        draws = Draws(masked)
        grows = request.arrivals is not None
        queue = RowQueue(model, request.condition, draws, request.at_once, model.ends, request.network_calls, grows)
        steps, turns = max([*draws.counts, math.ceil(sum(draws.counts) / max(queue.size, 1))], default=0), 0
        hand_out(request, draws, ids, ending, range(len(ids)))  # a row without a cell to draw has no turn
        while True:
            while grows and (joined := joining_rows(request, queue, ending)) is not None:
                request, more, begins = joined
                first, tokens, steps = len(ids), request.tokens, turns + max(layout.steps, 1)
                ids, masked, fed = torch.cat((ids, more)), torch.cat((masked, more == UNKNOWN)), torch.cat((fed, begins))
                hand_out(request, draws, ids, ending, range(first, len(ids)))
            if not queue:
                break
            turn = queue.turn(fed)
            active = None if turn.rows == list(range(len(ids))) else torch.tensor(turn.rows).to(ids.device)
            rows: Any = slice(None) if active is None else active
            last: Any = turn.step
            if last is None:
                rows, last = torch.tensor(turn.rows).to(ids.device), torch.tensor(turn.steps).to(ids.device)
            whole = turn.step is not None and draws.whole(turn.rows, turn.step)
            here = None if whole else masked[rows, last]  # [b, G]
            logits = turn.logits if ending is None else ending.allow(turn.logits, rows, last)
            drawn = self._draw(request, logits, here, active, last)
            ids[rows, last] = drawn = drawn if here is None else torch.where(here, drawn, ids[rows, last])
            if turn.step is None:
                after = (last + 1).clamp(max=layout.steps - 1)
                fed[rows, after] = torch.where((last + 1 < layout.steps)[:, None], drawn, fed[rows, after])
            elif last + 1 < layout.steps:
                fed[rows, last + 1] = drawn
            for row, step in zip(turn.rows, turn.steps):
                draws.drawn(row, step)
            if ending is not None:
                for i, beyond in ending.find(here, drawn, rows, last).items():
                    row = turn.rows[i]
                    ids[row], fed[row, 1:] = ids[row].masked_fill(beyond, ABSENT), fed[row, 1:].masked_fill(beyond[:-1], ABSENT)
                    masked[row] &= ~beyond
                    draws.forget(row, masked[row])
            turns += 1
            if request.on_step is not None:
                request.report(layout.unflatten(ids), min(turns, steps), steps)
            hand_out(request, draws, ids, ending, turn.rows)

        output = Tokens(layout.unflatten(ids), tokens.spec, tokens.lengths if ending is None else ending.lengths)
        calls = torch.tensor(draws.calls, dtype=torch.int64, device=ids.device)
        return request.output(output, calls, **({"forced": True} if forced else {}))

    def _draw(self, request: SampleRequest, logits: Tensor, here: Tensor | None, active: Tensor | None, last: Any) -> Tensor:
        """Draws a step of some rows; the others draw no random numbers.

        Args:
            request: of all rows.
            logits: float [b, G, V].
            here: bool [b, G], the cells that are to be drawn; None: all. Elsewhere the result is not used.
            active: int64 [b], the rows; None: all.
            last: the step, or int64 [b] of each row.

        Returns:
            int64 [b, G].
        """
        if here is not None:
            logits = logits.masked_fill(~here[..., None], 0.0)  # a slot without a masked cell may hold anything, -inf everywhere too
        logits, rng = self.filter(logits), request.rng if active is None else request.rng.rows(active)
        if request.mark is None:  # without a look at the cells: layouts lie on the host
            return request.choose(logits, rng)
        level, position = (cells.to(logits.device)[last] for cells in (request.model.layout.level, request.model.layout.position))
        return request.choose_at(logits, rng, level, position)


def check_slots(model: Causal, ids: Tensor, forced: bool = False) -> bool:
    """Whether a slot of ids int64 [B, S, G] is drawn beside another one, drawn or known, on which it depends in the model. Raises
    ValueError then, unless it is `forced`."""
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


def hand_out(request: SampleRequest, draws: Draws, ids: Tensor, ending: Ending | None, rows: Iterable[int]) -> None:
    """Tells the request's arrivals which of some rows of ids int64 [B, S, G] are done; draws and ending are of all rows."""
    if request.arrivals is None or not (done := [row for row in rows if not draws.waiting(row)]):
        return
    lengths = request.tokens.lengths if ending is None else ending.lengths
    made = Tokens(request.model.layout.unflatten(ids[done]), request.tokens.spec, None if lengths is None else lengths[done])
    rng = request.rng.rows(torch.tensor(done, device=ids.device))
    request.arrivals.leave(done, made.validate(), [draws.calls[row] for row in done], rng)


def joining_rows(request: SampleRequest, queue: RowQueue, ending: Ending | None) -> tuple[SampleRequest, Tensor, Tensor] | None:
    """Asks who joins, and makes room for them in the queue.

    Args:
        request: of the rows so far, with arrivals.
        queue: of these rows.
        ending: of these rows; None: items do not end by themselves.

    Returns:
        (the request of all rows, the ids of the new ones [b, S, G], what these feed [b, S, G]); None: nobody comes now.
    """
    new = None if request.arrivals is None else request.arrivals.join(queue.room)
    if new is None:
        return None
    layout, old = request.model.layout, request.tokens
    tokens = initial_tokens(request.model.spec, new.rng, None, new.lengths)
    ids = layout.flatten(tokens.codes)
    fed = torch.cat([request.model.begin.to(ids).expand(len(ids), 1, layout.slots), ids[:, :-1]], 1)
    queue.draws.add(ids == UNKNOWN)
    queue.add(new.condition, len(ids))
    if ending is not None:
        ending.add(tokens)
    some = [one.lengths if one.lengths is not None else torch.full_like(one.codes[:, 0, 0], one.codes.shape[2]) for one in (old, tokens)]
    lengths = None if old.lengths is None and tokens.lengths is None else torch.cat(some)
    whole = Tokens(torch.cat((old.codes, tokens.codes)), old.spec, lengths)
    condition, rng = Condition.concat([request.condition, new.condition]), RowRNG.concat([request.rng, new.rng])
    return replace(request, condition=condition, rng=rng, tokens=whole), ids, fed.masked_fill(fed == UNKNOWN, ABSENT)


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

    def add(self, tokens: Tokens) -> None:
        """Further rows, of which nothing is known."""
        more = torch.full_like(tokens.codes[:, 0, 0], tokens.codes.shape[2]) if tokens.lengths is None else tokens.lengths.clone()
        self.known, self.lengths = torch.cat((self.known, torch.zeros_like(more))), torch.cat((self.lengths, more))

    def allow(self, logits: Tensor, rows: Any, last: Any) -> Tensor:
        """Logits [b, G, V + 1] of some rows' steps, without an end where a known cell lies behind it."""
        if not self.guarded:
            return logits
        forbidden = self.position[last] < self.known[rows][:, None]
        return torch.cat((logits[..., :-1], logits[..., -1:].masked_fill(forbidden[..., None], float("-inf"))), -1)

    def find(self, here: Tensor | None, drawn: Tensor, rows: Any, last: Any) -> dict[int, Tensor]:
        """The rows, as numbers among these, that drew an end in their step -> bool [S, G], the cells that they have no more."""
        ended = (self.level[last] == 0) & (drawn == self.end)
        ended = ended if here is None else ended & here
        stopped = ended.any(1)
        if not bool(stopped.any()):
            return {}
        position = torch.where(ended, self.position[last], -1).amax(1)
        self.lengths[rows] = torch.where(stopped, position, self.lengths[rows])
        return {i: self.position >= position[i] for i in stopped.nonzero()[:, 0].tolist()}
