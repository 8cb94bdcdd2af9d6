"""Rows of unequal length: what is not computed of them changes neither the loss nor a gradient."""

import pytest
import torch
from generator_kit import LEVELS, RASTER, STRIDED, autoregressive, codes

from gentok.generators.autoregressive import Autoregressive
from gentok.types import ABSENT, Condition, Line, Tokens, TokenSpec

LINE = TokenSpec((7,), Line(8))
CASES = [("auto", LINE), *((name, spec) for name in ("level_major", "position_major", "delayed", "parallel") for spec in (LEVELS, STRIDED))]


def ragged(spec, lengths):
    tokens = codes(spec, len(lengths))
    out = tokens.codes.masked_fill(torch.arange(spec.positions) >= torch.tensor(lengths)[:, None, None], ABSENT)
    return Tokens(out, spec, torch.tensor(lengths))


def losses(layout, spec, **options):
    """Rows together, the longest one whole, and each alone: nats [B], and the gradients of their sum."""
    step = spec.frame_multiple
    tokens, found = ragged(spec, [spec.positions, step, 0, spec.positions - step]), []
    for rows in ([[0, 1, 2, 3]], [[0], [1], [2], [3]]):
        model = autoregressive(spec, layout=layout, ends=True, **options).train()
        parts = [model.loss(tokens.rows(some), Condition()) for some in rows]
        sum(part.loss * part.count for part in parts).backward()
        nll = torch.cat([part.nll for part in parts])
        found.append((nll, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    return found


def close(layout, spec, **options):
    together, alone = losses(layout, spec, **options)
    return all(torch.allclose(a, b, atol=1e-9) for a, b in zip(together, alone))


@pytest.mark.parametrize(("layout", "spec"), CASES)
def test_a_row_alone_costs_what_it_costs_beside_longer_ones(layout, spec):
    assert close(layout, spec)
    assert close(layout, spec, label_smoothing=0.3)


def test_a_step_too_few_is_noticed(monkeypatch):
    right = Autoregressive._used_steps
    monkeypatch.setattr(Autoregressive, "_used_steps", lambda self, codes, rng: max(right(self, codes, rng) - 1, 0))
    assert not close("auto", LINE)


def test_the_loss_is_that_of_the_whole_forward_pass():
    model, tokens = autoregressive(LINE, ends=True), ragged(LINE, [3, 0, 8])
    nats = -model(tokens).log_softmax(-1)[:, :, 0]
    target = torch.where(tokens.codes[:, 0] < 0, 7, tokens.codes[:, 0])
    there = torch.arange(8) <= tokens.lengths[:, None]
    expected = (nats.gather(2, target[..., None])[..., 0] * there).sum(1)
    assert torch.allclose(model.nll_bound(tokens, Condition()), expected, atol=1e-9)
    assert model._used_steps(tokens.codes[:1], None) == 4 and model._used_steps(tokens.codes, None) == 8


def test_models_of_rows_of_one_length_compute_all_of_them():
    model = autoregressive(RASTER)
    assert model._used_steps(codes(RASTER, 2).codes, None) == model.layout.steps
