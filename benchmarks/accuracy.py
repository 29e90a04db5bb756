"""Tables 1, 3, 4 and 5 of the paper, on Weizmann (leave one person out), UCF101, HMDB51 or any folder of classes.

    python benchmarks/accuracy.py [--quick] [--frozen] [--data [NAME:]FOLDER] [--splits S,S,...] [--out FOLDER]

Frozen features: what enters the last layer of a network trained on ImageNet, for every frame, image or window, averaged
over a video (or, "max", their maximum), standardised, and classified by logistic regression (C = 0.01) or a linear SVM
(C = 0.001). End to end: all layers are fine-tuned, as `dynpool train` does it. The paper fine-tunes CaffeNet on UCF101;
other data and another network give other numbers: it is their order that can be compared. Every row tells its splits,
its test videos, and how many of them are left out: missing, or unreadable.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import RESULTS, write_json
from rich.console import Console
from rich.table import Table
from speed import default_data

from dynpool.data import Listing, Notices, Sampling, VideoDataset, loader, make_listing, splits
from dynpool.data.named import dataset_and_root
from dynpool.models import ModelConfig, build
from dynpool.training import report
from dynpool.training.config import load
from dynpool.training.fusion import fuse, svm
from dynpool.training.scores import About, Scores, log_probabilities, write

# What is known of the paper: Table 1 (UCF101 split 1, CaffeNet fine-tuned), and the authors' later release (ResNeXt-50,
# average multi-class accuracy: github.com/hbilen/dynamic-image-nets, which has HMDB51, too). All on UCF101.
PAPER = {
    "mean image": "52.6",
    "max image": "45.4",
    "dynamic image": "57.9",
    "RGB frames": "87.6 in the release",
    "multiple dynamic images": "86.6 in the release",
    "flow dynamic images": "86.6 in the release",
    "RGB frames + multiple dynamic images": "90.6 in the release",
}
COLORS = {"frozen, logistic": "#30638e", "end to end": "#d1495b"}
WINDOWS = Sampling(10, 6, max_windows=20)
SQUEEZED: dict[str, Any] = {"size": 224, "resize": (224, 224)}


@dataclass(frozen=True)
class Stream:
    """Frozen features of one kind of picture."""

    name: str
    table: str
    options: dict[str, Any]  # of VideoDataset
    model: dict[str, Any] = field(default_factory=lambda: {"pool": "none"})  # of ModelConfig
    quick: bool = True

    @property
    def windows(self) -> str:
        sampling: Sampling = self.options.get("sampling", Sampling())
        return "whole video" if sampling.window is None else f"{sampling.window} every {sampling.step}"


def pictures(**options: Any) -> dict[str, Any]:
    return {"source": "dynamic_images", **options}


STREAMS = (
    Stream("middle frame", "1", {"sampling": Sampling(frames=1)}),
    Stream("mean image", "1", pictures(method="mean", nonlinearity="identity")),
    Stream("max image", "1", pictures(method="max")),
    Stream("dynamic image", "1", pictures()),
    Stream("dynamic image, eq. (4)", "1", pictures(time_average=False), quick=False),
    Stream("dynamic image, exact", "1", pictures(method="exact")),
    Stream("multiple dynamic images", "3", pictures(sampling=WINDOWS)),
    Stream("multiple dynamic images, exact", "3", pictures(sampling=WINDOWS, method="exact"), quick=False),
    Stream("dynamic maps", "3", {"sampling": Sampling(frames=16)}, {"layer": "_blocks.4"}, quick=False),
    Stream("RGB frames", "4", {"sampling": Sampling(frames=5)}),
    Stream("flow dynamic images", "4", {"source": "flow", "sampling": WINDOWS}, quick=False),
)


@dataclass(frozen=True)
class EndToEnd:
    """A network whose layers are all fine-tuned: options of `dynpool train`."""

    name: str
    table: str
    overrides: tuple[str, ...]


SMALL = ("data.window=null", "data.stride=null", "data.max_windows=null", "data.jitter=false")
END_TO_END = (
    EndToEnd("dynamic image", "1", SMALL),
    EndToEnd("multiple dynamic images", "3", ("data.test_windows=20",)),
    EndToEnd(
        "dynamic maps",
        "3",
        (*SMALL, "data.source=frames", "data.frames=8", "data.size=112", "data.resize=[112,112]", "data.batch_size=4",
         "data.jitter=true", "model.layer=_blocks.4", "trainer.epochs=16"),
    ),
)  # fmt: skip


@dataclass
class Row:
    """A result: accuracies in percent, one a split."""

    name: str
    table: str
    learner: str
    windows: str
    video: list[float]
    by_class: list[float]
    splits: list[str]
    videos: int  # tested, of all splits together
    left_out: int  # of the test videos that are listed
    seconds: float
    streams: list[Scores] = field(repr=False, default_factory=list)

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.video))

    @property
    def tested(self) -> str:
        return tested(self.splits, self.videos, self.left_out)

    def plain(self) -> dict[str, Any]:
        values = asdict(replace(self, streams=[]))
        del values["streams"]
        return {**values, "accuracy": self.accuracy, "paper": PAPER.get(self.name)}


@dataclass(frozen=True)
class Coverage:
    """How many videos of a listing are there, and how many are missing."""

    split: str
    subset: str
    videos: int
    missing: int


@dataclass(frozen=True)
class Task:
    """The data of a run."""

    dataset: str
    root: str
    lists: str | None
    splits: tuple[int | str, ...]
    device: str
    workers: int
    jobs: int

    def listing(self, split: int | str, subset: str) -> Listing:
        options = {"lists": self.lists} if self.dataset in ("ucf101", "hmdb51") else {}
        return make_listing(self.dataset, self.root, split, subset, **options)  # type: ignore[arg-type]

    def coverage(self) -> list[Coverage]:
        """What there is of each half of each split."""
        listings = (self.listing(split, subset) for split in self.splits for subset in ("train", "test"))
        return [Coverage(one.split, one.subset, len(one), len(one.missing)) for one in listings]


def in_words(coverage: Sequence[Coverage]) -> str:
    """Such as "tested on 7 of 3783 videos (3776 missing), trained on 9537 of 9537"; splits are counted together."""
    told = []
    for subset, what in (("test", "tested on"), ("train", "trained on")):
        videos, missing = counts(coverage, subset)
        told.append(f"{what} {videos} of {videos + missing}" + (f" ({missing} missing)" if missing else ""))
    return f"videos of all splits: {', '.join(told)}"


def counts(coverage: Sequence[Coverage], subset: str) -> tuple[int, int]:
    """Videos of all splits that are there, and that are missing."""
    half = [c for c in coverage if c.subset == subset]
    return sum(c.videos for c in half), sum(c.missing for c in half)


def tested(splits: Sequence[str], videos: int, left_out: int) -> str:
    return f"{in_short(splits)}: {videos} of {videos + left_out} videos"


def in_short(splits: Sequence[str]) -> str:
    return ", ".join(splits) if len(splits) <= 3 else f"{splits[0]} … {splits[-1]} ({len(splits)})"


# --- frozen features --------------------------------------------------------------------------------------------------


def extract(stream: Stream, listing: Listing, task: Task) -> dict[str, np.ndarray]:
    """Features [W, D] of every video, by name: of each of its images, or of all frames together."""
    network = {"kind": "dynamic", "num_classes": len(listing.classes), "weights": "default", **stream.model}
    model = build(ModelConfig.from_dict(network)).eval().to(task.device)
    dataset = VideoDataset(listing, **{**SQUEEZED, **stream.options})
    notices, found = Notices(stream.name), {}
    with torch.inference_mode():
        for batch in loader(dataset, 4, num_workers=task.workers):
            notices.add(batch)
            for video, length, name in zip(batch["video"], batch["lengths"].tolist(), batch["name"], strict=True):
                frames = video[:length].to(task.device)
                shown = frames[:, None] if model.config.pool == "none" else frames[None]
                found[name] = model.features(shown).float().cpu().numpy()
    if summary := notices.summary():
        print(summary)
    return found


def logistic(train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(train, labels)
    values = np.full((len(test), classes), -50.0)
    values[:, model.classes_] = model.predict_log_proba(test)
    return values


def margins(train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int) -> np.ndarray:
    return log_probabilities(svm(train, labels, test, classes, C=0.001))


Learner = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]
LEARNERS: dict[str, tuple[Learner, Callable[[np.ndarray], np.ndarray]]] = {
    "frozen, logistic": (logistic, lambda windows: windows.mean(0)),
    "frozen, SVM": (margins, lambda windows: windows.mean(0)),
    "frozen, max, SVM": (margins, lambda windows: windows.max(0)),
}


def frozen_rows(stream: Stream, task: Task) -> list[Row]:
    """Every learner on one kind of picture; features of a video are computed once for all splits."""
    start = time.perf_counter()
    features: dict[str, np.ndarray] = {}
    pairs = [(task.listing(split, "train"), task.listing(split, "test")) for split in task.splits]
    for listing in (half for pair in pairs for half in pair):
        missing = [index for index, video in enumerate(listing) if video.name not in features]
        if missing:
            features.update(extract(stream, listing.subset_of(missing), task))
    seconds = time.perf_counter() - start
    several = max(map(len, features.values())) > 1
    names = [name for name in LEARNERS if several or "max" not in name]
    return [
        row(stream.name, stream.table, name, [fold(stream, name, features, *p) for p in pairs], seconds)
        for name in names
    ]


def fold(stream: Stream, learner: str, features: dict[str, np.ndarray], train: Listing, test: Listing) -> Scores:
    learn, pool = LEARNERS[learner]
    known, asked = ([video for video in half if video.name in features] for half in (train, test))
    inputs = [np.stack([pool(features[video.name]) for video in half]) for half in (known, asked)]
    labels = [np.array([video.label for video in half]) for half in (known, asked)]
    values = learn(inputs[0], labels[0], inputs[1], len(test.classes))
    modality, left_out = f"{stream.name}, {learner}", len(test) - len(asked) + len(test.missing)
    pretraining = "ImageNet (efficientnet_lite0)"
    about = About(test.dataset, test.split, modality, pretraining, stream.windows, skipped=left_out)
    return Scores(about, test.classes, tuple(video.name for video in asked), labels[1], values)


def row(name: str, table: str, learner: str, streams: list[Scores], seconds: float) -> Row:
    video = [100 * stream.accuracy() for stream in streams]
    by_class = [100 * stream.mean_class_accuracy() for stream in streams]
    videos, left_out = sum(len(stream.names) for stream in streams), sum(stream.about.skipped for stream in streams)
    splits, windows = [stream.about.split for stream in streams], streams[0].about.windows
    return Row(name, table, learner, windows, video, by_class, splits, videos, left_out, seconds, streams)


# --- end to end -------------------------------------------------------------------------------------------------------


def train_split(network: EndToEnd, task: Task, split: int | str, more: Sequence[str]) -> Scores:
    """Fine-tune and test on one split, in a process of its own."""
    from dynpool.training.evaluate import evaluate
    from dynpool.training.run import fit

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // task.jobs))
    data = {"dataset": task.dataset, "root": task.root, "split": split, "workers": task.workers, "lists": task.lists}
    given = [f"data.{name}={'null' if value is None else value}" for name, value in data.items()]
    given += [f"trainer.accelerator={'gpu' if task.device.startswith('cuda') else 'cpu'}", "trainer.progress=false"]
    config = load(["weizmann"], [*given, *network.overrides, *more])
    with tempfile.TemporaryDirectory() as folder:
        fit(config, folder)
        scores = evaluate(folder, device=task.device, clips=False).scores
    return replace(scores, about=replace(scores.about, modality=f"{network.name}, end to end"))


def end_to_end_row(network: EndToEnd, task: Task, more: Sequence[str] = ()) -> Row:
    start = time.perf_counter()
    with ProcessPoolExecutor(task.jobs, get_context("spawn")) as pool:
        made = [pool.submit(train_split, network, task, split, more) for split in task.splits]
        streams = [future.result() for future in made]
    return row(network.name, network.table, "end to end", streams, time.perf_counter() - start)


# --- tables -----------------------------------------------------------------------------------------------------------


def fused_rows(rows: Sequence[Row]) -> list[Row]:
    """Table 4: streams averaged, of those that are there."""
    best = {r.name: r for r in rows if r.learner == "frozen, logistic"}
    chosen = [
        ("RGB frames", "multiple dynamic images"),
        ("RGB frames", "multiple dynamic images", "flow dynamic images"),
        ("multiple dynamic images", "flow dynamic images"),
    ]
    made = []
    for names in chosen:
        if all(name in best for name in names):
            streams = [fuse(split) for split in zip(*(best[name].streams for name in names), strict=True)]
            made.append(row(" + ".join(names), "4", "frozen, logistic", streams, 0.0))
    return made


def show(rows: Iterable[Row], title: str) -> None:
    table = Table(title=title, box=None)
    for name in ("table", "pictures", "learnt", "windows", "splits"):
        table.add_column(name)
    for name in ("videos", "left out", "accuracy, %", "by class, %"):
        table.add_column(name, justify="right")
    table.add_column("paper, UCF101")
    for r in sorted(rows, key=lambda r: r.table):
        figures = str(r.videos), str(r.left_out), f"{r.accuracy:.1f}", f"{np.mean(r.by_class):.1f}"
        table.add_row(r.table, r.name, r.learner, r.windows, in_short(r.splits), *figures, PAPER.get(r.name, ""))
    Console(width=180, highlight=False).print(table)


def expectations(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What ought to hold, and whether it does: accuracies of the best learner on each kind of picture, in points."""
    frozen: dict[str, float] = {}
    tuned = {r.name: r.accuracy for r in rows if r.learner == "end to end"}
    for r in rows:
        if r.learner == "frozen, logistic":
            frozen[r.name] = r.accuracy
    fused, motion = "RGB frames + multiple dynamic images", "multiple dynamic images"
    wanted = [
        ("dynamic image ≥ mean image + 15", frozen, "dynamic image", frozen, "mean image", 15),
        ("dynamic image ≥ max image + 15", frozen, "dynamic image", frozen, "max image", 15),
        ("multiple dynamic images ≥ one", frozen, motion, frozen, "dynamic image", 0),
        ("two streams ≥ RGB frames - 1", frozen, fused, frozen, "RGB frames", -1),
        ("two streams ≥ multiple dynamic images - 1", frozen, fused, frozen, motion, -1),
        ("dynamic image, end to end ≥ frozen - 1", tuned, "dynamic image", frozen, "dynamic image", -1),
        ("multiple dynamic images, end to end ≥ frozen - 1", tuned, motion, frozen, motion, -1),
        ("dynamic maps, end to end ≥ frozen - 1", tuned, "dynamic maps", frozen, "dynamic maps", -1),
        ("dynamic maps, end to end ≥ mean image", tuned, "dynamic maps", frozen, "mean image", 0),
    ]
    told = []
    for text, left, a, right, b, margin in wanted:
        if a in left and b in right:
            told.append({"claim": text, "left": left[a], "right": right[b], "holds": left[a] >= right[b] + margin})
    return told


