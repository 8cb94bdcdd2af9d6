"""MAR's sampler on a model of signs whose conditionals are known: what it draws, in which order, how often, and what it keeps."""

import pytest
import torch
from signs_kit import Signs, off

from gentok.rng import RowRNG
from gentok.samplers.guided import guided
from gentok.samplers.mar import MARSampler
from gentok.types import Class, Condition, Latents


def classes(batch, kind=0):
    return Condition({"class": Class(torch.full((batch,), kind))})


def drawn(model, batch, known=None, rng=None, **settings):
    """float64 [B, 3]."""
    sampler = MARSampler(**{"steps": 3, "diffusion_steps": 40, **settings})
    return sampler(model, classes(batch), rng=rng or RowRNG.of(0, range(batch)), known=known).tokens.values[:, 0].double()


def test_one_vector_per_step_draws_the_models_own_distribution_and_all_at_once_does_not():
    model = Signs()
    values = drawn(model, 6000)
    assert (values.abs() - 1).abs().max() < 0.05 and off(values, model.table[0]) < 0.03
    assert off(drawn(model, 6000, steps=1), model.table[0]) > 0.1


def test_every_vector_is_drawn_once_in_an_order_that_is_any_with_equal_probability():
    model = Signs()
    drawn(model, 600)
    assert len(model.seen) == 3
    added = torch.stack([after.long() - before.long() for before, after in zip(model.seen, [*model.seen[1:], torch.ones(600, 3).bool()])])
    assert (added >= 0).all() and (added.sum(2) == 1).all() and (added.sum(0) == 1).all()
    order = added.argmax(2)  # [3, B]
    kinds, count = (order[0] * 3 + order[1]).unique(return_counts=True)
    assert len(kinds) == 6 and count.min() > 60
    out = MARSampler(steps=64, diffusion_steps=2)(model, classes(2), rng=RowRNG.of(0, range(2)))
    assert out.calls.tolist() == [3, 3] and out.network_calls == {"generator": (3, 18)}


def test_what_is_known_stays_and_is_given_and_rows_count_their_own():
    model, nan = Signs(), torch.nan
    given = torch.tensor([[nan, 1.0, nan], [-1.0, nan, 1.0], [nan, nan, nan], [1.0, 1.0, -1.0]], dtype=torch.float32)
    known = Latents(given[:, None].repeat(1500, 1, 1), Signs.spec)
    seen = []
    rng = RowRNG.of(0, range(6000))
    out = MARSampler(steps=3, diffusion_steps=40)(model, classes(6000), rng=rng, known=known, on_step=lambda *step: seen.append(step[1:]))
    values, fixed = out.tokens.values[:, 0].double(), ~known.values[:, 0].isnan()
    assert torch.equal(values[fixed], known.values[:, 0][fixed].double()) and seen == [(1, 3), (2, 3), (3, 3)]
    assert out.calls[:4].tolist() == [2, 1, 3, 0]
    table = model.table[0].view(2, 2, 2)
    for row, wanted in ((0, table[:, 1].flatten()), (1, table[0, :, 1])):
        free = given[row].isnan()
        digits = (values[row::4][:, free] > 0) * (2 ** torch.arange(int(free.sum()) - 1, -1, -1))
        share = torch.bincount(digits.sum(1), minlength=len(wanted)) / 1500
        assert (share - wanted / wanted.sum()).abs().sum() / 2 < 0.05


def test_a_row_alone_is_the_row_in_its_batch_with_guidance():
    model, nan = guided(Signs(), 1.5, "linear"), torch.nan
    known = Latents(torch.tensor([[[nan, nan, nan]], [[1.0, nan, nan]], [[nan, nan, nan]]]), Signs.spec)
    whole = drawn(model, 3, known)
    for row in range(3):
        torch.testing.assert_close(drawn(model, 1, known.rows([row]), RowRNG.of(0, [row])), whole[row : row + 1])


def test_no_temperature_draws_less_and_filters_and_broken_numbers_are_refused_in_one_line():
    model = Signs()
    assert off(drawn(model, 2000, temperature=0.0), model.table[0]) > 0.05
    for wrong, words in (
        ({"top_k": 3}, "the sampler mar draws vectors, which top_k cannot filter"), ({"diffusion_steps": 1}, "2 to 1000 steps; got 1"),
        ({"steps": 0}, "steps"), ({"schedule": "other"}, "schedule"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words) as error:
            MARSampler(**wrong)
        assert "\n" not in str(error.value)
    model.table = torch.full((3, 8), torch.nan, dtype=torch.float64)
    with pytest.raises(ValueError, match="the generator's vector for row 0 of the batch is not finite"):
        drawn(model, 2)
