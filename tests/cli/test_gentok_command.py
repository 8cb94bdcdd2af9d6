"""`gentok COMMAND`: help with examples, choices and commented keys; the version; mistakes answered before anything heavy is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gentok import __version__
from gentok.cli import conf_dir, main
from gentok.cli.commands import COMMANDS
from gentok.cli.help import command_help
from gentok.value_checks import check_values

ROOT = Path(__file__).resolve().parents[2]


def called(capsys, *words: str) -> str:
    main(list(words))
    return capsys.readouterr().out


def test_the_overview_names_every_command_and_the_version_is_the_packages(capsys):
    out = called(capsys)
    assert out == called(capsys, "--help") and all(f"  {name}" in out for name in COMMANDS)
    assert called(capsys, "--version") == f"gentok {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_examples_and_its_choices_and_keys(name):
    text, command = command_help(name), COMMANDS[name]
    assert text.startswith(f"gentok {name}: {command.summary}")
    assert all(f"gentok {name} {example}".rstrip() in text for example, _ in command.examples)
    assert all(len(line) <= 120 for line in text.splitlines()), "a terminal of 120 columns"
    for group in command.groups:
        assert (conf_dir() / group).is_dir() and f"\n  {group} " in text


def test_keys_come_with_their_defaults_and_comments():
    lines = command_help("sample").splitlines()
    assert any(line.split()[:2] == ["guidance", "null"] and "1: none" in line for line in lines)
    assert not any(line.split()[:1] in (["hydra"], ["defaults:"]) for line in lines)
    of_choice = command_help("sample", ["sampler=maskgit"])
    assert "sampler.steps" in of_choice and "sampler.temperature" in of_choice and "_target_" not in of_choice


def test_a_choice_inherits_the_keys_of_its_defaults_and_its_own_count():
    lines = [line.split() for line in command_help("train", ["trainer=ddp"]).splitlines()]
    assert ["trainer.strategy", "ddp"] in lines and any(line[:2] == ["trainer.clip", "1.0"] for line in lines)


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (("sampel",), "no command 'sampel'; did you mean 'sample'?"),
        (("train", "--help", "sampler=maskgut"), "no sampler 'maskgut'; did you mean 'maskgit'?"),
    ],
)
def test_a_mistyped_command_or_choice_is_a_one_line_error(words, right, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and right in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("config", "right"),
    [
        ({"n": 0}, "n=0: expected a number above 0"),
        ({"seed": None}, "seed=null"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"batch_size": "x"}, "batch_size=x"),
        ({"guidance": "high"}, "guidance=high: expected a number"),
        ({"guidance": float("nan")}, "guidance=nan"),
        ({"sampler": {"temperature": float("inf")}}, "sampler.temperature=inf"),
        ({"device": "CPU"}, "device=CPU: expected auto, cpu, cuda"),
        ({"budget": "4minutes"}, "budget=4minutes: expected a positive time"),
        ({"ema": "yes"}, "ema=yes: expected true or false"),
        ({"bundle_dtype": "bf16"}, "bundle_dtype=bf16"),
        ({"trainer": {"accelerator": "gpuu"}}, "did you mean 'gpu'"),
    ],
)
def test_values_that_cannot_be_meant_are_one_line_errors(config, right):
    with pytest.raises(ValueError) as error:
        check_values(config)
    assert right in str(error.value) and "\n" not in str(error.value)


def test_good_values_pass():
    check_values({"n": 4, "seed": 0, "guidance": 1.5, "device": "cuda:1", "budget": "6min", "steps": None, "sampler": {"temperature": 0}})


@pytest.mark.parametrize("words", [["train", "budget=4minutes"], ["sample", "ckpt=x", "n=0"], ["train", "--help"], ["evaluate", "--help"]])
def test_bad_values_and_help_are_answered_without_torch(words):
    script = (
        "import atexit, sys\natexit.register(lambda: print('torch' in sys.modules))\n"
        f"from gentok.cli import main\nmain({words!r})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False" and done.stderr.count("\n") == (0 if "--help" in words else 1), done.stderr


@pytest.mark.parametrize("script", ["train.py", "sample.py", pytest.param("-m gentok.evaluate", marks=pytest.mark.slow)])
def test_the_scripts_answer_with_their_own_version_and_help(script):
    def answer(word):
        words = [sys.executable, *script.split(), word]
        return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}).stdout

    assert answer("--version") == f"gentok {__version__}\n"
    page = answer("--help")
    assert "Hydra" not in page and "trust" in page and "packages of your own" in page, "keys with their comments"
