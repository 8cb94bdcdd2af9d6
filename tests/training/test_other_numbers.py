"""A run that goes on with another number of processes sees the same items in the same order, and ends as if it had had one number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from changing import RUNS, note_items
from resume_kit import SMALL, killed_at, last, run
from test_sharding import on_two

from gentok.bundle import load
from gentok.training.module import GentokModule

pytestmark = pytest.mark.slow
pytest.importorskip("mlxtend")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Every run whole on one process, and once on two, then one, then two."""
    root = tmp_path_factory.mktemp("numbers")
    run(root, "tokenizer", SMALL)
    begin = GentokModule.on_train_batch_start
    note_items(root)
    try:
        on_two("changing.py", root, "first", *RUNS)
        for name, (words, *_) in RUNS.items():
            run(root, f"{name}_whole", words)
            assert last(root / name)["global_step"] == 2
            with killed_at(5):
                run(root, name, words, "resume=auto")
            assert last(root / name)["global_step"] == 4
    finally:
        GentokModule.on_train_batch_start = begin
    on_two("changing.py", root, "last", *RUNS)
    return root


def items(root: Path, name: str) -> dict[int, list[int]]:
    """{number of a batch: its items}, of the last time that it was trained on, over all processes."""
    seen: dict[int, list[int]] = {}
    parts = [[list(map(int, line.split())) for line in path.read_text().splitlines()] for path in sorted(root.glob(f"{name}_[01].items"))]
    for number in {line[0] for part in parts for line in part}:
        each = [[line[1:] for line in part if line[0] == number] for part in parts]
        whole = [rows[-1] for rows in each if rows]
        seen[number] = max(whole, key=len) if len({len(row) for row in whole}) > 1 else [i for row in whole for i in row]
    return seen


@pytest.mark.parametrize("name", RUNS)
def test_items_and_weights_are_those_of_one_number(root, name):
    changed, whole = last(root / name), last(root / f"{name}_whole")
    assert changed["global_step"] == whole["global_step"] == 6
    ours, theirs = items(root, name), items(root, f"{name}_whole")
    assert ours == theirs and len(theirs) >= 6
    for key in ("state_dict", "current_model_state"):
        for part, value in whole[key].items():
            assert torch.allclose(changed[key][part].double(), value.double(), atol=3e-4, rtol=1e-3), (key, part)
    for number, state in whole["optimizer_states"][0]["state"].items():
        assert torch.allclose(changed["optimizer_states"][0]["state"][number]["exp_avg"], state["exp_avg"], atol=1e-4, rtol=1e-2)
    load(root / name / "bundle")
