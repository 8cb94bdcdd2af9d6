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
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.data.datasets import locate
from gentok.data.file_index import Listing, Medium, split
from gentok.data.indexed_dataset import IndexedDataset
from gentok.data.labels import spec_of
from gentok.data.progress import progress
from gentok.data.sound_files import SOUND_SUFFIXES, normalized, part_step, read_sound, resampled_length, sound_size
from gentok.interfaces import MediaData
from gentok.rng import RowRNG
from gentok.types import Batch, ConditionSpec

__all__ = ["SOUNDS", "SoundData", "SoundDataset"]

SOUNDS = Medium("sound", "sounds", SOUND_SUFFIXES, sound_size)
"""Their header says (samples, rate in Hz, channels); of some formats only the whole file tells."""
_log = logging.getLogger("gentok.data")


@dataclass(frozen=True)
class Form:
    """How waves leave a set: rate in Hz, channels, and what `normalized` does."""

    sample_rate: int
    channels: int
    normalize: str | None


class SoundData(MediaData):
    """media_shape (channels, T), sample_rate, condition_spec, train and held_out, of a Listing and another one, or a share, held out.

    longest_item, T: samples of the longest sound of either split, after the cut at `longest` seconds: what a whole item needs at most.
    band_limit: Hz above which some of the sounds hold nothing, since they were recorded at a lower rate; None where there are none such.
    sample_rate, channels, crop, longest, normalize, ...: see conf/data/sound_*.yaml, where users set them. Raises ValueError with a line.
    """

    def __init__(
        self,
        kind: str,
        listing: Listing,
        held_out: Listing | float,
        *,
        sample_rate: int,
        channels: int,
        crop: float | None,
        longest: float | None,
        normalize: str | None,
        max_broken: float,
        split_seed: int,
        crop_seed: int,
        classes: Sequence[str] | None = None,
        captions: bool = False,
        caption_length: int = 128,
        in_memory: bool = False,
    ):
        if not isinstance(sample_rate, int) or sample_rate < 1:
            raise ValueError(f"data.sample_rate={sample_rate}: Hz, a whole number such as 16000")
        if channels not in (1, 2):
            raise ValueError(f"data.channels={channels}: 1 (mixed down) or 2 (stereo)")
        for key, seconds in (("crop", crop), ("longest", longest)):
            if seconds is not None and not seconds * sample_rate >= 1:
                raise ValueError(f"data.{key}={seconds}: seconds, or null")
        normalized(torch.zeros(1, 0), normalize)  # its complaint is better now than in a worker
        parts = split(listing, held_out, max_broken, split_seed)
        if channels == 2:
            _check_channels(parts)
        self.sample_rate = sample_rate
        self.condition_spec = spec_of(parts, classes, captions, caption_length)
        form, cut = Form(sample_rate, channels, normalize), None if longest is None else round(longest * sample_rate)
        piece = None if crop is None else round(crop * sample_rate)
        self.train, self.held_out = (
            SoundDataset(
                kind, name, part, form, self.condition_spec, max_broken, crop=piece if name == "train" else None, longest=cut,
                crop_seed=crop_seed, in_memory=in_memory,
            )
            for name, part in parts.items()
        )  # fmt: skip
        self.longest_item = max(self.train.longest_item, self.held_out.longest_item)
        self.media_shape = (channels, self.longest_item)
        lowest = min(size[1] for part in parts.values() for size in part.sizes or ())
        self.band_limit = lowest / 2 if lowest < sample_rate else None
        if self.band_limit is not None:
            _log.warning(
                "some of the sounds in %s were recorded at %d Hz: they are resampled to %d Hz, and hold nothing above %g Hz",
                listing.where, lowest, sample_rate, self.band_limit,
            )  # fmt: skip


def _check_channels(parts: dict[str, Listing]) -> None:
    for part in parts.values():
        for i, size in enumerate(part.sizes or ()):
            if size[2] > 2:
                raise ValueError(
                    f"{part.source.name(i)} has {size[2]} channels, from which 2 cannot be made: set data.channels=1 to mix them down"
                )


class SoundDataset(IndexedDataset):
    """The sounds of one split: draws -> Batch(media float32 [B, C, T], lengths int64 [B] in samples).

    crop: samples of every piece, silence behind short sounds included; None: whole sounds, padded to the longest of the batch. longest:
    samples after which whole sounds are cut. media_shape (C, longest_item), sample_rate, longest_item (samples), lengths int64 [n] of the
    whole sounds.
    """

    def __init__(
        self,
        kind: str,
        split: str,
        listing: Listing,
        form: Form,
        condition_spec: ConditionSpec,
        max_broken: float,
        *,
        crop: int | None = None,
        longest: int | None = None,
        crop_seed: int = 0,
        in_memory: bool = False,
    ):
        settings = [form.sample_rate, form.channels, form.normalize, longest]
        super().__init__(kind, split, listing, condition_spec, max_broken, settings)
        if crop is not None:
            self.description |= {"crop": crop, "crop_seed": crop_seed}
        self.form, self.crop, self.crop_seed = form, crop, crop_seed
        self.sample_rate = form.sample_rate
        sizes = listing.sizes or []
        self._rates = torch.tensor([size[1] for size in sizes], dtype=torch.int64)
        self._full = torch.tensor([resampled_length(size[0], size[1], form.sample_rate) for size in sizes], dtype=torch.int64)
        self.lengths = self._full if longest is None else self._full.clamp(max=longest)
        cut = int((self.lengths < self._full).sum())
        if cut and crop is None:
            _log.warning("%d of %d sounds in %s are longer than data.longest and are cut there", cut, len(self), listing.where)
        self._memory: tuple[Tensor, Tensor] | None = None
        if in_memory:
            self._load()

    @property
    def media_shape(self) -> tuple[int, int]:
        return self.form.channels, self.longest_item

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
        memory = torch.zeros(self.form.channels, int(offsets[-1])).share_memory_()
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
        return read_sound(self.source.open(i), self.form.sample_rate, self.form.channels, start, samples, self.source.name(i))

    def _part(self, i: int, u: float) -> tuple[int, int]:
        """(start, samples) of what is read of sound i. u: in (0, 1), where in it the piece begins."""
        if self.crop is None:
            return 0, int(self.lengths[i])
        length = int(self._full[i])
        if length <= self.crop:
            return 0, length
        step = part_step(int(self._rates[i]), self.form.sample_rate)
        return int(u * ((length - self.crop) // step + 1)) * step, self.crop

    def __getitems__(self, draws: Sequence[int]) -> Batch:
        index, epoch = locate(draws, len(self))
        place = RowRNG.of(self.crop_seed, epoch * len(self) + index).fork("crop").uniform(1)[:, 0].tolist()
        rows = [self.readable(i, functools.partial(self._part, u=u)) for i, u in zip(index.tolist(), place)]
        lengths = torch.tensor([self.crop or wave.shape[1] for _, wave in rows], dtype=torch.int64)
        media = torch.zeros(len(rows), self.form.channels, max(lengths.tolist(), default=0))
        for row, (_, wave) in zip(media, rows):
            row[:, : wave.shape[1]] = normalized(wave, self.form.normalize).clamp(-1, 1)  # decoders and resampling overshoot
        index = torch.tensor([i for i, _ in rows], dtype=torch.int64)
        return Batch(media, index, self.condition(index), lengths=lengths)
