"""Distributions of the mixture of Gaussians: the low-rank form is the dense one, the density is a density,
the bound bounds."""

import math

import pytest
import torch

from gentok.flow.mixture import Mixture
from gentok.rng import RowRNG


def mixture(batch=2, positions=3, components=4, width=3, rank=2, floor=0.01, dtype=torch.float64, seed=0):
    def normal(*shape):
        return RowRNG([seed + len(shape) + sum(shape)]).normal(*shape)[0].to(dtype)

    return Mixture(
        logits=normal(batch, positions, components),
        features=normal(batch, positions, rank),
        maps=normal(components, width, rank),
        offsets=normal(components, width),
        log_scale=0.5 * normal(batch, positions, components) - 0.5,
        centre=normal(batch, positions, width),
        unit=0.3 + normal(batch, positions).abs(),
        floor=torch.tensor(floor, dtype=dtype),
    )


def means(m):
    """float [B, N, M, D], written out."""
    out = torch.einsum("mdr,bnr->bnmd", m.maps, m.features) + m.offsets
    return m.centre[:, :, None] + m.unit[:, :, None, None] * out


def points(m, seed=9):
    return RowRNG([seed]).normal(*m.centre.shape)[0].to(m.centre)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_low_rank_distances_are_the_dense_ones(rank):
    m = mixture(rank=rank, width=4, components=7)
    z = points(m)
    assert torch.allclose(m.squared(z), (z[:, :, None] - means(m)).square().sum(-1), rtol=1e-11, atol=1e-11)
    component = torch.tensor([[0, 6, 3], [2, 2, 5]])
    assert torch.allclose(m.mean(component), means(m).gather(2, component[..., None, None].expand(-1, -1, 1, 4))[:, :, 0])


def test_float32_distances_are_near_the_exact_ones_also_under_autocast():
    exact, m = mixture(width=16, components=50, rank=8), mixture(width=16, components=50, rank=8, dtype=torch.float32)
    z = points(exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = m.squared(z.float())
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), exact.squared(z), rtol=1e-4)


def test_the_density_is_the_weighted_sum_of_normal_densities():
    m = mixture()
    z = points(m)
    normal = torch.distributions.Normal(means(m), m.variance.sqrt()[..., None])
    want = -torch.logsumexp(m.logits.log_softmax(-1) + normal.log_prob(z[:, :, None]).sum(-1), -1)
    assert torch.allclose(m.nats(z), want)
    assert torch.allclose(m.variance, m.floor + (m.unit[..., None] * m.log_scale.exp()) ** 2)


def grid(m, n=4001):
    """z float [n, 1, 1, 1] that covers a one-dimensional mixture of one row and position, and the distance of
    two points."""
    z = torch.linspace(-30, 30, n, dtype=torch.float64)
    return z.view(n, 1, 1), float(z[1] - z[0])


def expanded(m, n):
    own = {k: getattr(m, k).expand(n, *getattr(m, k).shape[1:]) for k in ("logits", "features", "log_scale", "centre", "unit")}
    return Mixture(maps=m.maps, offsets=m.offsets, floor=m.floor, **own)


@pytest.mark.parametrize("spread", [0.05, 0.5, 3.0])
def test_the_bound_is_above_the_exact_nats_in_the_mean_over_q_and_equal_for_one_component(spread):
    for components in (1, 3):
        m = mixture(1, 1, components, 1, 2)
        z, step = grid(m)
        p = expanded(m, len(z)).nats(z)[:, 0]
        assert float((-p).exp().sum() * step) == pytest.approx(1, abs=1e-6)
        for target in (-2.0, 0.3, 1.5):
            q = torch.distributions.Normal(target, math.sqrt(spread)).log_prob(z[:, 0, 0].float()).double().exp()
            exact = float((q * p).sum() * step)
            bound = float(sum(m.bound(torch.full((1, 1, 1), target, dtype=torch.float64), spread)))
            if components == 1:
                assert bound == pytest.approx(exact, abs=1e-4)
            else:
                assert exact - 1e-6 <= bound


def test_the_bound_at_a_point_exceeds_the_exact_nats_by_the_divergence_of_its_weights_from_the_posterior():
    m = mixture(components=5)
    z = points(m)
    costs, prior = m.costs(z), m.logits.log_softmax(-1)
    weights, posterior = (-costs).log_softmax(-1), (prior - costs).log_softmax(-1)
    gap = sum(m.bound(z)) - m.nats(z)
    assert (gap > 0).all()
    assert torch.allclose(gap, (weights.exp() * (weights - posterior)).sum(-1))
    one = mixture(components=1)
    assert torch.allclose(sum(one.bound(points(one))), one.nats(points(one)))
    even = m.with_logits(torch.zeros_like(m.logits))
    assert torch.allclose(sum(even.bound(z)), even.nats(z)), "with equal weights nothing is lost"


def test_no_component_dies_of_its_weight_and_none_moves_to_be_likely():
    m = mixture(1, 1, 3, 2)
    for name in ("logits", "offsets", "maps", "log_scale"):
        setattr(m, name, getattr(m, name).clone().requires_grad_())
    m.logits.data[..., 0] = -200.0
    z = m.mean(torch.zeros(1, 1, dtype=torch.int64)).detach() + 0.01
    choice, fit = m.bound(z)
    grads = torch.autograd.grad(fit.sum(), [m.offsets, m.maps, m.log_scale], retain_graph=True)
    assert all(bool(g.isfinite().all()) for g in grads) and float(grads[0][0].norm()) > 1e-3
    still = torch.autograd.grad(choice.sum(), [m.offsets, m.maps, m.log_scale], retain_graph=True, allow_unused=True)
    assert all(g is None for g in still)
    exact = torch.autograd.grad(m.nats(z).sum(), m.offsets)[0]
    assert float(exact[0].norm()) < 1e-30, "the exact likelihood lets it die"
    pull = torch.autograd.grad(choice.sum(), m.logits)[0]
    assert float(pull[0, 0, 0]) < -0.5, "its weight rises instead"


def test_draws_have_the_components_mean_and_variance():
    m = expanded(mixture(1, 2, 3, 2), 20000)
    component = torch.tensor([[1, 2]]).expand(20000, 2)
    for temperature in (0.0, 0.5, 1.0):
        z = m.draw(component, RowRNG(torch.arange(20000)), temperature)
        mean, variance = m.mean(component)[0], temperature * m.variance[0].gather(-1, component[0][:, None])
        assert float((z.mean(0) - mean).abs().max()) <= 4 * float((variance / 20000).sqrt().max()) + 1e-12
        assert torch.allclose(z.var(0), variance.expand(2, 2), rtol=0.06, atol=1e-12)
    twice = [m.draw(component, RowRNG(torch.arange(20000))) for _ in range(2)]
    assert torch.equal(*twice)
    other = m.rows(slice(3)).draw(component[:3], RowRNG(torch.arange(3)))
    assert torch.equal(other, twice[0][:3])
