"""The trained models of masked.md: their trainings, what their samplers make, and the sections that say so. Run by masked.py.

    train MODEL ... seed=0          into outputs/masked/MODEL (MODEL_seed1, ...), left alone where it is done
    measure ROW ... seed=0          a row is a model and a sampler: protocol=generation with N samples at guidance 1
    regions SET seed=0              nll of regions given the rest, and completed pictures
    subsets SET seed=0              calls of any-subset speculation by the size of the subset and by k, on held-out items
    seconds SET seed=0              seconds of BATCH samples on one thread, samplers in turn, median of three
    levels                          calls of ResGen and of flattened autoregression at 4, 8 and 16 levels
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from evidence import HERE, ROOT, Store, figures, table
from torch import Tensor

from gentok.build import build
from gentok.bundle import Bundle, load
from gentok.cli import compose
from gentok.data.datasets import whole
from gentok.data.image_files import save_grid
from gentok.evaluate import evaluate
from gentok.prompt import KEEPS, keep_mask
from gentok.rng import RowRNG
from gentok.sampling import pick_sampler, sample, sample_tokens
from gentok.types import ABSENT, UNKNOWN, Class, Condition, ConditionSpec, Tokens

RUNS = ROOT / "outputs" / "masked"
SETS = {"mnist5k": "mnist5k_vq", "cifar10": "cifar10_vq", "cifar10_rq": "cifar10_rq"}
"""What is compared on -> the tokenizer of docs/zoo."""
TITLES = {"mnist5k": "mnist5k, 64 tokens of 512", "cifar10": "CIFAR-10, 64 tokens of 4,096", "cifar10_rq": "CIFAR-10, 64 x 8 levels of 512"}
CIFAR = "data.shards='PATH/cifar10-train-{000..004}.tar' data.held_out=PATH/cifar10-test-000.tar"
BUDGET = "12min"
N, BATCH = 500, 64
SEEDS = (0, 1)
REGIONS = ("left-half", "center", "scattered")


@dataclass(frozen=True)
class Row:
    """A sampler of a set's model. model: the experiment's name within its set; words: of evaluate.py."""

    title: str
    set: str
    model: str
    words: str

    @property
    def name(self) -> str:
        return experiment(self.set, self.model).replace("/", "_")


def experiment(set_: str, model: str) -> str:
    return f"{set_}/{model}" if set_ != "cifar10_rq" else f"cifar10/{model}_rq"


def _single(set_: str) -> dict[str, Row]:
    rows = {
        "ar": Row("autoregressive", set_, "ar", "sampler=autoregressive"),
        "maskgit": Row("MaskGIT, 16 steps", set_, "masked", "sampler=maskgit sampler.steps=16"),
        "halton": Row("Halton, 16 steps", set_, "masked", "sampler=halton sampler.steps=16"),
        "first_hitting": Row("first-hitting", set_, "masked", "sampler=first_hitting"),
        "remasking": Row("ReMDM, cap 0.02, 64 steps", set_, "masked", "sampler=remasking sampler.steps=64"),
        "entropy_bounded": Row("entropy-bounded, 12 nats", set_, "masked", "sampler=entropy_bounded sampler.gamma=12"),
        "any_subset": Row("AS-ARM, ASSD k = 5", set_, "any_order", "sampler=any_subset sampler.k=5"),
        "self_speculative": Row("self-speculative, W = 8", set_, "self_speculative", "sampler=self_speculative sampler.window=8"),
        "self_first_hitting": Row("the same model, first-hitting", set_, "self_speculative", "sampler=first_hitting"),
    }
    return {f"{set_}/{name}": row for name, row in rows.items()}


ROWS: dict[str, Row] = {
    **_single("mnist5k"),
    **_single("cifar10"),
    "cifar10_rq/resgen": Row("ResGen, 16 steps", "cifar10_rq", "resgen", "sampler=resgen sampler.steps=16"),
    "cifar10_rq/maskgit": Row("token-wise parallel (MaskGIT), 16 steps", "cifar10_rq", "masked", "sampler=maskgit sampler.steps=16"),
    "cifar10_rq/ar_flat": Row("flattened autoregression", "cifar10_rq", "ar_flat", "sampler=autoregressive"),
    "cifar10_rq/ar_delay": Row("delayed autoregression", "cifar10_rq", "ar_delay", "sampler=autoregressive sampler.forced=true"),
}  # fmt: skip
MODELS = {row.name: row for row in ROWS.values()}


def of_set(set_: str) -> dict[str, Row]:
    return {name: row for name, row in ROWS.items() if row.set == set_}


def run_of(model: str, seed: int) -> Path:
    return RUNS / (model if seed == 0 else f"{model}_seed{seed}")


def command(model: str, seed: int) -> str:
    row = MODELS[model]
    words = f"python train.py experiment={experiment(row.set, row.model)} tokenizer.ckpt=docs/zoo/{SETS[row.set]} budget={BUDGET} clock=cpu seed={seed}"
    return words if row.set == "mnist5k" else f"{words} {CIFAR}"


def data_words(set_: str, given: Mapping[str, str]) -> list[str]:
    if set_ == "mnist5k":
        return []
    return [f"data.shards='{given['shards']}'", f"data.held_out={given['held_out']}"]


def train(names: list[str], seed: int, given: Mapping[str, str]) -> None:
    for name in names:
        run = run_of(name, seed)
        if (run / "bundle").is_dir():
            continue
        words = command(name, seed).removesuffix(f" {CIFAR}").split()[1:] + data_words(MODELS[name].set, given)
        quiet = ["print_config=false", "trainer.progress_bar=false", "trainer.validate_every=100000", "trainer.validate_batches=16"]
        words += [*quiet, f"paths.run={run}", f"paths.cache={RUNS / 'cache'}"]
        if subprocess.run([sys.executable, *words], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode:
            sys.exit(f"the training of {name} failed")


def measure(store: Store, names: list[str], seed: int, given: Mapping[str, str]) -> None:
    for name in names:
        row, began = ROWS[name], time.monotonic()
        own = [*row.words.split(), f"n={N}", "guidance=1", f"seed={seed}", "max_held_out=1000", "max_train=5000"]
        data = ["data=mnist5k"] if row.set == "mnist5k" else ["data=cifar10", *data_words(row.set, given)]
        with tempfile.TemporaryDirectory() as out:
            words = [f"ckpt={run_of(row.name, seed) / 'bundle'}", f"out={out}", *own, *data, "progress=false"]
            report = evaluate(compose("evaluate", words))
            if seed == 0:
                (Path(out) / "samples.png").replace(HERE / f"masked_{name.replace('/', '_')}.png")
        how = f"python -m gentok.evaluate ckpt=RUN/bundle {' '.join(own)}, after: {command(row.name, seed)}"
        protocol = {k: v for k, v in report["protocol"].items() if k not in ("ckpt", "data")}  # which hold paths
        bundle = load(run_of(row.name, seed) / "bundle")
        about = {
            "parameters": sum(p.numel() for p in bundle.generator.parameters()),
            "steps": bundle.meta["step"],
            "trunk_calls_per_sample": protocol["network_calls"].get("trunk", {}).get("calls", 0) / -(-N // 125) if "trunk" in protocol["network_calls"] else None,
        }  # fmt: skip
        if row.model == "self_speculative" and "window" in row.words:
            about["held_out_bits_per_token"] = _window_bits(bundle, row, given)
        found = {**{k: v for k, v in report["metrics"].items() if not isinstance(v, dict)}, **about}
        store.add(figures(f"{name}/seed{seed}", found, how, seed, time.monotonic() - began), {name: protocol})


@torch.no_grad()
def _window_bits(bundle: Bundle, row: Row, given: Mapping[str, str], items: int = 1000) -> float:
    """The bound on bits per token of held-out items under the sampler's own distribution, where that is not the generator's nll_bound."""
    window, nats, cells = int(row.words.rpartition("=")[2]), 0.0, 0
    media, labels = _held_out(row.set, given, items)
    for rows in torch.arange(items).split(125):
        tokens = bundle.tokenizer.encode(media[rows])
        bound = bundle.generator.window_bound(tokens, Condition({"class": Class(labels[rows])}), RowRNG.of(0, rows), window, samples=4)
        nats, cells = nats + float(bound.sum()), cells + int(tokens.present.sum())
    return nats / math.log(2) / cells


# ------------------------------------------------------------------------------------------------------------------- regions


def _held_out(set_: str, given: Mapping[str, str], n: int) -> tuple[Tensor, Tensor]:
    data = ["data=mnist5k"] if set_ == "mnist5k" else ["data=cifar10", *data_words(set_, given)]
    return whole(build(compose("evaluate", ["ckpt=none", *data])["data"]).held_out, n)


def hidden(region: str, tokens: Tokens, seed: int) -> Tensor:
    """bool [B, K, N]: the cells of a region; "scattered": a random half of each row's."""
    if region in KEEPS:
        return keep_mask(region, tokens.spec.grid).expand(tokens.codes.shape)
    order = RowRNG.of(seed, torch.arange(tokens.batch)).uniform(*tokens.codes.shape[1:])
    return order <= order.flatten(1).median(1).values[:, None, None]


