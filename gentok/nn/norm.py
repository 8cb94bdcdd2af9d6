"""RMSNorm (Zhang and Sennrich, arXiv 1910.07467): y = w * x / sqrt(mean(x^2) + eps).

torch's own backward on the CPU is a chain of a dozen full-size operations (6 ms for 4,096 x 256 on two cores, where its LayerNorm takes
0.8), so the CPU has a backward written out here; elsewhere, and where torch.compile makes the kernels, torch's own is used. Under autocast
the result is already of the autocast type, which saves the next linear layer a copy.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["RMSNorm", "constant", "make_norm", "rms_norm"]


@functools.lru_cache(maxsize=256)
def constant(value: float, dtype: torch.dtype) -> Tensor:
    """A number as a tensor: made once, it costs a third of what torch takes to wrap it in every call."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=dtype, device="cpu")


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    norm = torch.linalg.vector_norm(x, 2, -1, True)
    if not x.is_cpu:
        return norm.square_().mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()
    return norm.square_().mul_(constant(1.0 / x.shape[-1], x.dtype)).add_(constant(eps, x.dtype)).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    """dx = r (g w - n mean(g w n)) with r = 1 / rms and n = r x; dw = sum(g n)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
        r = _inverse_rms(x, eps).to(x.dtype)
        ctx.save_for_backward(x, r, weight)
        n = x * r
        return (n if weight is None else n.mul_(weight.to(n.dtype))).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, r, weight = ctx.saved_tensors
        n = x * r
        g = g.to(x.dtype)
        gn = g * n
        dweight = None
        if weight is None:
            mean = gn.sum(-1, keepdim=True)
        else:
            if ctx.needs_input_grad[1]:
                dweight = gn.sum_to_size(weight.shape).to(weight.dtype)
            weight = weight.to(g.dtype)
            mean = (gn * weight).sum(-1, keepdim=True)
            g = g * weight
        return torch.addcmul(g, n, mean, value=-1.0 / x.shape[-1]).mul_(r), dweight, None, None


def rms_norm(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
    """Divides by the root of the mean square.

    Args:
        x: float [..., D].
        weight: broadcastable to x; None: 1.
        eps: added to the mean square.

    Returns:
        [..., D], of the autocast type where autocast is on, else of x's.
    """
    device = x.device.type
    if device not in ("cpu", "cuda", "meta"):
        y = F.rms_norm(x, x.shape[-1:], eps=eps)
        return y if weight is None else y * weight.to(y.dtype)
    autocast = device != "meta" and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
    if device != "cuda" and not torch.compiler.is_compiling():
        if torch.is_grad_enabled():
            return _RMSNorm.apply(x, weight, eps, dtype)
        y = x * _inverse_rms(x, eps).to(x.dtype)
        return (y if weight is None else y.mul_(weight.to(y.dtype))).to(dtype)
    if weight is not None and weight.dim() == 1:
        return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps).to(dtype)
    y = F.rms_norm(x, x.shape[-1:], eps=eps)
    return (y if weight is None else y * weight.to(y.dtype)).to(dtype)


class RMSNorm(nn.Module):
    """Normalises the last dimension, [..., width] -> the same shape.

    Args:
        width: D.
        affine: whether there is a weight; adaLN gives one itself.
        eps: added to the mean square.
    """

    def __init__(self, width: int, affine: bool = True, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def make_norm(kind: str, width: int, affine: bool = True, eps: float = 1e-6) -> nn.Module:
    """An RMSNorm (rms) or a LayerNorm (layer, with a bias) of so many channels. Raises ValueError on another kind."""
    if kind not in ("rms", "layer"):
        raise ValueError(f"norm must be rms or layer; got {kind!r}")
    return RMSNorm(width, affine, eps) if kind == "rms" else nn.LayerNorm(width, eps, elementwise_affine=affine)
