"""A bundle of cases: written, judged on devices, and what is wrong in it found."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autodeploy.cli.main import main
from autodeploy.conformance.bundle import write_bundle
from autodeploy.conformance.case import load_facts
from autodeploy.conformance.device_case import judge_entry, why
from autodeploy.conformance.device_checks import NAMES, Bench
from autodeploy.conformance.device_report import put_section, section_of, summary
from autodeploy.conformance.entry import ARTIFACT, FILE, entry_key, error_of, read_entry
from autodeploy.verify.schedule import PlannedStep
from devices import device_param
from tiny_workshop import has_engine

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not has_engine(), reason="the engine was not built")]
CASES = load_facts()["sample"][:2]
ASKED = [([9, 8, 30, 12, 11], 4), ([70], 3)]
ON_CPU = [letter for letter in NAMES if letter not in "fgh"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    assert write_bundle(folder, CASES, asked=ASKED) == 0
    return folder


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def change(folder: Path, **values: Any) -> None:
    """Changes fields of the first request; `eager` of the entry."""
    data = json.loads((folder / FILE).read_text())
    eager = values.pop("eager", None)
    data["eager"] = eager or data["eager"]
    data["requests"][0] |= values
    (folder / FILE).write_text(json.dumps(data))


def judged(bundle: Path, device: str, file: Path) -> tuple[int, dict[str, Any]]:
    code = main(["conformance", "--from-bundle", str(bundle), "--device", device, "--json", str(file)])
    return code, json.loads(file.read_text())["results"]


def test_a_bundle_holds_what_judging_needs_and_is_not_made_twice(
    bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sorted(p.name for p in bundle.iterdir()) == sorted(CASES)
    entry = read_entry(bundle / CASES[0])
    assert [(len(r.prompt), len(r.following), len(r.best)) for r in entry.requests] == [(5, 4, 8), (1, 3, 3)]
    assert all(0 < way["mean"] < way["max"] < 1 for way in entry.eager.values()), entry.eager
    assert entry.requests[0].best[4:] == entry.requests[0].following
    before = (bundle / CASES[0] / FILE).stat().st_mtime_ns
    assert write_bundle(bundle, CASES, asked=ASKED) == 0
    assert (bundle / CASES[0] / FILE).stat().st_mtime_ns == before
    assert "2 of 2 entries" in capfd.readouterr().err
    with pytest.raises(ValueError, match="expected listed cases"):
        write_bundle(bundle, ["no such model"])


def test_judging_imports_no_transformers() -> None:
    code = "import sys, autodeploy.conformance.device_run; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("device", ["cpu", *(device_param(d) for d in ("cuda-emulated", "cuda"))])
def test_a_device_passes(device: str, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, results = judged(bundle, device, tmp_path / "results.json")
    wanted = list(NAMES) if device != "cpu" else ON_CPU
    for r in results.values():
        for letter in (x for x in wanted if x != "f"):  # a few tokens are too few for a fair maximum
            assert r["checks"][letter]["ok"], (letter, r["checks"][letter])
        assert list(r["checks"]) == wanted
        assert r["checks"]["a"]["rows"] == 6
        assert r["checks"]["b"]["tokens"] == 7
    if device == "cpu":
        assert code == 0
        assert judged(bundle, device, tmp_path / "results.json")[0] == 0
        assert "2 results found" in capfd.readouterr().err
    else:
        assert all(r["checks"]["g"]["steps"] > 3 and r["checks"]["h"]["steps"] > 1 for r in results.values())
        assert all(0 < x < 3 for r in results.values() for x in r["checks"]["f"]["ratios"]["loaded"].values())
        assert all(r["kernels"] and not r["selects"] for r in results.values())


def test_a_wrong_expectation_and_a_damaged_artifact_are_found(copy: Path, tmp_path: Path) -> None:
    first, second = (copy / name for name in CASES)
    following = list(read_entry(first).requests[0].following)
    following[-1] = (following[-1] + 1) % 100
    best = list(read_entry(first).requests[0].best)
    best[-1] = following[-1]
    gap = [1.0] * len(best)
    change(first, following=following, best=best, gap=gap)
    (second / ARTIFACT / "weights.bin").write_bytes(b"")
    code, results = judged(copy, "cpu", tmp_path / "results.json")
    assert code == 1
    assert results[CASES[0]]["status"] == "fail"
    assert all(not results[CASES[0]]["checks"][letter]["ok"] for letter in ("cpu", "b", "c", "d", "e"))
    assert f"request 0 token 7: expected token {following[-1]}, found" in results[CASES[0]]["reason"]
    assert results[CASES[1]]["status"] == "error"
    assert "weights.bin" in results[CASES[1]]["reason"]
    (first / FILE).write_text("{")
    assert entry_key(first) is None
    assert "make it again" in judge_entry(first, "cpu", "")["reason"]


def test_a_tie_is_followed_and_doubts_leave_room(copy: Path) -> None:
    folder = copy / CASES[0]
    request = read_entry(folder).requests[0]
    wrong = [(token + 1) % 100 for token in request.best]
    change(folder, following=[*request.following[:-1], wrong[-1]], best=wrong, gap=[1e-5] * len(wrong))
    result = judge_entry(folder, "cpu", "")
    assert result["checks"]["b"]["ok"]
    assert result["checks"]["b"]["ties"] == 1
    change(folder, gap=[1.0] * len(wrong), tie=len(wrong) - 1)
    result = judge_entry(folder, "cpu", "")
    assert (result["checks"]["b"]["ok"], result["checks"]["b"]["selection_ties"]) == (True, 1)
    change(folder, tie=None, largest=[2.0 * x for x in request.largest])
    result = judge_entry(folder, "cpu", "")
    assert "expected a largest logit" in why(result["checks"]["cpu"])


@pytest.mark.parametrize("device", [device_param("cuda-emulated")])
def test_an_error_of_one_check_leaves_the_others(device: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Bench) -> dict[str, Any]:
        raise RuntimeError("a launch failed")

    monkeypatch.setattr(Bench, "judge_engine", fails)
    change(copy / CASES[0], eager={"loaded": {"max": 1e-9, "mean": 1.0}, "cast": {"error": "none"}})
    result = judge_entry(copy / CASES[0], device, "")
    assert result["status"] == "fail"
    assert {letter for letter, check in result["checks"].items() if not check["ok"]} == {"e", "f"}
    assert "e: RuntimeError: a launch failed" in result["reason"]
    assert result["checks"]["f"]["ratios"]["loaded"]["max"] > 1e3
    assert "f: error as a part of" in result["reason"]
    change(copy / CASES[0], eager={way: {"error": "no kernel"} for way in ("loaded", "cast")})
    result = judge_entry(copy / CASES[0], device, "")
    assert result["checks"]["f"]["ok"]
    assert "loaded: no kernel" in result["checks"]["f"]["unjudged"]
    assert "0 of 0, 1 not judged" in summary({"x": result})


class Zeros:
    """A backend whose last logit of all is minus zero where it replays."""

    name = "zeros"

    def __init__(self, last: PlannedStep | None) -> None:
        self.last = last

    def step(self, planned: PlannedStep) -> np.ndarray:
        logits = np.zeros((len(planned.wanted), 3), np.float32)
        if planned is self.last:
            logits[-1, -1] = -0.0
        return logits


def test_replayed_steps_are_compared_bit_for_bit(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(read_entry(bundle / CASES[0]), bundle / CASES[0] / ARTIFACT, "some")
    last = bench.steps["d"][-1]
    monkeypatch.setattr(Bench, "backend", lambda self, device, act, replay=False: Zeros(last if replay else None))
    assert bench.judge_replay("bfloat16")["ok"]
    found = bench.judge_replay("float32")
    assert (found["ok"], found["wrong"], found["first"][0]) == (False, 1, "d")
    assert "1 of" in why(found)


def test_errors_of_logits() -> None:
    inf = np.inf
    assert error_of(np.float32([1, -inf, 3]), np.float32([1.5, -inf, 2])) == (1.0, 1.5)
    assert error_of(np.float32([1, np.nan]), np.float32([1, 2]))[0] == inf


def test_the_page_takes_a_whole_run_only(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Conformance\n\n## On a GPU\n\nold\n\n## Last\n\nkept\n")
    good = {"ok": True, "rows": 3, "tokens": 2, "ties": 1, "selection_ties": 0, "worst_error": 2e-6}
    bad = {"ok": False, "ratios": {"loaded": {"max": 1.25, "mean": 0.5}}}
    results = {
        "x": {"status": "pass", "checks": {"a": good}, "ops": {"linear": 2}, "kernels": ["linear.tiles"]},
        "y": {
            "status": "fail",
            "selects": True,
            "checks": {"a": good, "f": bad},
            "ops": {"linear": 1},
            "kernels": ["linear.tiles"],
        },
    }
    data = {"device": "cuda", "machine": {"name": "A GPU"}, "results": results}
    with pytest.raises(ValueError, match="without z"):
        put_section(data, page, ["x", "z"])
    with pytest.raises(ValueError, match="one on cpu"):
        put_section(data | {"device": "cpu"}, page, ["x"])
    for _ in range(2):
        put_section(data, page, ["x", "y"])
        text = page.read_text()
        assert text.startswith("# Conformance\n\n## Last\n\nkept\n\n## On a GPU\n\nThe listed cases on A GPU")
        assert "**1** of 2 pass everything, with 1 ops by 1 kernels" in text
        assert "| y | f: error as a part of that of transformers in bfloat16: max 1.25, mean 0.5 |" in text
        assert "of them models that choose experts or keys | 0 of 1 |" in text
        assert "and those that do not" not in text
        assert "old" not in text
    assert section_of(text) == text[text.index("## On a GPU") :].rstrip()
    assert "1 of 2 cases pass" in summary(results)
