"""Trains and measures image tokenizers on CIFAR-10: writes image_tokenizers.json, image_tokenizers.md and the pictures beside it.

    python docs/results/image_tokenizers.py train ROW ... shards='PATH/cifar10-train-{000..004}.tar' held_out=PATH/cifar10-test-000.tar
    python docs/results/image_tokenizers.py measure ROW ... shards=... held_out=... [n=5000]
    python docs/results/image_tokenizers.py trial ROW ...         four settings of each, in short runs: which one a row is trained with
    python docs/results/image_tokenizers.py errors ROW ...        Fréchet distances of the first k tokens, with their standard errors
    python docs/results/image_tokenizers.py guide ROW ...         few tokens of a flow under guidance, of the strength that a trial finds best
    python docs/results/image_tokenizers.py page          the page anew, from the figures that are there

A row is one training, written down in ROWS; ROW@1 is the same with seed 1. Its run goes into outputs/image_tokenizers/ROW and is left alone
where it is done. Budgets are processor time of one thread; steps=N behind train, measure or errors puts that many steps in the place of the budget: a row
as it was on a machine that is not there. measure: PSNR with its standard error, SSIM, FD-efflite0 of `n` reconstructions to their originals, the class
that the stored eval classifier reads, use of the codebook; of rows with prefixes, all of this by their first k tokens; of rows with a probe, how well
a linear classifier reads the class from the quantized vectors.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from evidence import HERE, ROOT, Store, figures, held_by_tests, table
from torch import Tensor

from gentok.build import build
from gentok.bundle import load
from gentok.cli import compose
from gentok.data.datasets import whole
from gentok.data.image_files import save_grid
from gentok.evaluate import evaluate
from gentok.metrics.classifier import predict
from gentok.metrics.codebook import CodebookHealth
from gentok.metrics.distance import image_features
from gentok.metrics.eval_classifier import find_eval_classifier
from gentok.metrics.image import frechet, frechet_without, jackknife_error, psnr, ssim
from gentok.rng import RowRNG
from gentok.types import ABSENT, Tokens

RUNS = ROOT / "outputs" / "image_tokenizers"
DATA = "data.shards='PATH/cifar10-train-{000..004}.tar' data.held_out=PATH/cifar10-test-000.tar"
KEEPS = (1, 2, 4, 8, 16, 32, 64)
FEW = (4, 8)
FLOW_STEPS = 10
GUIDANCES = (1.0, 1.5, 2.0, 3.0, 5.0)
TRIED_ON = 500


@dataclass(frozen=True)
class Row:
    """One training. words: of train.py, beside the data; keeps: prefixes that are measured, cut: by leaving out later positions of a code
    that was not trained for it; probe: whether classes are read from its vectors, bits: whether
    codes are made of bits, each of which is counted."""

    title: str
    words: str
    keeps: tuple[int, ...] = ()
    cut: bool = False
    probe: bool = False
    bits: bool = False


# Found in trials at w = 4: decoding from both halves, averages, and a semantic half of few channels, which costs the looks least.
FLOW = (
    "experiment=cifar10/tokenflow codebook.semantic=3 codebook.pixel=16 codebook.update=ema tokenizer.decode_from=both "
    "tokenizer.semantic_depth=1 tokenizer.semantic_width=64"
)
# The paper's ablation: a semantic network trained afresh and distilled from the teacher, until the last row, which starts from it.
AFRESH = "tokenizer.semantic={_target_:gentok.nn.semantic.ConvolutionalMap} tokenizer.teacher={_target_:gentok.nn.semantic.EfficientNetMap} tokenizer.target=112"
ROWS = {
    "kl": Row("KL autoencoder, 64 × 4 numbers", "experiment=cifar10/kl tokenizer.width=48 budget=15min"),
    "vq": Row("VQ, 64 × 4,096", "experiment=cifar10/vq budget=12min", keeps=(4, 8), cut=True, probe=True),
    "tokenflow_w0": Row("TokenFlow, w = 0", f"{FLOW} codebook.w=0", probe=True),
    "tokenflow_w025": Row("TokenFlow, w = ¼", f"{FLOW} codebook.w=0.25", probe=True),
    "tokenflow_w1": Row("TokenFlow, w = 1", f"{FLOW} codebook.w=1", probe=True),
    "tokenflow_w4": Row("TokenFlow, w = 4", f"{FLOW} codebook.w=4", probe=True),
    "tokenflow_winf": Row("TokenFlow, w = ∞: codes by looks alone", f"{FLOW} codebook.w=inf"),
    "flextok": Row("FlexTok", "experiment=cifar10/flextok budget=30min", keeps=KEEPS),
    "flextok_regression": Row("FlexTok's encoder, regression", "experiment=cifar10/flextok_regression budget=30min", keeps=KEEPS),
    "vq_64bit": Row("VQ, 16 × 16", "experiment=cifar10/vq budget=12min codebook.vocab_size=16 tokenizer.multipliers=[1,2,4]"),
    "vq_128bit": Row("VQ, 16 × 256", "experiment=cifar10/vq budget=12min codebook.vocab_size=256 tokenizer.multipliers=[1,2,4]"),
    "ablation_separate": Row("separate codebooks, 64 + 64", f"experiment=cifar10/tokenflow_separate {AFRESH}", probe=True),
    "ablation_shared": Row("shared index, 4,096", f"experiment=cifar10/tokenflow {AFRESH}", probe=True),
    "ablation_scales": Row("+ several scales", f"experiment=cifar10/tokenflow_ms {AFRESH}", probe=True),
    "ablation_teacher": Row("+ the teacher's weights (frozen)", "experiment=cifar10/tokenflow_ms", probe=True),
    "vq_512": Row("VQ, 64 × 256", "experiment=cifar10/vq budget=12min codebook.vocab_size=256"),
    "ibq_512": Row("index backpropagation (IBQ), 64 × 256", "experiment=cifar10/ibq budget=12min"),
    "rq_512": Row("residual, 64 × 2 × 16", "experiment=cifar10/rq budget=12min codebook.levels=2 codebook.codebook.vocab_size=16"),
    "bae_512": Row("binary (BAE), 64 × 8 bits", "experiment=cifar10/bae budget=12min codebook.bits=8 codebook.levels=1", bits=True),
    "fsq_512": Row("FSQ, 64 × 256", "experiment=cifar10/fsq budget=12min codebook.values=[8,8,4]"),
    "lfq_512": Row("lookup-free, 64 × 8 bits", "experiment=cifar10/lfq budget=12min codebook.bits=8", bits=True),
    "var_510": Row("multi-scale (VAR), 85 × 64", "experiment=cifar10/var budget=12min codebook.codebook.vocab_size=64"),
    "rq_1024": Row("residual, 64 × 2 × 256", "experiment=cifar10/rq budget=12min codebook.levels=2 codebook.codebook.vocab_size=256"),
    "bae_1024": Row("binary (BAE), 64 × 16 bits", "experiment=cifar10/bae budget=12min", bits=True),
    "fsq_1024": Row("FSQ, 64 × 65,536", "experiment=cifar10/fsq budget=12min"),
    "lfq_1024": Row("lookup-free, 64 × 16 bits", "experiment=cifar10/lfq budget=12min", bits=True),
    "var_1020": Row("multi-scale (VAR), 85 × 4,096", "experiment=cifar10/var budget=12min"),
}  # fmt: skip


# Four short runs of every row of 512 and of 1,024 bits: its setting of before, twice the learning rate, and at the better rate two other weights of the
# codebook's own losses (of FSQ, which has none, other values). A row leaves its setting for the best of them where that gains TIE decibels.
TRIAL = "budget=null steps=200 schedule.warmup=45"
LEARNING_RATES = ("optimizer.lr=2e-3", "optimizer.lr=4e-3")
TIE = 0.2
TRIALS = {
    "vq_512": ("codebook.commitment=0.05", "codebook.commitment=1"),
    "ibq_512": ("codebook.commitment=0.05 codebook.entropy=0", "codebook.commitment=0.1 codebook.entropy=0.01"),
    "rq_512": ("codebook.codebook.commitment=0.05", "codebook.codebook.commitment=1"),
    "bae_512": ("codebook.entropy=0.01", "codebook.entropy=0.03"),
    "fsq_512": ("codebook.values=[4,4,4,4]", "codebook.values=[16,16]"),
    "lfq_512": ("codebook.commitment=0.05 codebook.entropy=0.1", "codebook.commitment=0.02 codebook.entropy=0.03"),
    "var_510": ("codebook.commitment=0.05", "codebook.commitment=1"),
    "rq_1024": ("codebook.codebook.commitment=0.05", "codebook.codebook.commitment=1"),
    "bae_1024": ("codebook.entropy=0.01", "codebook.entropy=0.03"),
    "fsq_1024": ("codebook.values=[4,4,4,4,4,4,4,4]", "codebook.values=[16,16,16,16]"),
    "lfq_1024": ("codebook.commitment=0.05 codebook.entropy=0.1", "codebook.commitment=0.02 codebook.entropy=0.03"),
    "var_1020": ("codebook.commitment=0.05", "codebook.commitment=1"),
}
# What the trials chose, where it is not the setting of before.
CHOSEN = {
    "vq_512": "codebook.commitment=0.05",
    "rq_512": "codebook.codebook.commitment=0.05",
    "bae_512": "codebook.entropy=0.03",
    "fsq_512": "codebook.values=[16,16]",
    "lfq_512": "codebook.commitment=0.02 codebook.entropy=0.03",
    "var_510": "codebook.commitment=0.05",
    "rq_1024": "codebook.codebook.commitment=0.05",
    "var_1020": "optimizer.lr=4e-3",
    "bae_1024": "optimizer.lr=4e-3 codebook.entropy=0.03",
    "lfq_1024": "optimizer.lr=4e-3",
    "fsq_1024": "optimizer.lr=4e-3 codebook.values=[16,16,16,16]",
}

RATES = {
    "512 bits": ("vq_512", "ibq_512", "rq_512", "bae_512", "fsq_512", "lfq_512", "var_510", "flextok/keep32", "flextok_regression/keep32"),
    "768 bits": ("vq", "tokenflow_w1", "tokenflow_w4"),
    "1,024 bits": ("rq_1024", "bae_1024", "fsq_1024", "lfq_1024", "var_1020", "flextok/keep64", "flextok_regression/keep64"),
}
HELD = {
    "every tokenizer: shapes, what encoding leaves alone, dropped levels, other sizes, a row alone and in a batch, bfloat16 and float32": "tokenizers/test_tokenizer_contract",
    "two processes are one, a killed and resumed run is the run, a bundle is the model, tokens feed every generator that fits": "training/test_processes training/test_resume test_bundle test_pairings",
    "FSQ in bfloat16 uses as many codes as in float32; registers see no later one and patches no register; what is dropped is masked": "tokenizers/test_flextok",
    "solvers reach their order, Euler is diffusers' scheduler, a decoder repeats itself from the same noise": "flow/test_flow tokenizers/test_flextok",
    "codes and pictures of diffusers' and transformers' tokenizers, on the same weights": "tokenizers/test_pretrained",
    "sizes are the published ones": "tokenizers/test_flextok tokenizers/test_tokenflow tokenizers/test_vqgan",
    "commitment of every level reaches the encoder, once; revival changes the next lookup; every prefix of the levels is a code": "codebooks/test_codebook_residual",
    "one index from summed distances, weighed behind the normalisation": "codebooks/test_codebook_dual",
    "VAR's scales: codes and vectors of the paper, gradients that arrive once": "codebooks/test_codebook_pyramid",
    "bits: drawn with the encoder's probabilities, two views of one code": "codebooks/test_codebook_bits",
}  # fmt: skip
FLEXTOK_BITS = math.log2(64000)


def row_of(name: str) -> tuple[Row, int]:
    """The row and the seed of ROW or ROW@SEED."""
    row, _, seed = name.partition("@")
    return ROWS[row], int(seed or 0)


def words_of(name: str, given: dict[str, str]) -> str:
    """What train.py is told of ROW or ROW@SEED, without data; given: steps=N, where a number of steps stands for the budget."""
    row, seed = row_of(name)
    words = " ".join(filter(None, [row.words, CHOSEN.get(name.partition("@")[0])]))
    return f"{words} seed={seed}" + (f" budget=null steps={given['steps']}" if "steps" in given else "")


def command(name: str, given: dict[str, str] | None = None) -> str:
    return f"python train.py {words_of(name, given or {})} clock=cpu {DATA}"


def run(what: str, words: list[str], folder: Path, given: dict[str, str]) -> None:
    """train.py with these words into `folder`, on one thread; ends the script where it fails."""
    words = [
        *words,
        "clock=cpu",
        "print_config=false",
        "trainer.progress_bar=false",
        "trainer.validate_every=100000",
        f"data.shards='{given['shards']}'",
        f"data.held_out={given['held_out']}",
        f"paths.run={folder}",
        f"paths.cache={RUNS / 'cache'}",
    ]
    if subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode:
        sys.exit(f"the training of {what} failed")


def train(names: list[str], given: dict[str, str]) -> None:
    for name in names:
        folder = RUNS / name
        if not (folder / "bundle").is_dir():
            run(name, [*words_of(name, given).split(), "trainer.validate_batches=16"], folder, given)


def trial(store: Store, names: list[str], given: dict[str, str]) -> None:
    """The settings of TRIALS of these rows, for few steps: decibels of TRIED_ON photographs behind the n measured ones, and rows in use."""
    n = int(given.get("n", 5000))
    spare = held_out(given, n + TRIED_ON)[0][n:]

    def tried(name: str, words: str) -> float:
        base = f"{ROWS[name].words} {TRIAL} {words} seed=0"
        folder = RUNS / "trials" / re.sub(r"[^\w-]+", "_", f"{name}_{words}")
        if not (folder / "bundle").is_dir():
            run(f"{name}, {words}", [*base.split(), "trainer.validate_batches=1"], folder, given)
        model = load(folder / "bundle")
        health, kept = CodebookHealth(model.spec.vocab_sizes), []
        with torch.inference_mode():
            for part in spare.split(250):
                codes = model.tokenizer.eval().encode(part)
                health.update(codes.codes)
                kept.append(psnr(model.tokenizer.decode(codes).clamp(-1, 1), part))
        found = {"psnr_db": torch.cat(kept).mean().item(), "usage": min(health.compute().usage)}
        how = f"python docs/results/image_tokenizers.py trial {name} n={n}, among others: python train.py {base} clock=cpu {DATA}"
        store.add(figures(f"{name}/trial/{words}", found, how, 0, model.meta["seconds"]))
        print(name, words, found, flush=True)
        return found["psnr_db"]

    untried = [name for name in names if name not in TRIALS]
    if untried:
        sys.exit(f"nothing was tried: there are trials of {', '.join(TRIALS)}; got {' '.join(untried)}")
    for name in names:
        rates = {words: tried(name, words) for words in LEARNING_RATES}
        best = LEARNING_RATES[rates[LEARNING_RATES[1]] >= rates[LEARNING_RATES[0]] + TIE]
        for words in TRIALS[name]:
            tried(name, f"{best} {words}")


def choice(store: Store, name: str) -> str:
    """What the trials of a row choose, beside its words: the best of them where it gains TIE decibels on the setting of before, else nothing."""
    prefix, suffix = f"{name}/trial/", "/psnr_db"
    kept = {key[len(prefix) : -len(suffix)]: f["value"] for key, f in store.figures.items() if key.startswith(prefix) and key.endswith(suffix)}
    best = max(kept, key=lambda words: kept[words])
    return best.removeprefix(LEARNING_RATES[0]).strip() if kept[best] >= kept[LEARNING_RATES[0]] + TIE else ""


def trained(name: str, given: dict[str, str]) -> Any:
    """The bundle of ROW or ROW@SEED; ends the script where it was trained for other steps than `given` says."""
    model = load(RUNS / name / "bundle")
    if int(given.get("steps", model.meta["step"])) != model.meta["step"]:
        sys.exit(f"{name} was trained for {model.meta['step']} steps, not for steps={given['steps']}")
    return model


@torch.inference_mode()
def errors(store: Store, names: list[str], given: dict[str, str]) -> None:
    """FD-efflite0 of the first k tokens of rows with prefixes, and what it changes by from one k to the next, each with its standard error
    (a jackknife over groups of photographs)."""
    plain = [name for name in names if not row_of(name)[0].keeps]
    if plain:
        sys.exit(f"nothing was measured: these rows have no prefixes: {' '.join(plain)}")
    n = int(given.get("n", 5000))
    media = held_out(given, n)[0]
    real = image_features(media, real=True)
    how = f"python docs/results/image_tokenizers.py errors ROW n={n}, after: "
    for name in names:
        (row, seed), tokenizer, before = row_of(name), trained(name, given).tokenizer.eval(), None
        codes = [tokenizer.encode(part) for part in media.split(250)]
        for keep in row.keeps:
            began = time.monotonic()
            made = torch.cat([decode(tokenizer, c, rows, keep, row.cut) for c, rows in zip(codes, torch.arange(n).split(250))]).clamp(-1, 1)
            features = image_features(made)
            distance, without = float(frechet(features, real)), frechet_without(features, real)
            values = {"fd_efflite0_own": distance, "fd_efflite0_standard_error": jackknife_error(without).item()}
            values["psnr_db"] = psnr(made, media).mean().item()
            if before:
                values["change"], values["change_standard_error"] = distance - before[0], jackknife_error(without - before[1]).item()
            before = distance, without
            store.add(figures(f"{name}/errors/keep{keep}", values, how + command(name, given), seed, time.monotonic() - began))
            print(name, keep, values, flush=True)


def held_out(given: dict[str, str], n: int) -> tuple[Tensor, Tensor, Any]:
    data = build(
        compose("evaluate", ["ckpt=none", "data=cifar10", f"data.shards='{given['shards']}'", f"data.held_out={given['held_out']}"])["data"]
    )
    return *whole(data.held_out, n), data


def decode(tokenizer: Any, tokens: Tokens, rows: Tensor, keep: int | None, cut: bool, guidance: float | None = None) -> Tensor:
    """Pictures of the first `keep` tokens; where these are no code of their own (cut), positions behind them are absent."""
    if getattr(tokenizer, "generative", False):
        return tokenizer.decode(tokens, RowRNG.of(0, rows), keep=keep, steps=FLOW_STEPS, guidance=guidance)
    if keep is None:
        return tokenizer.decode(tokens)
    if not cut:
        return tokenizer.decode(tokens, keep=keep)
    codes = tokens.codes.clone()
    codes[:, :, keep:] = ABSENT
    return tokenizer.decode(Tokens(codes, tokens.spec))


def looks(made: Tensor, media: Tensor, real: Any, labels: Tensor, classifier: Any) -> dict[str, float]:
    """What reconstructions float [n, 3, H, W] kept of their originals; real: features of these, labels int64 [n]: what the eval classifier should read."""
    each = psnr(made, media).double()
    return {
        "psnr_db": each.mean().item(),
        "psnr_standard_error": (each.std() / len(each) ** 0.5).item(),
        "ssim": torch.cat([ssim(a, b) for a, b in zip(made.split(250), media.split(250))]).double().mean().item(),
        "fd_efflite0_own": float(frechet(image_features(made), real)),
        "recognised": (predict(classifier, made)[0] == labels).double().mean().item(),
    }


@torch.inference_mode()
def guide(store: Store, names: list[str], given: dict[str, str]) -> None:
    """Pictures of few tokens under plain guidance. Its strength is the one of GUIDANCES at which the eval classifier reads most classes from few
    tokens of the first row's TRIED_ON photographs behind the measured n; all rows are then measured at it."""
    n = int(given.get("n", 5000))
    media, labels, data = held_out(given, n + TRIED_ON)
    classifier = find_eval_classifier("auto", dict(data.condition_spec.parts)["class"].names, tuple(data.media_shape))[0]
    how = f"python docs/results/image_tokenizers.py guide {' '.join(names)} n={n}, after: "  # the first row chooses for all
    tokenizers = {name: load(RUNS / name / "bundle").tokenizer.eval() for name in names}
    plain = [name for name, tokenizer in tokenizers.items() if not getattr(tokenizer, "generative", False)]
    if plain:
        sys.exit(f"nothing was measured: guidance is of a flow, and these rows decode without one: {' '.join(plain)}")

    def pictures(name: str, rows: Tensor, keep: int, guidance: float) -> Tensor:
        parts = [decode(tokenizers[name], tokenizers[name].encode(media[part]), part, keep, False, guidance) for part in rows.split(250)]
        return torch.cat(parts).clamp(-1, 1)

    spare, read = torch.arange(n, n + TRIED_ON), {}
    for guidance in GUIDANCES:
        began = time.monotonic()
        kept = [(predict(classifier, pictures(names[0], spare, keep, guidance))[0] == labels[spare]).double().mean().item() for keep in FEW]
        read[guidance] = sum(kept) / len(kept)
        values = {f"keep{keep}/recognised": value for keep, value in zip(FEW, kept)}
        store.add(figures(f"{names[0]}/trial/guidance={guidance:g}", values, how + command(names[0]), 0, time.monotonic() - began))
        print(guidance, kept, flush=True)
    best = max(read, key=lambda guidance: read[guidance])
    real = image_features(media[:n], real=True)
    for name in names if best != 1 else ():  # without guidance all is measured already
        for keep in FEW:
            began = time.monotonic()
            values = looks(pictures(name, torch.arange(n), keep, best), media[:n], real, labels[:n], classifier) | {"guidance": best}
            store.add(figures(f"{name}/keep{keep}/guided", values, how + command(name), row_of(name)[1], time.monotonic() - began))
            print(name, keep, values, flush=True)


