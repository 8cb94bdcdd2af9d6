"""Measures distilled decoding on digits: writes distilled.json, distilled.md and the picture beside it.

    python docs/results/distilled.py train RUNS [form=short] [seed=0]       a student of docs/zoo/mnist5k_ar in RUNS/short0
    python docs/results/distilled.py measure RUNS [form=short,...] [seed=0] [n=1000] [rows=teacher,one,...]
    python docs/results/distilled.py positions RUNS [form=short] [seed=0]    how many codes a second pass mends
    python docs/results/distilled.py page                                   the page anew, from the figures that are there

Rows are ways to sample one and the same bundle, which holds its teacher; forms are ways to train it.
"""

from __future__ import annotations

import itertools
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from evidence import HERE, Store, figures, held_by_tests, table, train_once
from torch import Tensor

from gentok.bundle import Bundle, load
from gentok.data.datasets import whole
from gentok.data.image_files import save_grid
from gentok.data.mnist5k import MNIST5k
from gentok.metrics.classifier import classifier, predict
from gentok.metrics.generation import accuracy, alike, variety
from gentok.rng import RowRNG
from gentok.samplers.distilled import DistilledSampler
from gentok.sampling import sample
from gentok.types import Tokens

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "teacher": ("the teacher", {"assist": [0, 64]}),
    "naive": ("independent marginals", {}),
    "one": ("one pass", {"steps": 1}),
    "two": ("two passes", {"steps": 2}),
    "assisted": ("one pass, the teacher's codes 10 to 19", {"assist": [10, 20]}),
    "half": ("the teacher's codes 0 to 19, one pass", {"assist": [0, 20]}),
}
"""name: what the table calls it, settings of sampler=distilled."""
LAWS = {
    "the map carries noise to the wanted distribution, and is the normal's quantile function on a line": "flow/test_codewords",
    "a trajectory is the teacher's map at every position; a position of the student sees its own state and those before it": "generators/test_distilled_generator",
    "codes and calls are those of the passes; a span of everything is the teacher, code for code and in distribution": "samplers/test_distilled",
    "cached noise and codes are the teacher's way; another teacher's are refused": "data/test_trajectory_set",
    "scores are gradients of enumerated log densities": "flow/test_codewords generators/test_score_distilled",
    "a student with the teacher's distribution is left alone; training leads there, and with the other sign away": "generators/test_score_distilled",
}  # fmt: skip
DIGITS = 10
FORMS = {
    "short": ("the map from noise to codes, 55 s", "experiment=mnist5k/distilled budget=55s"),
    "long": ("the map, 5 min", "experiment=mnist5k/distilled budget=5min"),
    "scores": ("the map, 55 s, then by scores, 245 s", "experiment=mnist5k/score_distilled budget=245s init_from=RUNS/short{seed}/bundle"),
}
"""name: what the table calls it, how it is trained."""


def train(runs: Path, form: str, seed: int) -> None:
    words = trained_by(form, seed).replace("RUNS", str(runs)).split()[2:]
    train_once(runs / f"{form}{seed}", words)


def trained_by(form: str, seed: int) -> str:
    return f"python train.py {FORMS[form][1].format(seed=seed)} clock=cpu seed={seed}"


def key(form: str, row: str) -> str:
    """Of figures: those of the first form have no name of it."""
    return f"mnist5k/{row}" if form == "short" else f"mnist5k/{form}/{row}"


