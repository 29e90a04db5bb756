"""Bad input: a TypeError or ValueError that names the argument, its value and what is allowed."""

import numpy as np
import pytest
import torch

import dynpool
from dynpool import approx_rank_pool, temporal_pool
from dynpool.nn import ApproxRankPool, TemporalMaxPool

NAN, INF = float("nan"), float("inf")
X = torch.zeros(2, 5, 3, 4, 4)

COMMON = [  # (arguments, error, message): both functions
    ({"x": [1, 2, 3]}, TypeError, r"x must be a Tensor, got list"),
    ({"x": None}, TypeError, r"x must be a Tensor, got NoneType"),
    ({"x": X.int()}, TypeError, r"x must have one of the dtypes .*uint8.*float64.*, got torch\.int32"),
    ({"x": X.bool()}, TypeError, r"x must have .* got torch\.bool"),
    ({"x": X.to(torch.complex64)}, TypeError, r"x must have .* got torch\.complex64"),
    ({"dim": 5}, ValueError, r"dim must be between -5 and 4 for x of shape \[2, 5, 3, 4, 4\], got 5"),
    ({"dim": -6}, ValueError, r"dim must be between -5 and 4 .*, got -6"),
    ({"dim": 1.0}, TypeError, r"dim must be an integer, got 1\.0"),
    ({"dim": "1"}, TypeError, r"dim must be an integer, got '1'"),
    ({"dim": None}, TypeError, r"dim must be an integer, got None"),
    ({"x": torch.zeros(()), "dim": 0}, ValueError, r"x must have at least one dim|dim .* shape \[\], got 0"),
    ({"x": torch.zeros(2, 0, 3)}, ValueError, r"x must have at least one frame in dimension 1, got shape \[2, 0, 3\]"),
    ({"nonlinearity": "log"}, ValueError, r"nonlinearity must be one of 'identity', 'sqrt', got 'log'"),
    ({"nonlinearity": None}, ValueError, r"nonlinearity must be one of .*, got None"),
    ({"out_dtype": torch.int32}, TypeError, r"out_dtype must be one of .*float16.*, got torch\.int32"),
    ({"out_dtype": torch.uint8}, TypeError, r"out_dtype must be one of .*, got torch\.uint8"),
    ({"out_dtype": "float32"}, TypeError, r"out_dtype must be one of .*, got .*float32"),
    ({"mean": [1.0, 2.0]}, ValueError, r"mean must be a number or have C = 3 values \(dimension 2 of x\), got 2"),
    ({"std": [1.0] * 4}, ValueError, r"std must be a number or have C = 3 values .*, got 4"),
    ({"mean": torch.zeros(2)}, ValueError, r"mean must be a number or have C = 3 values .*, got 2"),
    ({"mean": [0.0] * 3, "std": [1.0] * 4}, ValueError, r"std must be a number or have C = 3 values .*, got 4"),
    ({"mean": torch.zeros(3, 1)}, ValueError, r"mean must be a number or have shape \[C\], got \[3, 1\]"),
    ({"mean": torch.zeros(0), "std": 2.0}, ValueError, r"mean must be a number or have shape \[C\], got \[0\]"),
    ({"std": torch.ones(3)[3:], "mean": 0.5}, ValueError, r"std must be a number or have shape \[C\], got \[0\]"),
    ({"std": torch.tensor(2.0, device="meta")}, ValueError, r"std must be on the device of x, cpu, got meta"),
    ({"channel_dim": "c"}, TypeError, r"channel_dim must be an integer, got 'c'"),
    ({"mean": []}, (TypeError, ValueError), r"mean must"),
    ({"mean": "0.5"}, TypeError, r"mean must be .*, got str"),
    ({"mean": [0.5, "a", 1]}, TypeError, r"mean must be"),
    ({"std": torch.ones(3, dtype=torch.complex64)}, TypeError, r"std must be real numbers, got torch\.complex64"),
    ({"mean": NAN}, ValueError, r"mean must be finite, got nan"),
    ({"mean": [0.0, INF, 0.0]}, ValueError, r"mean must be finite, got inf"),
    ({"mean": torch.tensor([0.0, NAN, 0.0])}, ValueError, r"mean must be finite, got nan"),
    ({"std": 0.0}, ValueError, r"std must be finite and positive, got 0"),
    ({"std": 0}, ValueError, r"std must be finite and positive, got 0"),
    ({"std": -1.0}, ValueError, r"std must be finite and positive, got -1"),
    ({"std": NAN}, ValueError, r"std must be finite and positive, got nan"),
    ({"std": 1e-50}, ValueError, r"std must be finite and positive, got 1e-50, which float32 does not hold"),
    ({"mean": -1e50}, ValueError, r"mean must be finite, got -1e\+50, which float32 does not hold"),
    ({"mean": torch.tensor(1e50, dtype=torch.float64)}, ValueError, r"mean must be finite, got 1e\+50, which float32"),
    ({"std": [1.0, 1.0, 0.0]}, ValueError, r"std must be finite and positive, got 0"),
    ({"std": torch.tensor([1.0, 1.0, -2.0])}, ValueError, r"std must be finite and positive, got -2"),
    (
        {"mean": [0.0] * 5, "channel_dim": 1},
        ValueError,
        r"channel_dim must be a dimension of x other than dim = 1.*got 1",
    ),
    ({"mean": [0.0] * 3, "channel_dim": 5}, ValueError, r"channel_dim must be .*shape \[2, 5, 3, 4, 4\], got 5"),
    ({"mean": [0.0] * 3, "channel_dim": -6}, ValueError, r"channel_dim must be .*, got -6"),
    ({"mean": [0.0] * 3, "channel_dim": 2.0}, TypeError, r"channel_dim must be an integer, got 2\.0"),
    ({"mean": [0.0] * 3, "x": torch.zeros(2, 5)}, ValueError, r"channel_dim must be .*by default -3"),
]


