"""What this installation of dynpool is made of."""

from __future__ import annotations

import platform

import numpy as np
import torch

from . import binary, decoder
from ._version import __version__


def build_info() -> dict[str, object]:
    """Versions, CUDA architectures compiled, CPU instruction set in use, devices seen. What to paste into a report.

    Keys: dynpool, python, torch, numpy, pyav, ffmpeg (versions; the last two None without PyAV); kernels (whether the
    compiled extension is there); cpu_instruction_set ("avx512vbmi", "avx512", "avx2", "baseline", or None);
    cpu_threads; cuda_architectures (compute capabilities compiled, such as "90", empty without CUDA); cuda_devices
    (names of the devices that torch sees).
    """
    kernels = binary.extension
    cuda = getattr(kernels, "cuda", None)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return {
        "dynpool": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        **decoder.versions(),
        "kernels": kernels is not None,
        "cpu_instruction_set": kernels.cpu.instruction_set() if kernels is not None else None,
        "cpu_threads": torch.get_num_threads(),
        "cuda_architectures": cuda.architectures().split(",") if cuda is not None else [],
        "cuda_devices": [torch.cuda.get_device_name(i) for i in devices],
    }
