"""Token mixers get the states that they keep between steps."""

from __future__ import annotations

from ..ir import ModelIR
from ..ir.over_keys import body_of
from ..ops import op_of
from .base import Transform


class DeclareStates(Transform):
    """Declares the states of every token mixer in the graph.

    1. An op says what it keeps (`Op.state_decl`) from the shapes and attributes of its call.
    2. States are named after the op and its place among the calls of that op, in graph order: `attention.0`, `ssd.3`;
       with several per call, also after their number. Equal graphs have equal states, whatever modules are called.
    3. A call that would store the very values that an earlier one has stored, in a state of the same kind (layers that
       share keys and values), reads that one's state; lowering leaves its stored operands out. Every other call has
       states of its own.
    """

    name = "declare_states"

    def run(self, ir: ModelIR) -> bool:
        counts: dict[str, int] = {}
        stored: dict[tuple[object, ...], list[str]] = {}
        changed = False
        for node in ir.graph.nodes:
            op, body = op_of(node.target), body_of(node)
            if body is not None:
                name, values, decls = "over_keys", list(node.args), body.key_decl()
            elif op is not None and op.mixes_tokens:
                name, values = op.name, list(op.bind(node.args, node.kwargs).values())
                decls = op.state_decl(*(x.meta["val"] if hasattr(x, "meta") else x for x in values))
            else:
                continue
            index = counts.get(name, 0)
            counts[name] = index + 1
            names = [f"{name}.{index}" + (f".{i}" if len(decls) > 1 else "") for i in range(len(decls))]
            if op is not None and op.stored_operands:
                what = tuple(values[op.operands.index(operand)] for operand in op.stored_operands)
                names = stored.setdefault((name, what, str(decls)), names)
            if node.meta.get("states") != names:
                node.meta["states"] = names
                ir.states.update(zip(names, decls, strict=True))
                changed = True
        return changed
