"""The command extract."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from .. import options
from ..decoder import damaged_parts
from ..manifest import Entry
from ..recipe import Recipe
from ..terminal import complain, ended_by_signals, progress, say
from .run import Extraction
from .workers import CannotStart


@options.with_recipe
def extract(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder with videos in it, or in folders below, or URL of one (s3://...).",
            show_default=False,
        ),
    ],
    out: Annotated[
        str, typer.Option("-o", "--out", metavar="FOLDER", help="Folder for the images.", show_default=False)
    ],
    only: Annotated[
        Path | None,
        typer.Option("--list", metavar="FILE", help="Videos to do: a name a line.  [default: all]", show_default=False),
    ] = None,
    jpeg: Annotated[
        int | None,
        typer.Option(
            metavar="QUALITY", min=1, max=100, help="Write JPEG files: at 90 a fifth of the size, a tenth of the time."
        ),
    ] = None,
    shard_size: Annotated[
        int | None,
        typer.Option(metavar="MB", min=1, help="Write tar files for WebDataset, of about so many megabytes each."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Processes.  [default: one for every core]", show_default=False),
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Work on a Ray cluster: auto, local or its address.")
    ] = None,
    *,
    recipe: Recipe,
) -> None:
    """Make the dynamic images of a whole dataset.

    They come in folders like those of the videos, FOLDER/class/clip.png, or clip_0000.png, clip_0001.png, ... for
    windows, to train on with data.source=images; or in tar files (--shard-size). FOLDER/manifest.jsonl has a line on
    every video. The same command again does what is left: a run that was stopped, or killed, has lost no video that it
    finished. Videos that fail are reported, the others are done, and the exit code is 1.

    Examples:

      dynpool extract UCF-101 -o images --window 10 --stride 6 --size 256

      dynpool extract s3://bucket/kinetics -o shards --shard-size 1000 --size 256 --timeout 60

      dynpool extract /mnt/kinetics -o /mnt/images --ray auto
    """
    began = time.perf_counter()
    try:
        options.check(recipe)
        names = None if only is None else os.fsdecode(only.read_bytes()).removeprefix("\ufeff").splitlines()
        if names is not None and not any(map(str.strip, names)):
            raise options.UsageError(f"--list {only} names no video")
        with (
            ended_by_signals(),
            Extraction(source, out, recipe, only=names, jpeg=jpeg, shard_size=shard_size) as extraction,
        ):
            done, before = _do(extraction, workers, ray), len(extraction.before)
    except (options.UsageError, ImportError, OSError, ValueError, CannotStart) as error:
        complain(f"dynpool extract: {error}")
        raise typer.Exit(2) from None
    failed = sum(entry.failed is not None for entry in done)
    say(_summary(done, failed, before, out, time.perf_counter() - began))
    if failed:
        raise typer.Exit(1)


def _do(extraction: Extraction, workers: int | None, ray: str | None) -> list[Entry]:
    entries: list[Entry] = []
    with progress(extraction.left) as show:
        show("", 0)
        for entry in extraction.run(workers, ray):
            entries.append(entry)
            show(entry.video, len(entries))
            if entry.failed is not None:
                complain(f"{entry.video}: FAILED: {entry.failed}")
            elif entry.damaged:
                complain(f"{entry.video}: {damaged_parts(entry.damaged)}")
    return entries


def _summary(done: list[Entry], failed: int, before: int, out: str, seconds: float) -> str:
    images, frames = (sum(getattr(entry, name) for entry in done) for name in ("images", "frames"))
    videos = f"{len(done) - failed} videos done" + (f", {failed} failed" if failed else "")
    earlier = f", {before} done before" if before else ""
    return f"{videos}{earlier}: {images} images of {frames} frames, {frames / seconds:.0f} frames/s, in {out}"
