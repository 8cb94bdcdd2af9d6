"""The suite of audio tokenizers: what it takes for spoken digits, and the stability of codes."""

from types import SimpleNamespace

import pytest
import torch

from gentok.metrics import spoken_digits
from gentok.metrics.reconstruction import CodeStatistics
from gentok.metrics.spoken_digits import DIGITS, recognition, transcribed, transcripts_of
from gentok.types import Batch, Class, ClassSpec, Condition, ConditionSpec, Frames, Tokens, TokenSpec

DIGIT_NAMES = {"numerals": tuple("0123456789"), "words": DIGITS, "both, in another order": ("9", "zero")}


def data_of(**parts):
    return SimpleNamespace(condition_spec=ConditionSpec(tuple(parts.items())), sample_rate=8000)


def batch_of(**parts):
    return Batch(torch.zeros(2, 1, 80), torch.arange(2), Condition(parts), torch.tensor([80, 80]))


@pytest.mark.parametrize("names", DIGIT_NAMES.values(), ids=DIGIT_NAMES)
def test_classes_of_digits_are_transcripts(names):
    batch = batch_of(**{"class": Class(torch.tensor([1, 0]))})
    found = transcripts_of(batch.condition, data_of(**{"class": ClassSpec(tuple(names))}).condition_spec)
    wanted = {"0": "zero", "1": "one", "9": "nine"}
    assert found == [[wanted.get(names[1], names[1])], [wanted.get(names[0], names[0])]]


def test_texts_are_transcripts_and_other_words_are_no_digits():
    from gentok.types import IdsSpec

    for text, wanted in (("seven one", ["seven", "one"]), ("hello one", None)):
        spec = IdsSpec(tuple(sorted(set(text))), len(text))
        found = transcripts_of(batch_of(text=spec.parse([text, text], "text")).condition, data_of(text=spec).condition_spec)
        assert found == (None if wanted is None else [wanted, wanted])
    animals = ConditionSpec((("class", ClassSpec(("cat", "dog"))),))
    assert transcripts_of(Condition({"class": Class(torch.tensor([0, 1]))}), animals) is None
    assert transcripts_of(Condition({}), ConditionSpec()) is None


def test_a_missing_recogniser_is_noted(monkeypatch):
    def missing(*_):
        raise ImportError("recognising digits needs the package pocketsphinx")

    monkeypatch.setattr(spoken_digits, "recognise", missing)
    batch, data, left_out = batch_of(**{"class": Class(torch.tensor([0, 1]))}), data_of(**{"class": ClassSpec(DIGITS)}), []
    assert transcribed([batch], data, left_out) is None and "pocketsphinx" in left_out[0]
    monkeypatch.setattr(spoken_digits, "recognise", lambda *_: [[]])
    assert transcribed([batch], data, left_out) == [[["zero"], ["one"]]]


def test_single_digits_are_chosen_among_ten_and_strings_may_have_any_number(monkeypatch):
    asked = []

    def recogniser(media, rate, lengths, grammar):
        asked.append(grammar)
        return [["one"], ["two", "two"]][: len(media)] if grammar == "digits" else [["one"], ["two"]]

    monkeypatch.setattr(spoken_digits, "recognise", recogniser)
    sounds, ends = [torch.zeros(2, 1, 80)], [torch.tensor([80, 80])]
    assert recognition([[["one"], ["nine"]]], sounds, ends, 8000) == ({"digit_accuracy": 0.5}, [[["one"], ["two"]]])
    assert recognition([[["one"], ["two", "nine"]]], sounds, ends, 8000)[0] == {"word_error_rate": 1 / 3}
    assert asked == ["digit", "digits"]


def test_codes_that_are_found_again_are_counted_where_there_are_any():
    spec = TokenSpec((8, 8), Frames(50.0, 6), modality="audio", media_shape=(1,), sample_rate=300)
    codes = torch.randint(0, 8, (3, 2, 6), generator=torch.Generator().manual_seed(0))
    codes[2, :, 4:] = -1  # a shorter row, whose absent cells are not counted
    again = codes.clone()
    again[:, 1] = torch.where(codes[:, 1] > 4, 4, codes[:, 1])  # the second level loses every code above 4
    statistics = CodeStatistics(spec)
    statistics.update(Tokens(codes, spec), Tokens(again[..., :5], spec))  # one position fewer
    lost = int((codes[:, 1, :5] > 4).sum()) + int((codes[..., 5] >= 0).sum())
    assert statistics.cells == 32 and statistics.survived == 1 - lost / 32
