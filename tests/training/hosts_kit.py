"""Two hosts on one machine: network namespaces with an address and a name each, joined by a cable (a veth pair), and a Slurm that starts
processes in them. The hosts share the disk, as the nodes of a cluster do; nothing of them is left when the test ends.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("gentok-n1", "gentok-n2")
ADDRESSES = ("10.231.77.1", "10.231.77.2")
OWN = ["--net", "--uts", "--mount"]
"""What a host has for itself; the mounts are for /etc/hosts."""

SRUN = """#!{python}
# As srun in a job of two nodes: TASKS processes on each, all ended when one of them fails, TERM handed on to them.
import os, signal, subprocess, sys, time
words, tasks, hosts = [w for w in sys.argv[1:] if not w.startswith("--")], {tasks}, {hosts}
environment = {{**os.environ, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(2 * tasks), "SLURM_STEP_NUM_NODES": "2"}}
own = lambda i: {{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i % tasks), "SLURM_NODEID": str(i // tasks)}}
started = [subprocess.Popen([*hosts[i // tasks], *words], env={{**environment, **own(i)}}) for i in range(2 * tasks)]
signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in started])
while any(process.poll() is None for process in started):
    if any(process.poll() for process in started) and "--kill-on-bad-exit=1" in sys.argv:
        time.sleep(5)  # that each may say what it has to say
        [process.kill() for process in started]
    time.sleep(0.1)
sys.exit(max(abs(process.wait()) for process in started))
"""
SBATCH = """#!/usr/bin/env bash
# As sbatch, with nothing in the queue before: runs the script at once, as a job of two nodes.
export SLURM_JOB_ID=4242 SLURM_JOB_NAME=gentok SLURM_NNODES=2 SLURM_NODELIST='gentok-n[1-2]'
export SLURM_NTASKS_PER_NODE={tasks} SLURM_NTASKS={all}
"$1" >> {log} 2>&1 &
echo $! > {pid}
wait $!
echo "ended with $?" >> {log}
echo Submitted batch job 4242
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> {log}
"""


@dataclass
class Hosts:
    """Two hosts.

    Attributes:
        enter: for each, the words before a command that run it there.
        folder: that both see; its folder `bin` is the first place for commands.
    """

    enter: list[list[str]]
    folder: Path

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MASTER", "TORCHELASTIC"))}
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {**kept, "PATH": path, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}

    def start(self, host: int, *words: str) -> subprocess.Popen:
        """A command on one of them, its output and errors together."""
        return subprocess.Popen([*self.enter[host], *words], env=self.environment(), cwd=self.folder, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)  # fmt: skip

    def slurm(self, tasks: int) -> Path:
        """Puts sbatch, srun and scontrol for so many processes a node into `bin`. Returns the log of the jobs; beside it, slurm.pid is the
        number of the batch shell."""
        log, place = self.folder / "slurm.log", self.folder / "bin"
        place.mkdir(exist_ok=True)
        programs = {"srun": SRUN.format(python=sys.executable, tasks=tasks, hosts=self.enter), "scontrol": SCONTROL.format(log=log),
                    "sbatch": SBATCH.format(tasks=tasks, all=2 * tasks, log=log, pid=log.with_suffix(".pid"))}  # fmt: skip
        for name, text in programs.items():
            (place / name).write_text(text)
            (place / name).chmod(0o755)
        return log


def _shell(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=1200)


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """Two hosts for a test; skips it where they may not be made."""
    if missing := [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]:
        pytest.skip(f"needs Linux with iproute2 and util-linux: there is no {', '.join(missing)}")
    holders: list[subprocess.Popen] = []
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for a, n in zip(ADDRESSES, NAMES)))
    names = f"mount --bind {shlex.quote(str(folder / 'hosts'))} /etc/hosts"
    try:
        for name in NAMES:
            own = f"{names} && hostname {name} && ip link set lo up && echo ready && cat"
            holders.append(subprocess.Popen(["unshare", *OWN, "sh", "-c", own], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=subprocess.PIPE, text=True))  # fmt: skip
            if holders[-1].stdout.readline() != "ready\n":
                pytest.skip(f"needs the right to make network namespaces (root): {holders[-1].communicate()[1].strip()[-200:]}")
        enter = [["nsenter", f"--target={holder.pid}", *OWN, f"--wd={folder}"] for holder in holders]
        try:
            _shell(*enter[0], "ip", "link", "add", "cable0", "type", "veth", "peer", "name", "cable0", "netns", str(holders[1].pid))
            for words, address in zip(enter, ADDRESSES):
                _shell(*words, "ip", "address", "add", f"{address}/24", "dev", "cable0")
                _shell(*words, "ip", "link", "set", "cable0", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"needs the right to join network namespaces: {error.stderr.strip()[-200:]}")
        yield Hosts(enter, folder)
    finally:
        for holder in holders:
            holder.kill()  # with the last process in it a namespace ends, and its cable with it
            holder.communicate()


def finished(processes: Sequence[subprocess.Popen], seconds: float = 900) -> list[str]:
    """What they said, once all have ended well."""
    said = [process.communicate(timeout=seconds)[0] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(text[-3000:] for text in said)
    return said
