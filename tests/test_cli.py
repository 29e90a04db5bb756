"""The command: files written, summary, exit codes, and what is refused before any work."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import ModuleType

import clips
import numpy as np
import pytest
import torch
from PIL import Image

import dynpool
from dynpool.images import dynamic_image, dynamic_images

pytest.importorskip("typer", reason="needs typer")

from command import run

from dynpool import cli

FRAMES = clips.random_frames(7, 16, 24)
PROGRAM = [sys.executable, "-m", "dynpool", "image"]

DIES_AT_THE_THIRD = """
import os
from PIL import Image
from dynpool.cli import main
save, left = Image.Image.save, [1, 2]
Image.Image.save = lambda *given, **how: save(*given, **how) if left and left.pop() else os._exit(9)
main()
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def clip(here):
    clips.write(here / "clip.mkv", FRAMES)
    return here / "clip.mkv"


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
    assert torch.equal(picture(here / "clip.png"), dynamic_image(clip))


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


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="has no links")
def test_links_in_a_folder_that_lead_nowhere_fail(here):
    folder = here / "videos"
    folder.mkdir()
    clips.write(folder / "a.mkv", FRAMES)
    (folder / "b.mkv").symlink_to("nowhere")
    (folder / "c.mkv").symlink_to("c.mkv")
    result = run("image", folder, "-o", "images", code=1)
    assert files(here / "images") == ["a.png"]
    assert ["b.mkv" in result.stderr, "c.mkv" in result.stderr] == [True, True]
    assert result.stdout.splitlines()[-1].startswith("1 of 3 videos done")


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


def test_names_are_shown_with_escapes(here):
    name = "[red]\n\x1b[2J\udcff.mkv"
    clips.write(here / name, FRAMES)
    assert "[red]\\n\\x1b[2J\\udcff.mkv -> [red]" in run("image", name).output
    (here / name).write_bytes(b"no video")
    assert "[red]\\n\\x1b[2J\\udcff.mkv: FAILED" in run("image", name, code=1).output


def test_unexpected_errors_fail_one_video_only(clip, here, monkeypatch):
    clips.write(here / "zebra.mkv", FRAMES)
    make = cli.Pictures

    def flaky(video, recipe):
        if "clip" in video:
            raise MemoryError("too large")
        return make(video, recipe)

    monkeypatch.setattr(cli, "Pictures", flaky)
    result = run("image", "clip.mkv", "zebra.mkv", code=1)
    assert result.stderr == "clip.mkv: FAILED: MemoryError: too large\n"
    assert (here / "zebra.png").exists()


def test_damage_is_in_the_summary(here):
    (here / "broken.mp4").write_bytes(clips.damaged(FRAMES, 3))
    assert run("image", "broken.mp4").stdout.strip().endswith("1 part damaged or missing")


def test_a_file_that_cannot_be_finished_leaves_nothing(clip, here, monkeypatch):
    write = Path.write_bytes

    def half(self, data):
        write(self, data[: len(data) // 2])
        raise OSError("disk full")

    (here / "clip.png").write_bytes(b"old")
    monkeypatch.setattr(Path, "write_bytes", half)
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
        (["--size", "0"], "--size must be a positive integer, got 0"),
        (["--max-frames", "0"], "--max-frames must be a positive integer, got 0"),
        (["--every", 10**23], f"--every must be at most 2147483647, got {10**23}"),
        (["--start", 10**23], f"--start must be at most 2147483647, got {10**23}"),
        (["--window", 10**11], f"--window must be at most 16777216, got {10**11}"),
        (["--device", "abacus"], "--device must be one that torch can use here, got 'abacus'"),
        (["--window", "4", "-o", "one.png"], "--out one.png names one image"),
        (["-o", "-"], "--out - would be a folder of that name"),
        (["other.mkv", "-o", "one.png"], "--out one.png names one image"),
        (["-o", "s3://bucket/images"], "--out s3://bucket/images must be a folder or file on this machine"),
        (["-o", "clip.mkv"], "--out clip.mkv cannot be made a folder"),
        (["-o", "clip.mkv/below"], "--out clip.mkv/below cannot be made a folder"),
        (["-o", "one.JPG"], "--out one.JPG must be a folder, or an image's name with .png: PNG is what is written"),
        (["other.mkv", "-o", "a/b.gif"], "--out a/b.gif must be a folder, or an image's name with .png"),
    ],
)
def test_bad_command_lines_end_in_one_line_and_code_2(arguments, message, clip, here):
    result = run("image", "clip.mkv", *arguments, code=2)
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"dynpool image: {message}")
    assert result.stdout == ""
    assert files(here) == ["clip.mkv"]


