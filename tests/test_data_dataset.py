"""Videos as a network sees them: sources, geometry, what cannot be read, and the same with any number of workers."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from dataclasses import replace

import clips
import numpy as np
import pytest
import torch
from PIL import Image

import dynpool
from dynpool.data import Geometry, Sampling, VideoDataset, class_folders, collate, loader, measure
from dynpool.data.cache import FolderCache, make_cache
from dynpool.data.dataset import Draw
from dynpool.decoder import Decoder
from dynpool.files import TimeExceeded, VideoError
from dynpool.video import read_clip

LENGTHS = {"run": (7, 12, 9), "walk": (5, 8, 11)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos") / "train"
    for label, lengths in LENGTHS.items():
        (folder / label).mkdir(parents=True)
        for number, length in enumerate(lengths):
            clips.write(folder / label / f"{number}.mkv", clips.random_frames(length, 20, 30, seed=length))
    (folder.parent / "test").symlink_to(folder)
    return folder.parent


@pytest.fixture(scope="module")
def listing(root):
    return class_folders(root)


def plain(listing, **options):
    """Frames at their own size."""
    return VideoDataset(listing, **{"size": None, **options})


def test_items_are_the_frames(listing, root):
    item = plain(listing)[1]
    assert torch.equal(item["video"], read_clip(root / "train/run/1.mkv").frames)
    assert (item["label"], item["name"], item["index"], item["notices"]) == (0, "run/1", 1, [])
    assert plain(listing)[-1]["name"] == "walk/2"
    with pytest.raises(IndexError):
        plain(listing)[6]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
@pytest.mark.parametrize("source", ["frames", "dynamic_images", "flow"])
def test_pipes_are_no_videos(source, tmp_path):
    for label in LENGTHS:
        (tmp_path / "train" / label).mkdir(parents=True)
        os.mkfifo(tmp_path / "train" / label / "pipe.mkv")
    (tmp_path / "test").symlink_to(tmp_path / "train")
    dataset = VideoDataset(class_folders(tmp_path), source=source, on_error="raise")
    with pytest.raises(VideoError, match="is no regular file"):
        dataset[0]


@pytest.mark.parametrize("cache", [None, "memory"])
@pytest.mark.parametrize(
    ("source", "options"),
    [("frames", {}), ("frames", {"sampling": Sampling(frames=2)}), ("dynamic_images", {}), ("flow", {})],
)
def test_videos_that_take_too_long(listing, source, options, cache):
    dataset = VideoDataset(listing, source=source, cache=cache, on_error="raise", timeout=1e-9, **options)
    with pytest.raises(VideoError, match="takes longer than timeout = 1e-09 s"):
        dataset[0]
    with pytest.raises(ValueError, match="timeout must be a positive number of seconds, got 0"):
        VideoDataset(listing, timeout=0)


def test_a_video_that_takes_too_long_is_not_read_again(listing, monkeypatch):
    """Of which a few frames are wanted."""

    def late(*_):
        raise TimeExceeded("a video", "takes longer than timeout = 1 s")
        yield

    monkeypatch.setattr(Decoder, "frames", late)
    monkeypatch.setattr("dynpool.data.reading.read_frames", None)
    with pytest.raises(VideoError, match="takes longer"):
        VideoDataset(listing, sampling=Sampling(frames=2), on_error="raise", timeout=1)[0]


def test_windows_of_frames_lie_one_after_another(listing):
    dataset = plain(listing, sampling=Sampling(4, 3))
    frames = plain(listing)[0]["video"]
    assert torch.equal(dataset[0]["video"], frames[[0, 1, 2, 3, 3, 4, 5, 6]])
    assert dataset.clip_frames == 4


@pytest.mark.parametrize("size", [None, 16])
@pytest.mark.parametrize("sampling", [Sampling(frames=2), Sampling(3, 7, max_windows=1), Sampling(2, 6, jitter=True)])
def test_only_frames_that_are_used_are_converted(listing, sampling, size, tmp_path, monkeypatch):
    cached = plain(listing, sampling=sampling, size=size, cache="memory")
    with monkeypatch.context() as patch:
        for module in ("reading", "sources"):
            patch.setattr(f"dynpool.data.{module}.read_frames", lambda *a, **k: pytest.fail("all of it was read"))
        videos = [plain(listing, sampling=sampling, size=size)[index]["video"] for index in range(3)]
    assert all(torch.equal(video, cached[index]["video"]) for index, video in enumerate(videos))


def test_frames_have_the_size_of_the_first_though_it_is_not_used(tmp_path):
    """As where all of them are read."""
    small, large = (
        clips.encoded([np.full((h, w, 3), 99, np.uint8)] * 3, codec="mjpeg", pix_fmt="yuvj420p", format="mjpeg")
        for h, w in ((16, 24), (32, 48))
    )
    (tmp_path / "train" / "run").mkdir(parents=True)
    (tmp_path / "test").symlink_to(tmp_path / "train")
    (tmp_path / "train" / "run" / "a.avi").write_bytes(small + large)
    listing = class_folders(tmp_path)
    assert plain(listing)[0]["video"].shape == (6, 3, 16, 24)
    assert plain(listing, sampling=Sampling(frames=1))[0]["video"].shape == (1, 3, 16, 24)


def test_of_what_was_miscounted_all_frames_are_read(listing, monkeypatch):
    expected = plain(listing)[1]["video"][[3, 9]]  # of twelve
    monkeypatch.setattr(Decoder, "expected", 8)
    assert torch.equal(plain(listing, sampling=Sampling(frames=2))[1]["video"], expected)


def test_of_what_was_cut_off_all_frames_are_read(tmp_path):
    """An MP4 whose header, which counts its frames, lies before them."""
    path = tmp_path / "train" / "run" / "a.mp4"
    path.parent.mkdir(parents=True)
    (tmp_path / "test").symlink_to(tmp_path / "train")
    frames = clips.random_frames(60, 32, 48)
    clips.write(path, frames, "mpeg4", "yuv420p", "mp4", muxing={"movflags": "faststart"})
    os.truncate(path, path.stat().st_size * 2 // 5)
    item = plain(class_folders(tmp_path), sampling=Sampling(frames=2))[0]
    all_frames = read_clip(path).frames
    assert torch.equal(item["video"], all_frames[[len(all_frames) // 4, len(all_frames) * 3 // 4]])
    assert "damaged or missing" in item["notices"][0].reason


@pytest.mark.parametrize("frames", [1, 2])
def test_of_what_is_damaged_all_frames_are_read(broken, frames):
    dataset = plain(broken, sampling=Sampling(frames=frames))
    all_frames = read_clip(broken[1].path).frames
    assert len(all_frames) == 5  # of six
    assert torch.equal(dataset[1]["video"], all_frames[[[2], [1, 3]][frames - 1]])
    assert "1 part damaged or missing" in dataset[1]["notices"][0].reason
    assert dataset[2]["video"] is None
    assert "Invalid data" in dataset[2]["notices"][0].reason


@pytest.mark.parametrize(
    "options", [{}, {"method": "max"}, {"method": "exact"}, {"nonlinearity": "identity", "time_average": False}]
)
def test_dynamic_images_are_those_of_the_function(listing, options):
    video = listing[1].path
    whole = plain(listing, source="dynamic_images", **options)[1]["video"]
    assert torch.equal(whole, dynpool.dynamic_image(video, **options)[None])
    windows = plain(listing, source="dynamic_images", sampling=Sampling(5, 2), **options)[1]["video"]
    assert torch.equal(windows, dynpool.dynamic_images(video, window=5, stride=2, **options))
    assert plain(listing, source="dynamic_images", sampling=Sampling(5, 2), **options).clip_frames == 1


def test_dynamic_images_of_all_windows_with_jitter(listing):
    dataset = plain(listing, source="dynamic_images", sampling=Sampling(5, 3, jitter=True))
    possible = [dynpool.dynamic_images(listing[1].path, window=5, stride=3, start=offset) for offset in range(3)]
    seen = set()
    for epoch in range(20):
        dataset.set_epoch(epoch)
        images = dataset[1]["video"]
        seen.update(
            offset
            for offset, expected in enumerate(possible)
            if images.shape == expected.shape and (images.int() - expected.int()).abs().max() <= 1  # as below
        )
    assert seen == {0, 1, 2}


def test_dynamic_images_with_jitter_and_backwards(listing):
    sampling = Sampling(5, 3, jitter=True, reverse=0.5, max_windows=2)
    dataset = plain(listing, source="dynamic_images", sampling=sampling)
    frames = plain(listing)[1]["video"]
    windows = {"window": 5, "stride": 3}
    possible = [dynpool.dynamic_images(listing[1].path, start=offset, **windows) for offset in range(3)]
    possible += [dynpool.dynamic_images(frames.flip(0)[offset:], **windows) for offset in range(3)]
    seen = set()
    for epoch in range(40):
        dataset.set_epoch(epoch)
        pair = dataset[1]["video"]
        matches = [
            (way, i, j)
            for way, images in enumerate(possible)
            for i in range(len(images))
            for j in range(i + 1, len(images))
            if (pair.int() - images[[i, j]].int()).abs().max() <= 1  # α is rounded for each batch of frames
        ]
        assert matches
        seen.update(way for way, _, _ in matches)
    assert seen == set(range(6))


def test_videos_that_are_played_forward_need_no_frames(listing, broken, monkeypatch):
    sampling = Sampling(5, 3, jitter=True)
    want = [plain(videos, source="dynamic_images", sampling=sampling)[1] for videos in (listing, broken)]
    monkeypatch.setattr("dynpool.data.reading.read_clip", lambda *a, **k: pytest.fail("decoded to RGB"))
    for videos, expected in zip((listing, broken), want, strict=True):
        item = plain(videos, source="dynamic_images", sampling=sampling)[1]
        assert torch.equal(item["video"], expected["video"])
        assert item["notices"] == expected["notices"]
    assert "1 part damaged or missing" in item["notices"][0].reason


@pytest.mark.parametrize("cache", [None, "memory"])
@pytest.mark.parametrize("reverse", [0, 1])
def test_jitter_beyond_what_can_be_decoded(cache, reverse, tmp_path):
    """Of twelve packets, three: windows were to begin at frame 0 … 10."""
    for name in ("train/run/a.mp4", "test/run/b.mp4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(clips.damaged(clips.random_frames(12), *range(3, 12)))
    sampling = Sampling(2, 50, jitter=True, reverse=reverse)
    dataset = plain(class_folders(tmp_path), source="dynamic_images", sampling=sampling, cache=cache)
    for epoch in range(20):
        dataset.set_epoch(epoch)
        assert dataset[0]["video"].shape == (1, 3, 13, 17)


def test_pictures_made_before(listing, root, tmp_path):
    for video in listing:
        images = dynpool.dynamic_images(video.path, window=5, stride=3)
        (tmp_path / "train" / video.name).parent.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "train" / f"{video.name}_{number:04d}.png")
    (tmp_path / "test").symlink_to(tmp_path / "train")
    pictures = class_folders(tmp_path)
    assert [(v.name, v.label) for v in pictures] == [(v.name, v.label) for v in listing]
    for limit in (None, 2):
        sampling = Sampling(5, 3, max_windows=limit)
        ours = plain(pictures, source="images", sampling=Sampling(max_windows=limit))
        theirs = plain(listing, source="dynamic_images", sampling=sampling)
        assert all(torch.equal(a["video"], b["video"]) for a, b in zip(ours, theirs, strict=True))


def test_a_folder_of_frames_is_a_video(listing, root, tmp_path):
    frames = clips.random_frames(7, 20, 30, seed=7)
    for name in ("train/run/0", "train/walk/0", "test/run/9"):
        (tmp_path / name).mkdir(parents=True)
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(tmp_path / name / f"{number + 1}.png")
    folders = class_folders(tmp_path)
    assert torch.equal(plain(folders)[0]["video"], plain(listing)[0]["video"])
    options = {"source": "dynamic_images", "sampling": Sampling(5, 2)}
    ours, theirs = (plain(videos, **options)[0]["video"].int() for videos in (folders, listing))
    assert (ours - theirs).abs().max() <= 1  # a file need not go through RGB frames


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """A square that moves to the right, large enough for flow."""
    folder = tmp_path_factory.mktemp("moving") / "train" / "run"
    folder.mkdir(parents=True)
    frames = clips.random_frames(12, 48, 64) // 8
    for t, frame in enumerate(frames):
        frame[16:32, 4 + 3 * t : 20 + 3 * t] = clips.random_frames(1, 16, 16)[0]
    clips.write(folder / "0.mkv", frames)
    clips.write(folder / "1.mkv", frames[:1])
    (folder.parents[1] / "test").symlink_to(folder.parent)
    return class_folders(folder.parents[1])


def test_dynamic_images_of_flow(moving):
    pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
    from dynpool.models import optical_flow

    flow = optical_flow(plain(moving)[0]["video"])
    options = {"window": 5, "stride": 3, "nonlinearity": "identity"}
    windows = plain(moving, source="flow", sampling=Sampling(5, 3))[0]["video"]
    assert torch.equal(windows, dynpool.dynamic_images(flow, **options))
    whole = plain(moving, source="flow", sampling=Sampling(reverse=1))[0]["video"]
    back = optical_flow(plain(moving)[0]["video"].flip(0))
    assert torch.equal(whole, dynpool.dynamic_image(back, nonlinearity="identity")[None])
    assert back[..., 20:28, 24:40].float()[:, 0].mean() < 127 < flow[..., 20:28, 24:40].float()[:, 0].mean()


def test_one_frame_has_no_flow(moving):
    pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
    item = plain(moving, source="flow")[1]
    assert item["video"] is None
    assert "has no flow: frames must be at least 2" in item["notices"][0].reason


# --- geometry -------------------------------------------------------------------------------------------------------


def coordinates(height=20, width=30):
    """Frames whose red is the row and whose green is the column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, rows]).to(torch.uint8).expand(3, 3, height, width)


