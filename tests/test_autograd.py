"""Derivatives on every backend: the oracle's formulas, finite differences to second order, forward mode, edges."""

import functools
from itertools import product

import oracle
import pytest
import torch
from cases import DTYPES, FLOATING, LAYOUTS, frames, laid_out
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.utils.checkpoint import checkpoint

from dynpool import approx_rank_pool, rank_weights, temporal_pool

NAN, INF = float("nan"), float("inf")


def leaf(value, device="cpu", dtype=None):
    return torch.as_tensor(value, dtype=dtype).to(device).detach().clone().requires_grad_()


def check_gradients(
    x, weights, dim=1, *, mean=None, std=None, channel_dim=None, nonlinearity="identity", out_dtype=None, g=None
):
    """Gradients of temporal_pool for everything that can have one, against the oracle. weights: [B or 1, W, T]."""
    acc = oracle.accumulate_dtype(x.dtype)
    a = weights.detach().clone().requires_grad_()
    m, s = (None if v is None else leaf(v, x.device, acc) for v in (mean, std))
    pixels = x.detach().requires_grad_() if x.is_floating_point() else x
    y = temporal_pool(
        pixels, a if len(weights) > 1 else a[0], dim, mean=m, std=s, channel_dim=channel_dim,
        nonlinearity=nonlinearity, out_dtype=out_dtype,
    )  # fmt: skip
    g = torch.randn(y.shape, dtype=torch.float64).to(y.dtype).to(x.device) if g is None else g.expand(y.shape)
    wanted = {"x": pixels if x.is_floating_point() else None, "weights": a, "mean": m, "std": s}
    wanted = {name: t for name, t in wanted.items() if t is not None}
    got = dict(zip(wanted, torch.autograd.grad(y, list(wanted.values()), g), strict=True))
    expected = oracle.gradients(g, x, oracle.dense_rows(weights), dim, nonlinearity, mean, std, channel_dim)
    for name, value in got.items():
        assert value.dtype == wanted[name].dtype, name
        assert value.shape == wanted[name].shape, name
        exact = expected[name]
        bound = exact.bound(x.dtype, value.dtype, nonlinearity)
        oracle.assert_within(value, exact.value.reshape(value.shape), bound.reshape(value.shape))
    return got


def randn(*shape, dtype=torch.float32, device="cpu"):
    return torch.randn(*shape, dtype=torch.float64).to(dtype).to(device)


# --- by hand -------------------------------------------------------------------------------------------------------


def test_eq_8_by_hand(backend):
    """∂ρ/∂I_t = α_t."""
    x = torch.zeros(1, 3, 2, device=backend.device, requires_grad=True)
    approx_rank_pool(x, time_average=False).backward(torch.tensor([[1.0, 10.0]], device=backend.device))
    assert x.grad.tolist() == [[[-2.0, -20.0], [0.0, 0.0], [2.0, 20.0]]]


def test_all_four_by_hand(backend):
    """z = (9 - 1)/2 = 4 and (1 - 1)/2 = 0, -1; ψ = ±√, ψ' = 1/4, 0 (by definition) and 1/2.

    A GPU's roots and quotients may be off by an ulp.
    """
    nearly = functools.partial(pytest.approx, rel=3e-7, abs=1e-6)
    x = leaf([[9.0], [1.0], [-1.0]], backend.device)
    a, mean, std = leaf([2.0, 3.0, 5.0], backend.device), leaf(1.0, backend.device), leaf(2.0, backend.device)
    y = temporal_pool(x, a, 0, mean=mean, std=std, nonlinearity="sqrt")
    assert y.tolist() == nearly([4.0 - 5.0])
    y.backward(torch.tensor([10.0], device=backend.device))
    assert x.grad.flatten().tolist() == nearly([2.5, 0.0, 12.5])  # 10·A·ψ'/std
    assert a.grad.tolist() == nearly([20.0, 0.0, -10.0])  # 10·ψ
    assert mean.grad.item() == nearly(-15.0)  # -Σ ∂x
    assert std.grad.item() == nearly(-(2.5 * 4 + 12.5 * -1))  # -Σ ∂x·z


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_slope_of_the_root_at_zero_is_zero(backend, dtype):
    x = torch.zeros(3, 37, dtype=dtype, device=backend.device, requires_grad=True)
    y = temporal_pool(x, torch.tensor([1.0, -2.0, 3.0], device=backend.device), 0, nonlinearity="sqrt")
    y.sum().backward()
    assert x.grad.count_nonzero() == 0
    mean = leaf(3.0, backend.device)
    y = temporal_pool(x + 3, torch.tensor([1.0, -2.0, 3.0], device=backend.device), 0, mean=mean, nonlinearity="sqrt")
    (dmean, dx) = torch.autograd.grad(y.sum(), [mean, x])
    assert dmean.item() == 0.0
    assert dx.count_nonzero() == 0


