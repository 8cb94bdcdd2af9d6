"""Settings are checked against what takes them: every key of conf/ has a type, and a wrong value is one line before anything is built."""

from pathlib import Path

import pytest
import yaml
from in_process import answer

from gentok.build import check
from gentok.cli import compose, shell_words
from gentok.cli.idle import idle_settings
from gentok.codebooks.fsq import FSQ
from gentok.codebooks.library import LibraryCodebook
from gentok.codebooks.vq import VQ
from gentok.devices import chosen_device
from gentok.errors import ConfigError
from gentok.sweep import measured
from gentok.training.config_check import check_config
from gentok.value_checks import SETTINGS, check_values

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("config", "sample", "evaluate", "codec", "watermark_detect", "adopt", "eval_classifier", "serve", "push", "export", "codes")


def _plain_keys(tree, above=""):
    for key, value in tree.items():
        if isinstance(value, dict) and "_target_" not in value:
            yield from _plain_keys(value, f"{above}{key}.")
        elif not isinstance(value, dict):
            yield above + key


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_outside_of_components_has_a_type(command):
    tree = yaml.safe_load((ROOT / "conf" / f"{command}.yaml").read_text())
    groups = {group for entry in tree.pop("defaults") if isinstance(entry, dict) for group in entry}
    groups &= {"task", "trainer", "callbacks", "logger", "paths"}
    tree.pop("hydra", None)
    for group in groups:
        tree[group] = {}
        for path in (ROOT / "conf" / group).glob("*.yaml"):
            tree[group].update({k: v for k, v in yaml.safe_load(path.read_text()).items() if k != "defaults"})
    own_check = {"condition", "device", "losses"}
    untyped = {key for key in _plain_keys(tree) if not key.startswith("logger.wandb.")} - set(SETTINGS) - own_check
    assert not untyped


FOLDER = ROOT / "conf" / "experiment"
EXPERIMENTS = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))


def _choices(group):
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def _preset(group, choice):
    return yaml.safe_load((ROOT / "conf" / group / f"{choice}.yaml").read_text())


def _check(config):
    given = {"tokenizer": ("media_shape", "condition_spec"), "generator": ("spec", "condition_spec", "codebook")}
    for part in ("codebook", "losses", "tokenizer", "generator", "optimizer", "schedule"):
        if config.get(part) and config[part].get("_target_"):
            check(config[part], where=part, given=given.get(part, ()))


OTHERS = ["fsq", "simvq", "lfq", "ibq", "bit_groups", "pyramid", "residual", "library_residual", "bae", "vq"]


