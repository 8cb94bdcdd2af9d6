"""Short runs of a small codec on a folder of tones; as a script, the same on two gloo processes with halves of every batch.

python codec_kit.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.distributed as dist
from forked import on_processes

from gentok.cli import compose
from gentok.training.run import train
from gentok.training.tokenizer_task import TokenizerTask

RATE, STEPS, HALF = 8000, 6, 3
CODEC = [
    "tokenizer=codec",
    f"tokenizer.sample_rate={RATE}",
    "tokenizer.encoder.filters=4",
    "tokenizer.decoder.filters=4",
    "tokenizer.encoder.ratios=[5,4,2]",
    "tokenizer.encoder.memory=lstm",
    "tokenizer.encoder.width=16",
    "losses=l1",
    "optimizer=adam",
    "optimizer.lr=3e-3",
]
BOOK = [
    "codebook=residual",
    "codebook.levels=3",
    "codebook.level_dropout=0.5",
    "codebook.width=null",
    "codebook.codebook.vocab_size=32",
    "codebook.codebook.dim=16",
    "codebook.codebook.kmeans_start=3",
    "codebook.codebook.revive_below=0.5",
]
QUIET = ["print_config=false", "trainer.progress_bar=false", "logger.tensorboard=false", "trainer.log_every=1", "trainer.validate_every=3",
         f"trainer.checkpoint_every={HALF}", "budget=null", "batch_size=8", "task.pictures=2", "task.sounds=1"]  # fmt: skip


def tones(folder: Path, count: int = 24) -> Path:
    """Two classes of sines of 0.2 s and a little more, as WAV files."""
    for i in range(count):
        time = np.arange(round((0.2 + 0.005 * (i % 5)) * RATE)) / RATE
        path = folder / ("low" if i % 2 else "high") / f"{i:03d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, (0.5 * np.sin(2 * np.pi * (120 if i % 2 else 300) * (1 + 0.01 * i) * time)).astype(np.float32), RATE)
    return folder


def configured(root: Path, folder: str, *words: str) -> dict:
    data = ["data=sound_folder", f"data.path={root / 'tones'}", f"data.sample_rate={RATE}", "data.crop=0.1", "data.held_out=0.2"]
    return compose("config", [*data, *QUIET, f"steps={STEPS}", f"paths.root={root}", f"paths.run={root / folder}", *words])


def run(root: Path, folder: str, *words: str) -> Path:
    return train(configured(root, folder, *CODEC, *BOOK, *words))


def agree(self: TokenizerTask, *args: object) -> None:
    """Stops unless both processes have the same codebook, to the bit."""
    for name, tensor in self.tokenizer.codebook.state_dict().items():
        both = [torch.empty_like(tensor) for _ in range(2)]
        dist.all_gather(both, tensor.contiguous())
        assert torch.equal(*both), f"{name} differs between the processes at step {self.global_step}"


def main(root: Path) -> None:
    TokenizerTask.on_train_batch_end = agree
    on_processes(lambda rank: run(root, "two", "trainer.precision=32-true", "trainer=ddp_sim"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
