"""`python train.py describe=true ...`: how large a configuration is, before data or memory is spent on it.

Everything is built on the meta device. FLOPs (a multiply-add counts two) are counted by
torch.utils.flop_counter: of a training step as three forward passes of the batch (forward, and backward at
twice that), of a sample as the network calls of the sampler, with the decoder. Memory is the training state
in float32 (weights, gradients, two Adam moments, averaged weights), without activations. Discriminators have
lines of their own: the totals, FLOPs and memory are the tokenizer's. An item of sound is one second.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gentok.build import resolve
from gentok.bundle import build_generator, build_tokenizer, nest_inner, nest_teacher
from gentok.bundle.places import find
from gentok.errors import ConfigError
from gentok.generators.base import Causal
from gentok.interfaces import Generator, MediaData, Tokenizer
from gentok.sampling import pick_sampler
from gentok.types import Batch, ClassSpec, ConditionSpec, Latents, Tokens, TokenSpec

__all__ = ["built", "describe"]

Table = list[tuple[str, str]]


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Prints sizes, FLOPs and memory of a run, as a table and, last, as one JSON object.

    Args:
        config: a resolved conf/config.yaml.

    Returns:
        What the JSON object holds: parts, generator, tokenizer (parameters), tokens, bits (of an item),
        flops_train_step, flops_sample; of a tokenizer's training also discriminators.

    Raises:
        ConfigError: the size of the media, or the tokenizer, is not known.
    """
    with torch.device("meta"):
        report, table = _tokenizer_report(config) if config["task"]["name"] == "tokenizer" else _generator_report(config)
    for name, value in table:
        print(f"{name:<38}{value:>18}")
    print(json.dumps(report))
    return report


def built(config: Mapping[str, Any]) -> tuple[nn.Module, Tokenizer, int]:
    """What a run trains, built under `torch.device("meta")`.

    Args:
        config: a resolved conf/config.yaml.

    Returns:
        The generator, or the tokenizer; the tokenizer; parameters of all discriminators.

    Raises:
        ConfigError: the size of the media, or the tokenizer, is not known.
    """
    if config["task"]["name"] == "tokenizer":
        tokenizer = _tokenizer(config)
        return tokenizer, tokenizer, sum(_discriminators(config).values())
    tokenizer = _tokenizer_of_generator(config)
    return _generator(config, tokenizer), tokenizer, 0


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _parts(module: nn.Module, prefix: str = "") -> dict[str, int]:
    """Parameters of each child, and "own": of the module itself."""
    counts = {name: _count(child) for name, child in module.named_children()}
    counts["own"] = sum(p.numel() for p in module.parameters(recurse=False))
    return {f"{prefix}{name}": count for name, count in counts.items() if count}


def _flops(function: Any, *args: Any) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        function(*args)
    return counter.get_total_flops()


def _data_class(config: Mapping[str, Any]) -> type[MediaData]:
    data = resolve(config["data"]["_target_"], config["trust"])
    return data if issubclass(data, MediaData) else MediaData  # a class of your own declares nothing before it is built


def _media_shape(config: Mapping[str, Any]) -> tuple[int, ...]:
    data = config["data"]
    shape = config["tokenizer"].get("media_shape") or _data_class(config).media_shape
    if shape is None and isinstance(data.get("size"), (int, list)):
        size = data["size"] if isinstance(data["size"], list) else [data["size"]] * 2
        shape = [data.get("channels", 3), *size]
    if shape is None and isinstance(data.get("sample_rate"), int):
        shape = [data.get("channels", 1), data["sample_rate"]]
    if shape is None:
        raise ConfigError("describe=true reads no data, so say how large an image is: data.size=256, or tokenizer.media_shape=[3,256,256]")
    return tuple(shape)


def _condition_spec(config: Mapping[str, Any]) -> ConditionSpec:
    names = tuple(map(str, range(config["describe_classes"] or 0)))
    unknown = ConditionSpec((("class", ClassSpec(names)),)) if names else ConditionSpec()
    return _data_class(config).condition_spec or unknown


def _tokenizer(config: Mapping[str, Any]) -> Tokenizer:
    with torch.device("cpu"):  # a bundle comes with its weights
        settings, _ = nest_inner(config["tokenizer"], config["trust"], shape_only=True)
    if settings.get("media_shape") is None:
        settings["media_shape"] = list(_media_shape(config))
    return build_tokenizer(settings, config["trust"]).to("meta").eval()  # a pretrained one comes with its weights


def _tokenizer_of_generator(config: Mapping[str, Any]) -> Tokenizer:
    if "_target_" in config["tokenizer"]:
        return _tokenizer(config)
    try:
        document = find(str(config["tokenizer"].get("ckpt"))) / "bundle.json"
    except FileNotFoundError as error:
        advice = "give one, or describe with a tokenizer's configuration (tokenizer=vqgan)"
        raise ConfigError(f"tokenizer.ckpt: {error}: {advice}") from None
    return build_tokenizer(json.loads(document.read_text())["tokenizer"]["config"], config["trust"]).eval()


