"""Properties of ResGen: what is hidden, what is read and predicted, and what its bound bounds."""

import copy
import itertools
import math

import pytest
import torch
from generator_kit import CLASSES, EVERYTHING, codes, everything, randomise
from scipy.stats import multivariate_hypergeom

from gentok.codebooks.bae import BAE
from gentok.codebooks.residual import ResidualCodebook
from gentok.codebooks.vq import VQ
from gentok.flow.random_cells import random_deepest
from gentok.generators.base import capabilities
from gentok.generators.resgen import ResGen
from gentok.types import ABSENT, UNKNOWN, Class, Condition, Line, Raster, RowRNG, Tokens, TokenSpec

LEVELS = TokenSpec((5, 5, 5), Line(5))
RASTER = TokenSpec((6, 6), Raster(2, 3))
SPECS = [LEVELS, RASTER]
BY = ["prefix", "cross", "adaln"]


def residual_codebook(spec, dim=2, width=None, decay=0.4, seed=0):
    """A residual codebook for the spec, whose rows shrink from level to level."""
    out = ResidualCodebook(VQ(spec.vocab, dim, normalize=False), spec.levels, width)
    rng = RowRNG([seed])
    with torch.no_grad():
        for k in range(spec.levels):
            out.book(k).weight.copy_(rng.normal(spec.vocab, dim)[0] * decay**k)
    return out


def resgen(spec, condition_spec=None, dtype=torch.float64, codebook=None, **options):
    own = {"width": 16, "depth": 2, "heads": 2, "components": 6, "rank": 3, **options}
    return randomise(ResGen(spec, condition_spec, codebook or residual_codebook(spec), **own)).to(dtype)


# ------------------------------------------------------------------------------------------------------------------- masks


def test_how_much_a_position_loses_is_multivariate_hypergeometric():
    spec, n = TokenSpec((2, 2), Line(3)), 40000
    tokens = codes(spec, 1).codes.expand(n, -1, -1).contiguous()
    for count in range(1, 7):
        each = random_deepest(tokens >= 0, torch.full((n,), count), RowRNG.of(count, range(n))).sum(1)
        for split in itertools.product(range(3), repeat=3):
            p = multivariate_hypergeom.pmf(split, [2, 2, 2], count) if sum(split) == count else 0.0
            share = float((each == torch.tensor(split)).all(1).double().mean())
            assert abs(share - p) < 4.5 * math.sqrt(p * (1 - p) / n) + 1e-12, (count, split, share, p)


def test_the_deepest_present_levels_are_hidden():
    tokens = codes(LEVELS, 500)
    tokens.codes[::2, 2, 3] = ABSENT  # a level less
    tokens.codes[1::3, :, 4] = ABSENT  # a position less
    count = 1 + torch.arange(500) % 13
    chosen = random_deepest(tokens.present, count, RowRNG.of(0, range(500)))
    present = tokens.codes >= 0
    assert not (chosen & ~present).any()
    assert torch.equal(chosen.sum((1, 2)), torch.minimum(count, present.sum((1, 2))))
    visible = present & ~chosen
    for k in range(2):  # nothing visible below something hidden
        assert not (chosen[:, k] & visible[:, k + 1 :].any(1)).any()


# ---------------------------------------------------------------------------------------------------- what is read and predicted


@pytest.mark.parametrize("width", [None, 4])
def test_cumulative_embeddings_are_the_codebooks_lookup(width):
    codebook = residual_codebook(LEVELS, width=width)
    model = resgen(LEVELS, codebook=codebook)
    tokens = codes(LEVELS, 3).codes
    chosen = random_deepest(tokens >= 0, torch.tensor([4, 9, 15]), RowRNG([0, 1, 2]))
    hidden, visible = model.cumulative(tokens, chosen), model.cumulative(tokens, ~chosen)
    axes = model._levels.on(tokens.device, torch.float64).axes
    assert axes.shape == (codebook.width, codebook.dim), "no more dimensions than the rows span"

    def back(x):
        return (x @ axes.T).float()

    assert torch.allclose(back(visible), codebook.lookup(tokens.masked_fill(chosen, ABSENT)).transpose(1, 2), atol=1e-6)
    assert torch.allclose(back(hidden + visible), codebook.lookup(tokens).transpose(1, 2), atol=1e-6)
    by_table = sum(chosen[:, k, :, None] * codebook.table(k)[tokens[:, k]] for k in range(3))
    assert torch.allclose(back(hidden), by_table, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS)
