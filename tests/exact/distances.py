"""How far each sampler's distribution is from its model's: `python tests/exact/distances.py` prints the rows
of the table of samplers in docs/components.md.

The model is a table with exact conditionals over V = 3 ids in N = 4 cells, drawn at random (standard
deviation 2 of the log-probabilities), so that any order of single draws has the same distribution and
whatever is missing is the sampler's own. Distances are total variation, 0 to 1; the floor is what as many
exact draws show. "Draws the model's distribution" is said of a sampler where it holds for every model; with
one cell per call, any order that does not look at the ids to be drawn does so for a model whose conditionals
agree. That of vectors is a mixture of two Gaussians, of which 20 parts that are as likely as one another are
told apart.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import kit
import torch
from any_order_kit import TabularAnyOrder, ordered_distribution
from entities_kit import Exact, mixture, mixture_cdf
from refines_kit import TabularRefines, refined_distribution
from scales_kit import TabularNextScale, learnt, scales_distribution
from self_speculative_kit import Tabular, window_distribution
from signs_kit import Signs, off

from gentok.generators.base import Causal
from gentok.layouts import Layout
from gentok.rng import RowRNG
from gentok.samplers.ancestral import Ancestral
from gentok.samplers.any_order import AnyOrderSampler
from gentok.samplers.any_subset import AnySubset
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.coarse_to_fine import CoarseToFineSampler
from gentok.samplers.confidence_threshold import ConfidenceThreshold
from gentok.samplers.corrector import Corrector
from gentok.samplers.entities import EntitiesSampler
from gentok.samplers.entropy_bounded import EntropyBounded
from gentok.samplers.first_hitting import FirstHitting
from gentok.samplers.grouped_jacobi import GroupedJacobi
from gentok.samplers.halton import Halton
from gentok.samplers.jacobi import Jacobi
from gentok.samplers.mar import MARSampler
from gentok.samplers.maskgit import MaskGIT
from gentok.samplers.next_scale import NextScaleSampler
from gentok.samplers.remasking import Remasking
from gentok.samplers.self_speculative import SelfSpeculativeSampler
from gentok.samplers.soundstorm import SoundStorm
from gentok.samplers.speculative import Speculative
from gentok.samplers.zipar import ZipAR
from gentok.types import UNKNOWN, Class, Condition, Raster, Tokens, TokenSpec

RIG = kit.TabularMasked(kit.SPECS["k1"], scale=2.0)
ANY = TabularAnyOrder(kit.SPECS["k1"], scale=2.0)
"""Conditionals of its own for every order, whose distribution is that of the order that is asked."""
WINDOWS = Tabular(kit.SPECS["k1"], scale=2.0)
"""Drafts and verifies, whose distribution is that of its windows."""

LABELS = TabularRefines("four cells", scale=2.0)
"""Two labels of three ids, which are independent given all labels."""
CHAIN = kit.TabularCausal(TokenSpec((3,), Raster(2, 2)), "raster", scale=2.0)
"""Four cells of two rows, each with distributions of its own for every history."""
SCALES = TabularNextScale(scale=2.0)
"""A scale of one cell and one of two by two; a network that learnt it stands for what a scale's own cells say of it."""
LEVELS = kit.TabularMasked(kit.SPECS["k2"], scale=2.0)
"""Two levels of three cells."""


class InOrder(Causal):
    """The rig's own chain rule in raster order: p(cell n | the cells before it)."""

    exact_slots = True

    def __init__(self, model: kit.TabularMasked):
        self.model, self.spec, self.condition_spec = model, model.spec, model.condition_spec
        self.layout, self.begin = Layout.of("raster", model.spec), torch.tensor([model.spec.vocab])

    def init_cache(self, condition: Condition, batch: int, capacity: int) -> dict[str, Any]:
        return {"condition": condition, "ids": torch.full((batch, capacity, 1), UNKNOWN)}

    def logits(self, ids: torch.Tensor, cache: Any, at: torch.Tensor, parents: torch.Tensor | None = None) -> torch.Tensor:
        rows, out = torch.arange(len(ids)), []
        for s in range(ids.shape[1]):
            cache["ids"][rows, at + s] = ids[:, s]
            codes = torch.full((len(ids), 1, self.spec.positions), UNKNOWN)
            before = torch.arange(self.spec.positions - 1) < (at + s)[:, None]
            fed = torch.nn.functional.pad(cache["ids"][:, 1:, 0], (0, self.spec.positions - cache["ids"].shape[1]), value=UNKNOWN)
            codes[:, 0, :-1] = torch.where(before, fed, codes[:, 0, :-1])
            distribution = self.model.logits(Tokens(codes, self.spec), cache["condition"])
            out.append(distribution[rows, 0, (at + s).clamp(max=self.spec.positions - 1)])
        return torch.stack(out, 1)[:, :, None]

    def commit(self, cache: Any, at: torch.Tensor, path: torch.Tensor | None = None) -> None:
        """Nothing to keep: ids are stored where they were fed."""


