"""Properties of next-scale prediction: what a scale is predicted from, cached as without a cache, its start, and refusals."""

import math

import pytest
import torch
from generator_kit import CLASSES, EVERYTHING, RASTER, codes, everything, randomise

from gentok.bundle import build_generator, build_tokenizer, load, save, stamp
from gentok.cli import compose
from gentok.codebooks.dual import DualCodebook
from gentok.codebooks.pyramid import PyramidCodebook
from gentok.codebooks.vq import VQ
from gentok.generators.base import capabilities
from gentok.generators.next_scale import NextScaleTransformer
from gentok.nn.attention import SelfAttention
from gentok.nn.transformer import Transformer
from gentok.rng import RowRNG
from gentok.samplers.next_scale import NextScaleSampler
from gentok.sampling import lower_precision, sample
from gentok.types import ABSENT, UNKNOWN, Class, Condition, Pyramid, Tokens, TokenSpec

SIDES = (1, 2, 4)
SPEC = TokenSpec((7,), Pyramid(SIDES), latent_positions=16)
CELLS = [1, 4, 16]
BY = ("adaln", "prefix", "cross")
KINDS = {
    "var": lambda: PyramidCodebook(VQ(7, 6, normalize=False), SIDES, width=10, phi=2),
    "tokenflow": lambda: PyramidCodebook(DualCodebook(7, 4, 4), SIDES, carry="progressive"),
}


def model_of(condition_spec=EVERYTHING, kind="var", dtype=torch.float64, **options):
    torch.manual_seed(0)
    own = {"width": 16, "depth": 2, "heads": 2, "condition_by": "adaln", **options}
    return randomise(NextScaleTransformer(SPEC, condition_spec, KINDS[kind](), **own)).to(dtype)


def fed_one_by_one(model, tokens, condition):
    cache = model.init_cache(condition, tokens.batch)
    return torch.cat([model.logits(tokens.codes, range(s, s + 1), cache) for s in range(3)], 1)


# -------------------------------------------------------------------------------------------------- what is predicted from what


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", BY)
def test_a_scale_depends_on_every_scale_before_it_and_on_no_other(by, kind):
    model, condition = model_of(kind=kind, condition_by=by, mlp_read=kind == "tokenflow"), everything(3)
    tokens = codes(SPEC, 3)
    before = model(tokens, condition).split(CELLS, 1)
    for s in range(3):
        changed = tokens.codes.clone()
        own = slice(sum(CELLS[:s]), sum(CELLS[: s + 1]))
        changed[:, :, own] = (changed[:, :, own] + 1) % 7
        after = model(Tokens(changed, SPEC), condition).split(CELLS, 1)
        same = [torch.equal(a, b) for a, b in zip(before, after)]
        assert same == [t <= s for t in range(3)]
        assert all((a != b).any(2).all() for a, b in zip(before[s + 1 :], after[s + 1 :])), "every cell sees all of it"


