"""X-Codec, Higgs and X-Codec 2: what their semantic halves do, and codes, sound and spectrogram of X-Codec 2 as transformers has them."""

import copy
import math

import pytest
import torch
from test_pretrained_codecs import HOPS, MODELS, make, sound
from tokenizer_kit import LOSSES, learns, read

from gentok.build import build
from gentok.bundle import load, pretrained
from gentok.interfaces import Codebook, Tokenizer
from gentok.nn.kaldi import KaldiMel
from gentok.types import ABSENT, Frames

transformers = pytest.importorskip("transformers")

NAMES = ("transformers_xcodec", "transformers_higgs", "transformers_xcodec2")
HOP, CODES = 320, 4**8
XCODEC2 = {
    "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
    "encoder_hidden_size": 4, "downsampling_ratios": [8, 8, 5], "quantization_dim": 80,
    "semantic_model_config": {"model_type": "wav2vec2-bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                              "intermediate_size": 32, "hidden_dropout": 0.1, "conv_depthwise_kernel_size": 5},
}  # fmt: skip


def small(**overrides):
    """A gentok X-Codec 2 whose weights make use of its codes."""
    torch.manual_seed(0)
    config = {**read("tokenizer", "transformers_xcodec2"), "losses": LOSSES, "config": XCODEC2, **overrides}
    model = build(config, media_shape=(1,)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p)) if p.dim() == 1 else p.normal_(std=p[0].numel() ** -0.5)
        model.decoder.model[1].head.linear.bias[: 2 * HOP].add_(4.0)  # as loud as speech
    return model


def theirs_of(model):
    """The library's model with the same weights."""
    own = transformers.Xcodec2Model(transformers.Xcodec2Config(**XCODEC2)).eval()
    for part, ours in zip(model.parts_of(own, None), (model.encoder, model.codebook, model.decoder)):
        part.load_state_dict(ours.state_dict())  # which are the library's modules
    return own


def inputs(x):
    """What the library's feature extractor makes of sounds float [B, 1, T]."""
    pytest.importorskip("torchaudio")
    extractor = transformers.Xcodec2FeatureExtractor()
    return extractor(audio=[row[0] for row in x], sampling_rate=16000, return_tensors="pt")


