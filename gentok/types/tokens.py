"""What lies between the parts: discrete codes, and the continuous ones of a KL autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.errors import counted
from gentok.types.grids import Pyramid
from gentok.types.token_spec import TokenSpec

__all__ = ["ABSENT", "UNKNOWN", "Tokens", "Latents"]

ABSENT = -1
"""A cell that is not there: a dropped level, beyond a row's length, or one that the spec does not have."""
UNKNOWN = -2
"""A masked position: a cell that a sampler fills."""


@dataclass
class Tokens:
    """The single currency: codes int64 [B, K, N] with values 0..V_k-1, ABSENT or UNKNOWN; lengths int64 [B] in positions, or None."""

    codes: Tensor
    spec: TokenSpec
    lengths: Tensor | None = None

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.int64 or self.codes.dim() != 3:
            raise ValueError(f"codes must be int64 [B, K, N]; got {self.codes.dtype} {tuple(self.codes.shape)}")
        if self.codes.shape[1] != self.spec.levels:
            raise ValueError(f"codes have {counted(self.codes.shape[1], 'level')}, their spec {self.spec.levels}")

    @property
    def batch(self) -> int:
        return self.codes.shape[0]

    @property
    def present(self) -> Tensor:
        """bool [B, K, N]: cells that hold a code."""
        return self.codes >= 0

    @property
    def masked(self) -> Tensor:
        """bool [B, K, N]: cells that are UNKNOWN."""
        return self.codes == UNKNOWN

    @property
    def finished(self) -> Tensor:
        """int64 [B]: the positions before the first that has an UNKNOWN cell; all N where there is none."""
        return (~self.masked.any(1)).to(torch.int64).cumprod(1).sum(1)

    @classmethod
    def unknown(cls, spec: TokenSpec, batch: int, lengths: Tensor | None = None, device: torch.device | str = "cpu") -> Tokens:
        """All UNKNOWN, ABSENT where the spec has no cell and beyond each row's length."""
        codes = torch.full((batch, spec.levels, spec.positions), UNKNOWN, dtype=torch.int64, device=device)
        codes[:, ~spec.exists().to(device)] = ABSENT
        if lengths is not None:
            beyond = torch.arange(spec.positions, device=device) >= lengths.to(device)[:, None]
            codes.masked_fill_(beyond[:, None], ABSENT)
        return cls(codes, spec, lengths)

    def validate(self) -> Tokens:
        """Raises ValueError on a code outside its level's vocabulary or a cell that the spec does not have; returns itself."""
        top = torch.tensor(self.spec.vocab_sizes, device=self.codes.device)[:, None]
        bad = (self.codes >= top) | (self.codes < UNKNOWN)
        if bad.any():
            b, k, n = bad.nonzero()[0].tolist()
            raise ValueError(f"code {int(self.codes[b, k, n])} at row {b}, level {k}, position {n}: level {k} has ids 0..{int(top[k]) - 1}")
        missing = ~self.spec.exists(self.codes.shape[2]).to(self.codes.device)
        if (self.codes[:, missing] >= 0).any():
            raise ValueError("a code stands in a cell that the spec does not have (see TokenSpec.strides)")
        return self

    def to(self, device: torch.device | str) -> Tokens:
        return Tokens(self.codes.to(device), self.spec, None if self.lengths is None else self.lengths.to(device))

    def rows(self, index: Tensor | slice | Sequence[int]) -> Tokens:
        return Tokens(self.codes[index], self.spec, None if self.lengths is None else self.lengths[index])

    def padded(self, spec: TokenSpec) -> Tokens:
        """The same codes on the grid of `spec`, of as many positions or more: ABSENT behind. Raises ValueError where it has fewer."""
        more = spec.positions - self.codes.shape[2]
        if more < 0:
            raise ValueError(f"an item of {self.codes.shape[2]} positions does not fit a grid of {spec.positions} (its longest item)")
        return Tokens(torch.nn.functional.pad(self.codes, (0, more), value=ABSENT), spec, self.lengths)

    def truncate(self, levels: int | None = None, positions: int | None = None) -> Tokens:
        """Later levels and positions made ABSENT: a coarser code of the same item, for nested levels and nested lines."""
        codes = self.codes.clone()
        if levels is not None:
            codes[:, levels:] = ABSENT
        if positions is not None:
            codes[:, :, positions:] = ABSENT
        return Tokens(codes, self.spec, self.lengths)

    def prefix(self, k: int) -> Tokens:
        """The first k nested levels, tokens of a nested line or scales of a pyramid, the rest ABSENT. Raises ValueError where the code has
        no such prefix."""
        if not 1 <= k <= self.spec.prefixes:
            some = f"prefixes of 1 to {self.spec.prefixes}" if self.spec.prefixes > 1 else "no prefixes: it decodes whole or not at all"
            raise ValueError(f"a prefix of {k}: this code has {some}")
        if self.spec.nested_levels:
            return self.truncate(levels=k)
        grid = self.spec.grid
        return self.truncate(positions=sum(side * side for side in grid.sides[:k]) if isinstance(grid, Pyramid) else k)


@dataclass
class Latents:
    """Continuous codes of a spec without vocabulary; only Entities and MaskedVectors generators model them.

    values float [B, D, N], NaN at a position that a sampler fills; lengths int64 [B] in positions, or None.
    """

    values: Tensor
    spec: TokenSpec
    lengths: Tensor | None = None

    @property
    def batch(self) -> int:
        return self.values.shape[0]

    @property
    def masked(self) -> Tensor:
        """bool [B, 1, N]: positions that are to be filled."""
        return self.values.isnan().any(1, keepdim=True)

    @property
    def present(self) -> Tensor:
        """bool [B, 1, N]: positions that hold numbers."""
        return ~self.masked

    @classmethod
    def unknown(cls, spec: TokenSpec, batch: int, device: torch.device | str = "cpu") -> Latents:
        """Nothing but positions to be filled, float32."""
        return cls(torch.full((batch, spec.width or 0, spec.positions), torch.nan, device=device), spec)

    def validate(self) -> Latents:
        """Raises ValueError on numbers of another shape, and on one that is not finite; returns itself."""
        if self.values.dim() != 3 or self.values.shape[1:] != (self.spec.width, self.spec.positions):
            raise ValueError(f"latents must be float [B, {self.spec.width}, {self.spec.positions}]; got {tuple(self.values.shape)}")
        if not bool(self.values.isfinite().all()):
            b, _, n = (~self.values.isfinite()).nonzero()[0].tolist()
            raise ValueError(f"the latents of row {b} are not finite at position {n}")
        return self

    def to(self, device: torch.device | str) -> Latents:
        return Latents(self.values.to(device), self.spec, None if self.lengths is None else self.lengths.to(device))

    def rows(self, index: Tensor | slice | Sequence[int]) -> Latents:
        return Latents(self.values[index], self.spec, None if self.lengths is None else self.lengths[index])
