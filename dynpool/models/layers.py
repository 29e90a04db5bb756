"""Named layers of a backbone: in which order they run, what they put out, and two of them in the place of one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

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
    sizes: dict[tuple[int | str, int], int]  # of its inputs in dimension 0: `_places`
    output: Any


def named_layers(backbone: nn.Module) -> dict[str, nn.Module]:
    """All layers by the names that they have without checkpointing."""
    modules = backbone.named_modules()
    return {f"{name}.".replace("_checkpoint_wrapped_module.", "")[:-1]: module for name, module in modules}


def around(name: str) -> Iterator[str]:
    """Names of the layers that hold a named layer, from inside out."""
    while name := name.rpartition(".")[0]:
        yield name


def named_layer(backbone: nn.Module, name: str, argument: str = "layer") -> nn.Module:
    """The layer of that name; a name that is not there raises ValueError, which lists some that are."""
    layers = named_layers(backbone)
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
            handles.append(module.register_forward_hook(_ender(runs, started, name, clock), with_kwargs=True))
        with evaluating(backbone), torch.no_grad():
            backbone(images)
    return runs


def _starter(started: dict[str, int], name: str, clock: Iterator[int]) -> Callable[..., None]:
    def start(module: nn.Module, args: Any) -> None:
        started[name] = next(clock)

    return start


def _ender(runs: list[Run], started: dict[str, int], name: str, clock: Iterator[int]) -> Callable[..., None]:
    def end(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        sizes = {place: value.shape[0] for place, value in _places(args, kwargs) if _is_batch(value)}
        runs.append(Run(name, module, started[name], next(clock), sizes, output))

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
    """The scores in what a backbone returns: auxiliary ones, in training, come after.

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

    Inputs and outputs may be nested. What has no rows, as masks, goes to both: inputs at the places `fixed`, and those
    of another size than the rows. Other attributes are those of `static`, but for the weights, which are there twice:
    who reads them would leave `dynamic` out.
    """

    def __init__(self, layer: nn.Module, route: Any, fixed: set[tuple[int | str, int]]) -> None:
        super().__init__()
        self.fixed = fixed
        self.static = layer
        self.dynamic = copy.deepcopy(layer)
        self.route = route

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.route.size is None:  # the backbone was called by itself
            return self.dynamic(*args, **kwargs)
        self._check(args, kwargs)
        streams = ((self.static, slice(None, self.route.static)), (self.dynamic, slice(self.route.static, None)))
        outputs = []
        for layer, rows in streams:
            own = [self._part(key, value, rows) for key, value in enumerate(args)]
            options = {key: self._part(key, value, rows) for key, value in kwargs.items()}
            outputs.append(layer(*own, **options))
        return tree_map(_joined, *outputs)

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

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not any(self._has_rows(place, value) for place, value in _places(args, kwargs)):
            shapes = ", ".join(str(list(v.shape)) for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor))
            raise ValueError(
                f"after a branch, {type(self.static).__name__} must see rows [N, ...] = [{self.route.size}, ...], got "
                f"{shapes} (attention: batch_first=True)"
            )

    def _has_rows(self, place: tuple[int | str, int], value: Any) -> bool:
        return place not in self.fixed and _is_batch(value) and value.shape[0] == self.route.size

    def _part(self, key: int | str, value: Any, rows: slice) -> Any:
        leaves, structure = tree_flatten(value)
        parts = [leaf[rows] if self._has_rows((key, i), leaf) else leaf for i, leaf in enumerate(leaves)]
        return tree_unflatten(parts, structure)


def _is_batch(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _places(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[tuple[int | str, int], Any]]:
    """What a layer is called with, by the number or name of the argument and the place in it."""
    arguments: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for key, value in arguments:
        for i, leaf in enumerate(tree_leaves(value)):
            yield (key, i), leaf


def _joined(first: Any, second: Any) -> Any:
    return torch.cat([first, second]) if isinstance(first, Tensor) else first


def fork_after(backbone: nn.Module, name: str, runs: list[Run], others: list[Run], route: Any) -> None:
    """Fork every layer with state of its own that runs only after the layer `name`; inputs whose size is the same in
    runs of another number of images have no rows.
    """
    branch = next(run.ended for run in runs if run.name == name)
    before = {run.module for run in runs if run.started < branch}
    for run in sorted(runs, key=lambda run: run.started):  # a layer before the layers in it
        holds = [*run.module.parameters(recurse=False), *run.module.buffers(recurse=False)]
        if run.module in before or not (holds or isinstance(run.module, _FUSED)):
            continue
        before.update(run.module.modules())  # once, and nothing in it again
        sizes, others_sizes = _sizes(runs, run.name), _sizes(others, run.name)
        fixed = {place for place, seen in sizes.items() if others_sizes.get(place) == seen}
        replace(backbone, run.name, Forked(run.module, route, fixed))


def _sizes(runs: list[Run], name: str) -> dict[tuple[int | str, int], set[int]]:
    """Of a layer's inputs in all its calls."""
    sizes: dict[tuple[int | str, int], set[int]] = {}
    for place, size in (item for run in runs if run.name == name for item in run.sizes.items()):
        sizes.setdefault(place, set()).add(size)
    return sizes
