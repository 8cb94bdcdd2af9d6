"""MAR (Li et al., "Autoregressive Image Generation without Vector Quantization", arXiv 2406.11838), computed as released.

The item is N vectors X_n: the Latents of a KL autoencoder, or the vectors of a codebook's codes. Some of them are masked:

    z_1 .. z_N = decoder(encoder(condition, known vectors))            nn/masked_autoencoder.py
    p(X_n | z_n) for every masked n: a diffusion of its own            flow/diffusion.py, nn/diffusion_mlp.py
    share of masked vectors: a normal number of mean 1 and deviation 0.25 between `mask_least` and 1

so that vectors can be drawn in any order, many at once (samplers/mar.py). In training every masked vector is noised several times, at times
and by noise of their own.

Read is `checkpoint-last.pth` of LTH14/mar (MIT licence), MAR-B, MAR-L and MAR-H, over the latents of tokenizer=mar_kl; of it the averaged
weights, `model_ema`. The null condition is the last row of the table of classes here, a vector of its own there. The release draws with
guidance 2.9 (B), 3.0 (L) and 3.2 (H), guidance_schedule=linear, in 256 steps.

Deviations: each row has a share of masked vectors of its own, where the release draws one for a batch; dropout is of both branches'
outputs, not of attention's weights; the transformers' weights begin like those of gentok's others; the density at t = 0
(flow/diffusion.py). The release draws latents from their posterior; here they are what the tokenizer encodes to, its mean. Codes are not in
the paper.
"""

from __future__ import annotations

import re
from typing import Literal

import torch
from torch import Tensor

from gentok.flow.diffusion import STEPS, diffusion_loss, noised
from gentok.flow.random_cells import random_subset
from gentok.generators.base import MaskedVectors
from gentok.generators.class_raster import check_class
from gentok.generators.vector_items import VectorItems
from gentok.interfaces import Codebook, LocalPath
from gentok.nn.conditioning import Conditioner
from gentok.nn.diffusion_mlp import DiffusionMLP
from gentok.nn.masked_autoencoder import MaskedAutoencoder
from gentok.nn.released import fill, read_state, take
from gentok.rng import RowRNG
from gentok.settings import Count, Fraction, FractionBelow1, PositiveInt
from gentok.types import Condition, ConditionSpec, Latents, LossOutput, Tokens, TokenSpec

__all__ = ["MAR", "SIZES"]

SIZES = {"B": (768, 12, 12, 1024, 6), "L": (1024, 16, 16, 1280, 8), "H": (1280, 20, 16, 1536, 12)}
"""Of the release: width, depth of each half and heads of the transformers; width and depth of the network that denoises."""
KNOWN = re.compile(r"diffusion_pos_embed_learned")
LAYERS = {
    "network.stem": "z_proj", "network.norm": "z_proj_ln", "network.middle": "decoder_embed", "network.encoder.norm": "encoder_norm",
    "network.decoder.norm": "decoder_norm", "denoiser.time.first": "diffloss.net.time_embed.mlp.0",
    "denoiser.time.second": "diffloss.net.time_embed.mlp.2", "denoiser.given": "diffloss.net.cond_embed",
    "denoiser.stem": "diffloss.net.input_proj", "denoiser.head": "diffloss.net.final_layer.linear",
    "denoiser.modulation": "diffloss.net.final_layer.adaLN_modulation.1",
}  # fmt: skip
BLOCK = {
    "norm1": "norm1", "attention.qkv": "attn.qkv", "attention.out": "attn.proj", "norm2": "norm2", "mlp.up": "mlp.fc1",
    "mlp.out": "mlp.fc2",
}  # fmt: skip
"""A transformer block's layers and their released names."""
DENOISER = {"norm": "in_ln", "up": "mlp.0", "out": "mlp.2", "modulation": "adaLN_modulation.1"}
"""Likewise of a block of the network that denoises."""


