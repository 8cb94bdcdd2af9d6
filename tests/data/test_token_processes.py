"""Token files of several processes, of killed ones, and on full disks."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from data_kit import CLASSES, PixelTokenizer, pictures
from token_writer import ITEMS

from gentok.atomic import whole_file
from gentok.data.augment import Augment
from gentok.data.datasets import MemoryDataset
from gentok.data.growing_arrays import GrowingArrays
from gentok.data.sharded_encoding import encode_together
from gentok.data.token_cache import alive_path, encode_set, join, share_path
from gentok.data.token_dataset import TokenDataset
from gentok.errors import FormatError
from gentok.types import Batch, Line, Tokens, TokenSpec

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
QUIET = {"batch_size": 4, "progress": False}


def writer(folder, *words):
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "token_writer.py"), str(folder), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


# ------------------------------------------------------------------------------------------------------------------ kills


def kill_at_random_moments(folder, moments):
    """Each process is killed at a random moment of endless writing, behind its first file; the file must be whole every time."""
    draw = random.Random(0)
    for _ in range(moments):
        process = writer(folder)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        time.sleep(draw.uniform(0.0, 0.5))
        process.kill()
        process.communicate()
        codes = TokenDataset(folder / "t.safetensors", PixelTokenizer(60000).spec).__getitems__(range(ITEMS)).tokens.codes
        assert codes.shape == (ITEMS, 1, 16) and len(codes.unique()) == 1
        assert len(list(folder.iterdir())) <= 3, "the next writer removes what the last one left: a folder and a file that grow"


def test_kill_9_while_writing_leaves_a_whole_file(tmp_path):
    kill_at_random_moments(tmp_path, 3)


@pytest.mark.slow
def test_kill_9_at_20_random_moments_leaves_a_whole_file(tmp_path):
    kill_at_random_moments(tmp_path, 20)


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        dead = Path(file.name)
        raise KeyboardInterrupt
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    gone = finished.pid
    left = dead.with_name(dead.name.replace(f".{os.getpid()}.", f".{gone}."))
    living = dead.with_name(dead.name.replace(f".{os.getpid()}.", f".{os.getppid()}."))
    for other in (left, living):
        other.write_bytes(b"half")
    with whole_file(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole" and not left.exists() and living.exists()


# ------------------------------------------------------------------------------------------------------------------ disks


def test_a_disk_without_space_is_said_before_anything_is_encoded(tmp_path, monkeypatch):
    class Never(PixelTokenizer):
        def encode(self, media, lengths=None, rng=None):
            pytest.fail("encoded")

    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"needs .* MB, .* left: free some space.*paths\.cache") as error:
        encode_set(Never(), pictures(), tmp_path / "t.safetensors", **QUIET)
    assert "\n" not in str(error.value)


def test_a_disk_that_fills_up_is_one_clear_line_and_the_last_file_stays(tmp_path, monkeypatch):
    path = encode_set(PixelTokenizer(), pictures(), tmp_path / "t.safetensors", **QUIET)
    good = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)  # where a disk that delays its writing says it
    with pytest.raises(OSError, match=r"could not be written \(No space left on device\): free some space") as error:
        encode_set(PixelTokenizer(fingerprint="bbbb"), pictures(), path, **QUIET)
    assert "\n" not in str(error.value) and path.read_bytes() == good and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_encoded(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be made.*paths\.cache") as error:
        encode_set(PixelTokenizer(), pictures(), tmp_path / "file" / "t.safetensors", **QUIET)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------- processes


class Patchy(MemoryDataset):
    """Items 2..5 cannot be read: the next readable one stands in."""

    def __getitems__(self, draws):
        batch = super().__getitems__([6 if 2 <= i < 6 else i for i in draws])
        return Batch(batch.media, batch.index, batch.condition)


@pytest.mark.parametrize("world", [2, 3, 5, 20])
def test_joined_shares_are_byte_for_byte_what_one_process_writes(tmp_path, world):
    source = pictures()
    data = Patchy(source.media, source.labels, CLASSES, {"data": "patchy"})
    how = {"views": 2, "augment": Augment(shift=1), "seed": 3, **QUIET}
    one = encode_set(PixelTokenizer(), data, tmp_path / "one.safetensors", **how)
    path = tmp_path / "many.safetensors"
    for rank in reversed(range(world)):
        assert encode_set(PixelTokenizer(), data, path, rank=rank, world=world, **how) == share_path(path, rank, world)
    assert not path.exists()
    assert join(path, world) == path and path.read_bytes() == one.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["many.safetensors", "one.safetensors"]


def test_shares_of_different_settings_are_not_joined(tmp_path):
    path = tmp_path / "t.safetensors"
    encode_set(PixelTokenizer(), pictures(), path, rank=0, world=2, **QUIET)
    with pytest.raises(FileNotFoundError, match="1-of-2"):
        join(path, 2)
    encode_set(PixelTokenizer(fingerprint="bbbb"), pictures(), path, rank=1, world=2, **QUIET)
    with pytest.raises(FormatError, match="are not shares of one file"):
        join(path, 2)
    assert not path.exists()


def test_processes_meet_without_a_process_group(tmp_path):
    processes = [writer(tmp_path, rank, 2) for rank in range(2)]
    for process in processes:
        out, problems = process.communicate(timeout=1200)
        assert out.strip() == str(tmp_path / "t.safetensors"), problems
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]
    data = TokenDataset(tmp_path / "t.safetensors")
    assert len(data) == ITEMS and torch.equal(data.__getitems__([0, ITEMS - 1]).index, torch.tensor([0, ITEMS - 1]))


def test_a_share_that_a_killed_run_has_left_is_used(tmp_path):
    path = tmp_path / "t.safetensors"
    encode_set(PixelTokenizer(), pictures(), path, rank=0, world=2, **QUIET)

    class Once(PixelTokenizer):
        rows = 0

        def encode(self, media, lengths=None, rng=None):
            Once.rows += len(media)
            return super().encode(media)

    other = threading.Thread(target=encode_together, args=(Once(), pictures(), path), kwargs={"rank": 1, "world": 2, **QUIET})
    other.start()
    encode_together(Once(), pictures(), path, rank=0, world=2, **QUIET)
    other.join()
    assert Once.rows == 6 and len(TokenDataset(path)) == 11


def test_who_waits_in_vain_says_for_whom(tmp_path):
    for rank, missing in ((0, r"t\.1-of-2\.safetensors"), (1, r"t\.safetensors")):
        with pytest.raises(TimeoutError, match=rf"waited \d+ s .* for {missing} in .*paths\.cache") as error:
            encode_together(PixelTokenizer(), pictures(), tmp_path / str(rank) / "t.safetensors", rank=rank, world=2, patience=0.3, **QUIET)
        assert isinstance(error.value, OSError) and "\n" not in str(error.value)


def test_who_waits_for_a_process_that_is_killed_says_so_at_once(tmp_path):
    class Stuck(PixelTokenizer):
        def encode(self, media, lengths=None, rng=None):
            time.sleep(600)

    path = tmp_path / "t.safetensors"
    pid = os.fork()
    if pid == 0:
        encode_set(Stuck(), pictures(), path, rank=1, world=2, **QUIET)
        os._exit(0)
    while not alive_path(path, 1, 2).exists():
        time.sleep(0.01)
    killer = threading.Timer(1.0, lambda: (os.kill(pid, signal.SIGKILL), os.waitpid(pid, 0)))
    killer.start()
    with pytest.raises(OSError, match=r"process 1 of 2 is gone, which encoded its share of t\.safetensors") as error:
        encode_together(PixelTokenizer(), pictures(), path, rank=0, world=2, **QUIET)
    killer.join()
    assert "\n" not in str(error.value)
    with pytest.raises(TimeoutError):  # what an earlier run has left says nothing
        encode_together(PixelTokenizer(), pictures(), path, rank=0, world=2, patience=0.3, **QUIET)


@pytest.mark.parametrize("count", [40, 160])
def test_a_set_of_any_length_is_encoded_in_flat_memory(tmp_path, count):
    """Of 256 kB an item; no more than a few of them are held."""
    held = most_held(tmp_path / "t.safetensors", count)
    assert held < 4 << 20
    assert len(TokenDataset(tmp_path / "t.safetensors")) == count


def test_one_that_keeps_what_it_encodes_would_be_seen(tmp_path, monkeypatch):
    class Keeping(GrowingArrays):
        everything: ClassVar[list] = []

        def add(self, pieces):
            self.everything.append({name: piece.copy() for name, piece in pieces.items()})
            super().add(pieces)

    monkeypatch.setattr("gentok.data.token_cache.GrowingArrays", Keeping)
    assert most_held(tmp_path / "t.safetensors", 40) > 8 << 20


def most_held(path, count):
    """Bytes of numpy and Python at the most, over what was held before."""

    class Wide(PixelTokenizer):
        def __init__(self):
            super().__init__()
            self.spec = TokenSpec((200,), Line(1 << 18), media_shape=(1, 4, 4), encode_fingerprint="wide")

        def encode(self, media, lengths=None, rng=None):
            return Tokens(torch.ones(len(media), 1, 1, dtype=torch.int64).expand(-1, 1, 1 << 18), self.spec)

    tracemalloc.start()
    encode_set(Wide(), pictures(count), path, batch_size=1, progress=False)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return held


def test_a_set_of_which_nothing_can_be_read_is_said(tmp_path):
    class Nothing(MemoryDataset):
        def __getitems__(self, draws):
            batch = super().__getitems__(draws)
            return Batch(batch.media, batch.index + 1, batch.condition)

    data = Nothing(pictures().media, pictures().labels, CLASSES, {"data": "nothing"})
    with pytest.raises(ValueError, match="none of the 11 items can be read"):
        encode_set(PixelTokenizer(), data, tmp_path / "t.safetensors", **QUIET)
    for rank in range(2):
        encode_set(PixelTokenizer(), data, tmp_path / "t.safetensors", rank=rank, world=2, **QUIET)
    with pytest.raises(ValueError, match="no item of the set can be read"):
        join(tmp_path / "t.safetensors", 2)
