"""Score files, fusion and comparison, beside numbers computed by hand."""

from __future__ import annotations

import json
import os
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np
import pytest

pytest.importorskip("yaml", reason="needs PyYAML: pip install dynpool[train]")
import command
import typer

from dynpool.training import commands, report
from dynpool.training.fusion import fuse, svm, svm_scores
from dynpool.training.scores import About, Scores, file_name, in_words, log_probabilities, read, write

CLASSES = ("jump", "run, fast", "walk")


def stream(values, modality="RGB frames", names=None, labels=(0, 1, 1, 2), split="1", **about):
    values = np.asarray(values, np.float64)
    names = tuple(f"c/v{i}" for i in range(len(values))) if names is None else tuple(names)
    told = About("made", split, modality, "none", "whole video", **about)
    return Scores(told, CLASSES, names, np.asarray(labels, np.int64)[: len(values)], values)


RGB = stream(np.log([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.2, 0.5, 0.3]]))  # right, wrong, right, wrong
MOTION = stream(np.log([[0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]), "dynamic images")  # 2 – 4


def test_empty_lines_are_no_videos(tmp_path):
    write(RGB, tmp_path / "a.scores")
    (tmp_path / "b.scores").write_text((tmp_path / "a.scores").read_text().replace("\n", "\n\n"))
    assert read(tmp_path / "b.scores").names == RGB.names


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_pipes_and_links_are_written_to(tmp_path):
    """As /dev/stdout is, which must not become a file."""
    file, link, pipe = (tmp_path / name for name in ("plain.scores", "link.scores", "pipe.scores"))
    write(RGB, file)
    wanted = file.read_bytes()
    file.write_bytes(b"old")
    link.symlink_to(file.name)
    write(RGB, link)
    assert link.is_symlink()
    assert file.read_bytes() == wanted
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as threads:
        reading = threads.submit(pipe.read_bytes)
        write(RGB, pipe)
        assert reading.result() == wanted
    assert pipe.is_fifo()
    assert len(list(tmp_path.iterdir())) == 3


def test_results_by_hand():
    assert RGB.accuracy() == 0.5
    assert RGB.confusion().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert RGB.class_accuracies().tolist() == [1, 0.5, 0]
    assert RGB.mean_class_accuracy() == 0.5
    assert MOTION.mean_class_accuracy() == pytest.approx(2 / 3)
    only = stream([[1, 0, 0]])
    assert np.isnan(only.class_accuracies()).tolist() == [False, True, True]
    assert only.mean_class_accuracy() == 1  # of classes that have videos


def test_what_results_are_of():
    told = [stream([[1, 0, 0]], split=split, skipped=2).about for split in ("1", "2")]
    assert in_words(told) == (
        "made splits 1, 2, RGB frames, pretraining: none, windows: whole video, 4 videos left out"
    )
    assert in_words([RGB.about, MOTION.about]).splitlines() == [RGB.about.in_words(), MOTION.about.in_words()]


def test_a_file_holds_what_was_written(tmp_path):
    scores = stream(np.log([[0.7, 0.2, 0.1]]), clip_accuracy=0.25, skipped=3)
    write(scores, tmp_path / "deep" / "a.scores")
    back = read(tmp_path / "deep" / "a.scores")
    assert (back.about, back.classes, back.names) == (scores.about, scores.classes, scores.names)
    assert np.allclose(back.values, scores.values, rtol=1e-6)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.scores"]
    lines = (tmp_path / "deep" / "a.scores").read_text().splitlines()
    assert json.loads(lines[0][1:])["modality"] == "RGB frames"
    assert lines[1] == 'video,label,jump,"run, fast",walk'
    assert lines[2] == "c/v0,0,-0.3566749,-1.609438,-2.302585"


def test_files_of_other_programmes(tmp_path):
    (tmp_path / "idt.scores").write_text("video,label,a,b\r\nx,1,0.5,-2\r\n")
    scores = read(tmp_path / "idt.scores")
    assert (scores.about.modality, scores.about.dataset) == ("idt", "unknown")
    assert scores.values.tolist() == [[0.5, -2]]


def test_a_byte_order_mark_is_no_part_of_a_score_file(tmp_path):
    write(RGB, tmp_path / "a.scores")
    told = (tmp_path / "a.scores").read_bytes()
    (tmp_path / "b.scores").write_bytes(b"\xef\xbb\xbf" + told)
    assert read(tmp_path / "b.scores").about == RGB.about
    (tmp_path / "c.scores").write_bytes(b"\xef\xbb\xbf" + told.split(b"\n", 1)[1])
    assert read(tmp_path / "c.scores").names == RGB.names


def test_streams_are_not_written_over(tmp_path):
    for folder in ("rgb", "motion"):
        write(RGB if folder == "rgb" else MOTION, tmp_path / folder / file_name(RGB.about.split))
    one, two = (tmp_path / folder / file_name(RGB.about.split) for folder in ("rgb", "motion"))
    before = one.read_bytes(), two.read_bytes()
    for arguments in (
        ("fuse", one, two, "-o", two),
        ("fuse", one, two, "-o", one.parent),
        ("fuse", one.parent, two.parent, "-o", two.parent),
        ("compare", one, two, "-o", one),
    ):
        told = command.run(*arguments, code=2)
        assert "--out must not be one of the streams" in " ".join(told.output.split())
    for streams in ((one, two), (one.parent, two.parent)):
        command.run("fuse", *streams, "-o", "-", code=2)
    for _ in range(2):  # over what was written, but not read
        command.run("compare", one.parent, two.parent, "-o", one.parent / "compared.csv")
    assert (one.read_bytes(), two.read_bytes()) == before


def test_splits_may_have_a_slash_in_their_name(tmp_path):
    """As groups of videos have, if the rule says so; a folder of their scores can be read."""
    for folder, scores in (("rgb", RGB), ("motion", MOTION)):
        for split in ("a/b", "a\\b"):
            path = tmp_path / folder / file_name(split)
            write(replace(scores, about=replace(scores.about, split=split)), path)
            assert path.parent == tmp_path / folder
    command.run("fuse", tmp_path / "rgb", tmp_path / "motion", "-o", tmp_path / "fused")
    assert sorted(os.listdir(tmp_path / "fused")) == ["a%2Fb.scores", "a%5Cb.scores"]
    told = command.run("compare", tmp_path / "rgb", tmp_path / "fused").output
    assert "made splits a/b, a\\b, " in told


@pytest.mark.filterwarnings("error")
def test_characters_without_a_font_are_told_of_once(tmp_path, monkeypatch):
    """Of fonts that come with matplotlib, STIX alone has U+1D49C, and none has Chinese."""
    fonts = pytest.importorskip("matplotlib.font_manager", reason="needs matplotlib: pip install dynpool[train]")
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    gone = [fonts.FontEntry(fname=str(path), name="Gone") for path in (tmp_path / "gone.ttf", broken)]
    own = [font for font in fonts.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(fonts.fontManager, "ttflist", gone + own)
    names = ["\U0001d49c", *RGB.classes[1:]]
    report.write_results([replace(RGB, classes=tuple(names))], tmp_path)
    with pytest.warns(RuntimeWarning, match="no font is installed that has 跑: pictures have boxes") as caught:
        report.write_results([replace(RGB, classes=("跑", *names[1:]))], tmp_path)
    assert len(caught) == 1


def test_names_are_those_of_files(tmp_path):
    """Which may be of several lines, or no UTF-8, and are no markup of rich or matplotlib."""
    names = ("c/\u2028 \x85", 'c/"a,\r\nb"', "c/caf\udce9", "[/c] $\r")
    odd = replace(RGB, names=names, classes=("[/b] $a$", "$\\frac", "caf\udce9\n"))
    odd = replace(odd, about=replace(odd.about, split="[/1]", modality="[/m] :smile: $x"))
    write(odd, tmp_path / "a.scores")
    back = read(tmp_path / "a.scores")
    assert (back.names, back.classes, back.about) == (names, odd.classes, odd.about)
    other = replace(odd, values=MOTION.values, about=replace(odd.about, modality="[/n]"))
    write(other, tmp_path / "b.scores")
    told = command.run("compare", tmp_path / "a.scores", tmp_path / "b.scores")
    for text in ("made split [/1], [/m] :smile: $x,", "[/n] is better", "$\\frac ", "caf\\udce9\\n "):
        assert text in told.output
    report.write_results([odd], tmp_path)
    assert "caf\udce9\n" in (tmp_path / "classes.csv").read_text(errors="surrogateescape")


def test_nothing_is_half_written(tmp_path, monkeypatch):
    """Nor are temporary files taken for splits: folders of scores are read while others are written."""
    write(RGB, tmp_path / "1.scores")
    before, seen = (tmp_path / "1.scores").read_bytes(), []

    def full(source, target):
        seen.append([path.name for path in tmp_path.iterdir() if path.name != "1.scores"])
        assert commands._streams(tmp_path, 1.0)[0].names == RGB.names
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in containers that share a file system
    for _ in range(2):
        with pytest.raises(OSError, match="no space left"):
            write(MOTION, tmp_path / "1.scores")
        with pytest.raises(OSError, match="no space left"):
            report.write_differences(report.compare([RGB], [MOTION]), tmp_path / "classes.csv")
    names = [name for (name,) in seen]
    assert len(set(names)) == 4
    assert os.listdir(tmp_path) == ["1.scores"]
    assert (tmp_path / "1.scores").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 must be 'video,label,'"),
        ("# {\nvideo,label,a\n", "line 1 must be '# ' and JSON"),
        ("name,label,a\n", "line 1 must be 'video,label,'"),
        ("# {}\nvideo,label,a,b\nx,0,1\n", "line 3 must be a video, a label and 2 scores, got 3 fields: x,0,1"),
        ("video,label,a,b\nx,0,1,2\ny,zero,1,2\n", "line 3 must be"),
        ("# {}\rvideo,label,a\rx,0,1\ry,1,1\r", "line 4: labels must be between 0 and 0, got 1"),
        ('video,label,a\n"x\ny",0,1\nz,1,1\n', "line 4: labels must be between 0 and 0, got 1"),
        ("video,label,a,b\nx,2,1,2\n", "line 2: labels must be between 0 and 1, got 2"),
        (
            "video,label,a\nx,99999999999999999999,1\n",
            "line 2: labels must be between 0 and 0, got 9{20}$",
        ),
        ("video,label,a\nx,-1,1\n", "line 2: labels must be between 0 and 0, got -1"),
        ('# {"skipped":"many","split":"2"}\nvideo,label,a\n', "line 1 .* skipped must be an integer, got 'many'"),
        ('# {"skipped":1,"split":2}\nvideo,label,a\n', "line 1 .* split must be text, got 2"),
        ('# {"clip_accuracy":1' + 400 * "0" + "}\n", "line 1 .* clip_accuracy must be a number or null, got 1"),
        ("# [1]\nvideo,label,a\n", "line 1 must be '# ' and JSON"),
        ('video,label,a\nx,0,"' + 200_000 * "1" + "\n", "must be CSV: field larger"),
        ("video,label,a,b\nx,0,1,2\nx,0,1,2\n", "names must be distinct"),
    ],
)
def test_files_that_are_wrong_say_where(tmp_path, text, message):
    (tmp_path / "a.scores").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.scores.*{message}"):
        read(tmp_path / "a.scores")


