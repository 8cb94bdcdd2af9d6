"""suite=audio_tokenizers: several tokenizers of sound on the same held-out items, a table and a plot of quality against rate.

All measures are taken at the rate of the data: a tokenizer of another rate is given the items resampled, and what it makes is resampled
back, so that what it cannot carry counts against it. Rows are tokenizers, and of nested levels also their first few (of up to eight, every
number of them; prefixes=[1, 4] measures these alone).
Axes follow the survey of discrete audio tokenizers (arXiv 2506.10274): reconstruction, intelligibility, speaker, rate, speed, streaming,
use of the codebooks, stability of indices, and what a linear probe reads. A checkpoint that cannot be measured becomes a line, and the
others go on; a measure whose package is missing is left out of the table, and said.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
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
from gentok.entropy import AdaptiveCoder
from gentok.errors import ConfigError
from gentok.evaluation.context import choice
from gentok.evaluation.speech_recognition import Said, heard, said
from gentok.metrics.audio import mel_distance, si_sdr
from gentok.metrics.codebook import CodebookHealth
from gentok.metrics.probe import linear_probe
from gentok.metrics.speech import dnsmos, pesq, speaker_similarity, stoi
from gentok.types import Batch, Tokens

__all__ = ["audio_tokenizers", "draw_rates"]

ALL_LEVELS = 8
"""Of so many levels every prefix is a row; of more, those of 1, 2, 4, ... levels; where `prefixes` are named, these."""

Measure = Callable[[Tensor, Tensor, int, Tensor], Tensor]
MEASURES: dict[str, Measure] = {  # (made, media, rate, lengths) -> float [b]; NaN where an item cannot be judged
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


def audio_tokenizers(config: Mapping[str, Any]) -> dict[str, Any]:
    """conf/evaluate.yaml with `ckpts` as a plain dict -> {"rows": {name: {measure: value}}, "failed": {name: line}, "left_out": [lines]}.

    Writes audio_tokenizers.json, audio_tokenizers.md and rates.png into `out`. Raises ConfigError where there is no checkpoint, or where
    the data are no sounds, and ValueError where every checkpoint failed.
    """
    if not config["ckpts"]:
        raise ConfigError("suite=audio_tokenizers compares tokenizers: name them, ckpts=[PATH, PATH]")
    if not isinstance(config.get("data"), Mapping):
        raise ConfigError(
            "suite=audio_tokenizers needs the sounds to compare on: data=spoken_digits, or data=sound_folder data.path=FOLDER"
        )
    data = build(config["data"], trust=config["trust"], where="data")
    if getattr(data, "sample_rate", None) is None:
        raise ConfigError("suite=audio_tokenizers is of sounds, these data are pictures")
    device = config["device"] if config["device"] != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    out = Path(config["out"])
    out.mkdir(parents=True, exist_ok=True)
    count = min(len(data.held_out), config["max_held_out"])
    report: dict[str, Any] = {"rows": {"the sounds themselves": {}}, "failed": {}, "left_out": []}
    measures = _available(data, report["left_out"])
    items = list(batches(data.held_out, config["batch_size"], rows=choice(len(data.held_out), count).sort().values.tolist()))
    words = said(items, data, report["left_out"])
    report["rows"]["the sounds themselves"] = _qualities(items, [b.media for b in items], data.sample_rate, measures, words)
    for path in config["ckpts"]:
        name = str(path)
        try:
            bundle = load(path, trust=config["trust"], ema=config["ema"], device=device)
            report["rows"] |= _rows(name, bundle, data, items, measures, words, config, device)
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            report["failed"][name] = " ".join(str(error).split()) or type(error).__name__
            print(f"gentok: {name}: {report['failed'][name]}")
        _write(report, out)
    if len(report["rows"]) == 1:
        raise ValueError(f"none of {len(config['ckpts'])} tokenizers could be measured: {next(iter(report['failed'].values()))}")
    print(f"written to {out}")
    return report


def _available(data: Any, left_out: list[str]) -> dict[str, Measure]:
    """The measures whose packages are there, tried on a noise."""
    wave = 0.1 * torch.randn(1, 1, data.sample_rate, generator=torch.Generator().manual_seed(0))
    found = {}
    for name, measure in MEASURES.items():
        try:
            measure(wave, wave, data.sample_rate, torch.tensor([data.sample_rate]))
            found[name] = measure
        except ImportError as error:
            left_out.append(f"{name}: {error}")
    return found


# ----------------------------------------------------------------------------------------------------------------- one tokenizer


def _rows(
    name: str,
    bundle: Bundle,
    data: Any,
    items: list[Batch],
    measures: Mapping[str, Measure],
    words: list[Said] | None,
    config: Mapping[str, Any],
    device: str,
) -> dict[str, dict[str, Any]]:
    tokenizer, spec = bundle.tokenizer.eval(), bundle.spec
    if spec.modality != "audio" or not spec.levels:
        raise ValueError("this is no tokenizer of sound with codes")
    if spec.media_shape[0] != data.media_shape[0]:
        raise ValueError(f"it takes {spec.media_shape[0]} channel(s), the data have {data.media_shape[0]}: set data.channels")
    began, tokens = time.perf_counter(), []
    with progress(f"encoding {Path(name).name}", len(items), "batches", config["progress"]) as advance, torch.no_grad():
        for batch in items:
            media, ends = _at(batch.media, batch.lengths, data.sample_rate, spec.sample_rate)
            tokens.append(tokenizer.encode(media.to(device), ends.to(device)))
            advance(1)
    encoding = time.perf_counter() - began
    seconds = sum(int(b.lengths.sum()) for b in items) / data.sample_rate
    rows = {}
    fewer = range(1, spec.levels) if spec.nested_levels else ()
    prefixes = [k for k in fewer if (k in config["prefixes"] if config["prefixes"] else spec.levels <= ALL_LEVELS or k.bit_count() == 1)]
    for levels in (spec.levels, *prefixes):
        began = time.perf_counter()
        kept = tokens if levels == spec.levels else [t.truncate(levels=levels) for t in tokens]
        made = [_decoded(tokenizer, t, batch, data.sample_rate, spec.sample_rate) for t, batch in zip(kept, items)]
        decoding = time.perf_counter() - began
        row = {
            "levels": levels,
            **_rates(kept, spec.vocab_sizes[:levels], seconds),
            **_qualities(items, made, data.sample_rate, measures, words),
        }
        if levels == spec.levels:
            row |= _own(tokenizer, tokens, made, items, data, config, device)
            row |= {"real_time_factor": seconds / (encoding + decoding), "parameters": sum(p.numel() for p in tokenizer.parameters())}
            latency = getattr(tokenizer, "latency_samples", None)
            row["latency_ms"] = None if latency is None else 1000 * latency / spec.sample_rate
        rows[name if levels == spec.levels else f"{name}, first {levels}"] = row
    return rows


def _at(media: Tensor, lengths: Tensor, rate: int, wanted: int) -> tuple[Tensor, Tensor]:
    """Sounds and their lengths at another rate."""
    return (media, lengths) if rate == wanted else (resample(media, rate, wanted), -(-lengths * wanted // rate))


@torch.no_grad()
def _decoded(tokenizer: Any, tokens: Tokens, batch: Batch, rate: int, own: int) -> Tensor:
    """The reconstruction at the data's rate, of the shape of the batch's media, on the CPU."""
    made = tokenizer.decode(tokens).float().cpu()
    made = (made if own == rate else resample(made, own, rate))[..., : batch.media.shape[2]]
    made = F.pad(made, (0, batch.media.shape[2] - made.shape[2]))
    return (made * (torch.arange(made.shape[2]) < batch.lengths[:, None])[:, None]).clamp(-1, 1)


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


def _qualities(
    items: list[Batch], made: list[Tensor], rate: int, measures: Mapping[str, Measure], words: list[Said] | None
) -> dict[str, float]:
    """Means over the items that each measure can judge, and what is heard where `words` holds those of every batch's items."""
    out = {}
    for name, measure in measures.items():
        values = [measure(sounds, batch.media, rate, batch.lengths).double().cpu() for batch, sounds in zip(items, made)]
        out[name] = float(torch.cat(values).nanmean())
    if words is not None:
        out |= heard(words, made, [batch.lengths for batch in items], rate)[0]
    return out


