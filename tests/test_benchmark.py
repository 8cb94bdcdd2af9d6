"""The benchmark: contenders run in turn, figures say what they should, peers do the same work. No clock decides whether a test passes."""

import json
import math
import sys

import pytest
import torch

from gentok import benchmark
from gentok.benchmark import ITEMS
from gentok.benchmarks.codebooks import codebook
from gentok.benchmarks.codecs import codec
from gentok.benchmarks.decoding import agrees, bare, decode, divergence, llama_of, model_of
from gentok.benchmarks.masked_sampling import first_hitting
from gentok.benchmarks.models import ZOO, load_or_build
from gentok.benchmarks.sampling import sample, without_cache
from gentok.benchmarks.speculation import speculation
from gentok.benchmarks.training import shards, small_tokenizers, tokenizers, train
from gentok.metrics import speed
from gentok.metrics.speed import figure, interleaved, missing, table, timed
from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.types import Batch, Tokens

TINY = ("generator.width=16", "generator.depth=1", "generator.heads=2", "batch_size=2", "generator.zero_init_head=false")
FIELDS = {"value", "min", "max", "unit", "peer", "seconds", "peer_seconds", "rounds", "dtype", "setting"}


def test_contenders_run_in_turn_and_the_first_round_does_not_count():
    log = []

    def contender(name):
        return lambda: log.append(name) or float(len(log))

    seconds = interleaved({"a": contender("a"), "b": contender("b")}, rounds=3)
    assert "".join(log) == "abababab"
    assert seconds == {"a": [3.0, 5.0, 7.0], "b": [4.0, 6.0, 8.0]}


def test_timed_measures_its_work_alone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])

    def work(seconds):
        now[0] += seconds

    runs = {"a": timed(work, 2.0), "b": timed(work, 5.0, repeat=3)}
    assert interleaved(runs, rounds=2) == {"a": [2.0, 2.0], "b": [5.0, 5.0]}


def test_ratios_are_taken_within_a_round_so_that_drift_cancels():
    own = [1.0, 4.0, 2.0]  # the machine gets slower and recovers
    out = figure(own, [3 * s for s in own], peer="p", tokens=8, dtype="float32")
    assert (out["value"], out["min"], out["max"]) == (3.0, 3.0, 3.0)
    assert (out["seconds"], out["peer_seconds"], out["rounds"], out["peer"]) == (2.0, 6.0, 3, "p")
    assert (out["tokens_per_second"], out["peer_tokens_per_second"]) == (4.0, 8 / 6)
    own, peer = [1.0, 2.0, 9.0], [2.0, 2.0, 2.0]
    assert figure(own, peer, peer="p")["value"] == 1.0
    assert (figure(own, peer, peer="p")["min"], figure(own, peer, peer="p")["max"]) == (2 / 9, 2.0)


def test_overhead_is_percent_more_time():
    out = figure([1.1, 1.3, 1.2], [1.0, 1.0, 1.0], peer="loop", overhead=True)
    assert math.isclose(out["value"], 20, rel_tol=1e-9) and math.isclose(out["min"], 10, rel_tol=1e-9)
    assert out["unit"] == "% more time" and "tokens_per_second" not in out


def check(figures, names):
    assert set(figures) == set(names)
    for values in figures.values():
        assert set(values) - {"tokens_per_second", "peer_tokens_per_second", "images_per_second"} == FIELDS
        assert math.isfinite(values["value"]) and values["min"] <= values["value"] <= values["max"]
        assert values["seconds"] > 0 and values["peer_seconds"] > 0


def test_codebook_names_each_peer():
    figures = dict(codebook(2, vectors=32, vocab=16, residual_vocab=8))
    names = [f"codebook/{name}/{mode}/library" for name in ("vq", "fsq", "residual") for mode in ("eval", "train")]
    check(figures, [*names, "codebook/vq/eval/product", "codebook/vq/train/product"])
    assert "ResidualVQ" in figures["codebook/residual/train/library"]["peer"]


