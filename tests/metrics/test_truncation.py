"""What cut-off noise does to a distribution: the closed form against simulation, the distribution of a grid,
and our draws, which keep the entropy."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from gentok.generators.base import Masked
from gentok.metrics.truncation import entropy, gumbel_cap, masked_race, truncated_race
from gentok.rng import RowRNG
from gentok.samplers.ancestral import Ancestral
from gentok.samplers.draws import draw, exponential_race
from gentok.samplers.first_hitting import FirstHitting
from gentok.types import Condition, ConditionSpec, Line, TokenSpec


def zipf(n):
    p = 1 / np.arange(1.0, n + 1)
    return p / p.sum()


def dominated(n, each):
    """n rare ids of probabilities around `each`, some equal, and one that dominates them."""
    p = each * np.repeat([0.5, 1.0, 1.5, 2.0], n // 4)
    return np.append(p, 1 - p.sum())


def winners(p, uniform, rounds, rows=500):
    """How often each id wins argmax p / -log(u)."""
    counts = np.zeros(len(p))
    for _ in range(rounds):
        counts += np.bincount((p / -np.log(uniform((rows, len(p))))).argmax(1), minlength=len(p))
    return counts


def p_value(counts, distribution):
    """Pearson's test with the rare ids pooled by their probability."""
    groups = [np.isclose(distribution, value, rtol=1e-6) for value in np.unique(np.round(distribution, 10))]
    seen = np.array([counts[g].sum() for g in groups])
    want = np.array([distribution[g].sum() for g in groups]) * counts.sum()
    return stats.chisquare(seen, want * seen.sum() / want.sum()).pvalue


def grid_distribution(p, bits):
    """The exact distribution of the winner where u = j / 2^bits, j = 0 .. 2^bits - 1: all ticks in order,
    lower ids first among equals."""
    ticks = 2**bits
    with np.errstate(divide="ignore"):
        e = -np.log(np.arange(ticks - 1, -1, -1) / ticks)  # E of the first, second, ... tick
    times = (e[None] / p[:, None]).ravel()
    ids, number = np.divmod(np.arange(len(p) * ticks), ticks)
    order = np.lexsort((ids, times))
    left = np.full(len(p), float(ticks))  # P(E is beyond the ticks so far), times 2^bits
    log_all, out = 0.0, np.zeros(len(p))
    for event in order:
        i = ids[event]
        others = log_all - math.log(left[i] / ticks)
        out[i] += math.exp(others) / ticks
        left[i] -= 1
        if left[i] == 0:
            break  # this id has won by now
        log_all = others + math.log(left[i] / ticks)
    return out


def test_the_cap_is_that_of_float32_and_float64():
    assert gumbel_cap(24) == pytest.approx(16.6355, abs=1e-4) and gumbel_cap(53) == pytest.approx(36.7368, abs=1e-4)


@pytest.mark.parametrize("p", [zipf(1000), dominated(400, 1e-6), np.full(7, 1 / 7), np.array([1.0]), np.array([0.0, 0.25, 0.75])])
@pytest.mark.parametrize("bits", [8, 16, 24])
def test_it_is_a_distribution_sharper_than_its_own(p, bits):
    out = truncated_race(p, bits)
    assert out.sum() == pytest.approx(1, abs=1e-12) and (out >= 0).all() and (out[p == 0] == 0).all()
    factor = (out[p > 0] / p[p > 0])[np.argsort(p[p > 0], kind="stable")]
    assert (np.diff(factor) >= -1e-12).all()
    assert entropy(out) <= entropy(p) + 1e-12
    assert np.allclose(truncated_race(p, 50), p, rtol=1e-5)
    shuffled = np.random.default_rng(0).permutation(len(p))
    assert np.allclose(truncated_race(p[shuffled], bits), out[shuffled], rtol=1e-12)


def test_the_closed_form_is_the_distribution_of_a_race_with_noise_that_is_cut_off():
    bits, p = 12, dominated(200, 2.0**-9)
    random = np.random.default_rng(0)
    counts = winners(p, lambda shape: random.uniform(0, 1 - 2.0**-bits, shape), 120)
    assert p_value(counts, truncated_race(p, bits)) > 1e-3
    for wrong in (p, truncated_race(p, bits + 1), truncated_race(p, bits - 1)):
        assert p_value(counts, wrong) < 1e-6


def test_on_a_grid_the_distribution_is_nearly_the_closed_form_with_a_bit_more():
    bits, p = 8, dominated(40, 2.0**-6.5)
    exact = grid_distribution(p, bits)
    assert exact.sum() == pytest.approx(1, abs=1e-6)
    random = np.random.default_rng(1)
    counts = winners(p, lambda shape: np.maximum(random.integers(0, 2**bits, shape), 1e-300) / 2**bits, 300)
    assert p_value(counts, exact) > 1e-3
    rare, closed, finer = (distribution[:-1].sum() for distribution in (exact, truncated_race(p, bits), truncated_race(p, bits + 1)))
    lost = p[:-1].sum() - rare
    assert closed < rare < p[:-1].sum() and abs(finer - rare) < 0.2 * lost


