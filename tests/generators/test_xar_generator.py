"""xAR: its loss and its sampling are what direct code gives; caches, precisions, codebooks, bundles, and what is refused."""

import copy

import pytest
import torch

from gentok.bundle import build_generator, build_tokenizer, load, save, stamp
from gentok.cli import compose
from gentok.codebooks.bae import BAE
from gentok.codebooks.fsq import FSQ
from gentok.codebooks.vq import VQ
from gentok.errors import ConfigError
from gentok.generators.vector_coordinates import VectorCoordinates
from gentok.generators.xar import XAR
from gentok.nn.linear import quantize
from gentok.rng import RowRNG
from gentok.samplers.entities import EntitiesSampler
from gentok.samplers.guided import guided
from gentok.sampling import sample_tokens
from gentok.types import UNKNOWN, Class, ClassSpec, Condition, ConditionSpec, IdsSpec, Latents, Line, Raster, Tokens, TokenSpec

CLASSES = ConditionSpec((("class", ClassSpec(("a", "b", "c"))),))
SPEC = TokenSpec((), Raster(2, 4), width=3)
KINDS = {
    "token": [[n] for n in range(8)], "cell": [[0, 1, 4, 5], [2, 3, 6, 7]], "subsample": [[0, 2, 4, 6], [1, 3, 5, 7]],
    "image": [list(range(8))],
}  # fmt: skip
"""What the entities of a grid of 2 x 4 are, written out; cells and subsamples of side 2."""


def model_of(entity="cell", spec=SPEC, condition_spec=CLASSES, dtype=torch.float64, **options):
    side = {"entity_side": 2} if entity in ("cell", "subsample") else {}
    torch.manual_seed(0)
    model = XAR(spec, condition_spec, entity=entity, **{"width": 16, "depth": 3, "heads": 2, **side, **options})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return model.to(dtype).eval()


def latents(batch, spec=SPEC, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    return Latents(torch.randn(batch, spec.width, spec.positions, generator=generator, dtype=dtype), spec)


def classes(batch):
    return Condition({"class": Class(torch.arange(batch) % 4 - 1)})


def rows(n):
    return RowRNG.of(0, range(n))


def direct(model, x, t, parts, condition):
    """The velocity of the last of some entities, by one pass over all of them, with no cache: x float [B, n, C] each, t float [B] each."""
    vector = model.conditioner(condition, len(t[0])).vector
    out = model.network(torch.cat(x, 1), torch.stack(t, 1), vector, range(len(parts)))
    return out[:, -len(parts[-1]) :]


# ------------------------------------------------------------------------------------------------------- loss and sampling


@pytest.mark.parametrize("context", ["independent", "clean", "increasing", "decreasing"])
@pytest.mark.parametrize("entity", KINDS)
def test_one_pass_has_the_loss_of_a_pass_per_entity(entity, context):
    """Of entity=image it is plain flow matching, of entity=token a model of every token given those before it."""
    model, data, condition, parts = model_of(entity, dtype=torch.float32, context=context), latents(5), classes(5), KINDS[entity]
    out = model.loss(Latents(data.values.float(), SPEC), condition, rows(5))

    rng = rows(5)
    t = torch.sigmoid(torch.special.ndtri(rng.uniform(len(parts))))
    t = {"increasing": t.sort(1).values, "decreasing": t.sort(1, descending=True).values}.get(context, t)
    noise = rng.normal(8, 3)
    errors, seen = [], 0
    before, times = [], []
    for i, part in enumerate(parts):
        x = data.values[:, :, part].transpose(1, 2)
        eps = noise[:, seen : seen + len(part)]
        at = t[:, i, None, None]
        noisy = (1 - at) * x + at * eps
        v = direct(model, [*before, noisy.float()], [*times, t[:, i]], parts[: i + 1], condition)
        errors.append((v - (eps - x)).square())
        before.append((x if context == "clean" else noisy).float())
        times.append(torch.zeros_like(t[:, i]) if context == "clean" else t[:, i])
        seen += len(part)
    torch.testing.assert_close(out.loss.double(), torch.cat(errors, 1).mean().detach(), atol=1e-5, rtol=1e-5)
    assert int(out.count) == data.values.numel() and out.nll is None
    if len(parts) > 1:
        torch.testing.assert_close(out.terms["last"].double(), errors[-1].mean().detach(), atol=1e-5, rtol=1e-5)


# What is drawn is float32; in a float32 network rounding grows over the passes.
@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-6), (torch.float32, 2e-4)])
@pytest.mark.parametrize("entity", KINDS)
def test_cached_sampling_is_a_loop_over_uncached_passes(entity, dtype, close):
    model, condition, parts, steps = model_of(entity, dtype=dtype), classes(3), KINDS[entity], 3
    out = EntitiesSampler(solver="euler", steps=steps)(model, condition, rng=rows(3))

    rng, done = rows(3), []
    with torch.no_grad():
        for i, part in enumerate(parts):
            x = rng.normal(len(part), 3)
            for step in range(steps):
                t = torch.full((3,), 1 - step / steps, dtype=torch.float64)
                v = direct(model, [*done, x.to(dtype)], [torch.zeros_like(t)] * i + [t], parts[: i + 1], condition)
                x = x - v / steps
            done.append(x.to(dtype))
    wanted = torch.empty(3, 3, 8, dtype=torch.float64)
    for part, x in zip(parts, done):
        wanted[:, :, part] = x.double().transpose(1, 2)
    torch.testing.assert_close(out.tokens.values.double(), wanted, atol=close, rtol=close)
    if len(parts) > 1:  # a cache that keeps what the last noisy call left there is found out
        model.__class__ = Stale
        stale = EntitiesSampler(solver="euler", steps=steps)(model, condition, rng=rows(3)).tokens.values
        assert torch.equal(stale[:, :, parts[0]], out.tokens.values[:, :, parts[0]]) and (stale.double() - wanted).abs().max() > 1e-3


