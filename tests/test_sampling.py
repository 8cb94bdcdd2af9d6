"""sample.py: one path is enough, files are what they say, images are completed, and errors are one line."""

import json
from pathlib import Path

import pytest
import torch
from in_process import answer
from safetensors.torch import load_file

from gentok.bundle import build_generator, build_tokenizer, load, save, stamp
from gentok.cli import compose
from gentok.data.image_files import read_image, save_image
from gentok.prompt import keep_mask
from gentok.sample_files import sample_to_folder
from gentok.samplers.constrained import Constrained
from gentok.sampling import sample
from gentok.types import ClassSpec, ConditionSpec, Line, Raster

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ConditionSpec((("class", ClassSpec(("cat", "dog", "horse"))),))
GENERATORS = {
    "ar": {"_target_": "gentok.generators.autoregressive.Autoregressive", "width": 16, "depth": 1, "heads": 2, "condition_dropout": 0.1},
    "masked": {"_target_": "gentok.generators.masked.MaskedTransformer", "width": 16, "depth": 1, "heads": 2},
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """name -> a bundle of random weights: vq alone, ar and masked."""
    root = tmp_path_factory.mktemp("bundles")
    torch.manual_seed(0)
    config = {
        "_target_": "gentok.tokenizers.vqgan.VQGAN",
        "media_shape": [1, 16, 16],
        "width": 8,
        "codebook": {"_target_": "gentok.codebooks.vq.VQ", "vocab_size": 16, "dim": 4, "width": 8},
    }
    tokenizer = build_tokenizer(config).eval()
    stamp(tokenizer, config)
    made = {"vq": save(root / "vq", tokenizer=tokenizer, tokenizer_config=config)}
    for name, settings in GENERATORS.items():
        generator = build_generator(settings, tokenizer, CLASSES).eval()
        with torch.no_grad():  # far from uniform, and different for each class
            for parameter in generator.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
        parts = {"tokenizer": tokenizer, "tokenizer_config": config, "generator": generator, "generator_config": settings}
        made[name] = save(root / name, **parts, condition_spec=CLASSES)
    return made


def run(bundles, tmp_path, name, *overrides):
    config = compose("sample", [f"ckpt={bundles[name]}", f"out={tmp_path / 'out'}", "n=5", *overrides])
    return sample_to_folder(config)


@pytest.mark.parametrize("name, sampler", [("ar", "autoregressive"), ("masked", "first_hitting")])
def test_a_path_is_enough(bundles, tmp_path, name, sampler):
    out = run(bundles, tmp_path, name, "condition=horse")
    assert {p.name for p in out.iterdir()} == {"grid.png", "codes.safetensors", "samples.json", *(f"{i:04d}.png" for i in range(5))}
    report = json.loads((out / "samples.json").read_text())
    assert report["sampler"]["name"] == sampler and report["seed"] == 0 and report["tokens_per_second"] > 0
    assert report["calls_per_sample"] == 16
    bundle = load(bundles[name])
    codes = load_file(out / "codes.safetensors")["codes"]
    from gentok.types import Tokens

    decoded = bundle.tokenizer.decode(Tokens(codes, bundle.spec))
    for i in range(5):
        assert (read_image(out / f"{i:04d}.png", channels=1) - decoded[i]).abs().max() <= 1 / 127.5
    shown = read_image(out / "grid.png", channels=1)
    assert shown.shape == (1, 20 + 2 * 16 * 11 + 2, 3 * 16 * 11 + 4), "the condition, above images that are enlarged eleven times"
    assert torch.equal(shown[:, 20 : 20 + 16 * 11 : 11, : 16 * 11 : 11], read_image(out / "0000.png", channels=1))


def test_keys_of_a_sampler_reach_it(bundles, tmp_path):
    out = run(bundles, tmp_path, "masked", "sampler=maskgit", "sampler.steps=3", "sampler.temperature=0.5", "guidance=2")
    report = json.loads((out / "samples.json").read_text())
    assert report["calls_per_sample"] == 3 and report["sampler"]["temperature"] == 0.5 and report["guidance"] == 2
    assert report["network_calls"]["generator"] == {"calls": 3, "positions": 3 * 5 * 16 * 2}


def test_weights_of_items_are_in_the_report_and_in_the_python_result(bundles, tmp_path):
    words = ["sampler=constrained", "sampler.allowed=[0,1,2,3]", "condition=cat"]
    out = run(bundles, tmp_path, "ar", *words, "batch_size=2")
    stored = json.loads((out / "samples.json").read_text())["log_weight"]
    samples = sample(load(bundles["ar"]), n=5, condition="cat", sampler=Constrained(allowed=(0, 1, 2, 3)), batch_size=2)
    assert samples.log_weight.dtype == torch.float64 and stored == samples.log_weight.tolist() and len(set(stored)) == 5
    assert max(stored) < 0, "some ids were refused"
    never = Constrained(accept=lambda codes, level, position: torch.zeros_like(level, dtype=torch.bool))
    config = {**compose("sample", [f"ckpt={bundles['ar']}", f"out={tmp_path / 'never'}", "n=2"]), "sampler": never}
    assert json.loads((sample_to_folder(config) / "samples.json").read_text(), parse_constant=pytest.fail)["log_weight"] == [None, None]
    assert sample(load(bundles["ar"]), n=2).log_weight is None
    assert "log_weight" not in json.loads((run(bundles, tmp_path, "masked") / "samples.json").read_text())


def test_item_i_depends_on_seed_and_i_alone(bundles):
    bundle = load(bundles["ar"])
    whole = sample(bundle, n=6, condition=["cat", "dog"], seed=4).tokens.codes
    parts = sample(bundle, n=6, condition=["cat", "dog"], seed=4, batch_size=4).tokens.codes
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, sample(bundle, n=6, condition=["cat", "dog"], seed=5).tokens.codes)
    assert not torch.equal(whole[::2], sample(bundle, n=6, condition="dog", seed=4).tokens.codes[::2])


