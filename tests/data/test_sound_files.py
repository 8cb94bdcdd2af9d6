"""Sound files in and out: what a part of a file is, what resampling keeps, and what damage is answered with."""

import io

import numpy as np
import pytest
import soundfile
import torch
from data_kit import wounds
from sound_kit import encoded_sound, sing, tone

from gentok.data import sound_files as audio
from gentok.data.sound_files import normalized, part_step, read_sound, resample, resampled_length, save_sound, sound_size

KINDS = ["WAV", "FLAC", "OGG", "MP3"]


def parts_are_right(kind, rate, to, read=read_sound):
    data = encoded_sound(kind, rate, seconds=1.0, seed=1)
    whole, step, worst = read_sound(data, to), part_step(rate, to), 0.0
    for share in (0.0, 0.23, 0.5, 0.97):
        start = int(share * whole.shape[1] // step) * step
        part = read(data, to, start=start, samples=1500)
        expected = whole[:, start : start + 1500]
        assert part.shape == expected.shape
        worst = max(worst, float((part - expected).abs().max()))
    return worst < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate, to", [(16000, 16000), (8000, 16000), (44100, 16000)])
def test_a_part_of_a_file_is_that_part_of_the_whole(kind, rate, to, monkeypatch):
    assert parts_are_right(kind, rate, to)


def test_mutant_that_resamples_a_part_without_what_is_around_it(monkeypatch):
    honest = audio._span

    def narrow(rate, to, start, samples, total):
        left, first, last = honest(rate, to, start, samples, total)
        cut = left // part_step(rate, to) * (rate // np.gcd(rate, to))
        return 0, int(first + cut), last

    monkeypatch.setattr(audio, "_span", narrow)
    assert not parts_are_right("WAV", 44100, 16000)


def test_a_part_begins_where_both_rates_have_a_sample():
    with pytest.raises(ValueError, match="begins at a multiple of 160 samples; got 100"):
        read_sound(encoded_sound(rate=44100), 16000, start=100, samples=10)


def frequency(wave, rate):
    """Hz of the largest peak, between bins by a parabola through the logarithms."""
    power = torch.fft.rfft(wave.double() * torch.hann_window(len(wave))).abs().clamp(min=1e-12).log()
    k = int(power[1:-1].argmax()) + 1
    a, b, c = power[k - 1 : k + 2].tolist()
    return (k + 0.5 * (a - c) / (a - 2 * b + c)) * rate / len(wave)


@pytest.mark.parametrize("rate, to", [(8000, 16000), (44100, 16000), (24000, 16000), (16000, 24000), (22050, 16000)])
def test_resampling_keeps_a_sines_frequency_and_height(rate, to):
    wave = torch.from_numpy(tone(1.0, rate, 1234.5)[:, 0])
    out = resample(wave, rate, to)
    assert len(out) == resampled_length(rate, rate, to) == to
    assert abs(frequency(out, to) - 1234.5) < 0.5 and abs(float(out[200:-200].abs().max()) - 0.3) < 0.003
    wrong = wave[torch.arange(to) * rate // (to + 20)]  # a mutant: 20 Hz off in the rate
    assert abs(frequency(wrong, to) - 1234.5) > 0.5


def test_resampling_removes_what_the_lower_rate_cannot_hold():
    high = torch.from_numpy(tone(0.5, 44100, 15000.0)[:, 0])
    assert float(resample(high, 44100, 16000)[100:-100].abs().max()) < 0.003
    assert float(high[:: 44100 // 16000].abs().max()) > 0.2  # without a filter it would fold back


def test_odd_rates_are_one_line_and_not_a_gigabyte():
    with pytest.raises(ValueError, match="sounds at 15999 Hz cannot be resampled to 16000 Hz"):
        resample(torch.zeros(10), 15999, 16000)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_of_any_kind_is_a_sound_or_one_clear_line(kind):
    """60 random wounds: bytes overwritten, and the end cut off."""
    for bad in wounds(encoded_sound(kind, 16000, seconds=0.3, seed=1), 60):
        try:
            sound_size(bad, "it")
            assert bool(read_sound(bad, 16000, 1, name="it").isfinite().all())
        except ValueError as error:
            assert "\n" not in str(error) and str(error).startswith("it cannot be read as a sound: ")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_short_is_never_taken_for_a_shorter_one(kind, tmp_path):
    data = encoded_sound(kind, 16000, seconds=0.5, seed=1)
    path = tmp_path / f"x.{kind.lower()}"
    for share in (0.9, 0.5, 0.1):
        path.write_bytes(data[: int(len(data) * share)])
        for source in (data[: int(len(data) * share)], path):
            with pytest.raises(ValueError, match="cannot be read as a sound"):
                sound_size(source)
                read_sound(source)


def test_a_wav_whose_writer_could_not_seek_back_is_whole():
    data = bytearray(encoded_sound("WAV", 8000, seconds=0.1))
    place = data.index(b"data") + 4
    data[place : place + 4] = b"\xff\xff\xff\xff"
    assert sound_size(bytes(data))[0] == 800


def test_what_is_no_sound_is_one_line(tmp_path):
    empty = encoded_sound("WAV", seconds=0.0)
    (tmp_path / "text.wav").write_text("this is no sound")
    text, gone = tmp_path / "text.wav", tmp_path / "gone.wav"
    for source, line in ((empty, "no samples"), (text, "Format not recognised"), (gone, "no such file"), (b"", "")):
        with pytest.raises(ValueError, match=f"cannot be read as a sound: .*{line}") as error:
            sound_size(source)
        assert "\n" not in str(error.value)
    assert read_sound(encoded_sound(level=0.0), 16000).abs().max() == 0  # silence is a sound
    with pytest.raises(ValueError, match="has 3 channels, from which 2 cannot be made"):
        read_sound(encoded_sound(channels=3), channels=2)


def test_channels_are_mixed_by_their_mean_and_doubled():
    left, right = tone(hz=300, seed=1), tone(hz=700, seed=2)
    pair = np.concatenate([left, right], 1)
    out = io.BytesIO()
    soundfile.write(out, pair, 8000, format="WAV", subtype="FLOAT")
    assert torch.allclose(read_sound(out.getvalue(), channels=1)[0], torch.from_numpy(pair).mean(1))
    assert torch.equal(read_sound(out.getvalue(), channels=2), torch.from_numpy(pair).T)
    double = read_sound(encoded_sound(), channels=2)
    assert torch.equal(double[0], double[1]) and double.shape == (2, 4000)


def test_what_is_written_is_read_again_and_what_is_clipped_is_counted(tmp_path):
    wave = torch.from_numpy(tone(0.1, 16000, seed=3)).T * 4
    count = save_sound(wave, tmp_path / "deep" / "x.wav", 16000)
    assert count == int((wave.abs() > 1).sum()) > 0
    again = read_sound(tmp_path / "deep" / "x.wav")
    assert (again - wave.clamp(-1, 1)).abs().max() < 2 / 32768 and soundfile.info(str(tmp_path / "deep" / "x.wav")).subtype == "PCM_16"
    with pytest.raises(ValueError, match="finite numbers"):
        save_sound(torch.full((1, 4), torch.nan), tmp_path / "y.wav", 16000)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.wav"]


def test_normalizing_leaves_silence_and_never_clips(tmp_path):
    wave = torch.from_numpy(tone(0.2, seed=5)).T
    for scale in (0.001, 0.1, 1.0, 5.0):
        peak, rms = normalized(wave * scale, "peak"), normalized(wave * scale, "rms")
        if scale > 0.01:
            assert abs(float(peak.abs().max()) - 0.95) < 1e-5
            assert abs(float(rms.square().mean().sqrt()) - 0.1) < 1e-5 or abs(float(rms.abs().max()) - 0.95) < 1e-5
        assert peak.abs().max() <= 0.9501 and rms.abs().max() <= 0.9501
    assert normalized(torch.zeros(1, 10), "rms").abs().max() == 0
    assert normalized(wave * 1e-6, "peak").abs().max() <= 1.01e-4 * float(wave.abs().max())  # 40 dB and no more
    assert sing(tmp_path / "a.flac").is_file()
    with pytest.raises(ValueError, match="data.normalize='loud'"):
        normalized(wave, "loud")