def test_a_binary_file_is_no_score_file(tmp_path):
    (tmp_path / "a.scores").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    with pytest.raises(ValueError, match=r"a\.scores(, line 1)? must be"):
        read(tmp_path / "a.scores")


def test_classes_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.scores").write_text("video,label,walk,walk\nv,0,1,2\n")
    with pytest.raises(ValueError, match=r"a\.scores: classes must have distinct names"):
        read(tmp_path / "a.scores")


def test_fusion_by_hand():
    fused = fuse([RGB, MOTION])
    assert np.allclose(np.exp(fused.values), [[0.5, 0.4, 0.1], [0.3, 0.6, 0.1], [0.15, 0.65, 0.2], [0.15, 0.3, 0.55]])
    assert fused.accuracy() == 1
    assert fused.about.modality == "0.5 × RGB frames + 0.5 × dynamic images"
    weighted = fuse([RGB, MOTION], [3, 1])
    assert np.allclose(np.exp(weighted.values)[1], [0.4, 0.5, 0.1])
    assert np.allclose(np.exp(weighted.values)[3], [0.175, 0.4, 0.425])
    assert np.allclose(fuse([RGB, MOTION], [1, 0]).values, RGB.values)


def test_fusion_does_not_see_the_scale_of_logits():
    shifted = stream(RGB.values + np.array([[5], [-3], [0], [100]]))
    assert np.allclose(fuse([shifted, MOTION]).values, fuse([RGB, MOTION]).values)


