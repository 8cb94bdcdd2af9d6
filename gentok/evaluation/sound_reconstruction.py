"""protocol=reconstruction of sounds: what held-out items lose by encode and decode, with all levels and with
the first few."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.data.image_files import pairs, save_grid
from gentok.data.sound_files import save_sound
from gentok.data.spectrograms import spectrograms
from gentok.evaluation.context import Context, in_words
from gentok.metrics.audio import mel_distance, si_sdr
from gentok.metrics.reconstruction import RoundTrip
from gentok.types import Batch

__all__ = ["measure"]

SHOWN = 8
"""Items whose spectrograms are drawn, and whose sounds are written."""


def measure(context: Context, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reconstructs, measures, draws reconstructions.png and writes the first sounds beside their originals.

    Returns:
        metrics (those of the first k nested levels end in _of_{k}_levels, k = 1, 2, 4, ...), protocol.
    """
    spec, rows = context.bundle.spec, context.rows("held_out", in_memory=False)
    prefixes = [1 << i for i in range(spec.levels.bit_length()) if 1 << i < spec.levels] if spec.nested_levels else []
    trip, values, samples = RoundTrip(context.bundle.tokenizer, prefixes), {}, 0
    for batch in context.held_out_batches("reconstructing", rows):
        made, of_prefix = trip(batch)
        if not values:
            _show(batch, made, spec.sample_rate, out)
        for suffix, wave in (("", made), *((f"_of_{k}_levels", part) for k, part in of_prefix.items())):
            _add(values, suffix, wave, batch, spec.sample_rate)
        samples += int(batch.lengths.sum())
    report, seconds = trip.statistics.health.compute(), samples / spec.sample_rate
    return {
        "items": len(rows),
        "seconds_of_sound": seconds,
        **{name: torch.cat(parts).mean().item() for name, parts in values.items()},
        "usage": list(report.usage),
        "perplexity": list(report.perplexity),
        "entropy_bits_per_second": sum(bits * n for bits, n in zip(report.entropy, report.codes)) / seconds,
        "nominal_bits_per_second": sum(n * math.log2(v) for n, v in zip(report.codes, spec.vocab_sizes)) / seconds,
        "codes_surviving_decode_and_encode": trip.statistics.survived,
    }, {
        "what": in_words("sound_reconstruction"),
        "sample_rate": spec.sample_rate,
        "band_limit_hz": context.data.band_limit,
    }  # fmt: skip


def _add(values: dict[str, list[Tensor]], suffix: str, made: Tensor, batch: Batch, rate: int) -> None:
    """Adds the figures of a batch; silent items have no SI-SDR."""
    audible = batch.media.abs().amax((1, 2)) > 0
    if bool(audible.any()):
        ratio = si_sdr(made[audible], batch.media[audible], batch.lengths[audible])
        values.setdefault(f"si_sdr_db{suffix}", []).append(ratio.cpu())
    distance = mel_distance(made, batch.media, rate, batch.lengths)
    values.setdefault(f"mel_distance{suffix}", []).append(distance.cpu())


def _show(batch: Batch, made: Tensor, rate: int, out: Path) -> None:
    lengths = batch.lengths[:SHOWN].cpu()
    drawn = [spectrograms(media[:SHOWN], rate, lengths, seconds=4.0) for media in (batch.media, made)]
    save_grid(pairs(*drawn, columns=SHOWN), out / "reconstructions.png", min(SHOWN, len(lengths)))
    for name, media in (("original", batch.media), ("reconstruction", made)):
        for i, (wave, n) in enumerate(zip(media[:SHOWN], lengths.tolist())):
            save_sound(wave[:, :n], out / f"{i:02d}_{name}.wav", rate)
