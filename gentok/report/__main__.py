"""`python -m gentok.report RUN [out=FILE]`: one self-contained HTML page of a run's folder, RUN/report.html by default.

Reads config.yaml, metrics.csv, pictures/, metrics.json and bundle/ (whatever of them is there: a run that still trains is fine) and puts
curves, pictures, codebook use, sizes and the configuration on one page that loads nothing from anywhere.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from gentok.report.page import page
from gentok.report.run_folder import read_run

__all__ = ["write_report", "main"]


def write_report(run: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes the page (RUN/report.html unless `out` says where) and returns its path. Raises OSError with a line for the user."""
    text = page(read_run(Path(run)))
    out = Path(run) / "report.html" if out is None else Path(out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, out)
    except OSError as error:
        raise OSError(f"the report {out} cannot be written ({error.strerror or error}): set out=FILE") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return out


def main() -> None:
    words = sys.argv[1:]
    outs = [w.removeprefix("out=") for w in words if w.startswith("out=")]
    runs = [w.removeprefix("run=") for w in words if not w.startswith(("out=", "-"))]
    if len(runs) != 1 or len(outs) > 1 or len(runs) + len(outs) != len(words):
        sys.exit("gentok: which run? python -m gentok.report RUN [out=FILE]")
    try:
        print(f"report: {write_report(runs[0], *outs)}")
    except (OSError, ValueError) as error:
        sys.exit(f"gentok: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
