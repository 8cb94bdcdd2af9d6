"""Decoding token by token, against the operations that cannot be left out and against transformers' `generate` on the same weights."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gentok.benchmarks.models import ZOO
from gentok.metrics.speed import Measured, figure, interleaved, missing

__all__ = ["agrees", "bare", "decode", "divergence", "llama_of", "model_of"]

GENERATE = "transformers LlamaForCausalLM.generate, StaticCache"


def model_of(side: int, vocab: int, **sizes: int) -> Any:
    """An untrained Autoregressive that is a Llama: one line of positions, no QK-norm, nothing added to the ids' embeddings."""
    import torch

    from gentok.generators.autoregressive import Autoregressive
    from gentok.types import Raster, TokenSpec

    model = Autoregressive(TokenSpec((vocab,), Raster(side, side)), layout="raster", rope="line", qk_norm=False, **sizes).eval()
    for part in model.modules():  # large enough that every id depends on all before it: the comparison of ids must notice any difference
        if isinstance(part, torch.nn.Linear):
            torch.nn.init.normal_(part.weight, std=part.in_features**-0.5)
    torch.nn.init.normal_(model.token_table.weight)
    torch.nn.init.zeros_(model.target_table.weight)
    return model.requires_grad_(False)


def llama_of(model: Any) -> Any:
    """The same function as a LlamaForCausalLM, or None where transformers is not installed.

    Keys of gentok are rotated by the position of the cell that they hold, which is one less than their step: that rotation goes into the
    weights.
    """
    try:
        import transformers
    except ImportError:
        return None
    import torch

    from gentok.nn.rope import rotate, rotation

    network, steps = model.transformer, model.layout.steps
    table, width, heads = model.token_table.weight, network.width, network.heads
    config = transformers.LlamaConfig(
        vocab_size=len(table), hidden_size=width, intermediate_size=network.blocks[0].mlp.out.in_features,
        num_hidden_layers=network.depth, num_attention_heads=heads, max_position_embeddings=steps + 1, rms_norm_eps=1e-6,
        bos_token_id=None, eos_token_id=None, attn_implementation="sdpa",
    )  # fmt: skip
    peer = transformers.LlamaForCausalLM(config).eval()
    peer.lm_head = torch.nn.Linear(width, model.spec.vocab, bias=False)
    peer.requires_grad_(False)
    back = rotation(torch.tensor([[-1]]), head_width=network.head_width)
    peer.model.embed_tokens.weight.copy_(table)
    peer.lm_head.weight.copy_(model.head.weight)
    peer.model.norm.weight.copy_(network.norm.weight)
    for block, layer in zip(network.blocks, peer.model.layers):
        q, k, v = block.attention.qkv.weight.chunk(3)
        both = torch.stack((q, k)).unflatten(1, (heads, -1)).permute(3, 0, 1, 2)  # [D, 2, heads, d]
        turned = rotate(both, back)[:, 1].permute(1, 2, 0).flatten(0, 1)
        gate, up = block.mlp.up.weight.chunk(2)
        parts = {
            layer.self_attn.q_proj: q, layer.self_attn.k_proj: turned, layer.self_attn.v_proj: v,
            layer.self_attn.o_proj: block.attention.out.weight, layer.mlp.gate_proj: gate, layer.mlp.up_proj: up,
            layer.mlp.down_proj: block.mlp.out.weight, layer.input_layernorm: block.norm1.weight,
            layer.post_attention_layernorm: block.norm2.weight,
        }  # fmt: skip
        for part, weight in parts.items():
            part.weight.copy_(weight)
    return peer


def generate(model: Any, peer: Any, batch: int, tokens: int, sample: bool = True, compiled: bool = False) -> Any:
    """int64 [B, tokens]: what the peer draws, with a static cache of all steps of the layout."""
    import torch
    import transformers

    prompt = torch.full((batch, 1), len(model.token_table.weight) - 2)  # the row of `begin`
    cache = transformers.StaticCache(peer.config, max_cache_len=model.layout.steps + 1)
    how = transformers.CompileConfig(mode="default", fullgraph=False)
    how._compile_all_devices = True
    ids = peer.generate(
        prompt, attention_mask=torch.ones_like(prompt), past_key_values=cache, do_sample=sample, top_k=0 if sample else None,
        min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0,
        **({"compile_config": how} if compiled else {"disable_compile": True}),
    )  # fmt: skip
    return ids[:, 1:]


