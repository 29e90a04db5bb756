"""Rows: which clip and which of its frames or windows each row of a network's batch is.

Networks see rows [R, ...], videos are [B, N, ...] with counts [B] of what is there. Rows that are only padding are left
out, so that they cost nothing and no batch norm sees them. Exported and compiled programs, whose shapes should not
depend on values, keep them, and nothing reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Up to `size` rows of each of `clips` clips, one clip after the other.

    `counts` int64 [clips] says how many rows each clip has, at least 1; None: all of them have `size`. The rows after
    a clip's count are absent, or, where not `packed`, padding. `packs` says whether rows made of these may be packed.
    """

    clips: int
    size: int
    counts: Tensor | None = None
    packed: bool = True
    packs: bool = True

    @property
    def dense(self) -> bool:
        return self.counts is None or not self.packed

    def _clips(self, device: torch.device) -> Tensor:
        return torch.arange(self.clips, device=device)

    def at(self, positions: Tensor) -> Tensor:
        """Row numbers of positions [B or 1, ...] in each clip, [B, ...]; past a clip's end that of its last row."""
        shape = (self.clips, *(1,) * (positions.dim() - 1))
        if self.counts is None:
            return self._clips(positions.device).view(shape) * self.size + positions.clamp(max=self.size - 1)
        counts = self.counts.to(positions.device)
        first = self._clips(positions.device) * self.size if self.dense else counts.cumsum(0) - counts
        return first.view(shape) + torch.minimum(positions, counts.view(shape) - 1)

    def present(self, device: torch.device) -> Tensor:
        """bool [B, size]: what is there and not padding."""
        positions = torch.arange(self.size, device=device)
        counts = torch.full((self.clips,), self.size, device=device) if self.counts is None else self.counts.to(device)
        return positions < counts[:, None]

    def padded(self) -> Rows:
        """The same for rows that hold the padding too."""
        return Rows(self.clips, self.size, self.counts, packed=False, packs=self.packs)

    def pack(self, batch: Tensor) -> Tensor:
        """[B, size, ...] -> rows [R, ...]."""
        return self._kept(batch)

    def unpack(self, rows: Tensor) -> Tensor:
        """Rows [R, ...] -> [B, size, ...], the last row of a clip repeated past its end."""
        shape = (self.clips, self.size)
        if self.counts is None:
            return rows.unflatten(0, shape)
        positions = torch.arange(self.size, device=self.counts.device)[None]
        return self.select(rows, positions, Rows(*shape)).unflatten(0, shape)

    def select(self, rows: Tensor, positions: Tensor, chosen: Rows) -> Tensor:
        """Rows at positions [B or 1, N, ...] of each clip, as the N rows of `chosen`: [R · …, ...]."""
        return rows.index_select(0, chosen._kept(self.at(positions)).flatten().to(rows.device))

    def _kept(self, values: Tensor) -> Tensor:
        """Of values [B, size, ...] those that have rows, [R, ...]."""
        if self.dense:
            return values.flatten(0, 1)
        assert self.counts is not None
        index = self.present(self.counts.device).flatten().nonzero()[:, 0]
        return values.flatten(0, 1).index_select(0, index.to(values.device))

    def every(self, step: int) -> Rows:
        """Rows 0, step, 2·step, … of each clip."""
        counts = None if self.counts is None else (self.counts + step - 1) // step
        return Rows(self.clips, (self.size + step - 1) // step, counts, self.packs, self.packs)

    def windows(self, window: int, stride: int) -> Rows:
        """The windows that cover each clip, of which the last may reach beyond its end, as in `dynamic_images`."""
        overlap = max(window - stride, 0)
        # A look at the size, not a maximum with 1: compilers know how long the videos are.
        size = (self.size - overlap + stride - 1) // stride if self.size > window else 1
        if self.counts is None:
            return Rows(self.clips, size)
        counts = ((self.counts - overlap + stride - 1) // stride).clamp(min=1)
        return Rows(self.clips, size, counts, self.packs, self.packs)

    def mean(self, rows: Tensor) -> Tensor:
        """Mean of each clip's rows, [B, ...]."""
        values = self.unpack(rows)
        if self.counts is None:
            return values.mean(1)
        shape = (self.clips, self.size, *(1,) * (values.dim() - 2))
        present = self.present(values.device).view(shape)
        return values.where(present, 0).sum(1) / present.sum(1)

    def max(self, rows: Tensor) -> Tensor:
        """Maximum of each clip's rows, [B, ...]."""
        if self.counts is None and self.size == 1:
            return rows
        return self.unpack(rows).max(1).values

    def middle(self) -> Tensor:
        """Position of the middle row of each clip, [B or 1, 1]."""
        return torch.full((1, 1), self.size // 2) if self.counts is None else self.counts[:, None] // 2
