"""The exactness kit for AnyOrder models: a table without a network, and the distribution of a case by
enumeration."""

import itertools

import numpy as np
import torch
from kit import CLASSES, Case, Distribution, completions, reference_filter, reference_guided, reference_scale

from gentok.generators.base import AnyOrder
from gentok.rng import RowRNG
from gentok.types import NULL_CLASS, UNKNOWN, Class, Condition, Tokens


def mix(state, word):
    state = state * 6364136223846793005 + (word + 7) * 1442695040888963407
    return state ^ (state >> 29)


class TabularAnyOrder(AnyOrder):
    """No network: each history (class, visible block, cells drawn in order, cell asked) has a distribution of
    its own, looked up by a hash."""

    def __init__(self, spec, scale=1.0, seed=0):
        self.spec, self.condition_spec, self.scale, self.seed = spec, CLASSES, scale, seed

    def logits(self, tokens, condition, rank, seen=None):
        batch, size = tokens.batch, rank[0].numel()
        codes, order = tokens.codes.flatten(1), rank.flatten(1)
        cell = torch.arange(size)
        visible = torch.where((order == 0) & (codes != UNKNOWN), mix(cell * 1000 + 500, codes), 0)
        states = [mix(mix(torch.full((batch,), self.seed), condition.parts["class"].ids), visible.sum(1))]
        for r in range(1, size + 1):
            is_next = (order == r) & (codes != UNKNOWN)
            word = torch.where(is_next, cell * 1000 + codes, 0).sum(1)
            states.append(torch.where(is_next.any(1), mix(states[-1], word), states[-1]))
        upto = (order - 1).clamp(min=0) if seen is None else torch.minimum((order - 1).clamp(min=0), seen[:, None])
        history = mix(torch.stack(states, 1).gather(1, upto), cell)
        out = RowRNG(history.reshape(-1)).normal(self.spec.vocab).view(*rank.shape, -1) * self.scale
        sizes = torch.tensor(self.spec.vocab_sizes)[:, None, None]
        out = out.masked_fill(torch.arange(self.spec.vocab) >= sizes, -torch.inf)
        return torch.where((rank > 0)[..., None], out, torch.nan)


@torch.no_grad()
def ordered_distribution(model: AnyOrder, case: Case, sampler, guidance=(1.0, "constant"), order=None) -> Distribution:
    """The joint distribution of the masked cells of a case, drawn one by one in `order` (cells (k, n); None:
    left to right), each from a call in which only what came before is there."""
    outcomes, spec = completions(case.codes, model.spec), model.spec
    masked_cells = (case.codes == UNKNOWN).nonzero().tolist()
    order = sorted(map(tuple, masked_cells), key=lambda cell: (cell[1], cell[0])) if order is None else order
    m, visible = len(outcomes), int((case.codes >= 0).sum())
    scale, schedule = guidance
    rank = torch.zeros_like(case.codes)
    for r, (k, n) in enumerate(order):
        rank[k, n] = r + 1
    codes, log_p = case.codes.expand(m, *case.codes.shape).clone(), np.zeros(m)
    for r, (k, n) in enumerate(order):

        def branch(class_id, codes=codes):
            condition = Condition({"class": Class(torch.full((m,), class_id))})
            return model.logits(Tokens(codes, spec), condition, rank.expand_as(codes)).double().numpy()

        l_c = branch(case.class_id)[:, k, n, : spec.vocab_sizes[k]]
        l_u = branch(NULL_CLASS)[:, k, n, : spec.vocab_sizes[k]] if scale != 1 else l_c
        strength = reference_scale(scale, schedule, (visible + r) / (visible + len(order)))
        distributions: dict[bytes, np.ndarray] = {}
        for row in range(m):
            mixed = reference_guided(l_c[row], l_u[row], strength)
            if mixed.tobytes() not in distributions:
                distributions[mixed.tobytes()] = reference_filter(mixed, sampler)
            with np.errstate(divide="ignore"):
                log_p[row] += np.log(distributions[mixed.tobytes()][outcomes[row, k, n]])
        codes[:, k, n] = outcomes[:, k, n]
    return Distribution(outcomes, np.exp(log_p))


def mean_distribution(model: AnyOrder, case: Case, sampler, guidance=(1.0, "constant")) -> Distribution:
    """The same where every order of the masked cells is as likely."""
    masked_cells = [tuple(cell) for cell in (case.codes == UNKNOWN).nonzero().tolist()]
    distributions = [ordered_distribution(model, case, sampler, guidance, list(order)) for order in itertools.permutations(masked_cells)]
    return Distribution(distributions[0].outcomes, np.mean([distribution.p for distribution in distributions], 0))


def subsets(spec, class_ids=(0, 1)) -> list[Case]:
    """Every subset of cells known, with some codes: cases in which the rest is asked."""
    cells, out = spec.exists().nonzero().tolist(), []
    for i, known in enumerate(itertools.product((False, True), repeat=len(cells))):
        codes = Tokens.unknown(spec, 1).codes[0]
        for j, (k, n) in enumerate(cells):
            if known[j]:
                codes[k, n] = (i + j) % spec.vocab_sizes[k]
        out.append(Case(class_ids[i % len(class_ids)], codes, spec.positions))
    return out
