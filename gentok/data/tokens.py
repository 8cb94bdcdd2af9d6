"""Cached tokens: a set encoded once, by one tokenizer, into one safetensors file per split.

The file holds
    codes       uint8, uint16 or int32 [items, views, K, N]: code + 1, so that 0 is ABSENT; the smallest type that holds V
    index       int64 [items]: each item's number within the set that was encoded
    lengths     int64 [items, views], where the tokenizer gives lengths
    condition.NAME[.x | .mask]   one row per item
and its header (safetensors metadata, key "gentok", JSON) the format number, TokenSpec with fingerprint, ConditionSpec, views, augment,
seed and the set's description. View 0 is the item as it is, view v > 0 is augmented by Noise.of(seed, index, step=v). The file is
written under a temporary name and then renamed: a kill at any time leaves the last good one. Reading maps it into memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.data.progress import progress as progress_bar
from gentok.data.sets import locate
from gentok.noise import Noise
from gentok.tokens import ABSENT, Batch, Class, Condition, ConditionSpec, FormatError, Ids, Latents, Tokens, TokenSpec, Vectors, fingerprint

__all__ = ["FORMAT", "encode_set", "cache_name", "TokenSet"]

FORMAT = 1
_HEADER_LIMIT = 100_000_000
_TYPES = {"U8": "uint8", "U16": "uint16", "I32": "int32", "I64": "int64", "F32": "float32", "BOOL": "bool"}


def _augment_dict(augment: Any) -> Any:
    return augment.to_dict() if hasattr(augment, "to_dict") else None if augment is None else str(augment)


def cache_name(data: Any, spec: TokenSpec, *, views: int = 1, augment: Any = None, seed: int = 0) -> str:
    """A file name that differs whenever the codes within could: by tokenizer, items, views, augmentation and seed."""
    how = [views, _augment_dict(augment), seed] if views > 1 else []
    word = fingerprint(FORMAT, {**spec.to_dict(), "decode_fingerprint": ""}, data.description, how)
    return f"{data.description.get('split', 'set')}-{word}.safetensors"


def encode_set(
    tokenizer: Any,
    data: Any,
    path: str | os.PathLike[str],
    *,
    views: int = 1,
    augment: Callable[[Tensor, Noise], Tensor] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
    device: torch.device | str = "cpu",
) -> Path:
    """Encodes every item of a set `views` times into the file `path`, and returns it.

    The tokenizer must be on `device`, in eval mode; its `spec` goes into the header. Items that the set skips (unreadable files) are
    left out. Raises ValueError where views are asked for without an augmentation, and where there are no tokens to store (latents).
    """
    if views < 1 or (views > 1 and augment is None):
        raise ValueError(f"views={views}: 1, or more together with an augmentation that makes them differ")
    if not len(data):
        raise ValueError("there is nothing to encode: the set is empty")
    spec: TokenSpec = tokenizer.spec
    store: dict[str, list[Tensor]] = {}
    with progress_bar("encoding", views * len(data), "items", progress) as advance, torch.inference_mode():
        for start in range(0, len(data), batch_size):
            wanted = torch.arange(start, min(start + batch_size, len(data)))
            batch = data.__getitems__(wanted.tolist())
            rows = (batch.index == wanted).nonzero()[:, 0]  # a set puts another item in the place of one that it cannot read
            advance(views * (len(wanted) - len(rows)))
            if not len(rows):
                continue
            index, media = batch.index[rows], batch.media[rows]
            given = None if batch.lengths is None else batch.lengths[rows].to(device)
            codes, lengths = [], []
            for view in range(views):
                seen = media if view == 0 else augment(media, Noise.of(seed, index, step=view))
                tokens = tokenizer.encode(seen.to(device), given)
                if isinstance(tokens, Latents):
                    raise ValueError("this tokenizer encodes to latents, which are not cached: train its generator from media (cache off)")
                codes.append(_pack(tokens.validate(), spec))
                lengths.append(tokens.lengths)
                advance(len(rows))
            _append(store, "codes", torch.stack(codes, 1))
            _append(store, "index", index)
            if lengths[0] is not None:
                _append(store, "lengths", torch.stack([n.cpu() for n in lengths], 1))
            for key, value in _flatten_condition(batch.condition.rows(rows)).items():
                _append(store, key, value)
    header = {
        "format": FORMAT,
        "kind": "tokens",
        "spec": spec.to_dict(),
        "condition_spec": data.condition_spec.to_dict(),
        "views": views,
        "augment": _augment_dict(augment) if views > 1 else None,
        "seed": seed,
        "data": data.description,
        "items": sum(len(part) for part in store["codes"]),
    }
    return _write({key: torch.cat(parts) for key, parts in store.items()}, header, Path(path))


def _append(store: dict[str, list[Tensor]], key: str, value: Tensor) -> None:
    store.setdefault(key, []).append(value.cpu().clone())


def _pack(tokens: Tokens, spec: TokenSpec) -> Tensor:
    """codes int64 [B, K, n] -> [B, K, N] in the file's type, code + 1; positions beyond n are ABSENT."""
    if tokens.holes.any():
        raise ValueError("the tokenizer's codes have UNKNOWN cells; only whole items are cached")
    packed = torch.zeros(tokens.batch, spec.levels, spec.positions, dtype=torch.int32)
    packed[:, :, : tokens.codes.shape[2]] = (tokens.codes + 1).cpu()
    return packed.to(torch.uint8 if spec.vocab <= 255 else torch.uint16 if spec.vocab <= 65535 else torch.int32)


