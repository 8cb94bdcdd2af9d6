"""The command line: conf/ composed by Hydra, errors of the person at the keyboard answered in a line. The only importer of hydra.

`run(name, function)` composes conf/NAME.yaml with the overrides in sys.argv and hands `function` a plain, resolved dict.
"""

from __future__ import annotations

import os
import re
import sys
import time
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


def compose(name: str, overrides: list[str] | None = None) -> dict[str, Any]:
    """conf/NAME.yaml with `overrides`, as a plain dict: what `run` would hand over. For tests and notebooks."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    _resolvers()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = hydra.compose(name, overrides or [])
        return OmegaConf.to_container(config, resolve=True)


def run(name: str, function: Callable[[dict[str, Any]], Any]) -> None:
    """Run `function` on conf/NAME.yaml and the command line. A ValueError or OSError becomes one line and exit status 2;
    GENTOK_TRACEBACK=1 shows where it came from. With -m: every combination, each in a folder of its own; one that fails is noted in the
    sweep's table and does not keep the others from running."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    patient_threads()
    _resolvers()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # its errors come here, instead of out in many lines
    jobs: list[tuple[Path, bool]] = []
    sys.argv[1:] = shell_words(sys.argv[1:])

    def attempt(config: Any) -> str | None:
        try:
            function(OmegaConf.to_container(config, resolve=True))
        except (ValueError, OSError, ImportError) as error:
            if os.environ.get("GENTOK_TRACEBACK"):
                traceback.print_exc()
            message = " ".join(str(error).split()) or type(error).__name__
            print(f"gentok: {message}", file=sys.stderr)
            return message
        return None

    def job(config: Any) -> None:
        folder = _own_folder(config)
        if folder is None:
            if attempt(config):
                sys.exit(2)
            return
        from gentok.sweep import note

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

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        from gentok.config_errors import explained

        print(f"gentok: {explained(error, sys.argv[1:], conf_dir(), lambda rest: _keys(name, rest))}", file=sys.stderr)
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


def _hydra() -> Any:
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.get()


def _own_folder(config: Any) -> Path | None:
    """In a sweep, the job's folder, set as paths.run; None outside of one. What cannot be swept ends the sweep with a line."""
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    if _hydra().mode is not RunMode.MULTIRUN or OmegaConf.select(config, "paths.run") is None:
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

    OmegaConf.register_new_resolver("run_id", _run_id, replace=True)


def _run_id() -> str:
    """A name for the run's folder that is the same on every process of the run: the job's where srun or torchrun started them together (and
    after a requeue), else the time. Processes that the run starts by itself are handed its folder."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID"))
    if job and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):  # not a shell, in which there may be many runs
        task = os.environ.get("SLURM_ARRAY_TASK_ID")
        return f"slurm_{job}" + (f"_{task}" if task else "")
    elastic = os.environ.get("TORCHELASTIC_RUN_ID")
    if elastic and elastic != "none":
        return elastic
    moment = time.time()
    if elastic:  # one torchrun on one machine, without an id: its processes have a parent in common
        if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
            raise ValueError(
                "torchrun on several machines: give the run one folder with paths.run=FOLDER, or torchrun an id with --rdzv-id"
            )
        parent = os.getppid()
        try:
            ticks = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19])
            booted = int(re.search(r"^btime (\d+)", Path("/proc/stat").read_text(), re.MULTILINE)[1])
        except OSError:  # no Linux
            return f"torchrun-{parent}"
        moment = booted + ticks / os.sysconf("SC_CLK_TCK")  # when torchrun was started
    return time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(moment))


def train() -> None:
    """`gentok-train`, and train.py."""

    def function(config: dict[str, Any]) -> None:
        from gentok.training.run import train as run_training

        run_training(config)

    run("config", function)


def sample() -> None:
    """`gentok-sample`, and sample.py."""

    def function(config: dict[str, Any]) -> None:
        from gentok.sample_files import sample_to_folder

        sample_to_folder(config)

    run("sample", function)
