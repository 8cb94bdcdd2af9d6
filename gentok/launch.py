"""Several processes for sampling and evaluation: who starts them, who they are, and what becomes of the others when one is lost.

    python sample.py ... trainer.devices=4        four of this command, started by torchrun's agent (`launched`)
    torchrun --nproc-per-node=4 sample.py ...     and srun: the environment says so, `trainer` need not
    python sample.py ...                          one process: Lightning is not imported, nobody waited for

They talk through gloo, also on GPUs: what they say is small, and a process that is gone is noticed at once (gentok/watch.py).
"""

from __future__ import annotations

import datetime
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from gentok.devices import chosen_device
from gentok.errors import ConfigError
from gentok.training.processes import check_devices, lost_process

__all__ = ["LostProcess", "Team", "launched", "lost", "team"]

_STARTED = "GENTOK_STARTED"
"""The environment variable by which processes know that the one that started them will say what became of them."""
SAYING = datetime.timedelta(seconds=10)
"""How long a process may take to say what is wrong."""
_T = TypeVar("_T")


# ------------------------------------------------------------------------------------------------------------------ starting


def launched(config: Mapping[str, Any]) -> bool:
    """Starts the processes that `trainer` asks for, each with the command line of this one, and waits for them.

    Returns:
        Whether it did: then all is done. Not where one process is asked for, or others have been started already.

    Raises:
        ConfigError: they cannot be started here.
        OSError: one was killed.
        SystemExit: one failed, and has said why.
    """
    count = _asked_for(config)
    if count == 1 or _world() > 1 or _STARTED in os.environ:
        return False
    if config["trainer"]["num_nodes"] > 1:
        raise ConfigError("trainer.num_nodes: on several machines the processes are started by srun or torchrun (docs/cluster.md)")
    if {"-m", "--multirun"}.intersection(sys.argv):
        raise ConfigError("with -m every job is one process: set trainer.devices=1, or start the jobs one by one")
    _check(config)
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its reports are many lines
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does: processes share the cores
    os.environ[_STARTED] = "1"
    meeting = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": str(os.getpid())}
    agent = LaunchConfig(1, 1, count, logs_specs=DefaultLogsSpecs(), max_restarts=0, **meeting)
    try:
        elastic_launch(agent, sys.executable)(*sys.orig_argv[1:])
    except ChildFailedError as error:
        failures = error.failures.items()
        ended = [rank for rank, failure in failures if failure.exitcode > 0]  # then the agent itself has stopped the others by SIGTERM
        killed = [(rank, each) for rank, each in failures if each.exitcode < 0 and not (ended and each.exitcode == -signal.SIGTERM)]
        rank, failure = killed[0] if killed else error.get_first_failure()  # who loses another may have left a moment later
        if not killed:
            sys.exit(error.failures[ended[0]].exitcode)
        raise OSError(
            f"process {rank} of {count} was killed by signal {-failure.exitcode} ({failure.signal_name()}), the others were stopped: "
            "often for want of memory, so lower batch_size"
        ) from error
    except SignalException as stopped:
        sys.exit(128 + int(stopped.sigval))
    finally:
        del os.environ[_STARTED]
    return True


def _asked_for(config: Mapping[str, Any]) -> int:
    """How many processes `trainer` asks for on this machine."""
    settings = config["trainer"]
    devices, on_cpu = settings["devices"], settings["accelerator"] == "cpu" or config["device"] == "cpu"
    if devices == "auto":
        return 1 if on_cpu else max(1, torch.cuda.device_count())
    return len(devices) if isinstance(devices, (list, tuple)) else int(devices)


