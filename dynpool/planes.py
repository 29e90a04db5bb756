"""Frames of the decoder -> weighted sums of ψ of their pixels, without an RGB frame where the format allows.

Frames join the sums in batches, so that a sum is read and written once for many of them, and memory does not grow with
the video. What a sum holds is the pool's affair until `image` makes RGB of it:

    ColourPlanes    Y, U, V planes, converted line by line by a kernel (csrc/planes.h)
    RawPlanes       bytes as they are: RGB and grey formats; and Y, U, V under ψ = identity, where the sum is converted
    RgbFrames       any format, by way of RGB frames on any device: GPUs, frames that are scaled first, no kernels
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import binary
from .decoder import SWSCALES_BT601, Pixels, RgbConverter, Turn, lines_of, reformatted
from .pooling import Nonlinearity, temporal_pool
from .video import Size, resized

_MAX_BATCH = 16
_BATCH_BYTES = 1 << 25  # of frames that wait, which the decoder cannot use again meanwhile


class _Yuv(NamedTuple):
    """Y, U, V in planes: bits of a sample, binary logarithms of the chroma's subsampling, its step from U to U."""

    depth: int
    shift_x: int
    shift_y: int
    step: int = 1


_YUV = {
    "yuv420p": _Yuv(8, 1, 1),
    "yuv422p": _Yuv(8, 1, 0),
    "yuv444p": _Yuv(8, 0, 0),
    "nv12": _Yuv(8, 1, 1, step=2),
    "yuv420p10le": _Yuv(10, 1, 1),
    "yuv422p10le": _Yuv(10, 1, 0),
    "yuv444p10le": _Yuv(10, 0, 0),
}
_YUV.update({name.replace("yuv", "yuvj"): _YUV[name] for name in ("yuv420p", "yuv422p", "yuv444p")})

# Bytes of a pixel, and where in them red, green and blue are.
_PACKED = {
    "gray": (1, (0, 0, 0)),
    "rgb24": (3, (0, 1, 2)),
    "bgr24": (3, (2, 1, 0)),
    "rgba": (4, (0, 1, 2)),
    "rgb0": (4, (0, 1, 2)),
    "bgra": (4, (2, 1, 0)),
    "bgr0": (4, (2, 1, 0)),
}

# Weights of red and blue in luma by the stream's matrix_coefficients (ITU-T H.273): BT.601 where it says nothing. What
# is not here, such as YCgCo, is for swscale to convert, or to refuse.
_BT601 = (0.299, 0.114)
_LUMA = {2: _BT601, 3: _BT601, 5: _BT601, 6: _BT601}
_LUMA.update({1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593)})
_LIMITED_RANGE, _FULL_RANGE = 1, 2  # of PyAV's color_range


Matrix: TypeAlias = Sequence[Sequence[float]]


class Format(NamedTuple):
    """What must not change from frame to frame of a batch."""

    name: str
    width: int
    height: int
    colorspace: int
    color_range: int

    @classmethod
    def of(cls, frame: Any) -> Format:
        return cls(frame.format.name, frame.width, frame.height, int(frame.colorspace), int(frame.color_range))

    def fits(self, frame: Any) -> bool:
        """Whether it is that of the frame."""
        return self == (frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range)

    @property
    def black(self) -> int:
        full = self.name.startswith("yuvj") or self.color_range == _FULL_RANGE
        return 0 if full else 16

    def colour_factors(self) -> tuple[float, float, float, float, float]:
        """y, rv, gu, gv, bu: R = y (Y - black) + rv V, G = … + gu U + gv V, B = … + bu U, at 8 bits."""
        red, blue = _LUMA[self.colorspace]
        green = 1 - red - blue
        luma, chroma = (1.0, 1.0) if self.black == 0 else (255 / 219, 255 / 224)
        rv, bu = 2 * (1 - red) * chroma, 2 * (1 - blue) * chroma
        return luma, rv, -bu * blue / green, -rv * red / green, bu

    def made_of(self, frame: Any) -> Any:
        """A frame with other metadata, size or pixels, as one of this format; RGB is of the frame's own colours."""
        colours = {}
        if self.name in _YUV:
            is_bt601 = _LUMA[self.colorspace] is _BT601  # of whose numbers PyAV knows one
            matrix = SWSCALES_BT601 if is_bt601 else self.colorspace
            colours = {"dst_colorspace": matrix, "dst_color_range": _LIMITED_RANGE if self.black else _FULL_RANGE}
        return reformatted(frame, self.width, self.height, self.name, **colours)


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
    def take_largest(self, frames: Sequence[Any], largest: Tensor) -> None:
        """largest = the maximum of it and of all frames, byte by byte."""

    @abstractmethod
    def image(self, row: Tensor, total: float) -> Tensor:
        """The upright RGB image [3, H, W] of a sum whose weights add up to `total`, or of a maximum."""

    def picture(self, row: Tensor, total: float, least_span: float, interleaved: bool) -> Tensor | None:
        """The image of a sum, as `binary.stretch` makes a picture of it, or None."""
        return binary.stretch(self.image(row, total).float(), least_span, interleaved)


