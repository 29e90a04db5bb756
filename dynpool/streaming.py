"""Rank pooling of frames that come one at a time: from a file, a camera, a pipe, a video longer than memory."""

from __future__ import annotations

import bisect
import copy
import functools
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .checks import (
    INPUT_DTYPES,
    OUTPUT_DTYPES,
    Nonlinearity,
    PerChannel,
    check_dense,
    check_flags,
    check_frames,
    check_normalization,
    check_pooling,
)
from .decoder import DecodingError, Pixels, is_decoded, reason_of
from .planes import Pool
from .pooling import temporal_pool
from .pools import pool_for
from .video import Frame, frame_tensor
from .weights import half_norm

P = ParamSpec("P")
R = TypeVar("R")
_CHUNK = 16  # frames that are kept until they are pooled together
_PART, _PART_BYTES = 4, 1 << 23  # of these, made float64 at a time: so many, or more if they take no more bytes


def _one_at_a_time(method: Callable[Concatenate[RankPoolStream, P], R]) -> Callable[Concatenate[RankPoolStream, P], R]:
    """Of all threads that use the stream."""

    @functools.wraps(method)
    def call(self: RankPoolStream, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._turns:
            return method(self, *args, **kwargs)

    return call


class _Turns:
    """A lock that is another in every copy, and in a forked process, which lacks the thread that may have held it."""

    def __init__(self) -> None:
        self._lock, self._process = threading.RLock(), os.getpid()

    def __enter__(self) -> None:
        if self._process != os.getpid():
            self._lock, self._process = threading.RLock(), os.getpid()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[_Turns], tuple[()]]:
        return _Turns, ()


def _as_it_is(value: PerChannel | None) -> PerChannel | None:
    """mean or std, which may be written to, or learned, while frames come."""
    if isinstance(value, Tensor):
        with torch.inference_mode(False):
            return value.detach().clone()
    return copy.copy(value)


