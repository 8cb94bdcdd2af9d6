"""What a person types -> what Hydra understands. Imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["conf_dir", "patient_threads", "shell_words"]

BRACED = ("data.shards", "data.held_out")
"""Keys whose values are paths with braces."""


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

    Braces of paths: quoted, data.shards=train-{000..004}.tar is no value to Hydra; unquoted, the shell makes five words of it, of which
    Hydra would take the last. -> quoted for Hydra, or gathered in a list. Parts of a condition: condition.text=... adds a key to what is
    null by default.
    """
    joined: dict[str, list[str]] = {}
    out = []
    for word in words:
        key, equals, value = word.partition("=")
        if key.startswith("condition."):
            out.append(f"++{word}")
            continue
        if not equals or key not in BRACED:
            out.append(word)
            continue
        if key not in joined:
            out.append(key)
        joined.setdefault(key, []).append(value if value[:1] in ("'", '"', "[") or "{" not in value else f"'{value}'")
    for i, key in enumerate(out):
        if key in joined:
            values = joined[key]
            out[i] = f"{key}={values[0] if len(values) == 1 else '[' + ','.join(values) + ']'}"
    return out
