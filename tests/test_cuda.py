"""What only a GPU can show: streams, graphs, several devices, sizes, and frames on their way there.

All other tests of the operation run on CUDA, too (conftest.py).
"""

import numpy as np
import pytest
import torch
from cases import frames
from conftest import parameters, require
from torch.utils.flop_counter import FlopCounterMode

from dynpool import (
    RankPoolStream,
    approx_rank_pool,
    context,
    dynamic_image,
    dynamic_images,
    kept,
    ops,
    pooling,
    rank_pool,
)
from dynpool.decoder import Turn
from dynpool.formats import YUV, Format, has_fields
from dynpool.pools import MovedColours, _Staging

OPTIONS = [
    {},
    {"std": 255.0},
    {"mean": [1.0, 2.0, 3.0], "std": (40.0, 50.0, 60.0), "nonlinearity": "sqrt"},
    {"window": 3, "stride": 2, "normalize_weights": True},
    {"lengths": [7, 4]},
    {"window": 2, "lengths": [7, 4]},
]


@pytest.fixture(params=parameters("cuda"))
def cuda(request):
    return require(request.param)


def forget(monkeypatch):
    """Lets calls find nothing that was kept before."""
    monkeypatch.setattr(pooling, "_calls", ops.new_calls())
    for cache in ("_row_cache", "_table_cache", "_number_cache", "_captured"):
        monkeypatch.setattr(kept, cache, {})


def on_device(options, device):
    return options | {"lengths": torch.tensor(options["lengths"], device=device)} if "lengths" in options else options


# --- graphs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_cuda_graph(cuda, options, warm, monkeypatch):
    """The same bits, forward and backward, whether or not weights and numbers were kept before; and they stay kept."""
    forget(monkeypatch)
    options = on_device(options, cuda)
    x = frames((2, 7, 3, 5, 33), torch.float32, cuda).add_(0.5).requires_grad_()

    def pool():
        y = approx_rank_pool(x, **options)
        return y, *torch.autograd.grad(y.square().sum(), x)

    with torch.cuda.stream(torch.cuda.Stream()):  # loads kernels
        pool()
    torch.cuda.synchronize()
    if not warm:
        forget(monkeypatch)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = pool()
    kept._row_cache.clear()
    kept._number_cache.clear()
    filler = [torch.full((64,), float("nan"), device=cuda) for _ in range(1000)]  # in whatever memory was let go
    for _ in range(2):
        with torch.no_grad():
            x.copy_(frames((2, 7, 3, 5, 33), torch.float32, cuda).add_(0.5))
        graph.replay()
        torch.cuda.synchronize()
        assert all(map(torch.equal, captured, pool()))
    del filler


@pytest.mark.parametrize("options", OPTIONS)
def test_compiled_with_graphs(cuda, options):
    """torch.compile(mode="reduce-overhead") records a graph in its second call and replays it from the third on."""
    options = on_device(options, cuda)

    def pool(x):
        return approx_rank_pool(x.neg(), **options) * 2

    compiled = torch.compile(pool, mode="reduce-overhead", fullgraph=True)
    torch._dynamo.utils.counters.clear()
    for _ in range(5):
        x = frames((2, 7, 3, 5, 33), torch.float32, cuda).requires_grad_()
        torch.compiler.cudagraph_mark_step_begin()
        y = compiled(x)
        expected = pool(x)
        assert torch.equal(y, expected)  # the same kernel between operations that do not round
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(dx, *torch.autograd.grad(expected.sum(), x))
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0


def test_what_a_graph_cannot_capture(monkeypatch):
    monkeypatch.setattr(context, "is_captured", lambda x: True)
    x = torch.zeros(2, 7, 3)
    with pytest.raises(ValueError, match="offsets cannot be captured in a CUDA graph"):
        approx_rank_pool(x, offsets=[0, 3, 7])
    with pytest.raises(ValueError, match="lengths must be on the device of x to be captured in a CUDA graph, got list"):
        approx_rank_pool(x, lengths=[3, 7])


