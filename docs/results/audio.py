"""Trains and measures the models of sound: writes audio.json, audio.md and the pictures beside it.

    python docs/results/audio.py train ROW ... [seed=0]      into outputs/audio/ROW (ROW_seed1, ...), left alone where it is done
    python docs/results/audio.py suite ROW ... [seed=0]      tokenizers: suite=audio_tokenizers on ITEMS held-out digits, one by one
    python docs/results/audio.py recorded ROW ...            the same on recorded digits (fsdd)
    python docs/results/audio.py probes ROW ... [seed=0]     who speaks and what is said in recorded digits, as read from the tokens
    python docs/results/audio.py speech ROW ... [seed=0]     generators: N strings of three digits, as a recogniser hears them
    python docs/results/audio.py compress                    an hour and five minutes of sound, as the command line compresses them
    python docs/results/audio.py page                        the page anew, from the figures that are there

Needs the extra `speech` (recogniser and measures of sounds). fsdd=FOLDER: where fsdd-train-000.tar and fsdd-test-000.tar lie.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from evidence import HERE, ROOT, ZOO, Store, figures, held_by_tests, table

from gentok.build import build
from gentok.cli import compose
from gentok.data.datasets import batches
from gentok.data.sound_files import save_sound
from gentok.evaluate import evaluate
from gentok.evaluation.rate_plot import draw_rates

RUNS = ROOT / "outputs" / "audio"
ITEMS, HELD_OUT, N = 40, 150, 200
FSDD = "data.shards=FOLDER/fsdd-train-000.tar data.held_out=FOLDER/fsdd-test-000.tar"


@dataclass(frozen=True)
class Row:
    """words: of train.py. zoo: the bundle of docs/zoo that the run of seed 0 became."""

    title: str
    words: str
    zoo: str | None = None
    tokens: str | None = None


TOKENIZERS = {
    "codec": Row("residual, EMA, inverse STFT", "experiment=spoken_digits/codec", "spoken_digits_codec"),
    "codec_12min": Row("the same, 12 minutes", "experiment=spoken_digits/codec budget=12min"),
    "codec_fast": Row("averages, fixed weights, lr 3e-3", "experiment=spoken_digits/codec optimizer.lr=3e-3 budget=12min"),
    "codec_factorised": Row("factorised, l2, lr 1e-3", "experiment=spoken_digits/codec codebook=residual_factorized codebook.levels=8 codebook.codebook.dim=8 codebook.codebook.width=64 budget=12min"),
    "codec_factorised_fast": Row("factorised, l2, lr 3e-3", "experiment=spoken_digits/codec codebook=residual_factorized codebook.levels=8 codebook.codebook.dim=8 codebook.codebook.width=64 optimizer.lr=3e-3 budget=12min"),
    "codec_balanced": Row(
        "balancer, 0.1 : 1, R = 1, unclipped",
        "experiment=spoken_digits/codec balancer=encodec 'balancer.weights={wave:0.1,mel:1.0}' trainer.clip=null budget=12min",
    ),
    "codec_balanced_even": Row(
        "balancer, 1 : 1, R = 1, unclipped",
        "experiment=spoken_digits/codec balancer=encodec 'balancer.weights={wave:1.0,mel:1.0}' trainer.clip=null budget=12min",
    ),
    "codec_balanced_clipped": Row(
        "balancer, 0.1 : 1, R = 1",
        "experiment=spoken_digits/codec balancer=encodec 'balancer.weights={wave:0.1,mel:1.0}' budget=12min",
    ),
    "codec_balanced_both": Row(
        "balancer, 0.1 : 1, R = 10",
        "experiment=spoken_digits/codec balancer=encodec 'balancer.weights={wave:0.1,mel:1.0}' balancer.total=10 budget=12min",
    ),
    "codec_balanced_strong": Row(
        "balancer, 0.1 : 1, R = 10, unclipped",
        "experiment=spoken_digits/codec balancer=encodec 'balancer.weights={wave:0.1,mel:1.0}' balancer.total=10 trainer.clip=null budget=12min",
    ),
    "codec_causal": Row("causal SEANet, streams", "experiment=spoken_digits/codec_causal budget=12min"),
    "single": Row("one level of 1,024", "experiment=spoken_digits/codec codebook.levels=1 codebook.codebook.vocab_size=1024 budget=12min"),
    "acoustic_12hz": Row(
        "12.5 Hz, by sound alone",
        "experiment=spoken_digits/codec codebook.levels=1 tokenizer.encoder.ratios=[8,8,5,4] tokenizer.decoder.hop=1280 tokenizer.decoder.n_fft=2560 "
        "budget=12min",
    ),
    "semantic": Row("12.5 Hz, by transcripts", "experiment=spoken_digits/semantic budget=12min"),
    "fsdd_codec": Row("residual, EMA, recorded digits", f"experiment=fsdd/codec init_from=docs/zoo/spoken_digits_codec budget=32min {FSDD}", "fsdd_codec"),
}  # fmt: skip
FOUR = "tokenizer=prefix tokenizer.keep=4"  # of 8: more add nothing that a listener would miss
GENERATORS = {
    "ar_delay": Row("delayed autoregression", "experiment=spoken_digits/ar_delay", tokens="codec"),
    "depth": Row("depth transformer, 4 levels", f"experiment=spoken_digits/depth {FOUR}", tokens="codec"),
    "depth_longer": Row(
        "the same, 40 minutes more", f"experiment=spoken_digits/depth {FOUR} budget=40min init_from=outputs/audio/depth/bundle", tokens="codec"
    ),
    "masked": Row("masked, MaskGIT 16 steps, 4 levels", f"experiment=spoken_digits/masked {FOUR}", tokens="codec"),
    "soundstorm": Row("level by level, 16 + 3 steps, 4 levels", f"experiment=spoken_digits/soundstorm {FOUR}", tokens="codec"),
    "layout_delayed": Row("delayed", f"experiment=spoken_digits/ar_delay {FOUR} budget=12min", tokens="codec"),
    "layout_depth": Row("depth transformer", f"experiment=spoken_digits/depth generator.token_dropout=0.1 {FOUR} budget=12min", tokens="codec"),
    "layout_depth_plain": Row("depth transformer, fed every token", f"experiment=spoken_digits/depth {FOUR} budget=12min", tokens="codec"),
    "layout_parallel": Row("parallel", f"experiment=spoken_digits/ar_delay generator.layout=parallel {FOUR} budget=12min", tokens="codec"),
    "layout_flat": Row("flattened", f"experiment=spoken_digits/ar_delay generator.layout=position_major {FOUR} budget=12min", tokens="codec"),
    "layout_level_major": Row("level after level", f"experiment=spoken_digits/ar_delay generator.layout=level_major {FOUR} budget=12min", tokens="codec"),
}
ROWS = TOKENIZERS | GENERATORS
SAMPLER = {"masked": ["sampler=maskgit", "sampler.steps=16"], "soundstorm": ["sampler=soundstorm"]}
VARIANTS = {"": ("as it is", ["guidance=1"]), "/guided": ("guidance 2, temperature 0.7", ["guidance=2", "sampler.temperature=0.7"])}
"""Of every generator: its own distribution, and what listeners would be given."""


def run_of(name: str, seed: int) -> Path:
    return RUNS / (name if seed == 0 else f"{name}_seed{seed}")


def bundle_of(name: str, seed: int) -> Path:
    """The bundle of a row: that of docs/zoo where the run itself is gone."""
    bundle, row = run_of(name, seed) / "bundle", ROWS[name]
    return ZOO / row.zoo if row.zoo and seed == 0 and not bundle.is_dir() else bundle


def command(name: str, seed: int) -> str:
    row = ROWS[name]
    key = "tokenizer.whole.ckpt" if FOUR in row.words else "tokenizer.ckpt"
    on = f" {key}=docs/zoo/{TOKENIZERS[row.tokens].zoo}" if row.tokens else ""
    words = row.words.replace("outputs/audio/depth/", f"outputs/audio/{run_of('depth', seed).name}/")
    return f"python train.py {words}{on} clock=cpu seed={seed}"


def train(names: list[str], seed: int, folder: str) -> None:
    for name in names:
        run = run_of(name, seed)
        if (run / "bundle").is_dir():
            continue
        words = shlex.split(command(name, seed).replace("FOLDER", folder))[1:]
        quiet = ["print_config=false", "trainer.progress_bar=false", "trainer.validate_every=100000"]
        words += [*quiet, f"paths.run={run}", f"paths.cache={RUNS / 'cache'}"]
        if subprocess.run([sys.executable, *words], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode:
            sys.exit(f"the training of {name} failed")


def suite(store: Store, names: list[str], seed: int, folder: str | None = None, prefixes: str = "[1,4]") -> None:
    """All rows by one command; {name}/levels{k}/figure, and originals/figure. folder: of recorded digits, then recorded/... prefixes: of
    several rows, levels that are measured beside all; of a single row they are 1 to all."""
    began, on = time.monotonic(), "" if folder is None else "recorded/"
    paths = {str(bundle_of(name, seed)): name for name in names}
    data = ["data=spoken_digits"] if folder is None else ["data=fsdd", *FSDD.split(), "data.normalize=rms"]
    own = ["suite=audio_tokenizers", *data, f"max_held_out={ITEMS}", "max_train=1000"]
    own += [f"prefixes={prefixes}"] if len(names) > 1 else []
    with tempfile.TemporaryDirectory() as out:
        words = [word.replace("FOLDER", folder or "") for word in own]
        report = evaluate(compose("evaluate", [*words, f"ckpts=[{','.join(paths)}]", f"out={out}", "progress=false"]))
    how = f"python -m gentok.evaluate {' '.join(own)} ckpts=[{','.join(f'RUNS/{name}/bundle' for name in names)}]"
    for title, row in report["rows"].items():
        path, _, _ = title.partition(", first ")
        name = paths.get(path)
        key = on + ("originals" if name is None else f"{name}{'' if seed == 0 else f'/seed{seed}'}/levels{row['levels']}")
        store.add(figures(key, row, f"{how}; {command(name, seed)}" if name else how, seed, time.monotonic() - began))
    print(report["failed"], report["left_out"])


def probes(store: Store, names: list[str], seed: int, folder: str) -> None:
    """recorded/{name}/{digit, speaker}_{probe, few_probe}_accuracy: what a linear probe reads from the tokens of recorded digits."""
    paths = {str(bundle_of(name, seed)): name for name in names}
    for label in ("digit", "speaker"):
        began = time.monotonic()
        data = [*FSDD.split(), f"data.label=json.{label}", "data.normalize=rms", "data.caption=json.text"]
        own = ["suite=audio_tokenizers", "data=sound_shards", *data, f"max_held_out={HELD_OUT}", "max_train=1000", "prefixes=[64]"]
        with tempfile.TemporaryDirectory() as out:
            words = [word.replace("FOLDER", folder) for word in own]
            report = evaluate(compose("evaluate", [*words, f"ckpts=[{','.join(paths)}]", f"out={out}", "progress=false"]))
        how = f"python -m gentok.evaluate {' '.join(own)} ckpts=[RUN/bundle]"
        for path, name in paths.items():
            key = f"recorded/{name}{'' if seed == 0 else f'/seed{seed}'}"
            found = {f"{label}_{kind}_accuracy": report["rows"][path][f"{kind}_accuracy"] for kind in ("probe", "few_probe")}
            store.add(figures(key, found, f"{how}; {command(name, seed)}", seed, time.monotonic() - began))


def speech(store: Store, names: list[str], seed: int) -> None:
    for name, (suffix, (_, words)) in itertools.product(names, VARIANTS.items()):
        if suffix and name.startswith("layout"):  # compared by their own distributions
            continue
        began = time.monotonic()
        own = [f"n={N}", f"seed={seed}", *SAMPLER.get(name, ["sampler=autoregressive"]), *words]
        with tempfile.TemporaryDirectory() as out:
            report = evaluate(compose("evaluate", [f"ckpt={bundle_of(name, seed)}", f"out={out}", *own, "progress=false"]))
            samples = json.loads((Path(out) / "samples.json").read_text())
            if seed == 0 and not suffix and not name.startswith("layout"):
                (Path(out) / "samples.png").replace(HERE / f"audio_{name}.png")
        how = f"python -m gentok.evaluate ckpt=RUN/bundle {' '.join(own)}, after: {command(name, seed)}"
        key = (name if seed == 0 else f"{name}/seed{seed}") + suffix
        protocol = {k: v for k, v in report["protocol"].items() if k not in ("ckpt", "data")}  # which hold paths
        found = figures(key, report["metrics"], how, seed, time.monotonic() - began)
        store.add(found, {key: {**protocol, "first_samples": samples[:16]}})


def compress(store: Store, names: list[str], seed: int) -> None:
    """Seconds, peak memory and bits of `python -m gentok.codec compress` for MINUTES of speech, all held-out digits in turn."""
    ckpt = bundle_of("codec", 0)
    data = build(compose("config", ["experiment=spoken_digits/codec", "data.digits=1", "data.crop=null"])["data"], where="data")
    said = torch.cat([wave[:, :n] for b in batches(data.held_out, 64) for wave, n in zip(b.media, b.lengths.tolist())], 1)
    with tempfile.TemporaryDirectory() as folder:
        for minutes in (5, 60):
            samples = minutes * 60 * data.sample_rate
            path, out = Path(folder) / f"{minutes}.wav", Path(folder) / f"{minutes}.gtk"
            save_sound(said.repeat(1, -(-samples // said.shape[1]))[:, :samples], path, data.sample_rate)
            words = [sys.executable, "-m", "gentok.codec", "compress", str(path), str(out), f"ckpt={ckpt}"]
            began = time.monotonic()
            process, peak = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}), 0.0
            while process.poll() is None:
                peak = max(peak, _peak_mb(process.pid))
                time.sleep(0.2)
            if process.returncode:
                sys.exit("compression failed")
            took = time.monotonic() - began
            found = {"seconds": took, "peak_mb": peak, "kbit_per_second": 8 * out.stat().st_size / minutes / 60_000}
            how = "python -m gentok.codec compress IN.wav OUT.gtk ckpt=docs/zoo/spoken_digits_codec"
            store.add(figures(f"compress/{minutes}min", found, how, 0, took))


def _rows_of(store: Store) -> dict[str, dict[str, Any]]:
    """{title: {measure: value}} of the first seed's tokenizers on spoken digits, as the suite reports them; settings tried are left out."""
    rows: dict[str, dict[str, Any]] = {}
    for name in TOKENIZERS:
        if name in TRIED:
            continue
        levels = [k for k in range(1, 33) if f"{name}/levels{k}/mel_distance" in store.figures]
        for k in levels:
            at = f"{name}/levels{k}/"
            title = name if k == levels[-1] else f"{name}, first {k}"
            rows[title] = {key.removeprefix(at): found["value"] for key, found in store.figures.items() if key.startswith(at)}
    return rows


