"""Speculative Jacobi decoding makes the enumerated distribution of its model in every variant, and biased variants are told from it."""

from dataclasses import replace

import pytest
import torch
from enumeration import changed, enumerated, gap, some_impossible, variation
from kit import (
    COMMON,
    SPECS,
    Case,
    TabularCausal,
    agreement,
    alone,
    batch_of,
    cases_of,
    causal_distribution,
    checkered,
    rejects,
    sample,
)
from test_exact_endings import Ending, distribution_of
from test_exact_networks import network

from gentok.generators.autoregressive import Autoregressive
from gentok.rng import RowRNG
from gentok.samplers import recursive_rejection, verification
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.guesses import GUESSES
from gentok.samplers.guided import guided
from gentok.samplers.jacobi import Jacobi
from gentok.samplers.own_drafts import OwnDrafts
from gentok.types import UNKNOWN, Line, Raster, Tokens, TokenSpec

VARIANTS = {
    "fresh": {"tail": "fresh"},
    "kept": {"tail": "kept"},
    "coupled": {"tail": "coupled"},
    "gumbel": {"tail": "gumbel"},
    "block": {"tail": "fresh", "verify": "block"},
    "match": {"tail": "gumbel", "verify": "match"},
    "tree, fresh": {"tail": "fresh", "branches": 2},
    "tree, coupled": {"tail": "coupled", "branches": 2},
    "wide tree, coupled": {"tail": "coupled", "branches": 3, "depth": 2},
    "tree, gumbel": {"tail": "gumbel", "branches": 2, "depth": 2},
    "tree, match": {"tail": "gumbel", "verify": "match", "branches": 3},
}
COUNTED = [name for name, settings in VARIANTS.items() if settings["tail"] != "gumbel" and "wide" not in name]
"""Those whose every choice can be followed: Gumbel numbers are none, and a wide tree has too many."""
CHAINS = [name for name, settings in VARIANTS.items() if "branches" not in settings]
SETTINGS = {
    **COMMON,
    "linear guidance, top-p": ({"top_p": 0.8}, (2.0, "linear")),
}
TWO = TokenSpec((2,), Line(3))


def small_cases(spec, layout):
    """Nothing known, a known first step, a shorter item."""
    out, n = [], spec.positions
    for length, known in ((n, 0), (n, 1), (n - 1, 0)):
        codes = Tokens.unknown(spec, 1, torch.tensor([length])).codes[0]
        codes[:1, :known] = 1
        out.append(Case(len(out) % 2, codes, length))
    return out


@checkered(variant=COUNTED, guess=GUESSES, window=[1, 2, 3], setting=["plain", "top-k 2", "linear guidance, top-p"])
def test_every_path_of_a_line_makes_the_enumerated_distribution(variant, guess, window, setting):
    arguments, guidance = SETTINGS[setting]
    model, sampler = TabularCausal(TWO, "raster"), Jacobi(window=window, guess=guess, **VARIANTS[variant], **arguments)
    for case in small_cases(TWO, "raster"):
        expected = causal_distribution(model, case, sampler, guidance)
        assert gap(enumerated(sampler, guided(model, *guidance), case), expected) < 1e-9, case


@checkered(variant=[v for v in COUNTED if v in CHAINS], layout=["delayed", "parallel", "position_major", "level_major"])
def test_every_path_of_two_levels_makes_the_enumerated_distribution(variant, layout):
    spec = TokenSpec((2, 2), Line(2))
    if variant == "block" and layout in ("delayed", "parallel"):
        pytest.skip("for orders of one slot")
    model, sampler = TabularCausal(spec, layout), Jacobi(window=3, **VARIANTS[variant])
    for case in small_cases(spec, layout):
        assert gap(enumerated(sampler, model, case), causal_distribution(model, case, sampler)) < 1e-9, case


@pytest.mark.parametrize("variant", ["fresh", "coupled", "block", "tree, fresh"])
def test_impossible_ids_and_three_ids_make_the_enumerated_distribution(variant):
    for model in (TabularCausal(TokenSpec((3,), Line(2))), changed(TabularCausal(TokenSpec((3,), Raster(1, 3))), some_impossible)):
        spec, sampler = model.spec, Jacobi(window=2, **VARIANTS[variant])
        case = small_cases(spec, "raster")[0]
        assert gap(enumerated(sampler, model, case), causal_distribution(model, case, sampler)) < 1e-9


ORDERS = ["k1-raster", "k2-delayed", "k2-position_major", "strided-parallel", "strided-level_major"]


@checkered(most=6, variant=VARIANTS, order=ORDERS, setting=SETTINGS)
def test_rows_of_every_kind_draw_the_enumerated_distribution(variant, order, setting):
    (spec, layout), (arguments, guidance) = order.split("-"), SETTINGS[setting]
    model = TabularCausal(SPECS[spec], layout)
    if model.layout.slots > 1 and variant not in CHAINS or variant == "block" and model.layout.slots > 1:
        pytest.skip("for orders of one slot")
    sampler, cases = Jacobi(window=3, **VARIANTS[variant], **arguments), cases_of(model)
    distributions = [causal_distribution(model, case, sampler, guidance) for case in cases]
    assert agreement(sample(sampler, guided(model, *guidance), cases, 1200, seed=3), distributions) > 1e-4


