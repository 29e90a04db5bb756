"""A video of any kind -> its RGB frames as uint8 [T, 3, H, W]. Files are decoded by PyAV.

Frames lie behind one another in one uint8 buffer [T, H, W, 3]; the tensor handed out is a permuted view of it, so a
video is held in memory once, at one byte a value.
"""

from __future__ import annotations

import importlib
import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

try:
    import av
    from av.error import FFmpegError
    from av.stream import Disposition
    from av.video.reformatter import VideoReformatter
except ImportError as error:  # tensors, arrays and frames do without
    missing_av: ImportError | None = error
else:
    missing_av = None

Pixels: TypeAlias = npt.NDArray[np.uint8]
Frame: TypeAlias = Pixels | Tensor | Image.Image
Video: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | Tensor | Pixels | Iterable[Frame]
Size: TypeAlias = int | tuple[int, int]

_KINDS = (
    "a path, folder of images, URL, bytes, binary file object, uint8 Tensor [T, 3, H, W], uint8 ndarray [T, H, W, 3] "
    "or iterable of frames"
)
IMAGE_SUFFIXES = frozenset([".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"])
_RESERVED_BYTES = 1 << 28  # the most that is reserved on the word of a file's frame count


class VideoError(ValueError):
    """A video that cannot be read: `source` names it, `reason` says why, `frame` at which frame, if at one."""

    def __init__(self, source: str, reason: str, frame: int | None = None) -> None:
        super().__init__(source, reason, frame)
        self.source, self.reason, self.frame = source, reason, frame

    def __str__(self) -> str:
        return f"{self.source}{'' if self.frame is None else f', frame {self.frame}'}: {self.reason}"


class Clip(NamedTuple):
    """A video in memory."""

    frames: Tensor  # uint8 [T, 3, H, W], T ≥ 1
    damaged: int  # packets of the file, or files of the folder, that could not be read or decoded, and were skipped


def read_clip(
    video: Video,
    *,
    size: Size | None = None,
    start: int = 0,
    end: int | None = None,
    every: int = 1,
    max_frames: int | None = None,
) -> Clip:
    """Read the frames of a video.

    Args:
        video: a path; the path of a folder of images, numbered frames; a URL that fsspec knows ("s3://…"); the bytes
            of a file; a binary file object, read from its start and left open; a uint8 Tensor [T, 3, H, W] (not
            copied); a uint8 ndarray [T, H, W, 3] (not copied where torch can share it); or an iterable of frames of
            one size, each a uint8 ndarray [H, W, 3], a uint8 Tensor [3, H, W] or a PIL image.
        size: scale the frames (bilinear, antialiased) to a short side of `size` pixels, or to (height, width).
        start, end, every: use the frames [start:end:every], counted as they are shown, from 0.
        max_frames: of these, use no more than the first `max_frames`.

    Returns:
        Clip of uint8 frames [T, 3, H, W]. Of a file: its first video stream, in display order, rotated and mirrored
        as the file's display matrix says, converted to RGB by its own colour metadata; pixels that are not square
        stay so. Frames of another size than the first are scaled to it. What is damaged is skipped and counted:
        the clip is what remains. Of a folder: its images in the order of the numbers in their names.

    Raises:
        VideoError: the file is no video, is empty, has no video stream, or none of its frames can be decoded.
        FileNotFoundError: there is no such file.
        ImportError: a URL is given and fsspec is missing.
        TypeError, ValueError: `video` is of no kind named above, or has no frames in [start:end]; or size, start, end,
            every or max_frames makes no sense.
    """
    chosen = check_reading(size, start, end, every, max_frames)
    if isinstance(video, Tensor):
        return Clip(_resized_clip(_chosen(_checked_tensor(video), chosen), size), 0)
    if isinstance(video, np.ndarray):
        return Clip(_resized_clip(_chosen(_checked_array(video), chosen), size), 0)
    if isinstance(video, (str, os.PathLike)):
        return _read_path(os.fsdecode(video), size, chosen)
    if isinstance(video, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(video), source_name(video), size, chosen)
    if hasattr(video, "read"):
        return _read_file_object(video, size, chosen)
    if isinstance(video, Iterable):
        return Clip(_collect(video, size, chosen), 0)
    raise TypeError(f"video must be {_KINDS}, got {type(video).__name__}")


