"""Operations and seconds of networks with a token density; writes density.json, density.md and its plot.

    python docs/results/density.py measure          operations and seconds, of untrained networks of several sizes
    python docs/results/density.py page             the page anew, from the figures that are there

The trained models are made and measured by density_models.py, the encoder by density_encoder.py.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from density_models import FLOW_STEPS, SETTINGS, counted
from evidence import Store, figures

from gentok.flow.solvers import time_grid
from gentok.generators.xar import XAR
from gentok.metrics.speed import interleaved, timed
from gentok.nn.density import Density
from gentok.nn.registers import RegisterDecoder
from gentok.types import ConditionSpec, Raster, TokenSpec

HOW = "python docs/results/density.py measure"
ROUNDS = {"small": 9, "d12": 3}
SIZES: dict[str, dict[str, Any]] = {
    "small": {"width": 96, "depth": 8, "head_width": 32, "home": (8, 8), "registers": 16, "channels": 4, "rows": 32, "groups": {}},
    "d12": {"width": 768, "depth": 12, "head_width": 64, "home": (16, 16), "registers": 256, "channels": 64, "rows": 1, "groups": {"pool": 2, "groups": 2, "sparse": 2}},
}  # fmt: skip
"""The decoder that density_models.py trains, and that of imagenet256/flextok_d12_d12."""
XAR_SIZES = {
    "small": (Raster(8, 8), 4, 4, {"width": 96, "depth": 8, "heads": 3}, 16, {}),
    "b": (Raster(16, 16), 16, 8, {"width": 768, "depth": 16, "heads": 12}, 1, {"pool": 2, "groups": 2, "sparse": 3}),
}
"""Grid, channels, side of a cell, sizes, rows and plan: xAR over CIFAR-10's latents, and that of imagenet256/xar_b."""


def density_of(words: str, **more: Any) -> Density | None:
    given = {key: value == "true" if value in ("true", "false") else float(value) for key, value in (word.split(":") for word in words.split(",") if word)}
    return Density(**given, **more) if words else None


def compare(store: Store, key: str, works: dict[str, Callable[[], Any]], rows: int, rounds: int) -> None:
    """Operations of a row, and seconds as a ratio to `dense`, in turn in one process."""
    began, flops = time.monotonic(), {name: counted(work) / rows for name, work in works.items()}
    seconds = interleaved({name: timed(work) for name, work in works.items()}, rounds)
    for name in works:
        ratios = [a / b for a, b in zip(seconds[name], seconds["dense"])]
        values = {
            "flops": flops[name], "flops_share": flops[name] / flops["dense"], "seconds": statistics.median(seconds[name]) / rows,
            "time_ratio": statistics.median(ratios), "time_ratio_least": min(ratios), "time_ratio_greatest": max(ratios), "rounds": rounds,
        }  # fmt: skip
        store.add(figures(f"{key}/{name}", values, HOW, 0, time.monotonic() - began))
        print(key, name, {k: round(v, 3) for k, v in values.items()}, flush=True)


def decoder(name: str, words: str) -> RegisterDecoder:
    size = dict(SIZES[name])
    size.pop("rows")
    torch.manual_seed(0)
    return RegisterDecoder(6, size.pop("channels"), flow=True, density=density_of(words, **size.pop("groups")), **size)


def decoders(store: Store, name: str) -> None:
    size = SIZES[name]
    rows, home, generator = size["rows"], size["home"], torch.Generator().manual_seed(0)
    x = torch.randn(rows, home[0] * home[1], size["channels"], generator=generator)
    registers = torch.randn(rows, size["registers"], size["width"], generator=generator)
    times = time_grid(FLOW_STEPS)[:-1] if name == "small" else (1.0, 0.625, 0.25)
    networks = {setting: decoder(name, words) for setting, (_, words) in SETTINGS.items()}

    def solve(network: RegisterDecoder) -> None:
        with torch.no_grad():
            for t in times:
                network(registers, home, x, torch.full((rows,), float(t)))

    def step(network: RegisterDecoder) -> None:
        t = torch.sigmoid(0.5 + torch.special.ndtri((torch.arange(rows, dtype=torch.float64) + 0.5) / rows))
        network(registers, home, x, t).square().mean().backward()

    compare(store, f"{name}/solve", {n: lambda m=m: solve(m) for n, m in networks.items()}, rows, ROUNDS[name])
    if name == "small":
        compare(store, f"{name}/train", {n: lambda m=m: step(m) for n, m in networks.items()}, rows, ROUNDS[name])


def entities(store: Store, name: str) -> None:
    """One pass over all cells, as in training (without its backward pass), and one call of the last cell's solver, the others being cached."""
    grid, channels, side, sizes, rows, plan = XAR_SIZES[name]
    spec = TokenSpec((), grid, width=channels)
    models = {setting: XAR(spec, ConditionSpec(), entity_side=side, density=density_of(words, **plan), **sizes).eval()
              for setting, (_, words) in SETTINGS.items() if setting in ("dense", "quarter")}  # fmt: skip
    passes, calls = {}, {}
    for setting, model in models.items():
        count = len(model.sizes)
        parts = [torch.randn(rows, size, channels, generator=torch.Generator().manual_seed(0)) for size in model.sizes]
        condition = model.init_cache(_nothing(), rows)

        def whole(model: XAR = model, parts: Any = parts, count: int = count) -> None:
            with torch.no_grad():
                model.network(torch.cat(parts, 1), torch.full((rows, count), 0.5), None, range(count))

        with torch.no_grad():
            model.velocity(parts[-1], 0.5, count - 1, condition, parts[:-1])

        def call(model: XAR = model, parts: Any = parts, count: int = count, cache: Any = condition) -> None:
            with torch.no_grad():
                model.velocity(parts[-1], 0.5, count - 1, cache)

        passes[setting], calls[setting] = whole, call
    compare(store, f"xar_{name}/pass", passes, rows, ROUNDS["small" if name == "small" else "d12"])
    compare(store, f"xar_{name}/call", calls, rows, ROUNDS["small"])


def _nothing() -> Any:
    from gentok.types import Condition

    return Condition()


def page(store: Store) -> None:
    from density_page import write

    write(store)


def main(words: list[str]) -> None:
    store = Store("density")
    if words[:1] == ["measure"]:
        torch.set_num_threads(1)
        for name in words[1:] or (*SIZES, *(f"xar_{n}" for n in XAR_SIZES)):
            entities(store, name.removeprefix("xar_")) if name.startswith("xar_") else decoders(store, name)
    page(store)


if __name__ == "__main__":
    main(sys.argv[1:])
