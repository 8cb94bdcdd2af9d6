"""The Protocols of the parts: codebook, tokenizer, generator, and a tokenizer that streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from gentok.rng import RowRNG
from gentok.types.condition_specs import ConditionSpec
from gentok.types.conditions import Condition
from gentok.types.outputs import Batch, LossOutput, Quantized, TokenizerOutput
from gentok.types.token_spec import TokenSpec
from gentok.types.tokens import Latents, Tokens

__all__ = ["Codebook", "Tokenizer", "StreamingTokenizer", "Generator", "encoding"]


@runtime_checkable
class Codebook(Protocol):
    """Vectors to codes and back; float32 inside, also under autocast. A frozen one is what code-vector generators are handed.

    Laws: eval changes no buffer; lookup(forward(z).codes) == forward(z).vectors; nearest(lookup(c)) == c where `invertible` and
    rows differ; identical rows on every rank after every step; bf16 autocast uses as many codes as float32.
    """

    in_width: int
    """Channels that forward takes: what the encoder must emit."""
    width: int
    """D, channels of the vectors that forward and lookup return: what the decoder gets."""
    levels: int
    """K."""
    vocab_sizes: tuple[int, ...]
    invertible: bool
    nested_levels: bool
    """Whether the sum of the first k levels is a valid code for every k."""
    parts: dict[str, slice]
    """Named ranges of forward's channels (a dual codebook's halves); {} for most."""

    def forward(self, z: Tensor, *, keep: Tensor | None = None, rng: RowRNG | None = None) -> Quantized:
        """z float [B, D_in, M] -> Quantized. keep int64 [B]: levels to use in each row (residual books). noise: row streams for
        everything random (level dropout, revival, sampled bits); None: nothing random happens."""

    def lookup(self, codes: Tensor) -> Tensor:
        """codes int64 [B, K, N] -> vectors float32 [B, D, M]; absent levels add nothing."""

    def nearest(self, vectors: Tensor, given: Tensor | None = None) -> Tensor:
        """vectors float [B, D, M], in the space that lookup returns -> codes [B, K, N]; with `given`, fills only its UNKNOWN cells."""

    def table(self, level: int = 0) -> Tensor:
        """float32 [V_k, D]: the rows as lookup adds them, output projection applied."""

    def accumulate(self, codes: Tensor, scales: Sequence[int]) -> Tensor:
        """Vectors summed up to each scale, at the next scale's size (pyramids only)."""


@runtime_checkable
class Tokenizer(Protocol):
    """media -> Tokens -> media. Images float [-1, 1] [B, C, H, W]; audio float [B, C, T].

    One that writes a part of the items' condition into its codes (a stream of text and speech) says which in `takes`, a ConditionSpec:
    `encode` is then called with condition=Condition beside the media, and generators of its tokens are not conditioned on that part.
    """

    spec: TokenSpec
    codebook: Any

    def encode(self, media: Tensor, lengths: Tensor | None = None, rng: RowRNG | None = None) -> Tokens | Latents: ...

    def decode(self, tokens: Tokens | Latents, rng: RowRNG | None = None, **options: Any) -> Tensor: ...

    def forward(self, batch: Batch, rng: RowRNG | None = None) -> TokenizerOutput: ...


def encoding(tokenizer: Any, condition: Condition, rng: RowRNG | None = None) -> dict[str, Any]:
    """What `encode` is to be given of an item beside its media: nothing, but for a tokenizer that `takes` a part of the condition."""
    return {"condition": condition, "noise": rng} if getattr(tokenizer, "takes", None) is not None else {}


@runtime_checkable
class StreamingTokenizer(Protocol):
    """A tokenizer that works chunk by chunk. latency_samples: how far its output lags behind its input."""

    latency_samples: int

    def stream(self, batch: int) -> Any: ...

    def encode_chunk(self, media: Tensor, state: Any) -> Tokens: ...

    def decode_chunk(self, tokens: Tokens, state: Any) -> Tensor: ...

    def flush(self, state: Any) -> Any: ...


@runtime_checkable
class Generator(Protocol):
    """A model of tokens. Its capabilities (generators/base.py) are all that a sampler may use of it."""

    spec: TokenSpec
    condition_spec: ConditionSpec

    def loss(self, tokens: Tokens, condition: Condition, rng: RowRNG) -> LossOutput: ...