def test_the_guidance_that_a_bundle_recommends_is_taken(bundles):
    bundle = load(bundles["ar"])
    plain = sample(bundle, n=8, condition=0, guidance=1.0).tokens.codes
    bundle.meta["guidance"] = 3.0
    assert torch.equal(sample(bundle, n=8, condition=0).tokens.codes, sample(bundle, n=8, condition=0, guidance=3.0).tokens.codes)
    assert not torch.equal(sample(bundle, n=8, condition=0).tokens.codes, plain)


@pytest.mark.parametrize("keep", ["left-half", "bottom-half", "center", "border"])
def test_an_image_is_completed_around_what_is_kept(bundles, tmp_path, keep):
    known = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    save_image(known, tmp_path / "known.png")
    out = run(bundles, tmp_path, "masked", f"known={tmp_path / 'known.png'}", f"keep={keep}")
    bundle = load(bundles["masked"])
    own = bundle.tokenizer.encode(read_image(tmp_path / "known.png", channels=1)[None]).codes
    codes = load_file(out / "codes.safetensors")["codes"]
    kept = keep_mask(keep, Raster(4, 4))
    assert torch.equal(codes[:, :, kept], own[:, :, kept].expand(5, -1, -1))
    assert (codes[:, :, ~kept] != codes[:1, :, ~kept]).any()