@pytest.mark.parametrize("length", [1, 319, 1000, 5 * HOP])
def test_the_spectrogram_is_that_of_the_feature_extractor(length):
    found = inputs(sound(2, length))
    whole, side = found["input_values"][:, 0], HOP // 2
    ours = KaldiMel()(torch.nn.functional.pad(whole, (side, side)))
    torch.testing.assert_close(ours.reshape(2, -1, 160), found["input_features"], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_codes_and_sound_are_the_library_s_for_every_length():
    model = small()
    own = theirs_of(model)
    for length in (1, HOP - 1, HOP + 1, 5000):
        x = sound(2, length)
        ours, want = model.encode(x), own.encode(**inputs(x))
        assert torch.equal(ours.codes, want.audio_codes) and ours.codes.shape == (2, 1, math.ceil(length / HOP))
        heard = own.decode(want.audio_codes).audio_values[..., :length].clamp(-1, 1)
        torch.testing.assert_close(model.decode(ours, samples=length), heard, atol=1e-5, rtol=0)
    assert ours.codes.unique().numel() > 16 and 0.01 < heard.std() < 0.8, "the test would prove nothing"
    once = copy.deepcopy(model)  # mutants: bounded once; bands in other places
    once.encoder.model["project"][2] = torch.nn.Identity()
    assert not torch.equal(once.encode(x).codes, ours.codes)
    model.encoder.mel.register_forward_hook(lambda module, args, mel: mel.roll(1, 2))
    assert not torch.equal(model.encode(x).codes, ours.codes)


def test_the_contract():
    model, x = small(), sound(3, 4 * HOP + 7)
    assert isinstance(model, Tokenizer) and isinstance(model.codebook, Codebook)
    assert model.spec.grid == Frames(50.0) and model.spec.vocab_sizes == (CODES,) and model.spec.sample_rate == 16000
    lengths = torch.tensor([4 * HOP + 7, 2 * HOP, 1])
    x = x * (torch.arange(x.shape[2]) < lengths[:, None])[:, None]
    tokens = model.encode(x, lengths)
    assert tokens.validate().lengths.tolist() == [5, 2, 1]  # a whole number of frames makes no more than they are
    wave = model.decode(tokens, samples=lengths)
    for row, (length, frames) in enumerate(zip(lengths.tolist(), (5, 2, 1))):
        alone = model.encode(x[row : row + 1, :, :length])
        assert torch.equal(alone.codes[0], tokens.codes[row, :, :frames]) and (tokens.codes[row, :, frames:] == ABSENT).all()
        torch.testing.assert_close(wave[row : row + 1, :, :length], model.decode(alone, samples=length), atol=1e-5, rtol=1e-4)
    book, codes = model.codebook, torch.randint(CODES, (2, 1, 10))
    assert torch.equal(book.nearest(book.lookup(codes)), codes) and not list(book.parameters())


def test_it_is_adopted_and_its_bundle_needs_the_folder_no_more(tmp_path):
    model, x = small(), sound(2, 700)
    theirs_of(model).save_pretrained(tmp_path / "model")
    config = {**read("tokenizer", "transformers_xcodec2"), "losses": None, "path": str(tmp_path / "model")}
    path = pretrained(config, (1,)).save(tmp_path / "bundle")
    (tmp_path / "model").rename(tmp_path / "gone")
    again, want = load(path), model.encode(x)
    assert torch.equal(again.tokenizer.encode(x).codes, want.codes)
    torch.testing.assert_close(again.tokenizer.decode(want), model.decode(want), atol=1e-5, rtol=1e-4)
    assert str(tmp_path) not in (path / "bundle.json").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_semantic_half_is_never_trained(name):
    model, hop = (small(), HOP) if name == "transformers_xcodec2" else (make(name), HOPS[name])
    semantic, x = model.encoder.model["semantic"], sound(2, 6 * hop)
    before, want = copy.deepcopy(semantic.state_dict()), model.encode(x).codes
    model.train()
    assert not any(part.training for part in semantic.modules()) and not any(p.requires_grad for p in semantic.parameters())
    assert torch.equal(model.encode(x).codes, want), "dropout of the semantic half"
    assert learns(model, x, steps=12, share=0.97)
    assert all(p.grad is not None for p in model.encoder.model["adapter"].parameters())
    assert all(torch.equal(value, before[key]) for key, value in semantic.state_dict().items())


@torch.no_grad()
def test_codes_of_x_codec_are_of_sound_and_meaning():
    model, x = make("transformers_xcodec"), sound(2, 200)
    codes = model.encode(x).codes
    for part in ("acoustic", "adapter"):
        model.encoder.model[part].register_forward_hook(lambda module, args, z: torch.zeros_like(z))
        assert not torch.equal(model.encode(x).codes, codes)
        model.encoder.model[part]._forward_hooks.clear()
    assert torch.equal(model.encode(x).codes, codes)


def test_wavlm_is_a_semantic_half_too():
    config = copy.deepcopy(MODELS["transformers_xcodec"])
    config["semantic_model_config"]["model_type"] = "wavlm"
    model = build({**read("tokenizer", "transformers_xcodec"), "losses": None, "config": config}, media_shape=(1,)).eval()
    assert model.model_config["semantic_model_config"]["model_type"] == "wavlm" and model.encode(sound(1, 41)).codes.shape == (1, 4, 6)


def test_what_does_not_fit_is_said_in_one_line():
    for changes, line in (
        ({"levels": 2}, r"this model has 1 level; got tokenizer\.levels=2"),
        ({"config": {**XCODEC2, "downsampling_ratios": [8, 5, 5]}}, "X-Codec 2 has 320 samples of 16000 Hz in a frame, .* has 200 of"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            small(**changes)
        assert "\n" not in str(error.value)


def test_nothing_is_downloaded(monkeypatch):
    def connect(*args, **options):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", connect)
    for name in NAMES:
        with pytest.raises(FileNotFoundError, match="no local folder, on the hub"):
            build({**read("tokenizer", name), "losses": None, "path": "nobody/no-such-model"}, media_shape=(1,))
