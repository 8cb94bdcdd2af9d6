"""`make demo`: from real digits to new ones through the whole of gentok, in about 15 minutes on two cores.

Trains the tokenizer mnist5k/vq and the generator mnist5k/ar on it, evaluates both and leaves in outputs/demo
    reconstructions.png   held-out digits over their reconstructions      tokenizer/   the tokenizer's bundle
    samples.png           new digits, a row per class                     generator/   the generator's bundle
    metrics.json          everything that was measured
Times are arguments: python -m gentok.demo tokenizer=150s generator=5min out=outputs/demo
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gentok.cli import compose, patient_threads
from gentok.command import run_command

__all__ = ["demo", "main"]


def demo(out: str | Path = "outputs/demo", tokenizer: str = "150s", generator: str = "5min") -> dict[str, Path]:
    """Trains and evaluates a tokenizer and a generator.

    Args:
        out: the folder; what an earlier demo made there is replaced.
        tokenizer: budget of its training, such as "150s".
        generator: budget of its training.

    Returns:
        The paths of what was made, by name.
    """
    from gentok.evaluate import evaluate
    from gentok.training.run import train

    began = time.monotonic()
    out = Path(out)
    paths = {name: out / name for name in ("reconstructions.png", "samples.png", "metrics.json", "tokenizer", "generator")}

    def train_and_evaluate(kind: str, experiment: str, budget: str, grid: str, *overrides: str) -> dict[str, Any]:
        print(f"\n== {experiment}, {budget}", flush=True)
        run, target, cache = out / "runs" / experiment.replace("/", "_"), paths[kind], out / "cache"
        shutil.rmtree(run, ignore_errors=True)
        common = [f"experiment={experiment}", f"budget={budget}", f"paths.run={run}", f"paths.cache={cache}", "print_config=false"]
        train(compose("config", [*common, *overrides]))
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(run / "bundle", target)
        print(f"\n== evaluating the {kind}", flush=True)
        folder = out / "evaluation" / kind
        metrics = evaluate(compose("evaluate", [f"ckpt={target}", f"out={folder}", f"cache={cache}"]))
        shutil.copy(next(folder.glob("*.png")), paths[grid])
        return metrics

    metrics: dict[str, Any] = {"reconstruction": train_and_evaluate("tokenizer", "mnist5k/vq", tokenizer, "reconstructions.png")}
    ckpt = f"tokenizer.ckpt={paths['tokenizer']}"
    metrics["generation"] = train_and_evaluate("generator", "mnist5k/ar", generator, "samples.png", ckpt)
    metrics["seconds"] = round(time.monotonic() - began, 1)
    paths["metrics.json"].write_text(json.dumps(metrics, indent=1, default=str) + "\n")
    print("\n  ".join([f"\n{metrics['seconds']:.0f} s in all. Made:", *map(str, paths.values())]))
    print(f"More digits:  python sample.py ckpt={paths['generator']} n=16 condition=7")
    return paths


def main(argv: Sequence[str] | None = None) -> None:
    """The command. argv: the words behind its name; None: those of this process."""
    patient_threads()
    run_command(demo, argv, "python -m gentok.demo [out=FOLDER] [tokenizer=TIME] [generator=TIME]")


if __name__ == "__main__":
    main()