def test_centre_crop():
    assert torch.equal(Geometry(16, resize=20)(coordinates(), np.random.default_rng(0)), coordinates()[..., 2:18, 7:23])
    assert Geometry(10).scale(coordinates()).shape == (3, 3, 10, 15)
    assert Geometry(np.int64(10)).scale(coordinates()).shape == (3, 3, 10, 15)
    assert [Geometry(10, crop=crop, flip=flip).draws for crop in ("centre", "random") for flip in (False, True)] == [
        False,
        True,
        True,
        True,
    ]
    assert Geometry(10, resize=(10, 10)).scale(coordinates()).shape == (3, 3, 10, 10)
    assert Geometry(None).scale(coordinates()).shape == (3, 3, 20, 30)


def test_random_crops_and_flips_are_the_same_for_all_frames():
    geometry = Geometry(16, resize=20, crop="random", flip=True)
    corners, flips = set(), 0
    for seed in range(300):
        out = geometry(coordinates(), np.random.default_rng(seed))
        assert out.shape == (3, 3, 16, 16)
        assert torch.equal(out, out[:1].expand_as(out))
        top, left = int(out[0, 0, 0, 0]), int(out[0, 1, 0].min())
        flipped = bool(out[0, 1, 0, 0] > out[0, 1, 0, 1])
        expected = coordinates()[..., top : top + 16, left : left + 16]
        assert torch.equal(out, expected.flip(-1) if flipped else expected)
        corners.add((top, left))
        flips += flipped
    assert {top for top, _ in corners} == set(range(5))
    assert {left for _, left in corners} == set(range(15))
    assert abs(flips - 150) < 5 * 8.7


