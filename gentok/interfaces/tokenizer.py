"""What a tokenizer is, with every hook that the rest of gentok uses and its default."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from gentok.interfaces.codebook import Codebook
from gentok.interfaces.component import Component
from gentok.interfaces.parts import FeatureNetwork
from gentok.rng import RowRNG
from gentok.types import Batch, Condition, ConditionSpec, Frames, Grid, Latents, TokenizerOutput, Tokens, TokenSpec

__all__ = ["StreamingTokenizer", "Tokenizer", "TokenizerStream"]


class Tokenizer(nn.Module, Component):
    """media -> Tokens -> media. Images float [B, C, H, W] in [-1, 1], sounds float [B, C, T] in [-1, 1].

    A subclass implements `encode`, `decode` and `forward` and sets `spec` and `codebook`; everything else has a default.
    `gentok.tokenizers.base.ImageTokenizer` and `gentok.tokenizers.codec.Codec` implement the three for most images and sounds.

    Attributes:
        spec: what its tokens are.
        codebook: its codebook; None where it has none (latents).
        modality: "image", "audio", or None where it takes what the tokenizer inside it takes.
        needs_parts: the parts that its codebook must have (the halves of a dual codebook).
        one_code_per_cell: whether a codebook that lays its codes on a grid of its own (a pyramid) is refused.
        decode_only: first parts of the names of parameters that codes do not depend on.
        training_only: keys of its configuration that neither codes nor media depend on; a bundle leaves them out.
        data_settings: keys of its configuration that follow from the longest item of the data, and so are no part of its fingerprint.
        inner: {key of its configuration: what a bundle's TokenSpec says about the sizes that may be given instead}, for a tokenizer
            that works on the output of another, trained one.
        needs_training: False where it works as it is built: pretrained, or only rewriting the codes of the tokenizer inside.
        generative: whether `decode` draws, from a model that `forward` trains; the output of `forward` then has no reconstruction.
        draws: whether its codes are drawings, which `drawings` gives as SVG documents, and of which commands can be kept.
        written_condition: the parts of an item's condition that `encode` writes into the codes; generators are not conditioned on them.
        latency_samples: how far the output of a stream lags behind its input; None where the tokenizer does not work chunk by chunk.
    """

    spec: TokenSpec
    codebook: Codebook | None
    modality: ClassVar[str | None] = "image"
    needs_parts: ClassVar[tuple[str, ...]] = ()
    one_code_per_cell: ClassVar[bool] = False
    decode_only: Sequence[str] = ("decoder",)
    training_only: ClassVar[tuple[str, ...]] = ("losses", "teacher")
    data_settings: ClassVar[tuple[str, ...]] = ()
    inner: ClassVar[Mapping[str, Callable[[TokenSpec], dict[str, Any]]]] = {}
    needs_training: bool = True
    generative: bool = False
    draws: ClassVar[bool] = False
    written_condition: ConditionSpec = ConditionSpec()
    latency_samples: int | None = None

    # ----------------------------------------------------------------------------------------------------- the three

    def encode(self, media: Tensor, lengths: Tensor | None = None, rng: RowRNG | None = None) -> Tokens | Latents:
        """Media to tokens, without gradient; changes no buffer, also in training mode.

        Args:
            media: float [B, C, H, W] or [B, C, T] in [-1, 1].
            lengths: int64 [B] in samples, for sounds that differ in length; None for images, or where all are T long.
            rng: for tokenizers that draw; None: nothing is drawn.

        Returns:
            Tokens [B, K, N], or Latents [B, D, N].

        Raises:
            ValueError: the media are of another shape than the tokenizer takes.
        """
        raise NotImplementedError

    def decode(self, tokens: Tokens | Latents, rng: RowRNG | None = None, **options: Any) -> Tensor:
        """Tokens to media float32 [B, C, ...] in [-1, 1]; absent levels add nothing. Raises ValueError on another tokenizer's tokens."""
        raise NotImplementedError

    def forward(self, batch: Batch, rng: RowRNG | None = None) -> TokenizerOutput:
        """One training pass: tokens, weighted losses, and the reconstruction with gradient."""
        raise NotImplementedError

    def check_tokens(self, tokens: Tokens, grid: type[Grid] | None = None) -> None:
        """Raises ValueError on another tokenizer's tokens: other vocabularies or parts, or not on a `grid` of this kind (None: any)."""
        own, given = self.spec, tokens.spec
        if given.vocab_sizes != own.vocab_sizes or given.parts != own.parts or (grid and not isinstance(given.grid, grid)):
            raise ValueError(f"these tokens are of another tokenizer: {given.describe()}; this one makes {own.describe()}")

    # ---------------------------------------------------------------------------------------------------------- hooks

    def encode_batch(self, batch: Batch, rng: RowRNG | None = None) -> Tokens | Latents:
        """A batch's media as tokens. A tokenizer with a `written_condition` reads it from the batch; rng is for such alone."""
        assert batch.media is not None, "a batch of cached tokens has nothing to encode"
        return self.encode(batch.media) if batch.lengths is None else self.encode(batch.media, batch.lengths)

    def prequantized(self, media: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What `encode` gives to the codebook, with gradient; changes no buffer.

        Args:
            media, lengths: as of `encode`.

        Returns:
            float [B, in_width, M].

        Raises:
            TypeError: codes are made otherwise.
        """
        raise TypeError(f"{type(self).__name__} does not make its codes by a codebook of what its encoder finds")

    @property
    def last_layer(self) -> Tensor | None:
        """The decoder's last weight, where gradients of losses are compared (adaptive weights); None where there is none."""
        return None

    def portable(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """`config` as it rebuilds this tokenizer anywhere: without the path that its weights were loaded from."""
        return dict(config)

    @classmethod
    def bind_to_data(cls, config: Mapping[str, Any], condition_spec: ConditionSpec) -> dict[str, Any]:
        """`config` with what it leaves to the data (an alphabet). Raises ValueError where the data do not fit it."""
        return dict(config)

    def fit_to_items(self, longest_item: int, condition_spec: ConditionSpec) -> TokenSpec:
        """The spec for items of up to `longest_item` samples. Raises ValueError where the data do not fit this tokenizer."""
        spec = self.spec
        if not isinstance(spec.grid, Frames) or spec.sample_rate is None:
            return spec
        several = spec.frame_multiple
        frames = -(-longest_item // (round(spec.sample_rate / spec.grid.rate_hz) * several)) * several
        return replace(spec, grid=replace(spec.grid, n=frames))

    def samples_of(self, tokens: Tokens, media: Tensor, least: int = 0) -> Tensor | None:
        """int64 [B]: samples of each row of decoded sound, of at least `least` frames; None where the tokens have no lengths."""
        if tokens.lengths is None:
            return None
        return tokens.lengths.clamp(min=least) * (media.shape[-1] // tokens.codes.shape[2])

    @property
    def prompt_tokenizer(self) -> Tokenizer:
        """The tokenizer whose tokens the beginning of a known sound is given in."""
        return self

    def prompt(self, condition: Condition, known: Tokens | None) -> Tokens | None:
        """For a tokenizer with a `written_condition`: what is known of rows to be sampled, UNKNOWN behind it.

        Args:
            condition: of the rows; its written parts are known where they are not null.
            known: tokens of `prompt_tokenizer` that the rows begin with; None: none.

        Returns:
            Tokens [B, K, N]; None where nothing is known.
        """
        return None

    @property
    def asked_condition(self) -> ConditionSpec:
        """The parts of `written_condition` that samples may be asked for by."""
        return self.written_condition

    def drawings(self, tokens: Tokens) -> list[str]:
        """Each row as an SVG document. Raises TypeError where codes are no drawings."""
        raise TypeError(f"{type(self).__name__} makes no drawings")

    def read_drawing(self, source: Any) -> Tensor:
        """An SVG file as codes.

        Args:
            source: its path, or its bytes.

        Returns:
            int64 [n].

        Raises:
            ValueError, OSError: it cannot be read, with a line.
            TypeError: codes are no drawings.
        """
        raise TypeError(f"{type(self).__name__} makes no drawings")

    def prompt_drawing(self, codes: Tensor, keep: Any = None) -> Tokens:
        """What is known of a drawing that is to be completed.

        Args:
            codes: int64 [n], those of `read_drawing`.
            keep: the commands that stay, such as "0:3+6:", counted from 0; None: the first half of them.

        Returns:
            Tokens [1, 1, N], UNKNOWN where something is to be drawn.

        Raises:
            ValueError: `keep` or `codes` are something else.
            TypeError: codes are no drawings.
        """
        raise TypeError(f"{type(self).__name__} makes no drawings")

    def text(self, tokens: Tokens) -> list[str] | None:
        """The text of each row, of a tokenizer whose codes hold one; None for others."""
        return None

    def scores(self, batch: Batch, tokens: Tokens) -> dict[str, Tensor]:
        """Further figures of held-out items, {name: float [B]}."""
        return {}

    def feature_networks(self) -> dict[str, FeatureNetwork]:
        """Networks that are asked about every item, by the key of the configuration that describes them."""
        return {}


class TokenizerStream:
    """A batch of rows on their way through a tokenizer, chunk by chunk."""

    def encode(self, media: Tensor) -> Tokens:
        """The next samples, float [B, C, any] -> the frames that they complete, Tokens [B, K, any]."""
        raise NotImplementedError

    def decode(self, tokens: Tokens) -> Tensor:
        """The next frames, Tokens [B, K, any] -> the samples that they complete, float32 [B, C, any] in [-1, 1]."""
        raise NotImplementedError

    def flush(self) -> tuple[Tokens, Tensor]:
        """Ends the stream.

        Returns:
            The frames of the samples that filled none yet, and the sound that is still owed: where all encoded frames were decoded, also
            that of these frames, otherwise of what `decode` was given.
        """
        raise NotImplementedError


class StreamingTokenizer(Tokenizer):
    """A tokenizer that works chunk by chunk where `latency_samples` is not None."""

    def stream(self, batch: int = 1) -> TokenizerStream:
        """A stream of `batch` rows, before their first sample. Raises ValueError where the networks need later input."""
        raise NotImplementedError
