"""Next-scale sampling makes exactly the product over scales and their cells of p(cell | scales before), path by path and by
samples, of tables and of networks; and what would be near it is told from it."""

from dataclasses import replace

import pytest
import torch
from enumeration import changed, enumerated, gap, some_impossible, variation
from kit import CLASSES, COMMON, PLAIN, Distribution, agreement, alone, cases_of, completions, rejects, sample
from scales_kit import TabularNextScale, scales_distribution

from gentok.codebooks.dual import DualCodebook
from gentok.codebooks.pyramid import PyramidCodebook
from gentok.codebooks.vq import VQ
from gentok.generators.next_scale import NextScaleTransformer
from gentok.rng import RowRNG
from gentok.samplers import filters
from gentok.samplers.base import fitting
from gentok.samplers.guided import GuidedNextScale, guided
from gentok.samplers.next_scale import NextScaleSampler
from gentok.types import ABSENT, UNKNOWN, Class, Condition, Pyramid, Tokens, TokenSpec

SETTINGS = {
    **COMMON,
    "linear guidance, top-p 0.9": ({"top_p": 0.9}, (3.0, "linear")),
    "guidance 0.5, the most probable": ({"temperature": 0.0}, (0.5, "cosine")),
    "typical, min-p": ({"typical": 0.7, "min_p": 0.1}, PLAIN),
    "again with top-k 2": ({"repredict": [2], "temperature": 1.3}, PLAIN),
    "again twice, guided": ({"repredict": [2, 1], "top_k": 3}, (2.0, "linear")),
}


def three_scales(vocab=2):
    """Of sides 1, 2 and 3, of which the last has two cells."""
    model = TabularNextScale((1, 2, 3), vocab)
    return model, [replace(case, codes=cut(case.codes), length=7) for case in cases_of(model)]


def cut(codes):
    return codes.masked_fill(torch.arange(codes.shape[1]) >= 7, ABSENT)


@pytest.mark.parametrize("setting", SETTINGS)
def test_it_makes_the_enumerated_distribution(setting):
    arguments, guidance = SETTINGS[setting]
    sampler = NextScaleSampler(**arguments)
    two, few = TabularNextScale(), slice(3 if sampler.repredict else 0, None)  # paths are many where scales are drawn again
    for model, cases in ((two, cases_of(two)), three_scales()):
        for case in cases[few]:
            right = scales_distribution(model, case, sampler, guidance)
            assert gap(enumerated(sampler, guided(model, *guidance), case), right) < 1e-11, case


def test_the_settings_have_distributions_of_their_own():
    model = TabularNextScale()
    case = cases_of(model)[0]
    found = [scales_distribution(model, case, NextScaleSampler(**arguments), guidance) for arguments, guidance in SETTINGS.values()]
    assert all(variation(a, b) > 0.03 for i, a in enumerate(found) for b in found[:i])


def test_samples_follow_it_rows_of_all_kinds_in_one_batch():
    model, cases = three_scales(3)
    sampler = NextScaleSampler(temperature=0.8)
    wrapped, laws = guided(model, 1.5, "linear"), [scales_distribution(model, case, sampler, (1.5, "linear")) for case in cases]
    assert agreement(sample(sampler, wrapped, cases, 1500), laws) > 1e-3


def test_tables_with_impossible_ids_make_the_enumerated_distribution():
    model = changed(TabularNextScale(scale=1.5), some_impossible)
    for case in cases_of(model):
        assert gap(enumerated(NextScaleSampler(), model, case), scales_distribution(model, case, NextScaleSampler())) < 1e-11


# ------------------------------------------------------------------------------------------------------------- with networks


