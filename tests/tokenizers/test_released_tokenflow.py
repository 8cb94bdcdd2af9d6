"""gentok's TokenFlow with the release's weights gives the codes, pixels and maps that its own code gave; other files are refused."""

import argparse

import pytest
import torch
from released_kit import images, recorded, released, some_slow
from tokenizer_kit import LOSSES, batch_of, noise_of, read

from gentok.build import build
from gentok.bundle import build_generator, load, pretrained
from gentok.rng import RowRNG
from gentok.sampling import pick_sampler, sample_tokens
from gentok.types import Class, ClassSpec, Condition, ConditionSpec, Tokens

SMALL = {
    "target": 24, "semantic_width": 48, "semantic_heads": 4, "pixel_width": 16, "width": 32, "multipliers": [1, 1, 1, 1, 2],
    "decoder_width": 64,
}  # fmt: skip
"""As the record was made."""
FORMS = {
    "clip": (64, [1, 2, 3, 4], {"depth": 2, "size": 64}, {}),
    "clip_wide": (80, [1, 2, 3, 4, 5], {"depth": 2, "size": 64}, {}),
    "siglip": (112, [1, 2, 4, 8], {"depth": 2, "size": 112, "hidden": 96}, {"pixel_size": 128, "target": 48, "decoder_width": None}),
}
"""By record: side of the images, scales, settings of the semantic network and of the tokenizer."""


def config(form, weights=None, **changes):
    _, sides, semantic, more = FORMS[form]
    found = {**read("tokenizer", "tokenflow_siglip" if form == "siglip" else "tokenflow_clipb"), "losses": None, "weights": weights}
    found["semantic"] = {**found["semantic"], "width": 48, "heads": 3, "hidden": 192, **semantic}
    book = {**found["codebook"]["codebook"], "vocab_size": 64, "semantic": 8, "pixel": 4}
    return {**found, "codebook": {**found["codebook"], "sides": sides, "codebook": book}, **SMALL, **more, **changes}


def stored(tmp_path, form, **changes):
    state = {"model": released("tokenflow", form.partition("_")[0], **changes), "args": argparse.Namespace(teacher=form)}
    torch.save(state, tmp_path / "tokenflow.pt")
    return str(tmp_path / "tokenflow.pt")


def built(form, path, **changes):
    return build(config(form, path, **changes), media_shape=(3, FORMS[form][0], FORMS[form][0])).eval()


def of(model, codes):
    """Every second pixel of the first image, and the map of its meaning, as they are recorded."""
    cells = model.codebook.sides[-1]
    pixels = model.painted(model.codebook.lookup(codes), (cells, cells))[:1, :, ::2, ::2]
    return pixels.detach(), model.understand(Tokens(codes, model.spec))[:1].flatten(2).transpose(1, 2)


@torch.no_grad()
@pytest.mark.parametrize("form", some_slow(FORMS, "clip_wide", "siglip"))
def test_codes_pixels_and_maps_are_those_of_the_release(form, tmp_path):
    model = built(form, stored(tmp_path, form))
    codes, *wanted = recorded("tokenflow", form, "codes", "pixels", "meaning")
    side = FORMS[form][0]
    assert torch.equal(model.encode(images(side, side)).codes, codes) and len(codes.unique()) > 16
    assert model.decode(Tokens(codes, model.spec)).shape == (2, 3, side, side)
    model.double()  # as the record was computed: GroupNorm of so few channels makes much of what float32 rounds
    assert all((found - value).abs().max() < 1e-5 for found, value in zip(of(model, codes), wanted))
    # mutants: places of cells, and the halves of the table, in another order
    for places in (model.semantic.places, model.semantic_decoder.places[0]):
        places.copy_(places.roll(1, 0))
    assert not torch.equal(model.encode(images(side, side).double()).codes, codes) and (of(model, codes)[1] - wanted[1]).abs().max() > 1e-3
    model.codebook.book.weight.copy_(model.codebook.book.weight.roll(4, 1))
    assert (of(model, codes)[0] - wanted[0]).abs().max() > 1e-3


