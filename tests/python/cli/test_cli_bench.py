"""The bench's processes, rounds and tables, with engines that only say numbers."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from autodeploy.cli.bench import cases, results
from autodeploy.cli.bench.bandwidth import read_bandwidth
from autodeploy.cli.bench.one_off import seconds_to_output
from autodeploy.cli.bench.processes import EngineProcess, EngineSpec, run_rounds
from tiny_workshop import ROOT

ENGINE = """
import sys
from autodeploy.cli.bench.protocol import serve

def make_engine(options):
    if options.get("missing"):
        raise ImportError("no such library")
    count = 0
    print("noise of a library")
    def measure(case):
        nonlocal count
        count += 1
        if case["kind"] == options.get("cannot"):
            raise ValueError("not this")
        if options.get("dies") == count:
            sys.exit(3)
        return options["rate"] + count
    return measure, {"version": "1", "threads": options["threads"]}

if __name__ == "__main__":
    serve(make_engine)
"""


@pytest.fixture
def start(tmp_path):
    script = tmp_path / "engine.py"
    script.write_text(ENGINE)
    started = []

    def make(name: str, **options) -> EngineProcess:
        started.append(EngineProcess(EngineSpec(name, sys.executable, script, options), threads=2))
        return started[-1]

    yield make
    for engine in started:
        engine.close()


def test_rounds_take_turns(start):
    engines = [start("a", rate=100.0), start("b", rate=200.0), start("c", rate=300.0, cannot="prefill")]
    assert engines[0].facts["version"] == "1"
    assert engines[0].facts["threads"] == 2
    order: list[str] = []
    found = run_rounds(engines, cases.CASES[::2], 2, order.append)
    decode, prefill = cases.CASES[0].name, cases.CASES[2].name
    assert found[("a", decode)] == [103.0, 105.0]
    assert found[("b", prefill)] == [204.0, 206.0]
    assert ("c", prefill) not in found
    assert len(found[("c", decode)]) == 2
    firsts = [line.rsplit(" ", 1)[1] for line in order if line.startswith(("round 1", "round 2")) and decode in line]
    assert firsts == ["a", "b", "c", "b", "c", "a"]
    assert any("c cannot do" in line and "not this" in line for line in order)


def test_an_engine_that_is_not_there_or_dies(start):
    assert start("a", missing=True).unavailable == "no such library"
    engine = start("b", rate=1.0, dies=2)
    found = run_rounds([engine], cases.CASES[:1], 3, lambda text: None)
    assert found == {}


def test_memory_and_idling(start):
    engine = start("a", rate=1.0)
    assert engine.ask({"kind": "memory"})["rss_bytes"] > 1 << 20
    assert 0 <= engine.ask({"kind": "idle", "seconds": 0.3})["cpu_share"] < 0.2


def test_tables():
    rates = results.rates_to_json({("ours", "decode"): [90.0, 100.0, 110.0], ("it", "decode"): [50.0, 50.0, 50.0]})
    assert rates[0]["median"] == 100.0
    assert rates[0]["spread"] == pytest.approx(0.2)
    table = results.rates_table(rates, "ours")
    assert "2.00" in table
    assert "20 %" in table
    facts = results.facts_table({"weights_bytes": 2048, "load_seconds": 1.5, "idle_cpu_share": 0.001, "x": None})
    assert "2.0 KiB" in facts
    assert "1.5 s" in facts
    assert "0.1 %" in facts
    assert "not measured" in facts


def test_bandwidth_is_plausible():
    assert 1e8 < read_bandwidth(8 << 20, 2, seconds=0.05) < 1e13


def test_prompts_are_the_same_everywhere():
    ids = cases.prompt_ids(1000, 50, 7)
    assert ids == cases.prompt_ids(1000, 50, 7)
    assert ids != cases.prompt_ids(1000, 50, 8)
    assert len(ids) == 50
    assert all(0 <= i < 1000 for i in ids)
    assert all(0 <= i < 8 for i in cases.prompt_ids(8, 50, 1))


def test_time_to_the_first_output():
    script = "import time, sys; time.sleep(0.2); sys.stdout.write('1 '); sys.stdout.flush(); time.sleep(0.3)"
    assert 0.2 < seconds_to_output([sys.executable, "-c", script]) < 5
    with pytest.raises(RuntimeError, match="it broke"):
        seconds_to_output([sys.executable, "-c", "import sys; sys.exit('it broke')"])


@pytest.mark.parametrize(
    "flags",
    [["--engine", "x"], ["--engine", "x=python:/no/script"], ["--rounds", "0"], ["--idle-seconds", "-1"]],
)
def test_bad_flags(cli, artifact, flags):
    code, _, err = cli("bench", artifact, "--part", "rates", *flags)
    assert code == 2
    assert err.count("\n") == 1


def load_round():
    spec = importlib.util.spec_from_file_location("cpu_round", ROOT / "benchmarks" / "cpu_round.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["cpu_round"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_of_the_round(tmp_path, monkeypatch):
    cpu_round = load_round()
    machine = {"name": "A processor", "threads": 2, "features": ["avx2"]}

    def rate(engine: str, case: str, median: float) -> dict:
        return {"engine": engine, "case": case, "median": median, "min": median, "max": median, "spread": 0.0}

    parts = {
        "decode-1": {
            "rates": [rate(cpu_round.OURS, cpu_round.DECODE, 120.0), rate(cpu_round.RIVAL, cpu_round.DECODE, 60.0)],
            "facts": {
                cpu_round.OURS: {"weights_bytes": 100, "read_bytes_per_second": 1e9, "floor_tokens_per_second": 1e7}
            },
        },
        "compile": {"rates": [], "facts": {"compile_seconds": 30.0}},
    }
    made = []

    def fake_run(*command):
        made.append([str(part) for part in command])
        words = made[-1]
        if "--json" in words:
            path = Path(words[words.index("--json") + 1])
            path.write_text(json.dumps(parts.get(path.stem, {"rates": [], "facts": {}}) | {"machine": machine}))

    monkeypatch.setattr(cpu_round, "run", fake_run)
    (tmp_path / "m.gguf").write_text("")
    arguments = ["--model", str(tmp_path / "m.gguf"), "--work", str(tmp_path), "--out", str(tmp_path / "page.md")]
    assert cpu_round.main(arguments) == 0
    page = (tmp_path / "page.md").read_text()
    assert "| decode, 1 sequence, against llama.cpp | 2 | >= 1.5 | yes |" in page
    assert "| compile, cold process | 30 s | <= 25 s | no |" in page
    assert "| prefill of 512, against llama.cpp | not measured | >= 1.8 | |" in page
    benches = [words for words in made if "bench" in words]
    assert len(benches) == 7
    # What is there is not measured again.
    made.clear()
    cpu_round.main(arguments)
    assert not [words for words in made if "bench" in words]
