"""Exact rank pooling on the CPU beside liblinear, as the released exact codes run it: times and objectives.

    python benchmarks/exact.py [--quick] [--seconds 4] [--video FILE] [--json FILE]

Both minimise ½‖d‖² + C Σ_t max(0, |t - ⟨d,V_t⟩| - ε)², C = 1, ε = 0.1, from the same uint8 frames, interleaved in one
run; the objective is evaluated in float64 from the d of each. The gap is that to a lower bound of the minimum, the dual
objective of a float64 solution. It includes the rounding of our d to float32, which the gap that rank_pool tells does
not ("own gap", of coefficients in float64). liblinear is scikit-learn's LinearSVR at its default tolerance; its time
includes the running means V, which ours includes too. Its primal solver (-s 11) is the peer; its dual solver (-s 12) is
far slower and runs once, where that does not take minutes.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from harness import RESULTS, Case, Measurement, measure, relative_error, write_json
from torch import Tensor

import dynpool
from dynpool.gram import gram

try:
    import sklearn
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVR
except ImportError:
    sklearn = None

C, EPSILON, TOLERANCE = 1.0, 0.1, 1e-3
PAPER_APPROXIMATE_FPS = 5920.0


@dataclass
class Solved(Measurement):
    """With the objective that was reached, and its gap to a lower bound of the minimum, relative to the objective."""

    objective: float = float("nan")
    gap: float = float("nan")
    own_gap: float = float("nan")  # as rank_pool tells it
    note: str = ""


def moving_blobs(num_frames: int, height: int, width: int, seed: int = 0, action: int = 0) -> Tensor:
    """A made-up clip, uint8 [T, 3, H, W]: blobs drift over a still background, with slight noise.

    `action` draws the blobs and how they move; `seed` draws the background, the noise and where the blobs start.
    """
    motion, look = torch.Generator().manual_seed(action), torch.Generator().manual_seed(1000 + seed)
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    t = torch.linspace(0, 1, num_frames)[:, None, None]
    coarse = 60 + 120 * torch.rand(1, 3, 6, 8, generator=look)
    background = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    frames = background.repeat(num_frames, 1, 1, 1)
    for _ in range(6):
        start = torch.rand(2, generator=motion) + 0.1 * (torch.rand(2, generator=look) - 0.5)
        velocity = 1.2 * (torch.rand(2, generator=motion) - 0.5)
        color = 200 * (torch.rand(3, generator=motion) - 0.5)
        radius = 0.05 + 0.08 * torch.rand(1, generator=motion)
        square = (y - start[0] - velocity[0] * t) ** 2 + (x - start[1] - velocity[1] * t) ** 2
        frames += torch.exp(-square / (2 * radius**2))[:, None] * color[:, None, None]
    frames += 2 * torch.randn(frames.shape, generator=look)
    return frames.clamp_(0, 255).to(torch.uint8)


def running_means(frames: Tensor, nonlinearity: str) -> np.ndarray:
    """V [T, D] in float64, which liblinear asks for; frame by frame, which is faster than np.cumsum."""
    array = frames.flatten(1).numpy()
    V, total = np.empty(array.shape), np.zeros(array.shape[1])
    for t, frame in enumerate(array):
        total += np.sqrt(frame, dtype=np.float32) if nonlinearity == "sqrt" else frame
        np.divide(total, t + 1, out=V[t])
    return V


def liblinear(V: np.ndarray, dual: bool = False) -> LinearSVR:
    """Fitted to targets 1 … T; whether it converged is told by its iterations."""
    model = LinearSVR(
        loss="squared_epsilon_insensitive", epsilon=EPSILON, C=C, fit_intercept=False, dual=dual, tol=1e-4
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(V, np.arange(1.0, len(V) + 1))


def svr_objective(d: np.ndarray, V: np.ndarray) -> float:
    excess = np.abs(np.arange(1, len(V) + 1) - V @ d) - EPSILON
    return float(d @ d / 2 + C * np.square(np.maximum(excess, 0)).sum())


def ours(frames: Tensor, objective: str, nonlinearity: str, threads: int | None = None) -> Callable[[], tuple]:
    """rank_pool to a relative gap of 1e-3, with what it tells of its solution."""
    options = {"objective": objective, "C": C, "epsilon": EPSILON, "nonlinearity": nonlinearity, "tol": TOLERANCE}

    def run() -> tuple[Tensor, dynpool.RankPoolInfo]:
        usual = torch.get_num_threads()
        torch.set_num_threads(threads or usual)
        try:
            return dynpool.rank_pool(frames, 0, **options, return_info=True)
        finally:
            torch.set_num_threads(usual)

    return run


def told(info: dynpool.RankPoolInfo) -> dict[str, float]:
    return {"objective": float(info.objective), "own_gap": float(info.duality_gap / info.objective)}


def lower_bound(frames: Tensor, nonlinearity: str) -> float:
    """Of the SVR objective: the dual objective of a solution from float64 frames."""
    _, info = dynpool.rank_pool(
        frames.double(), 0, objective="svr", C=C, epsilon=EPSILON, nonlinearity=nonlinearity, tol=1e-9, return_info=True
    )
    return float(info.objective - info.duality_gap)


def beside_liblinear(frames: Tensor, nonlinearity: str, seconds: float, dual: bool) -> Case:
    V, bound = running_means(frames, nonlinearity), lower_bound(frames, nonlinearity)

    def reached(d: np.ndarray) -> dict[str, float]:
        objective = svr_objective(d, V)
        return {"objective": objective, "gap": (objective - bound) / objective}

    ways = {
        "dynpool": ours(frames, "svr", nonlinearity),
        "dynpool, one thread": ours(frames, "svr", nonlinearity, 1),
        "dynpool, ranksvm": ours(frames, "ranksvm", nonlinearity),
        "making V": lambda: running_means(frames, nonlinearity),
        "liblinear": lambda: liblinear(running_means(frames, nonlinearity)),
    }
    case = Case(
        title(frames, nonlinearity), frames.nbytes + 4 * frames[0].numel(), len(frames), torch.get_num_threads()
    )
    for name, times in rounds(ways, seconds, least=3).items():
        case.measurements.append(Solved(name, times[0], times[len(times) // 2], len(times)))
    by_name = {m.name: i for i, m in enumerate(case.measurements)}

    def tell(name: str, **found: object) -> None:
        case.measurements[by_name[name]] = replace(case.measurements[by_name[name]], **found)

    for name in ("dynpool", "dynpool, one thread"):
        d, info = ways[name]()
        tell(name, **{**told(info), **reached(d.flatten().double().numpy())})
    tell("dynpool, ranksvm", **told(ways["dynpool, ranksvm"]()[1]), note="eq. (1), another objective")
    tell("making V", note="part of liblinear's time")
    model = liblinear(V)
    tell("liblinear", **reached(model.coef_), note=f"primal, -s 11; {model.n_iter_} iterations")
    if dual:
        start = time.perf_counter()
        model = liblinear(running_means(frames, nonlinearity), dual=True)
        took = time.perf_counter() - start
        note = f"-s 12; {model.n_iter_} iterations, {'not ' if model.n_iter_ >= model.max_iter else ''}converged"
        case.measurements.append(Solved("liblinear, dual", took, took, 1, **reached(model.coef_), note=note))
    return finished(case)


def check(case: Case) -> None:
    """An objective above liblinear's, or a gap too wide, ends the benchmark."""
    peers = [m.objective for m in case.measurements if m.name.startswith("liblinear")]
    for m in case.measurements:
        if not m.name.startswith("dynpool"):
            continue
        if not m.own_gap <= TOLERANCE:
            raise SystemExit(f"{case.title}, {m.name}: relative gap {m.own_gap:.1e}, allowed {TOLERANCE:.0e}")
        if peers and not np.isnan(m.gap) and not m.objective <= min(peers) * (1 + TOLERANCE):
            raise SystemExit(f"{case.title}, {m.name}: objective {m.objective:.6g}, liblinear's is {min(peers):.6g}")


