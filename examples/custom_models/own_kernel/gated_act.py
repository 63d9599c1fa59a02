"""An operator of the model's own: its meaning in PyTorch. Its kernel for the runtime is gated_act.cc."""

import torch

try:
    from autodeploy.custom_ops import register_op
except ImportError:  # the model also runs where autodeploy is not installed
    register_op = None


@torch.library.custom_op("example::gated_act", mutates_args=())
def gated_act(gate: torch.Tensor, up: torch.Tensor, slope: torch.Tensor, limit: float) -> torch.Tensor:
    """gate, up [.., C], slope [C] -> [.., C]: min(gate, limit) * sigmoid(slope * min(gate, limit)) * up, in float32."""
    wide = gate.float().clamp(max=limit)
    return (wide * torch.sigmoid(slope.float() * wide) * up.float()).to(gate.dtype)


@gated_act.register_fake
def _(gate, up, slope, limit):
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


if register_op is not None:
    register_op("example::gated_act", library="libexample_gated_act.so")
