"""Cosmos DI8x8, the wavelet's laws, and TorchScript files, of which no code is run. Its other tests: test_released_vqgans.py."""

import collections
import io
import os
import pickle
import zipfile

import pytest
import torch
from released_kit import images, recorded, released
from tokenizer_kit import read
from torch import nn

from gentok.build import build
from gentok.nn.cosmos import Haar, InverseHaar
from gentok.nn.torchscript import read_torchscript

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:FutureWarning")

CONSTANTS = ("encoder.patcher.wavelets", "decoder.unpatcher._arange", "quantizer.implicit_codebook")
"""Some of the tables that the released files hold beside the weights."""


def built(path=None, **changes):
    """conf/tokenizer/cosmos_di.yaml, small, as the record was made, for DI8x8."""
    small = {"losses": None, "weights": path and str(path), "width": 32, "multipliers": [1, 1, 2], "blocks": 1, "halvings": 1}
    found = {**read("tokenizer", "cosmos_di"), **small, **changes}
    return build({**found, "codebook": {**found["codebook"], "width": 16}}, media_shape=(3, 48, 48)).eval()


class Tree(nn.Module):
    """Modules and parameters of these names, which is all that a TorchScript file says of them."""

    def __init__(self, state):
        super().__init__()
        inner = collections.defaultdict(dict)
        for name, value in state.items():
            head, _, rest = name.partition(".")
            if rest:
                inner[head][rest] = value
            elif value.is_floating_point() and not name.startswith(("wavelets", "_", "implicit")):
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value, persistent=False)
        for name, part in inner.items():
            setattr(self, name, Tree(part))

    def forward(self, x):
        return x


def scripted(path, state):
    tree = Tree({**state, **dict.fromkeys(CONSTANTS, torch.arange(3.0))})
    torch.jit.save(torch.jit.trace(tree, torch.zeros(1)), path)
    return path


def test_a_torchscript_file_gives_the_codes_and_pixels_of_the_release_and_its_code_is_not_run(tmp_path, monkeypatch):
    scripted(tmp_path / "autoencoder.jit", {name: value.bfloat16() for name, value in released("cosmos", "di8").items()})
    whole = scripted(tmp_path / "whole.jit", released("cosmos", "di8"))
    monkeypatch.setattr(torch.jit, "load", lambda *args, **options: pytest.fail("its code would be run"))
    codes, wanted = recorded("cosmos", "di8", "codes", "pixels")
    model = built(whole)
    assert torch.equal(model.encode(images(48, 48)).codes, codes) and model.stride == 8 and len(codes.unique()) > 32
    assert (model.double().painted(model.codebook.lookup(codes), (6, 6)) - wanted).abs().max() < 1e-5
    with torch.no_grad():  # a mutant: rows in the place of means, and so on
        model.decoder.head.weight.copy_(model.decoder.head.weight.unflatten(0, (4, -1)).roll(1, 0).flatten(0, 1))
    assert (model.painted(model.codebook.lookup(codes), (6, 6)) - wanted).abs().max() > 1e-2
    halved = built(tmp_path)  # a folder; autoencoder.jit of half precision, as released
    assert (halved.encoder.stem.weight - built(whole).encoder.stem.weight).abs().max() < 1e-2


def test_the_wavelet_is_undone_and_its_first_channels_are_means():
    x = torch.randn(2, 3, 16, 8)
    bands = Haar(4)(x)
    torch.testing.assert_close(InverseHaar(4)(bands), x)
    torch.testing.assert_close(bands[:, :3], nn.functional.avg_pool2d(x, 4))
    rows = torch.arange(8.0)[:, None].expand(8, 8)[None, None]  # of which only rows differ
    mean, by_rows, *others = Haar(2)(rows).unbind(1)
    assert (by_rows == -0.5).all() and not torch.stack(others).any() and torch.equal(mean[0, :, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]))


def test_files_of_another_size_or_half_a_model_are_refused_in_one_line(tmp_path):
    torch.save(released("cosmos", "di16"), tmp_path / "di16.pt")
    torch.save({name: value for name, value in released("cosmos", "di8").items() if not name.startswith("decoder.")}, tmp_path / "half.pt")
    for name, line in (
        ("di16.pt", r"halves its images 2 times behind the wavelet, configured is 1: tokenizer\.halvings is 1 for DI8x8 and 2 for DI16x16"),
        ("half.pt", r"half\.pt has no decoder: take autoencoder\.jit, which holds both halves"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            built(tmp_path / name)
        assert "\n" not in str(error.value)
    for changes, line in (({"patch": 3}, "squares of 1, 2, 4, ... pixels; got patch=3"), ({"halvings": 4}, "3 stages have at most")):
        with pytest.raises(ValueError, match=line):
            built(**changes)


class Evil:
    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return os.mkdir, (str(self.made),)


def test_an_archive_that_names_anything_but_modules_and_tensors_is_refused(tmp_path):
    path = tmp_path / "evil.jit"
    for inside in (Evil(tmp_path / "made"), {"a": torch.nn.ReLU()}):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("evil/data.pkl", pickle.dumps(inside))
        with pytest.raises(pickle.UnpicklingError, match="which is neither a module nor a tensor"):
            read_torchscript(path)
        with pytest.raises(ValueError, match="holds no weights that can be read without running its code") as error:
            built(path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "made").exists()
    stored = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, stored)
    path.write_bytes(stored.getvalue())
    with pytest.raises(ValueError, match="is no TorchScript archive|holds no weights"):
        built(path)


def test_a_scripted_module_with_typed_lists_is_read(tmp_path):
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    torch.jit.save(torch.jit.script(module), tmp_path / "module.jit")
    found, wanted = read_torchscript(tmp_path / "module.jit"), module.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
