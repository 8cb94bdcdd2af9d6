"""The experiments of icons, a few steps over a small folder: trained, resumed, sampled as SVG files, completed, filled in, evaluated."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "drawings"))
from icon_kit import BROKEN, GOOD, folder, svg

from gentok.bundle import load
from gentok.cli import compose
from gentok.drawings.outlines import on_grid
from gentok.drawings.svg import read_svg
from gentok.evaluate import evaluate
from gentok.sample_files import sample_to_folder
from gentok.sampling import sample
from gentok.training.run import train

QUIET = ["trainer.progress_bar=false", "print_config=false", "trainer.log_every=2", "trainer.validate_every=4", "budget=null",
         "batch_size=4", "trainer.precision=32-true", "logger.tensorboard=false", "generator.width=16", "generator.depth=1",
         "generator.heads=2", "task.pictures=2", "data.longest=40", "tokenizer.longest=40", "data.held_out=0.2"]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder, words of the command line by experiment)."""
    root = tmp_path_factory.mktemp("icons")
    folder(root / "icons", broken=True)
    paths = [f"data.path={root / 'icons'}", f"paths.root={root}", f"paths.cache={root / 'cache'}"]
    words = {name: [f"experiment=icons/{name}", *QUIET, *paths] for name in ("ar", "infill")}
    for name, some in words.items():
        train(compose("config", [*some, "steps=4", f"paths.run={root / name}"]))
    return root, words


def samples(root, model, *more):
    out = sample_to_folder(compose("sample", [f"ckpt={root / model / 'bundle'}", f"out={root / 'out'}", "n=3", *more]))
    return out, json.loads((out / "samples.json").read_text())


def test_a_run_lists_what_it_could_not_read_and_its_bundle_holds_the_grammar(world):
    root, _ = world
    skipped = json.loads((root / "ar" / "metrics.json").read_text())["skipped"]["train"]
    assert skipped["count"] == len(BROKEN) and len(skipped["reasons"]) == len(BROKEN)
    bundle = load(root / "ar" / "bundle")
    assert bundle.spec.grammar and [name for name, _ in bundle.condition_spec.parts] == ["text"]
    assert (root / "ar" / "pictures" / "samples_0000004.png").is_file()


def test_samples_are_svg_files_that_are_read_again(world):
    root, _ = world
    out, report = samples(root, "ar", "condition=home 1")
    assert {f"{i:04d}.{kind}" for i in range(3) for kind in ("png", "svg")} | {"grid.png", "samples.json", "codes.safetensors"} == set(
        report["files"]
    ) == {p.name for p in out.iterdir()}
    bundle = load(root / "ar" / "bundle")
    made = sample(bundle, n=3, condition={"text": "home 1"})
    for i, outline in enumerate(bundle.tokenizer.outlines(made.tokens)):
        assert outline, "an untrained model too draws rows that can be read"
        text = (out / f"{i:04d}.svg").read_text()
        fine = on_grid(outline, 49, 49)
        assert not fine or on_grid(read_svg(text.encode()), 49) == fine
    alone = sample(bundle, n=3, condition={"text": "home 1"}, batch_size=1)
    assert torch.equal(alone.tokens.codes, made.tokens.codes) and torch.equal(alone.media, made.media)


def test_an_icon_is_completed_and_a_hole_in_it_filled(world):
    root, _ = world
    (root / "home.svg").write_text(svg(GOOD["home"]))
    _, report = samples(root, "ar", f"known={root / 'home.svg'}")
    assert report["keep"] == "the first half of the commands"
    bundle, plain = load(root / "infill" / "bundle"), load(root / "ar" / "bundle")
    codes = bundle.tokenizer.read_drawing(root / "home.svg")
    filled = sample(bundle, n=4, known=codes, keep="0:3+6:").tokens
    outlines, own = bundle.tokenizer.outlines(filled), bundle.tokenizer.read(codes.tolist())
    for row, outline in zip(filled.codes[:, 0], outlines):
        assert row[:7].tolist() == codes[:7].tolist() and row[13:24].tolist() == codes[13:].tolist()
        assert outline[:3] == own[:3] and outline[-5:] == own[-5:]
    assert len({tuple(row.tolist()) for row in filled.codes[:, 0]}) > 1
    samples(root, "infill", f"known={root / 'home.svg'}", "keep=0:3+6:")
    assert bundle.sample(n=1, known=root / "home.svg", keep="0:3+6:").shape == (1, 1, 64, 64)
    with pytest.raises(ValueError, match="points are steps here"):
        sample(plain, n=1, known=codes, keep="0:3+6:")
    with pytest.raises(ValueError, match="are 4 spans, this model was trained with 2 at most"):
        sample(bundle, n=1, known=codes, keep="0:2+3:5+6:8+9:10")
    free = sample(bundle, n=3, condition={"text": "home 1"})
    assert all(bundle.tokenizer.outlines(free.tokens))


both = pytest.mark.parametrize("name", ["ar", pytest.param("infill", marks=pytest.mark.slow)])


@both
def test_its_samples_are_measured(world, name):
    root, _ = world
    words = [f"ckpt={root / name / 'bundle'}", f"out={root / name / 'measured'}", "n=6", "progress=false", "trust=[paths]"]
    metrics = evaluate(compose("evaluate", words))["metrics"]
    assert {"validity", "uniqueness", "novelty", "nearest_training", "held_out_nearest_training"} <= set(metrics)
    assert 0 <= metrics["validity"] <= 1 and metrics["held_out_overlap"] > 0.9 and 0 < metrics["held_out_bits_per_token"] < 12
    assert len(json.loads((root / name / "measured" / "samples.json").read_text())) == 6
    words = [*words[:1], f"out={root / 'again'}", "progress=false", "trust=[paths]"]
    assert evaluate(compose("evaluate", [*words, "protocol=reconstruction"]))["metrics"]["overlap"] > 0.9
    with pytest.raises(ValueError, match="of icons there are reconstruction, generation, nll"):
        evaluate(compose("evaluate", [*words, "protocol=probe"]))


@both
def test_a_run_goes_on_where_it_was_stopped(world, name):
    root, words = world
    some = [*words[name], "schedule=constant", "trainer.validate_every=100"]
    train(compose("config", [*some, f"paths.run={root / f'{name}_parts'}", "steps=2"]))
    train(compose("config", [*some, f"paths.run={root / f'{name}_parts'}", "steps=4", "resume=auto"]))
    train(compose("config", [*some, f"paths.run={root / f'{name}_whole'}", "steps=4"]))
    parts, whole = (load(root / f"{name}_{kind}" / "bundle").generator.state_dict() for kind in ("parts", "whole"))
    assert all(torch.equal(parts[key], whole[key]) for key in whole)


def test_data_and_tokenizers_that_do_not_fit_are_refused_in_one_line(world):
    root, words = world
    for wrong, line in {
        ("data=noise", "data.longest=null"): "choose data=icons",
        ("tokenizer.longest=20",): "data.longest=20",
        ("generator.ends=false",): "generator.ends=true",
        ("generator=masked",): "a grammar, which MaskedTransformer does not follow",
    }.items():
        given = [w for w in words["ar"] if not (wrong[0].startswith("data=") and w.startswith("data."))]
        given = [w for w in given if not (wrong[0] == "generator=masked" and w.startswith("generator."))]
        with pytest.raises(ValueError, match=line) as error:
            train(compose("config", [*given, *(w for w in wrong if w != "data.longest=null"), "steps=1", f"paths.run={root / 'wrong'}"]))
        assert "\n" not in str(error.value)
