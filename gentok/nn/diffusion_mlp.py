"""The network of MAR's diffusion loss (Li et al., arXiv 2406.11838, section 3.2): an MLP that denoises one vector.

    y = time + condition;   a block: x + gate(y) mlp((1 + scale(y)) norm x + shift(y));   eps, v = out((1 + scale(y)) norm x + shift(y))

All modulations and the output layer begin at zero (adaLN-zero, DiT, arXiv 2212.09748), so that blocks begin as the identity.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gentok.nn.linear import Linear, activations
from gentok.nn.registers import TimeEmbedding, xavier
from gentok.nn.transformer import shifted

__all__ = ["DiffusionMLP"]


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up, self.out, self.modulation = Linear(width, width, True), Linear(width, width, True), Linear(width, 3 * width, True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(y)).chunk(3, -1)
        return x + gate * self.out(F.silu(self.up(shifted(self.norm(x), shift, scale, None))))


class DiffusionMLP(nn.Module):
    """x float [..., C] at times t, given z float [..., D] -> eps and v, float [..., C] each.

    Args:
        channels: C.
        given: D.
        width: of the network.
        depth: blocks.
    """

    def __init__(self, channels: int, given: int, width: int, depth: int):
        super().__init__()
        self.stem, self.given = nn.Linear(channels, width), nn.Linear(given, width)
        self.time = TimeEmbedding(width, period=10_000.0)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm, self.modulation = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False), nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, 2 * channels)
        xavier(self)
        for layer in (self.modulation, self.head, *(block.modulation for block in self.blocks)):
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """x float [M, C], t int64 [M] in 0..999, z float [M, D] -> eps and v, float [M, C] each."""
        dtype = self.stem.weight.dtype
        y = activations(self.time(t.double() / 1000) + self.given(z.to(dtype)))
        h = activations(self.stem(x.to(dtype)))
        for block in self.blocks:
            h = block(h, y)
        h = shifted(self.norm(h), *self.modulation(F.silu(y).to(dtype)).to(h.dtype).chunk(2, -1), None)
        eps, v = self.head(h.to(dtype)).chunk(2, -1)
        return eps, v
