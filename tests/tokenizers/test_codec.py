"""Properties of the codec: exact lengths, rows that are alone in a batch, levels, odd inputs, precision."""

from __future__ import annotations

import pytest
import torch
from tokenizer_kit import batch_of, make, noise_of

from gentok.bundle import stamp
from gentok.codebooks.residual import ResidualCodebook
from gentok.codebooks.vq import VQ
from gentok.nn.seanet import SEANetDecoder, SEANetEncoder
from gentok.tokenizers import codec as codec_module
from gentok.tokenizers.codec import Codec, repeated
from gentok.types import ABSENT, UNKNOWN, Batch, Frames, Tokens

HOP, RATE = 6, 600
VARIANTS = {
    "causal": {},
    "reflect": {"padding": "reflect"},
    "looks_ahead": {"causal": False},
    "looks_ahead_reflect": {"causal": False, "padding": "reflect", "memory": "attention", "heads": 2, "memory_layers": 1},
}


def sound(batch: int = 3, length: int = 4 * HOP, channels: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, channels, length, generator=torch.Generator().manual_seed(seed)).mul(0.5).clamp(-1, 1)


def small(channels: int = 1, levels: int = 3, media_shape=None, dtype=torch.float64, **options) -> Codec:
    """A codec of hop 6 in eval whose books were started from its own latents, so that codes say something."""
    torch.manual_seed(0)
    parts = {"channels": channels, "width": 8, "filters": 4, "ratios": (3, 2), "memory_layers": 1, **options}
    table = {"normalize": False, "update": "ema", "kmeans_start": 5, "decay": 0.99, "revive_below": 0.0}
    book = ResidualCodebook(VQ(32, 8, **table), levels)
    model = Codec(SEANetEncoder(**parts), book, SEANetDecoder(**parts), RATE, media_shape=media_shape)
    x = sound(32, 20 * HOP, channels, seed=9)
    model.train()(batch_of(x), noise_of(x))
    return model.eval().to(dtype)


every_variant = pytest.mark.parametrize("variant", VARIANTS)


def test_the_spec_says_what_the_tokens_are():
    model = small()
    assert model.spec.grid == Frames(100.0) and model.spec.sample_rate == RATE and model.spec.media_shape == (1,)
    assert model.spec.modality == "audio" and model.spec.nested_levels and model.spec.bits_per_second == 100 * 3 * 5
    assert model.encode(sound()).spec == model.spec
    bounded = small(media_shape=(1, 23))
    assert bounded.spec.grid == Frames(100.0, 4) and bounded.encode(sound(length=24)).spec == bounded.spec
    assert bounded.encode(sound(length=30)).spec.grid == Frames(100.0, 5)


