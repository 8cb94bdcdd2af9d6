"""Which of several drafted paths a block verification looks at: multi-path block verification (Thomas and Pal, arXiv 2602.16961), which
selects a path and then verifies it alone, as a draw of the distribution that the selection gives to paths.

The paths are independent draws of one q. Position by position, one of the paths that still agree with what was selected wins, and those
with another id are out. With n of them left and w the running minimum of block verification (block_verification.py), the winner is that
of the optimal rule for n independent drafts, with w p in the place of p (optimal_siblings.py): no other choice has a larger sum of
min(w p, its distribution). That number n is known when the position is drawn, the ids behind are still draws of q given it, and the
distribution of the winner takes q's place in the verification. So whatever block verification says of one path holds here.

One path is block verification itself. Of two positions it never accepts less than that, for any p and q: the winner's distribution lies
between q and w p for every id, and moving a part of q to where w p is larger adds a whole accepted draft of it at this position, and
takes a part of a draft away at the next one at most.

Deviations: the paper ranks all paths, by an order of the ids behind each prefix, and takes the largest; where p and q are alike that
accepts less than one path does, since the largest path is unlike p.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.samplers.draft_tree import DraftTree
from gentok.samplers.optimal_siblings import winner
from gentok.samplers.sibling_rule import in_turn
from gentok.samplers.speculation import ratio
from gentok.types import RowRNG

__all__ = ["Path", "select_path"]


@dataclass
class Path:
    """A path of drafts, the root first.

    Attributes:
        nodes: int64 [b, W + 1].
        p: float64 [b, W, 1, V], what each node but the last predicts.
        ids: int64 [b, W + 1, 1], the drafts; the root's is not looked at.
        q: float64 [b, W + 1, 1, V], the distribution of each, given those before it.
        drawn: bool [b, W + 1, 1], the nodes that are to be drawn.
    """

    nodes: Tensor
    p: Tensor
    ids: Tensor
    q: Tensor
    drawn: Tensor


def select_path(tree: DraftTree, p: Tensor, ids: Tensor, q: Tensor, drawn: Tensor, rng: RowRNG) -> Path:
    """Selects one of the paths of a tree whose root alone has siblings, for steps of one slot.

    Args:
        tree: its `branches` paths were drawn independently.
        p: float64 [b, contexts, 1, V], what each context predicts.
        ids: int64 [b, M, 1], the drafts.
        q: float64 [b, M, 1, V], their distributions.
        drawn: bool [b, M, 1], the nodes that are to be drawn.
        rng: of these rows. A number per path and position is drawn, none of a chain.
    """
    rows = torch.arange(len(p), device=p.device)
    if tree.chain:
        return Path(torch.arange(len(tree), device=p.device).expand(len(p), -1), p, ids, q, drawn)
    paths = _paths(tree).to(p.device)  # [K, W + 1]
    left = torch.ones(len(p), len(paths), dtype=torch.bool, device=p.device)
    weight, wins = p.new_ones(len(p), 1), [q[:, 0, 0]]
    for j in range(1, tree.window + 1):
        one, drafts = paths[left.to(torch.int64).argmax(1)], ids[:, paths[:, j], 0].clamp(min=0)  # a path that is left, all ids [b, K]
        here = drawn[rows, one[:, j]]
        sure = torch.zeros_like(p[:, 0, 0]).scatter(1, ids[rows, one[:, j]].clamp(min=0), 1.0)
        wanted = torch.where(here, p[rows, one[:, j - 1], 0], sure)
        share, other = winner(weight * wanted, drafts, torch.where(here, q[rows, one[:, j], 0], sure), left)
        last = left & (left.cumsum(1) == left.sum(1, keepdim=True))  # it wins where no other one does, also by rounding
        taken = rng.uniform(len(paths)) < torch.where(last, 1.0, in_turn(share) * left)
        won = drafts[rows, taken.to(torch.int64).argmax(1)]
        weight = (weight * ratio(wanted, other, won)[:, None]).nan_to_num(0.0, posinf=1.0).clamp(max=1.0)  # not finite: rounding
        left &= drafts == won[:, None]
        wins.append(other)
    nodes = paths[left.to(torch.int64).argmax(1)]
    at = rows[:, None], nodes
    return Path(nodes, p[rows[:, None], nodes[:, :-1]], ids[at], torch.stack(wins, 1)[:, :, None], drawn[at])


def _paths(tree: DraftTree) -> Tensor:
    """int64 [K, W + 1]: the nodes of each path, the root first."""
    out = [[0, int(node)] for node in tree.children[0]]
    for path in out:
        while tree.position[path[-1]] < tree.window - 1:
            path.append(int(tree.children[path[-1], 0]))
    return torch.tensor(out)
