"""The trained models of density.md: FlexTok on CIFAR-10 with a decoder of several token densities.

    python docs/results/density_models.py train NAME ... [seed=0] shards='PATH/cifar10-train-{000..004}.tar' held_out=PATH/cifar10-test-000.tar
    python docs/results/density_models.py measure NAME ... [seed=0] shards=... held_out=...

NAME is one of SETTINGS, trained for MINUTES of processor time, or NAME-steps, trained for as many steps as `dense` of the same seed had. Models
go into outputs/density/NAME_SEED, and are left alone where they are done.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from evidence import CIFAR, ROOT, Store, cifar_words, figures, train_once, train_or_measure
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

RUNS = ROOT / "outputs" / "density"
MINUTES, SEEDS, ITEMS, PICTURES, FLOW_STEPS = 1, (0, 1), 1000, 250, 8
BASE = (
    "experiment=cifar10/flextok tokenizer.patch=1 tokenizer.registers=16 tokenizer.encoder_width=96 tokenizer.decoder_width=96 "
    "tokenizer.decoder_depth=8 batch_size=16 schedule.warmup=30 clock=cpu data.in_memory=false "
    "task.decode_items=16"
)
PLACE = "_target_:gentok.nn.density.Density"
SETTINGS = {
    "dense": ("dense", ""),
    "quarter": ("1/4 of the patches, registers with them", "rate:0.75"),
    "waiting": ("1/4 of the patches, registers wait", "rate:0.75,registers:false"),
    "timed": ("9/16 to 1/16 of the patches by time, registers wait", "rate:0.4375,noise_rate:0.9375,registers:false"),
}
NAMES = (*SETTINGS, *(f"{name}-steps" for name in SETTINGS if name != "dense"))


def counted(work: Callable[[], Any]) -> int:
    """Floating-point operations of a call, by torch's counter, which does not know the fused attention of processors."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def steps_of_dense(seed: int) -> int:
    from gentok.bundle import load

    return int(load(RUNS / f"dense_{seed}" / "bundle").meta["step"])


def words_of(name: str, seed: int) -> list[str]:
    plain, _, same_steps = name.partition("-")
    own = SETTINGS[plain][1]
    words = [*BASE.split(), *([f"tokenizer.density={{{PLACE},{own}}}"] if own else [])]
    return [*words, *([f"steps={steps_of_dense(seed)}", "budget=null"] if same_steps else [f"budget={MINUTES}min"]), f"seed={seed}"]


def train(name: str, seed: int, given: dict[str, str]) -> Path:
    return train_once(RUNS / f"{name}_{seed}", [*words_of(name, seed), *cifar_words(given)])


@torch.inference_mode()
def measure(store: Store, name: str, seed: int, given: dict[str, str]) -> None:
    """The flow's held-out loss, whose times and noise are the same for all models, and what reconstructions of all 16 tokens keep."""
    from gentok.build import build
    from gentok.bundle import load
    from gentok.cli import compose
    from gentok.data.datasets import whole
    from gentok.metrics.image import psnr
    from gentok.rng import RowRNG
    from gentok.types import Batch

    bundle, began = train(name, seed, given), time.monotonic()
    model = load(bundle)
    tokenizer = model.tokenizer.eval()
    data = build(compose("evaluate", ["ckpt=none", "data=cifar10", "data.in_memory=false", *cifar_words(given)])["data"])
    media, _ = whole(data.held_out, ITEMS)
    rows = torch.arange(ITEMS)
    losses = [tokenizer(Batch(media[part], part)).losses["flow"].item() for part in rows.split(250)]
    shown = rows[:PICTURES].split(250)
    made = torch.cat([tokenizer.decode(tokenizer.encode(media[part]), RowRNG.of(0, part), steps=FLOW_STEPS) for part in shown]).clamp(-1, 1)
    values = {
        "held_out_flow_loss": sum(losses) / len(losses), "psnr_db": psnr(made, media[:PICTURES]).mean().item(),
        "steps": model.meta["step"], "training_seconds": model.meta["seconds"],
        "parameters": sum(p.numel() for p in tokenizer.decoder.parameters()),
    }  # fmt: skip
    trained = " ".join(f"'{word}'" if "{" in word else word for word in words_of(name, seed))
    how = f"python docs/results/density_models.py measure {name} seed={seed}, after: python train.py {trained} {CIFAR}"
    store.add(figures(f"{name}/seed{seed}", values, how, seed, time.monotonic() - began))
    print(name, seed, values, flush=True)


def main(words: list[str]) -> None:
    from density import page

    train_or_measure(words, Store("density"), NAMES, train, measure, page)


if __name__ == "__main__":
    main(sys.argv[1:])
