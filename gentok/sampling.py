"""From a loaded model to new media: what sample.py, `Bundle.sample`, evaluation and the training log share."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.build import ConfigError, build, resolve
from gentok.bundle import Bundle, load
from gentok.data.pictures import read_picture, save_grid, save_picture
from gentok.generators.base import capabilities
from gentok.noise import Noise
from gentok.samplers.base import SampleOutput, Sampler, fitting, sampler_name
from gentok.samplers.guided import guided
from gentok.tokens import UNKNOWN, Condition, Raster, Tokens

__all__ = ["Samples", "pick_sampler", "sample", "sample_tokens", "sample_to_folder", "keep_mask"]

KEEPS = ("left-half", "right-half", "top-half", "bottom-half", "center", "border")


@dataclass
class Samples:
    """media float [n, ...] in [-1, 1]; tokens of all of them; calls int64 [n]; network_calls: name -> (calls, positions); seconds."""

    media: Tensor
    tokens: Tokens
    calls: Tensor
    network_calls: dict[str, tuple[int, int]]
    seconds: float
    stats: dict[str, Any]


# ------------------------------------------------------------------------------------------------------------------ samplers


def pick_sampler(config: Mapping[str, Any] | Sampler | None, generator: type, trust: Any = ()) -> Sampler:
    """A sampler from its configuration, checked against the generator's class before it is built; without `_target_`, the first that
    fits (exact ones come first)."""
    if isinstance(config, Sampler):
        config.check_model(generator)
        return config
    config = dict(config or {})
    if config.get("_target_") is None:
        able = fitting(generator)
        if not able:
            raise ConfigError(f"no sampler of gentok fits {generator.__name__} ({', '.join(capabilities(generator)) or 'no capability'})")
        config["_target_"] = f"{able[0].__module__}.{able[0].__name__}"
    else:
        resolve(config["_target_"], trust).check_model(generator)
    return build(config, trust=trust, where="sampler")


def sample_tokens(
    generator: Any,
    condition: Condition,
    sampler: Sampler,
    *,
    noise: Noise,
    guidance: float = 1.0,
    schedule: str = "constant",
    **options: Any,
) -> SampleOutput:
    """One batch: `sampler` on the guided generator, without gradients."""
    with torch.no_grad():
        return sampler(guided(generator, guidance, schedule), condition, noise=noise, **options)


# ------------------------------------------------------------------------------------------------------------------ sampling


def sample(
    bundle: Bundle,
    *,
    n: int = 16,
    condition: Any = None,
    sampler: Mapping[str, Any] | Sampler | None = None,
    guidance: float | None = None,
    guidance_schedule: str = "constant",
    seed: int = 0,
    known: Tensor | None = None,
    keep: str = "left-half",
    batch_size: int = 64,
    advance: Callable[[int], None] | None = None,
    trust: Any = (),
) -> Samples:
    """n samples of a generator's bundle; item i depends on (seed, i) alone, not on the batch it is drawn in.

    condition: see ConditionSpec.parse. guidance: None takes the bundle's recommendation, else 1. known: an image [C, H, W] in [-1, 1] to
    complete, of which the region `keep` stays. advance(items): called with 0 once all is checked, and after each batch.
    Raises ValueError in a line.
    """
    if bundle.generator is None:
        raise ValueError(f"{bundle.path or 'this bundle'} holds a tokenizer alone: sampling needs a generator's bundle or checkpoint")
    if n < 1:
        raise ValueError(f"n={n}: the number of samples must be at least 1")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    device = next(bundle.generator.parameters()).device
    sampler = pick_sampler(sampler, type(bundle.generator), trust)
    guidance = guidance if guidance is not None else bundle.meta.get("guidance", 1.0)
    conditions = bundle.condition_spec.parse(condition, n)
    holes = None
    if known is not None:
        codes = bundle.tokenizer.encode(known[None].to(device)).codes
        holes = codes.masked_fill(~keep_mask(keep, bundle.spec.grid).to(device), UNKNOWN)

    if advance is not None:
        advance(0)
    media, codes, calls, network, stats, seconds = [], [], [], {}, {}, 0.0
    for first in range(0, n, batch_size):
        rows = torch.arange(first, min(first + batch_size, n))
        began = time.perf_counter()
        output = sample_tokens(
            bundle.generator, conditions.rows(rows).to(device), sampler, noise=Noise.of(seed, rows).to(device), guidance=guidance,
            schedule=guidance_schedule, known=None if holes is None else Tokens(holes.expand(len(rows), -1, -1).clone(), bundle.spec),
        )  # fmt: skip
        seconds += time.perf_counter() - began
        with torch.no_grad():
            media.append(bundle.tokenizer.decode(output.tokens).float().cpu())
        codes.append(output.tokens.codes.cpu())
        calls.append(output.calls.cpu())
        stats.update(output.stats)
        for name, (count, positions) in output.network_calls.items():
            before = network.get(name, (0, 0))
            network[name] = (before[0] + count, before[1] + positions)
        if advance is not None:
            advance(len(rows))
    return Samples(torch.cat(media), Tokens(torch.cat(codes), bundle.spec), torch.cat(calls), network, seconds, stats)


def keep_mask(keep: str, grid: Any) -> Tensor:
    """bool [N]: the raster positions that `keep` names."""
    if not isinstance(grid, Raster):
        raise ValueError(f"keep={keep} names a region of a raster; these tokens lie on a {type(grid).__name__.lower()}")
    if keep not in KEEPS:
        raise ValueError(f"keep={keep}: choose one of {', '.join(KEEPS)}")
    y, x = torch.meshgrid(torch.arange(grid.h), torch.arange(grid.w), indexing="ij")
    inside = (y >= grid.h // 4) & (y < grid.h - grid.h // 4) & (x >= grid.w // 4) & (x < grid.w - grid.w // 4)
    masks = {
        "left-half": x < grid.w // 2,
        "right-half": x >= grid.w // 2,
        "top-half": y < grid.h // 2,
        "bottom-half": y >= grid.h // 2,
        "center": inside,
        "border": ~inside,
    }
    return masks[keep].flatten()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"the samples' folder {folder} cannot be written ({reason}): set out=FOLDER") from error


def sample_to_folder(config: Mapping[str, Any]) -> Path:
    """`python sample.py`: samples into config["out"] as grid.png, 0000.png ..., codes.safetensors and samples.json."""
    from safetensors.torch import save_file

    from gentok.data.progress import progress

    if config["n"] < 1:
        raise ValueError(f"n={config['n']}: the number of samples must be at least 1")
    out = Path(config["out"])
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
    device = config["device"] if config["device"] != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    bundle = load(config["ckpt"], trust=config["trust"], ema=config["ema"], device=device)
    known = None
    if config["known"] is not None:
        shape = bundle.spec.media_shape
        known = read_picture(config["known"], channels=shape[0], size=shape[1:])
    with progress("sampling", config["n"], lazy=True) as advance:
        samples = sample(
            bundle, n=config["n"], condition=config["condition"], sampler=config["sampler"], guidance=config["guidance"],
            guidance_schedule=config["guidance_schedule"], seed=config["seed"], known=known, keep=config["keep"],
            batch_size=config["batch_size"], advance=advance, trust=config["trust"],
        )  # fmt: skip
    columns = config["columns"] or math.ceil(math.sqrt(config["n"]))
    with _writing(out):
        save_grid(samples.media, out / "grid.png", columns)
        for i, media in enumerate(samples.media):
            save_picture(media, out / f"{i:04d}.png")
        save_file({"codes": samples.tokens.codes}, out / "codes.safetensors", metadata={"spec": json.dumps(bundle.spec.to_dict())})
    sampler = pick_sampler(config["sampler"], type(bundle.generator), config["trust"])
    made = int(samples.tokens.present.sum())
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
        "tokens_per_second": round(made / max(samples.seconds, 1e-9), 1),
        **({"known": str(config["known"]), "keep": config["keep"]} if config["known"] is not None else {}),
        **samples.stats,
    }
    with _writing(out):
        (out / "samples.json").write_text(json.dumps(report, indent=1, default=str) + "\n")
    print(
        f"{out / 'grid.png'}: {config['n']} samples, {report['calls_per_sample']:.1f} calls each, "
        f"{report['tokens_per_second']:.0f} tokens/s"
    )
    return out
