"""Transformers between patches and an ordered list of registers (FlexTok, arXiv 2502.13967).

encoder   [patches ; N learned registers] under the mask "causal-last": patches see all patches and no register, a register sees all patches
          and the registers up to itself. So register n never depends on later ones, and patches are computed as if there were none.
decoder   [patches ; N register vectors], everything sees everything. A flow's decoder takes noised patches and a time, which modulates both
          kinds of tokens by weights of their own (adaLN-zero), and gives a velocity; a regression decoder takes one learned vector in place
          of every patch, no time, and gives the image. Its output layer begins at zero in both.

Registers that are not kept are *overwritten* by one learned vector and stay in attention. Overwriting comes behind the position
embedding, so dropped registers are all alike. The null condition overwrites all registers by another learned vector.

Deviations: RMSNorm in place of LayerNorm (norm="layer" has LayerNorms and hidden widths as the release does), learned scales of norms,
standard scaling and initialisation in place of muP's.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.nn.constants import Constants
from gentok.nn.density import Density
from gentok.nn.density_transformer import DensityTransformer
from gentok.nn.patches import positions_2d
from gentok.nn.transformer import Transformer
from gentok.rng import RowRNG

__all__ = ["RegisterEncoder", "RegisterDecoder", "TimeEmbedding", "causal_last", "draw_keep", "xavier", "KEEP_MODES"]

KEEP_MODES = ("uniform", "powers", "rounded")
NAME = 0.5
"""Deviation of the decoder's learned embeddings at the start: as large as what they are added to, so that registers are told apart from the
first step on (the release begins at 0.02). The encoder's registers begin small, so that what they hold is what they see."""


def causal_last(patches: int, registers: int) -> Tensor:
    """bool [T, T], T = patches + registers, True where row i sees column j: see above."""
    place = torch.arange(patches + registers)
    see = place[:, None] >= place
    see[:patches] = False
    see[:, :patches] = True
    return see


def draw_keep(mode: str, registers: int, rng: RowRNG) -> Tensor:
    """How many registers each row keeps.

    Args:
        mode: "uniform"; "powers": uniform over the powers of two up to N, and N itself; "rounded": uniform, then up to the next
            power of two (or N).
        registers: N.
        rng: B rows of random numbers.

    Returns:
        int64 [B], in 1..N.
    """
    u = rng.uniform()
    if mode == "uniform":
        return (u * registers).long() + 1
    powers = torch.tensor([min(2**i, registers) for i in range(math.ceil(math.log2(registers)) + 1)], device=u.device)
    if mode == "powers":
        return powers[(u * len(powers)).long()]
    if mode == "rounded":
        return powers[torch.searchsorted(powers, (u * registers).long() + 1)]
    raise ValueError(f"there is no nested dropout {mode!r}; choose one of {', '.join(KEEP_MODES)}")


class TimeEmbedding(nn.Module):
    """t float [B] in [0, 1] -> float [B, width]: sines and cosines of `scale` t, and two linear layers.

    Args:
        width: D.
        waves: how many wave lengths.
        period: the longest of them is 2 pi period; 256 in FlexTok's release, 10,000 in DiT.
    """

    def __init__(self, width: int, waves: int = 128, period: float = 256.0):
        super().__init__()
        self.waves, self.period, self.scale = waves, period, 1000.0
        self.first, self.second = nn.Linear(2 * waves, width), nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        rates = self.period ** (-torch.arange(self.waves, dtype=torch.float64, device=t.device) / self.waves)
        angles = self.scale * t.double()[:, None] * rates
        waves = torch.cat((angles.cos(), angles.sin()), 1).to(self.first.weight.dtype)
        return self.second(F.silu(self.first(waves)))


class RegisterEncoder(nn.Module):
    """patches float [B, P, in_width] on a grid of h x w -> registers float [B, N, out_width].

    Args:
        in_width: channels of a patch.
        out_width: channels of a register's vector.
        home: the grid that positions are measured in.
        registers: N.
        width: of the transformer.
        depth: its blocks.
        head_width: channels of an attention head.
        norm: "rms" or "layer".
    """

    def __init__(
        self, in_width: int, out_width: int, home: tuple[int, int], registers: int, width: int, depth: int, head_width: int,
        norm: Literal["rms", "layer"] = "rms",
    ):  # fmt: skip
        super().__init__()
        self.home = home
        self.stem = nn.Linear(in_width, width)
        self.registers = nn.Parameter(torch.empty(registers, width))
        self.transformer = _transformer(width, depth, head_width, norm)
        self.head = nn.Linear(width, out_width)
        xavier(self)
        nn.init.trunc_normal_(self.registers, std=0.02, a=-0.04, b=0.04)
        self._masks: dict[int, Constants] = {}

    def mask(self, patches: int, device: torch.device) -> Tensor:
        """bool [1, 1, T, T]."""
        if patches not in self._masks:
            with torch.device("cpu"):
                self._masks[patches] = Constants(see=causal_last(patches, len(self.registers))[None, None])
        return self._masks[patches].on(device).see

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        x = self.stem(patches) + positions_2d(grid, self.home, self.stem.out_features, device=patches.device).to(patches.dtype)
        x = torch.cat((x, self.registers.to(x.dtype).expand(x.shape[0], -1, -1)), 1)
        x = self.transformer(x, mask=self.mask(patches.shape[1], x.device))
        return self.head(x[:, patches.shape[1] :])


