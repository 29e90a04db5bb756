"""The same scores and gradients under autocast, torch.compile, checkpointing and two processes."""

import contextlib
import copy
import os
import pickle
import warnings

import pytest
import torch
import torch.multiprocessing as processes
from networks import SIZE, tiny, tiny_model, videos
from test_models import different
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dynpool.models import ModelConfig, build

MODELS = {
    "dynamic images": {"window": 3, "stride": 2},
    "dynamic maps": {"layer": "relu1", "window": 3, "stride": 2},
    "dynamic map, exact": {"layer": "relu1", "pool": "exact"},
    "static": {"kind": "static"},
    "two streams": {"kind": "two_stream", "branch": "relu1"},
    "two networks": {"kind": "two_stream"},
}
each_model = pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
LENGTHS = torch.tensor([7, 4])


def gradients(model, video, lengths, mode=None):
    """Scores, and gradients by the names that the weights have in files."""
    with mode or contextlib.nullcontext():
        scores = model(video, lengths)
    weights = torch.linspace(-1, 1, scores.numel(), dtype=scores.dtype).view_as(scores)
    (scores * weights).sum().backward()
    return scores.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@each_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(options, dtype):
    model = different(tiny_model(**options)).train()
    video = videos(7, 4, dtype=torch.uint8)
    want, _ = gradients(copy.deepcopy(model), video, LENGTHS)
    scores, grads = gradients(model, video, LENGTHS, torch.autocast("cpu", dtype))
    # ten layers, each rounding to 8 (11) bits; max over windows and exact pooling may choose otherwise
    assert scores.dtype == dtype
    assert (scores.float() - want).abs().max() < 0.1 * want.abs().max() + 0.05
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_weights(dtype):
    model = different(tiny_model(layer="relu1")).eval()
    video = videos(7, 4, dtype=torch.uint8)
    scores = copy.deepcopy(model).to(dtype)(video, LENGTHS)
    assert scores.dtype == dtype
    torch.testing.assert_close(scores.float(), model(video, LENGTHS), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_weights_of_any_dtype_see_what_was_normalised_in_full(dtype):
    model = tiny_model(pool="none", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
    video = videos(3, dtype=torch.uint8)
    seen = []
    for m in (model, copy.deepcopy(model).to(dtype), copy.deepcopy(model).to(dtype).float()):
        m.backbone.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        m.eval()(video)
    assert torch.equal(seen[1], seen[0].to(dtype))
    assert torch.equal(seen[2], seen[0])


def test_models_that_are_made_without_memory_normalise():
    with torch.device("meta"):
        model = build(ModelConfig("static", 3, "custom"), backbone=tiny())
    model = model.to_empty(device="cpu").eval()
    model.load_state_dict(tiny_model("static").state_dict())
    seen = []
    model.backbone.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(torch.zeros(1, 2, 3, SIZE, SIZE, dtype=torch.uint8))
    want = -torch.tensor([123.675, 116.28, 103.53]) / torch.tensor([58.395, 57.12, 57.375])
    torch.testing.assert_close(seen[0][1, :, 3, 4], want)


@pytest.mark.parametrize("last", [True, False])
def test_rows_lie_in_memory_as_the_weights_do(last):
    model = tiny_model(layer="relu1").eval()
    video = videos(5, 4, dtype=torch.uint8)
    want, seen = model(video), []
    model.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    model.backbone.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for given in (video, video.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)):
        torch.testing.assert_close(model(given), want, rtol=1e-4, atol=1e-5)
        assert seen[-1].is_contiguous(memory_format=torch.channels_last) == last
        assert seen[-1].is_contiguous() != last


# --- layers that are replaced ----------------------------------------------------------------------------------------

REPLACED = {
    "dynamic map": {"layer": "norm2"},
    "dynamic maps": {"layer": "relu1", "window": 3, "stride": 2, "video_layer": "norm2"},
    "both at one layer": {"layer": "norm2", "window": 3, "stride": 2, "video_layer": "norm2"},
    "two streams": {"kind": "two_stream", "branch": "norm2"},
    "two streams, windows": {"kind": "two_stream", "branch": "relu1", "window": 3, "video_layer": "norm2"},
    "two networks": {"kind": "two_stream", "layer": "norm2"},
}


@pytest.mark.parametrize("options", REPLACED.values(), ids=REPLACED)
def test_pooling_goes_on_where_batch_norm_becomes_synchronous(options):
    model = different(tiny_model(**options))
    other = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in other.modules())
    video = videos(7, 4, dtype=torch.uint8)
    for training in (True, False):
        want, grads = gradients(model.train(training), video, LENGTHS)
        scores, found = gradients(other.train(training), video, LENGTHS)
        torch.testing.assert_close(scores, want, rtol=1e-5, atol=1e-6)
        for name, gradient in grads.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
    for again in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        assert torch.equal(again(video, LENGTHS), other(video, LENGTHS))
    assert torch.equal(other.features(video, LENGTHS), other.features(video, LENGTHS))


