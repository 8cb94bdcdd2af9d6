"""LlamaGen's image tokenizers (Sun et al., arXiv 2406.06525) as gentok's own VQGAN, with released weights or to be trained.

    z = quant_conv(encoder(media));  code = argmin |z / |z| - row / |row||;  media = decoder(post_quant_conv(row / |row|))

The networks and the codebook are gentok's; no other library is needed. Read are the files of FoundationVision/LlamaGen (MIT licence):
vq_ds16_c2i.pt and vq_ds16_t2i.pt (VQ-16, 16 x 16 pixels per code) and vq_ds8_c2i.pt (VQ-8).

In training, the terms of the codebook are the same; those of the reconstruction are what `losses` says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gentok.interfaces import Codebook, LocalPath, Loss
from gentok.nn.autoencoder import ConvOptions, ConvSettings
from gentok.nn.released import fill, read_state
from gentok.settings import PositiveInts
from gentok.tokenizers.vqgan import VQGAN

__all__ = ["LlamaGenVQ"]

STAGE = re.compile(r"encoder\.conv_blocks\.(\d+)\.res\.0\.conv1\.weight")
"""The first block of a resolution."""
OF_A_BLOCK = {"skip": ("nin_shortcut",), "qkv": ("q", "k", "v"), "out": ("proj_out",)}
"""Layers of a residual block or of attention that have other names here."""
CODEBOOK = {
    "weight": "quantize.embedding.weight",
    "project_in.weight": "quant_conv.weight", "project_in.bias": "quant_conv.bias",
    "project_out.weight": "post_quant_conv.weight", "project_out.bias": "post_quant_conv.bias",
}  # fmt: skip


def _layers(settings: ConvSettings, side: str) -> list[str]:
    """The released names of a network's layers, in the order of its `body`. side: encoder or decoder."""
    stages, encoder = range(len(settings.multipliers)), side == "encoder"
    lowest, last = (stages[-1] if encoder else 0), stages[-1]
    names = []
    for stage in stages:
        for block in range(settings.blocks + (not encoder)):
            names.append(f"conv_blocks.{stage}.res.{block}")
            if settings.attention and stage == lowest:
                names.append(f"conv_blocks.{stage}.attn.{block}")
        if stage != last:
            names.append(f"conv_blocks.{stage}.{'down' if encoder else 'up'}sample")
    middle = [f"mid.{i}" for i in range(3 if settings.attention else 2)]
    return [*names, *middle] if encoder else [*middle, *names]


class LlamaGenVQ(VQGAN, id="tokenizer/llamagen_vq"):
    """A VQGAN of one pixel per square whose codebook is a VQ of unit vectors."""

    def __init__(
        self,
        codebook: Codebook,
        media_shape: PositiveInts,
        weights: LocalPath | None = None,
        losses: Loss | None = None,
        **networks: ConvOptions,
    ):
        """
        Args:
            codebook: a VQ with projections.
            media_shape: (C, H, W) of the data.
            weights: a released file, or the folder that holds it; None: random weights.
            losses: (reconstruction, media) -> {name: weighted scalar}, for training.
            networks: as in gentok.nn.autoencoder.ConvSettings.

        Raises:
            FileNotFoundError: there are no weights.
            ValueError: the weights are of another model, or the stride does not divide the height and the width.
        """
        super().__init__(codebook, media_shape, losses, **networks)
        if weights is not None:
            self._load(weights, ConvSettings(**networks))
            self.needs_training = False

    def _load(self, path: LocalPath, settings: ConvSettings) -> None:
        state = read_state(path, "LlamaGen VQ", ("vq_ds*.pt", "*.safetensors"), STAGE, "a tokenizer of LlamaGen")
        stages, here = sum(STAGE.fullmatch(key) is not None for key in state), len(settings.multipliers)
        if stages != here:
            raise ValueError(
                f"{path} is LlamaGen's VQ-{2 ** (stages - 1)}, configured is VQ-{2 ** (here - 1)}: tokenizer.multipliers is [1,1,2,2,4] "
                "for VQ-16 and [1,2,2,4] for VQ-8"
            )
        fill(self, dict(self._sources(settings)), state, path, "LlamaGen VQ", ("quantize.codebook_used",))
        if not self.codebook.usage.is_meta:
            self.codebook.usage.fill_(1.0)  # the release does not know it; all alike, no row is taken for dead
            self.codebook.started.fill_(True)

    def _sources(self, settings: ConvSettings) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Own names and the released tensors that they are made of."""
        own = self.state_dict()
        for side in ("encoder", "decoder"):
            names = {"stem": "conv_in", "norm": "norm_out", "head": "conv_out"}
            names |= {f"body.{i}": name for i, name in enumerate(_layers(settings, side))}
            for key in own:
                if not key.startswith(f"{side}."):
                    continue
                place, _, tensor = key.removeprefix(f"{side}.").rpartition(".")
                if place in names:
                    yield key, (f"{side}.{names[place]}.{tensor}",)
                else:
                    at, _, layer = place.rpartition(".")
                    yield key, tuple(f"{side}.{names[at]}.{part}.{tensor}" for part in OF_A_BLOCK.get(layer, (layer,)))
        for name, released in CODEBOOK.items():
            yield f"codebook.{name}", (released,)

    def portable(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {**config, "weights": None} if "weights" in config else dict(config)
