"""Watermarks for tests, and items that carry them."""

import torch
from kit import TabularCausal

from gentok.codebooks.vq import VQ
from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.types import Class, Condition, Line, TokenSpec
from gentok.watermarks.base import KeyMark
from gentok.watermarks.cluster import Cluster
from gentok.watermarks.exp import EXP
from gentok.watermarks.its import ITS
from gentok.watermarks.key import Key
from gentok.watermarks.kgw import KGW

KEY, OTHER = Key(b"a secret of the tests"), Key(b"another of the tests")
KINDS = {"exp": EXP, "its": ITS, "cluster": Cluster, "kgw": KGW}
FREE = ("exp", "its", "cluster")
LONG = 1 << 40
"""Places of a key so long that no two items meet in it: a batch is then a sample over keys."""


def mark_of(kind, spec, key=KEY, length=LONG, **options):
    codebook = None
    if kind == "cluster":
        torch.manual_seed(0)
        codebook = VQ(vocab_size=spec.vocab, dim=4, width=4).eval()
        codebook.vocab_sizes = spec.vocab_sizes
        codebook.table = lambda level: torch.randn(spec.vocab_sizes[level], 4, generator=torch.Generator().manual_seed(level))
        options = {"size": 3, **options}
    return KeyMark(KINDS[kind](**({} if kind == "kgw" else {"length": length}), **options), key, spec, codebook)


def items(n, mark=None, sampler=None, spec=None, seed=0, scale=1.5):
    model = TabularCausal(spec or TokenSpec((16,), Line(24)), scale=scale)
    options = {} if mark is None else {"mark": mark}
    condition = Condition({"class": Class(torch.zeros(n, dtype=torch.int64))})
    return (sampler or AutoregressiveSampler())(model, condition, rng=RowRNG.of(seed, torch.arange(n)), **options).tokens
