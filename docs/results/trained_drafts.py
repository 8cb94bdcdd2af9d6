"""Drafters that were trained for the model that they draft for, and a model that drafts for itself by early exits: trained_drafts.json and .md.

    train NAME ... [seed=0] [budget=..]          into outputs/trained_drafts/NAME_BUDGET_seedN, left alone where it is done
    measure NAME ... [seed=0] [budget=..]        acceptance of one draft, calls
    page                                         the page anew, from the figures that are there

NAME: plain and longer (a small model of the data, as in drafts.py), after (plain, then trained towards docs/zoo/mnist5k_ar), kl, tv, data (trained
towards it from the start), exits (that model, trained to
predict after its first blocks too), untrained (the exits of that model as it is: nothing to train). Further seeds add to the page.

The acceptance is sum min(p, q) over all cells of items that the model draws itself, with p and q given the same ids before: no draft is
drawn. Calls are those of whole samples.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from autoregressive import conditions, drawn, mean
from evidence import ROOT, ZOO, Store, figures, held_by_tests, table, train_once
from torch import Tensor

import gentok
from gentok.build import build
from gentok.cli import compose
from gentok.data.datasets import whole
from gentok.generators.aligned_drafter import divergences, draw_items, probabilities
from gentok.generators.early_exits import first_blocks
from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.base import Sampler
from gentok.samplers.speculative import Speculative
from gentok.types import Class, Condition, Tokens

RUNS = ROOT / "outputs" / "trained_drafts"
TARGET = ZOO / "mnist5k_ar"
ITEMS, CALLS_ITEMS, HELD_OUT = 48, 24, 400
DRAWN = 5_000  # items that the target draws before a drafter is trained on them, held-out ones included
DEPTHS = (1, 2, 3, 4)
_SAME = "tokenizer.ckpt=docs/zoo/mnist5k_vq"
_DRAFTER = f"experiment=mnist5k/drafter {_SAME} generator.target=docs/zoo/mnist5k_ar"
TRAINED = {
    "plain": f"experiment=mnist5k/ar {_SAME} generator.depth=2 generator.width=64 generator.heads=2",
    "longer": f"experiment=mnist5k/ar {_SAME} generator.depth=2 generator.width=64 generator.heads=2",
    "after": f"{_DRAFTER} init_from=outputs/trained_drafts/plain_150s_seed{{seed}}/bundle",
    "kl": f"{_DRAFTER}",
    "tv": f"{_DRAFTER} generator.divergence=tv",
    "data": f"{_DRAFTER} generator.context=data task.views=6 task.augment.shift=1",
    "exits": f"experiment=mnist5k/early_exits {_SAME} init_from=docs/zoo/mnist5k_ar",
}
"""Trained on one thread, by processor time."""
SAYS = {
    "plain": "plainly: next tokens of the data", "longer": "plainly, longer", "after": "plainly for 150s, then towards the target, KL, contexts of its own",
    "kl": "towards the target from the start, KL, contexts of its own", "tv": "towards the target, TV, contexts of its own",
    "data": "towards the target, KL, contexts of the data",
}  # fmt: skip
BUDGETS = {"longer": "290s", "after": "75s", "kl": "75s", "tv": "75s", "exits": "40s"}
"""Others: 150s."""
WAYS: dict[str, dict[str, Any]] = {"chain": {}, "block": {"verify": "block"}, "4 paths": {"verify": "block", "branches": 4}}
"""Those of `untrained` exits are chains alone."""


def run_of(name: str, seed: int, budget: str) -> Path:
    return RUNS / f"{name}_{budget}_seed{seed}"


def compared(target: Any, small: Any, items: Tokens, condition: Condition, p: Tensor) -> dict[str, float]:
    """Acceptance of one draft of `small`, and KL(p || q) in nats, per cell of items of the target's own; p float [B, S, G, V]."""
    q = probabilities(small, items, condition)
    found = divergences(p, q.log())
    accepted, error = mean(1 - found["tv"].flatten(1).mean(1))
    nats, nats_error = mean(found["kl"].flatten(1).mean(1))
    return {"acceptance": accepted, "acceptance_standard_error": error, "kl_nats": nats, "kl_nats_standard_error": nats_error}


