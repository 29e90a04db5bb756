"""Exact rank pooling, eq. (1): the frames' Gram matrix (gram.py), a problem in T dimensions (solve.py), a weighted sum.

Memory is that of the frames, the result, one tile and T² numbers a clip, whatever the resolution; so is that of the
gradient, which follows from the optimality conditions instead of from the solver's steps.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Literal, ParamSpec, TypedDict, TypeVar, get_args, overload

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from . import context, ops, solve
from .certificate import Problem, Roundings, kinds_of
from .checks import (
    INPUT_DTYPES,
    Counts,
    Nonlinearity,
    PerChannel,
    as_float,
    canonical_normalization,
    check_dense,
    check_flags,
    check_frames,
    check_same_device,
    checked_lengths,
    choice,
    positive_int,
)
from .gram import gram
from .pooling import plan_of, pool_as
from .reference import accumulate_dtype

if TYPE_CHECKING:
    from typing_extensions import Unpack

P = ParamSpec("P")
R = TypeVar("R")
Objective = Literal["ranksvm", "ranksvm_squared", "svr"]
OBJECTIVES = get_args(Objective)
_PAIRS = 1 << 24  # of frames that are compared at a time
_GRADIENT_TOL = 1e-8  # derivatives hold at the optimum; near it they are near


@dataclass(frozen=True)
class RankPoolInfo:
    """What `rank_pool(…, return_info=True)` knows of its solution; [B, …], or without B for a single clip.

    `objective` is that of the problem solved, `duality_gap` a bound on how far it lies above the minimum, both float64
    [B]; `iterations` of the solver, int64 [B]; `scores` S(t|d) = ⟨d, V_t⟩, float64 [B, T], but for
    a constant that roundings of d may add to all of a clip; `weights`, with which the frames were summed,
    d = Σ_t weights_t ψ(I_t), float64 [B, T], but for what that sum rounds: where its terms cancel, as those of more
    frames than values, d may have few digits of it. Both are 0 past a clip's end.
    """

    objective: Tensor
    duality_gap: Tensor
    iterations: Tensor
    scores: Tensor
    weights: Tensor


def _around_dynamo(function: Callable[P, R]) -> Callable[P, R]:
    """The function, called as it is in the middle of a compiled program: what Dynamo makes of it is slow, anew for each
    T, and solved less well.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if context.is_compiling():
            function_itself: Callable[P, R] = torch.compiler.disable(function)
            return function_itself(*args, **kwargs)
        return function(*args, **kwargs)

    return call


class _Keywords(TypedDict, total=False):
    objective: Objective
    C: float
    epsilon: float
    time_average: bool
    nonlinearity: Nonlinearity
    mean: PerChannel | None
    std: PerChannel | None
    channel_dim: int | None
    lengths: Counts | None
    tol: float
    max_iter: int
    out_dtype: torch.dtype | None


