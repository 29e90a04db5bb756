"""Networks that classify videos by dynamic images and dynamic maps (Bilen et al., CVPR 2016, section 3), and baselines.

config = ModelConfig("dynamic", num_classes=101, backbone="resnet18", weights="default", window=10, stride=6)
model = build(config)
scores = model(video, lengths)      # [B, T, 3, H, W] in 0 … 255, and how many of the T frames each video has
"""

from ..flow import optical_flow
from .backbones import Backbone, backbones, load_backbone
from .building import VideoModel, build
from .caffenet import CaffeNet
from .config import ModelConfig
from .exporting import export, export_onnx, export_pt2, plain_operators
from .extraction import Features, extract_features
from .network import TwoNetworks, VideoNetwork
from .storage import load, read_config, save

__all__ = [
    "Backbone",
    "CaffeNet",
    "Features",
    "ModelConfig",
    "TwoNetworks",
    "VideoModel",
    "VideoNetwork",
    "backbones",
    "build",
    "export",
    "export_onnx",
    "export_pt2",
    "extract_features",
    "load",
    "load_backbone",
    "optical_flow",
    "plain_operators",
    "read_config",
    "save",
]
