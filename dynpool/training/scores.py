"""Scores of videos, in files that streams are fused from and that any programme can read and write.

The format is CSV in UTF-8: a first line "# " and, as JSON, what the scores are of (`About`); a header "video,label" and
the names of the classes; a line a video: its name, the number of its class in the header's order, from 0, and its
scores. Scores may be on any scale; those that dynpool writes are logarithms of probabilities.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..files import PathLike
from ..writing import whole_file
from .values import make

Matrix = npt.NDArray[np.float64]
UNKNOWN_SPLIT = "?"
ERRORS = "surrogateescape"  # names of files need not be UTF-8


@dataclass(frozen=True)
class About:
    """What a result is of: it is never printed without."""

    dataset: str
    split: str
    modality: str
    pretraining: str
    windows: str
    clip_accuracy: float | None = None  # of single windows
    skipped: int = 0  # videos that were listed and could not be read, or are missing

    def in_words(self) -> str:
        """One line."""
        return in_words([self])

    def of_any_split(self) -> About:
        """What must be alike for a mean over splits."""
        return replace(self, split="", clip_accuracy=None, skipped=0)


def in_words(abouts: Sequence[About]) -> str:
    """What results are of: a line, in which splits that are otherwise alike stand together; or several."""
    alike: dict[About, list[About]] = {}
    for about in abouts:
        alike.setdefault(about.of_any_split(), []).append(about)
    return "\n".join(_line(list(group)) for group in alike.values())


def _line(group: Sequence[About]) -> str:
    about, names = group[0], list(dict.fromkeys(other.split for other in group))
    skipped = sum(other.skipped for other in group)
    left_out = f", {skipped} videos left out" if skipped else ""
    return (
        f"{about.dataset} split{'s' if len(names) > 1 else ''} {', '.join(names)}, {about.modality}, "
        f"pretraining: {about.pretraining}, windows: {about.windows}{left_out}"
    )


@dataclass(frozen=True)
class Scores:
    """Scores [N, C] of N videos, with their names, labels [N] and the names of the C classes."""

    about: About
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    values: Matrix

    def __post_init__(self) -> None:
        shape = (len(self.names), len(self.classes))
        if self.values.shape != shape or self.labels.shape != shape[:1]:
            raise ValueError(f"scores must have shape [N, C] = {list(shape)}, got {list(self.values.shape)}")
        if len(set(self.names)) < len(self.names):
            raise ValueError("names must be distinct")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes must have distinct names")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ValueError(f"labels must be between 0 and {len(self.classes) - 1}")
        wrong = ~np.isfinite(self.values.max(1, initial=-np.inf))  # -inf is the logarithm of 0
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"scores must be finite, got {self.values[row][:5].tolist()} for {self.names[row]}")

    # --- results ---------------------------------------------------------------------------------------------------

    def accuracy(self) -> float:
        """Share of the videos whose class has the highest score."""
        return float((self.values.argmax(1) == self.labels).mean())

    def confusion(self) -> npt.NDArray[np.int64]:
        """Videos [C, C] of each class (row) that were taken for each class (column)."""
        counts = np.zeros((len(self.classes),) * 2, np.int64)
        np.add.at(counts, (self.labels, self.values.argmax(1)), 1)
        return counts

    def class_accuracies(self) -> Matrix:
        """Accuracy [C] of each class; NaN for one without videos."""
        return class_accuracies(self.confusion())

    def mean_class_accuracy(self) -> float:
        """Mean over the classes that have videos."""
        return float(np.nanmean(self.class_accuracies()))


def class_accuracies(confusion: npt.NDArray[np.int64]) -> Matrix:
    """Accuracy [C] of each row; NaN for an empty one."""
    videos = confusion.sum(1)
    return np.divide(confusion.diagonal(), videos, out=np.full(len(videos), np.nan), where=videos > 0)


def log_probabilities(values: Matrix) -> Matrix:
    """Logarithm of the softmax of each row."""
    shifted = values - values.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


class Common(NamedTuple):
    """Streams of the same videos, in the same order, and how many videos some stream lacks."""

    streams: list[Scores]
    left_out: int


def in_common(streams: Sequence[Scores]) -> Common:
    """The streams without the videos that some of them lack.

    Raises:
        ValueError: they have no video in common, or disagree on classes, labels, dataset or split.
    """
    _check_same(streams)
    known = [set(stream.names) for stream in streams]
    names = [name for name in streams[0].names if all(name in other for other in known)]
    if not names:
        raise ValueError("the streams have no video in common")
    kept = [_only(stream, names) for stream in streams]
    if any(not np.array_equal(stream.labels, kept[0].labels) for stream in kept):
        raise ValueError("the streams disagree on the labels of videos")
    return Common(kept, len(set().union(*known)) - len(names))


def _check_same(streams: Sequence[Scores]) -> None:
    for what, values in (
        ("classes", {stream.classes for stream in streams}),
        ("dataset", {stream.about.dataset for stream in streams} - {"unknown"}),
        ("split", {stream.about.split for stream in streams} - {UNKNOWN_SPLIT}),
    ):
        if len(values) > 1:
            raise ValueError(f"streams must agree on their {what}, got {' and '.join(map(str, sorted(values)))}")


def _only(stream: Scores, names: Sequence[str]) -> Scores:
    places = {name: row for row, name in enumerate(stream.names)}
    rows = [places[name] for name in names]
    return replace(stream, names=tuple(names), labels=stream.labels[rows], values=stream.values[rows])


def file_name(split: str) -> str:
    """Of the scores of a split; groups of videos may have a slash in their name."""
    return f"{split.replace('/', '%2F').replace(chr(92), '%5C')}.scores"


def write(scores: Scores, path: PathLike) -> None:
    """Write a score file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = whole_file(path, ".part")  # which no one takes for scores
    with part as temporary, temporary.open("w", encoding="utf-8", errors=ERRORS, newline="") as file:
        file.write(f"# {json.dumps(asdict(scores.about))}\n")
        returns = any("\r" in name for name in (*scores.classes, *scores.names))  # where readers end lines
        table = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL)
        table.writerow(["video", "label", *scores.classes])
        for name, label, row in zip(scores.names, scores.labels.tolist(), scores.values.tolist(), strict=True):
            table.writerow([name, label, *(f"{value:.7g}" for value in row)])


