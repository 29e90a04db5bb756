"""Small clips made with PyAV, and where the real ones are."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

av = pytest.importorskip("av", reason="needs PyAV, to write clips")
from av.filter import Graph  # noqa: E402
from av.stream import Disposition  # noqa: E402

DATA = Path(os.environ.get("DYNPOOL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def real_clips(*folders: str) -> list[Path]:
    """The real clips of these folders of `clips`; the test is skipped where they are absent."""
    found = sorted(path for folder in folders for path in (DATA / "clips" / folder).glob("*") if path.is_file())
    if not found:
        pytest.skip(f"no real clips in {DATA}: set DYNPOOL_TEST_DATA to a folder that has them")
    return found


def random_frames(count: int, height: int = 13, width: int = 17, seed: int = 0) -> npt.NDArray[np.uint8]:
    """uint8 noise [T, H, W, 3]; prime sizes by default."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def write(
    file: str | Path | io.BytesIO,
    frames: Iterable[npt.NDArray[np.uint8]],
    codec: str = "ffv1",
    pix_fmt: str = "bgr0",
    format: str = "matroska",
    rate: int | Fraction = 25,
    tags: dict[str, int] | None = None,
    frame_format: str = "rgb24",
    muxing: dict[str, str] | None = None,
    **options: str,
) -> None:
    """Encode frames [H, W, 3] (or planes, as `frame_format` says). By default without any loss."""
    with av.open(file if isinstance(file, io.BytesIO) else str(file), "w", format=format, options=muxing) as container:
        stream = None
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=frame_format)
            for name, value in (tags or {}).items():
                setattr(frame, name, value)
            if stream is None:
                stream = container.add_stream(codec, rate=rate, options=options)
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pix_fmt
                for name, value in (tags or {}).items():
                    setattr(stream.codec_context, name, value)
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode(None))


def encoded(frames: Iterable[npt.NDArray[np.uint8]], **how: object) -> bytes:
    """The bytes that `write` would write."""
    file = io.BytesIO()
    write(file, frames, **how)
    return file.getvalue()


def interlaced(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame, as one of two fields."""
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format.name, time_base=frame.time_base or Fraction(1, 25)
    )
    graph.link_nodes(source, graph.add("setfield", "mode=tff"), graph.add("buffersink")).configure()
    graph.push(frame)
    marked = graph.pull()
    marked.colorspace, marked.color_range = frame.colorspace, frame.color_range
    return marked


def damaged(frames: npt.NDArray[np.uint8], *which: int) -> bytes:
    """An MP4 of PNG frames of which these, the first being 0, cannot be decoded."""
    mp4 = bytearray(encoded(frames, codec="png", pix_fmt="rgb24", format="mp4"))
    starts = [i for i in range(len(mp4)) if mp4.startswith(b"\x89PNG", i)]
    assert len(starts) == len(frames)
    for index in which:
        mp4[starts[index] : starts[index] + 60] = bytes(60)
    return bytes(mp4)


def declaring(png: bytes, width: int, height: int) -> bytes:
    """A PNG file, or a video that begins with one, whose first header declares another size."""
    start = png.index(b"IHDR")
    header = b"IHDR" + struct.pack(">II", width, height) + png[start + 12 : start + 17]
    return png[:start] + header + struct.pack(">I", zlib.crc32(header)) + png[start + 21 :]


def fields() -> bytes:
    """An MJPEG AVI half as high as its header says, which FFmpeg takes for fields: it decodes to 4 frames, 5, 4, …"""
    avi = bytearray(encoded(random_frames(9, 31, 17), codec="mjpeg", pix_fmt="yuvj420p", format="avi"))
    height = avi.index(b"strf") + 8 + 8  # biHeight of the BITMAPINFOHEADER
    avi[height : height + 4] = (62).to_bytes(4, "little")
    return bytes(avi)


def photographs(frames: npt.NDArray[np.uint8], orientation: int) -> bytes:
    """An MJPEG AVI of pictures with EXIF data, as cameras write."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0110], exif[0x0112] = "Camera", orientation
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuvj444p"
        for index, pixels in enumerate(frames):
            picture = io.BytesIO()
            Image.fromarray(pixels).save(picture, "JPEG", quality=100, subsampling=0, exif=exif)
            packet = av.Packet(picture.getvalue())
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 25), index, index
            container.mux(packet)
    return file.getvalue()


def with_times(frames: npt.NDArray[np.uint8], times: Sequence[int], format: str, codec: str) -> bytes:
    """Frames shown at multiples of 1/25 s."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for pixels, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def write_sound(path: Path, cover: bool = False) -> None:
    """A second of silence without a picture, or with only that of its cover."""
    with av.open(str(path), "w", format="mp4" if cover else "matroska") as container:
        sound = container.add_stream("aac", rate=8000, layout="mono")
        picture = container.add_stream("png", rate=1) if cover else None
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 16, 8, "rgb24"
            picture.disposition = Disposition.attached_pic.value
        container.mux([*sound.encode(silence), *sound.encode(None)])
        if picture is not None:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((8, 16, 3), np.uint8), format="rgb24")))


def with_display_matrix(mp4: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 whose track header turns (x, y) to (ax + cy, bx + dy)."""
    header = mp4.index(b"tkhd") + 4
    version = mp4[header]
    matrix = header + (52 if version == 1 else 40)
    assert struct.unpack(">9i", mp4[matrix : matrix + 36]) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return mp4[:matrix] + turned + mp4[matrix + 36 :]
