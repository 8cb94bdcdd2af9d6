"""Models of other libraries with a capability of gentok's: any function from ids to logits, so that gentok's samplers draw from it.

    lm = transformers.AutoModelForCausalLM.from_pretrained(FOLDER)
    model = CausalFunction(lambda ids: lm(ids).logits, spec, begin=lm.config.bos_token_id, offset=FIRST_IMAGE_TOKEN)
    tokens = Jacobi(window=16)(model, Condition(), rng=RowRNG.of(0, range(8)), known=Tokens.unknown(spec, 8)).tokens

Ids of the function that are no codes are never drawn: the distribution is over the codes alone. What stands before a
step is computed anew with every call: for a model that is sampled often, write a Causal generator with a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.generators.base import Causal, Masked
from gentok.layouts import Layout
from gentok.types import ABSENT, UNKNOWN, Condition, ConditionSpec, Tokens, TokenSpec

__all__ = ["CausalFunction", "MaskedFunction"]


def _check_one_level(spec: TokenSpec) -> None:
    if spec.levels != 1:
        raise ValueError(f"a function of ids models one level of tokens; these have {spec.levels}: write a generator for them")


def _codes_of(logits: Tensor, shape: tuple[int, ...], spec: TokenSpec, offset: int) -> Tensor:
    """The codes' part of a function's logits. Raises ValueError on another shape than it should have."""
    if tuple(logits.shape[:-1]) != shape or logits.shape[-1] < offset + spec.vocab:
        wanted = f"[{', '.join(map(str, shape))}, {offset + spec.vocab} or more]"
        raise ValueError(f"the function should give logits {wanted}; it gave {list(logits.shape)}")
    return logits[..., offset : offset + spec.vocab]


@dataclass
class _Fed:
    """ids int64 [B, capacity]: what was fed; last: of the last call, its `at` and ids."""

    condition: Condition
    ids: Tensor
    last: tuple[Tensor, Tensor] | None = None


class CausalFunction(Causal):
    """A causal model from a function that predicts what follows each id.

    Args:
        logits: ids int64 [B, T], in the function's own numbers and beginning with `begin` -> float [B, T, V'], of the id
            that follows each; with a condition_spec it is given the condition of B rows as its second argument.
        spec: the tokens; of one level.
        begin: id of the function that stands before an item.
        offset: code v is the function's id v + offset.
        layout: order of the cells.
        condition_spec: what it is conditioned on; None: nothing.

    Raises:
        ValueError: the tokens have several levels.
    """

    exact_slots = True
    moves_rows = True

    def __init__(
        self, logits: Callable[..., Tensor], spec: TokenSpec, begin: int, offset: int = 0, layout: str = "auto",
        condition_spec: ConditionSpec | None = None,
    ):  # fmt: skip
        _check_one_level(spec)
        self.function, self.spec, self.condition_spec = logits, spec, condition_spec or ConditionSpec()
        self.first, self.offset = begin, offset
        self.layout, self.begin = Layout.of(layout, spec), torch.tensor([spec.vocab])

    def init_cache(self, condition: Condition, batch: int, capacity: int) -> _Fed:
        """As Causal.init_cache: the ids, and nothing of the network."""
        return _Fed(condition, self.begin.expand(batch, capacity).clone())

    def logits(self, ids: Tensor, cache: _Fed, at: Tensor, parents: Tensor | None = None) -> Tensor:
        """As Causal.logits; a tree is computed path by path."""
        ids = torch.where(ids[..., 0] == ABSENT, self.spec.vocab, ids[..., 0])
        at, (batch, width) = at.to(ids.device), ids.shape
        cache.last, step = (at, ids), torch.arange(width, device=ids.device)
        if parents is None:
            sequence, rows = _write(cache.ids.to(ids.device), at, ids, step.expand(batch, -1)), torch.arange(batch, device=ids.device)
            place = at[:, None] + step
        else:
            paths = _paths(parents)  # [B, S, S]: the nodes on the way to each, -1 behind it
            rows = torch.arange(batch, device=ids.device).repeat_interleave(width)
            sequence = _write(cache.ids.to(ids.device)[rows], at[rows], ids[rows], paths.flatten(0, 1))
            place = at[:, None] + (paths >= 0).sum(2) - 1
        sequence = sequence[:, : int(place.max()) + 1]
        given = (cache.condition.rows(rows),) if self.condition_spec.parts else ()
        numbers = torch.where(sequence == self.spec.vocab, self.first, sequence + self.offset)
        out = _codes_of(self.function(numbers, *given), tuple(sequence.shape), self.spec, self.offset)
        flat = torch.arange(len(sequence), device=ids.device)
        return (out[flat[:, None], place] if parents is None else out[flat, place.flatten()].unflatten(0, (batch, width)))[:, :, None]

    def commit(self, cache: _Fed, at: Tensor, path: Tensor | None = None) -> None:
        """As Causal.commit."""
        assert cache.last is not None
        at, ids = cache.last
        nodes = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1) if path is None else path.to(ids.device)
        cache.ids = _write(cache.ids.to(ids.device), at, ids, nodes)

    def take(self, cache: _Fed, rows: Tensor) -> _Fed:
        """As Causal.take."""
        return _Fed(cache.condition.rows(rows), cache.ids[rows.to(cache.ids.device)].clone())

    def put(self, cache: _Fed, rows: Tensor, other: _Fed) -> None:
        """As Causal.put."""
        cache.ids = cache.ids.index_copy(0, rows.to(cache.ids.device), other.ids)
        if self.condition_spec.parts:
            order = torch.arange(len(cache.ids))
            order[rows.cpu()] = len(order) + torch.arange(len(rows))
            cache.condition = Condition.concat([cache.condition, other.condition]).rows(order)


def _write(sequence: Tensor, at: Tensor, ids: Tensor, nodes: Tensor) -> Tensor:
    """Sequences [B, L] in which ids[b, nodes[b, j]] stands at at[b] + j, where the node is not -1."""
    row, j = (nodes >= 0).nonzero(as_tuple=True)
    out = sequence.clone()
    out[row, at[row] + j] = ids[row, nodes[row, j]]
    return out


def _paths(parents: Tensor) -> Tensor:
    """parents int64 [B, S] -> int64 [B, S, S]: for each node those on its way from the root, itself last, then -1."""
    step = torch.arange(parents.shape[1], device=parents.device)
    up = [step.expand_as(parents)]  # each node, its parent, the parent's parent ...
    for _ in range(len(step) - 1):
        up.append(torch.where(up[-1] >= 0, parents.gather(1, up[-1].clamp(min=0)), -1))
    way = torch.stack(up, 2)
    length = (way >= 0).sum(2, keepdim=True)
    return torch.where(step < length, way.gather(2, (length - 1 - step).clamp(min=0)), -1)


class MaskedFunction(Masked):
    """A masked model from a function that predicts every masked id from the others.

    Args:
        logits: ids int64 [B, N], in the function's own numbers -> float [B, N, V']; with a condition_spec it is given the
            condition of B rows as its second argument.
        spec: the tokens; of one level.
        mask: id of the function that stands for an unknown one.
        offset: code v is the function's id v + offset.
        condition_spec: what it is conditioned on; None: nothing.

    Raises:
        ValueError: the tokens have several levels.
    """

    uses_time = False

    def __init__(
        self, logits: Callable[..., Tensor], spec: TokenSpec, mask: int, offset: int = 0, condition_spec: ConditionSpec | None = None
    ):  # fmt: skip
        _check_one_level(spec)
        self.function, self.spec, self.condition_spec = logits, spec, condition_spec or ConditionSpec()
        self.mask, self.offset = mask, offset

    def logits(self, tokens: Tokens, condition: Condition, t: Tensor | None = None) -> Tensor:
        """As Masked.logits. Raises ValueError where an item is shorter than the function's sequences."""
        codes = tokens.codes[:, 0]
        if bool((codes == ABSENT).any()):
            raise ValueError(f"this function models items of {self.spec.positions} tokens; one has fewer")
        ids = torch.where(codes == UNKNOWN, self.mask, codes + self.offset)
        given = (condition,) if self.condition_spec.parts else ()
        return _codes_of(self.function(ids, *given), tuple(ids.shape), self.spec, self.offset)[:, None]