def _check(config: Mapping[str, Any]) -> None:
    """Raises ConfigError where several processes cannot do what is asked for."""
    strategy, device = config["trainer"]["strategy"], config["device"]
    if strategy not in ("auto", "ddp"):
        raise ConfigError(f"trainer.strategy={strategy} is of training; here every process has the whole model: trainer=ddp")
    if ":" in device or device == "mps":
        raise ConfigError(f"device={device} is one device: with several processes choose them with trainer.devices, or set device=auto")
    check_devices(_settings(config), 0)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """`trainer` with the accelerator that `device` names."""
    named = {"cpu": "cpu", "cuda": "gpu"}.get(config["device"])
    return {**config["trainer"], **({"accelerator": named} if named else {})}


# ------------------------------------------------------------------------------------------------------------------ the team


def _world() -> int:
    """Processes that run together with this one: torchrun's, or those of a step of srun (a batch script is one process)."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    in_step = "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS", "1"))) if in_step else 1


@dataclass(frozen=True)
class Team:
    """The processes that share a job, seen from one of them. All must make the same calls in the same order.

    Attributes:
        device: where this process's networks run.
        rank: its number.
        world: how many there are.
    """

    device: str
    rank: int = 0
    world: int = 1

    def share(self, value: Any) -> Any:
        """The first process's value, on all."""
        if self.world == 1:
            return value
        box = [value]
        with _connected():
            dist.broadcast_object_list(box)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes on the first one, in their order; [] on the others."""
        if self.world == 1:
            return [value]
        box: list[Any] = [None] * self.world if self.rank == 0 else []
        with _connected():
            dist.gather_object(value, box or None)
        return box

    def agreed(self, function: Callable[[], _T]) -> _T:
        """function(), on every process. Where it fails, the first process that failed raises its error, and the others end without a
        word."""
        if self.world == 1:
            return function()
        result, error = None, None
        try:
            result = function()
        except Exception as failure:
            error = failure
        failed = torch.zeros(self.world, dtype=torch.int64)
        failed[self.rank] = error is not None
        with _connected():
            dist.all_reduce(failed)
        if not failed.any():
            return result  # type: ignore[return-value]
        if error is not None and self.rank == int(failed.nonzero()[0]):
            raise error
        self._wait_for_its_end()
        raise SystemExit(2)

    def _wait_for_its_end(self) -> None:
        """Until the process that says what is wrong has left, and so cut the connection: who started them stops all when one leaves."""
        with suppress(RuntimeError):
            waiting = dist.barrier(async_op=True)
            if waiting is not None:
                waiting.wait(SAYING)


def team(config: Mapping[str, Any]) -> Team:
    """The processes that this one belongs to, once they have met.

    Args:
        config: with `device` and `trainer`.

    Raises:
        ConfigError: there is no such device, or several processes are asked for and none were started.
    """
    world = _world()
    if world == 1:
        if _asked_for(config) > 1:
            raise ConfigError(f"trainer asks for {_asked_for(config)} processes: the command starts them, or torchrun or srun does")
        return Team(chosen_device(config["device"]))
    _check(config)
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or world // _nodes())
    settings = _settings(config)
    devices = settings["devices"] if isinstance(settings["devices"], (list, tuple)) else here
    strategy = DDPStrategy(process_group_backend="gloo", timeout=datetime.timedelta(days=7))  # who waits for a training waits long
    fabric = Fabric(accelerator=settings["accelerator"], devices=devices, num_nodes=world // here, strategy=strategy)
    with _connected():
        fabric.launch()
    return Team(str(fabric.device), fabric.global_rank, fabric.world_size)


def _nodes() -> int:
    return int(os.environ.get("SLURM_STEP_NUM_NODES", os.environ.get("SLURM_NNODES", "1")))


@contextmanager
def _connected() -> Iterator[None]:
    """Errors of a lost connection as one line."""
    try:
        yield
    except RuntimeError as error:
        if lost_process(error) is None:
            raise
        raise lost() from error


class LostProcess(OSError):
    """Another process of the job is gone."""


def lost() -> BaseException:
    """What a process that has lost another ends with: who started them says it, or the first two do."""
    if _STARTED in os.environ or int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) > 1:
        return SystemExit(2)
    return LostProcess("another process of this job is gone, so this one ends too: the other's own output, or the system's log, says why")
