"""What codebooks share: projections, straight-through, levels that add up, and codebooks of one level.

Every codebook computes in float32, also under autocast: in bfloat16 two near rows tie, and an FSQ uses half
of its codes. What each method takes and returns is documented once, in gentok.interfaces.Codebook.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.codebooks.search import TABLE_LIMIT, nearest_rows, row_mean, share_used
from gentok.interfaces import Codebook
from gentok.precision import no_autocast
from gentok.rng import RowRNG
from gentok.settings import PositiveInt
from gentok.types import ABSENT, UNKNOWN, Quantized

__all__ = ["BaseCodebook", "SingleLevel", "TableCodebook", "fill", "float32", "nearest_rows", "share_used", "straight_through"]


def float32(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method of a codebook with autocast disabled, on the device of its first argument, or else of the
    codebook."""

    @functools.wraps(method)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        with no_autocast(args[0].device if args and isinstance(args[0], Tensor) else self.device):
            return method(self, *args, **kwargs)

    return guarded


def straight_through(value: Tensor, x: Tensor) -> Tensor:
    """`value` exactly, with the gradient of x. Both float [...]; x - x is 0, hence the order of the sum keeps
    every bit of value."""
    return value.detach() + (x - x.detach())


def fill(found: Tensor, given: Tensor | None) -> Tensor:
    """`found` in the cells where `given` (int64, same shape) is UNKNOWN, `given` elsewhere; `found` where
    nothing is given."""
    return found if given is None else torch.where(given == UNKNOWN, found, given)


def _project(linear: nn.Linear | None, x: Tensor) -> Tensor:
    """float32 whatever the weights' dtype is; x itself without a projection. Contiguous, so that equal rows
    give equal bits."""
    return x if linear is None else F.linear(x.contiguous(), linear.weight.float(), None if linear.bias is None else linear.bias.float())