# --- the oracle ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nonlinearity", ["identity", "sqrt"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dtypes_and_layouts(backend, dtype, nonlinearity, layout):
    x = laid_out(frames((2, 7, 3, 5, 11), dtype, backend.device), layout, 1)
    acc = oracle.accumulate_dtype(dtype)
    check_gradients(x, randn(1, 1, 7, dtype=acc, device=backend.device), nonlinearity=nonlinearity)
    check_gradients(
        x, randn(2, 3, 7, dtype=acc, device=backend.device), nonlinearity=nonlinearity,
        mean=[-0.03125, 1 / 64, 0.03125], std=[1.0, 2.0, 4.0], channel_dim=2, out_dtype=torch.float32,
    )  # fmt: skip


@pytest.mark.parametrize("dim", range(4))
@pytest.mark.parametrize("layout", ["contiguous", "reversed", "strided"])
def test_any_dimension(backend, dim, layout):
    x = laid_out(frames((3, 5, 2, 7), device=backend.device), layout, dim)
    channel_dim = (dim + 1) % 4
    mean = [1 / 64 * c for c in range(x.shape[channel_dim])]
    std = [1.0 + c for c in range(x.shape[channel_dim])]
    weights = randn(1, 2, x.shape[dim], device=backend.device)
    for nonlinearity in ("identity", "sqrt"):
        check_gradients(x, weights, dim, mean=mean, std=std, channel_dim=channel_dim, nonlinearity=nonlinearity)
        check_gradients(x, weights, dim, mean=1 / 64, std=3.0, nonlinearity=nonlinearity)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("count", [4, 8, 19, 64])
@pytest.mark.parametrize("layout", ["contiguous", "offset", "sliced"])
def test_frames_side_by_side(backend, dtype, count, layout):
    """Features [B, C, T]."""
    x = laid_out(frames((2, 5, count), dtype, backend.device), layout, 2)
    acc = oracle.accumulate_dtype(dtype)
    for nonlinearity in ("identity", "sqrt"):
        weights = randn(2, 3, count, dtype=acc, device=backend.device)
        check_gradients(x, weights, 2, nonlinearity=nonlinearity, out_dtype=torch.float32)


@pytest.mark.parametrize("layout", ["contiguous", "time_innermost", "strided"])
@pytest.mark.parametrize("nonlinearity", ["identity", "sqrt"])
def test_windows_of_long_clips(backend, nonlinearity, layout):
    """The gradient is that of the windows one by one; frames after the last are NaN, and have none."""
    x = laid_out(frames((2, 203, 3, 5), device=backend.device), layout, 1)
    x[:, 202] = NAN
    how = {"nonlinearity": nonlinearity, "mean": 0.25, "std": 2.0}
    one, each = (x.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2))
    y = approx_rank_pool(one, window=10, stride=6, lengths=[202, 202], **how)
    windows = [each[:, t : t + 10] for t in range(0, 193, 6)]
    expected = torch.stack([approx_rank_pool(window, **how) for window in windows], 1)
    g = torch.randn(y.shape, device=backend.device)
    y.backward(g)
    expected.backward(g[:, : len(windows)])
    assert one.grad[:, 202].count_nonzero() == 0
    torch.testing.assert_close(one.grad[:, :202], each.grad[:, :202])


@pytest.mark.parametrize("nonlinearity", ["identity", "sqrt"])
def test_no_rows_give_a_gradient_of_zero(backend, nonlinearity):
    x = frames((2, 7, 3, 4, 16), device=backend.device).requires_grad_()
    temporal_pool(x, torch.zeros(0, 7, device=backend.device), nonlinearity=nonlinearity).sum().backward()
    assert x.grad.count_nonzero() == 0


def test_frames_side_by_side_outside_of_windows(backend):
    """They may be NaN, and have no gradient."""
    x = frames((3, 5, 44), device=backend.device)
    x[..., [3, 4, 8, 9, 43]] = NAN
    options = {"window": 3, "stride": 5, "nonlinearity": "sqrt", "mean": [0.1, 0.2, 0.3, 0.4, 0.5], "std": 2.0}
    series, images = x.clone().requires_grad_(), x.movedim(2, 0).contiguous().requires_grad_()
    approx_rank_pool(series, 2, channel_dim=1, **options).sum().backward()
    approx_rank_pool(images, 0, channel_dim=2, **options).sum().backward()
    assert series.grad[..., [3, 4, 8, 9, 43]].count_nonzero() == 0
    assert series.grad.isfinite().all()
    torch.testing.assert_close(series.grad, images.grad.movedim(0, 2))


