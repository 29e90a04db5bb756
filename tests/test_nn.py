"""Modules: their repr is the call, their state is what was given as tensors, and any layer may go before them."""

import copy
import pickle

import numpy as np
import pytest
import torch
from cases import DTYPES, FLOATING, frames
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import dynpool.nn
from dynpool import approx_rank_pool
from dynpool.nn import ApproxRankPool, RankPool, TemporalMaxPool

NAN, INF = float("nan"), float("inf")

MODULES = {
    "ApproxRankPool(dim=1)": ApproxRankPool(),
    "ApproxRankPool(dim=1, window=10, stride=6)": ApproxRankPool(window=10, stride=6),
    "ApproxRankPool(dim=-2, time_average=False, normalize_weights=True)": ApproxRankPool(
        -2, time_average=False, normalize_weights=True
    ),
    "ApproxRankPool(dim=1, nonlinearity='sqrt', mean=0.5, std=255)": ApproxRankPool(
        nonlinearity="sqrt", mean=0.5, std=255
    ),
    "ApproxRankPool(dim=1, mean=(0.5, 1.0, 2.0), std=(1, 2, 3), channel_dim=2)": ApproxRankPool(
        mean=[0.5, 1.0, 2.0], std=(1, 2, 3), channel_dim=2
    ),
    "ApproxRankPool(dim=1, mean=(0.5, 1.0, 2.0), std=0.25)": ApproxRankPool(
        mean=np.array([0.5, 1, 2]), std=np.float32(0.25)
    ),
    "ApproxRankPool(dim=0, out_dtype=torch.float64)": ApproxRankPool(dim=0, out_dtype=torch.float64),
    "TemporalMaxPool(dim=1)": TemporalMaxPool(),
    "TemporalMaxPool(dim=-4)": TemporalMaxPool(-4),
}


@pytest.mark.parametrize("text", MODULES)
def test_repr_is_the_call(text):
    module = MODULES[text]
    assert repr(module) == text
    again = eval(text, {"torch": torch, **vars(dynpool.nn)})
    assert repr(again) == text
    options = {k: v for k, v in vars(module).items() if not k.startswith("_")}
    assert {k: v for k, v in vars(again).items() if not k.startswith("_")} == options


def test_repr_tells_tensors_by_shape():
    module = ApproxRankPool(mean=torch.zeros(3), std=nn.Parameter(torch.ones(())))
    assert repr(module) == "ApproxRankPool(dim=1, mean=Tensor[3], std=Parameter[])"


def test_repr_shows_numbers_of_numpy_as_python_s():
    module = ApproxRankPool(np.int64(1), window=np.int64(3), mean=[np.float32(1), np.float64(2)], std=np.array(0.25))
    assert repr(module) == "ApproxRankPool(dim=1, mean=(1.0, 2.0), std=0.25, window=3)"
    assert repr(RankPool(C=np.float64(3))) == "RankPool(dim=1, C=3.0)"
    assert repr(TemporalMaxPool(np.int64(2))) == "TemporalMaxPool(dim=2)"


@pytest.mark.parametrize("name", ["mean", "std"])
def test_text_is_no_mean(name):
    with pytest.raises(TypeError, match=f"{name} must be a number, a sequence of numbers or a Tensor, got 'abc'"):
        ApproxRankPool(**{name: "abc"})


@pytest.mark.parametrize(
    ("module", "options", "error", "message"),
    [
        (ApproxRankPool, {"nonlinearity": "relu"}, ValueError, "nonlinearity must be one of 'identity', 'sqrt', got"),
        (ApproxRankPool, {"window": 0}, ValueError, "window must be between 1 and 2147483647, got 0"),
        (ApproxRankPool, {"window": np.array([3, 4])}, TypeError, "window must be an integer, got array"),
        (ApproxRankPool, {"dim": "a"}, TypeError, "dim must be an integer, got 'a'"),
        (TemporalMaxPool, {"dim": 1.5}, TypeError, r"dim must be an integer, got 1\.5"),
        (ApproxRankPool, {"stride": 2}, ValueError, "stride = 2 has no meaning without window"),
        (ApproxRankPool, {"out_dtype": torch.int32}, TypeError, "out_dtype must be one of"),
        (RankPool, {"nonlinearity": "relu"}, ValueError, "nonlinearity must be one of"),
        (RankPool, {"objective": "svm"}, ValueError, "objective must be one of 'ranksvm', .* got 'svm'"),
        (RankPool, {"C": 0}, ValueError, "C must be finite and positive, got 0"),
        (RankPool, {"max_iter": 0}, ValueError, "max_iter must be a positive integer, got 0"),
    ],
)
def test_what_no_frames_would_fit_is_refused_at_once(module, options, error, message):
    with pytest.raises(error, match=message):
        module(**options)


