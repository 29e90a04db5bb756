"""Video files, pipes, URLs and file objects -> what PyAV opens, within a time limit."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import math
import os
import re
import select
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeAlias, TypeGuard

PathLike: TypeAlias = str | os.PathLike[str]
File: TypeAlias = PathLike | bytes | bytearray | memoryview | BinaryIO

_FOREVER = 1e6  # seconds
_CONCAT = b"ffconcat version 1.0"
_PLAYLIST, _LARGEST_PLAYLIST = b"#EXTM3U", 1 << 24
# By which FFmpeg knows them from lists of songs.
_OF_STREAMS = (b"#EXT-X-STREAM-INF:", b"#EXT-X-TARGETDURATION:", b"#EXT-X-MEDIA-SEQUENCE:")
_UNKNOWN_RIFF = 0xFFFFFFFF
_HEADER = 256  # bytes that tell a file's size
_TRACED_ERROR = re.compile(r"VideoError: ([^\n]*?)(?:, frame (\d+))?: ([^\n]*)\s*$")  # the end of a traceback


class VideoError(ValueError):
    """A video that cannot be read: `source` names it, `reason` says why, `frame` at which frame, if at one."""

    def __init__(self, source: str, reason: str | None = None, frame: int | None = None) -> None:
        if reason is None:  # torch makes an error of a worker anew, of its traceback alone
            traced = _TRACED_ERROR.search(source)
            source, number, reason = traced.groups() if traced else ("a video", None, source)
            frame = None if number is None else int(number)
        super().__init__(source, reason, frame)
        self.source, self.reason, self.frame = source, reason, frame

    def __str__(self) -> str:
        return f"{self.source}{'' if self.frame is None else f', frame {self.frame}'}: {self.reason}"


class TimeExceeded(VideoError):
    """A video that takes longer to read than it may."""


def failure(error: Exception) -> str:
    """What is wrong with a video, in words; without its name, where the error is of a kind that has it."""
    if isinstance(error, VideoError):
        return error.reason if error.frame is None else f"frame {error.frame}: {error.reason}"
    if isinstance(error, FileNotFoundError):  # also fsspec's, of whatever kept it from a URL
        return str(error.__cause__ or "no such file")
    return f"{type(error).__name__}: {error}"


def is_file(video: object) -> TypeGuard[File]:
    """Whether a decoder reads it, as no tensor, array, iterable or folder."""
    if isinstance(video, (str, os.PathLike)):
        return not os.path.isdir(video)
    return isinstance(video, (bytes, bytearray, memoryview)) or hasattr(video, "read")


def source_name(video: object) -> str:
    """What messages call a video."""
    if isinstance(video, (str, os.PathLike)):
        return os.fsdecode(video)
    if isinstance(video, (bytes, bytearray, memoryview)):
        return "<bytes>"
    name = getattr(video, "name", None)
    return name if isinstance(name, str) else f"<{type(video).__name__}>"


class TimeLimit:
    """Seconds that reading `source` may take, from now on."""

    def __init__(self, source: str, timeout: float | None) -> None:
        self.source, self.timeout = source, timeout
        self._end = math.inf if timeout is None else time.monotonic() + timeout

    def left(self) -> float:
        """Raises VideoError if nothing is."""
        left = self._end - time.monotonic()
        if left < 0:
            raise self.exceeded()
        return left

    def exceeded(self) -> VideoError:
        return TimeExceeded(self.source, f"takes longer than timeout = {self.timeout:g} s")


@contextmanager
def readable(video: File, limit: TimeLimit) -> Iterator[Any]:
    """What PyAV opens: a name, or a file object."""
    if isinstance(video, (bytes, bytearray, memoryview)):
        yield io.BytesIO(video if isinstance(video, bytes) else bytes(video))  # also of a view with gaps
    elif not isinstance(video, (str, os.PathLike)):
        if isinstance(video, io.TextIOBase):
            raise TypeError(f"video must be opened in binary mode, got the text file {source_name(video)}")
        yield Borrowed(video, limit)
    elif "://" in (path := os.fsdecode(video)):
        with _open_url(path) as file:
            yield Borrowed(file, limit)
    elif stat.S_ISFIFO(os.stat(path).st_mode):  # FileNotFoundError in the system's own words
        with open(path, "rb", buffering=0, opener=_open_at_once) as file:
            yield Borrowed(file, limit)
    else:
        _check_alone(path)
        yield f"file:{path}"  # the prefix keeps FFmpeg from reading a colon in a file's name as a protocol


def anew(file: Any, limit: TimeLimit) -> Any:
    """What `readable` gave, to be opened once more; None where what was read is gone."""
    if isinstance(file, str):
        return file if os.path.isfile(file.removeprefix("file:")) else None
    borrowed = Borrowed(file._file if isinstance(file, Borrowed) else file, limit)
    return borrowed if borrowed.seekable() else None


def is_cut_short(file: Any) -> bool:
    """Whether what `readable` gave, and nobody has read from, ends before its own header says: of AVI and Matroska
    files FFmpeg does not tell. Of what comes by a pipe that is not known.
    """
    if isinstance(file, Borrowed):
        size, start = file.probe()
        return size < _declared_size(start)
    if isinstance(file, io.BytesIO):
        with file.getbuffer() as memory:
            return len(memory) < _declared_size(bytes(memory[:_HEADER]))
    path = file.removeprefix("file:")
    if not os.path.isfile(path):
        return False
    with open(path, "rb", buffering=0) as opened:
        return os.path.getsize(path) < _declared_size(opened.read(_HEADER))


def _declared_size(start: bytes) -> int:
    """The size of a file with this beginning, of its first part if it has several; 0 where it does not say."""
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        size = int.from_bytes(start[4:8], "little")
        return 8 + size if size < _UNKNOWN_RIFF else 0
    if start[:4] == b"\x1a\x45\xdf\xa3":  # EBML
        header, end = _ebml_size(start, 4)
        segment = end + header
        if start[segment : segment + 4] == b"\x18\x53\x80\x67":
            size, end = _ebml_size(start, segment + 4)
            return end + size if size else 0
    return 0


def _ebml_size(data: bytes, at: int) -> tuple[int, int]:
    """A size of RFC 8794, 0 where it says that it is not known, and where it ends."""
    length = 9 - data[at].bit_length() if at < len(data) else 9
    if length > 8:
        return 0, len(data)
    ones = (1 << 7 * length) - 1
    size = int.from_bytes(data[at : at + length], "big") & ones
    return 0 if size == ones else size, at + length


def _check_alone(path: str) -> None:
    """FFmpeg would open what a file of this kind names."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        return
    try:
        with open(path, "rb") as file:
            start = file.read(len(_CONCAT))
    except OSError as error:
        raise VideoError(path, error.strerror or str(error)) from error
    if start == _CONCAT:
        raise VideoError(path, "names other files (format concat)")
    if start.startswith(_PLAYLIST):
        _check_ends(path, path, set())


