"""What every sampler does where a generator's distribution is none: one line that names the row, and nothing
known is overwritten."""

import dataclasses

import pytest
import torch
from any_order_kit import TabularAnyOrder
from kit import SPECS, TabularCausal, TabularMasked, cases_of
from refines_kit import TabularRefines
from scales_kit import TabularNextScale
from self_speculative_kit import Tabular
from test_exact_resgen import Scalars
from test_masked_samplers import VARIANTS

from gentok.generators.base import AnyOrder, Causal, CumulativeMasked, Masked, NextScale, Refines, SelfSpeculative
from gentok.rng import RowRNG
from gentok.samplers.any_order import AnyOrderSampler
from gentok.samplers.any_subset import AnySubset
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.base import every_sampler, sampler_name
from gentok.samplers.coarse_to_fine import CoarseToFineSampler
from gentok.samplers.constrained import Constrained
from gentok.samplers.distilled import DistilledSampler
from gentok.samplers.draws import check_finite, checked, exponential_race
from gentok.samplers.entities import EntitiesSampler
from gentok.samplers.grouped_jacobi import GroupedJacobi
from gentok.samplers.guided import guided
from gentok.samplers.jacobi import Jacobi
from gentok.samplers.mar import MARSampler
from gentok.samplers.next_scale import NextScaleSampler
from gentok.samplers.resgen import ResGenSampler
from gentok.samplers.self_speculative import SelfSpeculativeSampler
from gentok.samplers.speculative import Speculative
from gentok.samplers.unmasking import UnmaskingSampler
from gentok.samplers.zipar import ZipAR
from gentok.types import UNKNOWN, Class, Condition, Raster, Tokens, TokenSpec

SAMPLERS = [
    *VARIANTS, AutoregressiveSampler(), AnyOrderSampler(), AnySubset(), SelfSpeculativeSampler(window=2), ResGenSampler(steps=3),
    CoarseToFineSampler(), Constrained(), Jacobi(window=2), Jacobi(window=3, branches=2), GroupedJacobi(window=2),
    Speculative(draft="table", window=2),
    ZipAR(lag=1), NextScaleSampler(), NextScaleSampler(repredict=[3]),
]  # fmt: skip
ALL = [pytest.param(s, id=f"{sampler_name(type(s))}-{i}") for i, s in enumerate(SAMPLERS)]
TABLES = {
    Causal: lambda: TabularCausal(TokenSpec((3,), Raster(2, 2))),
    Masked: lambda: TabularMasked(SPECS["k1"]),
    AnyOrder: lambda: TabularAnyOrder(SPECS["k1"]),
    SelfSpeculative: lambda: Tabular(SPECS["k1"]),
    CumulativeMasked: lambda: Scalars(3),
    Refines: lambda: TabularRefines("k1"),
    NextScale: TabularNextScale,
}
BAD = 2
"""The class whose distributions are spoilt."""


def spoilt(table, value, ids):
    """The table with `value` for the logits of some ids in the rows of class BAD."""

    def spoil(logits, classes):
        out = logits.clone()
        out[classes == BAD] = torch.where(torch.isin(torch.arange(logits.shape[-1]), torch.tensor(ids)), value, out[classes == BAD])
        return out

    def classes_of(condition):
        return condition.parts["class"].ids

    class Spoilt(type(table)):
        def init_cache(self, condition, *sizes):
            self.classes = classes_of(condition)
            return super().init_cache(condition_of(self.classes), *sizes)

        def logits(self, first, second, *rest, **options):
            if isinstance(self, (Causal, NextScale)):
                return spoil(super().logits(first, second, *rest, **options), self.classes)
            return spoil(super().logits(first, condition_of(classes_of(second)), *rest), classes_of(second))

        def draft(self, tokens, condition):
            self.classes = classes_of(condition)
            logits, state = super().draft(tokens, condition_of(self.classes))
            return spoil(logits, self.classes), state

        def mixture(self, tokens, condition):
            mixture = super().mixture(tokens, condition_of(classes_of(condition)))
            return mixture.with_logits(spoil(mixture.logits, classes_of(condition)))

    table.__class__ = Spoilt
    return table


