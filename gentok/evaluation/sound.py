"""protocol=reconstruction of sounds: what held-out items lose by encode and decode, with all levels and with the first few."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.data.datasets import batches
from gentok.data.image_files import pairs, save_grid
from gentok.data.progress import progress
from gentok.data.sound_files import save_sound
from gentok.data.spectrograms import spectrograms
from gentok.evaluation.context import Context, choice
from gentok.metrics.audio import mel_distance, si_sdr
from gentok.metrics.codebook import CodebookHealth
from gentok.types import Batch, Tokens

__all__ = ["measure"]

SHOWN = 8
"""Items whose spectrograms are drawn, and whose sounds are written."""


@torch.inference_mode()
def measure(context: Context, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    bundle, config, held_out = context.bundle, context.config, context.data.held_out
    spec, tokenizer = bundle.spec, bundle.tokenizer
    count = min(len(held_out), config["max_held_out"])
    prefixes = _prefixes(spec.levels) if spec.nested_levels else []
    health, values, cells, surviving, samples = CodebookHealth(spec.vocab_sizes), {}, 0, 0, 0
    with progress("reconstructing", count, shown=config["progress"]) as advance:
        for batch in batches(held_out, config["batch_size"], rows=choice(len(held_out), count).sort().values.tolist()):
            batch = batch.to(context.device)
            tokens = tokenizer.encode_batch(batch)
            made = _decoded(tokenizer, tokens, batch)
            if not values:
                _show(batch, made, spec.sample_rate, out)
            _add(values, "", made, batch, spec.sample_rate)
            for levels in prefixes:
                _add(values, f"of_{levels}_levels", _decoded(tokenizer, tokens, batch, keep=levels), batch, spec.sample_rate)
            health.update(tokens.codes)
            cells, samples = cells + int(tokens.present.sum()), samples + int(batch.lengths.sum())
            again = tokenizer.encode_batch(replace(batch, media=made))
            surviving += int(((again.codes == tokens.codes) & tokens.present).sum())
            advance(len(batch.index))
    report, seconds = health.compute(), samples / spec.sample_rate
    metrics: dict[str, Any] = {"items": count, "seconds_of_sound": seconds}
    metrics |= {name: torch.cat(parts).mean().item() for name, parts in values.items()}
    metrics |= {
        "usage": list(report.usage),
        "perplexity": list(report.perplexity),
        "entropy_bits_per_second": sum(bits * n for bits, n in zip(report.entropy, report.codes)) / seconds,
        "nominal_bits_per_second": sum(n * _log2(v) for n, v in zip(report.codes, spec.vocab_sizes)) / seconds,
        "codes_surviving_decode_and_encode": surviving / cells,
    }
    return metrics, {
        "what": "each held-out item, whole, encoded and decoded once, clipped to [-1, 1], cut to its length; SI-SDR (silent items left "
        "out) and mel distance (gentok/metrics/audio.py) are means over items; usage: share of rows hit by the held-out items; entropy: of "
        "each level's codes",
        "sample_rate": spec.sample_rate,
        "band_limit_hz": getattr(context.data, "band_limit", None),
    }


def _log2(v: int) -> float:
    return torch.tensor(float(v), dtype=torch.float64).log2().item()


def _prefixes(levels: int) -> list[int]:
    """1, 2, 4, ... below all."""
    return [1 << i for i in range(levels.bit_length()) if 1 << i < levels]


def _decoded(tokenizer: Any, tokens: Tokens, batch: Batch, **options: Any) -> Tensor:
    made = tokenizer.decode(tokens, samples=batch.lengths, **options).float().clamp(-1, 1)
    return torch.nn.functional.pad(made, (0, batch.media.shape[2] - made.shape[2]))


def _add(values: dict[str, list[Tensor]], suffix: str, made: Tensor, batch: Batch, rate: int) -> None:
    heard = batch.media.abs().amax((1, 2)) > 0
    if bool(heard.any()):
        values.setdefault("_".join(filter(None, ("si_sdr_db", suffix))), []).append(
            si_sdr(made[heard], batch.media[heard], batch.lengths[heard]).cpu()
        )
    distance = mel_distance(made, batch.media, rate, batch.lengths)
    values.setdefault("_".join(filter(None, ("mel_distance", suffix))), []).append(distance.cpu())


def _show(batch: Batch, made: Tensor, rate: int, out: Path) -> None:
    lengths = batch.lengths[:SHOWN].cpu()
    drawn = [spectrograms(media[:SHOWN], rate, lengths, seconds=4.0) for media in (batch.media, made)]
    save_grid(pairs(*drawn, columns=SHOWN), out / "reconstructions.png", min(SHOWN, len(lengths)))
    for name, media in (("original", batch.media), ("reconstruction", made)):
        for i, (wave, n) in enumerate(zip(media[:SHOWN], lengths.tolist())):
            save_sound(wave[:, :n], out / f"{i:02d}_{name}.wav", rate)