def _peak_mb(pid: int) -> float:
    """The most memory that the process has held so far; 0 where it has ended. (What wait4 reports would count this script's own in.)"""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def page(store: Store) -> str:
    value, percent = store.value, store.percent
    lines = ["# Sound", "", "Made by `python docs/results/audio.py`; figures with command, seed, seconds and machine: [audio.json](audio.json)."]
    lines += ["", "## A codec of spoken digits, level by level", "", LEVELS]
    head = ("levels", "kbit/s", "SI-SDR, dB", "mel distance", "PESQ", "STOI", "DNSMOS", "speaker", "digits heard")
    measures = ("kbit_per_second", "si_sdr_db", "mel_distance", "pesq", "stoi", "dnsmos", "speaker_similarity")
    forms = dict.fromkeys(measures, ".2f") | {"stoi": ".3f", "speaker_similarity": ".3f"}
    for name, on in (("codec", ""), ("fsdd_codec", "recorded/")):
        rows = [
            (str(k), *(value(f"{on}{name}/levels{k}/{m}", forms[m]) for m in measures), percent(f"{on}{name}/levels{k}/digit_accuracy"))
            for k in range(1, 9) if f"{on}{name}/levels{k}/mel_distance" in store.figures
        ]  # fmt: skip
        if rows:
            rows.append(("originals", *(value(f"{on}originals/{m}", forms[m]) for m in measures), percent(f"{on}originals/digit_accuracy")))
            usage = store.figures.get(f"{on}{name}/levels8/usage", {}).get("value", [])
            lines += ["", f"`{name}`: {ROWS[name].title}", "", table([head, *rows])]
            lines += ["", f"Rows in use by level, of these items: {', '.join(f'{u:.0%}' for u in usage)}. {_usage(name)}"]
    draw_rates({"rows": _rows_of(store)}, HERE / "audio_rates.png")
    lines += ["", "## Tokenizers compared", "", "![Quality against rate](audio_rates.png)", "", ALIKE, "", _compared(store)]
    if "compress/60min/seconds" in store.figures:
        lines += ["", _compressed(store)]
    lines += ["", "## What the parts of a codec do", "", PARTS, "", _parts(store)]
    if any(key.endswith("speaker_probe_accuracy") for key in store.figures):
        lines += ["", "### What is said, and who says it", "", PROBED, "", _probed(store)]
    lines += ["", "## Text to speech", "", SPEECH, "", _speech(store, [name for name in GENERATORS if not name.startswith("layout")])]
    layouts = [name for name in GENERATORS if name.startswith("layout") and f"{name}/word_error_rate" in store.figures]
    if layouts:
        lines += ["", "### Orders of the levels", "", ORDERS, "", _speech(store, layouts)]
    lines += [f"\n![{ROWS[n].title}](audio_{n}.png)" for n in GENERATORS if (HERE / f"audio_{n}.png").is_file()]
    lines += ["", held_by_tests(HELD)]
    return "\n".join(lines) + "\n"


