"""Samples per second: with and without a cache, against transformers, MaskGIT against token by token."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gentok.benchmarks.models import ZOO, describe_sizes, load_or_build
from gentok.metrics.speed import Measured, figure, interleaved, missing, timed

__all__ = ["llama", "sample", "without_cache"]


def without_cache(model: Any) -> Any:
    """A generator of the same distribution as `model` (Causal) that recomputes all steps before in each call.

    Of these it keeps only the ids; of the condition, what its prefix gives.
    """
    import torch

    from gentok.generators.base import Causal

    class WithoutCache(Causal):
        def __init__(self) -> None:
            for name in ("spec", "condition_spec", "layout", "exact_slots", "begin"):
                setattr(self, name, getattr(model, name))

        def init_cache(self, condition: Any, batch: int, capacity: int) -> dict[str, Any]:
            return {"inner": model.init_cache(condition, batch, capacity), "ids": self.begin.new_empty(batch, 0, len(self.begin))}

        def logits(self, ids: Any, cache: dict[str, Any], at: Any, parents: Any = None) -> Any:
            cache["ids"] = torch.cat((cache["ids"], ids), 1)
            return model.logits(cache["ids"], cache["inner"], torch.zeros_like(at))[:, -ids.shape[1] :]

        def commit(self, cache: dict[str, Any], at: Any, path: Any = None) -> None:
            """Nothing is kept."""

    return WithoutCache()


def llama(model: Any, batch: int) -> Callable[[], Any] | None:
    """A call that draws `batch` items with an untrained Llama of transformers, of the sizes of `model`.

    Returns:
        The call; None where transformers is not installed.
    """
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


def sample(rounds: int, batches: tuple[int, ...] = (1, 16), ckpt: Path = ZOO, overrides: tuple[str, ...] = ()) -> Measured:
    """Drawing items token by token with the static cache, against other ways.

    The others are the same model without a cache, transformers' Llama of the same width, depth, heads and
    vocabulary, and MaskGIT's 12 steps of a masked model of these sizes.

    Args:
        rounds: measurements of each contender.
        batches: the batch sizes.
        ckpt: a bundle; where there is none, an untrained model.
        overrides: of conf/config.yaml, of an untrained model.
    """
    import torch

    from gentok.generators.masked import MaskedTransformer
    from gentok.rng import RowRNG
    from gentok.samplers.autoregressive import AutoregressiveSampler
    from gentok.samplers.maskgit import MaskGIT

    bundle, _, model, what = load_or_build(ckpt, overrides)
    network = model.transformer
    sizes = {"width": network.width, "depth": network.depth, "heads": network.heads, "hidden": _hidden(network)}
    masked = MaskedTransformer(model.spec, model.condition_spec, **sizes).eval()
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    for batch in batches:
        condition = bundle.condition_spec.parse(None, batch)

        def draw(sampler: Any, generator: Any, batch: int = batch, condition: Any = condition) -> None:
            sampler(generator, condition, rng=RowRNG.of(0, torch.arange(batch)))

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
        about = {"dtype": dtype, "setting": f"batch {batch}, {what}, {describe_sizes(model)}", "tokens": batch * model.spec.positions}
        own, name = seconds["static cache"], f"sample/autoregressive/batch{batch}"
        yield f"{name}/no_cache", figure(own, seconds["no cache"], peer="no cache", **about)
        library = missing(peer, "transformers") if generate is None else figure(own, seconds[peer], peer=peer, **about)
        yield f"{name}/transformers", library
        maskgit = figure(seconds["maskgit"], own, peer="token by token, static cache", **about)
        yield f"sample/maskgit12/batch{batch}/autoregressive", maskgit


def _hidden(network: Any) -> int:
    return network.blocks[0].mlp.out.in_features
