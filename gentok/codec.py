"""`python -m gentok.codec compress IN.wav OUT.gtk ckpt=PATH` and `decompress IN.gtk OUT.wav ckpt=PATH`.

Sound files as a tokenizer's codes, in the format of gentok/codec_file.py. A file is worked through in parts
of `chunk` seconds, in memory that does not grow with its length. A causal codec goes through it as one
stream, so that its codes are those of the whole; of another, every part is coded independently, which may be
heard where parts meet.

compress prints how many bits per second the file has, beside those of ids stored one by one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.atomic import whole_file
from gentok.bundle import load
from gentok.codec_file import CodecReader, CodecWriter
from gentok.data.progress import progress
from gentok.data.sound_files import FullScale, part_step, read_sound, resampled_length, sound_size
from gentok.devices import chosen_device
from gentok.errors import ConfigError
from gentok.interfaces import StreamingTokenizer
from gentok.types import ABSENT, Tokens, TokenSpec

__all__ = ["compress", "decompress", "main", "run"]


def run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Compresses or decompresses, and prints what was done.

    Args:
        config: a resolved conf/codec.yaml.

    Returns:
        What was done, in numbers by name.

    Raises:
        ValueError: the configuration, the tokenizer or the input does not fit.
        OSError: a file cannot be read or written.
    """
    actions = {"compress": compress, "decompress": decompress}
    if config["action"] not in actions:
        raise ConfigError(f"gentok.codec does compress IN OUT or decompress IN OUT; got {config['action']}")
    report = actions[config["action"]](config)
    print(", ".join(f"{name.replace('_', ' ')} {value:,.{isinstance(value, float):d}f}" for name, value in report.items()))
    return report


def _tokenizer(config: Mapping[str, Any]) -> tuple[StreamingTokenizer, torch.device]:
    device = chosen_device(config["device"])
    bundle = load(config["ckpt"], trust=config["trust"], ema=config["ema"], device=device)
    if bundle.spec.modality != "audio" or not bundle.spec.levels:
        raise ConfigError(f"{config['ckpt']} is no tokenizer of sound with codes: gentok.codec needs one")
    return bundle.tokenizer.eval(), torch.device(device)


def _levels(config: Mapping[str, Any], spec: TokenSpec) -> int:
    """How many levels are kept. Raises ConfigError where the settings do not fit the tokenizer."""
    levels = spec.levels if config["levels"] is None else config["levels"]
    if not 1 <= levels <= spec.levels or (levels < spec.levels and not spec.nested_levels):
        allowed = f"1 to {spec.levels}" if spec.nested_levels else f"{spec.levels}: its levels are not nested"
        raise ConfigError(f"levels={levels}: this tokenizer has {allowed}")
    if config["chunk"] <= 0:
        raise ConfigError(f"chunk={config['chunk']}: seconds, above 0")
    if spec.strides and set(spec.strides) != {1}:
        raise ConfigError("gentok.codec stores codes whose levels exist at every frame; this tokenizer's do not")
    return levels


def _parts(path: str, rate: int, channels: int, seconds: float) -> Iterator[Tensor]:
    """The file at `rate` Hz, float32 [1, channels, n], n near seconds * rate, one part after the other."""
    (total, own, _), full_scale = sound_size(path), FullScale()
    step, length = part_step(own, rate), resampled_length(total, own, rate)
    size = max(1, round(seconds * rate / step)) * step
    for start in range(0, length, size):
        yield full_scale(read_sound(path, rate, channels, start=start, samples=min(size, length - start)), path)[None]


