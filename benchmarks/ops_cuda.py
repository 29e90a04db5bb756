"""Pooling on a CUDA device, in GB/s and as a share of what the device's own copy reaches in the same run.

    python benchmarks/ops_cuda.py [--quick] [--alone] [--json FILE] [--bytes 1e9]

Bytes are those that must move: frames read once, pooled images and gradients written once. Times are medians of runs
between CUDA events, each after more than the L2 cache was read and the host had time to enqueue it: they are the
device's. What a call costs the host is measured apart. Every way is checked against float64 first; a peer that
is wrong is left out, and where dynpool is, that is said at the end, and the exit code is 1. Peers: eager torch,
torch.compile (default and max-autotune), einsum, and a plain Triton kernel. The JSON is written however the run ends.
`--device cpu` rehearses the script where there is no GPU; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from harness import RESULTS, Case, Measurement, write_json
from torch import Tensor

import dynpool
from dynpool.binary import kernels_for

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

Run = Callable[[], object]
FLUSH = 256 << 20  # bytes, several times any L2


if triton:

    @triton.autotune(
        [triton.Config({"BLOCK": block}, num_warps=warps) for block in (512, 1024, 2048, 4096) for warps in (4, 8)],
        key=["T", "n"],
    )
    @triton.jit
    def _triton_kernel(x, alpha, y, T, n, ROOT: tl.constexpr, BLOCK: tl.constexpr):
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = i < n
        clip = tl.program_id(1).to(tl.int64)
        total = tl.zeros([BLOCK], tl.float32)
        for t in range(T):
            frame = tl.load(x + (clip * T + t) * n + i, mask=inside, other=0).to(tl.float32)
            if ROOT:
                frame = tl.sqrt(frame)
            total += tl.load(alpha + t) * frame
        tl.store(y + clip * n + i, total, mask=inside)


def triton_way(x: Tensor, alpha: Tensor, root: bool) -> Run:
    clips, frames = x.shape[:2]
    n = x[0, 0].numel()
    y = torch.empty(clips, *x.shape[2:], dtype=_result_dtype(x), device=x.device)

    def run() -> Tensor:
        _triton_kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]), clips)](x, alpha, y, frames, n, ROOT=root)
        return y

    return run


def _result_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype == torch.uint8 else x.dtype


@dataclass
class Bench:
    """The device, how it is timed, and what was found."""

    device: torch.device
    rounds: int
    alone: bool = False  # without peers
    copy: float = 0.0  # bytes a second of a device-to-device copy, read and written
    cases: list[Case] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # of dynpool

    def __post_init__(self) -> None:
        self.cuda = self.device.type == "cuda"
        self.flush = torch.zeros(FLUSH if self.cuda else 4, dtype=torch.uint8, device=self.device).view(torch.float32)

    def time(self, run: Run) -> list[float]:
        for _ in range(3):
            run()
        if not self.cuda:
            return sorted(_host_seconds(run) for _ in range(self.rounds))
        pairs = []
        for _ in range(self.rounds):
            self.flush.sum()  # read: what a write left in the cache would be written back while the clock runs
            torch.cuda._sleep(600_000)  # cycles, in which the host enqueues the rest: its time is not the device's
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize()
        return sorted(begin.elapsed_time(end) / 1e3 for begin, end in pairs)

    def case(
        self,
        title: str,
        num_bytes: int,
        frames: int,
        ways: dict[str, Run],
        expected: Tensor | None,
        part: Callable[[Tensor], Tensor] = lambda result: result,
    ) -> None:
        """Times every way that is right: of whose result `part` is as expected."""
        case = Case(title, num_bytes, frames, 0)
        for name, run in ways.items():
            try:
                error = _checked_error(run(), expected, part)
                times = self.time(run)
            except Exception as reason:  # a peer that cannot do it at all, or is wrong
                print(f"  {name}: left out, {_said(reason)}")
                if name == "dynpool":
                    self.failures.append(f"{title}: {_said(reason)}")
                continue
            case.measurements.append(Measurement(name, times[0], times[len(times) // 2], len(times), error))
        if case.measurements:
            self.cases.append(case)
            self.show(case)

    def attempt(self, what: str, run: Run) -> None:
        """Goes on after what fails, which is said at the end."""
        try:
            run()
        except Exception as reason:
            said = f"{what}: {_said(reason)}"
            print(f"  {said}")
            self.failures.append(said)

    def measure_copy(self, num_bytes: int) -> None:
        source = make_frames((num_bytes,), torch.uint8, self.device)
        target = torch.empty_like(source)
        self.case("device-to-device copy", 2 * num_bytes, 0, {"copy": lambda: target.copy_(source)}, None)
        self.copy = 2 * num_bytes / self.cases[0].measurements[0].median

    def show(self, case: Case) -> None:
        print(f"{case.title}   [{case.num_bytes / 1e6:,.1f} MB]")
        ours = case.measurements[0].median
        for m in case.measurements:
            rate = case.num_bytes / m.median
            share = f"{rate / self.copy:>7.0%} of copy" if self.copy else ""
            print(f"  {m.name:<26}{m.median * 1e6:>12,.1f} µs{rate / 1e9:>10,.0f} GB/s{share}{m.median / ours:>8.2f} x")


def _said(reason: Exception) -> str:
    return f"{type(reason).__name__}: {(str(reason).splitlines() or [''])[0][:90]}"


def _checked_error(result: object, expected: Tensor | None, part: Callable[[Tensor], Tensor]) -> float | None:
    """How far from float64 it is, but for a plain copy; raises ValueError if too far."""
    if expected is None:
        return None
    assert isinstance(result, Tensor)
    error = clipwise_error(part(result), expected)
    if not error < (1e-5 if result.dtype == torch.float32 else 1e-2):
        raise ValueError(f"wrong by {error:.1e}")
    return error


def _host_seconds(run: Run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def make_frames(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype, device=device)
    return torch.rand(shape, device=device).to(dtype)


def clipwise_error(result: Tensor, expected: Tensor) -> float:
    """relative_error, with one clip at a time in float64."""
    worst = torch.stack([(r - e).abs().max() for r, e in zip(result, expected, strict=True)]).max()  # or NaN
    return float(worst / expected.abs().max())


def exact(x: Tensor, alpha: Tensor, root: bool) -> Tensor:
    """Σ_t α_t ψ(x[b, t]) in float64, one frame at a time; [B, T, …] -> [B, …]."""
    total = torch.zeros(x[:, 0].shape, dtype=torch.float64, device=x.device)
    for t in range(x.shape[1]):
        frame = x[:, t].double()
        total += alpha[t].to(x.device) * (frame.sqrt() if root else frame)
    return total


def exact_gradient(x: Tensor, g: Tensor, root: bool) -> Tensor:
    """∂L/∂x of [B, T, …] in float64, for ∂L/∂y = g [B, …]."""
    alpha = dynpool.rank_weights(x.shape[1]).to(x.device).view(1, -1, *[1] * (x.dim() - 2))
    gradient = g.detach().double()[:, None] * alpha
    return gradient.mul_(0.5) / x.detach().double().sqrt() if root else gradient


def peers(x: Tensor, root: bool, thorough: bool) -> dict[str, Run]:
    alpha = dynpool.rank_weights(x.shape[1]).float().to(x.device)
    a = alpha.view(1, -1, *[1] * (x.dim() - 2))

    def eager(x: Tensor, a: Tensor) -> Tensor:
        frames = x.float().sqrt() if root else x.float()
        return (frames * a).sum(1).to(_result_dtype(x))

    torch._dynamo.reset()
    fused = torch.compile(eager, dynamic=False)
    ways: dict[str, Run] = {"eager torch": lambda: eager(x, a), "torch.compile": lambda: fused(x, a)}
    if thorough and x.is_cuda:
        tuned = torch.compile(eager, dynamic=False, mode="max-autotune-no-cudagraphs")
        ways["torch.compile max-autotune"] = lambda: tuned(x, a)
    if not root and x.is_floating_point():
        half = alpha.to(x.dtype)
        flat = x.flatten(2)
        ways["einsum"] = lambda: torch.einsum("t,btn->bn", half, flat).view(x[:, 0].shape)
    if triton and x.is_cuda and x.is_contiguous():
        ways["Triton"] = triton_way(x, alpha, root)
    return ways


def forward(bench: Bench, shape: tuple[int, ...], dtype: torch.dtype, root: bool, thorough: bool = False) -> None:
    x = make_frames(shape, dtype, bench.device)
    psi = "sqrt" if root else "identity"
    ways: dict[str, Run] = {
        "dynpool": lambda: dynpool.approx_rank_pool(x, nonlinearity=psi),
        **({} if bench.alone else peers(x, root, thorough)),
    }
    size = torch.finfo(_result_dtype(x)).bits // 8
    num_bytes = x.numel() * x.element_size() + x[:, 0].numel() * size
    name = str(dtype).removeprefix("torch.")
    title = f"forward {name} {'×'.join(map(str, shape))} {psi}"
    expected = exact(x, dynpool.rank_weights(shape[1]), root)
    bench.case(title, num_bytes, shape[0] * shape[1], ways, expected)


def backward(bench: Bench, shape: tuple[int, ...], dtype: torch.dtype, root: bool) -> None:
    x = make_frames(shape, dtype, bench.device).add_(0.1).requires_grad_()
    psi = "sqrt" if root else "identity"
    alpha = dynpool.rank_weights(shape[1]).float().to(x.device)
    a = alpha.view(1, -1, *[1] * (x.dim() - 2))
    y = dynpool.approx_rank_pool(x, nonlinearity=psi)
    g = torch.rand_like(y)
    ways: dict[str, Run] = {"dynpool": lambda: torch.autograd.grad(y, x, g, retain_graph=True)[0]}
    if not bench.alone:

        def eager(x: Tensor, a: Tensor) -> Tensor:
            return ((x.float().sqrt() if root else x.float()) * a).sum(1).to(dtype)

        def gradient_of(pool: Callable[..., Tensor]) -> Run:
            made: list[Tensor] = []  # when it is first asked for, and may fail

            def run() -> Tensor:
                made.extend([] if made else [pool(x, a)])
                return torch.autograd.grad(made[0], x, g, retain_graph=True)[0]

            return run

        ways["torch.compile"] = gradient_of(torch.compile(eager, dynamic=False))
        ways["eager torch"] = gradient_of(eager)
    size = x.element_size()
    num_bytes = x.numel() * size * (2 if root else 1) + y.numel() * size
    name = str(dtype).removeprefix("torch.")
    title = f"backward {name} {'×'.join(map(str, shape))} {psi}"
    bench.case(title, num_bytes, shape[0] * shape[1], ways, exact_gradient(x, g, root))


def layouts(bench: Bench, size: int) -> None:
    """The same frames as decoders, networks, crops and slices hold them; the first of each dtype is the measure."""

    def make(*shape: int, dtype: torch.dtype) -> Tensor:
        clips = max(1, size // (math.prod(shape) * dtype.itemsize))
        return make_frames((clips, *shape), dtype, bench.device)

    def views(dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        yield "aligned", make(64, 3, 240, 320, dtype=dtype)
        yield "[T, H, W, 3] (decoders)", make(64, 240, 320, 3, dtype=dtype).permute(0, 1, 4, 2, 3)
        yield "[T, H, W, 3], 239×317", make(64, 239, 317, 3, dtype=dtype).permute(0, 1, 4, 2, 3)
        yield "239×317", make(64, 3, 239, 317, dtype=dtype)
        yield "crop [..., 8:232, 8:232]", make(64, 3, 240, 240, dtype=dtype)[..., 8:232, 8:232]
        yield "crop [..., 3:, 5:]", make(64, 3, 240, 320, dtype=dtype)[..., 3:, 5:]
        yield "239×317 [:, 1:]", make(65, 3, 239, 317, dtype=dtype)[:, 1:]
        yield "features [C, T]", make(75 * 1024, 64, dtype=dtype).permute(0, 2, 1)

    for dtype, root in ((torch.uint8, True), (torch.uint8, False), (torch.bfloat16, False), (torch.float32, False)):
        psi, kind = "sqrt" if root else "identity", str(dtype).removeprefix("torch.")
        for name, x in views(dtype):
            ways: dict[str, Run] = {"dynpool": lambda x=x, psi=psi: dynpool.approx_rank_pool(x, nonlinearity=psi)}
            num_bytes = x.numel() * dtype.itemsize + x[:, 0].numel() * _result_dtype(x).itemsize
            expected = exact(x, dynpool.rank_weights(x.shape[1]), root)
            bench.case(f"layout {kind} {psi}: {name}", num_bytes, x.shape[0] * 64, ways, expected)


def odd_gradients(bench: Bench, size: int) -> None:
    """∂L/∂x of aligned frames, of such whose sides are primes, of features [C, T], and of crops."""
    shapes = {
        "240×320": (16, 3, 240, 320),
        "239×317": (16, 3, 239, 317),
        "features [C, T]": (225 * 1024, 16),
        "crop [..., 3:, 5:]": (16, 3, 240, 320),
    }
    for (title, shape), dtype in itertools.product(shapes.items(), (torch.bfloat16, torch.float32)):
        clips, name = max(1, size // (math.prod(shape) * dtype.itemsize)), str(dtype).removeprefix("torch.")
        x = make_frames((clips, *shape), dtype, bench.device).add_(0.1)
        x = x.permute(0, 2, 1) if x.dim() == 3 else x[..., 3:, 5:] if title.startswith("crop") else x
        x.requires_grad_()
        y = dynpool.approx_rank_pool(x, nonlinearity="sqrt")
        g = torch.rand_like(y)
        ways: dict[str, Run] = {"dynpool": lambda x=x, y=y, g=g: torch.autograd.grad(y, x, g, retain_graph=True)[0]}
        num_bytes = (2 * x.numel() + y.numel()) * dtype.itemsize
        expected = exact_gradient(x, g, root=True)
        bench.case(f"layout gradient {name} sqrt: {title}", num_bytes, clips * 16, ways, expected)


def rows(bench: Bench, clips: int, dtype: torch.dtype, root: bool) -> None:
    """Windows, ragged and packed clips, weights of each clip; bytes of the frames that some row weighs, and of y."""
    T = 256
    x = make_frames((clips, T, 3, 112, 112), dtype, bench.device)
    pixels, size, psi = x[0, 0].numel(), _result_dtype(x).itemsize, "sqrt" if root else "identity"
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(T // 4, T + 1, (clips,), generator=generator)
    ends = torch.tensor([30, 61, 101, 160, T])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (ends + T * torch.arange(clips)[:, None]).flatten()])
    packed = x.flatten(0, 1)
    A = torch.randn(clips, T, device=bench.device)

    def part(result: Tensor) -> Tensor:
        return result[..., ::37, ::29]

    few = part(x).double().sqrt() if root else part(x).double()

    def of_windows(window: int, stride: int) -> Tensor:
        alpha = dynpool.rank_weights(window).to(x.device)
        return (few.unfold(1, window, stride) * alpha).sum(-1)

    def of_clips(clips: list[Tensor]) -> Tensor:
        return torch.cat([exact(clip[None], dynpool.rank_weights(len(clip)), root=False) for clip in clips])

    bounds = itertools.pairwise(offsets.tolist())
    kinds: dict[str, tuple[Run, int, int, Tensor]] = {
        "windows of 10, stride 1 (W = 247)": (
            lambda: dynpool.approx_rank_pool(x, window=10, stride=1, nonlinearity=psi),
            clips * T,
            clips * 247,
            of_windows(10, 1),
        ),
        "windows of 16, stride 4 (W = 61)": (
            lambda: dynpool.approx_rank_pool(x, window=16, stride=4, nonlinearity=psi),
            clips * T,
            clips * 61,
            of_windows(16, 4),
        ),
        "windows of 10, stride 6": (
            lambda: dynpool.approx_rank_pool(x, window=10, stride=6, nonlinearity=psi),
            clips * T,
            clips * 42,
            of_windows(10, 6),
        ),
        "lengths": (
            lambda: dynpool.approx_rank_pool(x, lengths=lengths, nonlinearity=psi),
            int(lengths.sum()),
            clips,
            of_clips([clip[:length] for clip, length in zip(few, lengths.tolist(), strict=True)]),
        ),
        "offsets": (
            lambda: dynpool.approx_rank_pool(packed, 0, offsets=offsets, nonlinearity=psi),
            clips * T,
            5 * clips,
            of_clips([few.flatten(0, 1)[begin:end] for begin, end in bounds]),
        ),
        "weights of each clip": (
            lambda: dynpool.temporal_pool(x, A, per_clip=True, nonlinearity=psi),
            clips * T,
            clips,
            (few * A.double()[:, :, None, None, None]).sum(1),
        ),
    }
    for name, (run, frames, outputs, expected) in kinds.items():
        ways: dict[str, Run] = {"dynpool": run}
        num_bytes = pixels * (frames * dtype.itemsize + outputs * size)
        title = f"rows: {name}, {str(dtype).removeprefix('torch.')} {psi}"
        bench.case(title, num_bytes, frames, ways, expected, part)


def launch_cost(bench: Bench) -> dict[str, float]:
    """Microseconds of the host for a call on 1×4×8 floats, enqueued back to back."""
    x = torch.rand(1, 4, 8, device=bench.device)
    ways: dict[str, Run] = {"dynpool": lambda: dynpool.approx_rank_pool(x), "torch.sum": lambda: x.sum(1)}
    result = {}
    for name, run in ways.items():
        run()
        best = float("inf")
        for _ in range(5):
            if bench.cuda:
                torch.cuda.synchronize()
            best = min(best, _host_seconds(lambda run=run: [run() for _ in range(200)]) / 200)
        result[name] = best * 1e6
        print(f"launch: {name:<20}{best * 1e6:>8.1f} µs")
    return result


def targets(bench: Bench, launch: dict[str, float], big: int) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for case in bench.cases:
        ours, *others = case.measurements
        if ours.name != "dynpool":
            continue
        rate = case.num_bytes / ours.median / bench.copy
        if case.num_bytes >= big // 2 and case.title.startswith(("forward", "backward")):
            found[f"{case.title}: share of copy"] = (rate, 0.9)
        if case.title.startswith("rows"):
            found[f"{case.title}: share of copy"] = (rate, 0.8)
        if others:
            found[f"{case.title}: × best peer"] = (min(m.median for m in others) / ours.median, 1.0)
        compiled = [m.median for m in others if m.name.startswith("torch.compile")]
        if compiled and "uint8" in case.title and "sqrt" in case.title and case.num_bytes >= big // 2:
            found[f"{case.title}: × torch.compile"] = (min(compiled) / ours.median, 1.5)
    aligned: dict[str, float] = {}
    for case in bench.cases:
        if case.title.startswith("layout"):
            rate = case.num_bytes / case.measurements[0].median
            share = rate / aligned.setdefault(case.title.split(":")[0], rate)
            if share != 1:
                found[f"{case.title}: share of aligned"] = (share, 0.8)
    if launch:
        found["launch: torch.sum / dynpool"] = (launch["torch.sum"] / launch["dynpool"], 1.0)
    return found


def run_all(bench: Bench, big: int, quick: bool) -> dict[str, float]:
    """All cases, those without peers, which compile nothing, first, but gradients of crops, which no card has seen: an
    error of the device ends all that follows it. And what a launch costs.
    """

    def clips_of(size: int, frame_bytes: int, frames: int = 64) -> int:
        return max(1, size // (frame_bytes * frames))

    bench.measure_copy(big)
    launch = launch_cost(bench)
    bench.attempt("layouts", lambda: layouts(bench, big // 2))
    for dtype, root in [(torch.uint8, False), (torch.uint8, True), (torch.bfloat16, False)]:
        clips = clips_of(big, 3 * 112 * 112 * dtype.itemsize, 256)
        bench.attempt("rows", lambda clips=clips, dtype=dtype, root=root: rows(bench, clips, dtype, root))
    pixels = 3 * 224 * 224
    for dtype, root in [
        (torch.uint8, True),
        (torch.uint8, False),
        (torch.float32, False),
        (torch.float32, True),
        (torch.bfloat16, False),
        (torch.bfloat16, True),
        (torch.float16, False),
        (torch.float16, True),
    ]:
        shape = (clips_of(big, pixels * dtype.itemsize), 64, 3, 224, 224)
        thorough = root and dtype != torch.float16
        bench.attempt(
            "forward", lambda shape=shape, dtype=dtype, root=root, t=thorough: forward(bench, shape, dtype, root, t)
        )
    for dtype, root in itertools.product((torch.bfloat16, torch.float32), (False, True)):
        shape = (clips_of(big // 2, pixels * dtype.itemsize, 16), 16, 3, 224, 224)
        bench.attempt("backward", lambda shape=shape, dtype=dtype, root=root: backward(bench, shape, dtype, root))
    shapes = [
        (1, 64, 3, side, max(16, side * 4 // 3 // 16 * 16)) for side in ([13, 240] if quick else [13, 64, 240, 1080])
    ]
    if not quick:
        shapes += [(1, 64, 1, 16, 16), (1, 256, 3, 112, 112)]  # 16 KB; slices of T
    for shape in shapes:  # one clip, up to 0.3 GB
        bench.attempt("one clip", lambda shape=shape: forward(bench, shape, torch.uint8, True))
        few = (1, shape[1] // 4, *shape[2:])
        bench.attempt("one clip", lambda shape=few: forward(bench, shape, torch.float32, False))
    bench.attempt("gradients", lambda: odd_gradients(bench, big // 2))
    if not quick:
        for dtype, root in [(torch.uint8, True), (torch.float32, False)]:
            shape = (clips_of(4 * big, pixels * dtype.itemsize), 64, 3, 224, 224)
            bench.attempt("forward", lambda shape=shape, dtype=dtype, root=root: forward(bench, shape, dtype, root))
    return launch


def report(bench: Bench, launch: dict[str, float], big: int, path: Path) -> None:
    found = targets(bench, launch, big)
    print("\nTargets:")
    for name, (value, target) in found.items():
        print(f"  {'met ' if value >= target else 'MISS'}  {name:<84}{value:>7.2f}  (target {target:g})")
    for failure in bench.failures:
        print(f"  WRONG {failure}")
    device = torch.cuda.get_device_name(bench.device) if bench.cuda else "a rehearsal on the CPU: figures mean nothing"
    extra = {"device": device, "copy_bytes_per_second": bench.copy, "launch_us": launch, "targets": found}
    write_json(path, {"cases": bench.cases, **extra, "failures": bench.failures})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and sizes")
    parser.add_argument(
        "--alone", action="store_true", help="dynpool without its peers, of which some compile for minutes"
    )
    parser.add_argument("--bytes", type=float, default=1e9, help="frames of the large cases")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, …; cpu rehearses")
    parser.add_argument("--json", type=Path, default=RESULTS / "ops-cuda.json")
    options = parser.parse_args()
    bench = Bench(torch.device(options.device), 5 if options.quick else 25, options.alone)
    if bench.cuda and kernels_for(bench.device) is None:
        parser.error("dynpool has no kernels for this card: plain torch would be timed")
    if bench.cuda:
        torch.cuda.set_device(bench.device.index or 0)  # of events and of Triton
        print(torch.cuda.get_device_name(bench.device), "| torch", torch.__version__, "| CUDA", torch.version.cuda)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("out of time"))  # what is found so far is written
    launch: dict[str, float] = {}
    try:
        launch = run_all(bench, int(options.bytes), options.quick)
    finally:
        report(bench, launch, int(options.bytes), options.json)
    sys.exit(bool(bench.failures))


if __name__ == "__main__":
    main()
