"""The published schemas accept what we write, and agree with the tables of the validator."""

import json
from importlib.resources import files

import jsonschema
import pytest
from artifact_programs import tiny_program

from autodeploy.artifact import Provenance, write_artifact
from autodeploy.artifact.op_table import OPS, REGION_OPS

SCHEMAS = files("autodeploy.artifact") / "schemas"


def schema(name):
    loaded = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(loaded)
    return loaded


def test_program_schema():
    data = json.loads(json.dumps(tiny_program().to_json()))
    jsonschema.validate(data, schema("program"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version", "major"), 2),
        (("params", 0, "shape", 0), -1),
        (("values", 2, "shape", 0), "0*T"),
        (("values", 2, "dtype"), "f64"),
        (("values", 2, "more"), 1),
        (("instructions", 0, "op"), "unheard_of"),
        (("instructions", 2, "in", 0, "offset"), "x"),
        (("instructions", 0, "in", 0), {"v": 1, "p": 1}),
        (("instructions", 0, "in", 0), {"v": 1, "shape": [1]}),
        (("states", 0, "kind"), "slot"),
        (("regions", 0, "nodes", 0), {"op": "add", "value": 3, "dtype": "act"}),
    ],
)
def test_program_schema_refuses(path, value):
    data = json.loads(json.dumps(tiny_program().to_json()))
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema("program"))


def test_the_schema_lists_the_ops_of_the_table():
    program = schema("program")
    assert program["$defs"]["instruction"]["properties"]["op"]["enum"] == list(OPS)
    nodes = program["$defs"]["node"]["oneOf"][1]["properties"]["op"]["enum"]
    assert nodes == [op for op in REGION_OPS if op != "const"]


def test_artifact_schema(tmp_path):
    provenance = Provenance("x", versions={"torch": "2"}, options={"pack": True})
    target = write_artifact(tmp_path / "a", tiny_program(), {"format": "autodeploy.weights"}, provenance,
                            {"constants.bin": b"", "chat_template.jinja": b"{{ x }}"})  # fmt: skip
    jsonschema.validate(json.loads((target / "artifact.json").read_text()), schema("artifact"))
