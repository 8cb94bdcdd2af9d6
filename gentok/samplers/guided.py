"""Classifier-free guidance as a generator: a wrapper that has the capability of the model inside and combines
its outputs.

Each call runs the rows twice in one doubled batch, first with their condition, then with the null condition;
flow/guidance.py says how the two are combined and scheduled. Since a wrapper is a generator like any other,
every sampler works with guidance without knowing of it, filters act after it, and what it gives is a
distribution: p(id) proportional to p_u(id)^(1-g) p_c(id)^g at every step, each normalised.

The progress that a schedule follows belongs to a row: for Causal the step over the last step, for Masked the
share of the row's cells that are revealed, for AnyOrder the share of the cells that come before each cell, for
NextScale the scale over the last one. A refiner's pass comes last, at the full scale. Of a mixture the
components' weights are guided, and the components are those of the row's own condition. Of Entities it is the
velocity, v_u + g (v_c - v_u), with the progress that the sampler says; of MaskedVectors the noise, while its
variance is that of the row's own condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gentok.flow.guidance import check_guidance, combine, guidance_scale
from gentok.flow.mixture import Mixture
from gentok.generators.base import (
    AnyOrder,
    Causal,
    CumulativeMasked,
    Entities,
    Masked,
    MaskedVectors,
    NextScale,
    Refines,
    SelfSpeculative,
    capabilities,
)
from gentok.types import Condition, Latents, Tokens

__all__ = [
    "GuidedAnyOrder", "GuidedCausal", "GuidedCumulativeMasked", "GuidedEntities", "GuidedMasked", "GuidedMaskedVectors", "GuidedNextScale",
    "GuidedRefines", "GuidedSelfSpeculative", "guided",
]  # fmt: skip


class _Guided:
    """What all wrappers share.

    Args:
        model: a conditional generator.
        scale: g >= 0.
        schedule: of the scale over the progress (flow/guidance.py).

    Raises:
        ValueError: the model is unconditional, the scale negative, or the schedule unknown.
    """

    branches = 2

    def __init__(self, model: Any, scale: float, schedule: str = "constant"):
        check_guidance(scale, schedule)
        if not model.condition_spec.parts:
            raise ValueError(f"guidance needs a conditional generator, this {type(model).__name__} is unconditional: leave its scale at 1")
        self.model, self.scale, self.schedule = model, float(scale), schedule
        self.spec, self.condition_spec = model.spec, model.condition_spec

    def _combine(self, logits: Tensor, progress: Tensor) -> Tensor:
        """logits [2B, ..., V], conditional rows first; progress [B, ...] broadcast over the rest."""
        conditional, null = logits.chunk(2)
        scale = guidance_scale(self.schedule, self.scale, progress)
        return combine(conditional, null, scale.reshape(*scale.shape, *(1,) * (conditional.dim() - scale.dim())))


def _twice(rows: Tensor | None) -> Tensor | None:
    return None if rows is None else torch.cat((rows, rows))


def _tokens_twice(tokens: Tokens) -> Tokens:
    return Tokens(_twice(tokens.codes), tokens.spec, _twice(tokens.lengths))


def _both(condition: Condition) -> Condition:
    return Condition.concat([condition, condition.null()])


def _share_revealed(tokens: Tokens) -> Tensor:
    """float64 [B]: the share of each row's cells that are revealed."""
    revealed = tokens.present.sum((1, 2)).double()
    return revealed / (revealed + tokens.masked.sum((1, 2))).clamp(min=1)


def _share_before(tokens: Tokens, rank: Tensor) -> Tensor:
    """float64 [B, K, N]: the share of a row's cells that come before each cell, in the order of rank int64
    [B, K, N]."""
    visible = (tokens.present & (rank == 0)).sum((1, 2))
    cells = (tokens.present | tokens.masked).sum((1, 2)).clamp(min=1)
    return (visible[:, None, None] + (rank - 1).clamp(min=0)).double() / cells[:, None, None]


