"""Multi-scale residual quantization (Tian et al., VAR, arXiv 2404.02905, algorithms 1 and 2; Qu et al.,
TokenFlow, arXiv 2412.03069): a square map is coded at growing sizes, each coding what the sizes before it
left over.

    f_0 = 0;    code_s = codebook(area_down(z - sg f_s));    f_{s+1} = f_s + phi_s(bicubic_up(row of code_s))
    vectors = z + sg(f_S - z)
    loss = mean_s |f_s - sg z|^2  +  commitment * mean_s |z - sg f_s|^2,   s = 1..S

The residual stays at full size, one table serves all scales, and the losses are on the sum so far, not on the
residual. There is one straight-through, around the whole: with one inside, z - f_s has no gradient to the
encoder. phi_s(h) = h/2 + conv3x3(h)/2 is one of `phi` partially shared convolutions (VAR: 4), or nothing (0,
TokenFlow).

Coarse scales are known to collapse. Here the table's start, revival and averages see the cells of all scales
once per step, together, so that the scale that happens to be quantized last does not write over the others;
`scale_dropout` leaves one scale out that is not the first, of the whole batch (TokenFlow: 0.1), and
`scale_usage` tells how many rows each scale uses.

Deviations: the table starts from what each scale would be given if those before it were not quantized, since
there are no rows to subtract yet; an inner codebook that learns through its own softmax (IBQ) learns here by
the losses alone; a row that does not use a scale is not moved by phi's bias either. Losses of the inner
codebook other than `commitment` and `codebook` (entropies) are kept. A table with averages moves before the
batch is coded, and the term |f_s - sg z|^2 then trains phi alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.codebooks.base import BaseCodebook, SingleLevel, fill, share_used, straight_through
from gentok.codebooks.search import draw_for_all, row_mean
from gentok.rng import RowRNG
from gentok.settings import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt, PositiveInts
from gentok.types import ABSENT, UNKNOWN, Grid, Quantized
from gentok.types import Pyramid as PyramidGrid

__all__ = ["PyramidCodebook"]


def _resized(x: Tensor, side: int, mode: str) -> Tensor:
    """x float [B, D, h, h] -> [B, D, side, side]; itself where it has that size."""
    return x if x.shape[-1] == side else F.interpolate(x, size=(side, side), mode=mode)


class PyramidCodebook(BaseCodebook, id="codebook/pyramid"):
    """K = 1, N = sum of sides^2, M = sides[-1]^2: a codebook of one level, used at every scale."""

    invertible = False

    def __init__(
        self,
        codebook: SingleLevel,
        sides: PositiveInts,
        width: PositiveInt | None = None,
        phi: NonNegativeInt = 0,
        commitment: NonNegativeFloat = 0.25,
        scale_dropout: Fraction = 0.1,
        carry: str = "full",
    ):
        """Takes the codebook as it is.

        Args:
            codebook: without projections of its own.
            sides: of the scales, growing.
            width: channels in and out where they differ from the codebook's (linear projections around all
                scales, without a bias behind).
            phi: how many convolutions follow the upsampling.
            commitment: weight of the pull of the encoder.
            scale_dropout: probability that a batch leaves out one scale but the first, in training where
                `forward` is given rng.
            carry: how `accumulate` hands sums on: "full" (VAR) or "progressive" (TokenFlow; without phi).

        Raises:
            ValueError: the settings do not fit each other.
        """
        sides = tuple(int(side) for side in sides)
        if not sides or any(b <= a for a, b in zip(sides, sides[1:])):
            raise ValueError(f"PyramidCodebook needs growing sides of at least 1, for example [1, 2, 4, 8]; got {list(sides)}")
        if not isinstance(codebook, SingleLevel):
            raise ValueError(f"PyramidCodebook takes a codebook of one level (vq, dual, fsq, ...); got {type(codebook).__name__}")
        self.refuse_projections(codebook)
        if carry not in ("full", "progressive") or (carry == "progressive" and phi):
            raise ValueError(f"PyramidCodebook takes carry=full, or carry=progressive with phi=0; got {carry!r} with phi={phi}")
        super().__init__(codebook.width, width, codebook.vocab_sizes, out_bias=False)
        self.sides, self.commitment, self.scale_dropout, self.carry = sides, commitment, scale_dropout, carry
        self.parts = {} if self.projected else dict(codebook.parts)
        self.book = codebook
        self.phi = nn.ModuleList([nn.Conv2d(self.dim, self.dim, 3, padding=1) for _ in range(phi)])
        self.cells = [side * side for side in sides]
        self.phi_of = [self._nearest_phi(scale) for scale in range(len(sides))] if phi else []
        if {id(self._phi(s)) for s in range(len(sides))} != {id(module) for module in self.phi or [None]}:
            raise ValueError(f"phi={phi} convolutions are more than {len(sides)} scales use: take fewer")
        self.learnt = bool(phi) or any(True for _ in codebook.parameters())

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for module in (self.book, *self.phi):
            module.reset_parameters()

    def grid(self, h: int, w: int) -> Grid:
        if h != w or h != self.sides[-1]:
            raise ValueError(
                f"this pyramid codes maps of {self.sides[-1]} x {self.sides[-1]} cells; got {h} x {w}: "
                f"let codebook.sides end in {max(h, w)}" + ("" if h == w else ", and resize the media to squares")
            )
        return PyramidGrid(self.sides)

    # ---------------------------------------------------------------------------------------------------------- one scale

    def _nearest_phi(self, scale: int) -> int:
        """VAR's assignment: which convolution's place on [0, 1] is nearest to the scale's."""
        count = len(self.phi)
        edge = (1 / 3 if count == 4 else 1 / 2) / count
        places = torch.linspace(edge, 1 - edge, count, dtype=torch.float64, device="cpu")
        return int((places - scale / max(1, len(self.sides) - 1)).abs().argmin())

    def _phi(self, scale: int) -> nn.Module | None:
        """The convolution behind a scale's upsampling; None where there are none."""
        return self.phi[self.phi_of[scale]] if self.phi_of else None

    def _map(self, rows: Tensor, side: int) -> Tensor:
        """rows float [B, n, dim] -> [B, dim, side, side]."""
        return rows.transpose(1, 2).unflatten(2, (side, side))

    def _raised(self, scale: int, rows: Tensor, codes: Tensor) -> Tensor:
        """rows float [B, n, dim] of codes int64 [B, n], below 0 where there is none -> what they add, float
        [B, dim, side, side]."""
        rows = rows.masked_fill((codes < 0)[..., None], 0.0)
        h = _resized(self._map(rows, self.sides[scale]), self.sides[-1], "bicubic")
        phi = self._phi(scale)
        if phi is None:
            return h
        h = 0.5 * h + 0.5 * F.conv2d(h, phi.weight.float(), phi.bias.float(), padding=1)
        return h.masked_fill((codes < 0).all(1)[:, None, None, None], 0.0)

    def _lowered(self, scale: int, residual: Tensor) -> Tensor:
        """residual float [B, dim, side, side] -> what the scale codes, float [B, dim, n]."""
        return _resized(residual, self.sides[scale], "area").flatten(2)

    def _coded(self, x: Tensor, skip: int | None) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """x float [B, dim, side, side] -> by scale: its input [B, dim, n] with gradient to x, its codes [B,
        n], and the sum so far with gradient to the rows and phi [B, dim, side, side]. The scale `skip` has no
        cells."""
        total, inputs, codes, totals = torch.zeros_like(x), [], [], []
        for s, n in enumerate(self.cells):
            inputs.append(self._lowered(s, self._left_over(x, total)))
            if s == skip:
                codes.append(torch.full((len(x), n), ABSENT, dtype=torch.int64, device=x.device))
            else:
                codes.append(self.book.encode(inputs[-1])[:, 0])  # its statistics are gathered over all scales together
            # also where it is skipped: a convolution without a gradient would stop DistributedDataParallel
            total = total + self._raised(s, self._chosen(inputs[-1], codes[-1]), codes[-1])
            totals.append(total)
        return inputs, codes, totals

    def _left_over(self, x: Tensor, total: Tensor) -> Tensor:
        """What the next scale codes, with gradient to x alone."""
        return x - total.detach()

    def _chosen(self, x: Tensor, codes: Tensor) -> Tensor:
        """The rows float [B, n, dim] of the codes that x float [B, dim, n] was given, with gradient to the
        rows alone."""
        return self.book.learnt_rows(codes.clamp(min=0))

    # ------------------------------------------------------------------------------------------------------------ forward

    def _draw_skip(self, rng: RowRNG) -> int | None:
        """The scale that the batch leaves out, if any."""
        u, scales = draw_for_all(rng.fork("scale")).tolist(), len(self.sides)
        return 1 + int(u[1] * (scales - 1)) if scales > 1 and u[0] < self.scale_dropout else None

    def _gather(self, x: Tensor, n_levels: Tensor | None, rng: RowRNG | None, skip: int | None) -> dict[str, Tensor]:
        """Gives the inner codebook the cells of all scales at once, and returns the losses that are its
        own."""
        if not self.book.awaits_data:
            inputs = self._coded(x, skip)[0]
        else:
            inputs, rest = [], x
            for s, side in enumerate(self.sides):
                inputs.append(self._lowered(s, rest))
                rest = rest - _resized(inputs[-1].unflatten(2, (side, side)), self.sides[-1], "bicubic")
        seen = torch.cat([part for s, part in enumerate(inputs) if s != skip], 2)
        losses = self.book(seen, n_levels=n_levels, rng=None if rng is None else rng.fork("book")).losses
        return {name: loss for name, loss in losses.items() if name not in ("commitment", "codebook")}

    def forward(self, z: Tensor, *, n_levels: Tensor | None = None, rng: RowRNG | None = None) -> Quantized:
        x = self.inward(z)
        if x.shape[1] != self.cells[-1]:
            raise ValueError(f"this pyramid takes float [B, {self.in_width}, {self.sides[-1]}^2 = {self.cells[-1]}]; got {tuple(z.shape)}")
        x = self._map(x, self.sides[-1])
        present = None if n_levels is None else n_levels > 0
        skip, losses = None, {}
        if self.training:
            if rng is not None and self.scale_dropout > 0:
                skip = self._draw_skip(rng)
            losses = self._gather(x, n_levels, rng, skip)
        _, parts, totals = self._coded(x, skip)
        used = self._penalised(totals, skip)
        losses["commitment"] = self.commitment * torch.stack([self._pull(x, total, present) for total in used]).mean()
        if self.learnt:
            losses["codebook"] = torch.stack([row_mean((total - x.detach()).square(), present) for total in used]).mean()
        vectors, codes = self._outward_map(straight_through(totals[-1], x)), torch.cat(parts, 1)[:, None]
        return self.quantized(vectors, codes, losses, present)

    def _penalised(self, totals: list[Tensor], skip: int | None) -> list[Tensor]:
        """The sums so far whose distance to the input counts: of every scale but the one that is skipped."""
        used = [total for s, total in enumerate(totals) if s != skip]
        used[-1] = totals[-1]  # the same sum where the last scale is skipped, but with its convolution behind it
        return used

    def _pull(self, x: Tensor, total: Tensor, present: Tensor | None) -> Tensor:
        """|z - sg f_s|^2."""
        return row_mean((x - total.detach()).square(), present)

    def _outward_map(self, total: Tensor) -> Tensor:
        return self.outward(total.flatten(2).transpose(1, 2))

    # ------------------------------------------------------------------------------------------------------------- lookup

    def _rows(self, codes: Tensor) -> Tensor:
        return self.book.rows(codes.clamp(min=0))

    def _split(self, codes: Tensor, scales: int) -> list[Tensor]:
        """codes int64 [B, 1, n] -> those of the first scales, int64 [B, n_s] each. Raises ValueError where
        there are too few."""
        self.check_codes(codes)
        need = sum(self.cells[:scales])
        if codes.shape[2] < need:
            raise ValueError(f"the first {scales} scales of {list(self.sides)} have {need} codes; got {codes.shape[2]}")
        return list(codes[:, 0, :need].split(self.cells[:scales], 1))

    def lookup(self, codes: Tensor) -> Tensor:
        parts = self._split(codes, len(self.sides))
        if codes.shape[2] != sum(self.cells):
            raise ValueError(f"this pyramid has codes [B, 1, {sum(self.cells)}]; got {tuple(codes.shape)}")
        total = torch.zeros(codes.shape[0], self.dim, self.sides[-1], self.sides[-1], device=codes.device)
        for s, part in enumerate(parts):
            total = total + self._raised(s, self._rows(part), part)
        return self._outward_map(total)

    def accumulate(self, codes: Tensor, scales: Sequence[int], own: bool = False) -> Tensor:
        """What next-scale models are fed: for every s of `scales`, in turn, the sum of the first s scales at
        the size of the next.

        Args:
            codes: int64 [B, 1, n], enough for the largest s.
            scales: each 0 (zeros) to S, which has no next and stays at the last size. range(1, S) is what
                training is fed, [s] what the step after s scales is.
            own: at the size of the last scale that is summed, which may then be predicted anew.

        Returns:
            float32 [B, width, sum of sides[s]^2], or with `own` of sides[s - 1]^2.

        Raises:
            ValueError: there are not so many scales, or too few codes.
        """
        top, last = max(scales, default=0), len(self.sides) - 1
        if min(scales, default=0) < 0 or top > last + 1:
            raise ValueError(f"accumulate sums the first 0 to {last + 1} scales; got {list(scales)}")
        full = self.carry == "full"
        side = self.sides[-1 if full else 0]
        total = torch.zeros(codes.shape[0], self.dim, side, side, device=codes.device)
        sums = [_resized(total, self.sides[0], "area")]
        for s, part in enumerate(self._split(codes, top)):
            if full:
                total = total + self._raised(s, self._rows(part), part)
            else:
                rows = self._rows(part).masked_fill((part < 0)[..., None], 0.0)
                total = _resized(total, self.sides[s], "bicubic") + self._map(rows, self.sides[s])
            sums.append(_resized(total, self.sides[s if own else min(s + 1, last)], "area" if full else "bicubic"))
        x = torch.cat([total.new_zeros(codes.shape[0], self.dim, 0), *(sums[s].flatten(2) for s in scales)], 2)
        return self.outward(x.transpose(1, 2))

    @torch.no_grad()
    def nearest(self, vectors: Tensor, given: Tensor | None = None) -> Tensor:
        """As of levels, scale by scale. Projections are undone by least squares."""
        x = vectors.double().transpose(1, 2)
        if self.projected:
            x = x @ torch.linalg.pinv(self.project_out.weight.double()).T
        residual = self._map(x.float(), self.sides[-1])
        given = torch.full((vectors.shape[0], 1, sum(self.cells)), UNKNOWN, device=vectors.device) if given is None else given
        parts, out = self._split(given, len(self.sides)), []
        known = [self._raised(s, self._rows(part), part) for s, part in enumerate(parts)]
        residual = residual - sum(known)
        for s, part in enumerate(parts):
            found = fill(self.book.nearest(self._lowered(s, residual))[:, 0], part)
            residual = residual + known[s] - self._raised(s, self._rows(found), found)
            out.append(found)
        return torch.cat(out, 1)[:, None]

    def table(self, level: int = 0) -> Tensor:
        """The rows of every scale, before they are raised to full size."""
        return self.outward(self.book.table()[None])[0].T

    def scale_usage(self, codes: Tensor) -> Tensor:
        return torch.stack([share_used(part, self.vocab_sizes[0]) for part in self._split(codes, len(self.sides))])
