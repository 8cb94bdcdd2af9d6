"""How fast gentok is, on this machine's CPU: every figure is a ratio against a named peer that does the same work.

    python -m gentok.benchmark [only=codebook,train,tokenizers,shards,sample,first_hitting] [rounds=5] [threads=N] [out=outputs/benchmark]

How it is measured stands in gentok/metrics/speed.py. Above 1, gentok is faster. Prints a table and writes OUT/benchmark.json: figure ->
value, min, max, unit, peer, seconds, peer_seconds, rounds, dtype, setting, threads, machine; where tokens are drawn also tokens_per_second
and peer_tokens_per_second, where tokenizers are trained images_per_second; where a peer is not installed value = null and a note.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gentok.metrics.speed import Contender, Figures, figure, interleaved, machine, missing, table, timed

__all__ = [
    "benchmark", "codebook", "train", "small_tokenizers", "tokenizers", "shards", "sample", "without_cache", "llama", "first_hitting",
    "main",
]  # fmt: skip

ZOO = Path(__file__).resolve().parent.parent / "docs" / "zoo" / "mnist5k_ar"


def codebook(rounds: int, vectors: int = 16_384, vocab: int = 16_384, residual_vocab: int = 1024) -> Figures:
    """Codebooks against vector-quantize-pytorch with the same arithmetic (Euclidean distance, moving averages, straight-through), as an
    encoder's evaluation and as its training step (forward, backward, update of the table); vq also against the bare product of all vectors
    with all rows (torch.mm), the floor of a search that writes out all distances."""
    import torch
    import vector_quantize_pytorch as library

    from gentok.codebooks.fsq import FSQ
    from gentok.codebooks.residual import Residual
    from gentok.codebooks.vq import VQ

    ema = {"commitment_weight": 0.25, "decay": 0.99, "rotation_trick": False}
    values = (8, 8, 8, 5, 5, 5)

    def learnt(rows: int, dim: int) -> VQ:
        return VQ(rows, dim, normalize=False, update="ema", commitment=0.25, decay=0.99)

    pairs = {
        "vq": (learnt(vocab, 8), library.VectorQuantize(dim=8, codebook_size=vocab, **ema), 8, f"V = {vocab:,}, D = 8"),
        "fsq": (FSQ(values), library.FSQ(levels=list(values)), 6, f"values {'x'.join(map(str, values))}"),
        "residual": (
            Residual(learnt(residual_vocab, 128), levels=8),
            library.ResidualVQ(dim=128, num_quantizers=8, codebook_size=residual_vocab, **ema),
            128,
            f"8 levels of V = {residual_vocab:,}, D = 128",
        ),
    }

    def step(book: torch.nn.Module, z: torch.Tensor, training: bool) -> None:
        book.train(training)
        with torch.set_grad_enabled(training):
            out = book(z.detach().requires_grad_(training))
            if training:
                whole, losses = (out.vectors, out.losses.values()) if hasattr(out, "losses") else (out[0], out[2:])
                (whole.square().mean() + sum(part.sum() for part in losses)).backward()

    figures = {}
    for name, (own, theirs, dim, setting) in pairs.items():
        z, repeat = torch.randn(16, vectors // 16, dim), 20 if name == "fsq" else 1
        for mode in ("eval", "train"):
            contenders = {
                "gentok": timed(step, own, z.transpose(1, 2).contiguous(), mode == "train", repeat=repeat),
                f"vector-quantize-pytorch {type(theirs).__name__}": timed(step, theirs, z, mode == "train", repeat=repeat),
            }
            if name == "vq":
                contenders["bare matrix product"] = timed(torch.mm, z.view(-1, dim), torch.randn(dim, vocab))
            seconds = interleaved(contenders, rounds)
            for peer in list(seconds)[1:]:
                key = f"codebook/{name}/{mode}/{'product' if peer.startswith('bare') else 'library'}"
                about = f"{setting}, {vectors:,} vectors, {'forward' if mode == 'eval' else 'training step'}"
                figures[key] = figure(seconds["gentok"], seconds[peer], peer=peer, dtype="float32", setting=about)
    return figures


def _model(ckpt: Path | None, overrides: tuple[str, ...] = ()) -> tuple[Any, dict[str, Any], Any, str]:
    """(a bundle with the tokens' spec, the configuration of its training, a generator, what it is): the generator of `ckpt` where there is
    such a bundle, else an untrained one of conf/generator/autoregressive.yaml on 8 x 8 tokens of 512 with ten classes."""
    from torch import nn

    from gentok.bundle import Bundle, build_generator, load
    from gentok.cli import compose
    from gentok.tokens import ClassSpec, ConditionSpec, Raster, TokenSpec

    config = compose("config", ["experiment=mnist5k/ar", "tokenizer.ckpt=none", "paths.run=none", "trainer.accelerator=cpu", *overrides])
    if ckpt is not None and (ckpt / "bundle.json").is_file():
        bundle = load(ckpt)
        return bundle, config, bundle.generator.eval(), ckpt.name
    tokenizer = nn.Module()
    tokenizer.spec = TokenSpec((512,), Raster(8, 8))
    classes = ConditionSpec((("class", ClassSpec(tuple("0123456789"))),))
    generator = build_generator(config["generator"], tokenizer, classes).eval()
    return Bundle("tokenizer", tokenizer, None, classes, {}), config, generator, "an untrained model"


def _sizes(model: Any) -> str:
    network = model.transformer
    return f"width {network.width}, depth {network.depth}, heads {network.heads}, {model.spec.positions} tokens of {model.spec.vocab}"


def _hidden(network: Any) -> int:
    return network.blocks[0].mlp.out.in_features


def train(rounds: int, steps: int = 24, overrides: tuple[str, ...] = ()) -> Figures:
    """What Lightning, its callbacks and its logs add to a training step of conf/experiment/mnist5k/ar.yaml on tokens in memory."""
    import torch

    from gentok.tokens import Batch, Tokens
    from gentok.training.overhead import by_loop, by_trainer
    from gentok.training.run import precision

    bundle, config, generator, _ = _model(None, overrides)
    size = config["batch_size"]
    codes = torch.randint(bundle.spec.vocab, (size, 1, bundle.spec.positions))
    condition = bundle.condition_spec.parse(list(range(10)), size)
    batch = Batch(None, torch.arange(size), condition, tokens=Tokens(codes, bundle.spec))
    setting = f"{steps} steps of {size} items, {_sizes(generator)}; both with clipping and averaged weights"

    def contender(run: Callable[..., tuple[float, Any]]) -> Contender:
        return lambda: run(config, bundle, bundle.condition_spec, batch, steps)[0]

    seconds = interleaved({"trainer": contender(by_trainer), "loop": contender(by_loop)}, rounds)
    about = {"peer": "bare PyTorch loop", "dtype": precision(config["trainer"]["precision"], "cpu"), "setting": setting}
    return {"train/step/loop": figure(seconds["trainer"], seconds["loop"], overhead=True, **about)}


def small_tokenizers() -> dict[str, list[str]]:
    """Name -> overrides of conf/config.yaml: conf/tokenizer/vqgan.yaml with each kind of codebook, and the tokenizers of the experiments on
    photographs of 32 x 32, each with its own codebook and losses."""
    from gentok.cli import compose, conf_dir

    found = {f"vqgan_{book}": ["tokenizer=vqgan", f"codebook={book}"] for book in ("vq", "vq_ema", "fsq", "lookup_free", "residual")}
    for path in sorted((conf_dir() / "experiment" / "cifar10").glob("*.yaml")):
        words = [f"experiment=cifar10/{path.stem}"]
        config = compose("config", [*words, "data=noise"])
        if config["task"]["name"] == "tokenizer" and "_target_" in config["tokenizer"]:
            found[f"cifar10_{path.stem}"] = words
    return found


def tokenizers(rounds: int, steps: int = 6, size: int = 64, overrides: tuple[str, ...] = (), names: tuple[str, ...] = ()) -> Figures:
    """Training steps of the small tokenizers on pictures of noise, 32 x 32 x 3, in memory: images per second through the trainer, and the
    share of its time that is neither the forward nor the backward pass of the same network (without discriminator) run bare."""
    import torch

    from gentok.cli import compose
    from gentok.data.noise_pictures import NoisePictures
    from gentok.training.overhead import tokenizer_by_network, tokenizer_by_trainer
    from gentok.training.run import precision

    batch = NoisePictures(size, 1).train.__getitems__(range(size))
    figures = {}
    for name, words in small_tokenizers().items():
        if names and name not in names:
            continue
        extra = ["data=noise", "discriminator=none", "paths.run=none", "trainer.accelerator=cpu", *overrides]
        config = compose("config", [*words, *extra])
        config["tokenizer"] = {**config["tokenizer"], "media_shape": list(batch.media.shape[1:])}

        def contender(run: Callable[..., float], config: dict[str, Any] = config) -> Contender:
            return lambda: run(config, copy.copy(batch), steps)

        seconds = interleaved({"trainer": contender(tokenizer_by_trainer), "network": contender(tokenizer_by_network)}, rounds)
        what, book = (part["_target_"].rsplit(".", 1)[-1] for part in (config["tokenizer"], config["codebook"]))
        dtype = precision(config["trainer"]["precision"], "cpu")
        setting = f"{what} with {book}, {steps} steps of {size} pictures of 32 x 32 x 3"
        about = {"peer": "forward and backward alone", "dtype": dtype, "setting": setting}
        own = figure(seconds["trainer"], seconds["network"], share=True, **about)
        own["images_per_second"] = steps * size / own["seconds"]
        figures[f"tokenizers/{name}/outside"] = own
    torch.manual_seed(0)
    return figures


def shards(rounds: int, steps: int = 60, items: int = 4096, overrides: tuple[str, ...] = ()) -> Figures:
    """Share of its time that a run of conf/experiment/mnist5k/ar.yaml, from token shards on disk by the real loader, waits for data."""
    import tempfile

    from gentok.training.overhead import from_shards

    words = ["experiment=mnist5k/ar", "trainer.accelerator=cpu", *overrides]
    with tempfile.TemporaryDirectory() as folder:
        took = [from_shards(words, Path(folder), steps, items) for _ in range(rounds)]
    setting = f"{steps} steps, 64 tokens of 512 per item, {items:,} items in one shard, no loader workers"
    about = {"peer": "without the waits for data", "dtype": "as the run", "setting": setting}
    return {"shards/wait": figure([whole for whole, _ in took], [whole - wait for whole, wait in took], share=True, **about)}


def without_cache(model: Any) -> Any:
    """`model` (Causal) as a generator of the same law that keeps nothing of the steps before but their ids: each call computes all of them
    anew, in one pass. What the condition's prefix gives is kept."""
    import torch

    from gentok.generators.base import Causal

    class WithoutCache(Causal):
        def __init__(self) -> None:
            for name in ("spec", "condition_spec", "layout", "exact_slots", "begin"):
                setattr(self, name, getattr(model, name))

        def start(self, condition: Any, batch: int, capacity: int) -> dict[str, Any]:
            return {"inner": model.start(condition, batch, capacity), "ids": self.begin.new_empty(batch, 0, len(self.begin))}

        def logits(self, ids: Any, cache: dict[str, Any], at: Any, parents: Any = None) -> Any:
            cache["ids"] = torch.cat((cache["ids"], ids), 1)
            return model.logits(cache["ids"], cache["inner"], torch.zeros_like(at))[:, -ids.shape[1] :]

        def commit(self, cache: dict[str, Any], at: Any, path: Any = None) -> None:
            """Nothing is kept."""

    return WithoutCache()


def llama(model: Any, batch: int) -> Callable[[], Any] | None:
    """Draws `batch` items with transformers' Llama of the sizes of `model`, untrained; None where transformers is not installed."""
    try:
        import transformers
    except ImportError:
        return None
    import torch

    network, vocab = model.transformer, model.spec.vocab
    steps, prompt = model.layout.steps, torch.zeros(batch, 1 + model.conditioner.places, dtype=torch.int64)
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=network.width, intermediate_size=_hidden(network),
        num_hidden_layers=network.depth, num_attention_heads=network.heads, max_position_embeddings=steps + prompt.shape[1],
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    peer = transformers.LlamaForCausalLM(config).eval()
    options = {"do_sample": True, "top_k": 0, "min_new_tokens": steps, "max_new_tokens": steps, "pad_token_id": 0}
    return functools.partial(peer.generate, prompt, attention_mask=torch.ones_like(prompt), **options)


def sample(rounds: int, batches: tuple[int, ...] = (1, 16), ckpt: Path = ZOO, overrides: tuple[str, ...] = ()) -> Figures:
    """Drawing items token by token with the static cache, against the same model without a cache and against transformers' Llama of the
    same width, depth, heads and vocabulary; and MaskGIT's 12 steps of a masked model of these sizes against token by token."""
    import torch

    from gentok.generators.masked import MaskedTransformer
    from gentok.noise import Noise
    from gentok.samplers.autoregressive import AutoregressiveSampler
    from gentok.samplers.maskgit import MaskGIT

    bundle, _, model, what = _model(ckpt, overrides)
    network = model.transformer
    masked = MaskedTransformer(model.spec, model.condition_spec, network.width, network.depth, network.heads, _hidden(network)).eval()
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    figures: Figures = {}
    for batch in batches:
        condition = bundle.condition_spec.parse(None, batch)

        def draw(sampler: Any, generator: Any, batch: int = batch, condition: Any = condition) -> None:
            sampler(generator, condition, noise=Noise.of(0, torch.arange(batch)))

        contenders = {
            "static cache": timed(draw, AutoregressiveSampler(), model),
            "no cache": timed(draw, AutoregressiveSampler(), without_cache(model)),
            "maskgit": timed(draw, MaskGIT(steps=12), masked),
        }
        peer = "transformers LlamaForCausalLM.generate"
        generate = llama(model, batch)
        if generate is not None:
            contenders[peer] = timed(generate)
        seconds = interleaved(contenders, rounds)
        about = {"dtype": dtype, "setting": f"batch {batch}, {what}, {_sizes(model)}", "tokens": batch * model.spec.positions}
        ours, name = seconds["static cache"], f"sample/autoregressive/batch{batch}"
        figures[f"{name}/no_cache"] = figure(ours, seconds["no cache"], peer="no cache", **about)
        fast = missing(peer, "transformers") if generate is None else figure(ours, seconds[peer], peer=peer, **about)
        figures[f"{name}/transformers"] = fast
        beside = figure(seconds["maskgit"], ours, peer="token by token, static cache", **about)
        figures[f"sample/maskgit12/batch{batch}/autoregressive"] = beside
    return figures


def first_hitting(
    rounds: int, sizes: tuple[tuple[int, int], ...] = ((8, 1), (8, 16), (16, 1), (16, 16)), vocab: int = 16_384, width: int = 64
) -> Figures:
    """First-hitting, one network call per token, against ancestral sampling with 16 times as many steps as tokens, of the same untrained
    masked model; all of them draw ids of revealed cells alone. Peers: every row in every step; the whole batch whenever one of its rows
    reveals something (what a cache of the last prediction does); each row when it does (gentok's ancestral).

    sizes: (side of the raster, batch). Of large ones contenders run the same first part of their steps, which the setting names.
    """
    import torch

    from gentok.generators.masked import MaskedTransformer
    from gentok.noise import Noise
    from gentok.samplers.ancestral import Ancestral
    from gentok.samplers.first_hitting import FirstHitting
    from gentok.tokens import Condition, Raster, TokenSpec

    class Enough(Exception):
        pass

    class WholeBatch(MaskedTransformer):
        """A model that computes the other rows of the batch, too."""

        def logits(self, tokens: Any, condition: Any, t: Any = None) -> Any:
            rows = [*range(tokens.batch), *[0] * (self.batch - tokens.batch)]
            return super().logits(tokens.rows(rows), condition, t if t is None else t[rows])[: tokens.batch]

    figures: Figures = {}
    for side, batch in sizes:
        n = side * side
        # The uncached peer's time is that of its steps, so few of them tell; which steps the others compute is chance, so they run longer.
        parts = {"uncached": max(1, min(n // 2, n * batch // 32)), "cached": 1 if batch == 1 else max(1, n // 8)}
        plain, whole = (
            cls(TokenSpec((vocab,), Raster(side, side)), width=width, depth=2, heads=2).eval() for cls in (MaskedTransformer, WholeBatch)
        )
        whole.batch = batch

        def draw(sampler: Any, model: Any, part: int, batch: int = batch) -> None:
            def stop(tokens: Any, number: int, of: int) -> None:
                if number * part >= of:
                    raise Enough

            with contextlib.suppress(Enough):
                sampler(model, Condition(), noise=Noise.of(0, torch.arange(batch)), on_step=stop)

        steps = 16 * n
        peers = {
            "uncached": {"uncached": ("every row in every step", Ancestral(steps=steps, cache=False), plain)},
            "cached": {
                "cached_batch": ("the whole batch where a row changes", Ancestral(steps=steps), whole),
                "cached_rows": ("each row where it changes", Ancestral(steps=steps), plain),
            },
        }
        for kind, those in peers.items():
            part = parts[kind]
            contenders = {"first hitting": timed(draw, FirstHitting(), plain, part)}
            contenders |= {name: timed(draw, sampler, model, part) for name, sampler, model in those.values()}
            seconds = interleaved(contenders, rounds)
            sizes_are = f"batch {batch}, {n} tokens of {vocab:,}, T = {steps:,}, width {width}, depth 2, first 1/{part}"
            for key, (name, *_) in those.items():
                figures[f"first_hitting/n{n}/batch{batch}/{key}"] = figure(
                    seconds["first hitting"],
                    seconds[name],
                    peer=f"ancestral, {name}",
                    tokens=batch * n // part,
                    dtype="float32",
                    setting=sizes_are,
                )
    return figures


ITEMS: dict[str, Callable[[int], Figures]] = {
    "codebook": codebook, "train": train, "tokenizers": tokenizers, "shards": shards, "sample": sample,
    "first_hitting": first_hitting,
}  # fmt: skip


def _count(name: str, value: Any) -> int:
    if not str(value).isdigit() or int(value) < 1:
        raise ValueError(f"{name}={value}: a number of at least 1")
    return int(value)


def benchmark(
    only: str = ",".join(ITEMS), rounds: str | int = 5, threads: str | int | None = None, out: str | Path = "outputs/benchmark"
) -> Figures:
    """Runs the items named in `only`, prints the table, writes out/benchmark.json after every item, and returns the figures. Raises
    ValueError on an unknown item or number."""
    items = only.split(",")
    for item in items:
        if item not in ITEMS:
            raise ValueError(f"only={only}: there is no item {item!r}; choose from {', '.join(ITEMS)}")
    rounds, threads = _count("rounds", rounds), None if threads is None else _count("threads", threads)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)

    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    common = {"threads": torch.get_num_threads(), "machine": machine()}
    figures: Figures = {}
    for item in items:
        print(f"{item}: {rounds} rounds and one to warm up ...", file=sys.stderr, flush=True)
        torch.manual_seed(0)
        figures |= {name: {**values, **common} for name, values in ITEMS[item](rounds).items()}
        (out / "benchmark.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(f"{table(figures)}\n{out / 'benchmark.json'}: {common['machine']['cpu']}, {common['threads']} threads")
    return figures


def main() -> None:
    arguments = dict(word.split("=", 1) if "=" in word else (word, None) for word in sys.argv[1:])
    unknown = set(arguments) - {"only", "rounds", "threads", "out"}
    if unknown or None in arguments.values():
        sys.exit(f"gentok: the benchmark takes only=ITEMS rounds=N threads=N out=FOLDER; got {' '.join(sys.argv[1:])}")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded, as on gentok's command line
    try:
        benchmark(**arguments)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"gentok: {error}")


if __name__ == "__main__":
    main()
