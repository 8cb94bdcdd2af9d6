"""The codec chunk by chunk: every causal preset gives what it gives as a whole, no later than it says; others refuse."""

from __future__ import annotations

import pytest
import torch
from test_codec import HOP, small, sound
from tokenizer_kit import is_sound, make, merged, names, noise_of, parameters, read

from gentok.tokenizers.streaming import CodecStream
from gentok.types import Batch, Tokens

CODECS = [name for name in names("tokenizer") if is_sound(name)]


def through(model, x, sizes):
    """(codes, sound) of x in chunks, with one stream for both directions."""
    stream, tokens, media = model.stream(len(x)), [], []
    for part in x.split(sizes, 2):
        tokens.append(stream.encode(part))
        media.append(stream.decode(tokens[-1]))
    last, rest = stream.flush()
    return torch.cat([t.codes for t in (*tokens, last)], 2), torch.cat([*media, rest], 2)


def sizes_of(total: int, largest: int, seed: int) -> list[int]:
    generator, sizes = torch.Generator().manual_seed(seed), []
    while sum(sizes) < total:
        sizes.append(min(int(torch.randint(largest + 1, (), generator=generator)), total - sum(sizes)))
    return sizes


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name == "mimi_12hz" else ()) for name in CODECS])
def test_every_preset_streams_what_the_whole_gives_or_refuses_in_one_line(name):
    book = merged(read("codebook", "residual"), {"levels": 2, "width": 16, "codebook": {"vocab_size": 16}})
    model = make(name, book, whole=parameters(name) < 20e6, media_shape=None).eval()
    if model.latency_samples is None:
        with pytest.raises(ValueError) as error:
            model.stream(1)
        assert "\n" not in str(error.value)
        return
    hop = model.hop
    x = sound(2, 9 * hop + 7, model.encoder.channels).float()
    model.train()(Batch(x, torch.arange(2)), noise_of(x))  # books start from what they see
    model.eval().double()
    tokens = model.encode(x)
    media = model.decode(tokens)
    for seed, largest in enumerate((hop // 2, 3 * hop)):
        codes, parts = through(model, x, sizes_of(x.shape[2], largest, seed))
        assert torch.equal(codes, tokens.codes)
        torch.testing.assert_close(parts, media, atol=1e-5, rtol=0)
    assert len(tokens.codes.unique()) > 4, "the test would prove nothing"


def test_short_sounds_and_empty_chunks_stream():
    for padding in ("zero", "reflect"):
        model = small(padding=padding)
        for length in (0, 1, HOP - 1, HOP, HOP + 1):
            x = sound(length=length).double()
            tokens = model.encode(x)
            for sizes in ([length], [0, length, 0], [1] * length):
                codes, media = through(model, x, sizes or [0])
                assert torch.equal(codes, tokens.codes)
                torch.testing.assert_close(media, model.decode(tokens), atol=1e-6, rtol=0)


def latest(model, x) -> tuple[int, int]:
    """(samples fed before the first sample of sound came, largest lag of a sample of sound behind the input since then)."""
    stream, out, first, lag = model.stream(1), 0, None, 0
    for fed in range(1, x.shape[2] + 1):
        media = stream.decode(stream.encode(x[..., fed - 1 : fed]))
        if media.shape[2] and first is None:
            first = fed
        elif media.shape[2]:
            lag = max(lag, fed - out)
        out += media.shape[2]
    return first, lag


def test_sound_comes_as_late_as_the_codec_says():
    """Zeros: a frame after its first sample. Reflection: the first frame waits for the reflected beginning of the widest kernel, 7."""
    model = small()
    assert latest(model, sound(1, 10 * HOP).double()) == (HOP, HOP) and model.latency_samples == HOP
    model = small(padding="reflect")
    assert latest(model, sound(1, 20 * HOP).double()) == (7 * HOP, HOP) and model.latency_samples == HOP


def test_each_direction_streams_by_itself():
    model = small(padding="reflect")
    x = sound(2, 5 * HOP + 2).double()
    tokens = model.encode(x)
    stream = model.stream(2)
    parts = [stream.encode(part).codes for part in x.split(4, 2)]
    last, media = stream.flush()
    assert torch.equal(torch.cat([*parts, last.codes], 2), tokens.codes)
    stream = model.stream(2)
    media = [stream.decode(Tokens(part, model.spec)) for part in tokens.codes.split([1, 2, 3], 2)]
    last, rest = stream.flush()
    assert last.codes.shape == (2, 3, 0)
    torch.testing.assert_close(torch.cat([*media, rest], 2), model.decode(tokens), atol=1e-6, rtol=0)


def test_a_stream_trains_nothing_and_changes_no_buffer():
    model = small().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    stream = model.stream(3)
    media = stream.decode(stream.encode(sound()))
    assert not media.requires_grad and model.codebook.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_wrong_use_of_a_stream_is_refused_in_one_line():
    model = small()
    stream = model.stream(2)
    ended = model.stream(3)
    ended.flush()
    striped = small()
    striped.spec = model.spec.__class__(**{**vars(model.spec), "strides": (4, 2, 1)})
    for act, words in (
        (lambda: stream.encode(sound(3)), "2 row.*the chunk has 3"),
        (lambda: stream.decode(model.encode(sound(3))), "2 row.*the chunk has 3"),
        (lambda: ended.encode(sound(3)), "was flushed"),
        (lambda: ended.flush(), "was flushed"),
        (lambda: stream.encode(sound(2, channels=2)), "1 channel"),
        (lambda: small(causal=False).stream(1), "causal=true"),
        (lambda: striped.stream(1), "every 4th frame"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            act()
        assert "\n" not in str(error.value)


class NeverLast(CodecStream):
    """A stream that does not tell the networks that nothing follows."""

    def _code(self, media, last=False):
        return super()._code(media)


class ForgetsTheLastFrames(CodecStream):
    """A stream that ends without the sound of the frames that it has just made."""

    def _sound(self, codes, last=False):
        return super()._sound(codes[..., :0] if last else codes, last)


@pytest.mark.parametrize("wrong", [NeverLast, ForgetsTheLastFrames])
def test_a_stream_with_a_wrong_end_is_found(wrong):
    model = small()
    model.stream = lambda batch: wrong(model, batch)
    x = sound(2, 5 * HOP + 2).double()
    tokens = model.encode(x)
    codes, media = through(model, x, [9, 23])
    assert codes.shape != tokens.codes.shape or media.shape != model.decode(tokens).shape