@torch.inference_mode()
def measure(store: Store, names: list[str], given: dict[str, str]) -> None:
    n = int(given.get("n", 5000))
    media, labels, data = held_out(given, n)
    classifier = find_eval_classifier("auto", dict(data.condition_spec.parts)["class"].names, tuple(data.media_shape))[0]
    real = image_features(media, real=True)
    how = f"python docs/results/image_tokenizers.py measure ROW n={n}, after: "
    for name in names:
        (row, seed), model = row_of(name), trained(name, given)
        tokenizer = model.tokenizer.eval()
        codes = [tokenizer.encode(part) for part in media.split(250)]
        shown = []
        for keep in (*row.keeps, None) if row.keeps[-1:] != KEEPS[-1:] else row.keeps:
            began = time.monotonic()
            made = torch.cat([decode(tokenizer, c, rows, keep, row.cut) for c, rows in zip(codes, torch.arange(n).split(250))]).clamp(-1, 1)
            values = looks(made, media, real, labels, classifier)
            prefix = f"{name}/keep{keep}" if keep else name
            store.add(figures(prefix, values, how + command(name, given), seed, time.monotonic() - began))
            print(prefix, values, flush=True)
            shown.append(made[:12])
        about = {"parameters": sum(p.numel() for p in tokenizer.parameters()), "steps": model.meta["step"], "training_seconds": model.meta["seconds"], "items": n}  # fmt: skip
        if isinstance(codes[0], Tokens):
            health = CodebookHealth(model.spec.vocab_sizes)
            for c in codes:
                health.update(c.codes)
            report = health.compute()
            about |= {"usage": min(report.usage), "perplexity": min(report.perplexity), "entropy_bits_per_item": report.bits_per_item,
                      "nominal_bits_per_item": model.spec.bits}  # fmt: skip
            if row.bits:
                about["least_bit_entropy"] = bit_entropy(torch.cat([c.codes for c in codes]), model.spec.vocab_sizes).min().item()
        store.add(figures(name, about, how + command(name, given), seed, model.meta["seconds"]))
        if row.keeps[-1:] == KEEPS[-1:] and not seed:
            save_grid(torch.stack([*shown, media[:12]], 1).flatten(0, 1), HERE / f"{name}_prefixes.png", len(KEEPS) + 1, scale=2)