def read(path: PathLike) -> Scores:
    """Read a score file. The first line may be missing in files of other programmes.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no score file; the message says which line is wrong.
    """
    text = Path(path).read_bytes().decode("utf-8", ERRORS).removeprefix("\ufeff")
    about = About(
        dataset="unknown", split=UNKNOWN_SPLIT, modality=Path(path).stem, pretraining="unknown", windows="unknown"
    )
    start = 0
    if text.startswith("#"):
        line, *rest = re.split(r"\r\n|\r|\n", text, maxsplit=1)
        text = "".join(rest)
        about, start = _about(line, about, path), 1
    table = csv.reader(io.StringIO(text, newline=""))
    try:
        rows = [(start + table.line_num, row) for row in table if row]  # not of an empty line
    except csv.Error as error:
        raise ValueError(f"{path} must be CSV: {error}") from error
    header = rows[0][1] if rows else []
    if header[:2] != ["video", "label"] or len(header) < 3:
        raise ValueError(f"{path}, line {start + 1} must be 'video,label,' and the names of classes")
    classes = tuple(header[2:])
    parsed = [_row(row, len(classes), f"{path}, line {number}") for number, row in rows[1:]]
    values = np.array([scores for _, _, scores in parsed], np.float64).reshape(len(parsed), len(classes))
    try:
        labels = np.array([label for _, label, _ in parsed], np.int64)
        return Scores(about, classes, tuple(name for name, _, _ in parsed), labels, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _about(line: str, default: About, path: PathLike) -> About:
    known = asdict(default)
    try:
        told = dict(json.loads(line[1:]))
        return make(About, known | {name: value for name, value in told.items() if name in known})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}, line 1 must be '# ' and JSON: {error}") from error


def _row(row: Sequence[str], classes: int, where: str) -> tuple[str, int, list[float]]:
    try:
        name, text, *values = row
        label, scores = int(text), [float(value) for value in values]
    except ValueError:
        label, scores = -1, []
    if len(scores) != classes:
        raise ValueError(
            f"{where} must be a video, a label and {classes} scores, got {len(row)} fields: {','.join(row)[:80]}"
        )
    if not 0 <= label < classes:
        raise ValueError(f"{where}: labels must be between 0 and {classes - 1}, got {label}")
    return name, label, scores