def draw(rows: Sequence[Row], path: Path, title: str, usual: str) -> None:
    """Bars of one learner on frozen features and of networks end to end, with what is known of the paper beside, and
    what a row was tested on where that is not the `usual`.
    """
    pyplot = report._pyplot()
    ranked = sorted((r for r in rows if r.learner in COLORS), key=lambda r: r.accuracy)
    figure, panel = report._panel(10, 0.26 * len(ranked) + 1, title)
    places = range(len(ranked))
    bars = panel.barh(places, [r.accuracy for r in ranked], color=[COLORS[r.learner] for r in ranked])
    panel.set_yticks(places, [r.name for r in ranked], fontsize=7)
    panel.bar_label(bars, [f" {r.accuracy:.1f}  {told(r, usual)}" for r in ranked], fontsize=7)
    colors = [pyplot.Rectangle((0, 0), 1, 1, color=color) for color in COLORS.values()]
    figure.legend(colors, COLORS, fontsize=7, ncols=len(COLORS), loc="outside lower left")
    panel.set(xlabel="accuracy, %", xlim=(0, 200), xticks=range(0, 101, 20))
    panel.margins(y=0.01)
    panel.spines[["top", "right"]].set_visible(False)
    report._save(figure, path)


def told(r: Row, usual: str) -> str:
    paper = [f"(paper, UCF101: {PAPER[r.name]})"] if r.name in PAPER else []
    return "  ".join([*paper, *([f"split {r.tested}"] if r.tested != usual else [])])


