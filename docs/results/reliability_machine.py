"""What reliability.py measures of time and memory: stalls of checkpoints, two processes against two cores, memory of long work."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from reliability_jobs import TINY, TOKENIZER, Job, command, found_by, own_memory

SAVES = 500
"""conf/trainer/default.yaml: steps between two checkpoints."""
LARGER = [*TINY, "experiment=mnist5k/vq", "data=noise", "data.items=1024", "data.size=32", "task.pictures=1", "task.augment.shift=0"]
"""The tokenizer of mnist5k, on noise."""


def stall(root: Path, steps: int = 40) -> dict[str, Any]:
    """The time for which training stands still while a checkpoint is written, beside that of the steps between two of them."""

    def work() -> dict[str, Any]:
        from gentok.training.checkpoint import WholeFiles
        from gentok.training.module import GentokModule

        saves, starts, save, begin = [], [], WholeFiles.save_checkpoint, GentokModule.on_train_batch_start

        def timed(self: Any, *args: Any, **options: Any) -> None:
            began = time.perf_counter()
            save(self, *args, **options)
            saves.append(time.perf_counter() - began)

        def started(self: Any, *args: Any) -> None:
            starts.append(time.perf_counter())
            begin(self, *args)

        WholeFiles.save_checkpoint, GentokModule.on_train_batch_start = timed, started
        command("train", [*LARGER, "batch_size=64", f"steps={steps}", "trainer.checkpoint_every=10", f"paths.run={root / 'stall'}"], int)()
        step = median(after - before for before, after in zip(starts, starts[1:]))
        size = (root / "stall" / "checkpoints" / "last.ckpt").stat().st_size
        return {"step_seconds": step, "save_seconds": median(saves), "checkpoint_megabytes": size / 1e6,
                "share_of_a_run": median(saves) / (median(saves) + SAVES * step)}  # fmt: skip

    return found_by(work, root, "stall")


def efficiency(root: Path, steps: int = 150, first: int = 10) -> dict[str, Any]:
    """Items per second of two processes that train together, beside those of two that train alone at the same time; behind the first steps,
    in which memory is taken and processes meet."""

    def rate(name: str, ranks: int, size: int) -> Job:
        words = [*LARGER, f"batch_size={size}", f"steps={steps}", f"paths.run={root / name}", f"trainer={'ddp_sim' if ranks > 1 else 'cpu'}"]
        return Job("train", [*words, "trainer.precision=32-true"], root / name, ranks=ranks, prepare=lambda: _note_steps(root / f"{name}.steps"))

    def items(jobs: Sequence[Job], size: int) -> float:
        for job in jobs:
            job.start()
        for job in jobs:
            job.finish()
        times = [[float(line) for line in job.folder.with_suffix(".steps").read_text().split()] for job in jobs]
        return sum(size * (len(one) - 1 - first) / (one[-1] - one[first]) for one in times)

    one = items([rate("one", 1, 32)], 32)
    ideal = items([rate("first", 1, 32), rate("second", 1, 32)], 32)
    together = items([rate("together", 2, 64)], 64)
    return {"items_per_second_of_one": one, "items_per_second_of_two_alone": ideal, "items_per_second_of_two_together": together,
            "efficiency": together / ideal}  # fmt: skip


def _note_steps(path: Path) -> None:
    """From now on the first process of a run notes when each of its steps begins."""
    from gentok.training.module import GentokModule

    begin = GentokModule.on_train_batch_start

    def started(self: Any, *args: Any) -> None:
        if self.global_rank == 0:
            with open(path, "a") as file:
                print(time.perf_counter(), file=file)
        begin(self, *args)

    GentokModule.on_train_batch_start = started


def memory_of_tokens(root: Path, tokens: int, positions: int = 256) -> dict[str, Any]:
    """Own memory while so many tokens are encoded, and while they are read, shuffled."""

    def work() -> dict[str, Any]:
        from gentok.data.token_cache import encode_set
        from gentok.data.token_dataset import TokenDataset
        from gentok.interfaces import MediaDataset, Tokenizer
        from gentok.training.loader import training_loader
        from gentok.types import Batch, Condition, ConditionSpec, Line, Tokens, TokenSpec

        count, seen = -(-tokens // positions), []

        class Made(MediaDataset):
            """Items that are made when they are asked for."""

            media_shape, condition_spec = (1, 2, 2), ConditionSpec(())
            description = {"data": "made", "split": "train", "items": count}  # noqa: RUF012

            def __len__(self) -> int:
                return count

            def __getitems__(self, draws: Sequence[int]) -> Batch:
                seen.append(own_memory())
                return Batch(torch.zeros(len(draws), 1, 2, 2), torch.as_tensor(draws), Condition({}))

        class Counting(Tokenizer):
            spec, codebook = TokenSpec((1024,), Line(positions), media_shape=(1, 2, 2), encode_fingerprint="counting"), None

            def encode(self, media: torch.Tensor, lengths: Any = None, rng: Any = None) -> Tokens:
                return Tokens(torch.arange(positions).repeat(len(media), 1, 1) % 1024, self.spec)

        path = encode_set(Counting(), Made(), root / "made.safetensors", batch_size=250, progress=False)
        encoding, seen[:] = list(seen), []
        loader = iter(training_loader(TokenDataset(path), 250, seed=0))
        for _ in range(count // 250):
            next(loader)
            seen.append(own_memory())
        return {"tokens": count * positions, "file_megabytes": path.stat().st_size / 1e6, **_growth("encoding", encoding),
                **_growth("reading", seen)}  # fmt: skip

    return found_by(work, root, "tokens")


def memory_of_steps(root: Path, steps: int) -> dict[str, Any]:
    """Own memory while a tokenizer is trained for so many steps, with its checkpoints and validations."""

    def work() -> dict[str, Any]:
        from gentok.training.module import GentokModule

        seen, begin = [], GentokModule.on_train_batch_start

        def started(self: Any, *args: Any) -> None:
            seen.append(own_memory())
            begin(self, *args)

        GentokModule.on_train_batch_start = started
        words = [*TOKENIZER, f"steps={steps}", "trainer.checkpoint_every=100", "trainer.validate_every=100", f"paths.run={root / 'steps'}"]
        command("train", words, int)()
        return {"steps": steps, **_growth("training", seen)}

    return found_by(work, root, "steps")


def _growth(name: str, seen: list[int]) -> dict[str, float]:
    """Megabytes at a fifth of the way, and how much more they are in the last fifth."""
    fifth = max(1, len(seen) // 5)
    first, last = max(seen[: 2 * fifth][fifth:] or seen), max(seen[-fifth:])
    return {f"{name}_megabytes": first / 1e6, f"{name}_growth_megabytes": (last - first) / 1e6}
