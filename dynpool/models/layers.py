"""Named layers of a backbone: in which order they run, what they put out, and two of them in the place of one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

_POOLING = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.LPPool2d,
    nn.FractionalMaxPool2d,
)


# They compute with the weights of the layers in them, past their forward: they are forked as one.
_FUSED = (nn.TransformerEncoderLayer,)


@dataclass(frozen=True)
class Run:
    """One call of a layer during a trial run of its network; the network itself is the layer ""."""

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
    """Every call of a layer while the network sees these images, in the order in which the calls end, its own last."""
    runs: list[Run] = []
    started: dict[str, int] = {}
    clock = iter(range(1 << 62))
    with _hooked(backbone) as handles:
        for name, module in backbone.named_modules():
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


def lets_rows_go(backbone: nn.Module, name: str, images: Tensor) -> bool:
    """Whether the network, of whose rows only the first is left after a named layer, gives scores of this one."""
    with _hooked(backbone) as handles:
        handles.append(backbone.get_submodule(name).register_forward_hook(lambda module, args, output: output[:1]))
        try:
            with evaluating(backbone), torch.no_grad():
                return scores_of(backbone(images)).shape[0] == 1
        except Exception:  # whatever a network raises
            return False


def scores_of(output: Any) -> Tensor:
    """The scores in what a backbone returns: auxiliary ones, in training, come behind.

    Raises:
        ValueError: they are not there.
    """
    scores = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(scores, Tensor):
        raise ValueError(
            "backbone must return its scores, a Tensor [N, classes], or a tuple that begins with them, got "
            f"{type(output).__name__}: wrap it in a module that does"
        )
    return scores


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
    """A layer of which the two streams of a batch have one each: of its `route.size` rows the first `route.static` see
    `static`, the others `dynamic`.

    Inputs and outputs may be nested; what has no rows, as masks, goes to both. Other attributes are those of `static`,
    but for the weights, which are there twice: who reads them would leave `dynamic` out.
    """

    def __init__(self, layer: nn.Module, route: Any) -> None:
        super().__init__()
        self.static = layer
        self.dynamic = copy.deepcopy(layer)
        self.route = route

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.route.size is None:  # the backbone was called by itself
            return self.dynamic(*args, **kwargs)
        inputs, n = (args, kwargs), self.route.static
        self._check(inputs)
        first, first_options = self._part(inputs, slice(None, n))
        second, second_options = self._part(inputs, slice(n, None))
        return tree_map(_joined, self.static(*first, **first_options), self.dynamic(*second, **second_options))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or name in ("static", "dynamic"):  # of copies and pickles, before there are any
                raise
        value = getattr(self.static, name)
        if isinstance(value, Tensor):
            raise AttributeError(f"a layer of two streams has {name!r} twice: static.{name} and dynamic.{name}")
        return value

    def _check(self, inputs: Any) -> None:
        tensors = [value for value in tree_leaves(inputs) if isinstance(value, Tensor)]
        if not any(self._has_rows(value) for value in tensors):
            shapes = ", ".join(str(list(value.shape)) for value in tensors)
            raise ValueError(
                f"behind a branch, {type(self.static).__name__} must see rows [N, ...] = [{self.route.size}, ...], got "
                f"{shapes} (attention: batch_first=True)"
            )

    def _has_rows(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == self.route.size

    def _part(self, inputs: Any, rows: slice) -> Any:
        return tree_map(lambda value: value[rows] if self._has_rows(value) else value, inputs)


def _joined(first: Any, second: Any) -> Any:
    return torch.cat([first, second]) if isinstance(first, Tensor) else first


def fork_after(backbone: nn.Module, name: str, runs: list[Run], route: Any) -> None:
    """Fork every layer with state of its own that runs only after the layer `name`."""
    branch = next(run.ended for run in runs if run.name == name)
    before = {run.module for run in runs if run.started < branch}
    for run in sorted(runs, key=lambda run: run.started):  # a layer before the layers in it
        holds = [*run.module.parameters(recurse=False), *run.module.buffers(recurse=False)]
        if run.module in before or not (holds or isinstance(run.module, _FUSED)):
            continue
        before.update(run.module.modules())  # once, and nothing in it again
        replace(backbone, run.name, Forked(run.module, route))
