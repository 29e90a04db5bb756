"""The problems of exact rank pooling in T dimensions: from the frames' Gram matrix to the coefficients of d.

d lies in the span of the vectors V_t that it ranks: d = Σ_t u_t V_t, with scores S(t|d) = ⟨d, V_t⟩ = (K u)_t for the
Gram matrix K = VVᵀ. Everything here is float64, batched [B, T, …], on the device of K, and stops clip by clip.

    ranksvm           ½‖d‖² + C' Σ_{q>t} max(0, 1 - S(q|d) + S(t|d))      C' = 2C / (T (T - 1)); eq. (1), λ = 1/C
    ranksvm_squared   the same with the hinge squared
    svr               ½‖d‖² + C Σ_t max(0, |t - S(t|d)| - ε)²
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import binary

_LARGEST = 1 << 15  # T that the kernels take
_NEWTON_STEPS = 100  # of svr, which takes a dozen, unless it does not get there
_SIGN_PRODUCTS = 1 << 38  # what its search for signs may take: a minute
_PATIENCE = 60  # steps without progress after which an interior point method is given up


class Solution(NamedTuple):
    u: Tensor  # [B, T]: d = Σ u_t V_t
    objective: Tensor  # [B]
    gap: Tensor  # [B]: objective minus a lower bound of the minimum (a feasible point of the dual problem)
    iterations: Tensor  # [B]
    active: Tensor  # what its derivative is made of: pairs [B, T, T] or frames [B, T]


def solve(K: Tensor, lengths: Tensor, objective: str, C: float, epsilon: float, tol: float, max_iter: int) -> Solution:
    """Minimises `objective` for each clip to a gap of at most tol · objective, or for max_iter iterations.

    By a kernel; in torch where there is none, and for clips that the kernel does not finish.
    """
    steps = min(max_iter, _NEWTON_STEPS) if objective == "svr" else max_iter
    found = None if K.shape[1] > _LARGEST else _solve_by_kernel(K, lengths, objective, C, epsilon, tol, steps)
    if objective == "svr":
        solution = _solve_svr(K, lengths, C, epsilon, tol, steps) if found is None else found
        solution = _by_signs(solution, K, lengths, C, epsilon, tol, max_iter)
    elif found is None:
        solution = _solve_pairs(K, lengths, C, objective == "ranksvm_squared", tol, max_iter)
    else:
        solution = found
        solved = solution.gap.abs() <= tol * solution.objective  # where rounding made NaN, it is not
        left = (~solved & (solution.iterations < max_iter)).nonzero()[:, 0]
        if len(left):
            rest = _solve_pairs(K[left], lengths[left], C, objective == "ranksvm_squared", tol, max_iter)
            better = ~(solution.gap[left].abs() <= rest.gap.abs()) & rest.gap.isfinite()
            left, rest = left[better], Solution(*(t[better] for t in rest))
            solution = Solution(*(t.index_copy(0, left, s) for t, s in zip(solution, rest, strict=True)))
    return solution._replace(gap=solution.gap.abs())  # a bound above the objective is as wrong as one below is far


def _solve_by_kernel(
    K: Tensor, lengths: Tensor, objective: str, C: float, epsilon: float, tol: float, max_iter: int
) -> Solution | None:
    found = binary.solve(objective, K, lengths, C, epsilon, tol, max_iter)
    if found is None:
        return None
    u, value, gap, iterations, b = found
    if b is None:
        t = torch.arange(1, K.shape[1] + 1, dtype=K.dtype, device=K.device)
        active = ((t - apply(K, u)).abs() > epsilon) & (t <= lengths[:, None])
    else:
        active = (b > 0) if objective == "ranksvm_squared" else (b > 0) & (b < 1)
    return Solution(u, value, gap, iterations, active)


def objective_of(norm: Tensor, scores: Tensor, lengths: Tensor, objective: str, C: float, epsilon: float) -> Tensor:
    """What `objective` is [B] of a d with ‖d‖² = norm [B] and these scores [B, T]."""
    frames = torch.arange(scores.shape[1], device=scores.device)
    if objective == "svr":
        return norm / 2 + C * residuals(scores, lengths, epsilon).square().sum(1)
    pairs = (frames[:, None] > frames) & (frames[:, None] < lengths[:, None, None])
    hinge = (1 - scores[:, :, None] + scores[:, None]).clamp(min=0).where(pairs, 0)
    loss = hinge.square() if objective == "ranksvm_squared" else hinge
    return norm / 2 + _pair_penalty(lengths, C) * loss.sum((1, 2))


def residuals(scores: Tensor, lengths: Tensor, epsilon: float) -> Tensor:
    """max(0, |t - score| - ε) of "svr" [B, T], frames beyond a clip's length 0."""
    t = torch.arange(1, scores.shape[1] + 1, device=scores.device)
    return ((t - scores).abs() - epsilon).clamp(min=0).where(t <= lengths[:, None], 0)


