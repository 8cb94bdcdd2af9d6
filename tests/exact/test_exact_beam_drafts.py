"""Trees of drafts from a stochastic beam: the sequences are draws without replacement, one call of the sampler is exact on every path, and
a wrong order and free Gumbel numbers are told.

Gumbel numbers are continuous, and what a beam makes of them is a race: item i arrives at exp(-G_i), and what counts is who arrives next.
Given the order in which the nodes of a position arrived, the next to arrive among their children is

    a further child of a node that was seen, with a chance in proportion to the part of its q that has not arrived
    the first child of the node that comes next in that order, with a chance in proportion to all that is behind it

since exponential times forget. `arrivals` follows these choices one by one, in the place of `gumbels_below`; a test of its own compares
the two.
"""

import itertools

import numpy as np
import pytest
import torch
from enumeration import enumerated, gap
from kit import Case, TabularCausal, causal_distribution
from one_call_kit import OneCall, completed, fixed, worst
from scipy import stats

from gentok.rng import RowRNG
from gentok.samplers import beam_drafts, speculative
from gentok.samplers.beam_drafts import BeamDrafts, gumbels_below
from gentok.samplers.speculative import Speculative
from gentok.types import Line, Tokens, TokenSpec


def arrivals(width):
    """As gumbels_below, but for what matters of its numbers: those of the first `width` arrivals are 0, -1, -2, ..."""

    def race(log_q, largest, rng):
        rows, nodes, vocab = log_q.shape
        row = torch.arange(rows)
        order = largest.argsort(dim=1, descending=True, stable=True)
        left = log_q.exp().masked_fill((largest == -torch.inf)[..., None], 0.0).gather(1, order[..., None].expand(-1, -1, vocab))
        behind = (1 - left.sum(2).cumsum(1)).clamp(min=0)  # all that arrives later than the first nodes of the order, in the beam or not
        behind[behind < 1e-12] = 0.0
        seen, out = torch.zeros(rows, dtype=torch.int64), torch.full_like(left, -torch.inf)
        for number in range(width):
            open_ = torch.arange(nodes) < seen[:, None]
            here = (left * open_[..., None]).flatten(1).sum(1)
            later = torch.where(seen > 0, behind[row, (seen - 1).clamp(min=0)], 1.0)
            again = (rng.uniform(1) < (here / (here + later).clamp(min=1e-300))[:, None])[:, 0]
            later_node = torch.arange(nodes) == seen[:, None]
            chosen = torch.where(again[:, None, None], left * open_[..., None], left * later_node[..., None]).flatten(1)
            some = chosen.sum(1) > 0
            ids = rng.run.choose(torch.where(some[:, None], chosen, torch.eye(nodes * vocab)[0].double()).log()[:, None], rng)[:, 0]
            out.flatten(1)[row[some], ids[some]] = float(-number)
            left.flatten(1)[row[some], ids[some]] = 0.0
            seen = torch.where(some & ~again, seen + 1, seen)
        return torch.full_like(out, -torch.inf).scatter(1, order[..., None].expand(-1, -1, vocab), out)

    return race


def beam_of(vocab, steps, width, **settings):
    spec = TokenSpec((vocab,), Line(steps))
    model, small = TabularCausal(spec, "raster", scale=1.5), TabularCausal(spec, "raster", seed=9)
    sampler = OneCall(ckpt=small, tree="beam", branches=width, window=steps, **settings)
    return sampler, model, Case(0, Tokens.unknown(spec, 1).codes[0], steps)


def one_call(monkeypatch, vocab, steps, width, **settings):
    """What one call fixes, and the joint distribution of all steps as it is and as it should be."""
    sampler, model, case = beam_of(vocab, steps, width, **settings)
    monkeypatch.setattr(beam_drafts, "gumbels_below", arrivals(width))
    found, expected = enumerated(sampler, model, case), causal_distribution(model, case, sampler)
    return found, completed(found, expected), expected


SIZES = [(2, 3, 2), (3, 3, 2), (2, 3, 3), pytest.param(4, 3, 2, marks=pytest.mark.slow), pytest.param(2, 4, 2, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("vocab", "steps", "width"), SIZES)
def test_every_path_of_a_call_makes_the_joint_distribution(vocab, steps, width, monkeypatch):
    found, whole, expected = one_call(monkeypatch, vocab, steps, width)
    assert worst(whole, expected) < 1e-12
    assert 1 < fixed(found) < steps


def test_every_path_of_an_item_makes_the_enumerated_distribution(monkeypatch):
    spec = TokenSpec((3,), Line(2))
    sampler = Speculative(ckpt=TabularCausal(spec, "raster", seed=9), tree="beam", branches=2, window=2, temperature=0.8)
    model, case = TabularCausal(spec, "raster"), Case(0, Tokens.unknown(spec, 1).codes[0], 2)
    monkeypatch.setattr(beam_drafts, "gumbels_below", arrivals(2))
    assert gap(enumerated(sampler, model, case), causal_distribution(model, case, sampler)) < 1e-9


# ------------------------------------------------------------------------------------------------------------- the beam itself

FIRST = torch.tensor([0.5, 0.35, 0.15], dtype=torch.float64)
SECOND = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.6, 0.1]], dtype=torch.float64)


