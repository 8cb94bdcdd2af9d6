"""What the tasks do by the kind of media: how much a step has seen, what a reconstruction is measured by, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gentok.data.spectrograms import spectrograms
from gentok.metrics.audio import mel_distance, si_sdr
from gentok.metrics.image import psnr
from gentok.types import Latents, Tokens, TokenSpec

__all__ = ["Images", "Sounds", "modality"]

SHOWN_SECONDS = 4.0
"""Of a sound in the log."""


class Images:
    """Pictures [B, C, H, W], all of one size."""

    measured = ("psnr",)
    """Names of what `measure` gives; the first stands in the progress bar."""

    def amounts(self, media: Tensor, lengths: Tensor | None, tokens: Tokens | Latents) -> dict[str, Any]:
        """{unit: how many of it a training step has seen}."""
        return {"images": len(media)}

    def decode(self, tokenizer: Any, tokens: Any, media: Tensor, lengths: Tensor | None) -> Tensor:
        """The reconstruction, shaped like the media."""
        return tokenizer.decode(tokens)

    def measure(self, made: Tensor, media: Tensor, lengths: Tensor | None) -> dict[str, Tensor]:
        """{name: float [b]} of the items that can be measured."""
        return {"psnr": psnr(made, media)}

    def pictures(self, media: Tensor, lengths: Tensor | None) -> Tensor:
        """float [B, C, H, W] in [-1, 1], on the CPU."""
        return media.float().cpu()

    def waves(self, named: dict[str, Tensor], lengths: Tensor | None, count: int) -> list[tuple[str, Tensor]] | None:
        """(file name, wave [C, T]) of the first `count` rows of every tensor; None where nothing can be heard."""
        return None


class Sounds(Images):
    """Sound [B, C, T] that ends at `lengths` int64 [B] (None: all T)."""

    measured = ("si_sdr_db", "mel_distance")

    def __init__(self, sample_rate: int):
        self.sample_rate = sample_rate

    def amounts(self, media: Tensor, lengths: Tensor | None, tokens: Tokens | Latents) -> dict[str, Any]:
        samples = media.shape[0] * media.shape[2] if lengths is None else lengths.sum()
        out = {"seconds_of_sound": samples / self.sample_rate}
        if isinstance(tokens, Tokens):
            out["tokens"] = tokens.present.sum()
        return out

    def decode(self, tokenizer: Any, tokens: Any, media: Tensor, lengths: Tensor | None) -> Tensor:
        made = tokenizer.decode(tokens, samples=media.shape[2] if lengths is None else lengths)
        return torch.nn.functional.pad(made, (0, media.shape[2] - made.shape[2]))

    def measure(self, made: Tensor, media: Tensor, lengths: Tensor | None) -> dict[str, Tensor]:
        """Silence has no SI-SDR; mel distance is of all rows."""
        heard = media.abs().amax((1, 2)) > 0
        ends = None if lengths is None else lengths[heard]
        sdr = si_sdr(made[heard], media[heard], ends) if bool(heard.any()) else media.new_zeros(0)
        return {"si_sdr_db": sdr, "mel_distance": mel_distance(made, media, self.sample_rate, lengths)}

    def pictures(self, media: Tensor, lengths: Tensor | None) -> Tensor:
        return spectrograms(media, self.sample_rate, lengths, SHOWN_SECONDS)

    def waves(self, named: dict[str, Tensor], lengths: Tensor | None, count: int) -> list[tuple[str, Tensor]] | None:
        out = []
        for name, media in named.items():
            ends: Sequence[int] = [media.shape[2]] * len(media) if lengths is None else lengths.tolist()
            out += [(f"{i:02d}_{name}", wave[:, :n].float().cpu()) for i, (wave, n) in enumerate(zip(media[:count], ends))]
        return out


def modality(spec: TokenSpec) -> Images:
    """By what the tokens of `spec` are of."""
    return Sounds(spec.sample_rate) if spec.modality == "audio" else Images()
