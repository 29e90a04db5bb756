"""rank_pool: against independent solutions in D dimensions, its certificate, its gradient, and what it refuses."""

from __future__ import annotations

import functools
import math
import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import parameters
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

import dynpool
from dynpool import approx_rank_pool, binary, rank_pool, ranking_accuracy, solve
from dynpool.exact import OBJECTIVES
from dynpool.gram import gram


def clip(num_frames: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """Frames that drift, float64 [T, *shape]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(2, num_frames, *shape, generator=generator, dtype=torch.float64)
    return noise[0] + 0.1 * noise[1].cumsum(0)


def running_means(x: torch.Tensor) -> torch.Tensor:
    """V [T, D]"""
    return x.flatten(1).cumsum(0) / torch.arange(1, len(x) + 1, dtype=x.dtype)[:, None]


def value(d: np.ndarray, V: np.ndarray, objective: str, C: float, epsilon: float) -> float:
    """The objective as the docstring has it, in D dimensions."""
    s, T = V @ d, len(V)
    if objective == "svr":
        return d @ d / 2 + C * np.sum(np.maximum(np.abs(np.arange(1, T + 1) - s) - epsilon, 0) ** 2)
    q, t = np.tril_indices(T, -1)
    loss = np.maximum(1 - s[q] + s[t], 0)
    return d @ d / 2 + 2 * C / (T * (T - 1)) * np.sum(loss**2 if objective == "ranksvm_squared" else loss)


def solve_smooth(V: np.ndarray, objective: str, C: float, epsilon: float) -> float:
    """Minimum by L-BFGS over d, for the objectives that have a gradient."""
    optimize = pytest.importorskip("scipy.optimize", reason="needs scipy, for independent solutions")
    T = len(V)
    q, t = np.tril_indices(T, -1)

    def with_gradient(d: np.ndarray) -> tuple[float, np.ndarray]:
        s = V @ d
        if objective == "svr":
            excess = np.arange(1, T + 1) - s
            slope = -2 * C * np.sign(excess) * np.maximum(np.abs(excess) - epsilon, 0)
        else:
            pull = -2 * (2 * C / (T * (T - 1))) * np.maximum(1 - s[q] + s[t], 0)
            slope = np.bincount(q, pull, T) - np.bincount(t, pull, T)
        return value(d, V, objective, C, epsilon), d + slope @ V

    best = optimize.minimize(
        with_gradient,
        np.zeros(V.shape[1]),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 20000, "maxfun": 40000, "ftol": 1e-15, "gtol": 1e-12, "maxcor": 30},
    )
    return best.fun


def solve_hinge(V: np.ndarray, C: float) -> float:
    """Minimum of eq. (1) by coordinate ascent on its pairs, in D dimensions, to a gap of 1e-8."""
    T = len(V)
    q, t = np.tril_indices(T, -1)
    D, upper = V[q] - V[t], 2 * C / (T * (T - 1))
    beta, d, norms = np.zeros(len(D)), np.zeros(V.shape[1]), (D * D).sum(1)
    for _ in range(200_000):
        for p in range(len(D)):
            change = np.clip(beta[p] + (1 - D[p] @ d) / norms[p], 0, upper) - beta[p]
            beta[p] += change
            d += change * D[p]
        primal = value(d, V, "ranksvm", C, 0)
        if primal - (beta.sum() - d @ d / 2) < 1e-8 * primal:
            return primal
    raise AssertionError("the reference did not converge")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("num_frames", [2, 3, 7, 11])
def test_objective_is_that_of_an_independent_solution(num_frames, C, objective):
    x = clip(num_frames, 5, 3)
    d, info = rank_pool(x, 0, objective=objective, C=C, tol=1e-9, return_info=True)
    V = running_means(x).numpy()
    expected = solve_hinge(V, C) if objective == "ranksvm" else solve_smooth(V, objective, C, 0.1)
    assert float(info.objective) == pytest.approx(expected, rel=1e-6)
    # d itself has that value, and its scores are those that the solver knows.
    assert value(d.flatten().numpy(), V, objective, C, 0.1) == pytest.approx(expected, rel=1e-6)
    assert np.allclose(info.scores.numpy(), V @ d.flatten().numpy(), rtol=1e-6, atol=1e-8)


def test_two_frames_by_hand():
    # One pair: V_1 = (0, 0), V_2 = (1, 0), D = (1, 0), C' = C. β = min(C, 1 / ‖D‖²), d = β D.
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    for C, beta in [(0.25, 0.25), (4.0, 1.0)]:
        d, info = rank_pool(x, 0, C=C, tol=1e-10, return_info=True)
        assert torch.allclose(d, torch.tensor([beta, 0.0], dtype=torch.float64), atol=1e-6)
        assert float(info.objective) == pytest.approx(beta**2 / 2 + C * (1 - beta), rel=1e-8)
        assert torch.allclose(info.weights, torch.tensor([-beta / 2, beta / 2], dtype=torch.float64), atol=1e-6)
    # Squared: β = 2C (1 - β), so β = 2C / (1 + 2C).
    d = rank_pool(x, 0, objective="ranksvm_squared", C=1.0, tol=1e-10)
    assert torch.allclose(d, torch.tensor([2 / 3, 0.0], dtype=torch.float64), atol=1e-6)
    # SVR on V = (0, 1): ½u² + C (max(0, 2 - u - ε))² + constant, so u = 2C(2 - ε) / (1 + 2C).
    d = rank_pool(x, 0, objective="svr", C=1.0, epsilon=0.5, tol=1e-12)
    assert torch.allclose(d, torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("C", [1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("num_frames", [2, 5, 31, 150])
def test_gap_is_honoured(num_frames, C, objective):
    x = clip(num_frames, 4, 6)
    x[num_frames // 2] = x[num_frames // 2 - 1]  # a duplicate
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, info = rank_pool(x[None], objective=objective, C=C, return_info=True)
    assert 0 <= float(info.duality_gap) <= 1e-3 * float(info.objective)
    d, _ = rank_pool(x[None], objective=objective, C=C, return_info=True)
    actual = value(d.flatten().numpy(), running_means(x).numpy(), objective, C, 0.1)
    assert actual == pytest.approx(float(info.objective), rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("C", [1.0, 1e6])
def test_gap_of_clips_that_cannot_be_ranked(C, objective):
    # More frames than dimensions, in no order: coordinate ascent is slow at large C, and leaves such clips to another
    # solver, while it solves their neighbours in the batch.
    x = torch.stack([torch.randn(29, 6, dtype=torch.float64), clip(29, 6)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        d, info = rank_pool(x, objective=objective, C=C, time_average=False, return_info=True)
    assert bool((info.duality_gap <= 1e-3 * info.objective).all())
    for b in range(2):
        actual = value(d[b].numpy(), x[b].numpy(), objective, C, 0.1)
        assert actual == pytest.approx(float(info.objective[b]), rel=1e-6)


@pytest.mark.parametrize("objective", ["ranksvm", "ranksvm_squared"])
@pytest.mark.parametrize("C", [1e3, 1e7])
def test_gap_where_coordinate_ascent_gives_up(C, objective):
    x = torch.randn(8, 5, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, info = rank_pool(x, objective=objective, C=C, time_average=False, return_info=True)
    assert bool((info.duality_gap <= 1e-3 * info.objective).all())


@pytest.mark.parametrize("objective", ["ranksvm", "ranksvm_squared"])
def test_clips_left_to_another_solver_keep_their_lengths(objective):
    x = torch.stack([clip(29, 6), torch.randn(29, 6, dtype=torch.float64)])
    options = {"objective": objective, "C": 1e6, "time_average": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        d, info = rank_pool(x, lengths=[7, 29], return_info=True, **options)
    actual = value(d[1].numpy(), x[1].numpy(), objective, 1e6, 0.1)
    assert actual == pytest.approx(float(info.objective[1]), rel=1e-6)


def test_steps_of_newton_do_not_go_in_circles(backend):
    """As they do, unless they are shortened, where frames leave the tube at one and enter it at the next."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, 2, dtype=torch.float64, generator=generator).to(backend.device)
    options = {"objective": "svr", "C": 100.0, "epsilon": 2.0, "time_average": False, "tol": 1e-9}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, info = rank_pool(x, return_info=True, **options)
    assert (info.duality_gap <= 1e-9 * info.objective).all()


def test_the_best_is_kept_where_rounding_ends_the_steps():
    generator = torch.Generator().manual_seed(0)
    V = torch.randn(6, 12, 4, dtype=torch.float64, generator=generator)
    K, lengths = V @ V.mT, torch.full((6,), 12)
    loose, tight = (solve._solve_pairs(K, lengths, 1e6, False, tol, 300) for tol in (1e-5, 1e-16))
    assert bool((loose.gap <= 1e-5 * loose.objective).all())
    assert bool((tight.gap <= loose.gap).all())  # whose steps it took, too


@pytest.mark.parametrize("C", [100.0, 300.0])
@pytest.mark.parametrize("seed", [10, 12, 20])
def test_gradients_where_coordinate_ascent_gives_up(seed, C):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 12, 4, dtype=torch.float64, generator=generator)
    w = torch.randn(1, 4, dtype=torch.float64, generator=generator)
    v = torch.randn(1, 12, 4, dtype=torch.float64, generator=generator)

    def loss(x):
        return (rank_pool(x, C=C, time_average=False, tol=1e-10) * w).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 1e-10 is more than rounding always allows
        (g,) = torch.autograd.grad(loss(x.requires_grad_()), x)
        with torch.no_grad():
            differences = (loss(x + 1e-6 * v) - loss(x - 1e-6 * v)) / 2e-6
    assert float((g * v).sum()) == pytest.approx(float(differences), rel=2e-2, abs=1e-3)


