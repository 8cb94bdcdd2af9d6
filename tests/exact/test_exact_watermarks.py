"""Watermarks: single items keep their distribution, a key finds its own, and what is unmarked gets a uniform p-value.

Integrals over the key are exact; the rest are large samples with fixed seeds, p > 1e-4.
"""

import pickle

import numpy as np
import pytest
import torch
from kit import SPECS, TabularCausal, TabularMasked, agreement, batch_of, cases_of, causal_distribution, masked_distribution, sample
from scipy import stats

from gentok.codebooks.vq import VQ
from gentok.rng import RowRNG, uniform_of
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.first_hitting import FirstHitting
from gentok.samplers.jacobi import Jacobi
from gentok.samplers.maskgit import MaskGIT
from gentok.types import Class, Condition, Line, Tokens, TokenSpec
from gentok.watermarks import base
from gentok.watermarks.base import KeyMark
from gentok.watermarks.cluster import Cluster, clusters_of
from gentok.watermarks.detection import detect, statistics
from gentok.watermarks.exp import EXP
from gentok.watermarks.its import ITS
from gentok.watermarks.key import VARIABLE, Key
from gentok.watermarks.kgw import KGW

KEY, OTHER = Key(b"a secret of the tests"), Key(b"another of the tests")
KINDS = {"exp": EXP, "its": ITS, "cluster": Cluster, "kgw": KGW}
FREE = ("exp", "its", "cluster")
LONG = 1 << 40
"""Places of a key so long that no two items meet in it: a batch is then a sample over keys."""


def mark_of(kind, spec, key=KEY, length=LONG, **options):
    codebook = None
    if kind == "cluster":
        torch.manual_seed(0)
        codebook = VQ(vocab_size=spec.vocab, dim=4, width=4).eval()
        codebook.vocab_sizes = spec.vocab_sizes
        codebook.table = lambda level: torch.randn(spec.vocab_sizes[level], 4, generator=torch.Generator().manual_seed(level))
        options = {"size": 3, **options}
    return KeyMark(KINDS[kind](**({} if kind == "kgw" else {"length": length}), **options), key, spec, codebook)


# ------------------------------------------------------------------------------------------------------------ distribution


P = torch.tensor([0.4, 0.0, 0.3, 0.15, 0.1, 0.05])


def drawn(kind, n=60_000):
    """Pairs of ids of neighbouring places of many items: int64 [n, 2]."""
    spec = TokenSpec((6,), Line(2))
    mark = mark_of(kind, spec).start(RowRNG.of(0, torch.arange(n)), 2)
    logits = P.log().expand(n, 2, 6)
    return mark.choose(logits, RowRNG.of(1, torch.arange(n)), torch.tensor(0), torch.arange(2))


@pytest.mark.parametrize("kind", FREE)
def test_over_the_key_ids_follow_p_and_cells_are_independent(kind):
    ids = drawn(kind)
    joint = torch.bincount(ids[:, 0] * 6 + ids[:, 1], minlength=36).double().numpy()
    expected = len(ids) * (P[:, None] * P).flatten().numpy()
    possible = expected > 0
    assert not joint[~possible].any()
    assert stats.chisquare(joint[possible], expected[possible] * joint.sum() / expected.sum()).pvalue > 1e-4


def test_a_green_list_changes_the_distribution_and_says_so():
    share = torch.bincount(drawn("kgw").flatten(), minlength=6) / 120_000
    assert 0.5 * (share - P).abs().sum() > 0.05 and not KGW.distortion_free
    assert all(KINDS[kind].distortion_free for kind in FREE)


def exact_share(choose, p, monkeypatch):
    """The integral over both numbers of the key of the event that id 1 of two is chosen, p being its probability: for every number of id 0
    the threshold of that of id 1, found by bisection."""
    first = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    low, high = torch.zeros_like(first), torch.ones_like(first)  # of 1 - xi_1
    logits = torch.tensor([1 - p, p], dtype=torch.float64).log().expand(4000, 2)
    for _ in range(60):
        middle = (low + high) / 2
        monkeypatch.setattr(base, "uniform_of", lambda *names, rest=1 - middle: torch.stack((first, rest), 1))
        taken = choose(logits) == 1
        low, high = torch.where(taken, middle, low), torch.where(taken, high, middle)
    return float(low.mean())


