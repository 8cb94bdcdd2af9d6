import functools
import http.server
import io
import json
import logging
import pickle
import tarfile
import threading
from pathlib import Path

import pytest
import torch
from data_kit import encoded_picture, shard
from torch.utils.data import DataLoader

from gentok.cli import compose, shell_words
from gentok.data.cifar10 import CIFAR10
from gentok.data.datasets import identity
from gentok.data.image_files import read_image, read_pixels, to_media
from gentok.data.shards import Shards, expand_braces
from gentok.training.loader import training_loader


@pytest.fixture(autouse=True)
def indices(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gentok" / "shards"


def two(tmp_path, count=10, **options):
    return [str(shard(tmp_path / f"s-{n}.tar", count, first=n * count, **options)) for n in range(2)]


def picture(i):
    return to_media(torch.from_numpy(read_pixels(encoded_picture(seed=i)).copy()))


# ----------------------------------------------------------------------------------------------------------------- braces


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("a.tar", ["a.tar"]),
        ("a-{000..002}.tar", ["a-000.tar", "a-001.tar", "a-002.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{x,y}/{0..1}.tar", ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]),
        ("s3://b/{train,test}.tar", ["s3://b/train.tar", "s3://b/test.tar"]),
    ],
)
def test_braces_are_expanded(pattern, expected):
    assert expand_braces(pattern) == expected


@pytest.mark.parametrize("pattern", ["a-{000..}.tar", "a-{3..1}.tar", "a-{x}.tar", "a-{0..1.tar", "a}.tar"])
def test_braces_that_say_nothing_are_one_clear_line(pattern):
    with pytest.raises(ValueError, match=r"data\.shards=") as error:
        expand_braces(pattern)
    assert "\n" not in str(error.value)


def test_braces_work_on_the_command_line_quoted_or_expanded_by_the_shell():
    common = ["data=cifar10", "seed=1"]
    quoted = shell_words([*common, "data.shards=/p/c-{000..001}.tar", "data.held_out=/p/t.tar"])
    expanded = shell_words([*common, "data.shards=/p/c-000.tar", "data.shards=/p/c-001.tar", "data.held_out=/p/t.tar"])
    first, second = (compose("config", words)["data"] for words in (quoted, expanded))
    assert expand_braces(first["shards"]) == second["shards"] == ["/p/c-000.tar", "/p/c-001.tar"]
    assert first["held_out"] == second["held_out"] == "/p/t.tar"
    for word in ("data.shards='/p/{0..1}.tar'", "data.held_out=0.1", "data.shards=[a,b]", "seed=3"):
        assert shell_words([word]) == [word]


# ------------------------------------------------------------------------------------------------------------------ items


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_item_of_every_shard_is_there_with_its_class(tmp_path, format):
    data = Shards(two(tmp_path, format=format), held_out=0.2)
    assert data.media_shape == (3, 12, 12) and dict(data.condition_spec.parts)["class"].names == ("0", "1")
    assert len(data.train) == 16 and len(data.held_out) == 4
    seen = {}
    for part in (data.train, data.held_out):
        batch = part.__getitems__(range(len(part)))
        for i, name in enumerate(part.names):
            number = int(name.rsplit(":", 1)[1].removesuffix(".png"))
            seen[number] = name
            assert torch.equal(batch.media[i], picture(number)) and batch.condition.parts["class"].ids[i] == number % 2
    assert sorted(seen) == list(range(20)) and f"s-1.tar:{13:06d}.png" in seen[13]


def test_other_shards_are_held_out_and_memory_changes_nothing(tmp_path):
    train, test = two(tmp_path)
    lazy, kept = (Shards(train, held_out=test, in_memory=m) for m in (False, True))
    assert len(lazy.train) == len(lazy.held_out) == 10
    draws = [3, 13, 9, 0]
    one, two_ = lazy.train.__getitems__(draws), kept.train.__getitems__(draws)
    assert torch.equal(one.media, two_.media) and one.index.tolist() == two_.index.tolist() == [3, 3, 9, 0]
    assert lazy.train.description == kept.train.description


def test_captions_and_classes_come_from_text_or_fields(tmp_path):
    def more(i):
        return {"cls": None, "txt": f"number {i}".encode(), "json": json.dumps({"what": ("b", "a")[i % 2], "say": "x" * i}).encode()}

    path = shard(tmp_path / "s.tar", 6, more=more)
    data = Shards(str(path), held_out=0.3, label="json.what", captions="ids")
    parts = dict(data.condition_spec.parts)
    assert parts["class"].names == ("a", "b") and parts["text"].max_length == 8
    fields = Shards(str(path), held_out=0.3, label="json.what", captions="ids", caption="json.say")
    assert dict(fields.condition_spec.parts)["text"].alphabet == ("x",)
    assert Shards(str(path), held_out=0.3).condition_spec.parts == ()  # no member is called cls
    with pytest.raises(ValueError, match=r"no label 'json\.who'; they have: json\.say, json\.what, txt"):
        Shards(str(path), held_out=0.3, label="json.who")


