"""dynpool: rank pooling and dynamic images for PyTorch (Bilen et al., CVPR 2016)."""

from . import nn
from ._build import build_info
from ._version import __version__
from .exact import RankPoolInfo, rank_pool, ranking_accuracy
from .files import VideoError
from .images import dynamic_image, dynamic_images
from .pooling import approx_rank_pool, temporal_pool
from .recipe import to_image
from .streaming import RankPoolStream
from .video import read_clip
from .weights import rank_weights

__all__ = [
    "RankPoolInfo",
    "RankPoolStream",
    "VideoError",
    "__version__",
    "approx_rank_pool",
    "build_info",
    "dynamic_image",
    "dynamic_images",
    "nn",
    "rank_pool",
    "rank_weights",
    "ranking_accuracy",
    "read_clip",
    "temporal_pool",
    "to_image",
]