def test_train_measures_the_trainer():
    figures = dict(train(1, steps=2, overrides=TINY))
    check(figures, ["train/step/loop"])
    assert figures["train/step/loop"]["unit"] == "% more time"


def test_a_share_is_of_the_whole():
    out = figure([1.0, 2.0, 4.0], [0.9, 1.9, 2.0], peer="part", share=True)
    assert out["value"] == pytest.approx(10) and (out["min"], out["max"]) == (pytest.approx(5), pytest.approx(50))
    assert out["unit"] == "% of the time"


def test_every_small_tokenizer_is_measured_against_its_network_alone():
    figures = dict(tokenizers(1, steps=2, size=4, overrides=("tokenizer.width=8",), names=("vqgan_fsq",)))
    check(figures, ["tokenizers/vqgan_fsq/outside"])
    one = figures["tokenizers/vqgan_fsq/outside"]
    assert one["unit"] == "% of the time" and one["images_per_second"] * one["seconds"] == pytest.approx(8)
    assert "FSQ" in one["setting"]


def test_a_tokenizer_over_an_autoencoder_is_measured_where_that_is_there(monkeypatch, tmp_path):
    check(dict(tokenizers(1, steps=1, size=2, names=("cifar10_flextok",))), ["tokenizers/cifar10_flextok/outside"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gentok.bundle.places.ZOO", ())
    ((_, one),) = tokenizers(1, steps=1, size=2, names=("cifar10_flextok",))
    assert one["value"] is None and "cifar10_kl" in one["note"] and "\n" not in one["note"]
    assert one["note"] in table({"tokenizers/cifar10_flextok/outside": one})


@pytest.mark.slow
def test_every_small_tokenizer_can_be_measured():
    known = small_tokenizers()
    assert {"vqgan_vq", "vqgan_residual", "cifar10_vq", "cifar10_rq"} <= set(known)
    check(dict(tokenizers(1, steps=1, size=2)), [f"tokenizers/{name}/outside" for name in known])


def test_waits_for_token_shards_are_a_share_of_a_real_run():
    tiny = ("generator.width=16", "generator.depth=1", "generator.heads=2", "batch_size=4")
    figures = dict(shards(1, steps=40, items=64, overrides=tiny))
    check(figures, ["shards/wait"])
    assert 0 < figures["shards/wait"]["value"] < 100


def test_sample_names_each_peer_and_says_what_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    figures = dict(sample(1, batches=(2,), ckpt=tmp_path, overrides=TINY))
    assert figures.pop("sample/autoregressive/batch2/transformers")["value"] is None
    check(figures, ["sample/autoregressive/batch2/no_cache", "sample/maskgit12/batch2/autoregressive"])
    one = figures["sample/autoregressive/batch2/no_cache"]
    assert math.isclose(one["tokens_per_second"] * one["seconds"], 2 * 64)


def test_speculation_says_what_a_call_of_many_steps_costs_and_what_fewer_calls_save(tmp_path):
    tiny = {"side": 4, "vocab": 32, "width": 32, "depth": 2, "heads": 2, "hidden": 64}
    figures = dict(speculation(1, ckpt=tmp_path, windows=(4,), batches=(1, 2), repeat=1, **tiny))
    check(figures, [f"speculation/{what}/batch{batch}" for batch in (1, 2) for what in ("call4", "coupled", "match")])
    one = figures["speculation/coupled/batch2"]
    assert math.isclose(one["tokens_per_second"] * one["seconds"], 2 * 64)


DECODED = {"side": 3, "vocab": 24, "width": 32, "depth": 2, "heads": 2, "hidden": 64}


@pytest.mark.filterwarnings("ignore")
def test_decoding_is_measured_against_a_peer_that_draws_the_same_ids():
    pytest.importorskip("transformers")
    given = {"batches": (1, 2), "alone": (3,), "dtypes": ("float32", "bfloat16", "int8"), "work": 8, "compiled": False}
    figures = dict(decode(1, **given, ckpt=None, **DECODED))
    names = [f"decode/{dtype}/batch{batch}" for dtype in given["dtypes"] for batch in (1, 2, 3)]
    peers = [f"{name}/generate" for name in names if "int8" not in name and "batch3" not in name]
    memory = {name: {key: figures[name].pop(key) for key in ("cache_bytes", "weight_bytes")} for name in figures}
    both = [f"{name}/bfloat16" for name in names if "int8" in name]
    check(figures, [*(f"{name}/bare" for name in names), *peers, *both])
    one = figures["decode/float32/batch2/generate"]
    assert math.isclose(one["tokens_per_second"] * one["seconds"], 2)
    assert memory["decode/float32/batch2/bare"]["cache_bytes"] == 2 * (2 * 2 * 9 * 32 * 4)  # rows; keys, values; blocks; steps; width
    weights = [memory[f"decode/{dtype}/batch1/bare"]["weight_bytes"] for dtype in given["dtypes"]]
    assert weights[1] * 2 == weights[0] and weights[2] < weights[0]


def test_fewer_bits_move_the_distribution_of_a_stored_model_a_little():
    bits = {dtype: divergence(ZOO, dtype, items=4) for dtype in ("float32", "bfloat16", "int8")}
    assert bits["float32"] == 0 and 0 < bits["bfloat16"] < 1e-2 and 0 < bits["int8"] < 1e-2, bits


@pytest.mark.filterwarnings("ignore")
def test_a_peer_of_other_weights_is_noticed():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    with torch.no_grad():
        model = model_of(DECODED["side"], DECODED["vocab"], **{k: DECODED[k] for k in ("width", "depth", "heads", "hidden")})
        peer = llama_of(model)
        assert agrees(model, peer)
        key = peer.model.layers[1].self_attn.k_proj.weight
        key.copy_(model.transformer.blocks[1].attention.qkv.weight.chunk(3)[1] * 8)  # not turned back by a position
        model.transformer.blocks[1].attention.qkv.weight.chunk(3)[1].mul_(8)
        assert not agrees(model, peer)


def test_bare_operations_of_a_step_are_its_products_its_attention_and_its_draw(monkeypatch):
    model, seen = model_of(3, 24, width=32, depth=2, heads=2, hidden=64), []
    plain = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, weight, bias=None: seen.append(weight.numel()) or plain(x, weight, bias))
    bare(model, 2, 4)()
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "table" not in name)
    assert sum(seen) == matrices


