"""How many cells MaskGIT keeps in each step, and which."""

import pytest
import torch
from kit import SPECS, TabularMasked

from gentok.generators.base import Masked
from gentok.rng import RowRNG
from gentok.samplers.maskgit import MaskGIT
from gentok.samplers.stepwise import SCHEDULES, masked_counts
from gentok.types import Class, Condition, ConditionSpec, Line, TokenSpec


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_fall_from_all_to_none(schedule):
    values = [SCHEDULES[schedule](i / 50) for i in range(51)]
    assert values[0] == pytest.approx(1) and values[-1] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in zip(values, values[1:]))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 8, 12, 64, 300])
def test_every_step_reveals_at_least_one_cell_of_a_row_until_it_has_none(schedule, steps):
    masked_cells = torch.tensor([0, 1, 2, 7, 63, 64, 256])
    counts = masked_counts(masked_cells, steps, schedule)
    before = torch.cat([masked_cells[:, None], counts[:, :-1]], 1)
    assert ((counts < before) | (before == 0)).all()
    assert (counts[:, -1] == 0).all()
    assert ((before > 0).sum(1) <= masked_cells.clamp(max=steps)).all()
    if steps >= 256:
        assert ((before > 0).sum(1) == masked_cells.clamp(max=steps)).sum() >= 4


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize(("masked_cells", "steps"), [(64, 8), (64, 12), (256, 12), (256, 18), (49, 5)])
def test_counts_equal_those_of_diffusers(schedule, masked_cells, steps):
    """AmusedScheduler is the same algorithm; its counts are read off its masks. It computes shares in
    float32, where 256 cos(pi / 3) falls just short of 128: one cell of difference is allowed where the exact
    share is whole."""
    from diffusers import AmusedScheduler

    scheduler = AmusedScheduler(mask_token_id=9, masking_schedule=schedule)
    scheduler.set_timesteps(steps, temperature=(2, 0))
    generator = torch.Generator().manual_seed(0)
    sample, counts = torch.full((1, masked_cells), 9), []
    for t in scheduler.timesteps:
        logits = torch.randn(1, masked_cells, 9, generator=generator)
        sample = scheduler.step(logits, t, sample, generator=generator).prev_sample
        counts.append(int((sample == 9).sum()))
    shares = [masked_cells * SCHEDULES[schedule]((i + 1) / steps) for i in range(steps)]
    for ours, theirs, share in zip(masked_counts(torch.tensor([masked_cells]), steps, schedule)[0].tolist(), counts, shares):
        assert ours == theirs or (ours == theirs + 1 and abs(share - ours) < 1e-6)


class Certain(Masked):
    """Cell n is sure of id 0 to a degree that falls with n, whatever else is known."""

    uses_time = True
    condition_spec = ConditionSpec()

    def __init__(self, n):
        self.spec, self.times = TokenSpec((4,), Line(n)), []

    def logits(self, tokens, condition, t=None):
        self.times.append(t.tolist())
        out = torch.zeros(*tokens.codes.shape, 4, dtype=torch.float64)
        out[..., 0] = 5.0 - 0.5 * torch.arange(tokens.codes.shape[2])
        return out


def test_confident_cells_are_kept_first_and_time_is_the_masked_share():
    model, kept = Certain(8), []
    sampler = MaskGIT(steps=4, schedule="linear", choice_temperature=0.0, temperature=0.0)
    out = sampler(model, Condition(), rng=RowRNG([0, 1]), on_step=lambda tokens, *_: kept.append(tokens.present[:, 0].tolist()))
    assert [row for row, _ in kept] == [[n < 2 * (i + 1) for n in range(8)] for i in range(4)]
    assert model.times == [[1.0, 1.0], [0.75, 0.75], [0.5, 0.5], [0.25, 0.25]]
    assert (out.tokens.codes == 0).all()
    assert out.calls.tolist() == [4, 4]


def test_chance_spreads_the_choice_and_dies_out():
    model, kept = Certain(8), []
    for c in (0.0, 2.0, 1e6):
        sampler = MaskGIT(steps=4, schedule="linear", choice_temperature=c)
        first = []
        sampler(model, Condition(), rng=RowRNG(torch.arange(500)), on_step=lambda tokens, i, _, to=first: to.append(tokens.present[:, 0]))
        kept.append(first[0][:, :2].double().mean().item())
    assert kept[0] > kept[1] > kept[2]
    assert kept[2] == pytest.approx(0.25, abs=0.05)  # 2 of 8 at random


@pytest.mark.parametrize(
    ("setting", "words"), [({"steps": 0}, "steps"), ({"schedule": "log"}, "cosine, linear"), ({"choice_temperature": -1.0}, "at least 0")]
)
def test_settings_that_make_no_sense_are_refused(setting, words):
    with pytest.raises(ValueError, match=words):
        MaskGIT(**setting)


def test_zero_temperature_takes_the_most_probable_ids_of_a_single_step():
    model = TabularMasked(SPECS["k1"])
    condition = Condition({"class": Class(torch.tensor([0]))})
    out = MaskGIT(steps=1, temperature=0.0)(model, condition, rng=RowRNG([0]))
    blank = out.tokens.unknown(model.spec, 1)
    assert torch.equal(out.tokens.codes, model.logits(blank, condition).argmax(-1))
