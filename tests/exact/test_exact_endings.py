"""Items that end by themselves: their lengths and codes are drawn from the enumerated distribution, and near
misses of it are noticed."""

import itertools

import numpy as np
import pytest
import torch
from enumeration import changed, enumerated, gap, same, variation
from kit import (
    CLASSES,
    SPECS,
    Case,
    Distribution,
    TabularCausal,
    agreement,
    alone,
    checkered,
    completions,
    reference_filter,
    reference_guided,
    reference_scale,
    rejects,
    sample,
)

from gentok.generators.autoregressive import Autoregressive
from gentok.generators.depth import DepthTransformer
from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.guided import guided
from gentok.types import ABSENT, NULL_CLASS, UNKNOWN, Class, Condition, Line, Tokens, TokenSpec

FEW = [("k1", "raster"), ("k2", "depth"), ("narrow", "delayed")]
GRID = [("k1", "raster"), ("k2", "delayed"), ("k2", "level_major"), ("k2", "position_major"), ("k2", "parallel"), ("narrow", "delayed")]
SPECS = {**SPECS, "narrow": type(SPECS["k2"])((2, 3), SPECS["k2"].grid)}  # level 0 has fewer ids than level 1


class Ending(TabularCausal):
    """The table with an end id: one more distribution per history, at level 0."""

    ends = True

    def logits(self, ids, cache, at, parents=None):
        out = super().logits(ids, cache, at, parents)
        _, history = cache.last
        depth = (at[:, None] + torch.arange(ids.shape[1])).clamp(max=self.layout.steps - 1)
        end = RowRNG(history.reshape(-1) ^ 12345).normal(self.layout.slots).view(*history.shape, -1) * self.scale - 0.5
        end = end.masked_fill(self.layout.level[depth] != 0, -torch.inf)
        return torch.cat((out, end[..., None]), -1)


def cases_of(spec):
    """Rows of several classes, maximal lengths and known prefixes (of level 0 and of all levels)."""
    out = []
    for class_id, length, known in ((0, spec.positions, 0), (1, spec.positions - 1, 0), (NULL_CLASS, spec.positions, 1)):
        codes = Tokens.unknown(spec, 1, torch.tensor([length])).codes[0]
        codes[:1, :known] = 1  # the first cell of level 0 precedes all others in every order
        out.append(Case(class_id, codes, length))
    return out


def distribution_of(model, case, sampler, guidance=(1.0, "constant")):
    """The distribution of (codes, where the item ends), from the model's own logits of every outcome in one
    uncached pass."""
    layout, spec, (scale, schedule) = model.layout, model.spec, guidance
    outcomes, ends = [], []
    known = max([0, *((case.codes >= 0).any(0).nonzero()[:, 0] + 1).tolist()])  # an item does not end before a known cell
    for end in [*(n for n in range(known, case.length) if case.codes[0, n] == UNKNOWN), None]:
        codes = case.codes.clone()
        if end is not None:
            codes[:, end:] = ABSENT
        found = completions(codes, spec)
        outcomes.append(found)
        ends += [end] * len(found)
    outcomes = torch.cat(outcomes)
    ids, m = layout.flatten(outcomes), len(outcomes)
    fed = torch.cat([model.begin.expand(m, 1, layout.slots), ids[:, :-1]], 1)

    def branch(class_id):
        cache = model.init_cache(Condition({"class": Class(torch.full((m,), class_id))}), m, layout.steps)
        return model.logits(fed, cache, torch.zeros(m, dtype=torch.int64)).detach().double().numpy()

    conditional = branch(case.class_id)
    null = branch(NULL_CLASS) if scale != 1 else conditional
    log_p = np.zeros(m)
    for row in range(m):
        asked = [(k, n, int(outcomes[row, k, n])) for k, n in ((case.codes == UNKNOWN) & (outcomes[row] >= 0)).nonzero().tolist()]
        asked += [] if ends[row] is None else [(0, ends[row], spec.vocab)]
        for k, n, id_ in asked:
            s, g = int(layout.step[k, n]), int(layout.slot[k, n])
            l_u, l_c = null[row, s, g], conditional[row, s, g]
            mixed = reference_guided(l_c, l_u, reference_scale(scale, schedule, s / max(layout.steps - 1, 1)))
            if n < known:
                mixed[-1] = -np.inf
            with np.errstate(divide="ignore"):
                log_p[row] += np.log(reference_filter(mixed, sampler)[id_])
    return Distribution(outcomes, np.exp(log_p))