LEVELS = f"""{ITEMS} held-out digits of the one voice, decoded from their first levels. A recogniser chooses among ten digits; the last line of a
table is what it and the measures make of the originals themselves."""
SPEECH = f"""{N} samples given the texts of held-out items ("seven three one"), heard with a grammar of any number of digits. The text is all that
the model is given: it says itself when it has finished (the masked model is told how long). Guidance and temperature of the second line
are the best of five pairs tried on these same texts with the first model, and taken over by the others. Nearest training item: mean distance of
spectrograms as a share of that of held-out items; well below 1 would be copies."""


PARTS = """12 processor minutes each, by the same settings but for what is named; mean of the seeds that there are ± half of what is between them. Rows of one
seed are settings that were tried; of each kind the best went on.
Balancer: shares of the gradient of wave and spectrograms (in 0.1 : 1, EnCodec's), in place of fixed weights, whose shares turn out as 0.05 to 0.1 : 1.
What it sends back has the norm R, and commitment stays outside: EnCodec's R = 1 is a fifth to a sixteenth of what fixed weights send, so commitment
counts for that much more. Clipped to a gradient's norm of 1, but where it says not: R = 10 and clipping together do as well as fixed weights, either
alone does not.
Factorised: levels compared in 8 channels and learnt by gradient (DAC), where the first row takes averages of the residual itself (EnCodec).
Rows of 12.5 Hz have codes of 256."""
PROBED = f"""Recorded digits of six people (fsdd), of which all tokenizers but that of recorded digits never heard one: linear probes on the means of codes'
vectors over eighths of an item, fitted to 1,000 training items, or to three per class (mean of ten such probes); {HELD_OUT} held-out items."""
ALIKE = f"""The {ITEMS} digits by all levels of each; the first and the last row once more by themselves, at every level. Single digits of one voice are
easy to probe: every code tells them apart. Times were taken beside other work: those of equal networks (2,015,458 parameters) differ by that
alone."""
ORDERS = """Equal models (but for the depth transformer's small second one), 12 processor minutes each, on the first 4 levels of the codec, sampled
from their own distribution. Times were taken beside other work. Both seeds put the orders alike: delayed errs least, then level after level, parallel,
the depth transformer, flattened; with time the depth transformer catches up (above)."""
HELD = {
    "codes and waves of the `encodec` package, of transformers' DAC, Mimi and EnCodec, on the same weights, every number of levels; "
    "released files load by path": "tokenizers/test_encodec tokenizers/test_dac tokenizers/test_mimi tokenizers/test_pretrained_codecs",
    "commitment of every level reaches the encoder, dropped levels learn nothing": "codebooks/test_codebook_audio codebooks/test_codebook_residual",
    "revival changes the next lookup, k-means keeps norms, averages are the paper's": "codebooks/test_codebook_audio",
    "the scale of a loss changes no balanced gradient; the balancer is its formula, resumes, and is one on two processes": "losses/test_balancer",
    "a stream gives what the whole gives, in chunks of any size, for every causal preset; its delay is the stated one": "tokenizers/test_codec_streams",
    "length in is length out for every length modulo the hop; what silence, one sample, clipping, NaN, other rates and stereo give": "tokenizers/test_codec",
    "decompression gives back the codes that compression was given": "test_codec_command",
    "two processes are one, a killed and resumed run is the run, a bundle is the model": "training/test_codec_training training/test_sound_training",
}  # fmt: skip
TRIED = ("codec_fast", "codec_factorised", "codec_balanced", "codec_balanced_clipped", "codec_balanced_strong", "codec_balanced_even")
COMPARED = ("codec_12min", "codec_fast", "codec_balanced_both", "codec_balanced_clipped", "codec_balanced", "codec_balanced_strong", "codec_balanced_even", "codec_factorised", "codec_factorised_fast", "acoustic_12hz", "semantic")


