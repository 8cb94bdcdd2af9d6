"""Words to icons, and icons filled in: docs/results/icons.json and .md.

    train [ar|infill]     into outputs/icons/NAME, left alone where it is done
    measure [ar|infill]   samples for the words of held-out icons, likelihood; what is filled into them
    page                  icons.md alone
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from evidence import HERE, ROOT, Store, figures, held_by_tests, measure_samples, table, train_once
from torch import Tensor

from gentok.bundle import Bundle, load
from gentok.data.datasets import batches
from gentok.data.icons import Icons
from gentok.data.image_files import save_grid
from gentok.data.sample_grid import save_sample_grid
from gentok.grammar import Grammar
from gentok.interfaces import MediaDataset
from gentok.region_likelihood import region_nll
from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.sampling import sample, sample_tokens
from gentok.tokenizers.icon import Icon
from gentok.types import UNKNOWN, Condition, Tokens

RUNS = ROOT / "outputs" / "icons"
BUDGET = {"ar": "35min", "infill": "4min"}
LONGEST, ITEMS, FILLED, SHOWN = 128, 200, 40, 12
SAMPLED = {  # what rows of the table are called: words of evaluate.py
    "guidance 1": "guidance=1", "guidance 1.5": "guidance=1.5", "guidance 2": "guidance=2",
    "guidance 2, top-p 0.9": "guidance=2 sampler.top_p=0.9",
}  # fmt: skip
COMMON = ("home", "circle", "file plus", "account alert", "arrow left", "heart")
LAWS = {
    "decode of encode is the identity on the grid, of every icon of both sets (the whole sets: a slow test)": "tokenizers/test_icon",
    "10,000 random rows of the grammar are read to their last command; any ids at all decode": "tokenizers/test_icon",
    "sampled rows are rows of the grammar, with the model's own probabilities": "generators/test_grammar training/test_icons_training",
    "where points are steps, a model knows the point that they lead to by every path, and rows have its own probabilities": "generators/test_canvas",
    "rows of unequal length cost, and teach, what they do when all of each is computed": "generators/test_ragged_rows",
    "what fills a hole can be read with what is kept, and these fills have all the probability": "generators/test_hole_grammar",
    "files that are no icons are listed with a line each and stop nothing": "data/test_icons drawings/test_svg",
    "a run that was stopped and goes on is, to the bit, the one that was not": "training/test_icons_training",
}
READ = {
    "validity": "valid, %", "uniqueness": "unique, %", "novelty": "novel, %", "nearest_training_below_0.05": "nearest training icon below 0.05, %",
    "word_shared": "nearest training icon shares a word, %",
}  # fmt: skip


def words(name: str) -> str:
    return f"experiment=icons/{name} budget={BUDGET[name]} clock=cpu trainer.precision=bf16-mixed"


def train(name: str) -> Path:
    return train_once(RUNS / name, words(name).split())


def measure(store: Store, name: str) -> None:
    bundle, trained = train(name), f"python train.py {words(name)}"
    for key, how in SAMPLED.items() if name == "ar" else ():
        measure_samples(store, f"ar/{key}", bundle, [*how.split(), f"n={ITEMS}"], ["trust=[paths]"], trained, 0)
    tidy(store)
    model, data = load(bundle), Icons(longest=LONGEST)
    began, command = time.monotonic(), f"python docs/results/icons.py measure {name}, after: {trained}"
    if name == "ar":
        kinds = {"steps": model, "points": Icon(longest=LONGEST)}
        nats = {f"nats_per_id_by_state, {kind}": by_state(*(encoded(its, part)[0] for part in (data.train, data.held_out))) for kind, its in kinds.items()}
        store.add(figures("data", counts(data) | nats, command, 0, time.monotonic() - began))
        sheet(model, data.held_out)
    else:
        store.add(figures("holes", holes(model, load(train("ar")), data.held_out), command, 0, time.monotonic() - began))


def tidy(store: Store) -> None:
    """The unit of distances of icons, and no paths of files that were left out."""
    units = {key: {**value, "unit": "1 - IoU"} for key, value in store.figures.items() if key.endswith("nearest_training")}
    store.add(units, {key: {k: v for k, v in protocol.items() if k != "skipped"} for key, protocol in store.protocols.items()})


def encoded(model: Bundle | Icon, data: MediaDataset) -> tuple[Tokens, Condition]:
    parts = [(model.encode_batch(batch), batch.condition) for batch in batches(data, 256)]
    codes, ends = (torch.cat([getattr(tokens, key) for tokens, _ in parts]) for key in ("codes", "lengths"))
    return Tokens(codes, model.spec, ends), Condition.concat([condition for _, condition in parts])


def counts(data: Icons) -> dict[str, int]:
    return {"train": len(data.train), "held_out": len(data.held_out), "broken": data.train.skipped["count"]}


def by_state(train: Tokens, held_out: Tokens) -> float:
    """Nats per id of a model without a past: the frequency of an id in its state of the grammar, one added to all possible ones."""
    grammar = Grammar(replace(train.spec, canvas=None))  # states of the automaton alone

    def pairs(tokens: Tokens) -> list[tuple[int, int]]:
        ids = tokens.codes[:, 0]
        return list(zip(grammar.states(ids)[ids >= 0].tolist(), ids[ids >= 0].tolist()))

    seen, states = Counter(pairs(train)), Counter(state for state, _ in pairs(train))
    able = grammar.allowed(torch.arange(len(train.spec.grammar)))[:, :-1].sum(1).tolist()
    nats = [math.log((states[s] + able[s]) / (seen[s, i] + 1)) for s, i in pairs(held_out)]
    return sum(nats) / len(nats)


def sheet(model: Bundle, data: MediaDataset) -> None:
    """Six samples for the names of twelve held-out icons, the held-out icon first: three exact ones, three of the most probable ids."""
    rows = list(range(0, len(data), len(data) // 12))[:12]
    shown, labels = [], []
    for row in rows:
        batch = data.__getitems__([row])
        text = Condition({"text": batch.condition.parts["text"]}).rows(torch.zeros(3, dtype=torch.int64))
        shown += [batch.media, sample(model, n=3, condition=text, guidance=1.5, seed=row).media]
        shown += [sample(model, n=3, condition=text, guidance=2.0, sampler=AutoregressiveSampler(top_p=0.9), seed=row).media]
        labels += [data.captions[row]] * 7  # type: ignore[attr-defined]
    save_sample_grid(torch.cat(shown), HERE / "icons.png", 7, labels)
    likely = {"guidance": 2.0, "sampler": AutoregressiveSampler(top_p=0.9)}
    made = [sample(model, n=6, condition={"text": text}, seed=0, **likely).media for text in COMMON]  # type: ignore[arg-type]
    save_sample_grid(torch.cat(made), HERE / "icons_common.png", 6, [text for text in COMMON for _ in range(6)])


def holes(model: Bundle, plain: Bundle, data: MediaDataset) -> dict[str, float]:
    """What is known of the middle third of an icon's commands: given both sides, and given what stands before it, by both models, whose
    ids say the same at the same places."""
    (tokens, condition), (steps, _) = encoded(model, data), encoded(plain, data)
    nats, cells, pictures = Counter[str](), 0, []
    text = Condition({"text": condition.parts["text"]})
    for row in range(FILLED):
        one, its, rng = tokens.rows([row]), text.rows(torch.tensor([row])), RowRNG.of(0, [row])
        asked = middle(model, one)
        nats["both sides"] += float(region_nll(model.generator, one, its, asked, rng)[0])
        cells += int(asked.sum())
        for name, other, row_of in (("before, same model", model, one), ("before, icons/ar", plain, steps.rows([row]))):
            nats[name] += before(other, row_of, its, asked)
        if row < SHOWN:
            four = torch.zeros(4, dtype=torch.int64)
            known = Tokens(one.codes.masked_fill(asked, UNKNOWN), model.spec).rows(four)
            made = sample_tokens(model.generator, its.rows(four), AutoregressiveSampler(), rng=RowRNG.of(row, range(4)), known=known).tokens
            left = Tokens(one.codes[~asked[None]][None, None], model.spec)
            pictures += [model.decode(one), model.decode(left), model.decode(made)]
    save_grid(torch.cat(pictures), HERE / "icons_filled.png", 12)
    whole = sum(float(model.generator.nll_bound(tokens.rows(i), text.rows(i)).sum()) for i in torch.arange(tokens.batch).split(64))  # type: ignore[union-attr]
    found = {f"nats_per_id, {name}": value / cells for name, value in nats.items()} | {"icons": FILLED, "ids": cells / FILLED}
    return found | {"nats_per_id, whole icons": whole / int(tokens.present.sum()), "steps": model.meta["step"]}


def middle(model: Bundle, tokens: Tokens) -> Tensor:
    """bool [1, N]: the ids of the middle third of the commands."""
    ids = tokens.codes[0, 0]
    starts = ((ids > 0) & (ids < 4)).nonzero()[:, 0].tolist()
    first, last = starts[len(starts) // 3], starts[2 * len(starts) // 3]
    place = torch.arange(len(ids))
    return ((place >= first) & (place < max(last, starts[min(len(starts) // 3 + 1, len(starts) - 1)])))[None]


def before(model: Bundle, tokens: Tokens, condition: Condition, asked: Tensor) -> float:
    """Nats of the ids bool [1, N] given the words and what stands before each."""
    log_p = model.generator(tokens, condition).log_softmax(-1)[0, :, 0]  # type: ignore[misc]
    ids = tokens.codes[0, 0].clamp(min=0)
    return -float(log_p.gather(1, ids[:, None])[:, 0][asked[0]].sum())


def page(store: Store) -> None:
    def nats(key: str) -> str:
        return store.value(key, ".3f", math.log(2))

    rows = [("samples", *READ.values(), "mean distance to the nearest training icon")]
    for how in SAMPLED:
        rows.append((how, *(store.value(f"ar/{how}/{name}", ".1f", 100) for name in READ), store.value(f"ar/{how}/nearest_training")))
    real, own = "ar/guidance 1", ("held_out_nearest_training_below_0.05", "held_out_word_shared")
    rows.append(("held-out icons", "–", "–", "–", *(store.value(f"{real}/{name}", ".1f", 100) for name in own), store.value(f"{real}/held_out_nearest_training")))
    filled = ""
    if "holes/icons" in store.figures:
        kinds = ("both sides", "before, same model", "before, icons/ar")
        filled = f"""## Commands filled in

