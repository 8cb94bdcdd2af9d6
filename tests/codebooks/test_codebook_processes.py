"""Two processes with halves of every batch are one process with the whole, and hold the same rows after every step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import codebook_processes
import pytest
import torch
from codebook_processes import BOOKS, train

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("processes")
    path = os.pathsep.join(map(str, (HERE, HERE.parent, HERE.parent / "training", HERE.parents[1])))
    command = [sys.executable, str(HERE / "codebook_processes.py"), str(folder)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # rows that differ after a step stop the process
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", [name for name in BOOKS if name != "library"])
def test_two_processes_with_halves_are_one_with_the_whole(processes, name):
    torch.manual_seed(0)
    whole = train(name, slice(None))
    assert torch.equal(torch.cat([p[name]["codes"] for p in processes]), whole["codes"])
    for key, value in whole["state"].items():
        if value.is_floating_point():
            assert torch.allclose(processes[0][name]["state"][key], value, atol=1e-4), key
        else:
            assert torch.equal(processes[0][name]["state"][key], value), key
    assert processes[0][name]["health"] == processes[1][name]["health"] == whole["health"]


def test_the_drifting_data_revive_rows():
    """Else the property above would not be about revival: without it the same steps leave rows unused."""
    codebook_processes.BOOKS["never"] = lambda: codebook_processes.VQ(
        **{**codebook_processes.LEARNT, "revive_below": 0.0}, update="ema", normalize=False
    )
    never, revived = train("never", slice(None)), train("vq_ema", slice(None))
    del codebook_processes.BOOKS["never"]
    assert len(never["codes"].unique()) < 0.8 * len(revived["codes"].unique())


def test_a_library_quantizer_built_before_the_process_group_is_synchronised_after(processes):
    """Every step of it was compared between the processes; here: it did train, on both halves' data."""
    rows = processes[0]["library"]["state"]["quantizer._codebook.embed"]
    assert torch.equal(rows, processes[1]["library"]["state"]["quantizer._codebook.embed"])
    assert rows.mean() > 3  # it has followed the drift
    assert "lfq" in processes[0]["refused"]
