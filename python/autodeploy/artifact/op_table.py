"""The ops of docs/program.md as data: operands, results, attributes, states, and the arity of region nodes.

A shape pattern names dims: `"M* K"` is any number of leading dims M followed by K; a name that occurs twice must be the
same dim each time; `"H|H P"` allows either. `...` stands for anything (the op's own rule in op_rules.py decides).
"""

from __future__ import annotations

from dataclasses import dataclass

FLOAT = "float"  # act or f32
ANY = "any"


@dataclass(frozen=True)
class In:
    """An operand: its name, shape pattern, dtype (one of the four, `float` or `any`)."""

    name: str
    shape: str = "..."
    dtype: str = FLOAT
    optional: bool = False
    weight: bool = False


@dataclass(frozen=True)
class OpSpec:
    """An op's signature. `variadic` repeats the last operand one or more times; `attrs` maps names to a type, or to the
    strings allowed; `states` lists state kinds, which `may_lack_state` makes optional. `any_results`: as many results
    as the region or the body has outputs."""

    inputs: tuple[In, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, str | tuple[str, ...]]
    states: tuple[str, ...] = ()
    variadic: bool = False
    any_results: bool = False
    may_lack_state: bool = False


_ROWS = In("x", "M* H")

OPS: dict[str, OpSpec] = {
    # Canonical, token-wise.
    "embedding": OpSpec((In("ids", "M*", "i64"), In("weight", "V H", weight=True)), ("M* H",), {}),
    "linear": OpSpec(
        (In("x", "M* K"), In("weight", "N K", weight=True), In("bias", "N", optional=True)), ("M* N",), {}
    ),
    "rms_norm": OpSpec((_ROWS, In("weight", "H", optional=True)), ("M* H",), {"eps": "float", "offset": "float"}),
    "layer_norm": OpSpec(
        (_ROWS, In("weight", "H", optional=True), In("bias", "H", optional=True)), ("M* H",), {"eps": "float"}
    ),
    "add_rms_norm": OpSpec(
        (_ROWS, In("residual", "M* H"), In("weight", "H", optional=True)),
        ("M* H", "M* H"),
        {"eps": "float", "offset": "float"},
    ),
    "add_layer_norm": OpSpec(
        (_ROWS, In("residual", "M* H"), In("weight", "H", optional=True), In("bias", "H", optional=True)),
        ("M* H", "M* H"),
        {"eps": "float"},
    ),
    "rope": OpSpec((In("x", "N Hn D"), In("cos", "N R2"), In("sin", "N R2")), ("N Hn D",), {"interleaved": "bool"}),
    "expert_linear": OpSpec(
        (
            In("x", "Sx K"),
            In("weight", "E N K", weight=True),
            In("ids", "S", "i64"),
            In("bias", "E N", optional=True),
        ),
        ("S N",),
        {"x_repeat": "int"},
    ),
    "select_rows": OpSpec((In("x", "T H", ANY),), ("R H",), {}),
    # Canonical, token mixers.
    "known_length": OpSpec((In("at", "T", "i64"),), ("T",), {}),
    "attention": OpSpec(
        (
            In("q", "T Hq D"),
            In("k", "T Hkv D", optional=True),
            In("v", "T Hkv Dv", optional=True),
            In("sinks", "Hq|T Hq", optional=True),
            In("slopes", "Hq", optional=True),
            In("bias_table", "T Hq R1", optional=True),
            In("indices", "T N|T Hkv N", "i64", optional=True),
        ),
        ("T Hq Dv",),
        {"scale": "float", "causal": "bool", "window": "int", "chunk": "int", "softcap": "float"},
        ("paged",),
    ),
    "causal_conv1d": OpSpec(
        (In("x", "T C"), In("weight", "C K"), In("bias", "C", optional=True)),
        ("T C",),
        {"activation": ("", "silu")},
        ("conv",),
    ),
    "ssd": OpSpec(
        (
            In("x", "T H P"),
            In("dt", "T H"),
            In("a", "H"),
            In("b", "T G N"),
            In("c", "T G N"),
            In("d", "H|H P", optional=True),
            In("dt_bias", "H", optional=True),
        ),
        ("T H P",),
        {"softplus": "bool", "dt_min": "float", "dt_max": "float"},
        ("slot",),
    ),
    "over_keys": OpSpec(
        (In("x", dtype=ANY),),
        ("...",),
        {"body": "int"},
        ("paged",),
        variadic=True,
        any_results=True,
        may_lack_state=True,
    ),
    "window": OpSpec(
        (In("x", "T C", ANY), In("fill", "C", ANY, optional=True)), ("T K C",), {"back": "ints"}, ("conv",)
    ),
    "linear_attention": OpSpec(
        (
            In("q", "T H Dk"),
            In("k", "T H Dk"),
            In("v", "T H Dv"),
            In("gate", "T H", optional=True),
            In("decay", "H", optional=True),
        ),
        ("T H Dv",),
        {"scale": "float"},
        ("slot",),
    ),
    "linear_scan": OpSpec((In("x", "T C"), In("a", "T C")), ("T C",), {}, ("slot",)),
    "wkv": OpSpec(
        (In("k", "T C"), In("v", "T C"), In("decay", "C"), In("bonus", "C")),
        ("T C",),
        {},
        ("slot",),
    ),
    "mlstm": OpSpec(
        (
            In("q", "T H Dk"),
            In("k", "T H Dk"),
            In("v", "T H Dv"),
            In("input_gate", "T H"),
            In("forget_gate", "T H"),
        ),
        ("T H Dv",),
        {"scale": "float", "eps": "float"},
        ("slot",),
    ),
    "selective_scan": OpSpec(
        (
            In("x", "T C"),
            In("dt", "T C"),
            In("a", "C N"),
            In("b", "T N"),
            In("c", "T N"),
            In("d", "C", optional=True),
            In("dt_bias", "C", optional=True),
        ),
        ("T C",),
        {"softplus": "bool"},
        ("slot",),
    ),
    "gated_delta_rule": OpSpec(
        (
            In("q", "T Hk Dk"),
            In("k", "T Hk Dk"),
            In("v", "T Hv Dv"),
            In("g", "T Hv|T Hv Dk", optional=True),
            In("beta", "T Hv"),
        ),
        ("T Hv Dv",),
        {"scale": "float", "l2norm": "bool", "eps": "float"},
        ("slot",),
    ),
    # Generic tail.
    "region": OpSpec((In("x", dtype=ANY),), ("...",), {"region": "int"}, variadic=True, any_results=True),
    "copy": OpSpec((In("x", "M*", ANY),), ("M*",), {}),
    "cat": OpSpec((In("x", dtype=ANY),), ("...",), {"dim": "int"}, variadic=True),
    "reduce": OpSpec(
        (In("x", dtype=ANY),),
        ("...",),
        {
            "kind": ("sum", "mean", "max", "min", "prod", "any", "all", "argmax", "argmin"),
            "dims": "ints",
            "keepdim": "bool",
        },
    ),
    "softmax": OpSpec((In("x", "M*"),), ("M*",), {"dim": "int"}),
    "log_softmax": OpSpec((In("x", "M*"),), ("M*",), {"dim": "int"}),
    "topk": OpSpec((In("x", dtype=ANY),), ("...", "..."), {"k": "int", "dim": "int", "largest": "bool"}),
    "sort": OpSpec((In("x", "M*", ANY),), ("M*", "M*"), {"dim": "int", "descending": "bool"}),
    "cumsum": OpSpec((In("x", "M*", ANY),), ("M*",), {"dim": "int"}),
    "matmul": OpSpec((In("a", "B* M K"), In("b", "B* K N")), ("B* M N",), {}),
    "gather": OpSpec((In("x", dtype=ANY), In("index", "I*", "i64")), ("I*",), {"dim": "int"}),
    "scatter": OpSpec(
        (In("x", "M*", ANY), In("index", dtype="i64"), In("src", dtype=ANY)),
        ("M*",),
        {"dim": "int", "reduce": ("", "add")},
    ),
    "index_select": OpSpec((In("x", dtype=ANY), In("index", "I", "i64")), ("...",), {"dim": "int"}),
    "arange": OpSpec((), ("N",), {"start": "float", "step": "float"}),
    "full": OpSpec((), ("...",), {"value": "float"}),
}

# Ops that a body may hold: the generic tail, and token-wise ops whose rows may be queries as well as keys.
BODY_OPS = frozenset(
    (
        *("embedding", "linear", "rms_norm", "layer_norm", "rope", "region", "copy", "cat", "reduce", "softmax"),
        *("log_softmax", "topk", "sort", "cumsum", "matmul", "gather", "scatter", "index_select", "arange", "full"),
    )
)

_UNARY = """cast neg abs exp log log1p expm1 sqrt rsqrt reciprocal sin cos tanh sigmoid silu relu gelu gelu_tanh
softplus erf floor ceil round trunc sign square not"""
_BINARY = "add sub mul div pow min max fmod floor_div eq ne lt le gt ge and or bit_and bit_or bit_xor"

# Number of registers that each region node reads.
REGION_OPS: dict[str, int] = {
    "const": 0,
    **dict.fromkeys(_UNARY.split(), 1),
    **dict.fromkeys(_BINARY.split(), 2),
    "where": 3,
}

REGION_BOOL_OPS = frozenset(("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not"))