def bit_entropy(codes: Tensor, vocab_sizes: Sequence[int]) -> Tensor:
    """codes int64 [B, K, N] of V_1, ..., V_K = powers of two -> the entropy in bits of every bit of a cell's codes over all cells [bits]."""
    bits = torch.cat([codes[:, k, :, None] >> torch.arange(v.bit_length() - 1) & 1 for k, v in enumerate(vocab_sizes)], -1)
    p = bits.double().mean((0, 1))
    return (torch.special.entr(p) + torch.special.entr(1 - p)) / math.log(2)


def probe(store: Store, name: str, given: dict[str, str]) -> None:
    began, seed = time.monotonic(), row_of(name)[1]
    with tempfile.TemporaryDirectory() as out:
        words = [f"ckpt={RUNS / name / 'bundle'}", "protocol=probe", f"out={out}", "data=cifar10", f"data.shards='{given['shards']}'",
                 f"data.held_out={given['held_out']}", "max_held_out=5000", "progress=false"]  # fmt: skip
        report = evaluate(compose("evaluate", words))
    how = f"python -m gentok.evaluate ckpt=RUN/bundle protocol=probe max_held_out=5000 data=cifar10 {DATA}, after: {command(name)}"
    values = {f"probe_{key}": value for key, value in report["metrics"].items()}
    store.add(figures(name, values, how, seed, time.monotonic() - began), {"probe": report["protocol"]["what"]})


