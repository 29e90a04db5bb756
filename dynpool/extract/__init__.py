"""A dataset of videos -> a dataset of dynamic images: folders like its own, or tar shards; by processes or on Ray."""

from .run import Extraction, Report, extract

__all__ = ["Extraction", "Report", "extract"]
