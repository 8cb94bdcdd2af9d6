"""Properties of the convolutional autoencoder: sizes, published parameter counts, rows apart, gradients everywhere."""

import pytest
import torch

from gentok.nn.autoencoder import VQ16, ConvDecoder, ConvEncoder, ConvSettings, SpatialAttention

SMALL = {"width": 8, "multipliers": (1, 2), "blocks": 1}
SETTINGS = ConvSettings(**SMALL, attention=True, patch=1)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_any_size_that_the_stride_divides(patch, attention, size):
    settings = ConvSettings(**SMALL, patch=patch, attention=attention)
    encoder, decoder = ConvEncoder(3, 5, settings), ConvDecoder(3, 5, settings)
    media, stride = torch.randn(2, 3, *size), settings.stride
    z = encoder(media)
    assert stride == 2 * patch and z.shape == (2, 5, size[0] // stride, size[1] // stride)
    assert decoder(z).shape == media.shape


def test_published_size_of_vq16():
    """taming-transformers and LlamaGen, 256 channels of features: encoder 29.3 M, decoder 42.4 M."""
    with torch.device("meta"):
        encoder, decoder = ConvEncoder(3, 256, VQ16), ConvDecoder(3, 256, VQ16)
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(29.3e6, rel=2e-3)
    assert sum(p.numel() for p in decoder.parameters()) == pytest.approx(42.45e6, rel=2e-3)


def test_a_row_of_a_batch_equals_the_row_alone():
    encoder = ConvEncoder(1, 4, SETTINGS).double()
    media = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(encoder(media)[1:2], encoder(media[1:2]), atol=1e-12, rtol=0)


def test_attention_reaches_every_position():
    layer = SpatialAttention(8).double()
    x = torch.randn(1, 8, 3, 4, dtype=torch.float64, requires_grad=True)
    layer(x)[0, :, 2, 3].sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()


def test_attention_is_softmax_of_scaled_products():
    layer = SpatialAttention(8).double()
    x = torch.randn(2, 8, 2, 3, dtype=torch.float64)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).transpose(1, 2).chunk(3, -1)
    y = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v
    torch.testing.assert_close(layer(x), x + layer.out(y.transpose(1, 2).reshape(x.shape)))


def test_every_parameter_learns():
    encoder, decoder = ConvEncoder(1, 4, SETTINGS), ConvDecoder(1, 4, SETTINGS)
    (decoder(encoder(torch.randn(2, 1, 8, 8))) ** 2).sum().backward()
    silent = [n for m in (encoder, decoder) for n, p in m.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not silent
