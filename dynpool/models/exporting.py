"""Models without Python: torch.export programs and ONNX files."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..checks import checked_int
from ..writing import whole_file
from .building import VideoModel, video_model
from .layers import evaluating
from .storage import METADATA_KEY, PROGRAM_SUFFIX


def export(
    model: VideoModel, *, num_frames: int, size: int | None = None, lengths: bool = False, dynamic: bool = True
) -> torch.export.ExportedProgram:
    """A model's scores as a torch.export program of video uint8 [B, T, 3, H, W] and, if asked for, lengths int64 [B].

    Args:
        model: any that `build` made, but those with exact rank pooling, whose solver looks at values. It is exported as
            in evaluation.
        num_frames: T of the example that is traced. It must be more than 1, the window, the stride and `every`; so must
            any other T that a `dynamic` program is given.
        size: H = W; None: the backbone's. It is fixed in the program.
        lengths: whether the program takes lengths.
        dynamic: leave B and T open. torch.export before 2.11 refuses that for static streams with `every`, and that of
            2.8 for windows.

    Called as the model is, `program.module()(video)` or `(video, lengths)`; these are no keywords there. The program
    calls dynpool's operation: import dynpool before `torch.export.load`.

    Raises:
        TypeError: the model is not one that `build` made, as it is or under torch.compile; or a number is no integer.
        ValueError: the model has exact rank pooling, or too few frames.
    """
    model = video_model(model)
    _check(model, num_frames)
    example = _example(model, num_frames, size, lengths)
    shapes = _shapes(model, lengths) if dynamic else None
    with evaluating(model), torch.no_grad():
        return torch.export.export(model, example, dynamic_shapes=shapes, strict=False)


def export_pt2(
    model: VideoModel,
    path: str | Path,
    *,
    num_frames: int,
    size: int | None = None,
    lengths: bool = False,
    dynamic: bool = True,
) -> None:
    """Write the program that `export` gives as a file of `torch.export`, whole or not at all.

    The configuration is in the file too, as JSON under "dynpool.model": `read_config` reads it, and
    `torch.export.load(path, extra_files={"dynpool.model": ""})` gives it beside the program.

    Raises:
        ValueError: the path does not end in .pt2; or as `export`.
        OSError: the file cannot be written.
    """
    if Path(path).suffix != PROGRAM_SUFFIX:
        raise ValueError(f"path must end in {PROGRAM_SUFFIX}, got {str(path)!r}")
    program = export(model, num_frames=num_frames, size=size, lengths=lengths, dynamic=dynamic)
    with whole_file(path) as temporary:
        torch.export.save(program, temporary, extra_files={METADATA_KEY: _config_of(model)})


def export_onnx(
    model: VideoModel,
    path: str | Path,
    *,
    num_frames: int,
    size: int | None = None,
    lengths: bool = False,
    dynamic: bool = True,
) -> None:
    """Write the model that `export` gives as an ONNX file of plain operators: inputs video and lengths, output scores.

    The configuration is in the file's metadata, as JSON under "dynpool.model".

    Raises:
        ImportError: onnx or onnxscript is not there.
        ValueError: as `export`.
    """
    for library in ("onnx", "onnxscript"):
        _import(library)
    program = export(model, num_frames=num_frames, size=size, lengths=lengths, dynamic=dynamic)
    plain = program.run_decompositions(plain_operators())
    onnx = torch.onnx.export(plain, dynamo=True, output_names=["scores"], verbose=False)
    assert onnx is not None
    onnx.model.metadata_props[METADATA_KEY] = _config_of(model)
    with whole_file(path) as temporary:
        onnx.save(temporary)


def plain_operators() -> dict[Any, Any]:
    """Decompositions that leave no operator of dynpool, nor digamma, which ONNX does not have either: for programs with
    layers of `dynpool.nn` that no `build` made.

        program = torch.export.export(network, (video,)).run_decompositions(dynpool.models.plain_operators())
        torch.onnx.export(program, dynamo=True).save("network.onnx")
    """
    table: dict[Any, Any] = dict(torch.export.default_decompositions())
    table[torch.ops.dynpool.temporal_pool.default] = lambda *inputs: reference.temporal_pool(*inputs[:9])  # no overlap
    table[torch.ops.aten.digamma.default] = _digamma
    return table


def _config_of(model: VideoModel) -> str:
    return json.dumps(video_model(model).config.to_dict())


def _check(model: VideoModel, num_frames: int) -> None:
    if model.config.pool == "exact":
        raise ValueError("model must pool approximately: the solver of pool = 'exact' cannot be exported")
    least = _least_frames(model)
    if checked_int("num_frames", num_frames) < least:
        raise ValueError(f"num_frames must be at least {least}, got {num_frames}")


def _example(model: VideoModel, num_frames: int, size: int | None, lengths: bool) -> tuple[Tensor, ...]:
    side, device = checked_int("size", model.size if size is None else size), next(model.parameters()).device
    video = torch.zeros(2, num_frames, len(model.mean), side, side, dtype=torch.uint8, device=device)
    return (video, torch.full((2,), num_frames, device=device)) if lengths else (video,)


def _shapes(model: VideoModel, lengths: bool) -> dict[str, Any]:
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    frames = torch.export.Dim("frames", min=_least_frames(model), max=1 << 16)
    return {"video": {0: batch, 1: frames}} | ({"lengths": {0: batch}} if lengths else {})


def _least_frames(model: VideoModel) -> int:
    """For two windows, and two frames of a static stream: of one, a program would be traced that holds for just one."""
    config = model.config
    return 1 + max(1, config.window or 1, config.stride or 1, config.every)


def _digamma(x: Tensor) -> Tensor:
    """ψ(x) for x ≥ 1 in float64, to 1e-14: ψ(x) = ψ(x + 8) - Σ 1/(x + i), i < 8, and Stirling's series."""
    shifted = sum((1 / (x + i) for i in range(8)), torch.zeros_like(x))
    y = x + 8
    square = 1 / (y * y)
    series = square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square * (1 / 240 - square / 132))))
    return y.log() - 0.5 / y - series - shifted


def _import(library: str) -> None:
    try:
        importlib.import_module(library)
    except ImportError as error:
        raise ImportError(f"ONNX files need {library} ({error}): pip install onnx onnxscript") from error
