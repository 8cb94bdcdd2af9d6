"""Entities whose velocity is known: points, Gaussians that may depend on the entities before, and a mixture of two."""

import torch

from gentok.generators.base import Entities
from gentok.types import ClassSpec, ConditionSpec, Latents, Raster, TokenSpec

CLASSES = ConditionSpec((("class", ClassSpec(("a", "b"))),))


class Exact(Entities):
    """E entities of one number each; fields[i](x [B], t, numbers of the entities before, classes) is the velocity of entity i."""

    channels, condition_spec = 1, CLASSES

    def __init__(self, *fields):
        self.fields, self.sizes = fields, (1,) * len(fields)
        self.spec = TokenSpec((), Raster(1, len(fields)), width=1)
        self.log = []

    def split(self, tokens):
        return [tokens.values[:, :, i : i + 1] for i in range(len(self.sizes))], tokens.present[:, 0]

    def init_cache(self, condition, batch):
        part = condition.parts.get("class")
        return {"clean": [], "classes": torch.full((batch,), -1) if part is None else part.ids}

    def velocity(self, x, t, index, cache, clean=(), progress=1.0):
        cache["clean"] += [part[:, 0, 0].to(x) for part in clean]
        assert len(cache["clean"]) == index, "every entity before this one, and no other, is in the cache"
        self.log.append((index, t, len(clean), progress))
        return self.fields[index](x[:, 0, 0], t, cache["clean"], cache["classes"])[:, None, None]

    def finish(self, entities, tokens):
        values = tokens.values.clone()
        drawn = torch.cat([part.transpose(1, 2) for part in entities], 2).to(values)
        values[:, :, : len(entities)] = torch.where(values[:, :, : len(entities)].isnan(), drawn, values[:, :, : len(entities)])
        return Latents(values, tokens.spec)


def gaussian(mean, std):
    """The velocity of the straight path to N(mean(before), std^2); both may be numbers."""

    def field(x, t, before, classes):
        m = mean(before) if callable(mean) else mean
        gain = (t - (1 - t) * std**2) / (((1 - t) * std) ** 2 + t**2)
        return gain * (x - (1 - t) * m) - m

    return field


MIXTURE = ((0.3, -1.2, 0.5), (0.7, 0.8, 0.4))
"""(weight, mean, deviation)."""


def mixture(x, t, before, classes):
    weights, velocities = [], []
    for weight, mean, std in MIXTURE:
        spread = ((1 - t) * std) ** 2 + t**2
        weights.append(weight * torch.exp(-((x - (1 - t) * mean) ** 2) / (2 * spread)) / spread**0.5)
        velocities.append(gaussian(mean, std)(x, t, before, classes))
    return sum(w * v for w, v in zip(weights, velocities)) / sum(weights)


def mixture_cdf(x):
    return sum(weight * torch.special.ndtr((x - mean) / std) for weight, mean, std in MIXTURE)
