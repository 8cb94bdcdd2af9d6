"""Entropy coding gives back what it was given, and comes near the entropy of what is not uniform."""

import numpy as np
import pytest

from gentok.entropy import AdaptiveCoder, bits_of, packed, unpacked


@pytest.mark.parametrize("vocab", [1, 2, 3, 64, 1000, 1024, 65536])
def test_packing_is_invertible(vocab):
    ids = np.random.default_rng(0).integers(0, vocab, 37)
    data = packed(ids, bits_of(vocab))
    assert len(data) == -(-37 * bits_of(vocab) // 8) and (unpacked(data, 37, bits_of(vocab)) == ids).all()


def chunks(sizes, count, skew, seed=0):
    """Chunks [K, n] whose ids have p proportional to (v + 1)^-skew, in an order of each level's own."""
    rng = np.random.default_rng(seed)
    weights = [rng.permutation((np.arange(v) + 1.0) ** -skew) for v in sizes]
    return [np.stack([rng.choice(len(p), n, p=p / p.sum()) for p in weights]) for n in [*rng.integers(0, 200, count - 1), 500]], weights


@pytest.mark.parametrize("sizes", [(7,), (1,), (1024, 3, 50), (1 << 15,)])
@pytest.mark.parametrize("skew", [0.0, 1.5])
def test_chunks_come_back_in_order(sizes, skew):
    given, _ = chunks(sizes, 12, skew)
    coder, decoder = AdaptiveCoder(sizes), AdaptiveCoder(sizes)
    for codes in given:
        assert (decoder.decode(coder.encode(codes), codes.shape[1]) == codes).all()


def test_skewed_ids_cost_their_entropy_and_uniform_ones_no_more_than_packed():
    for skew, most in ((1.5, 1.03), (0.0, 1.001)):
        given, weights = chunks((256, 64), 60, skew)
        coder = AdaptiveCoder((256, 64))
        sizes = [len(coder.encode(codes)) for codes in given]
        late = slice(30, None)
        entropy = sum(-(p / p.sum() * np.log2(p / p.sum())).sum() for p in weights)
        ideal = sum(codes.shape[1] for codes in given[late]) * entropy / 8
        assert sum(sizes[late]) < most * ideal + 10 * len(given[late])


def test_a_coder_without_the_chunks_before_cannot_decode():
    given, _ = chunks((64,), 12, 1.5)
    coder = AdaptiveCoder((64,))
    made = [coder.encode(codes) for codes in given]
    fresh = AdaptiveCoder((64,))
    with pytest.raises(ValueError, match="chunk"):
        assert (fresh.decode(made[-1], 500) == given[-1]).all()
        raise AssertionError("chunk decoded without those before it")


def test_damage_is_noticed():
    given, _ = chunks((64,), 12, 1.5)
    coder, decoder = AdaptiveCoder((64,)), AdaptiveCoder((64,))
    for codes in given[:-1]:
        decoder.decode(coder.encode(codes), codes.shape[1])
    data = coder.encode(given[-1])
    assert data[0] == 1, "this chunk pays"
    for wrong in (data[:-4], data[:-1], b"", b"\x07" + data[1:], data[:40] + bytes([data[40] ^ 1]) + data[41:]):
        with pytest.raises(ValueError, match="chunk"):
            AdaptiveCoder.decode(_copy(decoder), wrong, 500)
    with pytest.raises(ValueError, match="ids below"):
        coder.encode(np.full((1, 3), 64))


def _copy(coder):
    out = AdaptiveCoder(coder.vocab_sizes, coder.decay)
    out.counts = [counts.copy() for counts in coder.counts]
    return out