def adjoint(K: Tensor, lengths: Tensor, solution: Solution, objective: str, C: float, Vg: Tensor) -> Tensor:
    """n of the derivative ∂L/∂V_t = u_t (g - Σ_s n_s V_s) - n_t d, for g = ∂L/∂d and Vg = ⟨V_t, g⟩, [B, T].

    By the implicit function theorem on the optimality conditions, the active pairs or frames kept as they are.
    """
    if objective == "ranksvm":  # d - Σ_inside stays; margins of pairs strictly inside the box stay 1
        tied = _components(solution.active)
        identity = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
        inside = identity - tied / tied.sum(-1, keepdim=True)  # projects on differences within a component
        values, vectors = _each(_eigen, inside @ K @ inside)
        along = (inside @ vectors).mT @ Vg[..., None]
        kept = values > 1e-10 * values[:, -1:]
        return (inside @ vectors @ (along / values[..., None]).where(kept[..., None], 0))[..., 0]
    if objective == "ranksvm_squared":
        R = _root(_laplacian(solution.active.to(K.dtype))) * (2 * _pair_penalty(lengths, C)).sqrt()[:, None, None]
    else:
        R = torch.diag_embed(solution.active.to(K.dtype)) * (2 * C) ** 0.5
    # (I + W K)⁻¹ W Vg, W = R Rᵀ, where W K may be so large that I is lost beside it, while W sums to 0.
    return (R @ torch.cholesky_solve(R.mT @ Vg[..., None], _cholesky(R.mT @ K @ R)))[..., 0]


def multipliers(K: Tensor, lengths: Tensor, solution: Solution, C: float, epsilon: float) -> Tensor:
    """u of "svr", [B, T], as its derivative has it: 2 C times what the active frames lack.

    That of a solution makes its d, but may be the step's before the last, of other active frames, since many u make
    nearly the same d where frames are alike or have few values.
    """
    t = torch.arange(1, K.shape[1] + 1, dtype=K.dtype, device=K.device)
    target = t - epsilon * (t - apply(K, solution.u)).sign()
    u = adjoint(K, lengths, solution, "svr", C, target)

    def error(u: Tensor) -> Tensor:
        others = torch.zeros_like(u).masked_fill_(u != 0, torch.inf)
        return (u / (2 * C) + apply(K, u) - target).abs().where(solution.active, others).amax(1)

    worse = error(solution.u) > error(u)
    return u.where(worse[:, None], solution.u)


def apply(K: Tensor, u: Tensor) -> Tensor:
    """K u. Not by bmm, whose threads take longer to wake than this takes."""
    return (K * u[:, None]).sum(2)


def _each(function: Callable[[Tensor], tuple[Tensor, ...]], A: Tensor) -> tuple[Tensor, ...]:
    """Of clips, on the CPU one by one: with several threads torch fails on batches of them, or never returns
    (pytorch/pytorch#142815, of matrices from 150 rows on).
    """
    if not A.is_cpu or len(A) < 2:
        return function(A)
    return tuple(torch.stack(parts) for parts in zip(*(function(a) for a in A), strict=True))


