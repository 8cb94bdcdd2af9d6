"""SoundStorm goes level by level: calls, what is known in each, and what a mutant that mixes the levels would
show."""

import pytest
import torch
from kit import SPECS, TabularMasked, cases_of, distance, masked_distribution, sample

from gentok.generators.base import Masked
from gentok.rng import RowRNG
from gentok.samplers.maskgit import MaskGIT
from gentok.samplers.soundstorm import SoundStorm
from gentok.types import UNKNOWN, Condition, ConditionSpec, Line, Tokens, TokenSpec


class Seen(Masked):
    """Uniform; remembers the masked cells of every call."""

    uses_time, condition_spec = False, ConditionSpec()

    def __init__(self, levels, n):
        self.spec, self.masked = TokenSpec((4,) * levels, Line(n)), []

    def logits(self, tokens, condition, t=None):
        self.masked.append(tokens.masked.clone())
        return torch.zeros(*tokens.codes.shape, 4, dtype=torch.float64)


def test_levels_follow_each_other_each_with_its_own_steps():
    model = Seen(3, 8)
    out = SoundStorm(steps=4, later_steps=2)(model, Condition(), rng=RowRNG([0, 1]))
    assert out.calls.tolist() == [8, 8] and bool((out.tokens.codes >= 0).all())
    left = [masked_cells.sum(2)[0].tolist() for masked_cells in model.masked]
    assert [row[0] for row in left[:4]] == sorted((row[0] for row in left[:4]), reverse=True)
    assert all(row[1:] == [8, 8] for row in left[:4])  # nothing of a deeper level before the first is full
    assert [(row[0], row[2]) for row in left[4:6]] == [(0, 8)] * 2 and [tuple(row[:2]) for row in left[6:]] == [(0, 0)] * 2
    model = Seen(3, 8)
    MaskGIT(steps=8)(model, Condition(), rng=RowRNG([0, 1]))  # a mutant: all levels together
    assert any(0 < int(h[0, 1].sum()) < 8 and int(h[0, 0].sum()) for h in model.masked)


def test_calls_do_not_depend_on_the_length_and_known_cells_cost_none():
    for n in (8, 64):
        assert SoundStorm()(Seen(4, n), Condition(), rng=RowRNG([0])).calls.tolist() == [min(16, n) + 3]
    codes = torch.full((2, 2, 8), UNKNOWN)
    codes[0, 0], codes[1, :, :4] = 1, 2  # the first level of a row is given, the first half of another
    model = Seen(2, 8)
    out = SoundStorm(steps=3)(model, Condition(), rng=RowRNG([0, 1]), known=Tokens(codes, model.spec))
    assert out.calls.tolist() == [1, 4] and bool((out.tokens.codes[codes >= 0] == codes[codes >= 0]).all())


def test_later_levels_may_take_the_most_probable_id():
    class Leaning(Seen):
        def logits(self, tokens, condition, t=None):
            return super().logits(tokens, condition, t) + torch.tensor([0.0, 0.5, 0.0, 0.0], dtype=torch.float64)

    codes = SoundStorm(steps=2, later_temperature=0.0)(Leaning(3, 40), Condition(), rng=RowRNG([0])).tokens.codes[0]
    assert bool((codes[1:] == 1).all()) and len(codes[0].unique()) == 4


def test_one_cell_per_call_in_random_order_is_exact_where_conditionals_agree():
    model = TabularMasked(SPECS["k2"], scale=2.0)
    case = cases_of(model)[0]
    distribution, far = masked_distribution(model, case), []
    for sampler in (SoundStorm(steps=3, later_steps=3, choice_temperature=1e9), SoundStorm(steps=1)):
        far.append(distance(sample(sampler, model, [case], 20_000, 0), [distribution]))
    assert far[0] < 0.06 < 0.1 < far[1]


@pytest.mark.parametrize(("words", "message"), [({"later_steps": 0}, "later_steps"), ({"later_temperature": -1.0}, "later_temperature")])
def test_mistakes_are_answered_in_a_line(words, message):
    with pytest.raises(ValueError, match=message):
        SoundStorm(**words)
