"""What commands print, and how they end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """A bar of videos, where a terminal shows it and there are several: call it with a name, and how many are done."""
    if total <= 1 or any(stream is None or not stream.isatty() for stream in (sys.stdout, sys.stderr)):
        yield lambda name, done: None  # a disabled bar of rich before 15 ends in an empty line
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("videos", total=total)
        yield lambda name, done: bar.update(task, description=printable(name), completed=done)


def printable(text: str) -> str:
    """Names of files as they can be shown: with escapes for what is no text, or would steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def printable_lines(text: str) -> str:
    """The same of several lines."""
    return "\n".join(map(printable, text.split("\n")))


def say(line: str) -> None:
    """Print to standard output. Where nobody reads it, or it is full, that is the end."""
    try:
        typer.echo(printable(line))
    except OSError as error:
        _silence(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            typer.echo(f"dynpool: cannot write to standard output: {error.strerror}", err=True)
        raise typer.Exit(1) from None


def complain(line: str) -> None:
    """Print to standard error. Where that is full, work goes on in silence."""
    complain_at_length(printable(line))


def complain_at_length(text: str) -> None:
    """The same of several lines."""
    try:
        typer.echo(printable_lines(text), err=True)
    except OSError:
        _silence(sys.stderr)


def _silence(stream: TextIO) -> None:
    """Or what is buffered fails again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP, of a terminal that was closed, are exceptions, which clean up on their way; but not
    SIGHUP where it is ignored, as by nohup.
    """

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    numbers = [signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
