"""Samplers of Masked models that choose cells by a rule: exact with one cell per call, and what is known of
them beyond that."""

import dataclasses

import numpy as np
import pytest
import torch
from kit import SPECS, TabularMasked, agreement, cases_of, checkered, distance, masked_distribution, rejects, sample
from masked_distributions import Conditionals, TimedMasked, chain_distribution, ordered_distribution

from gentok.rng import RowRNG
from gentok.samplers.confidence_threshold import ConfidenceThreshold
from gentok.samplers.corrector import Corrector
from gentok.samplers.entropy_bounded import EntropyBounded
from gentok.samplers.guided import guided
from gentok.samplers.halton import Halton, halton_points
from gentok.samplers.remasking import STRATEGIES, Remasking, Step
from gentok.types import UNKNOWN, Class, Condition, Line, Raster, Tokens, TokenSpec

ONE_BY_ONE = {
    "halton": Halton(steps=4),
    "halton, more steps than cells": Halton(steps=1000, roll=False),
    "entropy": EntropyBounded(gamma=0.0),
    "confidence": EntropyBounded(gamma=5.0, order="confidence", limit=1),
    "margin": EntropyBounded(gamma=0.0, order="margin"),
    "threshold": ConfidenceThreshold(threshold=1.1),
    "factor, in blocks": ConfidenceThreshold(rule="factor", factor=1e-9, block=2),
}


@checkered(name=ONE_BY_ONE, spec=SPECS)
def test_one_cell_per_call_draws_the_joint_distribution_of_exact_conditionals(name, spec):
    """The order may look at what was drawn before, not at the ids to be drawn."""
    sampler, model = ONE_BY_ONE[name], TabularMasked(SPECS[spec])
    if name.startswith("halton"):
        sampler = dataclasses.replace(sampler, steps=max(sampler.steps, model.spec.levels * model.spec.positions))
    cases = cases_of(model)
    assert agreement(sample(sampler, model, cases, 1500), [masked_distribution(model, case) for case in cases]) > 1e-3


def test_halton_draws_the_distribution_of_its_order_also_where_conditionals_disagree():
    spec = TokenSpec((2, 2), Raster(2, 2))
    model, sampler = TimedMasked(spec), Halton(steps=8, roll=False, temperature=0.8)
    cases = cases_of(model)[1:]
    at = [h * 2 + w for h, w in halton_points(2, 2)]
    distributions = []
    for case in cases:
        masked_cells = (case.codes == UNKNOWN).nonzero().tolist()
        order = [masked_cells.index([k, n]) for n in at for k in range(2) if [k, n] in masked_cells]
        distributions.append(ordered_distribution(model, case, sampler, order))
    assert agreement(sample(sampler, model, cases, 3000), distributions) > 1e-3
    reverse = [ordered_distribution(model, case, sampler, list(range(int((case.codes == UNKNOWN).sum())))[::-1]) for case in cases]
    assert agreement(sample(sampler, model, cases, 3000), reverse) < 1e-6, "the order makes a difference here"


# ----------------------------------------------------------------------------------------------------------------- mutants


@pytest.mark.parametrize(
    "sampler",
    [Halton(steps=2), EntropyBounded(gamma=1.0, limit=2), ConfidenceThreshold(threshold=0.4), Halton(steps=4, temperature=0.85)],
)
def test_mutants_that_reveal_two_cells_or_sharpen_are_rejected(sampler):
    model = TabularMasked(SPECS["k1"], scale=0.8)
    cases = cases_of(model)
    distributions = [masked_distribution(model, case) for case in cases]
    assert rejects(sample(sampler, model, cases, 20000), distributions, within=0.15)


