"""The official splits of UCF101 and HMDB51, three each: their lists, and the videos that they name.

The lists come with the datasets (ucfTrainTestlist, testTrainMulti_7030_splits) and are not part of this package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..files import PathLike
from .listing import Listed, Listing, Subset, Tree, check_subset, find_all

_UCF101_LISTS = (
    "ucfTrainTestlist",
    "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist",
    "splits/ucf101",
)
_HMDB51_LISTS = (
    "testTrainMulti_7030_splits",
    "test_train_splits/testTrainMulti_7030_splits",
    "splits/hmdb51",
)

# What clips of one video, or of one film, have in common: groups of `class_folders` and `divide`.
UCF101_GROUP = r"_g(\d+)_c"  # of v_Archery_g08_c01
# Of <film>_<class>_<body>_<camera>_np<people>_<view>_<quality>_<number>. Classes of two words are named: a film's name
# may end in any word.
HMDB51_GROUP = (
    r"^(.+?)_(?:brush_hair|climb_stairs|draw_sword|fall_floor|flic_flac|kick_ball|ride_bike|ride_horse|shake_hands|"
    r"shoot_ball|shoot_bow|shoot_gun|swing_baseball|sword_exercise|[a-z]+)"
    r"_[fhlu]_[cn]m_np\d+_(?:ba|fr|le|ri)_(?:bad|goo|med)_\d+$"
)

_HMDB51_FILE = re.compile(r"(.+)_test_split(\d)\.txt")
_HMDB51_SUBSETS = {"0": None, "1": "train", "2": "test"}


def ucf101(root: PathLike, split: int = 1, subset: Subset = "train", lists: PathLike | None = None) -> Listing:
    """UCF101 (101 classes, 13 320 videos) on disk.

    Args:
        root: the folder of the videos, <root>/<class>/<video>.avi or <root>/<video>.avi (any video suffix); of the
            frames, <root>/<class>/<video>/*.jpg; or of pictures of them, <root>/<class>/<video>.png (source "images").
        split: 1, 2 or 3.
        subset: "train" or "test".
        lists: the folder of classInd.txt, trainlist01.txt, …; by default looked for in `root` and beside it.

    Returns:
        Listing in the order of the list; labels from 0, in the order of classInd.txt.

    Raises:
        FileNotFoundError: no lists, or none of the videos, are there.
        ValueError: split or subset is unknown, or a list has a line that makes no sense.

    Warns:
        RuntimeWarning: videos are missing; `Listing.missing` names them.
    """
    tree = Tree(root)
    entries, classes = ucf101_entries(_lists(root, lists, _UCF101_LISTS, "classInd.txt"), split, subset)
    return find_all(entries, tree, classes, dataset="ucf101", split=str(split), subset=subset)


def ucf101_entries(lists: PathLike, split: int, subset: Subset) -> tuple[list[Listed], list[str]]:
    """The lines of an official list of UCF101, whatever is on disk, and the classes."""
    _check(split, subset)
    classes = _class_index(Path(lists) / "classInd.txt")
    labels = {name: label for label, name in enumerate(classes)}
    path = Path(lists) / f"{subset}list{split:02d}.txt"
    return [_ucf101_entry(line, labels, f"{path}, line {number}") for number, line in _lines(path)], classes


def _class_index(path: Path) -> list[str]:
    """Class names of lines "1 ApplyEyeMakeup": 1-based and in order."""
    names: list[str] = []
    for number, line in _lines(path):
        fields = line.split()
        if len(fields) != 2 or fields[0] != str(len(names) + 1):
            raise ValueError(f"{path}, line {number} must be '{len(names) + 1} <class>', got {line!r}")
        if fields[1] in names:
            raise ValueError(f"{path}, line {number}: the class {fields[1]!r} is there twice")
        names.append(fields[1])
    return names


def _ucf101_entry(line: str, labels: dict[str, int], where: str) -> Listed:
    """A line "Archery/v_Archery_g08_c01.avi 3" of a train list; test lists leave the label out."""
    path, *rest = line.split()
    folder, _, name = path.partition("/")
    label = labels.get(folder)
    if label is None or not name or len(rest) > 1 or (rest and rest[0] != str(label + 1)):
        raise ValueError(f"{where} must be '<class>/<video>' and perhaps the class's number, got {line!r}")
    return Listed(folder, _without_suffix(name), label)


def hmdb51(root: PathLike, split: int = 1, subset: Subset = "train", lists: PathLike | None = None) -> Listing:
    """HMDB51 (51 classes, 6 766 videos, of which a split uses 5 100) on disk.

    Args: as in `ucf101`; lists is the folder of <class>_test_split1.txt, …

    Returns, raises, warns: as `ucf101`; labels are in alphabetical order of the classes.
    """
    tree = Tree(root)
    entries, classes = hmdb51_entries(_lists(root, lists, _HMDB51_LISTS, "*_test_split1.txt"), split, subset)
    return find_all(entries, tree, classes, dataset="hmdb51", split=str(split), subset=subset)


def hmdb51_entries(lists: PathLike, split: int, subset: Subset) -> tuple[list[Listed], list[str]]:
    """The lines of the official lists of HMDB51, whatever is on disk, and the classes."""
    _check(split, subset)
    found = (_HMDB51_FILE.fullmatch(path.name) for path in Path(lists).iterdir())
    classes = sorted(match[1] for match in found if match and int(match[2]) == split)
    if not classes:
        raise FileNotFoundError(f"lists must be a folder of <class>_test_split{split}.txt, got {str(lists)!r}")
    entries: list[Listed] = []
    for label, name in enumerate(classes):
        entries += _hmdb51_class(Path(lists) / f"{name}_test_split{split}.txt", name, label, subset)
    return entries, classes


def _hmdb51_class(path: Path, folder: str, label: int, subset: Subset) -> list[Listed]:
    """Of lines "<video>.avi 1", those of the subset: 1 is train, 2 test, 0 neither."""
    entries = []
    for number, line in _lines(path):
        name, _, mark = line.rpartition(" ")
        if not name or mark not in _HMDB51_SUBSETS:
            raise ValueError(f"{path}, line {number} must be '<video> 0', 1 or 2, got {line!r}")
        if _HMDB51_SUBSETS[mark] == subset:
            entries.append(Listed(folder, _without_suffix(name.strip()), label))
    return entries


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    """Numbered lines that are not empty, without their ends (\\r\\n, \\r or \\n), spaces, or a byte order mark."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text: {error}") from error
    return [(number, line.strip()) for number, line in enumerate(re.split("\r\n|\r|\n", text), 1) if line.strip()]


def _without_suffix(name: str) -> str:
    return name[: -len(Path(name).suffix)] if Path(name).suffix else name


def _check(split: int, subset: str) -> None:
    if split not in (1, 2, 3):
        raise ValueError(f"split must be 1, 2 or 3, got {split!r}")
    check_subset(subset)


def _lists(root: PathLike, given: PathLike | None, usual: Sequence[str], holds: str) -> Path:
    """The folder of the split lists: the one given, or the first of the usual ones in `root` or beside it."""
    if given is not None:
        tried = [Path(given)]
    else:
        tried = [base / name for base in (Path(root), Path(root).parent) for name in ("", *usual)]
    for folder in tried:
        if folder.is_dir() and any(folder.glob(holds)):
            return folder
    raise FileNotFoundError(
        f"lists must be a folder with {holds}; looked in {', '.join(dict.fromkeys(map(str, tried)))}"
    )
