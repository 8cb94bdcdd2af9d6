"""Drafts of the model that verifies them: what its last call predicted for the steps behind (Jacobi decoding, jacobi.py)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gentok.samplers.draft_tree import DraftTree
from gentok.samplers.drafter import Drafter, Progress, one_hot
from gentok.samplers.guesses import guess_sources
from gentok.samplers.speculation import ratio, residual
from gentok.samplers.verification import Draft, Verdict
from gentok.types import ABSENT, UNKNOWN, RowRNG

__all__ = ["TAILS", "OwnDrafts"]

TAILS = ("coupled", "fresh", "gumbel", "kept")


class OwnDrafts(Drafter):
    """The model's own drafts, siblings included.

    Args:
        progress: the batch.
        tree: the shape of its drafts.
        tail: what becomes of the drafts behind a rejected step, of TAILS.
        guess: what a new step starts with, of guesses.GUESSES.
        match: whether they are verified by the rule `match`.

    Attributes:
        ids: int64 [B, S + W, G], what is accepted and, behind it, drafts.
        q: float64 [B, W, G, V], the distributions of the drafts of a window.
        guessed: bool [B, S + W, G], drafts that are guesses.
        known: int64 [B], the first step of each row that has no draft yet.
        seeds: int64 [B, S + W], of the streams that the steps' Gumbel numbers come from.
    """

    def __init__(self, progress: Progress, tree: DraftTree, tail: str = "coupled", guess: str = "left", match: bool = False):
        super().__init__(progress, tree)
        self.tail, self.match, (batch, steps, slots), device = tail, match, progress.ids.shape, progress.ids.device
        rng, window = progress.request.rng, tree.window
        self.sources = guess_sources(guess, progress.layout).to(device)  # [S, G, 2]
        self.sizes = progress.layout.vocab.to(device).clamp(min=1)
        self.random = rng.fork("guesses").words(steps, slots).abs() % self.sizes
        self.seeds = rng.fork("gumbel").words(steps + window)
        self.ids = F.pad(progress.ids, (0, 0, 0, window), value=ABSENT)
        self.q = torch.zeros(batch, window, slots, progress.vocab, dtype=torch.float64, device=device)
        self.guessed = torch.ones_like(self.ids, dtype=torch.bool)
        self.known = torch.zeros_like(progress.first)
        self.place = torch.arange(window, device=device)
        self.nodes = torch.tensor([max(j, 0) for j in tree.position], device=device)
        self.behind = tree.behind(device)

    def propose(self, rows: Tensor) -> Draft:
        first = self.progress.first[rows]
        self._guess(rows, first)
        ids, q = self.ids[rows[:, None], first[:, None] + self.place], self.q[rows]
        out, of = ids[:, self.nodes], q[:, self.nodes]
        if not self.tree.chain:
            siblings, theirs = self._siblings(rows, ids[:, : self.tree.depth, 0], q[:, : self.tree.depth, 0])
            for node, rank in enumerate(self.tree.rank):
                if rank:
                    out[:, node, 0], of[:, node, 0] = siblings[:, self.nodes[node], rank], theirs[:, self.nodes[node], rank]
        return Draft(out, of)

    def _guess(self, rows: Tensor, first: Tensor) -> None:
        """Gives the steps of the windows of some rows a guess, where they have no draft yet."""
        at, until = torch.maximum(self.known[rows], first), (first + self.tree.window).clamp(max=self.progress.layout.steps)
        while bool((at < until).any()):
            new = at < until
            step = torch.where(new, at, 0)
            source = self.sources[step]  # [b, G, 2]
            guess = self.ids[rows[:, None], source[..., 0].clamp(min=0), source[..., 1].clamp(min=0)]
            usable = (source[..., 0] >= 0) & (guess >= 0) & (guess < self.sizes[step])
            guess = torch.where(usable, guess, self.random[rows, step])
            drawn = (self.ids[rows, step] == UNKNOWN) & new[:, None]
            self.ids[rows, step] = torch.where(drawn, guess, self.ids[rows, step])
            place = torch.where(new, step - first, 0)
            sure = one_hot(self.ids[rows, step], self.progress.vocab)
            self.q[rows, place] = torch.where(new[:, None, None], sure, self.q[rows, place])
            at = at + new
        self.known[rows] = at

    def _siblings(self, rows: Tensor, ids: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Drafts of the first steps, drawn without replacement: ids int64 [b, D, K] and their distributions float64 [b, D, K, V]; the
        first is the draft that there is."""
        request, out, of = self.progress.request, [ids], [q]
        noise = self._gumbel(rows, self.progress.first[rows])[:, : ids.shape[1], 0] if self.tail == "gumbel" else None
        for _ in range(1, self.tree.branches):
            left = of[-1].scatter(-1, out[-1][..., None].clamp(min=0), 0.0)
            mass = left.sum(-1, keepdim=True)
            left = torch.where(mass > 0, left / mass, one_hot(out[-1], left.shape[-1]))  # nothing left: the same, rejected again
            new = request.choose(left.log(), request.rng.rows(rows)) if noise is None else (left.log() + noise).argmax(-1)
            out.append(new)
            of.append(left)
        return torch.stack(out, 2), torch.stack(of, 2)

    def _gumbel(self, rows: Tensor, first: Tensor) -> Tensor:
        """The Gumbel numbers of the cells of the windows that begin at first int64 [b]: float64 [b, W, G, V], the same at any time."""
        vocab, request, layout = self.progress.vocab, self.progress.request, self.progress.layout
        if request.mark is not None:
            steps = (first[:, None] + self.place).clamp(max=layout.steps - 1)
            level, position = (cells.to(steps.device)[steps] for cells in (layout.level, layout.position))
            noise = request.mark.gumbel(request.rng.rows(rows), level, position, vocab)
            if noise is None:
                raise ValueError("verify=match needs Gumbel numbers, which the watermark exp alone has; or take sampler=autoregressive")
            return noise
        seeds = self.seeds[rows[:, None], first[:, None] + self.place]
        return RowRNG(seeds.flatten()).gumbel(layout.slots, vocab).view(*seeds.shape, -1, vocab)

    def noise(self, rows: Tensor) -> Tensor | None:
        return self._gumbel(rows, self.progress.first[rows]) if self.match else None

    def observe(self, rows: Tensor, p: Tensor, verdict: Verdict, ahead: Tensor) -> None:
        progress, tail = self.progress, self.tail
        before = progress.first[rows] - ahead
        steps = before[:, None] + self.place
        stands = F.pad(progress.ids[rows], (0, 0, 0, len(self.place)), value=ABSENT).gather(
            1, steps[..., None].expand(-1, -1, progress.ids.shape[2])
        )
        free = (stands == UNKNOWN) & (self.place >= verdict.count[:, None])[..., None]  # [b, W, G]
        of = self.behind[verdict.stop]  # [b, W, K]
        p = torch.stack([p[torch.arange(len(rows), device=rows.device)[:, None], of[..., k]] for k in range(of.shape[2])]).mean(0)
        x, q = self.ids[rows[:, None], steps], self.q[rows]
        rng, choose = progress.request.rng.rows(rows), progress.request.choose
        if tail == "fresh":
            x, q = choose(torch.where(free[..., None], p, 1.0).log(), rng), p
        elif tail == "coupled":
            stays = rng.uniform(*x.shape[1:]) < torch.where(free, ratio(p, q, x.clamp(min=0)), 1.0)
            moved = (free & ~stays)[..., None]
            x, q = torch.where(stays, x, choose(torch.where(moved, residual(p, q), 0.0), rng)), p
        elif tail == "gumbel":
            x, q = (p.log() + self._gumbel(rows, before)).argmax(-1), p
        else:
            guess = free & self.guessed[rows[:, None], steps]
            x, q = torch.where(guess, choose(torch.where(guess[..., None], p, 1.0).log(), rng), x), torch.where(guess[..., None], p, q)
        self.guessed[rows[:, None], steps] = False
        self.ids[rows[:, None], steps] = torch.where(free, x, stands)
        shifted = (self.place + ahead[:, None]).clamp(max=len(self.place) - 1)
        self.q[rows] = q.gather(1, shifted[..., None, None].expand(-1, -1, *q.shape[2:]))
