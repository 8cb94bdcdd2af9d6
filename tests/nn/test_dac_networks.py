"""DAC's networks: lengths, symmetry, start. Equality with transformers' is in tests/tokenizers/test_dac.py."""

from __future__ import annotations

import math

import pytest
import torch

from gentok.nn.dac import DACDecoder, DACEncoder

RATIOS = [(4, 2), (5, 2), (3, 3)]


@pytest.mark.parametrize("ratios", RATIOS)
@pytest.mark.parametrize("fill_odd", [False, True])
def test_every_length_has_its_frames_and_every_frame_its_samples(ratios, fill_odd):
    encoder = DACEncoder(1, 4, ratios)
    decoder = DACDecoder(encoder.width, 8, fill_odd, ratios=ratios)
    hop = math.prod(ratios)
    assert encoder.hop == decoder.hop == hop and encoder.width == decoder.width == 16 and not encoder.causal and not decoder.causal
    for length in (1, hop - 1, hop, hop + 1, 5 * hop + 2):
        z = encoder(torch.randn(2, 1, length))
        assert z.shape == (2, 16, math.ceil(length / hop))
        wave = decoder(z)
        assert wave.shape == (2, 1, z.shape[2] * hop) and wave.abs().max() < 1
    missing = 0 if fill_odd else decoder(torch.randn(1, 16, 7))[0, 0].flip(0).ne(0).float().argmax()
    behind = {(4, 2): 0, (5, 2): 2, (3, 3): 4}[ratios]  # an odd ratio loses a sample, which the ratios behind it multiply
    assert missing == (0 if fill_odd else behind)


def test_padding_is_the_same_on_both_sides():
    """A kernel that is its own mirror image gives, of a mirrored wave, the mirrored latents."""
    encoder = DACEncoder(1, 4, (4, 2)).double()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv1d):
            weight = torch.randn_like(module.weight)
            module.weight = weight + weight.flip(2)
    x = torch.randn(1, 1, 64, dtype=torch.float64)
    torch.testing.assert_close(encoder(x.flip(2)), encoder(x).flip(2))
    assert not torch.allclose(encoder(x.roll(1, 2)), encoder(x))


def test_biases_start_at_zero_and_weight_norm_parts_length_from_direction():
    encoder = DACEncoder(1, 16, (4, 2))
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv1d):
            bound = module.weight[0].numel() ** -0.5  # torch's own start: uniform, not the release's draw of 0.02 that has no effect
            assert not module.bias.any() and 0.9 * bound < module.weight.abs().max() <= bound
            length, direction = module.parametrizations.weight.original0, module.parametrizations.weight.original1
            torch.testing.assert_close(length, direction.norm(dim=(1, 2), keepdim=True))
            with torch.no_grad():
                before = module.weight.clone()
                direction.mul_(3.0)
            torch.testing.assert_close(module.weight, before)


def test_every_parameter_learns():
    encoder = DACEncoder(1, 4, (4, 2))
    decoder = DACDecoder(encoder.width, 8, ratios=(4, 2))
    decoder(encoder(torch.randn(2, 1, 64))).square().sum().backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert decoder.last_layer.grad.abs().sum() > 0


def test_sizes_that_do_not_fit_are_refused_in_a_line():
    with pytest.raises(ValueError, match="no multiple of 4"):
        DACDecoder(16, 6, ratios=(2, 2))
