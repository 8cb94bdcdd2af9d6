"""Folders with links, odd names, splits inside each other: every item is used once, or named with the reason why not."""

import errno
import json
import os
import shutil

import pytest
import torch
from places_kit import fill, image_bytes, items, left_out, pack, total

from gentok.data import overlap
from gentok.data.folder import ImageFolder
from gentok.data.manifest import Manifest
from gentok.data.shards import Shards
from gentok.data.sound_folder import SoundFolder
from gentok.types import ClassSpec


@pytest.fixture(autouse=True)
def indices(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# ------------------------------------------------------------------------------------------------------------------------ links


@pytest.mark.parametrize("links", [[("loop", ".")], [("a", "."), ("z", "."), ("b", "..")], [("a", "cat"), ("0", "dog")]])
def test_a_folder_that_links_lead_to_again_is_taken_once(tmp_path, links, caplog):
    root = tmp_path / "photos"
    for n, name in enumerate(("cat", "dog")):
        fill(root / name, 10, 10 * n)
    plain = ImageFolder(root, held_out=0.2)
    for name, target in links:
        (root / "cat" / name if target == ".." else root / name).symlink_to(root if target in (".", "..") else root / target)
    data = ImageFolder(root, held_out=0.2)
    assert total(data) == 20 and data.train.names == plain.train.names and data.held_out.names == plain.held_out.names
    assert dict(data.condition_spec.parts)["class"].names == ("cat", "dog")
    assert f"{len(links)} links to what is listed already" in caplog.text and len(left_out(data)) == len(links)


def test_links_out_of_the_folder_are_followed_and_their_names_kept(tmp_path):
    fill(tmp_path / "pool", 8), fill(tmp_path / "photos" / "cat", 8, 8)
    (tmp_path / "photos" / "dog").symlink_to(tmp_path / "pool")
    data = ImageFolder(tmp_path / "photos", held_out=0.2)
    assert total(data) == 16 and dict(data.condition_spec.parts)["class"].names == ("cat", "dog")


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_a_file_with_two_names_is_one_item(tmp_path, make, caplog):
    root = fill(tmp_path / "photos", 10)
    for i in range(10):
        make(root / f"{i:03d}.png", root / f"copy_{i}.png")
    data = ImageFolder(root, held_out=0.3)
    assert total(data) == 10 and all(os.path.basename(n)[0] == "0" for n in data.train.names)
    assert "10 links to what is listed already (such as" in caplog.text


def test_a_loop_of_links_and_links_to_nothing_are_named(tmp_path, caplog):
    root = fill(tmp_path / "photos", 10)
    (root / "a.png").symlink_to(root / "b.png"), (root / "b.png").symlink_to(root / "a.png")
    (root / "c.png").symlink_to(root / "gone.png"), (root / ".hidden.png").write_bytes(image_bytes())
    (root / "notes.txt").write_text("x"), (root / "README").write_text("x"), os.mkfifo(root / "pipe.png")
    data = ImageFolder(root, held_out=0.2)
    assert total(data) == 10
    reasons = {os.path.basename(name): reason for name, reason in left_out(data).items()}
    looped = f"that cannot be opened ({os.strerror(errno.ELOOP)})"
    assert reasons == {
        "a.png": looped,
        "b.png": looped,
        "c.png": "links to nothing",
        ".hidden.png": "hidden",
        "notes.txt": "ending in .txt",
        "README": "without a suffix",
        "pipe.png": "no regular files",
    }
    assert "2 that cannot be opened" in caplog.text
    assert data.train.skipped["count"] == 0  # none of these is a broken image


def test_sounds_with_links_too(tmp_path):
    from sound_files_kit import save_tones

    root = save_tones(tmp_path / "sounds", 10)
    (root / "again").symlink_to(root), (root / "also.wav").symlink_to(root / "000.wav")
    assert total(SoundFolder(root, held_out=0.2)) == 10


# ------------------------------------------------------------------------------------------------------------------- odd names


@pytest.mark.skipif(os.fsencode("\udcff") != b"\xff", reason="file names are not bytes here")
def test_names_that_are_not_utf_8_are_read_and_shown_escaped(tmp_path, capsys, caplog):
    root = tmp_path / "photos"
    for n, name in enumerate((b"caf\xe9", b"dog")):
        folder = os.path.join(os.fsencode(root), name)
        os.makedirs(folder)
        for i in range(6):
            with open(os.path.join(folder, b"\xff%d.png" % i), "wb") as file:
                file.write(image_bytes(10 * n + i))
    with open(os.path.join(os.fsencode(root), b"dog", b"bad\xfe.png"), "wb") as file:
        file.write(b"no image")
    data = ImageFolder(root, held_out=0.3)
    assert total(data) == 12 and dict(data.condition_spec.parts)["class"].names == (r"caf\xe9", "dog")
    assert data.train.__getitems__(range(len(data.train))).media.shape[0] == len(data.train)
    for name in (*data.train.names, *data.held_out.names, caplog.text, json.dumps(data.train.skipped), str(data.train.description)):
        name.encode()
    assert r"bad\xfe.png" in caplog.text and any(r"\xff3.png" in n for n in data.train.names + data.held_out.names)


def test_a_name_of_two_lines_stays_one_line(tmp_path, caplog):
    root = fill(tmp_path / "photos", 9)
    (root / "a\nb.png").write_bytes(b"no image")
    ImageFolder(root, held_out=0.2)
    assert "a\\nb.png" in caplog.text and "a\nb" not in caplog.text


def test_a_tilde_that_is_no_home_is_part_of_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "~photos", 8, names="~{:03d}.png")
    (tmp_path / "~photos" / "t.csv").write_text("path\n" + "".join(f"~{i:03d}.png\n" for i in range(8)))
    assert total(ImageFolder("~photos", held_out=0.2)) == total(Manifest("~photos/t.csv", held_out=0.2)) == 8


