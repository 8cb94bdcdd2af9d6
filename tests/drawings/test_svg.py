"""SVG files are read as outlines: every command of paths, other shapes, the fit into the canvas; what cannot be read is one line."""

import math

import pytest
import torch
from icon_kit import BROKEN, GOOD, svg

from gentok.drawings.outlines import CURVE, LINE, MOVE, SHAPE, STEPS, from_ids, on_grid, rasterise, to_ids, to_svg
from gentok.drawings.svg import read_svg

UNIT = 40


def read(path, box="0 0 24 24"):
    return read_svg(svg(path, box).encode())


def points(*units):
    return tuple((round(x * UNIT), round(y * UNIT)) for x, y in units)


def test_relative_and_short_commands_are_the_absolute_ones():
    want = ((SHAPE, points((3, 3))), (LINE, points((21, 3))), (LINE, points((21, 21))), (LINE, points((3, 21))))
    for path in ("M3 3H21V21H3Z", "m3 3h18v18h-18z", "M3,3 21,3 21,21 3,21", "M3 3L21 3L21 21L3 21L3 3Z"):
        assert read(path) == want
    curve = (SHAPE, points((2, 2))), (CURVE, points((2, 8), (8, 8), (8, 2))), (CURVE, points((8, -4), (14, -4), (14, 2)))
    got = read("M2 2c0 6 6 6 6 0s6-6 6 0z")
    assert got[:2] == curve[:2] and got[2] == (CURVE, ((320, 0), (560, 0), (560, 80))), "what lies outside goes to the border"
    quadratic = read("M2 12Q7 2 12 12T22 12V20H2Z")
    assert [kind for kind, _ in quadratic] == [SHAPE, CURVE, CURVE, LINE, LINE] and quadratic[2][1][2] == points((22, 12))[0]


def test_an_arc_is_a_circle_to_a_thousandth():
    outline = read("M12 2A10 10 0 1 0 12 22A10 10 0 1 0 12 2Z")
    for kind, (a, b, c) in outline[1:]:
        assert kind == CURVE and abs(math.dist(c, (480, 480)) - 400) < 1 and math.dist(a, b) > 0
    share = (rasterise([outline], STEPS, 96) < 128).double().mean()
    assert float(share) == pytest.approx(math.pi * 100 / 576, rel=5e-3)


def test_parts_of_a_path_are_holes_and_shapes_are_filled_one_by_one():
    hole = "M3 3H21V21H3zM5 5V19H19V5z"
    outline = read(hole)
    assert [kind for kind, _ in outline] == [SHAPE, LINE, LINE, LINE, MOVE, LINE, LINE, LINE]
    two = f'<svg viewBox="0 0 24 24">{"".join(f"<path d={chr(34)}{p}{chr(34)}/>" for p in ("M3 3H21V21H3z", "M5 5V19H19V5z"))}</svg>'
    both = read_svg(two.encode())
    assert [kind for kind, _ in both].count(SHAPE) == 2
    ring, full = rasterise([outline, both], STEPS, 48)[:, 0].float()
    assert ring[24, 24] == 255 and full[24, 24] == 0 and ring[8, 24] == full[8, 24] == 0


def test_other_shapes_are_read_and_what_is_not_drawn_is_not():
    shapes = '<rect x="1" y="1" width="4" height="4"/><circle cx="12" cy="12" r="3"/><polygon points="18,18 22,18 20,22"/>'
    hidden = '<defs><path d="M0 0H24V24Z"/></defs><path d="M0 0H24V24H0z" fill="none"/><path style="display: none" d="M0 0H9V9z"/><!---->'
    outline = read_svg(f'<svg viewBox="0 0 24 24">{hidden}<g fill="#000">{shapes}</g></svg>'.encode())
    assert [kind for kind, _ in outline].count(SHAPE) == 3 and outline[0][1] == points((1, 1))
    moved = read_svg(b'<svg viewBox="0 0 24 24"><path transform="matrix(1 0 0 1 2 0)" d="M0 0H4V4H0z"/></svg>')
    assert moved[0][1] == points((2, 0))


def test_the_view_box_is_fitted_into_the_canvas_and_centred():
    assert read("M-12 -12H0V0H-12z", "-12 -12 24 24")[0][1] == points((0, 0))
    wide = read("M0 0H48V24H0z", "0 0 48 24")
    assert [p for _, (p, *_) in wide] == [(0, 240), (960, 240), (960, 720), (0, 720)]
    sized = read_svg(b'<svg width="12px" height="12"><path d="M0 0H12V12H0z"/></svg>')
    assert max(x for _, p in sized for x, _ in p) == STEPS - 1


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_one_line(name):
    with pytest.raises(ValueError, match=f"^{name}.svg cannot be read as an icon: .+") as error:
        read_svg(BROKEN[name].encode(), f"{name}.svg")
    assert "\n" not in str(error.value)


def test_an_outline_is_read_again_from_its_ids_and_from_its_own_svg_file():
    for path in GOOD.values():
        outline = read(path)
        assert from_ids(to_ids(outline)) == outline == on_grid(outline, STEPS)
        coarse = on_grid(outline, 49)
        assert on_grid(coarse, 49, 49) == coarse
        again = read_svg(to_svg(coarse, 49, title="a & b").encode())
        assert on_grid(again, 49) == coarse
    for ids in ([4, 5], [0, 9], [2, 9, 970]):
        with pytest.raises(ValueError, match="an outline is of commands"):
            from_ids(ids)


def test_a_picture_does_not_depend_on_the_pictures_beside_it():
    outlines = [read(path) for path in GOOD.values()]
    alone = torch.cat([rasterise([outline], STEPS, 32) for outline in outlines])
    assert torch.equal(rasterise(outlines, STEPS, 32), alone) and alone.shape == (len(outlines), 1, 32, 32)