@pytest.mark.parametrize("variant", ["coupled", "match", "tree, coupled"])
def test_a_network_draws_its_enumerated_distribution(variant):
    model = network(Autoregressive, "k1")
    sampler, cases = Jacobi(window=3, **VARIANTS[variant]), cases_of(model)
    distributions = [causal_distribution(model, case, sampler, (2.0, "linear")) for case in cases]
    assert agreement(sample(sampler, guided(model, 2.0, "linear"), cases, 800), distributions) > 1e-3


@pytest.mark.parametrize("variant", ["fresh", "coupled", "gumbel"])
@pytest.mark.parametrize("order", ["k1-raster", "k2-delayed", "k2-position_major"])
def test_items_that_end_by_themselves_draw_the_enumerated_distribution(order, variant):
    spec, layout = order.split("-")
    model, sampler = Ending(SPECS[spec], layout), Jacobi(window=3, **VARIANTS[variant])
    cases = [case for case in cases_of(model) if case.codes.max() < 0]
    assert agreement(sample(sampler, model, cases, 2500), [distribution_of(model, case, sampler) for case in cases]) > 1e-3


# ----------------------------------------------------------------------------------------------------------------- mutants


def biased(sampler, spec=TWO, scale=1.0):
    model = TabularCausal(spec, "raster", scale)
    case = small_cases(spec, "raster")[0]
    right, off = causal_distribution(model, case, sampler), enumerated(sampler, model, case)
    print(f"gap {gap(off, right):.3g}, variation {variation(off, right):.3g}")
    return gap(off, right) > 1e-3


class Mutant(Jacobi, id="sampler/jacobi_mutant"):
    """A Jacobi sampler whose drafter forgets something."""

    own: type = OwnDrafts

    def drafter(self, progress):
        drafter = super().drafter(progress)
        drafter.__class__ = self.own
        return drafter


def mutant(own, **settings):
    return type("M", (Mutant,), {"own": own}, id="sampler/jacobi_mutant")(**settings)


class KeepsOldQ(OwnDrafts):
    """An accepted draft of the tail keeps its old q: as released for two models."""

    def observe(self, rows, p, verdict, ahead):
        before, old = self.ids.clone(), self.q.clone()
        super().observe(rows, p, verdict, ahead)
        steps = self.progress.first[rows][:, None] + self.place
        shifted = (self.place + ahead[:, None]).clamp(max=len(self.place) - 1)
        old = old[rows].gather(1, shifted[..., None, None].expand(-1, -1, *old.shape[2:]))
        stayed = self.ids[rows[:, None], steps] == before[rows[:, None], steps]
        self.q[rows] = torch.where(stayed[..., None], old, self.q[rows])


class StoresNewQ(OwnDrafts):
    """A kept draft is said to come from the new p."""

    def observe(self, rows, p, verdict, ahead):
        before = self.ids.clone()
        super().observe(rows, p, verdict, ahead)
        steps = self.progress.first[rows][:, None] + self.place
        self.ids[rows[:, None], steps] = before[rows[:, None], steps]


class UniformGuess(OwnDrafts):
    """A repeated token is said to come from the uniform distribution."""

    def propose(self, rows):
        draft = super().propose(rows)
        sure = draft.q == 1
        draft.q = torch.where(sure.any(-1, keepdim=True), torch.full_like(draft.q, 1 / draft.q.shape[-1]), draft.q)
        return draft


def with_whole_q(draft, tree):
    """The draft, whose siblings are said to be draws of the distribution of the first, though none repeats another."""
    for node, rank in enumerate(tree.rank):
        if rank:
            draft.q[:, node] = draft.q[:, node - rank]
    return draft


class SiblingsOfP(OwnDrafts):
    """Siblings are verified as draws from the whole q, though none repeats another."""

    def propose(self, rows):
        return with_whole_q(super().propose(rows), self.tree)


@pytest.mark.parametrize(
    "sampler",
    [
        mutant(KeepsOldQ, window=3, tail="coupled"),
        mutant(StoresNewQ, window=3, tail="fresh"),
        mutant(UniformGuess, window=2, tail="fresh"),
        mutant(SiblingsOfP, window=3, tail="coupled", branches=2),
    ],
    ids=["keeps the old q", "stores the new p of a kept draft", "uniform q of a repeated token", "siblings verified as draws of q"],
)
def test_mutants_of_the_drafts_are_told(sampler):
    assert biased(sampler, TokenSpec((3,), Line(3)) if sampler.branches > 1 else TWO)


def test_mutant_that_draws_from_p_and_not_from_the_residual(monkeypatch):
    monkeypatch.setattr(recursive_rejection, "left_over", lambda p, q: p)
    assert biased(Jacobi(window=2, tail="fresh"))


