"""suite=audio_tokenizers: several tokenizers of sound on the same held-out items, a table and a plot of
quality against rate.

All measures are taken at the rate of the data: a tokenizer of another rate is given the items resampled, and
what it makes is resampled back, so that what it cannot carry counts against it. Rows are tokenizers, and of
nested levels also their first few (of up to eight, every number of them; prefixes=[1, 4] measures these
alone). Axes follow the survey of discrete audio tokenizers (arXiv 2506.10274): reconstruction,
intelligibility, speaker, rate, speed, streaming, use of the codebooks, stability of indices, and what a
linear probe reads. A checkpoint that cannot be measured becomes a line, and the others go on; a measure whose
package is missing is left out of the table, and noted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gentok.build import build
from gentok.bundle import Bundle, load
from gentok.data.datasets import batches
from gentok.data.progress import progress
from gentok.data.sound_files import resample
from gentok.devices import chosen_device
from gentok.entropy import AdaptiveCoder
from gentok.errors import ConfigError, counted
from gentok.evaluation.context import choice, class_names
from gentok.evaluation.rate_plot import draw_rates
from gentok.interfaces import MediaData, Tokenizer
from gentok.metrics.audio import mel_distance, si_sdr
from gentok.metrics.probe import linear_probe
from gentok.metrics.reconstruction import CodeStatistics
from gentok.metrics.speech import dnsmos, pesq, speaker_similarity, stoi
from gentok.metrics.spoken_digits import Transcripts, recognition, transcribed
from gentok.types import Batch, Tokens

__all__ = ["audio_tokenizers"]

ALL_LEVELS = 8
"""Of so many levels every prefix is a row; of more, those of 1, 2, 4, ... levels; where `prefixes` are named,
these."""
PIECES = 8
"""Parts of an item whose mean vectors a probe reads side by side."""
FEW, MOST = 3, 10
"""few_probe_accuracy: the mean of up to MOST probes, each of FEW training items per class and no others.
Where enough items make every tokenizer's classes legible, it says in whose tokens they lie open."""
ORIGINALS = "the sounds themselves"

Measure = Callable[[Tensor, Tensor, int, Tensor], Tensor]
MEASURES: dict[str, Measure] = {  # (made, media, rate, lengths) -> float [b]; NaN where an item cannot be rated
    "si_sdr_db": lambda made, media, rate, ends: si_sdr(made, media, ends),
    "mel_distance": mel_distance,
    "pesq": pesq,
    "stoi": stoi,
    "dnsmos": lambda made, media, rate, ends: dnsmos(made, rate, ends)["overall"],
    "speaker_similarity": speaker_similarity,
}
COLUMNS = {
    "levels": "d", "frames_per_second": ".1f", "kbit_per_second": ".2f", "coded_kbit_per_second": ".2f", **dict.fromkeys(MEASURES, ".2f"),
    "word_error_rate": ".3f", "digit_accuracy": ".3f",
    "probe_accuracy": ".3f", "few_probe_accuracy": ".3f", "least_usage": ".3f", "index_stability": ".3f", "real_time_factor": ".1f",
    "latency_ms": ".0f", "parameters": ",d",
}  # fmt: skip
"""Of the table, with their formats."""


