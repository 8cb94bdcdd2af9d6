"""The nll of a region given the rest: what the model says exactly, a bound where it can say no more, and refusals in one line."""

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gentok.bundle import build_generator, load, save
from gentok.cli import compose
from gentok.codebooks.pyramid import PyramidCodebook
from gentok.codebooks.vq import VQ
from gentok.evaluate import evaluate
from gentok.evaluation.likelihood import nll_in_words
from gentok.generators.any_order import AnyOrderTransformer
from gentok.generators.autoregressive import Autoregressive
from gentok.generators.coarse_to_fine import CoarseToFine
from gentok.generators.depth import DepthTransformer
from gentok.generators.masked import MaskedTransformer
from gentok.generators.next_scale import NextScaleTransformer
from gentok.region_likelihood import region_cells, region_nll
from gentok.rng import RowRNG
from gentok.samplers.guided import guided
from gentok.types import UNKNOWN, Class, ClassSpec, Condition, ConditionSpec, Line, Pyramid, Raster, Tokens, TokenSpec

sys.path.insert(0, str(Path(__file__).parent / "exact"))
from kit import completions  # noqa: E402

SPEC = TokenSpec((3, 2), Raster(2, 2))
CLASSES = ConditionSpec((("class", ClassSpec(("a", "b"))),))


def random_model(cls, spec=SPEC, **options):
    model = cls(spec, CLASSES, width=16, depth=1, heads=2, **options).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(RowRNG([3]).normal(*parameter.shape)[0] * 0.4)
    return model


def items(n, spec=SPEC):
    codes = torch.stack([torch.randint(0, v, (n, spec.positions), generator=torch.Generator().manual_seed(v)) for v in spec.vocab_sizes], 1)
    return Tokens(codes, spec), Condition({"class": Class(torch.arange(n) % 2)}), RowRNG.of(0, range(n))


def test_regions_are_cells():
    assert region_cells(None, SPEC).sum() == 8 and region_cells("scattered", SPEC) is None
    assert region_cells("left-half", SPEC).tolist() == [[True, False, True, False]] * 2


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 2)])
def test_a_mask_file_names_cells(tmp_path, shape):
    mask = np.zeros(shape, bool)
    mask[..., 1] = True
    np.save(tmp_path / "mask.npy", mask)
    cells = region_cells(str(tmp_path / "mask.npy"), SPEC)
    assert cells.tolist() == [[False, True, False, shape == (2, 2) and True]] * 2


@pytest.mark.parametrize("members", [True, False])
def test_a_coarse_to_fine_model_gives_the_density_of_whole_items_and_of_no_region(members):
    own = {"clusters": [2, 1], "clustering": "random", "refiner_width": 16, "refiner_depth": 1, "refiner_heads": 2}
    model, (tokens, condition, rng) = random_model(CoarseToFine, members=members, **own), items(4)
    tokens.codes[0, 1, 2] = -1
    nats, count, exact = region_nll(model, tokens, condition, region_cells(None, SPEC), rng)
    assert torch.allclose(nats, model.nll_bound(tokens, condition)) and exact == members and count.tolist() == [7, 8, 8, 8]
    assert nll_in_words(model) == nll_in_words(model, exact) == ("exact" if members else "an upper bound, by the ids' own labels alone")
    for region in (region_cells("left-half", SPEC), None):
        with pytest.raises(ValueError, match="CoarseToFine has a density of whole items.*any_order") as error:
            region_nll(model, tokens, condition, region, rng)
        assert "\n" not in str(error.value)


def test_a_next_scale_model_gives_the_density_of_whole_items_and_of_no_region():
    spec = TokenSpec((3,), Pyramid((1, 2)))
    model = random_model(NextScaleTransformer, spec, codebook=PyramidCodebook(VQ(3, 4), (1, 2)))
    tokens, condition, rng = items(4, spec)
    nats, count, exact = region_nll(model, tokens, condition, region_cells(None, spec), rng)
    assert torch.allclose(nats, model.nll_bound(tokens, condition)) and exact and count.tolist() == [5] * 4
    assert nll_in_words(model) == "exact"
    with pytest.raises(ValueError, match="has a density of whole items.*any_order"):
        region_nll(model, tokens, condition, None, rng)


