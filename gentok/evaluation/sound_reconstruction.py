"""protocol=reconstruction of sounds: what held-out items lose by encode and decode, with all levels and with
the first few."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.data.image_files import pairs, save_grid
from gentok.data.sound_files import save_sound
from gentok.data.spectrograms import spectrograms
from gentok.evaluation.context import Context, in_words
from gentok.evaluation.sharing import Sharing, Work
from gentok.metrics.audio import mel_distance, si_sdr
from gentok.metrics.reconstruction import Reconstructed, RoundTrip
from gentok.types import Batch

__all__ = ["measure", "reconstructions"]

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
    for made, of_batch, length in context.sharing.run(reconstructions, rows=rows, prefixes=prefixes, out=str(out)):
        trip.count(made)
        samples += length
        for name, each in of_batch.items():
            values.setdefault(name, []).append(each)
    report, seconds = trip.statistics.health.compute(own=True), samples / spec.sample_rate
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


def reconstructions(sharing: Sharing, rows: list[int], prefixes: list[int], out: str) -> Work:
    """Of batches of held-out items: (their codes, as Reconstructed without media; figures of each item by name; samples of sound). The
    first items are drawn and written into the folder `out`."""
    trip, rate = RoundTrip(sharing.bundle.tokenizer, prefixes), sharing.bundle.spec.sample_rate
    first = rows[0]

    def make(batch: Batch) -> tuple[Reconstructed, dict[str, Tensor], int]:
        made, values = trip.made(batch), {}
        if first in batch.index.tolist():
            _show(batch, made.media, rate, Path(out))
        for suffix, wave in (("", made.media), *((f"_of_{k}_levels", part) for k, part in made.prefixes.items())):
            values |= _figures(suffix, wave.to(batch.media), batch, rate)
        return replace(made, media=made.media[:0], prefixes={}), values, int(batch.lengths.sum())

    return sharing.held_out_work(rows, make)


def _figures(suffix: str, made: Tensor, batch: Batch, rate: int) -> dict[str, Tensor]:
    """The figures of a batch's items; silent items have no SI-SDR."""
    audible, found = batch.media.abs().amax((1, 2)) > 0, {}
    if bool(audible.any()):
        found[f"si_sdr_db{suffix}"] = si_sdr(made[audible], batch.media[audible], batch.lengths[audible]).cpu()
    found[f"mel_distance{suffix}"] = mel_distance(made, batch.media, rate, batch.lengths).cpu()
    return found


def _show(batch: Batch, made: Tensor, rate: int, out: Path) -> None:
    lengths = batch.lengths[:SHOWN].cpu()
    drawn = [spectrograms(media[:SHOWN], rate, lengths, seconds=4.0) for media in (batch.media, made)]
    save_grid(pairs(*drawn, columns=SHOWN), out / "reconstructions.png", min(SHOWN, len(lengths)))
    for name, media in (("original", batch.media), ("reconstruction", made)):
        for i, (wave, n) in enumerate(zip(media[:SHOWN], lengths.tolist())):
            save_sound(wave[:, :n], out / f"{i:02d}_{name}.wav", rate)