def refuses(call, error, match):
    with pytest.raises(error, match=match) as caught:
        call()
    assert type(caught.value) in (error if isinstance(error, tuple) else (error,))  # no subclass by accident


@pytest.mark.parametrize(("arguments", "error", "match"), COMMON)
def test_both_functions(arguments, error, match):
    arguments = {"x": X, **arguments}
    refuses(lambda: approx_rank_pool(**arguments), error, match)
    refuses(lambda: temporal_pool(weights=torch.ones(5), **arguments), error, match)


@pytest.mark.parametrize(
    ("weights", "options", "error", "match"),
    [
        ([1.0] * 5, {}, TypeError, r"weights must be a floating tensor, got list"),
        (torch.ones(5, dtype=torch.int64), {}, TypeError, r"weights must be a floating tensor, got torch\.int64"),
        (
            torch.ones(5, dtype=torch.complex64),
            {},
            TypeError,
            r"weights must be a floating tensor, got torch\.complex64",
        ),
        (torch.ones(()), {}, ValueError, r"weights must have shape \[T\], \[W, T\] or \[B, W, T\], got \[\]"),
        (torch.ones(1, 2, 2, 5), {}, ValueError, r"weights must have shape .*, got \[1, 2, 2, 5\]"),
        (torch.ones(5), {"per_clip": True}, ValueError, r"weights must have shape \[B, T\] or \[B, W, T\].*got \[5\]"),
        (torch.ones(4), {}, ValueError, r"weights must have T = 5 entries in the last dimension, got \[4\]"),
        (torch.ones(5, 2), {}, ValueError, r"weights must have T = 5 entries .*, got \[5, 2\]"),
        (torch.ones(3, 2, 5), {}, ValueError, r"weights must have B = 2 rows in dimension 0, got \[3, 2, 5\]"),
        (torch.ones(1, 2, 5), {}, ValueError, r"weights must have B = 2 rows in dimension 0, got \[1, 2, 5\]"),
        (
            torch.ones(3, 5),
            {"per_clip": True},
            ValueError,
            r"weights must have B = 2 rows in dimension 0, got \[3, 5\]",
        ),
        (torch.ones(2, 1, 2), {"dim": 0}, ValueError, r"weights of each clip need .*, got dim = 0"),
        (torch.tensor([1.0, NAN, 1, 1, 1]), {}, ValueError, r"weights must be finite, got nan"),
        (torch.tensor([1.0, 1, -INF, 1, 1]), {}, ValueError, r"weights must be finite, got -inf"),
        (torch.full((5,), 1e300, dtype=torch.float64), {}, ValueError, r"weights must be finite, got inf"),
        (torch.ones(5, device="meta"), {}, ValueError, r"weights must be on the device of x, cpu, got meta"),
    ],
)
def test_weights(weights, options, error, match):
    refuses(lambda: temporal_pool(X, weights, **options), error, match)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"window": 6}, ValueError, r"window must be at most T = 5 frames, got 6"),
        ({"window": 0}, ValueError, r"window must be between 1 and 2147483647, got 0"),
        ({"window": -1}, ValueError, r"window must be between 1 and 2147483647, got -1"),
        ({"window": 2.0}, TypeError, r"window must be an integer, got 2\.0"),
        ({"window": True}, TypeError, r"window must be an integer, got True"),
        ({"window": 2, "stride": 0}, ValueError, r"stride must be between 1 and 2147483647, got 0"),
        ({"window": 2, "stride": 1.5}, TypeError, r"stride must be an integer, got 1\.5"),
        ({"window": 2, "stride": 2**64}, ValueError, r"stride must be between 1 and 2147483647, got 1844"),
        ({"stride": 2}, ValueError, r"stride = 2 has no meaning without window"),
        ({"nonlinearity": torch.ones(2)}, ValueError, r"nonlinearity must be one of 'identity', 'sqrt', got tensor"),
        ({"mean": torch.ones(3).to_sparse()}, TypeError, r"mean must be a dense Tensor, torch\.strided, got one of"),
        ({"mean": np.float32("inf")}, ValueError, r"mean must be finite, got inf"),
        ({"std": 10**400}, ValueError, r"std must be finite and positive, got inf"),
        ({"time_average": "no"}, TypeError, r"time_average must be True or False, got 'no'"),
        ({"normalize_weights": None}, TypeError, r"normalize_weights must be True or False, got None"),
        ({"lengths": torch.tensor([5, 5]).to_sparse()}, TypeError, r"lengths must be a dense Tensor"),
        ({"lengths": [5, 5], "offsets": [0, 5]}, ValueError, r"lengths and offsets exclude each other"),
        ({"lengths": [5]}, ValueError, r"lengths must have shape \[B\] = \[2\], got \[1\]"),
        ({"lengths": [[5, 5]]}, ValueError, r"lengths must have shape \[B\] = \[2\], got \[1, 2\]"),
        ({"lengths": 5}, ValueError, r"lengths must have shape \[B\] = \[2\], got \[\]"),
        ({"lengths": [5, 6]}, ValueError, r"lengths must be between 1 and T = 5, got 6"),
        ({"lengths": [0, 5]}, ValueError, r"lengths must be between 1 and T = 5, got 0"),
        ({"lengths": [-1, 5]}, ValueError, r"lengths must be between 1 and T = 5, got -1"),
        ({"lengths": [2**62, 5]}, ValueError, r"lengths must be between 1 and T = 5, got 4611686018427387904"),
        ({"lengths": [2, 5], "window": 3}, ValueError, r"lengths must be between 3 \(window\) and T = 5, got 2"),
        ({"lengths": [2.0, 5.0]}, TypeError, r"lengths must be integers, got torch\.float"),
        ({"lengths": torch.tensor([True, True])}, TypeError, r"lengths must be integers, got torch\.bool"),
        ({"lengths": "55"}, TypeError, r"lengths must be"),
        ({"lengths": [2, None]}, TypeError, r"lengths must be"),
        ({"lengths": [5, 5], "dim": 0}, ValueError, r"lengths need .*, got dim = 0"),
        ({"offsets": [0]}, ValueError, r"offsets must have shape \[B\+1\] with B ≥ 1, got \[1\]"),
        ({"offsets": []}, (TypeError, ValueError), r"offsets must"),
        ({"offsets": [[0, 5]]}, ValueError, r"offsets must have shape \[B\+1\] with B ≥ 1, got \[1, 2\]"),
        ({"offsets": [1, 5]}, ValueError, r"offsets must run from 0 to ΣT = 5, got 1 … 5"),
        ({"offsets": [0, 4]}, ValueError, r"offsets must run from 0 to ΣT = 5, got 0 … 4"),
        ({"offsets": [0, 6]}, ValueError, r"offsets must run from 0 to ΣT = 5, got 0 … 6"),
        ({"offsets": [0, 3, 2, 5]}, ValueError, r"offsets must rise by at least 1 frame\(s\) a clip, got a clip of -1"),
        ({"offsets": [0, 3, 3, 5]}, ValueError, r"offsets must rise by at least 1 frame\(s\) a clip, got a clip of 0"),
        ({"offsets": [0, 3, 5], "window": 3}, ValueError, r"offsets must rise by at least 3 frame\(s\) .* a clip of 2"),
        ({"offsets": [0.0, 5.0]}, TypeError, r"offsets must be integers, got torch\.float"),
    ],
)
def test_windows_lengths_and_offsets(options, error, match):
    refuses(lambda: approx_rank_pool(X, **options), error, match)