def tokens_of(bundle: Bundle, name: str, n: int, seed: int, teachers: Tokens | None) -> tuple[Tokens, Tensor, float]:
    """(tokens, calls of each, seconds) of a row, item i of class i mod 10. teachers: tokens of the row "teacher", where they are there."""
    labels = torch.arange(n) % DIGITS
    if name == "naive":  # the teacher's codes, at every position shuffled among the items of a class: the same marginals, nothing else
        out = tokens_of(bundle, "teacher", n, seed, None)[0] if teachers is None else teachers
        rng = RowRNG.of(seed, range(DIGITS * bundle.spec.positions))
        codes = out.codes.clone()
        order = rng.permutation(n // DIGITS)
        for c in range(DIGITS):
            for i in range(bundle.spec.positions):
                codes[c::DIGITS, 0, i] = out.codes[c::DIGITS, 0, i][order[c * bundle.spec.positions + i]]
        return Tokens(codes, bundle.spec), torch.zeros(n), float("nan")
    drawn = sample(bundle, n=n, condition=labels.tolist(), sampler=DistilledSampler(**ROWS[name][1]), seed=seed, guidance=1.0, batch_size=100)
    return drawn.tokens, drawn.calls, drawn.seconds


@lru_cache
def judged(n: int) -> tuple[Any, dict[str, Tensor]]:
    """The classifier, and its features of held-out digits and of as many training digits of each class as n samples have."""
    data = MNIST5k()
    (train_media, train_labels), (held_out, _) = whole(data.train), whole(data.held_out)
    judge = classifier(train_media, train_labels, DIGITS)[0]
    same = train_media[alike(train_labels, DIGITS, n)]
    return judge, {"held_out": predict(judge, held_out)[1], "train": predict(judge, same)[1]}


def measure(store: Store, runs: Path, form: str, seed: int, n: int, names: list[str]) -> None:
    bundle, (judge, kept) = load(runs / f"{form}{seed}" / "bundle"), judged(n)
    labels, pictures, teachers = torch.arange(n) % DIGITS, [], None
    meta = bundle.meta
    how = f"python docs/results/distilled.py measure RUNS form={form} seed={seed} n={n}, after: {trained_by(form, seed)}"
    for name in names:
        began = time.process_time()
        tokens, calls, seconds = tokens_of(bundle, name, n, seed, teachers)
        teachers = tokens if name == "teacher" else teachers
        media = bundle.decode(tokens).clamp(-1, 1)
        predicted, features = predict(judge, media)
        found = {"accuracy": accuracy(predicted, labels, [str(c) for c in range(DIGITS)])[0], "calls": calls.double().mean().item()}
        found |= {k: v for k, v in variety(features, kept["held_out"], kept["train"], few=True).items() if k in ("kid", "precision", "recall_share")}
        if seconds == seconds:
            found["seconds_per_image"] = seconds / n
        found["samples"] = n
        store.add(figures(f"{key(form, name)}/seed {seed}", found, how, seed, time.process_time() - began))
        pictures.append(media[:DIGITS])
        print(name, {k: round(v, 4) for k, v in found.items()}, flush=True)
    about = {"steps": meta.get("step"), "training_seconds": meta.get("seconds"), "held_out_loss": meta.get("metrics", {}).get("held_out_loss")}
    store.add(figures(f"{key(form, 'training')}/seed {seed}", about, trained_by(form, seed), seed, meta.get("seconds") or 0.0))
    if form == "short" and seed == 0 and len(names) == len(ROWS):
        save_grid(torch.cat(pictures), HERE / "distilled_mnist5k.png", DIGITS, scale=2)


@torch.no_grad()
def positions(store: Store, runs: Path, form: str, seed: int, n: int = 200) -> None:
    """Of the teacher's codes of the same noise, which share a pass has behind the split: alone, behind the codes of a first pass, and behind
    the teacher's own; and which share of the teacher's nats lies before the split."""
    bundle, began = load(runs / f"{form}{seed}" / "bundle"), time.process_time()
    model: Any = bundle.generator
    condition, noise = bundle.condition_spec.parse(list(range(DIGITS)), n), model.noise(RowRNG.of(seed, range(n)))
    unknown, behind = Tokens.unknown(bundle.spec, n).codes, torch.arange(bundle.spec.positions) >= model.split
    wanted = model.follow(unknown, noise, condition, range(bundle.spec.positions))
    first = model.jump(unknown, noise, condition).argmax(-1)
    again, best = (model.jump(torch.where(behind, unknown, codes), noise, condition).argmax(-1) for codes in (first, wanted))
    nats = -model.teacher(Tokens(wanted, bundle.spec), condition)[:, :, 0].log_softmax(-1).gather(2, wanted[:, 0, :, None])[..., 0].mean(0)
    same = {name: (codes == wanted)[..., behind].double().mean().item() for name, codes in (("one", first), ("two", again), ("best", best))}
    found = {**same, "before": (first == wanted)[..., ~behind].double().mean().item(), "nats_before": (nats[~behind].sum() / nats.sum()).item()}
    print(form, seed, found, flush=True)
    how = f"python docs/results/distilled.py positions RUNS form={form} seed={seed}, after: {trained_by(form, seed)}"
    store.add(figures(f"{key(form, 'positions')}/seed {seed}", found, how, seed, time.process_time() - began))


def seeds(store: Store) -> list[str]:
    return sorted({key.split("/")[2] for key in store.figures if key.startswith("mnist5k/one/")})


def compared(right: float, other: float, n: int) -> tuple[float, float]:
    """By how much a share of n samples is above another one, and the standard error of that."""
    return right - other, sum(share * (1 - share) / n for share in (right, other)) ** 0.5


def verdicts(store: Store) -> list[str]:
    """Whether one pass reaches half of the way from independent marginals to the teacher, and two passes more."""
    out = []
    for form, seed in itertools.product(("short", "long"), seeds(store)):
        at = {"teacher": "mnist5k/teacher", "naive": "mnist5k/naive", "one": key(form, "one"), "two": key(form, "two")}
        right = {name: store.figures.get(f"{place}/{seed}/accuracy", {}).get("value") for name, place in at.items()}
        if None in right.values():
            continue
        way, n = right["teacher"] - right["naive"], store.figures[f"mnist5k/one/{seed}/samples"]["value"]
        one, two = ((right[name] - right["naive"]) / way for name in ("one", "two"))
        more, error = compared(right["two"], right["one"], n)
        further = "go further" if more > 2 * error else "fall behind" if more < -2 * error else "cannot be told from one, a miss"
        out.append(
            f"{FORMS[form][0]}, {seed}: one pass covers {one:.0%} of the way from independent marginals to the teacher, two passes {two:.0%}. "
            f"Half of it is {'reached' if one >= 0.5 else 'missed'}; two passes {further}: {100 * more:+.1f} points, of a standard error of "
            f"{100 * error:.1f}."
        )
    return out


def page(store: Store) -> None:
    rows = [("sampling", "seed", "recognised", "KID", "precision", "recall share", "calls", "seconds per image")]
    for name, (title, _) in ROWS.items():
        for seed in seeds(store) or ["seed –"]:
            value: Any = lambda metric, form, scale=1.0: store.value(f"mnist5k/{name}/{seed}/{metric}", form, scale)  # noqa: B023, E731
            rows.append((title, seed.split()[1], value("accuracy", ".1f", 100.0), value("kid", ".3f"), value("precision", ".2f"),
                         value("recall_share", ".2f"), value("calls", ".0f"), value("seconds_per_image", ".4f")))  # fmt: skip
    trained = [f"{seed}: {store.value(f'mnist5k/training/{seed}/steps', ',.0f')} steps, "
               f"{store.value(f'mnist5k/training/{seed}/training_seconds', '.0f')} s, held-out loss "
               f"{store.value(f'mnist5k/training/{seed}/held_out_loss')}." for seed in seeds(store)]  # fmt: skip
    parts = ["""# Distilled decoding

One or two passes in the place of 64: a student of `docs/zoo/mnist5k_ar` that learned the teacher's map from noise to codes (guidance 1.5). This page is
made by `python docs/results/distilled.py page` from [distilled.json](distilled.json), where every figure has its command, seed, seconds and machine.
""", held_by_tests(LAWS), """## Digits

Recognised: the eval classifier sees the wanted digit, in per cent. KID, precision and recall against held-out digits in its features. Independent
marginals: the teacher's codes, at every position shuffled among the samples of a class. Calls are network calls per sample; the teacher's compute
two rows, for guidance. Seconds are of 100 images at once, one thread, on a busy machine.
""" + "\n" + table(rows), *([" ".join(trained)] if trained else []),
        "## The aim\n\nOne pass at least half of the way from independent marginals to the teacher in digits recognised, two passes further.\n\n"
        + ("\n\n".join(verdicts(store)) or "Not measured yet."), passes(store), forms(store), *NOTES]  # fmt: skip
    if (HERE / "distilled_mnist5k.png").is_file():
        parts.append("Students of 55 s, trained once more by the same commands. Rows: " + "; ".join(title for title, _ in ROWS.values()) + ".\n\n![digits, a row per way to sample](distilled_mnist5k.png)")
    (HERE / "distilled.md").write_text("\n\n".join(part.strip() for part in parts) + "\n")


def passes(store: Store) -> str:
    """What a second pass mends."""
    rows = [("seed", "one pass", "two passes", "one pass behind the teacher's codes", "before 20, one pass", "the teacher's nats before 20")]
    for seed in seeds(store):
        at = [store.value(f"mnist5k/positions/{seed}/{name}", ".1f", 100.0) for name in ("one", "two", "best", "before", "nats_before")]
        rows.append((seed.split()[1], *at))
    return f"""## What a second pass can mend

As in the paper: the first pass's codes before position 20 are kept, their noise gives way to them, the noise behind stays, and a second pass maps it again.
In per cent, of 200 items: codes that are those of the teacher for the same noise, behind position 20 unless said otherwise, and the share of
the teacher's nats that lies before position 20.

{table(rows)}

So it is not the codes before position 20 that a first pass lacks: behind the teacher's own ones a pass finds hardly more of the teacher's codes than without
them. What limits both is how well the map of each position is learned, and a second pass has little to mend. What it gains, it gains in codes that
fit each other (KID)."""


def forms(store: Store) -> str:
    """One and two passes of students that were trained otherwise."""
    rows = [("training", "seed", "steps", "recognised, one pass", "two passes", "KID, one pass", "two passes", "recall share, one pass",
             "divergence")]  # fmt: skip
    for form, (title, _) in FORMS.items():
        for seed in seeds(store):
            def value(row: str, metric: str, text: str, scale: float = 1.0, form: str = form, seed: str = seed) -> str:
                return store.value(f"{key(form, row)}/{seed}/{metric}", text, scale)

            cells = [value("training", "steps", ".0f"), *(value(row, "accuracy", ".1f", 100.0) for row in ("one", "two")),
                     *(value(row, "kid", ".3f") for row in ("one", "two")), value("one", "recall_share", ".2f"), value("training", "held_out_loss", ".2f") if form == "scores" else "–"]  # fmt: skip
            if set(cells) != {"–"}:
                rows.append((title, seed.split()[1], *cells))
    lost = []
    for seed in seeds(store):
        right = {form: store.figures.get(f"{key(form, 'one')}/{seed}/accuracy", {}).get("value") for form in FORMS}
        for form in ("short", "long"):
            if right["scores"] is not None and right[form] is not None:
                more, error = compared(right["scores"], right[form], store.figures[f"mnist5k/one/{seed}/samples"]["value"])
                lost.append(f"{seed}, scores against {FORMS[form][0]}: {100 * more:+.1f} points, of a standard error of {100 * error:.1f}.")
    return f"""## Longer, and by scores (DD2)

Seconds are of one core, without those of making trajectories, which training by scores does not need. For it the divergence is an estimate of KL(student ||
teacher) in nats of a code, on held-out conditions at the end.

{table(rows)}

{" ".join(lost) or "Not measured yet."}"""


NOTES = ["""Five minutes of the map bring one pass near the teacher, and leave a second pass nothing to gain. By scores it is a miss: after four minutes,
some 450 steps, fewer digits are recognised than of the student that it began with (by 3.1 points at one seed, 1.7 at the other; KID is worse at the
one, better at the other), while the map, learned for as long in its place, goes on to gain. The divergence falls no lower than 3.4 nats of a code. In trials of
half a minute, a guide that learns alone for 15 % of the run in place of 40 % made no clear difference (`scores 28 s` in the figures: 89.8 and 90.8 per cent
beside 89.9 and 92.1); with a guide at 1.5 times the student's rate in place of 8 the divergence rose, in a single trial of which no figure was kept. A student in a
small world of enumerated codes does come to its teacher by the same code ([test_score_distilled](../../tests/generators/test_score_distilled.py)). What is
believed, and was not tried: codes are the largest of many nearly equal logits, so the gradient through them is coarse, and batches of 32 with one draw of
time and noise for each position are noisy; larger batches, lower rates and hours in the place of minutes may do it. Use `distilled`, for longer,
before `score_distilled`.""", """## What it costs

Before the student learns, its teacher makes 4,000 trajectories, one for the condition of every training digit, and 1,000 held-out ones: about a minute
and a half of one core. Then the student takes one minute, or five. It was trained to go on from position 0 or 20, so a span that the teacher gives should end at
20. A step by scores costs more than a step of the map: both networks learn, and the teacher computes two rows."""]


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    store = Store("distilled")
    plain = [word for word in words[1:] if "=" not in word]
    given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    form, seed = given.get("form", "short"), int(given.get("seed", 0))
    if words[0] == "train":
        train(Path(plain[0]), form, seed)
    elif words[0] == "measure":
        for each in form.split(","):
            measure(store, Path(plain[0]), each, seed, int(given.get("n", 1000)), given.get("rows", ",".join(ROWS)).split(","))
    elif words[0] == "positions":
        positions(store, Path(plain[0]), form, seed)
    page(store)


if __name__ == "__main__":
    main(sys.argv[1:])
