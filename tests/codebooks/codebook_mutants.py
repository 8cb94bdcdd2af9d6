"""Learnt tables with the defects of released code: the tests must reject them."""

from __future__ import annotations

import torch

from gentok.codebooks.vq import VQ


class BareMeans(VQ):
    """Sums start as means, not as means times counts."""

    @torch.no_grad()
    def _set(self, index, rows, usage):
        super()._set(index, rows, usage)
        self.sums[index] = self.weight[index]


class StaleSums(VQ):
    """Sums are not set with the rows."""

    @torch.no_grad()
    def _set(self, index, rows, usage):
        before = self.sums.clone()
        super()._set(index, rows, usage)
        self.sums.copy_(before)


class PublishedRevival(VQ):
    """The row alone is written, behind the search, and S / N replaces it in the same step."""

    late = None
    """What `_revive` was given, while it waits for the search."""

    def _revive(self, x, present, rng):
        self.late = (x.detach(), present, rng)

    @torch.no_grad()
    def _track(self, x, codes, present):
        super()._revive(*self.late)
        self.late = None
        super()._track(x, codes, present)

    @torch.no_grad()
    def _set(self, index, rows, usage):
        if self.late is None:
            super()._set(index, rows, usage)
        else:
            self.weight[index] = rows
