"""The operation as torch sees it: autograd, functorch and torch.library over the kernels of binary.py.

One call takes one of four ways, the cheapest that serves it:
    compiling or exporting, fake tensors  torch.library ops, which Dynamo and AOTAutograd understand
    functorch                             new-style autograd.Functions, which have rules for vmap
    a gradient is needed                  a plain autograd.Function
    else                                  the bare kernel
All of them end in `_forward` and `_backward`. Forward-mode, second derivatives, but for those that are poolings
themselves, and what no kernel fits go to reference.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, List, NamedTuple  # noqa: UP035

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from . import binary, context, reference
from .binary import DTYPE_CODES, MAX_DIMS, NONLINEARITY_CODES, Kernels, address, contiguous

# --- the call ------------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What of a call is not differentiable."""

    bands: Tensor | None  # int64 [B or 1, W, 2], or None: every row spans all frames
    dim: int
    channel_dim: int | None  # of mean and std [C]; None: they are [1]
    nonlinearity: str
    out_dtype: torch.dtype
    squeeze: bool  # drop the dimension of a single row
    overlap: int = 0  # of the rows, as `weights.Rows` has it


def temporal_pool(x: Tensor, weights: Tensor, mean: Tensor | None, std: Tensor | None, plan: Plan) -> Tensor:
    """`reference.temporal_pool` by kernels, in x's memory format; the arguments are canonical and checked."""
    bands, dim, channel_dim, nonlinearity, out_dtype, squeeze, overlap = plan
    compiling, transforming = context.is_compiling(), context.is_transforming()
    arguments = (x, weights, bands, mean, std, dim, channel_dim, nonlinearity, out_dtype)
    if (
        forward_ad._current_level >= 0  # of forward_ad or any jvp: a kernel would lose its tangents silently
        or (transforming and (compiling or context.num_modes()))  # a graph would lack what kernels do
    ):
        y = _by_reference(*arguments)
    elif transforming:
        y = _TransformablePool.apply(*arguments)
    elif compiling or isinstance(x, FakeTensor) or context.num_modes():
        y = _temporal_pool_op(*arguments, overlap)
    elif binary.kernels_for(x.device) is None or not {type(x), type(weights), type(mean), type(std)} <= binary.POOLED:
        y = _by_reference(*arguments)
    else:
        x, weights = x.resolve_neg(), weights.resolve_neg()  # kernels take memory at its word
        return _call_for(x, weights.shape, plan)(x, weights, contiguous(mean), contiguous(std))
    return y.squeeze(dim) if squeeze else y


def _by_reference(
    x: Tensor, weights: Tensor, bands: Tensor | None, mean: Any, std: Any, dim: int, *rest: Any
) -> Tensor:
    return laid_out_like(x, reference.temporal_pool(x, weights, bands, mean, std, dim, *rest))


def laid_out_like(x: Tensor, y: Tensor) -> Tensor:
    """y, dense, in x's memory format; both have the same dimensions."""
    if x.is_contiguous():
        return y.contiguous()
    order = _order(x.stride())
    return y.permute(order).contiguous().permute([order.index(d) for d in range(x.dim())])


# --- calls made before ---------------------------------------------------------------------------------------------

MOST_KEPT = 256  # before all are dropped; also in csrc/calls.h
LARGEST_KEPT = 1 << 18  # bytes of weights; larger ones are kept in kept.py alone


def finish_launches() -> bool:
    """Before what is kept is dropped: its memory goes back to the stream that made it, and others may still read it.
    False where nothing may wait, since a CUDA graph is captured.
    """
    if torch.cuda.is_initialized():
        if context.is_capturing():
            return False
        for index in range(torch.cuda.device_count()):
            if _in_use(index):
                torch.cuda.synchronize(index)
    return True


def _in_use(index: int) -> bool:
    """Whether a GPU may be: what another allocator than torch's has taken nobody tells."""
    try:
        return torch.cuda.memory_reserved(index) > 0
    except RuntimeError:
        return bool(torch._C._cuda_hasPrimaryContext(index))  # type: ignore[attr-defined]  # torch declares it nowhere


