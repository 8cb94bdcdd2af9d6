"""Properties of the autoregressive generator: cached equals uncached, nothing looks ahead, absent cells cost nothing."""

import math

import pytest
import torch
from generator_kit import CASES, CLASSES, EVERYTHING, LEVELS, RASTER, STRIDED, at, autoregressive, codes, everything, fed, same

from gentok.generators.autoregressive import Autoregressive
from gentok.generators.base import Causal, capabilities
from gentok.types import ABSENT, Class, Condition, ConditionSpec, Ids, Raster, RowRNG, Tokens, TokenSpec, Vectors

BY = ["prefix", "cross", "adaln"]


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("layout,spec", CASES)
def test_cached_equals_uncached_step_by_step(layout, spec, by):
    model = autoregressive(spec, EVERYTHING, layout=layout, condition_by=by)
    tokens, condition = codes(spec, 3), everything(3)
    tokens.codes[1, -1, -2:] = ABSENT  # a shorter row
    want, ids = model(tokens, condition), fed(model, tokens)
    cache = model.init_cache(condition, 3, model.layout.steps)
    got = [model.logits(ids[:, s : s + 1], cache, at(s, s, s)) for s in range(model.layout.steps)]
    assert same(want, torch.cat(got, 1))


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("layout,spec", CASES)
def test_cached_equals_uncached_in_float32_with_rows_at_different_steps(layout, spec, by):
    model = autoregressive(spec, EVERYTHING, torch.float32, layout=layout, condition_by=by)
    tokens = codes(spec, 3)
    condition = everything(3)
    want, ids, steps = model(tokens, condition), fed(model, tokens), model.layout.steps
    cache = model.init_cache(condition, 3, steps + 3)
    generator = torch.Generator().manual_seed(0)
    where = at(0, 0, 0)
    while int(where.min()) < steps:
        window = 3
        rows = torch.stack([ids[b, torch.arange(window).add(int(where[b])).clamp(max=steps)] for b in range(3)])
        got = model.logits(rows, cache, where)
        kept = torch.randint(1, window + 1, (3,), generator=generator)  # only a part of the window is committed
        model.commit(cache, where)
        for b in range(3):
            valid = min(window, steps - int(where[b]))
            if valid > 0:
                assert same(want[b, int(where[b]) : int(where[b]) + valid], got[b, :valid], 1e-5)
        where = (where + kept).clamp(max=steps)


