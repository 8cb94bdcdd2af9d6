"""Cached tokens: a set encoded once, by one tokenizer, into one safetensors file per split.

The file holds
    codes       uint8, uint16 or int32 [items, views, K, N]: code + 1, so that 0 is ABSENT; the smallest type that holds V
    latents     float32 [items, views, D, N] in their place, of a tokenizer without a codebook
    index       int64 [items]: each item's number within the set that was encoded
    lengths     int64 [items, views], where the tokenizer gives lengths
    condition.NAME[.x | .mask]   one row per item; x, vectors of a frozen encoder, in float16
and its header (safetensors metadata, key "gentok", JSON) the format number, TokenSpec with fingerprint, ConditionSpec, views, augment,
seed and the set's description. View 0 is the item as it is, view v > 0 is augmented by RowRNG.of(seed, index, step=v), which also draws
what a tokenizer draws that writes a part of the condition into its codes (of view 0, without the seed). The file is
written under a temporary name and then renamed: a kill at any time leaves the last good one. Reading maps it into memory; writing keeps
no more than a batch of it there.

Several processes encode a share each (`encode_set(rank=, world=)`) and one of them joins the shares (`join`);
gentok.data.sharded_encoding does both. The joined file is byte for byte what one process would have written, whatever their number.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.atomic import own_process, writable_folder
from gentok.data.growing_arrays import GrowingArrays
from gentok.data.progress import progress as progress_bar
from gentok.data.tensor_file import write_arrays
from gentok.data.token_dataset import FORMAT, read_token_file, stored_name
from gentok.errors import FormatError
from gentok.interfaces import Augmentation, MediaDataset
from gentok.rng import RowRNG
from gentok.types import ABSENT, Batch, Condition, Latents, Tokens, TokenSpec, Vectors, fingerprint

__all__ = [
    "encode_set", "join", "share_path", "sign_of_life", "alive_path", "cache_name", "item_rng",
    "stored_type",
]  # fmt: skip

_HEARTBEAT = 2.0
"""Seconds between two signs of life of a process that encodes its share."""


def cache_name(data: MediaDataset, spec: TokenSpec, *, views: int = 1, augment: Augmentation | None = None, seed: int = 0) -> str:
    """A file name that differs whenever the codes within could.

    Args:
        data: the set that is encoded.
        spec: the tokenizer's.
        views, augment, seed: those of `encode_set`.
    """
    how = [views, augment and augment.to_dict(), seed] if views > 1 else []
    word = fingerprint(FORMAT, {**spec.to_dict(), "decode_fingerprint": ""}, data.description, how)
    return f"{data.description.get('split', 'set')}-{word}.safetensors"


def item_rng(seed: int, index: Tensor, view: int) -> RowRNG:
    """The random numbers of one view of some items.

    Args:
        seed: of the augmentation; view 0 does not depend on it.
        index: int64 [B], their numbers within the set.
        view: 0, 1, ...
    """
    return RowRNG.of(seed if view else 0, index, step=view)


def share_path(path: str | os.PathLike[str], rank: int, world: int) -> Path:
    """Where process `rank` of `world` puts its share of the file `path`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.{rank}-of-{world}{path.suffix}")


def alive_path(path: str | os.PathLike[str], rank: int, world: int) -> Path:
    """The file that process `rank` touches while it encodes its share."""
    return Path(path).with_name(f".{share_path(path, rank, world).name}.alive")


def sign_of_life() -> str:
    """What a process writes into its file: its name, and a line that all processes of a machine share that were started together."""
    words = ("MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_RESTART_COUNT")
    return f"{own_process()}\n{os.getppid()} {' '.join(os.environ.get(word, '-') for word in words)}"


