"""Every sampler of masked models, in every setting, makes exactly its enumerated distribution: not a sample of it, but every path that its
random numbers can take (enumeration.py), on tables whose conditionals do not agree. Biased variants are told from it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from enumeration import changed, enumerated, gap, same, some_impossible, variation
from kit import Case, checkered, completions, random_order_distribution
from masked_distributions import TimedMasked, ancestral_distribution, chain_distribution
from rule_distributions import (
    by_confidence,
    by_entropy,
    corrected_distribution,
    halton_distribution,
    halton_orders,
    hitting_in_groups,
    maskgit_distribution,
    rule_distribution,
)
from self_speculative_kit import Tabular

from gentok.flow.absorbing import mask_schedule
from gentok.samplers.ancestral import Ancestral
from gentok.samplers.confidence_threshold import ConfidenceThreshold
from gentok.samplers.corrector import Corrector
from gentok.samplers.entropy_bounded import EntropyBounded
from gentok.samplers.first_hitting import FirstHitting
from gentok.samplers.guided import guided
from gentok.samplers.halton import Halton
from gentok.samplers.maskgit import MaskGIT
from gentok.samplers.remasking import Remasking
from gentok.samplers.soundstorm import SoundStorm
from gentok.types import NULL_CLASS, UNKNOWN, Line, Raster, Tokens, TokenSpec

SETTINGS = {
    "plain": ({}, (1.0, "constant")),
    "temperature 0": ({"temperature": 0.0}, (1.0, "constant")),
    "temperature 2": ({"temperature": 2.0}, (1.0, "constant")),
    "min-p": ({"min_p": 0.4}, (1.0, "constant")),
    "typical": ({"typical": 0.6}, (1.0, "constant")),
    "guidance 0": ({}, (0.0, "constant")),
    "guidance 0.5": ({"top_p": 0.9}, (0.5, "constant")),
    "linear guidance 3": ({"temperature": 0.8}, (3.0, "linear")),
    "cosine guidance, all filters": ({"top_k": 2, "top_p": 0.95, "min_p": 0.02, "typical": 0.95, "temperature": 1.5}, (0.3, "cosine")),
}
GRIDS = {
    "line": TokenSpec((3,), Line(3)),
    "one position": TokenSpec((4,), Line(1)),
    "coarse ids are fewer": TokenSpec((2, 3), Line(2)),
    "three levels": TokenSpec((2, 2, 2), Line(2)),
    "strided": TokenSpec((3, 2), Line(3), strides=(2, 1)),
    "raster": TokenSpec((2,), Raster(2, 2)),
}
TABLES = {
    "plain": lambda spec: Tabular(spec),
    "nearly certain": lambda spec: Tabular(spec, scale=6.0),  # ids of 1e-6 and less beside one of nearly 1
    "impossible": lambda spec: changed(Tabular(spec), some_impossible),  # others with a class than without
    "float32": lambda spec: changed(Tabular(spec), lambda logits: logits.float()),
    "timed": lambda spec: TimedMasked(spec),
}
FREE = 4
"""Masked cells of a case at most."""


def cases_of(spec):
    """Nothing known, known cells scattered among masked ones, everything known, nothing there, a level dropped, a shorter item."""
    cells, n = spec.exists().nonzero().tolist(), spec.positions
    out = []
    for class_id, length, known in (
        (0, n, cells[: max(len(cells) - FREE, 0)]), (1, n, cells[1::2]), (NULL_CLASS, n, cells), (1, 0, []), (0, max(n - 1, 1), cells[::3]),
    ):  # fmt: skip
        codes = Tokens.unknown(spec, 1, torch.tensor([length])).codes[0]
        for i, (k, p) in enumerate(known):
            if codes[k, p] == UNKNOWN:
                codes[k, p] = i % spec.vocab_sizes[k]
        out.append(Case(class_id, codes, length))
    if spec.levels > 1:
        dropped = out[1].codes.clone()
        dropped[-1] = -1
        out.append(Case(0, dropped, n))
    return [case for case in out if int((case.codes == UNKNOWN).sum()) <= FREE]


# ------------------------------------------------------------------------------- families: a sampler, and its distribution


def in_orders(model, case, sampler, guidance):
    spec = model.spec
    size = (spec.grid.h, spec.grid.w) if isinstance(spec.grid, Raster) else (spec.positions, 1)
    return halton_distribution(model, case, sampler, halton_orders(*size, sampler.roll), guidance)


def level_by_level(model, case, sampler, guidance):
    masked = (case.codes == UNKNOWN).nonzero().tolist()
    parts = []
    for level in range(model.spec.levels):
        cells = [j for j, (k, _) in enumerate(masked) if k == level]
        own = replace(sampler, temperature=sampler.later_temperature) if level else sampler
        parts += [(cells, sampler.later_steps if level else sampler.steps, own)] if cells else []
    return maskgit_distribution(model, case, sampler, guidance, parts)


def draft_of(model, case):
    codes = case.codes.clone()
    for i, (k, n) in enumerate((codes == UNKNOWN).nonzero().tolist()):
        codes[k, n] = (i + 1) % model.spec.vocab_sizes[k]
    return codes


def from_draft(model, case, sampler, guidance):
    return corrected_distribution(model, case, sampler, draft_of(model, case)[case.codes == UNKNOWN].tolist(), guidance)


def entropy_rule(model, case, sampler, guidance):
    return rule_distribution(model, case, sampler, by_entropy(sampler), guidance)


def confidence_rule(model, case, sampler, guidance):
    return rule_distribution(model, case, sampler, by_confidence(sampler), guidance)


FAMILIES = {
    "first_hitting": (FirstHitting(), random_order_distribution),
    "first_hitting, two cells": (FirstHitting(cells_per_call=2), hitting_in_groups),
    "first_hitting, two cells, second order": (FirstHitting(cells_per_call=2, order=2), hitting_in_groups),
    "ancestral": (Ancestral(steps=2, schedule="cosine"), ancestral_distribution),
    "halton": (Halton(steps=9), in_orders),
    "halton, two calls": (Halton(steps=2), in_orders),
    "entropy_bounded": (EntropyBounded(gamma=0.6), entropy_rule),
    "entropy_bounded by margin, two at most": (EntropyBounded(gamma=2.5, order="margin", limit=2), entropy_rule),
    "entropy_bounded by confidence": (EntropyBounded(gamma=0.9, order="confidence"), entropy_rule),
    "threshold": (ConfidenceThreshold(threshold=0.55), confidence_rule),
    "factor": (ConfidenceThreshold(rule="factor", factor=1.4), confidence_rule),
    "threshold, in blocks": (ConfidenceThreshold(threshold=0.4, block=2), confidence_rule),
    "maskgit": (MaskGIT(steps=3, choice_temperature=1.5), maskgit_distribution),
    "maskgit, two calls": (MaskGIT(steps=2, schedule="linear", choice_temperature=4.5), maskgit_distribution),
    "soundstorm": (SoundStorm(steps=2, later_steps=2, later_temperature=0.7, choice_temperature=1.0), level_by_level),
    "remasking": (Remasking(steps=3, strategy="rescale", eta=0.5), chain_distribution),
    "corrector": (Corrector(steps=2, cells=1), from_draft),
    "corrector, two at once": (Corrector(steps=1, cells=2), from_draft),
    "corrector, two one by one": (Corrector(steps=1, cells=2, parallel=False), from_draft),
}


def found(sampler, model, case, guidance):
    """What the sampler makes of a case, over all paths."""
    options, spec = {}, model.spec
    if isinstance(sampler, Halton):
        h, w = (spec.grid.h, spec.grid.w) if isinstance(spec.grid, Raster) else (spec.positions, 1)
        options["uniforms"] = lambda: [(1.0, np.array([(y + 0.5) / h, (x + 0.5) / w])) for y in range(h) for x in range(w)]
    if isinstance(sampler, Ancestral):  # in which step each cell is revealed
        grid, free = mask_schedule(sampler.schedule).grid(sampler.steps), (case.codes == UNKNOWN).flatten().numpy()

        def steps():
            for chosen in itertools.product(range(sampler.steps), repeat=int(free.sum())):
                values = np.zeros(len(free))
                values[free] = [(grid[i] + grid[i + 1]) / 2 for i in chosen]
                yield float(np.prod([grid[i] - grid[i + 1] for i in chosen])), values

        options["uniforms"] = lambda: list(steps())
    if isinstance(sampler, Corrector):
        options["draft"] = Tokens(draft_of(model, case)[None], spec, torch.tensor([case.length]))
    return enumerated(sampler, guided(model, *guidance), case, **options)


def pairs(family, setting, every=4):
    """(sampler, model, case, guidance, reference) of each `every`-th grid, with a table that another family or setting does not have."""
    sampler, reference = FAMILIES[family]
    arguments, guidance = SETTINGS[setting]
    shift = list(FAMILIES).index(family) + list(SETTINGS).index(setting) // 2
    for i, (name, spec) in enumerate(GRIDS.items()):
        if (
            (i + shift) % every
            or (spec.levels > 1 and reference is chain_distribution)
            or (name == "raster" and not isinstance(sampler, Halton))
        ):
            continue
        tables = [t for t in TABLES if t != "timed" or reference is not random_order_distribution]
        model = TABLES[tables[(i + shift) // 2 % len(tables)]](spec)
        for case in cases_of(spec):
            ways = len(completions(case.codes, spec))
            if ways <= (12 if reference in (maskgit_distribution, level_by_level) else 81):
                yield replace(sampler, **arguments), model, case, guidance, reference


@checkered(family=FAMILIES, setting=SETTINGS)
def test_every_setting_makes_the_enumerated_distribution(family, setting):
    for sampler, model, case, guidance, reference in pairs(family, setting):
        assert same(found(sampler, model, case, guidance), reference(model, case, sampler, guidance)), case


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_setting_makes_the_enumerated_distribution_on_every_grid(family, setting):
    for sampler, model, case, guidance, reference in pairs(family, setting, every=1):
        assert same(found(sampler, model, case, guidance), reference(model, case, sampler, guidance)), case


# ----------------------------------------------------------------------------------------------------------------- mutants

MUTANTS = {
    "first_hitting": [FirstHitting(cells_per_call=2)],
    "first_hitting, two cells": [FirstHitting(cells_per_call=2, order=2), FirstHitting()],
    "first_hitting, two cells, second order": [FirstHitting(cells_per_call=2)],
    "ancestral": [Ancestral(steps=2), Ancestral(steps=3, schedule="cosine")],
    "halton": [Halton(steps=9, roll=False), Halton(steps=2)],
    "halton, two calls": [Halton(steps=2, schedule="linear"), Halton(steps=2, roll=False)],
    "entropy_bounded": [EntropyBounded(gamma=1.1), EntropyBounded(gamma=0.6, limit=1), EntropyBounded(gamma=0.6, order="confidence")],
    "entropy_bounded by margin, two at most": [
        EntropyBounded(gamma=2.5, order="margin"),
        EntropyBounded(gamma=0.2, order="margin", limit=2),
    ],
    "entropy_bounded by confidence": [EntropyBounded(gamma=0.4, order="confidence"), EntropyBounded(gamma=2.0, order="confidence")],
    "threshold": [ConfidenceThreshold(threshold=0.7), ConfidenceThreshold(threshold=0.45)],
    "factor": [ConfidenceThreshold(rule="factor", factor=1.0), ConfidenceThreshold(rule="factor", factor=2.2)],
    "threshold, in blocks": [ConfidenceThreshold(threshold=0.4), ConfidenceThreshold(threshold=0.4, block=1)],
    "maskgit": [MaskGIT(steps=3, choice_temperature=1.7), MaskGIT(steps=3, choice_temperature=0.0)],
    "maskgit, two calls": [MaskGIT(steps=2, schedule="linear", choice_temperature=5.0), MaskGIT(steps=3, choice_temperature=4.5)],
    "soundstorm": [SoundStorm(steps=2, later_steps=2, choice_temperature=1.0), SoundStorm(later_steps=1, steps=2, later_temperature=0.7)],
    "remasking": [Remasking(steps=3, strategy="rescale", eta=0.6), Remasking(steps=3, strategy="cap", eta=0.2)],
    "corrector": [Corrector(steps=3, cells=1), Corrector(steps=2, cells=2)],
    "corrector, two at once": [Corrector(steps=1, cells=2, parallel=False), Corrector(steps=2, cells=2)],
    "corrector, two one by one": [Corrector(steps=1, cells=2), Corrector(steps=1, cells=3, parallel=False)],
}
"""Samplers with a setting of another: what they make must not pass for the family's."""


