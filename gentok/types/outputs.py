"""What data hands to training, and what codebooks, tokenizers and generators hand back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gentok.types.conditions import Condition
from gentok.types.tokens import Latents, Tokens

__all__ = ["Batch", "Quantized", "TokenizerOutput", "LossOutput"]


@dataclass
class Batch:
    """What data gives to training: media float [B, C, H, W] in [-1, 1] or [B, C, T] (or None: cached tokens), and what goes with it.

    index int64 [B] is the global sample number, `targets` what a supervised tokenizer needs, `tokens` the cached codes
    or latents.
    """

    media: Tensor | None
    index: Tensor
    condition: Condition = field(default_factory=Condition)
    lengths: Tensor | None = None
    targets: Any = None
    tokens: Tokens | Latents | None = None

    def to(self, device: Any) -> Batch:
        def move(value: Any) -> Any:
            return value.to(device) if hasattr(value, "to") else value  # targets may be anything

        return Batch(*(move(getattr(self, f.name)) for f in dataclasses.fields(self)))


@dataclass
class Quantized:
    """What a codebook returns. vectors float32 [B, D, M], straight-through to its input; codes int64 [B, K, N], ABSENT where a
    level was dropped; losses: named scalars to be added to the tokenizer's; usage float [K]: share of rows hit in this call. branches: of
    quantizers side by side, what each adds to the vectors, by name."""

    vectors: Tensor
    codes: Tensor
    losses: dict[str, Tensor]
    usage: Tensor
    branches: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class TokenizerOutput:
    """tokens; losses: named, already weighted scalars, to be summed; reconstruction like the media, None for a generative decoder."""

    tokens: Tokens | Latents
    losses: dict[str, Tensor]
    reconstruction: Tensor | None


@dataclass
class LossOutput:
    """loss: scalar mean; count: what it was averaged over (ranks and accumulation weight by it); nll float [B]: nats of each row's
    tokens under the model, or None where the loss is no likelihood; terms: named scalars for the log."""

    loss: Tensor
    count: Tensor
    nll: Tensor | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)
