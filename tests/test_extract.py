"""Datasets of videos into datasets of images: what is found, what is written, and what a killed run leaves."""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import clips
import numpy as np
import pytest
import torch
from PIL import Image

import dynpool
from dynpool.data import VideoDataset, class_folders
from dynpool.data.listing import pictures_of
from dynpool.data.packed import packed_videos
from dynpool.extract import Extraction, extract
from dynpool.extract.finding import Found, chosen, find
from dynpool.extract.making import Work
from dynpool.extract.shards import Shards
from dynpool.extract.workers import DIED, CannotStart, _pool, _until_broken, in_processes
from dynpool.manifest import NAME, Entry, Manifest, key_of
from dynpool.recipe import Recipe

pytest.importorskip("typer", reason="needs typer")

import command

PROGRAM = [sys.executable, "-m", "dynpool", "extract"]
WINDOWS = {"window": 3, "stride": 2}
MADE = {"window": 3}

needs_links = pytest.mark.skipif(not hasattr(os, "symlink"), reason="has no links")


def make_dataset(root: Path, *names: str, frames: int = 7) -> Path:
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        clips.write(path, clips.random_frames(frames, 16, 24, seed))
    return root


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(tmp_path / "videos", "run/a.mkv", "run/b.mkv", "walk/c.mkv")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def processes():
    """Asked for by tests that are to work in processes of their own, which take seconds to start; others do not."""


@pytest.fixture(autouse=True)
def at_once(request, monkeypatch):
    if "processes" in request.fixturenames:
        yield
        return
    threads = torch.get_num_threads()
    monkeypatch.setattr(
        "dynpool.extract.run.in_processes", lambda work, items, *_: ((item, work(item)) for item in items)
    )
    yield
    torch.set_num_threads(threads)


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def pixels(path: Path | io.BytesIO) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / NAME).read_text().splitlines()]


def members(out: Path) -> dict[str, bytes]:
    """Of all shards; none twice."""
    found: dict[str, bytes] = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as shard:
            for member in shard:
                assert member.name not in found
                found[member.name] = shard.extractfile(member).read()
    return found


run = functools.partial(command.run, "extract")


# --- folders of images ----------------------------------------------------------------------------------------------


def test_images_lie_as_the_videos_do(dataset, out, processes):
    report = extract(dataset, out)
    assert sorted(report.done) == ["run/a", "run/b", "walk/c"]
    assert (report.before, report.failed) == ({}, {})
    assert written(out) == [NAME, "run/a.png", "run/b.png", "walk/c.png"]
    for name in report.done:
        torch.testing.assert_close(pixels(out / f"{name}.png"), dynpool.dynamic_image(dataset / f"{name}.mkv"))
    made, *entries = lines(out)
    assert made["made"] | {"window": None, "method": "approx", "format": "folders"} == made["made"]
    version = (dataset / "run/a.mkv").stat()
    assert next(entry for entry in entries if entry["video"] == "run/a") == {
        "video": "run/a",
        "version": f"{version.st_size}|{version.st_mtime_ns}",
        "images": 1,
        "frames": 7,
        "width": 24,
        "height": 16,
    }


def test_windows_and_other_options_are_those_of_dynamic_images(dataset, out):
    how = {"window": 3, "stride": 2, "method": "mean", "nonlinearity": "identity", "size": 8, "start": 1, "every": 2}
    report = extract(dataset, out, **how, workers=1)
    expected = dynpool.dynamic_images(dataset / "run/b.mkv", **how)
    assert report.done["run/b"].images == len(expected)
    assert (report.done["run/b"].width, report.done["run/b"].height) == (12, 8)
    for index, image in enumerate(expected):
        torch.testing.assert_close(pixels(out / f"run/b_{index:04d}.png"), image)


@pytest.mark.filterwarnings("ignore:class walk has one video only")
def test_a_loader_takes_them(dataset, out):
    extract(dataset, out, **WINDOWS)
    listing = class_folders(out, test_fraction=0.5)
    item = VideoDataset(listing, source="images", size=16)[0]
    pictures = [pixels(path)[:, :, 4:20] for path in sorted(out.glob(f"{listing[0].name}_*.png"))]
    assert torch.equal(item["video"], torch.stack(pictures))


def test_another_run_does_what_is_left(dataset, out):
    extract(dataset, out, **WINDOWS)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    report = extract(dataset, out, **WINDOWS)
    assert (report.done, sorted(report.before)) == ({}, ["run/a", "run/b", "walk/c"])
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == before

    make_dataset(dataset, "walk/new.mkv")
    (out / "run/b_0001.png").unlink()
    clips.write(dataset / "walk/c.mkv", clips.random_frames(4, 16, 24, 9))  # with two windows, where it had three
    report = extract(dataset, out, **WINDOWS)
    assert (sorted(report.done), sorted(report.before)) == (["run/b", "walk/c", "walk/new"], ["run/a"])
    assert report.done["walk/c"].images == 2
    assert [name for name in written(out) if "walk/c" in name] == ["walk/c_0000.png", "walk/c_0001.png"]
    torch.testing.assert_close(
        pixels(out / "walk/c_0001.png"), dynpool.dynamic_images(dataset / "walk/c.mkv", **WINDOWS)[1]
    )


def test_one_folder_is_made_in_one_way(dataset, out):
    extract(dataset, out, window=3, stride=2)
    with pytest.raises(ValueError, match=r"^out must be another folder: .* with other settings, stride = 2, now 3$"):
        extract(dataset, out, window=3, stride=3)
    with pytest.raises(ValueError, match="format = 'folders', now 'shards'"):
        extract(dataset, out, window=3, stride=2, shard_size=1)
    assert not extract(dataset, out, window=3, stride=2, timeout=60.0, device="cpu").done  # which images do not show


def test_a_folder_of_scaled_images_is_added_to(dataset, out):
    for _ in range(2):
        report = extract(dataset, out, size=(8, 12))  # which JSON makes a list
    assert len(report.before) == 3


def test_what_cannot_be_read_is_reported_and_tried_again(dataset, out):
    (dataset / "run/bad.mkv").write_bytes(b"no video")
    for _ in range(2):
        report = extract(dataset, out)
        assert list(report.failed) == ["run/bad"]
        assert "Invalid data" in report.failed["run/bad"]
    assert written(out) == [NAME, "run/a.png", "run/b.png", "walk/c.png"]
    clips.write(dataset / "run/bad.mkv", clips.random_frames(7, 16, 24))
    report = extract(dataset, out)
    assert (list(report.done), report.failed) == (["run/bad"], {})


