"""Samplers of causal, any-order and self-speculative models make exactly their enumerated distributions in every setting (enumeration.py);
trees of steps hold the same distribution; a GPU draws what a CPU draws."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from any_order_kit import TabularAnyOrder, mean_distribution, ordered_distribution
from enumeration import changed, enumerated, gap, same, some_impossible, variation
from kit import CLASSES, Case, Distribution, TabularCausal, causal_distribution, checkered, completions, reference_filter
from random_weights import randomized
from self_speculative_kit import Tabular, window_distribution
from test_exact_networks import network
from test_exact_settings import GRIDS, SETTINGS, leak, leans
from test_exact_settings import cases_of as scattered

from gentok.generators.autoregressive import Autoregressive
from gentok.generators.depth import DepthTransformer
from gentok.generators.masked import MaskedTransformer
from gentok.layouts import Layout
from gentok.rng import RowRNG
from gentok.samplers.any_order import AnyOrderSampler
from gentok.samplers.any_subset import AnySubset
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.first_hitting import FirstHitting
from gentok.samplers.guided import guided
from gentok.samplers.maskgit import MaskGIT
from gentok.samplers.self_speculative import SelfSpeculativeSampler
from gentok.types import ABSENT, NULL_CLASS, UNKNOWN, Class, Condition, Line, Tokens, TokenSpec

CHANGES = {
    "plain": lambda make: make(1.0),
    "nearly certain": lambda make: make(6.0),  # ids of 1e-6 and less beside one of nearly 1
    "impossible": lambda make: changed(make(1.0), some_impossible),
    "float32": lambda make: changed(make(1.0), lambda logits: logits.float()),
}


def table(make, number):
    """One of the tables above of `make(scale)`."""
    return list(CHANGES.values())[number % len(CHANGES)](make)


# ------------------------------------------------------------------------------------------------------------------ causal

ORDERS = [
    (name, layout)
    for name, spec in GRIDS.items()
    for layout in (("raster",) if spec.levels == 1 else ("level_major", "position_major", "delayed", "parallel"))
]


def causal_cases(spec, layout):
    """Nothing known; known slots beside masked ones of their step; everything known; nothing there; a level dropped, and a shorter item."""
    layout, n, out = Layout.of(layout, spec), spec.positions, []

    def case(class_id, length, known):
        codes = Tokens.unknown(spec, 1, torch.tensor([length])).codes[0]
        for i, (k, p) in enumerate(spec.exists().nonzero().tolist()):
            if codes[k, p] == UNKNOWN and known(int(layout.step[k, p]), int(layout.slot[k, p])):
                codes[k, p] = i % spec.vocab_sizes[k]
        out.append(Case(class_id, codes, length))

    case(0, n, lambda s, g: False)
    for at in range(layout.steps):
        case(1, n, lambda s, g, at=at: s < at or (s == at and g % 2 == 0))
        case(0, n, lambda s, g, at=at: s < at or (s == at and g % 2 == 1))
    case(NULL_CLASS, n, lambda s, g: True)
    case(1, 0, lambda s, g: False)
    case(0, max(n - 1, 1), lambda s, g: s == 0)
    if spec.levels > 1:
        dropped = out[0].codes.clone()
        dropped[-1] = ABSENT
        out.append(Case(1, dropped, n))
    return out


def causal_model(order, number):
    name, layout = order
    return table(lambda scale: TabularCausal(GRIDS[name], layout, scale), number)


@checkered(order=["/".join(order) for order in ORDERS], setting=SETTINGS)
def test_autoregressive_sampling_makes_the_enumerated_distribution(order, setting):
    order = tuple(order.split("/"))
    arguments, guidance = SETTINGS[setting]
    model, sampler = causal_model(order, ORDERS.index(order) + list(SETTINGS).index(setting)), AutoregressiveSampler(**arguments)
    for case in causal_cases(model.spec, order[1]):
        expected = causal_distribution(model, case, sampler, guidance)
        assert same(enumerated(sampler, guided(model, *guidance), case), expected), case


@pytest.mark.parametrize("order", ORDERS, ids="/".join)
def test_mutants_of_autoregressive_sampling_are_told_from_it(order):
    guidance, sampler = (1.5, "constant"), AutoregressiveSampler()
    model = causal_model(order, 0)
    case = causal_cases(model.spec, order[1])[0]
    right = causal_distribution(model, case, sampler, guidance)
    for off in (
        enumerated(replace(sampler, temperature=1.02), guided(model, *guidance), case),
        enumerated(sampler, guided(model, 1.53), case),
        enumerated(sampler, guided(changed(causal_model(order, 0), leans), *guidance), case),
    ):
        assert gap(off, right) > 1e-3 and variation(off, right) < 0.1


def test_mutants_that_leak_or_do_not_look_at_known_slots_are_told():
    order, sampler = ("coarse ids are fewer", "parallel"), AutoregressiveSampler()
    spec = GRIDS[order[0]]
    case = causal_cases(spec, "parallel")[1]  # level 0 of position 0 is known, level 1 is drawn beside it
    assert (case.codes[:, 0].tolist(), case.codes[:, 1].tolist()) == ([0, UNKNOWN], [UNKNOWN, UNKNOWN])
    right = causal_distribution(causal_model(order, 0), case, sampler)

    class Forgets(TabularCausal):
        def logits(self, ids, cache, at, parents=None):
            other = ids.clone()
            other[(at[:, None] + torch.arange(ids.shape[1]) == 1) & (ids[..., 0] >= 0), 0] = 1
            return super().logits(other, cache, at, parents)

    assert gap(enumerated(sampler, Forgets(spec, "parallel"), case), right) > 1e-3
    line = TokenSpec((3,), Line(3))
    case, model = causal_cases(line, "raster")[0], changed(TabularCausal(line), some_impossible)
    right = causal_distribution(model, case, sampler)
    assert gap(enumerated(sampler, changed(changed(TabularCausal(line), some_impossible), leak), case), right) > 0.5


# ------------------------------------------------------------------------------------------------------- any order, self-speculation

SEVERAL = {
    "any_order": (AnyOrderSampler(), TabularAnyOrder, ordered_distribution),
    "any_order, random": (AnyOrderSampler(order="random"), TabularAnyOrder, mean_distribution),
    "any_subset": (AnySubset(k=3), TabularAnyOrder, ordered_distribution),
    "any_subset of two, random": (AnySubset(k=2, order="random"), TabularAnyOrder, mean_distribution),
    "self_speculative": (SelfSpeculativeSampler(window=2), Tabular, window_distribution),
    "self_speculative, one window": (SelfSpeculativeSampler(window=9), Tabular, window_distribution),
}
"""Known cells are scattered, on one, two and three levels."""


def several(family, setting, every):
    sampler, make, reference = SEVERAL[family]
    arguments, guidance = SETTINGS[setting]
    shift = list(SEVERAL).index(family) + list(SETTINGS).index(setting) // 2
    for i, spec in enumerate(GRIDS.values()):
        if (i + shift) % every:
            continue
        model = table(lambda scale, spec=spec: make(spec, scale), (i + shift) // 2)
        for case in scattered(spec):
            most = 81 if reference is ordered_distribution else 9 if sampler == SelfSpeculativeSampler(window=9) else 18
            if len(completions(case.codes, spec)) <= most:
                yield replace(sampler, **arguments), model, case, guidance, reference


@checkered(family=SEVERAL, setting=SETTINGS)
def test_cells_in_an_order_make_the_enumerated_distribution(family, setting):
    for sampler, model, case, guidance, reference in several(family, setting, 4):
        assert same(enumerated(sampler, guided(model, *guidance), case), reference(model, case, sampler, guidance)), case


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", SEVERAL)
def test_cells_in_an_order_make_the_enumerated_distribution_on_every_grid(family, setting):
    for sampler, model, case, guidance, reference in several(family, setting, 1):
        assert same(enumerated(sampler, guided(model, *guidance), case), reference(model, case, sampler, guidance)), case


@pytest.mark.parametrize("family", SEVERAL)
def test_mutants_of_every_order_are_told_from_it(family):
    sampler, make, reference = SEVERAL[family]
    spec, guidance = TokenSpec((2, 2), Line(2)), (1.5, "linear")
    case = scattered(spec)[0]
    case.codes[0, 1] = 1  # scattered on two levels: what is left is of both
    right = reference(make(spec), case, sampler, guidance)
    assert same(enumerated(sampler, guided(make(spec), *guidance), case), right)
    for off in (
        enumerated(replace(sampler, temperature=1.02), guided(make(spec), *guidance), case),
        enumerated(sampler, guided(make(spec), 1.53, "linear"), case),
        enumerated(sampler, guided(changed(make(spec), leans), *guidance), case),
    ):
        assert gap(off, right) > 1e-3 and variation(off, right) < 0.1
    other = {
        AnyOrderSampler: lambda: AnyOrderSampler(order="random" if sampler.order == "left_to_right" else "left_to_right"),
        AnySubset: lambda: AnySubset(k=sampler.k, order="random" if sampler.order == "left_to_right" else "left_to_right"),
        SelfSpeculativeSampler: lambda: SelfSpeculativeSampler(window=2 if sampler.window > 2 else 1),
    }[type(sampler)]()
    assert gap(enumerated(other, guided(make(spec), *guidance), case), right) > 1e-3


@pytest.mark.parametrize("family", ["any_subset", "self_speculative, one window"])
def test_mutant_that_accepts_a_little_too_often_is_told(family, monkeypatch):
    from gentok.samplers import any_subset, self_speculative

    sampler, make, reference = SEVERAL[family]
    spec = TokenSpec((2, 2), Line(2))
    case = scattered(spec)[0]
    case.codes[1, 0] = 1
    right, honest = reference(make(spec), case, sampler), any_subset.accepted
    monkeypatch.setattr(any_subset, "accepted", lambda p, *rest: honest(p * 1.02, *rest))
    kind = type("Eager", (SelfSpeculativeSampler,), {"_accept": staticmethod(lambda p, *rest: honest(p * 1.02, *rest))})
    mutant = sampler if isinstance(sampler, AnySubset) else kind(window=sampler.window)
    off = enumerated(mutant, make(spec), case)
    assert gap(off, right) > 1e-3 and variation(off, right) < 0.05
    assert self_speculative.accepted is honest


# ------------------------------------------------------------------------------------------------------------------- trees


def tree(layout, spec):
    """All prefixes of all items as one tree of fed steps: ids int64 [1, S, G], parents int64 [1, S], and {prefix: its number}."""
    numbers, ids, parents, level = {(): 0}, [[spec.vocab + 1] * layout.slots], [-1], [()]
    for s in range(layout.steps - 1):
        steps = list(itertools.product(*([ABSENT] if k < 0 else range(spec.vocab_sizes[k]) for k in layout.level[s].tolist())))
        after = []
        for prefix, step in itertools.product(level, steps):
            numbers[(*prefix, step)] = len(ids)
            ids.append(list(step))
            parents.append(numbers[prefix])
            after.append((*prefix, step))
        level = after
    return torch.tensor(ids)[None], torch.tensor(parents)[None], numbers


@torch.no_grad()
def tree_distribution(model, class_id, sampler, parents=None):
    """The joint distribution of all cells, every conditional of which is read from one call with a tree."""
    layout, spec = model.layout, model.spec
    ids, own, numbers = tree(layout, spec)
    ids[0, 0] = model.begin
    cache = model.init_cache(Condition({"class": Class(torch.tensor([class_id]))}), 1, ids.shape[1])
    logits = model.logits(ids, cache, torch.tensor([0]), own if parents is None else parents)[0].double().numpy()
    outcomes = completions(Tokens.unknown(spec, 1).codes[0], spec)
    p = np.ones(len(outcomes))
    for row, flat in enumerate(layout.flatten(outcomes).tolist()):
        for s, step in enumerate(flat):
            for g, (k, id_) in enumerate(zip(layout.level[s].tolist(), step)):
                if k >= 0:
                    p[row] *= reference_filter(logits[numbers[tuple(map(tuple, flat[:s]))], g, : spec.vocab_sizes[k]], sampler)[id_]
    return Distribution(outcomes, p)


SMALL = {"line": TokenSpec((3,), Line(3)), "two": TokenSpec((2, 3), Line(2)), "strided": TokenSpec((2, 2), Line(3), strides=(2, 1))}
TREES = [
    *(
        ("table", spec, layout)
        for spec, layout in (("line", "raster"), ("two", "delayed"), ("two", "parallel"), ("strided", "level_major"))
    ),
    *(("network", spec, layout) for spec, layout in (("line", "raster"), ("two", "delayed"), ("strided", "position_major"))),
    *(("depth", spec, "position_major") for spec in SMALL),
]


def tree_model(kind, spec, layout):
    spec = SMALL[spec]
    if kind == "table":
        return TabularCausal(spec, layout)
    cls, own = (DepthTransformer, {"level_width": 8, "level_heads": 2}) if kind == "depth" else (Autoregressive, {"layout": layout})
    model = cls(spec, CLASSES, width=16, depth=2, heads=2, **own).double().eval()
    return randomized(model, 1)


@pytest.mark.parametrize("guidance", [(1.0, "constant"), (0.5, "constant"), (2.0, "linear")], ids=str)
@pytest.mark.parametrize(("kind", "spec", "layout"), TREES, ids="-".join)
def test_a_tree_of_all_prefixes_holds_the_enumerated_distribution(kind, spec, layout, guidance):
    model, sampler = tree_model(kind, spec, layout), AutoregressiveSampler(temperature=0.8)
    case = Case(1, Tokens.unknown(model.spec, 1).codes[0], model.spec.positions)
    right = causal_distribution(model, case, sampler, guidance)
    assert same(tree_distribution(guided(model, *guidance), 1, sampler), right)
    wrong = tree(model.layout, model.spec)[1].clone()
    wrong[0, -1] = wrong[0, 1]  # the last prefix hangs on the first step: one conditional is another's
    if not (kind == "table" and layout == "parallel"):
        assert gap(tree_distribution(guided(model, *guidance), 1, sampler, wrong), right) > 1e-3


@pytest.mark.parametrize(("kind", "spec", "layout"), TREES, ids="-".join)
def test_what_follows_a_committed_path_is_what_follows_these_steps(kind, spec, layout):
    model = guided(tree_model(kind, spec, layout), 2.0, "linear")
    codes = completions(Tokens.unknown(model.spec, 1).codes[0], model.spec)[5:6]
    fed, condition = model.feed(codes), Condition({"class": Class(torch.tensor([0]))})
    with torch.no_grad():
        flat = model.logits(fed, model.init_cache(condition, 1, model.layout.steps), torch.tensor([0]))
        cache, steps = model.init_cache(condition, 1, 2 * model.layout.steps), fed.shape[1]
        other = torch.where(fed[:, 1:2] > 0, 0, torch.where(fed[:, 1:2] < 0, fed[:, 1:2], 1))  # a sibling that is not taken
        ids = torch.cat((fed[:, :1], other, fed[:, 1:2]), 1)
        model.logits(ids, cache, torch.tensor([0]), torch.tensor([[-1, 0, 0]]))
        model.commit(cache, torch.tensor([0]), torch.tensor([[0, 2]]))
        if steps > 2:
            rest = model.logits(fed[:, 2:], cache, torch.tensor([2]))
            assert torch.allclose(rest, flat[:, 2:], atol=1e-9)


# --------------------------------------------------------------------------------------------------------------------- GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU, or CUDA_VISIBLE_DEVICES hides it")


@needs_gpu
def test_a_gpu_has_the_random_numbers_of_a_cpu_to_the_bit():
    for draw in (
        lambda rng: rng.words(3, 5),
        lambda rng: rng.uniform(1000),
        lambda rng: rng.fork("a").uniform(7),
        lambda rng: rng.permutation(50),
    ):
        cpu, gpu = RowRNG.of(3, torch.arange(40)), RowRNG.of(3, torch.arange(40)).to("cuda")
        for rows in (torch.arange(40), torch.tensor([7, 3])):
            assert torch.equal(draw(cpu.rows(rows)), draw(gpu.rows(rows.cuda())).cpu())


@needs_gpu
@pytest.mark.parametrize(
    ("cls", "sampler"),
    [(Autoregressive, AutoregressiveSampler(top_p=0.9)), (MaskedTransformer, FirstHitting()), (MaskedTransformer, MaskGIT(steps=3))],
)
def test_a_gpu_samples_the_codes_of_a_cpu_in_float64(cls, sampler):
    model, n = network(cls, "k2"), 400
    known = Tokens(torch.full((n, 2, 3), UNKNOWN), model.spec)
    known.codes[::2, :, 0] = 1
    classes = torch.arange(n) % 2

    def run(device):
        model.to(device)
        given = Tokens(known.codes.clone().to(device), model.spec)
        rng = RowRNG.of(0, torch.arange(n)).to(device)
        return sampler(
            guided(model, 2.0, "linear"), Condition({"class": Class(classes.to(device))}), rng=rng, known=given
        ).tokens.codes.cpu()

    assert torch.equal(run("cpu"), run("cuda"))
