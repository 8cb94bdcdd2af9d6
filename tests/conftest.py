"""Shared by all tests: two threads, no network, and no test that depends on the order in which tests run."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start; several tests run side by side
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
import torch

torch.set_num_threads(int(os.environ.get("GENTOK_TEST_THREADS", "1")))


@pytest.fixture(autouse=True)
def seeded():
    """Parameter initialisation is the only thing in gentok that draws from torch's global stream."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    """Folders of long tests first, so that workers side by side end together."""
    items.sort(key=lambda item: "training" not in item.path.parts and "tokenizers" not in item.path.parts)
