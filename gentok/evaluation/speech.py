"""protocol=generation of sounds: what a generator says, given what held-out items say, against those items."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gentok.data.datasets import batches, whole_items
from gentok.data.image_files import save_grid
from gentok.data.progress import progress
from gentok.data.sound_files import save_sound
from gentok.data.spectrograms import FLOOR_DB, mel_levels, spectrograms
from gentok.evaluation.context import Context, choice, left_out
from gentok.evaluation.likelihood import measure as nll_measure
from gentok.evaluation.speech_recognition import heard, said
from gentok.metrics.audio_sets import mel_frechet
from gentok.sampling import pick_sampler, sample
from gentok.types import Batch, Condition

__all__ = ["measure"]

SHOWN = 16
"""Samples whose spectrograms are drawn, and that are written as WAV files."""


@torch.no_grad()
def measure(context: Context, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    bundle, config, data = context.bundle, context.config, context.data
    guidance = config["guidance"] if config["guidance"] is not None else bundle.meta.get("guidance", 1.0)
    sampler = pick_sampler(config["sampler"], type(bundle.generator), config["trust"])
    rate, missing = bundle.spec.sample_rate, []
    held_out = _read(data.held_out, context.rows("held_out"))
    asked = held_out.condition.rows(torch.arange(config["n"]) % len(held_out.media))  # held-out items in turn
    with progress(f"sampling, guidance {guidance:g}", config["n"], "samples", config["progress"]) as advance:
        samples = sample(
            bundle, n=config["n"], condition=asked, sampler=sampler, guidance=guidance, guidance_schedule=config["guidance_schedule"],
            duration=None if getattr(bundle.generator, "ends", False) else [n / rate for n in held_out.lengths.tolist()],
            seed=config["seed"], batch_size=config["batch_size"], advance=advance, trust=config["trust"],
        )  # fmt: skip
    made = _as_batch(samples.media.clamp(-1, 1), samples.lengths, asked)
    train = _read(whole_items(data.train), context.rows("train"))
    seconds = int(made.lengths.sum()) / rate
    metrics: dict[str, Any] = {"samples": config["n"], "guidance": guidance, "seconds_of_sound": seconds}
    words = said([made, held_out], data, missing)
    hearing = None
    if words is not None:
        figures, (hearing,) = heard(words[:1], [made.media], [made.lengths], rate)
        metrics |= figures
        rebuilt = torch.cat([_rebuilt(bundle.tokenizer, b, context.device) for b in _split(held_out, config["batch_size"])])
        for name, media in (("held_out", held_out.media), ("reconstructed_held_out", rebuilt)):
            metrics |= {f"{name}_{k}": v for k, v in heard(words[1:], [media], [held_out.lengths], rate)[0].items()}
    metrics["mel_frechet"] = mel_frechet(made.media, held_out.media, rate, made.lengths, held_out.lengths)
    few = choice(len(train.media), min(len(train.media), len(made.media)))
    metrics["training_mel_frechet"] = mel_frechet(train.media[few], held_out.media, rate, train.lengths[few], held_out.lengths)
    copying, nearest = _nearest(made, held_out, train, rate)
    metrics |= copying
    if hasattr(bundle.generator, "nll_bound"):
        metrics |= {name: value for name, value in nll_measure(context, out)[0].items() if name.startswith("bits")}
    metrics["calls_per_sample"] = samples.calls.double().mean().item()
    metrics["calls_per_second_of_sound"] = float(samples.calls.sum()) / max(seconds, 1e-9)
    metrics["real_time_factor"] = seconds / max(samples.seconds, 1e-9)
    protocol: dict[str, Any] = {
        "what": f"{config['n']} samples, given the texts (and classes) of held-out items in turn; what is heard by pocketsphinx and a "
        "grammar of digits, beside the same of held-out items and of their reconstructions; mel_frechet: of log-mel statistics against "
        "held-out items, beside as many training items against the same; nearest training item: Euclidean distance of spectrograms; "
        "real time factor: seconds of sound by seconds of sampling, without decoding",
        "sampler": {"name": type(sampler).__name__, "exact": sampler.exact, **asdict(sampler)},
        "guidance_schedule": config["guidance_schedule"],
        "batch_size": config["batch_size"],
        "network_calls": {name: {"calls": c, "positions": p} for name, (c, p) in samples.network_calls.items()},
    }
    for line in missing:
        left_out(protocol, line)
    _write(made, None if words is None else words[0], hearing, nearest, rate, out)
    return metrics, protocol


def _as_batch(media: Tensor, lengths: Tensor | None, condition: Condition) -> Batch:
    lengths = torch.full((len(media),), media.shape[2]) if lengths is None else lengths
    return Batch(media * (torch.arange(media.shape[2]) < lengths[:, None])[:, None], torch.arange(len(media)), condition, lengths)


def _read(data: Any, rows: list[int]) -> Batch:
    """The items of a set as one batch."""
    parts = list(batches(data, 256, rows=rows))
    longest = max(b.media.shape[2] for b in parts)
    media = torch.cat([F.pad(b.media, (0, longest - b.media.shape[2])) for b in parts])
    condition = Condition.concat([b.condition for b in parts])
    return Batch(media, torch.cat([b.index for b in parts]), condition, torch.cat([b.lengths for b in parts]))


def _split(batch: Batch, size: int) -> list[Batch]:
    return [
        Batch(batch.media[i], batch.index[i], batch.condition.rows(i), batch.lengths[i]) for i in torch.arange(len(batch.media)).split(size)
    ]


def _rebuilt(tokenizer: Any, batch: Batch, device: str) -> Tensor:
    batch = batch.to(device)
    tokens = tokenizer.encode_batch(batch)
    made = tokenizer.decode(tokens).float().cpu().clamp(-1, 1)[..., : batch.media.shape[2]]
    return F.pad(made, (0, batch.media.shape[2] - made.shape[2]))


def _nearest(made: Batch, held_out: Batch, train: Batch, rate: int) -> tuple[dict[str, float], Tensor]:
    """Distances to the nearest training item, and which it is: int64 [n]."""
    longest = max(b.media.shape[2] for b in (made, held_out, train))

    def levels(batch: Batch) -> Tensor:
        media = F.pad(batch.media, (0, longest - batch.media.shape[2]))
        return torch.cat([(mel_levels(part, rate) / -FLOOR_DB + 1).flatten(1) for part in media.split(64)])

    known = levels(train)
    (distance, index), (real, _) = (
        torch.cdist(levels(batch), known, compute_mode="donot_use_mm_for_euclid_dist").min(1) for batch in (made, held_out)
    )
    values = {"nearest_training": distance.mean().item(), "held_out_nearest_training": real.mean().item()}
    values["nearest_training_least"] = distance.min().item()
    values["nearest_training_ratio"] = values["nearest_training"] / max(values["held_out_nearest_training"], 1e-9)
    return values, torch.stack([index.double(), distance.double()], 1)


def _write(made: Batch, words: Any, hearing: Any, nearest: Tensor, rate: int, out: Path) -> None:
    """samples.png, NN.wav, and samples.json: what was asked for, what was heard, and the nearest training item of every sample."""
    shown = slice(0, SHOWN)
    save_grid(spectrograms(made.media[shown], rate, made.lengths[shown], seconds=4.0), out / "samples.png", 4)
    for i, (wave, n) in enumerate(zip(made.media[shown], made.lengths[shown].tolist())):
        save_sound(wave[:, : max(1, n)], out / f"{i:02d}.wav", rate)
    rows = [
        {
            "seconds": round(n / rate, 3),
            "nearest_training_item": int(item),
            "distance": round(distance, 3),
            **({} if words is None else {"said": " ".join(words[i]), "heard": " ".join(hearing[i])}),
        }
        for i, (n, (item, distance)) in enumerate(zip(made.lengths.tolist(), nearest.tolist()))
    ]
    (out / "samples.json").write_text(json.dumps(rows, indent=0) + "\n")