def calls(bundle: Any, sampler: Sampler, seed: int) -> dict[str, float]:
    worked = time.process_time()
    outputs = drawn(bundle, sampler, CALLS_ITEMS, seed)
    worked = time.process_time() - worked
    value, error = mean(torch.cat([out.calls for out in outputs]))
    return {"calls": value, "calls_standard_error": error, "processor_seconds_per_item": worked / CALLS_ITEMS,
            "draft_calls": sum(out.network_calls.get("draft", (0, 0))[0] for out in outputs) / len(outputs)}  # fmt: skip


def held_out_nats(bundle: Any) -> tuple[float, float]:
    """Nats per token of held-out digits given their class, and their standard error."""
    media, labels = whole(build(compose("evaluate", ["ckpt=none", "data=mnist5k"])["data"]).held_out, HELD_OUT)
    with torch.no_grad():
        nats = bundle.generator.nll_bound(bundle.tokenizer.encode(media), Condition({"class": Class(labels)}), None)
    return mean(nats / bundle.spec.positions)


def measure(store: Store, name: str, seed: int, budget: str) -> None:
    command = f"python docs/results/trained_drafts.py measure {name} seed={seed} budget={budget}"
    if name in TRAINED:
        command += f", after: python train.py {TRAINED[name].format(seed=seed)} budget={budget} clock=cpu seed={seed}"
    bundle = gentok.load(run_of(name, seed, budget) / "bundle" if name == "exits" else TARGET)
    target, condition, began = bundle.generator, conditions(bundle, ITEMS), time.time()
    rng = RowRNG.of(seed, torch.arange(ITEMS)).fork("items")
    worked = time.process_time()
    items = draw_items(target, Tokens(torch.zeros(ITEMS, 1, target.spec.positions, dtype=torch.int64), target.spec), condition, rng)
    drawing = (time.process_time() - worked) / ITEMS * DRAWN
    p = probabilities(target, items, condition)
    if name in ("exits", "untrained"):
        drafters = {f"depth {depth}": first_blocks(target, depth) for depth in DEPTHS}
    else:
        small = gentok.load(run_of(name, seed, budget) / "bundle")
        drafters = {"": small.generator}
        about = {"steps": small.meta["step"], "parameters": _size(small.generator), "drawing_seconds": drawing if name in ("after", "kl", "tv") else 0.0}
        store.add(figures(f"{name}/seed{seed}", about, command, seed, 0.0), {f"{name}/budget": budget})
    for which, small in drafters.items():
        key, own = "/".join(filter(None, (name, which, f"seed{seed}"))), name == "exits"
        store.add(figures(key, compared(target, small, items, condition, p), command, seed, time.time() - began))
        for way, settings in list(WAYS.items())[: 1 if name == "untrained" else None]:
            drafts: dict[str, Any] = {"exit": int(which.split()[1])} if own else {"ckpt": small}
            began = time.time()
            found = calls(bundle, Speculative(**drafts, window=8, **settings), seed)
            store.add(figures(f"{key}/{way}", found, command, seed, time.time() - began))
            print(key, way, found, flush=True)
    began, (nats, error) = time.time(), held_out_nats(bundle)
    about = {"nats_per_token": nats, "nats_per_token_standard_error": error, "target_parameters": _size(target), "target_steps": bundle.meta["step"]}
    key = "exits" if name == "exits" else "target"
    store.add(figures(f"{key}/seed{seed}", about, command, seed, time.time() - began), {f"{key}/budget": budget})
    if name in ("exits", "untrained"):
        store.add(figures(f"{key}/seed{seed}/one by one", calls(bundle, AutoregressiveSampler(), seed), command, seed, 0.0))


def _size(model: Any) -> int:
    return sum(x.numel() for x in model.parameters())


# ---------------------------------------------------------------------------------------------------------------------- page