def test_first_hitting_is_measured_against_every_way_to_call_the_network():
    figures = dict(first_hitting(1, sizes=((2, 1), (4, 3)), vocab=5, width=8))
    check(
        figures,
        [f"first_hitting/{size}/{way}" for size in ("n4/batch1", "n16/batch3") for way in ("uncached", "cached_batch", "cached_rows")],
    )
    one = figures["first_hitting/n16/batch3/uncached"]
    assert "T = 256" in one["setting"] and math.isclose(one["tokens_per_second"] * one["seconds"], 3 * 16)


def test_trainer_and_loop_do_the_same_work():
    """From the same start both end in the same weights: the difference in time is the trainer's, and no step is left out."""
    from gentok.benchmarks.overhead import by_loop, by_trainer

    bundle, config, _, _ = load_or_build(None, (*TINY, "trainer.precision=32-true", "schedule.warmup=2"))
    codes = torch.randint(512, (2, 1, 64))
    batch = Batch(None, torch.arange(2), bundle.condition_spec.parse([3, 7], 2), tokens=Tokens(codes, bundle.spec))
    ends = [run(config, bundle, bundle.condition_spec, batch, 3, 2)[1].state_dict() for run in (by_trainer, by_loop)]
    shorter = by_loop(config, bundle, bundle.condition_spec, batch, 2, 2)[1].state_dict()
    key = "head.weight"
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-6)
    assert (ends[0][key] - shorter[key]).abs().max() > 1e-4


