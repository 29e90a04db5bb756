"""Whether a solution of exact rank pooling is as near to the minimum as it says, for all that float32 has rounded.

The solver sees products of frames, and d is a weighted sum of frames: both in float32, but for float64 frames. What
that may change of a score is estimated; where it might count, objective and gap are measured of d itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import solve
from .gram import KERNEL_BLOCK, Gram
from .reference import accumulate_dtype

_GRADIENT_LIMIT = 1e-6  # of the gap, where the solver goes to 1e-8
_KINDS = 1 << 12  # of values that are not rounded alike, at most
_SAMPLE = 32  # values of a frame that are looked at
_STRAY = KERNEL_BLOCK / 32  # roundings that a block of equal products is off by: 8 sums, a quarter at each step
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Problem:
    """What `rank_pool` is asked to solve."""

    objective: str
    C: float
    epsilon: float
    tol: float
    max_iter: int
    derives: bool  # whether a gradient is asked for

    @property
    def sees_pairs(self) -> bool:
        """Differences of frames, and so no mean of theirs."""
        return self.objective != "svr"

    @property
    def limit(self) -> float:
        """The relative gap that is good enough. A gradient is as good as the solution."""
        return min(self.tol, _GRADIENT_LIMIT) if self.derives else self.tol

    def missed_by(self, change: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
        """Whether an objective of this value may miss `tol`, since scores may have changed by so much, [B].

        Of "ranksvm", whose d is enlarged so that pairs which had their margin keep it: ½‖d‖² and what other pairs lack
        grow by twice that, and by as much again for what pairs at the margin weigh, no more than twice the objective.
        Of the others the loss, a sum of squares below the objective, changes by twice its root.
        """
        if self.objective == "ranksvm":
            return ~(4 * change <= self.tol)
        weight = self.C * (lengths if self.objective == "svr" else 1)
        return ~(2 * (weight * value).sqrt() * change <= self.tol * value)  # also of one below 0, by roundings

    def unmeasured(self, scores: Tensor, rounding: float, value: Tensor, lengths: Tensor) -> Tensor:
        """Whether an objective of this value, measured by scores that are rounded, may miss `tol`, [B].

        The sum of squares of "svr" changes by each score's rounding times twice what the frame lacks, and by the square
        of the rounding.
        """
        if self.objective != "svr":
            return self.missed_by(rounding * scores.abs().amax(1), value, lengths)
        lost = rounding * scores.abs()
        lacking = solve.residuals(scores, lengths, self.epsilon)
        change = ((2 * lacking + lost) * lost).sum(1)
        return ~(self.C * change <= self.tol * value)

    def measured(
        self, solution: solve.Solution, norm: Tensor, square: Tensor, scores: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Objective and gap of d itself, with ‖d‖² = square and these scores, where the solver had ‖d‖² = norm: the
        dual value changes by that alone.
        """
        value = solve.objective_of(square, scores, lengths, self.objective, self.C, self.epsilon)
        dual = solution.objective - solution.gap + (norm - square) / 2
        return value, (value - dual).abs()


