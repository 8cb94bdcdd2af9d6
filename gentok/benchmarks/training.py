"""What a training step costs besides its network: the trainer, small tokenizers, shards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gentok.benchmarks.models import describe_sizes, load_or_build
from gentok.build import component_name
from gentok.metrics.speed import Contender, Measured, figure, interleaved

__all__ = ["shards", "small_tokenizers", "tokenizers", "train"]

PASSES = "forward and backward alone"


def train(rounds: int, steps: int = 24, overrides: tuple[str, ...] = ()) -> Measured:
    """What Lightning, its callbacks and its logs add to a training step of conf/experiment/mnist5k/ar.yaml.

    Args:
        rounds: measurements of each contender.
        steps: of a measurement, on tokens in memory.
        overrides: of conf/config.yaml.
    """
    import torch

    from gentok.benchmarks.overhead import by_loop, by_trainer
    from gentok.training.trainer import precision
    from gentok.types import Batch, Tokens

    bundle, config, generator, _ = load_or_build(None, overrides)
    size = config["batch_size"]
    codes = torch.randint(bundle.spec.vocab, (size, 1, bundle.spec.positions))
    condition = bundle.condition_spec.parse(list(range(10)), size)
    batch = Batch(None, torch.arange(size), condition, tokens=Tokens(codes, bundle.spec))
    setting = f"{steps} steps of {size} items, {describe_sizes(generator)}; both with clipping and averaged weights"

    def contender(run: Callable[..., tuple[float, Any]]) -> Contender:
        return lambda: run(config, bundle, bundle.condition_spec, batch, steps)[0]

    seconds = interleaved({"trainer": contender(by_trainer), "loop": contender(by_loop)}, rounds)
    about = {"peer": "bare PyTorch loop", "dtype": precision(config["trainer"]["precision"], "cpu"), "setting": setting}
    yield "train/step/loop", figure(seconds["trainer"], seconds["loop"], overhead=True, **about)


def small_tokenizers(names: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """The tokenizers that are measured.

    Args:
        names: those that are asked for; (): all.

    Returns:
        Name -> overrides of conf/config.yaml: conf/tokenizer/vqgan.yaml with each kind of codebook, and the
        tokenizers of the experiments on photographs of 32 x 32, each with its own codebook and losses.
    """
    from gentok.cli import compose, conf_dir

    found = {f"vqgan_{name}": ["tokenizer=vqgan", f"codebook={name}"] for name in ("vq", "vq_ema", "fsq", "lfq", "residual")}
    for path in sorted((conf_dir() / "experiment" / "cifar10").glob("*.yaml")):
        overrides = [f"experiment=cifar10/{path.stem}"]
        if names and f"cifar10_{path.stem}" not in names:
            continue
        config = compose("config", [*overrides, "data=noise"])
        if config["task"]["name"] == "tokenizer" and "_target_" in config["tokenizer"]:
            found[f"cifar10_{path.stem}"] = overrides
    return {name: own for name, own in found.items() if not names or name in names}


def tokenizers(rounds: int, steps: int = 6, size: int = 64, overrides: tuple[str, ...] = (), names: tuple[str, ...] = ()) -> Measured:
    """Training steps of the small tokenizers on noise images, 32 x 32 x 3, in memory.

    Measured are images per second through the trainer, and the share of its time that is neither the forward
    nor the backward pass of the same network run alone, without discriminator. Teachers are run anew in every
    step of both. A tokenizer that works on the latents of a bundle that is missing gets a note instead of a
    figure.

    Args:
        rounds: measurements of each contender.
        steps: of a measurement.
        size: images in a step.
        overrides: of conf/config.yaml.
        names: the tokenizers (of `small_tokenizers`); (): all.
    """
    import torch

    from gentok.benchmarks.overhead import tokenizer_by_network, tokenizer_by_trainer
    from gentok.bundle import nest_inner
    from gentok.cli import compose
    from gentok.data.noise_images import NoiseImages
    from gentok.training.trainer import precision

    batch = NoiseImages(size, 1).train.__getitems__(range(size))
    for name, own in small_tokenizers(names).items():
        extra = ["data=noise", "discriminator=none", "task.teacher_maps=0", "paths.run=none", "trainer.accelerator=cpu", *overrides]
        config = compose("config", [*own, *extra])
        try:
            nested, _ = nest_inner(config["tokenizer"])
        except FileNotFoundError as error:
            yield f"tokenizers/{name}/outside", {"value": None, "peer": PASSES, "note": str(error)}
            continue
        config["tokenizer"] = {**nested, "media_shape": list(batch.media.shape[1:])}

        def contender(run: Callable[..., float], config: dict[str, Any] = config) -> Contender:
            return lambda: run(config, copy.copy(batch), steps)

        seconds = interleaved({"trainer": contender(tokenizer_by_trainer), "network": contender(tokenizer_by_network)}, rounds)
        parts = [config["tokenizer"], *([config["codebook"]] if "codebook" in config["tokenizer"] else [])]
        setting = f"{' with '.join(map(component_name, parts))}, {steps} steps of {size} images of 32 x 32 x 3"
        about = {"peer": PASSES, "dtype": precision(config["trainer"]["precision"], "cpu"), "setting": setting}
        measured = figure(seconds["trainer"], seconds["network"], share=True, **about)
        yield f"tokenizers/{name}/outside", {**measured, "images_per_second": steps * size / measured["seconds"]}
    torch.manual_seed(0)


def shards(rounds: int, steps: int = 60, items: int = 4096, overrides: tuple[str, ...] = ()) -> Measured:
    """Share of its time that a run of conf/experiment/mnist5k/ar.yaml waits for token shards on disk.

    Args:
        rounds: runs.
        steps: of a run, by the real loader.
        items: in the one shard.
        overrides: of conf/config.yaml.
    """
    import tempfile

    from gentok.benchmarks.overhead import from_shards

    overrides = ("experiment=mnist5k/ar", "trainer.accelerator=cpu", *overrides)
    with tempfile.TemporaryDirectory() as folder:
        took = [from_shards(overrides, Path(folder), steps, items) for _ in range(rounds)]
    setting = f"{steps} steps, 64 tokens of 512 per item, {items:,} items in one shard, no loader workers"
    about = {"peer": "without the waits for data", "dtype": "as the run", "setting": setting}
    yield "shards/wait", figure([whole for whole, _ in took], [whole - wait for whole, wait in took], share=True, **about)
