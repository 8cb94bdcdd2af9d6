"""Measures the reference tokenizers of CIFAR-10: writes cifar10.json, cifar10.md and the pictures beside it.

    python docs/results/cifar10.py shards='PATH/cifar10-train-{000..004}.tar' held_out=PATH/cifar10-test-000.tar
    python docs/results/cifar10.py page          the page anew, from the figures that are there

Every figure is one of `python -m gentok.evaluate` on all 10,000 held-out photographs, whose protocol goes into the JSON with it, but for
the distortion by levels, which is measured here. Takes about twenty minutes on one core.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from evidence import HERE, ZOO, Store, figures, machine, table

from gentok.bundle import load
from gentok.cli import compose
from gentok.data.datasets import batches
from gentok.evaluate import evaluate
from gentok.metrics.image import psnr

BUNDLES = ("vq", "rq")
TITLES = {"vq": "`cifar10_vq`: 64 × 4,096", "rq": "`cifar10_rq`: 64 × 8 levels of 512"}


def data(words: dict[str, str]) -> list[str]:
    return ["data=cifar10", f"data.shards='{words['shards']}'", f"data.held_out={words['held_out']}"]


def measure(store: Store, words: dict[str, str]) -> None:
    for name in BUNDLES:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as out:
            report = evaluate(compose("evaluate", [f"ckpt={ZOO / f'cifar10_{name}'}", f"out={out}", *data(words)]))
            shutil.copy(Path(out) / "reconstructions.png", HERE / f"cifar10_{name}_reconstructions.png")
        command = f"python -m gentok.evaluate ckpt=docs/zoo/cifar10_{name} data=cifar10 data.shards='PATH/cifar10-train-{{000..004}}.tar' data.held_out=PATH/cifar10-test-000.tar"
        protocol = {k: v for k, v in report["protocol"].items() if k not in ("ckpt", "data")}  # which hold paths
        store.add(figures(name, report["metrics"], command, 0, time.monotonic() - began), {name: protocol})
    levels(store, words)


@torch.inference_mode()
def levels(store: Store, words: dict[str, str], count: int = 2000) -> None:
    """PSNR of held-out photographs decoded from the first k levels of the residual tokenizer, with its standard error."""
    from gentok.build import build

    began, model = time.monotonic(), load(ZOO / "cifar10_rq")
    found: dict[int, list[torch.Tensor]] = {}
    for batch in batches(build(compose("evaluate", ["ckpt=none", *data(words)])["data"]).held_out, 125, count):
        tokens = model.tokenizer.encode(batch.media)
        for k in range(1, model.spec.levels + 1):
            found.setdefault(k, []).append(psnr(model.tokenizer.decode(tokens.truncate(levels=k)), batch.media))
    values = {}
    for k, parts in found.items():
        each = torch.cat(parts).double()
        values |= {f"levels{k}/psnr_db": each.mean().item(), f"levels{k}/standard_error": (each.std() / len(each) ** 0.5).item()}
    store.add(figures("rq", values, f"python docs/results/cifar10.py ({count} held-out photographs)", 0, time.monotonic() - began))


def page(store: Store) -> str:
    value, percent = store.value, store.percent

    def across(name: str, metric: str, form: str = ".3f") -> str:
        found = store.figures.get(f"{name}/{metric}", {}).get("value")
        return value(f"{name}/{metric}", form) if not isinstance(found, list) else f"{min(found):{form}} to {max(found):{form}} by level"

    def usage(name: str) -> str:
        found = store.figures[f"{name}/usage"]["value"]
        return f"{100 * min(found if isinstance(found, list) else [found]):.1f} %"

    rows = [("10,000 held-out photographs", *(TITLES[name] for name in BUNDLES), "real photographs")]

    def row(title: str, metric: str, form: str = ".3f", real: str = "", unit: str = "") -> None:
        rows.append((title, *(across(name, metric, form) + unit for name in BUNDLES), real))

    row("mean PSNR", "psnr_db", ".2f", unit=" dB")
    row("SSIM", "ssim")
    row("FD-efflite0, against 10,000 training photographs", "fd_efflite0", ".1f", value("vq/fd_efflite0_real", ".1f"))
    row("FD-efflite0, against their own originals", "fd_efflite0_own", ".1f", "0")
    row("FD-efflite0, between two real halves of 5,000", "fd_efflite0_halves", ".1f")
    rows.append(("class read by the stored eval classifier", *(percent(f"{n}/recognised") for n in BUNDLES), percent("vq/originals_recognised")))
    rows.append(("rows in use, of the least used level", *(usage(n) for n in BUNDLES), ""))
    row("perplexity", "perplexity", ".0f")
    row("bits per photograph, nominal", "nominal_bits_per_item", ",.0f")
    row("entropy of single codes, bits per photograph", "entropy_bits_per_item", ",.0f")
    row("codes that survive decoding and encoding", "codes_surviving_decode_and_encode")
    made = []
    for name in BUNDLES:
        model = load(ZOO / f"cifar10_{name}")
        millions = sum(p.numel() for p in model.tokenizer.parameters()) / 1e6
        made.append((f"`cifar10_{name}`", f"{millions:.2f} M", f"{store.value(f'{name}/training_cpu_seconds', ',.0f')} s", f"`{model.meta['command']}`"))
    head = ["levels decoded", *(str(k) for k in range(1, 9))]
    curve = ["mean PSNR, dB", *(value(f"rq/levels{k}/psnr_db", ".2f") for k in range(1, 9))]
    return f"""# Photographs: the reference tokenizers of CIFAR-10

Two tokenizers of 32×32 photographs that other models and tokenizers are compared on. This page is made by `python docs/results/cifar10.py`; every
figure, with its command, seed, seconds and machine, lies in [cifar10.json](cifar10.json). Machine: {machine()}.

{table(rows)}

FD-efflite0 is a Fréchet distance in features of EfficientNet-lite0, no FID. The column of real photographs holds what held-out originals have
against the same training photographs. The eval classifier is a small ResNet, `gentok/metrics/classifiers/cifar10.safetensors`.

Any first k levels of `cifar10_rq` decode (2,000 held-out photographs; standard errors up to {value("rq/levels8/standard_error", ".2f")} dB):

{table([head, curve])}

Held-out photographs over their reconstructions, `cifar10_vq`:

![cifar10_vq](cifar10_vq_reconstructions.png)

and `cifar10_rq`:

![cifar10_rq](cifar10_rq_reconstructions.png)

## How they were trained

{table([("bundle", "parameters", "processor time", "command"), *made])}

One thread each, in bfloat16. Bundles are stored in bfloat16; the figures are of the stored weights.
"""


def main() -> None:
    words = dict(word.partition("=")[::2] for word in sys.argv[1:])
    store = Store("cifar10")
    if set(words) == {"shards", "held_out"}:
        measure(store, words)
    elif set(words) != {"page"}:
        sys.exit(f"cifar10.py takes shards=PATTERN held_out=PATH, or page; got {' '.join(sys.argv[1:])}")
    (HERE / "cifar10.md").write_text(page(store))
    print(f"written to {HERE / 'cifar10.md'}")


if __name__ == "__main__":
    main()
