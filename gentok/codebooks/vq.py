"""Vector quantization with a learnt table, by gradient or by moving averages.

    van den Oord et al., "Neural Discrete Representation Learning", arXiv 1711.00937: code = argmin_v |x -
    e_v|, straight-through, and
        gradient:  |sg x - e|^2 + commitment * |x - sg e|^2
        ema:       N_v <- d N_v + (1 - d) n_v;   S_v <- d S_v + (1 - d) sum x;   e_v = S_v / N_v
                   commitment * |x - sg e|^2 alone
    normalize: both sides on the unit sphere, in a space of few dimensions (ViT-VQGAN, arXiv 2110.04627;
        LlamaGen, arXiv 2406.06525).

The straight-through estimator stands in the code space, before the projection out, so that both projections
learn from the decoder.

Starting: with `kmeans_start` the rows are k-means centres of the first training batch, on all processes
together; N are the cluster sizes and S = N * centre (SoundStream; an S of bare means shrinks the rows to
nothing within a step). Without it N starts at uniform usage.

Reviving: a row whose N falls below `revive_below` times uniform usage becomes a vector of the batch that is
about to be quantized, with uniform usage, before that batch is looked up; S goes with it, else the next
average writes the dead row back.

Deviations: no Laplace smoothing (it pulls rare rows to the origin; without it a row that is never used stays
where it is, exactly). Vectors are taken from the table before it moves: in training with ema, a later lookup
sees the new rows.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.codebooks.base import TableCodebook
from gentok.codebooks.search import draw_vectors, nearest_rows, position_weights
from gentok.distributed import all_sum, rank
from gentok.rng import RowRNG
from gentok.settings import CheckedDataclass, FractionBelow1, NonNegativeFloat, NonNegativeInt, PositiveInt, VocabSize

__all__ = ["VQ", "Update", "VQOptions"]

_log = logging.getLogger("gentok.codebooks")
TINY = 1e-20
"""Usage below which S / N is no longer taken: the row stays."""


Update = Literal["gradient", "ema"]
"""How rows are learnt: by the loss, or as moving averages of what chose them."""


@dataclass(frozen=True)
class VQSettings(CheckedDataclass):
    """How a table is learnt.

    Attributes:
        commitment: weight of the pull of the encoder to its row.
        decay: of the moving averages, in [0, 1).
        kmeans_start: k-means iterations on the first training batch; 0: a random start.
        revive_below: share of uniform usage, in [0, 1), below which a row is revived where `forward` is given
            rng; 0: never.
    """

    commitment: NonNegativeFloat = 0.25
    decay: FractionBelow1 = 0.95
    kmeans_start: NonNegativeInt = 10
    revive_below: FractionBelow1 = 0.1


VQOptions = Annotated[Any, VQSettings]
"""Of a constructor's `**options`: they are the fields of VQSettings (gentok/build.py reads this)."""


