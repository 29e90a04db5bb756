"""The dynamic image of what a camera or a pipe has shown so far, again and again, in constant memory.

    python examples/stream.py /dev/video0 --format v4l2        a camera (Linux; "avfoundation", "dshow" elsewhere)
    ffmpeg -i rtsp://… -f matroska - | python examples/stream.py -

Writes OUT, a PNG file, every N frames and at the end; with --restart, each image is of the frames since the last.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import av
from PIL import Image

from dynpool import RankPoolStream, to_image
from dynpool.decoder import TOLERANT


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text}")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help="a device, a file, a URL that FFmpeg knows, or - for standard input")
    parser.add_argument("--format", help="of the input, where its name does not tell")
    parser.add_argument("-o", "--out", type=Path, default=Path("live.png"))
    parser.add_argument("--every", type=positive, default=25, metavar="N")
    parser.add_argument("--restart", action="store_true")
    options = parser.parse_args()

    def write(stream: RankPoolStream) -> None:
        image = to_image(stream.result()).permute(1, 2, 0).contiguous().numpy()
        whole = options.out.with_suffix(".part.png")
        Image.fromarray(image).save(whole)
        os.replace(whole, options.out)  # a viewer never sees half a picture
        print(f"{options.out}: {len(stream)} frames")

    stream = RankPoolStream(nonlinearity="sqrt", normalize_weights=True)
    source = sys.stdin.buffer if options.input == "-" else options.input
    with av.open(source, format=options.format, **TOLERANT) as container:
        for count, frame in enumerate(container.decode(video=0), 1):
            stream.update(frame)
            if count % options.every == 0:
                write(stream)
                if options.restart:
                    stream.reset()
    if len(stream) > 1:  # one frame has no order: its image is grey
        write(stream)


if __name__ == "__main__":
    main()