def agrees(model: Any, peer: Any) -> bool:
    """Whether both draw the same ids greedily, in the type of their weights."""
    import torch

    from gentok.rng import RowRNG
    from gentok.samplers.autoregressive import AutoregressiveSampler
    from gentok.types import Condition

    own = AutoregressiveSampler(temperature=0.0)(model, Condition(), rng=RowRNG([0])).tokens.codes[:, 0]
    return torch.equal(own, generate(model, peer, 1, model.layout.steps, sample=False))


def bare(model: Any, batch: int, keys: int) -> Callable[[], None]:
    """A call that does what a step cannot leave out: products with all matrices, attention over `keys` keys, an exact draw.

    Each as the model's own layers compute it, but with weights as they lie (gentok packs large float32 ones for 4 rows and more), and
    without norms, rotation, the cache's writes and residual sums.
    """
    import torch

    from gentok.nn.attention import attend
    from gentok.nn.linear import activations, product
    from gentok.rng import RowRNG
    from gentok.samplers.draws import draw

    network, head = model.transformer, model.head
    dtype, rng = model.token_table.weight.dtype, RowRNG.of(0, torch.arange(batch))
    layers = [part for block in network.blocks for part in (block.attention.qkv, block.attention.out, block.mlp.up, block.mlp.out)]
    with torch.no_grad():
        x = {n: activations(torch.randn(batch, n, dtype=dtype)) for n in {part.weight.shape[1] for part in layers}}
        shape = (batch, network.heads, keys, network.head_width)
        queries = activations(torch.randn(*shape[:2], 1, shape[3], dtype=dtype))
        kept = [[activations(torch.randn(shape, dtype=dtype)) for _ in range(2)] for _ in network.blocks]  # read from memory, as a cache is

    def run() -> None:
        with torch.no_grad():
            for part in layers:
                part(x[part.weight.shape[1]])
            for k, v in kept:
                attend(queries, k, v)
            hidden = x[network.width]
            draw(product(hidden, head.weight) if isinstance(head, torch.nn.Linear) else head(hidden), rng)

    return run


@functools.cache
def divergence(ckpt: Path, dtype: str, items: int = 64) -> float:
    """Mean KL(float32 || dtype) in nats of a token's distribution, of the generator in a bundle on items that it draws itself."""
    import torch

    from gentok.bundle import load
    from gentok.rng import RowRNG
    from gentok.sampling import configured_sampler, lower_precision, sample_tokens

    bundle, other = load(ckpt), load(ckpt)
    lower_precision(other.generator, dtype)
    condition = bundle.condition_spec.parse(None, items)
    sampler = configured_sampler("autoregressive", type(bundle.generator), {})
    tokens = sample_tokens(bundle.generator, condition, sampler, rng=RowRNG.of(0, torch.arange(items))).tokens
    with torch.no_grad():
        p, q = (model.generator(tokens, condition).double().log_softmax(-1) for model in (bundle, other))
    return float((p.exp() * (p - q)).nan_to_num().sum(-1).mean())


