"""cluster=slurm outside of a job: the script, its submission, and what is said where there is no sbatch or a setting cannot be meant."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gentok.cli import compose, conf_dir, train
from gentok.training.slurm import is_submission, job_script, submit

WORDS = ["experiment=mnist5k/vq", "name=two words", "steps=10", "cluster.nodes=2", "cluster.gpus_per_node=4", "cluster.time=1-02:00:00",
         "cluster.partition=a100", "cluster.options={qos: long, exclusive: true}"]  # fmt: skip


@pytest.fixture(autouse=True)
def outside_of_a_job(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("SLURM"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "argv", ["train.py"])


def program(tmp_path: Path, name: str, body: str) -> None:
    path = tmp_path / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def configured(tmp_path: Path, *more: str) -> tuple[dict, list[str]]:
    words = ["cluster=slurm", *WORDS, *more, f"paths.run={tmp_path / 'run'}"]
    return compose("config", words), words


def test_the_job_has_the_settings_and_the_words_and_runs_them(tmp_path, capsys):
    log = tmp_path / "log"
    program(tmp_path, "sbatch", f'echo "$1" >> {log}; echo Submitted batch job 42')
    program(tmp_path, "srun", f'printf "%s\\n" "$@" > {log}')
    config, words = configured(tmp_path)
    assert is_submission(config)
    path = submit(config, words)
    assert log.read_text().strip() == str(path) == str(tmp_path / "run" / "job.sh") and "batch job 42" in capsys.readouterr().out
    header = [line for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--job-name='two words'", "--nodes=2", "--ntasks-per-node=4", "--gres=gpu:4", "--time=1-02:00:00", "--partition=a100",
            "--qos=long", "--exclusive", "--requeue", "--signal=B:USR1@300"} <= {line.split()[1] if "'" not in line else
            line.removeprefix("#SBATCH ") for line in header}  # fmt: skip
    names = [line.split("--")[1].partition("=")[0] for line in header]
    assert len(names) == len(set(names)) and "account" not in names
    done = subprocess.run([path], env={**os.environ, "SLURM_JOB_ID": "42"}, cwd="/", timeout=1200)
    assert done.returncode == 0
    started = log.read_text().splitlines()
    assert started[:3] == ["--kill-on-bad-exit=1", sys.executable, os.path.abspath("train.py")]
    assert started[3:] == ["cluster=slurm", *WORDS, f"paths.run={tmp_path / 'run'}"]


def test_inside_of_a_job_the_same_words_train(tmp_path, monkeypatch):
    for name, value in (("SLURM_JOB_ID", "42"), ("SLURM_NNODES", "2"), ("SLURM_NTASKS_PER_NODE", "4")):
        monkeypatch.setenv(name, value)
    config, _ = configured(tmp_path)
    assert not is_submission(config)
    assert (config["trainer"]["num_nodes"], config["trainer"]["devices"], config["resume"]) == (2, 4, "auto")


def test_where_there_is_no_sbatch_the_command_is_printed(tmp_path, capsys):
    path = submit(*configured(tmp_path, "cluster.gpus_per_node=0"))
    said = capsys.readouterr().out
    assert f"sbatch {path}" in said and "no sbatch here" in said
    assert "--gres" not in path.read_text() and "--ntasks-per-node=1\n" in path.read_text()


def test_the_command_submits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "cluster=slurm", *WORDS, f"paths.run={tmp_path / 'run'}"])
    train()
    script = (tmp_path / "run" / "job.sh").read_text()
    assert f"cluster=slurm {shlex.join(WORDS)} paths.run={tmp_path / 'run'} &" in script


@pytest.mark.parametrize(
    "more, answer",
    [
        (["cluster.time=tomorrow"], "cluster.time=tomorrow: expected minutes, HH:MM:SS"),
        (["batch_size=12"], "batch_size=12.*multiple.*8"),
        (["steps=null", "budget=null"], "how long\\?"),
        (["optimizer.lr=-1"], "optimizer.lr=-1"),
        (["-m"], "leave out -m"),
    ],
)
def test_what_a_job_would_fail_of_is_said_before(tmp_path, more, answer):
    config, words = configured(tmp_path, *(word for word in more if word != "-m"))
    with pytest.raises(ValueError, match=answer) as error:
        submit(config, [*words, *more])
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_job_that_sbatch_refuses_is_said(tmp_path):
    program(tmp_path, "sbatch", "echo sbatch: error: invalid partition specified: a100 >&2; exit 1")
    with pytest.raises(OSError, match="invalid partition specified: a100.*change cluster.partition") as error:
        submit(*configured(tmp_path))
    assert "\n" not in str(error.value)


def test_a_template_without_its_places_is_said(tmp_path):
    config, words = configured(tmp_path)
    template = (conf_dir() / "cluster" / "sbatch.sh").read_text()
    with pytest.raises(ValueError, match="must have #SBATCH lines"):
        job_script(template.replace('"$@"', ""), config, words, tmp_path)
