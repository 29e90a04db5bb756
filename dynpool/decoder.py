"""The decoder: the frames of a video file, as FFmpeg decodes them, by way of PyAV. What it reads is `files.py`'s."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import sys
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .files import Borrowed, File, TimeLimit, VideoError, anew, is_cut_short, readable, source_name

try:
    import av
    from av.error import ExitError, FFmpegError
    from av.filter import Graph
    from av.sidedata.sidedata import Type as SideDataType
    from av.stream import Disposition
    from av.video.reformatter import VideoReformatter
except ImportError as error:  # tensors, arrays and frames do without
    missing_av: ImportError | None = error
    DecodingError: type[Exception] = ImportError
    TOLERANT: dict[str, Any] = {}
else:
    missing_av = None
    DecodingError = FFmpegError
    # Some files of HMDB51 hold metadata that is no text, which PyAV before 19 does not open unless told to.
    TOLERANT = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}

Pixels: TypeAlias = npt.NDArray[np.uint8]

_KEPT_BYTES = 1 << 25  # of packets, which are read ahead
_DELAY = 64  # packets that a decoder may want before it hands out a frame
_MOST_THREADS = 4
_LARGE_FRAME = 1280 * 720
MAX_PIXELS = 1 << 27  # of a frame, as 16K has: a file of a few bytes may declare any size
_MATROSKA_TIME = re.compile(r"(\d+):(\d+):(\d+(?:\.\d*)?)")
_UNKNOWN_COUNT = 1 << 30  # what FFmpeg writes for it
_WHOLE = 0.95  # of the packets that a container promises: encoders miscount by one or two
_VP8_SHOWN = 0x10  # of a packet's first byte (RFC 6386, 9.1): others are but for prediction
_NO_VIDEOS = ("tty", "concat", "sdp")  # any text; names of other files; ports to listen at
_SIDE_DATA_KINDS = 48  # more than FFmpeg will have soon
_RESERVED_MATRIX = 3  # of ITU-T H.273: it says no more than 2, unspecified, but swscale refuses it
SWSCALES_BT601 = 5


def versions() -> dict[str, str | None]:
    """Of PyAV, and of the FFmpeg that it brings."""
    if missing_av is not None:
        return {"pyav": None, "ffmpeg": None}
    return {"pyav": av.__version__, "ffmpeg": av.ffmpeg_version_info}


def is_decoded(frame: object) -> bool:
    """Whether it is a frame of PyAV."""
    return missing_av is None and isinstance(frame, av.VideoFrame)


def damaged_parts(count: int) -> str:
    """The count of packets, or of a folder's images, in words."""
    return f"{count} part{'' if count == 1 else 's'} damaged or missing"


def warn_of_damage(video: object, count: int) -> None:
    """Warn the caller's caller that so many parts of a video were skipped, if any."""
    if count:
        message = f"{source_name(video)}: {damaged_parts(count)}"
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def frame_count(video: File, chosen: slice, timeout: float | None = None) -> int:
    """How many of these frames a file has: by its packets, which are quickly counted, or, where they do not tell,
    decoded.
    """
    with open_video(video, chosen, timeout) as decoder:
        return decoder.expected or sum(1 for _ in decoder.frames())


# --- files ----------------------------------------------------------------------------------------------------------


@contextmanager
def open_video(video: File, chosen: slice, timeout: float | None = None) -> Iterator[Decoder]:
    """The decoder of what `is_file`. Raises, also while frames are decoded, what `read_clip` does."""
    limit = TimeLimit(source_name(video), timeout)
    with readable(video, limit) as file:
        cut = is_cut_short(file)
        with _opened(file, limit) as container:
            decoder = Decoder(container, file, chosen, limit, cut=cut)
            try:
                yield decoder
            finally:
                decoder.close()


def _opened(file: Any, limit: TimeLimit) -> Any:
    if missing_av is not None:
        raise ImportError(f"reading video files needs PyAV ({missing_av}); to install it: pip install av")
    # No network, nor, but for the segments of a playlist that is a file itself, other files; %d is no pattern.
    protocols = "file,crypto,data" if isinstance(file, str) else "crypto,data"
    options = {"protocol_whitelist": protocols, "pattern_type": "none"}
    try:
        container = av.open(file, timeout=limit.timeout, options=options, **TOLERANT)
    except FFmpegError as error:
        if isinstance(file, Borrowed):
            file.check()
        if isinstance(error, ExitError):  # what PyAV's time limit raises
            raise limit.exceeded() from error
        raise VideoError(limit.source, reason_of(error)) from error
    if isinstance(file, Borrowed):
        file.check()
    return container


