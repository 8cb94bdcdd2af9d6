"""`python sample.py`: samples into a folder, as images, or as WAV files with their spectrograms."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gentok.atomic import sweep, writable_folder
from gentok.build import build
from gentok.bundle import load
from gentok.data.image_files import save_image
from gentok.data.sample_grid import condition_labels, save_sample_grid
from gentok.data.sound_files import save_sound
from gentok.data.spectrograms import spectrograms
from gentok.devices import chosen_device
from gentok.errors import ConfigError, counted
from gentok.prompt import read_known
from gentok.samplers.base import described
from gentok.sampling import Samples, lower_precision, pick_sampler, sample
from gentok.types import ConditionSpec, Latents, TokenSpec
from gentok.watermarks.base import Watermark

__all__ = ["sample_to_folder", "watermark_report"]

_log = logging.getLogger("gentok")


_OURS = re.compile(r"grid\.png|(codes|latents)\.safetensors|samples\.json|\d{4,}\.(png|wav)")
"""Names of what is written."""


def _names(n: int, sounds: bool, tokens: str = "codes") -> list[str]:
    """Of the files of one call."""
    suffixes = ("png", "wav") if sounds else ("png",)
    return ["grid.png", f"{tokens}.safetensors", "samples.json", *(f"{i:04d}.{suffix}" for i in range(n) for suffix in suffixes)]


def _listed(folder: Path) -> list[Path]:
    """What an earlier call has written into the folder and listed there; one of an earlier version lists their number."""
    try:
        report = json.loads((folder / "samples.json").read_text())
        names = report.get("files", _names(report["n"], "seconds_of_sound" in report))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [folder / name for name in names if _OURS.fullmatch(str(name)) and (folder / name).is_file()]


@contextmanager
def _output(folder: Path) -> Iterator[None]:
    """A folder for the files of one call alone; removed again where it is new and the call fails before it writes.

    Raises:
        ConfigError: it holds files of the names of samples that no call has listed as its own.
        OSError: it cannot be made.
    """
    found = [path for path in folder.iterdir() if _OURS.fullmatch(path.name)] if folder.is_dir() else []
    strange = sorted(set(found) - set(_listed(folder)))
    if strange:
        raise ConfigError(
            f"{folder} holds files that samples would be mixed with ({strange[0].name}): choose another folder with out=FOLDER"
        )
    new = not folder.exists()
    with _writing(folder):
        writable_folder(folder, "out=FOLDER")
        sweep(folder)
    try:
        yield
    finally:
        if new and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Errors of writing name the folder and what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise OSError(f"the samples' folder {folder} cannot be written ({reason}): set out=FOLDER") from error


def sample_to_folder(config: Mapping[str, Any]) -> Path:
    """Samples, and writes grid.png, 0000.png ..., codes.safetensors and samples.json.

    Of sounds the images are spectrograms, beside 0000.wav ... All files of an earlier call in the folder are replaced, and no others.

    Args:
        config: a resolved conf/sample.yaml.

    Returns:
        The folder, config["out"].

    Raises:
        ValueError: the configuration does not fit the model, or the folder holds pictures that are not of an earlier call.
        OSError: the folder cannot be written.
    """
    out = Path(config["out"]).expanduser()
    with _output(out):
        _sample(config, out)
    return out


def _sample(config: Mapping[str, Any], out: Path) -> None:
    from safetensors.torch import save_file

    from gentok.data.progress import progress

    device = chosen_device(config["device"])
    bundle = load(config["ckpt"], trust=config["trust"], ema=config["ema"], device=device)
    if bundle.generator is not None:
        lower_precision(bundle.generator, config["dtype"])
    known = None if config["known"] is None else read_known(config["known"], bundle.tokenizer)
    with progress("sampling", config["n"], lazy=True) as advance:
        samples = sample(
            bundle, n=config["n"], condition=config["condition"], sampler=config["sampler"], guidance=config["guidance"],
            guidance_schedule=config["guidance_schedule"], seed=config["seed"], known=known, keep=config["keep"],
            duration=config["duration"], batch_size=config["batch_size"], text_encoder=config["text_encoder"],
            watermark=config["watermark"], key=config["key"], advance=advance, trust=config["trust"],
        )  # fmt: skip
    spec = ConditionSpec(bundle.condition_spec.parts + bundle.tokenizer.written_condition.parts)
    columns = config["columns"] or math.ceil(math.sqrt(config["n"]))
    kind, made = ("latents", samples.tokens.values) if isinstance(samples.tokens, Latents) else ("codes", samples.tokens.codes)
    files = _names(config["n"], samples.lengths is not None, kind)
    with _writing(out):
        for path in _listed(out):
            path.unlink()
        (out / "samples.json").write_text(json.dumps({"files": files}))  # before the first: also of a call that is killed
        _write_media(samples, out, columns, bundle.spec, condition_labels(spec, config["condition"], config["n"]))
        stored = {kind: made, **({} if samples.tokens.lengths is None else {"lengths": samples.tokens.lengths})}
        save_file(stored, out / f"{kind}.safetensors", metadata={"spec": json.dumps(bundle.spec.to_dict())})
    sampler = pick_sampler(config["sampler"], type(bundle.generator), config["trust"])
    tokens = int(samples.tokens.present.sum())
    report = {
        "ckpt": str(config["ckpt"]),
        "n": config["n"],
        "files": files,
        "condition": config["condition"],
        "seed": config["seed"],
        "sampler": described(sampler),
        "guidance": config["guidance"] if config["guidance"] is not None else bundle.meta.get("guidance", 1.0),
        "guidance_schedule": config["guidance_schedule"],
        "dtype": config["dtype"],
        "calls_per_sample": samples.calls.double().mean().item(),
        "network_calls": {name: {"calls": c, "positions": p} for name, (c, p) in samples.network_calls.items()},
        "seconds": round(samples.seconds, 3),
        "tokens_per_second": round(tokens / max(samples.seconds, 1e-9), 1),
    }
    if config["watermark"] is not None:
        report["watermark"] = watermark_report(config["watermark"], config["trust"])
    if known is not None:
        report |= {"known": str(config["known"]), "keep": config["keep"] or ("left-half" if samples.lengths is None else "all")}
    if samples.lengths is not None:
        seconds = samples.lengths.double() / bundle.spec.sample_rate
        report["seconds_of_sound"] = [round(value, 3) for value in seconds.tolist()]
        report["seconds_of_sound_per_second"] = round(float(seconds.sum()) / max(samples.seconds, 1e-9), 2)
    if samples.texts is not None:
        report["texts"] = samples.texts
    report |= samples.stats
    with _writing(out):
        (out / "samples.json").write_text(json.dumps(report, indent=1, default=str) + "\n")
    print(
        f"{out / 'grid.png'}: {counted(config['n'], 'sample')}, {report['calls_per_sample']:.1f} calls each, "
        f"{report['tokens_per_second']:.0f} tokens/s"
    )


def watermark_report(config: Mapping[str, Any] | Watermark, trust: Any = ()) -> dict[str, Any]:
    """What reports say of a watermark: its name, its settings, whether single items keep their distribution; nothing of the key."""
    built = config if isinstance(config, Watermark) else build(dict(config), trust=trust, where="watermark", role=Watermark)
    name = type(built).__module__.rpartition(".")[2]
    return {"name": name, "distortion_free": built.distortion_free, **dataclasses.asdict(built)}


def _write_media(samples: Samples, out: Path, columns: int, spec: TokenSpec, labels: list[str]) -> None:
    if samples.lengths is None:
        save_sample_grid(samples.media, out / "grid.png", columns, labels)
        for i, media in enumerate(samples.media):
            save_image(media, out / f"{i:04d}.png")
        return
    rate, clipped = spec.sample_rate, 0
    hop = max(1, samples.media.shape[-1] // samples.tokens.codes.shape[2])  # a sound that ended at once is a frame of silence
    save_sample_grid(spectrograms(samples.media, rate, samples.lengths), out / "grid.png", columns, labels)
    for i, (media, length) in enumerate(zip(samples.media, samples.lengths.clamp(min=hop).tolist())):
        clipped += save_sound(media[:, :length], out / f"{i:04d}.wav", rate)
        save_image(spectrograms(media[None, :, :length], rate)[0], out / f"{i:04d}.png")
    if clipped:
        written = int(samples.lengths.sum()) * spec.media_shape[0]
        _log.warning("%d of %d samples of sound lay outside [-1, 1] and were clipped", clipped, written)
