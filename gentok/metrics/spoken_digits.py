"""Are spoken digits still understood? A recogniser (pocketsphinx with its English model) that knows nothing
but digits.

Two grammars: one digit ("digit"), or any number of them ("digits", which now and then finds one more).
Cepstral means are of each wave alone, so that a row gives in a batch what it gives alone. Give the originals'
figures beside those of reconstructions: some voices are not understood to begin with. Needs the package
pocketsphinx, which brings its model. Words are counted by torchmetrics' WordErrorRate.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from gentok.metrics.optional_packages import package, rows
from gentok.types import Batch, Condition, ConditionSpec

__all__ = ["DIGITS", "GRAMMARS", "Transcripts", "recognise", "recognition", "transcribed", "transcripts_of"]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GRAMMARS = {"digit": "public <all> = <digit>;", "digits": "public <all> = <digit>+;"}
RATE, SILENCE = 16000, 0.25
"""Hz; seconds of silence before and after each wave, for words that begin at once."""


def recognise(media: Tensor, sample_rate: int, lengths: Tensor | None = None, grammar: str = "digits") -> list[list[str]]:
    """The words that are recognised in each row, [] where none are.

    Args:
        media: float [B, C, T] in [-1, 1].
        sample_rate: Hz.
        lengths: int64 [B] in samples; None: all of T.
        grammar: a key of GRAMMARS.

    Raises:
        ValueError: there is no such grammar.
        ImportError: the recogniser's package is missing.
    """
    if grammar not in GRAMMARS:
        raise ValueError(f"the grammars are {' and '.join(GRAMMARS)}; got {grammar!r}")
    decoder = _decoder(grammar)
    return [_recognised(decoder, wave) for wave in rows(media, sample_rate, RATE, lengths)]


def _recognised(decoder: Any, wave: Any) -> list[str]:
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


Transcripts = list[list[str]]
"""The words of every item of a batch."""


def transcripts_of(condition: Condition, spec: ConditionSpec) -> Transcripts | None:
    """The digits that are spoken in each row, by its text or by its class; None where they are no digits."""
    parts = dict(spec.parts)
    if "text" in parts and "text" in condition.parts:
        alphabet = parts["text"].alphabet
        words = ["".join(alphabet[i] for i in row if i >= 0).split() for row in condition.parts["text"].ids.tolist()]
    elif "class" in parts:
        names = [DIGITS[int(name)] if name in "0123456789" else name for name in parts["class"].names]
        words = [[names[i]] for i in condition.parts["class"].ids.tolist()]
    else:
        return None
    return words if all(word in DIGITS for row in words for word in row) else None


def transcribed(items: Sequence[Batch], data: Any, left_out: list[str]) -> list[Transcripts] | None:
    """The transcripts of every batch, where they are digits and the recogniser is installed.

    Args:
        items: batches of the data.
        data: a MediaData of sounds.
        left_out: gets a line where the recogniser is missing.

    Returns:
        A list per batch, or None.
    """
    transcripts = [transcripts_of(batch.condition, data.condition_spec) for batch in items]
    if any(rows is None for rows in transcripts):
        return None
    try:
        recognise(torch.zeros(1, 1, data.sample_rate), data.sample_rate)
    except ImportError as error:
        left_out.append(f"what is recognised: {error}")
        return None
    return transcripts


def recognition(
    transcripts: Sequence[Transcripts], sounds: Sequence[Tensor], lengths: Sequence[Tensor | None], sample_rate: int
) -> tuple[dict[str, float], list[Transcripts]]:
    """How much of what was spoken is recognised.

    Args:
        transcripts: the words of each row of every batch.
        sounds: float [B, C, T] of every batch.
        lengths: int64 [B] in samples of every batch.
        sample_rate: Hz of the sounds.

    Returns:
        The figure, and the words that were recognised in each row of every batch. Where every row is one
        digit, the figure is `digit_accuracy` in [0, 1]: the recogniser chooses among the ten (with any number
        of them allowed it finds a second one in many a clean "nine"). Else it is `word_error_rate`, errors
        over all spoken words, more than 1 where much is recognised that was not spoken.
    """
    from torchmetrics.text import WordErrorRate

    single = all(len(row) == 1 for batch in transcripts for row in batch)
    grammar, errors = "digit" if single else "digits", WordErrorRate()
    found = [recognise(media, sample_rate, ends, grammar) for media, ends in zip(sounds, lengths, strict=True)]
    for recognised, spoken in zip(found, transcripts, strict=True):
        errors.update([" ".join(row) for row in recognised], [" ".join(row) for row in spoken])
    rate = float(errors.errors.double() / errors.total.double())  # `compute` would round to float32
    return ({"digit_accuracy": 1 - rate} if single else {"word_error_rate": rate}), found
