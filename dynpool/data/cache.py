"""Keeping what took long to compute: in memory, or in a folder that outlives the run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Cache(Protocol):
    """Tensors by key."""

    def get(self, key: str, make: Callable[[], Tensor]) -> Tensor: ...


class MemoryCache:
    """Tensors in this process. Worker processes fill one each: with several of them, or for more than fits, use
    `FolderCache`.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def get(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


class FolderCache:
    """Tensors in files <folder>/<hash of key>.npy, each written whole or not at all; several processes may share it."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.npy"
        try:
            return torch.from_numpy(np.load(path))
        except (OSError, ValueError, EOFError):  # not there, or left by another programme
            pass
        made = make().contiguous()
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with temporary.open("wb") as file:
                np.save(file, made.numpy())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return made


def make_cache(where: str | os.PathLike[str] | None) -> Cache | None:
    """None for none, "memory", or the folder of a FolderCache."""
    if where is None:
        return None
    return MemoryCache() if where == "memory" else FolderCache(where)


def file_version(path: str) -> str:
    """Path, size and time of change: a file that changed is another one."""
    state = os.stat(path)
    return f"{os.path.abspath(path)}|{state.st_size}|{state.st_mtime_ns}"
