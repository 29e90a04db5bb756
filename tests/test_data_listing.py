"""Which videos there are: official lists, folders, and what is missing."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import clips
import pytest

from dynpool.data import (
    Listing,
    Video,
    class_counts,
    class_folders,
    groups,
    hmdb51,
    hmdb51_entries,
    make_listing,
    people,
    splits,
    ucf101,
    ucf101_entries,
    weizmann,
)
from dynpool.data.folders import GROUPS, divide
from dynpool.data.listing import pictures_of
from dynpool.data.named import dataset_and_root

LISTS = clips.DATA / "splits"
real_lists = pytest.mark.skipif(not LISTS.is_dir(), reason=f"no split lists in {LISTS}")


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@pytest.fixture
def ucf_lists(tmp_path):
    """Three classes; line ends of all kinds, with and without the last, an empty line, a byte order mark."""
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "classInd.txt").write_bytes(b"\xef\xbb\xbf1 Archery\r\n2 Biking\r\n3 HandstandPushups")
    (folder / "trainlist01.txt").write_bytes(
        b"Biking/v_Biking_g08_c01.avi 2\r\n\r\nArchery/v_Archery_g08_c01.avi 1\n"
        b"HandstandPushups/v_HandStandPushups_g01_c01.avi 3\rArchery/v_Archery_g09_c01.avi 1"
    )
    (folder / "testlist01.txt").write_bytes(b"Archery/v_Archery_g01_c01.avi \r\nBiking/v_Biking_g01_c01.avi\r\n")
    return folder


def test_lines_of_ucf101(ucf_lists):
    train, classes = ucf101_entries(ucf_lists, 1, "train")
    assert classes == ["Archery", "Biking", "HandstandPushups"]
    assert [(e.stem, e.label) for e in train] == [
        ("v_Biking_g08_c01", 1),
        ("v_Archery_g08_c01", 0),
        ("v_HandStandPushups_g01_c01", 2),
        ("v_Archery_g09_c01", 0),
    ]
    test, _ = ucf101_entries(ucf_lists, 1, "test")
    assert [(e.folder, e.stem, e.label) for e in test] == [
        ("Archery", "v_Archery_g01_c01", 0),
        ("Biking", "v_Biking_g01_c01", 1),
    ]


@pytest.mark.parametrize(
    "line",
    ["Archery/v_Archery_g08_c01.avi 2", "Fencing/v_Fencing_g08_c01.avi 1", "v_Archery_g08_c01.avi 1", "Archery/x 1 1"],
)
def test_a_line_that_makes_no_sense_is_named(ucf_lists, line):
    (ucf_lists / "trainlist02.txt").write_text(f"Archery/v_Archery_g08_c01.avi 1\n{line}\n")
    with pytest.raises(ValueError, match=r"trainlist02\.txt, line 2 must be"):
        ucf101_entries(ucf_lists, 2, "train")


def test_ucf101_on_disk_in_every_layout(ucf_lists, tmp_path):
    root = tmp_path / "UCF-101"
    touch(
        root,
        "Biking/v_Biking_g08_c01.mp4",  # encoded anew
        "v_Biking_g08_c01.avi",  # the class's folder goes before
        "v_Archery_g08_c01.avi",  # straight in the root
        "HandStandPushups/v_HandstandPushups_g01_c01.avi",  # the letter case of many copies
        "Archery/v_Archery_g09_c01/0001.jpg",  # its frames
    )
    (ucf_lists / "trainlist03.txt").write_text("Biking/v_Biking_g01_c02.avi 2")
    touch(root, "v_Biking_g01_c02/00001.jpg")  # frames straight in the root
    assert ucf101(root, 3, "train", ucf_lists)[0].path == str(root / "v_Biking_g01_c02")
    listing = ucf101(root, 1, "train", ucf_lists)
    assert [video.label for video in listing] == [1, 0, 2, 0]
    assert [video.path[len(str(root)) + 1 :] for video in listing] == [
        "Biking/v_Biking_g08_c01.mp4",
        "v_Archery_g08_c01.avi",
        "HandStandPushups/v_HandstandPushups_g01_c01.avi",
        "Archery/v_Archery_g09_c01",
    ]
    assert listing.missing == ()
    assert listing.name == "ucf101 split 1 train"
    assert class_counts(listing) == {"Archery": 2, "Biking": 1, "HandstandPushups": 1}


def test_missing_videos_are_counted_and_named(ucf_lists, tmp_path):
    touch(tmp_path / "videos", "Biking/v_Biking_g08_c01.avi", "Biking/note.txt")
    with pytest.warns(RuntimeWarning, match=r"1 videos of 3 classes; 3 of 4 listed are missing, the first: Archery"):
        listing = ucf101(tmp_path / "videos", 1, "train", ucf_lists)
    assert len(listing) == 1
    assert listing.missing == (
        "Archery/v_Archery_g08_c01",
        "HandstandPushups/v_HandStandPushups_g01_c01",
        "Archery/v_Archery_g09_c01",
    )


def test_what_is_listed_twice_counts_once(ucf_lists, tmp_path):
    touch(tmp_path, "Archery/v_Archery_g01_c01.avi", "Biking/v_Biking_g01_c01.avi")
    with (ucf_lists / "testlist01.txt").open("a") as lines:
        lines.write("Biking/v_BIKING_g01_c01.avi\nArchery/v_Archery_g01_c01.avi\n")
    with pytest.warns(RuntimeWarning, match=r"ucf101 split 1 test lists videos twice.*: Biking/v_BIKING_g01_c01 is"):
        listing = ucf101(tmp_path, 1, "test", ucf_lists)
    assert [video.name for video in listing] == ["Archery/v_Archery_g01_c01", "Biking/v_Biking_g01_c01"]


def test_a_class_that_is_there_twice_is_named(ucf_lists):
    (ucf_lists / "classInd.txt").write_text("1 Archery\n2 Biking\n3 Archery\n")
    with pytest.raises(ValueError, match=r"classInd\.txt, line 3: the class 'Archery' is there twice"):
        ucf101_entries(ucf_lists, 1, "train")


def test_a_list_that_is_no_text_is_named(ucf_lists):
    (ucf_lists / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi", encoding="utf-16")
    with pytest.raises(ValueError, match=r"testlist01\.txt must be UTF-8 text"):
        ucf101_entries(ucf_lists, 1, "test")


def test_none_of_the_videos_is_an_error(ucf_lists, tmp_path):
    touch(tmp_path / "videos", "Biking/other.avi")
    with pytest.raises(FileNotFoundError, match="has none of the 4 videos of ucf101 split 1 train"):
        ucf101(tmp_path / "videos", 1, "train", ucf_lists)
    for lists in (ucf_lists, None):
        with pytest.raises(FileNotFoundError, match="root must be a folder"):
            ucf101(tmp_path / "elsewhere", 1, "train", lists)


def test_lists_are_looked_for_beside_the_videos(ucf_lists, tmp_path):
    touch(tmp_path / "UCF-101", "Biking/v_Biking_g01_c01.avi", "Archery/v_Archery_g01_c01.avi")
    with pytest.raises(FileNotFoundError, match=r"lists must be a folder with classInd\.txt; looked in"):
        ucf101(tmp_path / "UCF-101", 1, "test")
    ucf_lists.rename(tmp_path / "ucfTrainTestlist")
    assert len(ucf101(tmp_path / "UCF-101", 1, "test")) == 2


@pytest.mark.parametrize(("split", "subset"), [(0, "train"), (4, "train"), (1, "val")])
def test_unknown_splits_and_subsets(ucf_lists, split, subset):
    with pytest.raises(ValueError, match="must be"):
        ucf101_entries(ucf_lists, split, subset)


def test_lines_of_hmdb51(tmp_path):
    (tmp_path / "wave_test_split1.txt").write_bytes(b"a#b_wave_1.avi 1 \na_wave_2.avi 2 \nwith space_3.avi 0 \n")
    (tmp_path / "clap_test_split1.txt").write_bytes(b"clap_0.avi 2 \r\nx y_clap_1.avi 1\r\n")
    (tmp_path / "clap_test_split2.txt").write_bytes(b"clap_0.avi 1 \n")
    train, classes = hmdb51_entries(tmp_path, 1, "train")
    assert classes == ["clap", "wave"]
    assert [tuple(e) for e in train] == [("clap", "x y_clap_1", 0), ("wave", "a#b_wave_1", 1)]
    assert [e.stem for e in hmdb51_entries(tmp_path, 1, "test")[0]] == ["clap_0", "a_wave_2"]
    (tmp_path / "wave_test_split1.txt").write_text("a_wave_1.avi 3")
    with pytest.raises(ValueError, match=r"wave_test_split1\.txt, line 1 must be"):
        hmdb51_entries(tmp_path, 1, "test")
    with pytest.raises(FileNotFoundError, match="test_split3"):
        hmdb51_entries(tmp_path, 3, "test")


def test_hmdb51_on_disk(tmp_path):
    (tmp_path / "testTrainMulti_7030_splits").mkdir()
    (tmp_path / "testTrainMulti_7030_splits" / "wave_test_split1.txt").write_text("a_1.avi 1 \nb_2.avi 2 \n")
    touch(tmp_path / "hmdb51_org", "wave/a_1.avi", "wave/b_2.avi")
    assert [video.name for video in hmdb51(tmp_path / "hmdb51_org", 1, "test")] == ["wave/b_2"]


@real_lists
@pytest.mark.parametrize(
    ("entries", "dataset", "split", "train", "test", "classes"),
    [
        (ucf101_entries, "ucf101", 1, 9537, 3783, 101),
        (ucf101_entries, "ucf101", 2, 9586, 3734, 101),
        (ucf101_entries, "ucf101", 3, 9624, 3696, 101),
        (hmdb51_entries, "hmdb51", 1, 3570, 1530, 51),
        (hmdb51_entries, "hmdb51", 2, 3570, 1530, 51),
        (hmdb51_entries, "hmdb51", 3, 3570, 1530, 51),
    ],
)
def test_the_official_lists(entries, dataset, split, train, test, classes):
    trained, names = entries(LISTS / dataset, split, "train")
    tested, _ = entries(LISTS / dataset, split, "test")
    assert (len(trained), len(tested), len(names)) == (train, test, classes)
    assert {e.label for e in trained} == {e.label for e in tested} == set(range(classes))
    assert all(names[e.label] == e.folder for e in trained + tested)
    assert not {e.name for e in trained} & {e.name for e in tested}
    assert len({e.name for e in trained + tested}) == train + test


@real_lists
def test_real_clips_of_ucf101_by_the_official_lists():
    clips.real_clips("ucf101")
    with pytest.warns(RuntimeWarning, match="of 3783 listed are missing"):
        test = ucf101(clips.DATA / "clips" / "ucf101", 1, "test", LISTS / "ucf101")
    assert "BenchPress/v_BenchPress_g01_c03" in {video.name for video in test}  # groups 1 to 7 are for testing


def test_folders_by_class(tmp_path):
    touch(tmp_path, *(f"{c}/{c}_{i}.avi" for c in ("jump", "run") for i in range(10)), "notes/readme.txt", ".git/x.avi")
    train, test = (class_folders(tmp_path, 1, subset) for subset in ("train", "test"))
    assert train.classes == test.classes == ("jump", "run")
    assert class_counts(test) == {"jump": 3, "run": 3}
    assert sorted(v.name for v in (*train, *test)) == sorted(f"{c}/{c}_{i}" for c in ("jump", "run") for i in range(10))
    assert class_folders(tmp_path, 1, "test") == test
    assert class_folders(tmp_path, 2, "test") != test
    assert len(class_folders(tmp_path, 1, "test", test_fraction=0.01)) == 2  # at least one a class
    assert len(class_folders(tmp_path, 1, "train", test_fraction=0.99)) == 2


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="file names are text here")
def test_names_need_not_be_utf8(tmp_path):
    (tmp_path / "run").mkdir()
    for name in (b"a.avi", b"lat\xe9n.avi", b"z.avi"):
        Path(os.fsdecode(os.fsencode(tmp_path / "run") + b"/" + name)).touch()
    names = [video.name for subset in ("train", "test") for video in class_folders(tmp_path, 1, subset)]
    assert sorted(names) == ["run/a", "run/lat\udce9n", "run/z"]


def test_folders_keep_groups_together(tmp_path):
    touch(tmp_path, *(f"run/v_g{g:02d}_c{c}.avi" for g in range(6) for c in range(4)))
    test = class_folders(tmp_path, 3, "test", group=r"_g(\d+)_", test_fraction=0.34)
    chosen = {video.name[len("run/v_g") :][:2] for video in test}
    assert len(chosen) == 2
    assert len(test) == 8
    assert groups(tmp_path, r"_g(\d+)_") == [f"{g:02d}" for g in range(6)]
    left_out = class_folders(tmp_path, "03", "test", group=r"_g(\d+)_")
    assert [v.name for v in left_out] == [f"run/v_g03_c{c}" for c in range(4)]
    for group, told in (("_x(.)", "does not match"), ("_g.", "does not match"), ("(y)?", "does not match")):
        with pytest.raises(ValueError, match=told):
            class_folders(tmp_path, 1, "test", group=group)
    with pytest.raises(ValueError, match=r"group must be a regular expression, got '\('"):
        groups(tmp_path, "(")
    with pytest.raises(ValueError, match="split must be one of 00, 01"):
        class_folders(tmp_path, "77", "test", group=r"_g(\d+)_")


@pytest.mark.parametrize("split", range(1, 6))
def test_groups_are_kept_together_over_all_classes(tmp_path, split):
    """Of nine, five and three people in a class."""
    people = {"run": range(9), "jump": range(5), "wave": range(3, 6)}
    touch(tmp_path, *(f"{folder}/p{person}_{folder}.avi" for folder, some in people.items() for person in some))
    train, test = (
        {video.name.split("/")[1][:2] for video in class_folders(tmp_path, split, subset, group=r"^(p\d)_")}
        for subset in ("train", "test")
    )
    assert train | test == {f"p{person}" for person in range(9)}
    assert not train & test
    assert test


def test_every_class_gets_a_group_to_test(tmp_path):
    """Of ten classes with groups of their own; and of one that has none to spare, which is said."""
    touch(tmp_path, *(f"c{c}/c{c}g{g}_.avi" for c in range(10) for g in range(4)))
    assert class_counts(class_folders(tmp_path, 1, "test", test_fraction=0.1, group="^(.*)_")) == {
        f"c{c}": 1 for c in range(10)
    }
    touch(tmp_path, "d/all_1.avi", "d/all_2.avi")
    with pytest.warns(RuntimeWarning, match="no group can be taken from d: all videos of it are for training"):
        assert class_counts(class_folders(tmp_path, 1, "test", group="^(.*)_"))["d"] == 0


def test_one_group_cannot_be_divided(tmp_path):
    touch(tmp_path, "run/p1_a.avi", "run/p1_b.avi", "jump/p1_a.avi")
    with pytest.raises(ValueError, match="test_fraction needs at least two groups to divide, got 1"):
        class_folders(tmp_path, 1, "test", group=r"^(p\d)_")


def test_folders_named_train_and_test(tmp_path):
    touch(tmp_path, "train/run/a.avi", "train/jump/b.avi", "test/run/c.avi")
    assert [(v.name, v.label) for v in class_folders(tmp_path, 1, "train")] == [("jump/b", 0), ("run/a", 1)]
    assert [(v.name, v.label) for v in class_folders(tmp_path, 1, "test")] == [("run/c", 1)]
    assert splits("folders", tmp_path) == splits("folders", tmp_path, "(.)") == [1]


def test_halves_and_their_classes_in_any_case_of_letters(tmp_path):
    touch(tmp_path, "Train/Run/a.avi", "Train/jump/b.avi", "TEST/run/c.avi", "TEST/JUMP/d.avi")
    train, test = (class_folders(tmp_path, 1, subset) for subset in ("train", "test"))
    assert train.classes == test.classes == ("Run", "jump")
    assert [(v.name, v.label) for v in test] == [("Run/c", 0), ("jump/d", 1)]
    assert splits("folders", tmp_path) == [1]


def test_one_half_is_not_taken_for_a_class(tmp_path):
    touch(tmp_path, "a/train/run/a.avi", "a/val/run/b.avi", "a/jump/c.avi", "b/Test/run/a/1.png")
    for name, half in (("a", "train"), ("b", "Test")):
        with pytest.raises(
            FileNotFoundError, match=f"both train and test where .*, got '.*{name}', which has {half} alone"
        ):
            class_folders(tmp_path / name)
    touch(tmp_path, "c/train/a.avi", "c/bus/b.avi", "d/train/a/1.png", "d/bus/b/1.png")
    for name in "cd":  # where it is one
        with pytest.warns(RuntimeWarning, match="has one video only"):
            assert class_folders(tmp_path / name).classes == ("bus", "train")


def test_of_a_class_without_training_videos_it_is_said(tmp_path):
    touch(tmp_path, "train/run/a.avi", "test/run/c.avi", "test/walk/d.avi")
    with pytest.warns(RuntimeWarning, match="nothing is trained of walk: all videos of it are in .*test"):
        assert class_folders(tmp_path).classes == ("run", "walk")


def test_not_all_in_a_class_s_folder_is_a_video(tmp_path):
    """Pictures may stand for videos, but not beside them."""
    touch(
        tmp_path, "run/a.avi", "run/b.avi", "run/old/notes.txt", "run/empty/deep/1.png", "run/cover.jpg", "run/c/1.png"
    )
    touch(tmp_path, "jump/d_0000.png", "jump/e.png")
    with pytest.warns(RuntimeWarning, match="run has videos: pictures in it are left out, such as cover"):
        names = [v.name for subset in ("train", "test") for v in class_folders(tmp_path, 1, subset)]
    assert sorted(names) == ["jump/d", "jump/e", "run/a", "run/b", "run/c"]


def test_a_class_of_one_video_is_for_training(tmp_path):
    touch(tmp_path, "run/a.avi", "jump/b.avi", "jump/c.avi")
    with pytest.warns(RuntimeWarning, match="class run has one video only"):
        assert len(class_folders(tmp_path, 1, "test")) == 1


def test_folders_say_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no class"):
        class_folders(tmp_path)
    touch(tmp_path, "run/a.avi", "run/b.avi")
    with pytest.raises(ValueError, match="test_fraction must be between 0 and 1, got 1"):
        class_folders(tmp_path, 1, "test", test_fraction=1)
    with pytest.raises(ValueError, match="subset must be 'train' or 'test', got 'val'"):
        class_folders(tmp_path, 1, "val")


def test_two_files_of_one_name_are_not_silently_one(tmp_path):
    touch(tmp_path, "run/a.avi", "run/a.mp4", "run/b.avi", "run/c/1.png")
    with pytest.warns(RuntimeWarning, match=r"a\.mp4 has the name of .*a\.avi and is left out"):
        train = class_folders(tmp_path, 1, "train")
    assert len(train) == 2


def test_weizmann_leaves_one_person_out(tmp_path):
    touch(tmp_path, *(f"{c}/{p}_{c}{n}.avi" for c in ("run", "walk") for p in ("ann", "bob", "cy") for n in ("", 2)))
    assert people(tmp_path) == splits("weizmann", tmp_path) == ["ann", "bob", "cy"]
    test = weizmann(tmp_path, "bob", "test")
    assert [v.name for v in test] == ["run/bob_run", "run/bob_run2", "walk/bob_walk", "walk/bob_walk2"]
    assert not {v.name for v in weizmann(tmp_path, "bob")} & {v.name for v in test}
    assert make_listing("weizmann", tmp_path, "bob", "test") == test
    assert test.name == "weizmann split bob test"
    for nobody in ("eve", 1):  # 1 is the split of who names none
        message = f"split must name the person to leave out, one of ann, bob, cy, got '{nobody}'"
        with pytest.raises(ValueError, match=message):
            make_listing("weizmann", tmp_path, nobody, "train")


def test_a_wrong_folder_of_weizmann(tmp_path):
    touch(tmp_path, "weizmann/run/ann_run.avi", "clips/boats/tree.avi")
    with pytest.raises(FileNotFoundError, match=r"<class>/<video>, got '.*', which has no class: none of its folders"):
        weizmann(tmp_path / "weizmann" / "run", "ann")
    with pytest.raises(
        ValueError, match=r"root must be .*<class>/<person>_<class>\.avi, got '.*', which has boats/tree"
    ):
        weizmann(tmp_path / "clips", "ann")


def test_folders_of_folders_are_no_classes(tmp_path):
    touch(tmp_path, "weizmann/run/ann_run.avi", "weizmann/walk/ann_walk.avi", "other/deep/er/1.png")
    with pytest.raises(FileNotFoundError, match="which has no class"):
        class_folders(tmp_path, "ann", "train", group=r"^([^_]+)_")
    touch(tmp_path, "frames/b/1.png", "frames/c/1.png")
    assert class_folders(tmp_path).classes == ("frames",)


@pytest.mark.skipif(not (clips.DATA / "weizmann").is_dir(), reason="no Weizmann videos")
def test_the_whole_of_weizmann():
    persons = people(clips.DATA / "weizmann")
    assert persons == ["daria", "denis", "eli", "ido", "ira", "lena", "lyova", "moshe", "shahar"]
    train, test = (weizmann(clips.DATA / "weizmann", "lena", subset) for subset in ("train", "test"))
    assert (len(train), len(test), len(train.classes)) == (80, 10, 10)
    assert set(class_counts(test).values()) == {1}


def test_training_videos_are_set_aside_by_groups(tmp_path):
    touch(tmp_path, *(f"{c}/{p}_{c}{n}.avi" for c in ("run", "walk") for p in "abcdef" for n in ("", 2)))
    train = weizmann(tmp_path, "f", "train")
    kept, aside = divide(train, 0.3, r"^([^_]+)_")
    assert len(aside) == 2 * 4  # two of five people, 30 % rounded
    assert sorted({*kept.videos, *aside.videos}) == sorted(train.videos)
    assert not {v.name.split("/")[1][0] for v in kept} & {v.name.split("/")[1][0] for v in aside}
    assert divide(train, 0.3) == (kept, aside)  # people are the groups of Weizmann
    assert divide(replace(train, missing=("run/g_run",)), 0.3) == (kept, aside)  # of which neither misses any
    kept, aside = divide(replace(train, dataset="folders"), 0.3)
    assert class_counts(aside) == {"run": 3, "walk": 3}
    with pytest.raises(ValueError, match="at least two groups"):
        divide(train, 0.3, "(_)")


def listed(names, dataset="folders"):
    """A listing of names <class>/<video>."""
    classes = sorted({name.split("/")[0] for name in names})
    videos = tuple(Video(name, classes.index(name.split("/")[0]), name) for name in names)
    return Listing(videos, tuple(classes), dataset, "1", "train")


@pytest.mark.parametrize("draw", range(8))
def test_a_group_too_large_for_its_class_is_not_set_aside(draw):
    """Of 20 videos, 10 are of one film: 4 are wanted, and the other films have one each."""
    train = listed([f"run/{film}_{i}" for film, count in [("glory", 10), *((f"f{n}", 1) for n in range(10))]
                    for i in range(count)])  # fmt: skip
    kept, aside = divide(train, 0.2, "^(.+)_", draw)
    assert (len(kept), len(aside)) == (16, 4)
    assert "glory" not in {video.name[len("run/") :].split("_")[0] for video in aside}


@pytest.mark.parametrize("draw", range(8))
def test_videos_of_every_class_stay_to_train_on(draw):
    """The only film of a class may not be set aside, whatever it would bring to the others."""
    train = listed(["rare/glory_0", *(f"run/{film}_{n}" for film in ("glory", "b") for n in range(2))])
    kept, aside = divide(train, 0.1, "^(.+)_", draw)
    assert [video.name for video in aside] == ["run/b_0", "run/b_1"]
    assert len(kept) == 3
    with pytest.raises(ValueError, match="got such alone as have all videos of a class"):
        divide(listed(["run/a_0", "walk/b_0"]), 0.1, "^(.+)_", draw)


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.5, 2), (0.99, 3)])
def test_one_group_at_least_on_each_side(fraction, count):
    kept, aside = divide(listed([f"run/{film}_0" for film in "abcd"]), fraction, "^(.)")
    assert (len(kept), len(aside)) == (4 - count, count)


@pytest.mark.parametrize(
    ("name", "film"),
    [
        ("RATRACE_wave_f_nm_np1_fr_goo_37", "RATRACE"),
        ("21_wave_u_nm_np1_fr_goo_5", "21"),
        ("19th_Century_Cavalry_Sabre_Draw_draw_sword_u_nm_np1_fr_bad_1", "19th_Century_Cavalry_Sabre_Draw"),
        ("rope_climb_Olivia_Age_4_climb_f_cm_np1_ba_med_1", "rope_climb_Olivia_Age_4"),
        ("boom_snap_clap_(challenge)_clap_u_nm_np1_fr_med_0", "boom_snap_clap_(challenge)"),
        ("hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6", "hmdb51_Turnk_r_Pippi_Michel"),
    ],
)
def test_films_of_hmdb51(name, film):
    assert re.search(GROUPS["hmdb51"], name)[1] == film


@real_lists
@pytest.mark.parametrize("split", [1, 2, 3])
@pytest.mark.parametrize(
    ("entries", "dataset", "source"),
    [
        (ucf101_entries, "ucf101", lambda entry: entry.stem.split("_g")[1][:2]),
        (hmdb51_entries, "hmdb51", lambda entry: entry.stem.rpartition(f"_{entry.folder}_")[0]),
    ],
)
def test_official_training_videos_are_set_aside_by_their_source(entries, dataset, source, split):
    train, _ = entries(LISTS / dataset, split, "train")
    sources = {entry.name: source(entry) for entry in train}
    own = Counter(entry.folder for entry in train)
    kept, aside = divide(listed([entry.name for entry in train], dataset), 0.1)
    assert len(kept) + len(aside) == len(train)
    assert not {sources[video.name] for video in kept} & {sources[video.name] for video in aside}
    assert 0.1 <= len(aside) / len(train) < 0.13  # sources are whole: in a class, half and twice of it at worst
    assert all(0.05 < count / own[name] < 0.22 for name, count in class_counts(aside).items())


@real_lists
def test_the_groups_of_hmdb51_are_what_stands_before_the_class():
    halves = [hmdb51_entries(LISTS / "hmdb51", 1, half)[0] for half in ("train", "test")]
    for entry in (*halves[0], *halves[1]):
        assert re.search(GROUPS["hmdb51"], entry.stem)[1] == entry.stem.rpartition(f"_{entry.folder}_")[0]


def test_numbers_that_a_name_of_its_own_ends_in_are_no_windows(tmp_path):
    names = [f"run/id_{start:06d}_{start + 10:06d}.png" for start in (0, 10)]  # as Kinetics calls its clips
    touch(tmp_path, *names, "jump/a.png", "jump/b.png")
    videos = class_folders(tmp_path, test_fraction=0.5), class_folders(tmp_path, subset="test", test_fraction=0.5)
    found = {video.path: video.name for listing in videos for video in listing if video.name.startswith("run")}
    assert found == {str(tmp_path / name): name.removesuffix(".png") for name in names}
    assert all(pictures_of(path) == [Path(path)] for path in found)


def test_pictures_stand_for_videos(tmp_path):
    touch(tmp_path, "run/a.png", *(f"run/b_{i:04d}.png" for i in (0, 10000, 2000)), "run/b_other_0000.png")
    listing = class_folders(tmp_path, 1, "train", test_fraction=0.3)
    names = {v.name for v in listing} | {v.name for v in class_folders(tmp_path, 1, "test")}
    assert names == {"run/a", "run/b", "run/b_other"}
    touch(tmp_path, "run/b_0001.jpg")
    found = pictures_of(tmp_path / "run" / "b_2000.png")
    assert [path.name for path in found] == ["b_0000.png", "b_2000.png", "b_10000.png"]
    assert [path.name for path in pictures_of(tmp_path / "run" / "a.png")] == ["a.png"]


def test_datasets_by_name(tmp_path):
    with pytest.raises(ValueError, match="dataset must be one of 'ucf101', 'hmdb51', 'weizmann', 'folders', got 'kth'"):
        make_listing("kth", tmp_path, 1, "train")
    with pytest.raises(ValueError, match="split must be 1, 2 or 3, got 'lena'"):
        make_listing("ucf101", tmp_path, "lena", "train")
    assert splits("hmdb51", tmp_path) == [1, 2, 3]


@pytest.mark.parametrize(
    ("data", "dataset", "root"),
    [
        ("ucf101:UCF-101", "ucf101", "UCF-101"),
        ("UCF101:UCF-101", "ucf101", "UCF-101"),
        ("Weizmann:C:\\weizmann", "weizmann", "C:\\weizmann"),
        ("folders:a:b", "folders", "a:b"),
        ("clips", "folders", "clips"),
        ("C:\\clips", "folders", "C:\\clips"),
        ("c:/clips", "folders", "c:/clips"),
        ("/data/a:b", "folders", "/data/a:b"),
        ("./ucf101:old", "folders", "./ucf101:old"),
    ],
)
def test_names_before_folders(data, dataset, root):
    assert dataset_and_root(data) == (dataset, root)


def test_unknown_names_before_folders(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"one of 'ucf101', 'hmdb51', 'weizmann', 'folders', got 'ucf:UCF-101', which"):
        dataset_and_root("ucf:UCF-101")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ucf:UCF-101").mkdir()
    assert dataset_and_root("ucf:UCF-101") == ("folders", "ucf:UCF-101")