class _Kernel(Pool):
    """Sums by csrc/planes.h on the CPU."""

    _layout: Any
    _address_of: tuple[tuple[int, int], ...]  # (plane, bytes into it) of each plane of the kernel

    def samples(self, frame: Any) -> list[Pixels]:
        return [lines_of(plane, *size) for plane, size in zip(frame.planes, _plane_sizes(self.form), strict=True)]

    def _planes(self, frames: Sequence[Any]) -> tuple[list[int], list[int]]:
        addresses, strides = [], []
        for frame in frames:
            planes = frame.planes  # made anew each time
            for index, offset in self._address_of:
                addresses.append(planes[index].buffer_ptr + offset)
                strides.append(planes[index].line_size)
        return addresses, strides

    def add(
        self,
        frames: Sequence[Any],
        rows: Sequence[Tensor],
        weights: Matrix,
        mix: Matrix | None = None,
        fresh: Sequence[bool] = (),
    ) -> None:
        binary.pool_planes(self._layout, *self._planes(frames), self.nonlinearity, weights, mix, rows, fresh)

    def take_largest(self, frames: Sequence[Any], largest: Tensor) -> None:
        binary.take_largest(self._layout, *self._planes(frames), largest)


class ColourPlanes(_Kernel):
    """Y, U, V, of which a kernel makes R, G, B."""

    def __init__(self, form: Format, nonlinearity: Nonlinearity, turn: Turn) -> None:
        super().__init__(form, nonlinearity, turn)
        self._layout = _colours(form)
        self._address_of = ((0, 0), (1, 0), (1, 1)) if _YUV[form.name].step == 2 else ((0, 0), (1, 0), (2, 0))

    @property
    def shape(self) -> tuple[int, ...]:
        return 3, self.form.height, self.form.width

    def spread(self, marks: Sequence[npt.NDArray[np.bool_]]) -> Tensor:
        _, height, width = self.shape
        _, shift_x, shift_y, _ = _YUV[self.form.name]
        found = marks[0].reshape(height, width, -1).any(2)
        for mark in marks[1:]:
            chroma = mark.reshape(len(mark), -(-width >> shift_x), -1).any(2)
            found |= chroma.repeat(1 << shift_y, 0).repeat(1 << shift_x, 1)[:height, :width]
        return torch.from_numpy(found).expand(self.shape)

    def image(self, row: Tensor, total: float) -> Tensor:
        return self._turn.image(row)


class RawPlanes(_Kernel):
    """Bytes as they are, and RGB of their sum."""

    def __init__(self, form: Format, nonlinearity: Nonlinearity, turn: Turn) -> None:
        super().__init__(form, nonlinearity, turn)
        self._sizes = _plane_sizes(form)
        self._address_of = tuple((index, 0) for index in range(len(self._sizes)))
        self._layout = binary.planes_layout([w for _, w in self._sizes], [h for h, _ in self._sizes])

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(height * width for height, width in self._sizes),)

    def spread(self, marks: Sequence[npt.NDArray[np.bool_]]) -> Tensor:
        return torch.from_numpy(np.concatenate([mark.reshape(-1) for mark in marks]))

    def image(self, row: Tensor, total: float) -> Tensor:
        if self.form.name in _PACKED:
            size, rgb = _PACKED[self.form.name]
            packed = row.view(self.form.height, self.form.width, size)[..., list(rgb)].permute(2, 0, 1)
            return self._turn.image(packed)
        return self._turn.image(binary.make_rgb(_colours(self.form), row, total, self._image_shape))

    def picture(self, row: Tensor, total: float, least_span: float, interleaved: bool) -> Tensor | None:
        if self.form.name in _PACKED or any(self._turn) or row.dtype != torch.float32:
            return super().picture(row, total, least_span, interleaved)
        return binary.stretch_sums(_colours(self.form), row, total, self._image_shape, least_span, interleaved)

    @property
    def _image_shape(self) -> tuple[int, ...]:
        return 3, self.form.height, self.form.width


