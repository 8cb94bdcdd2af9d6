"""Makes fuzz.md and fuzz.json from the reports of `make fuzz`.

    python docs/results/fuzz.py [outputs/fuzz.json ...]

Each FILE is a report of `python tests/fuzz`; its figures take the places of those of the same kinds of input.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from evidence import HERE, Store, figures, table

WHAT = {
    "bundle": "bundle.json of an image model", "bundle_of_sound": "bundle.json of a codec", "weights": "the weights of a bundle",
    "checkpoint": "a training checkpoint that is sampled", "resume": "a training checkpoint that a run goes on from",
    "tokens": "cached tokens", "compressed_sound": "a sound of `gentok codec`", "command_line": "words of train, sample, evaluate and codec",
    "images": "image files of eight kinds", "sounds": "sound files of nine kinds", "shard": "a tar shard", "table_csv": "a csv table",
    "table_jsonl": "a jsonl table",
}  # fmt: skip
OUTCOMES = ("refused", "equal", "other", "violation")


def page(store: Store) -> str:
    rows = [("input", "what", "mutants", "refused in one line", "result unchanged", "legal, another result", "violations", "first seed", "s")]
    for name, what in WHAT.items():
        figure = store.figures.get(f"{name}/mutants")
        if figure is not None:
            counts = [store.value(f"{name}/{outcome}", ",.0f") for outcome in OUTCOMES]
            rows.append((f"`{name}`", what, f"{figure['value']:,}", *counts, f"{figure['seed']}", f"{figure['seconds']:.0f}"))
    total = sum(f["value"] for key, f in store.figures.items() if key.endswith("/mutants"))
    found = sum(f["value"] for key, f in store.figures.items() if key.endswith("/violation"))
    return f"""# Damaged and hostile input

Made by `python docs/results/fuzz.py` from the reports of `make fuzz` ([tests/fuzz](../../tests/fuzz)): {total:,} mutants, {found} violations.

Each mutant is a good input with bits flipped, bytes cut, moved or repeated, lengths and types changed, or values of JSON and words of the command
line exchanged, also where the checksums were made to fit again. It is used as a person would, in a process of its own. Allowed is a line that
says what is wrong; the same result as from the good input; or, where the change is a legal input of another meaning (another table, other words),
another result. Violations are a traceback, another result from a file under a checksum, a process that dies, more than 10 s, more than twice
the memory of the good input, a connection, and a file written outside of the output folder. Seeds of the mutants follow the first.

{table(rows)}
"""


def main(paths: list[str]) -> None:
    store = Store("fuzz")
    for path in paths:
        report = json.loads(Path(path).read_text())
        command = "python tests/fuzz " + " ".join(word for word in report["argv"] if not word.startswith("out="))
        for name, target in report["targets"].items():
            counts = {outcome: target["counts"].get(outcome, 0) for outcome in OUTCOMES}
            values = {"mutants": sum(counts.values()), **counts}
            store.add(figures(name, values, command, report["seed"], target["seconds"]))
    (HERE / "fuzz.md").write_text(page(store))


if __name__ == "__main__":
    main(sys.argv[1:])