@overload
def rank_pool(
    x: Tensor, dim: int = 1, *, return_info: Literal[False] = False, **keywords: Unpack[_Keywords]
) -> Tensor: ...
@overload
def rank_pool(
    x: Tensor, dim: int = 1, *, return_info: Literal[True], **keywords: Unpack[_Keywords]
) -> tuple[Tensor, RankPoolInfo]: ...
@overload
def rank_pool(
    x: Tensor, dim: int = 1, *, return_info: bool, **keywords: Unpack[_Keywords]
) -> Tensor | tuple[Tensor, RankPoolInfo]: ...
@_around_dynamo
def rank_pool(
    x: Tensor,
    dim: int = 1,
    *,
    objective: Objective = "ranksvm",
    C: float = 1.0,
    epsilon: float = 0.1,
    time_average: bool = True,
    nonlinearity: Nonlinearity = "identity",
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    channel_dim: int | None = None,
    lengths: Counts | None = None,
    tol: float = 1e-3,
    max_iter: int = 1000,
    out_dtype: torch.dtype | None = None,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, RankPoolInfo]:
    """Exact rank pooling, eq. (1) of Bilen et al. 2016: the d that ranks the frames of a clip by S(t|d) = ⟨d, V_t⟩.

    V_t are the running means of the frames ψ(I_1) … ψ(I_t), or, with time_average=False, the frames; no intercept.

    Args:
        x: frames [B, T, ...] with T at `dim`; the clips stand in dimension 0, unless dim = 0: then x is one clip.
        objective: what d minimises:
            "ranksvm"          ½‖d‖² + C·2/(T(T-1)) Σ_{q>t} max(0, 1 - ⟨d,V_q⟩ + ⟨d,V_t⟩)     eq. (1), λ = 1/C
            "ranksvm_squared"  the same with the hinge squared
            "svr"              ½‖d‖² + C Σ_t max(0, |t - ⟨d,V_t⟩| - epsilon)², t = 1 … T        liblinear -s 11
        C, epsilon: positive; at least 0.
        time_average, nonlinearity, mean, std, channel_dim, out_dtype: as in `approx_rank_pool`.
        lengths: [B], for padded clips: ranks the first lengths[b] frames of clip b.
        tol: the solver stops at a duality gap of tol · objective.
        max_iter: and, with a warning, after so many iterations (usually 10 to 50 are needed).
        return_info: returns (d, RankPoolInfo).

    Returns:
        d, x without `dim`. One frame, or frames that are all alike, give zeros, since there is nothing to rank; under
        "svr", whose targets are numbers, a multiple of the frame.

    Frames are multiplied and summed in float32, float64 ones in float64. Under "ranksvm" d, its weights and its scores
    are enlarged by what roundings may take from a margin: some millionths, and at most tol / 4. Where they might count
    for more, the objective of d and its gap are computed anew, and a clip whose d misses `tol`, as by weights that are
    large and cancel ("svr" of videos, a large C, more frames than values), is solved again in float64, in some times
    the time, and eight bytes a value. At last d is rounded to its dtype, which nothing here tells of: it may count at a
    large C, and in float16 and bfloat16 at any (`out_dtype=torch.float32`).

    Differentiable once for x, mean and std, by implicit differentiation: exact where the active pairs (frames) stay
    the same in a neighbourhood, one of the subgradients elsewhere. With a gradient the solver goes to a gap of 1e-8,
    and clips are solved again in float64 where roundings leave one of more than 1e-6.

    `torch.compile` runs it as it is, between two graphs, so not with `fullgraph=True`.

    Example:
        >>> x = torch.tensor([[3.0, 0.0], [2.0, 1.0], [1.0, 4.0]])  # three frames of two values
        >>> d, info = rank_pool(x, dim=0, return_info=True)
        >>> bool(info.duality_gap <= 1e-3 * info.objective)
        True
        >>> ranking_accuracy(d, x, dim=0)
        tensor(1., dtype=torch.float64)

    Raises:
        TypeError, ValueError: an argument does not fit; the message names argument, value and what is allowed. Also
            where x or products of its frames are not finite, or d would not be (of a narrower out_dtype it may be
            rounded to infinity).
        RuntimeError: x has no values to solve for: torch.func, torch.export, meta tensors, the capture of a CUDA graph;
            or a derivative in forward mode is asked for.
    """
    dim = check_frames(x, dim)
    if any(context.has_tangent(value) for value in (x, mean, std)):
        raise RuntimeError("rank_pool has no derivative in forward mode: torch.autograd has its gradient")
    _check_values("rank_pool solves by steps that depend on the values of x", x)
    check_problem(objective, C, epsilon, tol, max_iter)
    check_flags(time_average=time_average, return_info=return_info)
    if dim == 0 and lengths is not None:
        raise ValueError("lengths need the clips in dimension 0 of x and the frames after it, got dim = 0")
    num_frames = x.shape[dim]
    batch = 1 if dim == 0 else x.shape[0]
    counts = None if lengths is None else checked_lengths(lengths, batch, num_frames, None).to(x.device)
    mean, std, channel_dim = canonical_normalization(x, dim, mean, std, channel_dim)
    plan = plan_of(x, None, dim, channel_dim, nonlinearity, out_dtype, keep_rows=False)

    derives = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, mean, std))
    frames = _Frames(plan, counts, time_average)
    problem = Problem(objective, float(C), float(epsilon), float(tol), int(max_iter), derives)
    d, imprecise, *fields = _RankPool.apply(x, mean, std, frames, problem)
    if bool(imprecise.any()):
        d, fields = _solved_again(imprecise, d, fields, x, mean, std, frames, problem)
    *fields, solved = fields  # the last: the solver's own gap, of its objective
    info = RankPoolInfo(*fields)
    limit = problem.limit
    missed = (solved > limit) | (info.duality_gap > problem.tol * info.objective)
    if bool(missed.any()):
        worst = float(torch.maximum(solved, info.duality_gap / info.objective)[missed].max())
        warnings.warn(
            f"rank_pool: {int(missed.sum())} of {batch} clips did not reach tol = {limit:g} in "
            f"{int(info.iterations[missed].max())} iterations; relative duality gap {worst:.1e}",
            RuntimeWarning,
            stacklevel=3,  # this, what @_around_dynamo made of it, and the caller
        )
    if not return_info:
        return d
    return d, RankPoolInfo(*(t[0] for t in fields)) if dim == 0 else info


