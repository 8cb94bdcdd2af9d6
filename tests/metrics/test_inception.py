"""FID and its kin: by formulas written out here, on files as ADM has them, and with torch-fidelity's network of random weights."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from gentok.cli import compose
from gentok.data.npz_images import NpzImages, npz_array
from gentok.errors import FormatError
from gentok.evaluate import evaluate
from gentok.metrics.image import frechet, frechet_of_statistics
from gentok.metrics.inception import Statistics, inception_score, measures

ROOT = Path(__file__).resolve().parents[2]


def rows(n, d, seed, shift=0.0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=random, dtype=torch.float64) @ torch.randn(d, d, generator=random, dtype=torch.float64) + shift


@pytest.mark.parametrize("n", [200, 7])  # 7 rows of 12 features: covariances without full rank
def test_the_distance_of_statistics_is_that_of_rows(n):
    x, y = rows(n, 12, 0), rows(n + 3, 12, 1, 0.5)
    from scipy.linalg import sqrtm

    a, b = Statistics.of(x), Statistics.of(y)
    wanted = (a.mean - b.mean).square().sum() + torch.trace(a.covariance + b.covariance)
    wanted -= 2 * np.trace(sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real)
    assert a.distance(b) == pytest.approx(float(frechet(x, y)), rel=1e-6) == pytest.approx(float(wanted), rel=1e-3)
    assert float(frechet_of_statistics(a.mean, a.covariance, a.mean, a.covariance)) == pytest.approx(0, abs=1e-6 * float(wanted))


def test_the_inception_score_is_its_formula_on_parts_in_order():
    logits = torch.randn(25, 6, generator=torch.Generator().manual_seed(0)) * 3
    scores = []
    for part in (logits[:10], logits[10:20], logits[20:]):
        p = np.exp(part.numpy()) / np.exp(part.numpy()).sum(1, keepdims=True)
        scores.append(np.exp(np.mean([sum(row * np.log(row / p.mean(0))) for row in p])))
    assert inception_score(logits, 10) == pytest.approx(np.mean(scores), rel=1e-5)
    assert inception_score(torch.eye(6).repeat(4, 1) * 1000) == pytest.approx(6) and inception_score(torch.zeros(9, 6)) == pytest.approx(1)


def test_precision_and_recall_are_their_definitions():
    made, real = rows(30, 5, 2), rows(40, 5, 3, 0.3)

    def covered(points, manifold, k=3):
        distance = np.linalg.norm(manifold[:, None] - manifold[None], axis=-1)
        radius = np.sort(distance, 1)[:, k]  # the nearest is the point itself
        return np.mean([(np.linalg.norm(manifold - p, axis=1) <= radius).any() for p in points])

    features = {"pooled": made, "spatial": made[:, :2], "logits": made}
    found = measures(features, {"pooled": real}, {"pooled": Statistics.of(real)})
    assert found["precision"] == pytest.approx(covered(made.numpy(), real.numpy()))
    assert found["recall"] == pytest.approx(covered(real.numpy(), made.numpy()))
    assert found["fid"] == pytest.approx(float(frechet(made, real)), rel=1e-6) and "sfid" not in found


# -------------------------------------------------------------------------------------------------------------------- files


def images(n, seed, size=16):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def test_images_are_mapped_from_an_npz_and_unpacked_from_a_compressed_one(tmp_path):
    pixels = images(7, 0)
    np.savez(tmp_path / "plain.npz", pixels, np.arange(7))
    np.savez_compressed(tmp_path / "packed.npz", pixels)
    for name in ("plain", "packed"):
        found = NpzImages(tmp_path / f"{name}.npz")
        assert len(found) == 7 and (found.read(range(2, 5)).movedim(1, -1).numpy() == pixels[2:5]).all()
    assert isinstance(npz_array(tmp_path / "plain.npz", "arr_1"), np.memmap)


@pytest.mark.parametrize("damage", ["missing", "text", "cut", "grey", "pickle", "other"])
def test_a_file_that_holds_no_images_is_one_line(tmp_path, damage):
    path = tmp_path / "x.npz"
    if damage == "text":
        path.write_text("no")
    elif damage != "missing":
        what = {"grey": images(3, 0)[..., 0], "pickle": np.array([{}], dtype=object), "other": images(3, 0)}[
            damage if damage != "cut" else "other"
        ]
        np.savez(path, **({"names": what} if damage == "other" else {"arr_0": what}))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:600])
    with pytest.raises((FileNotFoundError, FormatError), match="x.npz") as error:
        NpzImages(path)
    assert "\n" not in str(error.value)


def test_a_member_that_ends_early_is_one_line(tmp_path):
    path = tmp_path / "x.npz"
    made = io.BytesIO()
    np.lib.format.write_array_header_1_0(made, {"descr": "|u1", "fortran_order": False, "shape": (100, 16, 16, 3)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", made.getvalue() + b"short")
    with pytest.raises(FormatError, match="damaged"):
        NpzImages(path)


# --------------------------------------------------------------------------------------------------------------- evaluation


class FakeInception:
    """Features that are sums of pixels: what is done with them is what is tested here."""

    def __init__(self, path, device="cpu"):
        self.maps = {name: rows(768, width, width) / 100 for name, width in (("pooled", 12), ("spatial", 6), ("logits", 9))}

    def __call__(self, pixels):
        return {name: pixels.flatten(1).double() / 255 @ weight for name, weight in self.maps.items()}


def config(tmp_path, *words):
    return compose("evaluate", [f"out={tmp_path / 'out'}", "progress=false", "inception=weights.pth", *words])


def test_images_of_a_file_are_measured_against_images_and_stored_statistics(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gentok.evaluation.sharing.Inception", FakeInception)
    made, real = images(30, 1), images(40, 2)
    np.savez(tmp_path / "made.npz", made)
    np.savez(tmp_path / "real.npz", real)
    given = [f"samples={tmp_path / 'made.npz'}", f"reference={tmp_path / 'real.npz'}", "few=true", "batch_size=7"]
    report = evaluate(config(tmp_path, *given))
    assert json.loads((tmp_path / "out" / "inception.json").read_text()) == report
    network = FakeInception("")
    x, y = (network(torch.from_numpy(part).movedim(-1, 1)) for part in (made, real))
    found = report["metrics"]
    assert set(found) == {"samples", "fid", "sfid", "inception_score", "precision", "recall"} and found["samples"] == 30
    assert found["fid"] == pytest.approx(float(frechet(x["pooled"], y["pooled"])), rel=1e-5)
    assert found["sfid"] == pytest.approx(float(frechet(x["spatial"], y["spatial"])), rel=1e-5)
    assert found["inception_score"] == pytest.approx(inception_score(x["logits"]))
    assert "30 images" in report["protocol"]["what"] and report["protocol"]["reference_images"] == 40

    statistics = {"mu": y["pooled"].mean(0).numpy(), "sigma": np.cov(y["pooled"].numpy().T)}
    np.savez(tmp_path / "statistics.npz", **statistics)
    given[1] = f"reference={tmp_path / 'statistics.npz'}"
    stored = evaluate(config(tmp_path, *given))
    assert stored["metrics"]["fid"] == pytest.approx(found["fid"]) and set(stored["metrics"]) == {"samples", "fid", "inception_score"}
    assert "precision and recall" in stored["protocol"]["left_out"] and "sfid" in stored["protocol"]["left_out"]


@pytest.mark.parametrize(
    "words, says",
    [
        ([], "reference=FILE.npz"),
        (["reference=nowhere.npz", "samples=made.npz"], "no file nowhere.npz"),
        (["reference=made.npz"], "ckpt=PATH.*samples=FILE.npz"),
        (["reference=made.npz", "samples=made.npz"], "few=true"),
        (["reference=made.npz", "samples=made.npz", "few=true"], "inception=weights.pth: there is no such file"),
        (["reference=made.npz", "samples=made.npz", "region=left-half"], "region"),
        (["reference=made.npz", "samples=made.npz", "protocol=nll"], "protocol=nll"),
        (["reference=names.npz", "samples=made.npz", "few=true"], "neither images"),
        (["reference=broken.npz", "samples=made.npz", "few=true"], "no mean"),
        (["protocol=inception", "inception=null"], "inception=WEIGHTS"),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    np.savez("made.npz", images(6, 0))
    np.savez("names.npz", names=np.zeros(3))
    np.savez("broken.npz", mu=np.zeros(3), sigma=np.zeros(3))
    if "weights" in says:  # the network comes last
        pytest.importorskip("torch_fidelity")
    with pytest.raises((ValueError, OSError), match=says) as error:
        evaluate(config(tmp_path, *words))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------- the network


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of the architecture, under the names of pt_inception-2015-12-05-6726825d.pth."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = module.FeatureExtractorInceptionV3("inception", ["2048"])
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.slow
def test_features_are_those_of_the_network(weights):
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resize

    from gentok.metrics.inception import Inception

    network = Inception(weights)
    pixels = torch.from_numpy(images(3, 0, 32)).movedim(-1, 1)
    found = network(pixels)
    assert {name: tuple(x.shape) for name, x in found.items()} == {"pooled": (3, 2048), "spatial": (3, 7 * 17 * 17), "logits": (3, 1008)}
    inner = network.network
    x = (resize(pixels.float(), (299, 299), align_corners=False) - 128) / 128
    before = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2",
              "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c")  # fmt: skip
    with torch.no_grad():
        for name in before:
            x = getattr(inner, name)(x)
        assert torch.allclose(found["spatial"], inner.Mixed_6d.branch1x1(x)[:, :7].flatten(1), atol=1e-5)
        for name in ("Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c"):
            x = getattr(inner, name)(x)
    pooled = x.mean((2, 3))
    assert torch.allclose(found["pooled"], pooled, atol=1e-4) and (found["spatial"] >= 0).all()
    assert torch.allclose(found["logits"], pooled @ inner.fc.weight.T, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "other", "code"])
def test_weights_that_are_none_are_one_line(weights, tmp_path, damage):
    from gentok.metrics.inception import Inception

    path = tmp_path / "weights.pth"
    if damage == "cut":
        path.write_bytes(weights.read_bytes()[:100_000])
    elif damage == "other":
        torch.save({"layer.weight": torch.zeros(3)}, path)
    else:

        class Code:
            def __reduce__(self):
                return (os.mkdir, (str(tmp_path / "ran"),))

        torch.save({"fc.weight": Code()}, path)
    with pytest.raises(FormatError, match="weights.pth") as error:
        Inception(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300 and not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_two_processes_measure_what_one_does(weights, tmp_path):
    np.savez(tmp_path / "made.npz", images(9, 1))
    np.savez(tmp_path / "real.npz", images(10, 2))
    found = []
    for name, more in (("one", []), ("two", ["trainer=ddp_sim"])):
        words = [f"inception={weights}", "samples=made.npz", "reference=real.npz", "few=true", "batch_size=2", f"out={name}", *more]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "gentok.evaluate", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr
        found.append((tmp_path / name / "inception.json").read_text())
    assert found[0] == found[1]
