"""ResGen's sampler where its distribution can be enumerated: one cell per call, by chance alone, on scalars
whose quantisation cells are intervals.

Then p(next level of a position) is the mass that the mixture has in the intervals of that level's rows, and
the joint distribution is the mean over the orders of the cells in which each position's levels come one after
the other. Everything else of the sampler is inside: known cells, lengths, components and their filters,
guidance, the vector's temperature, which position and which level is kept.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from kit import CLASSES, Distribution, _mix, agreement, alone, cases_of, completions, reference_filter, reference_scale, rejects, sample
from scipy.stats import norm

from gentok.codebooks.residual import ResidualCodebook
from gentok.codebooks.vq import VQ
from gentok.flow.mixture import Mixture
from gentok.generators.base import CumulativeMasked
from gentok.rng import RowRNG
from gentok.samplers import resgen
from gentok.samplers.guided import guided
from gentok.samplers.resgen import ResGenSampler
from gentok.types import NULL_CLASS, UNKNOWN, Class, Condition, Line, Tokens, TokenSpec

ONE_BY_ONE = {"steps": 8, "schedule": "linear", "choice_temperature": 1e9}
SETTINGS = {
    "plain": ({}, (1.0, "constant")),
    "temperature 0.7": ({"temperature": 0.7}, (1.0, "constant")),
    "cold vectors, top-k 2": ({"vector_temperature": 0.3, "top_k": 2}, (1.0, "constant")),
    "top-p 0.8, guidance 2": ({"top_p": 0.8}, (2.0, "constant")),
    "linear guidance": ({}, (3.0, "linear")),
    "temperature 2, min-p": ({"temperature": 2.0, "min_p": 0.5}, (1.0, "constant")),
    "the most probable component": ({"temperature": 0.0, "vector_temperature": 1.0}, (1.0, "constant")),
    "guidance 0.5, typical": ({"typical": 0.6}, (0.5, "constant")),
}


class Scalars(CumulativeMasked):
    """A model without a network: each state of a row (class and visible codes) has a mixture of its own,
    looked up by a hash."""

    def __init__(self, positions=3, components=3, seed=0):
        self.spec, self.condition_spec, self.components, self.seed = TokenSpec((3, 3), Line(positions)), CLASSES, components, seed
        self.codebook = ResidualCodebook(VQ(3, 1, normalize=False), 2)
        with torch.no_grad():
            self.codebook.book(0).weight.copy_(torch.tensor([[-1.0], [0.1], [1.2]]))
            self.codebook.book(1).weight.copy_(torch.tensor([[-0.4], [0.05], [0.35]]))
        self.codebook.eval().requires_grad_(False)

    def mixture(self, tokens, condition):
        b, n, m = tokens.batch, self.spec.positions, self.components
        state = _mix(torch.full((b,), self.seed), torch.cat((condition.parts["class"].ids[:, None], tokens.codes.flatten(1)), 1))
        weights, features, scales, centre, unit = RowRNG(state).normal(5, n, m).unbind(1)
        fixed = RowRNG([17]).normal(2, m)[0]
        return Mixture(
            logits=weights,
            features=features[..., :1],
            maps=0.4 * fixed[0].view(m, 1, 1),
            offsets=0.8 * fixed[1].view(m, 1),
            log_scale=0.3 * scales - 0.7,
            centre=0.3 * centre[..., :1],
            unit=(0.3 * unit[..., 0]).exp(),
            floor=torch.tensor(0.01, dtype=torch.float64),
        )

    def requantize(self, z, tokens):
        vectors = self.codebook.lookup(tokens.codes) + z.transpose(1, 2)
        return Tokens(self.codebook.nearest(vectors, tokens.codes), tokens.spec, tokens.lengths)


def next_level(model, codes, class_id, length, sampler, guidance):
    """codes int64 [M, K, N] -> per row and position the distribution of its first masked cell's code, float64
    [M, N, 3], in plain numpy."""
    rows, spec = len(codes), model.spec
    tokens = Tokens(codes, spec, torch.full((rows,), length))

    def of(c):
        return model.mixture(tokens, Condition({"class": Class(torch.full((rows,), c))}))

    own, null = of(class_id), of(NULL_CLASS)
    masked_cells = codes == UNKNOWN
    cells = (codes != -1).sum((1, 2))
    progress = 1 - masked_cells.sum((1, 2)) / cells
    edges = []
    for k in range(2):
        table = model.codebook.table(k)[:, 0].double().numpy()
        edges.append(np.concatenate(([-np.inf], (table[1:] + table[:-1]) / 2, [np.inf])))
    factor = sampler.temperature if sampler.vector_temperature is None else sampler.vector_temperature
    out = np.zeros((rows, spec.positions, 3))
    for row in range(rows):
        g = reference_scale(*guidance, float(progress[row]))
        for n in range(spec.positions):
            if not masked_cells[row, :, n].any():
                continue
            level = int(masked_cells[row, :, n].int().argmax())
            logits = (null.logits + g * (own.logits - null.logits))[row, n].numpy()
            weights = reference_filter(logits, sampler)
            for m, weight in enumerate(weights):
                mean = own.centre[row, n, 0] + own.unit[row, n] * (own.offsets[m, 0] + own.maps[m, 0, 0] * own.features[row, n, 0])
                scale = np.sqrt(factor * (0.01 + float(own.unit[row, n] * own.log_scale[row, n, m].exp()) ** 2))
                out[row, n] += weight * np.diff(norm.cdf(edges[level], float(mean), scale))
    return out


def distribution_of(model, case, sampler, guidance=(1.0, "constant")):
    """The joint distribution of the masked cells of a case: f(state) is the probability that the masked cells
    revealed so far are those of the state, with the codes of an outcome; a position is taken with probability
    (its masked cells) / (all masked cells)."""
    outcomes, spec = completions(case.codes, model.spec), model.spec
    masked_cells = case.codes == UNKNOWN
    each = masked_cells.sum(0).tolist()
    f = {tuple([0] * spec.positions): np.ones(len(outcomes))}
    for done in sorted(itertools.product(*(range(e + 1) for e in each)), key=sum):
        left = [e - d for e, d in zip(each, done)]
        if not sum(left):
            continue
        hidden = masked_cells & (masked_cells.cumsum(0) > torch.tensor(done))
        codes = outcomes.masked_fill(hidden, UNKNOWN)
        unique, index = torch.unique(codes, dim=0, return_inverse=True)
        distribution = next_level(model, unique, case.class_id, case.length, sampler, guidance)[index.numpy()]
        for n, share in enumerate(left):
            if share:
                level = int(hidden[:, n].int().argmax())
                step = distribution[np.arange(len(outcomes)), n, outcomes[:, level, n].numpy()]
                after = tuple(d + (i == n) for i, d in enumerate(done))
                f[after] = f.get(after, 0) + f[done] * step * share / sum(left)
    return Distribution(outcomes, f[tuple(each)])


def distributions_of(model, setting):
    arguments, guidance = SETTINGS[setting]
    return [distribution_of(model, case, ResGenSampler(**arguments), guidance) for case in cases_of(model)]


def run(model, setting, n, sampler=ResGenSampler, generator=None, **options):
    arguments, guidance = SETTINGS[setting]
    wrapped = generator or guided(model, *guidance)
    return sample(sampler(**{**ONE_BY_ONE, **arguments}), wrapped, cases_of(model), n, seed=5, **options)


@pytest.mark.parametrize("setting", SETTINGS)
def test_one_cell_per_call_in_random_order_draws_its_enumerated_distribution(setting):
    model = Scalars(2 if setting != "plain" else 3)
    assert agreement(run(model, setting, 4000), distributions_of(model, setting)) > 1e-3


def test_the_settings_have_distributions_of_their_own():
    model = Scalars(2)
    distributions = [distributions_of(model, setting)[0].p for setting in SETTINGS]
    for a, b in itertools.combinations(range(len(distributions)), 2):
        assert 0.5 * np.abs(distributions[a] - distributions[b]).sum() > 0.03


# ----------------------------------------------------------------------------------------------------------------- mutants


def test_mutant_that_keeps_the_deepest_levels_first(monkeypatch):
    def deepest(masked, wanted):
        return masked & (masked.flip(1).cumsum(1).flip(1) <= wanted.sum(1, keepdim=True))

    monkeypatch.setattr(resgen, "shallowest", deepest)
    model = Scalars(2)
    assert agreement(run(model, "plain", 4000), distributions_of(model, "plain")) < 1e-6


@pytest.mark.slow
def test_mutant_that_chooses_positions_alike_however_many_masked_cells_they_have():
    """Chance per position and not per masked cell: 1 of 2 masked cells is as likely as 1 of 1."""

    class Alike(RowRNG):
        def gumbel(self, *shape):
            return super().gumbel(1, shape[1]).expand(-1, *shape)

    model = Scalars(3)
    cases = cases_of(model)
    rng = Alike.of(5, torch.arange(8000 * len(cases)))
    which = torch.arange(len(cases)).repeat_interleave(8000)
    condition = Condition({"class": Class(torch.tensor([c.class_id for c in cases])[which])})
    known = Tokens(torch.stack([c.codes for c in cases])[which], model.spec)
    lengths = torch.tensor([c.length for c in cases])[which]
    sampler = ResGenSampler(steps=20, schedule="linear", choice_temperature=1e9)
    codes = sampler(model, condition, rng=rng, known=known, lengths=lengths).tokens.codes
    assert rejects([codes[which == i] for i in range(len(cases))], distributions_of(model, "plain"))


@pytest.mark.slow
def test_mutant_that_forgets_the_root_of_the_vectors_temperature():
    model = Scalars(2)
    arguments = {**ONE_BY_ONE, "temperature": 0.7, "vector_temperature": 0.7**2}
    samples = sample(ResGenSampler(**arguments), model, cases_of(model), 20000, seed=5)
    assert rejects(samples, distributions_of(model, "temperature 0.7"))


def test_mutant_that_guides_with_the_components_of_the_null_condition():
    model = Scalars(2)

    class Null(type(guided(model, 3.0))):
        def mixture(self, tokens, condition):
            right = super().mixture(tokens, condition)
            return self.model.mixture(tokens, condition.null()).with_logits(right.logits)

    samples = run(model, "linear guidance", 4000, generator=Null(model, 3.0, "linear"))
    assert agreement(samples, distributions_of(model, "linear guidance")) < 1e-6


@pytest.mark.slow
def test_mutant_that_filters_before_it_guides():
    model = Scalars(2)

    class Early(type(guided(model, 2.0))):
        def mixture(self, tokens, condition):
            sampler = ResGenSampler(top_p=0.8)
            own, null = (self.model.mixture(tokens, c) for c in (condition, condition.null()))
            kept = sampler.filter(own.logits)
            return own.with_logits(torch.where(kept.isfinite(), null.logits + 2 * (own.logits - null.logits), -torch.inf))

    arguments = {**ONE_BY_ONE}
    samples = sample(ResGenSampler(**arguments), Early(model, 2.0), cases_of(model), 20000, seed=5)
    assert rejects(samples, distributions_of(model, "top-p 0.8, guidance 2"))


def test_mutant_that_takes_the_same_random_numbers_in_every_call():
    class Again(ResGenSampler):
        def step(self, state):
            same = RowRNG(torch.arange(state.request.tokens.batch))
            return super().step(replace(state, request=replace(state.request, rng=same)))

    model = Scalars(2)
    assert agreement(run(model, "plain", 4000, Again), distributions_of(model, "plain")) < 1e-6


def test_two_cells_per_call_are_an_approximation_that_the_test_sees():
    model = Scalars(2)
    samples = sample(ResGenSampler(**{**ONE_BY_ONE, "steps": 2}), model, cases_of(model), 20000, seed=5)
    assert agreement(samples, distributions_of(model, "plain")) < 1e-6


@pytest.mark.parametrize("setting", ["plain", "linear guidance"])
def test_a_row_of_a_batch_equals_that_row_alone(setting):
    model, (arguments, guidance) = Scalars(), SETTINGS[setting]
    together, by_itself = alone(ResGenSampler(steps=3, **arguments), guided(model, *guidance), cases_of(model), n=8)
    assert (together == by_itself).all()
