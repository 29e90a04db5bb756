"""The compiled module, which only this file and ops.py call: its kernels, and the calls that have no gradient."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import multiprocessing
import os
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import context, reference

extension: ModuleType | None = None  # the compiled module
try:
    extension = importlib.import_module("._C", __package__)
except ImportError as error:
    if multiprocessing.parent_process() is None:  # workers need not say it again
        warnings.warn(
            f"dynpool runs without its compiled kernels ({error}): everything works, through plain torch and slower. "
            "To build them, install a C++ compiler and run in dynpool's source tree: pip install --force-reinstall "
            "--no-deps . (or, of an editable installation: -e .)",
            stacklevel=2,
        )

DTYPE_CODES = {torch.uint8: 0, torch.float16: 1, torch.bfloat16: 2, torch.float32: 3, torch.float64: 4}
POOLED = {*context.ORDINARY, type(None)}  # whose memory kernels may read
_OBJECTIVE_CODES = {"ranksvm": 0, "ranksvm_squared": 1, "svr": 2}
NONLINEARITY_CODES = {"identity": 0, "sqrt": 1}
MAX_DIMS = 9  # of x, where its layout is arbitrary: kMaxAxes of csrc/temporal_pool.h, and T


# --- kernels -------------------------------------------------------------------------------------------------------

_used_several_threads = False
_LONGEST_ON_GPU = 1 << 15  # frames of which products are made, in csrc/cuda/gram.cu


def _num_threads(index: int = 0) -> int:
    global _used_several_threads
    threads = torch.get_num_threads()
    _used_several_threads = _used_several_threads or threads > 1
    return threads


def _after_fork() -> None:
    """OpenMP's threads are not in a forked process, which would wait for them for good: torch's own, too."""
    if _used_several_threads:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Kernels(NamedTuple):
    """Launchers of one device type. All end in `*place(device), current(index of the device)`."""

    layout: type[Any]
    temporal_pool: Callable[..., None]
    bind: Callable[..., Callable[[int, int, int], None]]  # temporal_pool of (x, y, current) alone
    temporal_pool_backward: Callable[..., None]
    gram: Callable[..., None]
    gram_takes_average: bool  # or finds it in passing
    solve: Callable[..., None]
    planes: type[Any]
    make_rgb: Callable[..., None] | None
    place: Callable[[torch.device], tuple[Any, ...]]
    current: Callable[[int], int]  # the stream, or the number of threads

    def where(self, device: torch.device) -> tuple[Any, ...]:
        return *self.place(device), self.current(device.index or 0)


def _cpu_kernels(module: ModuleType | None) -> Kernels | None:
    if module is None:
        return None
    cpu = module.cpu
    pools = (cpu.temporal_pool, cpu.bind, cpu.temporal_pool_backward)
    of_planes = (module.Planes, None)  # whose colours pool_planes makes in passing
    return Kernels(module.Layout, *pools, cpu.gram, False, cpu.solve, *of_planes, lambda device: (), _num_threads)


def _cuda_kernels(module: ModuleType | None, current_stream: Callable[[int], int]) -> Kernels | None:
    if module is None or not hasattr(module, "cuda"):
        return None
    cuda = module.cuda
    pools = (cuda.temporal_pool, cuda.bind, cuda.temporal_pool_backward)
    of_planes = (module.Planes, cuda.make_rgb)
    return Kernels(module.Layout, *pools, cuda.gram, True, cuda.solve, *of_planes, _on_device, current_stream)


@functools.cache
def _on_device(device: torch.device) -> tuple[int, Callable[[int], Tensor]]:
    """Its index, and what allocates bytes there."""
    return device.index or 0, torch.empty(0, dtype=torch.uint8, device=device).new_empty


def emulated_kernels(path: str) -> Kernels:
    """The CUDA kernels compiled as C++ (CMake option DYNPOOL_TESTS), for tests on CPU tensors."""
    spec = importlib.util.spec_from_file_location("_C_emulated", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no extension module at {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernels = _cuda_kernels(module, lambda index: 0)
    assert kernels is not None
    return kernels


_KERNELS = {
    "cpu": _cpu_kernels(extension),
    "cuda": _cuda_kernels(extension, torch._C._cuda_getCurrentRawStream)
    if torch.backends.cuda.is_built() and not torch.version.hip
    else None,
}


def kernels_for(device: torch.device) -> Kernels | None:
    """The kernels of a device, or None where reference.py has to serve."""
    if device.type == "cuda" and not _run_on_gpu(device.index or 0):
        return None
    return _KERNELS.get(device.type)


_HOW_TO_BUILD_CUDA = (
    "To build them, install nvcc, set CUDA_HOME to where it is, and run in dynpool's source tree: DYNPOOL_CUDA=1 pip "
    "install --force-reinstall --no-deps . (or, of an editable installation: -e .)"
)


@functools.cache
def _run_on_gpu(index: int) -> bool:
    """Whether kernels can; else says why not, once."""
    if _KERNELS["cuda"] is None:
        if extension is not None:  # whose absence was told when dynpool was imported
            warnings.warn(
                "dynpool was built without CUDA kernels: plain torch works on tensors of a GPU, slower. "
                + ("They need CUDA: ROCm has none" if torch.version.hip else _HOW_TO_BUILD_CUDA),
                stacklevel=2,
            )
        return False
    assert extension is not None
    if trouble := extension.cuda.trouble_on(index):
        warnings.warn(
            f"dynpool's CUDA kernels, built for {extension.cuda.architectures()}, do not run on GPU {index} "
            f"({trouble}): plain torch works there, slower. They need sm_75 or newer, the driver that their CUDA "
            "asks for, and DYNPOOL_CUDA_ARCHS, if it is set when they are built, to name the card",
            stacklevel=2,
        )
    return not trouble


# --- what they take --------------------------------------------------------------------------------------------------


def address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def contiguous(t: Tensor | None) -> Tensor | None:
    return t if t is None else t.contiguous().resolve_neg()


# --- exact rank pooling -----------------------------------------------------------------------------------------------


def gram(
    x: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    dim: int,
    channel_dim: int | None,
    nonlinearity: str,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """`gram.Gram` by a kernel, or None where there is none for x. Clips stand in dimension 0."""
    kernels = kernels_for(x.device)
    if kernels is None or not context.is_plain(x) or not {type(mean), type(std)} <= POOLED or x.dim() > MAX_DIMS:
        return None
    clips, num_frames = x.shape[0], x.shape[dim]
    if kernels.gram_takes_average and num_frames > _LONGEST_ON_GPU:
        return None
    x = x.resolve_neg()
    bands = average = None
    if lengths is not None:
        bands = torch.stack([torch.zeros_like(lengths), lengths], -1).contiguous()
    acc = reference.accumulate_dtype(x.dtype)
    if kernels.gram_takes_average:
        average = torch.empty_like(x.select(dim, 0), dtype=acc).unsqueeze(dim)
    layout = kernels.layout(
        DTYPE_CODES[x.dtype],
        x.shape,
        x.stride(),
        dim,
        DTYPE_CODES[acc],
        x.stride() if average is None else average.stride(),  # without an output, as x: its dimensions stay merged
        (),
        clips,
        1,
        num_frames,
        0,  # overlap
        1 if channel_dim is None else x.shape[channel_dim],
        -1 if channel_dim is None else channel_dim,
        NONLINEARITY_CODES[nonlinearity],
    )
    mean, std = contiguous(mean), contiguous(std)
    inputs, where = (address(bands), address(mean), address(std)), kernels.where(x.device)
    if average is not None:
        counts = x.new_full((clips,), num_frames, dtype=acc) if lengths is None else lengths.to(acc)
        weights = (1 / counts)[:, None].expand(clips, num_frames).contiguous()
        kernels.temporal_pool(layout, x.data_ptr(), weights.data_ptr(), *inputs, average.data_ptr(), *where)
    K = x.new_empty(clips, num_frames, num_frames, dtype=torch.float64)
    cross = x.new_empty(clips, num_frames, dtype=torch.float64)
    norm = x.new_empty(clips, dtype=torch.float64)
    outputs = (K.data_ptr(), cross.data_ptr(), norm.data_ptr())
    kernels.gram(layout, x.data_ptr(), address(average), *inputs, *outputs, *where)
    return K, cross, norm


def solve(
    objective: str, K: Tensor, lengths: Tensor, C: float, epsilon: float, tol: float, max_iter: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None] | None:
    """u [B, T], value, gap, iterations [B] and, unless "svr", b [B, T, T] of csrc/solver.h; None without a kernel."""
    kernels = kernels_for(K.device)
    if kernels is None or not context.is_plain(K):
        return None
    B, T = K.shape[:2]
    K, lengths = K.contiguous(), lengths.contiguous()
    u, value, gap, iterations = K.new_empty(B, T), K.new_empty(B), K.new_empty(B), lengths.new_empty(B)
    scratch = K.new_empty(B * T * (T + 8))
    b = pairs = None
    if objective != "svr":
        b, pairs = torch.empty_like(K), lengths.new_empty(B * T * (T - 1) // 2, dtype=torch.int32)
    outputs = (u.data_ptr(), value.data_ptr(), gap.data_ptr(), iterations.data_ptr())
    kernels.solve(
        _OBJECTIVE_CODES[objective],
        B,
        T,
        lengths.data_ptr(),
        K.data_ptr(),
        C,
        epsilon,
        tol,
        max_iter,
        *outputs,
        address(b),
        address(pairs),
        scratch.data_ptr(),
        *kernels.where(K.device),
    )
    return u, value, gap, iterations, b


# --- frames of a decoder --------------------------------------------------------------------------------------------


def has_planes() -> bool:
    """Whether decoded frames can be pooled without RGB frames."""
    return extension is not None


def planes_layout(widths: Sequence[int], heights: Sequence[int]) -> Any:
    """Planes of bytes, which are pooled as they are."""
    return _extension().Planes(widths, heights)


class Colours(NamedTuple):
    """Of planes of Y, U and V, which become R, G and B (csrc/planes.h)."""

    width: int
    height: int
    depth: int
    shift_x: int
    shift_y: int
    step: int
    black: int
    factors: Sequence[float]


def colour_layout(colours: Colours) -> Any:
    return _extension().Planes(*colours)


def pool_planes(
    layout: Any,
    planes: Sequence[int],
    strides: Sequence[int],
    interlaced: int,
    nonlinearity: str,
    weights: Sequence[Sequence[float]],
    mix: Sequence[Sequence[float]] | None,
    rows: Sequence[Tensor],
    fresh: Sequence[bool] = (),
) -> None:
    """rows[k] += Σ_t weights[k][t] ψ(frames[t]) in float32, where fresh[k] rows[k] = …; or, with mix, in float64
    rows[r] += Σ_k mix[r][k] Σ_t … Bit t of `interlaced` is of frame t, where its lines of luma share chroma.
    """
    flat = [weight for row in weights for weight in row]
    mixed = [factor for row in mix or () for factor in row]
    dtype = torch.float32 if mix is None else torch.float64
    sums = [row.data_ptr() for row in rows if row.dtype == dtype]  # too few are refused; too narrow would be overrun
    psi = NONLINEARITY_CODES[nonlinearity]
    _extension().cpu.pool_planes(layout, planes, strides, interlaced, psi, flat, mixed, sums, fresh, 0, _num_threads())


def take_largest(layout: Any, planes: Sequence[int], strides: Sequence[int], interlaced: int, largest: Tensor) -> None:
    """largest = the maximum of it, uint8 and contiguous, and of the frames' bytes."""
    threads = _num_threads()
    _extension().cpu.pool_planes(layout, planes, strides, interlaced, 0, [], [], [], [], largest.data_ptr(), threads)


