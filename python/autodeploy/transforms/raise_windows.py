"""What looks a fixed number of tokens back becomes `causal_conv1d`, or a `window` and products of its rows."""

from __future__ import annotations

from dataclasses import replace as changed_line
from typing import Any

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .base import Transform
from .line_places import place_of
from .line_rules import pointwise
from .nodes import aten, canonical
from .pointwise import POINTWISE
from .rewrite import erase_dead, replace
from .token_lines import RULES, Line, Lines, delayed, fixed_value, flat, rule, window


class RaiseWindows(Transform):
    """Raises windows over tokens, however they are written out; `token_lines` follows tokens through the graph.

    1. Padding before tokens, values put before them, cutting, rolling and writing into a tensor are followed, and
       everything that treats tokens one by one in between. Where a value has an entry for each token again, it is the
       tokens themselves, or (some entries later) a `window` of one row: a delay.
    2. conv1d of stride 1 that reaches back alone, one group per channel, zeros before the tokens: `causal_conv1d`. A
       silu that alone reads the result is its activation.
    3. Any other conv1d that reaches back alone: a `window` over its taps, and a product with each group's weight.
    4. unfold over tokens: a `window`, oldest first; newest first where it is flipped.

    5. Places that are counted to look back as far as some mark and no further (arange, cummax of marked places, gather
       and comparisons): what they decide is a `window` of flags, or a delay (`line_places`).

    What reaches forward, or has more or fewer entries than there are tokens in the end, stays as it is: the proof of
    the token axis refuses it.
    """

    name = "raise_windows"

    def run(self, ir: ModelIR) -> bool:
        lines = Lines(ir)
        changed = False
        for node in list(ir.graph.nodes):
            if node.op == "placeholder":
                if node.target not in ("token_ids", "positions"):
                    lines.fixed.add(node)
                continue
            if node.op != "call_function" or not node.users:
                continue
            if n.is_tensor(node) and fixed_value(node, lines.fixed):
                lines.fixed.add(node)
                continue
            lines.at = node
            if n.is_op(node, "aten.flip") and (new := _newest_first(lines, node)) is not None:
                replace(node, new)
                changed = True
                continue
            found = place_of(lines, node)
            if found is not None and not isinstance(found, Line):
                lines.places[node] = found
                continue
            line = found or _line(lines, node)
            if line is None:
                continue
            lines.lines[node] = line
            if line.extra == 0 and (line.before == 0 or line.fill is not None):
                new = line.rows if not line.before else delayed(lines, line, line.before)
                if new is node:
                    continue
                replace(node, new)
                lines.lines[new] = Line(new, line.dim)
                changed = True
        erase_dead(ir.graph)
        return _take_activations(lines) or changed


def _line(lines: Lines, node: Node) -> Line | None:
    """The line of a call's result, where it is not plainly its own."""
    if not n.is_tensor(node) or not hasattr(node.target, "_schema"):
        return None
    name, a = n.op_name(node), n.bound(node)
    if name in RULES:
        sources = [x for x in node.all_input_nodes if n.is_tensor(x)]
        moved = name in _STARTS or any(x in lines.lines and not lines.lines[x].plain for x in sources)
        return RULES[name](lines, node, a) if moved else None
    if name in POINTWISE and any(x in lines.lines and not lines.lines[x].plain for x in node.all_input_nodes):
        return pointwise(lines, node)
    return None


_STARTS = (
    "aten.constant_pad_nd", "aten.pad", "aten.slice", "aten.cat", "aten.concat", "aten.concatenate", "aten.roll",
    "aten.slice_scatter", "aten.select_scatter", "aten.conv1d", "aten.unfold",
)  # fmt: skip


# --- windows


@rule("aten.unfold")
def _unfold(lines: Lines, node: Node, a: dict[str, Any]) -> Line | None:
    line, width = lines.of(a["self"]), a["size"]
    dim = n.normal_dim(a["dimension"], n.rank(a["self"]))
    if line is None or dim != line.dim or a["step"] != 1 or line.fill is None or line.before < width - 1:
        return None
    fill = line.fill if not isinstance(line.fill, Node) else lines.call(aten.unsqueeze.default, line.fill, -1)
    rows = _unfolded(lines, line, list(range(width - 1, -1, -1)))
    lines.unfolded[rows] = (line, width)
    return Line(rows, line.dim, line.before - (width - 1), line.extra - (width - 1), fill)


def _unfolded(lines: Lines, line: Line, back: list[int]) -> Node:
    """A window with its distances last, the line's dims before them as they are."""
    out, order, rest = window(lines, line, back)
    out = lines.call(aten.reshape.default, out, [-1, len(back), *rest])
    place = {d: 0 if d == line.dim else 1 + order.index(d) for d in range(len(order))}
    return lines.call(aten.permute.default, out, [*(place[d] for d in range(len(order))), 1])


def _newest_first(lines: Lines, node: Node) -> Node | None:
    """Rule 4: the window in the place of a flip of one, distances ascending."""
    a = n.bound(node)
    if a["self"] not in lines.unfolded or [n.normal_dim(d, n.rank(node)) for d in a["dims"]] != [n.rank(node) - 1]:
        return None
    line, width = lines.unfolded[a["self"]]
    return _unfolded(lines, line, list(range(width)))