class Decoder:
    """The first video stream of a container.

    Its packets, which are small, are read ahead as far as the chosen frames go, and kept, up to a limit: their number
    tells how many frames there will be, and the frames can be decoded once more if it does not. `cut`: whether the file
    is known to be shorter than it was.
    """

    def __init__(
        self, container: Any, file: Any, chosen: slice, limit: TimeLimit, threads: int | None = None, cut: bool = False
    ) -> None:
        self.source = limit.source
        self._unreadable: list[Exception] = []
        self._undecodable: list[Exception] = []
        self._container, self._file, self._chosen, self._limit = container, file, chosen, limit
        self._stream = _video_stream(container, self.source, threads)
        self._indexed = len(self._stream.index_entries)
        self._cut = cut
        # Old MPEG-4 encoders put two frames in a packet, next to none in the one that follows, and a byte in the last.
        self._least = 2 if self._stream.codec_context.name == "mpeg4" else 1
        self._vp8 = self._stream.codec_context.name in ("vp8", "libvpx")
        self._demuxed, self._ended, self._reached = 0, False, 0
        self._shown, self._holding = 0, 0  # packets that are not left out, and those that are large enough for a frame
        self._packets = self._demux()
        self._kept: list[Any] = []
        self._kept_bytes = 0
        self.repeatable = self._read_ahead()
        self._decoded, self._complete = False, False

    @property
    def damage(self) -> list[Exception]:
        """Why packets so far could not be read or decoded."""
        found = self._unreadable + self._undecodable
        if self._missing:
            wanted = self._demuxed + self._missing
            found.append(VideoError(self.source, f"ends after {self._demuxed} packets of {wanted}"))
        return found

    @property
    def damaged(self) -> int:
        """How many packets those are."""
        return len(self._unreadable) + len(self._undecodable) + self._missing

    @property
    def _missing(self) -> int:
        """How many packets a file that was read to its end lacks of those that it promised, as far as frames were to be
        read, if that is not just a few.

        An index that was there before it was read holds all of them, and none that an edit list drops. Without, as in
        an AVI file that was cut off, the header's count must do, which may include frames that repeat the one before,
        or its duration.
        """
        if not self._ended:
            return 0
        counted = self._stream.frames if self._stream.frames < _UNKNOWN_COUNT else 0
        promised = self._indexed if self._demuxed <= self._indexed and not self._cut else counted
        least = _WHOLE * promised
        if self._cut and not promised:
            promised = least = self._in_all()
        if self._demuxed >= least:
            return 0
        wanted = promised if self._chosen.stop is None else min(promised, self._chosen.stop)
        return max(wanted - self._demuxed, 0)

    def _in_all(self) -> int:
        """How many packets there would be in the time that the header tells, or one more, if sound may take longer."""
        told = _MATROSKA_TIME.fullmatch(self._stream.metadata.get("DURATION", ""))
        if told:
            hours, minutes, seconds = map(float, told.groups())
            duration = 3600 * hours + 60 * minutes + seconds
        elif len(self._container.streams) == 1:
            duration = (self._container.duration or 0) / av.time_base
        else:
            return self._demuxed + 1
        read = float(self._reached * (self._stream.time_base or 0)) - (self._container.start_time or 0) / av.time_base
        return round(self._demuxed * duration / read) if read > 0 else 0

    @property
    def expected(self) -> int | None:
        """How many frames there will probably be; None where nothing tells."""
        return len(range(self._holding)[self._chosen]) if self.repeatable else None

    def frames(self) -> Iterator[tuple[int, Any]]:
        """The chosen frames with their numbers, in display order; what cannot be decoded is skipped and noted in
        `damage`. Once, or as often as one likes if `repeatable`.
        """
        return itertools.islice(enumerate(self._decode()), self._chosen.start, self._chosen.stop, self._chosen.step)

    def frames_again(self) -> Iterator[tuple[int, Any]] | None:
        """`frames` once more, of a file that is opened anew if its packets were too many to keep; None where that
        cannot be, as of a pipe.
        """
        if self.repeatable:
            return self.frames()
        file = anew(self._file, self._limit)
        return None if file is None else self._frames_of(file)

    def _frames_of(self, file: Any) -> Iterator[tuple[int, Any]]:
        with _opened(file, self._limit) as container:
            decoder = Decoder(container, file, self._chosen, self._limit)
            try:
                yield from decoder.frames()
            finally:
                decoder.close()

    def close(self) -> None:
        """Let go of the packets, which would refer to this and be referred to."""
        self._packets.close()
        self._kept.clear()

    def check_any(self, count: int) -> None:
        """Raise VideoError if no frame was decoded."""
        if count:
            return
        first = f": {damaged_parts(self.damaged)}, the first: {reason_of(self.damage[0])}" if self.damage else ""
        piped = isinstance(self._file, Borrowed) and not self._file.seekable()
        if piped and self._container.format.name.startswith("mov"):
            first += "; MP4 and MOV can come by a pipe only if their index stands before the frames"
        which = "no frame" if self._chosen.start == 0 else f"no frame from frame {self._chosen.start} on"
        raise VideoError(self.source, f"{which} can be decoded{first}")

    def _decode(self) -> Iterator[Any]:
        if self._decoded:
            if not self.repeatable:
                size = f"over {_KEPT_BYTES >> 20} MB"
                reason = f"its packets do not tell its number of frames, and it is too large ({size}) to decode twice"
                raise VideoError(self.source, reason)
            self._stream.codec_context.flush_buffers()
        self._decoded = True
        errors: list[Exception] = []
        if not self._complete:  # else they are known, and a decoder that was flushed may find others
            self._undecodable = errors
        yield from self._decode_noting(errors)
        self._complete = True

    def _decode_noting(self, errors: list[Exception]) -> Iterator[Any]:
        number = failures = drained = 0
        for packet in self._stored():
            drained = -number
            try:
                for frame in self._stream.decode(packet):
                    if frame.is_corrupt:  # parts of it are made up
                        errors.append(VideoError(self.source, "is damaged", number))
                    yield frame
                    number += 1
            except FFmpegError as error:
                errors.append(error)
                failures += 1
            self._check_time()
        drained += number  # frames that the end of the file brought
        lost = self._holding - number - failures
        if lost > 0 and drained < self._stream.codec_context.thread_count - 1:
            yield from self._lost(number, lost, errors)

    def _lost(self, number: int, lost: int, errors: list[Exception]) -> Iterator[Any]:
        """The frames from this number on, by one thread. Several each have one when the file ends, and if one of these
        is damaged, FFmpeg drops it and those that follow without a word.
        """
        file = anew(self._file, self._limit)
        if file is None:
            errors += [VideoError(self.source, "was lost by threads", number)] * lost
            return
        errors.clear()  # which one thread finds again, with those of the frames that were dropped
        with _opened(file, self._limit) as container:
            decoder = Decoder(container, file, slice(0, None), self._limit, threads=1)
            try:
                yield from itertools.islice(decoder._decode_noting(errors), number, None)
            finally:
                decoder.close()

    def _read_ahead(self) -> bool:
        """Fill `_kept` with all packets, or as many as the chosen frames will take; False if they are too large."""
        enough = sys.maxsize if self._chosen.stop is None else self._chosen.stop + _DELAY
        for packet in self._packets:
            if not self._keep(packet):
                return False
            if self._shown >= enough:
                break
            self._check_time()
        return True

    def _keep(self, packet: Any) -> bool:
        self._kept.append(packet)
        self._kept_bytes += 0 if packet is None else packet.size
        return self._kept_bytes <= _KEPT_BYTES

    def _stored(self) -> Iterator[Any]:
        """The packets that are kept, then those that are not; if frames may be wanted again, they are kept from now, as
        long as there is room.
        """
        yield from self._kept
        for packet in self._packets:
            if self.repeatable and not self._keep(packet):
                self.repeatable = False
                self._kept.clear()
            yield packet

    def _check_time(self) -> None:
        if self._limit.timeout is not None:
            self._limit.left()

    def _demux(self) -> Generator[Any, None, None]:
        """Packets of the stream, then what makes the decoder hand out the frames it holds back."""
        packets = self._read_packets()
        return self._checked(packets) if isinstance(self._file, Borrowed) else packets

    def _checked(self, packets: Generator[Any, None, None]) -> Generator[Any, None, None]:
        with closing(packets):
            for packet in packets:
                self._file.check()
                yield packet

    def _read_packets(self) -> Generator[Any, None, None]:
        try:
            with closing(self._container.demux(self._stream)) as packets:  # left open, it leaks some
                for packet in packets:
                    if packet.dts is None and not packet.size:  # PyAV's last, which is none of the file
                        self._ended = True
                    else:
                        self._count(packet)
                    yield packet
        except (FFmpegError, IndexError) as error:  # PyAV's, for a stream that appears midway
            self._unreadable.append(error)
            self._ended = True
            yield None

    def _count(self, packet: Any) -> None:
        self._demuxed += 1
        if packet.size and not packet.is_discard:
            self._shown += 1
            hidden = self._vp8 and not memoryview(packet)[0] & _VP8_SHOWN
            self._holding += packet.size >= self._least and not hidden
        if packet.pts is not None:
            self._reached = max(self._reached, packet.pts + (packet.duration or 0))