def test_an_any_order_model_gives_the_exact_density_of_any_region():
    model, (tokens, condition, rng) = random_model(AnyOrderTransformer), items(4)
    for region in ("left-half", "top-half", None):
        asked = region_cells(region, SPEC)
        nats, cells, exact = region_nll(model, tokens, condition, asked, rng)
        assert exact and (cells == asked.sum()).all()
        assert torch.allclose(nats, -model.log_prob(tokens, condition, asked.expand_as(tokens.codes)))
    nats, cells, exact = region_nll(model, tokens, condition, None, rng)
    assert (cells == 4).all() and (nats > 0).all()


def test_a_causal_model_gives_it_where_the_region_comes_last():
    model, (tokens, condition, rng) = random_model(Autoregressive), items(4)
    whole = region_nll(model, tokens, condition, region_cells(None, SPEC), rng)[0]
    assert torch.allclose(whole, model.nll_bound(tokens, condition).double())
    bottom, cells, exact = region_nll(model, tokens, condition, region_cells("bottom-half", SPEC), rng)
    assert exact and (cells == 4).all() and (bottom < whole).all()
    total = torch.zeros(4, dtype=torch.float64)
    for filling in itertools.product(range(3), range(2), range(3), range(2)):
        codes = tokens.codes.clone()
        codes[:, :, 2:] = torch.tensor(filling).view(2, 2).T
        total += (-region_nll(model, Tokens(codes, SPEC), condition, region_cells("bottom-half", SPEC), rng)[0]).exp()
    assert torch.allclose(total, torch.ones_like(total))
    with pytest.raises(ValueError, match="any_order") as error:
        region_nll(model, tokens, condition, region_cells("left-half", SPEC), rng)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------- items that end by themselves


ENDING = [
    (sizes, strides, layout)
    for sizes, strides, layouts in [
        ((3,), None, ("auto", "raster", "level_major", "position_major", "delayed", "parallel")),
        ((2, 3), None, ("level_major", "position_major", "delayed", "parallel", "depth")),
        ((3, 2), (2, 1), ("level_major", "position_major", "delayed", "parallel", "depth")),
    ]
    for layout in layouts
]


def ending(sizes, strides, layout, positions=3):
    spec = TokenSpec(sizes, Line(positions), strides=strides)
    if layout == "depth":
        model = random_model(DepthTransformer, spec, level_width=8, level_heads=2, ends=True)
    else:
        model = random_model(Autoregressive, spec, layout=layout, ends=True)
    return model, spec


def every_item(spec, start=None):
    """All items, of every length at which level 0 can end; of those that begin with the codes `start` [K, n], where it is given."""
    stride, rows = spec.strides[0] if spec.strides else 1, []
    known = 0 if start is None else start.shape[1]
    for length in sorted({*range(0, spec.positions, stride), spec.positions}):
        if length < known:
            continue
        codes = Tokens.unknown(spec, 1, torch.tensor([length])).codes[0]
        if known:
            codes[:, :known] = start
        rows += [(filled, length) for filled in completions(codes, spec)]
    return Tokens(torch.stack([codes for codes, _ in rows]), spec, torch.tensor([length for _, length in rows])).validate()


def nats_of(model, tokens, asked, class_id=0):
    condition = Condition({"class": Class(torch.full((tokens.batch,), class_id))})
    return region_nll(model, tokens, condition, asked, RowRNG.of(0, range(tokens.batch))), model_nats(model, tokens, condition)


def model_nats(model, tokens, condition):
    return model.nll_bound(tokens, condition).double() if hasattr(model, "nll_bound") else None


@pytest.mark.parametrize(("sizes", "strides", "layout"), ENDING)
def test_probabilities_of_all_items_that_end_by_themselves_sum_to_one(sizes, strides, layout):
    model, spec = ending(sizes, strides, layout)
    tokens = every_item(spec)
    (nats, cells, exact), whole = nats_of(model, tokens, region_cells(None, spec))
    assert exact and torch.equal(cells, tokens.present.sum((1, 2)))
    assert float((-nats).exp().sum()) == pytest.approx(1, abs=1e-12)
    assert torch.allclose(nats, whole, atol=1e-12, rtol=0), "protocol=nll and protocol=generation are of one number"


