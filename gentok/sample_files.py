"""`python sample.py`: samples into a folder, as images, as SVG files with their pictures, or as WAV files with their spectrograms.

Several processes draw the parts of a plan in turn (gentok/launch.py) and write them as they go (gentok/sample_parts.py); the first one puts
the rest together. One process does the same alone. What an earlier call has left in the folder is replaced when all is drawn.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from gentok.atomic import replacing, save_tensors, sweep, writable_folder
from gentok.bundle import Bundle, load
from gentok.bundle.places import find
from gentok.data.image_files import save_image, to_media, to_uint8
from gentok.data.sample_grid import condition_labels, save_sample_grid
from gentok.data.sound_files import save_sound
from gentok.data.spectrograms import spectrograms
from gentok.errors import ConfigError, counted
from gentok.folder_lock import folder_lock
from gentok.launch import LostProcess, Team, team
from gentok.prompt import default_keep, read_keep, read_known
from gentok.sample_parts import Part, Parts, write_npz
from gentok.samplers.base import described
from gentok.samplers.request import NetworkCalls
from gentok.sampling import lower_precision, planned, watermark_report
from gentok.sampling_plan import Samples, SamplingPlan
from gentok.types import Class, ConditionSpec, TokenSpec
from gentok.watch import watched
from gentok.watermarks.key import Key

__all__ = ["sample_to_folder"]

_log = logging.getLogger("gentok")
_OURS = re.compile(r"grid\.png|(codes|latents)\.safetensors|samples\.(json|npz)|\d{4,}\.(png|wav|svg)")
"""Names of what is written."""
_GRID_PIXELS, _GRID_SOUNDS = 1 << 24, 256
"""The grid shows the first images, so many that they have no more pixels than this (256 of 256 px), or the first sounds."""


def _names(n: int, beside: str | None, tokens: str = "codes", form: str = "files") -> list[str]:
    """Of the files of one call. beside: what else than an image there is of each item, wav or svg."""
    files = [f"{i:04d}.{suffix}" for i in range(n) for suffix in ("png", beside) if suffix and form != "npz"]
    return ["grid.png", f"{tokens}.safetensors", "samples.json", *([] if form == "files" else ["samples.npz"]), *files]


def _listed(folder: Path) -> list[Path]:
    """What an earlier call has written into the folder and listed there; one of an earlier version lists their number."""
    try:
        report = json.loads((folder / "samples.json").read_text())
        names = report.get("files", _names(report["n"], "wav" if "seconds_of_sound" in report else None))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [folder / name for name in names if _OURS.fullmatch(str(name)) and (folder / name).is_file()]


@contextmanager
def _output(folder: Path) -> Iterator[None]:
    """A folder for the files of one call alone; removed again where it is new and the call fails before it writes.

    Raises:
        ConfigError: it holds files of the names of samples that no call has listed as its own, or another call samples into it.
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
        with ExitStack() as stack:
            with _writing(folder):
                stack.enter_context(folder_lock(folder, "another call samples into", "out=FOLDER"))
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
    except LostProcess:
        raise
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise OSError(f"the samples' folder {folder} cannot be written ({reason}): set out=FOLDER") from error


def sample_to_folder(config: Mapping[str, Any]) -> Path:
    """Samples, and writes grid.png, 0000.png ..., codes.safetensors and samples.json; with format=npz samples.npz in place of the images.

    Of sounds the images are spectrograms, beside 0000.wav ...; beside those of drawings is 0000.svg ... All files of an earlier call in the
    folder are replaced, and no others.

    Args:
        config: a resolved conf/sample.yaml.

    Returns:
        The folder, config["out"].

    Raises:
        ValueError: the configuration does not fit the model, or the folder holds pictures that are not of an earlier call.
        OSError: the folder cannot be written, or another process of the job is gone.
    """
    crew = team(config)
    out = crew.share(Path(config["out"]).expanduser())  # the time in its name is the first process's
    with _output(out) if crew.rank == 0 else nullcontext():
        _sample(config, out, crew)
    return out


