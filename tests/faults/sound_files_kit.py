"""Small sounds on disk, and the bytes of files as writers leave them that could not seek back."""

import io

import numpy as np
import soundfile


def wave(seconds=0.5, rate=8000, seed=0, channels=1):
    """float32 [T, channels]: a sweep and noise, with pauses."""
    time = np.arange(round(seconds * rate)) / rate
    sweep = 0.3 * np.sin(2 * np.pi * (200 + 40 * time) * time)[:, None]
    noise = 0.1 * np.random.default_rng(seed).standard_normal((len(time), channels))
    return ((sweep + noise) * (np.sin(2 * time) > -0.3)[:, None]).astype(np.float32)


def encoded(kind="WAV", subtype=None, seconds=0.5, rate=8000, channels=1, **how):
    """The bytes of `wave` in a format of libsndfile."""
    out = io.BytesIO()
    soundfile.write(out, wave(seconds, rate, channels=channels), rate, format=kind, subtype=subtype, **how)
    return out.getvalue()


def save_tones(folder, count=10, suffix=".wav", rate=8000):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        soundfile.write(folder / f"{i:03d}{suffix}", wave(0.2 + 0.01 * i, rate, i), rate)
    return folder


def put(data, place, value, width=4, order="little"):
    return data[:place] + value.to_bytes(width, order) + data[place + width :]


def streamed_wav(size, riff=None, subtype=None, **form):
    """A WAV file whose header states `size` bytes of samples."""
    data = encoded("WAV", subtype, **form)
    return put(put(data, data.index(b"data") + 4, size), 4, min(size + 36, 2**32 - 1) if riff is None else riff)


def streamed_rf64(size, **form):
    data = encoded("RF64", **form)
    place = data.index(b"ds64") + 8
    return data[:place] + size.to_bytes(8, "little") * 3 + data[place + 24 :]


def streamed_flac(total=0, **form):
    """A FLAC file whose header states `total` samples."""
    data = encoded("FLAC", **form)
    place = data.index(b"fLaC") + 8 + 13
    return data[:place] + bytes([data[place] & 0xF0 | total >> 32]) + (total & 0xFFFFFFFF).to_bytes(4, "big") + data[place + 5 :]


def mp3(xing=True, rate=16000, seconds=3.0, channels=1, **how):
    """An MP3 file, with the frame that states its length where its writer has put one there, or without."""
    data = encoded("MP3", None, seconds, rate, channels, **how)
    if xing or not states_length(data):
        return data
    newest = data[1] & 8
    rates = (44100, 48000, 32000)[data[2] >> 2 & 3] >> (0 if newest else 1 if data[1] & 16 else 2)
    kbit = ((0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320) if newest else
            (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160))[data[2] >> 4]  # fmt: skip
    length = (144000 if newest else 72000) * kbit // rates + (data[2] >> 1 & 1)
    return data[length:]


def states_length(data):
    return b"Xing" in data[:200] or b"Info" in data[:200]


def decoded_whole(data):
    """float32 [C, T]: what libsndfile gives when it reads on and on."""
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        file._info.seekable = 0
        blocks = []
        while len(block := file.read(4096, dtype="float32", always_2d=True)):
            blocks.append(block)
    return np.concatenate(blocks).T
