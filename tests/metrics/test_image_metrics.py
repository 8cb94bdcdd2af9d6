"""Image measures against known answers and against torchmetrics."""

import math

import pytest
import torch

from gentok.metrics import image


def gaussian(rows: int, width: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * scale + mean


def test_psnr_of_a_constant_error():
    x = torch.zeros(2, 1, 4, 4)
    y = x.clone()
    y[0] += 0.2
    y[1] += 0.02
    torch.testing.assert_close(image.psnr(x, y), torch.tensor([20.0, 40.0], dtype=torch.float64))
    assert image.psnr(x, x).eq(math.inf).all()
    with pytest.raises(ValueError, match="one shape"):
        image.psnr(x, y[:, :, :2])


def test_ssim_is_one_for_equal_images_and_falls_with_noise():
    x = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noisy = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(image.ssim(x, x), torch.ones(3))
    assert image.ssim(noisy, x).shape == (3,) and (image.ssim(noisy, x) < 0.95).all()
    assert image.ssim(x[:1], x[:1]).shape == (1,)


@pytest.mark.parametrize("rows", [400, 20])
def test_frechet_equals_the_formula(rows):
    """Also with fewer rows than features, where covariances are singular."""
    x, y = gaussian(rows, 32, 0).double(), gaussian(rows + 5, 32, 1, mean=0.3, scale=1.5).double()
    s1, s2 = torch.cov(x.T), torch.cov(y.T)
    root = torch.linalg.eigvals(s1 @ s2).real.clamp(min=0).sqrt().sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + s1.trace() + s2.trace() - 2 * root
    torch.testing.assert_close(image.frechet(x, y), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(image.frechet(x, x), torch.zeros((), dtype=torch.float64), atol=1e-9, rtol=0)


def test_frechet_of_a_shift_is_its_square():
    x = gaussian(300, 8, 0).double()
    torch.testing.assert_close(image.frechet(x, x + 2), torch.tensor(32.0, dtype=torch.float64))


@pytest.fixture(scope="module")
def repeated_distances():
    """80 times 200 new rows and two distortions of them: both Fréchet distances to these rows, and the same
    without each of 20 groups."""
    whole, without = [], []
    for seed in range(80):
        rows = gaussian(200, 8, 3 * seed)
        made = [k * rows + 0.5 * gaussian(200, 8, 3 * seed + i, mean=0.6) for i, k in ((1, 0.8), (2, 0.75))]
        whole.append([image.frechet(m, rows) for m in made])
        without.append(torch.stack([image.frechet_without(m, rows) for m in made]))
    return torch.tensor(whole), torch.stack(without)


@pytest.mark.parametrize("what", ["distance", "difference"])
def test_the_jackknife_tells_how_far_a_frechet_distance_varies(repeated_distances, what):
    whole, without = (t[:, 0] if what == "distance" else t[:, 1] - t[:, 0] for t in repeated_distances)
    error = image.jackknife_error(without)
    assert error.mean() == pytest.approx(whole.std().item(), rel=0.3)
    # a spread over groups that forgets how much they share is four times too small
    assert without.std(-1).mean() < 0.3 * whole.std()


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = gaussian(500, 1, 0).double()[:, 0]
    without = (x.sum() - x) / (len(x) - 1)
    torch.testing.assert_close(image.jackknife_error(without), x.std() / len(x) ** 0.5)


def test_groups_are_left_out_of_both_sets():
    x, y = gaussian(40, 3, 0), gaussian(40, 3, 1)
    rest = torch.arange(40) % 4 != 1
    torch.testing.assert_close(image.frechet_without(x, y, groups=4)[1], image.frechet(x[rest], y[rest]))
    with pytest.raises(ValueError, match="40 and 39 rows"):
        image.frechet_without(x, y[:39])
    with pytest.raises(ValueError, match="41 groups"):
        image.frechet_without(x, y, groups=41)


def test_kid_equals_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    x, y = gaussian(60, 16, 0), gaussian(60, 16, 1, mean=0.4)
    mean, deviation = image.kid(x, y)
    torch.testing.assert_close(mean, poly_mmd(x.double(), y.double()))
    assert deviation == 0


def test_kid_is_unbiased():
    """The mean over many pairs of one distribution is 0 within three standard errors; of two it is far from
    it."""
    same = torch.stack([image.kid(gaussian(20, 8, 2 * i), gaussian(20, 8, 2 * i + 1))[0] for i in range(200)])
    error = same.std() / 200**0.5
    assert same.mean().abs() < 3 * error
    assert image.kid(gaussian(200, 8, 0), gaussian(200, 8, 1, mean=0.5), subsets=20, size=50)[0] > 20 * error


def test_kid_subsets_are_reproducible():
    x, y = gaussian(50, 4, 0), gaussian(40, 4, 1)
    assert image.kid(x, y, subsets=5, size=10) == image.kid(x, y, subsets=5, size=10)
    assert image.kid(x, y, subsets=5, size=10) != image.kid(x, y, subsets=5, size=10, seed=1)


def test_precision_and_recall_of_identical_and_of_disjoint_sets():
    x = gaussian(100, 4, 0)
    assert image.precision(x, x) == 1 and image.recall(x, x) == 1
    assert image.precision(x, x + 100) == 0 and image.recall(x, x + 100) == 0


def test_recall_falls_when_a_mode_is_dropped_and_precision_when_one_is_invented():
    a, b = gaussian(100, 4, 0), gaussian(100, 4, 1, mean=50)
    both = torch.cat([a, b])
    assert image.recall(gaussian(100, 4, 2), both) < 0.55 < 0.9 < image.precision(gaussian(100, 4, 2), both)
    assert image.precision(both, gaussian(100, 4, 2)) < 0.55


def test_chunks_change_nothing():
    x, y = gaussian(50, 4, 0), gaussian(40, 4, 1)
    whole, parts = image.Manifold(x, 3), image.Manifold(x, 3, chunk=7)
    torch.testing.assert_close(whole.radii, parts.radii)
    assert torch.equal(whole.contains(y), parts.contains(y))
    torch.testing.assert_close(image.nearest_distances(y, x), image.nearest_distances(y, x, chunk=3))


def test_nearest_distance_of_a_copy_is_zero_and_of_a_shift_its_length():
    x = gaussian(20, 4, 0).reshape(20, 1, 2, 2) * 10
    torch.testing.assert_close(image.nearest_distances(x[:5], x), torch.zeros(5), atol=0, rtol=0)
    y = torch.zeros(1, 4)
    torch.testing.assert_close(image.nearest_distances(torch.full((3, 4), 2.0), y), torch.full((3,), 4.0))
    with pytest.raises(ValueError, match="more than 3 rows"):
        image.Manifold(y)
