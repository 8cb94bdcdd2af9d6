"""Several processes write the samples of one; npz files are ADM's; a killed process ends the job with a line, and its parts stay."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_sampling import bundles  # noqa: F401 - a fixture

from gentok.cli import compose
from gentok.cli.idle import idle_settings
from gentok.errors import ConfigError
from gentok.launch import launched
from gentok.sample_files import sample_to_folder

ROOT = Path(__file__).resolve().parents[1]
TIMED = ("seconds", "tokens_per_second")


def config(bundles, out, *words):  # noqa: F811
    return compose("sample", [f"ckpt={bundles['ar']}", f"out={out}", "condition=[0,1,2]", "batch_size=4", *words])


def files(folder):
    """name -> bytes; of samples.json what took no time."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = json.loads(found.pop("samples.json"))
    return found, {key: value for key, value in report.items() if key not in TIMED}


def command(*words, start=(), **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
    words = [sys.executable, *start, str(ROOT / "sample.py"), *words]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_an_npz_holds_the_images_as_adm_reads_them(bundles, tmp_path):  # noqa: F811
    both = sample_to_folder(config(bundles, tmp_path / "both", "n=6", "format=both"))
    alone = sample_to_folder(config(bundles, tmp_path / "alone", "n=6", "format=npz"))
    assert {path.name for path in alone.iterdir()} == {"samples.npz", "samples.json", "grid.png", "codes.safetensors"}
    for name in ("samples.npz", "grid.png", "codes.safetensors"):
        assert (alone / name).read_bytes() == (both / name).read_bytes()
    from PIL import Image

    with np.load(alone / "samples.npz") as stored:
        assert sorted(stored) == ["arr_0", "arr_1"] and stored["arr_1"].tolist() == [0, 1, 2, 0, 1, 2]
        images = stored["arr_0"]
    assert images.dtype == np.uint8 and images.shape == (6, 16, 16, 3) and (images[..., :1] == images).all()
    assert all((np.array(Image.open(both / f"{i:04d}.png")) == images[i, ..., 0]).all() for i in range(6))


def test_a_killed_call_goes_on_behind_its_parts(bundles, tmp_path, monkeypatch, capsys):  # noqa: F811
    from gentok.sampling_plan import SamplingPlan

    whole = files(sample_to_folder(config(bundles, tmp_path / "whole", "n=10")))
    drawn, draw = [], SamplingPlan.draw

    def killed(self, part, *rest):
        if part.start == 8:
            raise KeyboardInterrupt
        drawn.append(part.start)
        return draw(self, part, *rest)

    monkeypatch.setattr(SamplingPlan, "draw", killed)
    with pytest.raises(KeyboardInterrupt):
        sample_to_folder(config(bundles, tmp_path / "out", "n=10"))
    monkeypatch.setattr(SamplingPlan, "draw", lambda self, part, *rest: drawn.append(part.start) or draw(self, part, *rest))
    assert files(sample_to_folder(config(bundles, tmp_path / "out", "n=10"))) == whole and drawn == [0, 4, 8]
    assert "2 of 3 parts" in capsys.readouterr().out
    sample_to_folder(config(bundles, tmp_path / "out", "n=10", "seed=1"))
    assert drawn == [0, 4, 8, 0, 4, 8], "parts of other samples are not used"


@pytest.mark.parametrize(
    "words, says",
    [
        (["trainer=ddp_sim", "trainer.num_nodes=2"], "srun or torchrun"),
        (["trainer=ddp_sim", "trainer.strategy=deepspeed"], "trainer.strategy=deepspeed.*trainer=ddp"),
        (["trainer.devices=2", "device=cuda:1"], "device=cuda:1.*trainer.devices"),
        (["trainer.devices=2", "device=cuda"], "no GPU"),
    ],
)
def test_processes_that_cannot_be_started_are_one_line(bundles, tmp_path, monkeypatch, words, says):  # noqa: F811
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=says) as error:
        launched(config(bundles, tmp_path / "out", *words))
    assert "\n" not in str(error.value)


def test_a_program_that_asks_for_processes_without_starting_them_is_told(bundles, tmp_path):  # noqa: F811
    with pytest.raises(ConfigError, match="2 processes: the command starts them"):
        sample_to_folder(config(bundles, tmp_path / "out", "trainer=ddp_sim"))


def test_what_trainer_cannot_do_here_is_said():
    words = ["trainer=ddp_sim", "trainer.precision=32-true", "trainer.devices=1", "n=1"]
    assert idle_settings(compose("sample", words), words) == ["trainer.precision is of training and has no effect here"]


@pytest.mark.slow
def test_two_processes_write_what_one_does(bundles, tmp_path):  # noqa: F811
    words = [f"ckpt={bundles['ar']}", "condition=[0,1,2]", "batch_size=4", "format=both", "n=18"]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    runs = {"one": ((), []), "own": ((), ["trainer=ddp_sim"]), "devices": ((), ["trainer.devices=3"]), "torchrun": (torchrun, [])}
    written = {}
    for name, (start, more) in runs.items():
        process = command(*words, *more, f"out={tmp_path / name}", start=start)
        out, problems = process.communicate(timeout=900)
        assert process.returncode == 0, problems
        assert out.count("grid.png") == 1 and problems.count("18/18") == 1, problems
        written[name] = files(tmp_path / name)
    assert len(written["one"][0]) == 18 + 3
    assert all(found == written["one"] for found in written.values())


@pytest.mark.slow
def test_what_is_wrong_is_one_line_of_all_processes(bundles, tmp_path):  # noqa: F811
    process = command(f"ckpt={bundles['ar']}", "condition=donkey", f"out={tmp_path / 'out'}", "trainer=ddp_sim")
    _, problems = process.communicate(timeout=900)
    assert process.returncode == 2 and len(problems.strip().splitlines()) == 1 and "donkey" in problems, problems


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("torchrun", [False, True])
def test_a_killed_process_ends_the_job_and_its_parts_are_used(bundles, tmp_path, rank, torchrun):  # noqa: F811
    words = [f"ckpt={bundles['ar']}", "batch_size=4", "n=4000", f"out={tmp_path / 'out'}"]
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2") if torchrun else ()
    process = command(*words, *([] if torchrun else ["trainer=ddp_sim"]), start=start)
    parts = tmp_path / "out" / ".unfinished"
    deadline = time.monotonic() + 1200
    while not parts.is_dir() or len(list(parts.glob("part-*"))) < 4:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)
    victim = next(pid for pid in children(process.pid) if environment(pid).get("RANK") == str(rank))
    os.kill(victim, signal.SIGKILL)
    _, problems = process.communicate(timeout=1200)  # seconds, on a machine that is free
    assert process.returncode not in (0, None)
    if not torchrun:
        lines = [line for line in problems.splitlines() if line.startswith("gentok:")]
        assert len(lines) == 1 and f"process {rank} of 2 was killed by signal 9" in lines[0] and "Traceback" not in problems, problems
    assert len(list(parts.glob("part-*"))) >= 4


def children(pid):
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(child) for child in found]


def environment(pid):
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.partition("=")[::2] for pair in pairs)
