"""Both tasks through one entry: what a run leaves behind, what it refuses, and that it ends when it should."""

import csv
import json
import shlex
import stat
import sys
from pathlib import Path

import pytest
import torch

import gentok
from gentok.bundle import load
from gentok.cli import compose
from gentok.data.mnist5k import MNIST5k
from gentok.data.token_dataset import TokenDataset
from gentok.durations import seconds
from gentok.training.loader import DrawSampler
from gentok.training.module import CLOCKS, GentokModule
from gentok.training.run import train

pytest.importorskip("mlxtend")

EVERY = [f"trainer.{what}_every={n}" for what, n in (("log", 2), ("validate", 3), ("checkpoint", 3))]
QUIET = ["trainer.progress_bar=false", *EVERY, "steps=6", "batch_size=16"]
SMALL = ["tokenizer.width=8", "codebook.vocab_size=32"]
TINY = ["generator.width=32", "generator.depth=1", "generator.heads=2", "task.pictures=10"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """name -> the folder of a short run: vq, other (another seed), ar and masked (over vq)."""
    root = tmp_path_factory.mktemp("runs")
    done: dict[str, Path] = {}

    def config(name: str) -> dict:
        common = [*QUIET, f"paths.root={root}", f"paths.run={root / name}", "budget=null"]
        if name in ("vq", "other"):
            return compose("config", ["experiment=mnist5k/vq", f"seed={int(name == 'other')}", *SMALL, *common])
        words = [f"experiment=mnist5k/{name}", f"tokenizer.ckpt={run('vq') / 'bundle'}", "task.views=2", *TINY, *common]
        return compose("config", words)

    def run(name: str) -> Path:
        if name not in done:
            done[name] = train(config(name))
        return done[name]

    run.config = config
    return run


def rows(path: Path) -> list[dict]:
    with open(path / "metrics.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name, picture, measure", [("vq", "reconstructions", "psnr"), ("ar", "samples", "held_out_bits_per_token")])
def test_a_run_leaves_logs_pictures_checkpoint_and_bundle(runs, name, picture, measure):
    run = runs(name)
    assert {p.name for p in (run / "pictures").iterdir()} == {f"{kind}_000000{n}.png" for kind in (picture, "codes") for n in (3, 6)}
    assert list(run.glob("events.out.tfevents*")) and (run / "config.yaml").is_file()
    report = json.loads((run / "metrics.json").read_text())
    assert report["step"] == 6 and report["metrics"][measure] > 0
    logged = rows(run)
    assert [r for r in logged if r["gradient_norm"]] and [r for r in logged if r[measure]]
    if name == "vq":
        assert {"codebook/train_usage", "codebook/held_out_perplexity"} <= set(logged[0])


@pytest.mark.parametrize("name", ["vq", "ar", "masked"])
def test_the_checkpoint_loads_by_itself_and_equals_the_bundle(runs, name):
    run = runs(name)
    bundle, checkpoint = load(run / "bundle"), load(run / "checkpoints" / "last.ckpt")
    part = "tokenizer" if name == "vq" else "generator"
    ours, theirs = getattr(bundle, part).state_dict(), getattr(checkpoint, part).state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    raw = getattr(load(run / "checkpoints" / "last.ckpt", ema=False), part).state_dict()
    assert any(not torch.equal(ours[k], raw[k]) for k in ours), "averaged and raw weights differ"
    held_out = MNIST5k().held_out.__getitems__([0, 1]).media
    assert torch.equal(bundle.tokenizer.encode(held_out).codes, checkpoint.tokenizer.encode(held_out).codes)


def test_training_changes_the_weights_and_not_the_tokenizer(runs):
    before, after = load(runs("vq") / "bundle"), load(runs("ar") / "bundle")
    assert before.spec == after.spec
    assert after.meta["data"]["_target_"] == "data/mnist5k" and after.condition_spec == MNIST5k.condition_spec


def test_the_set_is_encoded_once(runs):
    runs("ar")
    cache = Path(runs.config("ar")["paths"]["cache"])
    before = {p: p.stat().st_mtime_ns for p in cache.iterdir()}
    assert len(before) == 2
    train({**runs.config("ar"), "steps": 1, "paths": {**runs.config("ar")["paths"], "run": str(cache.parent / "again")}})
    assert before == {p: p.stat().st_mtime_ns for p in cache.iterdir()}


def test_shards_of_another_tokenizer_are_refused(runs):
    runs("ar")
    cache = Path(runs.config("ar")["paths"]["cache"])
    own, other = load(runs("vq") / "bundle").spec, load(runs("other") / "bundle").spec
    shard = next(cache.glob("train-*"))
    assert TokenDataset(shard, own).spec == own
    with pytest.raises(ValueError) as error:
        TokenDataset(shard, other)
    message = str(error.value)
    assert "\n" not in message and own.encode_fingerprint in message and other.encode_fingerprint in message


def test_fsq_tokenizers_of_one_configuration_refuse_each_other(tmp_path):
    """A constant codebook tells nothing: the encoder's weights do."""
    from gentok.bundle import build_tokenizer, stamp
    from gentok.data.token_cache import encode_set

    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = {**compose("config", ["codebook=fsq", "tokenizer.width=8"])["tokenizer"], "media_shape": [1, 32, 32], "losses": None}
        tokenizer = build_tokenizer(config).eval()
        stamp(tokenizer, config)
        path = encode_set(tokenizer, MNIST5k(held_out=2).held_out, tmp_path / f"{seed}.safetensors", progress=False)
        made.append((tokenizer, path))
    for (tokenizer, own), (_, foreign) in (made, made[::-1]):
        assert TokenDataset(own, tokenizer.spec).spec == tokenizer.spec
        with pytest.raises(ValueError, match="fingerprint"):
            TokenDataset(foreign, tokenizer.spec)


@pytest.mark.parametrize("clock, function", CLOCKS.items())
def test_a_budget_ends_the_run_with_its_schedule(runs, monkeypatch, tmp_path, clock, function):
    """On a clock that gains a second whenever it is read."""
    import gentok.training.module as module

    ticks = iter(range(10**9))
    monkeypatch.setattr(module.time, function, lambda: float(next(ticks)))
    config = runs.config("vq")
    config.update(steps=None, budget="40s", clock=clock, schedule={"_target_": "gentok.training.optim.Linear", "warmup": 1, "final": 0.0})
    config["paths"] = {**config["paths"], "run": str(tmp_path / "run")}
    config["trainer"] = {**config["trainer"], "log_every": 1}
    train(config)
    rates = [float(r["lr"]) for r in rows(tmp_path / "run") if r["lr"]]
    assert 5 < len(rates) < 40 and rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.15 * config["optimizer"]["lr"]


@pytest.mark.parametrize("every, validated", [pytest.param(3, [3, 6], marks=pytest.mark.slow), (4, [4, 6]), (100, [6])])
def test_a_run_is_validated_when_it_is_due_and_once_at_its_end(runs, monkeypatch, tmp_path, every, validated):
    at, end = [], GentokModule.on_validation_end
    monkeypatch.setattr(GentokModule, "on_validation_end", lambda self: (at.append(self.global_step), end(self)))
    config = runs.config("vq")
    config["paths"] = {**config["paths"], "run": str(tmp_path / "run")}
    config["trainer"] = {**config["trainer"], "validate_every": every}
    train(config)
    assert at == validated


@pytest.mark.parametrize("text, value", [("90s", 90), ("6min", 360), ("2h", 7200), ("1.5 min", 90), (45, 45), (None, None)])
def test_budgets_are_read_as_written(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["soon", "-3s", "6 weeks", "0"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="6min"):
        seconds(text)


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["steps=null"], ["steps=2000", "budget=6min"]),
        (["batch_size=5000"], ["4000", "batch_size"]),
        (["optimizer.lrr=1"], None),
        (["+tokenizer.colour=3"], ["colour"]),
        (["trainer.precision=16-mixed"], ["bf16-mixed"]),
        (["tokenizer=from_bundle", "tokenizer.ckpt=x"], ["tokenizer=vqgan"]),
        (["task=generator", "tokenizer=from_bundle", "tokenizer.ckpt=docs/zoo/mnist5k_qv"], ["did you mean", "mnist5k_vq"]),
        (["callbacks.ema=1.5"], ["below 1"]),
    ],
)
def test_a_mistake_is_answered_in_a_line(tmp_path, overrides, words):
    with pytest.raises(Exception) as error:
        train(compose("config", [*QUIET, f"paths.run={tmp_path / 'run'}", *overrides]))
    if words is None:  # hydra's own answer to a key that the configuration does not have
        assert "lrr" in str(error.value)
    else:
        assert isinstance(error.value, (ValueError, OSError)) and "\n" not in str(error.value)
        assert all(word in str(error.value) for word in words), str(error.value)


