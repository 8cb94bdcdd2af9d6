"""MAR: outputs, losses and samples are those of its own code; what it knows, pads and refuses."""

import copy
from argparse import Namespace

import numpy as np
import pytest
import torch
from generator_kit import EVERYTHING, randomise
from released_kit import recorded, released
from released_laws import FIVE, Numbers, classes

from gentok.bundle import build_generator, build_tokenizer, load, save, stamp
from gentok.cli import compose
from gentok.codebooks.bae import BAE
from gentok.codebooks.vq import VQ
from gentok.flow.diffusion import STEPS, diffusion_loss, noised, reverse, spaced
from gentok.generators.mar import MAR
from gentok.nn.linear import quantize
from gentok.rng import RowRNG
from gentok.samplers.guided import guided
from gentok.samplers.mar import MARSampler
from gentok.sampling import sample_tokens
from gentok.types import UNKNOWN, ClassSpec, Condition, ConditionSpec, Latents, Line, Raster, Tokens, TokenSpec

SPEC = TokenSpec((), Raster(4, 4), width=16)
SMALL = {"width": 48, "depth": 2, "heads": 3, "hidden": 96, "denoiser_width": 32, "denoiser_depth": 2, "buffer": 4}
"""As the record was made."""
TINY = {"width": 16, "depth": 1, "heads": 2, "hidden": 32, "denoiser_width": 16, "denoiser_depth": 1, "buffer": 2}


def stored(tmp_path, **changes):
    """The file, as it is released: with other weights beside those that are averaged."""
    state = released("mar", "mar", **changes)
    path = tmp_path / "checkpoint-last.pth"
    raw, arguments = {key: value + 1 for key, value in state.items()}, Namespace(diffloss_d=6)
    torch.save({"model": raw, "model_ema": state, "epoch": 400, "args": arguments}, path)
    return str(path)


def built(tmp_path):
    return MAR(SPEC, FIVE, weights=stored(tmp_path), **SMALL).double().eval()


def tiny(spec=SPEC, codebook=None, dtype=torch.float64, **options):
    return randomise(MAR(spec, FIVE, codebook, **{**TINY, **options})).to(dtype)


def rows(n):
    return RowRNG.of(0, range(n))


def near(a, b):
    """Within 1e-5 of the largest number."""
    return (a - b).abs().max() < 1e-5 * max(float(b.abs().max()), 1.0)


# ------------------------------------------------------------------------------------------------------------ the release


@torch.no_grad()
def test_both_networks_give_what_those_of_the_release_give(tmp_path):
    model, (masked, labels, wanted) = built(tmp_path), recorded("mar", "mar", "masked", "labels", "hidden")
    x = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 16, 16)).astype(np.float32)).double().transpose(1, 2)
    condition = classes(*(int(label) if label < 5 else -1 for label in labels))  # their null is no class
    assert near(model.hidden(x, ~masked, condition), wanted)
    times, out = recorded("mar", "mar", "times", "noise_out")
    eps, v = model.denoiser(x.flatten(0, 1), times, wanted.double().flatten(0, 1))
    assert near(torch.cat((eps, v), 1), out)
    # mutants: another null, masked vectors that are seen, places in the order of the known vectors, an approximated GELU
    assert not near(model.hidden(x, ~masked, classes(3, 0)), wanted)
    assert not near(model.hidden(x, torch.ones_like(masked), condition), wanted)
    model.network.places[0].weight.copy_(model.network.places[0].weight.roll(1, 0))
    assert not near(model.hidden(x, ~masked, condition), wanted)


