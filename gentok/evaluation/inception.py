"""inception=WEIGHTS reference=FILE.npz: FID, sFID, Inception score, precision and recall, as ImageNet models are compared.

Of a model's samples, drawn here, or of images that are there already (samples=FILE.npz, as `sample.py format=npz` writes them). Several
processes share the drawing and the features; memory holds features, not images. No weights ship with gentok.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gentok.bundle import load
from gentok.data.npz_images import NpzImages, npz_array, npz_arrays
from gentok.errors import ConfigError, FormatError
from gentok.evaluation.context import class_names, in_words, left_out
from gentok.evaluation.sharing import Sharing, image_features, sample_features
from gentok.launch import Team
from gentok.metrics.distance import LEAST
from gentok.metrics.inception import IS_PART, Statistics, measures
from gentok.samplers.base import described
from gentok.samplers.request import NetworkCalls
from gentok.sampling import pick_sampler

__all__ = ["measure"]

_K = 3
_STORED = {"pooled": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
"""Features -> ADM's names of their mean and covariance."""


def measure(config: Mapping[str, Any], crew: Team) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Measures samples against a reference.

    Args:
        config: conf/evaluate.yaml as a plain dict.
        crew: the processes, all of which call this.

    Returns:
        metrics, protocol; None on all processes but the first.

    Raises:
        ValueError, OSError, ImportError: with a line for the person at the keyboard.
    """
    sharing, request, statistics = crew.agreed(lambda: _prepared(config, crew))
    if crew.rank > 0:
        sharing.serve()
        return None
    protocol: dict[str, Any] = {}
    if request is None:
        made = _joined(sharing.run(image_features, path=config["samples"]))
    else:
        parts = sharing.run(sample_features, **request)
        made, protocol = _joined(parts), _of_sampling(config, sharing, request, parts)
    reference = None
    if "arr_0" in npz_arrays(config["reference"]):
        reference = _joined(sharing.run(image_features, path=config["reference"]))
    sharing.finish()
    stored = sorted(statistics)
    if reference is not None:
        statistics = {name: Statistics.of(reference[name]) for name in _STORED} | statistics
    figures = measures(*(_on(features, crew.device) for features in (made, reference)), statistics, _K)
    spread = "; of the mean and covariance that the file holds" if stored else ""
    protocol |= {
        "what": in_words("inception", n=len(made["pooled"]), part=IS_PART, k=_K, stored=spread),
        "weights": str(config["inception"]),
        "reference": str(config["reference"]),
        "reference_images": 0 if reference is None else len(reference["pooled"]),
        "stored_statistics": stored,
        "samples": str(config["samples"] or config["ckpt"]),
    }
    if reference is None:
        left_out(protocol, f"precision and recall: {config['reference']} holds no images (arr_0)")
    for name, of in (("sfid", "spatial"), ("fid", "pooled")):
        if of not in statistics:
            left_out(protocol, f"{name}: {config['reference']} holds neither images nor {' and '.join(_STORED[of])}")
    return {"samples": len(made["pooled"]), **figures}, protocol


def _prepared(config: Mapping[str, Any], crew: Team) -> tuple[Sharing, dict[str, Any] | None, dict[str, Statistics]]:
    """What is to be done, all files looked at: the request for samples (None: they are there), and stored statistics."""
    if config["reference"] is None:
        raise ConfigError("inception=WEIGHTS measures against reference=FILE.npz, such as ADM's VIRTUAL_imagenet256_labeled.npz")
    if (config["ckpt"] is None) == (config["samples"] is None):
        raise ConfigError("inception=WEIGHTS measures a model, ckpt=PATH, or images that are there, samples=FILE.npz: give one of both")
    statistics = _statistics(config["reference"])
    if config["samples"] is not None:
        sharing, request, n = Sharing(config, crew), None, len(NpzImages(config["samples"]))
    else:
        bundle = load(config["ckpt"], trust=config["trust"], ema=config["ema"], device=crew.device)
        if bundle.generator is None or bundle.spec.modality == "audio":
            raise ConfigError(f"{config['ckpt']}: inception=WEIGHTS is of generators of images")
        names = class_names(bundle.condition_spec)
        if bundle.condition_spec.parts and not names:
            raise ConfigError("this model is not conditioned on classes: draw with sample.py format=npz, then samples=FILE.npz")
        guidance = config["guidance"] if config["guidance"] is not None else bundle.meta.get("guidance", 1.0)
        n = math.ceil(config["n"] / len(names)) * len(names) if names else config["n"]
        request = {"n": n, "condition": list(range(len(names))) if names else None, "guidance": guidance}
        sharing = Sharing(config, crew, bundle, pick_sampler(config["sampler"], type(bundle.generator), config["trust"]))
    real = len(NpzImages(config["reference"])) if "arr_0" in npz_arrays(config["reference"]) else LEAST
    if min(n, real) < (_K + 1 if config["few"] else LEAST):
        some = "" if real == LEAST else f" against {real:,}"
        raise ConfigError(f"FID of {n:,} images{some} says nothing: it needs {LEAST:,} on both sides (few=true computes it all the same)")
    _ = sharing.inception
    return sharing, request, statistics


def _statistics(path: str) -> dict[str, Statistics]:
    """Those that the reference holds. Raises FileNotFoundError, or FormatError where it holds neither these nor images."""
    names, found = npz_arrays(path), {}
    for features, (mean, covariance) in _STORED.items():
        if mean in names and covariance in names:
            arrays = [torch.from_numpy(npz_array(path, name).copy()) for name in (mean, covariance)]
            width = len(arrays[0])
            if [tuple(array.shape) for array in arrays] != [(width,), (width, width)] or not all(a.is_floating_point() for a in arrays):
                raise FormatError(f"{path}: {mean} and {covariance} are no mean [D] and covariance [D, D]")
            found[features] = Statistics(*arrays)
    if "arr_0" in names:
        NpzImages(path)
    elif not found:
        raise FormatError(f"{path} holds neither images (arr_0) nor statistics (mu, sigma), but {', '.join(names) or 'nothing'}")
    return found


def _joined(parts: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in ("pooled", "spatial", "logits")}


def _on(features: dict[str, Tensor] | None, device: str) -> dict[str, Tensor] | None:
    """Distances of 50,000 rows take minutes on a CPU."""
    return features and {**features, "pooled": features["pooled"].to(device)}


def _of_sampling(config: Mapping[str, Any], sharing: Sharing, request: Mapping[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
    calls = NetworkCalls()
    for part in parts:
        calls.merge(part["network_calls"])
    return {
        "sampler": {**described(sharing.sampler), "name": type(sharing.sampler).__name__},
        "guidance": request["guidance"],
        "guidance_schedule": config["guidance_schedule"],
        "classes": "equally many samples of each, in turn" if request["condition"] else "none",
        "seed": config["seed"],
        "averaged_weights": config["ema"],
        "calls_per_sample": torch.cat([part["calls"] for part in parts]).double().mean().item(),
        "network_calls": {name: {"calls": c, "positions": p} for name, (c, p) in calls.items()},
        "seconds_of_sampling": sum(part["seconds"] for part in parts),
    }
