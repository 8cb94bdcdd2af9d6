"""Maps on disk: made once, found again by other runs, and made anew for other pictures, other networks and lost blocks."""

from __future__ import annotations

import pytest
import torch

from gentok.data.datasets import MemoryDataset
from gentok.nn.semantic import SemanticNetwork
from gentok.training import feature_cache as teacher_maps
from gentok.training.feature_cache import map_bytes, remember
from gentok.types import ConditionSpec


class Counting(SemanticNetwork):
    """A frozen network that counts the pictures that it is shown."""

    width = 2

    def __init__(self, scale: float = 1.0):
        super().__init__(frozen=True)
        self.seen, self.scale = 0, scale

    def map(self, media):
        self.seen += len(media)
        return torch.nn.functional.avg_pool2d(media.float().expand(-1, 2, -1, -1) * torch.tensor([1.0, -2.0]).view(1, 2, 1, 1), 4)

    def weights(self):
        return {"w": torch.full((2,), self.scale)}


def pictures(n: int, seed: int = 0) -> MemoryDataset:
    media = torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return MemoryDataset(media, None, ConditionSpec(), {"data": "random"})


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(teacher_maps, "BLOCK", 8)


def test_every_picture_of_every_set_is_served_from_disk(tmp_path):
    sets, network = (pictures(21), pictures(5, seed=1)), Counting()
    memory = remember(network, {"zoom": 1}, sets, (2, 2), tmp_path)
    assert network.seen == 26 and len(list(tmp_path.glob("maps-*.safetensors"))) == 4
    for data in sets:
        media = data.__getitems__(list(range(len(data)))).media.flip(0)
        torch.testing.assert_close(network(media, (2, 2)), network.map(media), atol=2e-3, rtol=2e-3)
    assert memory.served == 26 and network.seen == 26 * 2  # the second time by the line above alone


def test_another_run_asks_the_network_nothing_and_a_lost_block_alone_is_made_anew(tmp_path):
    sets = (pictures(21),)
    remember(Counting(), {"zoom": 1}, sets, (2, 2), tmp_path)
    again = Counting()
    remember(again, {"zoom": 1}, sets, (2, 2), tmp_path)
    assert again.seen == 0
    sorted(tmp_path.glob("maps-*.safetensors"))[1].unlink()
    remember(again, {"zoom": 1}, sets, (2, 2), tmp_path)
    assert again.seen == 8


@pytest.mark.parametrize("change", ["pictures", "settings", "weights", "grid"])
def test_whatever_maps_depend_on_makes_them_anew(tmp_path, change):
    remember(Counting(), {"zoom": 1}, (pictures(5),), (2, 2), tmp_path)
    network = Counting(2.0 if change == "weights" else 1.0)
    data = pictures(5, seed=3 if change == "pictures" else 0)
    remember(network, {"zoom": 2 if change == "settings" else 1}, (data,), (1, 1) if change == "grid" else (2, 2), tmp_path)
    assert network.seen == 5


def test_the_bytes_are_those_of_the_maps():
    assert map_bytes(60_000, 112, (8, 8)) == 2 * 60_000 * 112 * 64
