"""Measures how often one of k drafts of a step is accepted, beside what is possible: writes drafts.json and drafts.md.

    python docs/results/drafts.py own MODEL=BUNDLE [n=8] [seed=0]                  drafts from what the model's last call predicted
    python docs/results/drafts.py smaller MODEL=BUNDLE DRAFTS=BUNDLE [n=8]         drafts of a smaller generator
    python docs/results/drafts.py calls MODEL=BUNDLE DRAFTS=BUNDLE [n=48]          calls of every rule and tree with a smaller generator
    python docs/results/drafts.py calls MODEL=BUNDLE [n=48]                        calls of drafts that need none
    python docs/results/drafts.py train NAME ... [shards=PATH/cifar10-train-000.tar held_out=PATH/cifar10-test-000.tar]
    python docs/results/drafts.py page                                             the page anew, from the figures that are there

p and q are recorded at the first step of every window of n items, for every slot that is drawn there. On a sample of these pairs k drafts are
drawn again and again, as every rule asks for, and what the rule accepts of them is averaged: its own chances, not coins. `train` makes
smaller generators, and a small one of photographs, of which there is none in docs/zoo: outputs/drafts/NAME/bundle.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from autoregressive import drawn, mean
from evidence import ROOT, Store, cifar_words, figures, held_by_tests, table, train_once
from torch import Tensor

import gentok
from gentok.samplers import speculative_decoding
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.base import Sampler
from gentok.samplers.jacobi import Jacobi
from gentok.samplers.optimal_acceptance import SIBLINGS, optimal_acceptance
from gentok.samplers.speculative import Speculative
from gentok.samplers.verification import SIBLING_RULES
from gentok.samplers.vocab_trim import most_frequent

PAIRS, DRAWS, WIDTHS = 48, 8, range(1, 9)
RULES = {
    "recursive, with replacement": ("standard", "with_replacement"), "k_seq": ("k_seq", "with_replacement"),
    "optimal": ("optimal", "with_replacement"), "recursive, without replacement": ("standard", "without_replacement"),
    "recursive, greedy": ("standard", "greedy"), "greedy": ("greedy", "greedy"),
}  # fmt: skip
CALLS: dict[str, dict[str, Any]] = {
    "chain": {}, "chain, 1 in 4 of the ids": {"trim": 4}, "chain, block": {"verify": "block"}, "4 paths, block": {"verify": "block", "branches": 4},
    "4 branches, recursive, with replacement": {"siblings": "with_replacement", "branches": 4},
    "4 branches, k_seq": {"verify": "k_seq", "branches": 4}, "4 branches, optimal": {"verify": "optimal", "branches": 4},
    "4 branches, recursive": {"branches": 4}, "4 branches, greedy": {"verify": "greedy", "branches": 4},
    "4 x 4 branches, recursive": {"branches": 4, "depth": 2}, "4 x 4 branches, greedy": {"verify": "greedy", "branches": 4, "depth": 2},
    "dynamic, 28 nodes": {"tree": "dynamic", "branches": 4, "nodes": 28}, "layered, 28 nodes": {"tree": "layered", "branches": 4, "nodes": 28},
    "beam of 4, 28 nodes": {"tree": "beam", "branches": 4},
}  # fmt: skip
"""Settings of the sampler; trim: one in how many ids drafts are of, the most frequent ones of plain samples."""
SLOTS: dict[str, dict[str, Any]] = {"chain": {}, "chain of 4": {"window": 4}, "chain of 2": {"window": 2}}
"""Of orders with steps of several slots."""
OWN: dict[str, Sampler] = {
    "its own drafts, coupled": Jacobi(window=8), "its own drafts, fresh": Jacobi(window=8, tail="fresh"),
    "its own drafts, coupled, window of 16": Jacobi(window=16), "what is left of it": Speculative(draft="left"),
}  # fmt: skip
"""Drafts without a smaller generator."""
PLAIN = "one step at a time"
SMALL = "generator.depth=2 generator.width=64 generator.heads=2"
TRAINED = {
    "mnist5k_small": f"experiment=mnist5k/ar tokenizer.ckpt=docs/zoo/mnist5k_vq {SMALL} budget=150s",
    "spoken_small": f"experiment=spoken_digits/ar_delay tokenizer.ckpt=docs/zoo/spoken_digits_codec {SMALL} budget=120s",
    "cifar10_ar": "experiment=cifar10/ar tokenizer.ckpt=docs/zoo/cifar10_vq task.views=1 budget=5min",
    "cifar10_small": f"experiment=cifar10/ar tokenizer.ckpt=docs/zoo/cifar10_vq task.views=1 {SMALL} budget=90s",
}  # fmt: skip
"""Trained on one thread, by processor time."""


class Pairs:
    """Records, while it is open, p and the first draft's q of every window: float64 [n, V]."""

    def __enter__(self) -> Pairs:
        self.found, self.honest = [], speculative_decoding.verify

        def watched(rule, tree, p, draft, here, *rest):  # type: ignore[no-untyped-def]
            cells = here[:, 0]  # [b, G]
            self.found.append((p[:, 0][cells], draft.q[:, tree.main[0]][cells]))
            return self.honest(rule, tree, p, draft, here, *rest)

        speculative_decoding.verify = watched
        return self

    def __exit__(self, *_: Any) -> None:
        speculative_decoding.verify = self.honest