def encode_set(
    tokenizer: Any,
    data: MediaDataset,
    path: str | os.PathLike[str],
    *,
    views: int = 1,
    augment: Augmentation | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
) -> Path:
    """Encodes every item of a set into a file. Items that the set skips (unreadable files) are left out.

    Args:
        tokenizer: on `device` and in eval mode; its `spec` goes into the header.
        data: the set.
        path: the file.
        views: how many times each item is encoded.
        augment: what makes the views differ, from the second one on.
        seed: of the augmentation.
        batch_size: items that are encoded at once.
        progress: whether a bar is shown.
        device: where the tokenizer is.
        rank, world: with world > 1, only the rank-th of `world` equal, consecutive ranges of items is encoded, into
            share_path(path, rank, world); `join` makes `path` of the shares.

    Returns:
        The file that was written.

    Raises:
        ValueError: views without an augmentation, or nothing can be read.
        OSError: `path` cannot be written; nothing has been encoded then.
    """
    draws = tokenizer.written_condition.parts or getattr(tokenizer, "draws", False)  # views differ by themselves
    if views < 1 or (views > 1 and augment is None and not draws):
        raise ValueError(f"views={views}: 1, or more together with an augmentation that makes them differ")
    if not 0 <= rank < world:
        raise ValueError(f"rank={rank} of world={world}: ranks are 0..{world - 1}")
    if not len(data):
        raise ValueError("there is nothing to encode: the set is empty")
    spec: TokenSpec = tokenizer.spec
    vectors = sum(2 * part.max_length * part.width for _, part in data.condition_spec.parts if part.kind == "vectors")  # bytes of float16
    each = views * (spec.levels or spec.width or 1) * spec.positions * stored_type(spec).itemsize + vectors
    _check_space(Path(path), len(data) * each * 2)  # as it grows, and whole
    target, alive = (Path(path), None) if world == 1 else (share_path(path, rank, world), alive_path(path, rank, world))
    first, last = len(data) * rank // world, len(data) * (rank + 1) // world
    what = "encoding" if world == 1 else f"encoding, process {rank} of {world}"
    beat = -_HEARTBEAT
    with ExitStack() as stack:
        arrays = stack.enter_context(GrowingArrays(target))
        advance = stack.enter_context(progress_bar(what, views * (last - first), "items", progress and rank == 0))
        stack.enter_context(torch.inference_mode())
        for start in range(first, last, batch_size):
            if alive is not None and time.monotonic() - beat >= _HEARTBEAT:
                with suppress(OSError):  # others only wait less patiently
                    alive.write_text(sign_of_life())
                beat = time.monotonic()
            wanted = torch.arange(start, min(start + batch_size, last))
            found = _encode_batch(tokenizer, data, wanted, views, augment, seed, device, advance)
            arrays.add({key: value.cpu().numpy() for key, value in found.items()})
        items = len(arrays)
        store: dict[str, Any] = arrays.pieces() if items else {"index": [torch.zeros(0, dtype=torch.int64).numpy()]}
        if not items and world == 1:
            raise ValueError(f"there is nothing to encode: none of the {len(data)} items can be read")
        header = {
            "format": FORMAT,
            "kind": "tokens",
            "spec": spec.to_dict(),
            "condition_spec": data.condition_spec.to_dict(),
            "views": views,
            "augment": augment.to_dict() if augment and views > 1 else None,
            "seed": seed,
            "data": data.description,
            "items": items,
        }
        write_arrays(target, store, header)
    if alive is not None:  # what fails leaves it: others see that its process is gone
        alive.unlink(missing_ok=True)
    return target