@pytest.mark.parametrize("layout,spec", CASES)
def test_rejected_steps_leave_no_trace(layout, spec):
    model = autoregressive(spec, CLASSES, layout=layout)
    tokens, other, condition = codes(spec, 2), codes(spec, 2, seed=9), Condition({"class": Class(torch.tensor([0, -1]))})
    want, ids, wrong = model(tokens, condition), fed(model, tokens), fed(model, other)
    cache = model.init_cache(condition, 2, model.layout.steps)
    model.logits(ids[:, :2], cache, at(0, 0))
    mixed = torch.cat((ids[:, 2:3], wrong[:, 3:5]), 1)
    model.logits(mixed, cache, at(2, 2))
    model.commit(cache, at(2, 2))
    assert same(want[:, 3:5], model.logits(ids[:, 3:5], cache, at(3, 3)))


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("layout,spec", [c for c in CASES if c[1] is not LEVELS])
def test_a_doubled_batch_gives_both_sides_of_guidance(layout, spec, by):
    model = autoregressive(spec, EVERYTHING, torch.float32, layout=layout, condition_by=by)
    tokens, condition = codes(spec, 3), everything(3)
    ids, steps = fed(model, tokens), model.layout.steps
    cache = model.init_cache(Condition.concat([condition, condition.null()]), 6, steps)
    got = torch.cat([model.logits(ids[:, s : s + 1].repeat(2, 1, 1), cache, at(*[s] * 6)) for s in range(steps)], 1)
    assert same(model(tokens, condition), got[:3], 1e-5)
    assert same(model(tokens, condition.null()), got[3:], 1e-5)
    assert not same(got[:1], got[3:4], 1e-3), "the condition changes nothing: the test is blind"
    assert same(got[1:2], got[4:5], 1e-5), "a null row equals itself made null"


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("layout,spec", CASES)
def test_a_path_through_a_tree_equals_the_chain_and_can_be_committed(layout, spec, by):
    model = autoregressive(spec, EVERYTHING, torch.float32, layout=layout, condition_by=by)
    tokens, condition = codes(spec, 3), everything(3)
    want, ids, steps = model(tokens, condition), fed(model, tokens), model.layout.steps
    wrong = fed(model, codes(spec, 3, seed=5))
    cache = model.init_cache(condition, 3, steps + 6)
    start = at(1, 2, 0)
    for b in range(3):  # each row is fed alone up to its start; the others feed and overwrite the same
        for s in range(int(start[b])):
            where = torch.minimum(at(s, s, s), start)
            where[b] = s
            rows = torch.stack([ids[r, int(where[r])][None] for r in range(3)])
            model.logits(rows, cache, where)
    # Two branches at every depth, in another order in each row: depth d of the true chain is node path[b, d].
    parents = torch.tensor([[-1, -1, 0, 1, 2, 2], [-1, -1, 1, 0, 2, 3], [-1, 0, 0, 1, 2, 3]])
    path = torch.tensor([[0, 2, 5, -1], [1, 2, 4, -1], [0, 1, 3, 5]])
    depth = torch.tensor([[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 3]])
    rows = torch.stack([wrong[b, (start[b] + depth[b]).clamp(max=steps)] for b in range(3)])
    for b in range(3):
        for d, node in enumerate(path[b].tolist()):
            if node >= 0:
                rows[b, node] = ids[b, min(int(start[b]) + d, steps)]
    got = model.logits(rows, cache, start, parents)
    for b in range(3):
        for d, node in enumerate(path[b].tolist()):
            if node >= 0 and int(start[b]) + d < steps:
                assert same(want[b, int(start[b]) + d], got[b, node], 1e-5), (b, d)
    model.commit(cache, start, path)
    where = start + (path >= 0).sum(1)
    keep = where < steps
    rows = torch.stack([ids[b, min(int(where[b]), steps)][None] for b in range(3)])
    got = model.logits(rows, cache, where)
    for b in keep.nonzero()[:, 0].tolist():
        assert same(want[b, int(where[b])], got[b, 0], 1e-5)


def test_a_chain_as_a_tree_equals_the_chain():
    model = autoregressive(RASTER, CLASSES)
    tokens, condition = codes(RASTER, 2), Condition({"class": Class(torch.tensor([1, -1]))})
    ids, cache = fed(model, tokens), model.init_cache(condition, 2, 12)
    chain = torch.arange(-1, 4).expand(2, -1)
    assert same(model(tokens, condition)[:, :5], model.logits(ids[:, :5], cache, at(0, 0), chain))


@pytest.mark.parametrize("layout,spec", CASES)
def test_a_later_id_changes_no_earlier_distribution(layout, spec):
    model = autoregressive(spec, layout=layout)
    tokens = codes(spec, 1)
    want = model(tokens)
    for k, n in spec.exists().nonzero().tolist():
        other = tokens.codes.clone()
        other[0, k, n] = (other[0, k, n] + 1) % spec.vocab_sizes[k]
        got = model(Tokens(other, spec))
        step = int(model.layout.step[k, n])
        assert same(want[:, : step + 1], got[:, : step + 1], 1e-12)
        if step + 1 < model.layout.steps:
            assert not same(want[:, step + 1], got[:, step + 1], 1e-6), "the next step must read the id"


@pytest.mark.parametrize("layout,spec", CASES)
def test_ids_beyond_a_levels_vocabulary_are_impossible_and_the_rest_possible(layout, spec):
    model = autoregressive(spec, layout=layout)
    tokens = codes(spec, 2)
    ids, cache = fed(model, tokens), model.init_cache(Condition(), 2, model.layout.steps)
    for logits in (model(tokens), model.logits(ids[:, :-1], cache, at(0, 0))):
        possible = torch.arange(spec.vocab) < model.layout.vocab.clamp(min=1)[..., None]
        assert torch.equal(torch.isfinite(logits), possible.expand_as(logits))
        assert torch.isfinite(logits.softmax(-1)).all()


