"""Measures causal decoding in fewer calls: writes autoregressive.json, autoregressive.md and the pictures beside it.

    python docs/results/autoregressive.py calls MODEL=BUNDLE ... [n=48] [seed=0]      calls of every sampler, on models by name
    python docs/results/autoregressive.py windows MODEL=BUNDLE [n=48] [seed=0]        calls against window and guess
    python docs/results/autoregressive.py surprise MODEL=BUNDLE [n=5000] [seed=0]     mean -log p of samples beside plain autoregression's
    python docs/results/autoregressive.py seconds MODEL=BUNDLE [rounds=5]             seconds at batch 1 and 16
    python docs/results/autoregressive.py drafts MODEL=BUNDLE DRAFTS=BUNDLE [n=48]    a smaller generator drafts
    python docs/results/autoregressive.py page                                        the page anew, from the figures that are there

A model's conditions are drawn from its classes or texts in turn. Calls per item are the mean over n items, with its standard error.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch
from autoregressive_models import section
from evidence import HERE, Store, figures, held_by_tests, table
from torch import Tensor

import gentok
from gentok.rng import RowRNG
from gentok.samplers import speculative_decoding
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.base import Sampler
from gentok.samplers.grouped_jacobi import GroupedJacobi
from gentok.samplers.guided import guided
from gentok.samplers.jacobi import Jacobi
from gentok.samplers.request import SampleOutput
from gentok.samplers.speculative import Speculative
from gentok.samplers.zipar import ZipAR
from gentok.types import Condition

SAMPLERS: dict[str, Sampler] = {
    "plain": AutoregressiveSampler(),
    "fresh": Jacobi(window=16, tail="fresh"),
    "fresh, block": Jacobi(window=16, tail="fresh", verify="block"),
    "kept": Jacobi(window=16, tail="kept"),
    "coupled": Jacobi(window=16),
    "gumbel": Jacobi(window=16, tail="gumbel"),
    "gumbel, match": Jacobi(window=16, tail="gumbel", verify="match"),
    "coupled, 4 branches": Jacobi(window=16, branches=4),
    "gumbel, match, 4 branches": Jacobi(window=16, tail="gumbel", verify="match", branches=4),
    "coupled, 4 x 4 branches": Jacobi(window=16, branches=4, depth=2),
    "gumbel, match, 4 x 4 branches": Jacobi(window=16, tail="gumbel", verify="match", branches=4, depth=2),
    "table, 4 branches": Speculative(draft="table", branches=4, depth=2),
    "above": Speculative(draft="above"),
    "grouped": GroupedJacobi(window=16),
    "zipar": ZipAR(lag=4),
}
"""By name; the last two are approximations."""
ABOUT = {"cifar10_ar": "The plain model of the last section, seed 0, which is near the beginning of its training: its conditionals hang little on the ids before them.\n\n"}
"""What is to be known of a model."""
DRAFTS: dict[str, dict[str, Any]] = {
    "chain": {}, "chain, block": {"verify": "block"}, "3 branches": {"branches": 3}, "3 x 3 branches": {"branches": 3, "depth": 2},
    "own, 3 branches": {"own": True, "branches": 3, "window": 16}, "own, 6 branches": {"own": True, "branches": 6, "window": 16},
    "own, 3 x 3 branches": {"own": True, "branches": 3, "depth": 2, "window": 16},
}  # fmt: skip
"""Of a smaller generator; own: beside the model's own drafts."""
QUICK = ("plain", "fresh", "coupled", "gumbel, match", "gumbel, match, 4 branches")
"""Those that are measured with filters and guidance too."""
SETTINGS: dict[str, tuple[dict[str, Any], float]] = {"": ({}, 1.0), "top-k 100": ({"top_k": 100}, 1.0), "guidance 2": ({}, 2.0)}


def conditions(bundle: Any, n: int) -> Condition:
    """n conditions: the classes in turn, or texts of digits."""
    parts = bundle.condition_spec.parts
    if not parts:
        return Condition()
    name, spec = parts[0]
    names = getattr(spec, "names", None)
    words = ["one two three", "seven eight nine", "four zero six", "five five one"]
    return bundle.condition_spec.parse({name: [(names or words)[i % len(names or words)] for i in range(n)]}, n)


