"""`python -m gentok.evaluate ckpt=PATH`: what a tokenizer loses and what a generator makes, measured by a protocol that is written down.

reconstruction  PSNR, SSIM and recognised share of held-out items after encode and decode; FD-efflite0 to real images; use of the codebook;
                codes that survive decoding
probe           how well a linear classifier reads the class from the quantized vectors of a tokenizer, or of a named part of them
generation      accuracy per class by a judge, precision, recall and KID in its features (without classes, in EfficientNet-lite0's),
                FD-efflite0 to held-out images, distance to the nearest training item, nll
nll             bits per token of a region of the held-out items' tokens given the rest, or of all: exact, or a bound, as the generator can

Each writes NAME.json (metrics, and the protocol in words) and a picture into `out`.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gentok
from gentok.build import ConfigError, build
from gentok.bundle import Bundle, load
from gentok.data.pictures import pairs, save_grid
from gentok.data.progress import progress
from gentok.data.sets import batches, whole
from gentok.generators.base import AnyOrder, Causal
from gentok.judge import find_judge
from gentok.metrics.classifier import STEPS, classifier, predict
from gentok.metrics.distance import SIZE, distances, enough, halves, image_features, of_reconstructions, of_samples
from gentok.metrics.generation import accuracy, alike, check_variety, copying, variety
from gentok.metrics.image import frechet
from gentok.metrics.probe import POOLINGS, WEIGHTS, linear_probe, parts_of, pooled, quantized
from gentok.metrics.reconstruction import reconstruction
from gentok.noise import Noise
from gentok.regions import SCATTERED, region_cells, region_nll
from gentok.sampling import Samples, pick_sampler, sample

__all__ = ["evaluate", "main"]

PROTOCOLS = ("auto", "reconstruction", "probe", "generation", "nll", "both")
GOOD_JUDGE = {"trained here": 0.97, "stored": 0.85}
"""Share of held-out items that a judge must read right: digits, and photographs."""
NLL_SAMPLES = 4
"""Masks per item where the likelihood is a bound; a causal model's is exact and takes none."""


def evaluate(config: Mapping[str, Any]) -> dict[str, Any]:
    """conf/evaluate.yaml as a plain dict -> {"metrics": ..., "protocol": ...} (of "both": one such dict by name). Writes files into `out`.

    Raises ValueError, OSError or ImportError with a line for the person at the keyboard.
    """
    if config["protocol"] not in PROTOCOLS:
        raise ConfigError(f"protocol={config['protocol']}: choose one of {', '.join(PROTOCOLS)}")
    if config["n"] < 1 or config["batch_size"] < 1:
        raise ConfigError(f"n={config['n']}, batch_size={config['batch_size']}: both must be at least 1")
    device = config["device"] if config["device"] != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    bundle = load(config["ckpt"], trust=config["trust"], ema=config["ema"], device=device)
    names = {"auto": ["generation" if bundle.kind == "generator" else "reconstruction"], "both": ["reconstruction", "generation"]}
    names = names.get(config["protocol"], [config["protocol"]])
    modelled = {"generation", "nll"}.intersection(names)
    if modelled and bundle.generator is None:
        raise ConfigError(f"{config['ckpt']} holds a tokenizer alone: protocol={names[-1]} needs a generator's bundle or checkpoint")
    if "nll" not in names and config.get("region") is not None:
        raise ConfigError(f"region={config['region']} is of protocol=nll: set that too, or leave region out")
    if "generation" in names:
        pick_sampler(config["sampler"], type(bundle.generator), config["trust"])  # a mismatch stops before anything is computed
    data = _data(config, bundle)
    if modelled and bundle.condition_spec != data.condition_spec:
        raise ConfigError(
            f"the generator is conditioned on {_words(bundle.condition_spec)}, these data have {_words(data.condition_spec)}: "
            "evaluate with the data it was trained on"
        )
    out = Path(config["out"])
    out.mkdir(parents=True, exist_ok=True)
    context = _Context(config, bundle, data, device)
    reports = {}
    for name in names:
        metrics, protocol = {"reconstruction": _reconstruction, "probe": _probe, "generation": _generation, "nll": _nll}[name](context, out)
        report = reports[name] = {"metrics": metrics, "protocol": {**context.protocol(), **protocol}}
        (out / f"{name}.json").write_text(json.dumps(report, indent=1, default=str) + "\n")
        _show(name, metrics)
    print(f"written to {out}")
    return reports if len(reports) > 1 else reports[names[0]]


# ------------------------------------------------------------------------------------------------------- what both share


