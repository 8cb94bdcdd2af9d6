"""Usage, perplexity, entropy, dead rows and bits per item against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from gentok.metrics.codebook import CodebookHealth
from gentok.types import ABSENT


def test_the_numbers_of_a_known_distribution():
    health = CodebookHealth((8, 4))
    codes = torch.tensor([[[0, 0, 1, 2], [3, 3, 3, 3]], [[0, 0, 1, 2], [3, ABSENT, ABSENT, ABSENT]]])
    health.update(codes[:1])
    health.update(codes[1:])
    h = health.compute()
    assert h.usage == (3 / 8, 1 / 4) and h.dead == (5, 3) and h.codes == (8, 5)
    assert math.isclose(h.entropy[0], 1.5) and h.entropy[1] == 0
    assert math.isclose(h.perplexity[0], 2**1.5) and h.perplexity[1] == 1
    assert math.isclose(h.bits_per_item, 1.5 * 4)
    scalars = h.scalars()
    assert scalars["codebook/usage_0"] == 3 / 8 and scalars["codebook/bits_per_item"] == h.bits_per_item


def test_uniform_codes_have_full_perplexity():
    health = CodebookHealth((16,))
    health.update(torch.arange(64).remainder(16).view(4, 1, 16))
    h = health.compute()
    assert h.usage == (1.0,) and math.isclose(h.perplexity[0], 16) and math.isclose(h.bits_per_item, 64)
    assert h.scalars("held_out/")["held_out/usage"] == 1


def test_nothing_counted_is_no_division_by_zero():
    health = CodebookHealth((4, 4))
    assert health.compute().perplexity == (1.0, 1.0)
    health.update(torch.zeros(2, 2, 3, dtype=torch.int64))
    health.reset()
    assert health.compute().usage == (0.0, 0.0) and health.compute().bits_per_item == 0


def test_another_number_of_levels_is_refused():
    with pytest.raises(ValueError, match=r"\[B, 2, N\]"):
        CodebookHealth((4, 4)).update(torch.zeros(2, 1, 3, dtype=torch.int64))
