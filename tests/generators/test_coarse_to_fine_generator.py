"""Properties of coarse-to-fine: what it gives probabilities to, its two limits, and what is stored."""

import copy
import itertools
import math

import pytest
import torch
from generator_kit import CLASSES, EVERYTHING, LEVELS, RASTER, STRIDED, codes, everything, randomise

from gentok.codebooks.residual import ResidualCodebook
from gentok.codebooks.vq import VQ
from gentok.generators import coarse_to_fine
from gentok.generators.autoregressive import Autoregressive
from gentok.generators.base import capabilities
from gentok.generators.coarse_to_fine import CoarseToFine
from gentok.rng import RowRNG
from gentok.types import ABSENT, Class, Condition, Line, Tokens, TokenSpec

SMALL = {
    "one level": (TokenSpec((4,), Line(3)), 2),
    "two levels": (TokenSpec((3, 2), Line(2)), [2, 1]),
    "strided": (TokenSpec((3, 3), Line(3), strides=(2, 1)), 2),
}


class Table(VQ):
    """A codebook whose level k has the first V_k rows of a table."""

    def __init__(self, sizes):
        super().__init__(max(sizes), 3, normalize=False)
        self.sizes = sizes

    def table(self, level=0):
        return super().table()[: self.sizes[level]]


TINY = {"width": 16, "depth": 2, "heads": 2, "refiner_width": 16, "refiner_depth": 2, "refiner_heads": 2}


def model_of(spec, condition_spec=None, dtype=torch.float64, **options):
    own = {"clusters": 2, **TINY, **options}
    return randomise(CoarseToFine(spec, condition_spec, Table(spec.vocab_sizes), **own)).to(dtype)


def every_item(spec):
    """All codes of a spec: int64 [M, K, N]."""
    cells = spec.exists().nonzero()
    items = torch.tensor(list(itertools.product(*(range(spec.vocab_sizes[k]) for k, _ in cells.tolist()))))
    out = torch.full((len(items), spec.levels, spec.positions), ABSENT)
    out[:, cells[:, 0], cells[:, 1]] = items
    return Tokens(out, spec)


# -------------------------------------------------------------------------------------------------------------- likelihood


@pytest.mark.parametrize("layout", ["auto", "delayed", "parallel"])
@pytest.mark.parametrize("name", SMALL)
def test_the_probabilities_of_all_items_sum_to_one_and_without_members_to_less(name, layout):
    spec, clusters = SMALL[name]
    options = {"clusters": clusters, "layout": "auto" if spec.levels == 1 else layout}
    tokens = every_item(spec)
    condition = Condition({"class": Class(torch.zeros(len(tokens.codes), dtype=torch.int64))})

    def total(model):
        return float((-model.nll_bound(tokens, condition)).exp().sum())

    model = model_of(spec, CLASSES, **options)
    assert abs(total(model) - 1) < 1e-12
    assert total(model_of(spec, CLASSES, members=False, **options)) < 0.95

    class Wrong(CoarseToFine):
        def _outside(self, labels, level):
            return super()._outside(torch.where(labels == 0, labels.new_tensor(self.coarse.spec.vocab_sizes[level] - 1), labels), level)

    model.__class__ = Wrong
    assert abs(total(model) - 1) > 1e-3


def test_the_probability_is_that_of_the_labels_times_that_of_the_ids_given_them():
    spec = TokenSpec((5, 4), Line(3))
    model = model_of(spec, CLASSES, clusters=[3, 2])
    tokens, condition = codes(spec, 4), Condition({"class": Class(torch.tensor([0, -1, 1, 2]))})
    tokens.codes[0, 1, 2] = ABSENT
    labels = Tokens(model.labels(tokens.codes), model.coarse.spec)
    coarse, ids = model(tokens, condition)
    ids = ids.log_softmax(3).gather(3, tokens.codes.clamp(min=0)[..., None])[..., 0].masked_fill(~tokens.present, 0).sum((1, 2))
    steps = coarse.log_softmax(3).gather(3, model.coarse.layout.flatten(labels.codes).clamp(min=0)[..., None])[..., 0]
    steps = steps.masked_fill(model.coarse.layout.flatten(labels.codes) < 0, 0).sum((1, 2))
    assert torch.allclose(model.nll_bound(tokens, condition), -(ids + steps))
    out = model.loss(tokens, condition, None)
    assert torch.allclose(out.nll, -(ids + steps)) and int(out.count) == int(tokens.present.sum())
    assert torch.allclose(out.loss, out.nll.sum() / out.count) and torch.allclose(out.loss, out.terms["coarse"] + out.terms["refiner"])
    assert {"coarse_level1", "refiner_level1"} <= set(out.terms)


