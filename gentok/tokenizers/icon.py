"""Vector icons as ids that are decoded in one way only (IconShop: Wu et al., arXiv 2304.14400, section 3.2).

    vocabulary   end | move | line | curve | one id for each point of a grid x grid canvas, x + grid * y
    a row        move p p    begins a shape at p: both of its points are equal
                 move q p    begins a further part of the shape at p; q, another point, is where the part before it ended
                 line p      a line to p
                 curve p p p a cubic curve, by two control points
                 end

Every command has a fixed number of points, so a row is read from left to right, without separators; behind `end`, and behind the last
command that is whole, nothing counts. Which ids may follow which is a grammar (gentok/grammar.py): a generator that follows it draws rows
that can be read, and no others. Nothing is trained, and all that is lost is what the grid rounds off.

Pixels do not say how they were drawn: the outline of an item is a part of its condition, which data=icons gives and generators do not see.

With `relative` a point is written as the step from the point before it (the first one: from the upper left corner), around the edges of the
canvas: x and y are differences modulo `grid`. So any step leads to a point of the canvas, and rows, grammar and vocabulary are of the same
size; equal shapes at different places are equal ids.

Deviations: where a further part begins at the very point at which the part before it ended, a neighbour of that point is written as q (the
paper's rows are ambiguous there); parts are closed shapes, whose last line is not written; ids are fed to generators by one table, without
tables of rows and columns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gentok.drawings.outlines import CURVE, LINE, MOVE, SHAPE, Command, Outline, from_ids, on_grid, outline_spec, rasterise, to_svg
from gentok.drawings.svg import read_svg
from gentok.errors import ConfigError
from gentok.interfaces import Tokenizer
from gentok.rng import RowRNG
from gentok.settings import PositiveInt
from gentok.types import ABSENT, UNKNOWN, Batch, Condition, ConditionSpec, Ids, Line, TokenizerOutput, Tokens, TokenSpec

__all__ = ["Icon"]

END, _MOVE, _LINE, _CURVE, POINT = range(5)
_FIRST = {SHAPE: _MOVE, MOVE: _MOVE, LINE: _LINE, CURVE: _CURVE}
_GRAMMAR = (  # states: 0 begin; 1, 2 points of a move; 3 behind a move; 4 end; 5, 6, 7 the last, first, second point; 8 behind a command
    (-1, 1, -1, -1, -1),
    (-1, -1, -1, -1, 2),
    (-1, -1, -1, -1, 3),
    (-1, -1, 5, 6, -1),
    (-1, -1, -1, -1, -1),
    (-1, -1, -1, -1, 8),
    (-1, -1, -1, -1, 7),
    (-1, -1, -1, -1, 5),
    (4, 1, 5, 6, -1),
)


class Icon(Tokenizer, id="tokenizer/icon"):
    """Outlines (the part `outline` of an item's condition) -> Tokens [B, 1, N] with lengths -> pictures float [B, 1, H, H]."""

    codebook = None
    needs_training = False
    draws = True

    def __init__(
        self,
        grid: PositiveInt = 49,
        longest: PositiveInt = 200,
        media_shape: Sequence[PositiveInt] | None = None,
        relative: bool = False,
    ):
        """
        Args:
            grid: points per side of the canvas, at least 2; 49: half units of the usual 24.
            longest: ids of the longest row.
            media_shape: (.., H, H) of the pictures, which are grey; filled in from the data.
            relative: whether points are written as steps from the point before.

        Raises:
            ValueError: a setting is out of its range.
        """
        super().__init__()
        if grid < 2 or longest < 6:
            raise ValueError(f"tokenizer.grid={grid}, tokenizer.longest={longest}: at least 2 points per side, and rows of 6 ids or more")
        *_, height, width = media_shape or (64, 64)
        if height != width:
            raise ValueError(f"tokenizer.media_shape={list(media_shape or ())}: pictures of icons are square; use data=icons")
        self.grid, self.longest, self.relative = grid, longest, relative
        self.written_condition = ConditionSpec((("outline", outline_spec(2 * longest)),))
        names = ("end", "move", "line", "curve")
        self.spec = TokenSpec(
            vocab_sizes=(POINT + grid * grid,),
            grid=Line(longest),
            parts=(*((name, i, i + 1) for i, name in enumerate(names)), ("point", POINT, POINT + grid * grid)),
            grammar=_GRAMMAR,
            canvas=grid if relative else None,
            media_shape=(1, height, width),
        )

    @classmethod
    def bind_to_data(cls, config: Mapping[str, Any], condition_spec: ConditionSpec) -> dict[str, Any]:
        if "outline" not in dict(condition_spec.parts):
            raise ConfigError("tokenizer=icon writes the outlines of icons, and these data have none: choose data=icons")
        return dict(config)

    @property
    def asked_condition(self) -> ConditionSpec:
        return ConditionSpec()  # what is known of an outline is given as `known`

    # ------------------------------------------------------------------------------------------------------------ contract

    def encode_batch(self, batch: Batch, rng: RowRNG | None = None) -> Tokens:
        return self.encode(batch.media, batch.lengths, rng, batch.condition)

    def encode(
        self, media: Tensor | None, lengths: Tensor | None = None, rng: RowRNG | None = None, condition: Condition | None = None
    ) -> Tokens:  # fmt: skip
        """Outlines as rows of ids.

        Args:
            media: pictures, which are not looked at.
            lengths, rng: not used.
            condition: its part `outline` holds the outlines, as gentok.drawings.outlines.to_ids writes them.

        Returns:
            Tokens [B, 1, N], N = `longest`.

        Raises:
            ValueError: there are no outlines, or one has more ids than `longest`.
        """
        outlines = None if condition is None else condition.parts.get("outline")
        if not isinstance(outlines, Ids):
            raise ValueError(
                "an icon is encoded from its outline, which a picture does not say: give the condition `outline`, as data=icons does, or "
                "SVG files"
            )
        return self.tokens([self.written(on_grid(from_ids(row), self.grid)) for row in outlines.ids.tolist()], outlines.ids.device)

    def decode(self, tokens: Tokens, rng: RowRNG | None = None, **options: Any) -> Tensor:
        """Pictures of the rows, float [B, 1, H, H] in [-1, 1], black on white. Raises ValueError on another tokenizer's tokens."""
        pictures = rasterise(self.outlines(tokens), self.grid, self.spec.media_shape[-1])  # type: ignore[index]
        return (pictures.float() / 127.5 - 1).to(tokens.codes.device)

    def forward(self, batch: Batch, rng: RowRNG | None = None) -> TokenizerOutput:
        """Raises ValueError: there is nothing to train."""
        raise ValueError("tokenizer=icon has nothing to train: train a generator (task=generator)")

    def samples_of(self, tokens: Tokens, media: Tensor | None = None, least: int = 0) -> None:
        return None

    def drawings(self, tokens: Tokens) -> list[str]:
        return [to_svg(outline, self.grid) for outline in self.outlines(tokens)]

    # -------------------------------------------------------------------------------------------------------- what is known

    def read_drawing(self, source: Any) -> Tensor:
        ids = self.written(on_grid(read_svg(source), self.grid))
        if len(ids) == 1:
            raise ValueError(f"{source} has no shape of any extent on a grid of {self.grid} points per side")
        return torch.tensor(ids, dtype=torch.int64)

    def prompt_drawing(self, codes: Tensor, keep: Any = None) -> Tokens:
        if codes.is_floating_point() or codes.dim() != 1:
            raise ValueError("known: of icons an SVG file, whose commands can be kept; a picture does not say what they are")
        codes = self.tokens([codes.tolist()], codes.device).codes[0, 0]
        starts = [i for i, at in enumerate(codes.tolist()) if _MOVE <= at < POINT] + [int((codes >= 0).sum()) - 1]
        kept = _kept_commands(keep, len(starts) - 1)
        if self.relative and max(kept) >= len(kept):
            raise ValueError(f"keep={keep}: points are steps here, so that holes would move what follows them; keep the first commands, as "
                             "0:6, or train with tokenizer.relative=false (experiment=icons/infill)")  # fmt: skip
        for command, (first, last) in enumerate(zip(starts, starts[1:])):
            if command not in kept:
                codes[first:last] = UNKNOWN
        if len(starts) - 2 not in kept:
            codes[starts[-1] :] = UNKNOWN
        return Tokens(codes[None, None], self.spec)

    # ----------------------------------------------------------------------------------------------------------------- rows

    def outlines(self, tokens: Tokens) -> list[Outline]:
        """What the rows say, on the tokenizer's grid. Raises ValueError on another tokenizer's tokens."""
        self.check_tokens(tokens)
        if tokens.codes.is_meta:
            raise ValueError("the ids of a row say what it draws, and these have none (they lie on the meta device)")
        return [self.read(row) for row in tokens.codes[:, 0].tolist()]

    def written(self, outline: Outline) -> list[int]:
        """An outline on the tokenizer's grid, as `on_grid` makes it -> its ids; the inverse of `read`."""
        ids, at = [], (0, 0)
        for kind, points in outline:
            if kind == SHAPE:
                points = (points[0], points[0])
            elif kind == MOVE:
                x, y = at
                points = (at if at != points[0] else (x + 1 if x + 1 < self.grid else x - 1, y), points[0])
            ids += [_FIRST[kind], *(POINT + x + self.grid * y for x, y in points)]
            at = points[-1]
        return self._as_steps([*ids, END]) if self.relative else [*ids, END]

    def _as_steps(self, ids: Sequence[int]) -> list[int]:
        """A row whose points become steps from the point before."""
        out, x, y = [], 0, 0
        for i in ids:
            if i >= POINT:
                before_x, before_y = x, y
                y, x = divmod(i - POINT, self.grid)
                i = POINT + (x - before_x) % self.grid + self.grid * ((y - before_y) % self.grid)
            out.append(i)
        return out

    def _as_points(self, ids: Sequence[int]) -> list[int]:
        """The inverse of `_as_steps`."""
        out, x, y = [], 0, 0
        for i in ids:
            if i >= POINT:
                step_y, step_x = divmod(i - POINT, self.grid)
                x, y = (x + step_x) % self.grid, (y + step_y) % self.grid
                i = POINT + x + self.grid * y
            out.append(i)
        return out

    def read(self, ids: Sequence[int]) -> Outline:
        """Ids -> the outline that they say: up to the end, or the last command that is whole."""
        out: list[Command] = []
        at, ids = 0, self._as_points(ids) if self.relative else ids
        while at < len(ids) and ids[at] in (_MOVE, _LINE, _CURVE):
            count = (2, 1, 3)[ids[at] - _MOVE]
            points = [((i - POINT) % self.grid, (i - POINT) // self.grid) for i in ids[at + 1 : at + 1 + count] if i >= POINT]
            if len(points) < count or (not out and ids[at] != _MOVE):
                break
            if ids[at] == _MOVE:
                out.append((SHAPE if points[0] == points[1] or not out else MOVE, (points[1],)))
            else:
                out.append((LINE if ids[at] == _LINE else CURVE, tuple(points)))
            at += 1 + count
        return tuple(out)

    def tokens(self, rows: Sequence[Sequence[int]], device: Any = None) -> Tokens:
        """Rows of ids -> Tokens [B, 1, N]. Raises ValueError where one is longer than `longest`."""
        lengths = [len(row) for row in rows]
        if max(lengths, default=0) > self.longest:
            raise ValueError(
                f"an icon has {max(lengths)} ids, tokenizer.longest={self.longest}: set data.longest={self.longest}, which leaves "
                "longer ones out, or a larger tokenizer.longest"
            )
        ids = torch.full((len(rows), 1, self.longest), ABSENT, dtype=torch.int64)
        for row, values in zip(ids, rows):
            row[0, : len(values)] = torch.tensor(values, dtype=torch.int64)
        return Tokens(ids.to(device), self.spec, torch.tensor(lengths, dtype=torch.int64, device=device))


def _kept_commands(keep: Any, count: int) -> set[int]:
    """The numbers of the commands that "0:3+6:" names, of `count`. Raises ValueError where it names none, or all."""
    text = f":{(count + 1) // 2}" if keep is None else str(keep)
    kept: set[int] = set()
    for piece in text.split("+"):
        found = re.fullmatch(r"\s*(\d*)(?:(:)(\d*))?\s*", piece)
        if found is None or not piece.strip():
            raise ValueError(f"keep={keep}: of icons the commands that stay, such as 0:3+6: (this one has {count}, counted from 0)")
        first = int(found[1] or 0)
        kept |= set(range(first, min(int(found[3] or count), count) if found[2] else min(first + 1, count)))
    if not 0 < len(kept) < count:
        raise ValueError(f"keep={keep}: that keeps {len(kept)} of {count} commands; keep some of them, and leave some to be drawn")
    return kept
