"""Codes in formats of other programs: what their own readers find is what was stored, with all that belongs to it."""

import io
import json
import tarfile
from collections import defaultdict

import numpy as np
import pytest
import torch
from data_kit import PixelTokenizer, folder, pictures

from gentok.codes import codes as command
from gentok.data import token_formats
from gentok.data.token_cache import encode_set
from gentok.data.token_dataset import TokenDataset
from gentok.data.token_formats import WRITERS, write_npz, write_parquet, write_shards
from gentok.interfaces import Tokenizer
from gentok.types import ABSENT, Condition, ConditionSpec, Frames, Ids, IdsSpec, Latents, Raster, Tokens, TokenSpec


class Sounds:
    """Five sounds of 1 to 5 frames, one of which cannot be read, with a text each."""

    condition_spec = ConditionSpec((("text", IdsSpec(("a", "b"), 3)),))
    description = {"data": "toy", "split": "train"}

    def __len__(self):
        return 5

    def __getitems__(self, draws):
        from gentok.types import Batch

        index = torch.tensor([0 if i == 2 else i for i in draws])  # item 0 in the place of the broken one
        text = torch.full((len(index), 3), ABSENT)
        text[:, 0], text[:, 1] = index % 2, 1
        media = torch.arange(5.0).repeat(len(index), 1, 1) + 10 * index[:, None, None]
        return Batch(media, index, Condition({"text": Ids(text)}), lengths=index + 1)


class FrameTokenizer(Tokenizer):
    """A sample is a frame, its value the code; level 1 holds one more."""

    def __init__(self):
        super().__init__()
        self.spec = TokenSpec((200, 201), Frames(1.0, 5), modality="audio", media_shape=(1,), sample_rate=1, encode_fingerprint="ff")

    def encode(self, media, lengths=None, rng=None):
        codes = torch.cat([media, media + 1], 1).long()
        return Tokens(codes.masked_fill(torch.arange(5) >= lengths[:, None, None], ABSENT), self.spec, lengths)


class LatentTokenizer(PixelTokenizer):
    def __init__(self):
        super().__init__()
        self.spec = TokenSpec((), Raster(4, 4), width=2, media_shape=(1, 4, 4), encode_fingerprint="aa")

    def encode(self, media, lengths=None, rng=None):
        return Latents(media.flatten(2).repeat(1, 2, 1), self.spec)



def stored(path, tokenizer, data):
    return TokenDataset(encode_set(tokenizer, data, path / "t.safetensors", batch_size=3, progress=False))


def expected(data):
    """[(number, [K, length], condition as words)] of all items."""
    batch, names = data.__getitems__(list(range(len(data)))), data.numbers(range(len(data))).tolist()
    values = batch.tokens.values if isinstance(batch.tokens, Latents) else batch.tokens.codes
    lengths = [values.shape[2]] * len(values) if batch.lengths is None else batch.lengths.tolist()
    ((name, part),) = batch.condition.parts.items()
    words = [("even", "odd")[i] if name == "class" else "".join("ab"[c] for c in i if c >= 0) for i in part.ids.tolist()]
    return [(n, v[:, :length].numpy(), {name: w}) for n, v, length, w in zip(names, values, lengths, words)]


def read_npz(data, path):
    with np.load(write_npz(data, path)[0]) as file:
        arrays = dict(file)
    specs = {name: json.loads(str(arrays.pop(name))) for name in ("spec", "condition_spec")}
    values = arrays.pop("codes" if data.spec.vocab_sizes else "latents")
    lengths = arrays.pop("lengths", [values.shape[2]] * len(values))
    (part,) = (spec for _, spec in data.condition_spec.parts)
    ((key, ids),) = ((key, ids) for key, ids in arrays.items() if key.startswith("condition."))
    words = [part.names[i] if part.kind == "class" else "".join(part.alphabet[c] for c in i if c >= 0) for i in ids]
    name = key.removeprefix("condition.")
    return specs, [(n, v[:, :length], {name: w}) for n, v, length, w in zip(arrays["index"], values, lengths, words)]


