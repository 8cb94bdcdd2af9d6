"""A small adversarial run on made-up pictures, and the loop that it must equal; also a script for two processes:

python adversarial_kit.py FOLDER PROCESSES ACCUMULATE [WORD ...]
"""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path

import torch

from gentok.bundle import build_tokenizer
from gentok.cli import compose
from gentok.data.datasets import MemoryDataset
from gentok.rng import RowRNG
from gentok.training.adversarial_task import AdversarialTokenizerTask, build_adversaries
from gentok.training.loader import held_out_loader, training_loader
from gentok.training.tokenizer_task import TokenizerTask
from gentok.training.trainer import build_trainer
from gentok.types import ConditionSpec

PATCH = "discriminator.adversaries.patch"
WORDS = [
    "experiment=mnist5k/vqgan", "budget=null", "steps=8", "batch_size=8", "tokenizer.width=8", "codebook.vocab_size=16", "codebook.dim=4",
    "+tokenizer.media_shape=[1,16,16]", "trainer=cpu", "trainer.precision=32-true", "trainer.progress_bar=false", "trainer.log_every=2",
    "trainer.validate_every=100", "trainer.checkpoint_every=100", "trainer.clip=0.05", "discriminator.clip=0.3", "logger=none",
    "schedule.warmup=3", "optimizer.lr=1e-3", f"{PATCH}.network.width=4", f"{PATCH}.start=2", f"{PATCH}.ramp=3", f"{PATCH}.lecam=0.1",
]  # fmt: skip


WEIGHTS = {"l1": 1.0, "l2": 2.0, "adversarial_patch": 1.5, "features_patch": 1.5}
BALANCED = [
    f"{PATCH}.adaptive=null", f"+{PATCH}.features=1", f"+{PATCH}.relative=true", "losses.l1=1", "balancer=encodec",
    *(f"+balancer.weights.{name}={weight}" for name, weight in WEIGHTS.items()),
]  # fmt: skip


def config(folder: Path, *words: str) -> dict:
    return compose("config", [*WORDS, f"paths.root={folder}", f"paths.run={folder / 'run'}", *words])


def pictures(count: int = 40) -> MemoryDataset:
    """Smooth random images, float [count, 1, 16, 16]."""
    media = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    media = torch.nn.functional.interpolate(media, scale_factor=4.0, mode="bilinear").clamp(-1, 1)
    return MemoryDataset(media, None, ConditionSpec(), {"data": "made up"})


def fit(settings: dict, *, stop: int | None = None, ckpt: Path | None = None, start: int = 0, processes: int = 1, task=None):
    """(task, trainer) after the run. stop: steps to take where they are fewer than settings["steps"]. start: batches already consumed."""
    torch.manual_seed(settings["seed"])
    task = task or (AdversarialTokenizerTask if settings["discriminator"] else TokenizerTask)(settings)
    of_trainer = {**settings["trainer"], **({"devices": processes, "strategy": "ddp"} if processes > 1 else {})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = Path(settings["paths"]["run"])
        trainer = build_trainer({**settings, "trainer": of_trainer, "steps": stop or settings["steps"]}, run, task)
        ranks = {"rank": trainer.global_rank, "world": trainer.world_size}
        loader = training_loader(pictures(), settings["batch_size"], settings["seed"], start=start, **ranks)
        trainer.fit(task, loader, held_out_loader(pictures(16), 16), ckpt_path=ckpt)
    return task, trainer


def by_hand(settings: dict):
    """(tokenizer, discriminator's parts) by a bare loop: gradients of whole steps, both clipped on their own, both updated at once."""
    torch.manual_seed(settings["seed"])
    tokenizer = build_tokenizer(settings["tokenizer"], training=True).train()
    adversaries = build_adversaries(settings["discriminator"], 1, [])
    (part,) = adversaries.parts.values()
    options = {"weight_decay": 0.0, "eps": 1e-8}
    rates = settings["optimizer"]["lr"], settings["discriminator"]["optimizer"]["lr"]
    clips = settings["trainer"]["clip"], settings["discriminator"]["clip"]
    optimizers = [
        torch.optim.AdamW(tokenizer.parameters(), betas=(0.9, 0.95), fused=True, **options),
        torch.optim.AdamW(part.parameters(), betas=(0.5, 0.9), fused=True, **options),
    ]
    accumulate, data = settings["trainer"]["accumulate"], iter(training_loader(pictures(), settings["batch_size"], settings["seed"]))
    last = tokenizer.decoder.head.weight
    for step in range(settings["steps"]):
        active = step >= part.start
        draw = RowRNG.of(settings["seed"], torch.tensor([step])).fork("adversaries").uniform(1).item()
        trained = active and draw < settings["discriminator"]["update_rate"]
        for _ in range(accumulate):
            batch = next(data)
            output = tokenizer(batch, RowRNG.of(settings["seed"], batch.index, step).fork("tokenizer"))
            loss = torch.stack(list(output.losses.values())).sum()
            made = output.reconstruction
            if active:
                discriminator = copy.deepcopy(part.network).requires_grad_(False)
                adversarial = -discriminator(made)[0].mean()
                of_loss, of_adversarial = (torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (loss, adversarial))
                adaptive = (of_loss / (of_adversarial + 1e-6)).clamp(max=part.adaptive)
                loss = loss + part.weight * min(1.0, (step - part.start + 1) / part.ramp) * adaptive * adversarial
                if trained:
                    (part.discriminator_loss(batch.media, made)["loss"] / accumulate).backward()
            (loss / accumulate).backward()
        cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / settings["steps"], dtype=torch.float64)).item())
        for optimizer, module, lr, clip, since in zip(optimizers, (tokenizer, part), rates, clips, (0, part.start), strict=True):
            if module is tokenizer or trained:
                assert torch.nn.utils.clip_grad_norm_(module.parameters(), clip) > clip, "the test is about clipped gradients"
                for group in optimizer.param_groups:
                    group["lr"] = lr * min(1.0, (step - since + 1) / settings["schedule"]["warmup"]) * cosine
                optimizer.step()
                optimizer.zero_grad()
    return tokenizer, adversaries


def run_and_save(folder: Path, processes: int, accumulate: int, *more: str) -> None:
    # an eps that keeps Adam from blowing a rounding error up to a step
    words = [*more, f"trainer.accumulate={accumulate}", "optimizer.eps=1e-4", "discriminator.optimizer.eps=1e-4"]
    task, trainer = fit(config(folder, *words), processes=processes)
    state = {"tokenizer": task.tokenizer.state_dict(), "discriminator": task.adversaries.state_dict(), "step": trainer.global_step}
    torch.save(state, folder / f"{processes}_{accumulate}_{trainer.global_rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_and_save(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