# --- convolutions


@rule("aten.conv1d")
def _conv1d(lines: Lines, node: Node, a: dict[str, Any]) -> Line | None:
    line, weight = lines.of(a["input"]), a["weight"]
    padding = n.as_list(a["padding"])
    if line is None or line.dim != 2 or n.rank(node) != 3 or not n.same_size(n.shape_of(node)[0], 1):
        return None
    if n.as_list(a["stride"]) != [1] or weight not in lines.fixed or len(padding) != 1:
        return None
    if (a["bias"] is not None and a["bias"] not in lines.fixed) or not isinstance(padding[0], int):
        return None
    if padding[0] and (line.extra < line.before or (line.before and line.fill != 0)):
        return None  # zeros behind cut tokens, or before other fill
    line = changed_line(line, before=line.before + padding[0], extra=line.extra + 2 * padding[0],
                        fill=0 if padding[0] else line.fill)  # fmt: skip
    taps, dilation = n.last_size(weight), n.as_list(a["dilation"])[0]
    if taps is None or line.fill is None:
        return None
    reach = (taps - 1) * dilation
    if line.before < reach:
        return None
    rows = _convolved(lines, line, a, taps, dilation)
    fill: Any = None
    if not isinstance(line.fill, Node) and not line.fill:
        fill = 0 if a["bias"] is None else lines.call(aten.reshape.default, a["bias"], [1, -1, 1])
    return Line(rows, 2, line.before - reach, line.extra - reach, fill)


def _convolved(lines: Lines, line: Line, a: dict[str, Any], taps: int, dilation: int) -> Node:
    """[1, O, T] of the tokens' rows."""
    groups, (outs, ins, _) = a["groups"], (int(s) for s in n.shape_of(a["weight"]))
    zeros = not isinstance(line.fill, Node) and not line.fill
    if ins == 1 and outs == groups and taps > 1 and zeros:
        x, _, _ = flat(lines, line)
        weight = _spread(lines, lines.call(aten.squeeze.dims, a["weight"], [1]), dilation)
        out = lines.call(canonical.causal_conv1d.default, x, weight, a["bias"], "")
        out.meta["via"] = "pattern"
        return _channels_first(lines, out)
    back = [(taps - 1 - j) * dilation for j in range(taps)]
    rows, _, _ = window(lines, line, back)  # [T, K, G * I]
    if groups == 1:
        weight = lines.call(aten.permute.default, a["weight"], [0, 2, 1])
        weight = lines.call(aten.reshape.default, weight, [outs, taps * ins])
        rows = lines.call(aten.reshape.default, rows, [-1, taps * ins])
        return _channels_first(lines, lines.call(aten.linear.default, rows, weight, a["bias"]))
    rows = lines.call(aten.reshape.default, rows, [-1, taps, groups, ins])
    rows = lines.call(
        aten.reshape.default, lines.call(aten.permute.default, rows, [2, 0, 1, 3]), [groups, -1, taps * ins]
    )
    weight = lines.call(aten.reshape.default, a["weight"], [groups, outs // groups, ins, taps])
    weight = lines.call(aten.permute.default, weight, [0, 3, 2, 1])
    weight = lines.call(aten.reshape.default, weight, [groups, taps * ins, outs // groups])
    out = lines.call(aten.matmul.default, rows, weight)  # [G, T, O / G]
    out = lines.call(aten.reshape.default, lines.call(aten.permute.default, out, [1, 0, 2]), [-1, outs])
    if a["bias"] is not None:
        out = lines.call(aten.add.Tensor, out, a["bias"])
    return _channels_first(lines, out)


def _spread(lines: Lines, weight: Node, dilation: int) -> Node:
    """A weight [C, K] with dilation - 1 zeros between its taps."""
    if dilation == 1:
        return weight
    channels, taps = (int(s) for s in n.shape_of(weight))
    zeros = lines.call(aten.full.default, [channels, taps, dilation - 1], 0.0, dtype=n.dtype_of(weight))
    wide = lines.call(aten.cat.default, [lines.call(aten.unsqueeze.default, weight, 2), zeros], 2)
    wide = lines.call(aten.reshape.default, wide, [channels, taps * dilation])
    return lines.call(aten.slice.Tensor, wide, 1, 0, (taps - 1) * dilation + 1, 1)


def _channels_first(lines: Lines, x: Node) -> Node:
    return lines.call(aten.unsqueeze.default, lines.call(aten.permute.default, x, [1, 0]), 0)


def _take_activations(lines: Lines) -> bool:
    """Rule 2: silu behind views of a convolution's result."""
    changed = False
    for conv in n.calls(lines.ir.graph, "autodeploy.causal_conv1d"):
        last = n.only_user(conv)
        while last is not None and n.op_name(last) in _REARRANGED:
            last = n.only_user(last)
        if not n.is_op(last, "aten.silu") or conv.args[3]:
            continue
        assert last is not None
        conv.args = (*conv.args[:3], "silu")
        replace(last, last.args[0])
        changed = True
    if changed:
        erase_dead(lines.ir.graph)
    return changed


_REARRANGED = ("aten.permute", "aten.transpose", "aten.unsqueeze", "aten.squeeze", "aten.alias", "aten.clone")
