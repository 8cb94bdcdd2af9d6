"""Shared by the tests of runs."""

from pathlib import Path

import pytest
from resume_kit import SMALL, run


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder for the runs of a file of tests, with a small tokenizer's run in it, which generators are trained over."""
    pytest.importorskip("mlxtend")
    root = tmp_path_factory.mktemp("runs")
    run(root, "tokenizer", SMALL)
    return root
