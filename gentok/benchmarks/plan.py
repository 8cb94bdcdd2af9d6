"""`python -m gentok.benchmark plan=imagenet256/xar_h gpus=64`: what a large run needs, by formulas that stand beside the numbers.

Nothing is trained or read: the experiment is composed and built on the meta device, its parameters are counted, the rest follows. Weights,
gradients, moments and averages are in float32, also with trainer.precision=bf16-mixed, which changes what is computed in. Traffic is that
of ring algorithms, the least that an all-reduce takes (Patarasuk and Yuan, 2009, 10.1016/j.jpdc.2008.09.002). Activations are what autograd
keeps of one item, counted where the model runs on the meta device.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gentok.benchmarks.activations import kept_for_backward
from gentok.cli import compose, conf_dir, shell_words
from gentok.data.token_cache import stored_type
from gentok.describe import built
from gentok.errors import ConfigError, nearest_name
from gentok.types import TokenSpec

__all__ = ["IMAGENET", "Plan", "SIZES", "composed", "plan", "run"]

IMAGENET, JPEG = 1_281_167, 147_897_477_120 / 1_281_167
"""Training images of ImageNet-1k, and the mean size of one in bytes: of ILSVRC2012_img_train.tar."""
HOURS = 60_000.0
_FLOAT = 4
_USAGE = (
    "python -m gentok.benchmark plan=EXPERIMENT[,EXPERIMENT] [gpus=N] [precision=bf16-mixed|32-true] [steps_per_second=X] [views=N] "
    "[hours=N] [KEY=VALUE of the experiment]"
)
SIZES: dict[str, tuple[str, ...]] = {
    "imagenet256/elm_": ("tokenizer=vqgan_llamagen", "codebook=bae", "codebook.bits=20", "codebook.levels=2", "codebook.width=256"),
    "imagenet256/var_d": ("tokenizer=vqgan_llamagen", "codebook=var"),
    "imagenet256/ctf_": (
        "tokenizer=vqgan_llamagen", "codebook=vq", "codebook.vocab_size=16384", "codebook.dim=8", "codebook.width=256",
    ),
    "imagenet256/llamagen_": (
        "tokenizer=vqgan_llamagen", "codebook=vq", "codebook.vocab_size=16384", "codebook.dim=8", "codebook.width=256",
    ),
    "imagenet256/xar_": ("tokenizer=kl_f16c16",),
    "imagenet256/mar_": ("tokenizer=mar_kl",),
}  # fmt: skip
"""Beginning of an experiment's name -> the tokenizer that it is trained over, by its configuration where there is no bundle."""


@dataclass
class Plan:
    """Figures of one run.

    Attributes:
        rows: (name, number, unit, formula), in the order in which they are printed.
        figures: name -> number.
    """

    rows: list[tuple[str, float, str, str]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, number: float, unit: str = "", formula: str = "") -> float:
        """Adds a figure, and returns it."""
        self.rows.append((name, number, unit, formula))
        self.figures[name] = number
        return number


def plan(name: str, words: Sequence[str] = (), *, gpus: int = 8, precision: str = "bf16-mixed", rate: float = 1.0,
         views: int | None = None, hours: float = HOURS) -> Plan:  # fmt: skip
    """What an experiment needs on so many GPUs.

    Args:
        name: of the experiment.
        words: further overrides of it.
        gpus: over which the batch is split.
        precision: that of trainer.precision.
        rate: optimizer steps per second, for read bandwidths.
        views: encodings of every item in the cache; None: the experiment's, at least 1.
        hours: of sound, for experiments of sound.

    Raises:
        ConfigError: there is no such experiment, or its batch cannot be split.
    """
    config = composed(name, words)
    batch = config["batch_size"]
    if batch % gpus:
        raise ConfigError(f"batch_size={batch} of {name} cannot be split over gpus={gpus}: set batch_size to a multiple")
    with torch.device("meta"):
        model, tokenizer, adversaries = built(config)
    made = Plan()
    averaged, frozen = config["callbacks"]["ema"] is not None, None if model is tokenizer else tokenizer
    _memory(made, model, frozen, adversaries, gpus, precision, averaged)
    _traffic(made, gpus)
    local = batch // gpus
    kept = kept_for_backward(model, tokenizer)
    if kept is not None:
        formula = f"{local} items x {kept / 2**20:,.1f} MiB that autograd keeps of one in float32; bf16-mixed: about half"
        made.add("activations", kept * local / 2**30, "GiB per GPU", formula)
    cached = config["task"]["name"] == "generator" and bool(config["task"]["views"])
    _data(made, config, tokenizer.spec, batch, rate, views or max(1, config["task"].get("views") or 1), hours, cached)
    return made


