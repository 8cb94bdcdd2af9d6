"""Hidden states of WavLM, HuBERT and the like (transformers' AutoModel), a teacher of speech codes.

Weights are read from a local folder, never fetched, and are no part of anything that uses them: they lie in a cache of this file. Sound is
resampled to the network's rate and, as its own feature extractor does where `normalize` says so, brought to mean 0 and variance 1.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentok.interfaces import FeatureNetwork, LocalPath
from gentok.precision import no_autocast
from gentok.settings import PositiveInt

__all__ = ["AudioMap"]


@lru_cache(maxsize=2)
@torch.inference_mode(False)
def _network(path: str, device: str) -> nn.Module:
    if not Path(path).is_dir():
        raise FileNotFoundError(f"there is no folder {path} of a speech model: save one there (config.json and model.safetensors)")
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise ImportError("an AudioMap needs the package transformers: pip install transformers") from error
    with torch.device("cpu"):  # also where models are being built on the meta device
        model = AutoModel.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        return model.eval().requires_grad_(False).float().to(device)


class AudioMap(nn.Module, FeatureNetwork, id="features/audio_map"):
    """Sound float [B, 1, T] in [-1, 1] at `sample_rate` -> float32 [B, width, frames], frames at `rate_hz` (50 of WavLM), no gradient.

    `lengths` of a call are int64 [B], in samples: what lies behind a row's end is silence and not normalised; frames there mean nothing.

    Args:
        path: the model's folder.
        sample_rate: Hz of the sound.
        layer: index of the hidden state, -1 the last.
        model_rate: Hz of the network's input.
        normalize: see above.
    """

    def __init__(self, path: LocalPath, sample_rate: PositiveInt, layer: int = -1, model_rate: PositiveInt = 16000, normalize: bool = True):
        super().__init__()
        self.path, self.layer, self.normalize = path, layer, normalize
        self.sample_rate, self.model_rate = int(sample_rate), int(model_rate)

    def _of(self, media: Tensor) -> Any:
        return _network(self.path, str(media.device))

    @property
    def width(self) -> int:
        return int(_network(self.path, "cpu").config.hidden_size)

    @property
    def rate_hz(self) -> float:
        stride = 1
        for step in _network(self.path, "cpu").config.conv_stride:
            stride *= step
        return self.model_rate / stride

    @torch.no_grad()
    def forward(self, media: Tensor, lengths: Tensor | None = None) -> Tensor:
        if media.dim() != 3 or media.shape[1] != 1:
            raise ValueError(f"an AudioMap takes sound of one channel, float [B, 1, T]; got {tuple(media.shape)}")
        wave = media[:, 0].float()
        if self.sample_rate != self.model_rate:
            from torchaudio.functional import resample

            wave = resample(wave, self.sample_rate, self.model_rate)
        inside = None
        if lengths is not None:
            inside = torch.arange(wave.shape[1], device=wave.device) < (lengths * self.model_rate).div(self.sample_rate)[:, None]
        if self.normalize:
            wave = _normalized(wave, inside)
        with no_autocast(media.device):
            mask = None if inside is None else inside.long()
            hidden = self._of(media)(wave, attention_mask=mask, output_hidden_states=True).hidden_states[self.layer]
        return hidden.transpose(1, 2)


def _normalized(wave: Tensor, inside: Tensor | None) -> Tensor:
    """float [B, T] -> mean 0 and variance 1 of each row, over its own samples; 0 behind them."""
    weight = torch.ones_like(wave) if inside is None else inside.float()
    count = weight.sum(1, keepdim=True).clamp(min=1)
    mean = (wave * weight).sum(1, keepdim=True) / count
    variance = ((wave - mean).square() * weight).sum(1, keepdim=True) / count
    return (wave - mean) * weight / (variance + 1e-7).sqrt()
