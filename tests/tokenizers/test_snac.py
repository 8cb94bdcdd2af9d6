"""SNAC as a codec: whole codes of the coarsest level, rows of unequal length, noise of the decoder; its tokens with a causal generator."""

import math

import pytest
import torch
from codec_sizes import size
from tokenizer_kit import LOSSES, learns, media, read

from gentok.build import build
from gentok.bundle import build_generator, load, save
from gentok.cli import compose
from gentok.rng import RowRNG
from gentok.samplers.base import fitting
from gentok.sampling import pick_sampler, sample_tokens
from gentok.tokenizers.pretrained.snac import SNAC
from gentok.types import ABSENT, Class, ClassSpec, Condition, ConditionSpec, Frames


def config(**changes):
    """A small snac_24khz."""
    found = {**read("tokenizer", "snac_24khz"), "losses": LOSSES, "sample_rate": 2000}
    found["encoder"] = {**found["encoder"], "filters": 4, "ratios": [4, 2], "width": 16}
    found["decoder"] = {**found["decoder"], "filters": 16, "ratios": [4, 2], "width": 16}
    book = {"vocab_size": 32, "dim": 4, "width": 16, "kmeans_start": 10, "revive_below": 0.1}
    found["codebook"]["codebook"] = {**found["codebook"]["codebook"], **book}
    return {**found, **changes}


def make(samples=None):
    torch.manual_seed(0)
    return build(config(), media_shape=(1,) if samples is None else (1, samples)).eval()


def test_a_sound_has_whole_codes_of_the_coarsest_level():
    model = make()
    assert model.spec.strides == (4, 2, 1) and model.spec.grid == Frames(250.0) and model.spec.bits_per_second == 5 * 250.0 * 1.75
    for length in (1, 31, 32, 33, 100):
        x = media(2, (1, length))
        tokens, blocks = model.encode(x), math.ceil(length / 32)
        assert tokens.codes.shape == (2, 3, 4 * blocks) and tokens.validate()
        assert [int((level >= 0).sum()) for level in tokens.codes.unbind(1)] == [2 * blocks, 4 * blocks, 8 * blocks]
        assert model.decode(tokens).shape == (2, 1, 32 * blocks) and model.decode(tokens, samples=length).shape == x.shape
        z = model.encoder(torch.nn.functional.pad(x, (0, -length % 32)))  # zeros in the sound, not in the latent
        assert torch.equal(model.codebook(z).codes, tokens.codes)
    assert make(100).spec.grid.n == 16 and model.decode(tokens, keep=1).shape == (2, 1, 128)
    with pytest.raises(ValueError, match="chunk by chunk"):
        model.stream(1)


def test_a_row_does_not_depend_on_its_neighbours_nor_its_noise():
    model = make()
    lengths = torch.tensor([100, 33, 5])
    x = media(3, (1, 100)) * (torch.arange(100) < lengths[:, None])[:, None]
    tokens = model.encode(x, lengths)
    assert tokens.lengths.tolist() == [16, 8, 4]
    rng = RowRNG.of(0, torch.arange(3))
    with torch.no_grad():
        for layer in model.decoder.layers:
            if hasattr(layer, "scale"):
                layer.scale.weight = torch.randn(layer.scale.weight.shape)
    quiet, loud = model.decode(tokens, samples=lengths), model.decode(tokens, rng, samples=lengths)
    assert not torch.allclose(quiet, loud)
    for row, length in enumerate(lengths.tolist()):
        one = slice(row, row + 1)
        alone = model.encode(x[one, :, :length])
        frames = alone.codes.shape[2]
        assert torch.equal(alone.codes[0], tokens.codes[row, :, :frames]) and (tokens.codes[row, :, frames:] == ABSENT).all()
        torch.testing.assert_close(quiet[one, :, :length], model.decode(alone, samples=length), atol=1e-5, rtol=1e-4)
        own = rng.rows(torch.tensor([row]))
        torch.testing.assert_close(loud[one, :, :length], model.decode(alone, own, samples=length), atol=1e-5, rtol=1e-4)


class NotPadded(SNAC):
    """Zeros follow in the latent instead of in the sound."""

    def padded(self, media):
        return media


class NoiseOfOthers(SNAC):
    """A row's decoder draws what the batch's first rows draw."""

    def _decoded(self, vectors, rng, rows):
        return super()._decoded(vectors, rng, slice(None))


def no_blocks(model):
    model.multiple = 1


def as_class(cls):
    return lambda model: setattr(model, "__class__", cls)


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (no_blocks, test_a_sound_has_whole_codes_of_the_coarsest_level),
        (as_class(NotPadded), test_a_sound_has_whole_codes_of_the_coarsest_level),
        (as_class(NoiseOfOthers), test_a_row_does_not_depend_on_its_neighbours_nor_its_noise),
    ],
    ids=["no_blocks", "not_padded", "noise_of_others"],
)
def test_wrong_blocks_and_noise_are_found(spoil, check, monkeypatch):
    def spoilt(samples=None, make=make):
        model = make(samples)
        spoil(model)
        return model

    monkeypatch.setattr("test_snac.make", spoilt)
    with pytest.raises((AssertionError, RuntimeError)):
        check()


def test_training_steps_reduce_the_loss_and_a_bundle_gives_the_same_codes(tmp_path):
    model, x = make(), media(8, (1, 96))
    assert learns(model, x)
    model.eval()
    again = load(save(tmp_path / "bundle", tokenizer=model, tokenizer_config={**config(), "media_shape": [1]}))
    tokens = model.encode(x)
    assert torch.equal(again.tokenizer.encode(x).codes, tokens.codes) and again.spec.strides == (4, 2, 1)
    torch.testing.assert_close(again.tokenizer.decode(tokens), model.decode(tokens))


