"""gentok's own DAC with the weights of transformers' DacModel gives its codes and sound; released files load under both sets of names."""

import math
import re

import pytest
import torch
from codec_sizes import size
from released_kit import names_what_is_wrong
from tokenizer_kit import read

from gentok.build import build
from gentok.bundle import load, pretrained
from gentok.tokenizers.pretrained import dac
from gentok.tokenizers.pretrained.dac import DAC
from gentok.types import Tokens

transformers = pytest.importorskip("transformers")

ROWS, LEVELS = 32, 3


def config(ratios, filters=4, top=16, rows=ROWS, levels=LEVELS, dim=4):
    """A small dac_24khz and the same for DacModel."""
    width = filters * 2 ** len(ratios)
    ours = {**read("tokenizer", "dac_24khz"), "losses": None, "sample_rate": 2000}
    ours["encoder"] = {**ours["encoder"], "filters": filters, "ratios": ratios, "width": width}
    ours["decoder"] = {**ours["decoder"], "filters": top, "ratios": ratios, "width": width}
    ours["codebook"] = {**ours["codebook"], "levels": levels}
    ours["codebook"]["codebook"] = {**ours["codebook"]["codebook"], "vocab_size": rows, "dim": dim, "width": width}
    theirs = {"encoder_hidden_size": filters, "decoder_hidden_size": top, "downsampling_ratios": list(reversed(ratios)),
              "n_codebooks": levels, "codebook_size": rows, "codebook_dim": dim, "sampling_rate": 2000}  # fmt: skip
    return ours, theirs


def sound(batch, samples, seed=0):
    """Float [B, 1, T] in [-1, 1]: noise of changing colour and loudness."""
    x = torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool1d(x, 9, 1, padding=4)
    time = torch.arange(samples) + 1000.0 * torch.arange(batch)[:, None, None]
    return ((time / 150).sin() * x + 3 * (time / 1100).cos() * smooth).div(2).tanh()


@torch.no_grad()
def library(settings):
    """A DacModel with random weights, its tables normal at the place and scale of the projected latents."""
    torch.manual_seed(0)
    model = transformers.DacModel(transformers.DacConfig(**settings)).eval()
    for key, p in model.named_parameters():
        if key.endswith(("bias", "alpha")):
            p.add_(0.1 * torch.randn_like(p))
        else:  # its start of 0.02 leaves little but biases in the latent
            p.normal_(std=0.5 * p[0].numel() ** -0.5)
    generator = torch.Generator().manual_seed(7)
    residual = model.encoder(sound(4, 40 * model.config.hop_length, seed=5))
    for book in model.quantizer.quantizers:
        y = book.in_proj(residual).transpose(0, 1).flatten(1)
        spread = torch.linalg.cholesky(y.cov() + 1e-8 * torch.eye(len(y)))
        book.codebook.weight.copy_(y.mean(1) + torch.randn(len(book.codebook.weight), len(y), generator=generator) @ spread.T)
        residual = residual - book(residual)[0]
    return model


@torch.no_grad()
def theirs_and_ours_agree(model, codec, lengths, batch=2, counts=range(1, LEVELS + 1)):
    """For every length and each of `counts` levels."""
    hop, levels, rows = model.config.hop_length, model.config.n_codebooks, model.config.codebook_size
    used = [set() for _ in range(levels)]
    for length in lengths:
        x = sound(batch, length)
        padded = torch.nn.functional.pad(x, (0, -length % hop))
        ours = codec.encode(x)
        for n in counts:
            q = model.encode(padded, n)
            assert ours.codes[:, :n].shape == q.audio_codes.shape == (batch, n, math.ceil(length / hop))
            assert (ours.codes[:, :n] != q.audio_codes).float().mean() < 1e-3  # near ties
            heard = model.decode(audio_codes=q.audio_codes).audio_values[:, None, :length]
            full = torch.full((batch, levels, q.audio_codes.shape[2]), -1).index_copy(1, torch.arange(n), q.audio_codes)
            wave = codec.decode(Tokens(full, codec.spec), samples=length)
            assert (wave[..., : heard.shape[2]] - heard).abs().max() <= 1e-5 and not wave[..., heard.shape[2] :].any()
        for level, codes in zip(used, ours.codes.unbind(1)):
            level.update(codes.unique().tolist())
    assert heard.std() > 1e-3 and all(len(level) >= rows / 2 for level in used), "the test would prove nothing"
    assert (ours.codes != q.audio_codes.roll(1, 2)).float().mean() > 0.2  # a mutant


