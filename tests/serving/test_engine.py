"""Requests that are drawn together are each what they are alone; none is lost, none waits for ever, an error is its own request's."""

import threading

import pytest
import torch

from gentok.bundle import load
from gentok.sampling import configured_sampler
from gentok.sampling_plan import SamplingPlan, draw_together, joined
from gentok.serving.engine import Busy, Engine


@pytest.fixture(scope="module")
def bundle():
    return load("mnist5k_masked")


@pytest.fixture(scope="module")
def plan(bundle):
    def of(seed, n=1, sampler="maskgit", guidance=2.0, steps=3, **more):
        chosen = configured_sampler(sampler, type(bundle.generator), {"steps": steps})
        return SamplingPlan(bundle, chosen, n=n, condition=seed % 10, seed=seed, guidance=guidance, **more)

    return of


def alone(plan):
    return joined([plan.draw(part) for part in plan.parts])


class Slow:
    """An engine whose thread waits until it is let go, so that requests gather."""

    def __init__(self, **options):
        self.engine, self.gate = Engine(**options), threading.Event()
        began = threading.Event()
        self.engine.call(lambda: (began.set(), self.gate.wait()))
        began.wait()


def test_items_of_several_plans_in_one_batch_are_those_of_each_alone(plan):
    plans = [plan(seed, n) for seed, n in ((0, 1), (7, 3), (123456789, 2))]
    assert len({one.kind for one in plans}) == 1
    together = draw_together([(one, torch.arange(len(one.conditions.parts["class"].ids))) for one in plans])
    assert together.tokens.codes.equal(torch.cat([alone(one).tokens.codes for one in plans]))


def test_a_request_is_the_same_alone_and_among_thirty_two(plan):
    slow = Slow(batch_size=12)
    plans = [plan(seed, n=1 + seed % 4) for seed in range(32)]
    futures = [slow.engine.sample(one) for one in plans]
    slow.gate.set()
    made = [future.result(60) for future in futures]
    assert slow.engine.items == sum(len(one.calls) for one in made) and slow.engine.batches < 32
    for number in (0, 5, 18, 31):
        own = alone(plans[number])
        assert made[number].tokens.codes.equal(own.tokens.codes) and torch.allclose(made[number].media, own.media, atol=1e-5)


def test_other_settings_are_another_batch_and_known_parts_stay_with_their_request(plan):
    image = torch.zeros(1, 32, 32) - 1
    known = [plan(2, known=image, keep="left-half"), plan(3, known=-image, keep="left-half")]
    plans = [plan(1), plan(1, guidance=1.0), plan(1, steps=4), *known]
    assert len({one.kind for one in plans}) == 4
    slow = Slow()
    futures = [slow.engine.sample(one) for one in plans]
    slow.gate.set()
    for one, future in zip(plans, futures):
        assert future.result(60).tokens.codes.equal(alone(one).tokens.codes)


def test_a_small_request_does_not_wait_for_all_of_a_large_one(plan):
    slow, ended = Slow(batch_size=4), []
    for name, one in (("large", plan(0, n=20)), ("small", plan(1))):
        slow.engine.sample(one).add_done_callback(lambda _, name=name: ended.append((name, slow.engine.batches)))
    slow.gate.set()
    slow.engine.close()
    assert [name for name, _ in ended] == ["small", "large"] and ended[0][1] == 1


def test_too_much_is_refused_and_what_waits_is_drawn_before_it_closes(plan):
    slow = Slow(batch_size=4, max_waiting=6)
    first = slow.engine.sample(plan(0, n=8))  # a request that nothing waits before is taken, whatever its size
    with pytest.raises(Busy, match="8 items are waiting, of 6"):
        slow.engine.sample(plan(1))
    slow.gate.set()
    slow.engine.close()
    assert len(first.result(0).calls) == 8
    with pytest.raises(Busy, match="stops"):
        slow.engine.sample(plan(1))


class Failing:
    """Conditions of a plan that cannot be drawn."""

    def __init__(self, conditions):
        self.parts = conditions.parts

    def rows(self, rows):
        raise ArithmeticError("no rows")


def test_an_error_goes_to_those_of_its_batch_and_the_next_is_drawn(plan):
    slow = Slow()
    bad, good = plan(0), plan(1, steps=5)
    bad.conditions = Failing(bad.conditions)
    failing, broken, fine = slow.engine.call(lambda: 1 / 0), slow.engine.sample(bad), slow.engine.sample(good)
    slow.gate.set()
    with pytest.raises(ZeroDivisionError):
        failing.result(60)
    with pytest.raises(ArithmeticError, match="no rows"):
        broken.result(60)
    assert len(fine.result(60).calls) == 1


def test_a_cancelled_request_is_not_drawn(plan):
    slow = Slow(batch_size=4)
    gone, stays = slow.engine.sample(plan(0, n=4)), slow.engine.sample(plan(1, n=2))
    assert gone.cancel()
    slow.gate.set()
    assert len(stays.result(60).calls) == 2
    slow.engine.close()
    assert slow.engine.items == 2


