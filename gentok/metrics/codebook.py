"""The health of a codebook, from the codes that it gave: how many rows are in use, how evenly, and how many
bits an item really has.

Of every level, and of an item:

    usage = share of rows hit;   entropy = -sum_v p_v log2 p_v  (bits, of the level's marginal distribution)
    perplexity = 2^entropy
    bits per item = sum_k entropy_k * (codes of level k per item): what an ideal coder of single codes would
    spend
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.distributed import all_sum
from gentok.types import Tokens

__all__ = ["CodebookHealth", "Health", "share_given_back"]

MOST_IDS = 1 << 28
"""Of a level: their counts take 2 GiB."""


@dataclass(frozen=True)
class Health:
    """One number per level, coarse to fine. An empty level has usage 0, perplexity 1 and entropy 0.

    Attributes:
        usage: in [0, 1].
        perplexity: in [1, V].
        entropy: bits.
        dead: rows never hit.
        codes: how many were counted.
        bits_per_item: of all levels, see above.
    """

    usage: tuple[float, ...]
    perplexity: tuple[float, ...]
    entropy: tuple[float, ...]
    dead: tuple[int, ...]
    codes: tuple[int, ...]
    bits_per_item: float

    def scalars(self, prefix: str = "codebook/") -> dict[str, float]:
        """Named numbers for a log: 'codebook/usage' for one level, 'codebook/usage_0', ... for several, and
        'codebook/bits_per_item'."""
        out = {f"{prefix}bits_per_item": self.bits_per_item}
        for name in ("usage", "perplexity", "entropy", "dead"):
            values = getattr(self, name)
            for k, value in enumerate(values):
                out[f"{prefix}{name}" + (f"_{k}" if len(values) > 1 else "")] = float(value)
        return out


class CodebookHealth:
    """Counts codes over any number of batches.

    Counts are exact integers on `device`; compute sums them over all processes, at that moment, and all must
    call it, unless it is asked for one process's figures.

    Args:
        vocab_sizes: V of each level.
        device: of the counts.
    """

    def __init__(self, vocab_sizes: Sequence[int], device: torch.device | str = "cpu"):
        self.vocab_sizes = tuple(vocab_sizes)
        if max(self.vocab_sizes, default=0) > MOST_IDS:
            raise ValueError(
                f"a level of {max(self.vocab_sizes):,} ids is too large to count how often each is used (at most {MOST_IDS:,}): "
                "take more levels of fewer ids, as codebook=bit_groups makes of codebook=lfq"
            )
        self.counts = [torch.zeros(v, dtype=torch.int64, device=device) for v in self.vocab_sizes]
        self.items = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, codes: Tensor) -> None:
        """codes int64 [B, K, N]; cells below 0 are not counted. Raises ValueError on another number of
        levels."""
        if codes.dim() != 3 or codes.shape[1] != len(self.counts):
            raise ValueError(f"CodebookHealth counts codes [B, {len(self.counts)}, N]; got {tuple(codes.shape)}")
        self.items += len(codes)
        for k, count in enumerate(self.counts):
            here = codes[:, k].to(count.device)
            here = here[here >= 0]
            count.index_add_(0, here, torch.ones_like(here))

    def to(self, device: torch.device | str) -> CodebookHealth:
        """Moves the counts; itself."""
        self.counts, self.items = [count.to(device) for count in self.counts], self.items.to(device)
        return self

    def state_dict(self) -> dict[str, list[Tensor]]:
        """This process's counts."""
        return {"counts": [count.clone() for count in self.counts], "items": [self.items.clone()]}

    def load_state_dict(self, state: Mapping[str, Sequence[Tensor]]) -> None:
        """Replaces this process's counts."""
        for count, stored in zip((*self.counts, self.items), (*state["counts"], *state["items"]), strict=True):
            count.copy_(stored)

    def reset(self) -> None:
        """Counts anew."""
        for count in self.counts:
            count.zero_()
        self.items.zero_()

    @torch.no_grad()
    def compute(self, own: bool = False) -> Health:
        """The figures of all codes that were counted by all processes; own: by this one."""
        summed = (lambda x: x) if own else all_sum
        items = max(1, int(summed(self.items)))
        rows = []
        for count in self.counts:
            count = summed(count)
            total = int(count.sum())
            p = count.double() / max(1, total)
            bits = float(torch.special.entr(p).sum() / torch.log(torch.tensor(2.0, dtype=torch.float64)))
            hit = int((count > 0).sum())
            rows.append((hit / len(count), 2.0**bits, bits, len(count) - hit, total))
        usage, perplexity, entropy, dead, codes = zip(*rows)
        return Health(usage, perplexity, entropy, dead, codes, sum(bits * n / items for bits, n in zip(entropy, codes)))


def share_given_back(tokens: Tokens, again: Tokens) -> Tensor:
    """The share of an item's codes that are the same where it was decoded and encoded again.

    Args:
        tokens: [B, K, N].
        again: [B, K, N], of what they were decoded to.

    Returns:
        float64 [B], of the cells that hold a code in `tokens`; NaN where none does.
    """
    same = (tokens.codes == again.codes) & tokens.present
    return same.sum((1, 2)).double() / tokens.present.sum((1, 2))
