"""Members of shards that are no items: each is counted, with its reason and a name."""

import gzip
import io
import json
import tarfile

import pytest
import torch
from places_kit import image_bytes, items, left_out, pack, total

from gentok.data.image_files import read_pixels, to_media
from gentok.data.shards import Shards


@pytest.fixture(autouse=True)
def indices(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


@pytest.mark.parametrize(
    "more, reason",
    [
        ([("v1.3_photo.png", b"x"), ("v1.4_photo.png", b"x")], "images with a dot before their suffix, where a key ends"),
        ([("a.xyz", b"x"), ("b.XYZ", b"x")], "ending in .xyz"),
        ([("a/noname", b"x"), ("noname", b"x")], "without a suffix"),
        ([("0001.jpg", image_bytes(0, "JPEG")), ("0002.png", image_bytes(7))], "further members of the same key and kind"),
        ([("0001.cls", b"0"), ("0002.cls", b"1")], "further members of the same key and kind"),
        ([link("x.png", "0001.png", tarfile.LNKTYPE), link("y.png", "0001.png", tarfile.SYMTYPE)], "links"),
        ([("._0001.png", b"x"), ("a/.DS_Store", b"x")], "hidden"),
        ([link("x.png", "", tarfile.FIFOTYPE), link("y.png", "", tarfile.CHRTYPE)], "no regular files"),
        ([("0001.txt", bytes((1 << 20) + 1)), ("0002.txt", bytes((1 << 20) + 1))], "longer than 1 MB"),
    ],
)
def test_members_that_are_no_items_are_counted(tmp_path, more, reason, caplog):
    path = str(pack(tmp_path / "s.tar", [*items(10), *more]))
    for _ in range(2):  # the second time from the index that is kept
        caplog.clear()
        data = Shards(path, held_out=0.2)
        assert total(data) == 10 and data.train.skipped["count"] == 0
        assert left_out(data) == dict.fromkeys([f"{path}:{name}" for name, _ in more], reason)
        assert f"2 {reason} (such as {path}:{more[0][0]})" in caplog.text


def test_a_key_whose_image_is_a_link_is_named_once(tmp_path):
    members = [*items(10), ("x.cls", b"1"), link("x.png", "0001.png", tarfile.LNKTYPE), ("y.cls", b"1")]
    data = Shards(str(pack(tmp_path / "s.tar", members)), held_out=0.2, max_broken=0.2)
    assert total(data) == 10 and data.train.skipped["count"] == 1
    assert list(data.train.skipped["reasons"].values()) == ["it has no image"] and list(left_out(data).values()) == ["links"]


@pytest.mark.parametrize("padding", [0, 1, 7])
def test_archives_one_behind_the_other_are_all_read(tmp_path, padding):
    parts = [pack(tmp_path / f"{n}.tar", items(8, 10 * n)).read_bytes() + bytes(512 * padding) for n in range(3)]
    (tmp_path / "all.tar").write_bytes(b"".join(parts))
    data = Shards(str(tmp_path / "all.tar"), held_out=0.2)
    assert total(data) == 24 and data.train.skipped == {"count": 0, "of": len(data.train), "files": []}
    for part in (data.train, data.held_out):
        batch = part.__getitems__(range(len(part)))
        for name, media in zip(part.names, batch.media):
            assert torch.equal(media, to_media(torch.from_numpy(read_pixels(image_bytes(int(name[-8:-4])))).float()))


def test_joined_archives_may_use_the_same_keys(tmp_path):
    """Each item keeps its own class."""
    parts = [
        [(f"{i}.png", image_bytes(10 * n + i)) for i in range(6)] + [(f"{i}.cls", b"ab"[n : n + 1]) for i in range(6)] for n in range(2)
    ]
    (tmp_path / "all.tar").write_bytes(b"".join(pack(tmp_path / f"{n}.tar", part).read_bytes() for n, part in enumerate(parts)))
    data = Shards(str(tmp_path / "all.tar"), held_out=0.2)
    assert total(data) == 12 and left_out(data) == {} and data.train.labels.bincount().tolist() == [5, 5]
    images = [to_media(torch.from_numpy(read_pixels(image_bytes(i))).float()) for i in range(16)]
    batch = data.train.__getitems__(range(len(data.train)))
    for media, label in zip(batch.media, batch.condition.parts["class"].ids):
        assert any(torch.equal(media, image) for image in images[10 * int(label) : 10 * int(label) + 6])


def test_what_lies_behind_an_archive_and_is_none_is_damage(tmp_path, caplog):
    path = pack(tmp_path / "s.tar", items(20))
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(4000)) + bytes(600))
    assert total(Shards(str(path), held_out=0.2, max_broken=0.2)) == 20 and "damaged at byte" in caplog.text


def test_a_byte_order_mark_is_no_part_of_a_class_or_field(tmp_path):
    def members():
        for i in range(10):
            yield f"{i:04d}.png", image_bytes(i)
            yield f"{i:04d}.cls", b"\xef\xbb\xbf" + str(i % 2).encode()
            yield f"{i:04d}.json", b"\xef\xbb\xbf" + json.dumps({"kind": "ab"[i % 2]}).encode()

    path = str(pack(tmp_path / "s.tar", members()))
    assert dict(Shards(path, held_out=0.2).condition_spec.parts)["class"].names == ("0", "1")
    assert dict(Shards(path, held_out=0.2, label="json.kind").condition_spec.parts)["class"].names == ("a", "b")


def test_a_shard_without_images_names_a_few_of_its_suffixes(tmp_path):
    path = pack(tmp_path / "s.tar", [(f"{i}.kind{i}", b"x") for i in range(200)])
    with pytest.raises(ValueError, match="holds no images .* and 195 more") as error:
        Shards(str(path))
    assert len(str(error.value)) < 1000 + 5 * len(str(path)) and "\n" not in str(error.value)


def test_reasons_stand_with_the_names_of_what_is_broken(tmp_path, caplog):
    members = [*items(20), ("a.png", b"no image"), ("b.cls", b"1"), ("c.png", image_bytes(99))]
    data = Shards(str(pack(tmp_path / "s.tar", members)), held_out=0.2, max_broken=0.2)
    reasons = {name.rsplit(":", 1)[1]: reason for name, reason in data.train.skipped["reasons"].items()}
    assert reasons == {"a.png": "no known format", "b": "it has no image", "c.png": "it has no label"}
    assert "3 of 23 images" in caplog.text and "a.png (no known format)" in caplog.text


def test_the_header_of_a_large_member_is_read_without_the_rest(tmp_path):
    """An index is made by one pass over headers."""
    out = io.BytesIO(image_bytes(0, "BMP", 400))
    path = pack(tmp_path / "s.tar", [(f"{i}.bmp", out.getvalue()) for i in range(6)])
    read = []

    class Counted(io.FileIO):
        def read(self, size=-1):
            data = super().read(size)
            read.append(len(data))
            return data

    from gentok.data import tar_index
    from gentok.data.image_dataset import IMAGES

    with Counted(path) as file:
        index = tar_index._read(file, str(path), IMAGES)
    assert [item["header"] for item in index["items"]] == [(400, 400)] * 6 and sum(read) < path.stat().st_size / 5