def _data(config: Mapping[str, Any], bundle: Bundle) -> Any:
    chosen = config.get("data") or bundle.meta.get("data")
    if not isinstance(chosen, Mapping):
        raise ConfigError("the checkpoint does not say what it was trained on: choose with data=mnist5k, or data=folder data.path=FOLDER")
    data = build(chosen, trust=config["trust"], where="data")
    wanted = bundle.spec.media_shape
    if wanted is not None and tuple(wanted)[0] != tuple(data.media_shape)[0]:
        raise ConfigError(f"this model is of media {tuple(wanted)}, the data have {tuple(data.media_shape)}: set their channels and size")
    return data


def _words(spec: Any) -> str:
    parts = (f"{name} ({', '.join(part.names[:12])})" if part.kind == "class" else name for name, part in spec.parts)
    return ", ".join(parts) or "nothing"


@dataclass
class _Context:
    """The model, its data, and, made when first asked for, the media in memory and the judge."""

    config: Mapping[str, Any]
    bundle: Bundle
    data: Any
    device: str

    def __post_init__(self) -> None:
        self._media: dict[str, tuple[Tensor, Tensor | None]] = {}
        self._judge: tuple[Any, dict[str, Any]] | None = None

    def media(self, split: str) -> tuple[Tensor, Tensor | None]:
        """media float [n, ...] and labels (None without classes) of "train" or "held_out", up to the configured number and memory."""
        if split not in self._media:
            data = getattr(self.data, split)
            fits = int(self.config["max_memory"] * 2**30) // (4 * math.prod(data.media_shape))
            count = min(len(data), self.config[f"max_{split}"], max(1, fits))
            rows = choice(len(data), count).sort().values.tolist()
            with progress(f"reading {split}", count, shown=self.config["progress"] and count > 5000) as advance:
                self._media[split] = whole(data, rows=rows, advance=advance)
        return self._media[split]

    def features(self, media: Tensor, what: str, real: bool) -> Tensor:
        """EfficientNet-lite0's of media, those of real ones from the cache where they are there."""
        shown = self.config["progress"] and len(media) >= 200
        return image_features(
            media, device=self.device, real=real, cache=self.config["cache"],
            progress=lambda n: progress(f"features of {what}", n, "images", shown),
        )  # fmt: skip

    @property
    def classes(self) -> tuple[str, ...]:
        return next((part.names for name, part in self.data.condition_spec.parts if name == "class"), ())

    def judge(self) -> tuple[Any, dict[str, Any]]:
        """The classifier of these data and its protocol, its accuracy on held-out items included. Only where there are classes."""
        if self._judge is None:
            found = find_judge(self.config["judge"], self.classes, tuple(self.data.media_shape))
            if found is not None:
                model, protocol = found
                model = model.to(self.device)
            else:
                media, labels = self.media("train")
                steps = self.config["judge_steps"] or STEPS
                shown = progress if self.config["progress"] else None
                media, labels = media.to(self.device), labels.to(self.device)
                model, protocol = classifier(media, labels, len(self.classes), steps=steps, cache=self.config["cache"], progress=shown)
            held_out, held_labels = self.media("held_out")
            share = protocol["held_out_accuracy"] = accuracy(self.predict(model, held_out)[0], held_labels, self.classes)[0]
            good = GOOD_JUDGE["trained here" if found is None else "stored"]
            if share < good:
                protocol["warning"] = f"the judge reads fewer than {good:.0%} of held-out items: its figures compare models, no more"
            elif share > protocol.get("own_held_out_accuracy", 1) + 0.03:
                protocol["warning"] = "the judge reads these items better than its own held-out ones: it has probably learnt from some"
            if "warning" in protocol:
                print(f"gentok: {protocol['warning']} ({share:.1%})")
            self._judge = model, protocol
        return self._judge

    def predict(self, model: Any, media: Tensor) -> tuple[Tensor, Tensor]:
        predicted, features = zip(*(predict(model, part.to(self.device)) for part in media.split(1000)))
        return torch.cat(predicted).cpu(), torch.cat(features).cpu()

    def protocol(self) -> dict[str, Any]:
        return {
            "ckpt": str(self.config["ckpt"]),
            "tokens": self.bundle.spec.describe(),
            "data": {split: getattr(self.data, split).description for split in ("train", "held_out")},
            "skipped": {split: getattr(getattr(self.data, split), "skipped", None) for split in ("train", "held_out")},
            "items_used": {split: len(media) for split, (media, _) in self._media.items()},
            "seed": self.config["seed"],
            "dtype": "float32",
            "averaged_weights": self.config["ema"],
            "versions": {"gentok": gentok.__version__, "torch": torch.__version__, "python": platform.python_version()},
        }


