"""A call over the cache without modules computes what the blocks compute, bit for bit, and what a pass without a cache computes."""

import pytest
import torch

from gentok.generators.autoregressive import Autoregressive
from gentok.nn import decoding, transformer
from gentok.nn.kv_cache import KVCache
from gentok.nn.linear import quantize
from gentok.nn.rope import rotate, rotation, widened
from gentok.nn.transformer import Transformer
from gentok.types import ABSENT, Condition, ConditionSpec, Ids, IdsSpec, Raster, Tokens, TokenSpec

SPEC = TokenSpec((7, 5), Raster(2, 3))
TEXT = ConditionSpec((("text", IdsSpec(tuple("abc"), 4)),))
CONDITION = Condition({"text": Ids(torch.tensor([[0, 1, ABSENT], [2, ABSENT, ABSENT], [1, 1, 2]]))})


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        torch.manual_seed(0)
        yield


def model_of(dtype=torch.float64, **options):
    model = Autoregressive(SPEC, TEXT, width=32, depth=2, heads=2, layout="position_major", **options).to(dtype).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def calls(model):
    """Windows of one and of several steps, with rows at one step and at several, and a tree: logits of each, and those of a pass without
    a cache."""
    codes = torch.stack([torch.randint(size, (3, 6)) for size in SPEC.vocab_sizes], 1)
    want, ids = model(Tokens(codes, SPEC), CONDITION), model.feed(codes)
    cache, out = model.init_cache(CONDITION, 3, 16), []

    def call(*at, width, parents=None, steps=None):
        at = torch.tensor(at)
        steps = at[:, None] + (torch.arange(width) if steps is None else torch.tensor(steps))
        rows = torch.arange(3)[:, None]
        got = model.logits(ids[rows, steps], cache, at, None if parents is None else torch.tensor(parents).expand(3, -1))
        model.commit(cache, at)
        out.append((got, want[rows, steps]))

    call(0, 0, 0, width=2)
    call(2, 2, 2, width=1)
    call(3, 3, 3, width=4)
    call(7, 7, 7, width=4, parents=[-1, -1, 0, 2], steps=[[0, 0, 1, 2]])
    call(7, 3, 5, width=1)
    call(8, 4, 6, width=3)
    call(9, 7, 8, width=3, parents=[-1, 0, 0], steps=[[0, 1, 1]])
    return out


OPTIONS = [{}, {"qk_norm": False}, {"condition_by": "cross"}, {"condition_by": "adaln"}]


@pytest.mark.parametrize("options", OPTIONS)
def test_windows_trees_and_rows_at_different_steps_agree_with_a_pass_without_a_cache(options):
    for got, want in calls(model_of(**options)):
        assert (got - want).nan_to_num(neginf=0.0).abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS[:2])
def test_plain_blocks_compute_the_bits_of_the_modules(options, dtype, monkeypatch):
    model = model_of(dtype, **options)
    torch.manual_seed(1)
    plain = calls(model)
    monkeypatch.setattr(transformer, "plain_blocks", lambda *_: None)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(plain, calls(model)))


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_both_activations(activation):
    network = Transformer(32, 2, 2, activation=activation).double()
    x = torch.randn(2, 5, 32).double()
    cache = network.init_cache(2, 5)
    got = [network.extend(x[:, s : s + 1], None, cache, cache.window(torch.full((2,), s), 1)) for s in range(5)]
    assert len(cache.blocks) == 2
    assert torch.allclose(torch.cat(got, 1), network(x), atol=1e-10)


def test_what_is_not_plain_goes_through_the_modules():
    x = torch.randn(1, 1, 32)
    assert len(decoding.plain_blocks(Transformer(32, 1, 2).blocks, x)) == 1
    for options in ({"cross": True}, {"adaln": True}):
        assert decoding.plain_blocks(Transformer(32, 1, 2, **options).blocks, x) is None
    with torch.enable_grad():
        assert decoding.plain_blocks(Transformer(32, 1, 2).blocks, x) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert decoding.plain_blocks(Transformer(32, 1, 2).blocks, x) is None


def test_integer_weights_are_plain_too():
    model = quantize(model_of(torch.float32))
    for got, want in calls(model):
        assert torch.allclose(got.log_softmax(-1).exp(), want.log_softmax(-1).exp(), atol=0.05)


def test_a_wide_rotation_is_the_rotation():
    x, rope = torch.randn(4, 2, 3, 8), rotation(torch.arange(4)[:, None], torch.arange(4)[:, None] - 1, head_width=8)
    assert torch.equal(rotate(x, widened(rope)), rotate(x, rope))
    assert not torch.equal(rotate(x, (widened(rope)[0], -widened(rope)[1])), rotate(x, rope))


# ----------------------------------------------------------------------------------------------------------------- mutants


@pytest.mark.parametrize("mutant", ["rotation one step late", "values of the step before", "no scale of the keys"])
def test_mutants_are_far_from_the_pass_without_a_cache(mutant, monkeypatch):
    model = model_of()
    if mutant == "rotation one step late":
        monkeypatch.setattr(decoding, "rotate", lambda x, rope: rotate(x, tuple(table.roll(1, -4) for table in rope)))
    elif mutant == "values of the step before":
        write = KVCache.write
        monkeypatch.setattr(KVCache, "write", lambda self, layer, k, v, window: write(self, layer, k, v.roll(1, 2), window))
    else:
        made = decoding.plain_blocks

        def without(*given):
            return [block._replace(qk_scale=torch.ones_like(block.qk_scale)) for block in made(*given)]

        monkeypatch.setattr(transformer, "plain_blocks", without)
    assert max((got - want).nan_to_num(neginf=0.0).abs().max() for got, want in calls(model)) > 1e-3
