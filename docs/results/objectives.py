"""Holes of digits filled in by a causal model: docs/results/objectives.json and .md.

    train [MODEL ...] [seed=0] [budget=90s]    into outputs/objectives/MODEL_seedN, left alone where it is done
    measure [MODEL ...] [seed=0] [budget=90s]  nats per token of regions of held-out digits given the rest
    picture [seed=0]                            completions of both models
    page                                        objectives.md alone

MODEL: causal_masked, any_order. Both have the tokenizer docs/zoo/mnist5k_vq and the same processor time. Further seeds
add columns to the page.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from evidence import HERE, ROOT, ZOO, Store, figures, held_by_tests, machine, table, train_once
from torch import Tensor

from gentok.build import build
from gentok.bundle import load
from gentok.cli import compose
from gentok.data.datasets import whole
from gentok.data.image_files import save_grid
from gentok.prompt import keep_mask
from gentok.region_likelihood import region_nll
from gentok.rng import RowRNG
from gentok.sampling import pick_sampler, sample_tokens
from gentok.types import ABSENT, UNKNOWN, Class, Condition, Tokens

RUNS = ROOT / "outputs" / "objectives"
MODELS = {"causal_masked": "causal masking", "any_order": "any order (AS-ARM)"}
KNOWN = {"left-half": "right-half", "center": "border", "right-half": "left-half", "border": "center"}
"""What is given -> the region that is filled in."""
ITEMS, COLUMNS = 400, 10
LAWS = {
    "an order with holes has every cell once, kept ones first": "generators/test_holes",
    "no cell of a hole is seen before its turn; training and sampling agree; a region's likelihood sums to one": "generators/test_causal_masked_generator",
    "holes are filled by the model's product of conditionals, with every causal sampler": "exact/test_exact_infilling",
}


def run_of(model: str, seed: int) -> Path:
    return RUNS / f"{model}_seed{seed}"


def words_of(model: str, seed: int, budget: str) -> list[str]:
    where = (ZOO / "mnist5k_vq").relative_to(ROOT)
    return [f"experiment=mnist5k/{model}", f"tokenizer.ckpt={where}", f"budget={budget}", "clock=cpu", f"seed={seed}"]


def held_out(n: int) -> tuple[Tensor, Tensor]:
    return whole(build(compose("evaluate", ["ckpt=none", "data=mnist5k"])["data"]).held_out, n)


@torch.no_grad()
def measure(store: Store, model: str, seed: int, budget: str) -> None:
    began, bundle = time.monotonic(), load(run_of(model, seed) / "bundle")
    media, labels = held_out(ITEMS)
    nats: dict[str, float] = dict.fromkeys((*KNOWN, "nothing"), 0.0)
    cells = dict.fromkeys(nats, 0)
    for rows in torch.arange(ITEMS).split(100):
        tokens, condition = bundle.tokenizer.encode(media[rows]), Condition({"class": Class(labels[rows])})
        for known in nats:
            asked = None if known == "nothing" else keep_mask(KNOWN[known], tokens.spec.grid)[None]
            asked = tokens.spec.exists() if asked is None else asked
            of_rows, count, exact = region_nll(bundle.generator, tokens, condition, asked, RowRNG.of(seed, rows))
            assert exact
            nats[known], cells[known] = nats[known] + float(of_rows.sum()), cells[known] + int(count.sum())
    values = {f"known/{known}/nats_per_token": nats[known] / cells[known] for known in nats}
    values |= {"steps": bundle.meta["step"], "parameters": sum(p.numel() for p in bundle.generator.parameters()), "items": ITEMS}
    how = f"python docs/results/objectives.py measure {model} seed={seed}, after: python train.py {' '.join(words_of(model, seed, budget))}"
    store.add(figures(f"{model}/seed{seed}", values, how, seed, time.monotonic() - began), {"budget": budget})


def picture(seed: int) -> None:
    """Held-out digits; what is given; completions of each model: a grid for each of the first two regions."""
    media, labels = held_out(COLUMNS)
    for known in list(KNOWN)[:2]:
        shown = [media]
        for model in MODELS:
            bundle = load(run_of(model, seed) / "bundle")
            tokens = bundle.tokenizer.encode(media)
            hidden = ~keep_mask(known, tokens.spec.grid)
            if len(shown) == 1:
                shown.append(bundle.tokenizer.decode(Tokens(tokens.codes.masked_fill(hidden, ABSENT), bundle.spec)))
            given, rng = Tokens(tokens.codes.masked_fill(hidden, UNKNOWN), bundle.spec), RowRNG.of(seed, torch.arange(COLUMNS))
            sampler = pick_sampler({}, type(bundle.generator))
            made = sample_tokens(bundle.generator, Condition({"class": Class(labels)}), sampler, rng=rng, known=given)
            shown.append(bundle.tokenizer.decode(made.tokens))
        save_grid(torch.cat(shown), HERE / f"objectives_{known}.png", COLUMNS, scale=2)


# ---------------------------------------------------------------------------------------------------------------------- page


def seeds_of(store: Store) -> list[int]:
    return sorted({int(key.split("/")[1].removeprefix("seed")) for key in store.figures})


def _each(store: Store, model: str, metric: str, form: str) -> str:
    """The mean over seeds, and each where there are several."""
    found = [store.figures.get(f"{model}/seed{seed}/{metric}", {}).get("value") for seed in seeds_of(store)]
    values = [value for value in found if value is not None]
    if not values:
        return "–"
    mean = format(sum(values) / len(values), form)
    return mean if len(values) == 1 else f"{mean} ({', '.join(format(value, form) for value in values)})"


def _verdict(store: Store) -> str:
    """How far causal masking is from the any-order model, in the worst region."""
    far = []
    for known in KNOWN:
        pairs = [[store.figures.get(f"{m}/seed{s}/known/{known}/nats_per_token", {}).get("value") for m in MODELS] for s in seeds_of(store)]
        pairs = [pair for pair in pairs if None not in pair]
        if not pairs:
            return ""
        far.append((sum(a - b for a, b in pairs) / len(pairs), known))
    worst, known = max(far)
    said = "met" if worst <= 0.1 else "missed"
    return (
        f"The aim was to be within 0.1 nats per token of the any-order model in every region, at equal time: {said}. The difference is\n"
        f"highest where the {known} is known, {worst:+.3f} nats ({worst / math.log(2):+.3f} bits); negative is better than any order. A\n"
        f"uniform guess takes {math.log(512):.3f} nats. Below some hundreds of steps neither model has learnt much, and the table says which\n"
        "of them learns faster, not which is better in the end: `python docs/results/objectives.py train budget=6min` says more.\n"
    )


def page(store: Store) -> str:
    rows = [("nats per token of what is filled in", *MODELS.values())]
    rows += [(f"{known} known", *(_each(store, m, f"known/{known}/nats_per_token", ".3f") for m in MODELS)) for known in KNOWN]
    rows += [("nothing known: whole items", *(_each(store, m, "known/nothing/nats_per_token", ".3f") for m in MODELS))]
    rows += [("steps trained", *(_each(store, m, "steps", ",.0f") for m in MODELS))]
    rows += [("parameters", *(_each(store, m, "parameters", ",.0f") for m in MODELS))]
    pictures = [f"{known} known:\n\n![{known} known](objectives_{known}.png)" for known in KNOWN if (HERE / f"objectives_{known}.png").is_file()]
    shown = "Held-out digits; what is given; completed by causal masking; and by the any-order model.\n\n" + "\n\n".join(pictures) + "\n"
    return f"""# Training objectives of the causal transformer

