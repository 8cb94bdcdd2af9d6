"""Paths, distributions of times, solvers on a field whose solution is known, and projected guidance."""

import math

import pytest
import torch

from gentok.flow.guidance import combine
from gentok.flow.path import data_of, interpolate, noise_of, score_of, velocity
from gentok.flow.projected import Projected
from gentok.flow.solvers import Euler, EulerMaruyama, Heun, Midpoint, time_grid
from gentok.flow.times import LogitNormal, Mode, Stratified, Uniform
from gentok.rng import RowRNG

MEAN, STD = 1.5, 0.4


def gaussian_field(x, t):
    """The mean velocity of the straight path to data N(MEAN, STD^2): x_t is normal with mean (1 - t) MEAN and
    variance s^2."""
    variance = ((1 - t) * STD) ** 2 + t**2
    gain = (t - (1 - t) * STD**2) / variance  # cov(eps - x, x_t) / var(x_t)
    return -MEAN + gain * (x - (1 - t) * MEAN)


def test_a_path_gives_back_both_of_its_ends_and_the_gaussian_score():
    x, eps = torch.randn(5, 3, 2, dtype=torch.float64), torch.randn(5, 3, 2, dtype=torch.float64)
    t = torch.rand(5, dtype=torch.float64)
    x_t, v = interpolate(x, eps, t), velocity(x, eps)
    torch.testing.assert_close(data_of(x_t, v, t), x)
    torch.testing.assert_close(noise_of(x_t, v, t), eps)
    t = 0.3
    variance = ((1 - t) * STD) ** 2 + t**2
    torch.testing.assert_close(score_of(x_t, gaussian_field(x_t, t), t), -(x_t - (1 - t) * MEAN) / variance)


def test_a_velocity_is_the_slope_of_its_path():
    x, eps, h = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64), 1e-6
    slope = (interpolate(x, eps, 0.4 + h) - interpolate(x, eps, 0.4 - h)) / (2 * h)
    torch.testing.assert_close(slope, velocity(x, eps), atol=1e-8, rtol=0)


def _errors(solver, field, exact, steps=(40, 80, 160)):
    x = torch.linspace(0.2, 1.5, 9, dtype=torch.float64)[:, None]
    return [float((solver(field, x, time_grid(n)) - exact(x)).abs().max()) for n in steps]


def _orders(errors):
    return [math.log2(a / b) for a, b in zip(errors, errors[1:])]


def curved_field(x, t):
    """dx/dt = x^2: neither linear in x nor straight."""
    return x**2


@pytest.mark.parametrize("solver, order", [(Euler(), 1), (Midpoint(), 2), (Heun(), 2)])
def test_a_solver_reaches_its_order(solver, order):
    errors = _errors(solver, curved_field, lambda x: 1 / (1 / x + 1))
    assert errors[-1] < 0.01 and all(abs(found - order) < 0.25 for found in _orders(errors)), errors
    # on the flow of a Gaussian, which is linear in x, errors may cancel and make a solver better than its
    # order
    errors = _errors(solver, gaussian_field, lambda x: MEAN + STD * x)
    assert errors[-1] < 0.05 and all(found > order - 0.25 for found in _orders(errors)), errors


def test_a_midpoint_rule_with_the_time_of_its_start_has_lost_its_order():
    class Biased(Midpoint):
        def step(self, field, x, t, following):
            h = following - t
            return x + h * field(x + h / 2 * field(x, t), t)

    assert _orders(_errors(Biased(), gaussian_field, lambda x: MEAN + STD * x))[-1] < 1.3


def test_a_solver_calls_the_field_as_often_as_it_says():
    for solver in (Euler(), Midpoint(), Heun(), EulerMaruyama()):
        seen = []
        solver(lambda x, t, seen=seen: seen.append(t) or x, torch.zeros(2, 1), time_grid(7), RowRNG([0, 1]))
        assert len(seen) == 7 * solver.calls_per_step and max(seen) == 1.0


def test_euler_is_the_flow_match_scheduler_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    for shift in (1.0, 3.0):
        steps = 12
        times = time_grid(steps, shift=shift)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
        scheduler.set_timesteps(sigmas=list(times[:-1]))
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        theirs = x
        for t, sigma in zip(scheduler.timesteps, scheduler.sigmas):
            theirs = scheduler.step(gaussian_field(theirs, float(sigma)), t, theirs).prev_sample
        torch.testing.assert_close(Euler()(gaussian_field, x, times), theirs, atol=1e-5, rtol=1e-5)


def _stochastic(field, diffusion=2.0, seed=0):
    rows = 4000
    rng = RowRNG.of(seed, torch.arange(rows))
    x = rng.normal(2)
    return EulerMaruyama(diffusion)(field, x, time_grid(60, last=0.04), rng).flatten()


def test_the_stochastic_solver_draws_from_the_data():
    x = _stochastic(gaussian_field)
    error = STD / math.sqrt(len(x))
    assert abs(x.mean() - MEAN) < 5 * error + 0.01
    assert abs(x.std() / STD - 1) < 0.06


