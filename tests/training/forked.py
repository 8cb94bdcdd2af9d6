"""One script on two gloo processes, as torchrun starts them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable

import torch


def on_two(work: Callable[[bool], None]) -> None:
    """Runs work(whether this is the second process) on both; ends the script with the status of the first that failed."""
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]))
    child = os.fork()
    rank = str(int(child == 0))  # as torchrun says it
    os.environ.update(TORCHELASTIC_RUN_ID="two", WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", GROUP_RANK="0", RANK=rank, LOCAL_RANK=rank)
    try:
        work(child == 0)
    except BaseException as error:
        print(f"process {rank}: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    if child == 0:
        os._exit(0)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
