"""FlexTok with a token density: what holds of the plain one holds of it, and what it cannot be is refused in one line."""

import pytest
import torch
from tokenizer_kit import LOSSES, batch_of, learns, media, noise_of

from gentok.build import build
from gentok.bundle import load, save, stamp
from gentok.nn.density_transformer import DensityTransformer
from gentok.nn.transformer import Transformer
from gentok.rng import RowRNG
from gentok.types import Batch

FSQ = {"_target_": "gentok.codebooks.fsq.FSQ", "values": [8, 5, 5, 5], "width": None}
PLACE = "gentok.nn.density.Density"
DENSITIES = {
    "with registers": {"rate": 0.75, "sparse": 1},
    "registers wait": {"rate": 0.75, "sparse": 1, "registers": False},
    "by time": {"rate": 0.4, "noise_rate": 0.94, "levels": 2, "sparse": 1, "registers": False},
}


def config_of(name="by time", **options):
    """The configuration of a small model."""
    sizes = {"registers": 8, "encoder_width": 32, "encoder_depth": 1, "decoder_width": 32, "decoder_depth": 6, "head_width": 32, "steps": 2}
    base = {"_target_": "gentok.tokenizers.flextok.FlexTok", "codebook": FSQ, "media_shape": [1, 16, 16], "losses": LOSSES, **sizes}
    return {**base, "density": {"_target_": PLACE, **DENSITIES[name]}, **options}


def model_of(name="by time", stirred=True, **options):
    """A small model; stirred: in eval mode, with no layer that is zero."""
    torch.manual_seed(0)
    model = build(config_of(name, **options))
    if stirred:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in model.eval().parameters():
                if p.dim() == 2:
                    p.copy_(torch.randn(p.shape, generator=generator) * p.shape[1] ** -0.5)
    return model


@pytest.mark.parametrize("name", DENSITIES)
def test_a_row_alone_is_the_row_in_a_batch_and_a_prefix_decides_alone(name):
    model = model_of(name).double()
    tokens = model.encode(media().double())
    for options in ({}, {"guidance": 3.0}, {"keep": 2}):
        torch.testing.assert_close(model.decode(tokens, **options)[1:2], model.decode(tokens.rows([1]), **options), atol=1e-11, rtol=0)
    assert torch.equal(model.decode(tokens, keep=3), model.decode(tokens.truncate(positions=3)))
    x, rows = media().double(), torch.arange(4)
    each = [model(Batch(x[i : i + 1], rows[i : i + 1]), RowRNG.of(0, rows[i : i + 1])).losses["flow"] for i in range(4)]
    torch.testing.assert_close(model(batch_of(x), noise_of(x)).losses["flow"], torch.stack(each).mean())


@pytest.mark.parametrize("decoder", ["flow", "regression"])
def test_it_decodes_other_sizes_and_is_trained(decoder):
    model = model_of("with registers", decoder=decoder)
    for shape in ((1, 16, 24), (1, 8, 8)):
        x = media(2, shape)
        assert model.decode(model.encode(x)).shape == x.shape
    if decoder == "regression":
        assert learns(model_of("with registers", stirred=False, decoder="regression"), media(), steps=40, share=0.9)


def test_a_bundle_gives_back_the_model(tmp_path):
    model = model_of()
    stamp(model, config_of())
    save(tmp_path / "bundle", tokenizer=model, tokenizer_config=config_of())
    again = load(tmp_path / "bundle").tokenizer
    found = again.decoder.transformer
    assert isinstance(found, DensityTransformer) and found.density == model.decoder.transformer.density
    tokens = model.encode(media())
    assert torch.equal(model.decode(tokens), again.decode(tokens))


def test_without_a_density_the_network_is_the_one_it_was():
    plain = model_of(density=None, decoder_depth=2)
    names = [f"decoder.transformer.blocks.1.{part}" for part in ("attention.qkv.weight", "mlp.up.weight", "modulation.bias")]
    assert type(plain.decoder.transformer) is Transformer and set(names) <= set(plain.state_dict())


@pytest.mark.parametrize(
    "options, words",
    [
        ({"decoder_depth": 4}, "5 blocks, and the network has 4"),
        ({"align": 1.0, "align_block": 2}, "align_block=2 sees few tokens"),
        ({"density": {"_target_": PLACE, "rate": 0.01, "sparse": 1}}, "leaves all tokens of a grid of 4 x 4"),
        ({"density": {"_target_": PLACE, "rate": 0.9, "noise_rate": 0.1}}, "noise_rate=0.1 is below rate=0.9"),
        ({"density": 0.5}, "expected a Density"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options, words):
    with pytest.raises(ValueError, match=words) as error:
        build(config_of(**options))
    assert "\n" not in str(error.value)


def test_blocks_that_see_all_tokens_can_be_aligned():
    for block in (3, 4):
        model = model_of(align=1.0, align_block=block, align_hidden=8, teacher_width=4)
        model._teacher.value = lambda x, patches: torch.ones(len(x), 4, *patches)
        assert model(batch_of(media()), noise_of(media())).losses["align"].isfinite()
