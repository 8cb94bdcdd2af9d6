"""Drafts of a model's own exits, and of a drafter that was trained towards it: items have its distribution, whatever the training."""

import pytest
import torch
from enumeration import enumerated, gap
from kit import CLASSES, SPECS, Case, agreement, cases_of, causal_distribution, checkered, sample
from random_weights import randomized

from gentok.generators.aligned_drafter import AlignedDrafter
from gentok.generators.early_exits import EarlyExits
from gentok.rng import RowRNG
from gentok.samplers import speculative
from gentok.samplers.guided import guided
from gentok.samplers.model_drafts import ModelDrafts
from gentok.samplers.speculative import Speculative
from gentok.types import Class, Condition, Line, Tokens, TokenSpec

SPEC = TokenSpec((3,), Line(2))
CASE = Case(0, Tokens.unknown(SPEC, 1).codes[0], 2)
WAYS = [{}, {"branches": 2}, {"verify": "block"}, {"temperature": 0.7, "top_k": 2}, {"own": True, "branches": 2}]


def with_exits(spec=SPEC, **options):
    model = EarlyExits(spec, CLASSES, width=16, depth=3, heads=2, exits=[1, 2], **options).double().eval()
    return randomized(model, 3)


def drafter(target, spec=SPEC):
    """A drafter of some steps of training towards a target."""
    torch.manual_seed(0)
    model = AlignedDrafter(spec, CLASSES, width=8, depth=1, heads=1, target="TARGET").double()
    model.with_models(lambda path: target)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-2)
    known, condition = Tokens(torch.zeros(8, 1, spec.positions, dtype=torch.int64), spec), Condition({"class": Class(torch.arange(8) % 2)})
    for step in range(6):
        optimizer.zero_grad()
        model.loss(known, condition, RowRNG.of(0, range(8), step)).loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


@checkered(settings=WAYS, guidance=[(1.0, "constant"), (2.0, "linear")])
def test_every_path_of_an_exits_drafts_makes_the_enumerated_distribution(settings, guidance):
    model, sampler = with_exits(), Speculative(draft="exit", exit=1, window=2, **settings)
    expected = causal_distribution(model, CASE, sampler, guidance)
    assert gap(enumerated(sampler, guided(model, *guidance), CASE), expected) < 1e-9


@pytest.mark.parametrize("settings", [{}, {"branches": 2}])
def test_every_path_of_a_trained_drafter_makes_the_enumerated_distribution(settings):
    model = with_exits()
    sampler = Speculative(ckpt=drafter(model), window=2, **settings)
    assert gap(enumerated(sampler, model, CASE), causal_distribution(model, CASE, sampler)) < 1e-9


def test_rows_of_every_kind_draw_the_enumerated_distribution_in_steps_of_several_slots():
    model, sampler = with_exits(SPECS["k2"], layout="delayed"), Speculative(exit=2, window=3)
    cases = cases_of(model)
    assert agreement(sample(sampler, model, cases, 400), [causal_distribution(model, case, sampler) for case in cases]) > 1e-3


class Believed(ModelDrafts):
    """The exit's drafts are said to be draws of the whole model, which is what an exit is trained to be like."""

    def propose(self, rows):
        draft, whole = super().propose(rows), ModelDrafts.__new__(ModelDrafts)
        whole.__dict__.update(self.__dict__, model=self.progress.request.model)
        whole.fed = torch.zeros_like(self.fed)
        whole.cache = whole.model.init_cache(self.progress.request.condition, len(self.progress.ids), self.progress.layout.steps + 4)
        nodes = torch.arange(1, len(self.tree))[None]
        draft.q[:, 1:] = self.filter(ModelDrafts.logits(whole, rows, draft.ids, self.tree.parents(rows.device)[:, nodes[0]])).softmax(-1)
        return draft


def test_a_mutant_that_takes_an_exits_drafts_for_the_models_own_is_told(monkeypatch):
    model, sampler = with_exits(), Speculative(draft="exit", exit=1, window=2)
    monkeypatch.setattr(speculative, "ModelDrafts", Believed)
    assert gap(enumerated(sampler, model, CASE), causal_distribution(model, CASE, sampler)) > 1e-3


def test_an_exits_drafts_take_no_more_calls_than_steps_and_count_as_drafts():
    spec = TokenSpec((4,), Line(6))
    known, condition = Tokens.unknown(spec, 20), Condition({"class": Class(torch.zeros(20, dtype=torch.int64))})
    out = Speculative(exit=2, window=4)(with_exits(spec), condition, rng=RowRNG.of(0, range(20)), known=known)
    assert (out.calls <= 6).all() and out.calls.double().mean() < 5 and out.network_calls["draft"][0] > 0


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"draft": "exit"}, "draft=exit needs the number of blocks after which .* set sampler.exit, such as 2"),
        ({"exit": 2, "ckpt": "a"}, "exit=2 is for draft=exit, and ckpt is another drafter: leave one of them out"),
        ({"exit": 2, "draft": "table"}, "exit=2 is for draft=exit, and draft=table is another drafter"),
        ({"exit": 0}, "exit=0"),
    ],
)
def test_settings_of_exits_that_do_not_go_together_are_refused(settings, line):
    with pytest.raises(ValueError, match=line):
        Speculative(**settings)


def test_a_model_without_that_exit_is_refused():
    known, condition = Tokens.unknown(SPEC, 1), Condition({"class": Class(torch.zeros(1, dtype=torch.int64))})
    with pytest.raises(ValueError, match="this EarlyExits has no exit after 3 blocks: it has exits after 1, 2 blocks"):
        Speculative(exit=3)(with_exits(), condition, rng=RowRNG.of(0, [0]), known=known)
    with pytest.raises(ValueError, match="this AlignedDrafter has no exit after 1 blocks: train one with generator=early_exits"):
        Speculative(exit=1)(drafter(with_exits()), condition, rng=RowRNG.of(0, [0]), known=known)
