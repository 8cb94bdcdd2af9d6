"""Vectors whose conditionals are known: three signs."""

import torch

from gentok.flow.diffusion import signal_shares
from gentok.generators.base import MaskedVectors
from gentok.types import ClassSpec, ConditionSpec, Latents, Raster, TokenSpec

TABLES = torch.distributions.Dirichlet(torch.full((8,), 0.4, dtype=torch.float64))
"""Probabilities of the eight items of three signs."""


class Signs(MaskedVectors):
    """Items of three vectors of one number, -1 or 1, of a class each; the best denoiser of each vector given the known ones."""

    spec = TokenSpec((), Raster(1, 3), width=1)
    condition_spec = ConditionSpec((("class", ClassSpec(("a", "b"))),))
    channels = 1

    def __init__(self):
        torch.manual_seed(1)
        self.table = TABLES.sample((3,))  # the last one is of no class
        self.items = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
        self.seen = []

    def split(self, tokens):
        return tokens.values.double().transpose(1, 2), tokens.present[:, 0]

    def hidden(self, values, known, condition):
        self.seen.append(known.clone())
        agree = ((values[:, None, :, 0].sign() == self.items) | ~known[:, None]).all(2)
        p = self.table[condition.parts["class"].ids] * agree
        p = p / p.sum(1, keepdim=True)
        return (p[..., None] * (self.items > 0)).sum(1)[..., None]  # [B, 3, 1]: of a plus

    def denoise(self, x, t, hidden, progress=1.0):
        a = signal_shares()[t]
        logit = torch.logit(hidden.clamp(1e-9, 1 - 1e-9)) + 2 * a.sqrt() * x / (1 - a)
        return (x - a.sqrt() * torch.tanh(logit / 2)) / (1 - a).sqrt(), torch.full_like(x, -1.0)

    def finish(self, values, known, tokens):
        return Latents(torch.where(known[:, None], values.transpose(1, 2), torch.nan), tokens.spec)


def off(values, table):
    """Total variation between the shares of the eight items and their probabilities."""
    item = ((values > 0) * torch.tensor([4, 2, 1])).sum(1)
    return float((torch.bincount(item, minlength=8) / len(values) - table).abs().sum() / 2)
