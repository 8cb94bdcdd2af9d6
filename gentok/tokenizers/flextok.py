"""FlexTok (Bachmann et al., arXiv 2502.13967): an image as an ordered list of tokens of which every prefix is a code.

    registers = encoder(patches);   vectors, codes = codebook(registers);   k ~ nested dropout, registers k.. are overwritten
    x_t = (1 - t) x + t eps;   loss = |decoder(x_t, t, registers) - (eps - x)|^2          t = sigmoid(N(0, 1)), some rows without registers

Decoding solves dx/dt = decoder from noise at t = 1 to t = 0: short prefixes give a plausible image, long ones this image. With
decoder="regression" the same transformer sees neither noise nor time and gives the image itself: the baseline, trained by `losses`.

x are the pixels, or the latents of a frozen tokenizer inside (any that encodes to Latents on a raster, such as a KL autoencoder): the
paper's form. It is saved with this one. Alignment (REPA, Yu et al., arXiv 2410.06940): minus the cosine between a projection of a decoder
block and a frozen teacher's map. The teacher is never saved.

Deviations: see gentok/nn/registers.py; codebooks other than FSQ are allowed; the rate of rows without registers is our choice (the
paper's is not known to us). Latents enter as their tokenizer scales them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.flow.guidance import combine
from gentok.flow.path import interpolate, velocity
from gentok.flow.projected import Projected
from gentok.flow.solvers import Euler, Solver, time_grid
from gentok.flow.times import LogitNormal, Stratified, Times
from gentok.interfaces import Codebook, FeatureNetwork, Loss, Tokenizer
from gentok.nn.density import Density
from gentok.nn.feature_cache import Shared
from gentok.nn.patches import patchify, unpatchify
from gentok.nn.registers import KEEP_MODES, RegisterDecoder, RegisterEncoder, draw_keep
from gentok.precision import at_least_float32
from gentok.rng import RowRNG
from gentok.settings import Count, Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, PositiveInts
from gentok.tokenizers.base import ImageTokenizer
from gentok.tokenizers.inner import latent_sizes, latent_tokenizer
from gentok.types import Batch, Latents, Line, Raster, TokenizerOutput, Tokens, TokenSpec

__all__ = ["FlexTok"]


class FlexTok(ImageTokenizer, id="tokenizer/flextok"):
    """Images float [B, C, H, W] in [-1, 1] <-> Tokens on a nested Line of `registers` positions, whatever the image's size."""

    decode_only = ("decoder", "projector")
    inner = {"latents": latent_sizes}
    one_code_per_cell = True  # a codebook with a grid of its own (a pyramid) is refused

    def __init__(
        self,
        codebook: Codebook,
        media_shape: PositiveInts,
        losses: Loss | None = None,
        latents: Tokenizer | Mapping[str, Any] | None = None,
        decoder: Literal["flow", "regression"] = "flow",
        registers: PositiveInt = 64,
        patch: PositiveInt = 4,
        encoder_width: PositiveInt = 128,
        encoder_depth: Count = 4,
        decoder_width: PositiveInt = 192,
        decoder_depth: Count = 6,
        head_width: PositiveInt = 64,
        density: Density | None = None,
        nested: str | None = "uniform",
        null_rate: Fraction = 0.1,
        times: Times | None = None,
        stratified: bool = False,
        time_period: PositiveFloat = 256.0,
        solver: Solver | None = None,
        steps: PositiveInt = 20,
        guidance: NonNegativeFloat = 1.0,
        apg: Projected | None = None,
        teacher: FeatureNetwork | None = None,
        teacher_width: PositiveInt = 112,
        align: NonNegativeFloat = 0.0,
        align_block: PositiveInt = 1,
        align_hidden: NonNegativeInt = 2048,
        norm: Literal["rms", "layer"] = "rms",
    ):
        """
        Args:
            codebook: any whose positions are those of its input.
            media_shape: (C, H, W) of the data; other sizes that `stride` divides are taken too, with as many tokens.
            losses: (reconstruction, media) -> {name: scalar}, of a regression decoder on pixels; a flow has its own.
            latents: a tokenizer that encodes to Latents (gentok.tokenizers.inner); null: x are the pixels.
            decoder: "flow" or "regression".
            registers: tokens of an image.
            patch: pixels (or latents) per side of a patch.
            encoder_width, encoder_depth, decoder_width, decoder_depth, head_width, norm: of the transformers (gentok.nn.registers).
            density: of patches in the decoder's blocks (gentok.nn.density); None: all blocks see all of them.
            nested: how prefixes are drawn, "uniform", "powers" or "rounded"; None: all registers are always kept.
            null_rate: share of rows without registers.
            times: distribution of t.
            stratified: whether t is stratified over a batch.
            time_period: of the embedding of t.
            solver, steps, guidance: how `decode` solves the flow by default (guidance 1: none).
            apg: projected guidance; None: plain guidance.
            teacher, teacher_width: frozen, (media, (h, w)) -> float [B, teacher_width, h, w].
            align: weight of the alignment with the teacher.
            align_block, align_hidden: the decoder block that is aligned, and the width of its projector.

        Raises:
            ValueError: a setting is out of its range, or does not fit the codebook, the data or the tokenizer inside.
        """
        if nested is not None and nested not in KEEP_MODES:
            raise ValueError(f"nested={nested}: choose one of {', '.join(KEEP_MODES)}, or null for none")
        if not isinstance(codebook.grid(1, registers), Raster):
            raise ValueError(f"flextok needs a codebook with one code per register; {type(codebook).__name__} lays codes on another grid")
        if align and not 0 <= align_block < decoder_depth:
            raise ValueError(f"align_block={align_block}: the decoder has blocks 0..{decoder_depth - 1}")
        if align and density is not None and density.plan(decoder_depth)[align_block] in ("gather", "sparse"):
            raise ValueError(f"align_block={align_block} sees few tokens in this density; align a block that pools, recovers or is dense")
        channels, height, width = (int(n) for n in media_shape)
        latents = None if latents is None else latent_tokenizer(latents, (channels, height, width))
        values, inside = (channels, 1) if latents is None else (latents.spec.width, height // latents.spec.grid.h)
        super().__init__(media_shape, patch * inside, codebook, losses)
        self.generative = decoder == "flow"
        self._teacher, self.patch, self.nested, self.null_rate = Shared(teacher), patch, nested, null_rate
        self.times = Stratified(times or LogitNormal()) if stratified else times or LogitNormal()
        self.solver, self.steps = solver or Euler(), steps
        self.guidance, self.apg, self.align, self.align_block, self.latents = guidance, apg, align, align_block, latents
        home = (height // self.stride, width // self.stride)
        features, common = values * patch**2, dict[str, Any](home=home, registers=registers, head_width=head_width, norm=norm)
        self.encoder = RegisterEncoder(features, codebook.in_width, width=encoder_width, depth=encoder_depth, **common)
        self.codebook = codebook
        common |= {"width": decoder_width, "depth": decoder_depth, "time_period": time_period, "density": density}
        self.decoder = RegisterDecoder(codebook.width, features, flow=self.generative, **common)
        self.projector = None
        if align:
            sizes = (decoder_width, align_hidden, align_hidden, teacher_width)
            layers = [part for a, b in zip(sizes[:-1], sizes[1:]) for part in (nn.Linear(a, b), nn.SiLU())]
            self.projector = nn.Sequential(*layers[:-1])
        self.spec = replace(self.spec, grid=Line(registers, nested=nested is not None), latent_positions=None)

    def train(self, mode: bool = True) -> FlexTok:
        super().train(mode)
        if self.latents is not None:
            self.latents.eval()
        return self

    @property
    def last_layer(self) -> Tensor | None:
        return self.decoder.head.weight

    @property
    def teacher(self) -> Callable[[Tensor, tuple[int, int]], Tensor] | None:
        """The frozen network that the decoder is aligned with; None in a loaded model, since it is never saved."""
        return self._teacher.value

    def feature_networks(self) -> dict[str, FeatureNetwork]:
        return {"teacher": self.teacher} if self.teacher is not None else {}

    # ------------------------------------------------------------------------------------------------ media and patches

    def sized_spec(self, shape: tuple[int, ...]) -> TokenSpec:
        return replace(self.spec, media_shape=shape)

    def _signal(self, media: Tensor, rng: RowRNG | None) -> Tensor:
        """media -> x float [B, C', H', W']: the pixels, or the latents inside (a posterior's mean without rng, else a draw)."""
        if self.latents is None:
            return media.to(self.encoder.stem.weight.dtype)
        with torch.no_grad():
            found = self.latents.encode(media, rng=None if rng is None else rng.fork("latents"))
        return found.values.unflatten(2, (found.spec.grid.h, found.spec.grid.w)).to(self.encoder.stem.weight.dtype)

    def _media(self, x: Tensor, spec: TokenSpec) -> Tensor:
        """x as `_signal` makes it -> media in [-1, 1], float32 (float64 of a float64 model)."""
        if self.latents is not None:
            inner = replace(self.latents.spec, grid=Raster(*x.shape[2:]), media_shape=spec.media_shape)
            x = self.latents.decode(Latents(x.flatten(2), inner))
        return at_least_float32(x.clamp(-1, 1))

    def _patches(self, spec: TokenSpec) -> tuple[int, int]:
        """(h, w): how many patches an image has."""
        return spec.media_shape[1] // self.stride, spec.media_shape[2] // self.stride

    def _registers(self, x: Tensor, patches: tuple[int, int]) -> Tensor:
        """x -> what the codebook takes, float [B, D, N]."""
        return self.encoder(patchify(x, self.patch), patches).transpose(1, 2)

    # ------------------------------------------------------------------------------------------------------- the three

    @torch.no_grad()
    def encode(self, media: Tensor, lengths: Tensor | None = None, rng: RowRNG | None = None) -> Tokens:
        """media float [B, C, H, W] -> Tokens [B, K, N]. Changes no buffer, also in training mode. Images have no lengths."""
        spec = self.check_media(media)
        return Tokens(self.codebook.encode(self._registers(self._signal(media, rng), self._patches(spec)), rng), spec)

    @torch.no_grad()
    def decode(
        self,
        tokens: Tokens,
        rng: RowRNG | None = None,
        *,
        keep: int | Tensor | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        apg: Projected | bool | None = None,
        solver: Solver | None = None,
    ) -> Tensor:
        """Tokens [B, K, N] -> media float32 [B, C, H, W] in [-1, 1].

        Args:
            tokens: of a nested line; absent ones are left out.
            rng: where the flow starts from. None: a row's seed is its first token. So a row alone gives the image that it gives in a
                batch, all prefixes of a code start from the same noise, and decoding is a function of the tokens.
            keep: how many of the first tokens count, an int or int64 [B]; the others are as good as ABSENT.
            steps, guidance, apg, solver: of the flow, in place of the model's own (apg=False: plain guidance).

        Raises:
            ValueError: the tokens are another tokenizer's, or of another number.
        """
        spec = tokens.spec
        if not isinstance(spec.grid, Line) or tokens.codes.shape[2] != self.spec.positions:
            shape = tuple(tokens.codes.shape)
            raise ValueError(f"flextok decodes codes [B, K, {self.spec.positions}] of a line; got {shape} on {spec.grid}")
        self.check_tokens(tokens)
        kept = tokens.present.any(1)
        if keep is not None:
            limit = torch.as_tensor(keep, device=kept.device).view(-1, 1)
            kept = kept & (torch.arange(kept.shape[1], device=kept.device) < limit)
        patches = self._patches(spec)
        # also of levels: a code that is not kept leaves no trace
        registers = self.decoder.registers(self.codebook.lookup(tokens.codes).transpose(1, 2), kept)
        if not self.generative:
            return self._media(at_least_float32(unpatchify(self.decoder(registers, patches), self.patch, patches)), spec)
        if rng is None:
            first = torch.where(kept[:, :1], tokens.codes[:, :, 0], -1) + 1
            rng = RowRNG((first * torch.tensor([1_000_003**k % (1 << 31) for k in range(first.shape[1])], device=first.device)).sum(1))
        values = self.encoder.stem.in_features // self.patch**2
        start = rng.normal(values, patches[0] * self.patch, patches[1] * self.patch).to(self.encoder.stem.weight.dtype)
        scale = self.guidance if guidance is None else float(guidance)
        projected = self.apg if apg is None else Projected() if apg is True else apg or None
        field = self._field(registers, patches, scale, projected)
        return self._media((solver or self.solver)(field, start, time_grid(steps or self.steps), rng), spec)

    def _field(self, registers: Tensor, patches: tuple[int, int], scale: float, apg: Projected | None) -> Callable[[Tensor, float], Tensor]:
        """The velocity that is solved, guided where scale is not 1."""
        if scale != 1:
            rows = len(registers)
            registers = torch.cat((registers, self.decoder.null.to(registers.dtype).expand_as(registers)))
        state: list[Tensor | None] = [None]

        def field(x: Tensor, t: float) -> Tensor:
            both = x if scale == 1 else torch.cat((x, x))
            v = self._velocity(both, torch.full((len(both),), t, dtype=torch.float64, device=x.device), registers, patches).to(x.dtype)
            if scale == 1:
                return v
            if apg is None:
                return combine(v[:rows], v[rows:], scale)
            v, state[0] = apg(v[:rows], v[rows:], scale, state[0])
            return v

        return field

    def _velocity(self, x: Tensor, t: Tensor, registers: Tensor, patches: tuple[int, int], tap: Any = None) -> Tensor:
        return unpatchify(self.decoder(registers, patches, patchify(x, self.patch), t, tap), self.patch, patches)

    def forward(self, batch: Batch, rng: RowRNG | None = None) -> TokenizerOutput:
        """losses: of the codebook, and "flow" (and "align"), or those of `losses` for a regression decoder, whose reconstruction is
        unclamped. A flow's reconstruction is None. Without rng, what a flow draws comes from batch.index, and all tokens are kept."""
        media, spec = batch.media, self.check_media(batch.media)
        x = self._signal(media, rng)
        patches, rows = self._patches(spec), len(media)
        quantized = self.codebook(self._registers(x, patches), rng=rng)
        draws = RowRNG.of(0, batch.index) if rng is None else rng.fork("flow")
        kept = torch.ones(rows, self.spec.positions, dtype=torch.bool, device=x.device)
        null = None
        if self.nested is not None and rng is not None:
            keep = draw_keep(self.nested, self.spec.positions, draws)
            kept = torch.arange(self.spec.positions, device=x.device) < keep[:, None]
        if self.generative:
            null = draws.uniform() < (self.null_rate if rng is not None else 0.0)
        registers = self.decoder.registers(quantized.vectors.transpose(1, 2), kept, null)
        losses, reconstruction, tapped = dict(quantized.losses), None, []
        tap = (self.align_block, tapped) if self.align and self.teacher is not None else None
        if self.generative:
            t, eps = self.times(draws), draws.normal(*x.shape[1:]).to(x)
            v = self._velocity(interpolate(x, eps, t), t, registers, patches, tap)
            losses["flow"] = F.mse_loss(v.to(x.dtype), velocity(x, eps))
        else:
            reconstruction = at_least_float32(unpatchify(self.decoder(registers, patches, tap=tap), self.patch, patches))
            if self.latents is None:
                losses |= self.losses_of(reconstruction, media)
            else:
                losses["latents"] = F.mse_loss(reconstruction, x.to(reconstruction.dtype))
        if tap is not None:
            losses["align"] = self.align * self._alignment(tapped[0], media, patches)
        return TokenizerOutput(Tokens(quantized.codes, spec), losses, reconstruction)

    def _alignment(self, hidden: Tensor, media: Tensor, patches: tuple[int, int]) -> Tensor:
        with torch.no_grad():
            target = self.teacher(media, patches)
        found = self.projector(hidden.to(self.projector[0].weight.dtype))
        return -F.cosine_similarity(found.float(), target.flatten(2).transpose(1, 2).float(), dim=-1).mean()
