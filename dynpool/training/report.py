"""Results as tables and pictures: accuracies, confusion, classes, and how two streams differ class by class."""

from __future__ import annotations

import csv
import os
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..terminal import printable, printable_lines
from ..writing import whole_file
from .scores import ERRORS, Matrix, Scores, class_accuracies, in_common, in_words

Counts = npt.NDArray[np.int64]
_SIZE, _CHARACTER, _LINE = 7, 0.062, 0.13  # of a title: points, and inches of its widest usual letters and its lines


def show(streams: Sequence[Scores], console: Console) -> None:
    """Accuracies of every split, and their mean where there are several; what they are of stands above.

    A column of clips, single windows, appears where it was measured.
    """
    clips = any(stream.about.clip_accuracy is not None for stream in streams)
    console.print(Text(printable_lines(in_words([stream.about for stream in streams]))))
    table = Table(box=None, padding=(0, 2, 0, 0))
    columns = ["split", "videos", *(["clip accuracy"] if clips else []), "video accuracy", "mean class accuracy"]
    for name in columns:
        table.add_column(name, justify="left" if name == "split" else "right")
    rows = [_figures(stream, clips) for stream in streams]
    for stream, row in zip(streams, rows, strict=True):
        table.add_row(_cell(stream.about.split), str(len(stream.names)), *map(_percent, row))
    if len(streams) > 1:
        means = [float(np.mean(column)) for column in zip(*rows, strict=True)]
        table.add_row("mean", str(sum(len(stream.names) for stream in streams)), *map(_percent, means))
    console.print(table)


def _figures(stream: Scores, clips: bool) -> list[float]:
    clip = stream.about.clip_accuracy
    first = [np.nan if clip is None else clip] if clips else []
    return [*first, stream.accuracy(), stream.mean_class_accuracy()]


def _cell(name: str) -> Text:
    """A name as it is: rich would take brackets in it for markup."""
    return Text(printable(name))


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.1f} %"


def confusion(streams: Sequence[Scores]) -> Counts:
    """Confusion [C, C], summed over splits.

    Raises:
        ValueError: classes differ.
    """
    if len({stream.classes for stream in streams}) > 1:
        raise ValueError("scores must be of the same classes")
    return np.sum([stream.confusion() for stream in streams], 0)


