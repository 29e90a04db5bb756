"""Reading videos: every kind of input, rotation, colour, damage, and the errors."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import math
import os
import pickle
import select
import signal
import struct
import sys
import tempfile
import threading
import warnings
from fractions import Fraction
from pathlib import Path

import clips
import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageOps

from dynpool import files
from dynpool.decoder import TOLERANT, Decoder, open_video
from dynpool.files import TimeExceeded, TimeLimit, VideoError
from dynpool.images import Pictures, dynamic_image, dynamic_images, make_images
from dynpool.recipe import Recipe
from dynpool.streaming import RankPoolStream
from dynpool.video import numbered_images, read_clip

av = clips.av

FRAMES = clips.random_frames(7)
UPRIGHT = (1, 0, 0, 1)


def pixels(video, **how):
    """What read_clip makes of a video, as ndarray [T, H, W, 3]."""
    frames = read_clip(video, **how).frames
    assert frames.dtype == torch.uint8
    return frames.permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def mkv() -> bytes:
    return clips.encoded(FRAMES)


@pytest.fixture(scope="module")
def path(mkv, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("video") / "clip.mkv"
    file.write_bytes(mkv)
    return file


def either_layout(first: int) -> list[torch.Tensor]:
    """Tensors that lie plane by plane and pixel by pixel in turn."""
    frames = torch.from_numpy(FRAMES).permute(0, 3, 1, 2)
    return [frame.contiguous() if i % 2 == first else frame for i, frame in enumerate(frames)]


KINDS = {
    "path": lambda path: path,
    "string": str,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "file object": lambda path: io.BytesIO(path.read_bytes()),
    "ndarray": lambda path: FRAMES,
    "read-only ndarray": lambda path: np.frombuffer(FRAMES.tobytes(), np.uint8).reshape(FRAMES.shape),
    "tensor": lambda path: torch.from_numpy(FRAMES).permute(0, 3, 1, 2),
    "contiguous tensor": lambda path: torch.from_numpy(FRAMES).permute(0, 3, 1, 2).contiguous(),
    "list of arrays": lambda path: list(FRAMES),
    "generator of tensors": lambda path: (torch.from_numpy(frame).permute(2, 0, 1) for frame in FRAMES),
    "list of contiguous tensors": lambda path: list(torch.from_numpy(FRAMES).permute(0, 3, 1, 2).contiguous()),
    "generator of either, planes first": lambda path: iter(either_layout(0)),
    "list of either, pixels first": lambda path: either_layout(1),
    "list of pictures": lambda path: [Image.fromarray(frame) for frame in FRAMES],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [{}, {"size": 5}, {"size": (20, 8)}, {"max_frames": 3}, {"max_frames": 99}], ids=str)
def test_every_kind_of_video_gives_the_same_frames(kind, how, path):
    np.testing.assert_array_equal(pixels(KINDS[kind](path), **how), pixels(FRAMES, **how))


def test_frames_are_those_that_were_encoded(path):
    np.testing.assert_array_equal(pixels(path), FRAMES)


@pytest.mark.parametrize(
    ("size", "expected"), [(5, (5, 7)), (26, (26, 34)), ((3, 40), (3, 40)), ([3, 40], (3, 40))], ids=str
)
def test_size_is_the_short_side_or_height_and_width(size, expected):
    assert pixels(FRAMES, size=size).shape[1:3] == expected


@pytest.mark.parametrize("contiguous", [True, False])
def test_frames_are_scaled_each_by_itself(contiguous, monkeypatch):
    frames = torch.from_numpy(FRAMES).permute(0, 3, 1, 2)
    frames = frames.contiguous() if contiguous else frames
    one_by_one = torch.cat([read_clip(frame[None], size=9).frames for frame in frames])
    for limit in (1, 2 * frames[0].numel(), 1 << 30):
        monkeypatch.setattr("dynpool.video._SCALED_BYTES", limit)
        assert torch.equal(read_clip(frames, size=9).frames, one_by_one)
        assert torch.equal(read_clip(iter(frames), size=9).frames, one_by_one)


def test_scaling_averages_what_it_shrinks():
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, ::4] = 200
    assert abs(pixels(stripes, size=8)[0, 1:-1].astype(int) - 50).max() <= 2


def test_tensors_and_arrays_are_not_copied():
    tensor = torch.from_numpy(FRAMES).permute(0, 3, 1, 2)
    assert read_clip(tensor).frames.data_ptr() == tensor.data_ptr()
    assert read_clip(FRAMES).frames.data_ptr() == FRAMES.ctypes.data


def test_decoded_frames_lie_pixel_by_pixel_without_spare_room(path):
    frames = read_clip(path).frames
    assert frames.permute(0, 2, 3, 1).is_contiguous()
    assert frames.untyped_storage().nbytes() == FRAMES.nbytes


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("kind", [list, iter])
def test_frames_lie_as_their_tensors_do_without_spare_room(kind, contiguous):
    video = torch.from_numpy(clips.random_frames(20)).permute(0, 3, 1, 2)
    video = video.contiguous() if contiguous else video
    frames = read_clip(kind(video)).frames
    assert torch.equal(frames, video)
    assert frames.stride() == video.stride()
    assert frames.untyped_storage().nbytes() == video.numel()


def test_reversed_arrays_are_read():
    np.testing.assert_array_equal(pixels(FRAMES[::-1]), FRAMES[::-1])


def test_buffer_grows_beyond_what_the_file_promises():
    frames = clips.random_frames(100, 3, 5)
    np.testing.assert_array_equal(pixels(iter(frames)), frames)
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    np.testing.assert_array_equal(pixels(iter(planes)), frames)
    np.testing.assert_array_equal(pixels(iter(frames), size=(3, 5)), frames)  # sixteen at a time


@pytest.mark.parametrize("error", [NotImplementedError, ValueError])
def test_iterables_need_not_know_their_length(error):
    class Frames:
        def __iter__(self):
            return iter(FRAMES)

        def __len__(self):
            raise error

    np.testing.assert_array_equal(pixels(Frames()), FRAMES)


def test_iterables_are_read_no_further_than_asked():
    frames = iter(FRAMES)
    read_clip(frames, max_frames=3)
    np.testing.assert_array_equal(next(frames), FRAMES[3])


def test_file_objects_are_rewound_and_left_open(mkv):
    file = io.BytesIO(mkv)
    file.seek(100)
    np.testing.assert_array_equal(pixels(file), FRAMES)
    assert not file.closed


def test_file_objects_need_not_seek(mkv):
    class Pipe(io.RawIOBase):
        source = io.BytesIO(mkv)

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.source.readinto(buffer)

    np.testing.assert_array_equal(pixels(io.BufferedReader(Pipe())), FRAMES)


class Counting(io.BytesIO):
    taken = 0

    def read(self, count=-1):
        data = super().read(count)
        self.taken += len(data)
        return data


@pytest.mark.parametrize("error", [ValueError, OSError, NotImplementedError])  # fsspec's, Python's, of what lacks it
def test_file_objects_that_say_too_much_or_too_little(error, mkv):
    class Streamed(io.BytesIO):  # as fsspec's of a server that tells no size
        def seek(self, offset, whence=0):
            if (offset, whence) not in ((self.tell(), 0), (0, 1)):
                raise error("Cannot seek streaming HTTP file")
            return self.tell()

    class Mapped:  # as an mmap before Python 3.13: without `seekable`
        def __init__(self, data):
            file = io.BytesIO(data)
            self.read, self.seek, self.tell = file.read, file.seek, file.tell

    class Forward(io.BytesIO):  # which would lose its first byte
        def seek(self, offset, whence=0):
            if offset < self.tell():
                raise OSError("forward only")
            return super().seek(offset, whence)

    with pytest.raises(OSError, match="forward only"):
        read_clip(Forward(mkv))
    assert Streamed(mkv).seekable()
    np.testing.assert_array_equal(pixels(Streamed(mkv)), FRAMES)
    mapped = Mapped(mkv)
    for _ in range(2):
        np.testing.assert_array_equal(pixels(mapped), FRAMES)


def test_files_are_read_no_further_than_asked():
    """A film, or a URL, of which the beginning is wanted."""
    film = clips.encoded(clips.random_frames(400, 32, 48), codec="mpeg4", pix_fmt="yuv420p", format="matroska")
    for read in (read_clip, dynamic_image):
        file = Counting(film)
        read(file, max_frames=5)
        assert file.taken < len(film) / 3
    assert torch.equal(read_clip(film, max_frames=5).frames, read_clip(film).frames[:5])


@pytest.mark.parametrize("delay", [0, 2])
def test_frames_that_take_more_packets_than_were_read_ahead(delay, monkeypatch):
    film = clips.encoded(clips.random_frames(60, 32, 48), codec="libx264", pix_fmt="yuv420p", format="matroska")
    right, whole = dynamic_image(film, start=2, max_frames=5), read_clip(film).frames
    monkeypatch.setattr("dynpool.decoder._DELAY", delay)
    assert torch.equal(dynamic_image(film, start=2, max_frames=5), right)
    for expected in (4, 9):  # wrong: decoded again
        with monkeypatch.context() as patch:
            patch.setattr(Decoder, "expected", expected)
            found = dynamic_image(film, start=2, max_frames=5)
        assert (found.int() - right.int()).abs().max() <= 1
    assert torch.equal(read_clip(film, start=2, max_frames=5).frames, whole[2:7])


def test_files_that_are_left_early_leave_nothing_behind():
    film = clips.encoded(clips.random_frames(200, 32, 48), codec="mpeg4", pix_fmt="yuv420p", format="matroska")
    gc.collect()
    gc.disable()
    try:
        before = [thing for thing in gc.get_objects() if type(thing) is Decoder]
        dynamic_image(film, max_frames=5)
        assert [thing for thing in gc.get_objects() if type(thing) is Decoder] == before
    finally:
        gc.enable()


def test_packets_without_end_are_not_kept(monkeypatch):
    film = clips.encoded(clips.random_frames(60, 32, 48), codec="libx264", pix_fmt="yuv420p", format="matroska")
    whole, right = read_clip(film, max_frames=3).frames, dynamic_image(film, max_frames=3)
    monkeypatch.setattr("dynpool.decoder._DELAY", 0)
    with av.open(io.BytesIO(film)) as container:
        monkeypatch.setattr("dynpool.decoder._KEPT_BYTES", sum(p.size for p in itertools.islice(container.demux(), 3)))
    with open_video(film, slice(0, 3, 1)) as decoder:
        assert len(list(decoder.frames())) == 3
        assert not decoder.repeatable
        assert not decoder._kept
        with pytest.raises(
            VideoError, match=r"its packets do not tell its number of frames, and it is too large \(over \d+ MB\)"
        ):
            next(decoder.frames())
    assert torch.equal(read_clip(film, max_frames=3).frames, whole)
    assert torch.equal(dynamic_image(film, max_frames=3), right)


def test_errors_of_a_file_object_are_its_own():
    class Broken(io.RawIOBase):
        def read(self, count=-1):
            raise ConnectionError("line is dead")

    with pytest.raises(ConnectionError, match="line is dead"):
        read_clip(Broken())


def test_whatever_a_file_object_raises_is_raised(tmp_path):
    """FFmpeg's own code lies between: nothing passes through it by itself, and Ctrl-C least of all."""

    class Interrupted(io.BytesIO):
        def __init__(self, error, calls):
            super().__init__(film)
            self.error, self.calls, self.wound = error, calls, False

        def read(self, count=-1):
            self.calls -= 1
            if self.calls <= 0:
                raise self.error
            return super().read(count)

    film = clips.encoded(clips.random_frames(60, 64, 96), codec="mpeg4", pix_fmt="yuv420p", format="avi")
    for error, calls in itertools.product([KeyboardInterrupt, ConnectionError, IndexError, SystemExit], [1, 2, 3]):
        for read in (read_clip, dynamic_image, lambda file: list(Pictures(file, Recipe()))):
            with pytest.raises(error):
                read(Interrupted(error, calls))

    class Unwound(io.BytesIO):
        def seek(self, offset, whence=0):
            if offset:
                raise KeyboardInterrupt
            return super().seek(offset, whence)

    with pytest.raises(KeyboardInterrupt):
        read_clip(Unwound(film))

    clips.write_sound(tmp_path / "sound.mka")
    film = (tmp_path / "sound.mka").read_bytes()  # of which FFmpeg opens what is there
    with pytest.raises(KeyboardInterrupt):
        read_clip(Interrupted(KeyboardInterrupt, 2))