def _sample(config: Mapping[str, Any], out: Path, crew: Team) -> None:
    from gentok.data.progress import progress

    bundle, plan = crew.agreed(lambda: _prepared(config, crew.device))
    sounds, parts = bundle.spec.modality == "audio", Parts(out)
    shown = min(config["n"], _shown(bundle.spec))
    with _writing(out):
        if crew.rank == 0:
            parts.begin(_request(config))
        missing = crew.share(parts.missing(plan.parts))
        if crew.rank == 0 and len(missing) < len(plan.parts):
            print(f"{out}: goes on behind {len(plan.parts) - len(missing)} of {len(plan.parts)} parts that an earlier call has left")
        items = sum(map(len, missing))
        with progress("sampling", items, lazy=True, shown=crew.rank == 0) as advance, watched(crew, advance) as done:
            done(0)
            for part in missing[crew.rank :: crew.world]:
                samples = plan.draw(part, done)
                kept = Part.of(samples, rank=crew.rank, clipped=0)
                if config["format"] != "npz":
                    kept.about["clipped"] = _write_media(samples, part.start, parts.folder, bundle)
                if sounds and part.start < shown:
                    kept.tensors["waves"] = samples.media[: shown - part.start]
                elif not sounds and (config["format"] != "files" or part.start < shown):
                    kept.tensors["pixels"] = to_uint8(samples.media)
                parts.write(part.start, kept)
        if crew.rank == 0:
            if parts.missing(plan.parts):
                raise OSError(errno.ENOENT, "what other processes drew is not there; all of them must see one folder")
            _finish(config, out, bundle, plan, parts, shown)


def _prepared(config: Mapping[str, Any], device: str) -> tuple[Bundle, SamplingPlan]:
    """The model, and what is asked of it."""
    bundle = load(config["ckpt"], trust=config["trust"], ema=config["ema"], device=device)
    if bundle.generator is not None:
        lower_precision(bundle.generator, config["dtype"])
    if config["format"] != "files" and bundle.spec.modality == "audio":
        raise ConfigError(f"format={config['format']}: samples.npz is of images; these are sounds, so leave it out")
    known = None if config["known"] is None else read_known(config["known"], bundle.tokenizer)
    return bundle, planned(
        bundle, config["sampler"], config["trust"], n=config["n"], condition=config["condition"], guidance=config["guidance"],
        guidance_schedule=config["guidance_schedule"], seed=config["seed"], known=known, duration=config["duration"],
        keep=read_keep(config["keep"], bundle.tokenizer),
        batch_size=config["batch_size"], text_encoder=config["text_encoder"], watermark=config["watermark"], key=config["key"],
    )  # fmt: skip


