"""Codebooks without a table: FSQ and bits. Formulas, entropies, parity with vector-quantize-pytorch."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from codebook_kit import inputs

from gentok.codebooks.fsq import FSQ
from gentok.codebooks.lfq import LFQ, _sum_of_distributions


def test_fsq_codes_vectors_and_gradients_are_those_of_the_library():
    vqp = pytest.importorskip("vector_quantize_pytorch")
    ours, theirs = FSQ([8, 5, 4, 3]), vqp.FSQ([8, 5, 4, 3])
    z = (3 * inputs(ours)).requires_grad_()
    w = z.detach().clone().requires_grad_()
    q = ours(z)
    vectors, codes = theirs(w.transpose(1, 2))
    assert torch.equal(q.codes[:, 0], codes.long()) and torch.allclose(q.vectors, vectors.transpose(1, 2), atol=1e-6)
    weight = torch.randn_like(q.vectors)
    q.vectors.backward(weight)
    vectors.transpose(1, 2).backward(weight)
    assert torch.allclose(z.grad, w.grad, atol=1e-6)


def test_fsq_reaches_every_code_and_has_no_state():
    book = FSQ([8, 5, 4, 3])
    table = book.table()
    assert len(table.unique(dim=0)) == 480 and table.min() == -1 and table.max() <= 1
    codes = torch.arange(480).view(1, 1, -1)
    half = torch.tensor([(v - 1) * 1.001 / 2 for v in book.values])
    offset = torch.tensor([0.5 if v % 2 == 0 else 0.0 for v in book.values])
    bounded = table * torch.tensor([v // 2 for v in book.values])
    z = torch.atanh(((bounded + offset) / half).clamp(-0.99999, 0.99999)) - torch.atanh(offset / half)
    assert torch.equal(book(z.T[None]).codes, codes)
    assert book.state_dict() == {} and not list(book.parameters())
    with pytest.raises(ValueError, match="lfq"):
        FSQ([8, 2])


def test_nearest_of_a_vector_between_rows_is_the_nearest_row():
    for book in (FSQ([8, 5, 4]), LFQ(bits=6)):
        v = 1.5 * torch.randn(4, book.width, 50)
        brute = torch.cdist(v.transpose(1, 2).double(), book.table().double()[None]).argmin(2)
        assert torch.equal(book.nearest(v)[:, 0], brute)


def test_bits_are_signs_first_channel_lowest():
    book = LFQ(bits=3).eval()
    z = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 3.0, 0.0]]).T[None]
    assert book(z).codes.tolist() == [[[1 + 4, 2]]]


def distribution(x: torch.Tensor, temperature: float) -> torch.Tensor:
    """q(c | x) over all 2^k codes in one table, from the definition: [n, 2^k]."""
    codes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=x.shape[1])), dtype=x.dtype)
    return (-(x[:, None] - codes).square().sum(2) / temperature).softmax(1)


@pytest.mark.parametrize("group_bits", [5, 18])
@pytest.mark.parametrize("bits", [1, 5])
def test_entropies_are_those_of_the_written_out_distribution(bits, group_bits):
    book = LFQ(bits=bits, entropy=0.3, diversity=0.7, temperature=1.7, group_bits=group_bits).train()
    z = torch.randn(4, bits, 8, requires_grad=True)
    loss = book(z).losses["entropy"]
    x = z.detach().transpose(1, 2).reshape(-1, bits).double().requires_grad_()
    q = distribution(x, 1.7)
    expected = 0.3 * (torch.special.entr(q).sum(1).mean() - 0.7 * torch.special.entr(q.mean(0)).sum())
    assert torch.allclose(loss.double(), expected, atol=1e-5)
    loss.backward(), expected.backward()
    assert torch.allclose(z.grad.double().transpose(1, 2).reshape(-1, bits), x.grad, atol=1e-6)


def test_groups_add_their_entropies():
    book = LFQ(bits=5, entropy=1.0, temperature=2.0, group_bits=3).train()
    z = torch.randn(4, 5, 8)
    x = z.transpose(1, 2).reshape(-1, 5)
    assert book.groups == [3, 2]
    spread = sum(torch.special.entr(distribution(part, 2.0).mean(0)).sum() for part in x.split([3, 2], 1))
    sure = torch.special.entr(distribution(x, 2.0)).sum(1).mean()
    assert torch.allclose(book(z).losses["entropy"], sure - spread, atol=1e-4)


def test_the_sum_of_distributions_in_chunks_is_the_sum_of_distributions(monkeypatch):
    logits, weight = torch.randn(100, 5, requires_grad=True), torch.rand(100)
    whole = _sum_of_distributions(logits, weight)
    (grad,) = torch.autograd.grad(whole.square().sum(), logits)
    monkeypatch.setattr("gentok.codebooks.lfq.CHUNK", 17)
    chunked = _sum_of_distributions(logits, weight)
    assert torch.allclose(chunked, whole, atol=1e-5)
    assert torch.allclose(torch.autograd.grad(chunked.square().sum(), logits)[0], grad, atol=1e-4)


def test_many_bits_need_no_table():
    book = LFQ(bits=36).train()
    q = book(torch.randn(2, 36, 64))
    assert q.codes.max() > 1 << 32 and all(loss.isfinite() for loss in q.losses.values())
    assert math.isclose(q.usage.item(), 128 / 2**36, rel_tol=1e-3)


def test_entropy_training_uses_all_codes():
    """A badly placed encoder: every bit is on. The loss spreads its codes over the vocabulary."""
    torch.manual_seed(0)
    layer = torch.nn.Conv1d(6, 5, 1)
    with torch.no_grad():
        layer.bias.fill_(1.0)
    book = LFQ(bits=5, entropy=0.3).train()
    optimizer = torch.optim.Adam(layer.parameters(), 3e-2)
    x = torch.randn(32, 6, 32)
    before = book(layer(x)).usage
    for _ in range(200):
        optimizer.zero_grad()
        sum(book(layer(x)).losses.values()).backward()
        optimizer.step()
    assert before < 0.5 and book(layer(x)).usage == 1
