"""Consistency under re-encoding: a term that is 0 where the codes come back for sure, reaches what is trained and
nothing else, and teaches a decoder to be understood. Damage is drawn by row."""

import pytest
import torch

from gentok.codebooks.bae import BAE
from gentok.codebooks.vq import VQ
from gentok.data.damage import Damage
from gentok.losses.reencoding import Reencoding
from gentok.metrics.codebook import share_given_back
from gentok.nn.seanet import SEANetDecoder, SEANetEncoder
from gentok.rng import RowRNG
from gentok.tokenizers.codec import Codec
from gentok.tokenizers.vqgan import VQGAN
from gentok.types import Batch, TokenizerOutput


def digits(book=None):
    torch.manual_seed(0)
    book = VQ(vocab_size=16, dim=4, normalize=False, kmeans_start=0, revive_below=0) if book is None else book
    return VQGAN(book, (1, 8, 8), width=8, multipliers=(1, 2), blocks=1, patch=2)


MEDIA = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
BATCH = Batch(MEDIA, torch.arange(6))


def term(tokenizer, loss=None, batch=BATCH):
    output = tokenizer(batch)
    terms = (loss or Reencoding())(tokenizer, output, batch.lengths, RowRNG.of(0, batch.index))
    assert list(terms) == ["reencoding"]
    return terms["reencoding"], output


def reached(tokenizer):
    return {name.partition(".")[0] for name, p in tokenizer.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.mark.parametrize(
    ("frozen", "expected"), [((), {"encoder", "decoder"}), (("encoder", "codebook"), {"decoder"}), (("decoder", "codebook"), {"encoder"})]
)
def test_the_gradient_reaches_what_is_trained_and_rows_are_targets(frozen, expected):
    tokenizer = digits()
    for name in frozen:
        getattr(tokenizer, name).requires_grad_(False)
    term(tokenizer)[0].backward()
    assert reached(tokenizer) == expected


def test_it_is_the_mean_squared_distance_before_quantising_and_0_where_it_is_sure():
    tokenizer = digits()
    loss, output = term(tokenizer, Reencoding(weight=2.5))
    z = tokenizer.encoder(output.reconstruction.clamp(-1, 1)).flatten(2)
    assert torch.allclose(loss, 2.5 * (z - tokenizer.codebook.lookup(output.tokens.codes)).square().mean())
    tokenizer.encoder.forward = lambda media: tokenizer.codebook.lookup(output.tokens.codes).unflatten(2, (2, 2))
    assert term(tokenizer)[0] == 0


def test_a_decoder_that_learns_it_alone_is_understood_and_ids_keep_their_meaning():
    tokenizer = digits()
    tokenizer.codebook.eval()
    before = tokenizer.encode(MEDIA)
    start = share_given_back(before, tokenizer.encode(tokenizer.decode(before))).mean()
    optimizer = torch.optim.Adam(tokenizer.decoder.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        term(tokenizer)[0].backward()
        optimizer.step()
    assert torch.equal(tokenizer.encode(MEDIA).codes, before.codes)
    assert share_given_back(before, tokenizer.encode(tokenizer.decode(before))).mean() > start + 0.2


def test_frames_behind_the_end_of_a_sound_do_not_count():
    torch.manual_seed(0)
    book = VQ(vocab_size=8, dim=4, kmeans_start=0, revive_below=0)
    sizes = {"width": 4, "filters": 4, "ratios": (2, 2), "memory": None, "padding": "zero"}
    codec = Codec(SEANetEncoder(**sizes), book, SEANetDecoder(**sizes), 16000)
    sound = torch.rand(2, 1, 32, generator=torch.Generator().manual_seed(2)) - 0.5
    sound[1, :, 16:] = 0
    both = Batch(sound, torch.arange(2), lengths=torch.tensor([32, 16]))
    first, second = (Batch(sound[i : i + 1, :, :n], torch.tensor([i]), lengths=torch.tensor([n])) for i, n in ((0, 32), (1, 16)))
    expected = (8 * term(codec, batch=first)[0] + 4 * term(codec, batch=second)[0]) / 12
    assert torch.allclose(term(codec, batch=both)[0], expected, atol=1e-6)


def test_what_has_no_rows_or_no_reconstruction_is_one_line():
    with pytest.raises(ValueError, match="BAE has no vectors that its rows approximate.*consistency=none"):
        term(digits(BAE(bits=4, width=4)))
    tokenizer = digits()
    output = tokenizer(BATCH)
    with pytest.raises(ValueError, match="VQGAN makes no reconstruction with a gradient: set consistency=none"):
        Reencoding()(tokenizer, TokenizerOutput(output.tokens, {}, None), None, RowRNG.of(0, BATCH.index))


# ------------------------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("shape", [(4, 2, 9, 7), (4, 1, 50)])
def test_damage_of_a_row_is_its_own_keeps_what_is_even_and_has_a_gradient(shape):
    damage, media = Damage(noise=0.2, blur=1.0, shift=2), torch.rand(shape, generator=torch.Generator().manual_seed(0))
    rng = RowRNG.of(3, torch.arange(4))
    whole = damage(media, rng)
    assert torch.equal(whole, torch.cat([damage(media[i : i + 1], rng.rows(torch.tensor([i]))) for i in range(4)]))
    assert whole.shape == media.shape and (whole != media).any(-1).all()
    assert torch.equal(Damage()(media, rng), media)
    even = torch.full(shape, 0.3)
    assert torch.allclose(Damage(blur=1.0, shift=2)(even, rng), even)
    assert 0 < (Damage(noise=0.2)(media, rng) - media).std() < 0.2
    media.requires_grad_()
    damage(media, rng).sum().backward()
    assert media.grad.sum() == pytest.approx(media.numel(), rel=1e-4)


def test_a_shift_moves_whole_pixels_and_repeats_edges():
    media = torch.arange(6.0).expand(64, 1, 6)
    moved = Damage(shift=1)(media, RowRNG.of(0, torch.arange(64)))
    forms = {tuple(row.tolist()) for row in moved[:, 0]}
    assert forms == {(0, 0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 5)}