LAWS = {
    "drafts of an exit, and of a drafter trained towards the model, leave its distribution as it is, on every path; the model of an exit with a cache is the "
    "one without": "exact/test_exact_trained_drafts",
    "items that a model draws for its drafter have its distribution; the divergences are those of the formulas, and 0 for the model itself; an exit's loss is "
    "the model's of these blocks": "generators/test_trained_drafters",
}


def seeds_of(store: Store) -> list[int]:
    return sorted({int(part.removeprefix("seed")) for key in store.figures for part in key.split("/") if part.startswith("seed")})


def each(store: Store, key: str, metric: str, form: str) -> str:
    """The mean over seeds, and each where there are several. {} in key: the seed."""
    found = [store.figures.get(f"{key.format(seed)}/{metric}", {}).get("value") for seed in seeds_of(store)]
    values = [value for value in found if value is not None]
    if not values:
        return "–"
    average = format(sum(values) / len(values), form)
    return average if len(values) == 1 else f"{average} ({', '.join(format(value, form) for value in values)})"


def row(store: Store, says: str, key: str) -> tuple[str, ...]:
    own = ((key, "acceptance", ".3f"), (key, "kl_nats", ".3f"))
    ways = ((f"{key}/{way}", "calls", ".1f") for way in WAYS)
    return says, *(each(store, *what) for what in (*own, *ways, (f"{key}/chain", "processor_seconds_per_item", ".3f")))


def page(store: Store) -> None:
    head = ("acceptance of one draft", "KL(p, q), nats", "calls: chain", "block", "4 paths, block", "processor seconds per item, chain")
    small = [("drafter, trained", *head, "steps", "drawing items, s", "training")]
    there = {name for name in SAYS if _values(store, f"{name}/seed{{}}", "acceptance")}
    small += [(*row(store, says, f"{name}/seed{{}}"), each(store, f"{name}/seed{{}}", "steps", ",.0f"),
               each(store, f"{name}/seed{{}}", "drawing_seconds", ".0f"), store.protocols.get(f"{name}/budget", "–")) for name, says in SAYS.items() if name in there]
    missing = ", ".join(f"`{name}`" for name in TRAINED if name not in there and not (name == "exits" and _values(store, "exits/seed{}", "nats_per_token")))
    exits = [("exit after", *head)]
    exits += [row(store, f"{depth} of 6 blocks", f"exits/depth {depth}/seed{{}}") for depth in DEPTHS]
    exits += [row(store, f"{depth} of 6, of the model as it was", f"untrained/depth {depth}/seed{{}}") for depth in DEPTHS]
    exits = [found for found in exits if found[1] != "–"]
    sizes = each(store, "plain/seed{}", "parameters", ",.0f").split(" ")[0], each(store, "target/seed{}", "target_parameters", ",.0f").split(" ")[0]
    before, after = (each(store, f"{name}/seed{{}}", "nats_per_token", ".3f") for name in ("target", "exits"))
    one = each(store, "target/seed{}/one by one", "processor_seconds_per_item", ".3f")
    text = f"""# Drafters trained for their model

How often is a draft accepted if the drafter was trained for it? This page is made by `python docs/results/trained_drafts.py page` from
[trained_drafts.json](trained_drafts.json), where every figure has its command, seed, seconds and machine. Machine: {"; ".join(sorted({figure["machine"] for figure in store.figures.values()}))}. Several drafts of a step, and
all rules: [drafts.md](drafts.md). Seeds: {", ".join(map(str, seeds_of(store))) or "–"}; where there are several, a mean and each of them.{missing and f" Not measured yet: {missing}."}

A draft of q is accepted with the chance min(1, p / q), so one draft of a step with sum min(p, q) = 1 − TV(p, q). All drafters give samples of the model's own
distribution; they differ in how many calls these take.

## A small drafter, trained towards its model

`generator=aligned_drafter` trains a drafter towards the probabilities of its target, on what the target says itself (DistillSpec, arXiv 2310.08461;
`experiment=mnist5k/drafter generator.target=BUNDLE`). The target is docs/zoo/mnist5k_ar of {sizes[1]} parameters; every drafter has {sizes[0]}.
Processor time on one thread; before a drafter is trained on the target's own items, the target draws {DRAWN:,} of them (seconds by those of {ITEMS} items, all at once). What it
says of them is asked anew in every step: hence the fewer steps.

{table(small)}

Without drafts an item takes 64 calls and {one} processor seconds.{_found_small(store)}

## Early exits

`generator=early_exits` trains a model to predict after its first blocks too, with the same norm and head; `sampler=speculative draft=exit exit=n` drafts with the
first n, out of the same bundle. The same target, trained for another {store.protocols.get("exits/budget", "–")} with exits after 1, 2, 3 and 4 of its 6 blocks
(`experiment=mnist5k/early_exits init_from=BUNDLE`), and the exits of the target as it was:

{table(exits)}

The whole model takes {before} nats per token of held-out digits as it was, and {after} with exits.{_found_exits(store)}

{held_by_tests(LAWS)}
"""
    store.path.with_suffix(".md").write_text(text)


