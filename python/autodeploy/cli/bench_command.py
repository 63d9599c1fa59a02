"""`autodeploy bench`: measurements, side by side with other engines."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import machine
from .bench.cases import CASES
from .options import add_dummy_seed, add_load_format, add_model_arguments

if TYPE_CHECKING:
    from .bench.processes import EngineProcess, EngineSpec

PARTS = ("rates", "bandwidth", "cold-start", "compile", "memory", "idle")
OWN, OWN_FLOAT32 = "autodeploy", "autodeploy float32"
_BIG_BUFFER = 1 << 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--artifact", metavar="DIR", help="an artifact of MODEL for ours, such as a packed one")
    parser.add_argument("--float32", metavar="DIR", help="a float32 checkpoint or artifact, for the float32 rows")
    parser.add_argument("--transformers", metavar="CHECKPOINT", help="measure transformers in float32 on this")
    parser.add_argument(
        "--engine",
        action="append",
        default=[],
        metavar="NAME=PYTHON:SCRIPT",
        help="another engine on MODEL: an interpreter and a script that serves autodeploy.cli.bench.protocol",
    )
    parser.add_argument("--tool", metavar="PATH", help="the C++ tool, for its cold start and memory")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be repeated (default: all)")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="only this rate")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds that take turns (default 5)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of every engine (default: all cores)")
    parser.add_argument("--idle-seconds", type=float, default=60.0, metavar="S", help="how long to watch it idle")
    add_load_format(parser)
    add_dummy_seed(parser)
    parser.add_argument("--exact", action="store_true", help="ours without the paths that round activations to 8 bits")
    parser.add_argument("--json", metavar="FILE", help="write everything to this file ('-' for stdout)")


def run(args: argparse.Namespace) -> int:
    from autodeploy.llm.engine_options import plugin_paths
    from autodeploy.llm.env import PLUGINS, parse_threads
    from autodeploy.llm.model_source import prepare_artifact
    from autodeploy.llm.progress import ProgressLine, wants_progress

    from .bench import results

    threads = machine.usable_threads() if args.threads is None else parse_threads(args.threads)
    if not 1 <= args.rounds <= 1000 or not 0 < args.idle_seconds <= 86400:
        raise ValueError("[bench] expected --rounds from 1 to 1000 and --idle-seconds up to 86400")
    parts = args.part or list(PARTS)
    found: dict[str, Any] = {"machine": _machine(threads), "model": args.model, "rounds": args.rounds, "rates": []}
    facts: dict[str, Any] = {}
    plugins = plugin_paths(args.plugins)
    if plugins:
        os.environ[PLUGINS.name] = ":".join(plugins)  # for the engines' own processes
    with ProgressLine(enabled=wants_progress()) as line:
        artifact = prepare_artifact(
            args.artifact or args.model,
            revision=args.revision,
            trust_remote_code=args.trust_remote_code,
            plugins=plugins,
            load_format=args.load_format,
            report=line.show,
        )
        specs = _engines(args, str(artifact))
        if "rates" in parts:
            found |= _rates(specs, args, threads, line.show)
        if "bandwidth" in parts:
            facts |= _bandwidth(artifact, args.float32, threads, found["rates"], line.show)
        steps: dict[str, Callable[[], dict[str, Any]]] = {
            "cold-start": lambda: _cold_start(args, artifact, threads),
            "compile": lambda: _compile(args),
            "memory": lambda: _memory(args, artifact, threads),
            "idle": lambda: _idle(specs[0], threads, args.idle_seconds),
        }
        for name, measure in steps.items():
            if name in parts:
                line.show(f"measuring {name}", force=True)
                facts |= measure()
    found["facts"] = facts
    if args.json == "-":
        print(json.dumps(found, indent=2))
        return 0
    if args.json is not None:
        Path(args.json).write_text(json.dumps(found, indent=2) + "\n")
    for engine, reason in found.get("unavailable", {}).items():
        print(f"{engine}: not measured: {reason}")
    if found["rates"]:
        print(results.rates_table(found["rates"], OWN))
    if facts:
        print(("\n" if found["rates"] else "") + results.facts_table(facts))
    return 0


def _load_options(args: argparse.Namespace) -> dict[str, Any]:
    return {"load_format": args.load_format, "dummy_seed": args.dummy_seed}


def _engines(args: argparse.Namespace, artifact: str) -> list[EngineSpec]:
    """Ours first, then the others on the same model."""
    from .bench.processes import TRANSFORMERS_SCRIPT, EngineSpec, own_engine

    specs = [own_engine(OWN, artifact, exact=args.exact, **_load_options(args))]
    if args.float32 is not None:
        specs.append(own_engine(OWN_FLOAT32, args.float32))
    if args.transformers is not None:
        options = {"model": args.transformers}
        specs.append(EngineSpec("transformers float32", sys.executable, TRANSFORMERS_SCRIPT, options))
    for text in args.engine:
        name, _, command = text.partition("=")
        python, _, script = command.rpartition(":")
        if not name or not python or not Path(script).is_file():
            raise ValueError(
                f"[bench] --engine: expected NAME=PYTHON:SCRIPT with a script that is there, found {text!r}"
            )
        specs.append(EngineSpec(name, python, Path(script), {"model": args.model}))
    return specs


def _rates(
    specs: list[EngineSpec], args: argparse.Namespace, threads: int, report: Callable[[str], None]
) -> dict[str, Any]:
    from .bench.processes import run_rounds
    from .bench.results import rates_to_json

    chosen = [case for case in CASES if args.case is None or case.name in args.case]
    with _running(specs, threads, report) as engines:
        unavailable = {engine.spec.name: engine.unavailable for engine in engines if engine.unavailable is not None}
        ready = [engine for engine in engines if engine.unavailable is None]
        rates = rates_to_json(run_rounds(ready, chosen, args.rounds, report))
        return {"rates": rates, "engines": {e.spec.name: e.facts for e in ready}, "unavailable": unavailable}


@contextlib.contextmanager
def _running(specs: list[EngineSpec], threads: int, report: Callable[[str], None]) -> Iterator[list[EngineProcess]]:
    from .bench.processes import EngineProcess

    engines: list[EngineProcess] = []
    try:
        for spec in specs:
            report(f"starting {spec.name}")
            engines.append(EngineProcess(spec, threads))
        yield engines
    finally:
        for engine in engines:
            engine.close()


def _bandwidth(
    artifact: Path, float32: str | None, threads: int, rates: list[dict[str, Any]], report: Callable[[str], None]
) -> dict[str, Any]:
    """The floor of a decode step: the bytes of the weights over the measured bandwidth of reading as many."""
    from .bench.bandwidth import read_bandwidth

    report("measuring memory bandwidth")
    facts: dict[str, Any] = {"big_buffer_bytes_per_second": read_bandwidth(_BIG_BUFFER, threads)}
    medians = {(entry["engine"], entry["case"]): entry["median"] for entry in rates}
    models = {OWN: artifact} | ({} if float32 is None else {OWN_FLOAT32: Path(float32)})
    for engine, path in models.items():
        size = _weight_bytes(path)
        if size is None:
            continue
        rate = read_bandwidth(size, threads)
        entry = {"weights_bytes": size, "read_bytes_per_second": rate, "floor_tokens_per_second": rate / size}
        decoded = medians.get((engine, CASES[0].name))
        if decoded is not None:
            entry["reached_part"] = decoded * size / rate
        facts[engine] = entry
    return facts


def _weight_bytes(path: Path) -> int | None:
    """Bytes of the params of an artifact in their stored formats: what a decode step reads. None for a checkpoint."""
    from autodeploy.artifact import is_artifact, read_artifact

    from .inspect_sections import param_bytes

    return param_bytes(read_artifact(path).weights) if is_artifact(path) else None


def _cold_start(args: argparse.Namespace, artifact: Path, threads: int) -> dict[str, Any]:
    from .bench import one_off
    from .bench.results import summarise

    facts = {
        "cold_start_python_seconds": summarise(
            [one_off.cold_start_python(artifact, threads, **_load_options(args)) for _ in range(args.rounds)]
        )
    }
    if args.tool is not None:
        tool, load = Path(args.tool), _load_options(args)
        times = [one_off.cold_start_tool(tool, artifact, threads, **load) for _ in range(args.rounds)]
        facts["cold_start_tool_seconds"] = summarise(times)
    return facts


def _compile(args: argparse.Namespace) -> dict[str, Any]:
    from autodeploy.artifact import is_artifact

    from .bench import one_off

    if is_artifact(args.model):
        return {"compile_seconds": None}
    seconds, size = one_off.compile_cold(args.model, load_format=args.load_format)
    return {"compile_seconds": seconds, "artifact_bytes": size}


def _memory(args: argparse.Namespace, artifact: Path, threads: int) -> dict[str, Any]:
    from .bench import one_off

    if args.tool is None:
        return {"memory": None}
    found = one_off.tool_memory(Path(args.tool), artifact, threads, **_load_options(args))
    return {"memory": found | {"stored_weights_bytes": _weight_bytes(artifact)}}


def _idle(spec: EngineSpec, threads: int, seconds: float) -> dict[str, Any]:
    with _running([spec], threads, lambda text: None) as (engine,):
        if engine.unavailable is not None:
            return {"idle_cpu_share": None}
        engine.ask(CASES[0].to_request() | {"num_tokens": 8})
        time.sleep(1.0)
        return {"idle_cpu_share": engine.ask({"kind": "idle", "seconds": seconds}, seconds + 60).get("cpu_share")}


def _machine(threads: int) -> dict[str, Any]:
    facts = machine.processor()
    load = os.getloadavg()[0]
    return {**facts, "threads": threads, "processors": os.cpu_count(), "load": load, "system": platform.platform()}
