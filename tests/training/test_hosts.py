"""Two hosts, which are network namespaces of this machine: what their processes train, sample and say is what one process does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts_kit import ADDRESSES, Hosts, finished, two_hosts
from resume_kit import CASES, GENERATOR, QUIET, alike, last, run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
EXACT = ["trainer.precision=32-true", "steps=4", "trainer.checkpoint_every=4"]
MASKED = ["experiment=mnist5k/masked", *GENERATOR, "task.views=2", *EXACT]
JOB = ["cluster=slurm", "cluster.nodes=2", "cluster.gpus_per_node=0", "trainer=cpu"]
AVERAGES = [*CASES["vq by averages"], *EXACT]


@pytest.fixture
def hosts(tmp_path) -> Iterator[Hosts]:
    with two_hosts(tmp_path) as hosts:
        yield hosts


def wait_for(condition, job: subprocess.Popen) -> None:
    while not condition():
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.05)


def test_a_job_of_slurm_on_two_hosts_trains_what_one_process_does(root, hosts):
    """Submitted, started by srun on each host, a set encoded by both: Lightning's own SLURM environment."""
    log = hosts.slurm(tasks=1)
    tokenizer = f"tokenizer.ckpt={root / 'tokenizer' / 'bundle'}"
    words = [*JOB, *QUIET, *MASKED, tokenizer, f"paths.root={hosts.folder}", f"paths.run={hosts.folder / 'run'}"]
    said = finished([hosts.start(0, sys.executable, str(ROOT / "train.py"), *words)])[0]
    text = log.read_text()
    assert "Submitted batch job 4242" in said and "ended with 0" in text, text[-3000:]
    assert text.count("4 steps in") == 1 and "Traceback" not in text, text
    one = run(root, "masked_one", MASKED, f"paths.cache={hosts.folder / 'cache_of_one'}")
    alike(one, hosts.folder / "run")
    caches = [sorted((hosts.folder / name).glob("*.safetensors")) for name in ("cache", "cache_of_one")]
    assert len(caches[0]) == 2 and [path.name for path in caches[0]] == [path.name for path in caches[1]]
    assert all(ours.read_bytes() == theirs.read_bytes() for ours, theirs in zip(*caches))


def test_torchrun_on_two_hosts_of_two_processes_trains_what_one_process_does(root, hosts):
    words = ["trainer=cpu", "trainer.num_nodes=2", "trainer.devices=2", *QUIET, *AVERAGES, f"paths.run={hosts.folder / 'run'}"]
    started = []
    for host in range(2):
        place = ["--nnodes=2", "--nproc-per-node=2", f"--node-rank={host}", f"--master-addr={ADDRESSES[0]}", "--master-port=29517"]
        started.append(hosts.start(host, sys.executable, "-m", "torch.distributed.run", *place, str(ROOT / "train.py"), *words))
    said = "".join(finished(started))
    assert said.count("4 steps in") == 1, said
    alike(run(root, "averages_one", AVERAGES), hosts.folder / "run")


def test_srun_on_two_hosts_draws_the_samples_of_one_process(hosts):
    hosts.slurm(tasks=1)
    words = ["ckpt=mnist5k_masked", "sampler=maskgit", "sampler.steps=2", "n=12", "batch_size=4", "format=npz"]
    one = [sys.executable, str(ROOT / "sample.py"), *words]
    job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_NODELIST": "gentok-n[1-2]", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NTASKS": "2"}
    both = ["env", *(f"{name}={value}" for name, value in job.items()), "srun", *one]
    finished([hosts.start(0, *both, f"out={hosts.folder / 'both'}")])
    finished([hosts.start(1, *one, f"out={hosts.folder / 'one'}")])
    for name in ("samples.npz", "codes.safetensors", "grid.png"):
        assert (hosts.folder / "both" / name).read_bytes() == (hosts.folder / "one" / name).read_bytes(), name


def test_a_job_that_is_told_of_its_end_saves_and_goes_on_when_it_is_put_back(hosts):
    log, folder = hosts.slurm(tasks=1), hosts.folder / "run"
    words = [*JOB, *QUIET, *AVERAGES, "trainer.checkpoint_every=1000000", "trainer.validate_every=1000000", f"paths.run={folder}"]
    job = hosts.start(0, sys.executable, str(ROOT / "train.py"), *words, "steps=1000000")
    wait_for((folder / "metrics.csv").is_file, job)
    os.kill(int((hosts.folder / "slurm.pid").read_text()), signal.SIGUSR1)  # as Slurm does, five minutes before the end
    job.communicate(timeout=1200)
    step, text = last(folder)["global_step"], log.read_text()
    assert step >= 1 and f"at step {step}, saved" in text and "scontrol requeue 4242" in text and "Traceback" not in text, text
    script = (folder / "job.sh").read_text().replace("steps=1000000", f"steps={step + 2}")
    (folder / "job.sh").write_text(script)
    finished([hosts.start(0, "sbatch", str(folder / "job.sh"))])
    assert last(folder)["global_step"] == step + 2 and "ended with 0" in log.read_text(), log.read_text()[-3000:]


def test_a_process_killed_on_one_host_is_a_line_on_the_other(hosts):
    words = ["trainer=cpu", "trainer.num_nodes=2", "trainer.devices=1", *QUIET, *AVERAGES, "steps=1000000"]
    started = []
    for host in range(2):
        place = {"RANK": host, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1, "GROUP_RANK": host, "MASTER_ADDR": ADDRESSES[0],
                 "MASTER_PORT": 29518, "TORCHELASTIC_RUN_ID": "job"}  # fmt: skip
        given = ["env", *(f"{name}={value}" for name, value in place.items())]
        started.append(hosts.start(host, *given, sys.executable, str(ROOT / "train.py"), *words, f"paths.run={hosts.folder / 'run'}"))
    wait_for((hosts.folder / "run" / "metrics.csv").is_file, started[0])
    started[1].kill()
    said = started[0].communicate(timeout=1200)[0]  # within seconds, on a machine that is free
    assert started[0].returncode == 2 and "Traceback" not in said, said
    assert [line for line in said.splitlines() if line.startswith("gentok:") and "another process of this run is gone" in line], said
    started[1].communicate()
