"""The networks: frames or dynamic images go through a backbone as rows of its batch, pooled by hooks on named layers.

The backbone itself is not changed, but for its classifier: it keeps its forward and the names of its weights. Where
rows become fewer inside it, at the layer where frames are pooled and at the one where windows are, `Route` remembers
what the rows are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..checks import Counts, checked_lengths, described
from ..kept import kept_numbers
from .config import ModelConfig, forks, pools_at
from .frames import FramePool
from .layers import Forked, around, named_layer, named_layers, scores_of
from .rows import Rows


class Route:
    """Where the rows of one forward pass stand: of `size` after a branch, `static` in front belong to frames, the
    others to windows.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.size: int | None = None
        self.static = 0
        self.static_rows: Rows | None = None
        self.rows: Rows | None = None
        self.seen: tuple[Tensor, Rows | None, Rows | None, int] | None = None
        self.passed: list[str | None] = []  # layers at which rows were pooled


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of what it is saved as, as far as it has any yet."""
    state = model.state_dict()
    return {name: tuple(t.shape) for name, t in state.items() if isinstance(t, Tensor) and not is_lazy(t)}


class VideoNetwork(nn.Module):
    """A network that classifies videos; `build` makes it, of a configuration.

    Shapes:
        video: [B, T, 3, H, W] in pixel units 0 … 255, uint8 or floating. With pool = "none": T images of each video.
        lengths: [B] integers, for padded videos: how many of the T frames belong to it. What lies beyond is left out.
        Returns scores [B, num_classes], before the softmax.

    Raises:
        TypeError, ValueError: from forward: an argument does not fit.
        RuntimeError: from forward: a layer at which rows are pooled did not run.

    Attributes:
        config: the `ModelConfig`.
        backbone: the image network, its last linear layer made for num_classes.
        head: name of that layer.
        mean, std: of the backbone's input, in pixel units 0 … 255, one number a channel.
        size: height and width of the images that the backbone is made for.
        built: shapes of the weights that it was built with, by name.

    Layers may be replaced by others under the same names, as `nn.SyncBatchNorm.convert_sync_batchnorm` does; before
    torch.compile(fullgraph=True), call the model once then.

    One pass at a time: threads (nn.DataParallel) cannot share a model; processes (DistributedDataParallel) can. With
    `lengths`, torch.compile(fullgraph=True) takes models in evaluation; in training the number of rows depends on them.
    """

    def __init__(
        self,
        config: ModelConfig,
        backbone: nn.Module,
        *,
        head: str,
        mean: Sequence[float],
        std: Sequence[float],
        size: int,
        video_layer: str | None,
        route: Route | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.head = head
        self.size = size
        self.video_layer = video_layer
        self.backbone = backbone
        self.mean, self.std = tuple(mean), tuple(std)  # numbers, which model.bfloat16() does not round
        self._route = route or Route()
        self._pool = FramePool(config)
        named_layer(backbone, head, "head")  # neither it nor the video layer may be part of a layer that was forked
        if video_layer is not None:
            named_layer(backbone, video_layer, "video_layer")
        self._hook()
        self.built = shapes_of(self)

    def forward(self, video: Tensor, lengths: Counts | None = None) -> Tensor:
        """Scores [B, num_classes]."""
        route = self._route
        try:
            rows = scores_of(self._run(video, lengths))
            scores = self._streams(rows, route.static_rows, route.rows, route.static)
        finally:
            route.clear()
        return scores[0] if len(scores) == 1 else (scores[0] + scores[1]) / 2

    def features(self, video: Tensor, lengths: Counts | None = None, layer: str | None = None) -> Tensor:
        """What enters the last linear layer, or comes out of a named layer: [B, D].

        Maps are flattened; of a layer that runs several times, the last are taken. Frames of a static stream are
        averaged; frames and windows of a dynamic one that the layer sees apart are pooled by their maximum. A
        two-stream network gives the features of its static stream, then those of its dynamic stream.
        """
        module = named_layer(self.backbone, self.head if layer is None else layer)
        layers = named_layers(self.backbone)
        if inside := [name for name in around(layer or "") if isinstance(layers[name], Forked)]:
            raise ValueError(f"layer must be that of both streams, {inside[-1]!r}, not one inside it, got {layer!r}")
        if layer is None:
            handle = module.register_forward_pre_hook(lambda module, args: self._see(args[0]))
        else:
            handle = module.register_forward_hook(lambda module, args, output: self._see(output, layer))
        try:
            self._run(video, lengths)
            seen = self._route.seen
        finally:
            handle.remove()
            self._route.clear()
        if seen is None:
            raise ValueError(f"layer {layer!r} did not run")
        return torch.cat(self._streams(*seen), 1)

    # --- one pass --------------------------------------------------------------------------------------------------

    def _run(self, video: Tensor, lengths: Counts | None) -> Any:
        """What the backbone returns."""
        self._route.clear()
        if not torch.compiler.is_dynamo_compiling():
            self._hook()
        output = self.backbone(self._normalized(self._images(video, self._frames(video, lengths))))
        for name, _ in self._hooks():
            if name not in self._route.passed:
                raise RuntimeError(f"layer {name!r}, where rows are pooled, did not run, or was replaced")
        return output

    def _normalized(self, images: Tensor) -> Tensor:
        """What the backbone takes: in its weights' dtype and memory format, whatever the video's is, for forwards with
        `view`.
        """
        mean, std = (kept_numbers(numbers, images).view(-1, 1, 1) for numbers in (self.mean, self.std))
        weights = [p for p in self.backbone.parameters() if p.is_floating_point()]
        maps = [p for p in weights if p.dim() == 4 and not p.is_contiguous()]
        last = bool(maps) and maps[0].is_contiguous(memory_format=torch.channels_last)
        normalized = ((images - mean) / std).to(weights[0].dtype if weights else images.dtype)
        return normalized.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def _hooks(self) -> list[tuple[str, Callable[..., Tensor]]]:
        """What is done after which layers."""
        at = ((pools_at(self.config), self._pool_frames), (self.video_layer, self._pool_windows))
        return [(name, hook) for name, hook in at if name is not None]

    def _hook(self) -> None:
        """Hooks on the layers of these names, which may have been replaced since the last pass."""
        for name, hook in self._hooks():
            layer = self.backbone.get_submodule(name)
            if hook in layer._forward_hooks.values():
                continue
            for module in self.backbone.modules():  # the layer of before may be inside the new one
                for key in [key for key, other in module._forward_hooks.items() if other == hook]:
                    del module._forward_hooks[key]
            layer.register_forward_hook(hook)

    def _frames(self, video: Tensor, lengths: Counts | None) -> Rows:
        """What the T axis of the video holds, after a look at it."""
        channels = len(self.mean)
        if not isinstance(video, Tensor) or not (video.dtype == torch.uint8 or video.is_floating_point()):
            raise TypeError(f"video must be a uint8 or floating Tensor, got {described(video)}")
        if video.dim() != 5 or video.shape[2] != channels:
            raise ValueError(f"video must have shape [B, T, {channels}, H, W], got {list(video.shape)}")
        if video.shape[1] == 0:
            raise ValueError("video must have at least one frame, got T = 0")
        if lengths is None:
            return Rows(video.shape[0], video.shape[1])
        counts = checked_lengths(lengths, video.shape[0], video.shape[1], None)
        packs = not torch.compiler.is_compiling() or (self.training and torch.compiler.is_dynamo_compiling())
        return Rows(video.shape[0], video.shape[1], counts.cpu() if packs else counts.to(video.device), packs, packs)

    def _images(self, video: Tensor, frames: Rows) -> Tensor:
        """The rows that enter the backbone, in pixel units."""
        route = self._route
        route.rows = frames
        if self.config.kind == "static":
            route.rows = None
            return self._static_rows(video.flatten(0, 1), frames.padded())
        if self.config.pool == "none" or pools_at(self.config) is not None:
            return frames.pack(video)
        images, route.rows = self._pool.video(video, frames.padded())
        return images

    def _static_rows(self, rows: Tensor, frames: Rows) -> Tensor:
        """The frames, of all these rows, that the static stream shows."""
        if self.config.frames == "middle":
            positions, shown = frames.middle(), Rows(frames.clips, 1)
        else:
            shown = frames.every(self.config.every)
            positions = torch.arange(shown.size)[None] * self.config.every
        chosen = frames.select(rows, positions, shown)
        self._route.static, self._route.static_rows = chosen.shape[0], shown
        return chosen

    def _pool_frames(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """At the layer: the frames become windows; in front of these go the frames of a static stream."""
        frames = self._route.rows
        if frames is None:  # the backbone was called by itself
            return output
        self._route.passed.append(pools_at(self.config))
        dynamic, self._route.rows = self._pool(output, frames)
        return self._after_static(self._static_rows(output, frames), dynamic) if forks(self.config) else dynamic

    def _pool_windows(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """At the video layer: the windows become one row a video."""
        windows, n = self._route.rows, self._route.static
        if windows is None:
            return output
        self._route.passed.append(self.video_layer)
        self._route.rows = Rows(windows.clips, 1)
        pooled = windows.max(output[n:]) if self.config.video_pool == "max" else windows.mean(output[n:])
        return self._after_static(output[:n], pooled.to(output.dtype)) if n else pooled

    def _after_static(self, static: Tensor, dynamic: Tensor) -> Tensor:
        """The rows of both streams."""
        rows = torch.cat([static, dynamic])
        self._route.size = rows.shape[0]
        return rows

    def _see(self, value: Any, layer: str | None = None) -> None:
        if not isinstance(value, Tensor):
            raise ValueError(f"layer must put out maps [N, ...], but {layer!r} puts out {type(value).__name__}")
        route = self._route
        route.seen = (
            value.clone().flatten(1),
            route.static_rows,
            route.rows,
            route.static,
        )  # the next layer may work in place

    @staticmethod
    def _streams(rows: Tensor, static_rows: Rows | None, rest: Rows | None, n: int) -> list[Tensor]:
        """[B, D] of each stream."""
        static = [] if static_rows is None else [static_rows.mean(rows[:n])]
        return static if rest is None else [*static, rest.max(rows[n:])]


class TwoNetworks(nn.Module):
    """A static and a dynamic network with weights of their own, whose scores are averaged; `build` makes it.

    Shapes: as `VideoNetwork`, of which `static` and `dynamic` are two.
    """

    def __init__(self, config: ModelConfig, static: VideoNetwork, dynamic: VideoNetwork) -> None:
        super().__init__()
        self.config = config
        self.mean, self.std, self.size = dynamic.mean, dynamic.std, dynamic.size
        self.static = static
        self.dynamic = dynamic
        self.built = shapes_of(self)

    def forward(self, video: Tensor, lengths: Counts | None = None) -> Tensor:
        """Scores [B, num_classes]."""
        return (self.static(video, lengths) + self.dynamic(video, lengths)) / 2

    def features(self, video: Tensor, lengths: Counts | None = None, layer: str | None = None) -> Tensor:
        """Those of the static network, then those of the dynamic one: [B, 2·D]."""
        return torch.cat([network.features(video, lengths, layer) for network in (self.static, self.dynamic)], 1)
