"""A run is told to stop: the first signal is obeyed at the end of a step, a second SIGTERM at once, also by a process that hangs."""

import ctypes
import os
import signal
import subprocess
import sys

import pytest

from gentok.training.stop_signals import StopSignals


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def heard():
    clock, left = Clock(), []
    signals = StopSignals(lambda: "last words", clock, left.append)

    def hear(at, name):
        clock.now = at
        signals.heard(name)
        return left

    return hear


def test_a_second_sigterm_leaves_at_once_and_its_echo_does_not(heard, capfd):
    assert not heard(0, "SIGTERM") and not heard(0.01, "SIGTERM") and not heard(1.5, "SIGTERM")
    assert heard(4, "SIGTERM") == [143]
    assert capfd.readouterr().err == "gentok: left at once by a second SIGTERM; last words\n"


def test_a_warning_ahead_of_the_end_is_no_first_sigterm(heard):
    assert not heard(0, "SIGUSR1") and not heard(200, "SIGUSR1") and not heard(300, "SIGTERM") and not heard(301, "SIGINT")
    assert heard(310, "SIGTERM") == [143]


def test_a_second_ctrl_c_interrupts_and_its_echo_does_not():
    clock = Clock()
    signals = StopSignals(lambda: "", clock)
    signals._noted(signal.SIGINT, None)
    clock.now = 0.1
    signals._noted(signal.SIGINT, None)
    clock.now = 1.0
    with pytest.raises(KeyboardInterrupt):
        signals._noted(signal.SIGINT, None)
    assert signals.told == "SIGINT"


def test_the_handlers_of_before_come_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    signals = StopSignals(lambda: "")
    signals.take()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signals.told == "SIGUSR1"
    signals.give_back()
    assert before == {number: signal.getsignal(number) for number in before} and signal.set_wakeup_fd(-1) == -1


HANGS = """
import ctypes, itertools, os
from gentok.training.stop_signals import StopSignals
ticks = itertools.count(0, 10)
def clock():
    now = next(ticks)
    if now in (0, 20):
        print("clock", now, flush=True)
    return now
StopSignals(lambda: "there is no checkpoint yet", clock).take()
lock = ctypes.create_string_buffer(256)
libc = ctypes.CDLL(None)
libc.pthread_mutex_lock(lock)
print("hangs", flush=True)
libc.pthread_mutex_lock(lock)  # no signal ends this
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "pthread_mutex_lock"), reason="needs POSIX threads")
def test_a_process_that_hangs_in_a_library_is_left_too():
    path = os.pathsep.join([*filter(None, sys.path)])
    process = subprocess.Popen([sys.executable, "-c", HANGS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": path})  # fmt: skip
    assert process.stdout.readline() == "hangs\n"
    process.terminate()
    assert process.stdout.readline() == "clock 0\n" and process.poll() is None
    process.terminate()
    said = process.communicate(timeout=1200)[1]
    assert process.returncode == 143 and said == "gentok: left at once by a second SIGTERM; there is no checkpoint yet\n"
