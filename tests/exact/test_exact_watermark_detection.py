"""Detection of watermarks: a key finds its own items, and what is unmarked gets a uniform p-value. Keys, and what is refused.

Large samples with fixed seeds, p > 1e-4.
"""

import pickle

import numpy as np
import pytest
import torch
from kit import SPECS, TabularCausal, TabularMasked
from scipy import stats
from watermark_kit import KEY, KINDS, OTHER, items, mark_of

from gentok.rng import RowRNG, uniform_of
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.jacobi import Jacobi
from gentok.samplers.maskgit import MaskGIT
from gentok.types import Class, Condition, Line, Tokens, TokenSpec
from gentok.watermarks.base import KeyMark
from gentok.watermarks.cluster import Cluster, clusters_of
from gentok.watermarks.detection import detect, statistics
from gentok.watermarks.key import VARIABLE, Key

# --------------------------------------------------------------------------------------------------------------- p-values


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
