"""Optical flow as pictures."""

import importlib

import numpy as np
import pytest
import torch

from dynpool.flow import _pictures
from dynpool.models import optical_flow


def moving(dx: int, dy: int, count: int = 4, size: int = 96) -> torch.Tensor:
    """A smooth texture that moves by (dx, dy) pixels a frame, uint8 [T, 3, H, W]."""
    coarse = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    texture = torch.nn.functional.interpolate(coarse, scale_factor=16, mode="bicubic", align_corners=False)[0]
    frames = [texture[:, 80 - t * dy : 80 - t * dy + size, 80 - t * dx : 80 - t * dx + size] for t in range(count)]
    return (torch.stack(frames).clamp(0, 1) * 255).to(torch.uint8)


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (0, -4), (-2, 5)])
def test_flow_is_the_motion_of_the_picture(dx, dy):
    pytest.importorskip("cv2", reason="needs OpenCV")
    flow = optical_flow(moving(dx, dy), bound=10.0)
    assert flow.shape == (3, 3, 96, 96)
    assert flow.dtype == torch.uint8
    u, v, magnitude = flow[:, :, 24:-24, 24:-24].float().mean((0, 2, 3))
    step = 255 / 20  # of a pixel; the search is good to a quarter of one
    assert abs(u - (127.5 + dx * step)) < step / 4
    assert abs(v - (127.5 + dy * step)) < step / 4
    assert abs(magnitude - (dx**2 + dy**2) ** 0.5 * 25.5) < 25.5 / 4


def test_rest_and_clipping():
    fields = torch.tensor([[[[0.0, 0.0], [20.0, -20.0], [-50.0, 50.0], [3.0, 4.0]]]])
    pictures = _pictures(fields, 20.0)
    assert pictures[0, :, 0].tolist() == [[128, 255, 0, 147], [128, 0, 255, 153], [0, 255, 255, 64]]


@pytest.mark.parametrize(
    ("frames", "options", "error", "message"),
    [
        (torch.zeros(3, 3, 32, 32), {}, TypeError, "frames must be a uint8 Tensor, got torch.float32"),
        (np.zeros((3, 3, 32, 32), np.uint8), {}, TypeError, "frames must be a uint8 Tensor, got ndarray"),
        (torch.zeros(3, 1, 32, 32, dtype=torch.uint8), {}, ValueError, r"shape \[T, 3, H, W\]"),
        (torch.zeros(3, 3, 8, 32, dtype=torch.uint8), {}, ValueError, "at least 16"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), {}, ValueError, "frames must be at least 2"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), {"bound": 0}, ValueError, "bound must be positive, got 0"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), {"preset": "slow"}, ValueError, "preset must be one of"),
    ],
)
def test_bad_input(frames, options, error, message):
    with pytest.raises(error, match=message):
        optical_flow(frames, **options)


def test_missing_opencv_is_named(monkeypatch):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match="pip install opencv-python-headless"):
        optical_flow(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