def frame_tensor(frame: Frame | Any) -> Tensor:
    """One frame as a Tensor: a Tensor as it is; a uint8 ndarray [H, W, 3], a PIL image or a frame of PyAV, converted to
    RGB and turned upright, as uint8 [3, H, W].
    """
    if isinstance(frame, Tensor):
        return frame
    if missing_av is None and isinstance(frame, av.VideoFrame):
        try:
            pixels = _Converter()(frame)
        except (FFmpegError, ValueError) as error:
            raise ValueError(f"frame cannot be converted to RGB: {_reason(error)}") from error
    else:
        pixels = _checked_frame(frame, "frame")
    return _shared(pixels).permute(2, 0, 1)


def source_name(video: object) -> str:
    """What messages call a video."""
    if isinstance(video, (str, os.PathLike)):
        return os.fsdecode(video)
    if isinstance(video, (bytes, bytearray, memoryview)):
        return "<bytes>"
    name = getattr(video, "name", None)
    return name if isinstance(name, str) else f"<{type(video).__name__}>"


def damaged_packets(count: int) -> str:
    """The count in words."""
    return f"{count} damaged packet{'' if count == 1 else 's'}"


def check_reading(
    size: Size | None, start: int = 0, end: int | None = None, every: int = 1, max_frames: int | None = None
) -> slice:
    """The frames that are wanted. Raises ValueError for arguments that `read_clip` would refuse."""
    if not (_is_positive(start) or (start == 0 and not isinstance(start, bool))):
        raise ValueError(f"start must be a frame number from 0, got {start!r}")
    if end is not None and not (_is_positive(end) and end > start):
        raise ValueError(f"end must be a frame number behind start = {start}, got {end!r}")
    for name, count in (("every", every), ("max_frames", 1 if max_frames is None else max_frames)):
        if not _is_positive(count):
            raise ValueError(f"{name} must be a positive integer, got {count!r}")
    pair = isinstance(size, (tuple, list)) and len(size) == 2 and all(map(_is_positive, size))
    if size is not None and not pair and not _is_positive(size):
        raise ValueError(f"size must be a positive integer or a pair (height, width) of them, got {size!r}")
    if max_frames is not None:
        last = start + every * (max_frames - 1) + 1
        end = last if end is None else min(end, last)
    return slice(start, end, every)


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


# --- tensors, arrays, frames ----------------------------------------------------------------------------------------


def _checked_tensor(video: Tensor) -> Tensor:
    if video.dtype != torch.uint8:
        raise TypeError(f"video must be uint8, got a Tensor of {video.dtype}")
    if video.dim() != 4 or video.shape[1] != 3 or 0 in video.shape:
        raise ValueError(f"video must have shape [T, 3, H, W] and at least one frame, got {list(video.shape)}")
    return video


def _checked_array(video: npt.NDArray[Any]) -> Tensor:
    if video.dtype != np.uint8:
        raise TypeError(f"video must be uint8, got an ndarray of {video.dtype}")
    if video.ndim != 4 or video.shape[3] != 3 or 0 in video.shape:
        raise ValueError(f"video must have shape [T, H, W, 3] and at least one frame, got {list(video.shape)}")
    return _shared(video).permute(0, 3, 1, 2)


def _shared(pixels: Pixels) -> Tensor:
    """Not copied, unless they run backwards in memory or are read-only, which torch does not share."""
    shareable = pixels.flags.writeable and min(pixels.strides) >= 0
    return torch.from_numpy(pixels if shareable else pixels.copy())


def _chosen(frames: Tensor, chosen: slice) -> Tensor:
    if chosen.start >= len(frames):
        raise ValueError(f"start must be below the number of frames, {len(frames)}, got {chosen.start}")
    return frames[chosen]


def _taken(frames: Iterable[Any], chosen: slice) -> Iterator[Any]:
    return itertools.islice(frames, chosen.start, chosen.stop, chosen.step)


def _collect(video: Iterable[Frame], size: Size | None, chosen: slice) -> Tensor:
    frames = _FrameBuffer()
    shape: tuple[int, ...] | None = None
    for index, frame in _taken(enumerate(video), chosen):
        pixels = _checked_frame(frame, f"video[{index}]")
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise ValueError(f"video[{index}] must be of the size of those before, {shape[:2]}, got {pixels.shape[:2]}")
        frames.append(_resized(pixels, size))
    if shape is None:
        least = "one frame" if chosen.start == 0 else f"{chosen.start + 1} frames, for start = {chosen.start}"
        raise ValueError(f"video must have at least {least}, got an iterable without")
    return frames.clip()


def _checked_frame(frame: Frame, name: str) -> Pixels:
    """A frame that was decoded elsewhere as uint8 [H, W, 3]."""
    if isinstance(frame, Image.Image):
        return np.asarray(frame.convert("RGB"))
    if isinstance(frame, Tensor) and frame.dtype == torch.uint8 and frame.dim() == 3 and frame.shape[0] == 3:
        return frame.permute(1, 2, 0).cpu().numpy()
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3:
        return frame
    described = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, (Tensor, np.ndarray)) else ""
    raise TypeError(
        f"{name} must be a uint8 ndarray [H, W, 3], a uint8 Tensor [3, H, W] or a PIL image, "
        f"got {type(frame).__name__} {described}".rstrip()
    )


