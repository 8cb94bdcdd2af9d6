"""Coarse-to-fine sampling makes exactly the sum over labels of p(labels) times the product of p(id | labels), path by path and by samples,
with any sampler of the labels; and what would be near it is told from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from enumeration import changed, enumerated, gap, same, some_impossible, variation
from kit import CLASSES, SPECS, Case, Distribution, agreement, alone, cases_of, checkered, completions, rejects, sample
from random_weights import randomized
from refines_kit import CLUSTERS, TabularRefines, refined_distribution
from test_exact_endings import Ending
from test_exact_endings import distribution_of as ending_distribution

from gentok.generators.base import Causal
from gentok.generators.coarse_to_fine import CoarseToFine
from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.base import every_sampler, fitting
from gentok.samplers.coarse_to_fine import CoarseToFineSampler
from gentok.samplers.guided import guided
from gentok.samplers.maskgit import MaskGIT
from gentok.types import UNKNOWN, Class, Condition, Tokens

PLAIN = (1.0, "constant")
SETTINGS = {
    "plain": ({}, {}, PLAIN),
    "temperature 0.7": ({"temperature": 0.7}, {"temperature": 0.7}, PLAIN),
    "hot labels, cold ids": ({"temperature": 0.6}, {"temperature": 1.7}, PLAIN),
    "top-k 2 of the ids": ({"top_k": 2}, {}, PLAIN),
    "top-k 1 of the labels": ({"typical": 0.7}, {"top_k": 1}, PLAIN),
    "guidance 2": ({}, {}, (2.0, "constant")),
    "linear guidance": ({"temperature": 0.8}, {"top_p": 0.9}, (3.0, "linear")),
    "the most probable": ({"temperature": 0.0}, {"min_p": 0.2}, (0.5, "cosine")),
}
LAYOUTS = {"k1": ("raster",), "k2": ("delayed", "level_major"), "narrow": ("parallel",), "strided": ("position_major",),
           "one cluster": ("auto",), "as many as ids": ("auto",)}  # fmt: skip
ORDERS = [(name, layout) for name, layouts in LAYOUTS.items() for layout in layouts]


def sampler_of(setting):
    ids, labels, guidance = SETTINGS[setting]
    return CoarseToFineSampler(coarse=AutoregressiveSampler(**labels), **ids), guidance


@checkered(order=["/".join(order) for order in ORDERS], setting=SETTINGS)
def test_it_makes_the_enumerated_distribution(order, setting):
    name, layout = order.split("/")
    sampler, guidance = sampler_of(setting)
    for members in (True, False):
        model = TabularRefines(name, layout, members)
        for case in cases_of(model):
            if members or not (case.codes >= 0).any():
                right = refined_distribution(model, case, sampler, guidance)
                found = enumerated(sampler, guided(model, *guidance), case)
                assert gap(found, right) < 1e-11, (members, case)


@pytest.mark.parametrize("cls", [cls for cls in every_sampler() if cls.requires is Causal])
def test_any_exact_sampler_of_causal_models_draws_the_labels(cls):
    model = TabularRefines("k2", "delayed" if cls.fits(TabularRefines("k2", "delayed").coarse) else "level_major", scale=1.5)
    sampler = CoarseToFineSampler(coarse=cls())
    assert fitting(model) == [CoarseToFineSampler]
    if cls.exact:
        cases = cases_of(model)
        distributions = [refined_distribution(model, case, sampler) for case in cases]
        assert agreement(sample(sampler, model, cases, 3000), distributions) > 1e-3


@pytest.mark.parametrize("layout", ["delayed", "level_major"])
def test_items_that_end_by_themselves_end_where_their_labels_do(layout):
    model = TabularRefines("k2", layout, coarse=Ending)
    sampler = CoarseToFineSampler(temperature=0.8, coarse=AutoregressiveSampler(temperature=1.2))
    for known in (0, 1):
        codes = Tokens.unknown(model.spec, 1).codes[0]
        codes[:1, :known] = 1
        case = Case(0, codes, model.spec.positions)
        right = refined_distribution(model, case, sampler, labels_of=ending_distribution)
        assert len({int((outcome[0] >= 0).sum()) for outcome in right.outcomes}) > 1
        assert same(enumerated(sampler, model, case), right)
    out = sampler(model, Condition({"class": Class(torch.zeros(40, dtype=torch.int64))}), rng=RowRNG(range(40)))
    assert len(out.tokens.lengths.unique()) > 1
    assert torch.equal(out.tokens.present[:, 0], torch.arange(2) < out.tokens.lengths[:, None])


@pytest.mark.parametrize("guidance", [PLAIN, (2.0, "constant")])
def test_log_weights_turn_what_is_given_known_labels_into_what_is_given_known_ids(guidance):
    model, sampler = TabularRefines("k1", scale=1.5), CoarseToFineSampler(temperature=0.9)
    codes = torch.tensor([[2, UNKNOWN, UNKNOWN]])
    case, n = Case(1, codes, 3), 60_000
    condition = Condition({"class": Class(torch.ones(n, dtype=torch.int64))})
    out = sampler(guided(model, *guidance), condition, rng=RowRNG(range(n)), known=Tokens(codes.expand(n, 1, 3).clone(), model.spec))
    right = refined_distribution(model, case, sampler, guidance, posterior=True)
    weight = out.log_weight.exp().numpy()
    assert weight.std() > 0.05 * weight.mean()

    def share(weight):
        total = np.zeros(len(right.p))
        np.add.at(total, [right.index[row.contiguous().numpy().tobytes()] for row in out.tokens.codes], weight)
        return 0.5 * np.abs(total / total.sum() - right.p).sum()

    assert share(weight) < 0.01 < 0.02 < share(np.ones(n))
    assert sampler(model, condition.rows([0]), rng=RowRNG([0])).log_weight is None


# ------------------------------------------------------------------------------------------------------------- with networks


def network(name, dtype=torch.float64, **settings):
    spec = SPECS[name]
    own = {"width": 16, "depth": 2, "heads": 2, "refiner_width": 16, "refiner_depth": 2, "refiner_heads": 2, **settings}
    model = CoarseToFine(spec, CLASSES, clusters=2, clustering="random", **own).to(dtype).eval()
    return randomized(model, len(name))


@torch.no_grad()
def network_distribution(model, case):
    """exp(-nll) of every item: of an item of which nothing is known."""
    outcomes = completions(case.codes, model.spec)
    condition = Condition({"class": Class(torch.full((len(outcomes),), case.class_id))})
    return Distribution(outcomes, (-model.nll_bound(Tokens(outcomes, model.spec), condition)).exp().numpy())


@pytest.mark.parametrize(("name", "settings"), [("k1", {}), ("k2", {"layout": "delayed", "condition_by": "adaln"}), ("strided", {})])
def test_a_network_draws_what_its_likelihood_says(name, settings):
    model = network(name, **settings)
    cases = [Case(class_id, Tokens.unknown(model.spec, 1).codes[0], model.spec.positions) for class_id in (0, 1)]
    assert agreement(sample(CoarseToFineSampler(), model, cases, 3000), [network_distribution(model, case) for case in cases]) > 1e-3


@pytest.mark.parametrize("kind", ["table", "network", "ends"])
def test_a_row_of_a_batch_equals_that_row_alone(kind):
    model = TabularRefines("k2", "delayed") if kind == "table" else network("k1" if kind == "ends" else "k2", ends=kind == "ends")
    cases = cases_of(model)
    together, by_itself = alone(CoarseToFineSampler(temperature=0.9), guided(model, 2.0, "linear"), cases, n=8)
    assert (together == by_itself).all()


# ------------------------------------------------------------------------------------------------------------ costs, refusals


def test_calls_are_those_of_the_labels_and_one_and_both_networks_are_named():
    model = TabularRefines("k2", "level_major")
    codes = Tokens.unknown(model.spec, 4).codes
    codes[1, 0] = 1  # a level is known
    codes[2:] = 1  # everything is
    condition, seen = Condition({"class": Class(torch.zeros(4, dtype=torch.int64))}), []
    out = CoarseToFineSampler()(model, condition, rng=RowRNG(range(4)), known=Tokens(codes, model.spec), on_step=lambda *a: seen.append(a))
    assert out.calls.tolist() == [5, 3, 0, 0]
    assert out.network_calls["refiner"] == (1, 2 * 2) and out.network_calls["coarse"][0] == 4 and len(out.network_calls) == 2
    assert torch.equal(out.tokens.codes[codes != UNKNOWN], codes[codes != UNKNOWN]) and out.tokens.present.all()
    assert [(step, of) for _, step, of in seen] == [(i, 5) for i in range(1, 6)] and seen[-1][0].present.all()
    assert out.log_weight[2:].tolist() == [0, 0] and out.log_weight[0] == 0
    twice = CoarseToFineSampler()(guided(model, 2.0), condition, rng=RowRNG(range(4)), known=Tokens(codes, model.spec))
    assert twice.network_calls["refiner"] == (1, 2 * 2 * 2)


def test_known_ids_of_a_model_whose_ids_may_leave_their_clusters_are_refused_or_forced():
    model = TabularRefines("k1", members=False)
    known = Tokens(torch.tensor([[[1, UNKNOWN, UNKNOWN]]]), model.spec)
    condition = Condition({"class": Class(torch.tensor([0]))})
    with pytest.raises(ValueError, match="members=true, or set sampler.forced=true") as error:
        CoarseToFineSampler()(model, condition, rng=RowRNG([0]), known=known)
    assert "\n" not in str(error.value)
    assert CoarseToFineSampler(forced=True)(model, condition, rng=RowRNG([0]), known=known).stats == {"forced": True}
    assert CoarseToFineSampler()(model, condition, rng=RowRNG([0])).stats == {}


def test_a_sampler_of_other_models_draws_no_labels():
    with pytest.raises(ValueError, match="sampler.coarse=maskgit is of Masked generators.*autoregressive"):
        CoarseToFineSampler(coarse=MaskGIT())
    hot = CoarseToFineSampler(temperature=1.1, top_k=2)
    assert hot.coarse == AutoregressiveSampler(temperature=1.1, top_k=2), "what is not said twice holds for both"


# ----------------------------------------------------------------------------------------------------------------- mutants


class WrongLabels(TabularRefines):
    """The refiner is given the labels of the position before."""

    def logits(self, labels, condition):
        return super().logits(Tokens(labels.codes.roll(1, 2), labels.spec), condition)


class WrongMembers(TabularRefines):
    """Its logits are those of the labels; possible are the ids of another cluster."""

    def outside(self, labels, own):
        return super().outside((labels + 1) % (max(own) + 1), own)


class OtherCondition(TabularRefines):
    def logits(self, labels, condition):
        return super().logits(labels, condition.null())


def test_mutants_are_told_from_it():
    guidance, sampler = (1.5, "constant"), CoarseToFineSampler(temperature=0.9)
    model = TabularRefines("k1")
    case = Case(0, Tokens.unknown(model.spec, 1).codes[0], 3)
    right = refined_distribution(model, case, sampler, guidance)
    assert gap(enumerated(sampler, guided(model, *guidance), case), right) < 1e-11
    once = guided(model, *guidance)
    once.coarse = model.coarse
    for name, off in {
        "one stage's temperature": enumerated(replace(sampler, coarse=AutoregressiveSampler()), guided(model, *guidance), case),
        "the other's": enumerated(replace(sampler, temperature=0.92), guided(model, *guidance), case),
        "one stage's guidance": enumerated(sampler, once, case),
        "a little more guidance": enumerated(sampler, guided(model, 1.53), case),
    }.items():
        assert gap(off, right) > 1e-3 and variation(off, right) < 0.2, name
    for mutant in (WrongLabels, WrongMembers, OtherCondition):
        assert gap(enumerated(sampler, guided(mutant("k1"), *guidance), case), right) > 0.1, mutant


def test_impossible_members_are_never_drawn_and_a_mutant_of_it_is_told():
    n = 500
    condition = Condition({"class": Class(torch.zeros(n, dtype=torch.int64))})
    for kind, right in ((TabularRefines, True), (WrongMembers, False)):
        model, drawn = kind("k2", "delayed"), []

        class Seen(AutoregressiveSampler):
            def __call__(self, *args, **options):
                out = super().__call__(*args, **options)
                drawn.append(out.tokens.codes)  # noqa: B023
                return out

        out = CoarseToFineSampler(coarse=Seen(), temperature=3.0)(model, condition, rng=RowRNG(range(n)))
        assert torch.equal(model.labels(out.tokens.codes), drawn[0]) == right


def test_samples_of_a_mutant_fall():
    """Two cells of the refiner are drawn by one number: each is right by itself, and they are dependent."""

    class Together(CoarseToFineSampler):
        def run(self, request):
            honest = request.choose

            def choose(logits, rng):
                if logits.dim() == 4:  # the refiner's
                    return torch.stack([honest(logits[:, :, n], rng.fork(0)) for n in range(logits.shape[2])], 2)
                return honest(logits, rng)

            return super().run(replace(request, choose=choose))

    model = TabularRefines("k1", scale=0.3)
    cases = [Case(0, Tokens.unknown(model.spec, 1).codes[0], 3)]
    distributions = [refined_distribution(model, case, CoarseToFineSampler()) for case in cases]
    assert agreement(sample(CoarseToFineSampler(), model, cases, 6000), distributions) > 1e-3
    assert rejects(sample(Together(), model, cases, 6000), distributions, within=0.5)


def test_tables_with_impossible_ids_make_the_enumerated_distribution():
    for name in CLUSTERS:
        model = TabularRefines(name, scale=1.5)
        changed(model.coarse, some_impossible)
        case = Case(1, Tokens.unknown(model.spec, 1).codes[0], model.spec.positions)
        assert gap(enumerated(CoarseToFineSampler(), model, case), refined_distribution(model, case, CoarseToFineSampler())) < 1e-11
