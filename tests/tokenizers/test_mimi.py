"""gentok's own Mimi with the weights of transformers' MimiModel gives its codes and its sound; both namings of its files load."""

import math

import pytest
import torch
from codec_sizes import size
from released_kit import names_what_is_wrong
from tokenizer_kit import read

from gentok.build import build
from gentok.bundle import load, pretrained
from gentok.nn.mimi import MimiDecoder, MimiEncoder, WindowTransformer
from gentok.tokenizers.pretrained import mimi
from gentok.tokenizers.pretrained.mimi import Mimi
from gentok.types import Tokens

transformers = pytest.importorskip("transformers")

ROWS, LEVELS, HOP = 32, 4, 16
SETTINGS = {
    "num_filters": 4, "hidden_size": 16, "upsampling_ratios": [4, 2], "codebook_size": ROWS, "num_quantizers": LEVELS, "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8, "upsample_groups": 16, "num_hidden_layers": 2, "intermediate_size": 32,
    "num_attention_heads": 2, "num_key_value_heads": 2, "sampling_rate": 2000, "sliding_window": 6,
}  # fmt: skip


def config():
    """A small mimi_12hz, as SETTINGS."""
    found = {**read("tokenizer", "mimi_12hz"), "losses": None, "sample_rate": 2000}
    for part in ("encoder", "decoder"):
        found[part] = {**found[part], "width": 16, "filters": 4, "ratios": [4, 2], "depth": 2, "heads": 2, "hidden": 32, "window": 6}
    for part, levels in (("semantic", 1), ("acoustic", LEVELS - 1)):
        book = {**found["codebook"][part]["codebook"], "vocab_size": ROWS, "dim": 8}
        found["codebook"][part] = {**found["codebook"][part], "levels": levels, "width": 16, "codebook": book}
    return found


def sound(batch, samples, seed=0):
    x = torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(seed))
    return (x + x.cumsum(2)).div(4).tanh()


@torch.no_grad()
def library():
    """A MimiModel with random weights, its tables normal at the place and scale of what they code."""
    torch.manual_seed(0)
    model = transformers.MimiModel(transformers.MimiConfig(**SETTINGS)).eval()
    for key, p in model.named_parameters():
        if p.dim() == 1:  # biases are zeros in a fresh model, norms ones, scales 0.01: they would hide mistakes
            p.add_((0.5 if "scale" in key else 0.1) * torch.randn_like(p))
        elif "q_proj" in key or "k_proj" in key:  # at their start all frames are attended alike
            p.mul_(20.0)
    generator = torch.Generator().manual_seed(7)
    z = model.encoder(sound(16, 40 * HOP, seed=5)).latents
    for part in (model.quantizer.semantic_residual_vector_quantizer, model.quantizer.acoustic_residual_vector_quantizer):
        rest = part.input_proj(z)
        for layer in part.layers:
            y = rest.transpose(0, 1).flatten(1)
            spread = torch.linalg.cholesky(y.cov() + 1e-8 * torch.eye(len(y)))
            usage = torch.rand(ROWS, generator=generator) + 0.5
            rows = y.mean(1) + torch.randn(ROWS, len(y), generator=generator) @ spread.T
            layer.codebook.embed_sum.copy_(rows * usage[:, None]), layer.codebook.cluster_usage.copy_(usage)
            layer.codebook._embed = None
            rest = rest - layer.decode(layer.encode(rest))
    return model


@torch.no_grad()
def theirs_and_ours_agree(model, codec, lengths=(1, HOP - 1, HOP, HOP + 1, 60 * HOP + 3)):
    used = [set() for _ in range(LEVELS)]
    for length in lengths:
        x = sound(12, length)
        ours, want = codec.encode(x), model.encode(x).audio_codes
        assert ours.codes.shape == want.shape == (12, LEVELS, math.ceil(length / HOP))
        assert (ours.codes != want).float().mean() < 1e-3  # near ties
        for n in range(2, LEVELS + 1):
            heard = model.decode(want[:, :n]).audio_values[..., :length]
            wave = codec.to_media(codec.codebook.lookup(Tokens(want, codec.spec).truncate(levels=n).codes), None)[..., :length]
            assert (wave - heard).abs().max() <= 1e-5 * max(1.0, float(heard.abs().max()))
        for level, codes in zip(used, want.unbind(1)):
            level.update(codes.unique().tolist())
    assert heard.std() > 1e-3 and all(len(level) >= ROWS / 2 for level in used), "the test would prove nothing"
    assert (ours.codes != want.roll(1, 2)).float().mean() > 0.2  # a mutant


def test_codes_and_sound_are_those_of_transformers_and_the_bundle_s(tmp_path):
    model = library()
    model.save_pretrained(tmp_path / "model")
    found = pretrained({**config(), "weights": str(tmp_path / "model")}, (1,))
    theirs_and_ours_agree(model, found.tokenizer)
    path = found.save(tmp_path / "bundle")
    (tmp_path / "model").rename(tmp_path / "gone")
    theirs_and_ours_agree(model, load(path).tokenizer, (60 * HOP,))
    assert str(tmp_path) not in (path / "bundle.json").read_text()