SEEDS = ("", "@1")


class Page:
    """Figures as text: the mean over seeds, and how many there are."""

    def __init__(self, store: Store):
        self.store = store

    def each(self, key: str) -> list[float]:
        """A figure of every seed that has it; key: ROW/FIGURE or ROW/keepK/FIGURE."""
        row, _, rest = key.partition("/")
        found = [self.store.figures.get(f"{row}{seed}/{rest}", {}).get("value") for seed in SEEDS]
        return [value for value in found if value is not None]

    def value(self, key: str, form: str = ".3f", scale: float = 1.0) -> str:
        each = self.each(key)
        if not each:
            return "–"
        text = format(scale * sum(each) / len(each), form)
        return text if len(each) == 1 else f"{text} ± {scale * (max(each) - min(each)) / 2:{form}}"

    def percent(self, key: str) -> str:
        text = self.value(key, ".1f", 100.0)
        return text if text == "–" else f"{text} %"

    def every(self, key: str, form: str = ",.0f") -> str:
        """The figure of every seed by itself."""
        return ", ".join(format(value, form) for value in self.each(key)) or "–"

    def mean(self, key: str, form: str = ".1f", scale: float = 100.0) -> str:
        each = self.each(key)
        return format(scale * sum(each) / len(each), form) if each else "–"

    def change(self, before: str, after: str, figure: str, form: str, scale: float = 1.0) -> str:
        """What a figure of one row is more than of another, seed by seed."""
        pairs = zip(self.each(f"{before}/{figure}"), self.each(f"{after}/{figure}"))  # before, after: ROW or ROW/MORE
        return ", ".join(format(scale * (b - a), form) for a, b in pairs) or "–"

    def gap(self, before: str, after: str, figure: str) -> float:
        """What the mean of a figure is more than of another row."""
        first, second = (self.each(f"{name}/{figure}") for name in (before, after))
        return sum(second) / len(second) - sum(first) / len(first)

    def have(self, *names: str) -> list[str]:
        return [name for name in names if self.each(f"{name}/parameters")]


