"""Distilled decoding's generator: what its teacher makes of noise, what its student sees and learns."""

import pytest
import torch
from distilled_kit import SPEC, codebook, distilled, start
from generator_kit import CLASSES, LEVELS, autoregressive, masked

from gentok.flow.codewords import CodewordFlow
from gentok.flow.guidance import combine
from gentok.generators.distilled import DistilledTransformer
from gentok.rng import RowRNG
from gentok.types import UNKNOWN, Condition, Tokens, TokenSpec, Trajectories

N = SPEC.positions


def recomputed(model, codes, noise, condition):
    """The codes that the map gives where the teacher, without a cache, reads `codes`."""
    logits = model.teacher(Tokens(codes, SPEC), condition)[:, :, 0]
    if model.guidance != 1:
        logits = combine(logits, model.teacher(Tokens(codes, SPEC), condition.null())[:, :, 0], model.guidance)
    return model._flow(codes.device)(noise, logits)[:, None]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@torch.no_grad()
def test_a_trajectory_is_the_teachers_map_at_every_position(guidance):
    model = distilled(guidance=guidance)
    unknown, noise, condition = start(model)
    codes = model.follow(unknown, noise, condition, range(N))
    assert torch.equal(recomputed(model, codes, noise, condition), codes)
    assert not torch.equal(recomputed(model, codes, noise.flip(0), condition), codes)
    model.guidance = 1.0 if guidance != 1 else 2.0
    assert not torch.equal(recomputed(model, codes, noise, condition), codes), "guidance matters"


@torch.no_grad()
def test_a_trajectory_goes_on_from_any_of_its_codes():
    model = distilled()
    unknown, noise, condition = start(model)
    whole = model.follow(unknown, noise, condition, range(N))
    half = torch.where(torch.arange(N) < 5, whole, UNKNOWN)
    assert torch.equal(model.follow(half, noise, condition, range(5, 9))[:, :, :9], whole[:, :, :9])
    assert torch.equal(model.follow(half, noise, condition, range(5, N)), whole)
    assert torch.equal(model.follow(half, noise, condition, range(0)), half)


def test_the_student_begins_as_its_teacher_and_leaves_it_alone():
    trained = autoregressive(SPEC, CLASSES)
    model = DistilledTransformer(SPEC, CLASSES, codebook(), teacher=autoregressive(SPEC, CLASSES, width=16)).double()
    with torch.no_grad():
        for p in trained.parameters():
            p.mul_(1.5)
    model.take_inner(trained)
    for own, theirs in ((model.trunk, trained.trunk), (model.conditioner, trained.conditioner), (model.teacher, trained)):
        assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert torch.equal(model.head.weight, trained.level_weights(0))
    before = {name: p.clone() for name, p in model.teacher.state_dict().items()}
    model.train()
    assert not model.teacher.training and not any(p.requires_grad for p in model.teacher.parameters())
    unknown, noise, condition = start(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.loss(Tokens(unknown.clamp(min=0), SPEC), condition, RowRNG.of(0, range(5))).loss.backward()
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.teacher.state_dict().items())
    assert not torch.equal(model.trunk.blocks[0].mlp.out.weight, model.teacher.trunk.blocks[0].mlp.out.weight)


@torch.no_grad()
def test_a_position_of_the_student_sees_its_own_state_and_those_before_it():
    model = distilled()
    unknown, noise, condition = start(model)
    codes = torch.where(torch.arange(N) < 4, 3, unknown)
    seen = model.jump(codes, noise, condition)
    for n in range(N):
        other = noise.clone()
        other[:, n] += 1.0
        changed = (model.jump(codes, other, condition) != seen).any(3)[0, 0]
        assert changed.tolist() == [n >= 4 and i >= n for i in range(N)], "noise is read from the first unknown position on"
        if n < 4:
            other = codes.clone()
            other[:, :, n] = 5
            assert (model.jump(other, noise, condition) != seen).any(3)[0, 0].tolist() == [i >= n for i in range(N)]


