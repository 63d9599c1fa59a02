"""Program: JSON round trip, and a table of everything that validation refuses."""

import json
import math
from dataclasses import replace

import pytest
from artifact_programs import p, tiny_program, v

from autodeploy.artifact import ArtifactError, Operand, Program, Value, dims, validate


def test_round_trip_through_json_text():
    program = tiny_program()
    validate(program)
    again = Program.from_json(json.loads(json.dumps(program.to_json(), allow_nan=False)))
    assert again == program
    validate(again)


@pytest.mark.parametrize(
    ("dim", "parsed", "value"),
    [
        (0, (0, ""), 0),
        (7, (7, ""), 7),
        ("T", (1, "T"), 5),
        ("8*T", (8, "T"), 40),
        ("R", (1, "R"), 3),
        ("2*R", (2, "R"), 6),
        ("N", (1, "N"), 5),
        ("4*S", (4, "S"), 12),
        ("N*S", (1, "N*S"), 15),
        ("3*N*S", (3, "N*S"), 45),
    ],
)
def test_dims(dim, parsed, value):
    assert dims.parse_dim(dim) == parsed
    assert dims.format_dim(*parsed) == dim
    assert dims.eval_dim(dim, 5, 3) == value


@pytest.mark.parametrize(
    "dim",
    [-1, "S*N", "N*N", "T*R", "N*3", "0*T", "T*8", "t", "", "8T", 1.5, True, None, 2**60, "99999999999999999999*T"],
)
def test_bad_dims(dim):
    with pytest.raises(ArtifactError, match=r"\[dim\]"):
        dims.parse_dim(dim)


def test_products_of_dims():
    assert dims.mul_dims([2, "T", 4]) == "8*T"
    assert dims.mul_dims([]) == 1
    assert dims.mul_dims(["S", 3, "N"]) == "3*N*S"
    with pytest.raises(ArtifactError, match="at most one symbol"):
        dims.mul_dims(["T", "R"])


@pytest.mark.parametrize(
    ("view", "legal"),
    [
        (Operand(value=0, shape=("T", 8), strides=(16, 1), offset=8), True),
        (Operand(value=0, shape=("T", 8), strides=(16, 1), offset=9), False),
        (Operand(value=0, shape=(16, "T"), strides=(1, 16)), True),
        (Operand(value=0, shape=("T", "T"), strides=(16, 0)), True),
        (Operand(value=0, shape=("R", 16), strides=(16, 1)), True),
        (Operand(value=0, shape=("2*T", 8), strides=(8, 1)), True),
        (Operand(value=0, shape=("2*T", 8), strides=(8, 1), offset=1), False),
        (Operand(value=0, shape=("T", 16), strides=(17, 1)), False),
        (Operand(value=0, shape=(16, "T"), strides=("T", 1)), True),
        (Operand(value=0, shape=(8, "T"), strides=("T", 1), offset="8*T"), True),
        (Operand(value=0, shape=(8, "T"), strides=("T", 1), offset="9*T"), False),
        (Operand(value=0, shape=(0, "T"), strides=("T", 1), offset="9*T"), True),
        (Operand(value=0, shape=(2, 16), strides=(16, 1)), False),  # T may be 1
    ],
)
def test_view_bounds_hold_for_all_sizes(view, legal):
    program = tiny_program()
    program.values[0] = Value("token_ids", "i64", ("T",))
    program.values += [Value("wide", "act", ("T", 16)), Value("out", "act", view.shape)]
    instruction = replace(program.instructions[0], op="copy", inputs=[replace(view, value=3)], outputs=[11])
    program.instructions.insert(2, instruction)
    if legal:
        validate(program)
    else:
        with pytest.raises(ArtifactError, match=r"instructions\[2\] copy operand 0 .*may leave its storage"):
            validate(program)


def test_rows_cannot_be_viewed_as_tokens():
    program = tiny_program()
    program.instructions[6].inputs[0] = Operand(value=8, shape=("T", 8), strides=(8, 1))
    program.values[9] = Value("logits", "act", ("T", 32))
    with pytest.raises(ArtifactError, match="may leave its storage"):
        validate(program)


def edit(path, value):
    """Sets the field at `path` of the JSON of the tiny program."""
    data = json.loads(json.dumps(tiny_program().to_json()))
    at = data
    for key in path[:-1]:
        at = at[key]
    if value is DELETE:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return data


DELETE = object()

