"""RAR: the logits are those of its own code; cached equals uncached; other tokens, conditions and files are refused."""

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

from gentok.generators.rar import RAR, _folded
from gentok.types import ClassSpec, ConditionSpec, Raster, Tokens, TokenSpec

SPEC = TokenSpec((64,), Raster(3, 3))
SMALL = {"width": 48, "depth": 2, "heads": 3, "hidden": 96}
"""As the record was made."""


def stored(tmp_path, **changes):
    torch.save(released("maskgit", "rar", **changes), tmp_path / "rar_b.bin")
    return str(tmp_path / "rar_b.bin")


def tiny(dtype=torch.float64, **options):
    return randomise(RAR(RASTER, CLASSES, **{"width": 16, "depth": 2, "heads": 2, "hidden": 32, **options})).to(dtype)


@torch.no_grad()
def test_logits_are_those_of_the_release(tmp_path):
    model = RAR(SPEC, FIVE, weights=stored(tmp_path), **SMALL).eval()
    given, labels, wanted = recorded("maskgit", "rar", "codes", "labels", "logits")
    tokens, condition = Tokens(given, SPEC), classes(*(int(label) if label < 5 else -1 for label in labels))  # their null is id 5

    def off():
        return (model(tokens, condition)[:, :, 0] - wanted).abs().max()

    assert off() < 1e-5
    cache, ids = model.init_cache(condition, 3, 9), fed(model, tokens)
    cached = torch.cat([model.logits(ids[:, s : s + 1], cache, at(s, s, s)) for s in range(9)], 1)
    assert (cached[:, :, 0] - wanted).abs().max() < 1e-5
    # mutants: norms of queries and keys without their bias, a step's vector one too late, a norm's bias folded in twice
    attention = model.trunk.blocks[0].attention
    shift = attention.qk_shift.clone()
    attention.qk_shift.zero_()
    assert off() > 1e-3
    attention.qk_shift.copy_(shift)
    model.time_table.weight.copy_(model.time_table.weight.roll(1, 0))
    assert off() > 1e-2
    model.time_table.weight.copy_(model.time_table.weight.roll(-1, 0))
    _folded(model.trunk.blocks[0].modulation, 0, torch.ones(48), released("maskgit", "rar")["blocks.0.norm1.bias"])
    assert off() > 1e-3


def test_cached_equals_uncached_with_rows_at_different_steps_that_move():
    check_cached_equals_uncached_with_rows_at_different_steps_that_move(tiny())


def test_the_likelihood_is_that_of_the_logits_and_a_training_step_lowers_it():
    model = tiny(torch.float32, dropout=0.1)
    check_likelihood_is_that_of_logits_and_a_training_step_lowers_it(model, lambda *given: model(*given)[:, :, 0])


@pytest.mark.parametrize("size, millions", [("B", 261), ("L", 461), ("XL", 955), ("XXL", 1499)])
def test_it_has_its_published_size(size, millions):
    names = tuple(map(str, range(1000)))
    with torch.device("meta"):
        model = RAR(TokenSpec((1024,), Raster(16, 16)), ConditionSpec((("class", ClassSpec(names)),)), size=size)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.015)


def test_other_tokens_conditions_and_files_are_refused_in_one_line(tmp_path):
    four = ConditionSpec((("class", ClassSpec(tuple("0123"))),))
    for spec, given, changes, line in (
        (LEVELS, FIVE, None, "rar models one code per cell of a raster"),
        (SPEC, EVERYTHING, None, r"here it is class \(class\), text \(ids\), voice \(vectors\)"),
        (SPEC, None, None, "here it is none"),
        (SPEC, FIVE, {"target_aware_pos_embed": None}, "holds no RAR model"),
        (SPEC, FIVE, {"blocks.1.norm2.bias": None}, r"lacks 1 tensor, such as blocks\.1\.norm2\.bias"),
        (SPEC, FIVE, {"blocks.1.mlp.fc1.bias": None}, r"lacks 1 tensor, such as blocks\.1\.mlp\.fc1\.bias"),
        (SPEC, FIVE, {"spare": torch.zeros(1)}, "beyond this model, 1 tensor, such as spare"),
        (SPEC, FIVE, {"lm_head.weight": torch.zeros(64, 50)}, r"lm_head\.weight is \(64, 50\) there and \(64, 48\) here"),
        (SPEC, four, {}, r"embeddings\.weight is \(71, 48\) there and \(70, 48\) here"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            RAR(spec, given, weights=None if changes is None else stored(tmp_path, **changes), **SMALL)
        assert "\n" not in str(error.value)
