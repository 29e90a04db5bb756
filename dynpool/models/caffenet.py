"""CaffeNet, the network of the paper: AlexNet with pooling before normalisation (Jia et al., Caffe, 2014)."""

from __future__ import annotations

from torch import Tensor, nn


class CaffeNet(nn.Sequential):
    """Five convolutions and three fully connected layers, under their names: conv1, relu1, pool1, norm1, … fc8.

    Args:
        num_classes: outputs of fc8.
        size: height and width of the images, of which fc6 takes the maps whole; 227 in the paper, at least 67.

    Input: [N, 3, size, size], RGB less its mean, in units of 0 … 255. Weights begin as in Caffe: Gaussian.
    """

    def __init__(self, num_classes: int = 1000, size: int = 227) -> None:
        super().__init__()
        side = _side(size)
        if side < 1:
            raise ValueError(f"size must be at least 67, got {size}")
        self.size = size
        self._convolutions()
        self.add_module("flatten", nn.Flatten())
        for number, inputs in ((6, 256 * side * side), (7, 4096)):
            self.add_module(f"fc{number}", nn.Linear(inputs, 4096))
            self.add_module(f"relu{number}", nn.ReLU(inplace=True))
            self.add_module(f"drop{number}", nn.Dropout(0.5))
        self.add_module("fc8", nn.Linear(4096, num_classes))
        self._initialize()

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, num_classes]."""
        if images.dim() != 4 or any(_side(side) != _side(self.size) for side in images.shape[2:]):
            raise ValueError(f"images must have shape [N, 3, {self.size}, {self.size}], got {list(images.shape)}")
        return super().forward(images)

    def _convolutions(self) -> None:
        """Adds conv1 to pool5."""
        #        in, out, kernel, stride, padding, groups; pooled and normalised?
        layers = [
            ((3, 96, 11, 4, 0, 1), True, True),
            ((96, 256, 5, 1, 2, 2), True, True),
            ((256, 384, 3, 1, 1, 1), False, False),
            ((384, 384, 3, 1, 1, 2), False, False),
            ((384, 256, 3, 1, 1, 2), True, False),
        ]
        for number, ((inputs, outputs, kernel, stride, padding, groups), pooled, normalized) in enumerate(layers, 1):
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)
            self.add_module(f"conv{number}", convolution)
            self.add_module(f"relu{number}", nn.ReLU(inplace=True))
            if pooled:
                self.add_module(f"pool{number}", nn.MaxPool2d(3, 2))
            if normalized:
                self.add_module(f"norm{number}", nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75))

    def _initialize(self) -> None:
        spread = {"fc6": 0.005, "fc7": 0.005}
        offset = {"conv2": 1.0, "conv4": 1.0, "conv5": 1.0, "fc6": 1.0, "fc7": 1.0}
        for name, layer in self.named_children():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.normal_(layer.weight, std=spread.get(name, 0.01))
                assert layer.bias is not None
                nn.init.constant_(layer.bias, offset.get(name, 0.0))


def _side(size: int) -> int:
    """Of the maps of pool5, for images of that size."""
    side = (size - 11) // 4 + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return side