def test_tensors_without_strides():
    with pytest.raises(TypeError, match=r"weights must be a dense Tensor, .*, got one of torch\.sparse_coo"):
        temporal_pool(X, torch.ones(5).to_sparse())
    nested = torch.nested.nested_tensor([torch.ones(5, 3), torch.ones(4, 3)])
    for call in (dynpool.approx_rank_pool, dynpool.rank_pool):
        with pytest.raises(TypeError, match=r"x must be a dense Tensor, torch\.strided, got a nested one"):
            call(nested)
    for x in (X.to_sparse(), X[0, :, 0, 0].to_sparse_csr()):
        for call in (dynpool.approx_rank_pool, dynpool.rank_pool, lambda x: temporal_pool(x, torch.ones(5))):
            with pytest.raises(TypeError, match=r"x must be a dense Tensor, torch\.strided, got one of torch\.sparse"):
                call(x)
    with pytest.raises(ValueError, match=r"x must have at least one dimension, got shape \[\]"):
        dynpool.approx_rank_pool(torch.ones(()))


def test_huge_number_of_frames():
    """Refused before anything of that size is made: an expanded tensor weighs nothing."""
    x = torch.zeros(1, 1).expand(1, 2**40)
    refuses(lambda: approx_rank_pool(x), ValueError, r"num_frames must be between 1 and .*16777216, got 1099511627776")
    refuses(
        lambda: approx_rank_pool(x, window=2**40), ValueError, r"window must be between 1 and 2147483647, got 10995116"
    )
    refuses(lambda: approx_rank_pool(x, window=2**30), ValueError, r"between 1 and .*16777216, got 1073741824")


