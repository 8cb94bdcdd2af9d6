"""A small convolutional classifier: who recognises samples, and in whose features recall, precision and KID
are measured.

Four 3x3 convolutions, global pooling and a hidden layer of 128 features (the penultimate ones, that distances
are taken in), trained from scratch on the training split with random rotations, scalings, shears and shifts.
Fixed seed and protocol: figures are comparable among models that were measured by the same VERSION on the
same data. Photographs have the classifier of gentok/metrics/eval_classifier.py.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentok.metrics.cache import cached
from gentok.rng import RowRNG
from gentok.types import fingerprint

__all__ = ["SEED", "VERSION", "SmallCNN", "classifier", "fit", "predict", "seeded", "shrunk", "train_classifier", "warp"]

VERSION = 1
"""Raised whenever what is trained, or how, changes: it is part of the cache's key and of every protocol."""
STEPS, BATCH, RATE, SEED = 600, 128, 4e-3, 0
Network = TypeVar("Network", bound=nn.Module)


class SmallCNN(nn.Module):
    """media float [B, C, H, W] in [-1, 1] -> logits [B, classes]; `features` -> [B, 128].

    H and W of at least 8; where both are larger than 48 the media are scaled down to 32 x 32 first.

    Args:
        channels: C.
        classes: how many logits.
        width: channels of the first convolution.
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
        return F.relu(self.hidden(F.adaptive_avg_pool2d(self.trunk(shrunk(media)), 2).flatten(1)))

    def forward(self, media: Tensor) -> Tensor:
        return self.head(self.features(media))


def shrunk(media: Tensor) -> Tensor:
    """media float [B, C, H, W]; scaled to 32 x 32 where both sides are larger than 48."""
    return F.interpolate(media, size=(32, 32), mode="bilinear", antialias=True) if min(media.shape[2:]) > 48 else media


def warp(media: Tensor, rng: RowRNG, degrees: float = 12.0, scale: float = 0.12, shear: float = 0.15, shift: float = 0.08) -> Tensor:
    """Every row under a random affine map; edges repeat.

    Args:
        media: float [B, C, H, W].
        rng: of B rows.
        degrees: of rotation, to either side.
        scale: largest change of the size, as a share of it.
        shear: largest slant.
        shift: largest shift, as a share of the side.

    Returns:
        float [B, C, H, W].
    """
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
    """Trains a SmallCNN, the same every time.

    Args:
        media: float [n, C, H, W] in [-1, 1].
        labels: int64 [n].
        classes: how many there are.
        steps: of the optimizer.
        advance: called with 1 after every step.

    Returns:
        The classifier in eval mode, on the device of `media`.
    """
    model = seeded(lambda: SmallCNN(media.shape[1], classes), media.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.15)
    return fit(
        model, media, labels, steps=steps, batch=BATCH, view=warp, optimizer=optimizer, schedule=schedule, smoothing=0.05,
        after=None if advance is None else lambda step, loss, right: advance(1),
    )  # fmt: skip


def seeded(make: Callable[[], Network], device: torch.device) -> Network:
    """A network whose initial weights are the same every time, in channels_last."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return make().to(device).to(memory_format=torch.channels_last)


def fit(
    model: Network, media: Tensor, labels: Tensor, *, steps: int, batch: int, view: Callable[[Tensor, RowRNG], Tensor],
    optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler, smoothing: float,
    dtype: torch.dtype = torch.float32, after: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Network:  # fmt: skip
    """Trains a classifier; order and views depend on nothing but the step.

    Args:
        model: media [B, C, H, W] -> logits [B, classes].
        media: [n, C, H, W], as `view` takes them.
        labels: int64 [n].
        steps: of the optimizer.
        batch: items of a step.
        view: (some media, rng) -> float [B, C, H, W] that the model sees.
        optimizer, schedule: of the model; the schedule is advanced after every step.
        smoothing: of the labels.
        dtype: of the autocast.
        after: called with (step, loss, share of the views that are recognised) after every step; both are
            scalar tensors.

    Returns:
        The model in eval mode, without gradients.
    """
    per_epoch = max(1, len(media) // batch)
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = RowRNG.of(SEED, [epoch]).permutation(len(media))[0].to(media.device)
        rows = order[place * batch :][:batch]
        seen = view(media[rows], RowRNG.of(SEED + 1, rows.cpu(), step=step)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(media.device.type, dtype, enabled=dtype != torch.float32):
            logits = model(seen)
        loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if after is not None:
            after(step, loss.detach(), (logits.argmax(1) == labels[rows]).float().mean())
    return model.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)


@torch.inference_mode()
def predict(model: Any, media: Tensor, batch_size: int = 250) -> tuple[Tensor, Tensor]:
    """What a classifier sees.

    Args:
        model: a network of `features` and `head` (SmallCNN, PhotoCNN).
        media: float [n, C, H, W] in [-1, 1], on the model's device.
        batch_size: images per forward pass.

    Returns:
        Classes int64 [n], and features float32 [n, D].
    """
    features = torch.cat([model.features(part) for part in media.split(batch_size)])
    return model.head(features).argmax(1), features


def classifier(
    media: Tensor, labels: Tensor, classes: int, *, steps: int = STEPS, cache: str | os.PathLike[str] | None = None,
    progress: Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]] | None = None,
) -> tuple[SmallCNN, dict[str, Any]]:  # fmt: skip
    """The classifier of these data, from the cache where it was trained before.

    Args:
        media, labels, classes, steps: as of `train_classifier`.
        cache: a folder; None: $XDG_CACHE_HOME/gentok (~/.cache/gentok). A damaged file is made anew.
        progress: (what, total, unit) -> a context that gives advance(n); opened only where there is something
            to train.

    Returns:
        The classifier in eval mode on the device of `media`, and what it is in words.
    """
    key = fingerprint("classifier", VERSION, classes, steps, media, labels)
    protocol: dict[str, Any] = {
        "what": f"CNN of 4 convolutions and 128 features, trained from scratch on {len(media)} items, {steps} steps of {BATCH}, with warps",
        "version": VERSION, "seed": SEED, "fingerprint": key, "seconds": 0.0,
    }  # fmt: skip

    def weights() -> dict[str, Tensor]:
        begun = time.perf_counter()
        with progress("training the eval classifier", steps, "steps") if progress else nullcontext() as advance:
            state = train_classifier(media, labels, classes, steps=steps, advance=advance).state_dict()
        protocol["seconds"] = round(time.perf_counter() - begun, 1)
        return state

    state, problem = cached(f"classifier-{key}", weights, cache)
    if problem:
        protocol["cache"] = problem
    model = SmallCNN(media.shape[1], classes)
    model.load_state_dict(state)
    return model.to(media.device).eval().requires_grad_(False), protocol
