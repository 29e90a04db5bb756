"""How fast videos reach a network: loaders beside the decoder alone, in as many processes.

    python benchmarks/loading.py [--data FOLDER ...] [--workers N,N,...] [--seconds S] [--json FILE]

Without --data: the Weizmann actions (mpeg4, 180 x 144), and clips of UCF101, HMDB51, Kinetics and others beside them.
"share" is frames a second of the loader over those of bare decoding (no colour conversion, one thread a process): the
nearer to 1, the more decoding bounds it.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import RESULTS, machine
from rich.console import Console
from rich.table import Table
from speed import default_data

from dynpool.data import Listing, Sampling, VideoDataset, class_folders, measure

SOURCES: dict[str, dict[str, Any]] = {
    "dynamic image": {"source": "dynamic_images"},
    "dynamic images, 10 every 6": {"source": "dynamic_images", "sampling": Sampling(10, 6)},
    "the same, drawn": {"source": "dynamic_images", "sampling": Sampling(10, 6, max_windows=10, jitter=True)},
    "all frames": {"source": "frames"},
    "frames, 3 of them": {"source": "frames", "sampling": Sampling(frames=3)},
}


def everything(root: str) -> Listing:
    """All videos of a folder of classes."""
    train, test = (class_folders(root, 1, subset) for subset in ("train", "test"))
    return replace(train, videos=(*train.videos, *test.videos))


def default_folders() -> list[Path]:
    """Weizmann, and the clips that lie beside it."""
    weizmann = default_data()
    folders = [] if weizmann is None else [weizmann, weizmann.with_name("clips")]
    return [folder for folder in folders if folder.is_dir()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", default=default_folders(), help="folders of classes")
    parser.add_argument("--workers", default="0,2", help="numbers of processes; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure; default: %(default)s")
    parser.add_argument("--size", type=int, default=224, help="of the pictures; default: %(default)s")
    parser.add_argument("--json", type=Path, default=RESULTS / "loading-cpu.json")
    options = parser.parse_args()
    if not options.data:
        raise SystemExit("no data: --data FOLDER")
    rows, columns = [], ("data", "source", "processes", "videos/s", "frames/s", "decoder alone", "share")
    table = Table(*columns, box=None)
    for folder in options.data:
        listing = everything(str(folder))
        for (name, chosen), workers in itertools.product(SOURCES.items(), map(int, options.workers.split(","))):
            dataset = VideoDataset(listing, size=options.size, **chosen)
            rate = measure(dataset, workers, seconds=options.seconds)
            rows.append(
                {"data": folder.name, "source": name, "workers": workers, **rate._asdict(), "share": rate.share}
            )
            figures = f"{rate.videos:,.0f}", f"{rate.frames:,.0f}", f"{rate.decoded:,.0f}", f"{rate.share:.2f}"
            table.add_row(folder.name, name, str(workers or 1), *figures)
    Console(highlight=False).print(table)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"machine": machine(), "size": options.size, "rows": rows}, indent=1) + "\n")
    print(f"wrote {options.json}")


if __name__ == "__main__":
    main()
