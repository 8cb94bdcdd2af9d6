"""IBQ, Open-MAGVIT2, MaskGIT's VQGAN and Cosmos DI give the codes and pixels that their own code gave; other files are refused."""

import pytest
import torch
from released_kit import images, recorded, released, some_slow
from tokenizer_kit import LOSSES, read, trained_on

from gentok.build import build
from gentok.bundle import load, pretrained

FAMILIES = {
    "ibq_vq": ("seed_voken", "ibq", {"vocab_size": 64, "dim": 16}, "decoder.mid.attn_1.k.bias", "IBQ tokenizer"),
    "open_magvit2": ("seed_voken", "magvit2", {"bits": 6}, "decoder.adaptive.1.beta.bias", "Open-MAGVIT2 tokenizer"),
    "maskgit_vq": ("maskgit", "vq", {"vocab_size": 64, "dim": 16}, "encoder.down.4.block.0.nin_shortcut.weight", "MaskGIT VQGAN"),
    "cosmos_di": ("cosmos", "di16", {"width": 16}, "decoder.mid.attn_1.k.bias", "Cosmos DI tokenizer"),
}
"""Record, model in it, settings of the codebook that it was made with, a tensor of the file, and the name in messages."""


def config(name, weights=None, **changes):
    """conf/tokenizer/NAME.yaml, small, as the record was made."""
    sizes = {"multipliers": [1, 1, 2], "blocks": 1} if name == "cosmos_di" else {"multipliers": [1, 1, 1, 1, 2], "blocks": 2}
    found = {**read("tokenizer", name), "losses": None, "weights": weights, "width": 32, **sizes}
    return {**found, "codebook": {**found["codebook"], **FAMILIES[name][2]}, **changes}


def state_of(name, **changes):
    return released(*FAMILIES[name][:2], **changes)


def stored(tmp_path, state):
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "released.ckpt")
    return str(tmp_path / "released.ckpt")


def built(name, path, **changes):
    return build(config(name, path, **changes), media_shape=(3, 48, 48)).eval()


def off(model, codes, wanted):
    """How far the pixels are from the recorded ones; in float64, as the record was computed."""
    return (model.double().painted(model.codebook.lookup(codes), (3, 3)).detach() - wanted).abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_codes_and_pixels_are_those_of_the_release(name, tmp_path):
    model = built(name, stored(tmp_path, state_of(name)))
    codes, wanted = recorded(*FAMILIES[name][:2], "codes", "pixels")
    assert torch.equal(model.encode(images(48, 48)).codes, codes) and len(codes.unique()) > 4
    assert off(model, codes, wanted) < 1e-5
    # mutants: another block's skip, another middle
    blocks = [part for part in model.decoder.body if hasattr(part, "conv2")]
    blocks[0].conv2, blocks[1].conv2 = blocks[1].conv2, blocks[0].conv2
    assert off(model, codes, wanted) > 1e-3
    blocks[0].conv2, blocks[1].conv2 = blocks[1].conv2, blocks[0].conv2
    part = next(part for part in model.decoder.body if part.__class__.__name__ in ("AdaptiveNorm", "SpatialAttention", "Upsample"))
    weight = next(iter(part.parameters()))
    with torch.no_grad():
        weight.copy_(weight.roll(1, 0))
    assert off(model, codes, wanted) > 1e-3


@pytest.mark.parametrize("name", some_slow(FAMILIES))
def test_a_file_is_adopted_and_trained_from_where_the_release_stands(name, tmp_path):
    path = pretrained(config(name, stored(tmp_path, state_of(name))), (3, 48, 48)).save(tmp_path / "bundle")
    (tmp_path / "released.ckpt").rename(tmp_path / "moved.ckpt")
    codes, x = recorded(*FAMILIES[name][:2], "codes")[0], images(48, 48)
    assert torch.equal(load(path).tokenizer.encode(x).codes, codes)
    trained_on(built(name, str(tmp_path / "moved.ckpt"), losses=LOSSES), x, codes)


@pytest.mark.parametrize("name", ["ibq_vq", "open_magvit2"])
def test_moving_averages_are_read_where_a_file_has_them_and_its_losses_are_not(name, tmp_path):
    state = state_of(name)
    averages = {f"model_ema.{key.replace('.', '')}": value for key, value in state.items()}
    raw = {key: value + 1.0 for key, value in state.items()}
    path = stored(tmp_path, {**raw, **averages, "model_ema.decay": torch.tensor(0.9), "loss.discriminator.main.0.weight": torch.zeros(1)})
    assert torch.equal(built(name, path).encode(images(48, 48)).codes, recorded(*FAMILIES[name][:2], "codes")[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_other_files_are_refused_in_one_line(name, tmp_path):
    _, _, _, tensor, called = FAMILIES[name]
    shape = tuple(state_of(name)[tensor].shape)
    for changes, line in (
        ({tensor: None}, f"is not the {called} that is configured here: it lacks 1 tensor, such as {tensor}"),
        ({"encoder.extra.weight": torch.zeros(2)}, r"beyond this model, 1 tensor, such as encoder\.extra\.weight"),
        ({tensor: torch.zeros(3, *shape)}, rf"{tensor} is \(3, .* there and \({shape[0]},.* here"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            built(name, stored(tmp_path, state_of(name, **changes)))
        assert "\n" not in str(error.value) and "released.ckpt" in str(error.value)
    with pytest.raises(ValueError, match=f"holds no {called} model"):
        built(name, stored(tmp_path, {"weight": torch.zeros(2)}))


@pytest.mark.parametrize("name, millions", [("ibq_vq", 111), ("open_magvit2", 116), ("maskgit_vq", 54.5), ("cosmos_di", 83.7)])
def test_it_has_the_size_that_its_yaml_says(name, millions):
    with torch.device("meta"):
        model = build({**read("tokenizer", name), "losses": None}, media_shape=(3, 256, 256))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=1)
