"""What a recogniser of digits hears in sounds of digits, against what was said. Used by protocols of sounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gentok.metrics.spoken_digits import DIGITS, recognise, word_errors
from gentok.types import Batch, Condition, ConditionSpec

__all__ = ["Said", "heard", "said", "words_of"]

Said = list[list[str]]
"""The words of every item of a batch."""


def words_of(condition: Condition, spec: ConditionSpec) -> Said | None:
    """The digits that are said in each row, by its text or by its class; None where they are no digits."""
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


def said(items: Sequence[Batch], data: Any, left_out: list[str]) -> list[Said] | None:
    """The words of every batch, where the data say that they are digits and these can be recognised; else None, and a line in left_out."""
    words = [words_of(batch.condition, data.condition_spec) for batch in items]
    if any(row is None for row in words):
        return None
    try:
        recognise(torch.zeros(1, 1, data.sample_rate), data.sample_rate)
    except ImportError as error:
        left_out.append(f"what is heard: {error}")
        return None
    return words


def heard(words: Sequence[Said], made: Sequence[Tensor], lengths: Sequence[Tensor], rate: int) -> tuple[dict[str, float], list[Said]]:
    """Sounds float [b, C, T] of every batch and their lengths in samples -> {figure: value}, and the words that were heard in each.

    Where every item is one digit, `digit_accuracy`: the recogniser chooses among the ten (with any number of them allowed it hears a second
    one in many a clean "nine"). Else `word_error_rate`, of any number of digits.
    """
    single = all(len(row) == 1 for batch in words for row in batch)
    found = [recognise(sounds, rate, ends, "digit" if single else "digits") for sounds, ends in zip(made, lengths, strict=True)]
    errors = sum(word_errors(h, w) for batch, every in zip(found, words, strict=True) for h, w in zip(batch, every, strict=True))
    share = errors / sum(len(row) for batch in words for row in batch)
    return ({"digit_accuracy": 1 - share} if single else {"word_error_rate": share}), found