def check_problem(objective: str, C: float, epsilon: float, tol: float, max_iter: int) -> None:
    """Raises TypeError or ValueError for arguments that `rank_pool` refuses whatever x is."""
    choice("objective", objective, OBJECTIVES)
    for name, value, least in (("C", C, 0), ("epsilon", epsilon, None), ("tol", tol, 0)):
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, got {value!r}")
        number = as_float(value)
        if not math.isfinite(number) or number < 0 or number == least:
            raise ValueError(f"{name} must be finite and {'positive' if least == 0 else 'at least 0'}, got {number}")
    positive_int("max_iter", max_iter)


def _check_values(why: str, x: Tensor) -> None:
    """Raises RuntimeError, for this reason, where x has no values that can be looked at."""
    if context.is_transforming():
        cannot = "be transformed by torch.func; it takes batches, and torch.autograd the gradient of rank_pool"
    elif x.is_meta or isinstance(x, FakeTensor) or context.is_recording():
        cannot = "be exported or traced, and needs tensors that have values"
    elif context.is_captured(x):
        cannot = "be captured in a CUDA graph"
    else:
        return
    raise RuntimeError(f"{why}: it cannot {cannot}")


def _solved_again(
    imprecise: Tensor,
    d: Tensor,
    info: list[Tensor],
    x: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    frames: _Frames,
    problem: Problem,
) -> tuple[Tensor, list[Tensor]]:
    """The solutions, those of imprecise clips from float64 frames."""
    mean, std = (t if t is None else t.double() for t in (mean, std))
    if frames.plan.dim == 0:
        d, _, *info = _RankPool.apply(x.double(), mean, std, frames, problem)
        return d, info
    for clip in imprecise.nonzero()[:, 0].tolist():
        part = slice(clip, clip + 1)
        own = frames if frames.lengths is None else replace(frames, lengths=frames.lengths[part])
        d_clip, _, *info_clip = _RankPool.apply(x[part].double(), mean, std, own, problem)
        place = torch.tensor([clip], device=x.device)
        d = ops.laid_out_like(d, d.index_copy(0, place, d_clip))
        info = [t.index_copy(0, place, t_clip) for t, t_clip in zip(info, info_clip, strict=True)]
    return d, info


