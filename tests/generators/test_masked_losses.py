"""The bound of masked diffusion: one value for every schedule, equal to the any-order loss, and what estimates it without bias."""

import itertools
import math

import numpy as np
import pytest
import torch
from generator_kit import CLASSES, LEVELS, RASTER, codes, masked

from gentok.flow.absorbing import NAMES, mask_schedule
from gentok.generators.masked_losses import OBJECTIVES, TIMES, carry_over, objective
from gentok.types import ABSENT, UNKNOWN, Class, Condition, Line, RowRNG, Tokens, TokenSpec

SPEC = TokenSpec((3, 2), Line(2))  # four cells
SUBSETS = [s for size in range(5) for s in itertools.combinations(range(4), size)]
ROWS = 6000


def nats_of(model, tokens, subset, t=None):
    """The sum of -log p over the masked cells of `subset`, all others known; times t [M] -> [M], or a number."""
    flat = tokens.codes.flatten(1)
    state = flat.clone()
    state[:, list(subset)] = UNKNOWN
    rows = 1 if t is None else len(t)
    given = Tokens(state.view(1, 2, 2).expand(rows, -1, -1), SPEC)
    log_p = model.logits(given, Condition(), t).detach().log_softmax(-1).flatten(1, 2)
    out = -log_p[:, list(subset)].gather(2, flat[:, list(subset), None].expand(rows, -1, -1)).sum((1, 2))
    return out if t is not None else float(out)


def in_orders(model, tokens):
    """The any-order loss as it is defined: the mean over all orders of -log p, a cell at a time."""
    flat, total = tokens.codes.flatten(1), 0.0
    for order in itertools.permutations(range(4)):
        for i, cell in enumerate(order):
            hidden = order[i:]
            state = flat.clone()
            state[:, list(hidden)] = UNKNOWN
            log_p = model.logits(Tokens(state.view(1, 2, 2), SPEC), Condition()).detach().log_softmax(-1).flatten(1, 2)
            total -= float(log_p[0, cell, flat[0, cell]])
    return total / 24


def by_count(model, tokens):
    """sum over n of (1 / n) E_{|M| = n}: the time-free form, from the enumerated masks."""
    sums = {n: [nats_of(model, tokens, s) for s in SUBSETS if len(s) == n] for n in range(1, 5)}
    return sum(np.mean(values) / n for n, values in sums.items())


