"""NextScale models for the exactness kit: a table of distributions for every class and codes of earlier scales, and what
a sampler of one must draw."""

from dataclasses import replace

import numpy as np
import torch
from kit import CLASSES, Distribution, _mix, completions, reference_filter, reference_guided, reference_scale

from gentok.codebooks.pyramid import PyramidCodebook
from gentok.codebooks.vq import VQ
from gentok.generators.base import NextScale
from gentok.generators.next_scale import NextScaleTransformer
from gentok.rng import RowRNG
from gentok.samplers.next_scale import NextScaleSampler
from gentok.types import NULL_CLASS, UNKNOWN, Class, Condition, Pyramid, Tokens, TokenSpec


class TabularNextScale(NextScale):
    """Each class, scale and grid of the codes before it has logits of its own for every cell, looked up by a hash; so has
    each with the scale's own codes. NaN where a cell is absent. It checks the contract as it goes: scales are fed in
    order, and what was read does not change afterwards."""

    def __init__(self, sides=(1, 2), vocab=3, scale=1.0, seed=0):
        self.spec, self.condition_spec, self.scale, self.seed = TokenSpec((vocab,), Pyramid(sides)), CLASSES, scale, seed
        self.cells = [side * side for side in sides]

    def init_cache(self, condition, batch):
        ids = condition.parts["class"].ids
        assert len(ids) == batch
        return {"classes": ids, "fed": 0, "read": torch.zeros(batch, 0, dtype=torch.int64)}

    def logits(self, codes, scales, cache, own=False):
        s = scales[-1]
        assert scales.step == 1 and scales[0] <= cache["fed"], "a scale was left out"
        assert not own or len(scales) == 1, "own codes are those of one scale"
        read = codes[:, 0, : sum(self.cells[: s + own])]
        before = cache["read"][:, : sum(self.cells[: scales[0]])]
        assert not (read == UNKNOWN).any() and torch.equal(read[:, : before.shape[1]], before), "what was read has changed"
        cache["fed"], cache["read"] = (s if own else s + 1), codes[:, 0, : sum(self.cells[:s])].clone()
        out = self.table(cache["classes"], s, read, own)
        here = codes[:, 0, sum(self.cells[:s]) : sum(self.cells[: s + 1])]
        return out.masked_fill((here == -1)[..., None], torch.nan)

    def table(self, classes, s, read, own):
        history = torch.cat((classes[:, None], torch.full_like(classes[:, None], s + 100 * own), read), 1)
        state = _mix(torch.full((len(read),), self.seed), history)
        return RowRNG(state).normal(self.cells[s], self.spec.vocab) * self.scale


def logits_of(model, codes, s, class_id, own=False):
    """Of scale s given codes [M, 1, N], float64 [M, n, V]."""
    cache = model.init_cache(Condition({"class": Class(torch.full((len(codes),), class_id))}), len(codes))
    out = model.logits(codes, range(s + 1), cache)
    return (model.logits(codes, range(s, s + 1), cache, own=True) if own else out).detach().double().numpy()


def scales_distribution(model, case, sampler, guidance=(1.0, "constant")):
    """The joint distribution of the masked cells of a case, scale by scale: p(cells | scales before), times, for each further
    pass, the chance to come from one filling of the scale to another."""
    spec, cells = model.spec, [side * side for side in model.spec.grid.sides]
    states, p = case.codes[None], np.ones(1)
    for s in range(len(cells)):
        own = slice(sum(cells[:s]), sum(cells[: s + 1]))
        masked = (case.codes[0, own] == UNKNOWN).nonzero()[:, 0].tolist()
        if not masked:
            continue
        strength = reference_scale(*guidance, s / max(len(cells) - 1, 1))

        def laws(codes, pass_sampler, own, s=s, masked=masked, strength=strength):
            conditional = logits_of(model, codes, s, case.class_id, own)
            null = logits_of(model, codes, s, NULL_CLASS, own) if guidance[0] != 1 else conditional
            return [
                [reference_filter(reference_guided(c[n], u[n], strength), pass_sampler) for n in masked]
                for c, u in zip(conditional, null)
            ]

        filled, weight = [], []
        for state, share, law in zip(states, p, laws(states, sampler, False)):
            part = state.clone()
            part[:, own.stop :] = -1  # not of this scale: nothing to be filled
            parts = completions(part, spec)
            outcome = parts[:, 0, own][:, masked]
            chance = np.array([np.prod([own_law[v] for own_law, v in zip(law, row)]) for row in outcome.tolist()])
            for k in (sampler.repredict or ()) if s else ():
                again = laws(parts, replace(sampler, top_k=k, repredict=None), True)
                kernel = np.array([[np.prod([own_law[v] for own_law, v in zip(law, row)]) for row in outcome.tolist()] for law in again])
                chance = chance @ kernel
            parts[:, :, own.stop :] = state[:, own.stop :]
            filled.append(parts)
            weight.append(share * chance)
        states, p = torch.cat(filled), np.concatenate(weight)
    return Distribution(states, p)


def learnt(table, case, steps=150):
    """A small network that has learnt a table's distribution of a case of which nothing is known."""
    torch.manual_seed(0)
    codebook = PyramidCodebook(VQ(table.spec.vocab, 4, normalize=False), table.spec.grid.sides)
    sizes = {"width": 32, "depth": 2, "heads": 2, "condition_by": "adaln", "zero_init_head": True}
    model = NextScaleTransformer(table.spec, table.condition_spec, codebook, **sizes)
    law = scales_distribution(table, case, NextScaleSampler())
    tokens, p = Tokens(law.outcomes, table.spec), torch.from_numpy(law.p).float()
    condition = Condition({"class": Class(torch.full((tokens.batch,), case.class_id))})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        optimizer.zero_grad()
        nats = model(tokens, condition).log_softmax(2).gather(2, tokens.codes[:, 0, :, None]).sum((1, 2))
        (-p * nats).sum().backward()
        optimizer.step()
    return model.eval().double()
