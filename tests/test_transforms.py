"""The operation under torch's transforms: torch.func, torch.compile, torch.export, fake and meta tensors, autocast."""

import copy
import os
import subprocess
import sys

import numpy as np
import oracle
import pytest
import torch
from cases import FLOATING, frames, laid_out
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from dynpool import approx_rank_pool, binary, ops, rank_weights, temporal_pool
from dynpool.nn import ApproxRankPool

CHANNELS = {"mean": [0.01, -0.01, 0.02], "std": [1.0, 2.0, 3.0]}
CALLS = {  # of x [2, 7, 3, 5, 4]
    "plain": {},
    "sqrt": {"nonlinearity": "sqrt", "std": 2.0},
    "channels": {"nonlinearity": "sqrt", **CHANNELS},
    "windows": {"window": 3, "stride": 2, "nonlinearity": "sqrt"},
    "lengths": {"lengths": torch.tensor([7, 3])},
    "windows of lengths": {"lengths": torch.tensor([7, 3]), "window": 3, "stride": 2},
    "out_dtype": {"out_dtype": torch.float64, "time_average": False, "normalize_weights": True},
}
calls = pytest.mark.parametrize("options", CALLS.values(), ids=CALLS.keys())


@pytest.fixture
def device(backend):
    """Every implementation of the operation in turn, by where its tensors live."""
    return backend.device


def close(actual, expected):
    """Within a few roundings of float64, at values of about 100."""
    assert actual.dtype == expected.dtype == torch.float64
    assert actual.shape == expected.shape
    assert expected.abs().max() > 0
    assert (actual - expected).abs().max().item() <= 1e-11


def double(*shape, device="cpu"):
    return frames(shape, torch.float64, device)


# --- vmap ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_dim", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"nonlinearity": "sqrt", "mean": 0.01, "std": 2.0}, {"window": 2, "stride": 1}]
)
def test_vmap_over_frames(backend, in_dim, options):
    x = double(3, 5, 4, 2, device=backend.device)

    def pool(x):
        return approx_rank_pool(x, 1, **options)

    close(vmap(pool, in_dim)(x), torch.stack([pool(each) for each in x.unbind(in_dim)]))
    close(vmap(pool, in_dim, out_dims=-1)(x), torch.stack([pool(each) for each in x.unbind(in_dim)], -1))


@pytest.mark.parametrize("mapped", [(0, None), (None, 0), (0, 0), (2, 1), (0, 2)])
def test_vmap_over_weights(backend, mapped):
    x = double(3, 5, 3, 2, device=backend.device)
    weights = torch.randn(3, 2, 5, dtype=torch.float64).to(backend.device)  # three of [W, T]
    weights = weights[0] if mapped[1] is None else weights.movedim(0, mapped[1])

    def pool(x, weights):
        return temporal_pool(x, weights, x.shape.index(5), nonlinearity="sqrt")

    xs = [x] * 3 if mapped[0] is None else x.unbind(mapped[0])
    ws = [weights] * 3 if mapped[1] is None else weights.unbind(mapped[1])
    close(vmap(pool, mapped)(x, weights), torch.stack([pool(a, b) for a, b in zip(xs, ws, strict=True)]))


@pytest.mark.parametrize("mapped", ["mean", "std", "mean and std", "all"])
def test_vmap_over_mean_and_std(backend, mapped):
    x, weights = (
        double(4, 2, 5, 3, 2, device=backend.device),
        torch.randn(4, 2, 5, dtype=torch.float64).to(backend.device),
    )
    mean, std = (torch.rand(4, 3, dtype=torch.float64).to(backend.device) + 0.5 for _ in range(2))
    axes = {
        "mean": (None, None, 0, None),
        "std": (None, None, None, 0),
        "mean and std": (None, None, 0, 0),
        "all": (0,) * 4,
    }
    in_dims = axes[mapped]

    def pool(x, weights, mean, std):
        return temporal_pool(x, weights, mean=mean, std=std, channel_dim=2, nonlinearity="sqrt")

    inputs = [t if d == 0 else t[0] for t, d in zip((x, weights, mean, std), in_dims, strict=True)]
    each = [pool(*(t[i] if d == 0 else t for t, d in zip(inputs, in_dims, strict=True))) for i in range(4)]
    close(vmap(pool, in_dims)(*inputs), torch.stack(each))


def test_vmap_with_lengths(backend):
    x = double(3, 2, 5, 4, device=backend.device)

    def pool(x):
        return approx_rank_pool(x, lengths=[5, 2], nonlinearity="sqrt")

    close(vmap(pool)(x), torch.stack([pool(each) for each in x]))
    close(vmap(pool, 3)(x.movedim(0, 3)), torch.stack([pool(each) for each in x]))


def test_vmap_over_lengths_that_are_none(backend):
    """Which it cannot look at: they count as the nearest that there may be."""
    x = frames((2, 5, 3), torch.float64, backend.device)
    lengths = torch.tensor([[9, 3], [0, 5]], device=backend.device)
    pooled = vmap(lambda n: approx_rank_pool(x, lengths=n))(lengths)
    close(pooled[0], approx_rank_pool(x, lengths=[5, 3]))
    close(pooled[1], torch.stack([torch.zeros_like(x[0, 0]), approx_rank_pool(x)[1]]))


def test_vmap_with_offsets(backend):
    x = double(3, 7, 4, device=backend.device)

    def pool(x):
        return approx_rank_pool(x, 0, offsets=[0, 2, 7])

    close(vmap(pool)(x), torch.stack([pool(each) for each in x]))


def test_vmap_of_vmap(backend):
    x, weights = double(2, 3, 5, 4, device=backend.device), torch.randn(3, 5, dtype=torch.float64).to(backend.device)
    nested = vmap(vmap(lambda x, w: temporal_pool(x, w, 0, nonlinearity="sqrt")), (0, None))(x, weights)
    each = [[temporal_pool(x[i, j], weights[j], 0, nonlinearity="sqrt") for j in range(3)] for i in range(2)]
    close(nested, torch.stack([torch.stack(row) for row in each]))


