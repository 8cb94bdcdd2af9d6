"""`gentok codec compress IN.wav OUT.gtk ckpt=PATH`, `decompress IN.gtk OUT.wav ckpt=PATH`, and `resynthesize FOLDER OUT ckpt=PATH`
(gentok/resynthesis.py).

Sound files as a tokenizer's codes, in the format of gentok/codec_file.py. A file is worked through in parts
of `chunk` seconds, in memory that does not grow with its length. A causal codec goes through it as one
stream, so that its codes are those of the whole; of another, every part is coded independently, which may be
heard where parts meet.

compress prints how many bits per second the file has, beside those of ids stored one by one.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import torch
import yaml
from pydantic import Field
from torch import Tensor

from gentok.atomic import whole_file
from gentok.bundle import load
from gentok.bundle.files import neighbours
from gentok.codec_file import CodecReader, CodecWriter
from gentok.data.progress import progress
from gentok.data.sound_files import FullScale, part_step, read_sound, resampled_length, sound_size
from gentok.devices import chosen_device
from gentok.errors import ConfigError, FormatError
from gentok.interfaces import StreamingTokenizer
from gentok.types import ABSENT, Tokens, TokenSpec
from gentok.types.formats import fitted

__all__ = ["codec_of", "compress", "decompress", "main", "run"]

PlacedTokenizer = tuple[StreamingTokenizer, torch.device]


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
    from gentok.resynthesis import resynthesize

    actions = {"compress": compress, "decompress": decompress, "resynthesize": resynthesize}
    if config["action"] not in actions:
        raise ConfigError(f"gentok codec does compress IN OUT, decompress IN OUT or resynthesize FOLDER OUT; got {config['action']}")
    for key in ("input", "output"):
        if not isinstance(config[key], str) or config[key] in ("???", ""):
            raise ConfigError(f"gentok codec {config['action']} IN OUT ckpt=BUNDLE: {key} is {config[key]!r}, expected a path")
    report = actions[config["action"]](config)
    print(", ".join(f"{name.replace('_', ' ')} {value:,.{isinstance(value, float):d}f}" for name, value in report.items()))
    return report


def _paths(config: Mapping[str, Any]) -> tuple[Path, Path]:
    """The file that is read and the one that is written. Raises ConfigError where there is none, or something would be lost."""
    source, target = (Path(config[key]).expanduser() for key in ("input", "output"))
    if not source.is_file():
        raise ConfigError(f"there is no file {source}{neighbours(source)}")
    if target.exists() and source.samefile(target):
        raise ConfigError(f"{target} is the input: name another file for the output")
    if target.is_file() and not config.get("overwrite"):
        raise ConfigError(f"{target} is there already: name another file, or set overwrite=true")
    return source, target


class _Remembering:
    """A file whose first error is remembered: libsndfile, which calls these three, hears of none."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.error: OSError | None = None

    def _remembering(self, name: str, *arguments: Any) -> int:
        try:
            return getattr(self.file, name)(*arguments) if self.error is None else 0
        except OSError as error:
            self.error = error
            return 0

    def write(self, data: bytes) -> int:
        return self._remembering("write", data)

    def seek(self, *where: int) -> int:
        return self._remembering("seek", *where)

    def tell(self) -> int:
        return self._remembering("tell")


@contextlib.contextmanager
def _pcm(file: BinaryIO, spec: TokenSpec, kind: str) -> Iterator[Callable[[Tensor], None]]:
    """A function that writes float [C, n] as 16 bits. Raises the error of the file where that fails."""
    import soundfile

    if not soundfile.check_format(kind, "PCM_16"):
        raise ConfigError(f"a sound is written as 16 bits, in a .wav or .flac file; got .{kind.lower()}")
    target = _Remembering(file)
    settings = {"samplerate": spec.sample_rate, "channels": spec.media_shape[0], "subtype": "PCM_16", "format": kind}
    try:
        with soundfile.SoundFile(target, "w", **settings) as sound:
            yield lambda media: sound.write((media.clamp(-1, 1) * 32767).round().to(torch.int16).T.cpu().numpy())
    except (AssertionError, soundfile.LibsndfileError):
        if target.error is None:
            raise
    if target.error is not None:
        raise target.error


def codec_of(config: Mapping[str, Any]) -> PlacedTokenizer:
    """The tokenizer of a configuration, and where it computes. Raises ConfigError where it has no codes of sounds."""
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
    if not config["chunk"] > 0:
        raise ConfigError(f"chunk={config['chunk']}: seconds, above 0")
    if spec.strides and set(spec.strides) != {1}:
        raise ConfigError("gentok.codec stores codes whose levels exist at every frame; this tokenizer's do not")
    return levels


def _hop(spec: TokenSpec) -> int:
    """Samples of the fewest frames that stand alone."""
    return round(spec.sample_rate / spec.grid.rate_hz) * spec.frame_multiple


