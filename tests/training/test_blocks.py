"""Blocks that are compiled, or whose activations are computed twice, are the same blocks."""

from __future__ import annotations

import pytest
import torch
from resume_kit import CASES, different, last, run, state

from gentok.nn.block import Block
from gentok.nn.rope import rotation
from gentok.nn.transformer import Transformer
from gentok.rng import RowRNG
from gentok.training import blocks

VARIANTS = {
    "plain": ({}, {}),
    "adaln": ({"adaln": True}, {"vector": torch.randn(4, 32, generator=torch.Generator().manual_seed(1))}),
    "cross": ({"cross": True, "qk_norm": "cosine"}, {"context": torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(2))}),
}


def stack(name: str, rate: float) -> tuple[Transformer, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    network = Transformer(32, 3, 2, dropout=rate, **VARIANTS[name][0])
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network, VARIANTS[name][1]


def gradients(network: Transformer, given: dict, backward_passes: int = 1) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The output and all gradients; and how far the random numbers went."""
    x = torch.randn(4, 9, 32, generator=torch.Generator().manual_seed(3), requires_grad=True)
    network.zero_grad()
    rng = RowRNG(range(4))
    y = network(x, rotation(torch.arange(9.0)[:, None], head_width=16), rng=rng, **given)
    for n in range(backward_passes):
        y.square().sum().backward(retain_graph=n + 1 < backward_passes)
    return [y.detach(), x.grad, *(p.grad for p in network.parameters())], rng.uniform()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_activations_computed_twice_give_the_same_gradients(name, rate):
    network, given = stack(name, rate)
    kept = gradients(network, given, backward_passes=2)
    for block in network.blocks:
        block.recompute = True
    twice = gradients(network, given, backward_passes=2)
    assert all(map(torch.equal, kept[0], twice[0])) and torch.equal(kept[1], twice[1])


def test_recomputed_blocks_keep_their_input_alone():
    network, given = stack("plain", 0.2)

    def held(recompute: bool) -> int:
        sizes = []
        for block in network.blocks:
            block.recompute = recompute
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            network(torch.randn(4, 9, 32), rng=RowRNG(range(4)), **given)
        return sum(sizes)

    assert held(True) < held(False) / 4


def test_nothing_changes_outside_of_training(monkeypatch):
    monkeypatch.setattr("gentok.nn.block._compiled", lambda *a: pytest.fail("compiled"))
    monkeypatch.setattr("gentok.nn.block._recomputed", lambda *a: pytest.fail("recomputed"))
    network, given = stack("plain", 0.0)
    for block in network.blocks:
        block.compiler, block.recompute = "inductor", True
    with torch.no_grad():
        network(torch.randn(4, 9, 32), **given)
    network.eval()(torch.randn(4, 9, 32), **given)


EXACT = ["trainer.precision=32-true", "steps=3", "trainer.checkpoint_every=3"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["autoregressive from tokens", "flextok", "flextok with few patches", "xar from media", "xar with few vectors", "masked from media"],
)
def test_a_run_with_activations_computed_twice_is_the_run(root, name):
    folder = name.replace(" ", "_")
    kept = run(root, folder, CASES[name], *EXACT)
    twice = run(root, f"{folder}_twice", CASES[name], *EXACT, "trainer.checkpoint_activations=true")
    assert different(state(kept), state(twice)) == []


# ------------------------------------------------------------------------------------------------------------- compilation


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_blocks_are_compiled_whole_and_once_for_all(name):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    network, given = stack(name, 0.2)
    eager = gradients(network, given)
    for block in network.blocks:
        block.compiler = "aot_eager"
    compiled = gradients(network, given)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(eager[0], compiled[0])) and torch.equal(eager[1], compiled[1])
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] <= 2, counters
    assert not any("orig_mod" in key for key in network.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["trainer.checkpoint_activations=true"]])
def test_a_compiled_run_is_the_run_up_to_roundings(root, more):
    torch._dynamo.reset()
    words = [*CASES["autoregressive from tokens"], "generator.depth=2", *EXACT]
    eager, compiled = run(root, "eager", words, "overwrite=true"), run(root, f"compiled{len(more)}", words, "trainer.compile=true", *more)
    one, two = last(eager), last(compiled)
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for key in ("state_dict", "current_model_state"):
        assert all(torch.allclose(value, two[key][name], atol=1e-4, rtol=1e-3) for name, value in one[key].items())
    assert any(not torch.equal(value, two["current_model_state"][name]) for name, value in one["current_model_state"].items())


# ------------------------------------------------------------------------------------------------------------ what is said


class Plain(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("name", ["compile", "checkpoint_activations"])
def test_a_model_without_such_blocks_is_said(name):
    with pytest.raises(ValueError, match=f"trainer.{name}=true is of transformer blocks, and this tokenizer has none") as error:
        blocks.set_blocks(torch.nn.Linear(2, 2), {"accelerator": "cpu", name: True}, "tokenizer")
    assert "\n" not in str(error.value)


def test_a_machine_without_a_compiler_is_said(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler, and there is no no-such-compiler"):
        blocks.set_blocks(Plain(), {"accelerator": "cpu", "compile": True}, "generator")