@torch.no_grad()
def _own(
    tokenizer: Any, tokens: list[Tokens], made: list[Tensor], items: list[Batch], data: Any, config: Mapping[str, Any], device: str
) -> dict[str, Any]:
    """Use of the codebooks, stability of the indices, and a probe."""
    spec = tokenizer.spec
    health, same, cells = CodebookHealth(spec.vocab_sizes), 0, 0
    for t, sounds, batch in zip(tokens, made, items):
        health.update(t.codes.cpu())
        media, ends = _at(sounds, batch.lengths, data.sample_rate, spec.sample_rate)
        again = tokenizer.encode(media.to(device), ends.to(device))
        width = min(again.codes.shape[2], t.codes.shape[2])
        same += int(((again.codes == t.codes[..., :width])[..., :width] & t.present[..., :width]).sum())
        cells += int(t.present.sum())
    report = health.compute()
    out: dict[str, Any] = {"usage": list(report.usage), "entropy_bits": list(report.entropy)}  # of every level
    out |= {"least_usage": min(report.usage), "index_stability": same / cells}
    spec_of_class = dict(data.condition_spec.parts).get("class")
    if spec_of_class is None:
        return out
    count = min(len(data.train), config["max_train"], 1000)
    whole = data.train.whole() if hasattr(data.train, "whole") else data.train
    train = list(batches(whole, config["batch_size"], rows=choice(len(whole), count).sort().values.tolist()))
    features, labels, classes = [], [], len(spec_of_class.names)
    for part in (train, items):
        x = [_pooled(tokenizer, batch, data.sample_rate, device) for batch in part]
        features.append(torch.cat(x))
        labels.append(torch.cat([batch.condition.parts["class"].ids for batch in part]))
    try:
        probe = linear_probe(features[0], labels[0], features[1], labels[1], classes)
        out["probe_accuracy"] = probe["accuracy"]
        sets = min(MOST, count // (FEW * classes))
        if sets:
            few = choice(count, count)[: sets * FEW * classes].view(sets, -1)  # not side by side: files of a folder lie class by class
            found = [linear_probe(features[0][i], labels[0][i], features[1], labels[1], classes)["accuracy"] for i in few]
            out["few_probe_accuracy"] = sum(found) / sets
    except ValueError as error:
        print(f"gentok: left out: {error}")
    return out


PIECES = 8
"""Parts of an item whose mean vectors a probe reads side by side."""
FEW, MOST = 3, 10
"""few_probe_accuracy: the mean of up to MOST probes, each of FEW training items per class and no others. Where enough items make every
tokenizer's classes legible, it says in whose tokens they lie open."""


def _pooled(tokenizer: Any, batch: Batch, rate: int, device: str) -> Tensor:
    """float32 [b, PIECES * D]: the quantized vectors' means over eighths of each item."""
    media, ends = _at(batch.media, batch.lengths, rate, tokenizer.spec.sample_rate)
    tokens = tokenizer.encode(media.to(device), ends.to(device))
    vectors, lengths = tokenizer.codebook.lookup(tokens.codes).float().cpu(), tokens.lengths.cpu()
    rows = (v[None, :, : max(1, n)] for v, n in zip(vectors, lengths.tolist()))
    return torch.cat([F.adaptive_avg_pool1d(row, PIECES).flatten(1) for row in rows])


# ------------------------------------------------------------------------------------------------------------------------ pages


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


def draw_rates(report: Mapping[str, Any], path: Path) -> None:
    """Writes `path`: a panel for every measure, against kbit per second, with a curve for each tokenizer of that report."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = ("si_sdr_db", "mel_distance", "pesq", "word_error_rate", "digit_accuracy")
    measured = [name for name in shown if any(name in row for row in report["rows"].values())]
    figure, every = plt.subplots(1, len(measured), figsize=(4.4 * len(measured), 3.8), squeeze=False)
    curves: dict[str, list[dict[str, Any]]] = {}
    for name, row in report["rows"].items():
        if "kbit_per_second" in row:
            curves.setdefault(name.partition(", first ")[0], []).append(row)
    colors = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    for axes, measure in zip(every[0], measured):
        for i, (name, rows) in enumerate(curves.items()):
            label = Path(name).parent.name if Path(name).name == "bundle" else Path(name).name
            look = {"color": colors[i % len(colors)], "marker": "os^vDP*X"[i // len(colors) % 8]}  # another marker where colours begin anew
            points = sorted((row["kbit_per_second"], row[measure]) for row in rows if measure in row)
            if points:
                axes.plot(*zip(*points), **look, ms=4, label=label)
        axes.set_xscale("log")
        axes.set_xlabel("kbit per second")
        axes.set_title(measure.replace("_", " "))
        axes.spines[["top", "right"]].set_visible(False)
    if curves:  # beside the axes: it would lie on the curves
        every[0][-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
