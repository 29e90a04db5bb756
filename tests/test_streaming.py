"""RankPoolStream: after every frame the result of the batch, in constant memory."""

from __future__ import annotations

import copy
import math
import os
import pickle
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import dynpool
from dynpool import RankPoolStream, approx_rank_pool, binary, to_image


def pooled(frames, **options) -> torch.Tensor:
    stream = RankPoolStream(**options)
    for frame in frames:
        stream.update(frame)
    return stream.result(torch.float64)


def test_by_hand():
    # T = 3: α = (-4/3, 1/3, 1), of V = 0, 3, 4.
    stream = RankPoolStream()
    for value, expected in ((0.0, 0.0), (6.0, 3.0), (6.0, 8.0)):  # T = 2: α = (-1/2, 1/2)
        stream.update(torch.tensor([value]))
        assert stream.result().item() == pytest.approx(expected, abs=1e-6)
    assert len(stream) == 3
    assert pooled(torch.tensor([[0.0], [6.0], [6.0]]), time_average=False).item() == pytest.approx(12)  # -2, 0, 2


@pytest.mark.parametrize("time_average", [True, False])
@pytest.mark.parametrize("num_frames", [1, 2, 15, 16, 17, 32, 61])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64], ids=str)
def test_is_the_batch(device, dtype, num_frames, time_average):
    x = (torch.rand(num_frames, 3, 5, 7) * 200).to(dtype).to(device)
    options = {"nonlinearity": "sqrt", "mean": [1.0, 2.0, 3.0], "std": 50.0, "time_average": time_average}
    for normalize in (False, True):
        expected = approx_rank_pool(x.double(), 0, channel_dim=1, normalize_weights=normalize, **options)
        actual = pooled(x, channel_dim=1, normalize_weights=normalize, **options)
        # float64 throughout: roundings of Q and (T + 1) P, of which the result is the difference.
        assert (actual - expected).abs().max() <= 1e-12 * num_frames**2


def test_results_in_between_do_not_disturb():
    x = torch.rand(40, 4, dtype=torch.float64)
    stream = RankPoolStream()
    for t, frame in enumerate(x, 1):
        stream.update(frame)
        if t in (1, 3, 16, 25):
            assert torch.allclose(stream.result(torch.float64), approx_rank_pool(x[:t], 0), atol=1e-10)
            assert torch.equal(stream.result(), stream.result())
    assert torch.allclose(stream.result(torch.float64), approx_rank_pool(x, 0), atol=1e-10)


