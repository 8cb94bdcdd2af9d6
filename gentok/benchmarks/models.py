"""The model that benchmarks sample from and train: one of the zoo, or an untrained one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["ZOO", "describe_sizes", "load_or_build"]

ZOO = Path(__file__).resolve().parents[2] / "docs" / "zoo" / "mnist5k_ar"


def load_or_build(ckpt: Path | None, overrides: tuple[str, ...] = ()) -> tuple[Any, dict[str, Any], Any, str]:
    """The generator of a bundle, or an untrained one.

    Args:
        ckpt: the bundle's folder; None, or no bundle there: the generator is an untrained one of
            conf/generator/autoregressive.yaml on 8 x 8 tokens of 512 with ten classes.
        overrides: of conf/config.yaml, beside experiment=mnist5k/ar.

    Returns:
        A bundle with the tokens' spec, the configuration of a training, the generator, and what it is in
        words.
    """
    from gentok.bundle import Bundle, build_generator, load
    from gentok.cli import compose
    from gentok.interfaces import Tokenizer
    from gentok.types import ClassSpec, ConditionSpec, Raster, TokenSpec

    config = compose("config", ["experiment=mnist5k/ar", "tokenizer.ckpt=none", "paths.run=none", "trainer.accelerator=cpu", *overrides])
    if ckpt is not None and (ckpt / "bundle.json").is_file():
        bundle = load(ckpt)
        return bundle, config, bundle.generator.eval(), ckpt.name
    tokenizer = Tokenizer()
    tokenizer.spec, tokenizer.codebook = TokenSpec((512,), Raster(8, 8)), None
    classes = ConditionSpec((("class", ClassSpec(tuple("0123456789"))),))
    generator = build_generator(config["generator"], tokenizer, classes).eval()
    return Bundle("tokenizer", tokenizer, None, classes, {}), config, generator, "an untrained model"


def describe_sizes(model: Any) -> str:
    """Width, depth, heads and tokens of a transformer, for the `setting` of a figure."""
    network = model.transformer
    return f"width {network.width}, depth {network.depth}, heads {network.heads}, {model.spec.positions} tokens of {model.spec.vocab}"
