"""The value of temporal_pool and approx_rank_pool on every backend: literals, the oracle, equivalences."""

import functools
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
import torch
from cases import DTYPES, FLOATING, LAYOUTS, frames, laid_out
from conftest import parameters
from hypothesis import given, settings
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor

import dynpool
from dynpool import approx_rank_pool, binary, context, kept, ops, pooling, reference, temporal_pool

NAN, INF = float("nan"), float("inf")


def check_approx(x, dim=1, *, out_dtype=None, time_average=True, normalize_weights=False, **options):
    """approx_rank_pool(x) against the oracle, within the derived bound; returns the result."""
    picks = {name: options[name] for name in ("window", "stride", "lengths", "offsets") if name in options}
    rows = oracle.rank_rows(x.shape[dim], time_average=time_average, normalize=normalize_weights, **picks)
    pixel = {name: options[name] for name in ("nonlinearity", "mean", "std", "channel_dim") if name in options}
    before = x.clone()
    y = approx_rank_pool(
        x, dim, time_average=time_average, normalize_weights=normalize_weights, out_dtype=out_dtype, **options
    )
    assert torch.equal(x.nan_to_num(7), before.nan_to_num(7)) if x.is_floating_point() else torch.equal(x, before)
    squeeze = "window" not in picks and "offsets" not in picks
    error = 2 * oracle.alpha_error(x.shape[dim]) if x.dtype == torch.float64 else 0  # twice: normalised weights
    check(y, x, rows, dim, squeeze=squeeze, out_dtype=out_dtype, weights_error=error, **pixel)
    return y


def check(
    y,
    x,
    rows,
    dim,
    *,
    squeeze,
    out_dtype=None,
    weights_error=0,
    nonlinearity="identity",
    mean=None,
    std=None,
    channel_dim=None,
):
    if channel_dim is None and any(np.size(v) > 1 for v in (mean, std) if v is not None):
        channel_dim = -3
    expected = oracle.pool(x, rows, dim, nonlinearity, mean, std, channel_dim)
    out_dtype = out_dtype or (torch.float32 if x.dtype == torch.uint8 else x.dtype)
    assert y.dtype == out_dtype
    assert y.device == x.device
    value, bound = expected.value, expected.bound(x.dtype, out_dtype, nonlinearity)
    if weights_error:
        largest = x.abs().nan_to_num(0, 0, 0).max().item() if x.numel() else 0
        largest = 1 + (largest + np.abs(mean or 0).max()) / np.min(std or 1)  # √v ≤ 1 + v
        bound = bound + weights_error * x.shape[dim] * largest
    if squeeze:
        value, bound = value.squeeze(dim), bound.squeeze(dim)
    oracle.assert_within(y, value, bound)


# --- by hand -------------------------------------------------------------------------------------------------------


def test_two_frames_by_hand(backend):
    """α = -1/2, 1/2: half the difference."""
    x = torch.tensor([[[1.0, -2.0, 4.0], [2.0, 6.0, 4.0]]], device=backend.device)
    assert approx_rank_pool(x).tolist() == [[0.5, 4.0, 0.0]]
    assert approx_rank_pool(x, time_average=False).tolist() == [[1.0, 8.0, 0.0]]
    assert approx_rank_pool(x, normalize_weights=True).tolist() == [[1.0, 8.0, 0.0]]


def test_three_frames_by_hand(backend):
    """α = -4/3, 2/3, 2/3 and -2, 0, 2."""
    x = torch.tensor([[3.0], [6.0], [9.0]], dtype=torch.float64, device=backend.device)
    assert approx_rank_pool(x, 0).tolist() == pytest.approx([6.0], abs=1e-14)
    assert approx_rank_pool(x, 0, time_average=False).tolist() == [12.0]
    assert approx_rank_pool(x, 0, normalize_weights=True).tolist() == pytest.approx([4.5], abs=1e-14)


def test_signed_root_by_hand(backend):
    x = torch.tensor([[4.0, -9.0, 0.0], [16.0, 25.0, -1.0]], device=backend.device)
    y = temporal_pool(x, torch.tensor([1.0, 10.0], device=backend.device), 0, nonlinearity="sqrt")
    assert y.tolist() == pytest.approx([42.0, 47.0, -10.0], rel=3e-7)  # a GPU's roots may be off by an ulp


def test_uint8_by_hand(backend):
    """Roots of 0, 1, 64 and 255/255 after normalisation; eq. (4) weights -1, 1."""
    x = torch.tensor([[0, 64, 255, 1], [255, 1, 255, 0]], dtype=torch.uint8, device=backend.device)
    y = approx_rank_pool(x, 0, time_average=False, nonlinearity="sqrt")
    assert y.dtype == torch.float32
    assert y.tolist() == pytest.approx([255**0.5, -7.0, 0.0, -1.0], rel=1e-6, abs=1e-5)
    assert y[2].item() == 0.0  # the same root twice
    scaled = approx_rank_pool(x, 0, time_average=False, nonlinearity="sqrt", std=255)
    assert scaled.tolist() == pytest.approx([1.0, -7 / 255**0.5, 0.0, -(255**-0.5)], rel=2e-6, abs=1e-6)


def test_mean_and_std_by_hand(backend):
    x = torch.tensor([[[5.0, 9.0], [1.0, 13.0]]], device=backend.device)  # [B, T, C]
    options = {"mean": [1.0, 5.0], "std": [4.0, 2.0], "channel_dim": 2}
    weights = torch.tensor([1.0, 2.0], device=backend.device)
    assert temporal_pool(x, weights, **options)[0].tolist() == pytest.approx([1.0, 10.0], rel=3e-7)  # z = 1, 2; 0, 4
    rooted = temporal_pool(x, weights, nonlinearity="sqrt", **options)
    assert rooted[0].tolist() == pytest.approx([1.0, 2**0.5 + 4], rel=1e-6)


def test_window_by_hand(backend):
    """T = 5, window 2, stride 2: frames (1, 2) and (3, 4); the fifth is in no window."""
    x = torch.tensor([1.0, 4.0, 9.0, 4.0, NAN], device=backend.device)
    assert approx_rank_pool(x, 0, window=2, time_average=False).tolist() == [3.0, -5.0]
    assert approx_rank_pool(x[:4], 0, window=2, stride=1, time_average=False).tolist() == [3.0, 5.0, -5.0]


def test_lengths_by_hand(backend):
    x = torch.tensor([[1.0, 4.0, 100.0], [1.0, 5.0, 9.0], [7.0, NAN, INF]], device=backend.device)
    assert approx_rank_pool(x, lengths=[2, 3, 1], time_average=False).tolist() == [3.0, 16.0, 0.0]


@pytest.mark.parametrize("longest", [5, 64, 65, 1025])  # beyond 1024 weights are computed for each call
def test_ragged_clips_like_one_another(backend, longest):
    x = frames((2, longest, 7), torch.float32, backend.device)
    lengths = [longest, longest - 3]
    padded = approx_rank_pool(x, lengths=lengths, normalize_weights=True)
    packed = torch.cat([clip[:n] for clip, n in zip(x, lengths, strict=True)])
    joined = approx_rank_pool(packed, 0, offsets=[0, longest, sum(lengths)], normalize_weights=True)
    for clip, n, *pooled in zip(x, lengths, padded, joined, strict=True):
        expected = approx_rank_pool(clip[:n].double(), 0, normalize_weights=True)
        for y in pooled:  # Σ|α| = 2, values of at most 3: a few roundings of 6
            torch.testing.assert_close(y.double(), expected, rtol=0, atol=4e-6)


