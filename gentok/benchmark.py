"""How fast gentok is, on this machine's CPU: every figure is a ratio against a named peer that does the same work.

    python -m gentok.benchmark [only=codebook,train,tokenizers,shards,sample,first_hitting,codec] [rounds=5] [threads=N]
                               [out=outputs/benchmark]

How it is measured stands in gentok/metrics/speed.py. Above 1, gentok is faster. Says every figure as soon as it is there and writes it to
OUT/benchmark.json; prints a table at the end. In the file: figure ->
value, min, max, unit, peer, seconds, peer_seconds, rounds, dtype, setting, threads, machine, command, seed; where tokens are drawn also
tokens_per_second and peer_tokens_per_second, where tokenizers are trained images_per_second, of codecs real_time_factor; where a peer is
not installed value = null and a note.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gentok.benchmarks.codebooks import codebook
from gentok.benchmarks.codecs import codec
from gentok.benchmarks.masked_sampling import first_hitting
from gentok.benchmarks.sampling import sample
from gentok.benchmarks.training import shards, tokenizers, train
from gentok.metrics.speed import Figures, Measured, machine, table

__all__ = ["ITEMS", "benchmark", "main"]

ITEMS: dict[str, Callable[[int], Measured]] = {
    "codebook": codebook, "train": train, "tokenizers": tokenizers, "shards": shards, "sample": sample,
    "first_hitting": first_hitting, "codec": codec,
}  # fmt: skip


def _count(name: str, value: Any) -> int:
    if not str(value).isdigit() or int(value) < 1:
        raise ValueError(f"{name}={value}: a number of at least 1")
    return int(value)


def benchmark(
    only: str = ",".join(ITEMS), rounds: str | int = 5, threads: str | int | None = None, out: str | Path = "outputs/benchmark"
) -> Figures:
    """Runs the items named in `only`, writes out/benchmark.json anew behind every figure, prints the table, and returns the figures. Raises
    ValueError on an unknown item or number."""
    items = only.split(",")
    for item in items:
        if item not in ITEMS:
            raise ValueError(f"only={only}: there is no item {item!r}; choose from {', '.join(ITEMS)}")
    rounds, threads = _count("rounds", rounds), None if threads is None else _count("threads", threads)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)

    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    words = ["" if only == ",".join(ITEMS) else f"only={only}", f"rounds={rounds}", "" if threads is None else f"threads={threads}"]
    command = " ".join(["python -m gentok.benchmark", *filter(None, words)])
    common = {"threads": torch.get_num_threads(), "machine": machine(), "command": command, "seed": 0}
    figures: Figures = {}
    path, temporary = out / "benchmark.json", out / f".benchmark.json.{os.getpid()}.part"
    for item in items:
        print(f"{item}: {rounds} rounds and one to warm up ...", file=sys.stderr, flush=True)
        torch.manual_seed(0)
        for name, values in ITEMS[item](rounds):
            figures[name] = {**values, **common}
            temporary.write_text(json.dumps(figures, indent=1) + "\n")
            os.replace(temporary, path)
            print(table({name: values}).splitlines()[-1], file=sys.stderr, flush=True)
    print(f"{table(figures)}\n{path}: {common['machine']['cpu']}, {common['threads']} threads")
    return figures


def main() -> None:
    arguments = dict(word.split("=", 1) if "=" in word else (word, None) for word in sys.argv[1:])
    unknown = set(arguments) - {"only", "rounds", "threads", "out"}
    if unknown or None in arguments.values():
        sys.exit(f"gentok: the benchmark takes only=ITEMS rounds=N threads=N out=FOLDER; got {' '.join(sys.argv[1:])}")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded, as on gentok's command line
    try:
        benchmark(**arguments)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"gentok: {error}")


if __name__ == "__main__":
    main()
