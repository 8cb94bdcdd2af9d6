"""What a tokenizer loses: media after encode and decode, the use of its codebook, and codes that survive a round trip."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gentok.metrics.codebook import CodebookHealth
from gentok.metrics.image import psnr, ssim
from gentok.types import Tokens

__all__ = ["reconstruction", "fidelity"]


@torch.inference_mode()
def reconstruction(
    tokenizer: Any,
    media: Tensor,
    *,
    prefixes: Sequence[int] = (),
    batch_size: int = 125,
    device: str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> tuple[Tensor, dict[str, Any], dict[int, Tensor]]:
    """Images float [n, C, H, W] in [-1, 1] -> their reconstructions, clipped, on the CPU, metrics, and what each of `prefixes` decodes to.

    psnr_db, ssim: means over items. For tokens (not for latents) also usage and perplexity per level (and usage_per_scale of a pyramid),
    entropy_bits_per_item (of each level's codes, times its codes per item) beside nominal_bits_per_item, codes_surviving_decode_and_encode,
    and codes_surviving_lookup_and_nearest (None where the codebook has no nearest). prefixes: see Tokens.prefix.
    tokenizer: on `device`, in eval mode. advance(items) is called after every batch.
    """
    spec = tokenizer.spec
    health = CodebookHealth(spec.vocab_sizes)
    made, codes, cells, decoded, looked_up = [], [], 0, 0, 0.0
    of_prefix: dict[int, list[Tensor]] = {k: [] for k in prefixes}
    for part in media.split(batch_size):
        tokens = tokenizer.encode(part.to(device))
        images = tokenizer.decode(tokens).float().clamp(-1, 1)
        made.append(images.cpu())
        if isinstance(tokens, Tokens):
            health.update(tokens.codes)
            codes.append(tokens.codes)
            cells += int(tokens.present.sum())
            decoded += int(((tokenizer.encode(images).codes == tokens.codes) & tokens.present).sum())
            looked_up += _survive_lookup(tokenizer.codebook, tokens)
            for k, parts in of_prefix.items():
                parts.append(tokenizer.decode(tokens.prefix(k)).float().clamp(-1, 1).cpu())
        if advance is not None:
            advance(len(part))
    out = torch.cat(made)
    metrics: dict[str, Any] = fidelity(out, media, batch_size)
    if cells:
        report = health.compute()
        metrics |= {
            "usage": list(report.usage),
            "perplexity": list(report.perplexity),
            "entropy_bits_per_item": report.bits_per_item,
            "nominal_bits_per_item": spec.bits,
            "codes_surviving_decode_and_encode": decoded / cells,
            "codes_surviving_lookup_and_nearest": looked_up / cells if looked_up >= 0 else None,
        }
        per_scale = tokenizer.codebook.scale_usage(torch.cat(codes))
        if per_scale is not None:
            metrics["usage_per_scale"] = per_scale.tolist()
    return out, metrics, {k: torch.cat(parts) for k, parts in of_prefix.items()}


def fidelity(made: Tensor, media: Tensor, batch_size: int = 125) -> dict[str, float]:
    """psnr_db and ssim, means over images float [n, C, H, W] in [-1, 1]."""
    each = (ssim(a, b) for a, b in zip(made.split(batch_size), media.split(batch_size)))
    return {"psnr_db": psnr(made, media).mean().item(), "ssim": torch.cat([*each]).double().mean().item()}


def _survive_lookup(codebook: Any, tokens: Tokens) -> float:
    """How many codes `nearest` finds again from the vectors of `lookup`; -inf where this codebook has no nearest."""
    try:
        return int(((codebook.nearest(codebook.lookup(tokens.codes)) == tokens.codes) & tokens.present).sum())
    except (NotImplementedError, TypeError, ValueError):
        return -math.inf
