"""What the suite of audio tokenizers takes for spoken digits."""

from types import SimpleNamespace

import pytest
import torch

from gentok.metrics.spoken_digits import DIGITS
from gentok.protocols.audio_suite import _said, _texts
from gentok.tokens import Batch, Class, ClassSpec, Condition, ConditionSpec

DIGIT_NAMES = {"numerals": tuple("0123456789"), "words": DIGITS, "both, in another order": ("9", "zero")}


def data_of(**parts):
    return SimpleNamespace(condition_spec=ConditionSpec(tuple(parts.items())), sample_rate=8000)


def batch_of(**parts):
    return Batch(torch.zeros(2, 1, 80), torch.arange(2), Condition(parts), torch.tensor([80, 80]))


@pytest.mark.parametrize("names", DIGIT_NAMES.values(), ids=DIGIT_NAMES)
def test_classes_of_digits_say_what_is_said(names):
    batch = batch_of(**{"class": Class(torch.tensor([1, 0]))})
    said = _texts(batch, data_of(**{"class": ClassSpec(tuple(names))}))
    wanted = {"0": "zero", "1": "one", "9": "nine"}
    assert said == [[wanted.get(names[1], names[1])], [wanted.get(names[0], names[0])]]


def test_texts_say_it_and_other_words_are_no_digits():
    from gentok.tokens import IdsSpec

    for text, wanted in (("seven one", ["seven", "one"]), ("hello one", None)):
        spec = IdsSpec(tuple(sorted(set(text))), len(text))
        found = _texts(batch_of(text=spec.parse([text, text], "text")), data_of(text=spec))
        assert found == (None if wanted is None else [wanted, wanted])
    assert _texts(batch_of(**{"class": Class(torch.tensor([0, 1]))}), data_of(**{"class": ClassSpec(("cat", "dog"))})) is None
    assert _texts(batch_of(), data_of()) is None


def test_what_cannot_be_heard_is_said(monkeypatch):
    from gentok.protocols import audio_suite

    def missing(*_):
        raise ImportError("recognising digits needs the package pocketsphinx")

    monkeypatch.setattr(audio_suite, "recognise", missing)
    batch, data, left_out = batch_of(**{"class": Class(torch.tensor([0, 1]))}), data_of(**{"class": ClassSpec(DIGITS)}), []
    assert _said([batch], data, left_out) is None and "pocketsphinx" in left_out[0]
    monkeypatch.setattr(audio_suite, "recognise", lambda *_: [[]])
    assert _said([batch], data, left_out) == [[["zero"], ["one"]]]
