"""The operation as torch sees it: the only file that calls the kernels.

One call takes one of four ways, the cheapest that serves it:
    compiling or exporting, fake tensors  torch.library ops, which Dynamo and AOTAutograd understand
    functorch                             new-style autograd.Functions, which have rules for vmap
    a gradient is needed                  a plain autograd.Function
    else                                  the bare kernel
All of them end in `_forward` and `_backward`. Forward-mode, second derivatives and what no kernel fits go to
reference.py.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from . import reference
from .reference import accumulate_dtype

extension: ModuleType | None  # the compiled module, or None
try:
    from . import _C as extension
except ImportError as error:
    extension = None
    warnings.warn(
        f"dynpool runs without its compiled kernels ({error}): everything works, through plain torch and slower. "
        "To build them, install a C++ compiler and run: pip install --force-reinstall --no-deps --no-cache-dir dynpool "
        "(in a source tree: pip install -e .)",
        stacklevel=2,
    )

_DTYPE_CODES = {torch.uint8: 0, torch.float16: 1, torch.bfloat16: 2, torch.float32: 3, torch.float64: 4}
_NONLINEARITY_CODES = {"identity": 0, "sqrt": 1}
MAX_DIMS = 9  # of x, where its layout is arbitrary: kMaxAxes of csrc/temporal_pool.h, and T


# --- kernels -------------------------------------------------------------------------------------------------------


class Kernels(NamedTuple):
    """Launchers of one device type; the last argument is the torch.device."""

    temporal_pool: Callable[..., None]
    temporal_pool_backward: Callable[..., None]


def _cpu_kernels(module: ModuleType | None) -> Kernels | None:
    if module is None:
        return None
    forward, backward, num_threads = module.temporal_pool, module.temporal_pool_backward, torch.get_num_threads
    return Kernels(
        lambda *args: forward(*args[:-1], num_threads()),
        lambda *args: backward(*args[:-1], num_threads()),
    )


def _cuda_kernels(module: ModuleType | None, stream_of: Callable[[int], int]) -> Kernels | None:
    if module is None:
        return None

    def on_stream(launch: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            device = args[-1]
            index = device.index or 0
            held = []  # until the launch is enqueued; the caching allocator orders reuse behind it

            def allocate(num_bytes: int) -> int:
                held.append(torch.empty(num_bytes, dtype=torch.uint8, device=device))
                return held[-1].data_ptr()

            launch(*args[:-1], index, stream_of(index), allocate)

        return call

    return Kernels(on_stream(module.temporal_pool), on_stream(module.temporal_pool_backward))


def emulated_kernels(path: str) -> Kernels:
    """The CUDA kernels compiled as C++ (CMake option DYNPOOL_EMULATION), for tests on CPU tensors."""
    spec = importlib.util.spec_from_file_location("_C_emulated", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no extension module at {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernels = _cuda_kernels(module.cuda, lambda index: 0)
    assert kernels is not None
    return kernels


def _current_stream(index: int) -> int:
    return torch._C._cuda_getCurrentRawStream(index)


_KERNELS = {
    "cpu": _cpu_kernels(extension and extension.cpu),
    "cuda": None if torch.version.hip else _cuda_kernels(getattr(extension, "cuda", None), _current_stream),
}


def kernels_for(device: torch.device) -> Kernels | None:
    """The kernels of a device, or None where reference.py has to serve."""
    return _KERNELS.get(device.type)


# --- the call ------------------------------------------------------------------------------------------------------


def is_plain(x: Tensor) -> bool:
    """Whether x is an ordinary tensor in an ordinary call: its values may be looked at, and results kept."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()  # a fake mode, perhaps
        and not x.is_meta
        and not (x.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def temporal_pool(
    x: Tensor,
    weights: Tensor,
    bands: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    dim: int,
    channel_dim: int | None,
    nonlinearity: str,
    out_dtype: torch.dtype,
    squeeze: bool = False,
) -> Tensor:
    """`reference.temporal_pool` by kernels, in x's memory format; the arguments are canonical and checked.

    `squeeze` drops the dimension of a single row.
    """
    rest = (dim, channel_dim, nonlinearity, out_dtype)
    if _forward_mode():
        y = _by_reference(x, weights, bands, mean, std, *rest)
    elif torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active():
            y = _by_reference(x, weights, bands, mean, std, *rest)
        else:
            y = _temporal_pool_op(x, weights, bands, mean, std, *rest)
    elif torch._C._are_functorch_transforms_active():
        y = _TransformablePool.apply(x, weights, mean, std, bands, *rest)
    elif isinstance(x, FakeTensor):
        y = _temporal_pool_op(x, weights, bands, mean, std, *rest)
    elif kernels_for(x.device) is None or type(x) not in (Tensor, torch.nn.Parameter):
        y = _by_reference(x, weights, bands, mean, std, *rest)
    elif torch.is_grad_enabled() and _any_requires_grad(x, weights, mean, std):
        return _Pool.apply(x, weights, mean, std, bands, squeeze, *rest)
    else:
        return _forward(x, weights, bands, mean, std, *rest, squeeze)
    return y.squeeze(dim) if squeeze else y


def _forward_mode() -> bool:
    """Whether tangents may be about, of forward_ad or of any functorch jvp: a kernel would lose them silently."""
    return forward_ad._current_level >= 0


def _any_requires_grad(*tensors: Tensor | None) -> bool:
    return True in [t.requires_grad for t in tensors if t is not None]


def _by_reference(x: Tensor, weights: Tensor, bands: Tensor | None, mean: Any, std: Any, dim: int, *rest: Any) -> Tensor:
    y = reference.temporal_pool(x, weights, bands, mean, std, dim, *rest)
    if x.is_contiguous():
        return y.contiguous()
    order = sorted(range(x.dim()), key=lambda d: -x.stride(d))
    return y.permute(order).contiguous().permute([order.index(d) for d in range(x.dim())])


# --- kernels on tensors --------------------------------------------------------------------------------------------


def _dense_strides(sizes: Sequence[int], like: Sequence[int]) -> list[int]:
    """Strides of a dense tensor whose dimensions follow one another in memory as those of strides `like` do."""
    strides = [0] * len(sizes)
    step = 1
    for d in sorted(range(len(sizes)), key=lambda d: -like[d])[::-1]:
        strides[d] = step
        step *= max(sizes[d], 1)
    return strides


def _empty_output(x: Tensor, dim: int, rows: int, dtype: torch.dtype, squeeze: bool = False) -> Tensor:
    """y: W in the place of T, or no dimension there; dense, in x's memory format."""
    sizes = list(x.shape)
    sizes[dim] = rows
    if x.is_contiguous():
        if squeeze:
            del sizes[dim]
        return torch.empty(sizes, dtype=dtype, device=x.device)
    strides = _dense_strides(sizes, x.stride())
    if squeeze:
        del sizes[dim], strides[dim]
    return torch.empty_strided(sizes, strides, dtype=dtype, device=x.device)


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _pixels(mean: Tensor | None, std: Tensor | None, channel_dim: int | None, nonlinearity: str) -> tuple:
    if mean is None and std is None:
        return 0, 0, 1, -1, _NONLINEARITY_CODES[nonlinearity]
    given = std if mean is None else mean
    channels = 1 if given is None else given.shape[0]
    codes = (channels, -1 if channel_dim is None else channel_dim, _NONLINEARITY_CODES[nonlinearity])
    return _address(mean), _address(std), *codes


def _contiguous(t: Tensor | None) -> Tensor | None:
    return t if t is None or t.is_contiguous() else t.contiguous()


def _forward(
    x: Tensor,
    weights: Tensor,
    bands: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    dim: int,
    channel_dim: int | None,
    nonlinearity: str,
    out_dtype: torch.dtype,
    squeeze: bool = False,
) -> Tensor:
    kernels = kernels_for(x.device)
    if kernels is None:
        y = _by_reference(x, weights, bands, mean, std, dim, channel_dim, nonlinearity, out_dtype)
        return y.squeeze(dim) if squeeze else y
    weights, bands, mean, std = weights.contiguous(), _contiguous(bands), _contiguous(mean), _contiguous(std)
    clips, rows, band = weights.shape
    y = _empty_output(x, dim, rows, out_dtype, squeeze)
    y_strides = y.stride()
    if squeeze:
        y_strides = (*y_strides[:dim], 0, *y_strides[dim:])
    kernels.temporal_pool(
        (x.data_ptr(), _DTYPE_CODES[x.dtype], x.shape, x.stride(), dim),
        (weights.data_ptr(), clips, rows, band, _address(bands)),
        _pixels(mean, std, channel_dim, nonlinearity),
        (y.data_ptr(), _DTYPE_CODES[out_dtype], y_strides),
        x.device,
    )
    return y


class _Frames(NamedTuple):
    """What backward must know of x when it does not read its pixels: ψ = identity and only ∂L/∂x wanted."""

    shape: torch.Size
    strides: Sequence[int]
    dtype: torch.dtype

    def as_zeros(self, device: torch.device) -> Tensor:
        return torch.zeros((), dtype=self.dtype, device=device).expand(self.shape)


def _backward(
    grad: Tensor,
    x: Tensor | _Frames,
    weights: Tensor,
    bands: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    dim: int,
    channel_dim: int | None,
    nonlinearity: str,
    out_dtype: torch.dtype,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients for those of (x, weights, mean, std) that `needs` marks, in that order."""
    kernels = kernels_for(grad.device)
    if kernels is None:
        frames = x.as_zeros(grad.device) if isinstance(x, _Frames) else x
        rest = (dim, channel_dim, nonlinearity, out_dtype)
        return list(reference.temporal_pool_backward(grad, frames, weights, bands, mean, std, *rest, tuple(needs)))
    if grad.dim() > MAX_DIMS:
        grad = grad.contiguous()
    weights, bands, mean, std = weights.contiguous(), _contiguous(bands), _contiguous(mean), _contiguous(std)
    if isinstance(x, _Frames):
        address, strides, dx_strides = 0, x.strides, x.strides
    else:
        address, strides = x.data_ptr(), x.stride()
        dx_strides = _gradient_strides(x) if needs[0] else ()
    dx = torch.empty_strided(x.shape, dx_strides, dtype=x.dtype, device=grad.device) if needs[0] else None
    dweights = torch.empty_like(weights) if needs[1] else None
    dmean = torch.empty_like(mean) if needs[2] and mean is not None else None
    dstd = torch.empty_like(std) if needs[3] and std is not None else None
    kernels.temporal_pool_backward(
        (address, _DTYPE_CODES[x.dtype], x.shape, strides, dim),
        (weights.data_ptr(), *weights.shape, _address(bands)),
        _pixels(mean, std, channel_dim, nonlinearity),
        (grad.data_ptr(), _DTYPE_CODES[grad.dtype], grad.stride()),
        (_address(dx), dx_strides, _address(dweights), _address(dmean), _address(dstd)),
        grad.device,
    )
    return [t for t in (dx, dweights, dmean, dstd) if t is not None]


def _gradient_strides(x: Tensor) -> Sequence[int]:
    """Strides of ∂L/∂x: dense, in x's memory format."""
    return x.stride() if x.is_contiguous() else _dense_strides(x.shape, x.stride())


# --- autograd ------------------------------------------------------------------------------------------------------


def _reads_pixels(nonlinearity: str, needs: Sequence[bool]) -> bool:
    return nonlinearity != "identity" or True in needs[1:]


def _spread(grads: Sequence[Tensor], needs: Sequence[bool], behind: int) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs that need one, None elsewhere, and None for `behind` further inputs."""
    following = iter(grads)
    return tuple([next(following) if need else None for need in needs] + [None] * behind)


class _Pool(torch.autograd.Function):
    """The plain eager case. Keeps of x only what backward reads; `squeeze` drops a single row's dimension."""

    @staticmethod
    def forward(ctx, x, weights, mean, std, bands, squeeze, *rest):  # type: ignore[no-untyped-def]
        if _reads_pixels(rest[2], ctx.needs_input_grad):
            ctx.frames = None
            ctx.save_for_backward(x, weights, mean, std, bands)
        else:
            ctx.frames = _Frames(x.shape, _gradient_strides(x), x.dtype)
            ctx.save_for_backward(None, weights, mean, std, bands)
        ctx.squeeze, ctx.rest = squeeze, rest
        return _forward(x, weights, bands, mean, std, *rest, squeeze)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weights, mean, std, bands = ctx.saved_tensors
        rest, needs = ctx.rest, ctx.needs_input_grad[:4]
        if ctx.squeeze:
            grad = grad.unsqueeze(rest[0])
        if x is None:
            x = ctx.frames
        if not _traced(grad) and not torch.is_grad_enabled():
            grads = _backward(grad, x, weights, bands, mean, std, *rest, needs)
        else:
            frames = x.as_zeros(grad.device) if isinstance(x, _Frames) else x
            grads = _differentiable_backward(grad, frames, weights, mean, std, bands, *rest, needs)
        return _spread(grads, needs, 2 + len(rest))


def _traced(grad: Tensor) -> bool:
    """Whether a gradient is more than numbers: a tangent, or vectors batched by `grad(is_grads_batched=True)`."""
    return _forward_mode() or torch._C._functorch.is_legacy_batchedtensor(grad)


def _differentiable_backward(grad, x, weights, mean, std, bands, *rest):  # type: ignore[no-untyped-def]
    if _traced(grad):
        return reference.temporal_pool_backward(grad, x, weights, bands, mean, std, *rest)
    if torch._C._are_functorch_transforms_active():
        return _TransformableBackward.apply(grad, x, weights, mean, std, bands, *rest)
    return _PoolBackward.apply(grad, x, weights, mean, std, bands, *rest)


class _PoolBackward(torch.autograd.Function):
    """First derivatives by kernels, higher ones by reference.py."""

    @staticmethod
    def forward(ctx, grad, x, weights, mean, std, bands, *rest):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(grad, x, weights, mean, std, bands)
        ctx.rest = rest
        return tuple(_backward(grad, x, weights, bands, mean, std, *rest))

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        needs = ctx.needs_input_grad[:5]
        return _spread(_second_backward(grads, ctx.saved_tensors, ctx.rest, needs), needs, 1 + len(ctx.rest))


def _second_backward(
    grads: Sequence[Tensor], saved: Sequence[Tensor], rest: tuple, needs: Sequence[bool]
) -> tuple[Tensor, ...]:
    """Gradients of `_backward` for those of (grad, x, weights, mean, std) that `needs` marks."""
    inputs, bands = list(saved[:5]), saved[5]
    wanted = [i for i in range(5) if needs[i]]

    def first(*values: Tensor) -> tuple[Tensor, ...]:
        given = list(inputs)
        for i, value in zip(wanted, values, strict=True):
            given[i] = value
        grad, x, weights, mean, std = given
        return reference.temporal_pool_backward(grad, x, weights, bands, mean, std, *rest)

    _, pull_back = torch.func.vjp(first, *(inputs[i] for i in wanted))
    return pull_back(tuple(grads))


# --- functorch ------------------------------------------------------------------------------------


class _TransformablePool(torch.autograd.Function):
    """As _Pool, with a rule for vmap."""

    @staticmethod
    def forward(x, weights, mean, std, bands, *rest):  # type: ignore[no-untyped-def]
        return _forward(x, weights, bands, mean, std, *rest)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        x, weights, mean, std, bands, *rest = inputs
        ctx.save_for_backward(x, weights, mean, std, bands)
        ctx.rest = tuple(rest)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        needs = tuple(ctx.needs_input_grad[:4])
        grads = _differentiable_backward(grad, *ctx.saved_tensors, *ctx.rest, needs)
        return _spread(grads, needs, 1 + len(ctx.rest))

    @staticmethod
    def vmap(info, in_dims, *inputs):  # type: ignore[no-untyped-def]
        if _only_batched(in_dims, (0,)) and inputs[1].shape[0] == 1:  # clips share the weights: one more dimension
            x, dim, channel_dim = inputs[0].movedim(in_dims[0], 0), inputs[5] + 1, inputs[6]
            shifted = (dim, None if channel_dim is None else channel_dim + 1)
            return _TransformablePool.apply(x, *inputs[1:5], *shifted, *inputs[7:]), 0
        return torch.vmap(_pool_of_inputs, in_dims)(*inputs), 0


class _TransformableBackward(torch.autograd.Function):
    """As _PoolBackward, with a rule for vmap."""

    @staticmethod
    def forward(grad, x, weights, mean, std, bands, *rest):  # type: ignore[no-untyped-def]
        return tuple(_backward(grad, x, weights, bands, mean, std, *rest))

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*inputs[:6])
        ctx.rest = inputs[6:]

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        needs = ctx.needs_input_grad[:5]
        return _spread(_second_backward(grads, ctx.saved_tensors, ctx.rest, needs), needs, 1 + len(ctx.rest))

    @staticmethod
    def vmap(info, in_dims, *inputs):  # type: ignore[no-untyped-def]
        needs = inputs[-1]
        if needs == (True, False, False, False) and _only_batched(in_dims, (0, 1)) and inputs[2].shape[0] == 1:
            grad, x = (
                t.movedim(d, 0) if d is not None else t.expand(info.batch_size, *t.shape)
                for t, d in zip(inputs[:2], in_dims[:2], strict=True)
            )
            dim, channel_dim = inputs[6] + 1, inputs[7]
            shifted = (dim, None if channel_dim is None else channel_dim + 1)
            return _TransformableBackward.apply(grad, x, *inputs[2:6], *shifted, *inputs[8:]), (0,)
        return torch.vmap(_backward_of_inputs, in_dims)(*inputs), (0,) * sum(needs)


def _only_batched(in_dims: Sequence[Any], positions: Sequence[int]) -> bool:
    return all(d is None for i, d in enumerate(in_dims) if i not in positions and not isinstance(d, tuple))


def _pool_of_inputs(x, weights, mean, std, bands, *rest):  # type: ignore[no-untyped-def]
    return _by_reference(x, weights, bands, mean, std, *rest)


def _backward_of_inputs(grad, x, weights, mean, std, bands, *rest):  # type: ignore[no-untyped-def]
    return reference.temporal_pool_backward(grad, x, weights, bands, mean, std, *rest)


# --- torch.library, for compilers ----------------------------------------------------------------------------------


@torch.library.custom_op("dynpool::temporal_pool", mutates_args=())
def _temporal_pool_op(
    x: Tensor,
    weights: Tensor,
    bands: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    dim: int,
    channel_dim: int | None,
    nonlinearity: str,
    out_dtype: torch.dtype,
) -> Tensor:
    return _forward(x, weights, bands, mean, std, dim, channel_dim, nonlinearity, out_dtype)


@torch.library.custom_op("dynpool::temporal_pool_backward", mutates_args=())
def _temporal_pool_backward_op(
    grad: Tensor,
    x: Tensor,
    weights: Tensor,
    bands: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    dim: int,
    channel_dim: int | None,
    nonlinearity: str,
    out_dtype: torch.dtype,
    needs: Sequence[bool],
) -> list[Tensor]:
    rest = (dim, channel_dim, nonlinearity, out_dtype, tuple(needs))
    return _backward(grad, x, weights, bands, mean, std, *rest)


@_temporal_pool_op.register_fake
def _(x, weights, bands, mean, std, dim, channel_dim, nonlinearity, out_dtype):  # type: ignore[no-untyped-def]
    return _empty_output(x, dim, weights.shape[1], out_dtype)


@_temporal_pool_backward_op.register_fake
def _(grad, x, weights, bands, mean, std, dim, channel_dim, nonlinearity, out_dtype, needs):  # type: ignore[no-untyped-def]
    dx = x.new_empty_strided(x.shape, _dense_strides(x.shape, x.stride()))
    given = (dx, *(None if t is None else torch.empty_like(t.contiguous()) for t in (weights, mean, std)))
    return [t for t, need in zip(given, needs, strict=True) if need]


def _op_setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weights, bands, mean, std, *rest = inputs
    ctx.save_for_backward(x, weights, mean, std, bands)
    ctx.rest = tuple(rest)


def _op_backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, weights, mean, std, bands = ctx.saved_tensors
    x_needs, weights_needs, _, mean_needs, std_needs = ctx.needs_input_grad[:5]
    needs = [x_needs, weights_needs, mean_needs, std_needs]
    grads = _temporal_pool_backward_op(grad, x, weights, bands, mean, std, *ctx.rest, needs)
    dx, dweights, dmean, dstd = _spread(grads, needs, 0)
    return dx, dweights, None, dmean, dstd, *(None,) * len(ctx.rest)


def _op_backward_setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    grad, x, weights, bands, mean, std, *rest = inputs
    ctx.save_for_backward(grad, x, weights, mean, std, bands)
    ctx.rest = tuple(rest)


def _op_second_backward(ctx, grads):  # type: ignore[no-untyped-def]
    grad_needs, x_needs, weights_needs, _, mean_needs, std_needs = ctx.needs_input_grad[:6]
    needs = [grad_needs, x_needs, weights_needs, mean_needs, std_needs]
    rest = (*ctx.rest[:-1], tuple(ctx.rest[-1]))
    second = _second_backward(grads, ctx.saved_tensors, rest, needs)
    dgrad, dx, dweights, dmean, dstd = _spread(second, needs, 0)
    return dgrad, dx, dweights, None, dmean, dstd, *(None,) * len(ctx.rest)


def _op_vmap(info, in_dims, x, weights, bands, mean, std, *rest):  # type: ignore[no-untyped-def]
    dims = (in_dims[0], in_dims[1], in_dims[3], in_dims[4], in_dims[2], *(None,) * len(rest))
    return torch.vmap(_pool_of_inputs, dims)(x, weights, mean, std, bands, *rest), 0


def _op_backward_vmap(info, in_dims, grad, x, weights, bands, mean, std, *rest):  # type: ignore[no-untyped-def]
    dims = (*in_dims[:3], in_dims[4], in_dims[5], in_dims[3], *(None,) * len(rest))
    grads = torch.vmap(_backward_of_inputs, dims)(grad, x, weights, mean, std, bands, *rest)
    return list(grads), [0] * len(grads)


_temporal_pool_op.register_autograd(_op_backward, setup_context=_op_setup)
_temporal_pool_backward_op.register_autograd(_op_second_backward, setup_context=_op_backward_setup)
_temporal_pool_op.register_vmap(_op_vmap)
_temporal_pool_backward_op.register_vmap(_op_backward_vmap)