@pytest.mark.parametrize("mapped", [(0, 0), (1, 2), (None, 0), (0, None)])
def test_vmap_over_clips_with_weights_of_their_own(backend, mapped, monkeypatch):
    """And the gradients of each; by one call where that copies no frames."""
    if mapped[0] == 0:
        monkeypatch.setattr(ops, "_calls_of_batch", None)
    x, weights = double(4, 3, 5, 2, device=backend.device), torch.randn(4, 3, 2, 5, dtype=torch.float64)
    weights = weights.to(backend.device)
    xs, ws = ([t[0]] * 4 if d is None else list(t) for t, d in zip((x, weights), mapped, strict=True))
    given = [t[0] if d is None else t.movedim(0, d) for t, d in zip((x, weights), mapped, strict=True)]

    def loss(x, weights):
        return temporal_pool(x, weights, nonlinearity="sqrt", mean=0.01).pow(3).sum()

    for got, each in zip(
        vmap(grad(loss, (0, 1)), mapped)(*given),
        zip(*(grad(loss, (0, 1))(a, b) for a, b in zip(xs, ws, strict=True)), strict=True),
        strict=True,
    ):
        want = torch.stack(each)
        assert got.shape == want.shape
        assert ((got - want).abs() <= 1e-13 * want.abs().amax()).all()


def test_vmap_over_shared_frames_is_one_call(backend, monkeypatch):
    """Of more rows; and dense."""
    monkeypatch.setattr(ops, "_calls_of_batch", None)
    x, weights = double(3, 5, 2, device=backend.device), torch.randn(4, 3, 2, 5, dtype=torch.float64)
    for w in (weights, weights[:, 0], weights[:, 0, 0]):
        w = w.to(backend.device)
        pooled = vmap(lambda w: temporal_pool(x, w).view(-1))(w)
        close(pooled, torch.stack([temporal_pool(x, each).flatten() for each in w]))


def test_vmap_where_statistics_vary_along_clips(backend):
    x, lengths = double(40, 2, 5, 3, device=backend.device), torch.tensor([5, 3], device=backend.device)
    mean = torch.tensor([0.5, -0.5], dtype=torch.float64, device=backend.device)

    def pool(x):
        return approx_rank_pool(x, lengths=lengths, mean=mean, channel_dim=0, nonlinearity="sqrt")

    close(vmap(pool)(x), torch.stack([pool(each) for each in x]))
    close(vmap(grad(lambda x: pool(x).sum()))(x), torch.stack([grad(lambda x: pool(x).sum())(each) for each in x]))


@pytest.mark.parametrize("options", [{}, {"nonlinearity": "sqrt"}, {"window": 2}], ids=["identity", "sqrt", "windows"])
def test_vmap_over_lengths_of_clips(backend, options):
    x, lengths = double(4, 3, 5, 2, device=backend.device), torch.tensor([[2, 5, 3], [5, 4, 4], [5, 5, 5], [3, 2, 2]])
    lengths = lengths.to(backend.device)

    def loss(x, lengths):
        return approx_rank_pool(x, lengths=lengths, **options).square().sum()

    each = torch.stack([grad(loss)(a, n) for a, n in zip(x, lengths, strict=True)])
    found = vmap(grad(loss))(x, lengths)
    assert ((found - each).abs() <= 1e-13 * each.abs().amax()).all()
    assert each.abs().amax() > 0


def test_vmap_over_an_empty_batch(backend):
    x = double(5, 3, device=backend.device)
    none = torch.empty(0, 5, dtype=torch.float64, device=backend.device)
    numbers = torch.empty(0, dtype=torch.float64, device=backend.device)
    assert vmap(lambda mean, std: temporal_pool(x, torch.ones(5).to(x), 0, mean=mean, std=std))(
        numbers, numbers
    ).shape == (0, 3)
    for nonlinearity in ("identity", "sqrt"):

        def pool(x, a, nonlinearity=nonlinearity):
            return temporal_pool(x, a, 0, nonlinearity=nonlinearity)

        assert vmap(pool, (None, 0))(x, none).shape == (0, 3)
        assert vmap(grad(lambda a, x, pool=pool: pool(x, a).sum()), (0, None))(none, x).shape == (0, 5)


def test_vmap_with_uint8_frames(backend):
    x = frames((3, 2, 5, 7), torch.uint8, backend.device)
    mapped = vmap(lambda x: approx_rank_pool(x, nonlinearity="sqrt", time_average=False))(x)
    each = torch.stack([approx_rank_pool(clip, nonlinearity="sqrt", time_average=False) for clip in x])
    assert torch.allclose(mapped, each, rtol=1e-5, atol=1e-3)


# --- derivatives by torch.func -------------------------------------------------------------------------------------


@pytest.mark.parametrize("jacobian", [jacrev, jacfwd])
def test_jacobian_is_the_weights(backend, jacobian):
    """Eq. (8): ∂ρ/∂I_t = α_t I."""
    x = double(7, 3, device=backend.device)
    expected = torch.einsum("t,ij->itj", rank_weights(7), torch.eye(3, dtype=torch.float64)).to(backend.device)
    close(jacobian(lambda x: approx_rank_pool(x, 0))(x), expected)


@pytest.mark.parametrize("jacobian", [jacrev, jacfwd])
def test_jacobian_by_weights_mean_and_std(backend, jacobian):
    """For ψ = id and y = Σ a_t (x_t - m)/s: ∂a_t = (x_t - m)/s, ∂m = -Σa/s, ∂s = -y/s."""
    x, a = double(5, 1, device=backend.device), torch.randn(5, dtype=torch.float64).to(backend.device)
    mean, std = (torch.tensor(v, dtype=torch.float64, device=backend.device) for v in (0.5, 2.0))

    def pool(a, mean, std):
        return temporal_pool(x, a, 0, mean=mean, std=std)

    da, dmean, dstd = jacobian(pool, argnums=(0, 1, 2))(a, mean, std)
    close(da, ((x - 0.5) / 2).mT)
    close(dmean, -a.sum()[None] / 2)
    close(dstd, -pool(a, mean, std) / 2)