@every_variant
def test_lengths_are_exact_for_every_length_modulo_the_hop(variant):
    model = small(**VARIANTS[variant])
    for length in range(3 * HOP + 2):
        tokens = model.encode(sound(length=length))
        frames = -(-length // HOP)
        assert tokens.codes.shape == (3, 3, frames) and tokens.lengths is None
        assert model.decode(tokens).shape == (3, 1, frames * HOP)
        assert model.decode(tokens, samples=length).shape == (3, 1, length)
        if length:
            assert model(batch_of(sound(length=length))).reconstruction.shape == (3, 1, length)


def rows_are_alone(model: Codec) -> None:
    """A row of a batch of unequal lengths has the codes and the sound that it has alone."""
    ends = torch.tensor([4 * HOP, 1, 2 * HOP + 1, 0, HOP, 2 * HOP + 1, 3 * HOP - 1])
    x = sound(len(ends)) * (torch.arange(4 * HOP) < ends[:, None])[:, None]
    tokens = model.encode(x, ends)
    assert torch.equal(tokens.lengths, -(-ends // HOP))
    media = model.decode(tokens, samples=ends)
    out = model(Batch(x, torch.arange(len(ends)), lengths=ends))
    assert torch.equal(out.tokens.codes, tokens.codes) and torch.equal(out.tokens.lengths, tokens.lengths)
    torch.testing.assert_close(out.reconstruction.clamp(-1, 1), media, atol=1e-6, rtol=0)
    for row, (end, frames) in enumerate(zip(ends.tolist(), tokens.lengths.tolist())):
        alone = model.encode(x[row : row + 1, :, :end])
        assert torch.equal(tokens.codes[row, :, :frames], alone.codes[0]) and (tokens.codes[row, :, frames:] == ABSENT).all()
        torch.testing.assert_close(media[row, :, :end], model.decode(alone, samples=end)[0], atol=1e-6, rtol=0)
        assert not media[row, :, end:].any()


@every_variant
def test_a_row_of_another_length_is_as_alone(variant):
    rows_are_alone(small(**VARIANTS[variant]))


@every_variant
def test_networks_that_run_over_the_padding_are_found(variant, monkeypatch):
    model = small(**VARIANTS[variant])
    monkeypatch.setattr(codec_module, "groups_of", lambda lengths, x: iter([(slice(None), x.shape[-1])]))
    with pytest.raises(AssertionError):
        rows_are_alone(model)


def test_behind_a_row_s_end_codebooks_see_its_own_frames():
    z = torch.arange(8.0).view(2, 1, 4)
    assert repeated(z, torch.tensor([3, 4])).tolist() == [[[0, 1, 2, 0]], [[4, 5, 6, 7]]]
    assert repeated(z, torch.tensor([0, 2])).tolist() == [[[4, 5, 4, 5]], [[4, 5, 4, 5]]]
    model = small(dtype=torch.float32)
    x = sound(2, 5 * HOP)
    ends = torch.tensor([5 * HOP, HOP])
    x[1, :, HOP:] = 0
    before = model.codebook.books[0].usage.clone()
    model.train()(Batch(x, torch.arange(2), lengths=ends), noise_of(x))
    moved = model.codebook.books[0].usage - 0.99 * before
    one = model.eval().encode(x[1:, :, :HOP]).codes[0, 0, 0]
    assert moved[one] > 0.01 * 4.9 and abs(moved.sum() - 0.01 * 10) < 1e-3


def test_levels_are_nested():
    model = small()
    tokens = model.encode(sound(32, 20 * HOP, seed=9))
    whole, errors = model.codebook.lookup(tokens.codes), []
    z = model.encoder(sound(32, 20 * HOP, seed=9).double()).detach()
    for keep in (1, 2, 3):
        cut = tokens.truncate(levels=keep)
        assert torch.equal(model.decode(tokens, keep=keep), model.decode(cut))
        errors.append(float((model.codebook.lookup(cut.codes) - z).square().mean()))
    assert errors[0] > errors[1] > errors[2] and torch.equal(whole, model.codebook.lookup(cut.codes))
    assert not torch.equal(model.decode(tokens, keep=1), model.decode(tokens))
    for keep in (0, 4):
        with pytest.raises(ValueError, match="1 to 3; got keep="):
            model.decode(tokens, keep=keep)
    flat = make("codec").eval()
    with pytest.raises(ValueError, match="not nested"):
        flat.decode(flat.encode(sound(length=8)), keep=1)


def test_last_layer_is_where_gradients_are_compared():
    for norm in (True, False):
        model = small(weight_norm=norm)
        loss = model(batch_of(sound())).reconstruction.square().mean()
        assert any(model.last_layer is p for p in model.decoder.parameters())
        (gradient,) = torch.autograd.grad(loss, model.last_layer)
        assert gradient.shape == (1, 4, 7) and gradient.abs().sum() > 0


def test_the_fingerprint_of_codes_knows_the_encoder_and_not_the_decoder():
    model, marks = small(dtype=torch.float32), []
    for part in (None, model.decoder, model.encoder):
        if part is not None:
            with torch.no_grad():
                part.layers[0].conv.bias.add_(1)
        spec = stamp(model, {"a": 1})
        marks.append((spec.encode_fingerprint, spec.decode_fingerprint))
    assert marks[0][0] == marks[1][0] != marks[2][0] and marks[0][1] != marks[1][1]


# ------------------------------------------------------------------------------------------------------------- odd inputs


def test_sound_that_is_short_silent_or_clipped_is_coded():
    model = small(dtype=torch.float32)
    for x in (sound(length=0), sound(length=1), torch.zeros(2, 1, 20), torch.ones(2, 1, 20), 3 * torch.randn(2, 1, 20).sign()):
        tokens = model.encode(x).validate()
        media = model.decode(tokens, samples=x.shape[2])
        assert media.shape == x.shape and media.isfinite().all() and media.dtype == torch.float32
        assert x.shape[2] == 0 or media.abs().max() <= 1
    silent = model.encode(torch.zeros(2, 1, 80 * HOP)).codes
    assert torch.equal(silent[0], silent[1]) and (silent[:, :, 60:] == silent[:, :, 60:61]).all()  # until then the memory settles


REFUSED = {
    "stereo": (lambda m: m.encode(sound(channels=2)), "sound of 1 channel.*got 2"),
    "no_channels": (lambda m: m.encode(sound()[:, 0]), r"float sound \[B, 1, samples\]"),
    "integers": (lambda m: m.encode(sound().long()), "got torch.int64"),
    "nan": (lambda m: m.encode(sound().index_fill(2, torch.tensor([5]), torch.nan)), "not finite: nan in row 0, sample 5"),
    "infinite": (lambda m: m.encode(sound().index_fill(2, torch.tensor([7]), torch.inf)), "inf in row 0, sample 7"),
    "rate": (lambda m: m.encode(sound(), sample_rate=44100), "600 samples per second, got 44100: resample it"),
    "too_long": (lambda m: m.encode(sound(), torch.tensor([1, 2, 99])), "lengths lie in 0..24"),
    "lengths_of_others": (lambda m: m.encode(sound(), torch.tensor([1, 2])), r"lengths are int64 \[3\]"),
    "samples": (lambda m: m.decode(m.encode(sound()), samples=25), "give 0 to 24 samples; got samples=25"),
    "holes": (lambda m: m.decode(Tokens(torch.full((1, 3, 2), UNKNOWN), m.spec)), "masked positions"),
    "other_tokens": (lambda m: m.decode(make("codec").encode(sound(length=8))), "of another tokenizer"),
    "nothing_to_learn": (lambda m: m(batch_of(sound(length=0))), "without a sample"),
    "media_shape": (lambda m: small(media_shape=(2, 100)), r"media_shape = \(1,\) or \(1, samples\); the data has \(2, 100\)"),
    "pictures": (lambda m: small(media_shape=(1, 16, 16)), r"the data has \(1, 16, 16\)"),
    "width": (lambda m: Codec(SEANetEncoder(), VQ(8, 4), SEANetDecoder(), RATE), "the encoder makes 128 channels.*takes 4"),
    "hop": (lambda m: Codec(SEANetEncoder(width=4), VQ(8, 4), SEANetDecoder(width=4, ratios=(2, 2)), RATE), "320 samples per frame.* at 4"),
    "sample_rate": (lambda m: Codec(m.encoder, m.codebook, m.decoder, 0), "sample_rate=0: expected"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_coded_is_refused_in_one_line(what):
    act, words = REFUSED[what]
    with pytest.raises(ValueError, match=words) as error:
        act(small())
    assert "\n" not in str(error.value)


def test_stereo_is_coded_by_a_stereo_codec():
    model = small(channels=2)
    x = sound(channels=2)
    assert model.spec.media_shape == (2,) and model.decode(model.encode(x)).shape == x.shape
    assert not torch.equal(model.encode(x).codes, model.encode(x.flip(1)).codes)


# --------------------------------------------------------------------------------------------------------------- precision


def codes_used(model, x) -> list[int]:
    return [len(level.unique()) for level in model.encode(x).codes.unbind(1)]


def bfloat16_uses_the_codes_of_float32(model) -> None:
    x = sound(64, 20 * HOP, seed=3)
    full = codes_used(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        half = codes_used(model, x)
        assert model(batch_of(x)).reconstruction.dtype == torch.float32
    assert min(full) > 16 and all(a >= 0.9 * b for a, b in zip(half, full)), (half, full)


def test_bfloat16_uses_as_many_codes_as_float32():
    bfloat16_uses_the_codes_of_float32(small(dtype=torch.float32))


def test_a_codebook_that_computes_in_bfloat16_is_found():
    """Distances of centred latents in bfloat16 tie: here they are rounded as its eight bits round the common offset."""
    model = small(dtype=torch.float32)
    own = model.codebook.forward

    def coarse(z, **options):
        return own(((z + 30).bfloat16().float() - 30) if torch.is_autocast_enabled("cpu") else z, **options)

    model.codebook.forward = coarse
    with pytest.raises(AssertionError):
        bfloat16_uses_the_codes_of_float32(model)
