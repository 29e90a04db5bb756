"""Pooling on the CPU, beside everything else that does it: NumPy, OpenCV, eager torch, torch.compile, matmul, einsum.

    python benchmarks/ops.py [--quick] [--seconds 4] [--json FILE] [--chart FILE]

Each way is checked against float64 first. Runs are interleaved and the best of each is compared. Peak memory is that of
a process of its own. Targets are those of the project's design; the last table says which are met.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import RESULTS, Case, draw, interleave, measure, print_case, relative_error, write_json
from torch import Tensor

import dynpool

Ways = dict[str, Callable[[], object]]


def check(ways: Ways, expected: Tensor, tolerance: float) -> dict[str, float]:
    """Relative error of every way; a wrong way ends the benchmark."""
    errors = {name: relative_error(torch.as_tensor(run()), expected) for name, run in ways.items()}
    for name, error in errors.items():
        if not error < tolerance:
            raise SystemExit(f"{name} is wrong: relative error {error:.1e}, allowed {tolerance:.1e}")
    return errors


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def uint8_root(threads: int, seconds: float) -> Case:
    frames, alpha = torch.randint(0, 256, (64, 3, 224, 224), dtype=torch.uint8), dynpool.rank_weights(64)
    a = alpha.float().view(-1, 1, 1, 1)
    expected = (frames.double().sqrt() * alpha.view(-1, 1, 1, 1)).sum(0)

    def eager(frames: Tensor, a: Tensor) -> Tensor:
        return (frames.float().sqrt() * a).sum(0)

    fused = compiled(eager)
    array, weights = frames.numpy(), alpha.float().numpy()

    def numpy_way() -> np.ndarray:
        return np.tensordot(weights, np.sqrt(array, dtype=np.float32), 1)

    ways: Ways = {
        "dynpool": lambda: dynpool.approx_rank_pool(frames, 0, nonlinearity="sqrt"),
        "torch.compile": lambda: fused(frames, a),
        "eager torch": lambda: eager(frames, a),
        "numpy": numpy_way,
    }
    if opencv := opencv_way(array, weights):
        ways["OpenCV LUT"] = opencv
    case = Case("uint8 64×3×224×224, √, pooled", frames.nbytes + expected.numel() * 4, 64, threads)
    return measure(case, ways, seconds, check(ways, expected, 1e-5))


def opencv_way(array: np.ndarray, weights: np.ndarray) -> Callable[[], np.ndarray] | None:
    """A table look-up and a scaled addition for every frame."""
    try:
        import cv2
    except ImportError:
        return None
    cv2.setNumThreads(torch.get_num_threads())
    table = np.sqrt(np.arange(256, dtype=np.float32))[None]
    planes = array.reshape(array.shape[0], -1, array.shape[-1])

    def run() -> np.ndarray:
        total = np.zeros(planes.shape[1:], np.float32)
        for plane, weight in zip(planes, weights, strict=True):
            total = cv2.scaleAdd(cv2.LUT(plane, table), float(weight), total)
        return total.reshape(array.shape[1:])

    return run


def float_identity(threads: int, seconds: float, size: tuple[int, ...] = (64, 3, 224, 224)) -> Case:
    frames, alpha = torch.rand(size), dynpool.rank_weights(size[0])
    a = alpha.float()
    expected = torch.einsum("t,tn->n", alpha, frames.flatten(1).double()).view(size[1:])

    def eager(frames: Tensor, a: Tensor) -> Tensor:
        return (frames * a.view(-1, 1, 1, 1)).sum(0)

    fused = compiled(eager)
    ways: Ways = {
        "dynpool": lambda: dynpool.approx_rank_pool(frames, 0),
        "matmul": lambda: (a @ frames.view(size[0], -1)).view(size[1:]),
        "einsum": lambda: torch.einsum("t,tchw->chw", a, frames),
        "torch.compile": lambda: fused(frames, a),
        "eager torch": lambda: eager(frames, a),
    }
    shape = "×".join(map(str, size))
    case = Case(f"float32 {shape}, identity", frames.nbytes + expected.numel() * 4, size[0], threads)
    return measure(case, ways, seconds, check(ways, expected, 1e-5))


def float_backward(threads: int, seconds: float) -> Case:
    frames, alpha = 1 - torch.rand(16, 3, 224, 224), dynpool.rank_weights(16)  # above 0, where √ has a slope
    a = alpha.float().view(-1, 1, 1, 1)
    gradient = torch.rand(3, 224, 224)
    expected = (alpha.view(-1, 1, 1, 1) * gradient) * 0.5 / frames.double().sqrt()
    x = frames.requires_grad_()

    def eager(x: Tensor, a: Tensor) -> Tensor:
        return (x.sign() * x.abs().sqrt() * a).sum(0)  # ψ of real frames is the signed root

    fused = compiled(eager)

    def both(pool: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(pool(), x, gradient)[0]

    ways: Ways = {
        "dynpool": both(lambda: dynpool.approx_rank_pool(x, 0, nonlinearity="sqrt")),
        "torch.compile": both(lambda: fused(x, a)),
        "eager torch": both(lambda: eager(x, a)),
    }
    case = Case("float32 16×3×224×224, √, forward + backward", 3 * frames.nbytes + 2 * gradient.nbytes, 16, threads)
    return measure(case, ways, seconds, check(ways, expected, 1e-5))


def frames_innermost(threads: int, seconds: float) -> Case:
    """Features [B, D, T], as 1D convolutions have them."""
    x, alpha = torch.randn(64, 2048, 16), dynpool.rank_weights(16)
    a = alpha.float()
    ways: Ways = {
        "dynpool": lambda: dynpool.approx_rank_pool(x, -1),
        "matmul": lambda: x @ a,
        "einsum": lambda: torch.einsum("bdt,t->bd", x, a),
        "eager torch": lambda: (x * a).sum(-1),
    }
    case = Case("float32 64×2048×16, frames innermost", x.nbytes + x[..., 0].nbytes, 64 * 16, threads)
    return measure(case, ways, seconds, check(ways, x.double() @ alpha, 1e-5))


def long_windows(threads: int, seconds: float) -> Case:
    """Windows of a long sequence of features."""
    window, stride = 10, 6
    x, alpha = torch.randn(1, 30000, 64), dynpool.rank_weights(window)
    a = alpha.float()
    expected = (x.double().unfold(1, window, stride) * alpha).sum(-1)
    count = expected.shape[1]

    def shifted() -> Tensor:
        total = torch.zeros(1, count, 64)
        for t, weight in enumerate(a.tolist()):
            total.add_(x[:, t : t + (count - 1) * stride + 1 : stride], alpha=weight)
        return total

    ways: Ways = {
        "dynpool": lambda: dynpool.approx_rank_pool(x, window=window, stride=stride)[:, :count],
        "shifted sums": shifted,
        "unfold, matmul": lambda: x.unfold(1, window, stride) @ a,
    }
    moved = x.nbytes + expected.numel() * 4
    case = Case(f"float32 1×30000×64, windows of {window} every {stride}", moved, x.shape[1], threads)
    return measure(case, ways, seconds, check(ways, expected, 1e-5))


def large_gradient(threads: int, seconds: float) -> Case:
    """Larger than what malloc keeps: every gradient lies in new pages, as in training."""
    x, alpha = torch.rand(8, 16, 3, 224, 224, requires_grad=True), dynpool.rank_weights(16)
    a, gradient = alpha.float().view(-1, 1, 1, 1), torch.rand(8, 3, 224, 224)
    pooled = {"dynpool": dynpool.approx_rank_pool(x), "eager torch": (x * a).sum(1)}

    def of(y: Tensor) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(y, x, gradient, retain_graph=True)[0]

    ways: Ways = {name: of(y) for name, y in pooled.items()}
    expected = alpha.view(-1, 1, 1, 1) * gradient[:, None]
    case = Case("float32 8×16×3×224×224, identity, backward", x.nbytes + gradient.nbytes, 8 * 16, threads)
    return measure(case, ways, seconds, check(ways, expected, 1e-5))


def scaling(name: str, frames: Tensor, nonlinearity: str, seconds: float) -> Case:
    """One thread and two in the same rounds."""

    def on(threads: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            torch.set_num_threads(threads)
            return dynpool.approx_rank_pool(frames, 0, nonlinearity=nonlinearity)

        return run

    ways: Ways = {"dynpool": on(2), "dynpool, one thread": on(1)}
    if not torch.equal(*(run() for run in ways.values())):
        raise SystemExit(f"{name}: the result depends on the number of threads")
    case = Case(f"{name}, one thread and two", frames.nbytes + frames[0].numel() * 4, len(frames), 2)
    return measure(case, ways, seconds, {})


def from_memory(dtype: torch.dtype, threads: int, seconds: float) -> Case:
    """1.2 GB of frames beside reductions that only read: the machine's read bandwidth, in the same rounds."""
    size = (64, 3, 1120, 1400) if dtype == torch.float32 else (256, 3, 1120, 1400)
    frames = torch.rand(size) if dtype == torch.float32 else torch.randint(0, 256, size, dtype=dtype)
    alpha = dynpool.rank_weights(size[0])
    corner = (..., slice(0, 8), slice(0, 8))
    expected = torch.einsum("t,tchw->chw", alpha, frames[corner].double())
    error = relative_error(dynpool.approx_rank_pool(frames, 0)[corner], expected)
    if not error < 1e-5:
        raise SystemExit(f"dynpool is wrong: relative error {error:.1e}")
    flat = frames.view(-1).view(torch.float32) if dtype == torch.float32 else frames.view(-1).view(torch.int64)
    ways: Ways = {
        "dynpool": lambda: dynpool.approx_rank_pool(frames, 0),
        "read: torch.sum": lambda: flat.sum(),
        "read: torch.max": lambda: flat.max(),
    }
    name = str(dtype).removeprefix("torch.")
    case = Case(f"{name} {'×'.join(map(str, size))}, identity, from memory", frames.nbytes, size[0], threads)
    return measure(case, ways, seconds, {"dynpool": error})