def read_parquet(data, path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="format=parquet is tested where pyarrow is installed: pip install pyarrow")
    table = parquet.read_table(write_parquet(data, path)[0])
    specs = {name: json.loads(table.schema.metadata[name.encode()]) for name in ("spec", "condition_spec")}
    column = "codes" if data.spec.vocab_sizes else "latents"
    rows = table.to_pylist()
    assert all(row["length"] == len(row[column][0]) for row in rows)
    named = [{key.removeprefix("condition."): value for key, value in row.items() if key.startswith("condition.")} for row in rows]
    return specs, [(row["index"], np.array(row[column]), name) for row, name in zip(rows, named)]


def read_shards(data, path):
    *shards, about = write_shards(data, path, items=2)
    items = defaultdict(dict)
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")  # as webdataset splits them
                items[key][suffix] = tar.extractfile(member).read()
    assert len(shards) == -(-len(data) // 2)
    out = []
    for key, item in items.items():
        notes = json.loads(item.pop("json"))
        ((_, array),) = item.items()
        assert int(key) == notes["index"]
        out.append((notes["index"], np.load(io.BytesIO(array)), notes["condition"]))
    return json.loads(about.read_text()), out


READERS = {"npz": read_npz, "parquet": read_parquet, "shards": read_shards}
SETS = {
    "strided": lambda: (PixelTokenizer(levels=2), pictures()),
    "lengths": lambda: (FrameTokenizer(), Sounds()),
    "latents": lambda: (LatentTokenizer(), pictures()),
}


def same(found, right):
    return len(found) == len(right) and all(
        a[0] == b[0] and a[1].shape == b[1].shape and (a[1] == b[1]).all() and a[2] == b[2] for a, b in zip(found, right)
    )


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("kind", SETS)
def test_what_other_programs_read_is_what_was_stored(form, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(token_formats, "_ROWS", 3)
    data = stored(tmp_path, *SETS[kind]())
    specs, found = READERS[form](data, tmp_path / "train")
    assert TokenSpec.from_dict(specs["spec"]) == data.spec and ConditionSpec.from_dict(specs["condition_spec"]) == data.condition_spec
    right = expected(data)
    assert same(found, right) and len(right) == (4 if kind == "lengths" else 11)
    assert not same(found[1:] + found[:1], right), "items in another order would be seen"


def test_the_parts_of_a_file_make_no_difference(tmp_path, monkeypatch):
    data = stored(tmp_path, *SETS["lengths"]())

    def written(folder):
        return [path.read_bytes() for write in (write_npz, write_shards) for path in write(data, tmp_path / folder / "train")]

    whole = written("a")
    monkeypatch.setattr(token_formats, "_ROWS", 1)
    assert written("b") == whole


def test_codes_are_the_smallest_signed_integers(tmp_path):
    for vocab, kind in ((128, np.int8), (129, np.int16), (40000, np.int32)):
        with np.load(write_npz(stored(tmp_path, PixelTokenizer(vocab), pictures()), tmp_path / str(vocab))[0]) as file:
            assert file["codes"].dtype == kind and file["codes"].min() >= 0


def test_the_command_encodes_both_splits_and_refuses_other_media(tmp_path):
    from gentok.cli import compose

    folder(tmp_path / "photos", count=6, size=(32, 32))
    photos = ["data=folder", f"data.path={tmp_path / 'photos'}", "data.size=32", "progress=false", f"out={tmp_path / 'out'}"]
    files = command(compose("codes", ["ckpt=cifar10_vq", *photos]))
    assert sorted((tmp_path / "out").iterdir()) == sorted(files) and {path.name for path in files} == {"held_out.npz", "train.npz"}
    items = 0
    for path in files:
        with np.load(path) as file:
            items += len(file["codes"])
            assert file["codes"].shape[1:] == (1, 64) and set(file) == {"codes", "index", "condition.class", "spec", "condition_spec"}
    assert items == 12
    for wrong, right in (
        (["ckpt=mnist5k_vq", f"out={tmp_path}"], "the codes of which data"),
        (["ckpt=cifar10_vq", *photos, "format=onnx"], "there is no format 'onnx'"),
        (["ckpt=spoken_digits_codec", *photos], "tokenizer of sounds, the data are pictures"),
        (["ckpt=cifar10_vq", *photos, "data.size=64"], "of images \\(3, 32, 32\\), the data have \\(3, 64, 64\\)"),
    ):
        with pytest.raises(ValueError, match=right):
            command(compose("codes", wrong))
