"""The static proof that only token mixers mix tokens.

At run time the token dimension T is the concatenation of all scheduled tokens of all sequences. A graph was captured
for one sequence; it means the same on a ragged batch exactly when every op outside the canonical mixers treats tokens
one by one. `token_axes` follows which dimension is T through every op and refuses, by the model's line, an op that

1. reduces, scans, sorts, convolves, pads, flips or concatenates along T,
2. indexes or slices T,
3. pairs tokens (two dims that both grow with T, such as T x T scores),
4. moves tokens against each other (a reshape that regroups T with what stands before it),
5. makes numbers from token places (`arange` over T) or from the number of tokens,
6. is not known to this proof. An operator of the model's author is token-wise where the author declares it
   (autodeploy.custom_ops), and refused otherwise.

An `Axis(outer, inner)` is a dim of size outer * T * inner that runs over `outer`, then tokens, then `inner`: reshapes
may merge constant factors into T and split them off again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from ..custom_ops import declared_op
from ..ir import ModelIR
from ..ir.over_keys import body_of, over_keys
from ..ops import OPS, op_of
from . import axis_rules_values, axis_rules_views
from . import nodes as n
from .axes import RULES, TOKENS, Analysis, Axes, Axis, Refusal, broadcast, meet, place
from .base import Transform, TransformError, refuse

_RULE_FILES = (axis_rules_views, axis_rules_values)  # importing them fills RULES


def _canonical(an: Analysis, node: Node, a: dict[str, Any]) -> Any:
    op = op_of(node.target)
    assert op is not None
    if not op.in_program:
        raise Refusal("it stands for a mask or an attention that no canonical op expresses",
                      "such a model cannot be compiled yet")
    rows: Axis | None = None
    for name in op.operands:
        axes = an.of(a[name])
        if op.name == "expert_linear" and name == "x" and axes[0]:
            axes = (Axis(axes[0].outer, axes[0].inner * a["x_repeat"]), *axes[1:])
        if any(axes[1:]):
            if not op.mixes_tokens and op.name in _LAST_DIM_OPS and not axes[-1]:
                continue
            raise Refusal(f"its operand {name} has tokens in another dim than the first")
        if op.mixes_tokens and axes and axes[0] and axes[0] != TOKENS:
            raise Refusal(f"its operand {name} has more rows than tokens")
        rows = meet(rows, axes[0] if axes else None)
    value = node.meta["val"]
    outs = []
    for v in value if isinstance(value, (tuple, list)) else (value,):
        if op.name in _LAST_DIM_OPS:
            lead = an.of(a[op.operands[0]])
            outs.append((lead if op.name == "embedding" else lead[:-1]) + (None,))
        else:
            outs.append((rows, *(None,) * (v.dim() - 1)))
    return tuple(outs) if isinstance(value, (tuple, list)) else outs[0]


_LAST_DIM_OPS = ("linear", "rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm", "embedding")


def step(an: Analysis, node: Node) -> Any:
    """Axes of one more node, whose operands are known.

    Raises:
        TransformError: the node mixes tokens, naming it and the model's line.
    """
    value = node.meta.get("val")
    if node.op == "placeholder":
        result: Any = tuple(TOKENS if n.is_symbolic(s) else None for s in value.shape)
    elif node.op == "output" or not isinstance(value, (torch.Tensor, tuple, list)):
        result = ()
    else:
        name = n.op_name(node)
        a = n.bound(node) if hasattr(node.target, "_schema") else {}
        try:
            if op_of(node.target) is not None:
                result = _canonical(an, node, a)
            elif node.target is over_keys:
                result = _over_keys(an, node)
            elif name in RULES:
                result = RULES[name](an, node, a)
            elif n.has_tokens(node) or any(n.has_tokens(x) for x in node.all_input_nodes):
                if name.startswith("autodeploy."):
                    result = _fused(an, node)
                elif not name.startswith(("aten.", "operator.")):
                    result = _authors(an, node)
                else:
                    raise Refusal("it is not known whether this op treats tokens one by one",
                                  "add a rule for it to the proof, and a kernel")
            else:
                result = _constant(value)
        except Refusal as refusal:
            raise refuse("token axis", node, refusal.reason, refusal.remedy) from None
        except ValueError as error:
            if isinstance(error, TransformError):
                raise
            remedy = "reshape by constant factors of the number of tokens"
            raise refuse("token axis", node, str(error), remedy) from None
    an.axes[node] = result
    return result


def _constant(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_constant(v) for v in value)
    return (None,) * value.dim()


def _fused(an: Analysis, node: Node) -> Any:
    """A fused region: its inputs broadcast to one shape."""
    value = node.meta["val"]
    values = value if isinstance(value, (tuple, list)) else (value,)
    axes = broadcast(an, list(n.tensor_inputs(node)), values[0])
    return tuple(axes for _ in values) if isinstance(value, (tuple, list)) else axes


def _over_keys(an: Analysis, node: Node) -> Any:
    """A body over one sequence's keys: operands and results have their tokens first."""
    body = body_of(node)
    assert body is not None
    for x, role in zip(node.args, body.roles, strict=True):
        axes = an.of(x)
        if any(axes[1:]) or (role != "fixed") != bool(axes and axes[0] == TOKENS):
            raise Refusal("its operands have their tokens in another place than the first dim")
    return tuple((TOKENS, *(None,) * (v.dim() - 1)) for v in node.meta["val"])