def test_what_is_read_is_the_codebooks_sum_at_the_scales_own_size():
    model, tokens = model_of(None), codes(SPEC, 2)
    book = model.codebook.on(torch.device("cpu"))
    sums = torch.cat([book.accumulate(tokens.codes[:, :, :n], [s]) for s, n in enumerate((0, 1, 5))], 2).double()
    assert not sums[:, :, :1].any()
    names = model.place_table.weight + model.level_table.weight[[0] + [1] * 4 + [2] * 16]
    assert torch.allclose(model._embed(tokens.codes, range(3), None), model.read(sums.transpose(1, 2)) + names)
    again = model._embed(tokens.codes, range(1, 2), None, own=True) - names[1:5]
    own = book.accumulate(tokens.codes[:, :, :5], [2], own=True).double()
    assert own.shape[2] == 4 and torch.allclose(again, model.read(own.transpose(1, 2)))
    assert "codebook" not in " ".join(model.state_dict()) and not any(p.requires_grad for p in book.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("by", BY)
def test_cached_logits_are_those_of_one_pass_also_of_several_scales_and_after_own_codes(by, dtype):
    model, tokens, condition = model_of(condition_by=by, dtype=dtype), codes(SPEC, 3), everything(3)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-6  # the codebook's sums are float32
    with torch.no_grad():
        whole = model(tokens, condition)
        assert (fed_one_by_one(model, tokens, condition) - whole).abs().max() < tolerance
        cache = model.init_cache(condition, 3)
        open_codes = tokens.codes.masked_fill(torch.arange(21) >= 5, UNKNOWN)
        assert (model.logits(open_codes, range(0, 2), cache) - whole[:, 1:5]).abs().max() < tolerance
        again = model.logits(open_codes, range(1, 2), cache, own=True)
        assert (again - whole[:, 1:5]).abs().max() > 1e-3
        assert (model.logits(open_codes, range(1, 3), cache) - whole[:, 5:]).abs().max() < tolerance
        wrong = model.init_cache(condition, 3)
        model.logits(open_codes, range(0, 2), wrong)
        model.logits(open_codes, range(1, 2), wrong, own=True)
        assert (model.logits(open_codes, range(2, 3), wrong) - whole[:, 5:]).abs().max() > 1e-3, "the own pass left its keys"


def test_bfloat16_autocast_and_weights_of_fewer_bits_are_near():
    model, tokens, condition = model_of(CLASSES, dtype=torch.float32), codes(SPEC, 4), Condition({"class": Class(torch.arange(4) - 1)})
    with torch.no_grad():
        right = model(tokens, condition)
        with torch.autocast("cpu", torch.bfloat16):
            assert (model(tokens, condition).float() - right).abs().max() < 0.1 * right.std()
            assert (fed_one_by_one(model, tokens, condition).float() - right).abs().max() < 0.1 * right.std()
            assert model.loss(tokens, condition).loss.dtype == torch.float32
        for dtype in ("bfloat16", "int8"):
            lower = lower_precision(model_of(CLASSES, dtype=torch.float32), dtype)
            assert (fed_one_by_one(lower, tokens, condition).float() - right).abs().max() < 0.2 * right.std()
            assert NextScaleSampler()(lower, condition, rng=RowRNG(range(4))).tokens.present.all()


# ---------------------------------------------------------------------------------------------------------------- likelihood


def test_nats_are_those_of_the_logits_and_absent_cells_carry_none():
    model, tokens, condition = model_of(), codes(SPEC, 4), everything(4)
    tokens.codes[1, 0, 5:] = ABSENT
    log_p = model(tokens, condition).log_softmax(2).gather(2, tokens.codes[:, 0, :, None].clamp(min=0))[..., 0]
    nats = -(log_p * tokens.present[:, 0]).sum(1)
    out = model.loss(tokens, condition)
    assert torch.allclose(model.nll_bound(tokens, condition), nats) and torch.allclose(out.nll, nats)
    assert int(out.count) == 3 * 21 + 5 and torch.allclose(out.loss, nats.sum() / out.count)
    per_scale = [float(out.terms[f"nll_scale{s}"]) * n for s, n in enumerate((4, 16, 48))]
    assert sum(per_scale) == pytest.approx(float(nats.detach().sum())) and torch.allclose(out.terms["nll"], out.loss)


@pytest.mark.parametrize("by", BY)
def test_gradient_flows_to_every_weight_and_a_row_of_a_batch_equals_the_row_alone_also_in_training(by):
    model = model_of(condition_by=by, dropout=0.2, condition_dropout=0.5, mlp_read=by == "prefix").train()
    tokens, condition = codes(SPEC, 6), everything(6)
    whole = model.loss(tokens, condition, RowRNG.of(3, range(6)))
    parts = [model.loss(tokens.rows([b]), condition.rows([b]), RowRNG.of(3, [b])) for b in range(6)]
    assert torch.allclose(torch.cat([part.nll for part in parts]), whole.nll, rtol=1e-5)
    model.condition_dropout = 0.0
    model.loss(tokens, condition, RowRNG.of(3, range(6))).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or float(p.grad.abs().max()) == 0]
    assert not without, without


