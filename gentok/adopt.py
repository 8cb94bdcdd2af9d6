"""`python -m gentok.adopt tokenizer=janus_vq tokenizer.path=FOLDER out=BUNDLE`: a pretrained model as a
bundle.

media_shape=[3,256,256] is what the tokens' spec names. The bundle is then like one of gentok's own:
`gentok.load(BUNDLE)`, `tokenizer.ckpt=BUNDLE` for a generator, and `python -m gentok.evaluate ckpt=BUNDLE
data=folder data.path=IMAGES`. With generator=NAME generator.weights=FILE it holds a pretrained generator and
its tokenizer, and is sampled and fine-tuned (`init_from=BUNDLE`) like any.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.nn import Module

from gentok.bundle import Bundle, build_generator, load, pretrained
from gentok.bundle.files import neighbours
from gentok.errors import ConfigError, check_choice
from gentok.types import ClassSpec, ConditionSpec
from gentok.unfilled import Unfilled

__all__ = ["adopt", "main"]


def adopt(config: Mapping[str, Any]) -> Path:
    """Saves a pretrained tokenizer, or a pretrained generator with its tokenizer, as a bundle.

    Args:
        config: a resolved conf/adopt.yaml.

    Returns:
        The bundle's folder.

    Raises:
        ValueError: the configuration, or the released files, do not fit.
        OSError: files are missing, or the folder cannot be written.
        ImportError: the package of the released model is not installed.
    """
    check_choice("dtype", config["dtype"], ("float32", "bfloat16"))
    tokenizer, generator = config["tokenizer"], config.get("generator")
    if "_target_" in tokenizer or not generator:
        with _filled_by(tokenizer):
            bundle = pretrained(tokenizer, config["media_shape"], config["trust"])
        _check_filled(bundle.tokenizer, tokenizer)
    else:
        bundle = load(tokenizer["ckpt"], trust=config["trust"])
    bundle.meta = {"from": _origin(tokenizer)}
    if generator:
        bundle = _with_generator(bundle, config)
    path = bundle.save(config["out"], config["dtype"])
    print(f"{type(bundle.tokenizer).__name__}: {bundle.spec.describe()}")
    if bundle.generator is not None:
        print(f"{type(bundle.generator).__name__}: {sum(p.numel() for p in bundle.generator.parameters()):,} parameters")
    print(f"bundle: {path}")
    return path


def _with_generator(bundle: Bundle, config: Mapping[str, Any]) -> Bundle:
    """The bundle of config["generator"] over the tokens of a bundle. Raises ConfigError where its weights are random."""
    settings, trust = config["generator"], config["trust"]
    condition_spec = ConditionSpec((("class", ClassSpec(tuple(map(str, range(config["classes"]))))),))
    with _filled_by(settings):
        generator = build_generator(settings, bundle.tokenizer, condition_spec, trust)
    if generator.needs_training:
        raise ConfigError(
            f"{type(generator).__name__} as configured has random weights: give released ones (generator.weights=FILE where it reads them)"
        )
    _check_filled(generator, settings)
    generator.eval().requires_grad_(False)
    meta = {"from": f"{_origin(settings)}, over the tokens of {bundle.meta['from']}"}
    if config["guidance"] is not None:
        meta["guidance"] = float(config["guidance"])
    about = {"generator_config": generator.portable(settings), "condition_spec": condition_spec, "meta": meta}
    return replace(bundle, kind="generator", generator=generator, **about)


def _filled_by(settings: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """Where released weights fill a model, no random numbers do before: what they do not fill is refused by `_check_filled`. Raises
    FileNotFoundError where they are not there."""
    if not (path := settings.get("weights")):
        return nullcontext()
    if not Path(path).expanduser().exists():
        raise FileNotFoundError(f"there are no weights at {path}{neighbours(Path(path))}")
    return Unfilled()


def _check_filled(model: Module, settings: Mapping[str, Any]) -> None:
    """Raises ConfigError where a parameter has no number."""
    found = next((name for name, value in model.named_parameters() if not value.isfinite().all()), None)
    if found is not None:
        raise ConfigError(f"{_origin(settings)} leaves {found} without a number, or with one that is not finite")


def _origin(settings: Mapping[str, Any]) -> str:
    """A hub name or a path, or the name of a file of weights, or of a bundle."""
    found = settings.get("weights") or settings.get("ckpt")
    return Path(str(found)).name if found else str(settings.get("path"))


def main() -> None:
    """`python -m gentok.adopt`."""
    from gentok.cli import run

    run("adopt", adopt)


if __name__ == "__main__":
    main()
