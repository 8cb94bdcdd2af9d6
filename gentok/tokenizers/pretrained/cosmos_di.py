"""NVIDIA's Cosmos tokenizers of images with codes (DI8x8 and DI16x16; arXiv 2501.03575), with released weights or to be trained.

    z = quant_conv(encoder(media));  code = FSQ(z), 8 8 8 5 5 5 values;  media = decoder(post_quant_conv(values))

Read is autoencoder.jit as released (NVIDIA Open Model License), whose tensors are read without running its code, or its state dict. The
networks are gentok's (gentok/nn/cosmos.py). The video tokenizers and the continuous ones are not read.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from gentok.interfaces import Codebook, LocalPath, Loss
from gentok.nn.autoencoder import ConvSettings
from gentok.nn.cosmos import CosmosDecoder, CosmosEncoder, CosmosOptions, CosmosSettings
from gentok.settings import PositiveInts
from gentok.tokenizers.pretrained.released_vqgan import ReleasedVQGAN, projections

__all__ = ["CosmosDI"]

HALVED = re.compile(r"encoder\.down\.\d+\.downsample\.conv\.weight")
CONSTANTS = {"encoder.patcher": ("wavelets", "_arange"), "decoder.unpatcher": ("wavelets", "_arange"),
             "quantizer": ("_levels", "_basis", "implicit_codebook")}  # fmt: skip
"""What a TorchScript file holds beside the weights: tables that follow from the configuration."""


class CosmosDI(ReleasedVQGAN, id="tokenizer/cosmos_di"):
    """A VQGAN with Cosmos's networks whose codebook is an FSQ with projections."""

    model = "Cosmos DI tokenizer"
    files = ("autoencoder.jit", "*.pt", "*.safetensors", "*.jit")
    known = re.compile(r"(en|de)coder\.mid\.attn_1\.proj_out\.weight")
    released_by = "a tokenizer Cosmos DI"
    ignored = tuple(f"{part}.{name}" for part, names in CONSTANTS.items() for name in names)
    settings_class = CosmosSettings

    def __init__(
        self,
        codebook: Codebook,
        media_shape: PositiveInts,
        weights: LocalPath | None = None,
        losses: Loss | None = None,
        **networks: CosmosOptions,
    ):
        """
        Args:
            codebook: an FSQ with projections (`width`).
            media_shape: (C, H, W) of the data.
            weights: a released file, or the folder that holds it; None: random weights.
            losses: (reconstruction, media) -> {name: weighted scalar}, for training.
            networks: as in gentok.nn.cosmos.CosmosSettings.

        Raises:
            FileNotFoundError: there are no weights.
            ValueError: the weights are of another model, or the stride does not divide the height and the width.
        """
        super().__init__(codebook, media_shape, weights, losses, **networks)

    def networks(self, channels: int, codebook: Codebook, settings: ConvSettings) -> tuple[nn.Module, nn.Module]:
        return CosmosEncoder(channels, codebook.in_width, settings), CosmosDecoder(channels, codebook.width, settings)

    def outside(self) -> dict[str, str]:
        return projections()

    def check_release(self, state: dict[str, Tensor], path: LocalPath, settings: ConvSettings) -> dict[str, Tensor]:
        missing = [side for side in ("encoder", "decoder") if not any(key.startswith(f"{side}.") for key in state)]
        if missing:
            raise ValueError(f"{path} has no {missing[0]}: take autoencoder.jit, which holds both halves of the {self.model}")
        there = sum(HALVED.fullmatch(key) is not None for key in state)
        if there != settings.halvings:
            raise ValueError(
                f"{path} halves its images {there} times behind the wavelet, configured is {settings.halvings}: tokenizer.halvings is 1 "
                "for DI8x8 and 2 for DI16x16"
            )
        return state
