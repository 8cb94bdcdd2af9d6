"""Coarse-to-fine token prediction (Guo et al., arXiv 2503.16194; the official code was not read).

Ids whose rows are similar stand for nearly the same thing. So the ids of a codebook are clustered into M labels,
a causal transformer models the labels alone, and one pass of a bidirectional transformer, the refiner, gives the
ids of all cells at once, independent of one another given all labels c and the condition y:

    p(codes) = product over layout steps s of p(c_s | c_<s, y)   *   product over cells n of p(code_n | c, y)

The labels are a function of the codes. With `members`, ids outside of a label's cluster are impossible, and this
is the probability of the codes; without, other labels could give the same codes too, and it is a lower bound of
their probability.

The two networks share nothing but the condition. With M = 1 the refiner alone is left (the labels say nothing),
with M = V the causal one (a label is an id).

Deviations, or what the paper leaves open: `members`; other clusterings than k-means (generators/clusters.py); the
refiner's blocks, which are gentok's own (nn/token_transformer.py); one loss for both networks, which have no
parameter in common, so that it trains each as if alone, but for the clipping of their joint gradient; a row's
condition is dropped for both; several levels, each with clusters of its own: the refiner reads the sum of the
embeddings of a position's labels, and has a head per level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.errors import counted
from gentok.generators.autoregressive import Autoregressive
from gentok.generators.base import Refines
from gentok.generators.clusters import cluster
from gentok.interfaces import Codebook, Generator
from gentok.nn.token_transformer import (
    BidirectionalTrunk,
    TransformerOptions,
    TransformerSettings,
    full_precision,
    initialise_parts,
    token_nll,
)
from gentok.rng import RowRNG
from gentok.settings import Count, Fraction, NonNegativeInt, PositiveInt, PositiveInts
from gentok.types import ABSENT, Condition, ConditionSpec, LossOutput, Tokens, TokenSpec

__all__ = ["CoarseToFine"]

Clustering = Literal["kmeans", "balanced", "agglomerative", "random"]


class CoarseToFine(Generator, Refines, id="generator/coarse_to_fine"):
    """A causal model of the labels of the codes, and a refiner that gives the codes in one pass.

    Args:
        spec: the tokens.
        condition_spec: what they are conditioned on; None: nothing.
        codebook: whose rows are clustered, when the labels are first needed; a model that is loaded has them.
        clusters: M, of every level, or one number for each.
        clustering: kmeans, balanced, agglomerative or random, of generators/clusters.py.
        clustering_seed: of what is random in it.
        members: whether a code is always one of its label's cluster.
        layout: in which the labels are emitted, one of gentok.layouts.LAYOUTS.
        token_dropout: share of the labels fed to the causal model that are hidden from it in training.
        zero_init_head: whether the first prediction of both is uniform.
        ends: whether items end by themselves, by a label of its own at level 0; else the sampler is given their
            lengths.
        refiner_width: channels of a position in the refiner.
        refiner_depth: its blocks.
        refiner_heads: its attention heads.
        refiner_hidden: width of its feed-forward part; None: 8/3 of its channels.
        transformer: of the causal model, as in TransformerSettings; condition_by, condition_dropout, rope, qk_norm
            and dropout are the refiner's too.

    Raises:
        ValueError: there is no codebook, or a level has fewer ids than clusters.
    """

    cluster_of: Tensor
    """int64 [K, V], the label of every id, -1 behind a level's last id, and everywhere until labels are needed."""

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        codebook: Codebook | None = None,
        *,
        clusters: PositiveInt | PositiveInts = 64,
        clustering: Clustering = "kmeans",
        clustering_seed: NonNegativeInt = 0,
        members: bool = True,
        layout: str = "auto",
        token_dropout: Fraction = 0.0,
        zero_init_head: bool = False,
        ends: bool = False,
        refiner_width: PositiveInt = 256,
        refiner_depth: Count = 6,
        refiner_heads: PositiveInt = 4,
        refiner_hidden: PositiveInt | None = None,
        **transformer: TransformerOptions,
    ):
        super().__init__()
        if codebook is None and clustering != "random":
            raise ValueError("coarse_to_fine clusters the rows of a codebook, and this tokenizer has none: use generator=autoregressive")
        sizes = _sizes(clusters, spec)
        settings = TransformerSettings(**transformer)
        own = {"width": refiner_width, "depth": refiner_depth, "heads": refiner_heads, "hidden": refiner_hidden}
        self.spec, self.condition_spec, self.members = spec, condition_spec or ConditionSpec(), members
        self.condition_dropout = settings.condition_dropout
        labels = replace(spec, vocab_sizes=sizes, nested_levels=False, parts=(), grammar=(), encode_fingerprint="", decode_fingerprint="")
        self.coarse = Autoregressive(
            labels, self.condition_spec, layout=layout, token_dropout=token_dropout, zero_init_head=zero_init_head, ends=ends,
            **{**transformer, "condition_dropout": 0.0},  # a row's condition is dropped here, for both networks
        )  # fmt: skip
        self.refiner = Refiner(spec, sizes, self.condition_spec, replace(settings, **own), zero_init_head)
        self.register_buffer("cluster_of", torch.full((spec.levels, spec.vocab), ABSENT))
        self._clustering: tuple[str, int] | None = (clustering, clustering_seed)
        self._tables = [codebook.table(k).detach().clone() for k in range(spec.levels)] if clustering != "random" else []

    # ----------------------------------------------------------------------------------------------- clusters

    def labels(self, codes: Tensor) -> Tensor:
        """As Refines.labels."""
        self.check_shape(codes)
        self._make_clusters()
        level = torch.arange(self.spec.levels, device=codes.device)[:, None]
        return torch.where(codes >= 0, self.cluster_of[level, codes.clamp(min=0)], codes)

    @torch.no_grad()
    def _make_clusters(self) -> None:
        """Clusters the ids, unless a file has brought the labels."""
        if self._clustering is None or self.cluster_of.is_meta:
            return
        if bool((self.cluster_of == ABSENT).all()):
            (method, seed), spec = self._clustering, self.coarse.spec
            with torch.device("cpu"):
                for k, (ids, count) in enumerate(zip(self.spec.vocab_sizes, spec.vocab_sizes)):
                    rows = self._tables[k] if self._tables else torch.zeros(ids, 1)
                    self.cluster_of[k, :ids] = cluster(rows, count, method, seed + k).to(self.cluster_of.device)
        self._clustering, self._tables = None, []

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self._make_clusters()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Labels of a file are looked at: what they index must be there, and every cluster must have a member."""
        given = state.get(f"{prefix}cluster_of")
        if isinstance(given, Tensor) and given.shape == self.cluster_of.shape and not given.is_meta:
            for k, (ids, count) in enumerate(zip(self.spec.vocab_sizes, self.coarse.spec.vocab_sizes)):
                if given.is_floating_point() or not torch.equal(given[k, :ids].unique().cpu(), torch.arange(count, device="cpu")):
                    raise ValueError(f"its clusters are damaged: the labels of level {k} are not 0..{count - 1}, each of at least one id")
        super()._load_from_state_dict(state, prefix, *rest)

    def _outside(self, labels: Tensor, level: int) -> Tensor:
        """bool [B, N, V_k]: ids that are not in the cluster of labels int64 [B, N]; where no label is, those of label 0."""
        own = self.cluster_of[level, : self.spec.vocab_sizes[level]].int()  # half of the memory to read, of the largest tensor
        return labels.clamp(min=0).int()[..., None] != own

    # ------------------------------------------------------------------------------------------------ network

    def _refined(self, labels: Tensor, condition: Condition, rng: RowRNG | None) -> list[Tensor]:
        """Of each level the logits of its ids, float [B, N, V_k]. rng: for dropout; None: none."""
        self._make_clusters()
        logits = self.refiner(labels, condition, rng)
        if not self.members:
            return logits
        return [part.masked_fill_(self._outside(labels[:, k], k), float("-inf")) for k, part in enumerate(logits)]

    def logits(self, labels: Tokens, condition: Condition) -> Tensor:
        """As Refines.logits."""
        self.check_shape(labels.codes)
        parts = self._refined(labels.codes, condition, None)
        if len(parts) == 1:
            return parts[0][:, None]
        return torch.stack([F.pad(part, (0, self.spec.vocab - part.shape[2]), value=float("-inf")) for part in parts], 1)

    def forward(self, tokens: Tokens, condition: Condition | None = None) -> tuple[Tensor, Tensor]:
        """Both networks, teacher-forced.

        Args:
            tokens: codes int64 [B, K, N].
            condition: B rows; None: null.

        Returns:
            What the causal model gives for the labels, float [B, S, G, M], and the refiner for the codes, float
            [B, K, N, V].
        """
        condition, labels = condition or Condition(), self._labelled(tokens)
        return self.coarse(labels, condition), self.logits(labels, condition)

    def _labelled(self, tokens: Tokens) -> Tokens:
        return Tokens(self.labels(tokens.codes), self.coarse.spec, tokens.lengths)

    # --------------------------------------------------------------------------------------------- likelihood

    def _refiner_nats(self, codes: Tensor, labels: Tensor, condition: Condition, rng: RowRNG | None) -> list[Tensor]:
        """Of each level float [B, N], 0 where absent."""
        parts = self._refined(labels, condition, rng)
        return [token_nll(full_precision(part), codes[:, k], codes[:, k] >= 0) for k, part in enumerate(parts)]

    def loss(self, tokens: Tokens, condition: Condition, rng: RowRNG | None = None) -> LossOutput:
        """The nats of the labels and of the codes given the labels, per present cell and end.

        Args:
            tokens: codes int64 [B, K, N].
            condition: B rows.
            rng: for condition dropout, dropout and token dropout, which happen in training mode alone; None: none
                happens.

        Returns:
            LossOutput with the nats of each row, those of `nll_bound`, and the terms coarse and refiner (their sum is
            the loss), and where K > 1 coarse_level{k} and refiner_level{k}, per cell of the level.
        """
        condition, labels = self.drop_condition(condition, rng), self._labelled(tokens)
        coarse = self.coarse.loss(labels, condition, rng)
        nats = self._refiner_nats(tokens.codes, labels.codes, condition, rng if self.training else None)
        refiner = torch.stack([part.sum() for part in nats]).sum() / coarse.count.clamp(min=1)
        terms = {"coarse": coarse.loss.detach(), "refiner": refiner.detach()}
        if len(nats) > 1:
            cells = tokens.present.sum((0, 2)).clamp(min=1)
            terms |= {f"coarse_level{k}": coarse.terms[f"nll_level{k}"] for k in range(len(nats))}
            terms |= {f"refiner_level{k}": part.detach().sum() / cells[k] for k, part in enumerate(nats)}
        return LossOutput(coarse.loss + refiner, coarse.count, coarse.nll + _row_sums(nats).detach(), terms)

    @torch.no_grad()
    def nll_bound(self, tokens: Tokens, condition: Condition, rng: RowRNG | None = None, samples: int = 1) -> Tensor:
        """float [B]: the nats of each row, exact with `members`, else an upper bound: those of the codes together
        with their own labels. Nothing is drawn, `rng` and `samples` are not needed."""
        labels = self._labelled(tokens)
        return self.coarse.nll_bound(labels, condition) + _row_sums(self._refiner_nats(tokens.codes, labels.codes, condition, None))


class Refiner(nn.Module):
    """A bidirectional transformer from the labels of all cells to logits of their ids.

    Args:
        spec: the tokens.
        labels: M of each level.
        condition_spec: what they are conditioned on.
        settings: of the transformer.
        zero_init_head: whether the first prediction is uniform.
    """

    def __init__(
        self, spec: TokenSpec, labels: tuple[int, ...], condition_spec: ConditionSpec, settings: TransformerSettings, zero_init_head: bool
    ):
        super().__init__()
        self.sizes, self.starts = spec.vocab_sizes, [sum(labels[:k]) for k in range(len(labels) + 1)]
        self.label_table = nn.Embedding(sum(labels) + len(labels), settings.width)  # labels, then "absent" of each level
        self.trunk = BidirectionalTrunk(spec, condition_spec, settings)
        self.head = nn.Linear(settings.width, sum(spec.vocab_sizes), bias=False)
        initialise_parts(self.label_table, self.head)
        if zero_init_head:
            nn.init.zeros_(self.head.weight)

    def forward(self, labels: Tensor, condition: Condition, rng: RowRNG | None = None) -> list[Tensor]:
        """Reads all labels.

        Args:
            labels: int64 [B, K, N].
            condition: B rows.
            rng: for dropout; None: none.

        Returns:
            Of each level float [B, N, V_k].
        """
        rows = [
            torch.where(part >= 0, part + self.starts[k], self.starts[-1] + k) for k, part in enumerate(labels.unbind(1))
        ]  # K times [B, N]
        hidden = self.trunk(torch.stack([self.label_table(part) for part in rows]).sum(0), condition, rng)
        return [F.linear(hidden, weight) for weight in self.head.weight.split(self.sizes)]


def _row_sums(nats: list[Tensor]) -> Tensor:
    """Of all levels, [B, N] each: float [B]."""
    return torch.stack([part.sum(1) for part in nats]).sum(0)


def _sizes(clusters: int | PositiveInts, spec: TokenSpec) -> tuple[int, ...]:
    """M of each level. Raises ValueError where it does not fit the spec."""
    sizes = (clusters,) * spec.levels if isinstance(clusters, int) else tuple(clusters)
    if len(sizes) != spec.levels:
        raise ValueError(f"clusters={list(sizes)}: one number, or one for each of {counted(spec.levels, 'level')}")
    for k, (count, ids) in enumerate(zip(sizes, spec.vocab_sizes)):
        if count > ids:
            raise ValueError(f"clusters={count} of level {k}, which has {ids} ids: set generator.clusters to {ids} at most")
    return sizes
