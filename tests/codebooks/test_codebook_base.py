"""The search for the nearest row, the estimator, the float32 guard, and bounded memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from codebook_kit import inputs, make, rng, trained, with_state

from gentok.codebooks import search
from gentok.codebooks.base import straight_through
from gentok.codebooks.search import draw_vectors, nearest_rows
from gentok.codebooks.vq import VQ


@pytest.mark.parametrize("n, rows, budget", [(1, 1, 64), (300, 77, 1 << 10), (257, 1000, 1 << 12), (64, 5000, 1 << 10), (50, 40, 4 << 20),
                                             (40, 1024, 4 << 20), (90, 4096, 1 << 16)])  # fmt: skip
def test_search_in_blocks_is_the_search_at_once(monkeypatch, n, rows, budget):
    monkeypatch.setattr(search, "block_bytes", lambda device: budget)
    x, table = torch.randn(n, 6), torch.randn(rows, 6)
    table[rows // 2] = table[rows // 3] = table[0]  # equal rows, near and far: the first wins
    x[0] = table[0]
    found = nearest_rows(x, table)
    assert found[0] == 0
    assert torch.equal(found, torch.cdist(x.double(), table.double()).argmin(1))


def test_search_survives_a_common_offset():
    x = torch.randn(500, 6)
    table = torch.randn(100, 6)
    assert (nearest_rows(x + 1e3, table + 1e3) == nearest_rows(x, table)).float().mean() > 0.99


def test_straight_through_keeps_every_bit_of_the_value_and_the_gradient_of_the_input():
    value, x = torch.randn(10_000), (1e4 * torch.randn(10_000)).requires_grad_()
    out = straight_through(value, x)
    assert torch.equal(out, value)
    out.backward(weight := torch.randn(10_000))
    assert torch.equal(x.grad, weight)
    assert not torch.equal(x + (value - x).detach(), value)  # the usual order of the sum does not


def test_drawn_vectors_do_not_depend_on_how_the_batch_is_spread():
    x, keys = torch.randn(8, 5, 3), rng(8)
    drawn = draw_vectors(x, keys, 12)
    order = torch.tensor([3, 1, 7, 0, 6, 2, 5, 4])
    assert torch.equal(draw_vectors(x[order], keys.rows(order), 12), drawn)
    assert len(draw_vectors(x, keys, 100)) == 40 and len(drawn.unique(dim=0)) == 12
    present = torch.arange(8) < 2
    inside = {tuple(v.tolist()) for v in x[:2].flatten(0, 1)}
    assert {tuple(v.tolist()) for v in draw_vectors(x, keys, 100, present)} == inside


@pytest.mark.parametrize("name", ["vq", "fsq"])
def test_without_the_float32_guard_bf16_changes_the_codes(name):
    book = trained(name)
    bare = type("Bare", (type(book),), {})
    bare.forward = type(book).forward.__wrapped__
    z = inputs(book)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(book(z).codes, book(z.float()).codes)
        codes = with_state(bare, book)(z).codes
    assert (codes != book(z).codes).float().mean() > 0.01


def _peak_memory() -> int:
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def _growth(vectors: int) -> int:
    """Bytes by which one training step at V = 262,144 raises the process's peak."""
    book = VQ(vocab_size=262_144, dim=4, update="ema", revive_below=0.1, kmeans_start=0).train()
    z = torch.randn(vectors // 256, 4, 256)
    Path("/proc/self/clear_refs").write_text("5")  # forget the earlier peak
    before = _peak_memory()
    q = book(z, rng=rng(len(z)))
    assert q.codes.unique().numel() > 0.5 * vectors
    return _peak_memory() - before


linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")


@linux
def test_memory_stays_bounded_with_a_large_vocabulary():
    assert _growth(2_048) < 200 << 20  # all distances at once: 2 GiB


@linux
@pytest.mark.slow
def test_memory_stays_bounded_with_a_large_vocabulary_and_65536_vectors():
    assert _growth(65_536) < 300 << 20  # all distances at once: 64 GiB


def test_a_computed_table_too_large_to_write_out_is_refused_in_one_line():
    book = make("lfq", bits=40, width=None).eval()
    codes = torch.randint(1 << 40, (2, 1, 8))
    assert torch.equal(book.nearest(book.lookup(codes)), codes)
    with pytest.raises(ValueError, match="too large"):
        book.table()