def test_the_loss_is_of_what_lies_behind_each_rows_start():
    model = distilled(split=4, regression=0.5).train()
    unknown, noise, condition = start(model, 6)
    codes = model.follow(unknown, noise, condition, range(N))
    rng = RowRNG.of(9, range(6))
    output = model.loss(Trajectories(codes, SPEC, None, noise), condition, rng)
    nll, error, count = 0.0, 0.0, 0
    for b, u in enumerate(RowRNG.of(9, range(6)).uniform().tolist()):
        first = 4 if u < 0.5 else 0
        state = torch.where(torch.arange(N) < first, codes[b : b + 1], UNKNOWN)
        args = state, noise[b : b + 1], condition.rows(slice(b, b + 1))
        logits, target = model.jump(*args)[0, 0, first:], codes[b, 0, first:]
        nll += torch.nn.functional.cross_entropy(logits, target, reduction="sum")
        vectors = model._tables.on(codes.device, torch.float64).codewords[target]
        error += (model.regress(model._hidden(*args))[0, first:] - vectors).square().mean(1).sum()
        count += N - first
    assert int(output.count) == count and 0 < count < 6 * N
    torch.testing.assert_close(output.loss, nll / count + 0.5 * error / count)
    torch.testing.assert_close(output.terms["nll"], (nll / count).detach())


def test_other_tokens_are_replaced_by_trajectories_of_fresh_noise():
    model = distilled()
    unknown, _, condition = start(model)
    one, other = (model.loss(Tokens(unknown * 0 + c, SPEC), condition, RowRNG.of(4, range(5))).loss for c in (0, 6))
    assert torch.equal(one, other)
    rng = RowRNG.of(4, range(5))
    rng.uniform()  # the starts
    noise = model.noise(rng.fork("noise"))
    made = Trajectories(model.follow(unknown, noise, condition, range(N)), SPEC, None, noise)
    torch.testing.assert_close(model.loss(made, condition, RowRNG.of(4, range(5))).loss, one)
    part = made.rows([1, 3]).to("cpu")
    assert torch.equal(part.noise, noise[[1, 3]]) and torch.equal(part.codes, made.codes[[1, 3]])


@pytest.mark.parametrize(
    "message, options, spec",
    [
        ("generator.teacher.ckpt=BUNDLE", {"teacher": None}, SPEC),
        ("generator.teacher.ckpt=BUNDLE", {"teacher": {"ckpt": "x"}}, SPEC),
        ("autoregressive; its teacher is a MaskedTransformer", {"teacher": masked(SPEC, CLASSES)}, SPEC),
        ("the teacher models .* level of 5", {"teacher": autoregressive(TokenSpec((5,), SPEC.grid), CLASSES)}, SPEC),
        ("the teacher is conditioned on", {"teacher": autoregressive(SPEC)}, SPEC),
        ("split=12: a position from 1 to 11", {"split": 12}, SPEC),
        ("dopri5.*euler, midpoint, heun", {"solver": "dopri5"}, SPEC),
        ("at least 2", {"solver_steps": 1}, SPEC),
        ("one level .* and ends", {"teacher": autoregressive(SPEC, CLASSES, ends=True)}, SPEC),
        ("one level .* 3 levels", {"teacher": autoregressive(LEVELS, CLASSES, layout="delayed")}, LEVELS),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_line(message, options, spec):
    with pytest.raises(ValueError, match=message) as error:
        DistilledTransformer(spec, CLASSES, codebook(), **{"teacher": autoregressive(SPEC, CLASSES), **options})
    assert "\n" not in str(error.value)


def test_an_unconditional_teacher_has_no_guidance():
    with pytest.raises(ValueError, match="guidance=2 of a teacher without a condition"):
        distilled(condition_spec=None, guidance=2.0)
    with pytest.raises(ValueError, match="no codebook"):
        DistilledTransformer(SPEC, None, None, teacher=autoregressive(SPEC))
    model = distilled(condition_spec=None)
    unknown, noise, _ = start(model)
    assert (model.follow(unknown, noise, Condition(), range(N)) >= 0).all()
    assert isinstance(model._flow(torch.device("cpu")), CodewordFlow)