@pytest.mark.parametrize("time_average", [True, False])
@pytest.mark.parametrize("options", [{}, {"nonlinearity": "sqrt"}, {"std": 7.0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64], ids=str)
@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_results_after_every_few_frames(every, dtype, options, time_average):
    x = (torch.rand(40, 5, 7) * 200).to(dtype)
    x[:, 0] = x[0, 0]  # which does not move
    if dtype.is_floating_point:
        x[:, 1, 0], x[20:, 1, 1], x[20, 1, 2] = math.inf, math.inf, math.nan
    stream = RankPoolStream(time_average=time_average, **options)
    for t, frame in enumerate(x, 1):
        stream.update(frame)
        if t % every:
            continue
        expected = approx_rank_pool(x[:t].double(), 0, time_average=time_average, **options)
        result = stream.result(torch.float64)
        assert torch.equal(result.isfinite(), expected.isfinite())
        assert (result - expected).nan_to_num().abs().max() <= 1e-12 * t**2  # roundings of float64, as above
        assert not result[0].any()


def test_a_hundred_thousand_frames():
    # Bytes around a mean that is far from 0: the terms of the result are a thousand times larger than it.
    x = torch.randint(90, 110, (100_000, 2, 3), dtype=torch.uint8)
    expected = torch.einsum("t,tij->ij", dynpool.rank_weights(len(x)), x.double())
    assert (pooled(x) - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_what_hardly_changes():
    # Σ α is 0, but 200 times a sum of 10⁸ weights in float64 is not: what matters is the noise of 10⁻³.
    x = 200 + 1e-3 * torch.randn(20_000, 4, dtype=torch.float64)
    expected = torch.einsum("t,ti->i", dynpool.rank_weights(len(x)), x - x[0])
    assert (pooled(x) - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize("time_average", [True, False])
@pytest.mark.parametrize("nonlinearity", ["identity", "sqrt"])
def test_decoded_frames_pool_as_their_rgb(nonlinearity, time_average):
    """Also colours that RGB clips."""
    av = pytest.importorskip("av")
    stream, rgb = RankPoolStream(nonlinearity=nonlinearity, time_average=time_average), []
    for seed in range(21):
        frame = av.VideoFrame(32, 24, "yuv420p")
        for plane in frame.planes:
            plane.update(np.random.default_rng(seed).integers(0, 256, plane.buffer_size, dtype=np.uint8).tobytes())
        stream.update(frame)
        rgb.append(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1))
    expected = dynpool.approx_rank_pool(torch.stack(rgb), 0, nonlinearity=nonlinearity, time_average=time_average)
    assert (stream.result() - expected).abs().max() <= 1e-5 * expected.abs().max()


DECODED = ["rgb24", "bgr0", "gray", "yuv420p", "nv12", "yuv422p", "yuv444p", "yuv420p10le", "gbrp"]


def decoded(frame: np.ndarray, format: str):
    av = pytest.importorskip("av")
    return av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=format)


def test_results_while_frames_come():
    """Of another thread, as of a window that shows them."""
    frames = torch.randint(0, 256, (1201, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stream = RankPoolStream(nonlinearity="sqrt")
    stream.update(frames[0])
    ends, seen = threading.Event(), []

    def show():
        while not ends.is_set():
            seen.append((stream.result(), len(copy.copy(stream))))

    thread = threading.Thread(target=show)
    thread.start()
    while not seen and thread.is_alive():
        time.sleep(0.001)
    assert seen
    for frame in frames[1:]:
        stream.update(frame)
    ends.set()
    thread.join()
    assert len(stream) == len(frames)
    expected = approx_rank_pool(frames.double(), 0, nonlinearity="sqrt")
    assert (stream.result(torch.float64) - expected).abs().max() <= 1e-9 * expected.abs().max()


class Camera(RankPoolStream):
    """What users may make of it."""

    def __init__(self):
        super().__init__()
        self._lock, self.hook, self.owner = threading.Lock(), self.result, [self]

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "hook")}


def test_copies_of_what_is_made_of_a_stream():
    frames = torch.rand(20, 3, 4, generator=torch.Generator().manual_seed(0))
    stream = Camera()
    for frame in frames[:10]:
        with stream._lock:
            stream.update(frame)
    before = stream.result()
    for copied in (copy.copy(stream), copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))):
        for frame in frames[10:]:
            copied.update(frame)
        assert torch.allclose(copied.result(), approx_rank_pool(frames, 0), rtol=1e-5, atol=1e-5)
        assert torch.equal(stream.result(), before)
    assert copy.deepcopy(stream).owner[0] is not stream
    first, second = copy.deepcopy([stream, stream])
    assert first is second