def _video_stream(container: Any, source: str, threads: int | None) -> Any:
    streams = [] if container.format.name in _NO_VIDEOS else container.streams.video
    for stream in streams:
        if not stream.disposition & Disposition.attached_pic:  # the cover of an audio file
            codec = stream.codec_context
            if codec is None:
                raise VideoError(source, "its codec is not known to FFmpeg, or not built in")
            pixels = (codec.width or 0) * (codec.height or 0)
            if pixels > MAX_PIXELS:
                raise VideoError(
                    source, f"has frames of {codec.width} x {codec.height}: at most 2^27 pixels are decoded"
                )
            codec.options = {"max_pixels": str(MAX_PIXELS)}  # of those that grow midway
            codec.thread_count, codec.thread_type = threads or _decoding_threads(pixels), "AUTO"
            return stream
    raise VideoError(source, f"has no video stream (format {container.format.name})")


def _decoding_threads(pixels: int) -> int:
    """One in a worker process, whose siblings read other videos, and for small frames, which threads make slower."""
    if multiprocessing.parent_process() is not None or pixels < _LARGE_FRAME:
        return 1
    return min(cores(), _MOST_THREADS)


def cores() -> int:
    """Which this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reason_of(error: Exception) -> str:
    """FFmpeg's words without its number and file name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# --- decoded frames -------------------------------------------------------------------------------------------------