def regions(store: Store, set_: str, seed: int, given: Mapping[str, str], columns: int = 10) -> None:
    """nll of held-out items' regions given the rest; and, of seed 0, a picture: originals, what is given, completions of each model."""
    able = {model: row for model, row in {r.model: r for r in of_set(set_).values()}.items() if model in ("any_order", "masked")}
    for model, row in able.items():
        for region in REGIONS:
            began = time.monotonic()
            own = ["protocol=nll", f"region={region}", "max_held_out=1000", f"seed={seed}"]
            data = ["data=mnist5k"] if set_ == "mnist5k" else ["data=cifar10", *data_words(set_, given)]
            with tempfile.TemporaryDirectory() as out:
                report = evaluate(
                    compose("evaluate", [f"ckpt={run_of(row.name, seed) / 'bundle'}", f"out={out}", *own, *data, "progress=false"])
                )
            how = f"python -m gentok.evaluate ckpt=RUN/bundle {' '.join(own)}, after: {command(row.name, seed)}"
            store.add(figures(f"{set_}/regions/{model}/{region}/seed{seed}", report["metrics"], how, seed, time.monotonic() - began))
    if seed:
        return
    media, labels = _held_out(set_, given, columns)
    for region in REGIONS:
        shown = [media]
        for row in able.values():
            bundle = load(run_of(row.name, 0) / "bundle")
            tokens = bundle.tokenizer.encode(media)
            masked_cells = hidden(region, tokens, 0)
            known = Tokens(tokens.codes.masked_fill(masked_cells, UNKNOWN), bundle.spec)
            sampler = pick_sampler({}, type(bundle.generator))
            made = sample_tokens(bundle.generator, Condition({"class": Class(labels)}), sampler, rng=RowRNG.of(0, torch.arange(columns)), known=known)  # fmt: skip
            if len(shown) == 1:
                shown.append(bundle.tokenizer.decode(Tokens(tokens.codes.masked_fill(masked_cells, ABSENT), bundle.spec)))
            shown.append(bundle.tokenizer.decode(made.tokens))
        save_grid(torch.cat(shown), HERE / f"masked_{set_}_{region}.png", columns, scale=2)


