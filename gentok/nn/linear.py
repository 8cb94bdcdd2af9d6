"""Products with weights, x W^T, by the kernel that is quickest on this machine where nothing is trained.

Processors without bfloat16 instructions multiply bfloat16 matrices row by row, and slowly. There activations stay in float32
(`activations`), only weights are bfloat16: a few rows go through the vector kernel, and more rows multiply blocks of the weights that are
widened to float32 while they lie in the processor's cache (12 layers of width 768 and 16,384 ids, 16 rows: 150 ms and not 350). The
wide path rounds nothing; the narrow one rounds its activations to bfloat16.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.precision import exporting

__all__ = ["Int8Linear", "Linear", "activations", "packed_product", "pays_to_pack", "product", "quantize", "widens"]

_NARROW = 3
"""Up to so many rows the vector kernel reads the weights once per row and is still the quicker one."""
_PACKED = 2**19
"""Weights of so many numbers are packed; smaller ones lie in the processor's cache as they are."""
_INTEGER_ROWS = 8
"""Up to so many rows torch's kernel for 8-bit weights is quicker than widened blocks."""
_BLOCK = 768
"""Rows of weights that are widened at once: 2 MB of float32 at a width of 768."""


@functools.lru_cache(maxsize=1)
def _has_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 on this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def widens(x: Tensor) -> bool:
    """Whether a tensor is of a type that this processor had better multiply in float32, and nothing is trained."""
    if x.dtype != torch.bfloat16 or not x.is_cpu or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    return not _has_bfloat16()


def activations(x: Tensor) -> Tensor:
    """x in the type that activations have where nothing is trained: float32 where x is bfloat16 and the processor cannot multiply that."""
    return x.float() if widens(x) else x


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x float [..., I] times weight float [O, I], plus bias float [O] -> [..., O], in x's type.

    x may be float32 where the weight is bfloat16, as `activations` gives it.
    """
    if not widens(weight):
        return F.linear(x, weight, bias)
    if x.numel() // x.shape[-1] <= _NARROW:
        out = F.linear(x.to(weight.dtype), weight).to(x.dtype)
    else:
        wide = x.float()
        out = torch.cat([F.linear(wide, block.float()) for block in weight.split(_BLOCK)], -1).to(x.dtype)
    return out if bias is None else out + bias.to(out.dtype)


def pays_to_pack(weight: Tensor, rows: int) -> bool:
    """Whether `packed_product` is the quicker one: of large float32 weights on the CPU, and some to many rows."""
    large = weight.is_cpu and weight.dtype == torch.float32 and weight.numel() >= _PACKED
    return large and not exporting() and rows > _NARROW and _has_packing()


@functools.lru_cache(maxsize=1)
def _has_packing() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def packed_product(weight: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
    """A function x float32 [..., I] -> [..., O] with a copy of the weights in the order in which oneDNN reads them (what torch.compile
    does with frozen weights). At 4 to 64 rows it takes two thirds of the time of a plain product; its last bits differ."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)

    def packed_linear(x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")

    return packed_linear


class Linear(nn.Linear):
    """A linear layer by `product`, without a bias unless one is asked for."""

    def __init__(self, width: int, out: int, bias: bool = False):
        super().__init__(width, out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x float [..., I] -> [..., O]."""
        return product(x, self.weight, self.bias)


class Int8Linear(nn.Module):
    """A linear layer whose weights are 8-bit integers with a scale per output; neither activations nor the bias are rounded to integers.

    W[o, i] is near scale[o] integer[o, i] with an error of scale[o] / 2 at most, scale[o] being max |W[o]| / 127, rounded up to a bfloat16.
    A few rows on a CPU go through torch's kernel, which reads bfloat16 activations; more rows multiply blocks that are widened.

    Args:
        weight: float [O, I].
        bias: float [O]; None: none.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        wide = weight.detach().float()
        scale = (wide.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        scale = (scale * (1 + 2**-8)).bfloat16()  # at least as large: no weight is clipped
        self.register_buffer("weight", (wide / scale.float()[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def _apply(self, fn: Any, recurse: bool = True) -> Int8Linear:
        """Moves, but never converts: the scale's type is the kernel's."""
        if self.bias is not None:
            self.bias.data = self.bias.data.to(fn(self.bias.data).device)
        self.weight, self.scale = self.weight.to(fn(self.weight).device), self.scale.to(fn(self.scale).device)
        return self

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """x float [..., I] -> [..., O] in x's type, of some rows of the weights."""
        weight, scale = self.weight[rows], self.scale[rows]
        count = x.numel() // x.shape[-1]
        if x.is_cpu and x.dtype != torch.float64 and count <= _INTEGER_ROWS and x.shape[-1] % 16 == 0:  # the kernel reads 16 at a time
            flat = x.reshape(count, -1).to(torch.bfloat16)
            out = torch._weight_int8pack_mm(flat, weight, scale).to(x.dtype).view(*x.shape[:-1], -1)
        else:
            blocks = zip(weight.split(_BLOCK), scale.split(_BLOCK))
            wide = x if x.dtype == torch.float64 else x.float()
            out = torch.cat([F.linear(wide, w.to(wide.dtype)).mul_(s.to(wide.dtype)) for w, s in blocks], -1).to(x.dtype)
        return out if self.bias is None else out + self.bias[rows].to(out.dtype)


def quantize(module: nn.Module) -> nn.Module:
    """Makes the weights of every Linear of this file inside a module 8-bit integers, in place; it is for inference from then on."""
    for name, part in module.named_children():
        if isinstance(part, Linear):
            setattr(module, name, Int8Linear(part.weight, part.bias))
        else:
            quantize(part)
    return module
