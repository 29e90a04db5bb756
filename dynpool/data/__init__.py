"""Videos to train and test on: UCF101, HMDB51, Weizmann or any folders, their splits, windows and dynamic images."""

from .dataset import Batch, Draw, Item, Notice, Notices, VideoDataset, collate
from .folders import class_folders, groups, people, weizmann
from .geometry import Geometry
from .listing import Listing, Video, class_counts
from .loader import EpochSampler, loader
from .named import DATASETS, make_listing, splits
from .official import hmdb51, hmdb51_entries, ucf101, ucf101_entries
from .sampling import Sampling, recipe, window_starts
from .throughput import Throughput, measure

__all__ = [
    "DATASETS",
    "Batch",
    "Draw",
    "EpochSampler",
    "Geometry",
    "Item",
    "Listing",
    "Notice",
    "Notices",
    "Sampling",
    "Throughput",
    "Video",
    "VideoDataset",
    "class_counts",
    "class_folders",
    "collate",
    "groups",
    "hmdb51",
    "hmdb51_entries",
    "loader",
    "make_listing",
    "measure",
    "people",
    "recipe",
    "splits",
    "ucf101",
    "ucf101_entries",
    "weizmann",
    "window_starts",
]
