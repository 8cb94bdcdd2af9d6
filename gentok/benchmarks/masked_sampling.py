"""First-hitting against ancestral sampling."""

from __future__ import annotations

import contextlib
from typing import Any

from gentok.metrics.speed import Measured, figure, interleaved, timed

__all__ = ["first_hitting"]


def first_hitting(
    rounds: int, sizes: tuple[tuple[int, int], ...] = ((8, 1), (8, 16), (16, 1), (16, 16)), vocab: int = 16_384, width: int = 64
) -> Measured:
    """First-hitting sampling, one network call per token, against ancestral sampling.

    Ancestral sampling has 16 times as many steps as tokens. All sample the same untrained masked model and
    draw ids of revealed cells only. The peers compute every row in every step; the whole batch whenever one
    of its rows reveals something (as a cache of the last prediction does); each row when it reveals something
    (gentok's ancestral).

    Args:
        rounds: measurements of each contender.
        sizes: (side of the raster, batch) each. Of large ones contenders run the same first part of their
            steps, which the setting names.
        vocab: codes of a token.
        width: of the network.
    """
    import torch

    from gentok.generators.masked import MaskedTransformer
    from gentok.rng import RowRNG
    from gentok.samplers.ancestral import Ancestral
    from gentok.samplers.first_hitting import FirstHitting
    from gentok.types import Condition, Raster, TokenSpec

    class Enough(Exception):
        pass

    class WholeBatch(MaskedTransformer):
        """A model that computes the other rows of the batch, too."""

        def logits(self, tokens: Any, condition: Any, t: Any = None) -> Any:
            rows = [*range(tokens.batch), *[0] * (self.batch - tokens.batch)]
            return super().logits(tokens.rows(rows), condition, t if t is None else t[rows])[: tokens.batch]

    for side, batch in sizes:
        n = side * side
        # The uncached peer computes every step, so few of them suffice; which steps the others compute is
        # random, so they run longer.
        parts = {"uncached": max(1, min(n // 2, n * batch // 32)), "cached": 1 if batch == 1 else max(1, n // 8)}
        plain, whole = (
            cls(TokenSpec((vocab,), Raster(side, side)), width=width, depth=2, heads=2).eval() for cls in (MaskedTransformer, WholeBatch)
        )
        whole.batch = batch

        def draw(sampler: Any, model: Any, part: int, batch: int = batch) -> None:
            def stop(tokens: Any, number: int, of: int) -> None:
                if number * part >= of:
                    raise Enough

            with contextlib.suppress(Enough):
                sampler(model, Condition(), rng=RowRNG.of(0, torch.arange(batch)), on_step=stop)

        steps = 16 * n
        peers = {
            "uncached": {"uncached": ("every row in every step", Ancestral(steps=steps, cache=False), plain)},
            "cached": {
                "cached_batch": ("the whole batch where a row changes", Ancestral(steps=steps), whole),
                "cached_rows": ("each row where it changes", Ancestral(steps=steps), plain),
            },
        }
        for kind, those in peers.items():
            part = parts[kind]
            contenders = {"first hitting": timed(draw, FirstHitting(), plain, part)}
            contenders |= {name: timed(draw, sampler, model, part) for name, sampler, model in those.values()}
            seconds = interleaved(contenders, rounds)
            sizes_are = f"batch {batch}, {n} tokens of {vocab:,}, T = {steps:,}, width {width}, depth 2, first 1/{part}"
            for key, (name, *_) in those.items():
                about = {"peer": f"ancestral, {name}", "tokens": batch * n // part, "dtype": "float32", "setting": sizes_are}
                yield f"first_hitting/n{n}/batch{batch}/{key}", figure(seconds["first hitting"], seconds[name], **about)
