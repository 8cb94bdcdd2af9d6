"""Consistency of ids under re-encoding: what was decoded from ids is encoded to these ids again.

    x' = decoder(q),  q = sum of the rows of ids c;    loss = weight * mean |encoder(damage(x')) - q|^2,    before quantising

Jovanović et al., "Watermarking Autoregressive Image Generation", arXiv 2506.16349: reverse cycle consistency. The
gradient goes to the decoder, which learns to make media that are encoded as they were meant, and to the encoder; ids
and rows are targets. Parts that the run freezes (`freeze`) stay as they are, and the gradient passes through them:

    freeze=[encoder, codebook]   the decoder alone learns; ids mean what they meant, so that generators of them stay usable
    freeze=[codebook], or []     the encoder learns too, and gives back more; but both networks come to mean something else
                                 by the same rows (docs/results/watermarks.md), so generators are trained anew

Deviations: the paper tunes a replica of the encoder, beside the first one, which gives the ids in training. Here one
encoder gives the ids and finds them again, and keeps to its codebook by the tokenizer's own losses: a bundle has one
tokenizer.
"""

from __future__ import annotations

from torch import Tensor

from gentok.interfaces import Augmentation, Consistency, Tokenizer
from gentok.rng import RowRNG
from gentok.settings import NonNegativeFloat
from gentok.types import TokenizerOutput, Tokens

__all__ = ["Reencoding"]


class Reencoding(Consistency, id="consistency/reencoding"):
    """The term "reencoding": the squared distance of what is encoded again from the vectors that it was decoded from."""

    def __init__(self, weight: NonNegativeFloat = 1.0, damage: Augmentation | None = None):
        """
        Args:
            weight: of the mean over cells and channels.
            damage: what happens to the decoded media before they are encoded; None: nothing.
        """
        self.weight, self.damage = weight, damage

    def __call__(self, tokenizer: Tokenizer, output: TokenizerOutput, lengths: Tensor | None, rng: RowRNG) -> dict[str, Tensor]:
        name, tokens, made = type(tokenizer).__name__, output.tokens, output.reconstruction
        if made is None or not made.requires_grad or tokenizer.codebook is None or not isinstance(tokens, Tokens):
            reason = "has no codebook" if tokenizer.codebook is None else "makes no reconstruction with a gradient"
            raise ValueError(f"re-encoding needs media that were decoded from ids, and {name} {reason}: set consistency=none")
        made = made.clamp(-1, 1)  # as `decode` does
        if self.damage is not None:
            made = self.damage(made, rng).clamp(-1, 1)
        try:
            found = tokenizer.codebook.unquantized(tokenizer.prequantized(made, lengths))
        except TypeError as error:
            raise ValueError(f"re-encoding compares vectors with rows of the codebook: {error}; set consistency=none") from None
        distance = (found - tokenizer.codebook.lookup(tokens.codes).detach()).square().mean(1)  # [B, M]
        if tokens.lengths is None:
            return {"reencoding": self.weight * distance.mean()}
        present = tokens.present.any(1)
        return {"reencoding": self.weight * (distance * present).sum() / present.sum().clamp(min=1)}
