"""TokenSpec: what a tokenizer's tokens mean."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from gentok.errors import FormatError, counted
from gentok.types.formats import CELLS, Size, strict
from gentok.types.grids import GRIDS, Frames, Grid, Line, Pyramid

__all__ = ["TokenSpec"]


@dataclass(frozen=True)
class TokenSpec:
    """What a tokenizer's tokens are: enough to model, store, check and decode them, and nothing of how they were made.

    Attributes:
        vocab_sizes: V of each level, coarse to fine; empty for Latents, which have a `width` instead.
        grid: how positions lie.
        strides: level k exists at positions n % strides[k] == 0 (SNAC); None: 1 everywhere.
        latent_positions: M, where it differs from N (a pyramid).
        width: D of Latents.
        nested_levels: coarse levels alone are a valid code.
        parts: named id ranges (name, start, stop) of a mixed vocabulary, for example text | speech.
        grammar: a row per state, a column per part: the state after an id of that part, -1 where there can be none. A row of codes
            begins in state 0, and ends in a state that nothing follows (gentok/grammar.py). Empty: any id may follow any.
        modality: "image", "audio" or what else the tokenizer says.
        media_shape: (C, H, W) or (C,), what decode returns.
        sample_rate: in Hz, of sound.
        encode_fingerprint: hash of every tensor and setting that codes depend on.
        decode_fingerprint: hash of the rest.
        canvas: points per side of a canvas on which the ids of the last part are steps: id start + x + canvas * y moves x to the right and
            y down, around the edges, from (0, 0) before the first. None: ids have no such meaning.
    """

    vocab_sizes: tuple[Annotated[int, Field(ge=1, le=2**62)], ...]
    grid: Grid
    strides: tuple[Size, ...] | None = None
    latent_positions: Size | None = None
    width: Size | None = None
    nested_levels: bool = False
    parts: tuple[tuple[str, int, int], ...] = ()
    grammar: tuple[tuple[int, ...], ...] = ()
    modality: str = "image"
    media_shape: tuple[Size, ...] | None = None
    sample_rate: Size | None = None
    encode_fingerprint: str = ""
    decode_fingerprint: str = ""
    canvas: Size | None = None

    def __post_init__(self) -> None:
        if not self.vocab_sizes and self.width is None:
            raise ValueError("a TokenSpec needs vocab_sizes (tokens) or a width (latents); it has neither")
        if any(v < 1 for v in self.vocab_sizes):
            raise ValueError(f"every level needs a vocabulary of at least 1; vocab_sizes = {self.vocab_sizes}")
        if self.strides is not None and len(self.strides) != self.levels:
            raise ValueError(f"strides must name one stride per level: {self.levels} levels, strides = {self.strides}")
        if self.grammar:
            self._check_grammar()
        if self.canvas is not None and (not self.grammar or self.parts[-1][2] - self.parts[-1][1] != self.canvas**2):
            raise ValueError(f"a canvas is one of tokens with a grammar, whose last part has canvas^2 = {self.canvas**2} ids: {self.parts}")

    def _check_grammar(self) -> None:
        ends = [0, *(stop for _, _, stop in self.parts)]
        if self.levels != 1 or [start for _, start, _ in self.parts] != ends[:-1] or ends[-1] != self.vocab or ends != sorted(set(ends)):
            raise ValueError(
                f"a grammar is one of ids of one level, of which parts are consecutive ranges; {counted(self.levels, 'level')} of "
                f"{self.vocab_sizes} ids, parts = {self.parts}"
            )
        if any(len(row) != len(self.parts) or not all(-1 <= state < len(self.grammar) for state in row) for row in self.grammar):
            raise ValueError(f"a grammar has a row per state, of a state or -1 for each of {len(self.parts)} parts; got {self.grammar}")

    def part(self, name: str) -> slice:
        """The ids of a named part. Raises ValueError where there is none of that name."""
        for part, start, stop in self.parts:
            if part == name:
                return slice(start, stop)
        raise ValueError(f"these tokens have no part {name!r}; they have {', '.join(part for part, _, _ in self.parts) or 'none'}")

    @property
    def levels(self) -> int:
        """K."""
        return len(self.vocab_sizes)

    @property
    def positions(self) -> int:
        """N, of the longest item where items differ. Raises ValueError where the grid has no bound."""
        if self.grid.positions is None:
            raise ValueError("these tokens have no fixed number of positions: set the grid's n (the longest item's frames)")
        return self.grid.positions

    @property
    def frame_multiple(self) -> int:
        """How many positions codes of all levels span together: an item along time is a whole number of these."""
        return math.lcm(*(self.strides or (1,)))

    @property
    def vocab(self) -> int:
        """The largest level's V: the width of every logits tensor."""
        return max(self.vocab_sizes)

    @property
    def bits(self) -> float:
        """Bits of one item: the sum over its cells of log2 V."""
        exists = self.exists()
        return sum(float(exists[k].sum()) * torch.log2(torch.tensor(float(v))).item() for k, v in enumerate(self.vocab_sizes))

    @property
    def bits_per_second(self) -> float:
        """Of frames: rate * the sum over levels of log2 V / stride. Raises ValueError where positions do not lie in time."""
        if not isinstance(self.grid, Frames):
            raise ValueError(f"tokens on {self.grid} have no bits per second: they do not lie in time")
        return self.grid.rate_hz * sum(math.log2(v) / stride for v, stride in zip(self.vocab_sizes, self.strides or (1,) * self.levels))

    @property
    def prefixes(self) -> int:
        """How many prefixes of an item are codes of their own, the whole one included: nested levels, the tokens of a nested line, or the
        scales of a pyramid. 1 where an item is all or nothing."""
        if self.nested_levels:
            return self.levels
        if isinstance(self.grid, Pyramid):
            return len(self.grid.sides)
        return self.grid.n or 1 if isinstance(self.grid, Line) and self.grid.nested else 1

    def exists(self, positions: int | None = None) -> Tensor:
        """bool [K, N]: the cells that the spec has (all of them unless there are strides)."""
        n = torch.arange(self.positions if positions is None else positions)
        if not self.levels:
            return torch.zeros(0, len(n), dtype=torch.bool)
        return torch.stack([n % stride == 0 for stride in self.strides or (1,) * self.levels])

    def same_codes(self, other: TokenSpec) -> bool:
        """Whether both specs mean the same codes: everything but the decoder's fingerprint agrees."""
        return replace(self, decode_fingerprint="") == replace(other, decode_fingerprint="")

    def describe(self) -> str:
        """One phrase for messages: '64 positions x 1 level of 512 (raster 8x8), fingerprint 12ab...'."""
        kind = type(self.grid).__name__.lower()
        positions = "any number of" if self.grid.positions is None else self.grid.positions
        ids = ", ".join(map(str, sorted(set(self.vocab_sizes))))
        sizes = f"{counted(self.levels, 'level')} of {ids}" if self.levels else f"width {self.width}"
        return f"{positions} positions x {sizes} ({kind}), fingerprint {self.encode_fingerprint or 'none'}"

    def to_dict(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        values["grid"] = {"kind": type(self.grid).__name__.lower(), **dataclasses.asdict(self.grid)}
        for name in ("grammar", "canvas"):  # what has none reads, and is fingerprinted, as before there were any
            if not values[name]:
                del values[name]
        return json.loads(json.dumps(values))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenSpec:
        """The inverse of `to_dict`. Raises FormatError, one line, where it is of a newer format, damaged, or of an impossible size."""
        grid = dict(values["grid"]) if isinstance(values, Mapping) and isinstance(values.get("grid"), Mapping) else {}
        kind = grid.pop("kind", None)
        if not isinstance(kind, str) or kind not in GRIDS:
            raise FormatError(f"the token spec has a grid of kind {str(kind)[:60]!r}; this gentok knows {', '.join(GRIDS)}")
        laid = GRIDS[kind](**strict(GRIDS[kind], grid, f"the {kind} grid"))
        spec = cls(**strict(cls, {**values, "grid": laid}, "the token spec"))
        cells = (laid.positions or 1) * (spec.levels or spec.width or 1)
        if max(cells, spec.latent_positions or 1, math.prod(spec.media_shape or ())) > CELLS:
            raise FormatError(f"the token spec is of impossible sizes: {spec.describe()}, media of shape {spec.media_shape}")
        return spec
