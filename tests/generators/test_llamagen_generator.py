"""LlamaGen: the logits are those of its own code; cached equals uncached; other tokens, conditions and files are refused."""

import pytest
import torch
from generator_kit import CLASSES, EVERYTHING, LEVELS, RASTER, at, codes, fed, randomise, same
from released_kit import recorded, released

from gentok.build import build
from gentok.generators.llamagen import LlamaGen
from gentok.rng import RowRNG
from gentok.types import Class, ClassSpec, Condition, ConditionSpec, Raster, Tokens, TokenSpec

FIVE = ConditionSpec((("class", ClassSpec(tuple("01234"))),))
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


def classes(*ids):
    return Condition({"class": Class(torch.tensor(ids))})


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


@torch.no_grad()
def test_cached_equals_uncached_with_rows_at_different_steps_that_move():
    model, tokens, condition = tiny(), codes(RASTER, 3), classes(2, -1, 0)
    want, ids = model(tokens, condition), fed(model, tokens)
    cache = model.init_cache(condition, 3, 14)
    model.logits(ids[:, :4], cache, at(0, 0, 0))
    where = at(4, 1, 2)  # a row goes on, two go back
    got = model.logits(torch.stack([ids[b, int(w) : int(w) + 3] for b, w in enumerate(where)]), cache, where)
    assert all(same(want[b, int(w) : int(w) + 3], got[b]) for b, w in enumerate(where))
    swapped = model.take(cache, torch.tensor([2, 0]))  # a row begins anew in another's place
    joining = model.init_cache(classes(-1), 1, 14)
    model.logits(ids[1:2, :2], joining, at(0))
    model.put(swapped, torch.tensor([0]), joining)
    got = model.logits(torch.stack((ids[1, :2], ids[0, 7:9])), swapped, at(0, 7))
    assert same(want[1, :2], got[0]) and same(want[0, 7:9], got[1])
    tree = torch.tensor([[-1, -1, 1], [-1, 0, 0]])  # in each row node 2 follows what is right
    cache = model.init_cache(classes(2, -1), 2, 14)
    model.logits(ids[:2, :3], cache, at(0, 0))
    nodes = torch.stack((torch.stack((ids[1, 3], ids[0, 3], ids[0, 4])), torch.stack((ids[1, 3], ids[0, 4], ids[1, 4]))))
    got = model.logits(nodes, cache, at(3, 3), tree)
    assert same(want[0, 4], got[0, 2]) and same(want[1, 4], got[1, 2])
    model.commit(cache, at(3, 3), torch.tensor([[1, 2], [0, 2]]))
    assert same(want[:2, 5:6], model.logits(ids[:2, 5:6], cache, at(5, 5)))
    assert not same(want[0, 0], want[1, 0], 1e-3), "the class changes nothing: the test is blind"


def test_the_likelihood_is_that_of_the_logits_and_a_training_step_lowers_it():
    model, tokens, condition = tiny(torch.float32, dropout=0.1), codes(RASTER, 4), classes(0, 1, 2, -1)
    logp = model(tokens, condition)[:, :, 0].log_softmax(-1).gather(2, tokens.codes[:, 0, :, None]).sum((1, 2))
    torch.testing.assert_close(model.nll_bound(tokens, condition), -logp.detach())
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.loss(tokens, condition, RowRNG.of(0, range(4))).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()
    model.eval()
    assert model.nll_bound(tokens, condition).sum() < -logp.sum()


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
