"""Icons as ids: decode of encode is the identity on the grid, every row of the grammar can be read, and no other is written."""

import random
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "drawings"))
from icon_kit import GOOD, svg

from gentok.drawings.outlines import CURVE, LINE, MOVE, SHAPE, on_grid, packed, to_ids, to_svg
from gentok.drawings.svg import read_svg
from gentok.errors import ConfigError
from gentok.grammar import Grammar
from gentok.tokenizers.icon import POINT, Icon
from gentok.types import ABSENT, Batch, Condition, ConditionSpec, Tokens, TokenSpec


def outlines(step):
    """Of the package's sets, every so manieth; the small ones of the tests where it is not installed."""
    spec = find_spec("material")
    places = [Path(p) / "templates" / ".icons" for p in (spec.submodule_search_locations or ())] if spec else []
    files = [p for place in places for name in ("material", "octicons") for p in sorted((place / name).glob("*.svg"))]
    return [read_svg(p) for p in files[::step]] or [read_svg(svg(path).encode()) for path in GOOD.values()]


def tokens_of(model, some):
    ids = [to_ids(outline) for outline in some]
    condition = Condition({"outline": packed(ids, max(map(len, ids)))})
    return model.encode_batch(Batch(torch.zeros(len(ids), 1, 8, 8), torch.arange(len(ids)), condition)).validate()


def check(some, grid, relative=False):
    model = Icon(grid, longest=2000, relative=relative)
    want = [on_grid(outline, grid) for outline in some]
    tokens = tokens_of(model, some)
    assert model.outlines(tokens) == want
    assert TokenSpec.from_dict(model.spec.to_dict()) == model.spec
    grammar, ids = Grammar(model.spec), tokens.codes[:, 0]
    states, there = grammar.states(ids), ids >= 0
    allowed = grammar.allowed(states).gather(2, ids.clamp(min=0)[..., None])[..., 0]
    assert bool((allowed | ~there).all()), "the grammar admits what is written"
    for outline, drawing in zip(want[::7], model.drawings(tokens.rows(slice(None, None, 7)))):
        assert not outline or on_grid(read_svg(drawing.encode()), grid) == outline


def test_what_is_encoded_is_read_again_on_the_grid():
    check(outlines(40), 49)
    check(outlines(160), 25)
    check(outlines(80), 49, relative=True)


@pytest.mark.slow
@pytest.mark.parametrize(("grid", "relative"), [(25, False), (49, False), (49, True), (100, False)])
def test_every_icon_of_the_sets_is_read_again_on_the_grid(grid, relative):
    some = outlines(1)
    for first in range(0, len(some), 500):
        check(some[first : first + 500], grid, relative)


class Ambiguous(Icon):
    """Writes a further part as the paper does: where it begins at the point where the part before it ended, that is a new shape."""

    def written(self, outline):
        ids, at = [], None
        for kind, points in super_points(outline):
            if kind == MOVE and at is not None:
                points = (at, points[-1])
            ids += [{SHAPE: 1, MOVE: 1, LINE: 2, CURVE: 3}[kind], *(POINT + x + self.grid * y for x, y in points)]
            at = points[-1]
        return [*ids, 0]


def super_points(outline):
    return [(kind, points * 2 if kind == SHAPE else points) for kind, points in outline]


@pytest.mark.parametrize("tokenizer", [Icon, Ambiguous])
def test_a_part_that_begins_where_the_last_one_ended_is_no_new_shape(tokenizer):
    model, at = tokenizer(9), (4, 4)
    for corner in (at, (8, 8)):
        first = ((SHAPE, ((0, 0),)), (LINE, ((4, 0),)), (LINE, (corner,)))
        outline = (*first, (MOVE, (corner,)), (LINE, ((0, 8),)), (LINE, ((1, 7),)))
        same = model.read(model.written(outline)) == outline
        assert same if tokenizer is Icon else not same


@pytest.mark.parametrize("relative", [False, True])
def test_ten_thousand_random_rows_of_the_grammar_are_read_to_their_last_command(relative):
    model, rng = Icon(5, longest=40, relative=relative), random.Random(0)
    grammar = Grammar(model.spec)
    part = {name: range(start, stop) for name, start, stop in model.spec.parts}
    names = [name for name, _, _ in model.spec.parts]
    for _ in range(10_000):
        row, state = [], 0
        while len(row) < 40:
            able = [name for name, after in zip(names, model.spec.grammar[state]) if after >= 0]
            if not able:
                break
            row.append(rng.choice(part[rng.choice(able)]))
            state = model.spec.grammar[state][names.index(next(n for n in names if row[-1] in part[n]))]
        outline = model.read(row)
        sizes = [3 if kind in (SHAPE, MOVE) else 2 if kind == LINE else 4 for kind, _ in outline]
        ended = row[-1] == 0
        assert outline and outline[0][0] == SHAPE and (sum(sizes) + 1 == len(row) if ended else len(row) - 4 < sum(sizes) <= len(row))
        assert model.read(model.written(outline)) == outline
        assert model.read([*row, 1, 5, 5]) == outline or not ended, "nothing counts behind the end"
    assert int(grammar.states(torch.tensor([row]))[0, -1]) % grammar.size < len(model.spec.grammar)


