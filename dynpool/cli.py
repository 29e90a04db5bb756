"""The `dynpool` command: videos -> PNG files of their dynamic images; networks are trained in `dynpool.training`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ._version import __version__
from .decoder import damaged_parts
from .files import VideoError
from .images import Pictures, Recipe
from .training import commands
from .video import numbered_images
from .weights import MAX_FRAMES

VIDEO_SUFFIXES = frozenset(
    ".3gp .asf .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv .y4m".split()  # noqa: SIM905
)
_NOT_WRITTEN = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".tif", ".tiff", ".webp"])
_COMPRESSION = 2  # at 6, Pillow's own, one picture takes as long as decoding a clip, and is a tenth smaller
_NUMBERS = "size", "stride", "start", "end", "every", "max_frames"
_LARGEST = 2**31 - 1  # of these numbers: what follows from two of them still fits an index

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
    suffix: str = ".png"

    def path(self, index: int | None) -> Path:
        """Of the image of a window, or of the only one."""
        number = "" if index is None else f"_{index:04d}"
        return self.folder / f"{self.stem}{number}{self.suffix}"


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
    windows; for a folder of images, its name. Files of these names are replaced, when all windows of the video are
    done. A video or folder that cannot be read is reported; the others are still done, and the exit code is 1.

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
    with _ended_by(signal.SIGTERM):
        failed = sum(not _report(job, recipe) for job in _with_progress(jobs))
    if len(jobs) > 1:
        _say(f"{len(jobs) - failed} of {len(jobs)} videos done" + (f", {failed} failed" if failed else ""))
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
    if isinstance(recipe.size, int) and recipe.size < 1:
        raise UsageError(f"--size must be a positive integer, got {recipe.size}")
    try:
        recipe.check()
    except ValueError as error:
        name, rest = str(error).split(" ", 1)  # messages begin with the argument's name
        raise UsageError(f"{_option(name)} {rest}") from error
    for name, most in [("window", MAX_FRAMES), *((name, _LARGEST) for name in _NUMBERS)]:
        if (value := getattr(recipe, name)) is not None and value > most:
            raise UsageError(f"{_option(name)} must be at most {most}, got {value}")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _expand(arguments: Iterable[str]) -> list[str]:
    """Every folder by the videos in it; by itself, if it holds the images of one or cannot be used, which is reported
    in its turn. Every video once.
    """
    videos: dict[str, None] = {}
    for argument in arguments:
        if os.path.isdir(argument):
            videos.update(dict.fromkeys(_readable_videos_in(argument) or [os.path.normpath(argument)]))
        else:
            videos[argument] = None
    return list(videos)


def _readable_videos_in(folder: str) -> list[str]:
    try:
        return _videos_in(folder)
    except OSError:
        return []


def _videos_in(folder: str) -> list[str]:
    """In order of name."""
    return sorted(str(p) for p in Path(folder).iterdir() if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())


def _plan(videos: list[str], output: Path, windows: bool) -> list[Job]:
    """Where every video's images go: no two to the same name."""
    suffix = "" if output.is_dir() else output.suffix.lower()
    if suffix in _NOT_WRITTEN:
        raise UsageError(f"--output {output} must be a folder, or an image's name with .png: PNG is what is written")
    if suffix == ".png":
        if len(videos) > 1 or windows:
            raise UsageError(f"--output {output} names one image, but there will be several: give a folder")
        jobs = [Job(videos[0], output.parent, output.stem, output.suffix)]
    else:
        jobs = [Job(video, output, stem) for video, stem in zip(videos, _distinct_stems(videos), strict=True)]
    try:
        jobs[0].folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {output} cannot be made a folder: {error.strerror}") from error
    return jobs


def _distinct_stems(videos: list[str]) -> list[str]:
    """What images are called; -2, -3, ... follow where a name is taken, in any case of letters."""
    stems = list(map(_stem, videos))
    times = Counter(map(str.casefold, stems))
    taken = {stem for stem, count in times.items() if count == 1}
    return [stem if times[stem.casefold()] == 1 else _free_name(stem, taken) for stem in stems]