def test_no_image_is_written_over_what_is_read(here):
    (here / "seq").mkdir()
    for name in ("f1.png", "f2.png", "f2_0001.png", "seq/1.png", "seq/2.png"):
        Image.fromarray(clips.random_frames(1, 8, 8)[0]).save(here / name)
    before = {path: path.read_bytes() for path in here.rglob("*.png")}
    (here / "link").symlink_to(here)
    for arguments, message in (
        (["f1.png"], "f1.png would be replaced by an image of f1.png: choose another --out"),
        (["f1.png", "f2.png", "-o", "link"], "f1.png would be replaced by an image of f1.png"),
        (["f1.png", "-o", "f2.png", "f2.png"], "--out f2.png names one image"),
        (["seq/1.png", "-o", "seq/1.png"], "seq/1.png would be replaced by an image of seq/1.png"),
        (["f2.png", "f2_0001.png", "--window", "1"], "f2_0001.png would be replaced by an image of f2.png"),
        (["seq", "-o", "seq"], "seq would get images among its own: choose another --out"),
        (["f1.png", "seq", "-o", "seq"], "seq would get images among its own: choose another --out"),
    ):
        (line,) = run("image", *arguments, code=2).stderr.splitlines()
        assert line.startswith(f"dynpool image: {message}")
    assert {path: path.read_bytes() for path in here.rglob("*.png")} == before
    run("image", "f1.png", "f2.png", "--window", "1")  # f1_0000.png
    run("image", "f1.png", "./f1.png", "seq/../f1.png", "seq", "-o", "out")
    assert files(here / "out") == ["f1.png", "seq.png"]


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
    for option in ("--out", "--window", "--stride", "--method", "--nonlinearity", "--size", "--device"):
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
    program = [*PROGRAM, "clip.mkv", "missing.avi"]
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
    program = [*PROGRAM, "-"]
    with open(clip, "rb") as file:
        done = subprocess.run(program, stdin=file, capture_output=True, text=True, cwd=here, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.equal(picture(here / "stdin.png"), dynamic_image(clip))
    piped = subprocess.run(program, input=clip.read_bytes()[:40], capture_output=True, cwd=here, check=False)
    assert piped.returncode == 1
    assert b"-: FAILED: " in piped.stderr
    noise = clips.random_frames(30, 120, 160)
    mp4 = clips.encoded(
        noise, codec="mpeg4", pix_fmt="yuv420p", format="mp4", qmin="1", qmax="2"
    )  # its index at the end
    piped = subprocess.run(program, input=mp4, capture_output=True, cwd=here, check=False)
    assert piped.returncode == 1
    assert b"MP4 and MOV can come by a pipe only if their index stands before the frames" in piped.stderr


def test_chosen_frames_and_folders_of_images(clip, here):
    run("image", clip, "--start", 1, "--end", 6, "--every", 2)
    assert torch.equal(picture(here / "clip.png"), dynamic_image(clip, start=1, end=6, every=2))
    folder = here / "frames"
    folder.mkdir()
    for number, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(folder / f"{number}.png")
    run("image", folder)
    assert torch.equal(picture(here / "frames.png"), dynamic_image(FRAMES))
    assert "--end must be a frame number after start = 3" in run("image", clip, "--start", 3, "--end", 2, code=2).output


# --- names ----------------------------------------------------------------------------------------------------------


def write_numbered(folder):
    folder.mkdir(parents=True)
    for number, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(folder / f"{number}.png")


def test_folders_of_images_give_images_their_whole_names(here, monkeypatch):
    for name in ("take.1", "take.2"):
        write_numbered(here / name)
    run("image", "take.1", "take.2/", "-o", "images")
    assert files(here / "images") == ["take.1.png", "take.2.png"]
    monkeypatch.chdir(here / "take.1")
    run("image", ".", "-o", "../here")
    assert files(here / "here") == ["take.1.png"]


def test_what_has_no_name_gets_one():
    assert cli._stem("/") == "root"
    assert cli._stem("https://host/?clip=1") == "video"


def test_an_image_keeps_its_suffix_as_given(clip, here):
    run("image", clip, "-o", "images/y.PNG")
    assert files(here / "images") == ["y.PNG"]


def test_a_folder_may_be_named_like_a_picture(clip, here):
    (here / "z.jpg").mkdir()
    run("image", clip, "-o", "z.jpg")
    assert files(here / "z.jpg") == ["clip.png"]


def test_names_as_long_as_may_be(here):
    names = ["é" * 120 + "abc", "n" * 251]  # 243 and 251 bytes
    for name in names:
        clips.write(here / f"{name}.mkv", FRAMES)
    run("image", *(f"{name}.mkv" for name in names), "-o", "images")
    assert files(here / "images") == sorted(f"{name}.png" for name in names)


def test_files_of_these_kinds_are_found_in_folders(here):
    names = [f"{number}.{suffix}" for number, suffix in enumerate(["asf", "gif", "mxf", "Y4M"])]
    (here / "videos").mkdir()
    for name in names:
        clips.write(here / "videos" / name, FRAMES)
    run("image", "videos", "-o", "images")
    assert files(here / "images") == ["0.png", "1.png", "2.png", "3.png"]


# --- what fails -----------------------------------------------------------------------------------------------------


def test_hidden_files_of_a_folder_are_no_videos(clip, here):
    (here / "._clip.mkv").write_bytes(b"of a file manager")
    assert "failed" not in run("image", here).stderr
    assert files(here) == ["._clip.mkv", "clip.mkv", "clip.png"]


def test_folders_that_cannot_be_used_fail_alone(clip, here, monkeypatch):
    (here / "empty").mkdir()
    (here / "above/below").mkdir(parents=True)
    (here / "closed").mkdir()
    inside = Path.iterdir

    def iterdir(folder):
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return inside(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    result = run("image", "empty", "closed/", "above", clip, "-o", "images", code=1)
    assert files(here / "images") == ["clip.png"]
    empty, closed, above = result.stderr.splitlines()
    assert empty.startswith("empty: FAILED: holds no video (.3g2 .3gp ")
    assert closed == "closed: FAILED: PermissionError: [Errno 13] Permission denied: 'closed'"
    assert above.endswith(" and no image; subfolders are not searched: give above/*")
    assert result.stdout.splitlines()[-1] == "1 of 4 videos done, 3 failed"


def test_of_a_url_the_librarys_words_are_said(here):
    pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/clip.mp4"
        assert run("image", url, code=1).stderr.startswith(f"{url}: FAILED: Cannot connect to host 127.0.0.1")


def test_images_are_written_as_their_windows_end(clip, here, monkeypatch):
    made = []

    class Watched(cli.Pictures):
        def __iter__(self):
            for pixels in super().__iter__():
                made.append(weakref.ref(pixels))
                assert sum(picture() is not None for picture in made) <= 2  # this one, and the last, written
                yield pixels

    monkeypatch.setattr(cli, "Pictures", Watched)
    run("image", clip, "--window", 2, "--stride", 1, "-o", "images")
    assert len(made) == len(files(here / "images")) == 6


def test_windows_of_an_earlier_run_are_told(clip, here):
    assert "older" not in run("image", clip, "--window", 4, "--stride", 4, "-o", "images").stdout
    assert len(os.listdir("images")) > 1
    told = run("image", clip, "--window", 100, "-o", "images").stdout
    assert told.endswith("; clip_0001.png and what follows it is older\n")
    assert "older" not in run("image", clip, "-o", "images").stdout


def test_windows_of_a_video_that_fails_midway_leave_nothing(clip, here, monkeypatch):
    save, saved = Image.Image.save, []

    def save_two(self, file, **options):
        if len(saved) == 2:
            raise OSError("disk full")
        saved.append(file)
        save(self, file, **options)

    monkeypatch.setattr(Image.Image, "save", save_two)
    (here / "clip_0000.png").write_bytes(b"old")
    assert "disk full" in run("image", clip, "--window", 2, code=1).stderr
    assert files(here) == ["clip.mkv", "clip_0000.png"]
    assert (here / "clip_0000.png").read_bytes() == b"old"


def test_windows_of_a_command_that_is_killed_do_not_appear(clip, here):
    program = [sys.executable, "-c", DIES_AT_THE_THIRD, "image", "clip.mkv", "--window", "2", "-o", "images"]
    assert subprocess.run(program, cwd=here, check=False).returncode == 9
    assert (here / "images").exists()
    assert not list(here.glob("images/*.png"))


def test_a_folder_in_the_way_is_seen_before_any_image_appears(clip, here):
    (here / "clip_0001.png").mkdir()
    assert "IsADirectoryError: clip_0001.png is a folder" in run("image", clip, "--window", 2, code=1).stderr
    assert files(here) == ["clip.mkv", "clip_0001.png"]


def wait_for(what):
    for _ in range(600):
        if what():
            return
        time.sleep(0.1)
    pytest.fail("nothing came in a minute")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_command_and_cleans_up(here, name):
    number = getattr(signal, name)
    os.mkfifo(here / "pipe")
    before = signal.signal(number, signal.SIG_DFL)  # these tests may run under nohup
    with subprocess.Popen([*PROGRAM, "pipe", "-o", "images"], cwd=here, stderr=subprocess.PIPE) as program:
        signal.signal(number, before)
        with open(here / "pipe", "wb", buffering=0) as pipe:
            pipe.write(clips.encoded(FRAMES)[:1000])
            wait_for(lambda: list(here.glob("images/.dynpool-*")))
            program.send_signal(number)
            assert program.wait(60) == 128 + number
        assert program.stderr.read() == b""
    assert files(here / "images") == []


def test_the_end_of_standard_output_is_the_end(clip, here):
    clips.write(here / "zebra.mkv", FRAMES)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*PROGRAM, "."], stdout=writing, stderr=subprocess.PIPE, cwd=here, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
    assert files(here) == ["clip.mkv", "clip.png", "zebra.mkv"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="has no /dev/full")
def test_a_full_standard_output_is_said_once(clip, here):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*PROGRAM, "clip.mkv"], stdout=full, stderr=subprocess.PIPE, cwd=here, check=False)
    assert done.returncode == 1
    assert done.stderr == b"dynpool: cannot write to standard output: No space left on device\n"
    assert files(here) == ["clip.mkv", "clip.png"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="has no /dev/full")
