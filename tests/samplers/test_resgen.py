"""ResGen's sampler: which cells are kept, how many calls it needs, and what it keeps of what is known."""

import math

import pytest
import torch
from scipy.stats import multivariate_hypergeom

from gentok.codebooks.residual import ResidualCodebook
from gentok.codebooks.vq import VQ
from gentok.flow.mixture import Mixture
from gentok.generators.autoregressive import Autoregressive
from gentok.generators.base import CumulativeMasked
from gentok.generators.resgen import ResGen
from gentok.layouts import Layout
from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.guided import GuidedCumulativeMasked, guided
from gentok.samplers.resgen import ResGenSampler, shallowest
from gentok.types import ABSENT, UNKNOWN, Class, ClassSpec, Condition, ConditionSpec, Line, Raster, Tokens, TokenSpec

CLASSES = ConditionSpec((("class", ClassSpec(("a", "b"))),))


def model_of(levels, positions=6, vocab=5, condition_spec=CLASSES, dtype=torch.float64, seed=0):
    """A ResGen with random weights over a random residual codebook."""
    torch.manual_seed(seed)
    codebook = ResidualCodebook(VQ(vocab, 4, normalize=False), levels)
    with torch.no_grad():
        for k in range(levels):
            codebook.book(k).weight.copy_(torch.randn(vocab, 4) * 0.6**k)
    spec = TokenSpec((vocab,) * levels, Line(positions))
    model = ResGen(spec, condition_spec, codebook, width=16, depth=2, heads=2, components=8, rank=3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.4)
    return model.to(dtype).eval()


def classes(batch):
    return Condition({"class": Class(torch.arange(batch) % 3 - 1)})


def of(n):
    return RowRNG.of(0, range(n))


# ------------------------------------------------------------------------------------------------------------------- calls


@pytest.mark.parametrize("steps", [1, 6, 12])
def test_calls_do_not_depend_on_the_number_of_levels(steps):
    seen = {}
    for levels in (4, 16):
        out = ResGenSampler(steps=steps)(model_of(levels, 16), classes(3), rng=of(3))
        seen[levels] = out.network_calls["generator"]
        assert out.calls.tolist() == [steps] * 3 and out.tokens.present.all()
        assert seen[levels] == (steps, 3 * 16 * steps)
    assert seen[4] == seen[16]


def test_it_needs_a_fourth_of_the_calls_of_every_order_that_grows_with_the_levels():
    """On 64 positions, by default steps: flattened K N, delayed N + K - 1, parallel N, ResGen 16 for every
    K."""
    for levels in (4, 16):
        spec = TokenSpec((3,) * levels, Raster(8, 8))
        calls = {}
        for name in ("position_major", "delayed", "parallel"):
            model = Autoregressive(spec, None, layout=name, width=8, depth=1, heads=1).eval()
            calls[name] = int(AutoregressiveSampler()(model, Condition(), rng=of(1)).calls)
            assert calls[name] == Layout.of(name, spec).steps
        assert calls == {"position_major": 64 * levels, "delayed": 64 + levels - 1, "parallel": 64}
        own = ResGenSampler()(model_of(levels, 64, 3), classes(1), rng=of(1)).calls
        assert int(own) == 16
        assert calls["position_major"] >= 4 * int(own)


def test_each_row_counts_its_own_masked_cells_and_calls():
    model = model_of(3)
    codes = Tokens.unknown(model.spec, 4, torch.tensor([6, 2, 1, 6])).codes
    codes[3] = 1
    codes[0, 0] = 2
    out = ResGenSampler(steps=8)(model, classes(4), rng=of(4), known=Tokens(codes, model.spec), lengths=torch.tensor([6, 2, 1, 6]))
    assert out.calls.tolist() == [8, 6, 3, 0]
    assert out.network_calls["generator"] == (8, (8 + 6 + 3) * 6)
    assert torch.equal(out.tokens.codes[codes != UNKNOWN], codes[codes != UNKNOWN]) and not out.tokens.masked.any()


