"""Measures of images and of sets of features. Pure functions on tensors; features are rows [n, D] of any
network.

Fréchet distance: Heusel et al., arXiv 1706.08500. KID: Bińkowski et al., arXiv 1801.01401 (cubic kernel,
unbiased). Precision and recall: Kynkäänniemi et al., arXiv 1904.06991 (k-nearest-neighbour manifolds).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "psnr", "ssim", "frechet", "frechet_of_statistics", "frechet_without", "jackknife_error", "kid", "Manifold",
    "nearest_distances", "precision", "recall",
]  # fmt: skip


def psnr(images: Tensor, reference: Tensor, data_range: float = 2.0) -> Tensor:
    """PSNR of each image. Ours, since torchmetrics' rounds differently in the last digits.

    Args:
        images, reference: float [B, ...].
        data_range: largest value less smallest one.

    Returns:
        float64 [B]: 10 log10(range² / mean squared error) dB; infinite where both are equal.

    Raises:
        ValueError: shapes differ.
    """
    _same_shape(images, reference)
    error = (images.double() - reference.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(data_range**2 / error)


def ssim(images: Tensor, reference: Tensor, data_range: float = 2.0) -> Tensor:
    """Structural similarity of each image, with an 11-pixel Gaussian window.

    Args:
        images, reference: float [B, C, H, W], at least 11 x 11 pixels.
        data_range: largest value less smallest one.

    Returns:
        float [B].

    Raises:
        ValueError: shapes differ.
    """
    _same_shape(images, reference)
    from torchmetrics.functional.image import structural_similarity_index_measure

    return structural_similarity_index_measure(images.float(), reference.float(), data_range=data_range, reduction="none").reshape(-1)


def frechet(features: Tensor, reference: Tensor) -> Tensor:
    """|mean difference|² + tr(S1 + S2 - 2 (S1 S2)^(1/2)), with covariances over n - 1 and m - 1.

    Biased upwards for few rows: compare with the distance of two real sets of the same sizes. torchmetrics'
    takes eigenvalues of S1 S2, which are imprecise where there are fewer rows than features.

    Args:
        features, reference: float [n, D] and [m, D], at least two rows each.

    Returns:
        float64 scalar.
    """
    x, y = _rows(features, reference, least=2)
    x_mean, y_mean = x.mean(0), y.mean(0)
    # tr (S1 S2)^(1/2) is the nuclear norm of A Bᵀ for any A, B with AᵀA = S1, BᵀB = S2: the centred rows themselves
    a, b = _root(x - x_mean), _root(y - y_mean)
    cross = torch.linalg.svdvals(a @ b.T).sum()
    return (x_mean - y_mean).square().sum() + a.square().sum() + b.square().sum() - 2 * cross


def _root(centred: Tensor) -> Tensor:
    """A matrix A with AᵀA = the covariance of the centred rows, of at most D rows."""
    scaled = centred / (len(centred) - 1) ** 0.5
    return torch.linalg.qr(scaled, mode="r").R if len(scaled) > scaled.shape[1] else scaled


def frechet_of_statistics(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> Tensor:
    """`frechet` of two sets of which only means and covariances are known.

    Args:
        mean, other_mean: float64 [D].
        covariance, other_covariance: float64 [D, D].

    Returns:
        float64 scalar.
    """
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()  # S1 = R Rᵀ, and S1 S2 has the eigenvalues of Rᵀ S2 R, which is symmetric
    cross = torch.linalg.eigvalsh(root.T @ other_covariance @ root).clamp(min=0).sqrt().sum()
    return (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * cross


def frechet_without(features: Tensor, reference: Tensor, groups: int = 20) -> Tensor:
    """`frechet` of all rows but one group's, group by group, each left out of both sets; for
    `jackknife_error`.

    Row i of both sets is in one group (i modulo `groups`), so that reconstructions may be set beside their
    originals.

    Args:
        features, reference: float [n, D] each.
        groups: 2 to n.

    Returns:
        float64 [groups].
    """
    x, y = _rows(features, reference, least=2)
    if len(x) != len(y) or not 2 <= groups <= len(x):
        raise ValueError(f"leaving out groups wants two sets of n rows and 2 to n groups; got {len(x)} and {len(y)} rows, {groups} groups")
    group = torch.arange(len(x), device=x.device) % groups
    return torch.stack([frechet(x[group != g], y[group != g]) for g in range(groups)])


def jackknife_error(without: Tensor) -> Tensor:
    """The standard error of an estimate made with all groups, such as a Fréchet distance, or the difference
    of two to the same reference.

    Args:
        without: float [..., groups], the estimate made without each group.

    Returns:
        float [...].
    """
    groups = without.shape[-1]
    return ((groups - 1) / groups * (without - without.mean(-1, keepdim=True)).square().sum(-1)).sqrt()


def kid(features: Tensor, reference: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Kernel distance: the unbiased MMD² with the kernel (x·y / D + 1)³. Summed as torchmetrics' poly_mmd, in
    an order that rounds differently in the last digits.

    Args:
        features, reference: float [n, D] and [m, D].
        subsets: how many are drawn, without replacement.
        size: rows of a subset, at most min(n, m).
        seed: of the subsets.

    Returns:
        Mean and standard deviation over the subsets.
    """
    x, y = _rows(features, reference, least=2)
    size = min(size, len(x), len(y))
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets if size < max(len(x), len(y)) else 1):
        a = x[torch.randperm(len(x), generator=generator)[:size].to(x.device)]
        b = y[torch.randperm(len(y), generator=generator)[:size].to(y.device)]
        values.append(_mmd(a, b))
    out = torch.stack(values)
    return out.mean(), out.std(correction=0)


