"""Speculative decoding of causal generators: a drafter guesses the next steps, one network call scores all guesses,
and a rule of verification.py keeps as many of them as leave the model's own distribution.

Every row stands at its own place. A call feeds, of each row, what was fixed since its last call, the last accepted
step, and the nodes of a tree of drafts; it fixes one step at least, so a row never takes more calls than it has
steps to draw. Steps and slots that are known, absent, or beyond a row's length are accepted for sure, wherever they lie.

Where the model ends items by itself, a draft may be an end. Nothing behind it is accepted, and the row loses the cells
from that position on.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.generators.base import Causal
from gentok.layouts import Layout
from gentok.samplers.autoregressive import Ending, check_slots
from gentok.samplers.base import Sampler, check_known
from gentok.samplers.draft_tree import DraftTree
from gentok.samplers.drafter import Drafter, Progress, one_hot
from gentok.samplers.draws import check_finite
from gentok.samplers.recursive_rejection import RecursiveRejection
from gentok.samplers.request import SampleOutput, SampleRequest
from gentok.samplers.row_trees import RowTrees
from gentok.samplers.sibling_rule import SiblingRule
from gentok.samplers.verification import Verdict, verify
from gentok.types import ABSENT, UNKNOWN, Tokens

__all__ = ["SpeculativeDecoding"]


@dataclass(frozen=True)
class SpeculativeDecoding(Sampler):
    """Base class of the samplers that verify drafts of a causal generator.

    Args:
        forced: run where the result is not the model's distribution, as in AutoregressiveSampler.
    """

    requires = Causal
    exact = True

    forced: bool = False

    @abstractmethod
    def drafter(self, progress: Progress) -> Drafter:
        """The drafter of a batch."""

    @property
    def rule(self) -> str | SiblingRule:
        """How drafts are verified: a rule for siblings, block or match (verification.py)."""
        return RecursiveRejection()

    @staticmethod
    def check_slots(layout: Layout, table: bool, branches: bool, block: bool) -> None:
        """Raises ValueError where a layout has steps of several slots, and something is asked for that needs steps of one."""
        what = "draft=model" if table else "branches=1" if branches else "verify=standard"
        if layout.slots > 1 and (table or branches or block):
            raise ValueError(f"the {layout.name} order has steps of {layout.slots} slots, set {what}; or use another order")

    def run(self, request: SampleRequest) -> SampleOutput:
        """As Sampler. calls: network calls of the model; stats: the steps drawn per call of a row, in the mean (steps_per_call)."""
        model, tokens, layout = request.model, request.tokens, request.model.layout
        ids = layout.flatten(tokens.codes)
        forced = check_known(tokens, layout, self.forced) | check_slots(model, ids, self.forced)
        progress = Progress(request, layout, ids, _first(ids), model.spec.vocab + model.ends)
        decoding = _Decoding(self, progress)
        total = int((ids == UNKNOWN).any(2).sum(1).max()) if len(ids) else 0
        while len(rows := (progress.first < layout.steps).nonzero()[:, 0]):
            decoding.step(rows)
            if request.on_step is not None:
                request.report(layout.unflatten(ids), int(decoding.calls.max()), total)
        ending = decoding.ending
        output = Tokens(layout.unflatten(ids), tokens.spec, tokens.lengths if ending is None else ending.lengths)
        per_call = float(decoding.drawn.sum() / decoding.calls.sum().clamp(min=1))
        return request.output(output, decoding.calls, steps_per_call=per_call, **({"forced": True} if forced else {}))


def _first(ids: Tensor) -> Tensor:
    """int64 [B]: the first step of ids [B, S, G] with a cell to draw, S where there is none."""
    masked = (ids == UNKNOWN).any(2)
    return torch.where(masked.any(1), masked.to(torch.int64).argmax(1), masked.shape[1])


class _Decoding:
    """A batch under way. fed int64 [B]: the steps of each row that the cache holds for good; calls, drawn int64 [B]: network calls, and
    steps drawn."""

    def __init__(self, sampler: SpeculativeDecoding, progress: Progress):
        self.sampler, self.progress, self.request = sampler, progress, progress.request
        self.model, self.layout, self.ids = progress.request.model, progress.layout, progress.ids
        self.ending = Ending(self.request.tokens, self.layout) if self.model.ends else None
        self.fed, self.calls, self.drawn = (torch.zeros_like(progress.first) for _ in range(3))
        if not bool((progress.first < self.layout.steps).any()):
            return
        self.drafter = sampler.drafter(progress)
        self.cache = self.model.init_cache(self.request.condition, len(self.ids), self.layout.steps + self.tree.contexts)

    @property
    def tree(self) -> DraftTree | RowTrees:
        """Of the drafts that were proposed last."""
        return self.drafter.tree

    def step(self, rows: Tensor) -> None:
        """One network call, and what it fixes of some rows."""
        progress, first = self.progress, self.progress.first[rows]
        steps = progress.window(rows, self.tree.window)  # [b, W]
        there = first[:, None] + torch.arange(self.tree.window, device=rows.device) < self.layout.steps
        held = self.ids[rows[:, None], steps].masked_fill(~there[..., None], ABSENT)  # [b, W, G]
        here = held == UNKNOWN
        size = (here.any(2) * torch.arange(1, self.tree.window + 1, device=rows.device)).amax(1)  # up to the last one that is to be drawn
        draft = self.drafter.propose(rows)
        row, place = torch.arange(len(rows), device=rows.device)[:, None], self.tree.positions(rows.device)
        drawn, known = here[row, place.clamp(min=0)], held[row, place.clamp(min=0)]
        draft.ids = torch.where(drawn, draft.ids, known)
        p = self._predict(rows, draft.ids, here)
        possible = p[..., 0].isfinite().all(-1)  # [b, contexts]; a softmax is finite everywhere or nowhere
        if not bool(possible.all()):
            # Behind a draft that cannot be (an end, an id that a grammar forbids) nothing need be possible; no such node is accepted.
            behind = self.tree.first_drafts(rows.device).expand(len(rows), -1)[row, place[:, : self.tree.contexts] + 1]
            p = torch.where(possible[..., None, None], p, one_hot(draft.ids[row, behind], progress.vocab))
        closed = ((draft.ids >= self.model.spec.vocab) & drawn).any(2)
        verdict = verify(
            self.sampler.rule, self.tree, p, draft, here, size, closed, self.request.rng.rows(rows), self.request.choose,
            self.drafter.noise(rows),
        )  # fmt: skip
        self._check(rows, possible, verdict)
        self._write(rows, steps, here, verdict)
        self._commit(rows, first, verdict)
        self.calls[rows] += 1
        progress.first = _first(self.ids)
        self.drafter.observe(rows, p, verdict, progress.first[rows] - first)

    def _predict(self, rows: Tensor, drafts: Tensor, here: Tensor) -> Tensor:
        """Feeds the batch, and gives what each context of some rows predicts: filtered probabilities, float64 [b, contexts, G, V]."""
        batch, device = len(self.ids), self.ids.device
        contexts, every = self.tree.contexts, torch.arange(len(self.ids), device=self.ids.device)
        first = self.progress.first.masked_fill(self.progress.first == self.layout.steps, 0)
        lead = (first - self.fed).clamp(min=0)
        widest = int(lead.max())
        at = (first - widest).clamp(min=0)  # rows with less to feed than others feed some steps once more
        lead = first - at
        begin = self.model.begin.to(self.ids).expand(batch, 1, -1)
        fed = torch.cat((begin, self.ids[:, :-1]), 1)
        number = torch.arange(widest + contexts, device=device)
        ids = fed[every[:, None], (at[:, None] + number).clamp(max=self.layout.steps - 1)]
        ids = ids.masked_fill(number[:, None] > lead[:, None, None], ABSENT)
        place = lead[:, None] + torch.arange(contexts, device=device)  # [B, C]
        if contexts > 1:
            ids[rows[:, None], place[rows, 1:]] = drafts[:, 1:contexts].masked_fill(drafts[:, 1:contexts] >= self.model.spec.vocab, ABSENT)
        parents = None
        if not self.tree.chain:
            parents = (number - 1).repeat(batch, 1)
            parent = torch.zeros_like(place[:, 1:])
            parent[rows] = self.tree.parents(device)[:, 1:contexts].expand(len(rows), -1)
            parents[every[:, None], place[:, 1:]] = place.gather(1, parent)
        self._at, self._lead = at, lead
        logits = self.model.logits(ids, self.cache, at, parents)
        self.request.network_calls.add(self.model, ids.shape[0] * ids.shape[1])
        logits = logits[rows[:, None], place[rows]]  # [b, C, G, V]
        after, row = (self.tree.positions(device)[:, :contexts] + 1).expand(len(rows), -1), torch.arange(len(rows), device=device)[:, None]
        if self.ending is not None:
            step = (first[rows, None] + after).clamp(max=self.layout.steps - 1)
            logits = self.ending.allow(logits.flatten(0, 1), rows.repeat_interleave(contexts), step.flatten()).view_as(logits)
        return self.sampler.filter(logits.masked_fill(~here[row, after][..., None], 0.0)).softmax(-1)

    def _check(self, rows: Tensor, possible: Tensor, verdict: Verdict) -> None:
        """Raises ValueError where what was accepted or drawn hangs on a distribution that is none."""
        last = self.tree.contexts - 1
        fed = (verdict.path >= 0) & (verdict.path <= last)
        used = possible.gather(1, verdict.path.clamp(0, last)) | ~fed
        fine = possible[:, 0] & possible.gather(1, verdict.stop[:, None])[:, 0] & used.all(1)
        check_finite(torch.where(fine, 0.0, torch.nan), self.request.rng.rows(rows), "distribution")

    def _write(self, rows: Tensor, steps: Tensor, here: Tensor, verdict: Verdict) -> None:
        """Writes what was accepted or drawn, and takes the cells behind an end away."""
        new = here & (torch.arange(here.shape[1], device=rows.device) < verdict.count[:, None])[..., None]
        self.drawn[rows] += new.any(2).sum(1)
        row, place, slot = new.nonzero(as_tuple=True)
        self.ids[rows[row], steps[row, place], slot] = verdict.ids[row, place, slot]
        for j in range(here.shape[1] if self.ending is not None else 0):
            for i, beyond in self.ending.find(new[:, j], verdict.ids[:, j], rows, steps[:, j]).items():
                self.ids[rows[i]] = self.ids[rows[i]].masked_fill(beyond, ABSENT)

    def _commit(self, rows: Tensor, first: Tensor, verdict: Verdict) -> None:
        """Keeps what was fed of the accepted nodes."""
        path = None
        if not self.tree.chain:
            lead = torch.arange(int(self._lead.max()) + 1, device=rows.device)
            path = torch.full((len(self.ids), len(lead) + self.tree.window), -1, device=rows.device)
            path[:, : len(lead)] = torch.where(lead <= self._lead[:, None], lead, -1)
            nodes = torch.where(verdict.path < self.tree.contexts, verdict.path, -1)
            place = self._lead[rows, None] + 1 + torch.arange(self.tree.window, device=rows.device)
            kept = nodes >= 0
            row = rows[:, None].expand_as(place)
            path[row[kept], place[kept]] = (self._lead[rows, None] + nodes)[kept]
        self.model.commit(self.cache, self._at, path)
        self.fed[rows] = first + verdict.count