@checkered(most=3, order=GRID, setting=[({}, 1.0), ({"temperature": 0.7, "top_k": 2}, 1.0), ({}, 2.0)])
def test_lengths_and_codes_are_drawn_from_the_enumerated_distribution(order, setting):
    (spec, layout), (arguments, guidance) = order, setting
    model, sampler = Ending(SPECS[spec], layout), AutoregressiveSampler(**arguments)
    cases = cases_of(model.spec)
    distributions = [distribution_of(model, case, sampler, (guidance, "constant")) for case in cases]
    assert agreement(sample(sampler, guided(model, guidance), cases, 4000), distributions) > 1e-3


STRIDED = {
    "strided": TokenSpec((2, 2), Line(4), strides=(2, 1)),  # level 0 at every second position, where alone an item can end
    "fine level strided": TokenSpec((2, 3), Line(3), strides=(1, 2)),
    "narrow": TokenSpec((2, 3), Line(2)),
    "one position": TokenSpec((3,), Line(1)),
    "three levels": TokenSpec((2, 2, 2), Line(2), strides=(1, 2, 1)),
}


def more_cases(model):
    """Also known slots beside masked ones of their step, everything known, nothing there, level 0 alone."""
    spec, layout = model.spec, model.layout
    out = cases_of(spec)
    for at, slot in itertools.product(range(min(layout.steps, 2)), range(layout.slots)):
        codes = Tokens.unknown(spec, 1).codes[0]
        known = (layout.step < at) | ((layout.step == at) & (layout.slot == slot))
        codes = torch.where(known & (codes == UNKNOWN), 1, codes)
        out.append(Case(at % 2, codes, spec.positions))
    out.append(Case(0, torch.where(spec.exists(), 1, ABSENT), spec.positions))
    out.append(Case(1, Tokens.unknown(spec, 1, torch.tensor([0])).codes[0], 0))
    if spec.levels > 1:
        coarse = Tokens.unknown(spec, 1).codes[0]
        coarse[1:] = ABSENT
        out.append(Case(1, coarse, spec.positions))
    return out


ENDING_SETTINGS = {
    "plain": ({}, (1.0, "constant")),
    "temperature 2, min-p": ({"temperature": 2.0, "min_p": 0.3}, (1.0, "constant")),
    "temperature 0": ({"temperature": 0.0}, (1.0, "constant")),
    "typical, guidance 0.5": ({"typical": 0.8}, (0.5, "constant")),
    "linear guidance 2": ({}, (2.0, "linear")),
}


@checkered(
    order=[f"{name}/{layout}" for name in STRIDED for layout in ("level_major", "position_major", "delayed", "parallel")],
    setting=ENDING_SETTINGS,
)
def test_ends_with_strides_and_known_neighbours_make_exactly_the_enumerated_distribution(order, setting):
    name, layout = order.split("/")
    arguments, guidance = ENDING_SETTINGS[setting]
    model, sampler = Ending(STRIDED[name], layout, scale=1.5), AutoregressiveSampler(**arguments)
    if setting in ("plain", "linear guidance 2"):
        model = changed(model, lambda logits: logits.masked_fill((logits < -1) & (torch.arange(logits.shape[-1]) > 0), -torch.inf))
    for case in more_cases(model):
        right = distribution_of(model, case, sampler, guidance)
        assert same(enumerated(sampler, guided(model, *guidance), case), right), case


@pytest.mark.parametrize("layout", ["level_major", "delayed"])
def test_mutants_of_ends_with_strides_are_told_from_them(layout):
    class Off(Ending):
        """An end a little more likely, a temperature that is not its own, or an end where level 0 has no cell."""

        def logits(self, ids, cache, at, parents=None):
            out = super().logits(ids, cache, at, parents)
            return torch.cat((out[..., :-1], out[..., -1:] + 0.02), -1)

    model, sampler = Ending(STRIDED["strided"], layout), AutoregressiveSampler()
    case = cases_of(model.spec)[0]
    right = distribution_of(model, case, sampler)
    for off in (enumerated(sampler, Off(model.spec, layout), case), enumerated(AutoregressiveSampler(temperature=1.02), model, case)):
        assert gap(off, right) > 1e-3 and variation(off, right) < 0.05


@pytest.mark.parametrize(
    ("spec", "layout"),
    [
        pytest.param(*pair, id="-".join(pair), marks=() if pair in FEW else pytest.mark.slow)
        for pair in [*GRID, ("k2", "depth"), ("narrow", "depth")]
    ],
)
def test_a_network_that_ends_items_draws_its_own_distribution(spec, layout):
    torch.manual_seed(0)
    if layout == "depth":
        model = DepthTransformer(SPECS[spec], CLASSES, width=16, depth=2, heads=2, level_width=8, level_heads=2, ends=True).double().eval()
        torch.nn.init.normal_(model.heads[0].weight)
    else:
        model = Autoregressive(SPECS[spec], CLASSES, layout=layout, width=16, depth=2, heads=2, ends=True).double().eval()
        torch.nn.init.normal_(model.end)
    cases, sampler = cases_of(model.spec), AutoregressiveSampler()
    with torch.no_grad():
        distributions = [distribution_of(model, case, sampler) for case in cases]
        assert agreement(sample(sampler, model, cases, 3000), distributions) > 1e-3
        for case, distribution in zip(
            cases, distributions
        ):  # the likelihood is of the same distribution, where nothing is known and the maximum is the spec's
            if case.length == model.spec.positions and not (case.codes >= 0).any():
                condition = Condition({"class": Class(torch.full((len(distribution.p),), case.class_id))})
                nats = model.nll_bound(Tokens(distribution.outcomes, model.spec), condition)
                assert np.allclose(nats.numpy(), -np.log(distribution.p), atol=1e-9)


