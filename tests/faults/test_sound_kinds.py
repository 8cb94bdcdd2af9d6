"""Sounds as writers leave them: without a length, with a wrong one, in formats that cannot seek, on other scales."""

import io
import logging
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch
from sound_files_kit import decoded_whole, encoded, mp3, put, states_length, streamed_flac, streamed_rf64, streamed_wav, wave

from gentok.cli import main
from gentok.data.sound_files import SOUND_SUFFIXES, read_sound, sound_size
from gentok.data.sound_folder import SoundFolder

FORMATS = [
    (kind, subtype)
    for kind in soundfile.available_formats()
    for subtype in soundfile.available_subtypes(kind)
    if kind not in ("RAW", "SD2", "MAT4", "MAT5")  # without a header, or no formats of sound
]
STATES_NO_END = ("AVR", "IRCAM", "MPC2K", "PAF", "PVF", "SDS", "VOC", "XI")
"""Formats of which libsndfile does not say how much there should be."""


def parts_equal_the_whole(data, places=(1, 0.1, 0.37, 0.5, 0.8, -1, -300), length=700, tolerance=2e-7):
    samples, whole = sound_size(data)[0], read_sound(data)
    assert whole.shape[1] == samples
    for place in places:
        start = int(place * samples) if isinstance(place, float) else place % samples
        part = read_sound(data, start=start, samples=length)
        expected = whole[:, start : start + length]
        assert part.shape == expected.shape and float((part - expected).abs().max()) <= tolerance, (start, samples)
    assert read_sound(data, start=samples + 50, samples=10).shape[1] == 0
    return whole


@pytest.mark.parametrize("kind, subtype", FORMATS)
def test_parts_equal_the_whole_in_every_format_and_what_is_cut_short_is_refused(kind, subtype):
    try:
        data = encoded(kind, subtype, seconds=1.5, rate=16000)
    except soundfile.LibsndfileError:
        try:
            data = encoded(kind, subtype, seconds=3.0, rate=8000)
        except soundfile.LibsndfileError:
            pytest.skip("libsndfile does not write it")
    whole = parts_equal_the_whole(data)
    assert abs(whole.shape[1] - 24000) < 700  # of whole blocks
    if kind not in STATES_NO_END:
        for share in (0.9, 0.5):
            with pytest.raises(ValueError, match="cannot be read as a sound") as error:
                sound_size(data[: int(len(data) * share)])
                read_sound(data[: int(len(data) * share)])
            assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------- lengths that are no lengths


@pytest.mark.parametrize("seconds", [0.5, 3.0])
def test_a_flac_without_a_total_is_counted(seconds, tmp_path):
    data = streamed_flac(0, seconds=seconds)
    assert sound_size(data) == (8000 * seconds, 8000, 1)
    assert torch.equal(parts_equal_the_whole(data), read_sound(encoded("FLAC", seconds=seconds)))
    with pytest.raises(ValueError, match="cannot be read as a sound: "):
        sound_size(data[: len(data) // 2])


@pytest.mark.parametrize("total", [2**36 - 1, 10**9, 8001])
def test_a_flac_that_states_more_than_there_is_takes_no_memory_and_is_refused(total):
    with pytest.raises(ValueError, match=r"it is cut short: 4,000 of [\d,]+ samples are there|lost sync|psf_fseek"):
        sound_size(streamed_flac(total))
        read_sound(streamed_flac(total))


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "GSM610", "MS_ADPCM"])
@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x7FFFEFFC, 0x7FFFFFFF, 0x80000000, 0xFFFF0000, 0xFFFFFFFF])
def test_a_wav_that_came_through_a_pipe_is_whole(size, subtype):
    expected = read_sound(encoded("WAV", subtype))
    for riff in (None, 0, 0xFFFFFFFF):
        assert torch.equal(read_sound(streamed_wav(size, riff, subtype)), expected)
    assert sound_size(streamed_wav(size, None, subtype))[0] == expected.shape[1]


@pytest.mark.parametrize("size", [0, 2**64 - 1])
def test_an_rf64_that_came_through_a_pipe_is_whole(size):
    assert torch.equal(parts_equal_the_whole(streamed_rf64(size)), read_sound(encoded("RF64")))


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF])
def test_other_formats_that_came_through_a_pipe_are_whole(size):
    for kind, place in (("AU", 8), ("AIFF", None)):
        data = encoded(kind)
        place = data.index(b"SSND") + 4 if place is None else place
        assert torch.equal(read_sound(put(data, place, size, order="big")), read_sound(data))
    data = encoded("CAF")
    for wide in (0, 4, 2**64 - 1):
        assert torch.equal(read_sound(put(data, data.index(b"data") + 4, wide, 8, "big")), read_sound(data))


