"""Products with weights, x W^T, by the kernel that is quickest on this machine where nothing is trained.

Processors without bfloat16 instructions multiply bfloat16 matrices row by row, and slowly. There activations stay in float32
(`activations`), only weights are bfloat16: a few rows go through the vector kernel, and more rows multiply blocks of the weights that are
widened to float32 while they lie in the processor's cache (12 layers of width 768 and 16,384 ids, 16 rows: 150 ms and not 350). The
wide path rounds nothing; the narrow one rounds its activations to bfloat16.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Linear", "activations", "product"]

_NARROW = 3
"""Up to so many rows the vector kernel reads the weights once per row and is still the quicker one."""
_BLOCK = 768
"""Rows of weights that are widened at once: 2 MB of float32 at a width of 768."""


@functools.lru_cache(maxsize=1)
def _has_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 on this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _widens(x: Tensor) -> bool:
    if x.dtype != torch.bfloat16 or not x.is_cpu or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    return not _has_bfloat16()


def activations(x: Tensor) -> Tensor:
    """x in the type that activations have where nothing is trained: float32 where x is bfloat16 and the processor cannot multiply that."""
    return x.float() if _widens(x) else x


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x float [..., I] times weight float [O, I] -> [..., O], in x's type.

    x may be float32 where the weight is bfloat16, as `activations` gives it.
    """
    if not _widens(weight):
        return F.linear(x, weight)
    if x.numel() // x.shape[-1] <= _NARROW:
        return F.linear(x.to(weight.dtype), weight).to(x.dtype)
    wide = x.float()
    return torch.cat([F.linear(wide, block.float()) for block in weight.split(_BLOCK)], -1).to(x.dtype)


class Linear(nn.Linear):
    """A linear layer without a bias, by `product`."""

    def __init__(self, width: int, out: int):
        super().__init__(width, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x float [..., I] -> [..., O]."""
        return product(x, self.weight)