@_around_dynamo
def ranking_accuracy(
    d: Tensor,
    x: Tensor,
    dim: int = 1,
    *,
    time_average: bool = True,
    nonlinearity: Nonlinearity = "identity",
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    channel_dim: int | None = None,
    lengths: Counts | None = None,
) -> Tensor:
    """How well d ranks the frames of x: the fraction of pairs q > t with S(q|d) > S(t|d), as in the paper's Table 2.

    Args:
        d: pooled, the shape of x without `dim`; of these or of other frames of the same size.
        others: as in `rank_pool`.

    Returns:
        float64 [B], or a scalar where dim = 0; NaN for a clip of one frame, which has no pairs.

    Example:
        >>> x = torch.tensor([[1.0], [3.0], [2.0]])  # three frames of one value, the last two out of order
        >>> ranking_accuracy(torch.tensor([1.0]), x, dim=0, time_average=False)
        tensor(0.6667, dtype=torch.float64)

    Raises:
        TypeError, ValueError: an argument does not fit; the message names argument, value and what is allowed.
        RuntimeError: x has no values to compare: torch.func, torch.export, meta tensors, the capture of a CUDA graph.
    """
    dim = check_frames(x, dim)
    _check_values("ranking_accuracy compares values", x)
    check_flags(time_average=time_average)
    if isinstance(d, Tensor):
        check_dense("d", d)
    if isinstance(d, Tensor) and d.dtype not in INPUT_DTYPES:
        raise TypeError(f"d must have one of the dtypes {INPUT_DTYPES}, got {d.dtype}")
    if not isinstance(d, Tensor) or d.shape != x.select(dim, 0).shape:
        raise ValueError(
            f"d must have the shape of x without dimension {dim}, {list(x.select(dim, 0).shape)}, "
            f"got {list(d.shape) if isinstance(d, Tensor) else type(d).__name__}"
        )
    check_same_device("d", d, x)
    batch, num_frames = 1 if dim == 0 else x.shape[0], x.shape[dim]
    counts = None if lengths is None else checked_lengths(lengths, batch, num_frames, None).to(x.device)
    mean, std, channel_dim = canonical_normalization(x, dim, mean, std, channel_dim)
    plan = plan_of(x, None, dim, channel_dim, nonlinearity, None, keep_rows=False)
    frames = _Frames(plan, counts, time_average)
    products = frames.products(
        x.detach(), _unit(d.detach(), batch), *(t if t is None else t.detach() for t in (mean, std))
    )
    if not bool(products.isfinite().all()):
        raise ValueError("d and x must be finite and their products within float64, got NaN or infinity")
    # Of frames that are equal, so are the scores, without roundings; so are sums of whole numbers.
    scores = frames.means(products - products[:, :1])
    t = torch.arange(num_frames, device=x.device)
    counts = torch.full((batch,), num_frames, device=x.device) if counts is None else counts
    right = torch.zeros(batch, dtype=torch.int64, device=x.device)
    for later in t.split(max(1, _PAIRS // max(1, batch * num_frames))):
        pairs = (later[:, None] > t) & (later[:, None] < counts[:, None, None])
        right += ((scores[:, later, None] > scores[:, None]) & pairs).sum((1, 2))
    accuracy = right.double() / (counts * (counts - 1) // 2)
    return accuracy[0] if dim == 0 else accuracy


def _unit(d: Tensor, batch: int) -> Tensor:
    """d of each clip, scaled to a largest value of 1 to 2: its size has no say, and might not fit the frames' dtype."""
    if not d.numel():
        return d
    largest = d.reshape(batch, -1).abs().amax(1).double()
    exponent = largest.where((largest > 0) & largest.isfinite(), 1).frexp().exponent
    scale = torch.ldexp(torch.ones_like(largest), exponent - 1)  # which rounds nothing
    return d.double() / scale.view([batch, *[1] * (d.dim() - 1)] if batch > 1 else [])


@dataclass(frozen=True)
class _Frames:
    """How the frames of clips become ψ(I_t) and V_t, and sums and products of them."""

    plan: ops.Plan
    lengths: Tensor | None
    time_average: bool

    def pool(self, x: Tensor, weights: Tensor, mean: Tensor | None, std: Tensor | None, rows: bool = False) -> Tensor:
        """Σ_t weights[b, w, t] ψ(x[b, t]) in Acc, W in the place of T, or nowhere."""
        return pool_as(x, weights, mean, std, self._plan_of(x, weights.shape[1], rows))

    def _plan_of(self, x: Tensor, num_rows: int, rows: bool) -> ops.Plan:
        bands = None
        if self.lengths is not None:  # what lies beyond a clip's end is not read
            bands = torch.stack([torch.zeros_like(self.lengths), self.lengths], -1)[:, None]
            bands = bands.expand(-1, num_rows, -1).contiguous()
        return self.plan._replace(bands=bands, out_dtype=accumulate_dtype(x.dtype), squeeze=not rows)

    def sum(self, x: Tensor, weights: Tensor, mean: Tensor | None, std: Tensor | None, finely: bool) -> Tensor:
        """Σ_t weights[b, t] ψ(x[b, t]) in Acc, of float64 weights; finely, with what rounding takes from them."""
        if not finely:
            return self.pool(x, weights[:, None], mean, std)
        rounded = weights.to(accumulate_dtype(x.dtype))
        rows = torch.stack([rounded, (weights - rounded).to(rounded.dtype)], 1)
        parts = self.pool(x, rows, mean, std, rows=True).unbind(self.plan.dim)
        return parts[0] + parts[1]  # which keeps the memory format, as a sum over them does not

    def products(self, x: Tensor, image: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
        """⟨ψ(I_t), image⟩ of each clip, float64 [B, T]: what a weighted sum of frames has as its weights' gradient."""
        batch, num_frames = 1 if self.plan.dim == 0 else x.shape[0], x.shape[self.plan.dim]
        dtype = accumulate_dtype(x.dtype)
        weights = torch.zeros(batch, 1, num_frames, dtype=dtype, device=x.device)
        p = ops.weights_gradient(image.to(dtype), x, weights, mean, std, self._plan_of(x, 1, rows=False))
        return p[:, 0].double()

    def differ(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Whether the frames of a clip are not all the same, [B]."""
        clips = x[None] if self.plan.dim == 0 else x.movedim(self.plan.dim, 1)
        found = torch.zeros_like(lengths, dtype=torch.bool)
        for t, frame in enumerate(clips.unbind(1)):
            found |= (frame != clips[:, 0]).reshape(len(clips), -1).any(1) & (t < lengths)
        return found

    def means(self, values: Tensor) -> Tensor:
        """Of what frames have, [..., T], what the V_t have."""
        if not self.time_average:
            return values
        return _sums_so_far(values) / _steps(values)

    def shares(self, u: Tensor) -> Tensor:
        """Of coefficients of the V_t, [..., T], those of the frames."""
        if not self.time_average:
            return u
        return _sums_so_far((u / _steps(u)).flip(-1)).flip(-1)


def _steps(values: Tensor) -> Tensor:
    return torch.arange(1, values.shape[-1] + 1, dtype=values.dtype, device=values.device)


def _sums_so_far(values: Tensor) -> Tensor:
    """Along the last dimension; of whole numbers without a rounding. For GPUs torch knows no cumsum that gives the same
    bits each time.
    """
    if values.is_cpu:
        return values.cumsum(-1)
    num_frames = values.shape[-1]
    return values @ values.new_ones(num_frames, num_frames).triu()


class _RankPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, std, frames, problem):  # type: ignore[no-untyped-def]
        plan = frames.plan
        products = gram(x, mean, std, plan.dim, plan.channel_dim, plan.nonlinearity, frames.lengths)
        pairs = problem.sees_pairs
        K = products.centred if pairs else products.full()
        if not bool(K.isfinite().all()):
            dtype = accumulate_dtype(x.dtype)
            raise ValueError(f"x must be finite and its frames' products within {dtype}, got NaN or infinity")
        lengths = frames.lengths
        if lengths is None:
            lengths = torch.full((len(K),), K.shape[-1], device=x.device)
        alike = products.alike(lengths, x.dtype)[:, None] & pairs
        K = K.where(~alike[..., None], 0)
        K = frames.means(frames.means(K).mT)
        tol = min(problem.tol, _GRADIENT_TOL) if problem.derives else problem.tol
        solution = solve.solve(K, lengths, problem.objective, problem.C, problem.epsilon, tol, problem.max_iter)
        # Solvers whom roundings of float32 stopped, and frames that it does not tell apart; bytes differ by 1 or more.
        stopped = ~(solution.gap <= problem.tol * solution.objective) & (solution.iterations < problem.max_iter)
        doubtful = stopped
        if x.dtype != torch.uint8 and bool(alike.any()):
            doubtful = doubtful | (alike[:, 0] & frames.differ(x.detach(), lengths))
        solved = (solution.gap / solution.objective).where(solution.objective > 0, 0)
        scores = (K @ solution.u[..., None])[..., 0]
        weights = frames.shares(solution.u).where(~alike, 0)  # any u gives frames that are all alike their d
        norm = (scores * solution.u).sum(1)
        kinds = kinds_of(x.detach(), plan.dim, lengths)
        roundings = Roundings.of(x, products, K, frames.means, weights, norm, kinds, pairs, plan.out_dtype)
        coarse = x.dtype != torch.float64
        finely = coarse and bool(problem.missed_by(roundings.of_weights, solution.objective, lengths).any())
        if problem.objective == "ranksvm":
            growth = roundings.growth(finely, problem.tol, accumulate_dtype(x.dtype))[:, None]
            scores, weights = growth * scores, growth * weights
        d = frames.sum(x, weights, mean, std, finely)
        values = d.reshape(len(K), d.numel() // max(1, len(K)))
        if pairs:  # ⟨d, ψ̄⟩ is missing, and Σ u = 0
            scores = scores + (weights * products.cross).where(weights != 0, 0).sum(1, keepdim=True)
        imprecise = problem.missed_by(roundings.of_sums, solution.objective, lengths)
        if bool(imprecise.any()):
            found = frames.means(frames.products(x.detach(), d, mean, std))
            square = values.double().square().sum(1)
            value, gap = problem.measured(solution, norm, square, found, lengths)
            enough = torch.maximum(problem.limit * value, solution.gap)
            solution = solution._replace(
                objective=value.where(imprecise, solution.objective), gap=gap.where(imprecise, solution.gap)
            )
            scores = found.where(imprecise[:, None], scores)
            # Or NaN; and of frames of few kinds of values, rounded products are no products, and have no dual problem.
            # Scores that are measured in float32 do not tell what their own roundings would change.
            unmeasured = problem.unmeasured(found, torch.finfo(d.dtype).eps / 2, value, lengths)
            imprecise = imprecise & (~(gap <= enough) | (kinds < 2 * lengths) | unmeasured)
        imprecise = (imprecise | doubtful) & coarse  # float64 is all there is
        finite = (values * 0).sum(1) == 0  # a tenth of what isfinite takes
        if not bool(finite.all()):
            if not coarse:
                raise ValueError(f"C must be smaller: d of these frames has values beyond {d.dtype}, got {problem.C}")
            imprecise = imprecise | ~finite
        present = torch.arange(scores.shape[1], device=x.device) < lengths[:, None]
        scores = scores.where(present, 0)
        ctx.save_for_backward(x, mean, std, K, lengths, d, *solution)
        ctx.frames, ctx.problem = frames, problem
        info = (solution.objective, solution.gap, solution.iterations, scores, weights, solved)
        ctx.mark_non_differentiable(imprecise, *info)
        return d.to(plan.out_dtype), imprecise, *info

    @staticmethod
    def backward(ctx, grad, *unused):  # type: ignore[no-untyped-def]
        if ops.is_traced(grad):
            raise RuntimeError("rank_pool has a gradient of one vector at a time: it takes no vmap or is_grads_batched")
        saved = ctx.saved_tensors  # once: torch.utils.checkpoint makes them anew for each time
        x, mean, std, *_ = saved
        with torch.no_grad():
            grads = _RankPool.first_derivatives(ctx, saved, grad)
        if torch.is_grad_enabled():  # also a gradient that is constant depends on x
            wanted = [g for g in grads if g is not None]
            following = iter(_FirstDerivative.apply(len(wanted), *wanted, grad, x, mean, std))
            grads = [None if g is None else next(following) for g in grads]
        return *grads, None, None

    @staticmethod
    def first_derivatives(ctx, saved, grad):  # type: ignore[no-untyped-def]
        x, mean, std, K, lengths, d, *solution = saved
        frames, problem, solution = ctx.frames, ctx.problem, solve.Solution(*solution)
        dim = frames.plan.dim
        g = grad.to(d.dtype)

        Vg = frames.means(frames.products(x.detach(), g, mean, std))
        n = solve.adjoint(K, lengths, solution, problem.objective, problem.C, Vg)

        u = solution.u
        if problem.objective == "svr":
            u = solve.multipliers(K, lengths, solution, problem.C, problem.epsilon)

        # ∂L/∂V_t = u_t (g - z) - n_t d, z = Σ n_t V_t: the gradient of a sum with two rows of weights.
        n = frames.shares(n)
        z = frames.pool(x, n[:, None], mean, std)
        rows = torch.stack([frames.shares(u), -n], 1)
        needs = ctx.needs_input_grad[:3]
        inputs = [
            t if t is None else t.detach().requires_grad_(need) for t, need in zip((x, mean, std), needs, strict=True)
        ]
        wanted = [t for t, need in zip(inputs, needs, strict=True) if t is not None and need]
        with torch.enable_grad():
            pooled = frames.pool(inputs[0], rows, inputs[1], inputs[2], rows=True)
        grads = iter(torch.autograd.grad(pooled, wanted, torch.stack([g - z, d], dim)))
        return [next(grads) if need else None for need in needs]


class _FirstDerivative(torch.autograd.Function):
    """Gradients that cannot be differentiated again."""

    @staticmethod
    def forward(ctx, count, *tensors):  # type: ignore[no-untyped-def]
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        raise RuntimeError("rank_pool has no second derivative")
