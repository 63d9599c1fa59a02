"""The bench on a GPU, end to end on the emulated one; costs, rounds and pictures."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from autodeploy.cli.bench import gpu_round, plot
from autodeploy.cli.bench.gpu_costs import StepCosts, StepShape, expert_ids
from autodeploy.cli.bench.gpu_report import report, round_table
from autodeploy.cli.bench.gpu_roofline import rates
from autodeploy.cli.bench.gpu_setting import GPU_PARTS
from devices import DEVICES
from tiny_workshop import ROOT, environment, has_engine, run_shell

ENTRIES = json.loads((ROOT / "tests" / "data" / "e2e.json").read_text())["models"]
SPARSE = next(entry["name"] for entry in ENTRIES if entry["group"] == "states")
SMALL = "--prompt-len 8 --new-tokens 4 --num-seqs 2 --batch-sizes 1,2 --rounds 1 --threads 1 --product 16"
SMALL += " --copy-memory 64KiB --load-format dummy --dummy-routing uniform"
needs_engine = pytest.mark.skipif(not has_engine(), reason="the C++ engine was not built")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with an artifact of a model with experts, without weights."""
    from autodeploy.testing.tiny_config import tiny_config

    folder = tmp_path_factory.mktemp("bench")
    tiny_config(SPARSE).save_pretrained(folder / "model")
    done = run_shell("autodeploy compile model -o artifact --load-format dummy", folder, folder / "cache")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.e2e
@needs_engine
@pytest.mark.parametrize("device", DEVICES)
def test_all_parts(device, workshop):
    done = run_shell(
        f"autodeploy bench artifact --device {device} {SMALL} --json found.json", workshop, workshop / "cache"
    )
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads((workshop / "found.json").read_text())
    parts = found["parts"]
    assert [*parts] == [*GPU_PARTS]
    assert found["errors"] == {}
    assert parts["start"]["process_to_first_token_seconds"] > parts["start"]["open_seconds"] > 0
    assert parts["latency"]["token_ms"] > 0
    assert parts["throughput"]["tokens_per_second"] > 0
    for name in ("latency", "throughput", "gap"):
        assert parts[name]["replayed_part"] == 1.0
    assert parts["gap"]["step_gap_us"]["count"] > 0
    points = parts["curve"]["points"]
    assert [point["num_seqs"] for point in points] == [1, 2]
    assert all(point["tokens_per_second"] == point["num_seqs"] * point["user_tokens_per_second"] for point in points)
    steps = parts["roofline"]["steps"]
    assert [(step["num_seqs"], step["new_tokens"]) for step in steps] == [(1, 1), (2, 1), (1, 8)]
    for step in steps:
        assert sum(kernel["us"] for kernel in step["kernels"]) == pytest.approx(step["total_us"])
        assert sum(kernel["time_part"] for kernel in step["kernels"]) == pytest.approx(1)
        assert all(kernel["bytes"] > 0 for kernel in step["kernels"])
        assert step["experts_hit"]
    for words in ("tokens/s per user", "roofline on", "of ceiling", "experts hit in a layer", "token ms"):
        assert words in done.stdout


def test_what_does_not_fit_is_said(cli, tmp_path):
    for flags, words in (
        (["x", "--device", "cuda", "--part", "rates"], "--part: expected some of start"),
        (["x", "--part", "gap"], "--part: expected some of rates"),
        (["x", "--dummy-routing", "uniform"], "--dummy-routing: expected a GPU"),
        (["x", "--device", "cuda", "--tool", "x", "--exact"], "expected flags of a GPU, found --tool, --exact"),
        (["x", "--device", "cuda", "--batch-sizes", "1,two"], "--batch-sizes: expected numbers"),
        (["x", "--device", "cuda", "--part", "curve", "-o", "x.png"], "-o: expected --json FILE"),
        (["--plot", "x.json"], "--plot: expected -o PNG"),
        ([], "expected MODEL, or --plot FILE"),
    ):
        code, _, err = cli("bench", *flags)
        assert code == 2, flags
        assert words in err


