"""Speculative decoding makes the enumerated distribution of the large model whatever drafts, and biased variants are told from it."""

import pytest
import torch
from enumeration import enumerated, gap
from kit import SPECS, Case, TabularCausal, agreement, alone, batch_of, cases_of, causal_distribution, checkered, sample
from test_exact_endings import Ending, distribution_of
from test_exact_endings import cases_of as ending_cases
from test_exact_jacobi import TWO, small_cases, with_whole_q
from test_exact_networks import network

from gentok.generators.autoregressive import Autoregressive
from gentok.generators.masked import MaskedTransformer
from gentok.rng import RowRNG
from gentok.samplers import speculative
from gentok.samplers.dynamic_drafts import DynamicDrafts
from gentok.samplers.guided import guided
from gentok.samplers.model_drafts import ModelDrafts
from gentok.samplers.speculative import Speculative
from gentok.types import UNKNOWN, Line, Raster, Tokens, TokenSpec

DRAFTS = {
    "model": {"draft": "model"},
    "model, block": {"draft": "model", "verify": "block"},
    "model, tree": {"draft": "model", "branches": 2},
    "model, wide tree": {"draft": "model", "branches": 3, "depth": 2},
    "model, recursive with replacement": {"draft": "model", "branches": 2, "siblings": "with_replacement"},
    "model, k_seq": {"draft": "model", "branches": 2, "verify": "k_seq"},
    "model, wide k_seq": {"draft": "model", "branches": 3, "depth": 2, "verify": "k_seq"},
    "model, optimal": {"draft": "model", "branches": 2, "verify": "optimal"},
    "model, wide optimal": {"draft": "model", "branches": 3, "depth": 2, "verify": "optimal"},
    "model, greedy": {"draft": "model", "branches": 2, "verify": "greedy"},
    "model, wide greedy": {"draft": "model", "branches": 3, "depth": 2, "verify": "greedy"},
    "model, dynamic": {"draft": "model", "branches": 2, "tree": "dynamic", "nodes": 3},
    "model, wide dynamic": {"draft": "model", "branches": 3, "tree": "dynamic", "nodes": 6},
    "model, layered": {"draft": "model", "branches": 2, "tree": "layered", "nodes": 4, "threshold": 0.2},
    "model, wide layered": {"draft": "model", "branches": 3, "tree": "layered", "nodes": 8, "threshold": 0.1},
    "model, own": {"draft": "model", "own": True, "branches": 2},
    "model, wide own": {"draft": "model", "own": True, "branches": 3, "depth": 2},
    "table": {"draft": "table"},
    "table, tree": {"draft": "table", "branches": 2},
    "above": {"draft": "above"},
    "left, block": {"draft": "left", "verify": "block"},
    "model, beam": {"draft": "model", "branches": 2, "tree": "beam"},
    "model, paths": {"draft": "model", "branches": 2, "verify": "block"},
    "model, trimmed": {"draft": "model", "branches": 2, "trim": [0, 1]},
}


def sampler_of(name, spec, layout, **settings):
    given = DRAFTS[name]
    ckpt = {"ckpt": TabularCausal(spec, layout, seed=9)} if given["draft"] == "model" else {}
    return Speculative(**given, **ckpt, **settings)


MANY = [name for name in DRAFTS if DRAFTS[name].get("verify") in ("k_seq", "optimal", "greedy") or "siblings" in DRAFTS[name]]
"""Those with a rule or siblings that leave more paths to follow."""
TREES = [(drafts, vocab) for drafts in MANY for vocab in ((2,) if "wide" in drafts else (2, 3))]


APART = ["model, beam", "model, paths"]
"""Those whose paths are followed elsewhere: test_exact_beam_drafts, test_exact_block_paths."""
FEW = [name for name in DRAFTS if "wide" not in name and name not in MANY + APART]


@checkered(drafts=FEW, window=[1, 2, 3], guidance=[(1.0, "constant"), (2.0, "linear")])
def test_every_path_makes_the_enumerated_distribution(drafts, window, guidance):
    model, sampler = TabularCausal(TWO, "raster"), sampler_of(drafts, TWO, "raster", window=window)
    for case in small_cases(TWO, "raster"):
        expected = causal_distribution(model, case, sampler, guidance)
        assert gap(enumerated(sampler, guided(model, *guidance), case), expected) < 1e-9, case