@pytest.mark.parametrize("ratios", [[4, 2], [3, 2]])
def test_codes_and_sound_are_those_of_transformers(ratios, tmp_path):
    ours, settings = config(ratios)
    model, hop = library(settings), math.prod(ratios)
    model.save_pretrained(tmp_path)
    codec = build({**ours, "weights": str(tmp_path)}, media_shape=(1,)).eval()
    theirs_and_ours_agree(model, codec, (1, hop - 1, hop, hop + 1, 100 * hop + 3))


@pytest.mark.slow
def test_codes_and_sound_are_those_of_transformers_at_full_size(tmp_path):
    """The networks of dac_44khz and its nine levels; 64 rows each, which a second of sound can use."""
    ours = {**read("tokenizer", "dac_44khz"), "losses": None}
    ours["codebook"]["codebook"] = {**ours["codebook"]["codebook"], "vocab_size": 64}
    model = library({"sampling_rate": 44100, "downsampling_ratios": [2, 4, 8, 8], "codebook_size": 64})
    model.save_pretrained(tmp_path)
    codec = build({**ours, "weights": str(tmp_path)}, media_shape=(1,)).eval()
    theirs_and_ours_agree(model, codec, (1, 511, 512, 513, 2 * 44100), batch=1, counts=(1, 9))


def descript(state, stages, length=None):
    """The state of a DacModel as descript's release names it, lengths and directions apart; a direction may have any length."""
    inside = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}
    out = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part != "quantizer":
            list_name = {"encoder": "block", "decoder": "model"}[part]
            if stage := re.match(r"block\.(\d+)\.(?:res_unit(\d)\.)?(\w+)\.(\w+)$", rest):
                at, unit, layer, last = stage.groups()
                first = 0 if part == "encoder" else 2
                if unit:
                    inner = f"{first + int(unit) - 1}.block.{inside[layer]}"
                else:
                    inner = {"encoder": {"snake1": 3, "conv1": 4}, "decoder": {"snake1": 0, "conv_t1": 1}}[part][layer]
                key = f"{part}.{list_name}.{int(at) + 1}.block.{inner}.{last}"
            else:
                layer, last = rest.split(".")
                key = f"{part}.{list_name}.{ {'conv1': 0, 'snake1': stages + 1, 'conv2': stages + 2}[layer]}.{last}"
        if key.endswith(".weight") and "codebook" not in key:
            out[key[:-6] + "weight_g"] = value.norm(dim=(1, 2), keepdim=True)
            out[key[:-6] + "weight_v"] = 3.0 * value
        else:
            out[key] = value
    return out


def test_files_of_descript_load_too():
    ours, settings = config([4, 2])
    model = library(settings)
    state = descript(model.state_dict(), stages=2)
    assert {"encoder.block.1.block.2.block.3.weight_g", "decoder.model.2.block.1.weight_v", "decoder.model.4.bias"} <= set(state)
    codec = build(ours, media_shape=(1,)).eval()
    codec.load_state_dict(DAC.renamed(state, LEVELS))
    theirs_and_ours_agree(model, codec, (803,))


def test_a_file_of_descript_is_adopted_and_its_bundle_needs_it_no_more(tmp_path):
    ours, settings = config([4, 2])
    model = library(settings)
    torch.save({"state_dict": descript(model.state_dict(), 2), "metadata": {"kwargs": {}}}, tmp_path / "weights.pth")
    found = pretrained({**ours, "weights": str(tmp_path / "weights.pth")}, (1,))
    path = found.save(tmp_path / "bundle")
    (tmp_path / "weights.pth").unlink()
    again, x = load(path), sound(2, 803)
    assert torch.equal(again.tokenizer.encode(x).codes, found.tokenizer.encode(x).codes)
    assert str(tmp_path) not in (path / "bundle.json").read_text() and again.spec == found.spec
    theirs_and_ours_agree(model, again.tokenizer, (803,))