# --- the run ----------------------------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="[ucf101:|hmdb51:|weizmann:]FOLDER; default: the Weizmann actions, see speed.py")
    parser.add_argument("--lists", help="folder of the official lists")
    parser.add_argument("--splits", help="1,2,3 or people; default: all of Weizmann, else 1")
    parser.add_argument("--quick", action="store_true", help="fewer rows; end to end on the first split, a few epochs")
    parser.add_argument("--frozen", action="store_true", help="nothing end to end")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that read videos; default: %(default)s")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="splits trained at a time, on the CPU")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder; default: %(default)s")
    parser.add_argument("--scores", type=Path, help="folder for the score files of every row")
    return parser.parse_args()


def make_task(options: argparse.Namespace) -> Task:
    if options.data:
        name, root = dataset_and_root(options.data)
    elif default_data() is None:
        raise SystemExit("no data: --data [NAME:]FOLDER, or DYNPOOL_TEST_DATA with a folder weizmann in it")
    else:
        name, root = "weizmann", str(default_data())
    chosen = options.splits.split(",") if options.splits else splits(name, root) if name == "weizmann" else [1]
    numbered = tuple(int(s) if str(s).isdecimal() else s for s in chosen)
    jobs = 1 if options.device.startswith("cuda") else options.jobs
    return Task(name, root, options.lists, numbered, options.device, options.workers, jobs)


