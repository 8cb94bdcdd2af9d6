"""Sums and gathers over the processes of a run, asked for at call time.

Whether there are several processes is looked up at every call and never remembered: parts are often built before the process group exists,
and an answer kept from then would leave every process with statistics of its own. All ranks must make the same calls in the same order,
with tensors of the same shape. Needs torch alone.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["world_size", "rank", "all_sum", "all_gather"]


def world_size() -> int:
    """Processes of the default group; 1 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number in the default group; 0 where there is none."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_sum(x: Tensor) -> Tensor:
    """The sum of x over all processes, without gradient; x itself where there is one process, and never changed."""
    if world_size() == 1:
        return x
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def all_gather(x: Tensor) -> Tensor:
    """The x of all processes, in the order of their ranks, concatenated along the first axis; without gradient."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)
