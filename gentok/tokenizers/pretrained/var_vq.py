"""VAR's multi-scale tokenizer (Tian et al., arXiv 2404.02905) as gentok's own VQGAN, with released weights or to be trained.

    z = quant_conv(encoder(media));   codes, f = pyramid(z) of ten scales;   media = decoder(post_quant_conv(f))

Both convolutions around the codebook are 3 x 3 (`code_conv`). Read is vae_ch160v4096z32.pth of FoundationVision/VAR (MIT licence):
680 codes of 4,096 for 256 x 256 pixels. Larger images need other `codebook.sides`; how often the release's training used a row is not read.
"""

from __future__ import annotations

import re

from gentok.tokenizers.pretrained.released_vqgan import ReleasedVQGAN

__all__ = ["VARVQ"]


class VARVQ(ReleasedVQGAN, id="tokenizer/var_vq"):
    """A VQGAN of one pixel per square with convolutions around its codebook, which is a pyramid of VQ rows with convolutions (phi)."""

    model = "VAR VQ"
    files = ("vae*.pth", "*.pth", "*.safetensors")
    known = re.compile(r"quantize\.quant_resi\.qresi_ls\.0\.weight")
    released_by = "the tokenizer of VAR"
    of_a_block = {"skip": ("nin_shortcut",), "out": ("proj_out",)}
    ignored = ("quantize.ema_vocab_hit_SV",)

    def outside(self) -> dict[str, str]:
        convs = {"encoder.to_code": "quant_conv", "decoder.from_code": "post_quant_conv"}
        convs |= {f"codebook.phi.{i}": f"quantize.quant_resi.qresi_ls.{i}" for i in range(len(self.codebook.phi))}
        layers = {f"{own}.{t}": f"{released}.{t}" for own, released in convs.items() for t in ("weight", "bias")}
        return {"codebook.book.weight": "quantize.embedding.weight", **layers}
