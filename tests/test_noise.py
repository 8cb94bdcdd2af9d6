"""Random numbers by row: good numbers, one stream per row, the same for every batch and device."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from gentok.rng import RowRNG


def test_uniforms_are_uniform_and_strictly_inside_the_unit_interval():
    u = RowRNG(torch.arange(200)).uniform(1000)
    assert u.dtype == torch.float64
    assert u.shape == (200, 1000)
    assert u.min() > 0 and u.max() < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    bits = (u * 2**20).long() % 2
    assert abs(float(bits.double().mean()) - 0.5) < 5 * 0.5 / np.sqrt(u.numel())


@pytest.mark.parametrize(("kind", "distribution"), [("exponential", "expon"), ("normal", "norm"), ("gumbel", "gumbel_r")])
def test_the_other_distributions_are_what_their_names_say(kind, distribution):
    x = getattr(RowRNG(torch.arange(100)), kind)(5, 400)
    assert x.dtype == torch.float64
    assert stats.kstest(x.flatten().numpy(), distribution).pvalue > 1e-3


def test_neighbouring_seeds_rows_and_numbers_are_uncorrelated():
    u = RowRNG(torch.arange(2000)).uniform(50) - 0.5
    for product in (u[1:] * u[:-1], u[:, 1:] * u[:, :-1]):
        assert abs(12 * float(product.mean())) < 5 / np.sqrt(product.numel())
    assert len(torch.unique(RowRNG(torch.arange(5000)).words(4))) == 20_000


def test_the_tail_of_an_exponential_passes_what_float32_noise_can_reach():
    """Uniforms on a grid of 2^-24 stop at 16.6: what is rarer than that would never be drawn."""

    class Ends(RowRNG):
        """The streams whose words are all zeros and all ones."""

        def words(self, *shape):
            return torch.tensor([0, -1]).view(2, *(1,) * len(shape)).expand(2, *shape)

    low, high = Ends([0, 1]).uniform(1)[:, 0].tolist()
    assert (low, high) == (2.0**-53, 1 - 2.0**-53)
    assert float(Ends([0, 1]).exponential(1).max()) > 36.7
    assert bool(Ends([0, 1]).gumbel(1).isfinite().all()) and bool(Ends([0, 1]).normal(1).isfinite().all())
    fraction = (RowRNG(torch.arange(100)).uniform(100) * 2.0**24) % 1
    assert stats.kstest(fraction.flatten().numpy(), "uniform").pvalue > 1e-3


def test_a_row_does_not_depend_on_its_batch():
    together = RowRNG.of(3, torch.arange(10))
    first, second = together.uniform(4), together.normal(3)
    for b in range(10):
        row = RowRNG.of(3, [b])
        assert (row.uniform(4)[0] == first[b]).all()
        assert (row.normal(3)[0] == second[b]).all()


def test_seeds_steps_and_indices_give_different_streams():
    draws = [RowRNG.of(seed, [index], step).uniform(1).item() for seed in range(5) for index in range(5) for step in range(5)]
    assert len(set(draws)) == 125


def test_a_view_advances_its_own_rows_only():
    rng, twin = RowRNG(torch.arange(6)), RowRNG(torch.arange(6))
    rows = torch.tensor([4, 1])
    seen = rng.rows(rows).uniform(3)
    expected = twin.uniform(3)
    assert (seen == expected[rows]).all()
    later, twin_later = rng.uniform(2), twin.uniform(2)
    assert (later[rows] == twin_later[rows]).all()
    assert (later[[0, 2, 3, 5]] == expected[[0, 2, 3, 5], :2]).all()


def test_a_view_sees_what_its_rows_draw_elsewhere():
    """Views, views of views and their parent share what they count: no number is drawn twice."""
    rng, twin = RowRNG(torch.arange(4)), RowRNG(torch.arange(4))
    one, other = rng.rows(torch.tensor([3, 1])), rng.rows(torch.tensor([1, 2]))
    inner = one.rows(torch.tensor([1]))
    drawn = [source.uniform(2)[row].tolist() for source, row in ((one, 1), (rng, 1), (inner, 0), (other, 0), (one, 1), (rng, 1))]
    assert sum(drawn, []) == twin.uniform(12)[1].tolist()
    assert torch.equal(one.fork("a").uniform(1)[1], rng.fork("a").uniform(1)[1]) and one.to("cpu").uniform(1)[1] == rng.uniform(1)[1]


def test_a_copy_on_a_device_draws_by_itself():
    rng = RowRNG(torch.arange(3))
    rng.uniform(2)
    copy = rng.to("cpu")
    assert torch.equal(copy.uniform(3), rng.uniform(3)) and torch.equal(copy.uniform(3), rng.uniform(3))


def test_views_of_views_and_of_masks_reach_the_rows_that_they_show():
    rng = RowRNG(torch.arange(5))
    mask = torch.tensor([False, True, True, False, True])
    inner = rng.rows(mask).rows(torch.tensor([2]))
    first = inner.uniform(1)
    alone = RowRNG([4])
    assert first.item() == alone.uniform(1).item()
    assert rng.rows(torch.tensor([4])).uniform(1).item() == alone.uniform(1).item()
    assert rng.rows(torch.tensor([1])).uniform(1).item() == RowRNG([1]).uniform(1).item()


def test_forks_are_independent_and_do_not_advance():
    rng = RowRNG(torch.arange(2000))
    a, b, again = rng.fork("mask"), rng.fork("drop"), rng.fork("mask")
    x, y = a.uniform(20), b.uniform(20)
    assert (again.uniform(20) == x).all()
    main = rng.uniform(20)
    assert (main == RowRNG(torch.arange(2000)).uniform(20)).all()
    for one, other in ((x, y), (x, main), (y, main)):
        assert abs(np.corrcoef(one.flatten(), other.flatten())[0, 1]) < 5 / np.sqrt(x.numel())
    assert (rng.fork("mask").uniform(20) != x).all()  # a later fork of the same name is another stream


def test_permutations_are_uniform():
    counts = torch.unique(RowRNG(torch.arange(12_000)).permutation(3), dim=0, return_counts=True)[1]
    assert len(counts) == 6
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_seeds_must_be_one_per_row():
    with pytest.raises(ValueError, match="one seed per row"):
        RowRNG(torch.zeros(2, 2, dtype=torch.int64))


def fork_tags():
    """Every text that the package hands to `fork`, or to the `rng(batch, purpose)` of training, which forks
    by it."""
    package = Path(__file__).parents[1] / "gentok"
    calls = [node for path in package.rglob("*.py") for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    calls = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in ("fork", "rng")]
    return {a.value for call in calls for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}


def test_forks_of_different_texts_are_different_streams():
    """Also of texts that begin alike, of other scripts and of the package's own."""
    stems = ["held_out_a", "généré", "写真の写真", "abcdefgh" * 9]
    texts = {stem[:n] for stem in stems for n in range(1, len(stem) + 1)} | {"held_out_b", "held_out_a_2", "generator_a", "generator_b"}
    texts = (texts | fork_tags()) - {"held_ou"}  # "held_out" keeps the stream of its first 7 bytes
    streams = {float(RowRNG([1]).fork(tag).uniform(1)) for tag in [*texts, *range(1, 90)]}
    assert len(streams) == len(texts) + 89