def by_quadrature(model, tokens, name, timed=False, nodes=400):
    """int m'(t) / m(t) E dt over t in (0, 1), from the enumerated masks; substituted t = x^4 / (x^4 + (1 - x)^4) against steep ends."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    x, w = torch.tensor(0.5 + x / 2), torch.tensor(w / 2)
    t = x**4 / (x**4 + (1 - x) ** 4)
    w = w * 4 * x**3 * (1 - x) ** 3 / (x**4 + (1 - x) ** 4) ** 2
    schedule = mask_schedule(name)
    m = schedule.masked(t)
    inside = torch.zeros_like(t)
    for subset in SUBSETS[1:]:
        nats = nats_of(model, tokens, subset, m) if timed else nats_of(model, tokens, subset)
        inside += m ** len(subset) * (1 - m) ** (4 - len(subset)) * nats
    return float((w * schedule.weight(t) * inside).sum())


@pytest.fixture(scope="module")
def free():
    return masked(SPEC).requires_grad_(False), codes(SPEC, 1)


def test_the_time_free_loss_is_the_any_order_loss(free):
    assert by_count(*free) == pytest.approx(in_orders(*free), rel=1e-12)


@pytest.mark.parametrize("name", [*NAMES, "polynomial:3", "polynomial:0.5"])
def test_the_bound_does_not_depend_on_the_schedule(free, name):
    assert by_quadrature(*free, name) == pytest.approx(by_count(*free), rel=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_neither_does_it_for_a_network_that_is_given_the_masked_share(name):
    model, tokens = masked(SPEC, uses_time=True), codes(SPEC, 1)
    with torch.no_grad():
        model._tables.on(torch.device("cpu")).rates.mul_(1e-3)  # a slow embedding, so that a quadrature sees it
    value = by_quadrature(model, tokens, "linear", timed=True)
    assert by_quadrature(model, tokens, name, timed=True) == pytest.approx(value, rel=1e-6)
    assert abs(value - in_orders(model, tokens)) > 1e-4, "the time makes a difference here"


# -------------------------------------------------------------------------------------------------------------- estimates


def estimate(model, tokens, **settings):
    """(mean, standard error) of loss().nll over ROWS equal rows, and the loss in nats per row."""
    settings = {"schedule": "linear", "times": "independent", **settings}
    model.objective = objective(settings["objective"], settings["schedule"], settings["times"])
    many = Tokens(tokens.codes.expand(ROWS, -1, -1).contiguous(), SPEC)
    out = model.loss(many, Condition(), RowRNG.of(5, range(ROWS)))
    assert int(out.count) == 4 * ROWS and float(out.loss) * 4 == pytest.approx(float(out.nll.mean()), rel=1e-12)
    return float(out.nll.mean()), float(out.nll.std()) / math.sqrt(ROWS)


CHOICES = [("any_order", "linear", "independent"), ("any_order", "linear", "stratified")]
CHOICES += [("elbo", name, times) for name in NAMES[:4] for times in TIMES]


@pytest.mark.parametrize(("name", "schedule", "times"), CHOICES)
def test_the_training_loss_estimates_the_bound(free, name, schedule, times):
    model, tokens = free
    mean, error = estimate(model, tokens, objective=name, schedule=schedule, times=times)
    assert abs(mean - by_count(model, tokens)) < 4 * error and error < (0.01 if name == "any_order" else 0.1)


def test_weights_that_are_slightly_wrong_are_distinguished_from_the_bound(free, monkeypatch):
    """The check can fail: MDLM's weight at another time of the schedule, and C / n with one too many."""
    model, tokens = free
    truth = by_count(model, tokens)
    for name, change in (
        ("elbo", lambda hidden: hidden.weight * hidden.time**0.1),
        ("any_order", lambda hidden: 4 / (4 / hidden.weight + 0.3)),
    ):
        chosen = objective(name, "linear", "stratified")

        class Wrong(type(chosen)):
            def at(self, codes, u, rng, change=change):
                hidden = super().at(codes, u, rng)
                hidden.weight = change(hidden)
                return hidden

        monkeypatch.setattr(model, "objective", Wrong(*vars(chosen).values()))
        many = Tokens(tokens.codes.expand(ROWS, -1, -1).contiguous(), SPEC)
        nll = model.loss(many, Condition(), RowRNG.of(5, range(ROWS))).nll
        assert abs(float(nll.mean()) - truth) > 4 * float(nll.std()) / math.sqrt(ROWS)


def test_averaging_the_count_out_and_spreading_times_make_estimates_less_noisy(free):
    model, tokens = free
    many = Tokens(tokens.codes.expand(40, -1, -1).contiguous(), SPEC)

    def spread(name, times):
        model.objective = objective(name, "linear", times)
        means = [float(model.loss(many, Condition(), RowRNG.of(seed, range(40))).loss.detach()) for seed in range(150)]
        return float(np.std(means))

    by_time, by_count_ = spread("elbo", "independent"), spread("any_order", "independent")
    assert by_count_ < 0.5 * by_time
    assert spread("elbo", "stratified") < by_time and spread("any_order", "stratified") < by_count_


def test_a_network_that_uses_time_is_given_the_share_and_bounded_in_continuous_time():
    model, tokens = masked(SPEC, uses_time=True, objective="elbo", schedule="cosine"), codes(SPEC, 1)
    model._tables.on(torch.device("cpu")).rates.mul_(1e-3)
    truth = by_quadrature(model, tokens, "linear", timed=True)
    many = Tokens(tokens.codes.expand(ROWS, -1, -1).contiguous(), SPEC)
    for nats in (
        model.loss(many, Condition(), RowRNG.of(1, range(ROWS))).nll,
        model.nll_bound(many, Condition(), RowRNG.of(2, range(ROWS)), 2),
    ):
        assert abs(float(nats.mean()) - truth) < 4 * float(nats.std()) / math.sqrt(ROWS)
    assert abs(in_orders(model, tokens) - truth) > 1e-3, "given n / C it has another bound"


