"""Rules for several drafts of one step, over every tuple of drafts and every branch: what is drawn is p to the last digits,
nothing accepts more than the optimum, and those that claim it reach it. Wrong forms of the drafts are told."""

import itertools

import pytest
import torch

from gentok.samplers.greedy_siblings import GreedySiblings
from gentok.samplers.k_seq import KSeq
from gentok.samplers.optimal_acceptance import SIBLINGS, optimal_acceptance
from gentok.samplers.optimal_siblings import OptimalSiblings
from gentok.samplers.recursive_rejection import RecursiveRejection
from gentok.samplers.speculative import Speculative

RULES = [(rule, siblings) for rule in (RecursiveRejection, KSeq, OptimalSiblings, GreedySiblings) for siblings in rule.siblings]
REACH = {OptimalSiblings, GreedySiblings}
"""Rules that accept as often as any can."""


def pairs(vocab, seed):
    """p and q of some kinds: unlike, alike, equal, with impossible ids of the one and the other, and one sure id."""
    rng = torch.Generator().manual_seed(seed)

    def any_of(scale):
        return (torch.randn(vocab, generator=rng, dtype=torch.float64) * scale).softmax(0)

    p, q = any_of(1.5), any_of(1.5)
    holes = torch.rand(2, vocab, generator=rng, dtype=torch.float64) < 0.4
    holes[0, 0] = holes[1, -1] = False
    sparse = [x.masked_fill(hole, 0.0) / x.masked_fill(hole, 0.0).sum() for x, hole in zip((p, q), holes)]
    sure = torch.eye(vocab, dtype=torch.float64)[0]
    near = (p.log() + 0.3 * q).softmax(0)
    yield from ((p, q), (p, near), (p, p.clone()), (sparse[0], q), (p, sparse[1]), tuple(sparse), (p, sure), (sure, q))


def tuples(q, k, siblings):
    """All tuples of k drafts: ids int64 [n, k], the distribution of each float64 [n, k, V], and the tuples' probabilities [n]."""
    vocab, found = len(q), []

    def extend(ids, of, p):
        if len(ids) == k:
            found.append((ids, torch.stack(of), p))
            return
        now = q.clone()
        if siblings != "with_replacement":
            now[ids] = 0
        if siblings == "greedy" and len(ids) < k - 1 and now.sum() > 0:
            now = torch.eye(vocab, dtype=q.dtype)[now.argmax()]
        now = now / now.sum() if now.sum() > 0 else torch.eye(vocab, dtype=q.dtype)[ids[-1]]
        for x in now.nonzero()[:, 0].tolist():
            extend([*ids, x], [*of, now], p * now[x].item())

    extend([], [], 1.0)
    ids, of, p = zip(*found)
    return torch.tensor(ids), torch.stack(of), torch.tensor(p, dtype=torch.float64)


def drawn(rule, p, q, k, siblings, change=lambda ids, of: (ids, of)):
    """What comes out, float64 [V], and the probability that a draft was accepted. change: of the drafts that the rule is told."""
    ids, of, chance = tuples(q, k, siblings)
    ids, of = change(ids, of)
    accepts, rest = rule().chances(p.expand(len(ids), -1), ids, of)
    out, left = torch.zeros_like(p), chance
    for i in range(k):
        now = left * accepts[:, i].clamp(max=1)
        out.index_add_(0, ids[:, i], now)
        left = left - now
    mass = rest.sum(-1, keepdim=True)
    return out + (left[:, None] * torch.where(mass > 0, rest / mass, p)).sum(0), 1 - left.sum()


@pytest.mark.parametrize(("rule", "siblings"), RULES)
def test_every_rule_draws_p_over_all_drafts_and_accepts_no_more_than_the_optimum(rule, siblings):
    for vocab, k in ((2, 2), (3, 3), (4, 2), (5, 3), (6, 1), (6, 2), (6, 3)):
        for p, q in pairs(vocab, seed=10 * vocab + k):
            out, accepted = drawn(rule, p, q, k, siblings)
            best = optimal_acceptance(p, q, k, siblings)
            assert (out - p).abs().max() < 1e-12, (p, q, k)
            assert accepted <= best + 1e-12, (p, q, k)
            if rule in REACH or k == 1:
                assert (accepted - best).abs() < 1e-12, (p, q, k)


