"""Which pool a video has: one of the CPU's kernels (planes.py), or one that torch works in, on any device, where frames
go in pinned batches, each while the next is decoded.

MovedColours    Y, U, V planes, of which torch makes R, G, B there
MovedRaw        bytes as they are, and what becomes of their sum on the CPU (`RawPlanes`)
RgbFrames       any format, by way of RGB frames that the CPU makes: frames that are scaled first, no kernels
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import binary
from .checks import Nonlinearity
from .decoder import Pixels, Turn
from .formats import LUMA, PACKED, YUV, Format, RgbConverter, colours_of, field_lines, has_fields
from .planes import ColourPlanes, Matrix, PlanesPool, Pool, RawPlanes
from .pooling import temporal_pool
from .video import Size, resized_clip


def pool_for(frame: Any, nonlinearity: Nonlinearity, device: torch.device, size: Size | None, colours: bool) -> Pool:
    """The pool for a video that begins with this frame. `colours`: frames must be RGB before they are pooled."""
    if size is not None or not binary.has_planes():
        return RgbFrames(frame, nonlinearity, device, size)
    form, turn = Format.of(frame), Turn.of(frame)
    known = form.name in YUV and form.colorspace in LUMA
    if not known and form.name not in PACKED:
        form = form._replace(name="rgb24")
    fields = known and has_fields(form) and frame.interlaced_frame
    raw = not known or (nonlinearity == "identity" and not colours and not fields and YUV[form.name].depth == 8)
    if device.type == "cpu":
        return (RawPlanes if raw else ColourPlanes)(form, nonlinearity, turn)
    return (MovedRaw if raw else MovedColours)(form, nonlinearity, turn, device)


class _OnDevice(Pool):
    """Sums on a device, of samples that go there."""

    def __init__(self, form: Format, nonlinearity: Nonlinearity, turn: Turn, device: torch.device) -> None:
        super().__init__(form, nonlinearity, turn)
        if device.type == "cuda" and device.index is None:  # whichever is current later
            device = torch.device("cuda", torch.cuda.current_device())
        self._device = device
        self._staging: _Staging | None = None

    def empty(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(self.shape, dtype=dtype, device=self._device)

    @property
    @abstractmethod
    def _frame_bytes(self) -> int:
        """Of a frame on its way to the device."""

    @abstractmethod
    def _pack(self, frames: Sequence[Any], packed: Tensor) -> None:
        """packed [T, _frame_bytes] = the frames."""

    def _unpacked(self, packed: Tensor) -> Tensor:
        """uint8 [T, *shape], of which sums are made."""
        return packed.view(len(packed), *self.shape)

    def _moved(self, frames: Sequence[Any]) -> Tensor:
        """uint8 [T, _frame_bytes] on the device."""
        if self._staging is None:
            self._staging = _Staging(self._device, self.batch, self._frame_bytes)
        return self._staging.move(len(frames), functools.partial(self._pack, frames))

    def _batch(self, frames: Sequence[Any]) -> Tensor:
        return self._unpacked(self._moved(frames))

    def add(
        self,
        frames: Sequence[Any],
        rows: Sequence[Tensor],
        weights: Matrix,
        mix: Matrix | None = None,
        fresh: Sequence[bool] = (),
    ) -> None:
        table = torch.tensor(weights, dtype=torch.float64, device="cpu")
        table = table if mix is None else torch.tensor(mix, dtype=torch.float64, device="cpu") @ table
        batch = self._batch(frames)
        wide = batch.double() if rows[0].dtype == torch.float64 else batch
        if batch.is_cuda:  # a plain copy would wait for that of the frames
            table = table.pin_memory().to(batch.device, non_blocking=True)
        pooled = temporal_pool(wide, table.to(batch.device), 0, nonlinearity=self.nonlinearity)
        for row, image, new in zip(rows, pooled, fresh or [False] * len(rows), strict=True):
            row.copy_(image) if new else row.add_(image)

    def take_largest(self, frames: Sequence[Any], rows: Sequence[Tensor], spans: Sequence[slice]) -> None:
        batch = self._batch(frames)
        for row, span in zip(rows, spans, strict=True):
            torch.maximum(row, batch[span].amax(0), out=row)


class _MovedPlanes(_OnDevice, PlanesPool):
    """Planes as the decoder wrote them, without the padding of their lines."""

    makes_colours = False  # of what is sent: the device does

    @property
    def _frame_bytes(self) -> int:
        return sum(math.prod(size) for size in self._sizes)

    def _pack(self, frames: Sequence[Any], packed: Tensor) -> None:
        binary.pack_planes(self._layout, *self._planes(frames), packed)


class MovedColours(_MovedPlanes, ColourPlanes):
    """Y, U, V, of which R, G, B are made on the device, to the bit as the CPU's kernels do (csrc/colour.h)."""

    def _batch(self, frames: Sequence[Any]) -> Tensor:
        return self._rgb_of(self._moved(frames), self._fields(frames))

    def _rgb_of(self, packed: Tensor, interlaced: int) -> Tensor:
        rgb = torch.empty((len(packed), *self.shape), dtype=torch.uint8, device=packed.device)
        if not binary.rgb_of_packed(colours_of(self.form), interlaced, packed, rgb):
            self._make_rgb(packed, interlaced, rgb)
        return rgb

    def _make_rgb(self, packed: Tensor, interlaced: int, rgb: Tensor) -> None:
        """As `binary.rgb_of_packed`, by torch."""
        depth, shift_x, shift_y, _ = YUV[self.form.name]
        up = 11 - depth
        y, rv, gu, gv, bu = (math.floor(factor * (1 << 13) + 0.5) for factor in self.form.colour_factors())
        Y, U, V = self._yuv(packed)
        U, V = (U << up) - (128 << 3), (V << up) - (128 << 3)
        luma = ((Y << up) - (self.form.black << 3)) * y >> 16
        for index, chroma in enumerate((V * rv >> 16, (U * gu >> 16) + (V * gv >> 16), U * bu >> 16)):
            wide = _repeated(chroma, 1 << shift_x, 2)[:, :, : self.form.width]
            lines = _repeated(wide, 1 << shift_y, 1)[:, : self.form.height]
            if interlaced:
                fields = torch.tensor(
                    [interlaced >> t & 1 for t in range(len(rgb))], dtype=torch.bool, device=rgb.device
                )
                lines = lines.contiguous()
                lines[fields] = wide[fields][:, torch.from_numpy(field_lines(self.form.height)).to(rgb.device)]
            rgb[:, index] = (luma + lines).clamp_(0, 255)

    def _yuv(self, packed: Tensor) -> list[Tensor]:
        """int32 [T, lines, samples]."""
        depth, _, _, step = YUV[self.form.name]
        parts = packed.split([height * width for height, width in self._sizes], 1)
        wide = [part if depth == 8 else part.view(torch.int16) for part in parts]
        planes = [part.unflatten(1, (height, -1)).int() for part, (height, _) in zip(wide, self._sizes, strict=True)]
        return planes if step == 1 else [planes[0], planes[1][..., 0::2], planes[1][..., 1::2]]