def test_the_loss_of_each_vector_is_that_of_the_release(tmp_path):
    times, out, wanted = recorded("mar", "mar", "times", "noise_out", "loss")
    random = np.random.RandomState(0)
    x = torch.from_numpy(random.standard_normal((2, 16, 16)).astype(np.float32)).double().transpose(1, 2).flatten(0, 1)
    for _ in range(2):
        random.permutation(16)
    noise = torch.from_numpy(random.standard_normal((32, 16)).astype(np.float32)).double()
    model = built(tmp_path)
    hidden = recorded("mar", "mar", "hidden")[0].double().flatten(0, 1)
    with torch.no_grad():
        eps, v = model.denoiser(noised(x, noise, times), times, hidden)
    loss = diffusion_loss(eps, v, x, noise, times)
    torch.testing.assert_close(loss.float(), wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(diffusion_loss(eps, -v, x, noise, times).float(), wanted, rtol=1e-2)  # a mutant
    assert out.shape == (32, 32)


@torch.no_grad()
def test_samples_of_the_same_noise_are_those_of_the_release(tmp_path):
    model, (hidden, head, samples) = built(tmp_path), recorded("mar", "mar", "hidden", "head", "samples")
    rng, given = Numbers([0] * 6), hidden.double().flatten(0, 1)[:6, None]
    drawn = reverse(lambda x, t: model.denoise(x, t, given), rng.normal(1, 16), 5, 0.9, rng)
    assert near(drawn[:, 0], head)
    guide, rng = guided(model, 2.0, "linear"), Numbers([0, 1], rng.draws)
    drawn = MARSampler(steps=4, diffusion_steps=5, temperature=0.95, clip=None)(guide, classes(3, 1), rng=rng).tokens.values
    assert near(drawn, samples)


@pytest.mark.parametrize("size, millions", [("B", 208), ("L", 479), ("H", 943)])
def test_it_has_its_published_size(size, millions):
    thousand = ConditionSpec((("class", ClassSpec(tuple(map(str, range(1000)))),),))
    with torch.device("meta"):
        model = MAR(TokenSpec((), Raster(16, 16), width=16), thousand, size=size)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=5e-3)


# ---------------------------------------------------------------------------------------------------------- model and loss


def test_rows_that_know_different_numbers_of_vectors_are_those_rows_alone_and_masked_vectors_are_not_seen():
    model, x = tiny(), torch.randn(4, 16, 16, dtype=torch.float64)
    known = torch.arange(16) < torch.tensor([0, 3, 16, 9])[:, None]
    known = known[:, torch.randperm(16)]
    whole = model.hidden(x, known, classes(0, 1, -1, 4))
    for row, label in enumerate((0, 1, -1, 4)):
        torch.testing.assert_close(model.hidden(x[row : row + 1], known[row : row + 1], classes(label)), whole[row : row + 1])
    other = torch.where(known[..., None], x, torch.nan)
    assert torch.equal(model.hidden(other, known, classes(0, 1, -1, 4)), whole)
    assert not torch.allclose(model.hidden(x + known[..., None], known, classes(0, 1, -1, 4))[1:], whole[1:], atol=1e-3)


def test_masked_shares_are_those_of_a_truncated_normal_number():
    model = tiny(TokenSpec((), Raster(16, 16), width=2))
    share = model.masked(rows(4000)).sum(1) / 256
    z = torch.distributions.Normal(1.0, 0.25)
    share, (low, high) = share.sort().values.double(), z.cdf(torch.tensor([0.7, 1.0], dtype=torch.float64))
    gap = (z.cdf(share.clamp(max=1)) - low) / (high - low) - torch.linspace(0, 1, 4000, dtype=torch.float64)
    assert gap.abs().max() < 0.04 and share.min() >= 0.7 and share.max() == 1.0
    each = model.masked(rows(4000)).double().mean(0)
    assert (each - share.mean()).abs().max() < 0.03  # no place more often than another