def _check_ends(video: str, path: str, seen: set[str]) -> None:
    """Raise VideoError for a playlist that may go on: FFmpeg waits for more, a hundred times as long as the file says,
    and hears no signal.
    """
    if path in seen or not os.path.isfile(path):
        return
    seen.add(path)
    with open(path, "rb") as file:
        lines = file.read(_LARGEST_PLAYLIST).splitlines()
    if not lines or not lines[0].startswith(_PLAYLIST) or not any(line.startswith(_OF_STREAMS) for line in lines):
        return
    several = any(line.startswith(b"#EXT-X-STREAM-INF") for line in lines)
    names = [line for line in lines if several and line and not line.startswith(b"#")]
    names += [
        name for line in lines if line.startswith(b"#EXT-X-MEDIA:") for name in re.findall(b'URI="([^"]+)"', line)
    ]
    for name in names:
        other = os.fsdecode(name).replace("\0", "").strip().removeprefix("file:")
        _check_ends(video, os.path.join(os.path.dirname(path), other), seen)
    has_parts = not names or any(line.startswith(b"#EXTINF") for line in lines)
    if has_parts and not any(line.startswith(b"#EXT-X-ENDLIST") for line in lines):
        raise VideoError(video, "is a playlist that may go on, as of a live stream (without #EXT-X-ENDLIST)")