def reformatted(frame: Any, width: int, height: int, format: str, **colours: int) -> Any:
    """A decoded frame in another size, pixel format, and colour matrix and range, by swscale."""
    colours.update(source_colours(frame))
    return reformatter().reformat(frame, width=width, height=height, format=format, threads=1, **colours)


def reformatter() -> Any:
    """swscale, which keeps what it worked out for frames that are alike."""
    return VideoReformatter()


def source_colours(frame: Any) -> dict[str, Any]:
    """What swscale must be told of them."""
    return {"src_colorspace": SWSCALES_BT601} if frame.colorspace == _RESERVED_MATRIX else {}


def lines_of(plane: Any, height: int, width: int) -> Pixels:
    """A view of a plane's bytes, valid as long as its frame; lines may end in padding, and run upwards in memory."""
    return np.asarray(_Lines(plane, height, width))


class _Lines:
    def __init__(self, plane: Any, height: int, width: int) -> None:
        self._plane = plane  # which keeps its frame
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (height, width),
            "strides": (plane.line_size, 1),
            "data": (plane.buffer_ptr, False),
        }


def _side_data(frame: Any) -> Any:
    """PyAV hands out none of a frame that has a kind that it does not know, as JPEG files with EXIF data have."""
    try:
        return frame.side_data
    except ValueError:
        return _without_unknown(frame).side_data


def _without_unknown(frame: Any) -> Any:
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format.name, time_base=frame.time_base or Fraction(1)
    )
    unknown = set(range(_SIDE_DATA_KINDS)) - {kind.value for kind in SideDataType}
    removed = [graph.add("sidedata", f"mode=delete:type={kind}") for kind in sorted(unknown)]
    graph.link_nodes(source, *removed, graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.pull()


class Turn(NamedTuple):
    """How a decoded image becomes upright, to the nearest right angle: transposed first, then flipped."""

    transpose: bool
    flip_rows: bool
    flip_columns: bool

    @classmethod
    def of(cls, frame: Any) -> Turn:
        """The frame's display matrix.

        The matrix a b · c d · … · (ISO/IEC 14496-12, 8.3.2) takes the decoded point (x, y) to (ax + cy, bx + dy).
        """
        matrix = _side_data(frame).get("DISPLAYMATRIX")
        if matrix is None:
            return cls(False, False, False)
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
        return cls(True, b < 0, c < 0) if abs(b) > abs(a) else cls(False, d < 0, a < 0)

    def pixels(self, image: Pixels) -> Pixels:
        """Of [H, W, 3]: a view."""
        image = image.transpose(1, 0, 2) if self.transpose else image
        return image[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def image(self, image: Tensor) -> Tensor:
        """Of [3, H, W]."""
        image = image.transpose(1, 2) if self.transpose else image
        flipped = [dim for dim, flip in ((1, self.flip_rows), (2, self.flip_columns)) if flip]
        return image.flip(flipped) if flipped else image