def test_a_gradient_where_frames_differ_little_in_one_direction():
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 1.0, 1.0, 0.3], dtype=torch.float64)
    x = torch.randn(1, 6, 4, dtype=torch.float64, generator=generator) * scale
    w = torch.randn(1, 4, dtype=torch.float64, generator=generator)
    v = torch.randn(1, 6, 4, dtype=torch.float64, generator=generator) * scale

    def loss(x):
        return (rank_pool(x, C=1e3, time_average=False, tol=1e-10) * w).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 1e-10 is more than rounding always allows
        (g,) = torch.autograd.grad(loss(x.requires_grad_()), x)
        with torch.no_grad():
            differences = (loss(x + 1e-5 * v) - loss(x - 1e-5 * v)) / 2e-5
    assert float((g * v).sum()) == pytest.approx(float(differences), rel=1e-3)


def test_gap_of_two_thousand_frames():
    x = clip(2000, 4, 5)
    for objective in ("ranksvm", "svr"):
        d, info = rank_pool(x, 0, objective=objective, return_info=True)
        assert 0 <= float(info.duality_gap) <= 1e-3 * float(info.objective)
        actual = value(d.flatten().numpy(), running_means(x).numpy(), objective, 1.0, 0.1)
        assert actual == pytest.approx(float(info.objective), rel=1e-6)


def test_gap_is_a_bound(backend):
    # A loose solution lies above a tight one by no more than its gap.
    x = clip(23, 7).to(backend.device)
    for objective in OBJECTIVES:
        best = float(rank_pool(x, 0, objective=objective, tol=1e-9, return_info=True)[1].objective)
        info = rank_pool(x, 0, objective=objective, tol=0.3, return_info=True)[1]
        assert best <= float(info.objective) * (1 + 1e-9)
        assert float(info.objective - info.duality_gap) <= best * (1 + 1e-9)


def test_without_a_gradient_no_gap_of_one():
    x = clip(60, 300)
    _, right = rank_pool(x, 0, return_info=True)
    with torch.no_grad():
        _, found = rank_pool(x.clone().requires_grad_(), 0, return_info=True)
    _, tight = rank_pool(x.clone().requires_grad_(), 0, return_info=True)
    assert found.iterations == right.iterations < tight.iterations


def test_an_end_before_the_tolerance_warns():
    with pytest.warns(RuntimeWarning, match=r"1 of 1 clips did not reach tol = 1e-09 in 2 iterations") as told:
        rank_pool(clip(20, 5), 0, tol=1e-9, max_iter=2)
    assert told[0].filename == __file__


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("nonlinearity", ["identity", "sqrt"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64], ids=str)
def test_a_constant_video(dtype, nonlinearity, objective):
    frame = 1 + torch.rand(2, 1, 3, 4) * 200
    x = frame.expand(2, 7, 3, 4).to(dtype)  # whose mean over seven frames is rounded
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        d = rank_pool(x, objective=objective, nonlinearity=nonlinearity)
    assert d.isfinite().all()
    if objective != "svr":
        assert torch.equal(d, torch.zeros_like(d))
    else:  # a multiple of ψ(frame)
        ratio = d / (x[:, 0].to(d.dtype).sqrt() if nonlinearity == "sqrt" else x[:, 0])
        assert torch.allclose(ratio, ratio[:, :1, :1].expand_as(ratio), atol=1e-5)  # of weights of 6 that cancel


@pytest.mark.parametrize("place", [0, 1])
def test_products_of_frames_beside_one_that_is_nothing_like_them(backend, place):
    """Whether it is among those whose mean is taken off, as the first is, or not."""
    x = 0.5 + 0.1 * torch.randn(1, 320, 2048, generator=torch.Generator().manual_seed(0))
    x[:, place] = 1000
    found, expected = (gram(frames.to(backend.device)).centred[0].cpu() for frames in (x, x.double()))
    others = torch.arange(320) != place
    error = (found - expected)[others][:, others].abs().max()
    assert error <= 1e-5 * expected.diagonal().median()  # 7e-5 with a sixteenth of that frame taken off


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_frames_whose_products_underflow_are_ranked(objective):
    x = torch.randn(4, 10, generator=torch.Generator().manual_seed(0)) * 1e-24
    options = {"objective": objective, "C": 1e48, "return_info": True}
    (d, info), (expected, of_doubles) = rank_pool(x, 0, **options), rank_pool(x.double(), 0, **options)
    assert info.objective.item() == pytest.approx(of_doubles.objective.item())
    assert torch.allclose(d.double(), expected, rtol=1e-3)


@pytest.mark.parametrize("objective", ["ranksvm", "ranksvm_squared"])
def test_frames_that_are_nearly_alike_are_ranked(backend, objective):
    x = (1000 + 0.1 * torch.rand(1, 7, 50)).to(backend.device)
    d, expected = rank_pool(x, objective=objective), rank_pool(x.double(), objective=objective)
    # Numbers of 1000 are rounded by 3e-5, and of 0.1, of which frames differ, that is a thousandth.
    assert (d - expected).abs().max() <= 0.01 * expected.abs().max()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_layouts_and_dimensions(device, dtype, objective):
    x = (torch.rand(3, 9, 3, 5, 7) * 200).to(dtype).to(device)
    options = {"objective": objective, "nonlinearity": "sqrt", "mean": [1.0, 2.0, 3.0], "std": 50.0, "tol": 1e-8}
    expected = rank_pool(x.double(), **options, channel_dim=2)
    d = rank_pool(x, **options, channel_dim=2)
    assert d.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    scale = expected.abs().amax()
    # float32 products of pixels enter the Gram matrix, half results are rounded once more.
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(dtype, 1e-3) * scale
    assert (d.double() - expected).abs().amax() < tolerance
    views = {
        "frames last": (x.movedim(1, -1).contiguous(), -1, 1),
        "channels last": (x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3), 1, 2),
        "sliced": (torch.cat([x, x], -1)[..., :7], 1, 2),
    }
    for name, (view, dim, channel_dim) in views.items():
        other = rank_pool(view, dim, **options, channel_dim=channel_dim)
        assert (other.double() - d.double()).abs().amax() < tolerance, name
    alone = rank_pool(x[1], 0, **options, channel_dim=1)
    assert (alone.double() - d[1].double()).abs().amax() < tolerance


def test_padding_has_no_say():
    x = torch.stack([clip(9, 4), clip(9, 4, seed=1)])
    x[1, 5:] = math.nan
    d, info = rank_pool(x, lengths=[9, 5], tol=1e-9, return_info=True)
    alone = rank_pool(x[1:, :5], tol=1e-9)
    assert torch.allclose(d[1:], alone, atol=1e-7)
    assert torch.equal(info.weights[1, 5:], torch.zeros(4, dtype=torch.float64))
    assert torch.equal(info.scores[1, 5:], torch.zeros(4, dtype=torch.float64))
    assert ranking_accuracy(d, x, lengths=[9, 5]).isfinite().all()