def alone(frames: Tensor, seconds: float) -> Case:
    """Both objectives on a clip that is too long to wait for liblinear; once, or for about `seconds` each."""
    case = Case(title(frames, "identity"), frames.nbytes + 4 * frames[0].numel(), len(frames), torch.get_num_threads())
    for objective in ("ranksvm", "svr"):
        run, infos = ours(frames, objective, "identity"), []
        (times,) = rounds({objective: lambda run=run, infos=infos: infos.append(run()[1])}, seconds, least=1).values()
        found = told(infos[-1])
        case.measurements.append(
            Solved(f"dynpool, {objective}", times[0], times[len(times) // 2], len(times), None, **found)
        )
    return finished(case)


def products(frames: Tensor, nonlinearity: str, seconds: float) -> Case:
    """The Gram matrix alone beside torch's float32 matrix products: T (T + 1) / 2 products of frames are needed."""
    num_frames, x = len(frames), frames[None]
    floats, square = frames.flatten(1).float(), torch.rand(1024, 1024)
    case = Case(f"Gram matrix, {title(frames, nonlinearity)}", frames.nbytes, num_frames, torch.get_num_threads())
    ways = {
        "dynpool": lambda: gram(x, nonlinearity=nonlinearity),
        "torch, X @ X.T": lambda: floats @ floats.T,
        "torch, 1024³": lambda: square @ square,
    }
    expected = gram(x.double(), nonlinearity=nonlinearity).centred
    errors = {"dynpool": relative_error(gram(x, nonlinearity=nonlinearity).centred, expected)}
    if not errors["dynpool"] < 1e-4:
        raise SystemExit(f"{case.title}: relative error {errors['dynpool']:.1e}")
    measure(case, ways, seconds, errors)
    flops = {"dynpool": num_frames * (num_frames + 1) * floats.shape[1], "torch, 1024³": 2 * 1024**3}
    flops["torch, X @ X.T"] = 2 * num_frames**2 * floats.shape[1]
    print(f"\n{case.title}   [{case.threads} threads]")
    for m in case.measurements:
        print(f"  {m.name:<21}{m.seconds * 1e3:>9.2f} ms{flops[m.name] / m.seconds / 1e9:>8.0f} GFLOP/s")
    return case


def share_of_rate(case: Case) -> float:
    """Of torch's rate: 1024³ products, or the frames' own where those are faster."""
    num_frames = case.frames
    needed = (num_frames + 1) / num_frames / 2  # of the products in X @ X.T
    own = needed * case.best("torch, X @ X.T") / case.best("dynpool")
    flops = num_frames * (num_frames + 1) * (case.num_bytes // num_frames)
    square = flops / case.best("dynpool") / (2 * 1024**3 / case.best("torch, 1024³"))
    return min(own, square)


def rounds(ways: dict[str, Callable[[], object]], seconds: float, least: int) -> dict[str, list[float]]:
    """Sorted times of every way, in turn for about `seconds`. Without warming up: that would take minutes."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    while len(next(iter(times.values()))) < least or time.perf_counter() < end:
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: sorted(values) for name, values in times.items()}


def finished(case: Case) -> Case:
    print_solved(case)
    check(case)
    return case


def title(frames: Tensor, nonlinearity: str) -> str:
    size = "×".join(str(n) for n in (frames.shape[2], frames.shape[3], frames.shape[1]))
    return f"{len(frames)} frames {size}, {'√' if nonlinearity == 'sqrt' else nonlinearity}"


def print_solved(case: Case) -> None:
    names = [m.name for m in case.measurements]
    print(f"\n{case.title}   [{case.threads} thread{'s' if case.threads > 1 else ''}, liblinear one]")
    print(
        f"  {'':<21}{'best ms':>9}{'median':>9}{'fps':>8}{'objective':>12}{'gap':>9}{'own gap':>9}{'x liblinear':>13}"
    )
    for m in case.measurements:
        times = f"{m.seconds * 1e3:>9.2f}{m.median * 1e3:>9.2f}{case.frames / m.seconds:>8,.0f}"
        reached = number(m.objective, 12, ".6g") + number(m.gap, 9, ".1e") + number(m.own_gap, 9, ".1e")
        ratio = case.best("liblinear") / m.seconds if "liblinear" in names and m.name != "making V" else float("nan")
        print(f"  {m.name:<21}{times}{reached}{number(ratio, 13, '.1f')}  {m.note}".rstrip())


def number(value: float, width: int, form: str) -> str:
    return f"{'' if np.isnan(value) else format(value, form):>{width}}"


def compare(
    grams: list[Case], short: list[Case], large: list[Case], long: list[Case]
) -> dict[str, tuple[float, float]]:
    """Figure and target, by name."""
    targets = {f"{case.title}: share of float32 products' rate": (share_of_rate(case), 0.7) for case in grams}
    for case in short:
        targets[f"{case.title}: × liblinear"] = (case.best("liblinear") / case.best("dynpool"), 20.0)
    for case in large:
        for name in ("dynpool", "dynpool, ranksvm"):
            targets[f"{case.title}, {name}: fps"] = (case.frames / case.best(name), PAPER_APPROXIMATE_FPS)
    for case in long:
        for m in case.measurements:
            targets[f"{case.title}, {m.name}: seconds"] = (m.seconds, 2.0)
    return targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="least time for each case")
    parser.add_argument("--quick", action="store_true", help="three rounds a case, no dual solver")
    parser.add_argument("--video", type=Path, help="frames of this video, scaled, instead of made-up ones")
    parser.add_argument("--json", type=Path, default=RESULTS / "exact-cpu.json")
    options = parser.parse_args()
    if sklearn is None:
        raise SystemExit("this benchmark needs scikit-learn: pip install scikit-learn")
    seconds = 0.0 if options.quick else options.seconds

    def clip(num_frames: int, height: int, width: int) -> Tensor:
        if options.video is None:
            return moving_blobs(num_frames, height, width)
        frames = dynpool.read_clip(options.video, size=(height, width), max_frames=num_frames).frames
        if len(frames) < num_frames:
            print(f"{options.video} has {len(frames)} frames only, {num_frames} were wanted")
        return frames

    print(f"liblinear of scikit-learn {sklearn.__version__}; frames: {options.video or 'made up, moving blobs'}")
    psis = ("identity", "sqrt")
    frames = clip(60, 120, 160)
    short = [beside_liblinear(frames, psi, seconds, dual=not options.quick) for psi in psis]
    frames = clip(100, 240, 320)
    large = [beside_liblinear(frames, psi, seconds, dual=False) for psi in psis]
    grams = [products(frames, psi, min(seconds, 3)) for psi in psis]
    long = [alone(clip(1000, 120, 160), seconds)]

    targets = compare(grams, short, large, long)
    print("\nTargets:")
    for name, (value, target) in targets.items():
        met = value <= target if name.endswith("seconds") else value >= target
        print(f"  {'met ' if met else 'MISS'}  {name:<74}{value:>9.2f}  (target {target:g})")
    peers = {"scikit-learn": sklearn.__version__, "numpy": np.__version__}
    source = options.video.name if options.video else "made up: moving_blobs"
    cases = grams + short + large + long
    write_json(options.json, {"cases": cases, "peers": peers, "frames": source, "targets": targets})


if __name__ == "__main__":
    main()
