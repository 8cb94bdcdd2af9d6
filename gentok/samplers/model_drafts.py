"""Drafts of a smaller causal generator of the same tokens, in the same order (Leviathan et al., arXiv 2211.17192;
Chen et al., 2302.01318).

It reads what is accepted, and draws the tree level by level from its own distributions, filtered and guided as the large
model's are; siblings with or without replacement, or the most probable ids and one draw of the others. It keeps a cache
of its own: of what it guessed, what was refused is simply overwritten.

With `own` drafts the main chain is what the large model predicted itself (own_drafts.py), and the smaller one draws
the siblings and what is behind them: the large model's own drafts were made before the last step was known, the
smaller one's know it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gentok.generators.base import Causal, capabilities
from gentok.samplers.draft_tree import DraftTree
from gentok.samplers.drafter import Drafter, Progress, one_hot
from gentok.samplers.guided import GuidedCausal, guided
from gentok.samplers.row_trees import RowTrees
from gentok.samplers.verification import Draft, Verdict
from gentok.types import ABSENT, UNKNOWN

__all__ = ["ModelDrafts"]


class ModelDrafts(Drafter):
    """Drafts of a causal generator.

    Args:
        progress: the batch.
        tree: the shape of its drafts; RowTrees are those of a subclass, which makes new ones for every call.
        model: a Causal generator.
        filter: logits [..., V] -> those of the distribution that ids are drawn from.
        own: drafts of the main chain, with the same tree; None: they are the smaller model's too.
        siblings: how the drafts of one step are drawn, of optimal_acceptance.SIBLINGS.
        kept: bool [K, V], the ids that drafts may be, of every level (vocab_trim.py); None: all.

    Raises:
        ValueError: the model's tokens, order or condition are not those of the model that is sampled.
    """

    def __init__(
        self, progress: Progress, tree: DraftTree | RowTrees, model: Any, filter: Any, own: Drafter | None = None,
        siblings: str = "without_replacement", kept: Tensor | None = None,
    ):  # fmt: skip
        super().__init__(progress, tree)
        target = progress.request.model
        if isinstance(model, Causal):
            model = model.arranged(progress.request.tokens)
        _check(model, target)
        if isinstance(model, nn.Module):
            model.to(progress.ids.device)
        if isinstance(target, GuidedCausal) and not isinstance(model, GuidedCausal):
            model = guided(model, target.scale, target.schedule)
        self.model, self.filter, self.own, self.siblings = model, filter, own, siblings
        self.cache = model.init_cache(progress.request.condition, len(progress.ids), progress.layout.steps + tree.contexts)
        self.kept = None if kept is None else kept.to(progress.ids.device)
        if kept is not None:
            model.keep_ids(self.cache, kept)
        self.fed = torch.zeros_like(progress.first)
        self.place = tree.positions(progress.ids.device)[0].clamp(min=0)
        self.levels = [(tree.positions(torch.device("cpu"))[0] == j).nonzero()[:, 0] for j in range(tree.window)]

    def propose(self, rows: Tensor) -> Draft:
        progress, tree, request = self.progress, self.tree, self.progress.request
        steps = progress.window(rows, tree.window)
        held = progress.ids[rows[:, None], steps]
        draft = Draft(held[:, self.place], progress.ids.new_zeros(len(rows), len(tree), held.shape[2], progress.vocab, dtype=torch.float64))
        own = None if self.own is None else self.own.propose(rows)
        for nodes in self.levels:
            logits = self.logits(rows, draft.ids, tree.parents(rows.device)[:, nodes])  # [b, level, G, V]
            here = (held[:, self.place[nodes]] == UNKNOWN)[..., None]
            p = self.filter(logits.masked_fill(~here, 0.0)).softmax(-1)
            for i, node in enumerate(nodes.tolist()):
                if own is not None and node in tree.main:
                    draft.ids[:, node] = torch.where(here[:, i, :, 0], own.ids[:, node], held[:, self.place[node]])
                    draft.q[:, node] = own.q[:, node]
                    continue
                count = int((tree.children[tree.parent[node]] >= 0).sum())
                q = self._of_sibling(p[:, i], draft.ids[:, node - tree.rank[node] : node], count)
                new = request.choose(torch.where(here[:, i], q, 1.0).log(), request.rng.rows(rows))
                draft.ids[:, node], draft.q[:, node] = torch.where(here[:, i, :, 0], new, held[:, self.place[node]]), q
        return draft

    def _of_sibling(self, q: Tensor, before: Tensor, count: int) -> Tensor:
        """The distribution that the next of `count` siblings is drawn from: q float64 [b, G, V], those before it int64 [b, n, G]."""
        for ids in before.unbind(1) if self.siblings != "with_replacement" else ():
            q = q.scatter(-1, ids[..., None].clamp(min=0), 0.0)
        if self.siblings == "greedy" and before.shape[1] < count - 1:
            q = torch.where(q.sum(-1, keepdim=True) > 0, one_hot(q.argmax(-1), q.shape[-1]), 0.0)
        mass = q.sum(-1, keepdim=True)
        if not before.shape[1]:
            return q / mass
        return torch.where(mass > 0, q / mass, one_hot(before[:, -1], q.shape[-1]))  # nothing left: the same, rejected again

    def logits(self, rows: Tensor, drafts: Tensor, nodes: Tensor) -> Tensor:
        """What some nodes predict, int64 [1 or b, n] -> [b, n, G, V]: feeds all that is accepted and not fed yet, and the tree down to
        these nodes."""
        progress, layout, device = self.progress, self.progress.layout, rows.device
        batch, count = len(progress.ids), int(nodes.max()) + 1
        first = progress.first.masked_fill(progress.first == layout.steps, 0)
        widest = int((first - self.fed).clamp(min=0).max())
        at = (first - widest).clamp(min=0)
        lead, number = first - at, torch.arange(widest + count, device=device)
        fed = torch.cat((self.model.begin.to(progress.ids).expand(batch, 1, -1), progress.ids[:, :-1]), 1)
        ids = fed[torch.arange(batch, device=device)[:, None], (at[:, None] + number).clamp(max=layout.steps - 1)]
        ids = ids.masked_fill((number > lead[:, None])[..., None] | (ids < 0), ABSENT)
        place = lead[:, None] + torch.arange(count, device=device)
        if count > 1:
            own = drafts[:, 1:count]
            ids[rows[:, None], place[rows, 1:]] = own.masked_fill(own >= self.model.spec.vocab, ABSENT)  # an end is not fed
        parents = None
        if not self.tree.chain:
            parents = (number - 1).repeat(batch, 1)
            parent = torch.zeros_like(place[:, 1:])
            parent[rows] = self.tree.parents(device)[:, 1:count].expand(len(rows), -1)
            parents.scatter_(1, place[:, 1:], place.gather(1, parent))
        logits = self.model.logits(ids, self.cache, at, parents)
        progress.request.network_calls.add(self.model, ids.shape[0] * ids.shape[1], "draft")
        lead_path = torch.arange(widest + 1, device=device)
        self.model.commit(self.cache, at, torch.where(lead_path <= lead[:, None], lead_path, -1))
        self.fed = torch.maximum(self.fed, first + 1)
        logits = logits[rows[:, None], lead[rows, None] + nodes]
        if self.kept is None:
            return logits
        after = self.tree.positions(device).expand(len(rows), -1).gather(1, nodes.expand(len(rows), -1)) + 1
        level = layout.level.to(device)[(progress.first[rows, None] + after).clamp(max=layout.steps - 1)]  # [b, n, G]
        trimmed = logits.masked_fill(~self.kept[level.clamp(min=0)], -torch.inf)
        return torch.where(trimmed.isfinite().any(-1, keepdim=True), trimmed, logits)

    def observe(self, rows: Tensor, p: Tensor, verdict: Verdict, ahead: Tensor) -> None:
        """The smaller model learns nothing: what is accepted is fed to it when it is needed."""
        if self.own is not None:
            self.own.observe(rows, p, verdict, ahead)


def _check(model: Any, target: Any) -> None:
    if not isinstance(model, Causal):
        able = ", ".join(capabilities(model)) or "without capability"
        raise ValueError(f"drafts need a Causal generator, this {type(model).__name__} is {able}")
    if not model.spec.same_codes(target.spec):
        raise ValueError(f"the drafts' generator models {model.spec.describe()}; the one that is sampled {target.spec.describe()}")
    if model.layout.step.shape != target.layout.step.shape or not torch.equal(model.layout.step.cpu(), target.layout.step.cpu()):
        raise ValueError(f"the drafts' generator has the {model.layout.name} order, the one that is sampled {target.layout.name}")
    if model.ends != target.ends or model.condition_spec.parts != target.condition_spec.parts:
        raise ValueError("the drafts' generator has another condition, or other ends of items, than the one that is sampled")
