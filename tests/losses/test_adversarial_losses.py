"""The adversarial terms are their formulas, reach whom they should, and start when they should."""

import math

import pytest
import torch
from torch import nn

from gentok.losses.adversarial import LOSSES, Adversaries, Adversary, adaptive_weight, gradient_at, hinge, lecam, non_saturating
from gentok.training.optim import AdamW


class Judge(nn.Module):
    """A logit per item: a weighted mean of its pixels."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.calls = 0

    def forward(self, media):
        self.calls += 1
        return self.scale * media.flatten(1).mean(1), []


def test_hinge_and_non_saturating_are_their_formulas():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.25])
    assert hinge(real, fake).item() == pytest.approx(0.5 * (0 + 0.5 + 2) / 3 + 0.5 * (0 + 1.25) / 2)
    assert hinge(None, fake).item() == pytest.approx(2.75 / 2)

    def softplus(x):
        return math.log1p(math.exp(x))

    expected = 0.5 * (softplus(-2) + softplus(-0.5) + softplus(1)) / 3 + 0.5 * (softplus(-3) + softplus(0.25)) / 2
    assert non_saturating(real, fake).item() == pytest.approx(expected)
    assert non_saturating(None, fake).item() == pytest.approx((softplus(3) + softplus(-0.25)) / 2)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_down_each_loss_goes_the_right_way(loss):
    """The discriminator raises D(x) and lowers D(x'), the tokenizer raises D(x')."""
    real, fake = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    LOSSES[loss](real, fake).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()
    fake.grad = None
    LOSSES[loss](None, fake).backward()
    assert (fake.grad < 0).all()


def test_lecam_is_its_formula_and_its_averages_move_by_decay():
    real, fake = torch.tensor([1.0, -1.0]), torch.tensor([0.5, -2.0])
    assert lecam(real, fake, torch.tensor([0.25, -0.5])).item() == pytest.approx((1.5**2 + 0) / 2 + (0 + 2.25**2) / 2)
    part = Adversary(Judge(), lecam=2.0, decay=0.75)
    media, made = torch.full((2, 1, 2, 2), 0.4), torch.full((2, 1, 2, 2), -0.2)
    first = part.judge(media, made)["loss"]
    assert part.anchors.tolist() == pytest.approx([0.6, -0.3])  # it starts at the first batch
    assert first.item() == pytest.approx(hinge(torch.tensor([0.6]), torch.tensor([-0.3])).item() + 2 * (0.9**2 + 0.9**2), rel=1e-5)
    part.judge(made, media)
    assert part.anchors.tolist() == pytest.approx([0.75 * 0.6 - 0.25 * 0.3, -0.75 * 0.3 + 0.25 * 0.6])
    assert {"anchors", "anchored"} <= set(part.state_dict())
    first.backward()  # the averages have moved since, and the graph still holds


def test_adaptive_weight_is_the_ratio_of_norms_at_the_last_layer():
    """Against gradients written out by hand: rec = |W z - x|² / n, adv = -mean(a W z)."""
    z, x, a = torch.randn(5, 3), torch.randn(5, 2), torch.randn(2)
    last = nn.Linear(3, 2, bias=False)
    made = last(z)
    reconstruction, adversarial = (made - x).square().mean(), -(made * a).sum(1).mean()
    by_hand = 2 * (z @ last.weight.T - x).T @ z / 10, -a[:, None] * z.mean(0)[None]
    found = gradient_at(reconstruction, last.weight), gradient_at(adversarial, last.weight)
    assert all(torch.allclose(f, h, atol=1e-6) for f, h in zip(found, by_hand, strict=True))
    ratio = (by_hand[0].norm() / (by_hand[1].norm() + 1e-6)).item()
    assert adaptive_weight(*found, maximum=1e4).item() == pytest.approx(ratio, rel=1e-5)
    assert adaptive_weight(*found, maximum=ratio / 2).item() == pytest.approx(ratio / 2, rel=1e-5)
    assert adaptive_weight(found[0], torch.zeros(2, 3), maximum=3.0).item() == 3.0
    assert last.weight.grad is None
    (reconstruction + adversarial).backward()  # the graph is still there


def test_adaptive_terms_are_balanced_against_the_other_losses():
    last = nn.Linear(4, 4, bias=False)
    made = last(torch.randn(6, 4)).view(6, 1, 2, 2)
    other = made.square().mean()
    parts = {"a": Adversary(Judge(), weight=0.5, adaptive=1e4), "b": Adversary(Judge(), weight=0.25)}
    terms, weights = Adversaries(parts, AdamW()).against(made, other, last.weight, 0)
    norms = [gradient_at(loss, last.weight).norm().item() for loss in (other, terms["a"])]
    assert norms[1] == pytest.approx(0.5 * norms[0], rel=1e-4)
    assert weights["b"] == 0.25 and terms["b"].item() == pytest.approx(0.25 * -1.5 * made.mean().item(), rel=1e-4)


def test_each_side_has_gradient_from_its_own_loss_alone():
    part, media = Adversary(Judge()), torch.full((2, 1, 2, 2), 0.1)
    made = torch.zeros(2, 1, 2, 2, requires_grad=True)
    part.against(made).backward()
    assert part.network.scale.grad is None and made.grad.abs().sum() > 0
    made.grad = None
    part.judge(media, made)["loss"].backward()
    assert part.network.scale.grad is not None and made.grad is None
    part.network.scale.requires_grad_(False)
    part.against(made)
    assert not part.network.scale.requires_grad  # what was not trained before is not trained after


def test_start_and_ramp_are_counted_in_steps():
    part = Adversary(Judge(), weight=2.0, start=10, ramp=4)
    assert [part.weight_at(s) for s in (0, 9, 10, 11, 13, 14, 99)] == [0, 0, 0.5, 1.0, 2.0, 2.0, 2.0]
    assert Adversary(Judge(), weight=2.0, start=3).weight_at(3) == 2.0
    made = torch.zeros(1, 1, 2, 2)
    both = Adversaries({"late": part, "early": Adversary(Judge())}, AdamW())
    terms, _ = both.against(made, made.sum(), None, 9)
    assert list(terms) == ["early"] and part.network.calls == 0
    assert list(both.against(made, made.sum(), None, 10)[0]) == ["late", "early"]


@pytest.mark.parametrize(
    "wrong, word",
    [({"loss": "wgan"}, "hinge"), ({"weight": -1}, "weight"), ({"adaptive": 0}, "null"), ({"decay": 1.0}, "decay")],
)
def test_wrong_settings_are_refused_in_a_line(wrong, word):
    with pytest.raises(ValueError, match=word) as error:
        Adversary(Judge(), **wrong)
    assert "\n" not in str(error.value)


def test_no_adversary_and_a_negative_clip_are_refused():
    with pytest.raises(ValueError, match="discriminator=none"):
        Adversaries({}, AdamW())
    with pytest.raises(ValueError, match="clip"):
        Adversaries({"a": Adversary(Judge())}, AdamW(), clip=-1.0)