def _values(store: Store, key: str, metric: str) -> list[float]:
    found = [store.figures.get(f"{key.format(seed)}/{metric}", {}).get("value") for seed in seeds_of(store)]
    return [value for value in found if value is not None]


def _found_small(store: Store) -> str:
    """What the table shows, in words."""
    rows = {name: (_values(store, f"{name}/seed{{}}", "acceptance"), _values(store, f"{name}/seed{{}}/chain", "calls")) for name in SAYS}
    rows = {name: tuple(sum(x) / len(x) for x in pair) for name, pair in rows.items() if all(pair)}
    if "plain" not in rows or len(rows) < 2:
        return ""
    said = [f"{SAYS[name]}: {rows[name][0] - rows['plain'][0]:+.3f} and {rows[name][1] - rows['plain'][1]:+.1f}" for name in rows if name != "plain"]
    equal = ""
    if {"longer", "after"} <= rows.keys():
        better, worse = ("more plain training", "training towards the target") if rows["longer"][0] > rows["after"][0] else ("training towards the target", "more plain training")
        equal = (
            f"\n\nAt equal time, the target's drawing included ({BUDGETS['longer']}), {better} is accepted more often than {worse} behind the plain one: "
            f"{max(rows['longer'][0], rows['after'][0]):.3f} against {min(rows['longer'][0], rows['after'][0]):.3f}. Training towards the target has the fewer steps, since a step asks "
            "a target of eight times the drafter's size; each of them gains more. From the start it is the wrong thing to do in so short a time: train plainly first."
        )
    return f" Acceptance and calls of a chain beside those of the drafter trained plainly: {'; '.join(said)}.{equal}"


def _found_exits(store: Store) -> str:
    found = {depth: _values(store, f"exits/depth {depth}/seed{{}}/chain", "calls") for depth in DEPTHS}
    means = {depth: sum(x) / len(x) for depth, x in found.items() if x}
    if not means:
        return ""
    best = min(means, key=lambda depth: means[depth])
    cheap = {depth: sum(x) / len(x) for depth in means if (x := _values(store, f"exits/depth {depth}/seed{{}}/chain", "processor_seconds_per_item"))}
    least = min(cheap, key=lambda depth: cheap[depth])
    return f" Fewest calls of a chain: the exit after {best} blocks; least processor time of those: after {least}."


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    what, given = words[0] if words else "", dict(word.split("=", 1) for word in words[1:] if "=" in word)
    names, seed = [word for word in words[1:] if "=" not in word], int(given.pop("seed", 0))
    chosen = given.pop("budget", None)
    known = set(TRAINED) if what == "train" else {*TRAINED, "untrained"}
    if what not in ("train", "measure", "page") or set(names) - known or given:
        sys.exit(__doc__)
    store = Store("trained_drafts")
    for name in names:
        budget = chosen or BUDGETS.get(name, "150s")
        if what == "train":
            train_once(run_of(name, seed, budget), [*TRAINED[name].format(seed=seed).split(), f"budget={budget}", "clock=cpu", f"seed={seed}"])
        elif what == "measure":
            measure(store, name, seed, budget)
    if what != "train":
        page(store)


if __name__ == "__main__":
    main(sys.argv[1:])
