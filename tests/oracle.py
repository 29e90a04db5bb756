"""What the operation must compute: float64 NumPy loops straight from the formulas, and what rounding may add.

Nothing here is taken from the package. A pooling is a list of rows for each clip; a row is (first, a): output
y = Σ_k a[k] · ψ(z[first + k]), so that a frame outside every row is not even touched.

Error bounds. Let u be the unit roundoff of the accumulate type (2^-24, or 2^-53 for float64 input). A sum of n
products, in whatever order, is off by at most n·u·Σ|terms| to first order, and each term carries at most SLACK
roundings of its own (of a, of 1/std, of the difference to the mean, of the product, of the root …):
(n + SLACK)·u·Σ|terms|. For ψ = id the mean may be subtracted after the sum, so a term counts as
|a|·(|x| + |mean|)/std. Results are rounded once more to their own type: u_out·|y|, or half its smallest denormal.
Roots of uint8 pixels may come from a reciprocal-root step that is good to ROOT_STEP, relative.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, localcontext
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

SLACK = 8
ROOT_STEP = 1e-6
UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
HALF_DENORMAL = {torch.float16: 2.0**-25, torch.bfloat16: 2.0**-134, torch.float32: 2.0**-150, torch.float64: 0.0}

Row = tuple[int, Sequence[float]]
Rows = list[list[Row]]  # [B or 1][W]


class Sum(NamedTuple):
    """An exact value, Σ|terms| and the number of terms: all that its error bound needs."""

    value: np.ndarray
    magnitude: np.ndarray
    terms: int

    def bound(self, x_dtype: torch.dtype, out_dtype: torch.dtype, nonlinearity: str) -> np.ndarray:
        relative = (self.terms + SLACK) * UNIT[accumulate_dtype(x_dtype)]
        if x_dtype == torch.uint8 and nonlinearity == "sqrt":
            relative += ROOT_STEP
        return 1.01 * relative * self.magnitude + UNIT[out_dtype] * np.abs(self.value) + HALF_DENORMAL[out_dtype]


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def assert_within(actual: torch.Tensor, expected: np.ndarray, bound: np.ndarray | float) -> None:
    """Every element, NaN included, is within its own bound."""
    assert tuple(actual.shape) == expected.shape, f"shape {tuple(actual.shape)}, expected {expected.shape}"
    got = actual.detach().cpu().double().numpy()
    bound = np.broadcast_to(bound, expected.shape)
    wrong = ~(np.abs(got - expected) <= bound)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.size} elements are off; the first at {at}: "
            f"got {got[at]!r}, expected {expected[at]!r} within {bound[at]!r}"
        )


# --- weights -------------------------------------------------------------------------------------------------------


def alpha(num_frames: int, time_average: bool = True, normalize: bool = False) -> np.ndarray:
    """α_t = Σ_{j=t..T} (2j - T - 1)/j, or 2t - T - 1: summed in 50 decimal digits."""
    with localcontext() as context:
        context.prec = 50
        total, backwards = Decimal(0), []
        for j in range(num_frames, 0, -1):
            term = Decimal(2 * j - num_frames - 1)
            total = total + term / j if time_average else term
            backwards.append(total)
        values = backwards[::-1]
        positive = sum(v for v in values if v > 0)
        if normalize and positive:
            values = [v / positive for v in values]  # Σα = 0, so the positive and the negative part weigh the same
        return np.array([float(v) for v in values])


def alpha_error(num_frames: int) -> float:
    """What float64 may be off in α: H_T and H_{t-1} by T·u·H_T each, times T + 1; some more roundings of 2T·u."""
    harmonic = 1 + np.log(num_frames)
    return 2.0**-53 * (2 * (num_frames + 1) * num_frames * harmonic + 8 * num_frames)


def rank_rows(
    num_frames: int,
    *,
    time_average: bool = True,
    normalize: bool = False,
    window: int | None = None,
    stride: int | None = None,
    lengths: Sequence[int] | None = None,
    offsets: Sequence[int] | None = None,
) -> Rows:
    def whole(first: int, count: int) -> Row:
        return first, alpha(count, time_average, normalize)

    def windows(first: int, count: int) -> list[Row]:
        if window is None:
            return [whole(first, count)]
        found, start = [], first
        while start + window <= first + count:
            found.append(whole(start, window))
            start += stride or window
        return found

    if lengths is not None:
        clips = [windows(0, int(n)) for n in lengths]
        most = len(windows(0, num_frames))
        return [rows + [(0, [])] * (most - len(rows)) for rows in clips]
    if offsets is not None:
        return [[row for a, b in pairwise(offsets) for row in windows(int(a), int(b - a))]]
    return [windows(0, num_frames)]


def dense_rows(weights: torch.Tensor) -> Rows:
    """[B or 1, W, T] as rows."""
    return [[(0, row) for row in clip] for clip in weights.detach().cpu().double().numpy()]


# --- the operation -------------------------------------------------------------------------------------------------


def psi(z: np.ndarray, nonlinearity: str) -> np.ndarray:
    return z if nonlinearity == "identity" else np.sign(z) * np.sqrt(np.abs(z))


def dpsi(z: np.ndarray, nonlinearity: str) -> np.ndarray:
    if nonlinearity == "identity":
        return np.ones_like(z)
    with np.errstate(divide="ignore"):
        return np.where(z == 0, 0.0, 0.5 / np.sqrt(np.abs(z)))


def pool(x: torch.Tensor, rows: Rows, dim: int, nonlinearity="identity", mean=None, std=None, channel_dim=None) -> Sum:
    """y[b, w] = Σ_k a[k] ψ((x[b, first + k] - mean) / std), W in the place of T."""
    c = _canonical(x, rows, dim, mean, std, channel_dim)
    frames, size = psi(c.z, nonlinearity), _size(c, nonlinearity)
    outputs = len(rows[0])
    y = np.zeros((c.x.shape[0], outputs, *c.x.shape[2:]))
    magnitude, terms = np.zeros_like(y), 0
    for b, clip in enumerate(c.rows):
        for w, (first, a) in enumerate(clip):
            terms = max(terms, len(a))
            for k in range(len(a)):
                y[b, w] += a[k] * frames[b, first + k]
                magnitude[b, w] += abs(a[k]) * size[b, first + k]
    return Sum(_restore(y, rows, dim), _restore(magnitude, rows, dim), terms)


def gradients(
    g: torch.Tensor,
    x: torch.Tensor,
    rows: Rows,
    dim: int,
    nonlinearity="identity",
    mean=None,
    std=None,
    channel_dim=None,
) -> dict[str, Sum]:
    """∂L/∂x, ∂L/∂A [B or 1, W, K], ∂L/∂mean and ∂L/∂std (numbers or [C]) for g = ∂L/∂y."""
    c = _canonical(x, rows, dim, mean, std, channel_dim)
    g = _clips(g.detach().cpu().double().numpy(), rows, dim)
    frames, size, slope = psi(c.z, nonlinearity), _size(c, nonlinearity), dpsi(c.z, nonlinearity)
    half = 1.0 if nonlinearity == "identity" else 0.5  # ψ'(z)·z = half·ψ(z)
    outputs, longest = len(rows[0]), max(len(a) for clip in rows for _, a in clip)
    back, back_size, inside = np.zeros(c.x.shape), np.zeros(c.x.shape), np.zeros(c.x.shape, bool)
    da = np.zeros((c.x.shape[0], outputs, longest))
    da_size = np.zeros_like(da)
    for b, clip in enumerate(c.rows):
        for w, (first, a) in enumerate(clip):
            for k in range(len(a)):
                t = first + k
                inside[b, t] = True
                back[b, t] += a[k] * g[b, w]
                back_size[b, t] += abs(a[k]) * np.abs(g[b, w])
                da[b, w, k] = np.sum(g[b, w] * frames[b, t])
                da_size[b, w, k] = np.sum(np.abs(g[b, w]) * size[b, t])

    def seen(values: np.ndarray) -> np.ndarray:
        return np.where(inside, values, 0)

    def total(values: np.ndarray, value: np.ndarray) -> Sum:
        pair = (_per_channel(_restore(v, rows, dim), channel_dim) for v in (values, value))
        return Sum(*pair, c.x.size + outputs)

    dx, dx_size = seen(back * slope / c.std), seen(back_size * slope / c.std)
    return {
        "x": Sum(_restore(dx, rows, dim), _restore(dx_size, rows, dim), outputs),
        "weights": Sum(da, da_size, g[0, 0].size),
        "mean": total(-dx, dx_size),
        "std": total(-seen(back * half * frames / c.std), seen(back_size * half * size / c.std)),
    }


class _Canonical(NamedTuple):
    x: np.ndarray  # [B, T, …]
    z: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    rows: Rows


def _canonical(x: torch.Tensor, rows: Rows, dim: int, mean, std, channel_dim: int | None) -> _Canonical:
    acc = accumulate_dtype(x.dtype)

    def along(value, default: float) -> np.ndarray:
        """The value as rounded to the accumulate type, broadcast over x."""
        if not isinstance(value, torch.Tensor):
            value = torch.tensor(default if value is None else value, dtype=torch.float64)
        value = value.detach().cpu().to(acc).double().numpy()
        shape = [1] * x.dim()
        if channel_dim is not None and value.ndim:
            shape[channel_dim] = -1
        return _clips(np.broadcast_to(value.reshape(shape), tuple(x.shape)), rows, dim)

    frames = _clips(x.detach().cpu().double().numpy(), rows, dim)
    m, s = along(mean, 0.0), along(std, 1.0)
    return _Canonical(frames, (frames - m) / s, m, s, rows)


def _size(c: _Canonical, nonlinearity: str) -> np.ndarray:
    return (np.abs(c.x) + np.abs(c.mean)) / c.std if nonlinearity == "identity" else np.abs(psi(c.z, nonlinearity))


def _clips(x: np.ndarray, rows: Rows, dim: int) -> np.ndarray:
    """[B, T, …] where every clip has its own rows, else [1, T, …]."""
    return np.moveaxis(x, dim, 1) if len(rows) > 1 else np.moveaxis(x, dim, 0)[None]


def _restore(y: np.ndarray, rows: Rows, dim: int) -> np.ndarray:
    return np.moveaxis(y, 1, dim) if len(rows) > 1 else np.moveaxis(y[0], 0, dim)


def _per_channel(values: np.ndarray, channel_dim: int | None) -> np.ndarray:
    if channel_dim is None:
        return np.asarray(values.sum())
    return values.sum(tuple(d for d in range(values.ndim) if d != channel_dim % values.ndim))
