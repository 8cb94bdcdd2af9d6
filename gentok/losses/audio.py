"""How far a reconstructed wave lies from its media: the mean absolute error of samples, and any distances of
spectrograms.

The papers' mixtures are conf/losses/encodec.yaml (arXiv 2210.13438, section 3.4) and conf/losses/dac.yaml
(arXiv 2306.06546, section 3.5); their adversarial terms belong to the discriminators, their commitment to the
codebook.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gentok.interfaces import Loss
from gentok.losses.spectral import within
from gentok.settings import NonNegativeFloat

__all__ = ["AudioReconstruction"]


class AudioReconstruction(Loss, id="loss/audio_reconstruction"):
    """The mean absolute error of samples, and distances of spectrograms, each weighted."""

    def __init__(self, wave: NonNegativeFloat = 0.0, distances: Mapping[str, Loss] | None = None):
        """Holds the distances.

        Args:
            wave: weight of the mean absolute error, whose term is named "wave"; 0: left out.
            distances: by the names of their terms, such as those of gentok.losses.spectral.

        Raises:
            ValueError: there is no term, or a distance is named wave.
        """
        self.wave, self.distances = wave, dict(distances or {})
        if not (wave or self.distances):
            raise ValueError(f"a reconstruction loss of audio needs wave > 0 or at least one of distances; got wave={wave} and none")
        if "wave" in self.distances:
            raise ValueError("a distance must not be named wave, as the error of samples is: name it otherwise")

    def __call__(self, reconstruction: Tensor, media: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        """The weighted terms.

        Args:
            reconstruction: float [B, C, T].
            media: float [B, C, T].
            lengths: int64 [B] in samples, beyond which nothing counts; None: all are T long.

        Returns:
            {name: scalar}.
        """
        terms: dict[str, Tensor] = {}
        if self.wave:
            error = within((reconstruction - media.to(reconstruction.dtype)).abs(), lengths)
            count = error.numel() if lengths is None else lengths.sum() * error.shape[1]
            terms["wave"] = self.wave * (error if error.dtype == torch.float64 else error.float()).sum() / count
        for name, distance in self.distances.items():
            terms[name] = distance(reconstruction, media, lengths)
        return terms
