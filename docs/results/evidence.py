"""What the scripts of this folder share: figures with their command, seed, seconds and machine, tables, and a JSON file that grows figure by figure."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ZOO = ROOT / "docs" / "zoo"
UNITS = {"psnr_db": "dB", "entropy_bits_per_item": "bit", "nominal_bits_per_item": "bit", "held_out_bits_per_token": "bit/token",
         "tokens_per_second": "token/s", "seconds_of_sampling": "s", "nearest_training": "pixel L2", "held_out_nearest_training": "pixel L2",
         "seconds": "s"}  # fmt: skip


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def figures(prefix: str, metrics: Mapping[str, Any], command: str, seed: int, seconds: float) -> dict[str, dict[str, Any]]:
    """{prefix/metric: value, unit, command, seed, seconds, machine}; a list of one is its only value."""
    same = {"command": command, "seed": seed, "seconds": round(seconds, 1), "machine": machine()}
    values = {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in metrics.items()}
    return {f"{prefix}/{name}": {"value": value, "unit": UNITS.get(name.rpartition("/")[2], ""), **same} for name, value in values.items()}


class Store:
    """docs/results/NAME.json: {"figures": ..., "protocols": ...}. Read again and written whole at every change: measurements may run side by side."""

    def __init__(self, name: str):
        self.path = HERE / f"{name}.json"
        self._read()

    def _read(self) -> None:
        content = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.figures: dict[str, dict[str, Any]] = content.get("figures", {})
        self.protocols: dict[str, Any] = content.get("protocols", {})

    def add(self, figures: Mapping[str, dict[str, Any]], protocols: Mapping[str, Any] | None = None) -> None:
        self._read()
        self.figures |= figures
        self.protocols |= protocols or {}
        temporary = self.path.with_suffix(".writing")
        text = json.dumps({"figures": self.figures, "protocols": self.protocols}, indent=1, default=str)
        temporary.write_text(text.replace(f"{ROOT}/", "") + "\n")  # where a clone lies says nothing
        os.replace(temporary, self.path)

    def value(self, key: str, form: str = ".3f", scale: float = 1.0) -> str:
        """A figure as text; "–" where it was not measured or has no value."""
        found = self.figures.get(key, {}).get("value")
        return "–" if found is None else format(found * scale, form)

    def percent(self, key: str) -> str:
        text = self.value(key, ".1f", 100.0)
        return text if text == "–" else f"{text} %"


def table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def held_by_tests(laws: Mapping[str, str]) -> str:
    """The part of a page that says which tests hold its laws: law -> names of files in tests/, without .py."""
    rows = [(law, ", ".join(f"[{Path(test).name}](../../tests/{test}.py)" for test in tests.split())) for law, tests in laws.items()]
    return f"""## What is exact, and the test that holds it

Most of these tests also run forms made wrong on purpose, which they must notice.

{table([("law", "tests"), *rows])}"""


CIFAR = "data.shards='PATH/cifar10-train-{000..004}.tar' data.held_out=PATH/cifar10-test-000.tar"


def cifar_words(given: Mapping[str, str]) -> list[str]:
    """CIFAR with the paths that a script was given as shards= and held_out=."""
    return [f"data.shards='{given['shards']}'", f"data.held_out={given['held_out']}"]


def train_once(run: Path, words: Sequence[str]) -> Path:
    """The bundle of a run of train.py on one thread; left alone where it is there. Encoded sets lie beside the run."""
    if not (run / "bundle").is_dir():
        quiet = ["print_config=false", "trainer.progress_bar=false", "trainer.validate_every=100000", "trainer.validate_batches=16"]
        words = ["train.py", *words, *quiet, f"paths.run={run}", f"paths.cache={run.parent / 'cache'}"]
        if subprocess.run([sys.executable, *words], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode:
            sys.exit(f"the training of {run.name} failed")
    return run / "bundle"


def measure_samples(
    store: Store, key: str, bundle: Path, own: Sequence[str], data: Sequence[str], trained: str, seed: int, picture: str | None = None
) -> dict[str, Any]:  # fmt: skip
    """Adds what evaluate.py says of a bundle's samples, its parameters and its steps as figures of `key`.

    Args:
        own: words of evaluate.py, kept in the command of the figures.
        data: words of the data, which hold paths.
        trained: the command that made the bundle.
        picture: name for the picture of samples, in this folder; None: none is kept.
    """
    from gentok.bundle import load
    from gentok.cli import compose
    from gentok.evaluate import evaluate

    model = load(bundle)
    about = {"parameters": sum(p.numel() for p in model.generator.parameters()), "steps": model.meta["step"]}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        report = evaluate(compose("evaluate", [f"ckpt={bundle}", f"out={out}", *own, f"seed={seed}", *data, "progress=false"]))
        if picture:
            (Path(out) / "samples.png").replace(HERE / picture)
    how = f"python -m gentok.evaluate ckpt=RUN/bundle {' '.join(own)} seed={seed}, after: {trained}"
    found = {**{k: v for k, v in report["metrics"].items() if not isinstance(v, dict)}, **about}
    protocol = {k: v for k, v in report["protocol"].items() if k not in ("ckpt", "data")}  # which hold paths
    store.add(figures(key, found, how, seed, time.monotonic() - began), {key: protocol})
    return found


def train_or_measure(
    words: Sequence[str], store: Store, names: Iterable[str], train: Callable[..., Any], measure: Callable[..., Any], page: Callable[[Store], None]
) -> None:  # fmt: skip
    """The command line `train|measure NAME ... [seed=0] shards=... held_out=...`; without a NAME all of `names`.

    Args:
        train: of (name, seed, {"shards", "held_out"}).
        measure: of (store, name, seed, {"shards", "held_out"}); after each the page is written.
    """
    given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    seed = int(given.pop("seed", 0))
    for name in [word for word in words[1:] if "=" not in word] or names:
        if words[0] == "train":
            train(name, seed, given)
        else:
            measure(store, name, seed, given)
            page(store)


def shell(*words: str) -> None:
    """Runs a command of this project's as its user would; ends the script with its message where it fails."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT)
    if done.returncode:
        sys.exit(f"failed: python {' '.join(words)}")
