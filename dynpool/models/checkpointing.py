"""Gradient checkpointing of a backbone's blocks: backward computes their activations again, instead of keeping them."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .layers import Forked, replace

_BatchNorm = nn.modules.batchnorm._BatchNorm


def checkpoint_blocks(backbone: nn.Module, kept: set[str]) -> None:
    """Checkpoint the blocks of a backbone, except those that are or hold the layers `kept`, where rows are pooled.

    A block is a module with layers of its own; a container of blocks is not one, but a sequence of plain layers is.
    The names of weights stay as they are.
    """
    blocks = list(_blocks(backbone, "", kept))
    if not blocks:
        raise ValueError(
            f"checkpointing needs a backbone with blocks of layers, and {type(backbone).__name__} has none without "
            f"{' or '.join(map(repr, sorted(kept)))}"
        )
    wrapping = importlib.import_module(
        "torch.distributed.algorithms._checkpoint.checkpoint_wrapper"
    )  # not in all builds
    for name in blocks:
        replace(backbone, name, wrapping.checkpoint_wrapper(backbone.get_submodule(name), checkpoint_fn=_checkpointed))


def _blocks(module: nn.Module, prefix: str, kept: set[str]) -> Iterator[str]:
    for child, layer in module.named_children():
        name = prefix + child
        if not _has_layers(layer) or name in kept:
            continue
        holds = any(k.startswith(f"{name}.") for k in kept)
        of_blocks = isinstance(layer, nn.Sequential | nn.ModuleList) and any(map(_has_layers, layer.children()))
        if holds or of_blocks or isinstance(layer, nn.ModuleList):
            yield from _blocks(layer, f"{name}.", kept)
        else:
            yield name


def _has_layers(layer: nn.Module) -> bool:
    layer = layer.static if isinstance(layer, Forked) else layer
    return any(True for _ in layer.children())


def _checkpointed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if torch.compiler.is_compiling():  # the compiler repeats no updates, and wants no contexts
        return checkpoint(block, *args, use_reentrant=False, **kwargs)
    return checkpoint(block, *args, use_reentrant=False, context_fn=functools.partial(_contexts, block), **kwargs)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around forward and around its repetition."""
    routes = {m.route for m in block.modules() if isinstance(m, Forked)}
    return nullcontext(), _again(block, [(route, route.size, route.static) for route in routes])


@contextmanager
def _again(block: nn.Module, routes: list[tuple[Any, int | None, int]]) -> Iterator[None]:
    """The same rows belong to the streams, and batch norms, which see the same batch a second time, do not count it
    twice.
    """
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    state = [(m.momentum, m.num_batches_tracked) for m in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    for route, size, static in routes:
        route.size, route.static = size, static
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, state, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
        for route, _, _ in routes:
            route.clear()
