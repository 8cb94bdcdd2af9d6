"""Holes between known cells: what causal samplers draw is the model's own product of conditionals, in the order in which it fills them."""

import pytest
import torch
from kit import CLASSES, SPECS, Case, agreement, altered, causal_distribution, rejects
from random_weights import randomized

from gentok.generators.causal_masked import CausalMasked
from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.guided import guided
from gentok.samplers.jacobi import Jacobi
from gentok.samplers.speculative import Speculative
from gentok.types import UNKNOWN, Class, Condition, Raster, Tokens, TokenSpec

SPEC = {**SPECS, "raster": TokenSpec((3,), Raster(2, 3))}
HOLES = {"k1": [(1, 2), (0, 2)], "k2": [(1,), (0, 1)], "strided": [(0, 1), (2,)], "raster": [(0, 1, 4), (1, 2, 4, 5)]}
"""Positions that are to be filled in; what comes behind them is known."""
SAMPLERS = {
    "autoregressive": AutoregressiveSampler(),
    "jacobi": Jacobi(window=4),
    "jacobi, fresh": Jacobi(window=3, tail="fresh", temperature=0.7),
    "speculative": Speculative(draft="left", window=3, top_k=2),
}


def network(spec, layout="auto"):
    model = CausalMasked(SPEC[spec], CLASSES, width=16, depth=2, heads=2, layout=layout).double().eval()
    return randomized(model, len(spec))


def cases(spec):
    out = []
    for class_id, holes in enumerate(HOLES[spec]):
        here = SPEC[spec]
        codes = torch.stack([(torch.arange(here.positions) + k) % size for k, size in enumerate(here.vocab_sizes)])
        codes[:, list(holes)] = UNKNOWN
        out.append(Case(class_id, codes.where(here.exists(), -1), here.positions))
    return out


def drawn(model, case, sampler, n, seed=0):
    """int64 [n, K, N]."""
    known, condition = Tokens(case.codes.expand(n, -1, -1), model.spec), Condition({"class": Class(torch.full((n,), case.class_id))})
    return sampler(model, condition, rng=RowRNG.of(seed, torch.arange(n)), known=known).tokens.codes


def order(model, case, guidance=1.0):
    return guided(model, guidance).arranged(Tokens(case.codes[None], model.spec))


@pytest.mark.parametrize(
    ("spec", "layout", "sampler", "guidance"),
    [
        ("k1", "raster", "autoregressive", 1.0),
        ("k2", "level_major", "jacobi", 1.0),
        ("k2", "delayed", "autoregressive", 2.0),
        ("strided", "position_major", "jacobi, fresh", 1.0),
        ("raster", "raster", "speculative", 1.0),
        ("k2", "parallel", "jacobi", 2.0),
    ],
)
def test_holes_are_filled_by_the_models_product_of_conditionals(spec, layout, sampler, guidance):
    model, rule = network(spec, layout), SAMPLERS[sampler]
    distributions = [causal_distribution(order(model, case), case, rule, (guidance, "constant")) for case in cases(spec)]
    samples = [drawn(guided(model, guidance), case, rule, 1200, seed) for seed, case in enumerate(cases(spec))]
    assert agreement(samples, distributions) > 1e-3


def test_mutant_that_ignores_what_is_behind_a_hole_in_some_rows():
    model, case, rule = network("k1"), cases("k1")[0], SAMPLERS["autoregressive"]
    left_to_right = altered(model, lambda logits, *_: logits)  # the same network, which knows no order with holes
    blind = drawn(left_to_right, case, AutoregressiveSampler(forced=True), 1500, seed=1)
    truth = [causal_distribution(order(model, case), case, rule)]
    assert rejects([torch.cat((drawn(model, case, rule, 4500), blind))], truth)
