"""The eval classifier of photographs: it recognises reconstructions and samples, and is stored in a small
file, the same for everyone.

Three blocks of two 3x3 convolutions behind a frozen first layer that whitens 2x2 patches, as in Jordan, "94 %
on CIFAR-10 in 3.29 seconds" (arXiv 2404.00498, section 3), trained by SGD with Nesterov momentum and one
triangle of the learning rate on mirrored and shifted views. Deviations: ordinary biases and batch statistics,
random instead of alternating mirrors, no lookahead, no averaging of views at test time. `python -m
gentok.eval_classifier` trains one; gentok/metrics/classifiers/ holds those that are part of the package, and
gentok/metrics/classifier.py is the small network that is trained on the spot for digits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentok.atomic import replacing, save_tensors
from gentok.metrics.classifier import fit, seeded, shrunk
from gentok.rng import RowRNG
from gentok.types import fingerprint
from gentok.types.formats import Size, fitted

__all__ = [
    "STORED", "VERSION", "PhotoCNN", "find_eval_classifier", "load_eval_classifier", "save_eval_classifier",
    "train_eval_classifier", "views",
]  # fmt: skip

STORED = Path(__file__).parent / "classifiers"
"""The eval classifiers that are part of the package."""
HEADER = "gentok_judge"
"""Under this key, the first name of the format, a file's header describes its classifier."""

VERSION = 1
_ABOUT = {"version": int, "channels": Size, "classes": list[str], "widths": tuple[Size, Size, Size]}
"""Raised whenever the network, or how it is trained, changes."""
WIDTHS, BATCH, RATE, DECAY, SMOOTHING, SHIFT = (64, 128, 256), 500, 0.4, 5e-4, 0.1, 2