def choice(length: int, count: int) -> Tensor:
    """`count` of `length` rows, int64, drawn once and for all (files of a folder lie class by class); all where there are no more."""
    return Noise.of(0, [0]).permutation(length)[0][:count]


def _left_out(protocol: dict[str, Any], line: str) -> None:
    protocol["left_out"] = "; ".join(filter(None, (protocol.get("left_out"), line)))
    print(f"gentok: left out: {line}")


def _show(name: str, metrics: Mapping[str, Any]) -> None:
    print(f"\n{name}")
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            value = "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items())
        elif isinstance(value, list):
            value = "  ".join(f"{v:.4g}" for v in value)
        print(f"  {key:34} {f'{value:.4f}' if isinstance(value, float) else value}")


# -------------------------------------------------------------------------------------------------------- reconstruction


def _reconstruction(context: _Context, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    config = context.config
    media, labels = context.media("held_out")
    with progress("reconstructing", len(media), shown=config["progress"]) as advance:
        reconstructed, metrics = reconstruction(
            context.bundle.tokenizer, media, batch_size=config["batch_size"], device=context.device, advance=advance
        )
    metrics = {"items": len(media), **metrics}
    protocol: dict[str, Any] = {
        "what": "each held-out item encoded and decoded once, clipped to [-1, 1]; PSNR (range 2) and SSIM (11-pixel Gaussian window) are "
        "means over items; usage: share of rows hit by the held-out items; entropy: of each level's codes, times its codes per item",
    }
    if context.classes:
        model, protocol["judge"] = context.judge()
        metrics["recognised"], metrics["recognised_per_class"] = accuracy(context.predict(model, reconstructed)[0], labels, context.classes)
        metrics["originals_recognised"] = protocol["judge"]["held_out_accuracy"]
    try:
        metrics |= _reconstruction_distances(context, media, reconstructed)
        protocol["fd_efflite0"] = of_reconstructions(len(media), min(len(media), len(context.media("train")[0])))
    except (ValueError, ImportError) as error:
        _left_out(protocol, str(error))
    save_grid(pairs(media, reconstructed), out / "reconstructions.png", 10, scale=_scale(media))
    return metrics, protocol


def _reconstruction_distances(context: _Context, media: Tensor, reconstructed: Tensor) -> dict[str, Any]:
    few, train = context.config["few"], context.data.train
    _check_images(media)
    enough(few, len(media), min(len(train), context.config["max_train"]))
    train = context.media("train")[0]
    reference = context.features(train[choice(len(train), len(media)).sort().values], "training images", True)
    real = context.features(media, "held-out images", True)
    made = context.features(reconstructed, "reconstructions", False)
    own = float(frechet(made, real))
    return {**distances(made, real, reference, few), "fd_efflite0_own": own, "fd_efflite0_halves": halves(real, few)}


def _check_images(media: Tensor) -> None:
    if media.dim() != 4 or media.shape[1] not in (1, 3):
        raise ValueError(f"FD-efflite0 is of images with 1 or 3 channels; these media are {tuple(media.shape[1:])}")


# ----------------------------------------------------------------------------------------------------------------- probe


def _probe(context: _Context, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    tokenizer, config = context.bundle.tokenizer, context.config
    if not context.classes:
        raise ConfigError("protocol=probe reads classes from tokens, and these data have none")
    if getattr(tokenizer, "codebook", None) is None:
        raise ConfigError(f"protocol=probe reads quantized vectors; a {type(tokenizer).__name__} has no codebook to look them up in")
    vectors, labels = {}, {}
    for split in ("train", "held_out"):
        media, labels[split] = context.media(split)
        with progress(f"encoding {split}", len(media), shown=config["progress"]) as advance:
            vectors[split] = quantized(tokenizer, media, batch_size=config["batch_size"], device=context.device, advance=advance)
    metrics: dict[str, Any] = {"train_items": len(labels["train"]), "test_items": len(labels["held_out"])}
    protocol: dict[str, Any] = {
        "what": "multinomial logistic regression on the vectors that the codebook looks up for the codes, channels of a named part or all; "
        "mean: over positions, flat: all positions side by side; features standardised on the training items; L2 weight chosen on the last "
        f"fifth of them out of {', '.join(f'{w:g}' for w in WEIGHTS)}, then fitted to all of them; accuracy on held-out items",
        "probes": {},
    }
    for part, channels in parts_of(tokenizer.codebook).items():
        for pooling in POOLINGS:
            train, held_out = (pooled(vectors[split][:, channels], pooling) for split in ("train", "held_out"))
            found = linear_probe(train, labels["train"], held_out, labels["held_out"], len(context.classes))
            metrics[f"{part}_{pooling}"] = found["accuracy"]
            protocol["probes"][f"{part}_{pooling}"] = found
    return metrics, protocol


def _scale(media: Tensor) -> int:
    return max(1, 64 // media.shape[-1])


# ------------------------------------------------------------------------------------------------------------ generation


def _generation(context: _Context, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    bundle, config, names = context.bundle, context.config, context.classes
    guidance = config["guidance"] if config["guidance"] is not None else bundle.meta.get("guidance", 1.0)
    sampler = pick_sampler(config["sampler"], type(bundle.generator), config["trust"])
    n = math.ceil(config["n"] / len(names)) * len(names) if names else config["n"]
    condition = list(range(len(names))) if names else None  # taken in turn: row i is of class i mod classes
    labels = torch.arange(n) % len(names) if names else None
    train, held_out = context.media("train")[0], context.media("held_out")[0]

    def draw(scale: float, what: str) -> Samples:
        with progress(what, n, "samples", config["progress"]) as advance:
            return sample(
                bundle, n=n, condition=condition, sampler=sampler, guidance=scale, guidance_schedule=config["guidance_schedule"],
                seed=config["seed"], batch_size=config["batch_size"], advance=advance, trust=config["trust"],
            )  # fmt: skip

    samples = draw(guidance, f"sampling, guidance {guidance:g}")
    media = samples.media.clamp(-1, 1)
    metrics: dict[str, Any] = {"samples": n, "guidance": guidance}
    protocol: dict[str, Any] = {
        "what": f"{n} samples{', as many of every class; accuracy: the judge reads the wanted class' if names else ''}; precision and "
        f"recall (k = 3) and KID (cubic kernel, unbiased, all rows) in {SPACE[bool(names)]} against held-out items, beside as many "
        "training items against the same; nearest training item by Euclidean distance of pixels in [-1, 1]; nll of held-out tokens under "
        "the unguided model",
        "sampler": {"name": type(sampler).__name__, "exact": sampler.exact, **asdict(sampler)},
        "guidance_schedule": config["guidance_schedule"],
        "batch_size": config["batch_size"],
    }
    if names:
        model, protocol["judge"] = context.judge()
        predicted, _ = context.predict(model, media)
        metrics["accuracy"], metrics["accuracy_per_class"] = accuracy(predicted, labels, names)
        if guidance != 1:
            plain = draw(1.0, "sampling, guidance 1")
            metrics["accuracy_at_guidance_1"] = accuracy(context.predict(model, plain.media.clamp(-1, 1))[0], labels, names)[0]
        else:
            metrics["accuracy_at_guidance_1"] = metrics["accuracy"]
        metrics["held_out_accuracy"] = protocol["judge"]["held_out_accuracy"]
    else:
        _left_out(protocol, "accuracy: these data have no classes to train a judge on")
    metrics |= _distribution(context, media, protocol)
    metrics |= copying(media, held_out, train)
    metrics |= _likelihood(context)
    metrics["calls_per_sample"] = samples.calls.double().mean().item()
    metrics["tokens_per_second"] = int(samples.tokens.present.sum()) / max(samples.seconds, 1e-9)
    metrics["seconds_of_sampling"] = samples.seconds
    protocol["network_calls"] = {name: {"calls": c, "positions": p} for name, (c, p) in samples.network_calls.items()}
    protocol["nll"] = "exact" if isinstance(bundle.generator, (AnyOrder, Causal)) else f"an upper bound, {NLL_SAMPLES} masks per item"
    save_grid(_by_class(media, len(names)), out / "samples.png", 10, scale=_scale(media))
    return metrics, protocol


SPACE = {True: "the judge's features", False: f"EfficientNet-lite0's pooled features at {SIZE} px"}


def _distribution(context: _Context, samples: Tensor, protocol: dict[str, Any]) -> dict[str, Any]:
    """Precision, recall, KID and the Fréchet distance of samples against held-out items; what cannot be had is left out, and said."""
    names, few = context.classes, context.config["few"]
    held_out, (train, labels) = context.media("held_out")[0], context.media("train")
    train = train[alike(labels, len(names), len(samples)) if names else choice(len(train), len(samples))]
    sets = {"samples": samples, "held-out images": held_out, "training images": train}
    metrics: dict[str, Any] = {}
    kept: dict[str, Tensor] = {}

    def pooled(what: str) -> Tensor:
        if what not in kept:
            kept[what] = context.features(sets[what], what, what != "samples")
        return kept[what]

    try:
        check_variety(*(len(media) for media in sets.values()), few=few)
        if names:
            model = context.judge()[0]
            metrics |= variety(*(context.predict(model, media)[1] for media in sets.values()), few=few)
        else:
            _check_images(samples)
            metrics |= variety(*map(pooled, sets), few=few)
    except (ValueError, ImportError) as error:
        _left_out(protocol, str(error))
    try:
        _check_images(samples)
        count = min(len(samples), len(train))
        enough(few, count, len(held_out))
        metrics |= distances(pooled("samples"), pooled("training images"), pooled("held-out images"), few)
        metrics["fd_efflite0_halves"] = halves(pooled("held-out images"), few)
        protocol["fd_efflite0"] = of_samples(count, len(held_out))
    except (ValueError, ImportError) as error:
        _left_out(protocol, str(error))
    return metrics


def _likelihood(context: _Context) -> dict[str, float]:
    """Mean nll (or its bound) of the held-out items' tokens, in bits per token and, where media have a shape, per dimension of the media
    (channel of a pixel); None for a generator that has no likelihood. What the tokens leave out of the media is not counted."""
    bundle = context.bundle
    if not hasattr(bundle.generator, "nll_bound"):
        return {"held_out_bits_per_token": None}
    count = len(context.media("held_out")[0])
    nats, cells = 0.0, 0
    with progress("held-out nll", count, shown=context.config["progress"]) as advance, torch.inference_mode():
        held_out = context.data.held_out
        for batch in batches(held_out, context.config["batch_size"], rows=choice(len(held_out), count).sort().values.tolist()):
            noise = Noise.of(context.config["seed"], batch.index).to(context.device)
            batch = batch.to(context.device)
            tokens = bundle.tokenizer.encode(batch.media)
            nats += bundle.generator.nll_bound(tokens, batch.condition, noise, samples=NLL_SAMPLES).double().sum().item()
            cells += int(tokens.present.sum())
            advance(len(batch.index))
    bits = nats / math.log(2)
    out = {"held_out_bits_per_token": bits / cells}
    if bundle.spec.media_shape is not None and len(bundle.spec.media_shape) == 3:
        out["held_out_bits_per_dimension"] = bits / count / math.prod(bundle.spec.media_shape)
    return out


def _nll(context: _Context, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    bundle, config = context.bundle, context.config
    region = config["region"]
    asked = region_cells(region, bundle.spec)
    held_out, nats, bits, cells, exact = context.data.held_out, 0.0, [], 0, True
    count = min(len(held_out), config["max_held_out"])
    with progress("held-out nll", count, shown=config["progress"]) as advance, torch.inference_mode():
        for batch in batches(held_out, config["batch_size"], rows=choice(len(held_out), count).sort().values.tolist()):
            noise = Noise.of(config["seed"], batch.index).to(context.device)
            batch = batch.to(context.device)
            tokens = bundle.tokenizer.encode(batch.media)
            row, number, exact = region_nll(bundle.generator, tokens, batch.condition, asked, noise, NLL_SAMPLES)
            nats, cells = nats + row.sum().item(), cells + int(number.sum())
            bits.append((row / math.log(2)).cpu())
            advance(len(batch.index))
    error = torch.cat(bits).std().item() * math.sqrt(count) / cells if count > 1 else None
    metrics = {"items": count, "tokens": cells, "bits_per_token": nats / math.log(2) / cells, "standard_error": error}
    what = "all cells" if region is None else "a random half of each item's cells" if region == SCATTERED else f"the cells of {region}"
    return metrics, {
        "what": f"-log2 p of {what}{'' if region is None else ' given the others'} of held-out items under the unguided model, per asked "
        "token; standard error over items",
        "region": region,
        "nll": "exact" if exact else f"an upper bound, {NLL_SAMPLES} masks per item",
    }


def _by_class(media: Tensor, classes: int, columns: int = 10) -> Tensor:
    """Up to `columns` samples of each of up to 20 classes, a row per class; the first 100 where there are none."""
    if not classes:
        return media[: columns * columns]
    per_class = min(columns, len(media) // classes)
    rows = [torch.arange(per_class) * classes + c for c in range(min(classes, 20))]
    return media[torch.cat(rows)]


def main() -> None:
    """`python -m gentok.evaluate`."""
    from gentok.cli import run

    run("evaluate", evaluate)


if __name__ == "__main__":
    main()
