"""Every mistake on the command line is answered in one line that names the right word."""

from __future__ import annotations

import re
import sys

import pytest

from gentok import cli


def said(monkeypatch, capsys, words: list[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    with pytest.raises(SystemExit) as error:
        cli.run("config", lambda config: pytest.fail("it ran"))
    assert error.value.code == 2
    out = capsys.readouterr()
    assert out.out == "" and out.err.startswith("gentok: ") and out.err.count("\n") == 1, out
    return out.err


@pytest.mark.parametrize(
    "word, answer",
    [
        ("sampelr=maskgit", "no key 'sampelr'; did you mean 'sampler'?"),
        ("optimizer.lrr=1", "no key 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        ("optimzer.lr=1", "did you mean 'optimizer.lr'?"),
        ("lr=1", "did you mean 'optimizer.lr'?"),
        ("trainer.device=2", "did you mean 'trainer.devices'?"),
        ("generator.widht=3", "did you mean 'generator.width'?"),
        ("experiment=mnist5k/vqq", "no experiment 'mnist5k/vqq'; did you mean 'mnist5k/vq'?"),
        ("experiment=masked", "did you mean 'mnist5k/masked'?"),
        ("codebook=fsqq", "no codebook 'fsqq'; did you mean 'fsq'?"),
        ("codebook=zzz", "no codebook 'zzz'; there are: .*lfq"),
        ("codebook=lookup_free", "codebook=lookup_free is now called codebook=lfq"),
        ("codebook=split", "codebook=split is now called codebook=split_rvq"),
        ("codebook=bits", "codebook=bits is now called codebook=bit_groups"),
        ("steps", "cannot read 'steps'.*key=value"),
        ("steps=1=2", "steps=1=2: expected a whole number"),
        ("~nothing", "no key 'nothing'"),
        ("+data=mnist5k", "without the plus"),
        ("+optimizer.lr=1", "without the plus"),
        ("paths.run=${nowhere}", "nowhere"),
    ],
)
def test_a_mistake_is_answered_with_the_right_word(monkeypatch, capsys, word, answer):
    message = said(monkeypatch, capsys, [word])
    assert re.search(answer.replace("?", r"\?"), message), message


def test_two_mistakes_are_answered_one_by_one(monkeypatch, capsys):
    assert "'optimizer.lr'" in said(monkeypatch, capsys, ["optimizer.lrr=1", "sampelr=x"])


@pytest.mark.parametrize("key", ["steps", "batch_size", "trainer.log_every", "trainer.validate_batches"])
@pytest.mark.parametrize("value", ["many", "0", "1.5"])
def test_what_is_no_number_of_things_is_said(tmp_path, key, value):
    from gentok.training.run import train

    with pytest.raises(ValueError, match=f"{key}={value}: expected a (whole number|number above 0)"):
        train(cli.compose("config", ["steps=1", f"paths.run={tmp_path}", f"{key}={value}"]))


# --------------------------------------------------------------------------------------------------- the run's name


NAMES = ["SLURM_ARRAY_JOB_ID", "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_ARRAY_TASK_ID", "TORCHELASTIC_RUN_ID", "GROUP_WORLD_SIZE"]


@pytest.mark.parametrize(
    "environment, name",
    [
        ({}, r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d"),
        ({"SLURM_JOB_ID": "71", "SLURM_JOB_NAME": "train"}, "slurm_71"),
        ({"SLURM_JOB_ID": "72", "SLURM_ARRAY_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "3"}, "slurm_71_3"),
        ({"SLURM_JOB_ID": "71", "SLURM_JOB_NAME": "bash"}, r"\d{4}-.*"),
        ({"TORCHELASTIC_RUN_ID": "nightly"}, "nightly"),
        ({"TORCHELASTIC_RUN_ID": "none"}, r"\d{4}-.*|torchrun-\d+"),
    ],
)
def test_a_run_is_named_after_its_job_or_the_time(monkeypatch, environment, name):
    for key in NAMES:
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    folder = cli.compose("config", ["name=n", "paths.root=r"])["paths"]["run"]
    assert re.fullmatch(f"r/n/({name})", folder), folder
    assert environment.get("TORCHELASTIC_RUN_ID") != "none" or folder == cli.compose("config", ["name=n", "paths.root=r"])["paths"]["run"]


def test_torchrun_on_several_machines_needs_a_name(monkeypatch):
    for key in NAMES:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none"), monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(Exception, match="paths.run=FOLDER"):
        cli.compose("config", [])
