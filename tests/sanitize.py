"""Small launches of every CUDA kernel, to be run under compute-sanitizer:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --kernel-regex kns=dynpool --error-exitcode 1 \
        python tests/sanitize.py

Every dtype, aligned, odd, cropped and strided frames, one row and several, forward and backward, with and without
normalisation; exact rank pooling with every objective; colours of every format. Results are compared with others, on
the CPU, so that the tool has few other kernels to load: the script fails without the tool, too.
"""

import itertools
import sys

import torch

import dynpool
from dynpool import binary, reference
from dynpool.decoder import Turn
from dynpool.formats import YUV, Format, has_fields, plane_sizes
from dynpool.pools import MovedColours

device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda")
dtypes = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
layouts = {
    "aligned": lambda x: x,
    "odd": lambda x: x[..., :13, :29].contiguous(),
    "cropped": lambda x: torch.cat([x[:, :1], x], 1)[:, 1:, :, 1:, 3:],
    "strided": lambda x: x[..., ::2],
    "channels last": lambda x: x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3),
    "time innermost": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
}
rows = ({}, {"window": 5, "stride": 2}, {"lengths": [11, 4]})
launches = 0
assert binary.kernels_for(device) is not None, f"no kernels for {device}"


def done() -> None:
    """Says how far it has come: tools take minutes, and may be ended."""
    global launches
    launches += 1
    if launches % 20 == 0:
        print(f"{launches} cases", flush=True)


for dtype, (layout, view), options, psi in itertools.product(dtypes, layouts.items(), rows, ("identity", "sqrt")):
    x = view((torch.rand(2, 11, 3, 16, 32) * 200 + 1).to(dtype).to(device))
    options = {**options, "nonlinearity": psi, "normalize_weights": True}
    if psi == "sqrt":
        options |= {"mean": torch.tensor([1.0, 2.0, 3.0], device=device), "std": 2.0}
        options["mean"].requires_grad_()
    if dtype.is_floating_point:
        x = x.detach().requires_grad_()
    y = dynpool.approx_rank_pool(x, **options)
    inputs = [t for t in (x, options.get("mean")) if t is not None and t.requires_grad]
    grads = torch.autograd.grad(y, inputs, torch.rand(y.shape).to(y)) if inputs else ()
    A = torch.rand(2, 3, 11).to(device).requires_grad_()
    pooled = dynpool.temporal_pool(x.detach(), A, nonlinearity=psi, out_dtype=torch.float32)
    grads += torch.autograd.grad(pooled, A, torch.ones(pooled.shape).to(pooled))
    x, A = x.detach().cpu(), A.detach().cpu()
    expected = reference.temporal_pool(x, A, None, None, None, 1, None, psi, torch.float64)
    torch.testing.assert_close(pooled.detach().cpu().double(), expected, rtol=1e-4, atol=1e-2)
    assert all(t.cpu().isfinite().all() for t in (y, *grads)), (dtype, layout, options)
    done()
rows = ({}, {"window": 10, "stride": 1}, {"lengths": [40, 13]})
for dtype, (layout, view), options in itertools.product(dtypes, layouts.items(), rows):
    x = view((torch.rand(2, 40, 3, 16, 64) * 200 + 1).to(dtype).to(device))
    if dtype.is_floating_point:
        x = x.detach().requires_grad_()
    y = dynpool.approx_rank_pool(x, nonlinearity="sqrt", normalize_weights=True, **options)
    grads = torch.autograd.grad(y, x, torch.rand(y.shape).to(y)) if dtype.is_floating_point else ()
    expected = dynpool.approx_rank_pool(
        x.detach().cpu().double(), nonlinearity="sqrt", normalize_weights=True, **options
    )
    tolerance = 1e-3 if y.dtype in (torch.float32, torch.float64) else 0.3  # of values up to some 14
    torch.testing.assert_close(y.detach().cpu().double(), expected, rtol=0, atol=tolerance)
    assert all(t.cpu().isfinite().all() for t in grads), (dtype, layout, options)
    done()
if device.type == "cuda":  # enough bytes for a table of their roots
    x = torch.randint(0, 256, (3, 17, 3, 640, 720), dtype=torch.uint8).to(device)
    for many in (x, x[..., :713].contiguous()):
        results = [dynpool.approx_rank_pool(v, nonlinearity="sqrt").cpu() for v in (many, many[:, :, :1])]
        torch.testing.assert_close(results[0][:, :1], results[1], rtol=1e-5, atol=1e-3)
        done()
for dtype in dtypes[1:4]:  # gradients of crops, enough elements for words
    x = (torch.rand(2, 5, 3, 41, 61) * 200 + 1).to(dtype).to(device)[..., 2:, 3:].requires_grad_()
    y = dynpool.approx_rank_pool(x, nonlinearity="sqrt", normalize_weights=True)
    (dx,) = torch.autograd.grad(y, x, torch.ones(y.shape).to(y))
    alpha = dynpool.rank_weights(5, normalize_weights=True)[:, None, None, None]
    torch.testing.assert_close(dx.cpu().double(), alpha / 2 / x.detach().cpu().double().sqrt(), rtol=1e-2, atol=0)
    done()
for (dtype, view), objective in itertools.product(
    zip(dtypes, itertools.cycle(layouts.values())), ("ranksvm", "ranksvm_squared", "svr")
):
    x = view((torch.rand(2, 70, 3, 5, 9) * 200 + 1).to(dtype).to(device))  # more frames than a block multiplies
    options = {"objective": objective, "lengths": [70, 33], "nonlinearity": "sqrt", "return_info": True}
    d, info = dynpool.rank_pool(x, **options)
    expected = dynpool.rank_pool(x.double().cpu(), **options | {"tol": 1e-8})[1].objective
    value, gap = info.objective.cpu(), info.duality_gap.cpu()
    assert d.cpu().isfinite().all(), (dtype, objective)
    assert (value >= expected * (1 - 1e-3)).all(), (dtype, objective)
    assert (value - gap <= expected * (1 + 1e-3)).all(), (dtype, objective)  # 1e-3: of products of float32
    assert (gap <= 1e-3 * value).all(), (dtype, objective)
    done()
for name, (width, height) in itertools.product(YUV, ((1, 1), (13, 7), (1061, 3))):
    pool = MovedColours(Format(name, width, height, 1, 1), "sqrt", Turn(False, False, False), device)
    samples = torch.randint(0, 256, (3, sum(h * w for h, w in plane_sizes(pool.form))), dtype=torch.uint8)
    if YUV[name].depth > 8:
        samples[:, 1::2] %= 1 << (YUV[name].depth - 8)
    expected = torch.empty(3, *pool.shape, dtype=torch.uint8)
    fields = 0b101 if has_fields(pool.form) else 0
    pool._make_rgb(samples, fields, expected)
    assert torch.equal(pool._rgb_of(samples.to(device), fields).cpu(), expected), (name, width, height)
    done()
print(f"{launches} cases on {device}, all right")
