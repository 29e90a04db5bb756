"""Dynamic images: hand-computed pictures, windows and their tails, every kind of input, and to_image."""

from __future__ import annotations

import functools
import io
import math
from dataclasses import replace

import clips
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynpool import RankPoolStream, approx_rank_pool, binary, rank_pool, rank_weights
from dynpool.decoder import Decoder
from dynpool.files import VideoError
from dynpool.images import Pictures, covering_starts, dynamic_image, dynamic_images, make_images
from dynpool.recipe import Recipe, to_image
from dynpool.streaming import Windows
from dynpool.video import read_clip

# Four pixels over three frames. α(3) = (-4/3, 2/3, 2/3) by eq. (2), halves of ‖α‖₁ = 8/3 away from (-1, ½, ½);
# (-2, 0, 2) by eq. (4), away from (-1, 0, 1).
PIXELS = [[0, 100, 144, 4], [16, 100, 36, 0], [64, 100, 0, 36]]
BY_HAND = {
    # √: 6, 0, -9, 1 of [-9, 6]
    ("approx", "sqrt", True): [255, 153, 0, 170],
    # √: 8, 0, -12, 4 of [-12, 8]
    ("approx", "sqrt", False): [255, 153, 0, 204],
    # 40, 0, -126, 14 of [-126, 40]: 193.55, 215.06
    ("approx", "identity", True): [255, 194, 0, 215],
    # 64, 0, -144, 32 of [-144, 64]: 176.54, 215.77
    ("approx", "identity", False): [255, 177, 0, 216],
    ("mean", "identity", True): [27, 100, 60, 13],
    # squares of 4, 10, 6, 8/3
    ("mean", "sqrt", True): [16, 100, 36, 7],
    ("max", "identity", True): [64, 100, 144, 36],
    ("max", "sqrt", True): [64, 100, 144, 36],
}


def grey_video(pixels) -> torch.Tensor:
    """Rows of pixels, one row a frame -> uint8 [T, 3, 1, W], all channels alike."""
    return torch.tensor(pixels, dtype=torch.uint8)[:, None, None].repeat(1, 3, 1, 1)


@pytest.mark.parametrize(("how", "expected"), BY_HAND.items(), ids=str)
def test_images_computed_by_hand(how, expected):
    method, nonlinearity, time_average = how
    image = dynamic_image(grey_video(PIXELS), method=method, nonlinearity=nonlinearity, time_average=time_average)
    assert image.dtype == torch.uint8
    assert image.tolist() == [[expected]] * 3


def test_another_default_device(tmp_path):
    """All of a video stays on the CPU: what is made on "meta" has no values."""
    path = str(tmp_path / "clip.mkv")
    clips.write(path, clips.random_frames(21))
    calls = [
        functools.partial(dynamic_image, path, method=method, nonlinearity=nonlinearity, **options)
        for method in ("approx", "exact", "mean", "max")
        for nonlinearity in ("sqrt", "identity")
        for options in ({}, {"size": 8}, {"size": 8, "resize_first": True})
    ]
    windows = {"window": 5, "stride": 3}
    calls += [functools.partial(dynamic_images, path, **windows, method=method) for method in ("approx", "mean", "max")]
    for kind in (av_frames, lambda path: list(read_clip(path).frames)):
        for time_average in (True, False):
            calls.append(functools.partial(streamed, kind(path), time_average))
    expected = [call() for call in calls]
    with torch.device("meta"):
        for call, image in zip(calls, expected, strict=True):
            assert torch.equal(call(), image)


def av_frames(path):
    with clips.av.open(path) as container:
        return list(container.decode(video=0))


def streamed(frames, time_average):
    stream = RankPoolStream(nonlinearity="sqrt", time_average=time_average, normalize_weights=True)
    for frame in frames:
        stream.update(frame)
    return to_image(stream.result())


def test_defaults_are_the_papers():
    assert dynamic_image(grey_video(PIXELS)).tolist() == [[BY_HAND["approx", "sqrt", True]]] * 3


@pytest.mark.parametrize("method", ["approx", "mean", "max"])
def test_every_kind_of_video_gives_the_same_image(method, tmp_path):
    frames = clips.random_frames(11)
    clips.write(tmp_path / "clip.mkv", frames)
    expected = dynamic_image(frames, method=method)
    assert expected.shape == (3, 13, 17)
    assert expected.float().std() > 5
    data = (tmp_path / "clip.mkv").read_bytes()
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    for video in (tmp_path / "clip.mkv", data, io.BytesIO(data), tensor, tensor.contiguous(), iter(frames)):
        image = dynamic_image(video, method=method)
        # The order of summation may depend on the memory layout: a value on the edge may round either way.
        assert (image.int() - expected.int()).abs().max() <= 1