@dataclass
class Row:
    """One line of the table: mean over `n` samples of one unconditional-length item; calls: the mean per
    item."""

    name: str
    exact: bool
    calls: float
    distance: float
    floor: float


class Counted:
    """A sampler that remembers the mean number of calls per item of its last run."""

    def __init__(self, sampler: Any):
        self.sampler, self.calls = sampler, 0.0

    def __call__(self, *args: Any, **options: Any) -> Any:
        out = self.sampler(*args, **options)
        self.calls = float(out.calls.double().mean())
        return out


def measure(n: int = 200_000, seed: int = 0, only: tuple[str, ...] = ()) -> list[Row]:
    """The distances of all samplers on the rig (or of those named), for an item of which nothing is known."""
    cases = {model: kit.cases_of(model)[0] for model in (RIG, ANY, WINDOWS, LEVELS, LABELS, CHAIN, SCALES)}
    network = learnt(SCALES, cases[SCALES]) if not only or any("passes" in name for name in only) else SCALES
    runs = [
        ("autoregressive", AutoregressiveSampler(), InOrder(RIG)),
        ("jacobi, a window of four", Jacobi(window=4), CHAIN),
        ("jacobi, three branches", Jacobi(window=4, branches=3), CHAIN),
        ("speculative, drafts of another table", Speculative(ckpt=kit.TabularCausal(CHAIN.spec, "raster", seed=1), window=4), CHAIN),
        ("grouped_jacobi, one rank on either side, gap 0.15", GroupedJacobi(window=4, group=1), CHAIN),
        ("zipar, a lag of one cell in rows of two", ZipAR(lag=1), CHAIN),
        ("coarse_to_fine, two labels of three ids", CoarseToFineSampler(), LABELS),
        ("next_scale, cells of side 1 and 2", NextScaleSampler(), SCALES),
        ("next_scale, two passes", NextScaleSampler(repredict=[3]), network),
        ("next_scale, passes with top-k 3, 2 and 1", NextScaleSampler(repredict=[2, 1]), network),
        ("any_order", AnyOrderSampler(), ANY),
        ("any_subset, four cells drafted", AnySubset(k=4), ANY),
        ("self_speculative, windows of two cells", SelfSpeculativeSampler(window=2), WINDOWS),
        ("self_speculative, one window", SelfSpeculativeSampler(window=4), WINDOWS),
        ("first_hitting", FirstHitting(), RIG),
        ("first_hitting, two cells per call", FirstHitting(cells_per_call=2), RIG),
        ("first_hitting, two cells per call, second order", FirstHitting(cells_per_call=2, order=2), RIG),
        *((f"ancestral, {steps} step{'s' * (steps > 1)}", Ancestral(steps=steps), RIG) for steps in (1, 2, 4, 16, 64)),
        ("halton, one cell per call", Halton(steps=4), RIG),
        ("halton, two calls", Halton(steps=2), RIG),
        ("entropy_bounded, gamma 0", EntropyBounded(gamma=0.0), RIG),
        ("entropy_bounded, gamma 0.5", EntropyBounded(gamma=0.5), RIG),
        ("confidence_threshold, one cell per call", ConfidenceThreshold(threshold=1.1), RIG),
        ("confidence_threshold, 0.9", ConfidenceThreshold(), RIG),
        ("confidence_threshold, 0.6", ConfidenceThreshold(threshold=0.6), RIG),
        ("remasking, cap 0.2, 16 steps", Remasking(eta=0.2, steps=16), RIG),
        ("remasking, cap 0.2, 64 steps", Remasking(eta=0.2, steps=64), RIG),
        ("remasking, conf, 16 steps", Remasking(strategy="conf", steps=16), RIG),
        ("remasking, forward-backward, 16 steps", Remasking(strategy="forward_backward", steps=16), RIG),
        ("corrector, no rounds on a start of one call", Corrector(steps=0, start=4), RIG),
        ("corrector, 8 rounds of one cell on it", Corrector(steps=8, cells=1, start=4), RIG),
        ("corrector, 16 rounds of one cell on it", Corrector(steps=16, cells=1, start=4), RIG),
        ("corrector, 8 rounds of two cells on it", Corrector(steps=8, cells=2, start=4), RIG),
        ("maskgit, one cell per call, random order", MaskGIT(steps=4, schedule="linear", choice_temperature=1e9), RIG),
        ("maskgit, one cell per call", MaskGIT(steps=4, schedule="linear"), RIG),
        ("maskgit, one cell per call, most confident first", MaskGIT(steps=4, schedule="linear", choice_temperature=0.0), RIG),
        ("maskgit, two calls", MaskGIT(steps=2), RIG),
        ("maskgit, one call", MaskGIT(steps=1), RIG),
        ("soundstorm, one cell per call", SoundStorm(steps=3, later_steps=3, schedule="linear"), LEVELS),
        ("soundstorm, one call per level", SoundStorm(steps=1), LEVELS),
    ]
    rows = []
    for name, sampler, model in runs:
        if only and name not in only:
            continue
        counted = Counted(sampler)
        case = cases[SCALES] if model is network else cases.get(model, cases[RIG])
        if model is ANY:
            own = ordered_distribution(model, case, sampler)
        elif model is WINDOWS:
            own = window_distribution(model, case, sampler)
        elif model is CHAIN:
            own = kit.causal_distribution(model, case, AutoregressiveSampler())
        elif model in (SCALES, network):
            own = scales_distribution(model, case, NextScaleSampler())
        elif model is LABELS:
            own = refined_distribution(model, case, sampler)
        else:
            own = kit.masked_distribution(RIG if model not in cases else model, case)
        samples = kit.sample(counted, model, [case], n, seed)
        rows.append(Row(name, sampler.exact, counted.calls, kit.distance(samples, [own]), kit.floor([own], n)))
    return rows


