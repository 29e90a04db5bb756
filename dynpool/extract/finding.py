"""The videos of a dataset: of a folder and those below it, or of an object store."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ..files import file_state, fsspec_for
from ..video import VIDEO_SUFFIXES, numbered_images
from .manifest import NAME

_LABELLED = re.compile(r"(.*\S)\s+\d+")  # "Archery/v_Archery_g08_c01.avi 3", as in UCF101's lists


class Found(NamedTuple):
    """A video, or, with a `problem`, what might have been one."""

    name: str  # below the root, parted by "/", without suffix: Archery/v_Archery_g08_c01
    path: str  # of a file, or a folder of numbered images; or a URL
    version: str = ""  # changes when the file does
    problem: str | None = None

    @property
    def of_class(self) -> str | None:
        """The name of the first folder below the root, if it lies in one."""
        first, slash, _ = self.name.partition("/")
        return first if slash else None


def find(source: str | os.PathLike[str]) -> list[Found]:
    """All videos below a folder or URL, in order of name; hidden files, and folders that have a manifest, since they
    hold images of videos, are left out.

    A folder that holds images and no video is one video. Of several videos of a name, in any case of letters, the first
    is done, files before folders; the others are problems, and so are folders that cannot be read.

    Raises:
        FileNotFoundError: there is none.
        ImportError: a URL is given and fsspec is missing.
    """
    source = os.fspath(source)
    all_found = sorted(_remote(source) if "://" in source else _local(source), key=_order)
    names: dict[str, str] = {}
    for index, video in enumerate(all_found):
        other = names.setdefault(video.name.casefold(), video.path)
        if other != video.path and not video.problem:
            name = video.name + (os.path.splitext(video.path)[1] or "/")
            all_found[index] = video._replace(name=name, problem=f"has the name of {other}")
    if not all_found:
        raise FileNotFoundError(f"source must be a folder or URL with videos in it, got {source!r}, which has none")
    return all_found


def _order(video: Found) -> tuple[str, bool, str]:
    is_folder = _without_suffix(video.path) == video.path
    return video.name, is_folder, video.path


def chosen(videos: Iterable[Found], names: Iterable[str]) -> list[Found]:
    """The videos of these names, with or without a suffix, in the order of the list; what is not there is a problem."""
    there = {video.name: video for video in videos}
    wanted = {_listed(line, there): None for line in map(str.strip, names) if line}
    return [there.get(name, Found(name, name, problem="is listed, and not there")) for name in wanted]


def _listed(line: str, there: dict[str, Found]) -> str:
    """The name of the video that a line of a list means."""
    line = line.replace(os.sep, "/")
    labelled = _LABELLED.fullmatch(line)
    forms = [line, *([labelled[1]] if labelled else [])]
    candidates = [name for form in forms for name in (form, _without_suffix(form))]
    return next((name for name in candidates if name in there), candidates[-1])


def _local(root: str) -> Iterator[Found]:
    if not os.path.isdir(root):
        if os.path.exists(root):
            yield Found(_without_suffix(os.path.basename(root)), root, _version_of(root))
        return
    seen = {os.path.realpath(root)}
    problems: list[OSError] = []
    for folder, folders, files in os.walk(root, onerror=problems.append, followlinks=True):
        folders[:] = [name for name in sorted(folders) if _enters(os.path.join(folder, name), seen)]
        yield from _videos_of(root, folder, files)
    for error in problems:
        yield Found(_below(root, error.filename), error.filename, problem=error.strerror or str(error))


def _enters(folder: str, seen: set[str]) -> bool:
    """Whether a folder is to be read: not twice, which links might cause."""
    place = os.path.realpath(folder)
    if os.path.basename(folder).startswith(".") or place in seen or os.path.exists(os.path.join(folder, NAME)):
        return False
    seen.add(place)
    return True


def _videos_of(root: str, folder: str, files: list[str]) -> Iterator[Found]:
    names = [name for name in files if _is_video(name)]
    for name in names:
        path = os.path.join(folder, name)
        yield Found(_without_suffix(_below(root, path)), path, _version_of(path))
    if not names and numbered_images(folder):
        name = os.path.basename(os.path.abspath(root)) if folder == root else _below(root, folder)
        yield Found(name, folder, _version_of(folder))


def _remote(url: str) -> Iterator[Found]:
    if "::" in url:
        raise ValueError(f"source must be a URL of one file system, got {url!r}")
    system, base = fsspec_for(url).core.url_to_fs(url)
    found: dict[str, dict[str, Any]] = system.find(base, detail=True)
    for path, about in found.items():
        name = path[len(base) :].strip("/") or os.path.basename(path)
        if _is_video(os.path.basename(name)):
            changed = next((about[key] for key in ("ETag", "etag", "mtime", "LastModified") if key in about), "")
            yield Found(_without_suffix(name), system.unstrip_protocol(path), f"{about.get('size')}|{changed}")


def _is_video(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _below(root: str, path: str) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def _without_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES else name


def _version_of(path: str) -> str:
    try:
        return file_state(path)
    except OSError:  # a link to nothing: reading it will say so
        return ""
