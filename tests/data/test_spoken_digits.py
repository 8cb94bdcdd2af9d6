"""Spoken digits: what is said, what is kept, and that no kill leaves half of it. All but the last test ask a voice of tones, not hibari."""

import json
import os
import sys
import tarfile
import types

import numpy as np
import pytest
import torch

from gentok.data.spoken_digits import RATE, WORDS, SpokenDigits

SMALL = {"items": 12, "held_out": 6, "crop": None}


class Voice:
    """A tone per word, with silence around the whole; every utterance is noted in a file that all processes share."""

    def __init__(self, notes, dies_after=None):
        self.notes, self.dies_after = notes, dies_after

    def __call__(self, text, speed=1.0, seed=None):
        assert text.endswith("."), "a bare word is misheard"
        text = text[:-1]
        with open(self.notes, "a+") as file:
            file.write(f"{os.getpid()} {text}\n")
            file.seek(0)
            count = len(file.readlines())
        if self.dies_after is not None and count > self.dies_after:
            os._exit(9)
        count = round(0.1 * RATE / speed)
        tones = [0.3 * np.sin(2 * np.pi * (200 + 50 * WORDS.index(word)) * np.arange(count) / RATE) for word in text.split()]
        hiss = np.random.default_rng(seed).standard_normal(count) * 0.001
        return np.concatenate([np.zeros(RATE // 5), *[tone + hiss for tone in tones], np.zeros(RATE // 5)]).astype(np.float32)


@pytest.fixture
def voice(tmp_path, monkeypatch):
    made = Voice(tmp_path / "notes")
    monkeypatch.setitem(sys.modules, "hibari", types.SimpleNamespace(Hibari=lambda: made))
    return made


def said(voice):
    return voice.notes.read_text().splitlines()


def test_single_digits_come_in_turn_with_their_class_and_are_spoken_once(tmp_path, voice):
    data = SpokenDigits(**SMALL, cache=tmp_path)
    assert [line.split()[1] for line in said(voice)] == [WORDS[i % 10] for i in (*range(12), *range(6))]
    assert data.train.labels.tolist() == [i % 10 for i in range(12)] and data.held_out.labels.tolist() == list(range(6))
    assert [name for name, _ in data.condition_spec.parts] == ["class"] and data.band_limit is None
    assert all(int(data.condition_spec.parse(word, 1).parts["class"].ids) == 7 for word in ("seven", 7, "7"))
    again = SpokenDigits(**SMALL, cache=tmp_path, sample_rate=8000)  # another rate of the same utterances
    assert len(said(voice)) == 18 and again.train.lengths.max() < data.train.lengths.max()
    SpokenDigits(**SMALL, cache=tmp_path, seed=1)
    assert len(said(voice)) == 36


def test_nothing_but_the_cache_is_needed_once_it_is_there(tmp_path, voice, monkeypatch):
    first = SpokenDigits(**SMALL, cache=tmp_path).train.__getitems__(range(12))
    monkeypatch.setitem(sys.modules, "hibari", None)
    assert torch.equal(SpokenDigits(**SMALL, cache=tmp_path).train.__getitems__(range(12)).media, first.media)
    with pytest.raises(ImportError, match="spoken by the package hibari-tts .*; run: pip install hibari-tts") as error:
        SpokenDigits(**SMALL, cache=tmp_path, seed=2)
    assert "\n" not in str(error.value)


def test_strings_have_their_words_as_text_and_no_class(tmp_path, voice):
    data = SpokenDigits(digits=[2, 4], **SMALL, cache=tmp_path)
    lines = [line.split(" ", 1)[1] for line in said(voice)]
    assert {len(line.split()) for line in lines} == {2, 3, 4}
    ((name, spec),) = data.condition_spec.parts
    assert name == "text" and spec.max_length <= 23
    for part, expected in ((data.train, lines[:12]), (data.held_out, lines[12:])):
        ids = part.__getitems__(range(len(part))).condition.parts["text"].ids
        assert ["".join(spec.alphabet[c] for c in row.tolist() if c >= 0) for row in ids] == expected
        for length, line in zip(part.lengths.tolist(), expected):  # the silence around is gone, what was said is there
            assert 0.1 * len(line.split()) / 1.25 / 1.15 < length / 16000 - 0.05 < 0.1 * len(line.split()) * 1.25 * 1.15 + 0.02


def test_single_digits_may_have_text_too(tmp_path, voice):
    data = SpokenDigits(**SMALL, captions="ids", cache=tmp_path)
    assert [name for name, _ in data.condition_spec.parts] == ["class", "text"]


def test_utterances_differ_in_speed_and_pitch_and_splits_share_none(tmp_path, voice):
    data = SpokenDigits(**SMALL, speed=1.25, pitch=1.15, cache=tmp_path)
    found = {}
    for split in ("train", "held_out"):
        with tarfile.open(next((tmp_path / "spoken_digits").glob(f"{split}-*.tar"))) as archive:
            found[split] = [json.load(archive.extractfile(m)) for m in archive.getmembers() if m.name.endswith(".json")]
    every = found["train"] + found["held_out"]
    assert len({item["seed"] for item in every}) == len({item["speed"] for item in every}) == 18
    assert len({item["pitch"] for item in every}) > 8
    assert all(0.8 <= item["speed"] <= 1.25 and 0.86 <= item["pitch"] <= 1.15 for item in every)
    plain = SpokenDigits(**SMALL, speed=1.0, pitch=1.0, cache=tmp_path)
    assert plain.train.lengths[0] == plain.train.lengths[10] and data.train.lengths[0] != data.train.lengths[10]


def test_a_kill_leaves_nothing_that_is_taken_for_the_set(tmp_path, voice):
    child = os.fork()
    if not child:
        voice.dies_after = 7
        try:
            SpokenDigits(**SMALL, cache=tmp_path)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    folder = tmp_path / "spoken_digits"
    assert not list(folder.glob("*.tar")) and len(list(folder.glob(".train-*.part"))) == 1
    data = SpokenDigits(**SMALL, cache=tmp_path)
    assert len(data.train) == 12 and not data.train.broken and not list(folder.glob(".*.part"))


def test_of_several_processes_one_speaks_and_the_others_wait(tmp_path, voice):
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            try:
                status = int(len(SpokenDigits(**SMALL, cache=tmp_path).train) != 12)
            except BaseException:
                status = 2
            os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert len(said(voice)) == 18


@pytest.mark.parametrize(
    "options, line",
    [
        ({"digits": 0}, "data.digits=0: a number of digits"),
        ({"digits": [3, 2]}, r"data.digits=\[3, 2\]"),
        ({"held_out": 0}, "held_out=0"),
        ({"speed": 0.5}, "speed=0.5"),
    ],
)
def test_settings_that_say_nothing_are_one_line(tmp_path, options, line):
    with pytest.raises(ValueError, match=line) as error:
        SpokenDigits(**{**SMALL, **options}, cache=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_hibari_says_the_same_twice_and_held_out_digits_are_no_copies(tmp_path):
    """What the voice's own seed changes is 35 dB below: with it alone, the nearest training item would be the item."""
    pytest.importorskip("hibari", reason="hibari-tts is not installed")
    options = {"items": 20, "held_out": 10, "crop": None}
    one, two = (SpokenDigits(**options, cache=tmp_path / name) for name in "ab")
    assert torch.equal(one.train.__getitems__(range(20)).media, two.train.__getitems__(range(20)).media)

    def nearest_db(data):
        """Of each held-out item, the SNR in dB of the best training item of its digit; the median."""
        best = []
        for i in range(10):
            held = data.held_out[i].media[0, 0]
            ratios = []
            for j in (i, i + 10):
                seen = data.train[j].media[0, 0]
                n = max(len(held), len(seen))
                difference = torch.nn.functional.pad(held, (0, n - len(held))) - torch.nn.functional.pad(seen, (0, n - len(seen)))
                ratios.append(float(10 * (held.square().sum() / difference.square().sum().clamp(min=1e-9)).log10()))
            best.append(max(ratios))
        return float(torch.tensor(best).median())

    assert nearest_db(one) < 5
    assert nearest_db(SpokenDigits(**options, speed=1.0, pitch=1.0, cache=tmp_path / "c")) > 20  # a mutant