def test_every_visible_code_is_read_and_no_hidden_one(spec):
    model = resgen(spec)
    tokens = codes(spec, 1)
    tokens.codes[0, :, 0] = UNKNOWN
    want = model.mixture(tokens, Condition())
    for k, n in itertools.product(range(spec.levels), range(1, spec.positions)):
        other = tokens.codes.clone()
        other[0, k, n] = (other[0, k, n] + 1) % spec.vocab_sizes[k]
        got = model.mixture(Tokens(other, spec), Condition())
        for name in ("logits", "features", "log_scale", "centre"):
            assert float((getattr(got, name) - getattr(want, name))[0, 0].detach().abs().max()) > 1e-7, (k, n, name)
    for gone in (UNKNOWN, ABSENT):  # which levels are masked or absent is read too
        other = tokens.codes.clone()
        other[0, -1, 1] = gone
        assert float((model.mixture(Tokens(other, spec), Condition()).logits - want.logits)[0, 0].detach().abs().max()) > 1e-7


def test_coordinates_give_every_set_of_hidden_levels_zero_mean_and_unit_variance():
    spec = TokenSpec((64, 64, 64), Line(40))
    model = resgen(spec, codebook=residual_codebook(spec, dim=3))
    tokens = codes(spec, 300)
    for hidden in range(1, 4):
        masked_cells = torch.arange(3)[:, None] >= 3 - hidden
        chosen = masked_cells.expand_as(tokens.codes)
        mean, variance = model._moments(chosen)
        y = (model.cumulative(tokens.codes, chosen) - mean) / variance.sqrt()[..., None]
        assert float(y.mean((0, 1)).abs().max()) < 0.03
        assert float(y.square().mean()) == pytest.approx(1, abs=0.03)
        m = model.mixture(Tokens(tokens.codes.masked_fill(chosen, UNKNOWN), spec).rows([0]), Condition())
        assert torch.allclose(m.unit[0], variance[0].sqrt())
    assert float(m.floor) == pytest.approx(0.25**2 * float(residual_codebook(spec, dim=3).table(2).var(0, unbiased=False).mean()))


def test_requantize_fills_masked_cells_by_the_codebooks_own_quantisation_and_keeps_the_rest():
    spec = TokenSpec((5, 5, 5), Line(200))
    codebook = residual_codebook(spec, decay=0.05)  # levels so far apart that sums differ clearly
    model = resgen(spec, codebook=codebook)
    tokens = codes(spec, 2)
    chosen = random_deepest(tokens.present, torch.tensor([300, 590]), RowRNG([0, 1]))
    known = Tokens(tokens.codes.masked_fill(chosen, UNKNOWN), spec)
    z = model.cumulative(tokens.codes, chosen)
    assert torch.equal(model.requantize(z, known).codes, tokens.codes)
    far = model.requantize(z + 0.7, known).codes
    assert torch.equal(far[~chosen], tokens.codes[~chosen]) and (far != tokens.codes).any()
    axes = model._levels.on(far.device, torch.float64).axes
    vectors = ((model.cumulative(tokens.codes, ~chosen) + z + 0.7) @ axes.T).transpose(1, 2)
    assert torch.equal(far, codebook.nearest(vectors, known.codes))