@pytest.mark.parametrize(
    ("answer", "got"),
    [(lambda count: bytes(count + 1), r"\d+"), (lambda count: "text", "str"), (lambda count: None, "NoneType")],
)
def test_file_objects_that_return_what_they_should_not(answer, got):
    class Odd:
        def read(self, count):
            return answer(count)

    with pytest.raises(VideoError, match=rf"^<Odd>: read\((\d+)\) must return bytes, at most \1, got {got}$"):
        read_clip(Odd())


@contextlib.contextmanager
def stalled_pipe(data, buffering):
    """The reading end of a pipe whose writer wrote this and then waits."""
    source, sink = os.pipe()
    try:
        os.write(sink, data)
        with open(source, "rb", buffering=buffering) as file:
            yield file
    finally:
        os.close(sink)


@contextlib.contextmanager
def stalled_fifo(data, buffering):
    """The path of such a pipe."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fifo")
        os.mkfifo(path)
        sink = os.open(path, os.O_RDWR)
        try:
            os.write(sink, data)
            yield path
        finally:
            os.close(sink)


needs_pipes = pytest.mark.skipif(not hasattr(select, "poll"), reason="pipes cannot be waited for here")


@needs_pipes
@pytest.mark.parametrize("stalled", [stalled_pipe, stalled_fifo])
@pytest.mark.parametrize(("size", "buffering"), [(0, -1), (0, 0), (3000, -1), (3000, 0)])
def test_a_time_limit_ends_the_waiting_for_a_pipe(size, buffering, stalled):
    film = clips.encoded(clips.random_frames(9, 64, 96))
    assert size < len(film) / 2
    for read in (read_clip, dynamic_image):
        with (
            stalled(film[:size], buffering) as file,
            pytest.raises(VideoError, match=r"takes longer than timeout = 0.05 s"),
        ):
            read(file, timeout=0.05)


def test_a_time_limit_may_end_before_a_file_is_open(tmp_path):
    clips.write(tmp_path / "clip.mkv", FRAMES)
    (tmp_path / "folder").mkdir()
    Image.fromarray(FRAMES[0]).save(tmp_path / "folder" / "1.png")
    (tmp_path / "text.txt").write_bytes(UNREADABLE["text"])  # of which FFmpeg would say so, if it had the time
    for video, read in itertools.product(("clip.mkv", "folder", "text.txt"), (read_clip, dynamic_image)):
        with pytest.raises(VideoError, match=r"takes longer than timeout = 1e-09 s"):
            read(tmp_path / video, timeout=1e-9)


def test_a_time_limit_holds_between_packets(mkv):
    over = TimeLimit("clip", 1e-9)
    with (
        av.open(io.BytesIO(mkv)) as container,
        pytest.raises(VideoError, match=r"^clip: takes longer than timeout = 1e-09 s"),
    ):
        Decoder(container, None, slice(0, None, 1), over)
    with open_video(mkv, slice(0, None, 1)) as decoder:
        frames = decoder.frames()
        next(frames)
        decoder._limit = over
        with pytest.raises(VideoError, match=r"^clip: takes longer than timeout = 1e-09 s"):
            next(frames)


@needs_pipes
@pytest.mark.parametrize("stalled", [stalled_pipe, stalled_fifo])
def test_a_stalled_pipe_is_interrupted(stalled):
    def interrupt(signal_number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with stalled(clips.encoded(FRAMES)[:3000], -1) as file:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt):
                read_clip(file)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@needs_pipes
def test_a_pipe_that_nobody_opens_to_write(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    ended = []

    def read():
        with pytest.raises(VideoError, match=r"takes longer than timeout = 0.05 s"):
            read_clip(tmp_path / "fifo", timeout=0.05)
        ended.append(True)

    reader = threading.Thread(target=read, daemon=True)  # which is left behind if it waits for ever
    reader.start()
    reader.join(30)
    assert ended


@needs_pipes
def test_a_pipe_may_be_written_late(mkv, tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    writer = threading.Timer(0.3, path.write_bytes, (mkv,))
    writer.daemon = True  # it waits for ever if nobody reads
    writer.start()
    np.testing.assert_array_equal(pixels(path, timeout=60.0), FRAMES)


@needs_pipes
@pytest.mark.parametrize("timeout", [None, 60.0, math.inf])
def test_pipes_are_read_to_their_end(mkv, timeout, tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    for buffering in (None, -1, 0):
        writer = threading.Thread(target=path.write_bytes, args=(mkv,))
        writer.start()
        with contextlib.nullcontext(path) if buffering is None else path.open("rb", buffering) as file:
            np.testing.assert_array_equal(pixels(file, timeout=timeout), FRAMES)
        writer.join()


@pytest.mark.parametrize("name", ["12:30.mkv", "with space.mkv", "ünï.mkv", "pipe:0", "a%03d.mkv", "50%.mkv"])
def test_file_names_are_only_names(name, mkv, tmp_path):
    (tmp_path / name).write_bytes(mkv)
    np.testing.assert_array_equal(pixels(tmp_path / name), FRAMES)


def test_the_name_of_an_image_is_no_pattern(tmp_path):
    for name, frame in zip(("f%d.png", "f1.png", "f2.png"), FRAMES, strict=False):
        Image.fromarray(frame).save(tmp_path / name)
    np.testing.assert_array_equal(pixels(tmp_path / "f%d.png"), FRAMES[:1])


def test_relative_path_with_colon(mkv, tmp_path, monkeypatch):
    (tmp_path / "pipe:0").write_bytes(mkv)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(pixels("pipe:0"), FRAMES)


def test_urls_are_read_through_fsspec(mkv):
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://dynpool/clip.mkv", "wb") as file:
        file.write(mkv)
    np.testing.assert_array_equal(pixels("memory://dynpool/clip.mkv"), FRAMES)


def test_urls_without_fsspec_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ImportError, match=r"memory://clip.mkv needs fsspec: pip install fsspec"):
        read_clip("memory://clip.mkv")


# --- as displayed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "displayed"),
    [
        (UPRIGHT, lambda image: image),
        ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, 1, -1, 0), lambda image: np.rot90(image, 3)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda image: np.rot90(image, 2).transpose(1, 0, 2)),
    ],
    ids=["upright", "90", "180", "270", "mirrored", "upside down", "transposed", "anti-transposed"],
)
def test_display_matrix_is_applied(matrix, displayed):
    mp4 = clips.encoded(FRAMES, codec="png", pix_fmt="rgb24", format="mp4")
    turned = clips.with_display_matrix(mp4, *matrix)
    np.testing.assert_array_equal(pixels(turned), np.stack([displayed(frame) for frame in FRAMES]))


def test_rotation_agrees_with_ffmpegs_own_reading():
    turned = clips.with_display_matrix(clips.encoded(FRAMES, codec="png", pix_fmt="rgb24", format="mp4"), 0, -1, 1, 0)
    frame = next(av.open(io.BytesIO(turned)).decode(video=0))
    if not hasattr(frame, "rotation"):
        pytest.skip("this PyAV does not tell the rotation")
    np.testing.assert_array_equal(pixels(turned)[0], np.rot90(FRAMES[0], frame.rotation // 90))


TURNED_BY_EXIF = {  # what a viewer does to show it
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, 3),
    7: lambda image: np.rot90(image, 2).transpose(1, 0, 2),
    8: lambda image: np.rot90(image, 1),
}


@pytest.mark.parametrize("orientation", TURNED_BY_EXIF)
def test_pictures_with_exif_data_are_read_and_turned(orientation):
    frames = np.zeros((3, 16, 24, 3), np.uint8)
    frames[:, :5, :9] = 200
    video = clips.photographs(frames, orientation)
    expected = TURNED_BY_EXIF[orientation](frames[0]).astype(int)
    assert np.abs(pixels(video) - expected).max() <= 4  # JPEG's
    mean = dynamic_image(video, method="mean").permute(1, 2, 0).numpy()
    assert np.abs(mean - expected).max() <= 4
    picture = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(frames[0]).save(picture, "JPEG", exif=exif)
    assert pixels(picture.getvalue()).shape == (1, *expected.shape)


def test_frames_that_a_codec_decoded_by_itself_are_turned():
    """They have no time base, which the side data of cameras' pictures is asked by way of."""
    frames = clips.random_frames(2, 16, 24)
    codec = av.CodecContext.create("mjpeg", "r")
    decoded = [frame for packet in codec.parse(clips.photographs(frames, 6)) for frame in codec.decode(packet)]
    assert decoded[0].time_base is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of PyAV, which wants one
        assert read_clip(decoded[:1]).frames.shape == (1, 3, 24, 16)


