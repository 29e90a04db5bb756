"""What docstrings and the README show runs as it stands there."""

import ast
import doctest
import importlib.util
import inspect
import re
import warnings
from pathlib import Path

import pytest
import torch

import dynpool

ROOT = Path(__file__).parents[1]
PUBLIC = {name: getattr(dynpool, name) for name in dynpool.__all__} | {
    f"nn.{name}": getattr(dynpool.nn, name) for name in dynpool.nn.__all__
}
DESCRIBED = {name: value for name, value in PUBLIC.items() if callable(value)}


@pytest.mark.parametrize("name", DESCRIBED)
def test_docstrings(name):
    text = inspect.getdoc(DESCRIBED[name])
    assert text
    example = doctest.DocTestParser().get_doctest(text, {"dynpool": dynpool, **_names(DESCRIBED[name])}, name, None, 0)
    found = doctest.DocTestRunner().run(example)
    assert found.failed == 0


def test_all_that_is_called_has_an_example():
    without = {name for name, value in DESCRIBED.items() if ">>>" not in inspect.getdoc(value)}
    assert without == {"RankPoolInfo", "VideoError", "build_info"}  # which nobody makes, or has arguments for


def _names(value):
    """Of the module in which a function or class is."""
    return vars(inspect.getmodule(inspect.unwrap(value)))


@pytest.mark.parametrize("page", ["README.md", "docs/choosing.md"])
def test_pages(page, tmp_path, monkeypatch):
    path = ROOT / page
    if not path.exists():
        pytest.skip(f"{page} is in the source tree alone")
    from clips import random_frames, write  # which skips without PyAV

    write(tmp_path / "clip.mp4", random_frames(410, 48, 64), "mpeg4", "yuv420p", "mp4")
    monkeypatch.chdir(tmp_path)
    frames = torch.randint(0, 256, (8, 20, 3, 48, 64), dtype=torch.uint8)
    video, lengths = frames[:2], torch.tensor([20, 12])
    names = {"torch": torch, "dynpool": dynpool, "frames": frames, "video": video, "lengths": lengths}
    for code in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        names |= {"video": video, "lengths": lengths, "frames": frames if "B, T, C, H, W" in code else frames[0]}
        for statement in ast.parse(code).body:
            _run(statement, names)
    assert names["image"].dtype == torch.uint8


def _run(statement, names):
    text = ast.unparse(statement)
    if "cuda" in text and not torch.cuda.is_available():
        return
    if "build(" in text and importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        pytest.skip("what follows needs efficientnet-lite-pytorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that are not there
        exec(compile(text, text, "exec"), names)
