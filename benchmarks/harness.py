"""What the benchmarks share: interleaved timing, the machine, tables, JSON and charts."""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

import dynpool

# Where figures go: not over those that are committed, in benchmarks/results, unless RESULTS says so.
RESULTS = Path(os.environ.get("RESULTS", Path(__file__).parents[1] / "build" / "bench"))


@dataclass
class Measurement:
    """One way of doing one job. `seconds` is the best, `median` the median of `rounds` interleaved runs."""

    name: str
    seconds: float
    median: float
    rounds: int
    max_error: float | None = None  # relative to the float64 result


@dataclass
class Case:
    """One job, every way of doing it, and the bytes it must move: each input read once, each output written once."""

    title: str
    num_bytes: int
    frames: int
    threads: int
    measurements: list[Measurement] = field(default_factory=list)

    def best(self, name: str) -> float:
        return next(m.seconds for m in self.measurements if m.name == name)


def interleave(ways: dict[str, Callable[[], object]], seconds: float, least: int = 5) -> dict[str, list[float]]:
    """Runs every way in turn, round after round, for about `seconds`: what disturbs the machine disturbs all, and an
    order drawn anew each round gives none a neighbour that always leaves it a warm cache.
    """
    for run in ways.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in ways}
    order, draw = list(ways.items()), random.Random(0)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        draw.shuffle(order)
        for name, run in order:
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def measure(case: Case, ways: dict[str, Callable[[], object]], seconds: float, errors: dict[str, float]) -> Case:
    for name, times in interleave(ways, seconds).items():
        times.sort()
        case.measurements.append(Measurement(name, times[0], times[len(times) // 2], len(times), errors.get(name)))
    return case


def print_case(case: Case) -> None:
    print(f"\n{case.title}   [{case.threads} thread{'s' if case.threads > 1 else ''}, {case.num_bytes / 1e6:.1f} MB]")
    print(f"  {'':<24}{'best ms':>10}{'median':>10}{'fps':>12}{'GB/s':>8}{'x dynpool':>11}{'rel. error':>12}")
    ours = case.best("dynpool")
    for m in case.measurements:
        error = "" if m.max_error is None else f"{m.max_error:.1e}"
        print(
            f"  {m.name:<24}{m.seconds * 1e3:>10.3f}{m.median * 1e3:>10.3f}{case.frames / m.seconds:>12,.0f}"
            f"{case.num_bytes / m.seconds / 1e9:>8.1f}{m.seconds / ours:>11.2f}{error:>12}"
        )


def machine() -> dict[str, object]:
    return {"processor": _processor(), "system": platform.platform(), "commit": _commit(), **dynpool.build_info()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _commit() -> str:
    try:
        folder = Path(__file__).parent
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True, check=True
        )
        return run.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _plain(value: object) -> object:
    return asdict(value) if isinstance(value, Case) else str(value)


def write_json(path: Path, content: dict[str, object]) -> None:
    """What was measured, and on which machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = machine()
    path.write_text(json.dumps({"machine": about, **content}, indent=1, default=_plain) + "\n")
    print(f"\nwrote {path}")
    if str(about["commit"]).endswith("-dirty"):
        print("of a tree with changes that are not committed: nobody can measure it again")


def draw(path: Path, cases: list[Case], title: str) -> None:
    """Bars of frames a second, a panel for each case; drawn from the same numbers as the JSON."""
    try:
        import matplotlib
    except ImportError:
        print("no chart: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(cases), 1, figsize=(8, 0.4 + 1.5 * len(cases)), layout="constrained")
    for panel, case in zip(panels if len(cases) > 1 else [panels], cases, strict=True):
        ranked = sorted(case.measurements, key=lambda m: m.seconds, reverse=True)
        values = [case.frames / m.seconds for m in ranked]
        colors = ["#d1495b" if m.name == "dynpool" else "#8d99ae" for m in ranked]
        bars = panel.barh([m.name for m in ranked], values, color=colors)
        panel.bar_label(bars, [f" {v:,.0f}" for v in values], fontsize=8)
        panel.set_title(
            f"{case.title} ({case.threads} thread{'s' if case.threads > 1 else ''})", fontsize=9, loc="left"
        )
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.12)
    panels = panels if len(cases) > 1 else [panels]
    panels[-1].set_xlabel("frames per second", fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    print(f"wrote {path}")


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """max |result - expected| / max |expected|, in float64."""
    expected = expected.double()
    return float((result.double() - expected).abs().max() / expected.abs().max())
