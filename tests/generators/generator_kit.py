"""Small generators, codes and conditions for the tests of this folder."""

import torch

from gentok.generators.autoregressive import Autoregressive
from gentok.generators.masked import MaskedTransformer
from gentok.types import (
    ABSENT,
    Class,
    ClassSpec,
    Condition,
    ConditionSpec,
    Ids,
    IdsSpec,
    Line,
    Raster,
    Tokens,
    TokenSpec,
    Vectors,
    VectorsSpec,
)

RASTER = TokenSpec((7,), Raster(3, 4))
LEVELS = TokenSpec((5, 7, 3), Line(5))
STRIDED = TokenSpec((5, 7, 3), Line(6), strides=(3, 2, 1))
CASES = [("raster", RASTER)] + [
    (name, spec) for name in ("level_major", "position_major", "delayed", "parallel") for spec in (LEVELS, STRIDED)
]
CLASSES = ConditionSpec((("class", ClassSpec(("a", "b", "c"))),))
EVERYTHING = ConditionSpec((("class", ClassSpec(("a", "b", "c"))), ("text", IdsSpec(tuple("xyz"), 4)), ("voice", VectorsSpec(6, 2))))


def randomise(model, std=0.3, seed=0):
    """Weights large enough that every part matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * std)
    return model.eval()


def autoregressive(spec, condition_spec=None, dtype=torch.float64, **options):
    return randomise(Autoregressive(spec, condition_spec, **{"width": 16, "depth": 2, "heads": 2, **options})).to(dtype)


def masked(spec, condition_spec=None, dtype=torch.float64, **options):
    return randomise(MaskedTransformer(spec, condition_spec, **{"width": 16, "depth": 2, "heads": 2, **options})).to(dtype)


def codes(spec, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    out = torch.stack([torch.randint(0, v, (batch, spec.positions), generator=generator) for v in spec.vocab_sizes], 1)
    out[:, ~spec.exists()] = ABSENT
    return Tokens(out, spec)


def everything(batch, seed=0):
    """Rows in turn: full, all null, partly null."""
    generator = torch.Generator().manual_seed(seed)
    row = torch.arange(batch)
    lengths = torch.tensor([4, 0, 2])[row % 3]
    text = torch.randint(0, 3, (batch, 4), generator=generator).masked_fill(torch.arange(4) >= lengths[:, None], ABSENT)
    mask = torch.arange(2) < torch.tensor([1, 0, 2])[row % 3][:, None]
    voice = torch.randn(batch, 2, 6, generator=generator, dtype=torch.float64)
    return Condition({"class": Class(torch.tensor([2, -1, 0])[row % 3]), "text": Ids(text), "voice": Vectors(voice, mask)})


def fed(model, tokens):
    """All fed steps of a causal model, begin first: [B, S + 1, G]."""
    flat = model.layout.flatten(tokens.codes)
    return torch.cat((model.begin.expand(len(flat), 1, -1), flat), 1)


def same(a, b, tolerance=1e-9):
    """Equal logits, -inf at the same ids."""
    finite = torch.isfinite(a)
    return torch.equal(finite, torch.isfinite(b)) and torch.allclose(a[finite], b[finite], atol=tolerance, rtol=tolerance)


def at(*where):
    return torch.tensor(where)
