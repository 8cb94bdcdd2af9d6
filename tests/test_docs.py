"""The commands and programs of README.md and docs/ do what they say: every block is run as it is written, on small inputs, for two steps.

The only changes are words that the `python` and `gentok` of these runs append: how long to train and how much to measure. Blocks about the
installation and the test suite itself are what CI runs.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
ELSEWHERE = ("make demo", "python3 -m venv", "GENTOK_TEST_CONF")
"""Beginnings of blocks that CI runs, and of one that tests/test_outside.py does."""
REMOTE = "s3://"
SHORT = "steps=2 budget=null batch_size=8 limit_items=40 trainer.validate_batches=1 task.encode_batch=16 print_config=false"

PYTHON = """#!/bin/bash
case "$1 $2" in
    train.py\\ *describe=true*) ;;
    train.py\\ *) case "$*" in *spoken_digits*) set -- "$@" data.items=40 data.held_out=20 ;; esac; set -- "$@" {short} ;;
    "-m gentok.evaluate") set -- "$@" {measured} ;;
    "-m gentok.eval_classifier") set -- "$@" epochs=1 ;;
esac
exec {python} "$@"
"""
GENTOK = """#!/bin/bash
case "$1" in evaluate) [[ "$*" == *suite=* || "$*" == *protocol=nll* ]] && set -- "$@" max_held_out=6 || set -- "$@" {measured} ;; esac
exec {python} -c 'from gentok.cli import main; main()' "$@"
"""
SBATCH = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
export SLURM_JOB_ID=$$
exec bash "$@"
"""
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
exec "$@" trainer.accelerator=cpu
"""


def _images(folder: Path, count: int, side: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / ("cat", "dog")[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (side, side + 8, 3), dtype=np.uint8)).save(path)


def _shards(pattern: str, count: int, each: int) -> None:
    import io
    import tarfile

    rng = np.random.default_rng(0)
    Path(pattern).parent.mkdir(parents=True, exist_ok=True)
    for shard in range(count):
        with tarfile.open(pattern.format(shard), "w") as tar:
            for i in range(each):
                image = io.BytesIO()
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(image, "jpeg")
                for suffix, data in (("jpg", image.getvalue()), ("cls", str(i % 10).encode())):
                    member = tarfile.TarInfo(f"{shard:03d}{i:04d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def _sounds(folder: Path) -> None:
    import soundfile

    rng = np.random.default_rng(0)
    (folder / "SPEECH").mkdir()
    for i in range(40):
        soundfile.write(folder / "SPEECH" / f"{i}.wav", rng.normal(0, 0.1, 16000).astype(np.float32), 16000, subtype="PCM_16")
    for name in ("prompt", "in"):
        soundfile.write(folder / f"{name}.wav", rng.normal(0, 0.1, 16000).astype(np.float32), 16000, subtype="PCM_16")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkout with the inputs that the pages speak of."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("train.py", "sample.py", "conf", "docs", "tests"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "gentok" / "metrics", folder / "gentok" / "metrics")  # one command writes there
    _images(folder / "PHOTOS", 40, 72)
    _sounds(folder)
    (folder / "img").symlink_to(folder / "PHOTOS")
    rows = [f"PHOTOS/{('cat', 'dog')[i % 2]}/{i}.jpg,{('cat', 'dog')[i % 2]},a picture" for i in range(40)]
    (folder / "photos.csv").write_text("\n".join(["path,label,caption", *rows]) + "\n")
    _shards(str(folder / "PATH" / "cifar10-train-{:03d}.tar"), 5, 110)
    _shards(str(folder / "PATH" / "cifar10-test-{:03d}.tar"), 1, 20)
    _shards(str(folder / "shards" / "train-{:03d}.tar"), 100, 2)
    _shards(str(folder / "shards" / "test-{:d}.tar"), 2, 2)
    janus = pytest.importorskip("transformers")
    small = {"base_channels": 32, "channel_multiplier": [1, 1, 1, 1, 1], "num_embeddings": 64, "embed_dim": 8, "latent_channels": 32}
    janus.JanusVQVAE(janus.JanusVQVAEConfig(**small, num_res_blocks=1)).save_pretrained(folder / "FOLDER")
    measured = "n=20 max_train=40 max_held_out=20 classifier_steps=2"
    for name, text in {"python": PYTHON, "gentok": GENTOK, "sbatch": SBATCH, "srun": SRUN}.items():
        path = folder / ("slurm" if name in ("sbatch", "srun") else "bin") / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            text.format(short=SHORT, measured=measured, python=sys.executable) if "{" in text and name in ("python", "gentok") else text
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of a page's blocks that are run here."""
    return [(kind, text) for kind, text in BLOCK.findall((ROOT / page).read_text()) if not any(word in text for word in ELSEWHERE)]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/own_data.md", "docs/cluster.md", "docs/certify.md", "docs/zoo/README.md"])
def test_every_block_runs_as_it_is_written(place, page):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(place / "cache"), "PYTHON": "python"}
    for name in ("runs", "samples", "sevens", "outputs"):  # what another page has made
        shutil.rmtree(place / name, ignore_errors=True)
    failed = []
    for kind, text in blocks(page):
        text = "\n".join(line for line in text.splitlines() if REMOTE not in line)
        text = text if kind == "bash" else re.sub(r"steps=\d+", "steps=2", text)
        if named := re.match(r"# (\w+\.py)\n", text):
            (place / named[1]).write_text(text)
        words = ["bash", "-euo", "pipefail", "-c", text] if kind == "bash" else [sys.executable, "-c", text]
        folders = ["bin", "slurm"] if "sbatch" in text else ["bin"]
        env["PATH"] = ":".join([*(str(place / name) for name in folders), os.environ["PATH"]])
        done = subprocess.run(words, cwd=place, env=env, capture_output=True, text=True)
        if done.returncode:
            failed.append(f"{text}\n-> {done.returncode}\n{done.stdout[-500:]}\n{done.stderr[-1500:]}")
    assert not failed, "\n\n".join(failed)


def test_the_pages_have_the_blocks_that_are_run():
    assert len(blocks("README.md")) >= 7 and len(blocks("docs/own_data.md")) >= 5 and len(blocks("docs/cluster.md")) == 5