@pytest.mark.parametrize("layout,spec", CASES)
def test_nll_is_the_sum_over_present_cells_and_absent_cells_cost_nothing(layout, spec):
    model = autoregressive(spec, CLASSES, layout=layout)
    tokens, condition = codes(spec, 2), Condition({"class": Class(torch.tensor([1, -1]))})
    tokens.codes[0, -1, -2:] = ABSENT
    flat = model.layout.flatten(tokens.codes)
    picked = model(tokens, condition).log_softmax(-1).gather(3, flat.clamp(min=0)[..., None])[..., 0]
    want = -(picked * (flat >= 0)).sum((1, 2))
    out = model.loss(tokens, condition, RowRNG([0, 1]))
    assert torch.allclose(out.nll, want)
    assert torch.allclose(model.nll_bound(tokens, condition), want)
    assert int(out.count) == int((tokens.codes >= 0).sum())
    assert torch.allclose(out.loss, want.sum() / out.count)
    if spec.levels > 1:
        means = torch.stack([out.terms[f"nll_level{k}"] for k in range(spec.levels)])
        counts = (tokens.codes >= 0).sum((0, 2))
        assert torch.allclose((means * counts).sum() / counts.sum(), out.terms["nll"])


@pytest.mark.parametrize("layout,spec", CASES)
def test_every_code_reads_its_own_row_of_its_levels_table(layout, spec):
    model = autoregressive(spec, layout=layout)
    tokens = codes(spec, 1)
    tokens.codes[0, -1, 1] = ABSENT
    model.loss(tokens, Condition(), RowRNG([0])).loss.backward()
    total, first = sum(spec.vocab_sizes), model.layout.level[:-1]
    want = {total + spec.levels}  # begin
    want |= {total + spec.levels + 1} if model.layout.slots > 1 else set()  # begin's and others' empty slots
    for step, slot in (first >= 0).nonzero().tolist():
        level, position = int(model.layout.level[step, slot]), int(model.layout.position[step, slot])
        code = int(tokens.codes[0, level, position])
        want.add(total + level if code < 0 else sum(spec.vocab_sizes[:level]) + code)
    assert set(model.token_table.weight.grad.abs().amax(1).nonzero()[:, 0].tolist()) == want


@pytest.mark.parametrize("by", BY)
def test_an_empty_part_reads_its_learned_null_and_nothing_else(by):
    model = autoregressive(RASTER, EVERYTHING, condition_by=by)
    model.loss(codes(RASTER, 2), everything(2).null(), RowRNG([0, 1])).loss.backward()
    parts = model.conditioner.parts
    assert float(parts["text_"].null.grad.abs().max()) > 0 and float(parts["voice_"].null.grad.abs().max()) > 0
    assert float(parts["text_"].embed.weight.grad.abs().max()) == 0
    assert parts["class_"].table.weight.grad.abs().amax(1).nonzero()[:, 0].tolist() == [3]


def test_absent_cells_get_no_gradient():
    model = autoregressive(LEVELS, layout="delayed")
    tokens = codes(LEVELS, 2)
    tokens.codes[:, 2] = ABSENT
    model.loss(tokens, Condition(), RowRNG([0, 1])).loss.backward()
    level = model.head.weight.grad[5 + 7 :]
    assert float(level.abs().max()) == 0.0 and float(model.head.weight.grad.abs().max()) > 0


def test_a_batch_without_cells_has_loss_zero():
    tokens = Tokens(torch.full((2, 1, 12), ABSENT), RASTER)
    out = autoregressive(RASTER).loss(tokens, Condition(), RowRNG([0, 1]))
    assert float(out.loss.detach()) == 0.0 and int(out.count) == 0