def test_pooling_goes_on_behind_a_layer_that_wraps_the_first():
    model = tiny_model(layer="relu1", window=3, video_layer="relu2").eval()
    video = videos(7, 4, dtype=torch.uint8)
    want = model(video)
    for name in ("relu1", "relu2"):
        setattr(model.backbone, name, nn.Sequential(getattr(model.backbone, name), nn.Identity()))
        assert torch.equal(model(video), want)  # once, not twice
    model.backbone.relu1 = nn.ReLU()
    assert torch.equal(model(video), want)


def test_efficientnet_branches_at_a_synchronous_batch_norm():
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs efficientnet-lite-pytorch")
    model = build(ModelConfig("two_stream", 5, branch="_bn0", size=64)).eval()
    video = torch.randint(0, 256, (1, 4, 3, 64, 64), dtype=torch.uint8)
    other = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
    torch.testing.assert_close(other(video), model(video), rtol=1e-4, atol=0)


def test_a_layer_that_does_not_run_any_more_is_named():
    model = tiny_model(layer="relu1").eval()
    model.backbone.forward = lambda x: x.mean((2, 3))
    with pytest.raises(RuntimeError, match="layer 'relu1', where rows are pooled, did not run"):
        model(videos(3, dtype=torch.uint8))


# --- compiled --------------------------------------------------------------------------------------------------------


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield lambda model, **options: torch.compile(model, backend="aot_eager", **options)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "lengths", "training", "whole"),
    [
        ("dynamic images", LENGTHS, False, True),
        ("dynamic maps", None, True, True),
        ("static", LENGTHS, False, True),
        ("two streams", LENGTHS, True, False),  # padding is left out in training: shapes depend on values
        ("dynamic map, exact", None, True, False),  # its solver looks at values
    ],
)
def test_compile(name, lengths, training, whole, compiled):
    model = different(tiny_model(**MODELS[name])).train(training)
    other = copy.deepcopy(model)
    video = videos(7, 4, dtype=torch.uint8)
    want, grads = gradients(model, video, lengths)
    scores, found = gradients(compiled(other, fullgraph=whole), video, lengths)
    torch.testing.assert_close(scores, want, rtol=1e-4, atol=1e-5)
    for parameter, gradient in grads.items():
        torch.testing.assert_close(found[f"_orig_mod.{parameter}"], gradient, rtol=1e-3, atol=1e-4)


def test_compile_after_a_layer_was_replaced(compiled):
    model = tiny_model(layer="norm2").eval()
    video = videos(7, 4, dtype=torch.uint8)
    want = model(video)
    other = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
    for whole in (False, True):
        torch.testing.assert_close(compiled(other, fullgraph=whole)(video), want, rtol=1e-4, atol=1e-5)


# --- checkpointing -------------------------------------------------------------------------------------------------


def blocks() -> nn.Sequential:
    """`tiny` with a batch norm and a dropout in a block before relu1, and a block after."""
    network = tiny()
    network.conv1 = nn.Sequential(network.conv1, nn.BatchNorm2d(5), nn.Dropout(0.5))
    network.relu2 = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
    return network