def subsets(store: Store, set_: str, seed: int, given: Mapping[str, str], items: int = 64) -> None:
    from gentok.samplers.any_subset import AnySubset

    row = of_set(set_)[f"{set_}/any_subset"]
    bundle = load(run_of(row.name, seed) / "bundle")
    media, labels = _held_out(set_, given, items)
    tokens = bundle.tokenizer.encode(media)
    rows = torch.arange(items)
    order = RowRNG.of(seed, rows).fork("subsets").uniform(*tokens.codes.shape[1:]).flatten(1).argsort(1).argsort(1).view_as(tokens.codes)
    for size in (8, 16, 32, 48, 64):
        for k in (2, 5, 10):
            began = time.monotonic()
            known = Tokens(tokens.codes.masked_fill(order < size, UNKNOWN), bundle.spec)
            made = sample_tokens(bundle.generator, Condition({"class": Class(labels)}), AnySubset(k=k), rng=RowRNG.of(seed, rows), known=known)
            calls, drafts = made.calls.double(), max(1, made.stats["drafts"])
            values = {"calls_per_token": (calls / size).mean().item(), "most_calls_per_token": (calls / size).max().item(),
                      "accepted": made.stats["accepted"] / drafts, "items": items}  # fmt: skip
            how = f"python docs/results/masked.py subsets {set_} seed={seed}, after: {command(row.name, seed)}"
            store.add(figures(f"{set_}/subsets/size{size}/k{k}/seed{seed}", values, how, seed, time.monotonic() - began))