def _encode_batch(
    tokenizer: Any, data: Any, wanted: Tensor, views: int, augment: Any, seed: int, device: Any, advance: Callable[[int], None]
) -> dict[str, Tensor]:
    """What the file holds of the items `wanted`; {} where none of them can be read."""
    batch = data.__getitems__(wanted.tolist())
    rows = (batch.index == wanted).nonzero()[:, 0]  # a set puts another item in the place of one that it cannot read
    advance(views * (len(wanted) - len(rows)))
    if not len(rows):
        return {}
    index, media = batch.index[rows], batch.media[rows]
    given = None if batch.lengths is None else batch.lengths[rows].to(device)
    codes, lengths = [], []
    for view in range(views):
        rng = item_rng(seed, index, view)
        seen = media if view == 0 or augment is None else augment(media, rng)
        part = Batch(seen.to(device), index, batch.condition.rows(rows).to(device), given)
        tokens = tokenizer.encode_batch(part, rng.fork("encoding").to(device))
        codes.append(_pack(tokens.validate(), tokenizer.spec))
        lengths.append(tokens.lengths)
        advance(len(rows))
    out = {stored_name(tokenizer.spec): torch.stack(codes, 1), "index": index, **_flatten_condition(batch.condition.rows(rows))}
    if lengths[0] is not None:
        out["lengths"] = torch.stack([n.cpu() for n in lengths], 1)
    return out


def join(path: str | os.PathLike[str], world: int) -> Path:
    """Joins the shares of all processes, and removes them.

    Args:
        path: the file to write, whole or not at all.
        world: number of processes.

    Returns:
        `path`.

    Raises:
        FileNotFoundError: a share is missing.
        FormatError: the shares are not of one set, tokenizer and settings.
        ValueError: no share has an item.
    """
    path = Path(path)
    shares = [read_token_file(share_path(path, rank, world)) for rank in range(world)]
    common = [{key: value for key, value in share.header.items() if key != "items"} for share in shares]
    for share, its in zip(shares, common):
        if its != common[0]:
            raise FormatError(f"{share.path} and {shares[0].path} are not shares of one file; delete them, and the set is encoded anew")
    full = [share for share in shares if share.header["items"]]
    if not full:
        raise ValueError("there is nothing to encode: no item of the set can be read")
    stored = [share.stored() for share in full]
    header = {**shares[0].header, "items": sum(share.header["items"] for share in full)}
    write_arrays(path, {key: [share[key] for share in stored] for key in stored[0]}, header)
    for share in shares:
        share.path.unlink(missing_ok=True)
    return path


def stored_type(spec: TokenSpec) -> torch.dtype:
    """The type of codes, or of latents, in the file."""
    if not spec.vocab_sizes:
        return torch.float32
    return torch.uint8 if spec.vocab <= 255 else torch.uint16 if spec.vocab <= 65535 else torch.int32


def _check_space(path: Path, needed: int) -> None:
    """An hour of encoding should not end at a full disk or a folder of somebody else."""
    free = shutil.disk_usage(writable_folder(path.parent, "paths.cache")).free
    if needed > free:
        raise OSError(
            f"the encoded set needs {needed / 1e6:,.0f} MB, {path.parent} has {free / 1e6:,.0f} MB left: "
            "free some space, or choose another disk with paths.cache"
        )


def _pack(tokens: Tokens | Latents, spec: TokenSpec) -> Tensor:
    """codes int64 [B, K, n] -> [B, K, N] in the file's type, code + 1; positions beyond n are ABSENT. Latents as they are."""
    if isinstance(tokens, Latents):
        return tokens.values.cpu().to(stored_type(spec))
    if tokens.masked.any():
        raise ValueError("the tokenizer's codes have UNKNOWN cells; only whole items are cached")
    return (tokens.padded(spec).codes.cpu() - ABSENT).to(stored_type(spec))


def _flatten_condition(condition: Condition) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, part in condition.parts.items():
        if isinstance(part, Vectors):
            half = part.x.half()
            if not bool(half.isfinite().all()):
                raise ValueError(f"vectors of the condition {name!r} reach {part.x.abs().max():g}: float16, in which they are kept, cannot")
            out[f"condition.{name}.x"], out[f"condition.{name}.mask"] = half, part.mask
        else:
            out[f"condition.{name}"] = part.ids
    return out
