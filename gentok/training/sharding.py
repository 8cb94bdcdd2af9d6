"""trainer=fsdp: weights, gradients, optimizer and averages of a model lie in shards, one on each process (FSDP2: Zhao et al., "PyTorch
FSDP", arXiv 2304.11277; torch.distributed.fsdp.fully_shard through Lightning's ModelParallelStrategy).

A block (gentok/nn/block.py) is gathered when it is computed and given up again; all other weights are one shard more, there for the whole
step. Buffers are on every process, and so are the parameters of codebooks, which write into their rows while they are trained. A validation
gathers everything once, so that any method of a model works in it, on one process alone too.

Checkpoints are those of one process: one file with whole tensors, which the first process writes, and which any number of processes goes
on from, sharded or not. They pass through its memory, tensor by tensor: 16 bytes per parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from gentok.interfaces import Codebook
from gentok.nn.block import Block

__all__ = [
    "Sharded", "full_state", "gather", "gradient_norm", "is_sharded", "load_full_state", "own_part", "reshard", "scale", "shard",
    "share_gradients",
]  # fmt: skip

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard(module: nn.Module, mesh: DeviceMesh, entries: Sequence[str] = ()) -> None:
    """Shards a module in place, if it is not yet.

    Args:
        module: with the same weights on all processes.
        mesh: of one axis, the processes.
        entries: names of methods before which the weights outside of blocks are gathered.
    """
    if is_sharded(module):
        return
    own = {p for part in module.modules() if isinstance(part, Codebook) for p in part.parameters()}
    for block in [part for part in module.modules() if isinstance(part, Block)]:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, ignored_params=own)
    for name in entries:
        register_fsdp_forward_method(module, name)


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def gather(module: nn.Module) -> None:
    """Gathers all weights, on all processes, until `reshard`; nothing where none are sharded."""
    for part in _parts(module):
        if part is not module:
            part.set_reshard_after_forward(False, recurse=False)
        part.unshard()


def reshard(module: nn.Module) -> None:
    """Gives up what other processes' shards were gathered; nothing where none are sharded."""
    for part in _parts(module):
        part.reshard()
        if part is not module:
            part.set_reshard_after_forward(True, recurse=False)


def _parts(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)] if is_sharded(module) else []


# ---------------------------------------------------------------------------------------------------------------- tensors


def own_part(x: Tensor) -> Tensor:
    """This process's shard, which shares its memory; of a tensor that is not sharded, the tensor."""
    return x.to_local() if isinstance(x, DTensor) else x


def share_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Averages over processes the gradients of what is not sharded; of a model that is sharded."""
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all of them together, float scalar; of sharded ones over all processes."""
    kinds = [[g for g in gradients if isinstance(g, DTensor) is sharded] for sharded in (True, False)]
    norms = [torch.nn.utils.get_total_norm(kind) for kind in kinds if kind]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def scale(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Multiplies all of them, in place, by a scalar."""
    torch._foreach_mul_([own_part(g) for g in gradients], factor)


def full_state(module: nn.Module) -> dict[str, Any]:
    """The state dict with whole tensors on the CPU, on the first process; {} on the others. To be called by all."""
    return get_model_state_dict(module, options=_FULL)


def load_full_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Loads a state dict of whole tensors, which all processes have."""
    set_model_state_dict(module, dict(state), options=StateDictOptions(full_state_dict=True))


# --------------------------------------------------------------------------------------------------------------- strategy


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all processes, with the checkpoints of one process."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()

    def setup(self, trainer: Any) -> None:
        """Shards the model, which `configure_model` has built whole, before it has an optimizer."""
        assert self.lightning_module is not None
        shard(self.lightning_module, self.mesh, ("training_step", "validation_step"))
        super().setup(trainer)

    @property
    def mesh(self) -> DeviceMesh:
        mesh: DeviceMesh = self.device_mesh["data_parallel"]
        return mesh

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """As one process has it, on the first process; {} on the others."""
        state = optimizer.state_dict()
        whole = {number: {k: _whole(v, self.is_global_zero) for k, v in values.items()} for number, values in state["state"].items()}
        return {**state, "state": whole} if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads the file alone: what is in it is handed out by the methods below."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        load_full_state(self.lightning_module, checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            numbers = [n for group in state["param_groups"] for n in group["params"]]
            own = {n: {k: _like(v, p) for k, v in state["state"][n].items()} for n, p in zip(numbers, parameters) if n in state["state"]}
            optimizer.load_state_dict({**state, "state": own})


def _whole(value: Any, keep: bool) -> Any:
    """A value of an optimizer's state with all its shards, on the CPU; all processes must ask, and `keep` says who gets it."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.cpu() if keep and isinstance(value, Tensor) else value if keep else None


def _like(value: Any, parameter: Tensor) -> Any:
    """A value of an optimizer's state as its parameter is sharded."""
    if isinstance(value, Tensor) and isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value