class Stale(XAR):
    def velocity(self, x, t, index, cache, clean=(), progress=1.0):
        return super().velocity(x, t, index, cache, (), progress)


def test_scales_are_drawn_from_coarse_to_fine_and_the_last_one_is_the_item():
    model = model_of("scale", TokenSpec((), Raster(4, 4), width=3))
    assert model.sizes == (1, 4, 16)
    seen = []
    out = EntitiesSampler(steps=2)(model, classes(2), rng=rows(2), on_step=lambda tokens, *_: seen.append(tokens))
    assert [int(tokens.present.sum()) for tokens in seen] == [0, 0, 32] and out.tokens.values.isfinite().all()
    parts, known = model.split(out.tokens)
    torch.testing.assert_close(parts[0][:, 0], out.tokens.values.mean(2))
    assert known.all()


def test_an_entity_sees_those_before_it_and_no_other():
    model, data = model_of("cell"), latents(2)
    changed = Latents(data.values.clone(), SPEC)
    changed.values[:, :, KINDS["cell"][1]] += 1.0
    a, b = model(data, classes(2)), model(changed, classes(2))
    torch.testing.assert_close(a[:, :4], b[:, :4])
    assert not torch.allclose(a[:, 4:], b[:, 4:])
    changed = Latents(data.values.clone(), SPEC)
    changed.values[:, :, 0] += 1.0  # the first vector of the first cell reaches all
    assert ((model(changed, classes(2)) - a).abs().amax((0, 2)) > 1e-6).all()


