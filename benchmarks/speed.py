"""Table 2 of the paper: frames a second and ranking accuracy of exact and approximate rank pooling.

    python benchmarks/speed.py [--quick] [--data FOLDER] [--json FILE]

Protocol: d is learnt on one video of each class and ranks the frames of that video and of another of its class;
accuracy is the share of pairs in the right order, mean ± standard deviation over the classes. ψ is the square root.
Scores are always those of running means, ⟨d, V_t⟩, also for eq. (4), which learns from the frames themselves. Frames
are in memory before the clock starts: decoding is not timed. Times are the best of a few runs of each video, summed.

The data are folders of classes with video files in them: the first two of each, in sorted order, are learnt from and
tested on. Without any, clips are made up.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from exact import liblinear, moving_blobs, running_means, sklearn
from harness import RESULTS, machine, write_json
from torch import Tensor

import dynpool

PAPER = {"exact": (131.0, 99.5, 0.1), "approximate": (5920.0, 96.5, 0.9)}  # fps, accuracy %, its deviation
Learn = Callable[[Tensor], Tensor]


@dataclass
class Pair:
    """Two clips of one class, uint8 [T, 3, H, W]."""

    label: str
    train: Tensor
    test: Tensor


@dataclass
class Row:
    """Accuracies in percent, one a class."""

    name: str
    device: str
    fps: float
    same_video: list[float]
    other_video: list[float]


def default_data() -> Path | None:
    """The Weizmann actions, where they lie: in the folder that DYNPOOL_TEST_DATA names, or beside the repository."""
    folders = [Path(__file__).parents[2] / "shared" / "data"]
    if "DYNPOOL_TEST_DATA" in os.environ:
        folders.insert(0, Path(os.environ["DYNPOOL_TEST_DATA"]))
    return next((folder / "weizmann" for folder in folders if (folder / "weizmann").is_dir()), None)


def load(folder: Path | None, classes: int) -> list[Pair]:
    if folder is None:
        made = [
            [moving_blobs(80, 144, 180, seed, action) for seed in (2 * action, 2 * action + 1)]
            for action in range(classes)
        ]
        return [Pair(f"action {action}", *clips) for action, clips in enumerate(made)]
    pairs: list[Pair] = []
    for label in sorted(path for path in folder.iterdir() if path.is_dir()):
        if len(pairs) < classes and (pair := read_pair(label)):
            pairs.append(pair)
    if not pairs:
        raise SystemExit(f"{folder} has no class of two readable videos of one size")
    return pairs


def read_pair(folder: Path) -> Pair | None:
    """The first two videos of a class; None, and a line that says why, where they will not do."""
    files = sorted(path for path in folder.iterdir() if path.is_file())[:2]
    try:
        clips = [dynpool.read_clip(path).frames for path in files]
    except (ValueError, OSError) as error:  # VideoError is a ValueError
        print(f"skipped {folder.name}: {error}")
        return None
    if len(clips) < 2:
        print(f"skipped {folder.name}: fewer than two files")
    elif clips[0].shape[1:] != clips[1].shape[1:]:
        print(f"skipped {folder.name}: frames of {list(clips[0].shape[1:])} and of {list(clips[1].shape[1:])}")
    else:
        return Pair(folder.name, *clips)
    return None


def by_liblinear(frames: Tensor) -> Tensor:
    return torch.from_numpy(liblinear(running_means(frames, "sqrt")).coef_).view(frames.shape[1:])


def by_exact(frames: Tensor) -> Tensor:
    return dynpool.rank_pool(frames, 0, nonlinearity="sqrt")


def by_equation_2(frames: Tensor) -> Tensor:
    return dynpool.approx_rank_pool(frames, 0, nonlinearity="sqrt")


def by_equation_4(frames: Tensor) -> Tensor:
    return dynpool.approx_rank_pool(frames, 0, nonlinearity="sqrt", time_average=False)


METHODS: dict[str, Learn] = {
    "exact, liblinear SVR": by_liblinear,
    "exact, dynpool": by_exact,
    "approximate, eq. (2)": by_equation_2,
    "approximate, eq. (4)": by_equation_4,
}


def seconds_of(learn: Learn, frames: Tensor, runs: int) -> float:
    """The best of `runs`, after one that warms up."""

    def timed() -> float:
        start = time.perf_counter()
        learn(frames)
        if frames.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    timed()
    return min(timed() for _ in range(runs))


def accuracy(d: Tensor, frames: Tensor) -> float:
    return 100 * float(dynpool.ranking_accuracy(d, frames, 0, nonlinearity="sqrt"))


def row(name: str, device: str, pairs: list[Pair], runs: int) -> Row:
    learn, seconds, frames, same, other = METHODS[name], 0.0, 0, [], []
    for pair in pairs:
        train, test = pair.train.to(device), pair.test.to(device)
        seconds += seconds_of(learn, train, runs)
        frames += len(train)
        d = learn(train)
        same.append(accuracy(d, train))
        other.append(accuracy(d, test))
    return Row(name, device, frames / seconds, same, other)


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def differences(pairs: list[Pair], data: Path | None) -> dict[str, str]:
    """What differs from the paper's setting."""
    sizes = sorted({"×".join(str(n) for n in pair.train.shape[2:]) for pair in pairs})
    lengths = [len(pair.train) for pair in pairs]
    source = "made-up clips of moving blobs, one pair a class"
    if data:
        source = f"{data.name}, one pair of videos a class"
    if data and data.name == "weizmann":
        source += ", the second often of somebody who goes the other way"
    return {
        "machine": f"{machine()['processor']}, {torch.get_num_threads()} threads",
        "data": f"{len(pairs)} classes of {source}; the paper's are 10 pairs",
        "resolution": f"{', '.join(sizes)}, {min(lengths)} to {max(lengths)} frames",
        "solver": "liblinear: SVR, scikit-learn's, primal, tolerance 1e-4, C = 1; dynpool exact: eq. (1), C = 1, to a "
        "relative duality gap of 1e-3",
    }


