"""What calls of many steps cost, and what decoding with fewer calls saves in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gentok.benchmarks.decoding import model_of
from gentok.benchmarks.models import ZOO, load_or_build
from gentok.metrics.speed import Measured, figure, interleaved, timed

__all__ = ["speculation"]

ONE = "a call of one step"
PLAIN = "one step per call (sampler=autoregressive)"


def speculation(
    rounds: int, ckpt: Path | None = ZOO, windows: tuple[int, ...] = (8, 16, 32), batches: tuple[int, ...] = (1, 16), side: int = 16,
    vocab: int = 16_384, repeat: int = 4, **sizes: int,
) -> Measured:  # fmt: skip
    """Seconds of a call of W steps against one of a single step, of LlamaGen-B's sizes (untrained); and of Jacobi decoding against one step
    per call, on a trained model.

    Jacobi decoding saves time where it takes fewer calls than a call of its window takes longer: figures `call/...` below 1 say how much
    longer, and times fewer calls of a model (docs/results/autoregressive.md) times that figure is what is saved.

    Args:
        rounds: measurements of each contender.
        ckpt: the trained model; None: an untrained one, whose predictions do not depend on what comes before.
        windows: W.
        batches: rows.
        side, vocab, sizes: of the untrained model.
        repeat: calls in one measurement.
    """
    import torch

    model = model_of(side, vocab, **(sizes or {"width": 768, "depth": 12, "heads": 12, "hidden": 2048}))
    middle = model.layout.steps // 2
    for batch in batches:
        contenders = {str(width): timed(_call(model, batch, middle, width, repeat)) for width in (1, *windows)}
        seconds = interleaved(contenders, rounds)
        for width in windows:
            about = {"dtype": "float32", "setting": f"batch {batch}, {middle} steps before, {vocab:,} ids"}
            yield f"speculation/call{width}/batch{batch}", figure(seconds[str(width)], seconds["1"], peer=ONE, **about)

    from gentok.rng import RowRNG
    from gentok.samplers.autoregressive import AutoregressiveSampler
    from gentok.samplers.jacobi import Jacobi

    _, _, generator, what = load_or_build(ckpt)

    def draw(sampler: Any, batch: int) -> Callable[[], Any]:
        def run() -> None:
            with torch.no_grad():
                sampler(generator, generator.condition_spec.parse(None, batch), rng=RowRNG.of(0, range(batch)))

        return run

    for batch in batches:
        samplers = {"plain": AutoregressiveSampler(), "coupled": Jacobi(), "match": Jacobi(tail="gumbel", verify="match")}
        seconds = interleaved({name: timed(draw(sampler, batch)) for name, sampler in samplers.items()}, rounds)
        for name in ("coupled", "match"):
            about = {"dtype": "float32", "setting": f"{what}, batch {batch}, a window of {samplers[name].window}"}
            tokens = batch * generator.layout.steps
            yield f"speculation/{name}/batch{batch}", figure(seconds[name], seconds["plain"], peer=PLAIN, tokens=tokens, **about)


def _call(model: Any, batch: int, at: int, width: int, repeat: int) -> Callable[[], Any]:
    """`repeat` calls of `width` steps behind `at` others, and the draws of their ids."""
    import torch

    from gentok.rng import RowRNG
    from gentok.samplers.draws import draw
    from gentok.types import Condition

    with torch.no_grad():
        cache = model.init_cache(Condition(), batch, at + width)
        before = torch.zeros(batch, at, 1, dtype=torch.int64)
        before[:, 0] = model.begin
        model.logits(before, cache, torch.zeros(batch, dtype=torch.int64))
        model.commit(cache, torch.zeros(batch, dtype=torch.int64))
    ids, where = torch.zeros(batch, width, 1, dtype=torch.int64), torch.full((batch,), at)

    def run() -> None:
        with torch.no_grad():
            for _ in range(repeat):
                draw(model.logits(ids, cache, where), RowRNG.of(0, range(batch)))

    return run
