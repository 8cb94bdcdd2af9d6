"""The published size of VQGAN, and the lines in which it refuses what it cannot take."""

import pytest
import torch
from tokenizer_kit import PLAIN, make, media

from gentok.types import Line, Raster, Tokens, TokenSpec


def test_vq16_has_72_million_parameters():
    """LlamaGen, arXiv 2406.06525, table 8: VQ-16 with 16,384 rows of 8."""
    book = {**PLAIN, "vocab_size": 16384, "dim": 8, "width": 256}
    with torch.device("meta"):
        model = make("vqgan_llamagen", book, shape=(3, 256, 256))
    assert model.stride == 16 and model.spec.grid == Raster(16, 16)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(72e6, rel=0.03)


def test_a_wider_decoder_changes_no_code():
    x, narrow, wide = media(), make("vqgan", width=8).eval(), make("vqgan", width=8, decoder_width=16).eval()
    wide.load_state_dict({k: v for k, v in narrow.state_dict().items() if not k.startswith("decoder")}, strict=False)
    assert torch.equal(narrow.encode(x).codes, wide.encode(x).codes)
    assert sum(p.numel() for p in wide.decoder.parameters()) > 3 * sum(p.numel() for p in narrow.decoder.parameters())


@pytest.mark.parametrize(
    ("shape", "line"),
    [((3, 16, 16), "1 channel"), ((1, 18, 16), "that 4 divides, got 18 x 16"), ((16, 16), r"\[B, 1, H, W\]")],
)
def test_media_of_another_kind_is_refused(shape, line):
    with pytest.raises(ValueError, match=line):
        make("vqgan", width=8).encode(torch.zeros(2, *shape))


def test_bytes_are_refused():
    with pytest.raises(ValueError, match="takes float images"):
        make("vqgan", width=8).encode(torch.zeros(1, 1, 16, 16, dtype=torch.uint8))


def test_data_of_a_size_that_the_stride_does_not_divide_is_refused_when_built():
    with pytest.raises(ValueError, match="the data has 28 x 30"):
        make("vqgan", shape=(1, 28, 30))


def test_foreign_tokens_are_refused():
    model = make("vqgan", width=8)
    foreign = Tokens(torch.zeros(1, 1, 16, dtype=torch.int64), TokenSpec((99,), Raster(4, 4)))
    with pytest.raises(ValueError, match="another tokenizer"):
        model.decode(foreign)
    with pytest.raises(ValueError, match="of a raster"):
        model.decode(Tokens(foreign.codes, TokenSpec((16,), Line(16))))


def test_without_losses_only_the_codebook_speaks():
    from tokenizer_kit import batch_of

    model = make("vqgan", width=8)
    model.losses = None
    assert "l2" not in model(batch_of(media())).losses


def test_a_pyramid_is_decoded_at_the_size_that_its_spec_names():
    from dataclasses import replace

    from tokenizer_kit import read

    from gentok.types import Pyramid

    model = make("vqgan", read("codebook", "pyramid"), width=8).eval()
    assert model.spec.grid == Pyramid((1, 2, 3, 4)) and model.spec.latent_positions == 16
    tokens = model.encode(media())
    assert tokens.codes.shape == (4, 1, 30) and model.decode(tokens).shape == (4, 1, 16, 16)
    with pytest.raises(ValueError, match="of 4 x 4 cells; got 2 x 6"):
        model.encode(media(2, (1, 8, 24)))
    with pytest.raises(ValueError, match="of a raster"):
        model.decode(Tokens(tokens.codes, replace(tokens.spec, media_shape=None)))
    with pytest.raises(ValueError, match="Pyramid"):
        model.decode(Tokens(tokens.codes[:, :, :16], replace(tokens.spec, grid=Raster(4, 4))))


def test_the_published_settings_of_var_build_its_680_tokens():
    from gentok.bundle import build_tokenizer
    from gentok.cli import compose

    config = compose("config", ["experiment=imagenet256/var_vq", "data.path=nowhere"])["tokenizer"]
    with torch.device("meta"):
        model = build_tokenizer({**config, "losses": None, "media_shape": [3, 256, 256]}, training=True)
    assert model.spec.positions == 680 and model.spec.latent_positions == 256 and model.spec.vocab_sizes == (4096,)
    assert model.codebook.width == 32 and len(model.codebook.phi) == 4
