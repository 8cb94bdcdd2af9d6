"""Which drafts are accepted: the rules of speculative decoding, for trees of drafts (draft_tree.py) and steps of
several slots.

A node's draft was drawn from q, its parent predicts p for the same step. All rules leave samples of p, whatever q
is, as long as q is the distribution that the draft was drawn from, given all that came before it and its earlier
siblings, and siblings are drawn as the rule asks for:

    standard   recursive rejection, siblings of any kind (recursive_rejection.py)
    k_seq      independent siblings (k_seq.py)
    optimal    the optimum for independent siblings (optimal_siblings.py)
    greedy     the optimum for the most probable ids and one draw of the others (greedy_siblings.py)
    block      of a chain: the accepted length is chosen by the whole chain (block_verification.py), of independent
               chains behind the root by one that is selected (block_paths.py)
    match      the step is argmax(log p + g) for standard Gumbel numbers g that belong to its place, and a draft
               is accepted where it is the same. q does not matter. The ids are those that one step at a time draws with
               these g, whatever the drafts are.

The slots of a step are independent given the steps before: each is accepted or rejected by itself, and the step is
accepted where all are; else only those that were rejected are drawn again. The last accepted step is followed by a
fresh draw where there is something left to draw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.samplers.block_paths import select_path
from gentok.samplers.block_verification import block_length, block_rest
from gentok.samplers.draft_tree import DraftTree
from gentok.samplers.draws import Choice
from gentok.samplers.greedy_siblings import GreedySiblings
from gentok.samplers.k_seq import KSeq
from gentok.samplers.optimal_siblings import OptimalSiblings
from gentok.samplers.recursive_rejection import RecursiveRejection
from gentok.samplers.row_trees import RowTrees
from gentok.samplers.sibling_rule import SiblingRule
from gentok.types import RowRNG

__all__ = ["SIBLING_RULES", "Draft", "Verdict", "verify"]

SIBLING_RULES: dict[str, type[SiblingRule]] = {
    "standard": RecursiveRejection, "k_seq": KSeq, "optimal": OptimalSiblings, "greedy": GreedySiblings,
}  # fmt: skip
"""The rules that look at one step's siblings alone."""


@dataclass
class Draft:
    """A tree of drafts of b rows.

    Attributes:
        ids: int64 [b, M, G], of the nodes; the root's are not looked at.
        q: float64 [b, M, G, V], the distribution that each was drawn from, given its earlier siblings.
    """

    ids: Tensor
    q: Tensor


@dataclass
class Verdict:
    """What is accepted of a draft.

    Attributes:
        ids: int64 [b, W, G], of the positions 0 .. count - 1.
        count: int64 [b], how many positions have ids now, the one drawn after a rejection included.
        path: int64 [b, W], the accepted nodes, -1 behind them.
        stop: int64 [b], the context behind which nothing is accepted: the last accepted node that was fed.
    """

    ids: Tensor
    count: Tensor
    path: Tensor
    stop: Tensor


def verify(
    rule: str | SiblingRule, tree: DraftTree | RowTrees, p: Tensor, draft: Draft, here: Tensor, size: Tensor, closed: Tensor, rng: RowRNG,
    choose: Choice, noise: Tensor | None = None,
) -> Verdict:  # fmt: skip
    """Verifies drafts.

    Args:
        rule: block, match, or a rule for siblings.
        tree: of the draft.
        p: float64 [b, contexts, G, V], what each context predicts for the next step.
        draft: what is verified.
        here: bool [b, W, G], the cells that are to be drawn; the draft holds what the others are, and they are accepted.
        size: int64 [b], how many positions there are.
        closed: bool [b, M], nodes behind which nothing is accepted: those that were not fed as they are (the end of an item).
        rng: of these rows.
        choose: how ids are drawn.
        noise: float64 [b, W, G, V], the Gumbel numbers of the rule `match`.

    Returns:
        Verdict.
    """
    rows = torch.arange(len(p), device=p.device)
    place = tree.positions(p.device).clamp(min=0)  # [1 or b, M]
    drawn = here[rows[:, None], place]  # [b, M, G]
    if rule == "block":
        assert isinstance(tree, DraftTree)  # trees that grow have siblings everywhere
        block = select_path(tree, p, draft.ids, draft.q, drawn, rng)
        length = block_length(block.p, block.ids, block.q, block.drawn, size, rng)
        good = torch.zeros_like(drawn).scatter(1, block.nodes[..., None], length)
    elif rule == "match":
        at = tree.positions(p.device)[:, : tree.contexts] + 1
        wanted = (p.log() + noise[rows[:, None], at]).argmax(-1)  # [b, C, G]
        good = (wanted[rows[:, None], tree.parents(p.device).clamp(min=0)] == draft.ids) | ~drawn
    else:
        good, left = _by_siblings(rule, tree, p, draft, drawn, place < size[:, None], rng)
    accepted = good.all(2)
    accepted[:, 1:] &= place[:, 1:] < size[:, None]
    path, stop, depth = _walk(tree, accepted, closed)

    last = depth.clamp(max=here.shape[1] - 1)
    wants = here[rows, last] & (depth < size)[:, None]
    first = tree.children_of(stop)[:, 0]  # of steps of several slots: the draft whose accepted slots are kept
    held = good[rows, first.clamp(min=0)] & (first >= 0)[:, None] | ~wants
    ended = (depth > 0) & closed[rows, path[rows, (depth - 1).clamp(min=0)].clamp(min=0)]
    open_ = (depth < size) & ~ended
    if rule == "match":
        fresh = wanted[rows, stop]
    elif rule == "block":
        position = tree.positions(p.device)[0, stop] + 1
        fresh = choose(block_rest(block.p, block.ids, block.q, block.drawn, position), rng)
    else:
        fresh = choose(left(stop).log().masked_fill(~wants[..., None], 0.0), rng)
    ids = draft.ids.gather(1, path.clamp(min=0)[..., None].expand(-1, -1, draft.ids.shape[2]))
    main = draft.ids[rows, tree.first_drafts(p.device).expand(len(p), -1)[rows, last]]  # where no cell is drawn, what the step holds
    final = torch.where(~wants if rule == "block" else held, main, fresh)
    ids[rows, last] = torch.where(open_[:, None], final, ids[rows, last])
    return Verdict(ids, depth + open_, path, stop)


