"""A tokenizer trained on the latents of another one's bundle, through the trainer and its command line."""

from __future__ import annotations

import shutil

import pytest
import torch
from resume_kit import CASES, FLEXTOK, configured, last, run

from gentok.build import build
from gentok.bundle import load
from gentok.data.sets import whole

pytest.importorskip("mlxtend")

WORDS = ["tokenizer=flextok", "codebook=fsq", *FLEXTOK, "tokenizer.patch=2"]


@pytest.mark.parametrize("decoder", ["flow", "regression"])
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
