"""Properties of the mixture of objectives: each is what direct code says; sampling and likelihood are the autoregressive model's."""

import pytest
import torch
from generator_kit import CASES, CLASSES, EVERYTHING, LEVELS, RASTER, STRIDED, autoregressive, codes, everything, randomise

from gentok.generators.mixed_objectives import OBJECTIVES, MixedObjectives, weights_at
from gentok.rng import RowRNG
from gentok.types import ABSENT, Class, Condition, TokenSpec


def mixed(spec, condition_spec=None, dtype=torch.float64, **options):
    options = {"width": 16, "depth": 2, "heads": 2, "condition_dropout": 0.0, **options}
    return randomise(MixedObjectives(spec, condition_spec, **options)).to(dtype)


def direct(model, tokens, condition, aims, asked=None):
    """Nats of one row, cell by cell: the fed step s predicts the layout step aims[s]. asked: the steps that are predicted from
    both sides, fed as absent; None: attention is causal."""
    layout, steps = model.layout, model.layout.steps
    ids, tables = model.feed(tokens.codes)[0], model._tables.on(tokens.codes.device)
    x = []
    for s in range(steps):
        read = torch.where(ids[s] >= 0, ids[s] + tables.offset[s], tables.absent[s])
        if asked is not None and s > 0 and s - 1 in asked:
            read = tables.absent[s]
        row = model.token_table(read).sum(0)
        x.append(row if model.target_table is None else row + model.target_table(tables.named[aims[s]]).sum(0))
    given, places = model.conditioner(condition, 1), model.conditioner.places
    prefix = torch.zeros(1, 0, model.trunk.width, dtype=torch.float64) if given.prefix is None else given.prefix
    cos, sin = (
        torch.stack([*t[: prefix.shape[1]], *(torch.stack((t[places + a][0], t[places + s][1])) for s, a in enumerate(aims))])
        for t in (tables.cos, tables.sin)
    )
    mask = None
    if asked is not None:
        mask = torch.ones(len(cos), len(cos), dtype=torch.bool).tril()
        mask[prefix.shape[1] :] = True
    hidden = model.trunk(torch.cat((prefix, torch.stack(x)[None]), 1), (cos, sin), mask=mask)[0, prefix.shape[1] :]
    nats, count = [], 0
    for s in range(steps):
        if asked is not None and s not in asked:
            continue
        for g in range(layout.slots):
            k, n = int(layout.level[aims[s], g]), int(layout.position[aims[s], g])
            if k < 0 or int(tokens.codes[0, k, n]) < 0:
                continue
            start = sum(model.spec.vocab_sizes[:k])
            scores = model.head.weight[start : start + model.spec.vocab_sizes[k]] @ hidden[s]
            nats.append(-scores.log_softmax(0)[int(tokens.codes[0, k, n])])
            count += 1
    return torch.stack(nats).sum() / count


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("layout,spec", [CASES[0], *CASES[3:7:2], CASES[8]])
def test_each_objective_alone_is_what_direct_code_says(layout, spec, objective):
    model = mixed(spec, CLASSES, layout=layout, objective=objective).train()
    tokens, condition = codes(spec, 1, seed=2), Condition({"class": Class(torch.tensor([1]))})
    steps = model.layout.steps
    for seed in (0, 1):
        if objective != "next":
            tokens.codes[0, -1, -1] = ABSENT  # what is not there is not asked for
        out = model.loss(tokens, condition, RowRNG.of(seed, [0]))
        own = RowRNG.of(seed, [0]).fork("objectives")
        own.uniform()
        asked = model._random_steps(steps, own)[0].nonzero()[:, 0].tolist()
        u = own.uniform(steps)[0]
        aims = [s + int(u[s] * (steps - s)) if objective == "next_all" else s for s in range(steps)]
        want = direct(model, tokens, condition, aims, asked if objective == "random" else None)
        assert torch.allclose(out.loss, want, rtol=1e-9) and int(out.count) == int(tokens.present.sum())
        out.loss.backward()


@pytest.mark.parametrize("layout,spec", CASES)
def test_next_alone_sampling_and_likelihood_are_the_autoregressive_models(layout, spec):
    for ends in (False, True):
        model, plain = (make(spec, EVERYTHING, layout=layout, ends=ends) for make in (mixed, autoregressive))
        plain.load_state_dict(model.state_dict())
        tokens, condition = codes(spec, 3), everything(3)
        want = plain.loss(tokens, condition, RowRNG.of(0, range(3)))
        got = model.loss(tokens, condition, RowRNG.of(0, range(3)))
        assert torch.equal(got.loss, want.loss) and torch.equal(got.nll, want.nll), "nothing is drawn outside of training"
        assert torch.equal(model(tokens, condition), plain(tokens, condition))
        model.train().objective, plain.train().condition_dropout = "next", 0.0
        a, b = (kind.loss(tokens, condition, RowRNG.of(0, range(3))).loss for kind in (model, plain))
        assert torch.equal(a, b)