def test_one_frame_has_no_order():
    assert torch.equal(rank_pool(torch.rand(2, 1, 3)), torch.zeros(2, 3))
    assert ranking_accuracy(torch.zeros(2, 3), torch.rand(2, 1, 3)).isnan().all()


@pytest.mark.parametrize("objective", ["ranksvm", "ranksvm_squared"])
def test_one_frame_among_longer_clips(backend, objective):
    x = torch.stack([clip(9, 4), clip(9, 4, seed=1)]).to(backend.device).requires_grad_()
    d, info = rank_pool(x, objective=objective, lengths=[9, 1], return_info=True)
    (gradient,) = torch.autograd.grad(d.square().sum() + d.sum(), x)
    assert gradient[0].isfinite().all()
    for of_one in (d[1], gradient[1], info.objective[1], info.duality_gap[1], info.scores[1], info.weights[1]):
        assert torch.equal(of_one, torch.zeros_like(of_one))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_objective_of_scores(objective):
    """By which it is told whether a clip must be solved again."""
    x, d = torch.stack([clip(9, 4), clip(9, 4, seed=1)]), torch.randn(2, 4, dtype=torch.float64)
    lengths = torch.tensor([9, 5])
    scores = torch.einsum("btd,bd->bt", x, d)
    found = solve.objective_of(d.square().sum(1), scores, lengths, objective, 3.0, 0.1)
    for b, length in enumerate(lengths.tolist()):
        expected = value(d[b].numpy(), x[b, :length].numpy(), objective, 3.0, 0.1)
        assert float(found[b]) == pytest.approx(expected, rel=1e-12)


def test_frames_are_tied_by_chains_of_pairs():
    pairs = torch.zeros(1, 12, 12, dtype=torch.bool)
    for t in range(11):
        pairs[0, t + 1, t] = t != 9  # 0 - 1 - … - 9, and 10 - 11
    expected = torch.zeros(12, 12, dtype=torch.float64)
    expected[:10, :10] = expected[10:, 10:] = 1
    assert torch.equal(solve._components(pairs)[0], expected)


def test_gram_by_hand():
    x = torch.tensor([[[1, 2], [3, 4], [0, 5]]], dtype=torch.uint8)
    expected = torch.tensor([[[5, 11, 10], [11, 25, 20], [10, 20, 25]]], dtype=torch.float64)
    assert torch.allclose(gram(x).full(), expected, rtol=1e-6)
    centred = x[0].double() - x[0].double().mean(0)
    assert torch.allclose(gram(x).centred[0], centred @ centred.T, rtol=1e-6)


@pytest.mark.parametrize("tile", [1, 30, 104, 105])
def test_gram_in_tiles(tile, monkeypatch):
    monkeypatch.setattr(binary, "kernels_for", lambda device: None)
    monkeypatch.setattr("dynpool.gram._TILE", 4 * tile)  # of four frames of 105 values
    x, mean, std = torch.rand(2, 4, 3, 5, 7, dtype=torch.float64), torch.rand(3).double(), 1 + torch.rand(3).double()
    frames = ((x - mean[:, None, None]) / std[:, None, None]).flatten(2)
    found = gram(x, mean, std, 1, 2)
    assert torch.allclose(found.full(), frames @ frames.mT, rtol=0, atol=1e-11)
    centred = frames - frames.mean(1, keepdim=True)
    assert torch.allclose(found.centred, centred @ centred.mT, rtol=0, atol=1e-11)


def test_near_frames_do_not_cancel():
    # Frames of 1000 that differ by 1e-3: float32 products would know no digit of the differences' products.
    x = 1000 + 1e-3 * torch.rand(1, 5, 4096, dtype=torch.float64)
    exact = gram(x).centred
    error = (gram(x.float()).centred - exact).abs().amax() / exact.abs().amax()
    assert error < 0.1  # the frames' own rounding is 3e-5 of differences of 3e-4