def bits_of(page: Page, name: str) -> float:
    row, _, keep = name.partition("/keep")
    return FLEXTOK_BITS * int(keep) if keep else page.each(f"{row}/nominal_bits_per_item")[0]


def draw_rates(page: Page) -> None:
    """image_tokenizers_rates.png: PSNR and FD-efflite0 against bits per photograph."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    shown = [name for names in RATES.values() for name in names if page.have(name.partition("/")[0])]
    titles = {name: ROWS[name.partition("/")[0]].title.partition(", 64")[0].partition(", 85")[0] for name in shown}
    families = sorted({title.partition(",")[0] for title in titles.values()})
    for axes, key in ((left, "psnr_db"), (right, "fd_efflite0_own")):
        each = {name: page.each(f"{name}/{key}") for name in shown}
        points = [(bits_of(page, name), sum(each[name]) / len(each[name]), titles[name]) for name in shown]
        gap = 0.035 * (max(y for _, y, _ in points) - min(y for _, y, _ in points))
        for (x, _, title), values in zip(points, each.values(), strict=True):
            axes.plot([x, x], [min(values), max(values)], color=f"C{families.index(title.partition(',')[0])}", linewidth=1)  # both seeds
        for names in RATES.values():
            label = -math.inf
            for x, y, title in sorted((points[shown.index(name)] for name in names if name in shown), key=lambda point: point[1]):
                family = families.index(title.partition(",")[0])
                label = max(y, label + gap)  # labels of equal heights lie above one another
                axes.plot([x], [y], "osD^v<>Px*"[family], color=f"C{family}")
                axes.annotate(title.replace("'s encoder", ""), (x + 15, label), fontsize=7, va="center")
    left.set_title("mean PSNR, dB")
    right.set_title("FD-efflite0 to the originals")
    for axes in (left, right):
        axes.set_xlabel("bits per photograph")
        axes.set_xlim(450, 1350)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(HERE / "image_tokenizers_rates.png", dpi=110)
    plt.close(figure)


def page(store: Store) -> str:
    shown = Page(store)
    value, percent, have = shown.value, shown.percent, shown.have

    def prefixes(name: str) -> str:
        rows = [
            ("tokens kept", *map(str, KEEPS)),
            ("mean PSNR, dB", *(value(f"{name}/keep{k}/psnr_db", ".2f") for k in KEEPS)),
            ("its standard error, dB", *(value(f"{name}/keep{k}/psnr_standard_error", ".2f") for k in KEEPS)),
            ("FD-efflite0 to the originals", *(value(f"{name}/keep{k}/fd_efflite0_own", ".0f") for k in KEEPS)),
            ("class read by the eval classifier", *(percent(f"{name}/keep{k}/recognised") for k in KEEPS)),
        ]
        return table(rows)

    def read(key: str) -> str:
        return shown.mean(f"{key}/recognised")

    def flow_row(name: str) -> tuple[str, ...]:
        lost = ", ".join(f"{own - vq:+.2f}" for own, vq in zip(shown.each(f"{name}/psnr_db"), shown.each("vq/psnr_db")))  # seed by seed
        probes = (percent(f"{name}/probe_{part}_{pooling}") for part in ("semantic", "all") for pooling in ("flat", "mean"))
        return ROWS[name].title, value(f"{name}/psnr_db", ".2f"), lost, percent(f"{name}/usage"), *probes, shown.every(f"{name}/steps")  # fmt: skip

    head = ("row", "PSNR, dB", "against VQ, dB", "usage", "probe, semantic half: flat", "mean", "probe, all: flat", "mean", "steps")
    flows = [head, *(flow_row(name) for name in have("vq", "tokenflow_w0", "tokenflow_w025", "tokenflow_w1", "tokenflow_w4", "tokenflow_winf"))]
    gained = (
        "VQ and w = 4 were trained at the same time, on a core each (with seed 1 w = 4 began eight minutes later, since the teacher's maps were made\n"
        "first); the other rows were not, so that what they lose to VQ is also the machine's. Of seed 0 it is the third comparison: before, with both trained apart, w = 4 had lost 1.70 dB\n"
        "(slower search of rows) and, by the validation at the end of training alone, 1.2 dB. So a loss of at most 1.5 dB, which we had aimed at,\n"
        "is reached with one seed and missed with the other."
    )
    points = list(zip(shown.each("tokenflow_w4/probe_semantic_flat"), shown.each("vq/probe_all_flat")))
    if points:
        gains = " and ".join(f"{100 * (ours - theirs):.1f}" for ours, theirs in points)
        gained += f" At w = 4 a linear classifier reads {gains} points more from the semantic half than from all of VQ" + (
            ", seed by seed." if len(points) > 1 else "."
        )
    order = [name for name in ROWS if name.startswith("ablation")]
    ablation = ""
    if have(*order):
        rows = [("row", "PSNR, dB", "FD-efflite0 to the originals", "usage", "probe, semantic half: flat", "bits", "steps")]
        for name in have(*order):
            rows.append((ROWS[name].title, value(f"{name}/psnr_db", ".2f"), value(f"{name}/fd_efflite0_own", ".0f"), percent(f"{name}/usage"),
                         percent(f"{name}/probe_semantic_flat"), f"{bits_of(shown, name):,.0f}", shown.every(f"{name}/steps")))  # fmt: skip
        parts = {"one shared index in place of two": order[:2], "several scales": order[1:3], "the teacher's weights in place of a network trained afresh": order[2:]}  # fmt: skip
        changes = [("part", "decibels", "points of the probe")]
        changes += [
            (part, shown.change(*pair, "psnr_db", "+.2f"), shown.change(*pair, "probe_semantic_flat", "+.1f", 100.0)) for part, pair in parts.items()
        ]
        ablation = f"""### What the parts do

