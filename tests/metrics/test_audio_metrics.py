"""SI-SDR and the mel distance: parity, what they ignore, and rows that give alone what they give in a
batch."""

import math

import pytest
import torch

from gentok.metrics import audio
from gentok.metrics.audio import LIMIT_DB, mel_distance, si_sdr

RATE = 8000


def waves(rows: int = 3, samples: int = 3001, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(reconstruction, media): tones with an offset, and the same with noise of another loudness in each
    row."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / RATE
    media = torch.stack([torch.sin(2 * math.pi * f * time) for f in (220.0, 440.0, 1000.0)[:rows]])[:, None] * 0.5 + 0.1
    rng = torch.randn(media.shape, generator=generator) * torch.tensor([0.01, 0.1, 0.5])[:rows, None, None]
    return media + rng, media


def test_si_sdr_equals_torchmetrics():
    pytest.importorskip("torchmetrics")
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    made, media = waves()
    theirs = scale_invariant_signal_distortion_ratio(made, media, zero_mean=True)[:, 0]
    torch.testing.assert_close(si_sdr(made, media).float(), theirs, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("gain, offset", [(1e-4, 0.0), (7.0, 0.0), (1.0, 0.3), (-2.0, -0.1)])
def test_si_sdr_ignores_scale_and_offset(gain, offset):
    made, media = (x.double() for x in waves())
    torch.testing.assert_close(si_sdr(gain * made + offset, media), si_sdr(made, media), atol=1e-6, rtol=0)
    torch.testing.assert_close(si_sdr(made, gain * media + offset), si_sdr(made, media), atol=1e-6, rtol=0)


def test_a_ratio_without_projection_depends_on_scale():
    """The mutant: plain SNR of the same waves moves by tens of dB."""
    made, media = waves()

    def snr(r, m):
        return 10 * torch.log10(m.square().sum(-1) / (r - m).square().sum(-1))[:, 0]

    assert (snr(7.0 * made, media) - snr(made, media)).abs().min() > 5


def test_si_sdr_of_silence_and_of_equals_is_finite():
    made, media = waves(2)
    silence, constant = torch.zeros_like(media), torch.full_like(media, 0.3)
    assert si_sdr(media, media).tolist() == [LIMIT_DB] * 2
    for nothing in (silence, constant):
        assert si_sdr(nothing, media).tolist() == si_sdr(media, nothing).tolist() == [-LIMIT_DB] * 2
        assert si_sdr(nothing, silence).tolist() == [LIMIT_DB] * 2


def test_mel_distance_is_zero_for_equals_alone():
    made, media = waves()
    assert mel_distance(media, media, RATE).tolist() == [0.0] * 3
    distances = mel_distance(made, media, RATE)
    assert (distances > 0).all() and distances[0] < distances[1] < distances[2]
    assert (mel_distance(media * 10 ** (-1 / 20), media, RATE) > 0).all()  # scale counts
    late = media.clone()
    late[..., -1] += 0.05  # one sample, at the very end
    assert (mel_distance(late, media, RATE) > 0).all()


def test_a_change_of_level_reads_a_twentieth_per_decibel_and_window():
    rng = torch.randn(2, 1, 4000, generator=torch.Generator().manual_seed(0))
    kept = [int((mel.filters.sum(1) > 0).sum()) / len(mel.filters) for mel in audio._scales(44100, "cpu")]
    found = mel_distance(rng * 10 ** (3 / 20), rng, 44100)  # filters that touch no frequency are empty
    torch.testing.assert_close(found, torch.full((2,), 3 / 20 * sum(kept), dtype=torch.float64), rtol=1e-3, atol=0)


@pytest.mark.parametrize("measure", [si_sdr, lambda r, m, lengths: mel_distance(r, m, RATE, lengths)])
def test_a_row_reads_in_a_batch_what_it_reads_alone(measure):
    """The mutant: without lengths, what lies beyond counts."""
    made, media = waves()
    lengths = torch.tensor([3001, 1700, 900])
    inside = torch.arange(3001) < lengths[:, None, None]
    padded = made * inside + ~inside * 0.2, media * inside
    whole = measure(*padded, lengths)
    alone = torch.cat([measure(made[i : i + 1, :, :n], media[i : i + 1, :, :n], None) for i, n in enumerate(lengths.tolist())])
    torch.testing.assert_close(whole, alone, atol=1e-9, rtol=0)
    assert ((measure(*padded, None) - alone).abs() > 1e-2).tolist() == [False, True, True]


def test_channels_are_averaged_and_bad_shapes_refused():
    made, media = waves(2)
    stereo = torch.cat([made, media], 1), torch.cat([media, media], 1)
    torch.testing.assert_close(si_sdr(*stereo), (si_sdr(made, media) + LIMIT_DB) / 2)
    torch.testing.assert_close(mel_distance(*stereo, RATE), mel_distance(made, media, RATE) / 2)
    for wrong in (lambda: si_sdr(made[..., 1:], media), lambda: mel_distance(made[0], media[0], RATE)):
        with pytest.raises(ValueError, match="of one shape"):
            wrong()
    with pytest.raises(ValueError, match="from 1 to 3001"):
        si_sdr(made, media, torch.tensor([0, 5]))
