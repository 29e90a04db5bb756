"""Late fusion of streams by their scores; scores of features made elsewhere, by a linear SVM."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..files import PathLike
from .scores import UNKNOWN_SPLIT, About, Matrix, Scores, in_common, log_probabilities


def fuse(streams: Sequence[Scores], weights: Sequence[float] | None = None) -> Scores:
    """The weighted mean of the streams' probabilities (the softmax of each stream's scores), as logarithms.

    Args:
        streams: two or more, of the same classes. Videos that some stream lacks are left out, and counted.
        weights: one a stream, finite, not negative and not all zero; by default all alike.

    Raises:
        ValueError: streams have no video in common, or disagree on classes, labels, dataset or split; or weights make
            no sense.
    """
    shares = _shares(weights, len(streams))
    kept, lacking = in_common(streams)
    mean = sum(share * np.exp(log_probabilities(stream.values)) for share, stream in zip(shares, kept, strict=True))
    return replace(kept[0], about=_about(streams, shares, len(kept[0].names), lacking), values=np.log(mean + 1e-300))


def svm_scores(features: PathLike, about: About | None = None, C: float = 1.0) -> Scores:
    """Scores of features made elsewhere, such as Fisher vectors of trajectories: by a linear SVM, one class against
    the others, of features scaled to unit variance.

    Args:
        features: an .npz file (numpy, no pickles) with train_features [N, D], train_labels [N], test_features [M, D],
            test_labels [M], test_names [M] and classes [C]; labels count from 0, names are those of the listing, such
            as Archery/v_Archery_g01_c01. It may hold dataset, split, modality, pretraining, windows, of one text each.
        about: what the scores are of, where the file does not say.
        C: of the SVM.

    Raises:
        ValueError: the file cannot be read or lacks something, or shapes do not fit.
        ImportError: scikit-learn is not there.
    """
    content = _npz(features)
    train, test = content["train_features"], content["test_features"]
    values = svm(train, content["train_labels"], test, len(content["classes"]), C)
    names = tuple(map(str, content["test_names"]))
    labels = content["test_labels"].astype(np.int64)
    told = _told(content, about or _unknown(features))
    try:
        return Scores(told, tuple(map(str, content["classes"])), names, labels, values)
    except ValueError as error:
        raise ValueError(f"{features}: {error}") from error


def svm(train: Matrix, labels: np.ndarray, test: Matrix, classes: int, C: float = 1.0) -> Matrix:
    """Margins [M, C] of a linear SVM (one against the others), features scaled to unit variance; a class without
    training videos gets the lowest of its row.
    """
    try:
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise ImportError(f"a linear SVM needs scikit-learn ({error}): pip install 'dynpool[train]'") from error
    machine = make_pipeline(StandardScaler(), LinearSVC(C=C, dual=True, random_state=0, max_iter=20_000))
    machine.fit(train, labels)
    margins = machine.decision_function(test)
    if margins.ndim == 1:  # two classes
        margins = np.stack([-margins, margins], 1)
    values = np.repeat(margins.min(1, keepdims=True) - 1, classes, 1)
    values[:, machine.classes_] = margins
    return values


def _unknown(path: PathLike) -> About:
    stem = os.path.splitext(os.path.basename(path))[0]
    return About("unknown", UNKNOWN_SPLIT, f"{stem}, linear SVM", "unknown", "unknown")


def _told(content: dict[str, np.ndarray], default: About) -> About:
    """What the file says of itself."""
    names = ("dataset", "split", "modality", "pretraining", "windows")
    told: dict[str, Any] = {name: str(content[name]) for name in names if name in content}
    return replace(default, **told)


_NEEDED = ("train_features", "train_labels", "test_features", "test_labels", "test_names", "classes")


def _npz(path: PathLike) -> dict[str, np.ndarray]:
    content = _arrays(path)
    for name in _NEEDED:
        if name not in content:
            raise ValueError(f"{path} must hold {', '.join(_NEEDED)}; it has no {name}")
    shapes = {name: content[name].shape for name in _NEEDED}
    for name in ("classes", "test_names"):
        if len(shapes[name]) != 1:
            raise ValueError(f"{path}: {name} must be a list of names, got shape {list(shapes[name])}")
    if shapes["test_names"] != shapes["test_labels"]:
        told = f"{list(shapes['test_names'])} and {list(shapes['test_labels'])}"
        raise ValueError(f"{path}: test_names and test_labels must be of one length, got {told}")
    count = len(content["classes"])
    for name in ("train_labels", "test_labels"):
        labels = content[name]
        if labels.dtype.kind not in "iu":
            raise ValueError(f"{path}: {name} must be integers, got {labels.dtype}")
        if labels.size and not 0 <= labels.min() <= labels.max() < count:
            told = f"{labels.min()} … {labels.max()}"
            raise ValueError(f"{path}: {name} must be between 0 and C - 1 = {count - 1}, got {told}")
    for part in ("train", "test"):
        if len(shapes[f"{part}_features"]) != 2 or shapes[f"{part}_labels"] != shapes[f"{part}_features"][:1]:
            raise ValueError(f"{path}: {part}_features must have shape [N, D] and {part}_labels [N], got {shapes}")
        features = content[f"{part}_features"]
        if features.dtype.kind not in "fiu" or not np.isfinite(features).all() or not features.size:
            told = f"{features.dtype} {list(features.shape)}"
            raise ValueError(f"{path}: {part}_features must be finite numbers, and some, got {told}")
    if shapes["train_features"][1] != shapes["test_features"][1]:
        raise ValueError(f"{path}: train_features and test_features must have the same D, got {shapes}")
    if len(np.unique(content["train_labels"])) < 2:
        raise ValueError(f"{path}: train_labels must be of two classes or more, got those of one")
    return content


def _arrays(path: PathLike) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:  # of many kinds, and some advise to unpickle whatever it is
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(f"{path} must be an .npz file of arrays without pickles, whole") from error


def check_weights(weights: Sequence[float], count: int) -> None:
    """Raise ValueError for weights that `fuse` would refuse."""
    if len(weights) != count or min(weights) < 0 or not 0 < sum(weights) < math.inf:
        raise ValueError(f"weights must be {count} numbers, finite, not negative and not all zero, got {list(weights)}")


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    if count < 2:
        raise ValueError(f"fusion needs at least two streams, got {count}")
    if weights is None:
        return [1 / count] * count
    check_weights(weights, count)
    return [weight / sum(weights) for weight in weights]


def _about(streams: Sequence[Scores], shares: Sequence[float], count: int, lacking: int) -> About:
    """count: videos that all streams have. lacking: those that only some have."""
    modalities = [stream.about.modality for stream in streams]
    named = [f"({modality})" if " + " in modality else modality for modality in modalities]
    parts = [f"{share:.3g} × {modality}" for share, modality in zip(shares, named, strict=True)]
    listed = max(count + lacking, *(len(stream.names) + stream.about.skipped for stream in streams))
    known = next((stream.about for stream in streams if stream.about.dataset != "unknown"), streams[0].about)
    return replace(
        known,
        modality=" + ".join(parts),
        pretraining=" + ".join(dict.fromkeys(stream.about.pretraining for stream in streams)),
        windows=" + ".join(dict.fromkeys(stream.about.windows for stream in streams)),
        clip_accuracy=None,
        skipped=listed - count,
    )
