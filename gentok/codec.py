"""`python -m gentok.codec compress IN.wav OUT.gtk ckpt=PATH` and `decompress IN.gtk OUT.wav ckpt=PATH`: sound files as a tokenizer's codes.

A file is worked through in parts of `chunk` seconds, in memory that does not grow with its length. A causal codec goes through it as one
stream, so that its codes are those of the whole; of another, every part is coded by itself, which may be heard where parts meet.

    .gtk   GTK1, length of the header (uint32), header (JSON), then per part: frames (uint32), bytes (uint32), bytes; at the end a part of
           no frame. Numbers are little-endian. The bytes are those of gentok/entropy.py.

compress says how many bits per second the file has, beside those of ids stored one by one.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gentok.bundle import load
from gentok.data.atomic import whole_file
from gentok.data.progress import progress
from gentok.data.sound_files import part_step, read_sound, resampled_length, sound_size
from gentok.entropy import AdaptiveCoder, bits_of
from gentok.errors import ConfigError
from gentok.types import ABSENT, Tokens

__all__ = ["compress", "decompress", "run"]

MAGIC = b"GTK1"


def run(config: Mapping[str, Any]) -> dict[str, Any]:
    """conf/codec.yaml as a plain dict -> what was done, in numbers."""
    actions = {"compress": compress, "decompress": decompress}
    if config["action"] not in actions:
        raise ConfigError(f"gentok.codec does compress IN OUT or decompress IN OUT; got {config['action']}")
    report = actions[config["action"]](config)
    print(", ".join(f"{name.replace('_', ' ')} {value:,.{isinstance(value, float):d}f}" for name, value in report.items()))
    return report


def _tokenizer(config: Mapping[str, Any]) -> Any:
    device = config["device"] if config["device"] != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    bundle = load(config["ckpt"], trust=config["trust"], ema=config["ema"], device=device)
    if bundle.spec.modality != "audio" or not bundle.spec.levels:
        raise ConfigError(f"{config['ckpt']} is no tokenizer of sound with codes: gentok.codec needs one")
    return bundle.tokenizer.eval()


def _streams(tokenizer: Any) -> bool:
    return tokenizer.latency_samples is not None


# ---------------------------------------------------------------------------------------------------------------- compress


def _parts(path: str, rate: int, channels: int, seconds: float) -> Iterator[Tensor]:
    """The file at `rate` Hz, float32 [channels, n], n near seconds * rate, one part after the other."""
    total, own, _ = sound_size(path)
    step, length = part_step(own, rate), resampled_length(total, own, rate)
    size = max(1, round(seconds * rate / step)) * step
    for start in range(0, length, size):
        yield read_sound(path, rate, channels, start=start, samples=min(size, length - start))


def compress(config: Mapping[str, Any]) -> dict[str, Any]:
    """input: a sound file of any rate -> output. levels: of nested levels, how many are kept; None: all. chunk: seconds of a part."""
    tokenizer = _tokenizer(config)
    spec, rate, channels = tokenizer.spec, tokenizer.spec.sample_rate, tokenizer.spec.media_shape[0]
    levels = spec.levels if config["levels"] is None else config["levels"]
    if not 1 <= levels <= spec.levels or (levels < spec.levels and not spec.nested_levels):
        allowed = f"1 to {spec.levels}" if spec.nested_levels else f"{spec.levels}: its levels are not nested"
        raise ConfigError(f"levels={levels}: this tokenizer has {allowed}")
    if config["chunk"] <= 0:
        raise ConfigError(f"chunk={config['chunk']}: seconds, above 0")
    if spec.strides and set(spec.strides) != {1}:
        raise ConfigError("gentok.codec stores codes whose levels exist at every frame; this tokenizer's do not")
    total, own, _ = sound_size(config["input"])
    samples, device = resampled_length(total, own, rate), next(tokenizer.parameters()).device
    header = {"spec": spec.to_dict(), "levels": levels, "samples": samples, "stream": _streams(tokenizer)}
    coder, frames, size, plain = AdaptiveCoder(spec.vocab_sizes[:levels]), 0, 0, 0

    def write(file: BinaryIO, tokens: Tokens) -> None:
        nonlocal frames, size, plain
        codes = tokens.codes[0, :levels].cpu().numpy()
        if not codes.shape[1]:
            return
        data = coder.encode(codes)
        file.write(struct.pack("<II", codes.shape[1], len(data)) + data)
        frames, size = frames + codes.shape[1], size + len(data) + 8
        plain += codes.shape[1] * sum(map(bits_of, spec.vocab_sizes[:levels]))

    with whole_file(config["output"]) as file, progress("compressing", samples, "samples", config["progress"]) as advance:
        words = json.dumps(header).encode()
        file.write(MAGIC + struct.pack("<I", len(words)) + words)
        stream = tokenizer.stream(1) if header["stream"] else None
        for part in _parts(config["input"], rate, channels, config["chunk"]):
            media = part[None].to(device)
            write(file, tokenizer.encode(media) if stream is None else stream.encode(media))
            advance(part.shape[1])
        if stream is not None:
            write(file, stream.flush()[0])
        file.write(struct.pack("<II", 0, 0))
    seconds = samples / rate
    return {"seconds": seconds, "frames": frames, "bits_per_second": 8 * size / seconds, "of_ids_one_by_one": plain / seconds}


# -------------------------------------------------------------------------------------------------------------- decompress


def _header(file: BinaryIO, name: str) -> dict[str, Any]:
    if file.read(4) != MAGIC:
        raise ValueError(f"{name} is no file of gentok.codec compress")
    try:
        (length,) = struct.unpack("<I", file.read(4))
        return json.loads(file.read(length))
    except (struct.error, ValueError) as error:
        raise ValueError(f"{name} is cut short: its header is not whole") from error


def _chunks(file: BinaryIO, coder: AdaptiveCoder, name: str) -> Iterator[Any]:
    """The codes int64 [K, n] of every part. Raises ValueError with a line where the file is cut short or damaged."""
    while True:
        head = file.read(8)
        if len(head) < 8:
            raise ValueError(f"{name} is cut short: its last part is not there")
        frames, size = struct.unpack("<II", head)
        if not frames:
            return
        data = file.read(size)
        if len(data) < size:
            raise ValueError(f"{name} is cut short in the middle of a part")
        try:
            yield coder.decode(data, frames)
        except ValueError as error:
            raise ValueError(f"{name} is damaged: {error}") from error


def decompress(config: Mapping[str, Any]) -> dict[str, Any]:
    """input: a .gtk file -> output, a WAV or FLAC file of 16 bits at the tokenizer's rate, of as many samples as went in."""
    import soundfile

    tokenizer = _tokenizer(config)
    spec, device = tokenizer.spec, next(tokenizer.parameters()).device
    if not Path(config["input"]).is_file():
        raise ValueError(f"there is no file {config['input']}")
    with open(config["input"], "rb") as file:
        header = _header(file, config["input"])
        made_by = header["spec"]
        if made_by["encode_fingerprint"] != spec.encode_fingerprint or tuple(made_by["vocab_sizes"]) != spec.vocab_sizes:
            raise ValueError(
                f"{config['input']} was made by another tokenizer (fingerprint {made_by['encode_fingerprint'] or 'none'}); "
                f"{config['ckpt']} has {spec.encode_fingerprint or 'none'}"
            )
        levels, left, written = header["levels"], header["samples"], 0
        coder = AdaptiveCoder(spec.vocab_sizes[:levels])
        stream = tokenizer.stream(1) if header["stream"] else None
        suffix = Path(config["output"]).suffix[1:].upper() or "WAV"
        kind = {"samplerate": spec.sample_rate, "channels": spec.media_shape[0], "subtype": "PCM_16", "format": suffix}
        bar = progress("decompressing", left, "samples", config["progress"])
        with whole_file(config["output"]) as out, soundfile.SoundFile(out, "w", **kind) as sound, bar as advance:

            def write(media: Tensor) -> None:
                nonlocal written
                media = media[0, :, : left - written]
                sound.write((media.clamp(-1, 1) * 32767).round().to(torch.int16).T.cpu().numpy())
                written += media.shape[1]
                advance(media.shape[1])

            for codes in _chunks(file, coder, config["input"]):
                full = torch.full((1, spec.levels, codes.shape[1]), ABSENT, dtype=torch.int64, device=device)
                full[0, :levels] = torch.from_numpy(codes).to(device)
                tokens = Tokens(full, spec)
                write(tokenizer.decode(tokens) if stream is None else stream.decode(tokens))
            if stream is not None:
                write(stream.flush()[1])
            if written != left:
                raise ValueError(f"{config['input']} gives {written:,} of {left:,} samples: it is damaged")
    return {"seconds": left / spec.sample_rate, "samples": left}


def main() -> None:
    """`python -m gentok.codec ACTION IN OUT ckpt=PATH`."""
    from gentok.cli import run as run_config

    names = ["action", "input", "output"]
    for i, word in enumerate(sys.argv[1:4], 1):
        if "=" not in word or word.partition("=")[0] not in ("action", "input", "output", "ckpt"):
            quoted = word.replace("'", "\\'")
            sys.argv[i] = f"{names[i - 1]}='{quoted}'"
    run_config("codec", run)


if __name__ == "__main__":
    main()
