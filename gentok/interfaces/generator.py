"""What a generator is. Its capabilities, which are all that a sampler may use, are in
gentok/generators/base.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from gentok.interfaces.component import Component
from gentok.rng import RowRNG
from gentok.types import Condition, ConditionSpec, Latents, LossOutput, Tokens, TokenSpec

__all__ = ["Generator"]


class Generator(nn.Module, Component):
    """A model of tokens.

    Attributes:
        spec: the tokens that it models.
        condition_spec: what it is conditioned on.
        follows_grammar: whether ids that a grammar of the tokens forbids have probability 0.
        models_latents: whether it models Latents too, where the tokenizer has no codebook.
        has_nll: whether `nll_bound` is there; else held-out items are measured by the loss.
        progress: share of the training that is over, in [0, 1]; set before every step, for losses that change
            over the run.
        condition_dropout: share of training rows whose condition becomes null, which guidance needs.
        needs_training: False where it was built with weights that others trained.
        inner: keys of its configuration that hold another, trained generator of the same tokens, which its bundle then holds. In a
            training run each is given as {ckpt: BUNDLE}.
    """

    spec: TokenSpec
    condition_spec: ConditionSpec
    follows_grammar: ClassVar[bool] = False
    models_latents: ClassVar[bool] = False
    has_nll: ClassVar[bool] = True
    progress: float = 1.0
    condition_dropout: float = 0.0
    needs_training: bool = True
    inner: ClassVar[tuple[str, ...]] = ()

    def take_inner(self, inner: Generator) -> None:
        """Takes the weights of the trained generator inside, where there is one, before training begins."""

    def portable(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """`config` as it rebuilds this generator anywhere: without the path that its weights were loaded
        from."""
        return {**config, "weights": None} if "weights" in config else dict(config)

    def with_models(self, load: Callable[[str], Any]) -> None:
        """Told once before training how other models are loaded; a generator whose loss needs one, which its configuration names by path,
        loads it then, and keeps it outside of its weights. load: path -> generator."""

    @property
    def own_items(self) -> dict[str, Any] | None:
        """Asked after `with_models`: what the items that it is trained on depend on, where it draws them itself (`draw_items`), before
        training, into the cache of tokens; it can be written as JSON. None: it is trained on the data's."""
        return None

    def draw_items(self, tokens: Tokens, condition: Condition, rng: RowRNG) -> Tokens:
        """An item for each row, in the place of that of the data: `tokens`, codes int64 [B, K, N], given `condition`."""
        raise NotImplementedError

    def loss(self, tokens: Tokens | Latents, condition: Condition, rng: RowRNG) -> LossOutput:
        """The training loss of one batch.

        Args:
            tokens: codes int64 [B, K, N] without UNKNOWN cells; Latents where it `models_latents` and the
                tokenizer encodes to them.
            condition: B rows of `condition_spec`.
            rng: row-wise random numbers; in training mode also for dropout and condition dropout.

        Returns:
            LossOutput: a mean, what it was averaged over, and named terms.
        """
        raise NotImplementedError

    def drop_condition(self, condition: Condition, rng: RowRNG | None) -> Condition:
        """In training mode, and where there is an rng, `condition` with a random share of its rows null; else
        as it is."""
        if not self.training or rng is None or not self.condition_dropout:
            return condition
        return condition.drop(rng.uniform() < self.condition_dropout)

    def check_shape(self, codes: Tensor) -> None:
        """Raises ValueError unless codes [B, K, N] have the levels and positions of `spec`."""
        if codes.shape[1:] != (self.spec.levels, self.spec.positions):
            raise ValueError(
                f"these tokens have {codes.shape[1]} levels x {codes.shape[2]} positions; "
                f"this generator models {self.spec.levels} x {self.spec.positions}"
            )

    def nll_bound(self, tokens: Tokens, condition: Condition, rng: RowRNG, samples: int = 1) -> Tensor:
        """An upper bound of each row's nats, or the nats themselves (see the generator).

        Args:
            tokens, condition: as in `loss`.
            rng: row-wise random numbers, where it is a bound.
            samples: how many random draws it is averaged over, where it is a bound.

        Returns:
            float [B].
        """
        raise NotImplementedError