def test_image_is_the_picture_of_approx_rank_pool():
    frames = torch.from_numpy(clips.random_frames(30, 19, 23)).permute(0, 3, 1, 2)
    pooled = approx_rank_pool(frames, 0, nonlinearity="sqrt")
    assert (dynamic_image(frames).int() - to_image(pooled).int()).abs().max() <= 1


@pytest.mark.parametrize("options", [{"time_average": False}, {"nonlinearity": "identity"}], ids=str)
def test_exact_images_are_pictures_of_rank_pool(options):
    """Of more values than frames, the frames and their means would have the same picture."""
    frames = torch.from_numpy(clips.random_frames(40, 2, 2)).permute(0, 3, 1, 2)
    pooled = rank_pool(frames, 0, **{"nonlinearity": "sqrt", **options})
    assert (dynamic_image(frames, method="exact", **options).int() - to_image(pooled).int()).abs().max() <= 1


@pytest.mark.parametrize("method", ["mean", "max"])
def test_baselines_are_of_rgb_frames(method):
    """Not of planes, whose colours a frame clips."""
    avi = clips.encoded(clips.random_frames(12, 32, 48), codec="mpeg4", pix_fmt="yuv420p", format="avi")
    image = dynamic_image(avi, method=method, nonlinearity="identity")
    expected = dynamic_image(read_clip(avi).frames, method=method, nonlinearity="identity")
    assert (image.int() - expected.int()).abs().max() <= 1


def test_reversed_video_is_the_negative():
    frames = clips.random_frames(8)
    forward = dynamic_image(frames, time_average=False)
    backward = dynamic_image(frames[::-1], time_average=False)
    assert (forward.int() + backward.int() - 255).abs().max() <= 1


def test_size_and_max_frames():
    frames = clips.random_frames(9)
    assert torch.equal(dynamic_image(frames, max_frames=4), dynamic_image(frames[:4]))
    assert dynamic_image(frames, size=26).shape == (3, 26, 34)
    assert dynamic_images(frames, window=4, stride=2, size=(5, 6)).shape == (4, 3, 5, 6)


@pytest.mark.parametrize("method", ["approx", "exact", "mean", "max"])
def test_frames_are_chosen(method, tmp_path):
    frames = clips.random_frames(12)
    clips.write(tmp_path / "clip.mkv", frames)
    expected = dynamic_image(frames[1:8:2], method=method)
    for video in (frames, tmp_path / "clip.mkv"):
        image = dynamic_image(video, method=method, start=1, end=8, every=2)
        assert (image.int() - expected.int()).abs().max() <= 1  # as above


@pytest.mark.parametrize("nonlinearity", ["sqrt", "identity"])
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_a_still_video_is_mid_grey(count, nonlinearity):
    still = clips.random_frames(1).repeat(count, 0)
    assert dynamic_image(still, nonlinearity=nonlinearity).unique().tolist() == [128]


def test_the_least_motion_is_seen():
    video = np.full((100, 5, 7, 3), 254, np.uint8)
    video[50:, 2, 3] = 255
    image = dynamic_image(video)
    assert image[:, 2, 3].tolist() == [255] * 3
    assert image.sum() == 3 * 255


@pytest.mark.parametrize("nonlinearity", ["sqrt", "identity"])
@pytest.mark.parametrize(("num_frames", "moving"), [(1501, 1), (1600, 3)])
@pytest.mark.parametrize("kind", ["bytes", "large bytes", "large file", "scaled", "frames", "windows"])
def test_what_appears_at_the_end_of_a_long_still_film(kind, num_frames, moving, nonlinearity, tmp_path, monkeypatch):
    """By so little is the sum another that float32 does not tell it from rounding."""
    frames = clips.random_frames(1, 8, 8).repeat(num_frames, 0)
    frames[-moving:, 2:5, 2:6] = 255
    x = torch.from_numpy(frames).double()
    alpha = rank_weights(num_frames, normalize_weights=True)
    pooled = torch.einsum("t,thwc->chw", alpha, x.sqrt() if nonlinearity == "sqrt" else x)
    expected = to_image(pooled.where((x != x[0]).any(0).permute(2, 0, 1), 0))
    assert len(expected.unique()) > 5
    if kind == "windows":  # which repeat the last frame: a still one, where but one is another
        found = dynamic_images(frames[:-1], window=num_frames, nonlinearity=nonlinearity)[0]
        expected = expected if moving > 1 else torch.full_like(expected, 128)
    elif kind == "scaled":
        expected = dynamic_image(frames, nonlinearity=nonlinearity, size=16, resize_first=True)
        assert len(expected.unique()) > 5
        found = dynamic_image(clips.encoded(frames), nonlinearity=nonlinearity, size=16, resize_first=True)
    else:
        if kind.startswith("large"):  # of more packets than are kept
            monkeypatch.setattr("dynpool.decoder._KEPT_BYTES", 100)
        video = frames if kind == "frames" else clips.encoded(frames)
        if kind == "large file":
            video = tmp_path / "film.mkv"
            clips.write(video, frames)
        found = dynamic_image(video, nonlinearity=nonlinearity)
    assert (found.int() - expected.int()).abs().max() <= 1  # of a rounding


