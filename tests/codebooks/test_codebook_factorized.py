"""DAC's codebook: codes by angle, values and losses of the rows as they are, projections per level, commitments, dropout of levels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from codebook_kit import inputs, rng
from torch.nn.utils.parametrizations import weight_norm

from gentok.codebooks.factorized_vq import FactorizedVQ
from gentok.codebooks.projected_residual import ProjectedResidual
from gentok.codebooks.vq import VQ
from gentok.types import ABSENT


def single(cls: type = FactorizedVQ, **options) -> FactorizedVQ:
    torch.manual_seed(0)
    return cls(**{"vocab_size": 32, "dim": 4, "width": 12, "kmeans_start": 0, "revive_below": 0.0, **options})


def residual(cls: type = ProjectedResidual, levels: int = 3, inner: type = FactorizedVQ, **options) -> ProjectedResidual:
    torch.manual_seed(0)
    return cls(single(inner), levels, **options)


def codes_are_by_angle_and_values_and_losses_of_the_rows(cls: type) -> None:
    book = single(cls)
    with torch.no_grad():
        book.weight.mul_(torch.linspace(0.2, 5.0, 32)[:, None])  # rows of very different lengths
    z = inputs(book)
    q = book(z)
    x = F.linear(z.transpose(1, 2), book.project_in.weight, book.project_in.bias)
    cosine = F.normalize(x, dim=2) @ F.normalize(book.weight, dim=1).T
    assert torch.equal(q.codes[:, 0], cosine.argmax(2))
    rows = book.weight[q.codes[:, 0]]
    assert torch.allclose(q.vectors.transpose(1, 2), F.linear(rows, book.project_out.weight, book.project_out.bias), atol=1e-6)
    assert torch.allclose(q.losses["codebook"], F.mse_loss(rows, x)) and torch.allclose(q.losses["commitment"], 0.25 * F.mse_loss(x, rows))
    q.losses["codebook"].backward(retain_graph=True)
    assert book.weight.grad.abs().sum() > 0 and book.project_in.bias.grad is None
    book.weight.grad = None
    q.losses["commitment"].backward()
    assert book.project_in.bias.grad.abs().sum() > 0 and book.weight.grad is None


def test_codes_are_by_angle_and_values_and_losses_of_the_rows():
    codes_are_by_angle_and_values_and_losses_of_the_rows(FactorizedVQ)


class ByDistance(FactorizedVQ):
    def _compared(self, x):
        return x


class UnitRows(FactorizedVQ):
    """Lengths are lost."""

    def _scaled(self, x):
        return F.normalize(x, dim=-1)

    def _table(self):
        return self._scaled(super()._table())


class Averages(FactorizedVQ):
    """Its rows are moving averages, and so no loss moves them."""

    def __init__(self, vocab_size, dim, width=None, **options):
        VQ.__init__(self, vocab_size, dim, width, False, "ema", **options)
        for linear in self._projections():
            weight_norm(linear)


@pytest.mark.parametrize("wrong", [ByDistance, UnitRows, Averages])
def test_another_comparison_or_loss_is_caught(wrong):
    with pytest.raises((AssertionError, KeyError)):
        codes_are_by_angle_and_values_and_losses_of_the_rows(wrong)


def test_it_starts_as_torch_does_without_bias_and_with_length_apart_from_direction():
    book = single(vocab_size=512, dim=8, width=256)
    assert 0.9 < book.weight.std() < 1.1
    for linear in (book.project_in, book.project_out):
        bound = linear.in_features**-0.5
        assert 0.9 * bound < linear.weight.abs().max() <= bound and not linear.bias.any()
        assert linear.parametrizations.weight.original0.shape == (linear.out_features, 1)
    first = book.project_in.weight.detach().clone()
    book.reset_parameters()
    assert not torch.equal(first, book.project_in.weight)  # a reset reaches what is behind the norm


def every_commitment_reaches_the_encoder(cls: type) -> None:
    """The property: where the projections span all there is and undo each other, each level's loss still has a gradient at the input."""
    for level in range(3):
        book = residual(cls)
        for k, part in enumerate(book.books):
            part.dim, part.commitment = 12, float(k == level)
            part.weight = torch.nn.Parameter(torch.randn(32, 12))
            part.project_in, part.project_out = torch.nn.Linear(12, 12), torch.nn.Linear(12, 12)
            for linear in (part.project_in, part.project_out):
                linear.load_state_dict({"weight": torch.eye(12), "bias": torch.zeros(12)})
        z = inputs(book).requires_grad_()
        book(z).losses["commitment"].backward()
        assert z.grad.abs().max() > 1e-8, f"the commitment of level {level} does not reach the encoder"


def test_every_levels_commitment_reaches_the_encoder():
    every_commitment_reaches_the_encoder(ProjectedResidual)


