"""Hard constraints: E[w 1{item = x}] = p(x) valid(x), of one id by enumeration of all orders, of items by large samples."""

import itertools

import numpy as np
import pytest
import torch
from kit import SPECS, TabularCausal, _TableCache, alone, cases_of, causal_distribution, sample

from gentok.grammar import Grammar
from gentok.rng import RowRNG
from gentok.samplers import rejection
from gentok.samplers.constrained import Constrained
from gentok.samplers.constraints import follows, whole
from gentok.samplers.rejection import weighted_rejection
from gentok.types import Class, Condition, Line, Tokens, TokenSpec

# ------------------------------------------------------------------------------------------------------------------ one id


def weighted(p, valid, method=weighted_rejection):
    """E[w 1{y = x}] float64 [V] and E[asked], over every order in which ids may come: Plackett and Luce."""
    p = torch.tensor(p, dtype=torch.float64)
    possible = p.nonzero()[:, 0].tolist()
    orders = torch.tensor([[*order, *(i for i in range(len(p)) if i not in possible)] for order in itertools.permutations(possible)])
    ordered = p[orders]
    left = ordered.flip(1).cumsum(1).flip(1)
    chance = torch.where(ordered > 0, ordered / left, 1.0).prod(1)
    assert abs(chance.sum() - 1) < 1e-12
    ids, log_weight, asked = method(p.log().expand(len(orders), -1), orders, lambda rows, ids: torch.tensor(valid)[ids])
    out = torch.zeros(len(p), dtype=torch.float64).index_add(0, ids, chance * log_weight.exp())
    return out, float((chance * asked).sum())


