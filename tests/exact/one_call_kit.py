"""One network call of speculative decoding, on every path: what it fixes, and how much.

    found = enumerated(OneCall(...), model, case)      the items after one call, UNKNOWN where nothing is fixed yet
    completed(found, expected)                         the same, continued by the model: `expected` itself where a call is exact
    fixed(found)                                       the steps that a call fixes, in the mean

Whatever a call leaves is drawn anew from what is fixed, so a sampler is exact where one call is; and one call has far fewer paths than an
item.
"""

import numpy as np
import torch
from kit import Distribution

from gentok.samplers.drafter import Progress
from gentok.samplers.speculative import Speculative
from gentok.samplers.speculative_decoding import _Decoding, _first
from gentok.types import UNKNOWN, Tokens


class OneCall(Speculative):
    """Speculative, that stops after its first call."""

    def run(self, request):
        layout, tokens = request.model.layout, request.tokens
        ids = layout.flatten(tokens.codes)
        decoding = _Decoding(self, Progress(request, layout, ids, _first(ids), request.model.spec.vocab))
        decoding.step(torch.arange(len(ids)))
        return request.output(Tokens(layout.unflatten(ids), tokens.spec, tokens.lengths), decoding.calls)


def completed(found: Distribution, expected: Distribution) -> Distribution:
    """What was fixed, and the rest of it drawn from `expected`."""
    p = np.zeros(len(expected.p))
    for codes, mass in zip(found.outcomes, found.p):
        agrees = ((codes == UNKNOWN) | (codes == expected.outcomes)).flatten(1).all(1).numpy()
        p += mass * np.where(agrees, expected.p, 0.0) / expected.p[agrees].sum()
    return Distribution(expected.outcomes, p)


def fixed(found: Distribution) -> float:
    """Steps of one slot that a call fixes of an item of which nothing is known, in the mean."""
    return float(((found.outcomes != UNKNOWN).flatten(1).sum(1).numpy() * found.p).sum())


def worst(found: Distribution, expected: Distribution) -> float:
    """The largest difference of two probabilities, of distributions of the same outcomes."""
    return float(np.abs(found.p - expected.p).max())
