"""Figures 2, 3 and 5 of the paper, drawn anew as PNG and SVG.

    python benchmarks/figures.py [--data FOLDER] [--label CLASS] [--out FOLDER]

fig2: mean image, approximate and exact dynamic image of one clip; fig3: the weights α of eq. (2) and eq. (4);
fig5: how the exact and the approximate d score the frames of their own clip and of another of its class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import torch
from exact import running_means
from speed import Pair, accuracy, by_equation_2, by_exact, default_data, load
from torch import Tensor

import dynpool

matplotlib.use("Agg")
from matplotlib import pyplot

EXACT, APPROXIMATE = "#d1495b", "#30638e"


def comparison(pair: Pair) -> pyplot.Figure:
    """Fig. 2."""
    frames = pair.train
    images = {
        f"{pair.label}: first of {len(frames)} frames": frames[0],
        "last frame": frames[-1],
        "mean of the frames (motion blur)": dynpool.dynamic_image(frames, method="mean", nonlinearity="identity"),
        "dynamic image, approximate": dynpool.dynamic_image(frames),
        "dynamic image, exact": dynpool.dynamic_image(frames, method="exact"),
    }
    figure, panels = pyplot.subplots(1, len(images), figsize=(3 * len(images), 2.8), layout="constrained")
    for panel, (name, image) in zip(panels, images.items(), strict=True):
        panel.imshow(image.permute(1, 2, 0))
        panel.set_title(name, fontsize=9)
        panel.axis("off")
    return figure


def weights(num_frames: int = 11) -> pyplot.Figure:
    """Fig. 3."""
    figure, panel = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    t = torch.arange(1, num_frames + 1)
    panel.axhline(0, color="#8d99ae", linewidth=0.8)
    panel.plot(t, dynpool.rank_weights(num_frames), "o-", color=EXACT, label="eq. (2), running means")
    panel.plot(
        t, dynpool.rank_weights(num_frames, time_average=False), "s-", color=APPROXIMATE, label="eq. (4), frames"
    )
    panel.set(xlabel="frame t", ylabel=r"weight $\alpha_t$", xticks=t.tolist())
    panel.set_title(f"T = {num_frames}", fontsize=10)
    panel.legend(frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def scores(d: Tensor, frames: Tensor) -> Tensor:
    """S(t|d), from 0 to 1: the scales of the two d differ."""
    s = torch.from_numpy(running_means(frames, "sqrt") @ d.flatten().double().numpy())
    return (s - s.min()) / (s.max() - s.min())


def profiles(pair: Pair) -> pyplot.Figure:
    """Fig. 5."""
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
    learnt = {"exact": (by_exact(pair.train), EXACT), "approximate": (by_equation_2(pair.train), APPROXIMATE)}
    for panel, name, frames in zip(
        panels, ("the video learnt from", "another video"), (pair.train, pair.test), strict=True
    ):
        for method, (d, color) in learnt.items():
            label = f"{method}: {accuracy(d, frames):.1f} % of pairs in order"
            panel.plot(range(1, len(frames) + 1), scores(d, frames), color=color, label=label)
        panel.set_title(f"{pair.label}: {name}", fontsize=10)
        panel.set_xlabel("frame t")
        panel.legend(frameon=False, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("S(t|d), scaled to 0 … 1")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_data(), help="folder of classes; see speed.py")
    parser.add_argument("--generate", action="store_true", help="made-up clips even where there are others")
    parser.add_argument("--label", help="the class to draw; default: the first")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder; default: %(default)s")
    options = parser.parse_args()
    pairs = load(None if options.generate else options.data, 10)
    chosen = [pair for pair in pairs if options.label in (None, pair.label)]
    if not chosen:
        raise SystemExit(f"no class {options.label!r}; there are {', '.join(pair.label for pair in pairs)}")
    options.out.mkdir(parents=True, exist_ok=True)
    matplotlib.rcParams["svg.hashsalt"] = "dynpool"
    for name, figure in (("fig2", comparison(chosen[0])), ("fig3", weights()), ("fig5", profiles(chosen[0]))):
        for ending in ("png", "svg"):
            figure.savefig(
                options.out / f"{name}.{ending}", dpi=110, metadata={"Date": None} if ending == "svg" else None
            )
        print(f"wrote {options.out / name}.png and .svg")
        pyplot.close(figure)


if __name__ == "__main__":
    main()