def test_the_codebook_is_read_and_neither_trained_nor_saved_nor_changed():
    codebook = residual_codebook(LEVELS)
    before = codebook.table(0).clone()
    model = ResGen(LEVELS, CLASSES, codebook, width=16, depth=1, heads=2)
    assert not any("book" in name for name in model.state_dict())
    model.train().to(torch.float64)
    model.loss(codes(LEVELS, 2), Condition(), RowRNG([0, 1])).loss.backward()
    assert torch.equal(codebook.table(0), before) and codebook.table(0).dtype == torch.float32
    assert all(p.grad is None for p in codebook.parameters())
    assert codebook.training and all(p.requires_grad for p in codebook.parameters())
    twin = copy.deepcopy(model)
    assert twin.codebook is model.codebook, "averaged copies share it"
    with torch.no_grad():
        codebook.book(0).weight.mul_(2.0)
    chosen = torch.ones(2, 3, 5, dtype=torch.bool)
    assert torch.equal(model.cumulative(codes(LEVELS, 2).codes, chosen), twin.cumulative(codes(LEVELS, 2).codes, chosen))
    assert torch.allclose(model.codebook.on(torch.device("cpu")).table(0), before), "what happens to the original changes nothing"


# -------------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("spec", SPECS)
def test_the_loss_is_the_bound_over_the_positions_with_hidden_levels(spec):
    model = resgen(spec, CLASSES)
    tokens, condition = codes(spec, 4), Condition({"class": Class(torch.tensor([0, -1, 1, 2]))})
    tokens.codes[0, -1, -2:] = ABSENT
    out = model.loss(tokens, condition, RowRNG([0, 1, 2, 3]))
    rng = RowRNG([0, 1, 2, 3])
    cells = (tokens.codes >= 0).flatten(1).sum(1)
    chosen = random_deepest(tokens.present, torch.ceil(torch.cos(0.5 * math.pi * rng.uniform()) * cells).long(), rng)
    m = model.mixture(Tokens(tokens.codes.masked_fill(chosen, UNKNOWN), spec), condition)
    z = model.cumulative(tokens.codes, chosen)
    q = torch.distributions.Normal(z, m.floor.sqrt())
    nats = sum(m.bound(z, m.floor)) - q.entropy().sum(-1)
    here = chosen.any(1)
    assert torch.allclose(out.loss, nats[here].mean())
    assert int(out.count) == int(here.sum()) and out.nll is None
    assert torch.allclose(out.loss, out.terms["choice"] + out.terms["fit"])
    draws = RowRNG(torch.arange(4)).normal(4000, *z.shape[1:]).permute(1, 0, 2, 3) * m.floor.sqrt() + z
    exact = torch.stack([m.nats(x) for x in draws]).mean(0) - q.entropy().sum(-1)  # the divergence itself
    assert bool((nats[here] > exact[here] - 0.1).all()) and bool((exact[here] > -0.1).all())


def test_gradient_flows_to_every_weight():
    for by in BY:
        model = resgen(LEVELS, EVERYTHING, condition_by=by)
        model.loss(codes(LEVELS, 6), everything(6), RowRNG(torch.arange(6))).loss.backward()
        still = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
        assert not still
        without = [name for name, p in model.named_parameters() if float(p.grad.abs().max()) == 0]
        assert not without, without


@pytest.mark.parametrize("by", BY)
def test_a_row_of_a_batch_equals_the_row_alone_also_in_training(by):
    model = resgen(LEVELS, EVERYTHING, condition_by=by, dropout=0.2, condition_dropout=0.5).train()
    tokens, condition = codes(LEVELS, 5), everything(5)
    whole = model.loss(tokens, condition, RowRNG.of(3, range(5)))
    parts = [model.loss(tokens.rows([b]), condition.rows([b]), RowRNG.of(3, [b])) for b in range(5)]
    assert torch.allclose(sum(part.loss * part.count for part in parts) / whole.count, whole.loss, rtol=1e-9)
    bound = model.eval().nll_bound(tokens, condition, RowRNG.of(3, range(5)), samples=2)
    assert torch.allclose(model.nll_bound(tokens.rows([2]), condition.rows([2]), RowRNG.of(3, [2]), samples=2), bound[2:3], rtol=1e-9)