def test_a_still_video_is_its_own_mean_and_maximum():
    still = clips.random_frames(1)
    for method in ("mean", "max"):
        for nonlinearity in ("sqrt", "identity"):
            image = dynamic_image(still.repeat(9, 0), method=method, nonlinearity=nonlinearity)
            np.testing.assert_array_equal(image.permute(1, 2, 0), still[0])


# --- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_frames", "window", "stride", "starts"),
    [
        (12, 6, 4, [0, 4, 8]),
        (10, 6, 4, [0, 4]),
        (11, 6, 4, [0, 4, 8]),
        (6, 6, 4, [0]),
        (3, 6, 4, [0]),
        (1, 6, 4, [0]),
        (25, 10, 6, [0, 6, 12, 18]),
        (5, 1, 1, [0, 1, 2, 3, 4]),
        (10, 2, 5, [0, 5]),
        (6, 2, 5, [0, 5]),
        (5, 2, 5, [0]),
    ],
)
def test_windows_start_where_the_docstring_says(num_frames, window, stride, starts):
    assert list(covering_starts(num_frames, window, stride)) == starts
    frames = clips.random_frames(num_frames, 2, 3)
    assert len(dynamic_images(frames, window=window, stride=stride)) == len(starts)


@given(st.integers(1, 300), st.integers(1, 60), st.integers(1, 60))
def test_windows_cover_every_frame(num_frames, window, stride):
    starts = covering_starts(num_frames, window, stride)
    covered = {frame for start in starts for frame in range(start, start + window)}
    assert max(starts) < num_frames
    if stride <= window:
        assert covered >= set(range(num_frames))
        assert len(starts) == 1 + max(0, math.ceil((num_frames - window) / stride))
    if len(starts) > 1:  # the last one is needed
        assert starts[-2] + window < num_frames


@pytest.mark.parametrize("method", ["approx", "mean", "max"])
@pytest.mark.parametrize("time_average", [True, False])
@pytest.mark.parametrize(
    ("num_frames", "members"),
    [
        (12, [[0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 8, 9], [8, 9, 10, 11, 11, 11]]),
        (10, [[0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 8, 9]]),
        (3, [[0, 1, 2, 2, 2, 2]]),
        (1, [[0, 0, 0, 0, 0, 0]]),
    ],
)
def test_the_tail_repeats_the_last_frame(num_frames, members, method, time_average):
    frames = clips.random_frames(num_frames)
    images = dynamic_images(frames, window=6, stride=4, method=method, time_average=time_average)
    assert images.dtype == torch.uint8
    expected = [dynamic_image(frames[index], method=method, time_average=time_average) for index in members]
    # Six frames of weight w and one of weight 6w round differently.
    assert (images.int() - torch.stack(expected).int()).abs().max() <= 1


def test_one_window_over_all_is_the_dynamic_image():
    frames = clips.random_frames(9)
    assert torch.equal(dynamic_images(frames, window=9, stride=1)[0], dynamic_image(frames))


def test_windows_without_a_stride_do_not_overlap(tmp_path):
    frames = clips.random_frames(11)
    clips.write(tmp_path / "clip.mkv", frames)
    expected = dynamic_images(frames, window=4, stride=4)
    assert len(expected) == 3
    assert torch.equal(dynamic_images(frames, window=4), expected)
    of_file = dynamic_images(tmp_path / "clip.mkv", window=4)
    assert (of_file.int() - dynamic_images(tmp_path / "clip.mkv", window=4, stride=4).int()).abs().max() == 0
    assert len(of_file) == 3


def test_still_windows_are_grey_beside_moving_ones():
    frames = np.concatenate([clips.random_frames(1).repeat(5, 0), clips.random_frames(5)])
    still, moving = dynamic_images(frames, window=5, stride=5)
    assert still.unique().tolist() == [128]
    assert moving.float().std() > 10