def siblings_of(q: Tensor, k: int, how: str, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """k drafts of each q float64 [n, V], of k possible ids at least: ids int64 [n, k] and their distributions float64 [n, k, V]."""
    ids, of = [], []
    for i in range(k):
        now = q
        if how != "with_replacement":
            for x in ids:
                now = now.scatter(1, x[:, None], 0.0)
            now = now / now.sum(1, keepdim=True)
        if how == "greedy" and i < k - 1:
            now = torch.zeros_like(now).scatter(1, now.argmax(1, keepdim=True), 1.0)
        ids.append(torch.multinomial(now, 1, generator=rng)[:, 0])
        of.append(now)
    return torch.stack(ids, 1), torch.stack(of, 1)


def acceptance(store: Store, key: str, pairs: Pairs, seed: int, command: str) -> None:
    rng, began = torch.Generator().manual_seed(seed), time.time()
    p, q = (torch.cat(x) for x in zip(*pairs.found))
    some = torch.randperm(len(p), generator=rng)[:PAIRS]
    p, q = p[some], q[some] / q[some].sum(1, keepdim=True)
    some = (q > 0).sum(1) >= max(WIDTHS)  # a guess, at an item's beginning, has no distribution
    p, q, found = p[some], q[some], {"pairs": int(some.sum())}
    for k in WIDTHS:
        for how in SIBLINGS:
            value, error = mean(optimal_acceptance(p, q, k, how))
            found |= {f"optimum/{how}/{k}": value, f"optimum/{how}/{k}_standard_error": error}
        for name, (verify, how) in RULES.items():
            ids, of = siblings_of(q.repeat_interleave(DRAWS, 0), k, how, rng)
            chances, _ = SIBLING_RULES[verify]().chances(p.repeat_interleave(DRAWS, 0), ids, of)
            value, error = mean((1 - (1 - chances.clamp(max=1)).prod(1)).view(-1, DRAWS).mean(1))
            found |= {f"{name}/{k}": value, f"{name}/{k}_standard_error": error}
        print(key, k, {name: round(value, 3) for name, value in found.items() if name.endswith(f"/{k}")}, flush=True)
        store.add(figures(key, found, command, seed, time.time() - began))


def measured(store: Store, what: str, given: dict[str, str], n: int, seed: int) -> None:
    (model, path), *smaller = given.items()
    bundle = gentok.load(path)
    sampler: Sampler = Jacobi(window=16, tail="fresh")
    if what != "own":
        small = gentok.load(smaller[0][1]).generator if smaller else None
        sampler = Speculative(ckpt=small, window=8)
    words = " ".join(f"{name}={value}" for name, value in given.items())
    command = f"python docs/results/drafts.py {what} {words} n={n} seed={seed}"
    if what != "calls":
        with Pairs() as pairs:
            drawn(bundle, sampler, n, seed)
        acceptance(store, f"{model}/{what}", pairs, seed, command)
        return
    layout, plain = bundle.generator.layout, None
    for name, settings in {PLAIN: {}, **(OWN if small is None else CALLS if layout.slots == 1 else SLOTS)}.items():
        if isinstance(settings, dict) and "trim" in settings:
            settings = {"trim": most_frequent(torch.cat([out.tokens.codes for out in plain or []]), bundle.generator.spec.vocab // settings["trim"])}
        drafted = settings if isinstance(settings, Sampler) else Speculative(**{"ckpt": small, "window": 8, **settings})
        sampler = AutoregressiveSampler() if name == PLAIN else drafted
        began, worked = time.time(), time.process_time()
        outputs = drawn(bundle, sampler, n, seed)
        worked = time.process_time() - worked
        plain = outputs if name == PLAIN else plain
        value, error = mean(torch.cat([out.calls for out in outputs]))
        found = {"calls": value, "calls_standard_error": error, "processor_seconds_per_item": worked / n}
        found["steps_per_call"] = sum(out.stats.get("steps_per_call", 1.0) for out in outputs) / len(outputs)
        found["draft_calls"] = sum(out.network_calls.get("draft", (0, 0))[0] for out in outputs) / len(outputs)
        store.add(figures(f"{model}/calls/{name}", found, command, seed, time.time() - began))
        print(name, found, flush=True)
    sizes = {"model_parameters": sum(x.numel() for x in bundle.generator.parameters())}
    sizes |= {} if small is None else {"parameters": sum(x.numel() for x in small.parameters())}
    store.add(figures(f"{model}/calls", sizes, command, seed, 0.0))


# ---------------------------------------------------------------------------------------------------------------------- page

LAWS = {
    "every rule draws p over all tuples of drafts and all branches, accepts no more than the optimum, and those that claim it reach it; the optimum is the "
    "minimum over all sets of ids": "exact/test_exact_siblings",
    "rules in trees, and trees that grow, make the joint distribution of several steps; a row alone is the row in a batch; calls never exceed steps":
        "exact/test_exact_speculative",
    "a stochastic beam draws sequences without replacement; a call with it makes the joint distribution on every path": "exact/test_exact_beam_drafts",
    "block verification of several paths makes the joint distribution on every path; its first step is accepted as often as any rule can, and two steps never "
    "less than with one path": "exact/test_exact_block_paths",
    "drafts of some ids alone leave the distribution as it is": "exact/test_exact_vocab_trim",
}  # fmt: skip
FOUND = {
    "mnist5k_ar": "Four paths under block verification give the most steps per call, with as many nodes as four branches, whichever rule verifies these. A stochastic beam "
    "gives no more than four branches of the first step here: behind them, this generator seldom needs a second draft of a step. Drafts of one in four ids cost four tenths more "
    "calls, since these tokens use most of their ids; `trim` is for large vocabularies of which few are in use. On a processor none of this saves time: a call of "
    "24 items costs as much as its positions do, and that of the smaller generator is expensive beside a model that is small itself.",
    "cifar10_ar": "A model of photographs in its first minutes of training: its distributions are broad, and a smaller one trained as briefly resembles it, so four drafts in "
    "five are accepted alone and nearly all of four. The chain then takes most of what there is to gain; four paths under block verification add a tenth. What the model "
    "predicted itself for a step is a worse draft than the smaller generator's, but needs no second network. `trim` costs three times the calls, since 4,096 ids are all in use.",
    "spoken_digits_ar_delay": "A step of eight slots stands only where all that it draws are accepted, so the model's own drafts give one and a half steps per call at most, though each "
    "alone is accepted four times in five. A smaller generator, whose drafts are accepted seven times in ten or eight, gives a tenth more than one step. A repetition of the step before is never "
    "accepted whole. Trees are for orders of one slot.",
}
FROM = {"own": "what its last call predicted for the step", "smaller": "a smaller generator's drafts"}


def acceptance_table(store: Store, key: str) -> str:
    rows = [("", *(f"k = {k}" for k in WIDTHS))]
    groups = {how: [name for name, (_, own) in RULES.items() if own == how] for how in SIBLINGS}
    for how, names in groups.items():
        rows += [(name, *(store.value(f"{key}/{name}/{k}") for k in WIDTHS)) for name in names]
        rows.append((f"*optimum, {how.replace('_', ' ')}*", *(store.value(f"{key}/optimum/{how}/{k}") for k in WIDTHS)))
    return table(rows)


def page(store: Store) -> None:
    parts = []
    for model in sorted({key.split("/")[0] for key in store.figures}):
        for what, words in FROM.items():
            if f"{model}/{what}/pairs" in store.figures:
                count, single = store.value(f"{model}/{what}/pairs", ".0f"), store.figures[f"{model}/{what}/optimum/with_replacement/1"]["value"]
                best = max(store.figures[f"{model}/{what}/{name}/4"]["value"] for name in RULES) / single
                error = store.value(f"{model}/{what}/k_seq/4_standard_error", ".2f")
                parts.append(f"## {model}, drafts from {words}\n\n{count} pairs of p and q, the same in all rows: their choice alone gives standard errors of about {error}. Rules were measured on "
                             f"{DRAWS} draws of drafts per pair, so they differ from their mean by some hundredths, also upwards of a bound. The best rule with four drafts accepts "
                             f"{best:.2f} times as often as one draft is accepted at best.\n\n{acceptance_table(store, f'{model}/{what}')}")
        rows = [("", "calls per item", "steps per call", "calls of the smaller generator per batch", "processor seconds per item")]
        for name in dict.fromkeys((PLAIN, *CALLS, *SLOTS, *OWN)):
            at = f"{model}/calls/{name}"
            if f"{at}/calls" in store.figures:
                calls = f"{store.value(f'{at}/calls', '.1f')} ± {store.value(f'{at}/calls_standard_error', '.1f')}"
                rest = (store.value(f"{at}/{what}", form) for what, form in (("steps_per_call", ".2f"), ("draft_calls", ".0f"), ("processor_seconds_per_item", ".3f")))
                rows.append((name, calls, *rest))
        if len(rows) > 1:
            small, large = (store.value(f"{model}/calls/{what}", ",.0f") for what in ("parameters", "model_parameters"))
            drafted = f"A generator of {small} parameters drafts for this one of {large}, in windows of 8 steps where a name does not say otherwise" if small != "–" else f"A generator of {large} parameters"
            parts.append(f"## {model}, calls\n\n{drafted}:\n\n{table(rows)}\n\n{FOUND.get(model, '')}".rstrip())
    text = f"""# Several drafts of a step

How often is one of k drafts of a step accepted, and how often could it be? A rule cannot accept more than the optimal transport from the drafts to the
model's distribution, which `gentok/samplers/optimal_acceptance.py` computes for each way in which drafts are drawn. This page is made by
`python docs/results/drafts.py page` from [drafts.json](drafts.json), where every figure has its command, seed, seconds and machine.

All rules are exact. `optimal` reaches the bound of independent drafts, in closed form and at the cost of a sort. `greedy` reaches that of the k − 1 most
probable ids and one draw of the others. Without replacement there is a bound, and recursive rejection beneath it. Over several steps, `verify=block` looks
at whole chains or paths before it stops, and `tree=beam` drafts sequences without replacement, in place of siblings without replacement at every step.

Smaller generators, and the model of photographs, are made by `python docs/results/drafts.py train NAME`. Drafters trained for their model, and
early exits: [trained_drafts.md](trained_drafts.md).

{held_by_tests(LAWS)}

{chr(10).join(f"{part}{chr(10)}" for part in parts)}"""
    store.path.with_suffix(".md").write_text(text.rstrip() + "\n")


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    store, what = Store("drafts"), words[0]
    given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    if what == "train":
        for name in (word for word in words[1:] if "=" not in word):
            data = cifar_words(given) if name.startswith("cifar10") else []
            train_once(ROOT / "outputs" / "drafts" / name, [*TRAINED[name].split(), "clock=cpu", "seed=0", *data])
        return
    n, seed = (int(given.pop(name, default)) for name, default in (("n", 48 if what == "calls" else 8), ("seed", 0)))
    if what != "page":
        measured(store, what, given, n, seed)
    page(store)


if __name__ == "__main__":
    main(sys.argv[1:])