def case_of(family):
    """A case of three masked cells beside nothing, or beside known ones; two levels where the family looks at levels."""
    sizes, positions = ((2,), 4) if "blocks" in family or "hitting" in family else ((3,), 4) if "entropy" in family else ((3,), 3)
    sizes, positions = ((2, 2), 2) if family == "soundstorm" else ((2,), 3) if "maskgit" in family else (sizes, positions)
    spec = TokenSpec(sizes, Line(positions))
    case = cases_of(spec)[0]
    if family == "soundstorm":
        case.codes[1, 1] = 1
    return (TimedMasked if "second order" in family else Tabular)(spec, scale=1.3), case


@pytest.mark.parametrize("family", FAMILIES)
def test_mutants_of_every_family_are_told_from_it(family):
    """Near misses: another setting, a temperature or a guidance that is 2 % off, a model that leans a little on one id."""
    sampler, reference = FAMILIES[family]
    model, case = case_of(family)
    guidance = (1.5, "linear")
    right = reference(model, case, sampler, guidance)
    assert same(found(sampler, model, case, guidance), right)
    for other in MUTANTS[family]:
        assert gap(found(other, model, case, guidance), right) > 1e-3, other
    near = [found(replace(sampler, temperature=1.02), model, case, guidance), found(sampler, model, case, (1.53, "linear"))]
    model = changed(model, leans)
    for off in [*near, found(sampler, model, case, guidance)]:
        assert gap(off, right) > 1e-3 and variation(off, right) < 0.05


