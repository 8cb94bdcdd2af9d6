"""Discriminators of waves: the published networks and sizes, any length of wave, and what each of them can see."""

import math

import pytest
import torch

from gentok.losses.adversarial import Adversary
from gentok.nn.band_discriminator import BandDiscriminators
from gentok.nn.period_discriminator import PeriodDiscriminators
from gentok.nn.stft_discriminator import STFTDiscriminators
from gentok.nn.waveform_discriminator import levelled

SMALL = {
    "stft": lambda **k: STFTDiscriminators(filters=4, windows=(256, 64), **k),
    "period": lambda **k: PeriodDiscriminators(periods=(2, 3, 5), width=2, **k),
    "bands": lambda **k: BandDiscriminators(filters=4, windows=(256, 128), **k),
}


def wave(samples: int = 1001, rows: int = 2, channels: int = 1) -> torch.Tensor:
    return 0.3 * torch.randn(rows, channels, samples, generator=torch.Generator().manual_seed(0))


def count(network) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("samples, channels", [(3000, 1), (2049, 2)])
def test_stft_discriminators_are_those_of_the_encodec_package(samples, channels):
    """The same logits and features from the same weights, so the same parameters too."""
    pytest.importorskip("encodec")
    from encodec.msstftd import MultiScaleSTFTDiscriminator

    theirs = MultiScaleSTFTDiscriminator(8, in_channels=channels)
    ours = STFTDiscriminators(channels, 8, windows=(1024, 2048, 512))
    assert count(ours) == count(theirs)
    for a, b in zip(ours.parts, theirs.discriminators, strict=True):
        for mine, other in zip([*a.layers, a.head], [*b.convs, b.conv_post], strict=True):
            state = {"bias": other.conv.bias}
            if hasattr(other.conv, "weight_g"):
                state |= {f"parametrizations.weight.original{i}": getattr(other.conv, f"weight_{x}") for i, x in enumerate("gv")}
            else:
                state["weight"] = other.conv.weight
            mine.load_state_dict(state)
    media = wave(samples, channels=channels)
    for mine, other in zip(ours(media), theirs(media), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


def test_they_have_the_published_numbers_of_parameters():
    """By hand, from the papers' tables; weight normalisation adds a number per output channel."""

    def layer(before, after, *kernel, norm=True):
        return before * after * math.prod(kernel) + after * (2 if norm else 1)

    inner = 3 * layer(32, 32, 3, 9) + layer(32, 32, 3, 3)
    stft = layer(2, 32, 3, 9, norm=False) + inner + layer(32, 1, 3, 3)
    period = sum(layer(a, b, 5) for a, b in ((1, 32), (32, 128), (128, 512), (512, 1024), (1024, 1024))) + layer(1024, 1, 3)
    bands = 5 * (layer(2, 32, 3, 9) + inner) + layer(32, 1, 3, 3)
    with torch.device("meta"):
        assert count(STFTDiscriminators()) == 5 * stft == 472_330
        assert count(PeriodDiscriminators()) == 5 * period == 41_105_770
        assert count(BandDiscriminators()) == 3 * bands == 1_413_990


@pytest.mark.parametrize("samples", [256, 257, 999, 1000, 1001])
@pytest.mark.parametrize("channels", [1, 2])
def test_waves_of_any_length_have_the_promised_shapes(samples, channels):
    media = wave(samples, channels=channels)
    logits, features = SMALL["stft"](channels=channels)(media)
    assert [x.shape[2] for x in logits] == [(samples - w) // (w // 4) + 1 for w in (256, 64)]
    assert [len(f) for f in features] == [5, 5] and all(x.shape[:2] == (2, 4) for f in features for x in f)
    logits, features = SMALL["period"](channels=channels)(media)
    assert [x.shape[3] for x in logits] == [2, 3, 5] and [len(f) for f in features] == [5, 5, 5]
    assert [f[0].shape[2] for f in features] == [math.ceil(math.ceil(samples / p) / 3) for p in (2, 3, 5)]
    logits, features = SMALL["bands"](channels=channels)(media)
    assert [x.shape[2] for x in logits] == [math.ceil(samples / (w // 4)) for w in (256, 128)]
    assert [len(f) for f in features] == [25, 25]
    assert all(x.shape[:2] == (2, 1) for x in logits)


def test_columns_of_a_period_are_never_mixed():
    """A logit of column c depends on the samples c, c + p, c + 2 p, ... only."""
    network, p = PeriodDiscriminators(periods=(5,), width=2), 5
    media = wave(500).requires_grad_()
    network(media)[0][0][0, 0, :, 3].sum().backward()
    seen = media.grad[0, 0].nonzero().flatten()
    assert len(seen) > 50 and set((seen % p).tolist()) == {3}


def test_bands_share_the_frequencies_and_their_frames_are_those_of_torch():
    network = BandDiscriminators(filters=2, windows=(128,)).parts[0]
    media = wave(1000)
    bands = network._bands(media)
    assert sum(x.shape[-1] for x in bands) == 65 and len(bands) == 5
    padded = torch.nn.functional.pad(media, (48, 48 + 24), mode="reflect")[:, 0]  # 1000 = 31 hops of 32 and 8 samples
    theirs = torch.stft(padded, 128, 32, window=torch.hann_window(128), return_complex=True)[..., 2:-2]
    found = torch.cat(bands, -1)
    torch.testing.assert_close(torch.complex(found[:, 0], found[:, 1]), theirs.transpose(1, 2), atol=1e-4, rtol=1e-4)


def test_a_stack_sees_its_band_only():
    """A tone in the highest band changes the features of that band's stack, and hardly those of the others."""
    network, media = BandDiscriminators(filters=4, windows=(256,), peak=None), wave(2000, 1)
    tone = 0.5 * torch.sin(0.87 * math.pi * torch.arange(2000.0))
    plain, changed = network(media)[1][0], network(media + tone)[1][0]
    moved = [sum((a - b).abs().mean() for a, b in zip(plain[i : i + 5], changed[i : i + 5], strict=True)) for i in range(0, 25, 5)]
    assert moved[4] > 20 * max(moved[:4])


@pytest.mark.parametrize("name", SMALL)
def test_at_a_peak_level_and_offset_change_nothing(name):
    """DAC's waves have no mean and a peak of 0.8. Without this, both change the logits."""
    torch.manual_seed(0)
    network, deaf = SMALL[name](peak=0.8).double(), SMALL[name](peak=None).double()
    media = wave().double()
    for change in (lambda x: 0.01 * x, lambda x: x + 0.4):
        for a, b in zip(network(media)[0], network(change(media))[0], strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
        assert any((a - b).abs().max() > 1e-3 for a, b in zip(deaf(media)[0], deaf(change(media))[0], strict=True))
    loud = levelled(media, 0.8)
    torch.testing.assert_close(loud.abs().amax(-1), torch.full((2, 1), 0.8).double())
    assert loud.mean(-1).abs().max() < 1e-12
    assert not levelled(torch.full((1, 1, 9), 0.3), 0.8).abs().gt(0.1).any()
    assert torch.equal(levelled(torch.zeros(1, 1, 9), 0.8), torch.zeros(1, 1, 9))


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_autocast_is_close_and_gradients_are_numbers(name):
    """The STFT stays float32: a spectrum of bfloat16 waves would be off by far more."""
    part, media = Adversary(SMALL[name](), features=1.0, relative=True), wave()
    made = (media + 0.1 * wave(1001).flip(-1)).requires_grad_()
    plain = part.tokenizer_loss(made, media)
    with torch.autocast("cpu", torch.bfloat16):
        cast = part.tokenizer_loss(made, media)
        judged = part.discriminator_loss(media, made)["loss"]
    for key, value in plain.items():
        assert cast[key].dtype == torch.float32
        torch.testing.assert_close(cast[key], value, atol=0.02, rtol=0.05)
    sum(cast.values()).backward()
    assert made.grad.isfinite().all() and made.grad.abs().sum() > 0 and all(p.grad is None for p in part.parameters())
    judged.backward()
    assert all(p.grad.isfinite().all() for p in part.parameters())
    silent = torch.zeros_like(media).requires_grad_()
    sum(part.tokenizer_loss(silent, media).values()).backward()
    assert silent.grad.isfinite().all()


def test_bfloat16_reads_no_freed_memory_where_a_band_is_one_value_wide():
    """The lowest band of a short window: freed memory is filled with NaN before every convolution of 3 x 9 with stride 2."""

    def fill_freed_memory(*_):
        for size in (100, 300, 1000, 3000, 10_000, 40_000):
            [torch.full((size,), math.nan) for _ in range(10)].clear()

    network = SMALL["bands"]()
    for module in network.modules():
        module.register_forward_pre_hook(fill_freed_memory)
    with torch.autocast("cpu", torch.bfloat16):
        features = network(wave())[1]
    assert min(x.shape[-1] for part in features for x in part) == 1
    assert all(x.isfinite().all() for part in features for x in part)


@pytest.mark.parametrize("name", SMALL)
def test_a_row_has_the_same_logits_in_any_batch(name):
    network, media = SMALL[name]().double(), wave(rows=3).double()
    for whole, alone in zip(network(media)[0], network(media[1:2])[0], strict=True):
        torch.testing.assert_close(whole[1:2], alone, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    "wrong, word",
    [
        (lambda: SMALL["stft"]()(wave(255)), "at least 256 samples"),
        (lambda: SMALL["bands"]()(wave(159)), "at least 160 samples"),
        (lambda: SMALL["period"]()(wave(9)), "at least 10 samples"),
        (lambda: SMALL["period"]()(wave(channels=2)), "set its channels"),
        (lambda: BandDiscriminators(windows=(64,), bands=((0.0, 0.01),)), "hold a frequency"),
        (lambda: STFTDiscriminators(windows=()), "windows"),
        (lambda: PeriodDiscriminators(periods=(0,)), "periods"),
    ],
)
def test_what_does_not_fit_is_refused_with_one_line(wrong, word):
    with pytest.raises(ValueError, match=word) as error:
        wrong()
    assert "\n" not in str(error.value)
