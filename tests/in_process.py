"""A command in this process: what train.py and sample.py run, without another interpreter that imports everything again."""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from gentok import cli


def answer(program: str, *words: object, cwd: Path) -> SimpleNamespace:
    """returncode, stdout and stderr of `python PROGRAM.py WORDS` in the folder cwd, as subprocess.run gives them."""
    out, err, status, here = io.StringIO(), io.StringIO(), 0, Path.cwd()
    os.chdir(cwd)
    try:
        with mock.patch.object(sys, "argv", [f"{program}.py", *map(str, words)]), redirect_stdout(out), redirect_stderr(err):
            getattr(cli, program)()
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    finally:
        os.chdir(here)
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())