class BaseCodebook(Codebook):
    """Projections around a space of its own, and the lookup, nearest codes and table of levels that add up.

    Subclasses implement `forward`, and `_added` unless they have a `lookup` of their own. Autocast is
    disabled inside their `forward`, `lookup`, `nearest`, `table`, `accumulate` and `unquantized`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in {"forward", "lookup", "nearest", "table", "accumulate", "unquantized"} & vars(cls).keys():
            setattr(cls, name, float32(getattr(cls, name)))

    def __init__(
        self, dim: PositiveInt, width: PositiveInt | None, vocab_sizes: Sequence[PositiveInt], out_bias: bool = True, in_bias: bool = True
    ):
        """Makes the projections.

        Args:
            dim: channels of the space in which codes are found.
            width: channels in and out. None, or dim: no projections. Else there is a linear map width -> dim
                before and dim -> width behind, both per position.
            vocab_sizes: V of each level.
            out_bias: whether the map behind has a bias.
            in_bias: whether the map before has one.

        Raises:
            ValueError: dim or width is below 1.
        """
        super().__init__()
        self.dim = dim
        self.width = self.in_width = width or dim
        self.vocab_sizes = tuple(int(v) for v in vocab_sizes)
        self.levels = len(self.vocab_sizes)
        self.projected = self.width != dim
        self.project_in = nn.Linear(self.width, dim, bias=in_bias) if self.projected else None
        self.project_out = nn.Linear(dim, self.width, bias=out_bias) if self.projected else None

    def reset_parameters(self) -> None:
        for module in (self.project_in, self.project_out):
            if module is not None:
                module.reset_parameters()

    @property
    def device(self) -> torch.device:
        return next((t.device for t in [*self.parameters(), *self.buffers()]), torch.device("cpu"))

    def inward(self, z: Tensor) -> Tensor:
        """z float [B, width, M] -> float32 [B, M, dim]. Raises ValueError on another shape."""
        if z.dim() != 3 or z.shape[1] != self.in_width:
            raise ValueError(f"{type(self).__name__} takes float [B, {self.in_width}, M]; got {tuple(z.shape)}")
        return _project(self.project_in, z.float().transpose(1, 2))

    def outward(self, rows: Tensor) -> Tensor:
        """rows float [B, M, dim] -> float [B, width, M]."""
        return _project(self.project_out, rows).transpose(1, 2)

    def refuse_projections(self, codebook: Codebook) -> None:
        """Raises ValueError where the codebook inside, which this one stands around, has projections of its
        own."""
        if codebook.projected:
            raise ValueError(
                f"{type(self).__name__} has the projections: build the codebook inside without width (it has width={codebook.width}, "
                f"dim={codebook.dim}), and give width to {type(self).__name__}"
            )

    @float32
    def unquantized(self, z: Tensor) -> Tensor:
        return self.outward(self._approximated(self.inward(z))) if self.has_nearest else super().unquantized(z)

    def _approximated(self, x: Tensor) -> Tensor:
        """x float [B, M, dim] of `inward` as the rows approximate it."""
        return x

    def quantized(self, vectors: Tensor, codes: Tensor, losses: dict[str, Tensor], present: Tensor | None = None) -> Quantized:
        """What `forward` returns, with the rows left out where present bool [B] is False, and the share of
        each level's rows in use."""
        if present is not None:
            codes = codes.masked_fill(~present[:, None, None], ABSENT)
            vectors = vectors.masked_fill(~present[:, None, None], 0.0)
        usage = torch.stack([share_used(codes[:, k], v) for k, v in enumerate(self.vocab_sizes)])
        return Quantized(vectors, codes, losses, usage)

    def all_unknown(self, vectors: Tensor) -> Tensor:
        """vectors float [B, width, N] -> int64 [B, K, N], all UNKNOWN."""
        return torch.full((vectors.shape[0], self.levels, vectors.shape[2]), UNKNOWN, dtype=torch.int64, device=vectors.device)

    def _added(self, level: int, codes: Tensor) -> Tensor:
        """What a level's codes int64 [B, 1, N] add before the projection behind, float32 [B, dim, N]; those
        below 0 nothing."""
        raise NotImplementedError

    def _found(self, level: int, residual: Tensor) -> Tensor:
        """residual float [B, width, N] -> the level's nearest codes int64 [B, 1, N]."""
        x = residual.transpose(1, 2).reshape(-1, self.width)
        return nearest_rows(x.double(), self.table(level).double()).view(residual.shape[0], 1, residual.shape[2])

    @float32
    def lookup(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        total = codes.new_zeros(codes.shape[0], self.dim, codes.shape[2], dtype=torch.float32)
        for k in range(self.levels):
            total = total + self._added(k, codes[:, k : k + 1])
        return self.outward(total.transpose(1, 2))

    @float32
    @torch.no_grad()
    def nearest(self, vectors: Tensor, given: Tensor | None = None) -> Tensor:
        if not self.has_nearest:
            return super().nearest(vectors, given)
        given = self.all_unknown(vectors) if given is None else given
        residual, levels = vectors.float() - self.lookup(given), []
        for k in range(self.levels):
            here = given[:, k : k + 1]
            found = self._found(k, residual)
            levels.append(fill(found, here))
            added = self._added(k, torch.where(here == UNKNOWN, found, ABSENT))
            residual = residual - self.outward(added.transpose(1, 2))
        return torch.cat(levels, 1)

    def table(self, level: int = 0) -> Tensor:
        rows, device = self.vocab_sizes[level], self.device
        if rows > TABLE_LIMIT:
            raise ValueError(f"a table of {rows} rows is too large to write out; use no width, a smaller codebook, or more levels")
        codes = torch.full((1, self.levels, rows), ABSENT, dtype=torch.int64, device=device)
        codes[0, level] = torch.arange(rows, device=device)
        return self.lookup(codes)[0].T


class SingleLevel(BaseCodebook):
    """A codebook of one level, K = 1, M = N: a subclass says how x becomes codes (`quantize`) and codes
    become rows (`rows`)."""

    @property
    def awaits_data(self) -> bool:
        """Whether its rows are still to be made of the first training batch."""
        return False

    def quantize(self, x: Tensor, present: Tensor | None, rng: RowRNG | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Chooses codes.

        Args:
            x: float32 [B, M, dim].
            present: bool [B], rows that count; None: all. The codes of the others are ignored.
            rng: as of `forward`.

        Returns:
            codes int64 [B, M], values float32 [B, M, dim] straight-through to x, and losses averaged over the
            rows that count.
        """
        raise NotImplementedError

    def rows(self, codes: Tensor) -> Tensor:
        """codes int64 [...], all >= 0 -> float32 [..., dim], without gradient to the rows: what training
        decides by its own loss."""
        raise NotImplementedError

    def learnt_rows(self, codes: Tensor) -> Tensor:
        """The same numbers as `rows`, of codes of 0 or more, with gradient where a gradient trains them: for
        codebooks around this one."""
        return self.rows(codes)

    def search(self, x: Tensor) -> Tensor:
        """x float32 [n, dim], points of the space that `rows` returns -> int64 [n]: the nearest rows'
        codes."""
        raise NotImplementedError

    def forward(self, z: Tensor, *, n_levels: Tensor | None = None, rng: RowRNG | None = None) -> Quantized:
        present = None if n_levels is None else n_levels > 0
        codes, values, losses = self.quantize(self.inward(z), present, rng)
        return self.quantized(self.outward(values), codes[:, None], losses, present)

    def lookup(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        return self.outward(self.rows(codes[:, 0].clamp(min=0))).masked_fill(codes < 0, 0.0)

    def _found(self, level: int, residual: Tensor) -> Tensor:
        if self.projected:
            return super()._found(level, residual)
        return self.search(residual.transpose(1, 2).reshape(-1, self.width)).view(residual.shape[0], 1, residual.shape[2])

    @torch.no_grad()
    def nearest(self, vectors: Tensor, given: Tensor | None = None) -> Tensor:
        return fill(self._found(0, vectors.float()), given)


class TableCodebook(SingleLevel):
    """A table of rows, `_table`, learnt as in VQ-VAE (arXiv 1711.00937): |sg x - e|^2 + commitment * |x - sg
    e|^2."""

    commitment: float

    def _table(self) -> Tensor:
        """float32 [V, dim], with gradient to what it is made of."""
        raise NotImplementedError

    def _compared(self, x: Tensor) -> Tensor:
        """Inputs and rows as they are compared in training: the code is that of the nearest row here."""
        return x

    def rows(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self._table().detach())

    def learnt_rows(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self._table())

    def search(self, x: Tensor) -> Tensor:
        return nearest_rows(x.double(), self._table().detach().double())

    def quantize(self, x: Tensor, present: Tensor | None, rng: RowRNG | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        table = self._table()
        codes = nearest_rows(self._compared(x.detach()).reshape(-1, self.dim), self._compared(table.detach())).view(x.shape[:2])
        rows = F.embedding(codes, table)
        losses = {
            "commitment": self.commitment * row_mean((x - rows.detach()).square(), present),
            "codebook": row_mean((rows - x.detach()).square(), present),
        }
        return codes, straight_through(rows, x), losses
