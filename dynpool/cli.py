"""The `dynpool` command: videos -> PNG files of their dynamic images; networks are trained in `dynpool.training`."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from ._version import __version__
from .decoder import VideoError, damaged_packets
from .images import Recipe, make_images
from .training import commands
from .video import numbered_images

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .vob .webm .wmv".split()  # noqa: SIM905
)

app = typer.Typer(
    help="Dynamic images of videos: one picture that shows what moved, and in which order (Bilen et al., CVPR 2016).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class MethodName(str, Enum):
    approx = "approx"
    exact = "exact"
    mean = "mean"
    max = "max"


class NonlinearityName(str, Enum):
    sqrt = "sqrt"
    identity = "identity"


class Job(NamedTuple):
    """One video and where its images go."""

    video: str
    folder: Path
    stem: str


class UsageError(Exception):
    """A wrong command line, said in one line."""


def main() -> None:
    """Entry point of the `dynpool` command."""
    app(prog_name="dynpool")


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=lambda on: _print_version(on), help="Print the version."),
    ] = False,
) -> None:
    pass


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"dynpool {__version__}")
        raise typer.Exit


@app.command()
def image(
    videos: Annotated[
        list[str],
        typer.Argument(
            metavar="VIDEO",
            help="Video files, folders of them or of one video's numbered images, URLs, or - for standard input.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="OUT", help="Folder for the images; or, for one image, its name: OUT.png."
        ),
    ] = Path("."),
    window: Annotated[
        int | None,
        typer.Option(metavar="N", help="One image for every window of N frames, instead of one for the video."),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(metavar="N", help="Frames from one window to the next.  [default: --window]", show_default=False),
    ] = None,
    method: Annotated[
        MethodName,
        typer.Option(help="Rank pooling, approximate or exact; or mean or maximum of the frames, to compare."),
    ] = MethodName.approx,
    nonlinearity: Annotated[
        NonlinearityName, typer.Option(help="What pixels go through before they are pooled.")
    ] = NonlinearityName.sqrt,
    time_average: Annotated[
        bool, typer.Option("--time-average/--no-time-average", help="Rank running means of the frames, or the frames.")
    ] = True,
    size: Annotated[
        int | None,
        typer.Option(metavar="N", help="Scale images to a short side of N pixels.  [default: as they are]"),
    ] = None,
    resize_first: Annotated[bool, typer.Option("--resize-first", help="Scale frames, before they are pooled.")] = False,
    start: Annotated[int, typer.Option(metavar="N", help="First frame to use, from 0.")] = 0,
    end: Annotated[
        int | None,
        typer.Option(metavar="N", help="Frame to stop before.  [default: behind the last]", show_default=False),
    ] = None,
    every: Annotated[int, typer.Option(metavar="N", help="Use every Nth frame.")] = 1,
    max_frames: Annotated[
        int | None, typer.Option(metavar="N", help="Use no more than N frames.  [default: all]", show_default=False)
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="S", help="Give a video up after S seconds.  [default: never]", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to pool: cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Make the dynamic image of each VIDEO.

    It is written as a PNG file of the video's name: clip.png for clip.mp4, or clip_0000.png, clip_0001.png, ... for
    windows. Files of these names are replaced. A video that cannot be read is reported; the others are still done,
    and the exit code is 1.

    Examples:

      dynpool image clip.mp4

      dynpool image clips/ more/*.avi -o images --size 224

      dynpool image clip.mp4 --window 10 --stride 6 -o windows

      ffmpeg -i clip.mov -t 5 -f matroska - | dynpool image - -o start.png
    """
    recipe = Recipe(
        method=method.value,
        nonlinearity=nonlinearity.value,
        time_average=time_average,
        window=window,
        stride=window if stride is None else stride,
        size=size,
        start=start,
        end=end,
        every=every,
        max_frames=max_frames,
        resize_first=resize_first,
        timeout=timeout,
        device=device,
    )
    try:
        _check(recipe)
        jobs = _plan(_expand(videos), output, windows=window is not None)
    except UsageError as error:
        typer.echo(f"dynpool image: {error}", err=True)
        raise typer.Exit(2) from None
    failed = sum(not _report(job, recipe) for job in _with_progress(jobs))
    if len(jobs) > 1:
        typer.echo(f"{len(jobs) - failed} of {len(jobs)} videos done" + (f", {failed} failed" if failed else ""))
    if failed:
        raise typer.Exit(1)


@app.command()
def info() -> None:
    """Print versions, the build and the devices seen."""
    from ._build import build_info

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in build_info().items():
        table.add_row(name.replace("_", " "), _as_text(value))
    Console(soft_wrap=True, highlight=False).print(table)


def _as_text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


# --- before any work ------------------------------------------------------------------------------------------------


