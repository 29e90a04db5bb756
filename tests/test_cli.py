"""The command: files written, summary, exit codes, and what is refused before any work."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import clips
import numpy as np
import pytest
import torch
from PIL import Image

import dynpool
from dynpool.images import dynamic_image, dynamic_images

pytest.importorskip("typer", reason="needs typer")
from typer.testing import CliRunner

from dynpool import cli

FRAMES = clips.random_frames(7, 16, 24)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def clip(here):
    clips.write(here / "clip.mkv", FRAMES)
    return here / "clip.mkv"


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def picture(path):
    """A PNG as [3, H, W]."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_one_video_one_image_in_the_current_folder(clip, here):
    result = run("image", clip)
    assert torch.equal(picture(here / "clip.png"), dynamic_image(clip))
    assert files(here) == ["clip.mkv", "clip.png"]
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"{clip} -> clip.png: 7 frames, 24x16, ")
    assert line.endswith(" frames/s")


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--method", "mean"], {"method": "mean"}),
        (["--method", "max"], {"method": "max"}),
        (["--nonlinearity", "identity"], {"nonlinearity": "identity"}),
        (["--no-time-average"], {"time_average": False}),
        (["--size", "8"], {"size": 8}),
        (["--size", "8", "--resize-first"], {"size": 8, "resize_first": True}),
        (["--max-frames", "3", "--timeout", "60"], {"max_frames": 3}),
        (["--device", "cpu"], {}),
    ],
)
def test_options_reach_the_image(arguments, options, clip, here):
    run("image", clip, *arguments)
    assert torch.equal(picture(here / "clip.png"), dynamic_image(clip, **options))


@pytest.mark.parametrize(("arguments", "stride"), [(["--stride", "2"], 2), ([], 4)])
def test_windows(arguments, stride, clip, here):
    result = run("image", clip, "--window", "4", *arguments, "-o", "images")
    expected = dynamic_images(clip, window=4, stride=stride)
    assert files(here / "images") == [f"clip_{index:04d}.png" for index in range(len(expected))]
    for index, image in enumerate(expected):
        assert torch.equal(picture(here / f"images/clip_{index:04d}.png"), image)
    assert f"({len(expected)} images)" in result.stdout


def test_a_single_window_is_still_numbered(clip, here):
    run("image", clip, "--window", "100", "-o", "images")
    assert files(here / "images") == ["clip_0000.png"]


def test_output_may_name_the_image(clip, here):
    run("image", clip, "-o", "new/folder/Name.png")
    assert files(here / "new/folder") == ["Name.png"]


def test_existing_images_are_replaced(clip, here):
    (here / "clip.png").write_bytes(b"old")
    run("image", clip)
    assert picture(here / "clip.png").shape == (3, 16, 24)


def test_folders_stand_for_the_videos_in_them(here):
    folder = here / "videos"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.mkv", "a.MKV", "sub/c.mkv"):
        clips.write(folder / name, FRAMES)
    (folder / "notes.txt").write_text("no video")
    result = run("image", folder, folder / "b.mkv", "-o", "images")
    assert files(here / "images") == ["a.png", "b.png"]
    assert [line.split(" -> ")[0] for line in result.stdout.splitlines()[:-1]] == [
        str(folder / "a.MKV"),
        str(folder / "b.mkv"),
    ]
    assert result.stdout.splitlines()[-1] == "2 of 2 videos done"


def test_videos_of_one_name_do_not_overwrite_each_other(here):
    names = ["one/clip.mkv", "two/clip.mkv", "two/clip.avi", "two/Clip-2.mkv"]
    videos = [clips.random_frames(4, 16, 24, seed) for seed in range(4)]
    for name, frames in zip(names, videos, strict=True):
        (here / name).parent.mkdir(exist_ok=True)
        clips.write(here / name, frames, format="avi" if name.endswith("avi") else "matroska")
    run("image", *names, "-o", "images")
    images = ["clip.png", "clip-3.png", "clip-4.png", "Clip-2.png"]
    assert files(here / "images") == sorted(images)
    for image, name in zip(images, names, strict=True):
        assert torch.equal(picture(here / "images" / image), dynamic_image(name))


def test_failures_are_reported_and_the_rest_is_done(clip, here):
    (here / "broken.avi").write_bytes(bytes(1000))
    clips.write_sound(here / "sound.mka")
    result = run("image", "broken.avi", "missing.mp4", "sound.mka", clip, "-o", "images", code=1)
    assert files(here / "images") == ["clip.png"]
    failures = result.stderr.splitlines()
    assert len(failures) == 3
    assert failures[0].startswith("broken.avi: FAILED: Invalid data")
    assert failures[1] == "missing.mp4: FAILED: no such file"
    assert failures[2].startswith("sound.mka: FAILED: has no video stream")
    assert result.stdout.splitlines()[-1] == "1 of 4 videos done, 3 failed"


def test_a_single_failure_is_exit_code_1(here):
    result = run("image", "missing.mp4", code=1)
    assert result.stdout == ""
    assert files(here) == []