def test_tar_members_whose_names_are_not_utf_8_are_read(tmp_path):
    members = [(name.encode("latin-1").decode("utf-8", "surrogateescape"), data) for name, data in items(8, name="caf\xe9{:03d}")]
    data = Shards(str(pack(tmp_path / "s.tar", members, errors="surrogateescape")), held_out=0.3)
    assert total(data) == 8 and all(name.isprintable() and r"caf\xe9" in name for name in data.train.names)
    json.dumps(data.train.description).encode(), data.train.__getitems__([0])


# -------------------------------------------------------------------------------------------------- splits that overlap


def test_a_held_out_folder_inside_the_other_is_not_trained_on(tmp_path, caplog):
    root = tmp_path / "photos"
    fill(root / "cat", 6), fill(root / "dog", 6, 6)
    for n, name in enumerate(("cat", "dog")):
        fill(root / "test" / name, 2, 20 + 2 * n)
    data = ImageFolder(root, held_out=str(root / "test"))
    assert len(data.train) == 12 and len(data.held_out) == 4 and dict(data.condition_spec.parts)["class"].names == ("cat", "dog")
    assert "1 the folder that is held out (such as" in caplog.text and str(root / "test") in left_out(data)


@pytest.mark.parametrize("place", ["same", "link", "above"])
def test_a_held_out_folder_with_everything_in_it_is_one_line(tmp_path, place):
    root = fill(tmp_path / "all" / "photos", 6)
    (tmp_path / "link").symlink_to(root)
    held_out = {"same": root, "link": tmp_path / "link", "above": tmp_path / "all"}[place]
    with pytest.raises(ValueError, match="is the folder that is trained on|are also in .*, which is held out") as error:
        ImageFolder(root, held_out=str(held_out))
    assert "\n" not in str(error.value)


def table(path, names):
    path.write_text("path\n" + "".join(f"{name}\n" for name in names))
    return str(path)


def test_rows_that_two_tables_share_are_held_out_only(tmp_path, caplog):
    fill(tmp_path, 10)
    train = table(tmp_path / "train.csv", [f"{i:03d}.png" for i in range(10)])
    data = Manifest(train, held_out=table(tmp_path / "test.csv", ["./001.png", str(tmp_path / "005.png")]))
    assert len(data.train) == 8 and len(data.held_out) == 2
    assert not {os.path.realpath(n) for n in data.train.names} & {os.path.realpath(n) for n in data.held_out.names}
    assert "2 held out, by" in caplog.text
    with pytest.raises(ValueError, match="all 10 images of .*train.csv are also in .*train.csv, which is held out"):
        Manifest(train, held_out=train)


def test_shards_that_are_named_twice_or_held_out_too(tmp_path, caplog):
    urls = [str(pack(tmp_path / f"{n}.tar", items(10, 10 * n))) for n in range(3)]
    os.symlink(urls[0], tmp_path / "again.tar")
    data = Shards([*urls, str(tmp_path / "again.tar"), urls[1]], held_out=urls[2])
    assert len(data.train) == 20 and len(data.held_out) == 10 and len(set(data.train.names)) == 20
    assert "2 shards that are named twice" in caplog.text and "10 held out, by" in caplog.text
    with pytest.raises(ValueError, match="are also in .*, which is held out"):
        Shards(urls[0], held_out=urls[0])