def _own(model: Any, batch: int, tokens: int, memory: dict[str, int]) -> Callable[[], float]:
    """Seconds per step of gentok, over the `tokens` steps around the middle of an item, so that the mean number of keys is that of all
    steps. The known cells before them are the same in all rows and are computed once; they do not count."""
    import torch

    from gentok.rng import RowRNG
    from gentok.samplers.autoregressive import AutoregressiveSampler
    from gentok.samplers.draws import draw
    from gentok.types import UNKNOWN, Condition, Tokens

    steps = model.layout.steps
    before = max((steps - tokens) // 2, 0)
    known = torch.full((batch, 1, steps), UNKNOWN)
    known[..., :before] = 1

    class Enough(Exception):
        pass

    def run() -> float:
        moments: list[float] = []

        def choose(logits: Any, rng: Any) -> Any:
            moments.append(time.perf_counter())
            if len(moments) > tokens:
                raise Enough
            return draw(logits, rng)

        rng = RowRNG.of(0, torch.arange(batch))
        with contextlib.suppress(Enough):
            AutoregressiveSampler()(model, Condition(), rng=rng, known=Tokens(known.clone(), model.spec), choose=choose)
        return (moments[-1] - moments[0]) / (len(moments) - 1)

    cache = model.init_cache(Condition(), 1, steps)
    with torch.no_grad():
        model.logits(model.begin.expand(1, 1, 1), cache, torch.zeros(1, dtype=torch.int64))
    memory["cache_bytes"] = batch * sum(t.nbytes for t in (*cache.keys, *cache.values))
    memory["weight_bytes"] = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    return run


def _compile_error(model: Any, peer: Any, batch: int) -> str | None:
    """Why torch.compile does not compile the peer here, or None. It is compiled anew, for this batch alone."""
    import torch

    torch.compiler.reset()
    try:
        generate(model, peer, batch, 2, compiled=True)
    except Exception as error:  # whatever is missing, from a compiler to a header
        return f"torch.compile fails here: {type(error).__name__}"
    return None


def _seconds(work: Callable[[], Any], share: int) -> Callable[[], float]:
    """Seconds of a call, divided by `share`."""

    def run() -> float:
        began = time.perf_counter()
        work()
        return (time.perf_counter() - began) / share

    return run


def _repeated(work: Callable[[], None], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            work()

    return run


def decode(
    rounds: int, side: int = 16, vocab: int = 16_384, batches: tuple[int, ...] = (1, 16), alone: tuple[int, ...] = (4, 64),
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "int8"), work: int = 32, compiled: bool = True, ckpt: Path | None = ZOO,
    **sizes: int,
) -> Measured:  # fmt: skip
    """Steps of LlamaGen-B (110 M parameters, 16,384 ids, 256 tokens), untrained and unconditional, by gentok, by transformers' `generate`
    with the same weights, and the bare operations of such a step.

    `generate` attends to all slots of its static cache in every step, so it is timed from the first token; gentok is timed around the
    middle of an item. It is run as it is and compiled; both figures are given.

    Args:
        rounds: measurements of each contender.
        side, vocab: of the raster, and its ids.
        batches, alone: sizes at which all contenders run, and those at which gentok runs against the bare operations alone.
        dtypes: of the weights; the peer has no int8.
        work: tokens that one measurement draws at a batch of one; a quarter of them at larger ones.
        compiled: whether the peer is also compiled, which takes minutes.
        ckpt: a trained model, on which the effect of fewer bits is measured; None: it is not.
        sizes: width, depth, heads and hidden; none: LlamaGen-B's.

    Raises RuntimeError where the peer with the same weights draws other ids.
    """
    import copy

    import torch

    from gentok.sampling import lower_precision

    plain = model_of(side, vocab, **(sizes or {"width": 768, "depth": 12, "heads": 12, "hidden": 2048}))
    peer = llama_of(plain)
    if peer is not None and not agrees(plain, peer):
        raise RuntimeError("transformers' Llama with the same weights draws other ids greedily: the comparison would be of two models")
    for dtype in dtypes:
        model = lower_precision(copy.deepcopy(plain), dtype)
        theirs = None if peer is None or dtype == "int8" else peer.to(getattr(torch, dtype))
        for batch in (*batches, *alone):
            tokens = max(min(work if batch == 1 else work // 4, plain.layout.steps - 1), 2)
            memory: dict[str, int] = {}
            repeat = 1 if batch > 1 else 4
            bare_step = _repeated(bare(model, batch, plain.layout.steps // 2), repeat)
            contenders = {"gentok": _own(model, batch, tokens, memory), "bare": _seconds(bare_step, repeat)}
            if dtype == "int8":
                other = lower_precision(copy.deepcopy(plain), "bfloat16")
                contenders["bfloat16"] = _own(other, batch, tokens, {})
            failed = None
            if theirs is not None and batch in batches:
                contenders["generate"] = _seconds(functools.partial(generate, plain, theirs, batch, tokens), tokens)
                failed = _compile_error(plain, theirs, batch) if compiled else None
                if compiled and failed is None:
                    peers = functools.partial(generate, plain, theirs, batch, tokens, compiled=True)
                    contenders["generate_compiled"] = _seconds(peers, tokens)
            seconds = interleaved(contenders, rounds)
            setting = f"batch {batch}, {plain.layout.steps} tokens of {vocab:,}, {tokens} of them timed"
            about = {"dtype": dtype, "setting": setting, "tokens": batch, **memory}
            if dtype != "float32" and ckpt is not None and (ckpt / "bundle.json").is_file():
                about |= {"kl": divergence(ckpt, dtype), "kl_of": f"nats per token from float32, {ckpt.name}"}
            name = f"decode/{dtype}/batch{batch}"
            yield f"{name}/bare", figure(seconds["gentok"], seconds["bare"], peer="bare operations", **about)
            if "bfloat16" in seconds:
                yield f"{name}/bfloat16", figure(seconds["gentok"], seconds["bfloat16"], peer="gentok, bfloat16 weights", **about)
            if peer is None:
                yield f"{name}/generate", missing(GENERATE, "transformers")
            if failed is not None:
                yield f"{name}/generate_compiled", {"value": None, "peer": f"{GENERATE}, compiled", "note": failed}
            for other, what in (("generate", "as it is"), ("generate_compiled", "compiled")):
                if other in seconds:
                    yield f"{name}/{other}", figure(seconds["gentok"], seconds[other], peer=f"{GENERATE}, {what}", **about)
