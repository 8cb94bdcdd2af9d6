"""Sub-codes: the exact re-indexing of bits, and the sampled bits of the binary autoencoder."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from codebook_kit import inputs, rng, with_state

from gentok.codebooks.bae import BAE
from gentok.codebooks.bit_groups import BitGroups, from_bits, to_bits
from gentok.codebooks.lfq import LFQ
from gentok.codebooks.vq import VQ
from gentok.types import ABSENT, UNKNOWN


def views_are_re_indexings(view: BitGroups, book: LFQ) -> None:
    """The property: the digits of the whole code, in base 2^(b / K) and lowest first, are the codes of the levels."""
    z = 2 * inputs(view)
    whole, parts = book(z), view(z)
    number = sum(parts.codes[:, k] << (k * view.each) for k in range(view.levels))
    assert torch.equal(number, whole.codes[:, 0])
    assert torch.equal(parts.vectors, whole.vectors) and torch.equal(view.lookup(parts.codes), book.lookup(whole.codes))
    assert parts.losses.keys() == whole.losses.keys() and all(torch.equal(v, whole.losses[k]) for k, v in parts.losses.items())


@pytest.mark.parametrize("levels", [1, 2, 3, 6])
def test_a_view_of_bits_is_the_same_code_written_in_digits(levels):
    book = LFQ(bits=6).eval()
    views_are_re_indexings(BitGroups(book, levels).eval(), book)


class OtherOrder(BitGroups):
    """Its highest bits come first."""

    def forward(self, z, **options):
        q = super().forward(z, **options)
        return dataclasses.replace(q, codes=q.codes.flip(1))


def test_digits_in_the_other_order_are_caught():
    book = LFQ(bits=6).eval()
    view = BitGroups(book, 3).eval()
    with pytest.raises(AssertionError):
        views_are_re_indexings(with_state(OtherOrder, view), book)


@pytest.mark.parametrize(("levels", "each"), [(1, 62), (20, 1), (2, 10), (3, 7)])
def test_bits_and_codes_undo_each_other(levels, each):
    codes = torch.randint(1 << each, (3, levels, 5))
    assert torch.equal(from_bits(to_bits(codes, each), each), codes)


@pytest.mark.parametrize("width", [None, 9])
def test_the_nearest_of_all_unknown_cells_is_found_together(width):
    """Against all choices written out: behind a projection the levels are not independent, and one by one is not enough."""
    torch.manual_seed(1)
    view = BitGroups(LFQ(bits=6), 3, width=width).eval()
    v, codes = 2 * torch.randn(2, view.width, 12), torch.stack(torch.meshgrid(*[torch.arange(4)] * 3, indexing="ij")).reshape(1, 3, -1)
    given = torch.randint(4, (2, 3, 12))
    given = torch.where(torch.rand(2, 3, 12) < 0.6, UNKNOWN, given)
    given[:, 1, :3] = ABSENT
    found = view.nearest(v, given)
    for b in range(2):
        for n in range(12):
            cell = given[b, :, n]
            choices = torch.where(cell[:, None] == UNKNOWN, codes[0], cell[:, None])[None]
            distance = (view.lookup(choices)[0].T - v[b, :, n]).norm(dim=1)
            own = (view.lookup(found[b : b + 1, :, n : n + 1])[0, :, 0] - v[b, :, n]).norm()
            assert own <= distance.min() + 1e-5


def test_only_bits_without_projections_are_viewed():
    with pytest.raises(ValueError, match="give width to BitGroups"):
        BitGroups(LFQ(bits=6, width=8), 2)
    with pytest.raises(ValueError, match="lfq"):
        BitGroups(VQ(vocab_size=8, dim=4), 2)
    with pytest.raises(ValueError, match="levels that divide bits"):
        BitGroups(LFQ(bits=6), 4)
    with pytest.raises(ValueError, match="levels that divide bits"):
        BAE(bits=20, width=8, levels=3)


# ------------------------------------------------------------------------------------------------------------- BAE


def sampled_bits_have_the_encoders_probabilities(cls: type) -> None:
    torch.manual_seed(0)
    book = cls(bits=6, width=6, levels=2).train()
    z = (2 * torch.randn(1, 6, 1)).expand(4000, 6, 1)
    p = torch.sigmoid(book.logits(z[0, :, 0])).detach()
    share = to_bits(book(z, rng=rng(4000)).codes, 3).float().mean((0, 1))
    assert ((share - p).abs() < 4 * (p * (1 - p) / 4000).sqrt()).all(), (share, p)


def test_bits_are_drawn_with_the_probabilities_of_the_encoder():
    sampled_bits_have_the_encoders_probabilities(BAE)


class SecondSigmoid(BAE):
    def _draw(self, p, rng):
        return super()._draw(p.sigmoid(), rng)


def test_a_second_sigmoid_is_caught():
    with pytest.raises(AssertionError):
        sampled_bits_have_the_encoders_probabilities(SecondSigmoid)


def test_without_rng_or_training_the_likelier_bit_is_taken():
    book = BAE(bits=6, width=4, levels=2).train()
    z = inputs(book)
    likelier = from_bits(book.logits(z.transpose(1, 2)) > 0, 3)
    assert torch.equal(book(z).codes, likelier) and torch.equal(book.eval()(z, rng=rng()).codes, likelier)
    assert not torch.equal(book.train()(z, rng=rng()).codes, likelier)


def test_a_vector_is_the_sum_of_its_bits_and_the_gradient_that_of_the_probabilities():
    book = BAE(bits=6, width=4, levels=2).train()
    z = inputs(book, 2, 3).requires_grad_()
    q = book(z, rng=rng(2))
    bits = to_bits(q.codes, 3).float()
    assert torch.allclose(q.vectors, (bits @ book.weight).transpose(1, 2), atol=1e-6)
    weight = torch.randn_like(q.vectors)
    got = torch.autograd.grad(q.vectors, [z, book.weight], weight)
    p = torch.sigmoid(book.logits(z.transpose(1, 2)))
    expected = torch.autograd.grad((p @ book.weight.detach()).transpose(1, 2), z, weight)[0]
    assert torch.allclose(got[0], expected, atol=1e-6)
    assert torch.allclose(got[1], bits.flatten(0, 1).T @ weight.transpose(1, 2).flatten(0, 1), atol=1e-5)


def test_the_entropy_of_sure_bits_is_nothing_and_of_coins_log_two():
    book = BAE(bits=6, width=4, levels=2, entropy=1.0).train()
    with torch.no_grad():
        book.logits.weight.zero_()
        for bias, nats in ((0.0, math.log(2)), (30.0, 0.0), (-30.0, 0.0), (math.log(3), math.log(4) - 0.75 * math.log(3))):
            book.logits.bias.fill_(bias)
            assert book(inputs(book)).losses["entropy"].item() == pytest.approx(nats, abs=1e-5)
    assert BAE(bits=6, width=4)(torch.zeros(1, 4, 1)).losses == {}


def test_absent_sub_codes_are_bits_of_zero():
    book = BAE(bits=6, width=4, levels=3).eval()
    codes = torch.randint(4, (2, 3, 5))
    part = codes.clone()
    part[:, 1] = ABSENT
    rest = codes.clone()
    rest[:, [0, 2]] = ABSENT
    assert torch.allclose(book.lookup(part) + book.lookup(rest), book.lookup(codes), atol=1e-6)
    assert torch.allclose(book.lookup(rest).transpose(1, 2), book.table(1)[codes[:, 1]], atol=1e-6)
    with pytest.raises(ValueError, match="too large"):
        BAE(bits=40, width=4, levels=1).table()
