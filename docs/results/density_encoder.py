"""FlexTok's encoder with token merging, measured for density.md; it is no option of the package, for the reasons given there.

    python docs/results/density_encoder.py quality
    python docs/results/density_encoder.py losses shards='PATH/cifar10-train-{000..004}.tar' held_out=PATH/cifar10-test-000.tar
    python docs/results/density_encoder.py speed

Token merging (ToMe; Bolya et al., arXiv 2210.09461). Between attention and feed-forward part of every block, P patches become P - r:

    even patches a_i, odd ones b_j;  score_i = max_j cos(key of a_i, key of b_j), keys being means over the heads
    the r patches a_i with the highest scores are added to their b_j, patches being weighted by how many of the first ones they hold, s
    attention = softmax(q k / sqrt(d) + log s)                                   as if each of them stood there s times

Registers are neither merged nor matched. What the encoder gives are registers, so nothing is taken apart again.
"""

from __future__ import annotations

import sys
import time

import torch
import torch.nn.functional as F
from density_models import ITEMS, PICTURES, RUNS, counted
from evidence import CIFAR, Store, cifar_words, figures, train_once
from torch import Tensor

from gentok.nn.norm import rms_norm
from gentok.nn.patches import positions_2d
from gentok.nn.registers import RegisterEncoder

MERGES = (0, 4, 8, 16, 24)
"""r of 64 patches and 2 blocks."""
OTHERS = -1
"""In the place of r: every image is given the registers of another one, which tells what they are worth to the decoder."""
DIGITS = (
    "tokenizer=flextok codebook=fsq codebook.values=[8,8,8,5,5,5] codebook.width=null losses=l2 tokenizer.decoder=regression tokenizer.nested=null "
    "tokenizer.registers=16 tokenizer.encoder_width=96 tokenizer.decoder_width=96 tokenizer.decoder_depth=2 optimizer.lr=2e-3 schedule.warmup=30 "
    "batch_size=32 budget=40s clock=cpu"
)
SHAPES = {
    "small": (96, 2, 3, 64, 16, 64, MERGES[1:]), "d12": (768, 12, 12, 256, 256, 1, (8, 16, 21)), "d12, 32 registers": (768, 12, 12, 256, 32, 1, (8, 16, 21)),
}  # fmt: skip
"""Width, depth, heads, patches, registers, rows, and r."""