class VQ(TableCodebook, id="codebook/vq"):
    """A table of vocab_size rows of dim channels."""

    _said = False
    """Whether it was said that rows are not revived."""

    def __init__(
        self,
        vocab_size: VocabSize,
        dim: PositiveInt,
        width: PositiveInt | None = None,
        normalize: bool = True,
        update: Update = "gradient",
        **learning: VQOptions,
    ):
        """Makes a random table, which `kmeans_start` replaces in the first training step.

        Args:
            vocab_size: V.
            dim: channels in which codes are compared.
            width: channels in and out where they differ from dim (linear projections).
            normalize: whether both sides are l2-normalised.
            update: "gradient" or "ema".
            learning: as in VQSettings.

        Raises:
            ValueError: a setting is out of its range.
        """
        super().__init__(dim, width, (vocab_size,))
        settings = VQSettings(**learning)
        self.normalize, self.update, self.commitment, self.decay = normalize, update, settings.commitment, settings.decay
        self.kmeans_start, self.revive_below = settings.kmeans_start, settings.revive_below
        if update == "ema":
            self.register_buffer("weight", torch.empty(vocab_size, dim))
            self.register_buffer("sums", torch.empty(vocab_size, dim))
        else:
            self.weight = nn.Parameter(torch.empty(vocab_size, dim))
        self.register_buffer("usage", torch.empty(vocab_size))
        self.register_buffer("started", torch.tensor(False))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.weight.normal_(std=self.dim**-0.5)
        self.weight.copy_(self._scaled(self.weight))
        self.usage.zero_()
        self.started.fill_(False)
        if self.update == "ema":
            self.sums.zero_()

    @property
    def awaits_data(self) -> bool:
        return not bool(self.started)

    def _scaled(self, x: Tensor) -> Tensor:
        """Inputs and rows as they are stored, looked up and averaged."""
        return F.normalize(x, dim=-1) if self.normalize else x

    def _approximated(self, x: Tensor) -> Tensor:
        return self._scaled(x)

    def _table(self) -> Tensor:
        # normalising keeps a copy, so that reviving a row between two forward passes breaks no backward pass
        weight = self.weight.float()
        return self._scaled(weight.clone()) if self.normalize else weight

    def quantize(self, x: Tensor, present: Tensor | None, rng: RowRNG | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        x = self._scaled(x)
        if self.training:
            self._start(x, present, rng)
            self._revive(x, present, rng)
        codes, values, losses = super().quantize(x, present, rng)
        if self.update == "ema":
            del losses["codebook"]
        if self.training:
            self._track(x.detach(), codes, present)
        return codes, values, losses

    # ------------------------------------------------------------------------------------------------------- statistics

    @torch.no_grad()
    def _totals(self, x: Tensor, codes: Tensor, present: Tensor | None, sums: bool = True) -> tuple[Tensor, Tensor | None]:
        """(vectors per row float [V], their sums float [V, dim] or None) over all processes, with one
        collective."""
        weight = position_weights(x, present)
        columns = torch.cat([x * weight[..., None], weight[..., None]], 2) if sums else weight[..., None]
        total = x.new_zeros(self.vocab_sizes[0], columns.shape[2])
        total = all_sum(total.index_add_(0, codes.flatten(), columns.flatten(0, 1)))
        return total[:, -1], total[:, :-1] if sums else None

    @torch.no_grad()
    def _set(self, index: Tensor | slice, rows: Tensor, usage: Tensor | float) -> None:
        """Sets rows, and with them their usage and sums."""
        self.weight[index] = rows.to(self.weight.dtype)
        self.usage[index] = usage
        if self.update == "ema":
            self.sums[index] = self.weight[index] * self.usage[index][:, None]

    @torch.no_grad()
    def _start(self, x: Tensor, present: Tensor | None, rng: RowRNG | None) -> None:
        if not self.awaits_data:
            return
        vectors = x.shape[0] * x.shape[1] if present is None else present.sum() * x.shape[1]
        uniform = all_sum(torch.as_tensor(vectors, dtype=x.dtype, device=x.device)) / self.vocab_sizes[0]
        if uniform == 0:  # a level that the whole batch has dropped
            return
        self._set(slice(None), self.weight, uniform)
        if self.kmeans_start > 0:
            if rng is None:  # nothing random may happen: the choice of centres is a function of the place in the batch alone
                rng = RowRNG(torch.arange(x.shape[0], device=x.device) + rank() * x.shape[0])
            self._kmeans(x, present, rng.fork("start"))
        self.started.fill_(True)

    def _kmeans(self, x: Tensor, present: Tensor | None, rng: RowRNG) -> None:
        """Lloyd's iterations from vectors of the batch. With fewer vectors than rows, the rows behind keep
        their random place and count as unused."""
        centres = draw_vectors(x, rng, self.vocab_sizes[0], present)
        flat = self._compared(x).reshape(-1, self.dim)
        for _ in range(self.kmeans_start + 1):  # the last pass counts the clusters of the final centres
            codes = nearest_rows(flat, self._compared(centres)).view(x.shape[:2])
            count, sums = self._totals(x, codes, present)
            count, sums = count[: len(centres)], sums[: len(centres)]
            final, centres = centres, self._scaled(torch.where(count[:, None] > 0, sums / count[:, None].clamp(min=1), centres))
        self._set(slice(len(final)), final, count)
        self._set(slice(len(final), None), self.weight[len(final) :], 0.0)

    @torch.no_grad()
    def _revive(self, x: Tensor, present: Tensor | None, rng: RowRNG | None) -> None:
        if self.revive_below <= 0 or (rng is None and self._said):
            return
        uniform = self.usage.mean()
        dead = (self.usage < self.revive_below * uniform).nonzero()[:, 0]
        if len(dead) and rng is None:
            self._said = True
            _log.warning(
                "%d of %d rows of this %s are hardly used, and none is revived (revive_below=%s) where a training step has no random "
                "numbers: call it with rng=RowRNG.of(seed, index, step), or set revive_below=0",
                len(dead), self.vocab_sizes[0], type(self).__name__, self.revive_below,
            )  # fmt: skip
        elif len(dead):
            fresh = draw_vectors(x, rng.fork("revive"), len(dead), present)
            self._set(dead[: len(fresh)], fresh, uniform)

    @torch.no_grad()
    def _track(self, x: Tensor, codes: Tensor, present: Tensor | None) -> None:
        if self.update == "gradient":
            if self.revive_below > 0:
                self.usage.lerp_(self._totals(x, codes, present, sums=False)[0], 1 - self.decay)
            return
        self._average(*self._totals(x, codes, present))

    def _average(self, count: Tensor, sums: Tensor) -> None:
        """One step of the averages, with this batch's vectors per row float [V] and their sums float [V,
        dim]."""
        self.usage.lerp_(count, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        alive = self.usage[:, None] > TINY
        self.weight.copy_(torch.where(alive, self._scaled(self.sums / self.usage[:, None].clamp(min=TINY)), self.weight))
