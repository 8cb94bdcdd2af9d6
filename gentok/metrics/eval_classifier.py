"""A classifier of photographs: who recognises reconstructions and samples, stored in a small file so that everyone asks the same one.

Three blocks of two 3x3 convolutions behind a frozen first layer that whitens 2x2 patches, as in Jordan, "94 % on CIFAR-10 in 3.29 seconds"
(arXiv 2404.00498, section 3), trained by SGD with Nesterov momentum and one triangle of the learning rate on mirrored and shifted views.
Deviations: ordinary biases and batch statistics, random instead of alternating mirrors, no lookahead, no averaging of views at test time.
`python -m gentok.eval_classifier` trains one; gentok/metrics/classifier.py is the small network that is trained on the spot for digits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentok.rng import RowRNG

__all__ = ["VERSION", "PhotoCNN", "views", "train_judge", "save_judge", "load_judge"]

VERSION = 1
"""Raised whenever the network, or how it is trained, changes."""
WIDTHS, BATCH, RATE, DECAY, SMOOTHING, SHIFT, SEED = (64, 128, 256), 500, 0.4, 5e-4, 0.1, 2, 0


class PhotoCNN(nn.Module):
    """media float [B, C, H, W] in [-1, 1] -> logits [B, classes]; `features` -> [B, widths[-1]].

    H and W of at least 16; where both are larger than 48 the media are scaled down to 32 x 32 first.
    """

    def __init__(self, channels: int, classes: int, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        inner = 2 * 4 * channels
        self.whiten = nn.Conv2d(channels, inner, 2, bias=False).requires_grad_(False)
        layers: list[nn.Module] = [nn.GELU()]
        for width in widths:
            layers += [nn.Conv2d(inner, width, 3, 1, 1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.GELU()]
            layers += [nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.GELU()]
            inner = width
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(inner, classes)

    @torch.no_grad()
    def fit_whitening(self, media: Tensor, epsilon: float = 5e-4) -> None:
        """The first layer from the covariance of all 2x2 patches of media float [n, C, H, W]: every eigenvector over the root of its
        eigenvalue, and its negative, since what follows is no odd function."""
        c = media.shape[1]
        patches = media.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 4 * c)
        values, vectors = torch.linalg.eigh(torch.cov(patches.double().T))
        filters = (vectors / (values + epsilon).sqrt()).T.reshape(-1, c, 2, 2).to(self.whiten.weight)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))

    def features(self, media: Tensor) -> Tensor:
        if min(media.shape[2:]) > 48:
            media = F.interpolate(media, size=(32, 32), mode="bilinear", antialias=True)
        return F.adaptive_max_pool2d(self.trunk(self.whiten(media)), 1).flatten(1)

    def forward(self, media: Tensor) -> Tensor:
        # an eighth: the largest of many activations is large, and the loss shall begin at that of a guess
        return self.head(self.features(media)) / 8


def views(media: Tensor, rng: RowRNG, shift: int = SHIFT) -> Tensor:
    """[B, C, H, W] -> the same shape in channels_last: each row mirrored or not, and shifted by up to `shift` pixels each way (reflected
    at the edges), as its own noise says."""
    height, width = media.shape[2:]
    u = rng.uniform(3).to(media.device)
    y, x = ((u[:, i] * (2 * shift + 1)).long() for i in (0, 1))
    down = y[:, None] + torch.arange(height, device=media.device)
    across = torch.arange(width, device=media.device)
    across = torch.where(u[:, 2, None] < 0.5, across, across.flip(0)) + x[:, None]
    padded = F.pad(media, [shift] * 4, mode="reflect").permute(0, 2, 3, 1)
    rows = torch.arange(len(media), device=media.device)[:, None, None]
    return padded[rows, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)


def train_judge(
    media: Tensor, labels: Tensor, classes: int, *, epochs: int, dtype: torch.dtype = torch.float32, batch: int = BATCH,
    widths: tuple[int, ...] = WIDTHS, report: Callable[[int, float, float], None] | None = None,
) -> PhotoCNN:  # fmt: skip
    """media uint8 [n, C, H, W], labels int64 [n] -> a judge in eval mode and float32, on the device of `media`.

    dtype: of the autocast in training. report(epoch, loss, accuracy), both of its training views, is called after every epoch.
    Raises ValueError where there are fewer items than one batch holds.
    """
    if len(media) < batch:
        raise ValueError(f"a judge of photographs learns from at least {batch} items; there are {len(media)}")
    device = media.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = PhotoCNN(media.shape[1], classes, widths).to(device).to(memory_format=torch.channels_last)
    model.fit_whitening(_floats(media[:5000]))
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learnt, lr=RATE, momentum=0.9, nesterov=True, weight_decay=DECAY)
    per_epoch = len(media) // batch
    steps = epochs * per_epoch
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = RowRNG.of(SEED, [epoch]).permutation(len(media))[0].to(device)
            losses, right = torch.zeros((), device=device), torch.zeros((), device=device)
        optimizer.param_groups[0]["lr"] = RATE * min((step + 1) / (0.2 * steps + 1), (steps - step) / (0.8 * steps))
        rows = order[place * batch :][:batch]
        seen = views(_floats(media[rows]), RowRNG.of(SEED + 1, rows.cpu(), step=step))
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model(seen)
        loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=SMOOTHING)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses, right = losses + loss.detach(), right + (logits.argmax(1) == labels[rows]).float().mean()
        if report is not None and place == per_epoch - 1:
            report(epoch, losses.item() / per_epoch, right.item() / per_epoch)
    return model.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)


def _floats(media: Tensor) -> Tensor:
    return media.float() / 127.5 - 1.0


def save_judge(model: PhotoCNN, path: str | os.PathLike[str], about: dict[str, Any]) -> None:
    """One safetensors file: convolutions in float16 (half the size, and finer than bfloat16), the rest in float32, `about` as its header.
    Written under a temporary name, then renamed."""
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.cpu().contiguous() for k, v in model.state_dict().items()}
    state = {k: v.half() if v.dim() == 4 and k != "whiten.weight" else v for k, v in state.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(state, temporary, metadata={"gentok_judge": json.dumps({"version": VERSION, **about})})
    os.replace(temporary, path)


def load_judge(path: str | os.PathLike[str]) -> tuple[PhotoCNN, dict[str, Any]]:
    """A judge in eval mode and float32 on the CPU, and what its header says of it.

    Raises FileNotFoundError or ValueError with a line on what is no judge of this version.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no judge {path}: give a file that `python -m gentok.eval_classifier` wrote, or judge=auto")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["gentok_judge"])
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no judge: expected a file that `python -m gentok.eval_classifier` wrote ({type(error).__name__})") from None
    if about["version"] != VERSION:
        raise ValueError(f"{path} is a judge of version {about['version']}, this gentok asks those of version {VERSION}: train it anew")
    model = PhotoCNN(about["channels"], len(about["classes"]), tuple(about["widths"]))
    model.load_state_dict(state)
    return model.eval().requires_grad_(False), about
