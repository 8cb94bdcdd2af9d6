"""A shard that is missing, or disappears while a run reads it, is named in one line."""

import pytest
from data_shards import two_shards
from test_run_folder import refused, run

import gentok.data.shard_source as source
from gentok.training.tokenizer_task import TokenizerTask


def data(urls, *words):
    return ["data=shards", f"data.shards=[{','.join(urls)}]", "data.size=8", "data.held_out=0.2", *words]


def lost_at(monkeypatch, path, step):
    """The file is removed when this step begins; one shard is kept open at a time, as of many."""
    monkeypatch.setattr(source, "_OPEN", 1)
    begin = TokenizerTask.on_train_batch_start

    def without(self, batch, batch_idx):
        if self.global_step == step:
            path.unlink(missing_ok=True)
        begin(self, batch, batch_idx)

    monkeypatch.setattr(TokenizerTask, "on_train_batch_start", without)


def test_a_missing_shard_is_named(tmp_path):
    urls = two_shards(tmp_path)
    (tmp_path / "s-1.tar").unlink()
    refused(tmp_path / "run", "steps=1", data=data(urls), says=r"there is no shard .*s-1\.tar; see data\.shards")


def test_a_shard_that_disappears_during_a_run_is_named(tmp_path, monkeypatch):
    urls = two_shards(tmp_path)
    lost_at(monkeypatch, tmp_path / "s-1.tar", 1)
    says = r"of \d+ images cannot be read, more than the share.*s-1\.tar:.*the shard .*s-1\.tar cannot be opened: No such file"
    refused(tmp_path / "run", "steps=50", data=data(urls), says=says)


def test_where_many_may_be_broken_the_others_are_trained_on(tmp_path, monkeypatch):
    urls = two_shards(tmp_path)
    lost_at(monkeypatch, tmp_path / "s-1.tar", 1)
    folder = run(tmp_path / "run", "steps=20", data=data(urls, "data.max_broken=0.9"))
    assert "s-1.tar" in (folder / "metrics.json").read_text()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_is_no_shard_is_named(tmp_path, suffix):
    path = tmp_path / f"s.tar{suffix}"
    path.write_bytes(b"\x1f\x8b" * 600 if suffix else b"text" * 300)
    refused(tmp_path / "run", "steps=1", data=data([str(path)]), says=r"the shard .*s\.tar.* is no tar file")