def test_fusion_goes_by_names():
    order = [2, 0, 3]
    part = stream(MOTION.values[order], names=[MOTION.names[i] for i in order], labels=[1, 0, 2])
    fused = fuse([RGB, part])
    assert fused.names == ("c/v0", "c/v2", "c/v3")
    assert fused.labels.tolist() == [0, 1, 2]
    assert fused.about.skipped == 1
    assert np.allclose(fused.values, fuse([RGB, MOTION]).values[[0, 2, 3]])


def test_fusion_counts_a_video_that_is_left_out_once():
    """v3 could not be read for one stream, which says so, and v1 for the other, which does not."""
    part = stream(RGB.values[:3], names=RGB.names[:3], labels=RGB.labels[:3])
    part = replace(part, about=replace(part.about, skipped=1))
    order = [0, 2, 3]
    other = stream(MOTION.values[order], names=[MOTION.names[i] for i in order], labels=MOTION.labels[order])
    assert fuse([part, MOTION]).about.skipped == 1
    assert fuse([part, other]).about.skipped == 2
    assert fuse([RGB, replace(MOTION, about=replace(MOTION.about, skipped=3))]).about.skipped == 3


def test_fusion_of_what_was_fused():
    assert fuse([fuse([RGB, MOTION]), RGB]).about.modality == (
        "0.5 × (0.5 × RGB frames + 0.5 × dynamic images) + 0.5 × RGB frames"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
    values = RGB.values.copy()
    values[2, 1] = bad
    with pytest.raises(ValueError, match=r"scores must be finite, got \[.*\] for c/v2"):
        stream(values)
    values[2, 1] = -np.inf  # a probability of 0
    assert np.isfinite(fuse([stream(values), MOTION]).values).all()


def test_fusion_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="at least two streams, got 1"):
        fuse([RGB])
    allowed = "weights must be 2 numbers, finite, not negative and not all zero"
    for weights in ([1], [0, 0], [2, -1], [np.nan, 1], [1, np.nan], [np.inf, 1], [1e308, 1e308]):
        with pytest.raises(ValueError, match=re.escape(f"{allowed}, got {weights}")):
            fuse([RGB, MOTION], weights)
    with pytest.raises(ValueError, match="disagree on the labels"):
        fuse([RGB, stream(MOTION.values, labels=(0, 0, 1, 2))])
    with pytest.raises(ValueError, match="no video in common"):
        fuse([RGB, stream(MOTION.values, names="abcd")])
    with pytest.raises(ValueError, match="agree on their split, got 1 and 2"):
        fuse([RGB, stream(MOTION.values, split="2")])