@pytest.mark.parametrize("by", BY)
def test_a_row_of_a_batch_equals_the_row_alone_also_in_training(by):
    options = {"condition_by": by, "dropout": 0.2, "token_dropout": 0.3, "condition_dropout": 0.5, "label_smoothing": 0.1}
    model = autoregressive(LEVELS, EVERYTHING, layout="delayed", **options).train()
    tokens, condition = codes(LEVELS, 5), everything(5)
    whole = model.loss(tokens, condition, RowRNG.of(3, range(5)))
    for b in range(5):
        alone = model.loss(tokens.rows([b]), condition.rows([b]), RowRNG.of(3, [b]))
        assert torch.allclose(alone.nll, whole.nll[b : b + 1], rtol=1e-12)


def test_nothing_random_happens_outside_training():
    model = autoregressive(RASTER, CLASSES, dropout=0.5, token_dropout=0.5, condition_dropout=0.9, label_smoothing=0.2)
    tokens, condition = codes(RASTER, 2), Condition({"class": Class(torch.tensor([1, 2]))})
    a, b = model.loss(tokens, condition, RowRNG([0, 1])), model.loss(tokens, condition, RowRNG([5, 6]))
    assert torch.equal(a.loss, b.loss) and torch.allclose(a.loss, a.nll.sum() / a.count)
    assert not torch.equal(model.train().loss(tokens, condition, RowRNG([0, 1])).loss, a.loss)


def test_condition_dropout_makes_that_share_of_rows_null():
    model = autoregressive(TokenSpec((3,), Raster(1, 2)), CLASSES, condition_dropout=0.3).train()
    tokens = Tokens(torch.zeros(400, 1, 2, dtype=torch.int64), model.spec)
    condition = Condition({"class": Class(torch.full((400,), 1))})
    nll = model.loss(tokens, condition, RowRNG.of(0, range(400))).nll
    null = model.eval().loss(tokens, condition.null(), RowRNG([0] * 400)).nll
    full = model.loss(tokens, condition, RowRNG([0] * 400)).nll
    dropped = torch.isclose(nll, null)
    assert torch.equal(dropped, ~torch.isclose(nll, full))
    assert 0.22 < float(dropped.float().mean()) < 0.38


def test_label_smoothing_is_the_cross_entropy_against_the_smoothed_target():
    model = autoregressive(RASTER, label_smoothing=0.2, condition_dropout=0.0).train()
    tokens = codes(RASTER, 2)
    target = model.layout.flatten(tokens.codes)[..., 0]
    want = torch.nn.functional.cross_entropy(model(tokens)[:, :, 0].flatten(0, 1), target.flatten(), label_smoothing=0.2)
    assert torch.allclose(model.loss(tokens, Condition(), RowRNG([0, 1])).loss, want)


@pytest.mark.parametrize("by", BY)
def test_what_a_condition_masks_is_never_read(by):
    model = autoregressive(RASTER, EVERYTHING, condition_by=by)
    tokens, condition = codes(RASTER, 3), everything(3)
    want = model(tokens, condition)
    voice = condition.parts["voice"]
    hostile = Condition({**condition.parts, "voice": Vectors(voice.x.masked_fill(~voice.mask[..., None], float("nan")), voice.mask)})
    assert same(want, model(tokens, hostile), 1e-12)
    short = Condition({**condition.parts, "text": Ids(condition.parts["text"].ids[:, :2])})
    assert same(want[1:], model(tokens, short)[1:], 1e-9), "padding that nobody needs may be cut"
    missing = Condition({"class": condition.parts["class"], "voice": voice})
    assert same(want[1:2], model(tokens, missing)[1:2], 1e-9), "a missing part is null"


def test_conditions_that_do_not_fit_are_refused():
    model = autoregressive(RASTER, CLASSES)
    with pytest.raises(ValueError, match="'class' must be of kind class; got Ids"):
        model(codes(RASTER, 2), Condition({"class": Ids(torch.zeros(2, 3, dtype=torch.int64))}))
    with pytest.raises(ValueError, match="has 3 rows; the batch has 2"):
        model(codes(RASTER, 2), Condition({"class": Class(torch.zeros(3, dtype=torch.int64))}))
    with pytest.raises(ValueError, match="condition_by must be one of"):
        Autoregressive(RASTER, CLASSES, condition_by="film")
    with pytest.raises(ValueError, match="rope=axial needs tokens on a raster"):
        Autoregressive(LEVELS, rope="axial")
    with pytest.raises(ValueError, match="this generator models 1 x 12"):
        model(codes(TokenSpec((7,), Raster(2, 4)), 2), Condition({"class": Class(torch.zeros(2, dtype=torch.int64))}))


