"""The configuration as a tree under a screen, printed when a run begins. RUN/config.yaml holds all of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gentok.build import component_name

__all__ = ["config_tree", "show_config"]

FIRST = ("data", "tokenizer", "generator", "sampler", "optimizer", "schedule", "task", "trainer")
ELSEWHERE = ("paths", "codebook", "losses", "name", "describe", "describe_classes", "print_config", "sweep_metric")
"""What is shown in another place: the folder at the end, codebook and losses inside the tokenizer that they are put into."""


def config_tree(config: Mapping[str, Any]) -> Any:
    """A rich Tree: a line per component with what is set (null and empty left out). Parts that the task does not use are left out."""
    from rich.tree import Tree

    unused = () if config["task"]["name"] == "generator" else ("generator", "sampler")
    top = {k: v for k, v in config.items() if not isinstance(v, Mapping) and k not in ELSEWHERE and v not in (None, [], False)}
    tree = Tree(_line(config["name"], top), guide_style="dim")
    rest = [k for k, v in config.items() if isinstance(v, Mapping) and k not in FIRST and k not in ELSEWHERE]
    for name in [k for k in (*FIRST, *rest) if k in config and k not in unused]:
        if config[name] and any(v not in (None, [], {}) for v in config[name].values()):
            _add(tree, name, config[name])
    tree.add(_line("run", {}, config["paths"]["run"]))
    return tree


def _add(tree: Any, name: str, group: Mapping[str, Any]) -> None:
    plain = {k: v for k, v in group.items() if not isinstance(v, Mapping) and k != "_target_" and v not in (None, [])}
    branch = tree.add(_line(name, plain, component_name(group)))
    for key, value in group.items():
        if isinstance(value, Mapping) and value:
            _add(branch, key, value)


def _line(name: str, values: Mapping[str, Any], component: str = "") -> Any:
    from rich.text import Text

    text = Text(str(name), style="bold")
    if component:
        text.append(f"  {component}", style="not bold cyan")
    for key, value in values.items():
        text.append(f"  {key}=", style="not bold dim").append(_word(value), style="not bold not dim")
    return text


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_word, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def show_config(config: Mapping[str, Any]) -> None:
    """Prints the tree; on the first process alone."""
    from lightning.pytorch.utilities import rank_zero_only
    from rich.console import Console

    if rank_zero_only.rank == 0:
        Console(highlight=False, soft_wrap=False).print(config_tree(config))
