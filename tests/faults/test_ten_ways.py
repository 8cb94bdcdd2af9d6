"""Pictures that are broken in ten ways end no run, and each is listed with its reason."""

import json
import logging

import pytest
from ten_ways import BROKEN, LEFT_OUT, READ, WAYS, permissions_count, pictures
from test_run_folder import QUIET, SMALL

from gentok.cli import compose
from gentok.training.run import train


def trained(root, count, broken, steps, batch_size, *words):
    """The `skipped` of metrics.json, both splits together, and the ways of the pictures."""
    made = pictures(root / "photos", count - broken, broken)
    data = ["data=folder", f"data.path={root / 'photos'}", "data.size=8", "data.held_out=0.1", "data.max_broken=0.1"]
    words = [*QUIET, *SMALL, *data, f"batch_size={batch_size}", f"steps={steps}", f"paths.run={root / 'run'}", *words]
    with permissions_count():
        report = json.loads((train(compose("config", words)) / "metrics.json").read_text())
    assert report["step"] == steps
    skipped = report["skipped"].values()
    out = {"count": 0, "reasons": {}, "left_out": 0, "left_out_reasons": {}}
    for split in skipped:
        out["count"] += split["count"]
        out["reasons"] |= split.get("reasons", {})
        more = split.get("left_out", {"count": 0, "reasons": {}})
        out["left_out"] += more["count"]
        out["left_out_reasons"] |= more["reasons"]
    return out, made


def test_ten_ways_to_be_broken_end_no_run_and_are_all_listed(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        skipped, made = trained(tmp_path, 200, 10, 20, 10)
    wanted = {str(path): way for way in BROKEN for path in made[way]}
    assert set(skipped["reasons"]) == set(wanted) and skipped["count"] == len(wanted) == 7
    reasons = {wanted[path]: reason for path, reason in skipped["reasons"].items()}
    said = {"empty": "it is empty", "no permission": "Permission denied", "truncated": "image file is truncated"}
    assert said.items() <= reasons.items() and all(reason and "\n" not in reason for reason in reasons.values())
    assert set(skipped["left_out_reasons"]) == {str(path) for way in LEFT_OUT for path in made[way]}
    assert not any(str(path) in skipped["reasons"] for way in READ for path in made[way])


@pytest.mark.slow
def test_ten_thousand_pictures_of_which_three_per_cent_are_broken(tmp_path):
    skipped, made = trained(tmp_path, 10_000, 300, 1000, 10)
    assert all(len(made[way]) == 30 for way in WAYS)
    assert skipped["count"] == 30 * len(BROKEN) and skipped["left_out"] == 30 * len(LEFT_OUT)