def exp_choice(logits):
    return EXP().choose(logits, torch.tensor(0), torch.zeros(len(logits), dtype=torch.int64), None, RowRNG([0]))


def float32_choice(logits):
    xi = base.uniform_of().float()
    return (xi ** (1 / logits.exp().float())).argmax(-1)


@pytest.mark.parametrize("p", [0.3, 1e-3, 1e-9])
def test_the_integral_over_the_key_is_p(p, monkeypatch):
    assert abs(exact_share(exp_choice, p, monkeypatch) / p - 1) < 1e-3


def test_mutant_that_raises_float32_numbers_to_the_power_1_by_p(monkeypatch):
    assert abs(exact_share(float32_choice, 0.3, monkeypatch) / 0.3 - 1) < 1e-3
    assert exact_share(float32_choice, 1e-9, monkeypatch) > 1e-8


@pytest.mark.parametrize("kind", FREE)
@pytest.mark.parametrize("spec, layout", [("k1", "raster"), pytest.param("strided", "delayed", marks=pytest.mark.slow)])
def test_marked_items_of_a_causal_model_follow_its_distribution(kind, spec, layout):
    model, sampler = TabularCausal(SPECS[spec], layout), AutoregressiveSampler(temperature=0.9)
    cases = cases_of(model)
    distributions = [causal_distribution(model, case, sampler) for case in cases]
    samples = sample(sampler, model, cases, 600, mark=mark_of(kind, model.spec))
    assert agreement(samples, distributions) > 1e-4
    assert agreement(sample(sampler, model, cases, 600, mark=mark_of("kgw", model.spec)), distributions) < 1e-6


def test_marked_items_of_a_masked_model_follow_its_distribution():
    model = TabularMasked(SPECS["k1"])
    cases = cases_of(model)
    samples = sample(FirstHitting(), model, cases, 600, mark=mark_of("exp", model.spec))
    assert agreement(samples, [masked_distribution(model, case) for case in cases]) > 1e-4


# -------------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_equals_the_row_in_a_batch(kind):
    model = TabularCausal(SPECS["k2"], "delayed")
    which, condition, codes, lengths = batch_of(cases_of(model), 3)
    mark = mark_of(kind, model.spec, length=64)

    def run(rows):
        known, rng = Tokens(codes[rows], model.spec), RowRNG.of(0, rows)
        return AutoregressiveSampler()(model, condition.rows(rows), rng=rng, known=known, lengths=lengths[rows], mark=mark).tokens.codes

    every = torch.arange(len(which))
    whole = run(every)
    assert torch.equal(whole, torch.cat([run(every[i : i + 1]) for i in every]))


def items(n, mark=None, sampler=None, spec=None, seed=0, scale=1.5):
    model = TabularCausal(spec or TokenSpec((16,), Line(24)), scale=scale)
    options = {} if mark is None else {"mark": mark}
    condition = Condition({"class": Class(torch.zeros(n, dtype=torch.int64))})
    return (sampler or AutoregressiveSampler())(model, condition, rng=RowRNG.of(seed, torch.arange(n)), **options).tokens


def test_items_that_begin_at_the_same_place_of_a_key_are_the_same_and_others_are_not():
    """Pairs that share a key are correlated: that is what is given for the exact distribution of single ones."""
    mark = mark_of("exp", TokenSpec((16,), Line(24)), length=24)
    rng = RowRNG.of(0, torch.arange(60))
    starts, codes = mark.start(rng, 24).starts, items(60, mark).codes[:, 0]
    same = (codes[:, None] == codes).all(2)
    assert torch.equal(same, starts[:, None] == starts) and len(starts.unique()) > 15