def _eigen(A: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, in rising order, and eigenvectors of symmetric A without negative ones, but for roundings."""
    try:
        values, vectors = torch.linalg.eigh(A)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # which torch declares nowhere
        # LAPACK's iteration does not end for some that are zero but for a few lines.
        vectors, values, _ = torch.linalg.svd(A)
        values, vectors = values.flip(-1), vectors.flip(-1)
    return values, vectors


def _root(A: Tensor) -> Tensor:
    """R with A = R Rᵀ, of such A."""
    values, vectors = _each(_eigen, A)
    kept = values > values[:, -1:] * A.shape[-1] * torch.finfo(A.dtype).eps
    return vectors * values.where(kept, 0).sqrt()[:, None]


def _cholesky(A: Tensor) -> Tensor:
    """Cholesky's factor of I + A, A without negative eigenvalues, but for roundings."""
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    (factor,) = _each(lambda a: (torch.linalg.cholesky_ex(a)[0],), eye + A)
    return factor


# --- pairs of frames -----------------------------------------------------------------------------------------------


def _pair_penalty(lengths: Tensor, C: float) -> Tensor:
    return 2 * C / (lengths * (lengths - 1)).clamp(min=1).double()


def _laplacian(weights: Tensor) -> Tensor:
    """Σ_{q>t} weights[q, t] (e_q - e_t)(e_q - e_t)ᵀ"""
    both = weights + weights.mT
    return torch.diag_embed(both.sum(-1)) - both


def _differences(s: Tensor) -> Tensor:
    """A s: [B, q, t] of frames."""
    return s[:, :, None] - s[:, None, :]


def _gather(b: Tensor) -> Tensor:
    """Aᵀ b"""
    return b.sum(2) - b.sum(1)


def _components(pairs: Tensor) -> Tensor:
    """Which frames pairs connect, directly or not: [B, T, T] of 0 and 1."""
    eye = torch.eye(pairs.shape[-1], dtype=torch.float64, device=pairs.device)
    reach = (pairs | pairs.mT).double() + eye
    for _ in range(max(1, (pairs.shape[-1] - 1).bit_length())):
        reach = (reach @ reach).clamp(max=1)
    return (reach > 0).double()


def _solve_pairs(K: Tensor, lengths: Tensor, C: float, squared: bool, tol: float, max_iter: int) -> Solution:
    """A primal-dual interior point method (Mehrotra) on the dual problem, with β = C' b for pairs (q, t), q > t:

        max Σ b - κ/2 Σ b² - ½ uᵀ(C' K)u      u = Aᵀb, 0 ≤ b (≤ 1 unless squared), κ = ½ if squared, else 0

    Its Newton systems have a number of unknowns of T²/2, but only T of them are coupled: b changes by what the scores
    change, so that one T × T system (I + L C'K) du = … remains, L the Laplacian of the pairs' weights. With C'K = F Fᵀ
    the scores change by F (I + FᵀLF)⁻¹ Fᵀ …, where nothing cancels however large K is, and no d has ‖d‖² < 0.
    """
    B, T = K.shape[:2]
    frames = torch.arange(T, device=K.device)
    pairs = (frames[:, None] > frames) & (frames[:, None] < lengths[:, None, None])  # [B, q, t]
    scale = _pair_penalty(lengths, C)
    F = _root(K) * scale.sqrt()[:, None, None]
    kappa = 0.5 if squared else 0.0

    def of_pairs(values: Tensor) -> Tensor:
        return values.where(pairs, 0)

    def evaluate(b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u = _gather(b)
        d = F.mT @ u[..., None]
        margin = _differences((F @ d)[..., 0])
        norm = d.square().sum((1, 2))
        loss = (1 - margin).clamp(min=0)
        primal = norm / 2 + of_pairs(loss * loss if squared else loss).sum((1, 2))
        dual = b.sum((1, 2)) - kappa / 2 * (b * b).sum((1, 2)) - norm / 2
        return u, margin, primal, dual

    # Where K is large the solution is near 0, and so is the start. The multipliers of b ≥ 0 and b ≤ 1 make it feasible.
    trace = F.square().sum((1, 2))
    b = of_pairs((1 / trace.clamp(min=2))[:, None, None].expand(B, T, T))
    u, margin, primal, dual = evaluate(b)
    residual = margin + kappa * b - 1
    floor = residual.abs().where(pairs, 0).amax((1, 2), keepdim=True) * 0.1 + 0.1
    low = residual.clamp(min=0) + floor
    high = torch.zeros_like(b) if squared else (-residual).clamp(min=0) + floor

    running = primal - dual > tol * primal
    iterations = progress = torch.zeros(B, dtype=torch.int64, device=K.device)
    best = Solution(u, primal, primal - dual, iterations, pairs)

    for _ in range(max_iter):
        if not running.any():
            break
        iterations = iterations + running
        newton = _Newton(F, pairs, squared, b.where(pairs, 0.5), low, high, margin + kappa * b - 1)

        # Predictor: how far towards 0 the complementarity can go; corrector: that far, and second order.
        zero = torch.zeros_like(b)
        mu = newton.complementarity(zero, zero, zero, 0)
        db, dlow, dhigh = newton.direction(zero, zero)
        reached = newton.complementarity(db, dlow, dhigh, newton.longest(db, dlow, dhigh)[:, None, None])
        target = ((reached / mu) ** 3 * mu)[:, None, None]
        db, dlow, dhigh = newton.direction(target - db * dlow, target + db * dhigh)
        step = (0.995 * newton.longest(db, dlow, dhigh) * running)[:, None, None]
        moved = (b + step * db, low + step * dlow, high + step * dhigh)
        sound = torch.stack(moved).isfinite().all(0).all(2).all(1)  # else rounding has the last word: the best so far
        running = running & sound
        b, low, high = (new.where(sound[:, None, None], old) for new, old in zip(moved, (b, low, high), strict=True))

        u, margin, primal, dual = evaluate(b)
        better = running & (primal - dual < best.gap)
        progress = iterations.where(better, progress)
        inside = low < b / b.amax((1, 2), keepdim=True)  # where K is large all of b are small
        inside = inside if squared else inside & (high < 1 - b)
        best = Solution(
            u.where(better[:, None], best.u),
            primal.where(better, best.objective),
            (primal - dual).where(better, best.gap),
            iterations,
            (inside & pairs).where(better[:, None, None], best.active),
        )
        running = running & (best.gap > tol * best.objective) & (iterations - progress < _PATIENCE)

    return Solution(
        best.u * scale[:, None],
        best.objective * scale,
        best.gap * scale,
        iterations,
        best.active,
    )


class _Newton:
    """Newton's steps from b, ½ where there is no pair, with the multipliers low of b ≥ 0 and high of b ≤ 1."""

    def __init__(
        self, F: Tensor, pairs: Tensor, squared: bool, b: Tensor, low: Tensor, high: Tensor, residual: Tensor
    ) -> None:
        self._F, self._pairs, self._squared = F, pairs, squared
        self._b, self._low, self._high = b, low, high
        self._slack = torch.ones_like(b) if squared else 1 - b
        self._infeasible = residual - low + high
        sigma = (0.5 if squared else 0.0) + low / b + high / self._slack
        self._weights = (1 / sigma).where(pairs, 0)
        self._factor = _cholesky(F.mT @ _laplacian(self._weights) @ F)  # of no number: found out by what comes of it

    def direction(self, to_low: Tensor, to_high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of b, low and high: towards low · b = to_low and high · (1 - b) = to_high."""
        b, low, high, slack, weights = self._b, self._low, self._high, self._slack, self._weights
        h = -self._infeasible + (to_low / b - low) - (to_high / slack - high)
        ds = self._F @ torch.cholesky_solve(self._F.mT @ _gather(weights * h)[..., None], self._factor)
        db = weights * (h - _differences(ds[..., 0]))
        dlow = (to_low - low * db) / b - low
        dhigh = torch.zeros_like(high) if self._squared else (to_high + high * db) / slack - high
        return db, dlow, dhigh

    def longest(self, db: Tensor, dlow: Tensor, dhigh: Tensor) -> Tensor:
        """The step to the nearest bound, at most 1."""
        steps = [(self._b, db), (self._low, dlow)]
        if not self._squared:
            steps += [(self._slack, -db), (self._high, dhigh)]
        ratios = [(-value / change).where((change < 0) & self._pairs, torch.inf) for value, change in steps]
        return torch.stack([ratio.amin((1, 2)) for ratio in ratios]).amin(0).clamp(max=1)

    def complementarity(self, db: Tensor, dlow: Tensor, dhigh: Tensor, step: Tensor | float) -> Tensor:
        """The mean of low · b and high · (1 - b) after such a step: 0 at the solution."""
        b, low, high = self._b + step * db, self._low + step * dlow, self._high + step * dhigh
        total = low * b if self._squared else low * b + high * (1 - b)
        count = self._pairs.sum((1, 2)).clamp(min=1)
        return total.where(self._pairs, 0).sum((1, 2)) / (count if self._squared else 2 * count)


# --- support vector regression -------------------------------------------------------------------------------------


def _solve_svr(K: Tensor, lengths: Tensor, C: float, epsilon: float, tol: float, max_iter: int) -> Solution:
    """Newton's method on the frames outside the tube, u = ((1/2C) I + K_AA)⁻¹ (t - sε)_A, with a line search."""
    B, T = K.shape[:2]
    t = torch.arange(1, T + 1, dtype=K.dtype, device=K.device)
    eye = torch.eye(T, dtype=K.dtype, device=K.device)

    def evaluate(u: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _svr_values(K, u, s, lengths, C, epsilon)

    u = torch.zeros(B, T, dtype=K.dtype, device=K.device)
    s = torch.zeros_like(u)
    primal, dual, active = evaluate(u, s)
    running = torch.ones(B, dtype=torch.bool, device=K.device)  # d = 0 may be near the minimum, and ranks nothing
    iterations = torch.zeros(B, dtype=torch.int64, device=K.device)
    for _ in range(max_iter):
        if not running.any():
            break
        iterations = iterations + running
        A = active.to(K.dtype)
        target = ((t - s).sign() * -epsilon + t) * A
        system = eye + 2 * C * A[:, :, None] * K * A[:, None, :]
        factors = _each(lambda a: torch.linalg.lu_factor_ex(a)[:2], system)
        du = torch.linalg.lu_solve(*factors, (2 * C * target)[..., None])[..., 0] * A - u
        sound = du.isfinite().all(1)  # else rounding has the last word
        running, du = running & sound, du.where(sound[:, None], 0)
        ds = apply(K, du)
        step = running.to(K.dtype)
        for _ in range(30):
            new_primal, new_dual, new_active = evaluate(u + step[:, None] * du, s + step[:, None] * ds)
            worse = ~(new_primal <= primal)  # or NaN
            if not worse.any():
                break
            step = step.where(~worse, step / 2)
        else:
            step = step.where(~worse, 0)
            new_primal, new_dual, new_active = evaluate(u + step[:, None] * du, s + step[:, None] * ds)
        u, s = u + step[:, None] * du, s + step[:, None] * ds
        primal, dual, active = new_primal, torch.maximum(dual, new_dual), new_active
        running = running & (primal - dual > tol * primal) & (step > 0)
    return Solution(u, primal, primal - dual, iterations, active)


def _by_signs(
    newton: Solution, K: Tensor, lengths: Tensor, C: float, epsilon: float, tol: float, max_iter: int
) -> Solution:
    """Newton's solution, of clips where it did not get there that of the dual problem, one frame after the other.

    Where ‖V‖² C is 1e14 and more, all frames that count are within a rounding of the tube's bounds, and Newton's method
    does not find out on which of them; only their u ≠ 0 tells. u is the minimum of ½ uᵀHu - tᵀu + ε|u|, H = K + I/2C,
    which is found like that of every such sum: the frames with u ≠ 0 keep their signs until one would change
    (feature-sign search: Lee et al., "Efficient sparse coding algorithms", NIPS 2006).
    """
    solution = newton
    solved = newton.gap.abs() <= tol * newton.objective  # where rounding made NaN, it is not
    for clip in (~solved).nonzero()[:, 0].tolist():
        T = int(lengths[clip])
        own, left = K[clip, :T, :T], max_iter - int(newton.iterations[clip])
        left = min(left, 3 * T, _SIGN_PRODUCTS // T**3)
        u, steps = _sign_search(own, C, epsilon, tol, left, newton.u[clip, :T].nan_to_num(0, 0, 0))
        primal, dual, _ = _svr_values(own[None], u[None], apply(own[None], u[None]), lengths[clip], C, epsilon)
        if bool((primal - dual).isfinite()) and not newton.gap[clip].abs() <= (primal - dual).abs():
            place = torch.tensor([clip], device=K.device)
            found = Solution(
                pad(u, (0, K.shape[1] - T))[None],
                primal,
                primal - dual,
                newton.iterations[clip : clip + 1] + steps,
                pad(u != 0, (0, K.shape[1] - T))[None],
            )
            solution = Solution(*(t.index_copy(0, place, s) for t, s in zip(solution, found, strict=True)))
    return solution


def _sign_search(K: Tensor, C: float, epsilon: float, tol: float, most: int, u: Tensor) -> tuple[Tensor, int]:
    """u of one clip, from a first u, and how many systems of equations were solved."""
    t = torch.arange(1, len(K) + 1, dtype=K.dtype, device=K.device)
    H = K + torch.eye(len(K), dtype=K.dtype, device=K.device) / (2 * C)
    signs = u.sign()
    for step in range(most):
        chosen = signs.nonzero()[:, 0]
        if len(chosen):
            factor, wrong = torch.linalg.cholesky_ex(H[chosen][:, chosen])
            if wrong:  # products that float32 rounded have no minimum: the best so far
                return u, step
            target = torch.zeros_like(u)
            target[chosen] = torch.cholesky_solve((t - epsilon * signs)[chosen, None], factor)[:, 0]
            way = target - u
            crossing = (-u / way).where(target * u < 0, 1)  # how far until it is 0
            stops = torch.cat([crossing, torch.ones_like(u[:1])]).unique()[:, None]
            points = (u + stops * way).where(crossing != stops, target * (stops == 1))
            values = (points @ H * points).sum(1) / 2 - points @ t + epsilon * points.abs().sum(1)
            u = points[values.argmin()]
            signs = u.sign()
            if not torch.equal(u, target):
                continue
        left = ((t - H @ u).abs() - epsilon).where(signs == 0, 0)
        primal, dual, _ = _svr_values(K[None], u[None], apply(K[None], u[None]), t[-1], C, epsilon)
        if left.amax() <= 0 or primal - dual <= tol * primal:
            return u, step + 1
        new = left.argmax()
        signs[new] = (t - H @ u)[new].sign()
    return u, most


def _svr_values(
    K: Tensor, u: Tensor, s: Tensor, lengths: Tensor, C: float, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What the problem and its dual are [B] of u with scores s [B, T], and which frames are outside the tube.

    Dual problem: max Σ t u_t - ε|u_t| - u_t²/4C - ½ uᵀKu.
    """
    t = torch.arange(1, K.shape[1] + 1, dtype=K.dtype, device=K.device)
    excess = t - s
    loss = (excess.abs() - epsilon).clamp(min=0).where(t <= lengths[..., None], 0)
    primal = (u * s).sum(1) / 2 + C * (loss * loss).sum(1)
    dual = 0 * primal
    for v in (u, 2 * C * loss * excess.sign()):  # the second is the dual point that these scores make
        value = (t * v - epsilon * v.abs() - v * v / (4 * C)).sum(1) - (v * apply(K, v)).sum(1) / 2
        dual = torch.maximum(dual, value)
    return primal, dual, loss > 0
