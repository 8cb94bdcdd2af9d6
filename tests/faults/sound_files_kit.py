"""Small sounds on disk."""

import numpy as np
import soundfile


def wave(seconds=0.5, rate=8000, seed=0, channels=1):
    """float32 [T, channels]: a sweep and noise."""
    time = np.arange(round(seconds * rate)) / rate
    sweep = 0.3 * np.sin(2 * np.pi * (200 + 40 * time) * time)[:, None]
    return (sweep + 0.1 * np.random.default_rng(seed).standard_normal((len(time), channels))).astype(np.float32)


def save_tones(folder, count=10, suffix=".wav", rate=8000):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        soundfile.write(folder / f"{i:03d}{suffix}", wave(0.2 + 0.01 * i, rate, i), rate)
    return folder
