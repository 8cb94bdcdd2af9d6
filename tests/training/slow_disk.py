"""Checkpoints that take long enough to be written for a kill to fall into one."""

import io
import time
from typing import Any

import torch


def slow_disk() -> None:
    """From now on this process writes checkpoints in 50 pieces of 5 ms, so that most moments lie within the writing of one."""
    quick = torch.save

    def slow(checkpoint: object, file: Any) -> None:
        whole = io.BytesIO()
        quick(checkpoint, whole)
        content = whole.getvalue()
        size = len(content) // 50 + 1
        for start in range(0, len(content), size):
            file.write(content[start : start + size])
            file.flush()
            time.sleep(0.005)

    torch.save = slow
