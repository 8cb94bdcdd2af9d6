"""The trained models of autoregressive.md: coarse to fine beside plain autoregression, of as many parameters and processor minutes.

    python docs/results/autoregressive_models.py train NAME ... [seed=0] shards='PATH/cifar10-train-{000..004}.tar' held_out=PATH/cifar10-test-000.tar
    python docs/results/autoregressive_models.py measure NAME ... [seed=0] shards=... held_out=...

Models go into outputs/autoregressive/NAME_SEED, and are left alone where they are done. The same learning rate, schedule, batch and
budget for all; samples at guidance 1 and 2.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from evidence import HERE, ROOT, Store, figures, table

from gentok.bundle import load
from gentok.cli import compose
from gentok.evaluate import evaluate

RUNS = ROOT / "outputs" / "autoregressive"
TITLES = {
    "ar": "plain autoregression",
    "ctf512": "coarse to fine, 512 labels, k-means",
    "ctf128": "coarse to fine, 128 labels, k-means",
    "random512": "coarse to fine, 512 labels, random clusters",
}
MODELS = {
    "ar": "experiment=cifar10/ar",
    "ctf512": "experiment=cifar10/ctf",
    "ctf128": "experiment=cifar10/ctf generator.clusters=128",
    "random512": "experiment=cifar10/ctf generator.clustering=random",
}
CIFAR = "data.shards='PATH/cifar10-train-{000..004}.tar' data.held_out=PATH/cifar10-test-000.tar"
N, GUIDANCE, SEEDS = 500, (1, 2), (0, 1)


def run_of(name: str, seed: int) -> Path:
    return RUNS / f"{name}_{seed}"


def command(name: str, seed: int) -> str:
    return f"python train.py {MODELS[name]} tokenizer.ckpt=docs/zoo/cifar10_vq budget=12min clock=cpu seed={seed} {CIFAR}"


def data_words(given: dict[str, str]) -> list[str]:
    return [f"data.shards='{given['shards']}'", f"data.held_out={given['held_out']}"]


def train(name: str, seed: int, given: dict[str, str]) -> None:
    run = run_of(name, seed)
    if (run / "bundle").is_dir():
        return
    words = command(name, seed).removesuffix(f" {CIFAR}").split()[1:] + data_words(given)
    quiet = ["print_config=false", "trainer.progress_bar=false", "trainer.validate_every=100000", "trainer.validate_batches=16"]
    words += [*quiet, f"paths.run={run}", f"paths.cache={RUNS / 'cache'}"]
    if subprocess.run([sys.executable, *words], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode:
        sys.exit(f"the training of {name} failed")


def measure(store: Store, name: str, seed: int, given: dict[str, str]) -> None:
    bundle = load(run_of(name, seed) / "bundle")
    about = {"parameters": sum(p.numel() for p in bundle.generator.parameters()), "steps": bundle.meta["step"]}
    for guidance in GUIDANCE:
        began = time.monotonic()
        own = [f"n={N}", f"guidance={guidance}", f"seed={seed}", "max_held_out=1000", "max_train=5000"]
        with tempfile.TemporaryDirectory() as out:
            words = [f"ckpt={run_of(name, seed) / 'bundle'}", f"out={out}", *own, "data=cifar10", *data_words(given), "progress=false"]
            report = evaluate(compose("evaluate", words))
            if seed == 0 and guidance == GUIDANCE[-1]:
                (Path(out) / "samples.png").replace(HERE / f"autoregressive_cifar10_{name}.png")
        how = f"python -m gentok.evaluate ckpt=RUN/bundle {' '.join(own)}, after: {command(name, seed)}"
        found = {**{k: v for k, v in report["metrics"].items() if not isinstance(v, dict)}, **about}
        key = f"cifar10/{name}/guidance {guidance}"
        protocol = {k: v for k, v in report["protocol"].items() if k not in ("ckpt", "data")}  # which hold paths
        store.add(figures(f"{key}/seed{seed}", found, how, seed, time.monotonic() - began), {key: protocol})


COLUMNS = {
    "accuracy": ("recognised", ".1f", 100.0), "precision": ("precision", ".2f", 1.0), "recall": ("recall", ".2f", 1.0), "kid": ("KID", ".2f", 1.0),
    "seconds_of_sampling": (f"seconds of {N} samples", ".0f", 1.0),
}  # fmt: skip


def section(store: Store) -> str:
    """The finding, where it was measured; values of both seeds."""
    if not any(key.startswith("cifar10/ctf512/") for key in store.figures):
        return ""

    def both(name: str, guidance: Any, metric: str, form: str, scale: float = 1.0) -> str:
        return " / ".join(store.value(f"cifar10/{name}/guidance {guidance}/seed{seed}/{metric}", form, scale) for seed in SEEDS)

    models = [("model", "parameters", "steps", "held-out bits per token")]
    models += [(title, store.value(f"cifar10/{name}/guidance 1/seed0/parameters", ",.0f"), both(name, 1, "steps", ".0f"),
                both(name, 1, "held_out_bits_per_token", ".2f")) for name, title in TITLES.items()]  # fmt: skip
    samples = [("model", "guidance", *(title for title, _, _ in COLUMNS.values()))]
    samples += [(title, str(guidance), *(both(name, guidance, metric, form, scale) for metric, (_, form, scale) in COLUMNS.items()))
                for name, title in TITLES.items() for guidance in GUIDANCE]  # fmt: skip
    pictures = [f"![{title}](autoregressive_cifar10_{name}.png)" for name, title in TITLES.items() if (HERE / f"autoregressive_cifar10_{name}.png").is_file()]
    return "\n\n".join([
        "## Coarse to fine beside plain autoregression\n\n"
        "CIFAR-10, 64 tokens of 4,096, conditioned on the class: 12 processor minutes of training each, one thread, the same learning rate, schedule and "
        f"batch; {N} samples at temperature 1, two seeds. All are sampled in 64 calls of the causal model, and one of the refiner.",
        table(models), table(samples), f"Samples at guidance {GUIDANCE[-1]}, in the order of the table:", *pictures,
    ])  # fmt: skip


def main(words: list[str]) -> None:
    from autoregressive import page

    given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    store, seed = Store("autoregressive"), int(given.pop("seed", 0))
    for name in [word for word in words[1:] if "=" not in word] or MODELS:
        if words[0] == "train":
            train(name, seed, given)
        else:
            measure(store, name, seed, given)
            page(store)


if __name__ == "__main__":
    main(sys.argv[1:])
