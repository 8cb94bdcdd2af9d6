"""The measures that ImageNet models are compared by: FID, sFID, Inception score, precision and recall, in the features of the Inception
network of 2015, whose weights a user points to.

    FID   Fréchet distance of the 2,048 pooled features                                        (arXiv 1706.08500)
    sFID  the same of 7 channels of a map of 17 x 17, the first branch of the block Mixed_6d   (arXiv 2103.03841)
    IS    exp of the mean KL(p(y | x), p(y)) over parts of 5,000 consecutive images, then the mean over these (arXiv 1606.03498)

The network, its resizing to 299 px without antialiasing and its weights are torch-fidelity's; what is taken from it is what ADM's
evaluation takes: logits without the last bias, the map behind its ReLU.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.errors import FormatError
from gentok.metrics.image import frechet_of_statistics, precision, recall
from gentok.metrics.optional_packages import package

__all__ = ["IS_PART", "Inception", "Statistics", "inception_score", "measures"]

IS_PART = 5000
"""Images whose mean prediction stands for p(y)."""
_CHANNELS = 7
_WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"


class Inception:
    """The network.

    Args:
        path: of its weights, pt_inception-2015-12-05-6726825d.pth.
        device: where it runs.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: it is damaged, or holds other weights.
        ImportError: torch-fidelity is missing.
    """

    def __init__(self, path: str | os.PathLike[str], device: str = "cpu"):
        extractor = package("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity", "the Inception network of FID")
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"inception={path}: there is no such file; it is that of the weights, {_WEIGHTS}")
        try:
            torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity would run what a file says
            self.network = extractor.FeatureExtractorInceptionV3(
                "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
            ).to(device)
        except (RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, KeyError, AttributeError, TypeError, OSError) as error:
            raise FormatError(f"inception={path}: damaged, or not the weights {_WEIGHTS} ({str(error).split(': ')[0][:120]})") from error
        self.device = device
        self._map: Tensor | None = None
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, module: Any, inputs: Any, output: Tensor) -> None:
        self._map = output[:, :_CHANNELS]

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """Features of images.

        Args:
            pixels: uint8 [n, 1 or 3, H, W].

        Returns:
            pooled float32 [n, 2048], spatial [n, 2023] and logits [n, 1008], on the CPU.
        """
        pixels = pixels.expand(-1, 3, -1, -1).contiguous().to(self.device)
        pooled, logits = self.network(pixels)
        assert self._map is not None
        return {"pooled": pooled.cpu(), "spatial": self._map.flatten(1).float().cpu(), "logits": logits.float().cpu()}


class Statistics:
    """Mean float64 [D] and covariance [D, D] (over n - 1) of features."""

    def __init__(self, mean: Tensor, covariance: Tensor):
        self.mean, self.covariance = mean.double(), covariance.double()

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """features: float [n, D], at least two rows."""
        rows = features.double()
        return cls(rows.mean(0), torch.cov(rows.T))

    def distance(self, other: Statistics) -> float:
        """The Fréchet distance."""
        return float(frechet_of_statistics(self.mean, self.covariance, other.mean, other.covariance))


def inception_score(logits: Tensor, part: int = IS_PART) -> float:
    """logits: float [n, classes], in the order in which the images were drawn; part: how many stand for p(y)."""
    scores = []
    for some in logits.double().split(part):
        log_p = some.log_softmax(1)
        p = log_p.exp()
        scores.append((p * (log_p - p.mean(0).log())).sum(1).mean().exp())
    return float(torch.stack(scores).mean())


def measures(
    made: dict[str, Tensor], reference: dict[str, Tensor] | None, statistics: dict[str, Statistics], k: int = 3
) -> dict[str, float]:
    """All measures of generated images.

    Args:
        made: what Inception gives of them.
        reference: the same of real images; None: no precision and recall.
        statistics: "pooled" and "spatial" of the reference; what is missing is not measured.
        k: which neighbour a manifold reaches to.

    Returns:
        fid, sfid, inception_score, precision, recall.
    """
    out = {}
    for name, of in (("fid", "pooled"), ("sfid", "spatial")):
        if of in statistics:
            out[name] = Statistics.of(made[of]).distance(statistics[of])
    out["inception_score"] = inception_score(made["logits"])
    if reference is not None:
        out["precision"] = float(precision(made["pooled"], reference["pooled"], k))
        out["recall"] = float(recall(made["pooled"], reference["pooled"], k))
    return out