WORDS = {
    "": 5503316169760459752, "start": 895927534951993670, "augment": 1665032125725118640, 0: 5503316169760459752, 5: 5193646748137446566,
    "held_out": 5469582369289462082, "held out": 508241543570907266, "encoding": -2618429548234785191, "generator": 6004089779244376931,
    "tokenizer": 5408684244394596116, "adversaries": -6380091166393758658,
}  # fmt: skip


def test_streams_that_published_results_were_made_with_stay():
    """Tags of up to 7 bytes, numbers, and the package's own long tags: the first words of their streams."""
    words = {
        tag: RowRNG([3]).fork(tag).words(1).item()
        for tag in ("", "start", "augment", 0, 5, "held_out", "held out", "encoding", "generator", "tokenizer", "adversaries")
    }
    assert words == WORDS
    new = {"particles", "watermark", "watermark keys", "consistency", "objectives", "strength"}
    assert {tag for tag in fork_tags() if len(tag.encode()) > 7} <= {*WORDS, *new}, "a tag that is new may be long: name it as new"


def test_a_view_knows_its_rows():
    rng = RowRNG(torch.arange(6))
    inner = rng.rows(torch.tensor([5, 2, 4])).rows(torch.tensor([False, True, True]))
    assert rng.row_numbers.tolist() == list(range(6)) and inner.row_numbers.tolist() == [2, 4]