def print_rows(rows: list[Row]) -> None:
    print(f"\n{'':<24}{'device':<8}{'fps':>12}{'same video, %':>18}{'other video, %':>18}")
    for r in rows:
        same, other = (f"{mean:>11.1f} ± {std:>4.1f}" for mean, std in (spread(r.same_video), spread(r.other_video)))
        print(f"{r.name:<24}{r.device:<8}{r.fps:>12,.0f}{same}{other}")
    for name, (fps, mean, deviation) in PAPER.items():
        print(f"{'paper, ' + name:<24}{'':<8}{fps:>12,.0f}{'':>18}{mean:>11.1f} ± {deviation:>4.1f}")


def print_classes(rows: list[Row], pairs: list[Pair]) -> None:
    print("\nOther video, % by class:")
    for r in (r for r in rows if r.device == "cpu"):
        values = "  ".join(f"{pair.label} {value:.1f}" for pair, value in zip(pairs, r.other_video, strict=True))
        print(f"  {r.name:<22}{values}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three classes")
    parser.add_argument("--data", type=Path, default=default_data(), help="folder of classes; default: %(default)s")
    parser.add_argument("--generate", action="store_true", help="made-up clips even where there are others")
    parser.add_argument("--json", type=Path, default=RESULTS / "speed-cpu.json")
    options = parser.parse_args()
    if os.environ.get("DYNPOOL_REQUIRE_CUDA") == "1" and not torch.cuda.is_available():
        parser.error("DYNPOOL_REQUIRE_CUDA=1, and torch sees no CUDA device")
    data = None if options.generate else options.data
    pairs = load(data, 3 if options.quick else 10)
    print(f"{len(pairs)} classes from {data.name if data else 'made-up clips'}; decoding is not timed")

    names = [name for name in METHODS if sklearn or "liblinear" not in name]
    if not sklearn:
        print("no scikit-learn: without liblinear")
    rows = [row(name, "cpu", pairs, 1 if "liblinear" in name else 3) for name in names]
    if torch.cuda.is_available():
        rows += [row(name, "cuda", pairs, 10) for name in names if "liblinear" not in name]
    print_rows(rows)
    print_classes(rows, pairs)
    print("\nWhat differs from the paper's setting:")
    differs = differences(pairs, data)
    for name, text in differs.items():
        print(f"  {name}: {text}")

    table = [
        {**asdict(r), "same_mean_std": spread(r.same_video), "other_mean_std": spread(r.other_video)} for r in rows
    ]
    classes = [p.label for p in pairs]
    write_json(options.json, {"rows": table, "classes": classes, "paper": PAPER, "differs": differs})


if __name__ == "__main__":
    main()