class _PythonCalls:
    """csrc/calls.h, which has the comments, for a torch that exports no table of functions."""

    def __init__(self) -> None:
        self.known: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def __len__(self) -> int:
        return len(self.known)

    def _key(self, x: Tensor, options: tuple[object, ...]) -> tuple[Any, ...]:
        return x.shape, x.stride(), x.dtype, x.device, options, tuple(map(type, options))

    def keep(self, x: Tensor, options: tuple[object, ...], *call: Any) -> None:
        if len(self.known) >= MOST_KEPT:
            self.known.clear()
        self.known[self._key(x, options)] = call

    def run(self, x: Tensor, *options: object) -> Tensor | None:
        if not context.is_direct(x) or x.layout != torch.strided or x.is_nested or x.is_neg():
            return None
        try:
            call = self.known.get(self._key(x, options))
        except TypeError:  # an option that cannot be hashed
            return None
        if call is None:
            return None
        like_y, launch, current, index, differentiable = call
        if x.requires_grad:
            y: Tensor = differentiable(x)
            return y
        y = torch.empty_like(like_y)
        launch(x.data_ptr(), y.data_ptr(), current(index))
        return y


def new_calls() -> Any:
    """Calls with constant weights and neither mean nor std, found again by the frames' layout and their options."""
    if binary.extension is None:
        return _PythonCalls()
    table = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    busy = (context.is_transforming, context.num_modes, context.is_tracing)  # and forward_ad, as `is_direct` has it
    try:
        calls = binary.extension.Calls(
            table, context.ORDINARY, busy, forward_ad, context.is_capturing, torch.empty_like
        )
    except (TypeError, ValueError):  # no table, or a newer one
        return _PythonCalls()
    calls.run = calls.run_function()
    return calls


# --- kernels on tensors --------------------------------------------------------------------------------------------


def _order(strides: Sequence[int]) -> list[int]:
    """Dimensions from the outermost to the innermost; one that was expanded is just outside of all that follow it."""
    reach = 0
    keys = [0] * len(strides)
    for d in reversed(range(len(strides))):
        keys[d] = strides[d] if strides[d] else reach
        reach = max(reach, keys[d])
    return sorted(range(len(strides)), key=lambda d: -keys[d])


def _dense_strides(sizes: Sequence[int], like: Sequence[int]) -> list[int]:
    """Strides of a dense tensor whose dimensions follow one another in memory as those of strides `like` do."""
    strides = [0] * len(sizes)
    step = 1
    for d in reversed(_order(like)):
        strides[d] = step
        step *= max(sizes[d], 1)
    return strides


def _output_layout(x: Tensor, dim: int, rows: int) -> tuple[list[int], list[int] | None]:
    """Sizes of y, W in the place of T, and strides that are dense in x's memory format; None: contiguous."""
    sizes = [*x.shape[:dim], rows, *x.shape[dim + 1 :]]
    return sizes, None if x.is_contiguous() else _dense_strides(sizes, x.stride())


def _new(like: Tensor, sizes: Sequence[int], strides: Sequence[int] | None, dtype: torch.dtype) -> Tensor:
    if strides is None and dtype == like.dtype:  # the quicker call
        return like.new_empty(sizes)
    if strides is None:
        return like.new_empty(sizes, dtype=dtype)
    return like.new_empty_strided(sizes, strides, dtype=dtype)