def _flatten_condition(condition: Condition) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, part in condition.parts.items():
        if isinstance(part, Vectors):
            out[f"condition.{name}.x"], out[f"condition.{name}.mask"] = part.x.float(), part.mask
        else:
            out[f"condition.{name}"] = part.ids
    return out


def _write(tensors: dict[str, Tensor], header: Mapping[str, Any], path: Path) -> Path:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, metadata={"gentok": json.dumps(header)})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


# ---------------------------------------------------------------------------------------------------------------- reading


def _read_layout(path: Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """(gentok's header, safetensors' table of tensors, where the data begins). Raises FormatError with a line on any other file."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no token file {path}; train with a tokenizer (tokenizer.ckpt=PATH) to have it encoded")
    size = path.stat().st_size
    foreign = FormatError(f"{path} is no token file of gentok; delete it, and it is encoded anew")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _HEADER_LIMIT:
            raise foreign
        raw = file.read(length)
    try:
        table = json.loads(raw)
        header = json.loads(table.pop("__metadata__")["gentok"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise foreign from error
    if header.get("format", 0) > FORMAT:
        raise FormatError(f"{path} has the token format {header['format']}, this gentok reads up to {FORMAT}; upgrade gentok")
    if header.get("kind") != "tokens" or "codes" not in table:
        raise foreign
    expected = 8 + length + max(entry["data_offsets"][1] for entry in table.values())
    if size != expected:
        raise FormatError(f"{path} is cut short or damaged: {expected:,} bytes expected, {size:,} there; delete it, and it is encoded anew")
    return header, table, 8 + length


class TokenSet:
    """The cached tokens of one split: draws -> Batch(media=None, tokens, condition, index).

    The view of a draw is a pure function of (seed, epoch, index): within every `views` epochs each item shows each view once, in an
    order of its own. spec: the TokenSpec of the tokenizer that the generator belongs to; codes of another one are refused (FormatError).
    Attributes: spec, condition_spec, media_shape, views, header, description.
    """

    def __init__(self, path: str | os.PathLike[str], spec: TokenSpec | None = None, seed: int = 0):
        self.path, self.seed = Path(path), seed
        self.header, self._table, self._start = _read_layout(self.path)
        self.spec = TokenSpec.from_dict(self.header["spec"])
        self.condition_spec = ConditionSpec.from_dict(self.header["condition_spec"])
        if spec is not None and not self.spec.same_codes(spec):
            raise FormatError(
                f"{self.path} holds the codes of another tokenizer: the file has {self.spec.describe()}, the tokenizer {spec.describe()}; "
                "encode the set with this tokenizer (delete the file, or name another)"
            )
        self.views, self.description = int(self.header["views"]), dict(self.header["data"])
        self.media_shape = self.spec.media_shape
        self._arrays: dict[str, Any] | None = None

    def __len__(self) -> int:
        return int(self.header["items"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}  # a worker maps the file itself; a pickled map would be a copy of it

    def _rows(self, key: str, rows: Any) -> Tensor:
        """Some rows of one stored tensor, copied out of the mapped file."""
        import numpy as np

        if self._arrays is None:
            self._arrays = {
                name: np.memmap(self.path, _TYPES[entry["dtype"]], "r", self._start + entry["data_offsets"][0], tuple(entry["shape"]))
                for name, entry in self._table.items()
            }
        out = self._arrays[key][rows]
        return torch.from_numpy(np.ascontiguousarray(out.astype(np.int64) if out.dtype.kind in "ui" else out))

    def view_of(self, index: Tensor, epoch: Tensor) -> Tensor:
        """int64 [B]: the view of each (item, epoch)."""
        view = torch.zeros_like(index)
        if self.views > 1:
            for turn in (epoch // self.views).unique().tolist():
                now = epoch // self.views == turn
                order = Noise.of(self.seed, index[now], step=turn).permutation(self.views)
                view[now] = order.gather(1, (epoch[now] % self.views)[:, None])[:, 0]
        return view

    def __getitems__(self, draws: Sequence[int]) -> Batch:
        index, epoch = locate(draws, len(self))
        rows, view = index.numpy(), self.view_of(index, epoch).numpy()
        lengths = self._rows("lengths", (rows, view)) if "lengths" in self._table else None
        tokens = Tokens(self._rows("codes", (rows, view)) + ABSENT, self.spec, lengths)
        return Batch(None, index, self._condition(rows), lengths=lengths, tokens=tokens)

    def __getitem__(self, draw: int) -> Batch:
        return self.__getitems__([draw])

    def _condition(self, rows: Any) -> Condition:
        parts: dict[str, Any] = {}
        for name, part in self.condition_spec.parts:
            key = f"condition.{name}"
            if part.kind == "vectors":
                parts[name] = Vectors(self._rows(f"{key}.x", rows), self._rows(f"{key}.mask", rows))
            else:
                parts[name] = (Class if part.kind == "class" else Ids)(self._rows(key, rows))
        return Condition(parts)
