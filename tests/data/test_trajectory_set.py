"""Cached trajectories: what is read is the teacher's own, and another teacher's are refused."""

import sys
from pathlib import Path

import pytest
import torch
from data_kit import CLASSES, pictures

from gentok.data.sharded_encoding import encode_together
from gentok.data.token_cache import cache_name, encode_set, join, share_path
from gentok.data.trajectory_set import TaughtItems, TeacherCodes, TrajectoryDataset
from gentok.errors import FormatError
from gentok.types import Trajectories

sys.path.append(str(Path(__file__).parents[1] / "generators"))
from distilled_kit import SPEC, distilled  # noqa: E402

ABOUT = {"teacher": "one"}
QUIET = {"batch_size": 4, "progress": False}


@pytest.fixture(scope="module")
def model():
    return distilled(condition_spec=CLASSES)


def made(model, path, split="train", **options):
    return encode_set(TeacherCodes(model, split), TaughtItems(pictures(), ABOUT), path, **{**QUIET, "views": 3, "seed": 7, **options})


def test_noise_and_codes_that_are_read_are_the_teachers_way(model, tmp_path):
    found = TrajectoryDataset(made(model, tmp_path / "t.safetensors"), model, ABOUT, "train", seed=7)
    n, seen = len(found), []
    for epoch in range(3):
        batch = found.__getitems__(range(epoch * n, epoch * n + n))
        assert isinstance(batch.tokens, Trajectories) and batch.media is None
        codes = model.follow(torch.full_like(batch.tokens.codes, -2), batch.tokens.noise, batch.condition, range(SPEC.positions))
        assert torch.equal(codes, batch.tokens.codes)
        seen.append(batch.tokens.noise)
    assert len({tuple(row.flatten().tolist()) for noise in seen for row in noise}) == 3 * n, "every view has noise of its own"
    assert abs(float(torch.stack(seen).std()) - 1) < 0.05
    other = TrajectoryDataset(found.path, model, ABOUT, "train", seed=8).__getitems__(range(n))
    wrong = model.follow(torch.full_like(other.tokens.codes, -2), other.tokens.noise, other.condition, range(SPEC.positions))
    assert not torch.equal(wrong, other.tokens.codes), "of another seed it is other noise"


def test_sets_have_noise_of_their_own(model, tmp_path):
    sets = [TrajectoryDataset(made(model, tmp_path / f"{s}.safetensors", s, views=1), model, ABOUT, s) for s in ("train", "held_out")]
    train, held_out = (found.__getitems__(range(4)).tokens for found in sets)
    assert not torch.equal(train.noise, held_out.noise) and not torch.equal(train.codes, held_out.codes)


def test_trajectories_of_another_teacher_have_another_name_and_are_refused(model, tmp_path):
    data = pictures()
    names = {cache_name(TaughtItems(data, about), SPEC) for about in (ABOUT, {"teacher": "two"})} | {cache_name(data, SPEC)}
    assert len(names) == 3
    path = made(model, tmp_path / "t.safetensors")
    with pytest.raises(FormatError, match="trajectories of another teacher .*delete it") as error:
        TrajectoryDataset(path, model, {"teacher": "two"}, "train")
    assert "\n" not in str(error.value)
    with pytest.raises(FormatError, match="another teacher"):
        TrajectoryDataset(encode_set(TeacherCodes(model, "x"), data, tmp_path / "u.safetensors", **QUIET), model, ABOUT, "x")


def test_shares_of_two_processes_are_the_file_of_one_and_a_killed_one_begins_anew(model, tmp_path):
    whole, shared = made(model, tmp_path / "whole.safetensors"), tmp_path / "shared.safetensors"
    for rank in (1, 0):
        made(model, shared, rank=rank, world=2)
    join(shared, 2)
    assert whole.read_bytes() == shared.read_bytes()

    class Killed(TeacherCodes):
        def encode_batch(self, batch, rng):
            if 4 in batch.index.tolist():
                raise KeyboardInterrupt
            return super().encode_batch(batch, rng)

    path = tmp_path / "killed.safetensors"
    options = {**QUIET, "views": 3, "seed": 7}
    with pytest.raises(KeyboardInterrupt):
        encode_together(Killed(model, "train"), TaughtItems(pictures(), ABOUT), path, **options)
    assert not path.exists() and not share_path(path, 0, 1).exists()
    encode_together(TeacherCodes(model, "train"), TaughtItems(pictures(), ABOUT), path, **options)
    assert path.read_bytes() == whole.read_bytes()
