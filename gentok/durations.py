"""Durations as people write them."""

from __future__ import annotations

__all__ = ["seconds"]

_UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600}


def seconds(text: str | float | int | None, what: str = "budget") -> float | None:
    """'90s', '6min', '2h' or 90 as seconds; None as None.

    Raises:
        ValueError: it is no positive duration. `what` names it in the message.
    """
    if text is None:
        return None
    word = str(text).strip()
    number = word.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = word[len(number) :].strip() or "s"
    try:
        value = float(number) * _UNITS[unit]
    except (KeyError, ValueError):
        value = -1.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{what}={text}: expected a positive time such as 90s, 6min or 2h")
    return value