def drawn(bundle: Any, sampler: Sampler, n: int, seed: int, guidance: float = 1.0, batch: int = 24, first: int = 0) -> list[SampleOutput]:
    outputs, condition = [], conditions(bundle, first + n)
    for start in range(first, first + n, batch):
        rows = torch.arange(start, min(start + batch, first + n))
        with torch.no_grad():
            outputs.append(sampler(guided(bundle.generator, guidance), condition.rows(rows), rng=RowRNG.of(seed, rows)))
    return outputs


def mean(values: Tensor) -> tuple[float, float]:
    """Mean and standard error."""
    values = values.double()
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def with_settings(sampler: Sampler, settings: dict[str, Any]) -> Sampler:
    import dataclasses

    return dataclasses.replace(sampler, **settings)


class Overlaps:
    """Records, while it is open, how much p and q of the first draft of every window have in common: sum min(p, q)."""

    def __enter__(self) -> Overlaps:
        self.values, self.honest = [], speculative_decoding.verify

        def watched(rule, tree, p, draft, here, *rest):  # type: ignore[no-untyped-def]
            common = torch.minimum(p[:, 0], draft.q[:, tree.main[0]]).sum(-1)
            self.values.append(common[here[:, 0]])
            return self.honest(rule, tree, p, draft, here, *rest)

        speculative_decoding.verify = watched
        return self

    def __exit__(self, *_: Any) -> None:
        speculative_decoding.verify = self.honest

    def mean(self) -> float:
        return torch.cat(self.values).mean().item()


def measure(store: Store, key: str, bundle: Any, sampler: Sampler, n: int, seed: int, guidance: float, command: str) -> None:
    began = time.time()
    try:
        with Overlaps() as overlaps:
            outputs = drawn(bundle, sampler, n, seed, guidance)
    except ValueError as error:  # an order of several slots, or no grid
        print(f"{key}: {error}", flush=True)
        return
    calls, error = mean(torch.cat([out.calls for out in outputs]))
    found = {"calls": calls, "calls_standard_error": error}
    if overlaps.values:
        found["overlap"] = overlaps.mean()
    if "draft" in outputs[0].network_calls:
        found["draft_calls"] = sum(out.network_calls["draft"][0] for out in outputs) / len(outputs)
    store.add(figures(key, found, command, seed, time.time() - began))
    print(key, {name: round(value, 3) for name, value in found.items()}, f"{time.time() - began:.0f} s", flush=True)


def calls(store: Store, models: dict[str, str], n: int, seed: int) -> None:
    for model, path in models.items():
        bundle = gentok.load(path)
        for setting, (filters, guidance) in SETTINGS.items():
            for name in QUICK if setting else SAMPLERS:
                key = f"{model}/{name}" + (f"/{setting}" if setting else "")
                command = f"python docs/results/autoregressive.py calls {model}={path} n={n} seed={seed}"
                measure(store, key, bundle, with_settings(SAMPLERS[name], filters), n, seed, guidance, command)


def windows(store: Store, models: dict[str, str], n: int, seed: int) -> None:
    for model, path in models.items():
        bundle = gentok.load(path)
        for tail, guess in (("fresh", "left"), ("coupled", "left"), ("coupled", "above"), ("coupled", "random")):
            for window in (1, 2, 4, 8, 16, 32, 64):
                command = f"python docs/results/autoregressive.py windows {model}={path} n={n} seed={seed}"
                measure(store, f"{model}/window/{tail}/{guess}/{window}", bundle, Jacobi(window=window, tail=tail, guess=guess), n, seed, 1.0, command)


