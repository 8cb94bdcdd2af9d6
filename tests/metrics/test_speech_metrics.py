"""Measures of speech by packages that are installed apart, each skipped where its own is missing; and those
that need none."""

import math
import sys

import pytest
import torch

from gentok.metrics import speech, spoken_digits
from gentok.metrics.audio import mel_features, mel_frechet
from gentok.metrics.optional_packages import rows
from gentok.metrics.spoken_digits import DIGITS, recognise, recognition

RATE = 16000


def murmurs(rows: int = 2, seconds: float = 1.5, rate: int = RATE) -> torch.Tensor:
    """Harmonics of a gliding pitch with the rhythm of syllables: nothing is spoken, and yet it is no noise.
    float [rows, 1, T]."""
    time = torch.arange(int(seconds * rate)) / rate
    out = []
    for i in range(rows):
        phase = 2 * math.pi * torch.cumsum(110 + 15 * i + 25 * torch.sin(2 * math.pi * 0.9 * time + i), 0) / rate
        tone = sum(torch.sin(k * phase + k * k) / k for k in range(1, 25))
        out.append(0.15 * tone * torch.sin(math.pi * (3.1 + i) * time).square())
    return torch.stack(out)[:, None]


def noisy(media: torch.Tensor, level: float) -> torch.Tensor:
    return media + level * torch.randn(media.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def spoken():
    """say(texts) -> (media [B, 1, T], lengths) at 24 kHz, of a synthetic voice."""
    hibari = pytest.importorskip("hibari", reason="needs a voice: pip install hibari-tts")
    voice = hibari.Hibari()

    def say(texts):
        waves = [torch.as_tensor(voice(text, seed=i)) for i, text in enumerate(texts)]
        lengths = torch.tensor([len(w) for w in waves])
        return torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)[:, None], lengths

    return say


# ---------------------------------------------------------------------------------------------------- PESQ, STOI, MOS, voices


@pytest.mark.parametrize("name, best", [("pesq", 4.64), ("stoi", 1.0)])
def test_intrusive_measures_are_best_for_equals_and_fall_with_noise(name, best):
    pytest.importorskip({"pesq": "pesq", "stoi": "pystoi"}[name], reason=f"pip install {'pesq' if name == 'pesq' else 'pystoi'}")
    measure, media = getattr(speech, name), murmurs()
    equal, little, much = (measure(x, media, RATE) for x in (media, noisy(media, 0.01), noisy(media, 0.2)))
    assert equal.dtype == torch.float64 and equal.tolist() == pytest.approx([best] * 2, abs=0.02)
    assert (equal > little).all() and (little > much).all()
    lengths = torch.tensor([media.shape[-1], 15000])
    beyond = torch.arange(media.shape[-1]) >= lengths[:, None, None]
    whole = measure(torch.where(beyond, 0.5, noisy(media, 0.01)), media, RATE, lengths)
    torch.testing.assert_close(whole[1:], measure(noisy(media, 0.01)[1:, :, :15000], media[1:, :, :15000], RATE))
    assert measure(torch.zeros_like(media), torch.zeros_like(media), RATE).isnan().all()
    assert measure(media[..., :800], media[..., :800], RATE).isnan().all()


def test_pesq_of_telephone_rates_is_narrow_band():
    pytest.importorskip("pesq", reason="pip install pesq")
    media = murmurs(1, rate=8000)
    assert speech.pesq(media, media, 8000).item() == pytest.approx(4.55, abs=0.05)  # where P.862.1 ends


@pytest.mark.slow
def test_dnsmos_prefers_a_clean_voice(spoken):
    pytest.importorskip("speechmos", reason="pip install speechmos librosa onnxruntime")
    media, lengths = spoken(["seven three one."])
    clean, dirty = (speech.dnsmos(x, 24000, lengths) for x in (media, noisy(media, 0.02).clamp(-1, 1)))
    assert set(clean) == {"overall", "signal", "background", "p808"}
    assert all(1 < dirty[name].item() < clean[name].item() < 5 for name in clean)


@pytest.mark.slow
def test_a_speaker_is_most_like_itself(spoken):
    pytest.importorskip("resemblyzer", reason="pip install --no-deps resemblyzer; pip install webrtcvad-wheels librosa")
    media, lengths = spoken(["seven three one nine.", "two five eight zero."])
    assert speech.speaker_similarity(media, media, 24000, lengths).tolist() == pytest.approx([1, 1], abs=1e-5)
    embeddings = speech.speaker_embeddings(media, 24000, lengths)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    same, other = embeddings[0] @ embeddings[1], speech.speaker_embeddings(noisy(murmurs(1), 0.1), RATE)[0] @ embeddings[0]
    assert same > 0.7 and same > other
    assert speech.speaker_similarity(torch.zeros(1, 1, RATE), torch.zeros(1, 1, RATE), RATE).isnan().all()


