"""The contract of tokenizers that give latents, and the properties of the KL autoencoder."""

from dataclasses import replace

import pytest
import torch
from tokenizer_kit import LOSSES, batch_of, make, media, noise_of

from gentok.bundle import build_tokenizer, load, save, stamp
from gentok.interfaces import Tokenizer
from gentok.tokenizers.kl import KL, gaussian_kl, sampled
from gentok.types import Latents, Line, Raster, TokenSpec


@pytest.fixture
def model():
    made = make("kl", width=8)
    made.train()
    for step in range(3):  # shift and scale that are not 0 and 1
        made(batch_of(media(8, seed=step)), noise_of(media(8), step))
    return made.eval()


def test_shapes_and_spec(model):
    x = media()
    latents = model.encode(x)
    assert isinstance(model, Tokenizer) and isinstance(latents, Latents) and latents.spec == model.spec
    assert model.spec == TokenSpec((), Raster(4, 4), width=4, media_shape=(1, 16, 16))
    assert TokenSpec.from_dict(model.spec.to_dict()) == model.spec and model.spec.exists().shape == (0, 16) and model.spec.bits == 0
    assert latents.values.shape == (4, 4, 16) and latents.values.dtype == torch.float32
    images = model.decode(latents)
    assert images.shape == x.shape and images.dtype == torch.float32 and images.abs().max() <= 1


@pytest.mark.parametrize("noisy", [False, True])
def test_forward_agrees_with_encode_and_decode(model, noisy):
    x = media()
    out = model(batch_of(x), noise_of(x) if noisy else None)
    latents = model.encode(x, rng=noise_of(x) if noisy else None)
    torch.testing.assert_close(out.tokens.values, latents.values)
    torch.testing.assert_close(out.reconstruction.clamp(-1, 1), model.decode(latents), atol=1e-5, rtol=1e-5)


def test_encoding_changes_nothing_also_in_training_mode(model):
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.encode(media(), rng=noise_of(media()))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.eval()(batch_of(media()), noise_of(media()))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_kl_term_is_that_of_torch():
    mean, log_variance = torch.randn(2, 50, dtype=torch.float64)
    ours = gaussian_kl(mean, log_variance)
    normal = torch.distributions.Normal
    theirs = torch.distributions.kl_divergence(normal(mean, (0.5 * log_variance).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(ours, theirs)
    assert (ours >= 0).all() and not torch.allclose(0.5 * (mean.square() + log_variance.exp() - log_variance), theirs)  # a mutant


def test_the_loss_weighs_kl_by_values_of_the_media(model):
    x = media()
    mean, log_variance = model.posterior(x)
    per_item = gaussian_kl(mean, log_variance).sum((1, 2)).mean()
    torch.testing.assert_close(model(batch_of(x)).losses["kl"], model.weight * per_item / x[0].numel())


def largest_deviation(draw) -> float:
    """The largest deviation of mean and variance from those meant, in standard errors."""
    n = 20000
    x = torch.zeros(n, 1, 1)
    z = draw(x + 0.7, x + torch.tensor(0.25).log(), noise_of(x)).double()
    return max(abs(z.mean().item() - 0.7) / (0.5 / n**0.5), abs(z.var().item() - 0.25) / (0.25 * (2 / n) ** 0.5))


def test_a_draw_has_the_posterior_mean_and_variance():
    assert largest_deviation(sampled) < 4.5
    assert largest_deviation(lambda mean, log_variance, rng: sampled(mean, 2 * log_variance, rng)) > 20  # a mutant: sd for variance


def test_a_row_of_a_batch_equals_the_row_alone(model):
    model, x = model.double(), media(3).double()
    latents = model.encode(x, rng=noise_of(x))
    rng = noise_of(x).rows(torch.tensor([1]))
    torch.testing.assert_close(latents.values[1:2], model.encode(x[1:2], rng=rng).values, atol=1e-12, rtol=0)
    alone = Latents(latents.values[1:2], latents.spec)
    torch.testing.assert_close(model.decode(latents)[1:2], model.decode(alone), atol=1e-12, rtol=0)


def test_latents_have_measured_unit_variance_and_undo_exactly():
    model = make("kl", width=8, decay=0.9).train()
    with torch.no_grad():
        model.encoder.head.weight.mul_(7), model.encoder.head.bias.add_(3)
    x = media(16)
    assert model.eval().encode(x).values.std() > 1.5  # before anything was measured
    model.train()
    for step in range(5):
        model(batch_of(x), noise_of(x, step))
    values = model.eval().encode(x, rng=noise_of(x)).values
    assert abs(values.std() - 1) < 0.05 and abs(values.mean()) < 0.05
    shift, scale = model.scale()
    mean, log_variance = model.posterior(x)
    torch.testing.assert_close(model.encode(x).values * scale + shift, mean, atol=1e-4, rtol=1e-4)


def test_a_fixed_scaling_multiplies():
    model, x = make("kl", width=8, scaling=0.5), media()
    model.train()(batch_of(x), noise_of(x))
    torch.testing.assert_close(model.eval().encode(x).values, 0.5 * model.posterior(x)[0])


def test_other_sizes_have_a_spec_of_their_own(model):
    x = media(2, (1, 8, 24))
    latents = model.encode(x)
    assert latents.spec == replace(model.spec, grid=Raster(2, 6), media_shape=(1, 8, 24))
    assert model.decode(latents).shape == x.shape and model(batch_of(x)).reconstruction.shape == x.shape


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_steps_reduce_the_loss(precision):
    model, x, errors = make("kl", width=16).train(), media(8), []
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for step in range(20):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            out = model(batch_of(x), noise_of(x, step))
        assert out.reconstruction.dtype == out.tokens.values.dtype == torch.float32
        optimizer.zero_grad()
        sum(out.losses.values()).backward()
        optimizer.step()
        errors.append(float(out.losses["l2"].detach()))
    assert min(errors[-3:]) < 0.8 * errors[0]


def test_a_bundle_gives_the_same_latents_and_pictures(model, tmp_path):
    config = {"_target_": "gentok.tokenizers.kl.KL", "media_shape": [1, 16, 16], "width": 8, "losses": LOSSES}
    stamp(model, config)
    loaded = load(save(tmp_path / "bundle", tokenizer=model, tokenizer_config=config)).tokenizer
    assert loaded.spec == model.spec and loaded.spec.encode_fingerprint
    latents = model.encode(media())
    assert torch.equal(latents.values, loaded.encode(media()).values) and torch.equal(model.decode(latents), loaded.decode(latents))
    other = build_tokenizer(config)
    assert stamp(other, config).encode_fingerprint != model.spec.encode_fingerprint


def test_what_it_cannot_take_is_refused(model):
    with pytest.raises(ValueError, match="the data has 18 x 16"):
        KL((1, 18, 16))
    with pytest.raises(ValueError, match="latent=0"):
        KL((1, 16, 16), latent=0)
    with pytest.raises(ValueError, match="1 channel"):
        model.encode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="Latents of width 4; got Tensor"):
        model.decode(torch.zeros(1, 4, 16))
    for wrong in (Latents(torch.zeros(1, 5, 16), model.spec), Latents(torch.zeros(1, 4, 16), TokenSpec((), Line(16), width=4))):
        with pytest.raises(ValueError, match=r"latents \[B, 4, h \* w\] of a raster"):
            model.decode(wrong)
