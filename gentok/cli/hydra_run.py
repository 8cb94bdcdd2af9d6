"""conf/ composed by Hydra, mistakes answered by one-line errors. The only importer of hydra.

`run(name, function)` composes conf/NAME.yaml with the overrides in sys.argv and hands `function` a plain, resolved dict.
"""

from __future__ import annotations

import math
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from gentok import __version__
from gentok.cli.commands import COMMANDS
from gentok.cli.config_errors import explained, out_of_memory
from gentok.cli.exchange import exchange
from gentok.cli.help import command_help, wants_help
from gentok.cli.idle import idle_settings
from gentok.cli.overrides import conf_dir, patient_threads, shell_words
from gentok.cli.run_id import run_id
from gentok.errors import ConfigError
from gentok.value_checks import check_values

__all__ = ["compose", "run"]


def compose(name: str, overrides: list[str] | None = None) -> dict[str, Any]:
    """conf/NAME.yaml with `overrides`, as a plain dict: what `run` would hand over. For tests and notebooks."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    _resolvers()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config, choices = _composed(name, overrides or [])
        exchange(config, choices, overrides or [], partial(_composed, name))
        return plain(config)


def _composed(name: str, words: list[str]) -> tuple[Any, dict[str, str]]:
    """(configuration, choices of its groups) of words, while Hydra is initialized."""
    import hydra
    from omegaconf import OmegaConf, open_dict

    config = hydra.compose(name, words, return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    OmegaConf.set_struct(config, False)
    with open_dict(config):
        del config["hydra"]
    return config, choices


def plain(config: Any) -> dict[str, Any]:
    """A composed configuration as a plain dict, interpolations resolved."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(config, resolve=True)
    return values


def run(name: str, function: Callable[[dict[str, Any]], Any]) -> None:
    """Run `function` on conf/NAME.yaml and the command line. A ValueError or OSError becomes one line and exit status 2;
    GENTOK_TRACEBACK=1 shows where it came from. With -m: every combination, each in a folder of its own; one that fails is noted in the
    sweep's table and does not keep the others from running."""
    if _answered(name):
        return
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    patient_threads()
    _resolvers()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # its errors come here, instead of out in many lines
    jobs: list[tuple[Path, bool]] = []
    began: list[bool] = []
    sys.argv[1:] = shell_words(sys.argv[1:])

    def attempt(config: Any) -> str | None:
        try:
            words, choices = list(_hydra().overrides.task), dict(_hydra().runtime.choices)
            for word in words:
                if word.startswith("~"):
                    raise ConfigError(f"{word}: a key cannot be taken away; set it to another value, such as {word[1:].split('=')[0]}=null")
            for line in exchange(config, choices, words, partial(_composed, name)):
                print(f"gentok: {line}", file=sys.stderr)
            try:
                values = plain(config)
            except OmegaConfBaseException as error:
                raise ConfigError(explained(error, words, conf_dir(), lambda rest: [], choices)) from error
            check_values(values)
            for line in idle_settings(values, words):
                print(f"gentok: {line}", file=sys.stderr)
            function(values)
        except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not out_of_memory(error):
                raise
            if os.environ.get("GENTOK_TRACEBACK"):
                traceback.print_exc()
            message = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, (MemoryError, RuntimeError)):
                message = f"not enough memory: a smaller batch_size or model needs less ({message[:160]})"
            print(f"gentok: {message}", file=sys.stderr)
            return message
        return None

    def job(config: Any) -> float | None:
        began.append(True)
        folder = _own_folder(config)
        if folder is None:
            if attempt(config):
                sys.exit(2)
            return None
        from gentok.sweep import measured, note

        overrides = [word for word in _hydra().overrides.task if "=" in word]
        print(f"\n== job {_hydra().job.num}: {' '.join(overrides)}", flush=True)
        jobs.append((folder, False))
        note(folder, overrides, "running")
        try:
            error = attempt(config)
        except BaseException:
            note(folder, overrides, "stopped")
            raise
        jobs[-1] = (folder, error is None)
        note(folder, overrides, "failed" if error else "done", error)
        return math.nan if error else measured(folder, config.sweep_metric)

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        print(f"gentok: {explained(error, sys.argv[1:], conf_dir(), lambda rest: _keys(name, rest))}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if began:
            raise
        print(f"gentok: these words cannot be read as choices and keys ({error}): {' '.join(sys.argv[1:])}", file=sys.stderr)  # data=[1]
        sys.exit(2)
    except KeyboardInterrupt:
        print("gentok: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        if jobs:
            from gentok.sweep import summarize

            sweep = jobs[0][0].parent
            print(f"\n{summarize(sweep)}\nsweep: {sweep}")
    if not all(done for _, done in jobs):
        sys.exit(2)


def _answered(name: str) -> bool:
    """Whether the command line asked for help or the version, which is then printed: Hydra's own help has no comments."""
    words = sys.argv[1:]
    if "--version" in words:
        print(f"gentok {__version__}")
        return True
    if not wants_help(words):
        return False
    command = next(command for command, settings in COMMANDS.items() if settings.config == name)
    program = sys.argv[0] if sys.argv[0].startswith("gentok ") else f"python {os.path.basename(sys.argv[0])}"
    try:
        print(command_help(command, words, program))
    except ConfigError as error:
        print(f"gentok: {error}", file=sys.stderr)
        sys.exit(2)
    return True


def _hydra() -> Any:
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.get()


def _own_folder(config: Any) -> Path | None:
    """In a sweep, the job's folder, set as paths.run; None outside of one. What cannot be swept ends the sweep with a line."""
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    if _hydra().mode is RunMode.MULTIRUN and _hydra().job.config_name in ("sample", "evaluate"):  # a job's files are its own
        OmegaConf.update(config, "out", str(Path(config.out) / str(_hydra().job.num)))
    if _hydra().mode is not RunMode.MULTIRUN or OmegaConf.select(config, "trainer") is None:
        return None
    devices, nodes = config.trainer.devices, config.trainer.num_nodes
    wrong = None
    if any(word.startswith("paths.run=") for word in _hydra().overrides.task):
        wrong = "with -m every job has a folder of its own: set hydra.sweep.dir=FOLDER instead of paths.run"
    elif nodes > 1 or (isinstance(devices, int) and devices > 1):
        wrong = f"with -m every job is one process: set trainer.devices=1, or start the runs of {devices} devices one by one"
    if wrong:
        print(f"gentok: {wrong}", file=sys.stderr)
        sys.exit(2)
    if OmegaConf.select(config, "paths.run") is None:
        return None
    folder = Path(_hydra().runtime.output_dir)
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    OmegaConf.update(config, "paths.run", str(folder))
    OmegaConf.update(config, "print_config", config.print_config and _hydra().job.num == 0)
    return folder


def _keys(name: str, words: list[str]) -> list[str]:
    """All keys of the configuration as these words of the command line compose it, or as it is where they cannot."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    def flat(tree: Any, above: str = "") -> list[str]:
        below = [(f"{above}{key}", value) for key, value in tree.items()] if isinstance(tree, dict) else []
        return [key for path, value in below for key in (path, *flat(value, path + "."))]

    for overrides in (words, []):
        GlobalHydra.instance().clear()
        try:
            with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
                return flat(OmegaConf.to_container(hydra.compose(name, overrides), resolve=False))
        except HydraException:  # another mistake beside this one
            continue
    return []


def _resolvers() -> None:
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("run_id", run_id, replace=True)