def condition_of(classes):
    return Condition({"class": Class(torch.where(classes == BAD, 0, classes))})


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize(("value", "ids"), [(torch.nan, [1]), (torch.nan, [0, 1, 2]), (torch.inf, [0]), (-torch.inf, [0, 1, 2])])
@pytest.mark.parametrize(
    "filters", [{}, {"temperature": 0.0}, {"top_k": 2, "top_p": 0.9, "min_p": 0.1, "typical": 0.9, "temperature": 0.7}]
)
def test_one_line_names_the_row(sampler, value, ids, filters):
    model = spoilt(TABLES[sampler.requires](), value, ids)
    codes = Tokens.unknown(model.spec, 5).codes
    codes[3, 0, 0] = 1  # a known cell in the row that is spoilt
    condition = Condition({"class": Class(torch.tensor([0, 1, 0, BAD, 1]))})
    with pytest.raises(ValueError, match="for row 3 of the batch is not finite") as error:
        dataclasses.replace(sampler, **filters)(model, condition, rng=RowRNG(range(5)), known=Tokens(codes, model.spec))
    assert "\n" not in str(error.value)


def test_every_sampler_is_here():
    vectors = {EntitiesSampler, DistilledSampler, MARSampler}  # numbers become ids by other ways: see the tests of their own names
    assert {type(s) for s in SAMPLERS} | vectors == set(every_sampler())


@pytest.mark.parametrize("sampler", ALL)
def test_numbers_of_known_and_absent_cells_are_not_looked_at(sampler):
    """What a model gives for cells that are not asked is unspecified; the tables give NaN there."""
    model = TABLES[sampler.requires]()
    case = cases_of(model)[1]
    codes = case.codes.expand(3, -1, -1).clone()
    condition = Condition({"class": Class(torch.tensor([0, 1, 0]))})
    out = sampler(guided(model, 2.0), condition, rng=RowRNG([0, 1, 2]), known=Tokens(codes, model.spec), choose=exponential_race)
    assert torch.equal(out.tokens.codes[codes != UNKNOWN], codes[codes != UNKNOWN]) and (out.tokens.codes[codes == UNKNOWN] >= 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("sampler", [AnySubset(k=3), AnySubset(k=3, order="random"), SelfSpeculativeSampler(window=3)], ids=str)
def test_what_verifies_drafts_is_looked_at_too(sampler, value):
    """The drafts' distributions are fine, those that they are verified with are not."""

    class Late(TabularAnyOrder):
        def logits(self, tokens, condition, rank, seen=None):
            out = super().logits(tokens, condition, rank, seen)
            return out if seen is not None else spoil_class_one(out, condition)

    class LateToo(Tabular):
        def verify(self, state, tokens, rank):
            return spoil_class_one(super().verify(state, tokens, rank), Condition({"class": Class(state[:, 0].long())}))

    def spoil_class_one(logits, condition):
        return torch.where((condition.parts["class"].ids == 1)[:, None, None, None], value, logits)

    model = (LateToo if isinstance(sampler, SelfSpeculativeSampler) else Late)(SPECS["k1"])
    with pytest.raises(ValueError, match="for row 2 of the batch is not finite"):
        sampler(model, Condition({"class": Class(torch.tensor([0, 0, 1]))}), rng=RowRNG(range(3)))


def test_a_vector_that_is_not_finite_is_refused():
    class Far(Scalars):
        def mixture(self, tokens, condition):
            mixture = super().mixture(tokens, condition)
            mixture.centre[1, 2] = torch.nan
            return mixture

    condition = Condition({"class": Class(torch.tensor([0, 1]))})
    with pytest.raises(ValueError, match="vector for row 1 of the batch is not finite"):
        ResGenSampler(steps=2)(Far(3), condition, rng=RowRNG([0, 1]))


def test_a_rule_that_chooses_nothing_ends():
    class Nothing(UnmaskingSampler):
        exact = False

        def unmask(self, state):
            state.until_full(lambda logits, masked: ~masked)

    with pytest.raises(ValueError, match="at least one masked cell of each row"):
        Nothing()(TabularMasked(SPECS["k1"]), Condition({"class": Class(torch.tensor([0, 1]))}), rng=RowRNG([0, 1]))


def test_the_row_is_that_of_the_batch_also_through_views():
    rng = RowRNG(range(9)).rows(torch.tensor([8, 2, 5]))
    with pytest.raises(ValueError, match="row 5 of the batch"):
        check_finite(torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, torch.nan]]), rng, "distribution")
    with pytest.raises(ValueError, match="row 2 of the batch"):
        checked(lambda logits, rng: logits)(torch.tensor([[0.0, 1.0], [2.0, torch.inf], [4.0, 5.0]]), rng)
