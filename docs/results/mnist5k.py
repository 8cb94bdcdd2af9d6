"""Measures the reference bundles of mnist5k: `python docs/results/mnist5k.py` writes mnist5k.json, mnist5k.md and the pictures beside it.

Every figure is one of `python -m gentok.evaluate`, whose protocol goes into the JSON with it. Takes about ten minutes on two cores.
`python docs/results/mnist5k.py demo=outputs/demo/metrics.json` adds what `make demo` measured, and measures nothing again.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from gentok.bundle import load
from gentok.cli import compose
from gentok.evaluate import evaluate

HERE = Path(__file__).resolve().parent
ZOO = HERE.parent / "zoo"
RUNS = {  # name -> (bundle, words of evaluate)
    "vq": ("mnist5k_vq", []),
    "ar": ("mnist5k_ar", []),
    "masked": ("mnist5k_masked", []),
}
UNITS = {"psnr_db": "dB", "entropy_bits_per_item": "bit", "nominal_bits_per_item": "bit", "held_out_bits_per_token": "bit/token",
         "tokens_per_second": "token/s", "seconds_of_sampling": "s", "nearest_training": "pixel L2", "held_out_nearest_training": "pixel L2"}  # fmt: skip


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def measure() -> tuple[dict, dict]:
    """figures: name -> value, unit, command, seed, seconds, machine; reports: name -> what evaluate returned."""
    figures, reports = {}, {}
    for name, (bundle, words) in RUNS.items():
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as out:
            report = reports[name] = evaluate(compose("evaluate", [f"ckpt={ZOO / bundle}", f"out={out}", *words]))
            picture = {"vq": "reconstructions"}.get(name, "samples")
            target = "mnist5k_samples.png" if name == "ar" else f"mnist5k_{name}_{picture}.png"
            shutil.copy(Path(out) / f"{picture}.png", HERE / target)
        seconds = round(time.monotonic() - began, 1)
        command = " ".join(["python -m gentok.evaluate", f"ckpt=docs/zoo/{bundle}", *words])
        for metric, value in report["metrics"].items():
            if isinstance(value, list) and len(value) == 1:
                value = value[0]
            figures[f"{name}/{metric}"] = {
                "value": value, "unit": UNITS.get(metric, ""), "command": command, "seed": 0, "seconds": seconds, "machine": machine(),
            }  # fmt: skip
    return figures, reports


def table(rows: list[tuple[str, ...]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, tuple("---" for _ in head), *body))


def page(figures: dict, protocols: dict) -> str:
    def value(key: str, form: str = ".3f", scale: float = 1.0) -> str:
        v = figures[key]["value"]
        return "–" if v is None else format(v * scale, form)

    def percent(key: str) -> str:
        return value(key, ".1f", 100.0) + " %"

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
    if "demo/seconds" in figures:
        demo = f"""
## What `make demo` gives

{value("demo/seconds", ".0f")} s after the installation, {figures["demo/seconds"]["machine"]}: a tokenizer of {value("demo/reconstruction/psnr_db", ".1f")} dB (usage {percent("demo/reconstruction/usage")}, perplexity
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
    same = {"command": "make demo", "seed": 0, "seconds": measured["seconds"], "machine": machine()}
    return {
        f"demo/{k}": {"value": v, "unit": UNITS.get(k.split("/")[-1], "s" if k == "seconds" else ""), **same} for k, v in values.items()
    }


def main() -> None:
    words = dict(word.partition("=")[::2] for word in sys.argv[1:])
    if set(words) - {"demo"}:
        sys.exit(f"mnist5k.py takes demo=PATH or nothing; got {' '.join(sys.argv[1:])}")
    store = HERE / "mnist5k.json"
    before = json.loads(store.read_text()) if store.is_file() else {"figures": {}, "protocols": {}}
    if "demo" in words:
        figures, protocols = {**before["figures"], **demo_figures(Path(words["demo"]))}, before["protocols"]
    else:
        figures, reports = measure()
        figures |= {name: figure for name, figure in before["figures"].items() if name.startswith("demo/")}
        protocols = {name: report["protocol"] for name, report in reports.items()}
    store.write_text(json.dumps({"figures": figures, "protocols": protocols}, indent=1, default=str) + "\n")
    (HERE / "mnist5k.md").write_text(page(figures, protocols))
    print(f"written to {HERE / 'mnist5k.md'}")


if __name__ == "__main__":
    main()
