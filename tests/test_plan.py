"""`benchmark plan=`: every formula against bytes that are really there."""

import json

import pytest
import torch
from torch import nn

from gentok.benchmark import main
from gentok.benchmarks.activations import kept_for_backward, saved_bytes
from gentok.benchmarks.plan import IMAGENET, SIZES, item_bytes, plan
from gentok.cli import compose
from gentok.data.datasets import MemoryDataset
from gentok.data.token_cache import encode_set
from gentok.data.token_dataset import read_token_file
from gentok.describe import built
from gentok.interfaces import Tokenizer
from gentok.types import ClassSpec, ConditionSpec, Raster, Tokens, TokenSpec

TINY = ("tokenizer.ckpt=mnist5k_vq", "generator.width=32", "generator.depth=2", "generator.heads=2", "batch_size=16")


def test_what_autograd_keeps_is_counted_once_and_without_weights():
    network = nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 5), nn.Sigmoid())
    x = torch.randn(7, 10)
    # the input, for the first weight's gradient; what ReLU gave, which it and the second layer share; what the sigmoid gave
    assert saved_bytes(lambda: network(x).sum(), network) == 4 * 7 * (10 + 30 + 5)


@pytest.mark.slow
def test_the_meta_device_counts_what_a_cpu_keeps():
    config = compose("config", ["experiment=mnist5k/masked", *TINY])
    counts = {}
    for device in ("meta", "cpu"):
        with torch.device(device):
            model, tokenizer, _ = built(config)
        counts[device] = kept_for_backward(model, tokenizer, device)
    assert counts["meta"] == pytest.approx(counts["cpu"], rel=0.05) and counts["meta"] > 0


def test_numbers_are_their_formulas(capsys):
    made = plan("mnist5k/masked", TINY, gpus=4, precision="32-true", rate=3.0, views=1).figures
    with torch.device("cpu"):
        model, tokenizer, _ = built(compose("config", ["experiment=mnist5k/masked", *TINY]))
    p, f = (sum(x.numel() for x in part.parameters()) for part in (model, tokenizer))
    assert made["parameters"] == p and made["frozen parameters"] == f
    assert made["state"] * 2**30 == pytest.approx(20 * p)
    assert made["DDP memory"] * 2**30 == pytest.approx(24 * p + 4 * f)
    blocks = [sum(x.numel() for x in block.parameters()) for block in next(m for m in model.modules() if isinstance(m, nn.ModuleList))]
    assert len(blocks) == 2 and made["largest block"] == max(blocks) and made["outside of blocks"] == p - sum(blocks)
    assert made["FSDP memory"] * 2**30 == pytest.approx(5 * p + 4 * (p - sum(blocks)) + 8 * max(blocks) + 4 * f)
    assert made["DDP traffic"] * 1e9 == pytest.approx(2 * 3 / 4 * 4 * p)
    assert made["FSDP traffic"] * 1e9 == pytest.approx(3 * 3 / 4 * 4 * p)
    assert made["cache reads"] * 1e6 == pytest.approx(16 * 3 * made["cache"] * 1e9 / IMAGENET)


class Pixels(Tokenizer):
    """A pixel's level is its code."""

    def __init__(self, vocab):
        super().__init__()
        self.spec = TokenSpec((vocab,), Raster(2, 2), media_shape=(1, 2, 2))

    def encode(self, media, lengths=None, rng=None):
        return Tokens((media.flatten(2) > 0).long(), self.spec)

    def decode(self, tokens, rng=None, **options):
        return tokens.codes.float()

    def forward(self, batch, rng=None):
        raise NotImplementedError


@pytest.mark.parametrize("vocab", [16, 300, 70000])
def test_a_cache_has_the_bytes_of_the_formula(tmp_path, vocab):
    classes = ConditionSpec((("class", ClassSpec(("a", "b"))),))
    data = MemoryDataset(torch.randn(11, 1, 2, 2), torch.arange(11) % 2, classes, {"data": "few"})
    path = encode_set(Pixels(vocab), data, tmp_path / "t.safetensors", progress=False)
    assert sum(array.nbytes for array in read_token_file(path).maps().values()) == 11 * (item_bytes(Pixels(vocab).spec) + 16)


@pytest.mark.slow
def test_a_trained_step_keeps_the_state_of_the_formula(tmp_path):
    from gentok.training.run import train

    words = ["experiment=mnist5k/masked", *TINY, "steps=1", "budget=null", f"paths.run={tmp_path / 'run'}", f"paths.cache={tmp_path}",
             "trainer.progress_bar=false", "print_config=false", "limit_items=40", "trainer.accelerator=cpu"]  # fmt: skip
    checkpoint = torch.load(train(compose("config", words)) / "checkpoints" / "last.ckpt", weights_only=True)
    names = [name for name in checkpoint["state_dict"] if name.startswith("generator.")]
    weights = {key: sum(checkpoint[key][name].nbytes for name in names) for key in ("state_dict", "current_model_state")}
    moments = [x for state in checkpoint["optimizer_states"][0]["state"].values() for x in state.values() if x.dim()]
    p = plan("mnist5k/masked", TINY, gpus=2).figures["parameters"]
    buffers = weights["state_dict"] - 4 * p
    assert 0 <= buffers < 0.02 * weights["state_dict"]
    assert sum(x.nbytes for x in moments) == 8 * p
    assert weights["current_model_state"] - buffers == 4 * p  # averages and weights are two copies
    assert sum(weights.values()) - 2 * buffers + 8 * p + 4 * p == 20 * p  # and gradients as large as weights


@pytest.mark.slow
@pytest.mark.parametrize("name", ["xar_h", "llamagen_xxl", "var_d30", "elm_l", "ctf_l", "flextok_d18_d28", "vqgan_llamagen"])
def test_large_experiments_have_a_plan(name):
    made = plan(f"imagenet256/{name}", ("batch_size=256",), gpus=64).figures
    assert made["parameters"] > 5e7 and made["FSDP memory"] < made["DDP memory"]


def test_the_command_prints_formulas_and_json(capsys):
    main(["plan=mnist5k/masked", "gpus=2", *TINY])
    lines = capsys.readouterr().out.strip().splitlines()
    assert any("2 (2 - 1) / 2 x 4 P" in line for line in lines) and json.loads(lines[-1])["parameters"] > 0


@pytest.mark.parametrize(
    "words, says",
    [
        (["plan=mnist5k/maked"], "mnist5k/masked"),
        (["plan=mnist5k/masked", *TINY, "gpus=3"], "batch_size=16.*gpus=3"),
        (["plan=mnist5k/masked", "gpus=none"], "gpus=none"),
        (["plan=mnist5k/masked", "precision=fp8"], "bf16-mixed or 32-true"),
        (["plan=mnist5k/masked", *TINY, "generator.widht=3"], "widht"),
        (["plan=mnist5k/masked", "more"], "expected python -m gentok.benchmark plan="),
    ],
)
def test_what_cannot_be_planned_is_one_line(words, says):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    import re

    assert re.search(says, str(stopped.value)) and "\n" not in str(stopped.value)


def test_every_experiment_over_a_bundle_has_a_tokenizer_for_its_plan():
    from gentok.cli import conf_dir

    folder = conf_dir() / "experiment"
    for path in (folder / "imagenet256").glob("*.yaml"):
        if "override /tokenizer: from_bundle" in path.read_text():
            assert any(f"imagenet256/{path.stem}".startswith(start) for start in SIZES), path
