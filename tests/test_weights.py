"""rank_weights: literal tables, identities, limits."""

from fractions import Fraction

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dynpool import rank_weights
from dynpool.weights import rank_rows, rank_table

# By hand from α_t = Σ_{j=t..T} (2j - T - 1)/j. For T = 10 the terms are
# -9, -7/2, -5/3, -3/4, -1/5, 1/6, 3/7, 5/8, 7/9, 9/10, summed from the last.
RUNNING_MEANS = {
    1: [Fraction(0)],
    2: [Fraction(-1, 2), Fraction(1, 2)],
    3: [Fraction(-4, 3), Fraction(2, 3), Fraction(2, 3)],
    10: [
        Fraction(-30791, 2520),
        Fraction(-8111, 2520),
        Fraction(709, 2520),
        Fraction(4909, 2520),
        Fraction(6799, 2520),
        Fraction(7303, 2520),
        Fraction(6883, 2520),
        Fraction(829, 360),
        Fraction(151, 90),
        Fraction(9, 10),
    ],
}
FRAMES = {1: [0], 2: [-1, 1], 3: [-2, 0, 2], 10: [-9, -7, -5, -3, -1, 1, 3, 5, 7, 9]}


@pytest.mark.parametrize("num_frames", RUNNING_MEANS)
def test_running_means_by_hand(num_frames):
    expected = np.array([float(f) for f in RUNNING_MEANS[num_frames]])
    oracle.assert_within(rank_weights(num_frames), expected, oracle.alpha_error(num_frames))


def test_ten_frames_in_decimals():
    expected = [-12.21865, -3.21865, 0.28135, 1.94802, 2.69802, 2.89802, 2.73135, 2.30278, 1.67778, 0.9]
    oracle.assert_within(rank_weights(10), np.array(expected), 5e-6)


@pytest.mark.parametrize("num_frames", FRAMES)
def test_frames_by_hand(num_frames):
    assert rank_weights(num_frames, time_average=False).tolist() == FRAMES[num_frames]


@pytest.mark.parametrize("num_frames", [2, 3, 10, 31])
def test_widely_copied_port_is_another_weighting(num_frames):
    """It sums (2j - T)/j, whose weights sum to T instead of 0: a constant video would not vanish."""
    j = np.arange(1, num_frames + 1)
    port = np.cumsum(((2 * j - num_frames) / j)[::-1])[::-1]
    assert abs(port.sum() - num_frames) < 1e-9
    difference = port - rank_weights(num_frames).numpy()  # Σ_{j ≥ t} 1/j
    assert (difference >= 1 / num_frames - 1e-12).all()


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 7, 31, 97, 1009, 10007])
@pytest.mark.parametrize("time_average", [True, False])
def test_against_oracle(num_frames, time_average):
    actual = rank_weights(num_frames, time_average=time_average)
    oracle.assert_within(
        actual, oracle.alpha(num_frames, time_average), oracle.alpha_error(num_frames) if time_average else 0
    )


@given(num_frames=st.integers(1, 3000), time_average=st.booleans())
def test_sums_to_zero(num_frames, time_average):
    total = rank_weights(num_frames, time_average=time_average).sum().item()
    assert abs(total) <= num_frames * oracle.alpha_error(num_frames)


@given(num_frames=st.integers(2, 300), time_average=st.booleans())
def test_normalized_parts_sum_to_one(num_frames, time_average):
    alpha = rank_weights(num_frames, time_average=time_average, normalize_weights=True)
    assert alpha.clamp(min=0).sum().item() == pytest.approx(1, abs=1e-11)
    assert alpha.clamp(max=0).sum().item() == pytest.approx(-1, abs=1e-11)
    plain = rank_weights(num_frames, time_average=time_average)
    assert torch.allclose(alpha * plain.abs().sum() / 2, plain, rtol=1e-13, atol=0)


def test_frames_weights_are_antisymmetric():
    alpha = rank_weights(37, time_average=False)
    assert torch.equal(alpha.flip(0), -alpha)