@pytest.mark.parametrize("form", ["clip", pytest.param("siglip", marks=pytest.mark.slow)])
def test_a_file_is_adopted_and_trained_from_where_the_release_stands(form, tmp_path):
    side = FORMS[form][0]
    path = pretrained(config(form, stored(tmp_path, form)), (3, side, side)).save(tmp_path / "bundle")
    (tmp_path / "tokenflow.pt").unlink()
    codes, x = recorded("tokenflow", form, "codes")[0], images(side, side)
    assert torch.equal(load(path).tokenizer.encode(x).codes, codes)
    model = built(form, stored(tmp_path, form), losses=LOSSES).train()
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-3), []
    for step in range(3):
        out = model(batch_of(x), noise_of(x))
        assert step or torch.equal(out.tokens.codes, codes)
        losses.append(sum(out.losses.values()))
        losses[-1].backward()
        assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith("semantic_decoder"))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[2] < losses[0]


def test_a_generator_of_its_tokens_is_sampled_and_decoded(tmp_path):
    tokenizer = pretrained(config("clip", stored(tmp_path, "clip")), (3, 64, 64)).tokenizer
    settings = {**read("generator", "next_scale"), "width": 32, "depth": 1, "heads": 2, "gate_init": 1e-3}
    model = build_generator(settings, tokenizer, ConditionSpec((("class", ClassSpec(("a", "b"))),))).eval()
    condition = Condition({"class": Class(torch.tensor([0, 1]))})
    tokens = sample_tokens(model, condition, pick_sampler(None, type(model)), rng=RowRNG.of(0, range(2))).tokens
    assert tokens.codes.shape == (2, 1, 30) and tokenizer.decode(tokens).shape == (2, 3, 64, 64)


def test_other_files_sizes_and_tokens_are_refused_in_one_line(tmp_path):
    block = "encoder_vqkd.transformer.resblocks.1.attn.in_proj_weight"
    for changes, line in (
        ({block: None}, r"lacks 1 tensor, such as encoder_vqkd\.transformer\.resblocks\.1\.attn\.in_proj_weight"),
        ({"encoder.extra.weight": torch.zeros(2)}, r"beyond this model, 1 tensor, such as encoder\.extra\.weight"),
        ({"quantize.embedding_vqgan.weight": torch.zeros(64, 5)}, r"embedding_vqgan\.weight is \(64, 5\) there and \(64, 4\) here"),
        ({"decoder_vqkd.pos_embed": torch.zeros(1, 5, 48)}, r"decoder_vqkd\.pos_embed is \(1, 5, 48\) there and \(1, 17, 48\) here"),
        ({"quantize.embedding_vqkd.weight": None}, "holds no TokenFlow model: expected the weights of a tokenizer of TokenFlow"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            built("clip", stored(tmp_path, "clip", **changes))
        assert "\n" not in str(error.value) and "tokenflow.pt" in str(error.value)
    model = built("clip", None)
    with pytest.raises(ValueError, match="places for images of 64 x 64, got 80 x 80: resize them"):
        model.encode(torch.zeros(1, 3, 80, 80))
    with pytest.raises(ValueError, match=r"decodes codes \[B, K, 30\]"):
        model.decode(Tokens(torch.zeros(1, 1, 29, dtype=torch.int64), model.spec))


@pytest.mark.parametrize(
    "name, side, tokens, parameters", [("tokenflow_clipb", 256, 817, 376_569_643), ("tokenflow_siglip", 384, 2227, 523_529_803)]
)
def test_it_has_the_size_of_the_release(name, side, tokens, parameters):
    with torch.device("meta"):
        model = build({**read("tokenizer", name), "losses": None}, media_shape=(3, side, side))
    keys = 3 * model.semantic_decoder.stem.out_features  # a bias that the release's keys do not have
    assert model.spec.positions == tokens and sum(p.numel() for p in model.parameters()) == parameters + keys
