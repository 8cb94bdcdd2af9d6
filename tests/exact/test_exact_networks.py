"""The exactness kit on real two-layer networks in float64: caches, conditioning and heads are part of what is
drawn from."""

import itertools

import pytest
import torch
from kit import (
    CLASSES,
    COMMON,
    LAYOUTS,
    SPECS,
    agreement,
    alone,
    altered,
    cases_of,
    causal_distribution,
    near_tie,
    random_order_distribution,
    rejects,
    sample,
)  # fmt: skip
from random_weights import randomized

from gentok.generators.autoregressive import Autoregressive
from gentok.generators.depth import DepthTransformer
from gentok.generators.llamagen import LlamaGen
from gentok.generators.masked import MaskedTransformer
from gentok.generators.rar import RAR
from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.first_hitting import FirstHitting
from gentok.samplers.guided import guided
from gentok.samplers.jacobi import Jacobi
from gentok.samplers.maskgit import MaskGIT
from gentok.types import Class, Condition, Raster, Tokens, TokenSpec

SETTINGS = {
    **COMMON,
    "linear guidance": ({"top_p": 0.9}, (2.0, "linear")),
}
SQUARE = TokenSpec((3,), Raster(2, 2))
RANDOM_ORDER = {"steps": 8, "schedule": "linear", "choice_temperature": 1e9}
ORDERS = [(spec, layout) for spec in SPECS for layout in LAYOUTS[spec] if layout != "auto"]
EVERY = list(itertools.product(ORDERS, SETTINGS))
QUICK = [(order, list(SETTINGS)[i % len(SETTINGS)]) for i, order in enumerate(ORDERS)][::2] + [(("k1", "raster"), "linear guidance")]


def network(cls, spec, dtype=torch.float64, **settings):
    """Two layers of width 16 with random weights, large enough that the distribution depends on everything
    and is far from uniform."""
    model = cls(SQUARE if spec == "square" else SPECS[spec], CLASSES, width=16, depth=2, heads=2, **settings).to(dtype).eval()
    return randomized(model, len(spec))


def run(spec, layout, setting, n):
    arguments, guidance = SETTINGS[setting]
    model, sampler = network(Autoregressive, spec, layout=layout), AutoregressiveSampler(**arguments)
    cases = cases_of(model)
    return sample(sampler, guided(model, *guidance), cases, n, seed=3), [
        causal_distribution(model, case, sampler, guidance) for case in cases
    ]


@pytest.mark.parametrize(("order", "setting"), QUICK, ids=[f"{'-'.join(order)}-{setting}" for order, setting in QUICK])
def test_a_causal_network_draws_its_enumerated_distribution(order, setting):
    assert agreement(*run(*order, setting, n=1200)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("order", "setting"), EVERY, ids=[f"{'-'.join(order)}-{setting}" for order, setting in EVERY])
def test_a_causal_network_draws_its_enumerated_distribution_in_the_full_product(order, setting):
    assert agreement(*run(*order, setting, n=3000)) > 1e-3


@pytest.mark.parametrize(("spec", "setting"), [("k1", "plain"), ("k2", "temperature 0.7"), ("strided", "linear guidance")])
def test_a_depth_transformer_draws_its_enumerated_distribution(spec, setting):
    arguments, guidance = SETTINGS[setting]
    model, sampler = network(DepthTransformer, spec, level_width=8, level_heads=2), AutoregressiveSampler(**arguments)
    cases = cases_of(model)
    distributions = [causal_distribution(model, case, sampler, guidance) for case in cases]
    assert agreement(sample(sampler, guided(model, *guidance), cases, 1200, seed=3), distributions) > 1e-3


@pytest.mark.parametrize(
    "cls, sampler",
    [
        (LlamaGen, AutoregressiveSampler(temperature=0.7)), (LlamaGen, Jacobi(window=3)), (RAR, AutoregressiveSampler(temperature=0.7)),
        pytest.param(RAR, Jacobi(window=3), marks=pytest.mark.slow),
    ],
    ids=["llamagen-autoregressive", "llamagen-jacobi", "rar-autoregressive", "rar-jacobi"],
)  # fmt: skip
def test_a_released_network_draws_its_enumerated_distribution(cls, sampler):
    model = network(cls, "square")
    cases = cases_of(model)
    distributions = [causal_distribution(model, case, sampler, (2.0, "constant")) for case in cases]
    assert agreement(sample(sampler, guided(model, 2.0), cases, 800, seed=3), distributions) > 1e-3


@pytest.mark.parametrize("by", ["cross", "adaln"])
def test_every_way_of_conditioning_draws_its_distribution(by):
    model = network(Autoregressive, "k2", layout="delayed", condition_by=by)
    cases = cases_of(model)
    sampler = AutoregressiveSampler(temperature=0.7)
    distributions = [causal_distribution(model, case, sampler, (2.0, "constant")) for case in cases]
    assert agreement(sample(sampler, guided(model, 2.0), cases, 1000), distributions) > 1e-3


