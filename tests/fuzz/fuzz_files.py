"""What gentok itself writes and reads again: bundles, their weights, checkpoints, runs that go on, cached tokens, compressed sounds."""

from __future__ import annotations

import hashlib
import json
import random
import zipfile
from pathlib import Path
from typing import Any

from fuzz_engine import Mutation, Target
from fuzz_mutators import damage_bytes, damage_json, deep_json

GENERATOR = {"_target_": "gentok.generators.autoregressive.Autoregressive", "width": 16, "depth": 1, "heads": 2}


def digest(*tensors: Any) -> str:
    """Of tensors' types, shapes and bytes."""
    import torch

    out = hashlib.sha256()
    for tensor in tensors:
        out.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        out.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return out.hexdigest()


# ------------------------------------------------------------------------------------------------------ bundles


def make_bundle(folder: Path) -> Path:
    """A generator of classes over 4 x 4 codes."""
    import torch

    from gentok.bundle import build_generator, build_tokenizer, save, stamp
    from gentok.types import ClassSpec, ConditionSpec

    torch.manual_seed(0)
    config = {
        "_target_": "gentok.tokenizers.vqgan.VQGAN", "media_shape": [1, 16, 16], "width": 4,
        "codebook": {"_target_": "gentok.codebooks.vq.VQ", "vocab_size": 16, "dim": 4},
    }  # fmt: skip
    tokenizer = build_tokenizer(config).eval()
    stamp(tokenizer, config)
    classes = ConditionSpec((("class", ClassSpec(("a", "b"))),))
    generator = build_generator(GENERATOR, tokenizer, classes).eval()
    return save(
        folder / "bundle", tokenizer=tokenizer, tokenizer_config=config, generator=generator, generator_config=GENERATOR,
        condition_spec=classes, meta={"seed": 0, "guidance": 1.5},
    )  # fmt: skip


def make_codec(folder: Path) -> Path:
    """A causal codec of two levels at 8 kHz."""
    import torch

    from gentok.bundle import build_tokenizer, save, stamp

    torch.manual_seed(0)
    book = {"_target_": "gentok.codebooks.residual.ResidualCodebook", "levels": 2}
    book["codebook"] = {"_target_": "gentok.codebooks.vq.VQ", "vocab_size": 16, "dim": 8}
    networks = {"width": 8, "filters": 2, "ratios": [4, 2], "memory": None}
    config = {
        "_target_": "gentok.tokenizers.codec.Codec", "media_shape": [1], "sample_rate": 8000, "codebook": book,
        "encoder": {"_target_": "gentok.nn.seanet.SEANetEncoder", **networks},
        "decoder": {"_target_": "gentok.nn.seanet.SEANetDecoder", **networks},
    }  # fmt: skip
    tokenizer = build_tokenizer(config).eval()
    stamp(tokenizer, config)
    return save(folder / "codec", tokenizer=tokenizer, tokenizer_config=config, meta={"seed": 0})


def use_model(path: Path, out: Path) -> Any:
    """Loads, encodes, decodes and samples."""
    import torch

    import gentok

    model = gentok.load(path)
    shape = (1, 16, 16) if model.spec.modality == "image" else (1, 400)
    media = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = model.encode(media)
    parts = [tokens.codes, model.decode(tokens)]
    if model.generator is not None:
        parts.append(model.sample(n=2, condition="b" if model.condition_spec.parts else None, seed=1))
    return digest(*parts), json.dumps(model.spec.to_dict())


def resealed(document: Any) -> Any:
    """What an attacker does: a document of another content with a right checksum."""
    from gentok.bundle.files import sealed
    from gentok.types.documents import seal

    try:
        return {**document, "checksum": seal(sealed(document))["checksum"]}
    except (KeyError, TypeError, AttributeError):
        return document