def test_comparison_by_hand():
    rows = report.compare([RGB], [MOTION])
    assert [tuple(row) for row in rows] == [("walk", 1, 0, 1), ("run, fast", 2, 0.5, 1), ("jump", 1, 1, 0)]
    assert [row.difference for row in rows] == [1, 0.5, -1]
    two = report.compare([RGB, RGB], [MOTION, RGB])
    assert [(row.name, row.videos, row.difference) for row in two] == [
        ("walk", 2, 0.5),
        ("run, fast", 4, 0.25),
        ("jump", 2, -0.5),
    ]


def test_comparison_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="agree on their split, got 1 and 2"):
        report.compare([RGB], [stream(MOTION.values, split="2")])
    with pytest.raises(ValueError, match="disagree on the labels"):
        report.compare([RGB], [stream(MOTION.values, labels=(0, 0, 1, 2))])


def test_logarithms_of_probabilities():
    values = log_probabilities(np.array([[1000.0, 999.0], [0.0, 0.0]]))
    assert np.allclose(values, [[-np.log1p(np.exp(-1)), -1 - np.log1p(np.exp(-1))], [-np.log(2)] * 2])


def features(seed=0, count=40):
    """Three classes apart in two of ten features."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    values = random.normal(size=(count, 10))
    values[:, :2] += 15 * np.array([[0, 0], [1, 0], [0, 1]])[labels]
    return values, labels


def made_elsewhere():
    """What a file of features holds."""
    (train, train_labels), (test, test_labels) = features(0), features(1)
    return {
        "train_features": train, "train_labels": train_labels, "test_features": test, "test_labels": test_labels,
        "test_names": [f"v{i}" for i in range(40)], "classes": CLASSES, "split": "1",
    }  # fmt: skip


def test_an_svm_scores_features_made_elsewhere(tmp_path):
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install dynpool[train]")
    (train, train_labels), (test, test_labels) = features(0), features(1)
    content = made_elsewhere()
    np.savez(tmp_path / "idt.npz", **content)
    scores = svm_scores(tmp_path / "idt.npz")
    assert scores.accuracy() == 1
    assert scores.about.in_words().startswith("unknown split 1, idt, linear SVM")
    two = svm(train[train_labels < 2], train_labels[train_labels < 2], test, 3)
    assert (two.argmax(1) == test_labels)[test_labels < 2].all()
    assert (two.argmax(1) < 2).all()  # a class that was never seen
    np.savez(tmp_path / "bad.npz", **{**content, "test_features": test[:, :9]})
    with pytest.raises(ValueError, match="the same D"):
        svm_scores(tmp_path / "bad.npz")
    np.savez(tmp_path / "bad.npz", **{**content, "train_labels": train_labels[:-1]})
    with pytest.raises(ValueError, match="train_labels"):
        svm_scores(tmp_path / "bad.npz")
    np.savez(tmp_path / "bad.npz", **{**content, "test_labels": test_labels + 1})
    with pytest.raises(ValueError, match=r"test_labels must be between 0 and C - 1 = 2, got 1 … 3"):
        svm_scores(tmp_path / "bad.npz")
    del content["classes"]
    np.savez(tmp_path / "bad.npz", **content)
    with pytest.raises(ValueError, match="it has no classes"):
        svm_scores(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_labels": np.zeros(40)}, "train_labels must be integers, got float64"),
        ({"test_labels": ["jump"] * 40}, "test_labels must be integers, got <U4"),
        ({"classes": "jump"}, r"classes must be a list of names, got shape \[\]"),
        ({"test_names": "v0"}, r"test_names must be a list of names, got shape \[\]"),
        ({"train_features": np.zeros(40)}, "train_features must have shape"),
        ({"test_features": np.zeros((40, 3))}, "must have the same D"),
        ({"test_names": ["v0"] * 40}, "names must be distinct"),
        ({"test_names": ["v0"] * 39}, r"test_names and test_labels must be of one length, got \[39\] and \[40\]"),
        ({"train_features": np.full((40, 5), np.nan)}, r"train_features must be finite numbers, .* got float64"),
        ({"test_features": np.full((40, 5), "x")}, "test_features must be finite numbers, and some, got <U1"),
        ({"train_labels": np.zeros(40, int)}, "train_labels must be of two classes or more"),
        ({"classes": np.array([None])}, "must be an .npz file of arrays without pickles, whole$"),
    ],
)
def test_features_that_are_wrong_are_named(tmp_path, changed, message):
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install dynpool[train]")
    np.savez(tmp_path / "bad.npz", **{**made_elsewhere(), **changed})
    with pytest.raises(ValueError, match=rf"bad\.npz.* {message}"):
        svm_scores(tmp_path / "bad.npz")


def test_files_that_hold_no_features(tmp_path):
    np.savez(tmp_path / "whole.npz", **made_elsewhere())
    np.save(tmp_path / "one.npy", np.zeros(3))
    whole = (tmp_path / "whole.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255
    one = (tmp_path / "one.npy").read_bytes()
    bad = tmp_path / "bad.npz"
    with pytest.raises(FileNotFoundError, match=r"bad\.npz"):
        svm_scores(bad)
    for content in (b"", b"no features", one, pickle.dumps({}), whole[:-40], whole[:100], bytes(flipped)):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.npz must be an \.npz file of arrays without pickles, whole$"):
            svm_scores(bad)


# --- commands ---------------------------------------------------------------------------------------------------------


def run(*arguments, **options):
    return command.run(*arguments, **options).output


@pytest.fixture
def files(tmp_path):
    write(RGB, tmp_path / "rgb.scores")
    write(MOTION, tmp_path / "motion.scores")
    return tmp_path


def test_the_command_fuse(files):
    out = run("fuse", files / "rgb.scores", files / "motion.scores", "-o", files / "fused.scores")
    assert "made split 1, 0.5 × RGB frames + 0.5 × dynamic images, pretraining: none, windows: whole video" in out
    (files / "results").mkdir()
    run("fuse", files / "rgb.scores", files / "motion.scores", "-o", files / "results")
    assert (files / "results" / "1.scores").read_bytes() == (files / "fused.scores").read_bytes()
    assert [line.split()[2:4] for line in out.splitlines() if line.startswith("1 ")] == [
        ["50.0", "%"],
        ["75.0", "%"],
        ["100.0", "%"],
    ]
    assert np.allclose(read(files / "fused.scores").values, fuse([RGB, MOTION]).values, rtol=1e-6)
    weighted = run("fuse", files / "rgb.scores", files / "motion.scores", "--weights", "1,0")
    assert weighted.splitlines()[-1].split()[2] == "50.0"
    wrong = run("fuse", files / "rgb.scores", files / "motion.scores", "--weights", "1", code=2)
    assert "dynpool fuse: weights must be 2 numbers" in wrong
    wrong = run("fuse", files / "rgb.scores", files / "motion.scores", "--weights", "1;2", code=2)
    assert "dynpool fuse: --weights must be numbers, W,W,..., got '1;2'" in wrong
    for weights in ("nan,1", "inf,1"):
        wrong = run("fuse", files / "rgb.scores", files / "motion.scores", "--weights", weights, code=2)
        assert wrong == f"dynpool fuse: --weights must be numbers, W,W,..., got '{weights}'\n"
    for C in ("0", "nan"):
        wrong = run("fuse", files / "rgb.scores", files / "motion.scores", "--svm-c", C, code=2)
        assert wrong == f"dynpool fuse: --svm-c must be a positive number, got {float(C)}\n"
    about = asdict(RGB.about) | {"skipped": "many"}
    (files / "odd.scores").write_text(f"# {json.dumps(about)}\nvideo,label,a\n")
    wrong = run("fuse", files / "rgb.scores", files / "odd.scores", code=2)
    assert wrong.startswith(f"dynpool fuse: {files / 'odd.scores'}, line 1 must be")
    (files / "odd.npz").write_bytes(b"no features")
    wrong = run("fuse", files / "rgb.scores", files / "odd.npz", code=2)
    assert wrong == f"dynpool fuse: {files / 'odd.npz'} must be an .npz file of arrays without pickles, whole\n"
    (files / "folder.npz").mkdir()
    assert "dynpool compare: " in run("compare", files / "rgb.scores", files / "folder.npz", code=2)
    assert "No such file" in run("fuse", files / "rgb.scores", files / "none.scores", code=2)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("weights could not be downloaded"), "dynpool fuse: weights could not be downloaded"),
        (
            ModuleNotFoundError("No module named 'x'"),
            r"dynpool fuse: No module named 'x': pip install 'dynpool\[train\]'",
        ),
        (RuntimeError("operator torchvision::nms does not exist"), "dynpool fuse: torchvision, .* does not fit this"),
        (RuntimeError("a mistake of ours"), None),
    ],
)
def test_what_a_user_can_mend_is_said_in_a_line(capsys, error, message):
    with pytest.raises(RuntimeError if message is None else typer.Exit), commands._said("fuse"):
        raise error
    assert re.match(message or "$", capsys.readouterr().err)


def test_the_command_fuse_on_all_splits(tmp_path):
    for split in ("1", "2"):
        write(stream(RGB.values, split=split), tmp_path / "rgb" / f"{split}.scores")
        write(stream(MOTION.values, "dynamic images", split=split), tmp_path / "motion" / f"{split}.scores")
    out = run("fuse", tmp_path / "rgb", tmp_path / "motion", "-o", tmp_path / "fused")
    assert out.splitlines()[-2].split()[:3] == ["mean", "8", "100.0"]
    assert sorted(path.name for path in (tmp_path / "fused").iterdir()) == ["1.scores", "2.scores"]
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install dynpool[train]")
    (train, labels), names = features(), list(RGB.names)
    content = {"train_features": train, "train_labels": labels, "test_names": names, "classes": CLASSES}
    (tmp_path / "idt").mkdir()
    for split in ("1", "2"):
        test = {"test_features": train[RGB.labels], "test_labels": RGB.labels}
        np.savez(tmp_path / "idt" / f"{split}.npz", **content, **test)
    out = run("fuse", tmp_path / "rgb", tmp_path / "idt")
    assert "splits 1, 2, 0.5 × RGB frames + 0.5 × idt, linear SVM" in out
    (tmp_path / "motion" / "2.scores").unlink()
    assert "must have the same number of splits" in run("fuse", tmp_path / "rgb", tmp_path / "motion", code=2)


def test_files_of_a_folder_are_splits_that_are_named_by_them(tmp_path):
    """Where other programmes wrote them, without dynpool's first line."""
    for stream_name in ("a", "b"):
        (tmp_path / stream_name).mkdir()
        for split in ("1", "2"):
            text = f"video,label,x,y\nv{split}1,0,1,0\nv{split}2,1,0.2,0.8\n"
            (tmp_path / stream_name / f"{split}.scores").write_text(text)
    out = run("fuse", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "fused")
    assert "splits 1, 2, 0.5 × a + 0.5 × b" in out
    assert [read(tmp_path / "fused" / f"{split}.scores").names for split in (1, 2)] == [("v11", "v12"), ("v21", "v22")]