@pytest.mark.parametrize("layout,spec,options", [
    ("raster", RASTER, {}),
    ("raster", RASTER, {"tie_embeddings": True, "rope": "line"}),
    ("position_major", STRIDED, {"condition_by": "adaln"}),
    ("delayed", LEVELS, {"condition_by": "cross", "zero_init_head": True}),
])  # fmt: skip
def test_eight_items_are_learned_by_heart(layout, spec, options):
    torch.manual_seed(0)
    model = Autoregressive(spec, CLASSES, layout=layout, width=32, depth=2, heads=2, condition_dropout=0.0, **options)
    tokens, condition = codes(spec, 8), Condition({"class": Class(torch.arange(8) % 3)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = float(model.loss(tokens, condition, RowRNG([0] * 8)).terms["nll"])
    for _ in range(120):
        out = model.loss(tokens, condition, RowRNG([0] * 8))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert float(out.terms["nll"]) < 0.4 * first  # what is left is which of the items it is
    if options.get("zero_init_head"):
        uniform = sum(int(e.sum()) * math.log(v) for e, v in zip(spec.exists(), spec.vocab_sizes)) / int(spec.exists().sum())
        assert abs(first - uniform) < 1e-4


def test_it_builds_and_describes_itself_on_the_meta_device():
    with torch.device("meta"):
        model = Autoregressive(RASTER, CLASSES)
        out = model.loss(Tokens(torch.zeros(2, 1, 12, dtype=torch.int64), RASTER), Condition(), RowRNG(torch.zeros(2, dtype=torch.int64)))
    assert out.loss.is_meta and model.begin.device.type == "cpu"
    out.loss.backward()


def test_a_model_filled_from_another_after_the_meta_device_equals_it():
    """Nothing that the constructor computes may be lost between meta and to_empty."""
    source = autoregressive(STRIDED, CLASSES, torch.float32, layout="delayed")
    with torch.device("meta"):
        model = Autoregressive(STRIDED, CLASSES, layout="delayed", width=16, depth=2, heads=2)
    model = model.to_empty(device="cpu").eval()
    model.load_state_dict(source.state_dict())
    tokens, condition = codes(STRIDED, 2), Condition({"class": Class(torch.tensor([1, -1]))})
    assert same(source(tokens, condition), model(tokens, condition), 0)


def test_training_works_after_a_validation_in_inference_mode():
    model = autoregressive(RASTER, CLASSES, torch.float32)
    tokens, condition = codes(RASTER, 2), Condition({"class": Class(torch.tensor([1, -1]))})
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model.loss(tokens, condition, RowRNG([0, 1]))
    with torch.autocast("cpu", torch.bfloat16):
        out = model.train().loss(tokens, condition, RowRNG([0, 1]))
    out.loss.backward()
    assert out.loss.dtype == torch.float32


def test_bfloat16_is_near_float32():
    model = autoregressive(RASTER, CLASSES, torch.float32)
    tokens, condition = codes(RASTER, 4), Condition({"class": Class(torch.tensor([1, -1, 0, 2]))})
    exact = model.nll_bound(tokens, condition)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(model.nll_bound(tokens, condition), exact, rtol=0.05)
    model.to(torch.bfloat16)
    assert torch.allclose(model.nll_bound(tokens, condition), exact, rtol=0.05)
    ids, cache = fed(model, tokens), model.init_cache(condition, 4, 12)
    assert torch.allclose(model.logits(ids[:, :1], cache, at(0, 0, 0, 0)).float(), model(tokens, condition)[:, :1].float(), atol=0.1)


def test_it_is_causal():
    assert capabilities(Autoregressive) == ("Causal",) and issubclass(Autoregressive, Causal) and Autoregressive.exact_slots
    assert Autoregressive(RASTER).condition_spec == ConditionSpec()
