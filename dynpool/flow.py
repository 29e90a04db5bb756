"""Optical flow as pictures, for dynamic images of flow (Bilen et al., PAMI 2018): by OpenCV's DIS."""

from __future__ import annotations

import importlib
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from .checks import choice, described

Preset = Literal["ultrafast", "fast", "medium"]


def optical_flow(frames: Tensor, *, bound: float = 20.0, preset: Preset = "medium") -> Tensor:
    """Flow from each frame to the next, as pictures that are pooled and shown to networks like frames.

    Args:
        frames: uint8 [T, 3, H, W], RGB, T ≥ 2, at least 16 × 16 pixels.
        bound: displacement in pixels that still fits; larger ones are clipped.
        preset: of OpenCV's dense inverse search.

    Returns:
        uint8 [T-1, 3, H, W] on the CPU: u (to the right) and v (down), from [-bound, bound] to [0, 255], so that rest
        is 128; and their magnitude, from [0, bound] to [0, 255].

    Raises:
        ImportError: OpenCV is not there.
        TypeError, ValueError: an argument does not fit.
    """
    if not isinstance(frames, Tensor) or frames.dtype != torch.uint8:
        raise TypeError(f"frames must be a uint8 Tensor, got {described(frames)}")
    if frames.dim() != 4 or frames.shape[1] != 3 or min(frames.shape[2:]) < 16:
        raise ValueError(f"frames must have shape [T, 3, H, W], H and W at least 16, got {list(frames.shape)}")
    if len(frames) < 2:
        raise ValueError(f"frames must be at least 2 for flow from one to the next, got {len(frames)}")
    if not bound > 0:
        raise ValueError(f"bound must be positive, got {bound}")
    choice("preset", preset, get_args(Preset))
    cv2 = _opencv()
    search = cv2.DISOpticalFlow_create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{preset.upper()}"))
    pixels = np.ascontiguousarray(frames.permute(0, 2, 3, 1).cpu().numpy())
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in pixels]
    fields = np.stack([search.calc(a, b, None) for a, b in pairwise(grey)])
    return _pictures(torch.from_numpy(fields), bound)


def _pictures(fields: Tensor, bound: float) -> Tensor:
    """Displacements [N, H, W, 2] in pixels -> uint8 [N, 3, H, W]."""
    u, v = fields.unbind(-1)
    shares = torch.stack([0.5 + u / (2 * bound), 0.5 + v / (2 * bound), torch.hypot(u, v) / bound], 1)
    return (shares * 255).round().clamp(0, 255).to(torch.uint8)


def _opencv() -> Any:
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise ImportError(f"optical flow needs OpenCV ({error}): pip install opencv-python-headless") from error
