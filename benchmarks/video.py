"""From a video file to its dynamic image on one core, beside bare decoding and beside what others do.

    python benchmarks/video.py [--quick] [--seconds 6] [--data FOLDER] [--json FILE] [VIDEO ...]

Every way opens the file, decodes all frames with one thread and gives one image. The peers convert each frame to RGB
and add α_t √RGB in float32: PyAV with numpy or torch, OpenCV, torchcodec and decord, where they are installed. T is
known to them beforehand. "decode" only counts the frames. First the images of ψ = √ and of windows are checked against
float64. Where there is a GPU, frames are pooled there, too.

Without VIDEO: clips of UCF101 (mpeg4) and Kinetics (h264) below --data, or $DYNPOOL_TEST_DATA, else two made-up ones.
Then the memory: the peak of a process that pools a clip of ten seconds, and one of ten minutes, and the growth over
2 000 files opened.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from harness import RESULTS, Case, measure, print_case, write_json

import dynpool
from dynpool.decoder import TOLERANT

LIKE_UCF101 = ("clips/ucf101/v_SoccerJuggling_g23_c01.avi", "clips/ucf101/v_HeadMassage_g01_c01.avi")
LIKE_KINETICS = ("clips/kinetics/R6llTwEh07w.mp4",)
TARGETS = {"dynpool": 0.70, "dynpool, identity": 0.90}  # of decoding alone


def optional(name: str) -> object | None:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError):  # what a library without its shared libraries raises
        return None


cv2, torchcodec, decord = optional("cv2"), optional("torchcodec.decoders"), optional("decord")


# --- the ways -------------------------------------------------------------------------------------------------------


def decode(path: str) -> int:
    with av.open(path, **TOLERANT) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return sum(1 for _ in container.decode(stream))


def rgb_frames(path: str):
    with av.open(path, **TOLERANT) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            yield frame.to_ndarray(format="rgb24")


def cv2_frames(path: str):
    """BGR"""
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    while True:
        found, frame = capture.read()
        if not found:
            return
        yield frame


def torchcodec_frames(path: str):
    decoder = torchcodec.VideoDecoder(path, num_ffmpeg_threads=1, dimension_order="NHWC")
    for frame in decoder:
        yield frame.numpy()


def decord_frames(path: str):
    for frame in decord.VideoReader(path, num_threads=1):
        yield frame.asnumpy()


def minmax(pooled: np.ndarray) -> torch.Tensor:
    return dynpool.to_image(torch.from_numpy(np.ascontiguousarray(pooled)).permute(2, 0, 1))


def with_numpy(frames: Callable, path: str, alpha: np.ndarray, bgr: bool = False) -> torch.Tensor:
    pooled = None
    for weight, frame in zip(alpha, frames(path), strict=False):
        term = np.sqrt(frame, dtype=np.float32) * weight
        pooled = term if pooled is None else np.add(pooled, term, out=pooled)
    return minmax(pooled[..., ::-1] if bgr else pooled)


def with_torch(frames: Callable, path: str, alpha: np.ndarray) -> torch.Tensor:
    pooled = None
    for weight, frame in zip(alpha.tolist(), frames(path), strict=False):
        root = torch.from_numpy(frame).float().sqrt_()
        pooled = root * weight if pooled is None else pooled.add_(root, alpha=weight)
    return minmax(pooled.numpy())


def on_device(path: str, **options: str) -> torch.Tensor:
    """Until the image is there, on the CPU."""
    return dynpool.dynamic_image(path, **options).cpu()


def ways_for(path: str, alpha: np.ndarray) -> dict[str, Callable[[], object]]:
    ways: dict[str, Callable[[], object]] = {
        "decode": functools.partial(decode, path),
        "dynpool": functools.partial(dynpool.dynamic_image, path),
        "dynpool, identity": functools.partial(dynpool.dynamic_image, path, nonlinearity="identity"),
        "dynpool, windows 10/6": functools.partial(dynpool.dynamic_images, path, window=10, stride=6),
        "PyAV, numpy": functools.partial(with_numpy, rgb_frames, path, alpha),
        "PyAV, torch": functools.partial(with_torch, rgb_frames, path, alpha),
    }
    if torch.cuda.is_available():
        for name, nonlinearity in (("dynpool, cuda", "sqrt"), ("dynpool, cuda, identity", "identity")):
            options = {"device": "cuda", "nonlinearity": nonlinearity}
            ways[name] = functools.partial(on_device, path, **options)
    for name, module, frames in (
        ("OpenCV, numpy", cv2, cv2_frames),
        ("torchcodec, numpy", torchcodec, torchcodec_frames),
        ("decord, numpy", decord, decord_frames),
    ):
        if module is not None:
            ways[name] = functools.partial(with_numpy, frames, path, alpha, bgr=module is cv2)
    return ways


def peers_of(ways: dict[str, Callable[[], object]]) -> list[str]:
    return [name for name in ways if name != "decode" and not name.startswith("dynpool")]


# --- speed ----------------------------------------------------------------------------------------------------------


def levels_apart(image: object, reference: torch.Tensor) -> int:
    return int((image.int() - reference.int()).abs().max())


def benchmark(path: str, seconds: float) -> tuple[Case, list[str]]:
    """The times, and what was wrong."""
    frames = dynpool.read_clip(path).frames
    count, _, height, width = frames.shape
    alpha = dynpool.rank_weights(count, normalize_weights=True).numpy().astype(np.float32)
    ways = ways_for(path, alpha)
    reference = dynpool.to_image(
        dynpool.temporal_pool(frames.double(), torch.from_numpy(alpha).double(), 0, nonlinearity="sqrt")
    )
    checked = ("dynpool", "dynpool, cuda", *peers_of(ways))
    apart = {name: levels_apart(run(), reference) for name, run in ways.items() if name in checked}
    windows = dynpool.to_image(dynpool.approx_rank_pool(frames.double(), 0, window=10, stride=6, nonlinearity="sqrt"))
    whole = ways["dynpool, windows 10/6"]()[: len(windows)]  # one more may be cut short
    apart["dynpool, windows 10/6"] = levels_apart(whole, windows)
    if "dynpool, cuda, identity" in ways:  # whose pictures differ from those of RGB frames, as the CPU's do
        apart["dynpool, cuda, identity"] = levels_apart(ways["dynpool, cuda, identity"](), ways["dynpool, identity"]())
    ours = apart.keys() - set(peers_of(ways))
    wrong = [f"{Path(path).name}: {name} is {apart[name]} levels off" for name in sorted(ours) if apart[name] > 1]
    title = f"{Path(path).name}: {count} frames {width}x{height}"
    case = measure(Case(title, frames.numel(), count, 1), ways, seconds, {})
    print_case(case)
    decoding = case.best("decode")
    best = min(peers_of(ways), key=case.best)
    for name, target in TARGETS.items():
        print(f"  {name}: {decoding / case.best(name):.0%} of decoding (target {target:.0%})")
    print(
        f"  {case.best(best) / case.best('dynpool'):.1f} x the best peer, {best}; levels of 255 from float64: {apart}"
    )
    return case, wrong


def generated(folder: Path, codec: str, suffix: str, width: int, height: int, frames: int = 240) -> str:
    """A clip of drifting blobs."""
    from exact import moving_blobs

    path = folder / f"generated-{codec}{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        clip = moving_blobs(60, height, width).permute(0, 2, 3, 1).numpy()
        for t in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(clip[t % 60]), format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


# --- memory ---------------------------------------------------------------------------------------------------------

PEAK = """
import sys, dynpool, torch
torch.set_num_threads(1)
if sys.argv[1]: dynpool.dynamic_image(sys.argv[1])
"""
GROWTH = """
import sys, dynpool, torch
torch.set_num_threads(1)
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
for opened in range(2200):
    if opened == 200: before = resident()
    dynpool.dynamic_image(sys.argv[1], max_frames=4)
