"""Holes of digits, and gaps of spoken ones, filled in by a causal model: docs/results/objectives.json and .md.

    train [MODEL ...] [data=mnist5k] [seed=0] [budget=90s]    into outputs/objectives/DATA_MODEL_seedN, left alone where it is done
    measure [MODEL ...] [data=mnist5k] [seed=0] [budget=90s]  nats per token of regions of held-out items given the rest
    picture [seed=0]                                          completions of digits by both models
    page                                                      objectives.md alone

MODEL: causal_masked, any_order. data: mnist5k or spoken_digits. Both models have the data's tokenizer of docs/zoo and the same processor
time. Further seeds add columns to the page.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from evidence import HERE, ROOT, ZOO, Store, figures, held_by_tests, machine, table, train_once
from torch import Tensor

from gentok.build import build
from gentok.bundle import load
from gentok.cli import compose
from gentok.data.datasets import batches, whole
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
GAPS = {"both ends": ((1 / 3, 2 / 3),), "beginning": ((0.5, 1.0),), "end": ((0.0, 0.5),), "middle third": ((0.0, 1 / 3), (2 / 3, 1.0))}
"""What is given of a sound -> the shares of its frames that are filled in."""
ITEMS, SOUNDS, COLUMNS = 400, 100, 10
TOKENIZERS = {"mnist5k": "mnist5k_vq", "spoken_digits": "spoken_digits_codec"}
LAWS = {
    "an order with holes has every cell once, kept ones first": "generators/test_holes",
    "no cell of a hole is seen before its turn; training and sampling agree; a region's likelihood sums to one": "generators/test_causal_masked_generator",
    "holes are filled by the model's product of conditionals, with every causal sampler": "exact/test_exact_infilling",
}


def run_of(data: str, model: str, seed: int) -> Path:
    return RUNS / f"{data}_{model}_seed{seed}"


def words_of(data: str, model: str, seed: int, budget: str) -> list[str]:
    where = (ZOO / TOKENIZERS[data]).relative_to(ROOT)
    return [f"experiment={data}/{model}", f"tokenizer.ckpt={where}", f"budget={budget}", "clock=cpu", f"seed={seed}"]


def held_out(n: int) -> tuple[Tensor, Tensor]:
    return whole(build(compose("evaluate", ["ckpt=none", "data=mnist5k"])["data"]).held_out, n)


def digits(bundle: Any) -> Iterator[tuple[Tokens, Condition, dict[str, Tensor]]]:
    """Batches of held-out digits, and what is asked for of them: known -> bool [K, N]."""
    media, labels = held_out(ITEMS)
    for rows in torch.arange(ITEMS).split(100):
        tokens = bundle.tokenizer.encode(media[rows])
        asked = {known: tokens.spec.exists() & keep_mask(region, tokens.spec.grid) for known, region in KNOWN.items()}
        yield tokens, Condition({"class": Class(labels[rows])}), asked


def sounds(bundle: Any) -> Iterator[tuple[Tokens, Condition, dict[str, Tensor]]]:
    """The same of held-out sounds, one by one: each has gaps of whole frames at its own places."""
    for batch in batches(build(compose("config", ["experiment=spoken_digits/any_order", "tokenizer.ckpt=none"])["data"]).held_out, 1, SOUNDS):
        tokens = bundle.encode_batch(batch)
        share = torch.arange(tokens.spec.positions) / int(tokens.lengths)
        asked = {known: sum((share >= a) & (share < b) for a, b in gaps) > 0 for known, gaps in GAPS.items()}
        yield tokens, batch.condition, {known: tokens.spec.exists() & frames for known, frames in asked.items()}


@torch.no_grad()
def measure(store: Store, data: str, model: str, seed: int, budget: str) -> None:
    began, bundle = time.monotonic(), load(run_of(data, model, seed) / "bundle")
    nats: dict[str, float] = dict.fromkeys((*known_of(data), "nothing"), 0.0)
    cells, items = dict.fromkeys(nats, 0), 0
    for tokens, condition, asked in (digits if data == "mnist5k" else sounds)(bundle):
        rng = RowRNG.of(seed, torch.arange(items, items + tokens.batch))
        for known, region in {**asked, "nothing": tokens.spec.exists()}.items():
            of_rows, count, exact = region_nll(bundle.generator, tokens, condition, region, rng)
            assert exact
            nats[known], cells[known] = nats[known] + float(of_rows.sum()), cells[known] + int(count.sum())
        items += tokens.batch
    values = {f"known/{known}/nats_per_token": nats[known] / cells[known] for known in nats}
    values |= {"steps": bundle.meta["step"], "parameters": sum(p.numel() for p in bundle.generator.parameters()), "items": items}
    how = f"python docs/results/objectives.py measure {model} data={data} seed={seed} budget={budget}, after: "
    how += f"python train.py {' '.join(words_of(data, model, seed, budget))}"
    store.add(figures(f"{data}/{model}/seed{seed}", values, how, seed, time.monotonic() - began), {f"{data}/budget": budget})


def known_of(data: str) -> Mapping[str, Any]:
    return KNOWN if data == "mnist5k" else GAPS


def picture(seed: int) -> None:
    """Held-out digits; what is given; completions of each model: a grid for each of the first two regions."""
    media, labels = held_out(COLUMNS)
    for known in list(KNOWN)[:2]:
        shown = [media]
        for model in MODELS:
            bundle = load(run_of("mnist5k", model, seed) / "bundle")
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


def seeds_of(store: Store, data: str) -> list[int]:
    return sorted({int(key.split("/")[2].removeprefix("seed")) for key in store.figures if key.startswith(f"{data}/")})


def _each(store: Store, data: str, model: str, metric: str, form: str) -> str:
    """The mean over seeds, and each where there are several."""
    found = [store.figures.get(f"{data}/{model}/seed{seed}/{metric}", {}).get("value") for seed in seeds_of(store, data)]
    values = [value for value in found if value is not None]
    if not values:
        return "–"
    mean = format(sum(values) / len(values), form)
    return mean if len(values) == 1 else f"{mean} ({', '.join(format(value, form) for value in values)})"


def _verdict(store: Store, data: str) -> str:
    """How far causal masking is from the any-order model, in the worst region."""
    far = []
    for known in known_of(data):
        where = [[f"{data}/{m}/seed{s}/known/{known}/nats_per_token" for m in MODELS] for s in seeds_of(store, data)]
        pairs = [[store.figures.get(key, {}).get("value") for key in pair] for pair in where]
        pairs = [pair for pair in pairs if None not in pair]
        if not pairs:
            return ""
        far.append((sum(a - b for a, b in pairs) / len(pairs), known))
    worst, known = max(far)
    said = "met" if worst <= 0.1 else "missed"
    return (
        f"The aim was to be within 0.1 nats per token of the any-order model in every region, at equal time: {said}. Causal masking is\n"
        f"furthest behind, or least ahead, with {known} known: {worst:+.3f} nats ({worst / math.log(2):+.3f} bits; negative is better than any\n"
        f"order). A uniform guess takes {math.log(512 if data == 'mnist5k' else 256):.3f} nats. At equal time the model that takes less work per\n"
        "step has more steps, so the table says which of them learns faster, not which is better in the end.\n"
    )


def _table(store: Store, data: str) -> str:
    if not seeds_of(store, data):
        return f"Not measured yet: `python docs/results/objectives.py train data={data} budget=5min`, then `measure data={data} budget=5min`."
    rows = [("nats per token of what is filled in", *MODELS.values())]
    rows += [(f"{known} known", *(_each(store, data, m, f"known/{known}/nats_per_token", ".3f") for m in MODELS)) for known in known_of(data)]
    rows += [("nothing known: whole items", *(_each(store, data, m, "known/nothing/nats_per_token", ".3f") for m in MODELS))]
    rows += [("steps trained", *(_each(store, data, m, "steps", ",.0f") for m in MODELS))]
    rows += [("parameters", *(_each(store, data, m, "parameters", ",.0f") for m in MODELS))]
    return table(rows)


def _about(store: Store, data: str, items: int) -> str:
    seeds = ", ".join(map(str, seeds_of(store, data)))
    if not seeds:
        return ""
    return (
        f"Both had {store.protocols.get(f'{data}/budget', '–')} of processor time on one thread, the same tokenizer, width and depth. Both\n"
        f"likelihoods are exact, each in its model's own order, of {items:,} held-out items, given their class. Seeds: {seeds}."
    )


def page(store: Store) -> str:
    pictures = [f"{known} known:\n\n![{known} known](objectives_{known}.png)" for known in KNOWN if (HERE / f"objectives_{known}.png").is_file()]
    shown = "Held-out digits; what is given; completed by causal masking; and by the any-order model.\n\n" + "\n\n".join(pictures) + "\n"
    return f"""# Training objectives of the causal transformer