@pytest.mark.parametrize("options", OPTIONS[:4])
def test_capturing_gives_the_same_bits(options, monkeypatch):
    """What a capture makes anew, and what it takes of what was kept, which then is never dropped."""
    x = frames((2, 7, 3, 5, 33), torch.uint8)
    forget(monkeypatch)
    expected = approx_rank_pool(x, **options)

    def captured():
        with monkeypatch.context() as capturing:
            capturing.setattr(context, "is_captured", lambda x: True)
            capturing.setattr(context, "is_plain", lambda x: False)
            capturing.setattr(context, "is_direct", lambda x: False)
            capturing.setattr(pooling, "_calls", ops.new_calls())  # which there runs nothing
            return approx_rank_pool(x, **options)

    assert torch.equal(captured(), expected)
    held = dict(kept._captured)
    assert held
    kept._row_cache.clear()
    kept._number_cache.clear()
    assert torch.equal(captured(), expected)
    assert not kept._row_cache
    assert not kept._number_cache
    approx_rank_pool(x, **options)
    captured()
    assert all(kept._captured[key] is value for key, value in held.items())


def test_products_do_not_depend_on_what_matmul_may_round(cuda):
    """Those of torch's fallback, which a mode that counts operations asks for."""
    x = frames((2, 23, 3, 32, 32), torch.float32, cuda)
    before = torch.get_float32_matmul_precision()
    try:
        results = []
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            with FlopCounterMode(display=False):
                results.append(rank_pool(x, return_info=True)[1].objective)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(*results)


# --- streams, devices, sizes ----------------------------------------------------------------------------------------


def test_side_stream(cuda):
    """The kernel runs on the current stream: after the copy that it reads."""
    stream = torch.cuda.Stream()
    x = torch.zeros(8, 31, 3, 224, 224, device=cuda)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for step in range(20):
            x.fill_(step)
            x[:, 0] = 0
            y = approx_rank_pool(x[:, :2], time_average=False)
            assert y.min().item() == y.max().item() == step


def test_kept_weights_on_another_stream(cuda, monkeypatch):
    """What one stream has kept is there for all others, however long the first still has to do."""
    forget(monkeypatch)
    x = frames((2, 29, 3, 33), torch.float32, cuda)
    expected = approx_rank_pool(x.cpu())
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)  # cycles
    approx_rank_pool(x)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.testing.assert_close(approx_rank_pool(x).cpu(), expected, rtol=1e-5, atol=1e-4)


