"""Exported tokenizers: the files compute what the tokenizer computes, for batches and lengths of any size, and say what they are."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import gentok
from gentok.build import identify
from gentok.bundle import build_tokenizer
from gentok.cli import compose
from gentok.export import export_tokenizer, metadata
from gentok.tracing import PARTS, Part
from gentok.types import ConditionSpec, Tokens, TokenSpec

RATES = {"sample_rate": "16000", "hop": "320"}
FORMATS = (pytest.param("torch_export", marks=pytest.mark.slow), "onnx")
SOUND = pytest.param("fsdd_codec", [(1, 8), (3, 31)], marks=pytest.mark.slow)


def runner(path):
    """What another program has of a file: {part: arrays -> arrays}, and its notes."""
    if path.suffix == ".pt2":
        notes = {"gentok.json": ""}
        module = torch.export.load(path, extra_files=notes).module()
        return lambda x: module(torch.from_numpy(x)).numpy(), json.loads(notes["gentok.json"])
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda x: session.run(None, {given.name: x})[0], session.get_modelmeta().custom_metadata_map


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(name, format) -> {part: file}, each made once."""
    made = {}

    def get(name, form):
        if form == "onnx":
            for package in ("onnx", "onnxscript", "onnxruntime"):
                pytest.importorskip(package, reason=f"format=onnx is tested where {package} is installed: pip install 'gentok[export]'")
        if (name, form) not in made:
            folder = tmp_path_factory.mktemp(f"{name}_{form}")
            made[name, form] = dict(zip(PARTS, export_tokenizer(gentok.load(name), folder, format=form)))
        return made[name, form]

    return get


def media_of(model, batch, frames):
    shape = model.spec.media_shape if frames is None else (1, frames * model.tokenizer.hop)
    smooth = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(batch)).mul_(2).sub_(1)
    return smooth if frames is None else smooth.cumsum(2).sub_(smooth.mean()).mul_(0.02).sin_()


