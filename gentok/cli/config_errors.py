"""What Hydra says about a mistake on the command line, in one line and with the right word. Needs no hydra: it reads the messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from gentok.errors import nearest_name

__all__ = ["RENAMED", "explained", "near_key", "out_of_memory"]

RENAMED = {
    "judge": "classifier",
    "judge_steps": "classifier_steps",
    "codebook=bits": "codebook=bit_groups",
    "codebook=factorised": "codebook=factorized",
    "codebook=residual_factorised": "codebook=residual_factorized",
    "losses=reconstruction": "losses=l1",
    "codebook=lookup_free": "codebook=lfq",
    "codebook=split": "codebook=split_rvq",
    "experiment=cifar10/ar_delay_rq": "experiment=cifar10/ar_flat_rq generator.layout=delayed",
    "experiment=cifar10/ar_parallel_rq": "experiment=cifar10/ar_flat_rq generator.layout=parallel",
    "tokenizer=flextok_d12_d12": "experiment=imagenet256/flextok_d12_d12",
    "tokenizer=flextok_d18_d18": "experiment=imagenet256/flextok_d18_d18",
    "tokenizer=flextok_d18_d28": "experiment=imagenet256/flextok_d18_d28",
}
"""Old key -> new key, and old choice of a group -> new choice."""


def explained(
    error: Exception, words: list[str], conf: Path, keys: Callable[[list[str]], list[str]],
    choices: Mapping[str, str] = MappingProxyType({}),
) -> str:  # fmt: skip
    """One line for what Hydra found wrong with `words`.

    Args:
        error: what Hydra or OmegaConf raised.
        words: of the command line.
        conf: the folder of configurations.
        keys: all keys that other words give.
        choices: of the groups, where they are known.
    """
    text = str(error)
    if found := re.search(r"Could not (?:override|append to config\. An item is already at|delete from config\.) '([^']*)'", text):
        key = found[1]
        if key in RENAMED:
            return f"the key {key!r} is now called {RENAMED[key]!r}: write {RENAMED[key]}=..."
        rest = [w for w in words if "=" in w and not w.startswith(("-", "hydra.", key + "="))]
        if "already at" in text:
            return f"the key {key!r} exists: write {key}=..., without the plus"
        return f"there is no key {key!r}{near_key(key, keys(rest))}"
    if found := re.search(r"Could not find '([^']*)'", text):
        group, _, choice = found[1].partition("/")
        if f"{group}={choice}" in RENAMED:
            return f"{group}={choice} is now called {RENAMED[f'{group}={choice}']}"
        folder = conf / group
        there = [str(p.relative_to(folder).with_suffix("")) for p in sorted(folder.rglob("*.yaml"))]
        shown = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)+)", text)  # those of a user's own folders too
        there = list(dict.fromkeys([*there, *(shown[1].split() if shown else [])]))
        if there:
            return f"there is no {group} {choice!r}{near_key(choice, there)}"
        return f"there is no configuration {found[1]!r}"
    if type(error).__name__ == "OverrideParseException":
        word = getattr(error, "override", None) or next((w for w in words if "=" not in w and not w.startswith("-")), "")
        return f"cannot read {word!r}: expected key=value, with quotes around values that hold spaces, commas, = or brackets"
    if found := re.search(r"^(\S+) appears more than once", text):
        return f"{found[1]} is chosen already: write {found[1]}=..., without the plus"
    if found := re.search(r"Interpolation key '([^']*)' not found", text):
        asks, asked = ((key or "").split(".")[0] for key in (getattr(error, "full_key", ""), found[1]))
        if asks in choices and asked in choices:
            return f"{asks}={choices[asks]} does not fit {asked}={choices[asked]}, which has no key {found[1]!r}: choose another {asks}"
        return f"the value of {getattr(error, 'full_key', None) or 'a key'} refers to {found[1]!r}, which does not exist"
    return " ".join(text.splitlines()[0].split())


def out_of_memory(error: Exception) -> bool:
    """Whether torch found no memory for a tensor, on the processor or on a GPU."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def near_key(word: str, names: list[str]) -> str:
    """The end of a message about a key that is not there: the nearest of `names`, or what its group has."""
    names = [name for name in names if not name.endswith("_target_")]
    ends = [n for n in names if n.replace("/", ".").rsplit(".", 1)[-1] == word.replace("/", ".").rsplit(".", 1)[-1]]
    close = difflib.get_close_matches(word, ends, n=1, cutoff=0.3) or ends[:1]
    if close:
        return f"; did you mean {close[0]!r}?"
    parent, _, last = word.rpartition(".")
    own = sorted(n.rpartition(".")[2] for n in names if parent and n.rpartition(".")[0] == parent)
    if own and not difflib.get_close_matches(last, own):  # what is alike as a whole is so by its parent alone
        return f"; {parent} has {', '.join(own)}"
    return nearest_name(word, names if len(names) < 40 or difflib.get_close_matches(word, names) else [])