def test_workers_and_processes_share_the_work_and_a_position_resumes(tmp_path):
    """Forked workers read through files of their own: with one shared position they would get each other's bytes."""
    data = Shards(two(tmp_path, 40), held_out=0.1).train
    data[0]  # the parent has opened a shard before the workers are forked
    seen = list(DataLoader(data, batch_size=3, collate_fn=identity, num_workers=2))
    assert torch.cat([b.index for b in seen]).tolist() == list(range(len(data)))
    one = iter(training_loader(data, 8, seed=3))
    whole = [next(one) for _ in range(12)]
    ranks = [iter(training_loader(data, 8, seed=3, workers=1, rank=r, world=2, start=5)) for r in range(2)]
    for batch in whole[5:9]:
        halves = [next(rank) for rank in ranks]
        assert torch.equal(torch.cat([h.media for h in halves]), batch.media)
        assert torch.equal(torch.cat([h.index for h in halves]), batch.index)


def test_a_source_can_be_sent_to_a_worker(tmp_path):
    data = Shards(two(tmp_path), held_out=0.2).train
    first = data[3].media
    sent = pickle.loads(pickle.dumps(data.source))
    assert sent.open(3) == data.source.open(3) and torch.equal(data[3].media, first)


# ------------------------------------------------------------------------------------------------------------------ index


def test_a_shard_is_indexed_once_and_again_when_it_changes(tmp_path, indices, monkeypatch):
    urls = two(tmp_path)
    Shards(urls, held_out=0.2)
    first = {p: p.stat().st_mtime_ns for p in indices.iterdir()}
    assert len(first) == 2
    with monkeypatch.context() as patch:
        patch.setattr("gentok.data.tar_index._read", lambda *_: pytest.fail("indexed again"))
        word = Shards(urls, held_out=0.2).train.description
    assert first == {p: p.stat().st_mtime_ns for p in indices.iterdir()}
    shard(tmp_path / "s-0.tar", 11)
    data = Shards(urls, held_out=0.2)
    assert len(data.train) + len(data.held_out) == 21 and data.train.description["content"] != word["content"]


def test_a_damaged_or_unwritable_index_is_made_anew(tmp_path, indices):
    urls = two(tmp_path)
    Shards(urls, held_out=0.2)
    for kept in indices.iterdir():
        kept.write_bytes(kept.read_bytes()[:50])
    assert len(Shards(urls, held_out=0.2).train) == 16
    (tmp_path / "file").write_text("")
    assert len(Shards(urls, held_out=0.2, index=str(tmp_path / "file" / "below")).train) == 16


# ----------------------------------------------------------------------------------------------------------------- urls


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """A file server that knows byte ranges."""

    def do_GET(self):
        data = Path(self.translate_path(self.path)).read_bytes()
        first, last = self.headers.get("Range", f"bytes=0-{len(data) - 1}").removeprefix("bytes=").split("-")
        part = data[int(first) : int(last or len(data) - 1) + 1]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *args):
        pass