def _parts(store: Store) -> str:
    measures = {"si_sdr_db": (".2f", 1), "mel_distance": (".2f", 1), "pesq": (".2f", 1), "stoi": (".3f", 1), "digit_accuracy": (".1f", 100),
                "few_probe_accuracy": (".1f", 100), "least_usage": (".1f", 100), "index_stability": (".1f", 100)}  # fmt: skip
    rows = [("tokenizer", "seeds", "SI-SDR, dB", "mel distance", "PESQ", "STOI", "digits heard, %", "probe of 30, %", "least usage, %", "codes stable, %")]
    for name in COMPARED:
        levels = 1 if name in ("acoustic_12hz", "semantic") else 8
        keys = [f"{name}{seed}/levels{levels}" for seed in ("", "/seed1") if f"{name}{seed}/levels{levels}/si_sdr_db" in store.figures]
        if keys:
            cells = [_of_seeds(store, [f"{key}/{measure}" for key in keys], form, scale) for measure, (form, scale) in measures.items()]
            title = "averages, fixed weights, lr 1e-3" if name == "codec_12min" else ROWS[name].title
            rows.append((title, str(len(keys)), *cells))
    return table(rows)


def _of_seeds(store: Store, keys: Sequence[str], form: str, scale: float) -> str:
    """Mean of the figures that there are ± half of what is between them."""
    each = [scale * store.figures[key]["value"] for key in keys if key in store.figures]
    spread = f" ± {(max(each) - min(each)) / 2:{form}}" if len(each) > 1 else ""
    return f"{sum(each) / len(each):{form}}{spread}" if each else "–"


