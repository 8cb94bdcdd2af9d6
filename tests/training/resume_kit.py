"""Short runs, runs that die, and a comparison that forgives nothing."""

from __future__ import annotations

import csv
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gentok.cli import compose
from gentok.training.module import GentokModule
from gentok.training.run import train

STEPS, HALF = 6, 3
QUIET = ["print_config=false", "trainer.progress_bar=false", "logger.tensorboard=false", "trainer.log_every=1", "trainer.validate_every=2",
         f"steps={STEPS}", f"trainer.checkpoint_every={HALF}", "budget=null", "batch_size=16", "data.held_out=2",
         "task.augment.shift=1"]  # fmt: skip
TOKENIZER = ["tokenizer.width=8", "task.pictures=2"]
SMALL = [*TOKENIZER, "experiment=mnist5k/vq", "codebook.vocab_size=32"]
GENERATOR = ["generator.width=32", "generator.depth=1", "generator.heads=2", "task.pictures=10", "generator.dropout=0.1"]
PATCH = "discriminator.adversaries.patch"
VQGAN = ["experiment=mnist5k/vqgan", *TOKENIZER, "codebook.vocab_size=32", f"{PATCH}.network.width=4"]
FLEXTOK = ["task.pictures=2", "task.decode_items=8", "tokenizer.registers=8", "tokenizer.encoder_width=32", "tokenizer.encoder_depth=1",
           "tokenizer.decoder_width=32", "tokenizer.decoder_depth=1", "tokenizer.steps=2"]
DISTILLED = ["generator.teacher.ckpt=OF_TEACHER", "generator.solver_steps=2", "limit_items=40", "task.pictures=4"]
CASES: dict[str, list[str]] = {
    "vq by gradient": [*SMALL, "codebook=vq", "codebook.revive_below=0.5"],
    "vq by averages": [*SMALL, "codebook.revive_below=0.5", "codebook.kmeans_start=2"],
    "residual with dropout": [*TOKENIZER, "codebook=residual", "codebook.levels=3", "codebook.codebook.vocab_size=32"],
    "residual of the library": [*TOKENIZER, "codebook=library_residual", "codebook.options.codebook_size=32",
                                "codebook.options.quantize_dropout=true"],
    "tokenflow": [*TOKENIZER, "tokenizer=tokenflow", "codebook=dual", "codebook.vocab_size=32", "codebook.revive_below=0.5",
                  "+tokenizer.semantic.zoom=1", "tokenizer.semantic_width=16", "tokenizer.semantic_depth=1"],
    "vqgan with a discriminator": [*VQGAN, f"{PATCH}.start=2"],
    "vqgan accumulated": [*VQGAN, f"{PATCH}.start=1", "trainer.accumulate=2"],
    "latents": [*TOKENIZER, "experiment=mnist5k/vq", "tokenizer=kl"],
    "multi-scale": [*TOKENIZER, "codebook=var", "codebook.sides=[1,2,8]", "codebook.phi=2", "codebook.codebook.vocab_size=32"],
    "binary": [*TOKENIZER, "codebook=bae"],
    "flextok": ["tokenizer=flextok", "codebook=vq_ema", *FLEXTOK, "codebook.vocab_size=32"],
    "flextok with few patches": ["tokenizer=flextok", "codebook=vq_ema", *FLEXTOK, "codebook.vocab_size=32", "tokenizer.decoder_depth=6",
                                 "tokenizer.density={_target_:gentok.nn.density.Density,rate:0.5,noise_rate:0.9,sparse:1}"],
    "accumulated": [*SMALL, "trainer.accumulate=2"],
    "workers": [*SMALL, "trainer.workers=2"],
    "without averages": [*SMALL, "callbacks.ema=null"],
    "autoregressive from tokens": ["experiment=mnist5k/ar", *GENERATOR, "task.views=2"],
    "autoregressive from media": ["experiment=mnist5k/ar", *GENERATOR, "task.views=0", "trainer.accumulate=2"],
    "causal masking from tokens": ["experiment=mnist5k/causal_masked", *GENERATOR, "task.views=2"],
    "mixed objectives from media": ["experiment=mnist5k/ar", "generator=mixed_objectives", *GENERATOR, "task.views=0"],
    "masked from tokens": ["experiment=mnist5k/masked", *GENERATOR, "task.views=2", "trainer.workers=2"],
    "masked from media": ["experiment=mnist5k/masked", *GENERATOR, "task.views=0"],
    "any order from tokens": ["experiment=mnist5k/any_order", *GENERATOR, "task.views=2", "generator.orders=random",
                              "generator.warmup=0.8"],
    "next scale from tokens": ["experiment=mnist5k/next_scale", *GENERATOR, "task.views=2"],
    "self-speculative from tokens": ["experiment=mnist5k/masked", "generator=self_speculative", *GENERATOR, "task.views=2"],
    "distilled from trajectories": ["experiment=mnist5k/distilled", *DISTILLED, "task.views=2", "trainer.workers=2"],
    "distilled without a cache": ["experiment=mnist5k/distilled", *DISTILLED, "task.views=0"],
    "captions from tokens": ["experiment=mnist5k/captions", *GENERATOR, "task.views=2"],
    "early exits from tokens": ["experiment=mnist5k/early_exits", *GENERATOR, "generator.depth=2", "generator.exits=[1]", "task.views=2"],
    "drafter of items that its target draws": ["experiment=mnist5k/drafter", *GENERATOR, "generator.target=OF_TEACHER", "limit_items=40", "task.views=2"],
    "xar from media": ["experiment=mnist5k/xar", *GENERATOR, "task.views=0", "generator.context=clean"],
    "xar with few vectors": ["experiment=mnist5k/xar", *GENERATOR, "task.views=0", "generator.depth=6",
                             "generator.density={_target_:gentok.nn.density.Density,sparse:1}"],
    "xar from latents": ["experiment=mnist5k/xar", *GENERATOR, "task.views=2", "tokenizer.ckpt=OF_LATENTS"],
}  # fmt: skip
CLOCKED = ("images_per_second", "tokens_per_second", "data_wait")


