"""One script on several gloo processes, as torchrun starts them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable

import torch


def on_processes(work: Callable[[int], None], world: int = 2) -> None:
    """Runs work(the process's number) on all; ends the script with the status of one that failed."""
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]))
    children: list[int] = []
    rank = 0
    for number in range(1, world):
        if not (child := os.fork()):
            rank, children = number, []
            break
        children.append(child)
    both = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)}  # as torchrun says it
    os.environ.update(TORCHELASTIC_RUN_ID="together", GROUP_RANK="0", **both)
    try:
        work(rank)
    except BaseException as error:
        print(f"process {rank}: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    if rank:
        os._exit(0)
    sys.exit(max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children))