def _stem(video: str) -> str:
    """A file's name without suffix; the whole name of a folder, which is none at the root."""
    if video == "-":
        return "stdin"
    if os.path.isdir(video):
        return Path(os.path.abspath(video)).name or "root"
    return Path(urlsplit(video).path if "://" in video else video).stem or "video"


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
    shown = len(jobs) > 1 and all(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))
    with Progress(*columns, transient=True, disable=not shown) as progress:
        task = progress.add_task("videos", total=len(jobs))
        for job in jobs:
            progress.update(task, description=Path(job.video).name)
            yield job
            progress.advance(task)


def _report(job: Job, recipe: Recipe) -> bool:
    """Do one job and print its summary line; False if it failed."""
    try:
        summary = _process(job, recipe)
    except Exception as error:  # whatever goes wrong with one video, the others are done
        typer.echo(f"{job.video}: FAILED: {_reason(error)}", err=True)
        return False
    _say(summary)
    return True


def _reason(error: Exception) -> str:
    """Without the video's name, where the error is of a kind that names it."""
    if isinstance(error, VideoError):
        return error.reason if error.frame is None else f"frame {error.frame}: {error.reason}"
    if isinstance(error, FileNotFoundError):  # also fsspec's, of whatever kept it from a URL
        return str(error.__cause__ or "no such file")
    return f"{type(error).__name__}: {error}"


def _say(line: str) -> None:
    """Print to standard output. Where nobody reads it, or it is full, that is the end."""
    try:
        typer.echo(line)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or what is buffered fails again at exit
        if not isinstance(error, BrokenPipeError):
            typer.echo(f"dynpool image: cannot write to standard output: {error.strerror}", err=True)
        raise typer.Exit(1) from None


@contextmanager
def _ended_by(number: signal.Signals) -> Iterator[None]:
    """Within, the signal is an exception, which cleans up on its way."""

    def end(*_: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(number, end)
    try:
        yield
    finally:
        signal.signal(number, before)


def _process(job: Job, recipe: Recipe) -> str:
    """Read, pool, write; returns the summary line."""
    start = time.perf_counter()
    _check_folder(job.video)
    pictures = Pictures(sys.stdin.buffer if job.video == "-" else job.video, recipe)
    paths, (width, height) = _write(pictures, job, windows=recipe.window is not None)
    seconds = time.perf_counter() - start
    num_frames, damage = pictures.account
    written = str(paths[0]) if len(paths) == 1 else f"{paths[0]} ... {paths[-1].name} ({len(paths)} images)"
    damaged = f", {damaged_parts(damage)}" if damage else ""
    rate = f"{num_frames / seconds:.0f} frames/s"
    return f"{job.video} -> {written}: {num_frames} frames, {width}x{height}, {rate}{damaged}"


def _check_folder(video: str) -> None:
    if os.path.isdir(video) and not _videos_in(video) and not numbered_images(video):
        suffixes, inside = " ".join(sorted(VIDEO_SUFFIXES)), os.path.join(video, "*")
        raise VideoError(video, f"holds no video ({suffixes}) and no image; subfolders are not searched: give {inside}")


def _write(pictures: Pictures, job: Job, windows: bool) -> tuple[list[Path], tuple[int, int]]:
    """Every picture to a short temporary name, and when the last is there, all to their own: of a video that fails, or
    when this is killed meanwhile, none appears. Returns the names and the size.
    """
    paths: list[Path] = []
    size = 0, 0
    with TemporaryDirectory(prefix=".dynpool-", dir=job.folder) as temporary:
        for index, pixels in enumerate(pictures):
            path = job.path(index if windows else None)
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder")
            image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
            image.save(Path(temporary, str(index)), format="PNG", compress_level=_COMPRESSION)
            paths.append(path)
            size = image.size
        for index, path in enumerate(paths):
            os.replace(Path(temporary, str(index)), path)
    return paths, size


commands.register(app)
