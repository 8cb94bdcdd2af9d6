"""One index for two halves: the distance of equation 1, its limits, and the mutants that look right and are not."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from codebook_kit import rng, state, with_state

from gentok.codebooks.dual import DualCodebook
from gentok.codebooks.separate import SeparateCodebooks
from gentok.codebooks.vq import VQ

S, P, V = 6, 3, 40


def book_of(w: float = 1.0, cls: type = DualCodebook, **options) -> DualCodebook:
    torch.manual_seed(0)
    return with_state(cls, DualCodebook(V, S, P, w=w, **options)).eval()


def inputs(batch: int = 8, positions: int = 16, seed: int = 0) -> torch.Tensor:
    """float [B, S + P, M]; the halves have scales of their own, so that what is normalised, and when, matters."""
    z = torch.randn(batch, S + P, positions, generator=torch.Generator().manual_seed(seed))
    return torch.cat([5.0 * z[:, :S], 0.2 * z[:, S:]], 1)


def by_the_paper(book: DualCodebook, z: torch.Tensor, w: float) -> torch.Tensor:
    """argmin_v |s - e_s,v|^2 + w |p - e_p,v|^2, written out in float64."""
    s, p = F.normalize(z[:, :S].double(), dim=1), F.normalize(z[:, S:].double(), dim=1)
    e_s, e_p = (F.normalize(half.double(), dim=1) for half in (book.weight[:, :S], book.weight[:, S:]))
    distance = (s[:, None] - e_s[None, :, :, None]).square().sum(2) + w * (p[:, None] - e_p[None, :, :, None]).square().sum(2)
    return distance.argmin(1)


def takes_the_code_of_the_paper(cls: type = DualCodebook) -> None:
    for w in (0.0, 0.25, 1.0, 4.0, 1e6):
        book, z = book_of(w, cls), inputs()
        agree = (book(z).codes[:, 0] == by_the_paper(book, z, w)).float().mean().item()
        assert agree > 0.99, f"w = {w}: {agree:.0%} of the codes are those of equation 1"


def test_the_code_is_the_argmin_of_the_summed_distances():
    takes_the_code_of_the_paper()


class BeforeNormalisation(DualCodebook):
    """On the sphere nothing is left of the weight."""

    def _scaled(self, x):
        return torch.cat([F.normalize(half * u, dim=-1) for half, u in zip(x.split(self._split, -1), (1, self.w + 1e-9))], -1)

    def _compared(self, x):
        return x


class NormalisedTogether(DualCodebook):
    def _scaled(self, x):
        return F.normalize(x, dim=-1)


class Squared(DualCodebook):
    def _scales(self):
        return 1 / (1 + self.w), self.w / (1 + self.w)


class OnTheOtherHalf(DualCodebook):
    def _scales(self):
        return super()._scales()[::-1]


@pytest.mark.parametrize("wrong", [BeforeNormalisation, NormalisedTogether, Squared, OnTheOtherHalf])
def test_a_weight_in_the_wrong_place_is_caught(wrong):
    with pytest.raises(AssertionError, match="of the codes are those of equation 1"):
        takes_the_code_of_the_paper(wrong)


def test_no_weight_and_all_the_weight_are_the_nearest_in_one_half():
    z = inputs()
    for w, part, other in ((0.0, slice(0, S), slice(S, None)), (math.inf, slice(S, None), slice(0, S))):
        book = book_of(w)
        unit = F.normalize(z[:, part], dim=1)
        rows = F.normalize(book.weight[:, part], dim=1)
        assert torch.equal(book(z).codes[:, 0], torch.einsum("bdm,vd->bvm", unit, rows).argmax(1))
        moved = z.clone()
        moved[:, other] = torch.randn_like(moved[:, other])
        assert torch.equal(book(moved).codes, book(z).codes)


def test_parts_name_the_channels_of_input_and_of_lookup():
    book, z = book_of(), inputs()
    assert book.parts == {"semantic": slice(0, S), "pixel": slice(S, S + P)} and book.in_width == book.width == S + P
    vectors = book(z).vectors
    for part in book.parts.values():
        torch.testing.assert_close(vectors[:, part].norm(dim=1), torch.ones(8, 16))
    scaled = z.clone()
    scaled[:, :S] *= 7.0  # halves are normalised one by one
    assert torch.equal(book(scaled).codes, book(z).codes)


@pytest.mark.parametrize("w", [0.0, 1.0, 1e4, math.inf])
def test_nearest_undoes_lookup_whatever_the_weight(w):
    book = book_of(w)
    codes = torch.arange(V).view(1, 1, V)
    assert torch.equal(book.nearest(book.lookup(codes)), codes)


def test_the_loss_is_the_mean_over_both_halves_and_does_not_see_the_weight():
    z = inputs()
    for w in (1.0, 4.0):
        book = book_of(w)
        q = book(z)
        x = torch.cat([F.normalize(z[:, :S], dim=1), F.normalize(z[:, S:], dim=1)], 1)
        error = (x - q.vectors.detach()).square().mean()
        torch.testing.assert_close(q.losses["codebook"], error)
        torch.testing.assert_close(q.losses["commitment"], 0.25 * error)


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_kmeans_start_and_revival_keep_both_halves_on_their_spheres(update):
    torch.manual_seed(0)
    book = DualCodebook(V, S, P, update=update, kmeans_start=5, revive_below=0.3, decay=0.5).train()
    for step in range(6):
        book(inputs(seed=step % 2), rng=rng(8, step))
        for part in book.parts.values():
            torch.testing.assert_close(book.table()[:, part].norm(dim=1), torch.ones(V))
    assert book.eval()(inputs(seed=0)).usage > 0.5


@pytest.mark.parametrize("options, word", [({"w": -1.0}, "w=-1.0"), ({"w": math.nan}, "w=nan"), ({"pixel": 0}, "pixel=0")])
def test_halves_and_weights_that_cannot_be_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        DualCodebook(V, **options)


# ---------------------------------------------------------------------------------------------------------------- separate


def test_separate_codes_are_those_of_each_book_alone():
    torch.manual_seed(0)
    semantic, pixel = VQ(16, S), VQ(12, P)
    book, z = SeparateCodebooks(semantic, pixel).eval(), inputs()
    q = book(z)
    assert book.vocab_sizes == (16, 12) and q.codes.shape == (8, 2, 16)
    assert torch.equal(q.codes[:, :1], semantic(z[:, :S]).codes) and torch.equal(q.codes[:, 1:], pixel(z[:, S:]).codes)
    assert set(q.losses) == {"semantic_commitment", "semantic_codebook", "pixel_commitment", "pixel_codebook"}
    swapped = z.clone()
    swapped[:, :S] = inputs(seed=1)[:, :S]
    assert torch.equal(book(swapped).codes[:, 1:], q.codes[:, 1:])  # looks do not depend on meaning


def test_separate_refuses_books_of_several_levels():
    with pytest.raises(ValueError, match="one level"):
        SeparateCodebooks(VQ(16, S), SeparateCodebooks(VQ(4, 2), VQ(4, 2)))


def test_a_dual_book_is_the_state_that_it_shows():
    book = book_of()
    assert {"weight", "usage", "started"} == set(state(book))