class Killed(BaseException):
    """What the process does not survive."""


@contextmanager
def killed_at(step: int):
    """Training that begins this step dies of it."""
    begin = GentokModule.on_train_batch_start

    def deadly(self: GentokModule, batch: Any, batch_idx: int) -> None:
        if self.global_step == step:
            raise Killed
        begin(self, batch, batch_idx)

    GentokModule.on_train_batch_start = deadly
    try:
        yield
    except Killed:
        pass
    finally:
        GentokModule.on_train_batch_start = begin


def configured(root: Path, folder: str, words: list[str], *more: str) -> dict:
    paths = [f"paths.root={root}", f"paths.run={root / folder}"]
    generators = ("mnist5k/ar", "mnist5k/captions", "mnist5k/drafter", "mnist5k/early_exits", "mnist5k/distilled", "mnist5k/causal_masked", "mnist5k/masked", "mnist5k/any_order", "mnist5k/xar")
    tokenizer = [f"tokenizer.ckpt={root / 'tokenizer' / 'bundle'}"] if any(g in w for w in words for g in generators) else []
    if "experiment=mnist5k/next_scale" in words:
        tokenizer = [f"tokenizer.ckpt={pyramid(root)}"]
    words = [word.replace("OF_LATENTS", str(of_latents(root))) if word.endswith("OF_LATENTS") else word for word in words]
    words = [word.replace("OF_TEACHER", str(of_teacher(root))) if word.endswith("OF_TEACHER") else word for word in words]
    return compose("config", [*QUIET, *tokenizer, *words, *paths, *more])


def pyramid(root: Path) -> Path:
    """The bundle of a tokenizer of several scales, trained when it is first asked for."""
    bundle = root / "pyramid" / "bundle"
    return bundle if bundle.exists() else run(root, "pyramid", CASES["multi-scale"]) / "bundle"


def of_latents(root: Path) -> Path:
    """The bundle of a KL autoencoder, trained when it is first asked for."""
    bundle = root / "of_latents" / "bundle"
    return bundle if bundle.exists() else run(root, "of_latents", CASES["latents"]) / "bundle"


def of_teacher(root: Path) -> Path:
    """The bundle of an autoregressive generator, trained when it is first asked for."""
    bundle = root / "of_teacher" / "bundle"
    return bundle if bundle.exists() else run(root, "of_teacher", ["experiment=mnist5k/ar", *GENERATOR, "task.pictures=0"]) / "bundle"


def run(root: Path, folder: str, words: list[str], *more: str) -> Path:
    return train(configured(root, folder, words, *more))


def last(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def different(a: Any, b: Any, where: str = "") -> list[str]:
    """The places where two checkpoints differ by a bit."""
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [where]
    if isinstance(a, dict):
        missing = [f"{where}.{k}" for k in a.keys() ^ b.keys()]
        return missing + [place for k in a.keys() & b.keys() for place in different(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, (list, tuple)):
        return [where] if len(a) != len(b) else [p for i, (x, y) in enumerate(zip(a, b)) for p in different(x, y, f"{where}.{i}")]
    return [] if a == b else [where]


def state(folder: Path) -> dict:
    """All of a checkpoint but the folder's name and the time that it took."""
    checkpoint = last(folder)
    checkpoint["training"].pop("elapsed")
    return {key: value for key, value in checkpoint.items() if key not in ("hyper_parameters", "gentok")}


def curves(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if v and k not in CLOCKED} for row in csv.DictReader(file)]


def alike(one: Path, several: Path) -> None:
    """What one process trained and what several did are the same up to roundings: weights, averages, optimizer and validation."""
    whole, shared, moved = last(one), last(several), 0.0
    for key in ("state_dict", "current_model_state"):
        for k, value in whole[key].items():
            assert torch.allclose(shared[key][k].double(), value.double(), atol=2e-4, rtol=1e-3), (key, k)
    for k, value in whole["optimizer_states"][0]["state"].items():
        assert torch.allclose(shared["optimizer_states"][0]["state"][k]["exp_avg"], value["exp_avg"], atol=1e-4, rtol=1e-2)
        moved += float(value["exp_avg"].abs().sum())
    assert moved > 0
    measures = [{k: float(v) for k, v in curves(folder)[-1].items() if "psnr" in k or "held_out" in k} for folder in (several, one)]
    assert measures[0].keys() == measures[1].keys() and measures[0]
    assert all(abs(measures[0][k] - v) <= 1e-3 + 0.02 * abs(v) for k, v in measures[1].items()), measures