def test_the_older_naming_loads_too():
    model, older = library(), {}
    for key, value in model.state_dict().items():
        for half in ("encoder", "decoder"):
            key = key.replace(f"{half}.{half}_seanet.", f"{half}.").replace(f"{half}.{half}_transformer.", f"{half}_transformer.")
        older[key.replace("encoder.downsample.", "downsample.").replace("decoder.upsample.", "upsample.")] = value
    assert {"downsample.conv.weight", "encoder.layers.0.conv.weight", "decoder_transformer.layers.1.mlp.fc1.weight"} <= set(older)
    codec = build(config(), media_shape=(1,)).eval()
    codec.load_state_dict(Mimi.renamed(older, LEVELS))
    theirs_and_ours_agree(model, codec, (60 * HOP,))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("QKV", "kqv"),
        ("rows_of", lambda sums, usage: sums),
        ("IN_BLOCK", {**mimi.IN_BLOCK, "self_attn_layer_scale.scale": "scale2", "mlp_layer_scale.scale": "scale1"}),
    ],
    ids=["queries", "usage", "scales"],
)
def test_wrong_names_and_rows_of_weights_are_found(name, wrong, monkeypatch):
    monkeypatch.setattr(mimi, name, wrong)
    model, codec = library(), build(config(), media_shape=(1,)).eval()
    with pytest.raises((AssertionError, RuntimeError)):
        codec.load_state_dict(Mimi.renamed(model.state_dict(), LEVELS))
        theirs_and_ours_agree(model, codec, (60 * HOP,))


def test_fewer_levels_of_a_file_are_a_code_by_themselves_and_other_files_are_refused_in_one_line(tmp_path):
    library().save_pretrained(tmp_path / "model")
    whole = build({**config(), "weights": str(tmp_path / "model")}, media_shape=(1,)).eval()
    fewer = config()
    fewer["codebook"]["acoustic"]["levels"] = 2
    cut = build({**fewer, "weights": str(tmp_path / "model")}, media_shape=(1,)).eval()
    x = sound(2, 100)
    assert torch.equal(cut.encode(x).codes, whole.encode(x).codes[:, :3])
    (tmp_path / "torn.safetensors").write_bytes(b"nothing")
    more, deep = config(), config()
    more["codebook"]["acoustic"]["levels"] = 9
    deep["encoder"]["hidden"] = 48
    for settings, path, error, line in (
        (config(), "nowhere", FileNotFoundError, "there are no Mimi weights"),
        (config(), "torn.safetensors", ValueError, "can be read"),
        (more, "model", ValueError, "it lacks"),
        (deep, "model", ValueError, "is .* there and .* here"),
    ):
        with pytest.raises(error, match=line) as found:
            build({**settings, "weights": str(tmp_path / path)}, media_shape=(1,))
        assert "\n" not in str(found.value)
    folder = tmp_path / "model"
    names_what_is_wrong(lambda: build({**config(), "weights": str(folder)}, media_shape=(1,)), folder, own_names=False)


def test_the_networks_are_causal_and_the_window_is_one():
    torch.manual_seed(0)
    net = WindowTransformer(16, 1, 2, 32, window=3, scale=1.0).double()
    x = torch.randn(1, 16, 8, dtype=torch.float64)
    y, changed = x.clone(), net(x)
    y[..., 4] += torch.randn(16)
    moved = (net(y) - changed).abs().amax((0, 1)) > 1e-9
    assert moved.tolist() == [False] * 4 + [True] * 3 + [False]  # frames 4, 5 and 6 see frame 4
    size = {"width": 16, "filters": 4, "ratios": [4, 2], "depth": 1, "heads": 2, "hidden": 32, "window": 6}
    encoder, decoder = MimiEncoder(**size).double(), MimiDecoder(**size).double()
    sound = torch.randn(1, 1, 10 * HOP, dtype=torch.float64)
    later = sound.clone()
    later[..., 5 * HOP :] = 0.0
    assert torch.allclose(encoder(sound)[..., :5], encoder(later)[..., :5]) and not torch.allclose(encoder(sound), encoder(later))
    z = encoder(sound)
    cut = z.clone()
    cut[..., 5:] = 0.0
    assert torch.allclose(decoder(z)[..., : 5 * HOP], decoder(cut)[..., : 5 * HOP]) and decoder(z).shape == sound.shape
    (decoder(encoder(sound)).square().sum()).backward()
    for name, p in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_the_preset_is_as_large_as_the_library_s_model_and_has_the_published_rate():
    model = size("mimi_12hz")
    with torch.device("meta"):
        theirs = transformers.MimiModel(transformers.MimiConfig())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert model.spec.grid.rate_hz == 12.5 and model.spec.bits_per_second == 4400 and model.hop == 1920
