"""Drafts of some ids alone: a draft head without rare ids (VocabTrim: Goel et al., arXiv 2506.22694).

A smaller generator never drafts the other ids, and its q is renormalised over those that are left, so what is sampled has the same
distribution; an id that cannot be drafted costs a rejection where the large model wants it. Ids that end an item are always left. Where a
step could hold none of the ids, all are left.

    ids = most_frequent(codes, 128)                          # of the codes that the drafts' generator was trained on
    Path("ids.json").write_text(json.dumps(ids))             # sampler.trim=ids.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.types import TokenSpec

__all__ = ["kept_ids", "most_frequent", "read_ids"]

_FORM = "trim takes ids, a list of whole numbers from 0, or such a list for every level, or a JSON file of that"


def most_frequent(codes: Tensor, count: int) -> list[list[int]]:
    """The most frequent ids of every level, in the form that `trim` takes.

    Args:
        codes: int64 [items, K, N]; negative ones are no ids.
        count: ids of a level; of a level that has fewer, all that occur.
    """
    out = []
    for level in codes.transpose(0, 1):
        number = torch.bincount(level[level >= 0].flatten())
        order = number.argsort(descending=True, stable=True)[:count]
        out.append(order[number[order] > 0].sort().values.tolist())
    return out


def _is_ids(value: Any) -> bool:
    return isinstance(value, Sequence) and all(type(x) is int and x >= 0 for x in value) and len(value) > 0


def read_ids(given: Any) -> list[list[int]]:
    """The ids of `trim`: one list for all levels, or one for each.

    Raises:
        ValueError: it is no list of ids, and no file of one.
    """
    value = given
    if isinstance(given, str):
        try:
            value = json.loads(Path(given).read_text())
        except OSError as error:
            raise ValueError(f"{_FORM}; {given} cannot be read: {error.strerror}") from None
        except ValueError:
            raise ValueError(f"{_FORM}; {given} is no JSON") from None
    lists = value if isinstance(value, Sequence) and value and all(isinstance(x, Sequence) for x in value) else [value]
    wrong = next((x for x in lists if not _is_ids(x)), None)
    if wrong is not None or not lists:
        raise ValueError(f"{_FORM}; got {str(wrong)[:60]}{'' if value is given else f' in {given}'}")
    return [list(ids) for ids in lists]


def kept_ids(given: Any, spec: TokenSpec, vocab: int) -> Tensor:
    """Which ids drafts may be: bool [K, vocab].

    Args:
        given: as `read_ids` takes it.
        spec: the tokens.
        vocab: ids of a distribution, the end of items included.

    Raises:
        ValueError: the ids are not those of the tokens' levels.
    """
    lists = read_ids(given)
    if len(lists) not in (1, spec.levels):
        raise ValueError(f"trim has ids for {len(lists)} levels, the tokens have {spec.levels}: give one list, or one for every level")
    out = torch.zeros(spec.levels, vocab, dtype=torch.bool)
    out[:, spec.vocab :] = True
    for k, size in enumerate(spec.vocab_sizes):
        shared = len(lists) < spec.levels  # levels of unlike sizes share a list: each takes what it has of it
        ids = lists[0 if shared else k]
        found = [x for x in ids if x < size]
        if not found or max(ids) >= (spec.vocab if shared else size):
            what = f"id {max(ids)} for level {k}, whose ids are 0 .. {size - 1}"
            raise ValueError(f"trim has {what}: take ids of the tokens that are sampled")
        out[k, torch.tensor(found)] = True
    return out
