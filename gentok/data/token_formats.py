"""Token files (gentok/data/token_cache.py) in formats of other programs: npz, Parquet, webdataset shards.

    npz       codes [items, K, N], index [items], lengths [items], condition.NAME ...; spec, condition_spec: texts, JSON
    parquet   a row per item: index, length, codes (a list of K lists), a column per condition; the specs are the file's metadata
    shards    STEM-00000.tar, ...: per item KEY.codes.npy [K, n] and KEY.json {index, length, condition}; STEM.json holds the specs

Codes are the smallest signed integers that hold them, and -1 where there is none. In Parquet and shards an item ends at its own length; its
conditions are class names and texts. Latents, float32 [D, n], take the place of codes. Everything is written in parts, in flat memory.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gentok.atomic import replacing
from gentok.data.token_dataset import TokenDataset, stored_name
from gentok.types import Batch, Class, ClassSpec, Ids, IdsSpec, Latents

__all__ = ["WRITERS", "write_npz", "write_parquet", "write_shards"]

_ROWS = 1024
"""Items of a part."""


def _specs(data: TokenDataset) -> dict[str, str]:
    return {"spec": json.dumps(data.spec.to_dict()), "condition_spec": json.dumps(data.condition_spec.to_dict())}


def _parts(data: TokenDataset, start: int = 0, end: int | None = None, rows: int = _ROWS) -> Iterator[Batch]:
    """Items in their order, each with its number within the set that was encoded."""
    end = len(data) if end is None else min(end, len(data))
    for first in range(start, end, rows):
        part = range(first, min(first + rows, end))
        yield replace(data.__getitems__(list(part)), index=data.numbers(part))


def _values(data: TokenDataset, batch: Batch) -> np.ndarray:
    """[B, K, N] codes in the smallest signed type, or latents float32 [B, D, N]."""
    tokens = batch.tokens
    if isinstance(tokens, Latents):
        return tokens.values.float().numpy()
    assert tokens is not None
    kinds = (kind for kind in (np.int8, np.int16, np.int32, np.int64) if max(data.spec.vocab_sizes) - 1 <= np.iinfo(kind).max)
    return tokens.codes.numpy().astype(next(kinds))


def _words(data: TokenDataset, batch: Batch) -> dict[str, list[str | None]]:
    """Conditions as people write them: {name: a class name or a text per row}; vectors of a frozen encoder have no words."""
    out: dict[str, list[str | None]] = {}
    for name, spec in data.condition_spec.parts:
        part = batch.condition.parts.get(name)
        if isinstance(part, Class) and isinstance(spec, ClassSpec):
            out[name] = [spec.names[i] if i >= 0 else None for i in part.ids.tolist()]
        elif isinstance(part, Ids) and isinstance(spec, IdsSpec):
            out[name] = [spec.text(row) for row in part.ids.tolist()]
    return out


def _rows(data: TokenDataset, batch: Batch) -> Iterator[dict[str, Any]]:
    """Items: index, length, values [K, length], condition."""
    values, words = _values(data, batch), _words(data, batch)
    lengths = [values.shape[2]] * len(values) if batch.lengths is None else batch.lengths.tolist()
    for i, (index, length) in enumerate(zip(batch.index.tolist(), lengths)):
        yield {"index": index, "length": length, "values": values[i, :, :length], "condition": {name: w[i] for name, w in words.items()}}


def write_npz(data: TokenDataset, path: Path) -> list[Path]:
    """One npz file.

    Args:
        data: the items.
        path: the file, without a suffix.

    Returns:
        The files.
    """
    from numpy.lib import format as npy

    def columns(batch: Batch) -> dict[str, np.ndarray]:
        out = {stored_name(data.spec): _values(data, batch), "index": batch.index.numpy()}
        if batch.lengths is not None:
            out["lengths"] = batch.lengths.numpy()
        for name, part in batch.condition.parts.items():
            arrays = {key: value.numpy() for key, value in vars(part).items()}
            out |= {f"condition.{name}" + ("" if key == "ids" else f".{key}"): value for key, value in arrays.items()}
        return out

    first = columns(next(_parts(data, rows=1)))
    target = path.with_suffix(".npz")
    with replacing(target, setting="out") as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
        for name, example in first.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                about = {"descr": npy.dtype_to_descr(example.dtype), "fortran_order": False, "shape": (len(data), *example.shape[1:])}
                npy.write_array_header_1_0(file, about)
                for batch in _parts(data):
                    file.write(np.ascontiguousarray(columns(batch)[name]).tobytes())
        for name, text in _specs(data).items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as file:
                npy.write_array(file, np.array(text), allow_pickle=False)
    return [target]


def write_parquet(data: TokenDataset, path: Path) -> list[Path]:
    """One Parquet file, as `write_npz`. Raises ImportError where pyarrow is not installed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError("format=parquet needs the package pyarrow: pip install 'gentok[parquet]'") from error
    kind = pa.from_numpy_dtype(_values(data, next(_parts(data, rows=1))).dtype)
    names = list(_words(data, next(_parts(data, rows=1))))
    fields = [("index", pa.int64()), ("length", pa.int32()), (stored_name(data.spec), pa.list_(pa.list_(kind)))]
    schema = pa.schema([*fields, *((f"condition.{name}", pa.string()) for name in names)], _specs(data))
    target = path.with_suffix(".parquet")
    with replacing(target, setting="out") as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        for batch in _parts(data):
            rows = list(_rows(data, batch))
            table = {"index": [row["index"] for row in rows], "length": [row["length"] for row in rows]}
            table[stored_name(data.spec)] = [list(row["values"]) for row in rows]
            table |= {f"condition.{name}": [row["condition"][name] for row in rows] for name in names}
            writer.write_table(pa.table(table, schema))
    return [target]


def write_shards(data: TokenDataset, path: Path, items: int = 10_000) -> list[Path]:
    """webdataset shards of `items` items, and the specs beside them, as `write_npz`."""
    written = []
    for shard, start in enumerate(range(0, len(data), items)):
        target = path.with_name(f"{path.name}-{shard:05d}.tar")
        with replacing(target, setting="out") as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for batch in _parts(data, start, start + items):
                for row in _rows(data, batch):
                    array = io.BytesIO()
                    np.save(array, row["values"], allow_pickle=False)
                    about = {key: row[key] for key in ("index", "length", "condition")}
                    members = {f"{stored_name(data.spec)}.npy": array.getvalue(), "json": json.dumps(about).encode()}
                    for suffix, content in members.items():
                        member = tarfile.TarInfo(f"{row['index']:09d}.{suffix}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
        written.append(target)
    about = path.with_suffix(".json")
    with replacing(about, setting="out") as temporary:
        temporary.write_text(json.dumps({name: json.loads(text) for name, text in _specs(data).items()}, indent=1) + "\n")
    return [*written, about]


WRITERS: dict[str, Callable[[TokenDataset, Path], list[Path]]] = {"npz": write_npz, "parquet": write_parquet, "shards": write_shards}
"""By the name of the format."""