BT709, BT601, UNSPECIFIED, RESERVED = 1, 6, 2, 3
LIMITED, FULL = 1, 2


@pytest.mark.parametrize(
    ("colorspace", "color_range", "yuv", "rgb"),
    [
        (BT601, LIMITED, (235, 128, 128), (255, 255, 255)),
        (BT601, LIMITED, (16, 128, 128), (0, 0, 0)),
        (BT601, LIMITED, (81, 90, 240), (255, 0, 0)),
        (BT601, FULL, (76, 85, 255), (255, 0, 0)),
        (BT709, LIMITED, (63, 102, 240), (255, 0, 0)),
        (BT709, FULL, (54, 99, 255), (255, 0, 0)),
        (UNSPECIFIED, LIMITED, (81, 90, 240), (255, 0, 0)),
        (UNSPECIFIED, FULL, (235, 128, 128), (235, 235, 235)),
    ],
)
def test_colours_follow_the_streams_metadata(colorspace, color_range, yuv, rgb):
    planes = np.broadcast_to(np.array(yuv, np.uint8)[:, None, None], (3, 8, 8))
    tags = {"colorspace": colorspace, "color_range": color_range}
    clip = clips.encoded([planes], pix_fmt="yuv444p", frame_format="yuv444p", tags=tags)
    assert abs(pixels(clip).astype(int) - rgb).max() <= 2
    mean = dynamic_image(clip, method="mean")
    assert abs(mean.permute(1, 2, 0).numpy().astype(int) - rgb).max() <= 2


def test_a_reserved_matrix_is_as_none():
    """Such as some MPEG-2 streams name; most demuxers do away with it."""
    planes = np.broadcast_to(np.array((81, 90, 240), np.uint8)[:, None, None], (3, 16, 16))
    options = {"codec": "mpeg2video", "format": "mpeg2video", "pix_fmt": "yuv420p", "tags": {"colorspace": BT709}}
    mpeg2 = clips.encoded([planes], frame_format="yuv444p", **options)
    with av.open(io.BytesIO(mpeg2)) as container:
        (stream,) = container.streams.video
        reserving = av.BitStreamFilterContext(f"mpeg2_metadata=matrix_coefficients={RESERVED}", stream)
        packets = [packet if packet.size else None for packet in container.demux(stream)]
        reserved = b"".join(bytes(filtered) for packet in packets for filtered in reserving.filter(packet))
    with open_video(reserved, slice(0, None, 1)) as decoder:
        assert [int(frame.colorspace) for _, frame in decoder.frames()] == [RESERVED]
    assert abs(pixels(reserved).astype(int) - (255, 0, 0)).max() <= 2
    assert abs(dynamic_image(reserved, method="mean").permute(1, 2, 0).numpy().astype(int) - (255, 0, 0)).max() <= 2


