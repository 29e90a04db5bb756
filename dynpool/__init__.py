"""dynpool: rank pooling and dynamic images for PyTorch (Bilen et al., CVPR 2016)."""

from ._build import build_info
from ._version import __version__
from .pooling import approx_rank_pool, temporal_pool
from .weights import rank_weights

__all__ = ["__version__", "approx_rank_pool", "build_info", "rank_weights", "temporal_pool"]