def seconds(store: Store, set_: str, seed: int, turns: int = 3) -> None:
    bundles: dict[str, Bundle] = {}
    taken: dict[str, list[float]] = {}
    for turn in range(turns):
        for name, row in of_set(set_).items():
            if not (run_of(row.name, seed) / "bundle").is_dir():
                continue
            bundle = bundles.setdefault(row.name, load(run_of(row.name, seed) / "bundle"))
            sampler = compose("evaluate", ["ckpt=none", *row.words.split()])["sampler"]
            labels = torch.arange(BATCH) % len(bundle.condition_spec.parts[0][1].names)
            made = sample(bundle, n=BATCH, condition=labels.tolist(), sampler=sampler, guidance=1.0, seed=turn, batch_size=BATCH)
            taken.setdefault(name, []).append(made.seconds)
    for name, each in taken.items():
        how = f"python docs/results/masked.py seconds {set_} seed={seed} (OMP_NUM_THREADS={torch.get_num_threads()})"
        store.add(figures(name, {"seconds_per_batch": statistics.median(each), "batch": BATCH}, how, seed, sum(each)))


def levels(store: Store) -> None:
    """Of models as they are built: how often the network is called says nothing of its weights."""
    from gentok.codebooks.residual import ResidualCodebook
    from gentok.codebooks.vq import VQ
    from gentok.generators.autoregressive import Autoregressive
    from gentok.generators.resgen import ResGen
    from gentok.samplers.autoregressive import AutoregressiveSampler
    from gentok.samplers.resgen import ResGenSampler
    from gentok.types import Raster, TokenSpec

    for k in (4, 8, 16):
        began = time.monotonic()
        torch.manual_seed(0)
        codebook = ResidualCodebook(VQ(vocab_size=64, dim=8), levels=k)
        spec = TokenSpec(codebook.vocab_sizes, Raster(8, 8), nested_levels=True)
        common = {"width": 32, "depth": 1, "heads": 2}
        resgen = ResGen(spec, ConditionSpec(), codebook, components=32, **common)
        flat = Autoregressive(spec, ConditionSpec(), layout="position_major", **common)
        rng = RowRNG.of(0, torch.arange(2))
        values = {
            "resgen": sample_tokens(resgen, Condition(), ResGenSampler(steps=16), rng=rng).calls.double().mean().item(),
            "flattened": sample_tokens(flat, Condition(), AutoregressiveSampler(), rng=rng).calls.double().mean().item(),
        }
        store.add(figures(f"levels/{k}", values, "python docs/results/masked.py levels", 0, time.monotonic() - began))


# ---------------------------------------------------------------------------------------------------------------------- page