def test_an_unwritable_folder_is_said_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="paths.run"):
        train(compose("config", [*QUIET, f"paths.run={tmp_path / 'file' / 'run'}"]))
    assert stat.S_ISREG((tmp_path / "file").stat().st_mode)


def test_every_item_once_per_epoch_on_any_number_of_processes():
    whole = iter(DrawSampler(10, 4, seed=3))
    batches = [next(whole) for _ in range(10)]
    for epoch in range(4):
        draws = [d for batch in batches for d in batch][epoch * 10 : epoch * 10 + 10]
        assert sorted(draws) == list(range(epoch * 10, epoch * 10 + 10))
    ranks = [iter(DrawSampler(10, 4, seed=3, rank=r, world=2)) for r in range(2)]
    assert [next(ranks[0]) + next(ranks[1]) for _ in range(10)] == batches
    later = iter(DrawSampler(10, 4, seed=3, start=7))
    assert [next(later) for _ in range(3)] == batches[7:]


def test_windows_of_batches_are_sorted_by_size_and_hold_the_same_draws():
    sizes = [7, 1, 9, 3, 8, 2, 9, 4, 6, 5]
    plain, same = (iter(DrawSampler(10, 2, seed=3, sizes=sizes, window=w)) for w in (1, 5))
    batches = [next(same) for _ in range(20)]
    for window in range(4):  # each of one epoch here
        some = batches[5 * window : 5 * window + 5]
        assert sorted(sum((next(plain) for _ in range(5)), [])) == sorted(sum(some, []))
        ranges = sorted((min(sizes[d % 10] for d in batch), max(sizes[d % 10] for d in batch)) for batch in some)
        assert all(a[1] <= b[0] for a, b in zip(ranges, ranges[1:]))
    order = [[sizes[batch[0] % 10] for batch in batches[5 * w : 5 * w + 5]] for w in range(4)]
    assert any(some != sorted(some) for some in order), "the batches of a window come in a random order"
    later, ranks = iter(DrawSampler(10, 2, seed=3, start=7, sizes=sizes, window=5)), []
    assert [next(later) for _ in range(9)] == batches[7:16]
    ranks = [iter(DrawSampler(10, 2, seed=3, rank=r, world=2, sizes=sizes, window=5)) for r in range(2)]
    assert [next(ranks[0]) + next(ranks[1]) for _ in range(10)] == batches[:10]


