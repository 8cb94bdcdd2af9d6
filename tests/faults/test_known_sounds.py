"""A known sound is read and encoded as far as the model can keep it, whatever the file's length."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F

from gentok.interfaces import Tokenizer
from gentok.prompt import known_tokens, read_known
from gentok.types import Condition, Frames, Tokens, TokenSpec

RATE, HOP, POSITIONS = 8000, 80, 50
ROOT = Path(__file__).parents[2]


class Levels(Tokenizer):
    """A frame of 80 samples is its mean magnitude in 16 steps. Remembers how much it was given."""

    def __init__(self):
        super().__init__()
        self.spec = TokenSpec((16,), Frames(RATE / HOP, POSITIONS), modality="audio", media_shape=(1,), sample_rate=RATE)
        self.seen = []

    def encode(self, media, lengths=None, rng=None):
        self.seen.append(media.shape[2])
        frames = F.pad(media.abs().mean(1), (0, -media.shape[2] % HOP)).unflatten(1, (-1, HOP)).mean(2)
        return Tokens((frames * 32).long().clamp(0, 15)[:, None], self.spec, torch.tensor([frames.shape[1]]))


def sound(path, seconds, rate=RATE, channels=1):
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, np.repeat((0.4 * np.sin(time * 5) * np.sin(time * 2000))[:, None], channels, 1), rate)
    return str(path)


@pytest.mark.parametrize("rate, channels", [(RATE, 1), (44100, 2)])
@pytest.mark.parametrize("keep, frames", [("0.3", 30), ("0.5s", 50)])
def test_a_long_file_gives_the_codes_of_its_beginning(tmp_path, rate, channels, keep, frames):
    tokenizer = Levels()
    codes = []
    for seconds in (1.2, 2.0, 60.0):
        known = read_known(sound(tmp_path / "x.wav", seconds, rate, channels), tokenizer)
        codes.append(known_tokens(tokenizer, Condition(), known, keep, None).codes)
    assert max(tokenizer.seen) == int((POSITIONS * HOP / RATE + 1) * RATE)
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[1], codes[2])
    assert bool((codes[2][0, 0, :frames] >= 0).all()) and codes[2].shape[2] == POSITIONS


def test_a_long_tensor_is_not_encoded_whole_either(tmp_path):
    tokenizer = Levels()
    known = torch.rand(1, 600 * RATE) * 0.5
    short, long = (known_tokens(tokenizer, Condition(), known[:, : n * RATE], 0.25, None).codes for n in (1, 600))
    assert torch.equal(short, long) and max(tokenizer.seen) <= 1.5 * RATE


@pytest.mark.parametrize(
    "seconds, keep, line",
    [
        (0.2, "0.3", "keep=0.3: `known` is 0.20 s long"),
        (60.0, None, "keep=None: that is 1[45]. frames of 0.01 s, 1 to 50 are possible"),
        (60.0, "0.6", "keep=0.6: that is 60 frames of 0.01 s, 1 to 50 are possible"),
        (60.0, "70", "keep=70: that is 7000 frames"),
    ],
)
def test_what_cannot_be_kept_is_one_line(tmp_path, seconds, keep, line):
    tokenizer = Levels()
    known = read_known(sound(tmp_path / "x.wav", seconds), tokenizer)
    with pytest.raises(ValueError, match=line) as error:
        known_tokens(tokenizer, Condition(), known, keep, None)
    assert "\n" not in str(error.value)


PEAK = """
import re, sys
from gentok.cli import main
main(["sample", *sys.argv[1:]])
print("peak", int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process, without that of its parent, is in /proc")
def test_a_known_sound_of_ten_minutes_takes_no_more_memory_than_one_of_ten_seconds(tmp_path):
    peaks = []
    for seconds in (10, 600):
        known = sound(tmp_path / f"{seconds}.wav", seconds, 44100, 2)
        words = [f"known={known}", "keep=0.3", "duration=0.5", "n=1", f"out={tmp_path / 'out'}", "sampler=autoregressive"]
        command = [sys.executable, "-c", PEAK, "ckpt=spoken_digits_ar_delay", "sampler.forced=true", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        peaks.append(int(done.stdout.split("peak ")[1]))
    assert peaks[1] < peaks[0] + 300, peaks
