"""Properties of the transformer's parts: each equals a naive explicit reference, and their gradients are right."""

import math

import pytest
import torch

from gentok.nn.attention import SelfAttention, attend
from gentok.nn.kv_cache import KVCache, ancestors
from gentok.nn.norm import rms_norm
from gentok.nn.rope import rotate, rotation
from gentok.nn.transformer import Transformer, dropout
from gentok.rng import RowRNG


def rotated(x: list[float], coordinates: list[int], theta: float = 10000.0) -> list[float]:
    """One head's channels turned pair by pair with complex numbers."""
    d, axes = len(x), len(coordinates)
    pairs = d // 2 // axes
    out = [0.0] * d
    for a, coordinate in enumerate(coordinates):
        for i in range(pairs):
            j = a * pairs + i
            z = complex(x[j], x[j + d // 2]) * complex(math.cos(1), math.sin(1)) ** (coordinate * theta ** (-i / pairs))
            out[j], out[j + d // 2] = z.real, z.imag
    return out


@pytest.mark.parametrize("axes", [1, 2])
def test_rotation_equals_complex_products(axes):
    torch.manual_seed(0)
    x = torch.randn(3, 2, 1, 8, dtype=torch.float64)
    query, key = torch.randint(-3, 9, (3, axes)), torch.randint(-3, 9, (3, axes))
    rope = rotation(query, key, head_width=8)
    got = rotate(x, (rope[0].double(), rope[1].double()))
    for t in range(3):
        for side, where in enumerate((query, key)):
            want = torch.tensor(rotated(x[t, side, 0].tolist(), where[t].tolist()), dtype=torch.float64)
            assert torch.allclose(got[t, side, 0], want, atol=1e-6)  # the tables are float32


def test_scores_depend_on_differences_of_coordinates_alone():
    torch.manual_seed(0)
    qk = torch.randn(1, 2, 1, 16)
    scores = []
    for shift in ([0, 0], [5, 0], [0, -7], [3, 11]):
        rope = rotation(torch.tensor([[2, 3]]) + torch.tensor(shift), torch.tensor([[1, 7]]) + torch.tensor(shift), head_width=16)
        y = rotate(qk, rope)
        scores.append((y[0, 0] * y[0, 1]).sum())
    assert torch.allclose(torch.stack(scores), scores[0].expand(4), atol=1e-5)
    assert not torch.allclose((qk[0, 0] * qk[0, 1]).sum(), scores[0], atol=1e-3)


def test_a_head_that_does_not_split_evenly_is_refused():
    with pytest.raises(ValueError, match="divisible by 4"):
        rotation(torch.zeros(3, 2), head_width=6)


@pytest.mark.parametrize("weight", [None, (8,), (2, 1, 8)])
def test_rms_norm_equals_its_formula_and_so_do_its_gradients(weight):
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4, 8, dtype=torch.float64, requires_grad=True)
    w = None if weight is None else torch.randn(weight, dtype=torch.float64, requires_grad=True)
    want = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    want = want if w is None else want * w
    assert torch.allclose(rms_norm(x, w), want)
    with torch.no_grad():
        assert torch.allclose(rms_norm(x, w), want)
    inputs = (x,) if w is None else (x, w)
    assert torch.autograd.gradcheck(lambda x, w=None: rms_norm(x, w), inputs)


def test_rms_norm_gives_the_autocast_type():
    x = torch.randn(2, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = rms_norm(x, torch.ones(8))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("case", ["plain", "causal", "mask"])
def test_attention_equals_torchs_kernel(case):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(3))
    mask = (torch.rand(2, 1, 5, 5) > 0.4) | torch.eye(5, dtype=torch.bool) if case == "mask" else None
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=case == "causal")
    assert torch.allclose(attend(q, k, v, mask, case == "causal"), want)


def test_self_attention_equals_loops():
    torch.manual_seed(0)
    width, heads, length = 8, 2, 4
    layer = SelfAttention(width, heads).double()
    torch.nn.init.normal_(layer.qk_scale)
    x = torch.randn(1, length, width, dtype=torch.float64)
    where = torch.tensor([[0], [1], [2], [5]])
    got = layer(x, tuple(t.double() for t in rotation(where, head_width=4)), causal=True)
    qkv = (x[0] @ layer.qkv.weight.T).view(length, 3, heads, 4)
    out = torch.zeros(length, heads, 4, dtype=torch.float64)

    def prepared(vector, scale, place):
        normed = vector / (vector.square().mean() + 1e-6).sqrt() * scale
        return torch.tensor(rotated(normed.tolist(), [place]), dtype=torch.float64)

    for h in range(heads):
        for i in range(length):
            q = prepared(qkv[i, 0, h], layer.qk_scale[:4], int(where[i]))
            scores = torch.stack([q @ prepared(qkv[j, 1, h], layer.qk_scale[4:], int(where[j])) / 2.0 for j in range(i + 1)])
            out[i, h] = scores.softmax(0) @ qkv[: i + 1, 2, h]
    want = out.reshape(length, width) @ layer.out.weight.T
    assert torch.allclose(got[0], want, atol=1e-6)


def test_ancestors_are_the_path_to_the_root():
    parents = torch.tensor([[-1, 0, 0, 1, 3, -1], [-1, 0, 1, 2, 3, 4]])
    reach = ancestors(parents)
    for b in range(2):
        for s in range(6):
            path, node = set(), s
            while node >= 0:
                path.add(node)
                node = int(parents[b, node])
            assert set(reach[b, s].nonzero()[:, 0].tolist()) == path


def test_a_parent_after_its_child_is_refused():
    with pytest.raises(ValueError, match="before their children"):
        ancestors(torch.tensor([[1, -1]]))


def test_a_full_cache_says_so():
    with pytest.raises(ValueError, match="room for 3 steps"):
        KVCache(1, 2, 3).window(torch.tensor([0, 2]), 2)


@pytest.mark.parametrize("causal", [True, False])
def test_causal_models_read_no_later_token_and_bidirectional_ones_read_all(causal):
    torch.manual_seed(0)
    model = Transformer(16, 2, 2, causal=causal).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.randn(1, 6, 16, dtype=torch.float64)
    y = x.clone()
    y[0, 3] += 1.0
    rope = rotation(torch.arange(6)[:, None], head_width=8)
    changed = (model(x, rope) - model(y, rope)).abs().amax(2)[0] > 1e-9
    assert changed.tolist() == [not causal] * 3 + [True] * 3


def test_adaln_zero_begins_as_the_identity():
    model = Transformer(16, 2, 2, adaln=True)
    x, vector = torch.randn(2, 5, 16), torch.randn(2, 16)
    assert torch.equal(model(x, vector=vector), model.norm(x))


def test_every_parameter_learns():
    torch.manual_seed(0)
    model = Transformer(16, 2, 2, adaln=True, cross=True)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    y = model(
        torch.randn(2, 5, 16), rotation(torch.arange(5)[:, None], head_width=8), context=torch.randn(2, 3, 16), vector=torch.randn(2, 16)
    )
    (y * torch.randn_like(y)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_dropout_keeps_the_mean_its_rate_and_its_rows():
    x = torch.ones(4, 30, 101)
    y = dropout(x, 0.3, RowRNG([1, 2, 3, 4]))
    assert abs(float((y == 0).float().mean()) - 0.3) < 0.02
    assert abs(float(y.mean()) - 1.0) < 0.03
    assert torch.equal(dropout(x[2:3], 0.3, RowRNG([3])), y[2:3])
    assert dropout(x, 0.3, None) is x


@pytest.mark.parametrize("name,depth", [("swiglu", 3), ("gelu", 2)])
def test_a_residual_stream_keeps_its_size_at_the_start(name, depth):
    torch.manual_seed(0)
    model = Transformer(64, depth, 4, activation=name)
    assert model.blocks[0].mlp.out.weight.std() < 0.02 / math.sqrt(2 * depth) * 1.05
    x = torch.randn(2, 8, 64)
    for block in model.blocks:
        x = block(x)
    assert 0.8 < float(x.detach().std()) < 1.3