def _open_at_once(path: str, flags: int) -> int:
    """Opens a named pipe before it has a writer, who is waited for when it is read."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _open_url(url: str) -> Any:
    return fsspec_for(url).open(url, "rb")


def fsspec_for(url: str) -> Any:
    """The module, which is installed where URLs are read. Raises ImportError if it is not."""
    try:
        return importlib.import_module("fsspec")
    except ImportError as error:
        raise ImportError(f"reading {url} needs fsspec: pip install fsspec") from error


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether it is a URL; pathlib leaves one of its slashes."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:/", os.fspath(path)) is not None


def file_state(path: str | os.PathLike[str]) -> str:
    """Size and time of change; of a folder, what tells those of all that is in it."""
    with contextlib.suppress(NotADirectoryError), os.scandir(path) as entries:
        states = sorted((entry.name, *_size_and_time(entry)) for entry in entries)
        return hashlib.sha256(os.fsencode(repr(states))).hexdigest()[:32]
    state = os.stat(path)
    return f"{state.st_size}|{state.st_mtime_ns}"


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        state = entry.stat()
    except OSError:  # a link that leads nowhere
        state = entry.stat(follow_symlinks=False)
    return state.st_size, state.st_mtime_ns


def _rewound(file: Any) -> bool:
    """Whether the file can be sought in, and then stands at its start; some say so and cannot, such as fsspec's of a
    server that does not tell a size.
    """
    if not (hasattr(file, "seek") and hasattr(file, "tell")) or (hasattr(file, "seekable") and not file.seekable()):
        return False
    try:
        file.seek(1)  # where it stands some let one seek to
    except (OSError, ValueError, NotImplementedError):
        return False
    file.seek(0)
    return True


class Borrowed:
    """The reading half of a file object, from its start: all but `close`, since PyAV closes what it is given.

    No exception passes through FFmpeg, which calls this: the file seems to end there, and `check` raises what was kept.
    """

    def __init__(self, file: Any, limit: TimeLimit) -> None:
        self._file, self._limit = file, limit
        self._poll = _poll_of(file)
        self._kept: BaseException | None = None
        self._seekable = _rewound(file)

    def read(self, count: int) -> bytes:
        return self._guarded(self._read, b"", count)

    def seek(self, offset: int, whence: int) -> int | None:
        return self._guarded(self._file.seek, -1, offset, whence)

    def tell(self) -> int:
        return self._guarded(self._file.tell, -1)

    def seekable(self) -> bool:
        return self._seekable

    def probe(self) -> tuple[int, bytes]:
        """The size and the first bytes of a file that stands at its start, and does so again; (0, b"") if unknown."""
        if not self._seekable:
            return 0, b""
        start, _ = self.read(_HEADER), self.seek(0, os.SEEK_END)
        size, _ = self.tell(), self.seek(0, os.SEEK_SET)
        if self._kept is None:
            return size, start
        self._kept = None  # it may be read without
        return 0, b""

    def check(self) -> None:
        """Raise what the file object raised."""
        if self._kept is not None:
            try:
                raise self._kept
            finally:
                self._kept = None  # whose traceback refers to this

    def _guarded(self, call: Callable[..., Any], otherwise: Any, *arguments: Any) -> Any:
        if self._kept is None:
            try:
                return call(*arguments)
            except BaseException as error:  # KeyboardInterrupt, too
                self._kept = error
        return otherwise

    def _read(self, count: int) -> bytes:
        self._wait()
        # Of a pipe what is there, and not all of `count`, for which `read` would wait.
        read = self._file.read if self._poll is None else getattr(self._file, "read1", self._file.read)
        data = read(count)
        if not isinstance(data, bytes) or len(data) > count:
            got = len(data) if isinstance(data, bytes) else type(data).__name__
            raise VideoError(self._limit.source, f"read({count}) must return bytes, at most {count}, got {got}")
        return data

    def _wait(self) -> None:
        left = self._limit.left()
        if self._poll is not None and not self._poll.poll(None if left > _FOREVER else 1000 * left):
            raise self._limit.exceeded()


def _poll_of(file: Any) -> Any:
    """What waits for the bytes of a pipe or terminal, so that a time limit can end it; None for other files.

    Only where Python's own classes read the descriptor: others, such as those of an HTTP response, may hold bytes that
    it does not tell of.
    """
    raw = file.raw if type(file) is io.BufferedReader else file
    if type(raw) is not io.FileIO or stat.S_ISREG(os.fstat(raw.fileno()).st_mode) or not hasattr(select, "poll"):
        return None
    poll = select.poll()
    poll.register(raw, select.POLLIN)
    return poll
