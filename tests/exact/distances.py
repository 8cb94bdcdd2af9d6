"""How far each sampler's law is from its model's: `python tests/exact/distances.py` prints the rows of the README's table of samplers.

The model is a table with exact conditionals over V = 3 ids in N = 4 cells, drawn at random (standard deviation 2 of the
log-probabilities), so that any order of single draws has the same law and whatever is missing is the sampler's own. Distances are
total variation, 0 to 1; the floor is what as many exact draws show.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import kit
import torch

from gentok.generators.base import Causal
from gentok.layouts import Layout
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.maskgit import MaskGIT
from gentok.tokens import UNKNOWN, Condition, Tokens

RIG = kit.TabularMasked(kit.SPECS["k1"], scale=2.0)


class InOrder(Causal):
    """The rig's own chain rule in raster order: p(cell n | the cells before it)."""

    exact_slots = True

    def __init__(self, model: kit.TabularMasked):
        self.model, self.spec, self.condition_spec = model, model.spec, model.condition_spec
        self.layout, self.begin = Layout.of("raster", model.spec), torch.tensor([model.spec.vocab])

    def start(self, condition: Condition, batch: int, capacity: int) -> dict[str, Any]:
        return {"condition": condition, "ids": torch.full((batch, capacity, 1), UNKNOWN)}

    def logits(self, ids: torch.Tensor, cache: Any, at: torch.Tensor, parents: torch.Tensor | None = None) -> torch.Tensor:
        rows, out = torch.arange(len(ids)), []
        for s in range(ids.shape[1]):
            cache["ids"][rows, at + s] = ids[:, s]
            codes = torch.full((len(ids), 1, self.spec.positions), UNKNOWN)
            before = torch.arange(self.spec.positions - 1) < (at + s)[:, None]
            fed = torch.nn.functional.pad(cache["ids"][:, 1:, 0], (0, self.spec.positions - cache["ids"].shape[1]), value=UNKNOWN)
            codes[:, 0, :-1] = torch.where(before, fed, codes[:, 0, :-1])
            law = self.model.logits(Tokens(codes, self.spec), cache["condition"])
            out.append(law[rows, 0, (at + s).clamp(max=self.spec.positions - 1)])
        return torch.stack(out, 1)[:, :, None]

    def commit(self, cache: Any, at: torch.Tensor, path: torch.Tensor | None = None) -> None:
        """Nothing to keep: ids are stored where they were fed."""


@dataclass
class Row:
    """One line of the table: mean over `n` samples of one unconditional-length item."""

    name: str
    exact: bool
    calls: int
    distance: float
    floor: float


def measure(n: int = 200_000, seed: int = 0) -> list[Row]:
    """The distances of all samplers on the rig, for an item of which nothing is known."""
    case = kit.cases_of(RIG)[0]
    law = kit.masked_law(RIG, case)
    runs = [
        ("autoregressive", AutoregressiveSampler(), InOrder(RIG), 4),
        ("maskgit, one cell per call, random order", MaskGIT(steps=4, schedule="linear", choice_temperature=1e9), RIG, 4),
        ("maskgit, one cell per call", MaskGIT(steps=4, schedule="linear"), RIG, 4),
        ("maskgit, one cell per call, most confident first", MaskGIT(steps=4, schedule="linear", choice_temperature=0.0), RIG, 4),
        ("maskgit, two calls", MaskGIT(steps=2), RIG, 2),
        ("maskgit, one call", MaskGIT(steps=1), RIG, 1),
    ]
    rows = []
    for name, sampler, model, calls in runs:
        samples = kit.sample(sampler, model, [case], n, seed)
        rows.append(Row(name, type(sampler).exact, calls, kit.distance(samples, [law]), kit.floor([law], n)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=200_000, help="samples per sampler")
    n = parser.parse_args().n
    print("| sampler | draws the model's law | calls | measured distance (floor) |\n|---|---|---|---|")
    for row in measure(n):
        print(f"| {row.name} | {'yes' if row.exact else 'no'} | {row.calls} | {row.distance:.4f} ({row.floor:.4f}) |")


if __name__ == "__main__":
    main()