@pytest.mark.parametrize(
    ("experiment", "codebook"),
    [("mnist5k/vq", codebook) for codebook in OTHERS]
    + [("cifar10/rq", "pyramid"), ("cifar10/tokenflow_ms", "simvq"), ("spoken_digits/codec", "fsq")],
)
def test_another_codebook_in_an_experiment_has_its_own_preset(experiment, codebook):
    config = compose("config", [f"experiment={experiment}", f"codebook={codebook}"])
    own = yaml.safe_load((ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text())
    if {"override /codebook": codebook} not in own["defaults"]:
        assert config["codebook"] == _preset("codebook", codebook) == config["tokenizer"]["codebook"]
    _check(config)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_any_part_can_be_exchanged_in_any_experiment(experiment):
    for group in ("codebook", "optimizer", "schedule", "sampler", "generator"):
        for choice in _choices(group):
            _check(compose("config", [f"experiment={experiment}", f"{group}={choice}"]))


def test_what_a_person_sets_holds_for_the_new_part_and_the_experiments_settings_are_named():
    words = ["experiment=mnist5k/vq", "codebook=residual", "codebook.levels=3", "describe=true"]
    done = answer("train", *words, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "codebook=residual in the place of vq_ema has its own preset" in done.stderr and "codebook.vocab_size" in done.stderr
    config = compose("config", ["experiment=mnist5k/vq", "codebook=residual", "codebook.levels=3"])
    assert config["codebook"] == {**_preset("codebook", "residual"), "levels": 3} and config["optimizer"]["lr"] == 6e-3
    assert compose("config", ["experiment=mnist5k/vq", "codebook.dim=8"])["codebook"]["vocab_size"] == 512  # nothing was exchanged


def test_another_generator_does_not_keep_the_experiments_sampler():
    config = compose("config", ["experiment=cifar10/masked_rq", "generator=autoregressive"])
    assert config["sampler"] == compose("config", [])["sampler"] and config["generator"] == compose("config", [])["generator"]
    assert compose("config", ["experiment=cifar10/masked_rq", "generator=masked_diffusion", "sampler=halton"])["sampler"]["steps"] == 32


def test_a_key_that_is_taken_away_is_one_line():
    for word, line in (("~n", "~n: a key cannot be taken away"), ("sampler=[1]", "these words cannot be read")):
        done = answer("sample", "ckpt=mnist5k_ar", word, cwd=ROOT)
        assert done.returncode == 2 and done.stderr.startswith(f"gentok: {line}") and done.stderr.count("\n") == 1, done.stderr


def test_parts_that_do_not_fit_each_other_are_one_line():
    done = answer("train", "experiment=mnist5k/vq", "losses=dac", "steps=2", cwd=ROOT)
    line = "losses=dac does not fit tokenizer=vqgan, which has no key 'tokenizer.sample_rate': choose another losses"
    assert done.returncode == 2 and line in done.stderr and "Traceback" not in done.stderr


def test_a_key_that_the_new_part_lacks_is_one_line():
    with pytest.raises(ConfigError, match="no key 'codebook.vocab_size'.*values"):
        compose("config", ["experiment=mnist5k/vq", "codebook=fsq", "codebook.vocab_size=3"])


WRONG = """
    config optimizer.lr=fast -> expected a number
    config optimizer.betas=0.9 -> expected a list
    config tokenizer.multipliers=2 -> expected a list
    config data.held_out=1.5 -> expected a whole number
    config trainer.workers=abc -> expected a whole number
    config trainer.clip=-1 -> above 0
    config callbacks.ema=abc -> expected a number
    config callbacks.ema=1.5 -> below 1
    config describe=no -> true or false
    config overfit=off -> true or false
    config task.augment.flip=no -> true or false
    config bundle_dtype=int8 -> 'float32' or 'bfloat16'
    config codebook.dim=-4 -> above 0
    config budget=4minutes -> 90s, 6min or 2h
    config optimizer.betas=[0.9] -> a list of at least 2
    config tokenizer.multipliers=[] -> a list of at least 1
    config codebook.vocab_size=99999999999 -> at most
    config trainer.devices=[] -> a list of at least 1
    config task.pictures=null -> a whole number
    config trainer.workers=null -> a whole number
    sample batch_size=??? -> a whole number
    config optimizer.lr=nan -> finite
    config schedule.warmup=-5 -> at least 0
    config tokenizer.losses=abc -> expected a Loss
    config seed=null -> whole number
    config freeze=encoder -> a list
    config codebook.revive_below=2 -> below 1
    config task.pictures=-1 -> at least 0
    config trainer.devices=0 -> above 0
    config trainer.log_every=0 -> above 0
    config logger.csv=yes -> true or false
    config tokenizer.blocks=1.0 -> whole number
    config batch_size=0 -> above 0
    config schedule.final=3 -> at most 1
    config losses.l1=-1 -> at least 0
    sample n=2.5 -> whole number
    sample sampler.top_k=2.5 -> whole number
    sample sampler.top_p=0 -> above 0
    sample out=null -> text
    sample device=CPU -> cuda:N
    sample seed=1.5 -> whole number
    sample batch_size=x -> whole number
    sample guidance=high -> a number
    sample guidance=nan -> finite
    sample known= -> text
    sample sampler.temperature=inf -> finite
    sample sampler.temperature=hot -> a number
    sample guidance_schedule=log -> 'constant', 'linear' or 'cosine'
    sample duration=-1 -> above 0
    sample columns=0 -> above 0
    sample ema=no -> true or false
    codec chunk=10s -> a number
    codec chunk=inf -> finite
    codec levels=2.0 -> whole number
    evaluate n=0 -> above 0
    evaluate max_memory=inf -> finite
    evaluate few=no -> true or false
    evaluate prefixes=3 -> a list
    evaluate protocol=all -> nll
"""
"""A configuration, a wrong value, and what the line says."""


@pytest.mark.parametrize("case", [line.strip() for line in WRONG.strip().splitlines()])
def test_a_wrong_value_is_one_line_before_anything_is_built(case):
    typed, line = case.split(" -> ")
    command, word = typed.split()
    with pytest.raises(ConfigError, match=f"{word.partition('=')[0]}=.*{line}") as error:
        config = compose(command, shell_words([word]))
        check_values(config)
        check_config(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "typed, meant",
    [
        ("out=写真", "写真"), ("out=a#b ~&", "a#b ~&"), ("out=it's", "it's"),
        ("out=007", "007"), ("out=1e3", "1e3"), ("out=a=b,c", "a=b,c"),
        ("out=back\\slash\\", "back\\slash\\"), ("condition=true", "true"), ("condition=1_000", "1_000"), ("condition=1.50", "1.50"),
        ("condition=a dog, a cat", "a dog, a cat"), ("condition=3,5", ["3", "5"]), ("condition=[true,1e3]", ["true", "1e3"]),
        ("condition=null", None), ("known=100", "100"), ("out='quoted already'", "quoted already"),
    ],
)  # fmt: skip
def test_paths_and_conditions_hold_any_characters(typed, meant):
    assert compose("sample", shell_words(["ckpt=x", typed]))[typed.partition("=")[0]] == meant


def test_the_home_folder_is_written_as_in_a_shell(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert compose("sample", shell_words(["ckpt=~/x"]))["ckpt"] == "/home/me/x"


def test_a_device_that_is_not_there_is_one_line():
    with pytest.raises(ConfigError, match="device=cuda:99: torch finds no such device on this machine; there is cpu"):
        chosen_device("cuda:99")
    assert chosen_device("cpu") == "cpu"


def test_what_the_library_makes_of_wrong_options_is_one_line():
    for wrong in ({"codebook_size": "many"}, {"codebook_size": 8, "foo": 1}, {"codebook_size": 8, "decay": "x", "codebook_dim": "x"}):
        with pytest.raises(ValueError, match="VectorQuantize of vector-quantize-pytorch refuses them: ") as error:
            LibraryCodebook("VectorQuantize", 8, wrong)
        assert "\n" not in str(error.value)


def test_python_gets_the_same_checks():
    for make, line in (
        (lambda: VQ(0, 4), "VQ: vocab_size=0: expected a number of at least 1"),
        (lambda: FSQ([8, 2.5]), "FSQ: values=.*whole number"),
    ):
        with pytest.raises(ValueError, match=line):
            make()


@pytest.mark.parametrize(
    "words, line",
    [
        (["steps=100", "schedule.warmup=100"], "schedule.warmup=100 is not over in steps=100"),
        (["steps=1000", "discriminator=patchgan", "discriminator.adversaries.patch.start=5000"], "patch.start=5000 is beyond steps=1000"),
        (["steps=1000", "generator=masked"], "generator=masked is of task=generator"),
        (["steps=1000", "task=generator", "tokenizer=from_bundle", "codebook=fsq"], "codebook=fsq is of the training of a tokenizer"),
    ],
)
def test_a_setting_that_cannot_act_is_said(words, line):
    assert [line in said for said in idle_settings(compose("config", words), words)] == [True]


def test_settings_that_act_are_not_mentioned():
    words = ["steps=100000", "discriminator=patchgan", "codebook=fsq", "losses=l2"]
    assert idle_settings(compose("config", words), words) == []


def test_a_sweeper_is_told_the_figure_that_a_run_is_known_by_or_the_one_asked_for(tmp_path):
    (tmp_path / "metrics.json").write_text('{"metrics": {"psnr": 21.5, "loss": 0.25}, "main_metric": "psnr"}')
    assert measured(tmp_path) == 21.5 and measured(tmp_path, "loss") == 0.25
    with pytest.raises(ValueError, match="sweep_metric=ssim: .*psnr, loss"):
        measured(tmp_path, "ssim")