def composed(name: str, words: Sequence[str]) -> dict[str, Any]:
    """The configuration of an experiment without its bundle and data.

    Args:
        name: of the experiment.
        words: further overrides of it.

    Raises:
        ConfigError: there is no such experiment.
    """
    folder = conf_dir() / "experiment"
    names = [str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")]
    if name not in names:
        raise ConfigError(f"plan={name}: there is no such experiment{nearest_name(name, names)}")
    sizes = next((words for start, words in SIZES.items() if name.startswith(start)), ())
    given = {word.partition("=")[0] for word in words}
    assumed = [word for word in (*sizes, "describe_classes=1000", "trainer=cpu") if word.partition("=")[0] not in given]
    if "tokenizer" in given or "tokenizer.ckpt" in given:
        assumed = [word for word in assumed if not word.startswith(("tokenizer", "codebook"))]
    return compose("config", [f"experiment={name}", *assumed, *shell_words(list(words))])


def _count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def _blocks(module: nn.Module) -> list[int]:
    """Parameters of each part that is repeated: the members of lists of modules, the outermost ones."""
    found: list[int] = []

    def look(part: nn.Module) -> None:
        for child in part.children():
            if isinstance(child, nn.ModuleList):
                found.extend(_count(member) for member in child)
            else:
                look(child)

    look(module)
    return [count for count in found if count]


def _memory(made: Plan, model: nn.Module, frozen: nn.Module | None, adversaries: int, n: int, precision: str, averaged: bool) -> None:
    p = made.add("parameters", _count(model), "", "P, that are trained")
    states = (5 if averaged else 4) * _FLOAT
    parts = "weights 4 + gradients 4 + Adam's moments 8" + " + averages 4" * averaged
    blocks = _blocks(model)
    largest, rest = max(blocks, default=0), p - sum(blocks)
    low = 2 if precision == "bf16-mixed" else 0
    fixed = 0.0
    if frozen is not None:
        made.add("frozen parameters", _count(frozen), "", "F, of the tokenizer")
        fixed += _FLOAT * _count(frozen)
    if adversaries:
        made.add("discriminator parameters", adversaries, "", "A")
        fixed += 4 * _FLOAT * adversaries
    other = " + 4 F" * (frozen is not None) + " + 16 A" * bool(adversaries)
    made.add("state", p * states / 2**30, "GiB", f"{states} P bytes: {parts}")
    formula = f"{states} P + 4 P (buckets of gradients)" + f" + {low} P (autocast's bf16 weights)" * bool(low)
    made.add("DDP memory", (p * (states + _FLOAT + low) + fixed) / 2**30, "GiB per GPU", formula + other)
    gathered = _FLOAT * (rest + 2 * largest) + low * (rest + largest)
    made.add("outside of blocks", rest, "", "R, gathered for the whole step by FSDP")
    made.add("largest block", largest, "", "B, of which FSDP holds two: one that is computed, one that is fetched")
    formula = f"{states} P / {n} + 4 R + 8 B" + f" + {low} (R + B)" * bool(low)
    made.add("FSDP memory", (p * states / n + gathered + fixed) / 2**30, "GiB per GPU", formula + other)


def _traffic(made: Plan, n: int) -> None:
    size = made.figures["parameters"] * _FLOAT
    share = (n - 1) / n
    made.add("DDP traffic", 2 * share * size / 1e9, "GB per GPU and step", f"2 ({n} - 1) / {n} x 4 P: all-reduce of gradients")
    made.add(
        "FSDP traffic", 3 * share * size / 1e9, "GB per GPU and step",
        f"3 ({n} - 1) / {n} x 4 P: weights gathered forward and backward, gradients scattered",
    )  # fmt: skip


def item_bytes(spec: TokenSpec, seconds: float = 0.0) -> float:
    """What one encoded item takes in a cache: an image, or so many seconds of sound."""
    width = spec.levels or spec.width or 1
    rate = getattr(spec.grid, "rate_hz", None)
    positions = seconds * rate if rate else spec.positions
    return width * positions * stored_type(spec).itemsize


def _data(made: Plan, config: Mapping[str, Any], spec: TokenSpec, batch: int, rate: float, views: int, hours: float, cached: bool) -> None:
    kind = str(stored_type(spec)).removeprefix("torch.")
    what = f"{spec.levels or spec.width} x {{}} {kind}"
    if spec.modality == "audio":
        hz = getattr(spec.grid, "rate_hz", 0.0)
        each = item_bytes(spec, 3600.0)
        made.add("cache", hours * views * each / 1e9, "GB", f"{hours:,.0f} hours x {views} views x {what.format(f'{3600 * hz:,.0f}')}")
        media = 2 * (spec.sample_rate or 0) * math.prod((spec.media_shape or (1,))[:1])
        made.add("media", hours * 3600 * media / 1e9, "GB", f"{hours:,.0f} hours of 16-bit samples at {spec.sample_rate} Hz")
        return
    each = item_bytes(spec) + 16
    formula = f"{IMAGENET:,} images x {views} views x ({what.format(spec.positions)} + index and class, 16 B)"
    made.add("cache", IMAGENET * views * each / 1e9, "GB", formula)
    made.add("cache reads", batch * each * rate / 1e6, "MB/s over all GPUs", f"{batch} items x {each:,.0f} B x {rate:g} steps/s")
    without = "" if cached else "; this experiment reads these"
    made.add("image reads", batch * JPEG * rate / 1e6, "MB/s over all GPUs", f"{batch} JPEGs x {JPEG:,.0f} B x {rate:g} steps/s{without}")


# ---------------------------------------------------------------------------------------------------------------- the command


def _written(number: float, unit: str) -> str:
    return f"{number:,.0f}" if not unit else f"{number:,.3g}" if number < 100 else f"{number:,.0f}"


def show(made: Plan) -> None:
    """Prints a plan with its formulas, and last as one JSON object."""
    for name, number, unit, formula in made.rows:
        print(f"{name:<26}{_written(number, unit):>16} {unit:<20} {formula}".rstrip())
    print(json.dumps(made.figures))


def table(plans: Mapping[str, Plan]) -> str:
    """Several plans as a table in Markdown."""
    columns = {
        "parameters": "M parameters", "state": "state, GiB", "DDP memory": "DDP, GiB per GPU", "FSDP memory": "FSDP, GiB per GPU",
        "DDP traffic": "DDP, GB per step", "FSDP traffic": "FSDP, GB per step", "activations": "activations, GiB", "cache": "cache, GB",
    }  # fmt: skip
    lines = [f"| experiment | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for name, made in plans.items():
        figures = {**made.figures, "parameters": made.figures["parameters"] / 1e6}
        lines.append(f"| {name} | {' | '.join(_written(figures[key], 'x') if key in figures else '' for key in columns)} |")
    return "\n".join(lines)


def run(argv: Sequence[str]) -> dict[str, Plan]:
    """The command. argv: plan=NAME[,NAME] and what else it takes.

    Raises:
        SystemExit: with one line.
    """
    given = dict(word.partition("=")[::2] for word in argv)
    defaults = {"plan": "", "gpus": "8", "precision": "bf16-mixed", "steps_per_second": "1", "views": "", "hours": str(HOURS)}
    own = {key: given.pop(key, default) for key, default in defaults.items()}
    try:
        numbers = {key: _positive(key, own[key]) for key in ("gpus", "steps_per_second", "hours")}
        if own["precision"] not in ("bf16-mixed", "32-true"):
            raise ConfigError(f"precision={own['precision']}: bf16-mixed or 32-true")
        if numbers["gpus"] % 1 or any("=" not in word for word in argv):
            raise ConfigError(f"expected {_USAGE}; got {' '.join(argv)}")
        how = {"gpus": int(numbers["gpus"]), "precision": own["precision"], "rate": numbers["steps_per_second"], "hours": numbers["hours"],
               "views": int(_positive("views", own["views"])) if own["views"] else None}  # fmt: skip
        words = [f"{key}={value}" for key, value in given.items()]
        plans = {name: plan(name, words, **how) for name in own["plan"].split(",")}
    except Exception as error:
        if not isinstance(error, (ValueError, OSError)) and not type(error).__module__.startswith(("hydra", "omegaconf")):
            raise
        sys.exit(f"gentok: {' '.join(str(error).split())}")
    if len(plans) == 1:
        show(next(iter(plans.values())))
    else:
        print(table(plans))
    return plans


def _positive(key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise ConfigError(f"{key}={value}: a number above 0")
    return number
