"""A small distilled generator with a random teacher, for the tests of distilled decoding."""

import torch
from generator_kit import CLASSES, autoregressive, randomise

from gentok.codebooks.vq import VQ
from gentok.generators.distilled import DistilledTransformer
from gentok.rng import RowRNG
from gentok.types import Class, Condition, Raster, Tokens, TokenSpec

SPEC = TokenSpec((7,), Raster(3, 4))


def codebook(size=7, dim=3):
    torch.manual_seed(2)
    return VQ(size, dim).eval()


def distilled(spec=SPEC, condition_spec=CLASSES, std=0.3, **options):
    """A student with random weights of its own, in float64."""
    teacher = autoregressive(spec, condition_spec)
    model = DistilledTransformer(spec, condition_spec, codebook(spec.vocab), teacher=teacher, **options).double()
    own = {name: p.clone() for name, p in model.teacher.state_dict().items()}
    randomise(model, std)
    model.teacher.load_state_dict(own)
    return model


def start(model, batch=5, seed=0):
    """(UNKNOWN codes int64 [B, 1, N], noise, condition) of some rows."""
    condition = Condition({"class": Class(torch.arange(batch) % 3)} if model.condition_spec.parts else {})
    return Tokens.unknown(model.spec, batch).codes, model.noise(RowRNG.of(seed, range(batch))), condition
