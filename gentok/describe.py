"""`python train.py describe=true ...`: how large a configuration is, before any data or memory is spent on it.

Everything is built on the meta device. FLOPs (a multiply-add counts two) are counted by torch.utils.flop_counter: of a training step as
three forward passes of the batch (forward, and backward at twice that), of a sample as the network calls of the sampler, with the
decoder. Memory is the training state in float32 (weights, gradients, two Adam moments, averaged weights), without activations.
Discriminators have lines of their own: the totals, FLOPs and memory are the tokenizer's. An item of sound is one second.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gentok.build import resolve
from gentok.bundle import build_generator, build_tokenizer, nest_inner
from gentok.errors import ConfigError
from gentok.generators.base import Causal
from gentok.sampling import pick_sampler
from gentok.types import Batch, ClassSpec, ConditionSpec, Latents, Tokens, TokenSpec

__all__ = ["describe"]


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Prints sizes, FLOPs and memory of the run that `config` describes, as a table and, last, as one JSON object; returns that."""
    with torch.device("meta"):
        report, table = _tokenizer_report(config) if config["task"]["name"] == "tokenizer" else _generator_report(config)
    for name, value in table:
        print(f"{name:<38}{value:>18}")
    print(json.dumps(report))
    return report


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _parts(module: nn.Module) -> dict[str, int]:
    counts = {name: _count(child) for name, child in module.named_children()}
    own = sum(p.numel() for p in module.parameters(recurse=False))
    return {**{n: c for n, c in counts.items() if c}, **({"own": own} if own else {})}


def _flops(function: Any, *args: Any) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        function(*args)
    return counter.get_total_flops()


def _media_shape(config: Mapping[str, Any]) -> tuple[int, ...]:
    given = config["tokenizer"].get("media_shape")
    data = config["data"]
    if given is None:
        given = getattr(resolve(data["_target_"], config["trust"]), "media_shape", None)
    if given is None and isinstance(data.get("size"), (int, list)):
        size = data["size"] if isinstance(data["size"], list) else [data["size"]] * 2
        given = [data.get("channels", 3), *size]
    if given is None and isinstance(data.get("sample_rate"), int):
        given = [data.get("channels", 1), data["sample_rate"]]
    if given is None:
        raise ConfigError("describe=true reads no data, so say how large an image is: data.size=256, or tokenizer.media_shape=[3,256,256]")
    return tuple(given)


def _condition_spec(config: Mapping[str, Any]) -> ConditionSpec:
    known = getattr(resolve(config["data"]["_target_"], config["trust"]), "condition_spec", None)
    if known is not None:
        return known
    names = tuple(map(str, range(config["describe_classes"] or 0)))
    return ConditionSpec((("class", ClassSpec(names)),)) if names else ConditionSpec()


def _tokenizer(config: Mapping[str, Any]) -> nn.Module:
    with torch.device("cpu"):  # a bundle comes with its weights
        settings, _ = nest_inner(config["tokenizer"], config["trust"], shape_only=True)
    if settings.get("media_shape") is None:
        settings["media_shape"] = list(_media_shape(config))
    return build_tokenizer(settings, config["trust"]).to("meta")  # a pretrained one comes with its weights


def _row(spec: TokenSpec, batch: int) -> Tokens | Latents:
    if not spec.levels:
        return Latents(torch.empty(batch, spec.width, spec.positions), spec)
    return Tokens(torch.empty(batch, spec.levels, spec.positions, dtype=torch.int64), spec)


def _sizes(spec: TokenSpec) -> tuple[int, float]:
    with torch.device("cpu"):
        return int(spec.exists().sum()) if spec.levels else spec.positions, spec.bits


def _common(table: list[tuple[str, str]], parts: Mapping[str, int], spec: TokenSpec, trained: int, averaged: bool) -> None:
    tokens, bits = _sizes(spec)
    table += [(f"parameters, {name}", f"{count:,}") for name, count in parts.items()]
    table.append(("tokens per item", f"{tokens:,}"))
    table.append(("bits per item", f"{bits:,.1f}"))
    table.append(("training state (weights, gradients, ...)", f"{trained * 4 * (5 if averaged else 4) / 2**20:,.0f} MiB"))


