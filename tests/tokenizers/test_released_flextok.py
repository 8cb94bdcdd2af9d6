"""gentok's FlexTok with the release's weights gives the codes and images that the release's own code gave; other files are refused."""

import ast
import functools
import json
import re

import pytest
import torch
from released_kit import GOLDEN, images, recorded, released
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizer_kit import batch_of, noise_of, read

from gentok.adopt import adopt
from gentok.build import build
from gentok.bundle import build_generator, load, pretrained
from gentok.cli import compose
from gentok.nn.patches import positions_2d
from gentok.rng import RowRNG
from gentok.sampling import pick_sampler, sample_tokens
from gentok.tokenizers.pretrained.released_flextok import ORDER, SINES
from gentok.types import Class, ClassSpec, Condition, ConditionSpec, Line

SMALL = {"registers": 64, "encoder_width": 128, "encoder_depth": 2, "decoder_width": 192, "decoder_depth": 2, "steps": 3}
AUTOENCODER = {
    "block_out_channels": [32, 64], "layers_per_block": 1, "latent_channels": 4, "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip
"""As the record was made."""

pytest.importorskip("diffusers")


def config(weights=None, **changes):
    found = {**read("tokenizer", "flextok_released"), **SMALL, "weights": weights}
    latents = {**found["latents"], "media_shape": [3, 32, 32], "config": {**found["latents"]["config"], **AUTOENCODER}}
    return {**found, "latents": latents, **changes}


def header(**changes):
    """The configuration in the header of a released file."""
    with safe_open(GOLDEN / "flextok.safetensors", "pt") as file:
        found = json.loads(file.metadata()["header"])
    return {name: value for name, value in {**found, **changes}.items() if value is not None}


@functools.cache
def weights():
    places = positions_2d((8, 8), (8, 8), 192).T.reshape(1, 192, 8, 8).contiguous()
    return released("flextok", "small", **{SINES["encoder"]: recorded("flextok", "small", "sines")[0], SINES["decoder"]: places})


def stored(tmp_path, written=None, **changes):
    state = {name: value for name, value in {**weights(), **changes}.items() if value is not None}
    save_file(state, tmp_path / "model.safetensors", header() if written is None else written)
    return str(tmp_path)


def built(path, **changes):
    return build(config(path, **changes), media_shape=(3, 32, 32)).eval()


class Drawn:
    """In the place of an RNG, what the record started from."""

    def __init__(self, noise):
        self.noise = noise

    def normal(self, *shape):
        return self.noise


def farthest(model, tokens, noise, wanted):
    """From the two recorded images, of 64 and 9 tokens with projected guidance, and of 64 and 1 without guidance."""
    guided = model.decode(tokens, Drawn(noise), keep=torch.tensor([64, 9]), guidance=3.0, apg=True)
    plain = model.decode(tokens, Drawn(noise), keep=torch.tensor([64, 1]), guidance=1.0)
    return [float((found - image.clamp(-1, 1)).abs().max()) for found, image in zip((guided, plain), wanted)]


@torch.no_grad()
def test_codes_and_images_are_those_of_the_release(tmp_path):
    model = built(stored(tmp_path))
    codes, noise, *wanted = recorded("flextok", "small", "codes", "noise", "guided", "plain")
    tokens = model.encode(images(32, 32))
    assert torch.equal(tokens.codes, codes) and len(codes.unique()) > 90 and model.spec.grid == Line(64, nested=True)
    assert max(farthest(model, tokens, noise, wanted)) < 1e-5
    # mutants: another scale of times, gates in the place of shifts, patches read channel by channel
    model.decoder.time.scale = 1000.0
    assert min(farthest(model, tokens, noise, wanted)) > 1e-3
    model.decoder.time.scale = 250.0
    shifted = model.decoder.transformer.blocks[0].modulation.bias
    shifted.copy_(shifted.unflatten(0, (6, -1))[list(ORDER)].flatten())
    assert min(farthest(model, tokens, noise, wanted)) > 1e-3
    stem = model.encoder.stem.weight
    stem.copy_(stem.unflatten(1, (4, -1)).transpose(1, 2).flatten(1))
    assert not torch.equal(model.encode(images(32, 32)).codes, codes)


def test_a_file_is_adopted_and_trained_from_where_the_release_stands(tmp_path):
    path = pretrained(config(stored(tmp_path)), (3, 32, 32)).save(tmp_path / "bundle")
    (tmp_path / "model.safetensors").unlink()
    codes, noise, *wanted = recorded("flextok", "small", "codes", "noise", "guided", "plain")
    model = load(path).tokenizer
    assert torch.equal(model.encode(images(32, 32)).codes, codes)
    assert max(farthest(model, model.encode(images(32, 32)), noise, wanted)) < 1e-5  # the bundle knows both numbers of the header
    model = built(stored(tmp_path)).train()
    x, frozen = images(32, 32), {name: value.clone() for name, value in model.latents.state_dict().items()}
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.Adam(learnt, 1e-3), []
    for _ in range(4):
        losses.append(sum(model(batch_of(x), noise_of(x)).losses.values()))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[3] < losses[0]
    assert all(torch.equal(value, frozen[name]) for name, value in model.latents.state_dict().items())


def test_a_generator_of_its_tokens_is_sampled_and_decoded_from_few(tmp_path):
    inner = "tokenizer.latents.config"
    words = f"""tokenizer=flextok_released tokenizer.weights={stored(tmp_path)} media_shape=[3,32,32] out={tmp_path}/bundle
        tokenizer.latents.media_shape=[3,32,32] {inner}.layers_per_block=1 {inner}.latent_channels=4 {inner}.block_out_channels=[32,64]
        {inner}.down_block_types=[DownEncoderBlock2D,DownEncoderBlock2D] {inner}.up_block_types=[UpDecoderBlock2D,UpDecoderBlock2D]"""
    tokenizer = load(adopt(compose("adopt", [*words.split(), *(f"tokenizer.{name}={value}" for name, value in SMALL.items())]))).tokenizer
    settings = {**read("generator", "autoregressive"), "width": 32, "depth": 1, "heads": 2}
    model = build_generator(settings, tokenizer, ConditionSpec((("class", ClassSpec(("a", "b"))),))).eval()
    condition = Condition({"class": Class(torch.tensor([0, 1]))})
    tokens = sample_tokens(model, condition, pick_sampler(None, type(model)), rng=RowRNG.of(0, range(2))).tokens
    assert tokens.codes.shape == (2, 1, 64) and tokens.spec.grid.nested
    few = tokenizer.decode(tokens, keep=4)
    assert torch.equal(few, tokenizer.decode(tokens.truncate(positions=4))) and not torch.equal(few, tokenizer.decode(tokens))


def test_other_files_are_refused_in_one_line(tmp_path):
    head, latents, sines = "decoder.module_dict.dec_to_patches.proj.bias", "vae.vae.quant_conv.bias", SINES["encoder"]
    for changes, line in (
        ({head: None}, r"lacks 1 tensor, such as decoder\.module_dict\.dec_to_patches\.proj\.bias"),
        ({latents: None}, r"lacks 1 tensor, such as vae\.vae\.quant_conv\.bias"),
        ({"encoder.extra.weight": torch.zeros(2)}, r"beyond this model, 1 tensor, such as encoder\.extra\.weight"),
        ({head: torch.zeros(8)}, r"dec_to_patches\.proj\.bias is \(8,\) there and \(16,\) here"),
        ({sines: torch.zeros(1, 128, 4, 4)}, r"enc_posemb_module\.posembs is \(1, 128, 4, 4\) there and \(1, 128, 8, 8\) here"),
        ({sines: torch.zeros(1, 128, 8, 8)}, r"enc_posemb_module\.posembs holds other numbers than sines and cosines"),
        ({"decoder.module_dict.dec_nested_dropout.dropout_mask_token": None}, "holds no FlexTok model: expected the weights of"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            built(stored(tmp_path, **changes))
        assert "\n" not in str(error.value) and "model.safetensors" in str(error.value)
    for written, line in (
        (header(vae=None), r"by which factor its latents are scaled: give tokenizer\.latents\.config\.scaling_factor"),
        (header(decoder=None), r"what it multiplies times by: give tokenizer\.time_scale"),
        (header(regularizer="{'levels': [8, 5]}"), r"has an FSQ of levels \[8, 5\]; tokenizer\.codebook\.values are"),
    ):
        with pytest.raises(ValueError, match=line):
            built(stored(tmp_path, written))
    assert built(stored(tmp_path, header(decoder=None)), time_scale=250.0).decoder.time.scale == 250.0
    (tmp_path / "config.json").write_text(json.dumps({"decoder": ast.literal_eval(header()["decoder"])}))
    assert built(stored(tmp_path, header(decoder=None))).decoder.time.scale == 250.0
    with pytest.raises(ValueError, match="a released FlexTok has decoder=flow"):
        built(None, latents=None)


@pytest.mark.parametrize("depths, parameters", [((12, 12), 257_437_510), ((18, 18), 865_323_718), ((18, 28), 2_456_308_166)])
def test_it_has_the_size_of_the_release(depths, parameters):
    sizes = dict(zip(("encoder_depth", "decoder_depth"), depths)) | dict(zip(("encoder_width", "decoder_width"), (64 * d for d in depths)))
    with torch.device("meta"):
        model = build({**read("tokenizer", "flextok_released"), **sizes}, media_shape=(3, 256, 256))
    own = [p.numel() for name, p in model.named_parameters() if not re.search(r"latents|norm|qk_", name)]  # norms have none there
    assert sum(own) == parameters and model.spec.positions == 256
