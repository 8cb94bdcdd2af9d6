"""`gentok report RUN [RUN ...] [out=FILE]`: one self-contained HTML page of a run, or of several side by side,
report.html in the first one's folder by default. The folder of a sweep (`train.py -m`) stands for all of its runs.

Reads config.yaml, metrics.csv, pictures/, sounds/, metrics.json and bundle/, whatever of them is there (a run
that still trains is fine), and puts curves, images, sounds, codebook use, sizes and the configuration on one
page that loads nothing from anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gentok.atomic import whole_file
from gentok.command import run_command
from gentok.report.page import page
from gentok.report.run_folder import read_run, runs_of

__all__ = ["main", "write_report"]


def write_report(run: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, beside: Sequence[str] = ()) -> Path:
    """Writes the page of a run, or of several.

    Args:
        run: the run's folder, or that of a sweep.
        out: the file to write; None: RUN/report.html.
        beside: folders of further runs or sweeps, shown beside it.

    Returns:
        The file.

    Raises:
        OSError: there is no run, or the file cannot be written.
    """
    every = [one for folder in (run, *beside) for one in runs_of(Path(folder))]
    folders = list({folder.resolve(): folder for folder in every}.items())
    top = os.path.commonpath([folder.parent for folder, _ in folders])
    text = page([read_run(given, os.path.relpath(folder, top), 1 / len(folders)) for folder, given in folders])
    out = Path(run) / "report.html" if out is None else Path(out)
    try:
        with whole_file(out) as file:
            file.write(text.encode())
    except OSError as error:
        reason = error.__cause__ or error
        raise OSError(f"the report {out} cannot be written ({getattr(reason, 'strerror', None) or reason}): set out=FILE") from error
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """The command. argv: the words behind its name; None: those of this process."""

    def report(run: str, *beside: str, out: str | None = None) -> None:
        print(f"report: {write_report(run, out, beside)}")

    run_command(report, argv, "gentok report RUN [RUN ...] [out=FILE]", positional="run")


if __name__ == "__main__":
    main()
