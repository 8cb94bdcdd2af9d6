"""The work of an evaluation that several processes share, batch by batch: drawing samples, encode and decode, nll, features of images.

The first process measures. Where networks have much to do for it, all of them do their parts, which are gathered there in order: so they
are those of one process, bit for bit, and so is what is measured of them. The others wait for the next piece of work, or for the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gentok.data.image_files import to_uint8
from gentok.data.npz_images import NpzImages
from gentok.data.progress import progress
from gentok.interfaces import MediaData
from gentok.launch import Team
from gentok.metrics.inception import Inception
from gentok.sampling import planned
from gentok.types import Batch
from gentok.watch import watched

__all__ = ["Sharing", "Work", "image_features", "sample_features", "samples"]

Work = tuple[Sequence[Any], Callable[[Any, Callable[[int], None]], Any], int]
"""Parts; what is made of one, which calls its second argument with numbers of items; all items."""


class Sharing:
    """The processes of an evaluation, seen from one of them.

    Args:
        config: conf/evaluate.yaml as a plain dict.
        crew: the processes.
        bundle: the model that is measured; None: none.
        sampler: built, of a generator's bundle.
        data: what the model is measured on; None: none.

    Attributes:
        held_out: rows of held-out items and their media, where this process has them in memory.
    """

    def __init__(self, config: Mapping[str, Any], crew: Team, bundle: Any = None, sampler: Any = None, data: MediaData | None = None):
        self.config, self.crew, self.bundle, self.sampler, self.data = config, crew, bundle, sampler, data
        self.held_out: tuple[list[int], Tensor] | None = None

    def run(self, work_of: Callable[..., Work], **request: Any) -> list[Any]:
        """On the first process: a piece of work, done by all.

        Args:
            work_of: a function of a module, (this, **request) -> Work; its name stands beside the progress bar.
            request: its further arguments, the same on all processes.

        Returns:
            The results of all parts, in order.
        """
        return self._do(*self.crew.share((work_of, request)))

    def serve(self) -> None:
        """On the other processes: whatever the first one asks for, until it has finished."""
        while (work := self.crew.share(None)) is not None:
            self._do(*work)

    def finish(self) -> None:
        """On the first process: the others may go."""
        self.crew.share(None)

    def held_out_work(self, rows: list[int], make: Callable[[Batch], Any], media_alone: bool = False) -> Work:
        """The work of making something of held-out items, batch by batch, on this process's device. media_alone: batches need neither
        conditions nor their items' numbers, so media that are in memory are not read again."""
        size = self.config["batch_size"]

        def work(part: range, done: Callable[[int], None]) -> Any:
            if media_alone and self.held_out is not None and self.held_out[0] == rows:
                batch = Batch(self.held_out[1][part.start : part.stop], torch.arange(len(part)))
            else:
                batch = self.data.held_out.__getitems__(rows[part.start : part.stop])
            made = make(batch.to(self.crew.device))
            done(len(part))
            return made

        return [range(first, min(first + size, len(rows))) for first in range(0, len(rows), size)], work, len(rows)

    def _do(self, work_of: Callable[..., Work], request: dict[str, Any]) -> list[Any]:
        parts, work, items = self.crew.agreed(lambda: work_of(self, **request))
        with self._bar(work_of.__name__.replace("_", " "), items) as advance, watched(self.crew, advance) as done:
            own = [(i, work(parts[i], done)) for i in range(self.crew.rank, len(parts), self.crew.world)]
        return [made for _, made in sorted((pair for some in self.crew.gather(own) for pair in some), key=lambda pair: pair[0])]

    def _bar(self, what: str, items: int) -> AbstractContextManager[Any]:
        return progress(what, items, shown=self.config["progress"] and self.crew.rank == 0)

    @cached_property
    def inception(self) -> Inception:
        """The network of the configured weights. Raises ValueError, OSError or ImportError with a line."""
        return Inception(self.config["inception"], self.crew.device)


# ------------------------------------------------------------------------------------------------------------ pieces of work


def samples(sharing: Sharing, **request: Any) -> Work:
    """Samples of the model, gentok.sampling_plan.Samples; request: arguments of gentok.sampling.planned."""
    how = {key: sharing.config[key] for key in ("guidance_schedule", "seed", "batch_size")}
    plan = planned(sharing.bundle, sharing.sampler, sharing.config["trust"], **how, **request)
    return plan.parts, plan.draw, sum(map(len, plan.parts))


def sample_features(sharing: Sharing, **request: Any) -> Work:
    """What Inception gives of samples, and their counts of calls."""
    parts, draw, items = samples(sharing, **request)
    inception = sharing.inception

    def work(part: range, done: Callable[[int], None]) -> dict[str, Any]:
        drawn = draw(part, done)
        counts = {"calls": drawn.calls, "network_calls": drawn.network_calls, "seconds": drawn.seconds}
        return {**inception(to_uint8(drawn.media)), **counts}

    return parts, work, items


def image_features(sharing: Sharing, path: str) -> Work:
    """What Inception gives of the images of an npz file."""
    images, size, inception = NpzImages(path), sharing.config["batch_size"], sharing.inception
    parts = [range(first, min(first + size, len(images))) for first in range(0, len(images), size)]

    def work(part: range, done: Callable[[int], None]) -> dict[str, Any]:
        features = inception(images.read(part))
        done(len(part))
        return features

    return parts, work, len(images)