OPTIONS = [
    {},
    {"dim": 2, "window": 2, "stride": 1, "nonlinearity": "sqrt"},
    {"time_average": False, "normalize_weights": True, "out_dtype": torch.float64},
    {"mean": [0.5, 1.0, 0.25], "std": [1.0, 2.0, 3.0], "channel_dim": 2, "nonlinearity": "sqrt"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32], ids=str)
def test_module_is_the_function(backend, options, dtype):
    x = frames((2, 5, 3, 4), dtype, backend.device)
    module = ApproxRankPool(**options)
    for how in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module)), module.eval()):
        assert torch.equal(how(x), approx_rank_pool(x, **options))


def test_lengths_and_offsets_are_the_call_s(backend):
    x = frames((3, 7, 5), device=backend.device)
    assert torch.equal(ApproxRankPool()(x, [7, 2, 3]), approx_rank_pool(x, lengths=[7, 2, 3]))
    assert torch.equal(ApproxRankPool()(x, offsets=[0, 3, 7]), approx_rank_pool(x, offsets=[0, 3, 7]))
    windows = ApproxRankPool(window=2)(x, lengths=torch.tensor([7, 2, 3]))
    assert torch.equal(windows, approx_rank_pool(x, window=2, lengths=[7, 2, 3]))


@pytest.mark.parametrize("module", [ApproxRankPool(std=2.0), RankPool(objective="svr"), TemporalMaxPool()])
def test_networks_can_be_traced_by_fx(module):
    network, x = nn.Sequential(nn.Flatten(2), module), torch.rand(2, 5, 3, 4)
    traced = torch.fx.symbolic_trace(network)
    for how in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        assert torch.equal(how(x), network(x))
    assert torch.equal(torch.fx.symbolic_trace(module, {"lengths": None})(x), module(x))


@pytest.mark.parametrize(
    ("name", "dim", "values"),
    [("lengths", 1, [[k + 2, k + 3] for k in range(12)]), ("offsets", 0, [[0, k + 1, 20] for k in range(12)])],
    ids=["lengths", "offsets"],
)
def test_lists_of_lengths_compile_for_all_numbers(name, dim, values, backend):
    """More of them than Dynamo compiles anew."""
    module, x = ApproxRankPool(dim=dim, normalize_weights=True), frames((20, 20, 5)[1 - dim :], device=backend.device)
    x = x[:2] if dim == 1 else x
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    for numbers in values:
        assert torch.allclose(compiled(x, **{name: numbers}), module(x, **{name: numbers}), atol=1e-5)
    if name == "lengths":
        assert torch.compile(module, fullgraph=True, backend="eager")(x[:0], lengths=[]).shape == (0, 5)
        with pytest.raises(Exception, match=r"lengths must be integers, got torch\.bool"):
            compiled(x, lengths=[True, True])


def test_numbers_are_configuration_tensors_are_state():
    assert ApproxRankPool(mean=0.5, std=[1.0, 2.0, 3.0]).state_dict() == {}
    module = ApproxRankPool(mean=torch.tensor([1.0, 2.0]), std=nn.Parameter(torch.tensor([3.0, 4.0])))
    assert sorted(module.state_dict()) == ["mean", "std"]
    assert [name for name, _ in module.named_parameters()] == ["std"]
    assert [name for name, _ in module.named_buffers()] == ["mean"]
    other = ApproxRankPool(mean=torch.zeros(2), std=nn.Parameter(torch.ones(2)))
    other.load_state_dict(module.state_dict())
    assert other.mean.tolist() == [1.0, 2.0]
    assert other.std.tolist() == [3.0, 4.0]


