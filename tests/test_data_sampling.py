"""Windows and frames, beside tables written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dynpool
from dynpool.data import Sampling, recipe, window_starts


def random(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("frames", "window", "stride", "offset", "starts"),
    [
        (12, 6, 4, 0, [0, 4, 8]),
        (14, 6, 4, 0, [0, 4, 8]),
        (15, 6, 4, 0, [0, 4, 8, 12]),
        (6, 6, 4, 0, [0]),
        (3, 6, 4, 0, [0]),
        (1, 25, 20, 0, [0]),
        (45, 25, 20, 0, [0, 20]),
        (46, 25, 20, 0, [0, 20, 40]),
        (100, 25, 20, 0, [0, 20, 40, 60, 80]),
        (12, 6, 4, 2, [2, 6]),
        (13, 6, 4, 2, [2, 6, 10]),
        (10, 2, 5, 0, [0, 5]),
        (11, 2, 5, 0, [0, 5, 10]),
        (10, 2, 9, 0, [0, 9]),
        (9, 2, 9, 0, [0]),
    ],
)
def test_starts(frames, window, stride, offset, starts):
    assert window_starts(frames, window, stride, offset) == starts


@pytest.mark.parametrize("frames", [1, 5, 24, 25, 26, 45, 46, 99])
def test_windows_are_those_of_dynamic_images(frames):
    video = torch.randint(0, 256, (frames, 3, 5, 7), dtype=torch.uint8)
    indices = Sampling(25, 20).indices(frames, random())
    padded = video[torch.from_numpy(indices)]
    images = dynpool.dynamic_images(video, window=25, stride=20, method="mean", nonlinearity="identity")
    assert len(images) == len(indices)
    expected = padded.double().mean(1)
    assert (images.double() - expected).abs().max() <= 0.5 + 1e-3


TABLES = {
    "a video as it is": (Sampling(), 4, [[0, 1, 2, 3]]),
    "windows, the last one padded": (Sampling(4, 3), 8, [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 7, 7]]),
    "shorter than a window": (Sampling(4, 3), 2, [[0, 1, 1, 1]]),
    "stride by default": (Sampling(2), 5, [[0, 1], [2, 3], [4, 4]]),
    "backwards": (Sampling(4, 3, reverse=1), 8, [[7, 6, 5, 4], [4, 3, 2, 1], [1, 0, 0, 0]]),
    "three of five windows": (Sampling(2, 2, max_windows=3), 10, [[0, 1], [4, 5], [8, 9]]),
    "two of five windows": (Sampling(2, 2, max_windows=2), 10, [[0, 1], [8, 9]]),
    "one of five windows": (Sampling(2, 2, max_windows=1), 10, [[4, 5]]),
    "as many as there are": (Sampling(2, 2, max_windows=5), 10, [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]),
    "the middle frame": (Sampling(frames=1), 9, [[4]]),
    "the middle frame of an even number": (Sampling(frames=1), 8, [[4]]),
    "middles of three parts": (Sampling(frames=3), 12, [[2, 6, 10]]),
    "fewer frames than wanted": (Sampling(frames=5), 3, [[0, 1, 2]]),
    "windows, thinned": (Sampling(4, 4, frames=2), 8, [[1, 3], [5, 7]]),
}


@pytest.mark.parametrize(("sampling", "frames", "table"), TABLES.values(), ids=TABLES)
def test_frames(sampling, frames, table):
    assert sampling.indices(frames, random()).tolist() == table


def test_jitter_moves_the_windows_by_less_than_a_stride():
    sampling = Sampling(4, 3, jitter=True)
    seen = {tuple(sampling.indices(11, random(seed))[:, 0]) for seed in range(60)}
    assert seen == {(0, 3, 6, 9), (1, 4, 7), (2, 5, 8)}
    assert {tuple(sampling.indices(5, random(s))[:, 0]) for s in range(60)} == {(0, 3), (1,)}  # a window must fit
    assert sampling.indices(3, random()).tolist() == [[0, 1, 2, 2]]


def test_jitter_draws_windows_in_order_and_all_alike_often():
    sampling = Sampling(2, 2, max_windows=2, jitter=True)
    counts = np.zeros(5)
    for seed in range(500):
        starts = sampling.kept(5, random(seed))
        assert starts == sorted(set(starts))
        counts[starts] += 1
    assert counts.sum() == 1000
    assert counts.min() > 200 - 5 * 11  # 500 draws of probability 0.4: standard deviation 11


def test_jitter_draws_a_frame_from_every_part():
    sampling = Sampling(frames=3, jitter=True)
    drawn = np.array([sampling.indices(12, random(seed))[0] for seed in range(200)])
    assert [set(column) for column in drawn.T] == [{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}]


def test_backwards_now_and_then():
    drawn = [Sampling(reverse=0.25).indices(3, random(seed))[0, 0] == 2 for seed in range(400)]
    assert abs(sum(drawn) - 100) < 5 * 8.7  # standard deviation √(400 · 0.25 · 0.75)
    assert Sampling(4, reverse=0.25, jitter=True).without_chance() == Sampling(4)
    assert Sampling(reverse=0.75).without_chance() == Sampling()
    assert Sampling(reverse=1).without_chance() == Sampling(reverse=1)


def test_what_samplings_say_of_themselves():
    assert [Sampling(reverse=reverse).draws for reverse in (0, 0.5, 1)] == [False, True, False]
    assert Sampling(4, jitter=True).draws
    assert [Sampling(frames=frames).clip_frames for frames in (None, 1, 3)] == [None, 1, None]
    assert [Sampling(4, frames=frames).clip_frames for frames in (None, 1, 3, 9)] == [4, 1, 3, 4]


def test_the_middle_window():
    assert [Sampling(2, max_windows=1).kept(count, random()) for count in (1, 2, 3, 4)] == [[0], [0], [1], [1]]


def test_recipes():
    assert recipe("paper", True) == recipe("paper", False) == Sampling(25, 20)
    assert recipe("authors_release", True) == Sampling(10, 6, max_windows=10, jitter=True)
    assert recipe("authors_release", False) == Sampling(10, 6, max_windows=20)
    assert recipe("whole", True) == Sampling()
    assert recipe("authors_release", False).indices(150, random()).shape == (20, 10)
    with pytest.raises(ValueError, match="recipe must be"):
        recipe("mine", True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, "window must be a positive integer, got 0"),
        ({"window": 2.5}, "window must be a positive integer, got 2.5"),
        ({"stride": 3}, "stride has no meaning without window, got 3"),
        ({"frames": True}, "frames must be a positive integer, got True"),
        ({"reverse": 1.5}, "reverse must be a probability"),
        ({"jitter": "yes"}, "jitter must be true or false"),
        ({"jitter": True}, "jitter has no meaning without window, frames or max_windows"),
    ],
)
def test_sampling_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**arguments)


@pytest.mark.parametrize(
    ("sampling", "frames"),
    [(Sampling(), None), (Sampling(10, 6), 10), (Sampling(10, 6, frames=4), 4), (Sampling(frames=1), 1)],
)
def test_frames_of_a_clip(sampling, frames):
    assert sampling.clip_frames == frames


def test_numbers_of_numpy():
    sampling = Sampling(np.int64(4), np.int64(3))
    assert (type(sampling.window), sampling) == (int, Sampling(4, 3))
