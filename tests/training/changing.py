"""A run whose number of processes changes; the part of it on two processes, run by test_other_numbers.py as a script.

    python changing.py FOLDER first NAME ...     RUNS[NAME] as two processes, up to their death behind the first checkpoint
    python changing.py FOLDER last NAME ...      the same, from the newest checkpoint to the end
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forked import on_processes
from resume_kit import CASES, GENERATOR, configured, killed_at

from gentok.distributed import rank
from gentok.training.module import GentokModule
from gentok.training.run import train

EXACT = ["trainer.precision=32-true", "steps=6", "trainer.checkpoint_every=2"]
RUNS = {  # words, and the trainers of the first and the last part
    "averages": ([*CASES["vq by averages"], *EXACT], "ddp_sim", "ddp_sim"),
    "masked": (["experiment=mnist5k/masked", *GENERATOR, "task.views=0", "trainer.accumulate=2", *EXACT], "ddp_sim", "fsdp_sim"),
    "autoregressive": (["experiment=mnist5k/ar", *GENERATOR, "task.views=0", *EXACT], "fsdp_sim", "fsdp_sim"),
}


def note_items(root: Path) -> None:
    """From now on every batch of a run is noted in FOLDER/RUN_PROCESS.items."""
    begin = GentokModule.on_train_batch_start

    def noted(self: GentokModule, batch: Any, batch_idx: int) -> None:
        with open(root / f"{Path(self.config['paths']['run']).name}_{rank()}.items", "a") as file:
            print(batch_idx, *batch.index.tolist(), file=file)
        begin(self, batch, batch_idx)

    GentokModule.on_train_batch_start = noted


def main(root: Path, part: str, names: Sequence[str]) -> None:
    note_items(root)

    def work(rank: int) -> None:
        for name in names:
            words, *trainers = RUNS[name]
            config = configured(root, name, words, f"trainer={trainers[part == 'last']}", "resume=auto")
            if part == "first":
                with killed_at(3):
                    train(config)
            else:
                train(config)

    on_processes(work)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
