"""Which drafts are accepted: the rules of speculative decoding, for trees of drafts (draft_tree.py) and steps of
several slots.

A node's draft was drawn from q, its parent predicts p for the same step. All rules leave samples of p, whatever q
is, as long as q is the distribution that the draft was drawn from, given all that came before it and its earlier
siblings:

    standard   siblings one after the other: x is accepted with probability min(1, r(x) / q(x)), where r is p at the
               first sibling and norm((r - q)+) behind each that was rejected; where all were rejected, the step is drawn from the
               last r. Leviathan et al., arXiv 2211.17192 (one sibling); recursive rejection without replacement,
               Jeon et al., arXiv 2402.14160 (several).
    block      of a chain: the accepted length is chosen by the whole chain, Sun et al., arXiv 2403.10444,
               algorithm 2. It accepts at least as much as the standard rule, and looks at later drafts before it
               stops: what is behind the stop cannot be used again.
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

from gentok.samplers.draft_tree import DraftTree
from gentok.samplers.draws import Choice
from gentok.samplers.speculation import ratio, residual
from gentok.types import RowRNG

__all__ = ["RULES", "Draft", "Verdict", "verify"]

RULES = ("standard", "block", "match")


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
    rule: str, tree: DraftTree, p: Tensor, draft: Draft, here: Tensor, size: Tensor, closed: Tensor, rng: RowRNG, choose: Choice,
    noise: Tensor | None = None, chance: Callable[[Tensor, Tensor, Tensor], Tensor] = ratio,
) -> Verdict:  # fmt: skip
    """Verifies drafts.

    Args:
        rule: one of RULES.
        tree: of the draft.
        p: float64 [b, contexts, G, V], what each context predicts for the next step.
        draft: what is verified.
        here: bool [b, W, G], the cells that are to be drawn; the draft holds what the others are, and they are accepted.
        size: int64 [b], how many positions there are.
        closed: bool [b, M], nodes behind which nothing is accepted: those that were not fed as they are (the end of an item).
        rng: of these rows.
        choose: how ids are drawn.
        noise: float64 [b, W, G, V], the Gumbel numbers of the rule `match`.
        chance: of the rule `standard`: with which chance a draft is accepted, by p, q and its id; only `ratio` is exact.

    Returns:
        Verdict.
    """
    place = torch.tensor([max(j, 0) for j in tree.position], device=p.device)
    drawn = here[:, place]  # [b, M, G]
    if rule == "block":
        good, left = _block(tree, p, draft, drawn, size, rng), None
    elif rule == "match":
        at = torch.tensor([j + 1 for j in tree.position[: tree.contexts]], device=p.device)
        wanted = (p.log() + noise[:, at]).argmax(-1)  # [b, C, G]
        parent = torch.tensor([max(i, 0) for i in tree.parent], device=p.device)
        good, left = (wanted[:, parent] == draft.ids) | ~drawn, None
    else:
        good, left = _standard(tree, p, draft, drawn, place < size[:, None], rng, chance)
    accepted = good.all(2)
    accepted[:, 1:] &= place[1:] < size[:, None]
    path, stop, depth = _walk(tree, accepted, closed)

    rows = torch.arange(len(p), device=p.device)
    last = depth.clamp(max=here.shape[1] - 1)
    wants = here[rows, last] & (depth < size)[:, None]
    first = tree.children.to(p.device)[stop, 0]  # of steps of several slots: the draft whose accepted slots are kept
    held = good[rows, first.clamp(min=0)] & (first >= 0)[:, None] | ~wants
    ended = (depth > 0) & closed[rows, path[rows, (depth - 1).clamp(min=0)].clamp(min=0)]
    open_ = (depth < size) & ~ended
    if rule == "match":
        fresh = wanted[rows, stop]
    elif rule == "block":
        fresh = choose(_block_rest(tree, p, draft, drawn, stop), rng)
    else:
        fresh = choose(left[rows, stop].masked_fill(~wants[..., None], 0.0), rng)
    ids = draft.ids.gather(1, path.clamp(min=0)[..., None].expand(-1, -1, draft.ids.shape[2]))
    main = draft.ids[:, tree.main][rows, last]  # of a step without a cell to draw, what the step holds
    final = torch.where(~wants if rule == "block" else held, main, fresh)
    ids[rows, last] = torch.where(open_[:, None], final, ids[rows, last])
    return Verdict(ids, depth + open_, path, stop)


def _standard(
    tree: DraftTree, p: Tensor, draft: Draft, drawn: Tensor, there: Tensor, rng: RowRNG, chance: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Whether each node is accepted where its parent is and its earlier siblings are not, bool [b, M, G], and the logits of the
    step where all children of a context are rejected, float64 [b, C, G, V]. drawn bool [b, M, G], there bool [b, M]: the others
    are accepted, or rejected, for sure."""
    children, chances, left = tree.children.to(p.device), torch.zeros_like(draft.ids, dtype=torch.float64), p
    for rank in range(children.shape[1]):
        context = (children[:, rank] >= 0).nonzero()[:, 0]
        node = children[context, rank]
        rest, q = left[:, context], draft.q[:, node]
        chances[:, node] = chance(rest, q, draft.ids[:, node].clamp(min=0))
        left = left.index_copy(1, context, residual(rest, q).softmax(-1))
    chances = torch.where(drawn, chances, 1.0) * there[..., None]
    return rng.uniform(*chances.shape[1:]) < chances, left.log()