@pytest.mark.parametrize("size", [8001, 10**6, 10**9, 3 * 10**9])
def test_a_wav_that_is_cut_short_stays_refused(size):
    with pytest.raises(ValueError, match=f"it is cut short: 8,000 of {size:,} bytes of samples are there"):
        sound_size(streamed_wav(size))
    with pytest.raises(ValueError, match="it is cut short"):
        read_sound(encoded("WAV")[:-100])
    empty = encoded("WAV", seconds=0.0)
    for data in (empty, empty + b"LIST" + (4).to_bytes(4, "little") + b"INFO"):
        with pytest.raises(ValueError, match="it has no samples"):
            sound_size(data)


def test_a_folder_of_streamed_sounds_is_used(tmp_path):
    for i, data in enumerate([streamed_wav(0x7FFFF000), streamed_wav(0), streamed_wav(0x80000000), streamed_rf64(0), streamed_flac()] * 2):
        (tmp_path / f"{i}.{'flac' if i % 5 == 4 else 'wav'}").write_bytes(data)
    (tmp_path / "cut.wav").write_bytes(encoded()[:3000])
    data = SoundFolder(tmp_path, held_out=0.2, sample_rate=8000, crop=0.1, max_broken=0.1)
    assert len(data.train) + len(data.held_out) == 10 and data.longest_item == 4000
    assert data.train.skipped["reasons"] == {str(tmp_path / "cut.wav"): "it is cut short: 2,956 of 8,000 bytes of samples are there"}
    assert data.train.__getitems__(range(len(data.train))).media.abs().amax((1, 2)).min() > 0.05


# ----------------------------------------------------------------------------------------------------------------------- MP3


MP3 = [
    {"rate": rate, "bitrate_mode": mode, "compression_level": level, "channels": channels}
    for rate, mode, level, channels in (
        (16000, "CONSTANT", 0.9, 1),
        (44100, "CONSTANT", 0.99, 1),
        (44100, "VARIABLE", 0.9, 2),
        (8000, "VARIABLE", 0.5, 1),
        (48000, "VARIABLE", 0.1, 1),
        (24000, "CONSTANT", 0.99, 2),
    )
]
NAMES = ["-".join(map(str, form.values())) for form in MP3]


@pytest.mark.parametrize("form", MP3, ids=NAMES)
@pytest.mark.parametrize("xing", [True, False])
def test_parts_of_an_mp3_equal_the_whole(form, xing):
    """Whatever the bit rate; the place in the decoder's buffer decides over the last bit of a float."""
    data = mp3(xing, seconds=6.0, **form)
    whole = parts_equal_the_whole(data, places=[float(p) for p in np.random.default_rng(0).uniform(0, 0.99, 12)])
    assert states_length(data) == (whole.shape[1] == 6 * form["rate"]) and whole.shape[1] >= 6 * form["rate"]


@pytest.mark.parametrize("form", MP3, ids=NAMES)
@pytest.mark.parametrize("tags", [b"", b"ID3\4\0\0\0\0\2\1" + bytes(257)])
def test_an_mp3_without_its_length_is_all_that_its_frames_decode_to(form, tags):
    """libsndfile stops where the first frame's bit rate lets it expect the end, so it may give less."""
    bare = mp3(False, **form)
    whole, expected = read_sound(tags + bare), torch.from_numpy(decoded_whole(bare))
    assert whole.shape[1] % (1152 if form["rate"] > 24000 else 576) == 0 and whole.shape[1] >= expected.shape[1]
    assert (whole[:, : expected.shape[1]] - expected).abs().max() <= 2e-7
    assert sound_size(tags + bare)[0] == whole.shape[1]


def test_an_mp3_whose_first_frames_are_large_keeps_its_end():
    loud, quiet = (mp3(False, 44100, 3.0, bitrate_mode="CONSTANT", compression_level=level) for level in (0.0, 0.99))
    lengths = [read_sound(part).shape[1] for part in (loud, quiet)]
    assert (
        read_sound(loud + quiet).shape[1]
        == sum(lengths)
        == read_sound(quiet + loud).shape[1]
        > soundfile.info(io.BytesIO(loud + quiet)).frames
    )


