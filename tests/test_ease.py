"""What makes work easy: sweeps with one table, debug modes, logs to choose, the configuration at a glance, a job that goes on."""

import csv
import io
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from in_process import answer

from gentok.cli import compose
from gentok.data.progress import progress
from gentok.sweep import main, note, summarize
from gentok.training.progress_bar import _Bar

ROOT = Path(__file__).resolve().parent.parent
TINY = ["experiment=mnist5k/vq", "tokenizer.width=8", "codebook.vocab_size=32", "trainer.progress_bar=false", "print_config=false"]
OF_EVERY_KIND = ("cifar10/tokenflow_ms", "icons/infill", "imagenet256/xar_b", "mnist5k/distilled", "spoken_digits/speech_text")
EXPERIMENTS = sorted(str(p.relative_to(ROOT / "conf/experiment").with_suffix("")) for p in (ROOT / "conf/experiment").rglob("*.yaml"))


def table(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ----------------------------------------------------------------------------------------------------------------- sweeps


def test_a_sweep_runs_every_combination_in_its_own_folder_and_makes_one_table(tmp_path):
    pytest.importorskip("mlxtend")
    words = ["debug=one_batch", "trainer.progress_bar=true", "seed=0,1", "optimizer.lr=1e-3,-1", f"hydra.sweep.dir={tmp_path}"]
    done = answer("train", "-m", *TINY, *words, cwd=ROOT)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr  # some jobs failed, and that is said
    rows = table(tmp_path / "summary.csv")
    assert [(r["job"], r["seed"], r["optimizer.lr"], r["state"]) for r in rows] == [
        ("0", "0", "0.001", "done"), ("1", "0", "-1", "failed"), ("2", "1", "0.001", "done"), ("3", "1", "-1", "failed"),
    ]  # fmt: skip
    for row in rows:
        last = tmp_path / row["job"] / "metrics.json"
        assert last.is_file() == (row["state"] == "done")
        if last.is_file():
            assert float(row["psnr"]) == json.loads(last.read_text())["metrics"]["psnr"]
            assert (tmp_path / row["job"] / "bundle" / "bundle.json").is_file()
        else:
            assert "optimizer.lr=-1" in row["error"] and row["psnr"] == ""
    text = (tmp_path / "summary.md").read_text()
    assert text in done.stdout and "experiment=mnist5k/vq" in text.split("|")[0]
    lines = done.stdout.splitlines()
    assert any(line.startswith("step ") and "(100 %)" in line for line in lines) and "\r" not in done.stdout, "no bar in a log file"
    ended = next(line for line in lines if " steps in " in line)
    assert ended.split(": ")[1].startswith("psnr "), "the main figure first"
    assert f"next:   gentok evaluate ckpt={tmp_path}/0/bundle" in done.stdout and f"gentok report {tmp_path}/0" in done.stdout


@pytest.mark.parametrize("word, hint", [("paths.run=x", "hydra.sweep.dir"), ("trainer.devices=2", "one process")])
def test_what_cannot_be_swept_is_said_in_a_line(tmp_path, word, hint):
    done = answer("train", "-m", *TINY, "debug=one_batch", "seed=0,1", word, f"hydra.sweep.dir={tmp_path}", cwd=ROOT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and hint in done.stderr, done.stderr


def test_the_table_shows_what_was_varied_and_how_each_ended(tmp_path):
    for i, state in enumerate(("done", "running", "failed", "stopped")):
        note(tmp_path / str(i), ["experiment=a/b", f"x={i % 2}", f"y=[{i}|0]"], state, "no data" if state == "failed" else None)
    metrics = {"psnr": 21.70805, "codebook/held_out_usage_0": 0.5}
    (tmp_path / "0" / "metrics.json").write_text(json.dumps({"step": 7, "seconds": 1.5, "metrics": metrics}))
    text = summarize(tmp_path)
    rows = table(tmp_path / "summary.csv")
    assert list(rows[0]) == ["job", "x", "y", "state", "steps", "seconds", *metrics, "error"]
    assert [r["state"] for r in rows] == ["done", "running", "failed", "stopped"] and rows[2]["error"] == "no data"
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1, "aligned"
    assert len(lines) == 6 and "usage_0" not in text and "21.71" in text and "`experiment=a/b`" in text and "[0\\|0]" in text


def test_jobs_are_listed_in_the_order_they_ran(tmp_path):
    for i in (10, 9, 2, 0):
        note(tmp_path / str(i), ["x=1"], "done")
    summarize(tmp_path)
    assert [r["job"] for r in table(tmp_path / "summary.csv")] == ["0", "2", "9", "10"]


def test_a_folder_that_is_no_sweep_is_answered_in_a_line(tmp_path, capsys):
    for words in ([str(tmp_path)], []):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        said = stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err.strip()
        assert stopped.value.code and said and "\n" not in said and "sweep" in said


# ------------------------------------------------------------------------------------------------------------ debug modes


def run_debug(mode: str, folder: Path, *words: str) -> Path:
    pytest.importorskip("mlxtend")
    from gentok.training.run import train

    return train(compose("config", [*TINY, f"debug={mode}", f"paths.run={folder}", "logger=csv", *words]))


def test_one_batch_goes_through_everything(tmp_path):
    run = run_debug("one_batch", tmp_path / "run")
    for name in ("metrics.json", "metrics.csv", "config.yaml", "checkpoints/last.ckpt", "bundle/bundle.json"):
        assert (run / name).is_file(), name
    assert list((run / "pictures").glob("*.png")) and not list(run.glob("events*"))
    assert json.loads((run / "metrics.json").read_text())["step"] == 1


def test_overfitting_learns_the_batch_that_it_is_judged_on(tmp_path):
    run = run_debug("overfit", tmp_path / "run", "steps=60", "trainer.validate_every=20", "batch_size=8")
    psnr = [float(r["psnr"]) for r in table(run / "metrics.csv") if r["psnr"]]
    losses = [float(r["loss"]) for r in table(run / "metrics.csv") if r["loss"]]
    assert psnr[-1] > psnr[0] + 2 and losses[-1] < losses[0] / 4


def test_a_profile_names_the_expensive_operations(tmp_path):
    run = run_debug("profile", tmp_path / "run", "profile=2", "steps=11", "batch_size=8")
    text = (run / "profile.txt").read_text()
    assert "2 training steps" in text and "conv" in text and (run / "profile_trace.json.gz").stat().st_size > 0


def test_a_run_too_short_to_profile_says_so(tmp_path, capsys):
    run = run_debug("profile", tmp_path / "run", "steps=2", "batch_size=8")
    assert "too short" in capsys.readouterr().out and not (run / "profile.txt").exists()


def test_a_limited_set_is_the_first_items_in_every_epoch():
    import torch

    from gentok.data.datasets import MemoryDataset
    from gentok.data.subset import Subset
    from gentok.interfaces import MediaData
    from gentok.types import ConditionSpec

    def make(value: int) -> MemoryDataset:
        return MemoryDataset(torch.full((10, 1, 2, 2), float(value)), None, ConditionSpec(), {"split": str(value)})

    class Data(MediaData):
        media_shape, condition_spec, train, held_out = (1, 2, 2), ConditionSpec(), make(0), make(1)

    limited = Subset(Data, 4)
    assert len(limited.train) == len(limited.held_out) == 4 and limited.train.description != Data.train.description
    assert limited.train.__getitems__([0, 3, 4, 11, -1]).index.tolist() == [0, 3, 0, 3, 3]
    assert limited.held_out[0].media.unique().tolist() == [1.0] and len(Subset(Data, 99).train) == 10
    overfit = Subset(Data, 4, overfit=True)
    assert overfit.held_out.__getitems__([0]).media.unique().tolist() == [0.0]
    with pytest.raises(ValueError, match="limit_items"):
        Subset(Data, 0)


def test_debug_modes_win_over_the_experiment_and_lose_to_the_command_line():
    config = compose("config", ["experiment=mnist5k/vq", "debug=one_batch"])
    assert (config["budget"], config["steps"], config["limit_items"]) == (None, 1, config["batch_size"])
    assert compose("config", ["experiment=mnist5k/vq", "debug=one_batch", "steps=3"])["steps"] == 3


# ------------------------------------------------------------------------------------------------- logs and configuration


def test_a_log_whose_package_is_missing_is_said_before_anything_is_built(monkeypatch, tmp_path):
    import importlib.util

    from gentok.training.run import train

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(ValueError, match="pip install wandb") as error:
        train(compose("config", [*TINY, "steps=1", "budget=null", "logger=wandb", f"paths.run={tmp_path / 'run'}"]))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("choice, kinds", [("none", ""), ("csv", "csv"), ("tensorboard", "tensorboard"), ("default", "csv tensorboard")])
def test_every_log_can_be_chosen(choice, kinds):
    settings = compose("config", [f"logger={choice}"])["logger"]
    assert [k for k, v in settings.items() if v] == kinds.split()


@pytest.mark.parametrize(
    "experiment", [pytest.param(name, marks=() if name in OF_EVERY_KIND else pytest.mark.slow) for name in EXPERIMENTS]
)
def test_the_configuration_fits_a_screen(experiment):
    from rich.console import Console

    from gentok.training.config_tree import config_tree

    config = compose("config", [f"experiment={experiment}", "seed=1234", "optimizer.lr=0.0123"])
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(config_tree(config))
    text = console.export_text()
    assert text.count("\n") <= 40 and "seed=1234" in text and "lr=0.0123" in text and str(config["paths"]["run"]) in text
    assert ("generator" in text.replace("generator_task", "")) == (config["task"]["name"] == "generator")


def test_the_tree_is_printed_once_when_a_run_begins(tmp_path, capsys):
    run_debug("one_batch", tmp_path / "run", "print_config=true")
    assert capsys.readouterr().out.count("tokenizer  VQGAN") == 1


# ---------------------------------------------------------------------------------------------------------------- cluster


def test_a_job_has_one_folder_by_its_number(monkeypatch):
    for name, value in (("SLURM_JOB_ID", "42"), ("SLURM_NNODES", "2"), ("SLURM_NTASKS_PER_NODE", "4")):
        monkeypatch.setenv(name, value)
    config = compose("config", ["experiment=mnist5k/vq", "cluster=slurm"])
    assert config["paths"]["run"].endswith("/mnist5k_vq/slurm_42") and config["resume"] == "auto"
    assert (config["trainer"]["num_nodes"], config["trainer"]["devices"]) == (2, 4)
    assert compose("config", ["cluster=slurm", "paths.run=here"])["paths"]["run"] == "here"


@pytest.fixture
def job(tmp_path):
    """job(body of a fake srun) -> conf/cluster/sbatch.sh running, with a scontrol that writes down what it is told."""
    log = tmp_path / "log"
    started = []

    def start(body: str) -> tuple[subprocess.Popen, Path]:
        for name, text in (("srun", body), ("scontrol", f'echo "scontrol $*" >> {log}')):
            (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (tmp_path / name).chmod(0o755)
        env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "42"}
        started.append(subprocess.Popen(["bash", ROOT / "conf/cluster/sbatch.sh", "seed=1", "name=two words"], env=env))
        return started[-1], log

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()


def wait_for(condition) -> None:
    for _ in range(24_000):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("nothing happened for twenty minutes")


def test_a_job_near_its_end_saves_and_is_queued_again(job, tmp_path):
    log = tmp_path / "log"
    slow_save = f"trap 'sleep 0.3; echo saved >> {log}; exit 143' TERM; echo \"$@\" >> {log}; while true; do sleep 0.05; done"
    process, log = job(slow_save)
    wait_for(log.is_file)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(1200) == 143
    assert log.read_text().splitlines() == [
        "--kill-on-bad-exit=1 python train.py cluster=slurm seed=1 name=two words", "saved", "scontrol requeue 42",
    ]  # fmt: skip


@pytest.mark.parametrize("status", [0, 1])
def test_a_job_that_ended_by_itself_is_not_queued_again(job, status):
    process, log = job(f"exit {status}")
    assert process.wait(1200) == status and not log.exists()


def test_a_job_that_finishes_while_it_is_told_to_stop_is_not_queued_again(job, tmp_path):
    process, log = job(f"trap 'exit 0' TERM; touch {tmp_path / 'up'}; while true; do sleep 0.05; done")
    wait_for((tmp_path / "up").exists)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(1200) == 0 and not log.exists()


def test_what_takes_time_is_announced_where_there_is_no_terminal(capsys):
    with progress("speaking", 2000, "utterances") as advance:
        assert "speaking: 2,000 utterances" in capsys.readouterr().err
        advance(2000)
    capsys.readouterr()
    with progress("sampling", 4, lazy=True) as advance:
        assert not capsys.readouterr().err
        advance(0)
        assert "sampling: 4 items" in capsys.readouterr().err


def test_under_a_budget_the_bar_knows_how_many_steps_there_will_be():
    bar = _Bar()
    module = SimpleNamespace(budget=60.0, progress=0.25, global_step=50)
    bar._trainer = SimpleNamespace(lightning_module=module, max_steps=-1, accumulate_grad_batches=2)
    assert bar.total_train_batches == 400
    bar._trainer.max_steps = 150
    assert bar.total_train_batches == 300
    module.budget, bar._trainer.max_steps = None, -1
    assert bar.total_train_batches == float("inf")