@pytest.mark.parametrize("by", BY)
def test_null_rows_mix_with_others(by):
    model = resgen(RASTER, EVERYTHING, condition_by=by)
    tokens, condition = Tokens.unknown(RASTER, 3), everything(3)
    both = model.mixture(Tokens(tokens.codes.repeat(2, 1, 1), RASTER), Condition.concat([condition, condition.null()])).logits
    assert torch.allclose(both[:3], model.mixture(tokens, condition).logits)
    assert torch.allclose(both[3:], model.mixture(tokens, condition.null()).logits)
    assert torch.allclose(both[1], both[4]) and not torch.allclose(both[0], both[3])


def test_under_autocast_sums_and_mixture_stay_exact():
    """The trunk alone computes in bfloat16, whose three digits are less than what quantisation tells apart."""
    model = resgen(RASTER, dtype=torch.float32)
    tokens = codes(RASTER, 4)
    chosen = random_deepest(tokens.present, torch.tensor([2, 5, 9, 12]), RowRNG(torch.arange(4)))
    known = Tokens(tokens.codes.masked_fill(chosen, UNKNOWN), RASTER)
    right, moments = model.cumulative(tokens.codes, chosen), model._moments(chosen)
    filled = model.requantize(right, known).codes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.cumulative(tokens.codes, chosen), right)
        assert all(torch.equal(a, b) for a, b in zip(model._moments(chosen), moments))
        assert torch.equal(model.requantize(right, known).codes, filled)
        m = model.mixture(known, Condition())
        assert all(getattr(m, name).dtype == torch.float32 for name in ("logits", "features", "centre", "log_scale", "unit"))
        nats = m.nats(right)
        assert model.loss(tokens, Condition(), RowRNG(torch.arange(4))).loss.dtype == torch.float32
    assert torch.equal(nats, m.nats(right))


# ------------------------------------------------------------------------------------------------------------------- bound


@torch.no_grad()
def exact_nats(model, code):
    """-log p(codes [K, N]) averaged over the orders of the cells, with p(v) of every step by integration over a one-dimensional z."""
    spec = model.spec
    axis = torch.linspace(-40, 40, 40001, dtype=torch.float64)
    axes = model._levels.on(torch.device("cpu"), torch.float64).axes
    tables = [(model.codebook.on(torch.device("cpu")).table(k).double() @ axes)[:, 0] for k in range(spec.levels)]
    smear = model._levels.on(torch.device("cpu"), torch.float64).smear
    step = {}
    for depths in itertools.product(range(spec.levels + 1), repeat=spec.positions):
        hidden = torch.stack([torch.arange(spec.levels) >= d for d in depths], 1)
        m = model.mixture(Tokens(code.masked_fill(hidden, UNKNOWN)[None], spec), Condition())
        for n, d in enumerate(depths):
            if d == spec.levels:
                continue
            p = torch.zeros_like(axis)
            for c in range(m.logits.shape[-1]):
                mean = m.centre[0, n, 0] + m.unit[0, n] * (m.offsets[c, 0] + (m.maps[c, 0] * m.features[0, n]).sum())
                normal = torch.distributions.Normal(mean, m.variance[0, n, c].sqrt())
                p += m.logits[0, n].softmax(0)[c] * normal.log_prob(axis).exp()
            below = tables[d + 1 :]
            mean, width = sum(t.mean() for t in below), smear + 0.5 * sum(t.var(unbiased=False) for t in below)
            distribution = (-((axis[:, None] - mean - tables[d]) ** 2) / (2 * width)).softmax(1)[:, code[d, n]]
            step[depths, n] = -math.log(float((p * distribution).sum() * (axis[1] - axis[0])))
    total = {tuple([spec.levels] * spec.positions): 0.0}
    for depths in sorted(itertools.product(range(spec.levels + 1), repeat=spec.positions), key=sum, reverse=True)[1:]:
        left = [spec.levels - d for d in depths]
        total[depths] = sum(
            share / sum(left) * (step[depths, n] + total[tuple(d + (i == n) for i, d in enumerate(depths))])
            for n, share in enumerate(left) if share
        )  # fmt: skip
    return total[tuple([0] * spec.positions)]