def surprise(store: Store, models: dict[str, str], n: int, seed: int, names: tuple[str, ...]) -> None:
    """Mean -log p of n samples: of an exact sampler it is that of plain autoregression."""
    for model, path in models.items():
        bundle = gentok.load(path)
        for name in names:
            began, nats = time.time(), []
            for first in range(0, n, 100):
                for out in drawn(bundle, SAMPLERS[name], min(100, n - first), seed, batch=100, first=first):
                    rows = torch.arange(first, first + out.tokens.batch)
                    nats.append(bundle.generator.nll_bound(out.tokens, conditions(bundle, first + 100).rows(rows)))
            value, error = mean(torch.cat(nats))
            command = f"python docs/results/autoregressive.py surprise {model}={path} n={n} seed={seed}"
            store.add(figures(f"{model}/{name}", {"surprise_nats": value, "surprise_standard_error": error}, command, seed, time.time() - began))
            print(model, name, value, error, flush=True)


def seconds(store: Store, models: dict[str, str], rounds: int) -> None:
    """Medians of interleaved rounds, one item and sixteen at once."""
    for model, path in models.items():
        bundle, taken = gentok.load(path), {}
        for turn in range(rounds + 1):
            for batch in (1, 16):
                for name in ("plain", "fresh", "coupled", "gumbel, match", "gumbel, match, 4 branches"):
                    began = time.perf_counter()
                    drawn(bundle, SAMPLERS[name], batch, turn, batch=batch)
                    if turn:
                        taken.setdefault((name, batch), []).append(time.perf_counter() - began)
        for (name, batch), values in taken.items():
            command = f"python docs/results/autoregressive.py seconds {model}={path} rounds={rounds}"
            store.add(figures(f"{model}/{name}/batch {batch}", {"seconds": statistics.median(values)}, command, 1, sum(values)))
            print(model, name, batch, statistics.median(values), flush=True)


def drafts(store: Store, models: dict[str, str], n: int, seed: int) -> None:
    """The second model drafts for the first."""
    (model, path), (_, small) = models.items()
    bundle, generator = gentok.load(path), gentok.load(small).generator
    command = f"python docs/results/autoregressive.py drafts {model}={path} DRAFTS={small} n={n} seed={seed}"
    for name, settings in DRAFTS.items():
        sampler = Speculative(ckpt=generator, **{"window": 8, **settings})
        measure(store, f"{model}/drafts/{name}", bundle, sampler, n, seed, 1.0, command)
    store.add(figures(f"{model}/drafts", {"parameters": sum(p.numel() for p in generator.parameters()),
                                           "model_parameters": sum(p.numel() for p in bundle.generator.parameters())}, command, seed, 0.0))  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------- page

LAWS = {
    "Jacobi decoding in every variant, guess and window, on one and two levels, with known cells, unequal rows, filters and guidance, path by path":
        "exact/test_exact_jacobi",
    "speculative decoding with any drafts": "exact/test_exact_speculative",
    "coarse-to-fine sampling; one cluster is the refiner alone, as many as ids are plain autoregression": "exact/test_exact_coarse_to_fine",
    "rows that leave and join a batch, and prefixes that are computed once": "exact/test_exact_rows",
    "grouped acceptance and ZipAR are exact where they say, and differ elsewhere": "samplers/test_zipar",
}  # fmt: skip


def positions(store: Store, model: str) -> float:
    return store.figures.get(f"{model}/plain/calls", {}).get("value") or float("nan")


def call_rows(store: Store, model: str, names: list[str], setting: str = "") -> list[tuple[str, ...]]:
    rows = []
    end = f"/{setting}" if setting else ""
    for name in names:
        key = f"{model}/{name}{end}"
        if f"{key}/calls" not in store.figures:
            continue
        value, error = (store.figures[f"{key}/{what}"]["value"] for what in ("calls", "calls_standard_error"))
        overlap = store.figures.get(f"{key}/overlap", {}).get("value")
        bound = "–" if overlap is None else f"{overlap:.2f}"
        fewer = store.figures.get(f"{model}/plain{end}/calls", {}).get("value", float("nan")) / value
        rows.append((name.removeprefix("drafts/"), f"{value:.1f} ± {error:.1f}", f"{fewer:.2f}", bound))
    return rows