class MovedRaw(_MovedPlanes, RawPlanes):
    """Bytes as they are. RGB of their sum is made on the CPU, once."""

    def image(self, row: Tensor, total: float) -> Tensor:
        return super().image(row.cpu(), total).to(self._device)

    def picture(self, row: Tensor, total: float, least_span: float, interleaved: bool) -> Tensor | None:
        made = super().picture(row.cpu(), total, least_span, interleaved)
        return None if made is None else made.to(self._device)


class RgbFrames(_OnDevice):
    """RGB frames [H, W, 3] of any format, scaled a batch at a time, and pooled as a tensor [T, 3, H, W] would be."""

    def __init__(self, frame: Any, nonlinearity: Nonlinearity, device: torch.device, size: Size | None) -> None:
        super().__init__(Format.of(frame), nonlinearity, Turn.of(frame), device)
        self._size = size
        self._converter = RgbConverter()
        self._shape = self._scaled([self.fitting(frame)]).shape[1:]

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def takes(self, frame: Any) -> bool:
        return False

    def fitting(self, frame: Any) -> Pixels:
        return self._converter(frame)

    def samples(self, frame: Pixels) -> list[Pixels]:
        return [frame.transpose(2, 0, 1)]

    def spread(self, marks: Sequence[npt.NDArray[np.bool_]]) -> Tensor:
        return torch.from_numpy(marks[0]).to(self._device)

    @property
    def _frame_bytes(self) -> int:
        return math.prod(self._shape)

    def _pack(self, frames: Sequence[Pixels], packed: Tensor) -> None:
        self._unpacked(packed).copy_(self._scaled(frames))

    def _unpacked(self, packed: Tensor) -> Tensor:
        channels, height, width = self._shape
        return packed.view(len(packed), height, width, channels).permute(0, 3, 1, 2)

    def _scaled(self, frames: Sequence[Pixels]) -> Tensor:
        return resized_clip(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2), self._size)

    def image(self, row: Tensor, total: float) -> Tensor:
        return row


class _Staging:
    """Frames on their way to a device: for a GPU, two pinned buffers, one to be filled while the other is copied."""

    def __init__(self, device: torch.device, batch: int, frame_bytes: int) -> None:
        self._device = device
        pinned = device.type == "cuda"
        self._buffers = [
            torch.empty((batch, frame_bytes), dtype=torch.uint8, device="cpu", pin_memory=pinned)
            for _ in range(2 if pinned else 1)
        ]
        self._copied = [torch.cuda.Event() for _ in self._buffers] if pinned else []
        self._turn = 0

    def move(self, count: int, pack: Callable[[Tensor], None]) -> Tensor:
        """uint8 [count, frame_bytes] on the device, of what `pack` writes to such a tensor."""
        self._turn = (self._turn + 1) % len(self._buffers)
        if self._copied:
            self._copied[self._turn].synchronize()
        packed = self._buffers[self._turn][:count]
        pack(packed)
        moved = packed.to(self._device, non_blocking=bool(self._copied))
        if self._copied:
            self._copied[self._turn].record(torch.cuda.current_stream(self._device))
        return moved


def _repeated(values: Tensor, times: int, dim: int) -> Tensor:
    return values if times == 1 else values.repeat_interleave(times, dim)