def tiny_call(seconds: float) -> dict[str, float]:
    """Microseconds of a call on 1×4×8 floats."""
    x, y = torch.rand(1, 4, 8), torch.rand(1, 4, 8, requires_grad=True)
    gradient = torch.ones(1, 8)
    ways: Ways = {
        "forward": lambda: dynpool.approx_rank_pool(x),
        "forward + backward": lambda: torch.autograd.grad(dynpool.approx_rank_pool(y), y, gradient),
        "torch.sum forward": lambda: x.sum(1),
        "torch.sum forward + backward": lambda: torch.autograd.grad(y.sum(1), y, gradient),
    }
    repeats = 100
    loops: Ways = {name: lambda run=run: [run() for _ in range(repeats)] for name, run in ways.items()}
    return {name: min(times) / repeats * 1e6 for name, times in interleave(loops, seconds).items()}


_MEMORY = """
import sys, torch, dynpool
torch.set_num_threads(1)
kind = sys.argv[1]

def peak():  # of this process; ru_maxrss would begin with that of its parent
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024

dynpool.approx_rank_pool(torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8), nonlinearity="sqrt")
w = torch.zeros(1, 2, 3, requires_grad=True)  # what torch imports for its first backward is not ours
dynpool.approx_rank_pool(w, nonlinearity="sqrt").backward(torch.ones(1, 3))
if kind == "forward":
    x = torch.full((400, 3, 240, 320), 7, dtype=torch.uint8)
    before = peak()
    y = dynpool.approx_rank_pool(x, 0, nonlinearity="sqrt", mean=[1.0, 2.0, 3.0], std=255)
    least = y.nbytes
else:
    x = torch.full((100, 3, 240, 320), 7.0).requires_grad_()
    y = dynpool.approx_rank_pool(x, 0, nonlinearity="sqrt")
    g = torch.ones_like(y)
    before = peak()
    y.backward(g)
    least = x.grad.nbytes
print(peak() - before, least, x.nbytes)
"""