def test_errors_are_the_same_where_gradients_are_needed():
    x = X.clone().requires_grad_()
    refuses(lambda: approx_rank_pool(x, lengths=[5]), ValueError, r"lengths must have shape")
    refuses(lambda: temporal_pool(x, torch.ones(4)), ValueError, r"weights must have T = 5")


def test_modules_raise_the_same():
    refuses(lambda: ApproxRankPool(dim=7)(X), ValueError, r"dim must be between -5 and 4")
    refuses(lambda: ApproxRankPool(window=9)(X), ValueError, r"window must be at most T = 5 frames, got 9")
    refuses(lambda: ApproxRankPool(std=[1.0, 2.0])(X), ValueError, r"std must be a number or have C = 3 values")
    refuses(lambda: ApproxRankPool()(X, [5]), ValueError, r"lengths must have shape \[B\] = \[2\], got \[1\]")
    refuses(lambda: TemporalMaxPool(dim=7)(X), ValueError, r"dim must be between -5 and 4")
    refuses(lambda: TemporalMaxPool()(X, [5, 6]), ValueError, r"lengths must be between 1 and T = 5, got 6")
    refuses(lambda: TemporalMaxPool()(X, [0, 5]), ValueError, r"lengths must be between 1 and T = 5, got 0")
    refuses(lambda: TemporalMaxPool(0)(X, [2, 5]), ValueError, r"lengths need .*, got dim = 0")
    refuses(lambda: TemporalMaxPool()(X[:, :0]), ValueError, r"x must have at least one frame")
    refuses(lambda: TemporalMaxPool()(X.int()), TypeError, r"x must have one of the dtypes")


def test_after_an_error_the_next_call_is_right(backend):
    x = torch.tensor([[1.0], [3.0]], device=backend.device)
    for _ in range(3):
        with pytest.raises(ValueError, match="window"):
            approx_rank_pool(x, 0, window=3)
        assert approx_rank_pool(x, 0).tolist() == [1.0]