def _shown(spec: TokenSpec) -> int:
    """How many items the grid shows at most."""
    if spec.modality == "audio" or spec.media_shape is None:
        return _GRID_SOUNDS
    return max(1, _GRID_PIXELS // math.prod(spec.media_shape[1:]))


def _request(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the samples depend on: parts of another request are none of this one."""
    model = find(config["ckpt"])
    files = [model / "bundle.json" if model.is_dir() else model, *([] if config["known"] is None else [Path(config["known"])])]
    changed = [(path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    same = {name: value for name, value in config.items() if name not in ("out", "trainer", "columns", "device", "key")}
    return {**same, "files": changed, "key": None if config["watermark"] is None else Key.read(config["key"]).fingerprint}


def _finish(config: Mapping[str, Any], out: Path, bundle: Bundle, plan: SamplingPlan, parts: Parts, shown: int) -> None:
    """The parts as files of the folder, and the report."""
    folder, sounds, form = parts.folder, bundle.spec.modality == "audio", config["format"]
    spec = ConditionSpec(bundle.condition_spec.parts + bundle.tokenizer.asked_condition.parts)
    kind = "codes" if bundle.spec.levels else "latents"
    names = (kind, "token_lengths", "calls", "lengths", "log_weight")
    made, positions, calls, lengths, weights = (parts.joined(plan.parts, name) for name in names)
    stored = {kind: made, **({} if positions is None else {"lengths": positions})}
    save_tensors(stored, folder / f"{kind}.safetensors", {"spec": json.dumps(bundle.spec.to_dict())})
    media = parts.joined(plan.parts, "waves" if sounds else "pixels", shown)
    media = spectrograms(media, bundle.spec.sample_rate, lengths[:shown]) if sounds else to_media(media)
    columns = config["columns"] or math.ceil(math.sqrt(shown))
    save_sample_grid(media, folder / "grid.png", columns, condition_labels(spec, config["condition"], shown))
    if form != "files":
        classes = next((part.ids for part in plan.conditions.parts.values() if isinstance(part, Class)), None)
        write_npz(folder / "samples.npz", parts.read(plan.parts, "pixels"), config["n"], classes)
    counts = [part.about for part in parts.read(plan.parts)]
    report = _report(config, plan, counts, calls, None if lengths is None else lengths.double() / bundle.spec.sample_rate)
    if weights is not None:
        report["log_weight"] = [weight if math.isfinite(weight) else None for weight in weights.tolist()]  # JSON has no -inf
    report["files"] = _names(config["n"], "wav" if sounds else "svg" if bundle.tokenizer.draws else None, kind, form)
    _move(out, folder, report)
    clipped = sum(part["clipped"] for part in counts)
    if clipped:
        written = int(lengths.sum()) * bundle.spec.media_shape[0]
        _log.warning("%d of %d samples of sound lay outside [-1, 1] and were clipped", clipped, written)
    parts.remove()
    print(
        f"{out / 'grid.png'}: {counted(config['n'], 'sample')}, {report['calls_per_sample']:.1f} calls each, "
        f"{report['tokens_per_second']:.0f} tokens/s"
    )


def _move(out: Path, folder: Path, report: dict[str, Any]) -> None:
    """Puts finished files in the place of an earlier call's."""
    before = _listed(out)
    names = [*report["files"], *(path.name for path in before if path.name not in report["files"])]
    _write_report(out, {"files": names})  # of both calls, before the first moves: also of a call that is killed, or finds the disk full
    for path in before:
        if path.name not in report["files"]:
            path.unlink()
    for name in report["files"]:
        if name != "samples.json":
            os.replace(folder / name, out / name)
    _write_report(out, report)


def _write_report(out: Path, report: Mapping[str, Any]) -> None:
    with replacing(out / "samples.json", setting="out=FOLDER") as temporary:
        temporary.write_text(json.dumps(report, indent=1, default=str) + "\n")


def _report(
    config: Mapping[str, Any], plan: SamplingPlan, parts: list[dict[str, Any]], calls: Tensor, sounds: Tensor | None
) -> dict[str, Any]:  # fmt: skip
    """samples.json. parts: what was counted of each; sounds: seconds of each item."""
    network_calls, spent = NetworkCalls(), dict.fromkeys((part["rank"] for part in parts), 0.0)
    for part in parts:
        network_calls.merge(part["network_calls"])
        spent[part["rank"]] += part["seconds"]
    seconds = max(spent.values())
    report = {
        "ckpt": str(config["ckpt"]),
        "n": config["n"],
        "files": [],
        "condition": config["condition"],
        "seed": config["seed"],
        "sampler": described(plan.sampler),
        "guidance": plan.guidance,
        "guidance_schedule": config["guidance_schedule"],
        "dtype": config["dtype"],
        "calls_per_sample": calls.double().mean().item(),
        "network_calls": {name: {"calls": c, "positions": p} for name, (c, p) in network_calls.items()},
        "seconds": round(seconds, 3),
        "tokens_per_second": round(sum(part["present"] for part in parts) / max(seconds, 1e-9), 1),
    }
    if config["watermark"] is not None:
        report["watermark"] = watermark_report(config["watermark"], config["trust"])
    if config["known"] is not None:
        report |= {"known": str(config["known"]), "keep": config["keep"] or default_keep(plan.bundle.tokenizer)}
    if sounds is not None:
        report["seconds_of_sound"] = [round(value, 3) for value in sounds.tolist()]
        report["seconds_of_sound_per_second"] = round(float(sounds.sum()) / max(seconds, 1e-9), 2)
    texts = [text for part in parts for text in part["texts"] or []]
    if texts:
        report["texts"] = texts
    for part in parts:
        report |= part["stats"]
    return report


def _write_media(samples: Samples, first: int, folder: Path, bundle: Bundle) -> int:
    """A file of each item, of which `first` is the first one's number. Returns how many samples of sound were clipped."""
    if bundle.tokenizer.draws:
        for i, drawing in enumerate(bundle.tokenizer.drawings(samples.tokens), first):
            (folder / f"{i:04d}.svg").write_text(drawing, encoding="utf-8")
    if samples.lengths is None:
        for i, media in enumerate(samples.media, first):
            save_image(media, folder / f"{i:04d}.png")
        return 0
    rate, clipped = bundle.spec.sample_rate, 0
    hop = max(1, samples.media.shape[-1] // samples.tokens.codes.shape[2])  # a sound that ended at once is a frame of silence
    for i, (media, length) in enumerate(zip(samples.media, samples.lengths.clamp(min=hop).tolist()), first):
        clipped += save_sound(media[:, :length], folder / f"{i:04d}.wav", rate)
        save_image(spectrograms(media[None, :, :length], rate)[0], folder / f"{i:04d}.png")
    return clipped