class MAR(VectorItems, MaskedVectors, id="generator/mar"):
    """Predicts masked vectors from known ones, each by a diffusion.

    Args:
        spec: the tokens or latents, of an image.
        condition_spec: what they are conditioned on; None: nothing.
        codebook: of the tokens; a frozen copy is kept, outside of the state dict. None: latents.
        weights: a released file, or the folder that holds it; None: random weights.
        size: of the release: B, L or H.
        width: channels of the transformers; None: as `size` says.
        depth: blocks of each half; None: as `size` says.
        heads: of attention; None: as `size` says.
        hidden: width of their feed-forward parts; None: 4 times the width.
        denoiser_width: channels of the network that denoises; None: as `size` says.
        denoiser_depth: its blocks; None: as `size` says.
        buffer: copies of the condition that stand before the known vectors.
        mask_least: the smallest share of masked vectors in training.
        noises: how often a masked vector is noised in a step.
        condition_dropout: share of training rows whose condition becomes null, which guidance needs.
        dropout: rate, of both branches of a transformer's block.

    Raises:
        ValueError: the items lie on no raster, the codebook has no nearest codes, or the weights are of another model.
        FileNotFoundError: there are no weights.
    """

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        codebook: Codebook | None = None,
        *,
        weights: LocalPath | None = None,
        size: Literal["B", "L", "H"] = "B",
        width: PositiveInt | None = None,
        depth: Count | None = None,
        heads: PositiveInt | None = None,
        hidden: PositiveInt | None = None,
        denoiser_width: PositiveInt | None = None,
        denoiser_depth: Count | None = None,
        buffer: PositiveInt = 64,
        mask_least: FractionBelow1 = 0.7,
        noises: PositiveInt = 4,
        condition_dropout: Fraction = 0.1,
        dropout: FractionBelow1 = 0.1,
    ):
        super().__init__()
        self.take_items("mar", spec, codebook)
        self.condition_spec, self.condition_dropout = condition_spec or ConditionSpec(), condition_dropout
        self.mask_least, self.noises = mask_least, noises
        given = (width, depth, heads, denoiser_width, denoiser_depth)
        width, depth, heads, denoiser_width, denoiser_depth = (own or released for own, released in zip(given, SIZES[size]))
        self.conditioner = Conditioner(self.condition_spec, width, "adaln")
        positions = self.raster.positions
        self.network = MaskedAutoencoder(self.channels, positions, width, depth, heads, hidden or 4 * width, buffer, dropout)
        self.denoiser = DiffusionMLP(self.channels, width, denoiser_width, denoiser_depth)
        if weights is not None:
            self._load(weights, check_class("mar with weights", condition_spec, "no weights"))
            self.needs_training = False

    # ------------------------------------------------------------------------------------------------------- MaskedVectors

    def split(self, tokens: Tokens | Latents) -> tuple[Tensor, Tensor]:
        """As MaskedVectors.split."""
        known, some = self.known_positions(tokens)
        if bool((some & ~known).any()):
            b, n = (some & ~known).nonzero()[0].tolist()
            raise ValueError(f"row {b} knows a part of the vector at position {n} and not all of it: mar keeps whole vectors")
        return self.values(tokens).transpose(1, 2), known

    def hidden(self, values: Tensor, known: Tensor, condition: Condition) -> Tensor:
        """As MaskedVectors.hidden: float [B, N, D]."""
        return self.network(values, known, self.conditioner(condition, len(values)).vector)

    def denoise(self, x: Tensor, t: int, hidden: Tensor, progress: float = 1.0) -> tuple[Tensor, Tensor]:
        """As MaskedVectors.denoise."""
        times = torch.full(x.shape[:-1], t, device=x.device)
        noise, v = self.denoiser(x.flatten(0, -2), times.flatten(), hidden.flatten(0, -2))
        return noise.view_as(x).to(x.dtype), v.view_as(x).to(x.dtype)

    def finish(self, values: Tensor, known: Tensor, tokens: Tokens | Latents) -> Tokens | Latents:
        """As MaskedVectors.finish."""
        return self.filled(values.transpose(1, 2), known, tokens)

    def forward(self, tokens: Tokens | Latents, condition: Condition | None = None) -> Tensor:
        """The noise that is predicted in every vector at t = 0, where no vector is known: float [B, N, C]."""
        x = self.values(tokens).transpose(1, 2)
        hidden = self.hidden(x, torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device), condition or Condition())
        return self.denoise(x, 0, hidden)[0]

    # ---------------------------------------------------------------------------------------------------------------- loss

    def masked(self, rng: RowRNG) -> Tensor:
        """bool [B, N]: the vectors that are masked in a step of training, at least one of each row."""
        least, most = torch.special.ndtr(torch.tensor([(self.mask_least - 1) / 0.25, 0.0], dtype=torch.float64)).tolist()
        share = 1 + 0.25 * torch.special.ndtri(least + (most - least) * rng.uniform())
        positions = self.raster.positions
        count = (share * positions).ceil().long().clamp(1, positions)
        return random_subset(torch.ones(len(share), 1, positions, dtype=torch.bool, device=share.device), count, rng)[:, 0]

    def loss(self, tokens: Tokens | Latents, condition: Condition, rng: RowRNG) -> LossOutput:
        """The loss of the diffusion, averaged over masked vectors, times and noise.

        Args:
            tokens: codes int64 [B, K, N], or Latents [B, C, N].
            condition: B rows.
            rng: for what is masked, times and noise, and, in training mode, for condition dropout and dropout.

        Returns:
            LossOutput without nats.
        """
        x = self.values(tokens).float().transpose(1, 2)
        masked = self.masked(rng)
        t = (rng.uniform(self.noises, x.shape[1]) * STEPS).long().transpose(0, 1)
        noise = rng.normal(self.noises, *x.shape[1:]).to(x).transpose(0, 1)
        condition = self.drop_condition(condition, rng)
        z = self.network(x, ~masked, self.conditioner(condition, len(x)).vector, rng if self.training else None)
        x, t, noise, z = x[masked].repeat(self.noises, 1), t[:, masked].flatten(), noise[:, masked].flatten(0, 1), z[masked]
        eps, v = self.denoiser(noised(x, noise, t), t, z.repeat(self.noises, 1))
        each = diffusion_loss(eps.float(), v.float(), x, noise, t)
        return LossOutput(each.mean(), torch.tensor(each.numel(), device=x.device), None, {})

    # ------------------------------------------------------------------------------------------------------------ released

    def _load(self, path: LocalPath, name: str) -> None:
        state = read_state(path, "MAR", ("checkpoint-last.pth", "*.pth", "*.safetensors"), KNOWN, "a generator of MAR")
        table, width = self.conditioner.parts[f"{name}_"].table.weight, len(self.network.masked)
        shapes = {"class_emb.weight": (len(table) - 1, width), "fake_latent": (1, width), "mask_token": (1, 1, width)}
        classes, null, masked = take(state, shapes, path, "MAR")
        sources = {f"{own}.{t}": (f"{released}.{t}",) for own, released in LAYERS.items() for t in ("weight", "bias")}
        for i, side in enumerate(("encoder", "decoder", "diffusion")):
            sources[f"network.places.{i}.weight"] = (f"{side}_pos_embed_learned",)
        blocks = [(f"network.{side}.blocks", f"{side}_blocks", BLOCK, len(self.network.encoder.blocks)) for side in ("encoder", "decoder")]
        for at, there, names, depth in (*blocks, ("denoiser.blocks", "diffloss.net.res_blocks", DENOISER, len(self.denoiser.blocks))):
            for own, released in names.items():
                for i in range(depth):
                    sources |= {f"{at}.{i}.{own}.{t}": (f"{there}.{i}.{released}.{t}",) for t in ("weight", "bias")}
        state = {key: value.squeeze(0) if key.endswith("pos_embed_learned") else value for key, value in state.items()}
        fill(self, sources, state, path, "MAR")
        with torch.no_grad():
            if not table.is_meta:
                table.copy_(torch.cat((classes, null)))
                self.network.masked.copy_(masked[0, 0])
