"""Measures prediction of entities and of scales: writes next_x.json, next_x.md and the pictures beside it.

    python docs/results/next_x.py measure ROW=BUNDLE ... [guidance=1.5] [seed=0] [n=1000]    recognised digits, distances, calls
    python docs/results/next_x.py seconds ROW=BUNDLE ... [rounds=5]                          seconds of 16 images, samplers in turn
    python docs/results/next_x.py page                                                       the page anew, from the figures that are there

A row is a sampler of ROWS, its bundle a model of the digits of mnist5k that it fits.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from evidence import HERE, Store, figures, held_by_tests, table
from next_x_models import sections

from gentok.bundle import load
from gentok.cli import compose
from gentok.evaluate import evaluate
from gentok.sampling import sample

ROWS = {
    "next_scale": ("next scale", "sampler=next_scale"),
    "xar": ("xAR, 4 cells, 8 steps of Heun", "sampler=entities sampler.solver=heun sampler.steps=8"),
    "xar_growing": ("the same, guidance grows, the first cell has none", "sampler=entities sampler.solver=heun sampler.steps=8"),
    "ar": ("autoregressive", "sampler=autoregressive"),
    "jacobi": ("Jacobi, coupled, window 16", "sampler=jacobi sampler.window=16"),
    "masked": ("MaskGIT, 16 steps", "sampler=maskgit sampler.steps=16"),
}
"""name: what the table calls it, words of evaluate.py."""
GROWING = ("next_scale", "xar_growing")
"""Their guidance grows with the scale or the entity, as published."""
LAWS = {
    "point masses, mixtures and correlated entities are recovered; every solver at its order; the stochastic one keeps the marginal": "samplers/test_entities",
    "entity = image is plain flow matching, entity = token is token-wise; entities are linear maps that fit their grid": "generators/test_xar_generator flow/test_entity_maps",
    "next-scale sampling, path by path, with known scales, filters and guidance": "exact/test_exact_next_scale",
    "cached scales are uncached ones; a scale sees those before it, and nothing else": "generators/test_next_scale_generator",
}  # fmt: skip


def words_of(name: str) -> list[str]:
    return [*ROWS[name][1].split(), f"guidance_schedule={'linear' if name in GROWING else 'constant'}"]


def measure(store: Store, name: str, path: str, guidance: float, seed: int, n: int) -> None:
    began, own = time.monotonic(), [*words_of(name), f"n={n}", f"guidance={guidance:g}", f"seed={seed}"]
    with tempfile.TemporaryDirectory() as out:
        report = evaluate(compose("evaluate", [f"ckpt={path}", f"out={out}", *own, "data=mnist5k", "progress=false"]))
        (Path(out) / "samples.png").replace(HERE / f"next_x_mnist5k_{name}.png")
    bundle = load(path)
    about = {"parameters": sum(p.numel() for p in bundle.generator.parameters()), "steps": bundle.meta["step"]}
    found = {**{k: v for k, v in report["metrics"].items() if not isinstance(v, dict)}, **about}
    key = f"mnist5k/{name}/guidance {guidance:g}"
    how = f"python -m gentok.evaluate ckpt={path} {' '.join(own)}"
    protocol = {k: v for k, v in report["protocol"].items() if k not in ("ckpt", "data")}  # which hold paths
    store.add(figures(key, found, how, seed, time.monotonic() - began), {key: protocol})
    print(key, {k: round(found[k], 3) for k in ("accuracy", "recall_share", "kid", "calls_per_sample")}, flush=True)


def seconds(store: Store, paths: dict[str, str], rounds: int, batch: int = 16) -> None:
    """Medians of interleaved rounds."""
    bundles = {path: load(path) for path in paths.values()}
    taken: dict[str, list[float]] = {name: [] for name in paths}
    for turn in range(rounds + 1):
        for name, path in paths.items():
            sampler = compose("sample", [f"ckpt={path}", *words_of(name)])["sampler"]
            out = sample(bundles[path], n=batch, condition=[i % 10 for i in range(batch)], sampler=sampler, seed=turn, guidance=1.0)
            if turn:
                taken[name].append(out.seconds / batch)
    for name, values in taken.items():
        how = f"python docs/results/next_x.py seconds {' '.join(f'{n}={p}' for n, p in paths.items())} rounds={rounds}"
        store.add(figures(f"mnist5k/{name}", {"seconds_per_image": statistics.median(values)}, how, 1, sum(values) * batch))
        print(name, round(statistics.median(values), 4), flush=True)


def page(store: Store) -> None:
    parts = ["""# Entities and scales

Samples of models of mnist5k's digits, conditioned on the digit: `next_scale` over a pyramid of 1, 2, 4 and 8 cells a side, `xar` over the vectors of the
same 64 codes as the autoregressive and the masked one. This page is made by `python docs/results/next_x.py page` from [next_x.json](next_x.json), where
every figure has its command, seed, seconds and machine.
""", held_by_tests(LAWS)]  # fmt: skip
    rows = [("model and sampler", "parameters", "guidance", "recognised", "recall share", "precision", "KID", "calls", "seconds per image")]
    for name, (title, _) in ROWS.items():
        found = sorted({key.rpartition("/")[0] for key in store.figures if key.startswith(f"mnist5k/{name}/guidance ")})
        for key in found or [f"mnist5k/{name}/guidance –"]:
            value: Any = lambda metric, form, scale=1.0: store.value(f"{key}/{metric}", form, scale)  # noqa: B023, E731
            rows.append((title, value("parameters", ",.0f"), key.rpartition(" ")[2], value("accuracy", ".1f", 100.0), value("recall_share", ".2f"),
                         value("precision", ".2f"), value("kid", ".3f"), value("calls_per_sample", ".1f"),
                         store.value(f"mnist5k/{name}/seconds_per_image", ".4f")))  # fmt: skip
    parts.append("""## Digits

1,000 samples each, where they were measured here. Recognised: the eval classifier sees the wanted digit, in per cent. Recall share: recall against held-out digits, over that of as
many training digits. Calls are network calls per sample, of an entity's solver or a scale; seconds are of 16 images at once, one thread, without
guidance, samplers in turn.
""" + "\n" + table(rows))  # fmt: skip
    pictures = [f"{title}:\n\n![{title}](next_x_mnist5k_{name}.png)" for name, (title, _) in ROWS.items() if (HERE / f"next_x_mnist5k_{name}.png").is_file()]
    (HERE / "next_x.md").write_text("\n\n".join(part.strip() for part in [*parts, *pictures, *sections(store)]) + "\n")


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    store = Store("next_x")
    given = dict(word.split("=", 1) for word in words[1:])
    seed, n, rounds = (int(given.pop(name, default)) for name, default in (("seed", 0), ("n", 1000), ("rounds", 5)))
    guidance = float(given.pop("guidance", 1.5))
    if words[0] == "measure":
        for name, path in given.items():
            measure(store, name, path, guidance, seed, n)
    elif words[0] == "seconds":
        seconds(store, given, rounds)
    page(store)


if __name__ == "__main__":
    main(sys.argv[1:])
