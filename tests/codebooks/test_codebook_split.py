"""Mimi's quantizers side by side: the same latent for both, dropout of acoustics alone, rows that pass unquantized, means of the losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from codebook_kit import inputs, rng, same, state

from gentok.codebooks.residual import ResidualCodebook
from gentok.codebooks.split_rvq import SplitRVQ
from gentok.codebooks.vq import VQ
from gentok.types import ABSENT


def book(cls: type = SplitRVQ, rate: float = 0.0, semantic: int = 1, acoustic: int = 3, **options) -> SplitRVQ:
    torch.manual_seed(0)

    def levels(n, **dropout):
        table = VQ(32, 6, normalize=False, update="ema", commitment=1.0, kmeans_start=0, revive_below=0.0)
        return ResidualCodebook(table, n, width=12, in_bias=False, **dropout)

    return cls(levels(semantic), levels(acoustic, **options), rate)


def the_release(b: SplitRVQ, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(vectors, codes, commitment) by Mimi's formulas: two residual quantizers on the same latent, their sum, the mean of all levels."""
    total, codes, errors = 0.0, [], []
    for part in (b.semantic, b.acoustic):
        rest = F.conv1d(z, part.project_in.weight[..., None])
        value = torch.zeros_like(rest)
        for table in (level.weight for level in part.books):
            index = torch.cdist(rest.transpose(1, 2), table).argmin(2)
            rows = table[index].transpose(1, 2)
            errors.append(F.mse_loss(rest, rows))
            value, rest = value + rows, rest - rows
            codes.append(index)
        total = total + F.conv1d(value, part.project_out.weight[..., None])
    return total, torch.stack(codes, 1), torch.stack(errors).mean()


def numbers_are_those_of_the_release(cls: type) -> None:
    for semantic, acoustic in ((1, 3), (2, 1)):
        b = book(cls, semantic=semantic, acoustic=acoustic).eval()
        z = inputs(b)
        vectors, codes, commitment = the_release(b, z)
        q = b(z)
        assert torch.equal(q.codes, codes) and torch.allclose(q.vectors, vectors, atol=1e-5)
        assert torch.allclose(q.losses["commitment"], commitment) and torch.equal(b.lookup(codes), q.vectors)
        assert all(part.project_in.bias is None and part.project_out.bias is None for part in (b.semantic, b.acoustic))


def test_vectors_codes_and_losses_are_those_of_the_release():
    numbers_are_those_of_the_release(SplitRVQ)


class AcousticsOfTheResidual(SplitRVQ):
    def _quantized(self, k, z, n_levels, rng):
        return super()._quantized(k, z - self.semantic(z).vectors.detach() if k else z, n_levels, rng)


class HalfEach(SplitRVQ):
    """Branches count, not levels."""

    def _shares(self, made):
        return super()._shares(made).new_full((2,), 0.5)


@pytest.mark.parametrize("wrong", [AcousticsOfTheResidual, HalfEach])
def test_other_numbers_than_the_release_s_are_caught(wrong):
    with pytest.raises(AssertionError):
        numbers_are_those_of_the_release(wrong)


def test_dropout_draws_a_count_of_acoustic_levels_alone():
    b = book(level_dropout=1.0).train()
    q = b(inputs(b, batch=900, positions=1), rng=rng(900))
    kept = (q.codes[..., 0] >= 0).sum(1)
    share = torch.bincount(kept, minlength=5) / 900
    assert (q.codes[:, 0] >= 0).all() and share[:2].sum() == 0 and (share[2:] - 1 / 3).abs().max() < 0.05
    of_batch = book(batch_dropout=1.0).train()
    counts = {int((of_batch(inputs(b), rng=rng(step=s)).codes >= 0).any(2).sum(1).unique()) for s in range(20)}
    assert counts == {2, 3, 4}


def test_losses_are_means_over_the_kept_cells_of_both():
    b = book().eval()
    z, n_levels = inputs(b), torch.arange(16) % 5
    q = b(z, n_levels=n_levels)
    first, rest = b.semantic(z, n_levels=n_levels.clamp(max=1)), b.acoustic(z, n_levels=(n_levels - 1).clamp(min=0))
    n = n_levels.clamp(max=1).sum(), (n_levels - 1).clamp(min=0).sum()
    want = (first.losses["commitment"] * n[0] + rest.losses["commitment"] * n[1]) / n_levels.sum()
    assert torch.allclose(q.losses["commitment"], want)
    assert b(z, n_levels=torch.zeros_like(n_levels)).losses["commitment"] == 0


