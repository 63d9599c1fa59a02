"""Functions that transformers lets a kernel replace, by the kernel's name, as canonical ops in token-major form."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch

from autodeploy.ops import OPS

from .errors import CaptureError, calling_line
from .hook_state import unknown_arguments

# Values under which an argument of a kernel asks for something that a whole sequence, run alone, has no use for.
_NO_STATE = ("initial_state", "initial_states", "seq_idx", "cu_seqlens", "conv_state", "state")


def call_arguments(kernel: str, function: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments of a call by the names of the PyTorch function that the kernel may replace, defaults filled in.

    What the function takes as `**kwargs` and ignores comes along when it carries a value.
    """
    signature = inspect.signature(function)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    named = kwargs if takes_any else {k: x for k, x in kwargs.items() if k in signature.parameters}
    try:
        call = signature.bind(*args, **named)
    except TypeError as e:
        raise CaptureError(f"[{kernel}] expected arguments {signature}, found others at {calling_line()}: {e}") from e
    call.apply_defaults()
    extra = next((n for n, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD), None)
    arguments = dict(call.arguments)
    arguments.update(arguments.pop(extra, {}) if extra else {})
    return arguments


def _take(kernel: str, arguments: dict[str, Any], *names: str, **optional: Any) -> list[Any]:
    """Values of `names` (required) and `optional` (with defaults), in order; anything left that matters is an error."""
    rest = dict(arguments)
    values = []
    for name in names:
        if name not in rest:
            raise CaptureError(f"[{kernel}] expected an argument {name}, found {sorted(rest)} at {calling_line()}")
        values.append(rest.pop(name))
    values += [rest.pop(name, default) for name, default in optional.items()]
    unknown = unknown_arguments(rest)
    if unknown:
        why = "starting from a state" if set(unknown) & set(_NO_STATE) else "what they ask for"
        raise CaptureError(
            f"[{kernel}] expected no {', '.join(unknown)}, found some at {calling_line()}; {why} has no canonical op"
        )
    return values


def causal_conv1d(kernel: str, function: Callable[..., Any], args: Any, kwargs: Any) -> torch.Tensor:
    """hidden_states [1, C, T], weight [C, K], bias [C] or None -> [1, C, T]."""
    arguments = call_arguments(kernel, function, args, kwargs)
    x, weight, bias, activation, final = _take(
        kernel, arguments, "hidden_states", "weight", bias=None, activation=None, return_final_states=False
    )
    if final:
        raise CaptureError(f"[{kernel}] expected no final state to be asked for, found so at {calling_line()}")
    name = {None: "", "": "", "silu": "silu", "swish": "silu"}.get(activation)
    if name is None:
        raise CaptureError(f"[{kernel}] expected activation silu or none, found {activation} at {calling_line()}")
    if x.dim() != 3 or weight.dim() != 2 or str(x.shape[1]) != str(weight.shape[0]):
        shapes = f"{tuple(x.shape)}, {tuple(weight.shape)}"
        raise CaptureError(f"[{kernel}] expected x [1, C, T] and weight [C, K], found {shapes} at {calling_line()}")
    out = OPS["causal_conv1d"].torch_op(x.squeeze(0).transpose(0, 1), weight, bias, name)
    return out.transpose(0, 1).unsqueeze(0)


