"""The map from noise to codewords: it carries the normal distribution to the wanted one."""

import numpy as np
import pytest
import torch
from scipy import stats

from gentok.flow.codewords import DETERMINISTIC, CodewordFlow
from gentok.rng import RowRNG

V, C, DRAWS = 6, 3, 20_000
CODEWORDS = RowRNG.of(3, range(V)).normal(C)
LOGITS = torch.tensor([0.3, -1.0, 1.2, -torch.inf, 0.0, -2.5], dtype=torch.float64)


class Unweighted(CodewordFlow):
    """Forgets that long codewords are as likely as short ones."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._squares = torch.zeros_like(self._squares)


class Nearest(CodewordFlow):
    """Takes the nearest possible codeword of the noise."""

    def __call__(self, noise, logits):
        return torch.cdist(noise, self.codewords).masked_fill(logits == -torch.inf, torch.inf).argmin(-1)


def pvalue(flow):
    """Of a chi-square test of what a flow makes of noise against LOGITS."""
    ids = flow(RowRNG.of(5, range(DRAWS)).normal(C), LOGITS.expand(DRAWS, V))
    counts, p = np.bincount(ids, minlength=V), LOGITS.softmax(0).numpy()
    assert counts[p == 0].sum() == 0
    return stats.chisquare(counts[p > 0], p[p > 0] * DRAWS).pvalue


@pytest.mark.parametrize("solver, steps", [("heun", 32), ("midpoint", 32), ("euler", 256)])
def test_noise_becomes_codes_of_the_wanted_distribution(solver, steps):
    assert pvalue(CodewordFlow(CODEWORDS, steps, solver)) > 1e-3


@pytest.mark.parametrize("wrong", [Unweighted(CODEWORDS, 32), Nearest(CODEWORDS, 32), CodewordFlow(CODEWORDS, 2, "euler")])
def test_a_wrong_or_coarse_map_is_noticed(wrong):
    assert pvalue(wrong) < 1e-6


@pytest.mark.parametrize("solver", DETERMINISTIC)
@pytest.mark.parametrize("steps", [2, 9])
def test_a_certain_code_is_reached_from_any_noise(solver, steps):
    logits = torch.full((V, V), -torch.inf, dtype=torch.float64).fill_diagonal_(0.0)
    for seed in range(20):
        noise = 3 * RowRNG.of(seed, range(V)).normal(C)
        assert CodewordFlow(CODEWORDS, steps, solver)(noise, logits).tolist() == list(range(V))


def test_on_a_line_the_map_is_the_quantile_function():
    """Lines of flow do not cross, so in one dimension the codes are in the order of the noise: enumerated by the normal's own quantiles."""
    codewords = torch.tensor([[0.4], [-1.5], [1.1], [-0.2]], dtype=torch.float64)
    logits = torch.tensor([0.0, 0.7, -0.4, 0.2], dtype=torch.float64)
    order = codewords[:, 0].argsort()
    ends = stats.norm.ppf(logits.softmax(0)[order].cumsum(0)[:-1].numpy())
    noise = torch.linspace(-3, 3, 1201, dtype=torch.float64)
    wanted = order[np.searchsorted(ends, noise.numpy())]
    inside = (torch.as_tensor(ends)[:, None] - noise).abs().amin(0) > 0.02  # the solver's error moves the ends a little
    got = CodewordFlow(codewords, 64, "heun")(noise[:, None], logits.expand(1201, 4))
    assert torch.equal(got[inside], wanted[inside]) and inside.double().mean() > 0.9


def test_the_error_falls_with_the_steps():
    noise = RowRNG.of(6, range(4000)).normal(C)
    fine = CodewordFlow(CODEWORDS, 200, "heun")(noise, LOGITS.expand(4000, V))
    changed = [(CodewordFlow(CODEWORDS, steps, "euler")(noise, LOGITS.expand(4000, V)) != fine).double().mean() for steps in (4, 16, 64)]
    assert changed[0] > 2 * changed[1] > 4 * changed[2] > 0


@pytest.mark.parametrize("options, message", [({"steps": 1}, "at least 2"), ({"solver": "euler_maruyama"}, "euler, midpoint, heun")])
def test_wrong_settings_are_refused_in_a_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        CodewordFlow(CODEWORDS, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind, right", [(CodewordFlow, True), (Unweighted, False)])
def test_the_score_is_the_gradient_of_the_log_density(kind, right):
    """Of sum_j p_j N(x; (1 - t) c_j, t^2 I), one codeword after the other, at a time of its own for every point."""
    x, t = (2 * RowRNG.of(7, range(40)).normal(C)).requires_grad_(), torch.linspace(0.05, 1, 40, dtype=torch.float64)[:, None]
    parts = [LOGITS.softmax(0)[j] * (-((x - (1 - t) * CODEWORDS[j]) / t).square().sum(1) / 2).exp() / t[:, 0] ** C for j in range(V)]
    wanted = torch.autograd.grad(sum(parts).log().sum(), x)[0]
    assert torch.allclose(kind(CODEWORDS).score(x.detach(), t, LOGITS), wanted, rtol=1e-9) == right
    alone = torch.stack([kind(CODEWORDS).score(x[i].detach(), float(t[i]), LOGITS) for i in range(40)])
    assert torch.allclose(alone, wanted, rtol=1e-5) == right
