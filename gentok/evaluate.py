"""`python -m gentok.evaluate ckpt=PATH`: what a tokenizer loses and what a generator makes, measured by a
protocol that is written down.

reconstruction  PSNR, SSIM and recognised share of held-out items after encode and decode; FD-efflite0 to real
                images; use of the codebook; codes that survive decoding. Of sounds: SI-SDR and mel distance,
                also of the first levels alone
probe           how well a linear classifier reads the class from the quantized vectors of a tokenizer, or of
                a named part of them
generation      accuracy per class by an eval classifier, precision, recall and KID in its features (without
                classes, in EfficientNet-lite0's), FD-efflite0 to held-out images, distance to the nearest
                training item, nll. Of sounds: what is recognised of what held-out items say, mel Fréchet
                distance, distance to the nearest training item, calls, real-time factor, nll. Of icons: how many are
                valid, different, new, the nearest training icon, nll
nll             bits per token of a region of the held-out items' tokens given the rest, or of all: exact, or
                a bound, as the generator can
inception       with inception=WEIGHTS reference=FILE.npz: FID, sFID, Inception score, precision and recall of a
                model's samples, or of samples=FILE.npz

Several processes (trainer=ddp) share the work of networks; what is measured is what one process measures.

suite=audio_tokenizers ckpts=[PATH, PATH] compares tokenizers of sound (gentok/evaluation/audio_suite.py).

Each writes NAME.json (metrics, and the protocol in words) and an image into `out`. The data are those that
the model was trained on, unless data=... names others; files or addresses that the model names are not opened
without trust=[paths], since it may come from a stranger.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gentok.build import build, check, identify
from gentok.bundle import Bundle, load
from gentok.errors import ConfigError
from gentok.evaluation import (
    audio_suite,
    drawing_generation,
    generation,
    inception,
    likelihood,
    probe,
    reconstruction,
    sound_generation,
    sound_reconstruction,
)  # fmt: skip
from gentok.evaluation.context import Context
from gentok.evaluation.sharing import Sharing
from gentok.interfaces import MediaData
from gentok.launch import Team, launched, team
from gentok.sampling import pick_sampler
from gentok.types import ConditionSpec

__all__ = ["evaluate", "main"]

CLAIM = 1_000_000
"""The largest number in a description of data that a model brings along."""
PROTOCOLS = ("auto", "reconstruction", "probe", "generation", "nll", "inception", "both")
MEASURES = {"reconstruction": reconstruction.measure, "probe": probe.measure, "generation": generation.measure, "nll": likelihood.measure}
"""name -> (context, out: folder for images) -> (metrics, protocol)."""
OF_SOUNDS = {"reconstruction": sound_reconstruction.measure, "generation": sound_generation.measure, "nll": likelihood.measure}
"""The same, of sounds."""
OF_DRAWINGS = {
    "reconstruction": drawing_generation.reconstruction, "generation": drawing_generation.measure, "nll": likelihood.measure,
}  # fmt: skip
"""The same, of icons."""
SUITES = {"audio_tokenizers": audio_suite.audio_tokenizers}
"""name -> what compares several checkpoints: config -> report."""

ACTS_ON = {
    "ckpts": ("suite",), "region": ("nll",), "prefixes": ("reconstruction", "suite"), "n": ("generation", "inception"),
    "guidance": ("generation", "inception"), "guidance_schedule": ("generation", "inception"), "sampler": ("generation", "inception"),
    "seed": ("generation", "nll", "inception"), "few": ("reconstruction", "generation", "inception"),
    "classifier": ("reconstruction", "generation"),
    "classifier_steps": ("reconstruction", "generation"), "max_train": ("reconstruction", "probe", "generation", "suite"),
    "ckpt": ("reconstruction", "probe", "generation", "nll", "inception"),
    "protocol": ("reconstruction", "probe", "generation", "nll", "inception"),
    "inception": ("inception",), "reference": ("inception",), "samples": ("inception",),
}  # fmt: skip
"""Keys that act on some protocols only, or on the suite."""
STRICT = ("ckpts", "region", "prefixes", "reference", "samples")
"""Of these, the keys that are refused where they cannot act, and not only mentioned."""


def evaluate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Measures a model. Writes files into `out`.

    Args:
        config: conf/evaluate.yaml as a plain dict.

    Returns:
        {"metrics": ..., "protocol": ...}; of protocol=both one such dict by name; of a suite its report; {} on all
        processes but the first.

    Raises:
        ValueError, OSError, ImportError: with a line for the person at the keyboard.
    """
    trust = list(config["trust"])
    config = {**config, "trust": [name for name in trust if name != "paths"]}
    crew = team(config)
    if config.get("suite") is not None:
        return _suite(config, crew)
    out, reports = Path(crew.share(config["out"])), {}
    if config["inception"] is not None or config["protocol"] == "inception":
        crew.agreed(lambda: _check_inception(config, crew))
        measured = inception.measure(config, crew)
        if measured is not None:
            reports["inception"] = _written(out, "inception", *measured)
    else:
        context, measures = crew.agreed(lambda: _prepared(config, crew, "paths" in trust))
        if crew.rank > 0:
            context.sharing.serve()
            return {}
        out.mkdir(parents=True, exist_ok=True)
        for name, measure in measures.items():
            metrics, protocol = measure(context, out)
            reports[name] = _written(out, name, metrics, {**context.protocol(), **protocol})
        context.sharing.finish()
    if reports:
        print(f"written to {out}")
    return reports if len(reports) != 1 else next(iter(reports.values()))


