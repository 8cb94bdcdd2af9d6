"""Training of drafters: items of the target's own, divergences by their formulas, exits whose loss is that of their blocks."""

import pytest
import torch
from generator_kit import CASES, CLASSES, EVERYTHING, LEVELS, RASTER, STRIDED, autoregressive, codes, everything, masked, randomise, same

from gentok.errors import ConfigError
from gentok.generators.aligned_drafter import AlignedDrafter, divergences, draw_items, probabilities
from gentok.generators.autoregressive import Autoregressive
from gentok.generators.early_exits import EarlyExits, first_blocks
from gentok.rng import RowRNG
from gentok.types import Class, Condition, Line, Tokens, TokenSpec


def drafter(spec, target, condition_spec=None, **options):
    model = AlignedDrafter(spec, condition_spec, **{"width": 16, "depth": 1, "heads": 2, "target": "T", **options}).double()
    randomise(model).with_models(lambda path: target)
    return model.train()


def exits(spec, condition_spec=None, **options):
    return randomise(EarlyExits(spec, condition_spec, **{"width": 16, "depth": 3, "heads": 2, "exits": [1, 2], **options})).double()


# ---------------------------------------------------------------------------------------------------------- divergences and items


def test_divergences_are_those_of_the_formulas():
    p = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.25, 0.5, 0.0], [0.5, 0.5, 0.0, 0.0]], dtype=torch.float64)
    logits = q.log().requires_grad_()
    found = divergences(p, logits)
    kl = [0.5 * torch.tensor(2.0).log() + 0.3 * torch.tensor(1.2).log() + 0.2 * torch.tensor(0.4).log(), torch.tensor(2.0).log()]
    assert torch.allclose(found["kl"], torch.stack(kl).double(), atol=1e-6)
    assert torch.allclose(1 - found["tv"], torch.minimum(p, q).sum(-1))  # the acceptance of one draft
    sum(found.values()).sum().backward()
    assert logits.grad.isfinite().all()
    assert all(float(value.abs().max()) < 1e-12 for value in divergences(q, q.log()).values())


@pytest.mark.parametrize(("layout", "ends"), [("position_major", False), ("delayed", True)])
def test_items_are_drawn_where_others_have_cells_and_a_row_alone_draws_the_same(layout, ends):
    target, like, condition = autoregressive(STRIDED, EVERYTHING, layout=layout, ends=ends), codes(STRIDED, 3), everything(3)
    like.codes[1, :, 3:] = -1
    drawn = draw_items(target, like, condition, RowRNG.of(0, range(3))).codes
    assert torch.equal(drawn >= 0, like.codes >= 0) and not torch.equal(drawn, like.codes)
    alone = draw_items(target, Tokens(like.codes[1:2], STRIDED), condition.rows(torch.tensor([1])), RowRNG.of(0, [1]))
    assert torch.equal(alone.codes, drawn[1:2])


def test_items_that_are_drawn_have_the_models_distribution_and_those_of_a_sharper_one_have_not():
    spec, n = TokenSpec((3,), Line(2)), 6000
    target = autoregressive(spec)
    every = torch.cartesian_prod(torch.arange(3), torch.arange(3))[:, None]
    p = (-target.nll_bound(Tokens(every, spec), Condition(), None)).exp()

    def chi_square(model):
        drawn = draw_items(model, Tokens(torch.zeros(n, 1, 2, dtype=torch.int64), spec), Condition(), RowRNG.of(0, range(n))).codes
        count = torch.bincount(drawn[:, 0, 0] * 3 + drawn[:, 0, 1], minlength=9)
        return float(((count - n * p) ** 2 / (n * p)).sum())

    class Sharper:
        spec, layout, begin = target.spec, target.layout, target.begin
        init_cache, commit = target.init_cache, target.commit

        def logits(self, *given):
            return target.logits(*given) * 1.3

    assert chi_square(target) < 26.1 < chi_square(Sharper())  # of 8 degrees of freedom: p = 0.001


# -------------------------------------------------------------------------------------------------------------------- the drafter


@pytest.mark.parametrize("context", ["target", "data"])
def test_a_drafter_that_is_the_target_has_no_divergence(context):
    target = autoregressive(LEVELS, EVERYTHING, layout="delayed", ends=True)
    model = drafter(LEVELS, target, EVERYTHING, layout="delayed", ends=True, depth=2, context=context, condition_dropout=0.5)
    model.load_state_dict(target.state_dict())
    output = model.loss(codes(LEVELS, 4), everything(4), RowRNG.of(0, range(4)))
    assert abs(float(output.loss.detach())) < 1e-12 and abs(float(output.terms["acceptance"]) - 1) < 1e-7


def test_what_it_is_trained_on_is_named_by_its_target():
    one, other = autoregressive(RASTER), autoregressive(RASTER, depth=3)
    assert drafter(RASTER, one, context="data").own_items is None
    assert drafter(RASTER, one).own_items == drafter(RASTER, one).own_items != drafter(RASTER, other).own_items
    drawn = drafter(RASTER, one).draw_items(codes(RASTER, 2), Condition(), RowRNG.of(0, range(2)))
    assert torch.equal(drawn.codes, draw_items(one, codes(RASTER, 2), Condition(), RowRNG.of(0, range(2))).codes)