class RankPoolStream:
    """Approximate rank pooling, eq. (2) to (4) of Bilen et al. 2016, without knowing T in advance.

    After every frame, `result()` is what `approx_rank_pool` gives for all frames so far. Memory is that of 16 frames, a
    dozen float64 images and 8 MB, however many frames come: with S = Σ ψ(I_t), P = Σ V_q and Q = Σ q V_q the image of
    T frames is 2Q - (T+1)P. Its two terms grow with T² and nearly cancel, so that all sums are float64, and of what
    differs from the first frame: after 100 000 frames the result is still good to nine digits. (Of decoded frames,
    which are summed as they are, and sixteen at a time in float32, to six digits of their largest value.) What never
    differs, of decoded frames in none of its samples, is 0, without a rounding that a picture would stretch. (A value
    that is infinite in a frame becomes NaN.)

    Args:
        time_average: True weighs by eq. (2), on running means; False by eq. (4), on the frames themselves.
        nonlinearity, mean, std, channel_dim: as in `approx_rank_pool`; dimensions are those of a batch [T, *frame].
        normalize_weights: `result()` is divided by ‖α‖₁/2.

    Frames may be Tensors of any shape, of the dtypes of `approx_rank_pool`, on any device, or, as `dynamic_image` takes
    them, uint8 ndarrays [H, W, 3] and PIL images, which become [3, H, W]. These are copied. Frames of PyAV are pooled
    from their planes, with the colours that each has as RGB, and held until there are 16: memory that one was made of
    must not be written to before. No gradient flows through a stream. It can be copied and pickled, and used by several
    threads: one may ask for results, or a copy, while another brings frames (but not pickle it).

    Example:
        >>> stream = RankPoolStream(nonlinearity="sqrt")
        >>> for frame in torch.randint(0, 256, (12, 3, 60, 80), dtype=torch.uint8):  # or of a camera
        ...     stream.update(frame)
        >>> image = dynpool.to_image(stream.result())
        >>> len(stream), image.shape
        (12, torch.Size([3, 60, 80]))
    """

    def __init__(
        self,
        *,
        time_average: bool = True,
        nonlinearity: Nonlinearity = "identity",
        mean: PerChannel | None = None,
        std: PerChannel | None = None,
        channel_dim: int | None = None,
        normalize_weights: bool = False,
    ) -> None:
        # What no frame could fit is refused now.
        check_flags(time_average=time_average, normalize_weights=normalize_weights)
        check_pooling(nonlinearity, None)
        check_normalization(mean, std, channel_dim)
        self.time_average = time_average
        self.normalize_weights = normalize_weights
        self._options: dict[str, Any] = {
            "nonlinearity": nonlinearity,
            "mean": _as_it_is(mean),
            "std": _as_it_is(std),
            "channel_dim": channel_dim,
        }
        self._plain = nonlinearity == "identity" and mean is None and std is None
        self._turns = _Turns()
        self.reset()

    @_one_at_a_time
    def __copy__(self) -> RankPoolStream:
        """With sums of its own."""
        stream = type(self).__new__(type(self))
        vars(stream).update(vars(self))
        for name in ("_turns", "_chunk", "_sums", "_moved", "_decoded"):
            setattr(stream, name, copy.deepcopy(getattr(self, name)))
        return stream

    @_one_at_a_time
    def __deepcopy__(self, memo: dict[int, Any]) -> RankPoolStream:
        reduced: Any = self.__reduce_ex__(4)  # (what makes one, its arguments, the state)
        stream: RankPoolStream = reduced[0](*reduced[1])
        memo[id(self)] = stream
        state = copy.deepcopy(reduced[2], memo)
        if hasattr(stream, "__setstate__"):
            stream.__setstate__(state)
        else:
            vars(stream).update(state)
        return stream

    @_one_at_a_time
    def __len__(self) -> int:
        """T, the frames so far."""
        return len(self._decoded) if self._decoded else self._pooled + self._waiting

    @_one_at_a_time
    def reset(self) -> None:
        """Forget all frames; the next may have another shape."""
        self._chunk: Tensor | None = None  # [16, *frame]
        # Float64 [rows, *frame]: S, P and Q, or S and Σ t ψ(I_t), all of ψ(I_t) - ψ(I_1); and ψ(I_1).
        self._sums = self._first = torch.empty(0)
        self._frame = self._moved = torch.empty(0)  # the first, and where others differ
        self._pooled = self._waiting = 0
        self._decoded: _DecodedStream | None = None

    @_one_at_a_time
    @torch.no_grad()
    def update(self, frame: Frame | Any) -> None:
        """Take one frame.

        Raises:
            TypeError, ValueError: it is no frame, or not of the shape, dtype and device of the frames before.
        """
        if self._chunk is None and is_decoded(frame) and self._options["mean"] is None and self._options["std"] is None:
            self._decoded = self._decoded or _DecodedStream(frame, self._options["nonlinearity"], self.time_average)
            self._decoded.update(frame)
            return
        if self._decoded:
            raise TypeError(f"frame must be a frame of PyAV, as those before, got {type(frame).__name__}")
        image = frame_tensor(frame)
        check_dense("frame", image)
        if image.dtype not in INPUT_DTYPES:
            raise TypeError(f"frame must have one of the dtypes {INPUT_DTYPES}, got {image.dtype}")
        if self._chunk is None:
            self._start(image)
        assert self._chunk is not None
        for name, value, first in (
            ("shape", list(image.shape), list(self._chunk.shape[1:])),
            ("dtype", image.dtype, self._chunk.dtype),
            ("device", image.device, self._chunk.device),
        ):
            if value != first:
                raise ValueError(f"frame must have the {name} of the frames before, {first}, got {value}")
        self._chunk[self._waiting].copy_(image)
        self._waiting += 1
        if self._waiting == _CHUNK:
            self._pool_chunk()

    @_one_at_a_time
    @torch.no_grad()
    def result(self, out_dtype: torch.dtype | None = None) -> Tensor:
        """The pooled image of all frames so far, the shape of a frame; zeros after one. Its dtype is `out_dtype`, or
        that of the frames, and float32 for uint8.

        Raises:
            ValueError: there was no frame yet.
        """
        if out_dtype is not None and out_dtype not in OUTPUT_DTYPES:
            raise TypeError(f"out_dtype must be one of {OUTPUT_DTYPES}, got {out_dtype}")
        if self._decoded:
            image, own = self._decoded.result(), torch.float32
        elif self._chunk is not None:
            image, own = self._result(), torch.float32 if self._chunk.dtype == torch.uint8 else self._chunk.dtype
        else:
            raise ValueError("a stream must have had a frame before its result, got none")
        if self.normalize_weights and len(self) > 1:
            image /= half_norm(len(self), self.time_average)
        return image.to(out_dtype or own)

    def _result(self) -> Tensor:
        self._pool_chunk()
        P, Q = self._sums[-2:].unbind()  # or S and Σ t ψ(I_t)
        return (2 * Q).sub_(P, alpha=len(self) + 1).masked_fill_(~self._moved, 0)

    def _start(self, image: Tensor) -> None:
        check_frames(image[None], 0)
        with torch.inference_mode(False), torch.no_grad():  # the stream may go on outside of inference mode
            self._first = self._values(image.detach()).clone()
            self._frame = image.detach().clone()
            self._moved = ~image.isfinite()  # NaN, and ∞, whose sum is NaN, are to stay in the result
            self._sums = self._first.new_zeros(3 if self.time_average else 2, *image.shape)
            self._chunk = torch.empty((_CHUNK, *image.shape), dtype=image.dtype, device=image.device)

    def _values(self, frame: Tensor) -> Tensor:
        """ψ of one frame, float64."""
        if self._plain:
            return frame.double()
        one = torch.ones(1, dtype=torch.float64, device=frame.device)
        return temporal_pool(frame[None].double(), one, 0, **self._options)

    def _pool(self, frames: Tensor, rows: Tensor) -> Tensor:
        """rows [R, k] of frames [k, …], float64; a few frames at a time, since that is eight times their bytes."""
        rows = rows.to(frames.device)
        part = max(_PART, _PART_BYTES // max(8 * frames.shape[1:].numel(), 1))
        parts = zip(frames.split(part), rows.split(part, 1), strict=True)
        pooled = (temporal_pool(few.double(), weights, 0, **self._options) for few, weights in parts)
        return functools.reduce(Tensor.add_, pooled)

    def _pool_chunk(self) -> None:
        """The frames that wait join the sums."""
        if not self._waiting or self._chunk is None:
            return
        k = self._waiting
        frames = self._chunk[:k].unbind()
        if k > (4 if self._plain else 2):  # fewer are faster one by one
            self._add_together(self._chunk[:k])
        else:
            for number, frame in enumerate(frames, self._pooled + 1):
                self._add(frame, number)
        for frame in frames:
            self._moved |= frame != self._frame  # so is NaN
        self._pooled, self._waiting = self._pooled + k, 0

    def _add(self, frame: Tensor, number: int) -> None:
        """A frame, counted from 1, joins the sums."""
        S, P, *Q = self._sums.unbind()  # or S and Σ t ψ(I_t)
        value = self._values(frame) - self._first
        S += value
        if Q:
            P.add_(S, alpha=1 / number)
            Q[0] += S
        else:
            P.add_(value, alpha=number)

    def _add_together(self, frames: Tensor) -> None:
        """Frames a+1 … a+k join the sums: one weighted sum a row."""
        k, a = len(frames), self._pooled
        number = torch.arange(a + 1, a + k + 1, dtype=torch.float64, device="cpu")
        ones = torch.ones_like(number)
        rows = torch.stack([ones, number])
        if self.time_average:
            since = (1 / number).flip(0).cumsum(0).flip(0)  # Σ 1/q over q from the frame to the end
            left = number.flip(0) - a  # how many those are
            rows = torch.stack([ones, since, left])
        new = self._pool(frames, rows)
        for image, weight in zip(new, rows.sum(1).tolist(), strict=True):
            image.sub_(self._first, alpha=weight)
        if self.time_average:
            self._sums[1].add_(self._sums[0], alpha=since[0].item())
            self._sums[2].add_(self._sums[0], alpha=k)
        self._sums += new


# --- decoded frames -------------------------------------------------------------------------------------------------


class Windows:
    """Weighted sums, or maxima, of windows of a video: frames [start, start + window) for every start.

    Every frame is decoded once; a window's sum lives from its first frame to its last. The video's last frame stands
    for those that its last window lacks.
    """

    def __init__(self, pool: Pool, window: int, starts: Sequence[int], weights: Sequence[float] | None) -> None:
        """starts: ascending, as many as there may be. weights: of the window's frames; None takes maxima."""
        self._pool, self._window, self._starts, self._weights = pool, window, starts, weights
        self._open: dict[int, Tensor] = {}  # by start
        self._free: list[Tensor] = []  # to be written again: fresh memory is slow
        self._count = self._reached = 0  # frames so far, and the end of the last whole window

    def take(self, frames: Sequence[Any]) -> Iterator[Tensor]:
        """Yields the sums of the windows that these frames end, in order: use each before the next is asked for."""
        first, end = self._count, self._count + len(frames)
        # Those that have a frame in [first, end).
        starts = self._starts[
            bisect.bisect_right(self._starts, first - self._window) : bisect.bisect_left(self._starts, end)
        ]
        self._add(frames, first, starts)
        self._count = end
        for start in starts:
            if start + self._window <= end:
                self._reached = start + self._window
                row = self._open.pop(start)
                yield row
                if self._weights:
                    self._free.append(row)

    def finish(self, last: Any) -> Iterator[Tensor]:
        """Yields the sum of the window that the end of the video cuts short, unless one before reaches the end."""
        if self._open and self._reached < self._count:
            start, row = next(iter(self._open.items()))
            if self._weights:
                self._pool.add([last], [row], [[math.fsum(self._weights[self._count - start :])]])
            yield row

    def _add(self, frames: Sequence[Any], first: int, starts: Sequence[int]) -> None:
        fresh = [start not in self._open for start in starts]
        for start in itertools.compress(starts, fresh):
            self._open[start] = self._empty()
        rows = [self._open[start] for start in starts]
        if not rows:
            return
        if self._weights is None:
            spans = [slice(max(start - first, 0), start + self._window - first) for start in starts]
            self._pool.take_largest(frames, rows, spans)
        else:
            numbers = range(first, first + len(frames))
            weights = [[self._weights[t - s] if 0 <= t - s < self._window else 0.0 for t in numbers] for s in starts]
            self._pool.add(frames, rows, weights, fresh=fresh)

    def _empty(self) -> Tensor:
        if self._weights is None:
            return self._pool.zeros(torch.uint8)
        return self._free.pop() if self._free else self._pool.empty()


class Endless:
    """Sums from which the weighted sum of any number of frames follows, when that is known at last.

    Eq. (2) gives α_t = (T+1)(2 - H_T) - 2t + (T+1) H_{t-1} for T frames, and eq. (4) α_t = 2t - T - 1: combinations of
    the float64 sums of ψ(I_t), t ψ(I_t) and H_{t-1} ψ(I_t).
    """

    def __init__(self, pool: Pool, time_average: bool) -> None:
        self._pool, self._time_average = pool, time_average
        self._rows = [pool.zeros(torch.float64) for _ in range(3 if time_average else 2)]
        self.count, self._harmonic = 0, 0.0

    def take(self, frames: Sequence[Any]) -> None:
        """Weights count from the batch's first frame, a + 1: small numbers, which float32 holds."""
        a, k = self.count, len(frames)
        steps = list(itertools.accumulate((1 / t for t in range(a + 1, a + k)), initial=0.0))  # H_{t-1} - H_a
        weights = [[1.0] * k, [float(i) for i in range(k)], steps]
        mix = [[1.0, 0.0, 0.0], [a + 1.0, 1.0, 0.0], [self._harmonic, 0.0, 1.0]]
        rows = len(self._rows)
        self._pool.add(frames, self._rows, weights[:rows], [line[:rows] for line in mix[:rows]])
        self.count += k
        self._harmonic += steps[-1] + 1 / (a + k)

    def mean(self) -> Tensor:
        """The sum for weights 1 / T."""
        return self._rows[0] / self.count

    def ranked(self) -> Tensor:
        """The sum for α of all frames so far."""
        T = self.count
        factors = [(T + 1) * (2 - self._harmonic), -2, T + 1] if self._time_average else [-(T + 1), 2]
        total = sum(factor * row for factor, row in zip(factors, self._rows, strict=True))
        assert isinstance(total, Tensor)
        return total if T > 1 else torch.zeros_like(total)


class _Changes:
    """Where frames of a pool differ from their first."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._first: list[Pixels] = []
        self._marks: list[npt.NDArray[np.bool_]] = []

    def take(self, frames: Sequence[Any]) -> None:
        if not self._first:
            self._first = [samples.copy() for samples in self._pool.samples(frames[0])]
            self._marks = [np.zeros(samples.shape, np.bool_) for samples in self._first]
        if all(mark.all() for mark in self._marks):
            return
        for frame in frames:
            for mark, samples, first in zip(self._marks, self._pool.samples(frame), self._first, strict=True):
                mark |= samples != first

    def values(self) -> Tensor:
        """bool, of the shape of a sum."""
        return self._pool.spread(self._marks)


class _DecodedStream:
    """A stream of frames of PyAV."""

    def __init__(self, first: Any, nonlinearity: Nonlinearity, time_average: bool) -> None:
        if not (first.width and first.height):
            raise ValueError(f"frame must have pixels, got {first.width} x {first.height}")
        self._pool = pool_for(first, nonlinearity, torch.device("cpu"), None, colours=True)
        self._sums = Endless(self._pool, time_average)
        self._moved = _Changes(self._pool)
        self._waiting: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        """Without frames, which cannot be copied."""
        self._flush()
        return vars(self)

    def __len__(self) -> int:
        return self._sums.count + len(self._waiting)

    def update(self, frame: Any) -> None:
        form = self._pool.form
        if (frame.width, frame.height) != (form.width, form.height):
            before = f"{form.width} x {form.height}"
            raise ValueError(
                f"frame must have the size of the frames before, {before}, got {frame.width} x {frame.height}"
            )
        try:
            self._waiting.append(self._pool.fitting(frame))
        except DecodingError as error:
            raise ValueError(f"frame cannot be converted: {reason_of(error)}") from error
        if len(self._waiting) == self._pool.batch:
            self._flush()

    def result(self) -> Tensor:
        """float64 [3, H, W]"""
        self._flush()
        return self._pool.image(self._sums.ranked().where(self._moved.values(), 0), 0.0)

    def _flush(self) -> None:
        if self._waiting:
            self._sums.take(self._waiting)
            self._moved.take(self._waiting)
            self._waiting.clear()
