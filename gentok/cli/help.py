"""The help of a command: what it does, what to copy, which choices there are, and every key with its comment in conf/.

Read from the files of conf/ as text, since a YAML parser drops the comments. Imports nothing heavy.
"""

from __future__ import annotations

import re
import shutil
import textwrap

from gentok.cli.commands import COMMANDS
from gentok.cli.overrides import conf_dir
from gentok.errors import ConfigError, nearest_name

__all__ = ["command_help", "overview", "wants_help"]

_KEY = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?P<value> [^#]*?)? *(?:# ?(?P<comment>.*))?$")
_HIDDEN = ("defaults", "hydra", "_target_")


def wants_help(arguments: list[str]) -> bool:
    """Whether the command line asks for help."""
    return any(word in ("-h", "--help", "help") for word in arguments)


def overview() -> str:
    """The help of `gentok` itself."""
    lines = ["gentok: tokenizers for images and sound, generators over their tokens, exact samplers", "", "usage: gentok COMMAND ...", ""]
    lines += [f"  {name:<12}{command.summary}" for name, command in COMMANDS.items()]
    lines += ["", "gentok COMMAND --help: examples, choices and keys of a command", "gentok --version"]
    return "\n".join(lines)


def command_help(name: str, arguments: list[str] | None = None, program: str | None = None) -> str:
    """The help of a command.

    Args:
        name: of the command.
        arguments: what was typed beside --help: `sampler=maskgit` (or `sampler`) asks for the keys of that choice.
        program: what was typed, such as "python train.py"; by default "gentok NAME".

    Raises:
        ConfigError: there is no such choice.
    """
    command, program = COMMANDS[name], program or f"gentok {name}"
    choices = [word.lstrip("+~") for word in arguments or [] if not word.startswith("-") and word != "help"]
    shown = [word for word in choices if word.partition("=")[0] in command.groups]
    if shown:
        return "\n\n".join(_choice_help(*word.partition("=")[::2]) for word in shown)
    lines = [f"{program}: {command.summary}", ""]
    for example, what in command.examples:
        lines += [f"  # {what}", f"  {program} {example}".rstrip()]
    for key, what in command.keys:
        lines += [""] * (key == command.keys[0][0]) + [f"  {key:<16}{what}"]
    if command.groups:
        lines += ["", f"choices, GROUP=NAME; `{program} --help GROUP=NAME` shows the keys of one:", *map(_group, command.groups)]
    if command.config:
        lines += ["", "keys, KEY=VALUE, with their defaults:", *_keys([(conf_dir() / f"{command.config}.yaml").read_text()])]
        lines += ["", "several values of a key with -m (a sweep); GENTOK_TRACEBACK=1 shows where an error came from"] * (name == "train")
    return "\n".join(lines)


def _names(group: str) -> list[str]:
    folder = conf_dir() / group
    return [str(path.relative_to(folder).with_suffix("")) for path in sorted(folder.rglob("*.yaml")) if not path.name.startswith("_")]


def _group(group: str) -> str:
    columns = min(118, shutil.get_terminal_size((118, 24)).columns)
    return textwrap.fill(f"  {group:<14}{', '.join(_names(group))}", columns, subsequent_indent=" " * 16, break_on_hyphens=False)


def _choice_help(group: str, name: str) -> str:
    names = _names(group)
    if not name:
        return _group(group)
    if name not in names:
        raise ConfigError(f"there is no {group} {name!r}{nearest_name(name, names)}")
    text = (conf_dir() / group / f"{name}.yaml").read_text()
    listed = re.findall(r"^  - (?:override /)?([\w/@.]+)$", text, re.MULTILINE)
    listed += [word.strip() for line in re.findall(r"^defaults: \[(.*)\]$", text, re.MULTILINE) for word in line.split(",")]
    above = [word for word in listed if word != "_self_"]
    head = [f"{group}={name}", *(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ") and "@package" not in line)]
    parts = [text, *(_read(group, word) for word in above if (conf_dir() / group / f"{word}.yaml").is_file())]
    return "\n".join([*head, *_keys(parts, "" if "@package _global_" in text else group)])


def _read(group: str, name: str) -> str:
    return (conf_dir() / group / f"{name}.yaml").read_text()


def _keys(texts: list[str], above: str = "") -> list[str]:
    """Lines "key  default  comment" of the keys in yaml texts, nested ones with their path; the first text that has a key counts."""
    rows: dict[str, list[str]] = {}
    for text in texts:
        rows = {**{row[0]: row for row in _rows(text, above)}, **rows}
    width = min(34, max((len(name) for name in rows), default=0) + 2)
    out = []
    for name, value, comment in rows.values():
        line = f"  {name:<{width}}{value:<14}"
        wrapped = textwrap.wrap(comment, max(40, 116 - len(line))) or [""]
        out += [f"{line}{wrapped[0]}".rstrip(), *(" " * len(line) + rest for rest in wrapped[1:])]
    return out


def _rows(text: str, above: str) -> list[list[str]]:
    rows: list[list[str]] = []
    path: list[tuple[int, str]] = [(-1, above)] if above else []
    hidden = -1  # the indent of a part that is not for people
    for line in text.splitlines():
        found = _KEY.match(line)
        if not found:
            comment = re.match(r"^ {12,}# ?(.*)$", line)  # the comment of the key above goes on
            if comment and rows:
                rows[-1][2] += f" {comment[1]}"
            continue
        indent, key, value = len(found["indent"]), found["key"], (found["value"] or "").strip()
        if hidden >= 0 and indent > hidden:
            continue
        hidden = indent if key in _HIDDEN else -1
        if hidden >= 0:
            continue
        path = [(i, name) for i, name in path if i < indent]
        name = ".".join([*(name for _, name in path), key])
        path.append((indent, key))
        if value or found["comment"]:
            rows.append([name, value, found["comment"] or ""])
    return rows
