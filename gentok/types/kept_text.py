"""Which tokens of a text media are generated from: `condition.keep_text`.

In text-to-image models one or two tokens often hold all of an expression after the text was encoded, and images from these alone had fewer
errors (Kaplan et al., "Follow the Flow: On Information Flow Across Textual Tokens in Text-to-Image Models", arXiv 2504.01137): tokens
are taken away *behind* the encoder, so that what they said is still there as far as it flowed into the ones that stay.

Tokens are those of the condition: characters, or a frozen encoder's, special ones (begin, end) included. Padding is none of them: no model
here ever reads it.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from gentok.types.conditions import Ids, Kept, Part, Vectors

__all__ = ["KEEP_TEXT", "TEXT", "kept_text"]

KEEP_TEXT, TEXT = "keep_text", "text"
"""The name of this part of a condition, and of the part that it is about."""


def kept_text(keep: Any, text: Part | None) -> Kept | None:
    """The tokens that stay.

    Args:
        keep: all (or None); first:n or last:n, of each row's tokens; or positions, a number or a list of them, from 0, or from -1 at a
            text's end. Positions that a row does not have are left out.
        text: the condition's part of this name; None: there is none.

    Returns:
        Kept, mask bool [B, L]; all True in rows without text. None: all stay.

    Raises:
        ValueError: there is no text, `keep` says something else, or it leaves nothing of a row's text.
    """
    if not isinstance(text, (Ids, Vectors)):
        raise ValueError(f"condition.keep_text={keep}: this model is conditioned on no text")
    if keep is None or keep == "all":
        return None
    there = text.ids >= 0 if isinstance(text, Ids) else text.mask  # [B, L]
    count, place = there.sum(1, keepdim=True), torch.arange(there.shape[1], device=there.device)
    mask = there & _chosen(keep, place, count)
    nothing = (count[:, 0] > 0) & ~mask.any(1)
    if bool(nothing.any()):
        row = int(nothing.nonzero()[0])
        raise ValueError(f"condition.keep_text={keep} leaves nothing of the text of row {row}, which has {int(count[row])} tokens")
    return Kept(mask | (count == 0))


def _chosen(keep: Any, place: Tensor, count: Tensor) -> Tensor:
    """bool [B, L]: where `place` int64 [L] is kept of rows of `count` int64 [B, 1] tokens."""
    found = re.fullmatch(r"(first|last):([1-9]\d*)", keep) if isinstance(keep, str) else None
    if found is not None:
        n = int(found[2])
        return (place < n).expand(len(count), -1) if found[1] == "first" else place >= count - n
    wanted = list(keep) if isinstance(keep, (list, tuple)) else [keep]
    numbers = [int(value) for value in wanted if not isinstance(value, (bool, float)) and re.fullmatch(r"-?\d+", str(value))]
    if not wanted or len(numbers) < len(wanted):
        raise ValueError(f"condition.keep_text={keep}: all, first:n or last:n (n from 1), or positions of its tokens, such as [0,-1]")
    chosen = torch.zeros(len(count), len(place), dtype=torch.bool, device=place.device)
    for number in numbers:
        chosen |= place == (number if number >= 0 else count + number)
    return chosen
