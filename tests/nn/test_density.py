"""Token density: the plan and its rates, uniform attention, few tokens and all again, what begins as the identity, and what it costs."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gentok.nn import density_blocks
from gentok.nn.density import Density
from gentok.nn.density_blocks import PoolBlock, RecoverBlock, Side, begin, blocks_of, nearest, pooled, sparse_group
from gentok.nn.registers import RegisterDecoder
from gentok.nn.transformer import feed_forward_width

WIDTH, HEADS = 16, 2
SETTINGS = (WIDTH, HEADS, 32, "swiglu", True)


# ------------------------------------------------------------------------------------------------------ the plan and its rates


def test_the_papers_network_has_28_blocks():
    plan = Density(pool=2, groups=4, sparse=3).plan(28)
    group = ("gather", "sparse", "sparse", "sparse", "recover", "dense")
    assert plan == ("pool", "pool", *group * 4, "dense", "dense")


def test_the_rate_is_constant_for_a_quarter_and_then_grows_in_a_line():
    density = Density(rate=0.4, noise_rate=0.9, levels=1000)
    t = torch.tensor([0.0, 0.1, 0.2499, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    found = torch.tensor(density.rates)[density.level(t)]
    line = 0.4 + (0.9 - 0.4) * (t - 0.25) / 0.75
    torch.testing.assert_close(found.double(), torch.where(t < 0.25, 0.4, line), atol=1e-3, rtol=0)
    assert Density(rate=0.4, noise_rate=0.9, levels=2).rates == pytest.approx((0.4, 0.525, 0.775))
    assert Density(rate=0.4).level(t).tolist() == [0] * 7


def test_few_tokens_are_the_share_that_the_rate_leaves():
    assert Density(rate=0.75).small((8, 8)) == (4, 4) and Density(rate=0.9375).small((16, 8)) == (4, 2)
    assert Density(rate=0.99).small((4, 4)) == (1, 1) and Density(rate=0.0).small((3, 5)) == (3, 5)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Density(rate=1.0), "rate"),
        (lambda: Density(groups=0), "groups"),
        (lambda: Density(rate=0.9, noise_rate=0.5), "set it to 0.9 or more"),
        (lambda: Density(pool=1).plan(6), "7 blocks, and the network has 6"),
        (lambda: Density(rate=0.05).check([(4, 4), (2, 2)]), "leaves all tokens of a grid of 4 x 4 or 2 x 2"),
    ],
)
def test_bad_settings_have_a_line(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------- pooling and few tokens


def uniform(block: PoolBlock, x: torch.Tensor) -> torch.Tensor:
    """Attention with the same score for every pair, written out."""
    value = block.attention.value(x)
    scores = torch.zeros(len(x), x.shape[1], x.shape[1], dtype=x.dtype)
    return block.attention.out(scores.softmax(-1) @ value)


def test_a_pooling_block_is_uniform_attention():
    block = PoolBlock(*SETTINGS, False, False, 0.0, True).double()
    x = torch.randn(3, 6, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(block.attention(x), uniform(block, x))
    assert not torch.allclose(block.attention(x[:, :-1]), uniform(block, x)[:, :-1])  # a token that it forgets is found out


def test_few_tokens_are_adaptive_means_and_come_back_to_the_nearest():
    x = torch.randn(2, 6 * 4 + 9 + 2, 3, dtype=torch.float64)
    few = pooled(x, [(6, 4), (3, 3)], [(4, 2), (2, 2)])
    image = x[:, :24].transpose(1, 2).unflatten(2, (6, 4))
    wanted = nn.functional.adaptive_avg_pool2d(image, (4, 2))
    torch.testing.assert_close(few[:, :8], wanted.flatten(2).transpose(1, 2))
    assert torch.equal(few[:, 12:], x[:, 33:]) and few.shape[1] == 8 + 4 + 2
    up = few[:, nearest([(6, 4), (3, 3)], [(4, 2), (2, 2)], x.device)]
    torch.testing.assert_close(up[:, :24].transpose(1, 2).unflatten(2, (6, 4)), nn.functional.interpolate(wanted, (6, 4), mode="nearest"))
    many = torch.randn(2, 3 * 4, 5)
    each = pooled(many, [(2, 2)] * 3, [(1, 1)] * 3)  # groups that are all alike, at once
    torch.testing.assert_close(each, many.unflatten(1, (3, 4)).mean(2))


# ------------------------------------------------------------------------------------------------------------ the beginning


def group_of(zero_gates: bool, adaln: int) -> nn.ModuleList:
    """The blocks of one group, none of whose weights is zero but what `begin` makes so."""
    blocks = blocks_of(Density(pool=0, sparse=1), 4, *SETTINGS, adaln, False, 0.0, True)[:3]
    for p in blocks.parameters():
        nn.init.normal_(p, std=0.3)
    if zero_gates:
        for block in blocks:
            nn.init.zeros_(block.modulation.weight)
            nn.init.zeros_(block.modulation.bias)
    begin(blocks, zero_gates)
    return blocks


def through(blocks: nn.ModuleList, x: torch.Tensor, vector: torch.Tensor | None) -> torch.Tensor:
    return sparse_group(list(blocks), x, [(4, 4)], [(2, 2)], Side((16, 0)), Side((4, 0)), vector=vector)


@pytest.mark.parametrize("zero_gates, adaln", [(True, 2), (False, 2), (False, 0)])
def test_recovery_begins_as_the_identity_and_all_of_it_is_trained(zero_gates, adaln):
    blocks, x = group_of(zero_gates, adaln), torch.randn(3, 16 + 2, WIDTH)
    vector = torch.randn(3, WIDTH) if adaln else None
    assert torch.equal(through(blocks, x, vector), x)
    for weight in (blocks[2].coarse.weight, *(() if zero_gates else (blocks[2].attention.out.weight, blocks[2].mlp.out.weight))):
        with torch.no_grad():  # any of them makes it another function
            weight[0, 0] += 1.0
            assert not torch.equal(through(blocks, x, vector), x)
            weight[0, 0] -= 1.0
    optimizer, target = torch.optim.SGD(blocks.parameters(), lr=0.1), torch.randn_like(x)
    before = [p.detach().clone() for p in blocks.parameters()]
    for _ in range(6):
        optimizer.zero_grad()
        (through(blocks, x, vector) - target).square().sum().backward()
        nn.utils.clip_grad_norm_(blocks.parameters(), 1.0)
        optimizer.step()
    still = [name for (name, p), old in zip(blocks.named_parameters(), before) if torch.equal(p, old)]
    assert still == []


@pytest.mark.parametrize("flow", [True, False])
def test_a_decoder_begins_as_one_without_its_sparse_blocks(flow):
    decoder = decoder_of(Density(pool=1, sparse=1), 5, flow)
    with torch.no_grad():  # such that the rest of it does something
        for p in (*decoder.head.parameters(), *decoder.transformer.blocks[0].parameters(), *decoder.transformer.blocks[4].parameters()):
            p.normal_(std=0.3)
    before = run(decoder)
    for block in decoder.transformer.blocks:
        if isinstance(block, RecoverBlock):
            block.forward = lambda x, context, up, **given: x
    torch.testing.assert_close(run(decoder), before)


# ----------------------------------------------------------------------------------------------------------------- its cost


GRID, REGISTERS, ROWS = (8, 8), 6, 2


def decoder_of(density: Density | None, depth: int, flow: bool = True) -> RegisterDecoder:
    torch.manual_seed(0)
    return RegisterDecoder(5, 4, GRID, REGISTERS, width=WIDTH, depth=depth, head_width=8, flow=flow, density=density)


def run(decoder: RegisterDecoder, t: float = 0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    registers = decoder.registers(torch.randn(ROWS, REGISTERS, 5, generator=generator), torch.ones(ROWS, REGISTERS, dtype=torch.bool))
    noised = torch.randn(ROWS, 64, 4, generator=generator) if decoder.flow else None
    return decoder(registers, GRID, noised, torch.full((ROWS,), t) if decoder.flow else None)


def counted(decoder: RegisterDecoder, t: float) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(decoder, t)
    return counter.get_total_flops() // ROWS


def formula(density: Density | None, depth: int, t: float) -> int:
    """Floating-point operations of one row of `decoder_of`: two for every product of two numbers."""
    patches, d, hidden = 64, WIDTH, feed_forward_width(WIDTH)
    plan = ("dense",) * depth if density is None else density.plan(depth)
    few = 0
    if density is not None:
        h, w = density.small(GRID, int(density.level(torch.tensor([t]))))
        few = h * w
    others = REGISTERS if density is None or density.registers else 0
    n, s, q = patches + REGISTERS, few + others, patches + others

    def block(queries: int, keys: int) -> int:
        return 2 * queries * d * (2 * d + 3 * hidden) + 2 * keys * 2 * d * d + 4 * queries * keys * d

    cost = {
        "pool": 2 * 2 * d * d + 2 * n * 3 * d * hidden, "dense": block(n, n), "gather": block(s, n), "sparse": block(s, s),
        "recover": block(q, s) + 2 * patches * 2 * d * d,
    }  # fmt: skip
    around = 2 * patches * 2 * 4 * d + 2 * REGISTERS * 5 * d + 2 * d * (256 + d) + 2 * d * 2 * d  # stem, head, inward, time, modulation
    return sum(cost[kind] for kind in plan) + len(plan) * 2 * d * 12 * d + around


DENSITIES = [None, Density(0.75, sparse=2), Density(0.75, sparse=2, registers=False), Density(0.4375, 0.9375, levels=3, sparse=2, groups=2)]


@pytest.mark.parametrize("density", DENSITIES, ids=str)
def test_operations_are_what_the_formula_says(density):
    depth = 12
    decoder = decoder_of(density, depth)
    for t in (0.1, 0.4, 0.7, 1.0):
        assert counted(decoder, t) == formula(density, depth, t)


def test_operations_fall_as_the_schedule_says():
    density = DENSITIES[3]
    decoder, dense = decoder_of(density, 12), decoder_of(None, 12)
    costs = [counted(decoder, t) for t in (0.1, 0.4, 0.7, 1.0)]  # of 6, 6, 4 and 3 tokens a side
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == 3 and costs[0] < counted(dense, 0.1)
    decoder.transformer.density = Density(0.4375, sparse=2, groups=2)  # a schedule that is forgotten is found out
    assert counted(decoder, 1.0) != formula(density, 12, 1.0)


def test_rows_at_other_times_do_not_change_a_row():
    decoder = decoder_of(DENSITIES[3], 12).double()
    with torch.no_grad():
        for p in decoder.parameters():
            p.normal_(std=0.2)
    for block in decoder.transformer.blocks:
        assert isinstance(block, density_blocks.TransformerBlock)
    t = torch.tensor([0.95, 0.1, 0.6, 0.1, 0.3], dtype=torch.float64)
    registers, noised = torch.randn(5, REGISTERS, WIDTH, dtype=torch.float64), torch.randn(5, 64, 4, dtype=torch.float64)
    together = decoder(registers, GRID, noised, t)
    for row in range(5):
        alone = decoder(registers[[row]], GRID, noised[[row]], t[[row]])
        torch.testing.assert_close(together[[row]], alone, atol=1e-9, rtol=1e-9)
    other = decoder(registers[[0]], GRID, noised[[0]], t[[1]])
    assert not torch.allclose(together[[0]], other, atol=1e-3)


def test_processes_that_share_blocks_call_them_as_often(monkeypatch):
    """Whatever times their rows have: a block whose weights are spread gathers them when it is called."""
    decoder = decoder_of(DENSITIES[3], 12)
    monkeypatch.setattr("gentok.nn.density_transformer.world_size", lambda: 2)
    calls = []
    decoder.transformer.blocks[1].register_forward_hook(lambda *_: calls.append(1))
    registers, noised = torch.randn(3, REGISTERS, WIDTH), torch.randn(3, 64, 4)
    for t in ([0.1, 0.1, 0.1], [0.1, 0.5, 0.9], [0.9, 0.3, 0.9]):
        calls.clear()
        shared = decoder.train()(registers, GRID, noised, torch.tensor(t))
        assert len(calls) == 4
        torch.testing.assert_close(shared, decoder.eval()(registers, GRID, noised, torch.tensor(t)))
    decoder.train()(registers, GRID, noised, torch.full((3,), 0.1)).sum().backward()
    assert all(p.grad is not None for p in decoder.transformer.parameters())


def test_it_is_measured_without_weights():
    with torch.device("meta"):
        decoder = decoder_of(DENSITIES[3], 12)
        registers, noised, t = torch.empty(3, REGISTERS, WIDTH), torch.empty(3, 64, 4), torch.empty(3)
        assert decoder(registers, GRID, noised, t).shape == noised.shape