@pytest.mark.parametrize(("drafts", "vocab"), [pytest.param(d, v, marks=[pytest.mark.slow] * (v > 2 or "wide" in d)) for d, v in TREES])
def test_every_path_of_a_tree_makes_the_joint_distribution_of_two_steps(drafts, vocab):
    spec = TokenSpec((vocab,), Line(2))
    model, sampler = TabularCausal(spec, "raster"), sampler_of(drafts, spec, "raster", window=2)
    case = Case(0, Tokens.unknown(spec, 1).codes[0], 2)
    assert gap(enumerated(sampler, model, case), causal_distribution(model, case, sampler)) < 1e-9


ORDERS = ["k1-raster", "k2-position_major", "k2-delayed", "strided-level_major"]


@checkered(most=8, drafts=DRAFTS, order=ORDERS, settings=[{}, {"top_k": 2, "temperature": 0.7}])
def test_rows_of_every_kind_draw_the_enumerated_distribution(drafts, order, settings):
    spec, layout = order.split("-")
    model, sampler = TabularCausal(SPECS[spec], layout), sampler_of(drafts, SPECS[spec], layout, window=3, **settings)
    if model.layout.slots > 1 and drafts not in ("model", "above"):
        pytest.skip("for orders of one slot")
    cases = cases_of(model)
    assert agreement(sample(sampler, model, cases, 1200), [causal_distribution(model, case, sampler) for case in cases]) > 1e-3


@pytest.mark.parametrize("drafts", ["model, tree", "table"])
def test_a_network_with_a_smaller_one_draws_its_enumerated_distribution(drafts):
    model, cases = network(Autoregressive, "k1"), cases_of(network(Autoregressive, "k1"))
    small = Autoregressive(model.spec, model.condition_spec, width=8, depth=1, heads=1).double().eval()
    sampler = Speculative(**DRAFTS[drafts], window=3, ckpt=small if "model" in drafts else None)
    assert agreement(sample(sampler, model, cases, 800), [causal_distribution(model, case, sampler) for case in cases]) > 1e-3


ENDING = [("model", "k1-raster"), ("model", "k2-delayed")]
ENDING += [pytest.param(drafts, "k1-raster", marks=pytest.mark.slow) for drafts in ("model, block", *APART, "model, trimmed")]


@pytest.mark.parametrize(("drafts", "order"), ENDING)
def test_items_that_end_by_themselves_draw_the_enumerated_distribution(drafts, order):
    spec, layout = order.split("-")
    model, small = Ending(SPECS[spec], layout), Ending(SPECS[spec], layout, seed=5)
    sampler = Speculative(**DRAFTS[drafts], ckpt=small, window=3)
    cases = [c for c in ending_cases(model.spec) if c.codes.max() < 0]
    assert agreement(sample(sampler, model, cases, 2500), [distribution_of(model, case, sampler) for case in cases]) > 1e-3


@checkered(most=6, drafts=DRAFTS, order=["k1-raster", "strided-position_major"])
def test_a_row_of_a_batch_equals_that_row_alone_and_calls_do_not_exceed_steps(drafts, order):
    spec, layout = order.split("-")
    model, sampler = TabularCausal(SPECS[spec], layout), sampler_of(drafts, SPECS[spec], layout, window=2)
    together, by_itself = alone(sampler, guided(model, 2.0, "linear"), cases_of(model), n=6)
    assert (together == by_itself).all()
    _, condition, codes, lengths = batch_of(cases_of(model), 20)
    out = sampler(model, condition, rng=RowRNG.of(0, range(len(codes))), known=Tokens(codes, model.spec), lengths=lengths)
    assert (out.calls <= (model.layout.flatten(codes) == UNKNOWN).any(2).sum(1)).all()


def test_drafts_of_the_model_itself_all_stand():
    model = TabularCausal(TokenSpec((4,), Raster(2, 4)), "raster")
    _, condition, codes, lengths = batch_of([Case(0, torch.full((1, 8), UNKNOWN), 8)], 30)
    for verify in ("standard", "block"):
        sampler = Speculative(ckpt=model, window=4, verify=verify)
        out = sampler(model, condition, rng=RowRNG.of(0, range(30)), known=Tokens(codes, model.spec), lengths=lengths)
        assert (out.calls == 2).all() and out.network_calls["draft"][0] == 8


