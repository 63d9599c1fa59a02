"""Expressions: inference, simplification, the rule on blocks, JSON, and evaluation against plain NumPy."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autodeploy.weights import expr as e
from autodeploy.weights.errors import WeightError
from autodeploy.weights.evaluate import evaluate, rows
from autodeploy.weights.expr_json import parse_expr, to_json
from autodeploy.weights.formats import FORMATS, Stored, stored_bytes

SHAPES = {"a": (6, 4), "b": (6, 4), "c": (2, 3, 4), "v": (4,), "q": (6, 64), "r": (6, 64), "s": ()}
FMTS = {"a": "f32", "b": "f32", "c": "f16", "v": "bf16", "q": "q4_0", "r": "q4_0", "s": "f32"}


def leaf(name):
    return e.tensor(name, FMTS[name], SHAPES[name])


def read(name):
    rng = np.random.default_rng(sum(map(ord, name)))
    shape, fmt = SHAPES[name], FMTS[name]
    if fmt == "q4_0":
        raw = rng.integers(0, 256, stored_bytes(fmt, shape), dtype=np.uint8).reshape(-1, 18)
        raw[:, :2] = rng.uniform(0.5, 2, len(raw)).astype("<f2").view(np.uint8).reshape(-1, 2)
        return Stored.from_bytes(fmt, shape, raw.reshape(-1))
    values = Stored.from_f32(rng.uniform(0.5, 3, shape).astype(np.float32))
    return values.cast(fmt)


def value(x):
    """What an expression stands for, as float32."""
    return evaluate(x, read).to_f32()


def through_json(x):
    text = json.dumps(to_json(x), allow_nan=False)
    return parse_expr(json.loads(text), lambda op, name: leaf(name), "x")


A, B, C, V, Q = (read(n).to_f32() for n in "abcvq")

CASES = [
    ("slice", e.slice_(leaf("a"), 0, 1, 6, 2), A[1:6:2]),
    ("slice of slice", e.slice_(e.slice_(leaf("a"), 0, 1, 6, 2), 0, 1, 3), A[3:6:2]),
    ("empty slice", e.slice_(leaf("a"), 1, 2, 2), A[:, 2:2]),
    ("cat", e.cat([leaf("a"), leaf("b")], 1), np.concatenate([A, B], 1)),
    ("slice of cat", e.slice_(e.cat([leaf("a"), leaf("b")], 0), 0, 4, 9), np.concatenate([A, B])[4:9]),
    ("stack", e.stack([leaf("a"), leaf("b")], 2), np.stack([A, B], 2)),
    ("permute", e.permute(e.permute(leaf("c"), [2, 0, 1]), [1, 2, 0]), C),
    ("transpose", e.permute(leaf("a"), [1, 0]), A.T),
    ("reshape", e.reshape(e.reshape(leaf("c"), (6, 4)), (3, 8)), C.reshape(3, 8)),
    ("take", e.take(leaf("a"), 0, [5, 0, 0]), A[[5, 0, 0]]),
    ("take of take", e.take(e.take(leaf("a"), 0, [5, 0, 3]), 0, [2, 2, 1]), A[[3, 3, 0]]),
    ("slice of take", e.slice_(e.take(leaf("a"), 0, [5, 0, 3]), 0, 1, 3), A[[0, 3]]),
    ("backwards", e.take(leaf("a"), 1, [3, 2, 1, 0]), A[:, ::-1]),
    ("negative", e.unary("neg", leaf("a")), -A),
    ("minus exp", e.unary("neg", e.unary("exp", leaf("v"))), -np.exp(V)),
    ("one plus", e.binary("add", leaf("v"), 1.0), V + 1),
    ("from one", e.binary("rsub", leaf("v"), 1.0), 1 - V),
    ("one over", e.binary("rdiv", leaf("v"), 1.0), 1 / V),
    ("broadcast", e.binary("mul", leaf("a"), leaf("v")), A * V),
    ("scalar", e.binary("mul", leaf("a"), leaf("s")), A * read("s").to_f32()),
    ("cast", e.cast(leaf("a"), "f16"), A.astype(np.float16).astype(np.float32)),
    ("data", e.data(np.arange(3, dtype="<i8"), "i64"), np.arange(3, dtype=np.float32)),
    ("rows of blocks", e.take(e.slice_(leaf("q"), 0, 1, 6), 0, [4, 0]), Q[[5, 1]]),
    ("heads of blocks", e.reshape(leaf("q"), (2, 3, 64)), Q.reshape(2, 3, 64)),
    ("permuted heads", e.permute(e.reshape(leaf("q"), (2, 3, 64)), [1, 0, 2]), Q.reshape(2, 3, 64).transpose(1, 0, 2)),
    ("dequantized", e.permute(e.cast(leaf("q"), "f32"), [1, 0]), Q.T),
    ("blocks in arithmetic", e.binary("add", leaf("q"), 1.0), Q + 1),
]


@pytest.mark.parametrize(("x", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_evaluation_json_and_rows(x, expected):
    assert x.shape == expected.shape
    np.testing.assert_array_equal(value(x), expected)
    np.testing.assert_array_equal(value(through_json(x)), expected)
    if x.shape:
        for start, stop in [(0, 1), (1, x.shape[0]), (0, x.shape[0])]:
            np.testing.assert_array_equal(value(rows(x, start, stop)), expected[start:stop])


def test_simplification_reaches_the_leaf():
    a = leaf("a")
    halves = [e.slice_(a, 0, 0, 3), e.slice_(leaf("a"), 0, 3, 6)]
    for x in [
        e.cat(halves, 0),
        e.slice_(e.cat([a, leaf("b")], 0), 0, 0, 6),
        e.take(a, 0, range(6)),
        e.permute(e.permute(a, [1, 0]), [1, 0]),
        e.reshape(e.reshape(a, (24,)), (6, 4)),
        e.cast(a, "f32"),
        e.binary("mul", a, 1.0),
    ]:
        assert x.op == "tensor", x
    assert e.take(a, 0, [1, 3, 5]).op == "slice"
    assert e.slice_(e.slice_(a, 0, 1, 6), 0, 1, 3).xs[0].op == "tensor"


def test_blocks_keep_their_rows_or_are_dequantized_with_a_note():
    q = leaf("q")
    moved = [e.slice_(q, 0, 1, 2), e.cat([q, q], 0), e.stack([q, q], 1), e.take(q, 0, [1, 0])]
    heads = e.reshape(q, (3, 2, 64))
    assert {x.format for x in [*moved, heads, e.permute(heads, [1, 0, 2])]} == {"q4_0"}
    cuts = [
        lambda x: e.slice_(x, 1, 0, 32),
        lambda x: e.permute(x, [1, 0]),
        lambda x: e.reshape(x, (12, 32)),
        lambda x: e.take(x, 1, [1, 0]),
        lambda x: e.stack([x, x], 2),
        lambda x: e.cat([x, x], 1),
    ]
    for cut in cuts:
        with pytest.raises(WeightError, match="q4_0"):
            cut(q)
        made = e.on_values(cut, q)
        assert made.format == "f32"
        assert e.dequantized_tensors(made) == {"q": "q4_0"}
    assert e.join(e.cat, [q, e.cast(e.slice_(q, 0, 0, 1), "f16")], 0).format == "f32"
    assert not e.dequantized_tensors(e.take(q, 0, [1, 0]))


def test_numbers_stay_in_their_stored_format_where_they_are_only_moved():
    wide, half = e.cast(leaf("q"), "f32"), e.cast(leaf("c"), "f32")
    for x in [
        wide,
        e.permute(e.permute(wide, [1, 0]), [1, 0]),
        e.cat([wide, e.slice_(wide, 0, 0, 1)], 0),
        e.take(wide, 0, [2, 0]),
    ]:
        assert e.keep_stored(x).format == "q4_0"
        np.testing.assert_array_equal(value(e.keep_stored(x)), value(x))
    assert e.keep_stored(e.stack([half, half], 0)).format == "f16"
    for x in [
        e.permute(wide, [1, 0]),
        e.unary("neg", wide),
        e.cast(wide, "f16"),
        e.cat([wide, e.unary("neg", wide)], 0),
    ]:
        assert e.keep_stored(x) is x


BROKEN = [
    ({"op": "none"}, "expected an operation"),
    ([], "expected an expression"),
    ({"op": "slice", "x": {"op": "tensor", "name": "a"}}, "expected the fields"),
    ({"op": "slice", "x": {"op": "tensor", "name": "a"}, "dim": 2, "start": 0, "stop": 1, "step": 1}, "dim below 2"),
    ({"op": "slice", "x": {"op": "tensor", "name": "a"}, "dim": 0, "start": 0, "stop": 7, "step": 1}, "stop <= 6"),
    ({"op": "slice", "x": {"op": "tensor", "name": "a"}, "dim": 0, "start": 0, "stop": 7, "step": 0}, "step >= 1"),
    ({"op": "slice", "x": {"op": "tensor", "name": "a"}, "dim": -1, "start": 0, "stop": 1, "step": 1}, "from 0 to"),
    ({"op": "cat", "xs": [], "dim": 0}, "at least one"),
    ({"op": "cat", "xs": [{"op": "tensor", "name": "a"}, {"op": "tensor", "name": "v"}], "dim": 0}, "expected f32"),
    ({"op": "permute", "x": {"op": "tensor", "name": "a"}, "dims": [0, 0]}, "a permutation"),
    ({"op": "reshape", "x": {"op": "tensor", "name": "a"}, "shape": [5]}, "24 elements"),
    ({"op": "take", "x": {"op": "tensor", "name": "a"}, "dim": 0, "index": {"data": "AAA"}}, "base64"),
    ({"op": "take", "x": {"op": "tensor", "name": "a"}, "dim": 0, "index": {"data": "BgAAAA=="}}, "indices below 6"),
    ({"op": "unary", "f": "sinh", "x": {"op": "tensor", "name": "a"}}, "expected a function"),
    ({"op": "binary", "f": "add", "x": {"op": "tensor", "name": "a"}, "y": True}, "expected an expression"),
    ({"op": "binary", "f": "add", "x": {"op": "tensor", "name": "a"}, "y": {"op": "tensor", "name": "c"}}, "broadcast"),
    ({"op": "cast", "x": {"op": "tensor", "name": "a"}, "format": "q4_0"}, "nothing here quantizes"),
    ({"op": "cast", "x": {"op": "tensor", "name": "a"}, "format": "f8"}, "expected a format"),
    ({"op": "data", "format": "f32", "shape": [2], "data": "AAAA"}, "base64"),
    ({"op": "data", "format": "f32", "shape": [2], "data": "AAAAAA=="}, "2 elements"),
    ({"op": "data", "format": "q8_0", "shape": [2], "data": ""}, "plain format"),
    ({"op": "permute", "x": {"op": "tensor", "name": "q"}, "dims": [1, 0]}, "cast to f32 first"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "message"), BROKEN, ids=[b[1] for b in BROKEN])
def test_broken_expressions_are_refused(raw, message):
    with pytest.raises(WeightError, match=message):
        parse_expr(raw, lambda op, name: leaf(name), "here")


def test_deep_expressions_are_refused():
    raw = {"op": "tensor", "name": "a"}
    for _ in range(100):
        raw = {"op": "unary", "f": "neg", "x": raw}
    with pytest.raises(WeightError, match="nested"):
        parse_expr(raw, lambda op, name: leaf(name), "here")


@st.composite
def expressions(draw, depth=3):
    """A random expression of rank two over the leaves, and its value."""
    if depth == 0:
        name = draw(st.sampled_from(["a", "b", "q"]))
        return leaf(name), read(name).to_f32()
    x, want = draw(expressions(depth=depth - 1))
    kinds = ["slice", "take", "cat", "neg", "scale"] + ([] if x.format == "q4_0" else ["permute", "reshape"])
    kind = draw(st.sampled_from(kinds))
    if kind == "slice":
        start = draw(st.integers(0, x.shape[0]))
        stop, step = draw(st.integers(start, x.shape[0])), draw(st.integers(1, 3))
        return e.slice_(x, 0, start, stop, step), want[start:stop:step]
    if kind == "take":
        index = draw(st.lists(st.integers(0, x.shape[0] - 1), max_size=5)) if x.shape[0] else []
        return e.take(x, 0, index), want[index] if index else want[:0]
    if kind == "cat":
        half = len(want) // 2
        return e.cat([x, e.slice_(x, 0, 0, half), x], 0), np.concatenate([want, want[:half], want])
    if kind == "neg":
        return e.unary("neg", x), -want
    if kind == "scale":
        return e.binary("mul", x, 2.0), want * 2
    if kind == "permute":
        return e.permute(x, [1, 0]), want.T
    return e.reshape(x, (x.shape[1], x.shape[0])), want.reshape(want.shape[::-1])


@settings(max_examples=150, deadline=None)
@given(expressions(), st.data())
def test_random_expressions(pair, data):
    x, want = pair
    np.testing.assert_array_equal(value(x), want)
    np.testing.assert_array_equal(value(through_json(x)), want)
    start = data.draw(st.integers(0, x.shape[0]))
    stop = data.draw(st.integers(start, x.shape[0]))
    if start < stop:
        np.testing.assert_array_equal(value(rows(x, start, stop)), want[start:stop])


def test_block_formats_equal_the_gguf_package():
    import gguf

    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 96)).astype(np.float32)
    for fmt in [f for f in FORMATS if FORMATS[f].block_len > 1]:
        kind = gguf.GGMLQuantizationType[fmt.upper()]
        packed = gguf.quantize(values, kind)
        found = Stored.from_bytes(fmt, values.shape, packed.reshape(-1).view(np.uint8)).to_f32()
        np.testing.assert_array_equal(found, gguf.dequantize(packed, kind), err_msg=fmt)


def test_bfloat16_rounds_as_torch_does():
    import torch

    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(size=1000) * 10.0 ** rng.integers(-40, 38, 1000), [np.inf, -np.inf, 0, -0.0]])
    values = values.astype(np.float32)
    found = Stored.from_f32(values).cast("bf16")
    want = torch.from_numpy(values).to(torch.bfloat16)
    np.testing.assert_array_equal(found.data, want.view(torch.uint16).numpy())
    assert np.isnan(Stored.from_f32(np.array([np.nan], np.float32)).cast("bf16").to_f32()[0])