def peak_memory(kind: str) -> dict[str, int]:
    """Bytes that a call adds to a process, beside what it must: the output, or the gradient."""
    run = subprocess.run([sys.executable, "-c", _MEMORY, kind], capture_output=True, text=True, check=True)
    added, least, frames = map(int, run.stdout.split())
    return {"added": added, "output": least, "frames": frames}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="time for each case")
    parser.add_argument("--quick", action="store_true", help="half a second a case")
    parser.add_argument("--json", type=Path, default=RESULTS / "ops-cpu.json")
    parser.add_argument("--chart", type=Path, default=RESULTS / "ops-cpu.png")
    options = parser.parse_args()
    seconds = 0.5 if options.quick else options.seconds

    torch.set_num_threads(1)
    one = [uint8_root(1, seconds), float_identity(1, seconds), float_backward(1, seconds)]
    memory = [from_memory(torch.float32, 1, seconds), from_memory(torch.uint8, 1, seconds)]
    others = [frames_innermost(1, seconds), long_windows(1, seconds), large_gradient(1, seconds)]
    tiny = tiny_call(seconds)
    torch.set_num_threads(2)
    two = [uint8_root(2, seconds), float_identity(2, seconds)]
    memory += [from_memory(torch.float32, 2, seconds), from_memory(torch.uint8, 2, seconds)]
    frames = torch.randint(0, 256, (64, 3, 224, 224), dtype=torch.uint8)
    scaled = [
        scaling("uint8 64×3×224×224, √", frames, "sqrt", seconds),
        scaling("float32 64×3×224×224, identity", torch.rand(64, 3, 224, 224), "identity", seconds),
    ]
    peaks = {kind: peak_memory(kind) for kind in ("forward", "backward")}

    for case in one + others + two + memory + scaled:
        print_case(case)
    print("\nA call on 1×4×8 floats, µs:")
    for name, value in tiny.items():
        print(f"  {name:<32}{value:>8.1f}")
    print("\nPeak memory that a call adds, MB:")
    for kind, peak in peaks.items():
        added, output, frames = (peak[part] / 1e6 for part in ("added", "output", "frames"))
        print(f"  {kind:<12}{added:>8.1f}  (its output {output:.1f}, the frames {frames:.1f})")

    targets = compare(one, memory, scaled, tiny)
    print("\nTargets:")
    for name, (value, target) in targets.items():
        met = value <= target if name.startswith("µs") else value >= target
        print(f"  {'met ' if met else 'MISS'}  {name:<66}{value:>8.2f}  (target {target:g})")
    cases = one + others + two + memory + scaled
    write_json(options.json, {"cases": cases, "tiny_call_us": tiny, "peak_memory_bytes": peaks, "targets": targets})
    draw(options.chart, one + others + two, f"temporal pooling on {torch.__version__}, best of interleaved runs")