def _discriminators(config: Mapping[str, Any]) -> dict[str, int]:
    """Parameters of each discriminator of a training, which no bundle holds."""
    if not config.get("discriminator"):
        return {}
    from gentok.training.adversarial_task import build_adversaries

    adversaries = build_adversaries(config["discriminator"], _media_shape(config)[0], config["trust"])
    return {f"discriminator.{name}": _count(part) for name, part in adversaries.parts.items()}


def _decode_flops(tokenizer: nn.Module) -> int:
    try:
        return _flops(tokenizer.decode, _row(tokenizer.spec, 1))
    except ValueError:  # an encoder alone
        return 0


def _tokenizer_report(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    tokenizer = _tokenizer(config).eval()
    media = torch.empty(1, *_media_shape(config))
    spec, total = tokenizer.spec, _count(tokenizer)
    encode = _flops(tokenizer.encode, media)
    decode, discriminators = _decode_flops(tokenizer), _discriminators(config)
    # a generative decoder is called once in training, and many times to decode
    generative, batch = tokenizer.generative, Batch(media, torch.zeros(1, dtype=torch.int64))
    once = _flops(tokenizer, batch) if generative else encode + decode
    step = 3 * once * config["batch_size"]
    parts, table = _parts(tokenizer), []
    _common(table, {**parts, "tokenizer": total}, spec, total, config["callbacks"]["ema"] is not None)
    table += [(f"parameters, {name}", f"{count:,}") for name, count in discriminators.items()]
    table += [
        ("FLOPs per training step", f"{step:.3e}"),
        ("FLOPs to encode one item", f"{encode:.3e}"),
        ("FLOPs to decode one item", f"{decode:.3e}"),
    ]
    tokens, bits = _sizes(spec)
    report = {
        "parts": parts, "generator": 0, "tokenizer": total, "discriminators": discriminators, "tokens": tokens, "bits": bits,
        "flops_train_step": step, "flops_sample": decode,
    }  # fmt: skip
    return report, table


def _generator_report(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    tokenizer_parts, tokenizer_total, decode = {}, 0, 0
    if "_target_" in config["tokenizer"]:
        tokenizer: Any = _tokenizer(config).eval()
    else:
        document = Path(str(config["tokenizer"].get("ckpt"))) / "bundle.json"
        if not document.is_file():
            raise ConfigError(
                f"there is no bundle at tokenizer.ckpt={document.parent}: give one, "
                "or describe with a tokenizer's configuration (tokenizer=vqgan)"
            )
        tokenizer = build_tokenizer(json.loads(document.read_text())["tokenizer"]["config"], config["trust"]).eval()
    tokenizer_parts, tokenizer_total = _parts(tokenizer), _count(tokenizer)
    spec: TokenSpec = tokenizer.spec
    decode = _decode_flops(tokenizer)
    condition_spec = _condition_spec(config)
    generator = build_generator(config["generator"], tokenizer, condition_spec, config["trust"]).eval()
    total = _count(generator)
    with torch.device("cpu"):
        condition = condition_spec.parse(None, 1)
    forward = _flops(generator, _row(spec, 1), condition.to("meta"))
    sampler = pick_sampler(config["sampler"], type(generator), config["trust"])
    # with a cache, a causal sampler computes every step once, which is what one pass over the whole sequence computes
    calls = 1 if isinstance(generator, Causal) else int(getattr(sampler, "steps", 1))
    sides = 1 if config["task"]["guidance"] == 1 else 2
    step, sample = 3 * forward * config["batch_size"], forward * calls * sides + decode
    parts, table = {f"generator.{n}": c for n, c in _parts(generator).items()}, []
    _common(table, {**parts, "generator": total, "tokenizer": tokenizer_total}, spec, total, config["callbacks"]["ema"] is not None)
    table += [("FLOPs per training step", f"{step:.3e}"), (f"FLOPs per sample ({type(sampler).__name__})", f"{sample:.3e}")]
    tokens, bits = _sizes(spec)
    report = {
        "parts": {**parts, **{f"tokenizer.{n}": c for n, c in tokenizer_parts.items()}}, "generator": total, "tokenizer": tokenizer_total,
        "tokens": tokens, "bits": bits, "flops_train_step": step, "flops_sample": sample,
    }  # fmt: skip
    return report, table
