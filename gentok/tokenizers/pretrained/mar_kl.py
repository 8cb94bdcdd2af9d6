"""MAR's autoencoder (KL-16; Li et al., arXiv 2406.11838) as gentok's own KL, with released weights or to be trained.

    mean, log_variance = quant_conv(encoder(media));   Latents = 0.2325 z, z the mean or a draw;   media = decoder(post_quant_conv(z))

The networks are those of latent diffusion (arXiv 2112.10752): 16 x 16 pixels per latent of 16 numbers. In the encoder attention follows the
blocks of the lowest resolution, in the decoder it stands in the middle alone. Read is kl16.ckpt of LTH14/mar (MIT licence), whose latents
xAR (arXiv 2502.20388) models too; what other training runs left beside the weights (`loss.*`) is not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from gentok.interfaces import LocalPath
from gentok.nn.autoencoder import ConvSettings
from gentok.nn.released import fill, read_state
from gentok.settings import PositiveInts
from gentok.tokenizers.kl import KL
from gentok.tokenizers.pretrained.released_vqgan import QKV, network_sources, taming_layers

__all__ = ["MARKL"]

KNOWN = re.compile(r"post_quant_conv\.weight")
CONVS = {"encoder.to_code": "quant_conv", "decoder.from_code": "post_quant_conv"}


class MARKL(KL, id="tokenizer/mar_kl"):
    """Images float [B, 3, H, W] in [-1, 1] <-> Latents [B, 16, N] on a raster of H / 16 x W / 16."""

    def __init__(self, media_shape: PositiveInts, weights: LocalPath | None = None, **model: Annotated[Any, KL]):
        """
        Args:
            media_shape: (C, H, W) of the data.
            weights: the released file, or the folder that holds it; None: random weights.
            model: as of KL.

        Raises:
            FileNotFoundError: there are no weights.
            ValueError: the weights are of another model, or a setting is out of its range.
        """
        super().__init__(media_shape, **model)
        if weights is None:
            return
        state = read_state(weights, "MAR KL", ("kl16.ckpt", "*.ckpt", "*.pt", "*.safetensors"), KNOWN, "the autoencoder of MAR")
        settings = ConvSettings(**{name: value for name, value in model.items() if name in ConvSettings.__dataclass_fields__})
        keys = self.state_dict().keys() - {"moments"}
        convs = {f"{own}.{t}": (f"{released}.{t}",) for own, released in CONVS.items() for t in ("weight", "bias")}
        sources = {key: value for key, value in convs.items() if key in keys}
        for side in ("encoder", "decoder"):
            sources |= network_sources(keys - convs.keys(), side, side, taming_layers(settings, side), QKV)
        fill(self, sources, {key: value for key, value in state.items() if not key.startswith("loss.")}, weights, "MAR KL")
        self.needs_training = False

    def portable(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {**config, "weights": None} if "weights" in config else dict(config)