FORKED = """
import multiprocessing, threading, torch, dynpool
stream = dynpool.RankPoolStream()
stream.update(torch.zeros(3))
held, ends = threading.Event(), threading.Event()
def hold():
    with stream._turns:
        held.set()
        ends.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = multiprocessing.get_context("fork").Process(target=stream.update, args=(torch.ones(3),))
child.start()
child.join(60)
print(child.exitcode)
child.kill()
ends.set()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forked_while_another_thread_had_the_stream():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "0", done.stderr


def test_mean_and_std_are_what_they_were():
    """A stream keeps no graph, and none of what is written to its mean later."""
    frames = torch.rand(40, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    mean, std = torch.nn.Parameter(torch.tensor([0.1, 0.2, 0.3])), np.array([1.0, 2.0, 3.0])
    expected = approx_rank_pool(frames, 0, nonlinearity="sqrt", mean=mean.detach().clone(), std=std.copy())
    stream = RankPoolStream(nonlinearity="sqrt", mean=mean * 1, std=std)
    for frame in frames:
        stream.update(frame)
        mean.data += 1
        std += 1
    assert not stream.result().requires_grad
    assert not any(value.requires_grad for value in vars(stream).values() if isinstance(value, torch.Tensor))
    assert torch.allclose(copy.deepcopy(stream).result(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))])
@pytest.mark.parametrize("kind", ["tensor", *DECODED])
def test_copies_go_on_as_the_stream_does(kind, copied, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(binary, "has_planes", lambda: False)
    frames = np.random.default_rng(0).integers(0, 256, (41, 14, 16, 3), dtype=np.uint8)
    frames = [torch.from_numpy(frame) if kind == "tensor" else decoded(frame, kind) for frame in frames]
    stream = RankPoolStream(nonlinearity="sqrt")
    streams = [stream]
    for t, frame in enumerate(frames):
        if t in (0, 1, 16, 19):
            streams.append(copied(stream))
        for each in streams:
            each.update(frame)
    assert [len(each) for each in streams] == [41] * 5
    expected = stream.result()
    for each in streams[1:]:
        assert (each.result() - expected).abs().max() <= 1e-5 * expected.abs().max()  # batches of float32 differ


@pytest.mark.parametrize("nonlinearity", ["identity", "sqrt"])
@pytest.mark.parametrize("time_average", [True, False])
@pytest.mark.parametrize("kind", ["tensor", "float", *DECODED])
def test_what_does_not_move_is_nothing(kind, time_average, nonlinearity):
    frame = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    as_tensor = torch.from_numpy(frame).permute(2, 0, 1)
    kinds = {"tensor": as_tensor, "float": as_tensor / 7}
    still = kinds[kind] if kind in kinds else decoded(frame, kind)
    for normalize in (True, False):
        stream = RankPoolStream(time_average=time_average, nonlinearity=nonlinearity, normalize_weights=normalize)
        for t in range(1, 101):
            stream.update(still)
            if t in (1, 2, 10, 17, 100):
                assert not stream.result().any()
                assert to_image(stream.result()).unique().tolist() == [128]


@pytest.mark.parametrize("nonlinearity", ["identity", "sqrt"])
@pytest.mark.parametrize("kind", ["tensor", *DECODED])
def test_the_least_motion_is_seen_where_it_is(kind, nonlinearity):
    # 16 wide: of other widths swscale does not make the same 10 bits every time.
    frames = np.random.default_rng(0).integers(60, 200, (1, 14, 16, 3), dtype=np.uint8).repeat(100, 0)
    stream = RankPoolStream(nonlinearity=nonlinearity)
    for t, frame in enumerate(frames):
        frame[4:6, 8:10] = 253 + 2 * (t == 70)  # of one frame
        frame = frame if kind == "tensor" else decoded(frame, kind)
        stream.update(frame)
    changed = stream.result()
    assert changed[:, 4:6, 8:10].ne(0).all()
    changed[:, 4:6, 8:10] = 0
    assert not changed.any()


def test_a_scene_that_begins_to_move_after_results():
    frames = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 3), dtype=np.uint8)
    stream = RankPoolStream()
    for t in range(40):
        stream.update(decoded(frames[0], "rgb24"))
        assert t == 0 or not stream.result().any()
    stream.update(decoded(frames[1], "rgb24"))
    moved = torch.from_numpy(frames[0] != frames[1]).permute(2, 0, 1)
    assert torch.equal(stream.result() != 0, moved)


def test_colours_that_move_later_than_all_of_the_luma():
    av = pytest.importorskip("av")
    stream, planes = RankPoolStream(), np.full((3, 6, 8), 100, np.uint8)
    for t in range(48):
        planes[0], planes[1] = 100 + t, 100 + max(t - 32, 0)  # batches of 16
        stream.update(av.VideoFrame.from_ndarray(planes.copy(), format="yuv444p"))
    red, green, blue = stream.result()
    assert (blue > green).all()
    assert (red > green).all()  # of which U takes some


def test_colours_of_a_field_that_move_alone():
    """A line of chroma that lines 1 and 3 of an interlaced frame have."""
    clips = pytest.importorskip("clips")
    stream, of_rgb = (RankPoolStream(nonlinearity="sqrt") for _ in range(2))
    for step in range(5):
        frame = clips.av.VideoFrame(16, 12, "yuv420p")
        for index, plane in enumerate(frame.planes):
            values = np.full((plane.height, plane.line_size), 120, np.uint8)
            if index == 1:
                values[1] += 10 * step
            plane.update(values.tobytes())
        frame.colorspace, frame.color_range = 5, 1
        frame = clips.interlaced(frame)
        stream.update(frame)
        of_rgb.update(frame.to_ndarray(format="rgb24"))
    found, expected = stream.result(), of_rgb.result()
    assert sorted({line for _, line, _ in expected.nonzero().tolist()}) == [1, 3]
    assert torch.allclose(found, expected, atol=1e-4 * expected.abs().max().item())


def test_values_that_are_not_finite_stay_so():
    result = pooled([torch.tensor([math.nan, math.inf, 1.0])] * 3)
    assert result.isnan().tolist() == [True, True, False]


def test_dtypes_of_results():
    for dtype, expected in ((torch.uint8, torch.float32), (torch.float16, torch.float16), (torch.float64,) * 2):
        stream = RankPoolStream()
        stream.update(torch.ones(2, dtype=dtype))
        assert stream.result().dtype == expected
        assert stream.result(torch.bfloat16).dtype == torch.bfloat16


def test_begun_in_inference_mode():
    stream = RankPoolStream()
    with torch.inference_mode():
        stream.update(torch.zeros(2))
    stream.update(torch.ones(2))
    assert torch.equal(stream.result(), torch.full((2,), 0.5))


def test_frames_are_copied_and_forgotten():
    stream, frame = RankPoolStream(), torch.zeros(3)
    for t in range(5):
        frame.fill_(t)
        stream.update(frame)
    assert torch.allclose(stream.result(), approx_rank_pool(torch.arange(5.0)[:, None].expand(5, 3), 0))
    stream, values = RankPoolStream(), torch.zeros(17)
    values[16] = 1  # the first of other frames comes when the rest is pooled
    for value in values:
        stream.update(frame.fill_(value))
    assert torch.allclose(stream.result(), approx_rank_pool(values[:, None].expand(17, 3), 0))
    stream.update(frame)  # which waits for others
    stream.reset()
    assert len(stream) == 0
    stream.update(torch.rand(2, 2))
    assert torch.equal(stream.result(), torch.zeros(2, 2))


def test_frames_of_other_kinds():
    from PIL import Image

    frames = np.random.default_rng(0).integers(0, 256, (7, 6, 8, 3), dtype=np.uint8)
    expected = approx_rank_pool(torch.from_numpy(frames).permute(0, 3, 1, 2).double(), 0)
    assert torch.allclose(pooled(frames), expected, atol=1e-9)
    assert torch.allclose(pooled(Image.fromarray(frame) for frame in frames), expected, atol=1e-9)
    av = pytest.importorskip("av")
    decoded = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames]
    # Batches of decoded frames are summed in float32.
    assert torch.allclose(pooled(decoded).double(), expected, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (torch.zeros(3, 4, 5), r"frame must have the shape of the frames before, \[3, 4, 4\], got \[3, 4, 5\]"),
        (torch.zeros(3, 4, 4).double(), "frame must have the dtype of the frames before, torch.float32"),
        (torch.zeros(3, 4, 4, device="meta"), "frame must have the device of the frames before, cpu, got meta"),
    ],
)
def test_frames_that_do_not_fit(second, message):
    stream = RankPoolStream()
    stream.update(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match=message):
        stream.update(second)
    stream.update(torch.ones(3, 4, 4))  # the stream goes on
    assert torch.equal(stream.result(), torch.full((3, 4, 4), 0.5))


def test_decoded_frames_of_another_size_do_not_fit():
    av = pytest.importorskip("av")
    stream = RankPoolStream()
    stream.update(av.VideoFrame(32, 24, "yuv420p"))
    with pytest.raises(ValueError, match="frame must have the size of the frames before, 32 x 24, got 30 x 24"):
        stream.update(av.VideoFrame(30, 24, "yuv420p"))
    assert len(stream) == 1


def test_bad_input():
    with pytest.raises(ValueError, match="a stream must have had a frame"):
        RankPoolStream().result()
    with pytest.raises(TypeError, match=r"out_dtype must be one of .*, got torch.int32"):
        RankPoolStream().result(torch.int32)
    with pytest.raises(ValueError, match="nonlinearity must be one of"):
        RankPoolStream(nonlinearity="cube")
    with pytest.raises(TypeError, match="frame must be a uint8 ndarray"):
        RankPoolStream().update("frame")
    with pytest.raises(TypeError):
        RankPoolStream().update(torch.zeros(3, dtype=torch.int64))
    for name, wrong in (("mean", math.nan), ("std", 0), ("std", [1, -1, 1]), ("mean", "a"), ("channel_dim", "a")):
        with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
            RankPoolStream(**{name: wrong})
    for options in ({"mean": [1.0, 2.0]}, {"std": 1.0, "channel_dim": 9}, {"mean": [0.0] * 3, "channel_dim": 0}):
        stream = RankPoolStream(**options)
        for _ in range(2):  # at the first frame, and no worse at the next
            with pytest.raises(ValueError, match=r"mean|channel_dim"):
                stream.update(torch.zeros(3, 4, 4))


def test_a_frame_without_pixels():
    av = pytest.importorskip("av")
    with pytest.raises(ValueError, match="frame must have pixels, got 0 x 0"):
        RankPoolStream().update(av.VideoFrame(0, 0, "rgb24"))


def test_example(tmp_path, monkeypatch):
    path = Path(__file__).parents[1] / "examples" / "stream.py"
    if not path.exists():
        pytest.skip("the examples are not here")
    av = pytest.importorskip("av")
    video = tmp_path / "clip.mkv"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for value in range(0, 250, 10):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), value, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    out = tmp_path / "live.png"
    monkeypatch.setattr("sys.argv", ["stream.py", str(video), "-o", str(out), "--every", "10"])
    runpy.run_path(str(path), run_name="__main__")
    assert out.stat().st_size > 0