def test_nothing_unknown_costs_nothing_and_a_draft_is_refused():
    model = model_of(2)
    full = Tokens(torch.ones(2, 2, 6, dtype=torch.int64), model.spec)
    out = ResGenSampler()(model, classes(2), rng=of(2), known=full)
    assert torch.equal(out.tokens.codes, full.codes) and out.calls.tolist() == [0, 0] and out.network_calls == {}
    with pytest.raises(ValueError, match="draft"):
        ResGenSampler()(model, classes(2), rng=of(2), draft=full)


# ------------------------------------------------------------------------------------------------------------- which are kept


def test_kept_cells_are_the_shallowest_masked_cells():
    masked_cells = RowRNG.of(1, range(200)).uniform(4, 5) < 0.6
    wanted = masked_cells & (RowRNG.of(2, range(200)).uniform(4, 5) < 0.5)
    kept = shallowest(masked_cells, wanted)
    assert torch.equal(kept.sum(1), wanted.sum(1)) and not (kept & ~masked_cells).any()
    left = masked_cells & ~kept
    for k in range(3):
        assert not (left[:, k] & kept[:, k + 1 :].any(1)).any()


class Flat(CumulativeMasked):
    """One component per position, position n more certain than n + 1 by `sure` nats; counts what it is
    asked."""

    condition_spec = ConditionSpec()

    def __init__(self, levels, positions, sure=0.0):
        self.spec, self.sure = TokenSpec((3,) * levels, Line(positions)), sure

    def mixture(self, tokens, condition):
        b, n = tokens.batch, self.spec.positions
        zero = torch.zeros(b, n, 1, dtype=torch.float64)
        scale = self.sure * torch.arange(n, dtype=torch.float64)[:, None] + zero
        ones = torch.ones(b, n, dtype=torch.float64)
        nothing = torch.zeros(1, 1, 1, dtype=torch.float64)
        return Mixture(zero, zero, nothing, nothing[0], scale, zero, ones, torch.tensor(0.0, dtype=torch.float64))

    def requantize(self, z, tokens):
        return Tokens(torch.where(tokens.masked, 1, tokens.codes), tokens.spec, tokens.lengths)


def test_by_chance_alone_positions_keep_hypergeometrically_many_levels():
    model, kept, n = Flat(3, 3), [], 20000
    sampler = ResGenSampler(steps=3, schedule="linear", choice_temperature=1e9)
    sampler(model, Condition(), rng=of(n), on_step=lambda tokens, *_: kept.append(tokens.present.sum(1)))
    splits = [(a, b, 3 - a - b) for a in range(4) for b in range(4 - a)]
    for split in splits:
        p = multivariate_hypergeom.pmf(split, [3, 3, 3], 3)
        share = float((kept[0] == torch.tensor(split)).all(1).double().mean())
        assert abs(share - p) < 4.5 * math.sqrt(p * (1 - p) / n), split


def test_without_chance_the_most_confident_positions_are_kept_first_with_all_their_levels():
    model, kept = Flat(2, 4, sure=1.0), []
    sampler = ResGenSampler(steps=4, schedule="linear", choice_temperature=0.0, temperature=0.0)
    sampler(model, Condition(), rng=of(2), on_step=lambda tokens, *_: kept.append(tokens.present.sum(1).tolist()))
    assert kept == [[[2, 0, 0, 0]] * 2, [[2, 2, 0, 0]] * 2, [[2, 2, 2, 0]] * 2, [[2, 2, 2, 2]] * 2]


def test_chance_dies_out():
    """The same c: the order is open at first; what is kept late follows confidence."""
    model, first = Flat(1, 8, sure=1.0), {}
    for c in (0.0, 2.0, 1e6):
        kept = []
        sampler = ResGenSampler(steps=4, schedule="linear", choice_temperature=c, temperature=0.0)
        sampler(model, Condition(), rng=of(500), on_step=lambda tokens, i, _, to=kept: to.append(tokens.present[:, 0]))
        first[c] = [float(k[:, : 2 * (i + 1)].double().mean()) for i, k in enumerate(kept)]
    assert first[0.0] == [1.0] * 4
    assert first[0.0][0] > first[2.0][0] > first[1e6][0]
    assert first[1e6][0] == pytest.approx(0.25, abs=0.05)
    assert first[2.0][2] > first[2.0][0]