def test_state_moves_with_the_module(backend):
    module = ApproxRankPool(mean=torch.tensor([1.0, 2.0, 3.0]), std=nn.Parameter(torch.ones(3)), channel_dim=2)
    module = module.to(backend.device)
    x = frames((2, 5, 3, 4), device=backend.device)
    assert torch.equal(module(x), approx_rank_pool(x, mean=[1.0, 2.0, 3.0], std=[1.0] * 3, channel_dim=2))
    assert ApproxRankPool(mean=torch.zeros(3)).to("meta").mean.is_meta


def test_changing_the_sequence_afterwards_changes_nothing():
    mean = [1.0, 2.0, 3.0]
    module = ApproxRankPool(mean=mean)
    mean[0] = 100.0
    assert module.mean == (1.0, 2.0, 3.0)


def test_a_parameter_learns(backend):
    module = ApproxRankPool(std=nn.Parameter(torch.full((3,), 2.0)), channel_dim=2, time_average=False).to(
        backend.device
    )
    x = frames((2, 5, 3, 4), torch.uint8, backend.device)
    module(x).sum().backward()
    total = approx_rank_pool(x, time_average=False).sum((0, 2))
    assert module.std.grad.tolist() == pytest.approx((-total / 4).tolist(), rel=1e-5)


def test_extra_arguments_are_refused():
    with pytest.raises(TypeError, match="strid"):
        ApproxRankPool(strid=2)
    with pytest.raises(TypeError, match="positional"):
        ApproxRankPool(1, True)


# --- in a network --------------------------------------------------------------------------------------------------


def small_network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 7),
    )


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("lengths", [None, [5, 3]])
def test_the_maximum_keeps_the_memory_format(backend, lengths, gradient):
    x = torch.rand(2, 5, 4, 6, 3, device=backend.device)
    last = x.permute(0, 1, 4, 2, 3).requires_grad_(gradient)
    pooled = TemporalMaxPool()(last, lengths)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    plain = TemporalMaxPool()(x.permute(0, 1, 4, 2, 3).contiguous(), lengths)
    assert plain.is_contiguous()
    assert torch.equal(pooled, plain)


def test_the_maximum_compiles_for_any_shape(backend):
    pool = torch.compile(TemporalMaxPool(), fullgraph=True, backend="aot_eager")
    for num_frames in (5, 7, 4):
        last = torch.rand(2, num_frames, 4, 6, 3, device=backend.device).permute(0, 1, 4, 2, 3)
        assert torch.equal(pool(last), TemporalMaxPool()(last))
        assert torch.equal(pool(last, [3, 2]), TemporalMaxPool()(last, [3, 2]))


def test_the_maximum_can_be_traced():
    x = torch.rand(2, 5, 3)
    assert torch.equal(torch.jit.trace(TemporalMaxPool(), (x,))(x), x.amax(1))


def test_rank_pool_with_info(backend):
    x = torch.rand(2, 5, 3, device=backend.device)
    d, info = RankPool(return_info=True)(x, [5, 4])
    expected, expected_info = dynpool.rank_pool(x, lengths=[5, 4], return_info=True)
    assert torch.equal(d, expected)
    assert torch.equal(info.weights, expected_info.weights)
    assert repr(RankPool(return_info=True)) == "RankPool(dim=1, return_info=True)"


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_after_any_layer(backend, memory_format):
    """Pooled after each layer in turn: the rest runs on the image, and gradients reach the first layer."""
    batch, num_frames = 2, 5
    x = torch.rand(batch * num_frames, 3, 8, 8).to(backend.device).contiguous(memory_format=memory_format)
    for cut in range(len(small_network()) + 1):
        layers = list(small_network().to(backend.device))
        pool = ApproxRankPool(normalize_weights=True)
        network = nn.Sequential(*layers[:cut], nn.Unflatten(0, (-1, num_frames)), pool, *layers[cut:])
        y = network(x)
        assert y.shape == (batch, 7)
        y.square().sum().backward()
        for parameter in network.parameters():
            assert parameter.grad.isfinite().all()
        assert layers[0].weight.grad.abs().sum() > 0


