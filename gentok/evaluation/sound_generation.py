"""protocol=generation of sounds: what a generator says, given the texts of held-out items, against those
items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gentok.data.datasets import batches
from gentok.data.image_files import save_grid
from gentok.data.sound_files import save_sound
from gentok.data.spectrograms import FLOOR_DB, mel_levels, spectrograms
from gentok.evaluation.context import Context, choice, in_words, left_out
from gentok.evaluation.likelihood import measure as nll_measure
from gentok.generators.base import AnyOrder, Causal, Masked, Refines
from gentok.metrics.audio import mel_frechet
from gentok.metrics.spoken_digits import Transcripts, recognition, transcribed
from gentok.types import Batch, Condition

__all__ = ["measure"]

SHOWN = 16
"""Samples whose spectrograms are drawn, and that are written as WAV files."""


@torch.no_grad()
def measure(context: Context, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Samples sounds, measures them, draws samples.png and writes samples.json and the first sounds.

    Returns:
        metrics, protocol. What cannot be measured (no digits, a missing package) is left out; a missing
        package is noted.
    """
    generator, n, data, rate = context.bundle.generator, context.config["n"], context.data, context.bundle.spec.sample_rate
    held_out = _read(data.held_out, context.rows("held_out"))
    asked = held_out.condition.rows(torch.arange(n) % len(held_out.media))  # held-out items in turn
    ends = isinstance(generator, (Causal, Refines)) and generator.ends
    samples = context.sample(n, asked, context.guidance, None if ends else [length / rate for length in held_out.lengths.tolist()])
    made = _as_batch(samples.media.clamp(-1, 1), samples.lengths, asked)
    train = _read(data.train.whole(), context.rows("train"))
    seconds, missing = int(made.lengths.sum()) / rate, []
    metrics: dict[str, Any] = {"samples": n, "guidance": context.guidance, "seconds_of_sound": seconds}
    transcripts, recognised = transcribed([made, held_out], data, missing), None
    if transcripts is not None:
        figures, (recognised,) = recognition(transcripts[:1], [made.media], [made.lengths], rate)
        metrics |= figures
        for name, media in (("held_out", held_out.media), ("reconstructed_held_out", _reconstructed(context, held_out))):
            figures, _ = recognition(transcripts[1:], [media], [held_out.lengths], rate)
            metrics |= {f"{name}_{k}": v for k, v in figures.items()}
    metrics["mel_frechet"] = mel_frechet(made.media, held_out.media, rate, made.lengths, held_out.lengths)
    few = choice(len(train.media), min(len(train.media), len(made.media)))
    metrics["training_mel_frechet"] = mel_frechet(train.media[few], held_out.media, rate, train.lengths[few], held_out.lengths)
    copied, nearest = _nearest(made, held_out, train, rate)
    metrics |= copied
    if isinstance(generator, (AnyOrder, Causal, Masked, Refines)):
        metrics |= {name: value for name, value in nll_measure(context, out)[0].items() if name.startswith("bits")}
    metrics["calls_per_sample"] = samples.calls.double().mean().item()
    metrics["calls_per_second_of_sound"] = float(samples.calls.sum()) / max(seconds, 1e-9)
    metrics["real_time_factor"] = seconds / max(samples.seconds, 1e-9)
    protocol: dict[str, Any] = {"what": in_words("sound_generation", n=n), **context.sampling_protocol(samples)}
    for line in missing:
        left_out(protocol, line)
    _write(made, transcripts, recognised, nearest, rate, out)
    return metrics, protocol


def _as_batch(media: Tensor, lengths: Tensor | None, condition: Condition) -> Batch:
    lengths = torch.full((len(media),), media.shape[2]) if lengths is None else lengths
    return Batch(media * (torch.arange(media.shape[2]) < lengths[:, None])[:, None], torch.arange(len(media)), condition, lengths)


def _padded(media: Tensor, samples: int) -> Tensor:
    return F.pad(media, (0, samples - media.shape[2]))


def _read(data: Any, rows: list[int]) -> Batch:
    """The items of a set as one batch."""
    parts = list(batches(data, 256, rows=rows))
    longest = max(b.media.shape[2] for b in parts)
    media, index, lengths = (torch.cat(x) for x in zip(*((_padded(b.media, longest), b.index, b.lengths) for b in parts)))
    return Batch(media, index, Condition.concat([b.condition for b in parts]), lengths)


def _reconstructed(context: Context, held_out: Batch) -> Tensor:
    """The held-out items after encode and decode: float [n, C, T]."""
    tokenizer, samples, out = context.bundle.tokenizer, held_out.media.shape[2], []
    for i in torch.arange(len(held_out.media)).split(context.config["batch_size"]):
        batch = Batch(held_out.media[i], held_out.index[i], held_out.condition.rows(i), held_out.lengths[i]).to(context.device)
        made = tokenizer.decode(tokenizer.encode_batch(batch)).float().cpu().clamp(-1, 1)
        out.append(_padded(made[..., :samples], samples))
    return torch.cat(out)


def _nearest(made: Batch, held_out: Batch, train: Batch, rate: int) -> tuple[dict[str, float], Tensor]:
    """Distances to the nearest training item, and of each sample (its number, its distance): float64 [n,
    2]."""
    longest = max(b.media.shape[2] for b in (made, held_out, train))

    def levels(batch: Batch) -> Tensor:
        parts = _padded(batch.media, longest).split(64)
        return torch.cat([(mel_levels(part, rate) / -FLOOR_DB + 1).flatten(1) for part in parts])

    known = levels(train)
    (distance, index), (real, _) = (
        torch.cdist(levels(batch), known, compute_mode="donot_use_mm_for_euclid_dist").min(1) for batch in (made, held_out)
    )
    values = {"nearest_training": distance.mean().item(), "held_out_nearest_training": real.mean().item()}
    values["nearest_training_least"] = distance.min().item()
    values["nearest_training_ratio"] = values["nearest_training"] / max(values["held_out_nearest_training"], 1e-9)
    return values, torch.stack([index.double(), distance.double()], 1)


def _write(
    made: Batch, transcripts: list[Transcripts] | None, recognised: Transcripts | None, nearest: Tensor, rate: int, out: Path
) -> None:
    """samples.png, NN.wav, and samples.json: what was asked for, what is recognised, and the nearest training
    item of every sample."""
    shown, lengths = slice(0, SHOWN), made.lengths.tolist()
    save_grid(spectrograms(made.media[shown], rate, made.lengths[shown], seconds=4.0), out / "samples.png", 4)
    for i, (wave, n) in enumerate(zip(made.media[shown], lengths[shown])):
        save_sound(wave[:, : max(1, n)], out / f"{i:02d}.wav", rate)
    rows = []
    for i, (n, (item, distance)) in enumerate(zip(lengths, nearest.tolist())):
        row = {"seconds": round(n / rate, 3), "nearest_training_item": int(item), "distance": round(distance, 3)}
        spoken = {} if transcripts is None else {"said": " ".join(transcripts[0][i]), "heard": " ".join(recognised[i])}
        rows.append({**row, **spoken})
    (out / "samples.json").write_text(json.dumps(rows, indent=0) + "\n")
