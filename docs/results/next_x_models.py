"""The trained models of next_x.md on CIFAR-10: entity kinds, contexts, latents beside code vectors; and the two models of docs/zoo.

    python docs/results/next_x_models.py train NAME ... [seed=0] shards='PATH/cifar10-train-{000..004}.tar' held_out=PATH/cifar10-test-000.tar
    python docs/results/next_x_models.py measure NAME ... [seed=0] shards=... held_out=...

Models go into outputs/next_x/NAME_SEED, and are left alone where they are done.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from evidence import CIFAR, HERE, ROOT, Store, cifar_words, measure_samples, table, train_once, train_or_measure

RUNS = ROOT / "outputs" / "next_x"
SMALL = "experiment=cifar10/xar generator.width=96 generator.depth=4 task.views=1 task.augment.flip=false schedule.warmup=50 budget=2min clock=cpu"
LATENTS, CODES = "tokenizer.ckpt=docs/zoo/cifar10_kl", "tokenizer.ckpt=docs/zoo/cifar10_vq"
VARIANTS = {
    "cell4": ("4 cells of 4 x 4", f"{SMALL} {LATENTS}"),
    "cell2": ("16 cells of 2 x 2", f"{SMALL} {LATENTS} generator.entity_side=2"),
    "token": ("64 tokens", f"{SMALL} {LATENTS} generator.entity=token"),
    "subsample": ("4 subsamples of 4 x 4", f"{SMALL} {LATENTS} generator.entity=subsample"),
    "scale": ("4 scales, 1 to 8 a side", f"{SMALL} {LATENTS} generator.entity=scale"),
    "image": ("the whole image", f"{SMALL} {LATENTS} generator.entity=image"),
    "clean": ("4 cells, clean context", f"{SMALL} {LATENTS} generator.context=clean"),
    "increasing": ("4 cells, increasing noise", f"{SMALL} {LATENTS} generator.context=increasing"),
    "decreasing": ("4 cells, decreasing noise", f"{SMALL} {LATENTS} generator.context=decreasing"),
    "codes": ("4 cells of code vectors", f"{SMALL} {CODES}"),
}
"""The finding: 0.9 M parameters each, the same learning rate, schedule, batch and processor minutes."""
MODELS = {
    "xar": ("xAR over latents", f"experiment=cifar10/xar {LATENTS} generator.width=112 generator.depth=5 budget=12min clock=cpu bundle_dtype=bfloat16"),
    "var": ("tokenizer of 85 tokens", "experiment=cifar10/var clock=cpu bundle_dtype=bfloat16"),
    "next_scale": ("next scale", "experiment=cifar10/next_scale tokenizer.ckpt=RUN/bundle generator.width=96 budget=12min clock=cpu bundle_dtype=bfloat16"),
}
"""Those of docs/zoo; next_scale stands on the tokenizer of `var`."""
SAMPLERS = {"next_scale": ["sampler=next_scale", "guidance_schedule=linear"]}
HEUN = ["sampler=entities", "sampler.solver=heun", "sampler.steps=8"]
N, GUIDANCE, SEEDS = 500, 2, (0, 1)
WIDE = {"xar": (1.5, 2), "next_scale": (1.5, 2)}
"""Guidance of the models of docs/zoo."""


def words_of(name: str, seed: int) -> list[str]:
    return [*(VARIANTS | MODELS)[name][1].split(), f"seed={seed}"]


def train(name: str, seed: int, given: dict[str, str]) -> Path:
    words = words_of(name, seed)
    if name == "next_scale":
        words = [word.replace("RUN", str(RUNS / f"var_{seed}")) for word in words]
    return train_once(RUNS / f"{name}_{seed}", [*words, *cifar_words(given)])


def measure(store: Store, name: str, seed: int, given: dict[str, str]) -> None:
    bundle, trained = train(name, seed, given), f"python train.py {' '.join(words_of(name, seed))} {CIFAR}"
    for guidance in WIDE.get(name, (GUIDANCE,)):
        own = [*SAMPLERS.get(name, HEUN), f"n={N}", f"guidance={guidance}", "max_held_out=1000", "max_train=1000"]
        picture = f"next_x_cifar10_{name}.png" if name in WIDE and guidance == 2 else None
        key = f"cifar10/{name}/guidance {guidance}/seed{seed}"
        found = measure_samples(store, key, bundle, own, ["data=cifar10", *cifar_words(given)], trained, seed, picture)
        print(key, {k: round(found[k], 3) for k in ("accuracy", "precision", "recall", "kid", "steps")}, flush=True)


SAYS = """Published (xAR's ablation on ImageNet, FID after 400 epochs): cells 2.48, scales 2.90, the whole image 3.13, tokens 3.51, subsamples 3.58; cells of
1, 2, 4, 8, 16 a side 3.51, 3.04, 2.61, 2.48, 3.13; independent noise 2.48, decreasing 2.78, increasing 2.95, clean 3.45. Here seeds differ by up to 0.4 of
KID, so of the means of two:

* **Kind**: cells 1.01, scales 1.17, subsamples 1.22, tokens 1.27, the whole image 1.31. Cells and scales lead as published; the whole image, third there, is last.
* **Size**: cells of 4 a side 1.01, of 2 1.05, of 1 (tokens) 1.27: larger is better as published, 4 against 2 by less than the seeds differ.
* **Context**: independent noise 1.01, increasing 1.06, clean 1.33, decreasing 1.50. Independent noise leads as published, before increasing by recognised
  classes alone (28 against 18 %). Increasing and decreasing have changed places. A step with a clean context costs twice, so it had half the steps.
* **Target**: latents 1.01, code vectors 1.48, which lose what their 64 codes of 4,096 lose.
"""
COLUMNS = {
    "accuracy": ("recognised", ".1f", 100.0), "precision": ("precision", ".2f", 1.0), "recall": ("recall", ".2f", 1.0), "kid": ("KID", ".2f", 1.0),
    "calls_per_sample": ("calls", ".0f", 1.0),
}  # fmt: skip


def sections(store: Store) -> list[str]:
    """The parts of the page, where they were measured."""

    def row(name: str, title: str, guidance: Any, seeds: tuple[int, ...]) -> tuple[str, ...]:
        key = f"cifar10/{name}/guidance {guidance}"
        forms = {"steps": ("", ".0f", 1.0), **COLUMNS}
        return (title, *(" / ".join(store.value(f"{key}/seed{seed}/{metric}", form, scale) for seed in seeds) for metric, (_, form, scale) in forms.items()))

    parts, head = [], ("steps", *(title for title, _, _ in COLUMNS.values()))
    if any(key.startswith("cifar10/cell4/") for key in store.figures):
        rows = [("model", *head), *(row(name, title, GUIDANCE, SEEDS) for name, (title, _) in VARIANTS.items())]
        parts.append(
            "## Entities, contexts and targets on photographs\n\n"
            "CIFAR-10 by class: xAR of 0.9 M parameters over 64 latents of 4 numbers (and over the vectors of 64 codes), 2 processor minutes each, one "
            f"thread, the same learning rate, schedule and batch; {N} samples by 8 steps of Heun per entity at guidance {GUIDANCE}, two seeds. Trained this "
            f"shortly, they tell an order of early training, and no more.\n\n{table(rows)}\n\n{SAYS}"
        )
    rows = [(f"{MODELS[name][0]}, guidance {guidance}", *row(name, "", guidance, (0,))[1:]) for name in WIDE for guidance in WIDE[name]]
    if any(key.startswith("cifar10/xar/") for key in store.figures):
        parts.append(f"## The models of docs/zoo on photographs\n\n12 processor minutes each, and 12 of the pyramid's tokenizer, one thread.\n\n{table([('model', *head), *rows])}")
        parts += [f"{MODELS[name][0]}:\n\n![{name}](next_x_cifar10_{name}.png)" for name in WIDE if (HERE / f"next_x_cifar10_{name}.png").is_file()]
    return parts


def main(words: list[str]) -> None:
    from next_x import page

    train_or_measure(words, Store("next_x"), VARIANTS, train, measure, page)


if __name__ == "__main__":
    main(sys.argv[1:])
