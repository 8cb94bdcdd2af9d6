"""IBQ's image tokenizers (Shi et al., arXiv 2412.02692) as gentok's own VQGAN, with released weights or to be trained.

    z = quant_conv(encoder(media));  code = argmax z . row;  media = decoder(post_quant_conv(row))

Read are the files of TencentARC/SEED-Voken (Apache-2.0), imagenet256_16384.ckpt and the like: 16 x 16 pixels per code, 1,024 to 262,144
codes. Where a file holds moving averages of the weights, those are read, with which the release is measured; its losses are left out.
"""

from __future__ import annotations

import re

from torch import Tensor

from gentok.interfaces import LocalPath
from gentok.nn.autoencoder import ConvSettings
from gentok.tokenizers.pretrained.released_vqgan import ReleasedVQGAN

__all__ = ["IBQVQ", "averaged"]


def averaged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of SEED-Voken without its losses, and with the moving average of every tensor that has one."""
    mean = {key.removeprefix("model_ema."): value for key, value in state.items() if key.startswith("model_ema.")}
    kept = {key: value for key, value in state.items() if not key.startswith(("model_ema.", "loss."))}
    return {key: mean.get(key.replace(".", ""), value) for key, value in kept.items()}


class IBQVQ(ReleasedVQGAN, id="tokenizer/ibq_vq"):
    """A VQGAN of one pixel per square with 1 x 1 convolutions around its codebook, which is an IBQ without projections."""

    model = "IBQ tokenizer"
    files = ("imagenet256_*.ckpt", "IBQ*.ckpt", "*.ckpt", "*.safetensors")
    known = re.compile(r"encoder\.mid\.attn_1\.q\.weight")
    released_by = "a tokenizer of IBQ"

    def outside(self) -> dict[str, str]:
        convs = {"encoder.to_code": "quant_conv", "decoder.from_code": "post_quant_conv"}
        layers = {f"{own}.{t}": f"{released}.{t}" for own, released in convs.items() for t in ("weight", "bias")}
        return {"codebook.weight": "quantize.embedding.weight", **layers}

    def check_release(self, state: dict[str, Tensor], path: LocalPath, settings: ConvSettings) -> dict[str, Tensor]:
        return averaged(state)
