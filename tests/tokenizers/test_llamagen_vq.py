"""gentok's VQGAN with LlamaGen's weights gives the codes and pixels that LlamaGen's own code gave; other files are refused."""

import pytest
import torch
from released_kit import images, recorded, released
from safetensors.torch import save_file
from tokenizer_kit import LOSSES, batch_of, noise_of, read

from gentok.build import build
from gentok.bundle import load, pretrained
from gentok.errors import ConfigError
from gentok.types import Tokens

MULTIPLIERS = {"vq16": [1, 1, 2, 2, 4], "vq8": [1, 2, 2, 4]}


def config(model="vq16", **changes):
    """conf/tokenizer/llamagen_vq.yaml, small, as the record was made."""
    found = {**read("tokenizer", "llamagen_vq"), "losses": None, "width": 32, "multipliers": MULTIPLIERS[model]}
    found["codebook"] = {**found["codebook"], "vocab_size": 64, "dim": 4, "width": 32}
    return {**found, **changes}


def stored(tmp_path, model="vq16", **changes):
    """The file, as it is released; changes: tensors, None to leave one out."""
    state = {key: value for key, value in {**released("llamagen", model), **changes}.items() if value is not None}
    torch.save({"model": state}, tmp_path / f"{model}.pt")
    return str(tmp_path / f"{model}.pt")


def built(model, path):
    side = 2 ** (len(MULTIPLIERS[model]) - 1)
    shape = (3, 3 * side, 2 * side)
    return build(config(model, weights=path), media_shape=shape).eval(), images(*shape[1:])


def pixels(model, codes):
    return model.painted(model.codebook.lookup(codes), (3, 2)).detach()


@pytest.mark.parametrize("model", MULTIPLIERS)
def test_codes_and_pixels_are_those_of_the_release(model, tmp_path):
    ours, x = built(model, stored(tmp_path, model))
    codes, wanted = recorded("llamagen", model, "codes", "pixels")
    assert torch.equal(ours.encode(x).codes, codes) and len(codes.unique()) > 8
    assert (pixels(ours, codes) - wanted).abs().max() < 1e-5
    assert torch.equal(ours.decode(Tokens(codes, ours.spec)), pixels(ours, codes).clamp(-1, 1))
    # mutants: rows that are not brought to length 1, and queries in the place of keys
    ours.codebook.normalize = False
    assert (pixels(ours, codes) - wanted).abs().max() > 1e-2
    ours.codebook.normalize = True
    attention = next(part for part in ours.decoder.body if hasattr(part, "qkv"))
    with torch.no_grad():
        attention.qkv.weight.copy_(attention.qkv.weight.roll(len(attention.qkv.weight) // 3, 0))
    assert (pixels(ours, codes) - wanted).abs().max() > 1e-3


def test_a_file_is_adopted_and_its_bundle_needs_it_no_more(tmp_path):
    save_file(released("llamagen", "vq8"), tmp_path / "vq.safetensors")
    found = pretrained(config("vq8", weights=str(tmp_path / "vq.safetensors")), (3, 24, 16))
    path = found.save(tmp_path / "bundle")
    (tmp_path / "vq.safetensors").unlink()
    again = load(path)
    assert torch.equal(again.tokenizer.encode(images(24, 16)).codes, recorded("llamagen", "vq8", "codes")[0])
    assert again.spec == found.spec and str(tmp_path) not in (path / "bundle.json").read_text()


def test_it_is_trained_from_where_the_release_stands(tmp_path):
    model = build(config("vq8", weights=stored(tmp_path, "vq8"), losses=LOSSES), media_shape=(3, 24, 16)).train()
    before, x = model.codebook.weight.detach().clone(), images(24, 16)
    out = model(batch_of(x), noise_of(x))
    assert torch.equal(out.tokens.codes, recorded("llamagen", "vq8", "codes")[0]) and torch.equal(model.codebook.weight, before)
    sum(out.losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_other_files_are_refused_in_one_line(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    torch.save({"model": released("llamagen", "vq16"), "args": print}, tmp_path / "code.pt")
    for changes, line in (
        ({"decoder.mid.1.k.bias": None}, r"lacks 1 tensor, such as decoder\.mid\.1\.k\.bias"),
        ({"encoder.extra.weight": torch.zeros(2)}, r"beyond this model, 1 tensor, such as encoder\.extra\.weight"),
        ({"quant_conv.weight": torch.zeros(8, 32, 1, 1)}, r"quant_conv\.weight is \(8, 32, 1, 1\) there and \(4, 32\) here"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            built("vq16", stored(tmp_path, **changes))
        assert "\n" not in str(error.value) and "vq16.pt" in str(error.value)
    for model, path, error, line in (
        ("vq8", stored(tmp_path), ValueError, "is LlamaGen's VQ-16, configured is VQ-8"),
        ("vq8", str(tmp_path / "other.pt"), ValueError, "holds no LlamaGen VQ model"),
        ("vq16", str(tmp_path / "code.pt"), ValueError, "without running its code"),
        ("vq16", str(tmp_path / "gone.pt"), FileNotFoundError, "no LlamaGen VQ weights"),
    ):
        with pytest.raises(error, match=line) as found:
            built(model, path)
        assert "\n" not in str(found.value)
    with pytest.raises(ConfigError, match="has random weights"):
        pretrained(config(), (3, 48, 32))


@pytest.mark.parametrize("multipliers, millions", [([1, 1, 2, 2, 4], 72), ([1, 2, 2, 4], 70)])
def test_it_has_its_published_size(multipliers, millions):
    with torch.device("meta"):
        model = build({**read("tokenizer", "llamagen_vq"), "losses": None, "multipliers": multipliers}, media_shape=(3, 256, 256))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.5)