class Roundings(NamedTuple):
    """What roundings of float32 may change a score by (of pairs: the difference of two), [B]."""

    of_sums: Tensor  # those of the frames' products and weighted sum
    of_weights: Tensor  # those of the weights, unless frames are summed `finely`
    of_result: Tensor  # those of d in its own dtype

    @classmethod
    def of(
        cls,
        x: Tensor,
        products: Gram,
        K: Tensor,
        means: Callable[[Tensor], Tensor],
        weights: Tensor,
        norm: Tensor,
        kinds: Tensor,
        sees_pairs: bool,
        out_dtype: torch.dtype,
    ) -> Roundings:
        """Of d = Σ_t weights_t ψ(I_t), ‖d‖² = norm.

        A score is a product with V_t, and changes by what d, or the products of frames, lose times the largest ‖V‖.
        What values lose has any sign, so that they lose less together, but for those that are alike, of which there are
        so many kinds, and for those whose products a kernel adds up in float32.
        """
        dtype = accumulate_dtype(x.dtype)
        eps, result_eps = torch.finfo(dtype).eps, torch.finfo(out_dtype).eps
        values = max(1, x.numel() // max(1, weights.numel()))  # of a frame
        blocks = kinds.clamp(max=max(1, values // KERNEL_BLOCK))
        centred = products.centred.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
        sizes = centred + products.norm.sqrt()[:, None]  # no less than ‖ψ(I_t)‖
        of_pairs = 2 * K.diagonal(dim1=1, dim2=2).amax(1).clamp_min(0).sqrt()
        reach = of_pairs if sees_pairs else means(sizes).amax(1)  # ‖V_q - V_t‖, or ‖V_t‖, at most
        terms = (weights.abs() * sizes).where(weights != 0, 0)  # still frames may be larger than their products can be
        stray = (_STRAY / kinds**0.5).clamp_min(1)
        of_products = stray * (weights.abs() * (centred if sees_pairs else sizes)).sum(1) / blocks**0.5
        of_sum = terms.sum(1) / kinds**0.5
        of_weights = terms.square().sum(1).sqrt() / 2
        of_result = (norm.clamp_min(0) / kinds).sqrt() * (result_eps if result_eps > eps else 0)
        return cls(eps * reach * (of_products + of_sum), eps * reach * of_weights, reach * of_result)

    def growth(self, finely: bool, tol: float, dtype: torch.dtype) -> Tensor:
        """By which a d of "ranksvm" is enlarged, so that pairs keep a margin of 1, [B]: half of what is estimated is
        several times what videos and noise lose.
        """
        change = self.of_sums + self.of_result + (0 if finely else self.of_weights)
        return 1 + (8 * torch.finfo(dtype).eps + change / 2).clamp(max=tol / 4)


def kinds_of(x: Tensor, dim: int, lengths: Tensor) -> Tensor:
    """How many kinds of values frames have, [B]: of a kind are those that are the same in each of the frames, as in
    solid areas. So many kinds, all alike in size, would have as many equal pairs as there are in a sample.
    """
    clips = x[None].movedim(dim + 1, 1) if dim == 0 else x.movedim(dim, 1)  # [B, T, …]
    clips = clips[..., None] if clips.dim() == 2 else clips
    values = clips.shape[2:].numel()
    sampled, where = _sampled(clips.shape[1], clips.shape[2:])
    frames = sampled.to(x.device)
    index: tuple[Any, ...] = (slice(None), frames, *where.to(x.device))
    sample = clips[index].double().where(frames < lengths[:, None, None], 0)

    mixed, sizes = (sample * (frames * _GOLDEN).cos()).sum(1), sample.square().sum(1)  # [B, places]
    alike = (mixed[:, :, None] == mixed[:, None]).double()
    together = (alike @ sizes[..., None])[..., 0].mul_(sizes).sum(1)
    alone, all_together = sizes.square().sum(1), sizes.sum(1).square()
    return ((all_together - alone) / (together - alone)).nan_to_num(1, _KINDS).clamp(1, min(max(values, 1), _KINDS))


@functools.lru_cache(maxsize=64)
def _sampled(num_frames: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Frames [frames, 1], the first two of which short clips have, too; and indices [dimension, value] of values in
    them. On the CPU: memory of a GPU would belong to the stream that asked first.
    """
    frames = sorted({0, min(1, num_frames - 1), num_frames // 2, num_frames - 1})
    values = shape.numel()
    places = [index * max(values, _SAMPLE) // _SAMPLE for index in range(min(values, _SAMPLE))]
    where = torch.unravel_index(torch.tensor(places, device="cpu", dtype=torch.int64), shape)
    return torch.tensor(frames, device="cpu")[:, None], torch.stack(where)