def _probed(store: Store) -> str:
    rows = [("tokenizer", "seeds", "digit, %", "of 30 items", "speaker, %", "of 18 items")]
    for name, row in TOKENIZERS.items():
        keys = [f"recorded/{name}{seed}" for seed in ("", "/seed1") if f"recorded/{name}{seed}/digit_probe_accuracy" in store.figures]
        if keys:
            kinds = ("digit_probe", "digit_few_probe", "speaker_probe", "speaker_few_probe")
            rows.append((row.title, str(len(keys)), *(_of_seeds(store, [f"{key}/{kind}_accuracy" for key in keys], ".1f", 100) for kind in kinds)))
    return table(rows)


def _usage(name: str) -> str:
    """What the run itself measured, over all of its held-out items."""
    path = bundle_of(name, 0) / "bundle.json"
    metrics = json.loads(path.read_text())["meta"]["metrics"] if path.is_file() else {}
    shares = [value for key, value in metrics.items() if key.startswith("codebook/held_out_usage_")]
    return f"Of all held-out items of its own run: {', '.join(f'{u:.0%}' for u in shares)}." if shares else ""


def _compared(store: Store) -> str:
    value, percent = store.value, store.percent
    head = ("tokenizer", "seed", "tokens/s", "kbit/s", "SI-SDR, dB", "mel distance", "PESQ", "STOI", "digits heard", "probe",
            "least usage", "codes stable", "× real time", "latency, ms", "parameters")  # fmt: skip
    rows = []
    for name, row in TOKENIZERS.items():
        for seed in (0, 1):
            prefix = f"{name}{'' if seed == 0 else f'/seed{seed}'}/levels"
            levels = [k for k in range(1, 33) if f"{prefix}{k}/probe_accuracy" in store.figures]
            if levels:
                at = f"{prefix}{levels[-1]}/"
                rows.append((
                    row.title, str(seed), value(at + "frames_per_second", ".1f", levels[-1]), value(at + "kbit_per_second", ".2f"),
                    value(at + "si_sdr_db", ".2f"), value(at + "mel_distance", ".2f"), value(at + "pesq", ".2f"), value(at + "stoi"),
                    percent(at + "digit_accuracy"), percent(at + "probe_accuracy"), percent(at + "least_usage"),
                    percent(at + "index_stability"), value(at + "real_time_factor", ".0f"), value(at + "latency_ms", ".0f"),
                    value(at + "parameters", ",.0f"),
                ))  # fmt: skip
    return table([head, *rows])


