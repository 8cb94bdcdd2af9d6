"""gentok's KL autoencoder with MAR's weights gives the latents and pixels that MAR's own code gave; other files are refused."""

import pytest
import torch
from released_kit import images, recorded, released
from tokenizer_kit import LOSSES, batch_of, noise_of, read

from gentok.build import build
from gentok.bundle import load, pretrained
from gentok.types import Latents


def config(weights=None, **changes):
    """conf/tokenizer/mar_kl.yaml, small, as the record was made."""
    small = {"losses": None, "width": 32, "multipliers": [1, 1, 2], "weights": weights}
    return {**read("tokenizer", "mar_kl"), **small, **changes}


def stored(tmp_path, **changes):
    """The file, as it is released; changes: tensors, None to leave one out."""
    torch.save({"model": released("mar", "kl", **changes)}, tmp_path / "kl16.ckpt")
    return str(tmp_path / "kl16.ckpt")


def built(path, **changes):
    return build(config(path, **changes), media_shape=(3, 32, 32)).eval()


def test_latents_and_pixels_are_those_of_the_release(tmp_path):
    model = built(stored(tmp_path))
    wanted, log_variance, pixels = recorded("mar", "kl", "latents", "log_variance", "pixels")
    latents = model.encode(images(32, 32))
    assert (latents.values.unflatten(2, (8, 8)) - wanted).abs().max() < 1e-5
    assert (model.posterior(images(32, 32))[1].unflatten(2, (8, 8)) - log_variance).abs().max() < 1e-5
    given = Latents(wanted.flatten(2), latents.spec)
    assert (model.decode(given) - pixels.clamp(-1, 1)).abs().max() < 1e-5
    # mutants: another scaling, no convolution behind the encoder, a block of attention skipped
    model.scaling = 0.18215
    assert (model.encode(images(32, 32)).values.unflatten(2, (8, 8)) - wanted).abs().max() > 1e-2
    model.scaling, model.encoder.to_code = 0.2325, None
    assert (model.encode(images(32, 32)).values.unflatten(2, (8, 8)) - wanted).abs().max() > 1e-2
    model.decoder.body[1] = torch.nn.Identity()
    assert (model.decode(given) - pixels.clamp(-1, 1)).abs().max() > 1e-2


def test_a_file_is_adopted_and_trained_from_where_the_release_stands(tmp_path):
    path = pretrained(config(stored(tmp_path)), (3, 32, 32)).save(tmp_path / "bundle")
    (tmp_path / "kl16.ckpt").unlink()
    wanted = recorded("mar", "kl", "latents")[0]
    bundle = load(path)
    assert (bundle.tokenizer.encode(images(32, 32)).values.unflatten(2, (8, 8)) - wanted).abs().max() < 1e-5
    assert bundle.spec.width == 16
    model = built(stored(tmp_path), losses=LOSSES).train()
    x, losses = images(32, 32), []
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(3):
        losses.append(sum(model(batch_of(x), noise_of(x)).losses.values()))
        losses[-1].backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[2] < losses[0]


def test_other_files_are_refused_in_one_line_and_other_trainings_parts_are_passed_over(tmp_path):
    built(stored(tmp_path, **{"loss.logvar": torch.zeros(())}))
    for changes, options, line in (
        ({"quant_conv.bias": None}, {}, r"lacks 1 tensor, such as quant_conv\.bias"),
        ({"encoder.extra.weight": torch.zeros(2)}, {}, r"beyond this model, 1 tensor, such as encoder\.extra\.weight"),
        ({"quant_conv.weight": torch.zeros(32, 32, 3, 3)}, {}, r"quant_conv\.weight is \(32, 32, 3, 3\) there and \(32, 32, 1, 1\) here"),
        ({}, {"decoder_attention": None}, r"lacks 30 tensors, such as decoder\.up\.2\.attn\.0\.k\.bias"),
        ({"post_quant_conv.weight": None}, {}, "holds no MAR KL model: expected the weights of the autoencoder of MAR"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            built(stored(tmp_path, **changes), **options)
        assert "\n" not in str(error.value) and "kl16.ckpt" in str(error.value)


def test_it_has_its_published_size():
    with torch.device("meta"):
        model = build({**read("tokenizer", "mar_kl"), "losses": None}, media_shape=(3, 256, 256))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(66.456, abs=1e-3) and model.spec.positions == 256