def test_grad_of_vmap_and_vmap_of_grad(backend):
    """Gradients of each sample."""
    x, a = double(4, 5, 3, device=backend.device), torch.randn(5, dtype=torch.float64).to(backend.device)

    def loss(a, x):
        return temporal_pool(x, a, 0, nonlinearity="sqrt").square().sum()

    per_sample = vmap(grad(loss), (None, 0))(a, x)
    leaf = a.clone().requires_grad_()
    close(per_sample, torch.stack([torch.autograd.grad(loss(leaf, each), leaf)[0] for each in x]))
    close(grad(lambda a: vmap(loss, (None, 0))(a, x).sum())(a), per_sample.sum(0))


def test_vmap_of_grad_over_frames(backend):
    x = double(4, 2, 5, 3, device=backend.device)

    def loss(x):
        return approx_rank_pool(x, nonlinearity="sqrt", mean=0.01).pow(3).sum()

    each = []
    for clip in x:
        leaf = clip.clone().requires_grad_()
        each.append(torch.autograd.grad(loss(leaf), leaf)[0])
    close(vmap(grad(loss))(x), torch.stack(each))


def test_vmap_of_grad_over_more_dimensions_than_kernels_walk(backend):
    x = double(*[2] * 10, device=backend.device).permute(*reversed(range(10)))

    def loss(x):
        return approx_rank_pool(x, nonlinearity="sqrt").pow(3).sum()

    close(vmap(grad(loss), in_dims=9)(x), torch.stack([grad(loss)(each) for each in x.unbind(9)]))


@pytest.mark.parametrize("order", ["jacfwd of jacrev", "jacrev of jacrev", "jacfwd of jacfwd", "jacrev of jacfwd"])
def test_hessian(backend, order):
    """For y = Σ a √x: ∂²/∂x_t² = -a_t/(4 x^1.5), ∂²/∂a∂x = 1/(2√x)."""
    x = torch.tensor([[1.0], [4.0], [0.25]], dtype=torch.float64, device=backend.device)
    a = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64, device=backend.device)
    outer, inner = ({"jacfwd": jacfwd, "jacrev": jacrev}[name] for name in order.split(" of "))

    def f(x, a):
        return temporal_pool(x, a, 0, nonlinearity="sqrt").sum()

    second = outer(inner(f, argnums=(0, 1)), argnums=(0, 1))(x, a)
    xx = torch.diag(torch.tensor([-0.25, 2 / 32, -6.0], dtype=torch.float64)).to(backend.device)
    ax = torch.diag(torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64)).to(backend.device)
    close(second[0][0].reshape(3, 3), xx)
    close(second[1][0].reshape(3, 3), ax)
    close(second[0][1].reshape(3, 3), ax)
    assert second[1][1].abs().max().item() == 0


def test_hessian_with_mean_and_std(backend):
    x = double(2, 4, 2, device=backend.device)
    std = torch.tensor([1.5, 0.75], dtype=torch.float64, device=backend.device)

    def loss(std):
        return approx_rank_pool(x, std=std, channel_dim=2, nonlinearity="sqrt").square().sum()

    close(hessian(loss)(std), jacrev(jacrev(loss))(std))
    leaf = std.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    rows = [torch.autograd.grad(g, leaf, retain_graph=True)[0] for g in first]
    close(hessian(loss)(std), torch.stack(rows))


@pytest.mark.parametrize("argument", [1, 2, 3], ids=["weights", "mean", "std"])
@pytest.mark.parametrize("power", [1, 3])
def test_a_gradient_of_the_gradient_for_x(backend, argument, power):
    """For ψ = identity it is a pooling itself, but has derivatives for what is differentiated further outside."""
    values = [double(2, 5, 3, device=backend.device), double(5, device=backend.device)]
    values += [double(3, device=backend.device), double(3, device=backend.device).abs() + 0.5]

    def pooled(x, weights, mean, std):
        return temporal_pool(x, weights, 1, mean=mean, std=std, channel_dim=2)

    def by_hand(x, weights, mean, std):
        return ((x - mean) / std * weights[:, None]).sum(1)

    def penalty(pool):
        inner = grad(lambda *inputs: (pool(*inputs) ** power).sum())
        return grad(lambda *inputs: inner(*inputs).square().sum(), argnums=argument)(*values)

    torch.testing.assert_close(penalty(pooled), penalty(by_hand), rtol=1e-11, atol=1e-11)


def test_jvp_and_vjp(backend):
    x, v = double(2, 5, 3, device=backend.device), double(2, 5, 3, device=backend.device)

    def pool(x):
        return approx_rank_pool(x, nonlinearity="sqrt", std=2.0)

    y, jv = jvp(pool, (x,), (v,))
    close(y, pool(x))
    _, pull_back = vjp(pool, x)
    g = torch.randn_like(y)
    assert (jv * g).sum().item() == pytest.approx((pull_back(g)[0] * v).sum().item(), rel=1e-10)
    assert jv.abs().min() > 0


def test_jvp_of_lengths_and_of_vmap(backend):
    x, v = double(3, 2, 5, 4, device=backend.device), double(3, 2, 5, 4, device=backend.device)

    def pool(x):
        return approx_rank_pool(x, lengths=[5, 2])

    close(jvp(vmap(pool), (x,), (v,))[1], torch.stack([pool(each) for each in v]))
    close(vmap(lambda x, v: jvp(pool, (x,), (v,))[1])(x, v), torch.stack([pool(each) for each in v]))


def test_functional_call(backend):
    x = double(2, 5, 3, 2, 2, device=backend.device)
    module = ApproxRankPool(std=torch.nn.Parameter(torch.ones(3, dtype=torch.float64, device=backend.device)))
    std = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64, device=backend.device)
    gradient = grad(lambda std: functional_call(module, {"std": std}, (x,)).square().sum())(std)
    leaf = std.clone().requires_grad_()
    (expected,) = torch.autograd.grad(approx_rank_pool(x, std=leaf).square().sum(), leaf)
    close(gradient, expected)


# --- compile -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function, **options):
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


