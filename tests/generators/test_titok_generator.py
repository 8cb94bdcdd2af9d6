"""TiTok's generator: the logits are those of its own code; other tokens, conditions and files are refused."""

import pytest
import torch
from generator_kit import CLASSES, EVERYTHING, LEVELS, RASTER, codes, randomise
from released_kit import recorded, released

from gentok.generators.titok import TiTokMasked
from gentok.rng import RowRNG
from gentok.types import UNKNOWN, Class, ClassSpec, Condition, ConditionSpec, Line, Tokens, TokenSpec

FIVE = ConditionSpec((("class", ClassSpec(tuple("01234"))),))
SPEC = TokenSpec((64,), Line(5))
SMALL = {"width": 48, "depth": 2, "heads": 3, "hidden": 96}
"""As the record was made."""


def stored(tmp_path, **changes):
    torch.save(released("titok", "bert", **changes), tmp_path / "generator_titok.bin")
    return str(tmp_path / "generator_titok.bin")


def classes(*ids):
    return Condition({"class": Class(torch.tensor(ids))})


@torch.no_grad()
def test_logits_are_those_of_the_release(tmp_path):
    model = TiTokMasked(SPEC, FIVE, weights=stored(tmp_path), **SMALL).eval()
    given, labels, wanted = recorded("titok", "bert", "codes", "labels", "logits")
    tokens = Tokens(torch.where(given == 64, UNKNOWN, given), SPEC)  # their id of a masked token
    condition = classes(*(int(label) if label < 5 else -1 for label in labels))  # their null is id 5

    def off():
        return (model(tokens, condition)[:, 0] - wanted).abs().max()

    assert off() < 1e-5 and bool(tokens.masked.any())
    # mutants: norms before and not behind, rows of the table of places in another order, a head without its bias
    for part in (model.transformer, *model.transformer.blocks):
        part.post_norm = False
    assert off() > 1e-2
    for part in (model.transformer, *model.transformer.blocks):
        part.post_norm = True
    model.place_table.weight.copy_(model.place_table.weight.roll(1, 0))
    assert off() > 1e-2
    model.place_table.weight.copy_(model.place_table.weight.roll(-1, 0))
    model.head.bias.zero_()
    assert off() > 1e-3


def test_a_training_step_lowers_the_bound():
    spec = TokenSpec((7,), Line(6))
    model = randomise(TiTokMasked(spec, CLASSES, width=16, depth=2, heads=2, hidden=32)).float()
    tokens, condition = codes(spec, 4), classes(0, 1, 2, -1)

    def bound():
        return model.nll_bound(tokens, condition, RowRNG.of(0, range(4)), 6).sum()

    before, optimizer = bound(), torch.optim.SGD(model.parameters(), lr=0.02)
    for step in range(5):
        model.train().loss(tokens, condition, RowRNG.of(step, range(4))).loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert bound() < before


def test_it_has_its_published_size():
    names = tuple(map(str, range(1000)))
    with torch.device("meta"):
        model = TiTokMasked(TokenSpec((4096,), Line(32)), ConditionSpec((("class", ClassSpec(names)),)))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(177, abs=2)


def test_other_tokens_conditions_and_files_are_refused_in_one_line(tmp_path):
    four = ConditionSpec((("class", ClassSpec(tuple("0123"))),))
    table = "model.embeddings.position_embeddings.weight"
    for spec, given, changes, line in (
        (LEVELS, FIVE, None, "titok models one code per token of a line"),
        (RASTER, FIVE, None, "titok models one code per token of a line"),
        (SPEC, EVERYTHING, None, r"here it is class \(class\), text \(ids\), voice \(vectors\)"),
        (SPEC, FIVE, {table: None}, "holds no TiTok generator model"),
        (SPEC, FIVE, {"model.lm_head.bias": None}, r"lacks 1 tensor, such as model\.lm_head\.bias"),
        (SPEC, FIVE, {"spare": torch.zeros(1)}, "beyond this model, 1 tensor, such as spare"),
        (SPEC, FIVE, {table: torch.zeros(8, 48)}, r"position_embeddings\.weight is \(8, 48\) there and \(6, 48\) here"),
        (SPEC, four, {}, r"word_embeddings\.weight is \(71, 48\) there and \(70, 48\) here"),
        (SPEC, FIVE, {"in_blocks.0.norm1.weight": torch.zeros(1)}, "generator of S-128, a U-ViT, which is not read"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            TiTokMasked(spec, given, weights=None if changes is None else stored(tmp_path, **changes), **SMALL)
        assert "\n" not in str(error.value)