@pytest.mark.parametrize("siblings", SIBLINGS)
def test_the_optimum_is_that_of_all_sets_of_ids(siblings):
    for vocab, k in ((2, 3), (3, 2), (4, 3), (5, 2), (6, 3)):
        for p, q in pairs(vocab, seed=vocab + 100 * k):
            ids, _, chance = tuples(q, k, siblings)
            best = 1.0
            for members in itertools.product([False, True], repeat=vocab):
                inside = torch.tensor(members)
                best = min(best, float(p[inside].sum() + 1 - chance[inside[ids].all(1)].sum()))
            assert abs(best - optimal_acceptance(p, q, k, siblings).item()) < 1e-12, (p, q, k)


def in_another_order(ids, of):
    """The same drafts as if they had been drawn in the order of their numbers."""
    ids, now = ids.sort(1).values, of[:, 0]
    out = []
    for x in ids.unbind(1):
        out.append(now)
        now = now.scatter(1, x[:, None], 0.0)
        now = now / now.sum(1, keepdim=True)
    return ids, torch.stack(out, 1)


@pytest.mark.parametrize(
    ("rule", "siblings", "change"),
    [
        (RecursiveRejection, "without_replacement", in_another_order),
        (RecursiveRejection, "without_replacement", lambda ids, of: (ids, of[:, :1].expand_as(of))),
        (KSeq, "without_replacement", lambda ids, of: (ids, of)),
        (OptimalSiblings, "without_replacement", lambda ids, of: (ids, of)),
        (GreedySiblings, "greedy", lambda ids, of: (ids, of[:, -1:] * 0 + of.mean(1, keepdim=True))),
    ],
    ids=["sorted siblings", "q that is not renormalised", "distinct drafts by k_seq", "distinct drafts by optimal", "greedy by a mean q"],
)
def test_mutants_of_the_drafts_are_told(rule, siblings, change):
    p, q = next(pairs(5, seed=2))
    out, _ = drawn(rule, p, q, 3, siblings, change)
    assert 1e-3 < 0.5 * (out - p).abs().sum() < 0.5


@pytest.mark.parametrize("rule", [OptimalSiblings, KSeq])
@pytest.mark.parametrize("k", [2, 7])
def test_large_vocabularies_keep_their_sums(rule, k):
    """Of distributions like those of a model, the acceptance by the rule's own chances lies at the optimum or below."""
    rng = torch.Generator().manual_seed(k)
    p = (3 * torch.randn(300, generator=rng, dtype=torch.float64)).softmax(0).expand(500, -1)
    q = (p.log() + torch.randn(300, generator=rng, dtype=torch.float64)).softmax(-1)
    ids = torch.multinomial(q, k, replacement=True, generator=rng)
    chances, rest = rule().chances(p, ids, q[:, None].expand(-1, k, -1))
    assert chances.isfinite().all() and rest.isfinite().all() and (rest >= 0).all()
    accepted = 1 - (1 - chances.clamp(max=1)).prod(1)
    best, error = optimal_acceptance(p[0], q[0], k, "with_replacement"), accepted.std() / len(ids) ** 0.5
    assert accepted.mean() < best + 4 * error + 1e-9
    assert rule is KSeq or (accepted.mean() - best).abs() < 4 * error + 1e-9


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"verify": "k_seq"}, "verify=k_seq is for drafts that a generator draws: set sampler.ckpt, and own=false"),
        ({"siblings": "greedy", "draft": "table"}, "siblings=greedy is for drafts that a generator draws"),
        ({"verify": "optimal", "siblings": "greedy", "ckpt": "a"}, "verify=optimal needs siblings=with_replacement; got siblings=greedy"),
        ({"verify": "block", "siblings": "greedy", "ckpt": "a"}, "verify=block is for a chain, without siblings; got siblings=greedy"),
        ({"tree": "dynamic", "ckpt": "a"}, "tree=dynamic grows drafts of a generator: set sampler.ckpt, branches=2 or more"),
        ({"tree": "layered", "ckpt": "a", "branches": 2, "siblings": "greedy"}, "tree=layered draws siblings without replacement"),
        ({"verify": "greedy", "own": True, "ckpt": "a"}, "own=true needs verify=standard"),
    ],
)
def test_rules_and_siblings_that_do_not_go_together_are_refused(settings, line):
    with pytest.raises(ValueError, match=line):
        Speculative(**settings)