def network(kind="vq", dtype=torch.float64, sides=(1, 2), vocab=3, **settings):
    """With random weights over a random codebook."""
    torch.manual_seed(0)
    inner = DualCodebook(vocab, 2, 2) if kind == "dual" else VQ(vocab, 4, normalize=False)
    codebook = PyramidCodebook(inner, sides, carry="progressive" if kind == "dual" else "full")
    spec = TokenSpec((vocab,), Pyramid(sides), latent_positions=sides[-1] ** 2)
    model = NextScaleTransformer(spec, CLASSES, codebook, **{"width": 16, "depth": 2, "heads": 2, "condition_by": "adaln", **settings})
    rng = RowRNG([1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(rng.normal(*parameter.shape)[0] * 0.35)
    return model.to(dtype).eval()


@torch.no_grad()
def network_distribution(model, case):
    """exp(-nll), of what is left to be drawn: an item's over those of all items with the known cells."""
    outcomes = completions(case.codes, model.spec)
    condition = Condition({"class": Class(torch.full((len(outcomes),), case.class_id))})
    p = (-model.nll_bound(Tokens(outcomes, model.spec), condition)).exp().numpy()
    return Distribution(outcomes, p / p.sum())


@pytest.mark.parametrize(("kind", "settings"), [("vq", {}), ("dual", {"condition_by": "prefix", "mlp_read": True})])
def test_a_network_draws_what_its_likelihood_says(kind, settings):
    model = network(kind, **settings)
    for case in cases_of(model):
        right = network_distribution(model, case)
        assert gap(enumerated(NextScaleSampler(), model, case), right) < 1e-9, case
        filtered = NextScaleSampler(temperature=0.7, top_k=2)
        found = enumerated(filtered, guided(model, 2.0, "linear"), case)
        assert gap(found, scales_distribution(model, case, filtered, (2.0, "linear"))) < 1e-9


@pytest.mark.parametrize("kind", ["table", "network"])
@pytest.mark.parametrize("arguments", [{"temperature": 0.9}, {"repredict": [3, 2]}])
def test_a_row_of_a_batch_equals_that_row_alone(kind, arguments):
    model = TabularNextScale((1, 2, 3)) if kind == "table" else network(sides=(1, 2, 3))
    together, by_itself = alone(NextScaleSampler(**arguments), guided(model, 2.0, "linear"), cases_of(model), n=6)
    assert (together == by_itself).all()


# ------------------------------------------------------------------------------------------------------------ costs, refusals


def conditions(n):
    return Condition({"class": Class(torch.arange(n) % 2)})


def test_calls_are_the_scales_that_have_something_to_draw_and_compute_each_cell_once():
    model = TabularNextScale((1, 2, 3))
    assert fitting(model) == [NextScaleSampler]
    codes = Tokens.unknown(model.spec, 4).codes
    codes[1, 0, :5] = 1  # an image of 2 x 2 is known
    codes[2] = 1  # everything is
    codes[3, 0, 5:] = ABSENT  # its last scale is dropped
    rng, seen = RowRNG(range(4)), []
    out = NextScaleSampler()(model, conditions(4), rng=rng, known=Tokens(codes, model.spec), on_step=lambda *a: seen.append(a))
    assert out.calls.tolist() == [3, 1, 0, 2] and out.stats == {}
    assert out.network_calls == {"generator": (3, 3 * 14)}
    assert torch.equal(out.tokens.codes[codes != UNKNOWN], codes[codes != UNKNOWN]) and not out.tokens.masked.any()
    assert [(step, of, tokens.finished.tolist()) for tokens, step, of in seen] == [
        (1, 3, [1, 5, 14, 1]), (2, 3, [5, 5, 14, 14]), (3, 3, [14, 14, 14, 14]),
    ]  # fmt: skip
    alone = NextScaleSampler()(model, conditions(4).rows([1]), rng=RowRNG([1]), known=Tokens(codes[1:2], model.spec))
    assert alone.network_calls == {"generator": (1, 14)} and torch.equal(alone.tokens.codes, out.tokens.codes[1:2])
    twice = NextScaleSampler()(guided(model, 2.0), conditions(4), rng=RowRNG(range(4)), known=Tokens(codes, model.spec))
    assert twice.network_calls == {"generator": (3, 2 * 3 * 14)}
    nothing = NextScaleSampler()(model, conditions(4).rows([2]), rng=RowRNG([2]), known=Tokens(codes[2:3], model.spec))
    assert nothing.calls.tolist() == [0] and nothing.network_calls == {}


def test_further_passes_are_calls_too_and_the_first_scale_has_one():
    model = TabularNextScale((1, 2, 3))
    sampler = NextScaleSampler(top_k=3, repredict=[2, 1])
    out = sampler(model, conditions(2), rng=RowRNG(range(2)))
    assert out.calls.tolist() == [7, 7] and not sampler.exact and NextScaleSampler().exact
    assert out.network_calls == {"generator": (7, 2 * (1 + 3 * 4 + 4 + 3 * 9))}, "a scale that was drawn again is read with the next one"


def test_known_cells_behind_masked_ones_are_refused_in_one_line_or_ignored():
    model = TabularNextScale()
    codes = torch.full((1, 1, 5), UNKNOWN)
    codes[0, 0, 3] = 1
    known = Tokens(codes, model.spec)
    with pytest.raises(ValueError, match=r"before every masked cell in the pyramid's order.*step 0 .*step 1;.*forced=true") as error:
        NextScaleSampler()(model, conditions(1), rng=RowRNG([0]), known=known)
    assert "\n" not in str(error.value)
    out = NextScaleSampler(forced=True)(model, conditions(1), rng=RowRNG([0]), known=known)
    assert out.stats == {"forced": True} and int(out.tokens.codes[0, 0, 3]) == 1 and out.tokens.present.all()
    with pytest.raises(ValueError, match="list of at least 1"):
        NextScaleSampler(repredict=[])


# ----------------------------------------------------------------------------------------------------------------- mutants


class Stale(TabularNextScale):
    """A scale is drawn from what is known before the one before it."""

    def table(self, classes, s, read, own):
        last = sum(self.cells[:s])
        return super().table(classes, s, read.index_fill(1, torch.arange(last - self.cells[s - 1], last), 0) if s else read, own)


class OfTheScaleBefore(TabularNextScale):
    """A scale's cells have the logits of the scale before, each those of the cell under it."""

    def table(self, classes, s, read, own):
        if s == 0:
            return super().table(classes, s, read, own)
        return super().table(classes, s - 1, read[:, : sum(self.cells[: s - 1])], own)[:, :1].expand(-1, self.cells[s], -1)


class OtherProgress(GuidedNextScale):
    """Guidance grows with the number of the scale over that of all, not over the last."""

    def _combine(self, logits, progress):
        scales = len(self.spec.grid.sides)
        return super()._combine(logits, progress * (scales - 1) / scales)


class AfterTheFilter(GuidedNextScale):
    def _combine(self, logits, progress):
        return super()._combine(filters.top_k(logits, 2), progress)


def test_mutants_are_told_from_it():
    guidance, sampler = (1.5, "linear"), NextScaleSampler(temperature=0.9)
    model, cases = three_scales()
    case = cases[0]
    right = scales_distribution(model, case, sampler, guidance)
    assert gap(enumerated(sampler, guided(model, *guidance), case), right) < 1e-11
    for name, off in {
        "a little more heat": enumerated(replace(sampler, temperature=0.92), guided(model, *guidance), case),
        "a little more guidance": enumerated(sampler, guided(model, 1.53, "linear"), case),
        "guidance of another progress": enumerated(sampler, OtherProgress(model, *guidance), case),
    }.items():
        assert gap(off, right) > 1e-3 and variation(off, right) < 0.1, name
    for mutant in (Stale, OfTheScaleBefore):
        assert gap(enumerated(sampler, guided(mutant((1, 2, 3), 2), *guidance), case), right) > 0.1, mutant
    two = TabularNextScale()
    case, sampler = cases_of(two)[0], NextScaleSampler(top_k=2)
    late = enumerated(NextScaleSampler(), AfterTheFilter(two, 2.0), case)
    assert variation(late, scales_distribution(two, case, sampler, (2.0, "constant"))) > 0.01


def test_samples_of_dependent_cells_fall():
    """Each cell is right by itself, and two of them share their number."""

    class Together(NextScaleSampler):
        def run(self, request):
            honest = request.choose

            def choose(logits, rng):
                first = honest(logits, rng)
                again = honest(logits[:, :1], rng.fork("other"))
                return torch.cat((first[:, :-1], torch.where(first[:, :1] == again, again, first[:, -1:])), 1)

            return super().run(replace(request, choose=choose))

    model = TabularNextScale(scale=0.3)
    case = cases_of(model)[0]
    laws = [scales_distribution(model, case, NextScaleSampler())]
    assert agreement(sample(NextScaleSampler(), model, [case], 5000), laws) > 1e-3
    assert rejects(sample(Together(), model, [case], 5000), laws, within=0.5)


def test_a_network_that_reads_the_scale_itself_draws_no_likelihood():
    model = network()

    class Leaks(NextScaleTransformer):
        def _embed(self, codes, scales, vector, own=False):
            return super()._embed(codes, scales, vector, own=True)

    class Sees(NextScaleTransformer):
        def _seen(self, cells, prefix, prefix_mask):
            return torch.ones(1, 1, cells.stop - cells.start, prefix + cells.stop, dtype=torch.bool)

    outcomes = completions(Tokens.unknown(model.spec, 1).codes[0], model.spec)
    condition = Condition({"class": Class(torch.zeros(len(outcomes), dtype=torch.int64))})

    def total():
        return float((-model.nll_bound(Tokens(outcomes, model.spec), condition)).exp().sum())

    assert abs(total() - 1) < 1e-12
    for mutant in (Leaks, Sees):
        model.__class__ = mutant
        assert abs(total() - 1) > 1e-3, mutant
