"""ResGen: masked generation of residual codes by their sums (Kim et al., arXiv 2412.10208, ICML 2025; no code
is published).

A residual codebook's vector is the sum of its levels' rows, so what is masked at a position is one vector,
however many levels it has:

    x = sum over visible levels of e_k(code_k)     what the network reads: one vector per position
    z = sum over masked levels of e_k(code_k)      what it predicts: a mixture of Gaussians per position (flow/mixture.py)

and to go from z to codes is to quantise it by the codebook's own masked levels. The number of network calls
is therefore independent of K.

Masking is hypergeometric: n = ceil(gamma(u) C) of a row's C present cells, uniformly without replacement, say
how many cells each position loses; it loses its deepest ones. A process that goes through the cells in random
order, and each time reveals the shallowest masked level of the cell's position, has this distribution.

Training minimises, in the mean over positions with masked levels, the bound of flow/mixture.py on KL(N(z, s^2
I) || p): s, a share `smear` of the spread of the deepest level's rows, stands for what quantisation does not
tell apart. Without it the density of a discrete z has no upper bound. It is also the least deviation that a
component can have.

`nll_bound` bounds -log p of the codes, where a level is drawn with p(v | z) proportional to exp(-|z - e_v|^2
/ 2 t^2), t^2 being s^2 plus half of the variance that the tables of the levels below have together (they are
not independent): the quantisation that CLaM-TTS calls probabilistic (arXiv 2404.02781). The sampler takes the
most probable row instead, as the paper does. The codes are revealed one by one as in the process above, each
step bounded by

    -log p(v) <= KL(q(z) || p(z)) + E_q[-log p(v | z)]

with q = N(sum of the next levels, t^2 I), of 1, 2, 4, ... or all of them, whichever number has the smallest
divergence.

Deviations, or what the sources leave open: the number of components, their rank and the deviation that
depends on the position are ours; so are a learned mark per level of what is visible, masked or absent, and
coordinates for z: those of the subspace that the rows span (a codebook may project a few dimensions to many),
shifted and scaled to zero mean and unit variance by the codebook's tables for every set of masked levels.
One-hot features say which level is the first masked one, so that components have means of their own for each;
they start at sums of random rows, one of each masked level.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.errors import counted
from gentok.flow.mixture import Mixture
from gentok.flow.random_cells import random_deepest
from gentok.generators.base import CumulativeMasked
from gentok.generators.masked_losses import SCHEDULES
from gentok.generators.residual_sums import sum_coordinates
from gentok.interfaces import Codebook, Generator
from gentok.nn.frozen import Frozen
from gentok.nn.token_transformer import BidirectionalTrunk, TransformerOptions, TransformerSettings, initialise_parts
from gentok.precision import no_autocast
from gentok.rng import RowRNG
from gentok.settings import PositiveFloat, PositiveInt
from gentok.types import ABSENT, UNKNOWN, Condition, ConditionSpec, LossOutput, Tokens, TokenSpec

__all__ = ["ResGen"]


class ResGen(Generator, CumulativeMasked, id="generator/resgen"):
    """Predicts, at every position, the sum of its masked levels' rows.

    Args:
        spec: the tokens.
        condition_spec: what they are conditioned on; None: nothing.
        codebook: whose levels add up; a frozen copy is kept, outside of the state dict.
        activation: of the feed-forward part, swiglu or gelu.
        components: M, of the mixture.
        rank: R, of the maps from the features of a position to the components' means.
        schedule: of the masked share in training: cosine, arccos or linear.
        smear: s in units of the deepest level's spread, above 0.
        transformer: as in TransformerSettings.

    Raises:
        ValueError: the codebook's levels do not add up, or a setting is out of range.
    """

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        codebook: Codebook | None = None,
        *,
        activation: str = "swiglu",
        components: PositiveInt = 512,
        rank: PositiveInt = 8,
        schedule: str = "cosine",
        smear: PositiveFloat = 0.25,
        **transformer: TransformerOptions,
    ):
        super().__init__()
        if codebook is None or not codebook.nested_levels:
            name = "no codebook at all" if codebook is None else f"a {type(codebook).__name__} of {counted(codebook.levels, 'level')}"
            raise ValueError(
                f"resgen models the sums of a residual codebook's levels; this tokenizer has {name}: use generator=masked or "
                "autoregressive, or a tokenizer with codebook=residual"
            )
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {schedule!r}")
        settings = TransformerSettings(**transformer)
        self.spec, self.condition_spec = spec, condition_spec or ConditionSpec()
        self.schedule, self.condition_dropout, width = schedule, settings.condition_dropout, settings.width
        self.codebook = Frozen(codebook)
        self._levels, start = sum_coordinates(codebook, spec.levels, components, smear)
        inner = start.shape[1]
        self.trunk = BidirectionalTrunk(spec, self.condition_spec, settings, activation)
        self.read = nn.Linear(inner, width, bias=False)
        self.marks = nn.Embedding(3 * spec.levels, width)  # visible, masked, absent, for each level
        self.weigh = nn.Linear(width, components)
        self.features = nn.Linear(width, rank, bias=False)
        self.shift = nn.Linear(width, inner, bias=False)
        self.scale = nn.Linear(width, 1)
        self.offsets = nn.Parameter(torch.zeros(components, inner))
        maps = torch.empty(components, inner, rank).normal_(std=0.02)
        self.maps = nn.Parameter(torch.cat((maps, start.to(maps.device)), 2))
        self.log_scales = nn.Parameter(torch.full((components,), -1.0))  # components of the start hardly overlap
        initialise_parts(self.read, self.marks, self.shift)
        nn.init.normal_(self.features.weight, std=width**-0.5)
        for part in (self.weigh, self.scale):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)

    # ------------------------------------------------------------------------------------------------ network

    @property
    def _type(self) -> torch.dtype:
        """In which the mixture is computed, also under autocast."""
        return torch.float64 if self.offsets.dtype == torch.float64 else torch.float32

    def cumulative(self, codes: Tensor, chosen: Tensor) -> Tensor:
        """The sum of the codebook's rows over chosen cells.

        Args:
            codes: int64 [B, K, N].
            chosen: bool [B, K, N].

        Returns:
            float [B, N, d], in the subspace's coordinates.
        """
        vectors = self.codebook.on(codes.device).lookup(codes.masked_fill(~chosen, ABSENT))
        with no_autocast(codes.device):
            return vectors.transpose(1, 2).to(self._type) @ self._levels.on(codes.device, self._type).axes

    def _moments(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """chosen bool [B, K, N] -> mean float [B, N, d] and variance float [B, N] of the sum of the chosen
        levels' rows."""
        levels = self._levels.on(chosen.device, self._type)
        share = chosen.transpose(1, 2).to(self._type)
        with no_autocast(chosen.device):
            return share @ levels.mean, share @ levels.variance

    def _mixture(self, codes: Tensor, condition: Condition, rng: RowRNG | None) -> Mixture:
        """codes with UNKNOWN cells. rng: for dropout; None: none."""
        self.check_shape(codes)
        levels = self._levels.on(codes.device, self._type)
        visible, masked_cells = codes >= 0, codes == UNKNOWN
        mean, _ = self._moments(visible)
        x = (self.cumulative(codes, visible) - mean) / levels.variance.sum().sqrt()
        rows = (levels.level + masked_cells + 2 * (codes == ABSENT)).transpose(1, 2)
        x = self.read(x.to(self.read.weight.dtype)) + self.marks(rows).sum(-2)
        hidden = self.trunk(x, condition, rng)

        mean, variance = self._moments(masked_cells)
        unit = torch.where(masked_cells.any(1), variance, 1.0).sqrt()
        first = (masked_cells & (masked_cells.cumsum(1) == 1)).transpose(1, 2).to(self._type)  # [B, N, K], one-hot
        with no_autocast(hidden.device):  # a mean that is right to three digits would be wrong by more than s
            h = hidden.to(self._type)

            def out(part: nn.Linear) -> Tensor:
                return F.linear(h, part.weight.to(h), None if part.bias is None else part.bias.to(h))

            return Mixture(
                logits=out(self.weigh),
                features=torch.cat((out(self.features), first), 2),
                maps=self.maps.to(h),
                offsets=self.offsets.to(h),
                log_scale=out(self.scale) + self.log_scales.to(h),
                centre=mean + unit[..., None] * out(self.shift),
                unit=unit,
                floor=levels.smear,
            )

    def mixture(self, tokens: Tokens, condition: Condition) -> Mixture:
        """As CumulativeMasked.mixture."""
        return self._mixture(tokens.codes, condition, None)

    def forward(self, tokens: Tokens, condition: Condition | None = None) -> Mixture:
        """As `mixture`."""
        return self.mixture(tokens, condition or Condition())

    @torch.no_grad()
    def requantize(self, z: Tensor, tokens: Tokens) -> Tokens:
        """As CumulativeMasked.requantize."""
        codes, codebook = tokens.codes, self.codebook.on(tokens.codes.device)
        with no_autocast(codes.device):
            vectors = codebook.lookup(codes) + (z.to(self._type) @ self._levels.on(codes.device, self._type).axes.T).transpose(1, 2)
        return Tokens(codebook.nearest(vectors, codes), tokens.spec, tokens.lengths)

    # --------------------------------------------------------------------------------------------------- loss

    def _entropy(self, spread: Tensor) -> Tensor:
        """Nats of N(., spread I)."""
        return 0.5 * self.offsets.shape[1] * (1 + torch.log(2 * math.pi * spread))

    def loss(self, tokens: Tokens, condition: Condition, rng: RowRNG) -> LossOutput:
        """Mean of the bound over positions with masked levels, nats per position.

        Args:
            tokens: codes int64 [B, K, N].
            condition: B rows.
            rng: for the masks, and, in training mode, for condition dropout and dropout.

        Returns:
            LossOutput without nats of rows; terms: choice and fit (their sum is the loss), masked (the share
            of cells).
        """
        codes = tokens.codes
        cells = (codes >= 0).flatten(1).sum(1)
        share = SCHEDULES[self.schedule](rng.uniform())
        chosen = random_deepest(codes >= 0, torch.ceil(share * cells).to(torch.int64).clamp(min=1), rng)
        condition = self.drop_condition(condition, rng)
        mixture = self._mixture(codes.masked_fill(chosen, UNKNOWN), condition, rng if self.training else None)
        choice, fit = mixture.bound(self.cumulative(codes, chosen), mixture.floor)
        here = chosen.any(1)
        count = here.sum()
        choice, fit = ((part * here).sum() / count.clamp(min=1) for part in (choice, fit - self._entropy(mixture.floor)))
        terms = {"choice": choice.detach(), "fit": fit.detach(), "masked": chosen.sum() / cells.sum().clamp(min=1)}
        return LossOutput(choice + fit, count, None, terms)

    @torch.no_grad()
    def nll_bound(self, tokens: Tokens, condition: Condition, rng: RowRNG, samples: int = 1) -> Tensor:
        """An unbiased estimate of an upper bound on -log p of the codes (see the file's head).

        The bound is the mean over n = 1..C masked cells of C times the mean over those cells of the nats of
        their position's next level.

        Args:
            tokens: codes int64 [B, K, N].
            condition: B rows.
            rng: for the masks and sums.
            samples: how many values of n per row, spread evenly, each with a mask of its own; every one is a
                network call.

        Returns:
            float64 [B], in nats.
        """
        codes = tokens.codes
        cells = (codes >= 0).flatten(1).sum(1)
        offset = rng.uniform()
        total = torch.zeros(len(codes), dtype=torch.float64, device=codes.device)
        for j in range(samples):
            u = (offset + j / samples) % 1.0
            count = torch.minimum((u * cells).to(torch.int64) + 1, cells)
            chosen = random_deepest(codes >= 0, count, rng)
            mixture = self._mixture(codes.masked_fill(chosen, UNKNOWN), condition, None)
            nats = self._next_level(mixture, codes, chosen, rng).double()
            total += (chosen.sum(1) * nats).sum(1) * cells / count.clamp(min=1)
        return total / samples

    def _next_level(self, mixture: Mixture, codes: Tensor, chosen: Tensor, rng: RowRNG) -> Tensor:
        """float [B, N]: the bound on the nats of each position's first masked level; 0 where nothing is
        masked."""
        smear = self._levels.on(codes.device, self._type).smear
        number = torch.arange(codes.shape[1], device=codes.device)[:, None]
        first = torch.where(chosen, number, codes.shape[1]).amin(1)  # [B, N]; K where nothing is masked
        best, z, width = None, None, None
        for j in sorted({2**i for i in range(len(codes[0]).bit_length())} | {len(codes[0])}):
            near, deep = chosen & (number < first[:, None] + j), chosen & (number >= first[:, None] + j)
            mean, variance = self._moments(deep)
            centre, spread = self.cumulative(codes, near) + mean, smear + 0.5 * variance
            divergence = torch.stack(mixture.bound(centre, spread[..., None])).sum(0) - self._entropy(spread)
            if best is None:
                best, z, width = divergence, centre, spread
            else:
                better = divergence < best
                best, width = torch.where(better, divergence, best), torch.where(better, spread, width)
                z = torch.where(better[..., None], centre, z)
        z = z + width.sqrt()[..., None] * rng.normal(*z.shape[1:]).to(z)
        nats = torch.zeros_like(best)
        for k in range(codes.shape[1]):
            rows = first == k
            mean, variance = self._moments(chosen & (number > k))
            table = self.codebook.on(codes.device).table(k).to(z) @ self._levels.on(codes.device, self._type).axes
            distance = torch.cdist((z - mean)[rows], table).square()
            logits = -0.5 * distance / (smear + 0.5 * variance)[rows][:, None]
            nats[rows] = F.cross_entropy(logits, codes[:, k][rows], reduction="none")
        return torch.where(first < codes.shape[1], best + nats, 0.0)
