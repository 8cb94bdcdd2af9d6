"""The quantizers of vector-quantize-pytorch behind the codebook interface: VectorQuantize, ResidualVQ, FSQ,
LFQ, SimVQ.

Its conventions end here: channels come first, codes are int64 [B, K, N], a dropped level is ABSENT, losses
are one named scalar, eval changes no buffer (the library's k-means start otherwise runs in the first call,
whichever it is), float32 also under CPU autocast.

Several processes: the library decides in its constructor whether to synchronise, and remembers the first
answer for the life of the process. Here the answer is passed explicitly, asked for again in every training
step, and where it changed the quantizer is built anew around the same parameters and buffers. Its LFQ divides
by the number of processes a mean that it never sums, and is refused there.

Random draws (k-means, dead codes, dropped levels) are the library's own, from the global generator: `rng` is
not used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.codebooks.base import BaseCodebook, straight_through
from gentok.distributed import world_size
from gentok.rng import RowRNG
from gentok.settings import PositiveInt
from gentok.types import ABSENT, Quantized

__all__ = ["LibraryCodebook"]

KINDS = ("VectorQuantize", "ResidualVQ", "FSQ", "LFQ", "SimVQ")
SYNCHRONISED = ("VectorQuantize", "ResidualVQ")
MASKED = ("VectorQuantize", "LFQ")
RESERVED = {"dim", "sync_codebook", "heads", "num_codebooks", "accept_image_fmap", "accept_3d_fmap", "channel_last", "channel_first"}


class LibraryCodebook(BaseCodebook, id="codebook/library"):
    """A quantizer of the library, `kind`, as a codebook."""

    gradient_when_frozen = False

    def __init__(self, kind: str, width: PositiveInt, options: Mapping[str, Any]):
        """Builds the quantizer.

        Args:
            kind: one of VectorQuantize, ResidualVQ, FSQ, LFQ, SimVQ.
            width: channels in and out.
            options: the rest of that class's arguments (codebook_size, codebook_dim, num_quantizers, levels,
                ...), but for those that set the shape of the interface.

        Raises:
            ValueError: another kind, or such an option.
        """
        if kind not in KINDS:
            raise ValueError(f"LibraryCodebook wraps {', '.join(KINDS)}; got kind={kind!r}")
        reserved = sorted(RESERVED & set(options))
        if reserved:
            raise ValueError(f"LibraryCodebook sets {reserved[0]!r} itself: leave it out of options")
        super().__init__(width, None, ())
        self.kind = kind
        self.options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        self.synchronised = world_size() > 1
        self.quantizer = self._make()
        sizes = self.quantizer.codebook_sizes if kind == "ResidualVQ" else (self.quantizer.codebook_size,)
        self.vocab_sizes = tuple(int(v) for v in sizes)
        self.levels = len(self.vocab_sizes)
        self.invertible = kind != "ResidualVQ"
        self.nested_levels = kind == "ResidualVQ"

    def _make(self) -> nn.Module:
        import vector_quantize_pytorch

        sync = {"sync_codebook": self.synchronised} if self.kind in SYNCHRONISED else {}
        quantizer = getattr(vector_quantize_pytorch, self.kind)  # a class of the library, named by the configuration
        try:
            return quantizer(dim=self.width, **sync, **self.options)
        except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError) as error:  # whatever the library makes of them
            reason = " ".join(str(error).split()) or type(error).__name__
            refused = f"codebook.options={self.options}: {self.kind} of vector-quantize-pytorch refuses them"
            raise ValueError(f"{refused}: {reason[:200]}") from error

    def reset_parameters(self) -> None:
        self.quantizer = self._make().to(self.device)

    def _synchronise(self) -> None:
        """Builds the quantizer anew where the number of processes is no longer what it was built for; its
        tensors stay the same objects."""
        if self.kind == "LFQ" and world_size() > 1:
            raise RuntimeError("the library's LFQ does not train on several processes; use the codebook lfq")
        if self.synchronised == (world_size() > 1):
            return
        self.synchronised = world_size() > 1
        old, self.quantizer = self.quantizer, self._make()
        for name, tensor in [*old.named_parameters(), *old.named_buffers()]:
            owner, _, leaf = name.rpartition(".")
            setattr(self.quantizer.get_submodule(owner), leaf, tensor)
        self.quantizer.train(old.training)

    @contextlib.contextmanager
    def _unstarted(self) -> Iterator[None]:
        """Keeps the library's k-means start from running outside training."""
        waiting = [b for n, b in self.quantizer.named_buffers() if n.endswith("initted") and not self.training and not bool(b)]
        for flag in waiting:
            flag.fill_(True)
        try:
            yield
        finally:
            for flag in waiting:
                flag.fill_(False)

    def forward(self, z: Tensor, *, n_levels: Tensor | None = None, rng: RowRNG | None = None) -> Quantized:
        """Rows and levels are left out in training for the kinds that can. In eval the vectors are lookup's
        to the bit; in training they may differ by the rounding of the library's gradient estimator."""
        x = self.inward(z)
        if not x.numel():  # what the library's kinds do with nothing differs, and some fail
            codes = torch.zeros(len(z), self.levels, z.shape[2], dtype=torch.int64, device=z.device)
            return self.quantized(z.float(), codes, {"codebook": z.float().sum()} if self.training else {})
        mask = {}
        if self.training:
            self._synchronise()
            if n_levels is not None and self.kind in MASKED:
                mask = {"mask": (n_levels > 0)[:, None].expand(x.shape[:2])}
            elif n_levels is not None and self.kind != "FSQ" and bool((n_levels < self.levels).any()):
                raise ValueError(f"the library's {self.kind} cannot leave rows or levels out in training: call it without n_levels")
        with self._unstarted():
            out, index, *aux = self.quantizer(x, **mask)
        codes = index.long().reshape(x.shape[0], x.shape[1], self.levels).transpose(1, 2)
        codes = codes.masked_fill((codes < ABSENT) | (codes >= torch.tensor(self.vocab_sizes, device=codes.device)[:, None]), 0)  # of NaN
        if n_levels is not None:
            codes = codes.masked_fill(torch.arange(self.levels, device=codes.device)[:, None] >= n_levels[:, None, None], ABSENT)
        vectors = out.transpose(1, 2)
        if not self.training:
            vectors = straight_through(self.lookup(codes), vectors)
        elif n_levels is not None:
            vectors = vectors.masked_fill((n_levels <= 0)[:, None, None], 0.0)
        return self.quantized(vectors, codes, {"codebook": aux[0].sum()} if aux and self.training else {})

    def unquantized(self, z: Tensor) -> Tensor:
        return super(BaseCodebook, self).unquantized(z)  # the library does not show what it compares

    def _outputs(self, codes: Tensor) -> Tensor:
        """codes int64 [B, N], all >= 0, of a kind with one level -> float32 [B, N, width]."""
        if not codes.numel():
            return torch.zeros(*codes.shape, self.width, device=codes.device)
        if self.kind == "VectorQuantize":
            return self.quantizer.get_output_from_indices(codes).float()
        return self.quantizer.indices_to_codes(codes).float()

    def _added(self, level: int, codes: Tensor) -> Tensor:
        cells = codes[:, 0].clamp(min=0)
        rows = F.embedding(cells, self.table(level)) if self.kind == "ResidualVQ" else self._outputs(cells)
        return rows.transpose(1, 2).masked_fill(codes < 0, 0.0)

    def lookup(self, codes: Tensor) -> Tensor:
        if not self.options.get("implicit_neural_codebook"):
            return super().lookup(codes)
        self.check_codes(codes)
        return self.quantizer.get_output_from_indices(codes.clamp(min=ABSENT).transpose(1, 2)).float().transpose(1, 2)

    def table(self, level: int = 0) -> Tensor:
        """The bias of a projection is in level 0's rows. Raises ValueError for an implicit neural codebook,
        whose rows depend on the levels before."""
        if self.options.get("implicit_neural_codebook"):
            raise ValueError("an implicit neural codebook has no fixed rows: neither table nor nearest exist; choose another codebook")
        if self.kind != "ResidualVQ":
            return self._outputs(torch.arange(self.vocab_sizes[0], device=self.device)[None])[0]
        rows, out = self.quantizer.codebooks[level].float(), self.quantizer.project_out
        return rows if isinstance(out, nn.Identity) else F.linear(rows, out.weight, out.bias if level == 0 else None)