@pytest.mark.parametrize("name", ["elbo", "any_order"])
def test_hidden_cells_are_present_ones_and_their_number_has_its_distribution(name):
    tokens = codes(SPEC, ROWS)
    tokens.codes[:, 0, 1] = ABSENT
    hidden = objective(name, "cosine", "independent").choose(tokens.codes, RowRNG.of(0, range(ROWS)))
    assert not (hidden.cells & (tokens.codes < 0)).any()
    number = np.bincount(hidden.cells.flatten(1).sum(1), minlength=4)
    if name == "any_order":
        want = np.array([0, 1, 1, 1]) / 3
    else:  # given m it is binomial; over t, m = sin(pi t / 2)
        t = (np.arange(20000) + 0.5) / 20000
        m = np.sin(np.pi * t / 2)
        want = np.array([(math.comb(3, n) * m**n * (1 - m) ** (3 - n)).mean() for n in range(4)])
    assert np.abs(number / ROWS - want).max() < 4 * math.sqrt(0.25 / ROWS)


@pytest.mark.parametrize("name", ["elbo", "any_order"])
def test_smoothing_is_weighted_like_the_bound(name):
    settings = {"objective": name, "schedule": "linear"}
    tokens = codes(LEVELS, 3)
    plain = masked(LEVELS, **settings).train().loss(tokens, Condition(), RowRNG([0, 1, 2]))
    uniform = masked(LEVELS, label_smoothing=1.0, **settings).train().loss(tokens, Condition(), RowRNG([0, 1, 2]))
    mixed = masked(LEVELS, label_smoothing=0.25, **settings).train().loss(tokens, Condition(), RowRNG([0, 1, 2]))
    assert torch.allclose(mixed.loss, 0.75 * plain.loss + 0.25 * uniform.loss)
    assert torch.equal(mixed.nll, plain.nll) and not torch.allclose(plain.loss, uniform.loss)
    assert {"nll_level0", "nll_level1", "nll_level2", "bound"} <= set(plain.terms)


@pytest.mark.parametrize("name", ["elbo", "any_order"])
@pytest.mark.parametrize("uses_time", [False, True])
def test_a_row_of_a_batch_equals_the_row_alone_also_in_training(name, uses_time):
    model = masked(LEVELS, CLASSES, objective=name, uses_time=uses_time, dropout=0.2, condition_dropout=0.5).train()
    tokens, condition = codes(LEVELS, 5), Condition({"class": Class(torch.tensor([0, 1, 2, -1, 0]))})
    whole = model.loss(tokens, condition, RowRNG.of(3, range(5)))
    parts = [model.loss(tokens.rows([b]), condition.rows([b]), RowRNG.of(3, [b])) for b in range(5)]
    assert torch.allclose(torch.cat([part.nll for part in parts]), whole.nll, rtol=1e-12)
    assert torch.allclose(sum(part.loss * part.count for part in parts) / whole.count, whole.loss, rtol=1e-12)


def test_stratified_times_fill_every_stratum_once_and_rows_do_not_know_which():
    drawn = TIMES["stratified"](RowRNG.of(0, range(200)))
    assert torch.equal((drawn * 200).long().sort().values, torch.arange(200))
    first = torch.stack([TIMES["stratified"](RowRNG.of(seed, range(20)))[0] for seed in range(300)])
    assert abs(float(first.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / 300)


# ----------------------------------------------------------------------------------------------------- MDLM's substitutions


def test_no_masking_probability_and_visible_cells_are_carried_over():
    model = masked(RASTER)
    tokens = codes(RASTER, 2)
    tokens.codes[0, 0, :5] = UNKNOWN
    logits = model.logits(tokens, Condition())
    assert logits.shape[-1] == RASTER.vocab, "there is no logit for the mask"
    distribution = carry_over(logits, tokens.codes).softmax(-1)
    known = tokens.codes >= 0
    assert torch.equal(distribution[known].argmax(-1), tokens.codes[known]) and (distribution[known].amax(-1) == 1).all()
    assert torch.equal(distribution[~known], logits.softmax(-1)[~known])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_visible_cells_have_no_term(name):
    """The loss of the substituted distribution over the whole row is the loss over the hidden cells."""
    model = masked(RASTER, objective=name, schedule="linear")
    tokens = codes(RASTER, 4)
    out = model.loss(tokens, Condition(), RowRNG([0, 1, 2, 3]))
    hidden = model.objective.choose(tokens.codes, RowRNG([0, 1, 2, 3]))
    state = tokens.codes.masked_fill(hidden.cells, UNKNOWN)
    distribution = carry_over(model.logits(Tokens(state, RASTER), Condition(), hidden.time), state).log_softmax(-1)
    nats = -distribution.gather(3, tokens.codes[..., None])[..., 0].flatten(1).sum(1)
    assert torch.allclose(out.loss * out.count, (nats * (1 if hidden.weight is None else hidden.weight)).sum())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "vlb"}, "maskgit, elbo, any_order"),
        ({"times": "antithetic"}, "independent, stratified"),
        ({"objective": "elbo", "schedule": "cubic"}, "polynomial, geometric"),
    ],
)
def test_settings_that_do_not_exist_are_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        masked(RASTER, **settings)
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------------------- by level