@pytest.mark.slow
def test_float32_numbers_of_torch_lose_rare_ids_as_the_closed_form_says():
    """20,000 ids of about 5e-8 beside one that dominates them: c / p is 1.2, so that more than a third of
    their draws is lost."""
    p = dominated(20_000, 5e-8)
    q, generator, hits, rounds, rows = torch.tensor(p, dtype=torch.float32), torch.Generator().manual_seed(0), 0, 1500, 100
    for _ in range(rounds):
        u = torch.rand(rows, len(p), generator=generator)
        hits += int(((q / -u.log()).argmax(1) < len(p) - 1).sum())
    n, true = rounds * rows, p[:-1].sum()
    low, high = (truncated_race(p, bits)[:-1].sum() for bits in (24, 25))
    error = math.sqrt(true * n)
    assert low * n - 3 * error < hits < high * n + 3 * error
    assert hits < true * n - 3 * error


def test_in_a_zipf_vocabulary_the_entropy_falls_with_the_steps_of_a_masked_diffusion():
    """The step at t = 1 / 2 of T: ids of p / (T / 2) against "stay masked"."""
    p, found = zipf(50_257), []
    assert entropy(p) == pytest.approx(7.566, abs=1e-3)
    for steps in (64, 256, 1024, 4096, 10_000):
        distribution = truncated_race(np.append(p * 2 / steps, 1 - 2 / steps))
        found.append(entropy(distribution[:-1] / distribution[:-1].sum()))
    assert found == pytest.approx([7.18, 6.54, 5.72, 4.89, 4.34], abs=6e-3)
    assert distribution[:-1].sum() == pytest.approx(0.5 * 2 / steps, rel=0.01), "and cells are revealed half as often"
    assert entropy(truncated_race(p)) == pytest.approx(entropy(p) - 0.014, abs=1e-3), "without the mask little is lost"


def test_all_steps_together_follow_the_single_ones():
    p = zipf(50)
    out = masked_race(p, (1, 2, 30), bits=10)
    assert np.allclose(out[1], truncated_race(p, 10))
    first = truncated_race(np.append(p / 2, 0.5), 10)
    assert np.allclose(out[2], first[:-1] + first[-1] * truncated_race(p, 10))
    assert entropy(out[30]) < entropy(out[2]) < entropy(out[1]) < entropy(p)
    assert np.allclose(masked_race(p, (30,), bits=50)[30], p, rtol=1e-4)


# --------------------------------------------------------------------------------------------------------------- our draws


class Iid(Masked):
    """Every cell has the same distribution, whatever else is known."""

    uses_time, condition_spec = False, ConditionSpec()

    def __init__(self, p, cells):
        self.spec, self.log_p = TokenSpec((len(p),), Line(cells)), torch.tensor(p).log()

    def logits(self, tokens, condition, t=None):
        return self.log_p.expand(*tokens.codes.shape, -1)


def surprise(codes, p):
    """(mean of -log p(id), standard error): the entropy of p where ids are drawn from it, less where they are
    the likelier ones."""
    nats = -np.log(p[codes.flatten().numpy()])
    return nats.mean(), nats.std() / math.sqrt(len(nats))


@pytest.mark.parametrize("sampler", [Ancestral(steps=16), Ancestral(steps=10_000), Ancestral(steps=300, schedule="cosine"), FirstHitting()])
@pytest.mark.parametrize("choose", [draw, exponential_race])
def test_our_draws_keep_the_entropy_whatever_the_steps(sampler, choose):
    p = zipf(8000)
    out = sampler(Iid(p, 40), Condition(), rng=RowRNG.of(0, range(30 if choose is draw else 8)), choose=choose)
    mean, error = surprise(out.tokens.codes, p)
    assert abs(mean - entropy(p)) < 4 * error


def test_the_check_sees_a_race_against_the_mask_with_cut_off_noise():
    """The same model drawn as the race of float32 would, with a 14-bit grid in place of 24 bits so that it
    shows at V = 8000."""
    p, steps, random = zipf(8000), 60, np.random.default_rng(0)
    codes, masked = np.zeros(800, dtype=np.int64), np.ones(800, dtype=bool)
    for n in range(steps, 0, -1):
        rows = masked.nonzero()[0]
        distribution = np.append(p / n, 1 - 1 / n)
        u = (random.integers(0, 2**14, (len(rows), len(distribution))) + 1e-30) / 2**14
        won = (distribution / -np.log(u)).argmax(1)
        codes[rows], masked[rows] = won, won == len(p)
    mean, error = surprise(torch.tensor(codes), p)
    assert mean < entropy(p) - 10 * error