`experiment=icons/infill` is the same model of points in place of steps (which holes would move), trained with holes
(`generator=causal_masked`), {BUDGET["infill"]}. Of {store.value("holes/icons", ".0f")} held-out icons the middle third of
the commands is cut out, {store.value("holes/ids", ".1f")} ids on average. Nats per id of what stood there:

{table([("given", "nats per id"), *((kind, store.value(f"holes/nats_per_id, {kind}")) for kind in kinds)])}

The first also knows how many ids are missing. As a model of whole icons it reaches {store.value("holes/nats_per_id, whole icons")} nats per id after {store.value("holes/steps", ",.0f")} steps.
A miss: what stands on the other side hardly helps yet, and the model of steps, which does not see it, knows the missing part far better. Held-out icons, what is kept of them, and four fills each, two icons a row:

![icons filled in](icons_filled.png)

```bash
python sample.py ckpt=RUN/bundle n=4 known=FILE.svg keep=0:3+6:
```
"""
    HERE.joinpath("icons.md").write_text(
        f"""# Words to icons

`data=icons` reads filled SVG icons and the words of their files' names, by default the set of Pictogrammers in the package mkdocs-material (Apache-2.0);
`tokenizer=icon` writes them as ids on a canvas of 49 x 49 points. `experiment=icons/ar` trains a causal model of {store.value("ar/guidance 1/parameters", ",.0f")} parameters, conditioned on the
words, on icons of up to {LONGEST} ids: {store.value("data/train", ",.0f")} icons, {store.value("data/held_out", ",.0f")} held out by a hash of their names, {BUDGET["ar"]} of one processor ({store.value("ar/guidance 1/steps", ",.0f")} steps of
16 icons). That is little: the figures say what such a small run reaches, not what the method can.
This page is made by `python docs/results/icons.py page` from [icons.json](icons.json), where every figure has its command, seed, seconds and machine.

