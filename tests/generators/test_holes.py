"""Holes of items and the order in which they come last: properties of index maps, without a network."""

import math

import pytest
import torch
from generator_kit import CASES, LEVELS, RASTER, STRIDED, codes
from scipy import stats

from gentok.generators.hole_order import HolesLast, arrange, most_steps
from gentok.generators.holes import draw_holes, find_holes
from gentok.layouts import Layout
from gentok.rng import RowRNG
from gentok.types import ABSENT, UNKNOWN, Frames, Line, Tokens, TokenSpec

LINE = TokenSpec((7,), Line(8))


def some_holes(spec, batch=4):
    """int64 [batch, N]: holes of one and two positions in different places; the last row has none."""
    holes = torch.full((batch, spec.positions), -1)
    for row in range(batch - 1):
        holes[row, row] = 0
        holes[row, row + 2 : row + 4] = 1
    return holes


@pytest.mark.parametrize("layout,spec", CASES)
def test_without_holes_the_order_is_the_layouts(layout, spec):
    plain = Layout.of(layout, spec)
    maps = arrange(torch.full((2, spec.positions), -1), plain)
    for row in range(2):
        assert torch.equal(maps.level[row], plain.level) and torch.equal(maps.position[row], plain.position)
        assert torch.equal(maps.place[row], plain.standing[1])
    assert torch.equal(torch.where(spec.exists(), maps.step[0], ABSENT), plain.step)


@pytest.mark.parametrize("layout,spec", CASES)
def test_an_order_with_holes_loses_nothing_and_is_that_of_each_row_alone(layout, spec):
    plain, holes, tokens = Layout.of(layout, spec), some_holes(spec), codes(spec, 4)
    maps = arrange(holes, plain)
    for row in range(4):
        alone = HolesLast(holes[row], plain)
        assert torch.equal(alone.unflatten(alone.flatten(tokens.codes)), tokens.codes)
        own = alone.steps
        assert torch.equal(maps.level[row, :own], alone.level) and torch.equal(maps.position[row, :own], alone.position)
        assert bool((maps.level[row, own:] == ABSENT).all() & (maps.position[row, own:] == ABSENT).all())
        assert own <= most_steps(plain, 2)
    wide = arrange(holes, plain, most_steps(plain, 2))
    assert torch.equal(wide.level[:, : maps.level.shape[1]], maps.level)


@pytest.mark.parametrize("layout,spec", CASES)
def test_kept_cells_come_first_and_every_hole_behind_its_own_sentinel(layout, spec):
    plain, holes = Layout.of(layout, spec), some_holes(spec)[0]
    order = HolesLast(holes, plain)
    step, exists = order.step, spec.exists()
    for k in range(spec.levels):  # of each level, the order inside of a block is the layout's
        for block in (-1, 0, 1):
            inside = (holes == block) & exists[k]
            assert bool((step[k, inside].diff() > 0).all())
    last_kept = int(step[:, holes == -1].max())
    first_of = [int(torch.where(exists & (holes == i), step, 10**6).min()) for i in (0, 1)]
    last_of = [int(torch.where(exists & (holes == i), step, -1).max()) for i in (0, 1)]
    assert last_kept < first_of[0] <= last_of[0] < first_of[1]
    for i in (0, 1):
        marked = (order.position == -2 - i).any(1).nonzero()[:, 0]
        behind = int((marked > last_kept).nonzero()[0]) if bool((marked > last_kept).any()) else -1
        assert behind > 0, "one in the place of the hole, one in front of what was in it"
        assert int(marked[behind]) < first_of[i]
        assert (order.position == -2 - i).sum() == 2 * (plain.slots if layout in ("delayed", "parallel") else 1)


def test_holes_have_the_numbers_that_were_asked_for():
    rows, rate = 4000, 1.0
    tokens = Tokens(torch.zeros(rows, 1, 8, dtype=torch.int64), LINE)
    holes = draw_holes(tokens, rate, 1, True, RowRNG.of(0, range(rows)))
    share = float((holes.amax(1) < 0).double().mean())
    assert abs(share - math.exp(-rate)) < 4 * math.sqrt(0.25 / rows), "the number is Poisson, clipped"
    size = (holes >= 0).sum(1)
    counts = torch.bincount(size[size > 0], minlength=9)[1:]
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3, "the size of a single hole is uniform"
    several = draw_holes(tokens, 3.0, 4, True, RowRNG.of(1, range(rows)))
    assert int(several.max()) == 3
    for row in several[:200].tolist():
        first = [row.index(i) for i in range(max(row) + 1)]  # each number occurs
        assert first == sorted(first)
    assert torch.equal(several[7:8], draw_holes(tokens.rows([7]), 3.0, 4, True, RowRNG.of(1, [7]))), "a row draws its own"


def test_holes_of_a_raster_are_boxes_and_those_in_time_whole_frames_up_to_the_end():
    boxes = draw_holes(codes(RASTER, 300), 2.0, 3, True, RowRNG.of(0, range(300)))
    for row in boxes.view(-1, 3, 4):
        for i in range(int(row.max()) + 1):
            y, x = (row == i).nonzero(as_tuple=True)
            assert len(y) == int((y.max() - y.min() + 1) * (x.max() - x.min() + 1))
    spec = TokenSpec((5, 7, 3), Frames(10.0, 8), strides=(4, 2, 1))
    tokens = codes(spec, 300)
    tokens.codes[:, :, 4:] = ABSENT
    spans = draw_holes(tokens, 1.0, 3, True, RowRNG.of(0, range(300)))
    assert {tuple(row) for row in spans.tolist()} == {(-1,) * 8, (0,) * 8}, "frames span four positions; the rest goes with the last"


@pytest.mark.parametrize(
    ("spec", "boxes", "missing", "want"),
    [
        (LINE, True, [0, 0, 1, 1, 0, 1, 0, 0], [-1, -1, 0, 0, -1, 1, -1, -1]),
        (RASTER, True, [0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1], [-1, -1, 0, 0, -1, -1, 0, 0, 1, -1, -1, 2]),
        (RASTER, False, [0, 0, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0], [-1, -1, 0, 0, 0, -1, 1, 1, -1, -1, -1, -1]),
    ],
)
def test_what_is_missing_is_found_as_boxes_or_spans(spec, boxes, missing, want):
    tokens = codes(spec, 2)
    tokens.codes[:, :, torch.tensor(missing, dtype=torch.bool)] = UNKNOWN
    assert find_holes(tokens, boxes).tolist() == want


def test_a_position_with_an_unknown_cell_is_of_a_hole_and_items_of_different_length_may_share_one():
    tokens = codes(LEVELS, 2)
    tokens.codes[:, 1, 2] = UNKNOWN
    assert find_holes(tokens, True).tolist() == [-1, -1, 0, -1, -1]
    ends = codes(LINE, 2)
    ends.codes[:, :, 2:] = UNKNOWN
    ends.codes[1, :, 5:] = ABSENT
    assert find_holes(ends, True).tolist() == [-1, -1, 0, 0, 0, 0, 0, 0]
    ends.codes[1, :, 3] = 0
    with pytest.raises(ValueError, match="rows 0 and 1 differ"):
        find_holes(ends, True)
    assert find_holes(codes(STRIDED, 2), True).tolist() == [-1] * 6