def page(store: Store) -> None:
    models = sorted({key.split("/")[0] for key in store.figures if key.endswith("/plain/calls")})
    parts = ["""# Causal decoding in fewer calls

One call of a causal model gives one step: Jacobi decoding and speculative decoding verify guesses of the next steps in the same call, and keep as
many as leave the model's own distribution. This page is made by `python docs/results/autoregressive.py page` from
[autoregressive.json](autoregressive.json), where every figure has its command, seed, seconds and machine.

All rows but `grouped` and `zipar` are exact; windows are of 16 steps, where nothing else is said. "Overlap" is sum min(p, q) of a window's first
draft, with which chance it is accepted: the drafts behind a rejected step were predicted behind another id, and on digits half of their
distribution is right. A coupled tail saves a sixth of the calls of a fresh one, siblings another tenth, and a smaller generator's siblings, which
know the id that was drawn in the rejected one's place, a fifth more. A table of what followed an id before, or the row above, say next to nothing about
image tokens. In a delayed order a step of eight levels is accepted only where all eight are, so little is saved there.
""", held_by_tests(LAWS)]  # fmt: skip
    for model in models:
        head = ("sampler", "calls per item", "times fewer", "overlap of the first draft")
        parts.append(f"## {model}\n\n{ABOUT.get(model, '')}{table([head, *call_rows(store, model, list(SAMPLERS))])}")
        for setting in list(SETTINGS)[1:]:
            if found := call_rows(store, model, list(SAMPLERS), setting):
                parts.append(f"With {setting}:\n\n{table([head, *found])}")
        if found := call_rows(store, model, [f"drafts/{name}" for name in DRAFTS]):
            sizes = [store.value(f"{model}/drafts/{what}", ",.0f") for what in ("parameters", "model_parameters")]
            parts.append(f"A generator of {sizes[0]} parameters drafts for this one of {sizes[1]} (window 8; beside the model's own drafts, 16):\n\n{table([head, *found])}")
        timed = [(name, *(store.value(f"{model}/{name}/batch {batch}/seconds") for batch in (1, 16))) for name in SAMPLERS]
        if any(row[1] != "–" for row in timed):
            parts.append("Seconds for one batch, medians of interleaved rounds:\n\n" + table(
                [("sampler", "1 item", "16 items"), *(row for row in timed if row[1] != "–")]))  # fmt: skip
        nats = [(name, store.value(f"{model}/{name}/surprise_nats", ".2f"), store.value(f"{model}/{name}/surprise_standard_error", ".2f")) for name in SAMPLERS]
        if any(row[1] != "–" for row in nats):
            parts.append("Mean −log p of samples in nats, and its standard error:\n\n" + table(
                [("sampler", "nats", "standard error"), *(row for row in nats if row[1] != "–")]))  # fmt: skip
        if picture(store, model):
            parts.append(f"![Calls against the window](autoregressive_{model}_windows.png)")
    parts.append(section(store))
    (HERE / "autoregressive.md").write_text("\n\n".join(part.strip() for part in parts if part) + "\n")


def picture(store: Store, model: str) -> bool:
    """Calls against the window, a line for every tail and guess."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for key, figure in store.figures.items():
        if key.startswith(f"{model}/window/") and key.endswith("/calls"):
            _, _, tail, guess, window, _ = key.split("/")
            lines.setdefault(f"{tail}, guess {guess}", []).append((int(window), figure["value"]))
    if not lines:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points)), marker="o", label=name)
    axes.set(xscale="log", xlabel="window", ylabel="calls per item", title=model)
    axes.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(HERE / f"autoregressive_{model}_windows.png", dpi=90)
    return True


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    store, what = Store("autoregressive"), words[0]
    given = dict(word.split("=", 1) for word in words[1:])
    n, seed, rounds = (int(given.pop(name, default)) for name, default in (("n", 5000 if what == "surprise" else 48), ("seed", 0), ("rounds", 5)))

    if what == "calls":
        calls(store, given, n, seed)
    elif what == "windows":
        windows(store, given, n, seed)
    elif what == "surprise":
        surprise(store, given, n, seed, ("plain", "coupled", "gumbel, match"))
    elif what == "seconds":
        seconds(store, given, rounds)
    elif what == "drafts":
        drafts(store, given, n, seed)
    page(store)


if __name__ == "__main__":
    main(sys.argv[1:])
