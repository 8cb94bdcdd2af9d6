"""Properties of the depth transformer: cached equals uncached, also along trees; nothing looks ahead; absent cells cost nothing."""

import pytest
import torch
from generator_kit import CLASSES, EVERYTHING, LEVELS, RASTER, STRIDED, at, codes, everything, fed, randomise, same

from gentok.generators.depth import DepthTransformer
from gentok.types import ABSENT, Class, Condition, RowRNG, Tokens

SPECS = {"levels": LEVELS, "strided": STRIDED, "raster": RASTER}
BY = ["prefix", "cross", "adaln"]


def depth(spec, condition_spec=None, dtype=torch.float64, **options):
    sizes = {"width": 16, "depth": 2, "heads": 2, "level_width": 8, "level_depth": 2, "level_heads": 2}
    return randomise(DepthTransformer(spec, condition_spec, **{**sizes, **options})).to(dtype)


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("name", SPECS)
def test_cached_equals_uncached_step_by_step(name, by):
    model = depth(SPECS[name], EVERYTHING, condition_by=by)
    tokens, condition = codes(model.spec, 3), everything(3)
    tokens.codes[1, -1, -2:] = ABSENT
    want, ids = model(tokens, condition), fed(model, tokens)
    cache = model.init_cache(condition, 3, model.layout.steps)
    got = [model.logits(ids[:, s : s + 1], cache, at(s, s, s)) for s in range(model.layout.steps)]
    assert same(want, torch.cat(got, 1))


@pytest.mark.parametrize("name", SPECS)
def test_rows_stand_at_different_steps_and_windows_are_kept_in_part(name):
    model = depth(SPECS[name], EVERYTHING)
    tokens, wrong, condition = codes(model.spec, 3), codes(model.spec, 3, seed=7), everything(3)
    want, ids, bad, steps = model(tokens, condition), fed(model, tokens), fed(model, wrong), model.layout.steps
    cache, where, generator = model.init_cache(condition, 3, steps + 3), at(0, 0, 0), torch.Generator().manual_seed(0)
    while int(where.min()) < steps:
        kept = torch.randint(1, 4, (3,), generator=generator)
        rows = torch.stack([ids[b, torch.arange(3).add(int(where[b])).clamp(max=steps)] for b in range(3)])
        for b in range(3):  # what is not kept is rubbish, and must leave no trace
            behind = torch.arange(int(kept[b]), 3)
            rows[b, behind] = bad[b, behind.add(int(where[b])).clamp(max=steps)]
        got = model.logits(rows, cache, where)
        model.commit(cache, where)
        for b in range(3):
            valid = min(int(kept[b]), steps - int(where[b]))
            assert same(want[b, int(where[b]) : int(where[b]) + valid], got[b, :valid])
        where = (where + kept).clamp(max=steps)


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("name", SPECS)
def test_a_path_through_a_tree_equals_the_chain_and_can_be_committed(name, by):
    model = depth(SPECS[name], EVERYTHING, condition_by=by)
    tokens, condition = codes(model.spec, 2), everything(2)
    want, ids, wrong = model(tokens, condition), fed(model, tokens), fed(model, codes(model.spec, 2, seed=5))
    cache, steps = model.init_cache(condition, 2, model.layout.steps + 6), model.layout.steps
    model.logits(ids[:, :2], cache, at(0, 0))
    start = at(1, 2)
    parents = torch.tensor([[-1, -1, 0, 1, 2, 2], [-1, 0, 0, 1, 2, 3]])
    path, level = torch.tensor([[0, 2, 5, -1], [0, 1, 3, 5]]), torch.tensor([[0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 3]])
    rows = torch.stack([wrong[b, (start[b] + level[b]).clamp(max=steps)] for b in range(2)])
    for b in range(2):
        for d, node in enumerate(path[b].tolist()):
            if node >= 0:
                rows[b, node] = ids[b, int(start[b]) + d]
    got = model.logits(rows, cache, start, parents)
    for b in range(2):
        for d, node in enumerate(path[b].tolist()):
            if node >= 0:
                assert same(want[b, int(start[b]) + d], got[b, node]), (b, d)
    model.commit(cache, start, path)
    where = start + (path >= 0).sum(1)
    rows = torch.stack([ids[b, int(where[b])][None] for b in range(2)])
    got = model.logits(rows, cache, where)
    for b in range(2):
        assert same(want[b, int(where[b])], got[b, 0])