def test_mutant_that_chooses_cells_by_the_id_that_was_drawn():
    """What separates a confidence order that is exact from MaskGIT's: the choice must not see the ids to be
    drawn."""

    class Peeks(EntropyBounded):
        def _chosen(self, logits, masked_cells):
            log_p = logits.double().masked_fill(~masked_cells[..., None], 0.0).log_softmax(-1)
            seen = log_p.gather(3, self.__dict__["ids"][..., None])[..., 0].masked_fill(~masked_cells, -torch.inf).flatten(1)
            often = torch.rand(len(seen), generator=dice)[:, None] < 0.4  # else the first masked cell
            best = torch.where(often, seen.argmax(1, keepdim=True), masked_cells.flatten(1).long().argmax(1, keepdim=True))
            return torch.zeros_like(seen, dtype=torch.bool).scatter(1, best, True).view_as(masked_cells)

    class Peeked(TabularMasked):
        """Draws ids of all cells first, and shows the sampler the distribution that is sure of them."""

        def logits(self, tokens, condition, t=None):
            logits = super().logits(tokens, condition, t)
            safe = torch.where(tokens.masked[..., None], logits, 0.0)
            ids = torch.distributions.Categorical(logits=safe).sample()
            sampler.__dict__["ids"] = ids
            sure = torch.full_like(safe, -torch.inf).scatter(3, ids[..., None], 0.0)
            sampler.__dict__["distribution"] = safe
            return torch.where(tokens.masked[..., None], sure, logits)

    class Sure(Peeks):
        def _chosen(self, logits, masked_cells):
            return super()._chosen(self.__dict__["distribution"], masked_cells)

    torch.manual_seed(0)
    dice = torch.Generator().manual_seed(0)
    sampler, model = Sure(gamma=0.0), Peeked(SPECS["k1"], scale=0.2)
    cases = cases_of(model)
    assert rejects(sample(sampler, model, cases, 4000), [masked_distribution(model, case) for case in cases])


# ------------------------------------------------------------------------------------------------- what is known beyond one


def _subset_distribution(model, codes, cells):
    """The joint distribution of some masked cells given the known cells, as an array with an axis per
    cell."""
    distribution = masked_distribution(model, dataclasses.replace(cases_of(model)[0], codes=codes))
    out = np.zeros([model.spec.vocab_sizes[k] for k, _ in cells])
    for outcome, p in zip(distribution.outcomes, distribution.p):
        out[tuple(int(outcome[k, n]) for k, n in cells)] += p
    return out


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_entropy_bounded_steps_lose_at_most_gamma_nats(gamma):
    """The divergence of the joint distribution of the revealed cells from the product of their marginals, by
    enumeration."""
    several = 0
    for seed in range(40):
        model = TabularMasked(SPECS["k1"], scale=4.0, seed=seed)
        codes = torch.full((1, 4), UNKNOWN)
        codes[0, seed % 4] = seed % 3
        logits = model.logits(Tokens(codes[None], model.spec), Condition({"class": Class(torch.tensor([0]))}))
        chosen = EntropyBounded(gamma=gamma)._chosen(logits, (codes == UNKNOWN)[None])[0]
        cells = chosen.nonzero().tolist()
        assert cells and (codes[chosen] == UNKNOWN).all()
        joint = _subset_distribution(model, codes, cells)
        product = np.ones(())
        for axis in range(joint.ndim):
            product = np.multiply.outer(product, joint.sum(tuple(a for a in range(joint.ndim) if a != axis)))
        some = joint > 0
        lost = (joint[some] * np.log(joint[some] / product[some])).sum()
        assert lost <= gamma + 1e-9
        several += len(cells) > 1
    assert several > 10 or gamma == 0


def test_factor_one_keeps_the_most_probable_ids_of_the_joint_distribution():
    """Fast-dLLM's theorem: where (n + 1)(1 - c) < 1, the product's arg-max is the joint's; and it can fail
    where the rule does not hold."""
    several, broken = 0, 0
    for seed in range(150):
        model = TabularMasked(SPECS["k1"], scale=3.5, seed=seed)
        codes = torch.full((1, 4), UNKNOWN)
        logits = model.logits(Tokens(codes[None], model.spec), Condition({"class": Class(torch.tensor([0]))}))

        def agrees(cells, model=model, codes=codes, logits=logits):
            joint = _subset_distribution(model, codes, cells)
            greedy = tuple(int(logits[0, k, n].argmax()) for k, n in cells)
            return joint[greedy] == joint.max()

        chosen = ConfidenceThreshold(rule="factor", factor=1.0)._chosen(logits, (codes == UNKNOWN)[None])[0].nonzero().tolist()
        assert agrees(chosen)
        several += len(chosen) > 1
        broken += not agrees([[0, 0], [0, 1], [0, 2], [0, 3]])
    assert several > 10 and broken > 10