def write_results(streams: Sequence[Scores], folder: str | os.PathLike[str]) -> list[Path]:
    """Write confusion.csv and .png and classes.csv and .png, of all splits together, into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    counts, classes = confusion(streams), streams[0].classes
    title = in_words([stream.about for stream in streams])
    accuracies = class_accuracies(counts)
    rows = zip(classes, counts.sum(1).tolist(), accuracies.tolist(), strict=True)
    _table(folder / "classes.csv", ["class", "videos", "accuracy"], ((n, v, f"{a:.6f}") for n, v, a in rows))
    _table(
        folder / "confusion.csv", ["class", *classes], ((n, *r) for n, r in zip(classes, counts.tolist(), strict=True))
    )
    with _fonts(title, *classes):
        draw_confusion(counts, classes, title, folder / "confusion.png")
        draw_bars(accuracies * 100, classes, "accuracy, %", title, folder / "classes.png")
    return [folder / f"{name}.{ending}" for name in ("confusion", "classes") for ending in ("csv", "png")]


class ClassDifference(NamedTuple):
    """A class, its videos, and the accuracy of two streams on it."""

    name: str
    videos: int
    first: float
    second: float

    @property
    def difference(self) -> float:
        """What the second gains."""
        return self.second - self.first


def compare(first: Sequence[Scores], second: Sequence[Scores]) -> list[ClassDifference]:
    """Classes by what the second of two streams gains over the first, splits taken together: the largest gain first
    (Table 5 of the paper). Only videos that both have count.

    Raises:
        ValueError: the two of a split disagree (`in_common`), or classes differ from split to split.
    """
    kept = [in_common(pair).streams for pair in zip(first, second, strict=True)]
    a, b = (confusion([pair[side] for pair in kept]) for side in (0, 1))
    names = first[0].classes
    made = map(ClassDifference, names, a.sum(1).tolist(), class_accuracies(a).tolist(), class_accuracies(b).tolist())
    return sorted((row for row in made if row.videos), key=lambda row: (-row.difference, row.name))


def show_differences(rows: Sequence[ClassDifference], labels: tuple[str, str], console: Console, most: int) -> None:
    """The `most` classes that gain most, and those that lose most."""
    gained = [row for row in rows if row.difference > 0][:most]
    lost = [row for row in rows if row.difference < 0][::-1][:most]
    for title, chosen in ((f"{labels[1]} is better", gained), (f"{labels[0]} is better", lost)):
        table = Table("class", "videos", "first", "second", "difference", box=None, title_justify="left")
        table.title = Text(printable(title), "table.title")
        for row in chosen:
            figures = _percent(row.first), _percent(row.second), f"{100 * row.difference:+.1f}"
            table.add_row(_cell(row.name), str(row.videos), *figures)
        console.print(table if chosen else _cell(f"{title}: in no class"))


def write_differences(rows: Sequence[ClassDifference], path: str | os.PathLike[str]) -> None:
    """As CSV, in percent."""
    values = (
        (r.name, r.videos, f"{100 * r.first:.2f}", f"{100 * r.second:.2f}", f"{100 * r.difference:.2f}") for r in rows
    )
    _table(Path(path), ["class", "videos", "first", "second", "difference"], values)


def draw_confusion(counts: Counts, classes: Sequence[str], title: str, path: Path) -> None:
    """Rows in percent of their class; numbers stand in the cells of small matrices."""
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4.0, 0.22 * len(classes) + 2)
    figure, panel = _panel(side + 1, side, title)
    image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    ticks, labels = range(len(classes)), list(map(_drawn, classes))
    panel.set_xticks(ticks, labels, rotation=90, fontsize=7)
    panel.set_yticks(ticks, labels, fontsize=7)
    panel.set(xlabel="taken for", ylabel="class")
    for row, column in np.argwhere(counts) if len(classes) <= 20 else ():
        shade = "white" if shares[row, column] > 60 else "black"
        panel.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=shade)
    figure.colorbar(image, ax=panel, label="% of the class", shrink=0.8)
    _save(figure, path)


def draw_bars(values: Matrix, names: Sequence[str], label: str, title: str, path: Path) -> None:
    """Horizontal bars of classes, the largest on top; those without a value, NaN, are left out and counted."""
    order = np.argsort(values, kind="stable")[: np.count_nonzero(~np.isnan(values))]  # NaN comes last
    left_out = len(values) - len(order)
    figure, panel = _panel(6, max(1.2, 0.2 * len(order) + 0.8), title)
    panel.barh(range(len(order)), values[order], color="#30638e")
    panel.set_yticks(range(len(order)), [_drawn(names[index]) for index in order])
    panel.set_xlabel(f"{label}; {left_out} classes without videos are left out" if left_out else label)
    panel.tick_params(labelsize=7)
    panel.margins(y=0.01)
    panel.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _panel(width: float, height: float, title: str) -> tuple[Any, Any]:
    """A figure and its panel, in inches, with the title above: in as many lines as the width asks for."""
    lines = [part for line in title.splitlines() for part in textwrap.wrap(line, int(width / _CHARACTER))]
    figure, panel = _pyplot().subplots(figsize=(width, height + _LINE * len(lines)), layout="constrained")
    figure.suptitle("\n".join(map(_drawn, lines)), fontsize=_SIZE)
    return figure, panel


@contextmanager
def _fonts(*texts: str) -> Iterator[None]:
    """Within, what matplotlib's own font lacks is drawn with installed ones that have it. Warns of what none has."""
    pyplot = _pyplot()
    from matplotlib import font_manager

    def lacking_in(path: str, characters: set[str]) -> set[str]:
        try:
            font = font_manager.get_font(path)
        except (OSError, RuntimeError):  # matplotlib remembers fonts that are gone; damaged ones
            return characters
        return {character for character in characters if not font.get_char_index(ord(character))}

    families = ["sans-serif"]
    usual = font_manager.findfont(font_manager.FontProperties())
    lacking = lacking_in(usual, {character for text in texts for character in printable(text)})
    for font in font_manager.fontManager.ttflist:
        if lacking and not font.name.startswith("Last Resort"):  # which has a box for every script
            rest = lacking_in(font.fname, lacking)
            families += [font.name] if rest < lacking else []
            lacking = rest
    if lacking:
        told = " ".join(sorted(lacking)[:5])
        warnings.warn(
            f"no font is installed that has {told}: pictures have boxes instead", RuntimeWarning, stacklevel=3
        )
    with pyplot.rc_context({"font.family": families}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def _drawn(text: str) -> str:
    """As matplotlib draws it, which would set what stands between dollars as mathematics."""
    return printable(text).replace("$", r"\$")


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(f"pictures of results need matplotlib ({error}): pip install 'dynpool[train]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)
    _pyplot().close(figure)


def _table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", errors=ERRORS, newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)