def test_steps_are_those_between_points_wherever_a_shape_stands():
    absolute, relative = Icon(9, longest=40), Icon(9, longest=40, relative=True)
    rows = []
    for x, y in ((0, 0), (3, 5)):
        outline = ((SHAPE, ((x, y),)), (LINE, ((x + 3, y),)), (LINE, ((x + 3, y + 2),)))
        rows.append(relative.written(outline))
        points = [i - POINT for i in absolute.written(outline) if i >= POINT]
        steps = [i - POINT for i in rows[-1] if i >= POINT]
        for before, point, step in zip([0, *points], points, steps):
            assert ((point - before) % 9 - step) % 9 == 0 and (point // 9 - before // 9 - step // 9) % 9 == 0
    assert rows[0][2:] == rows[1][2:] and rows[0] != rows[1], "the first point alone says where a shape stands"


def test_any_ids_at_all_decode_and_a_tail_that_is_cut_is_dropped():
    model, g = Icon(7, longest=30, media_shape=(1, 16, 16)), torch.Generator().manual_seed(0)
    codes = torch.randint(-2, model.spec.vocab, (200, 1, 30), generator=g)
    for other in (model, Icon(7, longest=30, relative=True, media_shape=(1, 16, 16))):
        assert other.decode(Tokens(codes, other.spec)).shape == (200, 1, 16, 16)
    square = read_svg(svg(GOOD["square_outline"]).encode())
    row = model.written(on_grid(square, 7))
    assert model.read(row[:-1]) == on_grid(square, 7) and model.read(row[:4]) == on_grid(square, 7)[:1]
    assert model.read([2, 9]) == model.read([ABSENT]) == model.read([]) == ()


def test_its_picture_is_that_of_the_outline():
    model = Icon(49, media_shape=(1, 64, 64))
    tokens = tokens_of(model, [read_svg(svg(GOOD["circle"]).encode())])
    media = model.decode(tokens)
    assert media.shape == (1, 1, 64, 64) and media.dtype == torch.float32 and float(media.min()) == -1 and float(media.max()) == 1
    assert float((media < 0).double().mean()) == pytest.approx(3.14159 * 100 / 576, rel=0.02)


def test_what_does_not_fit_is_one_line(tmp_path):
    model = Icon(9, longest=12)
    (tmp_path / "a.svg").write_text(svg(GOOD["home"]))
    long = read_svg(tmp_path / "a.svg")
    cases = {
        "a picture does not say": lambda: model.encode(torch.zeros(1, 1, 8, 8)),
        "data.longest=12": lambda: tokens_of(model, [long]),
        "points per side": lambda: Icon(1),
        "are square": lambda: Icon(9, media_shape=(1, 8, 9)),
        "nothing to train": lambda: model(Batch(torch.zeros(1, 1, 8, 8), torch.arange(1))),
        "choose data=icons": lambda: Icon.bind_to_data({}, ConditionSpec()),
        "an SVG file": lambda: model.prompt_drawing(torch.zeros(1, 8, 8)),
        "of another tokenizer": lambda: model.decode(tokens_of(Icon(8), [long])),
    }
    for words, call in cases.items():
        with pytest.raises((ValueError, ConfigError), match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_commands_that_stay_are_named_by_their_numbers(tmp_path):
    model = Icon(49, longest=60)
    (tmp_path / "a.svg").write_text(svg(GOOD["home"]))
    codes = model.read_drawing(tmp_path / "a.svg")
    assert torch.equal(codes, model.read_drawing((tmp_path / "a.svg").read_bytes()))
    commands = model.read(codes.tolist())
    assert len(commands) == 11 and len(codes) == 24
    known = model.prompt_drawing(codes, "0:3+6:").codes[0, 0]
    assert known[:7].tolist() == codes[:7].tolist() and bool((known[7:13] == -2).all()) and known[13:24].tolist() == codes[13:].tolist()
    assert bool((known[24:] == ABSENT).all())
    half = model.prompt_drawing(codes).codes[0, 0]
    assert bool((half[13:] == -2).all()) and bool((half[:13] >= 0).all()), "a hole at the end goes on to the longest row"
    assert (model.prompt_drawing(codes, 3).codes[0, 0] >= 0).nonzero()[:, 0].tolist() == [7, 8]
    steps = Icon(49, longest=60, relative=True)
    codes = steps.read_drawing(tmp_path / "a.svg")
    assert steps.read(codes.tolist()) == commands and steps.prompt_drawing(codes, "0:3").codes[0, 0, :7].tolist() == codes[:7].tolist()
    with pytest.raises(ValueError, match="keep=0:3\\+6:: points are steps here"):
        steps.prompt_drawing(codes, "0:3+6:")
    for keep in ("x", "", "0:", "20:", "0:3,5", "1:2:3"):
        with pytest.raises(ValueError, match=f"keep={keep}: "):
            model.prompt_drawing(codes, keep)
    assert to_svg(commands, 49).count("<path") == 1
