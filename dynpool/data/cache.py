"""Keeping what took long to compute: in memory, or in a folder that outlives the run."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..files import file_state
from ..writing import whole_file

log = logging.getLogger(__name__)

_LAYOUT = 2  # of the files: those of another are not looked at


class Cache(Protocol):
    """Tensors by key."""

    shares: bool  # whether what it gives out is what it keeps, and not the caller's

    def get(self, key: str) -> Tensor | None: ...

    def put(self, key: str, value: Tensor) -> None: ...


class MemoryCache:
    """Tensors in this process. Worker processes fill one each: with several of them, or for more than fits, use
    `FolderCache`.
    """

    shares = True

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def get(self, key: str) -> Tensor | None:
        return self._kept.get(key)

    def put(self, key: str, value: Tensor) -> None:
        self._kept[key] = value


class FolderCache:
    """Tensors in files <folder>/<hash of key>.npy, each written whole or not at all; several processes may share it.

    Frames [T, 3, H, W] are kept as [T, H, W, 3], and come back in that memory layout. When the folder cannot be written
    any more, as on a full disk, that is logged, and nothing is kept from then on.
    """

    shares = False

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._writable = True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(error.errno, f"cache cannot be made a folder: {error.strerror}", str(folder)) from error

    def get(self, key: str) -> Tensor | None:
        try:
            value = torch.from_numpy(np.load(self._path(key)))
            return value.permute(0, 3, 1, 2) if value.dim() == 4 else value
        except (OSError, ValueError, EOFError):  # not there, or left by another programme
            return None

    def put(self, key: str, value: Tensor) -> None:
        if not self._writable:
            return
        try:
            with whole_file(self._path(key), ".part") as temporary, temporary.open("wb") as file:
                np.save(file, (value.permute(0, 2, 3, 1) if value.dim() == 4 else value).contiguous().numpy())
        except OSError as error:  # no fault of what was to be kept
            self._writable = False
            log.warning("cache %s cannot be written, and nothing more is kept: %s", self.folder, error)

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(os.fsencode(f"{_LAYOUT}|{key}")).hexdigest()[:40]
        return self.folder / f"{name}.npy"


def make_cache(where: str | os.PathLike[str] | None) -> Cache | None:
    """None for none, "memory", or the folder of a FolderCache."""
    if where is None:
        return None
    return MemoryCache() if where == "memory" else FolderCache(where)


def file_version(path: str) -> str:
    """Path, size and time of change: a file that changed is another one."""
    return f"{os.path.abspath(path)}|{file_state(path)}"
