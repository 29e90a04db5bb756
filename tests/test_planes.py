"""Pooling of decoded frames: against RGB that numpy makes of the planes, in float64, and against FFmpeg's own."""

from __future__ import annotations

import functools
import gc
import io
import itertools
import math
import sys
import warnings
from dataclasses import replace

import clips
import numpy as np
import pytest
import torch

from dynpool import (
    RankPoolStream,
    VideoError,
    approx_rank_pool,
    binary,
    dynamic_image,
    dynamic_images,
    planes,
    pools,
    rank_weights,
    to_image,
)
from dynpool.decoder import Decoder, frame_count, open_video
from dynpool.formats import Format, RgbConverter
from dynpool.images import make_images
from dynpool.planes import ColourPlanes, RawPlanes
from dynpool.pools import MovedColours, MovedRaw, RgbFrames, pool_for
from dynpool.recipe import Recipe
from dynpool.streaming import Endless, Windows
from dynpool.video import read_clip

av = clips.av

CPU = torch.device("cpu")
ALL = slice(0, None, 1)
INSTRUCTION_SETS = ["baseline", "avx2", "avx512", None]
YUV = {  # bits, samples of luma to one of chroma across and down
    "yuv420p": (8, 2, 2),
    "yuvj420p": (8, 2, 2),
    "yuv422p": (8, 2, 1),
    "yuv444p": (8, 1, 1),
    "nv12": (8, 2, 2),
    "yuv420p10le": (10, 2, 2),
    "yuv422p10le": (10, 2, 1),
    "yuv444p10le": (10, 1, 1),
}
RGB = {
    "rgb24": (0, 1, 2),
    "bgr24": (2, 1, 0),
    "rgba": (0, 1, 2),
    "bgra": (2, 1, 0),
    "rgb0": (0, 1, 2),
    "bgr0": (2, 1, 0),
}
BT601, BT709, BT2020 = 5, 1, 9
LUMA = {BT601: (0.299, 0.114), BT709: (0.2126, 0.0722), BT2020: (0.2627, 0.0593)}
MATRICES = {**LUMA, 2: LUMA[BT601], 3: LUMA[BT601], 4: (0.30, 0.11), 6: LUMA[BT601], 7: (0.212, 0.087)}  # ITU-T H.273
LIMITED, FULL = 1, 2

needs_kernels = pytest.mark.skipif(not binary.has_planes(), reason="the extension is not built")


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request):
    if binary.extension is None:
        pytest.skip("the extension is not built")
    binary.extension.cpu.limit_instruction_set(request.param)
    yield request.param
    binary.extension.cpu.limit_instruction_set(None)