def test_equal_files_in_both_splits_are_said_with_their_number(tmp_path, caplog):
    root = fill(tmp_path / "photos", 20)
    assert total(ImageFolder(root, held_out=0.2)) == 20 and "same content" not in caplog.text
    held_out = fill(tmp_path / "test", 4, 50)
    for i in (3, 7):
        shutil.copy(root / f"{i:03d}.png", held_out / f"copy_{i}.png")
    data = ImageFolder(root, held_out=str(held_out))
    assert total(data) == 26 and "2 of 6 held-out images are in training too, with the same content" in caplog.text
    assert f"copy_3.png is {root / '003.png'}" in caplog.text
    caplog.clear()
    packed = [str(pack(tmp_path / f"{n}.tar", items(6, first))) for n, first in enumerate((0, 4))]
    Shards(packed[0], held_out=packed[1])
    assert "2 of 6 held-out images are in training too" in caplog.text


def test_many_files_of_one_length_are_not_read_at_every_start(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(overlap, "_MOST", 20)
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(30):
        (root / f"{i}.bmp").write_bytes(image_bytes(i % 5, "BMP"))
    assert total(ImageFolder(root, held_out=0.2)) == 30 and "same content" not in caplog.text
    monkeypatch.setattr(overlap, "_MOST", 30)
    ImageFolder(root, held_out=0.2)
    assert "6 of 6 held-out images are in training too" in caplog.text


@pytest.mark.parametrize("names", [("train", "val"), ("Train", "TEST", "validation"), ("training", "dev")])
def test_folders_that_are_called_as_splits_are_no_classes(tmp_path, names):
    for n, name in enumerate(names):
        fill(tmp_path / name / "cat", 4, 10 * n), fill(tmp_path / name / "dog", 4, 10 * n + 5)
    other = next(n for n in names if n.lower() in ("val", "validation", "dev"))
    with pytest.raises(ValueError, match=f"look like splits.*data.path={tmp_path / names[0]} data.held_out={tmp_path / other}") as error:
        ImageFolder(tmp_path)
    assert "\n" not in str(error.value) and "data.classes=true" in str(error.value)
    data = ImageFolder(tmp_path / names[0], held_out=str(tmp_path / other))
    assert dict(data.condition_spec.parts)["class"].names == ("cat", "dog")
    assert len(dict(ImageFolder(tmp_path, classes=True).condition_spec.parts)["class"].names) == len(names)
    assert ImageFolder(tmp_path, classes=False).condition_spec.parts == ()


def test_a_column_of_splits_is_said_to_be_unused(tmp_path, caplog):
    fill(tmp_path, 10)
    rows = [f"{i:03d}.png,{('train', 'val')[i > 7]},{('red', 'test')[i % 2]}\n" for i in range(10)]
    (tmp_path / "t.csv").write_text("path,subset,colour\n" + "".join(rows))
    assert total(Manifest(tmp_path / "t.csv", held_out=0.2)) == 10
    assert "the column 'subset' looks like splits, and is not used: train (8), val (2)" in caplog.text and "colour" not in caplog.text


def test_a_train_among_other_things_is_a_class(tmp_path):
    for n, name in enumerate(("train", "plane", "car")):
        fill(tmp_path / name, 4, 10 * n)
    assert dict(ImageFolder(tmp_path, held_out=0.3).condition_spec.parts)["class"].names == ("car", "plane", "train")


# ----------------------------------------------------------------------------------------------------------- a class called null


def test_a_class_that_is_called_null_is_a_class(tmp_path):
    for n, name in enumerate(("cat", "null", "none")):
        fill(tmp_path / name, 5, 10 * n)
    data = ImageFolder(tmp_path, held_out=0.2)
    spec = dict(data.condition_spec.parts)["class"]
    assert spec.names == ("cat", "none", "null") and data.train.labels.bincount().tolist() == [4, 4, 4]
    assert spec.parse(["null", None, "cat"], "class").ids.tolist() == [2, -1, 0]
    assert ClassSpec(("cat", "dog")).parse(["null", None], "class").ids.tolist() == [-1, -1]
    assert torch.equal(data.held_out.labels.unique(), torch.arange(3))


def test_a_label_null_that_is_no_class_is_one_line(tmp_path):
    fill(tmp_path, 8)
    rows = "".join(f"{i:03d}.png,{('cat', 'null')[i == 3]}\n" for i in range(8))
    (tmp_path / "t.csv").write_text("path,label\n" + rows)
    with pytest.raises(ValueError, match="has the class 'null'; the classes are cat"):
        Manifest(tmp_path / "t.csv", held_out=0.3, classes=["cat", "dog"])
