"""The configuration of a run: data, model, optimiser and trainer, from YAML files and overrides."""

from __future__ import annotations

import math
import os
import types
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from ..checks import Nonlinearity
from ..data import Listing, Sampling, VideoDataset, make_listing, splits
from ..data.folders import divide, halves
from ..data.geometry import Crop, Geometry
from ..data.listing import Subset
from ..data.named import DatasetName
from ..data.sources import Pooling, SourceName, make_source
from ..manifest import how_made
from ..models import ModelConfig
from ..models.backbones import DEFAULT_WEIGHTS
from ..recipe import Method
from ..video import check_timeout
from ..writing import whole_file
from .values import ConfigError, assign, flat, make, merge, plain

Schedule = Literal["geometric", "cosine", "linear", "constant"]
_ELSEWHERE = {  # what may differ between machines
    "data": ("root", "lists", "cache", "timeout", "workers"),
    "trainer": ("accelerator", "devices", "num_nodes", "strategy", "checkpoint_steps", "threads", "progress"),
}
_LISTED = ("ucf101", "hmdb51")  # data sets of official splits
_SECTIONS = ("data", "model", "optimiser", "trainer")
_PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}  # Lightning's short names


@dataclass(frozen=True)
class DataConfig:
    """Which videos, and how they are read.

    dataset ("ucf101", "hmdb51", "weizmann", "folders"), root, lists, test_fraction and group are those of
    `dynpool.data`; split is a number, a person or group left out, or "all" for one run after the other.
    source, method, nonlinearity, time_average, size, resize, crop, flip, min_scale, cache and timeout are those of
    `VideoDataset`; window, stride, max_windows, frames, jitter and reverse of `Sampling`. In testing, nothing is
    drawn, at most test_windows are used (null: all), and test_frames frames of each (null: as in training).
    validation: share of the training videos to set aside, groups kept whole: progress is measured on them, and the
    best epoch's weights are the result. "test" shows progress on the test videos, and selects nothing by it. null
    measures nothing. In the last two cases, the result is the last epoch's weights.
    batch_size is per process; in training, a last batch of one video is left out. workers are the processes that read
    videos, 0 for none.
    """

    dataset: DatasetName = "folders"
    root: str = ""
    split: int | str = 1
    lists: str | None = None
    test_fraction: float = 0.3
    group: str | None = None
    source: SourceName = "dynamic_images"
    window: int | None = None
    stride: int | None = None
    max_windows: int | None = None
    test_windows: int | None = None
    frames: int | None = None
    test_frames: int | None = None
    jitter: bool = False
    reverse: float = 0.0
    method: Method = "approx"
    nonlinearity: Nonlinearity = "sqrt"
    time_average: bool = True
    size: int | None = 224
    resize: int | tuple[int, int] | None = None
    crop: Crop = "centre"
    flip: bool = False
    min_scale: float = 1.0
    validation: float | Literal["test"] | None = None
    cache: str | None = None
    timeout: float | None = None
    batch_size: int = 32
    workers: int = 0

    def __post_init__(self) -> None:
        for train in (True, False):
            pooling = Pooling(self.method, self.nonlinearity, self.time_average)
            try:
                make_source(self.source, self.geometry(train), self.sampling(train), None, pooling)
            except ValueError as error:
                if train:
                    raise
                said = f"test_windows = {self.test_windows!r}, test_frames = {self.test_frames!r}"
                raise ValueError(f"what is tested ({said}): {error}") from error
        check_timeout(self.timeout)
        if self.lists is not None and self.dataset not in _LISTED:
            known = " and ".join(map(repr, _LISTED))
            raise ValueError(f"lists = {self.lists!r} is of dataset {known}, got dataset {self.dataset!r}")
        if self.batch_size < 1 or self.workers < 0:
            raise ValueError(f"batch_size must be at least 1 and workers 0, got {self.batch_size} and {self.workers}")
        if isinstance(self.validation, float) and not 0 < self.validation < 1:
            raise ValueError(f"validation must be between 0 and 1, 'test' or null, got {self.validation!r}")

    @property
    def sets_aside(self) -> bool:
        """Whether progress is measured on training videos, and the best epoch chosen by it."""
        return isinstance(self.validation, float)

    def sampling(self, train: bool) -> Sampling:
        drawn = Sampling(self.window, self.stride, self.max_windows, self.frames, self.jitter, self.reverse)
        if train:
            return drawn
        return replace(drawn.without_chance(), max_windows=self.test_windows, frames=self.test_frames or self.frames)

    def geometry(self, train: bool) -> Geometry:
        drawn = Geometry(self.size, self.resize, self.crop, self.flip, self.min_scale)
        return drawn if train else drawn.without_chance()

    def listing(self, subset: Subset, split: int | str | None = None) -> Listing:
        """The videos of `split`, by default that of the configuration."""
        options: dict[str, Any] = {}
        if self.dataset in _LISTED:
            options = {"lists": self.lists}
        elif self.dataset == "folders":
            options = {"test_fraction": self.test_fraction, "group": self.group}
        return make_listing(self.dataset, self.root, self.split if split is None else split, subset, **options)

    def splits(self) -> list[int | str]:
        """All splits of the dataset."""
        return splits(self.dataset, self.root, self.group)

    def subsets(self) -> tuple[Listing, Listing | None]:
        """Videos to train on, and to measure progress on."""
        train = self.listing("train")
        if self.validation is None:
            return train, None
        if self.validation == "test":
            return train, self.listing("test")
        kept, aside = divide(train, float(self.validation), self.group)
        return replace(kept, missing=train.missing), aside

    def videos(self, listing: Listing, train: bool, seed: int = 0) -> VideoDataset:
        geometry = self.geometry(train)
        return VideoDataset(
            listing,
            source=self.source,
            sampling=self.sampling(train),
            **asdict(geometry),
            method=self.method,
            nonlinearity=self.nonlinearity,
            time_average=self.time_average,
            cache=self.cache,
            timeout=self.timeout,
            seed=seed,
            on_error="replace" if train else "skip",
        )

    def windows_in_words(self, train: bool = False) -> str:
        """Such as "10 every 6, at most 20"; of pictures, as they were made."""
        sampling, made = self.sampling(train), self.how_made(train)
        window, step = (sampling.window, sampling.step) if made is None else (made.get("window"), made.get("stride"))
        most = f", at most {sampling.max_windows}" if sampling.max_windows else ""
        if window is None and made is None and self.source == "images":
            return f"those of the pictures{most}"
        thinned = f", {sampling.frames} frame{'' if sampling.frames == 1 else 's'} of each" if sampling.frames else ""
        return f"whole video{thinned}" if window is None else f"{window} every {step or window}{most}{thinned}"

    def how_made(self, train: bool = False) -> dict[str, Any] | None:
        """What the manifest says of pictures that `dynpool extract` made, where there is one."""
        if self.source != "images" or not self.root:
            return None
        half = halves(self.root).get("train" if train else "test")
        return how_made(self.root) or (None if half is None else how_made(half))