def damage_document(rng: random.Random, path: Path) -> Mutation:
    """bundle.json: its values, as damage and as an attack, or its text."""
    file, way = path / "bundle.json", rng.random()
    if way < 0.5:
        return damage_json(rng, file, resealed, legal=True)
    if way < 0.7:
        before = json.loads(file.read_text())
        done = damage_json(rng, file)
        after = json.loads(file.read_text())
        notes = isinstance(after, dict) and isinstance(after.get("meta"), dict)  # which anyone may edit
        return Mutation(done.what, notes and {**after, "meta": 0} == {**before, "meta": 0})
    return deep_json(rng, file) if way < 0.8 else damage_bytes(rng, file)


def damage_weights(rng: random.Random, path: Path) -> Mutation:
    """The weights beside it: bytes as they are, or with the checksum of what they are now; and the table at their head."""
    file = path / rng.choice([name for name in ("tokenizer", "generator") if (path / name).is_dir()]) / "model.safetensors"
    attack = rng.random() < 0.5
    if rng.random() < 0.4:
        done = damage_table(rng, file)
    else:
        done = damage_bytes(rng, file)
    if attack:
        document = json.loads((path / "bundle.json").read_text())
        document["checksums"][str(file.relative_to(path))] = hashlib.sha256(file.read_bytes()).hexdigest()
        (path / "bundle.json").write_text(json.dumps(resealed(document)))
    return Mutation(f"{done.what} in {file.parent.name}{', with checksums' * attack}", attack)


