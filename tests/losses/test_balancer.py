"""The balancer: shares of the gradient whatever a loss's scale, averages without a start, and commitment that stays outside."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from balancer_kit import WEIGHTS, Codec, batches, descend, gradients, losses

from gentok.losses.balancer import Balancer

HERE = Path(__file__).parent


def differ(ours, theirs, tolerance: float = 1e-5) -> bool:
    return any(
        not torch.allclose(a, b, atol=tolerance, rtol=1e-4) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("scale", [1e3, 0.02])
def test_the_scale_of_a_loss_changes_no_gradient(scale):
    """The mutant: a plain weighted sum, whose gradients it changes."""
    assert not differ(gradients(Balancer(WEIGHTS)), gradients(Balancer(WEIGHTS), scale))

    def weighted_sum(terms, made):
        return sum(WEIGHTS.get(name, 1.0) * term for name, term in terms.items()), {}

    assert differ(gradients(weighted_sum, data=batches(1)), gradients(weighted_sum, scale, data=batches(1)))


def by_hand(decay: float, total: float, correct: bool = True, inside: bool = False) -> list[list[torch.Tensor]]:
    """The formula, by a loop; mutants: averages that begin at 0 without a correction, commitment among the balanced."""
    out, network, average, seen = [], Codec(), {}, 0.0
    weights = {**WEIGHTS, **({"commitment": 1.0} if inside else {})}
    for x in batches():
        made, commitment = network(x)
        seen = decay * seen + (1 - decay)
        sent = torch.zeros_like(made)
        for name, loss in losses(made, x).items():
            (g,) = torch.autograd.grad(loss, made, retain_graph=True)
            average[name] = decay * average.get(name, 0.0) + (1 - decay) * g.flatten(1).norm(dim=1).mean()
            sent += weights[name] / sum(weights.values()) * total * g / (average[name] / (seen if correct else 1.0))
        network.zero_grad()
        made.backward(sent, retain_graph=True)
        if inside:  # at the latent, where it is the only one
            average["c"] = commitment.detach()
            (commitment / (4 * average["c"])).backward()
        else:
            commitment.backward()
        out.append([p.grad.clone() for p in network.parameters()])
        descend(network)
    return out


@pytest.mark.parametrize("decay, total", [(0.999, 1.0), (0.5, 0.3)])
def test_it_is_the_formula(decay, total):
    """Over several steps, of which each depends on the averages of those before it."""
    found = gradients(Balancer(WEIGHTS, total, decay))
    assert not differ(found, by_hand(decay, total))
    assert differ(found, by_hand(decay, total, correct=False), 1e-3)
    assert differ(found, by_hand(decay, total, inside=True), 1e-3)


def test_a_weight_is_a_share_of_the_gradient():
    """In the first step exactly: an item's part of the balanced gradient has the mean norm R w / sum of w."""
    x = batches(1)[0]
    made = Codec()(x)[0].detach().requires_grad_()
    for weights, share in ((WEIGHTS, 0.75 * 2), ({**WEIGHTS, "absent": 10.0}, 0.75 * 2)):
        terms = losses(made, x)
        both = torch.autograd.grad(Balancer(weights, total=2.0)(terms, made)[0], made, retain_graph=True)[0]
        g = torch.autograd.grad(terms["b"], made)[0]
        rest = both - 0.5 * g / g.flatten(1).norm(dim=1).mean()
        assert rest.flatten(1).norm(dim=1).mean().item() == pytest.approx(share, rel=1e-5)


def test_the_value_is_that_of_the_terms_under_their_factors():
    x = batches(1)[0]
    made, commitment = Codec()(x)
    terms = losses(made, x)
    loss, norms = Balancer(WEIGHTS)({**terms, "commitment": commitment}, made)
    expected = sum(WEIGHTS[k] / 4 / norms[k] * terms[k] for k in terms) + commitment
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_ramp_grows_a_share_from_nothing():
    x = batches(1)[0]
    made = Codec()(x)[0].detach().requires_grad_()

    def sent(weights, ramps=None):
        terms = {k: v for k, v in losses(made, x).items() if k in weights}
        return torch.autograd.grad(Balancer(weights)(terms, made, ramps)[0], made)[0]

    torch.testing.assert_close(sent(WEIGHTS, {"b": 0.0}), sent({"a": 3.0}))
    torch.testing.assert_close(sent(WEIGHTS, {"b": 0.5}), sent({"a": 3.0, "b": 0.5}))


def test_accumulated_batches_send_what_one_batch_sends():
    """Where averages do not move (decay 0 would: here all batches have the same norms)."""
    x = batches(1)[0]
    whole, parts = Codec(), Codec()

    def step(network, x, balancer, accumulate):
        made, commitment = network(x)
        (balancer({**losses(made, x), "commitment": commitment}, made, None, accumulate)[0] / accumulate).backward()

    step(whole, torch.cat([x, x]), Balancer(WEIGHTS), 1)
    balancer = Balancer(WEIGHTS)
    for _ in range(2):
        step(parts, x, balancer, 2)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)


def test_going_on_from_its_state_is_never_having_stopped():
    """The mutant: averages that begin anew."""
    network, first, again = Codec(), Balancer(WEIGHTS), Balancer(WEIGHTS)
    whole = gradients(Balancer(WEIGHTS))
    gradients(first, network=network, data=batches()[:2])
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    rest = [gradients(b, network=copy.deepcopy(network), data=batches()[2:]) for b in (again, Balancer(WEIGHTS))]
    assert all(torch.equal(a, b) for x, y in zip(whole[2:], rest[0], strict=True) for a, b in zip(x, y, strict=True))
    assert differ(whole[2:], rest[1], 1e-4)


def test_two_processes_send_what_one_sends(tmp_path):
    path = os.pathsep.join([str(HERE.parent / "training"), str(HERE.parents[1])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(HERE / "balancer_kit.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{r}.pt") for r in range(2))
    assert all(torch.equal(first["state"][k], second["state"][k]) for k in WEIGHTS)
    assert not differ(first["gradients"], second["gradients"], 0.0)
    assert not differ(gradients(Balancer(WEIGHTS)), first["gradients"])


@pytest.mark.parametrize(
    "weights, word",
    [({"a": 1.0}, "'b' passes through"), ({**WEIGHTS, "commitment": 1.0}, "does not pass"), ({"c": 1.0}, "'a' passes")],
)
def test_a_loss_on_the_wrong_side_is_refused_in_one_line(weights, word):
    x = batches(1)[0]
    made, commitment = Codec()(x)
    with pytest.raises(ValueError, match=word) as error:
        Balancer(weights)({**losses(made, x), "commitment": commitment}, made)
    assert "\n" not in str(error.value)


def test_wrong_settings_and_nothing_to_balance_are_refused():
    for wrong in ({"weights": {}}, {"weights": {"a": -1.0}}, {"weights": WEIGHTS, "decay": 1.0}, {"weights": WEIGHTS, "total": 0.0}):
        with pytest.raises(ValueError, match="a balancer needs|Balancer: "):
            Balancer(**wrong)
    with pytest.raises(ValueError, match="with the quotes"):
        Balancer("mel:1.0")  # what a shell leaves of {wave:0.1,mel:1.0}
    with pytest.raises(ValueError, match="none of the losses"):
        Balancer(WEIGHTS)({"commitment": torch.zeros((), requires_grad=True) * 1}, torch.zeros(1, 1, 2, requires_grad=True))
