"""Convolutions over time: the padding of the encodec package, exact lengths, and chunks that give what the whole gives."""

from __future__ import annotations

import pytest
import torch

from gentok.nn.conv1d import Conv, Transposed, pad
from gentok.nn.mimi import WindowTransformer
from gentok.nn.recurrence import LSTM, RecentKeys, WindowedAttention
from gentok.nn.seanet import SEANetDecoder, SEANetEncoder
from gentok.nn.snake import Snake

SMALL = {"width": 8, "filters": 4, "ratios": (3, 2)}
CAUSAL = {
    "zero": {},
    "reflect": {"padding": "reflect"},
    "snake": {"activation": "snake", "memory": None, "units": 3, "shortcut": "identity"},
    "attention": {"memory": "attention", "heads": 2, "window": 5},
    "attention_reflect": {"memory": "attention", "heads": 2, "window": 5, "padding": "reflect"},
    "plain": {"weight_norm": False, "units": 2, "padding": "reflect", "memory_layers": 1},
}


def network(cls=SEANetEncoder, **options):
    """In float64, with every parameter away from its start."""
    torch.manual_seed(0)
    model = cls(**{**SMALL, **options}).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def chunks(total: int, largest: int, seed: int) -> list[int]:
    """Random sizes from 0 up that sum to `total`."""
    generator, sizes = torch.Generator().manual_seed(seed), []
    while sum(sizes) < total:
        sizes.append(min(int(torch.randint(largest + 1, (), generator=generator)), total - sum(sizes)))
    return sizes


def streamed(model, x, sizes):
    state = model.init_state()
    parts = [model.step(part, state) for part in x.split(sizes, 2)]
    return torch.cat([*parts, model.step(x[..., :0], state, last=True)], 2)


def streams_as_the_whole(model, inputs: int, totals, seeds=range(3), largest: int = 9) -> None:
    """the chunks' outputs, one behind the other, are the output of the whole, whatever the sizes."""
    for total in totals:
        x = torch.randn(2, inputs, total, generator=torch.Generator().manual_seed(total)).double()
        whole = model(x)
        for seed in seeds:
            parts = streamed(model, x, chunks(total, largest, seed))
            assert parts.shape == whole.shape, (total, parts.shape, whole.shape)
            torch.testing.assert_close(parts, whole, atol=1e-10, rtol=0)


# ------------------------------------------------------------------------------------------------------------------ padding


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_padding_is_that_of_the_encodec_package(mode):
    theirs = pytest.importorskip("encodec.modules.conv")
    for length in (1, 2, 3, 5, 6, 7, 12):
        x = torch.arange(1.0, length + 1).expand(1, 1, -1)
        for left, right in ((0, 0), (6, 0), (3, 2), (0, 4), (5, 5)):
            expected = theirs.pad1d(x, (left, right), "constant" if mode == "zero" else "reflect")
            assert torch.equal(pad(x, left, right, mode), expected), (length, left, right)


