"""Writes the golden artifact `tiny/` beside this script: python tests/data/golden/make_golden.py

A model of one layer (attention over a fused linear of three formats, experts, a composite, regions), every kind of
weight expression and most stored formats. `tiny/expected.bin` holds what a reader must find: the elements of all params
as float32, in the Program's order; `tiny/expected.json` the logits of one prompt, by the interpreter. Change it only
together with the formats' versions.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from autodeploy.artifact import (
    Instruction,
    Operand,
    Param,
    Program,
    Provenance,
    Region,
    RegionNode,
    State,
    StateComponent,
    Value,
    write_artifact,
)
from autodeploy.weights import expr as e
from autodeploy.weights.checkpoint import fingerprint, tensor_reader
from autodeploy.weights.constants import pack_constants
from autodeploy.weights.evaluate import evaluate
from autodeploy.weights.formats import FORMATS, Stored, is_float, stored_bytes
from autodeploy.weights.weight_program import Segment, StoredTensor, WeightParam, WeightProgram

PROMPT = [3, 14, 15, 9, 26, 5]
H, HEADS, KV, D, V, EXPERTS, F = 32, 2, 1, 16, 40, 4, 32


def v(i: int, *view: object) -> Operand:
    return Operand(value=i, shape=view[0], strides=view[1], offset=view[2]) if view else Operand(value=i)  # type: ignore


def p(i: int) -> Operand:
    return Operand(param=i)


PARAMS = [
    Param("embed", (V, H), "act"),
    Param("qkv", ((HEADS + 2 * KV) * D, H), "act"),
    Param("out", (H, HEADS * D), "act"),
    Param("norm", (H,), "act"),
    Param("inv_freq", (D // 2,), "f32"),
    Param("up", (EXPERTS, F, H), "act"),
    Param("router", (EXPERTS, H), "act"),
    Param("scale", (), "f32"),
    Param("table", (2, 3), "i64"),
    Param("mask", (4,), "bool"),
    Param("moved", (3, 4, 5), "f32"),
    Param("made", (4, 3), "f32"),
]

VALUES = [
    Value("token_ids", "i64", ("T",)),
    Value("positions", "i64", ("T",)),
    Value("x", "act", ("T", H)),
    Value("angles", "f32", ("T", D // 2)),
    Value("cos", "f32", ("T", D // 2)),
    Value("sin", "f32", ("T", D // 2)),
    Value("qkv", "act", ("T", (HEADS + 2 * KV) * D)),
    Value("q", "act", ("T", HEADS, D)),
    Value("k", "act", ("T", KV, D)),
    Value("attended", "act", ("T", HEADS, D)),
    Value("projected", "act", ("T", H)),
    Value("normed", "act", ("T", H)),
    Value("sum", "act", ("T", H)),
    Value("routes", "act", ("T", EXPERTS)),
    Value("gates", "act", ("T", 2)),
    Value("experts", "i64", ("T", 2)),
    Value("expanded", "act", ("2*T", F)),
    Value("gated", "act", ("2*T", F)),
    Value("mixed", "act", ("T", F)),
    Value("rows", "act", ("R", F)),
    Value("logits", "act", ("R", V)),
]

WIDTH = (HEADS + 2 * KV) * D
INSTRUCTIONS = [
    Instruction("embedding", [v(0), p(0)], [2], source="tiny.py:10 Tiny.forward"),
    Instruction("region", [v(1, ("T", D // 2), (1, 0), 0),
                           Operand(param=4, shape=("T", D // 2), strides=(0, 1), offset=0)], [3], {"region": 0}),
    Instruction("region", [v(3)], [4, 5], {"region": 1}, source="tiny.py:12 Rotary.forward"),
    Instruction("linear", [v(2), p(1), None], [6], source="tiny.py:20 Attention.forward"),
    Instruction("rope", [v(6, ("T", HEADS, D), (WIDTH, D, 1), 0), v(4), v(5)], [7], {"interleaved": False}),
    Instruction("rope", [v(6, ("T", KV, D), (WIDTH, D, 1), HEADS * D), v(4), v(5)], [8], {"interleaved": False}),
    Instruction("attention", [v(7), v(8), v(6, ("T", KV, D), (WIDTH, D, 1), (HEADS + KV) * D), *[None] * 4], [9],
                {"scale": 0.25, "causal": True, "window": 0, "chunk": 0, "softcap": 0.0}, states=[0]),
    Instruction("linear", [v(9, ("T", HEADS * D), (HEADS * D, 1), 0), p(2), None], [10]),
    Instruction("add_rms_norm", [v(10), v(2), p(3)], [11, 12], {"eps": 1e-5, "offset": 0.0}, alias=[(1, 1)], parts=[
        Instruction("region", [v(10), v(2)], [12], {"region": 2}),
        Instruction("rms_norm", [v(12), p(3)], [11], {"eps": 1e-5, "offset": 0.0}),
    ]),
    Instruction("linear", [v(11), p(6), None], [13], source="tiny.py:40 Experts.forward"),
    Instruction("topk", [v(13)], [14, 15], {"k": 2, "dim": 1, "largest": True}),
    Instruction("expert_linear", [v(11), p(5), v(15, ("2*T",), (1,), 0), None], [16], {"x_repeat": 2}),
    Instruction("region", [v(16), v(14, ("2*T", F), (1, 0), 0)], [17], {"region": 3}, alias=[(0, 0)]),
    Instruction("reduce", [v(17, ("T", 2, F), (2 * F, F, 1), 0)], [18], {"kind": "sum", "dims": [1], "keepdim": False}),
    Instruction("select_rows", [v(18)], [19]),
    Instruction("linear", [v(19), p(0), None], [20], source="tiny.py:50 Tiny.head"),
]  # fmt: skip

REGIONS = [
    Region(("i64", "f32"), (RegionNode("cast", "f32", (0,)), RegionNode("mul", "f32", (2, 1))), (3,)),
    Region(("f32",), (RegionNode("cos", "f32", (0,)), RegionNode("sin", "f32", (0,))), (1, 2)),
    Region(("act", "act"), (RegionNode("add", "act", (0, 1)),), (2,)),
    Region(("act", "act"), (
        RegionNode("silu", "act", (0,)),
        RegionNode("const", "f32", value=float("-inf")),
        RegionNode("max", "act", (1, 3)),
        RegionNode("mul", "act", (2, 4)),
    ), (5,)),
]  # fmt: skip

STATE = State("layers.0.kv", "paged", (StateComponent("k", (KV, D), "act"), StateComponent("v", (KV, D), "act")))


def program() -> Program:
    return Program(
        list(PARAMS), list(VALUES), {"token_ids": 0, "positions": 1}, {"logits": 20}, [STATE], list(REGIONS),
        list(INSTRUCTIONS), {"vocab_size": V, "max_positions": 64},
    )  # fmt: skip


def stored_tensors(rng: np.random.Generator) -> dict[str, Stored]:
    """What the checkpoint holds, in every format; blocks get random bits and scales near 0.02."""
    shapes = {
        "embed": ("q8_0", (V, H)), "q": ("q4_1", (HEADS * D, H)), "k": ("q4_0", (KV * D, H)),
        "v": ("bf16", (KV * D, H)),
        "out.low": ("q5_0", (H // 2, H)), "out.high": ("q5_1", (H // 2, H)), "norm": ("f16", (H,)),
        "up.0": ("f32", (F, H)), "up.1": ("f32", (F, H)), "up.2": ("f32", (F, H)), "up.3": ("f32", (F, H)),
        "router": ("f32", (H, EXPERTS)), "scale": ("f64", ()), "table": ("i32", (2, 3)), "mask": ("u8", (4,)),
        "moved": ("f32", (4, 15)), "a": ("f32", (4, 3)), "b": ("f32", (3,)), "small": ("i8", (5,)),
        "wide": ("i64", (5,)), "short": ("i16", (5,)), "flag": ("bool", (5,)),
    }  # fmt: skip
    return {name: random_tensor(rng, fmt, shape) for name, (fmt, shape) in shapes.items()}


def random_tensor(rng: np.random.Generator, fmt: str, shape: tuple[int, ...]) -> Stored:
    info = FORMATS[fmt]
    if info.block_len > 1:
        raw = rng.integers(0, 256, stored_bytes(fmt, shape), dtype=np.uint8).reshape(-1, info.block_bytes)
        scales = rng.uniform(0.01, 0.03, (len(raw), 1))
        raw[:, :2] = scales.astype("<f2").view(np.uint8)
        if fmt.endswith("_1"):
            raw[:, 2:4] = (-8 * scales).astype("<f2").view(np.uint8)
        return Stored.from_bytes(fmt, shape, raw.reshape(-1))
    if is_float(fmt):
        return Stored.from_f32(rng.normal(0, 0.3, shape).astype("<f4")).cast(fmt)
    values = rng.integers(0, 2, shape) if fmt in ("bool", "u8") else rng.integers(0, 100, shape)
    return Stored(fmt, shape, values.astype(info.dtype))


def weight_program(folder: Path, tensors: dict[str, Stored]) -> tuple[WeightProgram, bytes]:
    """Writes the tensors one after another into weights.bin and says how params are made of them."""
    header = b"GOLDEN\0\0"
    spans, content = {}, header
    for name, t in tensors.items():
        raw = t.to_bytes()
        content += b"\0" * (-len(content) % 32)
        spans[name] = StoredTensor(0, len(content), len(raw), t.format, t.shape)
        content += raw
    (folder / "weights.bin").write_bytes(content)
    source = fingerprint(folder / "weights.bin", len(header))
    inv_freq = (10000.0 ** (-np.arange(0, D, 2) / D)).astype("<f4")
    constants, constants_source, constant_spans = pack_constants({"inv_freq": ("f32", inv_freq)}, 1)
    spans |= constant_spans

    t = {name: span.expr(name) for name, span in spans.items()}
    heads = e.reshape(t["q"], (HEADS, 2, D // 2, H))
    turned = e.reshape(e.permute(heads, [0, 2, 1, 3]), (HEADS * D, H))
    moved = e.permute(e.reshape(t["moved"], (4, 3, 5)), [1, 0, 2])
    combined = e.binary("mul", e.binary("rsub", t["a"], 1.0), e.unary("neg", e.unary("exp", t["b"])))
    made = e.cat([
        e.slice_(combined, 0, 0, 4, 2),
        e.take(e.cast(e.cast(t["a"], "f16"), "f32"), 0, [3, 0]),
    ], 0)  # fmt: skip
    data = e.data(np.array([[0.5, 0.25, 0.125]], "<f4"), "f32")
    made = e.cat([e.slice_(made, 0, 0, 3), data], 0)
    experts = e.stack([t[f"up.{i}"] for i in range(EXPERTS)], 0)

    def param(name: str, *exprs: e.Expr) -> WeightParam:
        shape = next(q.shape for q in PARAMS if q.name == name)
        segments = [Segment(x.shape[0] if shape else 1, x) for x in exprs]
        return WeightParam(name, shape, segments)

    weights = WeightProgram(
        [replace(source, path="weights.bin"), constants_source],
        spans,
        [
            param("embed", t["embed"]),
            param("qkv", turned, e.take(t["k"], 0, list(range(15, -1, -1))), t["v"]),
            param("out", t["out.low"], t["out.high"]),
            param("norm", e.binary("add", t["norm"], 1.0)),
            param("inv_freq", t["inv_freq"]),
            param("up", experts),
            param("router", e.permute(t["router"], [1, 0])),
            param("scale", t["scale"]),
            param("table", t["table"]),
            param("mask", t["mask"]),
            param("moved", moved),
            param("made", made),
        ],
        ["small", "wide", "short", "flag"],
        ["a note"],
    )
    weights.check()
    return weights, constants


def expected(weights: WeightProgram, folder: Path) -> dict[str, np.ndarray]:
    """The elements of each param as float32."""
    read = tensor_reader(weights.sources, weights.tensors, folder)
    return {
        p.name: np.concatenate([evaluate(s.expr, read).to_f32().reshape(-1) for s in p.segments])
        for p in weights.params
    }


def logits(params: dict[str, np.ndarray]) -> list[float]:
    """The logits of the last token of the prompt."""
    import torch

    from autodeploy.interpreter import Interpreter
    from autodeploy.ops import Batch

    shapes = {q.name: q.shape for q in PARAMS}
    tensors = {name: torch.from_numpy(values).reshape(shapes[name]) for name, values in params.items()}
    interpreter = Interpreter(program(), tensors)
    inputs = {"token_ids": torch.tensor(PROMPT), "positions": torch.arange(len(PROMPT))}
    result = interpreter.step(Batch.of([len(PROMPT)]), inputs)
    return [float(x) for x in result.outputs["logits"][-1]]


def make(target: Path) -> None:
    """Writes the artifact and what to expect of it into `target`."""
    shutil.rmtree(target, ignore_errors=True)
    work = target.with_name(target.name + ".work")
    work.mkdir(parents=True)
    try:
        weights, constants = weight_program(work, stored_tensors(np.random.default_rng(20)))
        (work / "constants.bin").write_bytes(constants)
        values = expected(weights, work)
        files = {"constants.bin": constants, "weights.bin": (work / "weights.bin").read_bytes()}
        provenance = Provenance("tests/data/golden", versions={"autodeploy": "0"})
        write_artifact(target, program(), weights.to_json(), provenance, files)
    finally:
        shutil.rmtree(work)
    (target / "expected.bin").write_bytes(b"".join(x.astype("<f4").tobytes() for x in values.values()))
    facts = {"prompt": PROMPT, "logits": logits(values)}
    (target / "expected.json").write_text(json.dumps(facts, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "tiny")
