"""A run of two processes, whose set was encoded by two that it started for that, is the run of one: the set to the bit, and the weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from resume_kit import alike

from gentok.data.encoding_processes import MANY

HERE = Path(__file__).parent
NOISE = ["trainer=cpu", "trainer.precision=32-true", "print_config=false", "trainer.progress_bar=false", "logger.tensorboard=false",
         "trainer.log_every=1", "trainer.validate_every=4", "budget=null", "data=noise", "data.size=8", "data.channels=1"]  # fmt: skip
TOKENIZER = ["task=tokenizer", "codebook=vq_ema", "task.pictures=1", "task.augment.shift=0", "tokenizer.width=4", "codebook.dim=4",
             "codebook.vocab_size=16", "data.items=64", "data.held_out=16", "batch_size=16", "steps=2"]  # fmt: skip
GENERATOR = ["task=generator", "tokenizer=from_bundle", "generator=autoregressive", "task.pictures=10", "task.views=2",
             "generator.width=16", "generator.depth=1", "generator.heads=1", f"data.items={MANY // 2}", "data.held_out=16",
             "batch_size=16", "steps=4"]  # fmt: skip



def trained(root: Path, name: str, *words: str) -> Path:
    """The folder of a run of the command line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "ENCODED": str(root / f"{name}.encoded")}
    words = [str(HERE / "noted_encoders.py"), *NOISE, *words, f"paths.run={root / name}", f"paths.cache={root / name}_cache"]
    done = subprocess.run([sys.executable, *words], env=environment, text=True, capture_output=True, timeout=1200, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    return root / name


@pytest.mark.slow
def test_the_set_and_the_weights_are_those_of_one_process(tmp_path):
    generator = [*GENERATOR, f"tokenizer.ckpt={trained(tmp_path, 'tokenizer', *TOKENIZER) / 'bundle'}"]
    one = trained(tmp_path, "one", *generator)
    two = trained(tmp_path, "two", *generator, "trainer=ddp_sim", "trainer.precision=32-true")
    assert (tmp_path / "two.encoded").read_text() == f"2 {MANY // 2}\n" and not (tmp_path / "one.encoded").exists()
    sets = [{path.name: path.read_bytes() for path in (tmp_path / f"{name}_cache").iterdir()} for name in ("one", "two")]
    assert sets[0] == sets[1] and len(sets[0]) == 2 and max(map(len, sets[0].values())) > MANY
    alike(one, two)