@pytest.mark.parametrize(("spec", "layout"), GRID, ids=["-".join(pair) for pair in GRID])
def test_a_row_of_a_batch_equals_that_row_alone(spec, layout):
    model = Ending(SPECS[spec], layout)
    together, by_itself = alone(AutoregressiveSampler(), model, cases_of(model.spec), n=8)
    assert (together == by_itself).all()


def test_lengths_calls_and_known_cells():
    model = Ending(SPECS["k2"], "delayed", scale=2.0)
    codes = Tokens.unknown(model.spec, 64).codes
    codes[32:, :, 1] = 1  # known cells behind a masked cell: forced
    condition = Condition({"class": Class(torch.zeros(64, dtype=torch.int64))})
    out = AutoregressiveSampler(forced=True)(model, condition, rng=RowRNG.of(0, torch.arange(64)), known=Tokens(codes, model.spec))
    lengths = out.tokens.lengths
    present = out.tokens.codes >= 0
    assert (present == (torch.arange(3) < lengths[:, None])[:, None]).all() and len(lengths.unique()) > 2
    assert (lengths[32:] >= 2).all() and (out.tokens.codes[32:, :, 1] == 1).all()
    assert (out.calls[:32] == torch.where(lengths[:32] < 3, lengths[:32] + 1, 4)).all()  # an end at once: one call; delayed: K - 1 more


def test_nothing_unknown_and_length_zero_need_no_call():
    model = Ending(SPECS["k1"], "raster")
    condition = Condition({"class": Class(torch.zeros(2, dtype=torch.int64))})
    out = AutoregressiveSampler()(model, condition, rng=RowRNG.of(0, torch.arange(2)), lengths=torch.tensor([0, 0]))
    assert out.calls.tolist() == [0, 0] and out.tokens.lengths.tolist() == [0, 0]


# ----------------------------------------------------------------------------------------------------------------- mutants


@pytest.mark.slow  # of samples; the quick suite tells such mutants from enumerated paths
def test_mutant_that_ends_one_cell_late():
    class Late(AutoregressiveSampler):
        def __call__(self, model, condition, **options):
            out = super().__call__(model, condition, **options)
            codes, lengths = out.tokens.codes, out.tokens.lengths
            short = (lengths > 0) & (lengths < 2)
            codes[short, :, 1] = 0
            return out

    model = Ending(SPECS["k1"], "raster", scale=0.3)
    cases = cases_of(model.spec)
    distributions = [distribution_of(model, case, AutoregressiveSampler()) for case in cases]
    assert agreement(sample(AutoregressiveSampler(), model, cases, 8000), distributions) > 1e-3
    assert agreement(sample(Late(), model, cases, 8000), distributions) < 1e-6


@pytest.mark.slow
def test_mutant_that_feeds_an_id_beyond_the_end():
    """Coarse first: level 1 is drawn when level 0 has ended; here it sees an id where ABSENT must be fed."""

    class Fed(Ending):
        def logits(self, ids, cache, at, parents=None):
            return super().logits(torch.where(ids == ABSENT, 0, ids), cache, at, parents)

    model, wrong = Ending(SPECS["k2"], "level_major", scale=0.2), Fed(SPECS["k2"], "level_major", scale=0.2)
    cases = cases_of(model.spec)
    distributions = [distribution_of(model, case, AutoregressiveSampler()) for case in cases]
    assert rejects(sample(AutoregressiveSampler(), wrong, cases, 8000), distributions)


@pytest.mark.slow
def test_mutant_that_ends_a_little_too_often():
    class Eager(Ending):
        def logits(self, ids, cache, at, parents=None):
            out = super().logits(ids, cache, at, parents)
            return torch.cat((out[..., :-1], out[..., -1:] + 0.25), -1)

    model = Ending(SPECS["k2"], "level_major", scale=0.3)
    cases = cases_of(model.spec)
    distributions = [distribution_of(model, case, AutoregressiveSampler()) for case in cases]
    assert rejects(sample(AutoregressiveSampler(), Eager(SPECS["k2"], "level_major", scale=0.3), cases, 8000), distributions)
