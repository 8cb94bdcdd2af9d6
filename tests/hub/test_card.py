"""The model card: a header that the hub's own reader understands, figures, a picture, a command to copy."""

import json
import re

import pytest
import yaml

import gentok
from gentok.bundle.card import card
from gentok.bundle.publishing import save_pretrained
from gentok.types.documents import read


def header(text):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])


@pytest.mark.parametrize(
    ("name", "task", "tags"),
    [
        ("mnist5k_vq", "image-feature-extraction", {"image", "tokenizer"}),
        ("fsdd_codec", "feature-extraction", {"audio", "tokenizer"}),
        ("mnist5k_ar", None, {"image", "generator"}),
        ("spoken_digits_ar_delay", "text-to-speech", {"audio", "generator"}),
    ],
)
def test_the_header_says_what_the_model_is(name, task, tags):
    document = read(gentok.bundle.places.in_zoo(name) / "bundle.json")
    text = card(document, place="hf://me/model")
    found = header(text)
    assert found["library_name"] == "gentok" and found.get("pipeline_tag") == task and {"gentok", *tags} <= set(found["tags"])
    assert "license" not in found, "nobody said one"
    assert 'gentok.load("hf://me/model")' in text and "\ngentok " in text
    figures = {m["type"]: m["value"] for m in found["model-index"][0]["results"][0]["metrics"]}
    assert figures and all(document["meta"]["metrics"][key] == value for key, value in figures.items())
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(text).data
    assert data.library_name == "gentok" and {r.metric_type: r.metric_value for r in data.eval_results} == figures


def test_an_unconditional_generator_of_images_has_its_task():
    document = {**read(gentok.bundle.places.in_zoo("mnist5k_ar") / "bundle.json"), "condition_spec": {}}
    assert header(card(document))["pipeline_tag"] == "unconditional-image-generation"


def test_a_report_a_licence_and_a_picture_are_shown(tmp_path):
    model = gentok.load("mnist5k_vq")
    (tmp_path / "grid.PNG").write_bytes(b"png")
    report = {"metrics": {"psnr": 29.5, "per_class": {"0": 1.0}, "broken": float("nan"), "same": True}, "protocol": {}}
    (tmp_path / "reconstruction.json").write_text(json.dumps(report))
    given = {"license": "mit", "picture": tmp_path / "grid.PNG", "report": tmp_path / "reconstruction.json"}
    folder = save_pretrained(model, tmp_path / "out", **given)
    text = (folder / "README.md").read_text()
    assert header(text)["license"] == "mit" and "](picture.png)" in text and (folder / "picture.png").read_bytes() == b"png"
    assert [m["type"] for m in header(text)["model-index"][0]["results"][0]["metrics"]] == ["psnr"] and "| psnr | 29.5 |" in text
    again = gentok.load(folder)
    assert again.spec == model.spec
    assert (save_pretrained(again, tmp_path / "next") / "README.md").read_text().count("license: mit") == 1
    assert not any(value.startswith(str(tmp_path)) for value in (text, json.dumps(again.meta)))


def test_weights_are_stored_as_small_as_they_lose_nothing(tmp_path):
    model = gentok.load("mnist5k_vq")
    assert read(save_pretrained(model, tmp_path / "a") / "bundle.json")["dtype"] == "bfloat16"
    with __import__("torch").no_grad():
        next(model.tokenizer.decoder.parameters()).mul_(1 / 3)
    assert read(save_pretrained(model, tmp_path / "b") / "bundle.json")["dtype"] == "float32"


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ({"picture": "a.txt"}, "picture a.txt is none that a card shows"),
        ({"picture": "none.png"}, "no picture none.png"),
        ({"report": "pyproject.toml"}, "is no JSON file"),
        ({"report": "docs/zoo/mnist5k_vq/bundle.json"}, "has no metrics"),
        ({"dtype": "int8"}, "no dtype 'int8'"),
    ],
)
def test_what_a_card_cannot_show_is_one_line(given, right, tmp_path):
    with pytest.raises(ValueError, match=right) as error:
        save_pretrained(gentok.load("mnist5k_vq"), tmp_path / "out", **given)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