@pytest.mark.parametrize("padding", ["zero", "reflect"])
@pytest.mark.parametrize("causal", [True, False])
def test_lengths_are_exact_whatever_the_stride_and_the_length(causal, padding):
    for kernel, stride, dilation in ((7, 1, 1), (4, 2, 1), (10, 5, 1), (5, 3, 1), (3, 1, 4), (2, 2, 1)):
        conv = Conv(1, 2, kernel, stride, dilation, causal, padding)
        back = Transposed(2, 1, kernel, stride, causal)
        for length in range(1, 14):
            y = conv(torch.randn(1, 1, length))
            assert y.shape == (1, 2, -(-length // stride)) and back(y).shape == (1, 1, y.shape[2] * stride)


def looks_ahead(model, inputs: int, hop: int, frames: int = 8) -> int:
    """How many samples behind a frame's last one change the frame, at most; 0 where it is causal."""
    x = torch.randn(1, inputs, frames * hop, dtype=torch.float64)
    first = model(x)
    ahead = 0
    for at in range(frames * hop):
        y = x.clone()
        y[..., at:] += 1
        changed = (model(y) != first).any(1)[0].nonzero()
        if len(changed):
            ahead = max(ahead, at - (int(changed[0]) + 1) * hop + 1)
    return ahead


@pytest.mark.parametrize("name", ["zero", "snake", "attention"])
def test_a_causal_encoder_knows_nothing_of_what_follows_a_frame(name):
    assert looks_ahead(network(**CAUSAL[name]), 1, 6) == 0


def test_the_test_of_causality_catches_a_network_that_looks_ahead():
    assert looks_ahead(network(causal=False), 1, 6) > 0
    assert looks_ahead(network(memory="attention", heads=2, causal=False), 1, 6) > 6


def test_the_dilation_of_unit_j_is_base_to_the_j():
    model = network(units=3, dilation_base=3)
    assert [model.layers[i].block[1].conv.dilation for i in (1, 2, 3)] == [(1,), (3,), (9,)]
    assert [layer.stride for layer in model.layers if isinstance(layer, Conv)] == [1, 2, 3, 1]  # ratios are in the at least 1


def test_snake_is_its_formula_and_learns_a_frequency_per_channel():
    act = Snake(3)
    act.alpha.data = torch.tensor([0.5, 1.0, 2.0]).view(1, 3, 1)
    x = torch.randn(2, 3, 5)
    expected = torch.stack([x[:, c] + torch.sin(a * x[:, c]) ** 2 / a for c, a in enumerate((0.5, 1.0, 2.0))], 1)
    torch.testing.assert_close(act(x), expected)
    act(x).sum().backward()
    assert (act.alpha.grad != 0).all()


# ------------------------------------------------------------------------------------------------------------------ streams


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("cls", [SEANetEncoder, SEANetDecoder])
def test_chunks_give_what_the_whole_gives(name, cls):
    model = network(cls, **CAUSAL[name])
    totals = (1, 2, 5, 6, 7, 13, 41, 90) if cls is SEANetEncoder else (1, 2, 6, 7, 8, 21)
    streams_as_the_whole(model, 1 if cls is SEANetEncoder else 8, totals)


@pytest.mark.parametrize("layer", [lambda: Conv(3, 4, 5, 3, padding="reflect"), lambda: Conv(3, 4, 4, 3), lambda: Conv(3, 4, 3, dilation=4),
                                   lambda: Conv(3, 4, 4, 2, padding="replicate"), lambda: Transposed(3, 3, 4, 2, groups=3, bias=False),
                                   lambda: Transposed(3, 4, 7, 2), lambda: Transposed(3, 4, 3, 3), lambda: LSTM(3, 2),
                                   lambda: WindowedAttention(4, 2, 2, window=1),
                                   lambda: WindowTransformer(4, 2, 1, 8, window=3, scale=0.5)])  # fmt: skip
def test_chunks_of_any_layer_give_what_the_whole_gives(layer):
    torch.manual_seed(1)
    model = layer().double().eval()
    inputs = 4 if isinstance(model, WindowedAttention | WindowTransformer) else 3
    streams_as_the_whole(model, inputs, range(1, 16), seeds=(0,), largest=4)


class KeepsTooLittle(Conv):
    def step(self, x, state, last=False):
        y = super().step(x, state, last)
        state.held = state.held[..., 1:]
        return y


class WithoutPaddingAtTheStart(Conv):
    def step(self, x, state, last=False):
        state.begun = True
        return super().step(x, state, last)


class ReflectsTheFirstChunkAlone(Conv):
    def step(self, x, state, last=False):
        if x.shape[2] and not state.begun:
            x, state.begun = pad(x, self.around, 0, self.padding), True
        return super().step(x, state, last)


class DropsTheLastWindow(Conv):
    def step(self, x, state, last=False):
        return super().step(x, state, last and not state.begun)


@pytest.mark.parametrize("wrong", [KeepsTooLittle, WithoutPaddingAtTheStart, ReflectsTheFirstChunkAlone, DropsTheLastWindow])
def test_comparing_chunks_with_the_whole_catches_a_convolution(wrong):
    model = wrong(3, 4, 6, 3, padding="reflect").double()
    with pytest.raises((AssertionError, RuntimeError)):
        streams_as_the_whole(model, 3, range(1, 16), largest=4)


class CountsTheBiasTwice(Transposed):
    def step(self, x, state, last=False):
        y = super().step(x, state, last)
        if x.shape[2]:
            state.tail = state.tail + self.conv.bias[:, None]
        return y


class ForgetsTheTail(Transposed):
    def step(self, x, state, last=False):
        state.tail = None
        return super().step(x, state, last)


class KeepsTheHeadAsTail(Transposed):
    def step(self, x, state, last=False):
        y = super().step(x, state, last)
        if x.shape[2]:
            state.tail = self.conv(x)[..., : self.over] - self.conv.bias[:, None]
        return y


@pytest.mark.parametrize("wrong", [CountsTheBiasTwice, ForgetsTheTail, KeepsTheHeadAsTail])
def test_comparing_chunks_with_the_whole_catches_a_transposed_convolution(wrong):
    model = wrong(3, 4, 6, 3).double()
    with pytest.raises(AssertionError):
        streams_as_the_whole(model, 3, range(1, 9), largest=3)


class ForgetfulLSTM(LSTM):
    def step(self, x, state, last=False):
        state.hidden = None
        return super().step(x, state, last)


class KeepsTooFewKeys(WindowedAttention):
    def init_state(self):
        return RecentKeys(self.window - 2, self.transformer.depth)


class RotatesEveryChunkFromZero(WindowedAttention):
    def _rope(self, first, frames, device):
        return super()._rope(0, frames, device)


class CountsNoFrames(WindowedAttention):
    def step(self, x, state, last=False):
        state.seen = 0
        return super().step(x, state, last)


@pytest.mark.parametrize("wrong", [ForgetfulLSTM, KeepsTooFewKeys, RotatesEveryChunkFromZero, CountsNoFrames])
def test_comparing_chunks_with_the_whole_catches_a_memory(wrong):
    torch.manual_seed(1)
    model = wrong(4, 2) if wrong is ForgetfulLSTM else wrong(4, 2, heads=2, window=4)
    with pytest.raises((AssertionError, RuntimeError)):
        streams_as_the_whole(model.double().eval(), 4, range(1, 16), largest=4)


def test_attention_sees_its_window_and_no_more():
    torch.manual_seed(1)
    model = WindowedAttention(4, layers=1, heads=2, window=3).double().eval()
    x = torch.randn(1, 4, 8, dtype=torch.float64)
    y = x.clone()
    y[..., 0] += 1
    assert (model(x) != model(y)).any(1)[0].tolist() == [True] * 3 + [False] * 5


# ------------------------------------------------------------------------------------------------------------------ refusals


def test_what_cannot_be_is_refused_with_one_line():
    for build, words in (
        (lambda: SEANetEncoder(activation="relu"), "elu or snake"),
        (lambda: SEANetEncoder(memory="gru"), "lstm or attention or null"),
        (lambda: SEANetEncoder(shortcut="none"), "conv or identity"),
        (lambda: SEANetEncoder(padding="circular"), "zero, replicate, reflect"),
        (lambda: SEANetEncoder(ratios=()), "at least 1"),
        (lambda: WindowedAttention(8, window=0), "the frame itself"),
        (lambda: Conv(1, 1, 2, 3), "leaves out samples"),
        (lambda: Transposed(1, 1, 2, 3), "leaves gaps"),
        (lambda: SEANetEncoder(**SMALL, causal=False).init_state(), "causal=true"),
        (lambda: SEANetDecoder(**SMALL, causal=False, memory=None).init_state(), "causal=true"),
        (lambda: Conv(1, 1, 3, 3, padding="reflect").init_state(), "padding=zero"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            build()
        assert "\n" not in str(error.value)