def test_offsets_by_hand(backend):
    x = torch.tensor([1.0, 4.0, 7.0, 1.0, 5.0, 9.0], device=backend.device)
    assert approx_rank_pool(x, 0, offsets=[0, 2, 3, 6], time_average=False).tolist() == [3.0, 0.0, 16.0]


def test_weights_by_hand(backend):
    x = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]], device=backend.device)  # [B, T, 1]

    def pool(weights, **options):
        return temporal_pool(x, torch.tensor(weights, device=backend.device), **options).tolist()

    assert pool([1.0, 10.0]) == [[21.0], [43.0]]
    assert pool([[1.0, 10.0], [0.0, 1.0], [1.0, -1.0]]) == [[[21.0], [2.0], [-1.0]], [[43.0], [4.0], [-1.0]]]
    assert pool([[1.0, 10.0], [100.0, 1.0]], per_clip=True) == [[21.0], [304.0]]
    assert pool([[[1.0, 10.0]], [[100.0, 1.0]]]) == [[[21.0]], [[304.0]]]
    assert pool([[[1.0, 10.0]], [[100.0, 1.0]]], per_clip=True) == [[[21.0]], [[304.0]]]


@pytest.mark.parametrize(
    ("dtype", "weights", "expected"),
    [
        (torch.float16, [1.0, 2048.0], 2048.0),  # 2049: halfway between 2048 and 2050, to even
        (torch.float16, [3.0, 2048.0], 2052.0),  # 2051: halfway between 2050 and 2052, to even
        (torch.float16, [1.0, 65504.0], 65504.0),
        (torch.float16, [16.0, 65504.0], INF),  # documented: float16 overflows
        (torch.float16, [2.0**-24, 2.0**-25], 2.0**-23),  # 1.5 denormals, to even
        (torch.bfloat16, [1.0, 256.0], 256.0),  # 257: halfway between 256 and 258, to even
        (torch.bfloat16, [3.0, 256.0], 260.0),
        (torch.bfloat16, [0.0, 65504.0], 65536.0),
    ],
)
def test_rounds_once_to_nearest_even(backend, dtype, weights, expected):
    x = torch.ones(2, 17, dtype=dtype, device=backend.device)
    y = temporal_pool(x, torch.tensor(weights, device=backend.device), 0)
    assert y.tolist() == [expected] * 17


def test_accumulates_half_in_float32(backend):
    """4095 ones and a half: in float16 the sum would stick at 2048."""
    x = torch.ones(4096, 3, dtype=torch.float16, device=backend.device)
    weights = torch.ones(4096, device=backend.device)
    weights[0] = 0.5
    assert temporal_pool(x, weights, 0, out_dtype=torch.float32).tolist() == [4095.5] * 3


# --- the oracle ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nonlinearity", ["identity", "sqrt"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dtypes_and_layouts(backend, dtype, nonlinearity, layout):
    x = laid_out(frames((2, 7, 3, 5, 11), dtype, backend.device), layout, 1)
    check_approx(x, 1, nonlinearity=nonlinearity, normalize_weights=dtype == torch.float16)
    check_approx(
        x, 1, nonlinearity=nonlinearity, window=3, stride=2, time_average=False, mean=[0.5, -2, 1], std=[1, 2, 4]
    )


@pytest.mark.parametrize("dim", range(-4, 4))
@pytest.mark.parametrize("layout", ["contiguous", "reversed", "strided", "time_innermost"])
def test_any_dimension(backend, dim, layout):
    x = laid_out(frames((3, 5, 2, 7), device=backend.device), layout, dim)
    check_approx(x, dim)
    check_approx(x, dim, window=2, stride=1, nonlinearity="sqrt")


@pytest.mark.parametrize("inner", [1, 2, 15, 16, 17, 31, 127, 257, 2047, 2048, 2049, 4097])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_remainders_of_the_inner_size(backend, inner, dtype):
    x = frames((2, 5, inner), dtype, backend.device)
    check_approx(x)
    check_approx(x, nonlinearity="sqrt", mean=1.5, std=2.0)
    check_approx(laid_out(x, "sliced", 1), nonlinearity="sqrt")


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 64, 127])
def test_numbers_of_frames(backend, num_frames):
    for dtype in (torch.uint8, torch.float16, torch.float32):
        x = frames((2, num_frames, 13), dtype, backend.device)
        check_approx(x, nonlinearity="sqrt", normalize_weights=True)


@pytest.mark.parametrize("shape", [(5,), (5, 1), (1, 5, 1, 1), (2, 5, 3, 2, 1, 2, 3), (2, 1, 5, 2, 1, 3, 2, 2)])
def test_numbers_of_dimensions(backend, shape):
    x = frames(shape, device=backend.device)
    dim = shape.index(5)
    check_approx(x, dim)
    order = tuple(range(1, len(shape), 2)) + tuple(range(0, len(shape), 2))
    shuffled = x.permute(order)
    check_approx(shuffled, order.index(dim), nonlinearity="sqrt", window=2)


def test_more_axes_than_any_kernel_has_loops_for(backend):
    """Twelve dimensions of which none merges."""
    big = frames((3,) * 12, device=backend.device)
    x = big[(slice(0, 2),) * 12]
    check_approx(x, 4)