def test_after_any_layer_with_packed_clips(backend):
    """Clips of several lengths through one network, without padding and without a reshape."""
    layers = list(small_network().eval().to(backend.device))
    x = torch.rand(9, 3, 8, 8).to(backend.device)
    maps = nn.Sequential(*layers[:4])(x)
    pooled = ApproxRankPool(dim=0)(maps, offsets=[0, 4, 9])
    each = torch.stack([approx_rank_pool(maps[:4], 0), approx_rank_pool(maps[4:], 0)])
    assert torch.allclose(pooled, each, rtol=1e-5, atol=1e-5)
    assert nn.Sequential(*layers[4:])(pooled).shape == (2, 7)


def test_multiple_dynamic_images(backend):
    """Windows at the input, the maximum over them at the end: section 3.3 of the paper."""
    x = frames((2, 31, 3, 8, 8), torch.uint8, backend.device)
    images = ApproxRankPool(window=10, stride=6, nonlinearity="sqrt", normalize_weights=True)(x)
    scores = small_network().eval().to(backend.device)(images.flatten(0, 1)).unflatten(0, (2, -1))
    assert scores.shape == (2, 4, 7)
    best = TemporalMaxPool()(scores)
    assert torch.equal(best, scores.amax(1))
    best.sum().backward()


@pytest.mark.parametrize("strict", [True, False])
def test_network_can_be_exported(strict):
    layers = list(small_network().eval())
    network = nn.Sequential(*layers[:4], nn.Unflatten(0, (2, 5)), ApproxRankPool(), *layers[4:]).eval()
    x = torch.rand(10, 3, 8, 8)
    program = torch.export.export(network, (x,), strict=strict)
    assert torch.allclose(program.module()(x), network(x), rtol=1e-5, atol=1e-5)


# --- TemporalMaxPool -----------------------------------------------------------------------------------------------


def test_max_by_hand(device):
    x = torch.tensor([[[1.0, -5.0], [4.0, -6.0], [2.0, -4.0]], [[7.0, 0.0], [3.0, 1.0], [9.0, NAN]]], device=device)
    assert TemporalMaxPool()(x)[0].tolist() == [4.0, -4.0]
    assert TemporalMaxPool()(x, [2, 2]).tolist() == [[4.0, -5.0], [7.0, 1.0]]
    assert TemporalMaxPool()(x, [1, 1]).tolist() == [[1.0, -5.0], [7.0, 0.0]]
    assert TemporalMaxPool()(x)[1, 1].isnan()


def test_max_of_uint8_and_of_infinities(device):
    x = torch.tensor([[0, 255], [3, 7]], dtype=torch.uint8, device=device)
    assert TemporalMaxPool()(x, [1, 2]).tolist() == [0, 7]
    assert TemporalMaxPool()(x).dtype == torch.uint8
    y = torch.tensor([[-INF, 5.0], [-INF, -INF]], device=device)
    assert TemporalMaxPool()(y, [1, 2]).tolist() == [-INF, -INF]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_max_against_a_loop(device, dtype, dim):
    x = frames((3, 5, 7), dtype, device)
    best = x.select(dim, 0)
    for t in range(1, x.shape[dim]):
        best = torch.where(x.select(dim, t) > best, x.select(dim, t), best)
    y = TemporalMaxPool(dim)(x)
    assert torch.equal(y, best)
    assert y.dtype == dtype


