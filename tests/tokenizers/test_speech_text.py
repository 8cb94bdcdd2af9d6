"""Streams of text and speech: what is written is read again, parts cover the vocabulary, and the grammar admits what is written alone."""

import random

import pytest
import torch
from stream_kit import HOP, RATE, SYMBOLS, speech, stream

from gentok.codebooks.residual import ResidualCodebook
from gentok.codebooks.vq import VQ
from gentok.errors import FormatError
from gentok.grammar import Grammar
from gentok.nn.seanet import SEANetDecoder, SEANetEncoder
from gentok.rng import RowRNG
from gentok.tokenizers.codec import Codec
from gentok.tokenizers.speech_text import ORDERS
from gentok.types import ABSENT, Condition, Ids, Tokens, TokenSpec


def items(rows=12, seed=0):
    """Sounds of 0 to 20 frames, with texts of 0 to 9 symbols."""
    rng, g = random.Random(seed), torch.Generator().manual_seed(seed)
    lengths = torch.tensor([rng.randrange(20 * HOP + 1) for _ in range(rows)])
    media = torch.randn(rows, 1, int(lengths.max()), generator=g).clamp(-1, 1)
    texts = ["".join(rng.choice(SYMBOLS) for _ in range(rng.randrange(10))) for _ in range(rows)]
    return media, lengths, texts


def ids_of(texts):
    ids = torch.full((len(texts), max(1, *map(len, texts))), ABSENT)
    for row, text in zip(ids, texts):
        row[: len(text)] = torch.tensor([SYMBOLS.index(c) for c in text], dtype=torch.int64)
    return Condition({"text": Ids(ids)})


@pytest.mark.parametrize("spans", [(13, 26), (1, 1), (3, 1), (2, 5)])
def test_text_and_speech_are_read_as_they_were_written_in_every_order(spans):
    media, lengths, texts = items(seed=spans[0])
    model = stream(text_span=spans[0], speech_span=spans[1])
    own = model.speech.encode(media, lengths)
    tokens = model.encode(media, lengths, RowRNG.of(0, torch.arange(len(texts))), ids_of(texts)).validate()
    orders = tokens.codes[:, 0, 0]
    assert len(orders.unique()) == len(ORDERS)
    assert model.text(tokens) == texts
    codes, count = model.speech_codes(tokens)
    assert torch.equal(count, own.lengths) and torch.equal(codes, own.codes[:, :, : codes.shape[2]])
    assert torch.equal(model.samples_of(tokens), own.lengths * HOP)
    assert torch.equal(tokens.lengths, own.lengths + torch.tensor([len(t) for t in texts]) + 3)
    made, theirs = model.decode(tokens), model.speech.decode(own)
    assert torch.allclose(made, theirs[..., : made.shape[2]], atol=1e-6)


def test_an_interleaved_row_takes_turns_by_its_spans_until_one_ends():
    model = stream(text_span=2, speech_span=3)
    names = "".join("x." + "s!" + "iTS")  # text, its end, speech, its end, orders
    kind = "".join(name * (stop - start) for name, (_, start, stop) in zip(names, model.spec.parts))

    def shown(text, codes, order):
        return "".join(kind[i] for i in model._written(text, codes, order))

    assert shown([0] * 3, [0] * 7, "interleaved") == "ixxsssx.ssss!"
    assert shown([0] * 2, [0] * 2, "interleaved") == "ixxss!."
    assert shown([0] * 6, [0] * 2, "interleaved") == "ixxss!xxxx."
    assert shown([0] * 3, [0] * 4, "interleaved") == "ixxsssx.s!"
    assert shown([], [], "interleaved") == "i.!"
    assert shown([0] * 3, [0] * 2, "text_first") == "Txxx.ss!" and shown([0] * 3, [0] * 2, "speech_first") == "Sss!xxx."


def test_parts_cover_the_vocabulary_without_overlap_and_the_spec_survives_json():
    spec = stream(orders=("text_first", "interleaved")).spec
    assert [i for _, start, stop in spec.parts for i in range(start, stop)] == list(range(spec.vocab))
    assert spec.part("speech").stop - spec.part("speech").start == 16 and spec.part("text") == slice(0, len(SYMBOLS))
    assert TokenSpec.from_dict(spec.to_dict()) == spec
    plain = speech().spec
    assert "grammar" not in plain.to_dict()  # fingerprints of tokens without one are what they were
    with pytest.raises(FormatError, match="newer gentok"):
        TokenSpec.from_dict({**spec.to_dict(), "music": 1})
    for parts in (spec.parts[:-1], (("a", 0, 3), ("b", 2, spec.vocab))):
        with pytest.raises(ValueError, match="consecutive"):
            TokenSpec(spec.vocab_sizes, spec.grid, parts=parts, grammar=((0,) * len(parts),))
    with pytest.raises(ValueError, match="no part 'music'"):
        spec.part("music")