@dataclass(frozen=True)
class OptimiserConfig:
    """How weights are learnt.

    name: "sgd" (momentum) or "adamw". lr is that of the first epoch and final_lr of the last; schedule says how it goes
    from one to the other, epoch by epoch, after `warmup` epochs of linear rise. head_lr multiplies lr for the last
    layer. train: "all" layers or the "head", the last layer, alone. freeze_batchnorm keeps the running statistics
    that came with the weights. label_smoothing and clip (largest norm of the gradient) are as usual.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 1e-3
    final_lr: float = 1e-5
    schedule: Schedule = "geometric"
    warmup: int = 0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    head_lr: float = 1.0
    train: Literal["all", "head"] = "all"
    freeze_batchnorm: bool = False
    label_smoothing: float = 0.0
    clip: float | None = None

    def __post_init__(self) -> None:
        rates = (self.lr, self.final_lr, self.head_lr)
        if not all(0 < rate < math.inf for rate in rates):
            raise ValueError(f"lr, final_lr and head_lr must be positive numbers, got {', '.join(map(str, rates))}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip must be a positive number or null, got {self.clip}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum}")
        for name in ("warmup", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True)
class TrainerConfig:
    """Where and how long: accelerator, devices, num_nodes, strategy and precision are Lightning's own.

    patience: stop after so many epochs without a better validation accuracy (needs data.validation).
    accumulate: batches whose gradients are averaged to a step; the last step of an epoch has those that are left, whose
    sum is divided by as many, so that it is smaller. checkpoint_steps: write a checkpoint every so many
    steps, besides the one after each epoch. threads: of torch in each process; null leaves torch's own number.
    max_steps ends a run early, perhaps within an epoch: of epochs that data.validation measures, epochs says how many.
    """

    epochs: int = 20
    patience: int | None = None
    accelerator: str = "auto"
    devices: int | str | tuple[int, ...] = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str | int = "32-true"
    accumulate: int = 1
    checkpoint_steps: int | None = None
    max_steps: int = -1
    threads: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "accumulate", "checkpoint_steps", "threads", "num_nodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.max_steps < 1 and self.max_steps != -1:
            raise ValueError(f"max_steps must be at least 1, or -1 for no limit, got {self.max_steps}")


@dataclass(frozen=True)
class Config:
    """A run. `model` has the options of `dynpool.models.ModelConfig` but for num_classes, which the data say."""

    data: DataConfig = field(default_factory=DataConfig)
    model: dict[str, Any] = field(default_factory=lambda: {"kind": "dynamic"})
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        self.model_config(2)
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed must be from 0 to 2^63 - 1, got {self.seed}")
        if self.trainer.patience is not None and not self.data.sets_aside:
            raise ConfigError("trainer.patience needs training videos set aside: data.validation, a share of them")
        if self.trainer.max_steps != -1 and self.data.validation is not None:
            told = f"got {self.data.validation!r} and max_steps = {self.trainer.max_steps}: say trainer.epochs"
            raise ConfigError(
                f"data.validation, which measures whole epochs, must be null with trainer.max_steps, {told}"
            )

    def check_effects(self) -> None:
        """Raise ConfigError for options of a new run that would do nothing beside others."""
        data, optimiser = self.data, self.optimiser
        if data.test_fraction != DataConfig.test_fraction and data.dataset != "folders":
            raise ConfigError(
                f"data.test_fraction = {data.test_fraction} is of dataset 'folders', got {data.dataset!r}"
            )
        if data.group is not None and data.dataset != "folders" and not data.sets_aside:
            told = f"got dataset {data.dataset!r} and validation = {data.validation!r}"
            raise ConfigError(f"data.group = {data.group!r} is of dataset 'folders', or of videos set aside, {told}")
        if data.method in ("mean", "max") and not data.time_average:
            raise ConfigError(f"data.time_average = False has no meaning with method = {data.method!r}")
        if optimiser.name != "sgd" and optimiser.momentum != OptimiserConfig.momentum:
            raise ConfigError(f"optimiser.momentum = {optimiser.momentum} is of name = 'sgd', got {optimiser.name!r}")
        if optimiser.schedule == "constant" and optimiser.final_lr != OptimiserConfig.final_lr:
            raise ConfigError(f"optimiser.final_lr = {optimiser.final_lr} has no meaning with schedule = 'constant'")
        if optimiser.warmup and optimiser.warmup >= self.trainer.epochs:
            told = f"got warmup = {optimiser.warmup} and epochs = {self.trainer.epochs}"
            raise ConfigError(f"optimiser.warmup, epochs in which lr rises, must be below trainer.epochs, {told}")

    def model_config(self, num_classes: int) -> ModelConfig:
        """The model for so many classes: what the data imply is filled in.

        Pictures, which the data have pooled already, need pool = "none". Windows of frames lie one after the other,
        and the model pools each. The backbone is tried with images of data.size, which a CaffeNet is made for,
        unless model.size says otherwise.
        """
        if "num_classes" in self.model:
            raise ConfigError(f"model.num_classes is that of the data, got {self.model['num_classes']!r}")
        given = {"kind": "dynamic", **self.model, "num_classes": num_classes}
        data = self.data
        if data.source != "frames" and given.get("layer") is not None:
            raise ConfigError(f"model.layer = {given['layer']!r} needs data.source = 'frames', got {data.source!r}")
        if data.source != "frames" and given["kind"] == "two_stream":
            raise ConfigError(f"model.kind = 'two_stream' needs data.source = 'frames', got {data.source!r}")
        if data.source != "frames" and given["kind"] != "static":
            if given.get("pool") not in (None, "none"):
                raise ConfigError(f"model.pool = {given['pool']!r} needs data.source = 'frames', got {data.source!r}")
            given["pool"] = "none"
        elif data.source == "frames" and data.window is not None and given["kind"] != "static":
            if given.get("window") is not None:
                raise ConfigError("windows are given twice: give data.window or model.window")
            if data.test_frames not in (None, data.frames):
                raise ConfigError("data.test_frames must be data.frames where the model pools windows of them")
            given["window"] = given["stride"] = data.sampling(train=True).clip_frames
        if given.get("size") is None:
            given["size"] = data.size
        try:
            return ModelConfig.from_dict(given)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"model: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in YAML."""
        return plain(asdict(self))

    def with_split(self, split: int | str) -> Config:
        return replace(self, data=replace(self.data, split=split))

    def anchored(self) -> Config:
        """With paths that are right from any folder."""
        paths = {name: os.path.abspath(path) for name in ("root", "lists") if (path := getattr(self.data, name))}
        if self.data.cache not in (None, "memory"):
            paths["cache"] = os.path.abspath(self.data.cache)
        file = self.weights_file
        model = self.model if file is None else {**self.model, "weights": os.path.abspath(file)}
        return replace(self, data=replace(self.data, **paths), model=model)

    def experiment(self) -> dict[str, Any]:
        """What a result depends on: all but where the data lie, and on what and how fast it is computed."""
        values = self.to_dict()
        for part, names in _ELSEWHERE.items():
            for name in names:
                del values[part][name]
        precision = str(self.trainer.precision)
        values["trainer"]["precision"] = _PRECISIONS.get(precision, precision)
        values["model"] = self.model_config(2).to_dict()  # with what is not said
        if values["model"]["weights"] in DEFAULT_WEIGHTS:
            values["model"]["weights"] = DEFAULT_WEIGHTS[0]
        return values

    @property
    def weights_file(self) -> str | None:
        """The file of the weights that the model begins with, if it is one."""
        weights = self.model.get("weights")
        return None if weights is None or weights in DEFAULT_WEIGHTS else os.fspath(weights)


