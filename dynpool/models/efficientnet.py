"""EfficientNet-Lite0 of the package efficientnet-lite-pytorch; imported only when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

_EfficientNet: Any = importlib.import_module("efficientnet_lite_pytorch").EfficientNet


class EfficientNetLite(_EfficientNet):  # type: ignore[misc]
    """The package's network, whose last layers take as many images as there are then, not as many as came in."""

    def forward(self, inputs: Tensor) -> Tensor:
        pooled = self._avg_pooling(self.extract_features(inputs))
        return self._fc(self._dropout(pooled.flatten(1)))