@pytest.mark.parametrize(
    "layout", ["position_major", "level_major", *(pytest.param(name, marks=pytest.mark.slow) for name in ("delayed", "parallel"))]
)
def test_a_causal_generator_learns_eight_sounds_and_gives_them_back(layout):
    model, index = make(128), torch.arange(8)
    tokens = model.encode(media(8, (1, 128), seed=3))
    condition = Condition({"class": Class(index)})
    spec = ConditionSpec((("class", ClassSpec(tuple(map(str, range(8))))),))
    torch.manual_seed(1)
    settings = {**compose("config", ["generator=autoregressive"])["generator"], "width": 48, "depth": 1, "heads": 2, "layout": layout}
    generator = build_generator(settings, model, spec).train()
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(90):
        optimizer.zero_grad()
        generator.loss(tokens, condition, RowRNG.of(1, index, step)).loss.backward()
        optimizer.step()
    generator.eval().requires_grad_(False)
    (cls,) = (c for c in fitting(generator) if c.__name__ == "AutoregressiveSampler" or "autoregressive" in c.__module__)
    sampler = pick_sampler({"_target_": f"{cls.__module__}.{cls.__name__}", "temperature": 0.1}, type(generator))
    drawn = sample_tokens(generator, condition, sampler, rng=RowRNG.of(3, index)).tokens
    assert drawn.validate() and torch.equal(drawn.codes >= 0, tokens.codes >= 0)
    assert (drawn.codes == tokens.codes).all((1, 2)).double().mean() >= 7 / 8
    assert torch.equal(model.decode(drawn)[0], model.decode(tokens)[0]) or not torch.equal(drawn.codes[0], tokens.codes[0])


def released(model):
    """The model's tensors under the names that the release of SNAC has for them, written out for two ratios."""
    places = {"encoder.layers.": "encoder.block.", "codebook.books.": "quantizer.quantizers."}
    flat = [f"{j}" for j in (0, 1)] + [f"{2 + j}.block.{i}" for j in (0, 1) for i in range(6)] + ["4", "5"]
    out = {}
    for key, value in model.state_dict().items():
        if key.endswith((".usage", ".started")):
            continue
        if key.startswith("decoder.layers."):
            layer, _, rest = key.removeprefix("decoder.layers.").partition(".")
            key = f"decoder.model.{flat[int(layer)]}.{rest.replace('layers.', 'block.').replace('scale.', 'linear.')}"
        elif key.startswith("encoder.layers.") and key.split(".")[2] in "12":
            head, layer, inner, rest = key.removeprefix("encoder.layers.").partition(".")[0], *key.split(".", 4)[2:]
            key = f"encoder.block.{head}.block.{inner}.{rest.replace('layers.', 'block.')}"
        for ours, theirs in places.items():
            key = key.replace(ours, theirs)
        if key.startswith("quantizer"):
            key = key.replace("project_in", "in_proj").replace("project_out", "out_proj")
            key = f"{key.removesuffix('weight')}codebook.weight" if key.endswith("weight") else key
            value = value[..., None] if "proj" in key and value.dim() == 2 else value
        out[key] = value.clone()
    return out


def test_released_files_load_and_others_are_refused_in_one_line(tmp_path):
    model = make()
    state = released(model)
    assert {
        "encoder.block.0.parametrizations.weight.original0", "encoder.block.1.block.2.block.3.bias", "encoder.block.2.block.4.bias",
        "encoder.block.3.parametrizations.weight.original1", "decoder.model.1.bias", "decoder.model.2.block.0.alpha",
        "decoder.model.3.block.2.linear.parametrizations.weight.original0", "decoder.model.3.block.5.block.0.alpha",
        "decoder.model.4.alpha", "decoder.model.5.bias", "quantizer.quantizers.1.codebook.weight", "quantizer.quantizers.0.in_proj.bias",
    } <= set(state)  # fmt: skip
    torch.save(state, tmp_path / "pytorch_model.bin")
    torch.manual_seed(9)
    again, x = build(config(weights=str(tmp_path)), media_shape=(1,)).eval(), media(2, (1, 100))
    tokens, rng = model.encode(x), RowRNG.of(0, torch.arange(2))
    assert torch.equal(again.encode(x).codes, tokens.codes)
    assert torch.equal(again.decode(tokens, rng), model.decode(tokens, rng))
    assert again.portable({"weights": "there"}) == {"weights": None}
    torch.save({**state, "encoder.block.9.norm.weight": torch.zeros(1)}, tmp_path / "attention.bin")
    torch.save({**state, "spare": torch.zeros(1)}, tmp_path / "spare.bin")
    torch.save({name: value for name, value in state.items() if name != "encoder.block.1.block.2.block.3.bias"}, tmp_path / "few.bin")
    wide = config(weights=str(tmp_path))
    wide["decoder"]["filters"] = 32
    extra, spare, few = (config(weights=str(tmp_path / name)) for name in ("attention.bin", "spare.bin", "few.bin"))
    for settings, line in (
        (extra, "it has, beyond .*1 tensor, such as"),
        (spare, "it has, beyond .*, such as spare"),
        (few, "it lacks 1 tensor, such as"),
        (wide, "is .* there and .* here"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            build(settings, media_shape=(1,))
        assert "\n" not in str(error.value)


def test_the_preset_has_the_published_size_and_rate():
    model = size("snac_24khz")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 19.8
    assert round(model.spec.bits_per_second) == 984 and model.spec.strides == (4, 2, 1)