def pack_planes(layout: Any, planes: Sequence[int], strides: Sequence[int], packed: Tensor) -> None:
    """packed [T, N] = the bytes of planes that are no colours, one after the other, without the padding of lines."""
    _extension().cpu.pack_planes(layout, planes, strides, packed.data_ptr())


def rgb_of_packed(colours: Colours, interlaced: int, packed: Tensor, rgb: Tensor) -> bool:
    """rgb [T, 3, H, W] = the bytes that the CPU's kernels make of planes, of packed ones; False where the device has no
    kernel for that.
    """
    kernels = kernels_for(packed.device)
    if kernels is None or kernels.make_rgb is None:
        return False
    layout, where = kernels.planes(*colours), kernels.where(packed.device)
    kernels.make_rgb(layout, len(packed), interlaced, packed.data_ptr(), rgb.data_ptr(), *where)
    return True


def make_rgb(layout: Any, sums: Tensor, total: float, shape: Sequence[int]) -> Tensor:
    """R, G, B of `shape` of weighted sums of a colour layout's bytes Y, U, V, whose weights add up to `total`."""
    rgb = sums.new_empty(shape)
    _extension().cpu.make_rgb(layout, sums.data_ptr(), sums.dtype == torch.float64, total, rgb.data_ptr())
    return rgb


