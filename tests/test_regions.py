"""The nll of a region given the rest: what the model says exactly, a bound where it can say no more, and refusals in one line."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from gentok.bundle import build_generator, load, save
from gentok.cli import compose
from gentok.evaluate import evaluate
from gentok.generators.any_order import AnyOrderTransformer
from gentok.generators.autoregressive import Autoregressive
from gentok.generators.masked import MaskedTransformer
from gentok.region_likelihood import region_cells, region_nll
from gentok.rng import RowRNG
from gentok.types import UNKNOWN, Class, ClassSpec, Condition, ConditionSpec, Line, Raster, Tokens, TokenSpec

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
    with pytest.raises(ValueError, match="AnyOrder, Causal or Masked"):
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