class RegisterDecoder(nn.Module):
    """Register vectors float [B, N, in_width], and of a flow noised patches and their time -> patches float [B, P, out_width].

    Args:
        in_width: channels of a register's vector.
        out_width: channels of a patch.
        home: the grid that positions are measured in.
        registers: N.
        width: of the transformer.
        depth: its blocks.
        head_width: channels of an attention head.
        flow: whether it is a flow's; else it predicts the patches themselves.
        time_period: as of TimeEmbedding.
        density: of the patches in the transformer; None: all blocks see all of them.
        norm: "rms" or "layer".

    Raises:
        ValueError: the density does not fit the depth, the grid or the norm.
    """

    def __init__(
        self, in_width: int, out_width: int, home: tuple[int, int], registers: int, width: int, depth: int, head_width: int, flow: bool,
        time_period: float = 256.0, density: Density | None = None, norm: Literal["rms", "layer"] = "rms",
    ):  # fmt: skip
        super().__init__()
        self.home, self.flow = home, flow
        self.stem = nn.Linear(out_width, width) if flow else None
        self.query = None if flow else nn.Parameter(torch.empty(width))
        self.inward = nn.Linear(in_width, width)
        self.places = nn.Parameter(torch.empty(registers, width))
        self.dropped = nn.Parameter(torch.empty(width))
        self.null = nn.Parameter(torch.empty(width)) if flow else None
        self.time = TimeEmbedding(width, period=time_period) if flow else None
        adaln: Any = 2 if flow else False
        if density is None:
            self.transformer: nn.Module = _transformer(width, depth, head_width, norm, adaln)
        elif norm == "rms":
            self.transformer = DensityTransformer(density, width, depth, _heads(width, head_width), adaln)
        else:
            raise ValueError("a density has blocks with norm=rms; leave one of the two out")
        self.modulation = nn.Linear(width, 2 * width) if flow else None
        self.head = nn.Linear(width, out_width)
        xavier(self)
        for vector in (self.query, self.places, self.dropped, self.null):
            if vector is not None:
                nn.init.trunc_normal_(vector, std=NAME, a=-2 * NAME, b=2 * NAME)
        modulations = [block.modulation for block in self.transformer.blocks] + [self.modulation]
        for part in (self.head, *(modulations if flow else ())):
            nn.init.zeros_(part.weight)
        if density is not None:
            density.check([home])
            self.transformer.begin(zero_gates=flow)

    def registers(self, vectors: Tensor, kept: Tensor, null: Tensor | None = None) -> Tensor:
        """The tokens that `forward` takes.

        Args:
            vectors: float [B, N, in_width].
            kept: bool [B, N], False where a learned vector stands for a dropped register.
            null: bool [B], True in the rows without registers; None: in none.

        Returns:
            float [B, N, width].
        """
        x = self.inward(vectors.to(self.inward.weight.dtype))
        x = x + self.places.to(x.dtype)
        x = torch.where(kept[..., None], x, self.dropped.to(x.dtype))
        return x if null is None else torch.where(null[:, None, None], self.null.to(x.dtype), x)

    def forward(
        self,
        registers: Tensor,
        grid: tuple[int, int],
        noised: Tensor | None = None,
        t: Tensor | None = None,
        tap: tuple[int, list[Tensor]] | None = None,
    ) -> Tensor:
        """Predicts patches.

        Args:
            registers: float [B, N, width], of `registers`.
            grid: (h, w), of the patches.
            noised: float [B, P, out_width], of a flow.
            t: float [B], of a flow.
            tap: (number of a block, list); this block's output, not normalised, is appended to the list, of the patches alone.

        Returns:
            float [B, P, out_width].
        """
        place = positions_2d(grid, self.home, self.places.shape[1], device=registers.device).to(registers.dtype)
        if self.flow:
            x, vector = self.stem(noised) + place, self.time(t)
        else:
            x, vector = (self.query.to(place.dtype) + place).expand(len(registers), -1, -1), None
        patches = x.shape[1]
        x = torch.cat((x.to(registers.dtype), registers), 1)
        taps: dict[int, list[Tensor]] = {} if tap is None else {tap[0]: []}
        kinds = (patches, registers.shape[1]) if self.flow else None
        sparse = {"grid": grid, "t": t} if isinstance(self.transformer, DensityTransformer) else {}
        x = self.transformer(x, vector=vector, kinds=kinds, taps=taps, **sparse)[:, :patches]
        if tap is not None:
            tap[1].extend(y[:, :patches] for y in taps[tap[0]])
        if self.flow:
            shift, scale = self.modulation(F.silu(vector)).unsqueeze(1).chunk(2, -1)
            x = torch.addcmul(x + shift, x, scale)
        return self.head(x)


def xavier(module: nn.Module) -> None:
    """Matrices uniform with Xavier's variance, as in the release, and biases zero: features keep their size. With the 0.02 of gentok's
    language models a narrow encoder's registers hardly depend on the image at first, the codebook rounds that away, and the decoder does
    without."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _transformer(width: int, depth: int, head_width: int, norm: str, adaln: bool | int = False) -> Transformer:
    heads = _heads(width, head_width)
    if norm == "rms":
        return Transformer(width, depth, heads, causal=False, adaln=adaln)
    made = Transformer(width, depth, heads, 8 * width // 3, causal=False, qk_norm="layer", adaln=adaln, norm=norm, eps=1e-5)
    for block in made.blocks:
        block.attention.qk_eps = 1e-5
    return made


def _heads(width: int, head_width: int) -> int:
    if width % head_width:
        raise ValueError(f"a width must be a multiple of head_width={head_width}; got {width}")
    return width // head_width