def _authors(an: Analysis, node: Node) -> Any:
    """An author's own operator, token-wise because its author says so."""
    name = node.target._schema.name if hasattr(node.target, "_schema") else n.op_name(node)
    if declared_op(name) is None:
        raise Refusal(f"it is an operator of the model's author ({name}) of which nothing is known",
                      "declare it token-wise in the model's code: autodeploy.custom_ops.register_op")
    if n.size_inputs(node):
        raise Refusal("it computes with the number of tokens, which is another number in every step",
                      "make it depend on position_ids instead")
    found: Axis | None = None
    for x in n.tensor_inputs(node):
        found = meet(found, next((axis for axis in place(an.of(x)) if axis is not None), None))
    value = node.meta["val"]
    results = []
    for v in value if isinstance(value, (tuple, list)) else (value,):
        axes: Axes = tuple(found if n.is_symbolic(size) else None for size in v.shape)
        rows = [n.tokens_in(size) for size in v.shape if n.is_symbolic(size)]
        if found is None or rows != [found.outer * found.inner]:
            raise Refusal(f"expected the rows of its operands in one dim of its result, found {list(v.shape)}",
                          "let the operator return a row for each row of its operands")
        results.append(axes)
    return tuple(results) if isinstance(value, (tuple, list)) else results[0]


def token_axes(graph: Graph) -> dict[Node, Any]:
    """Axes of every value of a graph: a tuple per tensor (None or an Axis per dim), a tuple of those per tuple.

    Raises:
        TransformError: an op outside the canonical mixers mixes tokens.
    """
    an = Analysis()
    for node in graph.nodes:
        step(an, node)
    return an.axes


class ProveTokenAxis(Transform):
    """Proves that only canonical mixers mix tokens; changes nothing.

    1. Every value has tokens in at most one dim, and every op outside the mixers keeps them apart (`token_axes`).
    2. Every output has its tokens in the first dim.
    """

    name = "prove_token_axis"

    def run(self, ir: ModelIR) -> bool:
        axes = token_axes(ir.graph)
        for name, node in zip(ir.outputs, ir.output_nodes(), strict=True):
            if not axes[node] or axes[node][0] != TOKENS:
                raise TransformError(f"[token axis] expected the output {name} as [T, ...], found {n.shape_of(node)}")
        mixers = sum(map(n.mixes_tokens, ir.graph.nodes))
        ir.metadata["token_axis"] = {"nodes": len(axes), "mixers": mixers}
        return False


assert all(name in OPS for name in _LAST_DIM_OPS)