def test_reading_mp3_writes_nothing_to_the_screen(capfd):
    data = mp3(seconds=4.0, rate=16000, bitrate_mode="VARIABLE", compression_level=0.9)
    for start in range(100, 60000, 4000):
        read_sound(data, start=start, samples=500)
    with pytest.raises(ValueError):
        read_sound(data[: len(data) // 2])
    assert capfd.readouterr() == ("", "")


def test_threads_that_read_mp3_leave_the_screen_as_it_was(capfd):
    data = mp3(seconds=2.0, rate=16000, bitrate_mode="VARIABLE", compression_level=0.9)
    with ThreadPoolExecutor(4) as threads:
        parts = list(threads.map(lambda start: read_sound(data, start=start, samples=500), range(100, 28000, 500)))
    os.write(2, b"still there")
    assert len(parts) == 56 and capfd.readouterr().err == "still there"


@pytest.mark.parametrize("rate, level", [(8000, 0.9), (44100, 0.9), (8000, 0.0)])
def test_the_last_page_of_a_long_vorbis_file_is_what_it_is_in_the_whole(rate, level):
    """libsndfile by itself gives other samples there."""
    time = np.arange(30 * rate) / rate
    out = io.BytesIO()
    quiet = 0.3 * np.sin(2 * np.pi * 440 * time) * (np.sin(time) > 0)
    soundfile.write(out, quiet.astype(np.float32), rate, format="OGG", subtype="VORBIS", compression_level=level)
    parts_equal_the_whole(out.getvalue(), places=[*np.linspace(0.55, 0.995, 12).tolist()], tolerance=0.0)


# ------------------------------------------------------------------------------------------------- suffixes and scales


def test_what_libsndfile_reads_is_used_whatever_its_suffix(tmp_path):
    kinds = {".opus": ("OGG", "OPUS"), ".oga": ("OGG", "VORBIS"), ".aiff": ("AIFF", None), ".aif": ("AIFF", None), ".au": ("AU", None)}
    kinds |= {".w64": ("W64", None), ".caf": ("CAF", None), ".rf64": ("RF64", None), ".sph": ("NIST", None), ".WAV": ("WAV", "GSM610")}
    for i, (suffix, (kind, subtype)) in enumerate(kinds.items()):
        (tmp_path / f"{i}{suffix}").write_bytes(encoded(kind, subtype, seconds=0.3 + 0.01 * i))
    (tmp_path / "x.m4a").write_bytes(b"x"), (tmp_path / "x.txt").write_text("x")
    data = SoundFolder(tmp_path, held_out=0.2, sample_rate=8000, crop=None)
    assert len(data.train) + len(data.held_out) == len(kinds)
    assert set(data.train.skipped["left_out"]["reasons"].values()) == {"ending in .m4a", "ending in .txt"}
    for part in (data.train, data.held_out):
        assert part.__getitems__(range(len(part))).media.abs().amax((1, 2)).min() > 0.05 and part.skipped["count"] == 0
    assert {".wav", ".flac", ".ogg", ".mp3"} <= set(SOUND_SUFFIXES) and not {".raw", ".mat", ".txt"} & set(SOUND_SUFFIXES)


@pytest.mark.parametrize("scale", [2.5, 128.0, 32767.0, 2.0**31])
def test_a_float_sound_on_another_scale_is_said_once_with_its_peak(scale, tmp_path, caplog):
    for i in range(8):
        soundfile.write(tmp_path / f"{i}.wav", wave(0.3, seed=i) / np.abs(wave(0.3, seed=i)).max() * scale, 8000, subtype="FLOAT")
    data = SoundFolder(tmp_path, held_out=0.2, sample_rate=8000, crop=None)
    for _ in range(2):
        batch = data.train.__getitems__(range(len(data.train)))
        data.held_out.__getitems__(range(len(data.held_out)))
    said = [record.message for record in caplog.records if "full scale" in record.message]
    assert len(said) == 1 and f"reaches {scale:.4g} times full scale" in said[0] and "data.normalize=peak" in said[0]
    assert batch.media.abs().max() == 1
    caplog.clear()
    quiet = SoundFolder(tmp_path, held_out=0.2, sample_rate=8000, crop=None, normalize="peak")
    assert abs(float(quiet.train.__getitems__([0]).media.abs().max()) - 0.95) < 1e-5 and "full scale" not in caplog.text


def test_the_codec_command_clips_as_training_does(tmp_path, caplog, monkeypatch):
    loud = wave(1.0, 16000) * 30
    monkeypatch.setattr("sys.argv", ["gentok"])
    for name, samples in (("loud", loud), ("clipped", loud.clip(-1, 1))):
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000, subtype="FLOAT")
        words = [str(tmp_path / f"{name}.wav"), str(tmp_path / f"{name}.gtk"), "ckpt=spoken_digits_codec", "progress=false", "chunk=0.3"]
        main(["codec", "compress", *words])
    assert (tmp_path / "loud.gtk").read_bytes() == (tmp_path / "clipped.gtk").read_bytes()
    assert caplog.text.count("times full scale") == 1


@pytest.mark.parametrize("kind", ["OGG", "MP3"])
def test_what_a_decoder_overshoots_is_no_other_scale(kind, tmp_path, caplog):
    loud = 0.99 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.{kind.lower()}", loud, 16000, format=kind)
    with caplog.at_level(logging.WARNING):
        data = SoundFolder(tmp_path, held_out=0.3, sample_rate=16000)
        data.train.__getitems__(range(len(data.train)))
    assert "times full scale" not in caplog.text
