"""Several processes with shares of every batch are one process with the whole; one folder; and what cannot be split is said."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from resume_kit import SMALL, alike, curves, last, of_latents, of_student, pyramid, run
from several_processes import FOUR, QUICK, REST, RUNS

from gentok.bundle import load
from gentok.cli import compose
from gentok.training.loader import held_out_loader
from gentok.training.processes import check_devices, is_first, running
from gentok.training.run import train

pytest.importorskip("mlxtend")
HERE = Path(__file__).parent


def python(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    return subprocess.run([sys.executable, *words], env=environment, text=True, capture_output=True, timeout=1200, cwd=cwd)


@pytest.fixture(scope="module")
def two(root) -> Path:
    done = python(str(HERE / "several_processes.py"), str(root))
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.fixture(scope="module")
def rest(root) -> Path:
    pyramid(root)
    of_latents(root)
    of_student(root)
    done = python(str(HERE / "several_processes.py"), str(root), "rest")
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.fixture(scope="module")
def four(root) -> Path:
    done = python(str(HERE / "several_processes.py"), str(root), "four")
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.parametrize("name", QUICK)
def test_two_processes_train_what_one_does(root, two, name):
    alike(alone(root, name), two / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_two_processes_train_what_one_does_in_every_other_run(root, rest, name):
    if name != "library":  # its own draws differ; that its rows are the same everywhere was checked after every step
        alike(alone(root, name), rest / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_four_processes_train_what_one_does(root, four, name):
    alike(alone(root, name), four / f"{name}_four")


def alone(root: Path, name: str) -> Path:
    """The run of one process, made when it is first asked for."""
    folder = root / f"{name}_one"
    return folder if (folder / "bundle").is_dir() else run(root, folder.name, RUNS[name])


def test_a_process_that_learns_from_its_share_alone_would_be_seen(root):
    own = run(root, "own_share", RUNS["vq_ema"], "batch_size=8")
    with pytest.raises(AssertionError):
        alike(alone(root, "vq_ema"), own)


def test_only_the_first_process_writes_and_the_set_is_encoded_once(two):
    made = {"bundle", "checkpoints", "config.yaml", "metrics.csv", "metrics.json", "pictures"}
    for name in QUICK:
        assert {p.name for p in (two / name).iterdir()} == made
        assert {p.name for p in (two / name / "checkpoints").iterdir()} == {"last.ckpt"}
        load(two / name / "bundle")
    rows = [row["step"] for row in curves(two / "masked_accumulated") if "loss" in row]
    assert rows == sorted(set(rows), key=int)


def test_processes_on_the_clock_end_at_one_step(two):
    assert last(two / "clock")["global_step"] >= 1 and last(two / "clock")["training"]["elapsed"] >= 0.5


def test_what_breaks_on_one_process_is_named_on_all(two):
    first, second = ((two / f"broken_{rank}.txt").read_text() for rank in range(2))
    assert first == second and "the output of tokenizer.decoder.stem (Conv2d)" in first


@pytest.mark.slow
def test_the_command_starts_the_other_process_in_one_folder(tmp_path):
    words = [*SMALL, "steps=4", "trainer.progress_bar=false", "batch_size=16"]
    done = python(str(HERE.parents[1] / "train.py"), "trainer=ddp_sim", *words, "name=pair", "budget=null", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folders = list((tmp_path / "outputs" / "pair").iterdir())
    assert len(folders) == 1 and (folders[0] / "bundle").is_dir(), folders
    assert done.stdout.count("4 steps in") == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_makes_one_folder(tmp_path, rank):
    words = [*SMALL, "steps=2", "trainer.progress_bar=false", "batch_size=16", "trainer=ddp_sim", "name=pair", "budget=null"]
    given = ["--rdzv-id", "job7", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"] if rank else ["--standalone"]
    done = python("-m", "torch.distributed.run", *given, "--nproc-per-node", "2", str(HERE.parents[1] / "train.py"), *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folders = list((tmp_path / "outputs" / "pair").iterdir())
    assert len(folders) == 1 and (folders[0] / "bundle").is_dir(), folders
    assert not rank or folders[0].name == "job7"


@pytest.mark.parametrize("items, size, world", [(10, 4, 2), (5, 4, 4), (7, 3, 1), (3, 2, 3)])
def test_every_held_out_item_once_over_all_processes(items, size, world):
    class Numbers:
        def __len__(self):
            return items

        def __getitems__(self, draws):
            return list(draws)

    batches = [list(held_out_loader(Numbers(), size, rank=r, world=world)) for r in range(world)]
    assert sorted(i for own in batches for batch in own for i in batch) == list(range(items))
    assert all(own for own in batches)
    assert batches[0][0][0] == 0


# ------------------------------------------------------------------------------------------------------------ what is said


@pytest.mark.parametrize(
    "words, answer",
    [
        (["trainer.devices=0"], "trainer.devices=0.*above 0"),
        (["trainer.devices=few"], "trainer.devices=few.*a whole number"),
        (["trainer=gpu"], "no GPU.*trainer=cpu"),
        (["trainer=ddp_sim", "trainer.devices=3", "batch_size=16"], "batch_size=16.*multiple.*3"),
        (["trainer.checkpoint_every=0"], "trainer.checkpoint_every=0"),
        (["trainer.log_every=0"], "trainer.log_every=0"),
        (["trainer.accumulate=0"], "trainer.accumulate=0"),
        (["trainer.workers=-1"], "trainer.workers=-1"),
    ],
)
def test_devices_that_are_not_there_are_said(tmp_path, monkeypatch, words, answer):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=answer) as error:
        train(compose("config", ["steps=1", f"paths.run={tmp_path / 'run'}", "trainer.progress_bar=false", *words]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("devices, answer", [(4, "this machine has 2 GPUs"), ([0, 2], "0..1"), (2, None), ("auto", None)])
def test_more_gpus_than_there_are_is_said(monkeypatch, devices, answer):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    settings = {"accelerator": "gpu", "devices": devices, "num_nodes": 1}
    with pytest.raises(ValueError, match=answer) if answer else contextlib.nullcontext():
        check_devices(settings, 16)


def test_who_is_first_is_read_from_the_environment(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert is_first()
    for name, value, first in (("LOCAL_RANK", "1", False), ("LOCAL_RANK", "0", True), ("RANK", "3", False), ("RANK", "0", True)):
        monkeypatch.setenv(name, value)
        assert is_first() is first
    monkeypatch.delenv("RANK"), monkeypatch.setenv("NODE_RANK", "1")
    assert not is_first()


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, (0, 1)),
        ({"LOCAL_RANK": "1"}, (0, 1)),  # started by Lightning, when all is encoded
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (3, 4)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, (2, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (0, 1)),
    ],
)
def test_who_runs_now_is_read_from_the_environment(monkeypatch, environment, expected):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert running()[:2] == expected
