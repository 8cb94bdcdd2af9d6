"""Block verification of several paths: one call is exact on every path, one path is block verification itself, several accept no less than
one, and wrong distributions of the selected path are told."""

import dataclasses

import numpy as np
import pytest
import torch
from enumeration import Run, Script, enumerated, gap
from kit import Case, TabularCausal, causal_distribution
from one_call_kit import OneCall, completed, fixed, worst

from gentok.samplers import verification
from gentok.samplers.block_paths import select_path
from gentok.samplers.draft_tree import DraftTree
from gentok.samplers.optimal_acceptance import optimal_acceptance
from gentok.samplers.optimal_siblings import winner
from gentok.samplers.speculation import ratio
from gentok.samplers.speculative import Speculative
from gentok.types import Line, Tokens, TokenSpec


def one_call(vocab, steps, paths, scale=1.0):
    """What one call fixes, and the joint distribution of all steps as it is and as it should be."""
    spec = TokenSpec((vocab,), Line(steps))
    model, small = TabularCausal(spec, "raster", scale=1.5), TabularCausal(spec, "raster", scale, seed=9)
    sampler, case = OneCall(ckpt=small, verify="block", branches=paths, window=steps), Case(0, Tokens.unknown(spec, 1).codes[0], steps)
    found, expected = enumerated(sampler, model, case), causal_distribution(model, case, sampler)
    return found, completed(found, expected), expected