def test_fewer_levels_of_a_file_are_a_code_by_themselves(tmp_path):
    ours, settings = config([4, 2])
    model = library(settings)
    model.save_pretrained(tmp_path)
    fewer = build({**ours, "codebook": {**ours["codebook"], "levels": 2}, "weights": str(tmp_path)}, media_shape=(1,)).eval()
    whole = build({**ours, "weights": str(tmp_path)}, media_shape=(1,)).eval()
    x = sound(2, 100)
    assert torch.equal(fewer.encode(x).codes, whole.encode(x).codes[:, :2])
    torch.testing.assert_close(fewer.decode(fewer.encode(x)), whole.decode(whole.encode(x), keep=2))


def test_other_files_are_refused_in_one_line(tmp_path):
    ours, settings = config([4, 2])
    library(settings).save_pretrained(tmp_path / "model")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    (tmp_path / "torn.pth").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()
    wide = {**ours, "decoder": {**ours["decoder"], "filters": 32}}
    more = {**ours, "codebook": {**ours["codebook"], "levels": LEVELS + 1}}
    for settings, path, error, line in (
        (ours, "other.pth", ValueError, "holds no DAC model"),
        (ours, "torn.pth", ValueError, "cannot|can be read"),
        (ours, "empty", FileNotFoundError, "holds no DAC weights"),
        (ours, "nowhere.pth", FileNotFoundError, "there are no DAC weights"),
        (wide, "model", ValueError, "is .* there and .* here"),
        (more, "model", ValueError, "it lacks"),
    ):
        with pytest.raises(error, match=line) as found:
            build({**settings, "weights": str(tmp_path / path)}, media_shape=(1,))
        assert "\n" not in str(found.value) and path in str(found.value)
    names_what_is_wrong(lambda: build({**ours, "weights": str(tmp_path / "model")}, media_shape=(1,)), tmp_path / "model", own_names=False)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("STAGE", {**dac.STAGE, "encoder": {**dac.STAGE["encoder"], "conv1": 3}}),
        ("UNIT", {"snake1": 2, "conv1": 3, "snake2": 0, "conv2": 1}),  # the layers of a unit in the wrong order
        ("length_of", lambda weight: weight.flatten(1).norm(dim=1).square().view(-1, *[1] * (weight.dim() - 1))),
    ],
    ids=["place", "order", "length"],
)
def test_wrong_names_and_lengths_of_weights_are_found(name, wrong, monkeypatch):
    monkeypatch.setattr(dac, name, wrong)
    ours, settings = config([4, 2])
    model, codec = library(settings), build(ours, media_shape=(1,)).eval()
    with pytest.raises((AssertionError, RuntimeError)):
        codec.load_state_dict(DAC.renamed(model.state_dict(), LEVELS))
        theirs_and_ours_agree(model, codec, (803,))


def test_weights_are_not_looked_for_where_only_sizes_are_asked_for(tmp_path):
    ours, settings = config([4, 2])
    library(settings).save_pretrained(tmp_path)
    with torch.device("meta"):
        codec = build(ours, media_shape=(1,))
        codec.load_weights(tmp_path)
    assert all(p.is_meta for p in codec.parameters())


@pytest.mark.parametrize(
    ("name", "millions", "rate_hz"), [("dac_16khz", 74.2, 50.0), ("dac_24khz", 74.7, 75.0), ("dac_44khz", 76.7, 86.1328)]
)
def test_presets_have_the_published_sizes(name, millions, rate_hz):
    """76.7 M is the paper's figure for 44.1 kHz; at 16 and 24 kHz the ratios 8, 5, 4, 2 make it smaller and more levels larger."""
    model = size(name)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions
    assert abs(model.spec.grid.rate_hz - rate_hz) < 1e-3