def _written(out: Path, name: str, metrics: dict[str, Any], protocol: dict[str, Any]) -> dict[str, Any]:
    """The report of a protocol, in OUT/NAME.json and on the screen."""
    report = {"metrics": metrics, "protocol": protocol}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(report, indent=1, default=str) + "\n")
    _show(name, metrics)
    return report


def _suite(config: Mapping[str, Any], crew: Team) -> dict[str, Any]:
    if config["suite"] not in SUITES:
        raise ConfigError(f"suite={config['suite']}: choose one of {', '.join(SUITES)}")
    if crew.world > 1:
        raise ConfigError(f"suite={config['suite']} runs in one process: leave trainer out")
    _check_keys(config, ["suite"], f"suite={config['suite']}")
    return SUITES[config["suite"]](config)


def _check_inception(config: Mapping[str, Any], crew: Team) -> None:
    if config["inception"] is None:
        raise ConfigError("protocol=inception needs inception=WEIGHTS, the file pt_inception-2015-12-05-6726825d.pth")
    if config["protocol"] not in ("auto", "inception"):
        raise ConfigError(f"inception=WEIGHTS is of protocol=inception and has no effect on protocol={config['protocol']}: leave it out")
    _check_keys(config, ["inception"], "protocol=inception", crew.rank == 0)


def _prepared(config: Mapping[str, Any], crew: Team, trusted: bool) -> tuple[Context, dict[str, Any]]:
    """The model and its data, and name -> what measures it. trusted: see `_data`."""
    if config["ckpt"] is None:
        raise ConfigError("what is to be measured? ckpt=PATH, a bundle folder or a training checkpoint")
    if config["protocol"] not in PROTOCOLS:
        raise ConfigError(f"protocol={config['protocol']}: choose one of {', '.join(PROTOCOLS)}")
    if config["n"] < 1 or config["batch_size"] < 1:
        raise ConfigError(f"n={config['n']}, batch_size={config['batch_size']}: both must be at least 1")
    bundle = load(config["ckpt"], trust=config["trust"], ema=config["ema"], device=crew.device)
    measures = OF_SOUNDS if bundle.spec.modality == "audio" else OF_DRAWINGS if bundle.tokenizer.draws else MEASURES
    names = {"auto": ["generation" if bundle.kind == "generator" else "reconstruction"], "both": ["reconstruction", "generation"]}
    names = names.get(config["protocol"], [config["protocol"]])
    if names[0] not in measures:
        what = "sounds" if measures is OF_SOUNDS else "icons"
        raise ConfigError(f"protocol={config['protocol']} is of images; of {what} there are {', '.join(measures)}")
    modelled = {"generation", "nll"}.intersection(names)
    if modelled and bundle.generator is None:
        raise ConfigError(f"{config['ckpt']} holds a tokenizer alone: protocol={names[-1]} needs a generator's bundle or checkpoint")
    _check_keys(config, names, f"protocol={' and '.join(names)}", crew.rank == 0)
    if config.get("prefixes") and measures is not MEASURES:
        raise ConfigError(
            "prefixes is of protocol=reconstruction of images (of sounds all levels are measured anyway, icons have one): leave it out"
        )
    data = _data(config, bundle, trusted)
    if modelled and bundle.condition_spec != data.condition_spec.without(bundle.tokenizer.written_condition):
        raise ConfigError(
            f"the generator is conditioned on {_named(bundle.condition_spec)}, these data have {_named(data.condition_spec)}: "
            "evaluate with the data it was trained on"
        )
    sampler = None
    if "generation" in names:  # a mismatch stops before anything is computed
        sampler = pick_sampler(config["sampler"], type(bundle.generator), config["trust"])
    context = Context(config, bundle, data, crew.device, Sharing(config, crew, bundle, sampler, data))
    return context, {name: measures[name] for name in names}


