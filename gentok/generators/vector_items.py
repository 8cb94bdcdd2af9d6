"""What generators share that model the vectors of an item on a raster: Latents of a KL autoencoder, or the vectors of a codebook's codes.

Codes (in no paper): their vectors are modelled in coordinates of unit variance (vector_coordinates.py), and what a sampler draws goes to
the nearest code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.generators.vector_coordinates import VectorCoordinates
from gentok.interfaces import Codebook, Generator
from gentok.nn.frozen import Frozen
from gentok.types import Grid, Latents, Pyramid, Raster, Tokens, TokenSpec

__all__ = ["VectorItems"]


class VectorItems(Generator):
    """A generator of N vectors of C numbers each, on a raster.

    Attributes:
        raster: the grid of the vectors.
        channels: C.
        codebook: a frozen copy, outside of the state dict; None: of Latents.
    """

    models_latents = True
    has_nll = False
    channels: int

    def take_items(self, name: str, spec: TokenSpec, codebook: Codebook | None) -> None:
        """Sets what is said above. name: of the generator. Raises ValueError where the items or the codebook are of another kind."""
        if codebook is not None and not codebook.has_nearest:
            raise ValueError(
                f"{name} models vectors and ends at the nearest codes, which {type(codebook).__name__} has not: use a codebook such as vq, "
                "fsq or residual, or generator=masked"
            )
        self.spec = spec
        self.codebook = None if codebook is None else Frozen(codebook)
        self._coordinates = None if codebook is None else VectorCoordinates(codebook, spec)
        self.channels = spec.width if self._coordinates is None else self._coordinates.channels  # type: ignore[assignment]
        self.raster = _raster(name, spec.grid)

    def values(self, tokens: Tokens | Latents) -> Tensor:
        """The grid of vectors, float [B, C, N]: float64 of codes, in their coordinates. Raises ValueError on items of another shape."""
        if isinstance(tokens, Latents):
            self._check_latents(tokens)
            return tokens.values
        self.check_shape(tokens.codes)
        if self.codebook is None or self._coordinates is None:
            raise ValueError(f"this generator models latents of width {self.channels}; got codes")
        return self._coordinates.of(self.codebook.on(tokens.codes.device).lookup(tokens.codes))

    def known_positions(self, tokens: Tokens | Latents) -> tuple[Tensor, Tensor]:
        """bool [B, N] each: where a vector is known, and where some of it is."""
        present = tokens.present
        whole, some = present.all(1), present.any(1)  # [B, N]
        if whole.shape[1] != self.raster.positions:  # scales of a codebook: every vector needs codes of all of them
            whole, some = whole.all(1, keepdim=True), some.any(1, keepdim=True)
            whole, some = (part.expand(-1, self.raster.positions) for part in (whole, some))
        return whole, some

    def filled(self, values: Tensor, there: Tensor, tokens: Tokens | Latents) -> Tokens | Latents:
        """Items with vectors put in.

        Args:
            values: float [B, C, N], anything where there is none.
            there: bool [N] or [B, N], where there is one.
            tokens: what the items started from; what is known there stays.
        """
        if isinstance(tokens, Latents):
            fill = tokens.masked & there.unsqueeze(-2)
            return Latents(torch.where(fill, values.to(tokens.values), tokens.values), tokens.spec, tokens.lengths)
        if self.codebook is None or self._coordinates is None or not bool(there.all()):
            return tokens  # codes are looked for once, when all vectors are there
        vectors = self._coordinates.vectors(values)
        return Tokens(self.codebook.on(vectors.device).nearest(vectors.float(), tokens.codes), tokens.spec, tokens.lengths)

    def _check_latents(self, latents: Latents) -> None:
        wanted, got = (self.channels, self.raster.positions), tuple(latents.values.shape[1:])
        if self.codebook is not None or got != wanted:
            models = f"latents [B, {wanted[0]}, {wanted[1]}]" if self.codebook is None else "codes"
            raise ValueError(f"this generator models {models}; got latents of shape {tuple(latents.values.shape)}")


def _raster(name: str, grid: Grid) -> Raster:
    """Where the vectors of an item lie. Raises ValueError where they lie on no raster."""
    if isinstance(grid, Raster):
        return grid
    if isinstance(grid, Pyramid):  # all scales of a pyramid add up to the last one's vectors
        return Raster(grid.sides[-1], grid.sides[-1])
    kind = type(grid).__name__.lower()
    raise ValueError(f"{name} models vectors on a raster; these tokens lie on a {kind}: use generator=autoregressive")
