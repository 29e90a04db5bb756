"""Features of frozen networks, for linear classifiers outside: Table 3 of the paper, second row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .backbones import CUSTOM, Backbone
from .building import VideoModel
from .config import ModelConfig
from .layers import evaluating
from .network import TwoNetworks, VideoNetwork


@dataclass(frozen=True)
class Features:
    """Of N videos: `values` float32 [N, D] on the CPU; `labels` int64 [N] and `names` where the batches had them."""

    values: Tensor
    labels: Tensor | None
    names: list[str]


def extract_features(
    model: VideoModel | Backbone | nn.Module,
    batches: Iterable[Mapping[str, Any]],
    layer: str | None = None,
    *,
    device: torch.device | str | None = None,
) -> Features:
    """What a network sees in videos, at one of its layers.

    Args:
        model: a model of `build`; or an image network, which sees each of the T images of a video by itself (dynamic
            images of its windows, or frames) up to that layer, where the maximum over the video is taken.
        batches: mappings with video [B, T, 3, H, W] and, if there are, lengths [B], label [B] and name, B strings; such
            as a DataLoader of `dynpool.data` gives.
        layer: any named layer; None: what enters the last linear layer. See `VideoNetwork.features`.
        device: where to compute; None: where the model is. The model is moved there.

    Raises:
        ValueError: there is no such layer, it puts out no maps, there are no videos, or some batches have label or
            name and others have not.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    network = model if isinstance(model, VideoNetwork | TwoNetworks) else _of_images(model)
    device = next(network.parameters()).device if device is None else torch.device(device)
    network.to(device)
    values, labels, names = [], [], []
    with evaluating(network), torch.no_grad():
        for batch in batches:
            if not len(batch["video"]):  # none could be read
                continue
            seen = network.features(batch["video"].to(device, non_blocking=True), batch.get("lengths"), layer)
            values.append(seen.float().cpu())
            names += list(batch.get("name", ()))
            if batch.get("label") is not None:
                labels.append(torch.as_tensor(batch["label"]).cpu())
    if not values:
        raise ValueError("batches must hold a video, and not be empty")
    found = Features(torch.cat(values), torch.cat(labels) if labels else None, names)
    for what, count in (("label", sum(map(len, labels))), ("name", len(names))):
        if count not in (0, len(found.values)):
            raise ValueError(f"batches must all have {what} or none, got {count} of {len(found.values)} videos with it")
    return found


def _of_images(backbone: Backbone | nn.Module) -> VideoNetwork:
    """Pools nothing on the way: `features` does, what it sees."""
    base = backbone if isinstance(backbone, Backbone) else Backbone(backbone)
    config, head = ModelConfig("dynamic", 1, CUSTOM, pool="none"), base.classifier
    return VideoNetwork(config, base.module, head=head, mean=base.mean, std=base.std, size=base.size, video_layer=None)
