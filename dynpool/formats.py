"""Formats of decoded frames: what their planes hold, and their colours."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import binary
from .decoder import SWSCALES_BT601, reformatted


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
            rgb = reformatted(frame, self.width, self.height, "rgb24")
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
