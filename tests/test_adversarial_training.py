"""Adversarial tokenizers: a step is a step, the update is the one written by hand, and the discriminator is where it belongs."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from adversarial_kit import BALANCED, PATCH, by_hand, config, fit, run_and_save

import gentok
from gentok.cli import compose
from gentok.errors import ConfigError
from gentok.training.adversarial_task import AdversarialTokenizerTask
from gentok.training.run import train

HERE = Path(__file__).parent


def same(ours, theirs) -> bool:
    """Equal to the bit, through dicts and lists."""
    if isinstance(ours, dict):
        return set(ours) == set(theirs) and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    return torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


def saved(path: Path) -> dict:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(("accumulate", "rate"), [(2, 0.5), *(pytest.param(n, 1.0, marks=pytest.mark.slow) for n in (1, 3))])
def test_the_run_is_the_loop_written_by_hand(tmp_path, accumulate, rate):
    """Clipping, accumulation, schedules, start, ramp, adaptive weight, LeCam, steps that train the tokenizer alone. A validation falls
    between the batches of a step."""
    words = [f"trainer.accumulate={accumulate}", f"discriminator.update_rate={rate}", "callbacks.ema=null", "trainer.validate_every=4"]
    settings = config(tmp_path, *words)
    task, trainer = fit(settings)
    tokenizer, adversaries = by_hand(settings)
    assert trainer.global_step == task.steps_done == 8
    assert trainer.fit_loop.epoch_loop.batch_progress.total.completed == 8 * accumulate
    for ours, theirs in ((task.tokenizer, tokenizer), (task.adversaries, adversaries)):
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.allclose(a.float(), b.float(), atol=1e-6), name


def test_before_its_start_the_discriminator_is_not_called_and_changes_nothing(tmp_path, monkeypatch):
    from gentok.nn.discriminator import PatchGAN

    monkeypatch.setattr(PatchGAN, "forward", lambda *_: pytest.fail("the discriminator was called"))
    task, _ = fit(config(tmp_path, f"{PATCH}.start=8"))
    plain, _ = fit({**config(tmp_path), "discriminator": None})
    assert same(task.tokenizer.state_dict(), plain.tokenizer.state_dict())


def test_from_its_start_it_changes_the_tokenizer(tmp_path):
    late, _ = fit(config(tmp_path, f"{PATCH}.start=7", f"{PATCH}.ramp=0", "callbacks.ema=null"))
    never, _ = fit(config(tmp_path, f"{PATCH}.start=8", "callbacks.ema=null"))
    assert not same(late.tokenizer.state_dict(), never.tokenizer.state_dict())
    assert not same(late.adversaries.state_dict(), never.adversaries.state_dict())


def test_going_on_from_a_checkpoint_is_the_run_that_never_stopped(tmp_path):
    """Everything in the checkpoint, to the bit: both networks, both optimizers, averaged weights, LeCam, the step. One discriminator
    starts before the stop and one after it."""
    whole, part = (config(tmp_path / name, "trainer.accumulate=2", "trainer.checkpoint_every=4") for name in ("whole", "part"))
    for settings in (whole, part):
        parts = settings["discriminator"]["adversaries"]
        parts["late"] = {**parts["patch"], "start": 6, "loss": "non_saturating"}
    task, _ = fit(whole)
    assert set(task.adversaries.parts) == {"patch", "late"}
    fit(part, stop=4)
    last = tmp_path / "part" / "run" / "checkpoints" / "last.ckpt"
    middle = saved(last)
    assert middle["global_step"] == 4
    again, trainer = fit(part, ckpt=last, start=4 * 2)
    assert trainer.global_step == 8
    assert same(again.tokenizer.state_dict(), task.tokenizer.state_dict())
    assert same(again.adversaries.state_dict(), task.adversaries.state_dict())
    ours, theirs = saved(last), saved(tmp_path / "whole" / "run" / "checkpoints" / "last.ckpt")
    for key in (
        "state_dict",
        "current_model_state",
        "averaging_state",
        "discriminator_state",
        "optimizer_states",
        "lr_schedulers",
        "global_step",
    ):
        assert same(ours[key], theirs[key]), key
        assert not same(ours[key], middle[key]), f"{key} did not move: the test says nothing of it"
    assert len(ours["optimizer_states"]) == 2


def test_a_checkpoint_without_discriminator_is_refused_in_a_line(tmp_path):
    fit({**config(tmp_path, "trainer.checkpoint_every=2"), "discriminator": None}, stop=2)
    with pytest.raises(ConfigError, match="discriminator=none") as error:
        fit(config(tmp_path), ckpt=tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert "\n" not in str(error.value)


def test_an_adaptive_weight_needs_a_last_layer(tmp_path, monkeypatch):
    from gentok.tokenizers.vqgan import VQGAN

    monkeypatch.delattr(VQGAN, "last_layer")
    with pytest.raises(ConfigError, match="adaptive=null"):
        fit(config(tmp_path), stop=1)
    fit(config(tmp_path, f"{PATCH}.adaptive=null", f"{PATCH}.start=0"), stop=1)


def test_a_discriminator_that_breaks_stops_the_run_before_weights_take_it(tmp_path):
    settings = config(tmp_path, f"{PATCH}.start=0", f"{PATCH}.ramp=0", f"{PATCH}.lecam=0", f"{PATCH}.weight=0", f"{PATCH}.adaptive=null")

    class Broken(AdversarialTokenizerTask):
        def configure_model(self):
            super().configure_model()
            self.tokenizer_before = {k: v.detach().clone() for k, v in self.tokenizer.named_parameters()}
            part = self.adversaries.parts["patch"]
            part.discriminator_loss = lambda *_: {"loss": part.network.head.bias.sum() * torch.nan}

    with pytest.raises(ValueError, match="discriminator.optimizer.lr") as error:
        fit(settings, task=(task := Broken(settings)))
    assert "\n" not in str(error.value)
    assert all(torch.equal(p, task.tokenizer_before[k]) for k, p in task.tokenizer.named_parameters())
    assert all(p.isfinite().all() for p in task.adversaries.parameters())


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, list[int]]:
    """A run of 7 steps through train(), accumulating two batches; `saves` lists the steps at which checkpoints were written."""
    pytest.importorskip("mlxtend")
    folder = tmp_path_factory.mktemp("adversarial")
    words = [f"trainer.{name}_every={n}" for name, n in (("log", 1), ("validate", 4), ("checkpoint", 3))]
    words += ["experiment=mnist5k/vqgan", "budget=null", "steps=7", "batch_size=8", "tokenizer.width=8", "trainer.accumulate=2"]
    words += ["trainer.progress_bar=false", f"{PATCH}.start=3", f"{PATCH}.network.width=4", f"{PATCH}.ramp=0"]
    save, saves = lightning.Trainer.save_checkpoint, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lightning.Trainer, "save_checkpoint", lambda self, *a, **k: (saves.append(self.global_step), save(self, *a, **k)))
        train(compose("config", [*words, f"paths.root={folder}", f"paths.run={folder / 'run'}"]))
    return folder / "run", saves


def test_steps_are_counted_as_without_discriminator(finished):
    """validate_every counts batches, as in every task: 4, 8 and 12 of 14 batches end the steps 2, 4 and 6; the last one follows the
    training."""
    run, saves = finished
    assert json.loads((run / "metrics.json").read_text())["step"] == 7
    assert [p.stem for p in sorted((run / "pictures").glob("reconstructions_*"))] == [f"reconstructions_000000{n}" for n in (2, 4, 6, 7)]
    assert saves[:2] == [3, 6] and saved(run / "checkpoints" / "last.ckpt")["global_step"] == saves[-1]
    with open(run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert max(int(r["step"]) for r in rows if r["loss"]) == 6  # numbered from 0
    judged = [int(r["step"]) for r in rows if r.get("adversarial/patch_loss")]
    assert min(judged) == 3 and max(judged) == 6
    assert {"adversarial/patch_weight", "adversarial/patch_real", "adversarial/gradient_norm", "train/adversarial_patch"} <= set(rows[0])


def test_the_checkpoint_holds_the_discriminator_and_the_bundle_does_not(finished):
    from safetensors.torch import load_file

    run = finished[0]
    bundle, path = gentok.load(run / "bundle"), run / "checkpoints" / "last.ckpt"
    expected = set(bundle.tokenizer.state_dict())
    assert set(load_file(run / "bundle" / "tokenizer" / "model.safetensors")) == expected
    assert "discriminator" not in json.dumps(json.loads((run / "bundle" / "bundle.json").read_text())["tokenizer"])
    checkpoint = saved(path)
    assert {k.removeprefix("tokenizer.") for k in checkpoint["state_dict"]} == expected  # nor is it averaged
    assert any(k.startswith("parts.patch.network") for k in checkpoint["discriminator_state"])
    loaded = gentok.load(path).tokenizer.state_dict()
    assert set(loaded) == expected and all(torch.equal(loaded[k], checkpoint["state_dict"][f"tokenizer.{k}"]) for k in expected)


@pytest.mark.parametrize(
    "words, answer",
    [
        (["discriminator=patchgan", f"+{PATCH}.wieght=1"], "weight"),
        (["discriminator=patchgan", f"+{PATCH}.network.norm=batch"], "norm"),
        (["discriminator=patchgan", f"{PATCH}.loss=wgan"], "non_saturating"),
        (["discriminator=patchgan", "task=generator", "tokenizer=from_bundle", "tokenizer.ckpt=x"], "discriminator=none"),
    ],
)
def test_a_mistake_is_answered_in_a_line(tmp_path, words, answer):
    pytest.importorskip("mlxtend")
    with pytest.raises(ValueError, match=answer) as error:
        train(compose("config", ["steps=1", "trainer.progress_bar=false", f"paths.run={tmp_path / 'run'}", *words]))
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate, words", [(2, []), (1, []), (1, BALANCED)])
def test_two_processes_are_one_on_the_whole_batch(tmp_path, accumulate, words):
    """Both networks are the same on both ranks to the bit, and those of one process to rounding."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(HERE / "adversarial_kit.py"), str(tmp_path), "2", str(accumulate), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    run_and_save(tmp_path, 1, accumulate, *words)
    one, first, second = (torch.load(tmp_path / f"{name}_{accumulate}_{rank}.pt") for name, rank in ((1, 0), (2, 0), (2, 1)))
    assert one["step"] == first["step"] == 8
    assert same(first, second)
    for part in ("tokenizer", "discriminator"):
        for key, value in one[part].items():
            assert torch.allclose(first[part][key].double(), value.double(), atol=1e-5), (part, key)


