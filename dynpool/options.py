"""Options of the commands that pool videos, and what of them is wrong before any work."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any

import typer

from .recipe import Recipe


class MethodName(str, Enum):
    approx = "approx"
    exact = "exact"
    mean = "mean"
    max = "max"


class NonlinearityName(str, Enum):
    sqrt = "sqrt"
    identity = "identity"


def _recipe(
    *,
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
        typer.Option(metavar="N", help="Frame to stop before.  [default: after the last]", show_default=False),
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
) -> Recipe:
    return Recipe(
        method=method.value,
        nonlinearity=nonlinearity.value,
        time_average=time_average,
        window=window,
        stride=stride,
        size=size,
        start=start,
        end=end,
        every=every,
        max_frames=max_frames,
        resize_first=resize_first,
        timeout=timeout,
        device=device,
    )


def with_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options above in place of its argument `recipe`, which is made of them."""
    options = inspect.signature(_recipe, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True).parameters

    @functools.wraps(command)
    def run(**given: Any) -> None:
        recipe = _recipe(**{name: given.pop(name) for name in options})
        command(**given, recipe=recipe)

    parameters = [*(parameter for name, parameter in own.items() if name != "recipe"), *options.values()]
    shown = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run


class UsageError(Exception):
    """A wrong command line, said in one line."""


def check(recipe: Recipe) -> None:
    """Raises UsageError for what `Recipe.check` refuses, in terms of options."""
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


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
