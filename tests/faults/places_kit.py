"""Small images on disk and in tar files, each with pixels of its own."""

import io
import tarfile

import numpy as np
from PIL import Image


def image_bytes(seed=0, kind="PNG", side=12):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)).save(out, kind)
    return out.getvalue()


def fill(folder, count=10, first=0, names="{:03d}.png"):
    """`count` images in a folder, none of which is another one."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        (folder / names.format(i)).write_bytes(image_bytes(i))
    return folder


def pack(path, members, mode="w", **form):
    """A tar file of [(name, bytes or TarInfo)]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, **form) as archive:
        for name, data in members:
            if isinstance(data, tarfile.TarInfo):
                archive.addfile(data)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def items(count, first=0, name="{:04d}"):
    """The members of `count` items with two classes."""
    for i in range(first, first + count):
        yield f"{name.format(i)}.png", image_bytes(i)
        yield f"{name.format(i)}.cls", str(i % 2).encode()


def total(data):
    return len(data.train) + len(data.held_out)


def left_out(data):
    return (data.train.skipped.get("left_out") or {}).get("reasons", {})