def test_one_cluster_is_the_refiner_alone():
    model = model_of(RASTER, clusters=1)
    tokens = codes(RASTER, 5)
    assert bool((model.labels(tokens.codes) == 0).all())
    out = model.loss(tokens, Condition(), None)
    assert float(out.terms["coarse"]) == 0.0 and float(out.terms["refiner"]) > 0
    free = copy.deepcopy(model)
    free.members = False
    assert torch.equal(free.nll_bound(tokens, Condition()), model.nll_bound(tokens, Condition())), "every id is a member"


@pytest.mark.parametrize("clustering", ["kmeans", "random"])
def test_as_many_clusters_as_ids_is_autoregression(clustering):
    model = model_of(LEVELS, CLASSES, clusters=list(LEVELS.vocab_sizes), clustering=clustering, layout="delayed")
    plain = Autoregressive(LEVELS, CLASSES, layout="delayed", width=16, depth=2, heads=2).double().eval()
    plain.load_state_dict(model.coarse.state_dict())
    tokens, condition = codes(LEVELS, 4), Condition({"class": Class(torch.tensor([0, -1, 1, 2]))})
    assert torch.equal(model.labels(tokens.codes), tokens.codes)
    assert torch.allclose(model.nll_bound(tokens, condition), plain.nll_bound(tokens, condition), rtol=1e-12)
    assert float(model.loss(tokens, condition, None).terms["refiner"]) == 0.0
    ids = model.logits(Tokens(tokens.codes, model.coarse.spec), condition)
    assert torch.equal(ids.argmax(3), tokens.codes) and bool((ids.isfinite().sum(3) == 1).all())
    model.members = False
    assert not torch.allclose(model.nll_bound(tokens, condition), plain.nll_bound(tokens, condition))


def test_items_that_end_by_themselves_have_the_likelihood_of_their_ends():
    spec = TokenSpec((3,), Line(3))
    model = model_of(spec, ends=True)
    total = 0.0
    for length in range(4):
        items = every_item(TokenSpec((3,), Line(length))).codes if length else torch.zeros(1, 1, 0, dtype=torch.int64)
        padded = torch.nn.functional.pad(items, (0, 3 - length), value=ABSENT)
        total += float((-model.nll_bound(Tokens(padded, spec, torch.full((len(padded),), length)), Condition())).exp().sum())
    assert abs(total - 1) < 1e-12 and model.ends


# ---------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("by", ["prefix", "cross", "adaln"])
def test_gradient_flows_to_every_weight_and_a_row_of_a_batch_equals_the_row_alone_also_in_training(by):
    options = {"condition_by": by, "dropout": 0.2, "condition_dropout": 0.5, "token_dropout": 0.2, "layout": "delayed"}
    model = model_of(STRIDED, EVERYTHING, **options).train()
    tokens, condition = codes(STRIDED, 6), everything(6)
    whole = model.loss(tokens, condition, RowRNG.of(3, range(6)))
    parts = [model.loss(tokens.rows([b]), condition.rows([b]), RowRNG.of(3, [b])) for b in range(6)]
    assert torch.allclose(sum(part.loss * part.count for part in parts) / whole.count, whole.loss, rtol=1e-9)
    model.condition_dropout = 0.0
    model.loss(tokens, condition, RowRNG.of(3, range(6))).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or float(p.grad.abs().max()) == 0]
    assert not without, without


def test_a_rows_condition_is_dropped_for_both_networks():
    tokens, condition = codes(RASTER, 40), Condition({"class": Class(torch.arange(40) % 3)})
    model = model_of(RASTER, CLASSES, condition_dropout=0.5).train()
    nats = model.loss(tokens, condition, RowRNG(range(40))).nll
    model.eval()
    given, null = (model.loss(tokens, c, None).nll for c in (condition, condition.null()))
    dropped = RowRNG(range(40)).uniform() < 0.5
    assert 5 < int(dropped.sum()) < 35 and torch.allclose(nats, torch.where(dropped, null, given))


def test_four_items_are_learned_by_heart():
    torch.manual_seed(0)
    spec, options = RASTER, {**TINY, "condition_dropout": 0.0, "zero_init_head": True}
    model = CoarseToFine(spec, CLASSES, VQ(7, 3), clusters=3, **options)
    tokens, condition = codes(spec, 4), Condition({"class": Class(torch.tensor([0, 1, 2, -1]))})
    start = model.nll_bound(tokens, condition).mean()
    sizes = model.cluster_of[0].bincount()
    expected = spec.positions * math.log(3) + sizes[model.labels(tokens.codes)].double().log().sum() / 4
    assert abs(float(start) - float(expected)) < 1e-4, "uniform over labels, and over the members of each"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(80):
        optimizer.zero_grad()
        model.loss(tokens, condition, RowRNG.of(0, range(4), step)).loss.backward()
        optimizer.step()
    assert model.nll_bound(tokens, condition).mean() < 0.1 * start


