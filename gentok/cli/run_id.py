"""The name of a run's folder: the same on every process of the run."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

__all__ = ["run_id"]


def run_id() -> str:
    """A name for the run's folder that is the same on every process of the run: the job's where srun or torchrun started them together (and
    after a requeue), else the time. Processes that the run starts by itself are handed its folder."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID"))
    if job and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):  # not a shell, in which there may be many runs
        task = os.environ.get("SLURM_ARRAY_TASK_ID")
        return f"slurm_{job}" + (f"_{task}" if task else "")
    elastic = os.environ.get("TORCHELASTIC_RUN_ID")
    if elastic and elastic != "none":
        return elastic
    moment = time.time()
    if elastic:  # one torchrun on one machine, without an id: its processes have a parent in common
        if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
            raise ValueError(
                "torchrun on several machines: give the run one folder with paths.run=FOLDER, or torchrun an id with --rdzv-id"
            )
        parent = os.getppid()
        try:
            ticks = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19])
            booted = int(re.findall(r"^btime (\d+)", Path("/proc/stat").read_text(), re.MULTILINE)[0])
        except OSError:  # no Linux
            return f"torchrun-{parent}"
        moment = booted + ticks / os.sysconf("SC_CLK_TCK")  # when torchrun was started
    return time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(moment))
