"""profile=N: where the time of N training steps goes, measured by torch.profiler."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.profiler import ProfilerActivity, profile, schedule

__all__ = ["Profile"]


class Profile(L.Callback):
    """Measures steps of training and writes, on the first process,

    RUN/profile.txt              the 40 most expensive operations, by their own time
    RUN/profile_trace.json.gz    every call, for a trace viewer

    Args:
        run: the folder.
        steps: batches to measure.
        skip: batches of warm-up before them.
    """

    def __init__(self, run: Path, steps: int, skip: int = 8):
        if steps < 1:
            raise ValueError(f"profile={steps}: the number of steps to measure, at least 1, or null")
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's remarks about machines without a GPU
        self.run, self.steps, self.skip = Path(run), steps, skip
        self.profiler: Any = None

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        if not trainer.is_global_zero:
            return
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        plan = schedule(wait=max(0, self.skip - 2), warmup=min(2, self.skip), active=self.steps, repeat=1)
        self.profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
        self.profiler.start()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        if self.profiler is not None:
            self.profiler.step()

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        if self.profiler is None:
            return
        self.profiler.stop()
        self.profiler = None
        if not (self.run / "profile.txt").is_file():
            print(f"gentok: the run was too short to profile: it needs more than {self.skip} steps")

    def _write(self, profiler: Any) -> None:
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=60)
        (self.run / "profile.txt").write_text(f"{self.steps} training steps\n{table}\n")
        profiler.export_chrome_trace(str(self.run / "profile_trace.json.gz"))
        print(f"profile: {self.run / 'profile.txt'}")
