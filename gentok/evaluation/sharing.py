"""The work of an evaluation that several processes share: drawing samples, and features of images.

The first process measures. Where it needs samples, all of them draw their parts, which are gathered there in order: so they are those of
one process, bit for bit, and so is what is measured of them. The others wait for the next piece of work, or for the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

from gentok.data.image_files import to_uint8
from gentok.data.npz_images import NpzImages
from gentok.data.progress import progress
from gentok.launch import Team
from gentok.metrics.inception import Inception
from gentok.sampling import planned
from gentok.watch import watched

__all__ = ["Sharing"]

Work = tuple[Sequence[Any], Callable[[Any, Callable[[int], None]], Any], int]
"""Parts; what is made of one, which calls its second argument with numbers of items; all items."""


class Sharing:
    """The processes of an evaluation, seen from one of them.

    Args:
        config: conf/evaluate.yaml as a plain dict.
        crew: the processes.
        bundle: the model that is measured; None: none.
        sampler: built, of a generator's bundle.
    """

    def __init__(self, config: Mapping[str, Any], crew: Team, bundle: Any = None, sampler: Any = None):
        self.config, self.crew, self.bundle, self.sampler = config, crew, bundle, sampler

    def run(self, what: str, **request: Any) -> list[Any]:
        """On the first process: a piece of work, done by all.

        Args:
            what: "samples" -> Samples; "sample_features", "image_features" -> what Inception gives.
            request: arguments of the method of that name.

        Returns:
            The results of all parts, in order.
        """
        return self._do(*self.crew.share((what, request)))

    def serve(self) -> None:
        """On the other processes: whatever the first one asks for, until it has finished."""
        while (work := self.crew.share(None)) is not None:
            self._do(*work)

    def finish(self) -> None:
        """On the first process: the others may go."""
        self.crew.share(None)

    def _do(self, what: str, request: dict[str, Any]) -> list[Any]:
        parts, work, items = self.crew.agreed(lambda: getattr(self, f"_{what}")(**request))
        with self._bar(what.replace("_", " "), items) as advance, watched(self.crew, advance) as done:
            own = [(i, work(parts[i], done)) for i in range(self.crew.rank, len(parts), self.crew.world)]
        return [made for _, made in sorted((pair for some in self.crew.gather(own) for pair in some), key=lambda pair: pair[0])]

    def _bar(self, what: str, items: int) -> AbstractContextManager[Any]:
        return progress(what, items, shown=self.config["progress"] and self.crew.rank == 0)

    # ------------------------------------------------------------------------------------------------------------ pieces of work

    def _samples(self, **request: Any) -> Work:
        how = {key: self.config[key] for key in ("guidance_schedule", "seed", "batch_size")}
        plan = planned(self.bundle, self.sampler, self.config["trust"], **how, **request)
        return plan.parts, plan.draw, sum(map(len, plan.parts))

    def _sample_features(self, **request: Any) -> Work:
        parts, draw, items = self._samples(**request)
        inception = self.inception

        def work(part: range, done: Callable[[int], None]) -> dict[str, Any]:
            samples = draw(part, done)
            counts = {"calls": samples.calls, "network_calls": samples.network_calls, "seconds": samples.seconds}
            return {**inception(to_uint8(samples.media)), **counts}

        return parts, work, items

    def _image_features(self, path: str) -> Work:
        images, size, inception = NpzImages(path), self.config["batch_size"], self.inception
        parts = [range(first, min(first + size, len(images))) for first in range(0, len(images), size)]

        def work(part: range, done: Callable[[int], None]) -> dict[str, Any]:
            features = inception(images.read(part))
            done(len(part))
            return features

        return parts, work, len(images)

    @cached_property
    def inception(self) -> Inception:
        """The network of the configured weights. Raises ValueError, OSError or ImportError with a line."""
        return Inception(self.config["inception"], self.crew.device)
