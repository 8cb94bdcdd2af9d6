"""Makes benchmark.md from benchmark.json, after taking in the figures of further runs.

    python docs/results/benchmark.py [outputs/benchmark/benchmark.json ...]

Each FILE is one that `python -m gentok.benchmark` wrote; its figures take the places of those with the same names.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from evidence import HERE, table

STORED = HERE / "benchmark.json"
OUTSIDE = "tokenizers/"
NOTES = {
    "first_hitting": """First-hitting draws one cell per network call; ancestral sampling here has sixteen times as many steps as cells, and so 16 is the most that it can be
faster than calling the network in every step. At a batch of one a cache of the last prediction makes as many calls; at sixteen the published cache, which is
stale as soon as any row changes, saves a third, and gentok's, row by row, nearly all.""",
    "sample": """Where gentok is slower: FSQ, by a millisecond for 16,384 vectors (it computes the same codes, with a check of the input and float32 enforced); and MaskGIT at a
batch of 16, whose 12 passes over all cells cost more than 64 cached steps once the batch fills the cores.""",
    "decode": """`bare` are the products with all matrices, attention over the mean number of keys and one exact draw, alone; with weights as they
lie, while gentok packs large float32 ones for four rows and more, and so can be faster. The peer has the same weights and draws the same ids greedily in
float32, which is checked first. It allocates 257 slots and attends to all of them; gentok attends to what was drawn.

Two cores had five to six other jobs during these runs, and steps took several times as long as on the quiet machine, so the ranges matter. What lies
between the products suffers most: at a batch of one weights pass through the caches and push out what they held. At a batch of one gentok is faster than
`generate` as it is, and not faster than `generate` compiled, which takes one to two minutes before its first token. On this processor, which has no
bfloat16 instructions, torch multiplies 16 rows by bfloat16 weights at a third of the speed of widened blocks. int8: nats per token from float32 are the
field `kl` of the JSON.""",
    "speculation": """`call16` compares a call of 16 steps with a call of one, both with exact draws: below 1, and Jacobi decoding saves time where it takes
fewer calls by more than that. `coupled` and `match` are Jacobi decoding with a window of 16 beside one step per call, on a model of 1.4 million
parameters, whose calls are so short that half of the time is the sampler's own.""",
    "train": """The trainer's overhead is the share of time that a step through `train.py`'s modules takes more than the bare loop; its range shows how noisy the machine is.""",
    "codec": """Our EnCodec and the package's call the same kernels in the same order (profiled: the LSTM, copies and convolutions are four fifths of both). Both were timed
on a machine that had other work to do, and decoding ten seconds came out 5 % slower; nothing in the profile says why.""",
    "tokenizers": """Training steps through the trainer, in images per second, and by how many per cent of its time these take longer than the forward and backward passes of
the same network run bare (optimiser, averages of weights, clipping, logging). Without discriminators; teachers are asked anew in every step of both. Three rounds on
a machine whose speed moves by a tenth and more within minutes: a share below zero says no more than that the two cannot be told apart.""",
}  # fmt: skip


def spread(figure: dict[str, Any], form: str = ".2f") -> tuple[str, str]:
    """A figure's median and its range; what is not there where it was not measured."""
    if figure["value"] is None:
        return "–", ""
    return format(figure["value"], form), f"{figure['min']:{form}} … {figure['max']:{form}}"


def line(name: str, figure: dict[str, Any]) -> tuple[str, ...]:
    median, reach = spread(figure)
    setting = figure.get("setting") or figure.get("note", "")
    if "real_time_factor" in figure:
        setting += f"; {figure['real_time_factor']:.1f} × real time, the peer {figure['peer_real_time_factor']:.1f}"
    return f"`{name}`", f"{median} {figure.get('unit', '')}".strip(), reach, figure["peer"], setting


def tokenizer_line(name: str, figure: dict[str, Any]) -> tuple[str, ...]:
    median, reach = spread(figure, ".1f")
    setting = ", ".join(part for part in (figure.get("setting") or figure.get("note", ""), figure.get("dtype", "")) if part)
    speed = f"{figure['images_per_second']:.1f}" if "images_per_second" in figure else "–"
    alone = f"{figure['peer_seconds']:.2f}" if "peer_seconds" in figure else "–"
    return f"`{name.split('/')[1]}`", speed, median, reach, alone, setting


def page(figures: dict[str, dict[str, Any]]) -> str:
    """A table for every run: figures of one command on one machine."""
    runs: dict[tuple[str, str, int, str], dict[str, dict[str, Any]]] = {}
    for name, figure in figures.items():
        made = figure["machine"]
        run = figure["command"], made["cpu"], figure["threads"], made["versions"]["torch"]
        runs.setdefault(run, {})[name] = figure
    parts = []
    for (command, cpu, threads, torch), made in runs.items():
        items = list(dict.fromkeys(name.partition("/")[0] for name in made))
        if all(name.startswith(OUTSIDE) for name in made):
            head = ("tokenizer", "images per second", "share outside the passes, %", "range", "forward and backward alone, s", "setting")
            rows = [head, *(tokenizer_line(*item) for item in made.items())]
        else:
            rows = [("figure", "median", "range", "peer", "setting"), *(line(*item) for item in made.items())]
        notes = "\n\n".join(NOTES[item] for item in items if item in NOTES)
        thread = "1 thread" if threads == 1 else f"{threads} threads"
        title = f"## {', '.join(items).replace('_', ' ').capitalize()}\n\n`{command}`, {cpu}, {thread}, torch {torch}"
        parts.append(f"{title}:\n\n{table(rows)}" + (f"\n\n{notes}" if notes else ""))
    return f"""# Speed, against named peers

This page is made by `python docs/results/benchmark.py` from [benchmark.json](benchmark.json). Figures are medians of interleaved rounds, with their
range. Where the unit is "times as fast", gentok is faster above 1.

{(chr(10) * 2).join(parts)}
"""


def main() -> None:
    figures = json.loads(STORED.read_text())
    for word in sys.argv[1:]:
        path = Path(word)
        if not path.is_file():
            sys.exit(f"{word}: there is no such file; give benchmark.json of a run of `python -m gentok.benchmark`")
        figures |= json.loads(path.read_text())
    text = page(figures)
    if sys.argv[1:]:
        STORED.write_text(json.dumps(figures, indent=1) + "\n")
    (HERE / "benchmark.md").write_text(text)
    print("written to docs/results/benchmark.md")


if __name__ == "__main__":
    main()