def compare(
    one: list[Case], memory: list[Case], scaled: list[Case], tiny: dict[str, float]
) -> dict[str, tuple[float, float]]:
    """Figure and target, by name."""
    root, identity, backward = one

    def ratio(case: Case, *peers: str) -> float:
        return min(case.best(peer) for peer in peers) / case.best("dynpool")

    targets = {
        "uint8 √, one thread: × torch.compile": (ratio(root, "torch.compile"), 2.0),
        "float32 identity, one thread: × best peer": (ratio(identity, "matmul", "einsum", "torch.compile"), 0.95),
        "float32 √ forward + backward: × torch.compile": (ratio(backward, "torch.compile"), 1.1),
        "float32 √ forward + backward: × eager": (ratio(backward, "eager torch"), 10.0),
        "uint8 √: two threads × one": (ratio(scaled[0], "dynpool, one thread"), 1.8),
        "float32 identity: two threads × one": (ratio(scaled[1], "dynpool, one thread"), 1.8),
        "µs of a tiny call, forward": (tiny["forward"], 15.0),
        "µs of a tiny call, forward + backward": (tiny["forward + backward"], 40.0),
    }
    for case in memory:
        name = f"{case.title.split()[0]} from memory, {case.threads} thread(s): share of read bandwidth"
        targets[name] = (ratio(case, "read: torch.sum", "read: torch.max"), 0.85)
    return targets


if __name__ == "__main__":
    main()
