"""xAR in the form of its release: velocities and samples are those of its own code; other conditions and files are refused."""

import numpy as np
import pytest
import torch
from generator_kit import EVERYTHING
from released_kit import recorded, released
from released_laws import FIVE, Numbers, classes

from gentok.generators.xar import XAR
from gentok.rng import RowRNG
from gentok.samplers.entities import EntitiesSampler
from gentok.samplers.guided import guided
from gentok.types import ClassSpec, ConditionSpec, Latents, Raster, TokenSpec

SPEC = TokenSpec((), Raster(16, 16), width=16)
SMALL = {"width": 48, "depth": 4, "heads": 3, "entity_side": 8, "form": "release"}
"""As the record was made."""


def stored(tmp_path, **changes):
    torch.save(released("xar", "xar", **changes), tmp_path / "xAR-B.pth")
    return str(tmp_path / "xAR-B.pth")


def built(tmp_path):
    return XAR(SPEC, FIVE, weights=stored(tmp_path), **SMALL).double().eval()


@torch.no_grad()
def test_velocities_are_those_of_the_release(tmp_path):
    model = built(tmp_path)
    times, labels, wanted = recorded("xar", "xar", "times", "labels", "velocity")
    x = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 16, 256)).astype(np.float32)).double()
    vector = model.conditioner(classes(*(int(label) if label < 5 else -1 for label in labels)), 2).vector  # their null is id 5

    def off():
        return (model.network(model._map.split(x), times, vector, range(4))[:, ::2] - wanted).abs().max()

    assert off() < 1e-5
    # mutants: a modulation as it lies in the file, rotary pairs as they lie there, an approximated GELU, no norm behind the first positions
    block, state = model.network.blocks[1], released("xar", "xar")
    for tensor, name in ((block.modulation.weight, "ada_lin.1.weight"), (block.attention.qkv.weight, "attn.qkv.weight")):
        right = tensor.clone()
        tensor.copy_(state[f"encoder_blocks.1.{name}"])
        assert off() > 1e-2
        tensor.copy_(right)
    bend, block.mlp.bend = block.mlp.bend, lambda h: torch.nn.functional.gelu(h, approximate="tanh")
    assert off() > 1e-4
    block.mlp.bend, model.network.norm_stem = bend, None
    assert off() > 1e-2


@torch.no_grad()
def test_guided_samples_of_the_same_noise_are_those_of_the_release(tmp_path):
    model, wanted = built(tmp_path), recorded("xar", "xar", "samples")[0]
    sampler = EntitiesSampler(steps=3, drift_last=True)
    drawn = sampler(guided(model, 2.0, "linear"), classes(3, 1), rng=Numbers([0, 1])).tokens.values
    assert (drawn - wanted).abs().max() < 1e-5
    drawn = EntitiesSampler(steps=3)(guided(model, 2.0, "linear"), classes(3, 1), rng=Numbers([0, 1])).tokens.values
    assert (drawn - wanted).abs().max() > 1e-2  # without the score in the last step


def test_a_training_step_lowers_the_loss(tmp_path):
    model, x = built(tmp_path).float().train(), Latents(torch.randn(2, 16, 256), SPEC)
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-3), []
    for _ in range(2):
        losses.append(model.loss(x, classes(0, -1), RowRNG.of(0, range(2))).loss)
        losses[-1].backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[1] < losses[0]


@pytest.mark.parametrize("width, depth, heads, millions", [(768, 16, 12, 172), (1024, 32, 16, 608), (1280, 40, 16, 1186)])
def test_it_has_its_published_size(width, depth, heads, millions):
    thousand = ConditionSpec((("class", ClassSpec(tuple(map(str, range(1000)))),),))
    with torch.device("meta"):
        model = XAR(SPEC, thousand, **{**SMALL, "width": width, "depth": depth, "heads": heads})
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=1e-2)


def test_other_conditions_and_files_are_refused_in_one_line(tmp_path):
    four = ConditionSpec((("class", ClassSpec(tuple("0123"))),))
    for given, changes, options, line in (
        (EVERYTHING, {}, {}, r"xar with weights takes one class as its condition; here it is class \(class\), text \(ids\)"),
        (FIVE, {}, {"form": "own"}, "set form to release"),
        (FIVE, {}, {"depth": 6}, r"lacks \d+ tensors, such as decoder_blocks\.2\.ada_lin\.1\.bias"),
        (FIVE, {"decoder_norm.weight": None}, {}, r"lacks 1 tensor, such as decoder_norm\.weight"),
        (FIVE, {"spare": torch.zeros(1)}, {}, "beyond this model, 1 tensor, such as spare"),
        (FIVE, {"pred.weight": torch.zeros(8, 48)}, {}, r"pred\.weight is \(8, 48\) there and \(16, 48\) here"),
        (four, {}, {}, r"class_emb\.weight is \(6, 48\) there and \(5, 48\) here"),
        (FIVE, {"decoder_pos_embed_learned": None}, {}, "holds no xAR model: expected the weights of a generator of xAR"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            XAR(SPEC, given, weights=stored(tmp_path, **changes), **{**SMALL, **options})
        assert "\n" not in str(error.value)
