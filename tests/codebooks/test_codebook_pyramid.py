"""Scales of residuals: one straight-through around the whole, losses on the sums, what next-scale models are fed, and any book inside."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from codebook_kit import inputs, rng, state

from gentok.codebooks.base import straight_through
from gentok.codebooks.dual import DualCodebook
from gentok.codebooks.fsq import FSQ
from gentok.codebooks.ibq import IBQ
from gentok.codebooks.lfq import LFQ
from gentok.codebooks.pyramid import PyramidCodebook
from gentok.codebooks.residual import ResidualCodebook
from gentok.codebooks.search import row_mean
from gentok.codebooks.simvq import SimVQ
from gentok.codebooks.vq import VQ
from gentok.types import ABSENT
from gentok.types import Pyramid as PyramidGrid

SIDES = (1, 2, 3, 4)


def book(cls: type = PyramidCodebook, inner: dict | None = None, **options) -> PyramidCodebook:
    torch.manual_seed(0)
    settings = {"vocab_size": 32, "normalize": False, "kmeans_start": 5, "revive_below": 0.0, "decay": 0.99, **(inner or {})}
    return cls(VQ(dim=6, **settings), **{"sides": SIDES, "scale_dropout": 0.0, **options})


def sums(b: PyramidCodebook, codes: torch.Tensor) -> list[torch.Tensor]:
    """The map after each scale, float [B, dim, 4, 4], written out from the paper."""
    total, out, start = 0.0, [], 0
    for s, side in enumerate(b.sides):
        rows = b.book.rows(codes[:, 0, start : start + side**2]).transpose(1, 2).unflatten(2, (side, side))
        h = F.interpolate(rows, size=(4, 4), mode="bicubic") if side < 4 else rows
        if len(b.phi):
            place = [1 / 12 + i * (10 / 12) / 3 for i in range(4)]  # VAR: linspace(1/12, 11/12, 4)
            phi = b.phi[min(range(4), key=lambda i: abs(place[i] - s / 3))]
            h = 0.5 * h + 0.5 * phi(h)
        total, start = total + h, start + side**2
        out.append(total)
    return out


@pytest.mark.parametrize("phi", [0, 4])
def test_codes_and_vectors_are_those_of_the_paper(phi):
    b = book(phi=phi).train()
    b(inputs(b), rng=rng())
    b.eval()
    z = inputs(b, seed=5)
    q = b(z)
    f = sums(b, q.codes)
    torch.testing.assert_close(q.vectors, f[-1].flatten(2))
    start, x = 0, z.unflatten(2, (4, 4))
    for side, before in zip(SIDES, [torch.zeros_like(x), *f]):
        cells = F.interpolate(x - before, size=(side, side), mode="area").flatten(2).transpose(1, 2)
        codes = torch.cdist(cells.double(), b.book.weight.double()).argmin(2)
        assert (codes == q.codes[:, 0, start : start + side**2]).float().mean() > 0.99
        start += side**2


def the_gradients_are_those_of_the_formula(cls: type) -> None:
    """The property: the decoder's gradient arrives once, each scale's commitment pulls by 2 commitment (z - f_s), and nothing else does."""
    b = book(cls, phi=4, commitment=0.5).train()
    b(inputs(b), rng=rng())
    b.eval()
    z = inputs(b).requires_grad_()
    q = b(z)
    weight = torch.randn(16, 6, 16)
    ((q.vectors * weight).sum() + q.losses["commitment"]).backward()
    f = [total.flatten(2).detach() for total in sums(b, q.codes)]
    pull = sum(2 * 0.5 * (z.detach() - total) / z.numel() for total in f) / len(f)
    assert torch.allclose(z.grad - weight, pull, atol=1e-6), "the gradient is not that of the formula"
    expected = sum((total - z.detach()).square().mean() for total in f) / len(f)
    torch.testing.assert_close(q.losses["codebook"], expected)
    torch.testing.assert_close(q.losses["commitment"], 0.5 * expected)


def test_gradient_of_decoder_and_commitment_arrive_once():
    the_gradients_are_those_of_the_formula(PyramidCodebook)


class StraightThroughInside(PyramidCodebook):
    def _chosen(self, x, codes):
        return self.book(x).vectors.transpose(1, 2)


class StraightThroughInThePull(PyramidCodebook):
    def _pull(self, x, total, present):
        return row_mean((x - straight_through(total, x)).square(), present)


class NoResidual(PyramidCodebook):
    def _left_over(self, x, total):
        return x


class LastScaleAlone(PyramidCodebook):
    def _penalised(self, totals, skip):
        return totals[-1:]


def test_a_straight_through_inside_is_caught():
    """The term that trains rows and phi then reaches the encoder."""
    with pytest.raises(AssertionError):
        the_rows_term_leaves_the_encoder_alone(StraightThroughInside)


@pytest.mark.parametrize("wrong", [StraightThroughInThePull, LastScaleAlone])
def test_other_gradients_are_caught(wrong):
    with pytest.raises(AssertionError):
        the_gradients_are_those_of_the_formula(wrong)


def test_scales_that_code_the_whole_are_caught():
    with pytest.raises(AssertionError):
        errors_fall_with_scales(NoResidual)


def the_rows_term_leaves_the_encoder_alone(cls: type) -> None:
    b = book(cls, phi=4).train()
    z = inputs(b).requires_grad_()
    b(z, rng=rng())
    b(z, rng=rng()).losses["codebook"].backward()
    assert z.grad is None and all(p.grad.abs().sum() > 0 for p in b.parameters())


def test_the_rows_term_trains_rows_and_phi_alone():
    the_rows_term_leaves_the_encoder_alone(PyramidCodebook)


def errors_fall_with_scales(cls: type) -> None:
    b = book(cls, inner={"update": "ema", "decay": 0.8, "revive_below": 0.1}).train()
    for step in range(8):
        b(inputs(b, seed=step), rng=rng(step=step))
    b.eval()
    z = inputs(b, seed=1)
    errors, codes = [], b(z).codes
    for s in range(len(SIDES) + 1):
        cut = codes.clone()
        cut[:, :, sum(b.cells[:s]) :] = ABSENT
        errors.append((b.lookup(cut) - z).square().mean().item())
    assert all(later < earlier for earlier, later in zip(errors, errors[1:])), errors


def test_every_scale_makes_the_error_smaller():
    errors_fall_with_scales(PyramidCodebook)


def test_accumulate_sums_up_to_each_scale_at_the_size_of_the_next():
    b = book(phi=4, width=10).eval()
    codes = torch.randint(32, (2, 1, 30), generator=torch.Generator().manual_seed(0))
    fed = b.accumulate(codes, range(1, 4))
    f = sums(b, codes)
    expected = torch.cat([F.interpolate(f[s - 1], size=(SIDES[s],) * 2, mode="area").flatten(2) for s in range(1, 4)], 2)
    torch.testing.assert_close(fed, b.outward(expected.transpose(1, 2)))
    torch.testing.assert_close(b.accumulate(codes, [4]), b.lookup(codes))
    torch.testing.assert_close(b.accumulate(codes[:, :, :5], [2]), fed[:, :, 4:13])  # as sampling asks: no later code is needed
    assert b.accumulate(codes, [0]).shape == (2, 10, 1) and not b.accumulate(codes, [0]).any()
    with pytest.raises(ValueError, match="have 14 codes; got 5"):
        b.accumulate(codes[:, :, :5], [3])
    with pytest.raises(ValueError, match="0 to 4"):
        b.accumulate(codes, [5])


def test_progressive_sums_are_raised_from_scale_to_scale():
    b = book(carry="progressive").eval()
    codes = torch.randint(32, (2, 1, 30), generator=torch.Generator().manual_seed(0))
    rows = b.book.rows(codes[:, 0]).transpose(1, 2)
    one = F.interpolate(rows[:, :, :1].unflatten(2, (1, 1)), size=(2, 2), mode="bicubic")
    two = F.interpolate(one + rows[:, :, 1:5].unflatten(2, (2, 2)), size=(3, 3), mode="bicubic")
    torch.testing.assert_close(b.accumulate(codes, [1, 2]), torch.cat([one.flatten(2), two.flatten(2)], 2))
    assert not torch.allclose(b.accumulate(codes, [2]), book().eval().accumulate(codes, [2]))


@pytest.mark.parametrize("options", [{"phi": 4, "width": 10}, {"carry": "progressive"}])
def test_sums_at_the_size_of_the_last_scale_that_is_summed(options):
    b = book(**options).eval()
    codes = torch.randint(32, (2, 1, 30), generator=torch.Generator().manual_seed(0))
    own = b.accumulate(codes, [1, 2, 3], own=True)
    assert own.shape[2] == 1 + 4 + 9 and torch.equal(b.accumulate(codes, [4], own=True), b.accumulate(codes, [4]))
    if "carry" in options:  # the sum so far, raised to this size, and this scale's rows
        rows = b.book.rows(codes[:, 0]).transpose(1, 2)
        raised = b.accumulate(codes, [1, 2])
        want = torch.cat((rows[:, :, :1], raised[:, :, :4] + rows[:, :, 1:5], raised[:, :, 4:] + rows[:, :, 5:14]), 2)
    else:
        sized = [F.interpolate(f, size=(side, side), mode="area").flatten(2) for f, side in zip(sums(b, codes), SIDES[:3])]
        want = b.outward(torch.cat(sized, 2).transpose(1, 2))
    torch.testing.assert_close(own, want)


def test_a_batch_leaves_out_one_scale_but_the_first_as_often_as_asked():
    b = book(scale_dropout=0.3).train()
    z = inputs(b, batch=4)
    skipped = [b._draw_skip(rng(4, step)) for step in range(1000)]
    share = [skipped.count(s) / 1000 for s in range(4)]
    assert share[0] == 0 and all(abs(p - 0.1) < 0.035 for p in share[1:])
    order = torch.tensor([2, 0, 3, 1])
    assert all(b._draw_skip(rng(4, step).rows(order)) == skip for step, skip in enumerate(skipped[:50]))
    step = next(step for step, skip in enumerate(skipped) if skip == 2)
    q = b(z, rng=rng(4, step))
    assert (q.codes[:, :, 5:14] == ABSENT).all() and (q.codes[:, :, :5] >= 0).all() and (q.codes[:, :, 14:] >= 0).all()
    assert (b(z).codes >= 0).all() and (b.eval()(z, rng=rng(4, step)).codes >= 0).all()


@pytest.mark.parametrize(
    "inner",
    [FSQ([5, 5, 5]), LFQ(bits=6, entropy=0.5), DualCodebook(32, 4, 3, kmeans_start=3), VQ(32, 6, kmeans_start=3)],
    ids=lambda b: type(b).__name__,
)
def test_any_codebook_of_one_level_can_be_inside(inner):
    b = PyramidCodebook(inner, SIDES, phi=4, scale_dropout=0.0).train()
    z = inputs(b).requires_grad_()
    q = b(z, rng=rng())
    (q.vectors.sum() + sum(q.losses.values())).backward()
    assert z.grad.abs().sum() > 0 and all(p.grad.abs().sum() > 0 for p in b.parameters())
    assert b.parts == inner.parts and ("diversity" in "".join(q.losses) or "entropy" in "".join(q.losses)) == isinstance(inner, LFQ)
    b.eval()
    q = b(z)
    assert torch.equal(b.lookup(q.codes), q.vectors)


@pytest.mark.parametrize(
    "inner",
    [VQ(32, 4, kmeans_start=0), DualCodebook(32, 3, 2, kmeans_start=0), SimVQ(32, 4), IBQ(32, 4, entropy=0.0)],
    ids=lambda b: type(b).__name__,
)
def test_every_parameter_of_the_book_inside_learns(inner):
    b = PyramidCodebook(copy.deepcopy(inner), SIDES, scale_dropout=0.0).train()
    q = b(inputs(b, positions=SIDES[-1] ** 2), rng=rng())
    sum(q.losses.values()).backward()
    for name, parameter in b.book.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_all_scales_train_one_table_once_per_step():
    b = book(inner={"update": "ema", "decay": 0.5}).train()
    b(inputs(b), rng=rng())
    before = b.book.usage.clone()
    b(inputs(b, seed=1), rng=rng(step=1))
    assert b.book.usage.sum() == pytest.approx(16 * 30, rel=1e-4) and not torch.equal(before, b.book.usage)


def test_the_coarse_scales_do_not_collapse_while_training():
    """The known failure: rows that only a coarse scale uses are few among all cells, and must live nevertheless."""
    b = book(inner={"vocab_size": 64, "update": "ema", "decay": 0.8, "revive_below": 0.1}, sides=(1, 2, 4, 8)).train()
    for step in range(30):
        q = b(inputs(b, batch=32, positions=64, seed=step) + 2 * torch.randn(32, 6, 1, generator=torch.Generator().manual_seed(step)),
              rng=rng(32, step))  # fmt: skip
    usage = b.scale_usage(q.codes)
    assert usage.shape == (4,) and usage[0] > 0.15 and (usage[1:] > 0.5).all(), usage


def test_left_out_rows_count_for_nothing():
    whole, part = book(phi=4).train(), book(phi=4).train()
    z, n_levels = inputs(whole), (torch.arange(16) < 8).long()
    a, b = whole(z[:8], rng=rng(8)), part(z, n_levels=n_levels, rng=rng(16))
    assert torch.equal(a.codes, b.codes[:8]) and (b.codes[8:] == ABSENT).all() and not b.vectors[8:].any()
    assert torch.allclose(a.losses["commitment"], b.losses["commitment"], rtol=1e-5)
    x, y = state(whole), state(part)
    assert all(torch.allclose(x[key].float(), y[key].float(), atol=1e-5) for key in x)


def test_what_does_not_fit_is_refused_in_one_line():
    assert book().grid(4, 4) == PyramidGrid(SIDES)
    for h, w in ((5, 5), (4, 6)):
        with pytest.raises(ValueError, match=f"of 4 x 4 cells; got {h} x {w}"):
            book().grid(h, w)
    with pytest.raises(ValueError, match="takes float"):
        book()(torch.zeros(2, 6, 9))
    with pytest.raises(ValueError, match="growing"):
        book(sides=(1, 4, 2))
    with pytest.raises(ValueError, match="one level"):
        PyramidCodebook(ResidualCodebook(VQ(8, 4), 2), SIDES)
    with pytest.raises(ValueError, match="give width to PyramidCodebook"):
        PyramidCodebook(VQ(8, 4, width=6), SIDES)
    with pytest.raises(ValueError, match="phi=0"):
        book(carry="progressive", phi=4)
    with pytest.raises(ValueError, match="more than 2 scales"):
        book(sides=(1, 4), phi=4)
