"""Speech and its text as one stream of ids, for one language model of both (GLM-4-Voice, Zeng et al., arXiv 2412.02612, section 3).

    vocabulary   text symbols | end of text | speech codes | end of speech | one id for each order
    a row        its order, then text and speech, each closed by its end:
        interleaved     13 of text, 26 of speech, 13 of text, ... ; when one of them has ended, the rest of the other
        text_first      all of the text, then all of the speech      (what speaks a text)
        speech_first    all of the speech, then all of the text      (what transcribes)

Which part stands where depends on where text and speech end, so it is a grammar (gentok/grammar.py) and no table of places: a causal
generator gives all ids of the wrong part the probability 0. Since the order is drawn by row, one model learns all of them; what is known
(a text, a sound, a text and the first seconds of its sound) is then the beginning of a row of an order that puts it first, and the rest
is sampled exactly. Speech codes are those of a frozen tokenizer of one level inside, which the bundle holds too.

Deviations: text is of characters; orders are ids of the vocabulary, where the paper words the task as a prompt; speech has an end of its
own; text that is still there when its speech has ended follows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gentok.interfaces import Tokenizer
from gentok.rng import RowRNG
from gentok.settings import PositiveInt
from gentok.tokenizers.inner import speech_sizes, speech_tokenizer
from gentok.tokenizers.sound_checks import check_known, frames_of
from gentok.tokenizers.texts import bound_to_texts, text_of
from gentok.types import (
    ABSENT,
    UNKNOWN,
    Batch,
    Condition,
    ConditionSpec,
    Ids,
    IdsSpec,
    Line,
    TokenizerOutput,
    Tokens,
    TokenSpec,
)

__all__ = ["ORDERS", "SpeechText"]

ORDERS = ("interleaved", "text_first", "speech_first")


class SpeechText(Tokenizer, id="tokenizer/speech_text"):
    """Sound float [B, 1, T] and text Ids [B, L] <-> Tokens [B, 1, N] with lengths."""

    codebook = None
    modality = "audio"
    needs_training = False
    data_settings = ("longest_text",)
    inner = {"speech": speech_sizes}

    def __init__(
        self,
        speech: Tokenizer | Mapping[str, Any],
        symbols: str | Sequence[str],
        longest_text: PositiveInt | None = None,
        text_span: PositiveInt = 13,
        speech_span: PositiveInt = 26,
        orders: Sequence[str] = ORDERS,
        media_shape: Sequence[PositiveInt] | None = None,
    ):
        """
        Args:
            speech: a built tokenizer of sound with one level of codes; in training {ckpt: BUNDLE}, to be described {vocab_size, hop,
                sample_rate}.
            symbols: of the text, in the order of their ids; filled in from the data's `text`.
            longest_text: the most symbols of an item; filled in from the data.
            text_span, speech_span: ids in a row of an interleaved stream.
            orders: those that rows are written in, each as often.
            media_shape: of the data, (1,), or (1, T) of T samples of the longest item, which with longest_text bounds the rows.

        Raises:
            ValueError: the speech tokenizer has several levels, or a setting is out of its range.
        """
        super().__init__()
        self.speech = speech_tokenizer(speech)
        inner: TokenSpec = self.speech.spec
        if not symbols or len(set(symbols)) != len(symbols):
            raise ValueError(f"speech_text needs symbols of texts, each once; got {symbols}: use data with a text (data.captions=ids)")
        if not orders or len(set(orders)) != len(orders) or not set(orders) <= set(ORDERS):
            raise ValueError(f"tokenizer.orders={list(orders)}: some of {', '.join(ORDERS)}, each once")
        self.symbols, self.longest_text, self.orders = tuple(symbols), longest_text, tuple(orders)
        self.text_span, self.speech_span = text_span, speech_span
        self.hop = round(inner.sample_rate / inner.grid.rate_hz)
        self.written_condition = ConditionSpec((("text", IdsSpec(self.symbols, longest_text or 0)),))
        parts, start = [], 0
        sizes = {"text": len(symbols), "end_of_text": 1, "speech": inner.vocab, "end_of_speech": 1, **dict.fromkeys(orders, 1)}
        for name, size in sizes.items():
            parts.append((name, start, start + size))
            start += size
        shape = tuple(media_shape or ())
        self.spec = TokenSpec(
            vocab_sizes=(start,),
            grid=Line(self.positions_of(shape[1]) if len(shape) == 2 and longest_text is not None else None),
            parts=tuple(parts),
            grammar=_grammar(text_span, speech_span, self.orders),
            modality="audio",
            media_shape=inner.media_shape[:1],
            sample_rate=inner.sample_rate,
        )
        self._first = {name: first for name, first, _ in parts}

    def positions_of(self, samples: int) -> int:
        """The ids of an item of so many samples and the longest text."""
        return frames_of(samples, self.hop) + (self.longest_text or 0) + 3

    @classmethod
    def bind_to_data(cls, config: Mapping[str, Any], condition_spec: ConditionSpec) -> dict[str, Any]:
        return bound_to_texts(config, condition_spec)

    def fit_to_items(self, longest_item: int, condition_spec: ConditionSpec) -> TokenSpec:
        text_of(condition_spec, self.symbols)
        return replace(self.spec, grid=replace(self.spec.grid, n=self.positions_of(longest_item)))

    def encode_batch(self, batch: Batch, rng: RowRNG | None = None) -> Tokens:
        return self.encode(batch.media, batch.lengths, rng, batch.condition)

    # ------------------------------------------------------------------------------------------------------------ contract

    @torch.no_grad()
    def encode(self, media: Tensor, lengths: Tensor | None = None, rng: RowRNG | None = None, condition: Condition | None = None) -> Tokens:
        """Speech and its texts as rows of ids.

        Args:
            media: float [B, 1, T].
            lengths: int64 [B] in samples; None: all are T long.
            rng: draws each row's order; None: all have the first of `orders`.
            condition: its part `text` holds the texts.

        Returns:
            Tokens [B, 1, N], N ids in the longest row.

        Raises:
            ValueError: there are no texts, or one has a symbol beyond the alphabet.
        """
        text = None if condition is None else condition.parts.get("text")
        if not isinstance(text, Ids):
            raise ValueError("speech_text writes texts into its codes, and these items have no `text`: data.captions=ids, or other data")
        codes = self.speech.encode(media, lengths)
        chosen = torch.zeros(len(media)) if rng is None else rng.fork("order").uniform() * len(self.orders)
        items = zip(self._texts(text), _rows(codes.codes[:, 0]), chosen.long().tolist())
        return self._tokens([self._written(text, speech, self.orders[order]) for text, speech, order in items], media.device)

    def decode(self, tokens: Tokens, rng: RowRNG | None = None, **options: Any) -> Tensor:
        """The speech of each row, float [B, 1, T]: as many samples as the longest has, at least one frame; zeros behind a row's end."""
        codes, lengths = self.speech_codes(tokens)
        spec = replace(self.speech.spec, grid=replace(self.speech.spec.grid, n=codes.shape[2]))
        return self.speech.decode(Tokens(codes, spec, lengths), rng, **options)

    def text(self, tokens: Tokens) -> list[str]:
        """The text of each row, as far as its codes hold it."""
        own = self.spec.part("text")
        return ["".join(self.symbols[i] for i in row if own.start <= i < own.stop) for row in self._checked(tokens).tolist()]

    def speech_codes(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """(codes int64 [B, 1, F] of the tokenizer inside, ABSENT behind a row's end, F >= 1; their number int64 [B])."""
        own, ids = self.spec.part("speech"), self._checked(tokens)
        found = [row[(row >= own.start) & (row < own.stop)] - own.start for row in ids]
        lengths = torch.tensor([len(row) for row in found], dtype=torch.int64, device=ids.device)
        codes = torch.full((len(ids), max([1, *lengths.tolist()])), ABSENT, dtype=torch.int64, device=ids.device)
        for row, values in zip(codes, found):
            row[: len(values)] = values
        return codes[:, None], lengths

    def samples_of(self, tokens: Tokens, media: Tensor | None = None, least: int = 0) -> Tensor:
        """int64 [B]: samples of each row's sound, of at least `least` frames."""
        return self.speech_codes(tokens)[1].clamp(min=least) * self.hop

    def forward(self, batch: Batch, rng: RowRNG | None = None) -> TokenizerOutput:
        """Raises ValueError: there is nothing to train."""
        raise ValueError("speech_text has nothing to train: train its speech tokenizer (task=tokenizer), then a generator (task=generator)")

    # -------------------------------------------------------------------------------------------------------- what is known

    @property
    def prompt_tokenizer(self) -> Tokenizer:
        return self.speech

    def prompt(self, condition: Condition, known: Tokens | None = None) -> Tokens | None:
        """What is known of rows to be sampled.

        Args:
            condition: a row's `text` is known where it is not empty, and then comes first.
            known: speech of the tokenizer inside, of one row or as many as texts: with a text how its sound begins, without one the
                whole sound, of which the text is to be written. None: no speech is known.

        Returns:
            Tokens [B, 1, N], UNKNOWN behind what is known; None where nothing is.

        Raises:
            ValueError: the model has no order that puts it first.
        """
        text = condition.parts.get("text")
        if known is None and (text is None or not bool((text.ids >= 0).any())):
            return None
        codes = [] if known is None else _rows(known.codes[:, 0])
        texts = [[]] * len(codes) if text is None else self._texts(text)
        rows = []
        for i, written in enumerate(texts):
            speech = codes[i % len(codes)] if codes else []
            order = "text_first" if written else "speech_first"
            if (written or speech) and order not in self.orders:
                raise ValueError(
                    f"this model was never trained on rows whose {order.removesuffix('_first')} comes first (tokenizer.orders = "
                    f"{', '.join(self.orders)}): train one with {order}"
                )
            row = self._written(written, speech, order) if written or speech else []
            rows.append(row[: len(written) + 2 + len(speech)])  # without the end of what may go on
        device = text.ids.device if known is None else known.codes.device
        return self._tokens(rows, device, UNKNOWN, self.spec.positions)

    # ----------------------------------------------------------------------------------------------------------------- rows

    def _texts(self, text: Ids) -> list[list[int]]:
        rows = _rows(text.ids)
        unknown = next((i for row in rows for i in row if i >= len(self.symbols)), None)
        if unknown is not None:
            raise ValueError(
                f"a text has the symbol number {unknown}; this tokenizer knows 0..{len(self.symbols) - 1}, {''.join(self.symbols)!r}: "
                "use texts of that alphabet"
            )
        return rows

    def _written(self, text: list[int], speech: list[int], order: str) -> list[int]:
        first = self._first
        text = [*text, first["end_of_text"]]
        speech = [*(code + first["speech"] for code in speech), first["end_of_speech"]]
        out = [first[order]]
        if order == "speech_first":
            return out + speech + text
        if order == "interleaved":
            while text and speech:
                out, text = out + text[: self.text_span], text[self.text_span :]
                if text:  # an ended text leaves all that follows to speech
                    out, speech = out + speech[: self.speech_span], speech[self.speech_span :]
                else:
                    break
        return out + text + speech

    def _tokens(self, rows: list[list[int]], device: Any, rest: int = ABSENT, positions: int | None = None) -> Tokens:
        lengths = [len(row) for row in rows]
        ids = torch.full((len(rows), positions or max(lengths, default=0)), rest, dtype=torch.int64)
        if max(lengths, default=0) > ids.shape[1]:
            raise ValueError(f"what is known has {max(lengths)} ids, this model's longest row {ids.shape[1]}: shorten it")
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        spec = self.spec if self.spec.grid.n in (None, ids.shape[1]) else replace(self.spec, grid=replace(self.spec.grid, n=ids.shape[1]))
        ends = torch.tensor(lengths, dtype=torch.int64, device=device) if rest == ABSENT else None
        return Tokens(ids[:, None].to(device), spec, ends)

    def _checked(self, tokens: Tokens) -> Tensor:
        """int64 [B, N]."""
        self.check_tokens(tokens)
        if tokens.codes.is_meta:
            raise ValueError("the ids of a row say how much of it is speech, and these have none (they lie on the meta device)")
        check_known(tokens)
        return tokens.codes[:, 0]


def _rows(ids: Tensor) -> list[list[int]]:
    """int64 [B, N] -> each row's ids without what is ABSENT."""
    return [[i for i in row if i >= 0] for row in ids.tolist()]


def _grammar(text_span: int, speech_span: int, orders: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """[state][part] for the parts text, end of text, speech, end of speech, and the orders. States: 0 the beginning, 1 the end, 2 the rest
    of the text, 3 the rest of the speech, 4 all of the text first, 5 all of the speech first, then those of the spans."""
    spans, none = 6, (-1,) * len(orders)
    begins = {"text_first": 4, "speech_first": 5, "interleaved": spans}
    rows = [
        (-1, -1, -1, -1, *(begins[order] for order in orders)),
        (-1, -1, -1, -1, *none),
        (2, 1, -1, -1, *none),
        (-1, -1, 3, 1, *none),
        (4, 3, -1, -1, *none),
        (-1, -1, 5, 2, *none),
    ]
    total = text_span + speech_span
    for i in range(total):
        after = spans + (i + 1) % total
        rows.append((after, 3, -1, -1, *none) if i < text_span else (-1, -1, after, 2, *none))
    return tuple(rows)
