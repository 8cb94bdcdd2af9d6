"""The command line: conf/ composed by Hydra, errors of the person at the keyboard answered in a line. The only importer of hydra.

`run(name, function)` composes conf/NAME.yaml with the overrides in sys.argv and hands `function` a plain, resolved dict.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["conf_dir", "run", "train", "sample", "compose", "patient_threads", "shell_words"]

BRACED = ("data.shards", "data.held_out")
"""Keys whose values are paths with braces."""


def patient_threads() -> None:
    """To be called before torch is loaded: threads that spin while they wait cost a factor of ten as soon as anything else runs on the
    same cores. The environment's own OMP_WAIT_POLICY wins."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def conf_dir() -> Path:
    """The folder of configurations: conf/ beside the package in a checkout, gentok/conf in an installed wheel."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"gentok's configurations are missing: expected conf/config.yaml beside or inside {here}")


def shell_words(words: list[str]) -> list[str]:
    """Braces of paths, as a person types them: quoted, data.shards=train-{000..004}.tar is no value to Hydra; unquoted, the shell makes
    five words of it, of which Hydra would take the last. -> quoted for Hydra, or gathered in a list."""
    joined: dict[str, list[str]] = {}
    out = []
    for word in words:
        key, equals, value = word.partition("=")
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


def compose(name: str, overrides: list[str] | None = None) -> dict[str, Any]:
    """conf/NAME.yaml with `overrides`, as a plain dict: what `run` would hand over. For tests and notebooks."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = hydra.compose(name, overrides or [])
        return OmegaConf.to_container(config, resolve=True)


def run(name: str, function: Callable[[dict[str, Any]], Any]) -> None:
    """Run `function` on conf/NAME.yaml and the command line. A ValueError or OSError becomes one line and exit status 2;
    GENTOK_TRACEBACK=1 shows where it came from."""
    import hydra
    from omegaconf import OmegaConf

    patient_threads()
    sys.argv[1:] = shell_words(sys.argv[1:])

    def job(config: Any) -> None:
        try:
            function(OmegaConf.to_container(config, resolve=True))
        except (ValueError, OSError, ImportError) as error:
            if os.environ.get("GENTOK_TRACEBACK"):
                traceback.print_exc()
            message = " ".join(str(error).split()) or type(error).__name__
            print(f"gentok: {message}", file=sys.stderr)
            sys.exit(2)

    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(job)()


def train() -> None:
    """`gentok-train`, and train.py."""

    def function(config: dict[str, Any]) -> None:
        from gentok.training.run import train as run_training

        run_training(config)

    run("config", function)


def sample() -> None:
    """`gentok-sample`, and sample.py."""

    def function(config: dict[str, Any]) -> None:
        from gentok.sampling import sample_to_folder

        sample_to_folder(config)

    run("sample", function)