def same_with_gradients(eager, other, x, exact=True):
    """Values and gradients of both are equal, to the bit, or within 1e-5."""
    results = []
    for function in (eager, other):
        leaf = x.detach().clone(memory_format=torch.preserve_format)
        leaf = leaf.requires_grad_(x.is_floating_point())
        y = function(leaf)
        g = torch.linspace(-1, 1, y.numel(), device=y.device).reshape(y.shape).to(y.dtype)
        results.append((y.detach(), *(torch.autograd.grad(y, leaf, g) if x.is_floating_point() else ())))
    for k, (a, b) in enumerate(zip(*results, strict=True)):
        assert a.dtype == b.dtype
        if k == 0 or binary.kernels_for(x.device):  # in eager plain torch a gradient lies as it comes
            assert a.stride() == b.stride()
        assert torch.equal(a, b) if exact else torch.allclose(a, b, rtol=1e-5, atol=1e-4)


@calls
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16], ids=str)
def test_compile(device, options, dtype):
    x = frames((2, 7, 3, 5, 4), dtype, device)

    def pool(x):
        return approx_rank_pool(x, **options)

    same_with_gradients(pool, compiled(pool), x)


def test_compile_with_dynamic_batch_and_frames(device):
    """One compilation serves every number of frames and clips."""
    counter = CompileCounterWithBackend("aot_eager")

    def pool(x):
        return approx_rank_pool(x, nonlinearity="sqrt", **CHANNELS) * 2

    function = torch.compile(pool, fullgraph=True, dynamic=True, backend=counter)
    for batch, num_frames in [(2, 7), (3, 11), (5, 2), (4, 31), (7, 10), (2, 100)]:
        same_with_gradients(pool, function, frames((batch, num_frames, 3, 5, 4), device=device))
    assert counter.frame_count <= 2  # with and without gradients


def test_compile_learns_that_frames_vary(device):
    """Without dynamic=True: once for the first T, once more for all others."""
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(lambda x: approx_rank_pool(x, normalize_weights=True), fullgraph=True, backend=counter)
    for num_frames in (7, 11, 13, 17, 19, 23):
        x = frames((2, num_frames, 3), device=device)
        assert torch.equal(function(x), approx_rank_pool(x, normalize_weights=True))
    assert counter.frame_count <= 2


def test_compile_windows_with_dynamic_frames(device):
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(
        lambda x: approx_rank_pool(x, window=3, stride=2), fullgraph=True, dynamic=True, backend=counter
    )
    for num_frames in (7, 11, 13, 31, 20):
        x = frames((2, num_frames, 3), device=device)
        assert torch.equal(function(x), approx_rank_pool(x, window=3, stride=2))
    assert counter.frame_count <= 1


def test_compile_lengths_as_input(device):
    """Lengths are data: other ones compile nothing."""
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(
        lambda x, lengths: approx_rank_pool(x, lengths=lengths), fullgraph=True, dynamic=True, backend=counter
    )
    for batch, num_frames, lengths in [(3, 7, [7, 1, 3]), (3, 7, [2, 2, 2]), (4, 11, [11, 5, 1, 2])]:
        x = frames((batch, num_frames, 5), device=device)
        lengths = torch.tensor(lengths, device=device)
        assert torch.allclose(function(x, lengths), approx_rank_pool(x, lengths=lengths), rtol=1e-6, atol=1e-5)
    assert counter.frame_count <= 1


def test_compiled_offsets_count_as_the_nearest_that_there_may_be(device):
    x = double(9, 3, device=device)
    for bounds in ([-3, 9], [0, 12], [-(2**40), 2**40]):
        try:
            pooled = compiled(lambda x, o=bounds: approx_rank_pool(x, 0, offsets=o))(x)
        except torch._dynamo.exc.TorchDynamoException:  # of torch 2.6, to which the shape is not known
            return
        close(pooled, approx_rank_pool(x, 0)[None])


def test_compile_offsets_is_right_or_refused(device):
    x = frames((7, 5), device=device)
    offsets = torch.tensor([0, 2, 7], device=device)
    expected = approx_rank_pool(x, 0, offsets=offsets)
    partial = torch.compile(lambda x, o: approx_rank_pool(x, 0, offsets=o), backend="aot_eager")  # graph breaks allowed
    assert torch.equal(partial(x, offsets), expected)
    try:
        y = compiled(lambda x, o: approx_rank_pool(x, 0, offsets=o))(x, offsets)
    except torch._dynamo.exc.TorchDynamoException:
        return
    assert torch.equal(y, expected)


