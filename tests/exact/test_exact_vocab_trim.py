"""Drafts of some ids alone: items have the model's distribution, drafts are of these ids, and a q that is not renormalised is told."""

import json

import pytest
import torch
from enumeration import enumerated, gap
from kit import CLASSES, Case, TabularCausal, causal_distribution

from gentok.generators.autoregressive import Autoregressive
from gentok.rng import RowRNG
from gentok.samplers import speculative
from gentok.samplers.guided import guided
from gentok.samplers.model_drafts import ModelDrafts
from gentok.samplers.speculative import Speculative
from gentok.samplers.vocab_trim import kept_ids, most_frequent, read_ids
from gentok.types import UNKNOWN, Class, Condition, Line, Tokens, TokenSpec

SPEC = TokenSpec((3,), Line(2))
CASE = Case(0, Tokens.unknown(SPEC, 1).codes[0], 2)


def sampler_of(**settings):
    return Speculative(ckpt=TabularCausal(SPEC, "raster", seed=9), window=2, **settings)


WAYS = [{}, {"branches": 2}, {"branches": 2, "tree": "dynamic", "nodes": 3}, {"verify": "block"}, {"temperature": 0.7, "top_k": 1}]


@pytest.mark.parametrize("settings", WAYS)
@pytest.mark.parametrize("trim", [[0, 2], [1]])
def test_every_path_makes_the_enumerated_distribution(settings, trim):
    model, sampler = TabularCausal(SPEC, "raster"), sampler_of(trim=trim, **settings)
    assert gap(enumerated(sampler, model, CASE), causal_distribution(model, CASE, sampler)) < 1e-9


class Watched(ModelDrafts):
    found: list = []

    def propose(self, rows):
        draft = super().propose(rows)
        Watched.found.append(draft)
        return draft


def test_drafts_are_of_the_ids_that_are_left(monkeypatch):
    monkeypatch.setattr(speculative, "ModelDrafts", Watched)
    spec = TokenSpec((5, 4), Line(6))
    model, small = TabularCausal(spec, "position_major"), TabularCausal(spec, "position_major", seed=3)
    Speculative(ckpt=small, window=4, trim=[[0, 3], [2, 1]])(
        model, Condition({"class": Class(torch.zeros(20, dtype=torch.int64))}), rng=RowRNG.of(0, range(20)), known=Tokens.unknown(spec, 20)
    )  # fmt: skip
    level = model.layout.level[:, 0]
    for draft in Watched.found:
        assert ((draft.q[:, 1:] > 0).sum(-1) <= 2).all() and (draft.q[:, 1:].sum(-1) - 1).abs().max() < 1e-12
    first = Watched.found[0].ids[:, 1:, 0]
    for place in range(4):
        assert set(first[:, place].tolist()) <= ({0, 3} if level[place] == 0 else {1, 2})


@pytest.mark.parametrize("settings", [{"ends": True}, {"tie_embeddings": True}, {"layout": "delayed"}])
def test_a_network_scores_the_ids_that_are_left_as_before_and_no_other(settings):
    torch.manual_seed(0)
    spec = TokenSpec((5, 3), Line(4))
    model = Autoregressive(spec, CLASSES, width=8, depth=1, heads=1, **settings).double().eval()
    condition = Condition({"class": Class(torch.zeros(2, dtype=torch.int64))})
    kept = kept_ids([[0, 3], [2]], spec, spec.vocab + model.ends)
    plain, trimmed = (guided(model, 2.0).init_cache(condition, 2, 3) for _ in range(2))
    guided(model, 2.0).keep_ids(trimmed, kept)
    ids, at = model.begin.expand(2, 3, -1).clone(), torch.zeros(2, dtype=torch.int64)
    ids[:, 1:] = 1
    before, after = (guided(model, 2.0).logits(ids, cache, at) for cache in (plain, trimmed))
    left = kept[model.layout.level[:3].clamp(min=0)].expand_as(before)
    here = (model.layout.level[:3] >= 0)[..., None].expand_as(before)
    assert torch.allclose(after[here & left], before[here & left], atol=1e-12) and (after[here & ~left] == -torch.inf).all()


class Unscaled(ModelDrafts):
    """Drafts are of some ids alone, and verified as draws of all."""

    def propose(self, rows):
        draft = super().propose(rows)
        kept, self.kept = self.kept, None
        logits = self.logits(rows, draft.ids, self.tree.parents(rows.device)[:, 1:])
        self.kept = kept
        draft.q[:, 1:] = self.filter(logits).softmax(-1)
        return draft


def test_a_mutant_whose_q_is_not_renormalised_is_told(monkeypatch):
    model, sampler = TabularCausal(SPEC, "raster"), sampler_of(trim=[0, 2])
    expected = causal_distribution(model, CASE, sampler)
    monkeypatch.setattr(speculative, "ModelDrafts", Unscaled)
    assert gap(enumerated(sampler, model, CASE), expected) > 1e-3


def test_the_most_frequent_ids_of_every_level():
    codes = torch.tensor([[[0, 3, 3, 1], [2, 2, UNKNOWN, 0]], [[3, 1, 1, 1], [0, 2, 1, 2]]])
    assert most_frequent(codes, 2) == [[1, 3], [0, 2]]
    assert most_frequent(codes, 9) == [[0, 1, 3], [0, 1, 2]]


def test_ids_come_from_a_file_and_an_end_is_always_left(tmp_path):
    (tmp_path / "ids.json").write_text(json.dumps([0, 2]))
    kept = kept_ids(str(tmp_path / "ids.json"), TokenSpec((3, 2), Line(3)), 4)
    assert kept.tolist() == [[True, False, True, True], [True, False, False, True]]


@pytest.mark.parametrize(
    ("trim", "line"),
    [
        ([], r"trim takes ids, a list of whole numbers from 0, .*; got \[\]"),
        ([0, -1], r"got \[0, -1\]"),
        ([0.5], r"got \[0.5\]"),
        (7, "got 7"),
        ([[1], []], r"got \[\]"),
        ("nowhere.json", "nowhere.json cannot be read: No such file"),
    ],
)
def test_what_is_no_list_of_ids_is_refused(trim, line):
    with pytest.raises(ValueError, match=line):
        read_ids(trim)
    with pytest.raises(ValueError, match=line):
        sampler_of(trim=trim)


def test_ids_of_other_tokens_are_refused(tmp_path):
    spec = TokenSpec((5, 3), Line(2))
    with pytest.raises(ValueError, match=r"trim has id 5 for level 0, whose ids are 0 .. 4: take ids of the tokens that are sampled"):
        kept_ids([1, 5], spec, 5)
    with pytest.raises(ValueError, match=r"trim has id 4 for level 1, whose ids are 0 .. 2"):
        kept_ids([3, 4], spec, 5)
    with pytest.raises(ValueError, match="trim has ids for 3 levels, the tokens have 2: give one list, or one for every level"):
        kept_ids([[1], [1], [1]], spec, 5)
    (tmp_path / "ids.json").write_text("ids")
    with pytest.raises(ValueError, match="ids.json is no JSON"):
        read_ids(str(tmp_path / "ids.json"))
    with pytest.raises(ValueError, match="trim is for drafts that a generator draws: set sampler.ckpt"):
        Speculative(trim=[1])