class SubtractsWithGradient(ProjectedResidual):
    """As the release does."""

    def _left_over(self, residual, value):
        return residual - value


def test_the_release_s_subtraction_is_caught():
    with pytest.raises(AssertionError, match="level 1"):
        every_commitment_reaches_the_encoder(SubtractsWithGradient)


def the_release(book: ProjectedResidual, z: torch.Tensor, n_levels: torch.Tensor) -> dict:
    """Vectors, codes and losses by the formulas of DAC's release, written out level by level."""
    total, rest = torch.zeros_like(z), z
    codes, codebook, commitment = [], 0.0, 0.0
    for k, part in enumerate(book.books):
        x = F.conv1d(rest, part.project_in.weight[..., None], part.project_in.bias)
        score = torch.einsum("bdn,vd->bvn", F.normalize(x, dim=1), F.normalize(part.weight, dim=1))
        index = score.argmax(1)
        rows = part.weight[index].transpose(1, 2)
        value = F.conv1d(rows, part.project_out.weight[..., None], part.project_out.bias)
        mask = (k < n_levels).float()
        total, rest = total + value * mask[:, None, None], rest - value
        error = (x - rows).square().mean((1, 2)) * mask
        codebook, commitment = codebook + error.mean(), commitment + 0.25 * error.mean()
        codes.append(torch.where(mask[:, None] > 0, index, ABSENT))
    return {"vectors": total, "codes": torch.stack(codes, 1), "codebook": codebook, "commitment": commitment}


def numbers_are_those_of_the_release(cls: type) -> None:
    book = residual(cls, level_dropout=0.5)
    for part in book.books:
        torch.nn.init.normal_(part.project_out.bias)  # a level that is left out must add nothing, its bias neither
    z = inputs(book)
    for n_levels in (torch.full((16,), 3), torch.arange(16) % 4):
        want, q = the_release(book, z, n_levels), book(z, n_levels=n_levels)
        assert torch.equal(q.codes, want["codes"]) and torch.allclose(q.vectors, want["vectors"], atol=1e-5)
        assert torch.allclose(q.losses["codebook"], want["codebook"]) and torch.allclose(q.losses["commitment"], want["commitment"])


def test_vectors_codes_and_losses_are_those_of_the_release_also_with_levels_left_out():
    numbers_are_those_of_the_release(ProjectedResidual)


class MeanOfTheKept(ProjectedResidual):
    def _count(self, residual, rows):
        return 1.0


class NothingLeftOut(ProjectedResidual):
    def _rows_using(self, level, n_levels):
        return None


class NoResidual(ProjectedResidual):
    def _left_over(self, residual, value):
        return residual


@pytest.mark.parametrize("wrong", [MeanOfTheKept, NothingLeftOut, NoResidual])
def test_other_numbers_than_the_release_s_are_caught(wrong):
    with pytest.raises(AssertionError):
        numbers_are_those_of_the_release(wrong)


def test_dropout_cuts_rows_to_a_uniform_number_of_levels():
    book = residual(level_dropout=0.5).train()
    z = inputs(book, batch=2000, positions=1)
    kept = (book(z, rng=rng(2000)).codes[:, :, 0] >= 0).sum(1)
    share = torch.bincount(kept, minlength=4) / 2000
    assert (share - torch.tensor([0, 1 / 6, 1 / 6, 4 / 6])).abs().max() < 0.035
    assert (book(z).codes >= 0).all() and (book.eval()(z, rng=rng(2000)).codes >= 0).all()


def the_decoder_teaches_every_projection(cls: type) -> None:
    book = residual(cls)
    z = inputs(book).requires_grad_()
    book(z).vectors.square().sum().backward()
    for k, part in enumerate(book.books):
        for linear in (part.project_in, part.project_out):
            assert linear.parametrizations.weight.original1.grad.abs().sum() > 0, f"level {k}"
        assert part.weight.grad is None  # rows learn by the codebook loss alone
    matrix = sum(part.project_out.weight @ part.project_in.weight for part in book.books).detach()
    sent = 2 * book(z).vectors.detach()
    assert torch.allclose(z.grad, torch.einsum("ij,bin->bjn", matrix, sent), atol=1e-6)


def test_the_decoders_gradient_reaches_all_projections_and_through_each_the_encoder():
    the_decoder_teaches_every_projection(ProjectedResidual)


class DetachedValues(ProjectedResidual):
    def _raised(self, level, vectors, positions):
        return vectors.detach()


def test_detached_values_are_caught():
    with pytest.raises((AssertionError, RuntimeError)):
        the_decoder_teaches_every_projection(DetachedValues)


def test_books_without_projections_and_several_levels_are_refused_in_one_line():
    with pytest.raises(ValueError, match="or use ResidualCodebook"):
        ProjectedResidual(FactorizedVQ(8, 4), 2)
    with pytest.raises(ValueError, match="one level"):
        ProjectedResidual(residual(), 2)
