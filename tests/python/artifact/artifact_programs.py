"""Small Programs for the tests of this folder."""

from autodeploy.artifact import Instruction, Operand, Param, Program, Region, RegionNode, State, StateComponent, Value


def v(i: int) -> Operand:
    return Operand(value=i)


def p(i: int) -> Operand:
    return Operand(param=i)


def tiny_program() -> Program:
    """Embedding, attention over slices of one linear, residual + norm (a composite), a region, rows, logits."""
    return Program(
        metadata={"vocab_size": 32, "max_positions": 64},
        params=[
            Param("embed", (32, 8), "act"),
            Param("qkv", (16, 8), "act"),
            Param("norm", (8,), "act"),
        ],
        values=[
            Value("token_ids", "i64", ("T",)),
            Value("positions", "i64", ("T",)),
            Value("x", "act", ("T", 8)),
            Value("qkv", "act", ("T", 16)),
            Value("attn", "act", ("T", 2, 4)),
            Value("normed", "act", ("T", 8)),
            Value("sum", "act", ("T", 8)),
            Value("gated", "act", ("T", 8)),
            Value("rows", "act", ("R", 8)),
            Value("logits", "act", ("R", 32)),
        ],
        inputs={"token_ids": 0, "positions": 1},
        outputs={"logits": 9},
        states=[
            State("kv0", "paged", (StateComponent("k", (1, 4), "act"), StateComponent("v", (1, 4), "act")), window=16)
        ],
        regions=[
            Region(("act", "act"), (RegionNode("add", "act", (0, 1)),), (2,)),
            Region(
                ("act",),
                (
                    RegionNode("const", "f32", value=float("-inf")),
                    RegionNode("max", "act", (0, 1)),
                    RegionNode("silu", "act", (2,)),
                ),
                (3,),
            ),
        ],
        instructions=[
            Instruction("embedding", [v(0), p(0)], [2], source="m.py:1 M.forward"),
            Instruction("linear", [v(2), p(1), None], [3]),
            Instruction(
                "attention",
                [
                    Operand(value=3, shape=("T", 2, 4), strides=(16, 4, 1), offset=0),
                    Operand(value=3, shape=("T", 1, 4), strides=(16, 4, 1), offset=8),
                    Operand(value=3, shape=("T", 1, 4), strides=(16, 4, 1), offset=12),
                    None,
                    None,
                    None,
                    None,
                ],
                [4],
                {"scale": 0.5, "causal": True, "window": 16, "chunk": 0, "softcap": 0.0},
                states=[0],
            ),
            Instruction(
                "add_rms_norm",
                [Operand(value=4, shape=("T", 8), strides=(8, 1)), v(2), p(2)],
                [5, 6],
                {"eps": 1e-6, "offset": 1.0},
                alias=[(1, 1)],
                parts=[
                    Instruction("region", [Operand(value=4, shape=("T", 8), strides=(8, 1)), v(2)], [6], {"region": 0}),
                    Instruction("rms_norm", [v(6), p(2)], [5], {"eps": 1e-6, "offset": 1.0}),
                ],
            ),
            Instruction("region", [v(5)], [7], {"region": 1}, alias=[(0, 0)]),
            Instruction("select_rows", [v(7)], [8]),
            Instruction("linear", [v(8), p(0), None], [9]),
        ],
    )