def _mmd(x: Tensor, y: Tensor) -> Tensor:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n = len(x)
    xx, yy = kernel(x, x), kernel(y, y)
    within = (xx.sum() - xx.diagonal().sum() + yy.sum() - yy.diagonal().sum()) / (n * (n - 1))
    return within - 2 * kernel(x, y).mean()


class Manifold:
    """The union of balls around rows, each reaching to its k-th nearest other row.

    Args:
        features: float [n > k, D].
        k: which neighbour.
        chunk: rows whose distances are in memory at once.
    """

    def __init__(self, features: Tensor, k: int = 3, chunk: int = 1024):
        if len(features) <= k:
            raise ValueError(f"a manifold of {k} nearest neighbours needs more than {k} rows; got {len(features)}")
        self.features, self.chunk = features.float(), chunk
        # the nearest row is the row itself
        radii = [torch.cdist(part, self.features).kthvalue(k + 1, dim=1).values for part in self.features.split(chunk)]
        self.radii = torch.cat(radii)

    def contains(self, features: Tensor) -> Tensor:
        """float [m, D] -> bool [m]."""
        parts = features.to(self.features).split(self.chunk)
        return torch.cat([(torch.cdist(part, self.features) <= self.radii).any(1) for part in parts])


def precision(features: Tensor, reference: Tensor, k: int = 3) -> Tensor:
    """Share of `features` (generated, [n, D]) that lie in the manifold of `reference` (real, [m, D]): are
    samples plausible?"""
    return Manifold(reference, k).contains(features).double().mean()


def recall(features: Tensor, reference: Tensor, k: int = 3) -> Tensor:
    """Share of `reference` (real, [m, D]) that lie in the manifold of `features` (generated, [n, D]): is the
    variety there?"""
    return Manifold(features, k).contains(reference).double().mean()


def nearest_distances(features: Tensor, reference: Tensor, chunk: int = 1024) -> Tensor:
    """Euclidean distance of each row to its nearest one of a reference.

    Its mean over samples, against that of held-out data, tells copies of training items from new ones.

    Args:
        features, reference: float [n, ...] and [m, ...], flattened to rows.
        chunk: rows whose distances are in memory at once.

    Returns:
        float32 [n].
    """
    x, y = features.float().flatten(1), reference.float().flatten(1)
    # differences, not products: a copy must read 0
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cat([torch.cdist(part, y, compute_mode=mode).min(1).values for part in x.split(chunk)])


def _same_shape(images: Tensor, reference: Tensor) -> None:
    if images.shape != reference.shape:
        raise ValueError(f"both sets of images must have one shape; got {tuple(images.shape)} and {tuple(reference.shape)}")


def _rows(features: Tensor, reference: Tensor, least: int) -> tuple[Tensor, Tensor]:
    if features.dim() != 2 or reference.dim() != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(f"features must be [n, D] and [m, D]; got {tuple(features.shape)} and {tuple(reference.shape)}")
    if min(len(features), len(reference)) < least:
        raise ValueError(f"this measure needs at least {least} rows of features; got {len(features)} and {len(reference)}")
    return features.double(), reference.double()
