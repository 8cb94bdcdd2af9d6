"""Products with weights of few bits: what they compute, and how far they are from the product in float64."""

import pytest
import torch

from gentok.generators.autoregressive import Autoregressive
from gentok.nn import linear
from gentok.nn.linear import Int8Linear, Linear, activations, product, quantize
from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.types import Condition, Raster, Tokens, TokenSpec


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        torch.manual_seed(0)
        yield


@pytest.fixture(params=[False, True], ids=["without bfloat16", "with bfloat16"])
def processor(request, monkeypatch):
    monkeypatch.setattr(linear, "_has_bfloat16", lambda: request.param)
    return request.param


@pytest.mark.parametrize("rows", [1, 3, 4, 20])
def test_a_product_with_bfloat16_weights_is_that_of_the_rounded_weights(rows, processor):
    weight, x = torch.randn(1000, 48).bfloat16(), torch.randn(2, rows, 48).bfloat16()
    want = x.double() @ weight.double().T
    got = product(activations(x), weight)
    assert got.dtype == activations(x).dtype == (torch.bfloat16 if processor else torch.float32)
    narrow = processor or 2 * rows <= linear._NARROW
    assert (got - want).abs().max() < want.abs().max() * (2**-8 if narrow else 1e-6)


def test_wide_products_widen_every_block_once(processor):
    """Blocks of 768 rows, of which the last is not full."""
    weight, x = torch.randn(2 * linear._BLOCK + 5, 16).bfloat16(), torch.randn(9, 16)
    if processor:
        x = x.bfloat16()
    got = product(x, weight)
    assert got.shape == (9, len(weight))
    assert torch.allclose(got.double(), x.double() @ weight.double().T, atol=0.1 if processor else 1e-4)


def test_what_is_trained_and_float32_and_autocast_go_the_usual_way(monkeypatch):
    monkeypatch.setattr(linear, "_has_bfloat16", lambda: False)
    x, layer = torch.randn(9, 16), Linear(16, 5)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight))
    with torch.enable_grad():
        assert activations(x.bfloat16()).dtype == torch.bfloat16
        layer.bfloat16()(x.bfloat16()).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        assert activations(x.bfloat16()).dtype == torch.bfloat16


# ----------------------------------------------------------------------------------------------------------------- integers


@pytest.mark.parametrize("width", [48, 50])
@pytest.mark.parametrize("rows", [1, 8, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_error_of_integer_weights_is_bounded_by_half_a_scale(width, rows, dtype):
    layer, x = Linear(width, 1000).double(), torch.randn(rows, width).to(dtype)
    layer.weight[7] = 0.0  # an output without a scale
    layer.weight[8] *= 1e6
    integers = Int8Linear(layer.weight)
    restored = integers.weight.double() * integers.scale.double()[:, None]
    assert ((restored - layer.weight).abs() <= integers.scale.double()[:, None] / 2 * (1 + 1e-6)).all()
    assert integers.weight.abs().max() <= 127 and (integers.scale.double() * 127 <= layer.weight.abs().amax(1) * 1.02 + 1e-30).all()
    want, got = x.double() @ restored.T, integers(x)
    rounding = 2**-7 if dtype != torch.float64 else 1e-12  # of activations and results to bfloat16
    assert got.dtype == dtype and ((got - want).abs() <= rounding * (x.double().abs() @ restored.abs().T) + 1e-30).all()
    assert torch.allclose(integers(x, slice(3, 12)), got[:, 3:12], rtol=rounding, atol=1e-30)


def test_a_mutant_with_one_scale_for_all_outputs_is_beyond_the_bound():
    weight = torch.randn(64, 48).double() * torch.logspace(-2, 0, 64).double()[:, None]
    integers = Int8Linear(weight)
    one = integers.scale.max().double()
    restored = (weight / one).round() * one
    assert ((restored - weight).abs() > integers.scale.double()[:, None] / 2 * (1 + 1e-6)).any()


@pytest.mark.parametrize("options", [{}, {"tie_embeddings": True}, {"ends": True}])
def test_a_generator_of_integers_is_near_itself_and_its_cache_agrees_with_it(options):
    model = Autoregressive(TokenSpec((32,), Raster(3, 3)), width=32, depth=2, heads=2, **options).eval()
    codes = torch.randint(32, (4, 1, 9))
    tokens = Tokens(codes, model.spec)
    before = model(tokens).log_softmax(-1)
    names = set(model.state_dict())
    assert quantize(model) is model and any(isinstance(part, Int8Linear) for part in model.modules())
    assert names <= set(model.state_dict())
    after = model(tokens).log_softmax(-1)
    kl = (before.exp() * (before - after)).nan_to_num().sum(-1)
    assert 0 < kl.mean() < 1e-3
    cache, at = model.init_cache(Condition(), 4, 9), torch.zeros(4, dtype=torch.int64)
    cached = model.logits(model.feed(codes), cache, at).log_softmax(-1)
    assert torch.allclose(cached, after, atol=1e-5)
    drawn = AutoregressiveSampler()(model, Condition(), rng=RowRNG.of(0, torch.arange(4))).tokens
    assert drawn.batch == 4


def test_integers_move_and_are_never_converted():
    layer = Int8Linear(torch.randn(4, 16)).to(torch.float64)
    assert (layer.weight.dtype, layer.scale.dtype) == (torch.int8, torch.bfloat16)
    assert layer.to("meta").weight.is_meta


def test_a_packed_product_is_the_product():
    weight, x = torch.randn(1024, 600), torch.randn(3, 5, 600)
    assert linear.pays_to_pack(weight, 15) or not linear._has_packing()
    assert not linear.pays_to_pack(weight, 3) and not linear.pays_to_pack(weight[:8], 15) and not linear.pays_to_pack(weight.double(), 15)
    if linear._has_packing():
        product_of = linear.packed_product(weight, 15)
        for rows in (x, x[:1, :1], x.repeat(4, 1, 1)):  # of other numbers of rows than it was packed for
            assert torch.allclose(product_of(rows), rows @ weight.T, atol=1e-3)
