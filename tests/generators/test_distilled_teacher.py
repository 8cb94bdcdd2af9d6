"""A distilled generator's teacher: named as a bundle, nested in the student's own, refused where it does not fit."""

import dataclasses
import json

import pytest
import torch

from gentok.bundle import build_generator, load, nest_teacher
from gentok.cli import compose
from gentok.errors import ConfigError
from gentok.rng import RowRNG
from gentok.types import ConditionSpec, Tokens

ZOO = "docs/zoo/mnist5k_ar"


@pytest.fixture(scope="module")
def teacher():
    return load(ZOO)


def config(ckpt=ZOO, **options):
    return {**compose("config", ["generator=distilled"])["generator"], "teacher": {"ckpt": ckpt}, **options}


@pytest.fixture(scope="module")
def student(teacher):
    """(a student that begins as its teacher, its configuration)."""
    nested, inner = nest_teacher(config(solver_steps=2, split=60), teacher.spec, condition_spec=teacher.condition_spec)
    assert inner == ("teacher", ZOO) and nested["teacher"]["_target_"] == "generator/autoregressive"
    torch.manual_seed(0)
    model = build_generator(nested, teacher.tokenizer, teacher.condition_spec)
    model.take_inner(teacher.generator)
    return model.eval().requires_grad_(False), nested


def test_a_bundle_holds_student_and_teacher_and_no_path(teacher, student, tmp_path):
    model, nested = student
    whole = dataclasses.replace(teacher, generator=model, generator_config=nested, meta={})
    path = whole.save(tmp_path / "bundle")
    assert ZOO not in (path / "bundle.json").read_text()
    loaded = load(path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.generator.state_dict()[name]), name
    condition, noise = teacher.condition_spec.parse(3, 2), model.noise(RowRNG.of(0, range(2)))
    unknown = Tokens.unknown(teacher.spec, 2).codes
    assert torch.equal(model.jump(unknown, noise, condition), loaded.generator.jump(unknown, noise, condition))
    assert nest_teacher(loaded.generator_config, teacher.spec) == (loaded.generator_config, None), "a nested one is left as it is"
    media = loaded.sample(2, 3, seed=1)
    assert media.shape == (2, 1, 32, 32) and torch.equal(media, loaded.sample(2, 3, sampler="distilled", seed=1))
    assert not torch.equal(media, loaded.sample(2, 3, sampler="distilled", steps=2, seed=2))


def test_a_student_that_goes_on_by_scores_is_the_student_in_a_bundle_too(teacher, student, tmp_path):
    nested, _ = nest_teacher(
        {**student[1], "_target_": "generator/score_distilled", "guide_pace": 2.0}, teacher.spec, condition_spec=teacher.condition_spec
    )
    nested.pop("regression")
    model = build_generator(nested, teacher.tokenizer, teacher.condition_spec)
    model.take_inner(teacher.generator)
    model.load_state_dict(model.begin_as(student[0]))
    whole, plain = (dataclasses.replace(teacher, generator=g, generator_config=c, meta={}) for g, c in ((model, nested), student))
    loaded = load(whole.save(tmp_path / "bundle"))
    assert loaded.generator_config["_target_"] == "generator/score_distilled" and loaded.generator.guide.pace == 2.0
    assert torch.equal(loaded.sample(2, 3, seed=1), plain.sample(2, 3, seed=1))


def test_a_stored_teacher_can_be_no_path(teacher, student, tmp_path):
    whole = dataclasses.replace(teacher, generator=student[0], generator_config=student[1])
    path = whole.save(tmp_path / "bundle") / "bundle.json"
    document = json.loads(path.read_text())
    document["generator"]["config"]["teacher"] = {"ckpt": ZOO}
    path.write_text(json.dumps(document))
    with pytest.raises((ConfigError, ValueError)) as error:
        load(path.parent)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "ckpt, change, message",
    [
        ("???", {}, r"give its bundle, generator\.teacher\.ckpt=BUNDLE"),
        (None, {}, r"give its bundle, generator\.teacher\.ckpt=BUNDLE"),
        ("docs/zoo/mnist5k_vq", {}, "holds a tokenizer alone"),
        (ZOO, {"encode_fingerprint": "another"}, "both must be of one tokenizer"),
        (ZOO, {"vocab_sizes": (7,)}, "both must be of one tokenizer"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_in_a_line(teacher, ckpt, change, message):
    with pytest.raises(ConfigError, match=message) as error:
        nest_teacher(config(ckpt), dataclasses.replace(teacher.spec, **change))
    assert "\n" not in str(error.value)


def test_a_teacher_of_other_conditions_is_refused_in_a_line(teacher):
    with pytest.raises(ConfigError, match="conditioned on class .* the data give nothing") as error:
        nest_teacher(config(), teacher.spec, condition_spec=ConditionSpec())
    assert "\n" not in str(error.value)
    without = dataclasses.replace(teacher.spec, encode_fingerprint="")
    assert nest_teacher(config(), without)[1] == ("teacher", ZOO), "a described tokenizer has no fingerprint"