def test_describe_counts_what_is_built_and_needs_no_data(capsys, monkeypatch, runs):
    bundle = load(runs("ar") / "bundle")
    config = runs.config("ar")
    monkeypatch.setattr("gentok.data.mnist5k._digits", lambda: pytest.fail("describe read data"))
    train({**config, "describe": True})
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(report) == {"parts", "generator", "tokenizer", "tokens", "bits", "flops_train_step", "flops_sample"}
    assert report["generator"] == sum(p.numel() for p in bundle.generator.parameters())
    assert report["tokenizer"] == sum(p.numel() for p in bundle.tokenizer.parameters())
    assert (report["tokens"], report["bits"]) == (64, 320.0)
    assert sum(v for k, v in report["parts"].items() if k.startswith("generator.")) == report["generator"]
    # 2 FLOPs a weight and position of the matrices, forward; the rest (attention) is small here
    matrices = sum(m.weight.numel() for m in bundle.generator.modules() if isinstance(m, torch.nn.Linear))
    assert 1.0 <= report["flops_train_step"] / (3 * 2 * matrices * 65 * config["batch_size"]) < 1.5


def test_describe_lists_discriminators_apart_and_latents_without_bits(capsys):
    train(compose("config", ["experiment=mnist5k/vq", "describe=true"]))
    plain = json.loads(capsys.readouterr().out.splitlines()[-1])
    train(compose("config", ["experiment=mnist5k/vqgan", "describe=true"]))
    out = capsys.readouterr().out
    judged = json.loads(out.splitlines()[-1])
    assert plain["discriminators"] == {} and judged["discriminators"]["discriminator.patch"] > 0
    assert "parameters, discriminator.patch" in out
    assert judged["tokenizer"] == plain["tokenizer"] == sum(judged["parts"].values())
    train(compose("config", ["experiment=mnist5k/vq", "tokenizer=kl", "describe=true"]))
    latents = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert latents["tokens"] == 64 and latents["bits"] == 0 and latents["flops_sample"] > 0


def test_describe_of_a_tokenizer_and_of_the_published_sizes(capsys):
    train(compose("config", ["experiment=mnist5k/vq", "describe=true"]))
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["generator"] == 0 and report["tokens"] == 64 and report["bits"] == 576.0
    assert report["flops_train_step"] > 32 * report["flops_sample"] > 0
    book = ["codebook.vocab_size=16384", "codebook.dim=8", "codebook.width=256"]
    words = ["task=generator", "data=folder", "data.size=256", "tokenizer=vqgan_llamagen", *book, "generator=llamagen_b", "describe=true"]
    train(compose("config", [*words, "describe_classes=1000"]))
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert abs(report["generator"] / 111e6 - 1) < 0.03 and abs(report["tokenizer"] / 72e6 - 1) < 0.03 and report["tokens"] == 256


def test_a_bundle_names_the_command_that_was_run(runs):
    command = json.loads((runs("ar") / "bundle" / "bundle.json").read_text())["meta"]["command"]
    assert shlex.split(command) == ["python", *sys.orig_argv[1:]]


def test_load_is_the_front_door(runs):
    assert gentok.load(runs("masked") / "bundle").sample(n=2, condition=3).shape == (2, 1, 32, 32)