def test_a_device_that_is_not_the_current_one(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = frames((2, 7, 3, 33), torch.float32).requires_grad_()
    there = x.detach().to("cuda:1").requires_grad_()
    for pool in (approx_rank_pool, rank_pool):
        y, here = pool(there), pool(x)
        assert torch.cuda.current_device() == 0
        torch.testing.assert_close(y.cpu(), here, rtol=1e-3, atol=1e-3)
        (dx,) = torch.autograd.grad(y.square().sum(), there)
        assert dx.device == there.device
        torch.testing.assert_close(dx.cpu(), *torch.autograd.grad(here.square().sum(), x), rtol=1e-2, atol=1e-2)


def test_more_than_two_to_the_31_elements(cuda):
    if torch.cuda.get_device_properties(0).total_memory < 24 * 2**30:
        pytest.skip("needs 24 GiB of device memory")
    size = 2**30 + 17
    x = torch.randint(0, 256, (3, size), dtype=torch.uint8, device=cuda)
    y = approx_rank_pool(x, 0, nonlinearity="sqrt")
    for start in (0, 2**29 - 100, 2**30 - 100, size - 1000):
        part = slice(start, start + 1000)
        assert torch.equal(y[part], approx_rank_pool(x[:, part].contiguous(), 0, nonlinearity="sqrt"))


@pytest.mark.parametrize("options", [{}, {"window": 2, "stride": 1}])
def test_gradients_of_more_than_two_to_the_31_elements(cuda, options):
    """And, of windows, as many in the result."""
    if torch.cuda.get_device_properties(0).total_memory < 48 * 2**30:
        pytest.skip("needs 48 GiB of device memory")
    size = 2**30 + 17
    x = torch.rand(3, size, dtype=torch.float16, device=cuda).add_(0.5).requires_grad_()
    y = approx_rank_pool(x, 0, nonlinearity="sqrt", **options)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    for start in (0, 2**29 - 100, 2**30 - 100, size - 1000):
        part = slice(start, start + 1000)
        few = x.detach()[:, part].contiguous().requires_grad_()
        expected = approx_rank_pool(few, 0, nonlinearity="sqrt", **options)
        rounding = {"rtol": 2e-3, "atol": 2e-3}  # one of float16: other sizes have other kernels
        torch.testing.assert_close(y[..., part], expected, **rounding)
        (few_dx,) = torch.autograd.grad(expected, few, torch.ones_like(expected))
        torch.testing.assert_close(dx[:, part], few_dx, **rounding)


# --- frames on their way to a device --------------------------------------------------------------------------------


def test_frames_wait_for_their_copy(cuda):
    """Two pinned buffers in turn: a batch is not written over before its copy is done."""
    staging = _Staging(cuda, 4, 115_201)
    batches = [frames((4 - number % 2, 115_201), torch.uint8) for number in range(10)]
    torch.cuda._sleep(200_000_000)  # copies are held up
    moved = [staging.move(len(batch), lambda packed, batch=batch: packed.copy_(batch)) for batch in batches]
    for batch, there in zip(batches, moved, strict=True):
        assert torch.equal(there.cpu(), batch)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (13, 7), (321, 241), (1920, 1080)])
@pytest.mark.parametrize("name", YUV)
def test_planes_become_rgb_as_torch_makes_it(name, width, height, cuda):
    pool = MovedColours(Format(name, width, height, 1, 1), "sqrt", Turn(False, False, False), cuda)
    packed = frames((3, pool._frame_bytes), torch.uint8, cuda)
    if YUV[name].depth > 8:
        packed[:, 1::2] %= 4
    expected = torch.empty((3, *pool.shape), dtype=torch.uint8, device=cuda)
    for interlaced in (0, 0b101) if has_fields(pool.form) else (0,):
        pool._make_rgb(packed, interlaced, expected)
        assert torch.equal(pool._rgb_of(packed, interlaced), expected)


def test_dynamic_images_of_arrays(cuda):
    video = np.random.default_rng(0).integers(0, 256, (9, 13, 17, 3), dtype=np.uint8)
    for how in ({}, {"size": 7}, {"method": "mean"}, {"method": "max"}, {"method": "exact"}):
        image = dynamic_image(video, device=cuda, **how)
        assert image.is_cuda
        # A gap of 1e-3 of the objective lets d be √(2e-3) of its length away: 5 % of a picture's range.
        levels = 13 if how.get("method") == "exact" else 1
        assert (image.cpu().int() - dynamic_image(video, **how).int()).abs().max() <= levels


def test_dynamic_images_of_files(cuda, tmp_path):
    clips = pytest.importorskip("clips", reason="needs PyAV, to write clips")
    clips.write(tmp_path / "clip.mkv", clips.random_frames(45))
    for how in ({}, {"nonlinearity": "identity"}, {"method": "mean"}, {"method": "max"}, {"window": 20, "stride": 7}):
        pool = dynamic_images if "window" in how else dynamic_image
        images = pool(tmp_path / "clip.mkv", device=cuda, **how)
        assert images.is_cuda
        assert (images.cpu().int() - pool(tmp_path / "clip.mkv", **how).int()).abs().max() <= 1


def test_stream_of_tensors(cuda):
    stream = RankPoolStream(nonlinearity="sqrt")
    x = frames((37, 3, 11, 13), torch.uint8, cuda)
    for frame in x:
        stream.update(frame)
    assert stream.result().is_cuda
    torch.testing.assert_close(stream.result(), approx_rank_pool(x, 0, nonlinearity="sqrt"), rtol=1e-4, atol=1e-2)
