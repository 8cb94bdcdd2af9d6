"""`make demo`: real digits through the whole of gentok, from an empty machine to new digits, in about a quarter of an hour on two cores.

Trains the tokenizer mnist5k/vq and the generator mnist5k/ar on it, evaluates both and leaves in outputs/demo
    reconstructions.png   held-out digits over their reconstructions      tokenizer/   the tokenizer's bundle
    samples.png           new digits, a row per class                     generator/   the generator's bundle, tokenizer inside
    metrics.json          everything that was measured
Times are arguments: python -m gentok.demo tokenizer=150s generator=5min out=outputs/demo
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

from gentok.cli import compose, patient_threads

__all__ = ["demo", "main"]


def demo(out: str | Path = "outputs/demo", tokenizer: str = "150s", generator: str = "5min") -> dict[str, Path]:
    """Trains, evaluates and returns the paths of what it made. tokenizer, generator: budgets of the two trainings."""
    from gentok.evaluate import evaluate
    from gentok.training.run import train

    began = time.monotonic()
    out = Path(out)
    paths = {name: out / name for name in ("reconstructions.png", "samples.png", "metrics.json", "tokenizer", "generator")}

    def run(name: str, budget: str, *overrides: str) -> None:
        print(f"\n== {name}, {budget}", flush=True)
        folder = out / "runs" / name.replace("/", "_")
        shutil.rmtree(folder, ignore_errors=True)
        words = [f"experiment={name}", f"budget={budget}", f"paths.run={folder}", f"paths.cache={out / 'cache'}", "print_config=false"]
        config = compose("config", [*words, *overrides])
        train(config)
        target = paths["generator" if "tokenizer.ckpt" in " ".join(overrides) else "tokenizer"]
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(folder / "bundle", target)

    def measure(name: str, picture: str, *overrides: str) -> dict:
        print(f"\n== evaluating the {name}", flush=True)
        folder = out / "evaluation" / name
        report = evaluate(compose("evaluate", [f"ckpt={paths[name]}", f"out={folder}", f"cache={out / 'cache'}", *overrides]))
        shutil.copy(next(folder.glob("*.png")), paths[picture])
        return report

    run("mnist5k/vq", tokenizer)
    run("mnist5k/ar", generator, f"tokenizer.ckpt={paths['tokenizer']}")
    metrics = {"reconstruction": measure("tokenizer", "reconstructions.png"), "generation": measure("generator", "samples.png")}
    metrics["seconds"] = round(time.monotonic() - began, 1)
    paths["metrics.json"].write_text(json.dumps(metrics, indent=1, default=str) + "\n")
    print(f"\n{metrics['seconds']:.0f} s in all. Made:")
    for path in paths.values():
        print(f"  {path}")
    print(f"More digits:  python sample.py ckpt={paths['generator']} n=16 condition=7")
    return paths


def main() -> None:
    arguments = dict(word.split("=", 1) if "=" in word else (word, None) for word in sys.argv[1:])
    unknown = set(arguments) - {"out", "tokenizer", "generator"}
    if unknown or None in arguments.values():
        sys.exit(f"gentok: the demo takes out=FOLDER tokenizer=TIME generator=TIME; got {' '.join(sys.argv[1:])}")
    patient_threads()
    try:
        demo(**arguments)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"gentok: {error}")


if __name__ == "__main__":
    main()
