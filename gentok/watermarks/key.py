"""The secret of a watermark: from a file or an environment variable, and in no object that is stored or printed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

__all__ = ["VARIABLE", "Key"]

VARIABLE = "GENTOK_WATERMARK_KEY"
SHORTEST = 16


class Key:
    """A secret.

    Its numbers come from a hash of 64 bits of it. They are no cryptography: whoever has many marked items and the model could find them.

    Args:
        secret: at least 16 bytes; white space around it does not count.

    Raises:
        ValueError: it is shorter.
    """

    def __init__(self, secret: bytes):
        secret = secret.strip()
        if len(secret) < SHORTEST:
            advice = "`openssl rand -hex 32 > FILE` makes one"
            raise ValueError(f"a watermark's key has at least {SHORTEST} bytes, this one {len(secret)}: {advice}")
        self._secret = secret

    @classmethod
    def read(cls, path: str | None) -> Key:
        """The key in a file; of None, that in the environment variable GENTOK_WATERMARK_KEY.

        Raises:
            ValueError: there is none, or it is too short. The message never repeats what was given: it might be the key itself.
        """
        if path is None:
            if not os.environ.get(VARIABLE):
                raise ValueError(f"a watermark needs its secret key: set key=FILE, or the environment variable {VARIABLE}")
            return cls(os.environ[VARIABLE].encode())
        try:
            return cls(Path(path).expanduser().read_bytes())
        except OSError as error:
            raise ValueError(f"key= is the path of a file with a watermark's secret key; it cannot be read ({error.strerror})") from None

    @property
    def seed(self) -> int:
        """What its numbers are made from, in [0, 2^63)."""
        return int.from_bytes(hashlib.sha256(b"gentok watermark" + self._secret).digest()[:8], "little") >> 1

    @property
    def fingerprint(self) -> str:
        """What tells keys apart, and says nothing of this one: another hash than that of its numbers."""
        return hashlib.sha256(b"gentok fingerprint" + self._secret).hexdigest()[:16]

    def __repr__(self) -> str:
        return "Key(...)"

    def __reduce__(self) -> str:
        raise TypeError("a watermark's key is not stored: keep its file")
