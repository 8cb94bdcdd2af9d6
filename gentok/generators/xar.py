"""xAR: autoregression over groups of vectors, each drawn by a flow (Ren et al., arXiv 2502.20388).

The item is a grid of vectors X: the Latents of a KL autoencoder, or the vectors of a codebook's codes. It is split into entities X_1, ...,
X_E (gentok/flow/entities.py), and every entity goes the straight path to noise at a time of its own, t_n = sigmoid(normal number):

    F_n = (1 - t_n) X_n + t_n eps_n,      v_n = eps_n - X_n
    loss = mean over all numbers of |v_theta(F_n | F_1 .. F_n-1; t_1 .. t_n, condition) - v_n|^2

One pass trains all entities, and what stands before one is noisy (noisy context learning), so that errors in the context, which is at t = 0
in sampling, do less harm. `context` chooses what the paper compares that with; the words are the paper's, their meaning is our reading:

    independent   the above
    clean         before X_n stand X_1 .. X_n-1 at t = 0: the sequence is doubled, clean entities being seen by later noisy ones
    increasing    independent times, sorted: what comes first has least noise
    decreasing    independent times, sorted: what comes first has most

Codes (not in the paper) are modelled by their vectors (vector_items.py).

Further deviations are in nn/entity_transformer.py; with form=release the network is computed as released, and `weights` are read
(generators/xar_weights.py). The release draws latents from their posterior; here they are what the tokenizer encodes
to, its mean. The condition is one vector, that of a text the mean of its embedded symbols (nn/conditioning.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from gentok.flow.entities import EntityKind, entity_map
from gentok.flow.path import interpolate, velocity
from gentok.flow.times import LogitNormal
from gentok.generators.base import Entities
from gentok.generators.class_raster import check_class
from gentok.generators.vector_items import VectorItems
from gentok.generators.xar_weights import read_xar
from gentok.interfaces import Codebook, LocalPath
from gentok.nn.conditioning import Conditioner
from gentok.nn.density import Density
from gentok.nn.entity_transformer import EntityTransformer
from gentok.nn.kv_cache import KVCache
from gentok.rng import RowRNG
from gentok.settings import Count, Fraction, FractionBelow1, PositiveInt
from gentok.types import Condition, ConditionSpec, Latents, LossOutput, Tokens, TokenSpec

__all__ = ["XAR"]


class XAR(VectorItems, Entities, id="generator/xar"):
    """Predicts the velocity of every entity given those before it.

    Args:
        spec: the tokens or latents, of an image.
        condition_spec: what they are conditioned on; None: nothing.
        codebook: of the tokens; a frozen copy is kept, outside of the state dict. None: latents.
        entity: kind of the entities.
        entity_side: of cells, subsamples and the smallest scale, in vectors; None: half the grid, the smallest scale that there is.
        context: what stands before an entity in training.
        width: D.
        depth: blocks, of both halves together.
        heads: of attention.
        hidden: width of the feed-forward part; None: 8/3 D.
        density: of the vectors inside of entities (gentok.nn.density); None: all blocks see all of them.
        condition_dropout: share of training rows whose condition becomes null, which guidance needs.
        dropout: rate, of both branches of a block.
        form: of the network: gentok's own, or that of the release.
        weights: a released file, or the folder that holds it; None: random weights.

    Raises:
        ValueError: the items lie on no raster, the grid has no such entities, the codebook has no nearest codes, the density depends on
            time or does not fit the depth or the entities, or the weights are of another model.
        FileNotFoundError: there are no weights.
    """

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        codebook: Codebook | None = None,
        *,
        entity: EntityKind = "cell",
        entity_side: PositiveInt | None = None,
        context: Literal["independent", "clean", "increasing", "decreasing"] = "independent",
        width: PositiveInt = 256,
        depth: Count = 6,
        heads: PositiveInt = 4,
        hidden: PositiveInt | None = None,
        density: Density | None = None,
        condition_dropout: Fraction = 0.1,
        dropout: FractionBelow1 = 0.0,
        form: Literal["own", "release"] = "own",
        weights: LocalPath | None = None,
    ):
        super().__init__()
        self.take_items("xar", spec, codebook)
        self.condition_spec, self.condition_dropout = condition_spec or ConditionSpec(), condition_dropout
        self.context, self._times = context, LogitNormal()
        with torch.device("cpu"):
            self._map = entity_map(entity, self.raster, entity_side)
        self.sizes = self._map.sizes
        if density is not None and density.noise_rate is not None:
            raise ValueError("xar's entities are at times of their own, so a density has one rate: set density.noise_rate to null")
        self.conditioner = Conditioner(self.condition_spec, width, "adaln")
        self.network = EntityTransformer(
            self.channels, self.sizes, self._map.place, width, depth, heads, hidden, dropout, density, self._map.sides, form == "release"
        )
        if weights is not None:
            if form != "release":
                raise ValueError("xar reads released weights into the form of the release: set form to release, or weights to null")
            read_xar(weights, self.network, self.conditioner, check_class("xar with weights", condition_spec, "no weights"))
            self.needs_training = False

    # ---------------------------------------------------------------------------------------------------- vectors

    def split(self, tokens: Tokens | Latents) -> tuple[list[Tensor], Tensor]:
        """As Entities.split."""
        whole, some = self.known_positions(tokens)
        known, left = self._map.known(whole)
        stray = some & (left | ~whole)
        if bool(stray.any()):
            b, n = stray.nonzero()[0].tolist()
            raise ValueError(
                f"row {b} knows a part of the entity at position {n} and not all of it: xar keeps whole entities, which are "
                f"{self._map.words} here"
            )
        return list(self._map.split(self.values(tokens)).split(self.sizes, 1)), known

    def finish(self, entities: Sequence[Tensor], tokens: Tokens | Latents) -> Tokens | Latents:
        """As Entities.finish."""
        return self.filled(*self._map.join(entities), tokens)

    # ---------------------------------------------------------------------------------------------------- network

    def init_cache(self, condition: Condition, batch: int) -> tuple[Tensor | None, KVCache]:
        """As Entities.init_cache: the embedded condition, and keys and values."""
        cache = KVCache(len(self.network.blocks), batch, sum(self.sizes), device=self.network.head.weight.device)
        return self.conditioner(condition, batch).vector, cache

    def velocity(
        self, x: Tensor, t: float, index: int, cache: tuple[Tensor | None, KVCache], clean: Sequence[Tensor] = (), progress: float = 1.0
    ) -> Tensor:
        """As Entities.velocity."""
        times = torch.zeros(len(x), len(clean) + 1, dtype=torch.float64, device=x.device)
        times[:, -1] = t
        given = torch.cat([part.to(x) for part in (*clean, x)], 1)
        out = self.network(given, times, cache[0], range(index - len(clean), index + 1), cache=cache[1])
        return out[:, -x.shape[1] :].to(x.dtype)

    def forward(self, tokens: Tokens | Latents, condition: Condition | None = None) -> Tensor:
        """The velocity of every entity at t = 0 given those before it, float [B, T, C], in one pass."""
        x = self._map.split(self.values(tokens))
        vector = self.conditioner(condition or Condition(), len(x)).vector
        times = torch.zeros(len(x), len(self.sizes), dtype=torch.float64, device=x.device)
        return self.network(x, times, vector, range(len(self.sizes)))

    # ------------------------------------------------------------------------------------------------------- loss

    def times(self, rng: RowRNG) -> Tensor:
        """Times of training, float64 [B, E]."""
        t = self._times.quantile(rng.uniform(len(self.sizes)))
        if self.context in ("increasing", "decreasing"):
            t = t.sort(1, descending=self.context == "decreasing").values
        return t

    def loss(self, tokens: Tokens | Latents, condition: Condition, rng: RowRNG) -> LossOutput:
        """Mean squared error of the velocity, over all numbers of all entities.

        Args:
            tokens: codes int64 [B, K, N], or Latents [B, C, N].
            condition: B rows.
            rng: for times and noise, and, in training mode, for condition dropout and dropout.

        Returns:
            LossOutput without nats; terms: first and last, the errors of these entities, where there are several.
        """
        x = self._map.split(self.values(tokens).float())
        entities, t = len(self.sizes), self.times(rng)
        noise = rng.normal(*x.shape[1:]).to(x)
        each = t.to(x)[:, self._map.entity.to(x.device), None]
        noisy, target = interpolate(x, noise, each), velocity(x, noise)
        condition = self.drop_condition(condition, rng)
        vector, drop = self.conditioner(condition, len(x)).vector, rng if self.training else None
        if self.context == "clean" and entities > 1:
            before = x[:, : -self.sizes[-1]]
            groups, sees = [*range(entities - 1), *range(entities)], _clean_context(entities)
            t = torch.cat((torch.zeros_like(t[:, 1:]), t), 1)
            out = self.network(torch.cat((before, noisy), 1), t, vector, groups, sees, rng=drop)[:, before.shape[1] :]
        else:
            out = self.network(noisy, t, vector, range(entities), rng=drop)
        error = (out.float() - target).square()
        ends = {"first": error[:, : self.sizes[0]].mean(), "last": error[:, -self.sizes[-1] :].mean()} if entities > 1 else {}
        count = torch.tensor(error.numel(), device=x.device)
        return LossOutput(error.mean(), count, None, {name: value.detach() for name, value in ends.items()})


def _clean_context(entities: int) -> Tensor:
    """bool [2 E - 1, 2 E - 1], which groups each one sees: E - 1 clean ones and, behind them, E noisy ones."""
    sees = torch.zeros(2 * entities - 1, 2 * entities - 1, dtype=torch.bool)
    sees[: entities - 1, : entities - 1] = torch.ones(entities - 1, entities - 1).tril()
    sees[entities - 1 :, : entities - 1] = torch.ones(entities, entities - 1).tril(-1)
    sees[entities - 1 :, entities - 1 :] = torch.eye(entities)
    return sees
