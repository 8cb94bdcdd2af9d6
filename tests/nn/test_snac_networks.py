"""SNAC's networks: lengths, what is depthwise, and noise."""

from __future__ import annotations

import math

import pytest
import torch

from gentok.nn.dac import ResidualUnit
from gentok.nn.snac import NoiseBlock, SNACDecoder, SNACEncoder
from gentok.rng import RowRNG


def of(seed=0, rows=2):
    return RowRNG.of(seed, torch.arange(rows))


@pytest.mark.parametrize("ratios", [(4, 2), (3, 3)])
def test_every_length_has_its_frames_and_every_frame_its_samples(ratios):
    encoder = SNACEncoder(4, ratios=ratios)
    decoder, hop = SNACDecoder(encoder.width, 8, ratios=ratios), math.prod(ratios)
    assert encoder.hop == decoder.hop == hop and encoder.width == 16
    assert SNACEncoder(4, ratios=ratios, width=6)(torch.zeros(1, 1, 9)).shape[1] == 6
    for length in (1, hop - 1, hop, hop + 1, 5 * hop + 2):
        z = encoder(torch.randn(2, 1, length))
        assert z.shape == (2, 16, math.ceil(length / hop))
        assert decoder(z).shape == decoder(z, of()).shape == (2, 1, z.shape[2] * hop)
    with pytest.raises(ValueError, match="no multiple of 4"):
        SNACDecoder(16, 6, ratios=(2, 2))


def test_units_and_the_ends_of_the_latent_are_depthwise():
    for net in (SNACEncoder(4, ratios=(4, 2)), SNACDecoder(16, 8, ratios=(4, 2))):
        grouped = [m for m in net.modules() if isinstance(m, torch.nn.Conv1d) and m.groups > 1]
        assert all(m.groups == m.in_channels and m.kernel_size == (7,) for m in grouped)
        units = [m for m in net.modules() if isinstance(m, ResidualUnit)]
        assert len(units) == 6 and len(grouped) == 7  # one per unit, and one at the latent


def test_noise_is_one_number_per_sample_that_the_signal_scales_and_belongs_to_the_row():
    block, x = NoiseBlock(3), torch.randn(2, 3, 2000)
    assert torch.equal(block(x), x) and block.scale.bias is None
    added, drawn = block(x, of()) - x, of().normal(1, 2000).float()
    torch.testing.assert_close(added, drawn * block.scale(x))
    assert 0.9 < drawn.std() < 1.1
    decoder = SNACDecoder(16, 8, ratios=(4, 2))
    with torch.no_grad():
        for module in decoder.modules():
            if isinstance(module, NoiseBlock):
                module.scale.weight = torch.randn(module.scale.weight.shape)
    z = torch.randn(2, 16, 5)
    torch.testing.assert_close(decoder(z, of())[1:], decoder(z[1:], of().rows(torch.tensor([1]))))
    assert torch.equal(decoder(z, of()), decoder(z, of())) and torch.equal(decoder(z), decoder(z))
    assert not torch.allclose(decoder(z, of()), decoder(z)) and not torch.allclose(decoder(z, of()), decoder(z, of(1)))
    assert not any(isinstance(m, NoiseBlock) for m in SNACDecoder(16, 8, ratios=(4, 2), noise=False).modules())


def test_every_parameter_learns():
    encoder = SNACEncoder(4, ratios=(4, 2))
    decoder = SNACDecoder(encoder.width, 8, ratios=(4, 2))
    decoder(encoder(torch.randn(2, 1, 64)), of()).square().sum().backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
