"""What the causal token transformers share: a layout of the cells, the condition, ends of items, the loss and
the start of a cache.

Fed step i holds what layout step i - 1 emitted (step 0: `begin`). Queries are rotated by the cell that they
predict, keys by the one that they hold. Where items end by themselves, the first cell of level 0 beyond an
item's length is the end id.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gentok.generators.base import Causal
from gentok.interfaces import Generator
from gentok.layouts import Layout
from gentok.nn.kv_cache import KVCache, Window
from gentok.nn.linear import activations
from gentok.nn.rope import Rotation, widened
from gentok.nn.token_transformer import TransformerSettings, attend
from gentok.nn.transformer import Transformer
from gentok.precision import values_known
from gentok.rng import RowRNG
from gentok.settings import Fraction
from gentok.types import Condition, ConditionSpec, LossOutput, Tokens, TokenSpec

__all__ = ["CausalTransformer"]


class CausalTransformer(Generator, Causal):
    """Base class; a subclass embeds what is fed, makes `_tables` (Constants with cos and sin), and predicts.

    Args:
        spec: the tokens.
        condition_spec: what they are conditioned on; None: nothing.
        settings: of the transformer.
        layout: one of gentok.layouts.LAYOUTS.
        token_dropout: share of what is fed in training that is hidden.
        ends: whether items end by themselves, by an id of their own at level 0.
        network: further arguments of Transformer.

    Attributes:
        ids: how many ids logits have: V, and one more where items end by themselves.
        TRUNK: the name of the transformer in the state dict.
    """

    exact_slots = True
    TRUNK: ClassVar[str] = "transformer"

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None,
        settings: TransformerSettings,
        layout: str,
        token_dropout: Fraction,
        ends: bool,
        **network: Any,
    ):
        super().__init__()
        self.spec, self.condition_spec, self.ends = spec, condition_spec or ConditionSpec(), ends
        self.condition_dropout, self.dropout, self.token_dropout = settings.condition_dropout, settings.dropout, token_dropout
        self.ids = spec.vocab + ends
        with torch.device("cpu"):
            self.layout = Layout.of(layout, spec)
            self.begin = torch.full((self.layout.slots,), spec.vocab, dtype=torch.int64)
        self.conditioner, transformer = settings.build(self.condition_spec, causal=True, **network)
        self.add_module(self.TRUNK, transformer)

    @property
    def trunk(self) -> Transformer:
        """The transformer over fed steps."""
        return self.get_submodule(self.TRUNK)

    # ------------------------------------------------------------------------------------------------ network

    def _attend(
        self, x: Tensor, condition: Condition, rng: RowRNG | None, taps: Mapping[int, list[Tensor]] | None = None
    ) -> Tensor:  # fmt: skip
        """What is fed, float [B, T, D], from the beginning -> [B, T, D]; taps: as in `attend`."""
        tables, given = self._tables.on(x.device), self.conditioner(condition, len(x))
        tokens = slice(self.conditioner.places, self.conditioner.places + x.shape[1])
        return attend(self.trunk, x, given, (tables.cos, tables.sin), tokens, rate=self.dropout, rng=rng, taps=taps)

    def _rotation(self, device: torch.device, steps: Tensor | slice) -> Rotation:
        """Of some of what is fed."""
        tables, places = self._tables.on(device), self.conditioner.places
        return tables.cos[places:][steps], tables.sin[places:][steps]

    def _fed_steps(self, window: Window, cache: KVCache, at: Tensor, count: int, device: torch.device) -> Tensor | slice:
        """Which fed steps a window of `count` steps holds, one slice where all rows hold the same, else int64
        [S] or [B, S]; the last one stands for those beyond the layout's end."""
        last = self.layout.steps - 1
        if window.start is not None and window.depth is None:  # every row stands at the same step
            first = window.start - cache.prefix
            if first + count <= last + 1:
                return slice(first, first + count)
            return torch.arange(first, first + count, device=device).clamp(max=last)
        depth = torch.arange(count, device=device) if window.depth is None else window.depth
        return (at.to(device)[:, None] + depth).clamp(max=last)

    def _start_cache(self, condition: Condition, batch: int, capacity: int) -> KVCache:
        """A cache of the trunk that holds the condition."""
        given = self.conditioner(condition, batch)
        if given.prefix is None:
            cache = self.trunk.init_cache(batch, capacity, **given.beside())
            self._keep_tables(cache)
            return cache
        prefix, tables = given.prefix.shape[1], self._tables.on(given.prefix.device)
        cache = self.trunk.init_cache(batch, capacity, prefix, given.mask)
        window = cache.window(torch.full((batch,), -prefix, device=given.prefix.device), prefix)
        self.trunk.extend(given.prefix, (tables.cos[given.place], tables.sin[given.place]), cache, window)
        cache.prefix_mask = given.mask if given.seen is None else given.seen
        self._keep_tables(cache)
        return cache

    def _keep_tables(self, cache: KVCache) -> None:
        """What every call would compute anew."""
        if not torch.is_grad_enabled():
            cos, sin = self._rotation(self.trunk.norm.weight.device, slice(None))
            dtype = activations(self.trunk.norm.weight).dtype
            cache.rotation = widened((cos.to(dtype), sin.to(dtype)))

    def _pad(self, logits: Tensor, level: int) -> Tensor:
        """[..., V_k], or V_0 + 1 with an end, -> [..., ids]: ids that the level does not have are impossible,
        the end stands last."""
        size = self.spec.vocab_sizes[level]
        if level == 0 and self.ends and size < self.spec.vocab:
            gap = logits.new_full((*logits.shape[:-1], self.spec.vocab - size), float("-inf"))
            return torch.cat((logits[..., :size], gap, logits[..., size:]), -1)
        return F.pad(logits, (0, self.ids - logits.shape[-1]), value=float("-inf"))

    # --------------------------------------------------------------------------------------------- likelihood

    def _targets(self, codes: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """codes int64 [B, K, N] -> of a level the targets int64 [B, N], and bool [B, N], where a code or an
        end is."""
        target, there = codes[:, level], codes[:, level] >= 0
        if level or not self.ends:
            return target, there
        ended, stride = torch.zeros_like(there), self.spec.strides[0] if self.spec.strides else 1
        cells = there[:, ::stride]
        ended[:, ::stride] = ~cells & F.pad(cells, (1, -1), value=True)
        return torch.where(ended, self.spec.vocab_sizes[0], target), there | ended

    def _used_steps(self, codes: Tensor, rng: RowRNG | None) -> int:
        """How many layout steps, from the first, have something to predict in some row of codes int64 [B, K, N]."""
        if not self.ends or (rng is not None and self.dropout) or not values_known(codes):  # dropout draws numbers for every step
            return self.layout.steps
        there = torch.stack([self._targets(codes, k)[1] for k in range(codes.shape[1])], 1)
        return int(self.layout.step.to(codes.device)[there.any(0)].max()) + 1

    @abstractmethod
    def _level_nats(self, codes: Tensor, condition: Condition, rng: RowRNG | None) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each level its nats, 0 where absent, the same with label smoothing, and where a code or an end
        is; all [B, N_k].

        codes int64 [B, K, N]. rng: for dropout and token dropout; None: none.
        """

    def _row_nats(self, nats: list[Tensor]) -> Tensor:
        """Of all levels: float [B]."""
        return torch.stack([nll.sum(1) for nll in nats]).sum(0)

    def loss(self, tokens: Tokens, condition: Condition, rng: RowRNG | None = None) -> LossOutput:
        """Mean nats per present cell and end; with label smoothing.

        Args:
            tokens: codes int64 [B, K, N].
            condition: B rows.
            rng: for condition dropout, dropout and token dropout, which happen in training mode alone; None:
                none happens.

        Returns:
            LossOutput with the nats of each row and the terms nll (not smoothed), and nll_level{k} where K >
            1.
        """
        condition = self.drop_condition(condition, rng)
        nats, smoothed, present = zip(*self._level_nats(tokens.codes, condition, rng if self.training else None))
        counts = torch.stack([there.sum() for there in present])
        count = counts.sum()
        sums = torch.stack([nll.detach().sum() for nll in nats])
        terms = {"nll": sums.sum() / count.clamp(min=1)}
        if len(nats) > 1:
            terms |= {f"nll_level{k}": sums[k] / counts[k].clamp(min=1) for k in range(len(nats))}
        total = torch.stack([part.sum() for part in smoothed]).sum()
        return LossOutput(total / count.clamp(min=1), count, self._row_nats([nll.detach() for nll in nats]), terms)

    @torch.no_grad()
    def nll_bound(self, tokens: Tokens, condition: Condition, rng: RowRNG | None = None, samples: int = 1) -> Tensor:
        """float [B]: the exact nats of each row; nothing is drawn, `rng` and `samples` are not needed."""
        return self._row_nats([nats for nats, _, _ in self._level_nats(tokens.codes, condition, None)])