def _compressed(store: Store) -> str:
    hour, short = (f"compress/{minutes}min" for minutes in (60, 5))
    value = store.value
    return (
        f"`python -m gentok.codec compress` takes {value(f'{hour}/seconds', '.0f')} s for an hour of sound and {value(f'{hour}/peak_mb', '.0f')} MB at "
        f"most ({value(f'{short}/peak_mb', '.0f')} MB for five minutes), and writes {value(f'{hour}/kbit_per_second', '.2f')} kbit/s."
    )


def _speech(store: Store, names: Sequence[str]) -> str:
    value, percent = store.value, store.percent
    head = ("", "seed", "word errors", "codec's", "originals'", "mel Fréchet", "training items'", "nearest / held-out's", "bits/token",
            "calls/sample", "× real time")  # fmt: skip
    rows = []
    for name in names:
        row = ROWS[name]
        for seed, (suffix, (how, _)) in itertools.product((0, 1), VARIANTS.items()):
            at = (name if seed == 0 else f"{name}/seed{seed}") + suffix
            if f"{at}/word_error_rate" in store.figures:
                rows.append((
                    f"{row.title}, {how}", str(seed), percent(f"{at}/word_error_rate"), percent(f"{at}/reconstructed_held_out_word_error_rate"),
                    percent(f"{at}/held_out_word_error_rate"), value(f"{at}/mel_frechet", ".2f"), value(f"{at}/training_mel_frechet", ".2f"),
                    value(f"{at}/nearest_training_ratio", ".2f"), value(f"{at}/bits_per_token", ".2f"),
                    value(f"{at}/calls_per_sample", ".1f"), value(f"{at}/real_time_factor", ".1f"),
                ))  # fmt: skip
    return table([head, *rows])


def main(words: list[str]) -> None:
    given: Mapping[str, str] = dict(word.split("=", 1) for word in words if "=" in word)
    names = [word for word in words[1:] if "=" not in word]
    strange = set(names) - set(ROWS)
    if not words or strange:
        sys.exit(f"{__doc__}\nrows: {' '.join(ROWS)}")
    seed, store = int(given.get("seed", 0)), Store("audio")
    if words[0] == "train":
        train(names, seed, given.get("fsdd", "PATH"))
        return
    if words[0] == "probes":
        probes(store, names, seed, given.get("fsdd", "PATH"))
    elif words[0] == "recorded":
        suite(store, names, seed, given.get("fsdd", "PATH"))
    elif words[0] != "page":
        {"suite": partial(suite, prefixes=given.get("prefixes", "[1,4]")), "speech": speech, "compress": compress}[words[0]](store, names, seed)
    (HERE / "audio.md").write_text(page(store))


if __name__ == "__main__":
    main(sys.argv[1:])
