"""The sampler of entities on models whose velocity is known: where it arrives, in how many calls, and what it keeps."""

import math
from dataclasses import replace

import pytest
import torch
from entities_kit import MIXTURE, Exact, gaussian, mixture, mixture_cdf

from gentok.flow.solvers import SOLVERS
from gentok.rng import RowRNG
from gentok.samplers.entities import EntitiesSampler
from gentok.samplers.guided import guided
from gentok.types import Class, Condition, Latents

ODE = ("euler", "midpoint", "heun")


class Unit(RowRNG):
    """Row r draws 1 in the r-th call for normal numbers, and 0 in all others; the last row only 0: a linear map row by row."""

    def __init__(self, batch):
        super().__init__(range(batch))
        self.call = 0

    def rows(self, index):
        return self

    def normal(self, *shape):
        out = torch.zeros(self.batch, *shape, dtype=torch.float64)
        if self.call < self.batch - 1:
            out[self.call] = 1.0
        self.call += 1
        return out


def nothing(batch):
    return Condition({"class": Class(torch.zeros(batch, dtype=torch.int64))})


def drawn(model, batch, rng=None, known=None, **settings):
    """float64 [B, E]."""
    out = EntitiesSampler(**settings)(model, nothing(batch), rng=rng or RowRNG.of(0, range(batch)), known=known)
    return out.tokens.values[:, 0].double()


def quantiles(model, solver, steps):
    """The largest error of a flow in one dimension, which keeps quantiles: P(data < x(z)) = P(noise < z)."""
    rows = 64
    z = RowRNG.of(0, range(rows)).normal(1, 1)[:, 0, 0]
    x = drawn(model, rows, solver=solver, steps=steps)[:, 0]
    return float((mixture_cdf(x) - torch.special.ndtr(z)).abs().max())


# ------------------------------------------------------------------------------------------------------- where it arrives


@pytest.mark.parametrize("steps", [2, 5])
def test_a_point_is_reached_in_any_number_of_steps(steps):
    def point(x, t, before, classes):
        return (x - 0.7) / t

    for solver in ("euler", "midpoint", "euler_maruyama"):
        x = drawn(Exact(point), 50, solver=solver, steps=steps)
        torch.testing.assert_close(x, torch.full_like(x, 0.7), atol=1e-6, rtol=0)
    # the release's last step goes on by the noise that is left, `last` of it
    released = drawn(Exact(point), 2000, steps=200, drift_last=True) - 0.7
    assert 0.03 < released.std() < 0.05


