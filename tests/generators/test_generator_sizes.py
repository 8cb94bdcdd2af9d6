"""The shipped generator settings have the parameters of the papers that they name (on the meta device)."""

import importlib
from pathlib import Path

import pytest
import torch
import yaml

from gentok.tokens import ClassSpec, ConditionSpec, Raster, TokenSpec

CONF = Path(__file__).parents[2] / "conf" / "generator"
IMAGENET = ConditionSpec((("class", ClassSpec(tuple(str(i) for i in range(1000)))),))


def parameters(name, spec):
    settings = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    module, _, cls = settings.pop("_target_").rpartition(".")
    with torch.device("meta"):
        model = getattr(importlib.import_module(module), cls)(spec, IMAGENET, **settings)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name,millions", [("llamagen_b", 111), ("llamagen_l", 343)])
def test_llamagen_has_its_published_size(name, millions):
    assert abs(parameters(name, TokenSpec((16384,), Raster(16, 16))) / 1e6 / millions - 1) < 0.03


def test_maskgit_has_the_parameters_of_its_widths():
    blocks = 24 * (4 * 768**2 + 2 * 768 * 3072)
    tables = (1024 + 1000) * 768
    assert abs(parameters("maskgit", TokenSpec((1024,), Raster(16, 16))) / (blocks + tables) - 1) < 0.03


@pytest.mark.parametrize("name", ["autoregressive", "masked", "any_order", "self_speculative"])
def test_the_default_is_small(name):
    assert 4e6 < parameters(name, TokenSpec((512,), Raster(8, 8))) < 6e6
