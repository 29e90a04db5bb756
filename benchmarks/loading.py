"""How fast videos reach a network: loaders beside the decoder alone, in as many processes.

    python benchmarks/loading.py [--data FOLDER ...] [--workers N,N,...] [--seconds S] [--json FILE]

Without --data: the Weizmann actions (mpeg4, 180 x 144), and clips of UCF101, HMDB51, Kinetics and others beside them.
"share" is frames a second of the loader over those of bare decoding (no colour conversion, one thread a process), the
median of the rates that were measured beside each of the sources: the nearer to 1, the more decoding bounds it.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import RESULTS, write_json
from rich.console import Console
from rich.table import Table
from speed import default_data

from dynpool.data import Listing, Sampling, VideoDataset, class_folders, measure, recipe

SOURCES: dict[str, dict[str, Any]] = {
    "dynamic image": {"source": "dynamic_images"},
    "25 every 20 (paper)": {"source": "dynamic_images", "sampling": recipe("paper", train=True)},
    "10 every 6 (release, training)": {"source": "dynamic_images", "sampling": recipe("authors_release", train=True)},
    "10 every 6 (release, testing)": {"source": "dynamic_images", "sampling": recipe("authors_release", train=False)},
    "10 every 6, all": {"source": "dynamic_images", "sampling": Sampling(10, 6)},
    "3 frames": {"source": "frames", "sampling": Sampling(frames=3)},
    "all frames": {"source": "frames"},
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


def measured(listing: Listing, workers: int, size: int, seconds: float) -> list[dict[str, Any]]:
    """A row of each source."""
    rates = {
        name: measure(VideoDataset(listing, size=size, **chosen), workers, seconds=seconds)
        for name, chosen in SOURCES.items()
    }
    decoder = statistics.median(rate.decoded for rate in rates.values())
    return [
        {"source": name, "workers": workers, **rate._asdict(), "decoder": decoder, "share": rate.frames / decoder}
        for name, rate in rates.items()
    ]


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
    rows: list[dict[str, Any]] = []
    table = Table("data", "source", "processes", "videos/s", "frames/s", "decoder alone", "share", box=None)
    for folder in options.data:
        for workers in map(int, options.workers.split(",")):
            for row in measured(everything(str(folder)), workers, options.size, options.seconds):
                rows.append({"data": folder.name, **row})
                figures = (
                    f"{row['videos']:,.0f}",
                    f"{row['frames']:,.0f}",
                    f"{row['decoder']:,.0f}",
                    f"{row['share']:.2f}",
                )
                table.add_row(folder.name, row["source"], str(workers or 1), *figures)
    Console(highlight=False).print(table)
    write_json(options.json, {"size": options.size, "rows": rows})


if __name__ == "__main__":
    main()
