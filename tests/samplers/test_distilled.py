"""Sampling by a distilled generator: passes, calls, and the span that its teacher gives."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from gentok.rng import RowRNG
from gentok.samplers.base import fitting
from gentok.samplers.distilled import DistilledSampler
from gentok.samplers.guided import guided
from gentok.types import ABSENT, UNKNOWN, Condition, Line, Tokens, TokenSpec

sys.path.append(str(Path(__file__).parents[1] / "generators"))
from distilled_kit import SPEC, distilled, start  # noqa: E402

N = SPEC.positions


@pytest.fixture(scope="module")
def model():
    return distilled(split=4)


def drawn(model, sampler, batch=5, known=None, rows=None, **options):
    """(the output, the noise that it was made of)."""
    condition = start(model, batch)[2]
    rows = range(batch) if rows is None else rows
    out = sampler(model, condition.rows(list(rows)), rng=RowRNG.of(1, rows), known=known, **options)
    return out, RowRNG.of(1, rows).normal(model.spec.positions, model.channels)


def best(model, codes, noise, condition):
    return model.jump(codes, noise, condition).argmax(3)


def filled(model, noise, condition, passes):
    """By hand: passes [(first, behind the last, whether the teacher's)]."""
    codes = Tokens.unknown(SPEC, len(noise)).codes
    for first, end, teachers in passes:
        if teachers:
            codes = model.follow(codes, noise, condition, range(first, end))
        else:
            now = best(model, codes, noise, condition)
            codes[:, :, first:end] = now[:, :, first:end]
    return codes


@pytest.mark.parametrize(
    "options, passes, calls",
    [
        ({}, [(0, N, False)], 1),
        ({"steps": 2}, [(0, 4, False), (4, N, False)], 2),
        ({"assist": [0, N]}, [(0, N, True)], N),
        ({"assist": [0, N], "steps": 2}, [(0, N, True)], N),
        ({"assist": [0, 4]}, [(0, 4, True), (4, N, False)], 5),
        ({"assist": [1, 4], "steps": 2}, [(0, 1, False), (1, 4, True), (4, N, False)], 5),
        ({"assist": [2, 6]}, [(0, 2, False), (2, 6, True), (6, N, False)], 6),
        ({"assist": [2, 6], "steps": 2}, [(0, 2, False), (2, 6, True), (6, N, False)], 6),
        ({"assist": [6, N], "steps": 2}, [(0, 4, False), (4, 6, False), (6, N, True)], 8),
    ],
)
@torch.no_grad()
def test_codes_and_calls_are_those_of_the_passes(model, options, passes, calls):
    out, noise = drawn(model, DistilledSampler(**options))
    assert torch.equal(out.tokens.codes, filled(model, noise, start(model)[2], passes))
    assert out.calls.tolist() == [calls] * 5
    student = sum(not teachers for _, _, teachers in passes)
    assert out.network_calls.get("student", (0, 0)) == (student, student * 5 * N)
    assert out.network_calls.get("teacher", (0, 0)) == (calls - student, (calls - student) * 5)


class Redrawn(DistilledSampler, id="sampler/distilled_redrawn"):
    """Wrong: the teacher's span has noise of its own."""

    def run(self, request):
        class Other:
            def __getattr__(self, name):
                return getattr(request.model, name)

            def follow(self, codes, noise, condition, span):
                return request.model.follow(codes, noise.flip(1), condition, span)

        object.__setattr__(request, "model", request.model)
        return super().run(type(request)(**{**vars(request), "model": Other()}))


@torch.no_grad()
def test_an_assisted_span_of_everything_is_the_teacher(model):
    unknown, _, condition = start(model)
    out, noise = drawn(model, DistilledSampler(assist=[0, N]))
    teachers = model.follow(unknown, noise, condition, range(N))
    assert torch.equal(out.tokens.codes, teachers)
    assert not torch.equal(drawn(model, Redrawn(assist=[0, N]))[0].tokens.codes, teachers)


@pytest.mark.parametrize("assist, right", [([0, 2], True), (None, False)])
@torch.no_grad()
def test_the_assisted_distribution_is_the_teachers_and_that_of_a_random_student_is_not(assist, right):
    spec = TokenSpec((3,), Line(2))
    tiny = distilled(spec, None, split=1, solver_steps=32)
    n = 6000
    codes = DistilledSampler(assist=assist)(tiny, Condition(), rng=RowRNG.of(3, range(n))).tokens.codes[:, 0]
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    logits = tiny.teacher(Tokens(pairs[:, None], spec), Condition())[:, :, 0].log_softmax(2)
    p = logits.gather(2, pairs[..., None]).sum((1, 2)).exp().numpy()
    counts = np.bincount(codes[:, 0] * 3 + codes[:, 1], minlength=9)
    assert bool(stats.chisquare(counts, p / p.sum() * n).pvalue > 1e-3) == right


@torch.no_grad()
def test_a_row_alone_is_that_row_of_a_batch(model):
    for options in ({"steps": 2}, {"assist": [0, 6]}, {"draw": True}):
        whole, _ = drawn(model, DistilledSampler(**options))
        alone, _ = drawn(model, DistilledSampler(**options), rows=[3])
        assert torch.equal(whole.tokens.codes[3:4], alone.tokens.codes)


@torch.no_grad()
def test_known_codes_that_come_first_stay_and_save_calls(model):
    known = Tokens.unknown(SPEC, 5)
    known.codes[0, 0, :5], known.codes[1, 0, :2] = 6, 2
    known.codes[2] = 1
    out, noise = drawn(model, DistilledSampler(steps=2), known=known)
    assert (out.tokens.codes[known.present] == known.codes[known.present]).all() and (out.tokens.codes >= 0).all()
    assert out.calls.tolist() == [1, 2, 0, 2, 2]
    out, _ = drawn(model, DistilledSampler(assist=[0, N]), known=known)
    condition = start(model)[2]
    assert torch.equal(out.tokens.codes, model.follow(known.codes, noise, condition, range(N)))
    assert out.calls.tolist() == [N - 5, N - 2, 0, N, N]
    late = Tokens.unknown(SPEC, 5)
    late.codes[2, 0, 7] = 1
    with pytest.raises(ValueError, match="left to right order, but row 2 has a masked cell at step 0 and knows level 0, position 7"):
        drawn(model, DistilledSampler(), known=late)


@torch.no_grad()
def test_items_may_be_shorter(model):
    lengths = torch.tensor([3, 12, 0, 5, 7])
    out, _ = drawn(model, DistilledSampler(steps=2), lengths=lengths)
    assert ((out.tokens.codes[:, 0] != ABSENT).sum(1) == lengths).all()
    assert out.calls.tolist() == [1, 2, 0, 2, 2]


@torch.no_grad()
def test_codes_are_drawn_only_where_it_is_asked(model):
    best, cold, drawn_ones, same = (
        drawn(model, DistilledSampler(**options))[0].tokens.codes
        for options in ({}, {"draw": True, "temperature": 0.0}, {"draw": True}, {"temperature": 3.0})
    )
    assert torch.equal(best, cold) and torch.equal(best, same) and not torch.equal(best, drawn_ones)
    seen = []
    drawn(model, DistilledSampler(steps=2), on_step=lambda tokens, step, steps: seen.append((int(tokens.finished.min()), step, steps)))
    assert seen == [(4, 1, 2), (N, 2, 2)]


@pytest.mark.parametrize("part, options", [("teacher", {"assist": [0, N]}), ("student", {})])
@torch.no_grad()
def test_a_network_that_is_not_finite_is_said_with_its_row(part, options):
    model = distilled()
    wrong = model.teacher if part == "teacher" else model
    wrong.conditioner.parts["class_"].table.weight[2] = torch.nan  # the class of row 2 alone
    with pytest.raises(ValueError, match="for row 2 of the batch is not finite") as error:
        drawn(model, DistilledSampler(**options), batch=4)
    assert "\n" not in str(error.value)


def test_what_cannot_be_is_refused_in_a_line(model):
    for options, message in [
        ({"steps": 3}, "steps=3"), ({"assist": [4, 4]}, r"assist=\[4, 4\]: the first position"), ({"assist": [1, 2, 3]}, "assist="),
        ({"assist": [-1, 3]}, "assist"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message) as error:
            DistilledSampler(**options)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"assist=\[2, 13\]: these items have 12 positions"):
        drawn(model, DistilledSampler(assist=[2, 13]))
    with pytest.raises(ValueError, match="DistilledTransformer has Jumps: leave guidance at 1"):
        guided(model, 2.0)
    assert fitting(model) == [DistilledSampler] and UNKNOWN < 0