@pytest.fixture
def mixed(device):
    if device.type == "cpu":
        pytest.skip("needs a second device")
    return device


def test_tensors_of_two_devices(mixed):
    x = X.to(mixed)
    refuses(lambda: temporal_pool(x, torch.ones(5)), ValueError, r"weights must be on the device of x, cuda:0, got cpu")
    refuses(lambda: temporal_pool(X, torch.ones(5, device=mixed)), ValueError, r"weights must be on .* cpu, got cuda:0")
    refuses(
        lambda: approx_rank_pool(x, mean=torch.zeros(3)),
        ValueError,
        r"mean must be on the device of x, cuda:0, got cpu",
    )
    refuses(
        lambda: approx_rank_pool(X, std=torch.ones(3, device=mixed)), ValueError, r"std must be on .* cpu, got cuda:0"
    )


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"std": -1.0}, ValueError, r"std must be finite and positive, got -1"),
        ({"mean": [0.0, NAN]}, ValueError, r"mean must be finite, got nan"),
        ({"std": np.array([1.0, 0.0])}, ValueError, r"std must be finite and positive, got 0"),
        ({"channel_dim": 1.5}, TypeError, r"channel_dim must be an integer, got 1\.5"),
        ({"time_average": "no"}, TypeError, r"time_average must be True or False, got 'no'"),
    ],
)
@pytest.mark.parametrize("made", [ApproxRankPool, dynpool.nn.RankPool, dynpool.RankPoolStream])
def test_what_no_frames_could_fit_is_refused_at_once(made, options, error, match):
    refuses(lambda: made(**options), error, match)


def test_offsets_whose_differences_overflow():
    offsets = torch.tensor([0, 2**62, 2**63 - 1, -(2**63) + 10, -1, 5])
    refuses(
        lambda: approx_rank_pool(X[0], 0, offsets=offsets), ValueError, r"offsets must be between 0 and ΣT = 5, got -9"
    )
    refuses(lambda: approx_rank_pool(X[0], 0, offsets=[0, 7, 5]), ValueError, r"between 0 and ΣT = 5, got 7")


@pytest.mark.parametrize(
    ("kind", "error"),
    [("sparse", TypeError), ("csr", TypeError), ("nested", TypeError), ("meta", ValueError)],
)
def test_pictures_and_videos_of_tensors_without_pixels(kind, error):
    frame = torch.zeros(3, 4, 4, dtype=torch.uint8)
    clip = frame[None]
    made = {
        "sparse": lambda t: t.to_sparse(),
        "csr": lambda t: torch.zeros(3, 4, dtype=t.dtype).to_sparse_csr(),
        "nested": lambda t: torch.nested.nested_tensor([t, t], dtype=torch.float32).to(torch.uint8),
        "meta": lambda t: t.to("meta"),
    }[kind]
    refuses(lambda: dynpool.to_image(made(frame)), error, "pooled must")
    refuses(lambda: dynpool.dynamic_image(made(clip)), error, "video must")
    if kind != "meta":
        refuses(lambda: dynpool.RankPoolStream().update(made(frame)), error, "frame must be a dense Tensor")
        stream = dynpool.RankPoolStream()
        stream.update(frame)
        refuses(lambda: stream.update(made(frame)), error, "frame must be a dense Tensor")
        assert len(stream) == 1


def test_pictures_of_values_that_are_not_there():
    refuses(lambda: torch.vmap(dynpool.to_image)(X), ValueError, "pooled must have values to look at")
    refuses(
        lambda: dynpool.to_image(torch.quantize_per_tensor(X[0], 0.1, 0, torch.quint8)), TypeError, "pooled must be a"
    )
    refuses(lambda: dynpool.RankPoolStream().update(X.bool()), TypeError, r"frame must have one of the dtypes")
    refuses(lambda: dynpool.ranking_accuracy(X[0, 0].to_sparse(), X[0], 0), TypeError, "d must be a dense Tensor")
    refuses(lambda: dynpool.dynamic_image(X.byte()[0], device=3.5), ValueError, "device must be one that torch can use")
    refuses(lambda: dynpool.dynamic_image(X.byte()[0], timeout=True), ValueError, "timeout must be a positive number")
