"""What people get wrong, through the real command line: one clear line, exit status 2, no traceback, nothing trained."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mlxtend")
ROOT = Path(__file__).resolve().parent.parent
QUIET = ["print_config=false", "trainer.progress_bar=false", "trainer.accelerator=cpu", "logger=csv", "budget=null", "steps=2"]
TINY = [*QUIET, "tokenizer.width=8", "tokenizer.multipliers=[1,1]", "codebook=fsq", "codebook.values=[3,3]", "codebook.width=8"]
SMALL = ["generator.width=16", "generator.depth=1", "generator.heads=2", "task.views=1"]
ZOO = ["tokenizer=from_bundle", "tokenizer.ckpt=docs/zoo/mnist5k_vq"]


def paint(path: Path, size: tuple[int, int] = (16, 16), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("mistakes")
    (root / "file").write_text("")
    (root / "empty").mkdir()
    for i in range(12):
        paint(root / "good" / f"{i}.png", seed=i)
        paint(root / "mixed" / f"{i}.png", (16 + i % 2, 16), seed=i)
        paint(root / "cut" / f"{i}.jpg", (64, 64), seed=i)
        (root / "broken").mkdir(exist_ok=True)
        (root / "broken" / f"{i}.png").write_bytes(b"no image")
        (root / "bombs").mkdir(exist_ok=True)
    Image.new("1", (30000, 30000)).save(root / "bombs" / "bomb.png")
    cut = root / "cut" / "5.jpg"
    cut.write_bytes(cut.read_bytes()[:2000])
    (root / "list.csv").write_text("file,label\n" + "".join(f"good/{i}.png,a\n" for i in range(12)))
    return root


def folder(name: str, *more: str) -> list[str]:
    return [*TINY, "data=folder", f"data.path={{root}}/{name}", "data.held_out=0.25", "batch_size=4", "paths.run={root}/run", *more]


TRAIN = [*TINY, "paths.run={root}/run"]
AR = [*QUIET, *SMALL, "task=generator", "task.pictures=10"]
AR += ["batch_size=8", "limit_items=16", "paths.run={root}/run", "paths.cache={root}/cache"]
CASES: dict[str, tuple[str, list[str], str]] = {
    "a mistyped key": ("train", [*TRAIN, "optimizer.lrr=1"], "no key 'optimizer.lrr'; did you mean 'optimizer.lr'"),
    "a key that a group does not have": ("train", [*TRAIN, "optimizer.momentun=1"], "no key 'optimizer.momentun'; optimizer has betas, "),
    "an unknown experiment": ("train", ["experiment=mnist5k/vqq"], "no experiment 'mnist5k/vqq'; did you mean 'mnist5k/vq'"),
    "an unknown component key": ("train", [*TRAIN, "+tokenizer.widht=3"], "widht.*width"),
    "no checkpoint to sample": ("sample", ["ckpt={root}/nowhere"], "{root}/nowhere"),
    "a file that is no checkpoint": ("sample", ["ckpt={root}/file"], "{root}/file"),
    "no tokenizer": ("train", [*AR, "tokenizer=from_bundle", "tokenizer.ckpt={root}/nowhere"], "{root}/nowhere"),
    "nothing to resume": ("train", [*TRAIN, "resume={root}/nowhere"], "{root}/nowhere"),
    "nothing to begin from": ("train", [*TRAIN, "init_from={root}/nowhere"], "{root}/nowhere"),
    "a class outside the classes": ("sample", ["ckpt=docs/zoo/mnist5k_ar", "condition=12", "out={root}/out"], "12.*0"),
    "a class of no such name": ("sample", ["ckpt=docs/zoo/mnist5k_ar", "condition=horse", "out={root}/out"], "horse"),
    "a part of the condition that is not there": (
        "sample", ["ckpt=docs/zoo/mnist5k_ar", "condition.text=seven", "out={root}/out"], "text.*class",
    ),
    "no samples": ("sample", ["ckpt=docs/zoo/mnist5k_ar", "n=0", "out={root}/out"], "n=0"),
    "a tokenizer that shall be sampled": ("sample", ["ckpt=docs/zoo/mnist5k_vq", "out={root}/out"], "tokenizer"),
    "a sampler that does not fit": ("sample", ["ckpt=docs/zoo/mnist5k_ar", "sampler=maskgit", "out={root}/out"], "autoregressive"),
    "a folder of samples that cannot be written": ("sample", ["ckpt=docs/zoo/mnist5k_ar", "n=1", "out={root}/file/out"], "{root}/file"),
    "a run's folder that cannot be written": ("train", [*TINY, "paths.run={root}/file/run"], "{root}/file/run cannot be written"),
    "a cache that cannot be written": ("train", [*AR, *ZOO, "paths.cache={root}/file/cache"], "{root}/file/cache"),
    "no folder": ("train", folder("nowhere"), "{root}/nowhere"),
    "an empty folder": ("train", folder("empty"), "{root}/empty"),
    "a folder of broken files": ("train", folder("broken"), "none of the 12 images can be read"),
    "a decompression bomb alone": ("train", folder("bombs"), "none of the 1 images can be read"),
    "pictures of many sizes": ("train", folder("mixed"), "data.size="),
    "a manifest without its column": (
        "train", [*TINY, "data=manifest", "data.path={root}/list.csv", "paths.run={root}/run"], "path.*file",
    ),
    "a batch larger than the set": ("train", folder("good", "batch_size=64"), "batch_size=64.*9"),
    "no devices": ("train", [*TRAIN, "trainer.devices=0"], "trainer.devices=0"),
    "no such tar files": ("train", [*TINY, "data=shards", "data.shards={root}/a-{{0..1}}.tar", "paths.run={root}/run"], "a-0.tar"),
    "how long": ("train", [*TRAIN, "steps=null"], "budget="),
}  # fmt: skip


QUICK = (
    "a mistyped key", "no checkpoint to sample", "a class outside the classes", "a run's folder that cannot be written", "an empty folder",
    "a folder of broken files", "pictures of many sizes", "a manifest without its column", "a batch larger than the set", "no devices",
)  # fmt: skip
"""In the default suite; the others, which cost a second each, are held inside one process by the tests of their rooms too."""


def run(root: Path, cases: list[tuple[str, list[str], int | None]]) -> list[dict]:
    """Each (program, words, limit) in a process of its own -> its status, out and err."""
    given = [{"program": p, "words": [w.format(root=root) for w in words], "limit": limit} for p, words, limit in cases]
    (root / "cases.json").write_text(json.dumps(given))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(ROOT / "tests" / "command_line.py"), str(root / "cases.json"), str(root / "answers.json")]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((root / "answers.json").read_text())


def answers(root: Path, names: list[str]) -> dict[str, dict]:
    return dict(zip(names, run(root, [(*CASES[name][:2], None) for name in names])))


CUT = ["data=folder", "data.path={root}/cut", "data.size=16", "data.max_broken=0.2", "data.held_out=0.25", "batch_size=4"]
FINE: dict[str, tuple[str, list[str], None]] = {
    "tokenizer": ("train", [*TINY, *CUT, "paths.run={root}/survived"], None),
    "generator": (
        "train",
        [*QUIET, *SMALL, *CUT, "task=generator", "tokenizer=from_bundle", "tokenizer.ckpt={root}/survived/bundle", "task.pictures=2",
         "paths.run={root}/new", "paths.cache={root}/cut_cache"],
        None,
    ),
    "samples": ("sample", ["ckpt={root}/new/bundle", "n=2", "out={root}/samples"], None),
}  # fmt: skip
"""A folder without classes, with a truncated picture, from the tokenizer to samples."""


@pytest.fixture(scope="module")
def quick(root) -> dict[str, dict]:
    return dict(zip([*QUICK, *FINE], run(root, [*((*CASES[name][:2], None) for name in QUICK), *FINE.values()])))


@pytest.fixture(scope="module")
def others(root) -> dict[str, dict]:
    return answers(root, [name for name in CASES if name not in QUICK])


@pytest.mark.parametrize("name", QUICK)
def test_a_mistake_is_one_line(root, quick, name):
    check(root, quick[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in QUICK])
def test_every_mistake_is_one_line(root, others, name):
    check(root, others[name], name)


def check(root: Path, said: dict, name: str) -> None:
    wanted = CASES[name][2].format(root=re.escape(str(root)))
    lines = said["err"].splitlines()
    assert said["status"] == 2 and len(lines) == 1 and lines[0].startswith("gentok: "), said
    assert re.search(wanted, lines[0]), lines[0]
    assert "Traceback" not in said["out"] + said["err"]
    assert not (root / "run" / "checkpoints").exists(), "it trained"


# ------------------------------------------------------------------------------------------------- what is skipped, and said


def test_a_truncated_picture_is_skipped_counted_and_listed(root, quick):
    assert quick["tokenizer"]["status"] == 0 and "Traceback" not in quick["tokenizer"]["err"], quick["tokenizer"]
    skipped = json.loads((root / "survived" / "metrics.json").read_text())["skipped"]
    (split,) = skipped
    assert skipped[split]["count"] == 1 and skipped[split]["files"] == [str(root / "cut" / "5.jpg")] and skipped[split]["of"] in (3, 9)
    assert f"1 of {skipped[split]['of']} items of {split} could not be read" in quick["tokenizer"]["out"]
    bundle = (root / "survived" / "bundle" / "bundle.json").read_text()
    assert "5.jpg" not in bundle, "names of a user's files are handed on"


def test_pictures_without_classes_go_all_the_way_to_samples(root, quick):
    """The defaults recommend guidance, which a model without a condition does not know."""
    assert [quick[name]["status"] for name in FINE] == [0, 0, 0], [quick[name] for name in FINE]
    assert len(list((root / "samples").glob("0*.png"))) == 2 and list((root / "new" / "pictures").glob("samples_*.png"))


def test_the_report_lists_what_was_skipped(root, quick):
    from gentok.report.__main__ import write_report

    text = write_report(root / "survived").read_text()
    assert "Skipped files" in text and str(root / "cut" / "5.jpg") in text


# ---------------------------------------------------------------------------------------------------- a disk that fills up


TOKENS = [*AR, *ZOO, "generator.width=64", "paths.run={root}/full_{what}", "paths.cache={root}/full_cache_{what}"]
FULL = {  # the largest file that may be written, in bytes: behind it, the disk is full
    "the first file of a run": ("train", [*TINY, "paths.run={root}/full_run"], 10),
    "a token shard": ("train", [w.replace("{what}", "shard") for w in TOKENS] + ["limit_items=2000"], 100_000),
    "a checkpoint": ("train", [*TINY, "trainer.checkpoint_every=1", "limit_items=64", "paths.run={root}/full_checkpoint"], 60_000),
    "samples": ("sample", ["ckpt=docs/zoo/mnist5k_ar", "n=1", "out={root}/full_samples"], 100),
}


@pytest.fixture(scope="module")
def full(root) -> dict[str, dict]:
    return dict(zip(FULL, run(root, list(FULL.values()))))


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_is_one_line(full, name):
    said = full[name]
    lines = [line for line in said["err"].splitlines() if line.startswith("gentok: ")]
    assert said["status"] == 2 and len(lines) == 1 and "Traceback" not in said["err"], said
    assert re.search("(cannot|could not) be written.*File too large", lines[0]), lines[0]


@pytest.mark.slow
def test_shards_of_another_tokenizer_are_refused_in_a_line(root):
    """Under the name that this tokenizer's would have: somebody has copied them."""
    import torch

    from gentok.bundle import build_tokenizer, save, stamp

    for seed in (0, 1):
        config = {
            "_target_": "gentok.tokenizers.vqgan.VQGAN", "media_shape": [1, 32, 32], "width": 8, "multipliers": [1, 1, 1, 1],
            "codebook": {"_target_": "gentok.codebooks.fsq.FSQ", "values": [3, 3], "width": 8},
        }  # fmt: skip
        torch.manual_seed(seed)
        tokenizer = build_tokenizer(config).eval()
        stamp(tokenizer, config)
        save(root / f"tokenizer{seed}", tokenizer=tokenizer, tokenizer_config=config)

    def words(seed: int) -> list[str]:
        kept = [w for w in AR if not w.startswith("paths.")]
        return [*kept, "tokenizer=from_bundle", f"tokenizer.ckpt={root}/tokenizer{seed}", f"paths.run={root}/other{seed}",
                f"paths.cache={root}/other_cache{seed}"]  # fmt: skip

    both = run(root, [("train", words(0), None), ("train", words(1), None)])
    assert [said["status"] for said in both] == [0, 0], both
    for ours, theirs in zip(sorted((root / "other_cache0").glob("*.safetensors")), sorted((root / "other_cache1").glob("*.safetensors"))):
        theirs.write_bytes(ours.read_bytes())
    (said,) = run(root, [("train", words(1), None)])
    lines = [line for line in said["err"].splitlines() if line.startswith("gentok: ")]
    assert said["status"] == 2 and len(lines) == 1 and "another tokenizer" in lines[0] and "Traceback" not in said["err"], said
