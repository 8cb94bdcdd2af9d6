"""What the pictures of real people look like: damaged, cut, huge, of many sizes, of every mode."""

import io
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_kit import encoded_picture, folder, paint, wounds
from PIL import Image
from torch.utils.data import DataLoader

from gentok.data.datasets import identity
from gentok.data.file_index import DataError
from gentok.data.folder import ImageFolder
from gentok.data.image_files import image_size, read_image, read_pixels

KINDS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP"]


@pytest.mark.parametrize("kind", KINDS)
def test_damage_of_any_kind_is_a_picture_or_one_clear_line(kind):
    """2 x 60 random wounds: bytes overwritten, and the end cut off."""
    for bad in wounds(encoded_picture(kind, (20, 14)), 120):
        try:
            image_size(bad, "it")
            assert read_pixels(bad, 3, 8, "it").shape == (3, 8, 8)
        except ValueError as error:
            assert "\n" not in str(error) and str(error).startswith("it cannot be read as an image: ")


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    """PIL itself only warns between its limit and twice the limit."""
    paint(tmp_path / "x.png", (40, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"x\.png cannot be read as an image: Image size \(1200 pixels\) exceeds limit") as error:
        read_image(tmp_path / "x.png")
    assert "\n" not in str(error.value) and "attack" not in str(error.value)
    with pytest.raises(ValueError, match="exceeds limit"):
        image_size(tmp_path / "x.png")


def test_a_bomb_in_a_folder_is_skipped(tmp_path, monkeypatch, caplog):
    folder(tmp_path)
    out = io.BytesIO()
    Image.new("1", (30000, 30000)).save(out, "PNG")  # 100 kB that unpack to 900 million pixels
    (tmp_path / "cat" / "bomb.png").write_bytes(out.getvalue())
    data = ImageFolder(tmp_path, held_out=0.2)
    assert len(data.train) + len(data.held_out) == 40 and "bomb.png" in caplog.text and "1 of 41" in caplog.text


def test_one_truncated_picture_among_good_ones_never_stops_a_run(tmp_path, caplog):
    """Also where one is more than the share that may be broken."""
    folder(tmp_path, 10)
    for path in sorted((tmp_path / "cat").iterdir()):
        good = path.read_bytes()
        path.write_bytes(good[:200])
        data = ImageFolder(tmp_path, held_out=0.2)
        with caplog.at_level(logging.WARNING):
            for part in (data.train, data.held_out):
                batch = part.__getitems__(range(len(part)))
                assert len(batch.media) == len(part)
        assert sorted(data.train.broken + data.held_out.broken) == [str(path)] and path.name in caplog.text
        path.write_bytes(good)
    shutil.copy(tmp_path / "cat" / "000.png", tmp_path / "cat" / "good.png")
    (tmp_path / "cat" / "000.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 21 images cannot be read.*max_broken=0 "):
        ImageFolder(tmp_path, held_out=0.2, max_broken=0)


def test_every_file_broken_is_one_clear_line(tmp_path):
    for i in range(7):
        paint(tmp_path / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"none of the 7 images can be read: .*0\.png.* and 2 more") as error:
        ImageFolder(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("in_memory", [False, True])
def test_every_file_truncated_is_one_clear_line_also_from_a_worker(tmp_path, in_memory):
    """Headers are fine, so only decoding tells."""
    folder(tmp_path, 10)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot be read, more than the share") as error:
        data = ImageFolder(tmp_path, held_out=0.2, in_memory=in_memory)
        list(DataLoader(data.train, batch_size=4, collate_fn=identity, num_workers=1))
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)


def test_links_to_nowhere_and_hidden_files_are_no_pictures(tmp_path):
    folder(tmp_path)
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    paint(tmp_path / "cat" / ".hidden.png")
    data = ImageFolder(tmp_path, held_out=0.2)
    assert len(data.train) + len(data.held_out) == 40


def test_memory_changes_nothing_for_pictures_of_every_mode(tmp_path):
    modes = {"RGB": 3, "L": 1, "RGBA": 4, "LA": 2, "CMYK": 4}
    random = np.random.default_rng(0)
    for mode, channels in modes.items():
        pixels = random.integers(0, 256, (17, 13, channels)).astype(np.uint8)
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode).save(tmp_path / f"{mode}.{suffix}")
    Image.fromarray(random.integers(0, 65536, (20, 20)).astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(random.integers(0, 256, (9, 9)).astype(np.uint8)).convert("P").save(tmp_path / "palette.gif")
    lazy, kept = (ImageFolder(tmp_path, size=8, held_out=0.2, channels=3, in_memory=m) for m in (False, True))
    for one, other in ((lazy.train, kept.train), (lazy.held_out, kept.held_out)):
        rows = range(len(one))
        assert torch.equal(one.__getitems__(rows).media, other.__getitems__(rows).media)
    deep = read_image(tmp_path / "deep.png", 1, 8)
    grey = ImageFolder(tmp_path, size=8, held_out=0.2, channels=1)
    part = next(p for p in (grey.train, grey.held_out) if any("deep" in n for n in p.names))
    row = next(i for i, n in enumerate(part.names) if "deep" in n)
    assert torch.equal(part.__getitems__(range(len(part))).media[row], deep)  # no level of the 16 bits is lost beside others of 8


def test_what_was_skipped_is_counted_and_the_list_is_bounded(tmp_path):
    folder(tmp_path, 80, size=(40, 40))
    for path in sorted((tmp_path / "cat").iterdir())[:70]:
        path.write_bytes(path.read_bytes()[:300])
    data = ImageFolder(tmp_path, held_out=0.1, max_broken=1)
    assert data.train.skipped == {"count": 0, "of": len(data.train), "files": []}
    for part in (data.train, data.held_out):
        part.__getitems__(range(len(part)))
    assert data.train.skipped["count"] + data.held_out.skipped["count"] == 70 and len(data.train.skipped["files"]) == 50
    assert set(data.train.skipped["files"]) <= {str(p) for p in (tmp_path / "cat").iterdir()}
    from gentok.data.subset import Subset

    assert Subset(data, 5).train.skipped == data.train.skipped


def test_what_one_process_finds_broken_all_know_at_the_end(tmp_path):
    pictures = folder(tmp_path / "pictures", 20, size=(40, 40))
    for i in range(0, 20, 5):
        path = paint(pictures / "cat" / f"{i:03d}_cut.png", (40, 40), seed=i)
        path.write_bytes(path.read_bytes()[:300])
    script = Path(__file__).parent / "broken_processes.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])}
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [(tmp_path / f"rank{r}").read_text() for r in (0, 1)] == ["1 2 2", "1 2 2"]