@pytest.mark.parametrize(
    "module, call, install",
    [
        ("pesq", lambda x: speech.pesq(x, x, RATE), "pip install pesq"),
        ("pystoi", lambda x: speech.stoi(x, x, RATE), "pip install pystoi"),
        ("speechmos", lambda x: speech.dnsmos(x, RATE), "pip install speechmos"),
        ("resemblyzer", lambda x: speech.speaker_similarity(x, x, RATE), "webrtcvad-wheels"),
        ("pocketsphinx", lambda x: recognise(x, RATE), "pip install pocketsphinx"),
    ],
)
def test_a_missing_package_is_a_one_line_error(monkeypatch, module, call, install):
    for name in [module, *(n for n in sys.modules if n.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(speech, "_voices", speech._voices.__wrapped__)
    monkeypatch.setattr(spoken_digits, "_decoder", spoken_digits._decoder.__wrapped__)
    with pytest.raises(ImportError, match=install) as error:
        call(torch.zeros(1, 1, 4000))
    assert "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------------------- digits


def figure(media: torch.Tensor, texts: list[str], lengths: torch.Tensor | None = None, rate: int = 24000) -> tuple[str, float]:
    """The one figure of `recognition`, and its name."""
    return recognition([[text.split() for text in texts]], [media], [lengths], rate)[0].popitem()


def test_spoken_digits_are_recognised_and_noise_is_not(spoken):
    """The mutant: labels that are one further."""
    pytest.importorskip("pocketsphinx", reason="pip install pocketsphinx")
    media, lengths = spoken([f"{word}." for word in DIGITS])
    name, accuracy = figure(media, DIGITS, lengths)
    assert name == "digit_accuracy" and accuracy >= 0.9
    assert figure(media, DIGITS[1:] + DIGITS[:1], lengths)[1] <= 0.1
    assert figure(noisy(0 * media, 0.1), DIGITS, lengths)[1] <= 0.3
    alone = [recognise(media[i : i + 1, :, :n], 24000, None, "digit")[0] for i, n in enumerate(lengths[:4].tolist())]
    assert alone == recognise(media[:4], 24000, lengths[:4], "digit") == recognise(media[:4], 24000, lengths[:4], "digit")


def test_rows_of_digits_have_a_word_error_rate(spoken):
    pytest.importorskip("pocketsphinx", reason="pip install pocketsphinx")
    texts = ["seven three one", "zero nine"]
    media, lengths = spoken(texts)
    name, rate = figure(media, texts, lengths)
    assert name == "word_error_rate" and rate <= 0.2
    assert figure(media, ["seven three two", "one nine"], lengths)[1] >= 0.4
    assert figure(torch.zeros(2, 1, RATE), texts, rate=RATE)[1] == 1.0


@pytest.mark.parametrize(
    "recognised, spoken, errors",
    [("one two six", "one two six", 0), ("one six", "one two six", 1), ("one nine six four", "one two six", 2), ("", "one two", 2),
     ("two one", "one two", 2)],
)  # fmt: skip
def test_words_are_counted_by_the_edit_distance(monkeypatch, recognised, spoken, errors):
    monkeypatch.setattr(spoken_digits, "recognise", lambda *_: [recognised.split(), ["three"]])
    found, rows = recognition([[spoken.split(), ["three"]]], [torch.zeros(2, 1, 9)], [None], RATE)
    assert found == {"word_error_rate": errors / (len(spoken.split()) + 1)} and rows == [[recognised.split(), ["three"]]]


@pytest.mark.parametrize(
    "wrong, word",
    [
        (lambda: recognise(torch.zeros(1, 1, 9), RATE, grammar="letters"), "digit and digits"),
        (lambda: list(rows(torch.zeros(2, 1, 9), RATE, RATE, torch.tensor([9, 10]))), "from 1 to 9"),
        (lambda: mel_features(torch.zeros(2, 9), RATE), r"\[B, C, T\]"),
    ],
)
def test_what_does_not_fit_is_a_one_line_error(wrong, word):
    with pytest.raises(ValueError, match=word) as error:
        wrong()
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------------- sets


def test_mel_frechet_is_zero_for_one_set_and_grows_with_noise():
    media = murmurs(6, 0.3)
    distances = [mel_frechet(noisy(media, level), media, RATE) for level in (0.0, 0.003, 0.03)]
    assert distances[0] < 1e-3 < distances[1] < distances[2]
    assert mel_frechet(media[[3, 1, 5, 0, 2, 4]], media, RATE) < 1e-3  # a set has no order


def test_mel_features_of_a_row_are_those_of_the_row_alone():
    media, lengths = murmurs(2, 0.5), torch.tensor([8000, 3001])
    rubbish = torch.where(torch.arange(8000) >= lengths[:, None, None], 0.7, media)
    torch.testing.assert_close(mel_features(rubbish, RATE, lengths)[1:], mel_features(media[1:, :, :3001], RATE))
    assert mel_features(media[..., :50], RATE).isfinite().all() and mel_features(media, RATE).shape == (2, 128)