@pytest.mark.e2e
@needs_engine
def test_a_part_that_fails_does_not_end_the_bench(workshop):
    # Batches of no sequences are refused by the setting; one that is too long for the model fails in its part.
    flags = SMALL.replace("--prompt-len 8", "--prompt-len 1000000") + " --part latency --part throughput"
    done = run_shell(
        f"autodeploy bench artifact --device cuda-emulated {flags} --json bad.json || echo status $?",
        workshop,
        workshop / "cache",
    )
    assert "status 1" in done.stdout
    found = json.loads((workshop / "bad.json").read_text())
    assert [*found["errors"]] == ["latency", "throughput"]
    assert "latency: failed" in done.stdout


# ---- costs ----


def view(v: int, **more: object) -> dict:
    return {"v": v, **more}


PROGRAM = {
    "params": [
        {"name": "w", "shape": [6, 4], "dtype": "act"},
        {"name": "e", "shape": [8, 6, 4], "dtype": "act"},
        {"name": "t", "shape": [100, 4], "dtype": "act"},
    ],
    "values": [
        {"name": "ids", "dtype": "i64", "shape": ["T"]},
        {"name": "x", "dtype": "act", "shape": ["T", 4]},
        {"name": "n", "dtype": "act", "shape": ["T", 4]},
        {"name": "y", "dtype": "act", "shape": ["T", 6]},
        {"name": "chosen", "dtype": "i64", "shape": ["T", 2]},
        {"name": "z", "dtype": "act", "shape": ["2*T", 6]},
        {"name": "a", "dtype": "act", "shape": ["T", 2, 3]},
    ],
    "states": [
        {"name": "kv", "kind": "paged", "window": 0, "components": [{"name": "k", "shape": [1, 3], "dtype": "act"}]},
        {"name": "h", "kind": "slot", "components": [{"name": "h", "shape": [5], "dtype": "f32"}]},
    ],
    "outputs": {"logits": 6},
    "instructions": [
        {"op": "embedding", "in": [view(0), {"p": 2}], "out": [1]},
        {"op": "rms_norm", "in": [view(1), None], "out": [2]},
        {"op": "linear", "in": [view(2), {"p": 0}, None], "out": [3]},
        {"op": "expert_linear", "in": [view(2), {"p": 1}, view(4), None], "out": [5]},
        {
            "op": "attention",
            "in": [view(3, shape=["T", 2, 3]), None, None],
            "out": [6],
            "states": [0],
            "attrs": {"causal": True, "window": 0},
        },
        {"op": "ssd", "in": [view(3)], "out": [], "states": [1]},
    ],
}


def test_costs_of_instructions():
    step = StepShape((10, 7), (1, 3))  # four tokens
    costs = StepCosts(PROGRAM, step, 2, {4: 3})
    assert costs.of_launch([0]) == (4 * 8 + 4 * 4 * 2 + 4 * 4 * 2, 0)
    assert costs.of_launch([1]) == (2 * 4 * 4 * 2, 0)
    assert costs.of_launch([2]) == (4 * 4 * 2 + 6 * 4 * 2 + 4 * 6 * 2, 2 * 4 * 6 * 4)
    # Three of the eight experts; the result is read by nobody.
    assert costs.of_launch([3]) == (4 * 4 * 2 + 3 * 6 * 4 * 2 + 4 * 2 * 8, 2 * 8 * 6 * 4)
    assert StepCosts(PROGRAM, step, 2).of_launch([3])[0] == 4 * 4 * 2 + 8 * 6 * 4 * 2 + 4 * 2 * 8
    # 17 tokens are read and 4 written; a query sees the keys up to its own.
    pairs = 10 + (5 + 6 + 7)
    assert costs.of_launch([4]) == (4 * 6 * 2 + (17 + 4) * 3 * 2 + 4 * 6 * 2, pairs * 2 * (6 + 6))
    assert costs.of_launch([5]) == (4 * 6 * 2 + 2 * 2 * 5 * 4, 0)
    assert expert_ids(PROGRAM) == {4: 8}


