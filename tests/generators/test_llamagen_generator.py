"""LlamaGen: the logits are those of its own code; cached equals uncached; other tokens, conditions and files are refused."""

import pytest
import torch
from generator_kit import CLASSES, EVERYTHING, LEVELS, RASTER, at, fed, randomise
from released_kit import recorded, released
from released_laws import (
    FIVE,
    check_cached_equals_uncached_with_rows_at_different_steps_that_move,
    check_likelihood_is_that_of_logits_and_a_training_step_lowers_it,
    classes,
)

from gentok.build import build
from gentok.generators.llamagen import LlamaGen
from gentok.types import ClassSpec, ConditionSpec, Raster, Tokens, TokenSpec

SPEC = TokenSpec((40,), Raster(4, 4))
SMALL = {"width": 48, "depth": 2, "heads": 3, "hidden": 128}
"""As the record was made."""


def stored(tmp_path, **changes):
    """The file, as it is released; changes: tensors, None to leave one out."""
    state = {key: value for key, value in {**released("llamagen", "gpt"), **changes}.items() if value is not None}
    torch.save({"model": state}, tmp_path / "c2i.pt")
    return str(tmp_path / "c2i.pt")


def tiny(dtype=torch.float64, **options):
    return randomise(LlamaGen(RASTER, CLASSES, **{"width": 16, "depth": 2, "heads": 2, "hidden": 32, **options})).to(dtype)


@torch.no_grad()
def test_logits_are_those_of_the_release(tmp_path):
    model = LlamaGen(SPEC, FIVE, weights=stored(tmp_path), **SMALL).eval()
    given, labels, wanted = recorded("llamagen", "gpt", "codes", "labels", "logits")
    tokens, condition = Tokens(given, SPEC), classes(*(int(label) if label < 5 else -1 for label in labels))  # their null is id 5
    assert (model(tokens, condition)[:, :, 0] - wanted).abs().max() < 1e-5
    cache, ids = model.init_cache(condition, 3, 16), fed(model, tokens)
    cached = torch.cat([model.logits(ids[:, s : s + 1], cache, at(s, s, s)) for s in range(16)], 1)
    assert (cached[:, :, 0] - wanted).abs().max() < 1e-5
    # mutants: the step of the class is rotated by nothing in place of zeros; another eps; pairs as they lie in the file
    tables = model._tables.on(wanted.device)
    tables.cos[0] = 1.0
    assert (model(tokens, condition)[:, :, 0] - wanted).abs().max() > 1e-2
    tables.cos[0] = 0.0
    model.trunk.norm.eps = 1e-3
    assert (model(tokens, condition)[:, :, 0] - wanted).abs().max() > 1e-4
    model.trunk.norm.eps = 1e-5
    model.trunk.blocks[0].attention.qkv.weight.copy_(released("llamagen", "gpt")["layers.0.attention.wqkv.weight"])
    assert (model(tokens, condition)[:, :, 0] - wanted).abs().max() > 1e-2


def test_cached_equals_uncached_with_rows_at_different_steps_that_move():
    check_cached_equals_uncached_with_rows_at_different_steps_that_move(tiny())


def test_the_likelihood_is_that_of_the_logits_and_a_training_step_lowers_it():
    model = tiny(torch.float32, dropout=0.1)
    check_likelihood_is_that_of_logits_and_a_training_step_lowers_it(model, lambda *given: model(*given)[:, :, 0])


@pytest.mark.parametrize(
    "size, millions, off", [("B", 111, 0.5), ("L", 343, 0.5), ("XL", 775, 0.5), ("XXL", 1411, 1), ("XXXL", 3900, 30), ("3B", 3096, 5)]
)
def test_it_has_its_published_size(size, millions, off):
    names = tuple(map(str, range(1000)))
    with torch.device("meta"):
        model = LlamaGen(TokenSpec((16384,), Raster(16, 16)), ConditionSpec((("class", ClassSpec(names)),)), size=size)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=off)


def test_other_tokens_conditions_and_files_are_refused_in_one_line(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    drop = {"layers.1.ffn_norm.weight": None}
    wide = {"layers.0.feed_forward.w3.weight": torch.zeros(128, 50)}
    four = ConditionSpec((("class", ClassSpec(tuple("0123"))),))
    for spec, given, weights, line in (
        (LEVELS, FIVE, None, "one code per cell of a raster"),
        (SPEC, EVERYTHING, None, r"here it is class \(class\), text \(ids\), voice \(vectors\)"),
        (SPEC, None, None, "here it is none"),
        (SPEC, FIVE, lambda: str(tmp_path / "other.pt"), "holds no LlamaGen model"),
        (SPEC, FIVE, lambda: stored(tmp_path, **drop), r"lacks 1 tensor, such as layers\.1\.ffn_norm\.weight"),
        (SPEC, FIVE, lambda: stored(tmp_path, spare=torch.zeros(1)), "beyond this model, 1 tensor, such as spare"),
        (SPEC, FIVE, lambda: stored(tmp_path, **wide), r"w3\.weight is \(128, 50\) there and \(128, 48\) here"),
        (SPEC, four, lambda: stored(tmp_path), r"embedding_table\.weight is \(6, 48\) there and \(5, 48\) here"),
        (SPEC, FIVE, lambda: stored(tmp_path, **{"cls_embedding.cap_proj.fc1.weight": torch.zeros(1)}), "is a text-conditional LlamaGen"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            LlamaGen(spec, given, weights=weights and weights(), **SMALL)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="size"):
        build({"_target_": "generator/llamagen", "size": "M"}, spec=SPEC, condition_spec=FIVE)