def test_shards_behind_a_url_are_read_also_by_workers(tmp_path):
    pytest.importorskip("aiohttp")
    two(tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Ranges, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/s-{{0..1}}.tar"
        data = Shards(url, held_out=0.2)
        local = Shards(str(tmp_path / "s-{0..1}.tar"), held_out=0.2)
        assert data.train.names[0].startswith("http://") and torch.equal(data.train.labels, local.train.labels)
        assert torch.equal(data.train[5].media, local.train[5].media)
        seen = list(DataLoader(data.train, batch_size=4, collate_fn=identity, num_workers=1, timeout=600))
        assert torch.equal(torch.cat([b.media for b in seen]), local.train.__getitems__(range(16)).media)
        with pytest.raises(OSError, match="shard http.*cannot be") as error:
            Shards(url.replace("s-", "t-"), held_out=0.2)
        assert "\n" not in str(error.value)
    finally:
        server.shutdown()


# ---------------------------------------------------------------------------------------------------------------- damage


def test_a_shard_that_is_cut_short_gives_what_is_readable_with_a_line(tmp_path, caplog):
    urls = two(tmp_path, 50)
    whole = (tmp_path / "s-1.tar").read_bytes()
    (tmp_path / "s-1.tar").write_bytes(whole[: int(len(whole) * 0.8)])
    with caplog.at_level(logging.WARNING):
        data = Shards(urls, held_out=0.2, max_broken=0.2)
    count = len(data.train) + len(data.held_out)
    assert 90 <= count <= 96 and "s-1.tar" in caplog.text and "cut short" in caplog.text and f"{100 - count} of 100" in caplog.text
    batch = data.train.__getitems__(range(len(data.train)))
    assert all(torch.equal(m, picture(int(n.rsplit(":", 1)[1][:6]))) for m, n in zip(batch.media, data.train.names))
    with pytest.raises(ValueError, match=r"of 100 images cannot be read, more than the share data\.max_broken=0\.01") as error:
        Shards(urls, held_out=0.2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cut", range(1, 12))
def test_any_cut_is_noticed_and_no_item_is_wrong(tmp_path, cut):
    path = shard(tmp_path / "s.tar", 8)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * cut // 12 // (512 if cut % 2 else 1) * (512 if cut % 2 else 1)])  # at and between blocks
    try:
        data = Shards(str(path), held_out=0.2, max_broken=1.0)
    except ValueError as error:
        assert "\n" not in str(error) and cut <= 4
        return
    got = len(data.train) + len(data.held_out)
    assert got < 8 or cut >= 6  # the end of a tar is padding
    for part in (data.train, data.held_out):
        batch = part.__getitems__(range(len(part)))
        assert all(torch.equal(m, picture(int(n.rsplit(":", 1)[1][:6]))) for m, n in zip(batch.media, part.names))


def test_broken_members_are_skipped_counted_and_listed(tmp_path, caplog):
    def more(i):
        if i == 2:
            return {"png": b"no image"}
        if i == 5:
            return {"png": encoded_picture(seed=5)[:300]}  # the header is fine
        return {"cls": None} if i == 7 else {"png": None} if i == 8 else {}

    data = Shards(str(shard(tmp_path / "s.tar", 40, more=more)), held_out=0.1, max_broken=0.2)
    assert "3 of 40 images" in caplog.text and all(f"{i:06d}" in caplog.text for i in (2, 7, 8))
    part = next(p for p in (data.train, data.held_out) if any("000005" in n for n in p.names))
    batch = part.__getitems__(range(len(part)))
    bad = next(i for i, n in enumerate(part.names) if "000005" in n)
    assert bad not in batch.index.tolist() and any("000005" in n for n in part.broken)
    kept = Shards(str(tmp_path / "s.tar"), held_out=0.1, max_broken=0.2, in_memory=True)
    part = next(p for p in (kept.train, kept.held_out) if any("000005" in n for n in p.names))
    again = part.__getitems__(range(len(part)))
    assert torch.equal(again.media, batch.media) and torch.equal(again.index, batch.index)


@pytest.mark.parametrize(
    "name, words",
    [
        ("gone.tar", "there is no shard"),
        ("zipped.tar", "is compressed"),
        ("text.tar", "is no tar file"),
        ("sound.tar", r"holds no images .*3 ending in \.wav"),
        ("empty.tar", "holds no images"),
        ("broken.tar", "none of the 3 images can be read"),
    ],
)
def test_shards_that_cannot_be_used_are_one_clear_line(tmp_path, name, words):
    import gzip

    good = shard(tmp_path / "good.tar").read_bytes()
    (tmp_path / "zipped.tar").write_bytes(gzip.compress(good))
    (tmp_path / "text.tar").write_text("not a tar file at all " * 100)
    shard(tmp_path / "sound.tar", 3, more=lambda i: {"png": None, "wav": b"RIFF"})
    shard(tmp_path / "empty.tar", 0)
    shard(tmp_path / "broken.tar", 3, more=lambda i: {"png": b"broken"})
    with pytest.raises((ValueError, OSError), match=words) as error:
        Shards(str(tmp_path / name), held_out=0.2)
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------------------- cifar10


def test_cifar10_is_a_set_of_ten_named_classes(tmp_path):
    def more(i):
        return {"png": encoded_picture("PNG", (32, 32), i), "cls": str(i % 10).encode()}

    train, test = shard(tmp_path / "a-0.tar", 20, more=more), shard(tmp_path / "b.tar", 10, more=more)
    data = CIFAR10(str(train), str(test))
    assert data.media_shape == CIFAR10.media_shape and data.condition_spec == CIFAR10.condition_spec
    assert data.held_out.labels.tolist() == list(range(10)) and len(data.train) == 20
    assert data.condition_spec.parse("frog", 1).parts["class"].ids.item() == 6
    with pytest.raises(ValueError, match="demands images of 32x32"):
        CIFAR10(str(shard(tmp_path / "small.tar")), str(test))


@pytest.mark.parametrize("name, tokens, bits", [("vq", 64, 768), ("rq", 512, 4608)])
def test_the_cifar10_tokenizers_are_small_and_described_without_data(name, tokens, bits, capsys):
    from gentok.training.run import train

    train(compose("config", [f"experiment=cifar10/{name}", "describe=true"]))
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["tokenizer"] <= 3_000_000 and (report["tokens"], report["bits"]) == (tokens, bits)


def test_16_bit_members_are_read(tmp_path):
    import numpy as np
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.full((12, 12), 65535, np.uint16)).save(out, "PNG")
    path = shard(tmp_path / "s.tar", 6, more=lambda i: {"png": out.getvalue()} if i == 2 else {})
    (tmp_path / "x.png").write_bytes(out.getvalue())
    for in_memory in (False, True):
        data = Shards(str(path), held_out=0.2, in_memory=in_memory)
        part = next(p for p in (data.train, data.held_out) if any("000002" in n for n in p.names))
        row = next(i for i, n in enumerate(part.names) if "000002" in n)
        assert torch.equal(part.__getitems__(range(len(part))).media[row], read_image(tmp_path / "x.png"))
