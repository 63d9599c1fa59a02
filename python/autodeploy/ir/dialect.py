"""Which calls a graph may hold at which stage, as data; and the verifier that names what breaks the rules."""

from __future__ import annotations

import dataclasses
import operator

import torch
from torch.fx import Node

from autodeploy.ops import OPS, op_of

from .model_ir import DTYPES, INPUTS, ModelIR
from .over_keys import over_keys

# Functional ATen operators as models use them, by name without namespace and overload; nothing here writes into its
# operands. Grouped as they are lowered.
_VIEWS = """
alias broadcast_tensors broadcast_to cat chunk clone concat concatenate constant_pad_nd contiguous copy detach diagonal
expand expand_as flatten flip lift_fresh_copy mT movedim narrow numpy_T one_hot pad permute ravel repeat
repeat_interleave reshape reshape_as roll select select_scatter slice slice_scatter split split_with_sizes squeeze stack
swapaxes swapdims sym_size t to _to_copy transpose tril triu type_as unbind unflatten unfold unsqueeze view view_as
view_as_complex view_as_real
"""
_POINTWISE = """
__and__ __or__ __xor__ abs add addcdiv addcmul bitwise_and bitwise_not bitwise_or bitwise_xor ceil clamp clamp_max
clamp_min clip complex cos div divide elu eq erf erfinv exp expm1 fill floor floor_divide fmod ge gelu glu gt
hardsigmoid hardswish hardtanh imag isinf isnan le leaky_relu lerp log log1p log2 log_sigmoid logaddexp logical_and
logical_not logical_or logical_xor lt masked_fill maximum minimum mish mul multiply nan_to_num ne neg negative polar pow
real reciprocal relu relu6 remainder round rsqrt rsub sigmoid sign silu sin softplus sqrt square sub subtract tan tanh
threshold true_divide trunc where
"""
_REDUCTIONS = """
_log_softmax _softmax all amax amin any argmax argmin argsort cummax cummin cumprod cumsum linalg_vector_norm
log_softmax logcumsumexp logsumexp max mean median min norm prod softmax sort std sum topk var
"""
_PRODUCTS = """
addbmm addmm baddbmm bmm conv1d convolution dot einsum embedding linear matmul mm mv outer scaled_dot_product_attention
"""
_NORMS = "batch_norm group_norm layer_norm native_layer_norm rms_norm"
_INDEXED = "gather index index_add index_put index_select scatter scatter_add scatter_reduce take_along_dim"
_MAKERS = """
arange empty empty_like full full_like linspace new_empty new_full new_ones new_zeros ones ones_like scalar_tensor zeros
zeros_like
"""

FUNCTIONAL_ATEN = frozenset(" ".join([_VIEWS, _POINTWISE, _REDUCTIONS, _PRODUCTS, _NORMS, _INDEXED, _MAKERS]).split())
_SIZES = frozenset({
    operator.getitem, operator.mul, operator.add, operator.sub, operator.neg, operator.floordiv, operator.mod,
    torch.sym_min, torch.sym_max,
})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Dialect:
    """What a graph may hold: ATen operators, canonical ops, and whether an author's own operators may stay."""

    name: str
    aten: frozenset[str]
    canonical: frozenset[str]
    authors: bool = True

    def allows(self, node: Node) -> bool:
        target = node.target
        if target in _SIZES or target is over_keys:
            return True
        if not isinstance(target, torch._ops.OpOverload):
            return False
        op = op_of(target)
        if op is not None:
            return op.name in self.canonical
        if target.namespace == "aten":
            return not target._schema.is_mutable and target._schema.name.removeprefix("aten::") in self.aten
        return self.authors and target.namespace != "prims" and not target._schema.is_mutable


ATEN = Dialect("ATEN", FUNCTIONAL_ATEN, frozenset(OPS))
"""After capture: functional ATen, canonical ops that hooks named, masks and masked attention included."""

CANONICAL = Dialect("CANONICAL", FUNCTIONAL_ATEN, frozenset(n for n, op in OPS.items() if op.in_program))
"""After canonicalisation: no node is left that exists only to be understood (masks, masked attention)."""


class VerifyError(ValueError):
    """A graph that breaks its stage's rules, after `stage`."""


def verify(ir: ModelIR, dialect: Dialect, stage: str) -> None:
    """Checks the invariants of `ModelIR` and that every call is in the dialect.

    Raises:
        VerifyError: "[stage] what was expected, what was found", with the node and the model's line.
    """
    inputs = []
    known = {*INPUTS, *ir.params, *ir.constants}
    for node in ir.graph.nodes:
        where = f"{node.name} at {node.meta.get('source', 'an unknown line')}"
        if node.op == "placeholder":
            inputs.append(str(node.target))
            if node.target not in known:
                raise VerifyError(f"[{stage}] expected placeholders of inputs, params, constants, found {node.target}")
            _check_placeholder(ir, node, stage)
        elif node.op == "call_function":
            if not dialect.allows(node):
                raise VerifyError(
                    f"[{stage}] expected operations of dialect {dialect.name}, found {name_of(node)} ({where}); it "
                    "cannot be compiled yet"
                )
            if "val" not in node.meta:
                raise VerifyError(f"[{stage}] expected a value on every node, found none on {where}")
            if not node.meta.get("source"):
                raise VerifyError(f"[{stage}] expected a source line on every node, found none on {node.name}")
        elif node.op != "output":
            raise VerifyError(f"[{stage}] expected placeholders, calls and an output, found {node.op} ({where})")
    if tuple(inputs[: len(INPUTS)]) != INPUTS:
        raise VerifyError(f"[{stage}] expected inputs {INPUTS} first, found {inputs[: len(INPUTS)]}")
    missing = set(ir.params) - set(inputs)
    if missing:
        raise VerifyError(f"[{stage}] expected a placeholder for every parameter, found none for {sorted(missing)[:3]}")
    outputs = ir.graph.output_node().args[0]
    if not isinstance(outputs, (tuple, list)) or len(outputs) != len(ir.outputs):
        raise VerifyError(f"[{stage}] expected outputs {ir.outputs}, found {outputs}")
    ir.graph.lint()


def _check_placeholder(ir: ModelIR, node: Node, stage: str) -> None:
    value = node.meta.get("val")
    if value is None:
        raise VerifyError(f"[{stage}] expected a value on placeholder {node.target}, found none")
    info = ir.params.get(str(node.target))
    if info is None:
        return
    found = (tuple(value.shape), DTYPES.get(value.dtype))
    if found != (tuple(info.shape), info.dtype):
        raise VerifyError(
            f"[{stage}] expected parameter {info.name} as {tuple(info.shape)} {info.dtype}, found {found[0]} {found[1]}"
        )
    rows = sum(s.rows for s in info.segments)
    if rows != (info.shape[0] if info.shape else 1):
        raise VerifyError(f"[{stage}] expected segments of {info.name} with {info.shape} rows in all, found {rows}")


def name_of(node: Node) -> str:
    """`aten.mul`, `autodeploy.linear`, ...: the operator of a call."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._schema.name.split('::')[1]}"
    return getattr(target, "__name__", str(target))