def stretch(values: Tensor, least_span: float = 0.0, interleaved: bool = False) -> Tensor | None:
    """Each image [C, H, W] of the last dimensions scaled from [min, max] to 0 … 255, as uint8; with `interleaved`, of
    three channels, in the memory layout [H, W, C]. None where it is for torch: on other devices, in other dtypes, or
    where a difference is not finite; and where max - min ≤ least_span.
    """
    ordinary = type(values) is Tensor and not context.is_transforming()
    fits = ordinary and values.is_cpu and values.dtype == torch.float32
    if extension is None or not fits or not values.numel() or not values.is_contiguous():
        return None
    *batch, channels, height, width = values.shape
    shape = (*batch, height, width, channels) if interleaved else values.shape
    images = torch.empty(shape, dtype=torch.uint8, device="cpu")
    pixels = height * width
    for first in range(0, values.numel(), channels * pixels):
        x, out = values.data_ptr() + 4 * first, images.data_ptr() + first
        if not extension.cpu.stretch(x, channels, pixels, least_span, interleaved, out):
            return None
    return images.movedim(-1, -3) if interleaved else images


def stretch_sums(
    layout: Any, sums: Tensor, total: float, shape: Sequence[int], least_span: float, interleaved: bool
) -> Tensor | None:
    """`stretch` of `make_rgb` of float32 sums, of which R, G, B are never in memory."""
    _, height, width = shape
    image = torch.empty((height, width, 3) if interleaved else tuple(shape), dtype=torch.uint8, device="cpu")
    out = image.data_ptr()
    if not _extension().cpu.stretch_sums(layout, sums.data_ptr(), total, least_span, interleaved, out):
        return None
    return image.movedim(-1, -3) if interleaved else image


def _extension() -> ModuleType:
    assert extension is not None
    return extension
