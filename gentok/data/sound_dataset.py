"""What folders, manifests and shards of sounds share: sets of waves at one rate, of unequal length.

At the start only headers are read; sounds are decoded, mixed and resampled batch by batch, in the loader's workers, or once into memory.
Training sees pieces of `crop` seconds: where a longer sound's piece begins is drawn from the draw's own number, so that it is the same on
every process and after a resume; a shorter sound is followed by silence, which counts as a part of the piece. Held-out sounds are whole.
Batches of whole sounds are padded with zeros at the end, and say how long each row is.
What becomes of sounds that cannot be read: see gentok.data.indexed_dataset.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gentok.data.datasets import locate
from gentok.data.file_index import FileIndex, MediaType, split
from gentok.data.indexed_dataset import IndexedDataset
from gentok.data.labels import Conditions, spec_of
from gentok.data.progress import progress
from gentok.data.sound_files import SOUND_SUFFIXES, FullScale, normalized, part_step, read_sound, resampled_length, sound_size
from gentok.data.source_options import Found, LabelOptions, MediumOptions, divide
from gentok.interfaces import MediaData
from gentok.rng import RowRNG
from gentok.settings import NonNegativeInt, PositiveFloat, PositiveInt
from gentok.types import Batch

__all__ = ["SOUNDS", "SoundData", "SoundDataset", "SoundOptions"]

SOUNDS = MediaType("sound", "sounds", SOUND_SUFFIXES, sound_size)
"""Their header says (samples, rate in Hz, channels); of some formats only the whole file tells."""
_log = logging.getLogger("gentok.data")


@dataclass(frozen=True)
class SoundOptions(MediumOptions):
    """Options of sounds; in memory they are float32.

    Attributes:
        sample_rate: Hz that the model hears; sounds of another rate are resampled.
        channels: 1 mixes down, 2 is stereo.
        crop: seconds of the piece that training sees of an item, begun at random; null: whole items.
        longest: seconds after which whole items are cut (held-out ones, and training ones without crop); null: nowhere.
        normalize: null, peak or rms (gentok.data.sound_files.normalized), of what is read.
        crop_seed: where pieces begin.

    Raises:
        ValueError: one of them is out of its range.
    """

    sample_rate: PositiveInt = 16000
    channels: Literal[1, 2] = 1
    crop: PositiveFloat | None = 1.0
    longest: PositiveFloat | None = None
    normalize: Literal["peak", "rms"] | None = None
    crop_seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, seconds in (("crop", self.crop), ("longest", self.longest)):
            if seconds is not None and not seconds * self.sample_rate >= 1:
                raise ValueError(f"data.{key}={seconds}: seconds, or null")

    def samples(self, seconds: float | None) -> int | None:
        """Seconds in samples; None stays None."""
        return None if seconds is None else round(seconds * self.sample_rate)


class SoundData(MediaData):
    """Two sets of sounds.

    Args:
        place: where the sounds are.
        source: the options of a source, which knows how to find them.
        given: the values of the fields of `source` and of SoundOptions.

    Attributes:
        kind: what the description of the sets calls them.
        media_shape: (channels, longest_item).
        longest_item: samples of the longest sound of either split, after the cut at `longest` seconds: what a whole item needs at most.
        band_limit: Hz above which some of the sounds hold nothing, since they were recorded at a lower rate; None: there are none such.

    Raises:
        ValueError: nothing is left for a split, or sounds have more channels than can be made into stereo.
    """

    kind: ClassVar[str]

    def __init__(self, place: Any, source: type[LabelOptions], given: Mapping[str, Any]):
        finder, options = divide(given, source, SoundOptions)
        found: Found = finder.find(place, SOUNDS)
        parts = split(found.index, found.held_out, options.max_broken, options.split_seed)
        if options.channels == 2:
            _check_channels(parts)
        self.sample_rate = options.sample_rate
        self.condition_spec = spec_of(parts, found.classes, found.caption_length, found.text_encoder)
        conditions, scale = {name: Conditions(self.condition_spec, part, found.text_encoder) for name, part in parts.items()}, FullScale()
        self.train, self.held_out = (
            SoundDataset(self.kind, name, part, conditions[name], options, scale, cropped=name == "train") for name, part in parts.items()
        )
        self.longest_item = max(self.train.longest_item, self.held_out.longest_item)
        self.media_shape = (options.channels, self.longest_item)
        lowest = min(size[1] for part in parts.values() for size in part.known_sizes)
        self.band_limit = lowest / 2 if lowest < self.sample_rate else None
        if self.band_limit is not None:
            _log.warning(
                "some of the sounds in %s were recorded at %d Hz: they are resampled to %d Hz, and hold nothing above %g Hz",
                found.index.where, lowest, self.sample_rate, self.band_limit,
            )  # fmt: skip


def _check_channels(parts: dict[str, FileIndex]) -> None:
    for part in parts.values():
        for i, size in enumerate(part.known_sizes):
            if size[2] > 2:
                raise ValueError(
                    f"{part.source.name(i)} has {size[2]} channels, from which 2 cannot be made: set data.channels=1 to mix them down"
                )


class SoundDataset(IndexedDataset):
    """The sounds of one split: draws -> Batch(media float32 [B, C, T], lengths int64 [B] in samples).

    Args:
        kind, split, index, conditions: those of IndexedDataset.
        options: what becomes of the sounds.
        full_scale: clips them; one for both splits, so that a thing is said once.
        cropped: whether batches hold pieces of options.crop seconds.

    Attributes:
        crop: samples of every piece, silence behind short sounds included; None: whole sounds, padded to the longest of the batch.
        lengths: int64 [n], samples of the whole sounds, cut after options.longest seconds.
        media_shape: (C, longest_item).
        sample_rate: Hz.
    """

    def __init__(
        self,
        kind: str,
        split: str,
        index: FileIndex,
        conditions: Conditions,
        options: SoundOptions,
        full_scale: FullScale | None = None,
        cropped: bool = False,
    ):
        longest = options.samples(options.longest)
        settings = [options.sample_rate, options.channels, options.normalize, longest]
        super().__init__(kind, split, index, conditions, options.max_broken, settings)
        self.options, self.sample_rate = options, options.sample_rate
        self.crop = options.samples(options.crop) if cropped else None
        if self.crop is not None:
            self.description |= {"crop": self.crop, "crop_seed": options.crop_seed}
        sizes = index.known_sizes
        self._rates = torch.tensor([size[1] for size in sizes], dtype=torch.int64)
        self._full = torch.tensor([resampled_length(size[0], size[1], self.sample_rate) for size in sizes], dtype=torch.int64)
        self.lengths = self._full if longest is None else self._full.clamp(max=longest)
        cut = int((self.lengths < self._full).sum())
        if cut and self.crop is None:
            _log.warning("%d of %d sounds in %s are longer than data.longest and are cut there", cut, len(self), index.where)
        self._full_scale = full_scale or FullScale()
        self._memory: tuple[Tensor, Tensor] | None = None
        if options.in_memory:
            self._load()

    @property
    def media_shape(self) -> tuple[int, int]:
        return self.options.channels, self.longest_item

    @property
    def longest_item(self) -> int:
        """Samples of the longest sound, whole (up to data.longest)."""
        return int(self.lengths.max())

    def whole(self) -> SoundDataset:
        """The same sounds without a crop: what is encoded once, to be kept."""
        if self.crop is None:
            return self
        other = copy.copy(self)
        other.crop = None
        other.description = {key: value for key, value in self.description.items() if key not in ("crop", "crop_seed")}
        return other

    def _load(self) -> None:
        kept = self.lengths if self.crop is None else self._full
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), kept.cumsum(0)])
        memory = torch.zeros(self.options.channels, int(offsets[-1])).share_memory_()
        with progress("decoding", len(self), "sounds") as advance:
            for i in range(len(self)):
                wave = self.attempt(i, 0, int(kept[i]))
                if wave is not None:
                    memory[:, int(offsets[i]) : int(offsets[i]) + wave.shape[1]] = wave
                advance(1)
        self._memory = (memory, offsets)

    def decode(self, i: int, start: int, samples: int) -> Tensor:
        """float32 [C, <= samples]: a part of sound i, before it is normalized."""
        if self._memory is not None:
            memory, offsets = self._memory
            first, last = int(offsets[i]) + start, int(offsets[i + 1])
            return memory[:, first : min(last, first + samples)]
        return read_sound(self.source.open(i), self.sample_rate, self.options.channels, start, samples, self.source.name(i))

    def all_of(self, i: int) -> tuple[int, int]:
        return 0, int(self._full[i])

    def _part(self, i: int, u: float) -> tuple[int, int]:
        """(start, samples) of what is read of sound i. u: in (0, 1), where in it the piece begins."""
        if self.crop is None:
            return 0, int(self.lengths[i])
        length = int(self._full[i])
        if length <= self.crop:
            return 0, length
        step = part_step(int(self._rates[i]), self.sample_rate)
        return int(u * ((length - self.crop) // step + 1)) * step, self.crop

    def __getitems__(self, draws: Sequence[int]) -> Batch:
        index, epoch = locate(draws, len(self))
        place = RowRNG.of(self.options.crop_seed, epoch * len(self) + index).fork("crop").uniform(1)[:, 0].tolist()
        if self._memory is None:
            self.source.ahead(index.tolist())
        rows = [self.readable(i, functools.partial(self._part, u=u)) for i, u in zip(index.tolist(), place)]
        lengths = torch.tensor([self.crop or wave.shape[1] for _, wave in rows], dtype=torch.int64)
        media = torch.zeros(len(rows), self.options.channels, max(lengths.tolist(), default=0))
        for row, (i, wave) in zip(media, rows):
            row[:, : wave.shape[1]] = self._full_scale(normalized(wave, self.options.normalize), self.source.name(i))
        index = torch.tensor([i for i, _ in rows], dtype=torch.int64)
        return Batch(media, index, self.condition(index), lengths=lengths)