def test_the_grammar_admits_rows_to_their_end_and_no_other_part():
    media, lengths, texts = items(30)
    model = stream(text_span=2, speech_span=3)
    tokens = model.encode(media, lengths, RowRNG.of(0, torch.arange(30)), ids_of(texts))
    grammar, part = Grammar(model.spec), {i: name for name, start, stop in model.spec.parts for i in range(start, stop)}
    states = grammar.states(tokens.codes[:, 0])
    for row, state, length in zip(tokens.codes[:, 0].tolist(), states, tokens.lengths.tolist()):
        allowed = grammar.allowed(state)
        walked = torch.tensor(0)
        for n in range(len(row)):
            assert int(walked) == int(state[n])  # composed maps say what steps say
            walked = grammar.step(walked, torch.tensor(row[n]))
            able = {part[i] for i in allowed[n, :-1].nonzero()[:, 0].tolist()}
            if n < length:
                family = {"text", "end_of_text"} if part[row[n]] in ("text", "end_of_text") else {"speech", "end_of_speech"}
                assert able == (set(ORDERS) if n == 0 else family) and not allowed[n, -1]
            else:
                assert not able and allowed[n, -1]


def test_known_beginnings_are_those_of_written_rows():
    media, lengths, texts = items(6, seed=3)
    texts = [t or "a" for t in texts]
    for order, known in (("text_first", "text"), ("speech_first", "speech"), ("text_first", "both")):
        model = stream(orders=ORDERS)
        own = model.speech.encode(media, lengths)
        alone = stream(orders=(order,)).encode(media, lengths, None, ids_of(texts))
        prompt = model.prompt(Condition() if known == "speech" else ids_of(texts), None if known == "text" else own)
        count = (prompt.codes >= 0).sum((1, 2))
        said, heard = torch.tensor([len(t) for t in texts]), own.lengths
        assert torch.equal(count, {"text": said + 2, "speech": heard + 2, "both": said + 2 + heard}[known])
        for row, (n, ids) in enumerate(zip(count.tolist(), alone.codes[:, 0])):
            assert torch.equal(prompt.codes[row, 0, 1:n], ids[1:n]) and (prompt.codes[row, 0, n:] == -2).all()
            assert model.spec.part(order).start == prompt.codes[row, 0, 0]
    nothing = stream().prompt(Condition({"text": Ids(torch.full((2, 3), ABSENT))}))
    assert nothing is None


def test_bad_input_is_one_line():
    media, lengths, texts = items(2)
    model = stream()
    encoder = SEANetEncoder(width=8, filters=4, ratios=[4])
    decoder = SEANetDecoder(width=8, filters=4, ratios=[4])
    several = Codec(encoder, ResidualCodebook(VQ(16, 8), levels=2), decoder, RATE)
    lines = {
        "one level": lambda: stream(several),
        "text_span=0": lambda: stream(text_span=0),
        "speech_span=1.5": lambda: stream(speech_span=1.5),
        "some of interleaved": lambda: stream(orders=("backwards",)),
        "each once": lambda: stream(symbols="aa"),
        "alphabet": lambda: model.encode(media, lengths, None, Condition({"text": Ids(torch.full((2, 1), len(SYMBOLS)))})),
        "captions=ids": lambda: model.encode(media, lengths),
        "never shown rows whose text": lambda: stream(orders=("interleaved",)).prompt(ids_of(texts + ["a"])),
        "another tokenizer": lambda: model.text(model.speech.encode(media, lengths)),
        "holes": lambda: model.decode(Tokens.unknown(model.spec, 1)),
        "longest row 45": lambda: model.prompt(Condition({"text": Ids(torch.zeros(1, 50, dtype=torch.int64))})),
        "nothing to train": lambda: model(None),
        "describe": lambda: stream({"ckpt": "somewhere"}),
    }
    for words, attempt in lines.items():
        with pytest.raises(ValueError, match=words) as error:
            attempt()
        assert "\n" not in str(error.value)
