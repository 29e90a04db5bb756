"""What is shown of results and of progress: pictures that hold all they say, and lines that a bar does not touch."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("yaml", reason="needs PyYAML: pip install dynpool[train]")
pytest.importorskip("matplotlib", reason="needs matplotlib: pip install dynpool[train]")

from dynpool.training import report

TITLE = (  # of streams fused, as long as they get
    "hmdb51 splits 1, 2, 3, 0.5 × RGB frames + 0.5 × (0.333 × dynamic images, exact + 0.667 × flow dynamic images), "
    "pretraining: ImageNet (efficientnet_lite0) + none (custom), windows: 10 every 6, at most 20, 12 videos left out"
)
CLASSES = ("HandstandPushups", "run, fast", *(f"class{i}" for i in range(99)))


@pytest.fixture
def figures(monkeypatch):
    """Figures as they would be saved."""
    made = []
    save = report._save

    def keep(figure, path):
        made.append(figure)
        save(figure, path)

    monkeypatch.setattr(report, "_save", keep)
    return made


def inside(figure):
    """Whether nothing reaches over the edge, in inches."""
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
def test_pictures_hold_their_titles(count, figures, tmp_path):
    counts = np.eye(count, dtype=np.int64)
    report.draw_confusion(counts, CLASSES[:count], TITLE, tmp_path / "confusion.png")
    report.draw_bars(np.full(count, 50.0), CLASSES[:count], "accuracy, %", TITLE, tmp_path / "classes.png")
    for figure in figures:
        assert figure.get_suptitle().replace("\n", " ") == TITLE
        assert inside(figure)


def test_classes_that_were_not_tested_take_no_room(figures, tmp_path):
    values = np.full(101, np.nan)
    values[[1, 0, 100]] = 20, 60, 40
    report.draw_bars(values, CLASSES, "accuracy, %", "made", tmp_path / "classes.png")
    report.draw_bars(np.array([60.0, 20.0, 40.0]), CLASSES[:3], "accuracy, %", "made", tmp_path / "three.png")
    first, three = figures
    assert (first.get_size_inches() == three.get_size_inches()).all()
    panel = first.axes[0]
    assert [bar.get_width() for bar in panel.patches] == [20, 40, 60]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["run, fast", "class98", "HandstandPushups"]
    assert panel.get_xlabel() == "accuracy, %; 98 classes without videos are left out"
    assert three.axes[0].get_xlabel() == "accuracy, %"


# --- progress ---------------------------------------------------------------------------------------------------------


def on_screen(text):
    """Lines as a terminal shows them, where a carriage return goes back to the start of a line that was cleared."""
    return [line.rsplit("\r", 1)[-1] for line in text.split("\n")]


def test_lines_and_bar_on_a_terminal(tmp_path, capsys):
    L = pytest.importorskip("lightning", reason="needs Lightning: pip install dynpool[train]")
    import tiny
    from lightning.pytorch.loggers import CSVLogger

    from dynpool.models import build
    from dynpool.training.datamodule import Videos
    from dynpool.training.module import VideoClassifier
    from dynpool.training.progress import EpochBar, EpochLines

    config = tiny.config(tiny.write_videos(tmp_path / "videos"), "data.validation=test")
    module = VideoClassifier(build(config.model_config(2), backbone=tiny.network()), config.optimiser, 2)
    options = {"enable_checkpointing": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=CSVLogger(tmp_path, version="of_the_log"),
        callbacks=[EpochLines(), EpochBar()],
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(module, Videos(config, *config.data.subsets()))
    out = capsys.readouterr().out
    shown = on_screen(out)
    assert shown[0].startswith("folders split given, dynamic images")
    assert [line[:15] for line in shown if "loss" in line] == ["epoch 1/2: loss", "epoch 2/2: loss"]
    assert shown[-1].strip() == ""  # the bar is gone
    assert set(re.findall(r"(epoch \d/2): +\d+%", out)) == {"epoch 1/2", "epoch 2/2"}
    assert "val/accuracy=" in out
    assert "of_the_log" not in out
