"""Formats of decoded frames: what their planes hold, their colours, and RGB of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from . import binary
from .decoder import SWSCALES_BT601, Pixels, Turn, lines_of, reformatted, reformatter, source_colours


class Yuv(NamedTuple):
    """Y, U, V in planes: bits of a sample, binary logarithms of the chroma's subsampling, its step from U to U."""

    depth: int
    shift_x: int
    shift_y: int
    step: int = 1


YUV = {
    "yuv420p": Yuv(8, 1, 1),
    "yuv422p": Yuv(8, 1, 0),
    "yuv444p": Yuv(8, 0, 0),
    "nv12": Yuv(8, 1, 1, step=2),
    "yuv420p10le": Yuv(10, 1, 1),
    "yuv422p10le": Yuv(10, 1, 0),
    "yuv444p10le": Yuv(10, 0, 0),
}
YUV.update({name.replace("yuv", "yuvj"): YUV[name] for name in ("yuv420p", "yuv422p", "yuv444p")})

# Bytes of a pixel, and where in them red, green and blue are.
PACKED = {
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
LUMA = {2: _BT601, 3: _BT601, 5: _BT601, 6: _BT601}
LUMA.update({1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593)})
_LIMITED_RANGE, _FULL_RANGE = 1, 2  # of PyAV's color_range


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
        red, blue = LUMA[self.colorspace]
        green = 1 - red - blue
        luma, chroma = (1.0, 1.0) if self.black == 0 else (255 / 219, 255 / 224)
        rv, bu = 2 * (1 - red) * chroma, 2 * (1 - blue) * chroma
        return luma, rv, -bu * blue / green, -rv * red / green, bu

    def made_of(self, frame: Any) -> Any:
        """A frame with other metadata, size or pixels, as one of this format, and not interlaced; RGB is of the frame's
        own colours.
        """
        colours = {}
        if frame.interlaced_frame and self.name in YUV:  # by RGB: swscale leaves the chroma of fields apart
            rgb = reformatted(as_swscale_takes_it(frame), self.width, self.height, "rgb24")
            frame = type(frame).from_ndarray(rgb.to_ndarray(), format="rgb24")
        if self.name in YUV:
            is_bt601 = LUMA[self.colorspace] is _BT601  # of whose numbers PyAV knows one
            matrix = SWSCALES_BT601 if is_bt601 else self.colorspace
            colours = {"dst_colorspace": matrix, "dst_color_range": _LIMITED_RANGE if self.black else _FULL_RANGE}
        return reformatted(frame, self.width, self.height, self.name, **colours)


def plane_sizes(form: Format) -> list[tuple[int, int]]:
    """Lines of each plane of a decoder, and bytes of one."""
    if form.name in PACKED:
        return [(form.height, form.width * PACKED[form.name][0])]
    depth, shift_x, shift_y, step = YUV[form.name]
    size = 1 if depth == 8 else 2
    chroma = -(-form.height >> shift_y), -(-form.width >> shift_x) * step * size
    return [(form.height, form.width * size), *[chroma] * (1 if step == 2 else 2)]


def has_fields(form: Format) -> bool:
    """Whether lines of luma share those of chroma, which differ where frames are interlaced."""
    return form.name in YUV and YUV[form.name].shift_y == 1


def field_lines(height: int) -> npt.NDArray[np.int64]:
    """The line of chroma that each line of luma has in an interlaced frame (csrc/planes.h)."""
    line = np.arange(height) // 4 * 2 + np.arange(height) % 2
    return np.where(line < (height + 1) // 2, line, np.maximum(line - 2, 0))


def colours_of(form: Format) -> binary.Colours:
    """Of Y, U, V that a kernel makes R, G, B of."""
    return binary.Colours(form.width, form.height, *YUV[form.name], form.black, form.colour_factors())


def places_of_colours(form: Format) -> list[tuple[int, int]]:
    """Where Y, U, V are: (plane, bytes into it)."""
    return [(0, 0), (1, 0), (1, 1) if YUV[form.name].step == 2 else (2, 0)]


def addresses(frames: Sequence[Any], places: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Of these places of each frame's planes, and the bytes from line to line."""
    found, strides = [], []
    for frame in frames:
        planes = frame.planes  # made anew each time
        for index, offset in places:
            found.append(planes[index].buffer_ptr + offset)
            strides.append(planes[index].line_size)
    return found, strides


# --- RGB -----------------------------------------------------------------------------------------------------------


def as_swscale_takes_it(frame: Any) -> Any:
    """The frame, or, of one whose fields have lines of chroma that are not there, as in 4:2:0 of a height that 4 does
    not divide, where swscale reads others, the RGB that a kernel makes.
    """
    if not (frame.interlaced_frame and frame.height % 4 and binary.has_planes()):
        return frame
    form = Format.of(frame)
    if not has_fields(form) or form.colorspace not in LUMA:
        return frame
    rgb = torch.zeros(3, form.height, form.width, dtype=torch.uint8, device="cpu")
    binary.take_largest(binary.colour_layout(colours_of(form)), *addresses([frame], places_of_colours(form)), 1, rgb)
    return type(frame).from_ndarray(rgb.permute(1, 2, 0).contiguous().numpy(), format="rgb24")


class RgbConverter:
    """Decoded frame -> RGB pixels [H, W, 3] as displayed: a view, turned as the first frame's display matrix says."""

    def __init__(self) -> None:
        self._options: dict[str, Any] = {}
        self._turn = Turn(False, False, False)

    @functools.cached_property
    def _reformatter(self) -> Any:
        return reformatter()

    def __getstate__(self) -> dict[str, Any]:
        """Without FFmpeg's part."""
        return {name: value for name, value in vars(self).items() if name != "_reformatter"}

    def __call__(self, frame: Any) -> Pixels:
        if not self._options:
            self._options = {"width": frame.width, "height": frame.height, "format": "rgb24", "threads": 1}
            self._turn = Turn.of(frame)
        frame = as_swscale_takes_it(frame)
        rgb = self._reformatter.reformat(frame, **self._options, **source_colours(frame))
        return self._turn.pixels(_pixels(rgb))


def _pixels(rgb: Any) -> Pixels:
    """A view of an rgb24 frame; its lines may end in padding."""
    return lines_of(rgb.planes[0], rgb.height, 3 * rgb.width).reshape(rgb.height, rgb.width, 3)