def test_blocks_are_filled_in_order_and_everything_in_one_call_where_the_network_is_sure():
    model = TabularMasked(TokenSpec((2,), Line(6)), scale=0.0)
    seen = []
    sampler = ConfidenceThreshold(threshold=0.4, block=4)
    condition = Condition({"class": Class(torch.zeros(1, dtype=torch.int64))})
    out = sampler(model, condition, rng=RowRNG([0]), on_step=lambda tokens, *_: seen.append(tokens.present[0, 0].tolist()))
    assert seen == [[True] * 4 + [False] * 2, [True] * 6] and out.calls.tolist() == [2]


# --------------------------------------------------------------------------------------------------------------- remasking


PLANS = [(strategy, schedule) for strategy in STRATEGIES if strategy != "conf" for schedule in ("linear", "cosine")]


@pytest.mark.parametrize(("strategy", "schedule"), PLANS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_plans_keep_the_marginals_and_their_bounds(strategy, schedule, steps):
    plan = Remasking(strategy=strategy, schedule=schedule, steps=steps, eta=0.4).plan()
    assert len(plan) == steps and plan[0].before == 0.0 and plan[-1].after == 1.0 and plan[-1].reveal == 1.0
    for step in plan:
        assert 0 <= step.sigma <= 1 and 0 <= step.reveal <= 1
        assert (1 - step.sigma) * step.before + step.reveal * (1 - step.before) == pytest.approx(step.after, abs=1e-12)
    if steps == 50:
        assert sum(step.sigma * step.before for step in plan) > 0.05, "something is masked again"


@pytest.mark.parametrize(("strategy", "schedule"), PLANS)
def test_two_time_marginals_are_those_of_the_reverse_process(strategy, schedule):
    """How often a cell is (hidden or not) before and after each step, over many cells of a model with a
    single id."""
    rows, n, steps = 800, 10, 6
    sampler = Remasking(strategy=strategy, schedule=schedule, steps=steps, eta=0.5, t_off=0.2)
    model = TabularMasked(TokenSpec((1,), Line(n)))
    seen = [torch.zeros(rows, n, dtype=torch.bool)]
    condition = Condition({"class": Class(torch.zeros(rows, dtype=torch.int64))})
    sampler(model, condition, rng=RowRNG.of(0, range(rows)), on_step=lambda tokens, *_: seen.append(tokens.present[:, 0]))
    for step, before, after in zip(sampler.plan(), seen, seen[1:]):
        want = {
            (True, True): step.before * (1 - step.sigma), (True, False): step.before * step.sigma,
            (False, True): step.after - step.before * (1 - step.sigma), (False, False): 1 - step.after - step.before * step.sigma,
        }  # fmt: skip
        for (a, b), p in want.items():
            share = float(((before == a) & (after == b)).double().mean())
            assert abs(share - p) < 4.5 * np.sqrt(max(p * (1 - p), 1e-9) / rows / n) + 1e-9, (step, a, b)


@pytest.mark.parametrize(
    ("settings", "guidance"),
    [
        ({"strategy": "cap", "eta": 0.3}, (1.0, "constant")),
        ({"strategy": "rescale", "eta": 0.7, "schedule": "cosine"}, (1.0, "constant")),
        ({"strategy": "loop", "eta": 0.5, "steps": 6, "alpha_on": 0.6, "t_off": 0.3}, (1.0, "constant")),
        ({"strategy": "forward_backward", "temperature": 0.8}, (2.0, "linear")),
    ],
)
def test_remasking_draws_the_distribution_of_its_chain(settings, guidance):
    model, sampler = TimedMasked(SPECS["k1"]), Remasking(**{"steps": 3, **settings})
    cases = cases_of(model)
    distributions = [chain_distribution(model, case, sampler, guidance) for case in cases]
    assert agreement(sample(sampler, guided(model, *guidance), cases, 3000), distributions) > 1e-3


def test_remasking_without_remasking_is_ancestral():
    from masked_distributions import ancestral_distribution

    from gentok.samplers.ancestral import Ancestral

    model = TimedMasked(SPECS["k1"])
    for case in cases_of(model)[1:3]:
        chain = chain_distribution(model, case, Remasking(strategy="cap", eta=0.0, steps=3))
        assert np.allclose(chain.p, ancestral_distribution(model, case, Ancestral(steps=3)).p, atol=1e-12)


def test_mutant_whose_masked_cells_ignore_what_is_hidden_again():
    class PlainReveal(Step):
        @property
        def reveal(self):
            return Step(self.before, self.after, 0.0).reveal

    class Uncompensated(Remasking):
        def plan(self):
            return [PlainReveal(*dataclasses.astuple(step)) for step in super().plan()]

    settings = {"strategy": "rescale", "eta": 1.0, "steps": 5}
    model = TabularMasked(SPECS["k1"], scale=1.5)
    cases = cases_of(model)[:1]
    distributions = [chain_distribution(model, case, Remasking(**settings)) for case in cases]
    assert agreement(sample(Remasking(**settings), model, cases, 5000), distributions) > 1e-3
    assert rejects(sample(Uncompensated(**settings), model, cases, 20000), distributions)


def test_unsure_ids_are_hidden_first_by_conf():
    sampler = Remasking(strategy="conf", steps=10)
    step = sampler.plan()[6]
    revealed = torch.tensor([[[True, True, True, False]]])
    sure = torch.tensor([[[0.9, 0.1, 0.5, 0.0]]], dtype=torch.float64)
    chances = sampler._chances(step, ~revealed, revealed, sure)[0, 0]
    assert chances[1] > chances[2] > chances[0] and float(chances[:3].sum()) == pytest.approx(step.sigma)
    assert float(chances[3]) == pytest.approx((step.after - step.before) / (1 - step.before))


# --------------------------------------------------------------------------------------------------------------- corrector


def corrected(sampler, model, cases, n, distribution=masked_distribution):
    """n samples of each case, which start from exact draws of `distribution` and are then corrected."""
    out = []
    for i, case in enumerate(cases):
        start = distribution(model, case)
        pick = torch.multinomial(torch.tensor(start.p), n, True, generator=torch.Generator().manual_seed(i))
        known = Tokens(case.codes.expand(n, -1, -1).clone(), model.spec)
        condition = Condition({"class": Class(torch.full((n,), case.class_id))})
        lengths = torch.full((n,), case.length)
        draft = Tokens(start.outcomes[pick], model.spec)
        out.append(
            sampler(model, condition, rng=RowRNG.of(i, range(n)), known=known, lengths=lengths, draft=draft).tokens.codes
        )  # fmt: skip
    return out


@checkered(
    sampler=[Corrector(steps=6, cells=1), Corrector(steps=3, cells=2, parallel=False), Corrector(steps=1, cells=9, parallel=False)],
    spec=SPECS,
)
def test_the_joint_distribution_is_stationary(sampler, spec):
    model = TabularMasked(SPECS[spec], scale=1.5)
    cases = cases_of(model)
    assert agreement(corrected(sampler, model, cases, 2500), [masked_distribution(model, case) for case in cases]) > 1e-3


def test_mutant_that_fills_two_cells_at_once_does_not_leave_the_distribution_alone():
    model = TabularMasked(SPECS["k1"], scale=1.0)
    cases = cases_of(model)
    distributions = [masked_distribution(model, case) for case in cases]
    assert rejects(corrected(Corrector(steps=1, cells=2), model, cases, 15000), distributions)


def test_mutant_whose_prediction_leans_on_one_id():
    """A bias of the conditionals that is too small to see in a draw adds up over rounds."""

    class Leans(TabularMasked):
        def logits(self, tokens, condition, t=None):
            return super().logits(tokens, condition, t) + torch.tensor([0.12, 0.0, 0.0], dtype=torch.float64)

    model = Leans(SPECS["k1"], scale=1.0)
    cases = cases_of(model)
    assert rejects(corrected(Corrector(steps=3, cells=1), model, cases, 15000), [masked_distribution(model, case) for case in cases])


def test_rounds_bring_a_wrong_draft_nearer_to_the_distribution():
    model = TabularMasked(SPECS["k1"], scale=1.5)
    case = cases_of(model)[0]
    distribution = masked_distribution(model, case)

    def uniform(model, case):
        return dataclasses.replace(distribution, p=np.full(len(distribution.p), 1 / len(distribution.p)))

    far = [distance(corrected(Corrector(steps=s, cells=1), model, [case], 4000, uniform), [distribution]) for s in (0, 2, 6, 40)]
    assert far == sorted(far, reverse=True) and far[0] > 4 * far[-1] and far[-1] < 0.06


def test_conditionals_of_the_references_sum_to_one():
    case = cases_of(TabularMasked(SPECS["k1"]))[3]
    c = Conditionals(TimedMasked(SPECS["k1"]), case, Halton(), (2.0, "linear"))
    assert np.allclose(c.of(0, 0.7)[:, 0].reshape(3, 3)[:, 0].sum(), 1.0)
