"""VideoDarwin (Fernando et al., "Modeling video evolution for action recognition", CVPR 2015): a video as the machine
that ranks its frames' features, forwards and backwards.

    python examples/videodarwin.py FEATURES.npy … [-o OUT.npy]
    python examples/videodarwin.py VIDEO … [-o OUT.npy]

FEATURES.npy holds the features [T, D] of a video's frames: Fisher vectors, bags of words, activations of a network. Of
a VIDEO, the pixels of its frames at 32×32 serve. OUT.npy holds a row [2D] for each input, ready for a linear SVM.

Order matters, and is not that of dynamic images: running means first, then signed square roots, then each V_t over its
length; then support vector regression of the frames' positions, as liblinear's -s 11 -c 1 poses it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import dynpool


def time_varying_means(features: Tensor) -> Tensor:
    """V [T, D] of features [T, D]: running means, signed roots, unit length."""
    steps = torch.arange(1, len(features) + 1, dtype=features.dtype, device=features.device)
    means = features.cumsum(0) / steps[:, None]
    return torch.nn.functional.normalize(means.sign() * means.abs().sqrt(), dim=1)


def video_darwin(features: Tensor, C: float = 1.0) -> Tensor:
    """[2D]: the machine of the features [T, D] and that of the same features backwards."""
    halves = (time_varying_means(order) for order in (features, features.flip(0)))
    return torch.cat([dynpool.rank_pool(V, 0, objective="svr", C=C, time_average=False) for V in halves])


def features_of(path: Path) -> Tensor:
    if path.suffix == ".npy":
        features = torch.from_numpy(np.load(path))
        if features.dim() != 2:
            raise ValueError(f"{path} must hold features [T, D], got {list(features.shape)}")
        return features.double()
    return dynpool.read_clip(path, size=(32, 32)).frames.flatten(1).double()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("videodarwin.npy"))
    parser.add_argument("-C", type=float, default=1.0)
    options = parser.parse_args()
    rows = []
    for path in options.inputs:
        features = features_of(path)
        if rows and 2 * features.shape[1] != len(rows[0]):
            parser.error(f"{path} has {features.shape[1]} features, those before {len(rows[0]) // 2}")
        rows.append(video_darwin(features, options.C))
        print(f"{path}: {len(features)} frames, {features.shape[1]} features")
    with options.out.open("wb") as file:  # by this name, whatever its ending
        np.save(file, torch.stack(rows).numpy())
    print(f"wrote {options.out}, {len(rows)} × {len(rows[0])}")


if __name__ == "__main__":
    main()
