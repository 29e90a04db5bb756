"""Models in files: safetensors, torch.export, ONNX."""

import json
import os

import numpy as np
import pytest
import torch
from networks import SIZE, tiny, tiny_model, videos
from torch import nn

from dynpool.models import (
    Backbone,
    CaffeNet,
    ModelConfig,
    build,
    export,
    export_onnx,
    export_pt2,
    load,
    plain_operators,
    read_config,
    save,
)
from dynpool.nn import ApproxRankPool

EXPORTED = {
    "dynamic image": {},
    "dynamic images": {"window": 3, "stride": 2},
    "dynamic images given": {"pool": "none"},
    "mean image": {"pool": "mean"},
    "middle frame": {"pool": "middle"},
    "dynamic map": {"layer": "relu2"},
    "dynamic maps": {"layer": "relu1", "window": 3, "stride": 2},
    "static, middle": {"kind": "static", "frames": "middle"},
    "two streams": {"kind": "two_stream", "branch": "relu1", "every": 2},
}


def model_of(options: dict, scale: float = 10.0) -> nn.Module:
    """With scores of size 1 rather than 0.01, which a loose tolerance would pass."""
    model = tiny_model(**options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "fc" in name:
                parameter.mul_(scale**0.5)
    return model


# --- save and load -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"layer": "relu1", "window": 3}, {"kind": "two_stream", "branch": "relu2"}], ids=str
)
def test_saved_models_come_back(tmp_path, options):
    pytest.importorskip("safetensors", reason="needs safetensors")
    model = tiny_model(**options, mean=[1, 2, 3]).eval()
    save(model, tmp_path / "model.safetensors")
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert read_config(tmp_path / "model.safetensors") == model.config
    again = load(tmp_path / "model.safetensors", backbone=tiny())
    assert again.config == model.config
    assert not again.training
    video = videos(7, 4, dtype=torch.uint8)
    assert torch.equal(again(video, [7, 4]), model(video, [7, 4]))


@pytest.mark.parametrize("kind", ["static", "two_stream"])
@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        (lambda fc: nn.Linear(fc.in_features, 9), r"'\S*backbone.fc2.bias' is of shape \[9\] and was of shape \[3\]"),
        (lambda fc: nn.Sequential(fc), r"'\S*backbone.fc2.bias' is missing and was of shape \[3\]"),
        (lambda fc: nn.Linear(fc.in_features, 3, bias=False), r"'\S*backbone.fc2.bias' is missing"),
    ],
)
def test_a_file_that_will_not_load_is_written_with_a_warning(tmp_path, kind, replaced, message):
    safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    model = tiny_model(kind=kind)
    networks = [model.static, model.dynamic] if kind == "two_stream" else [model]
    for network in networks:
        network.backbone.fc2 = replaced(network.backbone.fc2)
    with pytest.warns(RuntimeWarning, match=message) as warned:
        save(model, tmp_path / "model.safetensors")
    assert warned[0].filename == __file__
    safetensors.load_model(model, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit"):
        load(tmp_path / "model.safetensors", backbone=tiny())


def test_layers_with_the_same_weights_may_be_replaced(tmp_path, recwarn):
    pytest.importorskip("safetensors", reason="needs safetensors")
    model = nn.SyncBatchNorm.convert_sync_batchnorm(tiny_model())
    save(model, tmp_path / "model.safetensors")
    load(tmp_path / "model.safetensors", backbone=tiny())
    assert not recwarn.list


@pytest.mark.parametrize("kind", ["dynamic", "two_stream"])
def test_what_a_backbone_said_of_its_input_comes_back(tmp_path, kind):
    pytest.importorskip("safetensors", reason="needs safetensors")
    base = Backbone(tiny(), mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), size=SIZE)
    model = build(ModelConfig(kind, 6, "custom"), backbone=base).eval()
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors", backbone=tiny())
    video = videos(4, dtype=torch.uint8)
    assert torch.equal(again(video), model(video))