ARRAYS = {
    "mean": np.array([0.01, 0.0, -0.01]),
    "std": np.float32(2.0),
    "lengths": np.array([7, 3]),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("constant", [True, False])
def test_compile_takes_arrays(device, name, constant):
    x, value = frames((2, 7, 3, 5, 4), device=device), ARRAYS[name]
    want = approx_rank_pool(x, nonlinearity="sqrt", **{name: value})
    if constant:
        found = compiled(lambda x: approx_rank_pool(x, nonlinearity="sqrt", **{name: value}))(x)
    else:
        found = compiled(lambda x, v: approx_rank_pool(x, nonlinearity="sqrt", **{name: v}))(x, value)
    assert torch.allclose(found, want, rtol=1e-6, atol=1e-6 * want.abs().max().item())


def test_compile_once_for_all_numbers(device):
    counter = CompileCounterWithBackend("aot_eager")
    x = frames((2, 5, 3, 7), device=device)

    def pool(x, m, s):
        return approx_rank_pool(x, mean=[m, 0.0, m], std=s, channel_dim=2, nonlinearity="sqrt")

    function = torch.compile(pool, fullgraph=True, dynamic=True, backend=counter)
    for i in range(10):
        m, s = 0.25 * i + 0.5, i + 2.5
        assert torch.equal(function(x, m, s), pool(x, m, s))
    assert counter.frame_count <= 2  # torch 2.6 learns from the first that numbers vary


@pytest.mark.parametrize("options", [{"std": 0.0}, {"std": [1.0, -1.0, 1.0]}, {"mean": float("nan")}], ids=str)
def test_compiled_calls_check_numbers(device, options):
    x = frames((2, 5, 3, 7), device=device)
    with pytest.raises(Exception, match=r"must be finite|Observed exception"):  # torch's own; 2.6 does not say which
        compiled(lambda x: approx_rank_pool(x, channel_dim=2, **options))(x)


@pytest.mark.parametrize("learned", [False, True])
def test_compiled_graphs_keep_no_frames_that_nothing_reads(backend, learned):
    """The gradient for frames of ψ = identity needs their sizes alone; that for weights reads them."""
    x = frames((2, 7, 3, 64), device=backend.device).requires_grad_()
    a = torch.randn(7).to(backend.device).requires_grad_(learned)

    def kept(pool):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            y = pool(x + 1)
        y.sum().backward()
        return max(sizes, default=0)

    for pool in (lambda x: temporal_pool(x, a, std=2.0), lambda x: temporal_pool(x, a)):
        assert (kept(torch.compile(pool, fullgraph=True, backend="aot_eager")) >= x.numel()) == learned


@pytest.mark.parametrize("nonlinearity", ["identity", "sqrt"])
def test_compile_gradients_of_everything(device, nonlinearity):
    x, a = frames((2, 5, 3, 7), device=device), torch.randn(2, 4, 5).to(device)
    mean, std = (torch.tensor(v, device=device) for v in ([0.01, 0.0, -0.01], [1.0, 2.0, 3.0]))

    def pool(x, a, mean, std):
        return temporal_pool(x, a, mean=mean, std=std, channel_dim=2, nonlinearity=nonlinearity).square().sum()

    def gradients(function):
        leaves = [t.clone().requires_grad_() for t in (x, a, mean, std)]
        return torch.autograd.grad(function(*leaves), leaves)

    for got, want in zip(gradients(compiled(pool)), gradients(pool), strict=True):
        assert want.abs().max() > 0
        assert torch.equal(got, want)


def test_compile_keeps_channels_last(device):
    x = laid_out(frames((2, 7, 3, 5, 4), device=device), "channels_last", 1)
    same_with_gradients(approx_rank_pool, compiled(approx_rank_pool), x)
    assert compiled(approx_rank_pool)(x).is_contiguous(memory_format=torch.channels_last)


def test_compile_by_inductor(device):
    """The default compiler, around the operation and after it, forward and backward."""

    def block(x):
        return approx_rank_pool((x * 2).relu() + 0.1, nonlinearity="sqrt", std=2.0).tanh()

    x = frames((2, 7, 3, 5, 4), device=device)
    same_with_gradients(block, torch.compile(block, fullgraph=True, dynamic=True), x, exact=False)


def test_compile_module_in_a_network(device):
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.Unflatten(0, (-1, 5)),
        ApproxRankPool(normalize_weights=True),
        torch.nn.ReLU(),
    ).to(device)
    x = torch.rand(10, 3, 6, 6).to(device)
    expected = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    got = torch.autograd.grad(compiled(network)(x).square().sum(), list(network.parameters()))
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def right_or_refused(function, expected):
    """Never silently wrong: an error is fine, a wrong or missing derivative is not."""
    try:
        actual = function()
    except Exception:  # of whatever class the compiler wraps it in
        return
    assert actual is not None
    assert torch.allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["dual", "dual in one graph", "dual around", "jvp", "jacfwd", "vmap of jvp"])
def test_forward_mode_inside_compile_is_right_or_refused(device, how):
    x, v = frames((2, 5, 3), device=device), frames((2, 5, 3), device=device)

    def pool(x):
        return approx_rank_pool(x, nonlinearity="sqrt")

    def tangent(x, v):
        with dual_level():
            return unpack_dual(pool(make_dual(x, v))).tangent

    def around(x, v):
        with dual_level():
            return unpack_dual(torch.compile(pool, backend="aot_eager")(make_dual(x, v))).tangent

    function = {
        "dual": torch.compile(tangent, backend="aot_eager"),
        "dual in one graph": compiled(tangent),
        "dual around": around,
        "jvp": compiled(lambda x, v: jvp(pool, (x,), (v,))[1]),
        "jacfwd": compiled(lambda x, v: (jacfwd(pool)(x) * v).sum((-1, -2, -3))),
        "vmap of jvp": compiled(
            vmap(lambda x, v: jvp(lambda x: approx_rank_pool(x, 0, nonlinearity="sqrt"), (x,), (v,))[1])
        ),
    }[how]
    expected = tangent(x, v)
    assert expected.abs().min() > 0
    right_or_refused(lambda: function(x, v), expected)


def test_second_order_inside_compile_is_right_or_refused(device):
    x = frames((2, 5, 3), device=device)

    def loss(x):
        return approx_rank_pool(x, nonlinearity="sqrt").square().sum()

    def second(function):
        leaf = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), leaf)[0]

    expected = second(loss)
    right_or_refused(lambda: second(compiled(loss)), expected)
    right_or_refused(lambda: compiled(grad(lambda x: grad(loss)(x).square().sum()))(x), expected)


def test_functorch_inside_compile(device):
    x = frames((4, 5, 3), device=device)

    def loss(x):
        return approx_rank_pool(x, 0, nonlinearity="sqrt").square().sum()

    assert torch.allclose(compiled(vmap(loss))(x), vmap(loss)(x), rtol=1e-5, atol=1e-5)
    assert torch.allclose(compiled(vmap(grad(loss)))(x), vmap(grad(loss))(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_compile_without_gradients_then_with(device, context):
    x = frames((2, 59, 3), device=device)
    function = compiled(approx_rank_pool)
    with context():
        assert torch.equal(function(x), approx_rank_pool(x))
    same_with_gradients(approx_rank_pool, function, x)


# --- export --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"nonlinearity": "sqrt", **CHANNELS}, {"window": 3, "stride": 2}],
    ids=["plain", "channels", "windows"],
)
def test_export_with_dynamic_batch_and_frames(device, options, strict):
    module = ApproxRankPool(**options)
    least = 5 if "window" in options else 2  # torch tells one window from several
    batch, time = torch.export.Dim("batch", min=2, max=512), torch.export.Dim("time", min=least, max=4096)
    program = torch.export.export(
        module, (frames((3, 7, 3, 5, 4), device=device),), dynamic_shapes={"x": {0: batch, 1: time}}, strict=strict
    )
    for shape in [(3, 7, 3, 5, 4), (2, 11, 3, 5, 4), (5, 30, 3, 5, 4)]:
        x = frames(shape, device=device)
        assert torch.equal(program.module()(x), module(x))


def test_export_without_bounds(device):
    shapes = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}}
    program = torch.export.export(ApproxRankPool(), (frames((3, 7, 5), device=device),), dynamic_shapes=shapes)
    x = frames((2, 31, 5), device=device)
    assert torch.equal(program.module()(x), ApproxRankPool()(x))