def merged(x: Tensor, sizes: Tensor, keys: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """One merging.

    Args:
        x: float [B, P, D].
        sizes: float [B, P], s.
        keys: float [B, P, d].
        r: patches that are merged, at most P / 2.

    Returns:
        float [B, P - r, D] and float [B, P - r].
    """
    unit = F.normalize(keys, dim=-1)
    score, to = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(-1)
    order = score.argsort(-1, descending=True)
    gone, kept = order[:, :r], order[:, r:].sort(-1).values
    both = torch.cat((x * sizes[..., None], sizes[..., None]), -1)  # weighted sums, and their weights
    a, b = both[:, ::2], both[:, 1::2]
    rows = lambda index: index[..., None].expand(-1, -1, both.shape[2])  # noqa: E731
    b = b.scatter_add(1, rows(to.gather(1, gone)), a.gather(1, rows(gone)))
    both = torch.cat((a.gather(1, rows(kept)), b), 1)
    return both[..., :-1] / both[..., -1:], both[..., -1]


def encode(encoder: RegisterEncoder, patches: Tensor, grid: tuple[int, int], r: int) -> Tensor:
    """As RegisterEncoder.forward, with merging; r = 0: the same operations without any."""
    x = encoder.stem(patches) + positions_2d(grid, encoder.home, encoder.stem.out_features, device=patches.device).to(patches.dtype)
    registers = len(encoder.registers)
    x = torch.cat((x, encoder.registers.to(x.dtype).expand(len(x), -1, -1)), 1)
    sizes = x.new_ones(len(x), patches.shape[1])
    for block in encoder.transformer.blocks:
        count, part = sizes.shape[1], block.attention
        qkv = part.qkv(block.norm1(x)).view(len(x), x.shape[1], 3, part.heads, part.head_width)
        q, k = rms_norm(qkv[:, :, :2], part.qk_weight).permute(2, 0, 3, 1, 4).unbind(0)
        bias = torch.zeros_like(encoder.mask(count, x.device), dtype=x.dtype).masked_fill(~encoder.mask(count, x.device), float("-inf"))
        bias = bias + F.pad(sizes.log(), (0, registers))[:, None, None]
        y = F.scaled_dot_product_attention(q, k, qkv[:, :, 2].transpose(1, 2), attn_mask=bias)
        x = x + part.out(y.transpose(1, 2).flatten(2))
        if r:
            few, sizes = merged(x[:, :count], sizes, k[:, :, :count].mean(1), min(r, count // 2))
            x = torch.cat((few, x[:, count:]), 1)
        x = x + block.mlp(block.norm2(x))
    return encoder.head(encoder.transformer.norm(x)[:, -registers:])


class MergingEncoder(RegisterEncoder):
    """An encoder that merges r patches in every block."""

    r = 0

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.r == OTHERS:
            return super().forward(patches, grid).roll(1, 0)
        return encode(self, patches, grid, self.r) if self.r else super().forward(patches, grid)


@torch.inference_mode()
def quality(store: Store) -> None:
    """PSNR of held-out digits, reconstructed by a regression FlexTok that was trained without merging and is run with it."""
    from gentok.build import build
    from gentok.bundle import load
    from gentok.cli import compose
    from gentok.data.datasets import whole
    from gentok.metrics.image import psnr

    tokenizer = load(train_once(RUNS / "digits_0", [*DIGITS.split(), "seed=0"])).tokenizer.eval()
    tokenizer.encoder.__class__ = MergingEncoder
    media, _ = whole(build(compose("evaluate", ["ckpt=none", "data=mnist5k"])["data"]).held_out, PICTURES)
    for r in (*MERGES, OTHERS):
        began, tokenizer.encoder.r = time.monotonic(), r
        values = {"psnr_db": psnr(tokenizer.decode(tokenizer.encode(media)), media).mean().item()}
        how = f"python docs/results/density_encoder.py quality, after: python train.py {DIGITS} seed=0"
        store.add(figures(f"encoder/digits/r{r}/seed0", values, how, 0, time.monotonic() - began))
        print(r, values, flush=True)


@torch.inference_mode()
def losses(store: Store, given: dict[str, str]) -> None:
    """The held-out loss of the `dense` model of seed 0 run with merging, as in density_models.measure."""
    from gentok.build import build
    from gentok.bundle import load
    from gentok.cli import compose
    from gentok.data.datasets import whole
    from gentok.types import Batch

    data = build(compose("evaluate", ["ckpt=none", "data=cifar10", "data.in_memory=false", *cifar_words(given)])["data"])
    media, _ = whole(data.held_out, ITEMS)
    tokenizer = load(RUNS / "dense_0" / "bundle").tokenizer.eval()
    tokenizer.encoder.__class__ = MergingEncoder
    for r in (*MERGES, OTHERS):
        began, tokenizer.encoder.r = time.monotonic(), r
        each = [tokenizer(Batch(media[part], part)).losses["flow"].item() for part in torch.arange(ITEMS).split(250)]
        how = f"python docs/results/density_encoder.py losses {CIFAR}, after: python docs/results/density_models.py train dense"
        store.add(figures(f"encoder/dense/r{r}/seed0", {"held_out_flow_loss": sum(each) / len(each)}, how, 0, time.monotonic() - began))


@torch.inference_mode()
def speed(store: Store) -> None:
    """Operations and seconds of encoders of several sizes, untrained, in turn in one process."""
    import statistics

    from gentok.metrics.speed import interleaved, timed

    for name, (width, depth, heads, patches, registers, rows, tried) in SHAPES.items():
        began, side = time.monotonic(), int(patches**0.5)
        encoder = RegisterEncoder(16, 6, (side, side), registers, width, depth, width // heads).eval()
        x = torch.randn(rows, patches, 16)
        assert torch.allclose(encode(encoder, x, (side, side), 0), encoder(x, (side, side)), atol=1e-4)
        flops, contenders = {}, {}
        for r in (0, *tried):
            work = (lambda e=encoder, x=x, g=(side, side): e(x, g)) if r == 0 else (lambda e=encoder, x=x, g=(side, side), r=r: encode(e, x, g, r))
            flops[r], contenders[str(r)] = counted(work) / rows, timed(work)
        seconds = interleaved(contenders, 9 if rows > 1 else 3)
        for r in flops:
            ratios = [a / b for a, b in zip(seconds[str(r)], seconds["0"])]
            values = {"flops": flops[r], "time_ratio": statistics.median(ratios), "time_ratio_least": min(ratios), "time_ratio_greatest": max(ratios)}
            store.add(figures(f"encoder/speed/{name}/r{r}", values, "python docs/results/density_encoder.py speed", 0, time.monotonic() - began))
            print(name, r, values, flush=True)


def exact() -> bool:
    """Whether equal patches that are merged leave attention as it was: the softmax counts them s times."""
    generator = torch.Generator().manual_seed(0)
    keys, values, query = (torch.randn(1, 4, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    twice_k, twice_v = keys.repeat_interleave(2, 1), values.repeat_interleave(2, 1)
    few_k, sizes = merged(twice_k, twice_k.new_ones(1, 8), twice_k, 4)
    few_v, _ = merged(twice_v, twice_v.new_ones(1, 8), twice_k, 4)
    plain = F.scaled_dot_product_attention(query, twice_k, twice_v)
    return torch.allclose(F.scaled_dot_product_attention(query, few_k, few_v, attn_mask=sizes.log()[:, None]), plain)


def main(words: list[str]) -> None:
    from density import page

    assert exact()
    store = Store("density")
    if words[0] == "quality":
        quality(store)
    elif words[0] == "losses":
        losses(store, dict(word.split("=", 1) for word in words[1:]))
    else:
        speed(store)
    page(store)


if __name__ == "__main__":
    main(sys.argv[1:])