@pytest.mark.parametrize("half", [False, True])
def test_half_weights_leave_the_numbers_of_the_input(tmp_path, half):
    pytest.importorskip("safetensors", reason="needs safetensors")
    base = Backbone(tiny(), mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), size=SIZE)
    model = build(ModelConfig("dynamic", 6, "custom"), backbone=base)
    save(model.bfloat16() if half else model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors", backbone=tiny())
    assert (again.mean, again.std) == (base.mean, base.std)


def test_a_model_by_name_needs_nothing_but_its_file(tmp_path):
    pytest.importorskip("safetensors", reason="needs safetensors")
    weights = tmp_path / "pretrained.pth"
    torch.save(CaffeNet(5, size=67).state_dict(), weights)
    config = ModelConfig("dynamic", 3, "caffenet", weights=weights, layer="pool1", size=67)
    model = build(config).eval()
    save(model, tmp_path / "model.safetensors")
    weights.unlink()
    again = load(tmp_path / "model.safetensors")
    assert again.config == config
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["dynamic", "two_stream"])
def test_compiled_models_are_saved_and_exported(tmp_path, kind):
    pytest.importorskip("safetensors", reason="needs safetensors")
    model = tiny_model(kind).eval()
    compiled = torch.compile(model, backend="eager")
    save(compiled, tmp_path / "model.safetensors")
    export_pt2(compiled, tmp_path / "model.pt2", num_frames=4, dynamic=False)
    video = videos(4, 4, dtype=torch.uint8)
    assert torch.equal(load(tmp_path / "model.safetensors", backbone=tiny())(video), model(video))
    program = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(program(video), model(video), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("what", [save, lambda model, path: export_pt2(model, path, num_frames=4)], ids=["save", "pt2"])
def test_what_is_no_model(tmp_path, what):
    pytest.importorskip("safetensors", reason="needs safetensors")
    with pytest.raises(TypeError, match="model must be one that build made, got Sequential"):
        what(tiny(), tmp_path / "model.pt2")
    assert os.listdir(tmp_path) == []


def test_options_of_numpy_are_saved(tmp_path):
    pytest.importorskip("safetensors", reason="needs safetensors")
    model = tiny_model(pool="exact", classes=np.int64(3), C=np.float32(0.5), dropout=np.float32(0.5))
    save(model, tmp_path / "model.safetensors")
    assert read_config(tmp_path / "model.safetensors") == model.config


def test_nothing_is_half_written(tmp_path, monkeypatch):
    library = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"old")

    def interrupted(model, path, metadata):
        with open(path, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(library, "save_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tiny_model(), tmp_path / "model.safetensors")
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == b"old"


@pytest.mark.skipif(os.name != "posix", reason="needs permissions")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], ids=oct)
def test_a_saved_model_is_read_by_whom_other_new_files_are(tmp_path, umask):
    pytest.importorskip("safetensors", reason="needs safetensors")
    before = os.umask(umask)
    try:
        save(tiny_model(), tmp_path / "model.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_files_that_hold_no_model(tmp_path):
    library = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(tmp_path / "nothing.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    with pytest.raises(ValueError, match=r"noise\.safetensors is not a safetensors file"):
        load(tmp_path / "noise.safetensors")
    library.save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no model of dynpool"):
        load(tmp_path / "other.safetensors")
    save(tiny_model(layer="relu1"), tmp_path / "tiny.safetensors")
    with pytest.raises(ValueError, match="'custom' stands for a module"):
        load(tmp_path / "tiny.safetensors")
    wider = tiny()
    wider.fc1 = nn.Linear(28, 12)
    wider.fc2 = nn.Linear(12, 3)
    with pytest.raises(ValueError, match=r"do not fit backbone 'custom': .*fc1"):
        load(tmp_path / "tiny.safetensors", backbone=wider)


@pytest.mark.parametrize("key", ["dynpool.model", "dynpool.input"])
@pytest.mark.parametrize("text", ["{", "[]", "{}", "null", "3", '{"kind": 3, "num_classes": 2}', '{"mean": [1]}'])
def test_damaged_metadata(tmp_path, key, text):
    library = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    path, model = tmp_path / "tiny.safetensors", tiny_model()
    about = {"dynpool.model": json.dumps(model.config.to_dict())}
    about["dynpool.input"] = json.dumps({"mean": [1, 2, 3], "std": [1, 2, 3], "size": SIZE, "head": "fc2"})
    library.save_model(model, str(path), about)
    assert load(path, backbone=tiny()).mean == (1, 2, 3)
    library.save_model(model, str(path), {**about, key: text})
    with pytest.raises(
        ValueError, match=rf"tiny\.safetensors holds no model of dynpool: '{key}' in its metadata is dam"
    ):
        load(path, backbone=tiny())


# --- torch.export --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "lengths"),
    [(options, [9, 5, 4]) for options in EXPORTED.values()]
    + [({}, None), ({"layer": "relu1", "window": 3}, None)]
    + [({"pool": "middle"}, None), ({"pool": "middle", "layer": "relu1"}, None)],
    ids=str,
)
def test_exported_programs_take_other_batches(options, lengths):
    torch_version = tuple(map(int, torch.__version__.split(".")[:2]))
    if (torch_version < (2, 11) and "every" in options) or (torch_version == (2, 8) and "window" in options):
        pytest.skip("this torch.export sees that some T would not fit, which is not so")
    model = model_of(options).train()
    program = export(model, num_frames=6, lengths=lengths is not None)
    assert model.training
    model.eval()
    video = videos(9, 9, 9, dtype=torch.uint8)
    given = () if lengths is None else (torch.tensor(lengths),)
    torch.testing.assert_close(program.module()(video, *given), model(video, lengths), rtol=1e-5, atol=1e-5)


def test_export_leaves_frozen_layers_in_evaluation():
    model = tiny_model().train()
    model.backbone.norm2.eval()
    modes = [module.training for module in model.modules()]
    export(model, num_frames=4)
    assert [module.training for module in model.modules()] == modes


def test_programs_take_as_many_channels_as_the_backbone():
    backbone = nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    base = Backbone(backbone, mean=(10, 20), std=(100, 200), size=SIZE)
    for kind in ("dynamic", "two_stream"):
        model = build(ModelConfig(kind, 3, "custom"), backbone=base).eval()
        video = videos(5, 5, dtype=torch.uint8)[:, :, :2]
        program = export(model, num_frames=4)
        torch.testing.assert_close(program.module()(video), model(video), rtol=1e-5, atol=1e-5)


def test_exported_programs_go_through_files(tmp_path):
    model = model_of({"window": 3, "stride": 2})
    path = tmp_path / "model.pt2"
    export_pt2(model, path, num_frames=6, dynamic=False)
    assert os.listdir(tmp_path) == ["model.pt2"]
    assert read_config(path) == model.config
    beside = {"dynpool.model": ""}
    program = torch.export.load(path, extra_files=beside).module()
    assert ModelConfig.from_dict(json.loads(beside["dynpool.model"])) == model.config
    video = videos(6, 6, dtype=torch.uint8)
    torch.testing.assert_close(program(video), model(video), rtol=1e-5, atol=1e-5)


def test_programs_that_hold_no_model(tmp_path):
    path = tmp_path / "model.pt2"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_config(path)
    path.write_bytes(b"noise")
    with pytest.raises(ValueError, match=r"model\.pt2 is not a file of torch\.export"):
        read_config(path)
    torch.export.save(export(tiny_model(), num_frames=4), path)
    with pytest.raises(ValueError, match=r"model\.pt2 holds no model of dynpool: its metadata has no 'dynpool\.model'"):
        read_config(path)


def test_what_cannot_be_exported(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.pt2, got .*model\.pt'"):
        export_pt2(tiny_model(), tmp_path / "model.pt", num_frames=4)
    with pytest.raises(ValueError, match="solver of pool = 'exact' cannot be exported"):
        export(tiny_model(pool="exact"), num_frames=5)
    with pytest.raises(ValueError, match="num_frames must be at least 4, got 3"):
        export(tiny_model(window=3), num_frames=3)
    with pytest.raises(TypeError, match="num_frames must be an integer, got '4'"):
        export(tiny_model(), num_frames="4")
    with pytest.raises(TypeError, match=r"size must be an integer, got \(16, 16\)"):
        export(tiny_model(), num_frames=4, size=(16, 16))


# --- ONNX ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "lengths"), [("dynamic image", None), ("dynamic maps", [9, 5, 4])], ids=str)
def test_onnx_runtime_gives_the_same_scores(tmp_path, name, lengths):
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    model = model_of(EXPORTED[name])
    path = tmp_path / "model.onnx"
    export_onnx(model, path, num_frames=6, lengths=lengths is not None)
    assert os.listdir(tmp_path) == ["model.onnx"]
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert ModelConfig.from_dict(json.loads(metadata["dynpool.model"])) == model.config
    video = videos(9, 9, 9, dtype=torch.uint8)
    given = {} if lengths is None else {"lengths": np.array(lengths)}
    (scores,) = session.run(["scores"], {"video": video.numpy(), **given})
    want = model(video, lengths)
    assert want.abs().max() > 0.1
    torch.testing.assert_close(torch.from_numpy(scores), want, rtol=1e-4, atol=1e-4)


def test_other_networks_become_onnx_files(tmp_path):
    """Those with layers of dynpool.nn, for other batches and numbers of frames than that of the example."""
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    network = nn.Sequential(nn.ReLU(), ApproxRankPool(nonlinearity="sqrt", normalize_weights=True), nn.Flatten(1))
    dims = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("frames", min=2, max=512)
    program = torch.export.export(network, (torch.randn(2, 5, 3, 4, 6),), dynamic_shapes=(dict(enumerate(dims)),))
    torch.onnx.export(program.run_decompositions(plain_operators()), dynamo=True).save(tmp_path / "network.onnx")
    session = runtime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    for shape in ((2, 5), (3, 11), (1, 100)):
        x = torch.randn(*shape, 3, 4, 6)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(found), network(x), rtol=1e-4, atol=1e-5
        )  # float32, summed otherwise


@pytest.mark.parametrize("count", [2, 3, 10, 1000, 1 << 20])
def test_digamma_without_digamma(count):
    """α of the exported programs: of float64 accuracy, where ONNX has no digamma."""
    from dynpool.models.exporting import _digamma

    x = torch.tensor([1.0, 2.0, 3.0, 7.5, count, count + 1], dtype=torch.float64)
    torch.testing.assert_close(_digamma(x), torch.digamma(x), rtol=1e-13, atol=1e-13)


def test_size_of_the_images_is_that_of_the_backbone():
    program = export(tiny_model(), num_frames=4)
    shape = next(node.meta["val"].shape for node in program.graph.nodes if node.name == "video")
    assert list(shape[2:]) == [3, SIZE, SIZE]