def _check_keys(config: Mapping[str, Any], names: Sequence[str], where: str, told: bool = True) -> None:
    """Says which keys were set and cannot act on what is measured, if `told`. Raises ConfigError for those of
    STRICT, and for all in a suite."""
    from gentok.cli import conf_dir

    defaults = yaml.safe_load((conf_dir() / "evaluate.yaml").read_text(encoding="utf-8"))
    given = {**config, "sampler": (config.get("sampler") or {}).get("_target_")}
    for key, acts_on in ACTS_ON.items():
        if given.get(key) == defaults.get(key) or set(acts_on).intersection(names):
            continue
        right = " or ".join("a suite" if name == "suite" else f"protocol={name}" for name in acts_on)
        line = f"{key}={given[key]} is of {right} and has no effect on {where}"
        if key in STRICT or "suite" in names:
            advice = " (max_held_out says how many items are measured)" if key == "n" else ""
            raise ConfigError(f"{line}: leave it out{advice}")
        if told:
            print(f"gentok: {line}")


def _data(config: Mapping[str, Any], bundle: Bundle, trusted: bool) -> MediaData:
    """The data that the command names, else those that the model names. trusted: whether the model may name
    files and addresses.

    Raises ConfigError where there are none, or where they do not fit the model.
    """
    chosen, how = config.get("data"), {"trust": config["trust"], "where": "data", "role": MediaData}
    if not isinstance(chosen, Mapping):
        chosen = identify(bundle.meta.get("data"))
        if not isinstance(chosen, Mapping):
            raise ConfigError(
                "the checkpoint does not say what it was trained on: choose with data=mnist5k, or data=folder data.path=FOLDER"
            )
        try:
            check(chosen, **how, stored=not trusted)
            if not trusted:
                _check_claims(chosen)
        except ConfigError as error:
            own = f"data={str(chosen.get('_target_')).removeprefix('data/')} and its keys"
            raise ConfigError(
                f"the checkpoint's own data are not opened ({error}): name the data on the command line ({own}), "
                "or set trust=[paths] for a model of your own"
            ) from error
    data = build(chosen, **how)
    wanted = bundle.spec.media_shape
    if data.sample_rate != bundle.spec.sample_rate:
        kinds = [f"sounds at {hz} Hz" if hz else "images" for hz in (bundle.spec.sample_rate, data.sample_rate)]
        raise ConfigError(f"this model is of {kinds[0]}, the data are {kinds[1]}: set data.sample_rate, or choose other data")
    if wanted is not None and tuple(wanted)[0] != tuple(data.media_shape)[0]:
        raise ConfigError(f"this model is of media {tuple(wanted)}, the data have {tuple(data.media_shape)}: set their channels and size")
    return data


def _check_claims(data: Mapping[str, Any]) -> None:
    """Raises ConfigError where a stranger's description of data asks for more than anyone has evaluated on."""
    for key, value in data.items():
        numbers = value if isinstance(value, list) else [value]
        if key != "seed" and any(isinstance(n, (int, float)) and abs(n) > CLAIM for n in numbers):
            raise ConfigError(f"data.{key}={value} asks for more than {CLAIM:,}")


def _named(spec: ConditionSpec) -> str:
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

    run("evaluate", lambda config: launched(config) or evaluate(config))


if __name__ == "__main__":
    main()
