"""A disk that is full, or may not be written: one line, nothing of before is lost, and the run goes on when there is space."""

import errno
import os
import re

import pytest
import torch
from disks import Ending, filled, free, small_disk
from ten_ways import permissions_count
from test_output_files import sampled
from test_run_folder import contents, run

from gentok.cli import compose
from gentok.sample_files import sample_to_folder
from gentok.training.checkpoint import WholeFiles

EVERY = ["steps=3", "trainer.checkpoint_every=1", "trainer.log_every=1"]


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("undisturbed") / "run", *EVERY)


def one_line(error, pattern="No space left on device"):
    assert isinstance(error, OSError) and "\n" not in str(error) and re.search(pattern, str(error)), error


# ---------------------------------------------------------------------------------------------------- at the file layer


@pytest.mark.parametrize("where", ["written", "synced"])
def test_a_disk_that_is_full_at_the_second_checkpoint_costs_one_step(undisturbed, tmp_path, monkeypatch, where):
    whole = (undisturbed / "checkpoints" / "last.ckpt").stat().st_size
    disk, sync, count = Ending(int(1.5 * whole)), os.fsync, iter(range(99))
    if where == "written":
        monkeypatch.setattr("gentok.training.checkpoint.open", disk, raising=False)
    else:  # where a disk that delays its writing says it
        save = WholeFiles.save_checkpoint

        def full(handle):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def saved(self, *args, **options):
            os.fsync = sync if next(count) == 0 else full
            try:
                return save(self, *args, **options)
            finally:
                os.fsync = sync

        monkeypatch.setattr(WholeFiles, "save_checkpoint", saved)
    with pytest.raises(OSError) as found:
        run(tmp_path / "run", *EVERY)
    one_line(found.value, "last.ckpt cannot be written .No space left on device.; the one of before is untouched")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1
    monkeypatch.undo()
    assert same(run(tmp_path / "run", *EVERY, "resume=auto"), undisturbed)


# ------------------------------------------------------------------------------------------------------- real full disks


@pytest.mark.parametrize("share", [0.15, 0.5, 0.8, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.05, 0.3, 0.4, 0.6, 0.7, 0.9))])
def test_a_run_on_a_disk_that_fills_up_ends_with_a_line_and_goes_on(undisturbed, tmp_path, share):
    need = sum(path.stat().st_size for path in undisturbed.rglob("*") if path.is_file())
    with small_disk(tmp_path / "disk", 4 * need + (1 << 20)) as disk:
        with filled(disk, int(share * need)), pytest.raises(OSError) as found:
            run(disk / "run", *EVERY)
        one_line(found.value)
        last = disk / "run" / "checkpoints" / "last.ckpt"
        if last.exists():
            assert 1 <= torch.load(last, weights_only=True)["global_step"] <= 3
        assert same(run(disk / "run", *EVERY, "resume=auto", "overwrite=true"), undisturbed)


@pytest.mark.parametrize("share", [0.0, 0.6, 0.95])
def test_samples_on_a_full_disk_leave_those_of_before(tmp_path, share):
    with small_disk(tmp_path / "disk", 1 << 24) as disk:
        out, before = disk / "out", free(disk)
        sampled(out, "n=8", "condition=3")
        need, old = before - free(disk), contents(out)
        with filled(disk, int(share * need)):
            with pytest.raises(OSError) as found:
                sample_to_folder(compose("sample", ["ckpt=mnist5k_masked", "sampler=maskgit", "sampler.steps=1", f"out={out}", "n=16"]))
            one_line(found.value, r"out.*No space left on device.*out=FOLDER")
            now = contents(out)
            assert {name: now.get(name) for name in old} == old
        assert "0015.png" in sampled(out, "n=16")


# ----------------------------------------------------------------------------------------------------- read-only folders


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    with permissions_count():
        with pytest.raises(OSError) as found:
            run(tmp_path / "closed" / "run", "steps=1")
        one_line(found.value, "closed/run cannot be written .Permission denied.: set paths.root or paths.run")
        with pytest.raises(OSError) as found:
            run(tmp_path / "closed", "steps=1")
        one_line(found.value, "closed cannot be written .Permission denied.: set paths.root or paths.run")
        with pytest.raises(OSError) as found:
            sampled(tmp_path / "closed", "n=1")
        one_line(found.value, "closed cannot be written.*out=FOLDER")
    assert not list((tmp_path / "closed").iterdir())


def test_a_folder_that_becomes_read_only_is_one_line(undisturbed, tmp_path, monkeypatch):
    save = WholeFiles.save_checkpoint

    def saved(self, checkpoint, path, *args, **options):
        if checkpoint["global_step"] == 2:
            os.chmod(os.path.dirname(path), 0o555)
        return save(self, checkpoint, path, *args, **options)

    monkeypatch.setattr(WholeFiles, "save_checkpoint", saved)
    with permissions_count(), pytest.raises(OSError) as found:
        run(tmp_path / "run", *EVERY)
    one_line(found.value, "checkpoint .*checkpoints.*cannot be written")
    os.chmod(tmp_path / "run" / "checkpoints", 0o755)
    monkeypatch.undo()
    assert same(run(tmp_path / "run", *EVERY, "resume=auto"), undisturbed)