def rows_pass_each_branch_unquantized_at_the_rate(cls: type) -> None:
    b = book(cls, rate=0.5).train()
    z = inputs(b, batch=600, positions=2)
    before = book(rate=0.0).train()
    q, plain = b(z, rng=rng(600)), before(z, rng=rng(600))
    assert torch.equal(q.codes, plain.codes) and same(state(b), state(before))  # tables learn from every row
    assert torch.allclose(q.losses["commitment"], plain.losses["commitment"])
    fresh = book().eval()  # the tables before they moved
    found = fresh(z)
    parts = []
    for part, codes in ((fresh.semantic, found.codes[:, :1]), (fresh.acoustic, found.codes[:, 1:])):
        parts.append((part.lookup(codes), part.outward(part.inward(z))))
    kinds = [parts[0][i] + parts[1][j] for i in (0, 1) for j in (0, 1)]
    error = torch.stack([(q.vectors - kind).abs().amax((1, 2)) for kind in kinds], 1)
    assert (error.amin(1) < 1e-5).all()
    share = torch.bincount(error.argmin(1), minlength=4) / 600
    assert (share - 0.25).abs().max() < 0.06  # one draw per row and branch
    b.eval()
    assert torch.equal(b(z, rng=rng(600)).vectors, b.lookup(b(z).codes))


def test_rows_pass_each_branch_unquantized_at_the_rate():
    rows_pass_each_branch_unquantized_at_the_rate(SplitRVQ)


class OneDrawForBoth(SplitRVQ):
    def _draw_unquantized(self, z, rng):
        drawn = super()._draw_unquantized(z, rng)
        return None if drawn is None else drawn[:, :1].expand(-1, 2)


class PastTheProjections(SplitRVQ):
    def _unquantized(self, book, z):
        return z


class AlsoInUse(SplitRVQ):
    def _draw_unquantized(self, z, rng):
        return rng.fork("bypass").uniform(2) < self.rate if rng is not None and self.rate > 0 else None


class OneDrawForTheBatch(SplitRVQ):
    def _draw_unquantized(self, z, rng):
        drawn = super()._draw_unquantized(z, rng)
        return None if drawn is None else drawn[:1]


@pytest.mark.parametrize("wrong", [OneDrawForBoth, PastTheProjections, AlsoInUse, OneDrawForTheBatch])
def test_rows_that_pass_otherwise_are_caught(wrong):
    with pytest.raises((AssertionError, RuntimeError)):
        rows_pass_each_branch_unquantized_at_the_rate(wrong)


def test_the_decoder_teaches_both_branches_and_every_row_s_gradient_arrives_through_both():
    b = book().eval()
    z = inputs(b).requires_grad_()
    b(z).vectors.backward(sent := torch.randn(16, 12, 16))
    matrix = sum(part.project_out.weight @ part.project_in.weight for part in (b.semantic, b.acoustic)).detach()
    assert torch.allclose(z.grad, torch.einsum("ij,bin->bjn", matrix, sent), atol=1e-5)


def test_there_are_no_nearest_codes_and_first_levels_are_a_code():
    b = book().eval()
    z = inputs(b)
    with pytest.raises(TypeError, match="no nearest") as error:
        b.nearest(z)
    assert "\n" not in str(error.value) and not b.has_nearest and b.nested_levels
    q = b(z, n_levels=torch.full((16,), 2))
    assert torch.equal(q.codes[:, :2], b(z).codes[:, :2]) and (q.codes[:, 2:] == ABSENT).all()


def test_books_that_do_not_fit_are_refused_in_one_line():
    narrow = ResidualCodebook(VQ(8, 6), 1, width=8)
    with pytest.raises(ValueError, match="of one width"):
        SplitRVQ(narrow, book().acoustic)
    with pytest.raises(ValueError, match="at most 1"):
        book(rate=1.5)
