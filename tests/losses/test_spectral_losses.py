"""Spectral distances are the formulas of their papers, stay float32, and count nothing beyond a row's length."""

import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from gentok.build import build
from gentok.losses.audio import AudioReconstruction
from gentok.losses.spectral import DacMel, EncodecMel, MultiScaleSTFT

CONF = Path(__file__).resolve().parents[2] / "conf" / "losses"
RATE = 16000
SMALL = {
    "encodec": lambda **k: EncodecMel(RATE, windows=(64, 256), mels=16, **k),
    "dac": lambda **k: DacMel(RATE, windows=(64, 256), mels=(5, 20), **k),
    "stft": lambda **k: MultiScaleSTFT(windows=(64, 256), **k),
}


def waves(samples: int = 1500, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    media = 0.3 * torch.randn(rows, 1, samples, generator=generator)
    return media + 0.1 * torch.randn(media.shape, generator=generator), media


@pytest.mark.parametrize("alpha, normalized", [(1.0, True), (None, False)])
def test_encodec_mel_is_the_released_formula(alpha, normalized):
    """By torchaudio. 1500 samples are no multiple of a hop, so that the filling up is seen."""
    torchaudio = pytest.importorskip("torchaudio")
    made, media = waves(1501)
    expected, total = 0.0, 0.0
    for w in (64, 256):
        mel = torchaudio.transforms.MelSpectrogram(RATE, w, hop_length=w // 4, f_min=64, n_mels=16, normalized=normalized, center=False)
        pad, hop = (w - w // 4) // 2, w // 4
        a, b = (
            mel(torch.nn.functional.pad(torch.nn.functional.pad(x, (pad, pad), mode="reflect"), (0, math.ceil(1501 / hop) * hop - 1501)))
            for x in (made, media)
        )
        assert a.shape[-1] == math.ceil(1501 / hop)
        weight = math.sqrt(w - 1) if alpha is None else alpha
        expected += (a - b).abs().mean() + weight * ((1e-5 + a).log10() - (1e-5 + b).log10()).square().mean()
        total += 1 + weight
    found = EncodecMel(RATE, 3.0, (64, 256), 16, f_min=64.0, alpha=alpha, normalized=normalized)(made, media)
    assert found.item() == pytest.approx(3 * float(expected) / (total if normalized else 1), rel=1e-4)


def test_dac_mel_is_its_formula():
    torchaudio = pytest.importorskip("torchaudio")
    made, media = waves()
    expected = 0.0
    for w, m in ((64, 5), (256, 20)):
        mel = torchaudio.transforms.MelSpectrogram(RATE, w, hop_length=w // 4, n_mels=m, power=1.0, mel_scale="slaney", norm="slaney")
        expected += (mel(made).clamp(min=1e-5).log10() - mel(media).clamp(min=1e-5).log10()).abs().mean()
    assert SMALL["dac"](weight=15.0)(made, media).item() == pytest.approx(15 * float(expected), rel=1e-4)


def test_multi_scale_stft_is_its_formula():
    made, media = waves()
    expected = 0.0
    for w in (64, 256):
        a, b = (torch.stft(x[:, 0], w, w // 4, window=torch.hann_window(w), return_complex=True).abs() for x in (made, media))
        logs = [x.square().clamp(min=1e-10).log10() for x in (a, b)]
        expected += 2 * (a - b).abs().mean() + 0.5 * (logs[0] - logs[1]).abs().mean()
    assert SMALL["stft"](linear=2.0, log=0.5)(made, media).item() == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_zero_for_equals_alone_and_linear_in_the_weight(name):
    made, media = waves()
    assert SMALL[name]()(media, media).item() == 0
    one = SMALL[name]()(made, media)
    assert one > 0 and SMALL[name](weight=4.0)(made, media).item() == pytest.approx(4 * one.item(), rel=1e-6)
    assert SMALL[name]()(0.5 * media, media) > 0  # loudness counts


@pytest.mark.parametrize("name", SMALL)
def test_it_is_float32_under_autocast(name):
    made, media = waves()
    with torch.autocast("cpu", torch.bfloat16):
        cast = SMALL[name]()(made, media)
    assert cast.dtype == torch.float32 and torch.equal(cast, SMALL[name]()(made, media))
    assert torch.isfinite(SMALL[name]()(made.bfloat16(), media))


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_the_reconstruction_and_are_numbers_at_silence(name):
    made, media = waves()
    made.requires_grad_()
    SMALL[name]()(made, media).backward()
    assert made.grad.isfinite().all() and (made.grad != 0).float().mean() > 0.99
    silence = torch.zeros_like(media).requires_grad_()
    SMALL[name]()(silence, media).backward()
    assert silence.grad.isfinite().all()


@pytest.mark.parametrize("name", [*SMALL, "wave"])
def test_nothing_counts_beyond_a_length(name):
    """The mutant: without lengths, what lies there counts."""
    loss = (lambda r, m, n=None: AudioReconstruction(1.0)(r, m, n)["wave"]) if name == "wave" else SMALL[name]()
    made, media = waves()
    lengths = torch.tensor([1500, 700])
    beyond = torch.arange(1500) >= lengths[:, None, None]
    dirty = torch.where(beyond, 0.9, made).requires_grad_()
    found = loss(dirty, media, lengths)
    assert found.item() == pytest.approx(loss(made, media, lengths).item(), rel=1e-6)
    found.backward()
    assert (dirty.grad[beyond] == 0).all() and (dirty.grad[~beyond] != 0).any()
    assert abs(loss(dirty, media) - loss(made, media)) > 1e-3
    assert loss(made, media, torch.tensor([1500, 1500])).item() == pytest.approx(loss(made, media).item(), rel=0.02)  # one frame fewer


def test_the_frames_beyond_do_not_dilute_the_mean():
    """A row filled up with zeros counts as without them, but for the frames at its end."""
    made, media = waves(2048, 1)
    zeros = torch.zeros(1, 1, 6000)
    for name, loss in SMALL.items():
        alone = loss()(made, media).item()
        long = [torch.cat([x, zeros], -1) for x in (made, media)]
        assert loss()(*long, torch.tensor([2048])).item() == pytest.approx(alone, rel=0.1), name
        assert loss()(*long).item() < 0.5 * alone, name


@pytest.mark.parametrize("preset, names", [("encodec", {"wave", "mel"}), ("dac", {"mel"}), ("multi_scale_stft", {"wave", "stft"})])
def test_the_presets_are_built_and_name_their_terms(preset, names):
    config = OmegaConf.create({"losses": OmegaConf.load(CONF / f"{preset}.yaml"), "tokenizer": {"sample_rate": 24000}})
    losses = build(OmegaConf.to_container(config, resolve=True)["losses"])
    made, media = waves(2000)
    terms = losses(made.requires_grad_(), media)
    assert set(terms) == names and all(t.dim() == 0 and t.requires_grad for t in terms.values())
    assert not any(t.any() for t in losses(media, media).values())


@pytest.mark.parametrize(
    "wrong, word",
    [
        (lambda: SMALL["dac"](weight=0.0), "weight"),
        (lambda: MultiScaleSTFT(windows=(30,)), "4 divides"),
        (lambda: DacMel(RATE, windows=(64,), mels=(5, 10)), "per window"),
        (lambda: EncodecMel(RATE, alpha=-1.0), "alpha"),
        (lambda: AudioReconstruction(), "wave > 0"),
        (lambda: AudioReconstruction(1.0, {"wave": abs}), "named wave"),
        (lambda: MultiScaleSTFT()(torch.zeros(1, 1, 900), torch.zeros(1, 1, 900)), "more than 1024"),
        (lambda: MultiScaleSTFT()(torch.zeros(1, 1, 9), torch.zeros(1, 1, 8)), "twice"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(wrong, word):
    with pytest.raises(ValueError, match=word) as error:
        wrong()
    assert "\n" not in str(error.value)
