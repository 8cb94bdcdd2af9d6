"""What a user types: public names, a model by name, old names that are answered with the new ones, and a type checker that agrees."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import gentok
from gentok.moved import MODULES

SCRIPT = '''
import torch

import gentok
from gentok.codebooks.vq import VQ
from gentok.samplers.maskgit import MaskGIT

model: gentok.Bundle = gentok.load("mnist5k_masked", device="cpu").eval()
images: torch.Tensor = model.sample(n=2, condition=7, sampler="maskgit", steps=4, temperature=0.9, guidance=1.5, seed=0)
tokens = model.encode(images)
assert isinstance(tokens, gentok.Tokens)
again: torch.Tensor = model.decode(tokens)
codes: torch.Tensor = tokens.codes
also: torch.Tensor = model.decode(codes)
spec: gentok.TokenSpec = model.spec
places: torch.device = model.to("cpu").device

codebook = VQ(vocab_size=16, dim=8).eval()
quantized = codebook(torch.randn(2, 8, 5))
vectors: torch.Tensor = codebook.lookup(quantized.codes)
found: torch.Tensor = codebook.nearest(vectors)

sampler = MaskGIT(steps=4)
drawn: gentok.Samples = gentok.sample(model, n=2, condition=[3, 4], sampler=sampler, seed=1)
print(tuple(images.shape), tuple(codes.shape), drawn.tokens.batch, bool((again == also).all()), bool((found == quantized.codes).all()))
'''


def test_public_names_are_listed_and_exist():
    names = dir(gentok)
    assert {"load", "Bundle", "Tokens", "TokenSpec", "Tokenizer", "Codebook", "Generator", "Sampler", "RowRNG"} <= set(names)
    assert all(getattr(gentok, name) is not None for name in names) and "Any" not in names
    assert set(gentok.__all__) <= set(names)


def test_modules_that_moved_are_answered_with_their_new_name():
    for old, new in MODULES.items():
        with pytest.raises(ModuleNotFoundError, match="is called .* now"):
            __import__(old)
        spec = new.replace("gentok", str(Path(gentok.__file__).parent), 1).replace(".", "/")
        assert Path(f"{spec}.py").is_file() or Path(spec).is_dir(), f"{old} -> {new}, which is not there"


def test_a_users_script_runs(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "(2, 1, 32, 32) (2, 1, 64) 2 True True", done.stderr


def test_a_model_by_name_is_the_one_of_the_zoo_and_a_wrong_name_lists_them():
    assert gentok.load("mnist5k_ar").spec == gentok.load("docs/zoo/mnist5k_ar").spec
    with pytest.raises(FileNotFoundError, match="mnist5k_arr.*models that ship with gentok: .*mnist5k_ar"):
        gentok.load("mnist5k_arr")


def test_settings_of_a_sampler_by_keyword():
    model = gentok.load("mnist5k_masked")
    a = model.sample(n=2, condition=7, sampler="maskgit", steps=3, temperature=0.5, seed=3)
    b = model.sample(n=2, condition=7, sampler="maskgit", steps=3, temperature=0.5, seed=3, batch_size=1)
    assert a.shape == (2, 1, 32, 32)
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    for wrong, right in (
        ({"sampler": "maskgut"}, "did you mean 'maskgit'"),
        ({"sampler": "autoregressive"}, "samplers that fit it"),
        ({"sampler": "first_hitting", "steps": 4}, "no key 'steps'"),
    ):
        with pytest.raises(ValueError, match=right) as error:
            model.sample(n=1, condition=7, **wrong)
        assert "\n" not in str(error.value)


def test_a_model_is_shown_in_one_line():
    line = repr(gentok.load("mnist5k_ar"))
    assert "\n" not in line and "VQGAN" in line and "Autoregressive" in line and "64 positions" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, None),
        ('model.sample(n=2, sampler="maskgit", step=4)', 'Unexpected keyword argument "step"'),
        ("gentok.load('mnist5k_ar', gpu=True)", 'Unexpected keyword argument "gpu"'),
        ("gentok.lod('mnist5k_ar')", 'Module has no attribute "lod"'),
    ],
)
def test_a_type_checker_accepts_the_script_and_refuses_a_wrong_keyword(wrong, message, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT) + (f"{wrong}\n" if wrong else ""))
    done = subprocess.run([sys.executable, "-m", "mypy", "--follow-imports=silent", str(script)], capture_output=True, text=True)
    assert (done.returncode == 0) == (wrong is None) and (message or "Success") in done.stdout, done.stdout + done.stderr