def check_recomputed(plain, thrifty, layer):
    """`thrifty` runs a layer of it twice, and trains as `plain` does, whose state it gets."""
    assert list(thrifty.state_dict()) == list(plain.state_dict())
    thrifty.load_state_dict(plain.state_dict())
    calls = []
    thrifty.backbone.get_submodule(layer).register_forward_hook(lambda *args: calls.append(1))
    video = videos(7, 4, dtype=torch.uint8)
    results = []
    for model in (plain.train(), thrifty.train()):
        torch.manual_seed(1)
        results.append(gradients(model, video, LENGTHS))
    assert len(calls) == 2  # in forward, and again in backward
    assert torch.equal(results[0][0], results[1][0])
    for a, b in zip(results[0][1].values(), results[1][1].values(), strict=True):
        assert torch.equal(a, b)
    state = thrifty.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize(
    "options", [{}, {"layer": "relu1"}, {"kind": "static"}, {"kind": "two_stream", "branch": "relu1"}], ids=str
)
def test_checkpointing_changes_nothing_but_memory(options):
    config = ModelConfig(**{"kind": "dynamic", "num_classes": 3, "backbone": "custom", "size": SIZE, **options})
    backbone = blocks()
    plain = build(config, backbone=backbone)
    thrifty = build(ModelConfig(**{**config.to_dict(), "checkpointing": True}), backbone=backbone)
    check_recomputed(plain, thrifty, "conv1.0")


@pytest.mark.parametrize(
    "options",
    [{}, {"window": 3, "stride": 2, "video_layer": "relu3"}, {"every": 2}],
    ids=str,
)
def test_blocks_behind_a_branch_are_checkpointed(options):
    config = ModelConfig("two_stream", 3, "custom", size=SIZE, branch="relu1", **options)
    backbone = tiny()
    backbone.norm2 = nn.Sequential(backbone.norm2, nn.Dropout(0.5))
    plain = different(build(config, backbone=backbone))
    thrifty = build(ModelConfig(**{**config.to_dict(), "checkpointing": True}), backbone=backbone)
    check_recomputed(plain, thrifty, "norm2.0")
    images = torch.rand(5, 3, SIZE, SIZE)
    assert torch.equal(thrifty.eval().backbone(images), plain.eval().backbone(images))  # the streams are forgotten


def test_features_of_a_layer_inside_a_checkpointed_block():
    config = ModelConfig("dynamic", 3, "custom", size=SIZE)
    backbone = blocks()
    plain = build(config, backbone=backbone).eval()
    thrifty = build(ModelConfig(**{**config.to_dict(), "checkpointing": True}), backbone=backbone).eval()
    video = videos(7, 4, dtype=torch.uint8)
    for layer in ("conv1", "conv1.0", "relu2.1"):
        got, want = thrifty.features(video, LENGTHS, layer), plain.features(video, LENGTHS, layer)
        assert torch.equal(got, want)
        got.square().sum().backward()
        want.square().sum().backward()
    for a, b in zip(thrifty.parameters(), plain.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)
    with pytest.raises(ValueError, match=r"got 'conv1.7'; it has: conv1, conv1.0, conv1.1"):
        thrifty.features(video, LENGTHS, "conv1.7")


def test_checkpointing_under_compile(compiled):
    config = ModelConfig("dynamic", 3, "custom", size=SIZE, layer="relu1", checkpointing=True, dropout=0.0)
    model = different(build(config, backbone=blocks())).train()
    video = videos(7, 7, dtype=torch.uint8)
    want, grads = gradients(copy.deepcopy(model), video, None)
    other = copy.deepcopy(model)
    scores, found = gradients(compiled(other), video, None)
    torch.testing.assert_close(scores, want)
    for a, b in zip(grads.values(), found.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# --- two processes -------------------------------------------------------------------------------------------------


def _half_a_batch(rank, folder, models, video, lengths):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    found = []
    for model in models:
        parallel = DistributedDataParallel(model)
        mine = slice(2 * rank, 2 * rank + 2)
        for _ in range(2):  # twice: DDP complains of unused parameters in the second step
            parallel.zero_grad()
            parallel(video[mine], lengths[mine]).square().mean().backward()
        found.append([p.grad for p in model.parameters()])
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.barrier()  # or the first one's end may be the other's lost connection
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_gradients_of_one(tmp_path):
    models = [different(tiny_model(**options)).eval() for options in MODELS.values()]
    lengths = [7, 4, 6, 5]
    video = videos(*lengths, dtype=torch.uint8)
    processes.spawn(_half_a_batch, (str(tmp_path), models, video, lengths), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for i, model in enumerate(models):
        model.zero_grad()
        model(video, lengths).square().mean().backward()
        for a, b, p in zip(found[0][i], found[1][i], model.parameters(), strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, p.grad, rtol=1e-3, atol=1e-5 * float(p.grad.abs().max() + 1))
