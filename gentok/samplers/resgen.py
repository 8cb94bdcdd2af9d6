"""ResGen's decoding: draw what is hidden at every position as one vector, quantise it, keep what the model is confident of, repeat.

Kim et al., "Efficient Generative Modeling with Residual Vector Quantization-Based Tokens", arXiv 2412.10208, ICML 2025. Step i of T:

    component m ~ softmax(logits), filtered;  z ~ N(mean_m, vector temperature * var_m I)          at every position with holes
    codes = the codebook's own quantisation of z by the hidden levels
    score of a hole = confidence of its position + c (1 - i / T) Gumbel,   one Gumbel number per hole
    the holes with the highest scores are counted per position, and each position keeps so many of its holes, the shallowest first;
    floor(n gamma(i / T)) of a row's n holes stay masked (as in MaskGIT)

All levels of a position come from one vector, so the number of calls is `steps` for any number of levels. Where chance alone chooses
(c -> infinity), how many levels a position keeps follows the multivariate hypergeometric law that the model was trained on.

Confidence is log p(z) under the mixture, before temperature and filters, in coordinates where the position's hidden sum has unit variance:
positions of which only fine levels are left are then not surer than others by their scale alone. The paper speaks of log-probabilities and
leaves their units open.

NOT a sampler of the model's law: positions are drawn independently, cells are chosen after their codes were drawn, and a vector is
quantised to the nearest row. Each row counts its own holes; a row without holes left leaves the batch. Known cells are never touched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.generators.base import CumulativeMasked
from gentok.samplers.base import Choice, NetworkCalls
from gentok.samplers.stepwise import StepState, StepwiseSampler

__all__ = ["ResGenSampler", "shallowest"]


def shallowest(masked_cells: Tensor, wanted: Tensor) -> Tensor:
    """holes, wanted bool [B, K, N], wanted only holes -> bool [B, K, N]: as many holes of each position as wanted, the shallowest."""
    return masked_cells & (masked_cells.cumsum(1) <= wanted.sum(1, keepdim=True))


@dataclass(frozen=True)
class ResGenSampler(StepwiseSampler, id="sampler/resgen"):
    """steps, schedule, choice_temperature: see gentok.samplers.stepwise. temperature and the filters act on the components' weights, which
    `choose` draws from; vector_temperature >= 0: of the vector inside its component, None for that of the components."""

    requires = CumulativeMasked

    steps: int = 16
    vector_temperature: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.vector_temperature or 0.0) < 0:
            raise ValueError(f"vector_temperature must be >= 0; got {self.vector_temperature}")

    def step(self, model: CumulativeMasked, now: StepState, choose: Choice, calls: NetworkCalls) -> Tensor:
        tokens = now.tokens
        mixture = model.mixture(tokens, now.condition)
        calls.add(model, tokens.batch * now.masked.shape[2])
        component = choose(self.filter(mixture.logits), now.rng)
        z = mixture.draw(component, now.rng, self.temperature if self.vector_temperature is None else self.vector_temperature)
        filled = model.requantize(z, tokens).codes
        confidence = mixture.width * mixture.unit.double().log() - mixture.nats(z).double()
        return torch.where(shallowest(now.masked, self.kept(confidence[:, None], now)), filled, tokens.codes)
