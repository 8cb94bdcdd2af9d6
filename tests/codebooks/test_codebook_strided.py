"""SNAC's levels of several rates: its formulas, the cells that exist, commitments, the ends of sounds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from codebook_kit import inputs, rng

from gentok.codebooks.factorized_vq import FactorizedVQ
from gentok.codebooks.strided import StridedResidual
from gentok.layouts import LAYOUTS, Layout
from gentok.types import ABSENT, UNKNOWN, Frames, Tokens, TokenSpec


def book(cls: type = StridedResidual, strides=(4, 2, 1), **options) -> StridedResidual:
    torch.manual_seed(0)
    made = cls(FactorizedVQ(32, 4, 12, kmeans_start=0, revive_below=0.0), strides, **options)
    for part in made.books:
        torch.nn.init.normal_(part.project_out.bias)
        with torch.no_grad():
            part.project_in.weight, part.project_out.weight = 0.3 * torch.randn(4, 12), 0.3 * torch.randn(12, 4)
    return made


def the_release(b: StridedResidual, z: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """(vectors, a list of codes per level as SNAC has it, the sum of its levels' mean errors) by SNAC's formulas."""
    total, rest, codes, error = 0.0, z, [], 0.0
    for part, stride in zip(b.books, b.strides):
        x = F.conv1d(F.avg_pool1d(rest, stride, stride), part.project_in.weight[..., None], part.project_in.bias)
        index = torch.einsum("bdn,vd->bvn", F.normalize(x, dim=1), F.normalize(part.weight, dim=1)).argmax(1)
        rows = part.weight[index].transpose(1, 2)
        error = error + F.mse_loss(x, rows)
        value = F.conv1d(rows, part.project_out.weight[..., None], part.project_out.bias).repeat_interleave(stride, dim=2)
        total, rest = total + value, rest - value
        codes.append(index)
    return total, codes, error


def numbers_are_those_of_the_release(cls: type) -> None:
    for strides in ((4, 2, 1), (8, 4, 2, 1), (2, 2)):
        b = book(cls, strides)
        z = inputs(b)
        vectors, codes, error = the_release(b, z)
        q = b(z)
        for level, stride, found in zip(q.codes.unbind(1), b.strides, codes):
            assert torch.equal(level[:, ::stride], found)
            assert (level[:, torch.arange(16) % stride != 0] == ABSENT).all()
        assert torch.allclose(q.vectors, vectors, atol=1e-5) and torch.equal(b.lookup(q.codes), q.vectors)
        assert torch.allclose(q.losses["codebook"], error) and torch.allclose(q.losses["commitment"], 0.25 * error)


def test_vectors_codes_and_losses_are_those_of_the_release():
    numbers_are_those_of_the_release(StridedResidual)


class FirstOfEveryStride(StridedResidual):
    """Instead of the mean."""

    def _lowered(self, level, residual):
        return residual[..., :: self.strides[level]]


class Tiled(StridedResidual):
    """Instead of each code for a whole stride."""

    def _raised(self, level, vectors, positions):
        return vectors.repeat(1, 1, self.strides[level])[..., :positions]


class Crowded(StridedResidual):
    """In cells that the spec does not have."""

    def _placed(self, level, codes, positions):
        cells = codes.new_full((len(codes), 1, positions), ABSENT)
        cells[..., : codes.shape[2]] = codes
        return cells


@pytest.mark.parametrize("wrong", [FirstOfEveryStride, Tiled, Crowded])
def test_other_numbers_than_the_release_s_are_caught(wrong):
    with pytest.raises(AssertionError):
        numbers_are_those_of_the_release(wrong)


def test_every_levels_commitment_reaches_the_encoder():
    for level in range(3):
        b = book()
        for k, part in enumerate(b.books):
            part.commitment = float(k == level)
        z = inputs(b).requires_grad_()
        b(z).losses["commitment"].backward()
        assert z.grad.abs().max() > 1e-8


def test_the_last_frames_may_be_fewer_than_a_stride():
    b = book()
    z = inputs(b)
    for n in (1, 2, 3, 5, 15):
        q = b(z[..., :n])
        assert q.codes.shape == (16, 3, n) and torch.equal(b.lookup(q.codes), q.vectors)
        assert torch.equal(q.codes >= 0, (torch.arange(n) % torch.tensor([4, 2, 1])[:, None] == 0).expand_as(q.codes))
    mean = z[..., 12:15].mean(2)  # the fourth code of the first level is that of three frames
    last = b.book(0)(mean[..., None]).codes[:, 0, 0]
    assert torch.equal(b(z[..., :15]).codes[:, 0, 12], last)


def test_codes_behind_each_other_are_those_of_blocks():
    """What a block of `multiple` frames is coded to does not depend on its neighbours."""
    b = book()
    z = inputs(b)
    assert b.multiple == 4 and book(strides=(3, 2)).multiple == 6
    assert torch.equal(b(z).codes, torch.cat([b(block).codes for block in z.split(4, 2)], 2))


def test_dropped_levels_and_nearest_respect_the_cells():
    b = book(level_dropout=0.5).train()
    z = inputs(b, batch=400)
    q = b(z, rng=rng(400))
    kept = (q.codes[..., 0] >= 0).sum(1)
    assert set(kept.tolist()) == {1, 2, 3} and ((q.codes >= 0).any(2).sum(1) == kept).all()
    b.eval()
    v = b.lookup(q.codes[:16])
    for given in (None, torch.full((16, 3, 16), UNKNOWN)):
        assert torch.equal(b.nearest(v, given) >= 0, (b(z[:16]).codes >= 0))


def test_the_codes_fit_the_spec_s_cells_and_every_layout():
    b = book()
    spec = TokenSpec(b.vocab_sizes, Frames(10.0, 16), strides=b.strides, nested_levels=True, modality="audio", sample_rate=80)
    codes = b(inputs(b)).codes
    assert torch.equal(codes >= 0, Tokens.unknown(spec, 16).masked) and Tokens(codes, spec).validate()
    for name in LAYOUTS:
        if name == "raster":
            continue
        layout = Layout.of(name, spec)
        assert torch.equal(layout.unflatten(layout.flatten(codes)), codes)
        assert int(layout.exists.sum()) == 16 + 8 + 4


def test_strides_that_are_none_are_refused_in_one_line():
    with pytest.raises(ValueError, match="above 0"):
        book(strides=(2, 0))
    with pytest.raises(ValueError, match="or use ResidualCodebook"):
        StridedResidual(FactorizedVQ(8, 4), (2, 1))