def main() -> None:
    options = parse()
    task = make_task(options)
    coverage = task.coverage()
    print(f"{task.dataset}: {in_words(coverage)}", flush=True)
    start = time.perf_counter()
    rows: list[Row] = []
    for stream in STREAMS:
        if stream.quick or not options.quick:
            made = frozen_rows(stream, task)
            rows += made
            accuracies = ", ".join(f"{r.learner} {r.accuracy:.1f}" for r in made)
            print(f"{stream.name}: {accuracies} ({made[0].seconds:.0f} s)", flush=True)
    rows += fused_rows(rows)
    if not options.frozen:
        for network in END_TO_END[: 1 if options.quick else None]:
            shorter = ["trainer.epochs=4", "optimiser.lr=3e-4"] if options.quick else []
            shown = replace(task, splits=task.splits[:1], jobs=1) if options.quick else task
            rows.append(end_to_end_row(network, shown, shorter))
            print(f"{network.name}, end to end: {rows[-1].accuracy:.1f} ({rows[-1].seconds:.0f} s)", flush=True)
    finish(rows, task, coverage, options, time.perf_counter() - start)


def finish(rows: list[Row], task: Task, coverage: list[Coverage], options: argparse.Namespace, seconds: float) -> None:
    named = f"{task.dataset}, splits {', '.join(map(str, task.splits))}; EfficientNet-Lite0, ImageNet"
    title = f"{named}\n{in_words(coverage)}"
    show(rows, title)
    claims = [] if options.quick else expectations(rows)
    for claim in claims:
        print(f"{'holds' if claim['holds'] else 'FAILS'}: {claim['claim']} ({claim['left']:.1f}, {claim['right']:.1f})")
    best = {r.name: r for r in rows if r.learner == "frozen, logistic"}
    differences = report.compare(best["RGB frames"].streams, best["multiple dynamic images"].streams)
    report.show_differences(differences, ("RGB frames", "multiple dynamic images"), Console(highlight=False), 10)
    stem = f"accuracy-{task.dataset}{'-quick' if options.quick else ''}"
    content = {
        "data": {**asdict(task), "root": Path(task.root).name, "coverage": [asdict(c) for c in coverage]},
        "seconds": seconds,
        "rows": [r.plain() for r in rows],
        "claims": claims,
        "table 5": [{**d._asdict(), "difference": d.difference} for d in differences],
    }
    write_json(options.out / f"{stem}.json", content)
    usual = tested([c.split for c in coverage if c.subset == "test"], *counts(coverage, "test"))
    draw(rows, options.out / f"{stem}.png", title, usual)
    gains = np.array([100 * d.difference for d in differences])
    table5 = f"Table 5: multiple dynamic images beside RGB frames, {title}"
    report.draw_bars(gains, [d.name for d in differences], "points gained", table5, options.out / f"{stem}-classes.png")
    if options.scores:
        for r in rows:
            for stream in r.streams:
                write(
                    stream, options.scores / f"{r.name}, {r.learner}".replace(" ", "-") / f"{stream.about.split}.scores"
                )
    print(f"wrote {stem}.png and {stem}-classes.png in {options.out}, after {seconds:.0f} s")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", ".*are missing, the first.*")  # said by title and rows, not every time
    main()
