"""Codes with a meaning: distillation of a codebook's semantic branch from a speech network (Mimi: Défossez et al., "Moshi",
arXiv 2410.00037, section 3.3.3; SpeechTokenizer, arXiv 2308.16692).

    target = the teacher's frames, averaged over windows of two code frames, one code frame apart (8 and 4 of WavLM's for 12.5 Hz)
    loss   = mean over frames of 1 - cos(head(vectors of the semantic branch), target)

The windows see half a code frame to either side, so the target looks ahead and the codec does not. Frames behind a row's end do not count.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.nn.feature_cache import Shared
from gentok.tokenizers.sound_checks import within

__all__ = ["Distillation", "to_rate"]


def to_rate(x: Tensor, rate: float, wanted: float, frames: int) -> Tensor:
    """Means over windows of two of the wanted frames.

    Args:
        x: float [B, D, n].
        rate: of x, in Hz.
        wanted: Hz; `rate` is a whole multiple of it.
        frames: how many there are to be.

    Returns:
        float [B, D, frames].

    Raises:
        ValueError: `rate` is no whole multiple.
    """
    ratio = round(rate / wanted)
    if ratio < 1 or abs(rate / wanted - ratio) > 1e-6:
        raise ValueError(f"a teacher of {rate:g} frames per second cannot teach codes of {wanted:g}: a whole multiple is expected")
    if ratio > 1:
        short = max(0, 2 * ratio - 2 * (ratio // 2) - x.shape[2])
        x = F.avg_pool1d(F.pad(x, (0, short), mode="replicate"), 2 * ratio, ratio, ratio // 2, count_include_pad=False)
    missing = frames - x.shape[2]
    return F.pad(x, (0, missing), mode="replicate") if missing > 0 else x[..., :frames]


class Distillation(nn.Module):
    """vectors float [B, width, N], the sound and its lengths -> {"distill": weighted scalar}; nothing where there is no teacher."""

    def __init__(self, width: int, teacher_width: int, rate_hz: float, weight: float = 1.0, teacher: Any = None):
        """
        Args:
            width: channels of the vectors.
            teacher_width: channels of the teacher.
            rate_hz: of the codes.
            weight: of the loss.
            teacher: frozen, (media, lengths in samples) -> float [B, teacher_width, n] at its `rate_hz`; never saved.

        Raises:
            ValueError: the teacher has another width.
        """
        super().__init__()
        if teacher is not None and teacher.width != teacher_width:
            raise ValueError(
                f"the teacher has {teacher.width} channels, teacher_width={teacher_width}: set tokenizer.teacher_width={teacher.width}"
            )
        self.head = nn.Conv1d(width, teacher_width, 1)
        self.weight, self.rate_hz, self._teacher = weight, rate_hz, Shared(teacher)

    def forward(self, vectors: Tensor, media: Tensor, lengths: Tensor | None, frames: Tensor | None) -> dict[str, Tensor]:
        """lengths, frames: int64 [B], of each row in samples and in frames; None: all are whole."""
        teacher = self._teacher.value
        if teacher is None or not self.weight:
            return {}
        target = to_rate(teacher(media, lengths), teacher.rate_hz, self.rate_hz, vectors.shape[2])
        similarity = F.cosine_similarity(self.head(vectors.to(self.head.weight.dtype)).float(), target.to(vectors.device), dim=1)
        counted = torch.ones_like(similarity) if frames is None else within(frames, similarity.shape[1]).to(similarity)
        return {"distill": self.weight * ((1 - similarity) * counted).sum() / counted.sum().clamp(min=1)}