def test_offsets_that_say_shapes_are_refused(device):
    x = frames((7, 3), device=device)
    bounds = torch.tensor([[0, 3, 7], [0, 2, 7]], device=device)
    with pytest.raises(ValueError, match="offsets cannot be batched by vmap"):
        torch.vmap(lambda offsets: approx_rank_pool(x, 0, offsets=offsets))(bounds)
    compiled = torch.compile(lambda x: approx_rank_pool(x, 0, window=2, offsets=[0, 3, 7]), fullgraph=True)
    with pytest.raises(Exception, match=r"offsets cannot be compiled with window|Observed exception"):  # in torch 2.6
        compiled(x)


def test_export_with_lengths(device):
    module = ApproxRankPool()
    batch, time = torch.export.Dim("batch", min=2, max=512), torch.export.Dim("time", min=2, max=4096)
    example = (frames((3, 7, 5), device=device), torch.tensor([7, 2, 3], device=device))
    shapes = {"x": {0: batch, 1: time}, "lengths": {0: batch}}
    program = torch.export.export(module, example, dynamic_shapes=shapes)
    x, lengths = frames((2, 11, 5), device=device), torch.tensor([4, 11], device=device)
    assert torch.allclose(program.module()(x, lengths), module(x, lengths), rtol=1e-6, atol=1e-5)


def test_export_can_be_saved(device, tmp_path):
    module = ApproxRankPool(nonlinearity="sqrt", std=torch.tensor(255.0, device=device))
    x = frames((2, 7, 3, 4), torch.uint8, device)
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "pool.pt2")
    assert torch.equal(torch.export.load(tmp_path / "pool.pt2").module()(x), module(x))


# --- fake and meta tensors -----------------------------------------------------------------------------------------


@calls
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "expanded"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64], ids=str)
def test_fake_tensors_tell_shape_dtype_and_strides(device, options, layout, dtype):
    x = laid_out(frames((2, 7, 3, 5, 4), dtype, device), layout, 1)
    real = approx_rank_pool(x, **options)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake_x = mode.from_tensor(x)
        if x.is_floating_point():
            fake_x.requires_grad_()
        fake = approx_rank_pool(fake_x, **options)
        assert (fake.shape, fake.dtype, fake.device) == (real.shape, real.dtype, real.device)
        assert fake.stride() == real.stride()
        if x.is_floating_point():
            (dx,) = torch.autograd.grad(fake.sum(), fake_x)
            assert (dx.shape, dx.dtype) == (x.shape, x.dtype)


@calls
@pytest.mark.parametrize("how", ["fake", "compile", "export", "strict export"])
def test_fake_cuda_tensors_need_no_device(options, how):
    """What is done for CUDA alone (pinned memory, a look at what is captured) can be faked and traced."""
    if "window" in options and not torch.backends.cuda.is_built():
        pytest.skip("torch without CUDA cannot slice fake CUDA tensors")
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11) and not torch.cuda.is_available():
        pytest.skip("torch 2.6 looks for a device; of later ones, 2.11 and 2.13 were tried")
    module = ApproxRankPool(**{name: value for name, value in options.items() if name != "lengths"})
    lengths = options.get("lengths")
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, 7, 3, 5, 4, device="cuda")
        if how.endswith("export"):
            torch.export.export(module, (x, lengths), strict=how == "strict export")
        else:
            y = (compiled(module) if how == "compile" else module)(x, lengths)
            assert y.is_cuda
            assert y.shape == approx_rank_pool(torch.empty(2, 7, 3, 5, 4, device="meta"), **options).shape


@calls
def test_meta_tensors(options):
    x = torch.empty(2, 7, 3, 5, 4, device="meta", requires_grad=True)
    y = approx_rank_pool(x, **options)
    real = approx_rank_pool(frames((2, 7, 3, 5, 4)), **options)
    assert y.is_meta
    assert (y.shape, y.dtype) == (real.shape, real.dtype)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.is_meta
    assert dx.shape == x.shape


def test_meta_weights_mean_and_std():
    def meta(*shape):
        return torch.empty(shape, device="meta", requires_grad=True)

    x, a, mean, std = meta(2, 5, 3, 4, 4), meta(6, 5), meta(3), meta(3)
    y = temporal_pool(x, a, mean=mean, std=std, nonlinearity="sqrt")
    assert y.shape == (2, 6, 3, 4, 4)
    grads = torch.autograd.grad(y.sum(), [x, a, mean, std])
    assert [g.shape for g in grads] == [x.shape, a.shape, mean.shape, std.shape]


def test_fake_weights_mean_and_std(device):
    with FakeTensorMode():
        x, a = torch.empty(2, 5, 3, 4, 4, device=device), torch.empty(2, 6, 5, device=device, requires_grad=True)
        mean, std = (torch.ones(3, device=device, requires_grad=True) for _ in range(2))
        y = temporal_pool(x, a, mean=mean, std=std, nonlinearity="sqrt")
        grads = torch.autograd.grad(y.sum(), [a, mean, std])
        assert [g.shape for g in grads] == [a.shape, mean.shape, std.shape]
        assert y.shape == (2, 6, 3, 4, 4)


def test_module_on_meta():
    with torch.device("meta"):
        module = ApproxRankPool(mean=torch.zeros(3), std=torch.ones(3))
        y = module(torch.empty(2, 5, 3, 4, 4))
    assert y.is_meta
    assert y.shape == (2, 3, 4, 4)