# ------------------------------------------------------------------------------------------------------------ what is stored


def test_labels_are_stored_and_a_loaded_model_clusters_nothing(monkeypatch):
    model = CoarseToFine(RASTER, None, VQ(7, 3), clusters=3, clustering="balanced", **TINY)
    state = model.state_dict()
    assert state["cluster_of"].dtype == torch.int64 and state["cluster_of"].unique().tolist() == [0, 1, 2]
    tokens = codes(RASTER, 2)
    labels = model.labels(tokens.codes)

    def never(*args):
        raise AssertionError("it clusters again")

    monkeypatch.setattr(coarse_to_fine, "cluster", never)
    other = CoarseToFine(RASTER, None, VQ(7, 3), clusters=3, **TINY)  # of another codebook
    other.load_state_dict(state)
    assert torch.equal(other.labels(tokens.codes), labels)
    assert torch.allclose(other.eval().nll_bound(tokens, Condition()), model.eval().nll_bound(tokens, Condition()))
    twin = copy.deepcopy(other).double()
    assert torch.equal(twin.labels(tokens.codes), labels)
    with pytest.raises(AssertionError, match="clusters again"):
        CoarseToFine(RASTER, None, VQ(7, 3), clusters=3, **TINY).labels(tokens.codes)


def test_labels_are_made_from_the_codebook_as_it_was_and_levels_have_their_own():
    codebook = ResidualCodebook(VQ(5, 3, normalize=False), 2)
    spec = TokenSpec((5, 5), Line(4))
    model, late = (CoarseToFine(spec, None, codebook, clusters=2, **TINY) for _ in range(2))
    model.labels(codes(spec, 1).codes)
    expected = [coarse_to_fine.cluster(codebook.table(k), 2, "kmeans", k) for k in range(2)]
    with torch.no_grad():
        codebook.book(0).weight.normal_()
        codebook.book(1).weight.normal_()
    assert torch.equal(model.cluster_of, torch.stack(expected)) and torch.equal(late.state_dict()["cluster_of"], model.cluster_of)
    again = CoarseToFine(spec, None, codebook, clusters=2, **TINY)
    with torch.inference_mode():
        again.nll_bound(codes(spec, 1), Condition())
    again.loss(codes(spec, 1), Condition(), None).loss.backward()


@pytest.mark.parametrize(
    "spoil", [lambda c: c + 1, lambda c: c - 2, lambda c: torch.zeros_like(c), lambda c: c.double(), lambda c: torch.full_like(c, 1 << 40)]
)
def test_damaged_labels_are_refused_in_one_line(spoil):
    model = CoarseToFine(RASTER, None, VQ(7, 3), clusters=3, **TINY)
    state = model.state_dict()
    state["cluster_of"] = spoil(state["cluster_of"])
    with pytest.raises(ValueError, match="labels of level 0 are not 0..2") as error:
        CoarseToFine(RASTER, None, VQ(7, 3), clusters=3, **TINY).load_state_dict(state)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("real", [False, True])
def test_it_builds_and_describes_itself_on_the_meta_device_also_over_a_real_codebook(real):
    codebook = VQ(7, 3)
    with torch.device("meta"):
        model = CoarseToFine(RASTER, CLASSES, codebook if real else VQ(7, 3), clusters=3, **TINY)
        tokens = Tokens(torch.zeros(2, 1, 12, dtype=torch.int64), RASTER)
        assert model(tokens)[1].is_meta and model.loss(tokens, Condition(), RowRNG(torch.zeros(2, dtype=torch.int64))).loss.is_meta
        assert model.state_dict()["cluster_of"].is_meta


def test_what_does_not_fit_is_refused_in_one_line():
    for options, line in (
        ({"clusters": 8}, "clusters=8 of level 0, which has 7 ids: set generator.clusters to 7"),
        ({"clusters": [2, 2]}, r"clusters=\[2, 2\]: one number, or one for each of 1 level"),
        ({"clusters": 0}, "above 0"),
        ({"clustering": "ward"}, "'kmeans', 'balanced', 'agglomerative' or 'random'"),
        ({"refiner_depth": 0}, "at least 1"),
        ({"codebook": None}, "coarse_to_fine clusters the rows of a codebook"),
        ({"layout": "spiral"}, "there is no layout 'spiral'"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            CoarseToFine(RASTER, None, **{"codebook": VQ(7, 3), "clusters": 3, **TINY, **options})
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="this generator models 1 x 12"):
        model_of(RASTER).labels(codes(LEVELS, 2).codes)
    assert capabilities(CoarseToFine) == ("Refines",)
