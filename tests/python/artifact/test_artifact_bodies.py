"""Bodies of `over_keys`: JSON round trip, schema, and what validation refuses."""

import json
from importlib.resources import files

import jsonschema
import pytest
from over_keys_programs import CASES, attention_case, index_case

from autodeploy.artifact import ArtifactError, Program, validate
from autodeploy.artifact.dims import Poly, body_scope


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_round_trip_and_schema(case):
    program, _ = case.program()
    data = json.loads(json.dumps(program.to_json(), allow_nan=False))
    assert Program.from_json(data) == program
    schema = json.loads((files("autodeploy.artifact") / "schemas" / "program.schema.json").read_text())
    jsonschema.validate(data, schema)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_seeds_of_the_fuzz_target_are_these_programs(case, data_dir):
    path = data_dir / "fuzz" / f"program_body_{case.name}.json"
    program, _ = case.program()
    assert json.loads(path.read_text()) == json.loads(json.dumps(program.to_json())), f"write {path} anew"


def test_sizes_of_a_body_start_at_what_it_asks_for():
    scope = body_scope(4, 10)
    assert scope.least_rows == 3
    assert scope.least("4*S") == 12
    assert scope.least("2*N*S") == 6
    assert Poly({(0, 1): 2, (0, 0): -6}).is_never_negative(scope)
    assert not Poly({(0, 1): 2, (0, 0): -7}).is_never_negative(scope)
    assert not Poly({(0, 1): 1, (1, 0): -1}).is_never_negative(scope)  # N may exceed S


BROKEN = [
    (("bodies", 0, "block"), 0, "integer from 1"),
    (("bodies", 0, "min_keys"), -1, "integer from 0"),
    (("bodies", 0, "inputs", 0, "role"), "value", "expected the role"),
    (("bodies", 0, "inputs", 0, "dtype"), "f32", "expected value 0 to be f32"),
    (("bodies", 0, "inputs", 2, "role"), "query", "for the role query"),
    (("bodies", 0, "inputs", 0, "role"), "key", "for the role key"),
    (("bodies", 0, "inputs", 0, "role"), "fixed", "for the role fixed"),
    (("bodies", 0, "values", 6, "shape", 0), "T", "multiples of N, S, N.S"),
    (("values", 2, "shape", 0), "N", "multiples of T, R"),
    (("bodies", 0, "outputs"), [], "at least one output"),
    (("bodies", 0, "outputs"), [6, 6], r"expected the shape \[N"),
    (("bodies", 0, "outputs"), [99, 6], "value index below"),
    (("bodies", 0, "instructions", 0, "op"), "attention", "a body may hold"),
    (("bodies", 0, "instructions", 0, "op"), "over_keys", "a body may hold"),
    (("bodies", 0, "instructions", 0, "in", 0), {"p": 0}, "param index below 0"),
    (("bodies", 0, "instructions", 0, "in", 0), {"v": 8}, "read before it is written"),
    (("bodies", 0, "instructions", 0, "states"), [0], "expected 0 states"),
    (("bodies", 0, "instructions", 1, "in", 0, "strides", 0), "N", "may leave its storage"),
    (("bodies", 0, "instructions", 3, "attrs", "region"), 2, "region index below 2"),
    (("bodies", 0, "instructions", 8, "in", 1), {"v": 4}, "expected the shape .N, K."),
    (("instructions", 0, "attrs", "body"), 1, "body index below 1"),
    (("instructions", 0, "states"), [], "expected a state of the components"),
    (("instructions", 0, "in", 0), {"v": 3}, "expected dtype act"),
    (("instructions", 0, "in"), [{"v": 2}], "expected 6 operands"),
    (("states", 0, "components", 0, "shape"), [4, 2], "expected a state of the components"),
    (("states", 0, "components", 0, "dtype"), "i64", "expected a state of the components"),
    (("states", 0, "window"), 8, "without window"),
    (("values", 6, "shape", 1), 2, "expected the shape .'T', 3"),
]


@pytest.mark.parametrize(
    ("path", "value", "message"), BROKEN, ids=[".".join(map(str, b[0])) + str(i) for i, b in enumerate(BROKEN)]
)
def test_broken_bodies_are_refused(path, value, message):
    data = json.loads(json.dumps(attention_case().program()[0].to_json()))
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(ArtifactError, match=message):
        validate(Program.from_json(data))


def test_a_weight_is_a_whole_fixed_input():
    data = attention_case().program()[0].to_json()
    data["bodies"][0]["instructions"][8]["in"][1] |= {"shape": [3, 8], "strides": [8, 1], "offset": 0}
    with pytest.raises(ArtifactError, match="expected a whole fixed input for weight"):
        validate(Program.from_json(data))
    data = attention_case().program()[0].to_json()
    data["instructions"][0]["in"][5] |= {"shape": [3, 8], "strides": [8, 1], "offset": 0}
    with pytest.raises(ArtifactError, match="whole param for operand 5"):
        validate(Program.from_json(data))


def test_top_k_needs_that_many_keys():
    data = index_case().program()[0].to_json()
    data["bodies"][0]["min_keys"] = 4
    with pytest.raises(ArtifactError, match="expected k from 1 to S, found 5"):
        validate(Program.from_json(data))