# ----------------------------------------------------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("settings", [{}, {"steps": 3, "top_p": 0.7}, {"steps": 40, "temperature": 0.0}, {"vector_temperature": 0.2}])
def test_a_row_of_a_batch_equals_that_row_alone_and_two_runs_are_equal(settings, scale):
    model = guided(model_of(3), scale, "linear")
    sampler, n = ResGenSampler(**settings), 6
    codes = Tokens.unknown(model.spec, n, torch.tensor([6, 3, 6, 1, 6, 5])).codes
    codes[2, 0, :4], codes[4, 2, 3:], codes[5, 1:, 0] = 1, 2, ABSENT
    lengths = torch.tensor([6, 3, 6, 1, 6, 5])

    def run(rows):
        known = Tokens(codes[rows], model.spec)
        return sampler(model, classes(n).rows(rows), rng=RowRNG.of(7, rows), known=known, lengths=lengths[rows]).tokens.codes

    whole = run(torch.arange(n))
    assert torch.equal(whole, run(torch.arange(n)))
    assert torch.equal(whole, torch.cat([run(torch.tensor([i])) for i in range(n)]))
    assert torch.equal(whole[codes != UNKNOWN], codes[codes != UNKNOWN]) and (whole[codes == UNKNOWN] >= 0).all()


def test_zero_temperature_quantises_the_mean_of_the_most_probable_component():
    model = model_of(3)
    blank = Tokens.unknown(model.spec, 3)
    mixture = model.mixture(blank, classes(3))
    want = model.requantize(mixture.mean(mixture.logits.argmax(-1)), blank).codes
    for seed in range(3):
        got = ResGenSampler(steps=1, temperature=0.0)(model, classes(3), rng=RowRNG.of(seed, range(3)))
        assert torch.equal(got.tokens.codes, want)
    assert not torch.equal(ResGenSampler(steps=1)(model, classes(3), rng=of(3)).tokens.codes, want)


def test_filters_cut_components_and_a_choice_takes_the_place_of_the_draw():
    model, seen = model_of(2), []

    def choose(logits, rng):
        seen.append(logits.isfinite().sum(-1))
        return logits.argmax(-1)

    ResGenSampler(steps=2, top_k=3)(model, classes(2), rng=of(2), choose=choose)
    assert len(seen) == 2 and all((k == 3).all() for k in seen)


def test_guidance_combines_the_weights_of_the_components_and_counts_twice():
    model = model_of(2)
    wrapped = guided(model, 3.0)
    assert isinstance(wrapped, GuidedCumulativeMasked) and guided(model, 1.0) is model
    blank, condition = Tokens.unknown(model.spec, 3), classes(3)
    own, null = model.mixture(blank, condition), model.mixture(blank, condition.null())
    got = wrapped.mixture(blank, condition)
    want = (null.logits + 3 * (own.logits - null.logits)).log_softmax(-1)
    assert torch.allclose(got.logits.log_softmax(-1), want)
    component = torch.zeros(3, 6, dtype=torch.int64)
    assert torch.allclose(got.mean(component), own.mean(component)) and torch.allclose(got.variance, own.variance)
    out = ResGenSampler(steps=4)(wrapped, condition, rng=of(3))
    assert out.network_calls["generator"] == (4, 2 * 4 * 3 * 6)
    with pytest.raises(ValueError, match="unconditional"):
        guided(model_of(2, condition_spec=None), 2.0)


def test_a_linear_schedule_of_guidance_starts_with_none():
    model = model_of(2)
    blank, condition = Tokens.unknown(model.spec, 3), classes(3)
    start = guided(model, 3.0, "linear").mixture(blank, condition)
    assert torch.allclose(start.logits.log_softmax(-1), model.mixture(blank, condition).logits.log_softmax(-1))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"steps": 0}, "steps"),
        ({"schedule": "log"}, "cosine, linear"),
        ({"choice_temperature": -1.0}, "choice_temperature=-1.0: expected"),
        ({"vector_temperature": -0.5}, "vector_temperature=-0.5: expected"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, words):
    with pytest.raises(ValueError, match=words):
        ResGenSampler(**setting)