def _mean(store: Store, name: str, metric: str, form: str, percent: bool = False) -> str:
    """The mean over seeds, with the seeds' values where they differ: 93.1 (92.8, 93.4)."""
    each = [store.figures.get(f"{name}/seed{seed}/{metric}", {}).get("value") for seed in SEEDS]
    each = [value * (100 if percent else 1) for value in each if value is not None]
    if not each:
        return "–"
    mean = format(sum(each) / len(each), form)
    shown = [format(value, form) for value in each]
    return mean if len(set(shown)) == 1 else f"{mean} ({', '.join(shown)})"


def section_models(store: Store, set_: str) -> str:
    have = {name: row for name, row in of_set(set_).items() if f"{name}/seed0/accuracy" in store.figures}
    if not have:
        return ""
    timed = any(f"{name}/seconds_per_batch" in store.figures for name in have)
    seeds = [seed for seed in SEEDS if any(f"{name}/seed{seed}/accuracy" in store.figures for name in have)]
    head = ("sampler", "class read, %", "KID", "recall", "precision", "nll, bits/token", "calls", "steps trained")
    rows = [(*head, f"seconds of {BATCH}") if timed else head]
    for name, row in have.items():
        rows.append(
            (row.title, _mean(store, name, "accuracy", ".1f", True), _mean(store, name, "kid", ".3f"), _mean(store, name, "recall", ".2f"),
             _mean(store, name, "precision", ".2f"), _mean(store, name, "held_out_bits_per_token", ".2f"), _mean(store, name, "calls_per_sample", ".1f"),
             _mean(store, name, "steps", ",.0f"), *([store.value(f"{name}/seconds_per_batch", ".1f")] if timed else []))
        )  # fmt: skip
    first = next(iter(have))
    real = f"real training items: KID {store.value(f'{first}/seed0/training_kid', '.3f')}, recall {store.value(f'{first}/seed0/training_recall', '.2f')}, "
    real += f"precision {store.value(f'{first}/seed0/training_precision', '.2f')}"
    pictures = "\n\n".join(f"{row.title}:\n\n![{row.title}](masked_{name.replace('/', '_')}.png)" for name, row in have.items())
    return f"""## {TITLES[set_]}

{N} samples per model and seed, as many of every class, guidance 1; {"one seed: a share of " + str(N) + " samples has a standard error of up to 2.2 points, and trainings differ" if len(seeds) == 1 else "the mean of seeds, and each"}.
Every model had {BUDGET} of processor time, whatever a step costs. Against 1,000 held-out items; {real}.
The eval classifier reads {store.percent(f"{first}/seed0/held_out_accuracy")} of held-out items. nll is exact for autoregressive and AS-ARM and a bound for the others.{" Seconds are of one thread; – where not taken since the sampler became faster." if timed else ""}

{table(rows)}

{pictures}
"""


def section_regions(store: Store, set_: str) -> str:
    if f"{set_}/regions/any_order/left-half/seed0/bits_per_token" not in store.figures:
        return ""
    rows = [("bits per token of a region given the rest", *REGIONS)]
    for model, title in (("any_order", "AS-ARM, exact"), ("masked", "masked, upper bound")):
        rows.append((title, *(_mean(store, f"{set_}/regions/{model}/{region}", "bits_per_token", ".2f") for region in REGIONS)))
    pictures = "\n\n".join(f"{region}:\n\n![{region} of {set_}](masked_{set_}_{region}.png)" for region in REGIONS)
    return f"""## Completions: {TITLES[set_]}

{table(rows)}

The region is what is asked for. Held-out items; the tokens that are given; completed by the masked model with first-hitting; and by AS-ARM:

{pictures}
"""


