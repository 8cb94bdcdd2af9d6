"""gentok's VQGAN with VAR's weights gives the codes and pixels that VAR's own code gave; other files are refused."""

import pytest
import torch
from released_kit import images, recorded, released
from tokenizer_kit import LOSSES, batch_of, noise_of, read, trained_on

from gentok.build import build
from gentok.bundle import load, pretrained
from gentok.types import Tokens


def config(weights=None, **changes):
    """conf/tokenizer/var_vq.yaml, small, as the record was made."""
    found = {**read("tokenizer", "var_vq"), "losses": None, "width": 32, "weights": weights}
    book = {**found["codebook"]["codebook"], "vocab_size": 64, "dim": 8}
    return {**found, "codebook": {**found["codebook"], "sides": [1, 2, 3, 4], "codebook": book}, **changes}


def stored(tmp_path, **changes):
    torch.save(released("var", "vq", **changes), tmp_path / "vae.pth")
    return str(tmp_path / "vae.pth")


def built(path, **changes):
    return build(config(path, **changes), media_shape=(3, 64, 64)).eval()


def pixels(model, codes):
    return model.painted(model.codebook.lookup(codes), (4, 4)).detach()


def test_codes_and_pixels_are_those_of_the_release(tmp_path):
    model = built(stored(tmp_path))
    codes, wanted = recorded("var", "vq", "codes", "pixels")
    assert torch.equal(model.encode(images(64, 64)).codes, codes) and len(codes.unique()) > 8
    assert (pixels(model, codes) - wanted).abs().max() < 1e-5
    assert torch.equal(model.decode(Tokens(codes, model.spec)), pixels(model, codes).clamp(-1, 1))
    # mutants: another convolution behind a scale, none before the decoder
    phi, model.codebook.phi_of = model.codebook.phi_of, [0] * 4
    assert (pixels(model, codes) - wanted).abs().max() > 1e-2
    model.codebook.phi_of, model.decoder.from_code = phi, None
    assert (pixels(model, codes) - wanted).abs().max() > 1e-2


def test_a_file_is_adopted_and_trained_from_where_the_release_stands(tmp_path):
    path = pretrained(config(stored(tmp_path)), (3, 64, 64)).save(tmp_path / "bundle")
    (tmp_path / "vae.pth").unlink()
    codes = recorded("var", "vq", "codes")[0]
    assert torch.equal(load(path).tokenizer.encode(images(64, 64)).codes, codes)
    model = built(stored(tmp_path), losses=LOSSES).train()
    x, table = images(64, 64), model.codebook.book.weight.detach().clone()
    model(batch_of(x), noise_of(x))
    assert torch.equal(model.codebook.book.weight, table)
    trained_on(model, x, codes)


def test_other_files_are_refused_in_one_line(tmp_path):
    for changes, line in (
        ({"quant_conv.bias": None}, r"lacks 1 tensor, such as quant_conv\.bias"),
        ({"encoder.extra.weight": torch.zeros(2)}, r"beyond this model, 1 tensor, such as encoder\.extra\.weight"),
        ({"post_quant_conv.weight": torch.zeros(8, 8, 1, 1)}, r"post_quant_conv\.weight is \(8, 8, 1, 1\) there and \(8, 8, 3, 3\) here"),
        ({"quantize.quant_resi.qresi_ls.0.weight": None}, "holds no VAR VQ model: expected the weights of the tokenizer of VAR"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            built(stored(tmp_path, **changes))
        assert "\n" not in str(error.value) and "vae.pth" in str(error.value)


def test_it_has_its_published_size():
    with torch.device("meta"):
        model = build({**read("tokenizer", "var_vq"), "losses": None}, media_shape=(3, 256, 256))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(108.95, abs=0.05) and model.spec.positions == 680
