"""What a deterministic teacher made of noise (distilled decoding, gentok/generators/distilled.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gentok.types.tokens import Tokens

__all__ = ["Trajectories"]


@dataclass
class Trajectories(Tokens):
    """Tokens, and the noise that they were made of: float [B, N, C], a vector per position."""

    noise: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0))

    def to(self, device: torch.device | str) -> Trajectories:
        moved = super().to(device)
        return Trajectories(moved.codes, self.spec, moved.lengths, self.noise.to(device))

    def rows(self, index: Tensor | slice | Sequence[int]) -> Trajectories:
        chosen = super().rows(index)
        return Trajectories(chosen.codes, self.spec, chosen.lengths, self.noise[index])