# --- autocast ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_nothing(backend, dtype, autocast_dtype):
    """α rounded to half would leak the static image: 255·Σα = 40 at T = 30 in bfloat16."""
    x = frames((2, 31, 3, 5), dtype, backend.device)
    for options in ({}, {"nonlinearity": "sqrt", "lengths": [31, 17]}, {"window": 10, "stride": 6}):

        def run(options=options):
            leaf = x.clone().requires_grad_()
            y = approx_rank_pool(leaf, normalize_weights=True, **options)
            return y.detach(), torch.autograd.grad(y.float().square().sum(), leaf)[0]

        plain = run()
        with torch.autocast(backend.device.type, autocast_dtype):
            cast = run()
        for a, b in zip(cast, plain, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def test_autocast_around_a_network(backend):
    """The output of an autocast layer, with gradients to its weights."""
    conv = torch.nn.Conv2d(3, 4, 3).to(backend.device)
    x = torch.rand(10, 3, 6, 6).to(backend.device)
    with torch.autocast(backend.device.type, torch.bfloat16):
        maps = conv(x).unflatten(0, (2, 5))
        y = approx_rank_pool(maps, normalize_weights=True)
    assert maps.dtype == y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert conv.weight.grad.isfinite().all()
    assert conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_inside_compile(device, autocast_dtype):
    x = frames((2, 31, 3, 5), device=device)

    def pool(x):
        with torch.autocast(device.type, autocast_dtype):
            return approx_rank_pool(x, normalize_weights=True)

    assert torch.equal(compiled(pool)(x), approx_rank_pool(x, normalize_weights=True))


# --- torch.library -------------------------------------------------------------------------------------------------


def op_arguments(device):
    """(x, weights, bands, mean, std, dim, channel_dim, nonlinearity, out_dtype[, overlap]) of the operator."""
    x = frames((2, 5, 3, 7), device=device)
    a = torch.randn(1, 2, 5).to(device)
    channels = [torch.tensor(v, device=device) for v in ([0.01, 0.0, -0.01], [1.0, 2.0, 3.0])]
    bands = torch.tensor([[[0, 5], [1, 2]], [[3, 2], [0, 0]]], device=device)
    yield x, a, None, None, None, 1, None, "identity", torch.float32
    yield x, a, None, *channels, 1, 2, "sqrt", torch.float32
    yield x, a.expand(2, 2, 5).contiguous(), bands, None, channels[1], 1, 2, "sqrt", torch.float64
    yield x.movedim(1, -1), a, None, *channels, 3, 1, "sqrt", torch.float16
    yield (x * 50).abs().to(torch.uint8), a, None, None, channels[1][:1], 1, None, "sqrt", torch.float32
    windows = torch.tensor([[[0, 3], [2, 3]]], device=device)
    yield x, a[..., :3].contiguous(), windows, None, None, 1, None, "sqrt", torch.float32, 2


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("case", range(6))
def test_opcheck_forward(device, case):
    arguments = list(list(op_arguments(device))[case])
    for i in (0, 1, 3, 4):
        if arguments[i] is not None and arguments[i].is_floating_point():
            arguments[i] = arguments[i].detach().clone(memory_format=torch.preserve_format).requires_grad_()
    torch.library.opcheck(torch.ops.dynpool.temporal_pool.default, tuple(arguments), test_utils=CHECKS)


@pytest.mark.parametrize("case", range(6))
def test_opcheck_backward(device, case):
    x, a, bands, mean, std, dim, *rest = list(op_arguments(device))[case][:9]
    y = torch.ops.dynpool.temporal_pool(x, a, bands, mean, std, dim, *rest)
    needs = [x.is_floating_point(), True, mean is not None, std is not None]
    arguments = [torch.randn_like(y), x, a, bands, mean, std]
    arguments = [
        t.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        if t is not None and t.is_floating_point()
        else t
        for t in arguments
    ]
    operator = torch.ops.dynpool.temporal_pool_backward.default
    checks = CHECKS
    # torch 2.11 and 2.12 end in internal assertions when they trace derivatives of an operator with a list of results.
    if tuple(map(int, torch.__version__.split(".")[:2])) in ((2, 11), (2, 12)):
        checks = tuple(check for check in CHECKS if check != "test_aot_dispatch_dynamic")
    if binary.kernels_for(device) is None:  # its derivative is functorch's, whose tensors have no storage to look into
        checks = ("test_autograd_registration",)
    torch.library.opcheck(operator, (*arguments, dim, *rest, needs), test_utils=checks)


@pytest.mark.parametrize("case", range(6))
def test_opcheck_transposed(device, case):
    """The gradient for frames that are not read is what the other operator gives."""
    x, a, bands, mean, std, dim, channel_dim, _, out_dtype = list(op_arguments(device))[case][:9]
    if not x.is_floating_point():
        x = x.half()
    y = torch.ops.dynpool.temporal_pool(x, a, bands, mean, std, dim, channel_dim, "identity", out_dtype)
    g, rest = torch.randn_like(y), (dim, channel_dim)
    backward, transposed = torch.ops.dynpool.temporal_pool_backward, torch.ops.dynpool.temporal_pool_transposed.default
    (want,) = backward(g, x, a, bands, mean, std, *rest, "identity", out_dtype, [True, False, False, False])
    frames = (list(x.shape), list(want.stride()), x.dtype)
    found = transposed(g, a, bands, std, *frames, *rest)
    assert torch.equal(found, want)
    assert found.stride() == want.stride()
    gs = torch.stack([g, 2 * g], -1)
    batch = vmap(lambda g: transposed(g, a, bands, std, *frames, *rest), -1)(gs)
    assert torch.equal(batch, torch.stack([found, transposed(2 * g, a, bands, std, *frames, *rest)]))
    leaves = [t if t is None or not t.is_floating_point() else t.clone().requires_grad_() for t in (g, a, bands, std)]
    checks = CHECKS
    if binary.kernels_for(device) is None:  # as above
        checks = ("test_autograd_registration",)
    torch.library.opcheck(transposed, (*leaves, *frames, *rest), test_utils=checks)


def test_derivatives_of_the_transposed_operator(device):
    grad_y, a, std = double(2, 2, 3, 4, device=device), torch.randn(1, 2, 5, dtype=torch.float64), torch.rand(3) + 0.5
    inputs = [t.to(device, torch.float64).requires_grad_() for t in (grad_y, a, std)]

    def pull(g, a, std):
        frames = ([2, 5, 3, 4], [60, 12, 4, 1], torch.float64)
        return torch.ops.dynpool.temporal_pool_transposed(g, a, None, std, *frames, 1, 2)

    assert torch.autograd.gradcheck(pull, inputs, atol=1e-4)  # of values about 100
    assert torch.autograd.gradcheck(lambda g: pull(g, *map(torch.Tensor.detach, inputs[1:])), inputs[:1], atol=1e-4)


@pytest.mark.parametrize("batched", [(0,), (1,), (0, 1)], ids=["frames", "weights", "both"])
@pytest.mark.parametrize("case", range(6))
def test_vmap_of_operators(device, case, batched):
    """As in programs that were exported, or traced with their gradients."""
    x, a, bands, mean, std, dim, *rest = list(op_arguments(device))[case][:9]
    batches = [torch.stack([t, t.flip(-1), 2 * t], 1) if i in batched else t for i, t in enumerate((x, a))]
    dims = [1 if i in batched else None for i in range(2)]
    alone = [[t if d is None else t[:, i] for t, d in zip(batches, dims, strict=True)] for i in range(3)]

    def pool(x, a):
        return torch.ops.dynpool.temporal_pool(x, a, bands, mean, std, dim, *rest)

    want = torch.stack([pool(*each) for each in alone])
    torch.testing.assert_close(vmap(pool, tuple(dims))(*batches), want)

    frames_too = x.is_floating_point()
    for needs in (
        [True, False, False, False],
        [True, True, mean is not None, std is not None],
        [False, True, False, False],
    ):
        if needs[0] and not frames_too:
            needs = [False, *needs[1:]]

        def pull(g, x, a, needs=needs):
            return torch.ops.dynpool.temporal_pool_backward(g, x, a, bands, mean, std, dim, *rest, needs)

        found = vmap(pull, (0, *dims))(want, *batches)
        one_by_one = [pull(g, *each) for g, each in zip(want, alone, strict=True)]
        for grads, each in zip(found, zip(*one_by_one, strict=True), strict=True):
            torch.testing.assert_close(grads, torch.stack(each))


def test_vmap_of_operators_over_an_empty_batch(device):
    x, a, bands, mean, std, dim, *rest = next(op_arguments(device))[:9]
    none, y = x[None][:0], torch.zeros(0, 2, 2, 3, 7, device=device)
    pool, backward, transposed = (
        getattr(torch.ops.dynpool, f"temporal_pool{which}") for which in ("", "_backward", "_transposed")
    )
    assert vmap(lambda x: pool(x, a, bands, mean, std, dim, *rest))(none).shape == y.shape
    needs = [True, True, False, False]
    found = vmap(lambda g, x: backward(g, x, a, bands, mean, std, dim, *rest, needs))(y, none)
    assert [t.shape for t in found] == [none.shape, (0, *a.shape)]
    frames = (list(x.shape), list(x.stride()), x.dtype, dim, None)
    assert vmap(lambda g: transposed(g, a, bands, std, *frames))(y).shape == none.shape


def test_vmap_of_an_exported_program(device):
    x = double(3, 2, 7, 4, device=device)
    program = torch.export.export(torch.nn.Sequential(ApproxRankPool(1)), (x[0],)).module()
    assert torch.equal(vmap(program)(x), torch.stack([approx_rank_pool(clip, 1) for clip in x]))


# --- life in a program ---------------------------------------------------------------------------------------------


FORKED = """
import multiprocessing, torch, dynpool
torch.set_num_threads(2)
x = torch.rand(4, 30, 3, 128, 128)
def pool(_): return dynpool.approx_rank_pool(x).double().sum().item()
first = pool(0)
with multiprocessing.get_context("fork").Pool(2) as processes:
    print(max(abs(other - first) for other in processes.map(pool, range(4))) < 1e-6)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.skipif(binary.extension is None, reason="plain torch waits for its own threads")
def test_a_process_that_is_forked_from_one_with_threads():
    """Without threads, which OpenMP would wait for in vain."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr


def test_subclasses_are_not_broken(backend):
    """A Parameter, a view, a tensor with names of its own class: the plain result."""

    class Frames(torch.Tensor):
        pass

    x = frames((2, 5, 3), device=backend.device)
    expected = approx_rank_pool(x)
    assert torch.equal(approx_rank_pool(torch.nn.Parameter(x)).detach(), expected)
    result = approx_rank_pool(x.as_subclass(Frames)).as_subclass(torch.Tensor)
    assert torch.allclose(result, expected, rtol=1e-6, atol=1e-5)


def test_default_dtype_does_not_matter(backend):
    x = frames((2, 5, 3), device=backend.device)
    expected = approx_rank_pool(x, mean=0.1, std=2.0)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(approx_rank_pool(x, mean=0.1, std=2.0), expected)
        assert torch.equal(copy.deepcopy(ApproxRankPool(mean=0.1, std=2.0))(x), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_oracle_agrees_with_finite_differences():
    """The oracle's gradients are themselves formulas: central differences of its own forward."""
    x, weights, step = double(2, 4, 3), torch.randn(2, 2, 4, dtype=torch.float64), 1e-5
    x += x.sign()  # where the root is smooth
    options = {"mean": [0.01, -0.01, 0.0], "std": [1.5, 0.75, 2.0], "channel_dim": 2, "nonlinearity": "sqrt"}
    g = torch.randn(2, 2, 3, dtype=torch.float64)
    got = oracle.gradients(g, x, oracle.dense_rows(weights), 1, **options)

    def loss(x, weights, **changed):
        y = oracle.pool(x, oracle.dense_rows(weights), 1, **{**options, **changed}).value
        return float((y * g.numpy()).sum())

    for at in [(0, 0, 0), (1, 3, 2)]:
        e = torch.zeros_like(x)
        e[at] = step
        slope = (loss(x + e, weights) - loss(x - e, weights)) / (2 * step)
        assert got["x"].value[at] == pytest.approx(slope, rel=1e-6)
    e = torch.zeros_like(weights)
    e[1, 0, 2] = step
    slope = (loss(x, weights + e) - loss(x, weights - e)) / (2 * step)
    assert got["weights"].value[1, 0, 2] == pytest.approx(slope, rel=1e-6)
    for name in ("mean", "std"):
        up, down = ([v + s * (c == 1) for c, v in enumerate(options[name])] for s in (step, -step))
        slope = (loss(x, weights, **{name: up}) - loss(x, weights, **{name: down})) / (2 * step)
        assert got[name].value[1] == pytest.approx(slope, rel=1e-6)