def test_smaller_squares_are_scaled_up():
    geometry = Geometry(16, resize=20, crop="random", min_scale=0.5)
    spans = [int(np.ptp(geometry(coordinates(), np.random.default_rng(seed))[0, 0].numpy())) for seed in range(100)]
    assert min(spans) < 10
    assert max(spans) >= 14
    assert geometry.without_chance() == Geometry(16, resize=20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size must be a positive integer"),
        ({"size": 20, "resize": 16}, "resize must leave room for a crop of size 20, got 16"),
        ({"size": 20, "resize": (40, 16)}, r"resize must leave room for a crop of size 20, got \(40, 16\)"),
        ({"crop": "corner"}, "crop must be 'centre' or 'random', got 'corner'"),
        ({"min_scale": 0}, "min_scale must be"),
        ({"min_scale": 0.5}, r"min_scale = 0\.5 has no meaning but with crop = 'random', got 'centre'"),
        ({"size": None, "crop": "random"}, "crop = 'random' has no meaning without size"),
    ],
)
def test_geometry_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        Geometry(**arguments)


# --- batches --------------------------------------------------------------------------------------------------------


def test_batches_are_padded(listing):
    dataset = VideoDataset(listing, size=16)
    batch = collate([dataset[0], dataset[1]])
    assert batch["video"].shape == (2, 12, 3, 16, 16)
    assert batch["video"].dtype == torch.uint8
    assert batch["lengths"].tolist() == [7, 12]
    assert torch.equal(batch["video"][0, :7], dataset[0]["video"])
    assert not batch["video"][0, 7:].any()
    assert batch["video"].permute(0, 1, 3, 4, 2).is_contiguous()  # as decoders write it, and convolutions like it
    assert (batch["label"].tolist(), batch["name"], batch["index"].tolist()) == ([0, 0], ["run/0", "run/1"], [0, 1])


