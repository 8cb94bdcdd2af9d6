"""Released weights in gentok's own VQGAN: the names of a release's tensors, and a tokenizer that reads them.

A subclass says what its release calls the layers of the two networks (`layers`, `of_a_block`) and what lies outside of them (`outside`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from gentok.codebooks.vq import VQ
from gentok.interfaces import Codebook, LocalPath, Loss
from gentok.nn.autoencoder import ConvOptions, ConvSettings
from gentok.nn.released import fill, read_state
from gentok.settings import PositiveInts
from gentok.tokenizers.vqgan import VQGAN

__all__ = [
    "QKV", "ConvolutionalVQGAN", "ReleasedVQGAN", "count_as_used", "llamagen_layers", "network_sources", "projections", "taming_layers",
]  # fmt: skip

ENDS = {"stem": "conv_in", "norm": "norm_out", "head": "conv_out"}
"""What every descendant of the published VQGAN calls the two ends of its networks."""
QKV = {"skip": ("nin_shortcut",), "qkv": ("q", "k", "v"), "out": ("proj_out",)}
"""Layers of a residual block or of attention that have other names there: queries, keys and values by a layer each."""


def taming_layers(settings: ConvSettings, side: str) -> list[str]:
    """What taming-transformers and its descendants call the layers of a network's `body`, in its order. side: encoder or decoder."""
    encoder, stages = side == "encoder", range(len(settings.multipliers))
    arm, lowest = ("down" if encoder else "up"), stages[-1]
    resized = stages[: settings.halvings] if encoder else stages[len(stages) - settings.halvings :]
    middle = ["mid.block_1", *(["mid.attn_1"] if settings.attention else []), "mid.block_2"]
    names = []
    for stage in stages if encoder else reversed(stages):
        for block in range(settings.blocks_of(side)):
            names.append(f"{arm}.{stage}.block.{block}")
            if settings.stage_attention and stage == lowest:
                names.append(f"{arm}.{stage}.attn.{block}")
        if stage in resized:
            names.append(f"{arm}.{stage}.{arm}sample")
    return [*names, *middle] if encoder else [*middle, *names]


def llamagen_layers(settings: ConvSettings, side: str) -> list[str]:
    """What LlamaGen and TokenFlow call them: resolutions in the order in which a network reaches them, and the middle by numbers."""
    stages, encoder = range(len(settings.multipliers)), side == "encoder"
    lowest, last = (stages[-1] if encoder else 0), stages[-1]
    names = []
    for stage in stages:
        for block in range(settings.blocks_of(side)):
            names.append(f"conv_blocks.{stage}.res.{block}")
            if settings.attention and stage == lowest:
                names.append(f"conv_blocks.{stage}.attn.{block}")
        if stage != last:
            names.append(f"conv_blocks.{stage}.{'down' if encoder else 'up'}sample")
    middle = [f"mid.{i}" for i in range(3 if settings.attention else 2)]
    return [*names, *middle] if encoder else [*middle, *names]


def projections() -> dict[str, str]:
    """The codebook's projections -> the convolutions over one cell that a release has around its codebook."""
    around = {"in": "quant_conv", "out": "post_quant_conv"}
    return {f"codebook.project_{way}.{t}": f"{conv}.{t}" for way, conv in around.items() for t in ("weight", "bias")}


