"""Layouts: every cell once, and back again."""

import pytest
import torch

from gentok.layouts import LAYOUTS, Layout
from gentok.types import ABSENT, Frames, Line, Raster, TokenSpec

SPECS = {
    "K1": TokenSpec((5,), Raster(2, 3)),
    "K3": TokenSpec((5, 4, 7), Raster(2, 2)),
    "K4 strides": TokenSpec((3, 4, 5, 6), Frames(10.0, 8), strides=(8, 4, 2, 1)),
    "one cell": TokenSpec((2,), Line(1)),
}
CASES = [(name, spec) for name in LAYOUTS for spec in SPECS if not (name == "raster" and SPECS[spec].levels > 1)]


def codes_of(spec: TokenSpec, batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    codes = torch.stack([torch.randint(v, (batch, spec.positions), generator=generator) for v in spec.vocab_sizes], 1)
    codes[:, ~spec.exists()] = ABSENT
    return codes


@pytest.mark.parametrize("name, spec", CASES)
def test_unflatten_undoes_flatten_and_every_cell_occurs_once(name, spec):
    layout = Layout.of(name, SPECS[spec])
    codes = codes_of(SPECS[spec])
    ids = layout.flatten(codes)
    assert ids.shape == (3, layout.steps, layout.slots)
    assert torch.equal(layout.unflatten(ids), codes)
    cells = [(int(k), int(n)) for k, n in zip(layout.level.flatten(), layout.position.flatten()) if k >= 0]
    assert len(cells) == len(set(cells)) == int(SPECS[spec].exists().sum())
    assert layout.exists.any(1).all(), "no step is empty"
    sizes = torch.tensor(SPECS[spec].vocab_sizes)
    assert torch.equal(layout.vocab[layout.exists], sizes[layout.level[layout.exists]])


@pytest.mark.parametrize("name, spec", CASES)
def test_prefix_is_the_first_step_with_a_hole(name, spec):
    layout = Layout.of(name, SPECS[spec])
    exists = SPECS[spec].exists()
    masked_cells = exists.expand(3, -1, -1).clone()
    masked_cells[1] = False
    last = layout.step == layout.steps - 1
    masked_cells[2] &= last
    assert layout.prefix(masked_cells).tolist() == [0, layout.steps, layout.steps - 1]


def test_orders_are_the_field_s():
    spec = SPECS["K3"]
    level = {name: Layout.of(name, spec).level.tolist() for name in LAYOUTS if name != "raster"}
    assert level["level_major"] == [[0]] * 4 + [[1]] * 4 + [[2]] * 4
    assert level["position_major"] == [[0], [1], [2]] * 4
    assert level["parallel"] == [[0, 1, 2]] * 4
    delayed = Layout.of("delayed", spec)
    assert delayed.steps == 4 + 3 - 1
    assert (
        delayed.position.tolist()[0] == [0, -1, -1]
        and delayed.position.tolist()[2] == [2, 1, 0]
        and delayed.position.tolist()[5] == [-1, -1, 3]
    )


def test_what_is_no_order_is_refused():
    spec = SPECS["K1"]
    with pytest.raises(ValueError, match="twice"):
        Layout([[(0, 0)], [(0, 0)]], spec)
    with pytest.raises(ValueError, match="never emits level 0, position 5"):
        Layout([[(0, n)] for n in range(5)], spec)
    with pytest.raises(ValueError, match="level_major"):
        Layout.of("raster", SPECS["K3"])
    with pytest.raises(ValueError, match="raster"):
        Layout.of("spiral", spec)