def test_a_stochastic_solver_without_its_score_is_found_out():
    """Noise is put in and not taken out: the spread is far too large."""

    class Biased(EulerMaruyama):
        def __call__(self, field, x, times, rng=None):
            for t, following in zip(times[:-2], times[1:-1]):
                h = following - t
                x = x + h * field(x, t) + (self.diffusion * t * -h) ** 0.5 * rng.normal(*x.shape[1:])
            return x + (times[-1] - times[-2]) * field(x, times[-2])

    rng = RowRNG.of(0, torch.arange(2000))
    x = Biased()(gaussian_field, rng.normal(2), time_grid(60, last=0.04), rng).flatten()
    assert x.std() / STD > 1.06


def test_a_stochastic_solver_without_diffusion_is_euler():
    rng, x = RowRNG([0, 1]), torch.randn(2, 3, dtype=torch.float64)
    times = time_grid(9, last=0.1)
    torch.testing.assert_close(EulerMaruyama(0.0)(gaussian_field, x, times, rng), Euler()(gaussian_field, x, times))
    with pytest.raises(ValueError, match="give it rng"):
        EulerMaruyama()(gaussian_field, x, times)


def test_time_grids():
    assert time_grid(4) == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert time_grid(3, last=0.5) == (1.0, 0.75, 0.5, 0.0)
    assert time_grid(2, shift=3.0) == (1.0, 0.75, 0.0)
    for wrong in ({"steps": 0}, {"steps": 3, "shift": 0.0}, {"steps": 1, "last": 0.5}, {"steps": 3, "start": 2.0}):
        with pytest.raises(ValueError):
            time_grid(**wrong)


DISTRIBUTIONS = {
    "uniform": (Uniform(), lambda t: t),
    "logit_normal": (LogitNormal(0.3, 0.8), lambda t: torch.special.ndtr((torch.logit(t) - 0.3) / 0.8)),
    "mode": (Mode(0.0), lambda t: t),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("stratified", [False, True])
def test_times_follow_their_distribution(name, stratified):
    """Kolmogorov and Smirnov's distance to the exact distribution function; stratified times come as close as
    1 / n."""
    distribution, cdf = DISTRIBUTIONS[name]
    rows = 2000
    t = (Stratified(distribution) if stratified else distribution)(RowRNG.of(1, torch.arange(rows)))
    assert t.dtype == torch.float64 and (t > 0).all() and (t < 1).all()
    u = cdf(t).sort().values
    distance = (u - (torch.arange(rows) + 0.5) / rows).abs().max()
    assert distance < (1.0 / rows if stratified else 1.95 / math.sqrt(rows))


def test_mode_sampling_is_the_papers_map():
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    t = Mode(1.29).quantile(u)
    assert (t.diff() < 0).all()
    torch.testing.assert_close(Mode(1.29).quantile(torch.tensor([0.5], dtype=torch.float64)), torch.tensor([0.5], dtype=torch.float64))
    middle = (Mode(1.29).quantile(u) - 0.5).abs() < 0.25
    assert middle.double().mean() > 0.55  # heavy in the middle
    with pytest.raises(ValueError, match="scale in"):
        Mode(3.0)


def test_a_row_draws_its_time_from_its_own_stream():
    whole = LogitNormal()(RowRNG.of(0, torch.arange(6), 3))
    assert torch.equal(whole[2:4], LogitNormal()(RowRNG.of(0, torch.arange(2, 4), 3)))


def _pair(rows=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, 2, 4, generator=generator) for _ in range(2)]


def test_projected_guidance_without_its_parts_is_classifier_free_guidance():
    plain = Projected(momentum=0.0, threshold=math.inf, eta=1.0)
    c, n = _pair()
    state = None
    for scale in (1.0, 3.0, 7.5):
        v, state = plain(c, n, scale, state)
        torch.testing.assert_close(v, combine(c, n, scale))


def test_projected_guidance_moves_across_the_conditional_velocity_within_its_threshold():
    c, n = _pair()
    v, _ = Projected(momentum=0.0, threshold=0.5)(c, n, 4.0)
    step = (v - c).flatten(1)
    assert (step * c.flatten(1)).sum(1).abs().max() < 1e-5
    assert (step.norm(dim=1) <= 3 * 0.5 + 1e-5).all()
    whole, _ = Projected(momentum=0.0, threshold=math.inf, eta=1.0)(c, n, 4.0)
    assert ((whole - c).flatten(1) * c.flatten(1)).sum(1).abs().min() > 1e-2  # which plain guidance does not hold


def test_the_momentum_is_a_running_sum_row_by_row():
    c, n = _pair()
    guide = Projected(momentum=-0.5, threshold=math.inf, eta=1.0)
    _, first = guide(c, n, 2.0)
    v, second = guide(c + 1, n, 2.0, first)
    torch.testing.assert_close(second, (c + 1 - n).double() - 0.5 * (c - n).double())
    torch.testing.assert_close(v, (c + 1).double().add(second).float())
    alone, _ = guide((c + 1)[1:2], n[1:2], 2.0, first[1:2])
    assert torch.equal(alone, v[1:2])