def test_a_full_standard_error_ends_nothing(clip, here):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*PROGRAM, "absent.avi", "clip.mkv"], stdout=subprocess.PIPE, stderr=full, cwd=here)
    assert done.returncode == 1
    assert done.stdout.endswith(b"1 of 2 videos done, 1 failed\n")
    assert files(here) == ["clip.mkv", "clip.png"]


@pytest.mark.skipif(os.name != "posix", reason="closes a file descriptor")
def test_standard_output_may_be_closed(clip, here):
    clips.write(here / "zebra.mkv", FRAMES)
    command = ["sh", "-c", '"$@" >&-', "sh", *PROGRAM, "."]
    done = subprocess.run(command, stderr=subprocess.PIPE, cwd=here, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert files(here) == ["clip.mkv", "clip.png", "zebra.mkv", "zebra.png"]


# --- the example of streams -----------------------------------------------------------------------------------------


@pytest.fixture
def stream(here, monkeypatch, capsys):
    path = Path(__file__).parents[1] / "examples" / "stream.py"
    if not path.exists():
        pytest.skip("the examples are not here")

    def run_stream(*arguments):
        """The lines that it prints."""
        monkeypatch.setattr("sys.argv", ["stream.py", *map(str, arguments)])
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run_stream


@pytest.mark.parametrize("every", ["0", "-1"])
def test_stream_wants_a_positive_interval(every, stream, clip, capsys):
    with pytest.raises(SystemExit) as stop:
        stream(clip, f"--every={every}")
    assert stop.value.code == 2
    assert f"argument --every: must be a positive integer, got {every}" in capsys.readouterr().err


def test_stream_writes_no_image_of_a_last_single_frame(stream, clip, here):
    assert stream(clip, "--every", 3, "--restart") == ["live.png: 3 frames"] * 2
    assert picture(here / "live.png").unique().numel() > 1
    assert stream(clip, "--every", 5, "--restart") == ["live.png: 5 frames", "live.png: 2 frames"]


def test_stream_reads_files_whose_metadata_is_no_text(stream):
    for path in clips.real_clips("hmdb51"):
        assert stream(path)