@pytest.mark.parametrize("name", SPECS)
def test_a_later_id_changes_no_earlier_distribution(name):
    model = depth(SPECS[name])
    tokens = codes(model.spec, 1)
    want = model(tokens)
    for k, n in model.spec.exists().nonzero().tolist():
        other = tokens.codes.clone()
        other[0, k, n] = (other[0, k, n] + 1) % model.spec.vocab_sizes[k]
        got, step = model(Tokens(other, model.spec)), int(model.layout.step[k, n])
        assert same(want[:, : step + 1], got[:, : step + 1], 1e-12)
        if step + 1 < model.layout.steps:
            assert not same(want[:, step + 1], got[:, step + 1], 1e-6), "the next step must read the id"


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_nll_is_the_sum_over_cells_and_ends(name, ends):
    model = depth(SPECS[name], CLASSES, ends=ends)
    tokens, condition = codes(model.spec, 3), Condition({"class": Class(torch.tensor([1, -1, 0]))})
    tokens.codes[0, :, 3:], tokens.codes[1] = ABSENT, ABSENT
    flat = model.layout.flatten(tokens.codes)[..., 0]
    if ends:  # the first cell of level 0 that the item has not
        for row, position in ((0, 3), (1, 0)):
            step = next(s for s in range(model.layout.steps) if model.layout.level[s, 0] == 0 and model.layout.position[s, 0] >= position)
            flat[row, step] = model.spec.vocab
    log_p = model(tokens, condition)[:, :, 0].log_softmax(-1)
    want = -(log_p.gather(2, flat.clamp(min=0)[..., None])[..., 0] * (flat >= 0)).sum(1)
    out = model.loss(tokens, condition, RowRNG([0, 1, 2]))
    assert torch.allclose(out.nll, want) and torch.allclose(model.nll_bound(tokens, condition), want)
    assert int(out.count) == int((flat >= 0).sum()) and torch.allclose(out.loss, want.sum() / out.count)
    possible = torch.arange(model.spec.vocab + ends) < model.layout.vocab
    possible[:, model.spec.vocab :] = model.layout.level == 0
    assert torch.equal(torch.isfinite(log_p), possible.expand_as(log_p))


def test_a_row_of_a_batch_equals_the_row_alone_also_in_training():
    model = depth(LEVELS, EVERYTHING, dropout=0.2, token_dropout=0.3, condition_dropout=0.5).train()
    tokens, condition = codes(LEVELS, 5), everything(5)
    whole = model.loss(tokens, condition, RowRNG.of(3, range(5)))
    for b in range(5):
        alone = model.loss(tokens.rows([b]), condition.rows([b]), RowRNG.of(3, [b]))
        assert torch.allclose(alone.nll, whole.nll[b : b + 1], rtol=1e-12)
    assert not torch.equal(model.loss(tokens, condition, RowRNG.of(4, range(5))).loss, whole.loss)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_dropped_tokens_are_not_fed_to_later_positions_in_training_alone(share):
    model, tokens = depth(LEVELS, token_dropout=share, dropout=0.0), codes(LEVELS, 2)
    other = Tokens(tokens.codes.clone(), LEVELS)
    other.codes[:, 1, 0] = (other.codes[:, 1, 0] + 1) % LEVELS.vocab_sizes[1]  # the last level but one or the last, of the first position

    def later(tokens):
        states = model._hidden(tokens.codes, Condition(), RowRNG([0, 1]) if model.training else None)
        return states[:, 1:]

    assert not same(later(tokens), later(other))
    model.train()
    assert same(later(tokens), later(other)) == (share == 1.0)


def test_eight_items_are_learned_by_heart():
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 2, "heads": 2, "level_width": 32, "level_heads": 2}
    model = DepthTransformer(LEVELS, CLASSES, condition_dropout=0.0, zero_init_head=True, **sizes)
    tokens, condition = codes(LEVELS, 8), Condition({"class": Class(torch.arange(8) % 3)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = float(model.loss(tokens, condition, RowRNG([0] * 8)).terms["nll"])
    for _ in range(120):
        out = model.loss(tokens, condition, RowRNG([0] * 8))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert float(out.terms["nll"]) < 0.4 * first


def test_it_is_filled_from_another_after_the_meta_device():
    source = depth(STRIDED, CLASSES, torch.float32)
    with torch.device("meta"):
        model = DepthTransformer(STRIDED, CLASSES, width=16, depth=2, heads=2, level_width=8, level_heads=2)
        assert model.loss(codes(STRIDED, 2).to("meta"), Condition(), RowRNG(torch.zeros(2, dtype=torch.int64))).loss.is_meta
    model = model.to_empty(device="cpu").eval()
    model.load_state_dict(source.state_dict())
    tokens, condition = codes(STRIDED, 2), Condition({"class": Class(torch.tensor([1, -1]))})
    assert same(source(tokens, condition), model(tokens, condition), 1e-6)
