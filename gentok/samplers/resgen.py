"""ResGen's decoding: draw what is masked at every position as one vector, quantise it, keep what the model is
confident of, repeat.

Kim et al., "Efficient Generative Modeling with Residual Vector Quantization-Based Tokens", arXiv 2412.10208,
ICML 2025. Step i of T:

    at every position with masked cells: component m ~ softmax(logits), filtered, and
    z ~ N(mean_m, vector temperature * var_m I)
    codes = the codebook's own quantisation of z by the masked levels
    score of a masked cell = confidence of its position + c (1 - i / T) Gumbel,   one Gumbel number per cell
    the cells with the highest scores are counted per position, and each position keeps so many of its cells,
    the shallowest first; floor(n gamma(i / T)) of a row's n cells stay masked (as in MaskGIT)

All levels of a position come from one vector, so the number of calls is `steps` for any number of levels.
Where chance alone chooses (c -> infinity), how many levels a position keeps follows the multivariate
hypergeometric distribution that the model was trained on.

Confidence is log p(z) under the mixture, before temperature and filters, in coordinates where the position's
masked sum has unit variance: positions of which only fine levels are left are then not more confident than
others by their scale alone. The paper speaks of log-probabilities and leaves their units open.

NOT a sampler of the model's distribution: positions are drawn independently, cells are chosen after their
codes were drawn, and a vector is quantised to the nearest row. Each row counts its own masked cells; a row
without any left leaves the batch. Known cells are never touched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.generators.base import CumulativeMasked
from gentok.samplers.draws import check_finite
from gentok.samplers.stepwise import StepState, StepwiseSampler
from gentok.settings import NonNegativeFloat, PositiveInt

__all__ = ["ResGenSampler", "shallowest"]


def shallowest(masked: Tensor, wanted: Tensor) -> Tensor:
    """As many masked cells of each position as are wanted, the shallowest.

    Args:
        masked: bool [B, K, N].
        wanted: bool [B, K, N], some of the masked cells.

    Returns:
        Tensor: bool [B, K, N].
    """
    return masked & (masked.cumsum(1) <= wanted.sum(1, keepdim=True))


@dataclass(frozen=True)
class ResGenSampler(StepwiseSampler, id="sampler/resgen"):
    """ResGen's decoding; for further settings see StepwiseSampler. Temperature and filters act on the
    components' weights.

    Args:
        steps: network calls at most, T, however many levels there are.
        vector_temperature: >= 0, of the vector inside its component; None: the temperature of the components.
    """

    requires = CumulativeMasked

    steps: PositiveInt = 16
    vector_temperature: NonNegativeFloat | None = None

    def step(self, state: StepState) -> Tensor:
        request, tokens = state.request, state.request.tokens
        mixture = request.model.mixture(tokens, request.condition)
        request.network_calls.add(request.model, tokens.batch * state.masked.shape[2])
        asked = state.masked.any(1)  # the mixtures of other positions are unspecified
        component = request.choose(self.filter(mixture.logits.masked_fill(~asked[..., None], 0.0)), request.rng)
        z = mixture.draw(component, request.rng, self.temperature if self.vector_temperature is None else self.vector_temperature)
        check_finite(z.abs().amax(-1).masked_fill(~asked, 0.0), request.rng, "vector")
        filled = request.model.requantize(z, tokens).codes
        confidence = mixture.width * mixture.unit.double().log() - mixture.nats(z).double()
        return torch.where(shallowest(state.masked, self.kept(confidence[:, None], state)), filled, tokens.codes)