# --- to_image -------------------------------------------------------------------------------------------------------


def test_to_image_by_hand():
    pooled = torch.tensor([[[-1.0, 0.0]], [[1.0, 4.0]]])  # C = 2, H = 1, W = 2
    assert to_image(pooled).tolist() == [[[0, 51]], [[102, 255]]]
    assert to_image(pooled, "minmax_channel").tolist() == [[[0, 255]], [[0, 255]]]


def test_each_image_of_a_batch_is_scaled_by_itself():
    pooled = torch.randn(2, 5, 3, 4, 6) * torch.logspace(-3, 3, 5)[:, None, None, None]
    for mode in ("minmax", "minmax_channel"):
        images = to_image(pooled, mode)
        for i in range(2):
            for j in range(5):
                assert torch.equal(images[i, j], to_image(pooled[i, j], mode))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32])
def test_scale_and_offset_do_not_matter(dtype):
    pooled = torch.arange(24).reshape(2, 3, 4)
    expected = (pooled * 255 / 23).round().to(torch.uint8)
    assert torch.equal(to_image((pooled * 4 - 40).to(dtype)), expected)


def test_nothing_to_scale_is_mid_grey():
    pooled = torch.zeros(2, 3, 2, 2)
    pooled[1, 0] = torch.arange(4).reshape(2, 2)
    assert to_image(pooled)[0].unique().tolist() == [128]
    assert to_image(pooled, "minmax_channel")[1, 1:].unique().tolist() == [128]
    assert to_image(pooled, "minmax_channel")[1, 0].tolist() == [[0, 85], [170, 255]]


def test_the_largest_floats_do_not_overflow():
    pooled = torch.tensor([[[-3e38, 0.0, 3e38]]])
    assert to_image(pooled).tolist() == [[[0, 128, 255]]]
    assert to_image(pooled.double() * (1.7e308 / 3e38)).tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 7, 5), (2, 3, 37, 41)])
def test_the_kernel_scales_to_the_bit_as_torch_does(shape, monkeypatch):
    whole = torch.randn(*shape[:-1], shape[-1] + 3) * 1e3
    for pooled in (whole, whole[..., 2:-1], whole.transpose(-1, -2), whole.clone().requires_grad_()):
        found = to_image(pooled)
        with monkeypatch.context() as patch:
            patch.setattr(binary, "extension", None)
            assert torch.equal(found, to_image(pooled))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(value):
    pooled = torch.zeros(2, 3, 4, 4)
    pooled[1, 2, 3, 3] = value
    with pytest.raises(ValueError, match="pooled must be finite"):
        to_image(pooled)


@pytest.mark.parametrize(
    ("pooled", "mode", "error", "message"),
    [
        (torch.zeros(4, 4), "minmax", ValueError, r"shape \[..., C, H, W\] and not be empty, got \[4, 4\]"),
        (torch.zeros(0, 3, 4, 4), "minmax", ValueError, r"not be empty"),
        (np.zeros((3, 4, 4)), "minmax", TypeError, "pooled must be a Tensor of real numbers"),
        (torch.zeros(3, 4, 4, dtype=torch.complex64), "minmax", TypeError, "got torch.complex64"),
        (torch.zeros(3, 4, 4), "stretch", ValueError, "mode must be one of 'minmax', 'minmax_channel', got 'stretch'"),
    ],
)
def test_to_image_refuses(pooled, mode, error, message):
    with pytest.raises(error, match=message):
        to_image(pooled, mode)


# --- arguments and files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "median"}, "method must be one of 'approx', 'exact', 'mean', 'max', got 'median'"),
        ({"nonlinearity": "log"}, "nonlinearity must be one of 'identity', 'sqrt', got 'log'"),
        ({"method": "max", "nonlinearity": "log"}, "nonlinearity must be one of"),
        ({"device": "abacus"}, "device must be one that torch can use here, got 'abacus': "),
        ({"device": "meta"}, "device must be one that torch can use here, got 'meta': "),
        ({"size": 0}, "size must be a positive integer"),
        ({"resize_first": True}, "resize_first has no meaning without size"),
        ({"max_frames": 0}, "max_frames must be a positive integer"),
    ],
)
def test_options_are_refused_before_anything_is_read(options, message):
    def video():
        raise AssertionError("read")
        yield

    for call in (dynamic_image, lambda video, **how: dynamic_images(video, window=2, stride=1, **how)):
        with pytest.raises(ValueError, match=message):
            call(video(), **options)