In the paper's order. The semantic network is convolutional and trained afresh, distilled from EfficientNet-lite0's map, until the last row.
Each had twelve processor minutes, and steps as they cost. The first seed of the first three rows was trained
earlier than the rest, when the machine made fewer steps in the same time, so that steps are to be looked at beside any difference.

{table(rows)}

What each part changes, seed by seed:

{table(changes)}

The scales are a third more bits and lose on both sides with both seeds. So the order is the paper's for meaning but for the scales, and the reverse
of it for decibels, where separate codes stay first.

"""
    errors_of = "flextok@1/errors/keep"
    error_rows = [("tokens kept", *map(str, KEEPS))]
    for key, title in (("fd_efflite0_own", "FD-efflite0 to the originals"), ("fd_efflite0_standard_error", "its standard error"),
                       ("change", "change from the column before"), ("change_standard_error", "its standard error")):  # fmt: skip
        error_rows.append((title, *(store.value(f"{errors_of}{k}/{key}", "+.1f" if key == "change" else ".1f") for k in KEEPS)))
    rise = store.figures["flextok@1/keep2/fd_efflite0_own"]["value"] - store.figures["flextok@1/keep1/fd_efflite0_own"]["value"]
    rise_error = store.figures[f"{errors_of}2/change_standard_error"]["value"]
    guided = [("guidance", *(f"class read from the first {keep}" for keep in FEW))]
    guided += [(f"{g:g}", *(percent(f"flextok/trial/guidance={g:g}/keep{keep}/recognised") for keep in FEW)) for g in GUIDANCES]
    few = [("tokenizer", "bits", "class read by the eval classifier", "PSNR, dB", "FD-efflite0 to the originals")]
    for k, equal in zip(FEW, ("vq_64bit", "vq_128bit")):
        compared = [
            ("flextok", f"flextok/keep{k}", FLEXTOK_BITS * k),
            ("flextok", f"flextok/keep{k}/guided", FLEXTOK_BITS * k),
            ("flextok_regression", f"flextok_regression/keep{k}", FLEXTOK_BITS * k),
            ("vq", f"vq/keep{k}", 12.0 * k),
            (equal, equal, 16.0 * k),
        ]
        for name, key, bits in compared:
            if shown.each(f"{key}/recognised"):
                title = ROWS[name].title + (f", first {k}" if "keep" in key else "") + (", guided" if "guided" in key else "")
                figures_ = percent(f"{key}/recognised"), value(f"{key}/psnr_db", ".2f"), value(f"{key}/fd_efflite0_own", ".0f")
                few.append((title, f"{bits:.0f}", *figures_))

    rates = [
        ("tokenizer", "bits", "entropy, bits", "PSNR, dB", "SSIM", "FD-efflite0 to the originals", "class read", "least usage", "steps")
    ]
    for names in RATES.values():
        for key in names:
            name, _, keep = key.partition("/keep")
            if have(name):
                entropy = "–" if keep and keep != "64" else value(f"{name}/entropy_bits_per_item", ",.0f")
                title = ROWS[name].title + (f", first {keep}" if keep and keep != "64" else "")
                rates.append((title, f"{bits_of(shown, key):,.0f}", entropy, value(f"{key}/psnr_db", ".2f"), value(f"{key}/ssim", ".3f"),
                              value(f"{key}/fd_efflite0_own", ".0f"), percent(f"{key}/recognised"), percent(f"{name}/usage"), shown.every(f"{name}/steps")))  # fmt: skip

    tried = [("tokenizer", "setting", "PSNR, dB", "usage", "trained with")]
    for name in (name for name in TRIALS if f"{name}/trial/{LEARNING_RATES[0]}/psnr_db" in store.figures):
        prefix = f"{name}/trial/"
        for key in dict.fromkeys(key.rpartition("/")[0] for key in store.figures if key.startswith(prefix)):
            words = key.removeprefix(prefix)
            chosen = "this" if words.removeprefix(LEARNING_RATES[0]).strip() == choice(store, name) else ""
            tried.append((ROWS[name].title, f"`{words}`", value(f"{key}/psnr_db", ".2f"), percent(f"{key}/usage"), chosen))
        if choice(store, name) != CHOSEN.get(name, ""):
            sys.exit(f"the trials of {name} choose {choice(store, name) or 'nothing'}: CHOSEN says {CHOSEN.get(name, 'nothing')}")

    chosen_rows = [("tokenizer", "setting chosen", "PSNR before, dB", "PSNR with it, dB", "change, seed by seed")]
    for name, words in CHOSEN.items():
        before, after = (value(f"{name}/{key}", ".2f") for key in ("before/psnr_db", "psnr_db"))
        chosen_rows.append((ROWS[name].title, f"`{words}`", before, after, shown.change(f"{name}/before", name, "psnr_db", "+.2f")))

    bits = ", ".join(f"{value(f'{n}/least_bit_entropy')} ({ROWS[n].title})" for n in ROWS if ROWS[n].bits and have(n)) or "not been measured"
    regression = ""
    if have("flextok_regression"):
        regression = "The same encoder with a decoder that predicts the latents instead of sampling them:\n\n" + prefixes(
            "flextok_regression"
        )
        regression += "\n\n![regression prefixes](flextok_regression_prefixes.png)\n\n"
    machines = sorted({figure["machine"].partition(",")[0] for figure in store.figures.values()})
    made_by = [("row", "parameters", "processor seconds", "steps", "machine", "command")]
    for n in have(*ROWS):
        made = store.figures[f"{n}/parameters"]
        on, how = made["machine"].partition(",")[0], made["command"].rpartition("after: ")[2]
        made_by.append((f"`{n}`", value(f"{n}/parameters", ",.0f"), value(f"{n}/training_seconds", ",.0f"), shown.every(f"{n}/steps"), on, f"`{how}`"))  # fmt: skip
    return f"""# Image tokenizers on CIFAR-10