def _check(recipe: Recipe) -> None:
    if recipe.stride is not None and recipe.window is None:
        raise UsageError(f"--stride {recipe.stride} has no meaning without --window")
    if recipe.resize_first and recipe.size is None:
        raise UsageError("--resize-first has no meaning without --size")
    try:
        recipe.check()
    except ValueError as error:
        raise UsageError(f"--{error}") from error  # messages begin with the argument's name


def _expand(arguments: Iterable[str]) -> list[str]:
    """Every folder by the videos in it, in order of name, unless it holds the images of one; every video once."""
    videos: dict[str, None] = {}
    for argument in arguments:
        if not os.path.isdir(argument):
            videos[argument] = None
            continue
        inside = sorted(str(p) for p in Path(argument).iterdir() if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
        if not inside and numbered_images(argument):
            videos[os.path.normpath(argument)] = None
            continue
        if not inside:
            raise UsageError(f"the folder {argument} holds no video ({' '.join(sorted(VIDEO_SUFFIXES))}) and no image")
        videos.update(dict.fromkeys(inside))
    return list(videos)


def _plan(videos: list[str], output: Path, windows: bool) -> list[Job]:
    """Where every video's images go: no two to the same name."""
    if output.suffix.lower() == ".png" and not output.is_dir():
        if len(videos) > 1 or windows:
            raise UsageError(f"--output {output} names one image, but there will be several: give a folder")
        jobs = [Job(videos[0], output.parent, output.stem)]
    else:
        jobs = [Job(video, output, stem) for video, stem in zip(videos, _distinct_stems(videos), strict=True)]
    try:
        jobs[0].folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {output} cannot be made a folder: {error.strerror}") from error
    return jobs


def _distinct_stems(videos: list[str]) -> list[str]:
    """File names without suffix; -2, -3, ... follow where one is taken, in any case of letters."""
    stems = [
        "stdin" if video == "-" else Path(urlsplit(video).path if "://" in video else video).stem for video in videos
    ]
    times = Counter(map(str.casefold, stems))
    taken = {stem for stem, count in times.items() if count == 1}
    return [stem if times[stem.casefold()] == 1 else _free_name(stem, taken) for stem in stems]


def _free_name(stem: str, taken: set[str]) -> str:
    name, number = stem, 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name.casefold())
    return name


# --- the work -------------------------------------------------------------------------------------------------------


def _with_progress(jobs: list[Job]) -> Iterator[Job]:
    """The jobs, under a progress bar where there is a terminal to show it and more than one job."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    shown = len(jobs) > 1 and sys.stdout.isatty() and sys.stderr.isatty()
    with Progress(*columns, transient=True, disable=not shown) as progress:
        task = progress.add_task("videos", total=len(jobs))
        for job in jobs:
            progress.update(task, description=Path(job.video).name)
            yield job
            progress.advance(task)


def _report(job: Job, recipe: Recipe) -> bool:
    """Do one job and print its summary line; False if it failed."""
    try:
        typer.echo(_process(job, recipe))
    except (VideoError, FileNotFoundError) as error:
        typer.echo(f"{job.video}: FAILED: {_without_name(error)}", err=True)
    except Exception as error:  # whatever goes wrong with one video, the others are done
        typer.echo(f"{job.video}: FAILED: {type(error).__name__}: {error}", err=True)
    else:
        return True
    return False


def _without_name(error: VideoError | FileNotFoundError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return error.reason if error.frame is None else f"frame {error.frame}: {error.reason}"


def _process(job: Job, recipe: Recipe) -> str:
    """Read, pool, write; returns the summary line."""
    start = time.perf_counter()
    made = make_images(sys.stdin.buffer if job.video == "-" else job.video, recipe)
    paths = _write(made.images.cpu(), job, windows=recipe.window is not None)
    seconds = time.perf_counter() - start
    height, width = made.images.shape[2:]
    written = str(paths[0]) if len(paths) == 1 else f"{paths[0]} ... {paths[-1].name} ({len(paths)} images)"
    damaged = f", {damaged_packets(made.damaged)} skipped" if made.damaged else ""
    rate = f"{made.num_frames / seconds:.0f} frames/s"
    return f"{job.video} -> {written}: {made.num_frames} frames, {width}x{height}, {rate}{damaged}"


def _write(images: Tensor, job: Job, windows: bool) -> list[Path]:
    names = [f"{job.stem}_{index:04d}.png" for index in range(len(images))] if windows else [f"{job.stem}.png"]
    paths = [job.folder / name for name in names]
    for path, pixels in zip(paths, images, strict=True):
        with _whole(path) as temporary:
            Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(temporary, format="PNG")
    return paths


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes it at the end: the file appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


commands.register(app)
