"""Measures image tokenizers on CIFAR-10: writes image_tokenizers.json, image_tokenizers.md and the pictures beside it.

    python docs/results/image_tokenizers.py flextok ckpt=RUN/bundle shards='PATH/cifar10-train-{000..004}.tar' held_out=PATH/cifar10-test-000.tar
    python docs/results/image_tokenizers.py page          the page anew, from the figures that are there

flextok: pictures decoded from the first k of their tokens: PSNR with its standard error, class read by the stored judge, and FD-efflite0
of `n` (1,000) reconstructions against their originals, which at such an n compares ks and no more.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from evidence import HERE, Store, figures, machine, table
from torch import Tensor

from gentok.build import build
from gentok.bundle import load
from gentok.cli import compose
from gentok.data.pictures import save_grid
from gentok.data.sets import whole
from gentok.judge import find_judge
from gentok.metrics.classifier import predict
from gentok.metrics.image import frechet, psnr
from gentok.nn.features import pooled
from gentok.noise import Noise

KEEPS = (1, 2, 4, 8, 16, 32, 64)
DATA = "data.shards='PATH/cifar10-train-{000..004}.tar' data.held_out=PATH/cifar10-test-000.tar"


def held_out(words: dict[str, str], n: int) -> tuple[Tensor, Tensor, Any]:
    given = [f"data.shards='{words['shards']}'", f"data.held_out={words['held_out']}"]
    data = build(compose("evaluate", ["ckpt=none", "data=cifar10", *given])["data"])
    media, labels = whole(data.held_out, n)
    return media, labels, data


@torch.inference_mode()
def flextok(store: Store, words: dict[str, str]) -> None:
    """The curve over k of one bundle, and a picture with a row per image and a column per k, the original last."""
    n, steps = int(words.get("n", 1000)), int(words.get("steps", 20))
    media, labels, data = held_out(words, n)
    model = load(words["ckpt"])
    classes = dict(data.condition_spec.parts)["class"].names
    judge = find_judge("auto", classes, tuple(data.media_shape))[0]
    real, noise = pooled(media), torch.arange(n)
    codes = [model.tokenizer.encode(part) for part in media.split(100)]
    shown, began = [], time.monotonic()
    for keep in KEEPS:
        made = torch.cat([model.tokenizer.decode(c, Noise.of(0, i), keep=keep, steps=steps) for c, i in zip(codes, noise.split(100))])
        each = psnr(made, media).double()
        values = {
            "psnr_db": each.mean().item(), "psnr_standard_error": (each.std() / n**0.5).item(),
            "fd_efflite0_own": float(frechet(pooled(made), real)),
            "recognised": (predict(judge, made)[0] == labels).double().mean().item(),
        }  # fmt: skip
        command = f"python docs/results/image_tokenizers.py flextok ckpt=RUN/bundle n={n} steps={steps}, after: {model.meta['command']}"
        store.add(figures(f"flextok/keep{keep}", values, command, 0, time.monotonic() - began))
        print(keep, values, flush=True)
        shown.append(made[:12])
    grid = torch.stack([*shown, media[:12]], 1).flatten(0, 1)
    save_grid(grid, HERE / "flextok_prefixes.png", len(KEEPS) + 1, scale=2)
    size = sum(p.numel() for p in model.tokenizer.parameters())
    about = {"parameters": size, "training_seconds": model.meta["seconds"], "steps": model.meta["step"], "items": n, "flow_steps": steps,
             "usage": model.meta["metrics"]["codebook/held_out_usage"], "perplexity": model.meta["metrics"]["codebook/held_out_perplexity"]}  # fmt: skip
    store.add(figures("flextok", about, model.meta["command"], model.meta["seed"], model.meta["seconds"]))


def page(store: Store) -> str:
    value, percent = store.value, store.percent
    rows = [
        ("tokens kept", *map(str, KEEPS)),
        ("mean PSNR, dB", *(value(f"flextok/keep{k}/psnr_db", ".2f") for k in KEEPS)),
        ("its standard error, dB", *(value(f"flextok/keep{k}/psnr_standard_error", ".2f") for k in KEEPS)),
        ("FD-efflite0 to the originals", *(value(f"flextok/keep{k}/fd_efflite0_own", ".0f") for k in KEEPS)),
        ("class read by the judge", *(percent(f"flextok/keep{k}/recognised") for k in KEEPS)),
    ]
    return f"""# Image tokenizers on CIFAR-10

This page is made by `python docs/results/image_tokenizers.py`; every figure, with its command, seed, seconds and machine, lies in
[image_tokenizers.json](image_tokenizers.json). Machine: {machine()}. The reference tokenizers are on [a page of their own](cifar10.md).

## FlexTok: pictures from the first k tokens

`cifar10/flextok`, {value("flextok/parameters", ",.0f")} parameters, {value("flextok/steps", ",.0f")} steps in {value("flextok/training_seconds", ",.0f")} s of processor time on one core; 64 tokens of 64,000.
{value("flextok/items", ",.0f")} held-out photographs, decoded from one noise each in {value("flextok/flow_steps", ".0f")} Euler steps without guidance. FD-efflite0 is of so few pictures that
it compares the columns and nothing else.

{table(rows)}

PSNR rises with every token; the distance does not fall yet, and the pictures show why: half an hour on one core is far too short for this flow, whose
codes say where light and dark are and little else ({percent("flextok/usage")} of the rows in use, perplexity {value("flextok/perplexity", ".0f")}).

A row per photograph, a column per k; the original last:

![FlexTok prefixes](flextok_prefixes.png)
"""


def main() -> None:
    what, *rest = sys.argv[1:] or ["nothing"]
    words = dict(word.partition("=")[::2] for word in rest)
    store = Store("image_tokenizers")
    if what == "flextok" and {"ckpt", "shards", "held_out"} <= set(words) <= {"ckpt", "shards", "held_out", "n", "steps"}:
        flextok(store, words)
    elif what != "page" or words:
        sys.exit(f"image_tokenizers.py takes flextok ckpt=BUNDLE shards=PATTERN held_out=PATH, or page; got {' '.join(sys.argv[1:])}")
    (HERE / "image_tokenizers.md").write_text(page(store))
    print(f"written to {HERE / 'image_tokenizers.md'}")


if __name__ == "__main__":
    main()
