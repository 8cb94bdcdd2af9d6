"""Mimi ("Moshi", arXiv 2410.00037, section 3.3) as gentok's own Codec, with released weights (mimi_keys.py) or to be trained.

The networks and the codebook are gentok's; no other library is needed. With a teacher, such as WavLM (gentok/nn/audio_map.py), the
semantic level is distilled from it in training (gentok/tokenizers/distillation.py). Adversaries belong to the training loop.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gentok.interfaces import Codebook, FeatureNetwork, Layer, LocalPath, Loss
from gentok.tokenizers.distillation import Distillation
from gentok.tokenizers.pretrained.mimi_keys import load_mimi
from gentok.tokenizers.pretrained.released import ReleasedCodec
from gentok.types import Quantized

__all__ = ["Mimi"]


class Mimi(ReleasedCodec, id="tokenizer/mimi"):
    """As ReleasedCodec. teacher: a frozen speech network, in training alone; teacher_width: its channels, null for no distillation;
    distill: the loss's weight. Raises ValueError with a line where the codebook has no semantic branch to teach."""

    decode_only = ("decoder", "distillation")

    def __init__(
        self,
        encoder: Layer,
        codebook: Codebook,
        decoder: Layer,
        sample_rate: int,
        losses: Loss | None = None,
        media_shape: Sequence[int] | None = None,
        weights: LocalPath | None = None,
        teacher: FeatureNetwork | None = None,
        teacher_width: int | None = None,
        distill: float = 1.0,
    ):
        super().__init__(encoder, codebook, decoder, sample_rate, losses, media_shape, weights)
        if teacher is not None and teacher_width is None:
            raise ValueError(f"a teacher needs the number of its channels, for its head: set teacher_width={teacher.width}")
        self.distillation = None
        if teacher_width is not None:
            if not hasattr(self.codebook, "semantic"):
                kind = type(self.codebook).__name__
                raise ValueError(f"{kind} has no semantic branch to teach: take codebook=split_rvq, or teacher_width=null")
            self.distillation = Distillation(self.codebook.width, teacher_width, self.spec.grid.rate_hz, distill, teacher)

    def load_weights(self, path: str) -> None:
        load_mimi(self, path)

    def _taught(self, quantized: Quantized, media: Tensor, lengths: Tensor | None, frames: Tensor | None) -> dict[str, Tensor]:
        if self.distillation is None:
            return {}
        return self.distillation(quantized.branches["semantic"], media, lengths, frames)
