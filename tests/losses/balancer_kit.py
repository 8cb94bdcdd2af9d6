"""A small network whose losses are balanced; also a script of two gloo processes with half of every batch each:

python balancer_kit.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from gentok.losses.balancer import Balancer

WEIGHTS = {"a": 3.0, "b": 1.0}


class Codec(nn.Module):
    """A network with a loss inside: x -> (reconstruction, commitment)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.encoder(x)
        return self.decoder(z.tanh())[:, None], 0.25 * (z - z.detach().round()).square().mean()


def batches(steps: int = 4, rows: int = 8) -> list[torch.Tensor]:
    return [torch.randn(rows, 6, generator=torch.Generator().manual_seed(i)) for i in range(steps)]


def losses(made: torch.Tensor, x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"a": (made[:, 0] - x).abs().mean(), "b": (made[:, 0] - x).square().mean()}


def descend(network: nn.Module) -> None:
    with torch.no_grad():
        for p in network.parameters():
            p -= 0.05 * p.grad


def gradients(balancer, scale: float = 1.0, network=None, data=None, average=lambda gradient: gradient) -> list[list[torch.Tensor]]:
    """Of the network's parameters, step by step; the loss "b" is multiplied by `scale`, and gradients are what `average` makes of them."""
    out, network = [], network or Codec()
    for x in data or batches():
        made, commitment = network(x)
        terms = {**losses(made, x), "commitment": commitment}
        terms["b"] = scale * terms["b"]
        network.zero_grad()
        balancer(terms, made)[0].backward()
        for p in network.parameters():
            p.grad = average(p.grad)
        out.append([p.grad.clone() for p in network.parameters()])
        descend(network)
    return out


def main(rank: int, folder: Path) -> None:
    from gentok.distributed import all_sum

    balancer = Balancer(WEIGHTS)  # before there is a process group
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    half = slice(4 * rank, 4 * rank + 4)
    found = gradients(balancer, data=[x[half] for x in batches()], average=lambda gradient: all_sum(gradient) / 2)
    torch.save({"gradients": found, "state": balancer.state_dict()}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    from forked import on_processes  # of tests/training

    on_processes(lambda rank: main(rank, Path(sys.argv[1])))