def _generator(config: Mapping[str, Any], tokenizer: Tokenizer) -> Generator:
    with torch.device("cpu"):
        settings, _ = nest_teacher(config["generator"], tokenizer.spec, config["trust"])
    return build_generator(settings, tokenizer, _condition_spec(config), config["trust"]).eval()


def _tokens(spec: TokenSpec) -> Tokens | Latents:
    """One item."""
    if not spec.levels:
        return Latents(torch.empty(1, spec.width, spec.positions), spec)
    return Tokens(torch.empty(1, spec.levels, spec.positions, dtype=torch.int64), spec)


def _decode_flops(tokenizer: Tokenizer) -> int:
    try:
        return _flops(tokenizer.decode, _tokens(tokenizer.spec))
    except ValueError:  # an encoder alone
        return 0


def _sizes(config: Mapping[str, Any], spec: TokenSpec, trained: int, parts: Mapping[str, int]) -> tuple[dict[str, Any], Table]:
    """What both kinds of training report: ({"tokens", "bits"} of an item, the head of the table)."""
    with torch.device("cpu"):
        tokens, bits = int(spec.exists().sum()) if spec.levels else spec.positions, spec.bits
    copies = 4 if config["callbacks"]["ema"] is None else 5
    table = [(f"parameters, {name}", f"{count:,}") for name, count in parts.items()]
    table += [("tokens per item", f"{tokens:,}"), ("bits per item", f"{bits:,.1f}")]
    table.append(("training state (weights, gradients, ...)", f"{trained * 4 * copies / 2**20:,.0f} MiB"))
    return {"tokens": tokens, "bits": bits}, table


def _discriminators(config: Mapping[str, Any]) -> dict[str, int]:
    """Parameters of each discriminator of a training, which no bundle holds."""
    if not config.get("discriminator"):
        return {}
    from gentok.training.adversarial_task import build_adversaries

    adversaries = build_adversaries(config["discriminator"], _media_shape(config)[0], config["trust"])
    return {f"discriminator.{name}": _count(part) for name, part in adversaries.parts.items()}


def _tokenizer_report(config: Mapping[str, Any]) -> tuple[dict[str, Any], Table]:
    tokenizer = _tokenizer(config)
    media = torch.empty(1, *_media_shape(config))
    parts, total, discriminators = _parts(tokenizer), _count(tokenizer), _discriminators(config)
    encode, decode = _flops(tokenizer.encode, media), _decode_flops(tokenizer)
    # a generative decoder is called once in training, and many times to decode
    once = _flops(tokenizer, Batch(media, torch.zeros(1, dtype=torch.int64))) if tokenizer.generative else encode + decode
    step = 3 * once * config["batch_size"]
    sizes, table = _sizes(config, tokenizer.spec, total, {**parts, "tokenizer": total})
    table += [(f"parameters, {name}", f"{count:,}") for name, count in discriminators.items()]
    flops = {"per training step": step, "to encode one item": encode, "to decode one item": decode}
    table += [(f"FLOPs {what}", f"{count:.3e}") for what, count in flops.items()]
    report = {"parts": parts, "generator": 0, "tokenizer": total, "discriminators": discriminators, **sizes}
    return {**report, "flops_train_step": step, "flops_sample": decode}, table


def _generator_report(config: Mapping[str, Any]) -> tuple[dict[str, Any], Table]:
    tokenizer, condition_spec = _tokenizer_of_generator(config), _condition_spec(config)
    decode = _decode_flops(tokenizer)
    generator = _generator(config, tokenizer)
    with torch.device("cpu"):
        condition = condition_spec.parse(None, 1)
    forward = _flops(generator, _tokens(tokenizer.spec), condition.to("meta"))
    sampler = pick_sampler(config["sampler"], type(generator), config["trust"])
    # with a cache, a causal sampler computes every step once: the work of one pass over the whole sequence
    calls = 1 if isinstance(generator, Causal) else sampler.passes
    branches = 1 if config["task"]["guidance"] == 1 else 2
    step, sample = 3 * forward * config["batch_size"], forward * calls * branches + decode
    parts, totals = _parts(generator, "generator."), {"generator": _count(generator), "tokenizer": _count(tokenizer)}
    sizes, table = _sizes(config, tokenizer.spec, totals["generator"], parts | totals)
    table += [("FLOPs per training step", f"{step:.3e}"), (f"FLOPs per sample ({type(sampler).__name__})", f"{sample:.3e}")]
    report = {"parts": parts | _parts(tokenizer, "tokenizer."), **totals, **sizes}
    return {**report, "flops_train_step": step, "flops_sample": sample}, table