def test_mutant_whose_items_all_begin_at_the_same_place(monkeypatch):
    monkeypatch.setattr(KeyMark, "start", lambda self, rng, positions: _fixed(self, rng))
    model, sampler = TabularCausal(SPECS["k1"], "raster"), AutoregressiveSampler()
    cases = cases_of(model)
    distributions = [causal_distribution(model, case, sampler) for case in cases]
    assert agreement(sample(sampler, model, cases, 300, mark=mark_of("exp", model.spec)), distributions) < 1e-6


def _fixed(mark, rng):
    mark.starts = torch.zeros(rng.batch, dtype=torch.int64)
    return mark


@pytest.mark.parametrize("spec, layout", [("k1", "raster"), ("k2", "delayed")])
def test_speculative_decoding_by_the_rule_match_gives_the_ids_of_plain_marked_sampling(spec, layout):
    model = TabularCausal(SPECS[spec], layout)
    _, condition, codes, lengths = batch_of(cases_of(model), 20)
    mark = mark_of("exp", model.spec, length=64)

    def run(sampler):
        rng, known = RowRNG.of(0, torch.arange(len(codes))), Tokens(codes, model.spec)
        return sampler(model, condition, rng=rng, known=known, lengths=lengths, mark=mark)

    plain = run(AutoregressiveSampler())
    for window in (1, 3):
        fast = run(Jacobi(window=window, tail="gumbel", verify="match"))
        assert torch.equal(plain.tokens.codes, fast.tokens.codes)
    assert int(fast.calls.sum()) < int(plain.calls.sum())


# --------------------------------------------------------------------------------------------------------------- detection


def p_values(kind, n, keys=19, missing=0):
    """Of n unmarked items, each asked for a key of its own."""
    spec = TokenSpec((16,), Line(12))
    mark = mark_of(kind, spec, length=None if kind == "kgw" else 16)
    codes = items(n, spec=spec).codes
    seeds = RowRNG.of(5, torch.arange(n)).words(keys + 1).abs()
    out = []
    for row, of in zip(codes, seeds):
        own, others = statistics(mark, of, row).split((1, keys))
        out.append((1 - missing + int((others <= own + 1e-9).sum())) / (keys + 1 - missing))
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["exp", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("its", "cluster"))])
def test_p_values_of_unmarked_items_are_uniform(kind):
    p = p_values(kind, 2000)
    counts = torch.bincount((p * 20).round().long() - 1, minlength=20)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_where_sums_tie_a_p_value_is_too_large_and_never_too_small():
    p = p_values("kgw", 500)
    for level in (0.05, 0.1, 0.25, 0.5):
        assert (p <= level).double().mean() <= level + 4 * (level * (1 - level) / 500) ** 0.5