class _FrameBuffer:
    """Frames in one uint8 array [capacity, H, W, 3] that grows in place, by half."""

    def __init__(self, expected: int = 0) -> None:
        self._expected = expected
        self._count = 0
        self._frames: Pixels = np.empty((0, 0, 0, 3), np.uint8)

    def __len__(self) -> int:
        return self._count

    def append(self, frame: Pixels) -> None:
        if self._count == 0:
            reserved = min(self._expected, _RESERVED_BYTES // max(frame.nbytes, 1))
            self._frames = np.empty((max(reserved, 16), *frame.shape), np.uint8)
        elif self._count == len(self._frames):
            self._resize(self._count + self._count // 2)
        self._frames[self._count] = frame
        self._count += 1

    def clip(self) -> Tensor:
        """The frames as [T, 3, H, W], a view; spare capacity is given back."""
        self._resize(self._count)
        return torch.from_numpy(self._frames).permute(0, 3, 1, 2)

    def _resize(self, capacity: int) -> None:
        self._frames.resize((capacity, *self._frames.shape[1:]), refcheck=False)


# --- size -----------------------------------------------------------------------------------------------------------


def _resized_clip(frames: Tensor, size: Size | None) -> Tensor:
    if size is None:
        return frames
    return torch.stack([_interpolate(frame, _target_size(frame.shape[1], frame.shape[2], size)) for frame in frames])


def _resized(frame: Pixels, size: Size | None) -> Pixels:
    if size is None:
        return frame
    image = torch.from_numpy(np.array(frame)).permute(2, 0, 1)
    return _interpolate(image, _target_size(frame.shape[0], frame.shape[1], size)).permute(1, 2, 0).numpy()


def _target_size(height: int, width: int, size: Size) -> tuple[int, int]:
    if not isinstance(size, int):
        return size[0], size[1]
    short = min(height, width)
    return max(1, round(height * size / short)), max(1, round(width * size / short))


def _interpolate(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [3, H, W] scaled to `size`. One memory layout for all, since torch rounds differently in another."""
    batch = image[None].contiguous(memory_format=torch.channels_last)
    if not image.is_cuda:
        return F.interpolate(batch, size, mode="bilinear", antialias=True)[0]
    scaled = F.interpolate(batch.float(), size, mode="bilinear", antialias=True)[0]
    return scaled.round().clamp(0, 255).to(torch.uint8)


# --- files ----------------------------------------------------------------------------------------------------------


def _read_path(path: str, size: Size | None, chosen: slice) -> Clip:
    if "://" in path:
        with _open_url(path) as file:
            return _decode(file, path, size, chosen)
    os.stat(path)  # FileNotFoundError in the system's own words
    if os.path.isdir(path):
        return _read_folder(path, size, chosen)
    # The prefix keeps FFmpeg from reading a colon in a file's name as a protocol.
    return _decode(f"file:{path}", path, size, chosen)


def numbered_images(folder: str) -> list[str]:
    """Names of the images in a folder, in the order of the numbers in them: frame2.png before frame10.png."""

    def by_numbers(name: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]

    names = (name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)
    return sorted(names, key=lambda name: (by_numbers(name), name))


def _read_folder(folder: str, size: Size | None, chosen: slice) -> Clip:
    frames, damaged = _FrameBuffer(), 0
    first: tuple[int, int] | None = None
    for name in numbered_images(folder)[chosen]:
        try:
            with Image.open(os.path.join(folder, name)) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, SyntaxError, ValueError):  # what Pillow raises for files that are no images, or broken
            damaged += 1
            continue
        first = first or upright.size
        if upright.size != first:
            upright = upright.resize(first, Image.Resampling.BILINEAR)
        frames.append(_resized(np.asarray(upright), size))
    if not len(frames):
        why = f": {damaged} cannot be read" if damaged else ""
        raise VideoError(folder, f"has no image to read{why} ({' '.join(sorted(IMAGE_SUFFIXES))})")
    return Clip(frames.clip(), damaged)


def _open_url(url: str) -> Any:
    try:
        fsspec: Any = importlib.import_module("fsspec")
    except ImportError as error:
        raise ImportError(f"reading {url} needs fsspec: pip install fsspec") from error
    return fsspec.open(url, "rb")


def _read_file_object(file: Any, size: Size | None, chosen: slice) -> Clip:
    if isinstance(file, io.TextIOBase):
        raise TypeError(f"video must be opened in binary mode, got the text file {source_name(file)}")
    if hasattr(file, "seekable") and file.seekable():
        file.seek(0)
    # PyAV closes what it is given, and the file belongs to the caller.
    return _decode(_Borrowed(file), source_name(file), size, chosen)


class _Borrowed:
    """The reading half of a file object: all but `close`."""

    def __init__(self, file: Any) -> None:
        self.read = file.read
        for name in ("seek", "tell", "seekable"):
            if hasattr(file, name):
                setattr(self, name, getattr(file, name))


def _decode(file: Any, source: str, size: Size | None, chosen: slice) -> Clip:
    if missing_av is not None:
        raise ImportError(f"reading video files needs PyAV ({missing_av}); to install it: pip install av")
    try:
        # Some files of HMDB51 hold metadata that is no text.
        container = av.open(file, metadata_errors="ignore")
    except FFmpegError as error:
        raise VideoError(source, _reason(error)) from error
    with container:
        return _read_container(container, source, size, chosen)


def _read_container(container: Any, source: str, size: Size | None, chosen: slice) -> Clip:
    stream = _video_stream(container, source)
    damage: list[FFmpegError] = []
    frames, convert = _FrameBuffer(expected=stream.frames), _Converter()
    for number, frame in _taken(enumerate(_decoded_frames(container, stream, damage)), chosen):
        try:
            frames.append(_resized(convert(frame), size))
        except (FFmpegError, ValueError) as error:
            raise VideoError(source, f"cannot be converted to RGB: {_reason(error)}", number) from error
    if not len(frames):
        why = f": {damaged_packets(len(damage))}, the first: {_reason(damage[0])}" if damage else ""
        which = "no frame" if chosen.start == 0 else f"no frame from frame {chosen.start} on"
        raise VideoError(source, f"{which} can be decoded{why}")
    return Clip(frames.clip(), len(damage))


def _video_stream(container: Any, source: str) -> Any:
    # FFmpeg plays any text file as an animated terminal.
    streams = [] if container.format.name == "tty" else container.streams.video
    for stream in streams:
        if not stream.disposition & Disposition.attached_pic:  # the cover of an audio file
            # One thread a video: whoever reads many runs several readers. FFmpeg's default would start one per core.
            stream.codec_context.thread_count = 1
            return stream
    raise VideoError(source, f"has no video stream (format {container.format.name})")


def _decoded_frames(container: Any, stream: Any, damage: list[FFmpegError]) -> Iterator[Any]:
    """Frames in display order; what cannot be read or decoded is skipped and noted in `damage`."""
    for packet in _packets(container, stream, damage):
        try:
            yield from stream.decode(packet)
        except EOFError:
            return
        except FFmpegError as error:
            damage.append(error)


def _packets(container: Any, stream: Any, damage: list[FFmpegError]) -> Iterator[Any]:
    """Packets of the stream, then what makes the decoder hand out the frames it holds back."""
    try:
        yield from container.demux(stream)
    except FFmpegError as error:
        damage.append(error)
        yield None


def _reason(error: Exception) -> str:
    """FFmpeg's words without its number and file name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _Converter:
    """Decoded frame -> RGB pixels [H, W, 3] as displayed: a view, turned as the first frame's display matrix says."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._options: dict[str, Any] = {}
        self._turn = (False, False, False)

    def __call__(self, frame: Any) -> Pixels:
        if not self._options:
            self._options = {"width": frame.width, "height": frame.height, "format": "rgb24", "threads": 1}
            self._turn = _orientation(frame)
        return _turned(_pixels(self._reformatter.reformat(frame, **self._options)), *self._turn)


def _pixels(rgb: Any) -> Pixels:
    """A view of an rgb24 frame; its lines may end in padding."""
    plane = rgb.planes[0]
    if plane.line_size < 0:
        raise ValueError("its lines run upwards in memory")
    lines = np.frombuffer(plane, np.uint8).reshape(rgb.height, plane.line_size)
    return lines[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)


def _orientation(frame: Any) -> tuple[bool, bool, bool]:
    """(transpose, flip rows, flip columns) of the frame's display matrix, to the nearest right angle.

    The matrix a b · c d · … · (ISO/IEC 14496-12, 8.3.2) takes the decoded point (x, y) to (ax + cy, bx + dy).
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) > abs(a):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def _turned(image: Pixels, transpose: bool, flip_rows: bool, flip_columns: bool) -> Pixels:
    image = image.transpose(1, 0, 2) if transpose else image
    return image[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