def test_costs_of_a_launch_that_stands_for_several():
    costs = StepCosts(PROGRAM, StepShape((10, 7), (1, 3)), 2)
    # The norm's result is read by the experts, too: it is written, and not read again.
    both = (4 * 4 * 2 + 6 * 4 * 2 + (4 * 6 + 4 * 4) * 2, 2 * 4 * 6 * 4)
    assert costs.of_plan([{"instruction": 2, "covers": [1, 2]}]) == [both]
    # What was taken apart costs what it costs once.
    parts = [{"instruction": 2, "part": True}, {"instruction": 2, "part": True}, {"instruction": 3}]
    assert costs.of_plan(parts) == [costs.of_launch([2]), (0, 0), costs.of_launch([3])]


def test_windows_and_masks_bound_what_attention_costs():
    program = json.loads(json.dumps(PROGRAM))
    program["states"][0]["window"] = 4
    program["instructions"][4]["attrs"] = {"causal": True, "window": 4}
    moved, operations = StepCosts(program, StepShape((10,), (1,)), 2).of_launch([4])
    assert moved == 6 * 2 + (5 + 1) * 3 * 2 + 6 * 2
    assert operations == 4 * 2 * 12
    program["instructions"][4]["attrs"] = {"causal": False, "window": 0}
    assert StepCosts(program, StepShape((10,), (2,)), 2).of_launch([4])[1] == 20 * 2 * 12


def test_parts_of_ceilings():
    ceilings = {"copy_bytes_per_second": 1e12, "operations_per_second": 1e14}
    found = rates({"us": 10.0, "bytes": 5_000_000, "operations": 10**8}, 40.0, ceilings)
    assert found["time_part"] == 0.25
    assert found["copy_part"] == pytest.approx(0.5)
    assert found["product_part"] == pytest.approx(0.1)
    assert found["part_of_ceiling"] == found["copy_part"]


# ---- rounds ----


def fake_bench(monkeypatch, outcomes):
    """In place of processes: outcomes by (artifact, part) are JSON to write, or a status."""
    asked = []

    def run(command, **options):
        words = [str(word) for word in command]
        artifact, part = words[4], words[words.index("--part") + 1]
        asked.append((artifact, part, words[words.index("--json") + 2 :]))
        outcome = outcomes.get((artifact, part), {"parts": {part: {"value": 1.0}}, "errors": {}})
        if isinstance(outcome, type):
            raise outcome(command, options["timeout"])
        if isinstance(outcome, dict):
            Path(words[words.index("--json") + 1]).write_text(json.dumps(outcome))
        return subprocess.CompletedProcess(command, 0 if isinstance(outcome, dict) else outcome, "", "it broke\n")

    monkeypatch.setattr(gpu_round.subprocess, "run", run)
    return asked


def test_a_round_goes_on_where_it_stopped(monkeypatch, tmp_path):
    half = {"parts": {"gap": {"value": 2.0}}, "errors": {"gap": "RuntimeError: short"}}
    outcomes = {("a", "gap"): half, ("b", "latency"): 1, ("b", "gap"): subprocess.TimeoutExpired}
    asked = fake_bench(monkeypatch, outcomes)
    said: list[str] = []
    flags = ["--num-seqs", "2"]
    missing = gpu_round.run_round(tmp_path, ["a", "b"], ["latency", "gap"], flags, 1000.0, said.append)
    assert missing == 3
    assert [entry[:2] for entry in asked] == [("a", "latency"), ("a", "gap"), ("b", "latency"), ("b", "gap")]
    assert all(entry[2] == flags for entry in asked)
    assert json.loads((tmp_path / "a.latency.json").read_text())["parts"]["latency"] == {"value": 1.0}
    assert not (tmp_path / "a.gap.json").exists()
    assert json.loads((tmp_path / "a.gap.unfinished.json").read_text()) == half
    assert "it broke" in (tmp_path / "b.latency.error.txt").read_text()
    assert any("b.latency.json: failed: it broke" in line for line in said)
    assert any("when the time was up" in line for line in said)
    # What is there is not measured again, and what went wrong is.
    outcomes.clear()
    asked.clear()
    assert gpu_round.run_round(tmp_path, ["a", "b"], ["latency", "gap"], flags, 1000.0, said.append) == 0
    assert [entry[:2] for entry in asked] == [("a", "gap"), ("b", "latency"), ("b", "gap")]
    assert not (tmp_path / "b.latency.error.txt").exists()
    asked.clear()
    assert gpu_round.run_round(tmp_path, ["a", "b"], ["latency", "gap"], flags, 1000.0, said.append) == 0
    assert asked == []


