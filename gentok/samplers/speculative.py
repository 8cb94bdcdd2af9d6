"""Speculative decoding with drafts of something smaller: another generator, a table of what followed, or the cells
nearby; exact.

A call of the model scores a whole tree of drafts (speculative_decoding.py). The drafts:

    model    a smaller causal generator of the same tokens (`ckpt`), sampled level by level; generator=aligned_drafter is trained for it
    exit     the first blocks of the model itself, of one that was trained for it (generator=early_exits)
    table    what was most probable behind the same id before, in this item (Token Recycling)
    above    a repetition of the row above
    left     a repetition of the position before

Siblings are drafts of the same step. By which rule one of them is accepted, and how they are to be drawn for it:

    verify     siblings
    standard   without_replacement, with_replacement or greedy; guesses of a table too      recursive rejection
    k_seq      with_replacement                                                             SpecTr
    optimal    with_replacement                                                             no rule accepts more of such drafts
    greedy     greedy                                                                       no rule accepts more of such drafts
    block      none, a chain; or with_replacement, whole paths        block verification: looks at later drafts before it stops

Greedy siblings are the most probable ids and one draw of the others: good where the drafts' generator is sure. Where it is not, as on
image tokens, independent drafts under `optimal` are accepted more often (docs/results/drafts.md; optimal_acceptance.py says how often
drafts can be accepted at best). Several paths under `block` gave the most steps per call there (block_paths.py).

Where drafts are refused, nothing is lost: a call gives one step at least. How many it gives depends on how near the
drafts' distribution is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from gentok.samplers.base import setting
from gentok.samplers.beam_drafts import BeamDrafts
from gentok.samplers.draft_tree import DraftTree
from gentok.samplers.drafter import Drafter, Progress
from gentok.samplers.dynamic_drafts import DynamicDrafts
from gentok.samplers.model_drafts import ModelDrafts
from gentok.samplers.optimal_acceptance import SIBLINGS
from gentok.samplers.own_drafts import OwnDrafts
from gentok.samplers.row_trees import RowTrees
from gentok.samplers.sibling_rule import SiblingRule
from gentok.samplers.speculative_decoding import SpeculativeDecoding
from gentok.samplers.table_drafts import Neighbours, TokenTable
from gentok.samplers.verification import SIBLING_RULES
from gentok.samplers.vocab_trim import kept_ids, read_ids
from gentok.settings import PositiveFraction, PositiveInt

__all__ = ["Speculative"]


@dataclass(frozen=True)
class Speculative(SpeculativeDecoding, id="sampler/speculative"):
    """Drafts of something smaller, verified by the model.

    Args:
        draft: model, exit, table, above or left; None: model where there is a ckpt, exit where `exit` is set, else table, or left in
            orders of several slots.
        ckpt: of draft=model, the drafts' generator: a bundle folder or a training checkpoint; from Python also the generator itself.
        exit: of draft=exit: after how many blocks the model drafts for itself. What is said of draft=model below holds for it too.
        own: of draft=model: the main chain of drafts is the model's own (coupled, as in jacobi), and the drafts' generator makes the
            siblings, of which there should be some.
        window: steps that a call scores, W >= 1.
        branches: siblings in the first steps of a window, of model and table; 1: a chain. Of trees that grow, the most there may be; of
            tree=beam, the width of the beam; of verify=block, paths.
        depth: how many steps have siblings, in a fixed tree.
        tree: the shape of a generator's drafts: fixed, or grown in every row by what is probable, dynamic or layered (dynamic_drafts.py),
            or by a stochastic beam, beam (beam_drafts.py).
        nodes: drafts of a tree that grows; a beam has up to `branches` at every step but the last.
        threshold: of tree=layered, the chance of being reached that a draft needs.
        verify: the rule by which drafts are accepted: standard, k_seq, optimal, greedy, or block (chains, and paths that begin apart).
        siblings: how a generator's drafts of one step are drawn: without_replacement, with_replacement or greedy; None: as the rule asks.
        trim: the ids that a generator's drafts may be (vocab_trim.py): a list, one for every level, or a JSON file of that; None: all.

    Raises:
        ValueError: an unknown word, or settings that do not go together.
    """

    draft: str | None = setting(None, choices=(None, "model", "exit", "table", "above", "left"))
    ckpt: Any = None
    exit: PositiveInt | None = None
    own: bool = False
    window: PositiveInt = 8
    branches: PositiveInt = 1
    depth: PositiveInt = 1
    tree: str = setting("fixed", choices=("fixed", "dynamic", "layered", "beam"))
    nodes: PositiveInt = 16
    threshold: PositiveFraction = 0.05
    verify: str = setting("standard", choices=(*SIBLING_RULES, "block"))
    siblings: str | None = setting(None, choices=(None, *SIBLINGS))
    trim: Any = None
    _generator: ClassVar[Any] = None  # of ckpt, once it is loaded

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draft == "model" and self.ckpt is None:
            raise ValueError("draft=model needs the drafts' generator: set sampler.ckpt to its bundle folder or checkpoint")
        if self.draft not in ("model", None) and self.ckpt is not None:
            raise ValueError(f"ckpt is for draft=model; draft={self.draft} has no generator: leave one of them out")
        if self.draft == "exit" and self.exit is None:
            raise ValueError("draft=exit needs the number of blocks after which the model drafts for itself: set sampler.exit, such as 2")
        if self.exit is not None and (self.ckpt is not None or self.draft not in ("exit", None)):
            other = "ckpt" if self.ckpt is not None else f"draft={self.draft}"
            raise ValueError(f"exit={self.exit} is for draft=exit, and {other} is another drafter: leave one of them out")
        drawn = self._drawn
        if self.own and (not drawn or self.verify != "standard"):
            what = "a generator of the siblings: set sampler.ckpt" if not drawn else "verify=standard"
            raise ValueError(f"own=true needs {what}; for the model's own drafts alone there is sampler=jacobi")
        alone = self.verify == "block" and (not drawn or self.own)
        if self.branches > 1 and (alone or self.draft in ("above", "left")):
            what = "verify=block without a generator's paths is" if alone else f"drafts from {self.draft} are"
            raise ValueError(f"{what} for a chain: set branches=1; got branches={self.branches}")
        if self.branches > 1 and self.depth > 1 and self.verify == "block":
            raise ValueError(f"verify=block has paths that begin apart and then have no siblings: set depth=1; got depth={self.depth}")
        if self.trim is not None:
            if not drawn:
                raise ValueError("trim is for drafts that a generator draws: set sampler.ckpt, or leave it out")
            read_ids(self.trim)

        if (self.verify not in ("standard", "block") or self.siblings is not None) and (not drawn or self.own):
            what = f"verify={self.verify}" if self.siblings is None else f"siblings={self.siblings}"
            raise ValueError(f"{what} is for drafts that a generator draws: set sampler.ckpt, and own=false; or leave it out")
        able = SIBLING_RULES[self.verify].siblings if self.verify != "block" else ("with_replacement",) * (self.branches > 1)
        if self.siblings is not None and self.siblings not in able:
            needed = f"needs siblings={' or '.join(able)}" if able else "is for a chain, without siblings"
            raise ValueError(f"verify={self.verify} {needed}; got siblings={self.siblings}")

        growing = drawn and not self.own and self.verify == "standard" and self.branches > 1
        if self.tree != "fixed" and not growing:
            raise ValueError(
                f"tree={self.tree} grows drafts of a generator: set sampler.ckpt, branches=2 or more, verify=standard and own=false; "
                "or tree=fixed"
            )
        if self.tree != "fixed" and self.siblings not in (None, "without_replacement"):
            raise ValueError(f"tree={self.tree} draws siblings without replacement; got siblings={self.siblings}")

    @property
    def _drawn(self) -> bool:
        """Whether a generator draws the drafts."""
        return self.ckpt is not None or self.exit is not None

    @property
    def rule(self) -> str | SiblingRule:
        return self.verify if self.verify == "block" else SIBLING_RULES[self.verify]()

    def with_models(self, load: Callable[[str], Any]) -> Speculative:
        if not isinstance(self.ckpt, str):
            return self
        loaded = dataclasses.replace(self)
        object.__setattr__(loaded, "_generator", load(self.ckpt))
        return loaded

    def drafter(self, progress: Progress) -> Drafter:
        draft = self.draft or ("model" if self._drawn else "table" if progress.layout.slots == 1 else "left")
        self.check_slots(progress.layout, draft == "table", self.branches > 1, self.verify == "block")
        window = min(self.window, progress.layout.steps)
        kept = None if self.trim is None else kept_ids(self.trim, progress.request.model.spec, progress.vocab)
        if self.tree != "fixed":
            nodes = self.branches * (window - 1) if self.tree == "beam" else self.nodes * (window > 1)
            grown = RowTrees(len(progress.ids), nodes + 1, window, min(self.branches, max(nodes, 1)), progress.ids.device)
            if self.tree == "beam":
                return BeamDrafts(progress, grown, self._small(progress), self.filter, kept=kept)
            threshold = self.threshold if self.tree == "layered" else None
            return DynamicDrafts(progress, grown, self._small(progress), self.filter, threshold, kept)
        tree = DraftTree(window, self.branches, self.depth)
        if draft in ("model", "exit"):
            siblings = self.siblings or ("with_replacement" if self.verify == "block" else SIBLING_RULES[self.verify].siblings[0])
            own = OwnDrafts(progress, tree) if self.own else None
            return ModelDrafts(progress, tree, self._small(progress), self.filter, own, siblings, kept)
        return TokenTable(progress, tree) if draft == "table" else Neighbours(progress, tree, draft)

    def _small(self, progress: Progress) -> Any:
        """The drafts' generator. Raises ValueError where there is only its path, or the model has no such exit."""
        if self.exit is not None:
            return progress.request.model.at_exit(self.exit)
        if self._generator is None and isinstance(self.ckpt, str):
            raise ValueError(f"the generator of {self.ckpt} is not loaded: sample through gentok, or give a generator as ckpt")
        return self.ckpt if self._generator is None else self._generator
