"""Refines models for the exactness kit: a table of labels and, for every grid of labels, a distribution of every id; and what a sampler of
one must draw."""

import numpy as np
import torch
from kit import CLASSES, Case, Distribution, TabularCausal, _mix, causal_distribution, completions, reference_filter, reference_guided

from gentok.generators.base import Refines
from gentok.rng import RowRNG
from gentok.types import NULL_CLASS, UNKNOWN, Class, Condition, Line, Tokens, TokenSpec

CLUSTERS = {
    "k1": (TokenSpec((3,), Line(3)), [[0, 1, 0]]),
    "four cells": (TokenSpec((3,), Line(4)), [[0, 1, 0]]),
    "k2": (TokenSpec((3, 2), Line(2)), [[0, 1, 1], [0, 1]]),
    "narrow": (TokenSpec((2, 3), Line(2)), [[0, 0], [0, 1, 0]]),
    "strided": (TokenSpec((3, 2), Line(3), strides=(2, 1)), [[0, 1, 0], [0, 0]]),
    "one cluster": (TokenSpec((3,), Line(3)), [[0, 0, 0]]),
    "as many as ids": (TokenSpec((3,), Line(3)), [[0, 1, 2]]),
}
"""name -> (the tokens, the label of every id of every level)."""


class TabularRefines(Refines):
    """Each class and grid of labels has logits of its own for every id, looked up by a hash; NaN where no label is."""

    def __init__(self, name="k1", layout="auto", members=True, scale=1.0, seed=0, coarse=TabularCausal):
        self.spec, self.clusters = CLUSTERS[name]
        self.condition_spec, self.members, self.scale, self.seed = CLASSES, members, scale, seed
        labels = TokenSpec(tuple(max(own) + 1 for own in self.clusters), self.spec.grid, strides=self.spec.strides)
        self.coarse = coarse(labels, layout, scale, seed)

    def labels(self, codes):
        out = codes.clone()
        for k, own in enumerate(self.clusters):
            out[:, k] = torch.where(codes[:, k] >= 0, torch.tensor(own)[codes[:, k].clamp(min=0)], codes[:, k])
        return out

    def logits(self, labels, condition):
        assert not bool(labels.masked.any()), "the refiner is given all labels"
        seen = torch.cat((condition.parts["class"].ids[:, None], labels.codes.flatten(1)), 1)
        out = RowRNG(_mix(torch.full((labels.batch,), self.seed + 9), seen)).normal(*labels.codes.shape[1:], self.spec.vocab) * self.scale
        for k, own in enumerate(self.clusters):
            out[:, k, :, len(own) :] = -torch.inf
            if self.members:
                out[:, k, :, : len(own)] = out[:, k, :, : len(own)].masked_fill(self.outside(labels.codes[:, k], own), -torch.inf)
        return out.masked_fill(~labels.present[..., None], torch.nan)

    def outside(self, labels, own):
        return labels[..., None] != torch.tensor(own)


def logits_of(model, labels, class_id):
    """Of labels [M, K, N] in plain numpy."""
    condition = Condition({"class": Class(torch.full((len(labels),), class_id))})
    return model.logits(Tokens(labels, model.coarse.spec), condition).numpy()


def refined_distribution(model, case, sampler, guidance=(1.0, "constant"), posterior=False, labels_of=causal_distribution):
    """The sum over labels of p(labels) product of p(id | labels) over the masked cells of a case.

    sampler: its `coarse` has the filters of the labels, itself those of the ids. posterior: given the known ids, and not their labels
    alone. labels_of: the distribution of a case of labels.
    """
    spec = model.spec
    given = Case(case.class_id, model.labels(case.codes[None])[0], case.length)
    labels = labels_of(model.coarse, given, sampler.coarse, guidance)
    conditional = logits_of(model, labels.outcomes, case.class_id)
    null = logits_of(model, labels.outcomes, NULL_CLASS) if guidance[0] != 1 else conditional
    found, outcomes = {}, {}
    for row, p in enumerate(labels.p):
        grid = labels.outcomes[row]
        codes = torch.where(grid == -1, -1, case.codes)  # items that ended before their maximum
        laws = {}
        for k, n in (grid >= 0).nonzero().tolist():
            ids = slice(0, spec.vocab_sizes[k])
            laws[k, n] = reference_filter(reference_guided(conditional[row, k, n, ids], null[row, k, n, ids], guidance[0]), sampler)
        for filled in completions(codes, spec):
            weight = p
            for (k, n), law in laws.items():
                if codes[k, n] == UNKNOWN or posterior:
                    weight = weight * law[int(filled[k, n])]
            key = filled.contiguous().numpy().tobytes()
            found[key], outcomes[key] = found.get(key, 0.0) + weight, filled
    values = np.array(list(found.values()))
    return Distribution(torch.stack(list(outcomes.values())), values / values.sum() if posterior else values)
