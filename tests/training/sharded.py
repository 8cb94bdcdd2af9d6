"""Runs on two gloo processes, each with a copy of the model and then with a shard; run by test_sharding.py as a script.

    python sharded.py FOLDER NAME ...      RUNS[NAME] with trainer=ddp_sim into FOLDER/NAME_ddp, with trainer=fsdp_sim into FOLDER/NAME_fsdp
    python sharded.py FOLDER broken        a sharded run that breaks: FOLDER/broken_PROCESS.txt is what was said
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from forked import on_processes
from resume_kit import CASES, GENERATOR, HALF, TOKENIZER, configured, killed_at
from torch.distributed.tensor import DTensor

from gentok.distributed import rank
from gentok.interfaces import Codebook
from gentok.nn.block import Block
from gentok.training.module import GentokModule
from gentok.training.run import train

EXACT = ["trainer.precision=32-true", "trainer.clip=0.05"]
DEEP = [*GENERATOR, "generator.depth=2", *EXACT]
RUNS = {
    "autoregressive": ["experiment=mnist5k/ar", *DEEP, "task.views=2"],
    "masked": ["experiment=mnist5k/masked", *DEEP, "task.views=0", "trainer.checkpoint_activations=true"],
    "accumulated": ["experiment=mnist5k/masked", *DEEP, "task.views=2", "trainer.accumulate=2", "generator.condition_by=cross"],
    "xar": [*CASES["xar from media"], *EXACT],
    "next_scale": [*CASES["next scale from tokens"], *EXACT],
    "without_averages": ["experiment=mnist5k/ar", *DEEP, "task.views=2", "callbacks.ema=null"],
    "flextok": [*CASES["flextok"], *EXACT],
    "flextok_density": [*CASES["flextok with few patches"], *EXACT],
    "vq_gradient": [*CASES["vq by gradient"], *EXACT],
    "vq_ema": [*CASES["vq by averages"], *EXACT],
    "residual": [*TOKENIZER, "codebook=residual", "codebook.levels=3", "codebook.codebook.vocab_size=32", *EXACT],
}
seen: list[str] = []


def look(self: GentokModule, *args: object) -> None:
    """Stops unless a sharded run holds shards alone: of weights, gradients' moments and averages."""
    if self.config["trainer"]["strategy"] != "fsdp" or not self.global_step:
        return
    whole = {id(p) for part in self.modules() if isinstance(part, Codebook) for p in part.parameters()}
    parameters = [p for p in self.parameters() if id(p) not in whole]
    averages = [p for callback in self.trainer.callbacks for p in getattr(callback, "_average_model", torch.nn.Module()).parameters()]
    moments = [self.trainer.optimizers[0].state[p]["exp_avg"] for p in parameters if p.requires_grad]
    for tensors in (parameters, averages, moments):
        sharded = [t for t in tensors if isinstance(t, DTensor)]
        assert len(sharded) == len(tensors) or tensors is averages
        held = sum(t.to_local().numel() for t in sharded)
        assert held <= 0.6 * sum(t.numel() for t in sharded), (held, sum(t.numel() for t in sharded))
    seen.append(self.config["task"]["name"])


def broken(root: Path) -> None:
    """The first block's output is no number in training, on the second process alone."""
    prepared = GentokModule.prepared

    def with_fault(self: GentokModule, model: torch.nn.Module) -> torch.nn.Module:
        block = next(part for part in prepared(self, model).modules() if isinstance(part, Block))
        if rank() == 1:
            block.register_forward_hook(lambda module, args, output: output * torch.nan if module.training else output)
        return model

    GentokModule.prepared = with_fault
    try:
        train(configured(root, "broken", RUNS["masked"], "trainer=fsdp_sim"))
    except ValueError as error:
        (root / f"broken_{rank()}.txt").write_text(str(error))


def main(root: Path, names: list[str]) -> None:
    GentokModule.on_train_batch_end = look
    if names == ["broken"]:
        on_processes(lambda rank: broken(root))

    def work(rank: int) -> None:
        for name in names:
            train(configured(root, f"{name}_ddp", RUNS[name], "trainer=ddp_sim"))
            sharded = configured(root, f"{name}_fsdp", RUNS[name], "trainer=fsdp_sim")
            with killed_at(HALF + 1):
                train(dict(sharded))
            train({**sharded, "resume": "auto"})
            train({**sharded, "resume": "auto"})  # it has ended: is validated and written once more
        assert len(seen) >= 6 * len(names)

    on_processes(work)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
