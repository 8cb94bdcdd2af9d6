"""A model in shards on two processes is the model: weights, averages, optimizer, curves, checkpoints and bundle."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from resume_kit import curves, last
from sharded import RUNS

from gentok.bundle import load
from gentok.cli import compose
from gentok.training.config_check import check_config
from gentok.training.sharding import gradient_norm, own_part, scale

HERE = Path(__file__).parent


def on_two(script: str, *words: object) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    done = subprocess.run([sys.executable, HERE / script, *map(str, words)], env=environment, text=True, capture_output=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_shards_train_what_copies_do(root, name):
    on_two("sharded.py", root, name)
    same(root / f"{name}_ddp", root / f"{name}_fsdp")
    bundle, averaged = load(root / f"{name}_fsdp" / "bundle"), last(root / f"{name}_fsdp")["state_dict"]
    part = "tokenizer" if bundle.generator is None else "generator"
    weights = getattr(bundle, part).state_dict()
    assert weights.keys() <= {key.removeprefix(f"{part}.") for key in averaged}
    assert all(torch.equal(value, averaged[f"{part}.{key}"]) for key, value in weights.items())


@pytest.mark.slow
def test_what_breaks_in_a_sharded_run_is_named_on_all_processes(root):
    on_two("sharded.py", root, "broken")
    first, second = ((root / f"broken_{rank}.txt").read_text() for rank in range(2))
    assert first == second and "the output of generator." in first and "Block" in first, (first, second)


def same(one: Path, two: Path) -> None:
    """Two checkpoints are of one format, and equal up to roundings."""
    copies, shards = last(one), last(two)
    assert copies.keys() == shards.keys()
    for key in ("state_dict", "current_model_state", "averaging_state"):
        assert copies.get(key, {}).keys() == shards.get(key, {}).keys()
        for name, value in copies.get(key, {}).items():
            assert type(shards[key][name]) is torch.Tensor
            assert torch.allclose(shards[key][name].double(), value.double(), atol=2e-4, rtol=1e-3), (key, name)
    ours, theirs = (checkpoint["optimizer_states"][0] for checkpoint in (copies, shards))
    assert [group["params"] for group in ours["param_groups"]] == [group["params"] for group in theirs["param_groups"]]
    assert ours["state"].keys() == theirs["state"].keys()
    for number, state in ours["state"].items():
        for name, value in state.items():
            assert torch.allclose(theirs["state"][number][name], value, atol=1e-4, rtol=1e-2), (number, name)
    rows = [{k: float(v) for k, v in curves(folder)[-1].items() if "psnr" in k or "held_out" in k} for folder in (one, two)]
    assert rows[0].keys() == rows[1].keys() and rows[0]
    assert all(abs(rows[1][k] - v) <= 1e-3 + 0.02 * abs(v) for k, v in rows[0].items()), rows
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}


# ------------------------------------------------------------------------------------------------------------------ quick


def test_norm_and_scale_of_whole_gradients_are_torchs():
    parameters = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5))]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    expected = [p.grad.clone() for p in parameters]
    norm = gradient_norm(expected)
    assert torch.equal(norm, torch.nn.utils.get_total_norm(expected)) and own_part(expected[0]) is expected[0]
    torch.nn.utils.clip_grads_with_norm_(parameters, 0.5, norm)
    scale(expected, (0.5 / (norm + 1e-6)).clamp(max=1.0))
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters, expected))


def test_discriminators_with_shards_are_answered_in_a_line():
    config = compose("config", ["experiment=mnist5k/vqgan", "trainer=fsdp_sim", "steps=1"])
    with pytest.raises(ValueError, match="trainer=fsdp trains generators.*set trainer=ddp, or discriminator=none") as error:
        check_config(config)
    assert "\n" not in str(error.value)
