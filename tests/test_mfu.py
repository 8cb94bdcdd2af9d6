"""MFU: operations are those of the two passes, and the ceiling is of the same run. No clock decides whether a test passes."""

import pytest
import torch
from test_plan import TINY

from gentok.benchmarks import mfu as module
from gentok.benchmarks.mfu import MODELS, mfu
from gentok.benchmarks.plan import composed
from gentok.describe import built

SMALL = {"tiny": ("mnist5k/masked", tuple(TINY), 2)}


def test_a_step_is_measured_against_a_product_of_the_same_run():
    figures = dict(mfu(2, steps=1, models=SMALL, side=64, device="cpu"))
    assert list(figures) == ["mfu/tiny/eager"]
    found = figures["mfu/tiny/eager"]
    assert found["unit"] == "% MFU" and found["min"] <= found["value"] <= found["max"] and found["value"] > 0
    assert found["images_per_second"] * found["seconds"] == pytest.approx(1) and "matrix product of 64" in found["peer"]


def test_a_step_that_is_the_product_reaches_all_of_it_however_fast_the_machine_is():
    found = module._utilization(2e9, 2e9, [1.0, 3.0], [1.0, 3.0])
    assert found["value"] == found["min"] == found["max"] == pytest.approx(100)
    assert module._utilization(1e9, 2e9, [1.0], [1.0])["value"] == pytest.approx(50)


def test_operations_are_six_per_weight_and_position_and_those_of_attention():
    model, _, flops, positions = module._training("mnist5k/masked", TINY, 4, "cpu", torch.float32)
    blocks = model.transformer.blocks
    weights = sum(p.numel() for p in blocks.parameters() if p.ndim == 2)
    least = 6 * weights * positions * 4
    assert least <= flops <= 3 * least  # the head and attention come on top; these blocks are tiny beside them


@pytest.mark.parametrize("name", MODELS)
def test_the_models_are_as_large_as_they_say(name):
    experiment, words, _ = MODELS[name]
    with torch.device("meta"):
        model, _, _ = built(composed(experiment, words))
    count = sum(p.numel() for p in model.parameters()) / 1e6
    low, high = {"llamagen_b": (105, 115), "xar_b": (165, 180), "masked_24x768": (170, 230)}[name]
    assert low < count < high
