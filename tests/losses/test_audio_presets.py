"""The mixtures of the papers, as the configuration composes them."""

import pytest
import torch

from gentok.build import build
from gentok.cli import compose
from gentok.training.adversarial_task import build_adversaries


def composed(*overrides: str) -> dict:
    return compose("config", ["tokenizer=vqgan", "+tokenizer.sample_rate=24000", "paths.run=none", *overrides])


@pytest.mark.parametrize(
    "preset, parameters, settings",
    [
        ("ms_stft", 472_330, {"stft": (3.0, 3.0, True, "mean")}),
        ("dac", 41_105_770 + 1_413_990, {"period": (1.0, 2.0, False, "sum"), "bands": (1.0, 2.0, False, "sum")}),
        ("multi_period", 41_105_770, {"period": (1.0, 2.0, False, "sum")}),
    ],
)
def test_discriminators_have_the_weights_of_their_papers(preset, parameters, settings):
    with torch.device("meta"):
        adversaries = build_adversaries(composed(f"discriminator={preset}")["discriminator"], 1, [])
    assert sum(p.numel() for p in adversaries.parameters()) == parameters
    assert {n: (p.weight, p.features, p.relative, p.reduce) for n, p in adversaries.parts.items()} == settings


def test_encodec_s_balancer_names_every_loss_of_encodec():
    config = composed("losses=encodec", "discriminator=ms_stft", "balancer=encodec", "discriminator.adversaries.stft.network.filters=2")
    balancer, losses = build(config["balancer"]), build(config["tokenizer"]["losses"])
    adversaries = build_adversaries(config["discriminator"], 1, [])
    media = 0.1 * torch.randn(2, 1, 2400, generator=torch.Generator().manual_seed(0))
    made = (0.9 * media).requires_grad_()
    terms = {**losses(made, media), **adversaries.tokenizer_loss(made, media, made.sum(), None, 0, weighted=False)[0]}
    assert set(terms) == set(balancer.weights)
    loss, norms = balancer(terms, made)
    loss.backward()
    assert made.grad.isfinite().all() and all(n > 0 for n in norms.values())
    assert [config["losses"]["wave"], config["losses"]["distances"]["mel"]["weight"]] == [0.1, 1.0]


def test_dac_s_mel_has_the_weight_of_its_paper_and_plain_training_has_no_balancer():
    config = composed("losses=dac")
    assert config["losses"]["distances"]["mel"]["weight"] == 15.0 and config["balancer"] is None