def test_a_row_alone_is_the_row_in_its_batch_with_guidance_and_noise():
    model, condition = model_of("cell", dtype=torch.float32), classes(4)
    sampler, guide = EntitiesSampler(steps=4), guided(model, 2.0, "linear")
    whole = sampler(guide, condition, rng=rows(4)).tokens.values
    for row in range(4):
        at = torch.tensor([row])
        alone = sampler(guide, condition.rows(at), rng=RowRNG.of(0, at)).tokens.values
        torch.testing.assert_close(alone, whole[row : row + 1], atol=1e-5, rtol=1e-5)
    # and the unguided first entity is that of the model itself
    plain = sampler(model, condition, rng=rows(4)).tokens.values
    torch.testing.assert_close(whole[:, :, KINDS["cell"][0]], plain[:, :, KINDS["cell"][0]], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(whole, plain, atol=1e-3)


def test_half_precision_and_integers_are_near():
    model = model_of("cell", dtype=torch.float32, width=32)
    data = Latents(latents(4).values.float(), SPEC)
    exact = model(data, classes(4))
    scale = exact.square().mean().sqrt()
    with torch.no_grad():
        for other in (copy.deepcopy(model).to(torch.bfloat16), quantize(copy.deepcopy(model))):
            assert (other(data, classes(4)).float() - exact).square().mean().sqrt() < 0.1 * scale
            assert EntitiesSampler(steps=2)(other, classes(4), rng=rows(4)).tokens.values.isfinite().all()
    full = model.loss(data, classes(4), rows(4)).loss
    with torch.autocast("cpu", torch.bfloat16):
        half = model.loss(data, classes(4), rows(4)).loss
    assert half.dtype == torch.float32 and abs(half - full) < 0.02 * full


def test_dropout_and_null_conditions_are_of_training_alone_and_of_the_rows_own():
    model = model_of("cell", dtype=torch.float32, dropout=0.2, condition_dropout=0.5)
    data = Latents(latents(6).values.float(), SPEC)
    calm = [model.loss(data, classes(6), rows(6)).loss for _ in range(2)]
    model.train()
    wild = [model.loss(data, classes(6), rows(6)).loss for _ in range(2)]
    assert calm[0] == calm[1] and wild[0] == wild[1] and calm[0] != wild[0]
    wild[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_text_is_a_condition():
    spec = ConditionSpec((("text", IdsSpec(tuple("xyz"), 4)),))
    model = model_of("cell", condition_spec=spec)
    drawn = [EntitiesSampler(steps=2)(model, spec.parse(text, 1), rng=rows(1)).tokens.values for text in ("xy", "xy", "zz", None)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2]) and not torch.allclose(drawn[0], drawn[3])


# -------------------------------------------------------------------------------------------------------------------- codes


def test_coordinates_of_a_codebook_are_whitened_and_invertible_and_leave_out_what_it_never_fills():
    torch.manual_seed(0)
    wide = FSQ([5, 4, 3], width=7)
    spec = TokenSpec(tuple(wide.vocab_sizes), Raster(4, 4))
    coordinates = VectorCoordinates(wide, spec)
    assert coordinates.channels == 3
    codes = torch.randint(0, 60, (256, 1, 16))
    vectors = wide.lookup(codes)
    inside = coordinates.of(vectors)
    torch.testing.assert_close(coordinates.vectors(inside).float(), vectors, atol=1e-5, rtol=1e-4)
    assert abs(inside.square().mean() - 1) < 0.05 and inside.mean((0, 2)).abs().max() < 0.1
    assert torch.equal(wide.nearest(coordinates.vectors(inside).float()), codes)


def test_codes_are_drawn_by_their_vectors_and_known_ones_stay():
    torch.manual_seed(0)
    codebook = VQ(11, 3, normalize=False)
    spec = TokenSpec((11,), Raster(2, 4))
    model = model_of("cell", spec, codebook=codebook)
    codes = torch.randint(0, 11, (3, 1, 8))
    loss = model.loss(Tokens(codes, spec), classes(3), rows(3)).loss
    assert loss.isfinite() and not any("codebook" in name for name in model.state_dict())
    out = EntitiesSampler(steps=2)(model, classes(3), rng=rows(3))
    assert out.tokens.spec == spec and out.tokens.present.all()
    first, second = KINDS["cell"]
    given = codes.clone()
    given[:, :, second] = UNKNOWN
    known = EntitiesSampler(steps=2)(model, classes(3), rng=rows(3), known=Tokens(given, spec))
    assert torch.equal(known.tokens.codes[:, :, first], codes[:, :, first]) and known.calls.tolist() == [2] * 3
    given[:, :, 0] = UNKNOWN
    with pytest.raises(ValueError, match="cells of 2 x 2") as error:
        EntitiesSampler(steps=2)(model, classes(3), rng=rows(3), known=Tokens(given, spec))
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------- bundles and refusals


def kl():
    torch.manual_seed(0)
    tokenizer = compose("config", ["tokenizer=kl"])["tokenizer"]
    tokenizer.pop("losses")
    return {**tokenizer, "media_shape": [1, 32, 16], "width": 8}


def test_a_bundle_gives_back_the_model_and_its_samples(tmp_path):
    config = {**compose("config", ["generator=xar"])["generator"], "width": 16, "depth": 2, "heads": 2}
    tokenizer = build_tokenizer(kl())
    tokenizer.spec = stamp(tokenizer, kl())
    generator = build_generator(config, tokenizer, CLASSES).eval()
    with torch.no_grad():
        generator.network.head.weight.normal_()
    path = save(tmp_path / "bundle", tokenizer=tokenizer, tokenizer_config=kl(), generator=generator, generator_config=config,
                condition_spec=CLASSES)  # fmt: skip
    bundle = load(path)
    sampler, both = EntitiesSampler(steps=2), (generator, bundle.generator)
    drawn = [sample_tokens(model, classes(2), sampler, rng=rows(2), guidance=1.5).tokens for model in both]
    assert torch.equal(drawn[0].values, drawn[1].values) and drawn[1].spec.width == 4
    media = bundle.sample(n=2, condition="b", sampler="entities", steps=2)
    assert media.shape == (2, 1, 32, 16) and media.isfinite().all()
    given = torch.rand(1, 32, 16) * 2 - 1
    kept = bundle.sample(n=2, condition="b", steps=2, known=given, keep="top-half")
    assert torch.isfinite(kept).all() and not torch.equal(kept[0], kept[1])
    with pytest.raises(ValueError, match="keep=top-half"):
        bundle.sample(n=2, condition="b", steps=2, known=given, keep="bottom-half")


@pytest.mark.parametrize("generator", ["autoregressive", "masked", "resgen", "coarse_to_fine"])
def test_a_generator_of_codes_over_latents_is_refused_in_one_line(generator):
    with pytest.raises(ConfigError, match="encodes to latents.*generator=xar") as error:
        build_generator(compose("config", [f"generator={generator}"])["generator"], build_tokenizer(kl()), CLASSES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "spec, codebook, options, words",
    [
        (TokenSpec((4, 4), Raster(2, 4)), lambda: BAE(bits=4, width=3), {}, "nearest codes"),
        (TokenSpec((11,), Line(8)), lambda: VQ(11, 3), {}, "lie on a line"),
        (SPEC, None, {"entity_side": 4}, "divide a grid of 2 x 4"),
        (SPEC, None, {"entity": "word"}, "entity='?word"),
        (SPEC, None, {"context": "dirty"}, "context"),
    ],
)
def test_what_it_cannot_model_is_refused_in_one_line(spec, codebook, options, words):
    with pytest.raises(ValueError, match=words) as error:
        XAR(spec, CLASSES, None if codebook is None else codebook(), width=16, depth=1, heads=2, **options)
    assert "\n" not in str(error.value)


def test_items_of_another_kind_are_refused_in_one_line():
    model, codes = model_of("cell"), Tokens(torch.zeros(2, 1, 8, dtype=torch.int64), TokenSpec((11,), Raster(2, 4)))
    for items, words in ((codes, "models"), (latents(2, TokenSpec((), Raster(2, 2), width=3)), "shape")):
        with pytest.raises(ValueError, match=words) as error:
            model.loss(items, classes(2), rows(2))
        assert "\n" not in str(error.value)