This page is made by `python docs/results/image_tokenizers.py`; every figure, with its command, seed, seconds and machine, lies in
[image_tokenizers.json](image_tokenizers.json). Machines: {", ".join(machines)}. The reference tokenizers are on [a page of their own](cifar10.md).
Figures are of {value("vq/items", ",.0f")} held-out photographs; FD-efflite0 is a Fréchet distance in features of EfficientNet-lite0 and no FID. The eval classifier is the
stored one of CIFAR-10, which reads 88.4 % of the originals. "±" is half the difference of two seeds; without it there is one seed, and
differences of a few tenths of a decibel say little.

## FlexTok: pictures from the first k tokens

On the latents of a KL autoencoder ({value("kl/psnr_db", ".2f")} dB), 64 tokens of 64,000; {FLOW_STEPS} Euler steps from one noise per photograph, no guidance.

{prefixes("flextok")}

Decibels rise with every k with both seeds. The Fréchet distance falls but for one step, from one token to two with seed 1, where it rises by {rise:.1f}:
{rise / rise_error:.1f} standard errors of that step, so that it says nothing of a rise. These errors are a jackknife's over groups of photographs, of a
second training of seed 1, as many steps on another machine, with which the distance falls at every step:

{table(error_rows)}

With seed 1 the last 48 tokens add little (18.40 dB with 16, 19.25 dB with 64; with seed 0 17.59
and 21.63), and 25 % of the 64,000 codes are in use, not 46 %.

A row per photograph, a column per k; the original last:

![FlexTok prefixes](flextok_prefixes.png)

{regression}## What the class survives: few tokens

{table(few)}

