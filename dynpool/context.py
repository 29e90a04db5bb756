"""What goes on around a call: compilers, transforms, fake tensors, CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

ORDINARY = (Tensor, torch.nn.Parameter)

# Every call asks these, so that they are at hand, and without a Python frame of torch's around them.
is_compiling = torch.compiler.is_compiling
is_tracing = torch._C._is_tracing  # by torch.jit
is_transforming = torch._C._are_functorch_transforms_active
is_batched = torch._C._functorch.is_batchedtensor
num_modes = torch._C._len_torch_dispatch_stack  # a fake mode, perhaps
is_capturing = torch._C._cuda_isCurrentStreamCapturing
_Mode = torch._C._TorchDispatchModeKey


def is_plain(x: Tensor) -> bool:
    """Whether x is an ordinary tensor in an ordinary call: its values may be looked at, and results kept."""
    return (
        type(x) in ORDINARY
        and not is_compiling()
        and not is_transforming()
        and not num_modes()
        and not is_tracing()
        and (x.is_cpu or not (x.is_meta or is_captured(x)))
    )


def is_recording() -> bool:
    """Whether a program is made of the calls, in which values would become constants, if there are any. Other modes, as
    one that counts operations, see values pass.
    """
    modes = (_Mode.PROXY, _Mode.FAKE, _Mode.FUNCTIONAL)
    return num_modes() > 0 and any(torch._C._get_dispatch_mode(mode) is not None for mode in modes)


def is_captured(x: Tensor) -> bool:
    """Whether a CUDA graph captures the call: nothing may wait for the device, and new tensors belong to the graph.

    Fake CUDA tensors need no device, and Dynamo cannot trace the question.
    """
    return x.is_cuda and not is_compiling() and not isinstance(x, FakeTensor) and is_capturing()


def is_ordinary(x: Tensor) -> bool:
    """Whether what was kept may be used: `is_plain`, or captured."""
    return is_plain(x) or (type(x) in ORDINARY and is_captured(x))


def has_tangent(value: object) -> bool:
    """Whether it is a tensor that is differentiated in forward mode."""
    if forward_ad._current_level < 0 or not isinstance(value, Tensor):
        return False
    return forward_ad.unpack_dual(value).tangent is not None


def is_direct(x: Tensor) -> bool:
    """Whether a call on x goes straight to a kernel, if its device has any: `is_plain`, and no forward-mode."""
    return is_plain(x) and forward_ad._current_level < 0
