"""Options of the commands that pool videos, and what of them is wrong before any work."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from .images import Recipe
from .weights import MAX_FRAMES

_NUMBERS = "size", "stride", "start", "end", "every", "max_frames"
_LARGEST = 2**31 - 1  # of these numbers: what follows from two of them still fits an index


class MethodName(str, Enum):
    approx = "approx"
    exact = "exact"
    mean = "mean"
    max = "max"


class NonlinearityName(str, Enum):
    sqrt = "sqrt"
    identity = "identity"


Window = Annotated[
    int | None,
    typer.Option("--window", metavar="N", help="One image for every window of N frames, instead of one for the video."),
]
Stride = Annotated[
    int | None,
    typer.Option(
        "--stride", metavar="N", help="Frames from one window to the next.  [default: --window]", show_default=False
    ),
]
Method = Annotated[
    MethodName,
    typer.Option("--method", help="Rank pooling, approximate or exact; or mean or maximum of the frames, to compare."),
]
Nonlinearity = Annotated[
    NonlinearityName, typer.Option("--nonlinearity", help="What pixels go through before they are pooled.")
]
TimeAverage = Annotated[
    bool, typer.Option("--time-average/--no-time-average", help="Rank running means of the frames, or the frames.")
]
Size = Annotated[
    int | None,
    typer.Option("--size", metavar="N", help="Scale images to a short side of N pixels.  [default: as they are]"),
]
ResizeFirst = Annotated[bool, typer.Option("--resize-first", help="Scale frames, before they are pooled.")]
Start = Annotated[int, typer.Option("--start", metavar="N", help="First frame to use, from 0.")]
End = Annotated[
    int | None,
    typer.Option("--end", metavar="N", help="Frame to stop before.  [default: behind the last]", show_default=False),
]
Every = Annotated[int, typer.Option("--every", metavar="N", help="Use every Nth frame.")]
MaxFrames = Annotated[
    int | None,
    typer.Option("--max-frames", metavar="N", help="Use no more than N frames.  [default: all]", show_default=False),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout", metavar="S", help="Give a video up after S seconds.  [default: never]", show_default=False
    ),
]
Device = Annotated[str, typer.Option("--device", help="Where to pool: cpu, cuda, cuda:1, ...")]


class UsageError(Exception):
    """A wrong command line, said in one line."""


def checked(recipe: Recipe) -> Recipe:
    """Raises UsageError for what `Recipe.check` refuses, and what would not fit an index, in terms of options."""
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
        raise UsageError(f"{option_of(name)} {rest}") from error
    for name, most in [("window", MAX_FRAMES), *((name, _LARGEST) for name in _NUMBERS)]:
        if (value := getattr(recipe, name)) is not None and value > most:
            raise UsageError(f"{option_of(name)} must be at most {most}, got {value}")
    return recipe


def option_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"
