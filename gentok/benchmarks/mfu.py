"""Model FLOPs utilization: which share of what this device multiplies matrices at a training step of a large generator reaches.

MFU as in PaLM (Chowdhery et al., 2022, arXiv 2204.02311, appendix B): the floating-point operations that the forward and backward passes
need by themselves, over the time of the whole step (with clipping and optimizer), over the peak rate. Deviations: the peak is not the
maker's figure but that of one large matrix product in the same type, measured in the same run in turn with the steps, so that a machine
that slows down slows both; and operations are counted (torch.utils.flop_counter) instead of estimated as 6 per parameter and token.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gentok.metrics.speed import Contender, Measured, interleaved

__all__ = ["MODELS", "mfu"]

MODELS: dict[str, tuple[str, tuple[str, ...], int]] = {
    "llamagen_b": ("imagenet256/llamagen_b", (), 64),
    "xar_b": ("imagenet256/xar_b", (), 32),
    "masked_24x768": (
        "imagenet256/llamagen_b",
        ("generator=masked", "generator.width=768", "generator.depth=24", "generator.heads=12"),
        64,
    ),
}
"""Name -> an experiment, overrides of it, and how many items a step has on a GPU; on a CPU it has one."""
_SIDE = {"cuda": 8192, "cpu": 1024}
"""Of the square matrices whose product is the ceiling."""


def mfu(
    rounds: int, steps: int = 2, models: Mapping[str, tuple[str, tuple[str, ...], int]] = MODELS, side: int | None = None,
    device: str | None = None,
) -> Measured:  # fmt: skip
    """Throughput and MFU of training steps: in bf16-mixed where the device computes in it, on a GPU also through torch.compile.

    Args:
        rounds: measurements of each contender.
        steps: of a measurement.
        models: those of MODELS, or others.
        side: of the ceiling's matrices; None: 8,192 on a GPU, 1,024 on a CPU.
        device: "cuda" or "cpu"; None: a GPU where there is one.
    """
    import torch

    from gentok.training.trainer import precision

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = precision("auto", "gpu" if device == "cuda" else "cpu")
    low = torch.bfloat16 if chosen == "bf16-mixed" else torch.float32
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    side = side or _SIDE[device]
    a, b = (torch.randn(side, side, device=device).to(low) for _ in range(2))
    for name, (experiment, words, items) in models.items():
        size = items if device == "cuda" else 1
        model, step, flops, positions = _training(experiment, words, size, device, low)
        contenders: dict[str, Contender] = {"ceiling": _timed(lambda: a @ b, device, 8), "eager": _timed(step, device, steps)}
        if device == "cuda":
            contenders["compiled"] = _compiled(model, _timed(step, device, steps))
        seconds = interleaved(contenders, rounds)
        parameters = sum(p.numel() for p in model.parameters())
        setting = f"{parameters / 1e6:,.1f} M parameters, {size} items of {positions} positions, {flops / 1e12:,.3f} TFLOP a step, {device}"
        for mode in list(contenders)[1:]:
            peer = f"matrix product of {side}, {2 * side**3 / statistics.median(seconds['ceiling']) / 1e12:,.2f} TFLOP/s"
            found = _utilization(flops, 2 * side**3, seconds[mode], seconds["ceiling"])
            rates = {"images_per_second": size / found["seconds"], "positions_per_second": size * positions / found["seconds"]}
            yield f"mfu/{name}/{mode}", {**found, "peer": peer, **rates, "rounds": rounds, "dtype": chosen, "setting": setting}
        del model, step, contenders


def _utilization(flops: float, ceiling_flops: float, steps: Sequence[float], ceilings: Sequence[float]) -> dict[str, Any]:
    """Percent of the ceiling, round by round. steps, ceilings: seconds of one step, and of one product."""
    values = [100 * (flops / step) / (ceiling_flops / ceiling) for step, ceiling in zip(steps, ceilings, strict=True)]
    return {
        "value": statistics.median(values), "min": min(values), "max": max(values), "unit": "% MFU", "seconds": statistics.median(steps),
        "peer_seconds": statistics.median(ceilings), "tflops_per_second": flops / statistics.median(steps) / 1e12,
    }  # fmt: skip


def _timed(work: Callable[[], Any], device: str, repeat: int) -> Contender:
    """Seconds of one call, of `repeat` in a row; what a GPU has been asked for is waited for."""
    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def run() -> float:
        wait()
        began = time.perf_counter()
        for _ in range(repeat):
            work()
        wait()
        return (time.perf_counter() - began) / repeat

    return run


def _compiled(model: Any, run: Contender) -> Contender:
    """The same with the model's blocks compiled, which the first round, which does not count, waits for."""
    from gentok.training.blocks import set_blocks

    def compiled() -> float:
        set_blocks(model, {"compile": True, "accelerator": "gpu"}, "generator")
        try:
            return run()
        finally:
            set_blocks(model, {"accelerator": "gpu"}, "generator")

    return compiled


def _training(experiment: str, words: Sequence[str], size: int, device: str, low: Any) -> tuple[Any, Callable[[], None], int, int]:
    """A generator, a training step of it on one batch of noise, the operations of its two passes, and the positions of an item."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from gentok.benchmarks.plan import composed
    from gentok.build import build
    from gentok.bundle import build_generator
    from gentok.describe import built
    from gentok.interfaces import Tokenizer
    from gentok.rng import RowRNG
    from gentok.types import Latents, Tokens

    config = composed(experiment, words)
    with torch.device("meta"):
        made, there, _ = built(config)
    tokenizer = Tokenizer()  # what is modelled is noise: of the tokenizer only the form of its codes is needed
    tokenizer.spec, tokenizer.codebook = there.spec, None
    spec, conditions = there.spec, made.condition_spec
    model = build_generator(config["generator"], tokenizer, conditions, config["trust"]).to(device).train()
    optimizer = build(config["optimizer"])(model)
    index = torch.arange(size)
    condition = conditions.parse(list(range(10)), size).to(device)
    if spec.levels:
        tokens: Any = Tokens(torch.randint(min(spec.vocab_sizes), (size, spec.levels, spec.positions), device=device), spec)
    else:
        tokens = Latents(torch.randn(size, spec.width or 1, spec.positions, device=device), spec)
    rng = RowRNG.of(0, index).to(device)

    def passes() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=low is torch.bfloat16):
            loss = model.loss(tokens, condition, rng.fork("generator")).loss
        loss.backward()

    def step() -> None:
        passes()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config["trainer"]["clip"] or float("inf"))
        optimizer.step()

    counter = FlopCounterMode(display=False)
    with counter:
        passes()
    return model, step, counter.get_total_flops(), spec.positions