def test_a_round_without_time_starts_nothing(monkeypatch, tmp_path):
    asked = fake_bench(monkeypatch, {})
    said: list[str] = []
    assert gpu_round.run_round(tmp_path, ["a"], ["gap"], (), 1.0, said.append) == 1
    assert asked == []
    assert "no time is left" in said[0]
    with pytest.raises(ValueError, match="different names"):
        gpu_round.run_round(tmp_path, ["x/a", "y/a"], ["gap"], (), 100.0, said.append)


@pytest.mark.e2e
@needs_engine
def test_the_script_of_a_round(workshop, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("gpu_round_script", ROOT / "benchmarks" / "gpu_round.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, value in environment(workshop / "cache").items():
        monkeypatch.setenv(name, value)
    arguments = [str(workshop / "results"), str(workshop / "artifact"), "--parts", "latency", "--device"]
    arguments += ["cuda-emulated", "--", *SMALL.split()]
    assert script.main(arguments) == 0
    said = capsys.readouterr().out
    assert "artifact.latency.json: measured" in said
    assert "ms/token" in said
    assert script.main(arguments) == 0
    assert "measured" not in capsys.readouterr().out


# ---- tables and pictures ----


def test_tables():
    times = {"count": 5, "median": 12.0, "p95": 20.0}
    parts = {
        "start": {"process_to_first_token_seconds": 1.5, "open_seconds": 0.5},
        "gap": {"decode_step_us": times, "step_gap_us": times, "replayed_part": 1.0},
        "throughput": {"tokens_per_second": 12345.6, "replayed_part": 0.5},
    }
    table = round_table({"m": parts, "empty": {}})
    assert "12,346" in table
    assert "50 %" in table
    text = report({"parts": {"gap": parts["gap"]}, "errors": {"start": "no memory"}})
    assert "start: failed: no memory" in text
    assert "100 %" in text
    curve = {"points": [{"num_seqs": 4, "error": "too large"}]}
    assert "too large" in report({"parts": {"curve": curve}})


def curve_file(folder: Path, points: list[dict]) -> Path:
    path = folder / "curve.json"
    found = {"model": "x/some", "device": {"name": "A GPU"}, "parts": {"curve": {"points": points}}}
    path.write_text(json.dumps(found))
    return path


def test_a_picture_from_the_json(cli, tmp_path):
    points = [
        {"num_seqs": 1, "tokens_per_second": 100.0, "user_tokens_per_second": 100.0},
        {"num_seqs": 2, "error": "too large"},
        {"num_seqs": 4, "tokens_per_second": 300.0, "user_tokens_per_second": 75.0},
    ]
    path, out = curve_file(tmp_path, points), tmp_path / "curve.png"
    assert plot.read_curves([path]) == {"some, A GPU": [points[0], points[2]]}
    code, said, err = cli("bench", "--plot", str(path), "-o", str(out))
    if importlib.util.find_spec("matplotlib") is None:
        assert code == 2
        assert (
            f"pip install autodeploy[bench], here or where the JSON is copied to, then: autodeploy bench --plot {path}"
            in err
        )
        assert not out.exists()
    else:
        assert (code, said.strip()) == (0, str(out))
        assert out.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_what_is_no_curve(cli, tmp_path):
    (tmp_path / "other.json").write_text("[]")
    files = [tmp_path / "missing.json", tmp_path / "other.json", curve_file(tmp_path, [])]
    for path in files:
        code, _, err = cli("bench", "--plot", str(path), "-o", str(tmp_path / "x.png"))
        assert code == 2
        assert str(path) in err
    assert sys.modules.get("matplotlib") is None or not (tmp_path / "x.png").exists()
