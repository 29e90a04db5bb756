"""Frames of the decoder -> weighted sums of ψ of their pixels, without an RGB frame where the format allows.

Frames join the sums in batches, so that a sum is read and written once for many of them, and memory does not grow with
the video. What a sum holds is the pool's affair until `image` makes RGB of it:

    ColourPlanes    Y, U, V planes, converted line by line by a kernel (csrc/planes.h)
    RawPlanes       bytes as they are: RGB and grey formats; and Y, U, V under ψ = identity, where the sum is converted

Those of other devices, and of frames that are scaled first, are in pools.py.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import binary
from .checks import Nonlinearity
from .decoder import Pixels, Turn, lines_of
from .formats import PACKED, YUV, Format, addresses, colours_of, field_lines, has_fields, places_of_colours, plane_sizes

_MAX_BATCH = 16
_BATCH_BYTES = 1 << 25  # of frames that wait, which the decoder cannot use again meanwhile


Matrix: TypeAlias = Sequence[Sequence[float]]


class Pool(ABC):
    """Sums of frames like the first of a video, whose display matrix says how to `turn` the image."""

    def __init__(self, form: Format, nonlinearity: Nonlinearity, turn: Turn) -> None:
        self.form, self.nonlinearity, self._turn = form, nonlinearity, turn
        self.batch = max(1, min(_MAX_BATCH, _BATCH_BYTES // (3 * form.width * form.height)))

    def takes(self, frame: Any) -> bool:
        """Whether the frame can be added as it is."""
        return self.form.fits(frame)

    def fitting(self, frame: Any) -> Any:
        """The frame as it can be added."""
        if self.takes(frame):
            return frame
        return self.form.made_of(frame)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of a sum."""

    @abstractmethod
    def samples(self, frame: Any) -> list[Pixels]:
        """What a frame that can be added is made of: views, valid as long as it is."""

    @abstractmethod
    def spread(self, marks: Sequence[npt.NDArray[np.bool_]]) -> Tensor:
        """Which values of a sum, bool of its `shape`, are made of the samples that are marked."""

    def zeros(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """A sum of nothing: float32 or float64; or uint8, of which a maximum is taken."""
        return self.empty(dtype).zero_()

    def empty(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """A sum that is to be written by `add`, as one that is fresh."""
        return torch.empty(self.shape, dtype=dtype, device="cpu")

    @abstractmethod
    def add(
        self,
        frames: Sequence[Any],
        rows: Sequence[Tensor],
        weights: Matrix,
        mix: Matrix | None = None,
        fresh: Sequence[bool] = (),
    ) -> None:
        """rows[k] += Σ_t weights[k][t] ψ(frames[t]) for at most `batch` frames, or, where fresh[k], rows[k] = …; or, of
        float64 rows that are mixed of these sums, rows[r] += Σ_k mix[r][k] Σ_t weights[k][t] ψ(frames[t]).
        """

    @abstractmethod
    def take_largest(self, frames: Sequence[Any], rows: Sequence[Tensor], spans: Sequence[slice]) -> None:
        """rows[k] = the maximum of it and of frames[spans[k]], of which there are some, byte by byte."""

    @abstractmethod
    def image(self, row: Tensor, total: float) -> Tensor:
        """The upright RGB image [3, H, W] of a sum whose weights add up to `total`, or of a maximum."""

    def picture(self, row: Tensor, total: float, least_span: float, interleaved: bool) -> Tensor | None:
        """The image of a sum, as `binary.stretch` makes a picture of it, or None."""
        return binary.stretch(self.image(row, total).float(), least_span, interleaved)


class PlanesPool(Pool):
    """Sums by csrc/planes.h on the CPU."""

    makes_colours = False  # whether kernels make R, G, B of Y, U, V, or read planes as they are

    def __init__(self, form: Format, nonlinearity: Nonlinearity, turn: Turn) -> None:
        super().__init__(form, nonlinearity, turn)
        self._sizes = plane_sizes(form)
        self._has_fields = has_fields(form)

    @functools.cached_property
    def _places(self) -> list[tuple[int, int]]:
        """(plane, bytes into it)"""
        if self.makes_colours:
            return places_of_colours(self.form)
        return [(index, 0) for index in range(len(self._sizes))]

    @functools.cached_property
    def _layout(self) -> Any:
        if self.makes_colours:
            return binary.colour_layout(colours_of(self.form))
        return binary.planes_layout([w for _, w in self._sizes], [h for h, _ in self._sizes])

    def __getstate__(self) -> dict[str, Any]:
        """Without what is compiled."""
        return {name: value for name, value in vars(self).items() if name != "_layout"}

    def samples(self, frame: Any) -> list[Pixels]:
        return [lines_of(plane, *size) for plane, size in zip(frame.planes, self._sizes, strict=True)]

    def _planes(self, frames: Sequence[Any]) -> tuple[list[int], list[int]]:
        return addresses(frames, self._places)

    def _fields(self, frames: Sequence[Any]) -> int:
        """Bit t: whether colours are to be made of frame t as of an interlaced one."""
        return 0

    def add(
        self,
        frames: Sequence[Any],
        rows: Sequence[Tensor],
        weights: Matrix,
        mix: Matrix | None = None,
        fresh: Sequence[bool] = (),
    ) -> None:
        fields = self._fields(frames)
        binary.pool_planes(self._layout, *self._planes(frames), fields, self.nonlinearity, weights, mix, rows, fresh)

    def take_largest(self, frames: Sequence[Any], rows: Sequence[Tensor], spans: Sequence[slice]) -> None:
        for row, span in zip(rows, spans, strict=True):
            some = frames[span]
            binary.take_largest(self._layout, *self._planes(some), self._fields(some), row)


class ColourPlanes(PlanesPool):
    """Y, U, V, of which a kernel makes R, G, B."""

    makes_colours = True
    _interlaced = False  # whether a frame so far was

    @property
    def shape(self) -> tuple[int, ...]:
        return 3, self.form.height, self.form.width

    def _fields(self, frames: Sequence[Any]) -> int:
        fields = sum(frame.interlaced_frame << t for t, frame in enumerate(frames)) if self._has_fields else 0
        self._interlaced |= fields > 0
        return fields

    def spread(self, marks: Sequence[npt.NDArray[np.bool_]]) -> Tensor:
        _, height, width = self.shape
        _, shift_x, shift_y, _ = YUV[self.form.name]
        found = marks[0].reshape(height, width, -1).any(2)
        for mark in marks[1:]:
            chroma = mark.reshape(len(mark), -(-width >> shift_x), -1).any(2)
            wide = chroma.repeat(1 << shift_x, 1)[:, :width]
            found |= wide.repeat(1 << shift_y, 0)[:height]
            if self._interlaced:
                found |= wide[field_lines(height)]
        return torch.from_numpy(found).expand(self.shape)

    def image(self, row: Tensor, total: float) -> Tensor:
        return self._turn.image(row)


class RawPlanes(PlanesPool):
    """Bytes as they are, and RGB of their sum; of Y, U and V for frames that are not interlaced, or made so."""

    def takes(self, frame: Any) -> bool:
        return super().takes(frame) and not (self._has_fields and frame.interlaced_frame)

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(height * width for height, width in self._sizes),)

    def spread(self, marks: Sequence[npt.NDArray[np.bool_]]) -> Tensor:
        return torch.from_numpy(np.concatenate([mark.reshape(-1) for mark in marks]))

    def image(self, row: Tensor, total: float) -> Tensor:
        if self.form.name in PACKED:
            size, rgb = PACKED[self.form.name]
            packed = row.view(self.form.height, self.form.width, size)[..., list(rgb)].permute(2, 0, 1)
            return self._turn.image(packed)
        return self._turn.image(binary.make_rgb(self._colours, row, total, self._image_shape))

    def picture(self, row: Tensor, total: float, least_span: float, interleaved: bool) -> Tensor | None:
        if self.form.name in PACKED or any(self._turn) or row.dtype != torch.float32:
            return super().picture(row, total, least_span, interleaved)
        return binary.stretch_sums(self._colours, row, total, self._image_shape, least_span, interleaved)

    @property
    def _colours(self) -> Any:
        return binary.colour_layout(colours_of(self.form))

    @property
    def _image_shape(self) -> tuple[int, ...]:
        return 3, self.form.height, self.form.width
