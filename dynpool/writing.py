"""Pictures of a video -> PNG files, of which all appear or none."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, NamedTuple

from PIL import Image
from torch import Tensor

SCRATCH = ".dynpool-"  # what folders of temporary files begin with
_STRATEGY = Image.RLE  # zlib's: a fifth of the time of its own one, which makes files hardly smaller


class Job(NamedTuple):
    """One video and where its images go."""

    video: str
    folder: Path
    stem: str
    suffix: str = ".png"

    def path(self, index: int | None) -> Path:
        """Of the image of a window, or of the only one."""
        number = "" if index is None else f"_{index:04d}"
        return self.folder / f"{self.stem}{number}{self.suffix}"


def save_png(pixels: Tensor, file: Path | IO[bytes]) -> tuple[int, int]:
    """uint8 [3, H, W] into a file; returns (width, height)."""
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
    image.save(file, format="PNG", compress_type=_STRATEGY)
    return image.size


def write_pictures(
    pictures: Iterable[Tensor], job: Job, windows: bool, scratch: Path | None = None
) -> tuple[list[Path], tuple[int, int]]:
    """Every picture to a short temporary name, in a folder of its own in `scratch`, by default the job's folder, and
    when the last is there, all to their own: of a video that fails, or when this is killed meanwhile, none appears.
    Returns the names and the size.
    """
    paths: list[Path] = []
    size = 0, 0
    with TemporaryDirectory(prefix=SCRATCH, dir=scratch or job.folder) as temporary:
        for index, pixels in enumerate(pictures):
            path = job.path(index if windows else None)
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder")
            size = save_png(pixels, Path(temporary, str(index)))
            paths.append(path)
        for index, path in enumerate(paths):
            os.replace(Path(temporary, str(index)), path)
    return paths, size
