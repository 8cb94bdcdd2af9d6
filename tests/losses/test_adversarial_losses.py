"""The adversarial terms are their formulas, reach whom they should, and start when they should."""

import math

import pytest
import torch
from torch import nn

from gentok.losses.adversarial import Adversaries, Adversary
from gentok.losses.adversarial_terms import (
    LOSSES,
    adaptive_weight,
    feature_matching,
    gradient_at,
    hinge,
    least_squares,
    lecam,
    non_saturating,
)
from gentok.training.optim import AdamW


class Discriminator(nn.Module):
    """A logit per item: a weighted mean of its pixels."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.calls = 0

    def forward(self, media):
        self.calls += 1
        return self.scale * media.flatten(1).mean(1), []


def test_the_losses_are_their_formulas():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.25])
    assert hinge(real, fake).item() == pytest.approx(0.5 * (0 + 0.5 + 2) / 3 + 0.5 * (0 + 1.25) / 2)
    assert hinge(None, fake).item() == pytest.approx(2.75 / 2)

    def softplus(x):
        return math.log1p(math.exp(x))

    expected = 0.5 * (softplus(-2) + softplus(-0.5) + softplus(1)) / 3 + 0.5 * (softplus(-3) + softplus(0.25)) / 2
    assert non_saturating(real, fake).item() == pytest.approx(expected)
    assert non_saturating(None, fake).item() == pytest.approx((softplus(3) + softplus(-0.25)) / 2)
    assert least_squares(real, fake).item() == pytest.approx(0.5 * (1 + 0.25 + 4) / 3 + 0.5 * (9 + 0.0625) / 2)
    assert least_squares(None, fake).item() == pytest.approx((16 + 0.5625) / 2)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_down_each_loss_goes_the_right_way(loss):
    """The discriminator raises D(x) and lowers D(x'), the tokenizer raises D(x')."""
    real, fake = torch.full((3,), 0.25, requires_grad=True), torch.full((3,), 0.25, requires_grad=True)
    LOSSES[loss](real, fake).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()
    fake.grad = None
    LOSSES[loss](None, fake).backward()
    assert (fake.grad < 0).all()


def test_lecam_is_its_formula_and_its_averages_move_by_decay():
    real, fake = torch.tensor([1.0, -1.0]), torch.tensor([0.5, -2.0])
    assert lecam(real, fake, torch.tensor([0.25, -0.5])).item() == pytest.approx((1.5**2 + 0) / 2 + (0 + 2.25**2) / 2)
    part = Adversary(Discriminator(), lecam=2.0, decay=0.75)
    media, made = torch.full((2, 1, 2, 2), 0.4), torch.full((2, 1, 2, 2), -0.2)
    first = part.discriminator_loss(media, made)["loss"]
    assert part.anchors.tolist() == pytest.approx([0.6, -0.3])  # it starts at the first batch
    assert first.item() == pytest.approx(hinge(torch.tensor([0.6]), torch.tensor([-0.3])).item() + 2 * (0.9**2 + 0.9**2), rel=1e-5)
    part.discriminator_loss(made, media)
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
    parts = {"a": Adversary(Discriminator(), weight=0.5, adaptive=1e4), "b": Adversary(Discriminator(), weight=0.25)}
    terms, weights = Adversaries(parts, AdamW()).tokenizer_loss(made, None, other, last.weight, 0)
    norms = [gradient_at(loss, last.weight).norm().item() for loss in (other, terms["adversarial_a"])]
    assert norms[1] == pytest.approx(0.5 * norms[0], rel=1e-4)
    assert weights["b"] == 0.25 and terms["adversarial_b"].item() == pytest.approx(0.25 * -1.5 * made.mean().item(), rel=1e-4)


def test_each_side_has_gradient_from_its_own_loss_alone():
    part, media = Adversary(Discriminator()), torch.full((2, 1, 2, 2), 0.1)
    made = torch.zeros(2, 1, 2, 2, requires_grad=True)
    part.tokenizer_loss(made)["adversarial"].backward()
    assert part.network.scale.grad is None and made.grad.abs().sum() > 0
    made.grad = None
    part.discriminator_loss(media, made)["loss"].backward()
    assert part.network.scale.grad is not None and made.grad is None
    part.network.scale.requires_grad_(False)
    part.tokenizer_loss(made)
    assert not part.network.scale.requires_grad  # what was not trained before is not trained after


def test_start_and_ramp_are_counted_in_steps():
    part = Adversary(Discriminator(), weight=2.0, start=10, ramp=4)
    assert [part.weight_at(s) for s in (0, 9, 10, 11, 13, 14, 99)] == [0, 0, 0.5, 1.0, 2.0, 2.0, 2.0]
    assert Adversary(Discriminator(), weight=2.0, start=3).weight_at(3) == 2.0
    made = torch.zeros(1, 1, 2, 2)
    both = Adversaries({"late": part, "early": Adversary(Discriminator())}, AdamW())
    terms, _ = both.tokenizer_loss(made, None, made.sum(), None, 9)
    assert list(terms) == ["adversarial_early"] and part.network.calls == 0
    assert list(both.tokenizer_loss(made, None, made.sum(), None, 10)[0]) == ["adversarial_late", "adversarial_early"]


class Discriminators(nn.Module):
    """Two discriminators of another size each, with two layers of features."""

    def __init__(self):
        super().__init__()
        self.scales = nn.Parameter(torch.tensor([0.5, 2.0]))

    def forward(self, media):
        layers = [[scale * media, (scale * media).square().mean((2, 3))] for scale in self.scales]
        return [media[:, 0] * self.scales[0], (self.scales[1] * media).mean((1, 2, 3))], layers


@pytest.mark.parametrize("reduce, factor", [("mean", 1.0), ("sum", 2.0)])
def test_several_discriminators_in_one_network_are_averaged_or_added(reduce, factor):
    part, media, made = Adversary(Discriminators(), reduce=reduce, lecam=0.5), torch.rand(3, 1, 4, 4), torch.rand(3, 1, 4, 4)
    (a, b), (c, d) = part.network(media)[0], part.network(made)[0]
    both = (hinge(a, c) + hinge(b, d)) / 2
    found = part.discriminator_loss(media, made)
    anchors = torch.stack([(x.mean() + y.mean()) / 2 for x, y in ((a, b), (c, d))])
    torch.testing.assert_close(torch.stack([found["real"], found["fake"]]), anchors)
    torch.testing.assert_close(part.anchors, anchors)
    regularised = (lecam(a, c, anchors) + lecam(b, d, anchors)) / 2
    torch.testing.assert_close(found["loss"], factor * (both + 0.5 * regularised))
    torch.testing.assert_close(part.tokenizer_loss(made)["adversarial"], factor * (hinge(None, c) + hinge(None, d)) / 2)


@pytest.mark.parametrize("relative", [False, True])
def test_feature_matching_is_its_formula_and_reaches_the_reconstruction_alone(relative):
    """Of two discriminators with two layers each: four layers, each of which weighs the same however many values it has."""
    part, media = Adversary(Discriminators(), features=3.0, relative=relative), torch.rand(3, 1, 4, 4, requires_grad=True)
    made = torch.rand(3, 1, 4, 4, requires_grad=True)
    layers = [(x, y) for a, b in zip(part.network(made)[1], part.network(media)[1], strict=True) for x, y in zip(a, b, strict=True)]
    expected = sum((x - y).abs().mean() / (y.abs().mean() if relative else 1) for x, y in layers) / 4
    found = part.tokenizer_loss(made, media)["features"]
    torch.testing.assert_close(found, expected)
    found.backward()
    assert media.grad is None and part.network.scales.grad is None and made.grad.abs().sum() > 0
    summed = Adversary(Discriminators(), features=3.0, relative=relative, reduce="sum").tokenizer_loss(made, media)["features"]
    torch.testing.assert_close(summed, 4 * found)
    terms, _ = Adversaries({"a": part}, AdamW()).tokenizer_loss(made, media, made.sum(), None, 0)
    torch.testing.assert_close(terms["features_a"], 3 * found)


def test_relative_features_do_not_know_the_scale_of_a_layer():
    real, made = [torch.randn(2, 3), torch.randn(2, 8)], [torch.randn(2, 3), torch.randn(2, 8)]
    scaled = [[100 * x[0], x[1]] for x in (made, real)]
    torch.testing.assert_close(feature_matching(*scaled, relative=True), feature_matching(made, real, relative=True))
    assert feature_matching(*scaled) > 10 * feature_matching(made, real)


@pytest.mark.parametrize(
    "wrong, word",
    [
        ({"loss": "wgan"}, "hinge"),
        ({"reduce": "max"}, "mean or sum"),
        ({"features": -1.0}, "features"),
        ({"weight": -1}, "weight"),
        ({"adaptive": 0}, "above 0"),
        ({"decay": 1.0}, "decay"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(wrong, word):
    with pytest.raises(ValueError, match=word) as error:
        Adversary(Discriminator(), **wrong)
    assert "\n" not in str(error.value)


def test_no_adversary_and_a_negative_clip_are_refused():
    with pytest.raises(ValueError, match="discriminator=none"):
        Adversaries({}, AdamW())
    with pytest.raises(ValueError, match="clip"):
        Adversaries({"a": Adversary(Discriminator())}, AdamW(), clip=-1.0)
