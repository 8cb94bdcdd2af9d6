"""Samplers of other libraries, and gentok's on their models, under `gentok.certify`: `python tests/certified_others.py` prints the table of
docs/certify.md."""

from __future__ import annotations

import sys

import torch

import gentok
from gentok.certification import Certificate, causal_log_p, draws_of
from gentok.generators.functions import CausalFunction, MaskedFunction
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.halton import Halton
from gentok.samplers.jacobi import Jacobi
from gentok.samplers.maskgit import MaskGIT
from gentok.types import Line, TokenSpec

VOCAB, POSITIONS, BEGIN, OFFSET = 4, 3, 0, 2
SPEC = TokenSpec((VOCAB,), Line(POSITIONS))
CAUSAL = {
    "plain": AutoregressiveSampler(), "jacobi": Jacobi(window=3), "branches": Jacobi(window=3, branches=2),
    "fresh": Jacobi(window=2, tail="fresh"), "match": Jacobi(window=3, tail="gumbel", verify="match"),
}  # fmt: skip
"""gentok's samplers of causal models that need no second one."""


def language_model():
    """A causal model of transformers with random weights; the codes are its ids 2 .. 5, an item begins with 0."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=OFFSET + VOCAB + 1, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=BEGIN, eos_token_id=None,
        initializer_range=0.5, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)


def function_of(lm):
    return CausalFunction(lambda ids: lm(ids).logits, SPEC, BEGIN, OFFSET)


def generate(lm, **options):
    """transformers' `generate` as a function of (n, seed)."""
    others = [0, 1, OFFSET + VOCAB]

    def draw(n, seed):
        torch.manual_seed(seed)
        begin = torch.full((n, 1), BEGIN)
        drawn = lm.generate(
            begin, attention_mask=torch.ones_like(begin), do_sample=True, max_new_tokens=POSITIONS, suppress_tokens=others,
            **{"top_k": 0, "pad_token_id": 0, **options},
        )  # fmt: skip
        return drawn[:, 1:] - OFFSET

    return draw


class Joint:
    """A joint distribution with its exact conditionals, as a function of ids with the mask id V."""

    def __init__(self):
        table = torch.randn((VOCAB,) * POSITIONS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.p = (2 * table).flatten().softmax(0).view(table.shape)

    def log_p(self, ids):
        return self.p[tuple(ids.T)].log()

    def logits(self, ids):
        out = torch.zeros(*ids.shape, VOCAB, dtype=torch.float64)
        for b, row in enumerate(ids.tolist()):
            given = self.p[tuple(slice(None) if i == VOCAB else slice(i, i + 1) for i in row)]
            for place in range(POSITIONS):
                marginal = given.sum([d for d in range(POSITIONS) if d != place])
                out[b, place, : len(marginal)] = marginal.log()
        return out


def amused(joint, steps=2):
    """The scheduler of diffusers' aMUSEd, which is MaskGIT's, as a function of (n, seed)."""
    import diffusers

    def draw(n, seed):
        scheduler, generator = diffusers.AmusedScheduler(mask_token_id=VOCAB), torch.Generator().manual_seed(seed)
        scheduler.set_timesteps(steps)
        ids = torch.full((n, POSITIONS), VOCAB)
        for step in scheduler.timesteps:
            ids = scheduler.step(joint.logits(ids).float(), int(step), ids, generator=generator).prev_sample
        return ids

    return draw


def causal(draw, lm, n=3000) -> Certificate:
    return gentok.certify(draw, causal_log_p(function_of(lm)), VOCAB, POSITIONS, n=n)


def masked(draw, joint, n=3000) -> Certificate:
    return gentok.certify(draw, joint.log_p, VOCAB, POSITIONS, n=n)


def main(n: int) -> None:
    lm, joint = language_model(), Joint()
    model = MaskedFunction(joint.logits, SPEC, mask=VOCAB)
    found = {f"gentok's `{name}`, of a GPT-2": causal(draws_of(sampler, function_of(lm)), lm, n) for name, sampler in CAUSAL.items()}
    found |= {
        "`generate(do_sample=True, top_k=0)` of transformers, of the same": causal(generate(lm), lm, n),
        "`generate(do_sample=True, top_k=2)` of transformers": causal(generate(lm, top_k=2), lm, n),
        "`AmusedScheduler` of diffusers, 2 steps, given exact conditionals": masked(amused(joint), joint, n),
        "gentok's `maskgit`, 2 steps, given the same": masked(draws_of(MaskGIT(steps=2), model), joint, n),
        "gentok's `halton`, one cell per call": masked(draws_of(Halton(steps=3), model), joint, n),
    }
    print("| sampler | distance | of as many exact draws | p | verdict |\n|---|---|---|---|---|")
    for name, one in found.items():
        print(f"| {name} | {one.distance:.3f} | {one.floor:.3f} | {one.p_value:.1g} | {str(one).partition(':')[0]} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