def test_a_mixture_gives_every_row_its_own_objective_and_counts_rows_by_their_cells():
    model = mixed(RASTER, CLASSES).train()
    model.progress = 0.3
    tokens, condition = codes(RASTER, 12), Condition({"class": Class(torch.arange(12) % 3)})
    tokens.codes[3, :, 7:] = ABSENT
    whole = model.loss(tokens, condition, RowRNG.of(0, range(12)))
    rows = [model.loss(tokens.rows([b]), condition.rows([b]), RowRNG.of(0, [b])) for b in range(12)]
    assert torch.allclose(whole.loss, sum(row.loss * row.count for row in rows) / whole.count, rtol=1e-9)
    drawn = {float(u) for u in RowRNG.of(0, range(12)).fork("objectives").uniform()}
    kinds = {sum(u > edge for edge in torch.tensor(model.weights).cumsum(0)[:2].tolist()) for u in drawn}
    assert len(kinds) > 1


def test_the_largest_weight_moves_from_random_over_next_to_all_that_follow():
    assert all(abs(sum(weights_at(i / 20)) - 1) < 1e-12 for i in range(21))
    for progress, largest in ((0.0, 0), (0.2, 0), (0.4, 1), (0.6, 1), (0.8, 2), (1.0, 2)):
        w = weights_at(progress)
        assert abs(w[largest] - 0.73) < 0.01 and sorted(round(x, 2) for x in w) == [0.09, 0.18, 0.73]
    assert abs(weights_at(0.3)[0] - weights_at(0.3)[1]) < 0.1, "a turn is soft"
    model = mixed(RASTER)
    rows = RowRNG.of(0, range(4000)).fork("objectives").uniform()
    model.progress = 0.0
    edges = torch.tensor(model.weights, dtype=torch.float64).cumsum(0)[:-1]
    share = torch.bucketize(rows, edges).bincount(minlength=3) / 4000
    assert torch.allclose(share.double(), torch.tensor(model.weights, dtype=torch.float64), atol=0.03)


@pytest.mark.parametrize("layout,spec", [("raster", RASTER), ("delayed", LEVELS), ("position_major", STRIDED)])
def test_a_random_step_sees_both_sides_and_never_itself(layout, spec):
    model, tokens = mixed(spec, layout=layout), codes(spec, 1)
    steps, both = model.layout.steps, torch.tensor([True])
    target, aim = steps // 2, torch.arange(steps)[None]
    hide = torch.arange(steps)[None] == target + 1

    def hidden(changed):
        return model._aimed_hidden(changed, Condition(), aim, both, hide, None)[0, target]

    want = hidden(tokens.codes)
    for k, n in spec.exists().nonzero().tolist():
        other = tokens.codes.clone()
        other[0, k, n] = (other[0, k, n] + 1) % spec.vocab_sizes[k]
        seen = int(model.layout.step[k, n]) not in (target, steps - 1)  # the last step is never fed
        assert torch.allclose(hidden(other), want, atol=1e-12) != seen


def test_a_row_of_a_batch_equals_the_row_alone_with_dropout():
    model = mixed(LEVELS, EVERYTHING, layout="delayed", dropout=0.2, token_dropout=0.3, condition_dropout=0.5).train()
    model.progress = 0.3
    tokens, condition = codes(LEVELS, 5), everything(5)
    whole = model.loss(tokens, condition, RowRNG.of(3, range(5)))
    alone = [model.loss(tokens.rows([b]), condition.rows([b]), RowRNG.of(3, [b])) for b in range(5)]
    assert torch.allclose(whole.loss, torch.stack([row.loss for row in alone]).mean(), rtol=1e-9)


def test_an_end_is_a_target_of_every_objective():
    spec = TokenSpec((3, 5), LEVELS.grid)  # level 0 has fewer ids than the vocabulary
    for objective in ("random", "next_all"):
        model = mixed(spec, layout="position_major", ends=True, objective=objective).train()
        tokens = codes(spec, 3)
        tokens.codes[0, :, 2:] = ABSENT
        out = model.loss(tokens, Condition(), RowRNG.of(0, range(3)))
        assert int(out.count) == int(tokens.present.sum()) + 1 and bool(torch.isfinite(out.loss))
        out.loss.backward()
        assert float(model.end.grad.abs().max()) > 0


def test_what_it_cannot_do_is_refused_in_one_line():
    with pytest.raises(ValueError, match="objective=next alone"):
        MixedObjectives(RASTER, label_smoothing=0.1)
    with pytest.raises(ValueError, match="use generator=autoregressive"):
        MixedObjectives(TokenSpec((4,), RASTER.grid, parts=(("a", 0, 2), ("b", 2, 4)), grammar=((0, 1), (-1, -1))), ends=True)