def test_the_model_without_a_cache_draws_the_same_ids():
    bundle, _, model, _ = load_or_build(None, TINY)
    model = model.double()
    condition = bundle.condition_spec.parse([1, 2, 3], 3)
    rng = [RowRNG.of(0, torch.arange(3)) for _ in range(2)]
    cached = AutoregressiveSampler()(model, condition, rng=rng[0])
    plain = AutoregressiveSampler()(without_cache(model), condition, rng=rng[1])
    assert torch.equal(cached.tokens.codes, plain.tokens.codes)


def test_the_report_holds_every_figure(monkeypatch, tmp_path, capsys):
    made = figure([1.0, 1.0], [2.0, 2.0], peer="p", dtype="float32", setting="s")
    monkeypatch.setitem(ITEMS, "codebook", lambda rounds: iter([("codebook/x", {**made, "rounds": rounds})]))
    monkeypatch.setitem(ITEMS, "sample", lambda rounds: iter([("sample/y", missing("q", "quux"))]))
    benchmark.benchmark(only="codebook,sample", rounds="2", out=tmp_path)
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert list(report) == ["codebook/x", "sample/y"]
    assert report["codebook/x"]["value"] == 2.0 and report["codebook/x"]["rounds"] == 2
    assert report["codebook/x"]["threads"] == torch.get_num_threads()
    assert report["codebook/x"]["command"] == "python -m gentok.benchmark only=codebook,sample rounds=2"
    assert report["codebook/x"]["machine"]["cores"] >= 1 and "torch" in report["codebook/x"]["machine"]["versions"]
    assert report["sample/y"]["value"] is None
    printed = capsys.readouterr().out
    assert "times as fast" in printed and "q: not installed (pip install quux)" in printed
    assert len(table(report).splitlines()) == 3


def test_what_is_measured_stays_where_a_later_contender_fails(monkeypatch, tmp_path, capsys):
    def item(rounds):
        yield "codebook/x", figure([1.0], [2.0], peer="p")
        assert json.loads((tmp_path / "benchmark.json").read_text())["codebook/x"]["value"] == 2.0
        raise ValueError("the second one does not run")

    monkeypatch.setitem(ITEMS, "codebook", item)
    with pytest.raises(ValueError, match="second one"):
        benchmark.benchmark(only="codebook", rounds=1, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["benchmark.json"] and "codebook/x" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, says",
    [
        (["only=codebok"], "there is no item 'codebok'"),
        (["rounds=0"], "rounds=0: a number of at least 1"),
        (["threads=two"], "threads=two"),
        (["round=3"], "[only=ITEMS] [rounds=N] [threads=N] [out=FOLDER]"),
        (["quick"], "[only=ITEMS] [rounds=N] [threads=N] [out=FOLDER]"),
    ],
)
def test_errors_are_one_line(words, says):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(words)
    assert str(stop.value.code).startswith("gentok: ") and says in str(stop.value.code) and "\n" not in str(stop.value.code)


def test_a_codec_and_its_package_do_the_same_work(monkeypatch):
    pytest.importorskip("encodec")
    figures = dict(codec(1, seconds=(1,)))
    assert set(figures) == {"codec/encodec_24khz/1s/encode", "codec/encodec_24khz/1s/decode"}
    for values in figures.values():
        assert set(values) >= FIELDS and values["real_time_factor"] == pytest.approx(1 / values["seconds"])
    from gentok.tokenizers.pretrained.encodec import EnCodec

    encode = EnCodec.encode

    def reversed_in_time(self, media, *args, **kwargs):
        return encode(self, media.flip(-1), *args, **kwargs)

    monkeypatch.setattr(EnCodec, "encode", reversed_in_time)
    with pytest.raises(ValueError, match="do not do the same work"):
        dict(codec(1, seconds=(1,)))
