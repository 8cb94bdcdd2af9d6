"""What a tokenizer loses: media after encode and decode, the use of its codebook, and codes that survive a
round trip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gentok.interfaces import Tokenizer
from gentok.metrics.codebook import CodebookHealth
from gentok.metrics.image import psnr, ssim
from gentok.types import Batch, Tokens, TokenSpec

__all__ = ["CodeStatistics", "Reconstructed", "RoundTrip", "fidelity"]


class CodeStatistics:
    """Use of every level, and the share of codes that encoding the decoded media finds again.

    Attributes:
        health: the counted codes.
        cells: codes counted, of all levels.
    """

    def __init__(self, spec: TokenSpec):
        self.health = CodebookHealth(spec.vocab_sizes)
        self.cells = self._survived = 0

    def update(self, tokens: Tokens, again: Tokens) -> None:
        """Counts the tokens of some items, and those of their reconstructions, which may have another number
        of positions."""
        self.health.update(tokens.codes)
        width = min(tokens.codes.shape[2], again.codes.shape[2])
        same = (again.codes[..., :width] == tokens.codes[..., :width]) & tokens.present[..., :width]
        self._survived += int(same.sum())
        self.cells += int(tokens.present.sum())

    @property
    def survived(self) -> float:
        """Share in [0, 1] of the codes that survive decode and encode."""
        return self._survived / self.cells


@dataclass(frozen=True)
class Reconstructed:
    """A batch after encode and decode, all on the CPU.

    Attributes:
        media: float [B, C, ...] in [-1, 1].
        prefixes: the same of every prefix.
        tokens: codes; None for latents.
        again: those of `media`.
        looked_up: how many codes `nearest` finds again from the vectors of `lookup`; -inf where the codebook has no nearest.
    """

    media: Tensor
    prefixes: dict[int, Tensor]
    tokens: Tokens | None = None
    again: Tokens | None = None
    looked_up: float = 0.0


class RoundTrip:
    """Encodes and decodes batches (`made`), and counts their codes (`count`), which another process may do.

    Args:
        tokenizer: in eval mode.
        prefixes: also decode the first k nested levels, tokens of a nested line or scales, for each k; see
            Tokens.prefix.

    Attributes:
        statistics: of all that was counted so far; empty for latents.
    """

    def __init__(self, tokenizer: Tokenizer, prefixes: Sequence[int] = ()):
        self.tokenizer, self.prefixes, self.statistics = tokenizer, prefixes, CodeStatistics(tokenizer.spec)
        self._codes: list[Tensor] = []
        self._looked_up = 0.0

    @torch.inference_mode()
    def made(self, batch: Batch) -> Reconstructed:
        """Encodes and decodes a batch on the tokenizer's device."""
        tokens = self.tokenizer.encode_batch(batch)
        media = self._decoded(tokens, batch)
        if not isinstance(tokens, Tokens):
            return Reconstructed(media.cpu(), {})
        again = self.tokenizer.encode_batch(replace(batch, media=media))
        prefixes = {k: self._decoded(tokens.prefix(k), batch).cpu() for k in self.prefixes}
        looked_up = _survive_lookup(self.tokenizer.codebook, tokens) if batch.lengths is None else 0.0
        return Reconstructed(media.cpu(), prefixes, tokens.to("cpu"), again.to("cpu"), looked_up)

    def count(self, made: Reconstructed) -> None:
        """Counts the codes of a batch."""
        if made.tokens is None:
            return
        self.statistics.update(made.tokens, made.again)
        self._codes.append(made.tokens.codes)
        self._looked_up += made.looked_up

    def _decoded(self, tokens: Any, batch: Batch) -> Tensor:
        """Of the batch's shape: what a sound lacks at the end is filled with zeros."""
        options = {} if batch.lengths is None else {"samples": batch.lengths}
        made = self.tokenizer.decode(tokens, **options).float().clamp(-1, 1)
        return made if batch.lengths is None else F.pad(made, (0, batch.media.shape[-1] - made.shape[-1]))

    def image_codes(self) -> dict[str, Any]:
        """Figures of the codes of images; {} for latents.

        usage and perplexity per level (and usage_per_scale of a pyramid), entropy_bits_per_item (of each
        level's codes, times its codes per item) beside nominal_bits_per_item,
        codes_surviving_decode_and_encode, and codes_surviving_lookup_and_nearest (None where the codebook has
        no nearest).
        """
        cells, spec = self.statistics.cells, self.tokenizer.spec
        if not cells:
            return {}
        report = self.statistics.health.compute(own=True)
        per_scale = self.tokenizer.codebook.scale_usage(torch.cat(self._codes))
        return {
            "usage": list(report.usage),
            "perplexity": list(report.perplexity),
            "entropy_bits_per_item": report.bits_per_item,
            "nominal_bits_per_item": spec.bits,
            "codes_surviving_decode_and_encode": self.statistics.survived,
            "codes_surviving_lookup_and_nearest": self._looked_up / cells if self._looked_up >= 0 else None,
            **({} if per_scale is None else {"usage_per_scale": per_scale.tolist()}),
        }


def fidelity(made: Tensor, media: Tensor, batch_size: int = 125) -> dict[str, float]:
    """psnr_db and ssim, means over images float [n, C, H, W] in [-1, 1]."""
    each = (ssim(a, b) for a, b in zip(made.split(batch_size), media.split(batch_size)))
    return {"psnr_db": psnr(made, media).mean().item(), "ssim": torch.cat([*each]).double().mean().item()}


def _survive_lookup(codebook: Any, tokens: Tokens) -> float:
    """How many codes `nearest` finds again from the vectors of `lookup`; -inf where this codebook has no
    nearest."""
    try:
        return int(((codebook.nearest(codebook.lookup(tokens.codes)) == tokens.codes) & tokens.present).sum())
    except (NotImplementedError, TypeError, ValueError):
        return -math.inf