def away_from_ties(model, media, codes):
    """bool like codes: whether a code is decided by more than rounding: every other row is clearly farther away."""
    tokenizer, codebook, sure = model.tokenizer, model.tokenizer.codebook, []
    z = tokenizer.features(media) if media.dim() == 4 else tokenizer.features(media, None)
    rest = codebook.inward(z.flatten(2))
    for k in range(model.spec.levels):
        table = (codebook.book(k) if model.spec.levels > 1 else codebook)._table()
        nearest = torch.cdist(rest, table.expand(len(rest), -1, -1)).topk(2, largest=False).values
        sure.append(nearest[..., 1] - nearest[..., 0] > 1e-3 * nearest[..., 0])
        rest = rest - table[codes[:, k]]
    return torch.stack(sure, 1).cummin(1).values  # what follows a tie is another residual


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("name", "sizes"), [("mnist5k_vq", [(1, None), (4, None)]), SOUND])
@torch.no_grad()
def test_a_file_computes_what_the_tokenizer_computes(exported, name, form, sizes):
    model, files = gentok.load(name), exported(name, form)
    (encode, _), (decode, _) = runner(files["encoder"]), runner(files["decoder"])
    for batch, frames in sizes:
        media = media_of(model, batch, frames)
        tokens = model.encode(media)
        codes = torch.from_numpy(encode(media.numpy()))
        assert codes.shape == tokens.codes.shape and codes.dtype == torch.int64
        different = codes != tokens.codes
        assert different.double().mean() <= 0.01 and not (different & away_from_ties(model, media, tokens.codes)).any()
        again = torch.from_numpy(decode(tokens.codes.numpy()))
        torch.testing.assert_close(again, model.decode(tokens), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@torch.no_grad()
def test_levels_that_are_left_out_add_nothing(exported, form):
    model, (decode, _) = gentok.load("fsdd_codec"), runner(exported("fsdd_codec", form)["decoder"])
    tokens = model.encode(media_of(model, 2, 12)).truncate(levels=3)
    torch.testing.assert_close(torch.from_numpy(decode(tokens.codes.numpy())), model.decode(tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("name", "sound"), [("mnist5k_vq", {}), pytest.param("fsdd_codec", RATES, marks=pytest.mark.slow)])
def test_a_file_says_what_it_is(exported, name, sound, form):
    model = gentok.load(name)
    for part, path in exported(name, form).items():
        notes = runner(path)[1]
        assert notes == metadata(model.spec, part) and TokenSpec.from_dict(json.loads(notes["spec"])) == model.spec
        assert notes["gentok"] == gentok.__version__ and notes["part"] == part
        assert {key: notes[key] for key in ("sample_rate", "hop") if key in notes} == sound


@pytest.mark.slow
def test_an_onnx_file_names_what_varies(exported):
    files = exported("fsdd_codec", "onnx")
    import onnxruntime

    sessions = {part: onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for part, path in files.items()}
    shapes = {part: [(x.name, x.shape) for x in (*s.get_inputs(), *s.get_outputs())] for part, s in sessions.items()}
    media, codes = ("media", ["batch", 1, "320*frames"]), ("codes", ["batch", 8, "frames"])
    assert shapes == {"encoder": [media, codes], "decoder": [codes, media]}


def test_a_file_that_computes_something_else_is_not_left(tmp_path, monkeypatch):
    """The comparison sees a decoder whose last weights are half as large: no file, and none of before replaced."""
    model, compared = gentok.load("mnist5k_vq"), Part.compared
    (tmp_path / "decoder.pt2").write_bytes(b"of before")
    monkeypatch.setattr(Part, "compared", lambda part, run: compared(part, lambda x: run(x) * 0.5))
    with pytest.raises(gentok.ConfigError, match="exported to something else: largest difference"):
        export_tokenizer(model, tmp_path, format="torch_export", parts=["decoder"])
    assert [path.name for path in tmp_path.iterdir()] == ["decoder.pt2"] and (tmp_path / "decoder.pt2").read_bytes() == b"of before"


class Untraceable(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if float(x.sum()) < np.inf else x


def test_what_cannot_be_exported_is_one_line(tmp_path, monkeypatch):
    def refused(right, model, **given):
        with pytest.raises((ValueError, ImportError), match=right) as error:
            export_tokenizer(model, tmp_path / "out", **given)
        assert "\n" not in str(error.value) and not list(tmp_path.glob("out/*"))

    model = gentok.load("mnist5k_vq")
    refused("there is no format 'onix'", model, format="onix")
    refused("there is no part 'middle'", model, parts=["middle"])
    refused("frames=4 is of sounds: leave it out", model, frames=4, format="torch_export")
    model.tokenizer.encoder = Untraceable(model.tokenizer.encoder)
    refused("the encoder of VQGAN cannot be exported: ", model, format="torch_export")
    model.tokenizer.generative = True
    refused("draws what it makes, .*: export parts=\\[encoder\\]", model, format="torch_export", parts=["decoder"])
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    refused("needs the package onnx: pip install 'gentok\\[export\\]'", model)


@pytest.mark.slow
def test_a_model_is_as_it_was_when_it_has_been_exported(tmp_path):
    model = gentok.load("spoken_digits_codec")
    spec, modules = model.spec, dict(model.tokenizer.named_modules())
    codes = torch.randint(0, 256, (1, 8, 10))
    before = model.decode(Tokens(codes, replace(spec)))
    export_tokenizer(model, tmp_path, format="torch_export", parts=["decoder"])
    assert model.spec == spec and dict(model.tokenizer.named_modules()) == modules and torch.equal(model.decode(codes), before)


@pytest.mark.slow
def test_a_network_with_an_lstm_is_exported_for_one_length(tmp_path):
    pytest.importorskip("onnxscript", reason="format=onnx needs onnx and onnxscript: pip install 'gentok[export]'")
    model = gentok.load("spoken_digits_codec")
    config = identify(model.tokenizer_config)
    config["encoder"] |= {"memory": "lstm", "filters": 4}
    model.tokenizer, model.tokenizer_config = build_tokenizer(config).eval(), config
    with pytest.raises(gentok.ConfigError, match="with frames=NUMBER it may be exported for sounds of one length"):
        export_tokenizer(model, tmp_path, parts=["encoder"])
    assert not list(tmp_path.iterdir())
    (path,) = export_tokenizer(model, tmp_path, parts=["encoder"], frames=10)
    encode, _ = runner(path)
    media = media_of(model, 3, 10)
    assert (torch.from_numpy(encode(media.numpy())) == model.encode(media).codes).double().mean() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("name", ["snac_24khz", "mimi_12hz"])
def test_decoders_of_published_codecs_are_exported_for_any_length(name, tmp_path):
    """Narrower than published: strides of the levels, windows of attention and the order of operations are theirs."""
    pytest.importorskip("onnxscript", reason="format=onnx needs onnx and onnxscript: pip install 'gentok[export]'")
    filters = {"snac_24khz": 64, "mimi_12hz": 4}[name]
    words = [f"tokenizer={name}", "data=spoken_digits", "tokenizer.encoder.filters=4", f"tokenizer.decoder.filters={filters}"]
    config = {**compose("config", words)["tokenizer"], "losses": None, "media_shape": [1, 24000]}
    tokenizer = build_tokenizer(config).eval()
    model = gentok.Bundle("tokenizer", tokenizer, None, ConditionSpec(), config)
    (path,) = export_tokenizer(model, tmp_path, parts=["decoder"])
    decode, _ = runner(path)
    tokens = tokenizer.encode(media_of(model, 2, 12 * tokenizer.multiple))
    torch.testing.assert_close(torch.from_numpy(decode(tokens.codes.numpy())), tokenizer.decode(tokens), atol=1e-4, rtol=0)
