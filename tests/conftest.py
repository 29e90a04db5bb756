"""Backends: every implementation of the operation passes the same tests, with freshly allocated memory poisoned."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

# Tests run in several processes: threads that spin while they wait would take the cores from each other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic, and torch says so

import torch
from hypothesis import HealthCheck, settings

from dynpool import binary, ops, pooling

settings.register_profile(
    "dynpool",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("dynpool")

BACKENDS = {  # the environment variable that makes a missing backend a failure
    "cpu": "DYNPOOL_REQUIRE_EXT",
    "reference": "",
    "emulated": "DYNPOOL_REQUIRE_EMULATED",
    "cuda": "DYNPOOL_REQUIRE_CUDA",
}


@dataclass(frozen=True)
class Backend:
    """An implementation of the operation, and where its tensors live."""

    name: str
    device: torch.device


def missing(name: str) -> str | None:
    """Why a backend cannot be tested here."""
    if name == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    if name == "emulated" and not os.environ.get("DYNPOOL_EMULATED"):
        return "emulated CUDA kernels not built (DYNPOOL_EMULATED unset)"
    if name in ("cpu", "cuda") and binary.kernels_for(torch.device(name)) is None:
        return f"the extension has no {name} kernels"
    return None


def parameters(*names: str) -> list:
    """Backends as parameters: those that are missing skip with their reason, unless the environment requires them."""
    return [
        pytest.param(name, marks=pytest.mark.skip(reason=reason))
        if (reason := missing(name)) and os.environ.get(BACKENDS[name]) != "1"
        else name
        for name in names
    ]


def require(name: str) -> torch.device:
    if reason := missing(name):
        pytest.fail(f"{reason}, and {BACKENDS[name]}=1 demands it")
    return torch.device("cuda" if name == "cuda" else "cpu")


@functools.cache
def emulated_kernels() -> binary.Kernels:
    return binary.emulated_kernels(os.environ["DYNPOOL_EMULATED"])


@pytest.fixture(params=parameters(*BACKENDS))
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Every implementation of the operation in turn."""
    name = request.param
    device = require(name)
    monkeypatch.setattr(pooling, "_calls", ops.new_calls())  # they hold on to kernels
    if name == "reference":
        monkeypatch.setattr(binary, "kernels_for", lambda device: None)
    elif name == "emulated":
        kernels = emulated_kernels()
        monkeypatch.setattr(binary, "kernels_for", lambda device: kernels)
    return Backend(name, device)


@pytest.fixture(params=parameters("cpu", "cuda"))
def device(request: pytest.FixtureRequest) -> torch.device:
    """Devices, with their kernels."""
    return require(request.param)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty is filled with NaN (the largest integer), so that an element nobody writes is seen; and any operation
    that is not deterministic raises.
    """
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
