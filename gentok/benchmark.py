"""How fast gentok is on this machine's CPU: every figure is a ratio against a peer that does the same work.

    python -m gentok.benchmark [only=codebook,train,tokenizers,shards,sample,decode,speculation,first_hitting,codec]
                               [rounds=5] [threads=N] [out=outputs/benchmark]

    python -m gentok.benchmark plan=imagenet256/xar_h gpus=64 [steps_per_second=2] [KEY=VALUE of the experiment]

The second measures nothing: what a large run needs, by formulas (gentok/benchmarks/plan.py).

    python -m gentok.benchmark only=mfu [rounds=5]

Training steps of large generators against the matrix product of this device, also a GPU: only where it is asked for.

How it is measured stands in gentok/metrics/speed.py. Above 1, gentok is faster. Every figure is printed as
soon as it is measured and written to OUT/benchmark.json; a table is printed at the end. In the file: figure
-> value, min, max, unit, peer, seconds, peer_seconds, rounds, dtype, setting, threads, machine, command,
seed; where tokens are drawn also tokens_per_second and peer_tokens_per_second, where images are trained on
images_per_second, of codecs real_time_factor, of mfu tflops_per_second; where a peer is not installed value =
null and a note.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gentok.benchmarks.codebooks import codebook
from gentok.benchmarks.codecs import codec
from gentok.benchmarks.decoding import decode
from gentok.benchmarks.masked_sampling import first_hitting
from gentok.benchmarks.mfu import mfu
from gentok.benchmarks.sampling import sample
from gentok.benchmarks.speculation import speculation
from gentok.benchmarks.training import shards, tokenizers, train
from gentok.cli import patient_threads
from gentok.command import run_command
from gentok.metrics.speed import Figures, Measured, machine, table

__all__ = ["ITEMS", "benchmark", "main"]

ITEMS: dict[str, Callable[[int], Measured]] = {
    "codebook": codebook, "train": train, "tokenizers": tokenizers, "shards": shards, "sample": sample, "decode": decode,
    "speculation": speculation, "first_hitting": first_hitting, "codec": codec, "mfu": mfu,
}  # fmt: skip
USUAL = tuple(name for name in ITEMS if name != "mfu")
"""What is measured unless `only` says otherwise."""


def _count(name: str, value: str | int) -> int:
    if not str(value).isdigit() or int(value) < 1:
        raise ValueError(f"{name}={value}: a number of at least 1")
    return int(value)


def benchmark(
    only: str = ",".join(USUAL), rounds: str | int = 5, threads: str | int | None = None, out: str | Path = "outputs/benchmark"
) -> Figures:
    """Measures, prints a table, and writes out/benchmark.json anew after every figure.

    Args:
        only: names of ITEMS with commas between them.
        rounds: measurements of each contender.
        threads: of torch; None: as many as it takes.
        out: the folder of the file.

    Returns:
        The figures.

    Raises:
        ValueError: an unknown item, or a number below 1.
    """
    items = only.split(",")
    for item in items:
        if item not in ITEMS:
            raise ValueError(f"only={only}: there is no item {item!r}; choose from {', '.join(ITEMS)}")
    rounds, threads = _count("rounds", rounds), None if threads is None else _count("threads", threads)

    import torch

    from gentok.atomic import whole_file

    if threads is not None:
        torch.set_num_threads(threads)
    given = ["" if only == ",".join(USUAL) else f"only={only}", f"rounds={rounds}", "" if threads is None else f"threads={threads}"]
    command = " ".join(["python -m gentok.benchmark", *filter(None, given)])
    common = {"threads": torch.get_num_threads(), "machine": machine(), "command": command, "seed": 0}
    figures: Figures = {}
    path = Path(out) / "benchmark.json"
    for item in items:
        print(f"{item}: {rounds} rounds and one to warm up ...", file=sys.stderr, flush=True)
        torch.manual_seed(0)
        for name, values in ITEMS[item](rounds):
            figures[name] = {**values, **common}
            with whole_file(path) as file:
                file.write(f"{json.dumps(figures, indent=1)}\n".encode())
            print(table({name: values}).splitlines()[-1], file=sys.stderr, flush=True)
    print(f"{table(figures)}\n{path}: {common['machine']['cpu']}, {common['threads']} threads")
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    """The command. argv: the words behind its name; None: those of this process."""
    patient_threads()
    words = sys.argv[1:] if argv is None else list(argv)
    if any(word.startswith("plan=") for word in words):
        from gentok.benchmarks.plan import run

        run(words)
        return
    run_command(benchmark, argv, "python -m gentok.benchmark [only=ITEMS] [rounds=N] [threads=N] [out=FOLDER]")


if __name__ == "__main__":
    main()