@pytest.mark.parametrize("out_dtype", FLOATING, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out_dtype(backend, dtype, out_dtype):
    x = frames((2, 5, 19), dtype, backend.device)
    check_approx(x, normalize_weights=True, out_dtype=out_dtype)
    check_approx(x, time_average=False, nonlinearity="sqrt", mean=3, std=2, out_dtype=out_dtype)


@pytest.mark.parametrize(
    ("shape", "dim", "channel_dim", "layout"),
    [
        ((2, 5, 3, 7, 11), 1, None, "contiguous"),  # NCHW
        ((2, 5, 3, 7, 11), 1, 2, "channels_last"),  # NHWC memory
        ((2, 5, 7, 11, 3), 1, -1, "contiguous"),  # NHWC shape
        ((2, 3, 5, 7, 11), 2, 1, "contiguous"),  # channel before T
        ((2, 3, 5, 7, 11), 2, 1, "reversed"),
        ((3, 5, 7, 11), 1, 0, "contiguous"),  # channel outermost
        ((5, 3), 0, 1, "contiguous"),
        ((3, 5), 1, 0, "contiguous"),
        ((2, 5, 3, 7, 11), 1, -3, "strided"),
        ((2, 5, 3, 7, 11), 1, 3, "time_innermost"),
        ((2, 5, 3, 4, 3), 1, 2, "channels_last"),
    ],
)
@pytest.mark.parametrize("nonlinearity", ["identity", "sqrt"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_per_channel_normalization(backend, shape, dim, channel_dim, layout, nonlinearity, dtype):
    x = laid_out(frames(shape, dtype, backend.device), layout, dim)
    channels = shape[-3 if channel_dim is None else channel_dim]
    mean = [0.25 * c - 0.5 for c in range(channels)]
    std = [0.5 + 0.25 * c for c in range(channels)]
    for m, s in [(mean, std), (mean, None), (None, std), (0.5, std), (mean, 4.0)]:
        options = {"mean": m, "std": s, "nonlinearity": nonlinearity, "channel_dim": channel_dim}
        check_approx(x, dim, time_average=False, **options)


def test_a_std_whose_reciprocal_is_subnormal(backend):
    x = torch.tensor([[[1e38], [5e37]]], device=backend.device)
    y = temporal_pool(x, torch.tensor([1.0, 2.0], device=backend.device), std=2e38)
    assert y.item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("nonlinearity", ["identity", "sqrt"])
def test_mean_and_std_say_the_same_as_number_sequence_or_tensor(backend, nonlinearity):
    x = frames((2, 5, 3, 4, 4), torch.uint8, backend.device)

    def pool(mean, std):
        return approx_rank_pool(x, mean=mean, std=std, nonlinearity=nonlinearity)

    def tensor(value):
        return torch.tensor(value, device=backend.device)

    per_channel = pool([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    assert torch.equal(pool(tensor([1.0, 2.0, 4.0]), tensor([2.0, 4.0, 8.0])), per_channel)
    assert torch.equal(pool(tensor([1, 2, 4]), tensor([2.0, 4.0, 8.0]).double()), per_channel)
    number = pool(3.0, 2.0)
    for mean, std in [(tensor(3.0), tensor(2.0)), ([3.0], [2.0]), (tensor([3.0]), 2.0), (3, 2), (torch.tensor(3.0), 2)]:
        assert torch.equal(pool(mean, std), number)
    same = pool([3.0] * 3, [2.0] * 3)
    assert torch.allclose(same, number, rtol=1e-5, atol=1e-3)


def test_a_pixel_at_the_mean_is_exactly_zero(backend):
    """The signed root is steep there: a mean subtracted in rounded arithmetic would give 1e-4, not 0."""
    for value, mean, std in [(0.7, 0.7, 0.3), (131.0, 131.0, 57.0)]:
        x = torch.full((3, 41), value, device=backend.device)
        weights = torch.tensor([1.0, -3.0, 7.0], device=backend.device)
        y = temporal_pool(x, weights, 0, mean=mean, std=std, nonlinearity="sqrt")
        assert y.tolist() == [0.0] * 41


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 7, 5, 11), (3, 7, 1, 1), (1, 7, 2, 3)])
def test_weights_of_every_shape(backend, dtype, shape):
    x = frames(shape, dtype, backend.device)
    batch, num_frames = shape[:2]
    acc = oracle.accumulate_dtype(dtype)

    def weights(*sizes):
        return torch.randn(*sizes, num_frames, dtype=acc).to(backend.device)

    shared, windows, one = weights(), weights(4), weights(1)
    single, several, rows_of_clips, both = weights(batch, 1), weights(batch, 5), weights(batch), weights(batch, 3)
    for a, rows, squeeze, per_clip in [
        (shared, shared[None, None], True, False),
        (one, one[None], False, False),
        (windows, windows[None], False, False),
        (single, single, False, False),
        (several, several, False, False),
        (rows_of_clips, rows_of_clips[:, None], True, True),
        (both, both, False, True),
    ]:
        y = temporal_pool(x, a, per_clip=per_clip, nonlinearity="sqrt", mean=0.5)
        check(y, x, oracle.dense_rows(rows), 1, squeeze=squeeze, nonlinearity="sqrt", mean=0.5)


@pytest.mark.parametrize("windows", [1, 2, 3, 4, 5, 8, 9, 17])
def test_numbers_of_windows(backend, windows):
    x = frames((2, 19, 3, 7), torch.uint8, backend.device)
    weights = torch.randn(windows, 19, device=backend.device)
    y = temporal_pool(x, weights, nonlinearity="sqrt")
    check(y, x, oracle.dense_rows(weights[None]), 1, squeeze=False, nonlinearity="sqrt")


def test_weights_in_another_dtype_or_layout(backend):
    """Weights are rounded once to the accumulate type, never to that of x."""
    x = frames((3, 5, 17), torch.bfloat16, backend.device)
    weights = torch.randn(5, 3, dtype=torch.float64, device=backend.device).mT
    y = temporal_pool(x, weights)
    check(y, x, oracle.dense_rows(weights[None]), 1, squeeze=False)
    assert torch.equal(temporal_pool(x, weights.contiguous()), y)
    assert torch.equal(temporal_pool(x, weights.float()), y)
    one = torch.tensor(1.0, device=backend.device)
    assert torch.equal(temporal_pool(x, one.expand(5)), temporal_pool(x, torch.ones(5, device=backend.device)))


@pytest.mark.parametrize(
    ("num_frames", "window", "stride"),
    [(7, 7, None), (7, 7, 3), (7, 1, None), (7, 3, None), (7, 3, 1), (7, 3, 2), (11, 2, 5), (31, 10, 6), (13, 5, 100)],
)
def test_windows(backend, num_frames, window, stride):
    x = frames((2, num_frames, 3, 5), torch.uint8, backend.device)
    y = check_approx(x, window=window, stride=stride, nonlinearity="sqrt")
    unfolded = x.unfold(1, window, stride or window).movedim(-1, 2)  # [B, W, window, …]
    assert y.shape == (2, unfolded.shape[1], 3, 5)
    each = approx_rank_pool(unfolded, 2, nonlinearity="sqrt")
    bound = oracle.pool(x, oracle.rank_rows(num_frames, window=window, stride=stride), 1, "sqrt")
    oracle.assert_within(y, each.cpu().double().numpy(), 2 * bound.bound(x.dtype, y.dtype, "sqrt"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("window", "stride"), [(16, 16), (10, 6), (16, 4), (11, 2), (10, 1), (16, 1), (17, 1), (3, 5)])
def test_windows_of_whole_words(backend, window, stride, dtype):
    x = frames((2, 41, 3, 8, 16), dtype, backend.device)
    for nonlinearity in ("identity", "sqrt"):
        check_approx(x, window=window, stride=stride, nonlinearity=nonlinearity)
    check_approx(x[:1, :23], window=window, stride=stride)  # a block has some of the windows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_frames", [2, 15, 16, 17, 63, 64, 65, 257])
def test_frames_side_by_side(backend, num_frames, dtype):
    """Features [B, C, T]: of many frames the sum goes along memory, also where it begins in the middle of a word."""
    x = frames((2, 37, num_frames), dtype, backend.device)
    check_approx(x, 2)
    check_approx(x[:, ::2], 2, nonlinearity="sqrt")
    check_approx(x, 2, mean=0.5, std=3.0)
    if num_frames > 17:
        check_approx(x, 2, window=17, stride=17)
        check_approx(x, 2, window=16, stride=5)
        check_approx(x[..., 1:], 2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("inner", [3, 5000])
def test_windows_of_long_clips(backend, inner, dtype):
    """Rows open and close one after the other; of clips that end before, some have no frame, or are cut off."""
    num_frames = 997 if inner == 3 else 61
    x = frames((2, num_frames, inner), dtype, backend.device)
    for nonlinearity in ("identity", "sqrt"):
        check_approx(x, window=10, stride=6, nonlinearity=nonlinearity)
        check_approx(x, window=16, stride=1, lengths=[num_frames - 20, 19], nonlinearity=nonlinearity)
    check_approx(x, window=10, stride=6, mean=0.5, std=2.0, nonlinearity="sqrt")
    packed = x.flatten(0, 1)
    check_approx(packed, 0, offsets=[0, 5, 6, 40, len(packed)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_frames", [5, 41, 130])
def test_clips_of_whole_words(backend, num_frames, dtype):
    """Rows that share no frame: padded clips, packed ones, and weights of each clip."""
    x = frames((3, num_frames, 3, 8, 16), dtype, backend.device)
    packed, T = x.flatten(0, 1), num_frames
    A = torch.randn(3, T, dtype=torch.float64)
    for nonlinearity in ("identity", "sqrt"):
        check_approx(x, lengths=[T, 1, T // 2], nonlinearity=nonlinearity)
        check_approx(x[:1], lengths=[T // 2], nonlinearity=nonlinearity)
        check_approx(packed, 0, offsets=[0, 2, 3, T, 2 * T - 1, 3 * T], nonlinearity=nonlinearity)
        y = temporal_pool(
            x, A.to(reference.accumulate_dtype(dtype)).to(x.device), per_clip=True, nonlinearity=nonlinearity
        )
        z = x.cpu().double()
        z = z.sign() * z.abs().sqrt() if nonlinearity == "sqrt" else z
        terms = A[:, :, None, None, None] * z
        # Weights and sums in float32, results in y's dtype.
        error = (terms.abs().sum(1) * 2 * T * 2**-24 + terms.sum(1).abs() * torch.finfo(y.dtype).eps).clamp(min=2**-24)
        assert ((y.cpu().double() - terms.sum(1)).abs() <= error).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_frames", [1, 4, 8, 24, 63, 64, 100, 600])
def test_series_of_frames(backend, num_frames, dtype):
    """Frames side by side, as in features [C, T]: in words or not, packed or with others between."""
    x = frames((2, 37, num_frames), dtype, backend.device)
    for nonlinearity in ("identity", "sqrt"):
        check_approx(x, -1, nonlinearity=nonlinearity)
        check_approx(x[:, 1::3], -1, nonlinearity=nonlinearity)
    check_approx(x[:, :5, num_frames // 2 :], -1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_windows_keep_what_is_no_number_to_themselves(backend, value):
    x = frames((1, 41, 3, 8, 16), torch.float32, backend.device)
    x[0, 20] = value
    y = approx_rank_pool(x, window=10, stride=3)
    touched = torch.tensor([3 * w <= 20 < 3 * w + 10 for w in range(y.shape[1])], device=backend.device)
    assert torch.equal(y.isfinite().flatten(2).all(-1)[0], ~touched)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("margin", [1, 3, 8, 13, 40])
def test_crops(backend, margin, dtype):
    """Rows that lie apart, by little or by much."""
    x = frames((2, 19, 3, 43, 107), dtype, backend.device)[..., 2 : 43 - margin, margin:]
    for nonlinearity in ("identity", "sqrt"):
        check_approx(x, nonlinearity=nonlinearity)
    check_approx(x[:1, :, 1:2])
    check_approx(x[:, 1:3, :, :37, :33])


@pytest.mark.parametrize("dim", [1, 2, -1])
@pytest.mark.parametrize("normalize_weights", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_lengths(backend, dim, normalize_weights, dtype):
    x = frames((5, 11, 11, 11), dtype, backend.device)
    lengths = [11, 1, 2, 7, 10]
    y = check_approx(x, dim, lengths=lengths, normalize_weights=normalize_weights, nonlinearity="sqrt")
    for b, n in enumerate(lengths):
        clip = x[b : b + 1].narrow(dim, 0, n)
        alone = approx_rank_pool(clip, dim, normalize_weights=normalize_weights, nonlinearity="sqrt")
        scale = 1 if normalize_weights else 120
        assert torch.allclose(y[b : b + 1], alone, rtol=1e-4, atol=1e-4 * scale)


def test_lengths_as_any_integers(backend):
    x = frames((3, 7, 5), device=backend.device)
    expected = approx_rank_pool(x, lengths=[7, 3, 1])
    for lengths in (
        (7, 3, 1),
        torch.tensor([7, 3, 1]),
        torch.tensor([7, 3, 1], dtype=torch.int32),
        torch.tensor([7, 3, 1], dtype=torch.uint8),
        torch.tensor([7, 3, 1], device=backend.device),
        torch.tensor([7, 0, 3, 0, 1])[::2],
        np.array([7, 3, 1]),
    ):
        assert torch.equal(approx_rank_pool(x, lengths=lengths), expected)


def test_full_lengths_are_no_lengths(backend):
    x = frames((3, 7, 5, 5), torch.uint8, backend.device)
    y, plain = approx_rank_pool(x, lengths=[7, 7, 7]), approx_rank_pool(x)
    bound = oracle.pool(x, oracle.rank_rows(7), 1).bound(x.dtype, y.dtype, "identity").squeeze(1)
    oracle.assert_within(y, plain.cpu().double().numpy(), 2 * bound)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_offsets(backend, dim):
    x = frames((13, 13, 13), torch.uint8, backend.device)
    offsets = [0, 2, 3, 10, 13]
    y = check_approx(x, dim, offsets=offsets, nonlinearity="sqrt")
    assert y.shape[dim] == 4
    for same in (
        torch.tensor(offsets, dtype=torch.int32),
        torch.tensor(offsets, device=backend.device),
        tuple(offsets),
    ):
        assert torch.equal(approx_rank_pool(x, dim, offsets=same, nonlinearity="sqrt"), y)


def test_one_clip_of_offsets_keeps_its_axis(backend):
    x = frames((5, 3), device=backend.device)
    assert approx_rank_pool(x, 0, offsets=[0, 5]).shape == (1, 3)


def test_windows_of_lengths(backend):
    """Clip b has its own number of windows; zeros stand where only longer clips have one."""
    x = frames((4, 11, 3, 5), torch.uint8, backend.device)
    lengths = [11, 3, 5, 8]
    y = check_approx(x, lengths=lengths, window=3, stride=2, nonlinearity="sqrt")
    assert y.shape == (4, 5, 3, 5)
    for b, n in enumerate(lengths):
        own = 1 + (n - 3) // 2
        assert y[b, own:].count_nonzero() == 0
        assert y[b, :own].abs().sum() > 0


def test_windows_of_offsets(backend):
    x = frames((17, 4, 5), torch.uint8, backend.device)
    y = check_approx(x, 0, offsets=[0, 3, 7, 17], window=3, stride=2, nonlinearity="sqrt")
    assert y.shape == (1 + 1 + 4, 4, 5)


@pytest.mark.parametrize("time_average", [True, False])
def test_ten_thousand_frames(backend, time_average):
    """Rounding errors of a random input are themselves random: 6·√n·u bounds them but for one case in 10^7 or so
    (Higham and Mary, 2019), where n·u would let a float32 harmonic sum pass.
    """
    num_frames = 10_007
    x = frames((num_frames, 23), torch.uint8, backend.device)
    y = approx_rank_pool(x, 0, time_average=time_average, normalize_weights=True)
    exact = oracle.pool(x, oracle.rank_rows(num_frames, time_average=time_average, normalize=True), 0)
    oracle.assert_within(y, exact.value[0], 6 * num_frames**0.5 * 2.0**-24 * exact.magnitude[0])


def test_ten_thousand_frames_of_a_constant_vanish(backend):
    num_frames = 10_007
    x = torch.full((num_frames, 19), 255, dtype=torch.uint8, device=backend.device)
    y = approx_rank_pool(x, 0, normalize_weights=True)
    assert y.abs().max().item() <= 510 * (num_frames + oracle.SLACK) * 2.0**-24
    y = approx_rank_pool(x.double(), 0, normalize_weights=True)
    assert y.abs().max().item() <= 510 * (num_frames + oracle.SLACK) * 2.0**-53


def flags_of_memory(address: int) -> list[str]:
    """What Linux says of the mapping that has it."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if "-" in name and not name.endswith(":"):
            begin, end = (int(part, 16) for part in name.split("-"))
            inside = begin <= address < end
        elif inside and name == "VmFlags:":
            return values
    return []


def test_results_larger_than_malloc_keeps():
    """For which the launcher asks the system for large pages, where it has them."""
    x = torch.randint(0, 256, (2, 2884, 2999), dtype=torch.uint8)
    weights = torch.tensor([-1.0, 1.0])
    y = temporal_pool(x, weights, 0)
    assert y.element_size() * y.numel() > 1 << 25
    assert torch.equal(y, x[1].float() - x[0].float())
    if binary.extension is not None and Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
        assert "hg" in flags_of_memory(y.data_ptr() + (1 << 24))  # madvise(…, MADV_HUGEPAGE)
    frames = x[:, 1:].float().requires_grad_()
    (gradient,) = torch.autograd.grad(temporal_pool(frames, weights, 0), frames, y[1:])
    assert torch.equal(gradient, torch.stack([-y[1:], y[1:]]))


def test_reference_against_oracle():
    """The fallback by its own signature, banded rows included."""
    for dtype in DTYPES:
        x = frames((3, 7, 2, 5), dtype)
        acc = oracle.accumulate_dtype(dtype)
        weights = torch.randn(3, 2, 4, dtype=acc)
        bands = torch.tensor([[[0, 4], [3, 4]], [[2, 1], [0, 0]], [[5, 2], [6, 1]]])
        rows = [
            [(first, weights[b, w, :count].tolist()) for w, (first, count) in enumerate(clip)]
            for b, clip in enumerate(bands.tolist())
        ]
        mean, std = torch.tensor([0.5, -1.0], dtype=acc), torch.tensor([2.0, 4.0], dtype=acc)
        y = reference.temporal_pool(x, weights, bands, mean, std, 1, 2, "sqrt", torch.float64)
        exact = oracle.pool(x, rows, 1, "sqrt", mean, std, 2)
        oracle.assert_within(y, exact.value, exact.bound(dtype, torch.float64, "sqrt"))


# --- hypothesis ----------------------------------------------------------------------------------------------------


@st.composite
def calls(draw):
    """A shape, a dtype, a memory layout and keywords that go together."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 5, 7, 17]), min_size=1, max_size=5).map(tuple))
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    num_frames, batch = shape[dim], shape[0]
    options = {
        "nonlinearity": draw(st.sampled_from(["identity", "sqrt"])),
        "time_average": draw(st.booleans()),
        "normalize_weights": draw(st.booleans()),
    }
    least = 1
    if draw(st.booleans()):
        options["window"] = least = draw(st.integers(1, num_frames))
        options["stride"] = draw(st.one_of(st.none(), st.integers(1, num_frames + 1)))
    ragged = draw(st.sampled_from(["none", "lengths", "offsets"]))
    if ragged == "lengths" and dim % len(shape) != 0:
        options["lengths"] = draw(st.lists(st.integers(least, num_frames), min_size=batch, max_size=batch))
    if ragged == "offsets":
        cuts, rest = [0], num_frames
        while rest >= 2 * least and draw(st.booleans()):
            step = draw(st.integers(least, rest - least))
            cuts.append(cuts[-1] + step)
            rest -= step
        options["offsets"] = [*cuts, num_frames]
    others = [d for d in range(len(shape)) if d != dim % len(shape)]
    if others and draw(st.booleans()):
        channel_dim = draw(st.sampled_from(others))
        channels = shape[channel_dim]
        values = st.sampled_from([-2.0, 0.25, 1.0, 3.5])
        options["mean"] = draw(st.lists(values, min_size=channels, max_size=channels))
        options["std"] = draw(st.lists(values.map(abs), min_size=channels, max_size=channels))
        options["channel_dim"] = channel_dim
    return (
        shape,
        dim,
        draw(st.sampled_from(DTYPES)),
        draw(st.permutations(range(len(shape)))),
        draw(st.booleans()),
        options,
    )


@given(call=calls(), seed=st.integers(0, 1000))
@settings(max_examples=120)
def test_any_call(backend, call, seed):
    shape, dim, dtype, order, sliced, options = call
    torch.manual_seed(seed)
    x = frames(shape, dtype, backend.device)
    x = x.permute(order).contiguous().permute([order.index(d) for d in range(len(shape))])
    if sliced:
        x = laid_out(x, "strided", dim)
    check_approx(x, dim, out_dtype=torch.float32 if dtype == torch.float16 else None, **options)


# --- equivalences --------------------------------------------------------------------------------------------------


def test_approx_is_temporal_pool_with_rank_weights(backend):
    x = frames((2, 9, 3, 5), torch.uint8, backend.device)
    alpha = dynpool.rank_weights(9, device=backend.device)
    assert torch.equal(temporal_pool(x, alpha, std=255), approx_rank_pool(x, std=255))


def test_a_mean_of_zero_is_none(backend):
    x = frames((2, 5, 3, 7), torch.float32).to(backend.device)
    for zero in (0, 0.0, [0], [0.0, 0.0, 0.0], np.float32(0), torch.zeros(3, device=x.device)):
        assert torch.allclose(approx_rank_pool(x, mean=zero, channel_dim=2), approx_rank_pool(x), atol=1e-5)
        found = temporal_pool(x, torch.ones(5, device=x.device), mean=zero, channel_dim=2)
        assert torch.allclose(found, x.sum(1), atol=1e-5)


def test_numbers_may_be_numpys(backend):
    x = frames((2, 7, 3, 5), torch.float32).to(backend.device)
    found = approx_rank_pool(
        x,
        np.int64(1),
        window=np.int32(3),
        stride=np.int64(2),
        mean=np.float32(1),
        std=[np.float64(2)] * 3,
        channel_dim=np.int8(2),
    )
    assert torch.equal(found, approx_rank_pool(x, 1, window=3, stride=2, mean=1, std=[2.0] * 3, channel_dim=2))
    arrays = {"mean": np.float32([0.25, 0.5, 1]), "std": np.array(2)}
    assert torch.equal(
        approx_rank_pool(x, channel_dim=2, **arrays), approx_rank_pool(x, channel_dim=2, mean=[0.25, 0.5, 1], std=2)
    )
    with pytest.raises(TypeError, match="mean must be a number, a sequence of numbers or a Tensor"):
        approx_rank_pool(x, mean=np.zeros((1, 3)))


def test_weights_that_change_before_the_gradient(backend):
    x = frames((2, 5, 3, 7), torch.float32).to(backend.device).requires_grad_()
    for shape in ((5,), (2, 5), (2, 1, 5)):
        weights = torch.rand(shape, device=x.device)
        y = temporal_pool(x, weights)
        weights.mul_(100)
        with pytest.raises(RuntimeError, match=r"in place|inplace"):
            y.sum().backward()
    with torch.inference_mode():
        weights = torch.rand(5, device=x.device)  # which have no version
    (g,) = torch.autograd.grad(temporal_pool(x, weights.clone()).sum(), x)
    assert torch.allclose(g[0, :, 0, 0], weights)


def test_what_wraps_a_tensor_is_not_read_as_memory(backend):
    """mean, std and ∂L/∂y that are no plain tensors."""
    x = frames((2, 5, 3, 7), torch.float32).to(backend.device).requires_grad_()
    mean, grad = torch.arange(3.0, device=x.device), torch.rand(2, 3, 7, device=x.device)
    wrapped = TwoTensor(mean, mean.clone())
    expected = approx_rank_pool(x, mean=mean, channel_dim=2, nonlinearity="sqrt")
    found = approx_rank_pool(x, mean=wrapped, channel_dim=2, nonlinearity="sqrt")
    assert isinstance(found, TwoTensor)
    assert torch.allclose(found.a, expected, atol=1e-5)
    (g,) = torch.autograd.grad(approx_rank_pool(x), x, TwoTensor(grad, grad.clone()))
    assert torch.allclose(g.a, torch.autograd.grad(approx_rank_pool(x), x, grad)[0], atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tracing_is_refused_also_of_calls_that_were_kept(backend):
    x = frames((2, 5, 3, 7), torch.float32).to(backend.device)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"traced by torch\.jit\.trace"):
            torch.jit.trace(dynpool.nn.ApproxRankPool(), (x,))
        approx_rank_pool(x)


def test_graphs_of_make_fx_compute(backend):
    x = frames((2, 5, 3, 7), torch.float32).to(backend.device)
    y = 0.5 * x.flip(0)
    for call in (
        lambda x: approx_rank_pool(x),
        lambda x: approx_rank_pool(x, mean=1.0, nonlinearity="sqrt"),
        torch.func.grad(lambda x: approx_rank_pool(x, nonlinearity="sqrt").square().sum()),
    ):
        call(x)  # which is kept
        assert torch.allclose(make_fx(call)(x)(y), call(y), atol=1e-4)


def test_another_default_device(monkeypatch):
    """Nothing that goes to a kernel of the CPU is made elsewhere: what is made on "meta" has no values."""
    x = frames((2, 5, 3, 7), torch.float32)
    calls = (
        lambda: approx_rank_pool(x, lengths=[2, 3]),
        lambda: approx_rank_pool(x, lengths=[2, 3], window=2),
        lambda: approx_rank_pool(x[0], 0, offsets=[0, 2, 5]),
        lambda: approx_rank_pool(x, window=2, mean=[1.0, 2.0, 3.0], channel_dim=2),
        lambda: dynpool.rank_pool(x),
        lambda: dynpool.rank_pool(x.to(torch.uint8), objective="svr", lengths=[2, 3]),
        lambda: dynpool.to_image(x[:, 0][:, None]),
    )
    expected = [call() for call in calls]
    for cache in ("_row_cache", "_table_cache", "_number_cache"):
        monkeypatch.setattr(kept, cache, {})
    monkeypatch.setattr(pooling, "_calls", ops.new_calls())
    with torch.device("meta"):
        assert all(torch.equal(call(), e) for call, e in zip(calls, expected, strict=True))


def test_more_layouts_than_are_kept(monkeypatch):
    monkeypatch.setattr(ops, "_known", {})
    A = torch.tensor([3.0, -1.0])
    for size in [*range(1, ops.MOST_KEPT + 10), 1, 2]:
        x = torch.stack([torch.full((size,), 5.0), torch.full((size,), 7.0)])
        assert torch.equal(temporal_pool(x, A, 0), torch.full((size,), 8.0))
        assert torch.equal(temporal_pool(x, A, 0, mean=1, std=2), torch.full((size,), 3.0))
        assert len(ops._known) <= ops.MOST_KEPT


def test_negative_views(backend, monkeypatch):
    """Tensors whose memory holds the negative of what they are: imaginary parts of conjugates."""
    monkeypatch.setattr(pooling, "_calls", ops.new_calls())
    z = torch.complex(*(frames((2, 5, 3, 7), torch.float32) for _ in range(2))).to(backend.device)
    x = z.conj().imag
    assert x.is_neg()
    expected = approx_rank_pool(x.resolve_neg().contiguous())
    for _ in range(2):
        assert torch.equal(approx_rank_pool(x), expected)
        approx_rank_pool(z.imag)  # of the same layout
    A = torch.complex(torch.zeros(5), torch.arange(5.0)).to(backend.device).conj().imag
    assert torch.equal(temporal_pool(x, A), temporal_pool(x.resolve_neg(), A.resolve_neg()))
    leaf = x.resolve_neg().requires_grad_()
    (dx,) = torch.autograd.grad(approx_rank_pool(leaf, nonlinearity="sqrt"), leaf, x[:, 0])
    (want,) = torch.autograd.grad(approx_rank_pool(leaf, nonlinearity="sqrt"), leaf, x[:, 0].resolve_neg())
    assert torch.equal(dx, want)
    assert torch.equal(dynpool.rank_pool(x), dynpool.rank_pool(x.resolve_neg()))


@pytest.mark.parametrize("new_calls", [ops.new_calls, ops._PythonCalls])
def test_calls_from_several_threads(new_calls, monkeypatch):
    """More layouts than are kept: while some are dropped, others are found, and none is lost or mixed up."""
    monkeypatch.setattr(pooling, "_calls", new_calls())
    wrong = []

    def work(first: int) -> None:
        for size in range(first, first + 400):
            x = torch.ones(1, 3, size)
            y = approx_rank_pool(x)
            if y.shape != (1, size) or y.abs().max() > 1e-6:  # weights add up to zero
                wrong.append(size)

    threads = [threading.Thread(target=work, args=(1 + 400 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("new_calls", [ops.new_calls, ops._PythonCalls])
def test_options_of_calls_that_were_kept(new_calls, monkeypatch):
    """Equal ones are found again, whatever object; others are neither taken for them nor kept where they may change."""
    monkeypatch.setattr(pooling, "_calls", new_calls())
    x = frames((2, 400, 3), torch.float32)
    for _ in range(3):
        approx_rank_pool(x, nonlinearity="".join(["sq", "rt"]), window=int("300"))
    assert len(pooling._calls) <= 1  # none without kernels
    known = len(pooling._calls)
    eq2 = approx_rank_pool(x, time_average=np.True_)
    assert torch.equal(eq2, approx_rank_pool(x))
    assert torch.equal(approx_rank_pool(x, time_average=np.False_), approx_rank_pool(x, time_average=False))
    assert len(pooling._calls) == 3 * known
    for bad in (True, 1.0):
        with pytest.raises(TypeError, match="window"):
            approx_rank_pool(x, window=bad)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"window": 3, "stride": 2}, {"out_dtype": torch.float64}], ids=str)
@pytest.mark.parametrize("new_calls", [ops.new_calls, ops._PythonCalls])
def test_calls_that_were_kept(backend, layout, options, new_calls, monkeypatch):
    """What is found again is what was worked out, for other frames too; made in inference mode, it serves outside."""
    monkeypatch.setattr(pooling, "_calls", new_calls())
    x, other = (laid_out(frames((2, 9, 3, 5, 7), torch.float32, backend.device), layout, 1) for _ in range(2))
    with torch.inference_mode():
        expected, _ = approx_rank_pool(x, **options), approx_rank_pool(other, **options)
    for _ in range(2):
        y = approx_rank_pool(x, **options)
        assert len(pooling._calls) == (backend.name != "reference")
        assert torch.equal(y, expected)
        assert (y.stride(), y.dtype, y.is_inference()) == (expected.stride(), expected.dtype, False)
        leaf = x.detach().requires_grad_()
        assert torch.equal(approx_rank_pool(leaf, **options), expected)
        (dx,) = torch.autograd.grad(approx_rank_pool(leaf, **options).sum(), leaf)
        assert dx.shape == x.shape


@pytest.mark.parametrize("new_calls", [ops.new_calls, ops._PythonCalls])
def test_what_was_kept_is_dropped_when_nothing_reads_it(new_calls, monkeypatch):
    """Kernels on any stream of any device in use may still read it."""
    waited = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: index)  # nothing on the first
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(context, "is_capturing", lambda: capturing)
    capturing = False
    for cache in ("_row_cache", "_number_cache"):
        monkeypatch.setattr(kept, cache, {})
    calls = new_calls()
    monkeypatch.setattr(pooling, "_calls", calls)
    for num_frames in range(1, 257):
        approx_rank_pool(torch.zeros(1, num_frames, 1))
    assert waited == []
    capturing = True  # on the stream of a tensor, while others are pooled on the CPU
    approx_rank_pool(torch.zeros(1, 257, 1))
    assert waited == []
    assert len(kept._row_cache) == 256
    capturing = False
    approx_rank_pool(torch.zeros(1, 257, 1))
    assert waited == [1, 2] * (1 + (len(calls) > 0))  # without kernels only weights are kept
    assert len(kept._row_cache) == 1
    assert len(calls) <= 1


@pytest.mark.parametrize("new_calls", [ops.new_calls, ops._PythonCalls])
def test_many_weights_are_not_kept(new_calls, monkeypatch):
    """Of long windows at every frame they are many times the frames, another table for every T."""
    monkeypatch.setattr(pooling, "_calls", new_calls())
    monkeypatch.setattr(kept, "_row_cache", {})
    for num_frames in (1000, 1001):
        x = frames((1, num_frames, 3), torch.float64)
        y = approx_rank_pool(x, window=250, stride=1)
        expected = torch.stack([approx_rank_pool(x[:, t : t + 250]) for t in (0, 300, num_frames - 250)], 1)
        assert torch.allclose(y[:, [0, 300, -1]], expected, rtol=1e-12, atol=1e-9)
    assert len(pooling._calls) <= 2  # of what was cut out alone
    monkeypatch.setattr(kept, "_MOST_BYTES", 1 << 22)
    for num_frames in range(1002, 1010):  # 1.5 MB each
        approx_rank_pool(x[:, :1].expand(1, num_frames, 3), window=250, stride=1)
        assert sum(map(kept._bytes_of, kept._row_cache.values())) <= 1 << 22


def test_another_allocator_than_torchs_tells_nothing(monkeypatch):
    """As RMM's, by torch.cuda.memory.change_current_allocator: then all devices that have a context are waited for."""

    def refuse(index):
        raise RuntimeError("CUDAPluggableAllocator does not yet support getDeviceStats")

    waited = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "memory_reserved", refuse)
    monkeypatch.setattr(torch._C, "_cuda_hasPrimaryContext", lambda index: index < 2, raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(context, "is_capturing", lambda: False)
    ops.finish_launches()
    assert waited == [0, 1]


def test_a_card_that_kernels_were_not_built_for(monkeypatch):
    """Plain torch works there, and one warning says so."""
    card = SimpleNamespace(trouble_on=lambda index: "no kernel image" if index else None, architectures=lambda: "90")
    monkeypatch.setattr(binary, "extension", SimpleNamespace(cuda=card))
    monkeypatch.setattr(binary, "_run_on_gpu", functools.cache(binary._run_on_gpu.__wrapped__))
    monkeypatch.setitem(binary._KERNELS, "cuda", "kernels")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert [binary.kernels_for(torch.device("cuda", index)) for index in (0, 1, 1)] == ["kernels", None, None]
    assert ["built for 90, do not run on GPU 1 (no kernel image)" in str(w.message) for w in said] == [True]
    monkeypatch.setitem(binary._KERNELS, "cuda", None)
    monkeypatch.setattr(binary, "_run_on_gpu", functools.cache(binary._run_on_gpu.__wrapped__))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert [binary.kernels_for(torch.device("cuda", 0)) for _ in range(2)] == [None, None]
    assert ["without CUDA kernels" in str(w.message) and "DYNPOOL_CUDA=1" in str(w.message) for w in said] == [True]


@pytest.mark.parametrize("options", [{"dim": 1.0}, {"window": 1.0}, {"window": 1, "stride": True}], ids=str)
def test_kept_calls_are_not_taken_for_others(backend, options):
    """1.0 and True equal 1, and are refused all the same."""
    x = frames((2, 9, 3), torch.float32, backend.device)
    for same in ({}, {"window": 1}, {"window": 1, "stride": 1}):
        approx_rank_pool(x, **same)
    with pytest.raises(TypeError, match="must be an integer"):
        approx_rank_pool(x, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nonlinearity", ["identity", "sqrt"])
def test_constant_video_vanishes(backend, dtype, nonlinearity):
    x = frames((1, 1, 3, 31), dtype, backend.device).expand(2, 13, 3, 31)
    for time_average in (True, False):
        y = approx_rank_pool(x, time_average=time_average, nonlinearity=nonlinearity, out_dtype=torch.float64)
        exact = oracle.pool(x, oracle.rank_rows(13, time_average=time_average), 1, nonlinearity)
        bound = exact.bound(dtype, torch.float64, nonlinearity).squeeze(1)
        assert np.abs(exact.value).max() < 1e-9
        oracle.assert_within(y, np.zeros(tuple(y.shape)), bound + 1e-9)


def test_reversed_video_negates_eq_4(backend):
    x = frames((2, 13, 3, 31), torch.uint8, backend.device)
    forwards = approx_rank_pool(x, time_average=False)  # whole numbers below 2^24: no rounding
    assert forwards.abs().sum() > 0
    assert torch.equal(approx_rank_pool(x.flip(1), time_average=False), -forwards)


def test_adding_a_constant_changes_nothing(backend):
    x = frames((2, 13, 3, 31), torch.uint8, backend.device)
    plain = approx_rank_pool(x, time_average=False)
    assert torch.equal(approx_rank_pool(x.float() + 64, time_average=False), plain)


def test_linear_in_the_frames(backend):
    x, y = (torch.randint(-99, 99, (2, 5, 7)).float().to(backend.device) for _ in range(2))
    alone = approx_rank_pool(x, time_average=False) + 2 * approx_rank_pool(y, time_average=False)
    assert torch.equal(approx_rank_pool(x + 2 * y, time_average=False), alone)


def test_running_means_are_ranked(backend):
    """Eq. (2) is eq. (4) on running means: Σ (2t - T - 1) V_t."""
    x = frames((1, 17, 29), torch.float64, backend.device)
    t = torch.arange(1, 18, device=backend.device)[None, :, None]
    means = x.cumsum(1) / t if backend.device.type == "cpu" else (x.cpu().cumsum(1) / t.cpu()).to(backend.device)
    assert torch.allclose(approx_rank_pool(x), approx_rank_pool(means, time_average=False), rtol=0, atol=1e-11)


def test_clips_do_not_see_each_other(backend):
    x = frames((5, 7, 3, 11), device=backend.device)
    together = approx_rank_pool(x, nonlinearity="sqrt")
    for b in range(5):
        alone = approx_rank_pool(x[b], 0, nonlinearity="sqrt")
        assert torch.allclose(together[b], alone, rtol=1e-5, atol=1e-4)


# --- memory format -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_channels_last_frames_give_a_channels_last_image(backend, dtype):
    x = laid_out(frames((2, 5, 3, 7, 11), dtype, backend.device), "channels_last", 1)
    y = check_approx(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert not y.is_contiguous()
    windows = check_approx(x, window=2, stride=1)
    assert windows.permute(0, 1, 3, 4, 2).is_contiguous()


def test_channels_last_3d_gives_a_channels_last_image(backend):
    x = frames((2, 3, 5, 7, 11), device=backend.device).contiguous(memory_format=torch.channels_last_3d)
    y = check_approx(x, 2)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_contiguous_frames_give_a_contiguous_image(backend):
    x = frames((2, 5, 3, 7, 11), device=backend.device)
    for dim in range(5):
        assert check_approx(x, dim).is_contiguous()
        assert check_approx(x, dim, window=2, stride=1).is_contiguous()


@given(order=st.permutations(range(5)), dim=st.integers(0, 4), window=st.sampled_from([None, 2]))
@settings(max_examples=40)
def test_order_of_memory_is_kept(backend, order, dim, window):
    x = frames((2, 5, 3, 7, 4), device=backend.device).permute(order)  # x.permute(inverse) is contiguous
    y = check_approx(x, dim, **({} if window is None else {"window": window}))
    inverse = [order.index(d) for d in range(5)]
    if window is None:
        inverse = [d - (d > dim) for d in inverse if d != dim]
    assert y.permute(inverse).is_contiguous()


def test_a_slice_gives_a_dense_image(backend):
    x = laid_out(frames((2, 5, 3, 7), device=backend.device), "sliced", 1)
    assert approx_rank_pool(x).is_contiguous()
    y = approx_rank_pool(laid_out(frames((2, 5, 3, 7), device=backend.device), "expanded", 1))
    y += 1  # no element of the result shares memory with another
    assert y.untyped_storage().nbytes() >= y.numel() * 4


def test_expanded_frames_give_an_ordinary_image(backend):
    x = frames((3, 5, 6, 4, 2), device=backend.device)
    for dims in ((0,), (1,), (2,), (0, 1), (0, 2)):
        part = x
        for d in dims:
            part = part.narrow(d, 0, 1)
        last = part.permute(0, 1, 4, 2, 3)
        assert approx_rank_pool(part.expand_as(x)).is_contiguous()
        y = approx_rank_pool(last.expand(3, 5, 2, 6, 4))
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(y, approx_rank_pool(last.expand(3, 5, 2, 6, 4).contiguous()))


# --- frames without a say ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonlinearity", ["identity", "sqrt"])
@pytest.mark.parametrize("poison", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_padding_never_leaks(backend, nonlinearity, poison, dtype):
    clean = frames((3, 7, 2, 33), dtype, backend.device)
    lengths = torch.tensor([7, 2, 5])
    dirty = clean.clone()
    for b, n in enumerate(lengths.tolist()):
        dirty[b, n:] = poison
    options = {
        "lengths": lengths,
        "nonlinearity": nonlinearity,
        "mean": [0.5, 1.0],
        "std": [1.0, 2.0],
        "channel_dim": 2,
    }
    assert torch.equal(approx_rank_pool(dirty, **options), approx_rank_pool(clean, **options))
    windows = approx_rank_pool(dirty, window=2, stride=1, **options)
    assert torch.equal(windows, approx_rank_pool(clean, window=2, stride=1, **options))
    assert windows.isfinite().all()


@pytest.mark.parametrize("poison", [NAN, INF])
def test_frames_between_windows_never_leak(backend, poison):
    clean = frames((2, 11, 37), device=backend.device)
    dirty = clean.clone()
    dirty[:, [2, 5, 8, 9, 10]] = poison
    options = {"window": 2, "stride": 3, "nonlinearity": "sqrt", "mean": 0.25}
    dirty[:, 9:] = clean[:, 9:]  # windows are frames 0-1, 3-4, 6-7, 9-10
    assert torch.equal(approx_rank_pool(dirty, **options), approx_rank_pool(clean, **options))
    packed = approx_rank_pool(dirty, offsets=[0, 3, 6, 11], **options)
    assert torch.equal(packed, approx_rank_pool(clean, offsets=[0, 3, 6, 11], **options))


def test_one_row_of_nan_stays_in_its_row(backend):
    """NaN frames that one window has do not reach the others."""
    x = frames((1, 9, 35), device=backend.device)
    x[:, 3:6] = NAN
    y = approx_rank_pool(x, window=3)
    assert y[:, 1].isnan().all()
    assert y[:, [0, 2]].isfinite().all()


def test_nan_where_it_has_a_say(backend):
    x = frames((2, 5, 35), device=backend.device)
    x[1, 3, 17] = NAN
    for nonlinearity in ("identity", "sqrt"):
        bad = approx_rank_pool(x, nonlinearity=nonlinearity).isnan()
        assert bad.nonzero().tolist() == [[1, 17]]


# --- edges ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_frame_gives_zeros(backend, dtype):
    x = frames((2, 1, 3, 5), dtype, backend.device)
    for options in ({}, {"window": 1}, {"lengths": [1, 1]}, {"offsets": [0, 1]}, {"normalize_weights": True}):
        y = approx_rank_pool(x, nonlinearity="sqrt", **options)
        assert y.shape == ((2, 1, 3, 5) if {"window", "offsets"} & set(options) else (2, 3, 5))
        assert y.count_nonzero() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 5, 3, 7), (2, 5, 0, 7), (2, 5, 3, 0), (0, 5, 0)])
def test_empty_batch_gives_an_empty_result(backend, dtype, shape):
    x = torch.empty(shape, dtype=dtype, device=backend.device)
    out_dtype = torch.float32 if dtype == torch.uint8 else dtype
    rest = (shape[0], *shape[2:])
    for options, expected in [
        ({}, rest),
        ({"nonlinearity": "sqrt", "std": 2.0, "mean": 1.0}, rest),
        ({"window": 2}, (shape[0], 2, *shape[2:])),
        ({"lengths": [3] * shape[0]}, rest),
        ({"offsets": [0, 2, 5]}, (shape[0], 2, *shape[2:])),
        ({"lengths": [3] * shape[0], "window": 2, "stride": 1}, (shape[0], 4, *shape[2:])),
    ]:
        y = approx_rank_pool(x, **options)
        assert y.shape == expected
        assert y.dtype == out_dtype
    weights = torch.ones(shape[0], 4, 5, device=backend.device)
    assert temporal_pool(x, weights).shape == (shape[0], 4, *shape[2:])


def test_no_windows_of_weights_give_no_outputs(backend):
    x = frames((2, 5, 3), device=backend.device)
    assert temporal_pool(x, torch.empty(0, 5, device=backend.device)).shape == (2, 0, 3)


def test_empty_batch_per_channel(backend):
    x = torch.empty(0, 5, 3, 4, 4, dtype=torch.uint8, device=backend.device)
    assert approx_rank_pool(x, mean=[1.0, 2.0, 3.0], std=[1.0, 2.0, 3.0]).shape == (0, 3, 4, 4)


def test_one_dimension_gives_a_number(backend):
    y = approx_rank_pool(torch.tensor([1.0, 2.0, 4.0], device=backend.device), 0, time_average=False)
    assert y.shape == ()
    assert y.item() == 6.0


# --- determinism ---------------------------------------------------------------------------------------------------


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bit_equal_from_run_to_run_and_for_any_number_of_threads(backend, dtype, threads):
    x = frames((3, 11, 3, 61, 67), dtype, backend.device)
    weights = torch.randn(3, 2, 11, dtype=oracle.accumulate_dtype(dtype)).to(backend.device)

    def run():
        return temporal_pool(x, weights, nonlinearity="sqrt", mean=0.5), approx_rank_pool(x, lengths=[11, 3, 7])

    first = run()
    for count in (1, 2, 2, 1):
        threads(count)
        for a, b in zip(first, run(), strict=True):
            assert torch.equal(a, b)


def test_the_address_does_not_change_a_bit(backend):
    """What the allocator returns differs from run to run."""
    values = frames((2, 7, 83), torch.float32, backend.device)
    first = approx_rank_pool(values, nonlinearity="sqrt", mean=0.25)
    for offset in (1, 2, 3, 4, 7, 13):
        moved = torch.zeros(values.numel() + 16, device=backend.device)[offset:][: values.numel()].view_as(values)
        assert torch.equal(approx_rank_pool(moved.copy_(values), nonlinearity="sqrt", mean=0.25), first)


def test_slices_of_the_inner_dimension(backend):
    """Wherever a slice begins and ends: vector bodies and tails, aligned or not."""
    x = frames((2, 7, 83), torch.uint8, backend.device)
    for start, end in [(1, 83), (2, 83), (3, 82), (17, 50), (80, 83), (0, 64)]:
        check_approx(x[..., start:end], nonlinearity="sqrt", mean=3.0)


@pytest.mark.parametrize("backend", parameters("emulated"), indirect=True)
@pytest.mark.parametrize("num_bytes", [64 << 10, 228 << 10], ids=["64 kB", "228 kB"])
@pytest.mark.parametrize("shape", [(2, 37, 3, 16, 32), (1, 300, 48), (3, 5, 4096)], ids=str)
def test_roots_of_bytes_by_shared_memory(backend, num_bytes, shape, monkeypatch):
    """A multiprocessor with much of it looks roots up there, and its blocks go from tile to tile."""
    monkeypatch.setenv("DYNPOOL_EMULATED_SHARED_MEMORY", str(num_bytes))
    check_approx(torch.randint(0, 256, shape, dtype=torch.uint8), nonlinearity="sqrt")
