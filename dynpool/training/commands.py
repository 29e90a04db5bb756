"""The commands train, evaluate, fuse and compare. Nothing heavy is imported before one of them runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..terminal import complain_at_length, say

if TYPE_CHECKING:
    from rich.console import Console

    from .config import Config
    from .scores import Scores


class Kind(str, Enum):
    dynamic = "dynamic"
    static = "static"
    two_stream = "two_stream"


def register(app: typer.Typer) -> None:
    """Add the commands to the `dynpool` command."""
    for command in (train, evaluate, fuse, compare):
        app.command()(command)


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Options over the configuration, such as optimiser.lr=0.01."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="[NAME:]FOLDER", help="Videos: ucf101:, hmdb51: or weizmann: and their folder, or one of classes."
        ),
    ] = None,
    model: Annotated[
        Kind | None,
        typer.Option(
            help="Kind of network; static and two_stream read data.source=frames.  "
            "[default: as configured, else dynamic]"
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="1, 2, 3; who is left out; or all, one after the other.  [default: 1]")
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="YAML file, or paper, authors_release, weizmann; later ones win."),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Folder of the run.")] = Path("run"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, with its configuration.")
    ] = False,
) -> None:
    """Train a network.

    The folder --out gets the configuration, checkpoints, logs (CSV, TensorBoard) and model.safetensors; with --split
    all, a folder for every split. A run that was stopped, or killed, goes on with --resume, to the same result; with
    --split, that one of all.

    Examples:

      dynpool train --config weizmann --data weizmann:weizmann --split all -o runs/weizmann

      dynpool train --config paper --data ucf101:UCF-101 --split 1 model.weights=caffenet.safetensors

      dynpool train --data clips data.size=112 model.backbone=resnet18 trainer.devices=4 trainer.strategy=ddp

      dynpool train --resume -o runs/weizmann
    """
    with _said("train"):
        from .run import is_main, saved_config, train_splits

        given = _given(data, model, split) + (overrides or [])
        chosen = saved_config(out, config or [], given) if resume else _configured(config or [], given)
        for path in train_splits(chosen, out, resume=resume):
            if is_main():
                say(f"model: {path}")


def evaluate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or of all splits.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Over the runs' configurations.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FOLDER", help="For the results.  [default: that of the run]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...  [default: cuda, if any]")] = None,
    clips: Annotated[bool, typer.Option("--clips/--no-clips", help="Measure single windows, too.")] = True,
) -> None:
    """Test networks: accuracy of clips and videos, mean class accuracy, averaged over splits.

    Scores of videos are written to SPLIT.scores; confusion and classes to confusion.csv, .png, classes.csv, .png.

    Examples:

      dynpool evaluate runs/weizmann

      dynpool evaluate runs/split1 runs/split2 runs/split3 --set data.test_windows=20 -o results
    """
    with _said("evaluate"):
        from ..recipe import check_device
        from .evaluate import evaluate_task, tasks
        from .report import show, write_results
        from .run import runs_in
        from .scores import file_name, write

        folder = out or runs[0]
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--out must be a folder, got {folder}, which is a file")
        check_device(device)
        streams: list[Scores] = []
        for task in tasks([inner for outer in runs for inner in runs_in(outer)], overrides or ()):
            scores, notices = evaluate_task(task, device=device, clips=clips, progress=True)
            if summary := notices.summary():
                complain_at_length(summary)
            streams.append(scores)
            write(scores, folder / file_name(scores.about.split))
        show(streams, _console())
        written = write_results(streams, folder)
        say(f"wrote {len(streams)} score files, {', '.join(path.name for path in written)} in {folder}")


def fuse(
    streams: Annotated[
        list[Path], typer.Argument(metavar="STREAM...", help="Score files, features (.npz), or folders of score files.")
    ],
    weights: Annotated[
        str | None, typer.Option(metavar="W,W,...", help="Weight of each stream.  [default: all alike]")
    ] = None,
    C: Annotated[float, typer.Option("--svm-c", help="C of the linear SVM of features.")] = 1.0,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Score file, or folder of them, to write.")
    ] = None,
) -> None:
    """Fuse streams: the weighted mean of their probabilities.

    A folder stands for the score files, or features, in it, one a split and named by it: all streams then are folders.
    Features are an .npz file of train_features, train_labels, test_features, test_labels, test_names and classes, as
    for a linear SVM.

    Examples:

      dynpool fuse rgb.scores dynamic.scores trajectories.npz --weights 1,2,1 -o fused.scores

      dynpool fuse runs/static runs/dynamic
    """
    with _said("fuse"):
        from .fusion import check_weights
        from .fusion import fuse as run_fusion
        from .report import show
        from .scores import file_name, write

        shares = None if weights is None else _numbers(weights)
        if not 0 < C < math.inf:
            raise ValueError(f"--svm-c must be a positive number, got {C}")
        if shares is not None:
            check_weights(shares, len(streams))
        read = [_streams(path, C) for path in streams]
        _check_splits(streams, read)
        fused = [run_fusion(split, shares) for split in zip(*read, strict=True)]
        places: list[Path] = []
        if out is not None:
            single = len(fused) == 1 and not streams[0].is_dir() and not out.is_dir()
            places = [out if single else out / file_name(scores.about.split) for scores in fused]
            _check_apart(out, places, streams)
        console = _console()
        for stream in [*read, fused]:
            show(stream, console)
        if out is not None:
            for scores, place in zip(fused, places, strict=True):
                write(scores, place)
            say(f"wrote {out}")


def compare(
    first: Annotated[Path, typer.Argument(help="Score file, features (.npz), or folder of score files.")],
    second: Annotated[Path, typer.Argument(help="Another.")],
    most: Annotated[int, typer.Option(metavar="N", min=1, help="Classes to show on each side.")] = 10,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help="All classes as CSV.")] = None,
) -> None:
    """Compare two streams class by class: where the second gains, and where it loses.

    Example:

      dynpool compare rgb.scores dynamic.scores -o classes.csv
    """
    with _said("compare"):
        from . import report
        from .scores import in_common

        read = [_streams(path, 1.0) for path in (first, second)]
        _check_splits([first, second], read)
        if out is not None:
            _check_apart(out, [out], [first, second])
        console = _console()
        for stream in read:
            report.show(stream, console)
        rows = report.compare(*read)
        if left_out := sum(in_common(pair).left_out for pair in zip(*read, strict=True)):
            say(f"{left_out} videos that only one of them has are left out")
        labels = read[0][0].about.modality, read[1][0].about.modality
        if labels[0] == labels[1]:
            labels = str(first), str(second)
        report.show_differences(rows, labels, console, most)
        if out is not None:
            report.write_differences(rows, out)
            say(f"wrote {out}")


def _check_apart(out: Path, places: list[Path], streams: list[Path]) -> None:
    """Nothing is written over what was read."""
    if str(out) == "-":
        raise ValueError("--out must be a file or folder, got -")
    for stream in streams:
        for path in _files_of(stream) if stream.is_dir() else [stream]:
            for place in places:
                if place.exists() and place.samefile(path):
                    raise ValueError(f"--out must not be one of the streams, got {place}")


# --- arguments --------------------------------------------------------------------------------------------------------


def _given(data: str | None, model: Kind | None, split: str | None) -> list[str]:
    """Options as overrides; quoted, so that YAML reads `03` and `no` as text."""
    from ..data.named import dataset_and_root

    given: list[str] = []
    if data is not None:
        dataset, root = dataset_and_root(data)
        given += [f"data.dataset={dataset}", f"data.root={_quoted(root)}"]
    if model is not None:
        given.append(f"model.kind={model.value}")
    if model in (Kind.static, Kind.two_stream):
        given.append("data.source=frames")
    if split is not None:
        number = split.isdecimal() and str(int(split)) == split
        given.append(f"data.split={split if number else _quoted(split)}")
    return given


def _quoted(text: str) -> str:
    """As YAML, which takes no unprintable characters, as names have that are no text."""
    plain = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{"".join(plain)}"'


def _configured(files: list[str], overrides: list[str]) -> Config:
    from .config import load
    from .values import ConfigError

    config = load(files, overrides)
    if not config.data.root:
        raise ConfigError("no videos are given: --data FOLDER, or data.root=FOLDER")
    return config


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"--weights must be numbers, W,W,..., got {text!r}")
    return numbers


def _streams(path: Path, C: float) -> list[Scores]:
    """The splits of a stream."""
    from .fusion import svm_scores
    from .scores import About, read

    if path.suffix == ".npz":
        return [svm_scores(path, C=C)]
    if not path.is_dir():
        return [read(path)]
    files = _files_of(path)
    if not files:
        raise FileNotFoundError(
            f"{path} has no score file (*.scores), nor features (*.npz): run dynpool evaluate first"
        )
    if files[0].suffix == ".scores":
        return [_named(read(file), file) for file in files]
    modality = f"{path.resolve().name}, linear SVM"
    return [svm_scores(file, About("unknown", file.stem, modality, "unknown", "unknown"), C) for file in files]


def _files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.scores")) or sorted(folder.glob("*.npz"))


def _named(scores: Scores, file: Path) -> Scores:
    """Of a folder's files each is a split, named by it, where the file itself does not say."""
    from .scores import UNKNOWN_SPLIT

    about = scores.about
    if about.split != UNKNOWN_SPLIT:
        return scores
    return replace(scores, about=replace(about, split=file.stem, modality=file.parent.resolve().name))


def _check_splits(paths: list[Path], read: list[list[Scores]]) -> None:
    counts = {path: len(splits) for path, splits in zip(paths, read, strict=True)}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{path} has {count}" for path, count in counts.items())
        raise ValueError(f"streams must have the same number of splits: {told}")


def _console() -> Console:
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False)


@contextmanager
def _said(command: str) -> Iterator[None]:
    """Errors of the user in one line, with exit code 2; warnings in one line, too."""

    def warn(message: Warning | str, *_: Any, **__: Any) -> None:
        complain_at_length(f"dynpool {command}: {message}")

    try:
        with warnings.catch_warnings():
            warnings.showwarning = warn
            yield
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, RuntimeError):
            if "torchvision::" not in text:
                raise
            text = f"torchvision, which Lightning imports, does not fit this torch ({error}): remove or replace it"
        if isinstance(error, ModuleNotFoundError) and "pip install" not in text:
            text = f"{text}: pip install 'dynpool[train]'"
        complain_at_length(f"dynpool {command}: {text}")
        raise typer.Exit(2) from None