def test_a_training_step_lowers_the_loss_which_is_a_rows_own(tmp_path):
    model, x = MAR(SPEC, FIVE, weights=stored(tmp_path), **SMALL), Latents(torch.randn(4, 16, 16), SPEC)
    model.eval()
    one = [model.loss(Latents(x.values[b : b + 1], SPEC), classes(b), rows(4).rows(torch.tensor([b]))) for b in range(4)]
    total = sum(out.loss * out.count for out in one) / sum(out.count for out in one)
    torch.testing.assert_close(model.loss(x, classes(0, 1, 2, 3), rows(4)).loss, total, rtol=1e-4, atol=1e-4)
    optimizer, losses = torch.optim.Adam(model.train().parameters(), 1e-3), []
    for _ in range(3):
        losses.append(model.loss(x, classes(0, 1, 2, -1), rows(4)).loss)
        losses[-1].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[2] < losses[0]


def test_half_precision_and_integers_are_near():
    model, x = tiny(dtype=torch.float32), torch.randn(2, 16, 16)
    known = torch.rand(2, 16) < 0.5
    with torch.no_grad():
        exact = model.hidden(x, known, classes(0, 1))
        for other in (copy.deepcopy(model).to(torch.bfloat16), quantize(copy.deepcopy(model))):
            near = other.hidden(x, known, classes(0, 1)).float()
            assert (near - exact).square().mean() < 0.02 * exact.square().mean()
            assert MARSampler(steps=2, diffusion_steps=2)(other, classes(0, 1), rng=rows(2)).tokens.values.isfinite().all()
    full = model.loss(Latents(x.transpose(1, 2), SPEC), classes(0, 1), rows(2)).loss
    with torch.autocast("cpu", torch.bfloat16):
        half = model.loss(Latents(x.transpose(1, 2), SPEC), classes(0, 1), rows(2)).loss
    assert half.dtype == torch.float32 and abs(half - full) < 0.1 * full


def test_codes_are_drawn_by_their_vectors_and_known_ones_stay():
    torch.manual_seed(0)
    spec = TokenSpec((11,), Raster(4, 4))
    model = tiny(spec, VQ(11, 3, normalize=False))
    codes = torch.randint(0, 11, (3, 1, 16))
    assert model.loss(Tokens(codes, spec), classes(0, 1, 2), rows(3)).loss.isfinite()
    assert not any("codebook" in name for name in model.state_dict())
    known = torch.where(torch.rand(3, 1, 16) < 0.4, codes, UNKNOWN)
    out = MARSampler(steps=3, diffusion_steps=2)(model, classes(0, 1, 2), rng=rows(3), known=Tokens(known, spec)).tokens
    assert out.present.all() and torch.equal(out.codes[known >= 0], codes[known >= 0])


# ------------------------------------------------------------------------------------------------------ bundles and refusals


def test_a_bundle_gives_back_the_model_its_samples_and_any_kept_region(tmp_path):
    kl = compose("config", ["tokenizer=kl"])["tokenizer"]
    kl.pop("losses")
    kl = {**kl, "media_shape": [1, 16, 16], "width": 8}
    config = {**compose("config", ["generator=mar"])["generator"], **TINY}
    tokenizer = build_tokenizer(kl)
    tokenizer.spec = stamp(tokenizer, kl)
    generator = randomise(build_generator(config, tokenizer, FIVE))
    path = save(tmp_path / "bundle", tokenizer=tokenizer, tokenizer_config=kl, generator=generator, generator_config=config,
                condition_spec=FIVE)  # fmt: skip
    bundle = load(path)
    sampler = MARSampler(steps=3, diffusion_steps=3)
    drawn = [
        sample_tokens(model, classes(0, 1), sampler, rng=rows(2), guidance=1.5).tokens.values for model in (generator, bundle.generator)
    ]
    assert torch.equal(*drawn)
    given = torch.rand(1, 16, 16) * 2 - 1
    for keep in ("bottom-half", "left-half"):
        kept = bundle.sample(n=2, condition="2", sampler=sampler, known=given, keep=keep)
        assert kept.isfinite().all() and not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize(
    "spec, codebook, options, words",
    [
        (TokenSpec((4, 4), Raster(2, 4)), lambda: BAE(bits=4, width=3), {}, "mar models vectors and ends at the nearest codes"),
        (TokenSpec((11,), Line(8)), lambda: VQ(11, 3), {}, "mar models vectors on a raster; these tokens lie on a line"),
        (SPEC, None, {"mask_least": 1.0}, "mask_least"),
        (SPEC, None, {"size": "M"}, "size"),
    ],
)
def test_what_it_cannot_model_is_refused_in_one_line(spec, codebook, options, words):
    with pytest.raises(ValueError, match=words) as error:
        MAR(spec, FIVE, None if codebook is None else codebook(), **{**TINY, **options})
    assert "\n" not in str(error.value)