def measure_flows(n: int, seed: int = 0) -> list[Row]:
    """The rows of the sampler of entities."""
    rows, p = [], 1 / 20
    for solver, steps in (("euler", 10), ("euler", 40), ("heun", 10), ("euler_maruyama", 10), ("euler_maruyama", 40)):
        out = EntitiesSampler(solver=solver, steps=steps)(Exact(mixture), Condition(), rng=RowRNG.of(seed, range(n)))
        share = torch.histc(mixture_cdf(out.tokens.values.double()), 20, 0.0, 1.0) / n
        floor = 0.5 * 20 * (2 / torch.pi * p * (1 - p) / n) ** 0.5
        distance = 0.5 * float((share - p).abs().sum())
        rows.append(Row(f"entities, {solver}, {steps} steps", False, float(out.calls[0]), distance, floor))
    return rows


def measure_vectors(n: int, seed: int = 0) -> list[Row]:
    """The rows of MAR's sampler."""
    rows, model = [], Signs()
    table = model.table[0]
    for steps, diffusion_steps in ((3, 40), (3, 10), (2, 40), (1, 40)):
        condition = Condition({"class": Class(torch.zeros(n, dtype=torch.int64))})
        out = MARSampler(steps=steps, diffusion_steps=diffusion_steps)(model, condition, rng=RowRNG.of(seed, range(n)))
        floor = 0.5 * float((2 / torch.pi * table * (1 - table) / n).sqrt().sum())
        distance = off(out.tokens.values[:, 0].double(), table)
        rows.append(Row(f"mar, {steps} steps, {diffusion_steps} of the diffusion", False, float(out.calls[0]), distance, floor))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=200_000, help="samples per sampler")
    n = parser.parse_args().n
    print("| sampler | draws the model's distribution | calls | measured distance (floor) |\n|---|---|---|---|")
    for row in [*measure(n), *measure_flows(n), *measure_vectors(n)]:
        print(f"| {row.name} | {'yes' if row.exact else 'no'} | {row.calls:.3g} | {row.distance:.4f} ({row.floor:.4f}) |")


if __name__ == "__main__":
    main()