def network_sources(
    keys: Iterable[str], own: str, released: str, layers: Sequence[str], of_a_block: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Own names of a network's tensors and the released ones that they are made of.

    Args:
        keys: own names of tensors; those of other parts are passed over.
        own: where the network lies here.
        released: where it lies in the release.
        layers: the released names of its `body`, in its order.
        of_a_block: own names of layers of a block -> the released ones, one below the other, where they differ.
    """
    names = ENDS | {f"body.{i}": name for i, name in enumerate(layers)}
    for key in keys:
        if not key.startswith(f"{own}."):
            continue
        place, _, tensor = key.removeprefix(f"{own}.").rpartition(".")
        if place in names:
            yield key, (f"{released}.{names[place]}.{tensor}",)
        else:
            at, _, layer = place.rpartition(".")
            yield key, tuple(f"{released}.{names[at]}.{part}.{tensor}" for part in of_a_block.get(layer, (layer,)))


def count_as_used(codebook: Codebook) -> None:
    """A release does not know how often a row is used: all alike, so that none is taken for dead."""
    for book in codebook.modules():
        if isinstance(book, VQ) and not book.usage.is_meta:
            book.usage.fill_(1.0)
            book.started.fill_(True)


class ReleasedVQGAN(VQGAN):
    """A VQGAN with released weights, or to be trained. A bundle holds the weights, so its configuration names no file.

    Attributes:
        model: the model's name, for messages.
        files, known, released_by: as in gentok.nn.released.read_state.
        of_a_block: own names of layers of a block -> the released ones, one below the other, where they differ.
        ignored: released tensors that may be there and are not needed.
    """

    model: ClassVar[str]
    files: ClassVar[Sequence[str]]
    known: ClassVar[re.Pattern[str]]
    released_by: ClassVar[str]
    of_a_block: ClassVar[Mapping[str, tuple[str, ...]]] = QKV
    ignored: ClassVar[Sequence[str]] = ()

    def __init__(
        self,
        codebook: Codebook,
        media_shape: PositiveInts,
        weights: LocalPath | None = None,
        losses: Loss | None = None,
        **networks: ConvOptions,
    ):
        """
        Args:
            codebook: of the release's kind.
            media_shape: (C, H, W) of the data.
            weights: a released file, or the folder that holds it; None: random weights.
            losses: (reconstruction, media) -> {name: weighted scalar}, for training.
            networks: as in gentok.nn.autoencoder.ConvSettings.

        Raises:
            FileNotFoundError: there are no weights.
            ValueError: the weights are of another model, or the stride does not divide the height and the width.
        """
        super().__init__(codebook, media_shape, losses, **networks)
        if weights is not None:
            settings = self.settings_class(**networks)
            state = read_state(weights, self.model, self.files, self.known, self.released_by)
            state = self.check_release(state, weights, settings)
            fill(self, dict(self._sources(settings)), state, weights, self.model, self.ignored)
            self.put()
            count_as_used(self.codebook)
            self.needs_training = False

    def layers(self, settings: ConvSettings, side: str) -> list[str]:
        """The released names of the layers of a network's `body`, in its order. side: encoder or decoder."""
        return taming_layers(settings, side)

    def outside(self) -> dict[str, str]:
        """Own tensors that lie outside of the two networks' layers -> the released ones."""
        raise NotImplementedError

    def check_release(self, state: dict[str, Tensor], path: LocalPath, settings: ConvSettings) -> dict[str, Tensor]:
        """The tensors that are read. Raises ValueError where more can be said of a file that does not fit than which one is missing."""
        return state

    def put(self) -> None:
        """What is done once all tensors are in their place."""

    def _sources(self, settings: ConvSettings) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Own names and the released tensors that they are made of."""
        outside = self.outside()
        for own, released in outside.items():
            yield own, (released,)
        for side in ("encoder", "decoder"):
            keys = [key for key in self.state_dict() if key not in outside]
            yield from network_sources(keys, side, side, self.layers(settings, side), self.of_a_block)

    def portable(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {**config, "weights": None} if "weights" in config else dict(config)


class ConvolutionalVQGAN(ReleasedVQGAN):
    """One whose release has networks of its own, of one pixel per square, that convolutions alone make.

    Attributes:
        encoder_class, decoder_class: both take channels, the codebook's width, the network's width, multipliers and blocks.
    """

    encoder_class: ClassVar[type[nn.Module]]
    decoder_class: ClassVar[type[nn.Module]]

    def networks(self, channels: int, codebook: Codebook, settings: ConvSettings) -> tuple[nn.Module, nn.Module]:
        if settings.attention or settings.patch != 1 or settings.code_conv:
            name = str(self.component_id).rpartition("/")[2]
            raise ValueError(f"{name} has patch=1, and neither attention nor convolutions around its codebook (code_conv=0)")
        sizes = (settings.multipliers, settings.blocks)
        encoder = self.encoder_class(channels, codebook.in_width, settings.width, *sizes)
        return encoder, self.decoder_class(channels, codebook.width, settings.decoder_width or settings.width, *sizes)