@pytest.mark.parametrize("source", ["frames", "dynamic_images"])
def test_another_default_device(listing, source):
    dataset = plain(listing, source=source)
    expected = collate([dataset[0], dataset[1]])
    with torch.device("meta"):
        batch = collate([dataset[0], dataset[1]])
        assert collate([])["label"].tolist() == []
    for name in ("video", "lengths", "label", "index"):
        assert torch.equal(batch[name], expected[name])


def random_dataset(listing, **options):
    sampling = Sampling(4, 3, max_windows=2, jitter=True, reverse=0.5)
    return VideoDataset(listing, sampling=sampling, size=16, resize=18, crop="random", flip=True, seed=5, **options)


def test_loaders_are_of_video_datasets(listing):
    part = torch.utils.data.Subset(random_dataset(listing), [0])
    with pytest.raises(
        TypeError, match=r"dataset must be a VideoDataset, got Subset; .* collate_fn=dynpool.data.collate"
    ):
        loader(part)
    (batch,) = torch.utils.data.DataLoader(part, collate_fn=collate)
    assert batch["index"].tolist() == [0]


def all_batches(dataset, num_workers, numbers=(0, 1, 2)):
    batches = loader(dataset, 4, shuffle=True, num_workers=num_workers)
    made = []
    for epoch in numbers:
        batches.sampler.set_epoch(epoch)
        made.extend(batches)
    return made