def lines(plane, dtype):
    """A decoder's plane as [lines, samples], padding and all."""
    return np.frombuffer(plane, dtype).reshape(-1, plane.line_size // np.dtype(dtype).itemsize)


def random_frame(format, width, height, seed=0, colorspace=BT601, color_range=LIMITED):
    """A frame of PyAV whose planes, and their padding, are noise."""
    frame = av.VideoFrame(width, height, format)
    rng = np.random.default_rng(seed)
    for plane in frame.planes:
        if format.endswith("10le"):
            noise = rng.integers(0, 1024, plane.buffer_size // 2, dtype=np.uint16)
        else:
            noise = rng.integers(0, 256, plane.buffer_size, dtype=np.uint8)
        plane.update(noise.tobytes())
    frame.colorspace, frame.color_range = colorspace, color_range
    return frame


def yuv_of(frame):
    """Y, U, V of every pixel, at 8 bits and float64, [3, H, W]."""
    bits, across, down = YUV[frame.format.name]
    dtype = np.uint8 if bits == 8 else np.uint16
    found = [lines(plane, dtype).astype(np.float64) / 2 ** (bits - 8) for plane in frame.planes]
    if frame.format.name == "nv12":
        found = [found[0], found[1][:, 0::2], found[1][:, 1::2]]
    of_lines = np.arange(frame.height) // down
    if frame.interlaced_frame and down == 2:  # lines 0, 2, … of either, and 1, 3, …
        for parity in (0, 1):
            own = np.arange(parity, -(-frame.height // 2), 2)
            lines_of_field = of_lines[parity::2]  # of one line of chroma both are
            of_lines[parity::2] = own[np.minimum(np.arange(len(lines_of_field)) // 2, len(own) - 1)] if len(own) else 0
    chroma = [plane.repeat(across, 1)[of_lines] for plane in found[1:]]
    return np.stack([plane[: frame.height, : frame.width] for plane in [found[0], *chroma]])


def rgb_of(frame, rounded=True):
    """R, G, B by the definition of the colour space, [3, H, W]."""
    name = frame.format.name
    if name == "gray":
        return np.stack([lines(frame.planes[0], np.uint8)[: frame.height, : frame.width]] * 3).astype(np.float64)
    if name in RGB:
        size = 3 if name.endswith("24") else 4
        pixels = lines(frame.planes[0], np.uint8)[: frame.height, : size * frame.width]
        return pixels.reshape(frame.height, frame.width, size)[..., RGB[name]].transpose(2, 0, 1).astype(np.float64)
    full = name.startswith("yuvj") or frame.color_range == FULL
    Y, U, V = yuv_of(frame) - np.array([0 if full else 16, 128, 128])[:, None, None]
    Y, U, V = (Y, U, V) if full else (Y * 255 / 219, U * 255 / 224, V * 255 / 224)
    red, blue = MATRICES[frame.colorspace]
    R, B = Y + 2 * (1 - red) * V, Y + 2 * (1 - blue) * U
    G = (Y - red * R - blue * B) / (1 - red - blue)
    rgb = np.stack([R, G, B])
    return rgb.clip(0, 255) if rounded else rgb


def moved_to(device, pool):
    """The pool that another device than the CPU has, on whatever device."""
    kind = {ColourPlanes: MovedColours, RawPlanes: MovedRaw}[type(pool)]
    return kind(pool.form, pool.nonlinearity, pool._turn, device)


def pooled_by(pool, frames, weights, dtype=torch.float64):
    rows = [pool.zeros(dtype) for _ in weights]
    mix = torch.eye(len(weights)).tolist() if dtype == torch.float64 else None
    pool.add([pool.fitting(frame) for frame in frames], rows, weights, mix)
    return torch.stack([pool.image(row, sum(line)) for row, line in zip(rows, weights, strict=True)])


# --- colours --------------------------------------------------------------------------------------------------------


# Widths beyond a vector and a span, odd ones, and the smallest.
SIZES = [(1, 1), (2, 3), (17, 13), (130, 5), (1061, 3)]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("format", [*YUV, *RGB, "gray"])
def test_colours_of_every_format(format, width, height, instruction_set):
    for colorspace, color_range in itertools.product(LUMA, (LIMITED, FULL)):
        frame = random_frame(format, width, height, colorspace=colorspace, color_range=color_range)
        pool = pool_for(frame, "identity", CPU, None, colours=True)
        assert isinstance(pool, ColourPlanes if format in YUV else RawPlanes)
        largest = pool.zeros(torch.uint8)
        pool.take_largest([frame], [largest], [slice(None)])
        found, expected = pool.image(largest, 0).numpy().astype(float), rgb_of(frame)
        # Every product is rounded down, and its factor to 13 bits: of 255, and of 128 twice.
        products = 2 if format in YUV else 0
        assert np.abs(found - expected).max() <= products * 1.05 + (found.shape[0] == 3 and format in YUV)
        if format not in YUV or format == "gray":
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("format", ["yuv420p", "yuvj420p", "yuv422p"])
@pytest.mark.parametrize("colorspace", [BT601, BT709, BT2020, 2, 7])
@pytest.mark.parametrize("color_range", [LIMITED, FULL])
def test_colours_are_ffmpegs_to_the_bit(format, colorspace, color_range, instruction_set):
    frame = random_frame(format, 134, 26, colorspace=colorspace, color_range=color_range)
    pool = pool_for(frame, "sqrt", CPU, None, colours=True)
    largest = pool.zeros(torch.uint8)
    pool.take_largest([frame], [largest], [slice(None)])
    np.testing.assert_array_equal(pool.image(largest, 0).permute(1, 2, 0).numpy(), frame.to_ndarray(format="rgb24"))


@pytest.mark.parametrize(("width", "height"), [(2, 2), (17, 13), (130, 16), (1061, 7), (9, 6)])
@pytest.mark.parametrize("format", ["yuv420p", "yuvj420p", "nv12", "yuv420p10le", "yuv422p"])
def test_colours_of_interlaced_frames(format, width, height, instruction_set):
    """Also beside others, as broadcasts have them: of each frame it is its own."""
    frames = [random_frame(format, width, height, seed) for seed in range(6)]
    frames = [frame if t % 3 == 1 else clips.interlaced(frame) for t, frame in enumerate(frames)]
    assert [frame.interlaced_frame for frame in frames] == [True, False, True] * 2
    for first in (0, 1):  # whichever comes first
        pool = pool_for(frames[first], "identity", CPU, None, colours=True)
        weights = torch.randn(2, 6, dtype=torch.float64).tolist()
        expected = np.einsum("kt,tchw->kchw", weights, np.stack([rgb_of(frame) for frame in frames]))
        found = pooled_by(pool, frames, weights).numpy()
        assert np.abs(found - expected).max() <= 3.1 * np.abs(weights).sum(1).max()  # as above
        largest = pool.zeros(torch.uint8)
        pool.take_largest(frames, [largest], [slice(2, 6)])
        assert np.abs(pool.image(largest, 0).numpy() - np.stack([rgb_of(f) for f in frames[2:]]).max(0)).max() <= 3.1


def test_colours_of_interlaced_frames_are_ffmpegs_to_the_bit(instruction_set):
    frame = clips.interlaced(random_frame("yuv420p", 134, 28))
    pool = pool_for(frame, "sqrt", CPU, None, colours=True)
    largest = pool.zeros(torch.uint8)
    pool.take_largest([frame], [largest], [slice(None)])
    np.testing.assert_array_equal(pool.image(largest, 0).permute(1, 2, 0).numpy(), frame.to_ndarray(format="rgb24"))


@needs_kernels
@pytest.mark.parametrize("height", [2, 6, 13, 122])
@pytest.mark.parametrize("format", ["yuv420p", "nv12", "yuv420p10le"])
def test_rgb_of_fields_of_unequal_height(format, height):
    """Of whose chroma swscale reads lines that are not there."""
    frame = clips.interlaced(random_frame(format, 34, height))
    expected = rgb_of(frame)  # as above
    assert np.abs(RgbConverter()(frame).transpose(2, 0, 1) - expected).max() <= 3.1
    assert np.abs(read_clip([frame]).frames[0].numpy() - expected).max() <= 3.1
    form = Format.of(frame)._replace(color_range=FULL, name="yuv444p")
    assert np.abs(rgb_of(form.made_of(frame)) - expected).max() <= 6  # and once more


@needs_kernels
def test_interlaced_frames_that_join_sums_of_planes():
    """Whose chroma, once for two lines, cannot be both frames' and fields'."""
    plain, smooth = (av.VideoFrame(32, 24, "yuv420p") for _ in range(2))
    for frame, slope in ((plain, 0), (smooth, 8)):
        for index, plane in enumerate(frame.planes):
            rows = 100 + slope * np.arange(plane.height)[:, None] // (1 if index else 2) + np.zeros(plane.line_size)
            plane.update(rows.astype(np.uint8).tobytes())
        frame.colorspace, frame.color_range = BT601, LIMITED
    assert isinstance(pool_for(clips.interlaced(smooth), "identity", CPU, None, colours=False), ColourPlanes)
    pool = pool_for(plain, "identity", CPU, None, colours=False)
    field = clips.interlaced(smooth)
    assert isinstance(pool, RawPlanes)
    assert pool.takes(smooth)
    assert not pool.takes(field)
    fitting = pool.fitting(field)
    assert not fitting.interlaced_frame
    fitting.colorspace, fitting.color_range = BT601, LIMITED  # as it was told to be made
    # Its colours, but for a line of chroma more or less, a step of 8 times 2.02.
    assert np.abs(rgb_of(fitting) - rgb_of(field)).max() < 20


@needs_kernels
@pytest.mark.parametrize("options", [{}, {"method": "mean"}, {"method": "max"}, {"window": 4, "stride": 3}], ids=str)
def test_interlaced_files_pool_as_their_frames(options):
    pattern = np.tile(np.array([[[30, 160, 90]], [[200, 60, 70]]], np.uint8), (24, 64, 1))
    frames = [np.roll(pattern, (t, 3 * t), (0, 1)) for t in range(11)]
    video = clips.encoded(frames, codec="libx264", pix_fmt="yuv420p", **{"x264-params": "tff=1:qp=4"})
    with av.open(io.BytesIO(video)) as container:
        assert all(frame.interlaced_frame for frame in container.decode(video=0))
    made, expected = (
        (dynamic_images if "window" in options else dynamic_image)(source, **options)
        for source in (video, read_clip(video).frames)
    )
    assert (made.int() - expected.int()).abs().max() <= 1


@needs_kernels
@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("format", YUV)
def test_colours_are_the_same_on_every_device(format, width, height, backend):
    for colorspace, color_range in itertools.product(LUMA, (LIMITED, FULL)):
        frames = [random_frame(format, width, height, seed, colorspace, color_range) for seed in range(3)]
        frames[1] = clips.interlaced(frames[1])
        pool = pool_for(frames[0], "sqrt", CPU, None, colours=True)
        there = moved_to(backend.device, pool)
        largest = [each.zeros(torch.uint8) for each in (pool, there)]
        for each, row in zip((pool, there), largest, strict=True):
            each.take_largest(frames, [row], [slice(None)])
        assert largest[1].device.type == backend.device.type
        assert torch.equal(largest[0], largest[1].cpu())


@needs_kernels
@pytest.mark.parametrize("format", ["yuv420p", "bgr24"])
def test_maxima_of_overlapping_spans(format, backend):
    frames = [random_frame(format, 37, 13, seed) for seed in range(7)]
    pool = pool_for(frames[0], "sqrt", CPU, None, colours=True)
    spans = [slice(0, 3), slice(2, 7), slice(6, 20)]
    for each in (pool, moved_to(backend.device, pool)):
        rows = [each.zeros(torch.uint8) for _ in spans]
        rows[0].fill_(200)  # of frames before
        each.take_largest(frames, rows, spans)
        for row, span, least in zip(rows, spans, (200, 0, 0), strict=True):
            expected = np.stack([rgb_of(frame) for frame in frames[span]]).max(0)
            assert np.abs(each.image(row, 0).cpu().numpy() - np.maximum(expected, least)).max() <= 3.1  # as above


# --- sums -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonlinearity", ["sqrt", "identity"])
@pytest.mark.parametrize("format", ["yuv420p", "nv12", "yuv444p10le", "rgb24", "bgr0", "gray"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weighted_sums(format, nonlinearity, dtype, instruction_set):
    frames = [random_frame(format, 581, 7, seed) for seed in range(11)]
    weights = torch.randn(3, 11, dtype=torch.float64)
    weights[1, :4] = weights[1, 9:] = 0  # a window
    pool = pool_for(frames[0], nonlinearity, CPU, None, colours=True)
    found = pooled_by(pool, frames, weights.tolist(), dtype)
    bytes_of = []
    for frame in frames:  # as the test of colours has found them right
        largest = pool.zeros(torch.uint8)
        pool.take_largest([frame], [largest], [slice(None)])
        bytes_of.append(pool.image(largest, 0))
    values = torch.stack(bytes_of).double()
    values = values.sqrt() if nonlinearity == "sqrt" else values
    expected = torch.einsum("kt,tchw->kchw", weights, values)
    # 11 products and sums in float32. As bytes, roots have 16 bits, within 2^-13, and weights 16 to the largest.
    as_bytes = dtype == torch.float32 and instruction_set is None
    rounding = 12 * 2**-23 * values.max().item() + (2**-13 if nonlinearity == "sqrt" and as_bytes else 0)
    of_weights = 11 * 2**-16 * values.max().item() * weights.abs().max() if as_bytes else 0
    assert (found - expected).abs().max() <= rounding * weights.abs().sum(1).max() + of_weights


@needs_kernels
@pytest.mark.parametrize("nonlinearity", ["sqrt", "identity"])
@pytest.mark.parametrize("format", ["yuv420p", "nv12", "yuv444p10le", "rgb24", "bgr0", "gray"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weighted_sums_on_every_device(format, nonlinearity, dtype, backend):
    """In three batches, of which the third has the buffer of the first."""
    frames = [random_frame(format, 131, 7, seed) for seed in range(11)]
    weights = torch.randn(2, 11, dtype=torch.float64)
    pool = pool_for(frames[0], nonlinearity, CPU, None, colours=False)
    expected = pooled_by(pool, frames, weights.tolist())
    there = moved_to(backend.device, pool)
    rows = [there.empty(dtype) for _ in weights]
    for first in range(0, 11, 4):
        part, mix = weights[:, first : first + 4].tolist(), None
        if dtype == torch.float64:
            mix = torch.eye(2).tolist()
            rows = rows if first else [row.zero_() for row in rows]
        there.add(frames[first : first + 4], rows, part, mix, [first == 0] * 2 if mix is None else ())
    found = torch.stack([there.image(row, line.sum().item()) for row, line in zip(rows, weights, strict=True)])
    assert found.device.type == backend.device.type
    # 11 products and sums of float32, and of planes three of theirs; the kernel's roots and sums before they are mixed.
    assert (found.cpu() - expected).abs().max() <= 12 * 2**-23 * 255 * 6 * weights.abs().sum(1).max()


@pytest.mark.parametrize("nonlinearity", ["sqrt", "identity"])
@pytest.mark.parametrize("count", [2, 3, 5, 9, 16])
@pytest.mark.parametrize("format", ["yuv420p", "rgb24"])
def test_what_does_not_move_vanishes(format, count, nonlinearity, instruction_set):
    frames = [random_frame(format, 195, 6)] * count
    pool = pool_for(frames[0], nonlinearity, CPU, None, colours=True)
    weights = rank_weights(count, normalize_weights=True).tolist()
    largest = 16 if nonlinearity == "sqrt" else 255
    # Each weight is rounded to 2^-24 of the largest, or to float32, and so is each product.
    assert pooled_by(pool, frames, [weights], torch.float32).abs().max() <= 2 * count * 2**-23 * largest * max(weights)


def test_the_least_changes_are_seen_for_what_they_are(instruction_set):
    still = np.random.default_rng(0).integers(180, 255, (9, 40, 3), np.uint8)
    flips = np.random.default_rng(1).integers(0, 2, (16, 9, 40, 3), np.uint8)
    frames = [av.VideoFrame.from_ndarray(still + flip, format="rgb24") for flip in flips]
    pool = pool_for(frames[0], "sqrt", CPU, None, colours=False)
    weights = rank_weights(16, normalize_weights=True)
    found = pooled_by(pool, frames, [weights.tolist()], torch.float32)[0].double()
    values = torch.from_numpy(still + flips).double().sqrt().permute(0, 3, 1, 2)
    expected = torch.einsum("t,tchw->chw", weights, values)
    # Roots are rounded to 2^-13, and a change from 254 to 255 is one of 2^-5: two levels of 255 at the most.
    levels = 255 / (expected.max() - expected.min())
    assert (found - expected).abs().max() * levels <= 2


@pytest.mark.parametrize("format", [name for name, (bits, _, _) in YUV.items() if bits == 8])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_identity_pools_planes_and_converts_their_sum(format, width, height, instruction_set):
    frames = [random_frame(format, width, height, seed) for seed in range(5)]
    pool = pool_for(frames[0], "identity", CPU, None, colours=False)
    assert isinstance(pool, RawPlanes)
    weights = [0.5, -2.0, 1.0, 0.75, -0.25]  # of sum 0: nothing is taken off for rounding
    expected = sum(weight * rgb_of(frame, rounded=False) for weight, frame in zip(weights, frames, strict=True))
    assert np.abs(pooled_by(pool, frames, [weights])[0].numpy() - expected).max() <= 4.5 * 255 * 3 * 6 * 2**-23


@needs_kernels
@pytest.mark.parametrize("color_range", [LIMITED, FULL])
@pytest.mark.parametrize("colorspace", MATRICES)
def test_the_matrix_of_every_colour_space(colorspace, color_range):
    frame = random_frame("yuv444p", 17, 13, colorspace=colorspace, color_range=color_range)
    pool = pool_for(frame, "identity", CPU, None, colours=False)
    expected = rgb_of(frame, rounded=False)
    assert np.abs(pooled_by(pool, [frame], [[1.0]])[0].numpy() - expected).max() <= 255 * 3 * 6 * 2**-23


@needs_kernels
@pytest.mark.parametrize("format", ["yuv420p", "nv12", "yuvj444p"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_pictures_of_sums_are_those_of_their_images(format, interleaved, instruction_set):
    frames = [random_frame(format, 37, 11, seed) for seed in range(3)]
    pool = pool_for(frames[0], "identity", CPU, None, colours=False)
    row = pool.zeros()
    pool.add(frames, [row], [[0.5, -1.0, 0.75]])
    picture = pool.picture(row, 0.25, 0.0, interleaved)
    assert picture.is_contiguous() is not interleaved
    assert torch.equal(picture, to_image(pool.image(row, 0.25)))
    assert pool.picture(row, 0.25, 1e6, interleaved) is None  # too narrow
    in_float64 = pool.picture(row.double(), 0.25, 0.0, interleaved)
    assert (picture.int() - in_float64.int()).abs().max() <= 1  # at a rounding
    row[5] = math.nan
    assert pool.picture(row, 0.25, 0.0, interleaved) is None


@needs_kernels
def test_rows_may_mix_what_was_weighed():
    frames = [random_frame("yuv420p", 38, 10, seed) for seed in range(6)]
    pool = pool_for(frames[0], "sqrt", CPU, None, colours=False)
    weights, mix = torch.randn(2, 6).double(), torch.tensor([[1.0, 0.0], [3.0, -2.0], [0.0, 0.5]]).double()
    rows = [pool.zeros(torch.float64) for _ in range(3)]
    pool.add(frames, rows, weights.tolist(), mix.tolist())
    expected = pooled_by(pool, frames, (mix @ weights).tolist())
    for row, image in zip(rows, expected, strict=True):
        assert torch.allclose(row.view_as(image), image, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("nonlinearity", ["sqrt", "identity"])
def test_threads_give_the_same_bits(nonlinearity):
    frames = [random_frame("yuv420p", 322, 243, seed) for seed in range(8)]
    pool = pool_for(frames[0], nonlinearity, CPU, None, colours=False)
    before = torch.get_num_threads()
    images = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        images.append(pooled_by(pool, frames, [torch.linspace(-1, 1, 8).tolist()]))
    torch.set_num_threads(before)
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


@pytest.mark.parametrize("format", ["yuv420p", "yuv444p", "nv12", "yuv422p10le"])
@pytest.mark.parametrize("nonlinearity", ["sqrt", "identity"])
def test_colours_that_change_midway_are_converted(format, nonlinearity):
    """Range and matrix may change where size and pixels do not."""
    kinds = [(BT601, LIMITED), (BT601, FULL), (BT709, LIMITED), (BT2020, FULL), (2, 0), (2, 2), (6, 1), (7, 1)]
    if int(av.__version__.split(".")[0]) < 18:
        kinds.remove((BT2020, FULL))  # to which PyAV 17 does not convert
    greys = [np.full((16, 24, 3), (90, 140, 110), np.uint8), np.full((16, 24, 3), (150, 100, 120), np.uint8)]
    for first, second in itertools.permutations(kinds, 2):
        frames = []
        for grey, (colorspace, color_range) in zip(greys, (first, second), strict=True):
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24").reformat(format=format)
            frame.colorspace, frame.color_range = colorspace, color_range
            frames.append(frame)
        pool = pool_for(frames[0], nonlinearity, CPU, None, colours=False)
        for weights in ([1.0, 0.0], [0.0, 1.0]):
            found = pooled_by(pool, frames, [weights])[0]
            found = found.square() if nonlinearity == "sqrt" else found
            expected = frames[int(weights[1])].to_ndarray(format="rgb24").transpose(2, 0, 1)
            # Y and U that are rounded by one move blue by 255 / 219 + 2.14; and each way rounds R, G, B itself.
            assert np.abs(found.numpy() - expected).max() <= 3.3 + 1


@pytest.mark.parametrize("colorspace", [8, 10, 11, 14])
def test_matrices_that_ffmpeg_does_not_convert_are_refused(colorspace):
    """YCgCo, for one, is no BT.601."""
    planes_of = np.full((3, 16, 24), 100, np.uint8)
    tags = {"colorspace": colorspace, "color_range": LIMITED}
    video = clips.encoded([planes_of] * 3, codec="libx264", pix_fmt="yuv444p", frame_format="yuv444p", tags=tags)
    with open_video(video, ALL) as decoder:
        assert {int(frame.colorspace) for _, frame in decoder.frames()} == {colorspace}
    for call in (read_clip, dynamic_image, lambda video: dynamic_image(video, nonlinearity="identity")):
        with pytest.raises(VideoError, match=r"^<bytes>, frame 0: cannot be converted"):
            call(video)
    with pytest.raises(ValueError, match=r"^frame cannot be converted"):
        RankPoolStream().update(random_frame("yuv420p", 16, 16, colorspace=colorspace))


def test_yuv_that_says_it_is_rgb_is_what_ffmpeg_makes_of_it():
    frame = random_frame("yuv420p", 32, 16, colorspace=0)
    pool = pool_for(frame, "identity", CPU, None, colours=False)
    found = pooled_by(pool, [frame], [[1.0]])[0].permute(1, 2, 0)
    assert np.abs(found.numpy() - frame.to_ndarray(format="rgb24")).max() <= 1e-3


@needs_kernels
def test_other_formats_go_through_swscale():
    for format in ("gbrp", "yuv410p", "gray16le", "p010le", "yuv444p16le"):
        frame = random_frame(format, 24, 10)
        pool = pool_for(frame, "sqrt", CPU, None, colours=False)
        assert pool.form.name == "rgb24"
        found = pooled_by(pool, [frame], [[1.0]])[0]
        expected = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
        assert torch.allclose(found, expected.double().sqrt(), atol=2e-4)


def test_without_kernels_rgb_frames_are_pooled(monkeypatch):
    frames = [random_frame("yuv420p", 34, 10, seed) for seed in range(5)]
    weights = [[0.5, -1.0, 0.25, 0.0, 1.0]]
    monkeypatch.setattr(binary, "extension", None)
    pool = pool_for(frames[0], "sqrt", CPU, None, colours=False)
    assert isinstance(pool, RgbFrames)
    expected = sum(
        w * np.sqrt(f.to_ndarray(format="rgb24"), dtype=np.float64) for w, f in zip(weights[0], frames, strict=True)
    )
    for dtype in (torch.float32, torch.float64):
        assert np.abs(pooled_by(pool, frames, weights, dtype)[0].permute(1, 2, 0).numpy() - expected).max() < 1e-4


@needs_kernels
def test_bad_calls_of_the_kernel_are_refused():
    layout = binary.planes_layout([4], [4])
    with pytest.raises(ValueError, match="a frame lacks a plane"):
        binary.pool_planes(layout, [1, 2], [4], 0, "sqrt", [[1.0]], None, [torch.zeros(16)])
    with pytest.raises(ValueError, match="null pointer"):
        binary.pool_planes(layout, [0], [4], 0, "sqrt", [[1.0]], None, [torch.zeros(16)])
    with pytest.raises(ValueError, match="too many frames"):
        binary.pool_planes(layout, [1] * 33, [4] * 33, 0, "sqrt", [[1.0] * 33], None, [torch.zeros(16)])
    with pytest.raises(ValueError, match="weights must be"):
        binary.pool_planes(layout, [1], [4], 0, "sqrt", [[1.0], [2.0]], None, [torch.zeros(16)])
    with pytest.raises(ValueError, match="weights must be"):
        binary.pool_planes(layout, [1], [4], 0, "sqrt", [[1.0]], [[1.0, 2.0]], [torch.zeros(16, dtype=torch.float64)])
    with pytest.raises(ValueError, match="weights must be"):  # a row of float32 is no place for float64
        binary.pool_planes(layout, [1], [4], 0, "sqrt", [[1.0]], [[1.0]], [torch.zeros(16)])


# --- over time ------------------------------------------------------------------------------------------------------


def noise(count, width=18, height=6):
    return [random_frame("gray", width, height, seed) for seed in range(count)]


def values(frames):
    return torch.stack([torch.from_numpy(rgb_of(frame)) for frame in frames])


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize(
    ("count", "window", "stride"), [(12, 6, 4), (10, 4, 4), (5, 9, 2), (13, 3, 5), (30, 10, 1), (1, 1, 1)]
)
@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=needs_kernels) for kind in (RawPlanes, MovedRaw)), RgbFrames]
)
def test_windows(count, window, stride, batch, kind, monkeypatch):
    frames = noise(count)
    size = (frames[0].height, frames[0].width) if kind is RgbFrames else None
    pool = pool_for(frames[0], "identity", CPU, size, colours=True)
    pool = moved_to(CPU, pool) if kind is MovedRaw else pool
    assert type(pool) is kind
    monkeypatch.setattr(pool, "empty", lambda: torch.full(pool.shape, math.nan))
    monkeypatch.setattr(pool, "zeros", lambda dtype: torch.zeros(pool.shape, dtype=dtype))
    weights = torch.randn(window, dtype=torch.float64).tolist()
    starts = range(0, min(max(count - window, 0) + stride, count), stride)
    sums = Windows(pool, window, range(0, sys.maxsize, stride), weights)
    largest = Windows(pool, window, list(starts), None)
    found, maxima = [], []
    for first in range(0, count, batch):
        part = [pool.fitting(frame) for frame in frames[first : first + batch]]
        found += [row.clone() for row in sums.take(part)]
        maxima += list(largest.take(part))
    found += sums.finish(part[-1])
    maxima += largest.finish(part[-1])
    assert len(found) == len(maxima) == len(starts)
    padded = torch.cat([values(frames), values(frames)[-1:].expand(window, -1, -1, -1)])
    for start, row, maximum in zip(starts, found, maxima, strict=True):
        inside = padded[start : start + window]
        expected = torch.einsum("t,tchw->chw", torch.tensor(weights, dtype=torch.float64), inside)
        # Weights may be rounded to 2^-16 of the largest (csrc/cpu/byte_sums.h).
        rounding = 1e-3 + window * 255 * max(map(abs, weights)) * 2**-16
        assert torch.allclose(pool.image(row, 0).double(), expected, atol=rounding)
        assert torch.equal(pool.image(maximum, 0).double(), inside.amax(0))


@pytest.mark.parametrize("time_average", [True, False])
@pytest.mark.parametrize("count", [1, 2, 17, 300])
def test_endless(count, time_average):
    frames = noise(min(count, 16))
    pool = pool_for(frames[0], "sqrt", CPU, None, colours=True)
    sums = Endless(pool, time_average)
    chosen = [frames[i % len(frames)] for i in range(count)]
    for first in range(0, count, 7):
        sums.take([pool.fitting(frame) for frame in chosen[first : first + 7]])
    weights = rank_weights(count, time_average=time_average)
    roots = values(frames).sqrt()
    folded = torch.stack([weights[i :: len(frames)].sum() for i in range(len(frames))])
    expected = torch.einsum("t,tchw->chw", folded, roots)
    assert torch.allclose(pool.image(sums.ranked(), 0), expected, atol=1e-6 * (weights.abs().sum().item() * 16 + 1))
    share = torch.tensor([len(range(i, count, len(frames))) / count for i in range(len(frames))]).double()
    assert torch.allclose(pool.image(sums.mean(), 1), torch.einsum("t,tchw->chw", share, roots), atol=1e-4)


@needs_kernels
def test_a_long_stream_of_decoded_frames():
    frames = [random_frame("yuv420p", 6, 4, seed) for seed in range(97)]  # a prime: no batch is like another
    stream = RankPoolStream(nonlinearity="sqrt", normalize_weights=True)
    T = 100_000
    for t in range(T):
        stream.update(frames[t % 97])
    assert len(stream) == T
    weights = rank_weights(T, normalize_weights=True)
    folded = torch.stack([weights[i::97].sum() for i in range(97)])
    rgb = np.stack([frame.to_ndarray(format="rgb24") for frame in frames]).transpose(0, 3, 1, 2)
    expected = torch.einsum("t,tchw->chw", folded, torch.from_numpy(rgb).double().sqrt())
    assert (stream.result(torch.float64) - expected).abs().max() <= 1e-5 * expected.abs().max()
    stream.reset()
    stream.update(torch.zeros(2, 2))
    assert len(stream) == 1


def test_a_stream_keeps_to_one_kind_of_frame():
    stream = RankPoolStream()
    stream.update(random_frame("yuv420p", 6, 4))
    with pytest.raises(TypeError, match="frame must be a frame of PyAV, as those before, got Tensor"):
        stream.update(torch.zeros(3, 4, 6))
    stream = RankPoolStream(mean=[1.0, 2.0, 3.0], channel_dim=1)  # which planes cannot do
    stream.update(random_frame("yuv420p", 6, 4))
    assert stream.result().shape == (3, 4, 6)
    stream, decoded = RankPoolStream(), random_frame("rgb24", 6, 4)
    frames = [torch.zeros(3, 4, 6, dtype=torch.uint8), torch.from_numpy(decoded.to_ndarray()).permute(2, 0, 1)]
    stream.update(frames[0])
    stream.update(decoded)  # which joins tensors as one
    torch.testing.assert_close(stream.result(), approx_rank_pool(torch.stack(frames), 0))


def test_a_stream_of_decoded_frames_is_normalised():
    frames = [random_frame("rgb24", 6, 4, seed=seed) for seed in range(3)]
    x = torch.stack([torch.from_numpy(frame.to_ndarray()).permute(2, 0, 1) for frame in frames])
    for options in ({"std": [1.0, 2.0, 3.0], "channel_dim": 1}, {"mean": 100.0, "nonlinearity": "sqrt"}):
        stream = RankPoolStream(**options)
        for frame in frames:
            stream.update(frame)
        torch.testing.assert_close(stream.result(), approx_rank_pool(x, 0, **options), rtol=1e-5, atol=1e-4)


# --- files ----------------------------------------------------------------------------------------------------------


def moving(count=20, height=32, width=48):
    """A bright square on grey that walks, uint8 [T, H, W, 3]."""
    frames = np.full((count, height, width, 3), 90, np.uint8)
    for t in range(count):
        frames[t, 8:20, t : t + 12] = (200, 120, 60)
    return frames


WAYS = [
    {},
    {"time_average": False},
    {"nonlinearity": "identity"},
    {"method": "mean"},
    {"method": "mean", "nonlinearity": "identity"},
    {"method": "max"},
]


def assert_like_its_frames(video, apart=1, device=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # damaged packets
        frames = read_clip(video, **{name: options[name] for name in ("max_frames",) if name in options}).frames
        for found, expected in (
            (dynamic_image(video, device=device, **options), dynamic_image(frames, **options)),
            (
                dynamic_images(video, window=10, stride=6, device=device, **options),
                dynamic_images(frames, window=10, stride=6, **options),
            ),
        ):
            assert found.shape == expected.shape
            assert found.device.type == (device or CPU).type
            assert (found.cpu().int() - expected.int()).abs().max() <= apart


@pytest.fixture
def elsewhere(device, monkeypatch):
    """A device whose pools are those of all but the CPU."""
    if device.type == "cpu":
        monkeypatch.setattr(pools, "ColourPlanes", functools.partial(MovedColours, device=device))
        monkeypatch.setattr(pools, "RawPlanes", functools.partial(MovedRaw, device=device))
    return device


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize(
    ("codec", "format", "pix_fmt"),
    [
        ("mpeg4", "avi", "yuv420p"),
        ("ffv1", "matroska", "yuv422p"),
        ("ffv1", "matroska", "bgr0"),
        ("png", "mp4", "rgb24"),
    ],
)
def test_a_file_pools_as_its_frames(codec, format, pix_fmt, options):
    # Under the identity frames clip their colours, and planes do not: here none leaves RGB's cube by more than coding.
    apart = 3 if options.get("nonlinearity") == "identity" else 1
    assert_like_its_frames(clips.encoded(moving(), codec=codec, format=format, pix_fmt=pix_fmt), apart, **options)


@needs_kernels
@pytest.mark.parametrize("options", [*WAYS, {"resize_first": True, "size": 24}, {"size": 24}], ids=str)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "bgr0"])
def test_a_file_pools_as_its_frames_on_every_device(pix_fmt, options, elsewhere):
    apart = 3 if options.get("nonlinearity") == "identity" else 1
    codec, format = ("mpeg4", "avi") if pix_fmt == "yuv420p" else ("ffv1", "matroska")
    video = clips.encoded(moving(), codec=codec, format=format, pix_fmt=pix_fmt)
    assert_like_its_frames(video, apart, elsewhere, **options)


@needs_kernels
@pytest.mark.parametrize("options", [way for way in WAYS if way.get("nonlinearity") != "identity"], ids=str)
def test_real_clips_pool_as_their_frames_on_every_device(options, elsewhere):
    for path in clips.real_clips("ucf101", "hmdb51", "kinetics", "other")[::7]:
        assert_like_its_frames(str(path), device=elsewhere, max_frames=40, **options)


@needs_kernels
@pytest.mark.parametrize("time_average", [True, False])
@pytest.mark.parametrize("method", ["approx", "mean", "max"])
def test_frames_without_a_number_on_every_device(method, time_average, elsewhere, monkeypatch):
    video = clips.encoded(moving(), codec="mpeg4", pix_fmt="yuv420p", format="avi")
    right = dynamic_image(video, method=method, time_average=time_average)
    monkeypatch.setattr(Decoder, "expected", None)
    found = dynamic_image(video, method=method, time_average=time_average, device=elsewhere).cpu()
    assert (found.int() - right.int()).abs().max() <= 1


@pytest.mark.parametrize("options", [way for way in WAYS if way.get("nonlinearity") != "identity"], ids=str)
def test_real_clips_pool_as_their_frames(options):
    for path in clips.real_clips("ucf101", "hmdb51", "kinetics", "other"):
        if "BenchPress" not in path.name or "c01" in path.name:
            assert_like_its_frames(str(path), max_frames=40, **options)


def test_under_the_identity_real_clips_differ_by_what_their_frames_clip():
    for path in clips.real_clips("ucf101", "kinetics")[::3]:
        frames = read_clip(str(path)).frames
        inside = ((frames > 0) & (frames < 255)).all(0)  # pixels of which no frame was clipped
        found = make_images(str(path), Recipe(nonlinearity="identity")).images[0]
        # Compared before they are stretched, since a clipped pixel may be the darkest of all.
        with open_video(str(path), ALL) as decoder:
            decoded = [frame for _, frame in decoder.frames()]
        pool = pool_for(decoded[0], "identity", CPU, None, colours=False)
        sums = Windows(pool, len(decoded), [0], rank_weights(len(decoded), normalize_weights=True).tolist())
        for first in range(0, len(decoded), pool.batch):
            rows = list(sums.take(decoded[first : first + pool.batch]))
        pooled = pool.image(rows[0], 0)
        expected = approx_rank_pool(frames.float(), 0, normalize_weights=True)
        assert (pooled - expected)[inside].abs().max() <= 255 / 100  # a hundredth of what two frames can differ by
        assert found.float().std() > 1


@pytest.mark.parametrize("time_average", [True, False])
@pytest.mark.parametrize("method", ["approx", "mean", "max"])
@pytest.mark.parametrize("expected", [None, 1, 19, 21, 500])
def test_the_number_of_packets_may_be_wrong(expected, method, time_average, monkeypatch):
    video = clips.encoded(moving(), codec="mpeg4", pix_fmt="yuv420p", format="avi")
    right = dynamic_image(video, method=method, time_average=time_average)
    monkeypatch.setattr(Decoder, "expected", expected)
    found = dynamic_image(video, method=method, time_average=time_average)
    assert (found.int() - right.int()).abs().max() <= 1


@needs_kernels
@pytest.mark.parametrize("way", [{}, {"method": "max"}, {"window": 5, "stride": 3}], ids=str)
def test_no_more_frames_are_held_than_are_pooled_at_once(way, monkeypatch):
    held = []

    def counted(pooling):
        def count_and_pool(pool, frames, *rest, **options):
            held.append(sum(type(thing) is av.VideoFrame for thing in gc.get_objects()))
            return pooling(pool, frames, *rest, **options)

        return count_and_pool

    for name in ("add", "take_largest"):
        monkeypatch.setattr(ColourPlanes, name, counted(getattr(ColourPlanes, name)))
    video = clips.encoded([*moving(), *moving(), *moving()], codec="mpeg4", pix_fmt="yuv420p", format="avi")
    gc.collect()
    before = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
    make_images(video, Recipe(**way))
    assert 16 <= max(held) - before <= 18  # a batch, the last of the batch before, and the one that is being decoded


@pytest.mark.parametrize("method", ["approx", "mean", "max"])
def test_packets_that_are_too_many_to_keep(method, monkeypatch):
    video = clips.encoded(moving(), codec="mpeg4", pix_fmt="yuv420p", format="avi")
    right = dynamic_image(video, method=method)
    monkeypatch.setattr("dynpool.decoder._KEPT_BYTES", 100)
    with open_video(video, ALL) as decoder:
        assert decoder.expected is None
        assert len(list(decoder.frames())) == 20
    assert frame_count(video, ALL) == 20
    assert (dynamic_image(video, method=method).int() - right.int()).abs().max() <= 1


def test_packed_frames_are_counted():
    """Two frames in a packet, an empty one after, and a byte at the end: as in many AVI files of HMDB51."""
    for path in clips.real_clips("hmdb51"):
        with open_video(str(path), ALL) as decoder:
            assert decoder.expected == len(list(decoder.frames()))


@needs_kernels
def test_frames_of_another_format_join(monkeypatch):
    def grey(value, height, width, pix_fmt="yuvj420p"):
        frame = np.full((height, width, 3), value, np.uint8)
        return clips.encoded([frame] * 2, codec="mjpeg", pix_fmt=pix_fmt, format="mjpeg")

    video = grey(50, 16, 32) + grey(200, 48, 24, "yuvj444p") + grey(100, 16, 32, "yuvj422p")
    mean = dynamic_image(video, method="mean", nonlinearity="identity")
    assert mean.shape == (3, 16, 32)
    assert (mean.float() - 350 / 3).abs().max() <= 2


@needs_kernels
@pytest.mark.parametrize("format", YUV)
def test_a_sample_marks_the_pixels_that_are_made_of_it(format):
    frame = random_frame(format, 7, 5)
    pool = pool_for(frame, "sqrt", CPU, None, colours=False)
    planes_of, (_, across, down) = pool.samples(frame), YUV[format]
    for plane in range(len(planes_of)):
        marks = [np.zeros(samples.shape, np.bool_) for samples in planes_of]
        marks[plane][-1, -1] = True  # the last byte
        expected = torch.zeros(3, 5, 7, dtype=torch.bool)
        expected[:, 4 - 4 % (down if plane else 1) :, 6 - 6 % (across if plane else 1) :] = True
        assert torch.equal(pool.spread(marks), expected)


def test_only_frames_of_the_same_format_are_added_as_they_are():
    form = Format.of(random_frame("yuv420p", 32, 16))
    assert form.fits(random_frame("yuv420p", 32, 16, seed=1))
    for other in (
        random_frame("yuv420p", 32, 18),
        random_frame("yuv420p", 34, 16),
        random_frame("yuv422p", 32, 16),
        random_frame("yuv420p", 32, 16, colorspace=BT709),
        random_frame("yuv420p", 32, 16, color_range=FULL),
    ):
        assert not form.fits(other)


@pytest.mark.parametrize("matrix", [(0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0), (-1, 0, 0, 1), (0, 1, 1, 0)])
@pytest.mark.parametrize("codec", [("png", "rgb24"), ("mpeg4", "yuv420p")])
def test_images_are_turned_upright(matrix, codec):
    mp4 = clips.encoded(moving(), codec=codec[0], pix_fmt=codec[1], format="mp4")
    turned = clips.with_display_matrix(mp4, *matrix)
    for options in (
        {},
        {"nonlinearity": "identity"},
        {"method": "max"},
        {"size": (20, 30)},
        {"size": 16, "resize_first": True},
    ):
        apart = 3 if options.get("nonlinearity") == "identity" else 1
        assert_like_its_frames(turned, apart, **options)


def test_scaling_before_and_after_pooling():
    video = clips.encoded(moving(), codec="mpeg4", pix_fmt="yuv420p", format="avi")
    frames = read_clip(video).frames
    for size in (16, (10, 70)):
        first = dynamic_image(video, size=size, resize_first=True)
        expected = dynamic_image(read_clip(video, size=size).frames)
        assert (first.int() - expected.int()).abs().max() <= 1
        after = dynamic_image(video, size=size)
        assert after.shape == first.shape
        assert (after.int() - dynamic_image(frames, size=size).int()).abs().max() <= 1
        assert not torch.equal(after, first)


def test_a_still_file_is_mid_grey():
    for pix_fmt, nonlinearity in itertools.product(["bgr0", "yuv420p"], ["sqrt", "identity"]):
        still = clips.encoded(clips.random_frames(1, 32, 48).repeat(100, 0), pix_fmt=pix_fmt)
        assert dynamic_image(still, nonlinearity=nonlinearity).unique().tolist() == [128]


@needs_kernels
def test_a_still_film_is_mid_grey():
    """Sums of float32 to which hundreds of batches were added."""
    for pix_fmt in ("bgr0", "yuv444p10le"):
        still = clips.encoded(clips.random_frames(1, 16, 16).repeat(5000, 0), pix_fmt=pix_fmt, codec="ffv1")
        for nonlinearity in ("sqrt", "identity"):
            image = dynamic_image(still, time_average=False, nonlinearity=nonlinearity)
            assert image.unique().tolist() == [128]


def test_the_mean_of_planes_is_that_of_their_frames():
    """Of frames that are brighter and darker than RGB can be: each is clipped."""
    video = clips.encoded(clips.random_frames(6, 24, 32), codec="ffv1", pix_fmt="yuv420p", format="matroska")
    assert_like_its_frames(video, method="mean", nonlinearity="identity")


def test_large_frames_wait_in_small_batches():
    small, large = random_frame("yuv420p", 64, 48), random_frame("yuv420p", 7680, 4320)
    assert pool_for(small, "sqrt", CPU, None, False).batch == planes._MAX_BATCH
    assert pool_for(large, "sqrt", CPU, None, False).batch == 1


def test_a_time_limit():
    video = clips.encoded(moving(200), codec="mpeg4", pix_fmt="yuv420p", format="avi")
    assert dynamic_image(video, timeout=600).shape == (3, 32, 48)
    for call in (dynamic_image, read_clip):
        with pytest.raises(VideoError, match=r"^<bytes>: takes longer than timeout = 1e-06 s$"):
            call(video, timeout=1e-6)
    for timeout in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="timeout must be a positive number of seconds"):
            dynamic_image(video, timeout=timeout)


@pytest.mark.parametrize("method", ["approx", "exact", "mean", "max"])
@pytest.mark.parametrize("counted", [True, False])
def test_chosen_windows_are_those_of_all(method, counted, tmp_path, monkeypatch):
    path = tmp_path / "clip.mkv"
    clips.write(path, clips.random_frames(54))
    asked = []

    def starts(count):
        asked.append(count)
        return [4, 20, 48]

    monkeypatch.setattr(Decoder, "expected", 54 if counted else None)
    recipe = Recipe(method, window=9, stride=4)
    images, count, _ = make_images(path, replace(recipe, starts=starts))
    assert count == 54
    assert asked == [54]
    assert torch.equal(images, make_images(path, recipe).images[[1, 5, 12]])


def test_windows_are_chosen_again_of_a_file_with_fewer_frames(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(clips.damaged(clips.random_frames(30), 7, 20))
    images, count, damaged = make_images(path, Recipe(window=9, stride=4, starts=lambda count: [count - 9]))
    assert (count, damaged) == (28, 2)
    assert torch.equal(images, make_images(path, Recipe(window=9, stride=1)).images[-1:])


def test_a_file_must_have_the_same_frames_twice(tmp_path, monkeypatch):
    clips.write(tmp_path / "clip.mkv", clips.random_frames(20))
    whole, cuts = Decoder.frames, itertools.count(17, -1)
    monkeypatch.setattr(Decoder, "frames", lambda self: itertools.islice(whole(self), next(cuts)))
    with pytest.raises(VideoError, match="another number of frames each time"):
        make_images(tmp_path / "clip.mkv", Recipe(window=9, stride=4, starts=lambda count: [0]))
