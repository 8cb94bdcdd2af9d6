"""Several processes: which one this is before they meet, how they are started, and what must fit.

`trainer=ddp trainer.devices=2` starts the others by itself (they run the same command); torchrun and srun start all at once. Either way
one folder: the first kind is handed its parent's, the second kind names it after the job (gentok/cli/run_id.py). Only the first
process writes.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from typing import Any

import torch

from gentok.errors import ConfigError

__all__ = ["check_devices", "is_first", "local_devices", "lost_process", "running", "strategy"]


def is_first() -> bool:
    """Whether this is the process that writes; known from the environment, before the process group exists."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name == "SLURM_PROCID" and os.environ.get("SLURM_NTASKS", "1") == "1":
            continue
        if name in os.environ:
            return os.environ[name] == "0" and os.environ.get("NODE_RANK", "0") == "0"
    return os.environ.get("NODE_RANK", "0") == "0"


def lost_process(error: Exception) -> str | None:
    """A line for an error that says that another process of the run is gone; None for other errors."""
    text = re.sub(r"\[/[^\]]*\] ", "", " ".join(str(error).split()))  # without places in the library's source
    if "DataLoader worker" in text:
        return (
            f"a loader worker was killed or has crashed ({text[:120]}): often for want of memory, so lower trainer.workers or batch_size; "
            "resume=auto goes on from the last checkpoint"
        )
    gone = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "Connection refused", "Timed out waiting")
    if isinstance(error, torch.distributed.DistError) or ("gloo" in str(error) and any(word in text for word in gone)):
        return f"another process of this run is gone ({text[:120]}): its own output says why; resume=auto goes on from the last checkpoint"
    return None


def running() -> tuple[int, int, str]:
    """(rank, world, device) of the processes that run now, before Lightning starts others: more than one where torchrun or srun did."""
    environment = os.environ
    local = int(environment.get("LOCAL_RANK", environment.get("SLURM_LOCALID", 0)))
    device = f"cuda:{local % max(1, torch.cuda.device_count())}"
    if "TORCHELASTIC_RUN_ID" in environment:
        return int(environment["RANK"]), int(environment["WORLD_SIZE"]), device
    if "SLURM_PROCID" in environment and environment.get("SLURM_NTASKS", "1") != "1":
        return int(environment["SLURM_PROCID"]), int(environment["SLURM_NTASKS"]), device
    return 0, 1, device


def local_devices(settings: Mapping[str, Any]) -> list[str]:
    """What the processes that a trainer has on this machine compute on: "cuda:0", "cuda:1", ..., or "cpu" for each.

    Args:
        settings: config["trainer"].
    """
    devices, on_gpu = settings["devices"], settings["accelerator"] != "cpu" and torch.cuda.is_available()
    if isinstance(devices, (list, tuple)):
        return [f"cuda:{number}" for number in devices]
    count = int(devices) if devices != "auto" else torch.cuda.device_count() if on_gpu else 1
    return [f"cuda:{number}" if on_gpu else "cpu" for number in range(count)]


def check_devices(settings: Mapping[str, Any], batch_size: int) -> None:
    """Raises ConfigError where config["trainer"] asks for devices that are not there, or a batch cannot be split over them."""
    accelerator, devices, nodes = settings["accelerator"], settings["devices"], settings["num_nodes"]
    count = len(devices) if isinstance(devices, (list, tuple)) else None if devices == "auto" else int(devices)
    found = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda", "mps") and not (found and accelerator != "mps") and not torch.backends.mps.is_available():
        raise ConfigError(f"trainer.accelerator={accelerator}: this machine has no GPU that torch can use; choose trainer=cpu")
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and found > 0)
    if on_gpu and count is not None and count > max(1, found):
        raise ConfigError(f"trainer.devices={devices}: this machine has {found} GPU{'s' if found != 1 else ''}")
    if isinstance(devices, (list, tuple)) and not on_gpu:
        raise ConfigError(f"trainer.devices={list(devices)}: a list names GPUs, and there is none in use; give the number of processes")
    if on_gpu and isinstance(devices, (list, tuple)) and max(devices) >= found:
        raise ConfigError(f"trainer.devices={list(devices)}: this machine's GPUs are 0..{found - 1}")
    count = count if count is not None else found if on_gpu else 1
    if batch_size % (count * nodes):
        raise ConfigError(f"batch_size={batch_size} is over all processes and must be a multiple of their number, {count * nodes}")


def strategy(settings: Mapping[str, Any]) -> Any:
    """Lightning's strategy: data-parallel copies for more than one device, unless trainer.strategy names another."""
    if settings["strategy"] == "fsdp":
        from gentok.training.sharding import Sharded

        return Sharded()
    devices = settings["devices"]
    several = settings["num_nodes"] > 1 or (len(devices) if isinstance(devices, (list, tuple)) else devices) not in (1, "1")
    if settings["strategy"] != "ddp" and not (settings["strategy"] == "auto" and several and settings["accelerator"] == "cpu"):
        return settings["strategy"]
    from lightning.pytorch.strategies import DDPStrategy

    # Buffers are the same everywhere by construction (statistics are reduced when they are taken): nothing to broadcast.
    known = inspect.signature(torch.nn.parallel.DistributedDataParallel).parameters
    silent = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}  # renamed by torch
    return DDPStrategy(find_unused_parameters=settings["find_unused"], **silent)