This page is made by `python docs/results/objectives.py`; every figure, with its command, seed, seconds and machine, lies in
[objectives.json](objectives.json). Machine: {machine()}.

## Filling holes of digits: mnist5k, 64 tokens of 512

Causal masking (`generator=causal_masked`, CM3) trains one causal model for items from left to right and for holes given both sides;
the any-order model is trained for subsets of cells alone. {_about(store, "mnist5k", ITEMS)}

{_table(store, "mnist5k")}

{_verdict(store, "mnist5k")}
Scattered cells are no holes of this model: it fills up to `max_holes` boxes or spans, the same in all rows of a batch.

{shown if pictures else ""}

## Filling gaps of spoken digits: 8 levels of 256, up to 32 frames

A gap is of whole frames, all levels of them (`experiment=spoken_digits/causal_masked` and `any_order`). The causal model emits the frames that are
kept, and each gap, in the delayed order: a step for every frame and seven more. To the any-order model every cell is a step, and training feeds it each cell
twice: at equal time it has far fewer steps. {_about(store, "spoken_digits", SOUNDS)}

{_table(store, "spoken_digits")}

{_verdict(store, "spoken_digits")}
{held_by_tests(LAWS)}
"""


def main() -> None:
    what, *rest = sys.argv[1:] or ["nothing"]
    given: Mapping[str, str] = dict(word.split("=", 1) for word in rest if "=" in word)
    names = [word for word in rest if "=" not in word] or list(MODELS)
    data = given.get("data", "mnist5k")
    if what not in ("train", "measure", "picture", "page") or set(names) - set(MODELS) or set(given) - {"data", "seed", "budget"} or data not in TOKENIZERS:
        sys.exit(__doc__)
    store, seed, budget = Store("objectives"), int(given.get("seed", 0)), given.get("budget", "90s")
    for name in names if what in ("train", "measure") else ():
        if what == "train":
            train_once(run_of(data, name, seed), words_of(data, name, seed, budget))
        else:
            measure(store, data, name, seed, budget)
    if what == "picture":
        picture(seed)
    if what != "train":
        (HERE / "objectives.md").write_text(page(store).replace("\n\n\n", "\n\n"))


if __name__ == "__main__":
    main()
