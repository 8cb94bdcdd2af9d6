"""The encoder and the decoder of a tokenizer as programs of torch.export, for any batch and length, and how far a file is from them.

Nothing is checked inside a program (gentok.precision.exporting): media that are not finite, or codes beyond the vocabulary, are whatever
the runtime makes of them.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gentok.errors import ConfigError
from gentok.interfaces import Tokenizer
from gentok.types import Frames, Latents, Tokens, TokenSpec

__all__ = ["PARTS", "Part", "hop_of", "part_of", "quietly", "reason"]

PARTS = ("encoder", "decoder")
_UNITS = 24
"""The length that is traced, and stands for all."""
_DIFFERENT = {"codes": 0.01, "media": 1e-3, "latents": 1e-3}
"""What a file may differ by at most: the share of codes, which near ties may turn; the largest difference of numbers."""


class Encoder(nn.Module):
    """media float [B, C, ...] -> codes int64 [B, K, N], or latents float [B, D, N]."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, media: Tensor) -> Tensor:
        tokens = self.tokenizer.encode(media)
        return tokens.values if isinstance(tokens, Latents) else tokens.codes


class Decoder(nn.Module):
    """codes int64 [B, K, N], or latents float [B, D, N] -> media float32 [B, C, ...]."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, codes: Tensor) -> Tensor:
        spec = self.tokenizer.spec
        return self.tokenizer.decode(Tokens(codes, spec) if spec.vocab_sizes else Latents(codes, spec))


@dataclass(frozen=True)
class Part:
    """One of the two ways through a tokenizer.

    Attributes:
        name: "encoder" or "decoder".
        module: computes it.
        takes, gives: what goes in and what comes out: media, codes or latents.
        item: (C, ...) of the media.
        per_unit: of sounds, how long the last axis of what goes in and of what comes out is for one unit of length; None: of images.
        units: the length that is fixed; None: it may be any.
    """

    name: str
    module: nn.Module
    takes: str
    gives: str
    item: tuple[int, ...]
    per_unit: tuple[int, int] | None
    units: int | None

    @property
    def whose(self) -> str:
        """For messages."""
        return f"the {self.name} of {type(self.module.tokenizer).__name__}"

    @property
    def hint(self) -> str:
        """The end of a message: what may help, since an LSTM is unrolled over one length."""
        loose = self.per_unit is not None and self.units is None
        return "; with frames=NUMBER it may be exported for sounds of one length" if loose else ""

    def sizes(self, per_unit: int | None, dims: int) -> list[int | str]:
        """What the sizes of an array are called that vary, 0 for the others. per_unit: its own."""
        loose = per_unit is not None and self.units is None
        length = ("frames" if per_unit == 1 else f"{per_unit}*frames") if loose else 0
        return ["batch", *[0] * (dims - 2), length]

    @torch.no_grad()
    def example(self, batch: int = 2, units: int = _UNITS) -> Tensor:
        """What the part takes: noise, or the codes of noise. units: of length, where it is not fixed."""
        item = self.item if self.per_unit is None else (self.item[0], max(self.per_unit) * (self.units or units))
        media = torch.rand(batch, *item, generator=torch.Generator().manual_seed(batch)) * 2 - 1
        return media if self.name == "encoder" else Encoder(self.module.tokenizer)(media)

    def traced(self) -> Any:
        """The part as a program of torch.export. Raises ConfigError where it does what cannot be traced."""
        sizes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
        example = self.example()
        if self.per_unit is not None and self.units is None:
            unit = torch.export.Dim("frames", min=2, max=1 << 24)
            sizes[example.dim() - 1] = self.per_unit[0] * unit if self.per_unit[0] > 1 else unit
        with quietly(), torch.no_grad():
            try:
                return torch.export.export(self.module, (example,), dynamic_shapes=(sizes,), strict=False)
            except Exception as error:  # whatever a network does that torch.export does not know, the answer is the same
                raise ConfigError(f"{self.whose} cannot be exported: {reason(error)}{self.hint}") from error

    @torch.no_grad()
    def compared(self, run: Callable[[Tensor], Tensor]) -> float:
        """How far what was made of the part is from it, on batches of one and of three, of other lengths than the traced one.

        Args:
            run: computes it.

        Returns:
            The share of codes that differ, or the largest difference of numbers.

        Raises:
            ConfigError: it does not run, or is too far.
        """
        far, what = 0.0, self.difference
        for batch, units in ((1, 17), (3, 40)):
            given = self.example(batch, units)
            expected = self.module(given)
            try:
                found = run(given)
            except Exception as error:  # of the runtime
                raise ConfigError(f"{self.whose} was exported to what does not run: {reason(error)}{self.hint}") from error
            if found.shape != expected.shape or found.dtype != expected.dtype:
                shapes = f"{tuple(found.shape)} where {tuple(expected.shape)} is right"
                raise ConfigError(f"{self.whose} was exported to something else: {shapes}{self.hint}")
            apart = (found != expected).double().mean() if self.gives == "codes" else (found - expected).abs().max()
            far = max(far, float(apart))
        if not far <= _DIFFERENT[self.gives]:
            raise ConfigError(f"{self.whose} was exported to something else: {what} {far:.3g}, allowed are {_DIFFERENT[self.gives]}")
        return far

    @property
    def difference(self) -> str:
        """What `compared` counts."""
        return "share of codes that differ on noise:" if self.gives == "codes" else "largest difference on noise:"


def part_of(tokenizer: Tokenizer, name: str, frames: int | None = None) -> Part:
    """A part of a tokenizer, which stays as it is.

    Args:
        tokenizer: on the CPU, in eval mode.
        name: "encoder" or "decoder".
        frames: of sounds, the one length; None: any.

    Raises:
        ConfigError: it is none of networks alone, or has no items of so many frames.
    """
    tokenizer, spec, kind = copy.copy(tokenizer), tokenizer.spec, type(tokenizer).__name__
    if tokenizer.written_condition.parts:
        raise ConfigError(f"{kind} writes more than media into its codes, and cannot be exported: export the tokenizer inside it")
    if name == "decoder" and tokenizer.generative:
        raise ConfigError(f"the decoder of {kind} draws what it makes, step by step, and cannot be exported: export parts=[encoder]")
    per_unit, units, sound = None, None, isinstance(spec.grid, Frames)
    if frames is not None and (not sound or frames < 1 or frames % spec.frame_multiple):
        raise ConfigError(f"frames={frames} is " + (f"not a multiple of {spec.frame_multiple}" if sound else "of sounds: leave it out"))
    if isinstance(spec.grid, Frames):
        tokenizer.spec = replace(spec, grid=replace(spec.grid, n=None))  # of any length
        per_unit, units = (hop_of(spec) * spec.frame_multiple, spec.frame_multiple), frames and frames // spec.frame_multiple
    codes, item = "codes" if spec.vocab_sizes else "latents", tuple(spec.media_shape or ())
    if name == "encoder":
        return Part(name, Encoder(tokenizer).eval(), "media", codes, item, per_unit, units)
    return Part(name, Decoder(tokenizer).eval(), codes, "media", item, per_unit and per_unit[::-1], units)


def hop_of(spec: TokenSpec) -> int:
    """Samples of a frame of sound."""
    assert isinstance(spec.grid, Frames) and spec.sample_rate is not None
    return round(spec.sample_rate / spec.grid.rate_hz)


def reason(error: BaseException) -> str:
    """The beginning of what a library says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines)[:240]


@contextmanager
def quietly() -> Iterator[None]:
    """Without the notes of torch's exporters, which are for their own developers."""
    before = logging.root.manager.disable
    try:
        logging.disable(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
