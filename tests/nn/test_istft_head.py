"""Vocos's decoder: the inverse STFT gives a sound back from its spectrum, lengths, symmetry, and that everything learns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gentok.nn import istft_head
from gentok.nn.istft_head import ISTFTDecoder, inverse_stft


def a_sound_is_given_back_from_its_spectrum(inverse) -> None:
    """frame n is that of n_fft samples around the n-th hop samples; of these frames the inverse makes the sound."""
    for n_fft, hop, frames in ((64, 16, 9), (32, 16, 9), (60, 15, 4), (64, 16, 1)):
        x = torch.randn(2, frames * hop, dtype=torch.float64)
        left = (n_fft - hop) // 2
        window = torch.hann_window(n_fft, dtype=torch.float64)
        padded = F.pad(x, (left, n_fft - hop - left))
        spectrum = torch.stft(padded, n_fft, hop, window=window, center=False, return_complex=True)
        assert spectrum.shape == (2, n_fft // 2 + 1, frames)
        torch.testing.assert_close(inverse(spectrum, n_fft, hop), x, atol=1e-9, rtol=0)


def test_a_sound_is_given_back_from_its_spectrum():
    a_sound_is_given_back_from_its_spectrum(inverse_stft)


@pytest.mark.parametrize(
    "part, wrong",
    [
        ("_first_sample", lambda n_fft, hop: n_fft // 2),  # centred as torch's own, half a hop off
        ("_window_power", lambda window: window),  # windows summed instead of their squares
        ("_windowed_frames", lambda spectrum, n_fft, window: torch.fft.irfft(spectrum, n_fft, dim=1)),  # no window
    ],
)
def test_the_test_of_the_inverse_catches_a_wrong_part(part, wrong, monkeypatch):
    monkeypatch.setattr(istft_head, part, wrong)
    with pytest.raises((AssertionError, RuntimeError)):
        a_sound_is_given_back_from_its_spectrum(inverse_stft)


@pytest.mark.parametrize("attention", [0, 1])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_frame_has_its_samples_and_every_parameter_learns(attention, channels):
    net = ISTFTDecoder(10, 6, channels, filters=8, blocks=2, attention=attention, heads=2)
    assert net.n_fft == 40 and net.hop == 10 and net.width == 6 and not net.causal
    for frames in (1, 2, 7):
        assert net(torch.randn(3, 6, frames)).shape == (3, channels, 10 * frames)
    net(torch.randn(3, 6, 7)).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
    assert net.last_layer.grad.abs().sum() > 0 and (net.blocks[0].gamma == 0.5).all()


def test_magnitudes_and_phases_are_the_head_s_and_bounded():
    net = ISTFTDecoder(4, 3, filters=4, blocks=1)
    with torch.no_grad():
        net.head.weight.zero_(), net.head.bias.zero_()
        net.head.bias[2] = 1.0  # the third magnitude, e; the others 1; all phases 0
        want = torch.ones(9)
        want[2] = torch.e
        spectrum = want[None, :, None].expand(1, 9, 5).to(torch.complex64)
        torch.testing.assert_close(net(torch.randn(1, 3, 5))[:, 0], inverse_stft(spectrum, 16, 4))
        net.head.bias[:9] = 1000.0
        assert net(torch.randn(1, 3, 5)).isfinite().all()
        torch.testing.assert_close(net(torch.randn(1, 3, 5))[:, 0], inverse_stft(100.0 * torch.ones_like(spectrum), 16, 4))


def test_under_autocast_the_transform_is_float32():
    net, z = ISTFTDecoder(10, 6, filters=8, blocks=1), torch.randn(1, 6, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(z)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, net(z), atol=0.05, rtol=0.1)


def test_windows_that_do_not_overlap_are_refused_in_a_line():
    with pytest.raises(ValueError, match="at least 2 \\* hop"):
        ISTFTDecoder(10, n_fft=12)