def test_first_and_last_weight():
    """α_T = (T - 1)/T, and α_1 = 2T - (T + 1) H_T."""
    alpha = rank_weights(101)
    harmonic = sum(Fraction(1, j) for j in range(1, 102))
    assert alpha[-1].item() == pytest.approx(100 / 101, abs=oracle.alpha_error(101))
    assert alpha[0].item() == pytest.approx(float(202 - 102 * harmonic), abs=oracle.alpha_error(101))


@pytest.mark.parametrize("time_average", [True, False])
@pytest.mark.parametrize("normalize_weights", [True, False])
def test_one_frame_has_no_order(time_average, normalize_weights):
    assert rank_weights(1, time_average=time_average, normalize_weights=normalize_weights).tolist() == [0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rounded_once_from_float64(dtype):
    assert torch.equal(rank_weights(53, dtype=dtype), rank_weights(53).to(dtype))
    assert rank_weights(53, dtype=dtype).dtype == dtype


def test_default_dtype_is_float64_whatever_torch_defaults_to():
    assert rank_weights(3).dtype == torch.float64


def test_device(device):
    alpha = rank_weights(1009, device=device)
    assert alpha.device.type == device.type
    oracle.assert_within(alpha, oracle.alpha(1009), oracle.alpha_error(1009))


class Devices(TorchDispatchMode):
    """Notes the device types of all tensors that operations take and give."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [t for t in (*args, *(kwargs or {}).values(), result) if isinstance(t, torch.Tensor)]
        self.seen |= {t.device.type for t in tensors}
        return result


@pytest.mark.parametrize("time_average", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_table_of_all_lengths(time_average, normalize):
    table = rank_table(23, time_average=time_average, normalize=normalize, dtype=torch.float64)
    assert table.shape == (24, 23)
    assert not table[0].any()
    for n, row in enumerate(table[1:], 1):
        expected = rank_weights(n, time_average=time_average, normalize_weights=normalize)
        torch.testing.assert_close(row[:n], expected, rtol=1e-14, atol=0)  # ‖α‖₁ of 23 terms in another order
        assert not row[n:].any()


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("window", [None, 4])
def test_rows_on_a_device_are_made_there(window, ragged):
    """A CUDA graph captures no copy from the host, and a compiled one with CPU tensors is not captured at all."""
    with FakeTensorMode(), Devices() as devices:
        device = torch.device("cuda:0")
        lengths = torch.empty(3, dtype=torch.int64, device=device) if ragged else None
        rows = rank_rows(11, window=window, stride=3, lengths=lengths, normalize=True, device=device)
    assert rows.weights.shape == (3 if ragged else 1, 3 if window else 1, window or 11)
    assert devices.seen == {"cuda"}


def test_meta_device():
    alpha = rank_weights(7, device="meta")
    assert alpha.is_meta
    assert alpha.shape == (7,)


@pytest.mark.parametrize(
    ("num_frames", "options", "error", "match"),
    [
        (0, {}, ValueError, r"num_frames must be between 1 and .*16777216.*got 0"),
        (-3, {}, ValueError, r"num_frames .*got -3"),
        (2**24 + 1, {}, ValueError, r"num_frames must be between 1 and .*16777216.*got 16777217"),
        (2**62, {}, ValueError, r"num_frames .*got 4611686018427387904"),
        (2.0, {}, TypeError, r"num_frames must be an integer, got 2\.0"),
        ("3", {}, TypeError, r"num_frames must be an integer, got '3'"),
        (None, {}, TypeError, r"num_frames must be an integer, got None"),
        (True, {}, TypeError, r"num_frames must be an integer, got True"),
        (3, {"dtype": torch.int64}, TypeError, r"dtype must be a floating dtype, got torch\.int64"),
        (3, {"dtype": torch.complex64}, TypeError, r"dtype must be a floating dtype, got torch\.complex64"),
    ],
)
def test_bad_arguments(num_frames, options, error, match):
    with pytest.raises(error, match=match):
        rank_weights(num_frames, **options)


def test_dtypes_that_are_none():
    for dtype in (None, "float32", torch.int64):
        with pytest.raises(TypeError, match="dtype must be a floating dtype, got"):
            rank_weights(4, dtype=dtype)