FlexTok's tokens are 15.97 bits each. "First k" of VQ are the first cells of the raster, the others absent; `VQ, 16 × V` was trained at that rate.
FlexTok and its regression had 30 processor minutes each, both kinds of VQ 12; nothing was tuned for this table but the strength of plain guidance
({value("flextok/keep4/guided/guidance", ".1f")}), on seed 0 and {TRIED_ON} other photographs:

{table(guided)}

What both seeds say: FlexTok's first tokens keep more of the class than the first cells of a VQ code, and less than a VQ that was trained at
that rate: at 64 bits {read("flextok/keep4")} % ({read("flextok/keep4/guided")} % guided) against {read("vq_64bit")} %, at 128 bits {read("flextok/keep8")} %
({read("flextok/keep8/guided")} %, which with one seed is what VQ keeps) against {read("vq_128bit")} %; a share of 2,000 has a standard error of 0.9 %. FlexTok's
encoder with a regression decoder keeps more than the flow does, though at 64 bits hardly more than it does under guidance, and at 128 bits
most of all ({read("flextok_regression/keep8")} %). The flow's pictures are nearer to photographs in
distribution (FD-efflite0) than all of these, though not nearer to the photograph. Five is the strongest guidance that was tried and the best
on average, so that more might do a little more. None of these says much of FlexTok at the paper's size: it had half an hour on one core.

## TokenFlow: meaning and looks under one index

{table(flows)}

Probes read the class linearly from the quantized vectors: of all 64 positions side by side (flat) or of their mean. Equal N = 64 and V = 4,096.
{gained}

{ablation}## Rate and distortion

{table(rates)}

![Rate and distortion](image_tokenizers_rates.png)

All but FlexTok, which has its own recipe, networks and 30 minutes, have the width and batch of VQ and, but for what was chosen below, its
learning rate. Rows of 512 and of 1,024 bits were tuned equally: four runs of 200 steps each, on seed 0, compared by the decibels of {TRIED_ON} photographs
that are not among the measured; a row left its setting for the best of them where that gained {TIE} dB. Twice the learning rate did so for no row of 512 bits
and for all of 1,024 but residual VQ. Two hundred steps are a fifth or a quarter of a training, and what is best behind them need not
be best at the end. Rows that left their setting were trained again, for as many steps as they had made in their twelve minutes, on other machines
(below). Rows of 768 bits kept the settings that they had.

{table(tried)}

At full length the choice against the setting of before:

{table(chosen_rows)}

So 200 steps chose what is better at the end or makes little difference, but for FSQ of 512 bits, where they chose badly with both seeds: two channels
of 16 values learn faster than three, and end lower. Its row above has what the short runs chose, by the rule; with [8, 8, 4] it is {shown.mean("fsq_512/before/psnr_db", ".2f", 1)} dB. At 1,024 bits FSQ,
residual VQ and lookup-free codes gain with both seeds; of VAR and BAE the sign is another with each seed, so that nothing is known to be gained.
BAE has lost most of the codes in use with its choice: {shown.mean("bae_1024/usage")} % are left at 1,024 bits, {shown.mean("bae_1024/before/usage")} % before.

What both seeds say: at 512 bits VQ is best, residual VQ {-shown.gap("vq_512", "rq_512", "psnr_db"):.1f} dB behind it; FSQ is third, if it has the better of its two settings; VAR's scales
follow; lookup-free codes, BAE and IBQ are two decibels and more behind the first. At 1,024 bits two levels of residual VQ and FSQ are best and {abs(shown.gap("rq_1024", "fsq_1024", "psnr_db")):.2f} dB
apart, which is nothing beside their seeds (in FD-efflite0 FSQ is ahead with both); VAR's scales, of four bits less, are {-shown.gap("rq_1024", "var_1020", "psnr_db"):.1f} dB behind, and BAE and lookup-free codes three.

Of codes made of bits, the bit whose entropy over all cells is least has {bits}.

## How they were trained

{table(made_by)}

One thread each: `kl`, whose weights are the stored ones (docs/zoo/cifar10_kl), on AMD EPYC in bfloat16; all others in float32, about half as many steps
in the same time: on Intel Xeon, twelve or thirty minutes as told above, but rows that left their setting, with a number of steps in the
command, on two more AMD EPYC, which need more seconds for them.

{held_by_tests(HELD)}
"""


def main() -> None:
    what, *rest = sys.argv[1:] or ["nothing"]
    names, given = [w for w in rest if "=" not in w], dict(w.partition("=")[::2] for w in rest if "=" in w)
    store = Store("image_tokenizers")
    unknown = [name for name in names if re.sub(r"@\d+$", "", name) not in ROWS]
    taken = {"shards", "held_out", "n"} | ({"steps"} if what in ("train", "measure", "errors") else set())
    if what in ("train", "trial", "guide", "measure", "errors") and names and not unknown and {"shards", "held_out"} <= set(given) <= taken:
        untrained = [name for name in names if what in ("guide", "measure", "errors") and not (RUNS / name / "bundle").is_dir()]
        if untrained:
            sys.exit(f"nothing was measured: train these rows first: {' '.join(untrained)}")
        if what == "train":
            train(names, given)
        elif what == "trial":
            trial(store, names, given)
        elif what == "errors":
            errors(store, names, given)
        elif what == "guide":
            guide(store, names, given)
        else:
            measure(store, names, given)
            for name in names:
                if row_of(name)[0].probe:
                    probe(store, name, given)
    elif what != "page" or rest:
        sys.exit(
            f"image_tokenizers.py takes train, trial, measure, errors or guide, ROW ... shards=PATTERN held_out=PATH [n=5000] [steps=N], or page; rows: {', '.join(ROWS)}; "
            f"got {' '.join(sys.argv[1:])}"
        )
    draw_rates(Page(store))
    (HERE / "image_tokenizers.md").write_text(page(store))
    print(f"written to {Path('docs/results/image_tokenizers.md')}")


if __name__ == "__main__":
    main()