def test_training_brings_the_drafter_near_and_leaves_the_target_alone():
    target = autoregressive(RASTER, CLASSES)
    model = drafter(RASTER, target, CLASSES, divergence="tv", condition_dropout=0.0)
    before, condition = {k: v.clone() for k, v in target.state_dict().items()}, Condition({"class": Class(torch.arange(16) % 3)})
    optimizer, found = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for step in range(40):
        output = model.loss(codes(RASTER, 16), condition, RowRNG.of(0, range(16), step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        found.append(float(output.terms["acceptance"]))
    assert found[-1] > found[0] + 0.1
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    assert model.state_dict().keys() == autoregressive(RASTER, CLASSES, depth=1).state_dict().keys()


def test_what_is_stored_names_no_target_and_scores_as_the_autoregressive_model():
    model = drafter(RASTER, autoregressive(RASTER)).eval()
    plain = autoregressive(RASTER, depth=1)
    plain.load_state_dict(model.state_dict())
    assert model.portable({"target": "PATH", "depth": 1}) == {"target": None, "depth": 1}
    assert torch.equal(model.nll_bound(codes(RASTER, 2), Condition(), None), plain.nll_bound(codes(RASTER, 2), Condition(), None))


def test_targets_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="set generator.target to its bundle"):
        AlignedDrafter(RASTER, width=16, depth=1, heads=2).with_models(lambda path: None)
    with pytest.raises(ValueError, match="generator.target=T must be a Causal generator; this MaskedTransformer is Masked"):
        drafter(RASTER, masked(RASTER))
    for target in (autoregressive(LEVELS), autoregressive(RASTER, CLASSES), autoregressive(RASTER, ends=True)):
        with pytest.raises(ValueError, match=r"generator.target=T has other tokens, another order .*: they must be the same"):
            drafter(RASTER, target)
    with pytest.raises(ValueError, match="divergence"):
        AlignedDrafter(RASTER, divergence="js")
    with pytest.raises(ValueError, match="use generator=autoregressive"):
        AlignedDrafter(TokenSpec((4,), Line(3), parts=(("a", 0, 2), ("b", 2, 4)), grammar=((0, 1), (-1, -1))), ends=True)


# -------------------------------------------------------------------------------------------------------------------------- exits


@pytest.mark.parametrize(("layout", "spec"), CASES[:4])
@pytest.mark.parametrize("condition_by", ["prefix", "cross", "adaln"])
def test_an_exit_with_a_cache_is_the_exit_without_and_has_the_same_weights(layout, spec, condition_by):
    model, tokens, condition = exits(spec, EVERYTHING, layout=layout, condition_by=condition_by), codes(spec, 3), everything(3)
    for depth in model.exits:
        early = model.at_exit(depth)
        cache = early.init_cache(condition, 3, early.layout.steps)
        out = early.logits(early.feed(tokens.codes), cache, torch.zeros(3, dtype=torch.int64))
        assert same(out, early(tokens, condition)) and not same(out, model(tokens, condition))
        assert early.trunk.norm is model.trunk.norm and len(early.trunk.blocks) == depth and len(model.trunk.blocks) == 3


def test_the_loss_is_the_weighted_mean_of_the_losses_of_the_models_of_all_exits():
    tokens, condition = codes(LEVELS, 3), everything(3)
    for weight in (0.5, 1.0):
        model = exits(LEVELS, EVERYTHING, layout="delayed", ends=True, exit_weight=weight, condition_dropout=0.0)
        parts = [float(part.loss(tokens, condition, None).loss) for part in (model, model.at_exit(1), model.at_exit(2))]
        found = model.train().loss(tokens, condition, RowRNG.of(0, range(3)))
        assert abs(float(found.loss.detach()) - (parts[0] + weight * (parts[1] + parts[2])) / (1 + 2 * weight)) < 1e-9
        assert abs(float(found.terms["nll"]) - parts[0]) < 1e-9  # of the whole model alone
        wrong = (parts[0] + weight * (parts[1] + parts[1])) / (1 + 2 * weight)  # of one exit twice
        assert abs(float(found.loss.detach()) - wrong) > 1e-3


def test_a_plain_model_has_the_same_weights_and_its_first_blocks_are_a_model_too():
    plain, model = autoregressive(RASTER, depth=3), exits(RASTER)
    model.load_state_dict(plain.state_dict())
    assert same(first_blocks(plain, 2)(codes(RASTER, 2)), model.at_exit(2)(codes(RASTER, 2)))
    with pytest.raises(ValueError, match=r"depth=3: an exit of this model lies after 1 .. 2 of its 3 blocks"):
        first_blocks(plain, 3)


@pytest.mark.parametrize("wrong", [[3], [1, 1]])
def test_exits_outside_of_the_model_are_refused(wrong):
    with pytest.raises(ValueError, match=r"numbers of blocks, each once and below depth=3"):
        exits(RASTER, exits=wrong)
    assert Autoregressive.exits == ()
