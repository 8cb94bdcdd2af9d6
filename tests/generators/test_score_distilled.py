"""Distilled decoding 2: in which direction a student's code vectors are pulled, by whom, and that it leads to the teacher."""

import pytest
import torch
from distilled_kit import SPEC, codebook, distilled, start
from generator_kit import CLASSES, autoregressive, masked, randomise

from gentok.flow.guidance import combine
from gentok.generators.distilled import DistilledTransformer
from gentok.generators.score_distilled import ScoreDistilledTransformer
from gentok.rng import RowRNG
from gentok.training.optim import AdamW
from gentok.types import Condition, Tokens

N = SPEC.positions
TOKENS = Tokens(torch.zeros(5, 1, N, dtype=torch.int64), SPEC)


class Away(ScoreDistilledTransformer):
    """Pushes code vectors the other way."""

    def direction(self, *args):
        return -super().direction(*args)


class Unguided(ScoreDistilledTransformer):
    """Forgets the teacher's guidance."""

    def judged(self, codes, condition):
        return self.teacher(Tokens(codes, SPEC), condition)[:, :, 0].detach(), super().judged(codes, condition)[1]


class Unweighted(ScoreDistilledTransformer):
    """Takes the difference of the scores as it is."""

    def direction(self, codes, known, guessed, rng):
        t = rng.fork("time").uniform(N)[..., None]
        return super().direction(codes, known, guessed, rng) * (1 - t) / t**2


def student(kind=ScoreDistilledTransformer, condition_spec=CLASSES, **options):
    """One with random weights, whose guide knows nothing of it, in float64."""
    model = kind(SPEC, condition_spec, codebook(), teacher=autoregressive(SPEC, condition_spec), **options).double()
    kept = {name: p.clone() for name, p in model.teacher.state_dict().items()}
    randomise(model, 0.3)
    model.teacher.load_state_dict(kept)
    return model


def enumerated(model, codes, condition, rng, weighted=True):
    """The direction, vector by vector, by automatic differentiation of the log density of a mixture of Gaussians."""
    words, t = model._tables.on("cpu", torch.float64).codewords, rng.fork("time").uniform(N)
    noise, tokens = rng.fork("point").normal(N, model.channels), Tokens(codes[:, None], SPEC)
    teacher = combine(model.teacher(tokens, condition), model.teacher(tokens, condition.null()), model.guidance).softmax(-1)
    out = torch.zeros(*codes.shape, model.channels, dtype=torch.float64)
    for b, n in torch.cartesian_prod(torch.arange(len(codes)), torch.arange(N)).tolist():
        s, scores = float(t[b, n]), []
        for p in (model.guide(tokens, condition).softmax(-1)[b, n, 0], teacher[b, n, 0]):
            x = ((1 - s) * words[codes[b, n]] + s * noise[b, n]).requires_grad_()
            density = sum(p[j].detach() * (-(x - (1 - s) * words[j]).square().sum() / (2 * s * s)).exp() for j in range(SPEC.vocab))
            scores.append(torch.autograd.grad(density.log(), x)[0])
        out[b, n] = s * s / (1 - s) * (scores[0] - scores[1])
    return out


def direction(model, codes, condition, rng):
    return model.direction(codes, *model.judged(codes[:, None], condition), rng)


@pytest.mark.parametrize("kind, right", [(ScoreDistilledTransformer, True), (Away, False), (Unguided, False), (Unweighted, False)])
def test_the_direction_is_the_weighted_difference_of_enumerated_scores(kind, right):
    model = student(kind, guidance=1.7)
    codes, condition, rng = (torch.arange(2 * N) % 7).view(2, N), start(model, 2)[2], RowRNG.of(3, range(2))
    wanted = enumerated(model, codes, condition, rng)
    assert torch.allclose(direction(model, codes, condition, rng), wanted, atol=1e-6) == right and wanted.abs().max() > 0.1


