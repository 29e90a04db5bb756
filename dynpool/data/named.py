"""Datasets by name, for configurations and the command line."""

from __future__ import annotations

import os
import re
from typing import Any, Literal, get_args

from ..checks import choice
from ..files import PathLike
from .folders import class_folders, groups, is_given, people, weizmann
from .listing import Listing, Subset
from .official import hmdb51, ucf101

DatasetName = Literal["ucf101", "hmdb51", "weizmann", "folders"]
DATASETS = get_args(DatasetName)
_NAME = re.compile(r"[\w-]{2,}")  # one letter before a colon is a drive


def dataset_and_root(data: str) -> tuple[str, str]:
    """Of "[NAME:]FOLDER", as on the command line: the name of the dataset, "folders" if none is given, and the folder.

    Letter case of the name does not matter. A folder that exists is one, whatever colons are in its path.

        "UCF101:UCF-101"  ->  ("ucf101", "UCF-101")
        "C:/clips"        ->  ("folders", "C:/clips")

    Raises:
        ValueError: the name is unknown.
    """
    name, colon, root = data.partition(":")
    if not colon or not _NAME.fullmatch(name) or os.path.isdir(data):
        return "folders", data
    if name.lower() not in DATASETS:
        known = ", ".join(map(repr, DATASETS))
        raise ValueError(f"data must be [NAME:]FOLDER, NAME being one of {known}, got {data!r}, which is no folder")
    return name.lower(), root


def make_listing(dataset: str, root: PathLike, split: int | str, subset: Subset, **options: Any) -> Listing:
    """A subset of a split of the dataset of that name; options are those of its function.

    Raises:
        ValueError: the name is unknown, or split is none of its splits.
        others: as `ucf101`, `hmdb51`, `weizmann`, `class_folders`.
    """
    choice("dataset", dataset, DATASETS)
    if dataset == "weizmann":
        return weizmann(root, str(split), subset, **options)
    if dataset == "folders":
        return class_folders(root, split, subset, **options)
    return (ucf101 if dataset == "ucf101" else hmdb51)(root, _number(split), subset, **options)


def splits(dataset: str, root: PathLike, group: str | None = None) -> list[int | str]:
    """All splits: 1 to 3, or the people of Weizmann. Folders have the groups of `group`, else their draws 1 to 3; those
    of train and test have one.
    """
    choice("dataset", dataset, DATASETS)
    if dataset == "weizmann":
        return [*people(root)]
    if dataset == "folders" and is_given(root):
        return [1]
    if dataset == "folders" and group is not None:
        return [*groups(root, group)]
    return [1, 2, 3]


def _number(split: int | str) -> int:
    if not str(split).isdecimal():
        raise ValueError(f"split must be 1, 2 or 3, got {split!r}")
    return int(split)