class RgbFrames(Pool):
    """RGB frames of any format, pooled as a tensor [T, 3, H, W] would be, on any device."""

    def __init__(self, frame: Any, nonlinearity: Nonlinearity, device: torch.device, size: Size | None) -> None:
        super().__init__(Format.of(frame), nonlinearity, Turn.of(frame))
        self._device, self._size = device, size
        self._converter = RgbConverter()
        self._staging = _Staging(device, self.batch)
        self._shape = self._rgb(frame).shape

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def empty(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(self.shape, dtype=dtype, device=self._device)

    def takes(self, frame: Any) -> bool:
        return False

    def fitting(self, frame: Any) -> Tensor:
        return self._rgb(frame)

    def samples(self, frame: Tensor) -> list[Pixels]:
        return [frame.numpy()]

    def spread(self, marks: Sequence[npt.NDArray[np.bool_]]) -> Tensor:
        return torch.from_numpy(marks[0]).to(self._device)

    def _rgb(self, frame: Any) -> Tensor:
        return resized(torch.from_numpy(self._converter(frame).copy()).permute(2, 0, 1), self._size)

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
        batch = self._staging.move(frames)
        wide = batch.double() if rows[0].dtype == torch.float64 else batch
        if batch.is_cuda:  # a plain copy would wait for that of the frames
            table = table.pin_memory().to(batch.device, non_blocking=True)
        pooled = temporal_pool(wide, table.to(batch.device), 0, nonlinearity=self.nonlinearity)
        for row, image, new in zip(rows, pooled, fresh or [False] * len(rows), strict=True):
            row.copy_(image) if new else row.add_(image)

    def take_largest(self, frames: Sequence[Any], largest: Tensor) -> None:
        torch.maximum(largest, self._staging.move(frames).amax(0), out=largest)

    def image(self, row: Tensor, total: float) -> Tensor:
        return row


class _Staging:
    """Frames on their way to a device: two pinned buffers, of which one is filled while the other is copied."""

    def __init__(self, device: torch.device, batch: int) -> None:
        self._device, self._batch = device, batch
        self._buffers: list[tuple[Tensor, Any]] = []  # and when their last copy was done
        self._turn = 0

    def move(self, frames: Sequence[Tensor]) -> Tensor:
        """uint8 [T, 3, H, W] on the device."""
        if self._device.type != "cuda":
            return torch.stack(list(frames)).to(self._device)
        if not self._buffers:
            shape = (self._batch, *frames[0].shape)
            self._buffers = [
                (torch.empty(shape, dtype=torch.uint8, device="cpu", pin_memory=True), torch.cuda.Event())
                for _ in range(2)
            ]
        self._turn = 1 - self._turn
        buffer, copied = self._buffers[self._turn]
        copied.synchronize()
        torch.stack(list(frames), out=buffer[: len(frames)])
        batch = buffer[: len(frames)].to(self._device, non_blocking=True)
        copied.record(torch.cuda.current_stream(self._device))
        return batch


def pool_for(frame: Any, nonlinearity: Nonlinearity, device: torch.device, size: Size | None, colours: bool) -> Pool:
    """The pool for a video that begins with this frame. `colours`: frames must be RGB before they are pooled."""
    if size is not None or device.type != "cpu" or not binary.has_planes():
        return RgbFrames(frame, nonlinearity, device, size)
    form, turn = Format.of(frame), Turn.of(frame)
    if form.name not in _YUV or form.colorspace not in _LUMA:
        return RawPlanes(form if form.name in _PACKED else form._replace(name="rgb24"), nonlinearity, turn)
    raw = nonlinearity == "identity" and not colours and _YUV[form.name].depth == 8
    return (RawPlanes if raw else ColourPlanes)(form, nonlinearity, turn)


def _plane_sizes(form: Format) -> list[tuple[int, int]]:
    """Lines of each plane of a decoder, and bytes of one."""
    if form.name in _PACKED:
        return [(form.height, form.width * _PACKED[form.name][0])]
    depth, shift_x, shift_y, step = _YUV[form.name]
    size = 1 if depth == 8 else 2
    chroma = -(-form.height >> shift_y), -(-form.width >> shift_x) * step * size
    return [(form.height, form.width * size), *[chroma] * (1 if step == 2 else 2)]


def _colours(form: Format) -> Any:
    """The layout of Y, U, V that a kernel makes R, G, B of."""
    depth, shift_x, shift_y, step = _YUV[form.name]
    return binary.colour_layout(
        form.width, form.height, depth, shift_x, shift_y, step, form.black, form.colour_factors()
    )
