"""A small tokenizer of streams of text and speech, over an untrained codec of one level."""

import torch

from gentok.codebooks.vq import VQ
from gentok.nn.seanet import SEANetDecoder, SEANetEncoder
from gentok.tokenizers.codec import Codec
from gentok.tokenizers.speech_text import SpeechText

SYMBOLS, RATE, HOP = "abc ", 800, 4


def speech(vocab=16) -> Codec:
    torch.manual_seed(0)
    encoder, decoder = (part(width=8, filters=4, ratios=[HOP]) for part in (SEANetEncoder, SEANetDecoder))
    return Codec(encoder, VQ(vocab, 8), decoder, RATE)


def stream(inner=None, longest=32 * HOP, **options) -> SpeechText:
    settings = {"symbols": SYMBOLS, "longest_text": 10, "media_shape": (1, longest), **options}
    return SpeechText(speech() if inner is None else inner, **settings).eval()
