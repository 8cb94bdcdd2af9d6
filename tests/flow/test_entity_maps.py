"""Entities of a grid: each kind splits it as its words say, and the parts put together are the grid."""

import pytest
import torch

from gentok.flow.entities import entity_map
from gentok.types import Raster

GRID = Raster(4, 8)
KINDS = [("token", None), ("image", None), ("scale", None), ("scale", 2)]
KINDS += [("cell", 1), ("cell", 2), ("cell", 4), ("subsample", 2), ("subsample", 4)]


def numbers(batch=2, channels=3):
    return torch.arange(float(batch * channels * GRID.positions), dtype=torch.float64).view(batch, channels, GRID.positions)


@pytest.mark.parametrize("kind, side", KINDS)
def test_split_and_join_are_linear_and_inverse(kind, side):
    maps, x = entity_map(kind, GRID, side), numbers()
    parts = maps.split(x)
    assert parts.shape == (2, sum(maps.sizes), 3) and maps.place.shape == (sum(maps.sizes), 2)
    whole, there = maps.join(parts.split(maps.sizes, 1))
    assert torch.equal(whole, x) and there.all()
    y = torch.randn_like(x)
    torch.testing.assert_close(maps.split(2 * x - 3 * y), 2 * parts - 3 * maps.split(y))
    # rows and columns are linear in the grid, so every entity's places are what it does to them
    row, column = torch.meshgrid(torch.arange(4.0), torch.arange(8.0), indexing="ij")
    places = torch.stack((row, column)).double().flatten(1)[None]
    torch.testing.assert_close(maps.split(places)[0], maps.place)


def test_each_kind_is_what_its_words_say():
    image = numbers(1, 1).view(4, 8)
    parts = {(kind, side): list((m := entity_map(kind, GRID, side)).split(numbers(1, 1))[0, :, 0].split(m.sizes)) for kind, side in KINDS}
    cells = [image[r : r + 2, c : c + 2].flatten() for r in (0, 2) for c in (0, 2, 4, 6)]
    spread = [image[r::2, c::4].flatten() for r in range(2) for c in range(4)]
    pooled = [image.view(1, 4, 2, 4).mean((1, 3)).flatten(), image.view(2, 2, 4, 2).mean((1, 3)).flatten(), image.flatten()]
    for key, wanted in {
        ("cell", 2): cells, ("subsample", 2): spread, ("scale", None): pooled, ("scale", 2): pooled[1:],
        ("token", None): list(image.flatten()[:, None]), ("image", None): [image.flatten()],
    }.items():  # fmt: skip
        assert len(parts[key]) == len(wanted) and all(torch.equal(a, b) for a, b in zip(parts[key], wanted)), key
    assert all(torch.equal(a, b) for a, b in zip(parts["cell", 1], parts["token", None]))


@pytest.mark.parametrize("kind, side", KINDS)
def test_the_first_entities_give_their_part_of_the_grid_and_are_known_where_all_of_it_is(kind, side):
    maps, x = entity_map(kind, GRID, side), numbers()
    parts = maps.split(x).split(maps.sizes, 1)
    for count in range(1, len(parts)):
        values, there = maps.join(parts[:count])
        assert torch.equal(values[:, :, there], x[:, :, there]) and values[:, :, ~there].isnan().all()
        assert int(there.sum()) == (0 if kind == "scale" else sum(maps.sizes[:count]))
        known, left = maps.known(there.expand(2, -1))
        assert known.sum(1).tolist() == [0 if kind == "scale" else count] * 2 and not left.any()
    one = torch.zeros(1, GRID.positions, dtype=torch.bool)
    one[0, 5] = True
    known, left = maps.known(one)
    assert int(known.sum()) + int(left.sum()) == 1  # an entity of its own, or left over


@pytest.mark.parametrize(
    "kind, side, words",
    [("cell", 3, "1 or 2 or 4"), ("cell", 8, "4 x 8"), ("subsample", 3, "subsample"), ("scale", 3, "1 or 2 or 4"), ("image", 2, "no side")],
)
def test_entities_that_the_grid_cannot_hold_are_refused_in_one_line(kind, side, words):
    with pytest.raises(ValueError, match=words) as error:
        entity_map(kind, GRID, side)
    assert "\n" not in str(error.value)