@pytest.mark.parametrize(("sizes", "strides", "layout"), [e for e in ENDING if e[2] not in ("level_major", "delayed")])
def test_what_may_follow_the_first_cells_sums_to_one(sizes, strides, layout):
    """Items of every length, the shortest of which end where the region begins: all of it is the end."""
    model, spec = ending(sizes, strides, layout, positions=4)
    known = 2
    start = torch.where(spec.exists()[:, :known], 1, -1)
    tokens, asked = every_item(spec, start), spec.exists() & (torch.arange(4) >= known)
    (nats, cells, exact), whole = nats_of(model, tokens, asked)
    assert exact and float((-nats).exp().sum()) == pytest.approx(1, abs=1e-12)
    shortest = tokens.lengths == known
    assert (cells[shortest] == 0).all() and (nats[shortest] > 0.01).all()


@pytest.mark.parametrize("strides", [None, (2, 1)])
def test_an_end_that_comes_before_the_region_is_given(strides):
    """Coarse first: level 1 is drawn when the end is known."""
    model, spec = ending((3, 2), strides, "level_major")
    asked = spec.exists().clone()
    asked[0] = False
    tokens = every_item(spec)
    tokens = tokens.rows((tokens.lengths == 2).nonzero()[:, 0])
    (nats, _, exact), _ = nats_of(model, tokens, asked)
    coarse = tokens.codes[:, 0]
    for first in coarse.unique(dim=0):
        assert exact and float((-nats[(coarse == first).all(1)]).exp().sum()) == pytest.approx(1, abs=1e-12)


def test_a_region_that_holds_a_whole_item_holds_its_end():
    model, spec = ending((3,), None, "raster")
    tokens, asked = every_item(spec), torch.tensor([[True, True, False]])
    short = tokens.rows((tokens.lengths <= 2).nonzero()[:, 0])
    (nats, _, exact), whole = nats_of(model, short, asked)
    assert exact and torch.allclose(nats, whole, atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="comes after cells of this one"):
        nats_of(model, tokens, asked)


def test_guidance_moves_the_end_too_and_the_sum_stays_one():
    model, spec = ending((2, 3), None, "delayed")
    wrapped = guided(model, 2.0, "linear")
    (nats, _, exact), _ = nats_of(wrapped, every_item(spec), region_cells(None, spec), 1)
    assert exact and float((-nats).exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("layout", "exact"), [("parallel", False), ("delayed", False), ("position_major", True)])
def test_dependent_slots_are_no_exact_density(layout, exact):
    model, (tokens, condition, rng) = random_model(Autoregressive, layout=layout), items(3)
    asked = region_cells(None, SPEC)
    assert region_nll(model, tokens, condition, asked, rng)[2]
    model.exact_slots = False
    assert region_nll(model, tokens, condition, asked, rng)[2] == exact
    last = torch.zeros_like(asked)
    last[1, 3] = True  # alone in the last step of the delayed order, beside a known cell in the parallel one
    assert region_nll(model, tokens, condition, last, rng)[2] == (layout != "parallel")


def test_a_density_without_the_end_does_not_sum_to_one():
    model, spec = ending((3,), None, "raster")
    tokens = every_item(spec)
    condition = Condition({"class": Class(torch.zeros(tokens.batch, dtype=torch.int64))})
    with torch.no_grad():
        logits = model(tokens, condition)[:, :, 0].log_softmax(-1)
    cells = (logits.gather(2, tokens.codes.clamp(min=0).transpose(1, 2))[..., 0] * tokens.present[:, 0]).sum(1)
    assert float(cells.exp().sum()) > 1.5