@pytest.mark.parametrize(
    ("setting", "uses_time"),
    [
        pytest.param("plain", False, marks=pytest.mark.slow), pytest.param("plain", True, marks=pytest.mark.slow),
        pytest.param("top-k 2", False, marks=pytest.mark.slow), pytest.param("guidance 2", False, marks=pytest.mark.slow),
        ("temperature 0.7", False), ("linear guidance", True),
    ],
)  # fmt: skip
def test_a_masked_network_in_random_order_draws_its_any_order_distribution(setting, uses_time):
    arguments, guidance = SETTINGS[setting]
    model, sampler = network(MaskedTransformer, "k1", uses_time=uses_time), MaskGIT(**arguments, **RANDOM_ORDER)
    cases = cases_of(model)
    distributions = [random_order_distribution(model, case, sampler, guidance) for case in cases]
    assert agreement(sample(sampler, guided(model, *guidance), cases, 1200, seed=3), distributions) > 1e-3


# ----------------------------------------------------------------------------------------------------------------- mutants


def test_mutant_temperature_slightly_off():
    _, distributions = run("k2", "delayed", "temperature 0.7", n=10)
    model = network(Autoregressive, "k2", layout="delayed")
    assert rejects(sample(AutoregressiveSampler(temperature=0.77), model, cases_of(model), 4000), distributions)


@pytest.mark.slow
def test_mutant_that_forgets_guidance_in_the_last_step():
    model = network(Autoregressive, "k1", layout="raster")
    cases = cases_of(model)
    distributions = [causal_distribution(model, case, AutoregressiveSampler(), (1.5, "constant")) for case in cases]

    def undo(logits, ids, cache, at):
        plain = model.logits(ids.repeat(2, 1, 1), cache, at.repeat(2)).chunk(2)[0]
        last = at[:, None] + torch.arange(ids.shape[1]) == model.layout.steps - 1
        return torch.where(last[:, :, None, None], plain, logits)

    assert rejects(sample(AutoregressiveSampler(), altered(guided(model, 1.5), undo), cases, 2500), distributions)


@pytest.mark.slow
def test_mutant_order_that_is_not_random():
    model, sampler = network(MaskedTransformer, "k1"), MaskGIT(**{**RANDOM_ORDER, "choice_temperature": 4.0})
    cases = cases_of(model)
    distributions = [random_order_distribution(model, case, sampler) for case in cases]
    assert rejects(sample(sampler, model, cases, 4000), distributions)


# -------------------------------------------------------------------------------------------------------------- rows alone


GENERATORS = {
    "autoregressive": (Autoregressive, {"layout": "delayed"}, AutoregressiveSampler()),
    "maskgit": (MaskedTransformer, {}, MaskGIT(steps=3)),
    "first_hitting": (MaskedTransformer, {}, FirstHitting()),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_row_of_a_float64_batch_equals_that_row_alone(name):
    cls, settings, sampler = GENERATORS[name]
    model = guided(network(cls, "k2", **settings), 2.0, "linear")
    together, by_itself = alone(sampler, model, cases_of(model), n=8)
    assert (together == by_itself).all()


@pytest.mark.parametrize("name", GENERATORS)
def test_a_row_of_a_float32_batch_equals_that_row_alone_but_for_near_ties(name):
    cls, settings, sampler = GENERATORS[name]
    model = network(cls, "k2", torch.float32, **settings)
    cases, n = cases_of(model), 20
    together, by_itself = alone(sampler, model, cases, n)
    differ = (together != by_itself).flatten(1).any(1)
    assert differ.double().mean() <= 0.01
    for row in differ.nonzero()[:, 0].tolist():
        assert near_tie(sampler, model, cases, n, row)


def test_near_ties_are_told_from_other_rows():
    """A row whose uniform lies within rounding of a boundary is a near-tie; ordinary rows are none."""
    model = network(Autoregressive, "k1", torch.float32)
    cases = cases_of(model)
    assert not any(near_tie(AutoregressiveSampler(), model, cases, 4, row, tries=8) for row in range(8))

    class Edge(RowRNG):
        def uniform(self, *shape):
            return torch.full((self.batch, *shape), edge, dtype=torch.float64)

    blank = Tokens.unknown(model.spec, 1)
    condition = Condition({"class": Class(torch.tensor([0]))})
    cache = model.init_cache(condition, 1, 1)
    with torch.no_grad():
        edge = float(model.logits(model.begin.expand(1, 1, 1), cache, torch.tensor([0]))[0, 0, 0].double().softmax(0)[0])
    seen = set()
    for attempt in range(10):
        shaken = altered(model, lambda logits, *_, a=attempt: logits + 1e-5 * RowRNG([a]).normal(*logits.shape)[0].float())
        seen.add(AutoregressiveSampler()(shaken, condition, rng=Edge([0]), known=blank).tokens.codes.numpy().tobytes())
    assert len(seen) > 1
