"""A progress bar on whatever takes seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress"]


@contextmanager
def progress(what: str, total: int, unit: str = "items", shown: bool = True, lazy: bool = False) -> Iterator[Callable[[int], None]]:
    """Shows a bar on stderr with speed and time left: `with progress("encoding", n) as advance: ... advance(rows)`.

    Args:
        what: is being done.
        total: how many items there are.
        unit: what they are.
        shown: False: nothing is shown.
        lazy: the bar appears with the first advance, which may be of 0: where a mistake may still be reported.

    Yields:
        Callable: to be called with the number of items that were done since the last call.
    """
    if not shown:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task):  # noqa: ANN001, ANN202 - rich's own types
            if not task.completed or not task.elapsed:
                return Text("")
            speed = task.completed / (task.finished_time or task.elapsed)
            return Text(f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.2f} {unit}/s")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(), TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))

    def start() -> None:  # again and again is once
        if not bar.live.is_started and not bar.console.is_terminal:
            print(f"{what}: {total:,} {unit}", file=sys.stderr, flush=True)  # a bar in a log file is drawn when it is full
        bar.start()

    def advance(n: int) -> None:
        start()
        bar.advance(task, n)

    task = bar.add_task(what, total=total)
    if not lazy:
        start()
    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