This page is made by `python docs/results/objectives.py`; every figure, with its command, seed, seconds and machine, lies in
[objectives.json](objectives.json). Machine: {machine()}.

## Filling holes of digits: mnist5k, 64 tokens of 512

Causal masking (`generator=causal_masked`, CM3) trains one causal model for items from left to right and for holes given both sides;
the any-order model is trained for subsets of cells alone. Both had {store.protocols.get("budget", "–")} of processor time on one thread, the same tokenizer,
width and depth. Both likelihoods are exact, each in its model's own order, of {ITEMS:,} held-out digits, given their class. Seeds: {", ".join(map(str, seeds_of(store))) or "–"}.

{table(rows)}

{_verdict(store)}
Scattered cells are no holes of this model: it fills up to `max_holes` boxes or spans, the same in all rows of a batch.

{shown if pictures else ""}
{held_by_tests(LAWS)}
"""


def main() -> None:
    what, *rest = sys.argv[1:] or ["nothing"]
    given: Mapping[str, str] = dict(word.split("=", 1) for word in rest if "=" in word)
    names = [word for word in rest if "=" not in word] or list(MODELS)
    if what not in ("train", "measure", "picture", "page") or set(names) - set(MODELS) or set(given) - {"seed", "budget"}:
        sys.exit(__doc__)
    store, seed, budget = Store("objectives"), int(given.get("seed", 0)), given.get("budget", "90s")
    for name in names if what in ("train", "measure") else ():
        if what == "train":
            train_once(run_of(name, seed), words_of(name, seed, budget))
        else:
            measure(store, name, seed, budget)
    if what == "picture":
        picture(seed)
    if what != "train":
        (HERE / "objectives.md").write_text(page(store).replace("\n\n\n", "\n\n"))


if __name__ == "__main__":
    main()
