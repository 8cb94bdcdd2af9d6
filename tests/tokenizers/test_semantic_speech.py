"""The supervised speech tokenizer: blocks, padding, what its losses reach, and that it learns to read."""

import pytest
import torch
from torch import nn

from gentok.codebooks.vq import VQ
from gentok.nn.speech import LogMel, SpeechDecoder, SpeechEncoder, block_causal
from gentok.tokenizers.semantic_speech import SemanticSpeech
from gentok.types import Batch, Condition, Ids, RowRNG, Tokens

SYMBOLS = "abc"


class Vocoder(nn.Module):
    """A matrix from mel frames to samples: what a vocoder takes and gives."""

    def __init__(self, width=16, hop=40):
        super().__init__()
        self.width, self.hop, self.out = width, hop, nn.Linear(width, hop)

    @property
    def last_layer(self):
        return self.out.weight

    def forward(self, mel):
        return self.out(mel.transpose(1, 2)).flatten(1)[:, None]


def tokenizer(block=2, acoustic=0.0, losses=None, **options):
    torch.manual_seed(0)
    common = {"inner": 16, "depth": 1, "heads": 2, "block": block}
    encoder = SpeechEncoder(4000, width=8, pool=2, mels=16, mel_hop=40, n_fft=160, **common)
    decoder = SpeechDecoder(Vocoder(), width=8, upsample=4, **common)
    recogniser = {"inner": 16, "depth": 1, "heads": 2, "upsample": 2}
    return SemanticSpeech(
        encoder, VQ(16, 8, normalize=False), decoder, 4000, SYMBOLS, recogniser, acoustic=acoustic, losses=losses, **options
    )  # fmt: skip


def batch(rows=4, samples=1600, lengths=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    media = torch.randn(rows, 1, samples, generator=g).clamp(-1, 1) * 0.3
    ids = torch.randint(3, (rows, 3), generator=g)
    ids[1:, 2] = -1
    if lengths is not None:
        media = media * (torch.arange(samples) < lengths[:, None])[:, None]
    return Batch(media, torch.arange(rows), Condition({"text": Ids(ids)}), lengths)


def test_blocks_see_the_past_and_themselves():
    see = block_causal(5, 2)
    assert see.tolist() == [[True, True, False, False, False]] * 2 + [[True] * 4 + [False]] * 2 + [[True] * 5]


def test_a_mel_frame_stands_on_its_samples_whatever_follows():
    mel, wave = LogMel(4000, 16, 40, 160), torch.randn(1, 1, 400)
    assert mel(wave).shape == (1, 16, 10) and mel(wave[..., :361]).shape == (1, 16, 10)
    longer = torch.cat((wave, torch.zeros(1, 1, 400)), 2)
    assert torch.allclose(mel(longer)[..., :10], mel(wave), atol=1e-6)


@pytest.mark.parametrize("block", [1, 2, None])
def test_a_code_depends_on_no_later_block(block):
    model, media = tokenizer(block).double().eval(), batch(1).media.double()
    later = media.clone()
    later[..., 1000:] = 0.5  # the vectors are 160 samples each, mel windows reach 60 samples beyond
    same = (model.encoder(media) - model.encoder(later)).abs().amax(1)[0] < 1e-9
    first = 0 if block is None else (940 // 160) // block * block
    assert same[:first].all() and not same[first:].any()


def test_a_padded_row_is_trained_as_it_is_encoded_alone():
    model = tokenizer().double().eval()
    lengths = torch.tensor([1600, 700, 161, 1])
    given = batch(lengths=lengths)
    given.media = given.media.double()
    tokens = model(given).tokens
    assert tokens.lengths.tolist() == [10, 5, 2, 1]
    assert (tokens.codes == model.encode(given.media, lengths).codes).all()
    for row, length in enumerate(lengths.tolist()):
        alone = model.encode(given.media[row : row + 1, :, :length])
        assert (alone.codes[0] == tokens.codes[row, :, : alone.codes.shape[2]]).all()
    read = model.transcribe(tokens)
    assert read == [model.transcribe(tokens.rows([row]))[0] for row in range(4)]


@pytest.mark.parametrize("acoustic", [0.0, 0.5])
def test_the_decoder_teaches_codes_only_where_asked(acoustic):
    model = tokenizer(acoustic=acoustic).train()
    losses = model(batch(), RowRNG.of(0, torch.arange(4))).losses
    reached = torch.autograd.grad(losses["mel"], model.encoder.out.weight, retain_graph=True, allow_unused=True)[0]
    assert (reached is None or not reached.any()) == (acoustic == 0)
    assert torch.autograd.grad(losses["ctc"], model.encoder.out.weight)[0].any()


@pytest.mark.slow
def test_it_learns_to_read_tones():
    """Every symbol is a tone of 0.1 s."""

    def tones(rows, seed):
        ids = torch.randint(3, (rows, 4), generator=torch.Generator().manual_seed(seed))
        pitch = torch.tensor([300.0, 700.0, 1500.0])[ids].repeat_interleave(400, 1)
        return Batch(
            0.5 * torch.sin(2 * torch.pi * pitch * torch.arange(1600) / 4000)[:, None], torch.arange(rows), Condition({"text": Ids(ids)})
        )

    model = tokenizer().train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(500):
        loss = sum(model(tones(16, step), RowRNG.of(step, torch.arange(16))).losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    held_out = tones(32, 10_000)
    said = ["".join(SYMBOLS[i] for i in row) for row in held_out.condition.parts["text"].ids.tolist()]
    read = model.transcribe(model.encode(held_out.media))

    assert sum(a == b for a, b in zip(said, read)) >= 28


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match="no `text`"):
        tokenizer()(Batch(torch.zeros(1, 1, 400), torch.arange(1)))
    with pytest.raises(ValueError, match="transcripts"):
        model = tokenizer()
        SemanticSpeech(model.encoder, model.codebook, model.decoder, 4000, ())
    with pytest.raises(ValueError, match="1 channel"):
        tokenizer().encode(torch.zeros(1, 2, 400))
    model = tokenizer()
    assert model.transcribe(Tokens(torch.zeros(2, 1, 0, dtype=torch.int64), model.spec)) == ["", ""]