class Biased(Engine):
    """Draws each batch with the seed of its first request."""

    def _do(self, turn):
        for job, _ in turn:
            if job.plan is not None:
                job.plan.seed = turn[0][0].plan.seed
        super()._do(turn)


def test_an_engine_that_mixes_seeds_is_noticed(plan):
    gate, engine = threading.Event(), Biased()
    engine.call(gate.wait)
    plans = [plan(0), plan(10)]
    own = alone(plan(10))
    futures = [engine.sample(one) for one in plans]
    gate.set()
    assert not futures[1].result(60).tokens.codes.equal(own.tokens.codes)


# ----------------------------------------------------------------------------------------------------- rows that join a running batch


@pytest.fixture(scope="module")
def causal():
    return load("mnist5k_ar")


def causal_plan(bundle, seed, n=1, sampler="autoregressive", **settings):
    chosen = configured_sampler(sampler, type(bundle.generator), settings)
    return SamplingPlan(bundle, chosen, n=n, condition=seed % 10, seed=seed, guidance=1.5)


def test_who_comes_later_joins_between_steps_and_leaves_when_done(causal):
    """A request that comes while another is drawn is in the same batch, and is what it is alone."""
    engine, seen, futures = Engine(batch_size=6), [], []
    plans = [causal_plan(causal, seed, n) for seed, n in ((1, 2), (2, 1), (3, 3), (4, 4))]
    assert all(plan.open for plan in plans)

    def watcher(step):
        seen.append(step.step)
        if len(seen) in (10, 20, 30):  # in the engine's thread, between two steps
            futures.append(engine.sample(plans[len(futures) + 1]))

    first = engine.sample(plans[0], watcher).result(120)
    made = [first, *[future.result(120) for future in futures]]
    assert engine.batches == 1 and engine.items == 10 and 64 <= len(seen) <= 67  # its own steps, and the calls in which others begin
    for plan, samples in zip(plans, made, strict=True):
        own = alone(plan)
        assert samples.tokens.codes.equal(own.tokens.codes) and samples.calls.equal(own.calls)
        assert torch.allclose(samples.media, own.media, atol=1e-5)
    engine.close()


@pytest.mark.parametrize("sampler, settings", [
    ("maskgit", {"steps": 8}), ("first_hitting", {"cells_per_call": 8, "order": 2}),
    pytest.param("remasking", {"steps": 8}, marks=pytest.mark.slow),
])  # fmt: skip
def test_who_comes_later_begins_at_once_and_shares_the_calls_of_those_who_are_there(bundle, sampler, settings):
    """With guidance, known parts and all: what it draws is what it draws alone."""
    engine, seen, futures = Engine(batch_size=8), [], []
    chosen, image = configured_sampler(sampler, type(bundle.generator), settings), torch.zeros(1, 32, 32) - 1
    known = [{}, {}, {}, {"known": image, "keep": "left-half"}]
    plans = [SamplingPlan(bundle, chosen, n=n, condition=n, seed=n, guidance=2.0, **more) for n, more in zip((2, 1, 3, 1), known)]
    calls, plain = [], bundle.generator.logits
    vars(bundle.generator)["logits"] = lambda tokens, *rest: (calls.append(tokens.batch), plain(tokens, *rest))[1]

    def watcher(step):
        seen.append(step.step)
        if len(seen) in (2, 3):  # in the engine's thread, between two steps
            futures.append(engine.sample(plans[len(futures) + 1]))
            if len(seen) == 3:
                futures.append(engine.sample(plans[3]))  # of another kind: a prompt

    try:
        made = [engine.sample(plans[0], watcher).result(120), *[future.result(120) for future in futures]]
    finally:
        del vars(bundle.generator)["logits"]
    assert engine.items == 7 and engine.batches == 4 and max(calls) == 2 * 6  # three at different steps, each guided
    assert len(calls) < sum(int(samples.calls.max()) for samples in made)
    for plan, samples in zip(plans, made, strict=True):
        own = alone(plan)
        assert samples.tokens.codes.equal(own.tokens.codes) and samples.calls.equal(own.calls)
    engine.close()


def test_calls_are_made_between_the_steps_of_a_full_batch(causal):
    engine, order = Engine(batch_size=1), []

    def watcher(step):
        if step.step == 5:
            engine.call(lambda: order.append("called"))

    first = engine.sample(causal_plan(causal, 1), watcher)
    first.add_done_callback(lambda _: order.append("drawn"))
    first.result(120)
    engine.close()
    assert order == ["called", "drawn"]


def test_nobody_joins_while_a_request_of_another_kind_waits_and_calls_are_made_between_steps(causal):
    engine, order, futures = Engine(batch_size=4), [], []
    plans = [causal_plan(causal, 1), causal_plan(causal, 2, temperature=0.5), causal_plan(causal, 3)]

    def watcher(step):
        if step.step == 5:
            futures.append(engine.call(lambda: order.append("called")))
            for number in (1, 2):
                futures.append(engine.sample(plans[number]))
                futures[-1].add_done_callback(lambda _, number=number: order.append(number))

    first = engine.sample(plans[0], watcher)
    first.add_done_callback(lambda _: order.append(0))
    first.result(120)
    engine.close()
    assert order == ["called", 0, 1, 2] and engine.batches == 3
