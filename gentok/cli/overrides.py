"""What a person types -> what Hydra understands. Imports nothing heavy."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["conf_dir", "patient_threads", "shell_words"]

BRACED = ("data.shards", "data.held_out")
"""Keys whose values are paths with braces; or a share, a number."""
TEXTS = (
    "ckpt", "path", "weights", "out", "known", "input", "output", "cache", "classifier", "init_from", "resume", "region", "root", "run",
    "index", "shards", "held_out", "dir", "text_encoder", "key", "inception", "reference", "samples",
    "repo", "revision", "message", "license", "picture", "report", "folder",
)  # fmt: skip
"""Last names of keys whose values are text, mostly paths."""
_READABLE = re.compile(r"""[\w\s/\-+.$%*@?|:,()\[\]{}'"\\]*""", re.ASCII)


def patient_threads() -> None:
    """To be called before torch is loaded: threads that spin while they wait cost a factor of ten as soon as anything else runs on the
    same cores. The environment's own OMP_WAIT_POLICY wins."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def conf_dir() -> Path:
    """The folder of configurations: conf/ beside the package in a checkout, gentok/conf in an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"gentok's configurations are missing: expected conf/config.yaml beside or inside {package}")


def shell_words(words: list[str]) -> list[str]:
    """What a person types -> what Hydra understands.

    Paths and conditions are text, whatever they look like, and any value may hold any character: they are put in quotes, unless they are
    in quotes, lists or braces already. Unquoted braces of shards, which the shell makes several words of, are gathered in a list. A
    condition's parts, `condition.text=...`, are added to what is null by default, and `condition=3,5` is a list. With -m, commas still
    separate the jobs.
    """
    sweep = any(word in ("-m", "--multirun") for word in words)
    joined: dict[str, list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and not word.startswith("-"):
            joined.setdefault(key, []).append(_value(key.lstrip("+~"), value, sweep))
    out = []
    for word in words:
        key, equals, _ = word.partition("=")
        if not equals or word.startswith("-"):
            out.append(word)
            continue
        values = joined.pop(key, [])
        if key in BRACED and len(values) > 1:
            values = [f"[{','.join(values)}]"]
        out += [f"{'++' if key.startswith('condition.') else ''}{key}={value}" for value in values]
    return out


def _value(key: str, value: str, sweep: bool) -> str:
    if value[:1] in ("'", '"', "{") or (sweep and "," in value):
        return value
    condition = key.split(".")[0] == "condition"
    if condition and not value.startswith("[") and re.search(r",(?! )", value):
        value = f"[{value}]"  # several, in turn; behind the comma of a sentence there is a space
    if value.startswith("["):
        inside = value[1:-1]
        plain = condition and value.endswith("]") and inside and not re.search(r"[\[\]{}'\"]", inside)
        return f"[{','.join(_text(key, item.strip()) for item in inside.split(','))}]" if plain else value
    return _text(key, value)


def _text(key: str, value: str) -> str:
    """A value in quotes, if it is text by its key or holds what Hydra cannot read."""
    is_text = key.rpartition(".")[2] in TEXTS or key.split(".")[0] == "condition"
    if is_text and not (value == "null" or (key in BRACED and _is_number(value))):
        value = os.path.expanduser(value) if value.startswith("~") and not key.startswith("condition") else value
    elif _READABLE.fullmatch(value):
        return value
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
