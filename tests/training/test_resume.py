"""A run that was killed and resumed ends, to the bit, where it would have ended; and what cannot be resumed is answered in a line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from resume_kit import CASES, HALF, SMALL, STEPS, TOKENIZER, configured, curves, different, killed_at, last, run, state

import gentok.training.run as entry
from gentok.bundle import load
from gentok.training.loader import training_loader
from gentok.training.run import train

pytest.importorskip("mlxtend")


def by_step(folder: Path) -> dict[str, dict[str, str]]:
    """What was logged of each step; rows of one step joined, since of accumulated batches only the last knows all (the others show values
    of the step before)."""
    joined: dict[str, dict[str, str]] = {}
    for row in curves(folder):
        joined.setdefault(row["step"], {}).update(row)
    return joined


def both(root: Path, name: str, *more: str) -> tuple[Path, Path]:
    """The folders of a run that was left alone, and of one that died two steps behind its checkpoint and was resumed."""
    words, folder = CASES[name], name.replace(" ", "_")
    whole = run(root, folder, words, *more)
    with killed_at(HALF + 2):
        run(root, folder + "_killed", words, *more)
    assert last(root / (folder + "_killed"))["global_step"] == HALF
    return whole, run(root, folder + "_killed", words, *more, "resume=auto")


QUICK = ("vqgan with a discriminator", "masked from tokens")
"""Cases of the default suite, which have, with test_killed.py's, all that a run must remember between them."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES])
def test_a_killed_and_resumed_run_is_the_run(root, name):
    whole, resumed = both(root, name)
    assert last(whole)["global_step"] == STEPS
    assert different(state(whole), state(resumed)) == []
    ours, theirs = load(whole / "bundle"), load(resumed / "bundle")
    assert ours.spec == theirs.spec
    if ours.generator is not None:
        assert different(dict(ours.generator.state_dict()), dict(theirs.generator.state_dict())) == []
    assert by_step(whole) == by_step(resumed)


@pytest.mark.parametrize("forgotten", ["average", *(pytest.param(name, marks=pytest.mark.slow) for name in ("position", "seed"))])
def test_the_comparison_sees_what_is_forgotten(root, forgotten, monkeypatch):
    """Else the property above would hold for any run."""
    if forgotten == "position":
        import gentok.training.loader as loader

        monkeypatch.setattr(loader, "training_loader", lambda *a, start=0, **k: training_loader(*a, start=0, **k))
    elif forgotten == "average":
        monkeypatch.setattr("lightning.pytorch.callbacks.WeightAveraging.on_load_checkpoint", lambda *a: None)
    else:
        monkeypatch.setattr("gentok.training.module.GentokModule.on_train_batch_start", lambda self, batch, batch_idx: None)
    name = "residual of the library" if forgotten == "seed" else "vq by averages"
    monkeypatch.setitem(CASES, forgotten, CASES[name])
    whole, resumed = both(root, forgotten)
    assert different(state(whole), state(resumed))


# ------------------------------------------------------------------------------------------------- what resume= may mean