def cases():
    random = torch.Generator().manual_seed(0)
    for size in range(1, 7):
        for sharpness in (1.0, 8.0):
            p = (sharpness * torch.randn(size, generator=random, dtype=torch.float64)).softmax(0)
            if size > 3:
                p[1] = 0
                p /= p.sum()
            for valid in itertools.islice(itertools.product((False, True), repeat=size), 0, None, 1 + size // 4):
                yield p.tolist(), valid


def test_the_weighted_distribution_of_an_id_is_p_where_it_is_valid():
    for p, valid in cases():
        found, asked = weighted(p, valid)
        assert (found - torch.tensor(p, dtype=torch.float64) * torch.tensor(valid)).abs().max() < 1e-12, (p, valid)
        assert asked <= sum(q > 0 for q in p) + 1e-9


def nothing(p, left, rows, j):
    return torch.zeros(len(rows), dtype=torch.float64)


def of_p_alone(p, left, rows, j):
    return p[rows, j].log()


@pytest.mark.parametrize(
    ("factor", "wrong"), [("of_lone_choice", nothing), ("of_refusal", nothing), ("of_lone_choice", of_p_alone)]
)
def test_mutants_of_the_weight_are_told_by_enumeration(factor, wrong, monkeypatch):
    monkeypatch.setattr(rejection, factor, wrong)
    p, valid = [0.4, 0.3, 0.2, 0.1], [True, False, True, False]
    assert (weighted(p, valid)[0] - torch.tensor(p) * torch.tensor(valid)).abs().max() > 1e-3


def test_mutant_for_which_no_choice_has_a_valid_one_behind_it_is_told_by_enumeration():
    def once(log_p, order, accept):
        drawn = torch.zeros(len(log_p), dtype=torch.bool)

        def first_answers(rows, ids):
            good = accept(rows, ids) & ~drawn[rows]
            drawn[rows[good]] = True
            return good

        return weighted_rejection(log_p, order, first_answers)

    p, valid = [0.4, 0.3, 0.2, 0.1], [True, False, True, False]
    assert (weighted(p, valid, once)[0] - torch.tensor(p) * torch.tensor(valid)).abs().max() > 1e-3


def test_few_ids_are_asked_about():
    assert weighted([0.9, 0.05, 0.03, 0.02], [True] * 4)[1] == pytest.approx(2.0)


# ------------------------------------------------------------------------------------------------------------------- items


class Moving(TabularCausal):
    moves_rows = True

    def take(self, cache, rows):
        return _TableCache(cache.state[rows].clone(), cache.fed[rows].clone())


def no_twins(codes, level, position):
    """An id is never that of the cell before it, and the last one is 0 or 1: a beginning may lead into a corner."""
    rows = torch.arange(len(codes))
    now, before = codes[rows, 0, position], codes[rows, 0, (position - 1).clamp(min=0)]
    return ((now != before) | (position == 0)) & ((now < 2) | (position < codes.shape[2] - 1))


def valid_items(outcomes, free):
    """Whether no cell that was drawn breaks `no_twins`."""
    good = torch.ones(len(outcomes), dtype=torch.bool)
    for _, n in free.nonzero().tolist():
        good &= no_twins(outcomes, torch.zeros(len(outcomes), dtype=torch.int64), torch.full((len(outcomes),), n))
    return good


def weighted_items(sampler, n, weights=True):
    """The largest deviation, in standard errors, of the mean of w 1{item = x} from p(x) valid(x), over all cases and x, and of the mean of
    w from the probability of the constraint."""
    model = Moving(SPECS["k1"], "raster")
    worst = 0.0
    for case in cases_of(model)[:3:2]:
        distribution = causal_distribution(model, case, Constrained())
        target = distribution.p * valid_items(distribution.outcomes, case.codes == -2).numpy()
        condition = Condition({"class": Class(torch.full((n,), case.class_id))})
        known = Tokens(case.codes.expand(n, -1, -1).clone(), model.spec)
        lengths = torch.full((n,), case.length)
        out = sampler(model, condition, rng=RowRNG.of(1, torch.arange(n)), known=known, lengths=lengths)
        w = out.log_weight.exp().numpy() if weights else np.ones(n)
        assert valid_items(out.tokens.codes[w > 0], case.codes == -2).all()
        at = np.array([distribution.index[row.contiguous().numpy().tobytes()] for row in out.tokens.codes])
        for x, want in enumerate(target):
            values = w * (at == x)
            if want * n > 20:
                worst = max(worst, abs(values.mean() - want) / (values.std() / n**0.5 + 1e-12))
            elif want == 0:
                assert not values.any()
        worst = max(worst, abs(w.mean() - target.sum()) / (w.std() / n**0.5 + 1e-12))
    return worst


@pytest.mark.parametrize("particles, below", [(1, 0.5), (4, 0.5), (3, 1.0), (4, 0.0)])
def test_weighted_items_follow_the_model_given_the_constraint(particles, below):
    assert weighted_items(Constrained(accept=no_twins, particles=particles, resample_below=below), 4000) < 4.5


def test_mutant_without_weights_is_biased():
    assert weighted_items(Constrained(accept=no_twins), 4000, weights=False) > 6


def test_mutant_that_forgets_what_was_gathered_before_resampling(monkeypatch):
    from gentok.samplers import constrained

    real = constrained._Cloud.resample

    def forgetful(self, drawn):
        before = self.total.clone()
        real(self, drawn)
        self.total = before

    monkeypatch.setattr(constrained._Cloud, "resample", forgetful)
    assert weighted_items(Constrained(accept=no_twins, particles=4, resample_below=1.0), 2000) > 6


def test_more_particles_know_the_probability_of_a_constraint_better():
    spec = TokenSpec((6,), Line(5))
    model, n = Moving(spec), 400
    condition = Condition({"class": Class(torch.zeros(n, dtype=torch.int64))})
    rare = lambda codes, level, position: codes[torch.arange(len(codes)), 0, position] % 3 == 0  # noqa: E731
    spread = {}
    for particles in (1, 8):
        out = Constrained(accept=rare, particles=particles)(model, condition, rng=RowRNG.of(2, torch.arange(n)))
        spread[particles] = float(out.log_weight.exp().std() / out.log_weight.exp().mean())
        assert out.stats["asked_per_cell"] < 6
    assert spread[8] < spread[1] / 1.5


@pytest.mark.parametrize("particles", [1, 3])
def test_a_row_alone_equals_the_row_in_a_batch(particles):
    together, by_itself = alone(Constrained(accept=no_twins, particles=particles), Moving(SPECS["k1"]), cases_of(Moving(SPECS["k1"])), 4)
    assert torch.equal(together, by_itself)


def test_allowed_ids_a_grammar_and_a_judge_of_whole_items_are_met():
    model = Moving(SPECS["k1"])
    [codes] = sample(Constrained(allowed=[0, 2]), model, cases_of(model)[:1], 50)
    assert set(codes.unique().tolist()) == {0, 2}
    turns = TokenSpec((3,), Line(4), parts=(("even", 0, 1), ("odd", 1, 3)), grammar=((1, -1), (-1, 0)))  # one part, then the other
    [codes] = sample(Constrained(accept=follows(Grammar(turns))), model, cases_of(model)[:1], 50)
    assert torch.equal(codes[:, 0] == 0, torch.tensor([True, False] * 2).expand(50, 4))
    judge = Constrained(accept=whole(lambda codes: codes.sum((1, 2)) % 3 == 0), particles=2)
    condition, rng = Condition({"class": Class(torch.zeros(50, dtype=torch.int64))}), RowRNG.of(0, torch.arange(50))
    out = judge(model, condition, rng=rng)
    assert (out.tokens.codes.sum((1, 2)) % 3 == 0)[out.log_weight > -torch.inf].all()


def test_an_item_that_cannot_be_valid_has_weight_0_and_what_does_not_fit_is_one_line():
    model, condition = Moving(SPECS["k1"]), Condition({"class": Class(torch.zeros(1, dtype=torch.int64))})
    for particles in (1, 2):
        never = Constrained(accept=lambda codes, level, position: torch.zeros_like(level, dtype=torch.bool), particles=particles)
        assert never(model, condition, rng=RowRNG([0])).log_weight.tolist() == [-torch.inf]
    with pytest.raises(ValueError, match="allowed: there is no id 7; these tokens have 0 to 2"):
        Constrained(allowed=[7])(model, condition, rng=RowRNG([0]))
    with pytest.raises(ValueError, match="particles=2.*set particles=1"):
        Constrained(particles=2)(TabularCausal(SPECS["k1"]), condition, rng=RowRNG([0]))
    with pytest.raises(ValueError, match="several cells in a step"):
        Constrained()(TabularCausal(SPECS["k2"], "parallel"), condition, rng=RowRNG([0]))