class PhotoCNN(nn.Module):
    """media float [B, C, H, W] in [-1, 1] -> logits [B, classes]; `features` -> [B, widths[-1]].

    H and W of at least 16; where both are larger than 48 the media are scaled down to 32 x 32 first.

    Args:
        channels: C.
        classes: how many logits.
        widths: channels of each block.
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
        """Sets the first layer: every eigenvector of the covariance of all 2x2 patches over the root of its
        eigenvalue, and its negative, since what follows is no odd function.

        Args:
            media: float [n, C, H, W].
            epsilon: added to the eigenvalues.
        """
        c = media.shape[1]
        patches = media.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 4 * c)
        values, vectors = torch.linalg.eigh(torch.cov(patches.double().T))
        filters = (vectors / (values + epsilon).sqrt()).T.reshape(-1, c, 2, 2).to(self.whiten.weight)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))

    def features(self, media: Tensor) -> Tensor:
        """float [B, widths[-1]]."""
        return F.adaptive_max_pool2d(self.trunk(self.whiten(shrunk(media))), 1).flatten(1)

    def forward(self, media: Tensor) -> Tensor:
        # an eighth: the largest of many activations is large, and the loss shall begin at that of a guess
        return self.head(self.features(media)) / 8


def views(media: Tensor, rng: RowRNG, shift: int = SHIFT) -> Tensor:
    """Each row mirrored or not, and shifted (reflected at the edges).

    Args:
        media: float [B, C, H, W].
        rng: of B rows.
        shift: pixels, at most, each way.

    Returns:
        float [B, C, H, W] in channels_last.
    """
    height, width = media.shape[2:]
    u = rng.uniform(3).to(media.device)
    y, x = ((u[:, i] * (2 * shift + 1)).long() for i in (0, 1))
    down = y[:, None] + torch.arange(height, device=media.device)
    across = torch.arange(width, device=media.device)
    across = torch.where(u[:, 2, None] < 0.5, across, across.flip(0)) + x[:, None]
    padded = F.pad(media, [shift] * 4, mode="reflect").permute(0, 2, 3, 1)
    rows = torch.arange(len(media), device=media.device)[:, None, None]
    return padded[rows, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)


def train_eval_classifier(
    media: Tensor, labels: Tensor, classes: int, *, epochs: int, dtype: torch.dtype = torch.float32, batch: int = BATCH,
    widths: tuple[int, ...] = WIDTHS, report: Callable[[int, float, float], None] | None = None,
) -> PhotoCNN:  # fmt: skip
    """Trains a PhotoCNN, the same every time.

    Args:
        media: uint8 [n, C, H, W].
        labels: int64 [n].
        classes: how many there are.
        epochs: over the media.
        dtype: of the autocast in training.
        batch: items of a step.
        widths: of the network.
        report: called with (epoch, loss, accuracy), both of the training views, after every epoch.

    Returns:
        The classifier in eval mode and float32, on the device of `media`.

    Raises:
        ValueError: there are fewer items than one batch holds.
    """
    if len(media) < batch:
        raise ValueError(f"an eval classifier of photographs learns from at least {batch} items; there are {len(media)}")
    model = seeded(lambda: PhotoCNN(media.shape[1], classes, widths), media.device)
    model.fit_whitening(_floats(media[:5000]))
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learnt, lr=RATE, momentum=0.9, nesterov=True, weight_decay=DECAY)
    per_epoch = len(media) // batch
    steps, sums = epochs * per_epoch, torch.zeros(2, device=media.device)

    def triangle(step: int) -> float:
        return min((step + 1) / (0.2 * steps + 1), (steps - step) / (0.8 * steps))

    def after(step: int, loss: Tensor, right: Tensor) -> None:
        sums.add_(torch.stack([loss, right]))
        if report is not None and (step + 1) % per_epoch == 0:
            report(step // per_epoch, *(sums / per_epoch).tolist())
            sums.zero_()

    return fit(
        model, media, labels, steps=steps, batch=batch, view=lambda part, rng: views(_floats(part), rng), optimizer=optimizer,
        schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, triangle), smoothing=SMOOTHING, dtype=dtype, after=after,
    )  # fmt: skip


def _floats(media: Tensor) -> Tensor:
    return media.float() / 127.5 - 1.0


def save_eval_classifier(model: PhotoCNN, path: str | os.PathLike[str], about: dict[str, Any]) -> None:
    """Writes one safetensors file, under a temporary name that is then changed.

    Args:
        model: its convolutions are stored in float16 (half the size, and finer than bfloat16), the rest in
            float32.
        path: of the file.
        about: what the header says.
    """
    state = {k: v.cpu().contiguous() for k, v in model.state_dict().items()}
    state = {k: v.half() if v.dim() == 4 and k != "whiten.weight" else v for k, v in state.items()}
    with replacing(path) as temporary:
        header = {"version": VERSION, **about, "fingerprint": fingerprint(state)}
        save_tensors(state, temporary, {HEADER: json.dumps(header)})


def load_eval_classifier(path: str | os.PathLike[str]) -> tuple[PhotoCNN, dict[str, Any]]:
    """An eval classifier in eval mode and float32 on the CPU, and what its header says.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it holds no eval classifier, or one of another version.
    """
    from safetensors import SafetensorError, safe_open

    wrote = "a file that `python -m gentok.eval_classifier` wrote"
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no eval classifier {path}: give {wrote}, or classifier=auto")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[HEADER])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no eval classifier: expected {wrote} ({type(error).__name__})") from None
    if not isinstance(about, dict) or not set(_ABOUT) <= set(about):
        raise ValueError(f"{path} is no eval classifier: expected {wrote}")
    if about.pop("fingerprint", None) not in (None, fingerprint(state)):  # files of before have none
        raise ValueError(f"{path} is not what was written there: it was changed or damaged")
    if fitted(about, _ABOUT, str(path))["version"] != VERSION:
        raise ValueError(f"{path} is an eval classifier of version {about['version']}, this gentok asks version {VERSION}: train it anew")
    sizes = about["channels"], len(about["classes"]), tuple(about["widths"])
    with torch.device("meta"):  # a header may claim any size
        shapes = {name: value.shape for name, value in PhotoCNN(*sizes).state_dict().items()}
    if shapes != {name: value.shape for name, value in state.items()}:
        raise ValueError(f"{path} is damaged: its weights are not of {sizes[0]} channels, {sizes[1]} classes and widths {sizes[2]}")
    model = PhotoCNN(*sizes)
    model.load_state_dict({name: value.float() for name, value in state.items()})
    return model.eval().requires_grad_(False), about


def find_eval_classifier(choice: str, classes: Sequence[str], media_shape: tuple[int, ...]) -> tuple[PhotoCNN, dict[str, Any]] | None:
    """A stored eval classifier.

    Args:
        choice: "auto": the one in the package of exactly these classes, channels and size; "small": none; or
            a file.
        classes: names of the data's classes.
        media_shape: (C, H, W) of the data.

    Returns:
        The classifier in eval mode on the CPU and what it is, or None where a small one is to be trained on
        the spot.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no eval classifier, or one of other classes or channels.
    """
    if choice == "small":
        return None
    for path in sorted(STORED.glob("*.safetensors")) if choice == "auto" else [Path(choice)]:
        model, about = load_eval_classifier(path)
        same = about["classes"] == list(classes) and about["channels"] == media_shape[0]
        if choice != "auto" and not same:
            raise ValueError(
                f"classifier={choice} knows the classes {', '.join(about['classes'][:12])} in {about['channels']} channels; "
                f"these data have {', '.join(list(classes)[:12])} in {media_shape[0]}: classifier=auto finds or trains one"
            )
        if choice != "auto" or (same and about["size"] == list(media_shape[1:])):
            described = {key: about[key] for key in ("what", "version", "seed", "command", "epochs")}
            file = f"gentok/metrics/classifiers/{path.name}" if choice == "auto" else choice
            return model, {**described, "file": file, "own_held_out_accuracy": about["held_out_accuracy"]}
    return None