@pytest.mark.parametrize("poison", [NAN, INF])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("dim", [1, 2, -1])
def test_padding_has_no_say_in_a_maximum(device, poison, dtype, dim):
    clean = -frames((3, 7, 7, 7), dtype, device).abs()  # below 0, so that zeros would win
    lengths = [7, 1, 4]
    dirty, alone = clean.clone(), []
    for b, n in enumerate(lengths):
        dirty[b].narrow(dim % 4 - 1, n, 7 - n).fill_(poison)
        alone.append(clean[b].narrow(dim % 4 - 1, 0, n).amax(dim % 4 - 1))
    dirty.requires_grad_()
    for how in (lengths, torch.tensor(lengths, device=device), torch.tensor(lengths, dtype=torch.int32)):
        y = TemporalMaxPool(dim)(dirty, how)
        assert torch.equal(y, torch.stack(alone))
    (dx,) = torch.autograd.grad(y.sum(), dirty)
    for b, n in enumerate(lengths):
        assert dx[b].narrow(dim % 4 - 1, n, 7 - n).count_nonzero() == 0
    assert dx.count_nonzero() == dx.sum().item() == 3 * 7 * 7


def test_gradient_goes_to_one_maximum(device):
    x = torch.tensor([[1.0, 5.0, 2.0], [3.0, 3.0, 3.0]], device=device, requires_grad=True)
    TemporalMaxPool()(x).backward(torch.tensor([10.0, 100.0], device=device))
    assert x.grad[0].tolist() == [0.0, 10.0, 0.0]
    assert sorted(x.grad[1].tolist()) == [0.0, 0.0, 100.0]


def test_max_derivatives(device):
    x = torch.randperm(24).double().reshape(2, 4, 3).to(device).requires_grad_()
    pool = TemporalMaxPool()
    assert gradcheck(pool, x, check_forward_ad=True, check_batched_grad=True)
    assert gradcheck(lambda x: pool(x, [4, 2]), x, check_forward_ad=True)
    assert gradgradcheck(pool, x)


def test_max_keeps_no_frames(device):
    """Backward of a maximum over many frames needs the place of each maximum only."""
    x = torch.rand(2, 101, 7, device=device, requires_grad=True)
    for lengths in (None, [101, 5]):
        saved = []

        def save(tensor, saved=saved):
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            TemporalMaxPool()(x, lengths)
        assert max(saved) < x.numel() // 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_max_without_gradients_is_that_with_them(device, dtype):
    x = frames((3, 5, 7), dtype, device)
    if x.is_floating_point():
        x[0, 2, 3], x[1, 4, 1] = NAN, -INF
    for lengths in (None, [5, 3, 1]):
        y = TemporalMaxPool()(x.requires_grad_(x.is_floating_point()), lengths)
        with torch.no_grad():
            assert torch.equal(TemporalMaxPool()(x, lengths).nan_to_num(7), y.nan_to_num(7))
        assert y[0, 3].isnan() == x.is_floating_point()


def test_max_without_gradients_looks_for_no_index(device):
    x = frames((3, 5, 7), device=device)
    with TorchProfile() as seen:
        TemporalMaxPool()(x, [5, 3, 1])
        with torch.no_grad():
            TemporalMaxPool()(x.clone().requires_grad_())
    assert (seen.count("aten::amax"), seen.count("aten::max")) == (2, 0)


class TorchProfile(list):
    """Names of the operations that run."""

    def __enter__(self):
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        self.profile.__enter__()
        return self

    def __exit__(self, *raised):
        self.profile.__exit__(*raised)
        self.extend(event.name for event in self.profile.events())


def test_max_under_transforms(device):
    x = frames((2, 5, 3, 4), device=device)
    pool = TemporalMaxPool()
    assert torch.equal(torch.vmap(pool)(x), torch.stack([pool(clip) for clip in x]))
    lengths = torch.tensor([5, 2], device=device)
    torch._dynamo.reset()
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(x, lengths), pool(x, lengths))
    batch, time = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("time", min=2, max=64)
    shapes = {"x": {0: batch, 1: time}, "lengths": {0: batch}}
    program = torch.export.export(pool, (x, lengths), dynamic_shapes=shapes)
    other, counts = frames((3, 11, 3, 4), device=device), torch.tensor([2, 11, 7], device=device)
    assert torch.equal(program.module()(other, counts), pool(other, counts))


def test_max_of_an_empty_batch(device):
    assert TemporalMaxPool()(torch.empty(0, 5, 3, device=device)).shape == (0, 3)
    lengths = torch.empty(0, dtype=torch.int64)
    assert TemporalMaxPool()(torch.empty(0, 5, 3, device=device), lengths).shape == (0, 3)
