"""STFT and mel spectrogram against torchaudio, and what they refuse."""

import pytest
import torch

from gentok.nn.spectral import Mel, frame_mask, mel_filters, stft

torchaudio = pytest.importorskip("torchaudio")


def waves(samples: int = 4000) -> torch.Tensor:
    return torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(0)).mul(0.3)


@pytest.mark.parametrize(
    ("n_fft", "hop", "window", "normalized"), [(512, None, None, False), (400, 100, 300, True), (512, 160, 401, False)]
)
def test_stft_equals_torchaudio(n_fft, hop, window, normalized):
    hann = None if window is None else torch.hann_window(window)
    ours = stft(waves(), n_fft, hop, hann, normalized)
    theirs = torchaudio.transforms.Spectrogram(
        n_fft, win_length=window, hop_length=hop or n_fft // 4, power=None, normalized="window" if normalized else False
    )(waves())
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_stft_without_padding_sees_whole_frames_alone():
    out = stft(waves(1000), 256, 64, pad=0)
    assert out.shape == (2, 1, 129, (1000 - 256) // 64 + 1)
    torch.testing.assert_close(out[..., 3], stft(waves(1000)[..., 192:448], 256, 64, pad=0)[..., 0])


@pytest.mark.parametrize("scale", ["htk", "slaney"])
@pytest.mark.parametrize("norm", [None, "slaney"])
def test_mel_equals_torchaudio(scale, norm):
    ours = Mel(16000, 1024, 256, mels=64, f_min=40, f_max=7600, power=2.0, scale=scale, norm=norm)
    theirs = torchaudio.transforms.MelSpectrogram(16000, 1024, hop_length=256, n_mels=64, f_min=40, f_max=7600, mel_scale=scale, norm=norm)
    found, expected = ours(waves()), theirs(waves())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_mel_stays_float32_under_autocast_and_out_of_the_state_dict():
    mel = Mel(8000, 256, mels=20)
    plain = mel(waves())
    with torch.autocast("cpu", torch.bfloat16):
        cast = mel(waves().bfloat16().float())
    assert cast.dtype == torch.float32 and not mel.state_dict()
    torch.testing.assert_close(mel(waves().bfloat16().float()), cast)
    assert mel(waves().double()).dtype == torch.float64
    torch.testing.assert_close(mel(waves().double()).float(), plain, atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_wave():
    wave = waves(600).requires_grad_()
    Mel(8000, 256, mels=20)(wave).sum().backward()
    assert wave.grad.abs().sum() > 0


def test_what_is_refused():
    with pytest.raises(ValueError, match="at least 129 samples; got 100"):
        stft(torch.zeros(1, 100), 256)
    with pytest.raises(ValueError, match="scale htk or slaney"):
        mel_filters(129, 20, 8000, scale="bark")
    with pytest.raises(ValueError, match="f_max=5000"):
        mel_filters(129, 20, 8000, f_max=5000)
    with pytest.raises(ValueError, match="touches none of the 129"):
        mel_filters(129, 100, 8000)


def test_frames_as_convolutions_make_them_are_shifted_by_half_a_hop():
    """pad = (n_fft - hop) / 2: T / hop frames, each what a centred frame half a hop later is."""
    wave, hop = waves(1024), 64
    out = stft(wave, 256, hop, pad=(256 - hop) // 2)
    assert out.shape[-1] == 1024 // hop
    shifted = stft(wave[..., hop // 2 :], 256, hop)
    torch.testing.assert_close(out[..., 3:12], shifted[..., 3:12])


def test_narrow_filters_are_rows_of_zeros_where_that_is_asked_for():
    filters = mel_filters(129, 100, 8000, empty=True)
    assert (filters.sum(1) == 0).any() and (filters >= 0).all()


def test_frames_within_a_length_are_as_many_as_its_hops():
    mask = frame_mask(torch.tensor([1, 64, 65, 640]), 11, 64)
    assert mask.sum(1).tolist() == [1, 1, 2, 10] and mask[:, 0].all()