def _parts(path: Path, spec: TokenSpec, seconds: float) -> Iterator[Tensor]:
    """The file as the tokenizer takes it, float32 [1, channels, n], n near seconds * rate, one part after the other."""
    rate, channels = spec.sample_rate, spec.media_shape[0]
    (total, own, _), full_scale = sound_size(path), FullScale()
    step, length = part_step(own, rate), resampled_length(total, own, rate)
    size = max(-(-_hop(spec) // step), round(seconds * rate / step)) * step
    for start in range(0, length, size):
        yield full_scale(read_sound(path, rate, channels, start=start, samples=min(size, length - start)), path)[None]


def compress(config: Mapping[str, Any], codec: PlacedTokenizer | None = None) -> dict[str, Any]:
    """A sound file as a .gtk file.

    Args:
        config: a resolved conf/codec.yaml. input: a sound file of any rate; output: the .gtk file; levels: of
            nested levels, how many are kept, None for all; chunk: seconds of a part.
        codec: what codec_of gives for it; None: it is loaded.

    Returns:
        seconds and frames of the sound, bits_per_second of the file, and those of_ids_one_by_one.
    """
    tokenizer, device = codec or codec_of(config)
    spec, levels = tokenizer.spec, _levels(config, tokenizer.spec)
    source, target = _paths(config)
    total, own, _ = sound_size(source)
    samples = resampled_length(total, own, spec.sample_rate)
    stream = None if tokenizer.latency_samples is None else tokenizer.stream(1)
    header = {"spec": spec.to_dict(), "levels": levels, "samples": samples, "stream": stream is not None}
    with whole_file(target) as file, progress("compressing", samples, "samples", config["progress"]) as advance:
        writer = CodecWriter(file, header, spec.vocab_sizes[:levels])

        def write(tokens: Tokens) -> None:
            writer.write(tokens.codes[0, :levels].cpu().numpy())

        for media in _parts(source, spec, config["chunk"]):
            media = media.to(device)
            write(tokenizer.encode(media) if stream is None else stream.encode(media))
            advance(media.shape[2])
        if stream is not None:
            write(stream.flush()[0])
        writer.finish()
    seconds = samples / spec.sample_rate
    rates = {"bits_per_second": 8 * writer.size / seconds, "of_ids_one_by_one": writer.plain_bits / seconds}
    return {"seconds": seconds, "frames": writer.frames, **rates}


def decompress(config: Mapping[str, Any], codec: PlacedTokenizer | None = None) -> dict[str, Any]:
    """A .gtk file as a sound file.

    Args:
        config: a resolved conf/codec.yaml. input: a .gtk file of the same tokenizer; output: a WAV or FLAC
            file of 16 bits at the tokenizer's rate, of as many samples as went in.
        codec: as of compress.

    Returns:
        seconds and samples of the sound.
    """
    tokenizer, device = codec or codec_of(config)
    spec, (source, target) = tokenizer.spec, _paths(config)
    with open(source, "rb") as file:
        reader = CodecReader(file, str(source))
        levels, total, streamed = _header(reader.header, tokenizer, str(source), config["ckpt"])
        stream, written = tokenizer.stream(1) if streamed else None, 0
        bar = progress("decompressing", total, "samples", config["progress"])
        with whole_file(target) as out, _pcm(out, spec, target.suffix[1:].upper() or "WAV") as put, bar as advance:

            def write(media: Tensor) -> None:
                nonlocal written
                media = media[0, :, : total - written]
                put(media)
                written += media.shape[1]
                advance(media.shape[1])

            most = 2 * (total // _hop(spec) + 1) * spec.frame_multiple + 1000  # parts of a part of a hop, and what a stream lags behind
            for codes in reader.parts(spec.vocab_sizes[:levels], most):
                full = torch.full((1, spec.levels, codes.shape[1]), ABSENT, dtype=torch.int64, device=device)
                full[0, :levels] = torch.from_numpy(codes).to(device)
                tokens = Tokens(full, spec)
                write(tokenizer.decode(tokens) if stream is None else stream.decode(tokens))
            if stream is not None:
                write(stream.flush()[1])
            if written != total:
                raise FormatError(f"{source} gives {written:,} of {total:,} samples: it is damaged")
    return {"seconds": total / spec.sample_rate, "samples": total}


_HEADER = {"spec": dict[str, Any], "levels": Annotated[int, Field(ge=1)], "samples": Annotated[int, Field(ge=1, le=2**40)], "stream": bool}


def _header(header: Mapping[str, Any], tokenizer: StreamingTokenizer, name: str, ckpt: str) -> tuple[int, int, bool]:
    """(levels, samples, whether it was written as one stream). Raises FormatError where it is damaged, or of another tokenizer."""
    if not set(_HEADER) <= set(header):
        raise FormatError(f"{name} is damaged: its header does not say what a sound needs")
    fitted(header, _HEADER, f"the header of {name}")
    spec, made_by = tokenizer.spec, TokenSpec.from_dict(header["spec"])
    if made_by.encode_fingerprint != spec.encode_fingerprint or made_by.vocab_sizes != spec.vocab_sizes:
        raise ValueError(
            f"{name} was made by another tokenizer (fingerprint {made_by.encode_fingerprint or 'none'}); "
            f"{ckpt} has {spec.encode_fingerprint or 'none'}"
        )
    if header["levels"] > spec.levels or (header["stream"] and tokenizer.latency_samples is None):
        raise FormatError(f"{name} is damaged: its header describes what this tokenizer does not do")
    return header["levels"], header["samples"], header["stream"]


def main(argv: Sequence[str] | None = None) -> None:
    """The command `ACTION IN OUT ckpt=PATH`. argv: the words behind its name; None: those of this process."""
    from gentok.cli import conf_dir
    from gentok.cli import run as run_config

    keys = yaml.safe_load((conf_dir() / "codec.yaml").read_text(encoding="utf-8"))
    places, words = iter(("action", "input", "output")), []
    for word in sys.argv[1:] if argv is None else argv:
        key, equals, _ = word.partition("=")
        option = word.startswith("-") or (equals and key.lstrip("+~").split(".")[0] in keys)  # a file's name may have a sign, too
        place = None if option else next(places, None)
        quoted = word.replace("\\", "\\\\").replace("'", "\\'")
        words.append(word if place is None else f"{place}='{quoted}'")
    sys.argv[1:] = words
    run_config("codec", run)


if __name__ == "__main__":
    main()
