"""A small convolutional classifier: who recognises samples, and in whose features recall, precision and KID are measured.

Four 3x3 convolutions, global pooling and a hidden layer of 128 features (the penultimate ones, that distances are taken in), trained from
scratch on the training split with random rotations, scalings, shears and shifts. Fixed seed and protocol: figures are comparable among
models that were judged by the same VERSION on the same data. It is no judge of
photographs: those have gentok/metrics/eval_classifier.py.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentok.metrics.cache import cached, keep
from gentok.rng import RowRNG
from gentok.types import fingerprint

__all__ = ["VERSION", "SmallCNN", "warp", "train_classifier", "classifier", "predict"]

VERSION = 1
"""Raised whenever what is trained, or how, changes: it is part of the cache's key and of every protocol."""
STEPS, BATCH, RATE, SEED = 600, 128, 4e-3, 0


class SmallCNN(nn.Module):
    """media float [B, C, H, W] in [-1, 1] -> logits [B, classes]; `features` -> [B, 128].

    H and W of at least 8; where both are larger than 48 the media are scaled down to 32 x 32 first.
    """

    def __init__(self, channels: int, classes: int, width: int = 24):
        super().__init__()
        self.trunk = nn.Sequential(
            *self._block(channels, width, 2), *self._block(width, 2 * width, 1), nn.MaxPool2d(2),
            *self._block(2 * width, 2 * width, 1), nn.MaxPool2d(2), *self._block(2 * width, 4 * width, 1),
        )  # fmt: skip
        self.hidden = nn.Linear(4 * width * 4, 128)
        self.head = nn.Linear(128, classes)

    @staticmethod
    def _block(fan_in: int, fan_out: int, stride: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU()

    def features(self, media: Tensor) -> Tensor:
        """float32 [B, 128], non-negative."""
        if min(media.shape[2:]) > 48:
            media = F.interpolate(media, size=(32, 32), mode="bilinear", antialias=True)
        return F.relu(self.hidden(F.adaptive_avg_pool2d(self.trunk(media), 2).flatten(1)))

    def forward(self, media: Tensor) -> Tensor:
        return self.head(self.features(media))


def warp(media: Tensor, rng: RowRNG, degrees: float = 12.0, scale: float = 0.12, shear: float = 0.15, shift: float = 0.08) -> Tensor:
    """Every row under a random affine map: rotation +-degrees, scale 1 +- `scale`, shear, shifts as a share of the side; edges repeat."""
    u = (rng.uniform(5) * 2 - 1).to(media)
    angle, size = u[:, 0] * math.radians(degrees), 1 + u[:, 1] * scale
    cos, sin, slant = angle.cos() / size, angle.sin() / size, u[:, 2] * shear
    matrix = torch.stack(
        [torch.stack([cos, slant * cos - sin, 2 * shift * u[:, 3]], 1), torch.stack([sin, slant * sin + cos, 2 * shift * u[:, 4]], 1)], 1
    )
    where = F.affine_grid(matrix, list(media.shape), align_corners=False)
    return F.grid_sample(media, where, padding_mode="border", align_corners=False)


def train_classifier(
    media: Tensor, labels: Tensor, classes: int, *, steps: int = STEPS, advance: Callable[[int], None] | None = None
) -> SmallCNN:
    """media float [n, C, H, W] in [-1, 1], labels int64 [n] -> a classifier in eval mode, on the device of `media`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = SmallCNN(media.shape[1], classes).to(media.device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.15)
    per_epoch = max(1, len(media) // BATCH)
    for step in range(steps):
        if step % per_epoch == 0:
            order = RowRNG.of(SEED, [step // per_epoch]).permutation(len(media))[0].to(media.device)
        rows = order[step % per_epoch * BATCH :][:BATCH]
        seen = warp(media[rows], RowRNG.of(SEED + 1, rows.cpu(), step=step)).contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(model(seen), labels[rows], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if advance is not None:
            advance(1)
    return model.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)


@torch.inference_mode()
def predict(model: Any, media: Tensor, batch_size: int = 250) -> tuple[Tensor, Tensor]:
    """classes int64 [n] and features float32 [n, D] of media [n, C, H, W], by a model of `features` and `head` (SmallCNN: D = 128)."""
    features = torch.cat([model.features(part) for part in media.split(batch_size)])
    return model.head(features).argmax(1), features


def classifier(
    media: Tensor, labels: Tensor, classes: int, *, steps: int = STEPS, cache: str | os.PathLike[str] | None = None,
    progress: Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]] | None = None,
) -> tuple[SmallCNN, dict[str, Any]]:  # fmt: skip
    """The classifier of these data, from the cache where it was trained before, and its protocol in words.

    cache: a folder; default $XDG_CACHE_HOME/gentok (~/.cache/gentok). A cached file that cannot be read is made anew.
    progress: (what, total, unit) -> a context that gives advance(n); opened only where there is something to train.
    """
    key = fingerprint("classifier", VERSION, classes, steps, media, labels)
    protocol: dict[str, Any] = {
        "what": f"CNN of 4 convolutions and 128 features, trained from scratch on {len(media)} items, {steps} steps of {BATCH}, with warps",
        "version": VERSION, "seed": SEED, "fingerprint": key, "seconds": 0.0,
    }  # fmt: skip
    model = SmallCNN(media.shape[1], classes)
    state = cached(f"classifier-{key}", cache)
    if state is not None:
        with suppress(RuntimeError):  # of other sizes: damaged in its own way
            model.load_state_dict(state)
            return model.to(media.device).eval().requires_grad_(False), protocol
    begun = time.perf_counter()
    with progress("training the judge", steps, "steps") if progress else nullcontext() as advance:
        model = train_classifier(media, labels, classes, steps=steps, advance=advance)
    protocol["seconds"] = round(time.perf_counter() - begun, 1)
    problem = keep(f"classifier-{key}", model.state_dict(), cache)
    if problem:
        protocol["cache"] = problem
    return model, protocol
