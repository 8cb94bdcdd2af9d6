"""Coordinates in which a codebook's vectors are modelled as continuous ones.

    u = ((v - mean) / deviation) axes

Mean and deviation are of each channel; axes span the subspace that vectors lie in, which is smaller where a codebook of few dimensions is
projected to many channels, and are scaled so that u has unit variance on the average. They are measured on the vectors of 4,096 positions
of random codes, of which every id is as likely: on the tables, but for a codebook whose levels or scales are not just added up, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.interfaces import Codebook
from gentok.nn.constants import Constants
from gentok.precision import no_autocast
from gentok.rng import RowRNG
from gentok.types import TokenSpec

__all__ = ["VectorCoordinates"]

_MEASURED = 4096
"""Positions."""


class VectorCoordinates:
    """Coordinates of the vectors of a codebook.

    Args:
        codebook: whose vectors they are.
        spec: of its tokens.

    Attributes:
        channels: C, how many coordinates there are. On the meta device, where nothing can be measured, the codebook's width.
    """

    def __init__(self, codebook: Codebook, spec: TokenSpec):
        with torch.device("cpu"), torch.no_grad():
            vectors = self._random(codebook, spec)
            meta = vectors.is_meta
            mean, deviation = vectors.mean(0), vectors.std(0, unbiased=False)
            whitened = (vectors - mean) / deviation.clamp(min=1e-12)
            values, axes = torch.linalg.eigh(whitened.T @ whitened / len(vectors))
            kept = values if meta else values[values > 1e-6 * values.max()]
            axes = axes if meta else axes[:, values > 1e-6 * values.max()]
            scale = kept.mean().sqrt()
            self.channels = axes.shape[1]
            self._constants = Constants(
                mean=mean, into=axes / (deviation.clamp(min=1e-12)[:, None] * scale), back=axes * deviation[:, None] * scale
            )

    @staticmethod
    def _random(codebook: Codebook, spec: TokenSpec) -> Tensor:
        """float64 [n, width]: vectors of random codes."""
        items = -(-_MEASURED // spec.positions)
        uniform = RowRNG.of(0, range(items)).uniform(spec.levels, spec.positions)
        codes = (uniform * torch.tensor(spec.vocab_sizes, dtype=torch.float64)[:, None]).long()
        home = next((t.device for t in [*codebook.parameters(), *codebook.buffers()]), codes.device)
        return codebook.lookup(codes.to(home)).to("meta" if home.type == "meta" else "cpu").double().transpose(1, 2).flatten(0, 1)

    def of(self, vectors: Tensor) -> Tensor:
        """Vectors float [B, width, M] -> their coordinates, float [B, C, M]; in float64."""
        constants = self._constants.on(vectors.device, torch.float64)
        with no_autocast(vectors.device):
            return ((vectors.double().transpose(1, 2) - constants.mean) @ constants.into).transpose(1, 2)

    def vectors(self, coordinates: Tensor) -> Tensor:
        """Coordinates float [B, C, M] -> vectors, float [B, width, M]; in float64."""
        constants = self._constants.on(coordinates.device, torch.float64)
        with no_autocast(coordinates.device):
            return (coordinates.double().transpose(1, 2) @ constants.back.T + constants.mean).transpose(1, 2)
