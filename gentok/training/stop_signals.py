"""Signals by which a run is told to stop: the first one is obeyed at the end of the step, a second one at once.

At once means also where this process waits in a collective for another that hangs: Python's handlers do not run there. So the system's
own handler writes each signal's number into a socket (`signal.set_wakeup_fd`), and a thread reads it.

Schedulers repeat themselves: a batch script hands SIGTERM on that Slurm has sent to its processes already, and Ctrl-C in a terminal comes
once more from torchrun. What follows the first within some seconds is the same request.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["StopSignals"]

_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")  # a scheduler's, a person's, and the one that sbatch --signal=USR1@90 sends ahead
_ECHO = {"SIGTERM": 3.0, "SIGINT": 0.5}
"""Seconds. SIGUSR1 is never an order to leave at once: what comes behind it has five minutes."""


class StopSignals:
    """Remembers that this process was told to stop.

    Args:
        last_words: gives what is said when the process leaves at once.
        clock: seconds, of a clock that does not jump.
        leave: ends the process with a status, from any thread.

    Attributes:
        told: the name of the first signal; None: there was none.
    """

    def __init__(
        self, last_words: Callable[[], str], clock: Callable[[], float] = time.monotonic, leave: Callable[[int], Any] = os._exit
    ):  # fmt: skip
        self.told: str | None = None
        self._last_words, self._clock, self._leave = last_words, clock, leave
        self._first: dict[str, float] = {}
        self._before: dict[int, Any] = {}
        self._heard: socket.socket | None = None
        self._wakeup = -1

    def take(self) -> None:
        """From now on signals are heard; in the main thread, others cannot. Lightning's own handlers must have been set before."""
        if threading.current_thread() is not threading.main_thread() or self._before:
            return
        for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
            self._before[number] = signal.signal(number, self._noted)
        self._heard, numbers = socket.socketpair()
        self._heard.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._heard.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(numbers,), daemon=True).start()

    def give_back(self) -> None:
        """The handlers of before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if self._heard is not None:
            signal.set_wakeup_fd(self._wakeup)
            self._heard.close()  # at which the thread ends
            self._heard = None

    def _noted(self, number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT" and self._is_again(name):
            raise KeyboardInterrupt  # not the end of the process: a notebook goes on
        if self.told is None and name == "SIGINT":
            os.write(sys.stderr.fileno(), b"\ngentok: stopping after this step (Ctrl-C again: at once)\n")
        self.told = self.told or name

    def _watch(self, numbers: socket.socket) -> None:
        with numbers:
            while number := numbers.recv(1):
                self.heard(signal.Signals(number[0]).name)

    def heard(self, name: str) -> None:
        """Leaves at once if the signal says so. Called for each one, on the thread that hears them."""
        if name == "SIGTERM" and self._is_again(name):
            os.write(sys.stderr.fileno(), f"gentok: left at once by a second {name}; {self._last_words()}\n".encode())
            self._leave(128 + signal.SIGTERM)

    def _is_again(self, name: str) -> bool:
        return self._clock() - self._first.setdefault(name, self._clock()) > _ECHO[name]