def two_greys(value: int, height: int, width: int) -> bytes:
    """Of which several may follow one another in a file."""
    frame = np.full((height, width, 3), value, np.uint8)
    return clips.encoded([frame] * 2, codec="mjpeg", pix_fmt="yuvj420p", format="mjpeg")


def test_frames_of_another_size_are_scaled_to_the_first():
    read = pixels(two_greys(50, 16, 32) + two_greys(200, 48, 24))
    assert read.shape == (4, 16, 32, 3)
    assert abs(read.mean((1, 2, 3)) - [50, 50, 200, 200]).max() <= 2


# --- damage ---------------------------------------------------------------------------------------------------------


def test_a_damaged_packet_is_skipped_and_counted():
    frames = clips.random_frames(6)
    clip = read_clip(clips.damaged(frames, 2))
    assert clip.damaged == 1
    np.testing.assert_array_equal(clip.frames.permute(0, 2, 3, 1), np.delete(frames, 2, 0))


def test_a_truncated_file_gives_what_is_left():
    frames = clips.random_frames(20)
    whole = clips.encoded(frames)
    read = pixels(whole[: len(whole) // 2])
    assert 5 <= len(read) < 12
    np.testing.assert_array_equal(read[:-1], frames[: len(read) - 1])  # the last may be cut


def cut(file: bytes) -> bytes:
    return file[: len(file) * 2 // 5]


@pytest.mark.parametrize(("codec", "format"), [("mpeg4", "avi"), ("mjpeg", "avi"), ("mpeg4", "mp4"), ("libvpx", "ivf")])
def test_what_a_file_promised_and_lacks_counts_as_damaged(codec, format, tmp_path):
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    muxing = {"movflags": "faststart"} if format == "mp4" else None
    path = tmp_path / "clip"  # the index goes to the front of what can be read again
    clips.write(path, clips.random_frames(60, 32, 48), codec, pix_fmt, format, muxing=muxing)
    whole = path.read_bytes()
    assert read_clip(whole).damaged == 0
    clip = read_clip(cut(whole))
    assert 5 < len(clip.frames) < 30
    assert 60 - len(clip.frames) - 1 <= clip.damaged <= 60 - len(clip.frames) + 1  # the last that is there may be cut
    for images in (dynamic_image, lambda video: dynamic_images(video, window=5, stride=3)):
        with pytest.warns(RuntimeWarning, match=rf"{clip.damaged} parts damaged or missing"):
            images(cut(whole))
    assert read_clip(cut(whole), max_frames=4).damaged == 0  # they are there
    for end in (50, 60, 10_000):
        assert read_clip(cut(whole), end=end).damaged == clip.damaged - max(60 - end, 0)


@pytest.mark.parametrize("read", [read_clip, lambda video: make_images(video, Recipe())])
def test_frames_of_which_parts_are_made_up_are_damaged(read):
    file = bytearray(clips.encoded(clips.random_frames(30, 96, 128), codec="mpeg4", pix_fmt="yuv420p", format="avi"))
    assert read(bytes(file)).damaged == 0
    for place in np.random.default_rng(0).integers(len(file) // 4, len(file) * 3 // 4, 20):
        file[place] ^= 255
    corrupt = wrong = 0
    with av.open(io.BytesIO(bytes(file))) as container:
        for packet in container.demux(video=0):
            try:
                corrupt += sum(frame.is_corrupt for frame in packet.decode())
            except av.FFmpegError:
                wrong += 1
    assert corrupt > 3
    assert read(bytes(file)).damaged == corrupt + wrong


@pytest.mark.parametrize("kind", ["path", "bytes", "file", "stream"])
@pytest.mark.parametrize(("codec", "format"), [("mpeg4", "avi"), ("libx264", "matroska"), ("libvpx", "webm")])
def test_files_that_were_cut_after_a_whole_packet_are_damaged(codec, format, kind, tmp_path):
    """A small file with frames out of order is all read when it is opened, after which FFmpeg's index has all of it."""
    options = {"bf": "2"} if format == "avi" else {}
    frames, rate = clips.random_frames(60, 32, 48), Fraction(30000, 1001)
    whole = clips.encoded(frames, codec=codec, pix_fmt="yuv420p", format=format, rate=rate, **options)
    with av.open(io.BytesIO(whole)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    assert read_clip(whole).damaged == 0
    path = tmp_path / "cut"
    path.write_bytes(whole[: places[20]])
    with path.open("rb") as file:
        video = {"path": path, "bytes": path.read_bytes(), "file": file, "stream": io.BytesIO(path.read_bytes())}[kind]
        frames, damaged = read_clip(video)
    assert 18 <= len(frames) <= 20
    assert 39 <= damaged <= 41


@pytest.mark.parametrize("start", [b"RIFF", b"\x1a\x45\xdf\xa3", b"\x1a\x45\xdf\xa3\x01", b"\x1a\x45\xdf\xa3\x80", b""])
def test_what_ends_in_its_header_declares_no_size(start):
    assert files._declared_size(start) == 0


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_avi_files_whose_size_is_not_known_are_not_cut(size):
    """As FFmpeg writes them to a pipe, with a frame count of 2^30."""
    avi = bytearray(clips.encoded(FRAMES, codec="mpeg4", pix_fmt="yuv420p", format="avi"))
    count = avi.index(b"strh") + 8 + 32
    avi[4:8], avi[count : count + 4] = struct.pack("<I", size), struct.pack("<I", 1 << 30)
    assert not files.is_cut_short(io.BytesIO(avi))
    assert read_clip(bytes(avi[: avi.index(b"idx1")])).damaged == 0


def test_a_matroska_file_whose_sound_is_longer_and_whose_index_is_cut_off():
    """Of a video whose own time is told, and of one that may be as long as the file, whose index is a part."""
    whole = clips.encoded(clips.random_frames(30, 32, 48), codec="libx264", pix_fmt="yuv420p", format="matroska")
    assert read_clip(whole[:-1]).damaged == 0
    told = whole.index(b"DURATION")
    other = whole[:told] + b"LENGTH__" + whole[told + 8 :]
    duration = other.index(b"\x44\x89\x88") + 3  # of the segment, as a double
    assert struct.unpack(">d", other[duration : duration + 8])[0] == pytest.approx(1200)  # milliseconds
    longer = other[:duration] + struct.pack(">d", 4800.0) + other[duration + 8 :]
    assert read_clip(longer).damaged == 0
    assert read_clip(longer[:-1]).damaged == 90  # it has no sound


def test_the_size_of_a_matroska_file():
    header = b"\x1a\x45\xdf\xa3\x84" + bytes(4) + b"\x18\x53\x80\x67"
    assert files._declared_size(header + b"\x82" + bytes(2)) == len(header) + 1 + 2
    assert files._declared_size(header + b"\x40\x10") == len(header) + 2 + 16
    for unknown in (b"\xff", b"\x01" + b"\xff" * 7):
        assert files._declared_size(header + unknown) == 0


def test_two_frames_that_an_encoder_counted_too_many_are_not_missing():
    avi = clips.encoded(clips.random_frames(60, 32, 48), codec="mpeg4", pix_fmt="yuv420p", format="avi")
    length = avi.index(b"strh") + 8 + 32  # dwLength of the AVISTREAMHEADER
    assert avi[length : length + 4] == struct.pack("<I", 60)
    clip = read_clip(avi[:length] + struct.pack("<I", 62) + avi[length + 4 : avi.index(b"idx1")])
    assert (len(clip.frames), clip.damaged) == (60, 0)


@pytest.mark.parametrize("options", [{"bf": "0"}, {}], ids=["in order", "B-frames"])
def test_damage_at_the_end_is_seen_by_several_threads(options, monkeypatch, tmp_path):
    frames = [np.full((720, 1280, 3), 20 * t, np.uint8) for t in range(10)]
    whole = clips.encoded(frames, codec="libx264", pix_fmt="yuv420p", format="mp4", **options)
    with av.open(io.BytesIO(whole)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    path = tmp_path / "clip.mp4"
    for place, size in places[-3:]:
        path.write_bytes(whole[:place] + b"\xff" * size + whole[place + size :])
        found = []
        for threads in (1, 4):
            monkeypatch.setattr("dynpool.decoder.cores", lambda threads=threads: threads)
            found.append([(len(clip.frames), clip.damaged) for clip in (read_clip(path), read_clip(path, end=9))])
        assert found[0] == found[1]
        assert found[0][0] == (9, 1)
    with open_video(path, slice(0, None)) as decoder:  # of what cannot be read once more, it is told
        monkeypatch.setattr("dynpool.decoder.anew", lambda *_: None)
        count = sum(1 for _ in decoder.frames())
        assert count + decoder.damaged == 10


def test_damage_is_that_of_the_first_time_that_frames_are_decoded(monkeypatch):
    """A decoder that was flushed is not always as it was, and may fail elsewhere."""
    stored, calls = Decoder._stored, []

    def worse_each_time(self):
        yield from [av.Packet(b"\xff" * 50)] * len(calls)
        calls.append(self)
        yield from stored(self)

    monkeypatch.setattr(Decoder, "_stored", worse_each_time)
    file = clips.encoded(FRAMES, codec="png", pix_fmt="rgb24", format="mp4")
    with open_video(file, slice(0, None)) as decoder:
        counts = [(sum(1 for _ in decoder.frames()), decoder.damaged) for _ in range(3)]
    assert counts == [(len(FRAMES), 0)] * 3


def test_an_empty_packet_is_damage_and_not_the_end():
    whole, holed = clips.encoded(clips.random_frames(8), codec="mpeg4", pix_fmt="yuv420p", format="nut"), io.BytesIO()
    with av.open(io.BytesIO(whole)) as source, av.open(holed, "w", format="nut") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            kept = packet if number != 3 else av.Packet(b"")
            kept.stream, kept.time_base, kept.pts, kept.dts = stream, packet.time_base, packet.pts, packet.dts
            target.mux(kept)
    clip = read_clip(holed.getvalue())
    assert (len(clip.frames), clip.damaged) == (7, 1)


def test_a_tenth_of_a_file_that_is_missing_is_damage():
    whole = clips.encoded(clips.random_frames(60, 32, 48), codec="mpeg4", pix_fmt="yuv420p", format="avi")
    clip = read_clip(whole[: len(whole) * 9 // 10])
    assert 50 < len(clip.frames) < 57
    assert abs(60 - len(clip.frames) - clip.damaged) <= 1  # the last that is there may be cut


@pytest.mark.parametrize(("format", "codec"), [("avi", "mpeg4"), ("mp4", "mpeg4"), ("matroska", "libx264")])
def test_frames_that_are_shown_for_longer_are_not_missing(format, codec):
    """AVI files count them as often as they are shown."""
    video = clips.with_times(clips.random_frames(30, 32, 48), range(0, 90, 3), format, codec)
    clip = read_clip(video)
    assert (len(clip.frames), clip.damaged) == (30, 0)


def test_frames_that_an_edit_list_drops_are_not_missing():
    mp4 = clips.encoded(
        clips.random_frames(60, 32, 48), codec="libx264", pix_fmt="yuv420p", format="mp4", bf="0", g="5"
    )
    edit = mp4.index(b"elst") + 4
    _, entries, duration, start = struct.unpack(">IIIi", mp4[edit : edit + 16])
    assert entries == 1
    shorter = struct.pack(">IIIi", 0, 1, duration // 3, start)
    clip = read_clip(mp4[:edit] + shorter + mp4[edit + 16 :])
    assert 18 <= len(clip.frames) <= 22
    assert clip.damaged == 0


def test_frames_before_the_start_of_an_edit_list_are_not_expected():
    mp4 = clips.encoded(clips.random_frames(12, 32, 32), codec="libx264", pix_fmt="yuv420p", format="mp4")
    edit = mp4.index(b"elst") + 4
    _, entries, duration, start = struct.unpack(">IIIi", mp4[edit : edit + 16])
    later = struct.pack(">IIIi", 0, entries, duration, start + 2048)  # four frames
    with open_video(mp4[:edit] + later + mp4[edit + 16 :], slice(0, None, 1)) as decoder:
        assert decoder.expected == len(list(decoder.frames())) == 8
        assert decoder.damaged == 0


def test_frames_held_back_survive_a_reading_error():
    frames = np.stack([np.full((16, 16, 3), 20 * t, np.uint8) for t in range(6)])
    mp4 = clips.encoded(frames, codec="mpeg4", pix_fmt="yuv420p", format="mp4", bf="2")
    with av.open(io.BytesIO(mp4)) as container:
        (stream,) = container.streams.video
        packets = [packet for packet in container.demux(stream) if packet.size]

        class Unplugged:
            format, streams = container.format, container.streams

            def demux(self, stream):
                yield from packets
                raise av.error.InvalidDataError(0, "line is dead")

        decoder = Decoder(Unplugged(), None, slice(0, None, 1), TimeLimit("line", None))
        at_once = sum(len(stream.decode(packet)) for packet in packets)
        stream.codec_context.flush_buffers()
        for _ in range(2):  # it can be repeated
            assert len(list(decoder.frames())) == 6
            assert len(decoder.damage) == 1
    assert at_once < 6  # the decoder waits for what comes between


def test_what_lies_behind_a_reading_error_is_missing():
    mp4 = clips.encoded(clips.random_frames(6, 16, 16), codec="mpeg4", pix_fmt="yuv420p", format="mp4")
    with av.open(io.BytesIO(mp4)) as container:

        class Unplugged:
            format, streams = container.format, container.streams

            def demux(self, stream):
                yield from itertools.islice(container.demux(stream), 2)
                raise av.error.InvalidDataError(0, "line is dead")

        decoder = Decoder(Unplugged(), None, slice(0, None, 1), TimeLimit("line", None))
        assert len(list(decoder.frames())) == 2
        assert decoder.damaged == 1 + 4
        decoder.close()


@pytest.mark.parametrize("method", ["approx", "exact", "mean", "max"])
def test_packets_that_decode_to_another_number_of_frames_each_time(method):
    video = clips.fields()
    with open_video(video, slice(0, None, 1)) as decoder:
        assert [len(list(decoder.frames())) for _ in range(4)] == [4, 5, 4, 5]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert dynamic_image(video, method=method).shape == (3, 62, 17)
        assert dynamic_images(video, method=method, window=3, stride=2).shape[1:] == (3, 62, 17)


# --- unusual files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3), (2160, 7680)])
def test_the_smallest_and_the_largest_frames(height, width):
    frames = [np.full((height, width, 3), 40 + 100 * t, np.uint8) for t in range(2)]
    video = clips.encoded(frames, codec="rawvideo", pix_fmt="rgb24", format="nut")
    assert read_clip(video).frames.shape == (2, 3, height, width)
    assert dynamic_image(video, method="max").unique().tolist() == [140]
    assert dynamic_image(video).shape == (3, height, width)


def test_frames_too_large_to_be_meant():
    with pytest.raises(VideoError, match=r"has frames of 12000 x 12001: at most 2\^27 pixels are decoded"):
        read_clip(b"YUV4MPEG2 W12000 H12001 F25:1 C420jpeg\nFRAME\n")
    frames = clips.random_frames(4)
    mp4 = clips.encoded(frames, codec="png", pix_fmt="rgb24", format="mp4")
    second = mp4.index(b"IHDR", mp4.index(b"IHDR") + 1)
    clip = read_clip(mp4[:second] + clips.declaring(mp4[second:], 14000, 14000))
    assert clip.damaged == 1
    np.testing.assert_array_equal(clip.frames.permute(0, 2, 3, 1), frames[[0, 2, 3]])


def test_frames_that_grow_too_large_midway(monkeypatch):
    monkeypatch.setattr("dynpool.decoder.MAX_PIXELS", 2000)
    clip = read_clip(two_greys(50, 16, 64) + two_greys(200, 64, 64))
    assert (clip.frames.shape, clip.damaged) == ((2, 3, 16, 64), 2)


def test_an_unknown_codec():
    avi = clips.encoded(FRAMES, codec="mpeg4", pix_fmt="yuv420p", format="avi").replace(b"FMP4", b"\x01\x02\x03\x04")
    with pytest.raises(VideoError, match="its codec is not known to FFmpeg, or not built in"):
        dynamic_image(avi)


def test_an_animated_gif(tmp_path):
    greys = [Image.new("L", (31, 17), 60 * t) for t in range(4)]
    greys[0].save(tmp_path / "clip.gif", save_all=True, append_images=greys[1:], duration=40, disposal=1)
    read = pixels(tmp_path / "clip.gif")
    np.testing.assert_array_equal(read[:, 0, 0, 0], [0, 60, 120, 180])
    mean = dynamic_image(tmp_path / "clip.gif", method="mean", nonlinearity="identity")
    assert mean.unique().tolist() == [90]


def test_webm(tmp_path):
    frames = np.stack([np.full((32, 48, 3), 30 * t, np.uint8) for t in range(8)])
    clips.write(tmp_path / "clip.webm", frames, codec="libvpx-vp9", pix_fmt="yuv420p", format="webm")
    assert np.abs(pixels(tmp_path / "clip.webm").mean((1, 2, 3)) - 30 * np.arange(8)).max() < 4
    assert dynamic_image(tmp_path / "clip.webm", method="max").float().mean() > 200


def test_variable_frame_rate_and_missing_timestamps(tmp_path):
    """Frames are ranked by their order: times do not matter."""
    frames = clips.random_frames(6, 16, 24)
    expected = dynamic_image(clips.encoded(frames))
    with av.open(str(tmp_path / "vfr.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 24, 16, "bgr0"
        for time, pixels_of in zip([0, 1, 7, 8, 30, 31], frames, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels_of, format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert torch.equal(dynamic_image(tmp_path / "vfr.mkv"), expected)
    raw = clips.encoded(frames, codec="ffv1", format="avi")  # has no timestamps
    assert torch.equal(dynamic_image(raw), expected)


def test_files_opened_by_the_hundred_leave_nothing_behind(path):
    def resident():
        with open("/proc/self/status") as status:
            return int(next(line for line in status if line.startswith("VmRSS")).split()[1])

    if not os.path.exists("/proc/self/status"):
        pytest.skip("resident memory is read from /proc")
    broken = clips.damaged(FRAMES, 3)
    for opened in range(700):
        if opened == 200:
            before = resident()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dynamic_image(path)
            dynamic_image(broken)
        with pytest.raises(VideoError):
            dynamic_image(broken[:100])
    assert resident() - before < 4000  # KB; a frame, or a decoder, leaked each time would be ten times that


def test_an_intact_file_is_not_called_damaged(path):
    assert read_clip(path).damaged == 0


def test_all_packets_damaged():
    with pytest.raises(VideoError, match=r"^<bytes>: no frame can be decoded: 7 parts damaged or missing, the first: "):
        read_clip(clips.damaged(FRAMES, *range(7)))


UNREADABLE = {
    "empty": b"",
    "text": b"This is no video.\n" * 50,
    "zeros": bytes(5000),
    "mp4 without index": clips.encoded(FRAMES, codec="png", pix_fmt="rgb24", format="mp4")[:2000],
}


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".txt", ".bin", ""])
@pytest.mark.parametrize("content", UNREADABLE)
def test_what_is_no_video_is_named(content, suffix, tmp_path):
    file = tmp_path / f"clip{suffix}"
    file.write_bytes(UNREADABLE[content])
    with pytest.raises(VideoError) as caught:
        read_clip(file)
    assert str(caught.value) == f"{file}: {caught.value.reason}"
    assert caught.value.source == str(file)
    assert caught.value.reason
    assert "[Errno" not in str(caught.value)


PLAYLISTS = {
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000",
    "ffconcat": "ffconcat version 1.0\nfile private.mkv\n",
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("suffix", ["own", "mp4"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_files_that_name_others_or_ports_are_refused(kind, suffix, named, mkv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("private.mkv").write_bytes(mkv)
    path = Path(f"clip.{kind if suffix == 'own' else suffix}")
    path.write_text(PLAYLISTS[kind])
    with pytest.raises(VideoError) as caught:
        read_clip(path if named else path.read_bytes(), timeout=5)
    assert not isinstance(caught.value, TimeExceeded)  # of who listens


def test_a_file_that_may_not_be_read(mkv, tmp_path, monkeypatch):
    (tmp_path / "clip.mkv").write_bytes(mkv)
    monkeypatch.setattr(
        "builtins.open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(VideoError, match=r"clip\.mkv: Permission denied"):
        read_clip(tmp_path / "clip.mkv")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_a_file_names_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mkv")  # it would be waited for
    (tmp_path / "clip.mkv").write_text(PLAYLISTS["ffconcat"].replace("private", "pipe"))
    with pytest.raises(VideoError, match=r"clip.mkv: names other files \(format concat\)"):
        read_clip(tmp_path / "clip.mkv")


def test_a_playlist_of_segments_beside_it(tmp_path):
    clips.write(tmp_path / "part.ts", FRAMES, "mpeg2video", "yuv420p", "mpegts")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\npart.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "clip.m3u8").write_text(playlist)
    assert len(read_clip(tmp_path / "clip.m3u8").frames) == len(FRAMES)


def test_a_playlist_that_may_go_on_is_not_waited_for(tmp_path):
    clips.write(tmp_path / "part.ts", FRAMES, "mpeg2video", "yuv420p", "mpegts")
    live = "#EXTM3U\n#EXT-X-TARGETDURATION:3600\n#EXTINF:1,\npart.ts\n"
    choice = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n\n{}\n"
    lists = {
        "live": live,
        "remark": f"{live}# no #EXT-X-ENDLIST here\n",
        "whole": f"{live}#EXT-X-ENDLIST\n",
        "choice": choice.format("live.m3u8"),
        "scheme": choice.format(f"file:{tmp_path}/live.m3u8"),
        "deeper": choice.format("choice.m3u8") + "#EXT-X-ENDLIST\n",
        "itself": choice.format("itself.m3u8") + choice.format("live.m3u8"),
        "sound": '#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,URI="live.m3u8"\n#EXT-X-STREAM-INF:BANDWIDTH=1\nwhole.m3u8\n',
    }
    for name, text in lists.items():
        (tmp_path / f"{name}.m3u8").write_text(text)
    for name in lists.keys() - {"whole"}:
        with pytest.raises(VideoError, match=rf"{name}\.m3u8: is a playlist that may go on, as of a live stream"):
            read_clip(tmp_path / f"{name}.m3u8")
    (tmp_path / "choice.m3u8").write_text(choice.format("whole.m3u8"))
    assert len(read_clip(tmp_path / "choice.m3u8").frames) == len(FRAMES)
    (tmp_path / "songs.m3u").write_text("#EXTM3U\n#EXTINF:1,song\nsong.mp3\n")
    with pytest.raises(VideoError, match=r"songs\.m3u: Invalid data"):
        read_clip(tmp_path / "songs.m3u")


@pytest.mark.parametrize("content", UNREADABLE)
def test_bytes_that_are_no_video(content):
    with pytest.raises(VideoError, match=r"^<bytes>: "):
        read_clip(UNREADABLE[content])


@pytest.mark.parametrize("cover", [False, True])
def test_sound_alone_is_no_video(cover, tmp_path):
    clips.write_sound(tmp_path / "sound.m4a", cover)
    with av.open(str(tmp_path / "sound.m4a")) as container:
        assert len(container.streams.video) == cover
    with pytest.raises(VideoError, match=r"sound\.m4a: has no video stream \(format "):
        read_clip(tmp_path / "sound.m4a")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.avi"):
        read_clip(tmp_path / "nowhere.avi")
    with pytest.raises(VideoError, match="has no image to read"):
        read_clip(tmp_path)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc to count open files")
def test_files_are_closed_whatever_happens(path, tmp_path):
    cut, text, sound = tmp_path / "cut.mkv", tmp_path / "text.txt", tmp_path / "sound.mka"
    cut.write_bytes(path.read_bytes()[:700])
    text.write_bytes(UNREADABLE["text"])
    clips.write_sound(sound)
    before = len(os.listdir("/proc/self/fd"))
    for file in [path, cut, text, sound] * 5:
        try:
            read_clip(file)
        except VideoError:
            assert file != path
    assert len(os.listdir("/proc/self/fd")) == before


def test_video_error_survives_pickling():
    for error in (VideoError("clip.avi", "broken"), VideoError("clip.avi", "broken", 7)):
        copy = pickle.loads(pickle.dumps(error))
        assert (str(copy), copy.source, copy.reason, copy.frame) == (
            str(error),
            error.source,
            error.reason,
            error.frame,
        )
    assert str(VideoError("clip.avi", "broken", 7)) == "clip.avi, frame 7: broken"


@pytest.mark.parametrize("error", [VideoError("a b.avi", "broken: badly"), VideoError("a.avi", "broken", 7)])
def test_video_error_is_found_in_the_traceback_of_a_worker(error):
    copy = VideoError(f"Caught VideoError in worker 0.\nTraceback ...\ndynpool.decoder.VideoError: {error}\n")
    assert (copy.source, copy.reason, copy.frame) == (error.source, error.reason, error.frame)
    assert str(VideoError("nothing of the kind")) == "a video: nothing of the kind"


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("video", "error", "message"),
    [
        (7, TypeError, r"video must be a path, folder of images, URL, .*, got int"),
        (None, TypeError, r"got NoneType"),
        (FRAMES.astype(np.float32), TypeError, r"video must be uint8, got an ndarray of float32"),
        (torch.zeros(2, 3, 4, 5), TypeError, r"video must be uint8, got a Tensor of torch.float32"),
        (FRAMES[0], ValueError, r"shape \[T, H, W, 3\] and at least one frame, got \[13, 17, 3\]"),
        (FRAMES[:0], ValueError, r"got \[0, 13, 17, 3\]"),
        (torch.zeros(2, 3, 0, 5, dtype=torch.uint8), ValueError, r"got \[2, 3, 0, 5\]"),
        ([torch.zeros(4, 6, 5, dtype=torch.uint8)], TypeError, r"video\[0\] must be a uint8 .*, got Tensor"),
        ([np.zeros((6, 5, 4), np.uint8)], TypeError, r"video\[0\] must be a uint8 .*, got ndarray"),
        (torch.from_numpy(FRAMES), ValueError, r"shape \[T, 3, H, W\] and at least one frame, got \[7, 13, 17, 3\]"),
        ([], ValueError, r"video must have at least one frame"),
        (
            [FRAMES[0], FRAMES[0, :5]],
            ValueError,
            r"video\[1\] must be of the size of those before, \(13, 17\), got \(5,",
        ),
        ([FRAMES[0], "frame.png"], TypeError, r"video\[1\] must be a uint8 ndarray .*, got str$"),
        ([av.VideoFrame(8, 6, "bgr24"), FRAMES[0]], ValueError, r"video\[1\] must be of the size of those before"),
        ([FRAMES[0] / 255], TypeError, r"video\[0\] must be a uint8 ndarray .*, got ndarray float64 \[13, 17, 3\]"),
        (io.StringIO("text"), TypeError, r"binary mode"),
    ],
)
def test_other_things_are_refused(video, error, message):
    with pytest.raises(error, match=message):
        read_clip(video)


@pytest.mark.parametrize("size", [0, -5, 1.5, (3,), (3, 0), "big", True])
def test_bad_sizes_are_refused(size):
    with pytest.raises(ValueError, match="size must be a positive integer or a pair"):
        read_clip(FRAMES, size=size)


def test_sizes_beyond_what_is_decoded_are_refused():
    for size in (2**31, (2**14, 2**14)):
        with pytest.raises(ValueError, match=r"size must make images of at most 2\^27 pixels, got"):
            read_clip(FRAMES, size=size)
    with pytest.raises(ValueError, match="got 10000, which makes 40000 x 10000 of 200 x 50"):
        read_clip(clips.random_frames(1, 50, 200), size=10000)


@pytest.mark.parametrize("count", [0, -1, 2.0])
def test_bad_frame_limits_are_refused(count):
    with pytest.raises(ValueError, match="max_frames must be a positive integer, got"):
        read_clip(FRAMES, max_frames=count)


# --- real files -----------------------------------------------------------------------------------------------------


def test_real_clips_have_the_frames_their_files_declare():
    for file in clips.real_clips("ucf101", "kinetics"):
        with av.open(str(file)) as container:
            declared = container.streams.video[0].frames
        clip = read_clip(file, size=16)
        assert (len(clip.frames), clip.damaged) == (declared, 0), file


def test_real_clips_lack_nothing():
    for file in clips.real_clips("ucf101", "hmdb51", "kinetics", "other"):
        assert read_clip(file, size=8).damaged == 0, file
    (clip,) = [file for file in clips.real_clips("ucf101") if file.name == "v_BenchPress_g01_c01.avi"]
    half = read_clip(cut(clip.read_bytes()), size=8)
    assert half.damaged >= 151 - len(half.frames)


def test_odd_and_damaged_real_clips_open():
    for file in clips.real_clips("hmdb51", "other"):
        frames = read_clip(file, max_frames=60).frames
        assert len(frames) >= 48, file
        assert frames.float().std() > 10, file


def test_broken_metadata_does_not_hide_a_real_clip():
    (cartwheel,) = [file for file in clips.real_clips("hmdb51") if "cartwheel" in file.name]
    if TOLERANT:
        with pytest.raises(UnicodeDecodeError):
            av.open(str(cartwheel))
    assert read_clip(cartwheel).frames.shape == (83, 3, 240, 320)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"start": 2}, slice(2, None)),
        ({"end": 3}, slice(0, 3)),
        ({"every": 3}, slice(0, None, 3)),
        ({"start": 1, "end": 6, "every": 2}, slice(1, 6, 2)),
        ({"start": 1, "every": 2, "max_frames": 2}, slice(1, 4, 2)),
        ({"end": 2, "max_frames": 5}, slice(0, 2)),
        ({"end": 99}, slice(0, None)),
    ],
    ids=str,
)
def test_frames_are_chosen(tmp_path, options, expected):
    array = clips.random_frames(8, 6, 10)
    clips.write(tmp_path / "clip.mkv", array)
    frames = torch.from_numpy(array).permute(0, 3, 1, 2)
    for video in (tmp_path / "clip.mkv", frames, array, iter(array)):
        assert torch.equal(read_clip(video, **options).frames, frames[expected])


def test_no_frame_is_chosen(tmp_path):
    frames = clips.random_frames(4, 6, 10)
    clips.write(tmp_path / "clip.mkv", frames)
    with pytest.raises(ValueError, match="start must be below the number of frames, 4, got 4"):
        read_clip(frames, start=4)
    with pytest.raises(ValueError, match="video must have at least 5 frames, for start = 4"):
        read_clip(iter(frames), start=4)
    with pytest.raises(VideoError, match="no frame from frame 4 on can be decoded"):
        read_clip(tmp_path / "clip.mkv", start=4)
    for options, message in (
        ({"start": -1}, "start must be a frame number from 0, got -1"),
        ({"start": 3, "end": 3}, "end must be a frame number after start = 3, got 3"),
        ({"every": 0}, "every must be a positive integer, got 0"),
        ({"every": None}, "every must be a positive integer, got None"),
        ({"start": 2**63}, f"start must be at most 2147483647, got {2**63}"),
        ({"end": 2**63}, f"end must be at most 2147483647, got {2**63}"),
        ({"every": 2**70}, f"every must be at most 2147483647, got {2**70}"),
        ({"max_frames": 2**31}, f"max_frames must be at most 2147483647, got {2**31}"),
        ({"timeout": "3"}, "timeout must be a positive number of seconds, got '3'"),
        ({"timeout": math.nan}, "timeout must be a positive number of seconds, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            read_clip(frames, **options)


def test_numbers_may_be_numpys(tmp_path):
    frames = clips.random_frames(8, 6, 10)
    clips.write(tmp_path / "clip.mkv", frames)
    numbers = {"start": np.int64(1), "end": np.int32(7), "every": np.uint8(2), "max_frames": np.int64(2)}
    for video in (tmp_path / "clip.mkv", frames, iter(frames)):
        found = read_clip(video, size=np.int64(12), timeout=np.float32(60), **numbers).frames
        assert torch.equal(found, read_clip(frames[[1, 3]], size=12).frames)
    assert read_clip(frames, size=(np.int64(3), np.int64(4))).frames.shape == (8, 3, 3, 4)


def test_frames_of_pyav_are_frames(tmp_path):
    clips.write(tmp_path / "clip.mkv", clips.random_frames(5, 6, 10))
    with av.open(str(tmp_path / "clip.mkv")) as container:
        decoded = list(container.decode(video=0))
    assert torch.equal(read_clip(decoded).frames, read_clip(tmp_path / "clip.mkv").frames)


def write_images(folder, count):
    array = clips.random_frames(count, 6, 10)
    for number, frame in enumerate(array, 1):
        Image.fromarray(frame).save(folder / f"frame{number}.png")
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def test_a_folder_of_images(tmp_path):
    frames = write_images(tmp_path, 12)
    (tmp_path / "notes.txt").write_text("not a frame")
    clip = read_clip(tmp_path)
    assert torch.equal(clip.frames, frames)  # frame2 before frame10
    assert clip.damaged == 0
    assert torch.equal(read_clip(str(tmp_path), start=1, every=4).frames, frames[1::4])
    (tmp_path / "frame3.png").write_bytes(b"broken")
    large = tmp_path / "frame5.png"
    large.write_bytes(clips.declaring(large.read_bytes(), 20000, 20000))
    Image.new("RGB", (20, 12), (7, 7, 7)).save(tmp_path / "frame13.png")  # of another size
    clip = read_clip(tmp_path)
    assert clip.damaged == 2
    assert torch.equal(clip.frames[:10], frames[[0, 1, 3, *range(5, 12)]])
    assert torch.equal(clip.frames[10], torch.full((3, 6, 10), 7, dtype=torch.uint8))
    for start in (13, 99):
        with pytest.raises(VideoError, match=rf"start must be below the number of its images, 13, got {start}$"):
            read_clip(tmp_path, start=start)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(VideoError, match="has no image to read"):
        read_clip(empty)


def test_an_image_too_large_to_be_meant(tmp_path, monkeypatch):
    frames = write_images(tmp_path, 3)
    monkeypatch.setattr("dynpool.video.MAX_PIXELS", 60)
    assert torch.equal(read_clip(tmp_path).frames, frames)
    Image.new("RGB", (61, 1)).save(tmp_path / "frame4.png")
    assert read_clip(tmp_path).damaged == 1


def test_hidden_images_are_none_of_a_folder(tmp_path):
    frames = write_images(tmp_path, 4)
    Image.new("RGB", (3, 2)).save(tmp_path / ".thumb.png")  # would come first, and say the size of all
    (tmp_path / "._frame1.png").write_bytes(b"of a file manager")
    clip = read_clip(tmp_path, max_frames=3)
    assert clip.damaged == 0
    assert torch.equal(clip.frames, frames[:3])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_among_images_is_not_waited_for(tmp_path):
    frames = write_images(tmp_path, 4)
    os.mkfifo(tmp_path / "frame99.png")
    clip = read_clip(tmp_path)
    assert clip.damaged == 1
    assert torch.equal(clip.frames, frames)


def test_exif_data_that_are_broken(tmp_path):
    """ImageOps.exif_transpose raises struct.error, since a length is a text."""
    length = struct.pack("<HHI", 0x0101, 2, 4) + b"abc\0"
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + length + orientation + bytes(4)
    Image.new("RGB", (24, 16), (80, 0, 0)).save(tmp_path / "frame1.jpg", exif=exif)
    clip = read_clip(tmp_path)
    assert clip.damaged == 0
    assert clip.frames.shape == (1, 3, 24, 16)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_once(tmp_path, orientation, suffix):
    """Of a folder, in memory and of a stream; Pillow turns TIFF files by itself."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = clips.random_frames(1, 12, 16)[0] // 64 * 64
    Image.fromarray(pixels).save(tmp_path / f"frame1.{suffix}", exif=exif)
    with Image.open(tmp_path / f"frame1.{suffix}") as picture:
        upright = torch.from_numpy(np.asarray(ImageOps.exif_transpose(picture).convert("RGB")).copy()).permute(2, 0, 1)
        assert torch.equal(read_clip(tmp_path).frames[0], upright)
        assert torch.equal(read_clip([picture]).frames[0], upright)
        stream = RankPoolStream()
        stream.update(picture)
        assert stream.result().shape == upright.shape


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    write_images(tmp_path, 2)
    monkeypatch.setattr(Image, "open", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        read_clip(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "ppm"])
def test_grey_of_16_bits(tmp_path, suffix):
    """Pillow opens one in mode I;16, the other in I, and clips both."""
    Image.fromarray(np.array([[0, 257, 30000, 65535]], np.uint16)).save(tmp_path / f"frame1.{suffix}")
    assert read_clip(tmp_path).frames[0, 0].tolist() == [[0, 1, 117, 255]]


def test_the_order_of_a_folders_images(monkeypatch):
    expected = ["B2.JPG", "b2.jpg", "b02.png", "b2.png", "b10.png", "²3.png"]
    for names in (expected, expected[::-1]):
        monkeypatch.setattr(os, "listdir", lambda folder, names=names: [*names, "notes.txt"])
        assert numbered_images("folder") == expected


def test_a_folders_images_are_turned_and_scaled(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 16)).save(tmp_path / "frame1.jpg", exif=exif)
    assert read_clip(tmp_path).frames.shape == (1, 3, 24, 16)
    assert read_clip(tmp_path, size=8).frames.shape == (1, 3, 12, 8)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_16_bits_become_8(mode, tmp_path):
    grey = np.array([[0, 128, 129, 257], [256 * 128, 65406, 65407, 65535]], np.uint16)
    expected = [[0, 0, 1, 1], [128, 254, 255, 255]]  # of 65535 / 255 = 257
    image = Image.frombytes(mode, (4, 2), grey.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    assert pixels([image])[0, :, :, 0].tolist() == expected
    Image.fromarray(grey).save(tmp_path / "frame1.png")
    if mode != "I;16L" or tuple(map(int, PIL.__version__.split(".")[:2])) >= (11, 3):  # which writes it
        image.save(tmp_path / "frame2.tiff")
    for frame in pixels(tmp_path):
        assert frame.tolist() == np.array(expected)[:, :, None].repeat(3, 2).tolist()
