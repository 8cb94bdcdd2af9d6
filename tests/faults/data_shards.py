"""Shards of small pictures."""

import io
import tarfile
from pathlib import Path

from ten_ways import CONTENT


def two_shards(folder: Path, count: int = 20) -> list[str]:
    """Paths of s-0.tar and s-1.tar, of `count` pictures each."""
    for n in range(2):
        with tarfile.open(folder / f"s-{n}.tar", "w") as archive:
            for i in range(n * count, (n + 1) * count):
                for name, content in ((f"{i:06d}.png", CONTENT["no permission"](i)), (f"{i:06d}.cls", str(i % 2).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return [str(folder / f"s-{n}.tar") for n in range(2)]
