"""TiTok gives the codes and pixels that its own code gave, in both of its forms; other files, sizes and tokens are refused."""

import pytest
import torch
from released_kit import images, recorded, released
from tokenizer_kit import LOSSES, read, trained_on

from gentok.build import build
from gentok.bundle import load, pretrained
from gentok.types import Line, Tokens

SMALL = {"tokens": 5, "width": 48, "depth": 2, "heads": 3, "vqgan_codes": 32, "vqgan_dim": 16, "vqgan_width": 32}
"""As the record was made."""


def config(kind, weights=None, **changes):
    found = {**read("tokenizer", "titok"), "losses": None, **SMALL, "weights": weights, "patches": kind}
    found["codebook"] = {**found["codebook"], "vocab_size": 64, "dim": 6, "normalize": kind == "vqgan"}
    return {**found, "vqgan_multipliers": [1, 1, 1, 1, 2], **changes}


def stored(tmp_path, kind, **changes):
    torch.save(released("titok", kind, **changes), tmp_path / "tokenizer_titok.bin")
    return str(tmp_path / "tokenizer_titok.bin")


def built(kind, path, **changes):
    return build(config(kind, path, **changes), media_shape=(3, 64, 64)).eval()


def pixels(model, codes, rows):
    return model.painted(model.codebook.lookup(codes), (1, 5)).detach()[:rows]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vqgan", "pixels"])
def test_codes_and_pixels_are_those_of_the_release(kind, tmp_path):
    model = built(kind, stored(tmp_path, kind))
    codes, wanted = recorded("titok", kind, "codes", "pixels")
    assert torch.equal(model.encode(images(64, 64)).codes, codes) and len(codes.unique()) > 4
    model.double()  # as the record was computed: GroupNorm of so few channels makes much of what float32 rounds
    assert (pixels(model, codes, len(wanted)) - wanted).abs().max() < 1e-5
    assert torch.equal(model.decode(Tokens(codes, model.spec))[: len(wanted)], pixels(model, codes, len(wanted)).clamp(-1, 1))
    assert model.spec.grid == Line(5) and not model.spec.grid.nested
    # mutants: vectors read the other way, patches of the image and of the decoder in other places
    model.encoder.shuffled = not model.encoder.shuffled
    assert not torch.equal(model.encode(images(64, 64).double()).codes, codes)
    model.decoder.places.copy_(model.decoder.places.roll(1, 0))
    assert (pixels(model, codes, len(wanted)) - wanted).abs().max() > 1e-3


@pytest.mark.slow
def test_a_file_is_adopted_and_trained_from_where_the_release_stands(tmp_path):
    path = pretrained(config("vqgan", stored(tmp_path, "vqgan")), (3, 64, 64)).save(tmp_path / "bundle")
    (tmp_path / "tokenizer_titok.bin").unlink()
    codes, x = recorded("titok", "vqgan", "codes")[0], images(64, 64)
    assert torch.equal(load(path).tokenizer.encode(x).codes, codes)
    trained_on(built("pixels", stored(tmp_path, "pixels"), losses=LOSSES), x, recorded("titok", "pixels", "codes")[0])


def test_other_files_sizes_and_tokens_are_refused_in_one_line(tmp_path):
    for changes, line in (
        ({"decoder.ffn.0.bias": None}, r"lacks 1 tensor, such as decoder\.ffn\.0\.bias"),
        ({"encoder.extra.weight": torch.zeros(2)}, r"beyond this model, 1 tensor, such as encoder\.extra\.weight"),
        ({"latent_tokens": torch.zeros(6, 48)}, r"latent_tokens is \(6, 48\) there and \(5, 48\) here"),
        ({"encoder.latent_token_positional_embedding": None}, "holds no TiTok model: expected the weights of a tokenizer of TiTok"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            built("vqgan", stored(tmp_path, "vqgan", **changes))
        assert "\n" not in str(error.value) and "tokenizer_titok.bin" in str(error.value)
    with pytest.raises(ValueError, match="have the stride of the VQGAN, 16; got patch=8"):
        built("vqgan", None, patch=8)
    model = built("pixels", None)
    with pytest.raises(ValueError, match="places for images of 64 x 64, got 64 x 80: resize them"):
        model.encode(torch.zeros(1, 3, 64, 80))
    with pytest.raises(ValueError, match="decodes 5 tokens on a line; got 4"):
        model.decode(Tokens(torch.zeros(1, 1, 4, dtype=torch.int64), model.spec))


@pytest.mark.parametrize("sizes, millions", [(("L", "L", 32), 641), (("B", "B", 64), 205), (("S", "S", 128), 83)])
def test_it_has_its_published_size(sizes, millions):
    names = dict(zip(("encoder", "decoder", "tokens"), sizes))
    with torch.device("meta"):
        model = build({**read("tokenizer", "titok"), "losses": None, **names}, media_shape=(3, 256, 256))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=2)