def test_the_bound_is_above_the_mean_over_orders_of_the_integrated_distribution():
    spec = TokenSpec((3, 3), Line(2))
    model = resgen(spec, codebook=residual_codebook(spec, dim=1), smear=1.0)
    with torch.no_grad():
        model.log_scales.fill_(-0.5)
    gaps = []
    for seed in range(4):
        tokens = codes(spec, 1, seed)
        exact = exact_nats(model, tokens.codes[0])
        n = 3000
        many = Tokens(tokens.codes.expand(n, -1, -1).contiguous(), spec)
        estimate = model.nll_bound(many, Condition(), RowRNG.of(seed, range(n)), samples=2)
        error = float(estimate.std()) / math.sqrt(n)
        gaps.append(float(estimate.mean()) - exact)
        assert gaps[-1] > -4 * error, (exact, gaps[-1], error)
        assert error < 0.1
    assert max(gaps) < 6  # of 4 cells: not vacuous


@pytest.mark.slow
@pytest.mark.parametrize("spec,options", [(RASTER, {}), (LEVELS, {"condition_by": "adaln"})])
def test_four_items_are_learned_by_heart(spec, options):
    torch.manual_seed(0)
    own = {"width": 32, "depth": 2, "heads": 2, "components": 16, "rank": 4, "condition_dropout": 0.0, **options}
    model = ResGen(spec, CLASSES, residual_codebook(spec, dim=4), **own)
    tokens, condition = codes(spec, 4), Condition({"class": Class(torch.tensor([0, 1, 2, -1]))})
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1.0, 2 * (1 - step / 400))
        out = model.loss(tokens, condition, RowRNG.of(0, range(4), step))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    nats = model.nll_bound(tokens, condition, RowRNG([0] * 4), samples=8).mean()
    assert nats < 0.25 * math.log(2) * spec.bits


@pytest.mark.parametrize("real", [False, True])
def test_it_builds_and_describes_itself_on_the_meta_device_also_over_a_real_codebook(real):
    codebook = residual_codebook(LEVELS)
    with torch.device("meta"):
        model = ResGen(LEVELS, CLASSES, codebook if real else ResidualCodebook(VQ(5, 4), 3))
        out = model.loss(Tokens(torch.zeros(2, 3, 5, dtype=torch.int64), LEVELS), Condition(), RowRNG(torch.zeros(2, dtype=torch.int64)))
    assert out.loss.is_meta
    out.loss.backward()


def test_what_does_not_fit_is_refused_in_one_line():
    for codebook, message in (
        (None, "no codebook"),
        (VQ(5, 4), r"a VQ of 1 level.*generator=masked"),
        (BAE(8, 4, 2), "a BAE of 2 level"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            ResGen(LEVELS, None, codebook)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="schedule must be one of cosine, arccos, linear"):
        resgen(LEVELS, schedule="cubic")
    for bad in ({"components": 0}, {"rank": 0}, {"smear": 0.0}):
        with pytest.raises(ValueError, match="expected a number above 0"):
            resgen(LEVELS, **bad)
    with pytest.raises(ValueError, match="this generator models 3 x 5"):
        resgen(LEVELS).mixture(codes(TokenSpec((5, 5), Line(5)), 2), Condition())
    assert capabilities(ResGen) == ("CumulativeMasked",)
