"""The maps of a frozen teacher, made once for all images of a run and kept on disk: on a CPU they would cost more than the training.

Each set is cut into blocks of BLOCK pictures; each is a file MAPS-HASH-FIRST.safetensors with the images' keys
(gentok.nn.feature_cache) and their
maps in float16, written whole or not at all, by the processes of the run in turn. So a run that was killed goes on with the blocks that it
had, and runs with the same pictures, network and settings share them. A file's name is a hash of all of these.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gentok.data.datasets import batches
from gentok.data.progress import progress
from gentok.data.tensor_file import read_layout, write_arrays
from gentok.distributed import rank, world_size
from gentok.nn.feature_cache import MapMemory, image_keys
from gentok.nn.semantic import SemanticNetwork
from gentok.types import fingerprint

__all__ = ["BLOCK", "map_bytes", "remember"]

BLOCK = 1000
FORMAT = 1


class _Blocks:
    """Arrays one after the other along their first axis, read by rows."""

    def __init__(self, arrays: list[Any]):
        self.arrays = arrays
        self.ends = list(itertools.accumulate(map(len, arrays)))

    def __len__(self) -> int:
        return sum(len(a) for a in self.arrays)

    def __getitem__(self, rows: Any) -> Any:
        import numpy as np

        out = np.empty((len(rows), *self.arrays[0].shape[1:]), self.arrays[0].dtype)
        which = np.searchsorted(self.ends, rows, side="right")
        for i in np.unique(which):
            here = which == i
            out[here] = self.arrays[i][rows[here] - self.ends[i] + len(self.arrays[i])]
        return out


def map_bytes(items: int, width: int, grid: tuple[int, int]) -> int:
    """Bytes on disk of maps.

    Args:
        items: pictures.
        width: channels of a map.
        grid: (h, w) of a map.
    """
    return 2 * items * width * math.prod(grid)


class _Slice:
    """Items first, first + 1, ... of a set, as a set."""

    def __init__(self, data: Any, first: int, count: int):
        self.data, self.first, self.count = data, first, count

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, draws: list[int]) -> Any:
        return self.data.__getitems__([self.first + d for d in draws])


def remember(
    network: SemanticNetwork,
    settings: dict[str, Any],
    sets: Sequence[Any],
    grid: tuple[int, int],
    folder: str | Path,
    device: torch.device | str = "cpu",
) -> MapMemory:
    """Gives a frozen network the maps of all pictures, made where they are not there yet. To be called by every process.

    Args:
        network: which is frozen.
        settings: its configuration.
        sets: data sets of the pictures.
        grid: (h, w) of the maps.
        folder: where they are kept.
        device: on which they are made.

    Raises:
        OSError: `folder` cannot be written.
    """
    network.memory.value = None  # what is written are the network's own words
    network.name_weights()  # a teacher beside the network that is quantized has not been asked for its name yet
    blocks = []
    for data in sets:
        word = fingerprint(FORMAT, settings, network.identity, data.description, list(grid))
        for start in range(0, len(data), BLOCK):
            path = Path(folder) / f"maps-{word}-{start:07d}.safetensors"
            blocks.append((path, _Slice(data, start, min(BLOCK, len(data) - start))))
    mine = [block for block in blocks if not block[0].is_file()][rank() :: world_size()]
    with progress("teacher maps", sum(len(part) for _, part in mine), "images", bool(mine)) as advance:
        for path, part in mine:
            keys, maps = _make(network, part, grid, device, advance)
            header = {"format": FORMAT, "kind": "maps", "data": part.data.description, "network": settings}
            write_arrays(path, {"keys": [keys], "maps": [maps]}, header)
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
    arrays = [read_layout(path, "maps", FORMAT, "file of teacher maps").maps() for path, _ in blocks]
    keys = torch.cat([torch.from_numpy(a["keys"].copy()) for a in arrays])
    network.memory.value = MapMemory(keys, _Blocks([a["maps"] for a in arrays]))
    return network.memory.value


def _make(network: SemanticNetwork, data: Any, grid: tuple[int, int], device: Any, advance: Any) -> tuple[Any, Any]:
    import numpy as np

    keys: list[Tensor] = []
    maps: list[Tensor] = []
    for batch in batches(data, 50):
        media = batch.media.to(device)
        keys.append(image_keys(media).cpu())
        maps.append(network(media, grid).half().cpu())
        advance(len(media))
    return torch.cat(keys).numpy().astype(np.int64), torch.cat(maps).numpy()
