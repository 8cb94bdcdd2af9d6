"""Speculative Jacobi decoding: a causal generator drafts for itself, with what the last call predicted for the
steps behind.

Teng et al., "Accelerating Auto-regressive Text-to-Image Generation with Training-free Speculative Jacobi Decoding",
arXiv 2410.01699. A call on a window of W drafts gives p_i = p(. | the accepted steps, drafts before i) for every step i of
it. Drafts are accepted from left to right by the rule of speculative sampling against the distributions q_i that they were
drawn from; behind the first that is rejected, the p_i of this call are the q_i of the next. New steps enter with a guess,
whose q is 1 at the guess. What becomes of the drafts behind the rejected step:

    fresh      drawn anew from p_i                                                      (the paper)
    kept       they stay, and so do their q_i; guesses are drawn anew from p_i
    coupled    x stays with probability min(1, p_i(x) / q_i(x)), else a draw of norm((p_i - q_i)+): a maximal coupling of q_i and p_i
               (speculative coupled decoding, MC: arXiv 2510.24211)
    gumbel     argmax(log p_i + g_i), with Gumbel numbers g_i that belong to the step   (the same, GS)

All are exact: given the steps before it and all that was drawn for them, at any time, step i's draft has the
distribution q_i. It was never looked at before the steps in front of it were accepted. `p_i` is to be stored as q_i of
coupled drafts whether they moved or not; of those that are kept without coupling, the old q_i.

`verify` says by which rule drafts are accepted (verification.py). Its rule `block` looks at later drafts before it stops,
so that only tail=fresh goes with it. With verify=match and tail=gumbel every step is argmax(log p + g) with the
step's own g: ids do not depend on window, guesses or branches, which only say how many calls it takes. With a watermark
(gentok/watermarks/exp.py) g is that of the key, and the ids are those that autoregressive sampling gives with it.

`branches` > 1 puts siblings beside the drafts of the first `depth` steps, drawn without replacement from the same
q_i, all with the drafts of the later steps behind them (the tree of SJD-PAC, with recursive rejection in the place
of its rule, which is not exact). It is for orders of one slot. Where all siblings are rejected, the q_i behind them are the
mean of what was predicted behind each.

A call of many steps is more work than one of a single step. It pays where that costs little more, as on a GPU at a
small batch: `python -m gentok.benchmark only=speculation` says what it costs on a machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from gentok.samplers.base import setting
from gentok.samplers.draft_tree import DraftTree
from gentok.samplers.drafter import Progress
from gentok.samplers.guesses import GUESSES
from gentok.samplers.own_drafts import TAILS, OwnDrafts
from gentok.samplers.recursive_rejection import RecursiveRejection
from gentok.samplers.sibling_rule import SiblingRule
from gentok.samplers.speculative_decoding import SpeculativeDecoding
from gentok.settings import PositiveInt

__all__ = ["Jacobi"]

@dataclass(frozen=True)
class Jacobi(SpeculativeDecoding, id="sampler/jacobi"):
    """Speculative Jacobi decoding.

    Args:
        window: steps that a call scores, W >= 1; 1: one step per call.
        tail: what becomes of the drafts behind a rejected step: coupled, fresh, gumbel or kept.
        guess: what a new step starts with: left, above (in the grid; left of it in the first row) or random.
        verify: the rule by which drafts are accepted: standard, block (with tail=fresh) or match (with tail=gumbel).
        branches: siblings in the first steps of a window; 1: a chain.
        depth: how many steps have siblings.

    Raises:
        ValueError: an unknown word, or settings that do not go together.
    """

    window: PositiveInt = 16
    tail: str = setting("coupled", choices=TAILS)
    guess: str = setting("left", choices=GUESSES)
    verify: str = setting("standard", choices=("standard", "block", "match"))
    branches: PositiveInt = 1
    depth: PositiveInt = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        needed = {"block": "fresh", "match": "gumbel"}.get(self.verify, self.tail)  # block looks at later drafts, match at Gumbel numbers
        if self.tail != needed:
            raise ValueError(f"verify={self.verify} goes with tail={needed} alone; got tail={self.tail}")
        if self.verify == "block" and self.branches > 1:
            raise ValueError(f"verify=block is for a chain: set branches=1; got branches={self.branches}")
        object.__setattr__(self, "marks", self.verify == "match")

    @property
    def rule(self) -> str | SiblingRule:
        return RecursiveRejection() if self.verify == "standard" else self.verify

    def drafter(self, progress: Progress) -> OwnDrafts:
        self.check_slots(progress.layout, False, self.branches > 1, self.verify == "block")
        tree = DraftTree(min(self.window, progress.layout.steps), self.branches, self.depth)
        return OwnDrafts(progress, tree, self.tail, self.guess, self.verify == "match")
