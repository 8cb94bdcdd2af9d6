"""`python sample.py`: samples into a folder, as images, or as WAV files with their spectrograms."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gentok.bundle import load
from gentok.data.image_files import save_picture
from gentok.data.sample_grid import condition_labels, save_sample_grid
from gentok.data.sound_files import save_sound
from gentok.data.spectrograms import spectrograms
from gentok.devices import chosen_device
from gentok.prompt import read_known
from gentok.samplers.base import sampler_name
from gentok.sampling import Samples, pick_sampler, sample
from gentok.types import ConditionSpec, TokenSpec

__all__ = ["sample_to_folder"]

_log = logging.getLogger("gentok")


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

    Of sounds the images are spectrograms, beside 0000.wav ...

    Args:
        config: a resolved conf/sample.yaml.

    Returns:
        The folder, config["out"].

    Raises:
        ValueError: the configuration does not fit the model.
        OSError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    from gentok.data.progress import progress

    device = chosen_device(config["device"])
    out = Path(config["out"])
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
    bundle = load(config["ckpt"], trust=config["trust"], ema=config["ema"], device=device)
    known = None if config["known"] is None else read_known(config["known"], bundle.spec)
    with progress("sampling", config["n"], lazy=True) as advance:
        samples = sample(
            bundle, n=config["n"], condition=config["condition"], sampler=config["sampler"], guidance=config["guidance"],
            guidance_schedule=config["guidance_schedule"], seed=config["seed"], known=known, keep=config["keep"],
            duration=config["duration"], batch_size=config["batch_size"], advance=advance, trust=config["trust"],
        )  # fmt: skip
    spec = ConditionSpec(bundle.condition_spec.parts + bundle.tokenizer.written_condition.parts)
    columns = config["columns"] or math.ceil(math.sqrt(config["n"]))
    with _writing(out):
        _write_media(samples, out, columns, bundle.spec, condition_labels(spec, spec.parse(config["condition"], config["n"])))
        stored = {"codes": samples.tokens.codes, **({} if samples.tokens.lengths is None else {"lengths": samples.tokens.lengths})}
        save_file(stored, out / "codes.safetensors", metadata={"spec": json.dumps(bundle.spec.to_dict())})
    sampler = pick_sampler(config["sampler"], type(bundle.generator), config["trust"])
    tokens = int(samples.tokens.present.sum())
    report = {
        "ckpt": str(config["ckpt"]),
        "n": config["n"],
        "condition": config["condition"],
        "seed": config["seed"],
        "sampler": {"name": sampler_name(type(sampler)), "exact": sampler.exact, **vars(sampler)},
        "guidance": config["guidance"] if config["guidance"] is not None else bundle.meta.get("guidance", 1.0),
        "guidance_schedule": config["guidance_schedule"],
        "calls_per_sample": samples.calls.double().mean().item(),
        "network_calls": {name: {"calls": c, "positions": p} for name, (c, p) in samples.network_calls.items()},
        "seconds": round(samples.seconds, 3),
        "tokens_per_second": round(tokens / max(samples.seconds, 1e-9), 1),
    }
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
        f"{out / 'grid.png'}: {config['n']} samples, {report['calls_per_sample']:.1f} calls each, "
        f"{report['tokens_per_second']:.0f} tokens/s"
    )
    return out


def _write_media(samples: Samples, out: Path, columns: int, spec: TokenSpec, labels: list[str]) -> None:
    if samples.lengths is None:
        save_sample_grid(samples.media, out / "grid.png", columns, labels)
        for i, media in enumerate(samples.media):
            save_picture(media, out / f"{i:04d}.png")
        return
    rate, clipped = spec.sample_rate, 0
    hop = max(1, samples.media.shape[-1] // samples.tokens.codes.shape[2])  # a sound that ended at once is a frame of silence
    save_sample_grid(spectrograms(samples.media, rate, samples.lengths), out / "grid.png", columns, labels)
    for i, (media, length) in enumerate(zip(samples.media, samples.lengths.clamp(min=hop).tolist())):
        clipped += save_sound(media[:, :length], out / f"{i:04d}.wav", rate)
        save_picture(spectrograms(media[None, :, :length], rate)[0], out / f"{i:04d}.png")
    if clipped:
        written = int(samples.lengths.sum()) * spec.media_shape[0]
        _log.warning("%d of %d samples of sound lay outside [-1, 1] and were clipped", clipped, written)