print(resident() - before)
"""


def peak(path: str) -> tuple[float, float]:
    """Megabytes of a process that pools a video: all that is resident, and what is its own, without pages of files,
    such as libraries, which processes share and the system may drop.
    """
    process = subprocess.Popen([sys.executable, "-c", PEAK, path])
    most = {"VmHWM": 0, "RssAnon": 0}
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in most:
                most[name] = max(most[name], int(value.split()[0]))
        time.sleep(0.002)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return most["VmHWM"] / 1024, most["RssAnon"] / 1024


def growth(path: str) -> float:
    done = subprocess.run([sys.executable, "-c", GROWTH, path], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def memory(folder: Path) -> dict[str, float]:
    short = generated(folder, "mpeg4", ".avi", 320, 240, frames=250)
    long = generated(folder, "mpeg4", ".mkv", 320, 240, frames=15_000)
    found = {}
    for name, path in {"import alone": "", "10 seconds": short, "10 minutes": long}.items():
        found[name], found[f"{name}, without pages of files"] = peak(path)
    found["growth over 2000 files"] = growth(short)
    print("\nPeak memory of a process, 320x240:")
    for name, megabytes in found.items():
        print(f"  {megabytes:4.0f} MB  {name}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", metavar="VIDEO")
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--quick", action="store_true", help="a second each, and no memory")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DYNPOOL_TEST_DATA", "../shared/data")))
    parser.add_argument("--json", type=Path, default=RESULTS / "video-cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if cv2 is not None:
        cv2.setNumThreads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = arguments.videos or [
            str(path) for clip in (*LIKE_UCF101, *LIKE_KINETICS) if (path := arguments.data / clip).exists()
        ]
        if not videos:
            videos = [generated(folder, "mpeg4", ".avi", 320, 240), generated(folder, "libx264", ".mp4", 340, 256)]
        found = [benchmark(video, 1 if arguments.quick else arguments.seconds) for video in videos]
        peak = {} if arguments.quick else memory(folder)
    wrong = [each for _, failures in found for each in failures]
    write_json(arguments.json, {"cases": [case for case, _ in found], "memory_mb": peak, "failures": wrong})
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()
