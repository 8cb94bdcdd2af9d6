"""Keys and values of a causal transformer, kept between calls: pre-allocated, with rows at positions of their own.

A row's slots are [prefix | step 0, step 1, ...]: fed step i lies in slot prefix + i of every layer. A call writes its S steps into the
slots at[b] .. at[b] + S - 1 and sees what was committed before `at[b]` and its own steps' ancestors. So forgetting costs nothing (the next
call overwrites), and keeping a path through a tree is one gather per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["KVCache", "Window", "ancestors"]


def ancestors(parents: Tensor) -> Tensor:
    """parents int64 [B, S], parents[b, s] < s, -1 at a root -> bool [B, S, S]: [b, s, i] where i is s or an ancestor of s.

    Raises ValueError where a parent does not come before its child.
    """
    steps = parents.shape[1]
    if bool((parents >= torch.arange(steps, device=parents.device)).any()):
        raise ValueError("parents must come before their children: parents[b, s] < s, -1 for the last committed step")
    reach = torch.eye(steps, device=parents.device).repeat(parents.shape[0], 1, 1)
    reach.scatter_add_(2, parents.clamp(min=0)[..., None], (parents >= 0).float()[..., None])
    for _ in range(max(steps - 1, 1).bit_length()):  # each squaring doubles the depth that is reached
        reach = (reach @ reach).clamp_(max=1.0)
    return reach > 0


def _rows(tensor: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if tensor is None else tensor[rows]


@dataclass
class Window:
    """Where a call's steps lie and what they see; built once, used by every layer.

    length: slots 0 .. length - 1 are attended. start: the first slot, where it is the same in every row, else None and `slots` int64
    [B, S] says where. depth int64 [B, S] or None: fed step of each step less `at`; None means 0, 1, ... mask bool [B or 1, 1, S, length] or
    None; causal: the plain triangle suffices (and mask is None). rows int64 [B, 1], beside `slots`.
    """

    length: int
    start: int | None
    slots: Tensor | None
    depth: Tensor | None
    mask: Tensor | None
    causal: bool
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        if self.slots is not None:
            self.rows = torch.arange(len(self.slots), device=self.slots.device)[:, None]


class KVCache:
    """keys and values [B, H, prefix + capacity, d] per layer, allocated when a layer first writes, in the type that it writes.

    device: where it lies; `at` may lie on the CPU nevertheless. None: where `at` is.
    prefix: slots before step 0; prefix_mask bool [B, prefix], True where there is something, or None where all are filled.
    context: per layer (keys, values) [B, H, L, d] for cross-attention, with context_mask bool [B, 1, 1, L]; modulation: per layer what
    adaLN needs.
    """

    def __init__(
        self, depth: int, batch: int, capacity: int, prefix: int = 0, prefix_mask: Tensor | None = None, device: torch.device | None = None
    ):
        self.device, self.batch, self.capacity, self.prefix, self.prefix_mask = device, batch, capacity, prefix, prefix_mask
        self.keys: list[Tensor | None] = [None] * depth
        self.values: list[Tensor | None] = [None] * depth
        self.context: list[tuple[Tensor, Tensor]] | None = None
        self.context_mask: Tensor | None = None
        self.modulation: list[Tensor] | None = None
        self.blocks: Sequence[Any] | None = None  # the transformer's blocks as functions (nn/decoding.py), () where it has none
        self.rotation: tuple[Tensor, Tensor] | None = None  # of all fed steps, as wide as a head
        self.begin: Tensor | None = None  # float [B, 1, D], what fed step 0 reads where that depends on the condition
        self.names: Tensor | None = None  # float [S, D], what the fed steps' names add to their embedding
        self.follower: Any | None = None  # where the rows stand in a grammar (gentok/grammar.py)
        self.heads: Sequence[Any] | None = None  # of every level, where some ids alone are scored (generators/trimmed_head.py)

    def window(self, at: Tensor, steps: int, parents: Tensor | None = None) -> Window:
        """at int64 [B] (-prefix for the prefix itself), parents int64 [B, S] or None. Raises ValueError beyond the capacity."""
        where = at.tolist()  # of an `at` on the CPU: the device's queue goes on
        if len(where) != self.batch:
            raise ValueError(f"this cache holds {self.batch} rows; `at` has {len(where)}")
        if max(where) + steps > self.capacity:
            need = max(where) + steps
            raise ValueError(f"the cache has room for {self.capacity} steps; this call needs {need}: start it with a larger capacity")
        length = self.prefix + max(where) + steps
        uniform = min(where) == max(where)
        start = self.prefix + where[0] if uniform else None
        device = at.device if self.device is None else self.device
        if not uniform or parents is not None or self.prefix_mask is not None:
            at = at.to(device, non_blocking=True)
        slots = None if uniform else (self.prefix + at)[:, None] + torch.arange(steps, device=device)
        if uniform and parents is None and self.prefix_mask is None:
            if steps == 1 or start == 0:
                return Window(length, start, slots, None, None, causal=steps > 1)
            mask = torch.ones(steps, length, dtype=torch.bool, device=device).tril(start)
            return Window(length, start, slots, None, mask[None, None], causal=False)
        base = (self.prefix + at)[:, None]
        offset = torch.arange(length, device=device) - base  # [B, length]: a slot as an index into this call, < 0 before it
        if parents is None:
            depth = None
            mask = offset[:, None] <= torch.arange(steps, device=device)[:, None]
        else:
            own = ancestors(parents)
            depth = own.sum(2) - 1
            mask = own.gather(2, offset.clamp(0, steps - 1)[:, None].expand(-1, steps, -1)) & (offset < steps)[:, None]
            mask = mask | (offset < 0)[:, None]
        if self.prefix_mask is not None:
            mask = mask.clone()
            seen = min(self.prefix, length)
            mask[..., :seen] &= self.prefix_mask[:, None, :seen]
        return Window(length, start, slots, depth, mask[:, None], causal=False)

    def write(self, layer: int, key: Tensor, value: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """key, value [B, H, S, d] -> everything that this call attends, [B, H, length, d]."""
        if self.keys[layer] is None:
            # Zeros and not garbage: a masked slot still enters the softmax's product, and 0 * nan is nan.
            shape = (self.batch, key.shape[1], self.prefix + self.capacity, key.shape[3])
            self.keys[layer], self.values[layer] = key.new_zeros(shape), value.new_zeros(shape)
        keys, values = self.keys[layer], self.values[layer]
        if window.start is not None:
            keys.narrow(2, window.start, key.shape[2]).copy_(key)
            values.narrow(2, window.start, key.shape[2]).copy_(value)
        else:
            keys[window.rows, :, window.slots] = key.transpose(1, 2)
            values[window.rows, :, window.slots] = value.transpose(1, 2)
        return keys.narrow(2, 0, window.length), values.narrow(2, 0, window.length)

    def take(self, rows: Tensor) -> KVCache:
        """rows int64 [b] -> a cache of these rows, with memory of its own."""
        out = KVCache(len(self.keys), len(rows), self.capacity, self.prefix, _rows(self.prefix_mask, rows), self.device)
        out.keys, out.values = [_rows(k, rows) for k in self.keys], [_rows(v, rows) for v in self.values]
        out.context = None if self.context is None else [(k[rows], v[rows]) for k, v in self.context]
        out.context_mask = _rows(self.context_mask, rows)
        out.modulation = None if self.modulation is None else [m[:, rows] for m in self.modulation]
        out.rotation, out.names, out.begin = self.rotation, self.names, _rows(self.begin, rows)
        out.follower = None if self.follower is None else self.follower.take(rows)
        return out

    def put(self, rows: Tensor, other: KVCache) -> None:
        """The rows int64 [b] become those of `other`. Raises ValueError where it has another layout."""
        if (other.batch, other.capacity, other.prefix) != (len(rows), self.capacity, self.prefix):
            raise ValueError(
                f"a cache of {other.batch} rows, {other.capacity} steps and {other.prefix} slots before them does not fit {len(rows)} rows "
                f"of one of {self.capacity} steps and {self.prefix} slots"
            )
        pairs = [*zip(self.keys, other.keys), *zip(self.values, other.values)]
        pairs += [(self.prefix_mask, other.prefix_mask), (self.context_mask, other.context_mask), (self.begin, other.begin)]
        pairs += [pair for ours, theirs in zip(self.context or (), other.context or ()) for pair in zip(ours, theirs)]
        pairs += [(ours.transpose(0, 1), theirs.transpose(0, 1)) for ours, theirs in zip(self.modulation or (), other.modulation or ())]
        for ours, theirs in pairs:
            if ours is not None:
                ours[rows] = theirs
        if self.follower is not None:
            self.follower.put(rows, other.follower)

    def commit(self, at: Tensor, path: Tensor) -> None:
        """path int64 [B, P], -1 beyond each row's end: step path[b, j] of the last call becomes fed step at[b] + j."""
        at, order = at.to(path.device), torch.arange(path.shape[1], device=path.device)
        target = (self.prefix + at)[:, None] + order
        source = torch.where(path >= 0, (self.prefix + at)[:, None] + path, target)
        rows, moved = torch.nonzero(source != target, as_tuple=True)
        if len(rows) == 0:
            return
        source, target = source[rows, moved], target[rows, moved]
        for buffer in (*self.keys, *self.values):
            if buffer is not None:
                buffer[rows, :, target] = buffer[rows, :, source]  # the right side is a copy: paths may overlap