def test_the_command_compare(files):
    table = files / "a new folder" / "classes.csv"
    out = run("compare", files / "rgb.scores", files / "motion.scores", "-o", table)
    assert "dynamic images is better" in out
    assert "left out" not in out
    assert table.read_text().splitlines() == [
        "class,videos,first,second,difference",
        "walk,1,0.00,100.00,100.00",
        '"run, fast",2,50.00,100.00,50.00',
        "jump,1,100.00,0.00,-100.00",
    ]
    write(stream(MOTION.values[:3]), files / "part.scores")
    assert "1 videos that only one of them has are left out" in run(
        "compare", files / "rgb.scores", files / "part.scores"
    )


def test_results_as_files(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install dynpool[train]")
    paths = report.write_results([RGB, stream(MOTION.values, split="2")], tmp_path)
    assert [path.name for path in paths] == ["confusion.csv", "confusion.png", "classes.csv", "classes.png"]
    assert (tmp_path / "confusion.csv").read_text().splitlines() == [
        'class,jump,"run, fast",walk',
        "jump,1,1,0",
        '"run, fast",1,3,0',
        "walk,0,1,1",
    ]
    assert (tmp_path / "classes.csv").read_text().splitlines()[1:] == [
        "jump,2,0.500000",
        '"run, fast",4,0.750000',
        "walk,2,0.500000",
    ]
    for name in ("confusion.png", "classes.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