# ------------------------------------------------------------------------------------------------------------------ balanced


def test_a_balanced_run_does_not_know_the_scale_of_a_loss(tmp_path):
    """Weights, their averages and the judge after eight steps, feature matching and ramp included. The mutant: without a balancer, the
    same change of scale is another run."""
    words = ["callbacks.ema=null", "optimizer.eps=1e-4"]
    one, _ = fit(config(tmp_path / "one", *BALANCED, *words))
    assert set(one.balancer.averages) == {"l1", "l2", "adversarial_patch", "features_patch"}
    other, _ = fit(config(tmp_path / "other", *BALANCED, *words, "losses.l2=50", f"{PATCH}.weight=9", f"{PATCH}.features=0.1"))
    for ours, theirs in ((one.tokenizer, other.tokenizer), (one.adversaries, other.adversaries)):
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.allclose(a.float(), b.float(), atol=1e-4), name
    plain = []
    for weight in (1, 50):
        settings = {**config(tmp_path / "plain", *BALANCED, *words, f"losses.l2={weight}"), "balancer": None}
        plain.append(fit(settings, stop=3)[0].tokenizer)
    assert not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*(t.parameters() for t in plain), strict=True))


@pytest.mark.parametrize("judged", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_going_on_with_a_balancer_is_the_run_that_never_stopped(tmp_path, judged):
    """To the bit, its averages too; and a checkpoint without them is refused."""

    def settings(name, **more):
        made = config(tmp_path / name, *BALANCED, "trainer.checkpoint_every=4")
        return {**made, **({} if judged else {"discriminator": None}), **more}

    whole, _ = fit(settings("whole"))
    fit(settings("part"), stop=4)
    last = tmp_path / "part" / "run" / "checkpoints" / "last.ckpt"
    averages = saved(last)["training"]["balancer"]
    again, _ = fit(settings("part"), ckpt=last, start=4)
    assert same(again.tokenizer.state_dict(), whole.tokenizer.state_dict())
    assert same(again.balancer.state_dict(), whole.balancer.state_dict())
    assert not same(averages, whole.balancer.state_dict())
    fit(settings("bare", balancer=None), stop=4)
    with pytest.raises(ConfigError, match="balancer=none"):
        fit(settings("bare"), ckpt=tmp_path / "bare" / "run" / "checkpoints" / "last.ckpt", start=4)


@pytest.mark.parametrize(
    "without, adaptive, answer",
    [("", 1.0, "adaptive=null"), ("features_patch", None, "name features_patch"), ("l2", None, "'l2' passes through")],
)
def test_a_balancer_that_does_not_fit_is_refused_in_a_line(tmp_path, without, adaptive, answer):
    settings = config(tmp_path, *BALANCED)
    settings["discriminator"]["adversaries"]["patch"]["adaptive"] = adaptive
    settings["balancer"]["weights"].pop(without, None)
    with pytest.raises(ValueError, match=answer) as error:
        fit(settings, stop=1)
    assert "\n" not in str(error.value)