@pytest.mark.parametrize(("window", "stride", "name"), [(0, 1, "window"), (2.0, 1, "window"), (2, 0, "stride")])
def test_bad_windows_are_refused(window, stride, name):
    with pytest.raises(ValueError, match=f"{name} must be a positive integer, got"):
        dynamic_images(clips.random_frames(4), window=window, stride=stride)
    with pytest.raises(ValueError, match="stride has no meaning without window, got 2"):
        Recipe(stride=2).check()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said_before_anything_is_read():
    with pytest.raises(ValueError, match="device must be one that torch can use here, got 'cuda'"):
        dynamic_image("no such file", device="cuda")


def test_damage_is_warned_of(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(clips.damaged(clips.random_frames(6), 0))
    with pytest.warns(RuntimeWarning, match=r"broken\.mp4: 1 part damaged or missing"):
        dynamic_image(tmp_path / "broken.mp4")


def test_errors_pass_through(tmp_path):
    (tmp_path / "empty.avi").touch()
    with pytest.raises(VideoError, match=r"empty\.avi"):
        dynamic_image(tmp_path / "empty.avi")
    with pytest.raises(FileNotFoundError):
        dynamic_images(tmp_path / "none.avi", window=10, stride=6)


def test_real_clips_have_motion_on_grey():
    for file in clips.real_clips("ucf101"):
        image = dynamic_image(file, size=64)
        assert (int(image.min()), int(image.max())) == (0, 255)
        assert 90 < image.float().mean() < 165, file  # what stands still is grey


# --- one by one -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["approx", "exact", "mean", "max"])
def test_pictures_are_the_images_one_by_one(method, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(clips.damaged(clips.random_frames(40), 3))
    recipe = Recipe(method, window=9, stride=4)
    pictures = Pictures(tmp_path / "clip.mp4", recipe)
    images, *account = make_images(tmp_path / "clip.mp4", recipe)
    assert torch.equal(torch.stack(list(pictures)), images)
    assert list(pictures.account) == account == [39, 1]


@pytest.mark.parametrize("options", [{}, {"size": 16}, {"size": 16, "resize_first": True}], ids=str)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("method", ["approx", "exact", "mean", "max"])
def test_interleaved_pictures_differ_in_memory_only(method, turned, options, tmp_path):
    mp4 = clips.encoded(clips.random_frames(19), codec="png", pix_fmt="rgb24", format="mp4")
    (tmp_path / "clip.mp4").write_bytes(clips.with_display_matrix(mp4, 0, -1, 1, 0) if turned else mp4)
    recipe = Recipe(method, window=9, stride=4, **options)
    plain = list(Pictures(tmp_path / "clip.mp4", recipe))
    interleaved = list(Pictures(tmp_path / "clip.mp4", replace(recipe, interleaved=True)))
    assert torch.equal(torch.stack(interleaved), torch.stack(plain))
    assert all(image.is_contiguous() for image in plain)
    assert all(image.permute(1, 2, 0).is_contiguous() for image in interleaved)


def test_pictures_come_as_their_windows_end(tmp_path, monkeypatch):
    clips.write(tmp_path / "clip.mkv", clips.random_frames(200))
    whole, decoded = Decoder.frames, []

    def counted(decoder):
        for number, frame in whole(decoder):
            decoded.append(number)
            yield number, frame

    monkeypatch.setattr(Decoder, "frames", counted)
    batch = 16
    for index, _ in enumerate(Pictures(tmp_path / "clip.mkv", Recipe(window=10, stride=5))):
        assert len(decoded) < 5 * index + 10 + batch
    assert index == 38


@pytest.mark.parametrize("expected", [None, 37, 40, 43, 90])
@pytest.mark.parametrize(("window", "stride"), [(40, 1), (60, 1), (39, 1), (10, 6), (41, 7), (3, 5)])
@pytest.mark.parametrize("method", ["approx", "max"])
def test_no_sums_are_kept_for_windows_that_are_not_wanted(method, window, stride, expected, monkeypatch):
    """Also where packets, of which there are 40, tell another number of frames."""
    frames, begun = clips.random_frames(40), []
    film, empty = clips.encoded(frames), Windows._empty
    monkeypatch.setattr(Windows, "_empty", lambda windows: begun.append(1) or empty(windows))
    monkeypatch.setattr(Decoder, "expected", expected)
    found = dynamic_images(film, window=window, stride=stride, method=method)
    assert (found.int() - dynamic_images(frames, window=window, stride=stride, method=method).int()).abs().max() <= 1
    if expected == 40:
        assert len(begun) <= len(found)


def test_a_recipe_is_checked_before_anything_is_read():
    with pytest.raises(ValueError, match="window must be a positive integer, got 0"):
        Pictures("missing.mp4", Recipe(window=0, stride=1))
