"""`gentok COMMAND ...`, and the entries train.py and sample.py."""

from __future__ import annotations

import sys
from typing import Any

from gentok import __version__
from gentok.cli.commands import COMMANDS
from gentok.cli.help import command_help, overview, wants_help
from gentok.cli.hydra_run import run
from gentok.cli.overrides import patient_threads
from gentok.errors import ConfigError, nearest_name

__all__ = ["main", "sample", "train"]


def main(argv: list[str] | None = None) -> None:
    """Runs the command that the first argument names.

    Args:
        argv: the arguments; by default those of the process.

    Raises:
        SystemExit: with status 2 where there is no such command.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return
    if words[0] in ("--version", "version"):
        print(f"gentok {__version__}")
        return
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        sys.exit(_complain(f"there is no command {name!r}{nearest_name(name, COMMANDS)}"))
    if wants_help(rest):
        try:
            print(command_help(name, rest))
        except ConfigError as error:
            sys.exit(_complain(str(error)))
        return
    patient_threads()
    COMMANDS[name].run(f"gentok {name}", rest)


def _complain(message: str) -> int:
    print(f"gentok: {message}", file=sys.stderr)
    return 2


def train() -> None:
    """`gentok train`, and train.py."""

    def function(config: dict[str, Any]) -> None:
        from gentok.training.slurm import is_submission, submit

        if is_submission(config):
            submit(config, sys.argv[1:])
            return
        from gentok.training.run import train as run_training

        run_training(config)

    run("config", function)


def sample() -> None:
    """`gentok sample`, and sample.py."""

    def function(config: dict[str, Any]) -> None:
        from gentok.launch import launched

        if launched(config):
            return
        from gentok.sample_files import sample_to_folder

        sample_to_folder(config)

    run("sample", function)