def beams(n, below):
    """n beams of two sequences of FIRST, SECOND: int64 [n, 2, 2]; below: as gumbels_below."""
    rng, zero = RowRNG.of(0, range(n)), torch.zeros(n, 1, dtype=torch.float64)
    best = below(FIRST.log().expand(n, 1, 3), zero, rng)[:, 0].topk(2, 1)
    log_q = (FIRST[best.indices, None] * SECOND[best.indices]).log()
    kept = below(log_q, best.values, rng).flatten(1).topk(2, 1).indices
    return torch.stack((best.indices.gather(1, kept // 3), kept % 3), 2)


def p_value(found):
    """Of the pairs of sequences, against two draws without replacement."""
    q = (FIRST[:, None] * SECOND).flatten().numpy()
    counts = np.bincount(((found[:, 0, 0] * 3 + found[:, 0, 1]) * 9 + found[:, 1, 0] * 3 + found[:, 1, 1]).numpy(), minlength=81)
    expected = np.array([0.0 if i == j else q[i] * q[j] / (1 - q[i]) for i, j in itertools.product(range(9), repeat=2)]) * len(found)
    assert counts[expected == 0].sum() == 0
    counts, expected = counts[expected > 0], expected[expected > 0]
    return stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue


def free(log_q, largest, rng):
    """Gumbel numbers that do not know the largest of them."""
    return (log_q + rng.gumbel(*log_q.shape[1:])).masked_fill((largest == -torch.inf)[..., None], -torch.inf)


def shifted(log_q, largest, rng):
    """Free numbers, moved until the largest is right."""
    out = free(log_q, largest, rng)
    return out - out.amax(-1, keepdim=True) + largest[..., None]


def test_a_beam_draws_sequences_without_replacement():
    assert p_value(beams(40_000, gumbels_below)) > 1e-3


@pytest.mark.parametrize("mutant", [free, shifted])
def test_mutants_of_the_conditioned_numbers_are_told(mutant):
    assert p_value(beams(40_000, mutant)) < 1e-6


def test_numbers_have_the_largest_that_they_are_told_and_none_where_there_is_nothing():
    log_q = torch.tensor([[[0.2, 0.0, 0.8], [1e-300, 0.5, 0.5], [0.0, 0.0, 0.0]]], dtype=torch.float64).log().expand(200, -1, -1)
    largest = torch.tensor([[-3.0, -torch.inf, 2.0]], dtype=torch.float64).expand(200, -1)
    out = gumbels_below(log_q, largest, RowRNG.of(1, range(200)))
    assert not out.isnan().any() and (out[:, 0].amax(1) == -3.0).all() and (out[:, 0, 1] == -torch.inf).all()
    assert (out[:, 1:] == -torch.inf).all()


# ------------------------------------------------------------------------------------------------------------------ mutants


class ByProbability(BeamDrafts):
    """Siblings are told in the order of their probability, as if they had been drawn in it."""

    def propose(self, rows):
        draft, tree = super().propose(rows), self.tree
        for row, context in itertools.product(range(len(rows)), range(len(tree))):
            nodes = tree.children[row, context]
            nodes = nodes[nodes >= 0]
            if len(nodes) < 2:
                continue
            whole = draft.q[row, nodes[0], 0]
            order = nodes[whole[draft.ids[row, nodes, 0]].argsort(descending=True, stable=True)]
            tree.children[row, context, : len(order)] = order
            for node in order.tolist():
                draft.q[row, node, 0] = whole / whole.sum()
                whole = whole.scatter(0, draft.ids[row, node], 0.0)
        return draft


def test_a_mutant_that_tells_siblings_in_the_order_of_their_probability_is_told(monkeypatch):
    monkeypatch.setattr(speculative, "BeamDrafts", ByProbability)
    _, whole, expected = one_call(monkeypatch, 4, 2, 2)
    assert worst(whole, expected) > 1e-3


def test_a_beam_needs_a_generator_and_siblings_without_replacement():
    with pytest.raises(ValueError, match="tree=beam grows drafts of a generator: set sampler.ckpt, branches=2 or more"):
        Speculative(tree="beam", branches=2)
    with pytest.raises(ValueError, match="tree=beam draws siblings without replacement; got siblings=greedy"):
        Speculative(tree="beam", ckpt="a", branches=2, siblings="greedy")
