"""What is not used of a set stands, with its reason, in what a run keeps and on its page."""

import json

import pytest
import torch
from places_kit import fill, image_bytes
from torch.utils.data import DataLoader

from gentok.data.datasets import identity
from gentok.data.folder import ImageFolder
from gentok.report.__main__ import write_report
from gentok.training.finish import skipped_items


@pytest.mark.parametrize("workers", [0, 1])
def test_reasons_are_in_the_metrics_and_on_the_page_also_of_what_a_worker_found(tmp_path, workers):
    root = fill(tmp_path / "photos", 12)
    (root / "bad.png").write_bytes(b"no image"), (root / "<b>notes.txt").write_text("x"), (root / "again").symlink_to(root)
    (root / "cut.png").write_bytes(image_bytes(50, side=40)[:400])
    data = ImageFolder(root, size=16, held_out=str(fill(tmp_path / "test", 3, 20)), max_broken=0.5)
    for _ in DataLoader(data.train, batch_size=4, collate_fn=identity, num_workers=workers):
        pass
    skipped = skipped_items(data, torch.device("cpu"))
    assert list(skipped) == ["train"] and skipped["train"]["count"] == 2 and skipped["train"]["of"] == 14
    assert skipped["train"]["reasons"] == {str(root / "bad.png"): "no known format", str(root / "cut.png"): "image file is truncated"}
    assert skipped["train"]["left_out"]["count"] == 2
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("name: photos\nsteps: 10\n")
    (run / "metrics.json").write_text(json.dumps({"step": 10, "metrics": {}, "skipped": skipped}))
    write_report(run)
    page = (run / "report.html").read_text()
    for words in (
        "2 of 14 items of train could not be read",
        "no known format",
        "image file is truncated",
        "ending in .txt",
        "&lt;b&gt;notes.txt",
    ):
        assert words in page
    assert "links to what is listed already" in page and "<b>notes" not in page