def leans(logits):
    """A little more of id 0."""
    return logits + 0.03 * (torch.arange(logits.shape[-1]) == 0)


def leak(logits):
    """An id that is impossible gets a chance of about 1e-6."""
    return logits.masked_fill(logits == -torch.inf, -14.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_mutants_that_look_away_are_told(family):
    """Ids that are impossible leak a little, or known cells are not looked at."""
    sampler, reference = FAMILIES[family]
    spec = TokenSpec((3,), Line(4))
    case = cases_of(spec)[1]
    model = changed(Tabular(spec), some_impossible)
    right = reference(model, case, sampler, (2.0, "constant"))
    assert same(found(sampler, model, case, (2.0, "constant")), right)
    assert gap(found(sampler, changed(changed(Tabular(spec), some_impossible), leak), case, (2.0, "constant")), right) > 0.5

    class Blind(type(model)):
        def logits(self, tokens, condition, t=None):
            other = tokens.codes.clone()
            known = (case.codes >= 0) & (tokens.codes >= 0)
            other[known] = (other[known] + 1) % 2
            return super().logits(Tokens(other, tokens.spec, tokens.lengths), condition, t)

    blind = changed(Tabular(spec), some_impossible)
    blind.__class__ = type("Blind", (Blind,), {})
    assert gap(found(sampler, blind, case, (2.0, "constant")), right) > 1e-3