def test_other_conditions_and_files_are_refused_in_one_line(tmp_path):
    four = ConditionSpec((("class", ClassSpec(tuple("0123"))),))
    for given, changes, line in (
        (EVERYTHING, {}, r"mar with weights takes one class as its condition; here it is class \(class\), text \(ids\)"),
        (FIVE, {"fake_latent": None}, "lacks 1 tensor, such as fake_latent"),
        (FIVE, {"decoder_norm.bias": None}, r"lacks 1 tensor, such as decoder_norm\.bias"),
        (FIVE, {"spare": torch.zeros(1)}, "beyond this model, 1 tensor, such as spare"),
        (FIVE, {"z_proj.weight": torch.zeros(48, 8)}, r"z_proj\.weight is \(48, 8\) there and \(48, 16\) here"),
        (four, {}, r"class_emb\.weight is \(5, 48\) there and \(4, 48\) here"),
        (FIVE, {"diffusion_pos_embed_learned": None}, "holds no MAR model: expected the weights of a generator of MAR"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            MAR(SPEC, given, weights=stored(tmp_path, **changes), **SMALL)
        assert "\n" not in str(error.value)
    model = tiny()
    with pytest.raises(ValueError, match="models latents .B, 16, 16.; got latents of shape"):
        model.loss(Latents(torch.zeros(1, 16, 4), TokenSpec((), Raster(2, 2), width=16)), Condition(), rows(1))
    assert spaced(5) == [0, 250, 500, 749, STEPS - 1]


def learnt(model, items, batch, condition):
    """The model after 300 steps on a few items; 5 s on one core."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=5e-3, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / 300)))
    for step in range(300):
        optimizer.zero_grad()
        model.loss(items, condition, RowRNG.of(1, range(batch), step)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    return model.eval()


@pytest.mark.slow
def test_four_items_are_learnt_and_drawn_and_without_a_bound_a_short_training_leaves_the_data():
    spec, four, batch = TokenSpec((), Raster(2, 2), width=2), classes(0, 1, 2, 3), classes(*(0, 1, 2, 3) * 8)
    options = {**TINY, "width": 32, "denoiser_width": 64, "denoiser_depth": 2, "dropout": 0.0, "condition_dropout": 0.0}
    torch.manual_seed(1)
    x = torch.randn(4, 2, 4, generator=torch.Generator().manual_seed(0))
    model, off = learnt(MAR(spec, FIVE, **options), Latents(x.repeat(8, 1, 1), spec), 32, batch), {}
    for clip in (10.0, None):
        drawn = MARSampler(steps=4, diffusion_steps=30, clip=clip)(model, four, rng=rows(4)).tokens.values
        off[clip] = float((drawn - x).square().mean())
    assert off[10.0] < 0.1 and off[None] > 100

    spec = TokenSpec((11,), Raster(2, 2))
    codes = torch.randint(0, 11, (4, 1, 4), generator=torch.Generator().manual_seed(0))
    model = learnt(MAR(spec, FIVE, VQ(11, 3, normalize=False), **options), Tokens(codes.repeat(8, 1, 1), spec), 32, batch)
    drawn = MARSampler(steps=4, diffusion_steps=30)(model, four, rng=rows(4)).tokens.codes
    assert (drawn == codes).double().mean() > 0.9