def test_mutant_without_the_one_finds_marks_with_p_0():
    assert (p_values("exp", 200, missing=1) == 0).double().mean() > 0.01
    assert (p_values("exp", 50) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_finds_its_own_items_and_no_others(kind):
    spec = TokenSpec((16,), Line(64))
    options = {"size": 2} if kind == "cluster" else {}
    mark = mark_of(kind, spec, length=128, **options)
    marked = items(12, mark, spec=spec)
    found = np.array([answer.p for answer in detect(mark, marked, 99)])
    assert (found <= 0.01).mean() >= 0.5 and [answer.tokens for answer in detect(mark, marked, 9)] == [64] * 12
    other = np.array([answer.p for answer in detect(mark_of(kind, spec, OTHER, length=128, **options), marked, 99)])
    assert stats.kstest(other, "uniform").pvalue > 1e-3


def test_a_beginning_that_was_cut_off_and_ids_that_changed_are_no_hindrance():
    spec = TokenSpec((16,), Line(64))
    mark = mark_of("exp", spec, length=128)
    codes = items(12, mark, spec=spec).codes
    cut = torch.cat((codes[:, :, 10:], torch.randint(0, 16, (12, 1, 10), generator=torch.Generator().manual_seed(0))), 2)
    cut[:, :, ::4] = 3
    found = [answer.p for answer in detect(mark, Tokens(cut, spec), 99)]
    assert np.mean(np.array(found) <= 0.01) >= 0.5


def test_the_transforms_give_the_smallest_sum_over_all_starts():
    spec = TokenSpec((5, 4), Line(9))
    mark, codes = mark_of("exp", spec, length=21), torch.randint(-1, 4, (2, 9), generator=torch.Generator().manual_seed(0))
    seeds = torch.tensor([3, 4])
    sums = torch.zeros(2, 21, dtype=torch.float64)
    for k, p in (codes >= 0).nonzero().tolist():
        for start in range(21):
            place = torch.tensor((start + 2 * p + k) % 21)
            sums[:, start] += (1 - uniform_of(seeds, place, codes[k, p])).log()
    assert (statistics(mark, seeds, codes) - sums.amin(1)).abs().max() < 1e-9


def test_clusters_are_the_same_each_time_of_one_size_and_hold_neighbours():
    table = torch.cat([torch.randn(20, 3, generator=torch.Generator().manual_seed(i)) * 0.1 + 5 * i for i in range(4)])
    of = clusters_of(table, 4)
    assert torch.equal(of, clusters_of(table.clone(), 4))
    assert all(len(part.unique()) == 1 for part in of.view(4, 20)) and len(of.unique()) == 4
    for clusters in (1, 3, 7, 80):
        counts = torch.bincount(clusters_of(table, clusters), minlength=clusters)
        assert len(counts) == clusters and counts.min() >= 80 // clusters - 1 and counts.max() <= -(-80 // clusters) + 1


def test_an_item_without_cells_is_not_marked():
    spec = TokenSpec((5,), Line(4))
    answer = detect(mark_of("exp", spec), Tokens(torch.full((1, 1, 4), -1), spec), 9)[0]
    assert (answer.p, answer.tokens) == (1.0, 0)


# -------------------------------------------------------------------------------------------------------- keys and refusals


def test_a_key_is_in_nothing_that_is_printed_or_stored(tmp_path, monkeypatch):
    secret = "0123456789abcdef secret"
    assert "abcdef" not in repr(Key(secret.encode())) and Key(secret.encode()).seed == Key(f" {secret}\n".encode()).seed != KEY.seed
    with pytest.raises(TypeError, match="not stored"):
        pickle.dumps(Key(secret.encode()))
    (tmp_path / "key").write_text(secret)
    monkeypatch.setenv(VARIABLE, secret)
    assert Key.read(str(tmp_path / "key")).seed == Key.read(None).seed
    with pytest.raises(ValueError, match="cannot be read") as error:
        Key.read(secret)
    assert "abcdef" not in str(error.value) and error.value.__cause__ is None
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ValueError, match=f"key=FILE, or the environment variable {VARIABLE}"):
        Key.read(None)
    with pytest.raises(ValueError, match="at least 16 bytes"):
        Key(b"short")


def test_what_cannot_carry_a_watermark_is_one_line():
    spec = TokenSpec((3,), Line(4))
    mark = mark_of("exp", spec)
    model, condition = TabularMasked(SPECS["k1"]), Condition({"class": Class(torch.zeros(1, dtype=torch.int64))})
    with pytest.raises(ValueError, match="maskgit.*more than once.*autoregressive.*first_hitting"):
        MaskGIT()(model, condition, rng=RowRNG([0]), mark=mark)
    with pytest.raises(ValueError, match="jacobi"):
        Jacobi()(TabularCausal(spec), condition, rng=RowRNG([0]), mark=mark)
    with pytest.raises(ValueError, match="watermark exp alone"):
        Jacobi(tail="gumbel", verify="match")(TabularCausal(spec), condition, rng=RowRNG([0]), mark=mark_of("its", spec))
    with pytest.raises(ValueError, match="up to 4 cells"):
        AutoregressiveSampler()(TabularCausal(spec), condition, rng=RowRNG([0]), mark=mark_of("exp", spec, length=3))
    with pytest.raises(ValueError, match="codebook"):
        KeyMark(Cluster(), KEY, spec)