@pytest.mark.parametrize("source", ["frames", "dynamic_images"])
def test_the_same_with_any_number_of_workers(listing, source):
    alone = all_batches(random_dataset(listing, source=source), 0)
    for workers in (1, 2):
        together = all_batches(random_dataset(listing, source=source), workers)
        for expected, got in zip(alone, together, strict=True):
            assert expected["name"] == got["name"]
            assert torch.equal(expected["video"], got["video"])
    assert alone[0]["name"] != alone[2]["name"]
    by_name = [{n: v for b in alone[i : i + 2] for n, v in zip(b["name"], b["video"], strict=True)} for i in (0, 2, 4)]
    assert not torch.equal(by_name[0]["run/1"], by_name[1]["run/1"])  # other crops in another epoch
    again = all_batches(random_dataset(listing, source=source), 0, numbers=(2,))
    assert all(torch.equal(a["video"], b["video"]) for a, b in zip(alone[4:], again, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_each_time_through_a_loader_is_an_epoch(listing, workers):
    batches = loader(random_dataset(listing), 4, shuffle=True, num_workers=workers)
    unasked = [batch for _ in range(3) for batch in batches]
    batches.sampler.set_epoch(1)
    asked = [batch for _ in range(2) for batch in batches]
    expected = all_batches(random_dataset(listing), 0)
    for found, wanted in ((unasked, expected), (asked, expected[len(expected) // 3 :])):
        for a, b in zip(found, wanted, strict=True):
            assert a["name"] == b["name"]
            assert torch.equal(a["video"], b["video"])


@pytest.mark.parametrize("source", ["frames", "dynamic_images"])
@pytest.mark.parametrize("where", ["memory", "folder"])
def test_a_cache_changes_nothing_but_the_time(listing, source, where, tmp_path, monkeypatch):
    expected = all_batches(random_dataset(listing, source=source), 0)
    cached = random_dataset(listing, source=source, cache="memory" if where == "memory" else tmp_path / "cache")
    for _ in range(2):
        got = all_batches(cached, 0)
        assert all(torch.equal(a["video"], b["video"]) for a, b in zip(expected, got, strict=True))
    monkeypatch.setattr("dynpool.data.reading.read_clip", lambda *a, **k: pytest.fail("read again"))
    again = cached if where == "memory" else random_dataset(listing, source=source, cache=tmp_path / "cache")
    got = all_batches(again, 0)
    assert all(torch.equal(a["video"], b["video"]) for a, b in zip(expected, got, strict=True))


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_a_cache_keeps_apart_what_differs(listing, where, tmp_path):
    images = {"source": "dynamic_images"}
    several = [{}, {"size": 16}, {"size": 16, "resize": (18, 22)}]
    several += [images | more for more in (*several, {"method": "mean"}, {"nonlinearity": "identity"})]
    several.append(images | {"time_average": False})
    several += [images | {"sampling": Sampling(*windows)} for windows in ((5, 2), (4, 2), (5, 3))]
    several.append(images | {"sampling": Sampling(reverse=1)})
    if importlib.util.find_spec("cv2"):
        several += [{"source": "flow"}, {"source": "flow", "method": "mean"}]
    expected = [plain(listing, **options)[1]["video"] for options in several]
    assert not any(map(torch.equal, *zip(*itertools.combinations(expected, 2), strict=True)))
    cache = make_cache("memory" if where == "memory" else tmp_path)
    for _ in range(2):
        for options, video in zip(several, expected, strict=True):
            dataset = plain(listing, cache="memory", **options)
            dataset._load = replace(dataset._load, cache=cache)  # one for all
            assert torch.equal(dataset[1]["video"], video), options


def test_flow_with_jitter_is_the_same_from_a_cache(listing):
    pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
    sampling = Sampling(5, 3, jitter=True)  # of seven frames, whose six flows leave room for one
    datasets = [plain(listing, source="flow", sampling=sampling, cache=cache) for cache in (None, "memory")]
    seen = []
    for epoch in range(12):
        for dataset in datasets:
            dataset.set_epoch(epoch)
        video, kept = (dataset[0]["video"] for dataset in datasets)
        assert torch.equal(video, kept)
        seen.append(video)
    assert not all(torch.equal(seen[0], video) for video in seen)


@pytest.mark.parametrize("where", ["memory", "folder"])
@pytest.mark.parametrize("source", ["frames", "dynamic_images"])
def test_what_is_kept_is_not_the_caller_s(listing, source, where, tmp_path):
    dataset = VideoDataset(listing, source=source, size=None, cache="memory" if where == "memory" else tmp_path)
    first = dataset[0]["video"]
    expected = first.clone()
    for video in (first, dataset[0]["video"]):  # as it was made, and as it was kept
        assert torch.equal(video, expected)
        video.zero_()
    assert torch.equal(dataset[0]["video"], expected)


def test_a_cache_that_cannot_be_written_is_done_without(listing, tmp_path, monkeypatch, caplog):
    def full(file, array):
        raise OSError("1024 requested and 0 written")

    right = plain(listing)
    dataset = plain(listing, cache=tmp_path / "cache", on_error="raise")
    with monkeypatch.context() as patch:
        patch.setattr("dynpool.data.cache.np.save", full)
        for index in range(2):
            item = dataset[index]
            assert torch.equal(item["video"], right[index]["video"])
            assert not item["notices"]
    assert [record.message for record in caplog.records] == [
        f"cache {tmp_path / 'cache'} cannot be written, and nothing more is kept: 1024 requested and 0 written"
    ]
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="cache cannot be made a folder"):
        FolderCache(tmp_path / "file")


def test_processes_of_one_number_share_a_cache(tmp_path, monkeypatch):
    """As in two containers."""
    monkeypatch.setattr("os.getpid", lambda: 1)
    first, second = FolderCache(tmp_path), FolderCache(tmp_path)
    real = np.save

    def save_while_the_other_does(file, array):
        monkeypatch.setattr("dynpool.data.cache.np.save", real)
        second.put("key", torch.arange(5))
        real(file, array)

    monkeypatch.setattr("dynpool.data.cache.np.save", save_while_the_other_does)
    first.put("key", torch.arange(5))
    assert torch.equal(FolderCache(tmp_path).get("key"), torch.arange(5))
    assert first._writable
    assert len(list(tmp_path.iterdir())) == 1


def test_a_changed_file_is_not_taken_from_the_cache(tmp_path):
    for name in ("train/run/a.mkv", "test/run/b.mkv"):
        (tmp_path / name).parent.mkdir(parents=True)
        clips.write(tmp_path / name, clips.random_frames(5))
    dataset = plain(class_folders(tmp_path), cache=tmp_path / "cache")
    before = dataset[0]["video"]
    clips.write(tmp_path / "train/run/a.mkv", clips.random_frames(6, seed=3))
    assert len(before) == 5
    assert len(dataset[0]["video"]) == 6


def test_processes_share_the_videos(listing):
    dataset = plain(listing)
    parts = [loader(dataset, 1, shuffle=True, rank=rank, world=4) for rank in range(4)]
    dealt = [[int(batch["index"][0]) for batch in part] for part in parts]
    assert [len(part) for part in dealt] == [2, 2, 2, 2]
    assert {index for part in dealt for index in part} == set(range(6))


def test_a_loader_goes_on_in_the_middle_of_an_epoch(listing):
    whole = loader(plain(listing), 1, shuffle=True)
    rest = loader(plain(listing), 1, shuffle=True)
    rest.sampler.skip = 4
    names = [batch["name"][0] for batch in whole]
    assert [batch["name"][0] for batch in rest] == names[4:]
    following = [batch["name"][0] for batch in rest]  # which is whole
    assert sorted(following) == sorted(names)
    assert following == [batch["name"][0] for batch in whole]


# --- what cannot be read --------------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path):
    """Four videos: the first whole, one damaged in a frame, two that are none."""
    folder = tmp_path / "train" / "run"
    folder.mkdir(parents=True)
    clips.write(folder / "a.mkv", clips.random_frames(5))
    (folder / "b.mp4").write_bytes(clips.damaged(clips.random_frames(6), 2))
    (folder / "c.avi").write_bytes(b"no video")
    (folder / "d.avi").write_bytes(b"")
    (tmp_path / "test").symlink_to(tmp_path / "train")
    return class_folders(tmp_path)


def test_every_video_epoch_and_seed_draws_for_itself(listing, monkeypatch):
    monkeypatch.setattr(VideoDataset, "_read", lambda self, index, random, notices: int(random.integers(1 << 62)))
    draws = [Draw(epoch, item) for epoch in range(3) for item in range(6)]
    numbers = [VideoDataset(listing, seed=seed)[draw]["video"] for seed in range(3) for draw in draws]
    assert len(set(numbers)) == 54
    assert numbers[:18] == [VideoDataset(listing)[draw]["video"] for draw in draws]


def test_orders_are_those_of_the_dataset_s_seed(listing):
    orders = [[d.item for d in loader(VideoDataset(listing, seed=s), shuffle=True).sampler] for s in (0, 1, 2, 0)]
    assert orders[0] == orders[3]
    assert len(set(map(tuple, orders))) == 3


def test_what_replaces_a_video_is_of_the_same_epoch(broken):
    dataset = VideoDataset(broken, size=8, resize=13, crop="random", flip=True, on_error="replace")
    for epoch in range(1, 9):
        assert torch.equal(dataset[Draw(epoch, 3)]["video"], dataset[Draw(epoch, 0)]["video"])


def test_a_file_that_is_gone_is_skipped_and_said(broken):
    os.remove(broken[0].path)
    item = plain(broken)[0]
    assert item["video"] is None
    assert [(notice.name, notice.skipped) for notice in item["notices"]] == [("run/a", True)]


@pytest.mark.parametrize("source", ["frames", "dynamic_images"])
def test_what_cannot_be_read_is_skipped_and_said(broken, source):
    dataset = plain(broken, source=source)
    batch = collate([dataset[index] for index in range(4)])
    assert batch["name"] == ["run/a", "run/b"]
    skipped = [notice.name for notice in batch["notices"] if notice.skipped]
    assert skipped == ["run/c", "run/d"]
    damaged = dataset[1]["notices"]
    assert [(n.name, n.skipped) for n in damaged] == [("run/b", False)]
    assert "1 part damaged or missing" in damaged[0].reason
    assert collate([dataset[2]])["video"].shape[0] == 0


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(3, jitter=True)], ids=str)
@pytest.mark.parametrize("source", ["frames", "dynamic_images"])
def test_of_a_damaged_video_every_run_is_told(broken, source, sampling, tmp_path):
    options = {"source": source, "sampling": sampling, "cache": tmp_path / "cache"}
    for _ in range(2):
        dataset = plain(broken, **options)
        assert [["1 part damaged or missing" in n.reason for n in dataset[1]["notices"]] for _ in range(2)] == [
            [True]
        ] * 2
        assert not dataset[0]["notices"]


@pytest.mark.parametrize("source", ["frames", "dynamic_images"])
def test_a_picture_is_no_video_of_one_frame(source, tmp_path):
    for name in ("train/run/a.png", "test/run/a_0000.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(clips.random_frames(1)[0]).save(tmp_path / name)
    for subset in ("train", "test"):
        item = plain(class_folders(tmp_path, subset=subset), source=source)[0]
        assert item["video"] is None
        assert "is a picture, and no video; source 'images' wants those" in item["notices"][0].reason


def test_batches_stay_full_where_others_replace_what_cannot_be_read(broken):
    dataset = VideoDataset(broken, size=8, on_error="replace")
    batches = list(loader(dataset, 2, num_workers=1))
    assert [batch["name"] for batch in batches] == [["run/a", "run/b"], ["run/a", "run/a"]]
    names = [notice.name for batch in batches for notice in batch["notices"] if notice.skipped]
    assert names == ["run/c", "run/d", "run/d"]
    with pytest.raises(VideoError, match=r"2 videos in a row cannot be read, the first: .*c\.avi"):
        VideoDataset(broken.subset_of([2, 3]), on_error="replace")[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_workers_are_those_of_one_process(broken, workers):
    dataset = VideoDataset(broken, size=8, on_error="raise")
    with pytest.raises(VideoError, match=r"^[^\n]*c\.avi: [^\n]*$") as raised:
        list(loader(dataset, 1, num_workers=workers))
    path = broken[2].path
    with pytest.raises(VideoError) as expected:
        dataset[2]
    assert (raised.value.source, raised.value.reason) == (path, expected.value.reason)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "pixels"}, "source must be one of 'frames', 'dynamic_images', 'images', 'flow', got 'pixels'"),
        ({"source": "images", "sampling": Sampling(reverse=1)}, "reverse needs the frames"),
        (
            {"source": "dynamic_images", "sampling": Sampling(frames=3)},
            "frames = 3 thins the frames",
        ),
        ({"source": "flow", "flip": True}, "flip has no meaning with source 'flow'"),
        ({"method": "median"}, "method must be one of"),
        ({"method": "mean"}, "method = 'mean' is of source 'dynamic_images', got source 'frames'"),
        ({"source": "images", "time_average": False}, "time_average = False is of source .*, got source 'images'"),
        (
            {"source": "flow", "nonlinearity": "identity"},
            "nonlinearity = 'identity' is of source .*, got source 'flow'",
        ),
        ({"on_error": "ignore"}, "on_error must be"),
    ],
)
def test_datasets_say_what_is_wrong(listing, options, message):
    with pytest.raises(ValueError, match=message):
        VideoDataset(listing, **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_throughput_counts_what_was_read(listing, workers):
    rate = measure(VideoDataset(listing, source="dynamic_images", size=16), workers, batch_size=3, seconds=0.3)
    assert rate.videos > 0
    assert 5 <= rate.frames / rate.videos <= 12  # the shortest and the longest clip
    assert rate.decoded > 0
    with pytest.raises(ValueError, match="without a cache"):
        measure(VideoDataset(listing, cache="memory"))


def test_importing_dynpool_imports_no_more():
    heavy = "lightning torchvision sklearn matplotlib yaml dynpool.data dynpool.models dynpool.training.run"
    code = f"import sys, dynpool, dynpool.cli; print([m for m in {heavy.split()} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
