"""What samplers share: draws, capabilities, what is known, and errors in one line."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from kit import SPECS, TabularCausal, TabularMasked, batch_of, cases_of
from scipy import stats

from gentok.build import build
from gentok.cli import compose
from gentok.generators.base import Causal
from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.base import Sampler, check_known, described, every_sampler, fitting, sampler_name
from gentok.samplers.coarse_to_fine import CoarseToFineSampler
from gentok.samplers.draws import draw, exponential_race
from gentok.samplers.guided import guided
from gentok.samplers.maskgit import MaskGIT
from gentok.samplers.request import initial_tokens
from gentok.types import ABSENT, UNKNOWN, Class, Condition, Line, Tokens, TokenSpec

CONF = Path(__file__).parents[2] / "conf" / "sampler"


@pytest.mark.parametrize("function", [draw, exponential_race])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_draws_follow_the_distribution_in_every_dtype_and_skip_impossible_ids(function, dtype):
    logits = torch.tensor([0.0, -torch.inf, 2.0, -1.0, -torch.inf], dtype=dtype)
    ids = function(logits.expand(30_000, 2, 5), RowRNG(torch.arange(30_000)))
    assert ids.shape == (30_000, 2)
    counts = np.bincount(ids.flatten(), minlength=5)
    p = logits.double().softmax(0).numpy()
    assert counts[[1, 4]].sum() == 0
    assert stats.chisquare(counts[p > 0], p[p > 0] * counts.sum()).pvalue > 1e-3


@pytest.mark.parametrize("function", [draw, exponential_race])
def test_ids_too_rare_for_float32_noise_are_drawn(function):
    """2,000 ids of probability 2^-36 beside one of nearly 1, and a uniform that lies in their range: the tail
    is there, id by id."""
    logits = torch.cat([torch.zeros(1), torch.full((2000,), -36 * np.log(2.0))])

    class Rare(RowRNG):
        def uniform(self, *shape):
            u = super().uniform(*shape)
            return 1 - u * 2.0**-26 if function is draw else torch.where(torch.arange(shape[-1]) == 0, 2.0**-53 + 0 * u, u)

    ids = function(logits.expand(500, 2001), Rare(torch.arange(500)))
    if function is draw:
        assert len(set(ids.tolist())) > 300
    else:
        assert (ids == 0).all()
        assert float(Rare([0]).exponential(2001).max()) > 36


def test_the_extremes_of_a_uniform_give_the_first_and_last_possible_id():
    class Fixed(RowRNG):
        value = 0.0

        def uniform(self, *shape):
            return torch.full((self.batch, *shape), self.value, dtype=torch.float64)

    logits = torch.tensor([[-torch.inf, 1.0, 0.3, 2.0, -torch.inf]])
    rng = Fixed([0])
    rng.value = 2.0**-53
    assert draw(logits, rng).item() == 1
    rng.value = 1 - 2.0**-53
    assert draw(logits, rng).item() == 3


# ------------------------------------------------------------------------------------------------------------- capabilities


def test_samplers_are_found_by_their_files_and_each_has_a_yaml_with_every_setting():
    found = {sampler_name(cls): cls for cls in every_sampler()}
    assert {"autoregressive", "maskgit"} <= set(found)
    assert {path.stem for path in CONF.glob("*.yaml")} >= set(found)
    for name, cls in found.items():
        values = compose("sample", ["ckpt=none", f"sampler={name}"])["sampler"]
        assert set(values) - {"_target_"} == {f.name for f in dataclasses.fields(cls)}
        made = build(values)
        assert type(made) is cls and made == cls(), "a sampler built from Python must do what it does from the command line"


def test_the_filter_keys_stand_in_one_file_and_have_the_defaults_of_every_sampler():
    shared = yaml.safe_load((CONF / "auto.yaml").read_text())
    assert shared.pop("_target_") is None
    assert shared == {f.name: f.default for f in dataclasses.fields(Sampler)}
    for path in CONF.glob("*.yaml"):
        own = yaml.safe_load(path.read_text())
        defaults = [entry for entry in own.get("defaults", []) if not isinstance(entry, dict)]  # others: samplers inside
        above = path.stem == "auto" or (defaults[0] in ("auto", "jacobi") and defaults[1:] == ["_self_"])  # jacobi.yaml inherits auto's
        assert above and (path.stem == "auto" or not set(own) & set(shared)), path.stem


def test_a_sampler_inside_another_is_a_choice_and_has_the_filters_of_the_other_unless_they_are_set():
    def made(*words):
        return build(compose("sample", ["ckpt=none", "sampler=coarse_to_fine", *words])["sampler"])

    assert made("sampler.temperature=1.1").coarse == AutoregressiveSampler(temperature=1.1)
    both = made("sampler.coarse.temperature=0.9", "sampler.temperature=1.1", "sampler.top_k=4")
    assert both == CoarseToFineSampler(temperature=1.1, top_k=4, coarse=AutoregressiveSampler(temperature=0.9, top_k=4))
    with pytest.raises(ValueError, match="sampler.coarse=maskgit is of Masked generators"):
        made("sampler@sampler.coarse=maskgit")
    words = ["experiment=imagenet256/ctf_l", "sampler=coarse_to_fine", "sampler@sampler.coarse=autoregressive", "sampler.coarse.top_k=7"]
    assert build(compose("config", words)["sampler"]).coarse.top_k == 7
    words = ["experiment=cifar10/ctf", "sampler=coarse_to_fine", "sampler@sampler.coarse=maskgit", "sampler.coarse.steps=7"]
    assert compose("config", words)["sampler"]["coarse"]["steps"] == 7
    assert described(both)["coarse"] == {**described(AutoregressiveSampler(temperature=0.9, top_k=4)), "name": "autoregressive"}


def test_fitting_goes_by_capability_also_through_guidance():
    assert fitting(TabularCausal) == sorted((s for s in every_sampler() if s.requires is Causal), key=lambda s: not s.exact)
    assert fitting(TabularCausal)[0] is AutoregressiveSampler
    assert MaskGIT in fitting(TabularMasked) and AutoregressiveSampler not in fitting(TabularMasked)
    assert fitting(guided(TabularMasked(SPECS["k1"]), 2.0)) == fitting(TabularMasked)
    assert fitting(int) == []


@pytest.mark.parametrize(
    ("sampler", "model", "fits"), [(MaskGIT(), TabularCausal, "autoregressive"), (AutoregressiveSampler(), TabularMasked, "maskgit")]
)
def test_a_mismatch_is_one_line_that_lists_the_samplers_that_fit(sampler, model, fits):
    for given in (model, model(SPECS["k1"])):
        with pytest.raises(ValueError, match=fits) as error:
            sampler.check_model(given)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=fits):
        sampler(model(SPECS["k1"]), Condition({"class": Class(torch.zeros(2, dtype=torch.int64))}), rng=RowRNG([0, 1]))


# ------------------------------------------------------------------------------------------------------------ what is known


def test_a_start_from_lengths_and_known_cells():
    spec, rng = SPECS["strided"], RowRNG([0, 1])
    start = initial_tokens(spec, rng, lengths=torch.tensor([3, 4]))
    U, A = UNKNOWN, ABSENT
    assert start.codes.tolist() == [[[U, A, U, A], [U, U, U, A]], [[U, A, U, A], [U, U, U, U]]]
    known = start.codes.clone()
    known[0, 0, 2], known[1, 1] = 2, ABSENT
    again = initial_tokens(spec, rng, Tokens(known, spec, start.lengths))
    assert (again.codes == known).all() and (again.lengths == start.lengths).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda k: {"known": k, "lengths": torch.tensor([1, 4])}, "beyond that row's length 1"),
        (lambda k: {"lengths": torch.tensor([4])}, "lengths must be 2 numbers"),
        (lambda k: {"lengths": torch.tensor([5, 4])}, r"in 0..4 positions"),
        (lambda k: {"known": Tokens(k.codes[:1], k.spec)}, r"\[2, 1, 4\]"),
        (lambda k: {"known": Tokens(k.codes, TokenSpec((3,), Line(4), encode_fingerprint="other"))}, "fingerprint other"),
        (lambda k: {"known": Tokens(k.codes + 2, k.spec)}, "ids 0..2"),
    ],
)
def test_known_cells_that_do_not_fit_are_refused_with_a_line(change, words):
    codes = torch.tensor([[[1, 2, 1, 1]], [[1, 1, 1, 1]]])
    with pytest.raises(ValueError, match=words):
        initial_tokens(SPECS["k1"], RowRNG([0, 1]), **change(Tokens(codes, SPECS["k1"])))


def test_known_cells_behind_a_masked_cell_stop_a_causal_sampler_or_are_forced():
    model = TabularCausal(SPECS["k2"], "delayed")
    codes = torch.full((2, 2, 3), UNKNOWN)
    codes[1, 0, :2] = 1  # steps 0 and 1, while level 1 of position 0 is a masked cell of step 1: its own step, which does no harm
    tokens = Tokens(codes, model.spec)
    assert check_known(tokens, model.layout) is False
    codes[1, 0, 2] = 1
    with pytest.raises(ValueError, match=r"delayed order.*row 1.*step 1.*level 0, position 2.*maskgit.*forced=true"):
        check_known(tokens, model.layout)
    condition = Condition({"class": Class(torch.tensor([0, 0]))})
    with pytest.raises(ValueError, match="before every masked cell"):
        AutoregressiveSampler()(model, condition, rng=RowRNG([0, 1]), known=tokens)
    out = AutoregressiveSampler(forced=True)(model, condition, rng=RowRNG([0, 1]), known=tokens)
    assert out.stats == {"forced": True}
    assert (out.tokens.codes[1, 0] == 1).all() and out.tokens.present.all()


def test_dependent_slots_stop_the_sampler_or_are_forced():
    model = TabularCausal(SPECS["k2"], "parallel")
    model.exact_slots = False
    condition = Condition({"class": Class(torch.tensor([0]))})
    with pytest.raises(ValueError, match="position_major"):
        AutoregressiveSampler()(model, condition, rng=RowRNG([0]))
    assert AutoregressiveSampler(forced=True)(model, condition, rng=RowRNG([0])).stats == {"forced": True}
    beside = torch.ones(1, 2, 3, dtype=torch.int64)
    beside[0, 1, 2] = UNKNOWN  # its known neighbour is of its own step, and it depends on it
    with pytest.raises(ValueError, match="position_major"):
        AutoregressiveSampler()(model, condition, rng=RowRNG([0]), known=Tokens(beside, model.spec))
    out = AutoregressiveSampler(forced=True)(model, condition, rng=RowRNG([0]), known=Tokens(beside, model.spec))
    assert out.stats == {"forced": True} and (out.tokens.codes[0, 0] == 1).all()
    model.exact_slots = True  # independent slots: what is known beside them changes nothing
    assert AutoregressiveSampler()(model, condition, rng=RowRNG([0]), known=Tokens(beside, model.spec)).stats == {}
    model.exact_slots = False
    coarse = torch.full((1, 2, 3), UNKNOWN)
    coarse[:, 1] = ABSENT  # one cell per step: nothing is drawn together
    assert AutoregressiveSampler()(model, condition, rng=RowRNG([0]), known=Tokens(coarse, model.spec)).stats == {}


@pytest.mark.parametrize(("sampler", "model"), [(AutoregressiveSampler(), TabularCausal), (MaskGIT(), TabularMasked)])
def test_a_draft_is_refused_and_nothing_to_draw_costs_nothing(sampler, model):
    model = model(SPECS["k1"])
    full = Tokens(torch.ones(2, 1, 4, dtype=torch.int64), model.spec)
    condition = Condition({"class": Class(torch.tensor([0, 1]))})
    with pytest.raises(ValueError, match="draft"):
        sampler(model, condition, rng=RowRNG([0, 1]), draft=full)
    out = sampler(model, condition, rng=RowRNG([0, 1]), known=full)
    assert (out.tokens.codes == 1).all()
    assert out.calls.tolist() == [0, 0] and out.network_calls == {}


def test_autoregressive_calls_are_those_of_the_row_with_the_most_masked_cells_and_guidance_counts_twice():
    model = TabularCausal(SPECS["k2"], "level_major")
    _, condition, codes, lengths = batch_of(cases_of(model), 2)
    arguments = {"known": Tokens(codes, model.spec), "lengths": lengths}
    rng = RowRNG(torch.arange(len(codes)))
    seen = []
    out = AutoregressiveSampler()(model, condition, rng=rng, on_step=lambda *step: seen.append(step), **arguments)
    masked_cells = (codes == UNKNOWN).sum((1, 2))
    assert (out.calls == masked_cells).all()
    calls, positions = out.network_calls["generator"]
    assert calls == int(masked_cells.max()) == len(seen)
    assert [(step, of) for _, step, of in seen] == [(i + 1, calls) for i in range(calls)]
    left = [int(tokens.masked.sum()) for tokens, _, _ in seen]
    assert left == sorted(left, reverse=True) and left[-1] == 0
    twice = AutoregressiveSampler()(guided(model, 2.0), condition, rng=rng, **arguments)
    assert twice.network_calls["generator"] == (calls, 2 * positions)


def test_a_choice_takes_the_place_of_the_draw():
    model = TabularCausal(SPECS["k1"])
    condition = Condition({"class": Class(torch.tensor([0, 1]))})
    last = AutoregressiveSampler(top_k=2)(model, condition, rng=RowRNG([0, 1]), choose=lambda logits, rng: logits.argmin(-1))
    first = AutoregressiveSampler(temperature=0.0)(model, condition, rng=RowRNG([0, 1]))
    greedy = AutoregressiveSampler()(model, condition, rng=RowRNG([0, 1]), choose=lambda logits, rng: logits.argmax(-1))
    assert torch.equal(first.tokens.codes, greedy.tokens.codes)
    assert not torch.equal(last.tokens.codes, first.tokens.codes)
