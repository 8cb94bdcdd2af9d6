"""A run of two processes, whose set was encoded by two that it started for that, is the run of one: the set to the bit, and the weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from resume_kit import alike

from gentok.cli import compose
from gentok.data.encoding_processes import MANY
from gentok.training.run import train

HERE = Path(__file__).parent
NOISE = ["trainer=cpu", "trainer.precision=32-true", "print_config=false", "trainer.progress_bar=false", "logger.tensorboard=false",
         "trainer.log_every=1", "trainer.validate_every=4", "budget=null", "data=noise", "data.size=8", "data.channels=1"]  # fmt: skip
TOKENIZER = ["task=tokenizer", "codebook=vq_ema", "task.pictures=1", "task.augment.shift=0", "tokenizer.width=4", "codebook.dim=4",
             "codebook.vocab_size=16", "data.items=64", "data.held_out=16", "batch_size=16", "steps=2"]  # fmt: skip
GENERATOR = ["task=generator", "tokenizer=from_bundle", "generator=autoregressive", "task.pictures=10", "task.views=2",
             "generator.width=16", "generator.depth=1", "generator.heads=1", f"data.items={MANY // 2}", "data.held_out=16",
             "batch_size=16", "steps=4"]  # fmt: skip



@pytest.mark.slow
def test_the_set_and_the_weights_are_those_of_one_process(tmp_path):
    def words(name: str, *more: str) -> list[str]:
        return [*NOISE, *more, f"paths.run={tmp_path / name}", f"paths.cache={tmp_path / name}_cache"]

    generator = [*GENERATOR, f"tokenizer.ckpt={train(compose('config', words('tokenizer', *TOKENIZER))) / 'bundle'}"]
    one = train(compose("config", words("one", *generator)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "ENCODED": str(tmp_path / "encoded")}
    command = [sys.executable, str(HERE / "noted_encoders.py"), *words("two", *generator, "trainer=ddp_sim", "trainer.precision=32-true")]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=1200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "encoded").read_text() == f"2 {MANY // 2}\n"
    sets = [{path.name: path.read_bytes() for path in (tmp_path / f"{name}_cache").iterdir()} for name in ("one", "two")]
    assert sets[0] == sets[1] and len(sets[0]) == 2 and max(map(len, sets[0].values())) > MANY
    alike(one, tmp_path / "two")