def damage_table(rng: random.Random, file: Path) -> Mutation:
    """The JSON table at the head of a safetensors file."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = file.with_name("table.json")
    table.write_bytes(data[8 : 8 + length])
    done = damage_json(rng, table)
    head = table.read_bytes()
    table.unlink()
    file.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + length :])
    return done


# -------------------------------------------------------------------------------------------------- checkpoints


def make_checkpoint(folder: Path) -> Path:
    """Of a generator after a step, with averaged weights."""
    import shutil

    shutil.copyfile(Path(__file__).parents[1] / "golden" / "mnist5k_ar.ckpt", folder / "last.ckpt")
    return folder / "last.ckpt"


def use_checkpoint(path: Path, out: Path) -> Any:
    import torch

    import gentok

    model = gentok.load(path)
    media = torch.rand(1, *model.spec.media_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return digest(model.encode(media).codes, *model.generator.state_dict().values(), *model.tokenizer.state_dict().values())


def damage_checkpoint(rng: random.Random, path: Path) -> Mutation:
    """Bytes as they are; or what an attacker does: values or an entry of the archive changed, with right checksums of the archive."""
    way = rng.random()
    if way < 0.4:
        return damage_bytes(rng, path)
    if way < 0.7:
        return Mutation(damage_pickle(rng, path), legal=True)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = next(n for n in entries if n.endswith("data.pkl")) if way < 0.9 else rng.choice(list(entries))
    file = path.with_name("entry")
    file.write_bytes(entries[name])
    what = damage_bytes(rng, file).what
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in {**entries, name: file.read_bytes()}.items():
            archive.writestr(entry, data)
    file.unlink()
    return Mutation(f"{what} of {name}, with checksums", legal=True)


def damage_pickle(rng: random.Random, path: Path) -> str:
    """Values of the checkpoint itself, of whatever type: plain ones become others, tensors get other shapes."""
    import torch
    from fuzz_mutators import WRONG, _places

    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    places = list(_places(checkpoint))
    words = []
    for _ in range(rng.choice([1, 1, 2])):
        parent, key = rng.choice(places if rng.random() < 0.7 else list(_top(checkpoint)))
        value = parent[key]
        if isinstance(value, torch.Tensor) and rng.random() < 0.7:
            parent[key] = rng.choice([
                lambda v: v.reshape(-1)[:1].expand(10**9), lambda v: v[None], lambda v: v.reshape(-1)[:-1], lambda v: v.to(torch.int64),
                lambda v: v.double(), lambda v: v * float("nan"), lambda v: v.to_sparse(), lambda v: torch.empty(0),
                lambda v: v.to("meta"), lambda v: torch.ones_like(v),
            ])(value)  # fmt: skip
        else:
            parent[key] = rng.choice(WRONG)
        words.append(str(key))
    torch.save(checkpoint, path)
    return "values of " + ", ".join(words)


def _top(checkpoint: Any) -> Any:
    for key in checkpoint:
        yield checkpoint, key
        if isinstance(checkpoint[key], dict):
            yield from ((checkpoint[key], inner) for inner in checkpoint[key])


# ------------------------------------------------------------------------------------------------ runs that go on


def run_config(run: Path, *words: str) -> dict[str, Any]:
    from gentok.cli import compose

    quiet = ["print_config=false", "trainer=cpu", "trainer.precision=32-true", "trainer.progress_bar=false", "logger=none", "budget=null"]
    small = ["data=noise", "data.items=16", "data.held_out=4", "data.size=8", "tokenizer.width=4", "codebook.vocab_size=8", "batch_size=4"]
    return compose("config", [*quiet, *small, "codebook.dim=4", "task.pictures=1", f"paths.run={run}", *words])


def make_run(folder: Path) -> Path:
    """The checkpoint of a tokenizer after two steps."""
    from gentok.training.run import train

    return train(run_config(folder / "run", "steps=2")) / "checkpoints" / "last.ckpt"


def use_run(path: Path, out: Path) -> Any:
    import torch

    from gentok.training.run import train

    run = train(run_config(out / "run", "steps=3", f"resume={path}"))
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return digest(*checkpoint["state_dict"].values()), checkpoint["global_step"]


# ------------------------------------------------------------------------------------- cached tokens, sounds


def make_tokens(folder: Path) -> Path:
    """Of 12 items of two levels, with classes and lengths."""
    import numpy as np

    from gentok.data.tensor_file import write_arrays

    draw = np.random.default_rng(0)
    codes = draw.integers(1, 17, (12, 2, 2, 5)).astype("uint8")
    arrays = {"codes": codes, "index": np.arange(12), "lengths": np.full((12, 2), 5), "condition.class": draw.integers(0, 3, 12)}
    grid = {"kind": "frames", "rate_hz": 50.0, "n": 5}
    spec = {"vocab_sizes": [16, 16], "grid": grid, "modality": "audio", "media_shape": [1], "sample_rate": 8000}
    header = {
        "format": 1, "kind": "tokens", "spec": spec, "condition_spec": {"class": {"names": ["a", "b", "c"], "kind": "class"}}, "views": 2,
        "augment": {"shift": 1}, "seed": 0, "data": {"split": "train"}, "items": 12,
    }  # fmt: skip
    return write_arrays(folder / "tokens.safetensors", {name: [value] for name, value in arrays.items()}, header)


def use_tokens(path: Path, out: Path) -> Any:
    import pickle

    from gentok.data.token_dataset import TokenDataset

    data = pickle.loads(pickle.dumps(TokenDataset(path)))
    batch = data.__getitems__(list(range(2 * len(data))))
    parts = [batch.tokens.validate().codes, batch.index, *(part.ids for part in batch.condition.parts.values())]
    return digest(*parts, *([] if batch.lengths is None else [batch.lengths])), json.dumps(data.spec.to_dict()), data.condition_spec


def damage_tokens(rng: random.Random, path: Path) -> Mutation:
    """Bytes; the table at the head; or that and a right checksum."""
    from gentok.data import tensor_file

    way = rng.random()
    done = damage_bytes(rng, path) if way < 0.5 else damage_table(rng, path) if way < 0.7 else None
    if done is not None:
        return done
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    table, inner = json.loads(data[8 : 8 + length]), path.with_name("inner.json")
    outer = rng.random() < 0.3
    inner.write_text(json.dumps({k: v for k, v in table.items() if k != "__metadata__"}) if outer else table["__metadata__"]["gentok"])
    done = damage_json(rng, inner)
    about = {"gentok": table["__metadata__"]["gentok"] if outer else inner.read_text()}
    entries = json.loads(inner.read_text()) if outer else {k: v for k, v in table.items() if k != "__metadata__"}
    table = {"__metadata__": about, **entries} if isinstance(entries, dict) else {"__metadata__": about}
    if rng.random() < 0.7:  # else as a file of before checksums
        about["checksum"] = tensor_file._checksum(table, [data[8 + length :]])
    head = json.dumps(table).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + length :])
    inner.unlink()
    return Mutation(f"{done.what}, with checksum", legal=True)


def make_sound(folder: Path) -> Path:
    """A folder with a compressed sound of half a second, and the codec that made it."""
    import numpy as np
    import soundfile

    from gentok.codec import compress

    (folder / "sound").mkdir()
    bundle = make_codec(folder / "sound")
    soundfile.write(folder / "in.wav", 0.4 * np.sin(np.arange(4000) / 7 + 3 * np.sin(np.arange(4000) / 300)), 8000)
    compress(codec_config("compress", folder / "in.wav", folder / "sound" / "x.gtk", bundle))
    return folder / "sound"


def codec_config(action: str, source: Path, target: Path, bundle: Path) -> dict[str, Any]:
    files = {"action": action, "input": str(source), "output": str(target), "ckpt": str(bundle)}
    return {**files, "levels": None, "chunk": 0.1, "ema": True, "device": "cpu", "progress": False, "overwrite": False, "trust": []}


def use_sound(path: Path, out: Path) -> Any:
    from gentok.codec import decompress

    decompress(codec_config("decompress", path / "x.gtk", out / "back.wav", path / "codec"))
    return (out / "back.wav").read_bytes()


def damage_sound(rng: random.Random, path: Path) -> Mutation:
    """Bytes; the header with a right seal; or any number of a part with right checksums."""
    import struct
    import zlib

    from gentok.types.documents import seal

    file, way = path / "x.gtk", rng.random()
    if way < 0.5:
        return damage_bytes(rng, file)
    data = file.read_bytes()
    (length,) = struct.unpack("<I", data[4:8])
    header, at, parts = json.loads(data[8 : 8 + length]), 8 + length, []
    while at < len(data):
        frames, size = struct.unpack("<II", data[at : at + 8])
        parts.append([frames, data[at + 8 : at + 8 + size]])
        at += 12 + size
    legal, what = True, "parts"
    if way < 0.75:
        table = path / "header.json"
        table.write_text(json.dumps(header))
        what = damage_json(rng, table).what
        header = json.loads(table.read_text())
        table.unlink()
        header = seal(header) if isinstance(header, dict) else header
    else:
        part = rng.choice(parts)
        if rng.random() < 0.5:
            part[0] = rng.choice([0, 1, part[0] + 1, 2 * part[0], 10**6, 2**31, 2**32 - 1])
        else:
            inner = path / "part"
            inner.write_bytes(part[1] or b"x")
            damage_bytes(rng, inner)
            part[1] = inner.read_bytes()
            inner.unlink()
    text = json.dumps(header).encode()
    out = b"GTK2" + struct.pack("<I", len(text)) + text
    for frames, content in parts:
        out += struct.pack("<II", frames, len(content)) + content
        out += struct.pack("<I", zlib.crc32(out))
    file.write_bytes(out)
    return Mutation(f"{what}, with checksums", legal)


TARGETS = [
    Target("bundle", make_bundle, damage_document, use_model),
    Target("bundle_of_sound", make_codec, damage_document, use_model),
    Target("weights", make_bundle, damage_weights, use_model),
    Target("checkpoint", make_checkpoint, damage_checkpoint, use_checkpoint),
    Target("resume", make_run, damage_checkpoint, use_run, seconds=20.0),
    Target("tokens", make_tokens, damage_tokens, use_tokens),
    Target("compressed_sound", make_sound, damage_sound, use_sound),
]
