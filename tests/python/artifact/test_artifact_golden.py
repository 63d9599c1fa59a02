"""The golden artifact: what it holds has not changed, both as bytes and as numbers."""

import importlib.util
import json
from importlib.resources import files

import jsonschema
import numpy as np
import pytest

from autodeploy.artifact import read_artifact
from autodeploy.weights.checkpoint import tensor_reader
from autodeploy.weights.evaluate import evaluate
from autodeploy.weights.weight_program import WeightProgram


@pytest.fixture(scope="module")
def golden(data_dir):
    return data_dir / "golden" / "tiny"


def script(data_dir):
    spec = importlib.util.spec_from_file_location("make_golden", data_dir / "golden" / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_params_and_logits(data_dir, golden):
    artifact = read_artifact(golden)
    weights = WeightProgram.from_json(artifact.weights)
    read = tensor_reader(weights.sources, weights.tensors, golden)
    want = np.frombuffer((golden / "expected.bin").read_bytes(), "<f4")
    params, at = {}, 0
    assert [p.name for p in weights.params] == [p.name for p in artifact.program.params]
    for param in weights.params:
        values = np.concatenate([evaluate(s.expr, read).to_f32().reshape(-1) for s in param.segments])
        # exp differs in the last bit between processors
        np.testing.assert_allclose(values, want[at : at + values.size], rtol=3e-7, err_msg=param.name)
        params[param.name] = values
        at += values.size
    assert at == want.size

    facts = json.loads((golden / "expected.json").read_text())
    np.testing.assert_allclose(script(data_dir).logits(params), facts["logits"], rtol=1e-4, atol=1e-4)


def test_it_is_what_the_script_writes(data_dir, golden, tmp_path):
    """A format that changes without a new version shows here."""
    script(data_dir).make(tmp_path / "tiny")
    for path in sorted(golden.iterdir()):
        if not path.name.startswith("expected"):
            assert (tmp_path / "tiny" / path.name).read_bytes() == path.read_bytes(), path.name


def test_it_fits_the_schemas(golden):
    schemas = files("autodeploy.artifact") / "schemas"
    for name in ("artifact", "program", "weights"):
        schema = json.loads((schemas / f"{name}.schema.json").read_text())
        jsonschema.validate(json.loads((golden / f"{name}.json").read_text()), schema)
