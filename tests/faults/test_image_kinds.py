"""Images of the kinds that people have: turned, with much beside the pixels, of any suffix, very long."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from gentok.data.folder import ImageFolder
from gentok.data.image_decoding import IMAGE_SUFFIXES
from gentok.data.image_files import image_size, read_pixels

KINDS = ["PNG", "JPEG", "TIFF", "WEBP", *(["AVIF"] if features.check("avif") else [])]


def scene(width=40, height=24):
    """A dark image with a bright left upper corner."""
    pixels = np.full((height, width, 3), 40, np.uint8)
    pixels[: height // 2, : width // 2] = 220
    return Image.fromarray(pixels)


def stored(orientation, kind):
    """The bytes of `scene`, stored so that a viewer turns it upright."""
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # the inverse of what makes it upright
    image = scene() if back is None else scene().transpose(Image.Transpose(back))
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    image.save(out, kind, exif=exif, **({"quality": 95} if kind in ("JPEG", "AVIF") else {"lossless": True} if kind == "WEBP" else {}))
    return out.getvalue()


def upright(data):
    pixels = read_pixels(data, 1)[0].astype(int)
    dark_and_bright = pixels[4, 4] > 180 and max(pixels[-4, 4], pixels[4, -4], pixels[-4, -4]) < 80
    return pixels.shape == (24, 40) == image_size(data) and bool(dark_and_bright)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_every_kind_is_upright_and_its_size_is_known_from_the_header(kind, orientation):
    assert upright(stored(orientation, kind))


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def xmp(orientation):
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_an_orientation_behind_the_pixels_or_in_xmp_counts_as_well(orientation):
    data = stored(orientation, "PNG")
    place = data.index(b"eXIf") - 4
    length = 12 + struct.unpack(">I", data[place : place + 4])[0]
    exif, bare = data[place : place + length], data[:place] + data[place + length :]
    assert upright(bare[:-12] + exif + bare[-12:])
    assert upright(bare[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(orientation)) + bare[33:])
    jpeg = stored(orientation, "JPEG")
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp(orientation)
    place = jpeg.index(b"Exif\0\0") - 4
    length = 2 + struct.unpack(">H", jpeg[place + 2 : place + 4])[0]
    bare = jpeg[:place] + jpeg[place + length :]
    assert upright(bare[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + bare[2:])


def test_a_folder_of_turned_tiffs_has_their_upright_size(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.tif").write_bytes(stored(6, "TIFF"))
    data = ImageFolder(tmp_path, held_out=0.2)
    assert data.media_shape == (3, 24, 40) and data.train[0].media.shape == (1, 3, 24, 40)


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP"])
@pytest.mark.parametrize("megabytes", [2, 80])
def test_a_png_with_long_texts_or_a_long_profile_is_read(kind, where, megabytes, tmp_path):
    packed = zlib.compress(bytes(megabytes << 20), 1)
    content = {"zTXt": b"Comment\0\0", "iTXt": b"Comment\0\1\0\0\0", "iCCP": b"profile\0\0"}[kind] + packed
    data = stored(6, "PNG")
    place = 33 if where == "before" else data.index(b"IEND") - 4
    data = data[:place] + chunk(kind.encode(), content) + data[place:]
    assert upright(data)
    (tmp_path / "x.png").write_bytes(data)
    assert image_size(tmp_path / "x.png") == (24, 40) and read_pixels(tmp_path / "x.png").shape == (3, 24, 40)
    assert PngImagePlugin.MAX_TEXT_CHUNK == 1 << 20  # PIL's own limit stays for others


def test_what_pillow_reads_is_used_whatever_its_suffix(tmp_path):
    suffixes = [".jfif", ".jpe", ".jp2", ".tga", ".pcx", ".dib", ".pnm", ".sgi", ".ico", ".apng", *([".avif"] if "AVIF" in KINDS else [])]
    kinds = Image.registered_extensions()
    for i, suffix in enumerate([*suffixes, ".png"]):
        scene(32, 32).save(tmp_path / f"{i}{suffix}", kinds[suffix])
    data = ImageFolder(tmp_path, size=16, held_out=0.2)
    assert len(data.train) + len(data.held_out) == len(suffixes) + 1
    for part in (data.train, data.held_out):
        assert part.__getitems__(range(len(part))).media.shape[1:] == (3, 16, 16) and part.skipped["count"] == 0
    assert {".png", ".jpg", ".webp", ".avif", ".jfif"} <= set(IMAGE_SUFFIXES) and not {".eps", ".ps", ".pdf", ".wmf"} & set(IMAGE_SUFFIXES)


def test_postscript_in_an_image_file_is_not_run(tmp_path):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match="x.png cannot be read as an image: no known format"):
        read_pixels(tmp_path / "x.png")


@pytest.mark.parametrize("values", [[[np.nan, 0.5], [0.2, 0.1]], [[np.inf, 0.5], [0.2, 0.1]], [[-1.0, 0.5], [0.2, 0.1]]])
def test_a_tiff_whose_values_are_no_grey_levels_is_refused(values, tmp_path):
    Image.fromarray(np.array(values, np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match="x.tif cannot be read as an image: its values reach from"):
        read_pixels(tmp_path / "x.tif")


# ------------------------------------------------------------------------------------------------------------------ long strips


def png(width, height):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width)).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (2, 2500), (6000, 3)])
def test_a_long_strip_is_what_it_was_when_it_was_scaled_whole(size):
    data = png(*size)
    with Image.open(io.BytesIO(data)) as image:
        ratio = 64 / min(size)
        whole = image.resize((round(size[0] * ratio), round(size[1] * ratio)), Image.Resampling.BICUBIC)
        left, top = (whole.width - 64) // 2, (whole.height - 64) // 2
        assert whole.width * whole.height > 1 << 22
        expected = np.array(whole.crop((left, top, left + 64, top + 64)))
    assert np.array_equal(read_pixels(data, 1, 64)[0], expected)


PEAKS = """
import re, sys
from gentok.data.image_files import read_pixels
for path in sys.argv[1:]:
    assert read_pixels(path, 3, 256).shape == (3, 256, 256)
    print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process, without that of its parent, is in /proc")
def test_a_strip_of_1_by_10000_takes_no_more_memory_than_a_square(tmp_path):
    paths = [tmp_path / f"{width}x{height}.png" for width, height in ((100, 100), (1, 10000), (10000, 1))]
    for path in paths:
        path.write_bytes(png(*map(int, path.stem.split("x"))))
    command = [sys.executable, "-c", PEAKS, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    square, *strips = map(int, done.stdout.split())
    assert max(strips) < square + 100