def test_images_stay_while_their_video_fails(dataset, out):
    extract(dataset, out, **WINDOWS)
    whole, images = (dataset / "run/b.mkv").read_bytes(), written(out)
    (dataset / "run/b.mkv").write_bytes(b"no video")
    for _ in range(2):
        assert list(extract(dataset, out, **WINDOWS).failed) == ["run/b"]
        assert written(out) == images
    (dataset / "run/b.mkv").write_bytes(whole)
    assert list(extract(dataset, out, **WINDOWS).done) == ["run/b"]


def test_what_is_damaged_in_part_is_counted(dataset, out):
    (dataset / "run/hurt.mp4").write_bytes(clips.damaged(clips.random_frames(7, 16, 24), 2, 3))
    entry = extract(dataset, out).done["run/hurt"]
    assert (entry.frames, entry.damaged) == (5, 2)
    assert next(line for line in lines(out)[1:] if line["video"] == "run/hurt")["damaged"] == 2


def test_arguments_that_make_no_sense(dataset, out):
    for wrong, message in (
        ({"stride": 2}, "stride has no meaning without window, got 2"),
        ({"window": 0}, "window must be a positive integer, got 0"),
        ({"shard_size": 0}, "shard_size must be a positive integer, got 0"),
        ({"jpeg": 101}, "jpeg must be a quality from 1 to 100, got 101"),
        ({"starts": len}, "starts has no meaning"),
        ({"only": [" "]}, "only must name a video"),
        ({"workers": 1, "ray": "local"}, "workers are processes of this machine, got 1"),
        ({"workers": 0}, "workers must be a positive integer, got 0"),
        ({"method": "best"}, "method must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            extract(dataset, out, **wrong)
    with pytest.raises(TypeError, match="windows"):
        extract(dataset, out, windows=3)
    with pytest.raises(TypeError, match="only must be a list of names, got the text 'run/a'"):
        extract(dataset, out, only="run/a")
    with pytest.raises(ValueError, match="out must be a folder on this machine, got 's3://bucket/x'"):
        extract(dataset, "s3://bucket/x")
    with pytest.raises(FileNotFoundError, match="which has none"):
        extract(out / "nowhere", out)


def test_jpeg_files(dataset, out):
    for _ in range(2):
        report = extract(dataset, out, jpeg=95)
    assert (written(out), len(report.before)) == ([NAME, "run/a.jpg", "run/b.jpg", "walk/c.jpg"], 3)
    with Image.open(out / "run/a.jpg") as image:
        assert image.format == "JPEG"
        found = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    expected = dynpool.dynamic_image(dataset / "run/a.mkv")
    assert (found.float() - expected.float()).abs().mean() < 12  # of noise, whose range is 255
    with pytest.raises(ValueError, match="jpeg = 95, now None"):
        extract(dataset, out)
    report = extract(dataset, out.with_name("shards"), jpeg=95, shard_size=1, **WINDOWS)
    assert {name for name in members(out.with_name("shards")) if "run/a" in name} == {
        f"run/a.{suffix}" for suffix in ("0000.jpg", "0001.jpg", "0002.jpg", "cls", "json")
    }


def test_a_second_run_of_one_extraction_has_nothing_to_do(dataset, out):
    for folder, shard_size in ((out, None), (out.with_name("shards"), 1)):
        with Extraction(dataset, folder, Recipe(), shard_size=shard_size) as extraction:
            assert extraction.left == 3
            assert len(list(extraction.run(1))) == 3
            assert list(extraction.run(1)) == []


def test_a_full_disk_ends_the_run(dataset, out, monkeypatch):
    monkeypatch.setattr(
        "dynpool.extract.run.in_processes", lambda work, items, *_: ((item, work(item)) for item in items)
    )
    monkeypatch.setattr("dynpool.extract.making.write_pictures", _no_space)
    with pytest.raises(OSError, match="out cannot be written: No space left on device"):
        extract(dataset, out)
    assert lines(out)[1:] == []


def test_a_full_disk_is_told_with_its_folder(dataset, out, monkeypatch):
    monkeypatch.setattr(Shards, "add", _no_space)
    with pytest.raises(OSError, match="out cannot be written: No space left on device") as told:
        extract(dataset, out, shard_size=1)
    assert told.value.filename == str(out)
    assert lines(out)[1:] == []
    monkeypatch.setattr(Manifest, "_write", _no_space)
    monkeypatch.setattr(Manifest, "close", _no_space)  # of what is still to be written
    for folder, options in ((out, {"shard_size": 1}), (out.with_name("another"), {})):
        with pytest.raises(OSError, match="out cannot be written: No space left on device"):
            extract(dataset, folder, **options)


def test_an_image_that_the_disk_cuts_short_is_none(dataset, out):
    """Pillow takes a JPEG file to be done of which the system wrote a part."""
    resource = pytest.importorskip("resource", reason="has no limits")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
        failed = extract(dataset, out, jpeg=95, only=["run/a"]).failed
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "File too large" in failed["run/a"]
    assert written(out) == [NAME]
    assert list(extract(dataset, out, jpeg=95, only=["run/a"]).done) == ["run/a"]
    assert (out / "run/a.jpg").stat().st_size > 700


def test_images_of_windows_that_a_video_has_no_more_go(dataset, out):
    extract(dataset, out, window=1)
    (out / "run/a_0003.png").unlink()
    make_dataset(dataset, "run/a.mkv", frames=2)
    extract(dataset, out, window=1)
    assert sorted(path.name for path in (out / "run").glob("a_*")) == ["a_0000.png", "a_0001.png"]
    assert len(list((out / "run").glob("b_*"))) == 7

    entries = [line for line in (out / NAME).read_text().splitlines(keepends=True) if "run/b" not in line]
    (out / NAME).write_text("".join(entries))  # as of a run that was killed before it wrote the line
    make_dataset(dataset, "run/b.mkv", frames=2)
    extract(dataset, out, window=1)
    assert len(list((out / "run").glob("b_*"))) == 2


def test_a_video_that_is_called_like_a_window_keeps_its_image(dataset, out):
    make_dataset(dataset, "run/a_0001.mkv")
    extract(dataset, out)
    (out / "run/a.png").unlink()
    assert list(extract(dataset, out).done) == ["run/a"]
    assert written(out) == [NAME, "run/a.png", "run/a_0001.png", "run/b.png", "walk/c.png"]


def test_the_videos_lie_elsewhere(dataset, out):
    """A folder with a manifest is passed over when videos are looked for."""
    for place in (dataset, dataset / "run", dataset / "walk/../run"):
        with pytest.raises(
            ValueError, match=r"out must be a folder without videos of source, got .*, which holds .*run"
        ):
            extract(dataset, place)
        assert not (place / NAME).exists()
    assert len(extract(dataset / "run", dataset).done) == 2  # of which nobody asks for the videos above


def _no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- which videos ---------------------------------------------------------------------------------------------------


@needs_links
def test_videos_are_found_at_any_depth(dataset):
    make_dataset(dataset, "top.avi.mkv", "deep/er/still/d.mkv", ".hidden/h.mkv", "run/.h.mkv")
    (dataset / "run/notes.txt").write_text("no video")
    frames = dataset / "walk/e"
    frames.mkdir()
    Image.new("RGB", (24, 16)).save(frames / "1.png")
    for folder in ("deep", "run"):  # which has folders, or videos
        Image.new("RGB", (24, 16)).save(dataset / folder / "thumbnail.png")
    os.symlink(dataset / "run", dataset / "linked")
    os.symlink(dataset, dataset / "walk/again")
    assert [video.name for video in find(dataset)] == [
        "deep/er/still/d",
        "run/a",
        "run/b",
        "top.avi",
        "walk/c",
        "walk/e",
    ]
    assert [video.name for video in find(dataset / "walk/c.mkv")] == ["c"]
    assert [video.name for video in find(frames)] == ["e"]


def test_images_within_the_dataset_are_no_videos(dataset):
    (dataset / "run" / NAME).write_text("of another programme\n")
    for _ in range(2):
        report = extract(dataset, dataset / "images", **WINDOWS)
    assert sorted(report.before) == ["run/a", "run/b", "walk/c"]
    with pytest.raises(ValueError, match=r"^source must be a folder of videos, got .*, which holds images"):
        extract(dataset / "images", dataset / "again")


def test_a_folder_of_images_changes_when_one_comes(dataset, out):
    frames = dataset / "walk/e"
    frames.mkdir()
    for count in (1, 2):
        Image.new("RGB", (24, 16)).save(frames / f"{count}.png")
        os.utime(frames, (count, count))  # clocks of file systems are coarse
        assert extract(dataset, out).done["walk/e"].frames == count


def test_folders_that_cannot_be_read_are_problems(dataset, monkeypatch):
    scandir = os.scandir

    def refused(path):
        if path == str(dataset / "walk"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    found = [(video.name, video.problem) for video in find(dataset)]
    assert found == [("run/a", None), ("run/b", None), ("walk", "Permission denied")]


@needs_links
def test_links_are_other_names_of_what_is_there(dataset):
    os.symlink(dataset / "run", dataset / "a link")
    (dataset / "first").mkdir()
    os.symlink("../walk", dataset / "first/link")
    assert [video.name for video in find(dataset)] == ["run/a", "run/b", "walk/c"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_pipes_are_no_videos(dataset, out):
    os.mkfifo(dataset / "run/pipe.mkv")
    assert extract(dataset, out).failed == {"run/pipe": "is no regular file"}


def test_a_folder_of_images_of_which_one_changed_is_done_again(dataset, out):
    (dataset / "frames").mkdir()
    for index in range(3):
        Image.new("RGB", (24, 16), (80 * index,) * 3).save(dataset / f"frames/{index}.png")
    assert "frames" in extract(dataset, out).done
    assert "frames" in extract(dataset, out).before
    Image.new("RGB", (24, 16), (255, 0, 0)).save(dataset / "frames/1.png")
    assert list(extract(dataset, out).done) == ["frames"]
    for old, new in (("0", "kept"), ("2", "0"), ("kept", "2")):
        (dataset / f"frames/{old}.png").rename(dataset / f"frames/{new}.png")
    if hasattr(os, "symlink"):
        os.symlink("loop", dataset / "frames/loop")
    assert list(extract(dataset, out).done) == ["frames"]
    torch.testing.assert_close(pixels(out / "frames.png"), dynpool.dynamic_image(dataset / "frames"))


def test_a_class_folder_on_another_file_system(dataset, out, monkeypatch):
    """Or another mount of the same: to which a link may lead, and nothing can be moved."""
    replace = os.replace
    (out / "run").mkdir(parents=True)

    def move(source, target):
        if (out / "run" in Path(source).parents) != (out / "run" in Path(target).parents):
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", move)
    report = extract(dataset, out)
    assert sorted(report.done) == ["run/a", "run/b", "walk/c"]
    assert written(out / "run") == ["a.png", "b.png"]


def test_a_relative_folder_is_that_of_the_caller(dataset, monkeypatch):
    monkeypatch.chdir(dataset)
    assert [video.path for video in find("run")] == [str(dataset / "run/a.mkv"), str(dataset / "run/b.mkv")]


def test_two_videos_of_one_name(dataset, out):
    make_dataset(dataset, "run/A.mkv", "run/b.avi.mkv")
    (dataset / "run/b.avi.mkv").rename(dataset / "run/b.mp4")
    for _ in range(2):
        report = extract(dataset, out)
        assert report.failed == {
            "run/a.mkv": f"has the name of {dataset / 'run/A.mkv'}",
            "run/b.mp4": f"has the name of {dataset / 'run/b.mkv'}",
        }
    assert sorted(report.before) == ["run/A", "run/b", "walk/c"]


def test_files_go_before_folders_of_frames(dataset):
    (dataset / "run/b").mkdir()
    Image.new("RGB", (24, 16)).save(dataset / "run/b/1.png")
    assert [(video.name, bool(video.problem)) for video in find(dataset / "run")] == [
        ("a", False),
        ("b", False),
        ("b/", True),
    ]


def test_a_list_says_which(dataset, out, tmp_path):
    lists = ["run/a.mkv 1", "", "./walk/../run/a.mkv", "walk/c", "run/a", "run/missing.avi 2"]
    report = extract(dataset, out, only=lists)
    assert (sorted(report.done), report.failed) == (["run/a", "walk/c"], {"run/missing": "is listed, and not there"})
    (tmp_path / "list.txt").write_text("run/b\r\n")
    assert "1 videos done: 1 images of 7 frames" in run(dataset, "-o", out, "--list", tmp_path / "list.txt").output
    assert [video.name for video in chosen(find(dataset), ["run/b 2", "Run/B"])] == ["run/b"]
    assert [video.name for video in chosen(find(dataset / "run"), ["Class/b.avi 2"])] == ["b"]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_pipes_below_urls_are_no_videos(dataset, out):
    pytest.importorskip("fsspec", reason="needs fsspec")
    os.mkfifo(dataset / "run/pipe.mkv")
    os.symlink(dataset / "run/a.mkv", dataset / "run/link.mkv")
    report = extract(f"file://{dataset}", out, timeout=20)
    assert report.failed == {"run/pipe": "is no regular file"}
    assert "run/link" in report.done


def test_a_folder_of_a_server(dataset, out):
    """Whose pages are files, too."""
    pytest.importorskip("aiohttp", reason="needs aiohttp, by which fsspec reads http")
    handler = functools.partial(QuietHandler, directory=dataset)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert sorted(extract(f"{url}/run", out).done) == ["a", "b"]
        assert [video.name for video in find(f"{url}/")] == ["run/a", "run/b", "walk/c"]
        assert [video.name for video in find(f"{url}/run/a.mkv")] == ["a"]
        server.shutdown()


def test_urls(dataset, out):
    pytest.importorskip("fsspec", reason="needs fsspec")
    report = extract(f"file://{dataset}", out)
    assert sorted(report.done) == ["run/a", "run/b", "walk/c"]
    assert sorted(extract(f"file://{dataset}", out).before) == sorted(report.done)
    torch.testing.assert_close(pixels(out / "walk/c.png"), dynpool.dynamic_image(dataset / "walk/c.mkv"))
    (dataset / "frames/e").mkdir(parents=True)
    Image.new("RGB", (24, 16)).save(dataset / "frames/e/1.png")
    make_dataset(dataset, ".git/hidden.mkv")
    report = extract(f"file://{dataset}/", out)
    assert report.done == {}
    assert report.failed == {"frames/e": "is a folder of images, which must be on this machine"}
    os.utime(dataset / "run/a.mkv", (1, 1))
    assert list(extract(f"file://{dataset}", out).done) == ["run/a"]
    assert [video.path for video in find(f"file://{dataset}/run/a.mkv")] == [f"file://{dataset}/run/a.mkv"]
    with pytest.raises(ValueError, match="one file system"):
        extract("zip://a::file:///b.zip", out)


# --- shards ---------------------------------------------------------------------------------------------------------


def test_labels_are_the_classes_that_training_finds(tmp_path, out):
    make_dataset(tmp_path / "set", "sport/run/a.mkv", "sport/walk/b.mkv", "c.mkv")
    extract(tmp_path / "set", out, shard_size=1)
    found = members(out)
    labels = {name: found.get(f"{name}.cls") for name in ("sport/run/a", "sport/walk/b", "c")}
    assert labels == {"sport/run/a": b"0", "sport/walk/b": b"1", "c": None}
    assert {folder for folder, _, _ in packed_videos(out)} == {"sport/run", "sport/walk", ""}


def test_what_is_left_out_has_no_class(tmp_path, out):
    make_dataset(tmp_path / "set", "Archery/v1.mkv", "Biking/v1.mkv")
    (tmp_path / "set/Archery/v1").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "set/Archery/v1/00000.png")
    report = extract(tmp_path / "set", out, shard_size=1)
    assert list(report.failed) == ["Archery/v1/"]
    assert members(out)["Biking/v1.cls"] == b"1"


def test_shards_hold_samples(dataset, out):
    make_dataset(dataset, "walk/v1.2.mkv")
    report = extract(dataset, out, **WINDOWS, shard_size=1)
    assert written(out) == ["000000.tar", NAME]
    found = members(out)
    suffixes = ["0000.png", "0001.png", "0002.png", "cls", "json"]
    keys = ["run/a", "run/b", "walk/c", "walk/v1%2e2"]
    assert sorted(found) == [f"{key}.{suffix}" for key in keys for suffix in suffixes]
    assert [found[f"{key}.cls"] for key in keys] == [b"0", b"0", b"1", b"1"]
    about = {"video": "walk/v1.2", "class": "walk", "images": 3, "frames": 7, "damaged": 0}
    assert json.loads(found["walk/v1%2e2.json"]) == about | {"dynpool": dynpool.__version__}
    expected = dynpool.dynamic_images(dataset / "walk/v1.2.mkv", **WINDOWS)
    torch.testing.assert_close(pixels(io.BytesIO(found["walk/v1%2e2.0002.png"])), expected[2])
    assert {entry.shard for entry in report.done.values()} == {"000000.tar"}


def test_what_was_not_recorded_is_not_in_a_shard_that_was_full(dataset, out, monkeypatch):
    record = Manifest.add

    def killed(manifest: Manifest, entry: Entry) -> None:
        if len(manifest.entries) == 2:
            raise KeyboardInterrupt
        record(manifest, entry)

    monkeypatch.setattr("dynpool.extract.run._MEGABYTE", 1)  # every video fills a shard
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            extract(dataset, out, shard_size=1)
    assert len(extract(dataset, out, shard_size=1).before) == 2
    assert len(members(out)) == 3 * 3


def test_what_was_cut_off_a_shard_is_made_again_when_others_lie_there(dataset, out):
    """As after a power failure: three videos were recorded, and the file holds one and a half."""

    def do(names: str, count: int) -> list[str]:
        with Extraction(dataset, out, Recipe(), shard_size=1) as extraction:
            extraction._wanted.sort(key=lambda video: names.index(video.name[-1]))
            entries = extraction.run(1)
            done = [next(entries).video for _ in range(count)]
            entries.close()
            return done

    assert do("abc", 3) == ["run/a", "run/b", "walk/c"]
    os.truncate(out / "000000.tar.part", lines(out)[2]["end"] - 100)
    assert do("cb", 1) == ["walk/c"]
    report = extract(dataset, out, shard_size=1)
    assert (list(report.done), list(report.before)) == (["run/b"], ["run/a", "walk/c"])
    assert len(members(out)) == 3 * 3


def test_a_closed_shard_that_was_cut_short_is_whole_again(dataset, out):
    extract(dataset, out, shard_size=1)
    recorded = {line["end"]: line["video"] for line in lines(out) if "end" in line}
    ends = sorted(recorded)
    os.truncate(out / "000000.tar", ends[-1] - 700)
    report = extract(dataset, out, shard_size=1)
    assert (list(report.done), len(report.before)) == ([recorded[ends[-1]]], 2)
    assert written(out) == ["000000.tar", "000001.tar", NAME]
    assert len(members(out)) == 3 * 3
    os.truncate(out / "000000.tar", ends[-2])  # its end alone
    assert len(extract(dataset, out, shard_size=1).before) == 3
    assert len(members(out)) == 3 * 3


def test_an_image_without_bytes_is_made_again(dataset, out):
    extract(dataset, out)
    (out / "run/a.png").write_bytes(b"")
    assert list(extract(dataset, out).done) == ["run/a"]
    assert (out / "run/a.png").stat().st_size


def test_shards_have_one_label_a_class(dataset, out):
    make_dataset(dataset.with_name("divided"), "train/run/a.mkv", "test/run/b.mkv")
    with pytest.raises(
        ValueError, match=r"shard_size needs a source of classes, .* train and test: extract each by it"
    ):
        extract(dataset.with_name("divided"), out, shard_size=1)
    assert not out.exists()


@pytest.mark.filterwarnings("ignore:class")
def test_names_in_shards_may_be_of_several_lines(dataset, out):
    make_dataset(dataset, "a\nclass/a\nvideo.mkv")
    extract(dataset, out, shard_size=1)
    listing = class_folders(out, 1, "train")
    data = VideoDataset(listing, "images", size=None, on_error="raise")
    index = [video.name for video in listing].index("a\nclass/a\nvideo")
    expected = dynpool.dynamic_image(dataset / "a\nclass/a\nvideo.mkv")
    assert torch.equal(data[index]["video"][0], expected)


def test_labels_do_not_depend_on_a_list(dataset, out):
    extract(dataset, out, only=["walk/c"], shard_size=1)
    assert members(out)["walk/c.cls"] == b"1"


def test_webdataset_reads_them(dataset, out):
    wds = pytest.importorskip("webdataset", reason="needs webdataset")
    make_dataset(dataset, "walk/v1.2.mkv")
    extract(dataset, out, shard_size=1)
    folders = out.with_name("folders")
    extract(dataset, folders)
    files = wds.WebDataset(str(out / "000000.tar"), shardshuffle=False).decode("rgb8")
    samples = {key: (image, int(label)) for key, image, label in files.to_tuple("__key__", "png", "cls")}
    assert sorted(label for _, label in samples.values()) == [0, 0, 1, 1]
    for path in folders.rglob("*.png"):
        expected = pixels(path).permute(1, 2, 0).numpy()
        assert any(np.array_equal(image, expected) for image, _ in samples.values())


def test_shards_are_added_to(dataset, out):
    extract(dataset, out, shard_size=1)
    first = (out / "000000.tar").read_bytes()
    make_dataset(dataset, "walk/new.mkv")
    report = extract(dataset, out, shard_size=1)
    assert (list(report.done), len(report.before)) == (["walk/new"], 3)
    assert written(out) == ["000000.tar", "000001.tar", NAME]
    assert (out / "000000.tar").read_bytes() == first
    assert len(members(out)) == 4 * 3

    clips.write(dataset / "walk/new.mkv", clips.random_frames(9, 16, 24))
    assert len(extract(dataset, out, shard_size=1).before) == 4  # nothing can be taken from a tar file
    assert len(members(out)) == 4 * 3

    (out / "000001.tar").unlink()
    assert list(extract(dataset, out, shard_size=1).done) == ["walk/new"]
    make_dataset(dataset, "another/class.mkv")
    with pytest.raises(ValueError, match=r"classes = '0 items .*, now \"1 items that the other has not: \['another'\]"):
        extract(dataset, out, shard_size=1)


@pytest.mark.parametrize("options", [{}, {"jpeg": 90}, {"shard_size": 1}], ids=str)
def test_videos_that_are_called_like_windows_are_told_apart(options, dataset, out):
    names = [f"{folder}/clip_000{n}" for folder in ("jump", "swim") for n in range(3)]
    make_dataset(dataset.with_name("numbered"), *(f"{name}.mkv" for name in names))
    extract(dataset.with_name("numbered"), out, **options)
    listings = [class_folders(out, 1, subset) for subset in ("train", "test")]
    found = [item["name"] for listing in listings for item in VideoDataset(listing, "images", size=8, on_error="raise")]
    assert sorted(found) == names
    assert [len(pictures_of(video.path)) for listing in listings for video in listing] == [1] * 6


def test_so_they_are_in_train_and_test(dataset, out):
    names = [
        f"{half}/{folder}/clip_000{n}" for half in ("test", "train") for folder in ("jump", "swim") for n in range(2)
    ]
    make_dataset(dataset.with_name("divided"), *(f"{name}.mkv" for name in names))
    extract(dataset.with_name("divided"), out)
    for half in ("test", "train"):
        listing = class_folders(out, 1, half)
        assert [f"{half}/{video.name}" for video in listing] == [name for name in names if name.startswith(half)]
        assert all(len(pictures_of(video.path)) == 1 for video in listing)


def test_so_they_are_where_each_class_was_made_by_itself(dataset, out, monkeypatch):
    names = [f"{folder}/clip_000{n}" for folder in ("jump", "swim") for n in range(2)]
    videos = make_dataset(dataset.with_name("numbered"), *(f"{name}.mkv" for name in names))
    for folder in ("jump", "swim"):
        extract(videos / folder, out / folder)
    for root in (out, Path()):
        monkeypatch.chdir(out)
        found = [video for subset in ("train", "test") for video in class_folders(root, 1, subset)]
        assert sorted(video.name for video in found) == names
        assert all(len(pictures_of(video.path)) == 1 for video in found)


def test_windows_beside_images_of_whole_videos_are_windows(dataset, out):
    """Of videos that the manifest above them does not name so."""
    extract(dataset, out)
    for folder, name in (("run", "a"), ("walk", "c")):
        (out / "windows" / folder).mkdir(parents=True)
        for n in range(3):
            shutil.copy(out / folder / f"{name}.png", out / "windows" / folder / f"{name}_000{n}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes of one video
        listing = class_folders(out / "windows", 1, "train")
    assert [video.name for video in listing] == ["run/a", "walk/c"]
    assert [len(pictures_of(video.path)) for video in listing] == [3, 3]


def pictures(listing) -> dict[str, torch.Tensor]:
    dataset = VideoDataset(listing, source="images", size=None, on_error="raise")
    return {video.name: dataset[index]["video"] for index, video in enumerate(listing)}


@pytest.mark.filterwarnings("ignore:class .* has one video only")
@pytest.mark.parametrize("options", [{}, WINDOWS, {**WINDOWS, "jpeg": 95}], ids=str)
def test_a_network_trains_on_shards_as_on_folders(options, tmp_path, monkeypatch):
    names = "Run/a.mkv", "Run/b.c%.mkv", "Run/d_0001x.mkv", "walk/" + "long" * 30 + ".mkv", "walk/e.mkv", "walk/f.mkv"
    videos = make_dataset(tmp_path / "videos", *names)
    extract(videos, tmp_path / "folders", **options)
    monkeypatch.setattr("dynpool.extract.run._MEGABYTE", 9000)  # two or three samples a shard
    extract(videos, tmp_path / "shards", shard_size=1, **options)
    assert len(list((tmp_path / "shards").glob("*.tar"))) > 1
    for subset in ("train", "test"):
        folders, shards = (class_folders(tmp_path / name, subset=subset) for name in ("folders", "shards"))
        assert [(v.label, v.name) for v in shards] == [(v.label, v.name) for v in folders]
        expected, found = pictures(folders), pictures(shards)
        assert len(found) > 1
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.filterwarnings("ignore:class .* has one video only")
def test_another_manifest_is_none_of_ours(dataset):
    (dataset / NAME).write_text('{"some": "thing"}\n')
    assert len(class_folders(dataset)) == 2


def test_a_class_in_shards_and_a_folder_that_differ_in_case(dataset, out):
    extract(dataset, out, shard_size=1)
    for name in ("Run/d.png", "Walk/e.png"):
        (out / name).parent.mkdir()
        (out / name).touch()
    listings = [class_folders(out, subset=subset) for subset in ("train", "test")]
    assert listings[0].classes == ("Run", "Walk")
    assert sorted((video.name, video.label) for listing in listings for video in listing) == [
        ("Run/a", 0),
        ("Run/b", 0),
        ("Run/d", 0),
        ("Walk/c", 1),
        ("Walk/e", 1),
    ]


def test_a_folder_that_is_called_like_a_shard(dataset, out):
    """As somebody may unpack one."""
    extract(dataset, out, shard_size=1)
    (out / "000000.tar").unlink()
    (out / "000000.tar/run").mkdir(parents=True)
    (out / "000000.tar/run/a.png").touch()
    assert pictures_of(out / "000000.tar/run/a.png") == [out / "000000.tar/run/a.png"]


@pytest.mark.filterwarnings("ignore:class .* has one video only")
def test_of_a_video_that_was_made_again_a_network_sees_the_last(dataset, out):
    extract(dataset, out, shard_size=1)
    assert len(class_folders(out, subset="train")) == 2  # the manifest has been read
    others = [line for line in (out / NAME).read_text().splitlines(keepends=True) if "run/b" not in line]
    (out / NAME).write_text("".join(others))
    clips.write(dataset / "run/b.mkv", clips.random_frames(5, 16, 24, 77))
    extract(dataset, out, shard_size=1)
    found = pictures(class_folders(out, subset="train")) | pictures(class_folders(out, subset="test"))
    assert torch.equal(found["run/b"][0], dynpool.dynamic_image(dataset / "run/b.mkv"))
    assert torch.equal(found["run/a"][0], dynpool.dynamic_image(dataset / "run/a.mkv"))


@pytest.mark.filterwarnings("ignore:class .* has one video only")
def test_samples_that_are_not_where_the_manifest_says(dataset, out):
    extract(dataset, out, shard_size=1)
    listing = class_folders(out, test_fraction=0.01)
    assert listing[0].name == "run/b"
    begin = next(entry["begin"] for entry in lines(out) if entry.get("video") == "run/b")
    whole, shard = (out / "000000.tar").read_bytes(), out / "000000.tar"
    for data, reason in (
        (whole[1024:], "is not in its shard where manifest.jsonl says"),
        (whole[: begin + 600], "cannot be read from its shard: unexpected end of data"),
        (whole[: begin + 100], "is not in its shard where manifest.jsonl says"),
        (whole[:begin], "is not in its shard where manifest.jsonl says"),
        (b"\1" * len(whole), "is not in its shard where manifest.jsonl says"),
    ):
        shard.write_bytes(data)
        item = VideoDataset(listing, source="images", size=8)[0]
        assert item["video"] is None
        assert reason in item["notices"][0].reason
    shard.unlink()
    assert "No such file" in VideoDataset(listing, source="images", size=8)[0]["notices"][0].reason
    frames = VideoDataset(listing, size=8)[0]["notices"][0].reason
    assert "source 'images' wants those" in frames


def sample(shards: Shards, name: str, size: int = 700) -> Entry:
    shard, begin, end = shards.add(name, {"png": bytes(size)}, {}, None)
    shards.recorded()
    return Entry(name, "", images=1, shard=shard, begin=begin, end=end)


def test_what_was_not_recorded_of_a_shard_is_cut_off(tmp_path):
    shards = Shards(tmp_path, 10**6, [])
    kept = [sample(shards, "a"), sample(shards, "b")]
    sample(shards, "lost", 5000)
    shards.close()
    assert written(tmp_path) == ["000000.tar.part"]
    shards = Shards(tmp_path, 10**6, kept)
    assert all(map(shards.holds, kept))
    kept.append(sample(shards, "c"))
    shards.finish()
    assert written(tmp_path) == ["000000.tar"]
    assert sorted(members(tmp_path)) == ["a.json", "a.png", "b.json", "b.png", "c.json", "c.png"]
    assert (tmp_path / "000000.tar").stat().st_size == kept[-1].end + 1024  # and two blocks of zeros
    assert all(map(Shards(tmp_path, 10**6, kept).holds, kept))


def test_a_number_is_not_used_again(tmp_path):
    """Of shards that are there, or that the manifest knows and somebody has moved."""
    (tmp_path / "000002.tar").touch()
    moved = [Entry("a", "", shard="000004.tar", end=1024)]
    assert sample(Shards(tmp_path, 10**6, moved), "b").shard == "000005.tar"
    (tmp_path / "000007.tar").touch()
    assert sample(Shards(tmp_path, 10**6, moved), "b").shard == "000008.tar"


def test_videos_have_samples_of_their_own():
    assert [key_of(name) for name in ("a.b", "a%2eb", "a")] == ["a%2eb", "a%252eb", "a"]


def test_shards_are_closed_at_their_limit(tmp_path):
    shards = Shards(tmp_path, 3000, [])
    kept = [sample(shards, name) for name in "abc"]  # of 512 + 1024 and 512 + 512 bytes
    shards.finish()
    assert [entry.shard for entry in kept] == ["000000.tar", "000000.tar", "000001.tar"]
    assert [entry.end for entry in kept] == [2560, 5120, 2560]
    assert written(tmp_path) == ["000000.tar", "000001.tar"]
    assert not Shards(tmp_path, 3000, []).holds(Entry("d", "", shard="000007.tar", end=1))


def test_a_shard_of_which_nothing_was_recorded_is_made_anew(tmp_path):
    shards = Shards(tmp_path, 10**6, [])
    sample(shards, "lost")
    shards.close()
    shards = Shards(tmp_path, 10**6, [])
    assert sample(shards, "a").shard == "000000.tar"
    shards.finish()
    assert sorted(members(tmp_path)) == ["a.json", "a.png"]


def test_a_shard_that_was_cut_short_keeps_what_is_whole(tmp_path):
    shards = Shards(tmp_path, 10**6, [])
    entries = [sample(shards, "a"), sample(shards, "b")]
    shards.close()
    os.truncate(tmp_path / "000000.tar.part", entries[1].end - 1)
    shards = Shards(tmp_path, 10**6, entries)
    assert [shards.holds(entry) for entry in entries] == [True, False]
    sample(shards, "b")
    shards.finish()
    assert sorted(members(tmp_path)) == ["a.json", "a.png", "b.json", "b.png"]


# --- the manifest ---------------------------------------------------------------------------------------------------


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    manifest = Manifest(tmp_path, MADE)
    manifest.add(Entry("a", "1|2", images=3))
    manifest.add(Entry("b", "1|2", failed="no video"))
    manifest.add(Entry("a", "1|3", images=4))
    manifest.close()
    with (tmp_path / NAME).open("ab") as file:
        file.write(b'{"video": "c", "ver')
    manifest = Manifest(tmp_path, MADE)
    assert manifest.entries == {"a": Entry("a", "1|3", images=4), "b": Entry("b", "1|2", failed="no video")}
    manifest.add(Entry("c", ""))
    manifest.close()
    assert [line.get("video") for line in lines(tmp_path)] == [None, "a", "b", "a", "c"]


@pytest.mark.parametrize("text", ["", "{", '{"made": {"win'])
def test_a_first_line_that_was_cut_off_is_written_anew(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    Manifest(tmp_path, MADE).close()
    assert lines(tmp_path) == [{"made": MADE}]


def test_names_that_are_no_text_are_kept(tmp_path):
    entry = Entry(os.fsdecode(b"\xff/\xe4"), "")
    manifest = Manifest(tmp_path, MADE)
    manifest.add(entry)
    manifest.close()
    manifest = Manifest(tmp_path, MADE)
    assert manifest.entries == {entry.video: entry}
    manifest.close()


@pytest.mark.parametrize(
    "text",
    [
        "no manifest\n",
        "no manifest",
        '{"made": {"window": 3}}\n{"film": "a"}\n',
        "[]\n",
        '{"videos": ["a", "b"]}',
        '{"made": 3}\n',
        '{"a": 1}\n{"b": 2}',
    ],
)
def test_other_files_are_no_manifests(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(ValueError, match="must be a manifest of dynpool"):
        Manifest(tmp_path, MADE)
    assert (tmp_path / NAME).read_text() == text


def test_two_runs_do_not_share_a_folder(dataset, out):
    pytest.importorskip("fcntl", reason="has no locks")
    with Extraction(dataset, out, Recipe()), pytest.raises(ValueError, match="two runs at once"):
        extract(dataset, out)
    assert len(extract(dataset, out).done) == 3


# --- processes that die ---------------------------------------------------------------------------------------------


def dies_at_three(item: int) -> int | str:
    if item == 3:
        os._exit(9)
    return 2 * item


def test_only_the_item_that_kills_its_process_is_lost():
    results = list(in_processes(dies_at_three, range(8), 2, str))
    assert Counter(results) == Counter({(item, DIED if item == 3 else 2 * item): 1 for item in range(8)})


@pytest.mark.skipif(not hasattr(select, "poll"), reason="pipes cannot be asked here")
def test_processes_by_the_hundred_can_tell_that_they_have_begun():
    begun = threading.Event()
    with _pool(1, begun) as (pool, listen):
        (told,) = pool._initargs
        listen()
        assert not begun.is_set()
        for _ in range(1000):
            begun.clear()
            assert select.select([], [told], [], 0)[1]
            told.send(None)
            listen()
            assert begun.is_set()


def ends_at_once(told):
    os._exit(1)


@pytest.mark.parametrize("others_have_begun", [True, False])
def test_a_process_that_does_not_start_costs_one_item_where_others_did(monkeypatch, others_have_begun):
    """As where memory runs out now and then."""
    monkeypatch.setattr("dynpool.extract.workers._begin", ends_at_once)
    begun = threading.Event()
    if others_have_begun:
        begun.set()
    running = _until_broken(str, iter("ab"), 1, begun)
    with pytest.raises(StopIteration if others_have_begun else CannotStart) as ended:
        next(running)
    if others_have_begun:
        assert ended.value.value == ["a"]


@pytest.mark.parametrize("timeout", [1e11, float("inf")])
def test_more_time_than_a_timer_can_count(dataset, out, timeout):
    assert not extract(dataset, out, timeout=timeout).failed


def test_a_list_of_nothing_is_refused(dataset, out, tmp_path):
    (tmp_path / "list.txt").write_text(" \n\n")
    done = command.run("extract", dataset, "-o", out, "--list", tmp_path / "list.txt", code=2)
    assert done.output == f"dynpool extract: --list {tmp_path / 'list.txt'} names no video\n"


def test_a_folder_of_images_may_hold_hidden_folders(out, tmp_path):
    """As file managers and notebooks leave them: the folder is a video all the same."""
    folder = tmp_path / "videos" / "run" / "a"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(folder / f"{number}.png")
    assert [video.name for video in find(tmp_path / "videos")] == ["run/a"]


@pytest.mark.parametrize("fed", ["file", "stdin"])
def test_a_script_without_a_guard_is_told_so(dataset, out, tmp_path, fed):
    script = tmp_path / "script.py"
    script.write_text(f"from dynpool.extract import extract\nextract({str(dataset)!r}, {str(out)!r}, workers=1)\n")
    done = subprocess.run(
        [sys.executable, script if fed == "file" else "-"], input=script.read_text(), text=True, capture_output=True
    )
    assert done.returncode == 1
    assert "if __name__ == '__main__'" in done.stderr.splitlines()[-1]
    assert lines(out)[1:] == []


def test_what_a_worker_hands_over_is_written_at_once(dataset, tmp_path):
    """A pipe that a killed one has half filled would keep the others waiting for good."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    recipe, video = Recipe(window=2, stride=1), find(dataset)[0]
    kept, handed = Work(recipe, None, None, scratch)(video), Work(recipe, None, None, None)(video)
    assert kept.images > 1
    assert len(pickle.dumps(kept)) < select.PIPE_BUF
    assert kept.entry(video) == handed.entry(video)
    assert kept.taken() == handed.taken()
    assert list(scratch.iterdir()) == []


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="has no timers")
def test_a_file_system_that_does_not_answer_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr("dynpool.extract.making._GRACE", 0.1)
    monkeypatch.setattr("dynpool.extract.making.Pictures", lambda *_: time.sleep(600))
    work = Work(Recipe(timeout=0.2), None, tmp_path, tmp_path)
    assert work(Found("a", "s3://bucket/a.mkv")).failed == "takes longer than timeout = 0.2 s"


def tells_and_sleeps(place: Path) -> None:
    place.write_text(str(os.getpid()))
    try:
        time.sleep(600)
    finally:
        place.with_suffix(".left").touch()


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").exists() and ") Z " in Path(f"/proc/{pid}/stat").read_text()


def eventually(condition, seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def quickly_or_sleeping(place: Path) -> str:
    return "quick" if place.name == "quick" else tells_and_sleeps(place)


def test_processes_end_when_they_are_not_wanted(tmp_path):
    place = tmp_path / "asleep"
    results = in_processes(quickly_or_sleeping, [tmp_path / "quick", place], 2, str)
    assert next(results) == (tmp_path / "quick", "quick")
    assert eventually(lambda: place.exists() and place.read_text())
    results.close()
    assert is_gone(int(place.read_text()))
    assert place.with_suffix(".left").exists()  # what it was at was cleaned up


class Swallows:
    """Exceptions, as Python does in `__del__`."""

    def __del__(self):
        end = time.monotonic() + 3
        while time.monotonic() < end:
            time.sleep(0.05)


def kills_itself_or_swallows(item: int) -> int:
    if item == 0:
        time.sleep(1.5)
        os.kill(os.getpid(), signal.SIGKILL)
    swallows = Swallows()
    del swallows
    return item


def test_a_worker_that_does_not_hear_is_ended(tmp_path):
    """When another one was killed, as by the system that has no memory left."""
    program = (
        "from test_extract import kills_itself_or_swallows\n"
        "from dynpool.extract.workers import in_processes\n"
        "if __name__ == '__main__':\n"
        "    print(sorted(in_processes(kills_itself_or_swallows, range(3), 2, lambda _: 'died')))\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True, timeout=300
    )
    assert done.stdout == "[(0, 'died'), (1, 1), (2, 2)]\n"


def test_processes_end_with_the_one_that_began_them(tmp_path):
    place = tmp_path / "asleep"
    program = (
        "import sys; from pathlib import Path; from test_extract import tells_and_sleeps\n"
        "from dynpool.extract.workers import in_processes\n"
        "if __name__ == '__main__': list(in_processes(tells_and_sleeps, [Path(sys.argv[1])], 1, str))"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    process = subprocess.Popen([sys.executable, "-c", program, place], env={**os.environ, "PYTHONPATH": paths})
    assert eventually(lambda: place.exists() and place.read_text())
    process.kill()
    process.wait()
    assert eventually(lambda: is_gone(int(place.read_text())))


def test_a_worker_that_outlives_its_killed_run(dataset, out, monkeypatch):
    """For a moment: it writes while the next run clears away what it wrote."""
    scratch, remove, kept = out / ".dynpool-extract", shutil.rmtree, []
    (scratch / "left").mkdir(parents=True)

    def remove_later(path, *rest, **options):
        if Path(path) == scratch and not kept:
            kept.append(path)
        else:
            remove(path, *rest, **options)

    monkeypatch.setattr(shutil, "rmtree", remove_later)
    assert sorted(extract(dataset, out).done) == ["run/a", "run/b", "walk/c"]
    assert kept
    assert written(out) == [NAME, "run/a.png", "run/b.png", "walk/c.png"]


@pytest.mark.parametrize("shard_size", [None, 1])
def test_a_killed_run_loses_nothing_and_the_next_repeats_nothing(tmp_path, shard_size):
    names = [f"{kind}/{number}.mkv" for kind in ("run", "walk") for number in range(6)]
    dataset, out = make_dataset(tmp_path / "videos", *names, frames=60), tmp_path / "out"
    shards = [] if shard_size is None else ["--shard-size", "1"]
    process = subprocess.Popen(
        [*PROGRAM, dataset, "-o", out, "--window", "3", "--stride", "2", "--workers", "1", *shards]
    )
    manifest = out / NAME
    assert eventually(lambda: manifest.exists() and manifest.read_bytes().count(b"\n") > 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    recorded = {line["video"] for line in lines(out)[1:]}
    assert 0 < len(recorded) < len(names)  # or this was no test
    (out / ".dynpool-extract/left").mkdir(parents=True, exist_ok=True)  # as a worker that is killed leaves it
    report = extract(dataset, out, **WINDOWS, shard_size=shard_size)
    assert recorded <= report.before.keys()
    assert {*report.before, *report.done} == {name.removesuffix(".mkv") for name in names}
    assert not list(out.glob(".dynpool*"))
    whole = tmp_path / "whole"
    extract(dataset, whole, **WINDOWS, shard_size=shard_size)
    if shard_size is None:
        assert written(out) == written(whole)
        assert all((out / name).read_bytes() == (whole / name).read_bytes() for name in written(out) if name != NAME)
    else:
        assert members(out) == members(whole)
    assert Counter(line["video"] for line in lines(out)[1:]).most_common(1)[0][1] == 1


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="has no process groups")
@pytest.mark.parametrize("when", ["workers start", "they work"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])  # to all processes: as of timeout, Ctrl-C, a terminal
def test_signals_end_a_run_cleanly(tmp_path, name, when):
    number = getattr(signal, name)
    dataset = make_dataset(tmp_path / "videos", *[f"{number}.mkv" for number in range(12)], frames=60)
    out = tmp_path / "out"
    handler = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    hears = signal.signal(number, handler)  # what runs in the background, or by nohup, may not
    process = subprocess.Popen(
        [*PROGRAM, dataset, "-o", out, "--window", "3", "--workers", "2"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(number, hears)
    done = 0 if when == "workers start" else 2
    assert eventually(lambda: (out / NAME).exists() and (out / NAME).read_bytes().count(b"\n") > done)
    if when == "workers start":
        time.sleep(0.3)
    os.killpg(process.pid, number)
    _, said = process.communicate()
    assert process.returncode == 128 + number
    assert said == ""
    assert not list(out.glob(".dynpool*"))


# --- Ray ------------------------------------------------------------------------------------------------------------


def test_ray_does_the_same(dataset, out, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="needs ray")
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")):
        monkeypatch.setenv(name, value)
    (dataset / "run/bad.mkv").write_bytes(b"no video")
    report = extract(dataset, out, **WINDOWS, ray="local", shard_size=1)
    assert (sorted(report.done), list(report.failed)) == (["run/a", "run/b", "walk/c"], ["run/bad"])
    extract(dataset, tmp_path / "here", **WINDOWS, shard_size=1)
    assert members(out) == members(tmp_path / "here")


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_did(dataset, out, processes):
    (dataset / "run/bad.mkv").write_bytes(b"no video")
    (dataset / "run/hurt.mp4").write_bytes(clips.damaged(clips.random_frames(7, 16, 24), 2))
    result = run(dataset, "-o", out, "--window", 3, "--stride", 2, code=1)
    assert "run/bad: FAILED: Invalid data" in result.output
    assert "run/hurt: 1 part damaged or missing" in result.output
    assert "4 videos done, 1 failed: 12 images of 27 frames, " in result.output
    (dataset / "run/bad.mkv").unlink()
    assert "0 videos done, 4 done before: 0 images" in run(dataset, "-o", out, "--window", 3, "--stride", 2).output


def test_what_the_command_refuses(dataset, out, tmp_path):
    (tmp_path / "file").touch()
    for arguments, message in (
        ([dataset, "-o", "s3://bucket/images"], "out must be a folder on this machine, got 's3://bucket/images'"),
        ([tmp_path / "nowhere", "-o", out], "source must be a folder or URL with videos"),
        ([dataset, "-o", out, "--stride", 2], "--stride 2 has no meaning without --window"),
        ([dataset, "-o", out, "--shard-size", 0], "Invalid value for '--shard-size'"),
        ([dataset, "-o", out, "--workers", 0], "Invalid value for '--workers'"),
        ([dataset, "-o", tmp_path / "file"], "File exists"),
        ([dataset, "-o", out, "--list", tmp_path / "none.txt"], "No such file"),
    ):
        result = run(*arguments, code=2)
        assert message in result.output
        assert "Traceback" not in result.output