def test_unexpected_errors_fail_one_video_only(clip, here, monkeypatch):
    clips.write(here / "zebra.mkv", FRAMES)
    make = cli.make_images

    def flaky(video, recipe):
        if "clip" in video:
            raise MemoryError("too large")
        return make(video, recipe)

    monkeypatch.setattr(cli, "make_images", flaky)
    result = run("image", "clip.mkv", "zebra.mkv", code=1)
    assert result.stderr == "clip.mkv: FAILED: MemoryError: too large\n"
    assert (here / "zebra.png").exists()


def test_damage_is_in_the_summary(here):
    (here / "broken.mp4").write_bytes(clips.damaged(FRAMES, 3))
    assert run("image", "broken.mp4").stdout.strip().endswith("1 damaged packet skipped")


def test_a_file_that_cannot_be_finished_leaves_nothing(clip, here, monkeypatch):
    def half(self, file, format):
        file.write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    (here / "clip.png").write_bytes(b"old")
    result = run("image", clip, code=1)
    assert "disk full" in result.stderr
    assert files(here) == ["clip.mkv", "clip.png"]
    assert (here / "clip.png").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stride", "4"], "--stride 4 has no meaning without --window"),
        (["--window", "0"], "--window must be a positive integer, got 0"),
        (["--window", "4", "--stride", "-1"], "--stride must be a positive integer, got -1"),
        (["--size", "0"], "--size must be a positive integer"),
        (["--device", "abacus"], "--device must be one that torch can use here, got 'abacus'"),
        (["--window", "4", "-o", "one.png"], "--output one.png names one image"),
        (["other.mkv", "-o", "one.png"], "--output one.png names one image"),
        (["-o", "clip.mkv"], "--output clip.mkv cannot be made a folder"),
        (["-o", "clip.mkv/below"], "--output clip.mkv/below cannot be made a folder"),
        (["."], None),
    ],
)
def test_bad_command_lines_end_in_one_line_and_code_2(arguments, message, clip, here):
    if message is None:  # a folder without videos
        (here / "empty").mkdir()
        arguments, message = ["empty"], "the folder empty holds no video"
    result = run("image", "clip.mkv", *arguments, code=2)
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"dynpool image: {message}")
    assert result.stdout == ""
    assert not list(here.glob("*.png"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_a_bad_command_line(clip):
    assert (
        "--device must be one that torch can use here, got 'cuda'"
        in run("image", clip, "--device", "cuda", code=2).stderr
    )


@pytest.mark.parametrize("arguments", [["image"], ["image", "x", "--method", "median"], ["imagine"], ["image", "--no"]])
def test_wrong_usage_is_exit_code_2(arguments, here):
    assert "Error" in run(*arguments, code=2).stderr


def test_help_and_version():
    assert run("--version").stdout == f"dynpool {dynpool.__version__}\n"
    for option in ("--output", "--window", "--stride", "--method", "--nonlinearity", "--size", "--device"):
        assert option in run("image", "--help").stdout
    assert "image" in run("--help").stdout


def test_info_prints_the_build(monkeypatch):
    build = ModuleType("dynpool._build")
    build.build_info = lambda: {"version": "1.2", "cuda_archs": ["sm_80", "sm_90"], "binary": True, "devices": []}
    monkeypatch.setitem(sys.modules, "dynpool._build", build)
    lines = [line.split(maxsplit=1) for line in run("info").stdout.replace("cuda archs", "cuda_archs").splitlines()]
    assert [[name, value.strip()] for name, value in lines] == [
        ["version", "1.2"],
        ["cuda_archs", "sm_80, sm_90"],
        ["binary", "yes"],
        ["devices", "none"],
    ]


def test_as_a_program(clip, here):
    program = [sys.executable, "-c", "from dynpool.cli import main; main()", "image", "clip.mkv", "missing.avi"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=here, check=False)
    assert done.returncode == 1
    assert "missing.avi: FAILED: no such file" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("clip.mkv -> clip.png: 7 frames")
    assert torch.equal(picture(here / "clip.png"), dynamic_image(clip))


def test_real_clips(here):
    folder = clips.real_clips("ucf101")[0].parent
    result = run("image", folder, "--size", "32", "-o", "images")
    assert result.stdout.splitlines()[-1] == "9 of 9 videos done"
    assert len(list((here / "images").glob("v_*.png"))) == 9


def test_standard_input(clip, here):
    program = [sys.executable, "-c", "from dynpool.cli import main; main()", "image", "-"]
    with open(clip, "rb") as file:
        done = subprocess.run(program, stdin=file, capture_output=True, text=True, cwd=here, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.equal(picture(here / "stdin.png"), dynamic_image(clip))
    piped = subprocess.run(program, input=clip.read_bytes()[:40], capture_output=True, cwd=here, check=False)
    assert piped.returncode == 1
    assert b"-: FAILED: " in piped.stderr


def test_chosen_frames_and_folders_of_images(clip, here):
    run("image", clip, "--start", 1, "--end", 6, "--every", 2)
    assert torch.equal(picture(here / "clip.png"), dynamic_image(clip, start=1, end=6, every=2))
    folder = here / "frames"
    folder.mkdir()
    for number, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(folder / f"{number}.png")
    run("image", folder)
    assert torch.equal(picture(here / "frames.png"), dynamic_image(FRAMES))
    assert (
        "--end must be a frame number behind start = 3" in run("image", clip, "--start", 3, "--end", 2, code=2).output
    )
