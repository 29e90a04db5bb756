"""The videos of a dataset: of a folder and those below it, or of an object store."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ..files import file_state, fsspec_for
from ..manifest import is_made
from ..video import VIDEO_SUFFIXES, is_image, is_video, numbered_images

_NO_FILE = "is no regular file"
_LABELLED = re.compile(r"(.*\S)\s+\d+")  # "Archery/v_Archery_g08_c01.avi 3", as in UCF101's lists


class Found(NamedTuple):
    """A video, or, with a `problem`, what might have been one."""

    name: str  # below the root, parted by "/", without suffix: Archery/v_Archery_g08_c01
    path: str  # of a file, or a folder of numbered images; or a URL
    version: str = ""  # changes when the file or an image of the folder does, or when one comes or goes
    problem: str | None = None

    @property
    def of_class(self) -> str | None:
        """The folder, below the root, that it lies in, if any: as `dynpool.data` has classes."""
        return self.name.rstrip("/").rpartition("/")[0] or None


def find(source: str | os.PathLike[str]) -> list[Found]:
    """All videos below a folder or URL, in order of name; hidden files and folders, and folders of images that were
    made of videos, are left out.

    A folder that holds images, no video and no folder is one video, but for a URL. Of several videos of a name, in any
    case of letters, the first is done, files before folders; the others are problems, and so are folders that cannot be
    read.

    Raises:
        FileNotFoundError: there is none.
        ImportError: a URL is given and fsspec is missing.
        ValueError: it is a folder of images that were made of videos.
    """
    source = os.fspath(source)
    if is_made(source):
        raise ValueError(f"source must be a folder of videos, got {source!r}, which holds images made of them")
    all_found = sorted(_remote(source) if "://" in source else _local(source), key=_order)
    names: dict[str, str] = {}
    for index, video in enumerate(all_found):
        other = names.setdefault(video.name.casefold(), video.path)
        if ".." in video.name.split("/"):
            all_found[index] = video._replace(problem="has .. in its name")
        elif other != video.path and not video.problem:
            name = video.name + (os.path.splitext(video.path)[1] or "/")
            all_found[index] = video._replace(name=name, problem=f"has the name of {other}")
    if not all_found:
        raise FileNotFoundError(f"source must be a folder or URL with videos in it, got {source!r}, which has none")
    return all_found


def _order(video: Found) -> tuple[str, bool, str]:
    is_folder = _without_suffix(video.path) == video.path
    return video.name, is_folder, video.path


def chosen(videos: Iterable[Found], names: Iterable[str]) -> list[Found]:
    """The videos of these names, with or without a suffix, in the order of the list; what is not there is a problem.
    Letter case does not matter, nor does the folder, if the video lies straight in the root: as in `dynpool.data`.

    Raises:
        TypeError, ValueError: names is one text, or empty.
    """
    if isinstance(names, str):
        raise TypeError(f"only must be a list of names, got the text {names!r}")
    there = {video.name.casefold(): video for video in videos}
    wanted = {video.name: video for video in (_listed(line, there) for line in map(str.strip, names) if line)}
    if not wanted:
        raise ValueError("only must name a video, got an empty list")
    return list(wanted.values())


def _listed(line: str, there: dict[str, Found]) -> Found:
    """The video that a line of a list means: as it says, or, if there is none, straight in the root."""
    labelled = _LABELLED.fullmatch(line)
    forms = [posixpath.normpath(form.replace(os.sep, "/")) for form in (line, *([labelled[1]] if labelled else []))]
    names = [name for form in forms for name in (form, _without_suffix(form))]
    for name in (*names, *map(posixpath.basename, names)):
        if (video := there.get(name.casefold())) is not None:
            return video
    return Found(names[-1], names[-1], problem="is listed, and not there")


def _local(root: str) -> Iterator[Found]:
    root = os.path.abspath(root)  # where others work, another folder is the current one
    if not os.path.isdir(root):
        if os.path.exists(root):
            yield _file(_without_suffix(os.path.basename(root)), root)
        return
    seen = {os.path.realpath(root)}
    problems: list[OSError] = []
    starts = [root]  # then links, since a folder goes by its own name
    for start in starts:
        if start != root and not _enters(start, seen):
            continue
        for folder, folders, files in os.walk(start, onerror=problems.append):
            inner = sorted(os.path.join(folder, name) for name in folders if not name.startswith("."))
            starts += filter(os.path.islink, inner)
            folders[:] = [os.path.basename(path) for path in inner if not os.path.islink(path) and _enters(path, seen)]
            yield from _videos_of(root, folder, files, leaf=not inner)
    for error in problems:
        yield Found(_below(root, error.filename), error.filename, problem=error.strerror or str(error))


def _enters(folder: str, seen: set[str]) -> bool:
    """Whether a folder is to be read: not twice, which links might cause."""
    place = os.path.realpath(folder)
    if os.path.basename(folder).startswith(".") or place in seen or is_made(folder):
        return False
    seen.add(place)
    return True


def _videos_of(root: str, folder: str, files: list[str], leaf: bool) -> Iterator[Found]:
    names = [name for name in files if is_video(name)]
    for name in names:
        path = os.path.join(folder, name)
        yield _file(_without_suffix(_below(root, path)), path)
    if leaf and not names and numbered_images(folder):
        name = os.path.basename(root) if folder == root else _below(root, folder)
        yield _with_state(name, folder)


def _file(name: str, path: str) -> Found:
    if os.path.exists(path) and not os.path.isfile(path):
        return Found(name, path, problem=_NO_FILE)
    return _with_state(name, path)


def _with_state(name: str, path: str) -> Found:
    try:
        return Found(name, path, file_state(path))
    except OSError as error:
        return Found(name, path, problem=error.strerror or str(error))


def _remote(url: str) -> Iterator[Found]:
    if "::" in url:
        raise ValueError(f"source must be a URL of one file system, got {url!r}")
    system, base = fsspec_for(url).core.url_to_fs(url)
    if system.isfile(base) and (is_video(base) or not system.isdir(base)):  # a page of a server is both
        yield Found(_without_suffix(os.path.basename(base)), url, _remote_version(system.info(base)))
        return
    problems: list[Exception] = []
    for folder, folders, files in system.walk(base, detail=True, on_error=problems.append):
        for name in [name for name in folders if name.startswith(".")]:
            del folders[name]
        place = folder[len(base) :].strip("/")
        videos = {name: about for name, about in files.items() if is_video(name)}
        for name, about in videos.items():
            path = f"{place}/{name}" if place else name
            regular = about.get("type", "file") == "file" or system.isfile(f"{folder}/{name}")  # or a link to one
            problem = None if regular else _NO_FILE
            yield Found(_without_suffix(path), f"{url.rstrip('/')}/{path}", _remote_version(about), problem)
        if not folders and not videos and any(is_image(name) for name in files):
            name = place or os.path.basename(base)
            yield Found(
                name, f"{url.rstrip('/')}/{place}", problem="is a folder of images, which must be on this machine"
            )
    for error in problems:
        yield Found(f"{url}: {error}", url, problem="cannot be listed")


def _remote_version(about: dict[str, Any]) -> str:
    """As far as the file system tells."""
    changed = next((about[key] for key in ("ETag", "etag", "mtime", "LastModified") if key in about), "")
    return f"{about.get('size')}|{changed}"


def _below(root: str, path: str) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def _without_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES else name
