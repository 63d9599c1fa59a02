"""An operator of the model's own, with its meaning in PyTorch and its kernel for GPUs in Triton."""

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # the model also runs where Triton is not installed
    triton = None
try:
    from autodeploy.custom_ops import TritonLaunch, register_op
except ImportError:  # or autodeploy
    register_op = None


@torch.library.custom_op("example::gated_norm", mutates_args=())
def gated_norm(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x, gate [.., C], weight [C] -> [.., C]: x * silu(gate), by rows divided by its root mean square, times weight."""
    wide = x.float() * torch.nn.functional.silu(gate.float())
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * weight.float()).to(x.dtype)


@gated_norm.register_fake
def _(x, gate, weight, eps):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


if triton is not None:

    @triton.jit
    def gated_norm_kernel(x, gate, weight, out, columns, x_stride, gate_stride, eps, BLOCK: tl.constexpr):
        """One row per program."""
        row = tl.program_id(0).to(tl.int64)
        place = tl.arange(0, BLOCK)
        inside = place < columns
        a = tl.load(x + row * x_stride + place, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(gate + row * gate_stride + place, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
        y = a * g / (1.0 + tl.exp(-g))
        y = y * tl.rsqrt(tl.sum(y * y) / columns + eps) * w
        tl.store(out + row * columns + place, y.to(out.dtype.element_ty), mask=inside)


def launch(x, gate, weight, eps, out):
    """The kernel's parameters and grid, from the operator's arguments and its result."""
    columns = x.shape[-1]
    rows = 1
    for size in x.shape[:-1]:
        rows = rows * size
    args = {"x": x, "gate": gate, "weight": weight, "out": out, "columns": columns, "eps": eps}
    args |= {"x_stride": x.stride(-2), "gate_stride": gate.stride(-2), "BLOCK": triton.next_power_of_2(columns)}
    return TritonLaunch(args, grid=(rows,), num_warps=1 if columns <= 512 else 4)


if register_op is not None:
    kernel = {} if triton is None else {"triton": gated_norm_kernel, "launch": launch}
    register_op("example::gated_norm", **kernel)
