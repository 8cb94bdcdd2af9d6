"""Parameters that stored weights fill are not filled with random numbers before; all else is."""

import pytest
import torch
from torch import nn

from gentok.unfilled import Unfilled


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.table, self.convolution = nn.Linear(3, 4), nn.Embedding(5, 2), nn.Conv1d(2, 3, 3)
        self.map = nn.init.xavier_uniform_(nn.Parameter(torch.empty(6, 4)))
        self.norm = nn.LayerNorm(4)
        self.register_buffer("drawn", torch.empty(6).normal_(generator=torch.Generator().manual_seed(1)))
        nn.init.constant_(self.linear.bias, 2.0)


def test_parameters_cost_no_random_numbers_and_stored_weights_make_the_same_network():
    stored = Network().state_dict()
    before = torch.get_rng_state()
    with Unfilled():
        network = Network()
    after = torch.get_rng_state()
    assert torch.equal(before, after)
    assert torch.equal(network.drawn, stored["drawn"]) and bool((network.linear.bias == 2).all()) and bool((network.norm.weight == 1).all())
    drawn = (network.linear.weight, network.table.weight, network.convolution.weight, network.convolution.bias, network.map)
    assert all(bool(parameter.isnan().all()) for parameter in drawn), "what gets no value later would be seen"
    network.load_state_dict(stored)
    assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    "make", [lambda: torch.empty(3).normal_(), lambda: nn.Parameter(torch.empty(3)).data.normal_(), lambda: torch.randn(3)]
)
def test_what_is_no_parameter_yet_is_filled(make):
    torch.manual_seed(0)
    wanted = make()
    torch.manual_seed(0)
    with Unfilled():
        assert torch.equal(make(), wanted)
