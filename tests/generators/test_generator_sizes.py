"""The shipped generator settings have the parameters of the papers that they name (on the meta device)."""

import importlib
from pathlib import Path

import pytest
import torch
import yaml

from gentok.build import build
from gentok.cli import compose
from gentok.codebooks.pyramid import PyramidCodebook
from gentok.codebooks.residual import ResidualCodebook
from gentok.codebooks.vq import VQ
from gentok.types import ClassSpec, ConditionSpec, Pyramid, Raster, TokenSpec

CONF = Path(__file__).parents[2] / "conf" / "generator"
TEN = ConditionSpec((("class", ClassSpec(tuple(str(i) for i in range(10)))),))
IMAGENET = ConditionSpec((("class", ClassSpec(tuple(str(i) for i in range(1000)))),))


def parameters(name, spec, **given):
    settings = compose("config", ["task=generator", f"generator={name}"])["generator"]
    module, _, cls = settings.pop("_target_").rpartition(".")
    with torch.device("meta"):
        model = getattr(importlib.import_module(module), cls)(spec, IMAGENET, **given, **settings)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name,millions", [("llamagen_b", 111), ("llamagen_l", 343), ("llamagen_xl", 775), ("llamagen_xxl", 1400)])
def test_llamagen_has_its_published_size(name, millions):
    assert abs(parameters(name, TokenSpec((16384,), Raster(16, 16))) / 1e6 / millions - 1) < 0.03


@pytest.mark.parametrize("depth,millions", [(16, 310), (20, 601), (24, 1033), (30, 2010)])
def test_var_has_the_size_of_its_release(depth, millions):
    """1.0 and 2.0 B are published; to the million are the parameters of the released networks."""
    config = compose("config", [f"experiment=imagenet256/var_d{depth}", "data.path=nowhere"])["generator"]
    sides = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    with torch.device("meta"):
        book = PyramidCodebook(VQ(4096, 32), sides)
        model = build(config, spec=TokenSpec((4096,), Pyramid(sides)), condition_spec=IMAGENET, codebook=book)
    width = 64 * depth
    release = depth * (18 * width**2 + 14 * width + depth) + (32 + 1001 + 680 + 10 + 2) * width  # blocks; tables
    release += 2 * width * (width + 1) + 4096 * (width + 1)  # the norm before the head, the head
    count = sum(p.numel() for p in model.parameters())
    assert abs(release / 1e6 / millions - 1) < 0.001 and abs(count / release - 1) < 0.001, (count, release)


def test_maskgit_has_the_parameters_of_its_widths():
    blocks = 24 * (4 * 768**2 + 2 * 768 * 3072)
    tables = (1024 + 1000) * 768
    assert abs(parameters("maskgit", TokenSpec((1024,), Raster(16, 16))) / (blocks + tables) - 1) < 0.03


@pytest.mark.parametrize("name", ["autoregressive", "masked", "any_order", "self_speculative"])
def test_the_default_is_small(name):
    assert 4e6 < parameters(name, TokenSpec((512,), Raster(8, 8))) < 6e6


def test_ctf_l_has_its_published_sizes():
    config = yaml.safe_load((CONF / "ctf_l.yaml").read_text())
    with torch.device("meta"):
        model = build(config, spec=TokenSpec((16384,), Raster(16, 16)), condition_spec=IMAGENET, codebook=VQ(16384, 8))
    for part, millions in ((model.coarse, 310), (model.refiner, 343)):
        assert abs(sum(p.numel() for p in part.parameters()) / 1e6 / millions - 1) < 0.01


@pytest.mark.parametrize("name, millions", [("xar_b", 172.64), ("xar_l", 608.40), ("xar_h", 1186.0)])
def test_xar_has_the_sizes_of_its_release(name, millions):
    config = compose("config", [f"experiment=imagenet256/{name}", "data.path=nowhere"])["generator"]
    with torch.device("meta"):
        model = build(config, spec=TokenSpec((), Raster(16, 16), width=16), condition_spec=IMAGENET)
    assert model.sizes == (64,) * 4
    assert abs(sum(p.numel() for p in model.parameters()) / 1e6 / millions - 1) < 0.005


def test_coarse_to_fine_is_of_the_size_of_autoregression_in_its_experiment():
    sizes = {}
    for name in ("ar", "ctf"):
        config = compose("config", [f"experiment=cifar10/{name}"])["generator"]
        with torch.device("meta"):
            model = build(config, spec=TokenSpec((4096,), Raster(8, 8)), condition_spec=TEN, codebook=VQ(4096, 16))
        sizes[name] = sum(p.numel() for p in model.parameters())
    assert abs(sizes["ctf"] / sizes["ar"] - 1) < 0.01, sizes


def test_the_default_of_resgen_is_as_small_for_eight_levels():
    with torch.device("meta"):
        codebook = ResidualCodebook(VQ(512, 16, normalize=False), 8)
    assert 4e6 < parameters("resgen", TokenSpec((512,) * 8, Raster(8, 8)), codebook=codebook) < 6e6


def test_the_generators_of_residual_tokens_are_of_one_size():
    spec, sizes = TokenSpec((512,) * 8, Raster(8, 8)), {}
    layouts = [f"ar_flat_rq generator.layout={layout}" for layout in ("position_major", "delayed", "parallel")]
    for name in ("resgen_rq", "masked_rq", *layouts):
        config = compose("config", f"experiment=cifar10/{name}".split())["generator"]
        with torch.device("meta"):
            codebook = ResidualCodebook(VQ(512, 16, normalize=False), 8)
            model = build(config, spec=spec, condition_spec=TEN, codebook=codebook)
        sizes[name] = sum(p.numel() for p in model.parameters()) / 1e6
    assert all(2.9 < size < 3.3 for size in sizes.values()), sizes
