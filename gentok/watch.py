"""Processes that share a job tell each other every second how far they are: one bar over all, and nobody works for a job that is lost."""

from __future__ import annotations

import _thread
import datetime
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from gentok.launch import Team, lost

__all__ = ["watched"]

_PERIOD, _PATIENCE = 1.0, datetime.timedelta(minutes=5)
"""Seconds between two reports, and how long a report is waited for: a process that is killed is noticed at once, one that hangs then."""
_RUNNING, _DONE, _FAILED = range(3)


@contextmanager
def watched(team: Team, advance: Callable[[int], None]) -> Iterator[Callable[[int], None]]:
    """`with watched(team, advance) as done: ... done(items)`: work that all processes share. Left when all have done theirs.

    Args:
        team: all of whose processes do this.
        advance: called on the first process with the items that all of them have done since.

    Raises:
        OSError, SystemExit: another process is gone or has failed; then this one stops in the middle of its work.
    """
    if team.world == 1:
        yield advance
        return
    watch = _Watch(team, advance)
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as of a shell's background jobs, which could not be interrupted
    if ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    watch.start()
    try:
        yield watch.done
        watch.state = _DONE
        watch.join()
    except KeyboardInterrupt:
        if not watch.lost:
            raise
    except BaseException:
        watch.state = _FAILED
        watch.join(10)
        raise
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    if watch.lost:
        raise lost()


class _Watch(threading.Thread):
    """Says every second how far this process is, and hears it of the others."""

    def __init__(self, team: Team, advance: Callable[[int], None]):
        super().__init__(daemon=True)
        self.team, self.advance = team, advance
        self.items, self.state, self.lost = 0, _RUNNING, False
        self.group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self._beat = threading.Event()

    def done(self, items: int) -> None:
        """Counts items that this process has done."""
        self.items += items

    def run(self) -> None:
        """Until all are done, or one is lost."""
        shown = 0
        while True:
            try:
                reports = self._reports()
            except RuntimeError:
                break
            items, states = int(reports[:, 0].sum()), reports[:, 1]
            if self.team.rank == 0:
                self.advance(items - shown)
                shown = items
            if bool((states == _DONE).all()):
                return
            if bool((states == _FAILED).any()):
                break
            self._beat.wait(_PERIOD if self.state == _RUNNING else _PERIOD / 10)
        if self.state != _FAILED:
            self.lost = True
            _thread.interrupt_main()

    def _reports(self) -> Tensor:
        mine = torch.tensor([self.items, self.state])
        reports = [torch.empty_like(mine) for _ in range(self.team.world)]
        dist.all_gather(reports, mine, group=self.group)
        return torch.stack(reports)
