"""Videos in folders by class, divided into training and test by a rule; Weizmann, leaving one person out."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..files import PathLike
from .listing import Listed, Listing, Subset, Tree, check_subset, find_all, holds_frames, is_picture, is_video
from .official import HMDB51_GROUP, UCF101_GROUP

_WEIZMANN_PERSON = r"^([^_]+)_"  # of denis_walk, lena_run1
_HALVES = ("train", "test")
GROUPS = {"ucf101": UCF101_GROUP, "hmdb51": HMDB51_GROUP, "weizmann": _WEIZMANN_PERSON}  # what must stay together


def class_folders(
    root: PathLike,
    split: int | str = 1,
    subset: Subset = "train",
    *,
    test_fraction: float = 0.3,
    group: str | None = None,
    dataset: str = "folders",
) -> Listing:
    """Any folder of <class>/<video>: a file, a folder of numbered frames, or pictures of dynamic images.

    Where root holds folders `train` and `test`, in any case of letters, these are the subsets, and the rule below has
    no say. Otherwise videos are divided by nothing but their names:

        split an int    a share `test_fraction` of each class, at least one video, is for testing: those that come first
                        in the order of a hash of split and name. With `group` about that share, in whole groups, each
                        of which is taken for all classes at once. Another split is another draw.
        split a str     the group of that name is for testing, all others for training ("leave one out").

    Args:
        root: the folder.
        split, subset: as above.
        test_fraction: between 0 and 1, both excluded.
        group: a regular expression whose first group, found in a video's name (without suffix), says what must stay
            together, such as r"_g(\\d+)_"; by default each video is its own group.
        dataset: what results call the data.

    Returns:
        Listing; classes and videos in order of name.

    Raises:
        FileNotFoundError: root, or a video in it, is not there; or it holds one of `train` and `test`, but not both.
        ValueError: split, subset, test_fraction or group makes no sense; or there is one group only, or each has all
            videos of some class.

    Warns:
        RuntimeWarning: pictures lie beside videos, and are left out; or a class has no videos to train on, or to test.
    """
    check_subset(subset)
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction!r}")
    tree = Tree(root)
    if is_given(root):
        return _given(halves(tree.root), dataset, subset)
    entries = _all_entries(tree)
    if isinstance(split, str):
        chosen = _held_out(entries, split, group)
    else:
        chosen = _share(entries, split, group, test_fraction, to_test=True)
    kept = [entry for entry in entries if (entry in chosen) == (subset == "test")]
    return find_all(kept, tree, _classes(tree), dataset=dataset, split=str(split), subset=subset)


def weizmann(root: PathLike, held_out: str, subset: Subset = "train") -> Listing:
    """The Weizmann actions (10 classes, 9 people) as <root>/<class>/<person>_<class>.avi, leaving one person out.

    Args:
        root: the folder of the classes.
        held_out: the person to test on; `people` names them.
        subset: "train", all the others, or "test", the one held out.

    Raises:
        FileNotFoundError: root, or a video in it, is not there.
        ValueError: held_out is nobody who is there, subset makes no sense, or videos are called otherwise.
    """
    if held_out not in (there := people(root)):
        raise ValueError(f"split must name the person to leave out, one of {', '.join(there)}, got {held_out!r}")
    return class_folders(root, held_out, subset, group=_WEIZMANN_PERSON, dataset="weizmann")


def people(root: PathLike) -> list[str]:
    """Who appears in a Weizmann folder, sorted: the splits of leave-one-person-out.

    Raises:
        FileNotFoundError: root, or a video in it, is not there.
        ValueError: videos are called otherwise.
    """
    entries = _all_entries(Tree(root))
    if odd := [entry.name for entry in entries if not re.search(_WEIZMANN_PERSON, entry.stem)]:
        told = f"got {str(root)!r}, which has {odd[0]}"
        raise ValueError(f"root must be a folder of <class>/<person>_<class>.avi, {told}")
    return sorted({_group(entry, _WEIZMANN_PERSON) for entry in entries})


def groups(root: PathLike, group: str) -> list[str]:
    """The groups of the videos of a folder, sorted."""
    return sorted({_group(entry, group) for entry in _all_entries(Tree(root))})


def is_given(root: PathLike) -> bool:
    """Whether a folder says itself what is for training and what for testing."""
    return len(halves(root)) == len(_HALVES)


def halves(root: PathLike) -> dict[str, Path]:
    """The folders train and test, in any case of letters, as far as they are there."""
    if not Path(root).is_dir():
        return {}
    return {
        path.name.lower(): path
        for path in sorted(Path(root).iterdir())
        if path.name.lower() in _HALVES and path.is_dir()
    }


def divide(listing: Listing, fraction: float, group: str | None = None, draw: int = 0) -> tuple[Listing, Listing]:
    """A listing without, and only with, a share of its videos: of each class about `fraction`, groups kept whole.

    Args:
        listing: the videos.
        fraction: between 0 and 1, both excluded.
        group: as in `class_folders`; by default that of the listing's dataset (`GROUPS`), if it has one. A group is
            taken for all classes at once.
        draw: another one gives other groups.

    Raises:
        ValueError: there is one group only, or each has all videos of some class; or group does not match a name.
    """
    entries = [Listed(*os.path.split(video.name), video.label) for video in listing]
    group = group or GROUPS.get(listing.dataset)
    chosen = _share(entries, draw, group, fraction, to_test=False)
    held = [index for index, entry in enumerate(entries) if entry in chosen]
    kept = sorted(set(range(len(entries))) - set(held))
    return listing.subset_of(kept), listing.subset_of(held)


def _given(folders: dict[str, Path], dataset: str, subset: Subset) -> Listing:
    """root/train/<class>/…, root/test/<class>/…: classes are those of both, called as in train."""
    trees = {half: Tree(folders[half]) for half in _HALVES}
    named = {half: {name.casefold(): name for name in _classes(tree)} for half, tree in trees.items()}
    classes = sorted((named["test"] | named["train"]).values())
    if alone := [named["test"][key] for key in sorted(named["test"].keys() - named["train"].keys())]:
        message = f"nothing is trained of {', '.join(alone)}: all videos of it are in {folders['test']}"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    entries = [entry for label, name in enumerate(classes) for entry in _entries(trees[subset], name, label)]
    return find_all(entries, trees[subset], classes, dataset=dataset, split="given", subset=subset)


def _classes(tree: Tree) -> list[str]:
    """Folders with a video in them."""
    names = [name for name in tree.folders if any(map(is_video, tree.names(name).values()))]
    if not names:
        told = f"got {str(tree.root)!r}, which has no class: none of its folders holds a video"
        raise FileNotFoundError(f"root must be a folder of <class>/<video>, {told}")
    return names


def _all_entries(tree: Tree) -> list[Listed]:
    if len(there := list(halves(tree.root).values())) == 1 and _holds_classes(*there):
        told = f"got {str(tree.root)!r}, which has {there[0].name} alone"
        raise FileNotFoundError(f"root must have both train and test where it has one of them, {told}")
    return [entry for label, name in enumerate(_classes(tree)) for entry in _entries(tree, name, label)]


def _holds_classes(half: Path) -> bool:
    """Whether it is no class of that name, of videos or of folders of frames."""
    inner = Tree(half)
    return any(
        any(map(is_video, inner.names(name).values())) for name in inner.folders if not holds_frames(half / name)
    )


def _entries(tree: Tree, folder: str, label: int) -> Iterator[Listed]:
    """Folders without frames are no videos; nor are pictures, of which some may lie beside videos."""
    there = {stem: path for stem, path in tree.names(folder).items() if is_video(path)}
    pictures = {stem for stem, path in there.items() if is_picture(path)}
    if pictures and len(pictures) < len(there):
        message = f"{tree.root / folder} has videos: pictures in it are left out, such as {min(pictures)}"
        warnings.warn(message, RuntimeWarning, stacklevel=5)
        there = {stem: path for stem, path in there.items() if stem not in pictures}
    return (Listed(folder, stem, label) for stem in there)


def _group(entry: Listed, group: str | None) -> str:
    if group is None:
        return entry.stem
    try:
        match = re.search(group, entry.stem)
    except re.error as error:
        raise ValueError(f"group must be a regular expression, got {group!r}: {error}") from error
    if match is None or not match.groups() or not match[1]:
        wanted = "a regular expression with a group, which matches something of every name"
        raise ValueError(f"group must be {wanted}, got {group!r}, which does not match {entry.stem!r}")
    return match[1]


def _held_out(entries: list[Listed], split: str, group: str | None) -> set[Listed]:
    chosen = {entry for entry in entries if _group(entry, group) == split}
    if not chosen:
        there = sorted({_group(entry, group) for entry in entries})
        raise ValueError(f"split must be one of {', '.join(there)}, got {split!r}")
    return chosen


def _share(entries: list[Listed], draw: int, group: str | None, fraction: float, to_test: bool) -> set[Listed]:
    """Of each class about a fraction; to test, of each class some."""
    return _drawn(entries, draw, fraction) if group is None else _taken(entries, draw, group, fraction, to_test)


def _drawn(entries: list[Listed], draw: int, fraction: float) -> set[Listed]:
    chosen: set[Listed] = set()
    for label in sorted({entry.label for entry in entries}):
        own = sorted((entry for entry in entries if entry.label == label), key=lambda entry: _draw(draw, entry.stem))
        if len(own) == 1:
            message = f"class {own[0].folder} has one video only: it is for training"
            warnings.warn(message, RuntimeWarning, stacklevel=4)
            continue
        chosen |= set(own[: min(max(1, round(fraction * len(own))), len(own) - 1)])
    return chosen


def _taken(entries: list[Listed], draw: int, group: str, fraction: float, to_test: bool) -> set[Listed]:
    """Whole groups, in the order of the draw, of which each brings the classes nearer to their share: groups may be as
    unequal as HMDB51's films: one is more than half of a class. Of every class, videos stay.
    """
    argument = "test_fraction" if to_test else "fraction"
    members: dict[str, list[Listed]] = {}
    for entry in entries:
        members.setdefault(_group(entry, group), []).append(entry)
    if len(members) < 2:
        raise ValueError(f"{argument} needs at least two groups to divide, got {len(members)}")
    names = sorted(members, key=lambda group: _draw(draw, group))
    left = Counter(entry.label for entry in entries)
    wanted = {label: fraction * count for label, count in left.items()}
    taken: list[str] = []
    possible: list[str] = []
    for one in names:
        counts = Counter(entry.label for entry in members[one])
        if any(left[label] == count for label, count in counts.items()):
            continue
        possible.append(one)
        if sum(abs(wanted[label]) - abs(wanted[label] - count) for label, count in counts.items()) >= 0:
            taken.append(one)
            left -= counts
            wanted.update({label: wanted[label] - count for label, count in counts.items()})
    if not possible:
        raise ValueError(f"{argument} needs groups to set aside, got such alone as have all videos of a class")
    if not taken:
        taken = possible[:1]
        left -= Counter(entry.label for entry in members[taken[0]])
    for one in possible if to_test else ():  # for classes that have none yet
        counts = Counter(entry.label for entry in members[one])
        there = {entry.label for other in taken for entry in members[other]}
        if one not in taken and counts.keys() - there and all(left[label] > count for label, count in counts.items()):
            taken.append(one)
            left -= counts
    chosen = {entry for one in taken for entry in members[one]}
    without = {entry.folder for entry in entries} - {entry.folder for entry in chosen}
    if without and to_test:
        message = f"no group can be taken from {', '.join(sorted(without))}: all videos of it are for training"
        warnings.warn(message, RuntimeWarning, stacklevel=4)
    return chosen


def _draw(split: int, name: str) -> bytes:
    return hashlib.sha256(os.fsencode(f"{split}/{name}")).digest()  # names need not be UTF-8
