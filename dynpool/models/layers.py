"""Named layers of a backbone: in which order they run, what they put out, and two of them in the place of one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_POOLING = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.LPPool2d,
    nn.FractionalMaxPool2d,
)


@dataclass(frozen=True)
class Run:
    """One call of a layer during a trial run of its network."""

    name: str
    module: nn.Module
    started: int
    ended: int
    output: Any


def named_layer(backbone: nn.Module, name: str, argument: str = "layer") -> nn.Module:
    """The layer of that name; a name that is not there raises ValueError, which lists some that are."""
    layers = dict(backbone.named_modules())
    if not name or name not in layers:
        near = [n for n in layers if n and n.startswith(name.rpartition(".")[0])]
        shown = ", ".join(near[:40]) + (", …" if len(near) > 40 else "")
        raise ValueError(
            f"{argument} must be a named layer of {type(backbone).__name__}, got {name!r}; it has: {shown}"
        )
    return layers[name]


def trial_run(backbone: nn.Module, images: Tensor) -> list[Run]:
    """Every call of a named layer while the network sees these images, in the order in which the calls end."""
    runs: list[Run] = []
    started: dict[str, int] = {}
    clock = iter(range(1 << 62))
    with _hooked(backbone) as handles:
        for name, module in backbone.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(_starter(started, name, clock), prepend=True))
                handles.append(module.register_forward_hook(_ender(runs, started, name, clock)))
        with evaluating(backbone), torch.no_grad():
            backbone(images)
    return runs


def _starter(started: dict[str, int], name: str, clock: Iterator[int]) -> Callable[..., None]:
    def start(module: nn.Module, args: Any) -> None:
        started[name] = next(clock)

    return start


def _ender(runs: list[Run], started: dict[str, int], name: str, clock: Iterator[int]) -> Callable[..., None]:
    def end(module: nn.Module, args: Any, output: Any) -> None:
        runs.append(Run(name, module, started[name], next(clock), output))

    return end


@contextmanager
def _hooked(module: nn.Module) -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In evaluation mode, and back to the mode that each layer had."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def last_linear(backbone: nn.Module) -> str:
    """Name of the linear layer that was registered last."""
    names = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ValueError(
            f"backbone must have a linear layer, which gives the scores; {type(backbone).__name__} has none"
        )
    return names[-1]


def last_pooling(runs: list[Run]) -> str | None:
    """Name of the spatial pooling that ran last."""
    names = [run.name for run in runs if isinstance(run.module, _POOLING) or "Pool2d" in type(run.module).__name__]
    return names[-1] if names else None


def replace(backbone: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of a named layer."""
    parent, _, leaf = name.rpartition(".")
    setattr(backbone.get_submodule(parent), leaf, module)


class Forked(nn.Module):
    """A layer of which the two streams of a batch have one each: the first `route.static` rows see `static`, the other
    rows `dynamic`.
    """

    def __init__(self, layer: nn.Module, route: Any) -> None:
        super().__init__()
        self.static = layer
        self.dynamic = copy.deepcopy(layer)
        self.route = route

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        n = self.route.static
        first = self.static(*(_part(a, slice(None, n)) for a in args), **kwargs)
        second = self.dynamic(*(_part(a, slice(n, None)) for a in args), **kwargs)
        return torch.cat([first, second])


def _part(value: Any, rows: slice) -> Any:
    return value[rows] if isinstance(value, Tensor) else value


def fork_after(backbone: nn.Module, name: str, runs: list[Run], route: Any) -> None:
    """Fork every layer with state of its own that runs only after the layer `name`."""
    branch = next(run.ended for run in runs if run.name == name)
    before = {run.module for run in runs if run.started < branch}
    for run in sorted(runs, key=lambda run: run.started):  # a layer before the layers in it
        holds = [*run.module.parameters(recurse=False), *run.module.buffers(recurse=False)]
        if run.module in before or not holds:
            continue
        before.update(run.module.modules())  # once, and nothing in it again
        replace(backbone, run.name, Forked(run.module, route))
