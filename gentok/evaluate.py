"""`python -m gentok.evaluate ckpt=PATH`: what a tokenizer loses and what a generator makes, measured by a protocol that is written down.

reconstruction  PSNR, SSIM and recognised share of held-out items after encode and decode; FD-efflite0 to real images; use of the codebook;
                codes that survive decoding. Of sounds: SI-SDR and mel distance, also of the first levels alone
probe           how well a linear classifier reads the class from the quantized vectors of a tokenizer, or of a named part of them
generation      accuracy per class by a judge, precision, recall and KID in its features (without classes, in EfficientNet-lite0's),
                FD-efflite0 to held-out images, distance to the nearest training item, nll. Of sounds: what is heard of what held-out items
                say, mel Fréchet distance, distance to the nearest training item, calls, real-time factor, nll
nll             bits per token of a region of the held-out items' tokens given the rest, or of all: exact, or a bound, as the generator can

suite=audio_tokenizers ckpts=[PATH, PATH] compares tokenizers of sound (protocols/audio_suite.py).

Each writes NAME.json (metrics, and the protocol in words) and a picture into `out`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gentok.build import build
from gentok.bundle import Bundle, load
from gentok.errors import ConfigError
from gentok.evaluation import audio_suite, generation, likelihood, probe, reconstruction, sound, speech
from gentok.evaluation.context import Context
from gentok.sampling import pick_sampler

__all__ = ["evaluate", "main"]

PROTOCOLS = ("auto", "reconstruction", "probe", "generation", "nll", "both")
MEASURES = {"reconstruction": reconstruction.measure, "probe": probe.measure, "generation": generation.measure, "nll": likelihood.measure}
"""name -> (context, out: folder for pictures) -> (metrics, protocol)."""
OF_SOUNDS = {"reconstruction": sound.measure, "generation": speech.measure, "nll": likelihood.measure}
"""The same, of sounds."""
SUITES = {"audio_tokenizers": audio_suite.audio_tokenizers}
"""name -> what compares several checkpoints: config -> report."""


def evaluate(config: Mapping[str, Any]) -> dict[str, Any]:
    """conf/evaluate.yaml as a plain dict -> {"metrics": ..., "protocol": ...} (of "both": one such dict by name). Writes files into `out`.

    Raises ValueError, OSError or ImportError with a line for the person at the keyboard.
    """
    if config.get("suite") is not None:
        if config["suite"] not in SUITES:
            raise ConfigError(f"suite={config['suite']}: choose one of {', '.join(SUITES)}")
        return SUITES[config["suite"]](config)
    if config["ckpt"] is None:
        raise ConfigError("what is to be measured? ckpt=PATH, a bundle folder or a training checkpoint")
    if config["protocol"] not in PROTOCOLS:
        raise ConfigError(f"protocol={config['protocol']}: choose one of {', '.join(PROTOCOLS)}")
    if config["n"] < 1 or config["batch_size"] < 1:
        raise ConfigError(f"n={config['n']}, batch_size={config['batch_size']}: both must be at least 1")
    device = config["device"] if config["device"] != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    bundle = load(config["ckpt"], trust=config["trust"], ema=config["ema"], device=device)
    measures = OF_SOUNDS if bundle.spec.modality == "audio" else MEASURES
    names = {"auto": ["generation" if bundle.kind == "generator" else "reconstruction"], "both": ["reconstruction", "generation"]}
    names = names.get(config["protocol"], [config["protocol"]])
    if names[0] not in measures:
        raise ConfigError(f"protocol={config['protocol']} is of pictures; of sounds there are {', '.join(measures)}")
    modelled = {"generation", "nll"}.intersection(names)
    if modelled and bundle.generator is None:
        raise ConfigError(f"{config['ckpt']} holds a tokenizer alone: protocol={names[-1]} needs a generator's bundle or checkpoint")
    if "nll" not in names and config.get("region") is not None:
        raise ConfigError(f"region={config['region']} is of protocol=nll: set that too, or leave region out")
    if config.get("prefixes") and ("reconstruction" not in names or measures is OF_SOUNDS):
        raise ConfigError("prefixes is of protocol=reconstruction of pictures (of sounds all levels are measured anyway): leave it out")
    if "generation" in names:
        pick_sampler(config["sampler"], type(bundle.generator), config["trust"])  # a mismatch stops before anything is computed
    data = _data(config, bundle)
    if modelled and bundle.condition_spec != data.condition_spec.without(bundle.tokenizer.written_condition):
        raise ConfigError(
            f"the generator is conditioned on {_words(bundle.condition_spec)}, these data have {_words(data.condition_spec)}: "
            "evaluate with the data it was trained on"
        )
    out = Path(config["out"])
    out.mkdir(parents=True, exist_ok=True)
    context = Context(config, bundle, data, device)
    reports = {}
    for name in names:
        metrics, protocol = measures[name](context, out)
        report = reports[name] = {"metrics": metrics, "protocol": {**context.protocol(), **protocol}}
        (out / f"{name}.json").write_text(json.dumps(report, indent=1, default=str) + "\n")
        _show(name, metrics)
    print(f"written to {out}")
    return reports if len(reports) > 1 else reports[names[0]]


def _data(config: Mapping[str, Any], bundle: Bundle) -> Any:
    chosen = config.get("data") or bundle.meta.get("data")
    if not isinstance(chosen, Mapping):
        raise ConfigError("the checkpoint does not say what it was trained on: choose with data=mnist5k, or data=folder data.path=FOLDER")
    data = build(chosen, trust=config["trust"], where="data")
    wanted, rate = bundle.spec.media_shape, getattr(data, "sample_rate", None)
    if rate != bundle.spec.sample_rate:
        kinds = [f"sounds at {hz} Hz" if hz else "pictures" for hz in (bundle.spec.sample_rate, rate)]
        raise ConfigError(f"this model is of {kinds[0]}, the data are {kinds[1]}: set data.sample_rate, or choose other data")
    if wanted is not None and tuple(wanted)[0] != tuple(data.media_shape)[0]:
        raise ConfigError(f"this model is of media {tuple(wanted)}, the data have {tuple(data.media_shape)}: set their channels and size")
    return data


def _words(spec: Any) -> str:
    parts = (f"{name} ({', '.join(part.names[:12])})" if part.kind == "class" else name for name, part in spec.parts)
    return ", ".join(parts) or "nothing"


def _show(name: str, metrics: Mapping[str, Any]) -> None:
    print(f"\n{name}")
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            value = "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items())
        elif isinstance(value, list):
            value = "  ".join(f"{v:.4g}" for v in value)
        print(f"  {key:34} {f'{value:.4f}' if isinstance(value, float) else value}")


def main() -> None:
    """`python -m gentok.evaluate`."""
    from gentok.cli import run

    run("evaluate", evaluate)


if __name__ == "__main__":
    main()
