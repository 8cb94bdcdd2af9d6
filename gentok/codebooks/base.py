"""What codebooks share: projections, straight-through, a nearest-row search of bounded memory, and draws that all processes agree on.

Every codebook computes in float32, also under autocast: in bfloat16 two near rows tie, and an FSQ uses half of its codes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.distributed import all_gather
from gentok.interfaces import Codebook
from gentok.precision import no_autocast
from gentok.rng import RowRNG
from gentok.types import ABSENT, UNKNOWN, Grid, Quantized, Raster

__all__ = ["BaseCodebook", "SingleLevel", "draw_vectors", "fill", "float32", "nearest_rows", "no_autocast", "row_mean", "share_used",
           "straight_through"]  # fmt: skip

TABLE_LIMIT = 1 << 22
"""Rows above which a computed table (FSQ, bits) is not written out."""


def float32(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method of a codebook with autocast disabled, whichever device its first argument lies on."""

    @functools.wraps(method)
    def guarded(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with no_autocast(x.device):
            return method(self, x, *args, **kwargs)

    return guarded


def straight_through(value: Tensor, x: Tensor) -> Tensor:
    """`value` exactly, with the gradient of x. Both float [...]; x - x is 0, hence the order of the sum keeps every bit of value."""
    return value.detach() + (x - x.detach())


def block_bytes(device: torch.device) -> int:
    """Bytes of one block of scores: as large as a GPU likes it, small enough for a CPU's cache (three times faster there)."""
    return 4 << 20 if device.type == "cpu" else 64 << 20


def _largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """scores float [n, V] -> (value [n], int64 place [n]) of the first largest of every row, as scores.max(1): in float32 on a CPU by the
    first group that holds the largest, then its place there, which takes a fourth of the time."""
    width = 64
    if scores.device.type != "cpu" or scores.dtype != torch.float32 or scores.shape[1] % width or scores.shape[1] < 8 * width:
        return scores.max(1)
    groups = scores.unflatten(1, (-1, width))
    best, group = groups.amax(2).max(1)
    return best, group * width + groups[torch.arange(len(scores)), group].argmax(1)


@torch.no_grad()
def nearest_rows(x: Tensor, table: Tensor) -> Tensor:
    """x float [n, d], table float [V, d], of one dtype -> int64 [n]: the row of least Euclidean distance, the first of equal ones.

    argmax of x.t - |t|^2 / 2, in blocks of bounded size with a running maximum: memory grows with n + V, never with n * V. Both sides are
    centred first, so that a common offset costs no precision. float32 tells rows apart that differ by about 1e-3 of their size, enough to
    learn; float64, at twice the time, those that differ by more than their own rounding: what undoing a lookup takes.
    """
    centre = table.mean(0)
    x, table = x - centre, table - centre
    bias = table.square().sum(1).mul_(-0.5)
    budget = block_bytes(x.device) // x.element_size()
    columns = min(len(table), max(1, budget // 64))
    rows = max(1, budget // columns)
    found = torch.empty(len(x), dtype=torch.int64, device=x.device)
    for i in range(0, len(x), rows):
        part = x[i : i + rows]
        best, index = None, None
        for j in range(0, len(table), columns):
            score, k = _largest(torch.addmm(bias[j : j + columns], part, table[j : j + columns].T))
            if best is None:
                best, index = score, k
            else:
                better = score > best
                best, index = torch.where(better, score, best), torch.where(better, k + j, index)
        found[i : i + rows] = index
    return found


@torch.no_grad()
def draw_vectors(x: Tensor, rng: RowRNG, want: int, present: Tensor | None = None) -> Tensor:
    """Up to `want` of the vectors x float [B, M, d] of all processes, uniformly without replacement, float [<= want, d].

    Every vector gets a key from its own row's stream and the smallest keys win: how the batch is spread over processes does not matter, and
    all processes return the same. present bool [B]: rows to draw from. `noise` is not advanced.
    """
    batch, positions, width = x.shape
    keys = rng.fork("vectors").uniform(positions).to(x.device)
    if present is not None:
        keys = keys.masked_fill(~present[:, None], torch.inf)
    keys, order = keys.flatten().sort()
    keys, vectors = keys[:want], x.reshape(-1, width)[order[:want]]
    if len(keys) < want:  # every process must gather the same shape
        keys = F.pad(keys, (0, want - len(keys)), value=torch.inf)
        vectors = F.pad(vectors, (0, 0, 0, want - len(vectors)))
    keys, vectors = all_gather(keys), all_gather(vectors)
    keys, order = keys.sort()
    return vectors[order[:want][keys[:want].isfinite()]]


def share_used(codes: Tensor, vocab: int) -> Tensor:
    """codes int64 of any shape, below 0 where there is none -> float scalar: the share of the vocabulary that occurs."""
    if vocab > TABLE_LIMIT:
        used = codes[codes >= 0].unique().numel()
        return torch.tensor(used / vocab, device=codes.device)
    hit = torch.zeros(vocab + 1, device=codes.device)  # the last cell takes the absent ones
    hit.scatter_(0, torch.where(codes >= 0, codes, vocab).flatten(), 1.0)
    return hit[:vocab].mean()


def row_mean(x: Tensor, present: Tensor | None) -> Tensor:
    """Mean of x float [B, ...] over the rows where present bool [B] (None: all); 0 where there is none."""
    if present is None:
        return x.mean()
    per_row = x.flatten(1).mean(1)
    return (per_row * present).sum() / present.sum().clamp(min=1)


def fill(found: Tensor, given: Tensor | None) -> Tensor:
    """`found` in the cells where `given` (int64, same shape) is UNKNOWN, `given` elsewhere; `found` where nothing is given."""
    return found if given is None else torch.where(given == UNKNOWN, found, given)


def _project(linear: nn.Linear | None, x: Tensor) -> Tensor:
    """float32 whatever the weights' dtype is; x itself without a projection. Contiguous, so that equal rows give equal bits."""
    return x if linear is None else F.linear(x.contiguous(), linear.weight.float(), None if linear.bias is None else linear.bias.float())


class BaseCodebook(Codebook):
    """Attributes of every codebook, and the projections around its own space.

    dim: channels of the space in which codes are found. width: channels in and out; None, or dim, means no projections, else there is a
    linear map width -> dim before and dim -> width behind, both per position, with biases unless in_bias or out_bias is false.
    """

    levels = 1
    nested_levels = False
    invertible = True
    has_nearest = True
    """False where no nearest code exists: `nearest` then raises TypeError with a line."""

    def __init__(self, dim: int, width: int | None, vocab_sizes: Sequence[int], out_bias: bool = True, in_bias: bool = True):
        super().__init__()
        if dim < 1 or (width is not None and width < 1):
            raise ValueError(f"a codebook needs dim and width of at least 1 (width may be null); got dim={dim}, width={width}")
        self.dim = dim
        self.width = self.in_width = width or dim
        self.vocab_sizes = tuple(int(v) for v in vocab_sizes)
        self.parts: dict[str, slice] = {}
        self.projected = self.width != dim
        self.project_in = nn.Linear(self.width, dim, bias=in_bias) if self.projected else None
        self.project_out = nn.Linear(dim, self.width, bias=out_bias) if self.projected else None

    def reset_parameters(self) -> None:
        """Fresh parameters and statistics."""
        for module in (self.project_in, self.project_out):
            if module is not None:
                module.reset_parameters()

    def grid(self, h: int, w: int) -> Grid:
        """Where the codes of a feature map of h x w cells (M = h * w, row by row) lie: on the same raster. Raises ValueError with a line
        where such a map does not fit the codebook."""
        return Raster(h, w)

    @property
    def device(self) -> torch.device:
        return next((t.device for t in [*self.parameters(), *self.buffers()]), torch.device("cpu"))

    def inward(self, z: Tensor) -> Tensor:
        """z float [B, width, M] -> float32 [B, M, dim]. Raises ValueError on another shape."""
        if z.dim() != 3 or z.shape[1] != self.in_width:
            raise ValueError(f"{type(self).__name__} takes float [B, {self.in_width}, M]; got {tuple(z.shape)}")
        return _project(self.project_in, z.float().transpose(1, 2))

    def outward(self, rows: Tensor) -> Tensor:
        """rows float [..., dim] -> [..., width]."""
        return _project(self.project_out, rows)

    def check_codes(self, codes: Tensor) -> None:
        if codes.dim() != 3 or codes.shape[1] != self.levels or codes.dtype != torch.int64:
            raise ValueError(f"{type(self).__name__} takes codes int64 [B, {self.levels}, N]; got {codes.dtype} {tuple(codes.shape)}")

    def accumulate(self, codes: Tensor, scales: Sequence[int]) -> Tensor:
        """Raises TypeError: only a pyramid has scales."""
        raise TypeError(f"{type(self).__name__} has one scale: accumulate needs a pyramid codebook")


class SingleLevel(BaseCodebook):
    """A codebook of one level, K = 1, M = N: a subclass says how x becomes codes (`quantize`) and codes become rows (`rows`)."""

    def quantize(self, x: Tensor, present: Tensor | None, rng: RowRNG | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """x float32 [B, M, dim], present bool [B] or None -> (codes int64 [B, M], values float32 [B, M, dim] straight-through to x,
        losses averaged over present rows). Codes of rows that are not present are ignored."""
        raise NotImplementedError

    def rows(self, codes: Tensor) -> Tensor:
        """codes int64 [...], all >= 0 -> float32 [..., dim], without gradient to the rows: what training decides by its own loss."""
        raise NotImplementedError

    def learnt_rows(self, codes: Tensor) -> Tensor:
        """The same numbers as `rows`, of codes of 0 or more, with gradient where a gradient trains them: for codebooks around this one."""
        return self.rows(codes)

    def search(self, x: Tensor) -> Tensor:
        """x float32 [n, dim], a point of the space that `rows` returns -> int64 [n]: the nearest row's code."""
        raise NotImplementedError

    @float32
    def forward(self, z: Tensor, *, n_levels: Tensor | None = None, rng: RowRNG | None = None) -> Quantized:
        """z float [B, width, M] -> Quantized. n_levels int64 [B]: 0 leaves a row out (codes ABSENT, vectors 0, no loss, no statistics)."""
        x = self.inward(z)
        present = None if n_levels is None else n_levels > 0
        codes, values, losses = self.quantize(x, present, rng)
        vectors = self.outward(values)
        if present is not None:
            codes = codes.masked_fill(~present[:, None], ABSENT)
            vectors = vectors.masked_fill(~present[:, None, None], 0.0)
        return Quantized(vectors.transpose(1, 2), codes[:, None], losses, share_used(codes, self.vocab_sizes[0])[None])

    @float32
    def lookup(self, codes: Tensor) -> Tensor:
        """codes int64 [B, 1, N] -> vectors float32 [B, width, N]; 0 where a code is below 0."""
        self.check_codes(codes)
        codes = codes[:, 0]
        vectors = self.outward(self.rows(codes.clamp(min=0)))
        return vectors.masked_fill((codes < 0)[..., None], 0.0).transpose(1, 2)

    @float32
    @torch.no_grad()
    def nearest(self, vectors: Tensor, given: Tensor | None = None) -> Tensor:
        """vectors float [B, width, N], in the space that lookup returns -> codes int64 [B, 1, N]; with `given`, only its UNKNOWN cells."""
        x = vectors.float().transpose(1, 2).reshape(-1, vectors.shape[1])
        found = nearest_rows(x.double(), self.table().double()) if self.projected else self.search(x)
        return fill(found.view(vectors.shape[0], 1, vectors.shape[2]), given)

    def table(self, level: int = 0) -> Tensor:
        """float32 [V, width]: the rows as lookup adds them. Raises ValueError where there are too many to write out."""
        if self.vocab_sizes[0] > TABLE_LIMIT:
            raise ValueError(
                f"a table of {self.vocab_sizes[0]} rows is too large to write out; use a codebook without width, or a smaller one"
            )
        device = self.device
        with no_autocast(device):
            return self.outward(self.rows(torch.arange(self.vocab_sizes[0], device=device)))
