"""The unfinished part of a folder of samples: every process writes the parts that it draws, the first one joins them.

    OUT/.unfinished/request.json              what the parts are of; parts of another request are removed
                    part-00000064.safetensors tokens and what is counted, of the items from 64 on; the pixels, where they are joined too
                    0064.png, 0064.wav ...    files of single items, which are moved to OUT at the end

A part's file is written behind those of its items and renamed into place, so a run that was killed goes on behind the parts it has.
Memory holds one part, whatever their number.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.atomic import replacing, save_tensors
from gentok.sampling_plan import Samples
from gentok.types import Latents

__all__ = ["Part", "Parts", "write_npz"]


@dataclass
class Part:
    """What is kept of a part.

    Attributes:
        tensors: codes or latents, calls; where there are any: token_lengths, lengths, log_weight, pixels (uint8 [b, C, H, W])
            and waves (float32 [b, C, T], of the items that the grid shows).
        about: seconds, rank, network_calls, stats, texts, clipped.
    """

    tensors: dict[str, Tensor]
    about: dict[str, Any]

    @classmethod
    def of(cls, samples: Samples, **about: Any) -> Part:
        """All but the media. about: further entries."""
        tokens = samples.tokens
        kind, made = ("latents", tokens.values) if isinstance(tokens, Latents) else ("codes", tokens.codes)
        tensors = {kind: made, "calls": samples.calls, "token_lengths": tokens.lengths, "lengths": samples.lengths,
                   "log_weight": samples.log_weight}  # fmt: skip
        present = int(tokens.present.sum())
        counts = {"seconds": samples.seconds, "network_calls": samples.network_calls, "stats": samples.stats, "present": present}
        return cls({name: x for name, x in tensors.items() if x is not None}, {**counts, "texts": samples.texts, **about})


class Parts:
    """The parts of one request in `OUT/.unfinished`.

    Args:
        out: the folder of the samples.
    """

    def __init__(self, out: Path):
        self.folder = out / ".unfinished"

    def begin(self, request: Mapping[str, Any]) -> None:
        """Makes the folder, and keeps what is in it only where it is of the same request."""
        text = json.dumps(request, sort_keys=True, default=str)
        path = self.folder / "request.json"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def path(self, first: int) -> Path:
        """The file of the part whose first item is `first`."""
        return self.folder / f"part-{first:08d}.safetensors"

    def missing(self, parts: Sequence[range]) -> list[range]:
        """Those that have no file yet."""
        return [part for part in parts if not self.path(part.start).is_file()]

    def write(self, first: int, part: Part) -> None:
        """A part, whole or not at all."""
        tensors = {name: x.contiguous() for name, x in part.tensors.items()}
        with replacing(self.path(first)) as temporary:
            save_tensors(tensors, temporary, {"about": json.dumps(part.about, default=str)})

    def read(self, parts: Sequence[range], *names: str) -> Iterator[Part]:
        """Parts in order. names: of the tensors that are wanted; those that a part has not are left out."""
        from safetensors import safe_open

        for part in parts:
            with safe_open(self.path(part.start), "pt") as file:
                there = set(file.keys())
                yield Part({name: file.get_tensor(name) for name in names if name in there}, json.loads(file.metadata()["about"]))

    def joined(self, parts: Sequence[range], name: str, items: int | None = None) -> Tensor | None:
        """A tensor of all parts as one, or of the first `items` of them; None where they have none."""
        found, count = [], 0
        for part in self.read(parts, name):
            if name not in part.tensors or (items is not None and count >= items):
                break
            found.append(part.tensors[name])
            count += len(found[-1])
        if not found:
            return None
        longest = max(x.shape[-1] for x in found)
        if name == "waves":
            found = [torch.nn.functional.pad(x, (0, longest - x.shape[-1])) for x in found]
        return torch.cat(found)[:items]

    def remove(self) -> None:
        """The folder with all in it."""
        shutil.rmtree(self.folder)


def write_npz(path: Path, parts: Iterator[Part], n: int, labels: Tensor | None) -> None:
    """Images as ADM's evaluation reads them, part by part: arr_0 uint8 [n, H, W, 3], and arr_1 int64 [n], the classes, where there are any.

    Args:
        path: of the file.
        parts: with pixels of 1 channel, which is repeated, or 3.
        n: how many items there are.
        labels: int64 [n].
    """
    from numpy.lib import format as npy

    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
            for i, part in enumerate(parts):
                pixels = part.tensors["pixels"].movedim(1, -1)
                pixels = pixels.expand(*pixels.shape[:-1], 3).contiguous().numpy()
                if i == 0:
                    npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (n, *pixels.shape[1:])})
                file.write(pixels.data)
        if labels is not None:
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as file:
                npy.write_array(file, labels.numpy(), allow_pickle=False)
