"""TiTok's generators: the logits are those of its own code; other tokens, conditions and files are refused."""

import pytest
import torch
from generator_kit import CLASSES, EVERYTHING, LEVELS, RASTER, codes, randomise
from released_kit import recorded, released

from gentok.generators.titok import TiTokMasked
from gentok.generators.titok_uvit import TiTokUViT
from gentok.rng import RowRNG
from gentok.types import UNKNOWN, Class, ClassSpec, Condition, ConditionSpec, Line, Tokens, TokenSpec

FIVE = ConditionSpec((("class", ClassSpec(tuple("01234"))),))
SPEC = TokenSpec((64,), Line(5))
SMALL = {"width": 48, "depth": 2, "heads": 3, "hidden": 96}
"""As the record was made."""


def stored(tmp_path, model="bert", **changes):
    torch.save(released("titok", model, **changes), tmp_path / "generator_titok.bin")
    return str(tmp_path / "generator_titok.bin")


def classes(*ids):
    return Condition({"class": Class(torch.tensor(ids))})


def given(model):
    """The recorded tokens, conditions and logits."""
    ids, labels, wanted = recorded("titok", model, "codes", "labels", "logits")
    tokens = Tokens(torch.where(ids == 64, UNKNOWN, ids), SPEC)  # their id of a masked token
    assert bool(tokens.masked.any())
    return tokens, classes(*(int(label) if label < 5 else -1 for label in labels)), wanted  # their null is id 5


@torch.no_grad()
def test_logits_are_those_of_the_release(tmp_path):
    model = TiTokMasked(SPEC, FIVE, weights=stored(tmp_path), **SMALL).eval()
    tokens, condition, wanted = given("bert")

    def off():
        return (model(tokens, condition)[:, 0] - wanted).abs().max()

    assert off() < 1e-5
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


@torch.no_grad()
def test_logits_of_the_u_vit_are_those_of_the_release(tmp_path):
    model = TiTokUViT(SPEC, FIVE, weights=stored(tmp_path, "uvit"), **{**SMALL, "depth": 5}).eval()
    tokens, condition, wanted = given("uvit")
    assert (model(tokens, condition)[:, 0] - wanted).abs().max() < 1e-5
    model.transformer.skips = torch.nn.ModuleList(reversed(model.transformer.skips))  # mutant: skips in another order
    assert (model(tokens, condition)[:, 0] - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("cls, depth", [(TiTokMasked, 2), (TiTokUViT, 3)])
def test_a_training_step_lowers_the_bound(cls, depth):
    spec = TokenSpec((7,), Line(6))
    model = randomise(cls(spec, CLASSES, width=16, depth=depth, heads=2, hidden=32)).float()
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


@pytest.mark.parametrize("cls, tokens, millions", [(TiTokMasked, 32, 177), (TiTokUViT, 128, 295)])
def test_it_has_the_size_that_its_yaml_says(cls, tokens, millions):
    names = tuple(map(str, range(1000)))
    with torch.device("meta"):
        model = cls(TokenSpec((4096,), Line(tokens)), ConditionSpec((("class", ClassSpec(names)),)))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


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
        (SPEC, FIVE, {table: None, "in_blocks.0.norm1.weight": torch.zeros(1)}, r"expected the weights of .* \(L-32 or B-64\)"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            TiTokMasked(spec, given, weights=None if changes is None else stored(tmp_path, **changes), **SMALL)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="an odd depth, not 4"):
        TiTokUViT(SPEC, FIVE, **{**SMALL, "depth": 4})