@pytest.mark.parametrize("inner", [1, 15, 16, 17, 257, 2047, 2049, 4097])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32], ids=str)
def test_remainders_of_the_inner_size(backend, inner, dtype):
    x = frames((2, 5, inner), dtype, backend.device)
    check_gradients(x, randn(2, 2, 5, device=backend.device), nonlinearity="sqrt", mean=1 / 64, std=2.0)
    behind = frames((3 + x.numel(),), dtype, backend.device)[3:].view_as(x)  # begins within a word
    result = dtype if dtype.is_floating_point else torch.float32
    g = frames((1 + 2 * inner,), result, backend.device)[1:].view(2, 1, inner)  # as it does
    for nonlinearity in ("identity", "sqrt"):
        check_gradients(x, randn(1, 1, 5, device=backend.device), nonlinearity=nonlinearity)
        check_gradients(behind, randn(1, 1, 5, device=backend.device), nonlinearity=nonlinearity)
        check_gradients(x, randn(1, 1, 5, device=backend.device), nonlinearity=nonlinearity, g=g)


@pytest.mark.parametrize("shape", [(5,), (5, 1), (1, 5, 1, 1), (2, 5, 3, 2, 1, 2, 3)])
def test_numbers_of_dimensions(backend, shape):
    x = frames(shape, device=backend.device)
    check_gradients(x, randn(1, 3, 5, device=backend.device), shape.index(5), mean=1 / 64, std=2.0, nonlinearity="sqrt")