def compress(config: Mapping[str, Any]) -> dict[str, Any]:
    """A sound file as a .gtk file.

    Args:
        config: a resolved conf/codec.yaml. input: a sound file of any rate; output: the .gtk file; levels: of
            nested levels, how many are kept, None for all; chunk: seconds of a part.

    Returns:
        seconds and frames of the sound, bits_per_second of the file, and those of_ids_one_by_one.
    """
    tokenizer, device = _tokenizer(config)
    spec, levels = tokenizer.spec, _levels(config, tokenizer.spec)
    total, own, _ = sound_size(config["input"])
    samples = resampled_length(total, own, spec.sample_rate)
    stream = None if tokenizer.latency_samples is None else tokenizer.stream(1)
    header = {"spec": spec.to_dict(), "levels": levels, "samples": samples, "stream": stream is not None}
    with whole_file(config["output"]) as file, progress("compressing", samples, "samples", config["progress"]) as advance:
        writer = CodecWriter(file, header, spec.vocab_sizes[:levels])

        def write(tokens: Tokens) -> None:
            writer.write(tokens.codes[0, :levels].cpu().numpy())

        for media in _parts(config["input"], spec.sample_rate, spec.media_shape[0], config["chunk"]):
            media = media.to(device)
            write(tokenizer.encode(media) if stream is None else stream.encode(media))
            advance(media.shape[2])
        if stream is not None:
            write(stream.flush()[0])
        writer.finish()
    seconds = samples / spec.sample_rate
    rates = {"bits_per_second": 8 * writer.size / seconds, "of_ids_one_by_one": writer.plain_bits / seconds}
    return {"seconds": seconds, "frames": writer.frames, **rates}


def decompress(config: Mapping[str, Any]) -> dict[str, Any]:
    """A .gtk file as a sound file.

    Args:
        config: a resolved conf/codec.yaml. input: a .gtk file of the same tokenizer; output: a WAV or FLAC
            file of 16 bits at the tokenizer's rate, of as many samples as went in.

    Returns:
        seconds and samples of the sound.
    """
    import soundfile

    tokenizer, device = _tokenizer(config)
    spec, name = tokenizer.spec, config["input"]
    if not Path(name).is_file():
        raise ValueError(f"there is no file {name}")
    with open(name, "rb") as file:
        reader = CodecReader(file, name)
        header, made_by = reader.header, reader.header["spec"]
        if made_by["encode_fingerprint"] != spec.encode_fingerprint or tuple(made_by["vocab_sizes"]) != spec.vocab_sizes:
            raise ValueError(
                f"{name} was made by another tokenizer (fingerprint {made_by['encode_fingerprint'] or 'none'}); "
                f"{config['ckpt']} has {spec.encode_fingerprint or 'none'}"
            )
        levels, total, written = header["levels"], header["samples"], 0
        stream = tokenizer.stream(1) if header["stream"] else None
        suffix = Path(config["output"]).suffix[1:].upper() or "WAV"
        kind = {"samplerate": spec.sample_rate, "channels": spec.media_shape[0], "subtype": "PCM_16", "format": suffix}
        bar = progress("decompressing", total, "samples", config["progress"])
        with whole_file(config["output"]) as out, soundfile.SoundFile(out, "w", **kind) as sound, bar as advance:

            def write(media: Tensor) -> None:
                nonlocal written
                media = media[0, :, : total - written]
                sound.write((media.clamp(-1, 1) * 32767).round().to(torch.int16).T.cpu().numpy())
                written += media.shape[1]
                advance(media.shape[1])

            for codes in reader.parts(spec.vocab_sizes[:levels]):
                full = torch.full((1, spec.levels, codes.shape[1]), ABSENT, dtype=torch.int64, device=device)
                full[0, :levels] = torch.from_numpy(codes).to(device)
                tokens = Tokens(full, spec)
                write(tokenizer.decode(tokens) if stream is None else stream.decode(tokens))
            if stream is not None:
                write(stream.flush()[1])
            if written != total:
                raise ValueError(f"{name} gives {written:,} of {total:,} samples: it is damaged")
    return {"seconds": total / spec.sample_rate, "samples": total}


def main(argv: Sequence[str] | None = None) -> None:
    """The command `ACTION IN OUT ckpt=PATH`. argv: the words behind its name; None: those of this process."""
    from gentok.cli import run as run_config

    words = list(sys.argv[1:] if argv is None else argv)
    for i, key in enumerate(("action", "input", "output")[: len(words)]):
        if words[i].partition("=")[0] not in ("action", "input", "output", "ckpt") or "=" not in words[i]:
            quoted = words[i].replace("'", "\\'")
            words[i] = f"{key}='{quoted}'"
    sys.argv[1:] = words
    run_config("codec", run)


if __name__ == "__main__":
    main()
