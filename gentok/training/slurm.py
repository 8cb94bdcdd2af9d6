"""`python train.py cluster=slurm cluster.nodes=4 ...`: a batch job of Slurm that trains what the rest of the command line says.

Outside of a job this writes RUN/job.sh, conf/cluster/sbatch.sh with the settings of `cluster` and this command line in it, and hands it to
sbatch where there is one. Inside of a job (SLURM_JOB_ID is set) the same words train. The job's run lies in RUN, also when it is requeued.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gentok.atomic import replacing
from gentok.cli.overrides import conf_dir
from gentok.errors import ConfigError
from gentok.training.config_check import check_config

__all__ = ["is_submission", "job_script", "submit"]

_TIME = re.compile(r"\d+|\d+(:\d\d){1,2}|\d+-\d+(:\d\d){0,2}")
_PROGRAM = '"${PYTHON:-python}" "${TRAIN:-train.py}"'
_WORDS = '"$@"'


def is_submission(config: Mapping[str, Any]) -> bool:
    """Whether a composed conf/config.yaml asks for a job, and this process is not one's."""
    return config.get("cluster") is not None and "SLURM_JOB_ID" not in os.environ


def submit(config: Mapping[str, Any], words: Sequence[str]) -> Path:
    """Writes the job's script, submits it where there is sbatch, and says what was done.

    Args:
        config: a composed conf/config.yaml.
        words: of the command line, as Hydra takes them.

    Returns:
        The script.

    Raises:
        ConfigError: settings that a job would fail of.
        OSError: the run's folder cannot be written, or sbatch refuses the job.
    """
    cluster = config["cluster"]
    if any(word in ("-m", "--multirun") for word in words):
        raise ConfigError("cluster=slurm submits one job: leave out -m, and submit the combinations one by one")
    if not _TIME.fullmatch(str(cluster["time"])):
        raise ConfigError(f"cluster.time={cluster['time']}: expected minutes, HH:MM:SS or DAYS-HH:MM:SS, as of sbatch --time")
    processes = max(1, cluster["gpus_per_node"])
    check_config({**config, "trainer": {**config["trainer"], "accelerator": "cpu", "devices": processes, "num_nodes": cluster["nodes"]}})
    if config["steps"] is None and config["budget"] is None:
        raise ConfigError("how long? set steps=2000, or budget=20h (time of training, over all starts of the job), or both")
    run = Path(config["paths"]["run"]).absolute()
    path = run / "job.sh"
    with replacing(path, setting="paths.run") as temporary:
        temporary.write_text(job_script((conf_dir() / "cluster" / "sbatch.sh").read_text(), config, words, run))
        temporary.chmod(0o755)
    if shutil.which("sbatch") is None:
        print(f"job: {path}\nthere is no sbatch here; where there is one: sbatch {shlex.quote(str(path))}")
        return path
    done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split())[:300]
        raise OSError(f"sbatch has refused {path} ({reason}): change cluster.partition, cluster.account, cluster.time or cluster.options")
    print(f"job: {path}\n{done.stdout.strip()}\nlog: {run / 'job_JOBID.log'}")
    return path


def job_script(template: str, config: Mapping[str, Any], words: Sequence[str], run: Path) -> str:
    """The text of a job's script.

    Args:
        template: conf/cluster/sbatch.sh.
        config: with the settings of `cluster`.
        words: of the command line.
        run: the folder of the run, absolute.

    Raises:
        ConfigError: the template has lost the places that are filled in.
    """
    cluster = config["cluster"]
    gpus = cluster["gpus_per_node"]
    settings = {
        "job-name": config["name"], "output": run / "job_%j.log", "nodes": cluster["nodes"], "ntasks-per-node": max(1, gpus),
        "gres": f"gpu:{gpus}" if gpus else None, "cpus-per-task": cluster["cpus_per_task"], "time": cluster["time"],
        "partition": cluster["partition"], "account": cluster["account"], "mem": cluster["memory"],
    }  # fmt: skip
    lines = template.splitlines()
    header = [line for line in lines if line.startswith("#SBATCH")]
    if not header or _PROGRAM not in template or _WORDS not in template:
        raise ConfigError(f"conf/cluster/sbatch.sh must have #SBATCH lines, and run {_PROGRAM} cluster=slurm {_WORDS}")
    settings |= cluster["options"] or {}
    kept = [line for line in header if line.split("--", 1)[-1].partition("=")[0] not in settings]
    made = [_option(name, value) for name, value in settings.items() if value is not None and value is not False]
    first = lines.index(header[0])
    body = [line for line in lines[first:] if not line.startswith("#SBATCH")]
    own = [word for word in words if word not in ("cluster=slurm", "+cluster=slurm") and not word.startswith("paths.run=")]
    text = "\n".join([lines[0], *made, *kept, f"cd {shlex.quote(os.getcwd())}", *body, ""])
    return text.replace(_PROGRAM, shlex.join(_program())).replace(_WORDS, shlex.join([*own, f"paths.run={run}"]))


def _option(name: str, value: Any) -> str:
    return f"#SBATCH --{name}" + ("" if value is True else f"={shlex.quote(str(value))}")


def _program() -> list[str]:
    """The command that this process was started with, up to its arguments."""
    if sys.argv[0].startswith("gentok "):  # `gentok train`
        return [sys.executable, "-c", "from gentok.cli import main; main()", "train"]
    return [sys.executable, os.path.abspath(sys.argv[0])]
