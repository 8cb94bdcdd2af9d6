"""A run's folder: nothing in it is lost unasked, one run trains in it at a time, and a run goes on with the data that it began with."""

import fcntl
import json
import os
import re
import shutil
import signal
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from gentok.bundle.files import FORMAT
from gentok.cli import compose
from gentok.errors import ConfigError, FormatError
from gentok.training.processes import lost_process
from gentok.training.resume import find
from gentok.training.run import train
from gentok.training.run_folder import claimed


def slow(value):
    """One more of a kind that a quick test holds already."""
    return pytest.param(value, marks=pytest.mark.slow)


QUIET = ["print_config=false", "trainer=cpu", "trainer.precision=32-true", "trainer.progress_bar=false", "logger.tensorboard=false"]
SMALL = ["budget=null", "batch_size=4", "task.pictures=1", "tokenizer.width=4", "codebook.vocab_size=8", "codebook.dim=4"]
NOISE = ["data=noise", "data.items=16", "data.held_out=4", "data.size=8"]


def run(folder, *words, data=NOISE):
    return train(compose("config", [*QUIET, *SMALL, *data, f"paths.run={folder}", *words]))


def refused(folder, *words, says, data=NOISE, error=(ValueError, OSError)):
    with pytest.raises(error, match=says) as found:
        run(folder, *words, data=data)
    assert "\n" not in str(found.value)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run that has ended after two steps."""
    return run(tmp_path_factory.mktemp("done") / "run", "steps=2")


@pytest.fixture
def finished(done, tmp_path):
    return shutil.copytree(done, tmp_path / "run")


def test_a_finished_run_is_not_overwritten_unasked(finished):
    before = contents(finished)
    refused(finished, "steps=1", says="finished run.*paths.run=.*resume=auto.*overwrite=true")
    refused(finished, "steps=1", f"resume={shutil.copy(finished / 'checkpoints' / 'last.ckpt', finished.parent)}", says="finished run")
    assert contents(finished) == before


def test_nor_is_one_that_was_stopped(finished):
    shutil.rmtree(finished / "bundle"), (finished / "metrics.json").unlink()
    refused(finished, "steps=1", says="a run that has not ended")


def test_overwrite_begins_anew_and_leaves_what_is_not_of_the_run(finished):
    (finished / "pictures" / "reconstructions_0009999.png").write_bytes(b"old")
    (finished / "notes.txt").write_text("mine")
    run(finished, "steps=1", "overwrite=true")
    assert json.loads((finished / "metrics.json").read_text())["step"] == 1 and (finished / "notes.txt").read_text() == "mine"
    assert not (finished / "pictures" / "reconstructions_0009999.png").exists()


@pytest.mark.parametrize(
    "words",
    [["freeze=[nothing]"], *map(slow, (["optimizer.lr=fast"], ["data.size=7"], ["init_from=nowhere"], ["codebook.dim=-3"]))],
    ids=str,
)
def test_a_failed_start_leaves_the_folder_as_it_was(finished, tmp_path, words):
    before = contents(finished)
    for more in (["overwrite=true"], ["resume=auto"]):
        with pytest.raises(Exception):  # noqa: B017 whatever the mistake is answered by
            run(finished, "steps=3", *words, *more)
        assert contents(finished) == before
    with pytest.raises(Exception):  # noqa: B017
        run(tmp_path / "new", "steps=1", *words)
    assert not (tmp_path / "new").exists()


def test_resume_auto_of_a_finished_run_says_so_and_more_steps_go_on(finished, capsys):
    run(finished, "steps=2", "resume=auto")
    assert re.search(r"has ended at step 2; more steps", capsys.readouterr().out)
    run(finished, "steps=3", "resume=auto")
    assert "has ended" not in capsys.readouterr().out and json.loads((finished / "metrics.json").read_text())["step"] == 3


# ------------------------------------------------------------------------------------------------- one at a time


def test_a_second_run_in_a_folder_is_refused_while_the_first_trains(tmp_path):
    """Of another process, which holds the folder until it is told to stop."""
    config, folder = {"overwrite": False}, tmp_path / "run"
    holds, stop = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        with claimed(folder, config, None):
            os.write(holds[1], b"x")
            os.read(stop[0], 1)
        os._exit(0)
    os.read(holds[0], 1)
    try:
        refused(folder, "steps=1", says=f"another run trains in .*process {pid}.*paths.run=")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        run(folder, "steps=1")  # the system has freed the lock
    finally:
        os.close(stop[1])


def test_a_second_run_of_the_same_process_is_refused_and_does_not_free_the_lock(tmp_path):
    with claimed(tmp_path / "run", {"overwrite": False}, None):
        refused(tmp_path / "run", "steps=1", says="another run trains in")
        pid = os.fork()
        if pid == 0:
            with open(tmp_path / "run" / ".lock", "a+") as file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    run(tmp_path / "run", "steps=1")


# ------------------------------------------------------------------------------------------ which checkpoint, which data


def resaved(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def test_auto_does_not_take_a_newer_or_damaged_checkpoint_for_none(finished):
    ckpt = finished / "checkpoints" / "last.ckpt"
    good = ckpt.read_bytes()
    resaved(ckpt, lambda c: c["gentok"].update(format=FORMAT + 1))
    before = contents(finished)
    refused(finished, "steps=3", "resume=auto", says="upgrade")
    refused(finished, "steps=3", "resume=auto", "overwrite=true", says="upgrade")
    assert contents(finished) == before
    ckpt.write_bytes(good[:-100])
    with pytest.warns(UserWarning, match="passes over"):
        refused(finished, "steps=3", "resume=auto", says="last.ckpt.*overwrite=true", error=FormatError)
    with pytest.warns(UserWarning, match="passes over"):
        run(finished, "steps=1", "resume=auto", "overwrite=true")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_auto_does_not_see_what_a_killed_process_had_begun_to_write(finished, first, share):
    """It is newer than last.ckpt, or was to be the first; cut off, or whole but not yet renamed."""
    ckpt, dead = finished / "checkpoints" / "last.ckpt", finished / "checkpoints" / ".last.4194304.writing.ckpt"
    content = ckpt.read_bytes()
    dead.write_bytes(content[: int(share * len(content))])
    if first:
        ckpt.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find("auto", finished) == (None if first else ckpt)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint") as error:
        find(str(finished / "checkpoints" / "other.ckpt"), finished)
    assert "writing" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(global_step="2"),
        lambda c: c["loops"].clear(),
        lambda c: next(iter(c["optimizer_states"][0]["state"].values())).update(exp_avg=torch.zeros(1, 1)),
        slow(lambda c: c["training"].update(items=-1)),
        slow(lambda c: c["hyper_parameters"].update(config=3)),
        slow(lambda c: c.pop("optimizer_states")),
        slow(lambda c: next(iter(c["optimizer_states"][0]["state"].values())).update(exp_avg_sq=torch.zeros(1).expand(4, 1, 3, 3))),
        slow(lambda c: c["state_dict"].popitem()),
    ],
)
def test_a_checkpoint_that_cannot_be_gone_on_with_is_one_line(finished, change):
    resaved(finished / "checkpoints" / "last.ckpt", change)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(finished, "steps=3", "resume=auto", says="last.ckpt|damaged")


def photos(root):
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng(i).integers(0, 255, (8, 8 + i % 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def other(path, size=(9, 9)):
    Image.fromarray(np.random.default_rng(99).integers(0, 255, size, dtype=np.uint8)).save(path)


CHANGES = {
    "all replaced": lambda root: [other(path, (10, 10)) for path in sorted(root.rglob("*.png"))],
    "one changed": lambda root: other(root / "cat" / "0.png"),
    "one renamed": lambda root: (root / "cat" / "0.png").rename(root / "cat" / "a.png"),
    "one of another class": lambda root: (root / "cat" / "0.png").rename(root / "dog" / "9.png"),
    "one deleted": lambda root: (root / "cat" / "0.png").unlink(),
    "one more": lambda root: other(root / "cat" / "99.png"),
}


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictured")
    data = photos(root / "photos")
    run(root / "run", "steps=1", data=folder(data))
    return root


def folder(path):
    return ["data=folder", f"data.path={path}", "data.size=8", "data.channels=1", "data.held_out=0.25"]


@pytest.mark.parametrize("name", [name if name in ("one changed", "one of another class") else slow(name) for name in CHANGES])
def test_changed_data_are_not_gone_on_with(pictured, tmp_path, name):
    root = shutil.copytree(pictured, tmp_path / "copy")
    CHANGES[name](root / "photos")
    before = contents(root / "run")
    refused(root / "run", "steps=2", "resume=auto", data=folder(root / "photos"), says="items|the data of the checkpoint.*init_from")
    assert contents(root / "run") == before


def test_the_same_data_elsewhere_are_gone_on_with_and_new_times_are_said(pictured, tmp_path):
    root = shutil.copytree(pictured, tmp_path / "copy")  # with their times
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module="lightning|torch")
        run(root / "run", "steps=2", "resume=auto", data=folder(root / "photos"))
    os.utime(root / "photos" / "cat" / "0.png", (1, 1))
    with pytest.warns(UserWarning, match="other times than when the run began"):
        run(root / "run", "steps=3", "resume=auto", data=folder(root / "photos"))


# ------------------------------------------------------------------------------------------------- other processes


@pytest.mark.parametrize(
    "error, says",
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "trainer.workers"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "trainer.workers"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2"), "another process"),
        (RuntimeError("[/__w/gloo/transport/tcp/pair.cc:5] Read error [::1]:2: Connection reset by peer."), "another process"),
        (torch.distributed.DistError("a rank is gone"), "another process"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_a_lost_process_is_one_line_and_other_errors_are_themselves(error, says):
    line = lost_process(error)
    assert line is None if says is None else says in line and "resume=auto" in line and "\n" not in line


def test_a_killed_loader_worker_is_one_line(tmp_path, monkeypatch):
    def killed(*args, **options):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr("gentok.training.tokenizer_task.TokenizerTask.training_step", killed)
    refused(tmp_path / "run", "steps=1", says="a loader worker was killed", error=OSError)


def test_every_row_of_metrics_is_on_the_disk_at_once(tmp_path):
    from gentok.training.metrics_file import MetricsFile

    log = MetricsFile(tmp_path)
    for step in range(3):
        log.log_metrics({"loss": 0.5}, step)
        assert len((tmp_path / "metrics.csv").read_text().splitlines()) == step + 2


def test_a_claim_needs_a_folder_that_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((ConfigError, OSError), match="paths.run"), claimed(tmp_path / "file" / "run", {"overwrite": False}, None):
        pass