# ----------------------------------------------------------------------------------------------------------------- mutants


def test_mutant_of_a_growing_tree_whose_siblings_are_verified_as_draws_of_the_whole_q(monkeypatch):
    def renamed(self, rows, honest=DynamicDrafts.propose):
        draft, children = honest(self, rows), self.tree.children
        for later in children.unbind(2)[1:]:
            row, context = (later >= 0).nonzero(as_tuple=True)
            draft.q[row, later[row, context]] = draft.q[row, children[row, context, 0]]
        return draft

    spec = TokenSpec((4,), Line(2))
    model, sampler = TabularCausal(spec, "raster"), sampler_of("model, dynamic", spec, "raster", window=2)
    case = Case(0, Tokens.unknown(spec, 1).codes[0], 2)
    expected = causal_distribution(model, case, sampler)
    assert gap(enumerated(sampler, model, case), expected) < 1e-9
    monkeypatch.setattr(DynamicDrafts, "propose", renamed)
    assert gap(enumerated(sampler, model, case), expected) > 1e-3


class Renamed(ModelDrafts):
    """Siblings are said to be draws of the whole distribution."""

    def propose(self, rows):
        return with_whole_q(super().propose(rows), self.tree)


class Flattened(ModelDrafts):
    """The drafts are said to come from a distribution of a higher temperature than they were drawn with."""

    def propose(self, rows):
        draft = super().propose(rows)
        draft.q = draft.q.sqrt() / draft.q.sqrt().sum(-1, keepdim=True)
        return draft


class Blind(ModelDrafts):
    """The small model reads id 0 in the place of its own drafts: no bias, since q is still what was drawn from."""

    def logits(self, rows, drafts, nodes):
        return super().logits(rows, drafts.clamp(max=0), nodes)


@pytest.mark.parametrize(("own", "biased"), [(Renamed, True), (Flattened, True), (Blind, False)])
def test_mutants_of_the_drafts_are_told_and_bad_drafts_are_no_bias(own, biased, monkeypatch):
    monkeypatch.setattr(speculative, "ModelDrafts", own)
    spec = TokenSpec((3,), Line(2))
    model, sampler = TabularCausal(spec, "raster"), sampler_of("model, tree", spec, "raster", window=2)
    case = small_cases(spec, "raster")[0]
    assert (gap(enumerated(sampler, model, case), causal_distribution(model, case, sampler)) > 1e-3) == biased


# ---------------------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"draft": "model"}, "draft=model needs the drafts' generator: set sampler.ckpt"),
        ({"draft": "table", "ckpt": "a"}, "ckpt is for draft=model; draft=table has no generator: leave one"),
        ({"draft": "above", "branches": 2}, "drafts from above are for a chain: set branches=1; got branches=2"),
        ({"draft": "table", "branches": 2, "verify": "block"}, "verify=block without a generator's paths is for a chain"),
        ({"own": True}, "own=true needs a generator of the siblings: set sampler.ckpt"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, line):
    with pytest.raises(ValueError, match=line):
        Speculative(**settings)


def test_drafts_of_another_kind_of_generator_are_refused():
    model = TabularCausal(SPECS["k2"], "delayed")
    _, condition, codes, lengths = batch_of(cases_of(model), 1)

    def run(**settings):
        known = Tokens(codes, model.spec)
        return Speculative(**settings)(model, condition, rng=RowRNG.of(0, range(len(codes))), known=known, lengths=lengths)

    with pytest.raises(ValueError, match="drafts need a Causal generator, this MaskedTransformer is Masked"):
        run(ckpt=network(MaskedTransformer, "k2"))
    with pytest.raises(ValueError, match="the drafts' generator models"):
        run(ckpt=TabularCausal(SPECS["k1"], "raster"))
    with pytest.raises(ValueError, match="has the parallel order, the one that is sampled delayed"):
        run(ckpt=TabularCausal(SPECS["k2"], "parallel"))
    with pytest.raises(ValueError, match="steps of 2 slots, set draft=model"):
        run(draft="table")