def test_a_masked_models_bound_is_the_mean_over_all_orders_of_the_region():
    spec = TokenSpec((3,), Line(4))
    model = random_model(MaskedTransformer, spec)
    tokens, condition, _ = items(1, spec)
    asked, nats = torch.tensor([[True, True, False, True]]), []
    for order in itertools.permutations([0, 1, 3]):
        state, total = tokens.codes.masked_fill(asked, UNKNOWN), 0.0
        for n in order:
            distribution = model.logits(Tokens(state.clone(), spec), condition).detach()[0, 0, n].log_softmax(0)
            total -= float(distribution[tokens.codes[0, 0, n]])
            state[0, 0, n] = tokens.codes[0, 0, n]
        nats.append(total)
    many = 4000
    tokens, condition = tokens.rows([0] * many), condition.rows([0] * many)
    bound, cells, exact = region_nll(model, tokens, condition, asked, RowRNG.of(0, range(many)), samples=2)
    error = float(bound.std()) / math.sqrt(many)
    assert not exact and (cells == 3).all() and error < 0.03
    assert abs(float(bound.mean()) - sum(nats) / 6) < 4 * error


@pytest.mark.parametrize("region, message", [
    ("middle", "left-half.*scattered.*npy"), ("nowhere.npy", "no such file"), ("wrong.npy", r"is \[3\].*\[4\]"), ("empty.npy", "no cell"),
])  # fmt: skip
def test_a_region_that_is_none_is_refused_in_one_line(tmp_path, region, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("wrong.npy", np.ones(3, bool))
    np.save("empty.npy", np.zeros(4, bool))
    with pytest.raises(ValueError, match=message) as error:
        region_cells(region, SPEC)
    assert "\n" not in str(error.value)


def test_a_region_needs_a_raster_and_a_model_that_has_a_density():
    with pytest.raises(ValueError, match="raster"):
        region_cells("left-half", TokenSpec((3,), Line(4)))
    with pytest.raises(ValueError, match="AnyOrder, Causal, Masked, NextScale or Refines"):
        region_nll(object(), *items(2)[:2], None, RowRNG([0, 1]))


@pytest.mark.parametrize("name, exact", [("any_order", True), ("masked", False)])
def test_evaluate_writes_the_nll_of_a_region(tmp_path, name, exact):
    from test_evaluate import CLASSES as SIDES
    from test_evaluate import data, models

    pictures = tmp_path / "pictures"
    from PIL import Image

    for i, side in enumerate(("left", "right")):
        (pictures / side).mkdir(parents=True)
        for j in range(12):
            pixels = np.random.default_rng(j).integers(0, 60, (16, 16)) + 100 * i
            Image.fromarray(pixels.astype(np.uint8)).save(pictures / side / f"{j}.png")
    plain = load(models(tmp_path, pictures, generator=False))
    settings = {**compose("config", [f"generator={name}"])["generator"], "width": 16, "depth": 1, "heads": 2}
    path = save(
        tmp_path / name, tokenizer=plain.tokenizer, tokenizer_config=plain.tokenizer_config, condition_spec=SIDES,
        generator=build_generator(settings, plain.tokenizer, SIDES).eval(), generator_config=settings, meta={"data": data(pictures)},
    )  # fmt: skip
    overrides = [f"ckpt={path}", f"out={tmp_path / 'out'}", "progress=false", "trust=[paths]", "protocol=nll"]
    for region, tokens in (("left-half", 2), ("scattered", 2), (None, 4)):
        report = evaluate(compose("evaluate", [*overrides, f"region={region or 'null'}"]))
        metrics = report["metrics"]
        assert metrics["bits_per_token"] == pytest.approx(math.log2(9), abs=1e-5) and metrics["tokens"] == tokens * metrics["items"]
        assert report["protocol"]["region"] == region and (report["protocol"]["nll"] == "exact") == exact
        assert json.loads((tmp_path / "out" / "nll.json").read_text())["metrics"] == metrics
    with pytest.raises(ValueError, match="region=left-half is of protocol=nll"):
        evaluate(compose("evaluate", [f"ckpt={path}", f"out={tmp_path / 'out'}", "region=left-half"]))
    with pytest.raises(ValueError, match="holds a tokenizer alone: protocol=nll"):
        evaluate(compose("evaluate", [f"ckpt={tmp_path / 'model'}", f"out={tmp_path / 'out'}", "protocol=nll"]))