class GuidedCausal(_Guided, Causal):
    """A Causal generator with guidance: one cache of twice the rows."""

    def __init__(self, model: Causal, scale: float, schedule: str = "constant"):
        super().__init__(model, scale, schedule)
        self.layout, self.exact_slots, self.begin, self.ends = model.layout, model.exact_slots, model.begin, model.ends
        self.moves_rows = model.moves_rows

    def arranged(self, tokens: Tokens) -> GuidedCausal:
        model = self.model.arranged(tokens)
        return self if model is self.model else GuidedCausal(model, self.scale, self.schedule)

    def at_exit(self, depth: int) -> GuidedCausal:
        return GuidedCausal(self.model.at_exit(depth), self.scale, self.schedule)

    def init_cache(self, condition: Condition, batch: int, capacity: int) -> Any:
        return self.model.init_cache(_both(condition), 2 * batch, capacity)

    def logits(self, ids: Tensor, cache: Any, at: Tensor, parents: Tensor | None = None) -> Tensor:
        out = self.model.logits(_twice(ids), cache, _twice(at), _twice(parents))
        return self._combine(out, self.progress(ids, at, parents))

    def commit(self, cache: Any, at: Tensor, path: Tensor | None = None) -> None:
        self.model.commit(cache, _twice(at), _twice(path))

    def keep_ids(self, cache: Any, kept: Tensor) -> None:
        self.model.keep_ids(cache, kept)

    def take(self, cache: Any, rows: Tensor) -> Any:
        return self.model.take(cache, torch.cat((rows, rows + cache.batch // 2)))

    def put(self, cache: Any, rows: Tensor, other: Any) -> None:
        self.model.put(cache, torch.cat((rows, rows + cache.batch // 2)), other)

    def progress(self, ids: Tensor, at: Tensor, parents: Tensor | None = None) -> Tensor:
        """float64 [B, S]: the step that each fed step predicts over the last step of the layout."""
        (batch, width), at = ids.shape[:2], at.to(ids.device)
        depth = torch.arange(width, device=ids.device).expand(batch, width)
        if parents is not None:
            depth = torch.zeros_like(parents)
            for s in range(width):
                above = depth.gather(1, parents[:, s : s + 1].clamp(min=0))[:, 0]
                depth[:, s] = torch.where(parents[:, s] < 0, torch.zeros_like(above), above + 1)
        return (at[:, None] + depth).double() / max(self.layout.steps - 1, 1)


class GuidedMasked(_Guided, Masked):
    """A Masked generator with guidance."""

    def __init__(self, model: Masked, scale: float, schedule: str = "constant"):
        super().__init__(model, scale, schedule)
        self.uses_time = model.uses_time

    def logits(self, tokens: Tokens, condition: Condition, t: Tensor | None = None) -> Tensor:
        return self._combine(self.model.logits(_tokens_twice(tokens), _both(condition), _twice(t)), self.progress(tokens))

    def progress(self, tokens: Tokens) -> Tensor:
        """float64 [B]: the share of each row's cells that are revealed."""
        return _share_revealed(tokens)


class GuidedCumulativeMasked(_Guided, CumulativeMasked):
    """A CumulativeMasked generator with guidance of its components' weights."""

    def mixture(self, tokens: Tokens, condition: Condition) -> Mixture:
        both = self.model.mixture(_tokens_twice(tokens), _both(condition))
        return both.rows(slice(tokens.batch)).with_logits(self._combine(both.logits, _share_revealed(tokens)))

    def requantize(self, z: Tensor, tokens: Tokens) -> Tokens:
        return self.model.requantize(z, tokens)


class GuidedAnyOrder(_Guided, AnyOrder):
    """An AnyOrder generator with guidance, in the model's own order."""

    def rank(self, asked: Tensor) -> Tensor:
        return self.model.rank(asked)

    def logits(self, tokens: Tokens, condition: Condition, rank: Tensor, seen: Tensor | None = None) -> Tensor:
        out = self.model.logits(_tokens_twice(tokens), _both(condition), _twice(rank), _twice(seen))
        return self._combine(out, _share_before(tokens, rank))

    def conditionals(self, tokens: Tokens, condition: Condition, rank: Tensor, cells: Tensor, seen: Tensor | None = None) -> Tensor:
        out = self.model.conditionals(_tokens_twice(tokens), _both(condition), _twice(rank), _twice(cells), _twice(seen))
        return self._combine(out, _share_before(tokens, rank).flatten(1).gather(1, cells))


class GuidedSelfSpeculative(GuidedMasked, SelfSpeculative):
    """A generator that is Masked and SelfSpeculative, with guidance: drafts by the share revealed,
    verification by each cell's place."""

    def draft(self, tokens: Tokens, condition: Condition) -> tuple[Tensor, Tensor]:
        out, state = self.model.draft(_tokens_twice(tokens), _both(condition))
        return self._combine(out, self.progress(tokens)), torch.stack(state.chunk(2), 1)

    def verify(self, state: Tensor, tokens: Tokens, rank: Tensor) -> Tensor:
        out = self.model.verify(torch.cat(state.unbind(1)), _tokens_twice(tokens), _twice(rank))
        return self._combine(out, _share_before(tokens, rank))


class GuidedRefines(_Guided, Refines):
    """A Refines generator with guidance of both stages; the refiner's at the full scale."""

    def __init__(self, model: Refines, scale: float, schedule: str = "constant"):
        super().__init__(model, scale, schedule)
        self.coarse, self.members = GuidedCausal(model.coarse, scale, schedule), model.members

    def labels(self, codes: Tensor) -> Tensor:
        return self.model.labels(codes)

    def logits(self, labels: Tokens, condition: Condition) -> Tensor:
        out = self.model.logits(_tokens_twice(labels), _both(condition))
        return self._combine(out, torch.ones(labels.batch, dtype=torch.float64, device=out.device))


class GuidedNextScale(_Guided, NextScale):
    """A NextScale generator with guidance: one cache of twice the rows."""

    def init_cache(self, condition: Condition, batch: int) -> Any:
        return self.model.init_cache(_both(condition), 2 * batch)

    def logits(self, codes: Tensor, scales: range, cache: Any, own: bool = False) -> Tensor:
        out = self.model.logits(_twice(codes), scales, cache, own)
        progress = scales[-1] / max(len(self.spec.grid.sides) - 1, 1)
        return self._combine(out, torch.full((len(codes),), progress, dtype=torch.float64, device=codes.device))


class GuidedEntities(_Guided, Entities):
    """An Entities generator with guidance: one cache of twice the rows."""

    def __init__(self, model: Entities, scale: float, schedule: str = "constant"):
        super().__init__(model, scale, schedule)
        self.sizes, self.channels = model.sizes, model.channels

    def split(self, tokens: Tokens | Latents) -> tuple[list[Tensor], Tensor]:
        return self.model.split(tokens)

    def init_cache(self, condition: Condition, batch: int) -> Any:
        return self.model.init_cache(_both(condition), 2 * batch)

    def velocity(self, x: Tensor, t: float, index: int, cache: Any, clean: Sequence[Tensor] = (), progress: float = 1.0) -> Tensor:
        out = self.model.velocity(_twice(x), t, index, cache, [_twice(part) for part in clean], progress)
        return self._combine(out, torch.full((len(x),), progress, dtype=torch.float64, device=x.device))

    def finish(self, entities: Sequence[Tensor], tokens: Tokens | Latents) -> Tokens | Latents:
        return self.model.finish(entities, tokens)


class GuidedMaskedVectors(_Guided, MaskedVectors):
    """A MaskedVectors generator with guidance; what `denoise` is given has an axis of both conditions, behind that of the vectors."""

    def __init__(self, model: MaskedVectors, scale: float, schedule: str = "constant"):
        super().__init__(model, scale, schedule)
        self.channels = model.channels

    def split(self, tokens: Tokens | Latents) -> tuple[Tensor, Tensor]:
        return self.model.split(tokens)

    def hidden(self, values: Tensor, known: Tensor, condition: Condition) -> Tensor:
        return torch.stack(self.model.hidden(_twice(values), _twice(known), _both(condition)).chunk(2), 2)

    def denoise(self, x: Tensor, t: int, hidden: Tensor, progress: float = 1.0) -> tuple[Tensor, Tensor]:
        noise, v = self.model.denoise(_twice(x), t, torch.cat(hidden.unbind(-2)))
        return self._combine(noise, torch.full((len(x),), progress, dtype=torch.float64, device=x.device)), v[: len(x)]

    def finish(self, values: Tensor, known: Tensor, tokens: Tokens | Latents) -> Tokens | Latents:
        return self.model.finish(values, known, tokens)


def guided(model: Any, scale: float = 1.0, schedule: str = "constant") -> Any:
    """A model with guidance, as a generator of the same capability.

    Args:
        model: a generator.
        scale: g >= 0. With 1 every schedule means no guidance, and the model itself is returned.
        schedule: of the scale (flow/guidance.py).

    Raises:
        ValueError: an unconditional model, an unknown schedule, a negative scale, or a capability that has no
            guided form.
    """
    check_guidance(scale, schedule)
    if scale == 1:
        return model
    wrappers = {
        Causal: GuidedCausal, SelfSpeculative: GuidedSelfSpeculative, Masked: GuidedMasked, AnyOrder: GuidedAnyOrder,
        CumulativeMasked: GuidedCumulativeMasked, Refines: GuidedRefines, NextScale: GuidedNextScale, Entities: GuidedEntities,
        MaskedVectors: GuidedMaskedVectors,
    }  # fmt: skip
    for capability, wrapper in wrappers.items():
        if isinstance(model, capability):
            return wrapper(model, scale, schedule)
    able = ", ".join(capabilities(model)) or "no capability"
    raise ValueError(
        "guidance is defined for Causal, Masked, CumulativeMasked, AnyOrder, Refines, NextScale, Entities and MaskedVectors generators; "
        f"{type(model).__name__} has {able}: leave guidance at 1"
    )
