"""Builds every tokenizer and codebook of conf/ for the contract tests: a new yaml is found without a change here."""

from __future__ import annotations

import copy
import functools
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf

from gentok.build import build, resolve
from gentok.rng import RowRNG
from gentok.types import Batch, Condition, Ids

CONF = Path(__file__).resolve().parents[2] / "conf"
OUTSIDE = Path(os.environ.get("GENTOK_TEST_CONF", os.devnull))
"""A conf folder of components outside gentok, tested like its own; GENTOK_TEST_TRUST names their packages, comma-separated."""
TRUST = tuple(filter(None, os.environ.get("GENTOK_TEST_TRUST", "").split(",")))
SMALL = 6_000_000
"""Parameters above which a tokenizer is only built on the meta device."""
PLAIN = {"_target_": "gentok.codebooks.vq.VQ", "vocab_size": 16, "dim": 4, "width": 8}
QUICK = {
    "flextok": {"registers": 8, "encoder_width": 32, "encoder_depth": 1, "decoder_width": 32, "decoder_depth": 1, "steps": 2},
    "codec": {"encoder": {"filters": 8, "ratios": [4]}, "decoder": {"filters": 8, "ratios": [4]}},
    "codec_istft": {
        "encoder": {"filters": 8, "ratios": [4], "padding": "zero"},
        "decoder": {"hop": 4, "n_fft": 16, "filters": 16, "hidden": 48, "blocks": 1},
    },
    "semantic_speech": {
        "recogniser": {"inner": 16, "depth": 1, "heads": 2},
        "encoder": {"inner": 16, "depth": 1, "heads": 2, "pool": 1, "mels": 3, "mel_hop": 4, "n_fft": 16},
        "decoder": {
            "inner": 16,
            "depth": 1,
            "heads": 2,
            "upsample": 2,
            "vocoder": {"_target_": "gentok.nn.istft_head.ISTFTDecoder", "width": 3, "hop": 4, "filters": 16, "blocks": 1, "n_fft": 16},
        },
    },
}
"""Smaller than its yaml, by tokenizer (parts of a part: those alone): what is tested does not depend on the size."""
IMAGE, SOUND = (1, 16, 16), (1, 64)
"""What the small ones are built for."""
HALVES = {"_target_": "gentok.codebooks.dual.DualCodebook", "vocab_size": 16, "semantic": 4, "pixel": 4}
"""What stands in for PLAIN where a tokenizer needs the parts of a dual codebook."""
LOSSES = {"_target_": "gentok.losses.reconstruction.Reconstruction", "l1": 0.0, "l2": 1.0}


def _files(group: str) -> dict[str, Path]:
    return {path.stem: path for conf in (CONF, OUTSIDE) for path in (conf / group).glob("*.yaml")}


def read(group: str, name: str) -> dict[str, Any]:
    return copy.deepcopy(_read(_files(group)[name]))


@functools.cache
def _read(path: Path) -> dict[str, Any]:
    config = yaml.safe_load(path.read_text())
    elsewhere = {key: value for key, value in config.items() if isinstance(value, str) and value.startswith("${")}  # another group
    config = {**OmegaConf.to_container(OmegaConf.create({**config, **dict.fromkeys(elsewhere)}), resolve=True), **elsewhere}
    if "sides" in config:  # a pyramid has one size: that of the small media here
        config["sides"] = [1, 2, 3, 4]
    return config


def names(group: str) -> list[str]:
    """Configurations that name a component themselves and load no weights (from a bundle, or that others trained), also not inside."""
    found = {name: read(group, name) for name in _files(group)}
    return sorted(name for name, config in found.items() if "_target_" in config and not {"path", "speech", "whole"} & set(config))


def needed_parts(name: str) -> tuple[str, ...]:
    """The parts that the tokenizer needs its codebook to have."""
    return resolve(read("tokenizer", name)["_target_"], TRUST).needs_parts


def missing_parts(name: str, codebook: str) -> list[str]:
    """What the tokenizer needs and conf/codebook/CODEBOOK.yaml does not have: parts, or one code for every cell."""
    target, config = resolve(read("tokenizer", name)["_target_"], TRUST), read("codebook", codebook)
    needed = needed_parts(name)
    missing = [part for part in needed if part not in build(config, trust=TRUST).parts] if needed else []
    one_rate = ["one rate for all levels"] if "strides" in config and not is_sound(name) else []
    return missing + one_rate + (["one code per cell"] if "sides" in config and target.one_code_per_cell else [])