def audio_tokenizers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Compares tokenizers. Writes audio_tokenizers.json, audio_tokenizers.md and rates.png into `out`.

    Args:
        config: conf/evaluate.yaml with `ckpts`, as a plain dict.

    Returns:
        {"rows": {name: {measure: value}}, "failed": {name: line}, "left_out": [lines]}.

    Raises:
        ConfigError: there is no checkpoint, or the data are no sounds.
        ValueError: every checkpoint failed.
    """
    if not config["ckpts"]:
        raise ConfigError("suite=audio_tokenizers compares tokenizers: name them, ckpts=[PATH, PATH]")
    if not isinstance(config.get("data"), Mapping):
        raise ConfigError(
            "suite=audio_tokenizers needs the sounds to compare on: data=spoken_digits, or data=sound_folder data.path=FOLDER"
        )
    data = build(config["data"], trust=config["trust"], where="data", role=MediaData)
    if data.sample_rate is None:
        raise ConfigError("suite=audio_tokenizers is of sounds, these data are images")
    out = Path(config["out"])
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"rows": {ORIGINALS: {}}, "failed": {}, "left_out": []}
    suite = _Suite.of(config, data, report["left_out"])
    report["rows"][ORIGINALS] = suite.qualities([batch.media for batch in suite.items])
    for path in config["ckpts"]:
        name = str(path)
        try:
            bundle = load(path, trust=config["trust"], ema=config["ema"], device=suite.device)
            report["rows"] |= suite.rows(name, bundle)
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            report["failed"][name] = " ".join(str(error).split()) or type(error).__name__
            print(f"gentok: {name}: {report['failed'][name]}")
        _write(report, out)
    if len(report["rows"]) == 1:
        raise ValueError(f"none of {len(config['ckpts'])} tokenizers could be measured: {next(iter(report['failed'].values()))}")
    print(f"written to {out}")
    return report


@dataclass
class _Suite:
    """What all tokenizers are measured with. items: all held-out items; transcripts: of each, where they are
    digits."""

    config: Mapping[str, Any]
    data: MediaData
    items: list[Batch]
    measures: dict[str, Measure]
    transcripts: list[Transcripts] | None
    device: str

    @classmethod
    def of(cls, config: Mapping[str, Any], data: MediaData, left_out: list[str]) -> _Suite:
        items = _chosen(data.held_out, config["max_held_out"], config["batch_size"])
        return cls(config, data, items, _available(data, left_out), transcribed(items, data, left_out), chosen_device(config["device"]))

    def rows(self, name: str, bundle: Bundle) -> dict[str, dict[str, Any]]:
        """{name: {measure: value}} of a tokenizer and of its first levels. Raises ValueError where it does
        not fit the data."""
        tokenizer, spec = bundle.tokenizer.eval(), bundle.spec
        if spec.modality != "audio" or not spec.levels:
            raise ValueError("this is no tokenizer of sound with codes")
        takes, has = spec.media_shape[0], self.data.media_shape[0]
        if takes != has:
            raise ValueError(f"it takes {counted(takes, 'channel')}, the data have {has}: set data.channels")
        began, tokens = time.perf_counter(), []
        with progress(f"encoding {Path(name).name}", len(self.items), "batches", self.config["progress"]) as advance:
            for batch in self.items:
                tokens.append(self.encoded(tokenizer, batch.media, batch.lengths))
                advance(1)
        encoding = time.perf_counter() - began
        seconds = sum(int(batch.lengths.sum()) for batch in self.items) / self.data.sample_rate
        rows, wanted = {}, self.config["prefixes"]
        fewer = range(1, spec.levels) if spec.nested_levels else ()
        prefixes = [k for k in fewer if (k in wanted if wanted else spec.levels <= ALL_LEVELS or k.bit_count() == 1)]
        for levels in (spec.levels, *prefixes):
            began = time.perf_counter()
            kept = tokens if levels == spec.levels else [t.truncate(levels=levels) for t in tokens]
            made = [self.decoded(tokenizer, t, batch) for t, batch in zip(kept, self.items)]
            decoding = time.perf_counter() - began
            row = {"levels": levels, **_rates(kept, spec.vocab_sizes[:levels], seconds), **self.qualities(made)}
            if levels == spec.levels:
                row |= self.code_use(tokenizer, tokens, made) | self.probes(tokenizer)
                row |= {"real_time_factor": seconds / (encoding + decoding), "parameters": sum(p.numel() for p in tokenizer.parameters())}
                latency = tokenizer.latency_samples
                row["latency_ms"] = None if latency is None else 1000 * latency / spec.sample_rate
            rows[name if levels == spec.levels else f"{name}, first {levels}"] = row
        return rows

    @torch.no_grad()
    def encoded(self, tokenizer: Tokenizer, media: Tensor, lengths: Tensor) -> Tokens:
        """Tokens of sounds at the data's rate."""
        rate, wanted = self.data.sample_rate, tokenizer.spec.sample_rate
        if rate != wanted:
            media, lengths = resample(media, rate, wanted), -(-lengths * wanted // rate)
        return tokenizer.encode(media.to(self.device), lengths.to(self.device))

    @torch.no_grad()
    def decoded(self, tokenizer: Tokenizer, tokens: Tokens, batch: Batch) -> Tensor:
        """The reconstruction at the data's rate, of the shape of the batch's media, on the CPU."""
        made, own, samples = tokenizer.decode(tokens).float().cpu(), tokenizer.spec.sample_rate, batch.media.shape[2]
        made = (made if own == self.data.sample_rate else resample(made, own, self.data.sample_rate))[..., :samples]
        made = F.pad(made, (0, samples - made.shape[2]))
        return (made * (torch.arange(samples) < batch.lengths[:, None])[:, None]).clamp(-1, 1)

    def qualities(self, made: list[Tensor]) -> dict[str, float]:
        """Means over the items that each measure can rate, and what is recognised of digits."""
        out, rate = {}, self.data.sample_rate
        for name, measure in self.measures.items():
            values = [measure(sounds, batch.media, rate, batch.lengths).double().cpu() for batch, sounds in zip(self.items, made)]
            out[name] = float(torch.cat(values).nanmean())
        if self.transcripts is not None:
            out |= recognition(self.transcripts, made, [batch.lengths for batch in self.items], rate)[0]
        return out

    def code_use(self, tokenizer: Tokenizer, tokens: list[Tokens], made: list[Tensor]) -> dict[str, Any]:
        """Use of the codebooks, and the share of the codes that are found again in the reconstructions."""
        statistics = CodeStatistics(tokenizer.spec)
        for own, sounds, batch in zip(tokens, made, self.items):
            statistics.update(own, self.encoded(tokenizer, sounds, batch.lengths))
        report = statistics.health.compute()
        of_levels = {"usage": list(report.usage), "entropy_bits": list(report.entropy)}
        return {**of_levels, "least_usage": min(report.usage), "index_stability": statistics.survived}

    def probes(self, tokenizer: Tokenizer) -> dict[str, float]:
        """probe_accuracy and few_probe_accuracy; {} without classes, or where there are too few items."""
        classes, out = len(class_names(self.data.condition_spec)), {}
        if not classes:
            return out
        train = _chosen(self.data.train.whole(), min(self.config["max_train"], 1000), self.config["batch_size"])
        (x, labels), held_out = ((self.pooled(tokenizer, part), _labels(part)) for part in (train, self.items))
        try:
            out["probe_accuracy"] = linear_probe(x, labels, *held_out, classes)["accuracy"]
            sets = min(MOST, len(x) // (FEW * classes))
            if sets:
                few = choice(len(x), len(x))[: sets * FEW * classes].view(sets, -1)  # files of a folder lie class by class
                out["few_probe_accuracy"] = sum(linear_probe(x[i], labels[i], *held_out, classes)["accuracy"] for i in few) / sets
        except ValueError as error:
            print(f"gentok: left out: {error}")
        return out

    def pooled(self, tokenizer: Tokenizer, items: list[Batch]) -> Tensor:
        """float32 [n, PIECES * D]: the quantized vectors' means over eighths of each item."""
        rows = []
        for batch in items:
            tokens = self.encoded(tokenizer, batch.media, batch.lengths)
            with torch.no_grad():
                vectors = tokenizer.codebook.lookup(tokens.codes).float().cpu()
            rows += [F.adaptive_avg_pool1d(v[None, :, : max(1, n)], PIECES).flatten(1) for v, n in zip(vectors, tokens.lengths.tolist())]
        return torch.cat(rows)


def _chosen(items: Any, most: int, batch_size: int) -> list[Batch]:
    """Up to `most` items of a set, in batches."""
    return list(batches(items, batch_size, rows=choice(len(items), min(len(items), most)).sort().values.tolist()))


def _labels(items: list[Batch]) -> Tensor:
    return torch.cat([batch.condition.parts["class"].ids for batch in items])


def _available(data: MediaData, left_out: list[str]) -> dict[str, Measure]:
    """The measures whose packages are there, tried on noise."""
    wave = 0.1 * torch.randn(1, 1, data.sample_rate, generator=torch.Generator().manual_seed(0))
    found = {}
    for name, measure in MEASURES.items():
        try:
            measure(wave, wave, data.sample_rate, torch.tensor([data.sample_rate]))
            found[name] = measure
        except ImportError as error:
            left_out.append(f"{name}: {error}")
    return found


def _rates(tokens: list[Tokens], sizes: tuple[int, ...], seconds: float) -> dict[str, float]:
    """Frames and bits per second: of ids one by one, and as gentok.codec stores them."""
    coder, coded, frames, bits = AdaptiveCoder(sizes), 0, 0, 0.0
    strided = any(bool((t.codes[:, : len(sizes)] < 0).any(2).ne((t.codes[:, :1] < 0).any(2)).any()) for t in tokens)
    for t in tokens:
        present = t.present[:, : len(sizes)]
        frames += int(present.any(1).sum())
        bits += sum(float(present[:, k].sum()) * torch.tensor(float(v)).log2().item() for k, v in enumerate(sizes))
        if not strided:
            for row, own in zip(t.codes, present.any(1)):
                coded += 8 * len(coder.encode(row[: len(sizes), own].cpu().numpy()))
    found = {"frames_per_second": frames / seconds, "kbit_per_second": bits / seconds / 1000}
    return found if strided else {**found, "coded_kbit_per_second": coded / seconds / 1000}


def _write(report: Mapping[str, Any], out: Path) -> None:
    (out / "audio_tokenizers.json").write_text(json.dumps(report, indent=1) + "\n")
    columns = {name: form for name, form in COLUMNS.items() if any(row.get(name) is not None for row in report["rows"].values())}
    lines = ["| tokenizer | " + " | ".join(name.replace("_", " ") for name in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in report["rows"].items():
        cells = ("–" if row.get(column) is None else format(row[column], form) for column, form in columns.items())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [f"\n{name} could not be measured: {line}" for name, line in report["failed"].items()]
    lines += [f"\nLeft out: {line}" for line in report["left_out"]]
    (out / "audio_tokenizers.md").write_text("\n".join(lines) + "\n\n![Quality against rate](rates.png)\n")
    draw_rates(report, out / "rates.png")