def test_a_mask_file_says_what_is_kept(bundles, tmp_path):
    known = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mask = torch.ones(1, 16, 16)
    mask[0, 5, 2] = mask[0, 12:, 8:] = -1  # a pixel of cell (1, 0), and the cells (3, 2) and (3, 3)
    save_image(known, tmp_path / "known.png")
    save_image(mask, tmp_path / "mask.png")
    out = run(bundles, tmp_path, "masked", f"known={tmp_path / 'known.png'}", f"keep={tmp_path / 'mask.png'}")
    bundle = load(bundles["masked"])
    own = bundle.tokenizer.encode(read_image(tmp_path / "known.png", channels=1)[None]).codes
    codes = load_file(out / "codes.safetensors")["codes"]
    kept = torch.ones(16, dtype=torch.bool)
    kept[[4, 14, 15]] = False
    assert torch.equal(codes[:, :, kept], own[:, :, kept].expand(5, -1, -1))
    assert (codes[:, :, ~kept] != own[:, :, ~kept]).any()
    drawn = bundle.sample(2, known=known, keep=(mask[0] + 1) / 2, sampler="maskgit")
    again = bundle.sample(2, known=known, keep=mask[0] > 0, sampler="maskgit")
    assert drawn.equal(again)


def test_a_causal_model_completes_what_its_order_allows_and_refuses_the_rest(bundles, tmp_path):
    save_image(torch.zeros(1, 16, 16), tmp_path / "known.png")
    known = f"known={tmp_path / 'known.png'}"
    run(bundles, tmp_path, "ar", known, "keep=top-half")
    with pytest.raises(ValueError, match="maskgit") as error:
        run(bundles, tmp_path, "ar", known, "keep=left-half")
    assert "\n" not in str(error.value) and "forced=true" in str(error.value)
    out = run(bundles, tmp_path, "ar", known, "keep=left-half", "sampler=autoregressive", "sampler.forced=true")
    assert json.loads((out / "samples.json").read_text())["forced"] is True


@pytest.mark.parametrize(
    "name, overrides, words",
    [
        ("ar", ["n=0"], ["n=0"]),
        ("ar", ["condition=cow"], ["cat, dog, horse"]),
        ("ar", ["condition=7"], ["0..2"]),
        ("ar", ["sampler=maskgit"], ["autoregressive"]),
        ("vq", [], ["tokenizer alone"]),
        ("ar", ["ckpt=nowhere"], ["nowhere"]),
        ("ar", ["known=nowhere.png"], ["nowhere.png"]),
        ("ar", ["sampler.top_k=0"], ["top_k"]),
        ("ar", ["guidance=2", "guidance_schedule=square"], ["constant, linear, cosine"]),
        ("masked", ["known={picture}", "keep=most"], ["left-half"]),
    ],
)
def test_a_mistake_is_a_one_line_error(bundles, tmp_path, name, overrides, words):
    save_image(torch.zeros(1, 16, 16), tmp_path / "known.png")
    with pytest.raises((ValueError, OSError)) as error:
        run(bundles, tmp_path, name, *(o.format(picture=tmp_path / "known.png") for o in overrides))
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), str(error.value)


def test_regions_belong_to_rasters():
    with pytest.raises(ValueError, match="line"):
        keep_mask("left-half", Line(4))


def test_parts_of_a_condition_have_keys_of_their_own(bundles, tmp_path, monkeypatch):
    from gentok.cli import shell_words

    overrides = shell_words([f"ckpt={bundles['ar']}", "condition.class=dog"])
    assert compose("sample", overrides)["condition"] == {"class": "dog"}
    out = run(bundles, tmp_path, "ar", *overrides)
    assert json.loads((out / "samples.json").read_text())["condition"] == {"class": "dog"}


def test_the_command_line_answers_without_a_traceback(bundles, tmp_path):
    done = answer("sample", f"ckpt={bundles['ar']}", "n=2", "condition=dog", "out=here", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "here" / "grid.png").is_file() and "here/grid.png" in done.stdout
    ckpt = f"ckpt={bundles['ar']}"
    for overrides in (["n=2"], ["ckpt=nowhere"], [ckpt, "sampelr=maskgit"], [ckpt, "sampler=maskgti"]):
        done = answer("sample", *overrides, cwd=tmp_path)
        assert done.returncode != 0 and "Traceback" not in done.stderr and done.stderr.strip()
