"""Evaluation: figures that are known by construction, both protocols end to end on tiny models, and
refusals."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from gentok import evaluate as module
from gentok.bundle import Bundle, build_generator, build_tokenizer, load, save, stamp
from gentok.cli import compose
from gentok.data.datasets import whole
from gentok.errors import ConfigError
from gentok.evaluate import evaluate
from gentok.evaluation.context import choice
from gentok.interfaces import Codebook, Tokenizer
from gentok.metrics.generation import alike
from gentok.types import ClassSpec, ConditionSpec, Raster, Tokens, TokenSpec

CLASSES = ConditionSpec((("class", ClassSpec(("left", "right"))),))
SIDE = 16


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes of 60 grey images: bright on the left, bright on the right."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for label, name in enumerate(("left", "right")):
        (root / name).mkdir()
        for i in range(60):
            pixels = random.integers(0, 60, (SIDE, SIDE))
            pixels[:, label * 8 : label * 8 + 8] += int(random.integers(80, 190))
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def data(path):
    return {"_target_": "gentok.data.folder.ImageFolder", "path": str(path), "channels": 1, "held_out": 0.25}


def models(tmp_path, path, generator=True, codebook=None):
    config = {
        "_target_": "gentok.tokenizers.vqgan.VQGAN", "media_shape": [1, SIDE, SIDE], "width": 8, "multipliers": [1, 1, 1],
        "codebook": codebook or {"_target_": "gentok.codebooks.fsq.FSQ", "values": [3, 3], "width": 8},
    }  # fmt: skip
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config).eval()
    stamp(tokenizer, config)
    wanted = {"_target_": "gentok.generators.autoregressive.Autoregressive", "width": 16, "depth": 1, "heads": 2, "zero_init_head": True}
    return save(
        tmp_path / "model", tokenizer=tokenizer, tokenizer_config=config, condition_spec=CLASSES if generator else None,
        generator=build_generator(wanted, tokenizer, CLASSES).eval() if generator else None, generator_config=wanted if generator else None,
        meta={"data": data(path), "guidance": 1.5},
    )  # fmt: skip


def config(ckpt, tmp_path, cache, **overrides):
    words = [f"ckpt={ckpt}", f"out={tmp_path / 'out'}", f"cache={cache}", "progress=false", "classifier_steps=40", "trust=[paths]"]
    base = compose("evaluate", words)
    return {**base, "n": 40, "few": True, **overrides}


def test_generation_end_to_end(tmp_path, images, cache, capsys):
    report = evaluate(config(models(tmp_path, images), tmp_path, cache))
    assert json.loads((tmp_path / "out" / "generation.json").read_text())["metrics"].keys() == report["metrics"].keys()
    metrics, protocol = report["metrics"], report["protocol"]
    # an untrained model's head is zero: uniform over 9 codes, whatever the class
    assert metrics["held_out_bits_per_token"] == pytest.approx(math.log2(9), abs=1e-5) and protocol["nll"] == "exact"
    per_item = metrics["held_out_bits_per_dimension"] * SIDE * SIDE
    assert per_item == pytest.approx(4 * metrics["held_out_bits_per_token"])
    assert metrics["samples"] == 40 and metrics["guidance"] == 1.5 and metrics["held_out_accuracy"] > 0.95
    assert set(metrics["accuracy_per_class"]) == {"left", "right"}
    assert metrics["accuracy"] == pytest.approx(sum(metrics["accuracy_per_class"].values()) / 2)
    assert {"recall", "training_recall", "recall_share", "precision", "kid", "training_kid", "nearest_training_ratio"} <= metrics.keys()
    assert metrics["calls_per_sample"] == 4 and metrics["tokens_per_second"] > 0
    assert protocol["sampler"]["name"] == "AutoregressiveSampler" and protocol["items_used"] == {"train": 90, "held_out": 30}
    assert protocol["classifier"]["version"] and protocol["data"]["held_out"]["items"] == 30 and protocol["versions"]["torch"]
    assert Image.open(tmp_path / "out" / "samples.png").size[1] == 2 * 64 + 2  # a row per class
    assert "recall_share" in capsys.readouterr().out
    again = evaluate(config(models(tmp_path, images), tmp_path, cache))
    timed = ("tokens_per_second", "seconds_of_sampling")
    assert {k: v for k, v in again["metrics"].items() if k not in timed} == {k: v for k, v in metrics.items() if k not in timed}
    assert again["protocol"]["classifier"]["seconds"] == 0  # from the cache


def test_reconstruction_end_to_end(tmp_path, images, cache):
    report = evaluate(config(models(tmp_path, images, generator=False), tmp_path, cache))
    metrics = report["metrics"]
    assert metrics["items"] == 30 and metrics["originals_recognised"] > 0.95 and 0 <= metrics["recognised"] <= 1
    assert metrics["nominal_bits_per_item"] == pytest.approx(4 * math.log2(9)) and metrics["codes_surviving_lookup_and_nearest"] == 1
    assert 0 <= metrics["entropy_bits_per_item"] <= metrics["nominal_bits_per_item"]
    assert (tmp_path / "out" / "reconstructions.png").is_file()
    assert 0 < metrics["fd_efflite0_real"] < metrics["fd_efflite0"] and metrics["fd_efflite0_own"] > 0 and metrics["fd_efflite0_halves"] > 0
    assert "30 reconstructed held-out images against 30 training images" in report["protocol"]["fd_efflite0"]


RESIDUAL = {
    "_target_": "gentok.codebooks.residual.ResidualCodebook", "levels": 3, "width": 8,
    "codebook": {"_target_": "gentok.codebooks.vq.VQ", "vocab_size": 16, "dim": 8},
}  # fmt: skip


def test_prefixes_are_measured_beside_the_whole(tmp_path, images, cache):
    model = models(tmp_path, images, generator=False, codebook=RESIDUAL)
    report = evaluate(config(model, tmp_path, cache, prefixes=[3, 1]))
    metrics = report["metrics"]
    whole = {name: metrics[name] for name in ("psnr_db", "ssim", "recognised", "fd_efflite0_own")}
    assert metrics["prefix_3"] == pytest.approx(whole) and metrics["prefix_1"].keys() == whole.keys()
    assert metrics["prefix_1"]["psnr_db"] != metrics["psnr_db"] and "nested levels" in report["protocol"]["prefixes"]
    width, height = Image.open(tmp_path / "out" / "prefixes.png").size
    assert round(width / height, 1) == 0.3  # ten rows of two prefixes and the original


def test_a_pyramid_tells_what_each_scale_uses(tmp_path, images, cache):
    codebook = {
        "_target_": "gentok.codebooks.pyramid.PyramidCodebook", "sides": [1, 2], "width": 8,
        "codebook": {"_target_": "gentok.codebooks.vq.VQ", "vocab_size": 16, "dim": 8},
    }  # fmt: skip
    metrics = evaluate(config(models(tmp_path, images, generator=False, codebook=codebook), tmp_path, cache, prefixes=[1]))["metrics"]
    assert len(metrics["usage_per_scale"]) == 2 and len(metrics["usage"]) == 1
    assert 0 < max(metrics["usage_per_scale"]) <= metrics["usage"][0] <= sum(metrics["usage_per_scale"]) + 1e-6
    assert metrics["prefix_1"]["psnr_db"] != metrics["psnr_db"]


def test_a_tokenizer_that_loses_nothing_reaches_the_real_distance(tmp_path, images, cache, monkeypatch):
    bundle = Bundle("tokenizer", Levels(256, Exact()), None, ConditionSpec(), {}, meta={"data": data(images)})
    monkeypatch.setattr(module, "load", lambda *a, **k: bundle)
    metrics = evaluate(config("toy", tmp_path, cache))["metrics"]
    assert metrics["fd_efflite0_own"] == pytest.approx(0, abs=1e-4)
    assert metrics["fd_efflite0"] == pytest.approx(metrics["fd_efflite0_real"], rel=1e-4) and metrics["fd_efflite0_real"] > 0.1


def test_a_probe_end_to_end(tmp_path, images, cache):
    """Bright left or right is a matter of place: side by side the vectors tell it, their mean over positions
    cannot."""
    codebook = {"_target_": "gentok.codebooks.vq.VQ", "vocab_size": 256, "dim": 8}
    report = evaluate(config(models(tmp_path, images, generator=False, codebook=codebook), tmp_path, cache, protocol="probe"))
    metrics, protocol = report["metrics"], report["protocol"]
    assert metrics["train_items"] == 90 and metrics["test_items"] == 30 and json.loads((tmp_path / "out" / "probe.json").read_text())
    assert set(protocol["probes"]) == {"all_mean", "all_flat"} and protocol["probes"]["all_flat"]["features"] == 8 * 4
    assert metrics["all_flat"] > 0.9 and metrics["all_flat"] == protocol["probes"]["all_flat"]["accuracy"]


def test_both_protocols_of_a_generators_bundle(tmp_path, images, cache):
    reports = evaluate(config(models(tmp_path, images), tmp_path, cache, protocol="both", guidance=1.0))
    assert set(reports) == {"reconstruction", "generation"}
    assert reports["generation"]["metrics"]["accuracy_at_guidance_1"] == reports["generation"]["metrics"]["accuracy"]


class Exact(Codebook):
    """Rows that are their own nearest ones; `has_nearest=False`: none are."""

    def __init__(self, has_nearest=True):
        super().__init__()
        self.has_nearest = has_nearest

    def lookup(self, codes):
        return codes

    def nearest(self, vectors, given=None):
        if not self.has_nearest:
            raise TypeError("no nearest")
        return vectors


class Levels(Tokenizer):
    """Pixels rounded to 4 levels (or all 256): everything about its reconstructions is known."""

    def __init__(self, levels=4, codebook=None):
        super().__init__()
        self.codebook = codebook
        self.half = (levels - 1) / 2
        self.spec = TokenSpec((2 * levels,), Raster(SIDE, SIDE), media_shape=(1, SIDE, SIDE))

    def encode(self, media, lengths=None, rng=None):
        return Tokens(((media.flatten(2) + 1) * self.half).round().long(), self.spec)

    def decode(self, tokens, rng=None):
        return (tokens.codes / self.half - 1).view(-1, 1, SIDE, SIDE)


def test_figures_of_a_tokenizer_that_is_known(tmp_path, images, cache, monkeypatch):
    bundle = Bundle("tokenizer", Levels(4, Exact(has_nearest=False)), None, ConditionSpec(), {}, meta={"data": data(images)})
    monkeypatch.setattr(module, "load", lambda *a, **k: bundle)
    metrics = evaluate(config("toy", tmp_path, cache))["metrics"]
    held_out = whole(module.build(data(images)).held_out)[0].double()
    rounded = ((held_out + 1) * 1.5).round() / 1.5 - 1
    expected = (10 * torch.log10(4 / (held_out - rounded).square().flatten(1).mean(1))).mean()
    assert metrics["psnr_db"] == pytest.approx(float(expected), abs=1e-4)
    p = ((held_out + 1) * 1.5).round().long().flatten().bincount(minlength=8).double() / held_out.numel()
    entropy = float(torch.special.entr(p).sum()) / math.log(2)
    assert metrics["usage"] == [0.5] and metrics["perplexity"][0] == pytest.approx(2**entropy)
    assert metrics["entropy_bits_per_item"] == pytest.approx(SIDE * SIDE * entropy) and metrics["nominal_bits_per_item"] == SIDE * SIDE * 3
    assert metrics["codes_surviving_decode_and_encode"] == 1 and metrics["codes_surviving_lookup_and_nearest"] is None


def test_too_few_items_leave_the_measures_of_variety_out_and_say_so(tmp_path, images, cache, capsys):
    report = evaluate(config(models(tmp_path, images), tmp_path, cache, few=False))
    assert "recall" not in report["metrics"] and "need 500" in report["protocol"]["left_out"] and "few=true" in capsys.readouterr().out
    assert "fd_efflite0" not in report["metrics"] and "FD-efflite0 needs 5,000" in report["protocol"]["left_out"]
    assert report["metrics"]["accuracy"] >= 0


def test_data_without_classes_are_measured_without_a_classifier(tmp_path, images, cache):
    torch.manual_seed(0)
    path = models(tmp_path, images)
    flat = {**data(images), "classes": False}
    with pytest.raises(ConfigError, match="conditioned on class.*left, right.*nothing"):
        evaluate(config(path, tmp_path, cache, data=flat))
    metrics = evaluate(config(path, tmp_path, cache, data=flat, protocol="reconstruction"))["metrics"]
    assert "recognised" not in metrics and metrics["psnr_db"] > 0


def test_samples_without_classes_are_compared_in_the_features_of_images(tmp_path, images, cache):
    flat = {**data(images), "classes": False}
    made = {"_target_": "gentok.generators.autoregressive.Autoregressive", "width": 16, "depth": 1, "heads": 2, "zero_init_head": True}
    bundle = load(models(tmp_path, images, generator=False))
    path = save(
        tmp_path / "unconditional", tokenizer=bundle.tokenizer, tokenizer_config=bundle.tokenizer_config, condition_spec=ConditionSpec(),
        generator=build_generator(made, bundle.tokenizer, ConditionSpec()).eval(), generator_config=made, meta={"data": flat},
    )  # fmt: skip
    report = evaluate(config(path, tmp_path, cache))
    metrics, protocol = report["metrics"], report["protocol"]
    assert {"recall", "training_precision", "kid", "fd_efflite0", "fd_efflite0_real"} <= metrics.keys()
    assert metrics["fd_efflite0"] > metrics["fd_efflite0_real"] > 0 and "accuracy" not in metrics
    assert "EfficientNet-lite0" in protocol["what"] and "no classes" in protocol["left_out"]
    assert "40 samples against 30 held-out images; fd_efflite0_real: 40 training images" in protocol["fd_efflite0"]


def test_training_items_are_taken_as_the_samples_are():
    labels = torch.tensor([0] * 50 + [1] * 50)
    assert alike(labels, 2, 40).tolist() == [*range(20), *range(50, 70)]
    assert alike(torch.arange(30) % 3, 3, 10).tolist() == list(range(10))  # classes in turn: the first ones
    rows = choice(1000, 100)
    assert torch.equal(rows, choice(1000, 100)) and len(rows.unique()) == 100 and 300 < rows.double().mean() < 700
    assert sorted(choice(7, 10).tolist()) == list(range(7))


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"protocol": "fid"}, "protocol=fid"),
        ({"n": 0}, "n=0"),
        ({"ckpt": None}, "ckpt=PATH"),
        ({"suite": "images"}, "suite=images: choose one of audio_tokenizers"),
        ({"protocol": "generation"}, "holds a tokenizer alone"),
        ({"prefixes": [2]}, r"prefixes=\[2\]: of this tokenizer none"),
        ({"prefixes": [1], "protocol": "probe"}, r"prefixes=\[1\] is of protocol=reconstruction or a suite and has no effect"),
        ({"data": {"_target_": "gentok.data.folder.ImageFolder", "path": "nowhere"}}, "there is no folder"),
    ],
)
def test_refusals_are_one_line(tmp_path, images, cache, overrides, message):
    path = models(tmp_path, images, generator=False)
    with pytest.raises((ValueError, OSError), match=message) as error:
        evaluate({**config(path, tmp_path, cache), **overrides})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "stored",
    [
        {"_target_": "data/folder", "path": "/secret"},
        {"_target_": "data/manifest", "path": "/secret.csv"},
        {"_target_": "data/shards", "shards": ["https://example.invalid/a.tar"]},
        {"_target_": "data/cifar10", "shards": "https://example.invalid/a.tar", "held_out": "b.tar"},
        {"_target_": "data/sound_folder", "path": "/secret"},
        {"_target_": "data/fsdd", "shards": "s3://a/b.tar", "held_out": "b.tar"},
        {"_target_": "data/spoken_digits", "cache": "/secret"},
        {"_target_": "codebook/vq", "vocab_size": 2, "dim": 2},
    ],
    ids=lambda stored: stored["_target_"],
)
def test_data_that_a_stranger_names_are_not_opened(tmp_path, images, cache, stored, monkeypatch):
    path = models(tmp_path, images, generator=False)
    document = json.loads((path / "bundle.json").read_text())
    document["meta"]["data"] = stored
    (path / "bundle.json").write_text(json.dumps(document))
    built = []
    monkeypatch.setattr(module, "build", lambda config, **_: built.append(config))
    with pytest.raises(ConfigError, match=r"are not opened \(data.*on the command line \(data=.*trust=\[paths\]") as error:
        evaluate(config(path, tmp_path, cache, trust=[]))
    assert "\n" not in str(error.value) and not built


def test_data_that_name_no_place_need_no_trust_and_named_ones_are_taken(tmp_path, images, cache):
    path = models(tmp_path, images, generator=False)
    report = evaluate(config(path, tmp_path, cache, trust=[], data=data(images)))
    assert report["metrics"]["items"] == 30
    document = json.loads((path / "bundle.json").read_text())
    document["meta"]["data"] = {"_target_": "data/noise", "items": 40, "held_out": 10, "size": SIDE, "channels": 1}
    (path / "bundle.json").write_text(json.dumps(document))
    assert evaluate(config(path, tmp_path, cache, trust=[]))["metrics"]["items"] == 10


@pytest.mark.parametrize(
    "key, value, line",
    [
        ("n", 20, r"n=20 is of protocol=generation or protocol=inception and has no effect on suite=audio_tokenizers: leave it out \(max_"),
        ("region", "left-half", "region=left-half is of protocol=nll"),
        ("sampler", {"_target_": "sampler/halton"}, "sampler=sampler/halton is of protocol=generation"),
        ("ckpt", "x", "ckpt=x is of protocol=reconstruction or protocol=probe"),
    ],
)
def test_keys_that_cannot_act_on_a_suite_are_one_line_errors(key, value, line):
    with pytest.raises(ConfigError, match=line) as error:
        evaluate({**compose("evaluate", ["suite=audio_tokenizers", "ckpts=[x]"]), key: value})
    assert "\n" not in str(error.value)


def test_keys_that_cannot_act_on_a_protocol_are_named_or_refused(tmp_path, images, cache, capsys):
    path = models(tmp_path, images, generator=False)
    evaluate(config(path, tmp_path, cache, n=20))
    assert "n=20 is of protocol=generation or protocol=inception and has no effect on protocol=reconstruction" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="ckpts=.* is of a suite and has no effect on protocol=reconstruction: leave it out"):
        evaluate(config(path, tmp_path, cache, ckpts=["x"]))


def test_a_model_of_other_channels_or_of_unknown_data_is_refused(tmp_path, images, cache):
    path = models(tmp_path, images, generator=False)
    with pytest.raises(ConfigError, match="channels and size"):
        evaluate(config(path, tmp_path, cache, data={**data(images), "channels": 3}))
    document = json.loads((path / "bundle.json").read_text())
    document["meta"] = {}
    (path / "bundle.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="data=mnist5k"):
        evaluate(config(path, tmp_path, cache))


def test_every_data_yaml_names_what_it_builds():
    for name in ("mnist5k", "folder"):
        overrides = ["ckpt=x", f"data={name}"] + (["data.path=here"] if name == "folder" else [])
        chosen = compose("evaluate", overrides)["data"]
        module.build.__globals__["check"](chosen, where="data")


def test_a_generator_of_latents_is_measured_by_its_samples_and_has_no_nll(images, tmp_path, cache):
    tokens = {"_target_": "gentok.tokenizers.kl.KL", "media_shape": [1, SIDE, SIDE], "width": 8}
    wanted = {"_target_": "gentok.generators.xar.XAR", "width": 16, "depth": 1, "heads": 2}
    torch.manual_seed(0)
    tokenizer = build_tokenizer(tokens).eval()
    stamp(tokenizer, tokens)
    generator = build_generator(wanted, tokenizer, CLASSES).eval()
    ckpt = save(
        tmp_path / "model", tokenizer=tokenizer, tokenizer_config=tokens, generator=generator, generator_config=wanted,
        condition_spec=CLASSES, meta={"data": data(images), "guidance": 1.5},
    )  # fmt: skip
    sampler = {"_target_": "sampler/entities", "steps": 2}
    report = evaluate(config(ckpt, tmp_path, cache, protocol="generation", sampler=sampler))
    assert report["metrics"]["calls_per_sample"] == 8 and "held_out_bits_per_token" not in report["metrics"]
    assert "no probabilities" in report["protocol"]["nll"] and report["metrics"]["tokens_per_second"] > 0
    with pytest.raises(ValueError, match="no probabilities; choose protocol=generation") as error:
        evaluate(config(ckpt, tmp_path, cache, protocol="nll", sampler=sampler))
    assert "\n" not in str(error.value)