def _walk(tree: DraftTree, accepted: Tensor, closed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From the root to the first child that is accepted, and so on: (path [b, W], the last context that it reaches [b], its length [b])."""
    batch, rows = len(accepted), torch.arange(len(accepted), device=accepted.device)
    if tree.chain:
        node = torch.arange(1, tree.window + 1, device=accepted.device)
        open_ = torch.cat((torch.ones_like(closed[:, :1]), ~closed[:, 1:-1]), 1)  # the draft before is no end
        there = (accepted[:, 1:] & open_).to(torch.int64).cumprod(1)
        depth = there.sum(1)
        ended = closed[rows, depth] & (depth > 0)
        return torch.where(there > 0, node, -1), (depth - ended.to(torch.int64)).clamp(max=tree.contexts - 1), depth
    children, path = tree.children.to(accepted.device), torch.full((batch, tree.window), -1, device=accepted.device)
    node = torch.zeros(batch, dtype=torch.int64, device=accepted.device)
    going, stop, depth = torch.ones_like(node, dtype=torch.bool), node, node
    for j in range(tree.window):
        options = children[node]  # [b, K]
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


def _weights(p: Tensor, draft: Draft, drawn: Tensor, tree: DraftTree) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a chain of one slot: p and q [b, W, V] (equal where nothing is drawn), the ratios' running minimum w [b, W + 1] and (w p - q)+."""
    p, q, x, drawn = p[:, :, 0], draft.q[:, 1:, 0], draft.ids[:, 1:, :1].clamp(min=0), drawn[:, 1:]
    sure = torch.zeros_like(q).scatter(2, x, 1.0)
    p, q = torch.where(drawn, p, sure), torch.where(drawn, q, sure)
    ratios, w = ratio(p, q, x[..., 0]), [p.new_ones(len(p))]
    for j in range(p.shape[1]):
        w.append((w[-1] * ratios[:, j]).clamp(max=1.0))
    weight = torch.stack(w, 1)
    return p, q, weight, (weight[:, :-1, None] * p - q).clamp(min=0)


def _block(tree: DraftTree, p: Tensor, draft: Draft, drawn: Tensor, size: Tensor, rng: RowRNG) -> Tensor:
    """The nodes of the accepted length, bool [b, M, 1]."""
    _, _, w, over = _weights(p, draft, drawn, tree)
    rest, window = over.sum(2), p.shape[1]
    place = torch.arange(window, device=p.device)
    chance = (rest / (rest + 1 - w[:, :-1])).nan_to_num(0.0)
    chance = torch.cat((chance, w[:, -1:]), 1)[:, 1:]  # of the lengths 1 .. W
    length = place + 1
    chance = torch.where(length == size[:, None], w[:, 1:], chance) * (length <= size[:, None])
    taken = rng.uniform(window) < chance
    longest = (taken * length).amax(1)
    return torch.cat((torch.ones_like(taken[:, :1]), place < longest[:, None]), 1)[..., None]


def _block_rest(tree: DraftTree, p: Tensor, draft: Draft, drawn: Tensor, stop: Tensor) -> Tensor:
    """Logits [b, 1, V] of the step behind the accepted length."""
    rows = torch.arange(len(p), device=p.device)
    p, _, _, over = _weights(p, draft, drawn, tree)
    rest = over[rows, stop]
    return torch.where(rest.sum(-1, keepdim=True) > 0, rest, p[rows, stop]).log()[:, None]