{held_by_tests(LAWS)}

## What is drawn

{ITEMS} samples for the words of held-out icons in turn. Valid: the row came to its end and inks something (rows are cut at {LONGEST} ids). Unique: different
documents among the valid. Novel: those that are no training icon's. The distance of two icons is 1 - intersection over union of their pixels at 64 px.

{table(rows)}

A half success. Held-out ids cost {nats("ar/guidance 1/held_out_bits_per_token")} nats each, where a model of points, read letter by letter, had {nats("points and letters/held_out_bits_per_token")} after 15 minutes ({store.value("points and letters/steps", ",.0f")} steps of 32); the frequencies of steps in each
state of the grammar, without any past, cost {store.value("data/nats_per_id_by_state, steps")}, those of points {store.value("data/nats_per_id_by_state, points")}: most of the gain
is likely the other way to write a point (no run separates it from words, size and speed). Lines are straight, corners
right and curves round now, and parts are known again: rounded boxes, circles, the lid of a database, the stroke through what is "off". Yet for most names
of held-out icons these parts make no icon: one wrong step moves all that follows, and a shape that does not close looks torn. The distance to the nearest training
icon fell from {store.value("points and letters/nearest_training")} (points and letters) to {store.value("ar/guidance 1/nearest_training")}. Words steer, weakly: {store.value("ar/guidance 1/word_shared", ".1f", 100)} % of the samples share a word with the nearest icon at guidance 1, by chance
(the nearest icon of another sample) {store.value("ar/guidance 1/word_shared_by_chance", ".1f", 100)} %; {store.value("ar/guidance 2, top-p 0.9/word_shared", ".1f", 100)} and {store.value("ar/guidance 2, top-p 0.9/word_shared_by_chance", ".1f", 100)} % in the last row; the standard error is 2 to 3 points. After 12 minutes
({store.value("ar, 12 min/guidance 1/steps", ",.0f")} steps) held-out ids cost {nats("ar, 12 min/guidance 1/held_out_bits_per_token")} nats, less than now, and the samples were farther from icons ({store.value("ar, 12 min/guidance 1/nearest_training")}): the model begins to learn the 6,169 icons by heart, and wants dropout
or more icons rather than more time. On the grid held-out icons keep {store.value("ar/guidance 1/held_out_overlap", ".1f", 100)} % intersection over union with
their own pictures. An icon has {store.value("ar/guidance 1/held_out_ids_per_item", ".1f")} ids, a sample {store.value("ar/guidance 1/ids_per_sample", ".1f")} (guidance 1).

Held-out icons, each followed by three samples for its words at guidance 1.5, and three at guidance 2 and top-p 0.9 (seeds fixed, none chosen):

![samples beside their words](icons.png)

Common words are drawn: `home`, `circle` and `heart` most times, `file`, `account` and `arrow` now and then. Six samples each, guidance 2 and top-p 0.9,
the words chosen, the samples not. All six are names of training icons, so that what is right here may be known by heart:

![samples for common words](icons_common.png)

```bash
python sample.py ckpt=RUN/bundle n=16 condition="arrow left"    # 0000.svg ... beside their pictures
gentok evaluate ckpt=RUN/bundle trust=[paths]
```

{filled}"""
    )


def main(given: list[str]) -> None:
    store = Store("icons")
    for name in given[1:] or (BUDGET if given[0] != "page" else ()):
        train(name) if given[0] == "train" else measure(store, name)
        page(store)
    page(store)


if __name__ == "__main__":
    main(sys.argv[1:])
