"""Made-up weights: models that are nothing but a configuration, compiled, served and measured."""

from __future__ import annotations

import json
import math
from importlib.resources import files

import jsonschema
import pytest

from autodeploy import LLM, SamplingParams
from autodeploy.artifact import read_artifact
from autodeploy.testing.tiny_config import tiny_config
from autodeploy.verify.params import load_params
from autodeploy.weights.errors import WeightError
from autodeploy.weights.weight_program import WeightProgram
from devices import DEVICES
from tiny_workshop import ROOT, environment, has_engine, make_checkpoint, run_shell

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not has_engine(), reason="the C++ engine was not built")]

MODELS = [entry["name"] for entry in json.loads((ROOT / "tests" / "data" / "e2e.json").read_text())["models"]]
SOME = MODELS[::3]
PARAMS = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=4)
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], list(range(1, 40))]


def write_config(model, folder, **changes):
    """A folder with a config.json and nothing else."""
    tiny_config(model).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert [p.name for p in folder.iterdir()] == ["config.json"]
    return folder


def answers(model, **options):
    """Token ids and log probabilities of the prompts."""
    with LLM(model, load_format="dummy", max_seq_len=64, max_num_seqs=4, threads=1, progress=False, **options) as llm:
        outputs = [output.outputs[0] for output in llm.generate(PROMPTS, PARAMS)]
        assert llm.plan()["limits"]["load_format"] == "dummy"
    logprobs = [logprob.logprob for o in outputs for place in o.logprobs for logprob in place.values()]
    return [o.token_ids for o in outputs], logprobs


@pytest.mark.parametrize("device", DEVICES)
def test_devices_make_the_same_weights_up(device, workshop):
    options = {"dummy_seed": 3, "max_batch_tokens": 64}
    tokens, logprobs = answers(workshop / "artifact", **options)
    found, near = answers(workshop / "artifact", device=device, dtype="float32", **options)
    assert found == tokens
    assert near == pytest.approx(logprobs, abs=1e-4)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    for name, value in environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with a configuration, and the artifact that the command line made of it."""
    folder = tmp_path_factory.mktemp("dummy")
    write_config(MODELS[0], folder / "model", dtype="bfloat16", max_position_embeddings=1024)
    done = run_shell("autodeploy compile model -o artifact --load-format dummy", folder, folder / "cache")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("model", SOME)
def test_a_configuration_alone_is_served(model, tmp_path, own_cache):
    folder = write_config(model, tmp_path / "model")
    tokens, logprobs = answers(folder)
    assert all(math.isfinite(x) for x in logprobs)
    assert [len(ids) for ids in tokens] == [12, 12, 12]
    assert answers(folder, dummy_seed=0) == (tokens, logprobs)
    assert answers(folder, dummy_seed=1)[1] != logprobs


def test_the_artifact_says_that_it_has_no_weights(workshop):
    artifact = read_artifact(workshop / "artifact")
    assert artifact.provenance.options["load_format"] == "dummy"
    assert not any(name.startswith("tokenizer") for name in artifact.files)
    schema = json.loads((files("autodeploy.artifact") / "schemas" / "weights.schema.json").read_text())
    jsonschema.validate(artifact.weights, schema)
    program = WeightProgram.from_json(artifact.weights)
    assert program.to_json() == artifact.weights
    assert artifact.weights["version"] == {"major": 1, "minor": 1}
    absent = {name: t for name, t in program.tensors.items() if t.source is None}
    assert absent
    assert {t.format for t in absent.values()} == {"bf16"}
    with pytest.raises(ValueError, match="compiled from a configuration alone"):
        load_params(artifact)


def test_without_load_format_the_error_says_what_to_do(workshop):
    with pytest.raises(ValueError, match=r"\[weights: .*load_format=dummy"):
        LLM(workshop / "artifact", progress=False)
    done = run_shell("autodeploy compile model -o other", workshop, workshop / "cache")
    assert done.returncode == 2
    assert "load_format=dummy" in done.stderr


def test_the_command_line(workshop):
    def shell(script):
        return run_shell(script, workshop, workshop / "cache")

    flags = "artifact --load-format dummy --max-seq-len 64"
    done = shell(f"autodeploy generate {flags} --prompt-ids 1,2,3 --max-tokens 4 --ignore-eos")
    assert done.returncode == 0, done.stderr
    assert len([int(token) for token in done.stdout.split()]) == 4
    done = shell(f"autodeploy generate {flags} --prompt hello")
    assert done.returncode == 2
    assert "the artifact has no tokenizer; give token ids" in done.stderr
    done = shell("autodeploy compile model -o packed --pack --load-format dummy")
    assert done.returncode == 2
    assert "--pack" in done.stderr
    done = shell("autodeploy inspect artifact --section memory --load-format dummy --max-seq-len 64")
    assert done.returncode == 0, done.stderr
    parts = "--part rates --part cold-start --part compile --rounds 1 --threads 1 --case 'prefill 512'"
    done = shell(f"autodeploy bench model --load-format dummy {parts} --json -")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rates"][0]["median"] > 0
    assert found["facts"]["cold_start_python_seconds"]["median"] > 0


def test_artifacts_with_weights_can_be_served_without_them(tmp_path, own_cache):
    checkpoint = make_checkpoint(tmp_path / "model")
    done = run_shell(
        "autodeploy compile model -o linked && autodeploy compile model -o packed --pack", tmp_path, tmp_path / "cache"
    )
    assert done.returncode == 0, done.stderr
    linked = answers(tmp_path / "linked", dummy_seed=3)
    assert answers(tmp_path / "packed", dummy_seed=3) == linked
    for path in checkpoint.glob("*.safetensors"):
        path.unlink()
    assert answers(tmp_path / "linked", dummy_seed=3) == linked
    assert answers(checkpoint, dummy_seed=3)[0] != answers(checkpoint, dummy_seed=4)[0]


def test_a_quantized_configuration_is_of_plain_weights(tmp_path, own_cache):
    folder = write_config(MODELS[0], tmp_path / "model", quantization_config={"quant_method": "fp8"}, dtype="float16")
    done = run_shell("autodeploy compile model -o artifact --load-format dummy", tmp_path, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert "quantization_config (fp8) is left out" in done.stdout
    assert {t["format"] for t in read_artifact(tmp_path / "artifact").weights["tensors"].values()} <= {"f16", "f32"}
    assert answers(folder) == answers(tmp_path / "artifact")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"load_format": "random"}, "load_format: expected one of auto, dummy"),
        ({"load_format": "dummy", "dummy_seed": -1}, "dummy_seed: expected an integer from 0"),
        ({"dummy_seed": 4}, "expected load_format dummy beside it"),
    ],
)
def test_options_out_of_range(options, words, workshop):
    with pytest.raises(ValueError, match=words):
        LLM(workshop / "artifact", progress=False, **options)


def test_a_tensor_that_is_nowhere_has_no_offset():
    tensor = {"source": None, "offset": 8, "nbytes": 4, "format": "f32", "shape": [1]}
    raw = {"format": "autodeploy.weights", "version": {"major": 1, "minor": 1}, "sources": [], "params": []}
    with pytest.raises(WeightError, match="expected the offset 0"):
        WeightProgram.from_json(raw | {"tensors": {"t": tensor}, "report": {"unused": [], "notes": []}})


@pytest.mark.parametrize("fraction", [0, 1.5, True, "most"])
def test_a_fraction_out_of_range(fraction, workshop):
    with pytest.raises(ValueError, match="gpu_memory_fraction: expected a number above 0"):
        LLM(workshop / "artifact", load_format="dummy", gpu_memory_fraction=fraction, progress=False)
