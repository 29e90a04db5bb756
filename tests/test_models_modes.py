"""The same scores and gradients under autocast, torch.compile, checkpointing and two processes."""

import contextlib
import copy
import os
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


# --- checkpointing -------------------------------------------------------------------------------------------------


def blocks() -> nn.Sequential:
    """`tiny` with a batch norm and a dropout in a block before relu1, and a block behind."""
    network = tiny()
    network.conv1 = nn.Sequential(network.conv1, nn.BatchNorm2d(5), nn.Dropout(0.5))
    network.relu2 = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
    return network


@pytest.mark.parametrize(
    "options", [{}, {"layer": "relu1"}, {"kind": "static"}, {"kind": "two_stream", "branch": "relu1"}], ids=str
)
def test_checkpointing_changes_nothing_but_memory(options):
    config = ModelConfig(**{"kind": "dynamic", "num_classes": 3, "backbone": "custom", "size": SIZE, **options})
    backbone = blocks()
    plain = build(config, backbone=backbone)
    thrifty = build(ModelConfig(**{**config.to_dict(), "checkpointing": True}), backbone=backbone)
    assert list(thrifty.state_dict()) == list(plain.state_dict())
    thrifty.load_state_dict(plain.state_dict())
    calls = []
    thrifty.backbone.get_submodule("conv1.0").register_forward_hook(lambda *args: calls.append(1))
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