def refused(config: dict) -> str:
    with pytest.raises((ValueError, OSError)) as error:
        train(config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def done(root) -> Path:
    """The folder of a run that has ended."""
    return run(root, "done", SMALL)


def test_a_run_that_has_ended_only_writes_its_bundle_again(root, done, capsys):
    before, bundle = (done / "checkpoints" / "last.ckpt").read_bytes(), load(done / "bundle")
    shutil.rmtree(done / "bundle")
    run(root, "done", SMALL, "resume=auto")
    assert (done / "checkpoints" / "last.ckpt").read_bytes() == before
    again = load(done / "bundle")
    assert again.spec == bundle.spec and f"{STEPS} steps" in capsys.readouterr().out


def test_resume_takes_a_run_or_a_file_and_goes_on_in_another_folder(root, done):
    for i, path in enumerate((done, done / "checkpoints", done / "checkpoints" / "last.ckpt")):
        other = run(root, f"other{i}", SMALL, f"resume={path}", f"steps={STEPS + 1}")
        assert last(other)["global_step"] == STEPS + 1
        assert {int(row["step"]) for row in curves(other)} <= {STEPS, STEPS + 1}


def test_auto_begins_anew_where_there_is_nothing(root, capsys):
    folder = run(root, "anew", SMALL, "resume=auto", "steps=1")
    assert last(folder)["global_step"] == 1 and "new run" in capsys.readouterr().out


def test_auto_passes_over_a_damaged_file(root, done):
    folder = root / "damaged"
    shutil.copytree(done, folder)
    (folder / "checkpoints" / "zz.ckpt").write_bytes(b"PK no checkpoint")
    with pytest.warns(UserWarning, match="zz.ckpt"):
        run(root, "damaged", SMALL, "resume=auto", f"steps={STEPS + 1}")
    assert last(folder)["global_step"] == STEPS + 1


@pytest.mark.parametrize(
    "words, answer",
    [
        (["optimizer.lr=1e-4"], "optimizer.lr=0.0001 (there: 0.006).*init_from"),
        (["tokenizer.width=16"], "tokenizer.width=16"),
        (["batch_size=32", "seed=5"], "batch_size=32.*seed=5|seed=5.*batch_size=32"),
        (["callbacks.ema=null"], "callbacks.ema=none"),
        (["data.held_out=3"], "4980 training items, here are 4970"),
        (["codebook=fsq", "~experiment"], "codebook"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(root, done, words, answer):
    base = [*TOKENIZER] if "~experiment" in words else SMALL
    message = refused(configured(root, "refused", base, f"resume={done}", *[w for w in words if w[0] != "~"]))
    assert re.search(answer.replace("(", "\\(").replace(")", "\\)"), message), message


def test_a_generator_does_not_go_on_over_another_tokenizer(root):
    words = CASES["masked from media"]
    run(root, "own", words, "steps=1")
    other = run(root, "another_tokenizer", [*SMALL, "seed=3"], "steps=1")
    message = refused(configured(root, "foreign", words, f"resume={root / 'own'}", f"tokenizer.ckpt={other / 'bundle'}"))
    assert "tokenizer.ckpt" in message


def test_a_path_without_a_checkpoint_is_answered_in_a_line(root, done, tmp_path):
    (tmp_path / "cut.ckpt").write_bytes((done / "checkpoints" / "last.ckpt").read_bytes()[:5000])
    assert "init_from=" in refused(configured(root, "refused", SMALL, f"resume={done / 'bundle'}"))
    assert "last.ckpt" in refused(configured(root, "refused", SMALL, f"resume={done / 'checkpoints' / 'lost.ckpt'}"))
    assert "no folder" in refused(configured(root, "refused", SMALL, f"resume={tmp_path / 'no' / 'where'}"))
    assert "damaged" in refused(configured(root, "refused", SMALL, f"resume={tmp_path / 'cut.ckpt'}"))


# --------------------------------------------------------------------------------------------------- time and files


def test_the_time_used_is_remembered(root, monkeypatch):
    """On a clock that gains a second whenever it is read: a budget is used up by both parts of a run together."""
    import gentok.training.module as module

    ticks = iter(range(10**9))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(ticks)))
    words = [*SMALL, "steps=null", "budget=60s", "trainer.validate_every=1000"]
    with killed_at(HALF + 1):
        run(root, "clock", words)
    used = last(root / "clock")["training"]["elapsed"]
    assert 0 < used < 60
    folder = run(root, "clock", words, "resume=auto")
    assert 60 <= last(folder)["training"]["elapsed"] < 70
    assert last(folder)["global_step"] > HALF


def test_metrics_are_kept_and_what_is_done_again_is_logged_once(root):
    with killed_at(HALF + 2):
        run(root, "metrics", SMALL)
    with open(root / "metrics" / "metrics.csv", "a") as file:
        file.write("0.1,0.2")  # a kill in the middle of a row
    folder = run(root, "metrics", SMALL, "resume=auto")
    assert [int(r["step"]) for r in curves(folder) if "loss" in r] == list(range(STEPS))


def test_a_full_disk_is_said_and_leaves_the_checkpoint_of_before(tmp_path, monkeypatch):
    import errno

    from gentok.training.checkpoint import WholeFiles

    path = tmp_path / "last.ckpt"
    WholeFiles().save_checkpoint({"step": 1}, path)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left on device.*untouched"):
        WholeFiles().save_checkpoint({"step": 2}, path)
    assert torch.load(path) == {"step": 1} and [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_device_is_said(monkeypatch, tmp_path):
    from gentok.training.checkpoint import WholeFiles

    (tmp_path / f".last.{entry.os.getpid()}.writing.ckpt").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        WholeFiles().save_checkpoint({"x": torch.zeros(100_000)}, tmp_path / "last.ckpt")
    assert not (tmp_path / "last.ckpt").exists()
