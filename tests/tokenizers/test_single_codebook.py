"""A codec of one code per frame with an inverse STFT: its preset's size and rate, training, and row by row as alone."""

import pytest
import torch
from codec_sizes import size
from tokenizer_kit import LOSSES, learns, media, read

from gentok.build import build


def config():
    """A small single_codebook."""
    found = {**read("tokenizer", "single_codebook"), "losses": LOSSES, "sample_rate": 2000}
    found["encoder"] = {**found["encoder"], "filters": 4, "ratios": [4, 2], "width": 16, "memory_layers": 1}
    found["decoder"] = {**found["decoder"], "hop": 8, "n_fft": None, "filters": 16, "hidden": 32, "blocks": 2, "width": 16, "heads": 2}
    found["codebook"] = {**found["codebook"], "vocab_size": 32, "dim": 16, "kmeans_start": 5}
    return found


def make():
    torch.manual_seed(0)
    return build(config(), media_shape=(1,)).eval()


def test_training_steps_reduce_the_loss():
    model, x = make(), media(8, (1, 96))
    assert learns(model, x)


def test_every_length_and_every_row_is_as_alone():
    model, lengths = make(), torch.tensor([50, 17, 1])
    x = media(3, (1, 50)) * (torch.arange(50) < lengths[:, None])[:, None]
    tokens = model.encode(x, lengths)
    assert tokens.lengths.tolist() == [7, 3, 1] and model.spec.levels == 1
    wave = model.decode(tokens, samples=lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = model.encode(x[row : row + 1, :, :length])
        assert torch.equal(alone.codes[0], tokens.codes[row, :, : alone.codes.shape[2]])
        torch.testing.assert_close(wave[row : row + 1, :, :length], model.decode(alone, samples=length), atol=1e-5, rtol=1e-4)


def test_a_decoder_of_another_hop_is_refused_in_one_line():
    found = config()
    found["decoder"]["hop"] = 16
    with pytest.raises(ValueError, match="samples per frame"):
        build(found, media_shape=(1,))


def test_the_preset_has_wav_tokenizer_s_rate():
    model = size("single_codebook")
    assert model.spec.grid.rate_hz == 75 and model.spec.bits_per_second == 900 and model.decoder.n_fft == 4 * model.hop
    assert 60e6 < sum(p.numel() for p in model.parameters()) < 90e6
