"""Tables in place of a network that drafts and verifies in windows, and the distribution of its windows, for
tests of self-speculative decoding."""

import itertools

import numpy as np
import torch
from any_order_kit import TabularAnyOrder
from kit import Distribution, completions, reference_filter, reference_guided, reference_scale

from gentok.generators.base import Masked, SelfSpeculative
from gentok.types import NULL_CLASS, UNKNOWN, Class, Condition, Tokens


class Tabular(Masked, SelfSpeculative):
    """Drafts and verified distributions looked up by a hash of what each may depend on; the state is the
    class and the cells that the trunk saw."""

    uses_time = False

    def __init__(self, spec, scale=1.0):
        self.table, self.spec = TabularAnyOrder(spec, scale), spec
        self.condition_spec = self.table.condition_spec

    def logits(self, tokens, condition, t=None):
        rank = torch.where(tokens.masked, tokens.masked.flatten(1).cumsum(1).view_as(tokens.codes), 0)
        return self.table.logits(tokens, condition, rank, torch.zeros(tokens.batch, dtype=torch.int64))

    def draft(self, tokens, condition):
        state = torch.cat((condition.parts["class"].ids[:, None], tokens.codes.flatten(1)), 1)
        return self.logits(tokens, condition), state.double()

    def verify(self, state, tokens, rank):
        state = state.long()
        saw = state[:, 1:].view_as(tokens.codes)
        assert ((saw == UNKNOWN) | (saw == tokens.codes)).all() and ((rank > 0) == (saw == UNKNOWN)).all(), "another window's state"
        return self.table.logits(tokens, Condition({"class": Class(state[:, 0])}), rank)


@torch.no_grad()
def window_distribution(model, case, sampler, guidance=(1.0, "constant")):
    """The mean over all orders of the masked cells of the product of the windows' distributions, each factor
    from passes that hold no more than it may depend on."""
    outcomes, spec = completions(case.codes, model.spec), model.spec
    masked_cells = [tuple(cell) for cell in (case.codes == UNKNOWN).nonzero().tolist()]
    m, visible, (scale, schedule) = len(outcomes), int((case.codes >= 0).sum()), guidance
    total = np.zeros(m)
    for order in itertools.permutations(masked_cells):
        codes, p = case.codes.expand(m, *case.codes.shape).clone(), np.ones(m)
        for r, (k, n) in enumerate(order):
            begin = r - r % sampler.window
            rank, start = torch.zeros_like(case.codes), codes.clone()
            for j, (level, position) in enumerate(order[begin:]):
                rank[level, position] = j + 1
                start[:, level, position] = UNKNOWN

            def branch(class_id, codes=codes, start=start, rank=rank, first=r == begin):
                drafted, state = model.draft(Tokens(start, spec), Condition({"class": Class(torch.full((m,), class_id))}))
                return (drafted if first else model.verify(state, Tokens(codes, spec), rank.expand_as(codes))).double().numpy()

            l_c = branch(case.class_id)[:, k, n, : spec.vocab_sizes[k]]
            l_u = branch(NULL_CLASS)[:, k, n, : spec.vocab_sizes[k]] if scale != 1 else l_c
            strength = reference_scale(scale, schedule, (visible + r) / (visible + len(order)))
            distributions = {}
            for row in range(m):
                mixed = reference_guided(l_c[row], l_u[row], strength)
                if mixed.tobytes() not in distributions:
                    distributions[mixed.tobytes()] = reference_filter(mixed, sampler)
                p[row] *= distributions[mixed.tobytes()][outcomes[row, k, n]]
            codes[:, k, n] = outcomes[:, k, n]
        total += p
    return Distribution(outcomes, total / len(list(itertools.permutations(masked_cells))))
