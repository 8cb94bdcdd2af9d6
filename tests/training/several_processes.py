"""Runs on two or four gloo processes with shares of every batch; run by test_processes.py as a script.

    python several_processes.py FOLDER         those of QUICK on two, a run on the clock and one that breaks
    python several_processes.py FOLDER rest    the other ones
    python several_processes.py FOLDER four    those of FOUR on four, into FOLDER/NAME_four

A throw-away quantizer of the library is built before the process group exists: what it remembers from then must not matter later.
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning  # noqa: F401 - once for all processes
import torch
import torch.distributed as dist
from forked import on_processes
from resume_kit import CASES, GENERATOR, TOKENIZER, configured

from gentok.codebooks.library import LibraryCodebook
from gentok.training.run import train
from gentok.training.tokenizer_task import TokenizerTask

EXACT = ["trainer.precision=32-true", "steps=4", "trainer.checkpoint_every=4"]
RUNS: dict[str, list[str]] = {
    "vq_gradient": [*CASES["vq by gradient"], *EXACT],
    "vq_ema": [*CASES["vq by averages"], *EXACT],
    "residual": [*CASES["residual with dropout"], *EXACT],
    "latents": [*CASES["latents"], *EXACT],
    "tokenflow": [*CASES["tokenflow"], *EXACT],
    "library": [*TOKENIZER, "codebook=library", "codebook.options.codebook_size=32", *EXACT],
    "multi_scale": [*CASES["multi-scale"], *EXACT],
    "binary": [*CASES["binary"], *EXACT],
    "vqgan": [*CASES["vqgan with a discriminator"], *EXACT],
    "flextok": [*CASES["flextok"], "tokenizer.stratified=true", *EXACT],
    "autoregressive": ["experiment=mnist5k/ar", *GENERATOR, "task.views=2", *EXACT],
    "masked": ["experiment=mnist5k/masked", *GENERATOR, "task.views=0", *EXACT],
    "any_order": ["experiment=mnist5k/any_order", *GENERATOR, "task.views=2", "generator.warmup=0.8", *EXACT],
    "self_speculative": ["experiment=mnist5k/masked", "generator=self_speculative", *GENERATOR, "task.views=2", *EXACT],
    "xar": [*CASES["xar from latents"], *EXACT],
    "mar": [*CASES["mar from latents"], *EXACT],
    "distilled": [*CASES["distilled from trajectories"], *EXACT, "trainer.workers=0"],
    "score_distilled": [*CASES["distilled by scores"], *EXACT],
    "next_scale": [*CASES["next scale from tokens"], *EXACT],
    "causal_masked": [*CASES["causal masking from tokens"], *EXACT],
    "mixed_objectives": [*CASES["mixed objectives from media"], *EXACT],
    "captions": [*CASES["captions from tokens"], *EXACT],
    "early_exits": [*CASES["early exits from tokens"], *EXACT],
    "drafter": [*CASES["drafter of items that its target draws"], *EXACT],
    "masked_accumulated": ["experiment=mnist5k/masked", *GENERATOR, "task.views=2", "trainer.accumulate=2", *EXACT],
}
QUICK = ("vq_ema", "masked_accumulated")
REST = tuple(name for name in RUNS if name not in QUICK)
FOUR = ("vq_ema", "vqgan", "flextok", "autoregressive", "masked")
compared: list[int] = []


def agree(self: TokenizerTask, *args: object) -> None:
    """Stops unless all processes have the same codebook, to the bit."""
    part = self.tokenizer if self.tokenizer.codebook is None else self.tokenizer.codebook  # latents: all
    for name, tensor in part.state_dict().items():
        all_of_it = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(all_of_it, tensor.contiguous())
        assert all(torch.equal(part, tensor) for part in all_of_it), f"{name} differs between the processes at step {self.global_step}"
    compared.append(self.global_step)


def broken() -> None:
    """From now on the decoder's first layer gives what is not finite, in training, on this process."""
    prepared = TokenizerTask.prepared

    def spoil(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        return output * torch.nan if module.training else output

    def with_fault(self: TokenizerTask, model: torch.nn.Module) -> torch.nn.Module:
        prepared(self, model).decoder.stem.register_forward_hook(spoil)
        return model

    TokenizerTask.prepared = with_fault


def main(root: Path, names: tuple[str, ...]) -> None:
    LibraryCodebook("VectorQuantize", 4, {"codebook_size": 16})
    TokenizerTask.on_train_batch_end = agree
    world = 4 if names is FOUR else 2

    def work(rank: int) -> None:
        for name in names:
            folder = f"{name}_four" if names is FOUR else name
            train(configured(root, folder, RUNS[name], "trainer=ddp_sim", f"trainer.devices={world}"))
        tokenizers = [name for name in names if configured(root, name, RUNS[name])["task"]["name"] == "tokenizer"]
        assert len(compared) == 4 * len(tokenizers), compared
        if names is not QUICK:
            return
        # On the clock: rates follow the first process's, else the rows that are learnt by gradient would differ.
        train(configured(root, "clock", RUNS["vq_gradient"], "trainer=ddp_sim", "steps=null", "budget=0.5s", "schedule.warmup=1"))
        if rank:
            broken()
        try:
            train(configured(root, "broken", RUNS["vq_ema"], "trainer=ddp_sim"))
        except ValueError as error:
            (root / f"broken_{rank}.txt").write_text(str(error))

    on_processes(work, world)


if __name__ == "__main__":
    main(Path(sys.argv[1]), {"rest": REST, "four": FOUR}.get(" ".join(sys.argv[2:]), QUICK))
