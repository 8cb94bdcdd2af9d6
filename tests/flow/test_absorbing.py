"""Schedules of absorbing diffusion: ends, slopes, inverses, and names."""

import math

import pytest
import torch

from gentok.flow.absorbing import NAMES, mask_schedule

SCHEDULES = [*NAMES, "polynomial:0.5", "polynomial:3", "geometric:1e-3:10"]
T = torch.linspace(0, 1, 1001, dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_masked_share_rises_from_exactly_none_to_all(name):
    m = mask_schedule(name).masked(T)
    assert m[0] == 0 and m[-1] == pytest.approx(1, abs=1e-15) and (m.diff() > 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_slope_is_the_derivative_and_time_the_inverse(name):
    schedule = mask_schedule(name)
    t = T[1:-1].clone().requires_grad_()
    (slope,) = torch.autograd.grad(schedule.masked(t).sum(), t)
    t = t.detach()
    assert torch.allclose(schedule.slope(t), slope, rtol=1e-9)
    assert torch.allclose(schedule.weight(t), slope / schedule.masked(t), rtol=1e-9)
    assert torch.allclose(schedule.masked(schedule.time(t)), t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_smallest_and_largest_time_that_noise_can_draw_have_finite_weights(name):
    t = torch.tensor([2.0**-53, 1 - 2.0**-53], dtype=torch.float64)
    schedule = mask_schedule(name)
    assert schedule.weight(t).isfinite().all() and (schedule.masked(t) > 0).all()


def test_the_names_are_the_papers():
    third = torch.tensor(1 / 3, dtype=torch.float64)
    assert mask_schedule("cosine").masked(third) == pytest.approx(math.cos(math.pi / 3))  # MaskGIT's gamma(2 / 3)
    assert mask_schedule("arccos").masked(third) == pytest.approx(math.acos(2 / 3) / (math.pi / 2))
    assert mask_schedule("polynomial:3").masked(third) == pytest.approx(1 / 27)
    sigma = 1e-5 ** (2 / 3) * 20.0 ** (1 / 3)  # exp(-sigma) is alpha, up to the ends
    assert 1 - mask_schedule("geometric").masked(third) == pytest.approx(math.exp(-sigma), abs=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_grid_falls_from_one_to_zero(name):
    grid = mask_schedule(name).grid(7)
    assert len(grid) == 8 and grid[0] == 1.0 and grid[-1] == 0.0 and all(a > b for a, b in zip(grid, grid[1:]))
    assert mask_schedule(name).grid(1) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cubic", "linear, cosine, arccos, polynomial, geometric"),
        ("linear:2", "too many numbers"),
        ("polynomial:x", "not a number"),
        ("polynomial:-1", "power > 0"),
        ("geometric:2:1", "0 < a < b"),
    ],
)
def test_unknown_names_and_numbers_are_refused_in_one_line(name, words):
    with pytest.raises(ValueError, match=words) as error:
        mask_schedule(name)
    assert "\n" not in str(error.value)
