"""Are spoken digits still understood? A recogniser (pocketsphinx with its English model) that can hear nothing but digits.

Two grammars: one digit ("digit"), or any number of them ("digits", which now and then hears one more). Cepstral means are of each wave
alone, so that a row is heard in a batch as it is heard alone. Give the originals' figures beside those of reconstructions: some voices are
not understood to begin with. Needs the package pocketsphinx, which brings its model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from gentok.metrics.optional_packages import package, rows

__all__ = ["DIGITS", "GRAMMARS", "recognise", "digit_accuracy", "word_errors", "word_error_rate"]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GRAMMARS = {"digit": "public <all> = <digit>;", "digits": "public <all> = <digit>+;"}
RATE, SILENCE = 16000, 0.25
"""Hz; seconds of silence before and after each wave, for words that begin at once."""


def recognise(media: Tensor, sample_rate: int, lengths: Tensor | None = None, grammar: str = "digits") -> list[list[str]]:
    """float [B, C, T] in [-1, 1] -> the words heard in each row, [] where nothing was. Raises ValueError on other grammars."""
    if grammar not in GRAMMARS:
        raise ValueError(f"the grammars are {' and '.join(GRAMMARS)}; got {grammar!r}")
    decoder = _decoder(grammar)
    return [_heard(decoder, wave) for wave in rows(media, sample_rate, RATE, lengths)]


def _heard(decoder: Any, wave: Any) -> list[str]:
    import numpy as np

    samples = (np.pad(wave, int(SILENCE * RATE)).clip(-1, 1) * 32767).astype("<i2")
    decoder.start_utt()
    decoder.process_raw(samples.tobytes(), full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return hypothesis.hypstr.split() if hypothesis else []


@lru_cache(maxsize=2)
def _decoder(grammar: str) -> Any:
    module = package("pocketsphinx", "pocketsphinx", "recognising digits")
    decoder = module.Decoder(lm=None, loglevel="FATAL", samprate=RATE, cmn="batch")
    decoder.add_jsgf_string("grammar", f"#JSGF V1.0; grammar g; <digit> = {' | '.join(DIGITS)}; {GRAMMARS[grammar]}")
    decoder.activate_search("grammar")
    return decoder


def digit_accuracy(media: Tensor, labels: Sequence[int], sample_rate: int, lengths: Tensor | None = None) -> float:
    """Waves of one digit each, float [B, C, T], and which 0..9 each is -> the share that is recognised, in [0, 1]."""
    if len(labels) != len(media) or not len(media):
        raise ValueError(f"digit accuracy needs a label for each of at least one wave; got {len(media)} waves and {len(labels)} labels")
    heard = recognise(media, sample_rate, lengths, "digit")
    return sum(words == [DIGITS[int(label)]] for words, label in zip(heard, labels, strict=True)) / len(labels)


def word_errors(heard: Sequence[str], said: Sequence[str]) -> int:
    """The least number of words that are put in, left out or exchanged (Levenshtein)."""
    row = list(range(len(said) + 1))
    for i, word in enumerate(heard, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(said, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def word_error_rate(media: Tensor, texts: Sequence[str], sample_rate: int, lengths: Tensor | None = None) -> float:
    """Waves of any number of digits, float [B, C, T], and what was said, such as "seven three" -> errors over all words said, at least 0
    (more than 1 where much is heard that was not said)."""
    said = [text.lower().split() for text in texts]
    strange = sorted({word for words in said for word in words} - set(DIGITS))
    if strange or len(said) != len(media) or not sum(map(len, said)):
        raise ValueError(
            f"the word error rate needs a text of the words {', '.join(DIGITS)} for each of {len(media)} waves; got {list(texts)}"
        )
    heard = recognise(media, sample_rate, lengths, "digits")
    return sum(word_errors(h, s) for h, s in zip(heard, said, strict=True)) / sum(map(len, said))