def test_a_student_with_the_teachers_distribution_is_left_alone():
    """Where the guide, which then models what the student draws, has found that it is the teacher."""
    model = student(guide_alone=0.0).train()
    condition = start(model)[2]
    pulled = []
    for known in (False, True):
        if known:
            model.guide.load_state_dict(model.teacher.state_dict())
        model.zero_grad()
        output = model.loss(TOKENS, condition, RowRNG.of(0, range(5)))
        output.loss.backward()
        pulled.append(float(model.head.weight.grad.abs().max()))
    assert pulled[0] > 1e-3 and pulled[1] == 0 and output.terms["direction"] == 0 and output.terms["divergence"] == 0


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_each_network_learns_by_its_own_loss_and_the_guide_begins_alone():
    model = student(guide_alone=0.5).train()
    condition, rng = start(model)[2], RowRNG.of(0, range(5))
    with torch.no_grad():
        noise = model.noise(rng.fork("noise"))
        codes = model.jump(Tokens.unknown(SPEC, 5).codes, noise, condition).argmax(-1)
    nll = torch.nn.functional.cross_entropy(model.guide(Tokens(codes, SPEC), condition)[:, :, 0].transpose(1, 2), codes[:, 0])
    wanted = gradients(model, nll)
    for progress in (0.4, 0.5):
        model.progress = progress
        found = gradients(model, model.loss(TOKENS, condition, RowRNG.of(0, range(5))).loss)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert set(found) == trained and not any(name.startswith(("teacher", "regress")) for name in trained)
        for name, gradient in found.items():
            if name.startswith("guide."):
                torch.testing.assert_close(gradient, wanted[name])
            else:
                assert bool(gradient.any()) == (progress == 0.5) or name == "kinds.weight"


def divergence(kind, steps=60):
    """(Estimates of KL(student || teacher) before the student learns and at the end, in nats of a code.)"""
    torch.manual_seed(0)
    model = student(kind, condition_spec=None, guide_alone=0.3, guide_pace=12.0).train()
    optimizer, found = AdamW(lr=8e-4, weight_decay=0.0)(model), []
    for step in range(steps):
        model.progress = step / steps
        output = model.loss(Tokens(TOKENS.codes.repeat(2, 1, 1), SPEC), Condition(), RowRNG.of(0, range(10), step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        found.append(float(output.terms["divergence"]))
    return sum(found[14:18]) / 4, sum(found[-10:]) / 10


def test_training_brings_the_student_to_its_teacher_and_the_other_way_it_leaves_it():
    before, after = divergence(ScoreDistilledTransformer)
    assert before > 0.3 and after < 0.7 * before
    before, after = divergence(Away)
    assert after > 0.9 * before


def test_it_goes_on_from_a_student_of_its_teacher():
    first = distilled()
    model = ScoreDistilledTransformer(SPEC, CLASSES, codebook(), teacher=autoregressive(SPEC, CLASSES)).double()
    model.take_inner(first.teacher)
    model.load_state_dict(model.begin_as(first))
    unknown, noise, condition = start(model)
    assert torch.equal(model.jump(unknown, noise, condition), first.jump(unknown, noise, condition))
    assert all(torch.equal(p, first.teacher.state_dict()[name]) for name, p in model.guide.state_dict().items())
    randomise(model.guide, 0.3)
    again = model.begin_as(model)
    assert all(torch.equal(p, again[f"guide.{name}"]) for name, p in model.guide.state_dict().items()), "its own guide is kept"


@pytest.mark.parametrize(
    "trained, message",
    [
        (lambda: masked(SPEC, CLASSES), "is a MaskedTransformer; this generator goes on from a student of generator=distilled"),
        (lambda: DistilledTransformer(SPEC, CLASSES, codebook(), teacher=randomised(SPEC)), "learned from another teacher: .*teacher.ckpt"),
        (lambda: DistilledTransformer(SPEC, CLASSES, codebook(), teacher=autoregressive(SPEC, CLASSES, width=32)), "from another teacher"),
    ],
)  # fmt: skip
def test_another_beginning_is_refused_in_a_line(trained, message):
    with pytest.raises(ValueError, match=message) as error:
        student().begin_as(trained())
    assert "\n" not in str(error.value)


def randomised(spec):
    model = autoregressive(spec, CLASSES)
    randomise(model, 0.5)
    return model


def test_the_guide_learns_at_a_pace_of_its_own():
    model = student(guide_pace=8.0)
    groups = AdamW(lr=0.5, weight_decay=0.1)(model).param_groups
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert rates[id(model.guide.head.weight)] == (4.0, 0.1) and rates[id(model.head.weight)] == (0.5, 0.1)
    assert rates[id(model.guide.token_table.weight)] == (4.0, 0.0) and len(rates) == sum(p.requires_grad for p in model.parameters())


def test_outside_of_training_the_loss_is_the_divergence():
    model = student(guidance=1.5).eval()
    output = model.loss(TOKENS, start(model)[2], RowRNG.of(0, range(5)))
    assert output.loss == output.terms["divergence"] and int(output.count) == 5 * N