def _by_siblings(
    rule: SiblingRule, tree: DraftTree | RowTrees, p: Tensor, draft: Draft, drawn: Tensor, there: Tensor, rng: RowRNG
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Whether each node is accepted where its parent is and its earlier siblings are not, bool [b, M, G]; and what gives the distribution,
    up to a factor, of the step where all children of a row's context int64 [b] are rejected: float64 [b, G, V]. drawn bool [b, M, G],
    there bool [b, M]: the others are accepted, or rejected, for sure."""
    rows, nodes_at_most = torch.arange(len(p), device=p.device)[:, None, None], draft.ids.shape[1]
    chances = torch.zeros_like(torch.cat((draft.ids, draft.ids[:, :1]), 1), dtype=torch.float64)
    rests: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def siblings(nodes: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """ids int64 [..., G, K] and distributions float64 [..., G, K, V] of nodes int64 [..., K] of some rows; a sibling that a row lacks
        has no distribution, and changes nothing."""
        ids, q = draft.ids[row, nodes.clamp(min=0)].clamp(min=0), draft.q[row, nodes.clamp(min=0)]
        if bool((nodes < 0).any()):
            q = q.masked_fill((nodes < 0)[..., None, None], 0.0)
        return ids.transpose(-1, -2), q.transpose(-2, -3)

    for contexts, nodes in tree.families(p.device):
        chance, rest = rule.accepts(p[:, contexts], *siblings(nodes.expand(len(p), -1, -1), rows))
        chances[rows, nodes.masked_fill(nodes < 0, nodes_at_most)] = chance.transpose(2, 3)
        rests.append((contexts, nodes.expand(len(p), -1, -1), rest))
    chances = chances[:, :-1]
    chances = torch.where(drawn, chances, 1.0) * there[..., None]

    def left(stop: Tensor) -> Tensor:
        out = p[rows[:, 0, 0], stop]
        for contexts, nodes, rest in rests:
            row, place = (stop[:, None] == contexts).nonzero(as_tuple=True)
            own = out[row]
            here = rule.chances(own, *siblings(nodes[row, place], row[:, None]))[1] if rest is None else rest[row, place]
            out[row] = torch.where(here.sum(-1, keepdim=True) > 0, here, own)
        return out

    return rng.uniform(*chances.shape[1:]) < chances, left


def _walk(tree: DraftTree | RowTrees, accepted: Tensor, closed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From the root to the first child that is accepted, and so on: (path [b, W], the last context that it reaches [b], its length [b])."""
    batch, rows = len(accepted), torch.arange(len(accepted), device=accepted.device)
    if tree.chain:
        node = torch.arange(1, tree.window + 1, device=accepted.device)
        open_ = torch.cat((torch.ones_like(closed[:, :1]), ~closed[:, 1:-1]), 1)  # the draft before is no end
        there = (accepted[:, 1:] & open_).to(torch.int64).cumprod(1)
        depth = there.sum(1)
        ended = closed[rows, depth] & (depth > 0)
        return torch.where(there > 0, node, -1), (depth - ended.to(torch.int64)).clamp(max=tree.contexts - 1), depth
    path = torch.full((batch, tree.window), -1, device=accepted.device)
    node = torch.zeros(batch, dtype=torch.int64, device=accepted.device)
    going, stop, depth = torch.ones_like(node, dtype=torch.bool), node, node
    for j in range(tree.window):
        options = tree.children_of(node)  # [b, K]
        able = (options >= 0) & accepted.gather(1, options.clamp(min=0)) & going[:, None]
        moved = able.any(1)
        node = torch.where(moved, options[rows, able.to(torch.int64).argmax(1)], node)
        path[:, j] = torch.where(moved, node, path[:, j])
        depth = depth + moved
        fed = node < tree.contexts
        going = moved & fed & ~closed[rows, node]
        stop = torch.where(going, node, stop)
        node = torch.where(fed, node, 0)
    return path, stop, depth