@pytest.mark.parametrize("backend", parameters("cpu", "reference", "cuda"), indirect=True)  # emulation takes its time
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("C", [0.05, 1.0])
@pytest.mark.parametrize("time_average", [True, False])
def test_gradcheck(backend, objective, C, time_average):
    x = torch.stack([clip(6, 3, 4), clip(6, 3, 4, seed=1)]).to(backend.device).requires_grad_()
    mean = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64, device=backend.device, requires_grad=True)
    std = torch.tensor([1.1, 0.9, 1.3], dtype=torch.float64, device=backend.device, requires_grad=True)

    def pool(x, mean, std):
        return rank_pool(
            x,
            objective=objective,
            C=C,
            tol=1e-11,
            time_average=time_average,
            nonlinearity="sqrt",
            mean=mean,
            std=std,
            channel_dim=2,
            lengths=[6, 4],
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 1e-11 is more than rounding always allows
        assert gradcheck(pool, (x, mean, std), eps=1e-6, atol=1e-4, rtol=1e-3)


def test_a_gradient_is_of_a_solution_that_is_near():
    x = clip(20, 5)[None].requires_grad_()
    options = {"objective": "svr", "C": 100.0, "return_info": True}  # whose second step leaves a gap of 3e-4
    _, info = rank_pool(x, **options)
    assert float(info.duality_gap) <= 1e-8 * float(info.objective)
    assert not any(tensor.requires_grad for tensor in vars(info).values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rank_pool(x.detach(), max_iter=2, **options)
    with pytest.warns(RuntimeWarning, match="did not reach tol = 1e-06 in 2 iterations"):
        rank_pool(x, max_iter=2, **options)


def test_a_compiled_program_goes_around_it():
    def ranked(x):
        return 2 * rank_pool(x * 1.0, tol=1e-6)

    compiled = torch.compile(ranked, backend="eager")
    for num_frames in (7, 11):
        inputs = [clip(num_frames, 5)[None].requires_grad_() for _ in range(2)]
        results = [run(x) for run, x in zip((ranked, compiled), inputs, strict=True)]
        assert torch.equal(*results)
        assert torch.equal(*(torch.autograd.grad(d.square().sum(), x)[0] for d, x in zip(results, inputs, strict=True)))

    def accuracy(x):
        return 2 * ranking_accuracy(x[:, -1] * 1.0, x)

    x = clip(7, 5)[None]
    assert torch.equal(torch.compile(accuracy, backend="eager")(x), accuracy(x))
    for program in (ranked, accuracy):
        assert torch._dynamo.explain(program)(x).graph_break_count == 1


def test_what_has_no_values_is_refused():
    x = clip(7, 5)[None]
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    for call in (
        lambda: rank_pool(x.to("meta")),
        lambda: rank_pool(fake),
        lambda: torch.vmap(rank_pool)(x[None]),
        lambda: torch.func.grad(lambda x: rank_pool(x).sum())(x),
        lambda: torch.export.export(dynpool.nn.RankPool(), (x,), strict=False),
        lambda: make_fx(lambda x: rank_pool(x))(x),
        lambda: make_fx(lambda x: rank_pool(x), tracing_mode="symbolic")(x),
    ):
        with pytest.raises(RuntimeError, match="rank_pool solves by steps that depend on the values of x"):
            call()


def test_modes_that_see_values_pass(device):
    """As of those who count operations, or choose what a checkpoint keeps."""
    x = clip(7, 5).to(device).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        rank_pool(x, 0).square().sum().backward()
        accuracy = ranking_accuracy(rank_pool(x, 0), x, 0)
    again = x.detach().clone().requires_grad_()
    context_fn = functools.partial(create_selective_checkpoint_contexts, [torch.ops.aten.mm.default])
    checkpoint(rank_pool, again, 0, use_reentrant=False, context_fn=context_fn).square().sum().backward()
    plain = x.detach().clone().requires_grad_()
    rank_pool(plain, 0).square().sum().backward()
    assert counter.get_total_flops() > 0
    assert accuracy == ranking_accuracy(rank_pool(x, 0), x, 0)
    for found in (x, again):
        assert torch.allclose(found.grad, plain.grad, rtol=1e-5)  # solutions for gradients have a gap of 1e-8


def test_inference_mode(device):
    x = of_bytes(2, 30, 10).to(device)
    d = rank_pool(x, objective="svr")  # looks at the scores of d
    right = ranking_accuracy(d, x)
    with torch.inference_mode():
        made_inside = x.clone()
        assert torch.equal(rank_pool(made_inside, objective="svr"), d)
        assert torch.equal(ranking_accuracy(d, made_inside), right)
    assert torch.equal(rank_pool(made_inside, objective="svr"), d)
    assert torch.equal(ranking_accuracy(d, made_inside), right)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoints(device, use_reentrant):
    x, again = (clip(5, 3, 4).to(device).requires_grad_() for _ in range(2))
    rank_pool(x, 0).square().sum().backward()
    checkpoint(rank_pool, again, 0, use_reentrant=use_reentrant).square().sum().backward()
    assert torch.equal(x.grad, again.grad)


@pytest.mark.parametrize("backend", parameters("cpu", "emulated", "cuda"), indirect=True)
def test_frames_on_one_line(backend):
    """Of which many weights give the same d: the gradient is made of those of the pairs at the margin."""
    torch.manual_seed(37)
    x = torch.randn(11, 1).double() * torch.randn(1, 4).double()
    direction, g = torch.randn_like(x), torch.linspace(-1, 1, 4).double()

    def along(step):
        return (
            rank_pool((x + step * direction).to(backend.device), 0, time_average=False, C=1.4, tol=1e-10).cpu() * g
        ).sum()

    leaf = x.to(backend.device).requires_grad_()
    (rank_pool(leaf, 0, time_average=False, C=1.4).cpu() * g).sum().backward()
    found = (leaf.grad.cpu() * direction).sum()
    assert found.item() == pytest.approx((along(1e-5) - along(-1e-5)).item() / 2e-5, rel=1e-4)


@pytest.mark.parametrize("backend", parameters("cpu", "emulated", "cuda"), indirect=True)
@pytest.mark.parametrize("objective", ["ranksvm", "ranksvm_squared"])
def test_the_gradient_of_frames_that_are_alike(backend, objective):
    """All pairs lack their whole margin, and do so nearby: d = C' Σ b (I_q - I_t), b = 1, or twice what is lacking."""
    x = torch.ones(3, 1, dtype=torch.float64, device=backend.device, requires_grad=True)
    d = rank_pool(x, 0, objective=objective, time_average=False)
    assert d.tolist() == [0.0]
    d.sum().backward()
    times = 2 if objective == "ranksvm_squared" else 1
    assert x.grad.flatten().tolist() == pytest.approx([-2 / 3 * times, 0, 2 / 3 * times], abs=1e-12)


def test_vectors_of_a_gradient_come_one_at_a_time():
    x = clip(5, 3).requires_grad_()
    d = rank_pool(x, 0)
    with pytest.raises(RuntimeError, match="rank_pool has a gradient of one vector at a time"):
        torch.vmap(lambda v: torch.autograd.grad(d, x, v, retain_graph=True)[0])(torch.eye(3).double())
    with pytest.raises(RuntimeError, match="rank_pool has a gradient of one vector at a time"):
        torch.autograd.grad(d, x, torch.eye(3).double(), is_grads_batched=True)


@pytest.mark.parametrize("C", [1.0, 30.0])
def test_a_gradient_of_what_is_looked_at_twice_is_no_reason_to_warn(C):
    """The solver met what a gradient needs; that d itself is rounded is within tol."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rank_pool(of_bytes(2, 30, 10).float().requires_grad_(), C=C).sum().backward()
        rank_pool(of_bytes(2, 30, 10).float().requires_grad_(), objective="svr").sum().backward()


def test_still_frames_of_any_size():
    assert rank_pool(torch.full((3, 2), 1e200, dtype=torch.float64), 0).tolist() == [0, 0]


def test_a_solution_beyond_its_dtype():
    with pytest.raises(ValueError, match=r"C must be smaller: d of these frames has values beyond torch\.float64"):
        rank_pool(clip(5, 3), 0, C=1e308)
    with pytest.raises(ValueError, match="C must be finite and positive, got inf"):
        rank_pool(clip(5, 3), 0, C=10**5000)
    assert rank_pool(1e-20 * clip(5, 3).float(), 0, C=1e40).isfinite().all()  # its weights are none of float32


def test_a_second_derivative_is_refused():
    x = clip(5, 3).requires_grad_()
    for loss in (lambda d: d.square().sum(), lambda d: d.sum()):  # also of a gradient that d does not depend on
        (g,) = torch.autograd.grad(loss(rank_pool(x, 0)), x, create_graph=True)
        assert g.requires_grad
        with pytest.raises(RuntimeError, match="rank_pool has no second derivative"):
            g.sum().backward()


def objective_of(d, x, objective, C, epsilon, time_average):
    """As `rank_pool` states it, of one clip, in float64."""
    V, d = x.double().flatten(2)[0].cpu(), d.double().flatten().cpu()  # where sums along a dimension are deterministic
    t = torch.arange(1, len(V) + 1, dtype=torch.float64, device=V.device)
    scores = (V.cumsum(0) / t[:, None] if time_average else V) @ d
    if objective == "svr":
        return 0.5 * d @ d + C * ((t - scores).abs() - epsilon).clamp_min(0).square().sum()
    hinge = (1 - scores[:, None] + scores).clamp_min(0).tril(-1)
    return 0.5 * d @ d + C * 2 / (len(V) * (len(V) - 1)) * (hinge if objective == "ranksvm" else hinge.square()).sum()


def of_bytes(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def drifting_bytes(num_frames, values, noise, drift):
    """A picture that moves a little, and noise: one clip."""
    generator = torch.Generator().manual_seed(0)
    picture = 20 + 200 * torch.rand(values, generator=generator)
    motion = torch.linspace(-drift, drift, num_frames)[:, None] * torch.randn(values, generator=generator)
    frames = picture + motion + noise * torch.randn(num_frames, values, generator=generator)
    return frames.clamp(0, 255).to(torch.uint8)[None]


@pytest.mark.parametrize("time_average", [True, False])
@pytest.mark.parametrize(
    ("x", "options"),
    [
        (of_bytes(1, 200, 10), {"objective": "svr"}),
        (of_bytes(1, 100, 3, 8, 8), {"objective": "svr", "epsilon": 0.0}),
        (of_bytes(1, 200, 10), {"objective": "ranksvm_squared", "C": 100.0}),
        (of_bytes(1, 35, 20).float() / 2.55, {"objective": "ranksvm", "C": 1e4}),
        (clip(100, 3, 32, 32).mul(100).float()[None], {"objective": "svr"}),  # like a video: nearly the same frames
        (drifting_bytes(100, 12288, 3, 0.5), {"objective": "svr"}),
        (drifting_bytes(30, 12288, 20, 5), {"objective": "svr", "C": 100.0}),
        (drifting_bytes(30, 12288, 3, 5), {"objective": "ranksvm", "C": 1e4}),
    ],
)
def test_what_float32_would_miss_is_found(backend, x, options, time_average):
    """The objective of the d that is returned, not that of a solution of which roundings are left out."""
    x = x.to(backend.device)
    d, info = rank_pool(x, time_average=time_average, tol=1e-3, return_info=True, **options)
    how = (options["objective"], options.get("C", 1.0), options.get("epsilon", 0.1), time_average)
    best = objective_of(rank_pool(x.double(), time_average=time_average, tol=1e-6, **options), x, *how)
    assert d.dtype == torch.float32
    assert objective_of(d, x, *how) <= best * 1.002  # tol, and as much for the roundings of d itself
    assert info.objective[0].item() == pytest.approx(objective_of(d, x, *how).item(), rel=2e-3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
@pytest.mark.parametrize(("num_frames", "shape"), [(2, (3, 112, 112)), (2, (12288,)), (3, (3, 61, 67)), (6, (4099,))])
def test_short_clips_of_many_values(backend, num_frames, shape, dtype):
    """Whose ‖d‖² is so small that a margin which lacks a millionth would weigh more than all of it."""
    x = of_bytes(1, num_frames, *shape).to(dtype).to(backend.device)
    d, info = rank_pool(x, out_dtype=torch.float32, return_info=True)
    best = objective_of(rank_pool(x.double(), tol=1e-9), x, "ranksvm", 1.0, 0.1, True).item()
    assert best < 1e-5
    assert objective_of(d, x, "ranksvm", 1.0, 0.1, True).item() <= best * 1.001
    assert info.objective.item() == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize(
    ("num_frames", "values", "options"),
    [(40, 2, {"objective": "ranksvm_squared", "C": 100.0}), (40, 2, {"C": 100.0}), (200, 8, {"objective": "svr"})],
)
def test_scores_are_those_of_d(backend, num_frames, values, options):
    """Also where weights of more frames than values cancel, so that their sum in float32 is another d."""
    x = torch.randint(0, 256, (num_frames, values), dtype=torch.uint8, generator=torch.Generator().manual_seed(13))
    d, info = rank_pool(x.to(backend.device), 0, return_info=True, **options)
    scores = running_means(x.double()) @ d.double().cpu()
    assert torch.allclose(info.scores.cpu(), scores, rtol=0, atol=1e-5 * scores.abs().max())  # 2^-24 of each product


def grey(num_frames, values, seed):
    """Frames of one value each."""
    return (torch.rand(num_frames, 1, generator=torch.Generator().manual_seed(seed)) * 255).expand(num_frames, values)


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (grey(100, 4096, 1), {"objective": "ranksvm_squared", "C": 100.0}),
        (grey(100, 4096, 1), {"objective": "ranksvm_squared", "C": 1e4}),
        (
            torch.randn(5, 2, generator=torch.Generator().manual_seed(844)) * 100,
            {"objective": "ranksvm_squared", "C": 1e4},
        ),
        (1e6 + torch.rand(30, 4096, generator=torch.Generator().manual_seed(0)), {}),  # seem to be alike
        (1e6 + torch.rand(3, 50, generator=torch.Generator().manual_seed(0)), {"C": 10.0}),
    ],
)
def test_products_without_an_exact_square_root(backend, x, options):
    """Where float32 makes bounds of products that no frames have, and where it takes frames for the same."""
    options = {"objective": "ranksvm", "C": 1.0, "time_average": False, **options}
    d, info = rank_pool(x.to(backend.device).contiguous(), 0, return_info=True, **options)
    best, _ = rank_pool(x.double(), 0, return_info=True, **options, tol=1e-6)
    how = {"epsilon": 0.1, **options}
    assert objective_of(d, x[None], **how) <= (1 + 2e-3) * objective_of(best, x[None], **how)
    assert info.duality_gap <= 1e-3 * info.objective


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_frames_of_a_number(backend, objective):
    """Frames without a dimension are as those of one value."""
    x = torch.rand(4, 9, generator=torch.Generator().manual_seed(3)).to(backend.device)
    d = rank_pool(x, objective=objective)
    assert torch.equal(d, rank_pool(x[..., None], objective=objective)[..., 0])
    assert torch.allclose(rank_pool(x[1], 0, objective=objective), d[1])


@pytest.mark.parametrize(("scale", "C"), [(1e8, 1.0), (1e12, 1.0), (1e6, 1e4)])
def test_gradients_of_large_frames(backend, scale, C):
    """d is of degree -1 in x where all pairs are active: by Euler, Σ x ∂L/∂x = -L."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(20, 60, generator=generator, dtype=torch.float64) * scale).to(backend.device).requires_grad_()
    weights = torch.rand(60, generator=generator, dtype=torch.float64).to(backend.device)
    loss = rank_pool(x, 0, objective="ranksvm_squared", C=C) @ weights
    loss.backward()
    assert (x * x.grad).sum().item() == pytest.approx(-loss.item(), rel=1e-6)


@pytest.mark.parametrize("seed", [6, 8, 9])
def test_a_norm_that_rounding_takes_below_zero(backend, seed):
    x = torch.randn(40, 1, generator=torch.Generator().manual_seed(seed)) * 1e5 + 1e6
    d, info = rank_pool(x.to(backend.device), 0, return_info=True)
    assert info.duality_gap <= 1e-3 * info.objective
    assert objective_of(d, x[None], "ranksvm", 1.0, 0.1, True) == pytest.approx(info.objective.item(), rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("values", [128, 500])
@pytest.mark.parametrize("num_frames", [20, 30])
def test_the_gap_of_a_trend_among_noise(backend, num_frames, values, seed):
    """Of frames that are nearly multiples of one: their products lose what d is made of."""
    generator = torch.Generator().manual_seed(seed)
    trend = torch.arange(num_frames)[:, None] * torch.randn(1, values, generator=generator)
    x = (4 * trend + 0.4 * torch.randn(num_frames, values, generator=generator))[None].to(backend.device)
    d, info = rank_pool(x, objective="svr", return_info=True)
    best = objective_of(rank_pool(x.double(), objective="svr", tol=1e-9), x, "svr", 1.0, 0.1, True).item()
    assert objective_of(d, x, "svr", 1.0, 0.1, True).item() <= best * 1.001
    assert (info.objective - info.duality_gap).item() <= best * (1 + 1e-4)


@pytest.mark.parametrize(("scale", "C"), [(16383.0, 100.0), (65535.0, 1.0), (65535.0, 100.0), (1e7, 1.0)])
@pytest.mark.parametrize("lengths", [None, [60, 37]])
def test_regression_of_frames_of_16_bits(lengths, scale, C):
    """So large that all scores are at the tube, and Newton's method does not find out on which side."""
    wave = torch.arange(48)[:, None] * 10.0 + torch.arange(64) * 7.0
    x = torch.stack([torch.sin(wave / 50 + t * 0.05) * 0.3 + 0.5 for t in range(60)])
    generator = torch.Generator().manual_seed(0)
    x = (torch.stack([x, x.flip(0)]) + torch.rand(2, 60, 48, 64, generator=generator) * 0.02).double() * scale
    d, info = rank_pool(x, objective="svr", C=C, lengths=lengths, return_info=True)
    assert (info.duality_gap <= 1e-3 * info.objective).all()
    for clip, length in enumerate(lengths or [60, 60]):
        own = objective_of(d[clip : clip + 1], x[clip : clip + 1, :length], "svr", C, 0.1, True)
        # Scores of 1 to 60 are sums of products as large as 1e7² and more.
        assert own.item() == pytest.approx(info.objective[clip].item(), rel=2e-2)


def test_regression_of_smooth_clips():
    """Whose products in float32 have a negative eigenvalue: the search for signs ends, and float64 has the word."""
    x = torch.stack([torch.sin(torch.arange(1500) / 50.0 + t * 0.05) for t in range(60)])[None] * 255
    d, info = rank_pool(x, objective="svr", return_info=True)
    best = rank_pool(x.double(), objective="svr", tol=1e-8)
    assert info.duality_gap <= 1e-3 * info.objective
    assert (d - best).norm() < 0.05 * best.norm()  # √(2e-3) of its length, as the gap allows


def regression_of(x: torch.Tensor, d: torch.Tensor, C: float, epsilon: float) -> torch.Tensor:
    """The minimum of "svr" [D] as a function of frames [T, D] in closed form: of those that d leaves outside."""
    V, t = running_means(x), torch.arange(1, len(x) + 1, dtype=x.dtype)
    lacking = t - V.detach() @ d
    active = lacking.abs() > epsilon
    V, target = V[active], (t - epsilon * lacking.sign())[active]
    system = torch.eye(x.shape[1], dtype=x.dtype) + 2 * C * V.mT @ V
    return torch.linalg.solve(system, 2 * C * V.mT @ target)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("backend", parameters("cpu", "reference", "emulated", "cuda"), indirect=True)
def test_the_gradient_of_regression_whose_last_step_changed_the_active_frames(backend, seed):
    """Many multipliers make nearly the same d of frames of one value: those of the minimum are the gradient's."""
    values = torch.randint(-20, 21, (8, 1), generator=torch.Generator().manual_seed(seed)).double()
    x = torch.tensor([[-18.0], [17.0], [0.0]], dtype=torch.float64) if seed == 0 else values
    leaf, mine = (x.to(device, copy=True).requires_grad_() for device in (backend.device, "cpu"))
    d = rank_pool(leaf, 0, objective="svr", C=10.0, epsilon=1.0)
    d.sum().backward()
    expected = regression_of(mine, d.detach().cpu(), 10.0, 1.0)
    expected.sum().backward()
    assert torch.allclose(d.detach().cpu(), expected.detach(), rtol=1e-7)
    assert torch.allclose(leaf.grad.cpu(), mine.grad, rtol=1e-4, atol=1e-6 * mine.grad.abs().max().item())


@pytest.mark.filterwarnings("ignore:rank_pool")  # of a gap of 1e-9, which roundings keep it from
@pytest.mark.parametrize(("scale", "C"), [(16383.0, 100.0), (65535.0, 100.0), (1e7, 1.0)])
def test_gradient_of_regression_by_signs(scale, C):
    """At the tube's bounds it is u that tells which frames count."""
    wave = torch.arange(48)[:, None] * 10.0 + torch.arange(64) * 7.0
    x = torch.stack([torch.sin(wave / 50 + t * 0.05) * 0.3 + 0.5 for t in range(60)])
    generator = torch.Generator().manual_seed(0)
    x = ((x + torch.rand(60, 48, 64, generator=generator) * 0.02).double() * scale)[None].requires_grad_()
    g, way = (torch.randn(size, dtype=torch.float64, generator=generator) for size in ((48, 64), x.shape))
    options = {"objective": "svr", "C": C, "tol": 1e-9}
    (rank_pool(x, **options)[0] * g).sum().backward()
    step = 1e-6 * scale
    ahead, behind = ((rank_pool(x.detach() + sign * step * way, **options)[0] * g).sum().item() for sign in (1, -1))
    assert (x.grad * way).sum().item() == pytest.approx((ahead - behind) / (2 * step), rel=2e-3)


def test_regression_by_signs_is_newtons_where_that_ends(monkeypatch):
    x = torch.rand(3, 31, 50, dtype=torch.float64)
    expected, info = rank_pool(x, objective="svr", tol=1e-9, return_info=True)
    monkeypatch.setattr("dynpool.solve._NEWTON_STEPS", 1)
    found, by_signs = rank_pool(x, objective="svr", tol=1e-9, return_info=True)
    assert (by_signs.duality_gap <= 1e-9 * by_signs.objective).all()
    assert torch.allclose(by_signs.objective, info.objective, rtol=1e-8)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


KINDS = {
    "noise": lambda T, D, scale, g: scale * torch.randn(T, D, generator=g),
    "walk": lambda T, D, scale, g: scale * torch.randn(T, D, generator=g).cumsum(0),
    "trend": lambda T, D, scale, g: (
        scale * torch.arange(T)[:, None] * torch.randn(1, D, generator=g) + scale / 10 * torch.randn(T, D, generator=g)
    ),
    "positive": lambda T, D, scale, g: scale * torch.rand(T, D, generator=g),
    "bytes": lambda T, D, scale, g: torch.randint(0, 256, (T, D), dtype=torch.uint8, generator=g),
    "solid": lambda T, D, scale, g: (scale * torch.rand(T, 1, generator=g)).expand(T, D).contiguous(),
    "three colours": lambda T, D, scale, g: (scale * torch.rand(T, 3, generator=g))[:, torch.arange(D) * 3 // D],
    "solid bytes": lambda T, D, scale, g: (
        torch.randint(0, 256, (T, 1), dtype=torch.uint8, generator=g).expand(T, D).contiguous()
    ),
    "nearly still": lambda T, D, scale, g: (
        (torch.randint(0, 256, (1, D), generator=g) + 2 * torch.randn(T, D, generator=g)).clamp(0, 255).byte()
    ),
}


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    num_frames=st.sampled_from([2, 3, 5, 11, 31, 60]),
    values=st.sampled_from([1, 2, 7, 64, 499, 12289]),
    scale=st.sampled_from([0.01, 1.0, 100.0]),
    seed=st.integers(0, 1000),
    objective=st.sampled_from(OBJECTIVES),
    C=st.sampled_from([0.01, 1.0, 30.0, 1000.0]),
    time_average=st.booleans(),
)
def test_the_gap_of_any_clip(kind, num_frames, values, scale, seed, objective, C, time_average):
    """The objective of d itself is as near to the minimum as the gap says, and half of tol, for what enlarges d."""
    x = KINDS[kind](num_frames, values, scale, torch.Generator().manual_seed(seed))[None]
    options = {"objective": objective, "C": C, "time_average": time_average, "return_info": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the gap says
        d, info = rank_pool(x, **options)
        exact, exact_info = rank_pool(x.double(), **options | {"tol": 1e-6})
    best = objective_of(exact, x, objective, C, 0.1, time_average).item() - exact_info.duality_gap.item()
    gap = info.duality_gap.item()
    assert objective_of(d, x, objective, C, 0.1, time_average).item() <= 1.0005 * best + gap
    assert info.objective.item() - gap <= best * (1 + 1e-4) + exact_info.duality_gap.item()


def test_rough_clips_are_solved_alone(backend):
    x = torch.cat([of_bytes(1, 200, 2, 5).float(), clip(200, 2, 5).float()[None], of_bytes(1, 200, 2, 5).float() + 1])
    x = x.to(backend.device).requires_grad_()
    mean = torch.tensor([1.0, 2.0], device=x.device, requires_grad=True)
    lengths = torch.tensor([200, 50, 190])
    options = {"objective": "svr", "C": 100.0, "channel_dim": 2, "lengths": lengths, "return_info": True}
    d, info = rank_pool(x, mean=mean, **options)
    exact, exact_info = rank_pool(x.double(), mean=mean.double(), **options)
    assert torch.allclose(d[::2].double(), exact[::2], rtol=1e-6, atol=1e-6)  # rough, of numbers up to 3
    assert torch.allclose(d[1].double(), exact[1], rtol=1e-4, atol=1e-3)  # up to 30
    assert torch.allclose(info.scores, exact_info.scores, rtol=1e-4, atol=1e-3)
    alone, of_alone = rank_pool(x[0], 0, objective="svr", C=100.0, mean=mean, channel_dim=1, return_info=True)
    assert torch.allclose(alone.double(), exact[0], rtol=1e-6, atol=1e-6)
    assert torch.allclose(of_alone.scores, exact_info.scores[0], rtol=1e-4, atol=1e-3)
    ours = torch.autograd.grad(d.square().sum(), (x, mean))
    theirs = torch.autograd.grad(exact.square().sum(), (x, mean))
    for g, h in zip([*ours[0], ours[1]], [*theirs[0], theirs[1]], strict=True):  # clip by clip: they are of many sizes
        assert torch.allclose(g, h, rtol=1e-2, atol=1e-3 * h.abs().max().item())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_batches_of_long_clips_on_several_threads(backend, objective):
    """torch's own factorisation of such batches fails, or never returns: pytorch/pytorch#142815."""
    x = torch.stack([clip(157, 5, seed=seed) for seed in range(3)]).to(backend.device).requires_grad_()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        d = rank_pool(x, objective=objective, tol=1e-8)
        (gradient,) = torch.autograd.grad(d.square().sum(), x)
    finally:
        torch.set_num_threads(threads)
    for one, image, of_one in zip(x.detach(), d, gradient, strict=True):
        leaf = one[None].requires_grad_()
        alone = rank_pool(leaf, objective=objective, tol=1e-8)
        (expected,) = torch.autograd.grad(alone.square().sum(), leaf)
        assert torch.allclose(image, alone[0], rtol=1e-5, atol=1e-7)
        assert torch.allclose(of_one, expected[0], rtol=1e-4, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_the_dtype_asked_for(dtype):
    x = of_bytes(1, 100, 10).to(dtype)  # which "svr" solves again
    for objective in OBJECTIVES:
        d = rank_pool(x, objective=objective, tol=1e-6, out_dtype=torch.float16)
        assert d.dtype == torch.float16
        expected = rank_pool(x.double(), objective=objective, tol=1e-6)
        assert torch.allclose(d.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_no_clips(backend):
    for objective in OBJECTIVES:
        x = torch.zeros(0, 5, 3, device=backend.device, requires_grad=True)
        d = rank_pool(x, objective=objective)
        assert d.shape == (0, 3)
        assert torch.autograd.grad(d.sum(), x)[0].shape == x.shape


def test_ranking_accuracy_of_what_is_no_number():
    x = clip(5, 3)
    d = rank_pool(x, 0)
    for bad_d, bad_x in ((d * math.nan, x), (d, x.index_fill(0, torch.tensor([2]), math.inf))):
        with pytest.raises(ValueError, match="d and x must be finite"):
            ranking_accuracy(bad_d, bad_x, 0)
    with pytest.raises(TypeError, match=r"d must have one of the dtypes .*, got torch\.complex64"):
        ranking_accuracy(d.to(torch.complex64), x, 0)


def test_it_ranks_better_than_the_approximation():
    x = clip(40, 8, 8)
    exact = ranking_accuracy(rank_pool(x, 0, C=100.0), x, 0)
    approximate = ranking_accuracy(approx_rank_pool(x, 0), x, 0)
    assert exact >= approximate
    assert exact > 0.99


def test_ties_are_not_in_order(device):
    """V = 2, 1.5, 4, 4, 3.6; and scores -19, 2, -21, 2 of which two are equal."""
    x = torch.tensor([[2.0], [1.0], [9.0], [4.0], [2.0]], device=device)
    assert ranking_accuracy(torch.ones(1, device=device), x, 0) == 6 / 10
    x = torch.tensor([[9.0, 8.0], [0.0, 2.0], [7.0, 0.0], [2.0, 8.0]], device=device)
    assert ranking_accuracy(torch.tensor([-3.0, 1.0], device=device), x, 0, time_average=False) == 3 / 6


def test_ranking_accuracy_by_hand():
    x = torch.tensor([[0.0], [3.0], [0.0]])  # V = 0, 1.5, 1: of three pairs one is wrong
    assert float(ranking_accuracy(torch.tensor([1.0]), x, 0)) == pytest.approx(2 / 3)
    assert float(ranking_accuracy(torch.tensor([-1.0]), x, 0)) == pytest.approx(1 / 3)
    assert float(ranking_accuracy(torch.tensor([0.0]), x, 0)) == 0  # ties are not ranked
    assert ranking_accuracy(torch.tensor([[1.0]]), x[None]).tolist() == pytest.approx([2 / 3])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_a_still_video_ranks_nothing(device, dtype, seed):
    frame = of_bytes(3, 8, 8).to(dtype)
    d = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(seed))
    assert ranking_accuracy(d.to(device), frame.expand(12, 3, 8, 8).to(device), 0).item() == 0


@pytest.mark.parametrize("size", [2.0**-1022, 2.0**-200, 2.0**200, 2.0**1023])  # without a rounding
def test_the_size_of_d_has_no_say(size):
    x = torch.stack([clip(7, 3, 4), clip(7, 3, 4, seed=1)]).float()
    d = rank_pool(x).double()
    right = ranking_accuracy(d, x)
    assert torch.equal(ranking_accuracy(size * d, x), right)
    assert torch.equal(ranking_accuracy(torch.stack([d[0], size * d[1]]), x), right)  # each clip by itself
    assert ranking_accuracy(size * d[0], x[0], 0) == ranking_accuracy(d[0], x[0], 0)
    assert ranking_accuracy(torch.tensor(size, dtype=torch.float64), torch.tensor([1.0, 2.0]), 0) == 1


def test_ranking_accuracy_of_nothing():
    assert ranking_accuracy(torch.rand(2, 0), torch.rand(2, 5, 0)).tolist() == [0, 0]
    assert ranking_accuracy(torch.rand(0, 3), torch.rand(0, 5, 3)).tolist() == []


def test_ranking_accuracy_has_no_derivative_to_lose():
    x = clip(5, 3)
    d = rank_pool(x, 0)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        assert ranking_accuracy(d, dual, 0) == ranking_accuracy(d, x, 0)


def test_ranking_accuracy_needs_values():
    with pytest.raises(RuntimeError, match="ranking_accuracy compares values: it cannot be transformed by"):
        torch.vmap(ranking_accuracy)(torch.rand(2, 4), torch.rand(2, 5, 4))
    with pytest.raises(RuntimeError, match="ranking_accuracy compares values: it cannot be exported or traced"):
        ranking_accuracy(torch.rand(4, device="meta"), torch.rand(5, 4, device="meta"), 0)


@pytest.mark.parametrize("time_average", [True, False])
def test_ranking_accuracy_is_of_frames_as_they_were_ranked(time_average):
    x, d = torch.stack([clip(9, 3, 4), clip(9, 3, 4, seed=1)]), torch.randn(2, 3, 4, dtype=torch.float64)
    mean, std, lengths = [-1.0, -2.0, -3.0], [0.5, 1.0, 4.0], [9, 5]
    options = {"time_average": time_average, "nonlinearity": "sqrt", "mean": mean, "std": std, "channel_dim": 2}
    found = ranking_accuracy(d, x, lengths=lengths, **options)
    frames = ((x - torch.tensor(mean)[:, None]) / torch.tensor(std)[:, None]).sqrt()
    for b, length in enumerate(lengths):
        V = running_means(frames[b, :length]) if time_average else frames[b, :length].flatten(1)
        scores = (V @ d[b].flatten()).tolist()
        right = [scores[q] > scores[t] for q in range(length) for t in range(q)]
        assert float(found[b]) == pytest.approx(sum(right) / len(right), rel=1e-12)


def test_module():
    module = dynpool.nn.RankPool(objective="svr", C=0.5, mean=torch.zeros(3), channel_dim=2)
    assert repr(module) == "RankPool(dim=1, objective='svr', C=0.5, mean=Tensor[3], channel_dim=2)"
    network = torch.nn.Sequential(torch.nn.Unflatten(0, (2, -1)), dynpool.nn.RankPool(C=10.0), torch.nn.Flatten())
    x = torch.rand(10, 3, 4, requires_grad=True)
    network(x).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0


def test_dynamic_image():
    frames = (clip(12, 3, 16, 20) * 120).clamp(0, 255).to(torch.uint8)
    image = dynpool.dynamic_image(frames, method="exact")
    assert image.shape == (3, 16, 20)
    expected = dynpool.to_image(rank_pool(frames, 0, nonlinearity="sqrt"))
    assert (image.int() - expected.int()).abs().max() <= 1
    still = dynpool.dynamic_image(frames[:1].expand(5, -1, -1, -1), method="exact")
    assert torch.equal(still, torch.full((3, 16, 20), 128, dtype=torch.uint8))
    assert dynpool.dynamic_images(frames, window=5, stride=4, method="exact").shape == (3, 3, 16, 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "svm"}, "objective must be one of"),
        ({"C": 0}, "C must be finite and positive, got 0"),
        ({"C": math.inf}, "C must be finite"),
        ({"epsilon": -1.0}, "epsilon must be finite and at least 0, got -1.0"),
        ({"tol": 0.0}, "tol must be finite and positive"),
        ({"max_iter": 0}, "max_iter must be a positive integer, got 0"),
        ({"lengths": [3, 9]}, "lengths must be between 1 and T = 5"),
        ({"nonlinearity": "cube"}, "nonlinearity must be one of"),
        ({"dim": 3}, "dim must be between"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        rank_pool(torch.rand(2, 5, 3), **options)


def test_numbers_of_numpy():
    x = torch.rand(2, 5, 3)
    found = rank_pool(x, C=np.float32(2), tol=np.float64(1e-4), max_iter=np.int64(50))
    assert torch.equal(found, rank_pool(x, C=2.0, tol=1e-4, max_iter=50))


@pytest.mark.parametrize("dual", ["x", "mean"])
def test_forward_mode_is_refused(dual):
    arguments = {"x": torch.rand(2, 5, 3), "mean": torch.rand(1)}
    with forward_ad.dual_level():
        rank_pool(**arguments)
        arguments[dual] = forward_ad.make_dual(arguments[dual], torch.ones_like(arguments[dual]))
        with pytest.raises(RuntimeError, match="rank_pool has no derivative in forward mode"):
            rank_pool(**arguments)


def test_more_bad_arguments():
    with pytest.raises(TypeError, match="C must be a number"):
        rank_pool(torch.rand(2, 5, 3), C="1")
    with pytest.raises(ValueError, match="max_iter must be a positive integer, got True"):
        rank_pool(torch.rand(2, 5, 3), max_iter=True)
    with pytest.raises(ValueError, match="d must be on the device of x, cpu, got meta"):
        ranking_accuracy(torch.rand(2, 3, device="meta"), torch.rand(2, 5, 3))
    with pytest.raises(ValueError, match="x must be finite"):
        rank_pool(torch.full((2, 5, 3), math.nan))
    with pytest.raises(ValueError, match="lengths need the clips in dimension 0"):
        rank_pool(torch.rand(5, 3), 0, lengths=[5])
    with pytest.raises(ValueError, match="d must have the shape"):
        ranking_accuracy(torch.rand(4), torch.rand(2, 5, 3))


@pytest.mark.parametrize("nonlinearity", ["identity", "sqrt"])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("num_frames", [1, 2, 13, 61])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_gram_by_kernel(backend, dtype, num_frames, normalized, nonlinearity, monkeypatch):
    dense = (torch.rand(2, num_frames, 3, 17, 71) * 200).to(dtype).to(backend.device)
    lengths = torch.tensor([num_frames, max(1, num_frames - 3)], device=backend.device)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    mean = torch.tensor([1.0, 2.0, 3.0], dtype=acc, device=backend.device) if normalized else None
    std = mean * 20 if normalized else None
    channel_dim = 2 if normalized else None
    for x in (dense, dense[..., 1:, 2:], dense.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)):
        actual = gram(x, mean, std, 1, channel_dim, nonlinearity, lengths)
        statistics = [t if t is None else t.double() for t in (mean, std)]
        with monkeypatch.context() as patch:
            patch.setattr(binary, "kernels_for", lambda device: None)
            expected = gram(x.double(), *statistics, 1, channel_dim, nonlinearity, lengths)
        # Sums of floats over up to 1024 pixels (CUDA). Each addition rounds by up to eps / 2 of the sum so far, mostly
        # either way; squares of the means of two bytes, k² / 4, always down.
        scale = expected.full().abs().amax()
        for ours, theirs in zip(actual, expected, strict=True):
            assert (ours - theirs).abs().amax() <= 64 * torch.finfo(acc).eps * scale
    with torch.autocast(x.device.type, torch.bfloat16):
        cast = gram(x, mean, std, 1, channel_dim, nonlinearity, lengths)
    assert (cast.centred - actual.centred).abs().amax() <= 64 * torch.finfo(acc).eps * scale
    if backend.name == "reference":  # torch's products depend on the number of threads
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    again = gram(x, mean, std, 1, channel_dim, nonlinearity, lengths)
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(actual, again, strict=True))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_solvers_of_all_backends_agree(backend, objective):
    x = torch.stack([clip(23, 4, 6, seed=seed) for seed in range(3)]).to(backend.device)
    options = {"objective": objective, "lengths": [23, 7, 1], "C": 3.0, "tol": 1e-9, "return_info": True}
    d, info = rank_pool(x, **options)
    for b, (length, image) in enumerate(zip(options["lengths"], d.cpu(), strict=True)):
        V = running_means(x[b, :length].cpu()).numpy()
        if length > 1:
            expected = solve_hinge(V, 3.0) if objective == "ranksvm" else solve_smooth(V, objective, 3.0, 0.1)
            assert float(info.objective[b]) == pytest.approx(expected, rel=1e-6)
            assert value(image.flatten().numpy(), V, objective, 3.0, 0.1) == pytest.approx(expected, rel=1e-6)
            assert float(info.duality_gap[b]) <= 1e-9 * expected
    again, _ = rank_pool(x, **options)
    assert torch.equal(d, again)


def test_videodarwin():
    path = Path(__file__).parents[1] / "examples" / "videodarwin.py"
    if not path.exists():
        pytest.skip("the examples are not here")
    example = runpy.run_path(str(path))
    features = clip(9, 20)
    w = example["video_darwin"](features)
    assert w.shape == (40,)
    assert torch.equal(w[20:], example["video_darwin"](features.flip(0))[:20])
    means = running_means(features).numpy()
    V = np.sqrt(means) / np.linalg.norm(np.sqrt(means), axis=1, keepdims=True)  # features are positive
    expected = solve_smooth(V, "svr", 1.0, 0.1)
    assert value(w[:20].numpy(), V, "svr", 1.0, 0.1) == pytest.approx(expected, rel=1e-3)  # to a gap of 1e-3


# --- what was once wrong -------------------------------------------------------------------------------------------


def test_a_gradient_where_lapack_finds_no_eigenvalues(monkeypatch):
    """Of matrices that are zero but for a few lines, which those of few pairs inside the box are."""
    x = clip(30, 40).requires_grad_()
    (expected,) = torch.autograd.grad(rank_pool(x, 0).square().sum(), x)
    assert expected.abs().max() > 0
    refused = []

    def eigh(A):
        refused.append(A)
        raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")

    d = rank_pool(x, 0)
    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    (found,) = torch.autograd.grad(d.square().sum(), x)
    assert refused
    assert torch.allclose(found, expected, rtol=1e-7, atol=1e-9 * expected.abs().max())


@pytest.mark.parametrize("derives", [False, True])
@pytest.mark.parametrize(("scale", "C"), [(1e-3, 1.0), (0.1, 1e-4), (1e-4, 1e-4)])
def test_regression_of_small_frames_is_not_zero(backend, scale, C, derives):
    """However near the objective of d = 0 is to the least."""
    x = scale * clip(10, 3, 4)[None].to(backend.device)
    best = rank_pool(x, objective="svr", C=C, tol=1e-13)
    found, info = rank_pool(x.requires_grad_(derives), objective="svr", C=C, return_info=True)
    assert best.abs().max() > 0
    assert (found - best).norm() <= 1e-2 * best.norm()  # Newton's first step is nearly the last
    assert (info.iterations > 0).all()


@pytest.mark.parametrize("C", [100.0, 1000.0])
@pytest.mark.parametrize("seed", range(4))
def test_gradients_of_float32_frames_in_a_plane(seed, C):
    """Whose solution is as good as `tol`, and whose gradient that does not suffice."""
    g = torch.Generator().manual_seed(seed)
    walk, noise, *ways = (torch.randn(size, generator=g) for size in (60, 60, 300, 300))
    x = walk.cumsum(0)[:, None] * ways[0] + noise[:, None] * ways[1]
    way = torch.randn(300, generator=g)

    def gradient(x):
        x = x.clone().requires_grad_()
        d = rank_pool(x, 0, C=C, nonlinearity="sqrt", time_average=False)
        return torch.autograd.grad((d * way.to(d.dtype)).sum(), x)[0].double()

    expected = gradient(x.double())
    assert (gradient(x) - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize(
    ("objective", "C", "tol", "frames"),
    [
        ("ranksvm", 1.0, 3e-7, lambda g: torch.randn(2, 30000, generator=g).cumsum(0)),
        ("svr", 1e6, 1e-3, lambda g: torch.randint(0, 256, (1, 30000), dtype=torch.uint8, generator=g)),
    ],
    ids=["ranksvm", "svr"],
)
def test_d_is_as_near_as_asked_for(objective, C, tol, frames):
    """Also where float32 hardly holds what would change its objective by so much."""
    x = frames(torch.Generator().manual_seed(0))
    options = {"objective": objective, "C": C, "epsilon": 0.0, "out_dtype": torch.float64}
    V = running_means(x.double()).numpy()
    found, best = (rank_pool(y, 0, tol=t, **options).numpy() for y, t in ((x, tol), (x.double(), 1e-9)))
    assert value(found, V, objective, C, 0.0) <= (1 + tol) * value(best, V, objective, C, 0.0)


@pytest.mark.parametrize("C", [1.0, 1e6])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_memory_format_is_kept(backend, objective, C):
    x = (255 * torch.rand(4, 9, 6, 5, 3)).movedim(-1, 2).to(backend.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of float32's roundings
        assert rank_pool(x, objective=objective, C=C).is_contiguous(memory_format=torch.channels_last)
