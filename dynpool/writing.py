"""Files that appear whole or not at all; pictures of a video -> PNG or JPEG files, of which all appear or none."""

from __future__ import annotations

import errno
import io
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from PIL import Image
from torch import Tensor

_STRATEGY = Image.RLE  # zlib's: a fifth of the time of its own one, which makes files hardly smaller
_FULL_COLOUR = 0  # a sample of colour a pixel: coloured edges are what motion is seen by


@contextmanager
def whole_file(path: str | os.PathLike[str], suffix: str | None = None) -> Iterator[Path]:
    """A name in the folder of `path`, with its ending or another, for a file that takes its place at the end; what was
    written before an error is removed. A link stays one, to the new file; into a pipe or a device the file is copied.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        with TemporaryDirectory(prefix=".dynpool-") as folder:
            temporary = Path(folder, path.stem + (path.suffix if suffix is None else suffix))
            yield temporary
            path.write_bytes(temporary.read_bytes())
        return
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(path.parent))
    name = f".{path.stem}.{secrets.token_hex(8)}"  # processes of containers share numbers
    temporary = path.with_name(name + (path.suffix if suffix is None else suffix))
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # as a full disk's
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


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


def encoded(pixels: Tensor, jpeg: int | None = None) -> tuple[bytes, tuple[int, int]]:
    """The bytes of a PNG file of uint8 [3, H, W], or of a JPEG file of that quality, 1 … 100; and (width, height).

    Not written by Pillow, to which a JPEG file that a full disk cut short is done.
    """
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
    file = io.BytesIO()
    if jpeg is None:
        image.save(file, format="PNG", compress_type=_STRATEGY)
    else:
        image.save(file, format="JPEG", quality=jpeg, subsampling=_FULL_COLOUR)
    return file.getvalue(), image.size


def write_pictures(
    pictures: Iterable[Tensor], job: Job, windows: bool, jpeg: int | None = None, scratch: Path | None = None
) -> tuple[list[Path], tuple[int, int]]:
    """Every picture to a short temporary name, in a folder of its own in `scratch`, by default the job's folder, and
    when the last is there, all to their own: of a video that fails none appears. Returns the names and the size.
    """
    paths: list[Path] = []
    size = 0, 0
    with TemporaryDirectory(prefix=".dynpool-", dir=scratch or job.folder) as temporary:
        for index, pixels in enumerate(pictures):
            path = job.path(index if windows else None)
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder")
            data, size = encoded(pixels, jpeg)
            Path(temporary, str(index)).write_bytes(data)
            paths.append(path)
        for index, path in enumerate(paths):
            os.replace(Path(temporary, str(index)), path)
    return paths, size
