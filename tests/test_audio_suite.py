"""What the suite of audio tokenizers takes for spoken digits."""

from types import SimpleNamespace

import pytest
import torch

from gentok.evaluation.speech_recognition import heard, said, words_of
from gentok.metrics.spoken_digits import DIGITS
from gentok.types import Batch, Class, ClassSpec, Condition, ConditionSpec

DIGIT_NAMES = {"numerals": tuple("0123456789"), "words": DIGITS, "both, in another order": ("9", "zero")}


def data_of(**parts):
    return SimpleNamespace(condition_spec=ConditionSpec(tuple(parts.items())), sample_rate=8000)


def batch_of(**parts):
    return Batch(torch.zeros(2, 1, 80), torch.arange(2), Condition(parts), torch.tensor([80, 80]))


@pytest.mark.parametrize("names", DIGIT_NAMES.values(), ids=DIGIT_NAMES)
def test_classes_of_digits_say_what_is_said(names):
    batch = batch_of(**{"class": Class(torch.tensor([1, 0]))})
    found = words_of(batch.condition, data_of(**{"class": ClassSpec(tuple(names))}).condition_spec)
    wanted = {"0": "zero", "1": "one", "9": "nine"}
    assert found == [[wanted.get(names[1], names[1])], [wanted.get(names[0], names[0])]]


def test_texts_say_it_and_other_words_are_no_digits():
    from gentok.types import IdsSpec

    for text, wanted in (("seven one", ["seven", "one"]), ("hello one", None)):
        spec = IdsSpec(tuple(sorted(set(text))), len(text))
        found = words_of(batch_of(text=spec.parse([text, text], "text")).condition, data_of(text=spec).condition_spec)
        assert found == (None if wanted is None else [wanted, wanted])
    animals = ConditionSpec((("class", ClassSpec(("cat", "dog"))),))
    assert words_of(Condition({"class": Class(torch.tensor([0, 1]))}), animals) is None
    assert words_of(Condition({}), ConditionSpec()) is None


def test_what_cannot_be_heard_is_said(monkeypatch):
    from gentok.evaluation import speech_recognition as hearing

    def missing(*_):
        raise ImportError("recognising digits needs the package pocketsphinx")

    monkeypatch.setattr(hearing, "recognise", missing)
    batch, data, left_out = batch_of(**{"class": Class(torch.tensor([0, 1]))}), data_of(**{"class": ClassSpec(DIGITS)}), []
    assert said([batch], data, left_out) is None and "pocketsphinx" in left_out[0]
    monkeypatch.setattr(hearing, "recognise", lambda *_: [[]])
    assert said([batch], data, left_out) == [[["zero"], ["one"]]]


def test_single_digits_are_chosen_among_ten_and_strings_may_have_any_number(monkeypatch):
    from gentok.evaluation import speech_recognition as hearing

    asked = []

    def recogniser(media, rate, lengths, grammar):
        asked.append(grammar)
        return [["one"], ["two", "two"]][: len(media)] if grammar == "digits" else [["one"], ["two"]]

    monkeypatch.setattr(hearing, "recognise", recogniser)
    sounds, ends = [torch.zeros(2, 1, 80)], [torch.tensor([80, 80])]
    assert heard([[["one"], ["nine"]]], sounds, ends, 8000) == ({"digit_accuracy": 0.5}, [[["one"], ["two"]]])
    assert heard([[["one"], ["two", "nine"]]], sounds, ends, 8000)[0] == {"word_error_rate": 1 / 3}
    assert asked == ["digit", "digits"]
