"""The `dynpool` command: videos -> PNG files of their dynamic images; networks are trained in `dynpool.training`."""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.table import Table

from . import options
from ._version import __version__
from .decoder import damaged_parts
from .extract.command import extract
from .files import VideoError, failure, is_url
from .images import Pictures
from .recipe import Recipe
from .terminal import complain, ended_by_signals, progress, say
from .training import commands
from .video import VIDEO_SUFFIXES, is_video, numbered_images
from .writing import Job, write_pictures

_NOT_WRITTEN = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".tif", ".tiff", ".webp"])

app = typer.Typer(
    help="Dynamic images of videos: one picture that shows what moved, and in which order (Bilen et al., CVPR 2016).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
@options.with_recipe
def image(
    videos: Annotated[
        list[str],
        typer.Argument(
            metavar="VIDEO",
            help="Video files, folders of them or of one video's images, URLs (of fsspec), or - for standard input.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str,
        typer.Option("-o", "--out", metavar="OUT", help="Folder for the images; or, for one image, its name: OUT.png."),
    ] = ".",
    *,
    recipe: Recipe,
) -> None:
    """Make the dynamic image of each VIDEO.

    It is written as a PNG file of the video's name: clip.png for clip.mp4, or clip_0000.png, clip_0001.png, ... for
    windows; for a folder of images, its name. Files of these names are replaced, when all windows of the video are
    done; higher numbers, of an earlier run, are reported, not removed. Of videos of one name in several folders the
    second is clip-2.png; what is named twice, also by a link, is done once. A video or folder that cannot be read is
    reported; the others are still done, and the exit code is 1.

    Examples:

      dynpool image clip.mp4

      dynpool image clips/ more/*.avi -o images --size 224

      dynpool image clip.mp4 --window 10 --stride 6 -o windows

      ffmpeg -i clip.mov -t 5 -f matroska - | dynpool image - -o start.png
    """
    try:
        options.check(recipe)
        jobs = _plan(_expand(videos), out, windows=recipe.window is not None)
    except options.UsageError as error:
        complain(f"dynpool image: {error}")
        raise typer.Exit(2) from None
    with ended_by_signals():
        failed = _do_all(jobs, recipe)
    if len(jobs) > 1:
        say(f"{len(jobs) - failed} of {len(jobs)} videos done" + (f", {failed} failed" if failed else ""))
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
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


# --- before any work ------------------------------------------------------------------------------------------------


def _expand(arguments: Iterable[str]) -> list[str]:
    """Every folder by the videos in it; by itself, if it holds the images of one or cannot be used, which is reported
    in its turn. Every video once.
    """
    videos: dict[str, str] = {}  # by what their names lead to
    for argument in arguments:
        inside = _readable_videos_in(argument) if os.path.isdir(argument) else []
        for video in inside or [os.path.normpath(argument) if os.path.isdir(argument) else argument]:
            videos.setdefault(os.path.realpath(video) if os.path.exists(video) else video, video)
    return list(videos.values())


def _readable_videos_in(folder: str) -> list[str]:
    try:
        return _videos_in(folder)
    except OSError:
        return []


def _videos_in(folder: str) -> list[str]:
    """In order of name; also links that lead nowhere, which will fail."""
    return sorted(str(p) for p in Path(folder).iterdir() if is_video(p.name) and (p.is_file() or not p.exists()))


def _plan(videos: list[str], out: str, windows: bool) -> list[Job]:
    """Where every video's images go: no two to the same name."""
    place = Path(out)
    suffix = "" if place.is_dir() else place.suffix.lower()
    if suffix in _NOT_WRITTEN:
        raise options.UsageError(f"--out {out} must be a folder, or an image's name with .png: PNG is what is written")
    if out == "-":
        raise options.UsageError("--out - would be a folder of that name: images are not written to standard output")
    if is_url(out):
        raise options.UsageError(f"--out {out} must be a folder or file on this machine")
    if suffix == ".png":
        if len(videos) > 1 or windows:
            raise options.UsageError(f"--out {out} names one image, but there will be several: give a folder")
        jobs = [Job(videos[0], place.parent, place.stem, place.suffix)]
    else:
        jobs = [Job(video, place, stem) for video, stem in zip(videos, _distinct_stems(videos), strict=True)]
    try:
        jobs[0].folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise options.UsageError(f"--out {out} cannot be made a folder: {error.strerror}") from error
    _check_replaced(jobs, windows)
    return jobs


def _check_replaced(jobs: list[Job], windows: bool) -> None:
    """Raises UsageError if an image would be written over a video, or among the images of one."""
    folder = os.path.realpath(jobs[0].folder)
    names = {job.path(None).name: job for job in jobs}
    for job in jobs:
        path = Path(os.path.realpath(job.video))
        if path.is_dir() and str(path) == folder:
            raise options.UsageError(f"{job.video} would get images among its own: choose another --out")
        name = re.sub(r"_\d{4,}(?=\.\w+$)", "", path.name) if windows else path.name
        is_image_of = name in names and (name != path.name or not windows)
        if path.exists() and str(path.parent) == folder and is_image_of:
            raise options.UsageError(
                f"{job.video} would be replaced by an image of {names[name].video}: choose another --out"
            )


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


def _do_all(jobs: list[Job], recipe: Recipe) -> int:
    """How many failed."""
    failed = 0
    with progress(len(jobs)) as show:
        for index, job in enumerate(jobs):
            show(Path(job.video).name, index)
            failed += not _report(job, recipe)
    return failed


def _report(job: Job, recipe: Recipe) -> bool:
    """Do one job and print its summary line; False if it failed."""
    try:
        summary = _process(job, recipe)
    except Exception as error:  # whatever goes wrong with one video, the others are done
        complain(f"{job.video}: FAILED: {failure(error)}")
        return False
    say(summary)
    return True


def _process(job: Job, recipe: Recipe) -> str:
    """Read, pool, write; returns the summary line."""
    start = time.perf_counter()
    _check_folder(job.video)
    if job.video == "-" and sys.stdin is None:
        raise VideoError("-", "standard input is closed")
    video = sys.stdin.buffer if job.video == "-" else job.video
    pictures = Pictures(video, replace(recipe, interleaved=True))
    windows = recipe.window is not None
    paths, (width, height) = write_pictures(pictures, job, windows)
    seconds = time.perf_counter() - start
    num_frames, damage = pictures.account
    written = str(paths[0]) if len(paths) == 1 else f"{paths[0]} ... {paths[-1].name} ({len(paths)} images)"
    damaged = f", {damaged_parts(damage)}" if damage else ""
    rate = f"{num_frames / seconds:.0f} frames/s"
    behind = job.path(len(paths))
    older = f"; {behind.name} and what follows it is older" if windows and behind.exists() else ""
    return f"{job.video} -> {written}: {num_frames} frames, {width}x{height}, {rate}{damaged}{older}"


def _check_folder(video: str) -> None:
    if os.path.isdir(video) and not _videos_in(video) and not numbered_images(video):
        suffixes, inside = " ".join(sorted(VIDEO_SUFFIXES)), os.path.join(video, "*")
        raise VideoError(video, f"holds no video ({suffixes}) and no image; subfolders are not searched: give {inside}")


app.command()(extract)
commands.register(app)
