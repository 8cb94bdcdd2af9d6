"""What codebooks compute over whole batches of vectors: the nearest rows in bounded memory, draws that all
processes agree on, means.

float32 tells rows apart that differ by about 1e-3 of their size, enough to learn; float64, at twice the time,
those that differ by more than their own rounding: what undoing a lookup takes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gentok.distributed import all_gather, all_sum
from gentok.precision import exporting
from gentok.rng import RowRNG

__all__ = [
    "TABLE_LIMIT", "block_bytes", "draw_for_all", "draw_vectors", "entropy_of_mean", "nearest_rows", "position_weights", "row_mean",
    "share_used",
]  # fmt: skip

TABLE_LIMIT = 1 << 22
"""Rows above which a computed table (FSQ, bits) is not written out."""


def block_bytes(device: torch.device) -> int:
    """Bytes of one block of scores: as large as a GPU likes it, small enough for a CPU's cache (three times
    faster there)."""
    return 4 << 20 if device.type == "cpu" else 64 << 20


def _largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """scores float [n, V] -> (value [n], int64 place [n]) of the first largest of every row, as
    scores.max(1): in float32 on a CPU by the first group that holds the largest, then its place there, which
    takes a fourth of the time."""
    width = 64
    if scores.device.type != "cpu" or scores.dtype != torch.float32 or scores.shape[1] % width or scores.shape[1] < 8 * width:
        return scores.max(1)
    groups = scores.unflatten(1, (-1, width))
    best, group = groups.amax(2).max(1)
    return best, group * width + groups[torch.arange(len(scores)), group].argmax(1)


@torch.no_grad()
def nearest_rows(x: Tensor, table: Tensor) -> Tensor:
    """The row of least Euclidean distance, the first of equal ones.

    argmax of x.t - |t|^2 / 2, in blocks of bounded size with a running maximum: memory grows with n + V,
    never with n * V. Both sides are centred first, so that a common offset costs no precision.

    Args:
        x: float [n, d].
        table: float [V, d], of the same dtype.

    Returns:
        int64 [n].
    """
    centre = table.mean(0)
    x, table = x - centre, table - centre
    bias = table.square().sum(1).mul_(-0.5)
    budget = block_bytes(x.device) // x.element_size()
    columns = min(len(table), max(1, budget // 64))
    rows = max(1, budget // columns)
    if exporting():  # in one block: the loop would fix the size of the batch
        return torch.addmm(bias, x, table.T).argmax(1)
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
    """Vectors of the batches of all processes, uniformly without replacement.

    Every vector gets a key from its own row's stream and the smallest keys win: how the batch is spread over
    processes does not matter, and all processes return the same. `rng` is not advanced.

    Args:
        x: float [B, M, d].
        rng: of the rows.
        want: how many vectors to draw.
        present: bool [B], rows to draw from; None: all.

    Returns:
        float [want, d], or fewer where there are fewer.
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


def draw_for_all(rng: RowRNG) -> Tensor:
    """float64 [2], uniform in [0, 1), the same on all processes and however the batch is spread: from the
    sum, over the rows of all processes, of one 64-bit word each."""
    words = all_sum(rng.words(2).sum(0))
    return ((words >> 12) & ((1 << 52) - 1)).double() / (1 << 52)


def share_used(codes: Tensor, vocab: int) -> Tensor:
    """codes int64 of any shape, below 0 where there is none -> float scalar: the share of the vocabulary that
    occurs."""
    if codes.is_meta:
        return torch.zeros((), device=codes.device)
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


def position_weights(x: Tensor, present: Tensor | None) -> Tensor:
    """x float [B, M, d] -> float [B, M]: 1 at the positions of rows where present bool [B] (None: all), else
    0."""
    return torch.ones_like(x[..., 0]) if present is None else present[:, None].to(x).expand(x.shape[:2])


def entropy_of_mean(total: Tensor, count: Tensor) -> Tensor:
    """The entropy, in nats, of the mean distribution over the vectors of all processes.

    Args:
        total: float, any shape: the sum of this process's distributions.
        count: float scalar: how many were added.

    Returns:
        A scalar: the value of all processes with the gradient of this one; averaged over processes, that is
        the gradient of the whole.
    """
    local = total / count.clamp(min=1)
    mean = local + (all_sum(total.detach()) / all_sum(count).clamp(min=1) - local.detach())
    return torch.special.entr(mean.clamp(min=1e-12)).sum()