SIZES = [(3, 2, 2), (2, 2, 3), pytest.param(4, 2, 2, marks=pytest.mark.slow), pytest.param(2, 3, 2, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("vocab", "steps", "paths"), SIZES)
def test_every_path_of_a_call_makes_the_joint_distribution(vocab, steps, paths):
    found, whole, expected = one_call(vocab, steps, paths)
    assert worst(whole, expected) < 1e-12
    assert fixed(found) > fixed(one_call(vocab, steps, 1)[0])


def test_every_path_of_an_item_makes_the_enumerated_distribution():
    spec = TokenSpec((2,), Line(2))
    model, case = TabularCausal(spec, "raster"), Case(0, Tokens.unknown(spec, 1).codes[0], 2)
    sampler = Speculative(ckpt=TabularCausal(spec, "raster", seed=9), verify="block", branches=2, window=2, temperature=0.8)
    assert gap(enumerated(sampler, model, case), causal_distribution(model, case, sampler)) < 1e-9


# ------------------------------------------------------------------------------------------------------------ what is accepted


def tables(vocab, steps, seed, kind):
    """p and q of every prefix, {ids: float64 [V]}: unlike, alike, equal, or with impossible ids."""
    rng, out = torch.Generator().manual_seed(seed), ({}, {})
    for depth in range(steps):
        for prefix in np.ndindex(*[vocab] * depth):
            p, q = (torch.randn(2, vocab, generator=rng, dtype=torch.float64) * 1.5).softmax(1)
            if kind != "unlike":
                q = {"alike": (p.log() + 0.2 * q).softmax(0), "equal": p.clone(), "sparse": q}[kind]
            if kind == "sparse":
                q[int(torch.randint(vocab, (1,), generator=rng))] = 0.0
                p[int(torch.randint(vocab, (1,), generator=rng))] = 0.0
                p, q = p / p.sum(), q / q.sum()
            out[0][prefix], out[1][prefix] = p, q
    return out


def accepted(vocab, steps, paths, tables_of):
    """The expected weights w of the selected path, float64 [steps]: the probabilities that block verification accepts 1, 2, ... drafts."""
    tree, (p_of, q_of) = DraftTree(steps, paths, 1), tables_of
    drafts = np.array(list(np.ndindex(*[vocab] * (paths * steps)))).reshape(-1, paths, steps)
    n = len(drafts)
    ids = torch.zeros(n, len(tree), 1, dtype=torch.int64)
    p, q = (torch.zeros(n, nodes, 1, vocab, dtype=torch.float64) for nodes in (tree.contexts, len(tree)))
    chance = np.ones(n)
    for k in range(paths):
        node = 0
        for j in range(steps):
            prefixes = [tuple(row) for row in drafts[:, k, :j]]
            p[:, node, 0] = torch.stack([p_of[prefix] for prefix in prefixes])
            node = 1 + j * paths + k
            q[:, node, 0] = torch.stack([q_of[prefix] for prefix in prefixes])
            ids[:, node, 0] = torch.from_numpy(drafts[:, k, j])
            chance *= q[np.arange(n), node, 0, drafts[:, k, j]].numpy()
    possible = chance > 0
    ids, p, q, chance = ids[possible], p[possible], q[possible], chance[possible]
    at, ways, total = torch.arange(len(ids)), np.zeros((len(ids), 0), dtype=np.int64), torch.zeros(steps, dtype=torch.float64)
    while len(at):
        run = Run(ways, torch.ones(1, dtype=torch.bool), None)
        drawn = torch.ones_like(ids[at], dtype=torch.bool)
        path = select_path(tree, p[at], ids[at], q[at], drawn, Script(run, torch.arange(len(at))))
        w, mass, done = torch.ones(len(at), dtype=torch.float64), torch.from_numpy(run.p * chance[at.numpy()]), torch.from_numpy(~run.ended)
        for j in range(steps):
            w = (w * ratio(path.p[:, j, 0], path.q[:, j + 1, 0], path.ids[:, j + 1, 0])).clamp(max=1)
            total[j] += (w * mass)[done].sum()
        rows = [np.repeat(r, (o > 0).sum(1)) for r, o in run.after]
        at, ways = at[torch.from_numpy(np.concatenate(rows))] if rows else at[:0], run.longer()
    return total


KINDS = ["unlike", "alike", "equal", "sparse"]


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_steps_several_paths_accept_no_less_than_one_and_the_first_step_as_often_as_any_rule_can(kind):
    for vocab, paths in ((2, 3), (3, 2)):
        for seed in range(4):
            given = tables(vocab, 2, seed, kind)
            one, several = accepted(vocab, 2, 1, given), accepted(vocab, 2, paths, given)
            assert several.sum() > one.sum() - 1e-12
            best = optimal_acceptance(given[0][()], given[1][()], paths, "with_replacement")
            assert (several[0] - best).abs() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_of_three_steps_several_paths_accept_no_less_than_one(kind):
    for seed in range(6):
        given = tables(2, 3, seed, kind)
        assert accepted(2, 3, 2, given).sum() > accepted(2, 3, 1, given).sum() - 1e-12


def test_one_path_is_block_verification():
    p_of, q_of = given = tables(3, 2, 5, "unlike")
    first = torch.minimum(p_of[()], q_of[()])
    second = [torch.minimum(first[x] * p_of[x,], q_of[()][x] * q_of[x,]).sum() for x in range(3)]
    assert (accepted(3, 2, 1, given) - torch.stack((first.sum(), sum(second)))).abs().max() < 1e-12


def test_the_winner_of_some_drafts_is_that_of_so_many_drafts():
    p, q = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(2)
    ids = torch.arange(21).view(7, 3) % 5
    two, law = winner(0.6 * p, ids, q, torch.tensor([True, False, True]).expand(7, -1))
    share, same = winner(0.6 * p, ids[:, ::2], q)
    assert (two[:, ::2] - share).abs().max() < 1e-12 and (two[:, 1] == 0).all() and (law - same).abs().max() < 1e-12
    assert (share.sum(1) - 1).abs().max() < 1e-12


# ------------------------------------------------------------------------------------------------------------------ mutants


def of_q(*given):
    """The selected path is verified as if it were the only one: as a draw of q."""
    path, q = select_path(*given), given[3]
    return dataclasses.replace(path, q=q[torch.arange(len(q))[:, None], path.nodes])


def largest(tree, p, ids, q, drawn, rng):
    """The largest path in the order of p / q wins, and is verified as the winner of the optimal rule."""
    path = select_path(tree, p, ids, q, drawn, rng)
    heads = tree.children[0].tolist()
    better = torch.stack([ratio(p[:, 0, 0], q[:, node, 0], ids[:, node, 0]) for node in heads], 1).argmax(1)
    shift = torch.tensor(heads)[better] - path.nodes[:, 1]  # nodes of a level lie beside each other
    nodes = torch.cat((path.nodes[:, :1], path.nodes[:, 1:] + shift[:, None]), 1)
    at = torch.arange(len(p))[:, None], nodes
    return dataclasses.replace(path, nodes=nodes, ids=ids[at], p=p[torch.arange(len(p))[:, None], nodes[:, :-1]])


@pytest.mark.parametrize("mutant", [of_q, largest])
def test_mutants_of_the_selection_are_told(mutant, monkeypatch):
    monkeypatch.setattr(verification, "select_path", mutant)
    _, whole, expected = one_call(3, 2, 2)
    assert worst(whole, expected) > 1e-3


def test_paths_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="verify=block without a generator's paths is for a chain: set branches=1; got branches=2"):
        Speculative(draft="table", branches=2, verify="block")
    with pytest.raises(ValueError, match="set depth=1; got depth=2"):
        Speculative(ckpt="a", branches=2, depth=2, verify="block")
    with pytest.raises(ValueError, match="verify=block needs siblings=with_replacement; got siblings=greedy"):
        Speculative(ckpt="a", branches=2, verify="block", siblings="greedy")
