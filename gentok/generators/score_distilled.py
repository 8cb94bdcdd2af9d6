"""Distilled decoding by scores: a one-pass student whose distribution, not its map from noise, becomes the teacher's (Liu et al.,
arXiv 2510.21003; DD2).

The student of gentok/generators/distilled.py learns which codes its teacher makes of which noise. Which noise becomes which item does not
matter, so that map asks for more than is needed. Here the student draws items of its own, one pass each, and every code is judged given
the codes before it, by the teacher and by a second network, the guide, which models the student's own items. For code i with vector q_i

    x_t = (1 - t) q_i + t e,      t uniform in (0, 1), e standard normal, both of the position alone
    gradient of q_i = t^2 / (1 - t) (score_guide(x_t, t | codes before i) - score_teacher(x_t, t | codes before i))

which is the gradient of KL(student || teacher) of noised vectors, averaged over times (distribution matching distillation: Yin et al.,
arXiv 2311.18828, equation 7). The weight makes it the difference of two mean code vectors, what x_t may stand for by the guide
and by the teacher. Both scores have a closed form in p(code i | codes before), of the guide and of the teacher (gentok/flow/codewords.py).
Given the codes before, each gradient is 0 where the student's distribution is the teacher's; the KL of items is the sum of those of codes.

The guide learns by cross-entropy of the student's codes. It begins as the teacher, and learns alone in the first part of a run. A code is
the most probable one, as in sampling, and its vector has the gradient of the mean vector of the student's logits (straight through). No
trajectories and no data are needed, only conditions. Network and sampler are those of `distilled`; one pass is trained, not two.

Deviations: the paper's student gives vectors, and its guide is a network that is trained to predict their score; codes have one in closed
form. Both networks are updated in every step, by one optimizer: neither loss has a gradient for the other's weights. The gradient is not
divided by the distance of the mean from q_i, as in arXiv 2311.18828, equation 8: an item has all times in it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from gentok.flow.guidance import combine
from gentok.flow.path import interpolate
from gentok.generators.distilled import DistilledTransformer
from gentok.interfaces import Codebook, Generator
from gentok.nn.linear import activations, product
from gentok.nn.token_transformer import full_precision, token_nll
from gentok.precision import no_autocast
from gentok.rng import RowRNG
from gentok.settings import Fraction, PositiveFloat
from gentok.types import Condition, ConditionSpec, LossOutput, Tokens, TokenSpec

__all__ = ["ScoreDistilledTransformer"]


class ScoreDistilledTransformer(DistilledTransformer, id="generator/score_distilled"):
    """A distilled generator that goes on by its teacher's conditional scores.

    Args:
        spec, condition_spec, codebook: as of DistilledTransformer.
        guide_pace: the guide's learning rate in student's ones: it must know what the student does now.
        guide_alone: share of the training in which the guide learns and the student stays as it is.
        options: those of DistilledTransformer; regression is not used.

    Raises:
        ValueError: as DistilledTransformer.
    """

    taught = False
    goes_on_from = "a student of generator=distilled"

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        codebook: Codebook | None = None,
        *,
        guide_pace: PositiveFloat = 10.0,
        guide_alone: Fraction = 0.2,
        **options: Annotated[Any, DistilledTransformer],
    ):
        super().__init__(spec, condition_spec, codebook, **options)
        self.guide_alone = guide_alone
        self.guide = copy.deepcopy(self.teacher).requires_grad_(True)
        self.guide.pace = guide_pace  # type: ignore[assignment]
        self.regress.requires_grad_(False)
        self.train()

    def take_inner(self, inner: Generator) -> None:
        super().take_inner(inner)
        self.guide.load_state_dict(inner.state_dict())

    def begin_as(self, trained: Generator) -> Mapping[str, Tensor]:
        """As Generator.begin_as: a student of this teacher. The guide begins as the teacher, or as it was where `trained` has one."""
        if not isinstance(trained, DistilledTransformer):
            raise ValueError(f"is a {type(trained).__name__}; this generator goes on from {self.goes_on_from}")
        theirs, ours = trained.teacher.state_dict(), self.teacher.state_dict()
        if theirs.keys() != ours.keys() or not all(torch.equal(ours[name], value.to(ours[name])) for name, value in theirs.items()):
            raise ValueError("learned from another teacher: generator.teacher.ckpt must be the one that it has inside")
        return {**{f"guide.{name}": value for name, value in theirs.items()}, **trained.state_dict()}

    def judged(self, codes: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """What is expected of every code, given those before it.

        Args:
            codes: int64 [B, 1, N].
            condition: B rows.

        Returns:
            Logits float [B, N, V]: the teacher's with its guidance, and the guide's, which alone has a gradient.
        """
        tokens = Tokens(codes, self.spec)
        with torch.no_grad():
            known = self.teacher(tokens, condition)
            if self.guidance != 1:
                known = combine(known, self.teacher(tokens, condition.null()), self.guidance)
        return full_precision(known[:, :, 0]), full_precision(self.guide(tokens, condition)[:, :, 0])

    def direction(self, codes: Tensor, known: Tensor, guessed: Tensor, rng: RowRNG) -> Tensor:
        """The gradient of code vectors.

        Args:
            codes: int64 [B, N], >= 0.
            known, guessed: as `judged` gives them.
            rng: B streams, of times and noise.

        Returns:
            float [B, N, C], averaged over nothing.
        """
        flow = self._flow(codes.device, known.dtype)
        t = rng.fork("time").uniform(codes.shape[1])[..., None].to(known)
        points = interpolate(flow.codewords[codes], rng.fork("point").normal(codes.shape[1], self.channels).to(known), t)
        with no_autocast(codes.device):
            return flow.mean(points, t, guessed.detach()) - flow.mean(points, t, known)

    def loss(self, tokens: Tokens, condition: Condition, rng: RowRNG) -> LossOutput:
        """In training the guide's mean nats of the student's codes, plus half of the mean squared `direction`, whose gradient is that
        direction; outside of it the divergence.

        Args:
            tokens: B items, of which no code is read.
            condition: B rows.
            rng: for the student's noise, times, and dropout in training mode.

        Returns:
            LossOutput without nats of rows; terms: guide_nll; divergence, an estimate of KL(student || teacher) in nats of a code, too low
            by what the guide has not learned yet; direction, the mean square.
        """
        unknown = Tokens.unknown(self.spec, tokens.batch, tokens.lengths, tokens.codes.device)
        noise, there = self.noise(rng.fork("noise")), unknown.masked[:, 0]
        hidden = self._hidden(unknown.codes, noise, condition, rng if self.training else None)
        logits = full_precision(product(activations(hidden), self.head.weight))
        codes, count = logits.argmax(-1), there.sum()
        known, guessed = self.judged(torch.where(there, codes, unknown.codes[:, 0])[:, None], condition)

        def mean(values: Tensor) -> Tensor:
            return values.masked_fill(~there, 0.0).sum() / count.clamp(min=1)

        nll = mean(token_nll(guessed, codes, there))
        divergence = mean(token_nll(known, codes, there)) - nll.detach()
        direction = self.direction(codes, known, guessed, rng)
        soft = logits.softmax(-1) @ self._tables.on(codes.device, logits.dtype).codewords
        pull = mean(0.5 * (soft - (soft - direction).detach()).square().mean(-1))
        terms = {"guide_nll": nll.detach(), "divergence": divergence, "direction": 2 * pull.detach()}
        if not self.training:
            return LossOutput(divergence, count, None, terms)
        return LossOutput(nll + float(self.progress >= self.guide_alone) * pull, count, None, terms)