def test_the_first_prediction_is_uniform_and_four_items_are_learned_by_heart():
    torch.manual_seed(0)
    model = NextScaleTransformer(
        SPEC, CLASSES, KINDS["var"](), width=32, depth=2, heads=2, condition_by="adaln", condition_dropout=0.0, zero_init_head=True
    )
    tokens, condition = codes(SPEC, 4), Condition({"class": Class(torch.tensor([0, 1, 2, -1]))})
    assert torch.allclose(model.nll_bound(tokens, condition), torch.full((4,), 21 * math.log(7)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(40):
        optimizer.zero_grad()
        model.loss(tokens, condition, RowRNG.of(0, range(4), step)).loss.backward()
        optimizer.step()
    assert model.nll_bound(tokens, condition).mean() < 0.1 * 21 * math.log(7)
    drawn = NextScaleSampler(temperature=0.1)(model.eval(), condition, rng=RowRNG(range(4))).tokens.codes
    assert (drawn == tokens.codes).double().mean() > 0.95


# ----------------------------------------------------------------------------------------------------------- attention, start


def test_cosine_attention_has_a_scale_per_head_of_at_most_a_hundred():
    torch.manual_seed(0)
    layer, x = SelfAttention(8, 2, "cosine").double(), torch.randn(2, 5, 8, dtype=torch.float64)
    assert torch.allclose(layer.qk_scale.exp(), torch.tensor([4.0, 4.0], dtype=torch.float64))
    with torch.no_grad():
        layer.qk_scale.copy_(torch.tensor([3.0, 150.0]).log())
    q, k, v = layer.qkv(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    cosine = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(k, dim=-1).transpose(2, 3)
    y = (cosine * torch.tensor([3.0, 100.0]).view(2, 1, 1)).softmax(-1) @ v
    assert torch.allclose(layer(x), layer.out(y.transpose(1, 2).reshape(2, 5, 8)), atol=1e-4)


def test_cosine_attention_is_the_same_without_modules():
    torch.manual_seed(0)
    network = Transformer(32, 2, 2, causal=True, qk_norm="cosine").double()
    x = torch.randn(2, 5, 32).double()
    with torch.no_grad():
        cache = network.init_cache(2, 5)
        got = torch.cat([network.extend(x[:, s : s + 1], None, cache, cache.window(torch.full((2,), s), 1)) for s in range(5)], 1)
        assert len(cache.blocks) == 2 and torch.allclose(got, network(x), atol=1e-10)


@pytest.mark.parametrize("gate_init", [1e-4, 0.0])
def test_gates_begin_far_smaller_than_shifts_and_scales(gate_init):
    model = NextScaleTransformer(SPEC, CLASSES, KINDS["var"](), width=64, depth=2, heads=2, condition_by="adaln", gate_init=gate_init)
    for block in model.transformer.blocks:
        sizes = [float(part.detach().std()) for part in block.modulation.weight.chunk(6)]
        assert all(size < 3e-6 for size in (sizes[2], sizes[5])) and all(0.007 < sizes[i] < 0.011 for i in (0, 1, 3, 4)), sizes
    x = torch.randn(1, 21, 64)
    vector = torch.randn(1, 64)
    assert torch.allclose(model.transformer(x, vector=vector), model.transformer.norm(x), atol=1e-3), "blocks begin near the identity"


# ------------------------------------------------------------------------------------------------------------------- refusals


def test_what_does_not_fit_is_refused_in_one_line():
    own = {"width": 16, "depth": 1, "heads": 2}
    for spec, book, options, line in (
        (RASTER, VQ(7, 3), {}, "a pyramid; this tokenizer has VQ on a raster: use generator=autoregressive or masked, or .*pyramid"),
        (SPEC, None, {}, "has no codebook"),
        (SPEC, KINDS["var"](), {"rope": "line"}, "leave generator.rope out"),
        (SPEC, KINDS["var"](), {"condition_by": "film"}, "prefix, cross, adaln"),
        (SPEC, KINDS["var"](), {"qk_norm": "l2"}, "'cosine'"),
        (SPEC, KINDS["var"](), {"gate_init": -1.0}, "at least 0"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            NextScaleTransformer(spec, CLASSES, book, **own, **options)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="this generator models 1 x 21"):
        model_of().nll_bound(codes(RASTER, 2), everything(2))
    assert capabilities(NextScaleTransformer) == ("NextScale",)


def test_it_builds_on_the_meta_device():
    with torch.device("meta"):
        model = NextScaleTransformer(SPEC, CLASSES, KINDS["var"](), width=16, depth=1, heads=2)
        tokens = Tokens(torch.zeros(2, 1, 21, dtype=torch.int64), SPEC)
        assert model(tokens).is_meta and model.loss(tokens, Condition()).loss.is_meta


def test_a_bundle_gives_it_back_with_its_codebook(tmp_path):
    torch.manual_seed(0)
    config = compose("config", ["codebook=pyramid_dual", "codebook.sides=[1,2,4]", "codebook.codebook.vocab_size=8", "tokenizer.width=8"])
    tokenizer_config = {**config["tokenizer"], "media_shape": [1, 16, 16], "losses": None}
    tokenizer = build_tokenizer(tokenizer_config).eval()
    stamp(tokenizer, tokenizer_config)
    settings = {**compose("config", ["generator=next_scale"])["generator"], "width": 16, "depth": 1, "heads": 2}
    generator = build_generator(settings, tokenizer, CLASSES).eval()
    randomise(generator)
    path = save(
        tmp_path / "model", tokenizer=tokenizer, tokenizer_config=tokenizer_config, generator=generator, generator_config=settings,
        condition_spec=CLASSES,
    )  # fmt: skip
    bundle = load(path)
    tokens, condition = tokenizer.encode(torch.rand(3, 1, 16, 16) * 2 - 1), Condition({"class": Class(torch.arange(3))})
    assert tokens.codes.shape == (3, 1, 21)
    assert torch.equal(bundle.generator(tokens, condition), generator(tokens, condition))
    samples = sample(bundle, n=3, condition=["a", "b", "c"], guidance=2.5, guidance_schedule="linear")
    assert samples.media.shape == (3, 1, 16, 16) and samples.calls.tolist() == [3, 3, 3]
    few = bundle.sample(n=2, condition="a", sampler=NextScaleSampler(repredict=[2, 1]), top_k=4)
    assert few.shape == (2, 1, 16, 16)


def test_the_shipped_settings_build_it():
    class Tokenizer:
        spec, codebook = SPEC, KINDS["tokenflow"]()

        class written_condition:
            parts = ()

    settings = {**compose("config", ["generator=next_scale"])["generator"], "width": 16, "depth": 1, "heads": 2}
    assert build_generator(settings, Tokenizer, EVERYTHING).transformer.blocks[0].attention.cosine