def is_sound(name: str) -> bool:
    return "sample_rate" in read("tokenizer", name)


def large(name: str) -> tuple[int, ...]:
    """Media of the usual size, for tokenizers that are only described."""
    return (read("tokenizer", name)["encoder"].get("channels", 1), 24000) if is_sound(name) else (3, 256, 256)


def merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`config` with `changes`; of a part that both describe, only what the changes name."""
    both = [key for key in changes if isinstance(changes[key], dict) and isinstance(config.get(key), dict)]
    return {**config, **changes, **{key: {**config[key], **changes[key]} for key in both if "_target_" not in changes[key]}}


def make(
    name: str, codebook: dict[str, Any] | None = None, shape=None, losses: Any = None, whole: bool = False, **overrides: Any
) -> torch.nn.Module:
    """The tokenizer of conf/tokenizer/NAME.yaml around a codebook's configuration; whole: at the yaml's size."""
    shape = shape or (SOUND if is_sound(name) else IMAGE)
    config = read("tokenizer", name)
    given = {"losses": losses or LOSSES} if "losses" in config else {}  # tokenizer=icon learns nothing
    config = merged({**config, **given}, {} if whole else QUICK.get(name, {}))
    config = merged(config, overrides)
    if config.get("symbols", 0) is None:
        config["symbols"] = ["a", "b"]
    if "codebook" in config:
        config["codebook"] = codebook or (HALVES if needed_parts(name) else PLAIN)
        for part, width in (("encoder", "in_width"), ("decoder", "width")):  # a codec's parts are built beside the codebook, not around it
            if isinstance(config.get(part), dict):
                config[part] = {**config[part], "width": getattr(build(config["codebook"], trust=TRUST), width)}
    torch.manual_seed(0)
    return build(config, trust=TRUST, media_shape=shape)


@functools.cache
def parameters(name: str) -> int:
    with torch.device("meta"):
        model = make(name, shape=large(name), whole=True)
    return sum(p.numel() for p in model.parameters())


def media(batch: int = 4, shape=IMAGE, seed: int = 0) -> torch.Tensor:
    """Smooth images or sounds in [-1, 1]: low frequencies of random phase."""
    generator = torch.Generator().manual_seed(seed)
    if len(shape) == 2:
        coarse = torch.randn(batch, shape[0], -(-shape[1] // 8), generator=generator)
        return torch.nn.functional.interpolate(coarse, shape[1:], mode="linear").tanh()
    coarse = torch.randn(batch, shape[0], 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, shape[1:], mode="bicubic").tanh()


def media_of(model: torch.nn.Module, batch: int = 4) -> torch.Tensor:
    """Such media as fill the grid of a tokenizer."""
    spec = model.spec
    return media(batch, spec.media_shape if spec.modality == "image" else (*spec.media_shape, spec.positions * model.hop))


def batch_of(x: torch.Tensor) -> Batch:
    text = torch.arange(2 * len(x)).view(-1, 2) % 2  # for those that learn from transcripts
    return Batch(x, torch.arange(len(x)), Condition({"text": Ids(text)}))


def noise_of(x: torch.Tensor, step: int = 0) -> RowRNG:
    return RowRNG.of(0, torch.arange(len(x)), step)


def learns(model: torch.nn.Module, x: torch.Tensor, steps: int = 20, share: float = 0.8) -> bool:
    """Whether so many training steps on x bring the squared error below that share. The model is then in training mode."""
    optimizer, errors, rows = torch.optim.Adam(model.train().parameters(), lr=4e-3), [], torch.arange(len(x))
    for step in range(steps):
        out = model(Batch(x, rows), RowRNG.of(0, rows, step))
        optimizer.zero_grad()
        sum(out.losses.values()).backward()
        optimizer.step()
        errors.append(float(out.losses["l2"].detach()))
    return min(errors[-3:]) < share * errors[0]


def trained_on(model: torch.nn.Module, x: torch.Tensor, codes: torch.Tensor) -> None:
    """Three training steps on x: the first finds these codes, each reaches every parameter, and the loss falls."""
    optimizer, losses = torch.optim.Adam(model.train().parameters(), 1e-3), []
    for step in range(3):
        out = model(batch_of(x), noise_of(x))
        assert step or torch.equal(out.tokens.codes, codes)
        losses.append(sum(out.losses.values()))
        losses[-1].backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[2] < losses[0]