def differences(before: Config, now: Config) -> dict[str, tuple[Any, Any]]:
    """Settings that a result depends on and that are not alike, by their keys."""
    one, other = (flat(config.experiment()) for config in (before, now))
    pairs = {key: (one.get(key), other.get(key)) for key in {**one, **other}}
    return {key: (value, another) for key, (value, another) in pairs.items() if value != another}


def load(files: Iterable[str | os.PathLike[str]] = (), overrides: Iterable[str] = ()) -> Config:
    """The configuration of YAML files, the later ones over the earlier, and "key=value" overrides over them all.

    A file is a path, or the name of one that comes with dynpool (`shipped`).

    Raises:
        ConfigError: a key or a value makes no sense.
        FileNotFoundError: there is no such file.
    """
    values: dict[str, Any] = {}
    for file in files:
        merge(values, read(file))
    for override in overrides:
        assign(values, override)
    return make(Config, values)


def read(file: str | os.PathLike[str]) -> dict[str, Any]:
    """The values of a YAML file, or of a shipped configuration; a section of which all is commented out is empty."""
    text = _text(file)
    try:
        values = yaml.load(text, Loader=_OneOfEach)
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} must be YAML: {error}") from error
    if not isinstance(values, (Mapping, types.NoneType)):
        raise ConfigError(f"{file} must hold keys and values, got {type(values).__name__}")
    return {key: {} if value is None and key in _SECTIONS else value for key, value in (values or {}).items()}


class _OneOfEach(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Of a key that is given twice, YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
            if (key.tag, key.value) in seen:
                message = f"{key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _text(file: str | os.PathLike[str]) -> str:
    if Path(file).is_file():
        try:
            return Path(file).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file} must be text in UTF-8: {error}") from error
    if str(file) in shipped():
        return (_folder() / f"{file}.yaml").read_text(encoding="utf-8")
    raise FileNotFoundError(f"config must be a YAML file or one of {', '.join(shipped())}, got {str(file)!r}")


def shipped() -> list[str]:
    """Names of the configurations that come with dynpool."""
    return sorted(item.name[: -len(".yaml")] for item in _folder().iterdir() if item.name.endswith(".yaml"))


def _folder() -> Any:
    return resources.files(__package__) / "configs"


def write(config: Config, path: Path) -> None:
    """As YAML that `load` reads, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8")