@pytest.mark.parametrize("solver, order", [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_a_mixture_of_gaussians_is_reached_at_the_order_of_the_solver(solver, order):
    errors = [quantiles(Exact(mixture), solver, steps) for steps in (20, 40, 80)]
    assert errors[-1] < 0.02 and all(abs(math.log2(a / b) - order) < 0.4 for a, b in zip(errors, errors[1:])), errors


def test_a_mixture_by_its_likeliest_component_alone_is_found_out():
    def hard(x, t, before, classes):
        left = torch.stack([w * torch.exp(-((x - (1 - t) * m) ** 2) / (2 * (((1 - t) * s) ** 2 + t**2))) for w, m, s in MIXTURE])
        both = torch.stack([gaussian(m, s)(x, t, before, classes) for _, m, s in MIXTURE])
        return both.gather(0, left.argmax(0)[None])[0]

    assert quantiles(Exact(hard), "heun", 80) > 0.02


def moments(model, steps, **settings):
    """Mean [E] and covariance [E, E] of what is drawn, exact where the velocity is linear: by a row for each random number."""
    per_entity = steps if settings.get("solver", "euler_maruyama") == "euler_maruyama" else 1
    rows = per_entity * len(model.sizes) + 1
    rng = Unit(rows)
    x = drawn(model, rows, rng, steps=steps, **settings)
    assert rng.call == rows - 1
    effect = x[:-1] - x[-1]
    return x[-1], effect.T @ effect


SLOPE, OWN, REST = 0.8, 0.6, 0.35
PAIR = (gaussian(0.5, OWN), gaussian(lambda before: SLOPE * before[0] - 0.3, REST))
MEAN = torch.tensor([0.5, SLOPE * 0.5 - 0.3], dtype=torch.float64)
COVARIANCE = torch.tensor([[OWN**2, SLOPE * OWN**2], [SLOPE * OWN**2, SLOPE**2 * OWN**2 + REST**2]], dtype=torch.float64)


@pytest.mark.parametrize("solver", ODE)
def test_a_correlated_pair_has_its_moments(solver):
    """So entity 2 has its distribution given entity 1."""
    mean, covariance = moments(Exact(*PAIR), 400, solver=solver)
    close = 5e-3 if solver == "euler" else 1e-4
    torch.testing.assert_close(mean, MEAN, atol=close, rtol=0)
    torch.testing.assert_close(covariance, COVARIANCE, atol=close, rtol=0)


def test_the_stochastic_solver_keeps_the_moments_and_comes_nearer_with_more_steps():
    errors = []
    for steps, last in ((50, 0.04), (100, 0.02), (200, 0.01)):
        mean, covariance = moments(Exact(*PAIR), steps, last=last)
        errors.append(float(torch.cat(((mean - MEAN)[None], covariance - COVARIANCE)).abs().max()))
    assert errors[0] < 0.03 and all(a / b > 1.5 for a, b in zip(errors, errors[1:])), errors


def test_what_would_bias_a_pair_is_found_out(monkeypatch):
    def error(model, **settings):
        mean, covariance = moments(model, 200, **settings)
        return float(torch.cat(((mean - MEAN)[None], covariance - COVARIANCE)).abs().max())

    limit = 0.01
    assert error(Exact(*PAIR), last=0.01) < limit
    # entity 2 sees a context that is still a little noisy, or forgets it
    assert error(Exact(PAIR[0], gaussian(lambda before: SLOPE * 0.95 * before[0] - 0.3, REST)), solver="heun") > limit
    assert error(Exact(PAIR[0], gaussian(SLOPE * 0.5 - 0.3, REST)), solver="heun") > limit

    class Halved(SOLVERS["euler_maruyama"]):  # noise without the score that takes it out
        def __call__(self, field, x, times, rng=None):
            for t, following in zip(times[:-2], times[1:-1]):
                h = following - t
                x = x + h * field(x, t) + (0.2 * t * -h) ** 0.5 * rng.normal(*x.shape[1:])
            return x + (times[-1] - times[-2]) * field(x, times[-2])

    monkeypatch.setattr("gentok.samplers.entities.EulerMaruyama", Halved)
    assert error(Exact(*PAIR), last=0.01) > limit


# ------------------------------------------------------------------------------------------------ calls, guidance, what is known


@pytest.mark.parametrize("solver, each", [("euler", 1), ("midpoint", 2), ("heun", 2), ("euler_maruyama", 1)])
def test_calls_are_entities_times_steps_and_the_first_of_an_entity_brings_the_one_before(solver, each):
    model = Exact(*PAIR, PAIR[0])
    out = EntitiesSampler(solver=solver, steps=4)(model, nothing(2), rng=RowRNG.of(0, range(2)))
    assert out.calls.tolist() == [12 * each] * 2
    assert out.network_calls == {"generator": (12 * each, 2 * (12 * each + 2))}
    assert [entry[2] for entry in model.log] == ([0] * 4 * each + ([1] + [0] * (4 * each - 1)) * 2)
    assert EntitiesSampler(solver=solver, steps=4).passes == 4 * each


def test_guidance_grows_over_entities_from_none_or_guides_all():
    def tells(x, t, before, classes):
        return torch.where(classes < 0, 0.0, -1.0).to(x) + 0 * x

    def arrives(schedule, entities=4, **settings):
        z = RowRNG.of(0, range(1)).normal(1, 1)
        model = guided(Exact(*[tells] * entities), 3.0, schedule)
        out = EntitiesSampler(solver="euler", steps=2, **settings)(model, nothing(1), rng=RowRNG.of(0, range(1)))
        assert out.network_calls["generator"][1] == 2 * (2 * entities + entities - 1)
        x = out.tokens.values[0, 0].double()
        rng = RowRNG.of(0, range(1))
        noise = torch.cat([rng.normal(1, 1)[0, 0] for _ in range(entities)])
        assert torch.equal(noise[:1], z[0, 0])
        return x - noise  # the mean velocity times -1: v_u + g (v_c - v_u) = -g

    def close(a, b):
        torch.testing.assert_close(a, torch.tensor(b, dtype=torch.float64), atol=1e-6, rtol=0)

    close(arrives("linear"), [1.0, 1 + 2 / 3, 1 + 4 / 3, 3.0])
    close(arrives("linear", guide_first=True), [1.5, 2.0, 2.5, 3.0])
    close(arrives("constant"), [3.0] * 4)
    close(arrives("linear", entities=1), [3.0])


def known_of(model, *rows):
    values = torch.tensor(rows)[:, None]
    return Latents(values, model.spec)


def test_known_entities_that_come_first_are_kept_and_cost_nothing():
    model, nan = Exact(*PAIR, PAIR[0]), math.nan
    known = known_of(model, [nan, nan, nan], [0.25, nan, nan], [0.25, 9.0, -1.5], [0.25, 0.125, nan])
    rng = RowRNG.of(0, range(4))
    out = EntitiesSampler(solver="heun", steps=3)(model, nothing(4), rng=rng, known=known)
    values = out.tokens.values
    assert torch.equal(values[known.values.isfinite()], known.values[known.values.isfinite()]) and values.isfinite().all()
    assert out.calls.tolist() == [18, 12, 0, 6]
    for row in range(4):  # each as if it were alone
        single = EntitiesSampler(solver="heun", steps=3)(model, nothing(1), rng=RowRNG.of(0, [row]), known=known.rows([row]))
        torch.testing.assert_close(single.tokens.values, values[row : row + 1])
    # given 0.25 the second entity is normal around SLOPE * 0.25 - 0.3
    many = known_of(model, *[[0.25, nan, nan]] * 4000)
    second = drawn(model, 4000, known=many, solver="heun", steps=8)[:, 1]
    assert abs(second.mean() - (SLOPE * 0.25 - 0.3)) < 5 * REST / math.sqrt(4000) + 5e-3
    assert abs(second.std() / REST - 1) < 0.06


def test_a_known_entity_behind_an_unknown_one_is_refused_in_one_line():
    model, nan = Exact(*PAIR), math.nan
    with pytest.raises(ValueError, match="row 1 knows entity 1 and not entity 0") as error:
        drawn(model, 2, known=known_of(model, [0.25, nan], [nan, 0.25]))
    assert "\n" not in str(error.value)


def test_a_row_draws_the_same_alone_as_in_a_batch():
    batch = drawn(Exact(*PAIR), 5, steps=6)
    for row in range(5):
        assert torch.equal(drawn(Exact(*PAIR), 1, RowRNG.of(0, [row]), steps=6)[0], batch[row])


def test_what_is_there_is_reported_after_every_entity():
    seen = []
    sampler = EntitiesSampler(steps=2)
    out = sampler(Exact(*PAIR), nothing(2), rng=RowRNG.of(0, range(2)), on_step=lambda *a: seen.append(a))
    assert [(step, steps) for _, step, steps in seen] == [(1, 2), (2, 2)]
    assert seen[0][0].masked[:, 0].tolist() == [[False, True]] * 2 and torch.equal(seen[1][0].values, out.tokens.values)
    assert torch.equal(seen[0][0].values[:, :, 0], out.tokens.values[:, :, 0])


def test_temperature_is_the_deviation_of_the_noise():
    hot, cold = (drawn(Exact(gaussian(0.5, 0.6)), 40, solver="heun", steps=20, temperature=t) for t in (1.0, 0.0))
    torch.testing.assert_close(cold, torch.full_like(cold, float(cold[0])))
    half = drawn(Exact(gaussian(0.5, 0.6)), 40, solver="heun", steps=20, temperature=0.5)
    torch.testing.assert_close(half - cold, (hot - cold) / 2, atol=1e-6, rtol=0)  # the flow of a Gaussian is linear


@pytest.mark.parametrize("wrong", [{"top_k": 3}, {"top_p": 0.9}, {"solver": "rk4"}, {"last": 1.0}, {"last": 0.0}, {"steps": 0}])
def test_what_has_no_meaning_is_refused_in_one_line(wrong):
    with pytest.raises(ValueError) as error:
        EntitiesSampler(**wrong)
    assert "\n" not in str(error.value) and next(iter(wrong)) in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_name_their_row(value):
    def spoilt(x, t, before, classes):
        return torch.where(classes == 1, value, -x)

    condition = Condition({"class": Class(torch.tensor([0, 0, 1]))})
    with pytest.raises(ValueError, match="vector for row 2 of the batch is not finite"):
        EntitiesSampler(steps=2)(Exact(spoilt), condition, rng=RowRNG.of(0, range(3)))


def test_latents_that_do_not_fit_are_refused_in_one_line():
    model = Exact(*PAIR)
    other = replace(model.spec, encode_fingerprint="other")
    for known, words in (
        (Latents(torch.zeros(2, 1, 2), other), "fingerprint other"),
        (Latents(torch.zeros(3, 1, 2), model.spec), r"\[2, 1, 2\]"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            drawn(model, 2, known=known)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="lengths"):
        EntitiesSampler()(model, nothing(2), rng=RowRNG.of(0, range(2)), lengths=torch.tensor([1, 2]))