def section_subsets(store: Store) -> str:
    out = []
    for set_ in ("mnist5k", "cifar10"):
        if f"{set_}/subsets/size8/k5/seed0/calls_per_token" not in store.figures:
            continue
        sizes = (8, 16, 32, 48, 64)
        rows = [(f"{TITLES[set_]}: calls per token", *(f"{size} hidden" for size in sizes))]
        for k in (2, 5, 10):
            rows.append((f"k = {k}", *(_mean(store, f"{set_}/subsets/size{size}/k{k}", "calls_per_token", ".2f") for size in sizes)))
        rows.append(("drafts accepted, k = 5, %", *(_mean(store, f"{set_}/subsets/size{size}/k5", "accepted", ".0f", True) for size in sizes)))
        most = max(store.figures[f"{set_}/subsets/size{size}/k{k}/seed0/most_calls_per_token"]["value"] for size in sizes for k in (2, 5, 10))
        out.append(f"{table(rows)}\n\nThe worst single row took {most:.2f} calls per token.")
    if not out:
        return ""
    return (
        "## What any-subset speculation saves\n\nRandom subsets of held-out items, the rest given; one cell per call takes 1 call per token.\n\n"
        + "\n\n".join(out)
        + "\n"
    )


def section_levels(store: Store) -> str:
    if "levels/4/resgen" not in store.figures:
        return ""
    rows = [("levels", "4", "8", "16")]
    for name, title in (("resgen", "ResGen, 16 steps"), ("flattened", "flattened autoregression")):
        rows.append((title, *(store.value(f"levels/{k}/{name}", ".0f") for k in (4, 8, 16))))
    return f"## Calls by the number of levels\n\n64 positions.\n\n{table(rows)}\n"


def section_trainings(store: Store) -> str:
    names = [name for name in MODELS if any(f"{r}/seed0/steps" in store.figures for r, row in ROWS.items() if row.name == name)]
    if not names:
        return ""
    first = {name: next(r for r, row in ROWS.items() if row.name == name and f"{r}/seed0/steps" in store.figures) for name in names}
    rows = [("model", "parameters", "steps", "command"), *((f"`{n}`", store.value(f"{first[n]}/seed0/parameters", ",.0f"), store.value(f"{first[n]}/seed0/steps", ",.0f"), f"`{command(n, 0)}`") for n in names)]  # fmt: skip
    return f"""## How the models were trained

{table(rows)}

Processor time of one thread each, in bfloat16 where the processor computes in it, else in float32, which took twice the time per step: every
figure names its machine. Other seeds by the same commands.
"""


SECTIONS: tuple[Callable[[Store], str], ...] = (
    lambda store: section_models(store, "mnist5k"), lambda store: section_models(store, "cifar10"),
    lambda store: section_regions(store, "mnist5k"), lambda store: section_regions(store, "cifar10"),
    section_subsets, lambda store: section_models(store, "cifar10_rq"), section_levels, section_trainings,
)  # fmt: skip


def run(what: str, names: list[str], given: dict[str, Any], store: Store) -> bool:
    """Does `what` and says whether it is one of this file's words. Exits with a line where its arguments are wrong."""
    seed = int(given.get("seed", 0))
    takes = {"train": MODELS, "measure": ROWS, "regions": SETS, "subsets": SETS, "seconds": SETS, "levels": {}}
    if what not in takes:
        return False
    unknown = [name for name in names if name not in takes[what]]
    needs = any(name.startswith("cifar10") for name in names)
    if unknown or (not names and what != "levels") or (needs and not {"shards", "held_out"} <= set(given)):
        choices = f" one or more of {', '.join(takes[what])}" if takes[what] else " nothing"
        sys.exit(f"masked.py {what} takes{choices}; of CIFAR-10 also shards=PATTERN held_out=PATH; got {' '.join(sys.argv[2:])}")
    if what == "train":
        train(names, seed, given)
    elif what == "measure":
        measure(store, names, seed, given)
    elif what == "levels":
        levels(store)
    else:
        for name in names:
            {"regions": lambda s: regions(store, s, seed, given), "subsets": lambda s: subsets(store, s, seed, given), "seconds": lambda s: seconds(store, s, seed)}[what](name)  # fmt: skip
    return True