class Call:
    """The kernels for one layout of frames: worked out once, run as often as such frames come.

    weights [B or 1, W, K], mean, std [C] and the plan's bands are contiguous.
    """

    def __init__(self, x: Tensor, rows_shape: Sequence[int], plan: Plan, device: torch.device | None = None):
        """x may be a meta tensor that stands for frames on `device`."""
        self.plan = plan
        self.shape, self.strides, self.dtype, self.device = x.shape, x.stride(), x.dtype, device or x.device
        self.contiguous = x.is_contiguous()
        self.dx_strides = self.strides if self.contiguous else tuple(_dense_strides(self.shape, self.strides))
        self.y_sizes, self.y_strides = _output_layout(x, plan.dim, rows_shape[1])
        if plan.squeeze:
            del self.y_sizes[plan.dim]
            if self.y_strides is not None:
                del self.y_strides[plan.dim]
        self.bands = address(plan.bands)
        self.rows_shape = rows_shape
        self.layouts: dict[tuple[int, ...], Any] = {}  # by the strides of ∂L/∂y, as far as backward has met them
        self.layouts_without_x: dict[tuple[int, ...], Any] = {}
        self.run: Callable[[Tensor], Tensor] | None = None  # where weights are bound
        self.reads_pixels = plan.nonlinearity != "identity"  # to find ∂L/∂x

        y_strides = self.y_strides or _dense_strides(self.y_sizes, range(len(self.y_sizes), 0, -1))
        self.kernels = binary.kernels_for(self.device)
        self.forward_layout = self.layout(self.kernels, self.strides, y_strides, ())

    def layout(
        self, kernels: Kernels | None, x_strides: Sequence[int], y_strides: Sequence[int], dx_strides: Sequence[int]
    ) -> Any:
        """The kernels' own description of tensors of these strides; y has none for a single row that was squeezed."""
        if kernels is None:
            return None
        dim, channel_dim = self.plan.dim, self.plan.channel_dim
        return kernels.layout(
            DTYPE_CODES[self.dtype],
            self.shape,
            x_strides,
            dim,
            DTYPE_CODES[self.plan.out_dtype],
            (*y_strides[:dim], 0, *y_strides[dim:]) if self.plan.squeeze else y_strides,
            dx_strides,
            *self.rows_shape,
            self.plan.overlap,
            1 if channel_dim is None else self.shape[channel_dim],
            -1 if channel_dim is None else channel_dim,
            NONLINEARITY_CODES[self.plan.nonlinearity],
        )

    def __call__(self, x: Tensor, weights: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and (
            x.requires_grad
            or weights.requires_grad
            or (mean is not None and mean.requires_grad)
            or (std is not None and std.requires_grad)
        ):
            return _apply_pool(x, weights, mean, std, self)
        return self.forward(x, weights, mean, std)

    def forward(self, x: Tensor, weights: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
        if self.run is not None:
            return self.run(x)
        plan, kernels = self.plan, self.kernels
        if kernels is None:
            y = _by_reference(x, weights, plan.bands, mean, std, *plan[1:5])
            return y.squeeze(plan.dim) if plan.squeeze else y
        y = _new(x, self.y_sizes, self.y_strides, plan.out_dtype)
        kernels.temporal_pool(
            self.forward_layout,
            x.data_ptr(),
            weights.data_ptr(),
            self.bands,
            address(mean),
            address(std),
            y.data_ptr(),
            *kernels.where(self.device),
        )
        return y

    def keep(self, calls: Any, x: Tensor, options: tuple[object, ...], weights: Tensor) -> None:
        """Has `calls` run this one for such frames and options, with constant weights and neither mean nor std."""
        kernels, index = self.kernels, self.device.index or 0
        assert kernels is not None
        launch = kernels.bind(self.forward_layout, weights.data_ptr(), self.bands, *kernels.place(self.device))
        current = kernels.current
        with torch.inference_mode(False):  # sizes, strides and dtype of y, without memory
            like_y = _new(torch.empty(0, device=self.device), self.y_sizes, self.y_strides, self.plan.out_dtype)
            like_y.untyped_storage().resize_(0)

        def run(x: Tensor) -> Tensor:
            y = torch.empty_like(like_y)
            launch(x.data_ptr(), y.data_ptr(), current(index))
            return y

        def differentiable(x: Tensor) -> Tensor:
            return _apply_pool(x, weights, None, None, self) if torch.is_grad_enabled() else run(x)

        self.run = run
        if len(calls) >= MOST_KEPT and not finish_launches():
            return
        calls.keep(x, options, like_y, launch, current, index, differentiable)

    def backward(
        self,
        grad: Tensor,
        x: Tensor | None,
        weights: Tensor,
        mean: Tensor | None,
        std: Tensor | None,
        needs: Sequence[bool],
    ) -> list[Tensor]:
        """Gradients for those of (x, weights, mean, std) that `needs` marks; x None where its pixels do not matter."""
        plan, kernels, grad = self.plan, self.kernels, grad.resolve_neg()
        if kernels is None:
            x = self.zeros() if x is None else x
            grad = grad.unsqueeze(plan.dim) if plan.squeeze else grad
            rest = (*plan[1:5], tuple(needs[:4]))
            found = reference.temporal_pool_backward(grad, x, weights, plan.bands, mean, std, *rest)
            grads = [t.contiguous() for t in found]
            if needs[0] and not self.contiguous:
                grads[0] = _new(grads[0], self.shape, self.dx_strides, self.dtype).copy_(grads[0])
            return grads
        strides = grad.stride()
        if 0 in strides or len(strides) >= MAX_DIMS:  # expanded, as that of y.sum(): no kernel walks it quickly
            grad = grad.contiguous()
            strides = grad.stride()
        layouts = self.layouts_without_x if x is None else self.layouts
        if (layout := layouts.get(strides)) is None:
            layout = self.layout(kernels, self.dx_strides if x is None else self.strides, strides, self.dx_strides)
            if len(layouts) < 8:
                layouts[strides] = layout
        dx = _new(grad, self.shape, None if self.contiguous else self.dx_strides, self.dtype) if needs[0] else None
        dweights = torch.empty_like(weights) if needs[1] else None
        dmean = torch.empty_like(mean) if needs[2] and mean is not None else None
        dstd = torch.empty_like(std) if needs[3] and std is not None else None
        kernels.temporal_pool_backward(
            layout,
            address(x),
            weights.data_ptr(),
            self.bands,
            address(mean),
            address(std),
            grad.data_ptr(),
            address(dx),
            address(dweights),
            address(dmean),
            address(dstd),
            *kernels.where(self.device),
        )
        return [t for t in (dx, dweights, dmean, dstd) if t is not None]

    def zeros(self) -> Tensor:
        """Frames whose pixels do not matter."""
        return torch.zeros((), dtype=self.dtype, device=self.device).expand(self.shape)


_known: dict[tuple[Any, ...], Call] = {}


def _call_for(x: Tensor, rows_shape: Sequence[int], plan: Plan) -> Call:
    """One that was worked out before, if the rows have no bands, which are memory of their own."""
    if plan.bands is not None:
        return Call(x, rows_shape, plan)
    key = (x.shape, x.stride(), x.dtype, x.device, rows_shape, plan, id(binary.kernels_for(x.device)))
    call = _known.get(key)
    if call is None:
        if len(_known) >= MOST_KEPT:
            _known.clear()
        call = _known[key] = Call(x, rows_shape, plan)
    return call


def _forward(x, weights, bands, mean, std, dim, channel_dim, nonlinearity, out_dtype, overlap=0):  # type: ignore[no-untyped-def]
    """Arguments as `reference` and the library ops have them."""
    x, weights, mean, std = _readable(x), contiguous(weights), contiguous(mean), contiguous(std)
    plan = Plan(contiguous(bands), dim, channel_dim, nonlinearity, out_dtype, False, overlap)
    return Call(x, weights.shape, plan).forward(x, weights, mean, std)


def _backward(grad, x, weights, bands, mean, std, dim, channel_dim, nonlinearity, out_dtype, needs):  # type: ignore[no-untyped-def]
    x, weights, mean, std = _readable(x), contiguous(weights), contiguous(mean), contiguous(std)
    plan = Plan(contiguous(bands), dim, channel_dim, nonlinearity, out_dtype, False)
    return Call(x, weights.shape, plan).backward(grad, x, weights, mean, std, needs)


def _readable(x: Tensor) -> Tensor:
    """x as kernels can take it: one that vmap gave a further dimension may have too many."""
    return (x.contiguous() if x.dim() > MAX_DIMS else x).resolve_neg()


# --- autograd ------------------------------------------------------------------------------------------------------


def _spread(grads: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Gradients in the places of the inputs that need one, None in the others."""
    following = iter(grads)
    return tuple([next(following) if need else None for need in needs])


class _Pool(torch.autograd.Function):
    """The plain eager case. Keeps of x only what backward reads, and constant weights outside of autograd's books."""

    @staticmethod
    def forward(ctx, x, weights, mean, std, call):  # type: ignore[no-untyped-def]
        ctx.call = call
        ctx.weights = None
        if not call.reads_pixels and True not in ctx.needs_input_grad[1:]:
            if mean is None and std is None:
                ctx.weights, ctx.version = weights, _version_of(weights)
            else:
                ctx.save_for_backward(None, weights, mean, std)
        else:
            ctx.save_for_backward(x, weights, mean, std)
        return call.forward(x, weights, mean, std)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        call, needs = ctx.call, ctx.needs_input_grad
        x = mean = std = None
        weights = ctx.weights
        if weights is None:
            x, weights, mean, std = ctx.saved_tensors
        elif _version_of(weights) != ctx.version:
            raise RuntimeError("weights were changed in place, between the pooling and its gradient, which needs them")
        if torch.is_grad_enabled() or is_traced(grad):  # a second derivative may be wanted
            bands, dim, *rest, squeeze, _ = call.plan
            grad = grad.unsqueeze(dim) if squeeze else grad
            x = call.zeros() if x is None else x
            grads = _differentiable_backward(grad, x, weights, bands, mean, std, dim, *rest, needs[:4])
        else:
            grads = call.backward(grad, x, weights, mean, std, needs)
            if len(grads) == 1 and needs[0]:  # the usual case, quickly
                return grads[0], None, None, None, None
        return _spread(grads, needs)


def _version_of(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version


# Function.apply without its looking for functorch, which `temporal_pool` and the calls made before have ruled out.
_apply_pool = super(torch.autograd.Function, _Pool).apply


def is_traced(grad: Tensor) -> bool:
    """Whether a gradient is more than numbers: a tangent, or vectors batched by vmap, or `is_grads_batched=True`."""
    return (
        forward_ad._current_level >= 0
        or type(grad) not in context.ORDINARY
        or context.is_batched(grad)
        or torch._C._functorch.is_legacy_batchedtensor(grad)
    )


def weights_gradient(
    grad: Tensor, x: Tensor, weights: Tensor, mean: Tensor | None, std: Tensor | None, plan: Plan
) -> Tensor:
    """∂L/∂weights of plain tensors for grad = ∂L/∂y: ⟨ψ(x_t), grad⟩ of each row. Not differentiable."""
    needs = (False, True, False, False)
    if binary.kernels_for(x.device) is None or not {type(x), type(mean), type(std)} <= binary.POOLED:
        grad = grad.unsqueeze(plan.dim) if plan.squeeze else grad
        with torch.inference_mode(False):
            grad, x, weights, bands, mean, std = map(_for_autograd, (grad, x, weights, plan.bands, mean, std))
            return reference.temporal_pool_backward(grad, x, weights, bands, mean, std, *plan[1:5], needs)[0]
    x = _readable(x)
    call = _call_for(x, weights.shape, plan)
    return call.backward(grad, x, weights, contiguous(mean), contiguous(std), needs)[0]


def _for_autograd(t: Any) -> Any:
    """A tensor, or None, as it is, unless it was made in inference mode."""
    return t.clone() if t is not None and t.is_inference() else t


def _differentiable_backward(grad, *inputs):  # type: ignore[no-untyped-def]
    if is_traced(grad):
        return reference.temporal_pool_backward(grad, *inputs)
    if context.is_transforming():
        return _TransformableBackward.apply(grad, *inputs)
    return _PoolBackward.apply(grad, *inputs)


class _PoolBackward(torch.autograd.Function):
    """First derivatives by kernels, higher ones by reference.py."""

    @staticmethod
    def forward(ctx, *inputs):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*inputs[:6])
        ctx.rest = inputs[6:]
        return tuple(_backward(*inputs))

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        needs = ctx.needs_input_grad
        return _spread(_second_backward(grads, ctx.saved_tensors, ctx.rest, needs), needs)


def _second_backward(
    grads: Sequence[Tensor], saved: Sequence[Any], rest: tuple[Any, ...], needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of `_backward` for those of (grad, x, weights, bands, mean, std) that `needs` marks."""
    grad, _, weights, bands, _, std = saved
    dim, channel_dim, nonlinearity, _, outputs = rest
    others = needs[2] or needs[5] or is_traced(grads[0])
    if nonlinearity == "identity" and tuple(outputs) == (True, False, False, False) and not others:
        # ∂L/∂x is linear in grad, whatever x and mean are: frames are pooled that come back.
        plan = Plan(bands, dim, channel_dim, nonlinearity, grad.dtype, squeeze=False)
        return (*((temporal_pool(grads[0], weights, None, std, plan),) if needs[0] else ()), *[None] * sum(needs[1:]))
    wanted = [i for i in range(len(saved)) if needs[i]]

    def first(*values: Tensor) -> tuple[Tensor, ...]:
        given: list[Any] = list(saved)
        for i, value in zip(wanted, values, strict=True):
            given[i] = value
        return reference.temporal_pool_backward(*given, *rest)

    _, pull_back, *_ = torch.func.vjp(first, *(saved[i] for i in wanted))
    return pull_back(tuple(grads))


# --- functorch ------------------------------------------------------------------------------------


class _TransformablePool(torch.autograd.Function):
    """As _Pool, with a rule for vmap."""

    @staticmethod
    def forward(*inputs):  # type: ignore[no-untyped-def]
        return _forward(*inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*inputs[:5])
        ctx.rest = inputs[5:]

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        needs = ctx.needs_input_grad
        return _spread(_differentiable_backward(grad, *ctx.saved_tensors, *ctx.rest, _without_bands(needs)), needs)

    @staticmethod
    def vmap(info, in_dims, *inputs):  # type: ignore[no-untyped-def]
        return _pool_of_batch(_TransformablePool.apply, info, in_dims, inputs), 0


class _TransformableBackward(torch.autograd.Function):
    """As _PoolBackward, with a rule for vmap."""

    @staticmethod
    def forward(*inputs):  # type: ignore[no-untyped-def]
        return tuple(_backward(*inputs))

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*inputs[:6])
        ctx.rest = inputs[6:]

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        needs = ctx.needs_input_grad
        return _spread(_second_backward(grads, ctx.saved_tensors, ctx.rest, needs), needs)

    @staticmethod
    def vmap(info, in_dims, *inputs):  # type: ignore[no-untyped-def]
        grads = _backward_of_batch(_TransformableBackward.apply, info, in_dims, inputs)
        return tuple(grads), (0,) * len(grads)


def _as_one_call(
    info: Any, in_dims: Sequence[Any], inputs: Sequence[Any], frames: int, needs: Sequence[bool] = ()
) -> tuple[tuple[Any, ...], int | None] | None:
    """A batch of calls of `frames` tensors of frames (x, or ∂L/∂y and x), weights, bands, mean, std, dim, … as one.

    Clips that share their weights get one more dimension, the batch. Clips with weights of their own become more
    clips: so many a call are returned beside the inputs. None where mean or std are batched or their gradients needed,
    which are sums over a call, or where that would copy x; and where there are no calls.
    """
    mapped = [isinstance(d, int) for d in in_dims[: frames + 4]]
    if True in mapped[frames + 2 :] or True in needs[2:] or not info.batch_size:
        return None
    given: list[Any] = [
        t if t is None else t.movedim(d, 0) if d is not None else t.expand(info.batch_size, *t.shape)
        for t, d in zip(inputs[: frames + 2], in_dims, strict=False)
    ]
    clips = given[frames].shape[1]
    if clips == 1:
        rows = inputs[frames : frames + 2]
        if True in (*mapped[frames : frames + 2], *needs[1:2]):
            rows = [None if t is None else t.squeeze(1) for t in given[frames:]]
        mean, std, dim, channel_dim, *rest = inputs[frames + 2 :]
        channel_dim = None if channel_dim is None else channel_dim + 1
        return (*given[:frames], *rows, mean, std, dim + 1, channel_dim, *rest), None
    x, channel_dim = given[frames - 1], inputs[frames + 5]
    if channel_dim == 0 or x.stride(0) != x.shape[1] * x.stride(1):  # mean and std vary along the clips; a copy
        return None
    return (*(None if t is None else t.flatten(0, 1) for t in given), *inputs[frames + 2 :]), clips


def _apart(results: Sequence[Tensor], info: Any, clips: int | None, needs: Sequence[bool] = ()) -> list[Tensor]:
    """Results of `_as_one_call`, y or the needed gradients, with the batch in front."""
    if clips is not None:
        return [t.unflatten(0, (info.batch_size, clips)) for t in results]
    return [*results[:-1], results[-1].unsqueeze(1)] if True in needs[1:2] else list(results)


def _pool_of_batch(apply: Callable[..., Any], info: Any, in_dims: Sequence[Any], inputs: Sequence[Any]) -> Tensor:
    x, weights, bands, mean, std, dim, *rest = inputs
    if info.batch_size and tuple(in_dims[i] for i in (0, 3, 4)) == (None, None, None):  # more rows of the same frames
        rows: list[Any] = [
            t if t is None else t.movedim(d, 1) if d is not None else t[:, None].expand(-1, info.batch_size, -1, -1)
            for t, d in zip((weights, bands), in_dims[1:3], strict=True)
        ]
        flat = [None if t is None else t.flatten(1, 2) for t in rows]
        y: Tensor = apply(x, *flat, mean, std, dim, *rest[:3])  # without overlap: there are windows of several calls
        return y.unflatten(dim, rows[0].shape[1:3]).movedim(dim, 0).contiguous()
    if (one := _as_one_call(info, in_dims, inputs, 1)) is not None:
        return _apart([apply(*one[0])], info, one[1])[0]
    return _stacked([apply(*call) for call in _calls_of_batch(info, in_dims, inputs)], info)


def _backward_of_batch(
    apply: Callable[..., Any], info: Any, in_dims: Sequence[Any], inputs: Sequence[Any]
) -> list[Tensor]:
    needs = inputs[-1]
    if (one := _as_one_call(info, in_dims, inputs, 2, needs)) is not None:
        return _apart(apply(*one[0]), info, one[1], needs)
    grads = [apply(*call) for call in _calls_of_batch(info, in_dims, inputs)]
    return [_stacked(each, info) for each in zip(*grads, strict=True)]


def _stacked(results: Sequence[Tensor], info: Any) -> Tensor:
    return torch.stack(tuple(results))[: info.batch_size]


def _calls_of_batch(info: Any, in_dims: Sequence[Any], inputs: Sequence[Any]) -> list[list[Any]]:
    """One by one, since torch knows no vmap within such a rule; of an empty batch one, for the shapes of results."""
    batched = [isinstance(d, int) for d in in_dims]
    if not info.batch_size:
        return [[t.sum(d, dtype=t.dtype) if b else t for t, d, b in zip(inputs, in_dims, batched, strict=True)]]
    return [
        [t.select(d, i) if b else t for t, d, b in zip(inputs, in_dims, batched, strict=True)]
        for i in range(info.batch_size)
    ]


def _without_bands(needs: Sequence[bool]) -> tuple[bool, ...]:
    """Of (x, weights, mean, std)."""
    return (*needs[:2], *needs[3:5])


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
    overlap: int = 0,
) -> Tensor:
    return _forward(x, weights, bands, mean, std, dim, channel_dim, nonlinearity, out_dtype, overlap)


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
) -> List[Tensor]:  # noqa: UP006, torch 2.6 knows no schema for list
    return _backward(grad, x, weights, bands, mean, std, dim, channel_dim, nonlinearity, out_dtype, needs)


@torch.library.custom_op("dynpool::temporal_pool_transposed", mutates_args=())
def _temporal_pool_transposed_op(
    grad: Tensor,
    weights: Tensor,
    bands: Tensor | None,
    std: Tensor | None,
    sizes: Sequence[int],
    strides: Sequence[int],
    dtype: torch.dtype,
    dim: int,
    channel_dim: int | None,
) -> Tensor:
    """∂L/∂x for ψ = identity, whatever x is, of these sizes and (dense) strides: Σ_w A[b, w, t] ∂L/∂y[b, w] / std."""
    weights, std, bands = weights.contiguous(), contiguous(std), contiguous(bands)
    x = torch.empty_strided(sizes, strides, dtype=dtype, device="meta")
    call = Call(x, weights.shape, Plan(bands, dim, channel_dim, "identity", grad.dtype, False), grad.device)
    return call.backward(grad, None, weights, None, std, (True, False, False, False))[0]


@_temporal_pool_op.register_fake
def _(x, weights, bands, mean, std, dim, channel_dim, nonlinearity, out_dtype, overlap=0):  # type: ignore[no-untyped-def]
    return _new(x, *_output_layout(x, dim, weights.shape[1]), out_dtype)


@_temporal_pool_backward_op.register_fake
def _(grad, x, weights, bands, mean, std, dim, channel_dim, nonlinearity, out_dtype, needs):  # type: ignore[no-untyped-def]
    dx = x.new_empty_strided(x.shape, _dense_strides(x.shape, x.stride()))
    given = (dx, *(None if t is None else torch.empty_like(t.contiguous()) for t in (weights, mean, std)))
    return [t for t, need in zip(given, needs, strict=True) if need]


@_temporal_pool_transposed_op.register_fake
def _(grad, weights, bands, std, sizes, strides, dtype, dim, channel_dim):  # type: ignore[no-untyped-def]
    return grad.new_empty_strided(sizes, strides, dtype=dtype)


def _op_setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weights, bands, _, std, dim, channel_dim, nonlinearity, *_ = inputs
    ctx.frames = None
    if nonlinearity == "identity" and True not in ctx.needs_input_grad[1:]:  # a compiler keeps what backward is given
        ctx.save_for_backward(weights, bands, std)
        ctx.frames = (list(x.shape), _dense_strides(x.shape, x.stride()), x.dtype, dim, channel_dim)
    else:
        ctx.save_for_backward(*inputs[:5])
        ctx.rest = inputs[5:-1]  # not overlap


def _op_backward(ctx, grad):  # type: ignore[no-untyped-def]
    needs = ctx.needs_input_grad
    if ctx.frames is not None:
        grads = [_temporal_pool_transposed_op(grad, *ctx.saved_tensors, *ctx.frames)]
    else:
        grads = _temporal_pool_backward_op(grad, *ctx.saved_tensors, *ctx.rest, list(_without_bands(needs)))
    return _spread(grads, needs)


def _op_transposed_setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    grad, weights, bands, std, *_, dim, channel_dim = inputs
    ctx.save_for_backward(grad, weights, bands, std)
    ctx.rest = (dim, channel_dim, "identity", grad.dtype)


def _op_transposed_backward(ctx, of_dx):  # type: ignore[no-untyped-def]
    needs = ctx.needs_input_grad
    grad, weights, bands, std = ctx.saved_tensors
    saved, outputs = (grad, of_dx, weights, bands, None, std), (True, False, False, False)
    wanted = (needs[0], False, *needs[1:3], False, needs[3])
    found = _spread(_second_backward((of_dx,), saved, (*ctx.rest, outputs), wanted), wanted)
    return found[0], *found[2:4], found[5], *[None] * (len(needs) - 4)


def _op_backward_setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:6])
    ctx.rest = (*inputs[6:-1], tuple(inputs[-1]))


def _op_second_backward(ctx, grads):  # type: ignore[no-untyped-def]
    needs = ctx.needs_input_grad
    return _spread(_second_backward(grads, ctx.saved_tensors, ctx.rest, needs), needs)


def _op_vmap(info, in_dims, *inputs):  # type: ignore[no-untyped-def]
    return _pool_of_batch(_temporal_pool_op, info, in_dims, inputs), 0


def _op_backward_vmap(info, in_dims, *inputs):  # type: ignore[no-untyped-def]
    grads = _backward_of_batch(_temporal_pool_backward_op, info, in_dims, inputs)
    return grads, [0] * len(grads)


def _op_transposed_vmap(info, in_dims, grad, weights, bands, std, sizes, strides, dtype, dim, channel_dim):  # type: ignore[no-untyped-def]
    inputs = (grad, weights, bands, None, std, dim, channel_dim)
    one = _as_one_call(info, (*in_dims[:3], None, in_dims[3]), inputs, 1)
    if one is None:
        calls = _calls_of_batch(info, in_dims, (grad, weights, bands, std, sizes, strides, dtype, dim, channel_dim))
        return _stacked([_temporal_pool_transposed_op(*call) for call in calls], info), 0
    (grad, weights, bands, _, std, dim, channel_dim), clips = one
    if clips is None:
        sizes, strides = [info.batch_size, *sizes], [math.prod(sizes), *strides]
    else:
        sizes = [info.batch_size * clips, *sizes[1:]]
    dx = _temporal_pool_transposed_op(
        grad, weights, bands, std, sizes, _dense_strides(sizes, strides), dtype, dim, channel_dim
    )
    return _apart([dx], info, clips)[0], 0


_temporal_pool_op.register_autograd(_op_backward, setup_context=_op_setup)
_temporal_pool_backward_op.register_autograd(_op_second_backward, setup_context=_op_backward_setup)
_temporal_pool_transposed_op.register_autograd(_op_transposed_backward, setup_context=_op_transposed_setup)
_temporal_pool_op.register_vmap(_op_vmap)
_temporal_pool_backward_op.register_vmap(_op_backward_vmap)
_temporal_pool_transposed_op.register_vmap(_op_transposed_vmap)
