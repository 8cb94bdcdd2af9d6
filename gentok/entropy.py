"""Entropy coding of tokens: range asymmetric numeral systems (Duda, arXiv 1311.2540), with adaptive
probabilities.

    encode, last id first:   x <- (x // f) 2^R + x mod f + c           f, c: the id's share of 2^R, and the
    sum of the shares before it decode, first id first:  id = the one with c <= x mod 2^R < c + f;  x <- f (x
    // 2^R) + x mod 2^R - c

Chunk by chunk: the shares of a chunk's ids come from counts of the chunks before it, which both sides know,
so no table is sent. Levels have separate counts. A chunk is stored packed, ceil(log2 V) bits per id, where
that is shorter (the first one always is).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["AdaptiveCoder", "packed", "unpacked"]

_LOW = 1 << 31
"""States lie in [2^31, 2^63): 32 bits leave or enter at a time."""
PACKED, CODED = 0, 1


def bits_of(vocab: int) -> int:
    """ceil(log2 V)."""
    return max(1, (vocab - 1).bit_length())


def packed(ids: np.ndarray, bits: int) -> bytes:
    """ids int64 [n] below 2^bits -> ceil(n bits / 8) bytes."""
    return np.packbits((ids[:, None] >> np.arange(bits)) & 1, axis=None).tobytes() if len(ids) else b""


def unpacked(data: bytes, count: int, bits: int) -> np.ndarray:
    """The inverse of `packed`: ids int64 [count]."""
    found = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits).astype(np.int64)
    return (found.reshape(count, bits) << np.arange(bits)).sum(1)


def _shares(counts: np.ndarray, scale: int) -> np.ndarray:
    """counts float [V] -> int64 [V] that sum to `scale`, each at least 1, as near to proportional as
    possible."""
    room = scale - len(counts)
    exact = counts * (room / counts.sum())
    out = np.floor(exact).astype(np.int64)
    rest = room - int(out.sum())
    out[np.argsort(out - exact, kind="stable")[:rest]] += 1
    return out + 1


class AdaptiveCoder:
    """Chunks of codes -> bytes and back. Coder and decoder must see the same chunks in the same order.

    Args:
        vocab_sizes: V of each level.
        decay: of the counts from chunk to chunk.
    """

    def __init__(self, vocab_sizes: Sequence[int], decay: float = 0.99):
        self.vocab_sizes, self.decay = tuple(vocab_sizes), decay
        self.counts = [np.full(size, 1.0 / size) for size in self.vocab_sizes]
        self.scales = [1 << max(16, bits_of(size) + 4) for size in self.vocab_sizes]

    def encode(self, codes: np.ndarray) -> bytes:
        """Codes a chunk.

        Args:
            codes: int64 [K, n].

        Returns:
            A byte for the way of coding, and the ids.

        Raises:
            ValueError: an id lies outside its level's vocabulary.
        """
        if codes.shape[0] != len(self.vocab_sizes) or any(((c < 0) | (c >= v)).any() for c, v in zip(codes, self.vocab_sizes)):
            raise ValueError(f"codes are [{len(self.vocab_sizes)} levels, frames] of ids below {self.vocab_sizes}; got {codes.shape}")
        plain = bytes([PACKED]) + b"".join(packed(c, bits_of(v)) for c, v in zip(codes, self.vocab_sizes))
        coded = bytes([CODED]) + self._coded(codes)
        self._count(codes)
        return min(plain, coded, key=len)

    def decode(self, data: bytes, frames: int) -> np.ndarray:
        """Decodes a chunk.

        Args:
            data: what `encode` returned.
            frames: n of the chunk.

        Returns:
            The codes, int64 [K, frames].

        Raises:
            ValueError: the bytes are no chunk of so many frames.
        """
        if not data or data[0] not in (PACKED, CODED):
            raise ValueError("a chunk begins with no known way of coding")
        if data[0] == PACKED:
            out, at = [], 1
            for size in self.vocab_sizes:
                end = at + -(-frames * bits_of(size) // 8)
                if end > len(data):
                    raise ValueError("a chunk is shorter than its frames")
                out.append(unpacked(data[at:end], frames, bits_of(size)))
                at = end
            codes = np.stack(out)
        else:
            codes = self._decoded(data[1:], frames)
        if any((c >= v).any() for c, v in zip(codes, self.vocab_sizes)):
            raise ValueError("a chunk holds an id beyond its level's vocabulary")
        self._count(codes)
        return codes

    def _count(self, codes: np.ndarray) -> None:
        for counts, c in zip(self.counts, codes):
            counts *= self.decay
            counts += np.bincount(c, minlength=len(counts))

    def _tables(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(share of each id, sum of the shares before it) of every level."""
        shares = [_shares(counts, scale) for counts, scale in zip(self.counts, self.scales)]
        return [(f, np.concatenate(([0], np.cumsum(f)[:-1]))) for f in shares]

    def _coded(self, codes: np.ndarray) -> bytes:
        state, words = _LOW, []
        rows = [(f[c].tolist(), b[c].tolist()) for (f, b), c in zip(self._tables(), codes)]
        shifts = [scale.bit_length() - 1 for scale in self.scales]
        limits = [(_LOW >> shift) << 32 for shift in shifts]
        for n in range(codes.shape[1] - 1, -1, -1):
            for k in range(len(rows) - 1, -1, -1):
                share, before = rows[k][0][n], rows[k][1][n]
                if state >= limits[k] * share:
                    words.append(state & 0xFFFFFFFF)
                    state >>= 32
                state = (state // share << shifts[k]) + state % share + before
        words += [state & 0xFFFFFFFF, state >> 32]
        return np.array(words[::-1], dtype="<u4").tobytes()

    def _decoded(self, data: bytes, frames: int) -> np.ndarray:
        if len(data) < 8 or len(data) % 4:
            raise ValueError("a chunk is cut short")
        words = np.frombuffer(data, "<u4").tolist()
        state, at = words[0] << 32 | words[1], 2
        tables = self._tables()
        ids = [np.repeat(np.arange(len(f)), f).tolist() for f, _ in tables]  # the id of every remainder
        rows = [(f.tolist(), b.tolist()) for f, b in tables]
        shifts = [scale.bit_length() - 1 for scale in self.scales]
        out: list[list[int]] = [[] for _ in rows]
        for _ in range(frames):
            for k, (shares, before) in enumerate(rows):
                low = state & (self.scales[k] - 1)
                v = ids[k][low]
                out[k].append(v)
                state = shares[v] * (state >> shifts[k]) + low - before[v]
                if state < _LOW:
                    if at >= len(words):
                        raise ValueError("a chunk is cut short")
                    state, at = state << 32 | words[at], at + 1
        if state != _LOW or at != len(words):
            raise ValueError("a chunk does not end where it should: its bytes are damaged")
        return np.array(out, dtype=np.int64).reshape(len(rows), frames)