def test_mutant_that_filters_after_the_rule():
    class Late(Jacobi, id="sampler/jacobi_late"):
        def filter(self, logits):
            return logits.double()

        def run(self, request):
            late = AutoregressiveSampler(top_k=1).filter
            return super().run(replace(request, choose=lambda logits, rng: request.choose(late(logits), rng)))

    sampler = Late(window=2, tail="fresh")
    model, case = TabularCausal(TWO, "raster"), small_cases(TWO, "raster")[0]
    assert gap(enumerated(sampler, model, case), causal_distribution(model, case, Jacobi(top_k=1))) > 1e-3


def test_mutant_with_a_bonus_step_after_a_rejection(monkeypatch):
    honest = verification._walk

    def one_more(tree, stands, closed):
        stands = stands.clone()
        stands[:, 1] = True  # the first draft stands though it fell
        return honest(tree, stands, closed)

    monkeypatch.setattr(verification, "_walk", one_more)
    assert biased(Jacobi(window=2, tail="fresh", guess="random"), scale=0.6)


def test_mutant_that_couples_behind_a_block():
    class Couples(Jacobi, id="sampler/jacobi_couples"):
        @property
        def rule(self):
            return "block"

    assert biased(Couples(window=3, tail="coupled"), TokenSpec((2,), Line(4)))


def test_mutants_by_statistics():
    class Reuses(OwnDrafts):
        """The numbers of a step are those of its neighbour."""

        def _gumbel(self, rows, first):
            return super()._gumbel(rows, first // 2 * 2).flip(1) * 1.0

    model = TabularCausal(SPECS["k1"], scale=0.5)
    cases, sampler = cases_of(model), mutant(Reuses, window=2, tail="gumbel")
    distributions = [causal_distribution(model, case, sampler) for case in cases]
    assert rejects(sample(sampler, model, cases, 16_000), distributions)


# ----------------------------------------------------------------------------------------------------------- rows and calls


@checkered(variant=VARIANTS, order=["k1-raster", "k2-delayed", "strided-position_major"])
def test_a_row_of_a_batch_equals_that_row_alone_and_calls_do_not_exceed_steps(variant, order):
    spec, layout = order.split("-")
    model = TabularCausal(SPECS[spec], layout)
    if model.layout.slots > 1 and (variant not in CHAINS or variant == "block"):
        pytest.skip("for orders of one slot")
    sampler, cases = Jacobi(window=2, **VARIANTS[variant]), cases_of(model)
    together, by_itself = alone(sampler, guided(model, 2.0, "linear"), cases, n=6)
    assert (together == by_itself).all()
    _, condition, codes, lengths = batch_of(cases, 20)
    out = sampler(model, condition, rng=RowRNG.of(0, range(len(codes))), known=Tokens(codes, model.spec), lengths=lengths)
    steps = (model.layout.flatten(codes) == UNKNOWN).any(2).sum(1)
    assert (out.calls <= steps).all() and (out.tokens.codes[codes != UNKNOWN] == codes[codes != UNKNOWN]).all()
    if sampler.window > 1:
        known, rng = Tokens(codes, model.spec), RowRNG.of(0, range(len(codes)))
        one = replace(sampler, window=1)(model, condition, rng=rng, known=known, lengths=lengths)
        assert torch.equal(one.calls, steps) and out.calls.sum() < one.calls.sum()


def test_with_match_the_ids_are_the_same_whatever_the_window_guesses_and_branches_are():
    model = TabularCausal(TokenSpec((5,), Raster(3, 3)), "raster")
    found = []
    wide = {"window": 4, "branches": 3, "depth": 2, "guess": "random"}
    for settings in ({"window": 1}, {"window": 3}, {"window": 9, "guess": "above"}, wide):
        _, condition, codes, lengths = batch_of([Case(0, torch.full((1, 9), UNKNOWN), 9), Case(1, torch.full((1, 9), UNKNOWN), 9)], 20)
        sampler = Jacobi(tail="gumbel", verify="match", **settings)
        found.append(sampler(model, condition, rng=RowRNG.of(0, range(40)), known=Tokens(codes, model.spec), lengths=lengths))
    assert all(torch.equal(out.tokens.codes, found[0].tokens.codes) for out in found)
    assert found[0].calls.sum() > found[1].calls.sum() > 0


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"window": 0}, "window=0: expected a number above 0"),
        ({"tail": "old"}, "tail"),
        ({"verify": "block"}, "verify=block goes with tail=fresh alone"),
        ({"verify": "match", "tail": "coupled"}, "verify=match goes with tail=gumbel alone"),
        ({"verify": "block", "tail": "fresh", "branches": 2}, "set branches=1; got branches=2"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, line):
    with pytest.raises(ValueError, match=line):
        Jacobi(**settings)


def test_branches_in_an_order_of_several_slots_are_refused():
    model = TabularCausal(SPECS["k2"], "delayed")
    _, condition, codes, lengths = batch_of(cases_of(model), 1)
    with pytest.raises(ValueError, match="steps of 2 slots, set branches=1"):
        Jacobi(branches=2)(model, condition, rng=RowRNG.of(0, range(len(codes))), known=Tokens(codes, model.spec), lengths=lengths)