BROKEN = [
    # What the reader refuses: types and fields.
    (("format",), "other", "expected the format"),
    (("version", "major"), 2, "expected version 1.x, found 2.0"),
    (("version",), 1, "expected an object"),
    (("params",), {}, "expected a list"),
    (("params", 0, "shape", 0), -1, "expected an integer from 0"),
    (("params", 0, "shape", 0), 2**60, "expected an integer from 0 to 2"),
    (("params", 0, "shape", 0), True, "expected an integer"),
    (("values", 2, "shape", 0), "T*2", "n\\*T"),
    (("values", 2, "extra"), 1, 'unknown field "extra"'),
    (("values", 2, "name"), DELETE, '"name" is missing'),
    (("instructions", 0, "in", 0), 3, "expected an object"),
    (("instructions", 0, "in", 0), {"v": 0, "p": 0}, 'unknown field "p"'),
    (("instructions", 0, "in", 0), {}, '"p" is missing'),
    (("instructions", 2, "in", 0, "strides"), DELETE, '"strides" is missing'),
    (("instructions", 3, "alias", 0), [1], "pairs of integers"),
    (("instructions", 3, "attrs", "eps"), None, "expected a number"),
    (("instructions", 3, "attrs", "eps"), {"number": "infinity"}, "expected a number"),
    (("regions", 1, "nodes", 0, "value"), "x", "expected a number"),
    # What validation refuses: the Program as a whole.
    (("params", 0, "dtype"), "f16", "expected a dtype"),
    (("params", 1, "name"), "embed", "stands twice"),
    (("params", 1, "shape", 0), "T", "expected an integer"),
    (("values", 2, "shape"), ["T"] * 9, "at most 8"),
    (("values", 0, "dtype"), "act", "inputs.token_ids"),
    (("inputs", "token_ids"), 77, "value index below"),
    (("inputs", "positions"), 0, "named twice"),
    (("outputs", "logits"), 99, "value index below"),
    (("states", 0, "kind"), "ring", "unknown field .chunk."),
    (("states", 0, "components"), [], "at least one component"),
    (("states", 0, "components", 1, "name"), "k", "stands twice"),
    (("states", 0, "components", 1, "dtype"), "i64", "act or f32"),
    (("states", 0, "components", 0, "shape"), [2, 4], "expected a state of components"),
    (("regions", 0, "nodes", 0, "op"), "adds", "unknown region op"),
    (("regions", 0, "nodes", 0, "args"), [0], "expected 2 registers"),
    (("regions", 0, "nodes", 0, "args"), [0, 2], "register index below 2"),
    (("regions", 0, "outputs"), [3], "register index below 3"),
    (("regions", 0, "outputs"), [], "at least one output"),
    (("regions", 0, "inputs"), ["act"], r"register index below 1"),
    (("instructions", 0, "op"), "embed_it", "unknown op"),
    (("instructions", 0, "in"), [{"v": 0}], "expected 2 operands"),
    (("instructions", 0, "in", 0), None, "is required"),
    (("instructions", 0, "in", 0), {"v": 3}, "read before it is written"),
    (("instructions", 0, "in", 0), {"v": 1000}, "value index below"),
    (("instructions", 0, "in", 1), {"p": 3}, "param index below"),
    (("instructions", 0, "in", 1), {"v": 0}, "expected the dtype float"),
    (("instructions", 0, "in", 1), {"p": 0, "shape": [8, 8], "strides": [8, 1], "offset": 0}, "expected a whole param"),
    (("instructions", 0, "out"), [2, 3], "expected 1 results"),
    (("instructions", 0, "out"), [0], "written twice"),
    (("instructions", 1, "out"), [2], "written twice"),
    (("instructions", 0, "attrs", "scale"), 1, 'unknown attribute "scale"'),
    (("instructions", 2, "attrs", "scale"), DELETE, '"scale" is missing'),
    (("instructions", 2, "attrs", "scale"), "1", "of type float"),
    (("instructions", 2, "attrs", "causal"), 1, "of type bool"),
    (("instructions", 2, "attrs", "window"), 1.5, "of type int"),
    (("instructions", 2, "states"), [], "expected 1 states"),
    (("instructions", 2, "states"), [1], "state index below"),
    (("instructions", 2, "in", 0, "offset"), 9, "may leave its storage"),
    (("instructions", 2, "in", 0, "shape", 2), 3, "expected the shape"),
    (("instructions", 2, "in", 0, "strides"), [16, 1], "as many strides as dims"),
    (("instructions", 3, "alias"), [[2, 0]], "result index below"),
    (("instructions", 3, "alias"), [[0, 3]], "operand index below"),
    (("instructions", 3, "parts", 1, "out"), [7], "never write value 5"),
    (("instructions", 4, "attrs", "region"), 9, "region index below"),
    (("instructions", 4, "attrs", "region"), 0, "2 operands"),
    (("params", 1, "shape"), [16, 7], "linear weight.*expected the shape .N, K."),
    (("values", 9, "shape", 1), 31, "linear result.*expected the shape"),
    (("values", 8, "shape", 0), "T", "R is needed"),
]


@pytest.mark.parametrize(
    ("path", "value", "message"), BROKEN, ids=lambda x: ".".join(map(str, x)) if isinstance(x, tuple) else ""
)
def test_broken_programs_are_refused(path, value, message):
    with pytest.raises(ArtifactError, match=message):
        validate(Program.from_json(edit(path, value)))


def test_newer_minor_versions_may_carry_unknown_fields_but_not_unknown_ops():
    data = edit(("version", "minor"), 9)
    data["values"][2]["extra"] = 1
    validate(Program.from_json(data))
    data["instructions"][0]["op"] = "embedding2"
    with pytest.raises(ArtifactError, match="needs a newer autodeploy"):
        validate(Program.from_json(data))


def test_deep_parts_are_refused():
    data = tiny_program().to_json()
    inner = data["instructions"][0]
    for _ in range(10):
        inner["parts"] = [dict(inner)]
        inner = inner["parts"][0]
    with pytest.raises(ArtifactError, match="nest deeper"):
        Program.from_json(data)


def test_temporaries_of_parts_are_not_visible_outside():
    program = tiny_program()
    program.values.append(Value("temporary", "act", ("T", 8)))
    composite = program.instructions[3]
    composite.parts.append(replace(composite.parts[1], outputs=[10]))
    validate(program)
    program.instructions[4].inputs = [v(10)]
    with pytest.raises(ArtifactError, match="read before it is written"):
        validate(program)


def test_non_finite_attributes_survive():
    program = tiny_program()
    program.instructions[2].attrs["softcap"] = math.inf
    text = json.dumps(program.to_json(), allow_nan=False)
    assert '{"number": "inf"}' in text
    assert Program.from_json(json.loads(text)).instructions[2].attrs["softcap"] == math.inf


def test_an_operand_is_a_value_or_a_param():
    program = tiny_program()
    program.instructions[0].inputs[0] = Operand()
    with pytest.raises(ArtifactError, match="a value or a param"):
        validate(program)
    assert p(1).param == 1
