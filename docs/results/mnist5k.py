"""Measures the reference bundles of mnist5k: `python docs/results/mnist5k.py` writes mnist5k.json, mnist5k.md and the pictures beside it.

Every figure is one of `python -m gentok.evaluate`, whose protocol goes into the JSON with it. Takes about ten minutes on two cores.
`python docs/results/mnist5k.py demo=outputs/demo/metrics.json` adds what `make demo` measured, and measures nothing again.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from evidence import HERE, ZOO, Store, figures, machine, table

from gentok.bundle import load
from gentok.cli import compose
from gentok.evaluate import evaluate

RUNS = {  # name -> (bundle, words of evaluate)
    "vq": ("mnist5k_vq", []),
    "ar": ("mnist5k_ar", []),
    "masked": ("mnist5k_masked", ["sampler=maskgit"]),
}


def measure() -> tuple[dict, dict]:
    """figures: name -> value, unit, command, seed, seconds, machine; reports: name -> what evaluate returned."""
    found, reports = {}, {}
    for name, (bundle, words) in RUNS.items():
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as out:
            report = reports[name] = evaluate(compose("evaluate", [f"ckpt={ZOO / bundle}", f"out={out}", *words]))
            picture = {"vq": "reconstructions"}.get(name, "samples")
            target = "mnist5k_samples.png" if name == "ar" else f"mnist5k_{name}_{picture}.png"
            shutil.copy(Path(out) / f"{picture}.png", HERE / target)
        seconds = round(time.monotonic() - began, 1)
        command = " ".join(["python -m gentok.evaluate", f"ckpt=docs/zoo/{bundle}", *words])
        found |= figures(name, report["metrics"], command, 0, seconds)
    return found, reports


def page(store: Store) -> str:
    value, percent, protocols = store.value, store.percent, store.protocols

    tokenizer = [
        ("64 tokens of 512, 1,000 held-out digits", "measured", "target"),
        ("mean PSNR", value("vq/psnr_db", ".2f") + " dB", "≥ 26 dB"),
        ("SSIM", value("vq/ssim"), ""),
        ("rows in use", percent("vq/usage"), "≥ 95 %"),
        ("perplexity", value("vq/perplexity", ".0f"), "≥ 200"),
        ("entropy of single codes, bits per digit", f"{value('vq/entropy_bits_per_item', '.0f')} of {value('vq/nominal_bits_per_item', '.0f')}", ""),
        ("codes that survive decoding and encoding", percent("vq/codes_surviving_decode_and_encode"), ""),
        ("reconstructions recognised", f"{percent('vq/recognised')} (originals {percent('vq/originals_recognised')})", "≥ 97 %"),
    ]  # fmt: skip
    rows = [("1,000 samples, 100 of each class", "autoregressive", "masked, 12 steps", "real digits", "target")]

    def row(title: str, metric: str, real: str = "", target: str = "", show=value) -> None:
        rows.append((title, show(f"ar/{metric}"), show(f"masked/{metric}"), real, target))

    row("guidance", "guidance", show=lambda k: value(k, "g"))
    row("recognised", "accuracy", percent("ar/held_out_accuracy"), "≥ 92 %", percent)
    row("recognised at guidance 1", "accuracy_at_guidance_1", "", "≥ 75 %", percent)
    row("recall, share of that of training digits", "recall_share", "1", "≥ 0.6")
    row("recall", "recall", value("ar/training_recall"))
    row("precision", "precision", value("ar/training_precision"))
    row("KID, classifier features", "kid", value("ar/training_kid", ".4f"), show=lambda k: value(k, ".4f"))
    row("distance to the nearest training digit, share of held-out digits'", "nearest_training_ratio", "1", "≥ 0.9")
    row("nll of held-out tokens, bits per token", "held_out_bits_per_token")
    row("calls per sample", "calls_per_sample", show=lambda k: value(k, ".0f"))
    row("tokens per second", "tokens_per_second", show=lambda k: value(k, ",.0f"))
    made = []
    for bundle, _ in RUNS.values():
        model = load(ZOO / bundle)
        part = model.generator if model.generator is not None else model.tokenizer
        millions = sum(p.numel() for p in part.parameters()) / 1e6
        made.append((f"`{bundle}`", f"{millions:.2f} M", f"{model.meta['seconds']:.0f} s", f"`{model.meta['command']}`"))
    demo = ""
    if "demo/seconds" in store.figures:
        demo = f"""
## What `make demo` gives

{value("demo/seconds", ".0f")} s after the installation, {store.figures["demo/seconds"]["machine"]}: a tokenizer of {value("demo/reconstruction/psnr_db", ".1f")} dB (usage {percent("demo/reconstruction/usage")}, perplexity
{value("demo/reconstruction/perplexity", ".0f")}, {percent("demo/reconstruction/recognised")} of reconstructions recognised) and a generator of which {percent("demo/generation/accuracy")} of 1,000 samples are recognised at
guidance {value("demo/generation/guidance", "g")} and {percent("demo/generation/accuracy_at_guidance_1")} at guidance 1; recall {value("demo/generation/recall_share", ".2f")} of that of training digits, distance to the nearest training digit
{value("demo/generation/nearest_training_ratio", ".2f")} of that of held-out digits.
"""
    return f"""# Real digits: mnist5k

4,000 training and 1,000 held-out MNIST digits, 32×32, from pixels to new pixels. This page is made by `python docs/results/mnist5k.py`; every
figure, with its command, seed, seconds and machine, lies in [mnist5k.json](mnist5k.json). Machine: {machine()}.

## The tokenizer

{table(tokenizer)}

![Held-out digits over their reconstructions](mnist5k_vq_reconstructions.png)

## The generators

{table(rows)}

The masked model's nll is an upper bound ({protocols["masked"]["nll"].split(", ")[-1]}); the autoregressive one's is exact. "Recognised" by a CNN
that reads {percent("ar/held_out_accuracy")} of held-out digits; precision and recall (k = 3) in its features, against the held-out digits, beside
1,000 training digits against the same.

Autoregressive, a row per class:

![Autoregressive samples](mnist5k_samples.png)

Masked, a row per class:

![Masked samples](mnist5k_masked_samples.png)

{demo.lstrip()}
## How they were trained

{table([("bundle", "parameters", "training", "command"), *made])}

Bundles are stored in bfloat16; the figures above are of the stored weights.
"""


def demo_figures(path: Path) -> dict:
    """outputs/demo/metrics.json as figures."""
    measured = json.loads(path.read_text())
    values = {"seconds": measured["seconds"]}
    for part in ("reconstruction", "generation"):
        values |= {f"{part}/{k}": v[0] if isinstance(v, list) else v for k, v in measured[part]["metrics"].items()}
    return figures("demo", values, "make demo", 0, measured["seconds"])


def main() -> None:
    words = dict(word.partition("=")[::2] for word in sys.argv[1:])
    if set(words) - {"demo"}:
        sys.exit(f"mnist5k.py takes demo=PATH or nothing; got {' '.join(sys.argv[1:])}")
    store = Store("mnist5k")
    if "demo" in words:
        store.add(demo_figures(Path(words["demo"])))
    else:
        found, reports = measure()
        store.add(found, {name: report["protocol"] for name, report in reports.items()})
    (HERE / "mnist5k.md").write_text(page(store))
    print(f"written to {HERE / 'mnist5k.md'}")


if __name__ == "__main__":
    main()
