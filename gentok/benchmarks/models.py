"""The model that benchmarks sample from and train: one of the zoo, or an untrained one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["ZOO", "model_of", "sizes_of"]


ZOO = Path(__file__).resolve().parents[2] / "docs" / "zoo" / "mnist5k_ar"


def model_of(ckpt: Path | None, overrides: tuple[str, ...] = ()) -> tuple[Any, dict[str, Any], Any, str]:
    """(a bundle with the tokens' spec, the configuration of its training, a generator, what it is): the generator of `ckpt` where there is
    such a bundle, else an untrained one of conf/generator/autoregressive.yaml on 8 x 8 tokens of 512 with ten classes."""
    from torch import nn

    from gentok.bundle import Bundle, build_generator, load
    from gentok.cli import compose
    from gentok.types import ClassSpec, ConditionSpec, Raster, TokenSpec

    config = compose("config", ["experiment=mnist5k/ar", "tokenizer.ckpt=none", "paths.run=none", "trainer.accelerator=cpu", *overrides])
    if ckpt is not None and (ckpt / "bundle.json").is_file():
        bundle = load(ckpt)
        return bundle, config, bundle.generator.eval(), ckpt.name
    tokenizer = nn.Module()
    tokenizer.spec = TokenSpec((512,), Raster(8, 8))
    classes = ConditionSpec((("class", ClassSpec(tuple("0123456789"))),))
    generator = build_generator(config["generator"], tokenizer, classes).eval()
    return Bundle("tokenizer", tokenizer, None, classes, {}), config, generator, "an untrained model"


def sizes_of(model: Any) -> str:
    network = model.transformer
    return f"width {network.width}, depth {network.depth}, heads {network.heads}, {model.spec.positions} tokens of {model.spec.vocab}"