def ssd(kernel: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """hidden_states [1, T, H, P], dt [1, T, H], A [H], B, C [1, T, G, N] -> [1, T, H, P]; the chunk size is a hint."""
    arguments = call_arguments(kernel, function, args, kwargs)
    x, dt, a, b, c, _, d, dt_bias, softplus, limit, final = _take(
        kernel,
        arguments,
        "hidden_states",
        "dt",
        "A",
        "B",
        "C",
        chunk_size=None,
        D=None,
        dt_bias=None,
        dt_softplus=False,
        dt_limit=(0.0, math.inf),
        return_final_states=False,
    )
    squeezed = [t.squeeze(0) for t in (x, dt)]
    out = (
        OPS["ssd"]
        .torch_op(
            *squeezed, a, b.squeeze(0), c.squeeze(0), d, dt_bias, bool(softplus), float(limit[0]), float(limit[1])
        )
        .unsqueeze(0)
    )
    return (out, None) if final else out


def selective_scan(kernel: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """hidden_states, dt [1, C, T], A [C, N], B, C [1, N, T] -> [1, C, T]; the gate z stays outside of the op."""
    arguments = call_arguments(kernel, function, args, kwargs)
    for hint in ("use_mambapy", "use_associative_scan"):  # which PyTorch code runs
        arguments.pop(hint, None)
    x, dt, a, b, c, d, z, dt_bias, softplus, final = _take(
        kernel,
        arguments,
        "hidden_states",
        "dt",
        "A",
        "B",
        "C",
        D=None,
        z=None,
        delta_bias=None,
        delta_softplus=False,
        return_last_state=False,
    )
    if any(t.dim() != 3 for t in (x, dt, b, c)) or a.dim() != 2:
        shapes = ", ".join(str(tuple(t.shape)) for t in (x, dt, a, b, c))
        raise CaptureError(
            f"[{kernel}] expected states and dt [1, C, T], A [C, N], B and C [1, N, T], found {shapes} "
            f"at {calling_line()}"
        )
    rows = [t.squeeze(0).transpose(0, 1) for t in (x, dt, b, c)]
    out = OPS["selective_scan"].torch_op(rows[0], rows[1], a, rows[2], rows[3], d, dt_bias, bool(softplus))
    out = out.transpose(0, 1).unsqueeze(0)
    if z is not None:
        out = out * torch.nn.functional.silu(z)
    return (out, None) if final else out


# What the kernels of this name add to the sum of squares when they normalise queries and keys.
_L2_EPS = 1e-6


def gated_delta_rule(kernel: str, function: Callable[..., Any], args: Any, kwargs: Any) -> tuple[torch.Tensor, None]:
    """query, key [1, T, Hk, Dk], value [1, T, Hv, Dv], g [1, T, Hv] or [1, T, Hv, Dk], beta [1, T, Hv] -> like value.

    The chunk size is a hint. No final state is returned: the op keeps its own.
    """
    arguments = call_arguments(kernel, function, args, kwargs)
    arguments.pop("chunk_size", None)
    q, k, v, g, beta, normalize, _ = _take(
        kernel,
        arguments,
        "query",
        "key",
        "value",
        "g",
        "beta",
        use_qk_l2norm_in_kernel=False,
        output_final_state=False,
    )
    if any(t.dim() != 4 for t in (q, k, v)) or g.dim() not in (3, 4) or beta.dim() != 3:
        shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v, g, beta))
        raise CaptureError(
            f"[{kernel}] expected query and key [1, T, Hk, Dk], value [1, T, Hv, Dv], g [1, T, Hv] or [1, T, Hv, Dk], "
            f"beta [1, T, Hv], found {shapes} at {calling_line()}"
        )
    rows = [t.squeeze(0) for t in (q, k, v, g, beta)]
    out = OPS["gated_delta_rule"].torch_op(*rows, float(q.shape[-1]) ** -0.5, bool(normalize), _L2_EPS)
    return out.unsqueeze(0), None


KERNELS: dict[str, Callable[[str, Callable[..., Any], Any, Any], Any]] = {
    "causal_conv1d_fn": causal_conv1d,
    "mamba_chunk_scan_combined": ssd,
    "selective_scan_fn": selective_scan,
    "chunk_gated_delta_rule": gated_delta_rule,
    "fused_recurrent_gated_delta_rule": gated_delta_rule,
    "chunk_kda": gated_delta_rule,
    "fused_recurrent_kda": gated_delta_rule,
}