@pytest.mark.parametrize("out_dtype", FLOATING, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out_dtype(backend, dtype, out_dtype):
    x = frames((2, 5, 19), dtype, backend.device)
    weights = randn(1, 1, 5, dtype=oracle.accumulate_dtype(dtype), device=backend.device)
    check_gradients(x, weights, mean=1 / 64, std=2.0, nonlinearity="sqrt", out_dtype=out_dtype)


@pytest.mark.parametrize("windows", [1, 2, 3, 5, 9])
def test_numbers_of_windows(backend, windows):
    x = frames((2, 11, 3, 7), device=backend.device)
    check_gradients(x, randn(1, windows, 11, device=backend.device), nonlinearity="sqrt")


@pytest.mark.parametrize("kind", ["expanded", "transposed", "strided", "scalar"])
def test_layouts_of_dy(backend, kind):
    """An incoming gradient may have any strides, those of a sum (all 0) included."""
    x = frames((3, 5, 2, 7), device=backend.device)
    g = {
        "expanded": randn(3, 1, 1, 7, device=backend.device).expand(3, 4, 2, 7),
        "transposed": randn(7, 2, 4, 3, device=backend.device).permute(3, 2, 1, 0),
        "strided": randn(6, 8, 4, 14, device=backend.device)[::2, ::2, ::2, ::2],
        "scalar": randn(1, device=backend.device),
    }[kind]
    weights = randn(1, 4, 5, device=backend.device)
    check_gradients(x, weights, mean=1 / 64, std=2.0, nonlinearity="sqrt", g=g)
    check_gradients(x, weights, g=g)


def test_weights_of_every_shape(backend):
    """Gradients arrive in the weights' own shape and dtype."""
    x = frames((3, 5, 17), device=backend.device)
    for shape, per_clip in [((5,), False), ((2, 5), False), ((3, 2, 5), False), ((3, 5), True), ((1, 5), False)]:
        for dtype in (torch.float32, torch.float64, torch.float16):
            weights = leaf(torch.randn(*shape), backend.device, dtype)
            y = temporal_pool(x, weights, per_clip=per_clip)
            y.sum().backward()
            assert weights.grad.shape == shape
            assert weights.grad.dtype == dtype
            each = x.double().sum(-1)  # Σ_i ψ(x[b, t, i])
            expected = (each if per_clip else each[:, None] if len(shape) == 3 else each.sum(0)).expand(shape)
            unit = oracle.UNIT[dtype] if dtype == torch.float16 else 0
            bound = (51 + oracle.SLACK) * 2.0**-24 * x.abs().double().sum() + unit * expected.abs()
            assert ((weights.grad.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("nonlinearity", ["identity", "sqrt"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_every_subset_of_gradients(backend, nonlinearity, dtype):
    """Asking for fewer gradients does not change those asked for, by a single bit."""
    x = frames((2, 5, 3, 4, 7), dtype, backend.device)
    weights, mean, std = randn(2, 5, device=backend.device), [1 / 64, 0.0, -1 / 64], [1.0, 2.0, 3.0]

    def run(needs):
        tensors = [x, weights, leaf(mean, backend.device), leaf(std, backend.device)]
        tensors = [t.detach().requires_grad_(need) for t, need in zip(tensors, needs, strict=True)]
        y = temporal_pool(tensors[0], tensors[1], mean=tensors[2], std=tensors[3], nonlinearity=nonlinearity)
        assert y.requires_grad == any(needs)
        return torch.autograd.grad(y.square().sum(), [t for t in tensors if t.requires_grad]) if any(needs) else ()

    possible = (dtype != torch.uint8, True, True, True)
    full = iter(run(possible))
    full = [next(full) if p else None for p in possible]
    for needs in product((False, True), repeat=4):
        if needs[0] and not possible[0]:
            continue
        for got, want in zip(run(needs), [f for f, need in zip(full, needs, strict=True) if need], strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("options", [{}, {"window": 3, "stride": 2}, {"lengths": [7, 2, 4]}, {"nonlinearity": "sqrt"}])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_approx_rank_pool(backend, options, dtype):
    x = frames((3, 7, 2, 5), dtype, backend.device).requires_grad_()
    y = approx_rank_pool(x, out_dtype=torch.float32, mean=1 / 64, std=2.0, **options)
    g = randn(*y.shape, device=backend.device)
    (dx,) = torch.autograd.grad(y, x, g)
    picks = {k: v for k, v in options.items() if k != "nonlinearity"}
    nonlinearity = options.get("nonlinearity", "identity")
    dy = g if "window" in options else g[:, None]
    exact = oracle.gradients(dy, x, oracle.rank_rows(7, **picks), 1, nonlinearity, 1 / 64, 2.0)["x"]
    bound = exact.bound(dtype, dtype, nonlinearity)
    if dtype == torch.float64:  # |z| ≥ 1/64, so that ψ'/std ≤ 2
        bound = bound + 2 * oracle.alpha_error(7) * g.abs().max().item()
    oracle.assert_within(dx, exact.value, bound)


def test_offsets(backend):
    x = frames((11, 3, 5), device=backend.device).requires_grad_()
    y = approx_rank_pool(x, 0, offsets=[0, 4, 5, 11], nonlinearity="sqrt")
    g = randn(*y.shape, device=backend.device)
    (dx,) = torch.autograd.grad(y, x, g)
    exact = oracle.gradients(g, x, oracle.rank_rows(11, offsets=[0, 4, 5, 11]), 0, "sqrt")["x"]
    oracle.assert_within(dx, exact.value, exact.bound(x.dtype, dx.dtype, "sqrt"))


def test_ten_thousand_frames(backend):
    num_frames = 10_007
    x = frames((num_frames, 5), torch.bfloat16, backend.device).requires_grad_()
    approx_rank_pool(x, 0, out_dtype=torch.float32).sum().backward()
    assert torch.equal(x.grad[:, 0].float(), rank_weights(num_frames).float().bfloat16().float().to(backend.device))


# --- finite differences --------------------------------------------------------------------------------------------

CASES = {
    "identity": {"weights": (4,)},
    "sqrt": {"weights": (4,), "nonlinearity": "sqrt"},
    "windows": {"weights": (2, 4), "nonlinearity": "sqrt"},
    "clips": {"weights": (2, 2, 4), "nonlinearity": "sqrt"},
    "number": {"weights": (4,), "mean": 0.01, "std": 1.7, "nonlinearity": "sqrt"},
    "channels": {"weights": (2, 4), "mean": [0.01, -0.01], "std": [1.3, 0.7], "channel_dim": 2, "nonlinearity": "sqrt"},
    "linear channels": {"weights": (4,), "mean": [0.5, -0.5], "std": [1.3, 0.7], "channel_dim": 2},
    "clips and channels": {"weights": (2, 1, 4), "mean": [0.5, -0.5], "std": [1.3, 0.7], "channel_dim": 2},
}


def function_of(case, device):
    """(f, inputs): temporal_pool as a function of x, weights and, where the case has them, mean and std; float64."""
    options = {k: v for k, v in case.items() if k not in ("weights", "mean", "std")}
    names = [name for name in ("mean", "std") if name in case]
    x = frames((2, 4, 2, 1), torch.float64)
    tensors = [x, torch.randn(case["weights"], dtype=torch.float64)]
    tensors += [torch.tensor(case[name], dtype=torch.float64) for name in names]

    def f(x, weights, *rest):
        return temporal_pool(x, weights, **dict(zip(names, rest, strict=True)), **options)

    return f, [leaf(t, device) for t in tensors]


@pytest.mark.parametrize("case", CASES)
def test_first_derivatives(backend, case):
    f, inputs = function_of(CASES[case], backend.device)
    assert gradcheck(f, inputs)


@pytest.mark.parametrize("case", CASES)
def test_forward_mode(backend, case):
    f, inputs = function_of(CASES[case], backend.device)
    assert gradcheck(f, inputs, check_forward_ad=True, check_backward_ad=False, check_batched_forward_grad=True)


@pytest.mark.parametrize("case", CASES)
def test_batched_gradients(backend, case):
    """torch.autograd.grad(is_grads_batched=True), which jacobians use."""
    f, inputs = function_of(CASES[case], backend.device)
    assert gradcheck(f, inputs, check_batched_grad=True)


@pytest.mark.parametrize("case", CASES)
def test_vmap_over_gradients(backend, case):
    """vectors batched by torch.vmap, of an ordinary backward."""
    f, inputs = function_of(CASES[case], backend.device)
    y = f(*inputs)
    vectors = torch.randn(3, *y.shape, dtype=y.dtype, device=y.device)

    def pull_back(v):
        return torch.autograd.grad(y, inputs, v, retain_graph=True)

    one_by_one = zip(*map(pull_back, vectors), strict=True)
    for together, alone in zip(torch.vmap(pull_back)(vectors), one_by_one, strict=True):
        assert torch.allclose(together, torch.stack(alone))


@pytest.mark.parametrize("case", CASES)
def test_second_derivatives(backend, case):
    f, inputs = function_of(CASES[case], backend.device)
    assert gradgradcheck(f, inputs)


@pytest.mark.parametrize("case", CASES)
def test_forward_over_reverse(backend, case):
    f, inputs = function_of(CASES[case], backend.device)
    assert gradgradcheck(f, inputs, check_fwd_over_rev=True, check_rev_over_rev=False, check_undefined_grad=False)


@pytest.mark.parametrize(
    "options", [{"window": 3, "stride": 1}, {"lengths": [4, 2]}, {"lengths": [4, 3], "window": 2, "stride": 1}]
)
def test_derivatives_of_bands(backend, options):
    x = leaf(frames((2, 4, 2, 1), torch.float64), backend.device)
    mean, std = leaf(0.01, backend.device, torch.float64), leaf(1.7, backend.device, torch.float64)

    def f(x, mean, std):
        return approx_rank_pool(x, nonlinearity="sqrt", mean=mean, std=std, **options)

    assert gradcheck(f, (x, mean, std), check_forward_ad=True)
    assert gradgradcheck(f, (x, mean, std))


def test_derivatives_of_packed_clips(backend):
    x = leaf(frames((7, 2), torch.float64), backend.device)

    def f(x):
        return approx_rank_pool(x, 0, offsets=[0, 3, 7], nonlinearity="sqrt")

    assert gradcheck(f, x, check_forward_ad=True)
    assert gradgradcheck(f, x)


def test_second_derivative_of_the_root_by_hand(backend):
    """y = √x: y'' = -1/(4 x^1.5), and 0 at 0."""
    x = leaf([[4.0], [0.0], [-4.0]], backend.device)
    y = temporal_pool(x, torch.ones(3, device=backend.device), 0, nonlinearity="sqrt")
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert first.flatten().tolist() == pytest.approx([0.25, 0.0, 0.25], rel=3e-7)  # a GPU may be off by an ulp
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.flatten().tolist() == pytest.approx([-1 / 32, 0.0, 1 / 32], rel=1e-6)


def test_second_derivatives_with_uint8_frames(backend):
    """The frames are data; weights, mean and std are not. ∂²y/∂A∂std = -ψ/(2 std) for the root."""
    x = frames((2, 3, 5), torch.uint8, backend.device)
    a, std = leaf([1.0, 2.0, 4.0], backend.device), leaf(9.0, backend.device)
    y = temporal_pool(x, a, std=std, nonlinearity="sqrt").sum()
    (da,) = torch.autograd.grad(y, a, create_graph=True)
    (mixed,) = torch.autograd.grad(da.sum(), std)
    expected = -(x.double() / 9).sqrt().sum() / 18
    assert mixed.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_second_derivatives_in_low_precision(backend, dtype):
    """A penalty on the gradient, as float64 has it, within a few roundings of its type."""
    x = frames((2, 5, 3, 7), torch.float64).to(dtype)

    def penalty(x):
        x = x.detach().to(backend.device).requires_grad_()
        y = approx_rank_pool(x, nonlinearity="sqrt", time_average=False, normalize_weights=True)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), x)[0]

    exact = penalty(x.double())
    error = (penalty(x).double() - exact).abs().max().item()
    assert exact.abs().max().item() > 0
    assert error <= 32 * oracle.UNIT[dtype] * exact.abs().max().item()


# --- forward mode --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_forward_mode_equals_reverse_mode(backend, case):
    """⟨g, J v⟩ = ⟨Jᵀ g, v⟩, and J v is not zero."""
    f, inputs = function_of(CASES[case], backend.device)
    tangents = [torch.randn(t.shape, dtype=t.dtype).to(t.device) for t in inputs]
    y = f(*inputs)
    g = torch.randn(y.shape, dtype=y.dtype).to(y.device)
    backward = torch.autograd.grad(y, inputs, g)
    with dual_level():
        jv = unpack_dual(f(*(make_dual(t.detach(), v) for t, v in zip(inputs, tangents, strict=True)))).tangent
    assert jv is not None
    assert jv.abs().min() > 0
    reverse = sum((b * v).sum() for b, v in zip(backward, tangents, strict=True))
    assert (jv * g).sum().item() == pytest.approx(reverse.item(), rel=1e-10)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_forward_mode_is_linear_pooling_of_tangents(backend, dtype):
    x, v = (frames((2, 5, 17), dtype, backend.device) for _ in range(2))
    with dual_level():
        y = unpack_dual(approx_rank_pool(make_dual(x, v), time_average=False, out_dtype=torch.float32))
    assert y.tangent.dtype == torch.float32
    expected = approx_rank_pool(v, time_average=False, out_dtype=torch.float32)
    assert torch.allclose(y.tangent, expected, rtol=1e-5, atol=1e-4)
    assert torch.allclose(
        y.primal, approx_rank_pool(x, time_average=False, out_dtype=torch.float32), rtol=1e-5, atol=1e-4
    )


def test_forward_mode_with_uint8_frames(backend):
    x = frames((2, 5, 17), torch.uint8, backend.device)
    a, v = randn(5, device=backend.device), randn(5, device=backend.device)
    with dual_level():
        jv = unpack_dual(temporal_pool(x, make_dual(a, v), nonlinearity="sqrt")).tangent
    assert torch.allclose(jv, temporal_pool(x, v, nonlinearity="sqrt"), rtol=1e-5, atol=1e-4)


# --- frames without a say ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [NAN, INF])
@pytest.mark.parametrize("nonlinearity", ["identity", "sqrt"])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_padding_gets_a_gradient_of_zero_and_has_no_say(backend, poison, nonlinearity, dtype):
    clean = frames((3, 7, 2, 33), dtype, backend.device)
    dirty = clean.clone()
    lengths = [7, 2, 5]
    for b, n in enumerate(lengths):
        dirty[b, n:] = poison

    def gradients(x, **options):
        x, mean, std = x.detach().requires_grad_(), leaf([0.0, 1 / 64], x.device), leaf([1.0, 2.0], x.device)
        y = approx_rank_pool(
            x,
            lengths=lengths,
            nonlinearity=nonlinearity,
            mean=mean,
            std=std,
            channel_dim=2,
            normalize_weights=True,
            **options,
        )
        return torch.autograd.grad(y.float().sum(), [x, mean, std])

    names = ["x", "mean", "std"]
    for options in ({}, {"window": 2, "stride": 1}):
        for name, got, want in zip(names, gradients(dirty, **options), gradients(clean, **options), strict=True):
            assert torch.equal(got, want), name
        dx = gradients(dirty, **options)[0]
        for b, n in enumerate(lengths):
            assert dx[b, n:].count_nonzero() == 0
            assert dx[b, :n].count_nonzero() > 0


@pytest.mark.parametrize("nonlinearity", ["identity", "sqrt"])
def test_frames_between_windows_get_a_gradient_of_zero(backend, nonlinearity):
    x = frames((2, 11, 37), device=backend.device)
    x[:, [2, 5, 8]] = NAN
    x.requires_grad_()
    approx_rank_pool(x, window=2, stride=3, nonlinearity=nonlinearity, std=2.0).sum().backward()
    assert x.grad[:, [2, 5, 8]].count_nonzero() == 0
    assert x.grad.isfinite().all()
    assert x.grad[:, [0, 1, 3, 4]].count_nonzero() == 2 * 4 * 37


def test_second_derivatives_do_not_see_padding(backend):
    x = frames((2, 5, 7), torch.float64, backend.device)
    x[1, 3:] = NAN
    x.requires_grad_()
    y = approx_rank_pool(x, lengths=[5, 3], nonlinearity="sqrt")
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.square().sum(), x)
    assert ddx[1, 3:].count_nonzero() == 0
    assert ddx.isfinite().all()


def test_tangents_of_padding_have_no_say(backend):
    x, v = frames((2, 5, 7), device=backend.device), frames((2, 5, 7), device=backend.device)
    x[1, 3:] = NAN

    def jv(v):
        with dual_level():
            return unpack_dual(approx_rank_pool(make_dual(x, v), lengths=[5, 3], nonlinearity="sqrt")).tangent

    expected = jv(v)
    assert expected.isfinite().all()
    v[1, 3:] = NAN
    assert torch.equal(jv(v), expected)


# --- edges and life in a program -----------------------------------------------------------------------------------


def test_one_frame_gives_zero_gradients(backend):
    x = frames((2, 1, 5), device=backend.device).requires_grad_()
    approx_rank_pool(x, nonlinearity="sqrt").sum().backward()
    assert x.grad.count_nonzero() == 0
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("shape", [(0, 5, 3, 2), (2, 5, 3, 0)])
def test_empty_batch_gives_empty_and_zero_gradients(backend, shape):
    x = torch.empty(shape, device=backend.device, requires_grad=True)
    a, mean, std = (
        leaf(torch.ones(2, 5), backend.device),
        leaf([1.0] * 3, backend.device),
        leaf([1.0] * 3, backend.device),
    )
    y = temporal_pool(x, a, mean=mean, std=std, channel_dim=2, nonlinearity="sqrt")
    dx, da, dmean, dstd = torch.autograd.grad(y.sum(), [x, a, mean, std])
    assert dx.shape == shape
    assert da.tolist() == [[0.0] * 5] * 2
    assert dmean.tolist() == dstd.tolist() == [0.0] * 3


def test_training_after_inference(backend):
    """Weights that were made, and kept, in inference mode must not poison autograd."""
    x = frames((2, 53, 3), torch.float64, backend.device)

    def first_in(context):
        with context:
            y = approx_rank_pool(x)
        return y

    inferred = first_in(torch.inference_mode())
    assert inferred.is_inference()
    first_in(torch.no_grad())
    leaf_x = x.clone().requires_grad_()
    y = approx_rank_pool(leaf_x)
    (dx,) = torch.autograd.grad(y.square().sum(), leaf_x, create_graph=True)
    dx.square().sum().backward()
    assert torch.equal(y.detach(), inferred.clone())
    assert leaf_x.grad.abs().sum() > 0


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "dual", "inference", "fake", "device"])
def test_weights_first_made_inside_a_transform(backend, transform):
    """Each case has a number of frames of its own, so that nothing is kept from another test."""
    num_frames = 101 + 2 * ["grad", "vmap", "jvp", "dual", "inference", "fake", "device"].index(transform)
    x = frames((2, num_frames, 3), torch.float64, backend.device)
    if transform == "grad":
        torch.func.grad(lambda x: approx_rank_pool(x).sum())(x)
    elif transform == "vmap":
        torch.func.vmap(lambda x: approx_rank_pool(x, 0))(x)
    elif transform == "jvp":
        torch.func.jvp(approx_rank_pool, (x,), (x,))
    elif transform == "dual":
        with dual_level():
            approx_rank_pool(make_dual(x, x))
    elif transform == "inference":
        with torch.inference_mode():
            approx_rank_pool(x)
    elif transform == "fake":
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            approx_rank_pool(mode.from_tensor(x))
    else:
        with torch.device("meta"):
            approx_rank_pool(x)
    y = approx_rank_pool(x.requires_grad_())
    expected = oracle.pool(x, oracle.rank_rows(num_frames), 1)
    oracle.assert_within(y, expected.value[:, 0], expected.bound(x.dtype, x.dtype, "identity")[:, 0] + 1e-9)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(dx[0, :, 0], rank_weights(num_frames, device=x.device), rtol=0, atol=1e-10)


def test_checkpoint(backend):
    x = frames((2, 5, 3, 7), device=backend.device).requires_grad_()

    def block(x):
        return approx_rank_pool(x * 2, nonlinearity="sqrt").square()

    (plain,) = torch.autograd.grad(block(x).sum(), x)
    (again,) = torch.autograd.grad(checkpoint(block, x, use_reentrant=False).sum(), x)
    assert torch.equal(plain, again)


def test_gradients_accumulate_and_a_graph_can_be_walked_twice(backend):
    x = frames((2, 5, 7), device=backend.device).requires_grad_()
    y = approx_rank_pool(x, nonlinearity="sqrt").sum()
    y.backward(retain_graph=True)
    once = x.grad.clone()
    y.backward()
    assert torch.equal(x.grad, 2 * once)


def test_changing_frames_in_place_after_the_call_is_noticed(backend):
    """ψ' needs the frames: a silent use of the changed ones would be a wrong gradient."""
    x = frames((2, 5, 7), device=backend.device).requires_grad_()
    frames_ = x * 1
    y = approx_rank_pool(frames_, nonlinearity="sqrt")
    (expected,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    frames_.add_(1)
    if backend.name == "reference":  # which keeps what it needs
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected)
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_backward_changes_nothing(backend):
    x = frames((2, 5, 3, 7), device=backend.device).requires_grad_()
    a, mean, std = randn(3, 5, device=backend.device), randn(1, device=backend.device)[0], leaf(2.0, backend.device)
    a.requires_grad_()
    y = temporal_pool(x, a, mean=mean, std=std, nonlinearity="sqrt")
    g = randn(*y.shape, device=backend.device)
    tensors = (x, a, mean, std, y, g)
    before = [t.detach().clone() for t in tensors]
    torch.autograd.grad(y, [x, a, std], g)
    for t, b in zip(tensors, before, strict=True):
        assert torch.equal(t.detach(), b)


@pytest.mark.parametrize("nonlinearity", ["identity", "sqrt"])
def test_bit_equal_from_run_to_run_and_for_any_number_of_threads(backend, nonlinearity):
    x = frames((3, 7, 3, 61, 67), device=backend.device).requires_grad_()
    a, mean, std = (leaf(v, backend.device) for v in (torch.randn(3, 2, 7), [0.0, 1 / 64, -1 / 64], [1.0, 2.0, 3.0]))
    g = randn(3, 2, 3, 61, 67, device=backend.device)

    def run():
        y = temporal_pool(x, a, mean=mean, std=std, nonlinearity=nonlinearity)
        return torch.autograd.grad(y, [x, a, mean, std], g)

    first, threads = run(), torch.get_num_threads()
    try:
        for count in (1, 2, 2, 1):
            torch.set_num_threads(count)
            for got, want in zip(run(), first, strict=True):
                assert torch.equal(got, want)
    finally:
        torch.set_num_threads(threads)


def test_gradient_keeps_the_layout_of_dense_frames(backend):
    x = laid_out(frames((2, 5, 3, 7, 11), device=backend.device), "channels_last", 1).requires_grad_()
    y = approx_rank_pool(x, nonlinearity="sqrt")
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.stride() == x.stride()


CROPS = {  # of [2, 5, 3, 43, 61]
    "sides": lambda x: x[..., 2:, 5:],
    "the other sides": lambda x: x[..., :-3, :-1],
    "columns": lambda x: x[..., 3:-2],
    "lines": lambda x: x[..., 1:-1, :],
    "frames, too": lambda x: x[:, 1:-1, :, 1:, 1:],
    "of one clip": lambda x: x[1:, :, :, 1:, 1:],
    "of one channel": lambda x: x[:, :, 1, :, 1:],
    "narrow": lambda x: x.flatten(-2)[..., :2600].unflatten(-1, (200, 13))[..., 2:11],
    "channels last": lambda x: laid_out(x, "channels_last", 1)[..., 1:, 1:],
    "one channel for all": lambda x: x[:, :, :1, 1:, 1:].expand(-1, -1, 3, -1, -1),
    "one line for all": lambda x: x[..., :1, 1:].expand(-1, -1, -1, 43, -1),
}


@pytest.mark.parametrize("crop", CROPS.values(), ids=CROPS.keys())
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_gradients_of_crops(backend, dtype, crop):
    """Rows that lie apart, or on one another, whose gradient lies side by side."""
    x = crop(frames((2, 5, 3, 43, 61), dtype, backend.device))
    a = randn(1, 1, x.shape[1], device=backend.device)
    g = torch.randn_like(temporal_pool(x, a[0], nonlinearity="sqrt"))
    got = check_gradients(x, a, nonlinearity="sqrt", g=g)
    assert got["x"].stride()[-1] == (3 if x.stride(-1) == 3 else 1)


def test_weights_mean_and_std_can_be_learned(backend):
    """A few steps of gradient descent towards another pooling reduce the loss."""
    x = frames((4, 5, 3, 2, 2), torch.uint8, backend.device)
    target = temporal_pool(x, torch.tensor([-2.0, -1, 0, 1, 2], device=backend.device), mean=100, std=255)
    a, mean, std = (
        leaf(torch.zeros(5), backend.device),
        leaf([90.0] * 3, backend.device),
        leaf([200.0] * 3, backend.device),
    )
    losses = []
    for _ in range(15):
        loss = (temporal_pool(x, a, mean=mean, std=std) - target).square().mean()
        losses.append(loss.item())
        grads = torch.autograd.grad(loss, [a, mean, std])
        with torch.no_grad():
            for tensor, grad in zip((a, mean, std), grads, strict=True):
                tensor -= 0.2 * grad
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("nonlinearity", ["identity", "sqrt"])
@pytest.mark.parametrize("shape", [(2, 11, 3, 256, 256), (3, 7, 3, 331, 211)], ids=["aligned", "odd"])
def test_gradient_larger_than_the_caches(device, shape, nonlinearity):
    x = torch.rand(shape, device=device).add_(0.25).requires_grad_()  # 8 MB and more is written past the caches
    y = approx_rank_pool(x, nonlinearity=nonlinearity)
    g = torch.rand_like(y)
    (dx,) = torch.autograd.grad(y, x, g)
    alpha = rank_weights(shape[1]).to(device).view(1, -1, 1, 1, 1)
    expected = alpha * g.double()[:, None]
    if nonlinearity == "sqrt":
        expected = expected * 0.5 / x.detach().double().sqrt()
    # Each element is a product of three float32 values, each within 2 ulp.
    torch.testing.assert_close(dx.double(), expected, rtol=8 * 2**-23, atol=0)