def level_by_level(model, tokens):
    """The mean over all orders of each level's cells of -log p, a cell at a time: the levels before known, the ones behind hidden."""
    flat, total = tokens.codes.flatten(1), 0.0
    for own, behind in (((0, 1), (2, 3)), ((2, 3), ())):
        for order in itertools.permutations(own):
            for i, cell in enumerate(order):
                state = flat.clone()
                state[:, [*order[i:], *behind]] = UNKNOWN
                log_p = model.logits(Tokens(state.view(1, 2, 2), SPEC), Condition()).detach().log_softmax(-1).flatten(1, 2)
                total -= float(log_p[0, cell, flat[0, cell]]) / 2
    return total


def test_the_bound_of_a_network_trained_by_level_goes_level_by_level():
    model, tokens = masked(SPEC, objective="by_level").requires_grad_(False).eval(), codes(SPEC, 1)
    many = Tokens(tokens.codes.expand(ROWS, -1, -1).contiguous(), SPEC)
    nats = model.nll_bound(many, Condition(), RowRNG.of(5, range(ROWS)))
    error, truth = float(nats.std()) / math.sqrt(ROWS), level_by_level(model, tokens)
    assert abs(float(nats.mean()) - truth) < 4 * error and error < 0.02
    assert abs(in_orders(model, tokens) - truth) > 8 * error  # a mutant: any order over all cells


def test_by_level_hides_part_of_a_level_behind_a_prompt_and_all_that_is_deeper():
    spec, rows = TokenSpec((4, 4, 4), Line(6)), 12_000
    one = codes(spec, 1).codes.clone()
    one[..., 5] = ABSENT  # a row of five positions
    drawn = objective("by_level", "cosine", "independent").choose(one.expand(rows, -1, -1), RowRNG.of(3, range(rows)))
    cells, counted = drawn.cells, drawn.counted
    assert drawn.weight is None and not bool(cells[..., 5].any()) and bool((counted & ~cells).sum() == 0)
    level = counted.any(2).double().argmax(1)
    assert bool((counted.any(2).sum(1) == 1).all())  # of one level alone, and at least one cell of it
    assert torch.allclose(level.bincount(minlength=3) / rows, torch.full((3,), 1 / 3), atol=0.02)
    deepest = cells[:, 2]  # of rows whose level is not the deepest, it is hidden from the prompt's end on
    first = deepest.double().argmax(1)
    for k in (0, 1):
        here = level == k
        assert bool((deepest[here] == (torch.arange(6) >= first[here, None]) & (torch.arange(6) < 5)).all())
        assert torch.allclose(first[here].bincount(minlength=5) / here.sum(), torch.full((5,), 1 / 5), atol=0.03)
        assert not bool(cells[here][:, :k].any())  # what is coarser is known
        assert bool((counted[here].any(1).double().argmax(1) >= first[here]).all())
    whole = (level == 0) & (first == 0)  # cos(pi u / 2) of five cells, rounded up: as often as its inverse says
    share = counted[whole].flatten(1).sum(1).bincount(minlength=6)[1:] / whole.sum()
    edges = torch.acos(torch.arange(6) / 5.0) * 2 / math.pi
    assert torch.allclose(share, edges[:-1] - edges[1:], atol=0.04)
