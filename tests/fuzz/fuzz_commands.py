"""Words of a command line, with a mistake among them: whatever they are, the answer is a result or one line."""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
from pathlib import Path
from typing import Any

from fuzz_engine import Mutation, Target
from fuzz_files import make_bundle
from fuzz_mutators import WRONG

SAMPLE = ["sample", "ckpt=bundle", "n=1", "out=out", "seed=0", "guidance=1.0", "condition=a", "sampler.temperature=1.0", "batch_size=2"]
TRAIN = [
    "train", "data=noise", "data.items=8", "data.held_out=4", "data.size=8", "tokenizer.width=4", "codebook.vocab_size=8", "codebook.dim=4",
    "batch_size=4", "steps=1", "task.pictures=1", "trainer.clip=1.0", "trainer.log_every=1", "optimizer.lr=0.001",
    "optimizer.betas=[0.9,0.95]",
    "callbacks.ema=0.99", "bundle_dtype=float32", "freeze=[]", "seed=0", "trainer=cpu", "trainer.precision=32-true", "logger=none",
    "trainer.progress_bar=false", "print_config=false", "paths.run=run", "overfit=false", "limit_items=8",
]  # fmt: skip
EVALUATE = [
    "evaluate",
    "ckpt=bundle",
    "data=noise",
    "data.items=8",
    "data.held_out=4",
    "data.size=16",
    "out=out",
    "progress=false",
    "batch_size=2",
]
KEPT = ("out=", "paths.run=", "ckpt=", "steps=", "data.items=")  # places, and how long it takes
VALUES = (
    *(
        "no",
        "off",
        "1%",
        "10s",
        "1e3",
        "abc",
        "'",
        "a b",
        "[1",
        "{a: 1}",
        "[[1]]",
        "${nowhere}",
        "${oc.env:HOME}",
        "???",
        "~",
        "#",
        "mps",
        "cuda",
    ),
    *("1,2", "-", "=", "=x", "nan", "inf", "1e400", "9" * 400, "写真", "null"),
)


def make(folder: Path) -> Path:
    """A folder with a bundle, and commands.json."""
    (folder / "place").mkdir()
    make_bundle(folder / "place")
    (folder / "place" / "words.json").write_text(json.dumps(SAMPLE))
    return folder / "place"


def mutate(rng: random.Random, path: Path) -> Mutation:
    words = list(rng.choice([SAMPLE, SAMPLE, TRAIN, EVALUATE]))
    for _ in range(rng.choice([1, 1, 2])):
        at = rng.choice([i for i in range(1, len(words)) if not words[i].startswith(KEPT)])
        key = words[at].partition("=")[0]
        kind = rng.choice(["value", "value", "value", "value", "key", "drop", "twice", "bare"])
        if kind == "value":
            value = rng.choice(VALUES) if rng.random() < 0.6 else _plain(rng.choice(WRONG))
            words[at] = f"{key}={value}"
        elif kind == "key":
            words[at] = rng.choice([f"{key}x=1", f"{key}.x=1", f"+{words[at]}", f"++{words[at]}", f"~{key}", f"{key[:-1]}=1"])
        elif kind == "drop":
            del words[at]
        elif kind == "twice":
            words.append(words[at])
        else:
            words[at] = rng.choice(VALUES)
    (path / "words.json").write_text(json.dumps(words))
    return Mutation(" ".join(words)[:600], legal=True)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def use(path: Path, out: Path) -> Any:
    """Runs the command as a user does; its one line is raised as a ValueError."""
    from gentok.cli.main import main

    words = [f"ckpt={path / 'bundle'}" if word == "ckpt=bundle" else word for word in json.loads((path / "words.json").read_text())]
    said = io.StringIO()
    argv = sys.argv
    try:
        with contextlib.redirect_stderr(said):
            main(words)
    except SystemExit as stopped:
        lines = [line for line in said.getvalue().splitlines() if line.startswith("gentok: ")]
        if stopped.code in (None, 0):
            return words[0]
        if len(lines) == 1 and stopped.code == 2 and "Traceback" not in said.getvalue():
            raise ValueError(lines[0]) from None
        raise AssertionError(f"status {stopped.code}, said: {said.getvalue()[-600:]}") from None
    finally:
        sys.argv = argv
    return words[0]


TARGETS = [Target("command_line", make, mutate, use, seconds=30.0)]
